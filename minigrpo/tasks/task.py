"""The protocol of a task, and how a run asks one: what a user's class returns is checked here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import islice
from typing import Any, Protocol

import numpy as np

from minigrpo.rewards import LARGEST, check_rewards, numbers
from minigrpo.system.user_code import shown


class Tokenizer(Protocol):
    """Text to token ids and back.   eos ends a completion; None if only the length limit does."""

    vocab_size: int
    eos: int | None

    def encode(self, text: str) -> np.ndarray: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Task(Protocol):
    """What training needs of a task.

    prompts(rng, n, split)   n arrays of token ids, of the "train" or the "test" split; all
                             randomness comes from rng
    score(rollouts)          (B,) outcome rewards: any finite numbers, completion after completion;
                             or a dict of their named parts, (B,) each, which are added up

    Optional:
    demonstrations(rng, n)   n pairs (prompt ids, completion ids with EOS) of the train split, for
                             a supervised warm start
    reward_weights           the weights of named parts of rewards, a dict; without one it is 1
    is_correct(rewards)      (B,) bool; without it a reward of 1 or more counts as correct
    stop                     a rule that ends completions, as `sampler.sample` takes it as `eos`
    n_drawable               only token ids below it can be drawn: a new model has no logit for the
                             others, which may stand in prompts
    for_run(seed)            the task, of the same class, of a run with this seed: training,
                             evaluation, sampling and resumption all call it
    defaults                 a dict of settings of a run
    process_rewards, or score_prefix and step_end: of steps, see process_rewards.py
    """

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def max_new_tokens(self) -> int: ...

    def prompts(
        self, rng: np.random.Generator, n: int, split: str = "train"
    ) -> list[np.ndarray]: ...

    def score(self, rollouts: Any) -> np.ndarray | dict[str, np.ndarray]: ...


def optional(task: Any, name: str, default: Any = None) -> Any:
    """An attribute that a task may lack, else the default.   A property that fails does raise."""
    try:
        return getattr(task, name)
    except AttributeError:
        owners = task, getattr(task, "task", None)  # of a task of text, the user's within
        if any(hasattr(type(owner), name) for owner in owners):
            raise
        return default


def exactly(n: int, found: Any, method: str) -> list[Any]:
    """What a task's method returned for n things, as a list.   Raises ValueError if not n."""
    no_list = isinstance(found, str | bytes | Mapping | Set) or not isinstance(found, Iterable)
    items = [] if no_list or getattr(found, "ndim", 1) == 0 else list(islice(found, n + 1))
    if len(items) == n:
        return items
    count = f"more than {n}" if len(items) > n else len(items)
    told = f"{method} of the task gave {'' if no_list else f'{count} things, '}{shown(found)}"
    raise ValueError(f"{told}: it must return a list of {n}")


def pairs(n: int, found: Any) -> list[Any]:
    """n demonstrations.   Raises ValueError for another number, and for what are no pairs."""
    items = exactly(n, found, "demonstrations")
    for item in items:
        if not isinstance(item, tuple | list) or len(item) != 2:
            told = f"demonstrations of the task gave {shown(item)}"
            raise ValueError(f"{told}: return (prompt, completion)")
    return items


def draw_prompts(task: Task, rng: np.random.Generator, n: int, *split: str) -> list[np.ndarray]:
    """n prompts of a task.   Raises ValueError for another number; `sample` checks each prompt."""
    return exactly(n, task.prompts(rng, n, *split), "prompts")


def score(task: Task, rollouts: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The outcome rewards of a task, and their named parts: reward = Σ weight · part.

    -> rewards (B,) float64, parts {name: (B,) float64}, none of a task that gives plain numbers.
    Raises ValueError for rewards or parts that `check_rewards` refuses, a name that is no
    identifier, and a weight that is not finite or of no part.
    """
    found: Any = task.score(rollouts)
    if not has_parts(found, "rewards"):
        return check_rewards(found, rollouts.tree), {}
    parts, weights = {}, optional(task, "reward_weights", {})
    for name, values in found.items():
        try:
            parts[name] = check_rewards(values, rollouts.tree)
        except ValueError as error:
            raise ValueError(f"of part {name} of the rewards: {error}") from None
    fits = isinstance(weights, Mapping) and weights.keys() <= parts.keys()
    given = numbers([*weights.values()], len(weights), "weights", "parts") if fits else np.inf
    if not (np.abs(given) <= LARGEST).all():
        told = f"reward_weights of the task is {shown(weights)}"
        raise ValueError(f"{told}: give a dict of finite numbers for its parts, {', '.join(parts)}")
    total = sum(float(weights.get(name, 1)) * values for name, values in parts.items())
    return check_rewards(total, rollouts.tree), parts


def has_parts(reward: Any, of: str) -> bool:
    """Whether a reward is a dict of named parts.   Raises ValueError for a bad name of one."""
    named = isinstance(reward, Mapping) and any(isinstance(n, str) for n in reward)
    if named and not all(isinstance(n, str) and n.isidentifier() for n in reward):
        told = f"{of} with parts named {shown(list(reward))}"
        raise ValueError(f"{told}: name each as Python names a variable")
    return named


def sampling_limits(task: Task) -> dict[str, Any]:
    """What ends a completion of the task, as arguments of `sampler.sample`."""
    eos = task.tokenizer.eos, optional(task, "stop")
    return {"max_new_tokens": task.max_new_tokens, "eos": eos}
