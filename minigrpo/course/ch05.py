"""Checks of chapter 5: the package's tree on edge cases and random groups."""

from operator import index

import numpy as np

from minigrpo.course.example_groups import Rows, groups, late
from minigrpo.course.grading import Answer, is_list, task, text, wrong
from minigrpo.objectives import step_advantages
from minigrpo.rewards import step_rewards
from minigrpo.tree import PrefixTree

BY_HAND = ("abcd", "abe", "abcd", "a", "fb")


@task("process sets by hand")
def _check_process_sets_by_hand(answer: Answer) -> None:
    got = answer.ask("")
    tree = PrefixTree.from_sequences([[ord(letter) for letter in word] for word in BY_HAND])
    right = {step.members: (step.start, step.end) for step in tree.steps()}
    if not isinstance(got, list | tuple | set):
        problem = f"expected a list of (members, start, end), got {type(got).__name__}."
        raise wrong("", problem)
    seen: set[tuple[int, ...]] = set()
    for item in got:
        try:
            members, start, end = tuple(sorted(map(index, item[0]))), *map(index, item[1:3])
        except (TypeError, ValueError, IndexError):
            problem = f"expected a triple (members, start, end), got {item!r}."
            raise wrong("", problem, "such as ([0, 1], 2, 3).") from None
        if members in seen:
            raise wrong("", f"expected every process set once, got {list(members)} twice.")
        seen.add(members)
        if members not in right:
            raise wrong("", f"expected a process set, got {list(members)}.", _why_not(members))
        if (start, end) != right[members]:
            problem = f"for {list(members)}: expected other positions, got {start} to {end}."
            raise wrong("", problem, _which_positions(start, end, *right[members]))
    for members in sorted(right.keys() - seen, key=len):
        begins, hint = BY_HAND[members[0]][: right[members][1]], ""
        what = f"the one of those that begin with {begins!r}"
        if not begins:
            what = "the whole group, which shares nothing"
            hint = "it is the root of the tree, though its step is empty."
        elif len(members) > 1 and len({BY_HAND[m] for m in members}) == 1:
            hint = "equal completions share a leaf."
        problem = f"expected {len(right)} process sets, got {len(seen)}: {what}, is missing."
        raise wrong("", problem, hint)


def _why_not(members: tuple[int, ...]) -> str:
    """Why some completions are no process set."""
    if not members or not set(members) <= set(range(len(BY_HAND))):
        return f"completions are numbered 0 to {len(BY_HAND) - 1}."
    shared = BY_HAND[members[0]]
    while not all(BY_HAND[m].startswith(shared) for m in members):
        shared = shared[:-1]
    if not shared:
        return "these share no beginning; only the whole group may."
    if members == (3,):
        return "completion 3 ends inside of the tree: 'a' is a step of all that begin with it."
    others = [i for i, word in enumerate(BY_HAND) if word.startswith(shared) and i not in members]
    return f"completion {others[0]} begins with {shared!r}, too: a process set holds *all* of them."


def _which_positions(start: int, end: int, first: int, stop: int) -> str:
    """What is wrong with the positions of a step that is first to stop."""
    if (start, end + 1) == (first, stop) and stop > first:
        return "end is not included: it is the first position that they do not share."
    if start < first:
        return "more completions share the first of these positions: they are the parent's step."
    if start > first:
        return "the step begins earlier: which position do exactly these members share first?"
    return f"they share {'fewer' if end > stop else 'more'} positions than that."


@task(
    "process set of a token",
    order="the members are right, but not in ascending order.",
    same_position="these have the same token at position t, but not all of them began alike.",
    zipped="a completion that has ended before position t is none: zip stops at the shorter one.",
    before="these share what comes before position t; they must share position t as well.",
    others="completion i shares its own beginning, too: it is a member.",
    copies="copies of completion i are left out; equal completions count each.",
    joined="tokens are joined to a text: 1, 10 and 11, 0 would be alike; compare lists.",
    after="these share position t + 1 as well; up to and including position t is enough.",
)
def _check_process_set(answer: Answer) -> None:
    for group in groups(0):
        completions, tree = group.completions, group.tree
        for i, t in ((i, t) for i, own in enumerate(completions) for t in range(len(own))):
            given, own = f"{group.told(rewards=False)}, i = {i}, t = {t}", completions[i]
            got = answer.ask(given, completions, i, t)
            right = tree.members(tree.paths[i, t]).tolist()
            ints = is_list(got) and all(isinstance(j, int | np.integer) for j in got)
            if not ints or any(isinstance(j, bool) for j in got):
                problem = f"expected the list {right}, got {type(got).__name__} {got!r}."
                raise wrong(given, problem, "a list of ints.")
            members = [int(j) for j in got]
            if members != right:
                begin = "".join(map(str, own[: t + 1]))
                alike: dict[str, list] = {
                    "joined": ["".join(map(str, c)).startswith(begin) for c in completions],
                    "same_position": [c[t : t + 1] == own[t : t + 1] for c in completions],
                    "zipped": [c[: t + 1] == own[: len(c)][: t + 1] for c in completions],
                    "before": [c[:t] == own[:t] for c in completions],
                    "after": [c[: t + 2] == own[: t + 2] for c in completions],
                    "others": [j in right and j != i for j in range(len(completions))],
                    "copies": [
                        j in right and (j == i or c != own) for j, c in enumerate(completions)
                    ],
                }
                alike = {name: np.flatnonzero(rows).tolist() for name, rows in alike.items()}
                alike["order"] = members if sorted(members) == right else []
                hints = (answer.hints[name] for name, rows in alike.items() if rows == members)
                raise wrong(given, f"expected {right}, got {members}.", next(hints, ""))


@task(
    "|λ| of every token",
    inverse="these are 1/|λ|, the weights of λ-GRPO.",
    share="these are |λ|/k: a count is asked for.",
    joined="tokens are joined to a text: 1, 10 and 11, 0 would be alike; compare tuples.",
)
def _check_counts(answer: Answer) -> None:
    for group in groups(1):
        right = group.along(group.tree.count)
        mistakes = dict(late=late(right, len(group.completions)), same_token=group.same_token())
        mistakes |= dict(inverse=[1 / row for row in right])
        k = len(group.completions)
        mistakes |= dict(copies=group.without_copies(np.ones(k), mean=False))
        mistakes |= dict(share=[row / k for row in right], joined=group.joined())
        answer.check(group.told(rewards=False), (group.completions,), right, **mistakes)


@task(
    "step rewards",
    own="every token has its completion's own reward: this is GRPO as it is written.",
    copies="of equal completions only one counts here; each is a member with its own reward.",
    best="this is the largest reward of the members: take the mean.",
    by_k="the sum is divided by k; divide it by the number of members.",
)
def _check_step_rewards(answer: Answer) -> None:
    for group in groups(2):
        r = group.rewards
        right = group.along(step_rewards(group.tree, r))
        mistakes = dict(total=group.sums(r), own=group.own(r), late=late(right, r.mean()))
        mistakes |= dict(copies=group.without_copies(r, mean=True))
        mistakes |= dict(copies_=group.without_copies(r, mean=True, last=True))
        members = [group.tree.members(node) for node in range(group.tree.n_nodes)]
        mistakes |= dict(best=group.along(np.array([r[m].max() for m in members])))
        mistakes |= dict(by_k=[row / len(r) for row in group.sums(r)])
        answer.check(group.told(), (group.completions, r), right, **mistakes)


@task(
    "hidden process advantages",
    std_of_steps="mean and std are those of the k outcome rewards, not of the step rewards.",
    total="this is Σ a_i over the members, which is |λ|·Â.",
)
def _check_step_advantages(answer: Answer) -> None:
    for group in groups(3):
        r, tree, a = group.rewards, group.tree, group.advantages()
        r_hat = group.along(step_rewards(tree, r))
        every = np.concatenate(r_hat)
        std = every.std(ddof=1) + 1e-4
        mistakes = dict(population_std=group.along(step_advantages(tree, r, ddof=0)))
        mistakes |= dict(std_of_steps=[(x - every.mean()) / std for x in r_hat])
        mistakes |= dict(own_advantage=group.own(a), total=group.sums(a))
        mistakes |= dict(only_centred=group.along(step_advantages(tree, r, scale="none")))
        mistakes |= dict(no_eps=group.along(step_advantages(tree, r, eps=0.0)))
        hat = step_advantages(tree, r)
        right = group.along(hat)
        mistakes |= dict(divided=group.along(hat / tree.count), late=late(right, 0.0))
        mistakes |= dict(copies=group.without_copies(a, mean=True))
        answer.check(group.told(), (group.completions, r), right, **mistakes)


@task(
    "the two sides of Theorem 1",
    hat="Â(i,t) stands here in place of a_i.",
    own="a_i stands here in place of Â(i,t).",
    by_nodes="this divides by the number of nodes; Σ|y| counts the tokens of all completions.",
    by_length="divide by the tokens of the group, not of each completion: this is the token-mean.",
    no_ratio="the ratio is missing.",
)
def _check_theorem_terms(answer: Answer) -> None:
    rng = np.random.default_rng(4)
    for group in groups(4):
        r, tree, a = group.rewards, group.tree, group.advantages()
        ratio = group.along(np.round(np.exp(0.4 * rng.standard_normal(tree.n_nodes)), 2))
        given = f"{group.told()}, ratios {text(ratio)}"
        got = answer.parts(given, ("grpo", "prm"), group.completions, r, ratio)
        ones, n = [np.ones(len(c)) for c in group.completions], int(tree.lengths.sum())
        by_length = np.maximum(tree.lengths, 1) * len(r)
        node_hat, size = step_advantages(tree, r), tree.paths.size
        own, hat, sums = group.own(a), group.along(node_hat), group.sums(a)
        divided = group.along(node_hat / tree.count)
        for part, values, name, others in (("grpo", own, "hat", hat), ("prm", hat, "own", own)):
            mistakes = dict(by_length=_terms(ratio, values, by_length))
            mistakes |= dict(no_ratio=_terms(ones, values, n), padded=_terms(ratio, values, size))
            mistakes |= dict(by_nodes=_terms(ratio, values, tree.n_nodes))
            for other, choice in (("population_std", {"ddof": 0}), ("no_eps", {"eps": 0.0})):
                changed = group.along(step_advantages(tree, r, **choice))
                changed = group.own(group.advantages(**choice)) if part == "grpo" else changed
                mistakes[other] = _terms(ratio, changed, n)
            mistakes |= dict(divided=_terms(ratio, divided, n))
            mistakes |= {"total": _terms(ratio, sums, n), name: _terms(ratio, others, n)}
            answer.compare(given, got[part == "prm"], _terms(ratio, values, n), part, **mistakes)


def _terms(ratio: Rows, values: Rows, normaliser: int | np.ndarray) -> Rows:
    """ratio · value / normaliser of every token; the normaliser may differ between completions."""
    each = np.broadcast_to(normaliser, len(values))
    return [p * v / n for p, v, n in zip(ratio, values, each, strict=True)]
