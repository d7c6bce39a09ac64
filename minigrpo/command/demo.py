"""`minigrpo demo`: the main result in a minute, from real rollouts to a report that one can pass around.

1. A policy learns to add from imperfect demonstrations (warm start) and samples groups: they are trees.
2. Theorem 1 on these very rollouts, in float64.
3. GRPO and λ-GRPO train on the paper's tree walk, each path the target equally often, at two learning rates.
Nothing in the report is written beforehand: numbers, figures and verdicts come from what was just measured.
"""

from __future__ import annotations

import base64
import functools
import html
import json
import tempfile
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from minigrpo.experiments.many_walks import BLOCK, GROUP_SIZE, LAST, STEPS, run_walks
from minigrpo.experiments.parallel import run_jobs
from minigrpo.experiments.table1 import summary
from minigrpo.logs.groups import Group, read_groups, statistics_text, tree_statistics, tree_text
from minigrpo.rewards import check_rewards
from minigrpo.runs.evaluation import evaluate
from minigrpo.runs.policy import make_model, warm_start
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import sample_records, train
from minigrpo.sampler import Rollouts, sample
from minigrpo.show.explorer import explorer_page
from minigrpo.show.plots import (
    draw_tree,
    draw_trees_page,
    learning_curves,
    metrics_figure,
    save,
    statistics_figure,
)
from minigrpo.system.files import replace
from minigrpo.tasks import Task, load_task, sampling_limits
from minigrpo.transformer import Transformer
from minigrpo.verify.equivalence import Equivalence, check_equivalence

ARITHMETIC = TrainSettings(
    task="arithmetic",
    task_options={"digits": 2},
    dim=64,
    n_layers=2,
    n_heads=4,
    warm_start_steps=300,
    dtype="float64",
    seed=0,
)
GROUPS, COMPLETIONS = 12, 8
RATES = (
    3e-4,
    6e-4,
)  # of the tree walk: a small one, and about the best for both; the sweep is in results/README.md
CHUNK = 16  # runs side by side: one to each target
NAMES = {"grpo": "GRPO", "lambda_grpo": "λ-GRPO"}


def demo(
    out: str | Path,
    *,
    seeds: int = 64,
    steps: int = STEPS,
    processes: int | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Run the demonstration and write figures, data, report.html and explorer.html into a folder.   -> the report

    seeds: runs of the tree walk for each objective, n and learning rate; of 16, each has another one of the 16 targets.
    steps: of the tree walks, a multiple of ten; the paper's are 250.
    Raises ValueError if fewer than 2 seeds are asked for or the folder cannot be written.
    """
    if seeds < 2:
        raise ValueError(f"{seeds} seeds give no confidence band: take at least 2")
    out, say = Path(out), say or functools.partial(print, flush=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=out, prefix=".new-")
    except OSError as error:
        raise ValueError(
            f"cannot write to {out} ({error.strerror}): give a folder that can be written"
        ) from error
    with folder as new:  # so that a demo that fails leaves the last one as it was
        _demo(Path(new), seeds, steps, processes, say)
        for file in sorted(Path(new).iterdir(), key=lambda file: file.name == "report.html"):
            replace(file, out / file.name)
    return out / "report.html"


def _demo(
    out: Path, seeds: int, steps: int, processes: int | None, say: Callable[[str], None]
) -> None:
    started = time.perf_counter()
    say(
        "1/3  A policy that learned to add from imperfect demonstrations samples groups of completions"
    )
    model, task = _warm_started()
    accuracy = evaluate(model, task, n_prompts=100, progress=False)["eval/pass@1_greedy"]
    rng = np.random.default_rng(1)
    limits = sampling_limits(task)
    rollouts = sample(model, task.prompts(rng, GROUPS, "test"), COMPLETIONS, rng, **limits)
    rewards = check_rewards(task.score(rollouts), rollouts.tree)
    groups = _as_groups(rollouts, rewards, task, out)
    shown = max(groups, key=_interest)
    stats = tree_statistics([rollouts.tree])  # with EOS, which the groups as texts have not
    say("\n" + tree_text(shown.tree, shown.rewards, shown.labels, prompt=shown.prompt) + "\n")
    save(
        draw_tree(shown.tree, shown.rewards, shown.labels, title=f"A real group: {shown.prompt}"),
        out / "tree.png",
    )
    save(draw_trees_page(groups), out / "trees.png")
    (out / "explorer.html").write_text(explorer_page(shown), encoding="utf-8")
    save(statistics_figure(stats), out / "statistics.png")

    say("2/3  Theorem 1 on these rollouts, in float64")
    theorem = check_equivalence(model, rollouts, rewards, rng)
    (out / "equivalence.json").write_text(json.dumps(vars(theorem), indent=2, allow_nan=False))
    say(theorem.text() + "\n")

    say(
        f"3/3  GRPO and λ-GRPO on the paper's tree walk, {seeds} runs each, the target another path in each of 16"
    )
    results = _walks(seeds, steps, processes)
    rows = [_row(*key, values) for key, values in results.items()]
    _write_results(results, rows, steps, out)
    for row in rows:
        say(_row_text(row))
    took = time.perf_counter() - started
    sections = [
        *_tree_sections(groups, shown, stats, accuracy),
        _theorem_section(theorem),
        *_learning_sections(rows, seeds, steps),
    ]
    (out / "report.html").write_text(_page(sections, out, took), encoding="utf-8")


def _warm_started() -> tuple[Transformer, Task]:
    task = load_task(ARITHMETIC.task, **ARITHMETIC.task_options)
    model = make_model(ARITHMETIC, task)
    warm_start(model, task, np.random.default_rng(ARITHMETIC.seed), ARITHMETIC, progress=True)
    return model, task


def _as_groups(rollouts: Rollouts, rewards: np.ndarray, task: Task, out: Path) -> list[Group]:
    records = sample_records(rollouts, rewards, task, 0)
    text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
    (out / "groups.jsonl").write_text(text)
    return read_groups(text, unit="characters")


def _interest(group: Group) -> tuple:
    """Rewards differ, then as many forks as possible: a group worth looking at."""
    return group.rewards.std() > 0, len(group.tree.steps()), -group.tree.n_nodes


Walks = dict[
    tuple[int, float, str], np.ndarray
]  # (n, learning rate, objective): share of target paths, (seeds, steps / 10)


def _walks(seeds: int, steps: int, processes: int | None) -> Walks:
    keys = [(n, rate, objective) for n in (1, 2) for rate in RATES for objective in NAMES]
    starts = range(0, seeds, CHUNK)
    jobs = [
        {
            "arm": objective,
            "n": n,
            "r_neg": -1.0,
            "optimizer": "adamw",
            "learning_rate": rate,
            "steps": steps,
        }
        | {"first_seed": first, "runs": min(CHUNK, seeds - first)}
        for n, rate, objective in keys
        for first in starts
    ]
    found = iter(run_jobs(run_walks, jobs, title="tree walk", processes=processes))
    return {
        key: np.concatenate([next(found) for _ in starts]) / (BLOCK * GROUP_SIZE) for key in keys
    }


def _row(n: int, learning_rate: float, objective: str, values: np.ndarray) -> dict[str, Any]:
    about = {"n": n, "learning_rate": learning_rate, "objective": objective, "seeds": len(values)}
    return about | summary(values[:, -LAST // BLOCK :].mean(1))


def _write_results(results: Walks, rows: list[dict[str, Any]], steps: int, out: Path) -> None:
    (out / "table.json").write_text(json.dumps(rows, indent=2, allow_nan=False))
    middles = np.arange(steps // BLOCK) * BLOCK + BLOCK / 2  # each point is the mean of ten steps
    for n in (1, 2):
        curves = {
            f"{NAMES[key[2]]}, {key[1]:g}": values for key, values in results.items() if key[0] == n
        }
        title = f"Tree walk, n = {n}, r_neg = −1, two learning rates"
        figure = learning_curves(
            curves, steps=middles, ylabel="frequency of the target path", title=title
        )
        save(figure, out / f"curves-n{n}.png")
    names = ("n", "learning_rate", "objective")
    data = [
        dict(zip(names, key, strict=True)) | {"target_frequency": values.tolist()}
        for key, values in results.items()
    ]
    (out / "curves.json").write_text(json.dumps(data, allow_nan=False))
    settings = TrainSettings.for_task(
        "treewalk", objective="lambda_grpo", learning_rate=RATES[-1], steps=steps
    )
    metrics = train(settings, progress=False)[1]
    lines = "".join(json.dumps(m, allow_nan=False) + "\n" for m in metrics)
    (out / "metrics.jsonl").write_text(lines)
    save(metrics_figure(metrics), out / "metrics.png")


def _row_text(row: dict[str, Any]) -> str:
    interval = f"{row['target_frequency']:.3f}  [{row['low']:.3f}, {row['high']:.3f}]  found by {row['found']:.0%}"
    return f"     n={row['n']}  rate {row['learning_rate']:g}  {NAMES[row['objective']]:7} target frequency {interval}"


# -- the report ----------------------------------------------------------------------------------------------------------

Section = tuple[str, str, list[str], str]  # title, two sentences, figures, preformatted text


def _tree_sections(
    groups: list[Group], shown: Group, stats: dict[str, Any], accuracy: float
) -> list[Section]:
    unique, flat = stats["unique_tokens"], stats["flat_tokens"]
    return [
        (
            "A group of completions is a tree",
            f"A small transformer learned two-digit sums from demonstrations that often forget the carry; greedily it is right "
            f"on {accuracy:.0%} of 100 held-out problems. It wrote the {len(shown.texts)} completions below, and only the outcome "
            "of each is rewarded, yet every shared step has a value R̂ (the mean outcome of the completions that pass through it) "
            "and an advantage Â: a process reward.",
            ["tree.png"],
            tree_text(shown.tree, shown.rewards, shown.labels, prompt=shown.prompt),
        ),
        (
            "Trees are the rule",
            f"Of {stats['groups']} groups, {stats['flat_groups']} have no shared prefix at all. Their completions have {flat} "
            f"tokens, of which {unique} are distinct (prefix, token) pairs: the model computes only those.",
            ["trees.png", "statistics.png"],
            statistics_text(stats),
        ),
    ]


def _theorem_section(theorem: Equivalence) -> Section:
    verdict = (
        "They agree to rounding"
        if theorem.worst < 1e-12
        else "They DISAGREE: this should be reported as a bug"
    )
    return (
        "Theorem 1: GRPO is this process reward model",
        "The loss and all gradients were computed twice on these rollouts: the usual way, on padded rows with one advantage for "
        f"each completion, and on the tree with one process reward for each step. {verdict}: the largest relative difference is "
        f"{theorem.worst:.1e}.",
        [],
        theorem.text(),
    )


def _learning_sections(rows: list[dict[str, Any]], seeds: int, steps: int) -> list[Section]:
    sections: list[Section] = []
    for n in (1, 2):
        verdicts, shown = [], [row for row in rows if row["n"] == n]
        for rate in RATES:
            grpo, fixed = (
                next(r for r in shown if (r["learning_rate"], r["objective"]) == (rate, o))
                for o in NAMES
            )
            apart = fixed["low"] > grpo["high"] or grpo["low"] > fixed["high"]
            relation = (
                "above" if fixed["target_frequency"] > grpo["target_frequency"] else "not above"
            )
            intervals = "are apart" if apart else "overlap"
            verdicts.append(
                f"at learning rate {rate:g} λ-GRPO's mean is {relation} GRPO's (the 95 % intervals {intervals})"
            )
        sections.append(
            (
                f"The flaw and the fix: tree walk with n = {n}, r_neg = −1",
                f"One path of 16, another one in each of 16 runs, earns 1; paths that share its first "
                f"{'move' if n == 1 else f'{n} moves'} earn −1, all others 0.7: GRPO pushes the shared beginning down once for "
                "each completion that took it, λ-GRPO once. "
                f"Over {seeds} runs each, {'; '.join(verdicts)}. The frequency is that of the last {LAST} of {steps} steps; a run "
                "found the target if it is above one half.",
                [f"curves-n{n}.png"],
                "\n".join(_row_text(row).strip() for row in shown),
            )
        )
    text = "One run of λ-GRPO in numbers: as it learns, its completions agree, and the tree needs fewer tokens. Every run logs these."
    return [*sections, ("What a run logs", text, ["metrics.png"], "")]


def _page(sections: list[Section], out: Path, seconds: float) -> str:
    body = []
    for title, text, figures, pre in sections:
        body.append(f"<section><h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>")
        for name in figures:
            data = base64.b64encode((out / name).read_bytes()).decode()
            body.append(f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">')
        body.append(f"<pre>{html.escape(pre)}</pre></section>" if pre else "</section>")
    template = (files("minigrpo.command") / "demo.html").read_text(encoding="utf-8")
    return template.replace("BODY", "\n".join(body)).replace("SECONDS", f"{seconds:.0f}")
