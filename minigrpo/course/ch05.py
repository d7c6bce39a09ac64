"""Checks of chapter 5, a group is a tree: against the package's tree on edge cases and random groups."""

from __future__ import annotations

import numpy as np

from minigrpo.course.grading import Answer, Task, ask, compare_rows, is_list, parts, text, wrong
from minigrpo.course.groups import groups, told
from minigrpo.objectives import advantages, step_advantages
from minigrpo.rewards import step_rewards
from minigrpo.tree import PrefixTree

BY_HAND = ("abcd", "abe", "abcd", "a", "fb")


def along(tree: PrefixTree, values: np.ndarray) -> list[np.ndarray]:
    """A quantity on nodes, read along every completion.   (N,) -> a list of arrays"""
    return [values[path[path >= 0]] for path in tree.paths]


def _process_sets_by_hand(f: Answer) -> None:
    answer = ask(f, given="")
    tree = PrefixTree.from_sequences([[ord(letter) for letter in word] for word in BY_HAND])
    right = {step.members: (step.start, step.end) for step in tree.steps()}
    if not isinstance(answer, list | tuple | set):
        raise wrong("", f"expected a list of (members, start, end), got {type(answer).__name__}.")
    seen: set[tuple[int, ...]] = set()
    for item in answer:
        try:
            members, start, end = tuple(sorted(int(m) for m in item[0])), int(item[1]), int(item[2])
        except (TypeError, ValueError, IndexError):
            raise wrong(
                "",
                f"expected a triple (members, start, end), got {item!r}.",
                "such as ([0, 1], 2, 3).",
            ) from None
        if members in seen:
            raise wrong("", f"expected every process set once, got {list(members)} twice.")
        seen.add(members)
        if members not in right:
            raise wrong("", f"expected a process set, got {list(members)}.", _why_not(members))
        if (start, end) != right[members]:
            raise wrong(
                "",
                f"the step of {list(members)}: expected other positions, got {start} to {end}.",
                _which(members, start, end, right),
            )
    for missing in sorted(right.keys() - seen, key=len):
        begins = BY_HAND[missing[0]][: right[missing][1]]
        what = (
            f"the one of those that begin with {begins!r}"
            if begins
            else "the whole group, which shares nothing"
        )
        equal = len(missing) > 1 and len({BY_HAND[m] for m in missing}) == 1
        hint = (
            "equal completions share a leaf."
            if equal
            else ""
            if begins
            else "it is the root of the tree, though its step is empty."
        )
        raise wrong(
            "", f"expected {len(right)} process sets, got {len(seen)}: {what}, is missing.", hint
        )


def _why_not(members: tuple[int, ...]) -> str:
    """Why some completions are no process set."""
    if not members or not set(members) <= set(range(len(BY_HAND))):
        return f"completions are numbered 0 to {len(BY_HAND) - 1}."
    words = [BY_HAND[m] for m in members]
    shared = words[0]
    while not all(word.startswith(shared) for word in words):
        shared = shared[:-1]
    others = [i for i, word in enumerate(BY_HAND) if word.startswith(shared) and i not in members]
    if not shared:
        return "these share no beginning; only the whole group may."
    if members == (3,):
        return "completion 3 ends inside of the tree: 'a' is a step of all who begin with it, and 3 has no more."
    return f"completion {others[0]} begins with {shared!r}, too: a process set holds *all* that share a beginning."


def _which(members: tuple[int, ...], start: int, end: int, right: dict) -> str:
    """What is wrong with the positions of a step."""
    s, e = right[members]
    if (start, end + 1) == (s, e) and e > s:
        return "end is not included: it is the first position that they do not share."
    if start < s:
        return "the first of these positions are shared by more completions: they are the parent's step."
    if start > s:
        return "the step begins earlier: which position do exactly these members share first?"
    return (
        "they share fewer positions than that."
        if end > e
        else "they share more positions than that."
    )


def _process_set(f: Answer) -> None:
    for completions, _ in groups(0):
        tree = PrefixTree.from_sequences(completions)
        for i, own in enumerate(completions):
            for t in range(len(own)):
                given = f"{told(completions)}, i = {i}, t = {t}"
                got = ask(f, completions, i, t, given=given)
                right = tree.members(tree.paths[i, t]).tolist()
                if not is_list(got) or not all(isinstance(j, int | np.integer) for j in got):
                    raise wrong(
                        given,
                        f"expected the list {right}, got {type(got).__name__} {got!r}.",
                        "a list of ints.",
                    )
                members = [int(j) for j in got]
                if members != right:
                    raise wrong(
                        given,
                        f"expected {right}, got {members}.",
                        _set_hint(completions, i, t, members, right),
                    )


def _set_hint(
    completions: list[list[int]], i: int, t: int, got: list[int], right: list[int]
) -> str:
    own, everyone = completions[i], range(len(completions))
    if not set(got) <= set(everyone):
        return f"completions are numbered 0 to {len(completions) - 1}."
    if sorted(got) == right:
        return "the members are right, but not in ascending order."
    if got == [j for j in everyone if completions[j][t : t + 1] == own[t : t + 1]]:
        return f"these have token {own[t]} at position {t}, but not all of them began alike."
    shorter = [j for j in got if j not in right and len(completions[j]) <= t]
    if shorter:
        return f"completion {shorter[0]} has ended before position {t}: it does not share that token. (zip stops at the shorter one.)"
    if got == [j for j in everyone if completions[j][:t] == own[:t]]:
        return f"these share {own[:t] or 'nothing yet'}, what comes before position t; they must share position t as well."
    if [j for j in right if j != i] == got:
        return f"completion {i} shares its own beginning, too: it is a member."
    missing = [j for j in right if j not in got]
    if missing and completions[missing[0]] == own:
        return f"completion {missing[0]} is equal to completion {i}; copies count."
    if missing:
        return f"completion {missing[0]} begins with {own[: t + 1]}, too."
    extra = [j for j in got if j not in right]
    return f"completion {extra[0]} does not begin with {own[: t + 1]}." if extra else ""


def _counts(f: Answer) -> None:
    for completions, _ in groups(1):
        given = told(completions)
        tree = PrefixTree.from_sequences(completions)
        right = along(tree, tree.count)
        tokens = [
            [sum(c[t : t + 1] == own[t : t + 1] for c in completions) for t in range(len(own))]
            for own in completions
        ]
        hints = {
            "these numbers belong one position later: position t itself must be shared.": [
                np.array([len(completions), *row[:-1]])[: len(row)] for row in right
            ],
            "these are 1/|λ|, the weights of λ-GRPO.": [1 / row for row in right],
            "you count who else shares the beginning; completion i itself is a member, too.": [
                row - 1 for row in right
            ],
            "equal completions are counted once here; each is a member of its own.": _without_copies(
                completions
            ),
            "you count who has the same token at position t; they must have begun alike.": tokens,
        }
        compare_rows(ask(f, completions, given=given), right, given, hints=hints)


def _without_copies(
    completions: list[list[int]], rewards: list[float] | None = None
) -> list[np.ndarray]:
    """|λ|, or the mean reward, by someone who dropped copies first."""
    kept = {tuple(c): i for i, c in reversed(list(enumerate(completions)))}  # the first of each
    order = sorted(kept.values())
    tree = PrefixTree.from_sequences([completions[i] for i in order])
    values = tree.count if rewards is None else step_rewards(tree, [rewards[i] for i in order])
    rows = dict(zip((tuple(completions[i]) for i in order), along(tree, values), strict=True))
    return [rows[tuple(c)] for c in completions]


def _step_rewards(f: Answer) -> None:
    for completions, rewards in groups(2):
        given, tree = told(completions, rewards), PrefixTree.from_sequences(completions)
        right, size = along(tree, step_rewards(tree, rewards)), along(tree, tree.count)
        hints = {
            "this is the sum over the members: take the mean.": [
                a * b for a, b in zip(right, size, strict=True)
            ],
            "every token has its completion's own reward: this is GRPO as it is written, not the step rewards.": [
                np.full(len(c), r) for c, r in zip(completions, rewards, strict=True)
            ],
            "the sum is divided by k; divide it by |λ|.": [
                a * b / len(rewards) for a, b in zip(right, size, strict=True)
            ],
            "of equal completions only the first counts here; each is a member with a reward of its own.": _without_copies(
                completions, rewards
            ),
            "this is the mean of those who share what comes *before* position t.": [
                np.append(np.mean(rewards), row[:-1])[: len(row)] for row in right
            ],
        }
        compare_rows(ask(f, completions, np.array(rewards), given=given), right, given, hints=hints)


def _step_advantages(f: Answer) -> None:
    for completions, rewards in groups(3):
        given, r = told(completions, rewards), np.array(rewards)
        tree = PrefixTree.from_sequences(completions)
        r_hat = np.concatenate(along(tree, step_rewards(tree, r)))
        a = advantages(r, np.zeros(len(r), dtype=int))

        def rows(values: np.ndarray, tree: PrefixTree = tree) -> list[np.ndarray]:
            return np.split(values, np.cumsum(tree.lengths)[:-1])

        hints = {
            "this is the population's standard deviation; take the sample's, ddof=1.": along(
                tree, step_advantages(tree, r, ddof=0)
            ),
            "mean and std are those of the k outcome rewards, not of the step rewards over all tokens.": rows(
                (r_hat - r_hat.mean()) / (r_hat.std(ddof=1) + 1e-4)
            ),
            "the mean is that of the k outcome rewards, not that of the step rewards over all tokens.": rows(
                (r_hat - r_hat.mean()) / (r.std(ddof=1) + 1e-4)
            ),
            "this is a_i, the same for all tokens of a completion; the process set of the token is what counts.": [
                np.full(len(c), x) for c, x in zip(completions, a, strict=True)
            ],
            "this is Σ a_i over the members, which is |λ|·Â.": along(
                tree, tree.sum_over_members(a)
            ),
            "the step rewards are only centred: divide by std + 1e-4.": along(
                tree, step_advantages(tree, r, scale="none")
            ),
            "1e-4 is missing: it is added to the std.": along(
                tree, step_advantages(tree, r, eps=0.0)
            ),
        }
        compare_rows(
            ask(f, completions, r, given=given),
            along(tree, step_advantages(tree, r)),
            given,
            hints=hints,
        )


def _theorem_terms(f: Answer) -> None:
    rng = np.random.default_rng(4)
    for completions, rewards in groups(4):
        r, tree = np.array(rewards), PrefixTree.from_sequences(completions)
        ratio = along(tree, np.round(np.exp(0.4 * rng.standard_normal(tree.n_nodes)), 2))
        given = f"{told(completions, rewards)}, ratios {text(ratio)}"
        n, k = int(tree.lengths.sum()), len(r)
        a = advantages(r, np.zeros(k, dtype=int))
        answer = parts(ask(f, completions, r, ratio, given=given), ("grpo", "prm"), given)
        own = [np.full(len(c), x) for c, x in zip(completions, a, strict=True)]
        hat, sums = along(tree, step_advantages(tree, r)), along(tree, tree.sum_over_members(a))

        def scaled(
            values: list[np.ndarray], by: np.ndarray | float, ratio: list[np.ndarray] = ratio
        ) -> list[np.ndarray]:
            each = np.broadcast_to(by, len(values))
            return [p * v / d for p, v, d in zip(ratio, values, each, strict=True)]

        sides = (("grpo", own, hat, "a_i", "Â"), ("prm", hat, own, "Â(i,t)", "a_i"))
        for (name, values, others, symbol, other), got in zip(sides, answer, strict=True):
            right = scaled(values, n)
            hints = {
                f"{other} stands here in place of {symbol}.": scaled(others, n),
                "the normaliser is the number of tokens of the whole group, not that of each completion: Theorem 1 needs the"
                " token-mean.": scaled(values, np.maximum(tree.lengths, 1) * k),
                "the ratio is missing.": [v / n for v in values],
                "the normaliser is missing: divide by the number of tokens of the group.": scaled(
                    values, 1
                ),
                "the sum over members is taken already here, and once more when all tokens are added up.": scaled(
                    sums, n
                ),
            }
            compare_rows(got, right, given, name=name, hints=hints)


TASKS = (
    Task("process sets by hand", "process_sets_by_hand", _process_sets_by_hand),
    Task("process set of a token", "process_set", _process_set),
    Task("|λ| of every token", "counts", _counts),
    Task("step rewards", "step_rewards", _step_rewards),
    Task("hidden process advantages", "step_advantages", _step_advantages),
    Task("the two sides of Theorem 1", "theorem_terms", _theorem_terms),
)
