"""Signs that a run is not learning, each as one sentence that names the setting to change.

Only the metrics of the steps are looked at, so it costs nothing.  A healthy run should stay silent:
what is said must be beyond the noise of the rewards.  Parameters and logits that are not finite are
left out, as they end a run (`engine/divergence.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

WINDOW = 10  # steps that are looked at together
START = 5  # steps that stand for the policy before it was trained
GREEDY = "eval/pass@1_greedy"
GENTLER = "start again and lower --learning-rate (or raise --prompts-per-step, or --warmup-steps)"


def warning_sign(history: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """What is wrong with a run so far.   history: the metrics of its steps -> (kind, sentence)

    "nothing to compare": no group of the first 10 steps had two different rewards.
    "collapse": the reward fell, and all groups of the last 10 steps are dead (equal rewards); or it
    fell by half of its distance from the lowest step, and by 5 standard errors; or greedy accuracy
    fell by a third, and by 5 standard errors.
    """
    measured = [m for m in history if GREEDY in m]
    if len(measured) > 1 and (sentence := _greedy_collapse(measured[0], measured[-1])):
        return "collapse", sentence
    steps = [m for m in history if "reward" in m]
    if len(steps) < WINDOW:
        return None
    rewards = np.array([m["reward"] for m in steps], dtype=np.float64)
    dead = np.array([m["frac_reward_zero_std"] == 1 for m in steps])
    now, fell = rewards[-WINDOW:].mean(), f"step {steps[-1]['step']}: the mean reward fell from"
    if len(steps) == WINDOW and dead.all():
        return "nothing to compare", (
            f"all completions of every prompt have earned the same reward for {WINDOW} steps (mean "
            f"{now:.3g}), so nothing was learned: take easier problems (harder ones if all are "
            "solved), finer rewards, a warm start, or a larger --group-size"
        )
    best = int(rewards.argmax())
    if dead[-WINDOW:].all() and now < rewards[best] - 0.25 * np.ptp(rewards) - 1e-9:
        return "collapse", (
            f"{fell} {rewards[best]:.3g} at step {steps[best]['step']} to {now:.3g}, and all "
            f"completions of a prompt now earn the same, so nothing more is learned: {GENTLER}"
        )
    if len(steps) >= START + WINDOW:
        first, last = rewards[:START], rewards[-WINDOW:]
        spread = np.sqrt((first.var() * START + last.var() * WINDOW) / (START + WINDOW - 2))
        error = spread * np.sqrt(1 / START + 1 / WINDOW)
        if first.mean() - now > max(5 * error, 0.5 * (first.mean() - rewards.min()), 1e-9):
            return "collapse", (
                f"{fell} {first.mean():.3g} in the first {START} steps to {now:.3g} in the last "
                f"{WINDOW}: {GENTLER}"
            )
    return None


def _greedy_collapse(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    p, q, n = before[GREEDY], after[GREEDY], before["eval/prompts"]
    error = np.sqrt((p * (1 - p) + q * (1 - q)) / n) + 1 / n
    if p - q <= max(5 * error, p / 3):
        return None
    fell = f"fell from {p:.0%} at step {before['step']} to {q:.0%} at step {after['step']}"
    return f"greedy accuracy on held-out problems {fell}: {GENTLER}"
