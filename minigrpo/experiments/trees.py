"""How much tree is there in real training?   The measurements of the paper's section 3.2, on our tasks and along a whole run.

The paper counts flat groups (no two completions begin alike), path depth and intermediate proportion for a model of 1.5 billion
parameters at temperature 0.75, k = 6 and 36.  Here small policies learn `arithmetic` and `countdown` by GRPO from a warm start,
with as many completions a step for k = 6 as for k = 36; the same is measured along training, next to the reward, and once more on
held-out problems at several temperatures, for the policy before and after.

Mind what "flat" can mean here: with few tokens to begin with, six completions can hardly all begin differently.  What the tree
looks like is in the other numbers.  Left out: long completions and large vocabularies.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from minigrpo.experiments import write_tables
from minigrpo.experiments.parallel import code_of, run_jobs
from minigrpo.logs.groups import tree_statistics
from minigrpo.runs.checkpoint import checkpoints
from minigrpo.runs.policy import load_weights, make_model
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.stored_settings import read_settings
from minigrpo.runs.train import train
from minigrpo.sampler import sample
from minigrpo.show.drawing import BLUE, INK, ORANGE, STYLE
from minigrpo.show.plots import bootstrap_interval, save
from minigrpo.system.files import write_atomically
from minigrpo.tasks import Task, load_task, sampling_limits
from minigrpo.transformer import Transformer

SIZES = (6, 36)
COMPLETIONS = 288  # a step, whatever k
TEMPERATURES = (0.6, 0.75, 1.0, 1.3)
GROUPS = 200  # held-out problems for each temperature
BLOCKS = 10  # rows of the table along a run
SETTINGS: dict[str, dict[str, Any]] = {
    "arithmetic": {
        "task_options": {"digits": 2},
        "warm_start_steps": 500,
        "steps": 120,
        "learning_rate": 3e-4,
    },
    "countdown": {"warm_start_steps": 400, "steps": 200, "learning_rate": 3e-4},
}
MEASURES = {  # name in the table: name in the metrics
    "reward": "reward",
    "path_depth": "tree/path_depth",
    "intermediate_proportion": "tree/intermediate_proportion",
    "flat_share": "tree/flat_fraction",
}


def settings_of(task: str, **changes: Any) -> TrainSettings:
    """GRPO on a small transformer, as this experiment trains it."""
    shape = {"dim": 64, "n_layers": 2, "n_heads": 4, "objective": "grpo", "warmup_steps": 10}
    return TrainSettings(task=task, **(shape | SETTINGS[task] | changes))


def warm_policy(settings: TrainSettings, folder: Path, task: Task | None = None) -> str:
    """Warm-start once and keep the weights as a run of no steps.   -> folder, as text

    Raises ValueError if the folder holds a policy of other settings; one of other code is made again.
    """
    settings, noted, code = replace(settings, steps=0), folder / "code.txt", code_of(warm_policy)
    if checkpoints(folder) and read_settings(folder) != json.loads(json.dumps(asdict(settings))):
        raise ValueError(
            f"{folder} holds a policy of other settings: delete it, or give another --out"
        )
    if not noted.exists() or noted.read_text(encoding="utf-8") != code:
        for old in checkpoints(folder):
            old.unlink()
    if not checkpoints(folder):
        train(settings, folder, task=task, progress=False)
        write_atomically(noted, [code.encode()])
    return str(folder)


def prepare(task: str, folder: str) -> str:
    """The warm-started policy of a task, in `folder`."""
    return warm_policy(settings_of(task), Path(folder))


def train_and_measure(settings: dict[str, Any], n_groups: int) -> dict[str, Any]:
    """One run; settings as `settings_of` takes them.   -> {"training": {measure: a number a step}, "temperature": rows}"""
    s = settings_of(**settings)
    task = load_task(s.task, **s.task_options)
    start = make_model(s, task)
    load_weights(start, s.init)
    end, history = train(s, progress=False)
    series = {name: [round(m[key], 6) for m in history] for name, key in MEASURES.items()}
    series["distinct_share"] = [
        round(m["tree/unique_tokens"] / m["tree/flat_tokens"], 6) for m in history
    ]
    rows = []
    for policy, model in (("start", start), ("end", end)):
        for temperature in TEMPERATURES:
            measured = tree_at(
                model, task, s.group_size, temperature, n_groups, np.random.default_rng([s.seed, 4])
            )
            rows.append({"policy": policy, "temperature": temperature} | measured)
    return {"training": series, "temperature": rows}


def tree_at(
    model: Transformer,
    task: Task,
    k: int,
    temperature: float,
    n_groups: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Section 3.2 for held-out problems.   counts: share of tokens with |λ| = 1 … k; one_text: of groups with one text"""
    limits = sampling_limits(task)
    rollouts = sample(
        model, task.prompts(rng, n_groups, "test"), k, rng, temperature=temperature, **limits
    )
    stats = tree_statistics([rollouts.tree])
    tokens = np.array([stats["count_histogram"].get(n, 0) for n in range(1, k + 1)])
    return {
        "reward": float(task.score(rollouts).mean()),
        "path_depth": stats["path_depth_mean"],
        "intermediate_proportion": stats["intermediate_proportion_mean"],
        "flat_share": stats["flat_share"],
        "distinct_share": stats["unique_tokens"] / stats["flat_tokens"],
        "one_text": float(
            np.mean([len({c.tobytes() for c in group}) == 1 for group in rollouts.completions])
        ),
        "counts": (tokens / tokens.sum()).round(6).tolist(),
    }


# -- tables --------------------------------------------------------------------------------------------------------------


def tables(found: dict[tuple[str, int], list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Means over seeds with 95 % bootstrap intervals: along training in BLOCKS blocks of steps, and by temperature."""
    training, by_temperature = [], []
    for (task, k), runs in found.items():
        about = {"task": task, "k": k, "seeds": len(runs)}
        steps = len(runs[0]["training"]["reward"])
        for block in np.array_split(np.arange(steps), min(BLOCKS, steps)):
            row = about | {"from_step": int(block[0]) + 1, "to_step": int(block[-1]) + 1}
            for name in runs[0]["training"]:
                row |= interval(
                    name, [np.mean(np.array(run["training"][name])[block]) for run in runs]
                )
            training.append(row)
        for rows in zip(*(run["temperature"] for run in runs), strict=True):
            row = about | {name: rows[0][name] for name in ("policy", "temperature")}
            for name in (*MEASURES, "distinct_share", "one_text"):
                row |= interval(name, [r[name] for r in rows])
            by_temperature.append(
                row
                | {
                    "counts": [
                        round(x, 5) for x in np.mean([r["counts"] for r in rows], axis=0).tolist()
                    ]
                }
            )
    return {"training": training, "temperature": by_temperature}


def interval(name: str, values: Sequence[float], digits: int = 6) -> dict[str, float]:
    """Mean and bootstrap interval under `name`, `name_low`, `name_high`, to so many digits."""
    low, high = bootstrap_interval(np.array(values, dtype=float), np.random.default_rng(0))
    return {
        key: float(f"{x:.{digits}g}")
        for key, x in ((name, np.mean(values)), (f"{name}_low", low), (f"{name}_high", high))
    }


def text(table: dict[str, list[dict[str, Any]]]) -> str:
    """The table for a terminal: first and last block of training, then temperatures."""
    lines = [f"{'':34}reward  path depth  intermediate  distinct tokens  flat groups"]

    def line(name: str, r: dict[str, Any]) -> str:
        numbers = f"{r['reward']:6.3f}  {r['path_depth']:10.2f}  {r['intermediate_proportion']:12.1%}  {r['distinct_share']:15.1%}"
        return f"{name:34}{numbers}  {r['flat_share']:11.2%}"

    for task, k in dict.fromkeys((r["task"], r["k"]) for r in table["training"]):
        rows = [r for r in table["training"] if (r["task"], r["k"]) == (task, k)]
        lines += [
            line(f"{task} k={k}, steps {r['from_step']}-{r['to_step']}", r)
            for r in (rows[0], rows[-1])
        ]
        for r in table["temperature"]:
            if (r["task"], r["k"]) == (task, k):
                lines.append(line(f"  {r['policy']}, temperature {r['temperature']}", r))
    return "\n".join(lines)


# -- figures -------------------------------------------------------------------------------------------------------------

PANELS = {
    "reward": "mean reward",
    "path_depth": "path depth",
    "intermediate_proportion": "intermediate proportion",
    "distinct_share": "distinct / all tokens",
}
OF_SIZE = {6: (BLUE, "-", "o"), 36: (ORANGE, "--", "s")}


def training_figure(table: dict[str, list[dict[str, Any]]]) -> Figure:
    """Reward and tree along training: a line of panels a task, a curve each k, with 95 % bands over seeds."""
    rows = table["training"]
    tasks = list(dict.fromkeys(r["task"] for r in rows))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 2.6 * len(tasks) + 0.5), layout="constrained")
        grid = figure.subplots(len(tasks), len(PANELS), squeeze=False)
        for line, task in zip(grid, tasks, strict=True):
            for ax, (name, title) in zip(line, PANELS.items(), strict=True):
                for k, (colour, dash, marker) in OF_SIZE.items():
                    of = [r for r in rows if (r["task"], r["k"]) == (task, k)]
                    x = [(r["from_step"] + r["to_step"]) / 2 for r in of]
                    ax.fill_between(
                        x,
                        [r[f"{name}_low"] for r in of],
                        [r[f"{name}_high"] for r in of],
                        color=colour,
                        alpha=0.2,
                        lw=0,
                    )
                    ax.plot(
                        x,
                        [r[name] for r in of],
                        color=colour,
                        ls=dash,
                        marker=marker,
                        ms=4,
                        label=f"k = {k}",
                    )
                ax.set(title=title, ylim=(0, None))
                ax.set_xlabel("training step" if task == tasks[-1] else "")
                if name not in ("path_depth", "reward"):
                    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            line[0].set_ylabel(task, weight="bold", fontsize=11)
        grid[0, 0].legend(fontsize=9, loc="lower right")
    return figure


def temperature_figure(table: dict[str, list[dict[str, Any]]]) -> Figure:
    """The tree by temperature, before and after training, and how the tokens at temperature 1 are shared."""
    rows = table["temperature"]
    tasks = list(dict.fromkeys(r["task"] for r in rows))
    names = list(PANELS)[1:]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.5, 2.8 * len(tasks) + 0.5), layout="constrained")
        grid = figure.subplots(
            len(tasks), 4, squeeze=False, gridspec_kw={"width_ratios": [1, 1, 1, 1.25]}
        )
        for line, task in zip(grid, tasks, strict=True):
            for ax, name in zip(line, names, strict=False):
                for k, (colour, dash, marker) in OF_SIZE.items():
                    for policy, face in (("start", "white"), ("end", colour)):
                        of = [
                            r for r in rows if (r["task"], r["k"], r["policy"]) == (task, k, policy)
                        ]
                        style = {
                            "color": colour,
                            "ls": dash,
                            "marker": marker,
                            "mfc": face,
                            "ms": 5,
                        }
                        ax.plot(
                            [r["temperature"] for r in of],
                            [r[name] for r in of],
                            **style,
                            label=f"k = {k}, {policy}",
                        )
                ax.set(title=PANELS[name], ylim=(0, None), xticks=TEMPERATURES)
                ax.set_xlabel("temperature" if task == tasks[-1] else "")
                if name != "path_depth":
                    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            line[0].set_ylabel(task, weight="bold", fontsize=11)
            _shares(line[-1], [r for r in rows if r["task"] == task and r["temperature"] == 1.0])
        grid[0, 0].legend(fontsize=8)
    return figure


def _shares(ax: Axes, rows: list[dict[str, Any]]) -> None:
    """Stacked bars: what share of the tokens is written by one member, by a few, by many, by all."""
    shades = [
        ("|λ| = 1", "white", ""),
        ("2 to 5", "#bcd6e8", "///"),
        ("6 to k - 1", "#5b9bc4", ""),
        ("all k", INK, ""),
    ]
    for place, r in enumerate(reversed(rows)):
        counts, k, left = np.array(r["counts"]), r["k"], 0.0
        parts = [
            counts[:1].sum(),
            counts[1 : min(5, k - 1)].sum(),
            counts[5 : k - 1].sum(),
            counts[k - 1],
        ]
        for share, (name, colour, hatch) in zip(parts, shades, strict=True):
            label = name if place == 0 else None
            ax.barh(
                place,
                share,
                left=left,
                color=colour,
                edgecolor="#555555",
                lw=0.6,
                hatch=hatch,
                label=label,
            )
            left += share
    ax.set_yticks(range(len(rows)), [f"k = {r['k']}, {r['policy']}" for r in reversed(rows)])
    ax.set(title="tokens by |λ|, temperature 1", xlim=(0, 1))
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.grid(visible=False)
    ax.legend(
        fontsize=7.5,
        ncol=4,
        loc="upper center",
        bbox_to_anchor=(0.4, -0.12),
        handlelength=1.2,
        columnspacing=0.8,
        frameon=False,
    )


# -- all of it -----------------------------------------------------------------------------------------------------------


def run(
    out: Path, *, quick: bool = False, seeds: int | None = None, processes: int | None = None
) -> str:
    """Train and measure on both tasks (quick: 2 seeds, a third of the steps); write trees.json and two figures.   -> text"""
    seeds = seeds or (2 if quick else 5)
    warm = {task: str(out / f"warm-trees-{task}") for task in SETTINGS}
    missing = [
        {"task": task, "folder": folder}
        for task, folder in warm.items()
        if not checkpoints(Path(folder))
    ]
    run_jobs(prepare, missing, title="warm start", processes=processes)
    cells = [(task, k) for task in SETTINGS for k in SIZES]
    jobs = []
    for task, k in cells:
        settings = SETTINGS[task] | {
            "task": task,
            "init": prepare(task, warm[task]),
            "group_size": k,
            "prompts_per_step": COMPLETIONS // k,
        }
        settings["steps"] //= 3 if quick else 1
        jobs += [
            {"settings": settings | {"seed": seed}, "n_groups": 50 if quick else GROUPS}
            for seed in range(seeds)
        ]
    results = run_jobs(
        train_and_measure, jobs, title="trees", processes=processes, cache=out / "trees.cache.jsonl"
    )
    table = tables({cell: results[i * seeds : (i + 1) * seeds] for i, cell in enumerate(cells)})
    write_tables(out / "trees.json", table)
    save(training_figure(table), out / "trees.png")
    save(temperature_figure(table), out / "trees-temperature.png")
    return text(table)
