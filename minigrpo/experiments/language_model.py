"""Does a real language model, SmolLM2-135M, learn sums by GRPO and by λ-GRPO?

(results/README.md, "A real language model".)  Needs the extra `lm` and `minigrpo pull smollm2`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from minigrpo.experiments import tables as t
from minigrpo.experiments.controls import COMPARED, TITLES
from minigrpo.experiments.figures import look, panels, styled
from minigrpo.experiments.reproduce import Request
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train

MODEL = "smollm2"
TASKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # options of `sums`, changed settings
    "two-digit sums": ({}, {"eval_every": 5}),
    "three-digit sums": ({"low": 100, "high": 499}, {"steps": 40}),
}
Run = list[dict[str, float]]  # by evaluation: step, greedy, unique (share of tokens since the last)


def learn(name: str, objective: str, seed: int) -> Run:
    """Train on one of TASKS."""
    options, changes = TASKS[name]
    history: Run = []
    since: list[float] = []

    def on_step(metrics: dict[str, Any]) -> None:
        if "loss" in metrics:
            since.append(1 / metrics["tree/mean_count"])
        if "eval/pass@1_greedy" in metrics:
            row = {"step": metrics["step"], "greedy": metrics["eval/pass@1_greedy"]}
            history.append(row | ({"unique": float(np.mean(since))} if since else {}))
            since.clear()

    about = {"task_options": options, "model": MODEL, "objective": objective, "seed": seed}
    train(TrainSettings.for_task("sums", **about | changes), progress=False, on_step=on_step)
    return history


def table(curves: dict[tuple[str, str], list[Run]]) -> t.Tables:
    """Greedy accuracy at each evaluation for every seed, with 95 % intervals."""
    rows = []
    for (name, objective), runs in curves.items():
        greedy = np.array([[point["greedy"] for point in run] for run in runs])  # (seeds,points)
        row = {"task": name, "objective": objective, "seeds": len(runs)}
        row["steps"] = [point["step"] for point in runs[0]]
        row["greedy_of_seed"] = greedy.tolist()
        row |= t.interval("start", greedy[:, 0], 4) | t.interval("end", greedy[:, -1], 4)
        unique = np.mean([[point["unique"] for point in run[1:]] for run in runs], axis=0)
        rows.append(row | {"unique": [round(float(x), 3) for x in unique]})
    return {"learning": rows}


@styled
def figures(found: t.Tables) -> dict[str, Figure]:
    """Greedy accuracy along training, a panel for each task, each seed a thin line."""
    rows = found["learning"]
    tasks = t.distinct(rows, "task")
    figure, (line,) = panels(1, len(tasks), 4.6 * len(tasks), 3.6)
    for name, ax in zip(tasks, line, strict=True):
        for number, row in enumerate(t.select(rows, task=name)):
            greedy, style = np.array(row["greedy_of_seed"]), look(number)
            ax.plot(row["steps"], greedy.T, **style | {"marker": "", "lw": 0.7, "alpha": 0.45})
            label = f"{TITLES[row['objective']]}, mean of {len(greedy)}"
            ax.plot(row["steps"], greedy.mean(0), label=label, **style)
        ax.set(title=name, xlabel="training step (64 completions each)", ylim=(0, 1))
        ax.set_ylabel("greedy accuracy, held-out problems")
        ax.legend(fontsize=8)
    return {"language-model": figure}


def text(found: t.Tables) -> str:
    """The table for a terminal."""
    return t.show(found, {"learning": "task objective seeds start end±"})


def run(request: Request) -> t.Tables:
    """Two-digit sums, 4 seeds; three-digit sums, half as many (quick: the former, 2 seeds)."""
    n = request.seeds or (2 if request.quick else 4)
    number = dict(zip(TASKS, (n,) if request.quick else (n, n // 2), strict=False))
    curves: dict[tuple[str, str], list[Run]] = {}
    for name, seeds in number.items():
        jobs = {(name, x): {"name": name, "objective": x} for x in COMPARED}
        curves |= request.seeded(learn, jobs, seeds, "SmolLM2, sums")
    return table(curves)
