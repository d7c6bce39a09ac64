"""All that determines a training run, as one frozen record with a flag of the command for each."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from os import PathLike
from typing import Any

from minigrpo.engine.draw import check_temperature
from minigrpo.engine.optim import learning_rate_at
from minigrpo.objectives import Objective
from minigrpo.runs.own_objective import is_own, load_objective
from minigrpo.tasks import find_task, optional, whole_number

MAY_BE_0 = ("seed", "steps", "warm_start_steps", "eval_every", "warmup_steps")
AT_MOST = {"seed": 2**63 - 1, "n_layers": 1000, "dim": 10**5, "ffn_dim": 10**6}
AT_MOST |= {"warm_start_batch": 10**6, "eval_prompts": 10**6}
MAY_CHANGE = ("backend", "memory_limit", "micro_batch_tokens")  # on the way: where, not what
KINDS = {"int": int, "float": int | float, "str": str | PathLike, "dict[str, Any]": dict}
ALLOWED = {"weight_decay": "a finite number, at least 0"}
ALLOWED |= {"max_grad_norm": "above 0, or none for no clipping"}


@dataclass(frozen=True)
class TrainSettings:
    """All that determines a run.   Raises ValueError for settings that cannot work.

    `minigrpo train --help` says what each is for.
    >>> settings = mg.TrainSettings(task="arithmetic", objective="grpo", steps=500, seed=1)
    >>> settings.prompts_per_step * settings.group_size  # completions per step
    128
    """

    task: str = "treewalk"  # a built-in name, or path/to/file.py:MyTask
    task_options: dict[str, Any] = field(default_factory=dict)
    model: str | None = None  # a pulled language model, a .gguf file, a Hugging Face folder
    objective: str = "lambda_grpo"  # a preset of objectives.py, or path/to/file.py:MyObjective
    objective_options: dict[str, Any] = field(default_factory=dict)  # changes to it, such as beta
    steps: int = 250
    seed: int = 0
    group_size: int = 16  # k, completions per prompt
    prompts_per_step: int = 8  # G, groups per step
    inner_epochs: int = 1  # μ, updates from one batch of rollouts
    temperature: float = 1.0
    optimizer: str = "adamw"  # or sgd
    learning_rate: float = 1e-4  # AdamW's first steps at 1e-3 destroy a warm-started policy
    warmup_steps: int = 10
    schedule: str = "constant"  # or cosine
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    micro_batch_tokens: int = 1024  # nodes in the model at a time; any value, the same gradient
    memory_limit: float = 4.0  # GB that training may take; micro-batches shrink to stay within
    dim: int = 32
    n_layers: int = 2
    n_heads: int = 2
    n_kv_heads: int | None = None
    ffn_dim: int | None = None
    warm_start_steps: int = 0  # supervised steps on the task's demonstrations, before step 1
    warm_start_batch: int = 64
    warm_start_learning_rate: float = 3e-3
    eval_every: int = 0  # 0: only when asked for
    eval_prompts: int = 200
    checkpoint_every: int = 50
    log_samples_every: int = 10
    init: str | None = None  # a run or checkpoint to take the weights of (then no warm start)
    backend: str = "numpy"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for f in fields(self):
            self._check(f.name, str(f.type))
        if self.group_size * self.prompts_per_step > 10**6:
            product = f"{self.group_size} × {self.prompts_per_step}"
            raise ValueError(f"{product} completions a step are more than a million: take fewer")
        if self.optimizer == "adamw" and self.weight_decay * self.learning_rate > 1:
            raise ValueError(
                f"weight_decay ({self.weight_decay:g}) × learning_rate ({self.learning_rate:g}) is "
                "above 1: every step would turn the signs of all parameters; lower the decay"
            )
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"unknown optimizer {self.optimizer!r}: choose adamw or sgd")
        if self.optimizer == "sgd" and self.weight_decay:
            raise ValueError("weight_decay is of adamw: sgd has none, so leave it out")
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype {self.dtype!r} is not supported: choose float32 or float64")
        learning_rate_at(0, 1, 1.0, schedule=self.schedule)
        if not is_own(self.objective):  # a user's file is run when training begins
            self.make_objective()

    def _check(self, name: str, kind: str) -> None:
        """Refuse a value of another kind than the field's, or outside its range."""
        value: Any = getattr(self, name)
        what = kind.removesuffix(" | None")
        if value is None and kind != what:
            return
        if value is None or not isinstance(value, KINDS[what]) or isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}: it must be {kind}")
        if name == "temperature":
            check_temperature(value)
        elif what == "int":
            whole_number(name, value, 0 if name in MAY_BE_0 else 1, AT_MOST.get(name, 10**9))
        elif what == "float":
            least = 0 if name == "weight_decay" else math.ulp(0)
            if not least <= value <= sys.float_info.max:
                allowed = ALLOWED.get(name, "a finite number above 0")
                raise ValueError(f"{name} is {value!r}: it must be {allowed}")
        elif what == "dict[str, Any]":
            if not all(isinstance(key, str) for key in value):
                raise ValueError(f"{name} is {value!r}: it must be {kind}")
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError, RecursionError) as error:
                why = f"it must be what JSON can hold ({error})"
                raise ValueError(f"{name} is {value!r:.200}: {why}") from error

    def make_objective(self) -> Objective:
        """The objective that these settings name.   Raises ValueError as `load_objective` does."""
        load = load_objective if is_own(self.objective) else Objective.preset
        objective = load(self.objective, **self.objective_options)
        needs_others = objective.baseline != "none" or objective.scale == "group_std"
        if self.group_size < 2 and (needs_others or objective.process_weight):
            why = f"leaves {self.objective} nothing to compare a completion with"
            raise ValueError(f"group size 1 {why}: take at least 2")
        return objective

    @classmethod
    def for_task(cls, task: str, **changes: Any) -> TrainSettings:
        """The defaults, then what the task recommends (its attribute `defaults`), then changes.

        >>> mg.TrainSettings.for_task("arithmetic", steps=3).warm_start_steps
        1000
        """
        given = changes.get("task_options", {})
        recommended = optional(find_task(task, **given), "defaults", {})
        options = recommended.get("task_options", {}) if isinstance(recommended, Mapping) else None
        if not isinstance(options, dict) or "task" in recommended:
            raise ValueError(
                f"defaults of task {task!r} is no dict of settings, without a task, and with a "
                "dict of task_options if there are any"
            )
        wanted = {**recommended, **changes, "task": task, "task_options": options | given}
        if wanted.get("model"):  # the defaults of small models would destroy a pretrained one
            wanted = {"learning_rate": 1e-5, "warm_start_learning_rate": 3e-5} | wanted
        return cls.from_stored(wanted)

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> TrainSettings:
        """The settings of a dict, such as settings.json.   Raises ValueError for unknown names."""
        unknown = ", ".join(sorted(map(str, set(stored) - set(cls.__dataclass_fields__))))
        if unknown:
            way_out = "leave it out (or take the version that knows it)"
            raise ValueError(f"there is no setting {unknown}: {way_out}")
        return cls(**stored)
