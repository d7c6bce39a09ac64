"""Checks of chapter 6, the flaw and the fix: against the package's tree, its weights and its advantages."""

from __future__ import annotations

import numpy as np

from minigrpo.course.ch05 import along
from minigrpo.course.grading import (
    Answer,
    Task,
    ask,
    compare_rows,
    is_list,
    parts,
    shape_of,
    text,
    wrong,
)
from minigrpo.course.groups import groups, told
from minigrpo.engine.lambda_weights import lambda_weights
from minigrpo.objectives import advantages
from minigrpo.tree import PrefixTree


def _push(f: Answer) -> None:
    for completions, rewards in groups(5):
        given, r, tree = (
            told(completions, rewards),
            np.array(rewards),
            PrefixTree.from_sequences(completions),
        )
        one = np.zeros(len(r), dtype=int)
        a = advantages(r, one)
        right = along(tree, tree.sum_over_members(a))
        hints = {
            "this is a_i alone: every member of the token's process set pushes on it.": [
                np.full(len(c), x) for c, x in zip(completions, a, strict=True)
            ],
            "this is the mean of a_j over the members, Â: the push of λ-GRPO. GRPO takes the sum.": along(
                tree, tree.sum_over_members(a) / tree.count
            ),
            "this is the population's standard deviation; take the sample's, ddof=1.": along(
                tree, tree.sum_over_members(advantages(r, one, ddof=0))
            ),
            "these are sums of rewards; sum the advantages.": along(tree, tree.sum_over_members(r)),
            "the advantages are only centred: divide by std + 1e-4.": along(
                tree, tree.sum_over_members(advantages(r, one, scale="none"))
            ),
            "these are sums over those who share what comes *before* position t.": [
                np.append(0.0, row[:-1])[: len(row)] for row in right
            ],
        }
        compare_rows(ask(f, completions, r, given=given), right, given, hints=hints)


def _lambda_weights(f: Answer) -> None:
    for completions, _ in groups(6):
        given, right = told(completions), lambda_weights(completions)
        same_token = [
            [1 / sum(c[t : t + 1] == own[t : t + 1] for c in completions) for t in range(len(own))]
            for own in completions
        ]
        hints = {
            "these are the counts |λ|; the weight is one over them.": [1 / row for row in right],
            "these numbers belong one position later: position t itself must be shared.": [
                np.append(1 / len(completions), row[:-1])[: len(row)] for row in right
            ],
            "this is one over who has the same token at position t; they must have begun alike.": same_token,
            "the normaliser stays the token count of the group: the weights are not rescaled to a mean of 1.": [
                row / np.concatenate(right).mean() for row in right
            ],
            "this is 1/k, one over the size of the whole group.": [
                np.full(len(row), 1 / len(completions)) for row in right
            ],
        }
        compare_rows(ask(f, completions, given=given), right, given, hints=hints)


def _flawed_group(f: Answer) -> None:
    completions, rewards = parts(ask(f, given=""), ("completions", "rewards"), "")
    try:
        completions = [[int(token) for token in completion] for completion in completions]
        r = np.asarray(rewards, dtype=np.float64).reshape(len(completions))
        tree = PrefixTree.from_sequences(completions)
    except (TypeError, ValueError) as error:
        raise wrong(
            "", f"expected lists of ints and a reward for each, got something else: {error}."
        ) from None
    given = told(completions, r.tolist())
    if not 3 <= len(r) <= 16:
        raise wrong(given, f"expected 3 to 16 completions, got {len(r)}.")
    if not np.isfinite(r).all():
        raise wrong(given, f"expected finite rewards, got {text(r)}.")
    best = int(r.argmax())
    if (r == r[best]).sum() > 1:
        raise wrong(
            given,
            f"expected a single best completion, got {(r == r[best]).sum()} with the reward {r[best]:g}.",
        )
    sums = tree.sum_over_members(advantages(r, np.zeros(len(r), dtype=int)))
    by_grpo, by_lambda = along(tree, sums)[best], along(tree, sums / tree.count)[best]
    pushes = f"the pushes on completion {best} are {text(by_grpo)} under GRPO"
    if not by_grpo.sum() < 0:
        if (by_grpo >= 0).all():
            hint = "none of its tokens is pushed down: let several bad completions begin as the best one does."
        else:
            hint = "some tokens are pushed down, but its own end weighs more: let more bad ones begin like it, or shorten it."
        raise wrong(given, f"{pushes}: expected a sum below 0, got {text(by_grpo.sum())}.", hint)
    if not by_lambda.sum() > 0:
        raise wrong(
            given,
            f"{pushes}, and {text(by_lambda)} under λ-GRPO: expected a sum above 0, got {text(by_lambda.sum())}.",
            "its beginning still weighs more than its end: shorten what is shared, or make the others there less bad.",
        )


def _placebo_weights(f: Answer) -> None:
    for completions, _ in (*groups(7), ([[1, 2, 3], [1, 2, 4], [1, 2, 3], [5]], None)):
        given, real = told(completions), lambda_weights(completions)
        pool = np.sort(np.concatenate(real))
        drawn = []
        for seed in range(40):
            got = ask(f, completions, np.random.default_rng(seed), given=given)
            if not is_list(got) or [shape_of(row) for row in got] != [row.shape for row in real]:
                shapes = [shape_of(row) for row in got] if is_list(got) else type(got).__name__
                raise wrong(
                    given, f"expected arrays of shapes {[row.shape for row in real]}, got {shapes}."
                )
            drawn.append(np.concatenate([np.asarray(row, dtype=float) for row in got]))
            if not np.allclose(np.sort(drawn[-1]), pool, rtol=1e-12, atol=0):
                problem = f"expected each of the weights {text(pool)} once, got {text(np.sort(drawn[-1]))}."
                raise wrong(
                    given,
                    problem,
                    "shuffle them; to draw with replacement, or to average, makes other weights.",
                )
        again = np.concatenate(ask(f, completions, np.random.default_rng(0), given=given))
        if not np.array_equal(again, drawn[0]):
            raise wrong(
                given,
                "expected the same placebo from the same seed, got another.",
                "shuffle with rng, not with np.random.",
            )
        spread, size = (
            np.ptp(drawn, axis=0) > 0,
            np.repeat([len(row) for row in real], [len(row) for row in real]),
        )
        commonest = np.unique(pool.round(12), return_counts=True)[1].max()
        if (
            commonest > 0.7 * len(pool) or spread.all()
        ):  # where nearly all weights are alike, a place may keep its own by chance
            continue
        place = int(np.argmin(spread))
        row, t = next((i, place - before) for i, before in _offsets(real) if place >= before)
        problem = f"at completion {row}, position {t}: expected any weight, got {text(drawn[0][place])} for all of 40 seeds."
        if not spread.any():
            raise wrong(
                given, problem, "nothing is shuffled, or always in the same way: shuffle with rng."
            )
        own = size[place] < len(pool)
        raise wrong(
            given,
            problem,
            "the weights are shuffled within each completion only; shuffle over the whole group."
            if own
            else "",
        )


def _pushed_down(f: Answer) -> None:
    texts = ("ABCD", "ABEFHI", "JKLM", "JKLNQST", "JKLNQU", "VWYZ")
    paper = [[ord(letter) for letter in text] for text in texts], [0.5, 0.5, 1.0, 0.0, 0.0, 0.5]
    for completions, rewards in (paper, *groups(8)):
        given, r = told(completions, rewards), np.array(rewards)
        tree, one = PrefixTree.from_sequences(completions), np.zeros(len(r), dtype=int)
        names = ("R", "A", "grpo", "lambda_grpo", "down")
        *rows, down = parts(ask(f, completions, r, given=given), names, given)
        mean, population = (
            tree.sum_over_members(advantages(r, one, ddof=ddof)) / tree.count for ddof in (1, 0)
        )
        right = (tree.sum_over_members(r) / tree.count, mean, tree.count * mean, mean)
        alone = [np.full(len(c), x) for c, x in zip(completions, r, strict=True)]
        hints = (
            ("this is r_i alone; R̂ is the mean over all members.", alone),
            (
                "this is with the population's std; take the sample's, ddof=1.",
                along(tree, population),
            ),
            ("this is Â. GRPO has it once for each member: |λ|·Â.", along(tree, mean)),
            (
                "Â is a mean over the members already; do not divide again.",
                along(tree, mean / tree.count),
            ),
        )
        for name, got, expected, (hint, mistaken) in zip(names, rows, right, hints, strict=False):
            compare_rows(got, along(tree, expected), given, name=name, hints={hint: mistaken})
        low = along(tree, (tree.count > 1) & (mean < -1e-12))
        unsure = along(
            tree, (tree.count > 1) & (abs(mean) <= 1e-12)
        )  # 0 but for rounding: both will do
        must, may = ({i for i, row in enumerate(found) if row.any()} for found in (low, unsure))
        down = list(down) if isinstance(down, set) else down
        if not shape_of(down):
            raise wrong(given, f"expected down as a list of numbers, got {type(down).__name__}.")
        listed = set(np.ravel(down).tolist())
        if not must <= listed <= must | may:
            hint = ""
            if listed > must:
                hint = "a token of its own alone does not count: |λ| must be 2 or more."
            elif listed == set(np.flatnonzero(r < r.mean()).tolist()):
                hint = (
                    "these are below the mean themselves; it is whoever shares a token with Â < 0."
                )
            raise wrong(given, f"expected down = {sorted(must)}, got {text(down)}.", hint)


def _offsets(rows: list[np.ndarray]) -> list[tuple[int, int]]:
    """(completion, index of its first token among all tokens), the last one first."""
    starts = np.cumsum([0, *(len(row) for row in rows)])[:-1]
    return [(i, int(start)) for i, start in reversed(list(enumerate(starts))) if len(rows[i])]


TASKS = (
    Task("push on a token", "push", _push),
    Task("weights of λ-GRPO", "lambda_weights", _lambda_weights),
    Task("a group that shows the flaw", "flawed_group", _flawed_group),
    Task("a placebo", "placebo_weights", _placebo_weights),
    Task("the paper's example", "pushed_down", _pushed_down),
)
