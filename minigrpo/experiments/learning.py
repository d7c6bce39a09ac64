"""Learning on a task with text: GRPO, λ-GRPO and the controls on `arithmetic`, with and without a KL term.

Every run of a task starts from the same warm-started policy and takes the task's recommended settings; only the gradient differs
(see `arms.py`).  Held-out accuracy is measured along training: greedy, and pass@k from 4 samples a problem.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from minigrpo.drawing import LINES, STYLE
from minigrpo.evaluation import evaluate
from minigrpo.experiments.arms import CONTROLS, TITLES, gradients_of_arm
from minigrpo.experiments.parallel import run_jobs
from minigrpo.experiments.trees import warm_policy
from minigrpo.optim import clip_gradient, learning_rate_at
from minigrpo.plots import bootstrap_interval, save
from minigrpo.sampler import sample
from minigrpo.tasks import load_task
from minigrpo.trainer import TrainSettings, load_weights, make_model, make_optimizer, using

TASKS = ("arithmetic",)
ARMS = [("grpo", 0.0), ("lambda_grpo", 0.0), ("grpo", 0.04), ("lambda_grpo", 0.04), *((arm, 0.0) for arm in CONTROLS)]
EVERY, PROMPTS, SAMPLES = 5, 100, 4


def learn(task: str, arm: str, beta: float, seed: int, warm: str) -> list[dict[str, float]]:
    """Train from the warm-started weights in `warm`.   -> one dict an evaluation: step, tokens, greedy, pass@1, pass@4"""
    settings = TrainSettings.for_task(task, seed=seed)
    problem = load_task(task)
    model = make_model(settings, problem)
    load_weights(model, warm)
    reference = model.parameters.flat.copy()
    stepper, rng = make_optimizer(settings, model), np.random.default_rng(seed)
    tokens, history = 0, []
    for step in range(settings.steps + 1):
        if step % EVERY == 0:
            found = evaluate(model, problem, n_prompts=PROMPTS, samples=SAMPLES, ks=(1, SAMPLES), progress=False)
            numbers = {"greedy": found["eval/pass@1_greedy"], "pass@1": found["eval/pass@1"], "pass@4": found["eval/pass@4"]}
            history.append({"step": step, "tokens": tokens} | numbers)
        prompts = problem.prompts(rng, settings.prompts_per_step)
        limits = {"max_new_tokens": problem.max_new_tokens, "eos": problem.tokenizer.eos}
        rollouts = sample(model, prompts, settings.group_size, rng, **limits)
        tokens += int(rollouts.tree.lengths.sum())
        ref = None
        if beta:
            with using(model, reference):
                ref = model.forward(rollouts.tree, keep=False)
        gradients_of_arm(arm, model, rollouts, problem.score(rollouts), rng, beta=beta, ref=ref)
        clip_gradient(model.gradients, settings.max_grad_norm)
        rate = learning_rate_at(step, settings.steps, settings.learning_rate, settings.warmup_steps, settings.schedule)
        stepper.step(model.parameters, model.gradients, rate)
    return history


def table(curves: dict[tuple[str, str, float], list[list[dict[str, float]]]]) -> list[dict[str, Any]]:
    """A row for each (task, arm, beta): accuracy at the end, and steps and sampled tokens to 90 % of a seed's own peak pass@1."""
    rows = []
    for (task, arm, beta), runs in curves.items():
        row: dict[str, Any] = {"task": task, "arm": arm, "beta": beta, "seeds": len(runs)}
        for name in ("greedy", "pass@1", "pass@4"):
            row |= _interval(name, [run[-1][name] for run in runs])
        reached = [next(point for point in run if point["pass@1"] >= 0.9 * max(p["pass@1"] for p in run)) for run in runs]
        row |= _interval("peak", [max(point["pass@1"] for point in run) for run in runs])
        row |= _interval("steps_to_90", [point["step"] for point in reached])
        row |= _interval("tokens_to_90", [point["tokens"] for point in reached])
        rows.append(row)
    return rows


def _interval(name: str, values: list[float]) -> dict[str, float]:
    array = np.array(values, dtype=float)
    low, high = bootstrap_interval(array, np.random.default_rng(0))
    return {key: float(f"{x:.4g}") for key, x in ((name, array.mean()), (f"{name}_low", low), (f"{name}_high", high))}


def figure(curves: dict[tuple[str, str, float], list[list[dict[str, float]]]]) -> Figure:
    """Held-out pass@1 (sampled) along training: a panel for each task and choice of beta; mean and 95 % band over seeds."""
    tasks = list(dict.fromkeys(task for task, _, _ in curves))
    panels = [("beta = 0", lambda arm, beta: beta == 0), ("beta = 0.04", lambda arm, beta: beta > 0)]
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(10, 3.4 * len(tasks)), layout="constrained")
        for line, task in zip(drawn.subplots(len(tasks), 2, squeeze=False, sharey="row"), tasks, strict=True):
            for ax, (title, chosen) in zip(line, panels, strict=True):
                for (name, arm, beta), runs in curves.items():
                    if name != task or not chosen(arm, beta):
                        continue
                    colour, dash, marker = LINES[list(TITLES).index(arm)]
                    values = np.array([[point["pass@1"] for point in run] for run in runs])
                    steps = [point["step"] for point in runs[0]]
                    low, high = bootstrap_interval(values, np.random.default_rng(0))
                    ax.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
                    ax.plot(steps, values.mean(0), color=colour, ls=dash, marker=marker, ms=4, label=TITLES[arm])
                ax.set(title=f"{task}, {title}", xlabel="training step", ylabel="held-out pass@1 (sampled)")
                ax.legend(fontsize=8)
    return drawn


def text(rows: list[dict[str, Any]]) -> str:
    """The table for a terminal."""
    lines = [f"{'task':12}{'arm':22}{'beta':>5}   {'pass@1 at the end':26}{'steps to 90 % of peak':>22}"]
    for r in rows:
        end = f"{r['pass@1']:.3f}  [{r['pass@1_low']:.3f}, {r['pass@1_high']:.3f}]"
        steps = f"{r['steps_to_90']:.1f}  [{r['steps_to_90_low']:.1f}, {r['steps_to_90_high']:.1f}]"
        lines.append(f"{r['task']:12}{r['arm']:22}{r['beta']:>5}   {end:26}{steps:>22}")
    return "\n".join(lines)


def run(out: Path, *, quick: bool = False, seeds: int | None = None, processes: int | None = None) -> str:
    """All arms (quick: GRPO and λ-GRPO without KL, 2 seeds)."""
    seeds = seeds or (2 if quick else 8)
    tasks, arms = (TASKS[:1], ARMS[:2]) if quick else (TASKS, ARMS)
    names = ("task", "arm", "beta", "seed")
    arms_of_tasks = [(task, arm, beta) for task in tasks for arm, beta in arms]
    warm = {task: warm_policy(TrainSettings.for_task(task, eval_every=0), out / f"warm-{task}") for task in tasks}
    jobs = [dict(zip(names, (*c, seed), strict=True)) | {"warm": warm[c[0]]} for c in arms_of_tasks for seed in range(seeds)]
    found = run_jobs(learn, jobs, title="learning", processes=processes, cache=out / "learning.cache.jsonl")
    curves = {c: found[i * seeds : (i + 1) * seeds] for i, c in enumerate(arms_of_tasks)}
    rows = table(curves)
    (out / "learning.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    save(figure(curves), out / "learning.png")
    return text(rows)
