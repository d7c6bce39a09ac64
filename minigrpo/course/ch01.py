"""Checks of chapter 1: central differences, and the variance itself."""

import numpy as np

from minigrpo.course.grading import Answer, slope, softmax, task, text
from minigrpo.objectives import advantages


def _estimate(logits: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """The REINFORCE estimate, by its definition."""
    return slope(lambda z: rewards @ np.log(softmax(z))[actions] / len(rewards), logits)


def _draws() -> list[tuple[np.ndarray, np.ndarray, np.ndarray, str]]:
    """Logits, actions, rewards, and the three in words."""
    rng = np.random.default_rng(1)
    draws = [
        (np.array([0.5, -1.0, 0.2]), np.array([2, 0, 2, 2]), np.array([1.0, 0.5, -1.0, 3.0])),
        (np.array([0.0, 0.0]), np.array([0, 0]), np.array([1.0, 1.0])),
        (rng.standard_normal(4), rng.integers(4, size=9), rng.standard_normal(9)),
    ]
    return [(*d, "logits {}, actions {}, rewards {}".format(*map(text, d))) for d in draws]


@task(
    "gradient of the expected reward",
    axes=("action",),
    no_baseline="this is π·r. Raising θ_a also lowers the probabilities of the other actions.",
    plain_mean="the baseline is the expected reward Σ π(b) r_b, weighted by π, not the plain mean.",
    no_probability="the factor π(a) is missing: a rare action moves J little.",
    diagonal="this is π(a) (1 - π(a)) r_a, the diagonal of ∂π/∂θ: its other entries are missing.",
    squared="π(a) stands here twice.",
)
def _check_expected_reward_gradient(answer: Answer) -> None:
    for logits, rewards in (
        ([0.5, -1.0, 0.2], [1.0, 0.0, -2.0]),
        ([0.0, 1.0], [3.0, 3.0]),
        ([1000.0, 999.0, 0.0], [0.0, 1.0, 5.0]),
        ([2.0], [1.0]),
    ):
        z, r = np.array(logits), np.array(rewards)
        p = softmax(z)
        mistakes = dict(no_baseline=p * r, plain_mean=p * (r - r.mean()), no_probability=r - p @ r)
        mistakes |= dict(diagonal=p * (1 - p) * r, squared=p * p * (r - p @ r))
        given = f"logits {text(logits)} and rewards {text(rewards)}"
        answer.check(given, (z, r), slope(lambda z, r: softmax(z) @ r, z, r), **mistakes)


@task(
    "REINFORCE estimate",
    axes=("action",),
    repeated="an action drawn twice counts once: only np.add.at adds up repeated indices.",
    onehot="d log π(a)/dθ is more than onehot(a): every logit lowers the others' probabilities.",
    own="this is 1 - π(a) at the action alone: -π(b) at every other action b is missing.",
    no_reward="π must be multiplied by the reward of each draw, too.",
    baseline="there is a baseline in it: asked for is the estimate with the rewards as they are.",
)
def _check_reinforce(answer: Answer) -> None:
    for z, actions, r, given in _draws():
        p, last, n = softmax(z), np.zeros(len(z)), len(r)
        last[actions] = r  # what g[actions] += r does: only the last draw of an action counts
        sums = np.bincount(actions, r, minlength=len(z))
        mistakes = dict(repeated=(last - r.sum() * p) / n, onehot=sums / n)
        mistakes |= dict(total=sums - r.sum() * p, own=sums * (1 - p) / n)
        mistakes |= dict(no_reward=sums / n - p, baseline=_estimate(z, actions, r - r.mean()))
        mistakes |= dict(grad_pi=_estimate(z, actions, r * p[actions]))
        answer.check(given, (z, actions, r), _estimate(z, actions, r), **mistakes)


def _variance(baseline: float, z: np.ndarray, r: np.ndarray) -> float:
    """Of the estimate from a single draw, summed over the parameters."""
    p = softmax(z)
    draws = np.array([_estimate(z, np.array([a]), r[[a]] - baseline) for a in range(len(z))])
    return float((p @ draws**2 - (p @ draws) ** 2).sum())


@task(
    "baseline of least variance",
    expected_reward="this is the expected reward: a good baseline, not the best of all.",
    mean="this is the plain mean; actions count by how likely they are (and by their gradient).",
    not_squared="|∇ln π(a)| must be squared: the variance is a mean of squares.",
    no_probability="actions are not weighted by π(a): the mean is over draws of the policy.",
    own="this is (1 - π(a))²; |∇ln π(a)|² has the other logits' parts, too.",
    variance_of_pi="actions are weighted by π(a)(1 - π(a)); the weight is π(a)·|∇ln π(a)|².",
)
def _check_best_baseline(answer: Answer) -> None:
    rng = np.random.default_rng(2)
    for z, r in (
        (np.log([0.7, 0.2, 0.1]), np.array([1.0, 0.0, 4.0])),
        (np.zeros(3), np.array([1.0, 0.0, 5.0])),
        (rng.standard_normal(5), rng.standard_normal(5)),
    ):
        p = softmax(z)
        below, middle, above = (_variance(b, z, r) for b in (-1.0, 0.0, 1.0))
        vertex = 0.5 * (below - above) / (below - 2 * middle + above)  # of a parabola in b
        given = f"probabilities {text(p)} and rewards {text(r)}"
        onehot = np.eye(len(p))
        squares = ((onehot - p) ** 2).sum(1)
        mistakes = dict(expected_reward=p @ r, mean=r.mean())
        mistakes |= dict(
            no_probability=squares @ r / squares.sum(),
            not_squared=(p * squares**0.5) @ r / (p @ squares**0.5),
            variance_of_pi=(p * (1 - p)) @ r / (p @ (1 - p)),
            own=(p * (1 - p) ** 2) @ r / (p @ (1 - p) ** 2),
            grad_pi=(p**3 * squares) @ r / (p**3 @ squares),
        )
        answer.check(given, (z, r), vertex, **mistakes)


@task(
    "leave-one-out baseline",
    axes=("action",),
    group_mean="the mean includes the draw itself: divide the sum of the *others* by n - 1.",
    by_n="the sum of the others must be divided by n - 1, not by n.",
)
def _check_leave_one_out_gradient(answer: Answer) -> None:
    for z, actions, r, given in _draws():
        group, by_n = np.zeros(len(r), dtype=int), r - (r.sum() - r) / len(r)
        estimates = {
            name: _estimate(z, actions, advantages(r, group, baseline=name, scale="none"))
            for name in ("leave_one_out", "group_mean", "none")
        }
        right, by_n = estimates.pop("leave_one_out"), _estimate(z, actions, by_n)
        a, last, p = (r - r.mean()) * len(r) / (len(r) - 1), np.zeros(len(z)), softmax(z)
        last[actions] = a
        mistakes = dict(by_n=by_n, total=right * len(r), repeated=(last - a.sum() * p) / len(r))
        mistakes |= dict(grad_pi=_estimate(z, actions, a * p[actions]))
        answer.check(given, (z, actions, r), right, **estimates, **mistakes)
