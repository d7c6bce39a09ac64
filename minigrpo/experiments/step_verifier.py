"""Does a verifier of steps teach faster than the outcome?   (results/README.md, "A step verifier")

Addition in written steps (`tasks/arithmetic.py`) with process rewards from outside: at every
semicolon and at the end, 1 if all that was written so far is right, else 0.  It knows the carry,
which is all that the careless pupil has to learn; the blind verifier only adds up what the step
itself says, so 5+6=11 is right to it though a carry was forgotten.  With a seed, all arms begin
with the same warm-started policy and the same first completions, so they are compared seed by seed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from matplotlib.figure import Figure

from minigrpo.experiments import tables as t
from minigrpo.experiments.figures import band, dots, look, panels, percent, styled
from minigrpo.experiments.reproduce import Request
from minigrpo.experiments.warm_start import warm_policies
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train
from minigrpo.show.drawing import INK, ORANGE
from minigrpo.tasks.arithmetic import Arithmetic, first_wrong_step

EVERY, PROMPTS, AT = 5, 200, (15, 20, 60)
GREEDY = "eval/pass@1_greedy"


class Verified(Arithmetic):
    """`Arithmetic` with a verifier that knows what belongs into each step."""

    step_end: ClassVar[str] = ";"

    def score_prefix(self, prompt: str, text: str) -> float:
        """1 if all that was written so far is right, else 0."""
        wrong = first_wrong_step(prompt, text.removesuffix(";"))  # or the step that is missing
        return float((wrong or 0) >= text.count(";") if text.endswith(";") else wrong is None)


class Blind(Verified):
    """`Arithmetic` with a verifier that only adds up the summands that a step itself names."""

    def score_prefix(self, prompt: str, text: str) -> float:
        """1 if every equation so far holds, whatever should be added, else 0."""
        return float(all(_holds(step) for step in text.split(";") if "=" in step))


def _holds(step: str) -> bool:
    summands, _, total = step.partition("=")
    numbers = summands.split("+")
    return all(map(str.isdigit, [*numbers, total])) and sum(map(int, numbers)) == int(total)


ADDED, ALONE = {"process_weight": 1.0}, {"process_weight": 1.0, "outcome_weight": 0.0}
ARMS = {  # title in figures, preset, changes to it, task
    "grpo": ("GRPO", "grpo", {}, Arithmetic),
    "lambda_grpo": ("λ-GRPO", "lambda_grpo", {}, Arithmetic),
    "prm": ("hidden PRM", "prm", {}, Arithmetic),
    "outcome_and_verifier": ("GRPO + verifier", "grpo", ADDED, Verified),
    "verifier_alone": ("verifier alone", "grpo", ALONE, Verified),
    "outcome_and_blind": ("GRPO + blind verifier", "grpo", ADDED, Blind),
}
MEASURES = (*(f"at_{step}" for step in AT), "area")


def learn(arm: str, warm: str, seed: int) -> dict[str, list[float]]:
    """Train an arm from the weights in `warm`.   -> held-out greedy accuracy, and shares of groups

    dead: groups with equal outcomes;  steps_only: those of them that learn from the verifier
    """
    _, objective, changes, task = ARMS[arm]
    own = {"objective": objective, "objective_options": changes, "init": warm, "seed": seed}
    own |= {"steps": AT[-1], "eval_every": EVERY, "eval_prompts": PROMPTS}
    settings, seen = TrainSettings.for_task("arithmetic", **own), []
    train(settings, task=task(), progress=False, on_step=seen.append)
    taken = [m for m in seen if "loss" in m]
    return {
        "greedy": [m[GREEDY] for m in seen if GREEDY in m],
        "dead": [m["frac_reward_zero_std"] for m in taken],
        "steps_only": [m.get("frac_groups_steps_only", 0.0) for m in taken],
    }


def summary(run: dict[str, list[float]]) -> dict[str, float]:
    """MEASURES of one run; area: the mean height of the curve of greedy accuracy."""
    greedy = np.array(run["greedy"])
    area = (greedy[1:] + greedy[:-1]).mean() / 2
    points = [greedy[step // EVERY] for step in AT]
    return dict(zip(MEASURES, map(float, [*points, area]), strict=True))


def table(runs: dict[str, list[dict[str, list[float]]]]) -> list[t.Row]:
    """A row for each arm: MEASURES, and NAME_less_ARM, differences by seed; points: the curve."""
    found = {arm: [summary(run) for run in of_arm] for arm, of_arm in runs.items()}
    rows = []
    for arm, of_arm in runs.items():
        row: t.Row = {"arm": arm, "seeds": len(of_arm)}
        for name in MEASURES:
            own = [s[name] for s in found[arm]]
            row |= t.interval(name, own, 4) | {f"{name}_of_seed": [t.rounded(x) for x in own]}
            for other in ("grpo", "prm"):
                if other in runs:
                    less = [a - s[name] for a, s in zip(own, found[other], strict=True)]
                    row |= t.interval(f"{name}_less_{other}", less, 4)
        early = {name: [run[name][: AT[1]] for run in of_arm] for name in ("dead", "steps_only")}
        row |= {f"{name}_early": t.rounded(float(np.mean(x))) for name, x in early.items()}
        curve = enumerate(np.transpose([run["greedy"] for run in of_arm]))
        row["points"] = [{"step": EVERY * i} | t.interval("greedy", x, 4) for i, x in curve]
        rows.append(row)
    return rows


@styled
def figures(rows: t.Rows) -> dict[str, Figure]:
    """Held-out greedy accuracy along training, and its mean less GRPO's, with a ring per seed."""
    figure, ((curves, areas),) = panels(1, 2, 11, 4.2)
    for number, row in enumerate(rows):
        style = look(number) | {"label": ARMS[row["arm"]][0]}
        band(curves, [p["step"] for p in row["points"]], row["points"], "greedy", **style)
        seeds = np.subtract(row["area_of_seed"], rows[0]["area_of_seed"])
        areas.plot(np.full(len(seeds), number + 0.2), seeds, "o", ms=3, mfc="none", color=ORANGE)
    dots(areas, range(len(rows)), rows, "area_less_grpo")
    areas.axhline(0, color=INK, lw=0.8)
    names = [ARMS[row["arm"]][0].replace(" ", "\n") for row in rows]
    areas.set_xticks(range(len(rows)), names, fontsize=9)
    areas.set(ylabel="mean accuracy along training,\nless GRPO's with the same seed")
    curves.set(xlabel="training step", ylabel="held-out problems right (greedy)")
    curves.legend(loc="lower right", fontsize=9)
    percent(curves)
    return {"step-verifier": figure}


def text(rows: t.Rows) -> str:
    """The table for a terminal."""
    title = "greedy accuracy on held-out problems; less: with the same seed"
    columns = "arm seeds at_15± at_20± at_60± area± area_less_grpo± area_less_prm±"
    return t.show({title: rows}, {title: columns})


def run(request: Request) -> list[t.Row]:
    """All arms, 8 seeds (quick: GRPO with and without the verifier, 2 seeds)."""
    arms = ("grpo", "outcome_and_verifier") if request.quick else tuple(ARMS)
    seeds = request.seeds or (2 if request.quick else 8)
    start = TrainSettings.for_task("arithmetic", eval_every=0)
    named = {f"{request.name}-{seed}": replace(start, seed=seed) for seed in range(seeds)}
    warm = warm_policies(request, named)
    about = [{"seed": n, "warm": folder} for n, folder in enumerate(warm.values())]
    jobs = [of_seed | {"arm": arm} for of_seed in about for arm in arms]  # seed after seed
    found = request.jobs(learn, jobs)
    return table({arm: found[i :: len(arms)] for i, arm in enumerate(arms)})
