"""How much tree is there in real training?   (results/README.md, "How much tree there is")

The paper (section 3.2) counts flat groups, in which no two completions begin alike, path depth and
intermediate proportion for a model of 1.5 billion parameters at temperature 0.75, k = 6 and 36.
Here small policies learn `arithmetic` and `countdown` by GRPO from a warm start, with as many
completions per step for k = 6 as for k = 36.  The tree is measured along training, next to the
reward, and on held-out problems at several temperatures, for the policy before and after.

With few tokens to begin with, six completions can hardly all begin differently, so that few groups
are flat says little here; the other numbers tell more.
"""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minigrpo.experiments import tables as t
from minigrpo.experiments.figures import band, look, panels, percent, styled
from minigrpo.experiments.reproduce import Request
from minigrpo.experiments.warm_start import warm_policies
from minigrpo.logs.groups import tree_statistics
from minigrpo.runs.policy import load_weights, make_model
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train
from minigrpo.sampler import sample
from minigrpo.show.drawing import INK
from minigrpo.tasks import Task, load_task, sampling_limits
from minigrpo.transformer import Transformer

SIZES = (6, 36)
COMPLETIONS = 288  # per step, whatever k
TEMPERATURES = (0.6, 0.75, 1.0, 1.3)
GROUPS = 200  # held-out problems for each temperature
BLOCKS = 10  # rows of the table along a run
SETTINGS: dict[str, dict[str, Any]] = {
    "arithmetic": {"task_options": {"digits": 2}, "warm_start_steps": 500, "steps": 120},
    "countdown": {"warm_start_steps": 400, "steps": 200},
}
SHAPE = {"dim": 64, "n_layers": 2, "n_heads": 4, "objective": "grpo"}
SHAPE |= {"warmup_steps": 10, "learning_rate": 3e-4}
MEASURES = {  # name in the table: name in the metrics
    "reward": "reward",
    "path_depth": "tree/path_depth",
    "intermediate_proportion": "tree/intermediate_proportion",
    "flat_share": "tree/flat_fraction",
}


def settings_of(task: str, **changes: Any) -> TrainSettings:
    """GRPO on a small transformer, as this experiment trains it."""
    return TrainSettings(task=task, **(SHAPE | SETTINGS[task] | changes))


def train_and_measure(settings: dict[str, Any], n_groups: int, seed: int) -> dict[str, Any]:
    """One run; settings as `settings_of` takes them.

    -> {"training": {measure: a number per step}, "temperature": rows of `tree_at`}
    """
    s = settings_of(**settings, seed=seed)
    task = load_task(s.task, **s.task_options)
    start = make_model(s, task)
    load_weights(start, s.init)
    end, history = train(s, progress=False)
    series = {name: [round(m[key], 6) for m in history] for name, key in MEASURES.items()}
    unique, flat = ([m[f"tree/{which}_tokens"] for m in history] for which in ("unique", "flat"))
    series["distinct_share"] = [round(a / b, 6) for a, b in zip(unique, flat, strict=True)]
    rows = []
    for policy, model in (("start", start), ("end", end)):
        for temperature in TEMPERATURES:
            rng = np.random.default_rng([seed, 4])
            measured = tree_at(model, task, s.group_size, temperature, n_groups, rng)
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
    """Section 3.2 for held-out problems.

    counts: share of tokens with |λ| = 1 … k; one_text: of groups that are one text.
    """
    prompts = task.prompts(rng, n_groups, "test")
    rollouts = sample(model, prompts, k, rng, temperature=temperature, **sampling_limits(task))
    stats = tree_statistics([rollouts.tree])
    tokens = np.array([stats["count_histogram"].get(n, 0) for n in range(1, k + 1)])
    texts = [len({c.tobytes() for c in group}) for group in rollouts.completions]
    return {
        "reward": float(task.score(rollouts).mean()),
        "path_depth": stats["path_depth_mean"],
        "intermediate_proportion": stats["intermediate_proportion_mean"],
        "flat_share": stats["flat_share"],
        "distinct_share": stats["unique_tokens"] / stats["flat_tokens"],
        "one_text": float(np.mean([n == 1 for n in texts])),
        "counts": (tokens / tokens.sum()).round(6).tolist(),
    }


def tables(found: dict[tuple[str, int], list[dict[str, Any]]]) -> t.Tables:
    """Means over seeds with intervals: along training in BLOCKS blocks of steps, by temperature."""
    training, by_temperature = [], []
    for (task, k), runs in found.items():
        about = {"task": task, "k": k, "seeds": len(runs)}
        steps = len(runs[0]["training"]["reward"])
        for block in np.array_split(np.arange(steps), min(BLOCKS, steps)):
            row = about | {"from_step": int(block[0]) + 1, "to_step": int(block[-1]) + 1}
            for name in runs[0]["training"]:
                series = np.array([run["training"][name] for run in runs])  # (seeds,steps)
                row |= t.interval(name, [np.mean(own[block]) for own in series])
            training.append(row)
        for rows in zip(*(run["temperature"] for run in runs), strict=True):
            row = about | {name: rows[0][name] for name in ("policy", "temperature")}
            for name in (*MEASURES, "distinct_share", "one_text"):
                row |= t.interval(name, [r[name] for r in rows])
            counts = np.mean([r["counts"] for r in rows], axis=0).tolist()
            by_temperature.append(row | {"counts": [round(x, 5) for x in counts]})
    return {"training": training, "temperature": by_temperature}


def text(table: t.Tables) -> str:
    """The tables for a terminal."""
    numbers = "reward path_depth intermediate_proportion distinct_share flat_share"
    columns = {"training": "task k from_step to_step", "temperature": "task k policy temperature"}
    return t.show(table, {name: f"{those} {numbers}" for name, those in columns.items()})


PANELS = {
    "reward": "mean reward",
    "path_depth": "path depth",
    "intermediate_proportion": "intermediate proportion",
    "distinct_share": "distinct / all tokens",
}


@styled
def figures(table: t.Tables) -> dict[str, Figure]:
    """Reward and tree along training, with bands over seeds; the tree by temperature."""
    tasks = t.distinct(table["training"], "task")
    training, grid = panels(len(tasks), 4, 11, 2.6 * len(tasks) + 0.5)
    wide = {"gridspec_kw": {"width_ratios": [1, 1, 1, 1.25]}}
    temperature, below = panels(len(tasks), 4, 11.5, 2.8 * len(tasks) + 0.5, **wide)
    for task, line, other in zip(tasks, grid, below, strict=True):
        for ax, name in zip((*line, *other[:3]), (*PANELS, *list(PANELS)[1:]), strict=True):
            for number, k in enumerate(SIZES):
                if ax in line:
                    own = t.select(table["training"], task=task, k=k)
                    middle = [(row["from_step"] + row["to_step"]) / 2 for row in own]
                    band(ax, middle, own, name, label=f"k = {k}", **look(number))
                    continue
                for policy in ("start", "end"):
                    own = t.select(table["temperature"], task=task, k=k, policy=policy)
                    style = look(number) | ({"mfc": "white"} if policy == "start" else {})
                    style["label"] = f"k = {k}, {policy}"
                    ax.plot(TEMPERATURES, [row[name] for row in own], **style)
            ax.set(title=PANELS[name], ylim=(0, None))
            if ax not in line:
                ax.set_xticks(TEMPERATURES)
            if task == tasks[-1]:
                ax.set_xlabel("training step" if ax in line else "temperature")
            if name in ("intermediate_proportion", "distinct_share"):
                percent(ax)
        for first in (line[0], other[0]):
            first.set_ylabel(task, weight="bold", fontsize=11)
        _shares(other[-1], t.select(table["temperature"], task=task, temperature=1.0))
    grid[0, 0].legend(fontsize=9, loc="lower right")
    below[0, 0].legend(fontsize=8)
    return {"trees": training, "trees-temperature": temperature}


def _shares(ax: Axes, rows: t.Rows) -> None:
    """Bars: what share of the tokens is written by one member, by a few, by many, by all."""
    names = [f"k = {row['k']}, {row['policy']}" for row in rows[::-1]]
    parts = []
    for row in rows[::-1]:
        counts, k = np.array(row["counts"]), row["k"]
        bounds = (0, 1, min(5, k - 1), k - 1, k)
        parts.append([counts[a:b].sum() for a, b in pairwise(bounds)])
    shades = {"|λ| = 1": ("white", ""), "2 to 5": ("#bcd6e8", "///")}
    shades |= {"6 to k - 1": ("#5b9bc4", ""), "all k": (INK, "")}
    left = np.zeros(len(rows))
    for share, (label, (colour, hatch)) in zip(np.transpose(parts), shades.items(), strict=True):
        style = {"color": colour, "edgecolor": "#555555", "lw": 0.6, "hatch": hatch}
        ax.barh(names, share, left=left, label=label, **style)
        left += share
    ax.set(title="tokens by |λ|, temperature 1", xlim=(0, 1))
    percent(ax, "x")
    ax.grid(visible=False)
    below = {"loc": "upper center", "bbox_to_anchor": (0.4, -0.12), "frameon": False}
    ax.legend(fontsize=7.5, ncol=4, handlelength=1.2, columnspacing=0.8, **below)


def run(request: Request) -> t.Tables:
    """Train and measure on both tasks, 5 seeds (quick: 2 seeds, a third of the steps)."""
    seeds = request.seeds or (2 if request.quick else 5)
    warm = warm_policies(request, {f"trees-{task}": settings_of(task) for task in SETTINGS})
    jobs = {}
    for task, k in product(SETTINGS, SIZES):
        settings = SETTINGS[task] | {"task": task, "init": warm[f"trees-{task}"]}
        settings |= {"group_size": k, "prompts_per_step": COMPLETIONS // k}
        settings["steps"] //= 3 if request.quick else 1
        jobs[task, k] = {"settings": settings, "n_groups": 50 if request.quick else GROUPS}
    return tables(request.seeded(train_and_measure, jobs, seeds))
