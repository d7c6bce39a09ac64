"""The commands that show something: the demo, trees, Theorem 1, exercises, figures, measurements.

`policies.py` has those that make, measure, fetch and export a policy.  Modules are imported inside
the commands that need them, so that `minigrpo --help` and `minigrpo tree` start quickly.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from minigrpo.command.flags import refuse
from minigrpo.command.policies import policy, say_where
from minigrpo.runs.settings import TrainSettings
from minigrpo.system.terminal import clean, quoted
from minigrpo.system.text import plain, visible


def run_demo(a: argparse.Namespace) -> None:
    """The demonstration."""
    from minigrpo.command.demo import demo

    report = demo(a.out, seeds=a.seeds, processes=a.processes)
    print(f"\nThe report, with all figures in it: {visible(str(report))}")


def run_sample(a: argparse.Namespace) -> None:
    """Draw a group from a trained policy; without a task, a pretrained model continues a text."""
    from minigrpo.logs.groups import read_groups
    from minigrpo.runs.train import sample_records
    from minigrpo.sampler import sample
    from minigrpo.tasks import Tokenised, draw_prompts, sampling_limits, score

    if a.model is not None:
        if a.path is not None:
            refuse(a, "prompt", "and a text beside it are two prompts: leave one out")
            a.prompt, a.path = a.path, None
        if a.task is None:
            return _sample_text(a)
    refuse(a, "max_new_tokens", "goes with --model alone: a task has its own limit")
    refuse(a, "chat", "goes with --model alone: a task of messages needs no flag")
    model, task = policy(a)
    rng, limits = np.random.default_rng(a.seed), sampling_limits(task)
    given = a.prompt is not None
    encode = task.encode if isinstance(task, Tokenised) else task.tokenizer.encode
    prompts = [encode(a.prompt)] if given else draw_prompts(task, rng, 1, "test")
    rollouts = sample(model, prompts, a.group_size, rng, temperature=a.temperature, **limits)
    rewards, parts = score(task, rollouts)
    records = sample_records(rollouts, rewards, task, 0, parts)
    groups = read_groups("\n".join(map(json.dumps, records)), unit="characters")
    _print_trees(groups, 1)
    _write_figure(groups, a.out)


def _sample_text(a: argparse.Namespace) -> None:
    from minigrpo.models import load_model
    from minigrpo.sampler import sample

    refuse(a, "task_options", "is of a task: give --task too")
    refuse(a, "out", "draws rewards, which are of a task: give --task too")
    if not a.prompt:
        example = 'minigrpo sample --model smollm2 "Once upon a time"'
        raise ValueError(f"give the text to go on from: {example}")
    model, tokenizer = load_model(a.model)
    limits = {"max_new_tokens": a.max_new_tokens or 64, "temperature": a.temperature}
    limits["eos"] = (tokenizer.eos, tokenizer.stops_at())
    encode = tokenizer.encode_chat if a.chat else tokenizer.encode
    prompts, rng = [encode(a.prompt)], np.random.default_rng(a.seed)
    if a.chat:
        print(f"prompt         {prompts[0].text!r}")
    rollouts = sample(model, prompts, a.group_size, rng, **limits)
    tree = rollouts.tree
    logp = np.where(tree.paths >= 0, tree.on_tokens(rollouts.logp), 0).sum(1)
    for completion, value in zip(rollouts.completions[0], logp, strict=True):
        print(f"log p {value:7.1f}  {tokenizer.decode(completion)!r}")
    print(f"{int(tree.scored.sum())} distinct prefixes among {int(tree.lengths.sum())} tokens")


def run_tree(a: argparse.Namespace) -> None:
    """Draw groups that somebody typed or logged."""
    from minigrpo.logs.grouping import check_not_alone, choose_steps, read_completions
    from minigrpo.logs.groups import group_statistics, make_groups, statistics_text
    from minigrpo.logs.rows import NAMES, read_log
    from minigrpo.runs.folder import SAMPLES, check_records

    given = Path(a.file).resolve()
    for file in given.rglob(SAMPLES) if given.is_dir() else [given]:
        if file.name == SAMPLES:
            check_records(file.parent, SAMPLES)  # samples of a run are refused if damaged
    fields_given = {kind: getattr(a, f"{kind}_name", None) for kind in NAMES}
    names = NAMES | {kind: (name,) for kind, name in fields_given.items() if name}
    items, notes = read_log(a.file, names)
    found, more_notes = read_completions(items, names, a.group_size)
    is_text = any(isinstance(one.content, str) for group in found for one in group)
    if a.unit != "auto" and not is_text:
        raise ValueError("--unit is of texts: these completions are token ids")
    check_not_alone(found)
    tokenizer = None
    if a.tokenizer:
        from minigrpo.models import load_tokenizer

        if a.unit != "auto":
            raise ValueError("--unit and --tokenizer both split texts: leave one out")
        tokenizer = load_tokenizer(a.tokenizer)
    found = choose_steps(found, a.step or [], last=a.last)
    groups = make_groups(found, unit=a.unit, tokenizer=tokenizer)
    if len(groups) == 1:
        refuse(a, "show", "is of several groups, and there is one: leave it out")
    shown = 3 if a.show is None else a.show
    _print_trees(groups, shown if len(groups) > 1 else 1, ascii_only=a.ascii, end="\n\n")
    if len(groups) > 1:
        print(statistics_text(group_statistics(groups), ascii_only=a.ascii))
    if len(groups) > 1 or a.json or a.numbers:
        _tell_numbers(groups, a)
    for note in notes + more_notes:
        told = f"note: {visible(note)}"
        print(plain(told) if a.ascii else told)
    _write_figure(groups, a.out)
    if a.html:
        from minigrpo.show.explorer import explorer_page
        from minigrpo.system.files import write_output

        several = [one for one in groups if len(one.sequences) > 1] if len(groups) > 1 else groups
        write_output(Path(a.html), explorer_page(*several[: max(shown, 1)]).encode())
        print(f"explorer, for a browser: {visible(a.html)}")


def _print_trees(groups: list, n: int, *, ascii_only: bool = False, end: str = "\n") -> None:
    from minigrpo.show.drawing import tree_text

    for one in groups[:n]:
        options = {"prompt": one.prompt, "ascii_only": ascii_only}
        print(tree_text(one.tree, one.rewards, one.labels, **options), end=end)


def _write_figure(groups: list, out: str | None) -> None:
    """The tree of one group, or a page of trees, if a figure was asked for."""
    if not out:
        return
    from minigrpo.show.plots import save
    from minigrpo.show.tree_plots import draw_tree, draw_trees_page

    one = groups[0]
    if len(groups) == 1:
        figure = draw_tree(one.tree, one.rewards, one.labels, title=one.prompt)
    else:
        figure = draw_trees_page(groups)
    print(f"figure: {visible(str(save(figure, out)))}")


def _tell_numbers(groups: list, a: argparse.Namespace) -> None:
    """The five numbers in words, and as JSON or along the steps as a figure, if asked for."""
    from minigrpo.logs.five_numbers import five_numbers, five_numbers_text
    from minigrpo.system.files import write_output

    numbers = five_numbers(groups)
    text, steps = five_numbers_text(numbers), numbers["steps"]
    print(f"\n{plain(text) if a.ascii else text}\n")
    if a.json:
        write_output(Path(a.json), (json.dumps(numbers, indent=1) + "\n").encode())
        print(f"the five numbers: {visible(a.json)}")
    if a.numbers:
        from minigrpo.show.plots import NUMBERS, metrics_figure, save

        if len(steps) < 2 or any(isinstance(row["step"], str) for row in steps):
            told = "--numbers draws along two or more steps that are numbers"
            raise ValueError(f"{told}: this log has {len(steps)} steps")
        keys = [key for key in NUMBERS if any(row[key] is not None for row in steps)]
        print(f"figure: {visible(str(save(metrics_figure(steps, keys), a.numbers)))}")


def run_equivalence(a: argparse.Namespace) -> int:
    """Theorem 1 on real rollouts.   -> exit code"""
    from minigrpo.runs.policy import load_run, make_policy
    from minigrpo.sampler import sample
    from minigrpo.tasks import draw_prompts, sampling_limits, score
    from minigrpo.verify.equivalence import check_equivalence

    if a.group_size < 2:
        raise ValueError(
            "one completion has none to be compared with: take a group size of at least 2"
        )
    rng = np.random.default_rng(a.seed)
    if a.path:
        refuse(a, "task", "goes without RUN, which has its own task")
        model, task, _ = load_run(a.path, dtype="float64")
    else:
        settings = TrainSettings(task=a.task or "treewalk", seed=a.seed, dtype="float64")
        model, task = make_policy(settings)
    prompts = draw_prompts(task, rng, a.prompts)
    rollouts = sample(model, prompts, a.group_size, rng, **sampling_limits(task))
    rewards, _ = score(task, rollouts)
    found = check_equivalence(model, rollouts, rewards, rng, beta=a.beta)
    equal = "" if found.informative else "all rewards are equal in every group, so "
    if equal and not a.beta:
        raise ValueError(f"{equal}both gradients are 0: take a trained RUN, another seed, or beta")
    print(found.text())
    if equal:
        print(f"{equal}only the KL term was compared: take a trained RUN or another seed")
    holds = found.worst <= a.tolerance
    print(f"Theorem 1 {'holds' if holds else 'FAILS'} (tolerance {a.tolerance:g})")
    return 0 if holds else 1


def run_check(a: argparse.Namespace) -> int:
    """A student's answers to exercises.   -> exit code"""
    from minigrpo.course import runner

    limits = runner.Limits(a.seconds, int(a.memory * 2**30), tuple(a.closed or ()))
    text, troubles = [], []
    if a.chapter != "all":
        verdicts = runner.check(a.chapter, a.path, a.task, limits, a.strict)
        for verdict in verdicts:
            text += [clean(verdict.printed).rstrip("\n")] * bool(verdict.printed) + [verdict.text()]
        file = runner.find(*runner.chosen(a.chapter, a.path))
        text.append(f"{runner.summary(verdicts)} ({file})")
    else:
        if a.task is not None or (a.path and not Path(a.path).is_dir()):
            wanted = "give a folder that holds them, and no --task"
            raise ValueError(f"all chapters have a file each: {wanted}")
        verdicts = []
        for chapter, own, trouble in runner.check_all(runner.find_all(a.path), limits, a.strict):
            title = f"{chapter} {runner.CHAPTERS[chapter]:28}"
            text += [f"{title} {runner.summary(own)}", *[f"    {trouble}"] * bool(trouble)]
            verdicts, troubles = verdicts + own, troubles + [trouble] * bool(trouble)
        text.append(runner.summary(verdicts))
    print(json.dumps(runner.report(verdicts, troubles), indent=1) if a.json else "\n".join(text))
    return 0 if all(verdict.points for verdict in verdicts) else 1


def run_walk(a: argparse.Namespace) -> None:
    """The live walk as a page."""
    from minigrpo.show.explorer import walk_page
    from minigrpo.system.files import write_output

    if Path(a.out).suffix != ".html":
        raise ValueError(f"--out {visible(a.out)}: it is a page, so end its name in .html")
    write_output(Path(a.out), walk_page().encode())
    print(f"the live walk, for a browser: {visible(a.out)}")


def run_exercises(a: argparse.Namespace) -> None:
    """The exercises as files."""
    from minigrpo.course.runner import write_exercises

    written, left = write_exercises(a.out)
    kept = f"; {left} that were there already are as they were" if left else ""
    then = f"fill them in, then minigrpo check ch01 {quoted(a.out)}"
    print(f"{written} files with exercises are written to {visible(a.out)}{kept}: {then}")


def run_plot(a: argparse.Namespace) -> None:
    """Metrics of runs as a figure."""
    from minigrpo.runs.folder import METRICS, check_records
    from minigrpo.show.comparison import plot_runs
    from minigrpo.show.plots import save

    paths = map(Path, a.path)
    folders = [path.resolve().parent if path.is_file() else path for path in paths]
    if a.watch:
        return _watch(a, folders)
    if len(folders) == 1 and a.key is None:
        refuse(a, "label", "names lines, of one --key or several runs: this figure has none")
    figure = plot_runs(*folders, key=a.key, smooth=a.smooth, labels=a.label)
    for folder in folders:
        if n := check_records(folder, METRICS):
            where = visible(str(folder / METRICS))
            note = f"note: no checkpoint vouches yet for the last {n} records in {where}"
            print(note, file=sys.stderr)
    print(f"figure: {visible(str(save(figure, a.out or folders[0] / 'metrics.png')))}")


def _watch(a: argparse.Namespace, folders: list[Path]) -> None:
    from minigrpo.show.watch import watch

    refuse(a, "key smooth label", "is of a figure: the page of --watch has its own")
    file = Path(a.out or folders[0] / "watch.html")
    if file.suffix != ".html" or len(folders) > 1:
        raise ValueError("--watch shows one run in one page: give one RUN, and an --out FILE.html")
    states = watch(folders[0], file)
    first = next(states)
    print(f"page, for a browser: {visible(str(file))} (Ctrl-C ends this)", flush=True)
    print([first, *states][-1])


def run_bench(a: argparse.Namespace) -> None:
    """Time full steps."""
    from minigrpo.runs.bench import WORKLOADS, measure

    say_where(a.backend)
    for name in a.workload or WORKLOADS:
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
