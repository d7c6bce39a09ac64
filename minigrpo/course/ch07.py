"""Checks of chapter 7: padded rows, the package's tree, and central differences."""

import numpy as np

from minigrpo.course.example_groups import Group, groups
from minigrpo.course.grading import Answer, slope, softmax, task, text
from minigrpo.objectives import Objective
from minigrpo.tree import PrefixTree
from minigrpo.verify.padded import padded_loss


def _misadded(tree: PrefixTree, values: np.ndarray) -> dict[str, np.ndarray]:
    """Sums by someone who adds padding to the last node, or who does out[paths] += values."""
    repeated, padding, once = np.zeros((3, tree.n_nodes))
    for path, value in zip(tree.paths, values, strict=True):
        once[path] += value
    repeated[tree.paths[tree.paths >= 0]] = np.repeat(values, tree.lengths)
    np.add.at(padding, tree.paths, values[:, None])
    return {"padding": padding, "padding_": once, "repeated": repeated}


@task(
    "sum over members",
    axes=("node",),
    repeated="a node gets only one member: only np.add.at adds up repeated indices.",
    whole="the values were cut to whole numbers: is the array that you fill one of ints?",
)
def _check_sum_over_members(answer: Answer) -> None:
    rng = np.random.default_rng(8)
    for group in groups(8):
        tree, n = group.tree, group.tree.n_nodes
        values = rng.integers(-9, 10, size=len(group.completions)) / 2
        right = tree.sum_over_members(values)
        mistakes = dict(mean=right / tree.count) | _misadded(tree, values)
        mistakes |= dict(whole=tree.sum_over_members(np.trunc(values)))
        given = f"paths {tree.paths.tolist()}, values {text(values)}, {n} nodes"
        answer.check(given, (tree.paths, values, n), right, **mistakes)


def _advantages(group: Group, rng: np.random.Generator) -> np.ndarray:
    """Round numbers, of both signs."""
    a = rng.integers(-4, 5, size=len(group.completions)) / 2
    a[:2] = 1.5, -1.0
    return a


@task(
    "two sums for clipping",
    axes=("node",),
    too_late="split first, then sum: a node may have members of both signs.",
    size="this is a size: the negative sum is at most 0.",
    swapped="positive and negative have changed places.",
)
def _check_two_sums(answer: Answer) -> None:
    rng = np.random.default_rng(9)
    for group in groups(9):
        a, tree = _advantages(group, rng), group.tree
        given = f"paths {tree.paths.tolist()}, advantages {text(a)}"
        got = answer.parts(given, ("positive", "negative"), tree.paths, a, tree.n_nodes)
        whole = tree.sum_over_members(a)
        up, down = tree.sum_over_members(np.maximum(a, 0)), tree.sum_over_members(np.minimum(a, 0))
        for part, numbers, right, other, sign in (
            ("positive", got[0], up, down, 1),
            ("negative", got[1], down, up, -1),
        ):
            mistakes = dict(too_late=sign * np.maximum(sign * whole, 0), size=np.abs(right))
            mistakes |= dict(swapped=other, mean=right / tree.count)
            mistakes |= _misadded(tree, np.maximum(sign * a, 0) * sign)
            answer.compare(given, numbers, right, part, **mistakes)


@task(
    "exact tree update under clipping",
    one_sum="one sum per node is not enough: a > 0 and a < 0 are clipped on different sides.",
    nodes_once="every node counts once here; in GRPO it counts once for each member.",
    by_nodes="the normaliser is Σ|y|, the tokens of all completions, not the number of nodes.",
    by_k="the normaliser is Σ|y|, the tokens of all completions, not their number k.",
    no_min="the ratio was clipped, whatever the sign of a; min(…) keeps a smaller unclipped term.",
    all_or_none="the gradient is 0 only for members whose term is clipped; the others still pull.",
)
def _check_clipped_tree_loss(answer: Answer) -> None:
    rng = np.random.default_rng(10)
    for group in groups(10):
        a, tree = _advantages(group, rng), group.tree
        low, high = (0.2, 0.3) if len(a) % 2 else (0.2, 0.2)
        old = -rng.exponential(1.0, tree.n_nodes) - 0.1
        ratio = rng.choice([0.6, 0.9, 1.0, 1.1, 1.7], size=tree.n_nodes)
        ends = tree.paths[[0, 1], np.maximum(tree.lengths[:2] - 1, 0)]
        # Some ratios are clipped where a > 0, others where a < 0.
        ratio[tree.paths[0, 0]], ratio[ends[1]], ratio[ends[0]] = 1.7, 0.6, 1.7
        logp, n = old + np.log(ratio), tree.lengths.sum()
        given = f"paths {tree.paths.tolist()}, advantages {text(a)}, ratios {text(ratio)}, "
        given += f"low {low}, high {high}"
        got = answer.parts(given, ("loss", "dlogp"), tree.paths, a, logp, old, low, high)
        loss, dlogp = _by_rows(group, a, logp, old, clip_low=low, clip_high=high)
        once = _by_rows(group, a, logp, old, clip_low=low, clip_high=high, alpha=1.0)
        whole = tree.sum_over_members(a)  # clipped by its sign in one_sum
        bounded = np.where(whole > 0, np.minimum(ratio, 1 + high), np.maximum(ratio, 1 - low))
        both = {
            "one_sum": (-(bounded * whole).sum() / n, -ratio * whole * (bounded == ratio) / n),
            "unclipped": _by_rows(group, a, logp, old),
            "nodes_once": once,
            "by_nodes": (loss * n / tree.n_nodes, dlogp * n / tree.n_nodes),
            "by_k": (loss * n / len(a), dlogp * n / len(a)),
            "negative": (-loss, -dlogp),
            "padded": (loss * n / tree.paths.size, dlogp * n / tree.paths.size),
            "total": (loss * n, dlogp * n),
            "strict": (loss, dlogp * ((ratio > 1 + high) | (ratio < 1 - low))),
            "all_or_none": (loss, dlogp * ((ratio <= 1 + high) & (ratio >= 1 - low))),
            "no_ratio": (loss, dlogp / ratio),
        }
        inside = np.clip(ratio, 1 - low, 1 + high)
        both["no_min"] = -(whole * inside).sum() / n, -ratio * whole * (inside == ratio) / n
        bounds = {"swapped_bounds": (high, low), "one_bound": (low, low), "one_bound_": (high,) * 2}
        for name, (below, above) in bounds.items():
            both[name] = _by_rows(group, a, logp, old, clip_low=below, clip_high=above)
        positive, negative = (_misadded(tree, f(a, 0)) for f in (np.maximum, np.minimum))
        for name, up in positive.items():
            terms = up * np.minimum(ratio, 1 + high) + negative[name] * np.maximum(ratio, 1 - low)
            pull = up * (ratio <= 1 + high) + negative[name] * (ratio >= 1 - low)
            both[name] = -terms.sum() / n, -ratio * pull / n
        nodes = [
            f"node {i} (members' advantages {text(a[tree.members(i)])}, ratio {p:g})"
            for i, p in enumerate(ratio)
        ]
        for i, (part, right) in enumerate((("loss", loss), ("dlogp", dlogp))):
            mistakes = {name: pair[i] for name, pair in both.items()}
            answer.compare(given, got[i], right, part, nodes if i else (), **mistakes)


def _by_rows(
    group: Group, a: np.ndarray, logp: np.ndarray, old: np.ndarray, **choices: float
) -> tuple[float, np.ndarray]:
    """The padded loss, with its gradient summed onto nodes."""
    objective, tree = Objective(baseline="none", scale="none", **choices), group.tree
    rows = tree.on_tokens(logp), tree.on_tokens(old)
    loss, d = padded_loss(objective, [group.completions], a, *rows)
    at = tree.paths >= 0
    return loss, np.bincount(tree.paths[at], d[at], minlength=tree.n_nodes)


@task(
    "what sharing saves",
    no_prompt="the prompt is run through the transformer, too.",
    tokens="equal tokens after different beginnings are different nodes: count distinct prefixes.",
    copies="too little is shared: completions that begin alike share their beginning, whoever else "
    "does not, copies or not.",
    empty="the empty prefix is no token: it costs nothing.",
    once="in the flat batch every completion brings its own copy of the prompt.",
    each="in the tree the prompt is run once for all completions.",
    padded="padding is no token: count the tokens of each completion.",
)
def _check_cost(answer: Answer) -> None:
    for i, group in enumerate(groups(11)):
        completions, n = group.completions, i % 3 + 2
        prompt = list(range(50, 50 + n))
        given = f"prompt {prompt}, {group.told(rewards=False)}"
        got = answer.parts(given, ("flat", "tree"), prompt, completions)
        one = [prompt], [completions]
        flat, tree = (PrefixTree.from_groups(*one, merge=merge).n_nodes for merge in (False, True))
        own = sum(map(len, completions))
        k, longest = len(completions), max(map(len, completions))
        padded = k * (n + longest)
        answer.compare(given, got[0], flat, "flat", no_prompt=own, once=n + own, padded=padded)
        mistakes = dict(no_prompt=tree - n, empty=tree + 1, each=tree + (k - 1) * n)
        mistakes |= dict(tokens=n + len({token for c in completions for token in c}))
        mistakes |= dict(copies=n + sum(map(len, {tuple(c) for c in completions})))
        answer.compare(given, got[1], tree, "tree", **mistakes)


@task(
    "gradient of the logits",
    axes=("node", "token"),
    last="a node gets the gradient of its last child only: add all up (np.add.at).",
    one_hots="the softmax is missing: every logit lowers the probability of the others.",
    own_logits="the gradient of logp[n] belongs to the logits of n's parent, which predict n.",
    unweighted="the softmax is not subtracted once, but times Σ c over the node's children.",
    everywhere="the softmax is subtracted at every node; it stands times Σ c over its children.",
    root="the root has parent -1, which as an index means the last node: leave it out.",
)
def _check_logits_gradient(answer: Answer) -> None:
    rng = np.random.default_rng(12)
    for group in groups(12, 3):
        tree = PrefixTree.from_groups([[0]], [group.completions])  # nothing predicts node 0
        token, parent, n = tree.token, tree.parent, tree.n_nodes
        c, logits = rng.standard_normal(n).round(2), rng.standard_normal((n, 12))
        given = f"token {token.tolist()}, parent {parent.tolist()}, "
        given += f"random dlogp {text(c)} and logits"
        p, child = softmax(logits), parent >= 0
        of_children = c[child], parent[child], token[child]
        right = slope(lambda z, c, n, v: c @ np.log(softmax(z))[n, v], logits, *of_children)
        one_hots = right + p * np.bincount(parent[child], c[child], minlength=n)[:, None]
        last, own_logits, root = np.zeros_like(logits), np.zeros_like(logits), right.copy()
        last[parent[child]] = c[child, None] * (np.eye(12)[token[child]] - p[parent[child]])
        own_logits[child] = c[child, None] * (np.eye(12)[token[child]] - p[child])
        root[-1] += c[0] * (np.eye(12)[token[0]] - p[-1])
        mistakes = dict(last=last, one_hots=one_hots, own_logits=own_logits, root=root)
        inner = np.isin(np.arange(n), parent)[:, None]
        mistakes |= dict(unweighted=one_hots - p * inner, everywhere=one_hots - p)
        answer.check(given, (c, token, parent, logits), right, **mistakes)
