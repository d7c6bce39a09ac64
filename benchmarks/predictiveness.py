"""Do the five numbers of `minigrpo tree LOG` tell where λ-GRPO will beat GRPO?

    python -m benchmarks.predictiveness --out FOLDER --processes 1

It writes predictiveness.json and predictiveness.png (results/README.md, "Would λ-GRPO change my
run?").  Less than an hour of one core; finished jobs are kept in FOLDER/predictiveness.cache.jsonl.
The sums need the extra `lm` and `minigrpo pull smollm2`.

The plan, fixed before anything was measured:

numbers      those of `minigrpo.logs.five_numbers`, pooled over the groups of the first 20 steps of
             GRPO's runs: NUMBERS, seven, as one of the five is told under either objective, and
             another also less its chance level
gain         λ-GRPO less GRPO at the same settings and seed, at the end of training: target
             frequency in the last 50 steps of a walk, held-out pass@1 of arithmetic and countdown,
             held-out greedy accuracy of sums (which is what was recorded)
scopes       walk      small transformer: the settings of results/table1.json, n by r_neg by
                       optimiser by rate by targets (drawn for each run, or RRRR for all)
             map       tabular policy: the cells of results/when.json, n by r_neg by rate by start
             target    for each setting of `walk` with n < 3 and drawn targets, its 16 targets: the
                       mean over settings of the rank correlation within a setting
             text      arithmetic and countdown at three rates (results/learning.json, 8 seeds), two
                       kinds of sums with SmolLM2 (results/language-model.json, 4 and 2 seeds), and
                       six settings run here with both objectives, 4 seeds (VARIANTS)
             all       walk and text together: do the numbers tell the tasks apart?
statistic    Spearman's rank correlation over settings, of each number with the gain
interval     95 %, percentile bootstrap of 2,000 draws: settings are drawn with replacement, and in
             each the seeds of its numbers and (apart) of its gain; a gain of the map, whose runs
             were not kept, is drawn from a normal distribution of its published interval
verdict      a number is *predictive* if its intervals in walk, map and text exclude 0 on one side.
             Else the answer is no.  35 intervals are looked at: by chance about two exclude 0.

Settings share seeds and neighbouring rates, so they are not independent and the intervals are too
narrow.  The numbers of a walk are of 96 seeds, those of sums of 2, those of other text settings of
as many as the gain.  (VARIANTS were to be ten with 8 seeds, and sums to have 4; this was cut to
save time, before any run of `text` was made.)
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from minigrpo.experiments import committed
from minigrpo.experiments import tables as t
from minigrpo.experiments.figures import estimates, panels, styled
from minigrpo.experiments.many_walks import DEPTH, run_walks
from minigrpo.experiments.parallel import run_jobs
from minigrpo.experiments.reproduce import Request, write_tables
from minigrpo.experiments.warm_start import warm_policies
from minigrpo.logs.five_numbers import group_sums
from minigrpo.logs.groups import Group
from minigrpo.runs.evaluation import evaluate
from minigrpo.runs.policy import load_weights, make_policy, make_state
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train_step
from minigrpo.show.drawing import BLUE, INK, ORANGE, SKY
from minigrpo.show.plots import save

KEYS = ("rewarded", "dead", "uv", "uu", "vv", "u", "u_shared", "v", "v_shared", "good", "held")
KEYS += ("held_by_chance", "tokens", "nodes")
NUMBERS = {
    "dead_groups": "dead groups",
    "cosine": "cosine of the pushes",
    "shared_push_grpo": "push on what is shared,\nGRPO",
    "shared_push_lambda_grpo": "push on what is shared,\nλ-GRPO",
    "held_back": "held back",
    "held_back_excess": "held back, less chance",
    "tokens_over_distinct": "tokens over distinct",
}
RATIOS = [("dead", "rewarded"), ("uv", "norms"), ("u_shared", "u"), ("v_shared", "v")]
RATIOS += [("held", "good"), ("excess", "good"), ("tokens", "nodes")]
SHOWN = [name for name in NUMBERS if name not in ("shared_push_lambda_grpo", "held_back")]
SCOPES = ("walk", "map", "target", "text", "all")
GAIN, RHO = ([name + end for end in t.ENDS] for name in ("gain", "rho"))
FIRST, WALKS, SEEDS, DRAWS = 20, 96, 4, 2000
VARIANTS: dict[str, dict[str, Any]] = {
    "arithmetic, k = 4": {"group_size": 4, "prompts_per_step": 64},
    "arithmetic, k = 16": {"group_size": 16, "prompts_per_step": 16},
    "arithmetic, k = 32": {"group_size": 32, "prompts_per_step": 8},
    "countdown, k = 4": {"group_size": 4, "prompts_per_step": 128},
    "countdown, k = 8": {"group_size": 8, "prompts_per_step": 64},
    "countdown, k = 64": {"group_size": 64, "prompts_per_step": 8},
}
SUMS: dict[str, dict[str, Any]] = {
    "two-digit sums": {},
    "three-digit sums": {"task_options": {"low": 100, "high": 499}, "steps": 40},
}
Sums = dict[str, float]  # of `group_sums`, over the groups of a run


# -- measuring -------------------------------------------------------------------------------------


def walk_numbers(
    policy: str,
    n: int,
    r_neg: float,
    optimizer: str,
    learning_rate: float,
    target: int | None,
    start: float | None,
) -> list[Sums]:
    """The sums of every run's first groups under GRPO, a group per step."""
    found, rng = [Counter() for _ in range(WALKS)], np.random.default_rng(0)

    def observe(model: Any, logp: Any, leaves: Any, rewards: Any, aim: Any) -> None:
        if leaves is None:
            return
        moves = leaves[..., None] >> np.arange(DEPTH - 1, -1, -1) & 1  # (runs,k,depth)
        for sums, walks, own in zip(found, moves.tolist(), rewards, strict=True):
            sums.update(group_sums(Group("", walks, own, None, "tokens"), rng))

    options = {"target": target, "start": start, "policy": policy, "observe": observe}
    rates = (optimizer, learning_rate)
    run_walks("grpo", n, r_neg, *rates, runs=WALKS, steps=FIRST, **options)
    return [{name: float(x) for name, x in sums.items()} for sums in found]


def text_run(settings: dict[str, Any], warm: str | None, whole: bool) -> dict[str, Any]:
    """A run's first steps.   -> {"sums"}, and "pass@1" at its end, if the whole run is trained"""
    s = TrainSettings(**settings)
    model, task = make_policy(s)
    if warm is not None:
        load_weights(model, warm)
    state, rng, sums = make_state(s, model), np.random.default_rng(0), Counter()
    for step in range(s.steps if whole else FIRST):
        _, rollouts, rewards = train_step(state, task, s)
        if step < FIRST:
            of_groups = np.split(rewards, len(rollouts.completions))
            for group, own in zip(rollouts.completions, of_groups, strict=True):
                sequences = [tokens.tolist() for tokens in group]
                sums.update(group_sums(Group("", sequences, own, None, "tokens"), rng))
    out: dict[str, Any] = {"sums": {name: float(x) for name, x in sums.items()}}
    if whole:
        found = evaluate(model, task, n_prompts=100, samples=4, ks=(1,), progress=False)
        out["pass@1"] = found["eval/pass@1"]
    return out


class Setting(dict):
    """scope, name; sums: of each seed's first steps; gains: of each seed, or mean and std."""


def walks(jobs: Callable[..., list]) -> list[Setting]:
    """The settings of `walk` and of `map`."""
    rows, found = committed("results/table1.json")["rows"], []
    names = ("n", "r_neg", "optimizer", "learning_rate", "targets")
    for grpo in t.select(rows, arm="grpo"):
        at = {name: grpo[name] for name in names}
        hits = (t.select(rows, arm=arm, **at)[0] for arm in ("lambda_grpo", "grpo"))
        gains = np.subtract(*(np.array(row["hits_of_run"]) / (50 * 16) for row in hits))
        found.append(Setting(scope="walk", **at, gains=gains))
    for cell in committed("results/when.json")["map"]:
        at = {name: cell[name] for name in ("n", "r_neg", "learning_rate", "start")}
        normal = cell["difference"], (cell["high"] - cell["low"]) / (2 * 1.96)
        found.append(Setting(scope="map", **at, optimizer="sgd", normal=normal))
    keys = [
        {name: s[name] for name in names[:4]}
        | {"policy": "tabular" if s["scope"] == "map" else "transformer"}
        | {"target": 15 if s.get("targets") == "RRRR" else None, "start": s.get("start")}
        for s in found
    ]
    for setting, sums in zip(found, jobs(walk_numbers, keys, "walks"), strict=True):
        setting["sums"] = sums
    return found


def texts(jobs: Callable[..., list], request: Request) -> list[Setting]:
    """The settings of `text`."""
    made, found = {}, []
    for row in t.select(committed("results/learning.json"), arm="grpo", beta=0.0):
        task, rate = row["task"], row["learning_rate"]
        same = {"task": task, "learning_rate": rate, "beta": 0.0}
        fixed = t.select(committed("results/learning.json"), arm="lambda_grpo", **same)[0]
        gains = np.subtract(fixed["pass@1_of_seed"], row["pass@1_of_seed"])
        made[f"{task}, rate {rate:g}"] = task, {"learning_rate": rate}, len(gains), gains
    made |= {name: (name.split(",")[0], own, SEEDS, None) for name, own in VARIANTS.items()}
    rows = committed("results/language-model.json")["learning"]
    for name, changes in SUMS.items():
        ends = (t.select(rows, task=name, objective=x)[0] for x in ("lambda_grpo", "grpo"))
        gains = np.subtract(*([run[-1] for run in row["greedy_of_seed"]] for row in ends))
        made[name] = "sums", changes | {"model": "smollm2"}, 2, gains

    def settings(task: str, **changes: Any) -> TrainSettings:
        own = TrainSettings.for_task(task)  # options of a task are added to those it recommends
        options = own.task_options | changes.pop("task_options", {})
        return TrainSettings.for_task(task, task_options=options, **changes)

    start = {task: settings(task) for task in ("arithmetic", "countdown")}
    warm = warm_policies(request, start)
    keys, of = [], []
    for name, (task, changes, seeds, gains) in made.items():
        for objective in ("grpo", "lambda_grpo")[: 1 + (gains is None)]:
            for seed in range(seeds):
                own = settings(task, **changes, objective=objective, seed=seed)
                keys.append(
                    {"settings": asdict(own), "warm": warm.get(task), "whole": gains is None}
                )
                of.append((name, objective))
    runs: dict[tuple[str, str], list] = {}
    for key, result in zip(of, jobs(text_run, keys, "texts"), strict=True):
        runs.setdefault(key, []).append(result)
    for name, (*_, gains) in made.items():
        if gains is None:
            ends = ([run["pass@1"] for run in runs[name, x]] for x in ("lambda_grpo", "grpo"))
            gains = np.subtract(*ends)
        sums = [run["sums"] for run in runs[name, "grpo"]]
        found.append(Setting(scope="text", name=name, sums=sums, gains=gains))
    return found


# -- the table -------------------------------------------------------------------------------------


def numbers(sums: np.ndarray) -> np.ndarray:
    """NUMBERS from sums of pooled runs, as `ratios`; NaN where there is none.   (…,KEYS)"""
    of = dict(zip(KEYS, np.moveaxis(sums, -1, 0), strict=True))
    of["norms"] = np.sqrt(of["uu"] * of["vv"])
    of["excess"] = of["held"] - of["held_by_chance"]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([of[above] / of[below] for above, below in RATIOS], -1)


def ranks(x: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Ranks along the last axis among those that are there, ties averaged, less their mean."""
    pairs = x[..., :, None], x[..., None, :]
    below, same = ((f(*pairs) & there[..., None, :]).sum(-1) for f in (np.greater, np.equal))
    return np.where(there, below + same / 2 - there.sum(-1, keepdims=True) / 2, 0)


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation along the last axis, of the pairs that have both numbers.

    NaN where either is constant.
    """
    there = np.isfinite(x) & np.isfinite(y)
    x, y = ranks(x, there), ranks(y, there)
    with np.errstate(invalid="ignore"):
        return (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))


def drawn(setting: Setting, rng: np.random.Generator, draws: int) -> np.ndarray:
    """NUMBERS and mean gain, of the seeds as they are and of draws of them.   -> (1+draws,8)"""

    def times(n: int) -> np.ndarray:  # how often each seed counts
        return np.vstack([np.ones(n), rng.multinomial(n, np.full(n, 1 / n), size=draws)])

    sums = np.array([[own.get(key, 0) for key in KEYS] for own in setting["sums"]])
    x, gains = numbers(times(len(sums)) @ sums), setting.get("gains")
    if gains is None:
        mean, std = setting["normal"]
        y = np.append(mean, rng.normal(mean, std, size=draws))
    else:
        y = times(len(gains)) @ gains / len(gains)
    return np.column_stack([x, y])


def by_target(setting: Setting) -> list[Setting]:
    """A walk's runs by their target, which is seed mod 16."""
    return [
        Setting(sums=setting["sums"][leaf::16], gains=setting["gains"][leaf::16])
        for leaf in range(2**DEPTH)
    ]


def correlations(found: np.ndarray) -> np.ndarray:
    """The rank correlation of each number with the gain.   (draws,settings,8) -> (draws,7)"""
    return np.stack([spearman(found[..., i], found[..., -1]) for i in range(len(NUMBERS))], -1)


def estimated(scope: str, settings: list[Setting], draws: int) -> np.ndarray:
    """The statistic of a scope, and of bootstrap draws of its settings and seeds.

    -> (1+draws,7)
    """
    rng, n = np.random.default_rng(0), len(settings)
    chosen = np.vstack([np.arange(n), rng.integers(n, size=(draws, n))])  # (1+draws,settings)
    each = np.arange(1 + draws)[:, None]
    if scope != "target":
        found = np.stack([drawn(s, rng, draws) for s in settings], 1)  # (1+draws,settings,8)
        return correlations(found[each, chosen])
    of_targets = [np.stack([drawn(x, rng, draws) for x in by_target(s)], 1) for s in settings]
    found = np.stack([correlations(own) for own in of_targets], 1)  # (1+draws,settings,7)
    return np.nanmean(found[each, chosen], axis=1)


def of_scope(settings: list[Setting], scope: str) -> list[Setting]:
    """The settings that a scope is about."""
    if scope == "target":
        own = [s for s in settings if s["scope"] == "walk" and s["targets"] == "drawn"]
        return [s for s in own if s["n"] < 3]
    scopes = ("walk", "text") if scope == "all" else (scope,)
    return [s for s in settings if s["scope"] in scopes]


def named(names: Iterable[str], values: Iterable[float]) -> dict[str, float | None]:
    """Columns of a row, rounded; None for NaN."""
    pairs = zip(names, values, strict=True)
    return {name: None if np.isnan(x) else t.rounded(x) for name, x in pairs}


def tables(settings: list[Setting], draws: int = DRAWS) -> t.Tables:
    """settings: their numbers and gain; correlations: a row for each scope and number."""
    rows, found = [], []
    for s in settings:
        row = {k: v for k, v in s.items() if k not in ("sums", "gains", "normal")}
        row |= {"seeds": len(s["sums"])} | named(
            NUMBERS, drawn(s, np.random.default_rng(0), 0)[0, :-1]
        )
        if "normal" in s:
            mean, std = s["normal"]
            rows.append(row | named(GAIN, [mean, mean - 1.96 * std, mean + 1.96 * std]))
        else:
            rows.append(row | t.interval("gain", s["gains"], 4))
    for scope in SCOPES:
        own = of_scope(settings, scope)
        rho, *others = estimated(scope, own, draws)
        ends = np.nanquantile(others, [0.025, 0.975], axis=0)
        for name, *values in zip(NUMBERS, rho, *ends, strict=True):
            row = {"scope": scope, "number": name, "settings": len(own)}
            found.append(row | named(RHO, values))
    return {"settings": rows, "correlations": found}


@styled
def figure(found: t.Tables) -> Figure:
    """Correlations with their intervals, a panel per scope; below, gains over five numbers."""
    drawing, grid = panels(2, len(SCOPES), 13, 6.6)
    for ax, scope in zip(grid[0], SCOPES, strict=True):
        rows = t.select(found["correlations"], scope=scope)
        mean, distances = estimates(rows, *RHO)
        style = {"fmt": "o", "color": BLUE, "capsize": 3}
        ax.errorbar(mean, range(len(rows)), xerr=distances, **style)
        ax.axvline(0, color=INK, lw=0.8)
        ax.set(xlim=(-1.05, 1.05), ylim=(len(rows) - 0.5, -0.5), xlabel="rank correlation")
        titles = NUMBERS.values() if scope == SCOPES[0] else [""] * len(rows)
        ax.set_yticks(range(len(rows)), titles, fontsize=8)
        ax.set_title(f"{scope}: {rows[0]['settings']} settings", fontsize=10)
    looks = {"map": (SKY, ".", "walk, tabular"), "walk": (BLUE, "o", "walk, transformer")}
    looks["text"] = (ORANGE, "s", "text")
    for ax, name in zip(grid[1], SHOWN, strict=True):
        for scope, (colour, marker, label) in looks.items():
            rows = [
                row for row in t.select(found["settings"], scope=scope) if row[name] is not None
            ]
            x, y = [row[name] for row in rows], [row["gain"] for row in rows]
            style = {
                "ls": "",
                "marker": marker,
                "ms": 4,
                "mfc": "none" if marker == "o" else colour,
            }
            ax.plot(x, y, color=colour, label=label, **style)
        ax.axhline(0, color=INK, lw=0.8)
        ax.set_xlabel(NUMBERS[name], fontsize=9)
    grid[1, 0].set_ylabel("gain: λ-GRPO less GRPO")
    grid[1, 0].legend(fontsize=7.5)
    return drawing


def main() -> None:
    """Measure, and write predictiveness.json and predictiveness.png."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predictiveness")
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="FOLDER")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--any-code", action="store_true", help="take results of other code too")
    parser.add_argument("--only", choices=("walks", "texts"), help="measure these, and stop")
    a = parser.parse_args()
    cache = {"processes": a.processes, "cache": a.out / "predictiveness.cache.jsonl"}

    def jobs(function: Callable[..., Any], keys: list[dict], title: str) -> list:
        return run_jobs(function, keys, title=title, any_code=a.any_code, **cache)

    request = Request("predictiveness", a.out, processes=a.processes)
    settings = walks(jobs) if a.only != "texts" else []
    settings += texts(jobs, request) if a.only != "walks" else []
    if a.only:
        return
    found = tables(settings)
    write_tables(a.out / "predictiveness.json", found)
    save(figure(found), a.out / "predictiveness.png")
    print(t.show(found, {"correlations": "scope number settings rho±"}))


if __name__ == "__main__":
    main()
