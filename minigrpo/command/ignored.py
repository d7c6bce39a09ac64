"""What a command would ignore is refused: whoever gave it expects it to matter."""

from __future__ import annotations

import argparse

from minigrpo.runs.settings import TrainSettings


def refuse(a: argparse.Namespace, flags: str, why: str) -> None:
    """Raises ValueError for a flag that was given although the command would not look at it."""
    for flag in flags.split():
        if getattr(a, flag) is not None:
            name = flag.removesuffix("s") if flag == "task_options" else flag
            raise ValueError(f"--{name.replace('_', '-')} {why}")


def refuse_idle(a: argparse.Namespace, s: TrainSettings) -> None:
    """Raises ValueError for a setting that was given although this run would not look at it."""
    if s.init is not None:
        if a.warm_start_steps:
            raise ValueError(
                "--warm-start-steps would be overwritten: --init brings the weights, so leave one of them out"
            )
        refuse(
            a,
            "warm_start_batch warm_start_learning_rate",
            "is of a warm start, whose place --init takes",
        )
    if not s.warm_start_steps:
        refuse(
            a,
            "warm_start_batch warm_start_learning_rate",
            "is of a warm start: give --warm-start-steps too",
        )
    if not s.eval_every:
        refuse(a, "eval_prompts", "is of evaluations: give --eval-every too")
    if s.model is not None:
        refuse(
            a,
            "dim n_layers n_heads n_kv_heads ffn_dim",
            "is of a new model: the pretrained one has its own shape",
        )
