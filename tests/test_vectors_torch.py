"""The conformance vectors against an independent program in PyTorch, and mistakes planted in it.

The program is tests/oracles/make_vectors_oracle.py.  Skipped where PyTorch is missing; the numbers
that it gave are compared by test_vectors.py all the same.
"""

from __future__ import annotations

import functools
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")

ROOT = Path(__file__).parents[1]
ORACLE = ROOT / "tests/oracles/make_vectors_oracle.py"
sys.path.append(str(ROOT / "vectors"))

from check import TOLERANCE, BadCall, check, verdict  # noqa: E402


def oracle(*edits: tuple[str, str]) -> types.ModuleType:
    """The program with some of its text replaced."""
    text = ORACLE.read_text(encoding="utf-8")
    for before, after in edits:
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    module = types.ModuleType("make_vectors_oracle")
    module.__file__ = str(ORACLE)
    exec(compile(text, str(ORACLE), "exec"), vars(module))
    return module


KINDS = list(oracle().FUNCTIONS)


@pytest.mark.parametrize(("dtype", "largest"), [("float64", 1e-13), ("float32", 5e-6)])
@pytest.mark.parametrize("kind", KINDS)
def test_an_independent_program_agrees(kind: str, dtype: str, largest: float) -> None:
    """By far: the tolerances of check.py, 1e-9 and 2e-5, leave room for other programs."""
    results, _ = check(oracle().FUNCTIONS[kind], kind, arrays="torch", dtype=dtype)
    assert all(agrees for _, agrees, *_ in results)
    assert max(error for _, _, error, *_ in results) < largest < TOLERANCE[dtype]


TERM = "term = torch.minimum(term, torch.clamp(ratio, 1 - clip_low, 1 + clip_high) * a)"
ALLOWED = "rotate(q), k, v, allowed"
PLANTED = {
    "ratio_of_sequence": [
        (
            "ratio = torch.exp(logp - old)",
            "ratio = ((logp - old).sum(1) / m.sum(1).clamp(min=1)).exp()[:, None] + 0 * logp",
        )
    ],
    "old_not_detached": [
        ("ratio = torch.exp(", "old = logp if (logp == old).all() else old\n    ratio = torch.exp(")
    ],
    "clip_without_min": [(TERM, TERM.replace("minimum(term,", "mul(1.0,"))],
    "clip_sides_swapped": [
        (TERM, TERM.replace("low", "side").replace("high", "low").replace("side", "high"))
    ],
    "sign_flipped": [("    x = ref - logp\n", "    term = -term\n    x = ref - logp\n")],
    "kl_reversed": [("x = ref - logp", "x = logp - ref")],
    "step_std_of_steps": [
        (
            "    for g in group.unique():\n        own = rewards[group == g]\n        centred",
            "    for g in group.unique():\n        own = out[group == g][mask[group == g] > 0]\n"
            "        centred",
        )
    ],
    "population_std": [("x.std(correction=ddof)", "x.std(correction=0)")],
}


def positions_counted(filled: str) -> list[tuple[str, str]]:
    """The padding is attended; its positions are those of cumsum(mask) - 1, or filled."""
    return [
        (
            "n = int(real.sum())",
            f"n = int(real.nonzero().max()) + 1\n        at = (real[:n].cumsum(0) - 1){filled}",
        ),
        ("ids[real], torch.arange(n), causal)", "ids[:n], at, causal)[real[:n]]"),
    ]


OF_MODEL = {
    "rope_interleaved": (
        "logits",
        [
            ("first, second = x.chunk(2, dim=-1)", "first, second = x[..., ::2], x[..., 1::2]"),
            (
                "return x * cos + torch.cat([-second, first], dim=-1) * sin",
                "c, s = cos[:, : e // 2], sin[:, : e // 2]\n"
                "        turned = first * c - second * s, second * c + first * s\n"
                "        return torch.stack(turned, dim=-1).flatten(-2)",
            ),
        ],
    ),
    "heads_tiled": ("logits", [("y.repeat_interleave(repeats, dim=0)", "y.repeat(repeats, 1, 1)")]),
    "norm_eps_missing": ("logits", [(' + config["norm_eps"]', "")]),
    "attention_scale_missing": ("logits", [(ALLOWED, ALLOWED + ", scale=1.0")]),
    "attention_not_causal": ("logits", [(ALLOWED, "rotate(q), k, v")]),
    "gate_and_up_swapped": (
        "logits",
        [
            (
                'silu(linear(h, "mlp.gate")) * linear(h, "mlp.up")',
                'silu(linear(h, "mlp.up")) * linear(h, "mlp.gate")',
            )
        ],
    ),
    "padding_attended": (
        "logits",
        [
            ("n = int(real.sum())", "n = int(real.nonzero().max()) + 1"),
            ("ids[real], torch.arange(n), causal)", "ids[:n], torch.arange(n), causal)[real[:n]]"),
        ],
    ),
    **{
        f"padding_attended_at_{position}": ("logits", positions_counted(filled))
        for position, filled in {
            -1: "",
            0: ".clamp(min=0)",
            1: ".masked_fill(~real[:n], 1)",
        }.items()
    },
    "shift_by_one": ("logp", [("prompt_width - 1 : -1]", "prompt_width:]")]),
    "embedding_without_head": (
        "model_loss",
        [
            (
                'parameters["model.embed_tokens.weight"].T',
                'parameters["model.embed_tokens.weight"].detach().T',
            )
        ],
    ),
    "head_without_embedding": (
        "model_loss",
        [
            (
                'parameters["model.embed_tokens.weight"][tokens]',
                'parameters["model.embed_tokens.weight"].detach()[tokens]',
            )
        ],
    ),
    "temperature_ignored": ("model_loss", [(": -1] / temperature", ": -1]")]),
    "lambda_multiplied": ("model_loss", [("** -alpha", "** alpha")]),
    "clip_missing": ("model_loss", [("if clip_low is not None:", "if False:")]),
    "kl_not_weighted": (
        "model_loss",
        [
            ("term = term - beta *", "penalty = beta *"),
            ("alpha).to(term.dtype)", "alpha).to(term.dtype) - penalty"),
        ],
    ),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_planted_mistake_is_named(mistake: str) -> None:
    """In float32 too, where it is far enough from right."""
    function = oracle(*PLANTED[mistake]).loss
    for dtype in ("float64", "float32"):
        results, _ = check(function, cases="edge.", arrays="torch", dtype=dtype)
        found, unexplained = verdict(results)
        assert ([names for names, _ in found], unexplained) == ([[mistake]], 0), dtype


@pytest.mark.parametrize("mistake", OF_MODEL)
def test_a_mistake_planted_in_the_model_is_named(mistake: str) -> None:
    kind, edits = OF_MODEL[mistake]
    results, _ = check(oracle(*edits).FUNCTIONS[kind], kind, arrays="torch")
    found, unexplained = verdict(results)
    assert ([names for names, _ in found], unexplained) == ([[mistake]], 0)


OF_TREES = {
    "siblings_attended": ("depth, sees)", "depth, torch.ones_like(sees).tril())"),
    "positions_by_node": ("depth, sees)", "torch.arange(len(tokens)), sees)"),
}


def test_attention_over_flattened_trees_is_right() -> None:
    results, _ = check(oracle().logits_of_trees, "logits", arrays="torch")
    assert results[0][2] < 1e-13


@pytest.mark.parametrize("mistake", OF_TREES)
def test_a_mistake_planted_in_tree_attention_is_named(mistake: str) -> None:
    results, _ = check(oracle(OF_TREES[mistake]).logits_of_trees, "logits", arrays="torch")
    assert verdict(results) == ([([mistake], 1)], 0)


# -- what is no answer -----------------------------------------------------------------------------

DETACHED = "the loss is a number or detached: return a tensor that autograd can follow"
NO_ANSWERS = {
    "logp.sum().detach()": DETACHED,
    "logp.sum().item()": DETACHED,
    "torch.no_grad()(lambda: logp.sum())()": DETACHED,
    "logp.sum().long()": DETACHED,
    "0.5": DETACHED,
    "None": "the loss should be numbers, and has None",
    "logp": "the loss should be one number, and has 72",
    "logp.sum(1)": "the loss should be one number, and has 12",
    "(logp.sum(), {'kl': 0.1})": "the gradient should be numbers, and has {'kl': 0.1}",
    "logp.sum().half()": "the result is torch.float16: keep float64, or give --dtype float32",
    "logp.bfloat16().sum()": "the result is torch.bfloat16: keep float64, or give",
    "logp.float().sum()": "the result is torch.float32: keep float64, or give",
    "(logp.sum(), logp.detach().half())": "the result is torch.float16: keep float64, or give",
    "logp.to('meta').sum()": "Cannot copy out of meta tensor",
    "logp @ logp": "test_vectors_torch.py, line .*: RuntimeError: mat1 and mat2 shapes cannot be",
    "logp.sub_(1).sum()": "test_vectors_torch.py, line .*: RuntimeError: a leaf Variable that",
}


@pytest.mark.parametrize("loss", NO_ANSWERS)
def test_what_is_no_answer_is_one_clear_line(loss: str) -> None:
    names = {"torch": torch}
    code = compile(f"lambda logp: {loss}", __file__, "eval")
    with pytest.raises(BadCall) as raised:
        check(eval(code, names), cases="dapo.", arrays="torch")
    said = str(raised.value)
    assert said.startswith("dapo.mu_2: ") and "\n" not in said
    assert re.search(".*".join(map(re.escape, NO_ANSWERS[loss].split(".*"))), said), said


@pytest.mark.parametrize(
    ("kind", "function", "said"),
    [
        ("model_loss", lambda parameters: 0.5, DETACHED),
        (
            "model_loss",
            lambda parameters: (0.5, {}),
            "the gradient lacks model.embed_tokens.weight",
        ),
        ("model_loss", lambda parameters: (0.5, [1.0]), "the gradient should be a dict, and is a"),
        ("weights", lambda mask: mask.half() / 3, "the result is torch.float16"),
        ("weights", lambda mask: [row / 3 for row in mask], "the result is torch.float32"),
        ("weights", lambda mask: [*(mask > 0).tolist(), "x"], "the result should be numbers"),
    ],
)
def test_of_other_kinds_too(kind: str, function: Callable, said: str) -> None:
    with pytest.raises(BadCall, match=re.escape(said)):
        check(function, kind, arrays="torch")


def test_a_loss_of_nothing_need_not_follow_the_tensors() -> None:
    """Where all is masked, the derivative is 0 either way; a loss may have one dimension."""
    right = oracle().loss

    @functools.wraps(right)
    def loss(**given: Any) -> Any:
        counts = given["mask"].any() and not (given["mask_truncated"] and given["truncated"].all())
        return right(**given)[None] if counts else torch.zeros((), dtype=torch.float64)

    results, _ = check(loss, arrays="torch")
    assert all(agrees for _, agrees, *_ in results)


def test_a_function_may_call_backward_itself() -> None:
    right = oracle().loss

    @functools.wraps(right)
    def loss(**given: Any) -> Any:
        right(**given).backward()
        return right(**given)

    results, _ = check(loss, cases="dapo.", arrays="torch")
    assert all(agrees for _, agrees, *_ in results)


def test_a_shape_that_is_wrong_disagrees() -> None:
    results, _ = check(lambda logp: (0.1, logp.detach().T), cases="dapo.", arrays="torch")
    assert {where for *_, where, _ in results} == {"gradient: 6 entries, expected 12 entries"}
