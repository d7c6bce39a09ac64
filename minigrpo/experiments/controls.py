"""The gradient of GRPO, of λ-GRPO, and of controls that take λ-GRPO apart (ours, not the paper's).

    grpo_at_lambda_norm    GRPO's gradient at the norm of λ-GRPO's: is it only the scale?
    lambda_at_grpo_norm    the other way round
    placebo                1/|λ(i,t)| shuffled over the tokens of each group: is it only that
                           weights vary?
    alpha=0.5              weights |λ(i,t)|^-½, and so for any number: 0 is GRPO, 1 is λ-GRPO

All are unclipped: with one update per batch, clipping would not act.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from minigrpo.engine.optim import global_norm
from minigrpo.engine.plan import split_tree
from minigrpo.objectives import Coefficients, Objective, advantages
from minigrpo.trainer import compute_gradients, parts_to_learn_from
from minigrpo.transformer import Transformer
from minigrpo.tree import Rollouts

COMPARED = ("grpo", "lambda_grpo")
PRESETS = (*COMPARED, "dr_grpo", "rloo")
AT_THE_NORM_OF = {  # direction, norm
    "grpo_at_lambda_norm": ("grpo", "lambda_grpo"),
    "lambda_at_grpo_norm": ("lambda_grpo", "grpo"),
}
CONTROLS = (*AT_THE_NORM_OF, "placebo")
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
    beta: float = 0.0,
    ref: np.ndarray | None = None,
) -> None:
    """Leave the arm's gradient in model.gradients.   rng: for the placebo; ref (N,): for beta > 0

    Raises ValueError for an unknown arm.
    """

    def gradients(name: str, found: Coefficients | None = None) -> float:
        objective = _unclipped(name, beta)
        found = found or objective.coefficients(rollouts, rewards)
        if beta:
            parts = split_tree(rollouts.tree, 4096, model.lanes)
        else:
            parts = parts_to_learn_from(model, rollouts.tree, found.push, 4096)
        compute_gradients(model, parts, objective, found, rollouts.temperature, rollouts.logp, ref)
        return global_norm(model.gradients)

    if arm in PRESETS or arm.startswith("alpha="):
        gradients(arm)
    elif arm in AT_THE_NORM_OF:
        direction, scale = AT_THE_NORM_OF[arm]
        wanted = gradients(scale)
        if norm := gradients(direction):
            model.gradients.flat *= wanted / norm
    elif arm == "placebo":
        gradients("grpo", shuffled_weights(_unclipped("grpo", beta), rollouts, rewards, rng))
    else:
        known = ", ".join(PRESETS + CONTROLS)
        raise ValueError(f"unknown arm {arm!r}: choose from {known}, alpha=NUMBER")


@cache
def _unclipped(name: str, beta: float) -> Objective:
    preset, has_power, power = name.partition("alpha=")
    changes = {"alpha": float(power)} if has_power else {}
    return Objective.preset(preset or "grpo", clip_low=None, clip_high=None, beta=beta, **changes)


def shuffled_weights(
    objective: Objective, rollouts: Rollouts, rewards: np.ndarray, rng: np.random.Generator
) -> Coefficients:
    """GRPO with the weights 1/|λ(i,t)| permuted over the tokens of each group.

    They are as uneven as λ-GRPO's, but meaningless.
    """
    tree = rollouts.tree
    nodes = tree.paths[tree.paths >= 0]  # (Σ|yᵢ|,) completion after completion
    group = np.repeat(tree.completion_group, tree.lengths)  # (Σ|yᵢ|,)
    weight = 1 / tree.count[nodes]
    for g in range(tree.n_groups):
        tokens = group == g
        weight[tokens] = rng.permutation(weight[tokens]) / (tree.n_groups * tokens.sum())
    options = {"ddof": objective.ddof, "eps": objective.std_eps}
    advantage = advantages(rewards, tree.completion_group, **options).repeat(tree.lengths)
    terms = weight * np.maximum(advantage, 0), weight * np.minimum(advantage, 0), weight
    positive, negative, weight = (np.bincount(nodes, x, minlength=tree.n_nodes) for x in terms)
    plain = objective.coefficients(rollouts, rewards)
    return replace(plain, positive=positive, negative=negative, weight=weight)
