"""Learning on tasks with text: GRPO, λ-GRPO and the controls on `arithmetic` and `countdown`, with and without a KL term.

Every run of a task starts from the same warm-started policy and takes the task's recommended settings; only the gradient differs
(see `arms.py`).  GRPO and λ-GRPO are also run at other learning rates, since a rate that suits one need not suit the other.
Held-out accuracy is measured along training: greedy, and pass@k from 4 samples a problem.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from minigrpo.engine.optim import clip_gradient, learning_rate_at
from minigrpo.engine.parameters import with_parameters
from minigrpo.experiments import write_tables
from minigrpo.experiments.arms import CONTROLS, TITLES, gradients_of_arm
from minigrpo.experiments.parallel import run_jobs
from minigrpo.experiments.trees import interval, warm_policy
from minigrpo.runs.evaluation import evaluate
from minigrpo.runs.policy import load_weights, make_model, make_state
from minigrpo.runs.settings import TrainSettings
from minigrpo.sampler import sample
from minigrpo.show.drawing import LINES, STYLE
from minigrpo.show.plots import bootstrap_interval, save
from minigrpo.tasks import load_task, sampling_limits

RATES = {
    "arithmetic": (3e-5, 1e-4, 3e-4),
    "countdown": (1e-4, 3e-4, 1e-3),
}  # in the middle: what the task recommends
COMPARED = ("grpo", "lambda_grpo")
EVERY, PROMPTS, SAMPLES = 5, 100, 4
Curves = dict[
    tuple[str, str, float, float], list[list[dict[str, float]]]
]  # (task, arm, beta, learning rate): one run a seed


def arms(task: str, quick: bool) -> list[tuple[str, str, float, float]]:
    """(task, arm, beta, learning rate) of all runs (quick: GRPO and λ-GRPO, as recommended, without KL)."""
    recommended = RATES[task][1]
    found = [(arm, 0.0, recommended) for arm in COMPARED]
    if not quick:
        found += [(arm, 0.04, recommended) for arm in COMPARED] + [
            (arm, 0.0, recommended) for arm in CONTROLS
        ]
        found += [
            (arm, 0.0, rate) for rate in RATES[task] if rate != recommended for arm in COMPARED
        ]
    return [(task, *arm) for arm in found]


def learn(
    task: str, arm: str, beta: float, learning_rate: float, seed: int, warm: str
) -> list[dict[str, float]]:
    """Train from the warm-started weights in `warm`.   -> one dict an evaluation: step, tokens, greedy, pass@1, pass@4"""
    settings = TrainSettings.for_task(task, seed=seed, learning_rate=learning_rate)
    problem = load_task(task, **settings.task_options)
    model = make_model(settings, problem)
    load_weights(model, warm)
    reference = model.parameters.flat.copy()
    stepper, rng = make_state(settings, model).optimizer, np.random.default_rng(seed)
    tokens, history = 0, []
    for step in range(settings.steps + 1):
        if step % EVERY == 0:
            found = evaluate(
                model, problem, n_prompts=PROMPTS, samples=SAMPLES, ks=(1, SAMPLES), progress=False
            )
            numbers = {
                "greedy": found["eval/pass@1_greedy"],
                "pass@1": found["eval/pass@1"],
                "pass@4": found["eval/pass@4"],
            }
            history.append({"step": step, "tokens": tokens} | numbers)
        prompts = problem.prompts(rng, settings.prompts_per_step)
        limits = sampling_limits(problem)
        rollouts = sample(model, prompts, settings.group_size, rng, **limits)
        tokens += int(rollouts.tree.lengths.sum())
        ref = None
        if beta:
            with with_parameters(model, reference):
                ref = model.forward(rollouts.tree, keep=False)
        gradients_of_arm(arm, model, rollouts, problem.score(rollouts), rng, beta=beta, ref=ref)
        clip_gradient(model.gradients, settings.max_grad_norm)
        rate = learning_rate_at(
            step, settings.steps, settings.learning_rate, settings.warmup_steps, settings.schedule
        )
        stepper.step(model.parameters, model.gradients, rate)
    return history


def summary(run: list[dict[str, float]]) -> dict[str, float]:
    """Accuracy at the end of one run; its peak pass@1, and steps and sampled tokens to 90 % of it."""
    peak = max(point["pass@1"] for point in run)
    reached = next(point for point in run if point["pass@1"] >= 0.9 * peak)
    end = {name: run[-1][name] for name in ("greedy", "pass@1", "pass@4")}
    return end | {"peak": peak, "steps_to_90": reached["step"], "tokens_to_90": reached["tokens"]}


def table(curves: Curves) -> list[dict[str, Any]]:
    """A row for each (task, arm, beta, learning rate), with intervals over seeds.

    Accuracy at the end; steps and sampled tokens to 90 % of a seed's own peak pass@1; `curve`: mean pass@1 at each evaluation.
    """
    rows = []
    for (task, arm, beta, rate), runs in curves.items():
        row: dict[str, Any] = {
            "task": task,
            "arm": arm,
            "beta": beta,
            "learning_rate": rate,
            "seeds": len(runs),
        }
        found = [summary(run) for run in runs]
        for name in found[0]:
            row |= interval(name, [numbers[name] for numbers in found], 4)
        row["pass@1_of_seed"] = [float(f"{run[-1]['pass@1']:.4g}") for run in runs]
        row["curve"] = (
            np.mean([[point["pass@1"] for point in run] for run in runs], axis=0).round(4).tolist()
        )
        rows.append(row)
    return rows


def figure(curves: Curves) -> Figure:
    """Held-out pass@1 (sampled) along training, a row of panels for each task; mean and 95 % band over seeds."""
    tasks = list(dict.fromkeys(key[0] for key in curves))
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(13, 3.6 * len(tasks)), layout="constrained")
        for line, task in zip(
            drawn.subplots(len(tasks), 3, squeeze=False, sharey="row"), tasks, strict=True
        ):
            recommended = RATES[task][1]
            panels = {
                f"all arms, learning rate {recommended:g}": [
                    k for k in curves if k[2] == 0 and k[3] == recommended
                ],
                f"with KL, β = 0.04, learning rate {recommended:g}": [
                    k for k in curves if k[2] > 0
                ],
                "GRPO and λ-GRPO at three rates": sorted(
                    (k for k in curves if k[2] == 0 and k[1] in COMPARED), key=lambda k: k[3]
                ),
            }
            for ax, (title, chosen) in zip(line, panels.items(), strict=True):
                by_rate = title.endswith("rates")
                for key in (key for key in chosen if key[0] == task):
                    _, arm, _, rate = key
                    colour, dash, marker = LINES[list(TITLES).index(arm)]
                    label = TITLES[arm]
                    if by_rate:
                        marker, label = "sov"[RATES[task].index(rate)], f"{label}, {rate:g}"
                    values = np.array([[point["pass@1"] for point in run] for run in curves[key]])
                    steps = [point["step"] for point in curves[key][0]]
                    low, high = bootstrap_interval(values, np.random.default_rng(0))
                    ax.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
                    ax.plot(
                        steps,
                        values.mean(0),
                        color=colour,
                        ls=dash,
                        marker=marker,
                        ms=4,
                        label=label,
                    )
                ax.set(
                    title=f"{task}: {title}",
                    xlabel="training step",
                    ylabel="held-out pass@1 (sampled)",
                )
                ax.legend(fontsize=8)
    return drawn


def text(rows: list[dict[str, Any]]) -> str:
    """The table for a terminal."""
    lines = [
        f"{'task':12}{'arm':22}{'beta':>5}{'rate':>8}   {'pass@1 at the end':26}{'steps to 90 % of peak':>22}"
    ]
    for r in rows:
        end = f"{r['pass@1']:.3f}  [{r['pass@1_low']:.3f}, {r['pass@1_high']:.3f}]"
        steps = f"{r['steps_to_90']:.1f}  [{r['steps_to_90_low']:.1f}, {r['steps_to_90_high']:.1f}]"
        lines.append(
            f"{r['task']:12}{r['arm']:22}{r['beta']:>5}{r['learning_rate']:>8g}   {end:26}{steps:>22}"
        )
    return "\n".join(lines)


def measure(
    keys: list[tuple[str, str, float, float]],
    seeds: int,
    out: Path,
    name: str,
    processes: int | None,
) -> Curves:
    """The runs of all keys and seeds, each task's from one warm-started policy; finished ones are kept in out/NAME.cache.jsonl."""
    tasks = dict.fromkeys(key[0] for key in keys)
    warm = {
        task: warm_policy(TrainSettings.for_task(task, eval_every=0), out / f"warm-{task}")
        for task in tasks
    }
    names = ("task", "arm", "beta", "learning_rate", "seed")
    jobs = [
        dict(zip(names, (*key, seed), strict=True)) | {"warm": warm[key[0]]}
        for key in keys
        for seed in range(seeds)
    ]
    found = run_jobs(
        learn, jobs, title=name, processes=processes, cache=out / f"{name}.cache.jsonl"
    )
    return {key: found[i * seeds : (i + 1) * seeds] for i, key in enumerate(keys)}


def run(
    out: Path, *, quick: bool = False, seeds: int | None = None, processes: int | None = None
) -> str:
    """All tasks and arms (quick: GRPO and λ-GRPO on arithmetic, 2 seeds)."""
    keys = [key for task in (["arithmetic"] if quick else RATES) for key in arms(task, quick)]
    curves = measure(keys, seeds or (2 if quick else 8), out, "learning", processes)
    rows = table(curves)
    write_tables(out / "learning.json", rows)
    save(figure(curves), out / "learning.png")
    return text(rows)
