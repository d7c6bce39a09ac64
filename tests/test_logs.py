"""Logs as other programs write them:
which lines are a group, which number is the reward, and what is refused.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fuzz_logs import fuzz

from minigrpo.command.cli import main
from minigrpo.logs import groups as groups_module
from minigrpo.logs.grouping import choose_steps, read_completions
from minigrpo.logs.groups import make_groups, read_groups
from minigrpo.logs.rows import NAMES, parse, read_log

PROMPTS, TEXTS = (
    ["2+2=", "3+3="],
    ["4 is it", "4 is not", "five", "4 is it", "6", "7", "6 yes", "8"],
)
REWARDS = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0]
ROWS = [
    {"step": step, "prompt": PROMPTS[i // 4], "completion": TEXTS[i], "reward": REWARDS[i]}
    for step in (9, 10)
    for i in range(8)
]


def lines(rows):
    return "\n".join(json.dumps(row) for row in rows)


def table(rows, delimiter=","):
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def renamed(**names):
    return [{names.get(k, k): v for k, v in row.items()} for row in ROWS]


def columns(rows):
    return {key: [row[key] for row in rows] for key in rows[0]}


def ids(text):
    return list(text.encode())


def read(file, group_size=None, **names):
    names = NAMES | {kind: (name,) for kind, name in names.items()}
    items, notes = read_log(str(file), names)
    found, said = read_completions(items, names, group_size)
    return make_groups(found), notes + said


def shape(groups):
    return [(float(g.step), len(g.sequences), g.rewards.tolist()) for g in groups]


FOUR = [(step, 4, REWARDS[i : i + 4]) for step in (9.0, 10.0) for i in (0, 4)]
OPEN_INSTRUCT = [
    {
        "training_step": step,
        "scores": REWARDS,
        "responses": [ids(t) for t in TEXTS],
        "queries": [[1, i // 4] for i in range(8)],
        "finish_reasons": ["stop"] * 8,
    }
    for step in (9, 10)
]
ROLLOUTS = [
    {
        "step": row["step"],
        "sample_idx": i % 8,
        "prompt_idx": i % 8 // 4,
        "prompt_tokens": [7],  # two equal prompts: prompt_idx tells them apart
        "response_tokens": ids(row["completion"]),
        "reward": row["reward"],
        "advantage": 2 * row["reward"] - 1,
        "finish_reason": "stop",
    }
    for i, row in enumerate(ROWS)
]
MS_SWIFT = [
    columns(renamed(reward="Accuracy")[i : i + 8]) | {"step": [str(ROWS[i]["step"])] * 8}
    for i in (0, 8)
]
for record in MS_SWIFT:
    record |= {
        "Format": [1.0] * 8,
        "advantages": [2 * r - 1 for r in REWARDS],
        "entropy": [0.1 * i for i in range(8)],
    }
CHATS = [
    row
    | {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["completion"]}],
    }
    for row in ROWS
]
PARTS = [
    row
    | {
        "completion": [
            {
                "role": "assistant",
                "content": [{"type": "text", "text": c} for c in row["completion"]],
            }
        ]
    }
    for row in ROWS
]
FORMATS = {
    "TRL with one reward function.jsonl": lines(
        row | {"advantage": 2 * row["accuracy_reward"] - 1}
        for row in renamed(reward="accuracy_reward")
    ),
    "W&B.table.json": json.dumps(
        {"columns": list(ROWS[0]), "data": [list(row.values()) for row in ROWS], "ncols": 4}
    ),
    "verl.jsonl": lines(
        row | {"gts": "4", "acc": 0.5}
        for row in renamed(prompt="input", completion="output", reward="score")
    ),
    "verl 0.9.jsonl": lines(
        row | {"gts": None, "uid": f"{row['step']}f-{row['input']}_{i % 4}_0"}
        for i, row in enumerate(renamed(prompt="input", completion="output", reward="score"))
    ),
    "open-instruct.jsonl": lines(OPEN_INSTRUCT),
    "open-instruct rollouts.jsonl": lines(ROLLOUTS),
    "ms-swift in rows.jsonl": lines(renamed(step="gen_step")),
    "ms-swift with a dict.jsonl": lines(
        row | {"rewards": {"acc": row.pop("reward"), "format": 0.0}} for row in renamed()
    ),
    "OpenRLHF.jsonl": lines(renamed(step="global_step", prompt="input", completion="output")),
    "prime-rl.table.json": json.dumps(
        {
            "columns": ["step", "task_idx", "completion", "reward"],
            "data": [[r["step"], r["prompt"], r["completion"], r["reward"]] for r in ROWS],
        }
    ),
    "comma.csv": table(ROWS),
    "tab.tsv": table(ROWS, "\t"),
    "semicolon.csv": table(ROWS, ";"),
    "columns.json": json.dumps(columns(ROWS)),
    "columns a step.jsonl": lines(columns(ROWS[i : i + 8]) for i in (0, 8)),
    "list.json": json.dumps(ROWS, indent=1),
    "chats.jsonl": lines(CHATS),
    "chats in columns.json": json.dumps(columns(CHATS)),
    "content parts.jsonl": lines(PARTS),
    "messages.jsonl": lines(
        {"step": r["step"], "messages": r["prompt"] + r["completion"], "reward": r["reward"]}
        for r in CHATS
    ),
    "shuffled.jsonl": lines(ROWS[:4:2] + ROWS[4:8] + ROWS[1:4:2] + ROWS[8:]),
    "CRLF.csv": table(ROWS).replace("\n", "\r\n"),
    "CR.csv": table(ROWS).replace("\r\n", "\r"),
    "plural.jsonl": lines(
        {
            "step": r[0]["step"],
            "query": r[0]["prompt"],
            "responses": [x["completion"] for x in r],
            "scores": [x["reward"] for x in r],
        }
        for r in (ROWS[i : i + 4] for i in range(0, 16, 4))
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name, tmp_path):
    (tmp_path / name).write_text(FORMATS[name], encoding="utf-8", newline="")
    groups, _ = read(tmp_path / name)
    expected = [(s, k, r if name != "shuffled.jsonl" or s == 10 else sorted(r)) for s, k, r in FOUR]
    found = [
        (s, k, r if name != "shuffled.jsonl" or s == 10 else sorted(r)) for s, k, r in shape(groups)
    ]
    assert found == expected
    joined = "".join if groups[0].labels else (lambda text: bytes(map(int, text.split())).decode())
    assert sorted(joined(t) for t in groups[0].texts) == sorted(TEXTS[:4])


def test_columns_of_lists_with_advantages(tmp_path):
    """ms-swift's first form: Accuracy, and Accuracy + Format, agree with the advantages."""
    (tmp_path / "completions.jsonl").write_text(lines(MS_SWIFT))
    with pytest.raises(
        ValueError,
        match=r'completions.jsonl and below: .* several of "Accuracy", "Format", "entropy" and',
    ):
        read(tmp_path / "completions.jsonl")
    assert shape(read(tmp_path, reward="Accuracy")[0]) == FOUR
    assert [r[2][0] for r in shape(read(tmp_path, reward="Accuracy, Format")[0])] == [2, 2, 2, 2]
    for record in MS_SWIFT:
        weighted = [r + 0.2 * f for r, f in zip(REWARDS, REWARDS[::-1], strict=True)]
        with pytest.raises(
            ValueError, match='shows none of "Accuracy", "Format", "entropy" and their sums'
        ):
            read_groups(json.dumps(record | {"Format": REWARDS[::-1], "advantages": weighted}))


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for step in (9, 10):
        own = [
            row | {"reward": None, "advantage": 2 * row["reward"] - 1, "right": row["reward"]}
            for row in ROWS
            if row["step"] == step
        ]
        parquet.write_table(
            pyarrow.Table.from_pylist(own), tmp_path / f"completions_{step:05}.parquet"
        )
    (tmp_path / "README.md").write_text("a card")
    groups, notes = read(tmp_path)
    assert shape(groups) == FOUR and "the reward is right" in notes
    parquet.write_table(pyarrow.Table.from_pylist(CHATS), tmp_path / "chats.parquet")
    assert shape(read(tmp_path / "chats.parquet")[0]) == FOUR
    assert "chats.parquet" in read(tmp_path)[1][0]  # left out of the folder, and said


# -- which number is the reward --------------------------------------------------------------------


def trl(advantage, prompt="p", **cols):
    n = len(advantage)
    rows = [
        {"step": 1, "prompt": prompt, "completion": f"{prompt}{i}"}
        | {k: v[i] for k, v in cols.items()}
        for i in range(n)
    ]
    return [row | {"advantage": a} for row, a in zip(rows, advantage, strict=True)]


def scaled(rewards, scale="std", digits=17):
    r = np.array(rewards)
    return np.round(
        (r - r.mean()) / {"std": r.std(ddof=1) + 1e-4, "none": 1.0, "batch": 0.37}[scale], digits
    ).tolist()


A, B, LENGTH = [1.0, 0.0, 1.0, 0.0], [0.5, 0.25, 0.0, 1.0], [3, 141, 5, 90]


@pytest.mark.parametrize("scale", ["std", "none", "batch"])
@pytest.mark.parametrize("digits", [3, 4, 17])
@pytest.mark.parametrize(
    ("truth", "cols", "expected"),
    [
        (A, {"acc": A, "length": LENGTH}, "acc"),
        (A, {"length": LENGTH, "accuracy_reward": A, "temperature": [0.7] * 4}, "accuracy_reward"),
        (np.add(A, B), {"acc": A, "style": B}, "acc + style"),
        (np.add(A, B), {"a_reward": A, "b_reward": B, "length": LENGTH}, "a_reward + b_reward"),
        (
            np.add(A, [1.0] * 4),
            {"acc_reward": A, "format_reward": [1.0] * 4},
            "acc_reward + format_reward",
        ),
        (A, {"acc_reward": A, "other_reward": B}, "acc_reward"),  # reward_weights=[1, 0]
        (B, {"only": B}, "only"),
    ],
)
def test_rewards_that_agree_with_the_advantages(truth, cols, expected, scale, digits):
    found, notes = read_completions(
        [(*item, "") for item in parse(lines(trl(scaled(truth, scale, digits), **cols)))]
    )
    assert f"the reward is {expected}" in notes
    assert [c.reward for c in found[0]] == np.sum(
        [cols[name] for name in expected.split(" + ")], axis=0
    ).tolist()


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        (
            trl(scaled(np.add(A, np.multiply(0.2, B))), acc_reward=A, format_reward=B),
            ["acc_reward", "format_reward"],
        ),  # weights
        (trl(scaled(A), length=LENGTH), ["length"]),
        (
            trl(scaled(A), acc=A, difficulty=[3.0] * 4),
            ["acc", "difficulty"],
        ),  # acc and acc + 3: other rewards
        (
            trl([0.707, -0.707], acc=[1.0, 0.0], length=[21, 1]),
            ["acc", "length"],
        ),  # of two, all agree that have the sign
        (
            trl([0.707, -0.707], acc_reward=[1.0, 0.0], format_reward=[0.0, 1.0]),
            ["acc_reward", "format_reward"],
        ),
        (
            trl([0.0] * 4, acc=[0.0] * 4, length=[5] * 4),
            ["acc", "length"],
        ),  # a dead group shows nothing
        (trl([0.0] * 4, acc=A, style=B), ["acc", "style"]),
        (trl([-a for a in scaled(A)], acc=A), ["acc"]),  # the wrong sign
        (trl(scaled(A), acc=A) + trl(scaled(B), "q", acc=A), ["acc"]),  # in one group only
        (
            trl(scaled(np.add(A, B)), reward=A, format_reward=B),
            ["reward", "format_reward"],
        ),  # a function that is called reward
    ],
)
def test_rewards_that_the_advantages_do_not_show_are_refused(rows, named, tmp_path, capsys):
    file = tmp_path / "log.jsonl"
    file.write_text(lines(rows))
    assert main(["tree", str(file)]) == 2
    err = capsys.readouterr().err
    assert (
        err.count("\n") == 1
        and "--reward-name" in err
        and "log.jsonl" in err
        and all(f'"{name}"' in err for name in named)
    )
    assert main(["tree", str(file), "--reward-name", named[0]]) == 0
    out = capsys.readouterr().out
    assert " ".join(f"{row[named[0]]:.4g}" for row in rows[: 2 if len(rows) < 4 else 4]) in out


def test_no_accepted_reward_has_other_advantages_than_the_log():
    """Random tables, some with weights, which no reading knows.

    They are refused, or read to the same advantages; without weights, to the truth.
    """
    accepted = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        k, n_groups, n_columns = (
            int(rng.choice([2, 3, 4, 8])),
            int(rng.integers(1, 6)),
            int(rng.integers(1, 5)),
        )
        n = k * n_groups
        kinds = [
            rng.integers(0, 2, (n_columns, n)),
            rng.random((n_columns, n)).round(3),
            rng.integers(1, 200, (n_columns, n)),
        ]
        kinds.append(
            np.repeat(rng.integers(0, 3, (n_columns, n_groups)), k, axis=1)
        )  # the same for a group
        cols = np.array([kinds[rng.integers(4)][j] for j in range(n_columns)], float)
        weights = (
            rng.choice([0, 0.1, 0.5, 1, 2], n_columns)
            if seed % 3 == 0
            else (np.arange(n_columns) <= rng.integers(n_columns)) * 1.0
        )
        names = [f"c{j}_reward" if seed % 2 and weights[j] else f"c{j}" for j in range(n_columns)]
        truth = weights @ cols
        centred = truth.reshape(n_groups, k) - truth.reshape(n_groups, k).mean(1, keepdims=True)
        scale = [1.0, centred.std(1, ddof=1, keepdims=True) + 1e-4][rng.integers(2)]
        stated = (centred / scale).ravel().round(int(rng.choice([2, 4, 15]))).tolist()
        rows = [
            {"step": 1, "prompt": i // k, "completion": "a", "advantage": stated[i]}
            for i in range(n)
        ]
        rows = [
            row | dict(zip(names, cols[:, i].tolist(), strict=True)) for i, row in enumerate(rows)
        ]
        try:
            found, _ = read_completions([("", row, "") for row in rows])
        except ValueError:
            continue
        accepted += 1
        r = np.array([[c.reward for c in group] for group in found])
        x, y = r - r.mean(1, keepdims=True), centred
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        assert np.array_equal(np.any(abs(x) > 1e-9, axis=1), np.any(abs(y) > 1e-9, axis=1)), seed
        assert (np.sum(x * y, axis=1) >= (1 - 1e-3) * norms - 1e-12).all(), seed
        assert seed % 3 == 0 or np.allclose(r.ravel(), truth), seed
    assert accepted > 50


def test_a_plain_reward_needs_no_proof_but_a_contradiction_is_said():
    rows = trl([0.1] * 4, reward=A, length=LENGTH)
    found, notes = read_completions([(*item, "") for item in parse(lines(rows))])
    assert [
        c.reward for c in found[0]
    ] == A and "'reward' is taken for the reward, but 'advantage' is not its advantage" in notes
    assert (
        read_completions(
            [(*item, "") for item in parse(lines(trl(scaled(A), reward=A, length=LENGTH)))]
        )[1][1:]
        == []
    )


def test_null_and_nan_count_nothing_in_a_sum():
    rows = trl(
        scaled([0.0, 2.0, 0.5, 2.5]),
        a_reward=[None, 2.0, float("nan"), 1.0],
        b_reward=[0, None, 0.5, 1.5],
    )
    assert read_groups(lines(rows))[0].rewards.tolist() == [0.0, 2.0, 0.5, 2.5]
    with pytest.raises(ValueError, match="line 1 has no reward, but others of its group do"):
        read_groups(lines(rows), reward_name="a_reward")


def test_dicts_of_rewards():
    rows = [
        {"prompt": "p", "completion": c, "rewards": {"acc": a, "format": 0.5, "why": "x"}}
        for c, a in (("a", 1.0), ("b", 0.0))
    ]
    assert read_groups(lines(rows))[0].rewards.tolist() == [1.5, 0.5]
    assert read_groups(lines(rows), reward_name="acc")[0].rewards.tolist() == [1, 0]
    by_column = {
        "prompt": "p",
        "completions": ["a", "b"],
        "rewards": {"acc": [1, 0], "format": [2, 3]},
    }
    assert read_groups(json.dumps(by_column))[0].rewards.tolist() == [3, 3]


@pytest.mark.parametrize("name", ["reward", "rewards", "score", "scores"])
@pytest.mark.parametrize("completions", ["completions", "responses", "outputs"])
def test_any_reward_beside_completions_is_one(name, completions):
    assert read_groups(json.dumps({completions: ["a", "b"], name: [1, True]}))[
        0
    ].rewards.tolist() == [1, 1]
    with pytest.raises(
        ValueError, match=f"the group has 2 {completions} but one number for {name}"
    ):
        read_groups(json.dumps({completions: ["a", "b"], name: 1}))


@pytest.mark.parametrize(
    ("extra", "said"),
    [({"acc": 1.0, "x": 2}, '"acc", "x"'), ({"right": True, "advantage": 0.5}, '"right"')],
)
def test_numbers_that_may_be_rewards_are_said(extra, said):
    found, notes = read_completions(
        [(*item, "") for item in parse(json.dumps({"completion": "a"} | extra))]
    )
    assert found[0][0].reward is None and notes == [
        f"no rewards; --reward-name may name one of {said}"
    ]


def test_two_rewards_that_differ_are_refused():
    with pytest.raises(
        ValueError,
        match='line 2 has rewards that differ, "reward", "score": choose with --reward-name',
    ):
        read_groups(
            lines(
                [
                    {"completion": "a", "reward": 1, "score": 1.0},
                    {"completion": "b", "reward": 1, "score": 2},
                ]
            )
        )


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("1", 1),
        ("0.5", 0.5),
        ("-2e-1", -0.2),
        ("True", 1),
        ("false", 0),
        ("nan", None),
        ("1e400", None),
        ("x", None),
        ("1_0", None),
    ],
)
def test_rewards_in_tables_of_text(cell, value):
    text = f"prompt,completion,reward\n1,007,{cell}\n1,null,1\n"
    if value is None:
        with pytest.raises(
            ValueError, match=r"the reward of line 2 is .*: it must be a finite number"
        ):
            read_groups(text)
    else:
        (group,) = read_groups(text)
        assert group.rewards.tolist() == [value, 1] and group.texts == [
            "007",
            "null",
        ]  # texts stay texts
        assert read_groups(text.replace("007", "").replace("null", "true"))[0].texts == ["", "true"]


@pytest.mark.parametrize("number", ["1e400", "-Infinity", "1" + "0" * 400, "1" + "0" * 5000])
def test_numbers_beyond_all_bounds(number, tmp_path, capsys):
    for rest in (
        '"reward": {}',
        '"advantage": 1, "x": {}, "y": 0.5',
        '"advantage": {}, "x": 1',
        '"step": {}, "reward": 1',
    ):
        (tmp_path / "log.json").write_text(
            '{"completion": "a", ' + rest.replace("{}", number) + "}"
        )
        assert main(["tree", str(tmp_path / "log.json")]) in (0, 2)
        assert capsys.readouterr().err.count("\n") <= 1
    assert main(["tree", str(tmp_path / "log.json")]) == (2 if len(number) > 4300 else 0)


# -- which lines are a group -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["group", "uid", "group_id", "prompt_idx", "example_id"])
def test_ids_keep_groups_of_one_prompt_apart(name, tmp_path):
    rows = [
        {"step": 1, "prompt": "L", "completion": "RL"[i % 2], "reward": i % 2, name: i // 4}
        for i in range(16)
    ]
    (tmp_path / "samples.jsonl").write_text(lines(rows))
    groups, notes = read(tmp_path / "samples.jsonl")
    assert [len(g.sequences) for g in groups] == [4, 4, 4, 4] and notes == []


def test_groups_that_cannot_be_told_apart_are_said_and_split_on_demand(tmp_path, capsys):
    rows = [
        {"step": i // 16, "prompt": "L", "completion": "RL"[i % 2], "reward": i % 2}
        for i in range(32)
    ]
    (tmp_path / "samples.jsonl").write_text(lines(rows))
    groups, notes = read(tmp_path / "samples.jsonl")
    assert [len(g.sequences) for g in groups] == [
        16,
        16,
    ] and "if they are several, give --group-size" in notes[0]
    groups, notes = read(tmp_path / "samples.jsonl", 4)
    assert [len(g.sequences) for g in groups] == [4] * 8 and notes == []
    assert main(["tree", str(tmp_path / "samples.jsonl"), "--group-size", "5"]) == 2
    assert main(["tree", str(tmp_path / "samples.jsonl"), "--group-size", "0"]) == 2
    assert (
        "line 1 of samples.jsonl begins 16 completions of one prompt, which are no groups of 5"
        in capsys.readouterr().err
    )
    assert (
        read_groups(json.dumps({"completions": ["a"] * 3})) and read(tmp_path, 4)[0]
    )  # groups that are given as such stay


@pytest.mark.parametrize("name", ["prompt_ids", "prompt_token_ids", "prompt_tokens"])
def test_prompts_as_token_ids_tell_groups_apart(name, tmp_path):
    rows = [
        {"step": 1, name: [5, p], "completion_ids": [7, c], "reward": c}
        for p in (1, 2)
        for c in (0, 1)
    ]
    (tmp_path / "log.jsonl").write_text(lines(rows))
    groups, _ = read(tmp_path / "log.jsonl")
    assert [len(g.sequences) for g in groups] == [2, 2] and {g.prompt_length for g in groups} == {2}


@pytest.mark.parametrize("name", ["prompt_ids", "prompt_token_ids", "prompt_tokens"])
def test_ids_beside_the_text_of_a_prompt_are_not_looked_at_but_beside_an_environment_are(name):
    """Workers pad the ids of one prompt to lengths of their own."""

    def sizes(**prompt):
        rows = [{name: [0] * i + [5], "completion": "a"} | prompt for i in (0, 1, 0, 1)]
        return [len(g) for g in read_completions([("", row, "") for row in rows])[0]]

    assert sizes(prompt="p") == sizes(question="p", env_name="e") == [4]
    assert sizes() == sizes(env_name="e") == [2, 2]


def test_lines_without_a_known_prompt_are_one_group_and_that_is_said():
    rows = [{"step": 1, "ask": "pq"[i % 2], "completion": "ab"[i // 2]} for i in range(4)]
    found, notes = read_completions([("", row, "") for row in rows])
    assert [len(group) for group in found] == [4]
    assert (
        "no prompt is known (--prompt-name NAME): all lines of one step are one group" in notes[0]
    )
    named = NAMES | {"prompt": ("ask",)}
    found, notes = read_completions([("", row, "") for row in rows], named)
    assert [len(group) for group in found] == [2, 2] and "all lines of one step and p" in notes[0]


def verl_v1(uid="{step}f-{prompt}_{i}_0", padding=0):
    """As verl 0.9 dumps a step: its uid is that of a row, GROUP_SAMPLE_OUTPUT, not of a group."""
    rows = [
        {"input": "2+2=", "output": f"a {r}", "score": r, "step": 1}
        | {"uid": uid.format(step=1, prompt=prompt, i=i)}
        for prompt in "xy"
        for i, r in enumerate((1.0, 0.0, 1.0))
    ]
    pads = [f"pad{'0' * 31}f_{i}_0" for i in range(padding)]
    return rows + [{"input": "", "output": "", "score": 0.0, "step": 1, "uid": u} for u in pads]


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_uids_of_rows_as_verl_writes_them(padding):
    """Two groups of one prompt stay two, and the rows that fill up a batch are no group."""
    found, notes = read_completions([("", row, "") for row in verl_v1(padding=padding)])
    assert [[c.reward for c in group] for group in found] == [[1, 0, 1]] * 2
    assert "as in verl" in " ".join(notes)


@pytest.mark.parametrize("uid", ["run_{step}_7", "uid_sample_0_{prompt}", "{prompt}"])
def test_uids_of_groups_are_left_as_they_are(uid):
    found, notes = read_completions([("", row, "") for row in verl_v1(uid)])
    assert sum(map(len, found)) == 6 and "verl" not in " ".join(notes)


def test_what_differs_in_the_prompt_or_the_step_is_another_group():
    chats = [[{"role": role, "content": "hi"}] for role in ("user", "system")]
    assert len(read_groups(lines({"prompt": chat, "completion": "a"} for chat in chats))) == 2
    assert (
        len(
            read_groups(
                lines({"step": 1, "gen_step": g, "prompt": "p", "completion": "a"} for g in (1, 2))
            )
        )
        == 2
    )
    assert (
        len(read_groups(lines({"prompt": ["p", "p"], "completion": ["a", "b"]} for _ in range(2))))
        == 2
    )  # no step: a table each
    assert (
        len(
            read_groups(
                lines(
                    {"step": [1, 1], "prompt": ["p", "p"], "completion": ["a", "b"]}
                    for _ in range(2)
                )
            )
        )
        == 1
    )


def test_a_chat_says_all_that_it_says():
    calls = [
        [{"role": "assistant", "tool_calls": [{"name": name}]} | content]
        for name in ("f", "g")
        for content in ({"content": None}, {})
    ]
    thought = [
        {"role": "assistant", "content": "yes", "reasoning_content": "hm"},
        {"role": "tool", "content": ""},
    ]
    (group,) = read_groups(
        lines(
            {"completion": c} for c in [*calls, thought, {"role": "assistant", "content": "yes"}]
        ),
        unit="words",
    )
    assert len(set(group.texts)) == 4 and group.texts[4:] == ["hm\nyes\n", "yes"]
    with pytest.raises(
        ValueError, match=r"neither .completions. nor .completion., only .messages."
    ):
        read_groups(
            json.dumps({"messages": [{"role": "assistant", "content": "a"}, {"content": "b"}]})
        )  # which is the completion?
    with pytest.raises(ValueError, match="the group is neither a text nor a list of token ids"):
        read_groups('{"completion": [{"role": "assistant"}]}')


def test_folders(tmp_path):
    """verl's STEP.jsonl in numerical order; prime-rl's step_N/…, whose lines have no step."""
    for step in (9, 10):
        own = [
            row
            for row in renamed(prompt="input", completion="output", reward="score")
            if row["step"] == step
        ]
        (tmp_path / "verl").mkdir(exist_ok=True)
        (tmp_path / "verl" / f"{step}.jsonl").write_text(lines(own))
        (tmp_path / f"prime/step_{step}").mkdir(parents=True)
        bare = [
            {k: v for k, v in row.items() if k != "step"} | {"example_id": row["prompt"]}
            for row in ROWS
            if row["step"] == step
        ]
        (tmp_path / f"prime/step_{step}/train_rollouts.jsonl").write_text(lines(bare))
    assert shape(read(tmp_path / "verl")[0]) == FOUR and shape(read(tmp_path / "prime")[0]) == FOUR
    assert shape(read(tmp_path / "prime/step_9/train_rollouts.jsonl")[0])[:1] != []
    (tmp_path / "verl" / "val").mkdir()
    (tmp_path / "verl" / "val" / "9.jsonl").write_text(
        lines(renamed(prompt="input", completion="output", reward="score")[:4])
    )
    assert len(read(tmp_path / "verl")[0]) == 5  # what was logged elsewhere is another group
    (tmp_path / "verl" / "metadata.jsonl").write_text('{"run_name": "r", "model_name": "m"}\n')
    assert (
        read(tmp_path / "verl")[1][0]
        == 'left out, as without completions: metadata.jsonl ("run_name", "model_name")'
    )
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "other.json").write_text('{"a": 1}')
    left_out = r'left out, as without completions: other.json \("a"\)'
    with pytest.raises(ValueError, match=rf"without completions_\*.parquet.*{left_out}"):
        read(tmp_path / "none")


# -- names, steps, encodings -----------------------------------------------------------------------


def test_names_of_fields(tmp_path, capsys):
    rows = [
        {
            "t": i // 2,
            "q": "p",
            "a": f"x{i}",
            "r": i,
            "prompt": i,
            "completion": "no",
            "step": 5,
            "reward": 0,
        }
        for i in range(4)
    ]
    (tmp_path / "log.jsonl").write_text(lines(rows))
    groups, _ = read(tmp_path / "log.jsonl", prompt="q", completion="a", step="t", reward="r")
    assert [(g.step, g.prompt, g.texts, g.rewards.tolist()) for g in groups] == [
        (0, "p", ["x0", "x1"], [0, 1]),
        (1, "p", ["x2", "x3"], [2, 3]),
    ]
    (tmp_path / "log.csv").write_text(table(rows))
    assert [
        len(g.sequences)
        for g in read(tmp_path / "log.csv", prompt="q", completion="a", step="t")[0]
    ] == [2, 2]
    for kind in ("prompt", "step", "reward"):
        assert main(["tree", str(tmp_path / "log.jsonl"), f"--{kind}-name", "gone"]) == 2
        err = capsys.readouterr().err
        assert (
            f"no line has 'gone' (--{kind}-name); the columns are" in err
            and '"t", "q", "a", "r", "prompt"' in err
        )
    for name in ("r,gone", ""):
        assert main(["tree", str(tmp_path / "log.jsonl"), "--reward-name", name]) == 2
    assert main(["tree", str(tmp_path / "log.jsonl"), "--completion-name", "gone"]) == 2
    assert (
        'line 1 of log.jsonl has neither "completions" nor "completion", only "t", "q"'
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("as_text", [False, True])
def test_the_steps_that_are_drawn(as_text, tmp_path, capsys):
    rows = [row | {"step": str(row["step"]) if as_text else row["step"]} for row in ROWS]
    (tmp_path / "log.jsonl").write_text(lines(rows[8:] + rows[:8]))
    found = read_completions(read_log(str(tmp_path / "log.jsonl"))[0])[0]
    assert {group[0].step for group in choose_steps(found, ["9"])} == {rows[0]["step"]}
    assert {group[0].step for group in choose_steps(found, [], last=True)} == {
        rows[8]["step"]
    }  # the largest, not the latest line
    assert len(choose_steps(found, ["9", "10"])) == len(choose_steps(found, [])) == 4
    assert main(["tree", str(tmp_path / "log.jsonl"), "--step", "10", "--show", "9"]) == 0
    assert capsys.readouterr().out.count("prompt   ") == 2
    assert main(["tree", str(tmp_path / "log.jsonl"), "--step", "11"]) == 2
    assert 'no group is of step "11"; their steps are: "9", "10"' in capsys.readouterr().err


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
@pytest.mark.parametrize("name", ["log.jsonl", "log.csv"])
def test_encodings(codec, name, tmp_path, monkeypatch, capsys):
    rows = [{"prompt": "é", "completion": c, "reward": 1} for c in "äö"]
    text = (
        table(rows)
        if name == "log.csv"
        else "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    )
    (tmp_path / name).write_bytes(text.encode(codec))
    if codec in ("utf-16-le", "latin-1"):
        with pytest.raises(ValueError, match=f"{name} .*write it as UTF-8"):
            read(tmp_path / name)
        return
    assert read(tmp_path / name)[0][0].texts == ["ä", "ö"]
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode(codec)), encoding="ascii")
    )
    assert main(["tree", "-"]) == 0 and "ä" in capsys.readouterr().out


# -- what strangers' logs held ---------------------------------------------------------------------


def noted(rows, **names):
    names = NAMES | {kind: (name,) for kind, name in names.items()}
    found, notes = read_completions(
        [(*item, "") for item in parse(lines(rows), "log.jsonl", names)], names
    )
    return [[c.reward for c in group] for group in found], " ".join(notes)


@pytest.mark.parametrize(
    ("steps", "last"),
    [
        ([0.125, 0.25, 0.5, 0.75], 0.75),
        (["0.5", "0.125", "1e-3"], "0.5"),
        ([-3, -20, -10], -3),
        (["epoch 0.125", "epoch 0.5"], "epoch 0.5"),
        ([9, 10.0, "2"], 10.0),
        ([2**53, 2**53 + 1], 2**53 + 1),
    ],
)
def test_the_last_step_is_the_largest_number(steps, last):
    found = read_completions([("", {"step": s, "completion": c}, "") for s in steps for c in "ab"])[
        0
    ]
    assert {group[0].step for group in choose_steps(found, last=True)} == {last}
    assert len(choose_steps(found, [str(last)])) == 1


def test_one_step_written_in_two_ways_is_one():
    found = read_completions(
        [("", {"step": s, "completion": "a"}, "") for s in (10, "10", 10.0, 9)]
    )[0]
    assert [len(group) for group in found] == [3, 1]
    assert choose_steps(found, last=True) == choose_steps(found, ["10.0"]) == found[:1]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
@pytest.mark.parametrize(
    "ways", [(1, 1.0, "1"), ("1", "1.0"), ("0.5", 0.5), (True, True), (None, float("nan"))]
)
def test_lines_of_one_step_are_one_group_however_it_is_written(ways, form, tmp_path):
    """Interleaved, as workers write them.  A step that is not a number is none: pandas' null."""
    rows = [
        {"step": way, "prompt": p, "completion": c, "reward": r}
        for c, r in (("a b", 1), ("a c", 0))
        for p in "pq"
        for way in ways
    ]
    if form == "csv" and None in ways:
        return
    (tmp_path / f"log.{form}").write_text(table(rows) if form == "csv" else lines(rows))
    groups, _ = read(tmp_path / f"log.{form}")
    rewards = sorted([1.0, 0.0] * len(ways))
    assert [sorted(g.rewards.tolist()) for g in groups] == [rewards, rewards]
    assert None not in ways or {g.step for g in groups} == {None}


def test_a_group_id_is_one_number_as_int_and_as_float_but_texts_are_left_alone():
    ids = [1, 1.0, 1, 1.0, "1e2", "100", "1e2", "100"]
    rows = [{"step": 1, "group": g, "completion": "a"} for g in ids]
    found, _ = read_completions([("", row, "") for row in rows])
    assert [len(group) for group in found] == [4, 2, 2]


@pytest.mark.parametrize("step", ["1e400", "1e999999999", 10**400, "-1e301", "sNaN", "Infinity"])
def test_a_step_beyond_all_bounds_is_a_text(step, tmp_path, capsys):
    """It was Infinity in the JSON, and a traceback of the figure."""
    rows = [row | {"step": step if row["step"] == 9 else 1} for row in ROWS]
    (tmp_path / "log.jsonl").write_text(lines(rows))
    told = ["tree", str(tmp_path / "log.jsonl"), "--json", str(tmp_path / "n.json")]
    assert main([*told, "--numbers", str(tmp_path / "n.png")]) == 2
    err = capsys.readouterr().err
    assert "two or more steps that are numbers; here are" in err and err.count("\n") == 1

    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads((tmp_path / "n.json").read_text(), parse_constant=refuse)
    assert [row["step"] for row in found["steps"]] == [str(step), 1]


def test_the_number_of_a_file_may_have_a_point(tmp_path):
    for step in ("0.125", "0.5"):
        (tmp_path / f"step_{step}.jsonl").write_text(
            lines([{"completion": "a"}, {"completion": "b"}])
        )
    assert [group.step for group in read(tmp_path)[0]] == [0.125, 0.5]


@pytest.mark.parametrize(
    ("field", "name"), [("completion_ids", None), ("completion", None), ("own", "own")]
)
def test_ids_as_texts_are_ids(field, name, tmp_path):
    names, cells = {"completion": name} if name else {}, ["[1, 2]", "[1,2, 3]", "[]"]
    rows = [{"prompt": "p", field: cell} for cell in cells]
    (tmp_path / "a.csv").write_text(table(rows), newline="")
    (group,), notes = read(tmp_path / "a.csv", **names)
    assert group.labels is None and group.unit == "tokens" and "token ids" in " ".join(notes)
    assert group.sequences == [[1, 2], [1, 2, 3], []]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert read(tmp_path / "a.json", **names)[0][0].sequences == group.sequences


@pytest.mark.parametrize("cell", ["[1, 2, ..., 9]", "[1 2]", "['a']", "[1.5]", "[-1]", "[1e99]"])
def test_ids_as_texts_that_are_no_ids_are_refused(cell):
    lists_of_numbers = ["completion"] if cell in ("[1, 2, ..., 9]", "[1 2]") else []
    for field in ["completion_ids", *lists_of_numbers]:
        with pytest.raises(ValueError, match=r"line 2.* token id"):
            read_groups(lines([{field: "[1, 2]"}, {field: cell}]))


@pytest.mark.parametrize(
    "cells", [["(1-2)", "(2+e)"], ["[1.5]", "[2.5]"], ["(1)", "(2)"], ["7", "8"]]
)
def test_answers_in_brackets_stay_texts(cells):
    assert read_groups(lines({"completion": cell} for cell in cells))[0].texts == cells


def test_texts_that_hold_some_lists_stay_texts():
    (group,) = read_groups(lines([{"completion": "[1, 2]"}, {"completion": "the list [1, 2]"}]))
    assert group.texts == ["[1, 2]", "the list [1, 2]"]


@pytest.mark.parametrize(
    "dump", [json.dumps, repr, lambda chat: repr(chat).replace("'role'", "'content'", 1)]
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_chats_as_texts_are_chats_or_refused(dump, name, tmp_path):
    chats = [dump([{"role": "assistant", "content": text}]) for text in TEXTS[:3]]
    rows = [{"prompt": "p", "completion": chat} for chat in chats]
    (tmp_path / name).write_text(table(rows) if name == "a.csv" else lines(rows), newline="")
    if dump is json.dumps:
        assert read(tmp_path / name)[0][0].texts == TEXTS[:3]
    else:
        with pytest.raises(ValueError, match=rf"line \d of {name} holds a chat as a text"):
            read(tmp_path / name)


TOTAL = np.add(A, B).tolist()


@pytest.mark.parametrize("total", ["total_reward", "rewardSum", "reward/overall"])
def test_a_total_is_not_added_to_its_parts(total):
    (rewards,), notes = noted(
        trl(scaled(TOTAL), accuracy_reward=A, format_reward=B, **{total: TOTAL})
    )
    assert rewards == TOTAL and "accuracy_reward + format_reward" in notes
    weighted = np.add(A, np.multiply(0.1, B)).tolist()
    assert noted(trl(scaled(weighted), accuracy_reward=A, format_reward=B, **{total: weighted}))[
        0
    ] == [weighted]


def test_what_is_said_of_rewards_is_none():
    (rewards,), _ = noted(
        trl(scaled(A), acc_reward=A, reward_mean=[0.5] * 4, reward_std=[0.577] * 4)
    )
    assert rewards == A


@pytest.mark.parametrize(
    "rows",
    [
        trl(
            scaled(TOTAL), accuracy_reward=A, format_reward=B, the_reward=TOTAL
        ),  # which is a total, by another name
        trl(scaled(A), accuracy_reward=A, format_reward=A),
        trl([0.7071, -0.7071], a_reward=[1, 0], b_reward=[5, 3]),
        [{"completion": c, "rewards": {"a": 1, "b": 0.5, "all": 1.5}} for c in "xy"],
        [{"completion": c, "rewards": {"a": 1, "b": 0.5, "total": 1.05}} for c in "xy"],
    ],
)
def test_readings_that_cannot_be_told_apart_are_refused(rows):
    with pytest.raises(ValueError, match="--reward-name"):
        noted(rows)


def test_dicts_with_totals():
    """Without advantages a total is refused; with them it is not added to its parts."""
    rewards = [{"accuracy": a, "format": b, "total": a + b} for a, b in zip(A, B, strict=True)]
    rows = [{"prompt": "p", "completion": "x", "rewards": r} for r in rewards]
    with pytest.raises(ValueError, match="'total' seems to be made of others"):
        noted(rows)
    rows = [row | {"rewards": r} for row, r in zip(trl(scaled(TOTAL)), rewards, strict=True)]
    assert noted(rows)[0] == [TOTAL]


@pytest.mark.parametrize("name", ["a", "a,b", "b", "a,b:-1"])
def test_a_chosen_reward_that_contradicts_the_advantages_is_said(name):
    rows = trl(scaled(np.add(A, np.multiply(-0.1, B))), a=A, b=B)
    assert "as asked, but 'advantage' is not its advantage" in noted(rows, reward=name)[1]
    (rewards,), notes = noted(rows, reward="a, b:-0.1")
    assert np.allclose(rewards, np.add(A, np.multiply(-0.1, B))) and "as asked" not in notes


def test_truths_may_be_rewards():
    right = [a == 1 for a in A]
    (rewards,), notes = noted(trl(scaled(A), correct=right, length=LENGTH))
    assert rewards == A and "the reward is correct" in notes
    assert noted(trl(scaled(A), correct=right, truncated=[False] * 4))[0] == [A]
    for cols in (
        {"correct": [True, False], "length": [5, 3]},
        {"correct": [True, False], "short": [True, False]},
    ):
        with pytest.raises(ValueError, match=r"several of .*correct.* choose with --reward-name"):
            noted(trl([0.7071, -0.7071], **cols))


@pytest.mark.parametrize("value", ["1.0", "NA", ["1"]])
@pytest.mark.parametrize("stated", [{"advantage": 0.5}, {}])
def test_rewards_that_are_no_numbers_are_said(value, stated):
    rows = [
        {"completion": "a", "accuracy_reward": value} | stated,
        {"completion": "b", "accuracy_reward": 1.0} | stated,
    ]
    assert (
        f"'accuracy_reward' is no reward, as line 1 of log.jsonl has {json.dumps(value)}"
        in noted(rows)[1]
    )
    rows = [{"completion": c, "advantage": 0.5, "acc": "x"} for c in "ab"]
    assert "no rewards: no field but 'advantage' holds a number" in noted(rows)[1]


def test_files_of_a_folder_that_are_other_logs(tmp_path):
    rows = [{"step": 1, "prompt": "p", "completion": c} for c in "abcd"]
    names = ["a/x", "b/y", "c/train", "c/eval", "d/part-0", "d/part-1", "b/samples"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.jsonl").write_text(lines(rows))
        groups, notes = read(tmp_path)
        if name == "d/part-1":  # parts of one log; the others are logs of their own
            assert [len(g.sequences) for g in groups] == [4, 4, 4, 4, 8]
    assert [len(g.sequences) for g in groups] == [4]
    beside = ", ".join(str(Path(f"{name}.jsonl")) for name in sorted(names[:-1]))
    assert notes[0] == f"left out, beside samples.jsonl: {beside}"


def test_the_last_of_several_turns_is_the_completion(tmp_path):
    rows = [
        {"step": r["step"], "reward": r["reward"]}
        | {"messages": [*r["prompt"], *CHATS[0]["completion"], *r["prompt"], *r["completion"]]}
        for r in CHATS
    ]
    (tmp_path / "turns.jsonl").write_text(lines(rows))
    groups, _ = read(tmp_path / "turns.jsonl")
    assert shape(groups) == FOUR and groups[0].texts == TEXTS[:4]


NOT_READ = {  # each is refused with what was found, or with the line
    "pandas.json": json.dumps({k: {str(i): row[k] for i, row in enumerate(ROWS)} for k in ROWS[0]}),
    "index.json": json.dumps({str(i): row for i, row in enumerate(ROWS)}),
    "schema.json": json.dumps({"schema": {"fields": []}, "data": ROWS}),
    "excel.csv": "sep=;\r\n" + table(ROWS, ";"),
    "spaces.csv": table(ROWS).replace(",", ", "),
    "lists.jsonl": lines(row | {"reward": [row["reward"]]} for row in ROWS),
}


@pytest.mark.parametrize("name", NOT_READ)
def test_other_forms_are_refused(name, tmp_path):
    (tmp_path / name).write_text(NOT_READ[name], encoding="utf-8", newline="")
    with pytest.raises(ValueError, match=r"completion-name|token ids|reward of line 1"):
        read(tmp_path / name)


def test_names_in_capitals_are_the_known_ones(tmp_path):
    forms = {"plain.jsonl": lines(ROWS), "plain.csv": table(ROWS)}
    forms["capitals.jsonl"] = lines({k.capitalize(): v for k, v in row.items()} for row in ROWS)
    forms["CAPITALS.csv"] = table([{k.upper(): v for k, v in row.items()} for row in ROWS])
    forms["spaces.jsonl"] = lines({f" {k}": v for k, v in row.items()} for row in ROWS)
    found = []
    for name, text in forms.items():
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        groups, _ = read(tmp_path / name)
        found.append([(g.texts, [list(s) for s in g.sequences], list(g.rewards)) for g in groups])
    assert all(form == found[0] for form in found)


def test_a_name_that_was_asked_for_is_not_another():
    rows = [{"completion": c, "Reward": i, "reward": 7} for i, c in enumerate("ab")]
    assert read_groups(lines(rows), reward_name="Reward")[0].rewards.tolist() == [0, 1]
    assert read_groups(lines(rows))[0].rewards.tolist() == [7, 7]


@pytest.mark.parametrize(
    "text",
    ['[{"name":"bot","role":"assistant","content":"ab"}]', "[{'role': 'user', 'content': 'a'}]"],
)
def test_a_chat_in_a_text_is_a_chat_or_refused(text):
    rows = [{"completion": text, "reward": 1}, {"completion": text, "reward": 0}]
    if "'" in text:
        with pytest.raises(ValueError, match="holds a chat as a text that is no JSON"):
            read_groups(lines(rows))
    else:
        assert read_groups(lines(rows))[0].texts == ["ab", "ab"]


@pytest.mark.parametrize("texts", [["[1.0, 2.0]", "[1.0, 3.0]"], ["[1, 2]", ""], ["[1, 2]", "[]"]])
def test_token_ids_in_texts(texts):
    (group,) = read_groups(lines({"completion": t, "reward": i} for i, t in enumerate(texts)))
    assert [list(s) for s in group.sequences] == [
        [int(float(v)) for v in json.loads(t or "[]")] for t in texts
    ]


@pytest.mark.parametrize("part", ["NaN", "none", "-inf"])
def test_a_part_of_a_reward_that_is_a_text_in_place_of_a_number(part):
    rows = [{"completion": c, "rewards": {"acc": 1, "fmt": part}} for c in "ab"]
    with pytest.raises(ValueError, match="for 'fmt' of its reward: it must be a number"):
        read_groups(lines([*rows, {"completion": "c", "rewards": {"acc": 0, "fmt": 1}}]))
    with pytest.raises(ValueError, match="it must be a number"):
        read_groups(lines({"completion": c, "rewards": {"acc": "good"}} for c in "ab"))


@pytest.mark.parametrize("value", [float("inf"), 1e301])
def test_a_column_that_is_not_finite_beside_advantages(value):
    rows = [
        {"completion": c, "advantage": a, "points": a} for c, a in zip("ab", (1, -1), strict=True)
    ]
    rows[1]["points"] = value
    with pytest.raises(ValueError, match="'points' is not finite, or too large, in"):
        read_groups(lines(rows))


def test_files_that_are_left_out_by_their_names_are_said(tmp_path):
    """A log of which half is packed gave the numbers of the other half without a word."""
    texts = {step: lines(row for row in ROWS if row["step"] == step) for step in (9, 10)}
    (tmp_path / "9.jsonl").write_text(texts[9])
    (tmp_path / "10.jsonl.gz").write_bytes(gzip.compress(texts[10].encode()))
    (tmp_path / "8.JSONL.bak").write_text(texts[9])
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "9.jsonl").write_text(texts[9])
    (tmp_path / "README.md").write_text("not a log by any name")
    groups, notes = read(tmp_path)
    assert shape(groups) == FOUR[:2]
    hidden = str(Path(".ipynb_checkpoints/9.jsonl"))
    assert notes[0] == f"left out, by name: {hidden}, 10.jsonl.gz, 8.JSONL.bak"


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, b"PAR1\xff".__add__])
def test_packed_files_are_refused_as_what_they_are(pack, tmp_path, capsys):
    (tmp_path / "log.jsonl").write_bytes(pack(lines(ROWS).encode()))
    assert main(["tree", str(tmp_path / "log.jsonl")]) == 2
    told = "log.jsonl is compressed (unpack it) or Parquet (end its name in .parquet)"
    assert capsys.readouterr().err == f"minigrpo tree: {told}\n"


def test_a_partition_names_the_step(tmp_path):
    for step in (9, 10):
        (tmp_path / f"step={step}").mkdir()
        own = [{k: v for k, v in r.items() if k != "step"} for r in ROWS if r["step"] == step]
        (tmp_path / f"step={step}" / "part-0.jsonl").write_text(lines(own))
    assert shape(read(tmp_path)[0]) == FOUR


def test_a_damaged_parquet_file_is_named(tmp_path):
    pyarrow, parquet = (pytest.importorskip(f"pyarrow{name}") for name in ("", ".parquet"))
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[:60] + bytes(200) + data[260:])
    with pytest.raises(ValueError, match=r"^a\.parquet: "):
        read(tmp_path / "a.parquet")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "gone.parquet")


@pytest.mark.parametrize("flag", ["--json", "--html", "--out", "--numbers"])
@pytest.mark.parametrize("given", ["log", "folder", "link", "twice", "tokenizer"])
def test_no_output_is_written_over_a_file_that_is_read_or_written(flag, given, tmp_path, capsys):
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "log.jsonl"
    log.write_text(lines(ROWS))
    (tmp_path / "link.jsonl").symlink_to(log)
    read_from = {"folder": log.parent}.get(given, log)
    output = {"link": tmp_path / "link.jsonl", "twice": tmp_path / "x.svg"}.get(given, log)
    more = []
    if given == "twice":
        more = ["--out" if flag == "--html" else "--html", str(output)]
    if given == "tokenizer":
        output = tmp_path / "tokenizer.json"
        output.write_text("{}")
        more = ["--tokenizer", str(output)]
    assert main(["tree", str(read_from), *more, flag, str(output)]) == 2
    err = capsys.readouterr().err
    assert f"{output} would be lost: it is read, or written already" in err
    assert log.read_text() == lines(ROWS) and not (tmp_path / "x.svg").exists()


def test_messages_in_a_folder(tmp_path):
    for name, role in (("a.jsonl", "assistant"), ("b.jsonl", "user")):
        (tmp_path / name).write_text(
            lines(
                [{"messages": [{"role": "user", "content": "q"}, {"role": role, "content": "a"}]}]
                * 2
            )
        )
    groups, notes = read(tmp_path)
    assert [g.texts for g in groups] == [["a", "a"]] and 'b.jsonl ("messages")' in notes[0]


def test_a_huge_part_of_rewards_is_refused_as_a_number():
    with pytest.raises(ValueError, match="must be a finite number"):
        read_groups(
            lines({"completion": c, "rewards": {"a": 10**400, "b": 1, "c": 2}} for c in "xy")
        )


@pytest.mark.parametrize(
    ("kind", "name"),
    [("group", "uid"), ("group", "example_id"), ("prompt", "prompt"), ("step", "step")],
)
def test_the_field_that_tells_all_apart_is_named(kind, name, tmp_path, capsys):
    rows = [{"prompt": "p", "completion": c, "q": 1} | {name: i} for i, c in enumerate("abcd")]
    (tmp_path / "log.jsonl").write_text(lines(rows))
    assert main(["tree", str(tmp_path / "log.jsonl")]) == 2
    assert (
        f'"{name}" tells them apart; --{kind}-name names another field' in capsys.readouterr().err
    )
    assert main(["tree", str(tmp_path / "log.jsonl"), f"--{kind}-name", "q"]) == 0


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.jsonl",
            lines([ROWS[0], {"text": 1, "n": 2}]),
            r'line 2 of a.jsonl has neither .* only "text", "n"; --completion-name',
        ),
        ("a.jsonl", lines([ROWS[0]]) + "\n{oops}", "malformed JSON at line 2, column 2 of a.jsonl"),
        (
            "a.json",
            '{"global_step": 1, "text": "2+2=4", "reward": 1}',
            'the group of a.json has neither .*"global_step", "text"',
        ),
        (
            "a.json",
            '{"columns": ["completion", "reward"], "data": [["a"]]}',
            'row 0 .from 0. of a.json has 1 fields, not one .*"reward"',
        ),
        (
            "a.json",
            '{"columns": ["completion", "completion"], "data": [["a", "b"]]}',
            "row 0 .from 0. of a.json has 2 fields, not one for each",
        ),
        (
            "a.json",
            '{"columns": ["completion"], "data": ["a"]}',
            "row 0 .from 0. of a.json has no fields",
        ),
        ("a.json", '{"columns": ["completion"], "data": []}', "the list of a.json is empty"),
        ("a.json", '{"prompt": [], "completion": [], "reward": []}', "no completions"),
        (
            "a.json",
            '{"prompt": ["p", "q"], "completion": [[1], [2], [3]]}',
            "has 3 completion but 2 prompt",
        ),
        (
            "a.json",
            '{"prompt": ["p"], "completions": ["a", "b"]}',
            "has 2 completions but 1 prompt",
        ),
        (
            "a.csv",
            "completion,reward\na\n",
            'line 2 of a.csv has 1 fields, not one for each of "completion", "reward"',
        ),
        ("a.csv", 'completion,reward\n"a,1\n', "malformed CSV of a.csv"),
        ("a.csv", "text,reward\na,1\n", "the header of a.csv has no completion, .*: text,reward"),
        ("a.csv", "completion,reward\n", "the table of a.csv has neither"),
        (
            "a.csv",
            "completion\n\"[{'role': 'assistant', 'content': 'x'}]\"\n",
            "line 2 of a.csv holds a chat as a text",
        ),
        ("a.parquet", "PAR1", "a.parquet"),
        ("a.txt", "hello", "malformed JSON at line 1, column 1 of a.txt"),
        ("a.txt", "hello " * 50_000, "malformed JSON at line 1, column 1 of a.txt"),
        ("a.csv", '"he\rllo,completion\nx,y\n', "malformed CSV of a.csv"),
    ],
)
def test_errors_name_file_line_and_keys(name, text, message, tmp_path):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)


def test_a_tree_that_no_memory_holds_is_refused(monkeypatch):
    monkeypatch.setattr(groups_module, "MAX_CELLS", 100)
    read_groups(json.dumps({"completions": ["a" * 50, "b"]}))
    told = "the 2 completions from completion 0 .from 0. of the group on are too long for one tree"
    with pytest.raises(ValueError, match=f"{told}: 102 places"):
        read_groups(json.dumps({"completions": ["a" * 51, "b"]}))


def test_matplotlib_is_only_imported_for_a_figure(tmp_path):
    (tmp_path / "log.jsonl").write_text(lines(ROWS))
    code = "import sys; from minigrpo.command.cli import main; main(sys.argv[1:]); "
    code += "sys.exit('matplotlib' in sys.modules)"
    command = [sys.executable, "-c", code, "tree", str(tmp_path / "log.jsonl")]
    root = Path(__file__).parent.parent
    assert subprocess.run(command, capture_output=True, cwd=root).returncode == 0


def test_mutated_logs_are_read_or_refused(capsys):
    counts = fuzz(250, seed=0)
    assert counts.keys() == {"accepted", "refused"} and counts["accepted"] > 60, (
        capsys.readouterr().out
    )
