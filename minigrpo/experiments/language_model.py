"""A real language model: SmolLM2-135M learns sums by GRPO and λ-GRPO, and walks the paper's tree (its Table 1, one setting).

Needs the extra `lm` and `minigrpo pull smollm2`.  For the walk the vocabulary is cut to the two moves: the rows of the embedding
for "L" and "R", which is also the head, over all layers as they were pretrained.  The learning rate there, 1e-5, is the paper's.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from minigrpo.drawing import LINES, STYLE
from minigrpo.experiments.arms import TITLES, gradients_of_arm
from minigrpo.experiments.parallel import run_jobs
from minigrpo.experiments.trees import interval
from minigrpo.experiments.whole_tree import WholeTree
from minigrpo.models import load_model
from minigrpo.optim import AdamW
from minigrpo.plots import save
from minigrpo.settings import TrainSettings
from minigrpo.tasks import load_task
from minigrpo.trainer import train
from minigrpo.transformer import Transformer

MODEL, COMPARED = "smollm2", ("grpo", "lambda_grpo")
TASKS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # name: task, its options, changed settings
    "two-digit sums": ("sums", {}, {"eval_every": 5}),
    "three-digit sums": ("sums", {"low": 100, "high": 499}, {"steps": 40}),
}
WALK = {"n": 1, "r_neg": -1.0}
WALK_STEPS, LAST, GROUP_SIZE, WALK_RATE = 250, 50, 16, 1e-5


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
                row |= {"tokens": since[-1]["num_tokens"], "reward": float(np.mean([m["reward"] for m in since]))}
                row["unique"] = float(np.mean([1 / m["tree/mean_count"] for m in since]))
            history.append(row)
            since.clear()

    settings = TrainSettings.for_task(task, task_options=options, model=MODEL, objective=objective, seed=seed)
    train(replace(settings, **changes), progress=False, on_step=on_step)
    return history


def walk(objective: str, seed: int, steps: int = WALK_STEPS) -> list[int]:
    """Train on the tree walk.   -> target paths among the group's 16 completions, step by step"""
    model, task, rng = two_moves(), load_task("treewalk", **WALK), np.random.default_rng(seed)
    policy = WholeTree(model, task.prompts(rng, 1)[0], task.max_new_tokens)
    optimizer, hits = AdamW(model.parameters), []
    for _ in range(steps):
        policy.look()
        rollouts = policy.sample(task.prompts(rng, 1), GROUP_SIZE, rng, max_new_tokens=task.max_new_tokens)
        rewards = task.score(rollouts)
        hits.append(int(task.is_correct(rewards).sum()))
        gradients_of_arm(objective, model, rollouts, rewards, rng, learn=policy.learn)
        optimizer.step(model.parameters, model.gradients, WALK_RATE)
    return hits


def two_moves() -> Transformer:
    """SmolLM2 with a vocabulary of two tokens, L and R."""
    whole, tokenizer = load_model(MODEL)
    moves = [int(tokenizer.encode(move)[0]) for move in "LR"]
    model = Transformer(replace(whole.config, vocab_size=2), seed=None)
    for name, view in model.parameters.items():
        view[...] = whole.parameters[name][moves] if "embed" in name else whole.parameters[name]
    return model


# -- what is shown -------------------------------------------------------------------------------------------------------

Curves = dict[tuple[str, str], list[list[dict[str, float]]]]  # (task, objective) -> a history for each seed


def table(curves: Curves, walks: dict[str, list[list[int]]]) -> dict[str, Any]:
    """Greedy accuracy at each evaluation for every seed; target frequency of the last 50 steps, with 95 % intervals."""
    learning = []
    for (name, objective), runs in curves.items():
        greedy = np.array([[point["greedy"] for point in run] for run in runs])  # (seeds, evaluations)
        row = {"task": name, "objective": objective, "seeds": len(runs), "steps": [point["step"] for point in runs[0]]}
        row |= {"greedy_of_seed": greedy.tolist()} | interval("start", greedy[:, 0], 4) | interval("end", greedy[:, -1], 4)
        row["unique"] = [round(float(np.mean([run[i]["unique"] for run in runs])), 3) for i in range(1, len(runs[0]))]
        learning.append(row)
    walked = []
    for objective, runs in walks.items():
        hits = np.array(runs) / GROUP_SIZE
        row = {"objective": objective, "seeds": len(runs), "learning_rate": WALK_RATE} | WALK
        row |= interval("target_frequency", hits[:, -LAST:].mean(1), 4) | {"start": float(hits[:, :5].mean())}
        walked.append(row | {"final_of_seed": hits[:, -LAST:].mean(1).round(4).tolist()})
    return {"learning": learning, "walk": walked}


def figure(curves: Curves, walks: dict[str, list[list[int]]]) -> Figure:
    """Greedy accuracy along training, a panel for each task, each seed a thin line; the target frequency of the walk."""
    tasks = list(dict.fromkeys(name for name, _ in curves))
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(4.6 * (len(tasks) + bool(walks)), 3.6), layout="constrained")
        axes = list(drawn.subplots(1, len(tasks) + bool(walks), squeeze=False)[0])
        for name, ax in zip(tasks, axes, strict=False):
            for objective in COMPARED:
                runs = curves[name, objective]
                steps, values = [p["step"] for p in runs[0]], np.array([[p["greedy"] for p in run] for run in runs])
                _lines(ax, objective, steps, values)
            ax.set(
                title=name, xlabel="training step (64 completions each)", ylabel="greedy accuracy, held-out problems", ylim=(0, 1)
            )
            ax.legend(fontsize=8)
        for objective, runs in walks.items():
            hits = np.array(runs) / GROUP_SIZE
            smooth = hits[:, : hits.shape[1] // 10 * 10].reshape(len(hits), -1, 10).mean(2)
            _lines(axes[-1], objective, (10 * np.arange(smooth.shape[1]) + 5).tolist(), smooth)
        if walks:
            axes[-1].set(title="tree walk, n = 1, r_neg = −1", xlabel="training step", ylabel="target paths, share", ylim=(0, 1))
            axes[-1].legend(fontsize=8, loc="lower right")
    return drawn


def _lines(ax: Any, objective: str, steps: list[float], values: np.ndarray) -> None:
    colour, dash, marker = LINES[list(TITLES).index(objective)]
    for run in values:
        ax.plot(steps, run, color=colour, ls=dash, lw=0.7, alpha=0.45)
    ax.plot(steps, values.mean(0), color=colour, ls=dash, marker=marker, ms=4, label=f"{TITLES[objective]}, mean of {len(values)}")


def text(found: dict[str, Any]) -> str:
    """The tables for a terminal."""
    lines = ["greedy accuracy on held-out problems, mean over seeds [95 % interval]"]
    for r in found["learning"]:
        ends = f"{r['start']:.2f} -> {r['end']:.3f} [{r['end_low']:.3f}, {r['end_high']:.3f}]"
        lines.append(f"  {r['task']:18}{r['objective']:14}{ends}  in {r['steps'][-1]} steps, {r['seeds']} seeds")
    lines += ["target frequency of the last 50 steps of the tree walk"] if found["walk"] else []
    for r in found["walk"]:
        interval = f"{r['target_frequency']:.3f} [{r['target_frequency_low']:.3f}, {r['target_frequency_high']:.3f}]"
        lines.append(f"  {r['objective']:14}{interval}  {r['seeds']} seeds")
    return "\n".join(lines)


def run(out: Path, *, quick: bool = False, seeds: int | None = None, processes: int | None = None) -> str:
    """Two-digit sums and the walk with 4 seeds, three-digit sums with half as many (quick: two-digit sums only, 2 seeds)."""
    n = seeds or (2 if quick else 4)
    number = {"two-digit sums": n} if quick else {"two-digit sums": n, "three-digit sums": n // 2}
    keys = [(name, objective) for name in number for objective in COMPARED]
    jobs = [{"name": a, "objective": b, "seed": seed} for a, b in keys for seed in range(number[a])]
    options: dict[str, Any] = {"processes": processes, "cache": out / "language-model.cache.jsonl"}
    found = iter(run_jobs(learn, jobs, title="SmolLM2, sums", **options))
    curves = {key: [next(found) for _ in range(number[key[0]])] for key in keys}
    walks: dict[str, list[list[int]]] = {}
    result = _write(out, curves, walks)
    if not quick:
        walk_jobs = [{"objective": objective, "seed": seed} for objective in COMPARED for seed in range(n)]
        steps = iter(run_jobs(walk, walk_jobs, title="SmolLM2, tree walk", **options))
        walks = {objective: [next(steps) for _ in range(n)] for objective in COMPARED}
        result = _write(out, curves, walks)
    return text(result)


def _write(out: Path, curves: Curves, walks: dict[str, list[list[int]]]) -> dict[str, Any]:
    """The table and the figure, also before the long walk is done."""
    result = table(curves, walks)
    (out / "language-model.json").write_text(json.dumps(result, indent=1) + "\n")
    save(figure(curves, walks), out / "language-model.png")
    return result
