"""Theorem 1, checked by machine: GRPO equals an objective with a process reward for every step, in value and in gradient.

Two computations that share as little code as they can.  Left: the usual way, padded arrays with one advantage a completion
(`padded.py`), the transformer run on every completion separately.  Right: the explicit process rewards of the tree (`prm`), the
transformer run once on every node.  The policy is moved away from the one that sampled, so that ratios are not all 1, and held
against a third policy by the KL term.  (Paper, Theorem 1: unclipped, token-mean over the group.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from minigrpo.objectives import Coefficients, Objective
from minigrpo.transformer import Transformer
from minigrpo.tree import PrefixTree, Rollouts
from minigrpo.verify.padded import padded_loss


@dataclass(frozen=True)
class Equivalence:
    """The losses and gradients of both sides, and how far apart they are."""

    grpo_loss: float
    prm_loss: float
    value_difference: float  # |difference| / Σ |terms|: the loss itself may be close to 0
    gradient_difference: dict[
        str, float
    ]  # for each parameter, ‖difference‖ / size of its terms (Euclidean norms)
    unique_tokens: int
    flat_tokens: int
    informative: bool  # some group has unequal rewards; otherwise only the KL term is compared

    @property
    def worst(self) -> float:
        """The largest of all relative differences."""
        return max(self.value_difference, *self.gradient_difference.values())

    def text(self) -> str:
        """The comparison as a few lines for a terminal."""
        name = max(self.gradient_difference, key=self.gradient_difference.__getitem__)
        worst = self.gradient_difference[name]
        return (
            f"{self.flat_tokens} tokens, {self.unique_tokens} of them distinct (prefix, token) pairs\n"
            f"loss      GRPO on padded rows {self.grpo_loss:+.15f}\n"
            f"          PRM on the tree     {self.prm_loss:+.15f}   relative difference {self.value_difference:.1e}\n"
            f"gradient  {len(self.gradient_difference)} parameters, relative difference at most {worst:.1e} ({name})"
        )


def check_equivalence(
    model: Transformer,
    rollouts: Rollouts,
    rewards: np.ndarray,
    rng: np.random.Generator,
    *,
    beta: float = 0.04,
    step: float = 0.02,
    prm_rewards: np.ndarray | None = None,
    count_of_node: np.ndarray | None = None,
) -> Equivalence:
    """Compare GRPO on padded rows with the explicit PRM on the tree, at a policy `step` away (relative) from the sampling one.

    Advantages of members cancel, so differences are relative to what does not: the loss to Σ s over tokens, s = c·(ρ|a| + β|1 - eˣ|
    + 2β), since dD/dlogp = 1 - eˣ cancels too; a parameter's gradient to ‖Σ ξ·s·dlogp/dθ‖, ξ normal, whose mean square is
    Σ ‖s·dlogp/dθ‖², or its own norm if larger, or 10⁻³ of that of all parameters (equal values leave queries without gradient).

    prm_rewards and count_of_node stand in for the PRM side's rewards and |λ|: a check of the check, which must then fail.
    """
    tree = rollouts.tree
    theta = model.parameters.flat.copy()
    to_device = model.backend.to_device

    def moved() -> None:
        noise = to_device(rng.standard_normal(theta.shape), dtype=model.dtype)
        model.parameters.flat[:] = theta * (1 + step * noise)

    flat = PrefixTree.from_groups(rollouts.prompts, rollouts.completions, merge=False)
    try:
        old_flat = flat.on_tokens(model.forward(flat, rollouts.temperature, keep=False))
        old = model.forward(tree, rollouts.temperature, keep=False)
        moved()
        ref_flat = flat.on_tokens(model.forward(flat, rollouts.temperature, keep=False))
        ref = model.forward(tree, rollouts.temperature, keep=False)
        moved()

        def gradient(dlogp: np.ndarray) -> dict[str, np.ndarray]:
            return {
                name: model.backend.to_host(g).copy()
                for name, g in model.backward(dlogp, add=False).items()
            }

        def on_flat(rows: np.ndarray) -> np.ndarray:  # (B,T) -> (N,)
            return np.bincount(
                flat.paths[flat.paths >= 0], rows[flat.paths >= 0], minlength=flat.n_nodes
            )

        # Left: one advantage a completion, every completion computed alone.
        grpo = Objective.preset("grpo", clip_low=None, clip_high=None, beta=beta)
        logp_flat = flat.on_tokens(model.forward(flat, rollouts.temperature))
        (grpo_loss, dlogp), (_, surrogate), (_, k1) = (
            padded_loss(
                replace(grpo, **changes),
                rollouts.completions,
                rewards,
                logp_flat,
                old_flat,
                ref_flat,
            )
            for changes in ({}, {"beta": 0.0}, {"kl": "k1"})
        )
        left = gradient(on_flat(dlogp))
        size = np.abs(surrogate) + np.abs(dlogp - surrogate) + 2 * np.abs(k1 - surrogate)  # (B,T)
        model.forward(flat, rollouts.temperature)
        terms = gradient(on_flat(size * np.random.default_rng(0).standard_normal(size.shape)))

        # Right: one process reward a step, every node computed once.
        prm = Objective.preset("prm", beta=beta)
        logp = model.forward(tree, rollouts.temperature)
        coefficients = prm.coefficients(rollouts, rewards if prm_rewards is None else prm_rewards)
        if count_of_node is not None:
            factor = count_of_node / tree.count
            scaled = {
                name: getattr(coefficients, name) * factor
                for name in ("positive", "negative", "weight")
            }
            coefficients = Coefficients(**(vars(coefficients) | scaled))
        prm_loss, dlogp = prm.evaluate(coefficients, logp, old, ref)
        right = gradient(dlogp)
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
