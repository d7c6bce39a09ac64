"""The prefix tree against the paper's definitions, written out by comparing all completions."""

import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import random_group
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minigrpo import PrefixTree, lambda_weights, step_rewards
from minigrpo.engine import plan
from minigrpo.engine.plan import split_tree
from minigrpo.engine.tree_statistics import intermediate_proportion, path_depth

ALPHABET = [0, 1, 256, 2**31 - 1, 2**31 - 2, 65_536]


def as_group(alphabet, texts, copies):
    """Completions over a small alphabet, with copies and beginnings of one another."""
    group = [[ALPHABET[byte % alphabet] for byte in text] for text in texts]
    return group + [group[source % len(group)][: source // 16] for source in copies]


# Byte strings are drawn much faster than lists of integers.
texts = st.lists(st.binary(max_size=6), min_size=1, max_size=5)
branching_group = st.builds(as_group, st.integers(1, 6), texts, st.binary(max_size=3))


# -- the definitions, as slow as they are printed --------------------------------------------------


def sharers(group, i, t):
    """λ(i,t): the completions that share y_i up to and including token t."""
    return frozenset(
        j
        for j, other in enumerate(group)
        if len(other) > t and list(other[: t + 1]) == list(group[i][: t + 1])
    )


def process_sets(group):
    """B(G): {λ: (parent or None, s, e)}, from all maximal sets that share a prefix, maybe empty."""
    root = frozenset(range(len(group)))
    sets = {root} | {sharers(group, i, t) for i, y in enumerate(group) for t in range(len(y))}
    tree = {}
    for members in sets:
        first = group[min(members)]
        shared = (
            t
            for t in range(len(first) + 1)
            if all(list(group[j][:t]) == list(first[:t]) for j in members)
        )
        larger = [other for other in sets if other > members]
        tree[members] = [min(larger, key=len) if larger else None, 0, max(shared)]
    for entry in tree.values():
        entry[1] = 0 if entry[0] is None else tree[entry[0]][2]
    return tree


def check_tree(tree, prompts, groups):
    """Everything that must hold of a tree over these groups."""
    flat = [(g, y) for g, group in enumerate(groups) for y in group]
    assert (tree.parent < np.arange(tree.n_nodes)).all()
    assert tree.lengths.tolist() == [len(y) for _, y in flat]
    assert tree.completion_group.tolist() == [g for g, _ in flat]
    keys = {}
    for i, (g, y) in enumerate(flat):
        prompt = tuple(prompts[g])
        node = -1 if not prompt else None
        for t, token in enumerate(y):
            here = tree.paths[i, t]
            assert (tree.token[here], tree.group[here], tree.depth[here], tree.scored[here]) == (
                token,
                g,
                len(prompt) + t,
                True,
            )
            assert node is None or tree.parent[here] == node
            node = here
            assert keys.setdefault(here, (g, prompt, tuple(y[: t + 1]))) == (
                g,
                prompt,
                tuple(y[: t + 1]),
            )
        assert (tree.paths[i, len(y) :] == -1).all()
        trunk = tree.parent[tree.paths[i, 0]] if len(y) else None
        for token in reversed(prompt) if len(y) else ():
            assert (tree.token[trunk], tree.group[trunk], tree.scored[trunk]) == (token, -1, False)
            trunk = tree.parent[trunk]
        assert trunk in (-1, None)
    prefixes = {tuple(p[: t + 1]) for p in map(tuple, prompts) for t in range(len(p))}
    distinct = {(g, tuple(y[: t + 1])) for g, y in flat for t in range(len(y))}
    assert tree.n_nodes == len(prefixes) + len(
        distinct
    )  # the trunk is shared, nothing is stored twice
    assert len(keys) == len(distinct)


# -- the tree --------------------------------------------------------------------------------------


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(branching_group)
@example([[]])
@example([[2**31 - 1]])
@example([[0], [0, 0], [0, 0, 0], [0, 0]])
def test_lambda_weights_equal_the_definition(group):
    expected = [[1 / len(sharers(group, i, t)) for t in range(len(y))] for i, y in enumerate(group)]
    assert [w.tolist() for w in lambda_weights(group)] == expected
    assert all(w.dtype == np.float64 for w in lambda_weights(group))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(branching_group)
@example([[], []])
def test_nodes_steps_and_statistics_equal_the_definitions(group):
    tree = PrefixTree.from_sequences(group)
    check_tree(tree, [()], [group])
    assert [tree.token[row[row >= 0]].tolist() for row in tree.rows] == sorted(
        group
    )  # hence numbered depth first
    assert min(tree.rows.min(initial=-1), tree.paths.min(initial=-1)) == -1  # past the end
    for i, y in enumerate(group):
        for t in range(len(y)):
            members = tree.members(tree.paths[i, t])
            assert set(members.tolist()) == sharers(group, i, t)
            assert tree.count[tree.paths[i, t]] == len(members)

    steps, sets = tree.steps(), process_sets(group)
    assert steps[0].members == tuple(range(len(group)))
    assert steps[0].parent is None
    assert len(steps) == len(sets)
    for index, step in enumerate(steps):
        parent, start, end = sets[frozenset(step.members)]
        assert list(step.members) == sorted(step.members)
        assert (step.start, step.end, len(step.nodes)) == (start, end, end - start)
        assert [tree.paths[step.members[0], t] for t in range(start, end)] == list(step.nodes)
        if index:
            assert step.parent < index
            assert frozenset(steps[step.parent].members) == parent
            assert step.start == steps[step.parent].end
    assert sorted(n for step in steps for n in step.nodes) == list(
        range(tree.n_nodes)
    )  # steps divide the tokens among them

    inner = {members for members in sets if any(other < members for other in sets)}
    everyone = frozenset(range(len(group)))
    on_inner = [
        sum(sharers(group, i, t) in inner for t in range(len(y))) for i, y in enumerate(group)
    ]
    assert path_depth(tree).tolist() == [
        sum(i in m for m in inner if m != everyone) for i in range(len(group))
    ]
    assert intermediate_proportion(tree).tolist() == [
        n / max(len(y), 1) for n, y in zip(on_inner, group, strict=True)
    ]
    firsts = [y[0] for y in group if y]
    assert tree.is_flat.tolist() == [len(set(firsts)) == len(firsts)]


def test_a_worked_example():
    """Six completions by hand: forks at several depths, two alike, one the beginning of others.

    a ─ b ─ c ─ d        members of a: 0 1 2 5;  b: 0 1 2;  c: 0 1;  g and h: 3 4
        │   └─ e
        └─ f
    g ─ h
    """
    a, b, c, d, e, f, g, h = range(1, 9)
    tree = PrefixTree.from_sequences([[a, b, c, d], [a, b, c, e], [a, b, f], [g, h], [g, h], [a]])
    assert tree.token.tolist() == [a, b, c, d, e, f, g, h]
    assert tree.parent.tolist() == [-1, 0, 1, 2, 2, 1, -1, 6]
    assert tree.depth.tolist() == [0, 1, 2, 3, 3, 2, 0, 1]
    assert tree.count.tolist() == [4, 3, 2, 1, 1, 1, 2, 2]
    assert tree.paths.tolist() == [
        [0, 1, 2, 3],
        [0, 1, 2, 4],
        [0, 1, 5, -1],
        [6, 7, -1, -1],
        [6, 7, -1, -1],
        [0, -1, -1, -1],
    ]
    assert [(s.members, s.start, s.end, s.parent) for s in tree.steps()] == [
        ((0, 1, 2, 3, 4, 5), 0, 0, None),
        ((0, 1, 2, 5), 0, 1, 0),
        ((0, 1, 2), 1, 2, 1),
        ((0, 1), 2, 3, 2),
        ((0,), 3, 4, 3),
        ((1,), 3, 4, 3),
        ((2,), 2, 3, 2),
        ((3, 4), 0, 2, 0),
    ]
    assert path_depth(tree).tolist() == [3, 3, 2, 0, 0, 1]
    np.testing.assert_allclose(intermediate_proportion(tree), [3 / 4, 3 / 4, 2 / 3, 0, 0, 1])
    assert tree.is_flat.tolist() == [False]
    np.testing.assert_allclose(
        step_rewards(tree, [1, 0, 0, 1, 0, 0.5]), [0.375, 1 / 3, 0.5, 1, 0, 0, 0.5, 0.5]
    )


@pytest.mark.parametrize(
    "bad", [[2**31], [0, -1], [1.0], ["a"], "ab", [[1, 2]], [2**64], [True], [None], 5]
)
def test_what_is_no_list_of_token_ids_is_named(bad):
    for build in (PrefixTree.from_sequences, lambda_weights):
        with pytest.raises(ValueError, match="completion 1 of group 0"):
            build([[1], bad])
    with pytest.raises(ValueError, match="prompt 1"):
        PrefixTree.from_groups([[1], bad], [[[1]], [[1]]])


@pytest.mark.parametrize("bad", [-1, 2**31, 2**40])
def test_a_token_outside_the_range_is_named_in_a_long_sequence_too(bad):
    group = [np.zeros(n, dtype=np.int64) for n in (3, 2000, 1000, 2000)]
    lambda_weights(group)
    group[2][-1] = bad
    with pytest.raises(
        ValueError,
        match=rf"completion 2 of group 0 holds a token id .*: {min(bad, 0)} … {max(bad, 0)}",
    ):
        lambda_weights(group)
    with pytest.raises(
        ValueError, match="completion 1 of group 2 holds a token id outside"
    ):  # counted within its group
        PrefixTree.from_groups([[0]] * 3, [[[1]] * 3, [[1]], [[1], [bad], [1]]])


def test_a_tree_needs_completions_and_a_prompt_for_each_group():
    with pytest.raises(ValueError, match="group 0 has no completions"):
        PrefixTree.from_sequences([])
    with pytest.raises(ValueError, match="group 1 has no completions"):
        PrefixTree.from_groups([[1], [2]], [[[1]], []])
    with pytest.raises(ValueError, match="the batch has no completions"):
        PrefixTree.from_groups([], [])
    with pytest.raises(ValueError, match="2 prompts but 1 groups"):
        PrefixTree.from_groups([[1], [2]], [[[1]]])


# -- batches ---------------------------------------------------------------------------------------


def test_groups_stay_apart_and_prompts_are_shared():
    """Groups 0 and 1 have one prompt; group 2's prompt and completion together spell theirs."""
    prompts = [[7, 8], [7, 8], [7], []]
    groups = [[[1, 2], [1]], [[1, 2], [1, 2]], [[8, 1, 2], [8]], [[7, 8, 1]]]
    tree = PrefixTree.from_groups(prompts, groups)
    check_tree(tree, prompts, groups)
    assert tree.n_nodes == 2 + 2 + 2 + 3 + 3
    assert tree.count[tree.paths[0, 0]] == 2
    assert tree.count[tree.group == -1].tolist() == [
        6,
        4,
    ]  # how many rows pass through the trunk's 7 and 8
    assert tree.group_sizes.tolist() == [2, 2, 2, 1]
    assert [s.members for s in tree.steps(1)] == [(2, 3)]
    assert [(s.members, s.start, s.end) for s in tree.steps(2)] == [((4, 5), 0, 1), ((4,), 1, 3)]
    assert tree.is_flat.tolist() == [False, False, False, True]


@pytest.mark.parametrize("seed", range(30))
def test_each_group_of_a_batch_is_the_tree_that_it_is_alone(seed):
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(2, size=rng.integers(4)) for _ in range(4)]
    groups = [random_group(rng, rng.integers(1, 6), length=5) for _ in prompts]
    tree = PrefixTree.from_groups(prompts, groups)
    check_tree(tree, prompts, groups)
    first = 0
    for g, group in enumerate(groups):
        alone, rows = PrefixTree.from_sequences(group), slice(first, first + len(group))
        for measure in (path_depth, intermediate_proportion, lambda tree: tree.lengths):
            assert measure(tree)[rows].tolist() == measure(alone).tolist()
        assert tree.is_flat[g] == alone.is_flat[0]
        shape = [([i + first for i in s.members], s.start, s.end, s.parent) for s in alone.steps()]
        assert [(list(s.members), s.start, s.end, s.parent) for s in tree.steps(g)] == shape
        first += len(group)


def test_merge_false_shares_nothing():
    prompts, groups = [[1, 2], [1, 2]], [[[3], [3, 4], []], [[3], [3]]]
    tree = PrefixTree.from_groups(prompts, groups, merge=False)
    assert tree.n_nodes == 2 * 5 + 1 + 2 + 0 + 1 + 1
    assert (tree.count == 1).all()
    assert tree.lengths.tolist() == [1, 2, 0, 1, 1]
    assert len(set(tree.paths[tree.paths >= 0].tolist())) == 5
    for i, y in enumerate([y for group in groups for y in group]):
        assert tree.token[tree.paths[i, : len(y)]].tolist() == y


@pytest.mark.parametrize("seed", range(20))
def test_sums_over_members_and_values_on_tokens(seed):
    rng = np.random.default_rng(seed)
    tree = PrefixTree.from_groups([[1], [1, 0]], [random_group(rng, 5), random_group(rng, 3)])
    values = rng.standard_normal(8)
    expected = [sum(values[i] for i in tree.members(n)) for n in range(tree.n_nodes)]
    np.testing.assert_allclose(tree.sum_over_members(values), expected, rtol=1e-14, atol=1e-14)
    on_nodes = rng.standard_normal(tree.n_nodes)
    read = tree.on_tokens(on_nodes, fill=-9.0)
    for i, t in np.ndindex(*tree.paths.shape):
        assert read[i, t] == (on_nodes[tree.paths[i, t]] if tree.paths[i, t] >= 0 else -9.0)


# -- parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_nodes", [1, 3, 8, 20, 10_000])
def test_split_scores_each_node_once_and_keeps_its_context(max_nodes):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        prompts = [[1, 2], [1], [1, 2], [0, 0, 0, 0]]
        tree = PrefixTree.from_groups(prompts, [random_group(rng, 4, length=6) for _ in prompts])
        scored = np.zeros(tree.n_nodes, dtype=int)
        for part, nodes in split_tree(tree, max_nodes):
            scored[nodes[part.scored]] += 1
            for name in ("token", "depth", "count", "group"):
                assert getattr(part, name).tolist() == getattr(tree, name)[nodes].tolist()
            whole_parent = np.where(part.parent >= 0, nodes[part.parent], -1)
            assert (
                whole_parent.tolist() == tree.parent[nodes].tolist()
            )  # the whole prefix of a node is in its part
            new = np.concatenate(
                [
                    part.rows[r, lo:hi]
                    for r, (lo, hi) in enumerate(zip(part.row_start, part.row_end, strict=True))
                ]
            )
            assert new.tolist() == list(range(part.n_nodes))
            assert part.n_nodes <= max(max_nodes, tree.row_end.max())
        assert scored.tolist() == tree.scored.astype(int).tolist()
    with pytest.raises(ValueError, match="at least one node"):
        split_tree(tree, 0)


@pytest.mark.parametrize("max_nodes", [1, 5])
def test_split_for_lanes_into_more_parts_than_rows(max_nodes):
    tree = PrefixTree.from_groups(
        [[1, 2], [1]], [random_group(np.random.default_rng(0), 8, length=6) for _ in range(2)]
    )
    parts = split_tree(tree, max_nodes, 4)
    scored = np.concatenate([nodes[part.scored] for part, nodes in parts])
    assert sorted(scored.tolist()) == np.flatnonzero(tree.scored).tolist()


@pytest.mark.parametrize("lanes", [2, 4])
@pytest.mark.parametrize("max_nodes", [20, 60, 10_000])
def test_split_for_lanes_is_even(max_nodes, lanes, monkeypatch):
    monkeypatch.setattr(plan, "LANE_NODES", 30)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        tree = PrefixTree.from_groups(
            [[1, 2], [1], [1, 2]], [random_group(rng, 20, length=6) for _ in range(3)]
        )
        parts = split_tree(tree, max_nodes, lanes)
        wanted = max(-(-tree.n_nodes // max_nodes), min(lanes, tree.n_nodes // 30))
        assert len(parts) == wanted + wanted % 2
        assert (
            max(part.n_nodes for part, _ in parts)
            < tree.n_nodes / len(parts) + 2 * tree.row_end.max()
        )
        scored = np.concatenate([nodes[part.scored] for part, nodes in parts])
        assert sorted(scored.tolist()) == np.flatnonzero(tree.scored).tolist()
        assert all((part.row_end > part.row_start).any() for part, _ in parts)


def test_split_makes_no_part_for_a_copy():
    parts = split_tree(PrefixTree.from_sequences([[1, 2, 3, 4, 5]] * 6 + [[2]]), 3)
    assert [int(part.scored.sum()) for part, _ in parts] == [5, 1]


# -- size ------------------------------------------------------------------------------------------


def lines_run_to(build, group):
    """How many lines of these files Python runs to build the tree, or its weights."""
    events = []

    def trace(frame, event, _):
        events.append(event)
        name = Path(frame.f_code.co_filename).name
        return trace if name in ("tree.py", "lambda_weights.py") else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        build(group)
    finally:
        sys.settrace(before)
    return events.count("line")


def test_no_python_loop_over_tokens_and_a_large_group():
    rng = np.random.default_rng(0)
    trunk = rng.integers(50_000, size=2000)
    group = [
        np.concatenate([trunk[:cut], rng.integers(50_000, 2**31, size=2000 - cut)])
        for cut in rng.integers(2000, size=200)
    ]
    build = PrefixTree.from_sequences
    assert 0 < lines_run_to(build, [y[:1000] for y in group]) == lines_run_to(build, group)
    assert lines_run_to(build, [y[:20] for y in group]) == lines_run_to(
        build, [y[:200] for y in group]
    )
    lines = lines_run_to(lambda_weights, group)
    assert (
        0 < lines == lines_run_to(lambda_weights, [np.repeat(y, 5) for y in group])
    )  # the same tree, longer steps
    assert lines < 20 * len(group)
    tree = PrefixTree.from_sequences(group)
    rows = np.array(group)
    for i, t in zip(rng.integers(200, size=50), rng.integers(2000, size=50), strict=True):
        expected = np.flatnonzero((rows[:, : t + 1] == rows[i, : t + 1]).all(1))
        assert tree.members(tree.paths[i, t]).tolist() == expected.tolist()
        assert tree.count[tree.paths[i, t]] == len(expected)
    np.testing.assert_array_equal(tree.token[tree.paths], rows)
