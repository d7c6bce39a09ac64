"""SmolLM2-135M on the paper's tree walk: each of the 16 targets once for GRPO and once for λ-GRPO, at three learning rates.

Needs the extra `lm` and `minigrpo pull smollm2`.  Three rows are left of the embedding, which is also the head: "L", "R" and the
start token "<|im_start|>", which is the root and cannot be drawn; all layers are as they were pretrained.  The paper's policy is
GPT-2-small, its learning rate 1e-5.  Here r_neg = -1 throughout; the rate for n = 2 is the one that is best at n = 1.

A target's two runs use the same random numbers, so objectives are compared target by target: their mean difference, and an exact
sign test, p = P(as few or fewer on the rarer side), both sides, each side having chance 1/2, without the targets that tie.
The full experiment takes some five hours on one core.  Finished runs are kept in smollm2-walk.runs.jsonl: `report` makes table
and figure from those that are there, and the next start goes on from them: also where the code has
changed since, which it then says on stderr (delete the file to run all of them anew).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from minigrpo.experiments import write_tables
from minigrpo.experiments.arms import TITLES
from minigrpo.experiments.many_walks import DEPTH, GROUP_SIZE, path_logp, train
from minigrpo.experiments.parallel import read_cache, run_jobs
from minigrpo.experiments.table1 import sign_test
from minigrpo.experiments.trees import interval
from minigrpo.experiments.walk_policies import BOS, OneModel
from minigrpo.models import load_model
from minigrpo.show.drawing import LINES, STYLE
from minigrpo.show.plots import save
from minigrpo.transformer import Transformer

MODEL, ROWS, COMPARED = "smollm2", ("L", "R", "<|im_start|>"), ("grpo", "lambda_grpo")
RATES, R_NEG = (1e-5, 3e-6, 3e-5), -1.0
STEPS, EDGE = 250, 50  # EDGE: the first and last steps that the table looks at
TARGETS = ["".join(moves) for moves in product("LR", repeat=4)]

Found = dict[
    tuple[int, float, float, str], dict[str, Any]
]  # (n, r_neg, learning rate, objective) -> {target: result of `walk`}


def walk(
    target: str,
    objective: str,
    n: int,
    r_neg: float,
    learning_rate: float,
    seed: int | None = None,
    steps: int = STEPS,
) -> dict[str, Any]:
    """Train on the walk to a target.   -> log p(target) before training, target paths in each step's group

    The random numbers are seeded by the target's place among all paths, unless a seed is given.
    """
    aim, starts = np.array([TARGETS.index(target)]), []
    policy = OneModel(_walker(), np.array([BOS]), DEPTH)

    def observe(model: OneModel, logp: np.ndarray, *_: Any) -> None:
        starts.append(logp)

    seeds = [int(aim[0]) if seed is None else seed]
    hits = train(policy, objective, aim, seeds, n, r_neg, "adamw", learning_rate, steps, observe)
    return {"log_start": float(path_logp(starts[0])[0, aim[0]]), "hits": hits[0].tolist()}


def _walker() -> Transformer:
    pretrained = _pretrained()
    model = Transformer(pretrained.config, seed=None)
    model.parameters.flat[:] = pretrained.parameters.flat
    return model


@cache
def _pretrained() -> Transformer:
    whole, tokenizer = load_model(MODEL)
    return cut(whole, [int(tokenizer.encode(text)[0]) for text in ROWS])


def cut(whole: Transformer, rows: Sequence[int]) -> Transformer:
    """A model with these rows of another's embedding and head only, and the last of them masked."""
    model = Transformer(
        replace(whole.config, vocab_size=len(rows), n_drawable=len(rows) - 1),
        seed=None,
        dtype=str(whole.dtype),
    )
    for name, view in model.parameters.items():
        view[...] = (
            whole.parameters[name][rows]
            if name.startswith(("model.embed", "lm_head"))
            else whole.parameters[name]
        )
    return model


# -- what is shown -------------------------------------------------------------------------------------------------------


def table(found: Found, steps: int = STEPS) -> dict[str, list[dict[str, Any]]]:
    """A row for each setting and objective; two for each setting in which both have run.   Intervals: over targets, 95 %

    targets             how many of the 16 are done                 found         the share of them that end above 1/2
    target_frequency    mean of the last 50 steps                   first         mean of the first 50 steps
    of_target           {target: its last 50 steps}                 start         {target: its probability before training}
    difference          λ-GRPO - GRPO of the targets that both have, over the last or the first 50 `steps`, and of how many of
                        them it is above and below 0; p_sign of the exact sign test
    An interval of fewer than two targets is None.
    """
    edge = min(EDGE, steps // 2)
    rows, pairs = [], []
    for key, runs in found.items():
        hits = np.array([runs[target]["hits"] for target in runs]) / GROUP_SIZE  # (targets, steps)
        last = hits[:, -edge:].mean(1)
        row = dict(zip(("n", "r_neg", "learning_rate", "objective"), key, strict=True)) | {
            "targets": len(runs)
        }
        row |= _over_targets("target_frequency", last) | {"found": float(np.mean(last > 0.5))}
        row |= _over_targets("first", hits[:, :edge].mean(1)) | {
            "of_target": dict(zip(runs, last.round(5).tolist(), strict=True))
        }
        rows.append(
            row
            | {
                "start": {
                    target: float(f"{math.exp(runs[target]['log_start']):.4g}") for target in runs
                }
            }
        )
    for setting in dict.fromkeys(key[:3] for key in found):
        grpo, fixed = (
            {t: r["hits"] for t, r in found.get((*setting, o), {}).items()} for o in COMPARED
        )
        both = [target for target in grpo if target in fixed]
        for part, those in (("last", slice(-edge, None)), ("first", slice(edge))) if both else ():
            difference = np.array([sum(fixed[t][those]) - sum(grpo[t][those]) for t in both])
            above, below = int((difference > 0).sum()), int((difference < 0).sum())
            row = dict(zip(("n", "r_neg", "learning_rate"), setting, strict=True)) | {
                "steps": part,
                "targets": len(both),
            }
            row |= _over_targets("difference", difference / (edge * GROUP_SIZE)) | {
                "above": above,
                "below": below,
            }
            pairs.append(row | {"p_sign": float(f"{sign_test(above, below):.4g}")})
    return {"runs": rows, "paired": pairs}


def _over_targets(name: str, values: np.ndarray) -> dict[str, float | None]:
    row = interval(name, values.tolist(), 4)
    return row if len(values) > 1 else row | {f"{name}_low": None, f"{name}_high": None}


def figure(found: dict[str, list[dict[str, Any]]]) -> Figure:
    """The target frequency of both objectives, a panel for each setting, a line for each target, likely ones at the top."""
    rows = found["runs"]
    start = {target: p for row in rows for target, p in row["start"].items()}
    targets = sorted(start, key=start.__getitem__)
    settings = list(dict.fromkeys((row["n"], row["learning_rate"]) for row in rows))
    with matplotlib.rc_context(STYLE):
        drawn = Figure(
            figsize=(2.0 + 2.7 * len(settings), 1.7 + 0.24 * len(targets)), layout="constrained"
        )
        axes = drawn.subplots(1, len(settings), sharey=True, squeeze=False)[0]
        for setting, ax in zip(settings, axes, strict=True):
            own = {
                row["objective"]: row for row in rows if (row["n"], row["learning_rate"]) == setting
            }
            for i, target in enumerate(targets):
                ends = [
                    row["of_target"][target] for row in own.values() if target in row["of_target"]
                ]
                if ends:
                    ax.plot([min(ends), max(ends)], [i, i], color="0.7", lw=2, zorder=1)
                else:
                    ax.text(0.5, i, "not run", color="0.4", ha="center", va="center", fontsize=7)
            for objective, row in own.items():
                colour, _, marker = LINES[COMPARED.index(objective)]
                shift = 0.13 * (
                    1 - 2 * COMPARED.index(objective)
                )  # so that neither hides the other
                places = [targets.index(target) + shift for target in row["of_target"]]
                label = f"{TITLES[objective]}: mean {row['target_frequency']:.2f}, {row['targets']} targets"
                ax.plot(
                    list(row["of_target"].values()),
                    places,
                    marker,
                    color=colour,
                    ms=5,
                    mfc=colour,
                    mec="white",
                    label=label,
                )
            ax.set(title=f"n = {setting[0]}, learning rate {setting[1]:g}", xlim=(-0.05, 1.05))
            ax.set_xlabel(f"target paths in the last {EDGE} steps, share")
            ax.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.1), frameon=False)
        axes[0].set_yticks(
            range(len(targets)), [f"{target}  {start[target]:.3f}" for target in targets]
        )
        axes[0].set_ylabel("target, its probability before training")
    return drawn


def text(found: dict[str, list[dict[str, Any]]]) -> str:
    """The tables for a terminal."""
    lines = [
        f"SmolLM2, r_neg = {R_NEG:g}: target frequency of the last {EDGE} steps, mean over targets [95 % interval]"
    ]
    for r in found["runs"]:
        where = f"n = {r['n']}  {r['learning_rate']:<6g} {r['objective']:12}"
        rest = f"found {r['found']:.0%}, first {EDGE} steps {r['first']:.3f}, {_done(r)}"
        lines.append(f"  {where} {_with_interval(r, 'target_frequency')}  {rest}")
    lines += ["λ-GRPO - GRPO, target by target"] if found["paired"] else []
    for r in found["paired"]:
        signs = f"{r['above']} up, {r['below']} down, sign test p = {r['p_sign']:.2g}, {_done(r)}"
        where = f"n = {r['n']}  {r['learning_rate']:<6g} {r['steps']:5} {EDGE} steps"
        lines.append(f"  {where} {_with_interval(r, 'difference')}  {signs}")
    return "\n".join(lines)


def _done(row: dict[str, Any]) -> str:
    return f"{row['targets']} of {len(TARGETS)} targets"


def _with_interval(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:6.3f} " + ("[one target]" if low is None else f"[{low:.3f}, {high:.3f}]")


# -- all of it -----------------------------------------------------------------------------------------------------------


def finished(file: Path) -> Found:
    """The full runs that a cache holds, settings in the order of the first, targets in theirs."""
    found: Found = {}
    for record in read_cache(file) if file.exists() else []:
        module, name, job = json.loads(record["job"])
        if (module, name) == (__name__, "walk") and not {"seed", "steps"} & set(job):
            key = job["n"], job["r_neg"], job["learning_rate"], job["objective"]
            found.setdefault(key, {})[job["target"]] = record["result"]
    order = sorted(
        found,
        key=lambda key: (
            key[0],
            RATES.index(key[2]) if key[2] in RATES else 9,
            COMPARED.index(key[3]),
        ),
    )
    return {key: {target: found[key][target] for target in sorted(found[key])} for key in order}


def report(out: Path) -> str:
    """Write table and figure from the full runs that are finished.   -> text   Raises ValueError if there are none."""
    found = finished(out / "smollm2-walk.runs.jsonl")
    if not found:
        raise ValueError(
            f"{out} holds no finished run of this experiment: start it with minigrpo reproduce smollm2-walk"
        )
    return _write(out, table(found))


def _write(out: Path, result: dict[str, list[dict[str, Any]]]) -> str:
    write_tables(out / "smollm2-walk.json", result)
    save(figure(result), out / "smollm2-walk.png")
    return text(result)


def best_rate(result: Mapping[str, list[dict[str, Any]]], n: int = 1) -> float:
    """The learning rate with the highest target frequency at n, both objectives taken together."""
    rates = [
        (row["target_frequency"], row["learning_rate"]) for row in result["runs"] if row["n"] == n
    ]
    return max(RATES, key=lambda rate: sum(frequency for frequency, r in rates if r == rate))


def run(
    out: Path, *, quick: bool = False, seeds: int | None = None, processes: int | None = None
) -> str:
    """All targets at n = 1 and each rate, then at n = 2 and the best (quick: two targets, 20 steps, one rate).

    seeds: so many of the 16 targets, which lie evenly among them; each is run once.
    """
    cache = out / "smollm2-walk.runs.jsonl"
    options: dict[str, Any] = {"title": "SmolLM2, tree walk", "processes": processes}
    options |= {"cache": cache, "any_code": True}
    many = min(seeds or (2 if quick else 16), 16)
    targets = [TARGETS[(2 * i + 1) * 16 // (2 * many)] for i in range(many)]
    steps = {"steps": 20} if quick else {}

    def runs(n: int, rate: float) -> Found:
        keys = list(product(targets, COMPARED))
        setting = {"n": n, "r_neg": R_NEG, "learning_rate": rate}
        results = run_jobs(
            walk, [setting | {"target": t, "objective": o} | steps for t, o in keys], **options
        )
        done = dict(zip(keys, results, strict=True))
        return {(n, R_NEG, rate, o): {t: done[t, o] for t in targets} for o in COMPARED}

    found = runs(1, RATES[0])
    if quick:
        return _write(out, table(found, 20))
    for rate in RATES[1:]:
        _write(out, table(found))  # also before the long rest is done
        found |= runs(1, rate)
    _write(out, table(found))
    return _write(out, table(found | runs(2, best_rate(table(found)))))
