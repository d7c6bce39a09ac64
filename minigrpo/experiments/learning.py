"""Does λ-GRPO learn tasks with text faster?   (results/README.md, "Learning on tasks with text")

Every run of a task starts from one warm-started policy and takes the task's recommended settings;
only the gradient differs (see `controls.py`).  GRPO and λ-GRPO are also run at other learning rates
and with a KL term.  Held-out accuracy is measured along training: greedy, and pass@k from 4
samples per problem.
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from minigrpo.engine.optim import clip_gradient, learning_rate_at
from minigrpo.engine.parameters import with_parameters
from minigrpo.experiments import tables as t
from minigrpo.experiments.controls import COMPARED, CONTROLS, TITLES, gradients_of_arm
from minigrpo.experiments.figures import dots, look, panels, styled
from minigrpo.experiments.reproduce import Request
from minigrpo.experiments.warm_start import warm_policies
from minigrpo.runs.evaluation import evaluate
from minigrpo.runs.policy import load_weights, make_model, make_state
from minigrpo.runs.settings import TrainSettings
from minigrpo.sampler import sample
from minigrpo.tasks import load_task, sampling_limits

RATES = {  # in the middle: what the task recommends
    "arithmetic": (3e-5, 1e-4, 3e-4),
    "countdown": (1e-4, 3e-4, 1e-3),
}
EVERY, PROMPTS, SAMPLES, KL = 5, 100, 4, 0.04
Key = tuple[str, str, float, float]  # task, arm, beta, learning rate
Run = list[dict[str, float]]  # an evaluation every EVERY steps


def arms(task: str, quick: bool) -> list[Key]:
    """All that is run on a task (quick: GRPO and λ-GRPO, as recommended, without KL)."""
    low, recommended, high = RATES[task]
    found = [(arm, 0.0, recommended) for arm in COMPARED]
    if not quick:
        found += [(arm, KL, recommended) for arm in COMPARED]
        found += [(arm, 0.0, recommended) for arm in CONTROLS]
        found += [(arm, 0.0, rate) for rate in (low, high) for arm in COMPARED]
    return [(task, *arm) for arm in found]


def learn(task: str, arm: str, beta: float, learning_rate: float, seed: int, warm: str) -> Run:
    """Train from the warm-started weights in the folder `warm`."""
    settings = TrainSettings.for_task(task, seed=seed, learning_rate=learning_rate)
    problem = load_task(task, **settings.task_options)
    model = make_model(settings, problem)
    load_weights(model, warm)
    reference, limits = model.parameters.flat.copy(), sampling_limits(problem)
    optimizer, rng = make_state(settings, model).optimizer, np.random.default_rng(seed)
    measured = {"n_prompts": PROMPTS, "samples": SAMPLES, "ks": (1, SAMPLES), "progress": False}
    tokens, history = 0, []
    for step in range(settings.steps + 1):
        if step % EVERY == 0:
            found = evaluate(model, problem, **measured)
            numbers = {name: found[f"eval/{name}"] for name in ("pass@1", "pass@4")}
            about = {"step": step, "tokens": tokens, "greedy": found["eval/pass@1_greedy"]}
            history.append(about | numbers)
        prompts = problem.prompts(rng, settings.prompts_per_step)
        rollouts = sample(model, prompts, settings.group_size, rng, **limits)
        tokens += int(rollouts.tree.lengths.sum())
        ref = None
        if beta:
            with with_parameters(model, reference):
                ref = model.forward(rollouts.tree, keep=False)
        gradients_of_arm(arm, model, rollouts, problem.score(rollouts), rng, beta, ref)
        clip_gradient(model.gradients, settings.max_grad_norm)
        schedule = (settings.steps, learning_rate, settings.warmup_steps, settings.schedule)
        optimizer.step(model.parameters, model.gradients, learning_rate_at(step, *schedule))
    return history


def measure(request: Request, keys: list[Key], seeds: int) -> dict[Key, list[Run]]:
    """The runs of all keys and seeds, those of a task from one warm-started policy."""
    start = {key[0]: TrainSettings.for_task(key[0], eval_every=0) for key in keys}
    warm = warm_policies(request, start)
    names = ("task", "arm", "beta", "learning_rate")
    jobs = {key: dict(zip(names, key, strict=True)) | {"warm": warm[key[0]]} for key in keys}
    return request.seeded(learn, jobs, seeds)


def summary(run: Run) -> dict[str, float]:
    """Accuracy at the end of one run; its peak pass@1, and steps and sampled tokens to 90 % of it.

    mean_pass@1: over all evaluations; higher if a run learns sooner.
    """
    peak = max(point["pass@1"] for point in run)
    reached = next(point for point in run if point["pass@1"] >= 0.9 * peak)
    end = {name: run[-1][name] for name in ("greedy", "pass@1", "pass@4")}
    to_90 = {"peak": peak, "steps_to_90": reached["step"], "tokens_to_90": reached["tokens"]}
    return end | to_90 | {"mean_pass@1": float(np.mean([point["pass@1"] for point in run]))}


def table(curves: dict[Key, list[Run]]) -> list[t.Row]:
    """A row for each key, with intervals over seeds; curve: mean pass@1 at each evaluation."""
    rows = []
    for key, runs in curves.items():
        row: t.Row = dict(zip(("task", "arm", "beta", "learning_rate"), key, strict=True))
        row["seeds"], found = len(runs), [summary(run) for run in runs]
        for name in list(found[0])[:-1]:
            row |= t.interval(name, [numbers[name] for numbers in found], 4)
        row["pass@1_of_seed"] = [t.rounded(run[-1]["pass@1"]) for run in runs]
        curve = np.mean([[point["pass@1"] for point in run] for run in runs], axis=0)
        rows.append(row | {"curve": curve.round(4).tolist()})
    return rows


@styled
def figures(rows: t.Rows) -> dict[str, Figure]:
    """Held-out pass@1 along training, three panels for each task."""
    tasks = t.distinct(rows, "task")
    figure, grid = panels(len(tasks), 3, 13, 3.6 * len(tasks), sharey="row")
    for line, task in zip(grid, tasks, strict=True):
        at = RATES[task][1]
        own, compared = t.select(rows, task=task), t.select(rows, task=task, beta=0.0)
        compared = [row for row in compared if row["arm"] in COMPARED]
        compared.sort(key=lambda row: row["learning_rate"])
        shown = {
            f"all arms, learning rate {at:g}": t.select(own, beta=0.0, learning_rate=at),
            f"with KL, β = {KL}, learning rate {at:g}": t.select(own, beta=KL),
            "GRPO and λ-GRPO at three rates": compared,
        }
        for ax, (title, those) in zip(line, shown.items(), strict=True):
            for row in those:
                style = look(list(TITLES).index(row["arm"])) | {"label": TITLES[row["arm"]]}
                if those is compared:
                    style["marker"] = "sov"[RATES[task].index(row["learning_rate"])]
                    style["label"] += f", {row['learning_rate']:g}"
                steps = EVERY * np.arange(len(row["curve"]))
                ax.plot(steps, row["curve"], **style)
                dots(ax, steps[-1:], [row], "pass@1", color=style["color"], ms=0)
            ax.set(title=f"{task}: {title}", xlabel="training step")
            ax.legend(fontsize=8, loc="lower right", ncols=1 + (those is compared))
        line[0].set_ylabel("held-out pass@1 (sampled)")
        line[0].set_ylim(0, None)
    return {"learning": figure}


def text(rows: t.Rows) -> str:
    """The table for a terminal."""
    title = "accuracy at the end, and steps to 90 % of the peak"
    return t.show({title: rows}, {title: "task arm beta learning_rate pass@1± steps_to_90±"})


def run(request: Request) -> list[t.Row]:
    """All tasks and arms (quick: GRPO and λ-GRPO on arithmetic, 2 seeds)."""
    tasks = ["arithmetic"] if request.quick else RATES
    keys = [key for task in tasks for key in arms(task, request.quick)]
    return table(measure(request, keys, request.seeds or (2 if request.quick else 8)))
