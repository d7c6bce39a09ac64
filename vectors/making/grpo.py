"""The content of grpo.json: batches, cases, and the package's numbers for them.

Nothing here is random but for one seeded generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from making import mistakes as wrong

from minigrpo import Objective, PrefixTree, Rollouts, advantages, step_advantages, step_rewards
from minigrpo.verify.padded import padded_loss

Batch = dict[str, Any]
SEEN = 1e-8  # ten times the tolerance of check.py
FORMAT = 1
EOS = PAD = 0
PADDING = {"logp": -7.5, "old": -6.25, "ref": -5.0}  # finite, and wrong if it is ever summed
SETTINGS = {
    "baseline": "group_mean",
    "scale": "group_std",
    "ddof": 1,
    "std_eps": 1e-4,
    "aggregation": "group_token_mean",
    "alpha": 0.0,
    "process_reward": "outcome",
    "clip_low": None,
    "clip_high": None,
    "beta": 0.0,
    "kl": "k3",
    "mask_truncated": False,
}
CLIP = {"clip_low": 0.2, "clip_high": 0.28}
VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": CLIP,
    "grpo_original": CLIP | {"aggregation": "sequence_mean", "beta": 0.04},
    "dapo": CLIP | {"aggregation": "batch_token_mean", "mask_truncated": True},
    "dr_grpo": CLIP | {"aggregation": "constant", "scale": "none"},
    "rloo": {"baseline": "leave_one_out", "scale": "none", "aggregation": "sequence_sum"},
    "reinforce": {"baseline": "none", "scale": "none", "aggregation": "sequence_sum"},
    "lambda_grpo": CLIP | {"alpha": 1.0},
    "lambda_grpo_kl": CLIP | {"alpha": 1.0, "beta": 0.04},
    "lambda_dapo": CLIP
    | {"aggregation": "batch_token_mean", "mask_truncated": True, "alpha": 1.0, "beta": 0.04},
    "lambda_grpo_original": CLIP | {"aggregation": "sequence_mean", "alpha": 1.0, "beta": 0.04},
    "grpo_k1": CLIP | {"beta": 0.1, "kl": "k1"},
    "grpo_k2": CLIP | {"beta": 0.1, "kl": "k2"},
    "grpo_k3": CLIP | {"beta": 0.1, "kl": "k3"},
    "batch_std": CLIP | {"scale": "batch_std"},
    "grpo_unclipped": {"beta": 0.04},
    "prm": {"process_reward": "tree", "beta": 0.04},  # equal to it: Theorem 1
}

# -- batches ---------------------------------------------------------------------------------------


def make_batch(
    groups: list[list[list[int]]],
    rewards: list[float],
    truncated: Iterable[int] = (),
    of_prefix: Callable[[int, tuple[int, ...]], tuple[float, float, float]] | None = None,
    **changes: Any,
) -> Batch:
    """A batch as padded arrays.   of_prefix(group, prefix) -> log π, log π_old, log π_ref"""
    rows = [(g, y) for g, group in enumerate(groups) for y in group]
    width = max(len(y) for _, y in rows)
    b: Batch = {
        "ids": [[*y, *[PAD] * (width - len(y))] for _, y in rows],
        "mask": [[int(t < len(y)) for t in range(width)] for _, y in rows],
        "group": [g for g, _ in rows],
        "rewards": [float(r) for r in rewards],
        "truncated": [int(i in set(truncated)) for i in range(len(rows))],
        "eos_id": EOS,
        "pad_id": PAD,
        "max_new_tokens": changes.pop("max_new_tokens", width),
    }
    for which, name in enumerate(PADDING):
        b[name] = [
            [
                (of_prefix or on_policy)(g, tuple(y[: t + 1]))[which]
                if t < len(y)
                else PADDING[name]
                for t in range(width)
            ]
            for g, y in rows
        ]
    order = changes.pop("order", None)
    if order is not None:
        b |= {name: [b[name][i] for i in order] for name in b if isinstance(b[name], list)}
    b["lengths"] = [sum(row) for row in b["mask"]]
    b["completions"] = [ids[:n] for ids, n in zip(b["ids"], b["lengths"], strict=True)]
    half = (len(rows) + 1) // 2
    b["micro_batches"] = [list(range(half)), list(range(half, len(rows)))]
    return b | changes


def on_policy(g: int, prefix: tuple[int, ...]) -> tuple[float, float, float]:
    """The sampling policy is the current one.  Log-probabilities that tell prefixes apart."""
    logp = -0.25 * (1 + (3 * sum(prefix) + 2 * len(prefix) + 5 * g) % 7)
    return logp, logp, logp + 0.125 * (1 + len(prefix) % 3)


def moved(rng: np.random.Generator) -> Callable:
    """The policy has moved: log-ratios to either side of the clip range, at every depth."""
    drawn: dict[tuple, tuple[float, float, float]] = {}
    log_ratios = np.array([-0.6, -0.35, -0.21, -0.1, 0.05, 0.14, 0.19, 0.23, 0.4, 0.6])

    def of_prefix(g: int, prefix: tuple[int, ...]) -> tuple[float, float, float]:
        if (g, prefix) not in drawn:
            old, by = -round(rng.uniform(0.7, 2.5), 2), rng.choice(log_ratios)
            ref = old + round(rng.uniform(-0.5, 0.5), 2)
            drawn[g, prefix] = (round(old + by, 2), old, round(ref, 2))
        return drawn[g, prefix]

    return of_prefix


def fixed(log_ratio: dict[int, float]) -> Callable:
    """log π_old = -2, and a log-ratio that the last token of the prefix decides."""

    def of_prefix(g: int, prefix: tuple[int, ...]) -> tuple[float, float, float]:
        return round(-2 + log_ratio.get(prefix[-1], 0.0), 4), -2.0, -2.5 + 0.25 * len(prefix)

    return of_prefix


MAIN = [
    [  # a fork of three, a duplicate, a beginning of others, one that shares only a later token
        [1, 2, 3, 4, 0],
        [1, 2, 3, 5, 0],
        [1, 2, 3, 4, 0],
        [1, 2],
        [1, 6, 2, 3, 3, 4],
        [7, 2, 0],
    ],
    [[1, 2, 3, 4, 0], [5, 5, 5, 5, 5, 5], [5, 5, 0], [5, 5, 5, 0], [5, 1, 0], [2, 0]],
]
MAIN_REWARDS = [1.0, 0.0, 0.25, 0.0, -0.5, 1.0, 0.0, 1.0, 0.5, 2.0, 0.0, 1.0]
TWO = [[[1, 2, 0], [3, 0]]]
FORK = [[[1, 2, 0], [1, 3, 4, 0], [5, 0]]]


def batches() -> dict[str, Batch]:
    rng = np.random.default_rng(21)
    thirds = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    main: dict[str, Any] = {"micro_batches": thirds}
    sides = {2: -0.5, 3: -0.1, 4: 0.21, 5: 0.6, 6: 0.24}
    every_side = [[[2, 3, 4, 5, 6, 0], [6, 5, 4, 3, 2, 0]]]
    far = make_batch(TWO, [1.0, 0.0])
    inside = np.array(far["mask"], dtype=bool)
    for name, value in (("logp", -900.0), ("old", -900.0), ("ref", -1.0)):
        far[name] = np.where(inside, far[name], value).tolist()
    k = make_batch(FORK, [1.0, 0.0, 0.25], of_prefix=fixed({1: 0.1, 2: -0.2, 3: 0.3, 4: 0.05}))
    return {
        "main": make_batch(MAIN, MAIN_REWARDS, (4, 7), moved(rng), **main),
        "main_on_policy": make_batch(MAIN, MAIN_REWARDS, (4, 7), **main),
        "two": make_batch(TWO, [1.0, 0.0]),
        "lengths": make_batch(
            [[[1, 0], [2, 3, 4, 5, 0]], [[1, 2, 0], [3, 0]]], [1.0, 0.0, 0.0, 1.0], max_new_tokens=8
        ),
        "eos_inside": make_batch([[[1, 0, 3, 0], [2, 0]]], [1.0, 0.0]),
        "cut_off": make_batch(
            [[[1, 2, 3], [1, 4, 5], [1, 2, 0], [2, 0]]], [1.0, 0.0, 1.0, 0.25], (0, 1)
        ),
        "all_cut_off": make_batch([[[1, 2], [3, 4]]], [1.0, 0.0], (0, 1)),
        "far_padding": far,
        "empty": make_batch([[[], [1, 2, 0], [1, 0]]], [1.0, 0.0, 0.5]),
        "dead_group": make_batch([[[1, 0], [2, 0]], [[1, 2, 0], [3, 0]]], [0.5, 0.5, 1.0, 0.0]),
        "spreads": make_batch([[[1, 0], [2, 0]], [[1, 0], [2, 0]]], [1.0, 0.0, 10.0, 6.0]),
        "mixed_rows": make_batch(
            [[[1, 2, 0], [1, 3, 0], [4, 0]], [[1, 2, 0], [5, 0], [5, 6, 0]]],
            [1.0, 0.0, 0.25, 3.0, 2.0, 6.0],
            order=[0, 3, 1, 4, 5, 2],
        ),
        "every_side": make_batch(every_side, [1.0, 0.0], of_prefix=fixed(sides)),
        "fork": k,
        "duplicates": make_batch(
            [[[1, 2, 0], [1, 2, 0], [1, 3, 0], [4, 0]]], [1.0, 0.0, 0.25, 0.5]
        ),
        "beginning": make_batch([[[1, 2], [1, 2, 3, 0], [4, 0]]], [1.0, 0.0, 0.5]),
        "padding_like_eos": make_batch([[[1, 2], [1, 2, 0], [1, 2, 0, 3]]], [1.0, 0.0, 0.5]),
        "never_branches": make_batch([[[1, 2, 3, 0], [1, 2, 4, 0]]], [1.0, 0.0]),
        "same_token_later": make_batch([[[1, 2, 0], [3, 2, 0], [1, 4, 0]]], [1.0, 0.0, 0.25]),
        "two_groups_alike": make_batch(
            [[[1, 2, 0], [3, 0]], [[1, 2, 0], [3, 4, 0]]], [1.0, 0.0, 0.0, 2.0]
        ),
    }


# An edge case for every mistake: the batch, and the settings that differ from SETTINGS.
LAMBDA = {"alpha": 1.0}
DROP = {"mask_truncated": True, "aggregation": "batch_token_mean"}
EDGES: dict[str, tuple[str, dict[str, Any]]] = {
    "eos_without_gradient": ("two", {}),
    "pad_equals_eos": ("eos_inside", {}),
    "cut_at_first_eos": ("eos_inside", {}),
    "first_token_dropped": ("two", {}),
    "last_token_dropped": ("cut_off", {}),
    "padding_counted": ("two", {"aggregation": "batch_token_mean"}),
    "padding_summed": ("two", {"aggregation": "batch_token_mean"}),
    "padding_in_length": ("lengths", {"aggregation": "sequence_mean"}),
    "exp_before_mask": ("far_padding", {"beta": 0.1}),
    "empty_completion_nan": ("empty", {"aggregation": "sequence_mean"}),
    "all_masked_nan": ("all_cut_off", DROP),
    "truncated_not_masked": ("cut_off", DROP),
    "masked_in_normaliser": ("cut_off", DROP),
    "population_std": ("two", {}),
    "std_missing": ("spreads", {}),
    "std_of_batch": ("spreads", {}),
    "std_of_group": ("spreads", {"scale": "batch_std"}),
    "mean_of_batch": ("spreads", {}),
    "baseline_missing": ("spreads", {}),
    "groups_by_position": ("mixed_rows", {}),
    "leave_one_out_includes_self": ("fork", VARIANTS["rloo"]),
    "dead_group_nan": ("dead_group", {"std_eps": 0.0}),
    "std_eps_missing": ("two", {"std_eps": 0.125}),
    "std_eps_in_root": ("two", {"std_eps": 0.125}),
    "masked_out_of_baseline": ("cut_off", DROP),
    "normaliser_is_group_token_mean": ("lengths", {"aggregation": "batch_token_mean"}),
    "normaliser_is_batch_token_mean": ("lengths", {}),
    "normaliser_is_sequence_mean": ("lengths", {}),
    "normaliser_is_sequence_sum": ("lengths", {}),
    "normaliser_is_constant": ("lengths", {"aggregation": "sequence_mean"}),
    "normaliser_is_longest": ("lengths", {"aggregation": "constant", "scale": "none"}),
    "normaliser_after_split": ("lengths", {"aggregation": "batch_token_mean"}),
    "normaliser_missing": ("lengths", {}),
    "normaliser_is_weight_sum": ("fork", LAMBDA),
    "clip_missing": ("every_side", CLIP),
    "clip_sides_swapped": ("every_side", CLIP),
    "clip_high_ignored": ("every_side", CLIP),
    "clip_without_min": ("every_side", CLIP),
    "clip_max_for_min": ("every_side", CLIP),
    "clip_of_log_ratio": ("every_side", CLIP),
    "ratio_inverted": ("every_side", CLIP),
    "ratio_missing": ("two", {}),
    "ratio_of_sequence": ("every_side", CLIP),
    "old_is_current": ("every_side", CLIP),
    "old_not_detached": ("two", {}),
    "sign_flipped": ("two", {}),
    "kl_missing": ("fork", {"beta": 0.1}),
    "kl_sign": ("fork", {"beta": 0.1}),
    "kl_is_k1": ("fork", {"beta": 0.1}),
    "kl_is_k2": ("fork", {"beta": 0.1}),
    "kl_is_k3": ("fork", {"beta": 0.1, "kl": "k1"}),
    "kl_reversed": ("fork", {"beta": 0.1}),
    "kl_against_old": ("fork", {"beta": 0.1}),
    "kl_not_weighted": ("fork", LAMBDA | {"beta": 0.1}),
    "lambda_missing": ("fork", LAMBDA),
    "lambda_multiplied": ("fork", LAMBDA),
    "lambda_by_position": ("same_token_later", LAMBDA),
    "lambda_off_by_one": ("fork", LAMBDA),
    "lambda_across_groups": ("two_groups_alike", LAMBDA),
    "lambda_duplicates_once": ("duplicates", LAMBDA),
    "lambda_with_padding": ("padding_like_eos", LAMBDA),
    "lambda_without_beginnings": ("beginning", LAMBDA),
    "lambda_unbranched_once": ("never_branches", LAMBDA),
    "lambda_with_masked": ("cut_off", LAMBDA | DROP),
    "step_reward_is_sum": ("fork", {"process_reward": "tree"}),
    "step_reward_is_own": ("fork", {"process_reward": "tree"}),
    "step_reward_without_self": ("fork", {"process_reward": "tree"}),
    "step_reward_by_length": ("fork", {"process_reward": "tree"}),
    "step_std_of_steps": ("fork", {"process_reward": "tree"}),
}

# -- right numbers, by the package -----------------------------------------------------------------


class Right:
    """A batch in the package: its rows sorted by group, and back."""

    def __init__(self, b: Batch) -> None:
        self.batch, group = b, np.array(b["group"])
        self.order = np.argsort(group, kind="stable")
        self.back = np.argsort(self.order)
        self.groups: list[list[np.ndarray]] = [[] for _ in set(b["group"])]
        for i in self.order:
            y = np.array(b["ids"][i], dtype=int)[np.array(b["mask"][i], dtype=bool)]
            self.groups[b["group"][i]].append(y)
        self.rewards = np.array(b["rewards"], dtype=float)[self.order]
        self.truncated = np.array(b["truncated"], dtype=bool)[self.order]
        self.tree = PrefixTree.from_groups([[9]] * len(self.groups), self.groups)
        nothing = np.zeros(self.tree.n_nodes)
        self.rollouts = Rollouts(
            prompts=[np.array([9])] * len(self.groups),
            completions=self.groups,
            tree=self.tree,
            logp=nothing,
            entropy=nothing,
            truncated=self.truncated,
            temperature=1.0,
            max_new_tokens=b["max_new_tokens"],
        )

    def on_nodes(self, name: str) -> np.ndarray:
        """(B,T), the same for all members of a node -> (N,)"""
        values = np.array(self.batch[name], dtype=float)[self.order]
        out, inside = np.zeros(self.tree.n_nodes), self.tree.paths >= 0
        out[self.tree.paths[inside]] = values[inside]
        assert (self.tree.on_tokens(out)[inside] == values[inside]).all()
        return out

    def on_tokens(self, values: np.ndarray) -> np.ndarray:
        """(N,) -> (B,T), 0 in the padding, in the order of the batch"""
        return self.tree.on_tokens(values)[self.back]

    def weights(self, s: Batch) -> np.ndarray:
        members = self.tree.sum_over_members(~(self.truncated & s["mask_truncated"]))
        return self.on_tokens(Objective(**s).node_weights(np.maximum(members, 1)))

    def advantages(self, s: Batch) -> np.ndarray:
        how = s["baseline"], s["scale"], s["ddof"], s["std_eps"]
        return advantages(self.rewards, self.tree.completion_group, *how)[self.back]

    def step_rewards(self, s: Batch) -> np.ndarray:
        return self.on_tokens(step_rewards(self.tree, self.rewards))

    def step_advantages(self, s: Batch) -> np.ndarray:
        how = s["scale"], s["ddof"], s["std_eps"]
        return self.on_tokens(step_advantages(self.tree, self.rewards, None, *how))

    def counts(self, s: Batch) -> np.ndarray:
        return self.on_tokens(self.tree.count)

    def steps(self) -> list:
        """[start, end, members] of every process step of every group, members as rows"""
        rows = self.order.tolist()
        return [
            sorted(
                [step.start, step.end, sorted(rows[i] for i in step.members)]
                for step in self.tree.steps(g)
            )
            for g in range(self.tree.n_groups)
        ]

    def loss(self, s: Batch) -> tuple[float, np.ndarray, np.ndarray]:
        """-> the loss, its derivative by log-probabilities of tokens (B,T), and of nodes (N,)"""
        objective = Objective(**s)
        on_nodes = [self.on_nodes(name) for name in ("logp", "old", "ref")]
        loss, of_nodes = objective(self.rollouts, self.rewards, *on_nodes)
        rows = [np.array(self.batch[name], dtype=float)[self.order] for name in PADDING]
        more = {"truncated": self.truncated, "max_new_tokens": self.batch["max_new_tokens"]}
        again, dlogp = padded_loss(objective, self.groups, self.rewards, *rows, **more)
        inside = self.tree.paths >= 0
        summed = np.bincount(self.tree.paths[inside], dlogp[inside], minlength=len(of_nodes))
        np.testing.assert_allclose(again, loss, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(summed, of_nodes, rtol=1e-11, atol=1e-14)
        return loss, dlogp[self.back], of_nodes


# -- cases -----------------------------------------------------------------------------------------

Numbers = dict[str, Any]
KINDS = {
    "counts": (wrong.counts_of_all, {}),
    "weights": (wrong.weights, {"alpha": 1.0}),
    "step_rewards": (wrong.step_rewards_of, {}),
    "advantages": (wrong.advantages, {}),
    "step_advantages": (wrong.step_advantages, {}),
}


def vector(x: Any) -> np.ndarray:
    """All numbers of an array, or of rows of any length."""
    return np.concatenate([np.ravel(row) for row in x]) if isinstance(x, list) else np.ravel(x)


def distance(a: Numbers, b: Numbers, scale: float = 0) -> float:
    """As `error` of check.py; inf if some number is not finite."""
    worst = 0.0
    for name, wanted in b.items():
        if isinstance(wanted, dict):
            worst = max(worst, distance(a[name], wanted))
            continue
        x, y = vector(a[name]), vector(wanted)
        size = max(1e-3, np.abs(y).max(initial=0), scale if name == "loss" else 0)
        apart = np.abs(x - y).max(initial=0) / size
        worst = max(worst, float(apart) if np.isfinite(x).all() else np.inf)
    return worst


def wrong_numbers(
    right: Numbers, of_mistake: Callable[[str], Numbers], mistakes: Iterable[str], scale: float = 0
) -> Numbers:
    """The numbers of each mistake that changes them.   scale: of a loss whose terms may cancel"""
    assert distance(of_mistake(""), right, scale) < 1e-11
    found: Numbers = {}
    for m in mistakes:
        with np.errstate(all="ignore"):
            numbers = of_mistake(m)
            apart = distance(numbers, right, scale)
        if apart > SEEN:
            found[m] = short(numbers) if np.isfinite(apart) else "nan"
    return found


def short(x: Any) -> Any:
    """Ten significant digits: enough to recognise a mistake by."""
    if isinstance(x, dict):
        return {name: short(y) for name, y in x.items()}
    if isinstance(x, np.ndarray | list):
        return [short(y) for y in x]
    return float(f"{x:.10g}")


def plain(x: Any) -> Any:
    return x.tolist() if isinstance(x, np.ndarray) else x


def loss_case(name: str, batch: str, changes: Batch, b: Batch, **more: Any) -> Batch:
    s, right = SETTINGS | changes, Right(b)
    loss, dlogp, of_nodes = right.loss(s)
    expected = {"loss": loss, "gradient": dlogp}
    has_moved = (np.not_equal(b["logp"], b["old"]) & np.array(b["mask"], dtype=bool)).any()

    def of_mistake(m: str) -> Numbers:
        loss, dlogp = wrong.loss(b, s, m)
        return {"loss": loss, "gradient": dlogp}

    names = [m for m in wrong.MISTAKES if m != "old_not_detached" or not has_moved]
    scale = float(np.abs(dlogp).sum())
    tree = s["process_reward"] == "tree"
    step = right.step_advantages(s)
    token = step if tree else np.where(b["mask"], right.advantages(s)[:, None], 0.0)
    return {
        "name": name,
        "kind": "loss",
        "batch": batch,
        **more,
        "settings": s,
        "inputs": {
            "advantages": None if tree else plain(right.advantages(s)),
            "token_advantages": plain(token),
            "weights": plain(right.weights(s)),
            "loss_mask": loss_mask(b, s),
        },
        "loss_scale": scale,
        "expected": {n: plain(x) for n, x in expected.items()},
        "expected_of_nodes": plain(of_nodes),
        "wrong": wrong_numbers(expected, of_mistake, names, scale),
    }


def value_case(kind: str, name: str, batch: str, changes: Batch, b: Batch) -> Batch:
    compute, own = KINDS[kind]
    s = SETTINGS | own | changes
    mask = {"advantages": None, "weights": "loss_mask"}.get(kind, "mask")
    inputs = {"loss_mask": loss_mask(b, s)} if kind == "weights" else {}
    names = [m for m in wrong.MISTAKES if kind != "weights" or m.startswith("lambda")]
    rows = (b | inputs).get(mask)

    def of_mistake(m: str) -> Numbers:
        return {"value": inside(compute(b, s, m), rows)}

    expected = {"value": inside(getattr(Right(b), kind)(s), rows)}
    return {
        "name": f"{kind}.{name}",
        "kind": kind,
        "batch": batch,
        "settings": s,
        "inputs": inputs,
        "mask": mask,
        "expected": expected,
        "wrong": wrong_numbers(expected, of_mistake, names),
    }


def loss_mask(b: Batch, s: Batch) -> list:
    """The tokens that count in the loss: `mask`, without completions that are masked.   (B,T)"""
    return (np.array(b["mask"]) * wrong.counted_rows(b, s)[:, None]).tolist()


def inside(value: np.ndarray, mask: list | None) -> list:
    """Rows without their padding."""
    if mask is None:
        return value.tolist()
    return [row[np.array(m, dtype=bool)].tolist() for row, m in zip(value, mask, strict=True)]


def grpo() -> Batch:
    """Everything of grpo.json."""
    found, cases = batches(), []
    for batch in ("main", "main_on_policy"):
        for variant, changes in VARIANTS.items():
            name = f"{variant}.{'mu_2' if batch == 'main' else 'mu_1'}"
            cases.append(loss_case(name, batch, changes, found[batch], variant=variant))
    alike: dict[str, Batch] = {}  # edge cases with the same batch and settings
    for mistake, (batch, changes) in EDGES.items():
        key = f"{batch} {sorted(changes.items())}"
        if key not in alike:
            alike[key] = loss_case("", batch, changes, found[batch])
        case = alike[key] | {"name": f"edge.{mistake}", "catches": mistake}
        assert mistake in case["wrong"], f"{mistake} is not seen in its own case"
        cases.append(case)
    for name, b in found.items():
        cases.append(
            {
                "name": f"steps.{name}",
                "kind": "steps",
                "batch": name,
                "settings": SETTINGS,
                "inputs": {},
                "expected": {"value": Right(b).steps()},
                "wrong": {},
            }
        )
        for kind in KINDS:
            cases.append(value_case(kind, name, name, {}, b))
    for scale, baseline in (("batch_std", "group_mean"), ("none", "leave_one_out")):
        changes = {"scale": scale, "baseline": baseline}
        for name in ("main", "mixed_rows", "dead_group"):
            label = f"{scale}.{baseline}.{name}"
            cases.append(value_case("advantages", label, name, changes, found[name]))
    for name in ("main", "cut_off", "all_cut_off"):
        changes = {"mask_truncated": True}
        cases.append(value_case("weights", f"masked.{name}", name, changes, found[name]))
    for b in found.values():
        tree = Right(b).tree
        fields = ("token", "parent", "depth", "count", "group")
        b["tree"] = {field: getattr(tree, field).tolist() for field in fields}
        b["tree"]["paths"] = tree.paths[Right(b).back].tolist()
    return {
        "format": FORMAT,
        "licence": "CC0-1.0",
        "mistakes": wrong.MISTAKES,
        "batches": found,
        "cases": cases,
    }
