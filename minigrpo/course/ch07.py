"""Checks of chapter 7, the theorem as a speed-up: against padded rows, the package's tree, and central differences."""

from __future__ import annotations

import numpy as np

from minigrpo.course.grading import Answer, Task, ask, compare, parts, slope, text
from minigrpo.course.groups import groups, told
from minigrpo.objectives import Objective
from minigrpo.tree import PrefixTree
from minigrpo.verify.padded import padded_loss


def _last_wins(paths: np.ndarray, values: np.ndarray, n_nodes: int) -> np.ndarray:
    """Sums by someone who wrote out[paths[i]] += values[i] and forgot the padding: -1 is the last node."""
    out = np.zeros(n_nodes)
    for row, value in zip(paths, values, strict=True):
        out[row] += value
    return out


def _sum_over_members(f: Answer) -> None:
    rng = np.random.default_rng(8)
    for completions, _ in groups(8):
        tree = PrefixTree.from_sequences(completions)
        values = rng.integers(-9, 10, size=len(completions)).astype(float)
        given = f"paths {tree.paths.tolist()}, values {text(values)}, {tree.n_nodes} nodes"
        right, n = tree.sum_over_members(values), tree.n_nodes
        every = np.zeros(n)
        every[tree.paths[tree.paths >= 0]] = np.repeat(values, tree.lengths)
        hints = {
            "this is the mean over the members; a sum is asked for.": right / tree.count,
            "-1 is padding, but as an index it means the last node: leave it out.": _last_wins(
                tree.paths, values, n
            ),
            "a node gets only one of its members: out[nodes] += … does not add up repeated indices; np.add.at does.": every,
            "these are counts: how many members, not the sum of their values.": tree.count,
        }
        compare(
            ask(f, tree.paths, values, n, given=given), right, given, axes=("node",), hints=hints
        )


def _two_sums(f: Answer) -> None:
    rng = np.random.default_rng(9)
    for completions, _ in groups(9):
        tree = PrefixTree.from_sequences(completions)
        a = rng.integers(-4, 5, size=len(completions)) / 2
        a[:2] = 1.5, -1.0
        given = f"paths {tree.paths.tolist()}, advantages {text(a)}"
        answer = parts(
            ask(f, tree.paths, a, tree.n_nodes, given=given), ("positive", "negative"), given
        )
        whole = tree.sum_over_members(a)
        up, down = tree.sum_over_members(np.maximum(a, 0)), tree.sum_over_members(np.minimum(a, 0))
        too_late = "the members are summed first and then split by sign: a node may have members of both signs, split first."
        for name, got, right, split in (
            ("positive", answer[0], up, np.maximum(whole, 0)),
            ("negative", answer[1], down, np.minimum(whole, 0)),
        ):
            hints = {
                too_late: split,
                "this is a size: the negative sum is at most 0.": np.abs(right),
                "positive and negative have changed places.": down if name == "positive" else up,
                "these are means over the members; sums are asked for.": right / tree.count,
            }
            compare(got, right, given, name=name, axes=("node",), hints=hints)


def _clipped_tree_loss(f: Answer) -> None:
    rng = np.random.default_rng(10)
    for completions, _ in groups(10):
        tree = PrefixTree.from_sequences(completions)
        a = rng.integers(-4, 5, size=len(completions)) / 2
        a[:2] = 1.5, -1.0
        low, high = (0.2, 0.3) if len(completions) % 2 else (0.2, 0.2)
        old = -rng.exponential(1.0, tree.n_nodes) - 0.1
        ratio = rng.choice([0.6, 0.9, 1.0, 1.1, 1.7], size=tree.n_nodes)
        ends = tree.paths[:2, :][np.arange(2), np.maximum(tree.lengths[:2] - 1, 0)]
        ratio[tree.paths[0, 0]], ratio[ends[1]], ratio[ends[0]] = (
            1.7,
            0.6,
            1.7,
        )  # clipped where a > 0, and where a < 0
        logp = old + np.log(ratio)
        given = f"paths {tree.paths.tolist()}, advantages {text(a)}, ratios {text(ratio)}, low {low}, high {high}"
        answer = parts(
            ask(f, tree.paths, a, logp, old, low, high, given=given), ("loss", "dlogp"), given
        )

        def by_rows(
            tree: PrefixTree = tree,
            a: np.ndarray = a,
            rows: tuple = (completions, logp, old),
            **choices: object,
        ) -> tuple:
            """The padded loss, with its gradient summed onto nodes."""
            objective = Objective(baseline="none", scale="none", **choices)
            loss, d = padded_loss(objective, [rows[0]], a, *map(tree.on_tokens, rows[1:]))
            at = tree.paths >= 0
            return loss, np.bincount(tree.paths[at], d[at], minlength=tree.n_nodes)

        loss, dlogp = by_rows(clip_low=low, clip_high=high)
        n, whole = tree.lengths.sum(), tree.sum_over_members(a)
        kept = np.where(
            whole > 0, ratio <= 1 + high, ratio >= 1 - low
        )  # what clipping by the sign of the sum would keep
        once = (
            -(
                np.where(whole > 0, np.minimum(ratio, 1 + high), np.maximum(ratio, 1 - low)) * whole
            ).sum()
            / n
        )
        one_sum = "one sum a node, clipped by its sign, is not enough: members with a > 0 and a < 0 are clipped on different sides."
        by_lambda = by_rows(clip_low=low, clip_high=high, alpha=1.0)
        by_nodes = n / tree.n_nodes
        hints = {
            one_sum: (once, -ratio * whole * kept / n),
            "nothing was clipped.": by_rows(),
            "every node counts once here; in GRPO it counts once for each member.": by_lambda,
            "the normaliser is Σ|y|, the tokens of all completions, not the number of nodes.": (
                loss * by_nodes,
                dlogp * by_nodes,
            ),
            "this is the objective, to go up; the loss is its negative.": (-loss, -dlogp),
            "the gradient of a clipped term is 0 for those members only whose term is clipped; the others still pull.": (
                loss,
                dlogp * ((ratio <= 1 + high) & (ratio >= 1 - low)),
            ),
            "the ratio is missing: d ρ / d logp = ρ.": (loss, dlogp / ratio),
        }
        compare(
            answer[0],
            loss,
            given,
            name="loss",
            hints={hint: value for hint, (value, _) in hints.items()},
        )
        nodes = [
            f"node {i} (members' advantages {text(a[tree.members(i)])}, ratio {p:g})"
            for i, p in enumerate(ratio)
        ]
        compare(
            answer[1],
            dlogp,
            given,
            name="dlogp",
            labels=nodes,
            hints={hint: value for hint, (_, value) in hints.items()},
        )


def _cost(f: Answer) -> None:
    for i, (completions, _) in enumerate(groups(11)):
        prompt = list(range(50, 50 + i % 3 + 1))
        given = f"prompt {prompt}, {told(completions)}"
        answer = parts(ask(f, prompt, completions, given=given), ("flat", "tree"), given)
        flat, tree = (
            PrefixTree.from_groups([prompt], [completions], merge=merge).n_nodes
            for merge in (False, True)
        )
        k, n = len(completions), len(prompt)
        own = flat - k * n
        copies = n + sum(map(len, {tuple(c) for c in completions}))
        hints = (
            {
                "without sharing every completion has its prompt computed anew.": own + n,
                "the prompt is run through the transformer, too.": own,
                "the longest completion does not set the cost of the others here: padding is not counted.": k
                * (n + max(map(len, completions))),
            },
            {
                "the prompt is run through the transformer, too, once.": tree - n,
                "only the prompt is shared here; completions that begin alike share more.": own + n,
                "equal tokens at different places, or after other beginnings, are different nodes: count distinct prefixes.": n
                + len({token for c in completions for token in c}),
                "only whole copies are shared here; completions that begin alike share, too.": copies,
                "the tokens at each position are compared, but not what comes before them.": n
                + len({(t, token) for c in completions for t, token in enumerate(c)}),
                "the empty prefix is no token: it costs nothing.": tree + 1,
            },
        )
        for name, got, right, hint in zip(
            ("flat", "tree"), answer, (flat, tree), hints, strict=True
        ):
            compare(got, right, given, name=name, hints=hint)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _logits_gradient(f: Answer) -> None:
    rng = np.random.default_rng(12)
    for completions, _ in groups(12, 3):
        if not any(completions):
            continue
        tree = PrefixTree.from_groups(
            [[0]], [completions]
        )  # node 0 is the prompt, which nothing predicts
        token, parent, n = tree.token, tree.parent, tree.n_nodes
        c, logits = rng.standard_normal(n).round(2), rng.standard_normal((n, 8))
        child = np.flatnonzero(parent >= 0)
        given = (
            f"token {token.tolist()}, parent {parent.tolist()}, random dlogp {text(c)} and logits"
        )

        def loss(
            x: np.ndarray, c: np.ndarray = c, child: np.ndarray = child, tree: PrefixTree = tree
        ) -> float:
            return float(c[child] @ _log_softmax(x)[tree.parent[child], tree.token[child]])

        got, right = ask(f, c, token, parent, logits, given=given), slope(loss, logits)
        p = np.exp(_log_softmax(logits))
        one_hots = right + p * np.bincount(parent[child], c[child], minlength=n)[:, None]
        last = np.zeros_like(logits)
        shared = np.zeros_like(logits)
        for node in child:
            row = c[node] * (np.eye(8)[token[node]] - p[parent[node]])
            last[parent[node]] = row
            shared[node] = c[node] * (np.eye(8)[token[node]] - p[node])
        has_child = np.isin(np.arange(n), parent)[:, None]
        root = c[0] * (np.eye(8)[token[0]] - p[-1])
        hints = {
            "a node with several children gets the gradient of the last one only: add them up (np.add.at).": last,
            "the softmax must be taken off once for every child, each with its c: p · Σ c.": one_hots
            - p * has_child,
            "the softmax is missing: every logit lowers the probability of the others.": one_hots,
            "the logits of a node predict its children; the gradient of logp[n] belongs to the logits of n's parent.": shared,
            "the root has parent -1, which as an index means the last node: leave it out.": right
            + np.eye(n)[-1][:, None] * root,
        }
        compare(got, right, given, axes=("node", "token"), hints=hints, rtol=1e-6)


TASKS = (
    Task("sum over members", "sum_over_members", _sum_over_members),
    Task("two sums for clipping", "two_sums", _two_sums),
    Task("exact tree update under clipping", "clipped_tree_loss", _clipped_tree_loss),
    Task("what sharing saves", "cost", _cost),
    Task("gradient of the logits", "logits_gradient", _logits_gradient),
)
