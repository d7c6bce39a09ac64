"""The wrong numbers: GRPO on padded (B,T) arrays, with one known mistake at a time.

`make.py` takes the right numbers from the package and asserts that these functions, without a
mistake, give the same; so each wrong number differs from the right one by its mistake alone.
Shapes: B rows (completions of all groups), T the longest completion.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Batch = dict[str, Any]

MISTAKES = {
    # masks and alignment
    "eos_without_gradient": "the EOS token that ends a completion is masked out of the loss",
    "pad_equals_eos": "the mask is `ids != pad_id`, but the padding is the EOS token",
    "cut_at_first_eos": "the mask ends at the first EOS id, though the completion goes on after it",
    "first_token_dropped": "shift by one: the first token of a completion is not scored",
    "last_token_dropped": "shift by one: the last token of a completion is not scored",
    "padding_counted": "there is no mask: padding is summed, and counted in the normaliser",
    "padding_summed": "padding is summed in the numerator, but not counted in the normaliser",
    "padding_in_length": "the normaliser counts the padded width T instead of the tokens",
    "exp_before_mask": "exp overflows at padding, and inf * 0 is NaN: mask before exp",
    "empty_completion_nan": "a completion without tokens divides 0 by 0",
    "all_masked_nan": "a batch in which every completion is masked divides 0 by 0",
    "truncated_not_masked": "truncated completions count, though mask_truncated is set",
    "masked_in_normaliser": "masked completions still count in the normaliser",
    # advantages
    "population_std": "std divides by k (ddof 0) instead of k - 1",
    "std_missing": "advantages are not divided by the std",
    "std_of_batch": "the std is that of the whole batch instead of the group",
    "std_of_group": "the std is that of the group instead of the whole batch",
    "mean_of_batch": "the baseline is the mean of the whole batch instead of the group",
    "baseline_missing": "no baseline is subtracted from the rewards",
    "groups_by_position": "every k rows in order are taken as a group, though rows are mixed",
    "leave_one_out_includes_self": "the RLOO baseline is the mean of all k, own reward included",
    "dead_group_nan": "a group of equal rewards divides 0 by a std of 0",
    "std_eps_missing": "std_eps is not added to the std",
    "std_eps_in_root": "std_eps is added to the variance, inside the square root",
    "masked_out_of_baseline": "masked completions are left out of the baseline and std",
    # aggregation
    "normaliser_is_group_token_mean": "it is the mean over the tokens of a group, then over groups",
    "normaliser_is_batch_token_mean": "the normaliser is the mean over all tokens of the batch",
    "normaliser_is_sequence_mean": "it is the mean per completion, then over completions",
    "normaliser_is_sequence_sum": "tokens are summed, and completions averaged",
    "normaliser_is_constant": "the normaliser is the constant B * max_new_tokens",
    "normaliser_is_longest": "the constant is the longest completion here, not max_new_tokens",
    "normaliser_after_split": "every micro-batch has a normaliser of its own: its own tokens",
    "normaliser_missing": "the sum over tokens is not divided by anything",
    "normaliser_is_weight_sum": "the normaliser is the sum of 1/|lambda|, not the token count",
    # ratio and clipping
    "clip_missing": "the ratio is not clipped",
    "clip_sides_swapped": "clip_low and clip_high are exchanged",
    "clip_high_ignored": "clip_low is used on both sides",
    "clip_without_min": "clip(ratio)*A without the min: clipped on the wrong sides, too",
    "clip_max_for_min": "max(ratio*A, clip(ratio)*A) in place of min",
    "clip_of_log_ratio": "the log-ratio is clipped to [-clip_low, clip_high] instead of the ratio",
    "ratio_inverted": "the ratio is old/new instead of new/old",
    "ratio_missing": "logp*A in place of ratio*A",
    "ratio_of_sequence": "one ratio for the whole completion (GSPO) instead of one per token",
    "old_is_current": "old log-probabilities are computed anew, so that the ratio is always 1",
    "old_not_detached": "the gradient also flows through old log-probabilities, and cancels",
    "sign_flipped": "the objective is minimised instead of maximised",
    # KL
    "kl_missing": "the KL term is not added",
    "kl_sign": "beta*D is subtracted from the loss instead of added",
    "kl_is_k1": "D is k1 = logp - ref",
    "kl_is_k2": "D is k2 = (logp - ref)^2 / 2",
    "kl_is_k3": "D is k3 = exp(x) - x - 1, x = ref - logp",
    "kl_reversed": "logp and ref are exchanged in the estimate",
    "kl_against_old": "D compares with old instead of ref",
    "kl_not_weighted": "lambda-GRPO: the KL term is not divided by |lambda|",
    # the tree
    "lambda_missing": "tokens are not divided by |lambda|: this is GRPO",
    "lambda_multiplied": "a shared node is weighted N times: multiplied by |lambda|, not divided",
    "lambda_by_position": "|lambda| counts equal tokens at a position, whatever comes before",
    "lambda_off_by_one": "|lambda| at t counts who shares the tokens before t, without t itself",
    "lambda_across_groups": "|lambda| counts completions of other groups",
    "lambda_duplicates_once": "|lambda| counts identical completions once",
    "lambda_with_padding": "|lambda| compares padding: a shorter one seems to go on with EOS",
    "lambda_without_beginnings": "a completion that another one goes on from is not counted",
    "lambda_unbranched_once": "|lambda| is 1 on the group's common prefix, which never branches",
    "lambda_with_masked": "|lambda| counts completions that are masked out of the loss",
    # process rewards
    "step_reward_is_sum": "a step reward is the sum over members instead of the mean",
    "step_reward_is_own": "a step reward is the completion's own reward",
    "step_reward_without_self": "a step reward is the mean of the other members",
    "step_reward_by_length": "a step reward weights members by their length",
    "step_std_of_steps": "step advantages are divided by the std of step rewards, not of outcomes",
}


def ids_of(b: Batch) -> np.ndarray:
    return np.array(b["ids"], dtype=int).reshape(len(b["group"]), -1)


def same_prefix(b: Batch, m: str = "") -> np.ndarray:
    """[i,j,t]: j is a member of λ(i,t).   -> (B,B,T)"""
    ids, mask, group = ids_of(b), np.array(b["mask"], dtype=bool), np.array(b["group"])
    equal = ids[:, None] == ids
    both = mask[:, None] & (mask | (m == "lambda_with_padding"))
    agree = equal if m == "lambda_by_position" else np.logical_and.accumulate(equal, axis=2)
    together = agree & both
    if m == "lambda_off_by_one":
        before = np.ones_like(together)
        before[:, :, 1:] = together[:, :, :-1]
        together = before & mask[:, None]
    if m != "lambda_across_groups":
        together &= (group[:, None] == group)[:, :, None]
    if m == "lambda_without_beginnings":
        length = mask.sum(1)
        begins = [
            [length[j] < length[i] and together[i, j, : length[j]].all() for j in range(len(ids))]
            for i in range(len(ids))
        ]
        together &= ~np.array(begins)[:, :, None]
    if m == "lambda_duplicates_once":
        copies = (equal & (mask[:, None] == mask)).all(2) & (group[:, None] == group)
        first = copies.argmax(1)  # the first row that is the same
        keep = np.arange(len(ids)) == first  # (B,)
        together &= keep[None, :, None]
    return together


def counted_rows(b: Batch, s: Batch, m: str = "") -> np.ndarray:
    """Completions that count in the loss.   -> (B,) bool"""
    masked = np.array(b["truncated"], dtype=bool) & bool(s["mask_truncated"])
    return np.ones_like(masked) if m == "truncated_not_masked" else ~masked


def counts(b: Batch, counted: np.ndarray, m: str = "") -> np.ndarray:
    """|λ(i,t)| of the members that count, at least 1.   -> (B,T)"""
    together = same_prefix(b, m) & counted[None, :, None]
    count = np.maximum(together.sum(1), 1).astype(float)
    if m == "lambda_unbranched_once":
        group = np.array(b["group"])
        size = ((group[:, None] == group) & counted).sum(1)
        count = np.where(count == size[:, None], 1.0, count)
    return count


def weights(b: Batch, s: Batch, m: str = "") -> np.ndarray:
    """|λ|^-α.   -> (B,T)"""
    alpha = {"lambda_missing": 0.0, "lambda_multiplied": -s["alpha"]}.get(m, s["alpha"])
    inside = np.array(b["mask"], dtype=bool)
    if not alpha:
        return inside.astype(float)
    counted = counted_rows(b, s, m) | (m == "lambda_with_masked")
    return np.where(inside, counts(b, counted, m) ** -alpha, 0.0)


def counts_of_all(b: Batch, s: Batch, m: str = "") -> np.ndarray:
    """|λ(i,t)| of all members.   -> (B,T), 0 in the padding"""
    everyone = np.ones(len(b["group"]), dtype=bool)
    return np.where(np.array(b["mask"], dtype=bool), counts(b, everyone, m), 0.0)


def groups(b: Batch, m: str = "") -> np.ndarray:
    group = np.array(b["group"])
    return np.sort(group) if m == "groups_by_position" else group


def advantages(b: Batch, s: Batch, m: str = "") -> np.ndarray:
    """(r - baseline) / (std + eps).   -> (B,)"""
    r, group = np.array(b["rewards"], dtype=float), groups(b, m)
    counted = counted_rows(b, s) if m == "masked_out_of_baseline" else np.ones(len(r), dtype=bool)
    out = np.zeros(len(r))
    for g in np.unique(group):
        rows = group == g
        own = r[rows & counted] if (rows & counted).any() else r[rows]
        k, first = len(own), own[0]
        mean = first + (own - first).mean()
        if m == "mean_of_batch":
            mean = r.mean()
        centred = r[rows] - mean
        if m == "mean_of_batch":
            k = len(r)
        if s["baseline"] == "leave_one_out" and m != "leave_one_out_includes_self":
            centred = centred * k / max(k - 1, 1)
        if s["baseline"] == "none" or m == "baseline_missing":
            centred = r[rows]
        out[rows] = centred / spread(own, r, s, m)
    return out


def spread(own: np.ndarray, everyone: np.ndarray, s: Batch, m: str) -> float:
    """std + eps, or 1 where there is nothing to divide by."""
    scale = {"std_missing": "none", "std_of_batch": "batch_std", "std_of_group": "group_std"}
    scale = scale.get(m, s["scale"])
    if scale == "none":
        return 1.0
    x = own if scale == "group_std" else everyone
    std, eps = (x - x[0]).std(ddof=0 if m == "population_std" else s["ddof"]), s["std_eps"]
    if m == "dead_group_nan" and std + eps == 0:
        return np.nan
    if not std:
        return 1.0
    if m == "std_eps_in_root":
        return float(np.sqrt(std**2 + eps))
    return float(std + (0 if m == "std_eps_missing" else eps))


def step_rewards_of(b: Batch, s: Batch, m: str = "") -> np.ndarray:
    """As `step_rewards`; no setting changes it."""
    return step_rewards(b, m)


def step_rewards(b: Batch, m: str = "") -> np.ndarray:
    """R̂: the mean reward of the members.   -> (B,T), 0 in the padding"""
    r, inside = np.array(b["rewards"], dtype=float), np.array(b["mask"], dtype=bool)
    together = same_prefix(b, m).astype(float)
    if m == "step_reward_is_own":
        together *= np.eye(len(r))[:, :, None]
    if m == "step_reward_without_self":
        others = together * (1 - np.eye(len(r)))[:, :, None]
        together = np.where(others.sum(1, keepdims=True) > 0, others, together)
    if m == "step_reward_by_length":
        together *= inside.sum(1)[None, :, None]
    total = (together * r[None, :, None]).sum(1)
    count = np.maximum(together.sum(1), 1e-300) if m != "step_reward_is_sum" else 1.0
    return np.where(inside, total / count, 0.0)


def step_advantages(b: Batch, s: Batch, m: str = "") -> np.ndarray:
    """(R̂ - mean r) / (std r + eps).   -> (B,T), 0 in the padding"""
    r, group = np.array(b["rewards"], dtype=float), groups(b, m)
    inside, out = np.array(b["mask"], dtype=bool), step_rewards(b, m)
    for g in np.unique(group):
        rows = group == g
        own, tokens = r[rows], out[rows][inside[rows]]
        mean = r.mean() if m == "mean_of_batch" else own[0] + (own - own[0]).mean()
        mean = 0.0 if m == "baseline_missing" else mean
        scale = spread(tokens if m == "step_std_of_steps" else own, r, s, m)
        out[rows] = (out[rows] - mean) / scale
    return np.where(inside, out, 0.0)


def loss_mask(b: Batch, m: str) -> np.ndarray:
    """The tokens that are summed.   -> (B,T) bool"""
    ids, mask = ids_of(b), np.array(b["mask"], dtype=bool)
    t, length = np.arange(mask.shape[1]), mask.sum(1)
    last, eos = t == length[:, None] - 1, b["eos_id"]
    if m == "eos_without_gradient":
        return mask & ~(last & (ids == eos))
    if m == "pad_equals_eos":
        return ids != b["pad_id"]
    if m == "cut_at_first_eos":
        return mask & (np.cumsum(ids == eos, axis=1) - (ids == eos) == 0)
    if m == "first_token_dropped":
        return mask & (t > 0)
    if m == "last_token_dropped":
        return mask & ~last
    if m == "padding_counted":
        return np.ones_like(mask)
    return mask


def shares(b: Batch, s: Batch, m: str, mask: np.ndarray) -> np.ndarray:
    """c: what a token counts; nan for 0/0.   mask: tokens that count (B,T) -> (B,1)"""
    how = m.removeprefix("normaliser_is_")
    how = how if m.startswith("normaliser_is_") and how in NORMALISERS else s["aggregation"]
    rows = [np.arange(len(mask))]
    if m == "normaliser_after_split":
        rows = [np.array(part) for part in b["micro_batches"]]
    out = np.zeros((len(mask), 1))
    amount = mask.astype(float)
    if m == "padding_in_length":
        amount = np.ones_like(amount) * mask.any(1, keepdims=True)
    if m == "masked_in_normaliser":
        amount = np.array(b["mask"], dtype=float)
    if m == "normaliser_is_weight_sum":
        amount = amount * weights(b, s)
    tiny = np.nan if m in ("empty_completion_nan", "all_masked_nan") else 1.0
    for part in rows:
        n, total = amount[part].sum(1, keepdims=True), amount[part].sum()
        group = groups(b)[part]
        of_group = np.array([n[group == g].sum() for g in group])[:, None]
        longest = max(amount.sum(1).max(), 1)
        limit = longest if m == "normaliser_is_longest" else b["max_new_tokens"]
        divisor = {
            "group_token_mean": len(set(group.tolist())) * np.where(of_group, of_group, tiny),
            "batch_token_mean": np.full_like(n, total or tiny),
            "sequence_mean": len(part) * np.where(n, n, tiny),
            "sequence_sum": np.full_like(n, len(part)),
            "constant": np.full_like(n, len(part) * limit),
        }[how]
        out[part] = 1 / (divisor * len(rows))
    return np.ones_like(out) if m == "normaliser_missing" else out


NORMALISERS = (
    "group_token_mean",
    "batch_token_mean",
    "sequence_mean",
    "sequence_sum",
    "constant",
)


def loss(b: Batch, s: Batch, m: str = "") -> tuple[float, np.ndarray]:
    """The loss and d loss / d logp.   -> (), (B,T)"""
    counted = counted_rows(b, s, m)
    mask = loss_mask(b, m) & counted[:, None]
    share = shares(b, s, m, mask)
    if not np.isfinite(share[counted] if m == "empty_completion_nan" else share).all():
        return np.nan, np.full(mask.shape, np.nan)
    logp, old, ref = (np.array(b[name], dtype=float) for name in ("logp", "old", "ref"))
    tree = s["process_reward"] == "tree"
    a = step_advantages(b, s, m) if tree else advantages(b, s, m)[:, None] + 0 * logp  # (B,T)
    summed = mask | ~np.array(b["mask"], dtype=bool) if m == "padding_summed" else mask
    if m == "exp_before_mask" and s["beta"] and (np.abs(ref - logp)[~mask] > 80).any():
        return np.nan, np.full(mask.shape, np.nan)
    w = np.where(np.array(b["mask"], dtype=bool), weights(b, s, m), 1.0)
    term_weight = np.where(summed & counted[:, None], share * w, 0.0)
    value, slope = surrogate(b, s, m, np.where(summed, logp - old, 0.0), a, mask)
    if m == "ratio_missing":
        value, slope = logp * a, a
    sign = -1.0 if m == "sign_flipped" else 1.0
    total, dlogp = -sign * (term_weight * value).sum(), -sign * term_weight * slope
    if m == "ratio_of_sequence":
        dlogp = -through_sequences(term_weight * slope, mask)
    if s["beta"] and m != "kl_missing":
        if m == "kl_not_weighted":
            term_weight = np.where(mask, share, 0.0)
        x = np.where(summed, (old if m == "kl_against_old" else ref) - logp, 0.0)
        kind = {"kl_is_k1": "k1", "kl_is_k2": "k2", "kl_is_k3": "k3"}.get(m, s["kl"])
        y = -x if m == "kl_reversed" else x
        divergence = {"k1": -y, "k2": y * y / 2, "k3": np.expm1(y) - y}[kind]
        slope = {"k1": 0 * y - 1, "k2": y, "k3": np.expm1(y)}[kind]  # dD/dy
        beta = -s["beta"] if m == "kl_sign" else s["beta"]
        total += beta * (term_weight * divergence).sum()
        dlogp += beta * term_weight * slope * (1 if m == "kl_reversed" else -1)
    return float(total), dlogp


def surrogate(
    b: Batch, s: Batch, m: str, log_ratio: np.ndarray, a: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """min(ρ·a, clip(ρ)·a) and its derivative by log π.   log_ratio, a, mask (B,T) -> (B,T) twice"""
    low, high = s["clip_low"], s["clip_high"]
    if m == "clip_sides_swapped":
        low, high = high, low
    if m == "clip_high_ignored":
        high = low
    if m == "clip_missing":
        low = high = None
    bottom, top = 0.0 if low is None else 1 - low, np.inf if high is None else 1 + high
    if m == "ratio_of_sequence":
        n = np.maximum(mask.sum(1, keepdims=True), 1)
        log_ratio = np.where(mask, log_ratio, 0).sum(1, keepdims=True) / n + 0 * log_ratio
    if m == "old_is_current":
        log_ratio = 0 * log_ratio
    direction = -1.0 if m == "ratio_inverted" else 1.0
    ratio = np.exp(direction * log_ratio)
    clipped, passes = np.clip(ratio, bottom, top), (ratio >= bottom) & (ratio <= top)
    if m == "clip_of_log_ratio" and low is not None:
        clipped = np.exp(np.clip(log_ratio, -low, high))
        passes = clipped == ratio
    plain, bounded = ratio * a, clipped * a
    slope_plain, slope_bounded = direction * plain, direction * plain * passes
    if m == "clip_without_min":
        value, slope = bounded, slope_bounded
    elif m == "clip_max_for_min":
        value = np.maximum(plain, bounded)
        slope = np.where(plain >= bounded, slope_plain, slope_bounded)
    else:
        value = np.minimum(plain, bounded)
        slope = np.where(plain <= bounded, slope_plain, slope_bounded)
    return value, 0 * slope if m == "old_not_detached" else slope


def through_sequences(slope: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The ratio of a completion depends on all of its tokens alike.   (B,T) -> (B,T)"""
    n = np.maximum(mask.sum(1, keepdims=True), 1)
    return np.where(mask, slope.sum(1, keepdims=True) / n, 0.0)
