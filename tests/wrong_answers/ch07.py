"""Wrong answers to the exercises of chapter 7: functions <function>__<mistake>.

The docstring has the texts that the message must contain, separated by |.
"""

import numpy as np


def _sum(paths, values, n_nodes):
    row, position = np.nonzero(paths >= 0)
    return np.bincount(paths[row, position], values[row], minlength=n_nodes)


def sum_over_members__padding_counts(paths, values, n_nodes):
    """the last node: leave it out"""
    out = np.zeros(n_nodes)
    for row, value in zip(paths, values, strict=True):
        out[row] += value
    return out


def sum_over_members__repeated_indices(paths, values, n_nodes):
    """node 0: | np.add.at"""
    out = np.zeros(n_nodes)
    row, position = np.nonzero(paths >= 0)
    out[paths[row, position]] += values[row]
    return out


def sum_over_members__mean(paths, values, n_nodes):
    """a sum is asked for"""
    return _sum(paths, values, n_nodes) / _sum(paths, np.ones(len(values)), n_nodes)


def two_sums__summed_first(paths, advantages, n_nodes):
    """in positive: | split first"""
    whole = _sum(paths, advantages, n_nodes)
    return np.maximum(whole, 0), np.minimum(whole, 0)


def two_sums__size(paths, advantages, n_nodes):
    """in negative: | at most 0"""
    return _sum(paths, np.maximum(advantages, 0), n_nodes), _sum(
        paths, np.maximum(-advantages, 0), n_nodes
    )


def two_sums__means(paths, advantages, n_nodes):
    """in positive: | a sum is asked for"""
    n = _sum(paths, np.ones(len(advantages)), n_nodes)
    return _sum(paths, np.maximum(advantages, 0), n_nodes) / n, _sum(
        paths, np.minimum(advantages, 0), n_nodes
    ) / n


def clipped_tree_loss__one_sum(paths, advantages, logp, old, low, high):
    """in loss: | one sum per node | clipped on different sides"""
    whole, n, ratio = _sum(paths, advantages, len(logp)), (paths >= 0).sum(), np.exp(logp - old)
    plain, clipped = ratio * whole, np.clip(ratio, 1 - low, 1 + high) * whole
    return -np.minimum(plain, clipped).sum() / n, -np.where(plain <= clipped, plain, 0) / n


def _right(paths, advantages, logp, old, low, high, n):
    up, down = (
        _sum(paths, np.maximum(advantages, 0), len(logp)),
        _sum(paths, np.minimum(advantages, 0), len(logp)),
    )
    ratio = np.exp(logp - old)
    loss = -(up * np.minimum(ratio, 1 + high) + down * np.maximum(ratio, 1 - low)).sum() / n
    return loss, -ratio * (up * (ratio <= 1 + high) + down * (ratio >= 1 - low)) / n


def clipped_tree_loss__over_nodes(paths, advantages, logp, old, low, high):
    """not the number of nodes"""
    return _right(paths, advantages, logp, old, low, high, len(logp))


def clipped_tree_loss__not_clipped(paths, advantages, logp, old, low, high):
    """nothing was clipped"""
    return _right(paths, advantages, logp, old, 1.0, np.inf, (paths >= 0).sum())


def clipped_tree_loss__all_or_none(paths, advantages, logp, old, low, high):
    """in dlogp: at node | ratio | the others still pull"""
    loss, dlogp = _right(paths, advantages, logp, old, low, high, (paths >= 0).sum())
    ratio = np.exp(logp - old)
    return loss, dlogp * (ratio >= 1 - low) * (ratio <= 1 + high)


def cost__no_prompt(prompt, completions):
    """in flat: | the prompt is run through the transformer, too"""
    return sum(map(len, completions)), len(
        {tuple(c[: t + 1]) for c in completions for t in range(len(c))}
    )


def cost__tokens(prompt, completions):
    """in tree: | distinct prefixes"""
    return sum(len(prompt) + len(c) for c in completions), len(prompt) + len(
        {x for c in completions for x in c}
    )


def cost__whole_copies(prompt, completions):
    """in tree: | completions that begin alike share"""
    return sum(len(prompt) + len(c) for c in completions), len(prompt) + sum(
        map(len, {tuple(c) for c in completions})
    )


def cost__empty_prefix(prompt, completions):
    """in tree: | the empty prefix is no token"""
    flat = sum(len(prompt) + len(c) for c in completions)
    return flat, len(prompt) + len({tuple(c[:t]) for c in completions for t in range(len(c) + 1)})


def _p(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def logits_gradient__last_child(dlogp, token, parent, logits):
    """np.add.at"""
    out, p = np.zeros_like(logits), _p(logits)
    child = parent >= 0
    out[parent[child]] = dlogp[child, None] * (
        np.eye(logits.shape[1])[token[child]] - p[parent[child]]
    )
    return out


def logits_gradient__root_too(dlogp, token, parent, logits):
    """parent -1 | leave it out"""
    out, p = np.zeros_like(logits), _p(logits)
    np.add.at(out, parent, dlogp[:, None] * (np.eye(logits.shape[1])[token] - p[parent]))
    return out


def logits_gradient__own_logits(dlogp, token, parent, logits):
    """belongs to the logits of n's parent"""
    out = dlogp[:, None] * (np.eye(logits.shape[1])[token] - _p(logits))
    return np.where(parent[:, None] >= 0, out, 0.0)


def logits_gradient__no_softmax(dlogp, token, parent, logits):
    """the softmax is missing"""
    out, child = np.zeros_like(logits), parent >= 0
    np.add.at(out, (parent[child], token[child]), dlogp[child])
    return out


def sum_over_members__padding_by_slots(paths, values, n_nodes):
    """the last node: leave it out"""
    out = np.zeros(n_nodes)
    np.add.at(out, paths, values[:, None])
    return out


def two_sums__padding_counts(paths, advantages, n_nodes):
    """in positive: | leave it out"""
    up, down = np.zeros((2, n_nodes))
    np.add.at(up, paths, np.maximum(advantages, 0)[:, None])
    np.add.at(down, paths, np.minimum(advantages, 0)[:, None])
    return up, down


def _last(paths, values, n_nodes):
    out = np.zeros(n_nodes)
    row, position = np.nonzero(paths >= 0)
    out[paths[row, position]] += values[row]
    return out


def two_sums__repeated_indices(paths, advantages, n_nodes):
    """in positive: | np.add.at"""
    up, down = np.maximum(advantages, 0), np.minimum(advantages, 0)
    return _last(paths, up, n_nodes), _last(paths, down, n_nodes)


def two_sums__swapped(paths, advantages, n_nodes):
    """in positive: | changed places"""
    up, down = np.maximum(advantages, 0), np.minimum(advantages, 0)
    return _sum(paths, down, n_nodes), _sum(paths, up, n_nodes)


def clipped_tree_loss__paths_size(paths, advantages, logp, old, low, high):
    """in loss: | paths.size"""
    return _right(paths, advantages, logp, old, low, high, paths.size)


def clipped_tree_loss__sum(paths, advantages, logp, old, low, high):
    """in loss: | take the mean"""
    return _right(paths, advantages, logp, old, low, high, 1)


def clipped_tree_loss__low_twice(paths, advantages, logp, old, low, high):
    """in loss: | one bound stands on both sides"""
    return _right(paths, advantages, logp, old, low, low, (paths >= 0).sum())


def clipped_tree_loss__swapped(paths, advantages, logp, old, low, high):
    """in loss: | low and high have changed places"""
    return _right(paths, advantages, logp, old, high, low, (paths >= 0).sum())


def clipped_tree_loss__nodes_once(paths, advantages, logp, old, low, high):
    """in loss: | every node counts once"""
    n = (paths >= 0).sum()
    members = np.bincount(paths[paths >= 0], minlength=len(logp))
    ratio, up, down = (
        np.exp(logp - old),
        _sum(paths, np.maximum(advantages, 0), len(logp)) / members,
        _sum(paths, np.minimum(advantages, 0), len(logp)) / members,
    )
    loss = -(up * np.minimum(ratio, 1 + high) + down * np.maximum(ratio, 1 - low)).sum() / n
    return loss, -ratio * (up * (ratio <= 1 + high) + down * (ratio >= 1 - low)) / n


def clipped_tree_loss__objective(paths, advantages, logp, old, low, high):
    """in loss: | the loss is its negative"""
    loss, d = _right(paths, advantages, logp, old, low, high, (paths >= 0).sum())
    return -loss, -d


def clipped_tree_loss__ratio_missing(paths, advantages, logp, old, low, high):
    """in dlogp: | ratio is missing"""
    loss, d = _right(paths, advantages, logp, old, low, high, (paths >= 0).sum())
    return loss, d / np.exp(logp - old)


def cost__prompt_once_in_flat(prompt, completions):
    """in flat: | its own copy of the prompt"""
    n = len({tuple(c[: t + 1]) for c in completions for t in range(len(c))})
    return len(prompt) + sum(map(len, completions)), len(prompt) + n


def cost__prompt_for_each(prompt, completions):
    """in tree: | once for all completions"""
    n = len({tuple(c[: t + 1]) for c in completions for t in range(len(c))})
    flat = sum(len(prompt) + len(c) for c in completions)
    return flat, len(completions) * len(prompt) + n


def cost__padded(prompt, completions):
    """in flat: | padding is no token"""
    n = len({tuple(c[: t + 1]) for c in completions for t in range(len(c))})
    flat = len(completions) * (len(prompt) + max(map(len, completions)))
    return flat, len(prompt) + n


def logits_gradient__softmax_once(dlogp, token, parent, logits):
    """times Σ c over the node's children"""
    out, child = np.zeros_like(logits), parent >= 0
    np.add.at(out, (parent[child], token[child]), dlogp[child])
    return out - _p(logits) * np.isin(np.arange(len(parent)), parent)[:, None]


def sum_over_members__of_ints(paths, values, n_nodes):
    """whole numbers"""
    out = np.zeros(n_nodes, dtype=int)
    for path, value in zip(paths, values, strict=True):
        for node in path[path >= 0]:
            out[node] += int(value)
    return out


def clipped_tree_loss__always_clipped(paths, advantages, logp, old, low, high):
    """in loss | whatever the sign of a"""
    ratio, n = np.exp(logp - old), (paths >= 0).sum()
    whole, inside = _sum(paths, advantages, len(logp)), np.clip(ratio, 1 - low, 1 + high)
    return -(whole * inside).sum() / n, -whole * ratio * (ratio == inside) / n


def clipped_tree_loss__by_completions(paths, advantages, logp, old, low, high):
    """not their number k"""
    return _right(paths, advantages, logp, old, low, high, len(advantages))


def cost__only_what_all_share(prompt, completions):
    """too little is shared"""
    n = 0
    while all(c[n : n + 1] == completions[0][n : n + 1] != [] for c in completions):
        n += 1
    flat = sum(len(prompt) + len(c) for c in completions)
    return flat, len(prompt) + n + sum(len(c) - n for c in completions)
