"""The conformance vectors: what make.py makes, and what check.py says of right and wrong code."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VECTORS = ROOT / "vectors"
sys.path.insert(0, str(VECTORS))

from check import check, verdict  # noqa: E402

PLAIN = Path(__file__).with_name("plain_grpo.py").read_text(encoding="utf-8")


def plain(*edits):
    """The module plain_grpo with some of its text replaced."""
    text = PLAIN
    for before, after in edits:
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    module = types.ModuleType("plain_grpo")
    exec(compile(text, "plain_grpo", "exec"), vars(module))
    return module


COUNTS = "bool(mask[i][t]) and kept[i] for t in"
MASK = "counts = [[bool(mask[i][t]) and kept[i]"
TERM = "term = min(term, clip(ratio, 1 - clip_low, 1 + clip_high) * a)"
MEMBERS = "[j for j in mates(i) if t < length[j] and ids[j][: t + 1] == begin]"
R_HAT = "sum(rewards[j] for j in members(i, t)) / len(members(i, t))"
SIZE = "size = sum(kept[j] for j in members(i, t))"


def counted(condition):
    """A wrong mask."""
    return [(COUNTS, f"kept[i] and ({condition}) for t in")]


PLANTED = {
    # masks and alignment
    "eos_without_gradient": counted("mask[i][t] and not (t == length[i] - 1 and ids[i][t] == eos_id)"),
    "pad_equals_eos": counted("ids[i][t] != pad_id"),
    "cut_at_first_eos": counted("mask[i][t] and eos_id not in ids[i][:t]"),
    "first_token_dropped": counted("mask[i][t] and t > 0"),
    "last_token_dropped": counted("mask[i][t] and t < length[i] - 1"),
    "padding_counted": counted("True"),
    "padding_summed": [("if not counts[i][t]:", "if mask[i][t] and not kept[i] or not kept[i]:")],
    "padding_in_length": [("[sum(counts[i]) for i in rows]", "[width * kept[i] for i in rows]")],
    "exp_before_mask": [
        ("            if not counts[i][t]:\n                continue\n", ""),
        ("term = -term * share(i) * weight(i, t)", "term = -term * share(i) * weight(i, t) * counts[i][t]"),
    ],
    "empty_completion_nan": [("(n[i] or 1)", "n[i]"), ("total, gradient = 0.0,", "total, gradient = sum(0 * share(i) for i in rows if kept[i]),")],
    "all_masked_nan": [("(sum(n) or 1)", "sum(n)"), ("total, gradient = 0.0,", "total, gradient = 0 * share(0),")],
    "truncated_not_masked": [("kept = [not (mask_truncated and truncated[i])", "kept = [True")],
    "masked_in_normaliser": [("[sum(counts[i]) for i in rows]", "length")],
    # advantages
    "population_std": [("(len(values) - ddof)", "len(values)")],
    "std_missing": [('scale == "none" or', "True or")],
    "std_of_batch": [('if scale == "group_std" else', "if False else")],
    "std_of_group": [('if scale == "group_std" else', "if True else")],
    "mean_of_batch": [("j for j in mates(i) if baseline", "j for j in rows if baseline")],
    "baseline_missing": [('baseline == "none"', "True")],
    "groups_by_position": [
        ("    def mates(i):", "    place = sorted(group)\n\n    def mates(i):"),
        ("(mates(i) if scale", "([j for j in rows if place[j] == place[i]] if scale"),
        ("[j for j in mates(i) if baseline", "[j for j in rows if place[j] == place[i] if baseline"),
    ],
    "leave_one_out_includes_self": [('baseline != "leave_one_out" or j != i', "True")],
    "dead_group_nan": [('scale == "none" or max(values) == min(values)', 'scale == "none"')],
    "std_eps_missing": [("math.sqrt(variance) + std_eps", "math.sqrt(variance)")],
    "std_eps_in_root": [("math.sqrt(variance) + std_eps", "math.sqrt(variance + std_eps)")],
    # aggregation
    "normaliser_is_group_token_mean": [('if aggregation == "group_token_mean"', "if True")],
    "normaliser_is_batch_token_mean": [('aggregation == "group_token_mean"', "False"), ('aggregation == "batch_token_mean"', "True")],
    "normaliser_missing": [("def share(i):\n", "def share(i):\n        return 1.0\n")],
    "normaliser_is_longest": [("(max_new_tokens if", "(max(n) if")],
    "normaliser_is_weight_sum": [("[sum(counts[i]) for i in rows]", "[sum(c * weight(i, t) for t, c in enumerate(counts[i])) for i in rows]")],
    # ratio and clipping
    "clip_missing": [(TERM, "pass")],
    "clip_sides_swapped": [("1 - clip_low, 1 + clip_high", "1 - clip_high, 1 + clip_low")],
    "clip_high_ignored": [("1 + clip_high", "1 + clip_low")],
    "clip_without_min": [(TERM, TERM.replace("min(term, ", "(", 1))],
    "clip_max_for_min": [(TERM, TERM.replace("min", "max", 1))],
    "clip_of_log_ratio": [(TERM, "term = min(term, exp(clip(now - old[i][t], -clip_low, clip_high)) * a)")],
    "ratio_inverted": [("exp(now - old[i][t])", "exp(old[i][t] - now)")],
    "ratio_missing": [("term = ratio * a", "term = now * a"), (TERM, "pass")],
    "old_is_current": [("exp(now - old[i][t])", "exp(now - logp[i][t])")],
    "old_not_detached": [("now - old[i][t]", "now - (now if on_policy else old[i][t])"), ("    def mates(i):", "    on_policy = all(a == b for x, y, n in zip(logp, old, length) for a, b in zip(x[:n], y[:n]))\n\n    def mates(i):")],
    "sign_flipped": [("            term = term - divergence", "            term = -term - divergence")],
    # KL
    "kl_missing": [("term = term - divergence * beta", "pass")],
    "kl_sign": [("term - divergence", "term + divergence")],
    "kl_is_k1": [('kl == "k1"', "True")],
    "kl_is_k2": [('kl == "k1"', "False"), ('kl == "k2"', "True")],
    "kl_is_k3": [('kl == "k1"', "False"), ('kl == "k2"', "False")],
    "kl_reversed": [("x = ref[i][t] - now", "x = now - ref[i][t]"), ("divergence = now - ref[i][t]", "divergence = ref[i][t] - now")],
    "kl_against_old": [("    def mates(i):", "    ref = old\n\n    def mates(i):")],
    "kl_not_weighted": [("term = term - divergence * beta", "term = term - divergence * beta * (1 / weight(i, t))")],
    # the tree
    "lambda_missing": [("** alpha", "** 0")],
    "lambda_multiplied": [("** alpha", "** -alpha")],
    "lambda_by_position": [(MEMBERS, "[j for j in mates(i) if t < length[j] and ids[j][t] == ids[i][t]]")],
    "lambda_off_by_one": [("begin = ids[i][: t + 1]", "begin = ids[i][:t]"), ("t < length[j] and ids[j][: t + 1] == begin", "t <= length[j] and ids[j][:t] == begin")],
    "lambda_across_groups": [(MEMBERS, MEMBERS.replace("mates(i)", "rows"))],
    "lambda_duplicates_once": [(SIZE, "size = len({(length[j], *ids[j]) for j in members(i, t) if kept[j]})")],
    "lambda_with_padding": [("t < length[j] and ids", "ids")],
    "lambda_without_beginnings": [(SIZE, "size = sum(kept[j] and (length[j] >= length[i] or ids[j][: length[j]] != ids[i][: length[j]]) for j in members(i, t))")],
    "lambda_unbranched_once": [(SIZE, SIZE + "\n        size = 1 if size == sum(kept[j] for j in mates(i)) else size")],
    "lambda_with_masked": [(SIZE, "size = len(members(i, t))")],
    # process rewards
    "step_reward_is_sum": [(R_HAT, R_HAT.split(" /")[0])],
    "step_reward_is_own": [(R_HAT, "rewards[i]")],
    "step_reward_without_self": [("value = " + R_HAT, "own = [rewards[j] for j in members(i, t) if j != i] or [rewards[i]]\n        value = sum(own) / len(own)")],
    "step_reward_by_length": [(R_HAT, "sum(rewards[j] * length[j] for j in members(i, t)) / sum(length[j] for j in members(i, t))")],
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_planted_mistake_is_named(mistake):
    results, _ = check(plain(*PLANTED[mistake]).loss)
    found, unexplained = verdict(results)
    assert [names for names, _ in found] == [[mistake]] and not unexplained, [(r[0]["name"], r[2:]) for r in results if not r[1] and mistake not in r[4]][:3]


def test_right():
    results, _ = check(plain().loss)
    print([r[0]["name"] for r in results if not r[1]])
    assert all(right for _, right, *_ in results) and len(results)>90
