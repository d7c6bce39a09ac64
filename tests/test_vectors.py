"""The conformance vectors: the files are what make.py makes, PyTorch's numbers, and right by hand;
check.py passes right code and names the mistakes that are planted in it.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
VECTORS = ROOT / "vectors"
PLAIN = Path(__file__).with_name("plain_grpo.py").read_text(encoding="utf-8")
LARGE = ("grpo.mu_2", "grpo_original.mu_1", "lambda_dapo.mu_2", "rloo.mu_2", "prm.mu_2")
sys.path.append(str(VECTORS))

from check import BadCall, check, flat, verdict  # noqa: E402
from make import text_of  # noqa: E402
from making.grpo import FORMAT, SETTINGS, VARIANTS, Right, grpo  # noqa: E402
from making.llama import llama  # noqa: E402


@cache
def committed(name: str) -> str:
    return (VECTORS / f"{name}.json").read_text(encoding="utf-8")


@cache
def data(name: str) -> dict[str, Any]:
    return json.loads(committed(name))


# -- the files -------------------------------------------------------------------------------------


def differences(a: Any, b: Any, place: str = "") -> list[str]:
    """Where two contents differ: numbers by more than rounding, anything else at all."""
    if isinstance(a, float) and isinstance(b, float):
        return [] if math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-13) else [f"{place}: {a} {b}"]
    if type(a) is not type(b) or (isinstance(a, dict | list) and len(a) != len(b)):
        return [f"{place}: {type(a)} {type(b)}"]
    if isinstance(a, dict):
        return [d for key in a for d in differences(a[key], b.get(key), f"{place}/{key}")]
    if isinstance(a, list):
        both = enumerate(zip(a, b, strict=True))
        return [d for i, (x, y) in both for d in differences(x, y, f"{place}/{i}")]
    return [] if a == b else [f"{place}: {a} {b}"]


@pytest.mark.parametrize(("name", "make"), [("grpo", grpo), ("llama", llama)])
def test_the_committed_files_are_what_the_command_makes(name: str, make: Callable) -> None:
    made = json.loads(text_of(make()))
    assert differences(data(name), made) == []
    assert text_of(data(name)) + "\n" == committed(name)  # and as it writes them


def test_a_file_says_what_it_is_and_names_every_mistake() -> None:
    assert sum(file.stat().st_size for file in VECTORS.glob("*.json")) < 5e6
    for name in ("grpo", "llama"):
        content = data(name)
        assert (content["format"], content["licence"]) == (FORMAT, "CC0-1.0")
        assert all(text.isascii() for text in content["mistakes"].values())  # for any terminal
        names = [case["name"] for case in content["cases"]]
        assert len(set(names)) == len(names)
        assert {m for case in content["cases"] for m in case["wrong"]} == set(content["mistakes"])
    cases = {case["name"]: case for case in data("grpo")["cases"]}
    assert {f"edge.{mistake}" for mistake in data("grpo")["mistakes"]} <= set(cases)
    for mistake in data("grpo")["mistakes"]:
        assert mistake in cases[f"edge.{mistake}"]["wrong"]


def test_numbers_of_pytorch() -> None:
    """What tests/oracles/make_vectors_oracle.py found for each case, by norm and a weighted sum."""
    oracle = json.loads((ROOT / "tests/oracles/vectors.json").read_text(encoding="utf-8"))
    cases = [case for name in ("grpo", "llama") for case in data(name)["cases"]]
    assert set(oracle) == {case["name"] for case in cases}
    for case in cases:
        for name, expected in case["expected"].items():
            numbers = flat(expected)
            norm, weighted = oracle[case["name"]][name]
            tolerance = 1e-11 * max(norm, case.get("loss_scale", 0.0))
            assert math.hypot(*numbers) == pytest.approx(norm, abs=tolerance, rel=0), case["name"]
            found = sum(math.cos(1 + i) * x for i, x in enumerate(numbers))
            assert found == pytest.approx(weighted, abs=10 * tolerance, rel=0), case["name"]


def test_an_edge_case_by_hand() -> None:
    """Rewards 1 and 0, three tokens and two; std √½; the mean is over five tokens."""
    case = next(c for c in data("grpo")["cases"] if c["name"] == "edge.eos_without_gradient")
    a = 0.5 / (math.sqrt(0.5) + 1e-4)
    assert case["expected"]["loss"] == pytest.approx(-(3 * a - 2 * a) / 5, rel=1e-14)
    wanted = [[-a / 5] * 3, [a / 5, a / 5, 0]]
    assert flat(case["expected"]["gradient"]) == pytest.approx(flat(wanted), rel=1e-14)
    without = case["wrong"]["eos_without_gradient"]
    wanted = [[-a / 3, -a / 3, 0], [a / 3, 0, 0]]
    assert flat(without["gradient"]) == pytest.approx(flat(wanted), rel=1e-9)
    assert without["loss"] == pytest.approx(-(2 * a - a) / 3, rel=1e-9)


def test_the_tree_by_its_definition() -> None:
    """Nodes are distinct prefixes of a group, depth first; gradients of nodes are sums."""
    content = data("grpo")
    for b in content["batches"].values():
        tree, found = b["tree"], {}
        for i, y in enumerate(b["completions"]):
            nodes = [n for n in b["tree"]["paths"][i] if n >= 0]
            assert len(nodes) == len(y) and b["tree"]["paths"][i][: len(y)] == nodes
            for t, n in enumerate(nodes):
                assert found.setdefault(n, (b["group"][i], y[: t + 1])) == (
                    b["group"][i],
                    y[: t + 1],
                )
                assert (tree["token"][n], tree["group"][n]) == (y[t], b["group"][i])
                assert tree["depth"][n] == t + 1  # behind the prompt
                assert tree["count"][n] == sum(n in path for path in tree["paths"])
                if t:
                    assert tree["parent"][n] == nodes[t - 1]
        assert len({(g, *prefix) for g, prefix in found.values()}) == len(found)
        ordered = [found[n] for n in sorted(found)]
        assert ordered == sorted(ordered)
    for case in content["cases"]:
        if case["kind"] == "loss":
            tree = content["batches"][case["batch"]]["tree"]
            of_nodes = [0.0] * len(tree["token"])
            for path, row in zip(tree["paths"], case["expected"]["gradient"], strict=True):
                for n, x in zip(path, row, strict=True):
                    of_nodes[n] += x if n >= 0 else 0.0
            assert of_nodes == pytest.approx(case["expected_of_nodes"], rel=1e-11, abs=1e-15)


@pytest.mark.parametrize("update", ["mu_1", "mu_2"])
def test_theorem_1_can_be_read_off_the_files(update: str) -> None:
    """GRPO unclipped and the explicit process rewards: one loss, one derivative per node."""
    cases = {case["name"]: case for case in data("grpo")["cases"]}
    grpo_case, prm = (cases[f"{name}.{update}"] for name in ("grpo_unclipped", "prm"))
    assert prm["expected"]["loss"] == pytest.approx(grpo_case["expected"]["loss"], rel=1e-12)
    of_nodes = grpo_case["expected_of_nodes"]
    assert prm["expected_of_nodes"] == pytest.approx(of_nodes, rel=1e-11, abs=1e-16)
    of_tokens = flat(grpo_case["expected"]["gradient"])  # of single completions they differ
    assert flat(prm["expected"]["gradient"]) != pytest.approx(of_tokens, rel=0.1)


def test_all_four_sides_of_the_clip_range_are_met() -> None:
    """Advantages of either sign, ratios below and above, for every clipped variant."""
    content = data("grpo")
    for case in content["cases"]:
        if not case["name"].endswith(".mu_2") or case["settings"]["clip_low"] is None:
            continue
        b, met = content["batches"][case["batch"]], {}
        low, high = 1 - case["settings"]["clip_low"], 1 + case["settings"]["clip_high"]
        for i, t in ((i, t) for i, n in enumerate(b["lengths"]) for t in range(n)):
            if not (b["truncated"][i] and case["settings"]["mask_truncated"]):
                ratio = math.exp(b["logp"][i][t] - b["old"][i][t])
                side = "below" if ratio < low else "above" if ratio > high else "inside"
                moves = case["expected"]["gradient"][i][t] != 0
                met.setdefault((case["inputs"]["advantages"][i] > 0, side), set()).add(moves)
        if not case["settings"]["beta"]:
            assert met[True, "above"] == met[False, "below"] == {False}, case["name"]
        assert {side for _, side in met} == {"below", "inside", "above"} and len(met) == 6
        assert met[True, "below"] == met[False, "above"] == {True}, case["name"]


# -- right code ------------------------------------------------------------------------------------


def plain(*edits: tuple[str, str]) -> types.ModuleType:
    """The module plain_grpo with some of its text replaced."""
    text = PLAIN
    for before, after in edits:
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    module = types.ModuleType("plain_grpo")
    exec(compile(text, "plain_grpo", "exec"), vars(module))
    return module


def failures(function: Callable, *args: Any, **options: Any) -> list:
    results, _ = check(function, *args, **options)
    return [(case["name"], *rest) for case, right, *rest in results if not right]


def test_plain_python_is_right() -> None:
    right = plain()
    results, _ = check(right.loss)
    assert len(results) == 2 * len(VARIANTS) + len(data("grpo")["mistakes"])
    assert all(agrees for _, agrees, *_ in results) and verdict(results) == ([], 0)
    assert failures(right.scores, "logp") == failures(right.lambda_weights, "weights") == []


def test_a_loss_alone_is_differentiated() -> None:
    """Given as lists or as NumPy arrays, of which the derivative is numerical."""

    def alone(logp, old, mask, token_advantages, group, aggregation):  # type: ignore
        rows = range(len(logp))
        n = [sum(sum(map(int, mask[j])) for j in rows if group[j] == group[i]) for i in rows]
        return -sum(
            token_advantages[i][t]
            * math.exp(logp[i][t] - old[i][t])
            / n[i]
            / len(set(map(int, group)))
            for i in rows
            for t in range(len(logp[i]))
            if mask[i][t]
        )

    for arrays in ("lists", "numpy"):
        assert (
            failures(alone, cases=("edge.sign_flipped", "edge.std_of_batch"), arrays=arrays) == []
        )
        assert failures(alone, cases="edge.clip_missing", arrays=arrays)[0][-1] == ["clip_missing"]


def test_the_package_itself_is_right() -> None:
    """Through lists, as anybody's code is called."""
    import numpy as np

    import minigrpo as mg

    def weights(completions, group, truncated, mask_truncated, alpha):  # type: ignore
        out: list = [None] * len(completions)
        dropped = [bool(mask_truncated and cut) for cut in truncated]
        for g in set(group):
            rows = [i for i, of in enumerate(group) if of == g]
            for keep in (True, False):
                own = [i for i in rows if dropped[i] != keep]
                found = mg.lambda_weights([completions[i] for i in own]) if own else []
                for i, w in zip(own, found, strict=True):
                    out[i] = w**alpha
        return out

    def step_rewards(completions, group, rewards):  # type: ignore
        out: list = [None] * len(completions)
        for g in set(group):
            rows = [i for i, of in enumerate(group) if of == g]
            tree = mg.PrefixTree.from_sequences([completions[i] for i in rows])
            values = tree.on_tokens(mg.step_rewards(tree, [rewards[i] for i in rows]))
            for i, row in zip(rows, values, strict=True):
                out[i] = row
        return out

    def advantages(rewards, group, baseline, scale, ddof, std_eps):  # type: ignore
        return mg.advantages(np.array(rewards), np.array(group), baseline, scale, ddof, std_eps)

    def loss(  # type: ignore
        ids, mask, group, rewards, truncated, logp, old, ref, max_new_tokens, baseline, scale, ddof,
        std_eps, aggregation, alpha, process_reward, clip_low, clip_high, beta, kl, mask_truncated,
    ):  # fmt: skip
        batch = ("ids", "mask", "group", "rewards", "truncated", "logp", "old", "ref")
        given = locals()
        b = {name: given[name] for name in (*batch, "max_new_tokens")}
        return Right(b).loss({name: given[name] for name in SETTINGS})[:2]

    assert failures(step_rewards, "step_rewards") == failures(advantages, "advantages") == []
    assert failures(weights, "weights") == failures(loss, "loss") == []


# -- planted mistakes ------------------------------------------------------------------------------

COUNTS = "bool(mask[i][t]) and kept[i] for t in"
N = "    n = [sum(counts[i]) for i in rows]\n"
SHARE = "    def share(i):\n"
MATES = "    def mates(i):\n"
TERM = "term = min(term, clip(ratio, 1 - clip_low, 1 + clip_high) * a)"
MEMBERS = "[j for j in mates(i) if t < length[j] and ids[j][: t + 1] == begin]"
AGGREGATIONS = ("group_token_mean", "batch_token_mean", "sequence_mean", "sequence_sum", "constant")
R_HAT = "sum(rewards[j] for j in members(i, t)) / len(members(i, t))"
BEGINS = """    def begins(j, i):
        return length[j] < length[i] and ids[j][: length[j]] == ids[i][: length[j]]
"""
SIZE = "size = sum(kept[j] for j in members(i, t))"


Edits = list[tuple[str, str]]


def counted(condition: str) -> Edits:
    """A wrong mask."""
    return [(COUNTS, f"kept[i] and ({condition}) for t in")]


def before(line: str, *lines: str) -> tuple[str, str]:
    """Other lines of the function before a line of it."""
    return line, "".join(f"    {other}\n" for other in lines) + line


def compared_with(rows: str) -> Edits:
    """Wrong rows in baseline and std."""
    return [
        ("(mates(i) if scale", f"({rows} if scale"),
        ("[j for j in mates(i) if baseline", f"[j for j in {rows} if baseline"),
    ]


PLANTED: dict[str, Edits] = {
    # masks and alignment
    "eos_without_gradient": counted(
        "mask[i][t] and not (t == length[i] - 1 and ids[i][t] == eos_id)"
    ),
    "pad_equals_eos": counted("ids[i][t] != pad_id"),
    "cut_at_first_eos": counted("mask[i][t] and eos_id not in ids[i][:t]"),
    "first_token_dropped": counted("mask[i][t] and t > 0"),
    "last_token_dropped": counted("mask[i][t] and t < length[i] - 1"),
    "padding_counted": counted("True"),
    "padding_summed": [("if not counts[i][t]:", "if not kept[i]:")],
    "padding_in_length": [before(SHARE, "n = [width * kept[i] for i in rows]")],
    "exp_before_mask": [
        ("            if not counts[i][t]:\n                continue\n", ""),
        (
            "term = -term * share(i) * weight(i, t)",
            "term = -term * share(i) * weight(i, t) * counts[i][t]",
        ),
    ],
    "empty_completion_nan": [
        ("(n[i] or 1)", "n[i]"),
        ("total, gradient = 0.0,", "total, gradient = sum(0 * share(i) for i in rows if kept[i]),"),
    ],
    "all_masked_nan": [
        ("(sum(n) or 1)", "sum(n)"),
        ("total, gradient = 0.0,", "total, gradient = 0 * share(0),"),
    ],
    "truncated_not_masked": [("kept = [not (mask_truncated and truncated[i])", "kept = [True")],
    "masked_in_normaliser": [before(SHARE, "n = length")],
    # advantages
    "population_std": [("(len(values) - ddof)", "len(values)")],
    "std_missing": [('scale == "none" or', "True or")],
    "std_of_batch": [('if scale == "group_std" else', "if False else")],
    "std_of_group": [('if scale == "group_std" else', "if True else")],
    "mean_of_batch": [("j for j in mates(i) if baseline", "j for j in rows if baseline")],
    "baseline_missing": [('baseline == "none"', "True")],
    "groups_by_position": [
        before(MATES, "place = sorted(group)"),
        *compared_with("[j for j in rows if place[j] == place[i]]"),
    ],
    "masked_out_of_baseline": compared_with("([j for j in mates(i) if kept[j]] or mates(i))"),
    "leave_one_out_includes_self": [('baseline != "leave_one_out" or j != i', "True")],
    "dead_group_nan": [('scale == "none" or max(values) == min(values)', 'scale == "none"')],
    "std_eps_missing": [("math.sqrt(variance) + std_eps", "math.sqrt(variance)")],
    "std_eps_is_1e-6": [("math.sqrt(variance) + std_eps", "math.sqrt(variance) + 1e-6")],
    "std_eps_in_root": [("math.sqrt(variance) + std_eps", "math.sqrt(variance + std_eps)")],
    # aggregation
    **{f"normaliser_is_{how}": [before(N, f"aggregation = {how!r}")] for how in AGGREGATIONS},
    "normaliser_after_split": [
        (SHARE, SHARE + "        part = next(part for part in micro_batches if i in part)\n"),
        ("len(set(group)) *", "len({group[j] for j in part}) * len(micro_batches) *"),
        ("sum(n[j] for j in mates(i))", "sum(n[j] for j in mates(i) if j in part)"),
        ("(sum(n) or 1)", "((sum(n[j] for j in part) or 1) * len(micro_batches))"),
        ("(len(ids) * (n[i] or 1))", "(len(part) * len(micro_batches) * (n[i] or 1))"),
        ("(len(ids) * (max", "(len(part) * len(micro_batches) * (max"),
    ],
    "normaliser_missing": [("def share(i):\n", "def share(i):\n        return 1.0\n")],
    "normaliser_is_longest": [("(max_new_tokens if", "(max(n) if")],
    "normaliser_is_weight_sum": [
        before(SHARE, "n = [sum(weight(i, t) for t in range(n[i])) for i in rows]")
    ],
    # ratio and clipping
    "clip_missing": [(TERM, "pass")],
    "clip_sides_swapped": [("1 - clip_low, 1 + clip_high", "1 - clip_high, 1 + clip_low")],
    "clip_high_ignored": [("1 + clip_high", "1 + clip_low")],
    "clip_without_min": [(TERM, TERM.replace("min(term, ", "(", 1))],
    "clip_max_for_min": [(TERM, TERM.replace("min", "max", 1))],
    "clip_of_log_ratio": [
        (TERM, "term = min(term, exp(clip(now - old[i][t], -clip_low, clip_high)) * a)")
    ],
    "ratio_inverted": [("exp(now - old[i][t])", "exp(old[i][t] - now)")],
    "ratio_missing": [("term = ratio * a", "term = now * a"), (TERM, "pass")],
    "old_is_current": [("exp(now - old[i][t])", "exp(now - logp[i][t])")],
    "old_not_detached": [
        before(MATES, "real = [(i, t) for i in rows for t in range(length[i])]"),
        ("now - old[i][t]", "now - (now if on_policy else old[i][t])"),
        before(N, "on_policy = all(logp[i][t] == old[i][t] for i, t in real)"),
    ],
    "sign_flipped": [
        ("            term = term - divergence", "            term = -term - divergence")
    ],
    # KL
    "kl_missing": [("term = term - divergence * beta", "pass")],
    "kl_sign": [("term - divergence", "term + divergence")],
    "kl_is_k1": [('kl == "k1"', "True")],
    "kl_is_k2": [('kl == "k1"', "False"), ('kl == "k2"', "True")],
    "kl_is_k3": [('kl == "k1"', "False"), ('kl == "k2"', "False")],
    "kl_reversed": [
        ("x = ref[i][t] - now", "x = now - ref[i][t]"),
        ("divergence = now - ref[i][t]", "divergence = ref[i][t] - now"),
    ],
    "kl_against_old": [before(MATES, "ref = old")],
    "kl_times_ratio": [("term - divergence * beta", "term - divergence * ratio * beta")],
    "kl_not_weighted": [
        ("term = term - divergence * beta", "term = term - divergence * beta * (1 / weight(i, t))")
    ],
    # the tree
    "lambda_missing": [("** alpha", "** 0")],
    "lambda_multiplied": [("** alpha", "** -alpha")],
    "lambda_by_position": [
        (MEMBERS, "[j for j in mates(i) if t < length[j] and ids[j][t] == ids[i][t]]")
    ],
    "lambda_off_by_one": [
        ("begin = ids[i][: t + 1]", "begin = ids[i][:t]"),
        ("t < length[j] and ids[j][: t + 1] == begin", "t <= length[j] and ids[j][:t] == begin"),
    ],
    "lambda_across_groups": [(MEMBERS, MEMBERS.replace("mates(i)", "rows"))],
    "lambda_duplicates_once": [
        (SIZE, "size = len({(length[j], *ids[j]) for j in members(i, t) if kept[j]})")
    ],
    "lambda_with_padding": [("t < length[j] and ids", "ids")],
    "lambda_without_beginnings": [
        (SIZE, "size = sum(kept[j] for j in members(i, t) if not begins(j, i))"),
        (N, N + "\n" + BEGINS),
    ],
    "lambda_unbranched_once": [
        (SIZE, SIZE + "\n        size = 1 if size == sum(kept[j] for j in mates(i)) else size")
    ],
    "lambda_with_masked": [(SIZE, "size = len(members(i, t))")],
    # process rewards
    "step_reward_is_sum": [(R_HAT, R_HAT.split(" /")[0])],
    "step_reward_is_own": [(R_HAT, "rewards[i]")],
    "step_reward_without_self": [
        ("value = " + R_HAT, "others = [rewards[j] for j in members(i, t) if j != i]"),
        ("(value - base(i))", "(sum(others or [rewards[i]]) / max(len(others), 1) - base(i))"),
    ],
    "step_reward_by_length": [
        ("rewards[j] for j in members(i, t)", "rewards[j] * length[j] for j in members(i, t)"),
        ("/ len(members(i, t))", "/ sum(length[j] for j in members(i, t))"),
    ],
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_planted_mistake_is_named(mistake: str) -> None:
    results, _ = check(plain(*PLANTED[mistake]).loss, cases=("edge.", *LARGE))
    found, unexplained = verdict(results)
    assert found == [([mistake], sum(not agrees for _, agrees, *_ in results))]
    assert unexplained == 0


OF_OTHER_KINDS = {
    "shift_by_one": ("scores", "logp", [("prompt_width + t - 1", "prompt_width + t")]),
    "temperature_ignored": ("scores", "logp", [("v / temperature", "v")]),
    "temperature_multiplied": ("scores", "logp", [("v / temperature", "v * temperature")]),
    "log_softmax_missing": ("scores", "logp", [(" - math.log(sum(math.exp(v) for v in z))", "")]),
    "lambda_across_groups": ("lambda_weights", "weights", [("if group[j] == group[i] and", "if")]),
    "lambda_with_masked": (
        *("lambda_weights", "weights"),
        [(" and not (mask_truncated and truncated[j])", "")],
    ),
    "lambda_off_by_one": (
        "lambda_weights",
        "weights",
        [("x[: t + 1] == y[: t + 1]", "x[:t] == y[:t]")],
    ),
}


@pytest.mark.parametrize("mistake", OF_OTHER_KINDS)
def test_a_planted_mistake_of_another_kind_is_named(mistake: str) -> None:
    name, kind, edits = OF_OTHER_KINDS[mistake]
    results, _ = check(getattr(plain(*edits), name), kind)
    found, unexplained = verdict(results)
    assert [names for names, _ in found] == [[mistake]] and unexplained == 0


def test_two_mistakes_at_once_are_both_named() -> None:
    edits = [*PLANTED["population_std"], *PLANTED["leave_one_out_includes_self"]]
    results, _ = check(plain(*edits).loss, cases=("edge.", *LARGE))
    found, unexplained = verdict(results)
    assert [n for n, _ in found] == [["population_std"], ["leave_one_out_includes_self"]]
    assert unexplained == 0


def test_what_is_no_known_mistake_is_not_named() -> None:
    results, _ = check(plain(("* share(i)", "* share(i) * 1.5")).loss, cases="edge.")
    assert verdict(results)[0] == [] and verdict(results)[1] > 60


# -- the command -----------------------------------------------------------------------------------


class Answer(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def command(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """As a user runs it, without any package."""
    line = [sys.executable, "-S", str(VECTORS / "check.py"), *words]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, encoding="utf-8")


MANY = """
import io, json, os, sys, traceback
sys.path.append(sys.argv[1])
import check
answers, modules = [], set(sys.modules)
for folder, words in json.load(sys.stdin):
    os.chdir(folder)
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    usual, sys.argv[1:], path = (sys.stdout, sys.stderr), words, [*sys.path]
    sys.stdout, sys.stderr = streams
    try:
        code = check.main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        code = traceback.print_exc() or 1
    (sys.stdout, sys.stderr), sys.path[:] = usual, path
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    for stream in streams:
        stream.seek(0)
    answers.append([code, *(stream.read() for stream in streams)])
json.dump(answers, sys.stdout)
"""


def commands(folders: Iterable[Path], words: Iterable[Sequence[str]]) -> Iterator[Answer]:
    """As `command` for each folder and words, in one process."""
    given = json.dumps([(str(folder), line) for folder, line in zip(folders, words, strict=True)])
    line = [sys.executable, "-S", "-c", MANY, str(VECTORS)]
    done = subprocess.run(line, input=given, capture_output=True, text=True, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    return itertools.starmap(Answer, json.loads(done.stdout))


def in_folders(root: Path, texts: Iterable[str]) -> list[Path]:
    """Folders with a mine.py each."""
    folders = [root / str(i) for i, _ in enumerate(texts)]
    for folder, text in zip(folders, texts, strict=True):
        folder.mkdir()
        (folder / "mine.py").write_text(text, encoding="utf-8")
    return folders


def test_the_command_says_what_the_readme_shows(tmp_path: Path) -> None:
    wrong = PLAIN.replace(*PLANTED["clip_sides_swapped"][0])
    (tmp_path / "my.py").write_text(wrong + "\n\nmy_loss = loss\n", encoding="utf-8")
    done = command(tmp_path, "my:my_loss", "--cases", "dapo.")
    readme = (VECTORS / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"--cases dapo\.\n((?:    .*\n)+)", readme)
    assert shown and [line[4:] for line in shown[1].splitlines()] == done.stdout.splitlines()
    assert done.returncode == 1
    (tmp_path / "my.py").write_text(PLAIN, encoding="utf-8")
    done = command(tmp_path, "my:loss", "--cases", "dapo.")
    assert done.stdout == "0 of 2 cases disagree; of these unexplained: 0\n"
    assert done.returncode == 0


def refused(done: Answer) -> str:
    """The one line of a bad call."""
    assert (done.returncode, done.stdout) == (2, ""), done.stdout + done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith("check.py: ")
    return line


BAD_CALLS = {
    "mine:loss": "ask for logp and any of .*, mask, .*, not for ['logits']",
    "mine:weights --kind weights": "ask for any of aggregation, .*, not for ['logits']",
    "mine:constant": "5 is no function .*: TypeError: 5 is not a callable object",
    "builtins:max": "<built-in function max> is no function .*: no signature found",
    "mine:other": "module 'mine' has no attribute 'other'",
    "": "the following arguments are required: MODULE:FUNCTION",
    "mine:right more": "unrecognized arguments: more",
    "mine:right --arrays jax": "argument --arrays: invalid choice: 'jax'",
    "mine:right --tolerance x": "argument --tolerance: invalid float value: 'x'",
    "mine:right --cases": "argument --cases: expected one argument",
    "mine": "MODULE:FUNCTION 'mine' (my:my_loss is that of my.py in this folder): .*attribute ''",
    ":loss": "MODULE:FUNCTION ':loss' (my:my_loss is.*ValueError: Empty module name",
    "nothing_here:loss": "MODULE:FUNCTION 'nothing_here:loss' (.*No module named 'nothing_here'",
    "mine.py:loss": "(my:my_loss is that of my.py in this folder): .*'mine' is not a package",
    "./mine.py:loss": "'./mine.py:loss' (my:my_loss is that of my.py in this folder): ",
    "broken:loss": "SyntaxError: .* (broken.py, line 2)",
    "imports:loss": "imports.py, line 1: ModuleNotFoundError: No module named 'nothing_at_all'",
    "raises:loss": "raises.py, line 3: RuntimeError: one two",
    "leaves:loss": "leaves.py, line 2: SystemExit: 0",
    "stopped:loss": "interrupted",
    "mine:right --kind los": "there is no kind 'los', but loss, weights, .*, model_loss",
    "mine:right --cases dappo": "no case of loss begins with 'dappo'; they do with grpo, .*, edge",
    "mine:right --kind counts --cases dapo": "they do with counts",
    "mine:right --arrays torch": "--arrays torch needs torch: ModuleNotFoundError: No module named",
    "mine:right --arrays numpy": "--arrays numpy needs numpy: ModuleNotFoundError: No module named",
    "mine:right --tolerance 0": "the tolerance is relative, between 0 and 1, not 0.0",
    "mine:right --tolerance=-1e-3": "the tolerance is relative, between 0 and 1, not -0.001",
    "mine:right --tolerance nan": "the tolerance is relative, between 0 and 1, not nan",
    "mine:right --dtype float32": "derivatives by differences need float64",
    "mine:alone --cases prm": "these cases have advantages of tokens: ask for token_advantages",
    "mine:model --kind model_loss": "a loss alone: return (loss, {name: gradient}), or use",
    "mine:some --kind model_loss": "the gradient lacks model.embed_tokens.weight, in all 19 of 20",
    "mine:listed --kind model_loss": "the gradient should be a dict, and is a list",
}


@pytest.fixture(scope="module")
def bad_calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    folder = tmp_path_factory.mktemp("calls")
    files = {
        "mine": """
            constant = 5
            def loss(logp, logits): pass
            def weights(logits): pass
            def right(logp): return 0.5
            def alone(logp, advantages): return 0.5
            def model(parameters): return 0.5
            def some(parameters): return 0.5, {"model.norm.weight": [1.0]}
            def listed(parameters): return 0.5, list(parameters.values())
        """,
        "broken": "\ndef loss(logp:\n",
        "imports": "import nothing_at_all\n",
        "raises": "\nfor text in ['one\\ntwo']:\n    raise RuntimeError(text)\n",
        "leaves": "import sys\nsys.exit(0)\n",
        "stopped": "raise KeyboardInterrupt\n",
    }
    for name, text in files.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text), encoding="utf-8")
    answers = commands([folder] * len(BAD_CALLS), [words.split() for words in BAD_CALLS])
    return dict(zip(BAD_CALLS, answers, strict=True))


@pytest.mark.parametrize("words", BAD_CALLS)
def test_a_bad_call_is_one_clear_line(bad_calls: dict[str, Answer], words: str) -> None:
    said = ".*".join(map(re.escape, BAD_CALLS[words].split(".*")))
    line = refused(bad_calls[words])
    assert re.search(said, line), line


NO_ANSWERS = {
    "return None": "the loss should be numbers, and has None",
    "return '0.5'": "the loss should be numbers, and has '0.5'",
    "return 1j": "the loss should be numbers, and has 1j",
    "return {'loss': 1}": "the loss should be numbers, and has {'loss': 1}",
    "return logp": "the result should be the loss or (loss, gradient), not 12 parts",
    "return [logp]": "the loss should be one number, and has 72",
    "return ()": "the result should be the loss or (loss, gradient), not 0 parts",
    "return 0.1, 0.2, 0.3": "the result should be the loss or (loss, gradient), not 3 parts",
    "return 0.1, None": "the gradient should be numbers, and has None",
    "return 0.1, {'kl': 0.1}": "the gradient should be numbers, and has {'kl': 0.1}",
    "return 0.1, [[None] * 6] * 12": "the gradient should be numbers, and has None",
    "yield 0.1": "the loss should be numbers, and has <generator object",
    "return awaited(logp)": "the loss should be numbers, and has <coroutine object",
    "logp[0][0] += 1\n    return logp[0][0]": "called again it gives another loss: it draws, or",
    "return __import__('random').random()": "called again it gives another loss: it draws, or",
    "raise SystemExit(0)": "mine.py, line 4: SystemExit: 0",
    "raise KeyError('x')": "mine.py, line 4: KeyError: 'x'",
    "raise ValueError('one\\n two')": "mine.py, line 4: ValueError: one two",
    "raise ValueError('x' * 10**6)": "mine.py, line 4: ValueError: xxx",
    "assert False": "mine.py, line 4: AssertionError",
    "return mine(logp)": "mine.py, line 4: RecursionError: maximum recursion depth exceeded",
    "return json.loads('{')": "mine.py, line 4: JSONDecodeError: Expecting property name",
    "return other.sum_of(logp)": "other.py, line 2: TypeError: unsupported operand",
    "return 0.1, [other.Odd()]": "other.py, line 6: RuntimeError: odd",
}


@pytest.fixture(scope="module")
def no_answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    mine = "import json\nimport other\ndef mine(logp):\n    {}\n"
    mine += "async def awaited(logp): return 0.1\n"
    other = "def sum_of(x):\n    return sum(x)\nclass Odd:\n    @property\n    def tolist(self):\n"
    other += "        raise RuntimeError('odd')\n"
    root = tmp_path_factory.mktemp("no-answers")
    folders = in_folders(root, [mine.replace("{}", body, 1) for body in NO_ANSWERS])
    for folder in folders:
        (folder / "other.py").write_text(other, encoding="utf-8")
    answers = commands(folders, [("mine:mine", "--cases", "dapo.")] * len(folders))
    return dict(zip(NO_ANSWERS, answers, strict=True))


@pytest.mark.parametrize("body", NO_ANSWERS)
def test_what_is_no_answer_is_one_clear_line(no_answers: dict[str, Answer], body: str) -> None:
    """It names the case; of an error the line in the user's code, not in what that calls."""
    line = refused(no_answers[body])
    assert line.startswith("check.py: dapo.mu_2: ") and len(line) < 700
    assert NO_ANSWERS[body] in line


DISAGREE = {
    "return math.nan, logp": "loss: nan, expected -0.10",
    "return 1e400, logp": "loss: inf, expected -0.10",
    "return 0.1, [[math.nan] * 6 for _ in logp]": "gradient[0][0]: nan, expected -0.02",
    "return 0.1, logp[1:]": "gradient: 11 entries, expected 12 entries",
    "return 0.1, [row[1:] for row in logp]": "gradient[0]: 5 entries, expected 6 entries",
    "return 0.1, logp[:4] + [logp[4][:2]] + logp[5:]": "gradient[4]: 2 entries, expected 6 entries",
    "return 0.1, [list(x) for x in zip(*logp)]": "gradient: 6 entries, expected 12 entries",
    "return 0.1, [x for row in logp for x in row]": "gradient: 72 entries, expected 12 entries",
    "return 0.1, [[row] for row in logp]": "gradient[0]: 1 entries, expected 6 entries",
    "return 0.1, 0.2": "gradient: 0.2, expected 12 entries",
    "return 1 / 0": "mine.py, line 3: ZeroDivisionError: division by zero",
    "return math.exp(1e9)": "mine.py, line 3: OverflowError: math range error",
}


@pytest.fixture(scope="module")
def disagreeing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    texts = [f"import math\ndef mine(logp):\n    {body}\n" for body in DISAGREE]
    folders = in_folders(tmp_path_factory.mktemp("disagree"), texts)
    answers = commands(folders, [("mine:mine", "--cases", "dapo.mu_2")] * len(folders))
    return dict(zip(DISAGREE, answers, strict=True))


@pytest.mark.parametrize("body", DISAGREE)
def test_wrong_numbers_and_wrong_lengths_disagree(
    disagreeing: dict[str, Answer], body: str
) -> None:
    """Numbers in lists are an answer; the first place that is not right, or has NaN, is named."""
    done = disagreeing[body]
    assert (done.returncode, done.stderr) == (1, "")
    first, last = done.stdout.splitlines()
    assert DISAGREE[body] in first and "no known mistake" in first
    assert last == "1 of 1 cases disagree; of these unexplained: 1"


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ("1.0", "value: 1, expected 12 entries"),
        ("[1.0] * len(mask)", "value[0]: 1, expected 5 entries"),
        ("mask[:-1]", "value: 11 entries, expected 12 entries"),
        ("[row[:3] for row in mask]", "value[0]: 3 entries, expected 5 entries"),
        ("[[[x] for x in row] for row in mask]", "value[0][0]: 1 entries, expected 0.2"),
    ],
)
def test_values_of_another_shape_disagree(body: str, where: str) -> None:
    results, _ = check(eval(f"lambda mask: {body}"), "weights", cases="weights.main")
    assert results[0][3].startswith(where)
    assert not any(agrees for _, agrees, *_ in results)


def test_rows_may_have_their_padding_or_not() -> None:
    def counts(completions, group):  # type: ignore
        same = zip(completions, group, strict=True)
        pairs = [(y, g) for y, g in same]
        return [
            [sum(x[: t + 1] == y[: t + 1] and h == g for x, h in pairs) for t in range(len(y))]
            for y, g in pairs
        ]

    def padded(completions, group):  # type: ignore
        return [row + [99] * (9 - len(row)) for row in counts(completions, group)]

    assert failures(counts, "counts") == failures(padded, "counts") == []


@pytest.mark.parametrize("text", [None, "", '{"cases": ['])
def test_a_missing_or_torn_file_is_one_clear_line(tmp_path: Path, text: str | None) -> None:
    for name in ("check.py", "calling.py"):
        shutil.copy(VECTORS / name, tmp_path)
    if text is not None:
        (tmp_path / "grpo.json").write_text(text, encoding="utf-8")
    (tmp_path / "mine.py").write_text("def mine(logp): return 0.1\n", encoding="utf-8")
    line = [sys.executable, "-S", "check.py", "mine:mine"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "check.py: check.py needs grpo.json beside it: " in done.stderr


def test_a_bad_call_from_a_test_is_an_error_of_its_own() -> None:
    with pytest.raises(BadCall, match=r"there is no kind 'los', but loss, "):
        check(plain().loss, "los")
    with pytest.raises(BadCall, match=r"ask for logp"):
        check(lambda old: 0.0)
    with pytest.raises(BadCall, match=r"5 is no function"):
        check(5)
    with pytest.raises(BadCall, match=r"test_vectors.py, line \d+: KeyError: 'x'") as raised:
        check(lambda logp: {}["x"])
    assert isinstance(raised.value.__cause__, KeyError)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("where", ["all", "an array", "rows", "numbers"])
def test_numbers_that_were_rounded_are_not_compared(dtype: str, where: str) -> None:
    """Unless they agree, or a tolerance allows it."""
    import numpy as np

    right, rounded = plain().loss, getattr(np, dtype)

    @functools.wraps(right)
    def loss(**given):  # type: ignore
        total, gradient = right(**given)
        array = np.array(gradient, dtype=dtype)
        rows = {"rows": [*array], "numbers": [[*row] for row in array]}
        return rounded(total) if where == "all" else total, rows.get(where, array)

    with pytest.raises(BadCall, match=f"grpo.mu_2: the result is {dtype}: keep float64, or give"):
        check(loss, cases="grpo.")
    assert failures(loss, cases="grpo.", tolerance=1e-2) == []


def test_a_rounded_gradient_of_a_parameter_is_not_compared() -> None:
    import numpy as np

    case = next(case for case in data("llama")["cases"] if case["kind"] == "model_loss")

    def loss(parameters):  # type: ignore
        wanted = case["expected"]
        return wanted["loss"], {n: np.float32(x) for n, x in wanted["gradient"].items()}

    with pytest.raises(BadCall, match="the result is float32"):
        check(loss, "model_loss", cases=case["name"])


def test_a_mistake_that_looks_alike_in_some_cases_is_said_to_explain_few(tmp_path: Path) -> None:
    """The variance for the std is none of the known mistakes, but in some is that of ddof 0."""
    wrong = PLAIN.replace("math.sqrt(variance) + std_eps", "variance + std_eps")
    (tmp_path / "mine.py").write_text(wrong, encoding="utf-8")
    said = command(tmp_path, "mine:loss", "--cases", "edge.").stdout
    found = re.search(r"^explains (\d+) of (\d+): population_std ", said, flags=re.MULTILINE)
    assert found and 0 < int(found[1]) < int(found[2]) - 10, said


@pytest.mark.parametrize("words", [["-I", str(VECTORS / "check.py")], ["-m", "vectors.check"]])
def test_it_may_be_run_as_a_module_or_isolated(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "mine.py").write_text(PLAIN, encoding="utf-8")
    line = [sys.executable, "-S", *words, "mine:loss", "--cases", "dapo."]
    folder = tmp_path if "-I" in words else ROOT
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.stdout == "0 of 2 cases disagree; of these unexplained: 0\n", done.stderr


@pytest.mark.skipif(os.name == "nt", reason="pipes and devices as on Unix")
@pytest.mark.parametrize("to", ["a closed pipe", "/dev/full", "nothing", "a closed file"])
def test_an_answer_that_cannot_be_written_is_one_line(tmp_path: Path, to: str) -> None:
    """`| head -1`, which closes the pipe, is no error: the exit code is that of the answer."""
    if to == "/dev/full" and not Path(to).exists():
        pytest.skip("no /dev/full")
    closing = "    import sys\n    sys.stdout.close()\n" * (to == "a closed file")
    mine = f"def mine(logp):\n{closing}    return 0.1, logp\n"
    (tmp_path / "mine.py").write_text(mine, encoding="utf-8")
    line = [sys.executable, "-S", str(VECTORS / "check.py"), "mine:mine"]
    shell = {"nothing": 'exec "$0" "$@" >&-', "/dev/full": 'exec "$0" "$@" >/dev/full'}
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        ["sh", "-c", shell.get(to, 'exec "$0" "$@"'), *line],
        **{"cwd": tmp_path, "stdout": writing, "stderr": subprocess.PIPE, "text": True},
    )
    os.close(writing)
    if to == "a closed pipe":
        assert (done.returncode, done.stderr) == (1, "")
    else:
        assert done.returncode == 2
        assert re.fullmatch("check.py: the answer cannot be written: .+\n", done.stderr)


def test_the_reader_is_small_and_needs_nothing() -> None:
    for name, lines in (("check", 150), ("calling", 170)):
        text = (VECTORS / f"{name}.py").read_text(encoding="utf-8")
        assert len(text.splitlines()) < lines
        rooms = set(re.findall(r"^(?:from|import) (\w+)", text, flags=re.MULTILINE))
        assert rooms <= sys.stdlib_module_names | {"calling"}


def test_the_readme_names_every_variant_kind_setting_and_field() -> None:
    readme = (VECTORS / "README.md").read_text(encoding="utf-8")
    content = data("grpo")
    names = {*VARIANTS, *content["cases"][0]["settings"], *content["cases"][0]["inputs"]}
    names |= {name for b in content["batches"].values() for name in b}
    names |= {case["kind"] for file in ("grpo", "llama") for case in data(file)["cases"]}
    assert [name for name in sorted(names) if f"`{name}`" not in readme] == []
