"""Theorem 1, checked by machine: GRPO equals an objective with a process reward for every step.

Two computations of loss and gradient that share as little code as they can.  Left: the usual way,
one advantage per completion on padded rows (`padded.py`), the transformer run on every completion
separately.  Right: the explicit process rewards of the tree (`prm`), the transformer run once on
every node.  The policy is moved away from the one that sampled, so that ratios are not all 1, and
compared with a third one by the KL term.  (Paper, Theorem 1: unclipped, token-mean over the group.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from minigrpo.objectives import Objective
from minigrpo.transformer import Transformer
from minigrpo.tree import Array, PrefixTree, Rollouts
from minigrpo.verify.padded import padded_loss


@dataclass(frozen=True)
class Equivalence:
    """The losses of both sides, and how far apart losses and gradients are."""

    grpo_loss: float
    prm_loss: float
    value_difference: float  # |difference| / Σ |terms|: the loss itself may be close to 0
    gradient_difference: dict[str, float]  # ‖difference‖ / ‖terms‖ for each parameter
    unique_tokens: int
    flat_tokens: int
    informative: bool  # some group has unequal rewards; otherwise only the KL term is compared

    @property
    def worst(self) -> float:
        """The largest of all relative differences."""
        return max(self.value_difference, *self.gradient_difference.values())

    def text(self) -> str:
        """The comparison as a few lines for a terminal."""
        name, worst = max(self.gradient_difference.items(), key=lambda item: item[1])
        distinct = f"{self.unique_tokens} of them distinct (prefix, token) pairs"
        relative = f"relative difference {self.value_difference:.1e}"
        return (
            f"{self.flat_tokens} tokens, {distinct}\n"
            f"loss      GRPO on padded rows {self.grpo_loss:+.15f}\n"
            f"          PRM on the tree     {self.prm_loss:+.15f}   {relative}\n"
            f"gradient  {len(self.gradient_difference)} parameters, "
            f"relative difference at most {worst:.1e} ({name})"
        )


def check_equivalence(
    model: Transformer,
    rollouts: Rollouts,
    rewards: Array,
    rng: np.random.Generator,
    *,
    beta: float = 0.04,
    step: float = 0.02,
    prm_rewards: Array | None = None,
    count_of_node: Array | None = None,
) -> Equivalence:
    """GRPO on padded rows and the PRM on the tree, at a policy `step` away (relative) from the old.

    Advantages of members cancel, so differences are relative to what does not cancel: the loss to
    Σ s over tokens, s = c·(ρ|a| + β|1 - eˣ| + 2β), since dD/dlogp = 1 - eˣ cancels too; a
    parameter's gradient to ‖Σ ξ·s·dlogp/dθ‖, ξ normal, whose mean square is Σ ‖s·dlogp/dθ‖²; or to
    its own norm if larger, or to 10⁻³ of that of all parameters (equal values leave queries none).

    prm_rewards and count_of_node replace the PRM side's rewards and |λ|: a check of the check,
    which must then fail.
    """
    theta, dtype = model.parameters.flat.copy(), model.dtype
    tree, temperature, completions = rollouts.tree, rollouts.temperature, rollouts.completions
    flat = PrefixTree.from_groups(rollouts.prompts, completions, merge=False)

    def move() -> None:
        noise = model.backend.to_device(rng.standard_normal(theta.shape), dtype=dtype)
        model.parameters.flat[:] = theta * (1 + step * noise)

    def log_probabilities() -> tuple[Array, Array]:  # (B,T) of the flat run, (N,) of the tree
        rows = flat.on_tokens(model.forward(flat, temperature, keep=False))
        return rows, model.forward(tree, temperature, keep=False)

    def gradient(on: PrefixTree, dlogp: Array) -> dict[str, Array]:
        model.forward(on, temperature)
        found = model.backward(dlogp, add=False)
        return {name: model.backend.to_host(g).copy() for name, g in found.items()}

    def gradient_of_rows(dlogp: Array) -> dict[str, Array]:  # (B,T)
        inside = flat.paths >= 0
        on_nodes = np.bincount(flat.paths[inside], dlogp[inside], minlength=flat.n_nodes)
        return gradient(flat, on_nodes)

    try:
        old_rows, old = log_probabilities()
        move()
        ref_rows, ref = log_probabilities()
        move()
        logp_rows, logp = log_probabilities()

        # Left: one advantage per completion, every completion computed alone.
        grpo = Objective.preset("grpo", clip_low=None, clip_high=None, beta=beta)
        on_rows = (completions, rewards, logp_rows, old_rows, ref_rows)
        grpo_loss, dlogp = padded_loss(grpo, *on_rows)
        surrogate = padded_loss(replace(grpo, beta=0.0), *on_rows)[1]
        k1 = padded_loss(replace(grpo, kl="k1"), *on_rows)[1]
        size = np.abs(surrogate) + np.abs(dlogp - surrogate) + 2 * np.abs(k1 - surrogate)  # (B,T)
        left = gradient_of_rows(dlogp)
        terms = gradient_of_rows(size * np.random.default_rng(0).standard_normal(size.shape))

        # Right: one process reward per step, every node computed once.
        prm = Objective.preset("prm", beta=beta)
        c = prm.coefficients(rollouts, rewards if prm_rewards is None else prm_rewards)
        if count_of_node is not None:
            factor = count_of_node / tree.count
            sums = {"positive": c.positive, "negative": c.negative, "weight": c.weight}
            c = replace(c, **{name: factor * values for name, values in sums.items()})
        prm_loss, dlogp = prm.evaluate(c, logp, old, ref)
        right = gradient(tree, dlogp)
    finally:
        model.parameters.flat[:] = theta
        model.gradients.flat[:] = 0
    norm, tiny = np.linalg.norm, 1e-300
    least = max(1e-3 * norm([norm(g) for g in terms.values()]), tiny)
    difference = {
        n: float(norm(right[n] - left[n]) / max(norm(left[n]), norm(terms[n]), least)) for n in left
    }
    value = abs(grpo_loss - prm_loss) / max(float(size.sum()), tiny)
    sizes = int(tree.scored.sum()), int(tree.lengths.sum())
    return Equivalence(grpo_loss, prm_loss, value, difference, *sizes, bool(surrogate.any()))
