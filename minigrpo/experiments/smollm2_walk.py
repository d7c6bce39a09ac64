"""Does SmolLM2-135M find the target of the paper's walk?   (results/README.md, "A real …")

Each of the 16 targets once for GRPO and once for λ-GRPO, at three learning rates.  Needs the extra
`lm` and `minigrpo pull smollm2`.  Three rows are left of the embedding, which is also the head:
"L", "R" and the start token "<|im_start|>", the root, which cannot be drawn; all layers are as
pretrained.  The paper's policy is GPT-2-small, its learning rate 1e-5.  Here r_neg = -1
throughout; the rate for n = 2 is the one that is best at n = 1.

A target's two runs use the same random numbers, so objectives are compared target by target: their
mean difference, and an exact sign test without the targets that tie.  The full experiment takes
some five hours on one core.  Finished runs are kept in smollm2-walk.runs.jsonl, and the next start
goes on from them: also where the code has changed since, which it then says on stderr (delete the
file to run all of them anew).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from minigrpo.experiments import tables as t
from minigrpo.experiments.controls import COMPARED, TITLES
from minigrpo.experiments.figures import look, panels, styled
from minigrpo.experiments.many_policies import BOS, OneModel
from minigrpo.experiments.many_walks import DEPTH, GROUP_SIZE, path_logp, train
from minigrpo.experiments.parallel import run_jobs
from minigrpo.experiments.reproduce import Request, publish
from minigrpo.models import load_model
from minigrpo.transformer import Transformer

MODEL, ROWS = "smollm2", ("L", "R", "<|im_start|>")
RATES, R_NEG = (1e-5, 3e-6, 3e-5), -1.0
STEPS, EDGE = 250, 50  # EDGE: the first and last steps that the table looks at
TARGETS = ["".join(moves) for moves in product("LR", repeat=4)]
SETTING = ("n", "r_neg", "learning_rate")
Found = dict[tuple[int, float, float, str], dict[str, Any]]  # SETTING, objective: {target: a walk}


def walk(
    target: str,
    objective: str,
    n: int,
    r_neg: float,
    learning_rate: float,
    seed: int | None = None,
    steps: int = STEPS,
) -> dict[str, Any]:
    """Train to a target.   -> log p(target) before training, target paths in each step's group

    The random numbers are seeded by the target's place among all paths, unless a seed is given.
    """
    aim = np.array([TARGETS.index(target)])
    walker = cut(_pretrained(), range(len(ROWS)))  # a copy
    policy = OneModel(walker, np.array([BOS]), DEPTH)
    start = path_logp(policy.logp())[0, aim[0]]
    seeds = [int(aim[0]) if seed is None else seed]
    hits = train(policy, objective, aim, seeds, n, r_neg, "adamw", learning_rate, steps)
    return {"log_start": float(start), "hits": hits[0].tolist()}


@cache
def _pretrained() -> Transformer:
    whole, tokenizer = load_model(MODEL)
    return cut(whole, [int(tokenizer.encode(text)[0]) for text in ROWS])


def cut(whole: Transformer, rows: Sequence[int]) -> Transformer:
    """A model with these rows of another's embedding and head only, and the last of them masked."""
    config = replace(whole.config, vocab_size=len(rows), n_drawable=len(rows) - 1)
    model = Transformer(config, seed=None, dtype=str(whole.dtype))
    for name, view in model.parameters.items():
        has_rows = name.startswith(("model.embed", "lm_head"))
        view[...] = whole.parameters[name][rows] if has_rows else whole.parameters[name]
    return model


def table(found: Found, steps: int = STEPS) -> t.Tables:
    """A row for each setting and objective; two for each setting in which both have run.

    targets             how many of the 16 are done
    found               the share of them that end above 1/2
    target_frequency    mean of the last 50 steps, and `first` of the first 50; intervals over
                        targets, None for one target
    of_target, start    {target: its last 50 steps}, {target: its probability before training}
    difference          λ-GRPO - GRPO of the targets that both have, over the last or first 50
                        `steps`; of how many it is above and below 0; p_sign of the sign test
    """
    edge = min(EDGE, steps // 2)
    rows, pairs = [], []
    for key, runs in found.items():
        hits = np.array([run["hits"] for run in runs.values()]) / GROUP_SIZE  # (targets,steps)
        last = hits[:, -edge:].mean(1)
        row: t.Row = dict(zip((*SETTING, "objective"), key, strict=True)) | {"targets": len(runs)}
        row |= _over_targets("target_frequency", last) | {"found": float(np.mean(last > 0.5))}
        row |= _over_targets("first", hits[:, :edge].mean(1))
        row["of_target"] = dict(zip(runs, last.round(5).tolist(), strict=True))
        row["start"] = {x: t.rounded(math.exp(run["log_start"])) for x, run in runs.items()}
        rows.append(row)
    for setting in dict.fromkeys(key[:3] for key in found):
        grpo, fixed = (found.get((*setting, objective), {}) for objective in COMPARED)
        both = [target for target in grpo if target in fixed]
        for part, those in (("last", slice(-edge, None)), ("first", slice(edge))) if both else ():
            sums = [[sum(runs[x]["hits"][those]) for x in both] for runs in (grpo, fixed)]
            difference = np.subtract(sums[1], sums[0])
            above, below = int((difference > 0).sum()), int((difference < 0).sum())
            row = dict(zip(SETTING, setting, strict=True)) | {"steps": part, "targets": len(both)}
            row |= _over_targets("difference", difference / (edge * GROUP_SIZE))
            p = t.rounded(t.sign_test(above, below))
            pairs.append(row | {"above": above, "below": below, "p_sign": p})
    return {"runs": rows, "paired": pairs}


def _over_targets(name: str, values: np.ndarray) -> dict[str, float | None]:
    row = t.interval(name, values, 4)
    return row if len(values) > 1 else row | {f"{name}_low": None, f"{name}_high": None}


@styled
def figures(found: t.Tables) -> dict[str, Figure]:
    """The target frequency of both objectives, a panel per setting, likely targets at the top."""
    rows = found["runs"]
    start = {target: p for row in rows for target, p in row["start"].items()}
    targets = sorted(start, key=start.__getitem__)
    settings = t.distinct(rows, "n", "learning_rate")
    size = 2.0 + 2.7 * len(settings), 1.7 + 0.24 * len(targets)
    figure, (axes,) = panels(1, len(settings), *size, sharey=True)
    for (n, rate), ax in zip(settings, axes, strict=True):
        own = t.select(rows, n=n, learning_rate=rate)
        for i, target in enumerate(targets):
            ends = [row["of_target"][target] for row in own if target in row["of_target"]]
            if ends:
                ax.plot([min(ends), max(ends)], [i, i], color="0.7", lw=2, zorder=1)
            else:
                ax.text(0.5, i, "not run", color="0.4", ha="center", va="center", fontsize=7)
        for row in own:
            number = COMPARED.index(row["objective"])
            shift = 0.13 * (1 - 2 * number)  # so that neither hides the other
            places = [targets.index(target) + shift for target in row["of_target"]]
            told = f"mean {row['target_frequency']:.2f}, {row['targets']} targets"
            style = look(number) | {"ls": "", "ms": 5, "mec": "white"}
            style["label"] = f"{TITLES[row['objective']]}: {told}"
            ax.plot(list(row["of_target"].values()), places, **style)
        ax.set(title=f"n = {n}, learning rate {rate:g}", xlim=(-0.05, 1.05))
        ax.set_xlabel(f"target paths in the last {EDGE} steps, share")
        ax.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.1), frameon=False)
    axes[0].set_yticks(range(len(targets)), [f"{x}  {start[x]:.3f}" for x in targets])
    axes[0].set_ylabel("target, its probability before training")
    return {"smollm2-walk": figure}


def text(found: t.Tables) -> str:
    """The tables for a terminal."""
    setting = "n learning_rate"
    runs = f"{setting} objective target_frequency± first found targets"
    paired = f"{setting} steps difference± above below p_sign targets"
    return t.show(found, {"runs": runs, "paired": paired})


def best_rate(found: t.Tables) -> float:
    """The learning rate with the highest target frequency at n = 1, both objectives together."""
    own = {rate: t.select(found["runs"], n=1, learning_rate=rate) for rate in RATES}
    return max(RATES, key=lambda rate: sum(row["target_frequency"] for row in own[rate]))


def run(request: Request) -> t.Tables:
    """All targets at n = 1 and each rate, then at n = 2 and the best.

    Table and figure are also written before the long rest is done.   quick: two targets, 20 steps,
    one rate.  seeds: so many of the 16 targets, which lie evenly among them.
    """
    options: dict[str, Any] = {"title": "SmolLM2, tree walk", "processes": request.processes}
    options |= {"cache": request.out / "smollm2-walk.runs.jsonl", "any_code": True}
    many = request.seeds or (2 if request.quick else 16)
    if many > 16:
        raise ValueError(f"{many} seeds, but there are 16 targets, each run once: take at most 16")
    targets = [TARGETS[(2 * i + 1) * 16 // (2 * many)] for i in range(many)]
    steps = {"steps": 20} if request.quick else {}

    def runs(n: int, rate: float) -> Found:
        keys = list(product(targets, COMPARED))
        setting = {"n": n, "r_neg": R_NEG, "learning_rate": rate} | steps
        jobs = [setting | {"target": target, "objective": name} for target, name in keys]
        done = dict(zip(keys, run_jobs(walk, jobs, **options), strict=True))
        return {(n, R_NEG, rate, o): {x: done[x, o] for x in targets} for o in COMPARED}

    found = runs(1, RATES[0])
    if request.quick:
        return table(found, 20)
    for rate in RATES[1:]:
        publish("smollm2-walk", table(found), request.out)
        found |= runs(1, rate)
    publish("smollm2-walk", table(found), request.out)
    return table(found | runs(2, best_rate(table(found))))
