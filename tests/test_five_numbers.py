"""The five numbers of a log against values worked out by hand, and against a second program that is
written from their definitions alone: no tree, no NumPy.
"""

import itertools
import json
import math
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from test_logs import FORMATS, lines

from minigrpo.command.cli import main
from minigrpo.logs.five_numbers import five_numbers, five_numbers_text, group_sums, ratios
from minigrpo.logs.grouping import read_completions
from minigrpo.logs.groups import Group, make_groups, read_groups
from minigrpo.logs.rows import NAMES, read_log
from minigrpo.objectives import Objective
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train
from minigrpo.show.plots import metrics_figure
from minigrpo.tree import PrefixTree, Rollouts

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import predictiveness

ROOT = Path(__file__).parents[1]
CHANCE = "held_back_chance"  # a mean over 200 permutations; the exact one is over all of them


def group(sequences, rewards, step=None, prompt_length=None):
    rewards = None if rewards is None else np.array(rewards, dtype=float)
    return Group("", sequences, rewards, None, "tokens", step, prompt_length)


def numbers(*groups):
    return five_numbers(groups)["all"]


def by_definition(groups):
    """groups: [(sequences, rewards)].   The chance level is exact: all orders of the rewards."""
    uv = uu = vv = u_all = u_shared = v_all = v_shared = 0.0
    dead = good = held = by_chance = tokens = distinct = 0
    for sequences, rewards in groups:
        k, mean = len(rewards), statistics.fmean(rewards)
        members = defaultdict(list)  # of each (prefix, token)
        for i, sequence in enumerate(sequences):
            for t in range(len(sequence)):
                members[tuple(sequence[: t + 1])].append(i)
        length = sum(map(len, sequences))
        tokens, distinct = tokens + length, distinct + len(members)
        if len(set(rewards)) == 1:
            dead += 1
            continue
        std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (k - 1))
        a = [(r - mean) / (std + 1e-4) for r in rewards]

        def pushed_down(a, those):
            return math.fsum(a[i] for i in those) < -1e-12

        def count_held(a, members=members, k=k):
            down = [m for m in members.values() if len(m) > 1 and pushed_down(a, m)]
            return sum(a[i] > 0 and any(i in m for m in down) for i in range(k))

        for those in members.values():
            u = math.fsum(a[i] for i in those) / length
            v = u / len(those)
            uv, uu, vv = uv + u * v, uu + u * u, vv + v * v
            u_all, v_all = u_all + abs(u), v_all + abs(v)
            if len(those) > 1:
                u_shared, v_shared = u_shared + abs(u), v_shared + abs(v)
        good += sum(x > 0 for x in a)
        held += count_held(a)
        by_chance += statistics.fmean(map(count_held, itertools.permutations(a)))
    return {
        "dead_groups": dead / len(groups),
        "cosine": uv / math.sqrt(uu * vv),
        "shared_push_grpo": u_shared / u_all,
        "shared_push_lambda_grpo": v_shared / v_all,
        "held_back": held / good,
        CHANCE: by_chance / good,
        "tokens_over_distinct": tokens / distinct,
    }


def check(found, expected, apart=0.06):
    assert abs(found[CHANCE] - expected[CHANCE]) < apart
    exact = {name: x for name, x in expected.items() if name != CHANCE}
    assert {name: found[name] for name in exact} == pytest.approx(exact, rel=1e-9, abs=1e-12)


# -- by hand ---------------------------------------------------------------------------------------


def test_one_group_by_hand():
    """ab 1, ac 0, ad 0, b 1.   mean ½, std √(4·¼/3) = 0.577; a = +c, -c, -c, +c with c = 0.866.

    node   |λ|   Σa    u·7/c   v·7/c          cosine = (1/3 + 4) / √(5 · (1/9 + 4)) = 0.95578
    a       3    -c     -1     -1/3           shared under GRPO: 1 of 5
    ab      1    +c     +1     +1                  under λ-GRPO: 1/3 of 1/3 + 4, 1/13
    ac      1    -c     -1     -1
    ad      1    -c     -1     -1             tokens 7, distinct 5; with the prompt "p" of one
    b       1    +c     +1     +1             character 7 + 4·1 and 5 + 1

    Above average are ab and b; ab passes a, which is shared and pushed down: 1 of 2.  By chance: a
    falls if one of the two rewards is at b (probability ½), and then the other one is held back, so
    ½ of 2.
    """
    text = '{"prompt": "p", "completions": ["ab", "ac", "ad", "b"], "rewards": [1, 0, 0, 1]}'
    found = five_numbers(read_groups(text))
    assert found["unit"] == "characters" and found["steps"] == []
    assert abs(found["all"].pop(CHANCE) - 0.25) < 0.05
    assert found["all"] == pytest.approx(
        {
            "groups": 1,
            "groups_with_rewards": 1,
            "completions": 4,
            "dead_groups": 0,
            "cosine": (1 / 3 + 4) / math.sqrt(5 * (1 / 9 + 4)),
            "shared_push_grpo": 1 / 5,
            "shared_push_lambda_grpo": 1 / 13,
            "held_back": 1 / 2,
            "tokens_over_distinct": 7 / 5,
            "tokens_over_distinct_with_prompts": 11 / 6,
        },
        rel=1e-12,
    )


def test_groups_of_unequal_size_and_length_by_hand():
    """The group above, and x 1, xy 0: a = ±d, d = ½/(0.70711 + 1e-4) = 0.70701, Σ|y| = 3.

    x is shared and its sum is 0, xy has -d: so u = v = (0, -d/3), and d²/9 = 0.055540.
    Above, (c/7)² with c = ½/(0.57735 + 1e-4) = 0.86588 is 0.015301.
    uv = 0.015301·(1/3 + 4) + 0.055540 = 0.121844     uu = 0.015301·5 + 0.055540 = 0.132045
    vv = 0.015301·(1/9 + 4) + 0.055540 = 0.118444     cosine = 0.121844/√(…·…) = 0.97429
    GRPO: c/7 = 0.123697 of 5c/7 + d/3 = 0.854155: 0.144818
    λ-GRPO: c/21 = 0.041232 of 4c/7 + c/21 + d/3 = 0.771690: 0.053431
    Of three above-average completions one is held back; x itself is not, as x is not pushed down.
    Tokens: 7 + 3 of 5 + 2.
    """
    first = group([[0, 1], [0, 2], [0, 3], [1]], [1, 0, 0, 1])
    found = numbers(first, group([[8], [8, 9]], [1, 0]))
    by_hand = {"cosine": 0.97429, "shared_push_grpo": 0.144818}
    by_hand |= {"shared_push_lambda_grpo": 0.053431, "held_back": 1 / 3}
    by_hand["tokens_over_distinct"] = 10 / 7
    assert {name: found[name] for name in by_hand} == pytest.approx(by_hand, abs=1e-5)


WORDS = {  # of the fixture of tests/test_logs.py, for either of its two equal steps; see below
    "dead_groups": 0.0,
    "cosine": (74 / 3) / math.sqrt(36 * 173 / 9),
    "shared_push_grpo": 1 / 2,
    "shared_push_lambda_grpo": 11 / 35,
    "held_back": 0.0,
    "tokens_over_distinct": 15 / 9,
}


@pytest.mark.parametrize("name", FORMATS)
def test_foreign_formats_by_hand(name, tmp_path):
    """TRL, verl, open-instruct, ms-swift, prime-rl, OpenRLHF, W&B tables, CSV.

    "4 is it" 1, "4 is not" 0, "five" 0, "4 is it" 1: a = ±c with c = 0.866, Σ|y| = 10.
    node       |λ|  Σa/c  v·10/c
    4           3    +1    1/3                uu = 1 + 1 + 4 + 1 + 1 = 8
    4 is        3    +1    1/3                vv = 1/9 + 1/9 + 1 + 1 + 1 = 29/9
    4 is it     2    +2     1                 uv = 1/3 + 1/3 + 2 + 1 + 1 = 14/3
    4 is not    1    -1    -1                 |u| = 6, shared 4; |v| = 11/3, shared 5/3
    five        1    -1    -1
    "6" 1, "7" 0, "6 yes" 1, "8" 0: the same c, Σ|y| = 5, so squares count (10/5)² = 4 times.
    6           2    +2    +1                 uu = 7, vv = 4, uv = 5
    6 yes       1    +1    +1                 |u| = 5, shared 2; |v| = 4, shared 1
    7, 8        1    -1    -1                 (and |u|, |v| count twice)
    Together: uv = 14/3 + 20 = 74/3, uu = 8 + 28 = 36, vv = 29/9 + 16 = 173/9; shared under GRPO
    (4 + 4)/(6 + 10) = 1/2, under λ-GRPO (5/3 + 2)/(11/3 + 8) = 11/35.  No shared step is pushed
    down.  By chance: of the 6 pairs that may be right in the first group, three hold "five", and
    then 4 and "4 is" fall with one right completion; in the second, "6" falls only if both of its
    own are wrong.  So 3·1/6 + 0 of 2 + 2 are held back, 1/8.  Words: 10 + 5, of which 5 + 4
    distinct; prompts have one word each, so with them (15 + 8)/(9 + 2).
    """
    (tmp_path / name).write_text(FORMATS[name], encoding="utf-8", newline="")
    found, _ = read_completions(*[read_log(str(tmp_path / name), NAMES)[0]])
    groups = make_groups(found)
    out = five_numbers(groups)
    assert [row["step"] for row in out["steps"]] == [9, 10]
    of_ids = groups[0].labels is None  # open-instruct logs token ids: bytes here
    assert out["unit"] == ("tokens" if of_ids else "words")
    expected = by_definition([(g.sequences, g.rewards.tolist()) for g in groups])
    if not of_ids:
        assert expected == pytest.approx(WORDS | {CHANCE: 1 / 8}, rel=1e-12)
    for row in (out["all"], *out["steps"]):
        check(row, expected, 0.08)
    both = {row["tokens_over_distinct_with_prompts"] for row in (out["all"], *out["steps"])}
    if name.startswith("prime-rl"):
        assert both == {None}  # a task's index is no prompt
    elif of_ids:
        length = len(json.loads(groups[0].prompt))
        per_step = [g for g in groups if g.step == groups[0].step]
        tokens = sum(sum(map(len, g.sequences)) + 4 * length for g in per_step)
        distinct = sum(PrefixTree.from_sequences(g.sequences).n_nodes + length for g in per_step)
        assert both == {tokens / distinct}
    else:
        assert both == {23 / 11}


# -- against the second program --------------------------------------------------------------------


def random_groups(seed):
    rng, groups = np.random.default_rng(seed), []
    for _ in range(12):
        k = int(rng.integers(2, 6))
        sequences = [rng.integers(2, size=rng.integers(5)).tolist() for _ in range(k)]
        kind = rng.integers(3)
        rewards = rng.integers(2, size=k) if kind else rng.normal(size=k).round(2)
        groups.append((sequences, rewards.astype(float).tolist()))
    return groups


@pytest.mark.parametrize("seed", range(4))
def test_random_groups(seed):
    """Of two tokens and up to four of them: many duplicates, prefixes and empty completions."""
    groups = random_groups(seed)
    check(numbers(*(group(*one) for one in groups)), by_definition(groups), 0.04)


def test_pushes_are_those_of_the_presets():
    for sequences, rewards in random_groups(7):
        if len(set(rewards)) == 1 or not any(sequences):
            continue
        completions = [np.array(s, dtype=np.int64) for s in sequences]
        tree = PrefixTree.from_sequences(completions)
        zero, whole = np.zeros(tree.n_nodes), np.zeros(len(rewards), dtype=bool)
        rollouts = Rollouts([np.zeros(0, int)], [completions], tree, zero, zero, whole, 1.0, 4)
        u, v = (
            Objective.preset(name).coefficients(rollouts, rewards).push
            for name in ("grpo", "lambda_grpo")
        )
        found = numbers(group(sequences, rewards))
        if np.abs(u).max() < 1e-9:
            assert found["cosine"] is None and found["shared_push_grpo"] is None
            continue
        assert found["cosine"] == pytest.approx(u @ v / np.linalg.norm(u) / np.linalg.norm(v))
        for push, name in ((u, "grpo"), (v, "lambda_grpo")):
            shared = np.abs(push[tree.count > 1]).sum() / np.abs(push).sum()
            assert found[f"shared_push_{name}"] == pytest.approx(shared, abs=1e-12)


def test_our_own_log(tmp_path, capsys):
    settings = TrainSettings(task="treewalk", steps=3, log_samples_every=1, group_size=5)
    train(settings, tmp_path / "run", progress=False)
    records = [
        json.loads(line)
        for line in (tmp_path / "run" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert main(["tree", str(tmp_path / "run"), "--json", str(tmp_path / "numbers.json")]) == 0
    out = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    assert "Would λ-GRPO change this run?" in capsys.readouterr().out
    by_step = defaultdict(list)
    for r in records:
        by_step[r["step"], r.get("group", r["prompt"])].append((r["completion"], r["reward"]))
    logged = [tuple(map(list, zip(*rows, strict=True))) for rows in by_step.values()]
    assert len(logged) == out["all"]["groups"] and {len(s) for s, _ in logged} == {5}
    check(out["all"], by_definition(logged))


# -- edge cases ------------------------------------------------------------------------------------


def test_dead_groups_have_no_other_number_but_the_ratio():
    found = numbers(group([[1, 2], [1, 3]], [0.1 + 0.2, 0.3]), group([[1], [1]], [7, 7]))
    assert found["dead_groups"] == 1 and found["tokens_over_distinct"] == 6 / 4
    none = ("cosine", "shared_push_grpo", "shared_push_lambda_grpo", "held_back", CHANCE)
    assert {found[name] for name in none} == {None}
    assert "-" in five_numbers_text({"all": found, "unit": "tokens"})


def test_a_dead_group_changes_nothing_else():
    alive = group([[0, 1], [0, 2], [0, 3], [1]], [1, 0, 0, 1])
    alone, both = numbers(alive), numbers(alive, group([[5, 6], [5, 7]], [1, 1]))
    changed = {name for name in alone if alone[name] != both[name]}
    assert both["dead_groups"] == 0.5
    assert changed == {"groups", "groups_with_rewards", "completions", "dead_groups"} | {
        "tokens_over_distinct"
    }


def test_duplicates_that_cancel_push_nothing():
    """Three times the same text, rewards 0.1, 0.2, 0.3: every sum is 0 but for rounding."""
    found = numbers(group([[1, 2]] * 3, [0.1, 0.2, 0.3]))
    assert found["cosine"] is None and found["shared_push_grpo"] is None
    assert found["held_back"] == 0 and found[CHANCE] == 0 and found["tokens_over_distinct"] == 3


def test_an_average_completion_is_not_above_average():
    """Rewards 1, ½, 0: that of ½ passes a shared step that falls, but only the first one counts."""
    assert numbers(group([[1], [2, 3], [2, 4]], [1, 0.5, 0]))["held_back"] == 0


def test_words_beside_tokens_are_said():
    both = [{"completions": ["a b", "a c"], "rewards": [1, 0]}]
    both += [{"completions": [[1, 2], [1, 3]], "rewards": [1, 0]}]
    found = five_numbers(read_groups(lines(both)))
    assert found["unit"] == "tokens and words" and "--tokenizer" in five_numbers_text(found)


def test_groups_of_one_are_left_out():
    pair = group([[1, 2], [1, 3]], [1, 0])
    assert numbers(group([[1, 2, 3]], [1]), pair) == numbers(pair)
    with pytest.raises(ValueError, match="no group has two completions: log several"):
        numbers(group([[1, 2, 3]], [1]))


def test_empty_and_truncated_completions():
    """An empty completion counts in the mean; a prefix of another ends inside the tree."""
    found = numbers(group([[], [1], [1, 2]], [1, 0, 0]))
    check(found, by_definition([([[], [1], [1, 2]], [1.0, 0.0, 0.0])]))
    nothing = numbers(group([[], []], [1, 0]))
    assert nothing["tokens_over_distinct"] is None and nothing["cosine"] is None
    assert nothing["held_back"] == 0 and nothing["dead_groups"] == 0


@pytest.mark.parametrize(
    "rewards", [[1e16, 1e16 + 2, 1e16, 1e16], [1e99, -1e99, 0, 0], [1, 0, 0, 0]]
)
def test_large_rewards(rewards):
    """Only differences count: 10¹⁶ + 2 among 10¹⁶ is the one completion above the average."""
    found = numbers(group([[1, 2], [1, 3], [1, 4], [5]], rewards))
    assert 0 < found["cosine"] <= 1 and found["dead_groups"] == 0


def test_groups_without_rewards_count_for_the_ratio_alone(tmp_path, capsys):
    pair = group([[0, 1], [0, 2], [0, 3], [1]], [1, 0, 0, 1])
    found = numbers(pair, group([[1, 2], [1, 3]], None))
    assert found["groups"] == 2 and found["groups_with_rewards"] == 1
    assert found["cosine"] == numbers(pair)["cosine"] and found["tokens_over_distinct"] == 11 / 8
    rows = [{"prompt": p, "completion": c} for p in "pq" for c in ("a b", "a c")]
    (tmp_path / "log.jsonl").write_text(lines(rows), encoding="utf-8")
    assert main(["tree", str(tmp_path / "log.jsonl"), "--show", "0"]) == 0
    assert "2 of 2 groups" in capsys.readouterr().out


def test_prompts_that_are_not_known_are_not_counted():
    def ratio(**prompt):
        rows = [{"completion": c, "reward": i} | prompt for i, c in enumerate(("a b", "a c"))]
        return numbers(*read_groups(lines(rows)))["tokens_over_distinct_with_prompts"]

    assert ratio(prompt="two words") == (4 + 4) / (3 + 2) and ratio(prompt="") == 4 / 3
    assert ratio() is ratio(env_name="gsm8k") is None
    chat = [{"role": "user", "content": "two words"}]
    assert ratio(prompt=chat) == (4 + 4) / (3 + 2)
    ids = [{"prompt": [7, 8], "completion": [1, i], "reward": i} for i in range(2)]
    assert numbers(*read_groups(lines(ids)))["tokens_over_distinct_with_prompts"] == 8 / 5
    known = [{"prompt": "a b", "completions": ["x y", "x z"], "rewards": [1, 0]}]
    unknown = [{"completions": ["p q", "p r", "s"], "rewards": [1, 0, 0]}]
    both = numbers(*read_groups(lines(known + unknown)))  # no ratio of other groups than the rest
    assert both["tokens_over_distinct"] == 9 / 7
    assert both["tokens_over_distinct_with_prompts"] is None
    ids = [row | {"prompt": "text"} for row in ids]
    assert numbers(*read_groups(lines(ids)))["tokens_over_distinct_with_prompts"] is None


def test_a_prompt_that_is_logged_otherwise_than_its_completion_is_not_counted():
    """Prompt ids beside texts were counted as the words of "[1, 2]"."""

    def length(**row):
        return make_groups(read_completions([("", row, "")])[0])[0].prompt_length

    assert length(prompt=[1, 2], completion="a b") is None
    assert length(prompt=[1, 2], completion=[3]) == 2
    assert length(prompt="a b c", prompt_ids=[1, 2], completion=[3]) is None
    assert length(prompt="a b c", prompt_ids=[1, 2], completion="d e") == 3
    assert length(env_name="x", prompt_ids=[1, 2], completion="d e") is None
    assert length(prompt=[{"role": "user", "content": "a b c d"}], completion="d e") == 4


def test_nothing_but_empty_completions_have_no_ratio():
    found = five_numbers([group([[], []], [1, 0])])
    assert "tokens over distinct     -: the most" in five_numbers_text(found)


# -- along steps, and the command line -------------------------------------------------------------


def test_along_steps():
    """In order, those without a step only in the whole; each as if it were alone."""
    groups = [
        group([[i, 1], [i, 2], [3]], [i % 2, 1, 0], step)
        for i, step in enumerate(["10", 9, 9.0, 10, None, "warm", "0.5"])
    ]
    out = five_numbers(groups)
    assert [row["step"] for row in out["steps"]] == ["warm", 0.5, 9, 10]
    assert json.loads(json.dumps(out, allow_nan=False)) == out
    assert out["all"]["groups"] == 7 and [row["groups"] for row in out["steps"]] == [1, 1, 2, 2]
    of_nine = numbers(groups[1], groups[2])
    same = {name: x for name, x in out["steps"][2].items() if name not in ("step", CHANCE)}
    assert same == {name: of_nine[name] for name in same}
    assert abs(out["steps"][2][CHANCE] - of_nine[CHANCE]) < 0.1


def log(tmp_path, steps=(1, 2)):
    texts = [("the cat sat", 1), ("the cat ran", 0), ("a dog", 0), ("the end", 1)]
    rows = [
        {"step": s, "prompt": "say it", "completion": t, "reward": r}
        for s in steps
        for t, r in texts
    ]
    (tmp_path / "log.jsonl").write_text(lines(rows), encoding="utf-8")
    return str(tmp_path / "log.jsonl")


def test_what_the_command_says_and_writes(tmp_path, capsys):
    file, figure = log(tmp_path), tmp_path / "numbers.svg"
    wanted = ["--json", str(tmp_path / "n.json"), "--numbers", str(figure)]
    assert main(["tree", file, "--show", "0", *wanted]) == 0
    out = capsys.readouterr().out
    row = json.loads((tmp_path / "n.json").read_text(encoding="utf-8"))["all"]
    for told in ("dead groups", "push on what is shared", "held back", "tokens over distinct"):
        assert told in out
    assert f"{row['cosine']:.3f}" in out and f"{row['shared_push_grpo']:.1%}" in out
    assert "words; --tokenizer FILE splits texts" in out
    assert figure.read_text(encoding="utf-8").startswith("<?xml")
    assert main(["tree", file, "--show", "0", "--ascii"]) == 0
    assert capsys.readouterr().out.isascii()
    one = log(tmp_path, (1,))
    assert main(["tree", one]) == 0 and "Would" not in capsys.readouterr().out
    assert main(["tree", one, "--json", "-x.json".replace("-", str(tmp_path / "y"))]) == 0
    assert "Would λ-GRPO" in capsys.readouterr().out


def test_panels_of_the_figure_are_smoothed_alike():
    """Dead steps have no cosine: its panel had fewer points, and no running mean beside others."""
    steps = range(42)
    pairs = [group([[1, s], [2]], [1, int(s % 4 == 0)], s) for s in steps]
    figure = metrics_figure(five_numbers(pairs)["steps"], ["dead_groups", "cosine", "held_back"])
    assert [len(ax.lines) for ax in figure.axes] == [2, 2, 3]


def test_an_output_may_be_a_pipe(tmp_path):
    command = [sys.executable, "-m", "minigrpo", "tree", log(tmp_path), "--json", "/dev/stdout"]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, text=True, encoding="utf-8")
    assert done.returncode == 0 and '"tokens_over_distinct"' in done.stdout, done.stderr


@pytest.mark.parametrize("steps", [(1,), ("early", "late")])
def test_a_figure_needs_steps(steps, tmp_path, capsys):
    assert main(["tree", log(tmp_path, steps), "--numbers", str(tmp_path / "n.png")]) == 2
    err = capsys.readouterr().err
    assert (
        "--numbers draws along two or more steps that are numbers" in err and "\n" not in err[:-1]
    )


def test_matplotlib_is_only_imported_for_the_figure(tmp_path):
    code = "import sys; from minigrpo.command.cli import main; main(sys.argv[1:]); "
    code += "sys.exit('matplotlib' in sys.modules)"
    command = [
        sys.executable,
        "-c",
        code,
        "tree",
        log(tmp_path),
        "--json",
        str(tmp_path / "n.json"),
    ]
    assert subprocess.run(command, capture_output=True, cwd=ROOT).returncode == 0


def test_a_tokenizer_splits_as_the_model_did(tmp_path, capsys):
    """The tree of tokens is not that of words: here every byte is one, but for a few merges."""
    pytest.importorskip("tokenizers")
    from tiny_language_model import EOS, MERGES, TOKENS, VOCABULARY, byte_level_tokenizer

    options = {"eos": EOS, "vocab_size": VOCABULARY, "split_digits": True}
    made = byte_level_tokenizer(TOKENS[:-1] + TOKENS[-1:], MERGES, ["<end>"], **options)
    (tmp_path / "tokenizer.json").write_text(made.to_json(), encoding="utf-8")
    texts = ["abc 12<end>", "abd é日<end>", "abc 1", "ab"]
    rewards = [1.0, 0.0, 0.0, 1.0]
    rows = [
        {"step": s, "prompt": "abc", "completion": c, "reward": r}
        for s in (1, 2)
        for c, r in zip(texts, rewards, strict=True)
    ]
    (tmp_path / "log.jsonl").write_text(lines(rows), encoding="utf-8")
    with_tokens = [
        "tree",
        str(tmp_path / "log.jsonl"),
        "--tokenizer",
        str(tmp_path / "tokenizer.json"),
    ]
    assert main([*with_tokens, "--json", str(tmp_path / "n.json"), "--show", "1"]) == 0
    told, row = capsys.readouterr().out, json.loads((tmp_path / "n.json").read_text())
    assert "<end>" in told and "--tokenizer FILE" not in told and row["unit"] == "tokens"
    ids = [made.core.encode(text, add_special_tokens=False).ids for text in texts]
    assert ids[0][-1] == EOS and len(ids[0]) == 5 and len(ids[3]) == 1  # abc, space, 1, 2, end; ab
    check(row["all"], by_definition([(ids, rewards)] * 2))
    distinct = len({tuple(s[: t + 1]) for s in ids for t in range(len(s))})
    ratio = (sum(map(len, ids)) + 4) / (distinct + 1)  # the prompt abc is one token
    assert row["all"]["tokens_over_distinct_with_prompts"] == pytest.approx(ratio)
    assert main([*with_tokens, "--unit", "words"]) == 2
    assert "--unit and --tokenizer both split texts" in capsys.readouterr().err
    (tmp_path / "log.jsonl").write_text(lines([{"completion": [1, 2], "reward": 1}] * 2))
    assert main(with_tokens) == 2
    assert "line 1 of log.jsonl is no text: a tokenizer splits texts" in capsys.readouterr().err
    assert main([*with_tokens[:-1], str(tmp_path / "none.json")]) == 2
    assert "none.json is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lossy", "text"),
    [
        ("unknown", "a é"),
        ("unknown", "a 東"),
        ("dropped", "a é"),
        ("lowered", "a B"),
        (None, "a é"),
    ],
)
def test_a_tokenizer_of_another_model_is_refused(lossy, text, tmp_path, capsys):
    """What it does not know became one token, or none, so that completions fell together."""
    tokenizers = pytest.importorskip("tokenizers")
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet() if not lossy else [" ", "a", "b"]
    vocabulary = {letter: i for i, letter in enumerate(["?", *sorted(letters)])}
    unknown = {"unk_token": "?"} if lossy == "unknown" else {}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], **unknown))
    core.decoder = tokenizers.decoders.Fuse()
    if not lossy:
        core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = tokenizers.decoders.ByteLevel()
    if lossy == "lowered":
        core.normalizer = tokenizers.normalizers.Lowercase()
    (tmp_path / "tokenizer.json").write_text(core.to_str(), encoding="utf-8")
    rows = [{"completion": c, "reward": i} for i, c in enumerate(("a b", text))]
    (tmp_path / "log.jsonl").write_text(lines(rows), encoding="utf-8")
    told = ["tree", str(tmp_path / "log.jsonl"), "--tokenizer", str(tmp_path / "tokenizer.json")]
    assert main(told) == (2 if lossy else 0)
    assert ("give that of the model which wrote it" in capsys.readouterr().err) == bool(lossy)


# -- do they predict? ------------------------------------------------------------------------------


def plain_spearman(pairs):
    """Pearson's correlation of ranks, the ranks of ties averaged."""

    def rank(values):
        order = sorted(values)
        return [order.index(v) + (order.count(v) - 1) / 2 for v in values]

    x, y = (rank(values) for values in zip(*pairs, strict=True))
    return statistics.correlation(x, y)


def test_rank_correlations_and_pooled_numbers():
    x, y = np.array([1.0, 2, 2, np.nan, 3]), np.array([10.0, 30, 20, 99, 40])
    # Ranks less their mean: -1.5, 0, 0, 1.5 and -1.5, 0.5, -0.5, 1.5; so 4.5/√(4.5·5).
    assert predictiveness.spearman(x, y) == pytest.approx(4.5 / math.sqrt(22.5))
    assert np.isnan(predictiveness.spearman(np.ones(3), np.arange(3.0)))
    rng = np.random.default_rng(0)
    x, y = rng.integers(6, size=(5, 20)).astype(float), rng.normal(size=(5, 20))
    plain = [plain_spearman(list(zip(a, b, strict=True))) for a, b in zip(x, y, strict=True)]
    assert predictiveness.spearman(x, y) == pytest.approx(plain)
    sums = group_sums(group([[0, 1], [0, 2], [0, 3], [1]], [1, 0, 0, 1]), rng)
    found = ratios(sums)
    found["held_back_excess"] = found["held_back"] - found[CHANCE]
    pooled = predictiveness.numbers(np.array([sums[key] for key in predictiveness.KEYS]))
    assert pooled.tolist() == pytest.approx([found[name] for name in predictiveness.NUMBERS])


def test_bootstrap_of_known_settings():
    """Gains that follow one number exactly, the same for every seed: 1, whatever is drawn."""
    settings = [
        predictiveness.Setting(
            scope="text",
            sums=[dict.fromkeys(predictiveness.KEYS, 1.0) | {"tokens": 10.0 + i}] * 3,
            gains=np.full(4, 0.1 * i),
        )
        for i in range(6)
    ]
    found = predictiveness.estimated("text", settings, 20)
    ratio = list(predictiveness.NUMBERS).index("tokens_over_distinct")
    assert np.nanmin(found[:, ratio]) == pytest.approx(1) and np.isnan(found[:, 0]).all()
    chosen = predictiveness.drawn(settings[2], np.random.default_rng(0), 5)
    assert chosen.shape == (6, 8) and chosen[:, -1] == pytest.approx(0.2)


def test_published_correlations_are_those_of_the_published_settings():
    """By a second way to rank.  The settings are rounded, which makes a few ties."""
    found = json.loads((ROOT / "results/predictiveness.json").read_text(encoding="utf-8"))
    for row in found["correlations"]:
        scopes = {"all": ("walk", "text")}.get(row["scope"], (row["scope"],))
        name, own = row["number"], [s for s in found["settings"] if s["scope"] in scopes]
        if own:  # "target" is within settings
            assert len(own) == row["settings"]
            rho = plain_spearman([(s[name], s["gain"]) for s in own if s[name] is not None])
            assert row["rho"] == pytest.approx(rho, abs=0.02)
            assert row["rho_low"] <= row["rho"] <= row["rho_high"]


def test_the_verdict_is_no_by_the_rule_of_the_plan():
    rows = json.loads((ROOT / "results/predictiveness.json").read_text(encoding="utf-8"))
    sides = defaultdict(set)
    for row in rows["correlations"]:
        if row["scope"] in ("walk", "map", "text"):
            sides[row["number"]].add((row["rho_low"] > 0) - (row["rho_high"] < 0))
    assert len(sides) == 7 and all(0 in those or len(those) > 1 for those in sides.values())
