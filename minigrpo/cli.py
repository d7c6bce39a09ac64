"""The command line.   minigrpo COMMAND --help says what each command does; bad input is one clear line and exit code 2."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np

from minigrpo.objectives import PRESETS
from minigrpo.settings import TrainSettings
from minigrpo.tasks import BUILT_IN

EPILOG = """examples:
  minigrpo demo --out demo                      everything in a minute: trees, the theorem, GRPO against λ-GRPO, a report
  minigrpo tree classroom.json                  draw a group that you typed, with |λ|, step rewards and advantages
  minigrpo equivalence                          check Theorem 1 on real rollouts
  minigrpo train --task arithmetic --out run    train; then: minigrpo evaluate run, sample run, plot run
"""

TRAIN_HELP = {
    "task": f"{', '.join(sorted(BUILT_IN))}, or path/to/file.py:MyTask",
    "task_options": "an option of the task, such as n=2; may be repeated",
    "objective": ", ".join(PRESETS),
    "objective_options": "a change to the objective's preset, such as beta=0.04 or kl=k2; may be repeated",
    "group_size": "k, completions a prompt",
    "prompts_per_step": "groups a step",
    "inner_epochs": "μ, updates from one batch of rollouts (above 1, ratios are clipped)",
    "temperature": "of sampling, and of the policy that is trained (top-k and top-p are not offered: they would bias it)",
    "optimizer": "adamw or sgd",
    "schedule": "constant or cosine",
    "max_grad_norm": "clip the gradient to this norm (none: do not)",
    "micro_batch_tokens": "tree nodes in the model at a time; changes memory and speed, not the gradient",
    "warm_start_steps": "supervised steps on the task's demonstrations first",
    "eval_every": "greedy pass@1 on held-out problems every so many steps (0: never)",
    "log_samples_every": "write completions to samples.jsonl every so many steps",
    "init": "start from the weights of another run (a folder or checkpoint) instead of a warm start",
    "backend": "auto, numpy or cupy",
    "dtype": "float32 or float64",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.   -> exit code: 0 well, 1 a check failed or training diverged, 2 bad input, 130 interrupted"""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 0
    try:
        return arguments.run(arguments) or 0
    except (ValueError, OSError) as error:
        reason = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.filename else str(error)
        print(f"minigrpo {arguments.command}: {reason}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"minigrpo {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        out = getattr(arguments, "resume", None) or getattr(arguments, "out", None)
        hint = f"; go on with: minigrpo train --resume {out}" if arguments.command == "train" and out else ""
        print(f"\nminigrpo {arguments.command}: interrupted{hint}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minigrpo",
        description="GRPO is secretly a process reward model: the result from scratch, on the prefix tree of completions.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text.split(":")[0], description=text)
        added.set_defaults(run=run)
        return added

    demo = command(
        "demo", _demo, "the main result in a minute: trees of real groups, Theorem 1 checked, GRPO against λ-GRPO, report.html"
    )
    demo.add_argument("--out", default="demo", metavar="FOLDER", help="where figures, data and report.html go (default: demo)")
    demo.add_argument("--seeds", type=int, default=8, help="runs for each objective and setting (default: 8)")
    demo.add_argument("--processes", type=int, help="parallel processes (default: all cores)")

    train = command(
        "train", _train, "train a policy: a supervised warm start if the task brings demonstrations, then the objective"
    )
    for f in fields(TrainSettings):
        _add_setting(train, f)
    train.add_argument("--out", metavar="FOLDER", help="write settings, metrics, samples and checkpoints here")
    train.add_argument("--resume", metavar="FOLDER", help="go on with the run in this folder, to the same bits as without a break")

    evaluate = command("evaluate", _evaluate, "measure a trained policy: greedy pass@1 and unbiased pass@k on held-out problems")
    evaluate.add_argument("path", metavar="RUN", help="the folder of a run, or a checkpoint in it")
    evaluate.add_argument("--prompts", type=int, default=200, help="held-out problems (default: 200)")
    evaluate.add_argument("--samples", type=int, default=0, help="completions a problem for pass@k (default: 0, greedy only)")
    evaluate.add_argument("--k", type=int, nargs="+", default=None, help="the ks of pass@k (default: 1 and --samples)")
    evaluate.add_argument("--temperature", type=float, default=1.0)
    evaluate.add_argument("--seed", type=int, default=0)

    sample = command(
        "sample", _sample, "sample a group from a trained policy and draw it: the tree, |λ|, step rewards and advantages"
    )
    sample.add_argument("path", metavar="RUN", help="the folder of a run, or a checkpoint in it")
    sample.add_argument("--prompt", help="a prompt in the task's alphabet (default: a held-out problem)")
    sample.add_argument("--group-size", type=int, default=8)
    sample.add_argument("--temperature", type=float, default=1.0)
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--out", metavar="FILE", help="also draw the tree as a figure (.png or .svg)")

    tree = command(
        "tree",
        _tree,
        "draw groups that you typed or logged, without any model: one JSON group as a tree; many (JSON lines with prompt, "
        "completion, reward) as statistics and a page of trees",
    )
    tree.add_argument(
        "file",
        metavar="FILE",
        help='a JSON or JSON-lines file, or - for standard input: {"completions": ["ab", "ac"], "rewards": [1, 0]}',
    )
    tree.add_argument("--unit", choices=("auto", "characters", "words"), default="auto", help="what to split texts into")
    tree.add_argument("--reward-name", default="reward", help="the field that holds the reward in logs (default: reward)")
    tree.add_argument("--out", metavar="FILE", help="also draw a figure (.png or .svg): the tree, or a page of trees")
    tree.add_argument("--show", type=int, default=3, help="of many groups, draw so many in the terminal (default: 3)")
    tree.add_argument("--ascii", action="store_true", help="draw with plain ASCII characters")

    equivalence = command("equivalence", _equivalence, "check Theorem 1 on real rollouts in float64: exit code 1 if it fails")
    equivalence.add_argument("path", metavar="RUN", nargs="?", help="a run whose policy samples (default: an untrained one)")
    equivalence.add_argument("--task", default="treewalk", help="task of the untrained policy (default: treewalk)")
    equivalence.add_argument("--prompts", type=int, default=4, help="groups (default: 4)")
    equivalence.add_argument("--group-size", type=int, default=8)
    equivalence.add_argument("--beta", type=float, default=0.04, help="weight of the KL term (default: 0.04)")
    equivalence.add_argument("--tolerance", type=float, default=1e-12)
    equivalence.add_argument("--seed", type=int, default=0)

    plot = command(
        "plot", _plot, "draw the metrics of runs: one run as small multiples; several as learning curves, a line for each objective"
    )
    plot.add_argument("path", metavar="RUN", nargs="+", help="folders of runs")
    plot.add_argument("--out", metavar="FILE", help="figure to write, .png or .svg (default: metrics.png in the first folder)")
    plot.add_argument("--key", default="reward", help="what to compare across runs (default: reward)")
    return parser


def _add_setting(parser: argparse.ArgumentParser, f: Any) -> None:
    flag = "--" + f.name.replace("_", "-")
    if f.name in ("task_options", "objective_options"):
        flag = flag[:-1]  # --task-option n=2
        parser.add_argument(flag, dest=f.name, action="append", type=_key_value, metavar="KEY=VALUE", help=TRAIN_HELP[f.name])
        return
    default = f.default if f.default is not MISSING else None
    kind = {"int": int, "float": float, "int | None": int, "float | None": _float_or_none}.get(f.type, str)
    note = f"{TRAIN_HELP.get(f.name, '')} (default: {default}, unless the task recommends another)".strip()
    parser.add_argument(flag, dest=f.name, type=kind, default=None, help=note, metavar=f.name.split("_")[-1].upper())


def _key_value(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def _float_or_none(text: str) -> float | str:
    return "none" if text == "none" else float(text)


# -- commands ------------------------------------------------------------------------------------------------------------


def _demo(a: argparse.Namespace) -> None:
    from minigrpo.demo import demo

    report = demo(a.out, seeds=a.seeds, processes=a.processes)
    print(f"\nThe report, with all figures in it: {report}")


def _train(a: argparse.Namespace) -> None:
    from minigrpo.runs import read_settings
    from minigrpo.trainer import train

    given = {f.name: getattr(a, f.name) for f in fields(TrainSettings) if getattr(a, f.name) is not None}
    given |= {name: dict(given[name]) for name in ("task_options", "objective_options") if name in given}
    if given.get("max_grad_norm") == "none":
        given["max_grad_norm"] = None
    if a.resume:
        if a.out and Path(a.out) != Path(a.resume):
            raise ValueError("--resume goes on in its own folder: leave out --out")
        stored = read_settings(a.resume)
        changed = [name for name, value in given.items() if stored.get(name) != value]
        if changed:
            was = ", ".join(f"{name} was {stored.get(name)!r}, not {given[name]!r}" for name in changed)
            raise ValueError(f"the run in {a.resume} has other settings ({was}): resume it as it was, or start another with --out")
        settings = TrainSettings(**stored)
    else:
        settings = TrainSettings.for_task(given.pop("task", "treewalk"), **given)
    print(_describe(settings))
    _, history = train(settings, a.resume or a.out, resume=bool(a.resume), on_step=_print_evaluation)
    if history:
        last = history[-max(len(history) // 10, 1) :]
        done = np.mean([m["reward"] for m in last])
        print(f"mean reward of the last {len(last)} steps {done:.3f}, {history[-1]['num_tokens']:,} tokens sampled in all")
    if a.resume or a.out:
        print(f"everything is in {a.resume or a.out}: look with minigrpo plot, evaluate or sample")


def _describe(s: TrainSettings) -> str:
    return (
        f"{s.objective} on {s.task}: {s.steps} steps of {s.prompts_per_step} × {s.group_size} completions, seed {s.seed}, {s.dtype}"
    )


def _print_evaluation(metrics: dict[str, Any]) -> None:
    if "eval/pass@1_greedy" in metrics:
        from tqdm import tqdm

        right, n = metrics["eval/pass@1_greedy"], metrics["eval/prompts"]
        tqdm.write(f"step {metrics['step']:5}   greedy pass@1 {right:6.1%} of {n} held-out problems")


def _evaluate(a: argparse.Namespace) -> None:
    from minigrpo.evaluation import evaluate
    from minigrpo.trainer import load_run

    model, task, _ = load_run(a.path)
    ks = tuple(a.k) if a.k else tuple(sorted({1, a.samples} - {0}))
    if a.k and not a.samples:
        raise ValueError("pass@k needs samples: give --samples too")
    result = evaluate(model, task, n_prompts=a.prompts, samples=a.samples, ks=ks, temperature=a.temperature, seed=a.seed)
    for name, value in result.items():
        print(f"{name:24} {value:.4g}")


def _sample(a: argparse.Namespace) -> None:
    from minigrpo.drawing import tree_text
    from minigrpo.groups import read_groups
    from minigrpo.plots import draw_tree, save
    from minigrpo.rewards import check_rewards
    from minigrpo.sampler import sample
    from minigrpo.trainer import load_run, sample_records

    model, task, _ = load_run(a.path)
    rng = np.random.default_rng(a.seed)
    prompt = task.tokenizer.encode(a.prompt) if a.prompt is not None else task.prompts(rng, 1, "test")[0]
    limits = {"max_new_tokens": task.max_new_tokens, "eos": task.tokenizer.eos}
    rollouts = sample(model, [prompt], a.group_size, rng, temperature=a.temperature, **limits)
    rewards = check_rewards(task.score(rollouts), rollouts.tree)
    records = sample_records(rollouts, rewards, task, 0)
    group = read_groups("\n".join(json.dumps(record) for record in records), unit="characters")[0]
    print(tree_text(group.tree, group.rewards, group.labels, prompt=group.prompt))
    if a.out:
        print(f"figure: {save(draw_tree(group.tree, group.rewards, group.labels, title=group.prompt), a.out)}")


def _tree(a: argparse.Namespace) -> None:
    from minigrpo.drawing import tree_text
    from minigrpo.groups import group_statistics, read_groups, statistics_text
    from minigrpo.plots import draw_tree, draw_trees_page, save

    text = sys.stdin.read() if a.file == "-" else Path(a.file).read_text(encoding="utf-8")
    groups = read_groups(text, unit=a.unit, reward_name=a.reward_name)
    for group in groups[: a.show if len(groups) > 1 else 1]:
        print(tree_text(group.tree, group.rewards, group.labels, prompt=group.prompt, ascii_only=a.ascii), end="\n\n")
    if len(groups) > 1:
        print(statistics_text(group_statistics(groups)))
    if a.out:
        one = groups[0]
        figure = draw_tree(one.tree, one.rewards, one.labels, title=one.prompt) if len(groups) == 1 else draw_trees_page(groups)
        print(f"figure: {save(figure, a.out)}")


def _equivalence(a: argparse.Namespace) -> int:
    from minigrpo.equivalence import check_equivalence
    from minigrpo.rewards import check_rewards
    from minigrpo.sampler import sample
    from minigrpo.tasks import load_task
    from minigrpo.trainer import load_run, make_model

    rng = np.random.default_rng(a.seed)
    if a.path:
        model, task, _ = load_run(a.path, dtype="float64")
    else:
        task = load_task(a.task)
        model = make_model(TrainSettings(task=a.task, seed=a.seed, dtype="float64"), task)
    prompts = task.prompts(rng, a.prompts)
    rollouts = sample(model, prompts, a.group_size, rng, max_new_tokens=task.max_new_tokens, eos=task.tokenizer.eos)
    rewards = check_rewards(task.score(rollouts), rollouts.tree)
    found = check_equivalence(model, rollouts, rewards, rng, beta=a.beta)
    if not found.informative and not a.beta:
        raise ValueError("all rewards are equal in every group, so both gradients are 0: take a trained RUN, another seed, or beta")
    print(found.text())
    holds = found.worst <= a.tolerance
    print(f"Theorem 1 {'holds' if holds else 'FAILS'} (tolerance {a.tolerance:g})")
    return 0 if holds else 1


def _plot(a: argparse.Namespace) -> None:
    from minigrpo.plots import learning_curves, metrics_figure, save
    from minigrpo.runs import read_records, read_settings

    out = a.out or Path(a.path[0]) / "metrics.png"
    runs = [(read_settings(path), [r for r in read_records(Path(path) / "metrics.jsonl") if "loss" in r]) for path in a.path]
    if len(runs) == 1:
        print(f"figure: {save(metrics_figure(runs[0][1]), out)}")
        return
    curves: dict[str, list] = {}
    for settings, records in runs:
        values = [record[a.key] for record in records if a.key in record]
        if not values:
            raise ValueError(f"there is no {a.key!r} in the metrics of a run: it has {', '.join(sorted(records[0]))}")
        curves.setdefault(settings["objective"], []).append(values)
    shortest = min(len(values) for group in curves.values() for values in group)
    arrays = {name: np.array([values[:shortest] for values in group]) for name, group in curves.items()}
    print(f"figure: {save(learning_curves(arrays, xlabel='training step', ylabel=a.key, title=''), out)}")
