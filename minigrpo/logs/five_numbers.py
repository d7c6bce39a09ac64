"""Would λ-GRPO change a run?   Five numbers of its logged groups, from completions and rewards.

aᵢ are the advantages of a group.  The push on a node, d objective / d log p there, is under GRPO
u = Σ_{i∈λ} aᵢ / Σ|yᵢ|, and under λ-GRPO v = u/|λ|.  Sums are over all groups that are looked at.

dead_groups            the share of groups whose rewards are all equal, so that u = v = 0
cosine                 Σ u·v / √(Σ u² · Σ v²) over nodes
shared_push            Σ |u| over nodes with |λ| > 1, over Σ |u| of all nodes; the same of v
held_back              of completions with aᵢ > 0, the share that passes a node with |λ| > 1 and
                       u < 0; …_chance: the mean of it over rewards permuted within each group
tokens_over_distinct   Σ|yᵢ| / nodes; …_with_prompts: with the prompt k times above, once below

They assume the form of the paper: a token mean over the group, the std of a sample, one update of
each batch, no KL term, and that every logged completion counts.  The cosine takes the gradients of
different nodes as orthogonal and of one length, which shared parameters make untrue.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from minigrpo.logs.grouping import in_order, step_of
from minigrpo.logs.groups import Group
from minigrpo.rewards import advantages
from minigrpo.system.text import TO_ASCII
from minigrpo.tree import PrefixTree

TINY = 1e-9  # an advantage or a sum of some below this (of the largest advantage) is rounding: 0
PERMUTATIONS = 200


def group_sums(group: Group, rng: np.random.Generator) -> Counter[str]:
    """What a group adds to the sums that `ratios` divides.   rng: for the permutations"""
    tree, k = PrefixTree.from_sequences(group.sequences), len(group.sequences)
    tokens = int(tree.lengths.sum())
    out: Counter[str] = Counter(groups=1, completions=k, tokens=tokens, nodes=tree.n_nodes)
    if (prompt := group.prompt_length) is not None:
        out.update(all_tokens=tokens + k * prompt, all_nodes=tree.n_nodes + prompt)
    if group.rewards is None:
        return out
    a = advantages(group.rewards, np.zeros(k, dtype=np.int64))
    a[np.abs(a) < TINY] = 0
    tiny = TINY * np.abs(a).max()
    u = tree.sum_over_members(a) / max(tokens, 1)
    u[np.abs(u) * tokens <= tiny] = 0
    v, shared = u / tree.count, tree.count > 1
    out.update(rewarded=1, dead=int(not a.any()), uv=u @ v, uu=u @ u, vv=v @ v)
    for name, push in (("u", np.abs(u)), ("v", np.abs(v))):
        out.update({name: push.sum(), f"{name}_shared": push[shared].sum()})
    if a.any():
        held = _held_back(tree, np.stack([a, *rng.permuted(np.tile(a, (PERMUTATIONS, 1)), axis=1)]))
        out.update(good=int((a > 0).sum()), held=held[0], held_by_chance=held[1:].mean())
    return out


def _held_back(tree: PrefixTree, a: np.ndarray) -> np.ndarray:
    """How many completions with aᵢ > 0 pass a shared step that is pushed down.   (n,k) -> (n,)"""
    heads = np.flatnonzero(tree.is_step_head & (tree.count > 1))
    step = np.full(tree.n_nodes, -1)
    step[heads] = np.arange(len(heads))
    step = tree.on_tokens(step, -1)  # (k,T)
    passes = np.zeros((a.shape[1], len(heads)))
    passes[np.nonzero(step >= 0)[0], step[step >= 0]] = 1
    down = a @ passes < -TINY * np.abs(a).max()  # (n,steps)
    return ((down @ passes.T > 0) & (a > 0)).sum(1)


def ratios(s: Counter[str]) -> dict[str, Any]:
    """The numbers of some groups by their sums; None where there is nothing to divide by."""

    def share(above: float, below: float) -> float | None:
        return float(above / below) if below else None

    return {
        "groups": s["groups"],
        "completions": s["completions"],
        "groups_without_rewards": s["groups"] - s["rewarded"],
        "dead_groups": share(s["dead"], s["rewarded"]),
        "cosine": share(s["uv"], np.sqrt(s["uu"] * s["vv"])),
        "shared_push_grpo": share(s["u_shared"], s["u"]),
        "shared_push_lambda_grpo": share(s["v_shared"], s["v"]),
        "held_back": share(s["held"], s["good"]),
        "held_back_chance": share(s["held_by_chance"], s["good"]),
        "tokens_over_distinct": share(s["tokens"], s["nodes"]),
        "tokens_over_distinct_with_prompts": share(s["all_tokens"], s["all_nodes"]),
    }


def five_numbers(groups: Sequence[Group], seed: int = 0) -> dict[str, Any]:
    """The numbers of all groups with k > 1, and of those of each step, ready for JSON.

    -> {"unit", "permutations", "all": `ratios`, "steps": [{"step", …} in order]}
    Raises ValueError if no group has two completions.
    """
    rng, steps, units = np.random.default_rng(seed), defaultdict(Counter), set()
    total: Counter[str] = Counter()
    for group in groups:
        if len(group.sequences) > 1:
            sums = group_sums(group, rng)
            total.update(sums)
            units.add(group.unit)
            if group.step is not None:
                steps[step_of(group.step)].update(sums)
    if not total:
        raise ValueError("no group has two completions: log several completions of each prompt")
    return {
        "unit": units.pop() if len(units) == 1 else "tokens",
        "permutations": PERMUTATIONS,
        "all": ratios(total),
        "steps": [{"step": _plain(step)} | ratios(steps[step]) for step in in_order(steps)],
    }


def _plain(step: Any) -> int | float | str:
    return step if isinstance(step, str) else int(step) if step == int(step) else float(step)


def five_numbers_text(found: dict[str, Any], *, ascii_only: bool = False) -> str:
    """The numbers with a sentence on each, for a terminal."""
    n, unit = found["all"], found["unit"]

    def told(*names: str, form: str = ".1%") -> str:
        return ", ".join("-" if n[name] is None else format(n[name], form) for name in names)

    both = told("shared_push_grpo", "shared_push_lambda_grpo")
    prompts = n["tokens_over_distinct_with_prompts"]
    rows: Iterable[tuple[str, str, str]] = [
        ("dead groups", told("dead_groups"), "have equal rewards: no objective learns from them"),
        (
            "cosine",
            told("cosine", form=".3f"),
            "of the pushes of GRPO and λ-GRPO; 1: one direction",
        ),
        ("push on what is shared", both, "of all |push|, under GRPO and under λ-GRPO"),
        (
            "held back",
            told("held_back"),
            "of above-average completions pass a shared step that is pushed down "
            f"(rewards permuted in the group: {told('held_back_chance')})",
        ),
        (
            f"{unit} / distinct {unit}",
            told("tokens_over_distinct", form=".2f"),
            "a tree update computes at most so many times fewer"
            + f" (with prompts as logged: {prompts:.2f})" * (prompts is not None),
        ),
    ]
    lines = ["Would λ-GRPO change this run?", *(f"{a:<24} {b:<13} {c}" for a, b, c in rows)]
    if left := n["groups_without_rewards"]:
        lines.append(f"{left} of {n['groups']} groups have no rewards: only the last counts them.")
    lines.append(
        "Gradients of different nodes are taken as orthogonal; clipping and KL are left out."
    )
    if unit != "tokens":
        told_of = "not those of tokens: --tokenizer FILE splits as the model did"
        lines.append(f"These are trees of {unit}, {told_of}.")
    out = "\n".join(lines)
    return out.translate(TO_ASCII) if ascii_only else out
