"""Is |λ| a mistake, or part of the gradient?   (results/README.md has the derivation)

J = E[r(y)] has the gradient ∇J = Σ_n p(n)·V(n)·∇log π(n), over the nodes n of a small tree of all
completions: p(n) is the chance that one passes n, V(n) the expected reward of those that do.  An
estimator puts a coefficient C(n) on each node, so E[g] = Σ_n E[C(n)]·∇log π(n): a sum over all
groups.  The policy is a softmax with one logit vector per prefix.  Ways to draw a group:

    (a) k independent completions
    (b) by branching: b draws at every prefix, or one shared beginning with k continuations
    (c) completions cut into training samples y[:1], …, y[:T], which all carry the final reward

and what a process set λ counts for (a draw is one sampled token; two draws may be the same node):

    members    |λ|, the plain sum over the group: GRPO
    distinct   1 per node: λ-GRPO, which divides by |λ|
    draws      1 per draw
    shares     per draw, 1 over the number of draws at that depth if no path ends early: 1/k in (a),
               b^-t at depth t in (b) with b branches everywhere

Left out: clipping, KL, and parameters that prefixes share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, product
from math import factorial, prod
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from minigrpo.experiments import tables as t
from minigrpo.experiments.figures import cell, matrix_axes, matrix_style, panels
from minigrpo.experiments.reproduce import Request
from minigrpo.objectives import Objective, advantages
from minigrpo.tree import PrefixTree, Rollouts, Tokens

TREES = {  # all completions, by their lengths: binary or ternary, of two or three tokens; 2 is EOS
    "equal": [[*product(range(v), repeat=depth)] for v, depth in ((2, 2), (3, 2), (2, 3))],
    "unequal": [[(2,), (0, 2), (0, 0), (1, 2), (1, 1), (1, 0, 2), (1, 0, 1)]],
}
SCHEMES = {  # draws at the root, after one token, after more; whether completions are cut
    "(a) 2 independent": ((2, 1, 1), False),
    "(a) 3 independent": ((3, 1, 1), False),
    "(a) 4 independent": ((4, 1, 1), False),
    "(b) 2 branches everywhere": ((2, 2, 2), False),
    "(b) 1 token, then 4": ((1, 4, 1), False),
    "(c) 1 completion, cut": ((1, 1, 1), True),
    "(c) 3 completions, cut": ((3, 1, 1), True),
}
WEIGHTS = ("members", "distinct", "draws", "shares")
BASELINES = ("none", "group_mean", "leave_one_out")
SETTINGS = [  # rewards, baseline, scale; parent: R̂ of a node minus R̂ of its parent
    *product(["any"], BASELINES, ["none", "group_std"]),
    *product(["0 or 1"], BASELINES, ["group_std"]),
    ("any", "parent", "none"),
]
SINGLE = [("none", "none"), ("parent", "none")]  # what a group of one member can do with
VERDICTS = ("exact", "depth", "prefix")  # E[g] = c·∇J: one c > 0; one c ≥ 0 per depth; per prefix
EXACT = 1e-12


@dataclass(frozen=True, eq=False)
class Groups:
    """All G groups that a way of drawing can give, as one batch of B members.

    Token ids, modulo N, are nodes of `world`.
    """

    world: PrefixTree  # all completions, N nodes
    orders: np.ndarray  # (G,) in how many orders the draws of a group can come
    merged: PrefixTree  # the groups as the package sees them: equal prefixes are one node
    drawn: PrefixTree  # the groups as they were drawn: each draw is a node
    whole: np.ndarray  # (B,) the completion that a member is, or was cut from
    share: np.ndarray  # (B,)
    size: int  # members of a group if no path ends early and none is cut


def enumerate_groups(completions: Sequence[Tokens], branching: tuple, cut: bool) -> Groups:
    """Draw in all ways.   branching: draws at the root, after one token, after more."""
    world = PrefixTree.from_sequences(completions)
    n, index = world.n_nodes, {int(max(path)): i for i, path in enumerate(world.paths)}
    widths = [branching[min(d, 2)] for d in range(int(world.lengths.max()))]

    def below(node: int, depth: int) -> list[tuple[int, list[tuple[int, ...]]]]:
        """(orders, members) below a node.   A draw: its number among siblings times N, plus node"""
        one = []
        for child in np.flatnonzero(world.parent == node).tolist():
            further = [(1, [()])] if child in index else below(child, depth + 1)
            one += [(orders, [(child, *m) for m in members]) for orders, members in further]
        out = []
        for chosen in combinations_with_replacement(range(len(one)), widths[depth]):
            same = prod(map(factorial, Counter(chosen).values()))
            orders = factorial(len(chosen)) // same * prod(one[i][0] for i in chosen)
            members = [(j * n + m[0], *m[1:]) for j, i in enumerate(chosen) for m in one[i][1]]
            out.append((orders, members))
        return out

    found, groups = below(-1, 0), []
    for _, members in found:
        starts = [(m, 1 if cut else len(m)) for m in members]
        groups.append([(m, m[:t]) for m, start in starts for t in range(start, len(m) + 1)])
    samples = [(whole, part) for group in groups for whole, part in group]
    drawn = [[np.array(part) for _, part in group] for group in groups]
    return Groups(
        world=world,
        orders=np.array([orders for orders, _ in found]),
        merged=PrefixTree.from_groups([()] * len(drawn), [[m % n for m in ms] for ms in drawn]),
        drawn=PrefixTree.from_groups([()] * len(drawn), drawn),
        whole=np.array([index[whole[-1] % n] for whole, _ in samples]),
        share=np.array([(whole == part) / prod(widths[: len(part)]) for whole, part in samples]),
        size=prod(widths),
    )


def log_policy(world: PrefixTree, logits: np.ndarray) -> np.ndarray:
    """log π of each node's token after its prefix, a softmax over siblings.   (N,) -> (N,)"""
    return logits - np.log(np.bincount(world.parent + 1, np.exp(logits))[world.parent + 1])


def reach(world: PrefixTree, logits: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """p(n) and V(n).   logits (N,), rewards (completions,) -> (2,N)"""
    chance = np.exp(world.on_tokens(log_policy(world, logits)).sum(1))  # (completions,)
    p = world.sum_over_members(chance)
    return np.stack([p, world.sum_over_members(chance * rewards) / p])


def gradient(world: PrefixTree, logits: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Σ_n c(n)·∇log π(n) in the logits: c - π·(Σc over siblings).   (N,), (N,) -> (N,)"""
    of_siblings = np.bincount(world.parent + 1, c)[world.parent + 1]
    return c - np.exp(log_policy(world, logits)) * of_siblings


def expected(groups: Groups, logits: np.ndarray, rewards: np.ndarray, *how: str) -> np.ndarray:
    """E[C(n)], over all groups; advantages, |λ| and λ-weights are the package's.   -> (N,)

    how: baseline, scale, weight.
    """
    (baseline, scale, weight), n = how, groups.world.n_nodes
    tree = groups.drawn if weight in ("draws", "shares") else groups.merged
    r, group, nothing = rewards[groups.whole], tree.completion_group, np.zeros(tree.n_nodes)
    share = groups.share if weight == "shares" else np.full(len(r), 1 / groups.size)
    if baseline == "parent":
        of_node, of_group = tree.sum_over_members(share), np.bincount(group, share)
        value = tree.sum_over_members(share * r) / of_node
        mean = np.bincount(group, share * r) / of_group
        c = of_node * (value - np.where(tree.parent >= 0, value[tree.parent], mean[tree.group]))
        c /= tree.count if weight in ("distinct", "draws") else 1
    elif weight == "shares":
        c = tree.sum_over_members(share * advantages(r, group, baseline, scale))
    else:
        name = "grpo" if weight == "members" else "lambda_grpo"
        choices = {"baseline": baseline, "scale": scale, "aggregation": "sequence_sum"}
        rollouts = Rollouts([], [], tree, nothing, nothing, np.zeros(len(r), dtype=bool), 1.0, 0)
        dlogp = Objective.preset(name, **choices)(rollouts, r, nothing, nothing)[1]
        c = -dlogp * len(r) / groups.size  # the objective's mean over the batch as a sum per group
    logp = log_policy(groups.world, logits)[groups.drawn.token % n]  # of each draw
    chance = groups.orders * np.exp(np.bincount(groups.drawn.group, logp))
    return np.bincount(tree.token % n, chance[tree.group] * c, n)


def compare(groups: Groups, seed: int, rewards_are: str, *how: str) -> tuple | None:
    """E[g] against ∇J, policy and rewards random.   -> what is left, [c], c per depth, cosine

    What is left: ‖E[g] - c·∇J‖ / ‖E[g]‖ with the best c ≥ 0 of each of VERDICTS.  None if E[g] = 0.
    A depth at which ∇J is 0 has no c.
    """
    world, rng = groups.world, np.random.default_rng([11, seed])
    logits, rewards = rng.standard_normal(world.n_nodes), rng.standard_normal(len(world.paths))
    if rewards_are == "0 or 1":
        rewards = rng.permutation(len(rewards)) % 2.0
    p, value = reach(world, logits, rewards)
    exact = gradient(world, logits, p * value)
    g = gradient(world, logits, expected(groups, logits, rewards, *how))
    size, left, factors = np.linalg.norm(g), [], []
    if size < EXACT:
        return None
    for by in (np.zeros_like(world.depth), world.depth, world.parent + 1):
        c = np.maximum(np.bincount(by, g * exact), 0)
        c /= np.maximum(np.bincount(by, exact * exact), 1e-300)
        left.append(np.linalg.norm(g - c[by] * exact) / size)
        factors.append(np.where(np.bincount(by, np.abs(exact)) > EXACT, c, np.nan))
    return left, *factors[:2], g @ exact / size / np.linalg.norm(exact)


def measure(scheme: str, lengths: str, seeds: int) -> list[dict[str, Any]]:
    """A row for each estimator, over all trees of these lengths and all seeds.

    verdict: the first of VERDICTS by which nothing is left anywhere, else "no", "zero", "refused".
    left: the largest, for each of VERDICTS.  factors: the lowest and the highest c if "exact"; if
    "depth", those of each depth of the last tree.
    """
    trees = [enumerate_groups(tree, *SCHEMES[scheme]) for tree in TREES[lengths]]
    rows = []
    for setting, weight in product(SETTINGS, WEIGHTS):
        names = ("scheme", "lengths", "rewards", "baseline", "scale", "weight")
        row = dict(zip(names, (scheme, lengths, *setting, weight), strict=True))
        row |= dict.fromkeys(("verdict", "left", "factors", "cosine", "lowest_cosine"))
        rows.append(row)
        if setting[1:] not in SINGLE and any(min(t.merged.group_sizes) < 2 for t in trees):
            row["verdict"] = "refused"  # by the package: a group of one has nothing to compare with
            continue
        found = [compare(t, seed, *setting, weight) for t in trees for seed in range(seeds)]
        if not (found := [f for f in found if f]):
            row["verdict"] = "zero"
            continue
        left, single, per_depth, cosines = zip(*found, strict=True)
        left = np.max(left, axis=0)
        verdict = next((v for v, x in zip(VERDICTS, left, strict=True) if x < EXACT), "no")
        last = [f for f in per_depth if len(f) == len(per_depth[-1])]
        if (factors := {"exact": single, "depth": last}.get(verdict)) is not None:
            span = np.nanmin(factors, axis=0), np.nanmax(factors, axis=0)
            row["factors"] = np.transpose(span).round(6).tolist()
        row |= {"verdict": verdict, "left": [float(f"{x:.2g}") for x in left]}
        row |= {"cosine": round(float(np.median(cosines)), 6)}
        row |= {"lowest_cosine": round(float(min(cosines)), 6)}
    return rows


def directions(seeds: int) -> list[dict[str, Any]]:
    """λ-GRPO in (a), on the binary tree of depth 4 with random policies, by line 3: k may be large.

    against: the share of policies with E[g]·∇J < 0; prefixes_against: of prefixes, each in its own
    logits.  spread: the standard deviation of the logits.
    """
    world = PrefixTree.from_sequences([*product(range(2), repeat=4)])
    prefixes, rows = np.unique(world.parent) + 1, []
    for spread, k, baseline in product((1, 3), (4, 16, 64), ("none", "group_mean")):
        found = []
        for seed in range(seeds):
            rng = np.random.default_rng([12, seed])
            logits, rewards = spread * rng.standard_normal(world.n_nodes), rng.standard_normal(16)
            p, value = reach(world, logits, rewards)
            exact = gradient(world, logits, p * value)
            has = int(baseline == "group_mean")
            mean = (p * value)[world.parent < 0].sum() * has
            g = gradient(world, logits, (1 - (1 - p) ** (k - has)) * (value - mean))
            cosine = g @ exact / np.linalg.norm(g) / np.linalg.norm(exact)
            own = np.bincount(world.parent + 1, g * exact)[prefixes]
            found.append((cosine, (own < 0).mean()))
        cosines, own = np.transpose(found)
        row: dict[str, Any] = {"spread": spread, "k": k, "baseline": baseline}
        numbers = {"cosine": np.median(cosines), "lowest_cosine": cosines.min()}
        numbers |= {"against": (cosines < 0).mean(), "prefixes_against": own.mean()}
        rows.append(row | {name: round(float(x), 4) for name, x in numbers.items()})
    return rows


COLUMNS = {"members": "|λ|", "distinct": "1", "draws": "draws", "shares": "shares"}
PANELS = {  # rewards, baseline, scale
    ("any", "none", "none"): "no baseline",
    ("any", "group_mean", "none"): "minus group mean",
    ("any", "group_mean", "group_std"): "… divided by std",
    ("0 or 1", "group_mean", "group_std"): "… and rewards 0 or 1",
    ("any", "parent", "none"): "minus parent's R̂",
}
LEFT_OUT = ("(a) 2 independent", "(a) 3 independent")  # much as 4
TITLE = "|λ| belongs to the gradient if each member is a draw from π; in cut samples it does not"
KEY = "= c: E[g] = c·∇J;  t: one c per depth;  p: one per prefix;  numbers: cosine, rounded down"


def mark(row: t.Row) -> str:
    """As KEY says; "= c" if c differs between policies, "0" if E[g] = 0, "–" if it is refused."""
    if row["verdict"] in ("zero", "refused"):
        return {"zero": "0", "refused": "–"}[row["verdict"]]
    if row["verdict"] == "exact":
        return f"= {np.mean(row['factors']):.2g}" if np.ptp(row["factors"]) < 1e-5 else "= c"
    kind = {"depth": "t ", "prefix": "p "}.get(row["verdict"], "")
    return f"{kind}{np.floor(100 * row['cosine']) / 100:.2f}"


def lookup(rows: t.Rows) -> tuple[list[tuple], dict[tuple, t.Row]]:
    """What is shown, (scheme, lengths); each row by its first six values, scheme to weight."""
    table = {tuple(row.values())[:6]: row for row in rows}
    return list(dict.fromkeys(key[:2] for key in table if key[0] not in LEFT_OUT)), table


def text(tables: t.Tables) -> str:
    """A block for each of PANELS, a line per way to draw, a column per weight; then directions."""
    shown, table = lookup(tables["estimators"])
    blocks = {}
    for panel, title in PANELS.items():
        blocks[title] = [
            {"group": scheme, "lengths": lengths}
            | {name: mark(table[scheme, lengths, *panel, name]) for name in COLUMNS}
            for scheme, lengths in shown
        ]
    title = "λ-GRPO with independent completions, random policies"
    blocks[title] = tables["directions"]
    columns = dict.fromkeys(PANELS.values(), " ".join(["group lengths", *COLUMNS]))
    columns[title] = " ".join(blocks[title][0])
    return f"{t.show(blocks, columns)}\n\n{KEY}"


@matrix_style
def figures(tables: t.Tables) -> dict[str, Figure]:
    """Matrices, way to draw by weight: exact cells are framed, others darker for a wider angle."""
    shown, table = lookup(tables["estimators"])
    figure, (axes,) = panels(1, len(PANELS), 13.5, 0.36 * len(shown) + 1.8, sharey=True)
    names = [f"{name}{', unequal lengths' * (how == 'unequal')}" for name, how in shown]
    for ax, (panel, title) in zip(axes, PANELS.items(), strict=True):
        for (y, how), (x, weight) in product(enumerate(shown), enumerate(COLUMNS)):
            row = table[(*how, *panel, weight)]
            exact = row["verdict"] == "exact"
            plain = exact or row["cosine"] is None
            shade = 1.0 if plain else float(np.interp(row["cosine"], [0.6, 1.0], [0.6, 0.92]))
            cell(ax, x, y, mark(row), str(shade), exact)
        matrix_axes(ax, list(COLUMNS.values()), names)
        ax.set_title(title)
    figure.suptitle(TITLE, x=0.01, ha="left", weight="bold")
    counts = "What a process step counts for: |λ| (GRPO), 1 (λ-GRPO), its draws, their shares"
    figure.supxlabel(f"{counts}.   {KEY}.", fontsize=9)
    return {"enumeration": figure}


def run(request: Request) -> t.Tables:
    """All schemes and lengths, 32 policies for each tree (quick: 4)."""
    seeds = request.seeds or (4 if request.quick else 32)
    jobs = [{"scheme": a, "lengths": b, "seeds": seeds} for a, b in product(SCHEMES, TREES)]
    rows = [row for found in request.jobs(measure, jobs) for row in found]
    return {"estimators": rows, "directions": directions(100 if request.quick else 1000)}
