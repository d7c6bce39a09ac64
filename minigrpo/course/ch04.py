"""Checks of chapter 4: the package's advantages, objectives and KL estimates."""

import numpy as np

from minigrpo.course.grading import Answer, close, is_list, shape_of, slope, task, text, wrong
from minigrpo.objectives import Objective, advantages, kl_estimate
from minigrpo.system.user_code import as_numbers
from minigrpo.tree import PrefixTree, Rollouts

GROUPS = (
    [[1.0, 0.0, 0.0, 1.0, 0.0], [0.3, -1.0, 2.0, 0.7, 0.7]],
    [[1.0, 0.0], [0.0, 0.5], [3.0, 4.0]],
    [[1.0, 0.0, 2.0], [0.1, 0.1, 0.1], [0.0, 0.0, 0.0]],  # 0.1 is no binary fraction
    [[64.0, 65.0, 64.0], [2e-3, 1e-3, -1e-3]],  # far from 0; a std that 1e-4 changes much
    [[1.0, 0.0], [1.0, 1.0 + 2**-17]],  # not equal, but np.isclose says so
)


def _advantages(rewards: np.ndarray, **choices: object) -> np.ndarray:
    group = np.repeat(np.arange(len(rewards)), rewards.shape[1])
    return advantages(rewards.ravel(), group, **choices).reshape(rewards.shape)


@task(
    "advantages of groups",
    axes=("group", "completion"),
    whole_batch="mean and std are those of the whole batch; each group has its own.",
    leave_one_out="the baseline is the mean of the others (RLOO); GRPO's is that of the group.",
    variance="this divides by the variance: take its square root, the std.",
    columns="mean and std run over the groups, axis 0; the completions of a group are axis 1.",
    no_mean="the group's mean is not subtracted.",
    nearly="rewards that differ by little still differ: compare them with ==, not with isclose.",
    inside="1e-4 stands under the root: it is added to the std, not to the variance.",
)
def _check_group_advantages(answer: Answer) -> None:
    for rows in GROUPS:
        r, given = np.array(rows), f"rewards {rows}"
        right = _advantages(r)
        mistakes = dict(population_std=_advantages(r, ddof=0), no_eps=_advantages(r, eps=0.0))
        mistakes |= dict(whole_batch=(r - r.mean()) / (r.std(ddof=1) + 1e-4))
        centred, var = _advantages(r, scale="none"), r.var(1, ddof=1, keepdims=True)
        mistakes |= dict(only_centred=centred, variance=centred / (var + 1e-4))
        mistakes |= dict(inside=centred / np.sqrt(var + 1e-4), no_mean=r / (np.sqrt(var) + 1e-4))
        if len(r) > 1:
            mistakes |= dict(columns=(r - r.mean(0)) / (r.std(0, ddof=1) + 1e-4))
        mistakes |= dict(leave_one_out=_advantages(r, baseline="leave_one_out"))
        alike = np.isclose(r, r[:, :1]).all(1, keepdims=True)
        mistakes |= dict(nearly=np.where(alike, 0.0, right))
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
    largest="this takes the larger of the two branches: min(…) is the cautious one.",
    log_ratio="logp - old is the log of the ratio: exp is missing.",
    inverse="the ratio is upside down: ρ = π / π_old = exp(logp - old).",
    straight="the clipped branch has no gradient: it is constant, so 0 stands there.",
)
def _check_clipped_loss(answer: Answer) -> None:
    rng = np.random.default_rng(6)
    ratio, advantage = np.array([0.5, 0.7, 0.9, 1.1, 1.3, 1.6] * 2), np.repeat([1.5, -0.5], 6)
    for moved, a, low, high in (
        (np.log(ratio), advantage, 0.2, 0.2),
        (np.log(ratio), advantage[::-1], 0.2, 0.4),
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
        bounds = dict(swapped_bounds=(high, low), one_bound=(low, low), one_bound_=(high, high))
        mistakes |= {name: _clipped(logp, old, a, *pair) for name, pair in bounds.items()}
        mistakes |= dict(no_min=-(inside * a).mean(), inverse=_clipped(old, logp, a, low, high))
        mistakes |= dict(largest=-np.maximum(rho * a, inside * a).mean())
        x = np.log(rho)
        mistakes |= dict(log_ratio=-np.minimum(x * a, np.clip(x, 1 - low, 1 + high) * a).mean())
        answer.compare(given, got[0], loss, "loss", **mistakes)
        mistakes = dict(no_ratio=dlogp / rho, unclipped=-rho * a / n, total=dlogp * n)
        mistakes |= {name: slope(_clipped, logp, old, a, *it) for name, it in bounds.items()}
        mistakes |= dict(no_sign=-rho * a * (inside == rho) / n, negative=-dlogp)
        mistakes |= dict(strict=-rho * a * (rho * a < inside * a) / n)
        mistakes |= dict(straight=-np.minimum(rho * a, inside * a) / n)
        labels = [f"token {t} (ratio {text(rho[t])}, advantage {text(a[t])})" for t in range(n)]
        answer.compare(given, got[1], dlogp, "dlogp", labels, **mistakes)


@task(
    "three KL estimates",
    axes=("token",),
    reversed="x has the wrong sign: it is log π_ref - log π.",
    sign="k1 is -x: x is right here (k3 is), but the minus is missing.",
    no_half="the half is missing: x²/2.",
    no_one="- 1 is missing: k3 is 0 where both policies agree.",
    no_x="the term - x is missing: without it the estimate is not always positive.",
    absolute="k1 may be negative: only its mean is a KL, so take no absolute value.",
    weighted="tokens are drawn from π, so the mean weights by π already: leave the factor out.",
    ratio="this is π_ref/π alone: k3 is the ratio, less its log, less 1.",
    is_k1="this is k1: the three rows are k1, k2, k3.",
    is_k2="this is k2: the three rows are k1, k2, k3.",
    is_k3="this is k3: the three rows are k1, k2, k3.",
)
def _check_kl_estimates(answer: Answer) -> None:
    rng, names = np.random.default_rng(7), ("k1", "k2", "k3")
    for logp, ref in (
        (np.array([-1.0, -0.5, -2.0, -0.2]), np.array([-0.5, -0.5, -3.0, -1.0])),
        (-rng.exponential(1, 5), -rng.exponential(1, 5)),
    ):
        given, x = f"logp {text(logp)} and ref {text(ref)}", ref - logp
        got = answer.ask(given, logp, ref)
        right = np.stack([kl_estimate(name, logp, ref)[0] for name in names])
        rows = got if is_list(got) and shape_of(got) in (None, right.shape) else ()
        for name, row, k in zip(names, rows, right, strict=False):
            other = kl_estimate(name, ref, logp)[0]
            mistakes = {"sign": x} if len(rows) and close(rows[2], right[2]) else {}
            mistakes |= dict(reversed=other, no_half=x * x, no_one=k + 1, no_x=k + x)
            mistakes |= dict(absolute=np.abs(x), weighted=k * np.exp(logp), ratio=np.exp(x))
            mistakes |= {f"is_{n}": o for n, o in zip(names, right, strict=True) if n != name}
            answer.compare(given, row, k, name, **mistakes)
        answer.compare(given, got, right)


@task(
    "dead groups",
    axes=("group",),
    std="0.1 + 0.1 + 0.1 is not exactly 0.3, so std is not exactly 0: compare the rewards.",
    all_wrong="a group whose completions are all right is as dead as one where all are wrong.",
    nearly="rewards that differ by little still differ: their advantages are small, not 0.",
    inverse="this is True for the groups that are alive; True stands for a dead one.",
    zero_mean="a mean of 0 says nothing: a group is dead if all its rewards are equal.",
    some="these have two equal rewards: *all* of a dead group are.",
    ends="these groups have an equal first and last reward: compare all of them.",
    all_right="a group whose completions all fail is as dead as one where all are right.",
)
def _check_dead_groups(answer: Answer) -> None:
    rows = [[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.1, 0.1, 0.1]]
    rows += [[-0.3, -0.3, -0.3], [0.0, 1e-9, 0.0], [1.0, -1.0, 0.0], [1.0, 1.0, 0.0]]
    r = np.array(rows)
    right, zero = (_advantages(r) == 0).all(1), (r == 0).all(1)
    mistakes = dict(std=r.std(1, ddof=1) == 0, all_wrong=zero, nearly=np.ptp(r, axis=1) < 1e-6)
    mistakes |= dict(inverse=~right, zero_mean=r.mean(1) == 0, ends=r[:, 0] == r[:, -1])
    mistakes |= dict(all_right=(r == 1).all(1), some=(np.diff(r, axis=1) == 0).any(1))
    mistakes |= dict(some_=[len(set(row)) < len(row) for row in rows])
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
    longest="this divides by the longest completion's length; the constant is the limit.",
    no_empty="empty completions count among the k, too.",
    times="the length multiplies here: a mean over tokens divides by it.",
)
def _check_token_weights(answer: Answer) -> None:
    for lengths, limit in (([1, 3, 4], 6), ([2, 0, 5, 1], 8), ([4, 4], 4)):
        k, n = len(lengths), np.array(lengths)
        weights = {name: _token_weight(lengths, name, limit) for name in AGGREGATIONS}
        for name in AGGREGATIONS:
            given = f"lengths {lengths}, aggregation {name!r}, limit {limit}"
            got, right = answer.ask(given, n, name, limit), weights[name]
            if shape_of(got) == n.shape:  # any number will do for a completion without tokens
                got = np.where((n > 0) | ~np.isfinite(as_numbers(got)), as_numbers(got), 0.0)
            mistakes = {other: weights[other] for other in AGGREGATIONS if other != name}
            mistakes |= dict(no_mean=right * k, no_limit=right * limit, completions=right * n)
            mistakes |= dict(longest=right * limit / n.max(), no_empty=right * k / (n > 0).sum())
            mistakes |= dict(times=n / k)
            answer.compare(given, got, right, **mistakes)
