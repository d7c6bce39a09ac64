"""How good a policy is on held-out problems: greedy pass@1, and pass@k from n samples a problem."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigrpo.engine.lanes import limit_again, limited
from minigrpo.rewards import check_rewards, numbers
from minigrpo.sampler import sample
from minigrpo.system.terminal import bar
from minigrpo.tasks import Task, draw_prompts, optional, sampling_limits
from minigrpo.transformer import Transformer

CHUNK = 64  # problems that are sampled at a time
MOST = 10**7  # completions of an evaluation


def pass_at_k(n: int, correct: int, k: int) -> float:
    """1 - C(n-c, k) / C(n, k): the unbiased estimate of the chance that one of k samples is right, from c right among n.

    Raises ValueError unless 1 ≤ k ≤ n.  (Chen et al. 2021, arXiv:2107.03374, equation 1.)
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} cannot be estimated from {n} samples: take at least k samples")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def is_correct(task: Task, rewards: np.ndarray) -> np.ndarray:
    """Which completions count as right: the task's own `is_correct`, else a reward of 1 or more.   (B,) -> (B,) bool"""
    if optional(task, "is_correct") is None:
        return rewards >= 1
    right = numbers(task.is_correct(rewards), len(rewards), "truth values of is_correct")
    if not np.isin(right, (0, 1)).all():
        raise ValueError(
            f"is_correct of the task gave {right}: return a truth value for each completion"
        )
    return right == 1


@limited
def evaluate(
    model: Transformer,
    task: Task,
    *,
    n_prompts: int = 200,
    samples: int = 0,
    ks: tuple[int, ...] = (1,),
    temperature: float = 1.0,
    seed: int = 0,
    split: str = "test",
    progress: bool = True,
) -> dict[str, Any]:
    """Greedy pass@1 on n_prompts problems of a split and, if samples > 0, pass@k for each of ks.   -> {"eval/pass@1_greedy": …}

    The same seed takes the same problems, whatever was trained.  Raises ValueError for no problems and if a k is larger than
    samples.
    """
    if n_prompts < 1:
        raise ValueError(f"{n_prompts} problems give no estimate: take at least 1")
    if n_prompts * samples > MOST:
        raise ValueError(
            f"{n_prompts} problems with {samples} samples each are more than {MOST:,} completions: take fewer"
        )
    if samples and max(ks) > samples:
        raise ValueError(
            f"pass@{max(ks)} cannot be estimated from {samples} samples: take at least {max(ks)} samples"
        )
    rng = np.random.default_rng(seed)
    prompts = draw_prompts(task, rng, n_prompts, split)
    greedy, rewards_seen, estimates = [], [], {k: [] for k in ks}
    for start in bar(range(0, len(prompts), CHUNK), "evaluate", "chunk", progress):
        chunk = prompts[start : start + CHUNK]
        limits = sampling_limits(task)
        best = sample(model, chunk, 1, rng, temperature=0.0, **limits)
        rewards = check_rewards(task.score(best), best.tree)
        limit_again()
        rewards_seen.extend(rewards.tolist())
        greedy.extend(is_correct(task, rewards).tolist())
        if samples:
            drawn = sample(model, chunk, samples, rng, temperature=temperature, **limits)
            right = (
                is_correct(task, check_rewards(task.score(drawn), drawn.tree))
                .reshape(len(chunk), samples)
                .sum(1)
            )
            limit_again()
            for k in ks:
                estimates[k].extend(pass_at_k(samples, int(c), k) for c in right)
    result: dict[str, Any] = {
        "eval/pass@1_greedy": float(np.mean(greedy)),
        "eval/reward_greedy": float(np.mean(rewards_seen)),
    }
    if samples:
        result |= {f"eval/pass@{k}": float(np.mean(values)) for k, values in estimates.items()}
    return result | {"eval/prompts": len(prompts)}
