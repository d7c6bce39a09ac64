"""Checks of chapter 4, GRPO from scratch: against the package's advantages, objectives and KL estimates."""

from __future__ import annotations

import numpy as np

from minigrpo.course.grading import (
    Answer,
    Task,
    ask,
    compare,
    is_list,
    parts,
    shape_of,
    slope,
    text,
    wrong,
)
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


def _group_advantages(f: Answer) -> None:
    for rows in GROUPS:
        r, given = np.array(rows), f"rewards {rows}"
        right = _advantages(r)
        got = ask(f, r, given=given)
        hints = {
            "this is the population's standard deviation (divided by k); the sample's divides by k - 1: ddof=1.": _advantages(
                r, ddof=0
            ),
            "1e-4 is missing, or in another place: it is added to the std.": _advantages(
                r, eps=0.0
            ),
            "mean and std are those of the whole batch; each group has its own.": (r - r.mean())
            / (r.std(ddof=1) + 1e-4),
            "mean and std run over the wrong axis: a group is a row.": (r - r.mean(0))
            / ((r.std(0, ddof=1) if len(r) > 1 else 1) + 1e-4),
            "the rewards are only centred: divide by std + 1e-4.": _advantages(r, scale="none"),
            "this is divided by the variance, not by the standard deviation.": _advantages(
                r, scale="none"
            )
            / (r.var(1, ddof=1, keepdims=True) + 1e-4),
            "the baseline is the mean of the others (RLOO); GRPO takes the mean of the whole group.": _advantages(
                r, baseline="leave_one_out"
            ),
        }
        compare(got, right, given, axes=("group", "completion"), hints=hints)
        for g in np.flatnonzero((right == 0).all(1)):
            if np.any(np.asarray(got)[g]):
                raise wrong(
                    given,
                    f"at group {g}: expected exactly 0, got {text(np.asarray(got)[g])}.",
                    "all its rewards are equal, but their mean differs from them by a rounding: test for equality, and set 0.",
                )


def _clipped_loss(f: Answer) -> None:
    rng = np.random.default_rng(6)
    ratio = np.array([0.5, 0.9, 1.1, 1.6] * 2)
    advantage = np.repeat([1.5, -0.5], 4)
    cases = [(np.log(ratio), advantage, 0.2, 0.2), (np.log(ratio), advantage[::-1], 0.2, 0.8)]
    cases += [
        (np.zeros(3), np.array([1.0, -1.0, 0.0]), 0.2, 0.2),
        (rng.uniform(-1, 1, 7), rng.standard_normal(7), 0.1, 0.3),
    ]
    for moved, a, low, high in cases:
        old = -rng.exponential(1.0, len(moved)) - 0.1
        rho = np.exp(moved)

        def loss(
            logp: np.ndarray,
            old: np.ndarray = old,
            a: np.ndarray = a,
            low: float = low,
            high: float = high,
        ) -> float:
            terms = zip(np.exp(logp - old).tolist(), a.tolist(), strict=True)
            return -sum(min(p * b, min(max(p, 1 - low), 1 + high) * b) for p, b in terms) / len(a)

        given = f"ratios {text(rho)}, advantages {text(a)}, low {low}, high {high}"
        answer = parts(
            ask(f, old + moved, old, a, low, high, given=given), ("loss", "dlogp"), given
        )
        inside = np.clip(rho, 1 - low, 1 + high)
        right = loss(old + moved)
        compare(
            answer[0],
            right,
            given,
            name="loss",
            hints={
                "this is the objective, to go up; the loss is its negative.": -right,
                "this is the sum over tokens: take the mean.": right * len(a),
                "nothing was clipped.": -(rho * a).mean(),
                "the ratio was clipped, whatever the sign of a; min(…) keeps the unclipped term where that is smaller.": -(
                    inside * a
                ).mean(),
                "max was taken in place of min.": -np.maximum(rho * a, inside * a).mean(),
                "low and high have changed places.": loss(old + moved, low=high, high=low),
            },
        )
        dlogp = slope(loss, old + moved)
        compare(
            answer[1],
            dlogp,
            given,
            name="dlogp",
            labels=[
                f"token {t} (ratio {text(p)}, advantage {text(b)})"
                for t, (p, b) in enumerate(zip(rho, a, strict=True))
            ],
            rtol=1e-6,
            hints={
                "the sign: the loss falls where log π of a good token rises.": -dlogp,
                "the ratio is missing: d ρ / d logp = ρ.": dlogp / rho,
                "nothing was clipped: where the clipped branch is the smaller one, the gradient is 0.": -rho
                * a
                / len(a),
                "outside of the range the gradient is 0 only where the clipped branch is the smaller one: look at the sign of a.": (
                    -rho * a * (inside == rho) / len(a)
                ),
                "this is the gradient of the sum over tokens: take the mean.": dlogp * len(a),
            },
        )


def _kl_estimates(f: Answer) -> None:
    rng = np.random.default_rng(7)
    for logp, ref in (
        ([-1.0, -0.5, -2.0], [-0.5, -0.5, -3.0]),
        (-rng.exponential(1, 5), -rng.exponential(1, 5)),
    ):
        given = f"logp {text(logp)} and ref {text(ref)}"
        one, two = np.array(logp), np.array(ref)
        x = two - one
        got = ask(f, one, two, given=given)
        right = np.stack([kl_estimate(kind, one, two)[0] for kind in ("k1", "k2", "k3")])
        if shape_of(got) == right.shape[::-1] != right.shape:
            raise wrong(
                given,
                f"expected shape {right.shape}, got shape {shape_of(got)}.",
                "a row for each estimate.",
            )
        reversed_x = np.stack([kl_estimate(kind, two, one)[0] for kind in ("k1", "k2", "k3")])
        if is_list(got) and len(got) == 3:
            for name, row, expected, other in zip(
                ("k1", "k2", "k3"), got, right, reversed_x, strict=True
            ):
                hints = {
                    "x has the wrong sign: it is log π_ref - log π.": other,
                    "the half is missing: x²/2.": x * x,
                    "- 1 is missing: k3 is 0 where both policies agree.": expected + 1,
                    "the term - x is missing: without it the estimate is not always positive.": expected
                    + x,
                }
                compare(row, expected, given, name=name, axes=("token",), hints=hints)
        compare(got, right, given)


def _dead_groups(f: Answer) -> None:
    rows = [
        [1.0, 1.0, 1.0],
        [1.0, 0.0, 1.0],
        [0.0, 0.0, 0.0],
        [0.1, 0.1, 0.1],
        [-0.3, -0.3, -0.3],
        [0.0, 1e-9, 0.0],
        [1.0, -1.0, 0.0],
    ]
    r = np.array(rows)
    right = (_advantages(r) == 0).all(1)
    hints = {
        "0.1 + 0.1 + 0.1 is not exactly 0.3, so std is not exactly 0: compare the rewards with each other.": r.std(
            1, ddof=1
        )
        == 0,
        "the mean of equal rewards may differ from them by a rounding: compare the rewards with each other.": (
            r == r.mean(1, keepdims=True)
        ).all(1),
        "a group whose completions are all right is as dead as one whose completions are all wrong.": (
            r == 0
        ).all(1),
        "rewards need not be 0 or 1: a group of equal rewards is dead, whatever they are.": (
            r == 0
        ).all(1)
        | (r == 1).all(1),
        "you return the groups that are alive.": ~right,
        "rewards that differ by little still differ: their advantages are small, not 0.": np.ptp(
            r, axis=1
        )
        < 1e-6,
        "a mean reward of 0 does not make a group dead.": r.mean(1) == 0,
    }
    given = f"rewards {rows}"
    compare(ask(f, r, given=given), right, given, axes=("group",), hints=hints)


def _token_weights(f: Answer) -> None:
    names = ("sequence_mean", "group_token_mean", "constant")
    for lengths, limit in (([1, 3, 4], 6), ([2, 0, 5, 1], 8), ([4, 4], 4)):
        completions = [np.arange(n) + 100 * i for i, n in enumerate(lengths)]  # they share nothing
        tree = PrefixTree.from_groups([[0]], [completions])
        nothing, k = np.zeros(tree.n_nodes), len(lengths)
        rollouts = Rollouts(
            [np.array([0])],
            [completions],
            tree,
            nothing,
            nothing,
            np.zeros(k, dtype=bool),
            1.0,
            limit,
        )
        some = np.array(lengths) > 0
        of = {}
        for name in names:
            weight = Objective(aggregation=name).coefficients(rollouts, np.arange(float(k))).weight
            of[name] = weight[tree.paths[some, 0]]
        for name in names:
            given = f"lengths {lengths}, aggregation {name!r}, limit {limit}"
            got = ask(f, np.array(lengths), name, limit, given=given)
            if shape_of(got) != (k,):
                raise wrong(
                    given,
                    f"expected shape ({k},), got shape {shape_of(got)}.",
                    "one number for each completion.",
                )
            if not np.isfinite(np.asarray(got, dtype=float)).all():
                raise wrong(
                    given,
                    f"expected finite numbers, got {text(got)}.",
                    "an empty completion must not divide by 0.",
                )
            right = np.array(got, dtype=float)  # the weight of an empty completion is not looked at
            right[some] = of[name]
            hints = {}
            for hint, value in (
                *(
                    (f"these are the weights of {other!r}.", of[other])
                    for other in names
                    if other != name
                ),
                ("the mean over the k completions is missing.", of[name] * k),
                ("the limit is missing.", of[name] * limit),
                (
                    "these are weights of whole completions; asked for is one token of each.",
                    of[name] * np.array(lengths)[some],
                ),
            ):
                hints[hint] = right.copy()
                hints[hint][some] = value
            compare(got, right, given, axes=("completion",), hints=hints)


TASKS = (
    Task("advantages of groups", "group_advantages", _group_advantages),
    Task("clipped loss and its gradient", "clipped_loss", _clipped_loss),
    Task("three KL estimates", "kl_estimates", _kl_estimates),
    Task("dead groups", "dead_groups", _dead_groups),
    Task("length bias", "token_weights", _token_weights),
)
