"""Expected gradients by enumeration: against other code, closed forms, and a table by hand."""

import json
from collections import defaultdict
from itertools import product
from math import comb, prod

import numpy as np
import pytest

from minigrpo import PrefixTree, lambda_weights
from minigrpo.experiments import committed, enumeration
from minigrpo.experiments.enumeration import (
    COLUMNS,
    SCHEMES,
    TREES,
    expected,
    figures,
    gradient,
    mark,
    reach,
)
from minigrpo.experiments.reproduce import Request, reproduce
from minigrpo.objectives import advantages

(BINARY, TERNARY, _), (UNEVEN,) = TREES.values()
enumerate_groups = enumeration.enumerate_groups
A2, A3, A4, B, TRUNK, C1, C3 = SCHEMES
NAMES = ("scheme", "lengths", "rewards", "baseline", "scale", "weight")


def an_instance(completions, seed=0):
    world, rng = PrefixTree.from_sequences(completions), np.random.default_rng(seed)
    return world, rng.standard_normal(world.n_nodes), rng.standard_normal(len(completions))


def close(a, b):
    return np.linalg.norm(a - b) < 1e-12 * np.linalg.norm(b)


def slopes(of, at, step):
    """Central differences of a number or of a field."""
    return np.array([(of(at + h) - of(at - h)) / (2 * step) for h in step * np.eye(len(at))])


class Policy:
    """The tabular policy once more, in dicts and loops over prefixes, with its own gradient."""

    def __init__(self, completions, world, logits):
        rows = zip(completions, world.paths, strict=True)
        self.node = {y[: t + 1]: n for y, row in rows for t, n in enumerate(row[: len(y)])}
        self.weight = {prefix: np.exp(logits[n]) for prefix, n in self.node.items()}
        self.siblings = defaultdict(list)
        for prefix in self.node:
            self.siblings[prefix[:-1]].append(prefix)

    def pi(self, prefix):
        return self.weight[prefix] / sum(self.weight[s] for s in self.siblings[prefix[:-1]])

    def chance(self, y):
        return prod(self.pi(y[: t + 1]) for t in range(len(y)))

    def add(self, g, prefix, c):
        """g += c·∇log π(prefix)"""
        for s in self.siblings[prefix[:-1]]:
            g[self.node[s]] += c * ((s == prefix) - self.pi(s))


def ordered_groups(completions, instance, k, baseline, scale, alpha):
    """E[g] of k independent completions, ordered group by group, with weights |λ|^-alpha."""
    world, logits, rewards = instance
    policy, g = Policy(completions, world, logits), np.zeros(world.n_nodes)
    chance = [policy.chance(y) for y in completions]
    for group in product(range(len(completions)), repeat=k):
        a = advantages(rewards[list(group)], np.zeros(k, dtype=int), baseline, scale)
        members = [completions[i] for i in group]
        p = prod(chance[i] for i in group)
        for y, a_y, weights in zip(members, a, lambda_weights(members), strict=True):
            for t, w in enumerate(weights):
                policy.add(g, y[: t + 1], p * a_y * w**alpha / k)
    return g


@pytest.mark.parametrize("completions", [TERNARY, UNEVEN])
def test_the_exact_gradient_is_that_of_the_expected_reward(completions):
    world, logits, rewards = an_instance(completions)
    p, value = reach(world, logits, rewards)

    def mean(at):
        policy = Policy(completions, world, at)
        return sum(policy.chance(y) * r for y, r in zip(completions, rewards, strict=True))

    by_differences = slopes(mean, logits, 1e-5)
    assert np.abs(gradient(world, logits, p * value) - by_differences).max() < 1e-9
    assert np.linalg.norm(by_differences) > 0.1
    assert np.isclose((p * value)[world.parent < 0].sum(), mean(logits), rtol=1e-12)


@pytest.mark.parametrize(("completions", "k"), [(UNEVEN, 3), (BINARY, 4)])
def test_independent_completions_group_by_group(completions, k):
    instance, groups = an_instance(completions), enumerate_groups(completions, (k, 1, 1), False)
    settings = [("none", "none"), ("group_mean", "none"), ("leave_one_out", "group_std")]
    for how, (weight, alpha) in product(settings, [("members", 0), ("distinct", 1)]):
        g = gradient(*instance[:2], expected(groups, *instance[1:], *how, weight))
        assert close(g, ordered_groups(completions, instance, k, *how, alpha))


def test_branches_draw_by_draw():
    """Two first tokens, two second tokens below each, in all orders."""
    world, logits, rewards = an_instance(TERNARY)
    policy, reward = Policy(TERNARY, world, logits), dict(zip(TERNARY, rewards, strict=True))
    by = defaultdict(lambda: np.zeros(world.n_nodes))
    for first, second in product(product(range(3), repeat=2), product(range(3), repeat=4)):
        members = [(first[i // 2], second[i]) for i in range(4)]
        p = prod(policy.pi((x,)) for x in first) * prod(policy.pi(y) for y in members)
        r = np.array([reward[y] for y in members])
        of_first = r.reshape(2, 2).mean(1)  # R̂ of the first tokens, one number per draw
        for i, (y, w) in enumerate(zip(members, lambda_weights(members), strict=True)):
            a = p * (r[i] - r.mean()) / 4
            for name, weights in {"members": (1, 1), "draws": (1 / 2, 1), "distinct": w}.items():
                policy.add(by[name], y[:1], a * weights[0])
                policy.add(by[name], y, a * weights[1])
            policy.add(by["shares"], y, p * (r[i] - of_first[i // 2]) / 4)
        for x, value in zip(first, of_first, strict=True):
            policy.add(by["shares"], (x,), p * (value - r.mean()) / 2)
    groups = enumerate_groups(TERNARY, (2, 2, 2), False)
    for weight, g in by.items():
        baseline = "parent" if weight == "shares" else "group_mean"
        c = expected(groups, logits, rewards, baseline, "none", weight)
        assert close(gradient(world, logits, c), g), weight


@pytest.mark.parametrize("lengths", TREES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_shares_of_a_reward_of_one_are_the_chances_of_the_nodes(scheme, lengths):
    for completions in TREES[lengths]:
        world, logits, _ = an_instance(completions)
        groups, ones = enumerate_groups(completions, *SCHEMES[scheme]), np.ones(len(completions))
        c = expected(groups, logits, ones, "none", "none", "shares")
        assert np.allclose(c, reach(world, logits, ones)[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("completions", [TERNARY, UNEVEN])
@pytest.mark.parametrize("k", [2, 3, 4])
def test_closed_forms_of_lambda_grpo(completions, k):
    """(1-(1-p)ᵏ)·V/k, and with the group's mean (1-(1-p)ᵏ⁻¹)·(V-J)/k, node by node."""
    world, logits, rewards = an_instance(completions)
    groups = enumerate_groups(completions, (k, 1, 1), False)
    p, value = reach(world, logits, rewards)
    mean = (p * value)[world.parent < 0].sum()
    c = expected(groups, logits, rewards, "none", "none", "distinct")
    assert close(c, (1 - (1 - p) ** k) * value / k)
    assert not np.allclose(c, p * value, rtol=0.01)  # the plain sum
    c = expected(groups, logits, rewards, "group_mean", "none", "distinct")
    assert close(c, (1 - (1 - p) ** (k - 1)) * (value - mean) / k)


def test_powers_of_lambda():
    """|λ|^-α puts E[M^(1-α); M ≥ 1]/k in the place of p, with M binomial (k, p)."""
    world, logits, rewards = an_instance(UNEVEN)
    p, value = reach(world, logits, rewards)
    for alpha in (0, 0.5, 1.5):
        moment = sum(comb(3, m) * p**m * (1 - p) ** (3 - m) * m ** (1 - alpha) for m in (1, 2, 3))
        g = ordered_groups(UNEVEN, (world, logits, rewards), 3, "none", "none", alpha)
        assert close(gradient(world, logits, moment * value / 3), g)


def test_lambda_grpo_follows_no_objective():
    """A gradient has a symmetric Jacobian; that of E[g] is not, but for trees of one token.

    There, without a baseline, λ-GRPO follows Σ_a r_a·Σ_{m≤k} (1-(1-π_a)^m)/m / k.
    """
    one_token = [(0,), (1,), (2,)]

    def field_of(completions, baseline, weight):
        world, logits, rewards = an_instance(completions, seed=13)
        groups, how = enumerate_groups(completions, (4, 1, 1), False), (baseline, "none", weight)
        return logits, lambda at: gradient(world, at, expected(groups, at, rewards, *how))

    def asymmetry(*which):
        logits, field = field_of(*which)
        a = slopes(field, logits, 1e-4)
        return np.linalg.norm(a - a.T) / np.linalg.norm(a + a.T)

    for baseline in ("none", "group_mean"):
        assert asymmetry(TERNARY, baseline, "members") < 1e-8
        assert asymmetry(TERNARY, baseline, "distinct") > 0.01
    assert asymmetry(one_token, "none", "distinct") < 1e-8
    assert asymmetry(one_token, "group_mean", "distinct") > 1e-3

    def objective(at):
        rewards, pi = an_instance(one_token, seed=13)[2], np.exp(at) / np.exp(at).sum()
        return sum(rewards @ (1 - (1 - pi) ** m) / m for m in (1, 2, 3, 4)) / 4

    logits, field = field_of(one_token, "none", "distinct")
    assert np.abs(field(logits) - slopes(objective, logits, 1e-5)).max() < 1e-9


def test_lambda_grpo_levels_below_good_prefixes_and_sharpens_below_bad_ones():
    """Where all continuations of a prefix are equally good, ∇J and GRPO leave its logits alone."""
    world, logits, _ = an_instance(TERNARY, seed=1)
    groups, rewards = enumerate_groups(TERNARY, (4, 1, 1), False), np.repeat([1.0, 0.0, -1.0], 3)
    p, value = reach(world, logits, rewards)
    mean = (p * value)[world.parent < 0].sum()
    grpo, ours = (
        gradient(world, logits, expected(groups, logits, rewards, "group_mean", "none", weight))
        for weight in ("members", "distinct")
    )
    above = world.parent[world.parent >= 0]
    for prefix in np.unique(above):
        below = np.flatnonzero(world.parent == prefix)
        rare, common = below[np.argmin(logits[below])], below[np.argmax(logits[below])]
        assert np.abs(grpo[below]).max() < 1e-15
        up, down = (rare, common) if value[prefix] > mean else (common, rare)
        assert ours[up] > 1e-6
        assert ours[down] < -1e-6
    assert np.abs(ours[world.parent >= 0]).max() > 1e-3
    assert value.min() < mean < value.max()


# -- the table -------------------------------------------------------------------------------------

ON_1, ON_3 = (1, "no", 1, 1), (3 / 4, "no", 3 / 4, 3 / 4)
GROWS, LEFT = [1 / 4, 1 / 2, 1], [1 / 2, 3 / 4, 7 / 8]
REST = [0, 3 / 4, 3 / 4]
BY_HAND = {  # without std: members, distinct, draws, shares.  A number: c; a list: c of each depth
    (A2, "equal", "group_mean"): (1 / 2,) * 4,  # λ-GRPO is GRPO: 1-(1-p)¹ = p
    (A4, "equal", "none"): ON_1,
    (A4, "unequal", "none"): ON_1,
    (A4, "equal", "group_mean"): ON_3,
    (A4, "unequal", "group_mean"): ON_3,
    (A4, "equal", "leave_one_out"): ON_1,
    (A4, "equal", "parent"): ("prefix", "no", [3 / 4, 0, 0], [3 / 4, 0, 0]),
    (B, "equal", "none"): (1, "no", GROWS, 1),
    (B, "unequal", "none"): ("no", "no", "no", 1),
    (B, "equal", "group_mean"): (LEFT, "no", [1 / 8, 3 / 8, 7 / 8], LEFT),
    (B, "equal", "leave_one_out"): ([4 / 7, 6 / 7, 1], "no", [1 / 7, 3 / 7, 1], [4 / 7, 6 / 7, 1]),
    (B, "equal", "parent"): ("prefix", "no", [1 / 8, 1 / 4, 1 / 2], 1 / 2),
    (B, "unequal", "parent"): ("no", "no", "no", 1 / 2),
    (TRUNK, "equal", "none"): (1, "no", [1 / 4, 1, 1], 1),
    (TRUNK, "unequal", "none"): ("no", "no", [1 / 4, 1, 1], 1),
    (TRUNK, "equal", "group_mean"): (REST, "no", REST, REST),
    (TRUNK, "equal", "leave_one_out"): ([0, 1, 1], "no", [0, 1, 1], [0, 1, 1]),
    (TRUNK, "unequal", "group_mean"): ("refused",) * 4,
    (C1, "equal", "none"): ([3, 2, 1], 1, 1, 1),
    (C1, "unequal", "none"): ("no", 1, 1, 1),
    (C1, "equal", "group_mean"): ("zero",) * 4,
    (C3, "equal", "none"): ([3, 2, 1], "no", 1, 1),
    (C3, "unequal", "none"): ("no", "no", 1, 1),
    (C3, "equal", "group_mean"): ([2, 4 / 3, 2 / 3], "no", 2 / 3, 2 / 3),
    (C3, "unequal", "group_mean"): ("no",) * 4,
}


@pytest.fixture(scope="module")
def rows():
    jobs = product(SCHEMES, TREES)
    return [row for scheme, lengths in jobs for row in enumeration.measure(scheme, lengths, 2)]


def pick(rows, *key):
    (row,) = [row for row in rows if tuple(row[name] for name in NAMES) == key]
    return row


@pytest.mark.parametrize(("case", "predicted"), BY_HAND.items(), ids=map(" ".join, BY_HAND))
def test_the_table_is_what_the_derivation_says(rows, case, predicted):
    scheme, lengths, baseline = case
    for weight, what in zip(COLUMNS, predicted, strict=True):
        row = pick(rows, scheme, lengths, "any", baseline, "none", weight)
        if isinstance(what, str):
            assert row["verdict"] == what, weight
        else:
            assert row["verdict"] == ("depth" if isinstance(what, list) else "exact"), weight
            assert np.allclose(row["factors"], np.reshape(what, (-1, 1)), atol=2e-6), weight


def test_division_by_the_std_is_exact_for_two_rewards_and_independent_draws_alone(rows):
    seen = 0
    for row in rows:
        if row["scale"] == "none" or row["scheme"] == C1 or row["verdict"] == "refused":
            continue
        one_per_draw = row["weight"] in ("draws", "shares")
        by_draws = row["scheme"] in (A2, A3, A4) and row["weight"] != "distinct"
        by_draws |= row["scheme"] == C3 and row["lengths"] == "equal" and one_per_draw
        by_draws |= row["scheme"] == A2 and row["baseline"] != "none"  # where λ-GRPO is GRPO
        exact = row["rewards"] == "0 or 1" and by_draws
        assert (row["verdict"] == "exact") == exact, row
        seen += exact
    assert seen > 50
    c = pick(rows, A4, "equal", "0 or 1", "group_mean", "group_std", "members")["factors"]
    assert np.ptp(c) > 0.01  # it depends on the chance of success


def test_what_must_not_agree_is_far_off(rows):
    far = [(A4, "distinct", "none"), (A4, "distinct", "group_mean"), (C3, "members", "none")]
    far += [(C3, "distinct", "none"), (B, "draws", "none"), (B, "members", "group_mean")]
    for scheme, weight, baseline in [*far, (TRUNK, "members", "group_mean")]:
        row = pick(rows, scheme, "equal", "any", baseline, "none", weight)
        assert row["left"][0] > 0.1, (scheme, weight, baseline)
    left = np.concatenate([row["left"] for row in rows if row["left"]])
    assert not ((left > 1e-13) & (left < 5e-3)).any()  # nothing lies between exact and not


def test_the_published_table_is_what_the_code_gives(rows):
    """Verdicts are the same with more seeds; cosines of few policies are near those of many."""
    published = committed("results/enumeration.json")
    for row, known in zip(rows, published["estimators"], strict=True):
        assert [row[n] for n in (*NAMES, "verdict")] == [known[n] for n in (*NAMES, "verdict")]
    for row, known in zip(enumeration.directions(20), published["directions"], strict=True):
        assert [row[n] for n in ("spread", "k", "baseline")] == list(known.values())[:3]
        assert abs(row["cosine"] - known["cosine"]) < 0.1
        if known["baseline"] == "group_mean":
            assert known["against"] == 0
            assert known["lowest_cosine"] > 0.3


def test_directions_are_those_of_the_enumeration():
    completions, rng = [*product(range(2), repeat=4)], np.random.default_rng([12, 0])
    world = PrefixTree.from_sequences(completions)
    groups = enumerate_groups(completions, (4, 1, 1), False)
    logits, rewards = rng.standard_normal(world.n_nodes), rng.standard_normal(16)
    exact = gradient(world, logits, reach(world, logits, rewards).prod(0))
    for row, baseline in zip(enumeration.directions(1)[:2], ("none", "group_mean"), strict=True):
        c = expected(groups, logits, rewards, baseline, "none", "distinct")
        g = gradient(world, logits, c)
        cosine = g @ exact / np.linalg.norm(g) / np.linalg.norm(exact)
        assert row["cosine"] == row["lowest_cosine"] == round(float(cosine), 4)


def test_run_writes_data_figure_and_words(rows, tmp_path, monkeypatch):
    n = len(rows) // (len(SCHEMES) * len(TREES))  # estimators

    def in_turn(request, function, jobs):
        assert function is enumeration.measure
        assert [tuple(job.values())[:2] for job in jobs] == list(product(SCHEMES, TREES))
        return [rows[i : i + n] for i in range(0, len(rows), n)]

    monkeypatch.setattr(Request, "jobs", in_turn)
    monkeypatch.setattr(enumeration, "directions", lambda seeds: [{"k": 4, "cosine": 0.5}])
    words = reproduce("enumeration", tmp_path, quick=True)
    written = json.loads((tmp_path / "enumeration.json").read_text(encoding="utf-8"))
    assert written == {"estimators": rows, "directions": [{"k": 4, "cosine": 0.5}]}
    assert (tmp_path / "enumeration.png").stat().st_size > 20_000
    line = next(line for line in words.splitlines() if A4 in line)
    off = mark(pick(rows, A4, "equal", "any", "none", "none", "distinct"))
    assert line.split()[-7:] == ["=", "1", off, "=", "1", "=", "1"]
    assert len(figures(written)["enumeration"].axes) == 5


def test_marks():
    assert mark({"verdict": "exact", "factors": [[0.75, 0.75]]}) == "= 0.75"
    assert mark({"verdict": "exact", "factors": [[1.1, 1.9]]}) == "= c"
    assert mark({"verdict": "no", "cosine": 0.9999}) == "0.99"
    others = [mark({"verdict": v, "cosine": 0.5}) for v in ("depth", "prefix", "zero", "refused")]
    assert others == ["t 0.50", "p 0.50", "0", "–"]
