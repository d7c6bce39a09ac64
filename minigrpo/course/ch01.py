"""Checks of chapter 1, policy gradients: against central differences, and against the variance itself."""

from __future__ import annotations

import numpy as np

from minigrpo.course.grading import Answer, Task, ask, compare, slope, text
from minigrpo.objectives import advantages


def _probabilities(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max())
    return e / e.sum()


def _expected_reward_gradient(f: Answer) -> None:
    for logits, rewards in (
        ([0.5, -1.0, 0.2], [1.0, 0.0, -2.0]),
        ([0.0, 1.0], [3.0, 3.0]),
        ([1000.0, 999.0, 0.0], [0.0, 1.0, 5.0]),
        ([2.0], [1.0]),
    ):
        z, r = np.array(logits), np.array(rewards)
        p = _probabilities(z)
        given = f"logits {text(logits)} and rewards {text(rewards)}"
        expected = slope(lambda x, r=r: float(_probabilities(x) @ r), z)
        hints = {
            "this is π·r. A probability depends on all logits, through the sum below: what does raising θ_a do to the others?": p
            * r,
            "the baseline is the expected reward Σ π(b) r_b, weighted by π, not the plain mean of r.": p
            * (r - r.mean()),
            "the factor π(a) is missing: a rare action moves J little.": r - p @ r,
        }
        compare(
            ask(f, z, r, given=given), expected, given, axes=("action",), hints=hints, rtol=1e-6
        )


def _draws() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [
        (np.array([0.5, -1.0, 0.2]), np.array([2, 0, 2, 2]), np.array([1.0, 0.5, -1.0, 3.0])),
        (np.array([0.0, 0.0]), np.array([0, 0]), np.array([1.0, 1.0])),
        (rng.standard_normal(4), rng.integers(4, size=9), rng.standard_normal(9)),
    ]


def _estimate(logits: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    return slope(
        lambda x: float(rewards @ np.log(_probabilities(x))[actions]) / len(rewards), logits
    )


def _reinforce(f: Answer) -> None:
    for z, actions, r in _draws():
        given = f"logits {text(z)}, actions {text(actions)}, rewards {text(r)}"
        p, last = _probabilities(z), np.zeros(len(z))
        last[actions] = r  # what g[actions] += r does: only the last draw of an action counts
        sums = np.bincount(actions, r, minlength=len(z))
        hints = {
            "an action that was drawn twice counts only once: g[actions] += … does not add up repeated indices; np.add.at does.": (
                last - r.sum() * p
            )
            / len(r),
            "d log π(a)/dθ is more than onehot(a): every logit lowers the others' probabilities.": sums
            / len(r),
            "this is the sum over the draws: take the mean.": sums - r.sum() * p,
        }
        got = ask(f, z, actions, r, given=given)
        compare(got, _estimate(z, actions, r), given, axes=("action",), hints=hints, rtol=1e-6)


def _best_baseline(f: Answer) -> None:
    rng = np.random.default_rng(2)
    for z, r in (
        (np.log([0.7, 0.2, 0.1]), np.array([1.0, 0.0, 4.0])),
        (np.zeros(3), np.array([1.0, 0.0, 5.0])),
        (rng.standard_normal(5), rng.standard_normal(5)),
    ):
        p = _probabilities(z)

        def variance(b: float, z: np.ndarray = z, r: np.ndarray = r, p: np.ndarray = p) -> float:
            draws = np.array(
                [_estimate(z, np.array([a]), np.array([r[a] - b])) for a in range(len(z))]
            )  # (A,A)
            return float((p @ draws**2 - (p @ draws) ** 2).sum())

        below, middle, above = (
            variance(b) for b in (-1.0, 0.0, 1.0)
        )  # a parabola in b: its vertex
        expected = 0.5 * (below - above) / (below - 2 * middle + above)
        given = f"probabilities {text(p)} and rewards {text(r)}"
        hints = {
            "this is the expected reward: a good baseline, not the best. Weigh by |d log π(a)/dθ|², too.": p
            @ r,
            "this is the plain mean of the rewards; actions count by how likely they are (and by their gradient).": r.mean(),
            "this is 0: no baseline at all.": 0.0,
        }
        compare(ask(f, z, r, given=given), expected, given, hints=hints, rtol=1e-5)


def _leave_one_out(f: Answer) -> None:
    for z, actions, r in _draws():
        given = f"logits {text(z)}, actions {text(actions)}, rewards {text(r)}"
        one = np.zeros(len(r), dtype=int)
        of = {
            name: advantages(r, one, baseline=name, scale="none")
            for name in ("leave_one_out", "group_mean", "none")
        }
        hints = {
            "the mean includes the draw itself: divide the sum of the *others* by n - 1.": _estimate(
                z, actions, of["group_mean"]
            ),
            "the rewards have no baseline: subtract the mean of the others first.": _estimate(
                z, actions, of["none"]
            ),
            "the sum of the others must be divided by n - 1, not by n.": _estimate(
                z, actions, r - (r.sum() - r) / len(r)
            ),
        }
        got = ask(f, z, actions, r, given=given)
        compare(
            got,
            _estimate(z, actions, of["leave_one_out"]),
            given,
            axes=("action",),
            hints=hints,
            rtol=1e-6,
        )


TASKS = (
    Task("gradient of the expected reward", "expected_reward_gradient", _expected_reward_gradient),
    Task("REINFORCE estimate", "reinforce", _reinforce),
    Task("baseline of least variance", "best_baseline", _best_baseline),
    Task("leave-one-out baseline", "leave_one_out_gradient", _leave_one_out),
)
