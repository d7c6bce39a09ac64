"""How good a policy is on held-out problems: greedy pass@1, and pass@k from n samples each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrpo.engine.lanes import limit_again, limited
from minigrpo.sampler import Rollouts, sample
from minigrpo.system.terminal import bar
from minigrpo.system.user_code import numbers
from minigrpo.tasks import Task, draw_prompts, optional, sampling_limits, score
from minigrpo.transformer import Transformer

CHUNK = 64  # problems that are sampled at a time
MOST = 10**7  # completions of an evaluation


def pass_at_k(n: int, correct: int, k: int) -> float:
    """1 - C(n-c, k) / C(n, k): an unbiased estimate of P(one of k samples is right), c right of n.

    Raises ValueError unless 1 ≤ k ≤ n.  (Chen et al. 2021, arXiv:2107.03374, equation 1.)
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} cannot be estimated from {n} samples: take at least k samples")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def is_correct(task: Task, rewards: np.ndarray) -> np.ndarray:
    """Which completions are right: by the task's `is_correct`, else a reward ≥ 1.   (B,) -> (B,)"""
    own = optional(task, "is_correct")
    if own is None:
        return rewards >= 1 - 1e-9  # ten parts of weight 0.1 add up to a little less than 1
    right = numbers(own(rewards), len(rewards), "truth values of is_correct")
    if not np.isin(right, (0, 1)).all():
        way_out = "return a truth value for each completion"
        raise ValueError(f"is_correct of the task gave {right}: {way_out}")
    return right == 1


@limited
def evaluate(
    model: Transformer,
    task: Task,
    *,
    n_prompts: int = 200,
    samples: int = 0,
    ks: Sequence[int] = (1,),
    temperature: float = 1.0,
    seed: int = 0,
    split: str = "test",
    progress: bool = True,
) -> dict[str, Any]:
    """Greedy pass@1 on n_prompts problems of a split; with samples > 0 also pass@k for each of ks.

    -> {"eval/pass@1_greedy": …}, with the mean of each named part of the greedy rewards under
    "eval/rewards/NAME".   The same seed takes the same problems, whatever was trained.
    Raises ValueError for no problems, and for a k that is larger than samples.
    >>> model, task = mg.make_policy(mg.TrainSettings(task="arithmetic"))
    >>> mg.evaluate(model, task, n_prompts=9, samples=2, ks=[2], progress=False)["eval/pass@2"]
    0.0
    """
    if n_prompts < 1:
        raise ValueError(f"{n_prompts} problems give no estimate: take at least 1")
    if n_prompts * samples > MOST:
        both = f"{n_prompts} problems with {samples} samples each"
        raise ValueError(f"{both} are more than {MOST:,} completions: take fewer")
    if samples and max(ks) > samples:
        few = f"pass@{max(ks)} cannot be estimated from {samples} samples"
        raise ValueError(f"{few}: take at least {max(ks)} samples")
    rng = np.random.default_rng(seed)
    prompts, limits = draw_prompts(task, rng, n_prompts, split), sampling_limits(task)

    def judge(rollouts: Rollouts) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        rewards, parts = score(task, rollouts)
        right = is_correct(task, rewards)
        limit_again()
        return rewards, right, parts

    greedy, rewards, n_right, parts = [], [], [], {}
    for start in bar(range(0, n_prompts, CHUNK), "evaluate", "chunk", progress):
        chunk = prompts[start : start + CHUNK]
        own, right, own_parts = judge(sample(model, chunk, 1, rng, temperature=0.0, **limits))
        rewards.extend(own)
        greedy.extend(right)
        for name, values in own_parts.items():
            parts.setdefault(f"eval/rewards/{name}", []).extend(values)
        if samples:
            drawn = sample(model, chunk, samples, rng, temperature=temperature, **limits)
            right = judge(drawn)[1]
            n_right.extend(right.reshape(-1, samples).sum(1).tolist())
    result = {"eval/pass@1_greedy": np.mean(greedy), "eval/reward_greedy": np.mean(rewards)}
    result |= {name: np.mean(values) for name, values in parts.items()}
    for k in ks if samples else ():
        result[f"eval/pass@{k}"] = np.mean([pass_at_k(samples, c, k) for c in n_right])
    return {name: float(value) for name, value in result.items()} | {"eval/prompts": n_prompts}
