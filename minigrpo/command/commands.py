"""What each command of the command line does with its parsed arguments; `cli.py` has the arguments themselves.

Modules are imported inside the commands that need them, so that `minigrpo --help` and `minigrpo tree` start quickly.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from minigrpo.command.ignored import refuse, refuse_idle
from minigrpo.engine.backend import describe_backend
from minigrpo.runs.settings import TrainSettings
from minigrpo.show.drawing import visible
from minigrpo.system.terminal import quoted, say


def run_demo(a: argparse.Namespace) -> None:
    """The demonstration."""
    from minigrpo.command.demo import demo

    report = demo(a.out, seeds=a.seeds, processes=a.processes)
    print(f"\nThe report, with all figures in it: {visible(str(report))}")


def run_train(a: argparse.Namespace) -> None:
    """Train, or go on with a run."""
    from minigrpo.engine.profiling import Stopwatch, peak_rate
    from minigrpo.runs.policy import make_task
    from minigrpo.runs.stored_settings import read_settings
    from minigrpo.runs.train import train
    from minigrpo.tasks.treewalk import TreeWalk

    given = {
        f.name: getattr(a, f.name) for f in fields(TrainSettings) if getattr(a, f.name) is not None
    }
    given |= {
        name: dict(given[name]) for name in ("task_options", "objective_options") if name in given
    }
    if given.get("max_grad_norm") == "none":
        given["max_grad_norm"] = None
    if not (a.out or a.resume):
        refuse(a, "checkpoint_every log_samples_every", "is of what is written: give --out too")
    if a.resume:
        if a.out and Path(a.out).resolve() != Path(a.resume).resolve():
            raise ValueError("--resume goes on in its own folder: leave out --out")
        stored = read_settings(a.resume, to_load=True)
        given |= {
            name: stored.get(name, {}) | value
            for name, value in given.items()
            if isinstance(value, dict)
        }
        settings = TrainSettings.from_stored(
            stored | given
        )  # what may not differ, the folder refuses
    else:
        settings = TrainSettings.for_task(given.pop("task", "treewalk"), **given)
        refuse_idle(a, settings)
    size = (
        f"{settings.steps} steps of {settings.prompts_per_step} × {settings.group_size} completions"
    )
    what = settings.task if settings.model is None else f"{settings.task} with {settings.model}"
    print(
        f"{settings.objective} on {visible(what)}: {size}, seed {settings.seed}, {settings.dtype}"
    )
    task = make_task(settings) if settings.model is None else None
    if isinstance(task, TreeWalk):
        print(f"target path {task.target}{', drawn from the seed' if task.is_drawn else ''}")
    _say_where(settings.backend)
    watch, folder = Stopwatch(), a.resume or a.out
    model, history = train(
        settings, folder, resume=bool(a.resume), task=task, on_step=_print_evaluation, watch=watch
    )
    if history:
        last = history[-max(len(history) // 10, 1) :]
        done = np.mean([m["reward"] for m in last])
        print(
            f"mean reward of the last {len(last)} steps {done:.3f}, {history[-1]['num_tokens']:,} tokens sampled in all"
        )
    if a.profile and not history:
        print("no step was taken, so there is no time to show")
    elif a.profile:
        print(watch.table(peak_rate(model.backend, settings.dtype)))
    if folder:
        print(f"everything is in {visible(folder)}: look with minigrpo plot, evaluate or sample")


def _say_where(backend: str) -> None:
    """Which device a run that does not insist on the CPU has got."""
    if backend != "numpy":
        print(describe_backend(backend))


def _print_evaluation(metrics: dict[str, Any]) -> None:
    if "eval/pass@1_greedy" in metrics:
        right, n = metrics["eval/pass@1_greedy"], metrics["eval/prompts"]
        say(f"step {metrics['step']:5}   greedy pass@1 {right:6.1%} of {n} held-out problems")


def run_evaluate(a: argparse.Namespace) -> None:
    """Measure a trained policy."""
    from minigrpo.runs.evaluation import evaluate

    if not a.samples:
        refuse(a, "k temperature", "needs samples: give --samples too")
    model, task = _policy(a)
    ks = tuple(a.k) if a.k else tuple(sorted({1, a.samples} - {0}))
    temperature = 1.0 if a.temperature is None else a.temperature
    result = evaluate(
        model,
        task,
        n_prompts=a.prompts,
        samples=a.samples,
        ks=ks,
        temperature=temperature,
        seed=a.seed,
    )
    for name, value in result.items():
        print(f"{name:24} {value:.4g}")


def _policy(a: argparse.Namespace) -> tuple[Any, Any]:
    """The policy of a run, or a pretrained model with a task.   -> Transformer, Task"""
    from minigrpo.runs.policy import load_run, make_policy

    if (a.path is None) == (a.model is None):
        raise ValueError(
            "give the folder of a run, or a pretrained model with --model, and not both"
        )
    if a.model is None:
        refuse(a, "task task_options", "goes with --model: a run has its own task")
        model, task, settings = load_run(a.path)
        _say_where(settings.backend)
        return model, task
    if a.task is None:
        raise ValueError("a pretrained model needs a task: give --task sums, say")
    return make_policy(
        TrainSettings(task=a.task, task_options=dict(a.task_options or {}), model=a.model)
    )


def run_sample(a: argparse.Namespace) -> None:
    """A group from a trained policy, drawn; without a task, what a pretrained model goes on to write."""
    from minigrpo.logs.groups import read_groups
    from minigrpo.rewards import check_rewards
    from minigrpo.runs.train import sample_records
    from minigrpo.sampler import sample
    from minigrpo.show.drawing import tree_text
    from minigrpo.tasks import draw_prompts, sampling_limits

    if a.model is not None:
        if a.path is not None:
            refuse(a, "prompt", "and a text beside it are two prompts: leave one out")
            a.prompt, a.path = a.path, None
        if a.task is None:
            return _sample_text(a)
    refuse(a, "max_new_tokens", "goes with --model alone: a task has its own limit")
    model, task = _policy(a)
    rng = np.random.default_rng(a.seed)
    prompts = (
        draw_prompts(task, rng, 1, "test")
        if a.prompt is None
        else [task.tokenizer.encode(a.prompt)]
    )
    rollouts = sample(
        model, prompts, a.group_size, rng, temperature=a.temperature, **sampling_limits(task)
    )
    rewards = check_rewards(task.score(rollouts), rollouts.tree)
    records = sample_records(rollouts, rewards, task, 0)
    group = read_groups("\n".join(json.dumps(record) for record in records), unit="characters")[0]
    print(tree_text(group.tree, group.rewards, group.labels, prompt=group.prompt))
    if a.out:
        from minigrpo.show.plots import draw_tree, save

        figure = draw_tree(group.tree, group.rewards, group.labels, title=group.prompt)
        print(f"figure: {visible(str(save(figure, a.out)))}")


def _sample_text(a: argparse.Namespace) -> None:
    from minigrpo.models import load_model
    from minigrpo.sampler import sample

    refuse(a, "task_options", "is of a task: give --task too")
    refuse(a, "out", "draws rewards, which are of a task: give --task too")
    if not a.prompt:
        raise ValueError(
            'give the text to go on from: minigrpo sample --model smollm2 "Once upon a time"'
        )
    model, tokenizer = load_model(a.model)
    limits = {
        "max_new_tokens": a.max_new_tokens or 64,
        "eos": tokenizer.eos,
        "stop": tokenizer.stops_at(),
        "temperature": a.temperature,
    }
    rollouts = sample(
        model, [tokenizer.encode(a.prompt)], a.group_size, np.random.default_rng(a.seed), **limits
    )
    logp = np.where(rollouts.tree.paths >= 0, rollouts.tree.on_tokens(rollouts.logp), 0).sum(1)
    for completion, value in zip(rollouts.completions[0], logp, strict=True):
        print(f"log p {value:7.1f}  {tokenizer.decode(completion)!r}")
    unique, flat = int(rollouts.tree.scored.sum()), int(rollouts.tree.lengths.sum())
    print(f"{unique} distinct prefixes among {flat} tokens")


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


def run_tree(a: argparse.Namespace) -> None:
    """Groups that somebody typed or logged, drawn."""
    from minigrpo.logs.files import NAMES, read_log
    from minigrpo.logs.formats import check_not_alone, choose_steps, read_completions
    from minigrpo.logs.groups import group_statistics, make_groups, statistics_text
    from minigrpo.runs.folder import SAMPLES, check_records
    from minigrpo.show.drawing import TO_ASCII, tree_text

    given = Path(a.file).resolve()
    for file in given.rglob(SAMPLES) if given.is_dir() else [given]:
        if file.name == SAMPLES:
            check_records(file.parent, SAMPLES)  # of a run of ours: refused if it was damaged
    kinds = ("prompt", "completion", "step", "reward", "group")
    names = NAMES | {kind: (name,) for kind in kinds if (name := getattr(a, f"{kind}_name"))}
    items, notes = read_log(a.file, names)
    found, said = read_completions(items, names, a.group_size)
    if a.unit != "auto" and not any(
        isinstance(one.content, str) for group in found for one in group
    ):
        raise ValueError("--unit is of texts: these completions are token ids")
    check_not_alone(found)
    groups = make_groups(choose_steps(found, a.step or [], last=a.last), unit=a.unit)
    for group in groups[: a.show if len(groups) > 1 else 1]:
        print(
            tree_text(
                group.tree, group.rewards, group.labels, prompt=group.prompt, ascii_only=a.ascii
            ),
            end="\n\n",
        )
    if len(groups) > 1:
        print(statistics_text(group_statistics(groups), ascii_only=a.ascii))
    for note in notes + said:
        note = f"note: {visible(note)}"
        print(note.translate(TO_ASCII).encode("ascii", "replace").decode() if a.ascii else note)
    if a.out:
        from minigrpo.show.plots import draw_tree, draw_trees_page, save

        one = groups[0]
        figure = (
            draw_tree(one.tree, one.rewards, one.labels, title=one.prompt)
            if len(groups) == 1
            else draw_trees_page(groups)
        )
        print(f"figure: {visible(str(save(figure, a.out)))}")
    if a.html:
        from minigrpo.show.explorer import explorer_page
        from minigrpo.system.files import write_output

        several = (
            [group for group in groups if len(group.sequences) > 1] if len(groups) > 1 else groups
        )
        write_output(Path(a.html), explorer_page(*several[: max(a.show, 1)]).encode())
        print(f"explorer, for a browser: {visible(a.html)}")


def run_equivalence(a: argparse.Namespace) -> int:
    """Theorem 1 on real rollouts.   -> exit code"""
    from minigrpo.rewards import check_rewards
    from minigrpo.runs.policy import load_run, make_policy
    from minigrpo.sampler import sample
    from minigrpo.tasks import draw_prompts, sampling_limits
    from minigrpo.verify.equivalence import check_equivalence

    if a.group_size < 2:
        raise ValueError(
            "a group of one has nothing to be compared with: take a group size of at least 2"
        )
    rng = np.random.default_rng(a.seed)
    if a.path:
        refuse(a, "task", "goes without RUN, which has its own task")
        model, task, _ = load_run(a.path, dtype="float64")
    else:
        model, task = make_policy(
            TrainSettings(task=a.task or "treewalk", seed=a.seed, dtype="float64")
        )
    prompts = draw_prompts(task, rng, a.prompts)
    rollouts = sample(model, prompts, a.group_size, rng, **sampling_limits(task))
    rewards = check_rewards(task.score(rollouts), rollouts.tree)
    found = check_equivalence(model, rollouts, rewards, rng, beta=a.beta)
    if not found.informative and not a.beta:
        raise ValueError(
            "all rewards are equal in every group, so both gradients are 0: take a trained RUN, another seed, or beta"
        )
    print(found.text())
    if not found.informative:
        print(
            "all rewards are equal in every group, so only the KL term was compared: take a trained RUN or another seed"
        )
    holds = found.worst <= a.tolerance
    print(f"Theorem 1 {'holds' if holds else 'FAILS'} (tolerance {a.tolerance:g})")
    return 0 if holds else 1


def run_check(a: argparse.Namespace) -> int:
    """A student's answers to exercises.   -> exit code"""
    from minigrpo.course.runner import CHAPTERS, RIGHT, chapter_name, check, find, summary

    if a.chapter == "all" and (a.task is not None or (a.path and not Path(a.path).is_dir())):
        raise ValueError(
            "all chapters have a file each: give a folder that holds them, and no --task"
        )
    everything = []
    for chapter in CHAPTERS if a.chapter == "all" else [a.chapter]:
        verdicts = check(chapter, a.path, a.task)
        everything += verdicts
        if a.chapter == "all":
            print(f"{chapter} {CHAPTERS[chapter]:28} {summary(verdicts)}")
        else:
            print("\n".join(verdict.text() for verdict in verdicts))
    print(
        summary(everything)
        + ("" if a.chapter == "all" else f" ({find(chapter_name(a.chapter), a.path)})")
    )
    return 0 if all(verdict.state == RIGHT for verdict in everything) else 1


def run_exercises(a: argparse.Namespace) -> None:
    """The exercises as files."""
    from minigrpo.course.runner import write_exercises

    written, left = write_exercises(a.out)
    kept = f"; {left} that were there already are as they were" if left else ""
    then = f"fill them in, then minigrpo check ch01 {quoted(a.out)}"
    print(f"{written} files with exercises are written to {visible(a.out)}{kept}: {then}")


def run_plot(a: argparse.Namespace) -> None:
    """Metrics of runs as a figure."""
    from minigrpo.runs.folder import METRICS, check_records, read_metrics
    from minigrpo.show.plots import compare_runs, metrics_figure, run_settings, save, task_name

    folders = [
        Path(path).resolve().parent if Path(path).is_file() else Path(path) for path in a.path
    ]
    if len(folders) > 1 or a.key is not None:
        figure = compare_runs(folders, "reward" if a.key is None else a.key)
    else:
        s = run_settings(folders[0])
        title = f"{s['objective']} on {task_name(s)}, one run (seed {s['seed']})"
        figure = metrics_figure(read_metrics(folders[0], before=True), title=title)
    for folder in folders:
        if n := check_records(folder, METRICS):
            print(
                f"note: no checkpoint vouches yet for the last {n} records in {visible(str(folder / METRICS))}",
                file=sys.stderr,
            )
    print(f"figure: {visible(str(save(figure, a.out or folders[0] / 'metrics.png')))}")


def run_bench(a: argparse.Namespace) -> None:
    """Time full steps."""
    from minigrpo.runs.bench import measure

    _say_where(a.backend)
    for name in a.workload:
        print(measure(name, a.steps, a.backend, a.dtype), flush=True)


def run_reproduce(a: argparse.Namespace) -> None:
    """An experiment by name."""
    from minigrpo.experiments.reproduce import reproduce

    if a.seeds is not None and a.seeds < 2:
        raise ValueError(f"{a.seeds} seeds give no interval: take at least 2")
    out = Path(a.out)
    out.mkdir(parents=True, exist_ok=True)
    print(reproduce(a.name, out, quick=a.quick, seeds=a.seeds, processes=a.processes))
    written = [path for path in sorted(out.glob(f"{a.name}*.*")) if path.suffix != ".jsonl"]
    print(f"data and figures: {', '.join(visible(str(path)) for path in written)}")
