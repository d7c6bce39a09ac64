"""Would λ-GRPO change a run?   Five numbers of its logged groups, from completions and rewards.

aᵢ are the advantages of a group.  The push on a node, d objective / d log p there, is under GRPO
u = Σ_{i∈λ} aᵢ / Σ|yᵢ|, and under λ-GRPO v = u/|λ|.  Sums are over all groups that are looked at.

dead_groups            the share of groups whose rewards are all equal, so that u = v = 0
cosine                 Σ u·v / √(Σ u² · Σ v²) over nodes
shared_push            Σ |u| over nodes with |λ| > 1, over Σ |u| of all nodes; the same of v
held_back              of completions with aᵢ > 0, the share that passes a node with |λ| > 1 and
                       u < 0; …_chance: the mean of it over rewards permuted within each group
tokens_over_distinct   Σ|yᵢ| / nodes; …_with_prompts: with the prompt k times above, once below, if
                       the prompts of all groups are known

They assume the form of the paper: a token mean over the group, the std of a sample, one update of
each batch, no KL term, and that every logged completion counts.  The cosine takes the gradients of
different nodes as orthogonal and of one length, which shared parameters make untrue.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from minigrpo.logs.grouping import in_order, step_of
from minigrpo.logs.groups import Group
from minigrpo.rewards import advantages
from minigrpo.tree import PrefixTree

TINY = 1e-9  # below it an advantage is rounding, and a sum of some, relative to the largest of them
PERMUTATIONS = 200


def group_sums(group: Group, rng: np.random.Generator) -> Counter[str]:
    """What a group adds to the sums that `ratios` divides.   rng: for the permutations"""
    tree, k = PrefixTree.from_sequences(group.sequences), len(group.sequences)
    tokens = int(tree.lengths.sum())
    out: Counter[str] = Counter(groups=1, completions=k, tokens=tokens, nodes=tree.n_nodes)
    if (prompt := group.prompt_length) is not None:
        out.update(prompts=1, all_tokens=tokens + k * prompt, all_nodes=tree.n_nodes + prompt)
    if group.rewards is None:
        return out
    a = advantages(group.rewards, np.zeros(k, dtype=np.int64))
    a[np.abs(a) < TINY] = 0
    u, shared = tree.sum_over_members(a), tree.count > 1
    u = np.where(np.abs(u) > TINY * np.abs(a).max(), u, 0) / max(tokens, 1)
    v = u / tree.count
    out.update(rewarded=1, dead=int(not a.any()), uv=u @ v, uu=u @ u, vv=v @ v)
    for name, push in (("u", np.abs(u)), ("v", np.abs(v))):
        out.update({name: push.sum(), f"{name}_shared": push[shared].sum()})
    if a.any():
        held, *by_chance = _held_back(tree, a, rng)
        out.update(good=int((a > 0).sum()), held=held, held_by_chance=np.mean(by_chance))
    return out


def _held_back(tree: PrefixTree, a: np.ndarray, rng: np.random.Generator) -> list[int]:
    """How many completions with aᵢ > 0 pass a shared step that is pushed down.

    First with a (k,) as it is, then with permutations of it, as many at a time as memory allows.
    """
    head, k = tree.is_step_head & (tree.count > 1), len(a)
    step = tree.on_tokens(np.where(head, np.cumsum(head), 0))  # (k,T), 0: no head of such a step
    who, which, steps = np.nonzero(step)[0], step[step > 0], int(head.sum()) + 1
    at_once, found = max(2**20 // (len(who) + k), 1), []
    for first in range(0, 1 + PERMUTATIONS, at_once):
        n = min(at_once, 1 + PERMUTATIONS - first)
        own = np.tile(a, (n, 1))
        own[not first :] = rng.permuted(own[not first :], axis=1)
        row = np.arange(n)[:, None]
        sums = np.bincount((steps * row + which).ravel(), own[:, who].ravel(), steps * n)
        down = sums.reshape(n, steps)[:, which] < -TINY * np.abs(a).max()
        held = np.bincount((k * row + who).ravel(), down.ravel(), k * n).reshape(n, k) > 0
        found += (held & (own > 0)).sum(1).tolist()
    return found


def ratios(s: Counter[str]) -> dict[str, Any]:
    """The numbers of some groups by their sums; None where there is nothing to divide by."""

    def share(above: str, below: str) -> float | None:
        return float(s[above] / s[below]) if s[below] else None

    with_prompts = share("all_tokens", "all_nodes") if s["prompts"] == s["groups"] else None
    return {
        "groups": s["groups"],
        "groups_with_rewards": s["rewarded"],
        "completions": s["completions"],
        "dead_groups": share("dead", "rewarded"),
        "cosine": min(float(s["uv"] / np.sqrt(s["uu"] * s["vv"])), 1.0) if s["uv"] else None,
        "shared_push_grpo": share("u_shared", "u"),
        "shared_push_lambda_grpo": share("v_shared", "v"),
        "held_back": share("held", "good"),
        "held_back_chance": share("held_by_chance", "good"),
        "tokens_over_distinct": share("tokens", "nodes"),
        "tokens_over_distinct_with_prompts": with_prompts,
    }


def five_numbers(groups: Iterable[Group], seed: int = 0) -> dict[str, Any]:
    """The numbers of all groups with k > 1, and of those of each step, ready for JSON.

    -> {"unit", "permutations", "all": `ratios`, "steps": [{"step"} | `ratios`, in order]}
    Raises ValueError if no group has two completions.
    """
    rng, total, units = np.random.default_rng(seed), Counter[str](), set()
    steps: defaultdict[Any, Counter[str]] = defaultdict(Counter)
    for group in (g for g in groups if len(g.sequences) > 1):
        sums = group_sums(group, rng)
        total.update(sums)
        units.add(group.unit)
        if group.step is not None:
            steps[step_of(group.step)].update(sums)
    if not units:
        raise ValueError("no group has two completions: log several completions of each prompt")
    names = {s: s if isinstance(s, str) else json.loads(str(s)) for s in in_order(steps)}
    along = [{"step": name} | ratios(steps[step]) for step, name in names.items()]
    about = {"unit": " and ".join(sorted(units)), "permutations": PERMUTATIONS}
    return about | {"all": ratios(total), "steps": along}


def five_numbers_text(found: dict[str, Any]) -> str:
    """The numbers with a sentence on each, for a terminal."""
    n, unit = found["all"], found["unit"]
    p = {name: "-" if x is None else f"{x:.1%}" for name, x in n.items()}
    cosine = "-" if n["cosine"] is None else f"{n['cosine']:.3f}"
    prompts = n["tokens_over_distinct_with_prompts"]
    more = "" if prompts is None else f" ({prompts:.2f} with prompts as logged)"
    ratio = "-" if n["tokens_over_distinct"] is None else f"{n['tokens_over_distinct']:.2f}"
    rows = {
        "dead groups": f"{p['dead_groups']}: equal rewards, from which neither objective learns",
        "cosine": f"{cosine} of the pushes of GRPO and λ-GRPO on nodes; 1: the same direction",
        "push on what is shared": f"{p['shared_push_grpo']} of all |push|, "
        f"under λ-GRPO {p['shared_push_lambda_grpo']}",
        "held back": f"{p['held_back']} (by chance {p['held_back_chance']}) of above-average "
        "completions pass a shared step that is pushed down",
        "tokens over distinct": f"{ratio}{more}: the most that a tree update can save",
        "not told": "whether λ-GRPO would be better: on our own runs none of these foretold it",
        "assumed": "nodes are orthogonal; token mean, one update of each batch, no KL",
    }
    if left := n["groups"] - n["groups_with_rewards"]:
        rows["without rewards"] = f"{left} of {n['groups']} groups, in the last number alone"
    if unit != "tokens":
        rows["units"] = f"{unit}; --tokenizer FILE splits texts into tokens as the model does"
    return "\n".join(["Would λ-GRPO change this run?", *(f"{a:<24} {b}" for a, b in rows.items())])
