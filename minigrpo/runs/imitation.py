"""The supervised warm start of a run whose task has demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minigrpo.engine.divergence import diverging
from minigrpo.engine.lanes import limited
from minigrpo.engine.optim import AdamW, clip_gradient, learning_rate_at
from minigrpo.engine.parts import visit_parts
from minigrpo.engine.plan import split_tree
from minigrpo.system.terminal import bar
from minigrpo.transformer import Transformer
from minigrpo.tree import PrefixTree


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
@limited
def imitate(
    model: Transformer,
    draw: Callable[[], Sequence[tuple[np.ndarray, np.ndarray]]],
    steps: int,
    learning_rate: float,
    micro_batch_tokens: int = 1024,
    progress: bool = False,
) -> None:
    """Supervised learning: each step minimises -mean log p(token) of what draw() demonstrates.

    Raises DivergenceError if it diverges.
    """
    optimizer = AdamW(model.parameters)
    for step in bar(range(steps), "warm start", "step", progress):
        prompts, completions = zip(*draw(), strict=True)
        tree = PrefixTree.from_groups(prompts, [[completion] for completion in completions])
        c = -1.0 / max(tree.scored.sum(), 1)  # d loss / d logp

        def visit(lane: Transformer, part: PrefixTree, _: Any, add: bool, c: float = c) -> None:
            lane.forward(part)
            lane.backward(np.where(part.scored, c, 0.0), add)

        with diverging(f"warm-start step {step + 1}", lambda: "lower warm_start_learning_rate"):
            visit_parts(model, split_tree(tree, micro_batch_tokens, model.lanes), visit)
            clip_gradient(model.gradients, 1.0)
            rate = learning_rate_at(step, steps, learning_rate, 20, "cosine")
            optimizer.step(model.parameters, model.gradients, rate)
            model.check_weights()
