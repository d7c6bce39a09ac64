"""Write vectors.json: a few numbers of every conformance vector, from an independent program.

GRPO, its relatives, the prefix tree and a Llama in PyTorch with autograd, written from the
definitions in the papers; it shares no code with the package and looks at no expected number.
`test_vectors_torch.py` runs all of it; where PyTorch is missing, `test_vectors.py` compares the
numbers that this script wrote.  Run it with PyTorch 2.x:

    python tests/oracles/make_vectors_oracle.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]


# -- the tree: a set of completions for every prefix -----------------------------------------------


def process_sets(completions: list, group: Tensor) -> dict[tuple, list[int]]:
    """(group, prefix) -> the rows that begin with it, in order; the empty prefix has them all."""
    found: dict[tuple, list[int]] = {}
    for row, (g, y) in enumerate(zip(group.tolist(), completions, strict=True)):
        for end in range(len(y) + 1):
            found.setdefault((g, *y[:end]), []).append(row)
    return found


def over_tokens(completions: list, group: Tensor, width: int, value: Any) -> Tensor:
    """value(rows of λ(i,t)) for every token, 0 in the padding.   -> (B,T)"""
    sets, out = process_sets(completions, group), torch.zeros(len(completions), width)
    out = out.double()
    for i, (g, y) in enumerate(zip(group.tolist(), completions, strict=True)):
        for t in range(len(y)):
            out[i, t] = value(sets[(g, *y[: t + 1])])
    return out


def steps(completions: list, group: Tensor) -> list:
    """B(G) of every group: distinct sets; each step goes on from where its parent ended."""
    out = []
    for g in sorted(set(group.tolist())):
        longest: dict[tuple, int] = {}  # e(λ): the longest prefix that a set shares
        for (of, *prefix), rows in process_sets(completions, group).items():
            if of == g:
                longest[tuple(rows)] = max(longest.get(tuple(rows), 0), len(prefix))
        found = []
        for rows, end in longest.items():
            above = [e for other, e in longest.items() if set(other) > set(rows)]
            found.append([max(above, default=0), end, list(rows)])
        out.append(sorted(found))
    return out


def counts(completions: list, group: Tensor, mask: Tensor) -> Tensor:
    return over_tokens(completions, group, mask.shape[1], len)


def weights(
    completions: list, group: Tensor, mask: Tensor, truncated: Tensor, mask_truncated: bool,
    alpha: float,
) -> Tensor:  # fmt: skip
    dropped = truncated.bool() & mask_truncated

    def of(rows: list[int]) -> float:
        return max(int((~dropped[rows]).sum()), 1) ** -alpha

    return over_tokens(completions, group, mask.shape[1], of)


# -- rewards and advantages ------------------------------------------------------------------------


def spread(rewards: Tensor, own: Tensor, scale: str, ddof: int, std_eps: float) -> Tensor:
    """std + eps; 1 if there is no std to divide by."""
    x = own if scale == "group_std" else rewards
    if scale == "none" or (x == x[0]).all():
        return torch.ones((), dtype=x.dtype)
    return x.std(correction=ddof) + std_eps


def advantages(
    rewards: Tensor, group: Tensor, baseline: str, scale: str, ddof: int, std_eps: float
) -> Tensor:
    out = torch.zeros_like(rewards)
    for g in group.unique():
        own = rewards[group == g]
        base = {
            "group_mean": own.mean(),
            "leave_one_out": (own.sum() - own) / (len(own) - 1),
            "none": 0.0,
        }[baseline]
        out[group == g] = (own - base) / spread(rewards, own, scale, ddof, std_eps)
    return out


def step_rewards(completions: list, group: Tensor, mask: Tensor, rewards: Tensor) -> Tensor:
    values = over_tokens(completions, group, mask.shape[1], lambda rows: rewards[rows].mean())
    return values.to(rewards.dtype)


def step_advantages(
    completions: list, group: Tensor, mask: Tensor, rewards: Tensor, scale: str, ddof: int,
    std_eps: float,
) -> Tensor:  # fmt: skip
    out = step_rewards(completions, group, mask, rewards)
    for g in group.unique():
        own = rewards[group == g]
        centred = out[group == g] - rewards[group == g].mean()
        out[group == g] = centred / spread(rewards, own, scale, ddof, std_eps)
    return out


# -- the loss --------------------------------------------------------------------------------------


def loss(
    completions: list, group: Tensor, mask: Tensor, rewards: Tensor, truncated: Tensor,
    logp: Tensor, old: Tensor, ref: Tensor, max_new_tokens: int,
    baseline: str, scale: str, ddof: int, std_eps: float, aggregation: str, alpha: float,
    process_reward: str, clip_low: float | None, clip_high: float | None, beta: float, kl: str,
    mask_truncated: bool,
) -> Tensor:  # fmt: skip
    m = mask.bool() & ~(truncated.bool() & mask_truncated)[:, None]
    logp, old, ref = (torch.where(m, x, 0.0) for x in (logp, old, ref))
    if process_reward == "tree":
        a = step_advantages(completions, group, mask, rewards, scale, ddof, std_eps)
    else:
        a = advantages(rewards, group, baseline, scale, ddof, std_eps)[:, None]
    ratio = torch.exp(logp - old)
    term = ratio * a
    if clip_low is not None:
        term = torch.minimum(term, torch.clamp(ratio, 1 - clip_low, 1 + clip_high) * a)
    x = ref - logp
    term = term - beta * {"k1": -x, "k2": x**2 / 2, "k3": torch.exp(x) - 1 - x}[kl]
    term = term * weights(completions, group, mask, truncated, mask_truncated, alpha).to(term.dtype)
    term, n = torch.where(m, term, 0.0), m.sum(1)
    if aggregation == "group_token_mean":
        means = [term[group == g].sum() / n[group == g].sum().clamp(min=1) for g in group.unique()]
        return -torch.stack(means).mean()
    if aggregation == "batch_token_mean":
        return -term.sum() / n.sum().clamp(min=1)
    if aggregation == "sequence_mean":
        return -(term.sum(1) / n.clamp(min=1)).mean()
    return -term.sum(1).mean() / (max_new_tokens if aggregation == "constant" else 1)


# -- a Llama, every sequence alone -----------------------------------------------------------------


def llama(
    parameters: dict[str, Tensor], config: dict[str, Any], tokens: Tensor,
    positions: Tensor, allowed: Tensor,
) -> Tensor:  # fmt: skip
    """The logits after every token.   tokens, positions (n,), who sees whom (n,n) -> (n,V)"""
    n, e = len(tokens), config["head_dim"]
    dtype = parameters["model.norm.weight"].dtype

    def norm(x: Tensor, name: str) -> Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + config["norm_eps"])
        return x * scale * parameters[f"model.{name}.weight"]

    frequency = config["rope_base"] ** (-torch.arange(0, e, 2, dtype=dtype) / e)
    angle = positions.to(dtype)[:, None] * frequency
    cos, sin = (torch.cat([f(angle)] * 2, dim=-1) for f in (torch.cos, torch.sin))

    def rotate(x: Tensor) -> Tensor:  # (heads,n,E)
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    x = parameters["model.embed_tokens.weight"][tokens]
    for i in range(config["n_layers"]):

        def linear(h: Tensor, name: str, i: int = i) -> Tensor:
            return h @ parameters[f"model.layers.{i}.{name}_proj.weight"].T

        h = norm(x, f"layers.{i}.input_layernorm")
        q, k, v = (linear(h, f"self_attn.{s}").view(n, -1, e).transpose(0, 1) for s in "qkv")
        repeats = config["n_heads"] // config["n_kv_heads"]
        k, v = (y.repeat_interleave(repeats, dim=0) for y in (rotate(k), v))
        y = torch.nn.functional.scaled_dot_product_attention(rotate(q), k, v, allowed)
        x = x + linear(y.transpose(0, 1).reshape(n, -1), "self_attn.o")
        h = norm(x, f"layers.{i}.post_attention_layernorm")
        h = torch.nn.functional.silu(linear(h, "mlp.gate")) * linear(h, "mlp.up")
        x = x + linear(h, "mlp.down")
    return norm(x, "norm") @ parameters["model.embed_tokens.weight"].T


def logits(
    parameters: dict[str, Tensor], config: dict[str, Any], input_ids: Tensor, attention_mask: Tensor
) -> Tensor:
    """-> (B,S,V), 0 in the padding"""
    rows = []
    for ids, real in zip(input_ids, attention_mask.bool(), strict=True):
        n = int(real.sum())
        causal = torch.ones(n, n, dtype=torch.bool).tril()
        out = llama(parameters, config, ids[real], torch.arange(n), causal)
        rows.append(out.new_zeros(len(ids), out.shape[1]).masked_scatter(real[:, None], out))
    return torch.stack(rows)


def logits_of_trees(
    parameters: dict[str, Tensor], config: dict[str, Any], prompts: list, completions: list,
    group: Tensor, input_ids: Tensor, attention_mask: Tensor,
) -> Tensor:  # fmt: skip
    """The same, from one sequence per group: its prompt and every prefix once, as tree attention
    does it.   A token sees its own prefix, and its position is its depth.
    """
    out = torch.zeros(*input_ids.shape, config["vocab_size"], dtype=torch.float64)
    for g in group.unique().tolist():
        rows = [i for i, of in enumerate(group.tolist()) if of == g]
        texts = {i: tuple(prompts[i] + completions[i]) for i in rows}
        prefixes = sorted({text[: t + 1] for text in texts.values() for t in range(len(text))})
        place = {prefix: n for n, prefix in enumerate(prefixes)}
        depth = torch.tensor([len(prefix) - 1 for prefix in prefixes])
        sees = torch.tensor([[a == b[: len(a)] for a in prefixes] for b in prefixes])
        tokens = torch.tensor([prefix[-1] for prefix in prefixes])
        found = llama(parameters, config, tokens, depth, sees)
        for i, text in texts.items():
            path = [place[text[: t + 1]] for t in range(len(text))]
            out[i, attention_mask[i].bool()] = found[path].double()
    return out


def logp(logits: Tensor, ids: Tensor, prompt_width: int, temperature: float) -> Tensor:
    """log p of the completions' tokens.   logits (B,S,V) -> (B,T)"""
    before = logits[:, prompt_width - 1 : -1] / temperature  # what predicts each of them
    return torch.log_softmax(before, -1).gather(-1, ids[..., None]).squeeze(-1)


def model_loss(
    parameters: dict[str, Tensor], config: dict[str, Any], input_ids: Tensor,
    attention_mask: Tensor, prompt_width: int, temperature: float, ids: Tensor,
    completions: list, group: Tensor, mask: Tensor, rewards: Tensor, truncated: Tensor,
    old: Tensor, ref: Tensor, max_new_tokens: int,
    baseline: str, scale: str, ddof: int, std_eps: float, aggregation: str, alpha: float,
    process_reward: str, clip_low: float | None, clip_high: float | None, beta: float, kl: str,
    mask_truncated: bool,
) -> Tensor:  # fmt: skip
    now = logp(
        logits(parameters, config, input_ids, attention_mask), ids, prompt_width, temperature
    )
    return loss(
        completions, group, mask, rewards, truncated, now, old, ref, max_new_tokens,
        baseline, scale, ddof, std_eps, aggregation, alpha, process_reward, clip_low, clip_high,
        beta, kl, mask_truncated,
    )  # fmt: skip


# -- the numbers that are kept ---------------------------------------------------------------------

FUNCTIONS = {
    "loss": loss, "weights": weights, "counts": counts, "advantages": advantages,
    "step_rewards": step_rewards, "step_advantages": step_advantages, "steps": steps,
    "logits": logits, "logp": logp, "model_loss": model_loss,
}  # fmt: skip


def fingerprint(numbers: list[float]) -> list[float]:
    """Norm and a weighted sum, in which every number and its place counts."""
    return [math.hypot(*numbers), sum(math.cos(1 + i) * x for i, x in enumerate(numbers))]


def main() -> None:
    import inspect
    import sys

    sys.path.insert(0, str(ROOT / "vectors"))
    from check import RAGGED, convert, flat, result_of

    found = {}
    for file in ("grpo", "llama"):
        data = json.loads((ROOT / f"vectors/{file}.json").read_text(encoding="utf-8"))
        for case in data["cases"]:
            function = FUNCTIONS[case["kind"]]
            names, by = inspect.signature(function).parameters, case.get("gradient_by", "logp")
            inputs = data["batches"][case["batch"]] | case["settings"] | case["inputs"]
            given = {
                n: convert(inputs[n], n not in RAGGED and "torch", "float64", n == by)
                for n in names
            }
            got, _ = result_of(function, given, case, inputs.get(case.get("mask")))
            found[case["name"]] = {n: fingerprint(flat(x)) for n, x in got.items()}
    path = ROOT / "tests/oracles/vectors.json"
    lines = [f" {json.dumps(name)}: {json.dumps(numbers)}" for name, numbers in found.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
