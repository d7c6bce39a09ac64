"""A real language model: SmolLM2-135M learns sums by GRPO and λ-GRPO.   (On the paper's tree: `smollm2_walk.py`.)

Needs the extra `lm` and `minigrpo pull smollm2`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from minigrpo.experiments.arms import TITLES
from minigrpo.experiments.parallel import run_jobs
from minigrpo.experiments.trees import interval
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train
from minigrpo.show.drawing import LINES, STYLE
from minigrpo.show.plots import save

MODEL, COMPARED = "smollm2", ("grpo", "lambda_grpo")
TASKS: dict[
    str, tuple[str, dict[str, Any], dict[str, Any]]
] = {  # name: task, its options, changed settings
    "two-digit sums": ("sums", {}, {"eval_every": 5}),
    "three-digit sums": ("sums", {"low": 100, "high": 499}, {"steps": 40}),
}


def learn(name: str, objective: str, seed: int) -> list[dict[str, float]]:
    """Train on one of TASKS.   -> one dict an evaluation: step, tokens, unique (share of them), reward, greedy"""
    task, options, changes = TASKS[name]
    history, since = [], []

    def on_step(metrics: dict[str, Any]) -> None:
        if "loss" in metrics:
            since.append(metrics)
        if "eval/pass@1_greedy" in metrics:
            row = {"step": metrics["step"], "greedy": metrics["eval/pass@1_greedy"]}
            if since:
                row |= {
                    "tokens": since[-1]["num_tokens"],
                    "reward": float(np.mean([m["reward"] for m in since])),
                }
                row["unique"] = float(np.mean([1 / m["tree/mean_count"] for m in since]))
            history.append(row)
            since.clear()

    settings = TrainSettings.for_task(
        task, task_options=options, model=MODEL, objective=objective, seed=seed
    )
    train(replace(settings, **changes), progress=False, on_step=on_step)
    return history


# -- what is shown -------------------------------------------------------------------------------------------------------

Curves = dict[
    tuple[str, str], list[list[dict[str, float]]]
]  # (task, objective) -> a history for each seed


def table(curves: Curves) -> dict[str, Any]:
    """Greedy accuracy at each evaluation for every seed, with 95 % intervals."""
    learning = []
    for (name, objective), runs in curves.items():
        greedy = np.array(
            [[point["greedy"] for point in run] for run in runs]
        )  # (seeds, evaluations)
        row = {
            "task": name,
            "objective": objective,
            "seeds": len(runs),
            "steps": [point["step"] for point in runs[0]],
        }
        row |= (
            {"greedy_of_seed": greedy.tolist()}
            | interval("start", greedy[:, 0], 4)
            | interval("end", greedy[:, -1], 4)
        )
        row["unique"] = [
            round(float(np.mean([run[i]["unique"] for run in runs])), 3)
            for i in range(1, len(runs[0]))
        ]
        learning.append(row)
    return {"learning": learning}


def figure(curves: Curves) -> Figure:
    """Greedy accuracy along training, a panel for each task, each seed a thin line."""
    tasks = list(dict.fromkeys(name for name, _ in curves))
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(4.6 * len(tasks), 3.6), layout="constrained")
        for name, ax in zip(tasks, drawn.subplots(1, len(tasks), squeeze=False)[0], strict=True):
            for objective in COMPARED:
                runs = curves[name, objective]
                steps, values = (
                    [p["step"] for p in runs[0]],
                    np.array([[p["greedy"] for p in run] for run in runs]),
                )
                _lines(ax, objective, steps, values)
            ax.set(
                title=name,
                xlabel="training step (64 completions each)",
                ylabel="greedy accuracy, held-out problems",
                ylim=(0, 1),
            )
            ax.legend(fontsize=8)
    return drawn


def _lines(ax: Any, objective: str, steps: list[float], values: np.ndarray) -> None:
    colour, dash, marker = LINES[list(TITLES).index(objective)]
    for run in values:
        ax.plot(steps, run, color=colour, ls=dash, lw=0.7, alpha=0.45)
    ax.plot(
        steps,
        values.mean(0),
        color=colour,
        ls=dash,
        marker=marker,
        ms=4,
        label=f"{TITLES[objective]}, mean of {len(values)}",
    )


def text(found: dict[str, Any]) -> str:
    """The tables for a terminal."""
    lines = ["greedy accuracy on held-out problems, mean over seeds [95 % interval]"]
    for r in found["learning"]:
        ends = f"{r['start']:.2f} -> {r['end']:.3f} [{r['end_low']:.3f}, {r['end_high']:.3f}]"
        lines.append(
            f"  {r['task']:18}{r['objective']:14}{ends}  in {r['steps'][-1]} steps, {r['seeds']} seeds"
        )
    return "\n".join(lines)


def run(
    out: Path, *, quick: bool = False, seeds: int | None = None, processes: int | None = None
) -> str:
    """Two-digit sums with 4 seeds, three-digit sums with half as many (quick: two-digit sums only, 2 seeds)."""
    n = seeds or (2 if quick else 4)
    number = {"two-digit sums": n} if quick else {"two-digit sums": n, "three-digit sums": n // 2}
    keys = [(name, objective) for name in number for objective in COMPARED]
    jobs = [{"name": a, "objective": b, "seed": seed} for a, b in keys for seed in range(number[a])]
    cache = out / "language-model.cache.jsonl"
    found = iter(run_jobs(learn, jobs, title="SmolLM2, sums", processes=processes, cache=cache))
    curves = {key: [next(found) for _ in range(number[key[0]])] for key in keys}
    result = table(curves)
    (out / "language-model.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    save(figure(curves), out / "language-model.png")
    return text(result)
