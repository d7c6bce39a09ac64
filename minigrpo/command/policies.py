"""The commands that train, measure, fetch and export a policy; `commands.py` has the others."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from minigrpo.command.flags import refuse
from minigrpo.engine.backend import describe_backend
from minigrpo.runs.own_objective import short_name
from minigrpo.runs.settings import TrainSettings
from minigrpo.system.terminal import say
from minigrpo.system.text import visible


def run_train(a: argparse.Namespace) -> None:
    """Train, or go on with a run."""
    from minigrpo.engine.profiling import Stopwatch, peak_rate
    from minigrpo.runs.policy import make_task
    from minigrpo.runs.train import train
    from minigrpo.tasks.treewalk import TreeWalk

    settings = settings_of(a)
    size = f"{settings.prompts_per_step} × {settings.group_size} completions"
    what = settings.task + (f" with {settings.model}" if settings.model is not None else "")
    print(
        f"{visible(short_name(settings.objective))} on {visible(what)}: "
        f"{settings.steps} steps of {size}, seed {settings.seed}, {settings.dtype}"
    )
    task = make_task(settings) if settings.model is None else None
    if isinstance(task, TreeWalk):
        print(f"target path {task.target}{', drawn from the seed' if task.is_drawn else ''}")
    say_where(settings.backend)
    watch, out, resume = Stopwatch(), a.resume or a.out, bool(a.resume)
    told = {"task": task, "on_step": _print_evaluation, "watch": watch}
    model, history = train(settings, out, resume=resume, **told)
    if history:
        last = history[-max(len(history) // 10, 1) :]
        reward = np.mean([metrics["reward"] for metrics in last])
        sampled = f"{history[-1]['num_tokens']:,} tokens in all, prompts included"
        print(f"mean reward of the last {len(last)} steps {reward:.3f}, {sampled}")
    elif resume:
        print("all its steps had been taken: go on to more with --steps")
    if a.profile:
        no_step = "no step was taken, so there is no time to show"
        print(watch.table(peak_rate(model.backend, settings.dtype)) if history else no_step)
    if out:
        print(f"everything is in {visible(out)}: look with minigrpo plot, evaluate or sample")


def settings_of(a: argparse.Namespace) -> TrainSettings:
    """The settings of `minigrpo train`; raises ValueError for flags that the run would ignore."""
    from minigrpo.runs.stored_settings import read_settings, task_by_file

    names = [f.name for f in fields(TrainSettings)]
    given = {name: getattr(a, name) for name in names if getattr(a, name) is not None}
    for name in {"task_options", "objective_options"} & set(given):
        given[name] = dict(given[name])
    if given.get("max_grad_norm") == "none":
        given["max_grad_norm"] = None
    if not (a.out or a.resume):
        why = "is of what is written: give --out too"
        refuse(a, "checkpoint_every log_samples_every", why)
    if a.resume:
        if a.out and Path(a.out).resolve() != Path(a.resume).resolve():
            raise ValueError("--resume goes on in its own folder: leave out --out")
        stored = task_by_file(read_settings(a.resume))
        for name, value in given.items():
            if isinstance(value, dict):
                given[name] = stored.get(name, {}) | value
        return TrainSettings.from_stored(stored | given)  # train refuses what may not differ
    settings = TrainSettings.for_task(given.pop("task", "treewalk"), **given)
    warm_start = "warm_start_batch warm_start_learning_rate"
    if settings.init is not None:
        warm = f"warm_start_steps {warm_start}" if a.warm_start_steps else warm_start
        refuse(a, warm, "is of a warm start, but --init brings the weights: leave one of them out")
    if not settings.warm_start_steps:
        refuse(a, warm_start, "is of a warm start: give --warm-start-steps too")
    if not settings.eval_every:
        refuse(a, "eval_prompts", "is of evaluations: give --eval-every too")
    if settings.model is not None:
        why = "is of a new model: the pretrained one has its own shape"
        refuse(a, "dim n_layers n_heads n_kv_heads ffn_dim", why)
    return settings


def say_where(backend: str) -> None:
    """Say which device a run has got that does not insist on the CPU."""
    if backend != "numpy":
        print(describe_backend(backend))


def _print_evaluation(metrics: dict[str, Any]) -> None:
    if "eval/pass@1_greedy" in metrics:
        right, n = metrics["eval/pass@1_greedy"], metrics["eval/prompts"]
        say(f"step {metrics['step']:5}   greedy pass@1 {right:6.1%} of {n} held-out problems")


def run_evaluate(a: argparse.Namespace) -> None:
    """Measure a trained policy."""
    from minigrpo.runs.evaluation import evaluate
    from minigrpo.tasks import optional

    if not a.samples:
        refuse(a, "k temperature", "needs samples: give --samples too")
    model, task = policy(a)
    there = optional(task, "n_test_problems")
    if there and (a.prompts or 0) > there:
        told = f"the table holds {there} held-out problems, not {a.prompts}"
        raise ValueError(f"{told}: take --prompts {there}, or leave it out for all")
    n_prompts = min(there or 200, 200) if a.prompts is None else a.prompts
    options = {"n_prompts": n_prompts, "samples": a.samples, "seed": a.seed}
    options["ks"] = tuple(a.k or sorted({1, a.samples} - {0}))
    options["temperature"] = 1.0 if a.temperature is None else a.temperature
    for name, value in evaluate(model, task, **options).items():
        print(f"{name:24} {value:.4g}")


def policy(a: argparse.Namespace) -> tuple[Any, Any]:
    """The policy of a run, or a pretrained model with a task.   -> Transformer, Task"""
    from minigrpo.runs.policy import load_run, make_policy

    if (a.path is None) == (a.model is None):
        raise ValueError("give either the folder of a run or a pretrained model with --model")
    if a.model is None:
        refuse(a, "task task_options", "goes with --model: a run has its own task")
        model, task, settings = load_run(a.path)
        say_where(settings.backend)
        return model, task
    if a.task is None:
        raise ValueError("a pretrained model needs a task: give --task sums, say")
    options = dict(a.task_options or {})
    return make_policy(TrainSettings(task=a.task, task_options=options, model=a.model))


def run_pull(a: argparse.Namespace) -> None:
    """Fetch a pretrained model."""
    from minigrpo.models import KNOWN, pull

    print(f"{KNOWN[a.name].title}: {pull(a.name)}" if a.name in KNOWN else pull(a.name))


def run_export(a: argparse.Namespace) -> None:
    """A run's model as a Hugging Face folder."""
    from minigrpo.models import TextTokenizer, save_hugging_face
    from minigrpo.runs.policy import load_run

    model, task, _ = load_run(a.path)
    tokenizer = task.tokenizer if isinstance(task.tokenizer, TextTokenizer) else None
    print(f"for transformers: {visible(str(save_hugging_face(model, tokenizer, a.out)))}")
