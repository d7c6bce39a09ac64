"""Checks of chapter 6: the package's tree, its weights and its advantages."""

from functools import partial
from operator import index

import numpy as np

from minigrpo.course.example_groups import Group, groups, late
from minigrpo.course.grading import RTOL, Answer, is_list, shape_of, task, text, wrong
from minigrpo.engine.lambda_weights import lambda_weights
from minigrpo.objectives import step_advantages
from minigrpo.system.user_code import as_numbers


@task(
    "push on a token",
    own="this is a_i alone: every member of the token's process set pushes on it.",
    mean="this is the mean of a_j over the members, Â: the push of λ-GRPO. GRPO takes the sum.",
    rewards="these are sums of rewards: take advantages first, centred and scaled.",
    last="this is a_j of the last member alone: every member adds its own (+=).",
)
def _check_push(answer: Answer) -> None:
    for group in groups(5):
        r, a, tree = group.rewards, group.advantages(), group.tree
        right = group.sums(a)
        mistakes = dict(own=group.own(a), mean=group.along(tree.sum_over_members(a) / tree.count))
        mistakes |= dict(population_std=group.sums(group.advantages(ddof=0)))
        mistakes |= dict(only_centred=group.sums(group.advantages(scale="none")))
        mistakes |= dict(no_eps=group.sums(group.advantages(eps=0.0)), rewards=group.sums(r))
        mistakes |= dict(divided=group.along(tree.sum_over_members(a) / tree.count**2))
        mistakes |= dict(late=late(right, 0.0), copies=group.without_copies(a, mean=False))
        mistakes |= dict(copies_=group.without_copies(a, mean=False, last=True))
        last = np.array([a[tree.members(node)[-1]] for node in range(tree.n_nodes)])
        mistakes |= dict(last=group.along(last))
        answer.check(group.told(), (group.completions, r), right, **mistakes)


@task(
    "weights of λ-GRPO",
    inverse="these are the counts |λ|; the weight is one over them.",
    same_token="this is one over who has the same token there; they must have begun alike.",
    share="these are |λ|/k; the weight is 1/|λ|.",
    root="this is 1/√|λ|; λ-GRPO divides by |λ| itself.",
    others="the completion itself is a member, too: |λ| counts it.",
)
def _check_lambda_weights(answer: Answer) -> None:
    for group in groups(6):
        right, k = lambda_weights(group.completions), len(group.completions)
        mistakes = dict(inverse=[1 / row for row in right], late=late(right, 1 / k))
        mistakes |= dict(same_token=[1 / row for row in group.same_token()])
        mistakes |= dict(share=[1 / row / k for row in right], root=[row**0.5 for row in right])
        counts = group.without_copies(np.ones(k), mean=False)
        mistakes |= dict(copies=[1 / row for row in counts])
        mistakes |= dict(others=[1 / np.maximum(1 / row - 1, 1) for row in right])
        answer.check(group.told(rewards=False), (group.completions,), right, **mistakes)


@task("a group that shows the flaw")
def _check_flawed_group(answer: Answer) -> None:
    completions, rewards = answer.parts("", ("completions", "rewards"))
    try:
        if not 3 <= len(completions) <= 16:  # before a tree of thousands, of any length, is made
            raise wrong("", f"expected 3 to 16 completions, got {len(completions)}.")
        if (longest := max(map(len, completions))) > 100:
            raise wrong("", f"expected at most 100 tokens, got a completion of {longest}.")
        completions = [[index(token) for token in completion] for completion in completions]
        r = as_numbers(rewards).reshape(len(completions))
        group = Group(completions, r)
        tree = group.tree
    except (TypeError, ValueError) as error:
        problem = f"expected lists of ints and a reward for each, got something else: {error}."
        raise wrong("", problem) from None
    given = group.told()
    if not np.isfinite(r).all():
        raise wrong(given, f"expected finite rewards, got {text(r)}.")
    best, n_best = int(r.argmax()), (r == r.max()).sum()
    if n_best > 1:
        problem = f"expected a single best completion, got {n_best} with the reward {r[best]:g}."
        raise wrong(given, problem)
    sums = tree.sum_over_members(group.advantages())
    by_grpo, by_lambda = group.along(sums)[best], group.along(sums / tree.count)[best]
    pushes = f"the pushes on completion {best} are {text(by_grpo)} under GRPO"
    if not by_grpo.sum() < 0:
        hint = "some tokens are pushed down, but its own end weighs more: shorten it."
        if (by_grpo >= 0).all():
            hint = "none of its tokens is pushed down: let several bad completions begin like it."
        raise wrong(given, f"{pushes}: expected a sum below 0, got {text(by_grpo.sum())}.", hint)
    if not by_lambda.sum() > 0:
        problem = f"{pushes}, and {text(by_lambda)} under λ-GRPO: "
        problem += f"expected a sum above 0, got {text(by_lambda.sum())}."
        raise wrong(given, problem, "its beginning weighs more than its end: share fewer tokens.")


@task("a placebo")
def _check_placebo_weights(answer: Answer) -> None:
    for group in (*groups(7), Group([[1, 2, 3], [1, 2, 4], [1, 2, 3], [5]], np.zeros(4))):
        given, real = group.told(rewards=False), lambda_weights(group.completions)
        pool, shapes = np.sort(np.concatenate(real)), [row.shape for row in real]
        drawn = [_placebo(answer, given, group, seed, shapes) for seed in range(40)]
        for values in map(np.sort, drawn):
            if not np.allclose(values, pool, rtol=RTOL, atol=0):
                problem = f"expected each of the weights {text(pool)} once, got {text(values)}."
                hint = "shuffle them; to draw with replacement, or to average, makes other weights."
                raise wrong(given, problem, hint)
        if not np.array_equal(_placebo(answer, given, group, 0, shapes), drawn[0]):
            problem = "expected the same placebo from the same seed, got another."
            raise wrong(given, problem, "shuffle with rng, not with np.random.")
        commonest = np.unique(pool.round(12), return_counts=True)[1].max()
        if commonest > 0.7 * len(pool):
            continue  # where nearly all weights are alike, a token may keep its own by chance
        spread = np.ptp(drawn, axis=0)
        if (spread == 0).any():
            tokens = [(i, t) for i, row in enumerate(real) for t in range(len(row))]
            first = int(spread.argmin())
            problem = "at completion {}, position {}: expected any weight, ".format(*tokens[first])
            problem += f"got {text(drawn[0][first])} for all of 40 seeds."
            hint = "the weights are shuffled within each completion only; shuffle over the group."
            if not spread.any():
                hint = "nothing is shuffled, or always in the same way: shuffle with rng."
            raise wrong(given, problem, hint)


def _placebo(answer: Answer, given: str, group: Group, seed: int, shapes: list) -> np.ndarray:
    """The placebo of one seed, all completions one after the other."""
    got = answer.ask(given, group.completions, np.random.default_rng(seed))
    found = [shape_of(row) for row in got] if is_list(got) else type(got).__name__
    if found != shapes:
        raise wrong(given, f"expected arrays of shapes {shapes}, got {found}.")
    return np.concatenate([np.asarray(row, dtype=float) for row in got])


PAPER = Group(
    [list(map(ord, word)) for word in ("ABCD", "ABEFHI", "JKLM", "JKLNQST", "JKLNQU", "VWYZ")],
    np.array([0.5, 0.5, 1.0, 0.0, 0.0, 0.5]),
)


@task(
    "the paper's example",
    own="this is r_i alone; R̂ is the mean over all members.",
    once="this is Â. GRPO has it once for each member: |λ|·Â.",
    twice="Â is a mean over the members already; do not divide again.",
    pushed="this is Σ a_i over the members, |λ|·Â: GRPO's push.",
)
def _check_pushed_down(answer: Answer) -> None:
    names = ("R", "A", "grpo", "lambda_grpo", "down")
    for group in (PAPER, *groups(8)):
        given, r, tree = group.told(), group.rewards, group.tree
        *rows, down = answer.parts(given, names, group.completions, r)
        hat = partial(step_advantages, tree, r)
        mean, population, exact, centred = hat(), hat(ddof=0), hat(eps=0.0), hat(scale="none")
        a = group.advantages()
        right = (tree.sum_over_members(r) / tree.count, mean, tree.count * mean, mean)
        hints = ("own", "population_std", "once", "twice")
        mistakes = [group.own(r), *map(group.along, (population, mean, mean / tree.count))]
        each = zip(names, rows, right, hints, mistakes, strict=False)
        for name, got, values, hint, mistake in each:
            more = {"no_eps": group.along(exact * (tree.count if name == "grpo" else 1))}
            more |= {"only_centred": group.along(centred), "own_advantage": group.own(a)}
            more |= {"pushed": group.sums(a), "total": group.sums(r)}
            answer.compare(given, got, group.along(values), name, **{hint: mistake}, **more)
        down = list(down) if isinstance(down, set) else down
        if not shape_of(down):
            raise wrong(given, f"expected down as a list of numbers, got {type(down).__name__}.")
        shared = group.along(np.where(tree.count > 1, mean, 1.0))
        # What is 0 but for rounding may be listed or not.
        must, may = ({i for i, row in enumerate(shared) if (row < x).any()} for x in (-RTOL, RTOL))
        listed = set(np.ravel(down).tolist())
        if not must <= listed <= may:
            hint = "list each completion, from 0, with a token of |λ| ≥ 2 and Â < 0."
            if listed > must:
                hint = "a token of its own alone does not count: |λ| must be 2 or more."
            elif listed == set(np.flatnonzero(r < r.mean()).tolist()):
                hint = "these are below the mean; it is whoever shares a token with Â < 0."
            raise wrong(given, f"expected down = {sorted(must)}, got {text(down)}.", hint)
