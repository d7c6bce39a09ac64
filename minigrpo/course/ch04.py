"""Checks of chapter 4: the package's advantages, objectives and KL estimates."""

import numpy as np

from minigrpo.course.grading import Answer, is_list, shape_of, slope, task, text, wrong
from minigrpo.objectives import Objective, advantages, kl_estimate
from minigrpo.tree import PrefixTree, Rollouts

GROUPS = (
    [[1.0, 0.0, 0.0, 1.0, 0.0], [0.3, -1.0, 2.0, 0.7, 0.7]],
    [[1.0, 0.0], [0.0, 0.5], [3.0, 4.0]],
    [[1.0, 0.0, 2.0], [0.1, 0.1, 0.1], [0.0, 0.0, 0.0]],  # 0.1 is no binary fraction
    [[1e6, 1e6 + 1.0, 1e6]],
)


def _advantages(rewards: np.ndarray, **choices: object) -> np.ndarray:
    group = np.repeat(np.arange(len(rewards)), rewards.shape[1])
    return advantages(rewards.ravel(), group, **choices).reshape(rewards.shape)


@task(
    "advantages of groups",
    axes=("group", "completion"),
    whole_batch="mean and std are those of the whole batch; each group has its own.",
    leave_one_out="the baseline is the mean of the others (RLOO); GRPO's is that of the group.",
)
def _check_group_advantages(answer: Answer) -> None:
    for rows in GROUPS:
        r, given = np.array(rows), f"rewards {rows}"
        right = _advantages(r)
        mistakes = dict(population_std=_advantages(r, ddof=0), no_eps=_advantages(r, eps=0.0))
        mistakes |= dict(whole_batch=(r - r.mean()) / (r.std(ddof=1) + 1e-4))
        mistakes |= dict(only_centred=_advantages(r, scale="none"))
        mistakes |= dict(leave_one_out=_advantages(r, baseline="leave_one_out"))
        got = answer.check(given, (r,), right, **mistakes)
        for g in np.flatnonzero((right == 0).all(1)):
            if np.any(np.asarray(got)[g]):
                problem = f"at group {g}: expected exactly 0, got {text(np.asarray(got)[g])}."
                hint = "its rewards are equal, but their mean differs from them by a rounding: "
                raise wrong(given, problem, hint + "test for equality, and set 0.")


def _clipped(
    logp: np.ndarray, old: np.ndarray, advantage: np.ndarray, low: float, high: float
) -> float:
    """The clipped loss, token by token."""
    terms = zip(np.exp(logp - old).tolist(), advantage.tolist(), strict=True)
    return -sum(min(p * a, min(max(p, 1 - low), 1 + high) * a) for p, a in terms) / len(old)


@task(
    "clipped loss and its gradient",
    no_min="the ratio was clipped, whatever the sign of a; min(…) keeps a smaller unclipped term.",
    no_sign="the gradient is 0 only where the clipped branch is smaller: look at the sign of a.",
)
def _check_clipped_loss(answer: Answer) -> None:
    rng = np.random.default_rng(6)
    ratio, advantage = np.array([0.5, 0.9, 1.1, 1.6] * 2), np.repeat([1.5, -0.5], 4)
    for moved, a, low, high in (
        (np.log(ratio), advantage, 0.2, 0.2),
        (np.log(ratio), advantage[::-1], 0.2, 0.8),
        (np.zeros(3), np.array([1.0, -1.0, 0.0]), 0.2, 0.2),
        (rng.uniform(-1, 1, 7), rng.standard_normal(7), 0.1, 0.3),
    ):
        n, rho = len(a), np.exp(moved)
        old = -rng.exponential(1.0, n) - 0.1
        logp, inside = old + moved, np.clip(rho, 1 - low, 1 + high)
        given = f"ratios {text(rho)}, advantages {text(a)}, low {low}, high {high}"
        got = answer.parts(given, ("loss", "dlogp"), logp, old, a, low, high)
        loss, dlogp = _clipped(logp, old, a, low, high), slope(_clipped, logp, old, a, low, high)
        mistakes = dict(negative=-loss, total=loss * n, unclipped=-(rho * a).mean())
        mistakes |= dict(no_min=-(inside * a).mean())
        answer.compare(given, got[0], loss, "loss", **mistakes)
        mistakes = dict(no_ratio=dlogp / rho, unclipped=-rho * a / n, total=dlogp * n)
        mistakes |= dict(no_sign=-rho * a * (inside == rho) / n)
        labels = [f"token {t} (ratio {text(rho[t])}, advantage {text(a[t])})" for t in range(n)]
        answer.compare(given, got[1], dlogp, "dlogp", labels, **mistakes)


@task(
    "three KL estimates",
    axes=("token",),
    reversed="x has the wrong sign: it is log π_ref - log π.",
    no_half="the half is missing: x²/2.",
    no_one="- 1 is missing: k3 is 0 where both policies agree.",
    no_x="the term - x is missing: without it the estimate is not always positive.",
)
def _check_kl_estimates(answer: Answer) -> None:
    rng, names = np.random.default_rng(7), ("k1", "k2", "k3")
    for logp, ref in (
        (np.array([-1.0, -0.5, -2.0]), np.array([-0.5, -0.5, -3.0])),
        (-rng.exponential(1, 5), -rng.exponential(1, 5)),
    ):
        given, x = f"logp {text(logp)} and ref {text(ref)}", ref - logp
        got = answer.ask(given, logp, ref)
        right = np.stack([kl_estimate(name, logp, ref)[0] for name in names])
        for name, row, k in zip(names, got if is_list(got) else (), right, strict=False):
            other = kl_estimate(name, ref, logp)[0]
            mistakes = dict(reversed=other, no_half=x * x, no_one=k + 1, no_x=k + x)
            answer.compare(given, row, k, name, **mistakes)
        answer.compare(given, got, right)


@task(
    "dead groups",
    axes=("group",),
    std="0.1 + 0.1 + 0.1 is not exactly 0.3, so std is not exactly 0: compare the rewards.",
    all_wrong="a group whose completions are all right is as dead as one where all are wrong.",
    nearly="rewards that differ by little still differ: their advantages are small, not 0.",
)
def _check_dead_groups(answer: Answer) -> None:
    rows = [[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.1, 0.1, 0.1]]
    rows += [[-0.3, -0.3, -0.3], [0.0, 1e-9, 0.0], [1.0, -1.0, 0.0]]
    r = np.array(rows)
    right, zero = (_advantages(r) == 0).all(1), (r == 0).all(1)
    mistakes = dict(std=r.std(1, ddof=1) == 0, all_wrong=zero, nearly=np.ptp(r, axis=1) < 1e-6)
    answer.check(f"rewards {rows}", (r,), right, **mistakes)


def _token_weight(lengths: list[int], aggregation: str, limit: int) -> np.ndarray:
    """What one token of each completion counts in the package's objective (0 if it is empty)."""
    k = len(lengths)
    completions = [np.arange(n) + 100 * i for i, n in enumerate(lengths)]  # they share nothing
    tree = PrefixTree.from_groups([[0]], [completions])
    zero, cut = np.zeros(tree.n_nodes), np.zeros(k, dtype=bool)
    rollouts = Rollouts([np.array([0])], [completions], tree, zero, zero, cut, 1.0, limit)
    weight = Objective(aggregation=aggregation).coefficients(rollouts, np.arange(float(k))).weight
    return np.where(np.array(lengths) > 0, weight[tree.paths[:, 0]], 0.0)


AGGREGATIONS = ("sequence_mean", "group_token_mean", "constant")


@task(
    "length bias",
    axes=("completion",),
    **{name: f"these are the weights of {name!r}." for name in AGGREGATIONS},
    no_mean="the mean over the k completions is missing.",
    no_limit="the limit is missing.",
    completions="these are weights of whole completions; asked for is one token of each.",
)
def _check_token_weights(answer: Answer) -> None:
    for lengths, limit in (([1, 3, 4], 6), ([2, 0, 5, 1], 8), ([4, 4], 4)):
        k, n = len(lengths), np.array(lengths)
        weights = {name: _token_weight(lengths, name, limit) for name in AGGREGATIONS}
        for name in AGGREGATIONS:
            given = f"lengths {lengths}, aggregation {name!r}, limit {limit}"
            got, right = answer.ask(given, n, name, limit), weights[name]
            if shape_of(got) == n.shape:  # any number will do for a completion without tokens
                got = np.where((n > 0) | ~np.isfinite(got), got, 0.0)
            mistakes = {other: weights[other] for other in AGGREGATIONS if other != name}
            mistakes |= dict(no_mean=right * k, no_limit=right * limit, completions=right * n)
            answer.compare(given, got, right, **mistakes)
