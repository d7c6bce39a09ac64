"""The gradient of GRPO, of λ-GRPO, and of controls that take λ-GRPO apart (ours, not the paper's).

    grpo_at_lambda_norm    the gradient of GRPO, scaled in every step to the norm of λ-GRPO's: is it only the scale?
    lambda_at_grpo_norm    the other way round
    placebo                the weights 1/|λ(i,t)| shuffled over the tokens of each group: is it only that weights vary?
    alpha=0.5              weights |λ(i,t)|^-½, and so for any number: alpha=0 is grpo, alpha=1 lambda_grpo

All without clipping (one update a batch, so it would not act).  `dr_grpo` and `rloo` are there too, as they are.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from minigrpo.engine.optim import global_norm
from minigrpo.engine.plan import split_tree
from minigrpo.objectives import Coefficients, Objective, advantages
from minigrpo.trainer import compute_gradients, parts_to_learn_from
from minigrpo.transformer import Transformer
from minigrpo.tree import Rollouts

PRESETS = ("grpo", "lambda_grpo", "dr_grpo", "rloo")
CONTROLS = ("grpo_at_lambda_norm", "lambda_at_grpo_norm", "placebo")
TITLES = {  # names in figures
    "grpo": "GRPO",
    "lambda_grpo": "λ-GRPO",
    "grpo_at_lambda_norm": "GRPO, λ-GRPO's norm",
    "lambda_at_grpo_norm": "λ-GRPO, GRPO's norm",
    "placebo": "placebo: shuffled 1/|λ|",
    "dr_grpo": "Dr. GRPO",
    "rloo": "RLOO",
    "monte_carlo_prm": "Monte-Carlo PRM",
}


def gradients_of_arm(
    arm: str,
    model: Transformer,
    rollouts: Rollouts,
    rewards: np.ndarray,
    rng: np.random.Generator,
    *,
    beta: float = 0.0,
    ref: np.ndarray | None = None,
    micro_batch_tokens: int = 4096,
) -> None:
    """Leave the arm's gradient in model.gradients.   ref (N,) for beta > 0.   Raises ValueError for an unknown arm."""

    def gradients(objective: Objective, coefficients: Coefficients | None = None) -> None:
        found = objective.coefficients(rollouts, rewards) if coefficients is None else coefficients
        if beta:
            parts = split_tree(rollouts.tree, micro_batch_tokens, model.lanes)
        else:
            parts = parts_to_learn_from(model, rollouts.tree, found, micro_batch_tokens)
        compute_gradients(model, parts, objective, found, rollouts.temperature, rollouts.logp, ref)

    if arm in PRESETS or arm.startswith("alpha="):
        gradients(_unclipped(arm, beta))
    elif arm in ("grpo_at_lambda_norm", "lambda_at_grpo_norm"):
        grpo, fixed = _unclipped("grpo", beta), _unclipped("lambda_grpo", beta)
        direction, scale = (grpo, fixed) if arm == "grpo_at_lambda_norm" else (fixed, grpo)
        gradients(scale)
        norm = global_norm(model.gradients)
        gradients(direction)
        own = global_norm(model.gradients)
        if own > 0:
            model.gradients.flat *= norm / own
    elif arm == "placebo":
        gradients(
            _unclipped("grpo", beta),
            shuffled_weights(_unclipped("grpo", beta), rollouts, rewards, rng),
        )
    else:
        raise ValueError(
            f"unknown arm {arm!r}: choose from {', '.join(PRESETS + CONTROLS)}, alpha=NUMBER"
        )


@cache
def _unclipped(name: str, beta: float) -> Objective:
    family, is_member, alpha = name.partition("alpha=")
    changes = {"alpha": float(alpha)} if is_member else {}
    return Objective.preset(family or "grpo", clip_low=None, clip_high=None, beta=beta, **changes)


def shuffled_weights(
    objective: Objective, rollouts: Rollouts, rewards: np.ndarray, rng: np.random.Generator
) -> Coefficients:
    """GRPO with the weights 1/|λ(i,t)| permuted over the tokens (i,t) of each group: as uneven as λ-GRPO's, but meaningless."""
    tree = rollouts.tree
    nodes = tree.paths[tree.paths >= 0]  # (Σ|yᵢ|,) completion after completion
    group = np.repeat(tree.completion_group, tree.lengths)  # (Σ|yᵢ|,)
    weight = 1 / tree.count[nodes]
    for g in range(tree.n_groups):
        tokens = group == g
        weight[tokens] = rng.permutation(weight[tokens]) / (tree.n_groups * tokens.sum())
    advantage = np.repeat(
        advantages(rewards, tree.completion_group, ddof=objective.ddof, eps=objective.std_eps),
        tree.lengths,
    )

    def to_nodes(values: np.ndarray) -> np.ndarray:
        return np.bincount(nodes, values, minlength=tree.n_nodes)

    plain = objective.coefficients(rollouts, rewards)
    shuffled = {
        "positive": to_nodes(weight * np.maximum(advantage, 0)),
        "negative": to_nodes(weight * np.minimum(advantage, 0)),
        "weight": to_nodes(weight),
    }
    return Coefficients(**(vars(plain) | shuffled))
