"""The flags of every command, as a table; those of `train` are the fields of its settings."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Any

from minigrpo.experiments import EXPERIMENTS
from minigrpo.objectives import PRESETS
from minigrpo.rewards import LARGEST
from minigrpo.runs.settings import TrainSettings
from minigrpo.tasks import BUILT_IN


def refuse(a: argparse.Namespace, names: str, why: str) -> None:
    """Raises ValueError for a flag that was given although the command would not look at it.

    Whoever gives a flag expects it to matter.
    """
    for name in names.split():
        if getattr(a, name) is not None:
            written = name.replace("task_options", "task_option").replace("_", "-")
            raise ValueError(f"--{written} {why}")


# -- types of flags --------------------------------------------------------------------------------


def whole(low: int, high: int) -> Callable[[str], int]:
    """The type of a flag that takes a whole number from low to high."""

    def count(text: str) -> int:
        number = int(text)
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{number} is not from {low:,} to {high:,}")
        return number

    return count


def amount(text: str) -> float:
    """The type of a flag that takes a finite number of at least 0."""
    if not 0 <= float(text) < LARGEST:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number of at least 0")
    return float(text)


def number_or_none(text: str) -> float | str:
    """The type of a flag that takes a number or "none"."""
    try:
        return text if text == "none" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor none") from None


def key_value(text: str) -> tuple[str, Any]:
    """The type of a flag that takes KEY=VALUE; a value that is no JSON is a text."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:  # a word, or .5 and 5., which are numbers but no JSON
        return key, float(value) if re.fullmatch(r"[+-]?(\d+\.|\.\d+)", value) else value


def path(text: str) -> str:
    """The type of a flag that names a file or a folder: an unset variable of a shell names none."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty")
    return text


any_count, count, seed = whole(0, 10**6), whole(1, 10**6), whole(0, 2**63 - 1)


# -- commands and their flags ----------------------------------------------------------------------

Flag = tuple[str, dict[str, Any]]


def flag(name: str, text: str = "", default: Any = None, **options: Any) -> Flag:
    """A flag (or an argument, without dashes); its default is told at the end of its help."""
    told = text + (f" (default: {default})" if default is not None else "")
    if options.get("metavar") in ("FILE", "FOLDER", "RUN", "MODEL", "INIT"):
        options["type"] = path
    return name, {"help": told} | ({} if default is None else {"default": default}) | options


SETTINGS = {
    "task": f"{', '.join(sorted(BUILT_IN))}, or path/to/file.py:MyTask",
    "task_options": "an option of the task, such as n=2; may be repeated",
    "model": "a pretrained language model: smollm2 (fetched by minigrpo pull), a .gguf file, "
    "or a Hugging Face folder",
    "objective": f"{', '.join(PRESETS)}, or path/to/file.py:MyObjective",
    "objective_options": "a change to the objective's preset, such as beta=0.04, kl=k2 or "
    "alpha=0.5; may be repeated",
    "group_size": "k, the number of completions per prompt",
    "prompts_per_step": "the number of groups per step",
    "inner_epochs": "μ, updates from one batch of rollouts (above 1, ratios are clipped)",
    "temperature": "of sampling, and of the policy that is trained",
    "optimizer": "adamw or sgd",
    "learning_rate": "lower it if training warns that the reward fell",
    "schedule": "constant or cosine",
    "max_grad_norm": "clip the gradient to this norm (none: do not)",
    "micro_batch_tokens": "tree nodes in the model at a time; changes memory and speed, "
    "not the gradient; a GPU wants more",
    "memory_limit": "GB that training may take: beyond it, fewer nodes are taken at a time",
    "warm_start_steps": "supervised steps on the task's demonstrations first",
    "eval_every": "measure greedy pass@1 on held-out problems every so many steps (0: never)",
    "log_samples_every": "write completions to samples.jsonl every so many steps",
    "init": "start from the weights of another run (a folder or checkpoint), not a warm start",
    "backend": "auto (the GPU where one works), numpy or cupy",
    "dtype": "float32 or float64",
}
TYPES = {"int": int, "int | None": int, "float": float, "float | None": number_or_none}


def setting(f: Field) -> Flag:
    """The flag of a training setting."""
    name, text = "--" + f.name.replace("_", "-"), SETTINGS.get(f.name, "")
    if f.name.endswith("_options"):  # --task-option n=2
        return several(name[:-1], text, f.name)
    told = f"{text} (default: {f.default}, unless the task recommends another)".strip()
    metavar = f.name.split("_")[-1].upper()
    return flag(name, told, dest=f.name, type=TYPES.get(f.type, str), metavar=metavar)


def several(name: str, text: str, dest: str) -> Flag:
    """A flag KEY=VALUE that may be repeated."""
    return flag(name, text, dest=dest, action="append", type=key_value, metavar="KEY=VALUE")


SEED = flag("--seed", "of all random draws", 0, type=seed)
GROUP_SIZE = flag("--group-size", "k, the number of completions per prompt", 8, type=count)
PROCESSES = flag("--processes", "parallel processes (default: all cores)", type=count)
RUN = flag("path", "the folder of a run, or a checkpoint in it", metavar="RUN")
POLICY = [
    (RUN[0], RUN[1] | {"nargs": "?"}),
    flag("--model", f"instead of a run: {SETTINGS['model']}", metavar="MODEL"),
    flag("--task", "the task of the pretrained model: sums, largest, or path/to/file.py:MyTask"),
    several("--task-option", "an option of that task; may be repeated", "task_options"),
]
TREE_FILE = """JSON, JSON lines, CSV, TSV or Parquet, or - for standard input:
{"completions": ["ab", "ac"], "rewards": [1, 0]};
also a log of TRL, verl, open-instruct, ms-swift or prime-rl (not its traces), or a folder"""
ANSWERS = "your file, or the folder that holds it (default: tutorials/exercises/CHAPTER.py)"
GRID = "values for a flag of train (task-option.n=1,2: for an option); may be repeated"
UNITS = "auto", "characters", "words"
FLAGS: dict[str, list[Flag]] = {
    "demo": [
        flag("--out", "where figures, data and report.html go", "demo", metavar="FOLDER"),
        flag("--seeds", "runs for each objective, n and learning rate", 64, type=any_count),
        PROCESSES,
    ],
    "train": [
        *map(setting, fields(TrainSettings)),
        flag("--out", "write settings, metrics, samples and checkpoints here", metavar="FOLDER"),
        flag("--resume", "go on with a run, to the same bits; to more --steps", metavar="FOLDER"),
        flag("--profile", "print where the time of the steps went", action="store_true"),
    ],
    "sweep": [
        flag("--grid", GRID, action="append", metavar="NAME=V1,V2"),
        flag("--seeds", "runs of each setting, from --seed on", 1, type=whole(1, 10**4)),
        flag("--out", "a folder for the folders of the runs", required=True, metavar="FOLDER"),
        PROCESSES,
        *map(setting, fields(TrainSettings)),
    ],
    "table": [
        flag("path", "folders of runs, or that hold such", metavar="RUN", nargs="+"),
        flag("--out", "write a row per run, as CSV", metavar="FILE"),
        flag("--all", "all settings in the CSV, not only those that differ", action="store_true"),
    ],
    "evaluate": [
        *POLICY,
        flag("--prompts", "held-out problems (default: 200, or all of a table)", type=any_count),
        flag("--samples", "completions per problem, for pass@k", 0, type=any_count),
        flag("--k", "the ks of pass@k (default: 1 and --samples)", type=count, nargs="+"),
        flag("--temperature", "of the samples (default: 1)", type=amount),
        SEED,
    ],
    "sample": [
        *POLICY,
        flag("--prompt", "default: a held-out problem of the task; a text where there is no task"),
        flag("--chat", "a text is a user's message", action="store_const", const=True),
        flag("--max-new-tokens", "where there is no task (default: 64)", type=count),
        GROUP_SIZE,
        flag("--temperature", "of the samples", 1.0, type=amount),
        SEED,
        flag("--out", "also draw the tree as a figure (.png or .svg)", metavar="FILE"),
    ],
    "pull": [flag("name", "smollm2: SmolLM2-135M-Instruct, Apache-2.0, 98 MB", metavar="NAME")],
    "export": [RUN, flag("--out", "the folder to write", required=True, metavar="FOLDER")],
    "tree": [
        flag("file", TREE_FILE, metavar="FILE"),
        flag("--unit", "what to split texts into", "auto", choices=UNITS),
        flag("--tokenizer", "split texts by a tokenizer.json, .gguf or folder", metavar="FILE"),
        flag("--prompt-name", "the field of a log that holds the prompt", metavar="NAME"),
        flag("--completion-name", "the field that holds the completion", metavar="NAME"),
        flag("--step-name", "the field that holds the training step", metavar="NAME"),
        flag("--reward-name", "the field of the reward; a,b:0.5 adds half of b", metavar="NAME"),
        flag("--group-name", "the field that tells groups apart", metavar="NAME"),
        flag("--group-size", "split logs into groups of K", type=any_count, metavar="K"),
        flag("--step", "only this training step; may be repeated", action="append", metavar="N"),
        flag("--last", "only the last training step", action="store_true"),
        flag("--out", "also draw a figure of the tree or trees (.png or .svg)", metavar="FILE"),
        flag("--json", "also write the five numbers, of all and of each step", metavar="FILE"),
        flag("--numbers", "also draw them along the steps (.png or .svg)", metavar="FILE"),
        flag("--html", "also write a page whose texts and rewards can be edited", metavar="FILE"),
        flag("--show", "of several groups, draw so many (default: 3)", type=any_count),
        flag("--ascii", "draw with plain ASCII characters", action="store_true"),
    ],
    "equivalence": [
        flag("path", "a run whose policy samples (default: untrained)", metavar="RUN", nargs="?"),
        flag("--task", "task of the untrained policy (default: treewalk)"),
        flag("--prompts", "the number of groups", 4, type=count),
        GROUP_SIZE,
        flag("--beta", "weight of the KL term", 0.04, type=amount),
        flag("--tolerance", "the largest relative difference that passes", 1e-12, type=amount),
        SEED,
    ],
    "check": [
        flag("chapter", "ch01 to ch08, a file so named, or all", metavar="CHAPTER"),
        flag("path", ANSWERS, metavar="FILE", nargs="?"),
        flag("--task", "only this one, counted from 1 (default: all)", type=any_count, metavar="N"),
        flag("--json", "print points, messages and notes as JSON", action="store_true"),
        flag("--closed", "a folder that answers may not read", action="append", metavar="FOLDER"),
        flag("--seconds", "what a task may take", 10.0, type=amount),
        flag("--memory", "GB that a task may take", 2.0, type=amount),
        flag("--strict", "what loads the package or a solution is not right", action="store_true"),
    ],
    "walk": [flag("--out", "where to write the page", "walk.html", metavar="FILE")],
    "exercises": [flag("--out", "where to write them", "exercises", metavar="FOLDER")],
    "plot": [
        flag("path", "folders of runs of one task", metavar="RUN", nargs="+"),
        flag("--out", ".png or .svg (default: metrics.png, or watch.html, in RUN)", metavar="FILE"),
        flag("--key", "one metric (default: reward; of one run, the usual ones)"),
        flag("--smooth", "draw running means of the last N values", type=count, metavar="N"),
        flag("--label", "a name for each line, in order", action="append", metavar="NAME"),
        flag("--watch", "write a page that shows a run while it goes on", action="store_true"),
    ],
    "bench": [
        flag("--workload", "W1, W2, W3 (default: all)", nargs="+", metavar="NAME"),
        flag("--steps", "steps of which the median is taken", 5, type=any_count),
        flag("--backend", "auto, numpy or cupy", "numpy"),
        flag("--dtype", "float32 or float64", "float32"),
    ],
    "reproduce": [
        flag("name", ", ".join(EXPERIMENTS), metavar="NAME", choices=EXPERIMENTS),
        flag("--out", "where NAME.json and figures go", "results", metavar="FOLDER"),
        flag("--quick", "in a minute or two, with fewer seeds and settings", action="store_true"),
        flag("--seeds", "seeds per arm (default: the experiment's own)", type=any_count),
        PROCESSES,
    ],
}
PURPOSES = {
    "demo": "the main result in a minute: trees of real groups, Theorem 1 checked, GRPO against "
    "λ-GRPO, report.html",
    "train": "train a policy: a supervised warm start if the task brings demonstrations, then the "
    "objective",
    "sweep": "train a grid of settings times seeds in parallel: the same command goes on with it, "
    "and extends it with more --steps",
    "table": "a table over runs: means over seeds, and with --out a row per run as CSV",
    "evaluate": "measure a trained policy: greedy pass@1 and unbiased pass@k on held-out problems",
    "sample": "sample a group from a trained policy and draw it: the tree, |λ|, R̂ and Â",
    "pull": "fetch a pretrained language model once, verified, into the cache folder: smollm2",
    "export": "write the model of a run as a Hugging Face folder, which transformers loads",
    "tree": "draw groups that you typed or logged, without any model: one JSON group as a tree; "
    "many (JSON lines with prompt, completion, reward) as statistics, a page of trees, and five "
    "numbers that tell how far λ-GRPO's push is from GRPO's",
    "equivalence": "check Theorem 1 on real rollouts in float64: exit code 1 if it fails",
    "check": "check your answers to a chapter's exercises: exit code 0 if all are right, else 1",
    "walk": "write a page in which GRPO and λ-GRPO learn the paper's walk side by side",
    "exercises": "write the files of the exercises, to be filled in; files that are there stay",
    "plot": "draw the metrics of runs: one run as small multiples; several as learning curves, "
    "a line for each setting",
    "bench": "the time of a full step on fixed workloads, next to what matrix products allow",
    "reproduce": "run an experiment, with data and figures: "
    + "; ".join(f"{name}: {text}" for name, text in EXPERIMENTS.items()),
}
