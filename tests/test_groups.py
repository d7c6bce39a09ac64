"""Reading groups in every format, each error message, the drawing in a terminal against numbers
worked out by hand, statistics.
"""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigrpo.logs.groups import group_statistics, read_groups, statistics_text, tree_statistics
from minigrpo.rewards import step_rewards
from minigrpo.show.drawing import drawn_steps, member_names, number, tree_text
from minigrpo.system.text import columns, shorten, visible
from minigrpo.tree import PrefixTree

SMALL = {"prompt": "p", "completions": ["ab", "ac", "ab", "b"], "rewards": [1, 0, 1, 0]}


def lines(*objects):
    return "\n".join(json.dumps(o) for o in objects)


# -- formats ---------------------------------------------------------------------------------------


def test_one_object_with_texts():
    (group,) = read_groups(json.dumps(SMALL))
    assert (
        group.texts == SMALL["completions"] and group.prompt == "p" and group.unit == "characters"
    )
    assert group.rewards.tolist() == [1, 0, 1, 0] and group.rewards.dtype == np.float64
    assert group.tree.count.tolist() == [3, 2, 1, 1]


def test_token_ids_stay_as_they_are():
    (group,) = read_groups('{"completions": [[5, 7], [5, 2147483647], []]}')
    assert group.sequences == [[5, 7], [5, 2147483647], []] and group.unit == "tokens"
    assert group.labels is None and group.rewards is None
    assert group.texts == ["5 7", "5 2147483647", ""]


def test_token_texts():
    (group,) = read_groups('{"completions": [["un", "do"], ["un", " it"]]}')
    assert (
        group.unit == "tokens"
        and group.texts == ["undo", "un it"]
        and group.tree.count.tolist() == [2, 1, 1]
    )


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([SMALL, SMALL], indent=2),
        lines(SMALL, SMALL),
        "\n" + lines(SMALL, SMALL) + "\r\n\n",
    ],
)
def test_several_groups_as_list_or_lines(text):
    groups = read_groups(text)
    assert [g.texts for g in groups] == [SMALL["completions"]] * 2


def test_logged_completions_are_grouped_by_prompt_step_and_group():
    text = lines(
        {"prompt": "p", "completion": "x", "reward": 1, "step": 1},
        {"prompt": "q", "completion": "z", "reward": 0.5, "step": 1},
        {"prompt": "p", "completion": "y", "reward": True, "step": 1},
        {"prompt": "p", "completion": "w", "reward": -1, "step": 2},
        {"prompt": "p", "completion": "v", "reward": 0, "step": 2, "group": 1},
    )
    groups = read_groups(text)
    assert [(g.prompt, g.step, g.texts, g.rewards.tolist()) for g in groups] == [
        ("p", 1, ["x", "y"], [1, 1]),
        ("q", 1, ["z"], [0.5]),
        ("p", 2, ["w"], [-1]),
        ("p", 2, ["v"], [0]),
    ]


def test_trl_tables_add_up_their_reward_columns():
    """Their sum agrees with the advantages, no column alone does;
    more of this is in test_logs.py.
    """
    row = {"step": "5", "prompt": "p", "completion": "x", "unused": None}
    rows = [
        row | {"accuracy": a, "format": f, "advantage": a + f}
        for a, f in ((1.0, 0.25), (0.0, 1.0), (1.0, 1.0))
    ]
    assert read_groups(lines(*rows))[0].rewards.tolist() == [1.25, 1.0, 2.0]
    assert read_groups(lines(*(row | {"reward": 7 + row["advantage"]} for row in rows)))[
        0
    ].rewards.tolist() == [8.25, 8, 9]
    assert read_groups(lines(*rows), reward_name="format")[0].rewards.tolist() == [0.25, 1.0, 1.0]
    assert (
        read_groups('{"completion": "x", "length": 3}')[0].rewards is None
    )  # a number in any other log is not taken for a reward


def test_units():
    text = lines({"completions": ["one two", "one"]}, {"completions": ["x", "y"]})
    assert [g.unit for g in read_groups(text)] == ["words", "words"]
    assert read_groups(text)[0].tree.count.tolist() == [2, 1]
    assert read_groups(text, unit="characters")[0].tree.n_nodes == 7
    with pytest.raises(ValueError, match="unit is 'letters': choose auto, characters or words"):
        read_groups(text, unit="letters")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text(alphabet=" ab\n\té\u2028\x85日$", max_size=12), min_size=1, max_size=4),
    st.sampled_from(["words", "characters", "auto"]),
)
def test_texts_are_joined_back_exactly(texts, unit):
    one_a_line = "\n".join(json.dumps({"completion": t}, ensure_ascii=False) for t in texts)
    for text in (json.dumps({"completions": texts}, ensure_ascii=False), one_a_line):
        assert read_groups(text, unit=unit)[0].texts == texts


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" \n", r'no input: a group is a JSON object .*\n.*"completions": \["5", "6", "5!"\]'),
        ("[]", "the list is empty: a group is"),
        ("[1]", "group 0 .from 0. is not a JSON object"),
        ('"ab"', "the group is not a JSON object"),
        ('{"a": 1}\n7', "line 2 is not a JSON object"),
        ('{"completions": ["a", ]}', r"malformed JSON at line 1, column \d+: "),
        (
            '{\n "completions": ["a"\n}',
            "malformed JSON at line 3, column 1: Expecting ',' delimiter",
        ),
        ('{"completion": "a"}\n\n{"completion": "b",}', r"malformed JSON at line 3, column \d+: "),
        ("[" * 200_000, "malformed JSON at line 1"),
        ('{"prompt": "a"}', 'the group has neither "completions" nor "completion"'),
        (lines(SMALL, {"text": 1}), 'line 2 has neither "completions" nor'),
        ('{"completions": []}', '"completions" must be a list of at least one'),
        ('{"completions": "ab"}', '"completions" must be a list of at least one'),
        (
            '{"completions": ["a", 3]}',
            "completion 1 .from 0. of the group is neither .* token ids .*: 3",
        ),
        (
            '[{"completions": ["a", [1.5]]}]',
            r"completion 1 .from 0. of group 0 .from 0. is neither .*: \[1.5\]",
        ),
        ('{"completions": [[true]]}', "completion 0 .from 0. of the group is neither"),
        (
            '{"completions": [[1, -1]]}',
            r"completion 0 .from 0. of the group holds a token id outside \[0, 2\*\*31\): -1 … 1",
        ),
        ('{"completions": [[2147483648]]}', r"holds a token id outside"),
        (
            '{"completions": ["a", [1]]}',
            "completion 1 .from 0. of the group: a group holds texts or token ids, not both",
        ),
        (
            '{"completions": ["a", "b"], "rewards": [1]}',
            "the group has 2 completions but 1 rewards",
        ),
        (
            '{"completions": ["a", "b"], "rewards": 1}',
            "the group has 2 completions but one number for rewards",
        ),
        (
            '{"completions": ["a", "b"], "rewards": [1, NaN]}',
            "the reward of completion 1 .from 0. of the group is NaN: it must be a finite",
        ),
        (
            '{"completions": ["a", "b"], "rewards": [1, 1e999]}',
            "the reward of completion 1 .from 0. of the group is Infinity",
        ),
        (
            '{"completions": ["a", "b"], "rewards": [1, "2"]}',
            'the reward of completion 1 .from 0. of the group is "2"',
        ),
        (
            '{"completions": ["a", "b"], "rewards": [1, null]}',
            "completion 1 .from 0. of the group has no reward, but others",
        ),
        ('{"completions": ["a"], "rewards": [1' + "0" * 400 + "]}", "must be a finite number"),
        (
            '{"completions": ["a", "b"], "rewards": [1, -1e160]}',
            "is -1e.160: it must be a finite number up to 1e100",
        ),
        (
            lines({"completion": "a", "reward": 1}, {"completion": "b"}),
            "line 2 has no reward, but others of its group do",
        ),
        (
            lines({"completion": "a", "reward": 1}, {"completion": "b", "reward": math.inf}),
            "the reward of line 2 is Infinity",
        ),
    ],
)
def test_errors_name_the_place(text, message):
    with pytest.raises(ValueError, match=message):
        read_groups(text)


# -- drawing ---------------------------------------------------------------------------------------


def test_tree_text_of_a_group_worked_out_by_hand():
    """mean 1/2, std 1/sqrt(3).

    a: λ = {0,1,2}, R̂ = 2/3, Â = (1/6)·sqrt(3) = 0.29; ab: R̂ = 1, Â = sqrt(3)/2 = 0.87.
    """
    (group,) = read_groups(json.dumps(SMALL))
    assert tree_text(group.tree, group.rewards, group.labels, prompt=group.prompt) == "\n".join(
        [
            "prompt   p",
            "group    k = 4, 7 tokens of which 4 distinct (43% shared)",
            "rewards  1 0 1 0; mean 0.50, std 0.58",
            "",
            "process step       |λ|      R̂       Â   members",
            "(nothing shared)     4   0.50    0.00   y0-y3",
            "├─ a                 3   0.67   +0.29   y0-y2",
            "│  ├─ b              2   1.00   +0.87   y0 y2",
            "│  └─ c              1   0.00   -0.87   y1",
            "└─ b                 1   0.00   -0.87   y3",
        ]
    )


def test_tree_text_in_ascii_without_rewards():
    tree = PrefixTree.from_sequences([[1, 2], [1, 3], [1]])
    assert tree_text(tree, ascii_only=True) == "\n".join(
        [
            "group    k = 3, 5 tokens of which 3 distinct (40% shared)",
            "",
            "process step     |L|   members",
            "1                  3   y0-y2",
            "|- 2               1   y0",
            "|- 3               1   y1",
            "`- (ends here)     1   y2",
        ]
    )


def test_one_completion_has_no_advantage_and_equal_rewards_have_none_to_learn_from():
    assert "1   2.00   -   y0" in tree_text(PrefixTree.from_sequences([[4, 5]]), [2.0])
    text = tree_text(PrefixTree.from_sequences([[4, 5], [4, 6]]), [0.1, 0.1])
    assert (
        "all equal, so every advantage is 0" in text
        and text.count("0.00   y") == 3
        and "-0.00" not in text
    )


@pytest.mark.parametrize("width", [50, 60, 100])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_lines_are_no_wider_than_asked(width, ascii_only):
    completions = [f"東京 {'long ' * 30}{i % 3} and é\u0301 {i}" for i in range(7)]
    (group,) = read_groups(
        json.dumps({"prompt": "x" * 300, "completions": completions, "rewards": list(range(7))})
    )
    text = tree_text(
        group.tree,
        group.rewards,
        group.labels,
        prompt=group.prompt,
        width=width,
        ascii_only=ascii_only,
    )
    assert max(map(columns, text.split("\n"))) <= width and text.isascii() == ascii_only
    assert ("~" if ascii_only else "…") in text
    deep = PrefixTree.from_sequences([[1] * n for n in range(1, 80)])
    assert (
        max(
            map(columns, tree_text(deep, range(79), width=width, ascii_only=ascii_only).split("\n"))
        )
        <= width
    )


def test_steps_agree_with_the_rewards_on_nodes():
    rng = np.random.default_rng(0)
    for _ in range(20):
        sizes = rng.integers(2, 7, size=3)
        groups = [
            [rng.integers(0, 2, size=rng.integers(1, 7)).tolist() for _ in range(k)] for k in sizes
        ]
        rewards = rng.normal(size=sizes.sum())
        tree = PrefixTree.from_groups([[9], [9, 1], []], groups)
        on_nodes = step_rewards(tree, rewards)
        for g, first in enumerate(np.cumsum(sizes) - sizes):
            own = rewards[first : first + sizes[g]]
            drawn = drawn_steps(tree, rewards, group=g)
            ended = [m for s in drawn if s.text == "(ends here)" for m in s.members]
            for s in drawn:
                assert all(
                    groups[g][m][: s.end] == groups[g][s.members[0]][: s.end] for m in s.members
                )
                assert s.reward == pytest.approx(np.mean([own[m] for m in s.members]))
                assert s.advantage == pytest.approx(
                    (s.reward - own.mean()) / (own.std(ddof=1) + 1e-4), abs=1e-12
                )
                if s.end > s.start:
                    assert s.reward == pytest.approx(
                        on_nodes[tree.paths[first + s.members[0], s.start]]
                    )
            leaves = [s for i, s in enumerate(drawn) if i not in {t.parent for t in drawn}]
            assert sorted(m for s in leaves for m in s.members) == list(
                range(sizes[g])
            )  # each completion ends in one leaf
            assert set(ended) <= set(range(sizes[g]))


def test_drawing_refuses_what_does_not_fit():
    tree = PrefixTree.from_sequences([[0], [1]])
    with pytest.raises(ValueError, match="2 completions but 1 rewards"):
        drawn_steps(tree, [1.0])
    with pytest.raises(ValueError, match=r"group 1 is not in the tree: it has groups 0 … 0"):
        drawn_steps(tree, group=1)
    with pytest.raises(ValueError, match="labels must give a text for every token id from 1 to 1"):
        drawn_steps(tree, labels=["a"])


def test_printing():
    assert visible(" a\n\x1b[31m ") == r"␣a↵\x1b[31m␣" and visible("  ") == "␣␣"
    assert (
        shorten("abcdefghij", 7) == "abcd…ij"
        and shorten("abc", 3) == "abc"
        and columns(shorten("日本日本日本", 7)) <= 7
    )
    assert member_names((0, 1, 2, 5, 7, 8)) == "y0-y2 y5 y7 y8"
    assert [number(x) for x in (None, 0.0, -1e-17, 0.001, 1e6)] == [
        "-",
        "0.00",
        "0.00",
        "1.0e-03",
        "1.0e+06",
    ]
    assert [number(x, "+") for x in (0.5, -0.5, -0.001)] == ["+0.50", "-0.50", "0.00"]


def test_spaces_and_tokens_without_text_are_shown():
    labels = {0: " the", 1: " ", 2: "x", 3: ""}
    steps = drawn_steps(PrefixTree.from_sequences([[0, 2, 3], [1, 2], [2, 1]]), labels=labels)
    assert [s.text for s in steps] == ["(nothing shared)", "thex∎", "␣x", "x␣"]


# -- statistics ------------------------------------------------------------------------------------


def test_statistics_worked_out_by_hand():
    """Group 0: a(3) b(2) c(1) b(1): depths 1 1 1 0, proportions 1/2 1/2 1/2 0.  Group 1 is flat.

    Group 2 has one completion.
    """
    stats = group_statistics(
        read_groups(lines(SMALL, {"completions": ["x", "yz"]}, {"completions": ["x"]}))
    )
    assert (stats["groups"], stats["completions"], stats["skipped_groups"]) == (2, 6, 1)
    assert (stats["flat_groups"], stats["flat_share"]) == (1, 0.5)
    assert (
        stats["path_depth"] == [1, 1, 1, 0, 0, 0]
        and stats["path_depth_mean"] == 0.5
        and stats["path_depth_median"] == 0.5
    )
    assert (
        stats["intermediate_proportion"] == [0.5, 0.5, 0.5, 0, 0, 0]
        and stats["intermediate_proportion_mean"] == 0.25
    )
    assert stats["count_histogram"] == {1: 5, 2: 2, 3: 3} and (
        stats["flat_tokens"],
        stats["unique_tokens"],
    ) == (10, 7)
    assert json.loads(json.dumps(stats))["unit"] == "characters"
    text = statistics_text(stats)
    assert (
        "2 with 6 completions (and 1 of one completion, left out)" in text
        and "  3            3   30.0%  ████████████" in text
    )
    assert statistics_text(stats, ascii_only=True).isascii()


def test_statistics_of_a_batch_are_those_of_its_groups():
    rng = np.random.default_rng(1)
    groups = [
        [rng.integers(0, 3, size=rng.integers(0, 6)).tolist() for _ in range(4)] for _ in range(5)
    ]
    batch = tree_statistics([PrefixTree.from_groups([[1]] * 5, groups)])
    assert batch == tree_statistics(PrefixTree.from_sequences(g) for g in groups)


def test_statistics_need_a_group_of_two():
    with pytest.raises(ValueError, match=r"no group has two completions \(2 groups of one\)"):
        group_statistics(read_groups(lines({"completions": ["x"]}, {"completions": ["y"]})))
