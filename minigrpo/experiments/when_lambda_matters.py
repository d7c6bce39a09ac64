"""When does λ-GRPO matter, and why?   (results/README.md, "When does λ-GRPO matter?")

Ours: the paper has one start and one learning rate.

1. map      A tabular policy (a softmax for every prefix: nothing is shared, all targets are alike)
            and plain SGD: learning rate by start probability of the target by r_neg by n, GRPO and
            λ-GRPO on the same draws.  The small transformer's cells of `table1.py` stand on the
            same map, at the tabular rate that moves the log-odds of the moves as far (`moved`).
            A run is *lost* if it ends below one half, with a probability of the target's first n
            moves that brings less than one walk through them in 50 groups: then the rewards of
            nearly all groups are equal, and nothing more is learned.
2. family   Weights |λ|^-α, α from 0 (GRPO) to 1.5 (1 is λ-GRPO): tabular policy and transformer.
3. targets  The small transformer, by the target's pattern (a repeats the first move, b is the other
            one; exchanging L and R changes nothing): p(tail), the probability of the target given
            its first n moves, and how much of the push on the first move and on the tail comes from
            other positions of the tree, through shared parameters, by the gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from minigrpo.experiments import committed, many_walks, table1
from minigrpo.experiments import tables as t
from minigrpo.experiments import when_lambda_matters_figures as pictures
from minigrpo.experiments.controls import COMPARED
from minigrpo.experiments.many_policies import log_softmax_backward
from minigrpo.experiments.many_walks import DEPTH, GROUP_SIZE, LAST, moves_to, run_walks
from minigrpo.experiments.reproduce import Request
from minigrpo.experiments.table1 import CHUNK, RATES, frequency, summary
from minigrpo.experiments.tables import rounded

TABULAR_RATES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
UNIFORM = 1 / 2**DEPTH
STARTS = (0.001, 0.004, 1 / 64, UNIFORM, 0.25)
R_NEGS = (-0.5, -1.0, -1.5)
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
FAMILY_RATES = {"tabular": TABULAR_RATES, "transformer": RATES["adamw"][1:4]}
RUNS, EARLY, LONGER = 192, 50, (250, 500, 1000, 2000)
PUSHES = ("tail", "up_own", "up_other", "down_own", "down_other", "tail_own", "tail_other")
PATTERNS = ["a" + "".join("ab"[i >> 2 - j & 1] for j in range(3)) for i in range(8)]


def final_hits(hits: list[list[int]]) -> np.ndarray:
    """Target paths in the last 50 steps of each run, from those of every ten steps."""
    return np.array(hits)[:, -LAST // 10 :].sum(1)


def cell(
    policy: str, arm: str, n: int, r_neg: float, rate: float, start: float | None, runs: int
) -> dict[str, list]:
    """-> {"final": target paths in the last 50 steps of each run, "lost": has it lost the target}

    The optimiser is plain SGD for the tabular policy and AdamW for the transformer.
    """
    last: dict[str, np.ndarray] = {}

    def observe(model: Any, logp: np.ndarray, leaves: Any, rewards: Any, aim: np.ndarray) -> None:
        if leaves is None:
            last["prefix"] = np.exp(np.take_along_axis(logp, moves_to(aim)[:, :n], 1).sum(1))

    options = {"policy": policy, "start": start, "runs": runs, "observe": observe}
    optimizer = "sgd" if policy == "tabular" else "adamw"
    final = final_hits(run_walks(arm, n, r_neg, optimizer, rate, **options))
    lost = (final < LAST * GROUP_SIZE / 2) & (last["prefix"] < 1 / (LAST * GROUP_SIZE))
    return {"final": final.tolist(), "lost": lost.tolist()}


def moved(
    optimizer: str, learning_rate: float, policy: str = "transformer", runs: int = 32, steps=20
) -> float:
    """The rate of plain SGD at which a tabular policy's log-odds would move as far.

    Median over GRPO's first steps with n = 1, r_neg = -1, on the same groups, of ‖change of the 15
    log-odds‖ over that at rate 1.
    """
    before: list[Any] = []
    ratios: list[np.ndarray] = []

    def observe(model: Any, logp: np.ndarray, leaves: Any, rewards: Any, aim: np.ndarray) -> None:
        odds = logp[:, ::2] - logp[:, 1::2]
        if before:
            old, alone = before.pop()
            counts = alone > 0
            ratios.append(np.linalg.norm(odds - old, axis=1)[counts] / alone[counts])
        if leaves is not None:
            step = log_softmax_backward(many_walks.loss_gradient("grpo", leaves, rewards), logp)
            before.append((odds, np.linalg.norm(step[..., 0] - step[..., 1], axis=1)))

    options = {"policy": policy, "runs": runs, "steps": steps, "observe": observe}
    run_walks("grpo", 1, -1.0, optimizer, learning_rate, **options)
    return float(np.median(np.concatenate(ratios)))


def causes(arm: str, n: int, learning_rate: float, first_seed: int, runs: int) -> dict[str, list]:
    """The small transformer with AdamW: final target paths, p(tail) after 50 steps, and pushes.

    The push on x for a step of rate 1 along the plain gradient is -⟨dx/dθ, d loss/dθ⟩, summed over
    steps.  Its part `own` comes from the nodes at which x's moves are made, `other` from all
    others, through shared parameters.  tail_*: x = log p(tail), the first 50 steps.  up_*, down_*:
    x is the log-odds of the first move, the steps in which its whole push is up or down.
    """
    seen: dict[str, Any] = {name: np.zeros(runs) for name in PUSHES}
    steps = [0]

    def observe(model: Any, logp: np.ndarray, leaves: Any, rewards: Any, aim: np.ndarray) -> None:
        steps[0] += 1
        if leaves is None:
            return
        path, dlogp = moves_to(aim), many_walks.loss_gradient(arm, leaves, rewards)
        own, other = pushes(model, dlogp, path[:, :1], -1.0)
        for way, chosen in (("up", own + other > 0), ("down", own + other < 0)):
            seen[f"{way}_own"] += own * chosen
            seen[f"{way}_other"] += other * chosen
        if steps[0] <= EARLY:
            seen["tail"] = np.exp(np.take_along_axis(logp, path[:, n:], 1).sum(1))
            own, other = pushes(model, dlogp, path[:, n:], 0.0)
            seen["tail_own"] += own
            seen["tail_other"] += other

    options = {"runs": runs, "first_seed": first_seed, "observe": observe}
    final = final_hits(run_walks(arm, n, -1.0, "adamw", learning_rate, **options))
    return {"final": final.tolist()} | {name: values.tolist() for name, values in seen.items()}


def pushes(model: Any, dlogp: np.ndarray, moves: np.ndarray, against: float) -> list[np.ndarray]:
    """-⟨dx/dθ, d loss/dθ⟩, from the nodes at which x's moves are made and from all others.

    x is the sum of log p over the moves, plus `against` times that of the other move at the same
    nodes (-1: log-odds).   dlogp (runs,moves), moves (runs,·) -> (runs,), (runs,)
    """
    x, here = np.zeros_like(dlogp), np.zeros_like(dlogp)
    for those, factor in ((moves, 1.0), (moves ^ 1, against)):
        np.put_along_axis(x, those, factor, 1)
        np.put_along_axis(here, those, 1.0, 1)
    slope = model.gradients(x).reshape(len(x), -1).astype(np.float64)
    parts = (dlogp * here, dlogp * (1 - here))
    return [-(model.gradients(part).reshape(len(x), -1) * slope).sum(1) for part in parts]


def longer(arm: str, learning_rate: float, runs: int) -> list[float]:
    """The share of tabular runs, n = 1, r_neg = -1, that found the target after LONGER steps."""
    options = {"policy": "tabular", "runs": runs, "steps": LONGER[-1]}
    hits = np.array(run_walks(arm, 1, -1.0, "sgd", learning_rate, **options))
    windows = [hits[:, (steps - LAST) // 10 : steps // 10].sum(1) for steps in LONGER]
    return [rounded((window > LAST * GROUP_SIZE / 2).mean()) for window in windows]


def needed(r_neg: float) -> float:
    """p(tail) from which on a walk through the first n moves earns more than one elsewhere.

    p + (1 - p)·r_neg > 0.7
    """
    return (many_walks.R_OTHER - r_neg) / (1 - r_neg)


def outcome(found: dict[str, list]) -> dict[str, Any]:
    """Mean frequency, interval, shares of runs that found the target, lost it, never drew it."""
    shares = {"lost": np.mean(found["lost"]), "zero": np.mean(np.array(found["final"]) == 0)}
    shares = {name: rounded(x) for name, x in shares.items()}
    return summary(frequency("grpo", found["final"])) | shares


def map_table(cells: dict[tuple, dict[str, list]]) -> list[t.Row]:
    """GRPO and λ-GRPO side by side for every (n, r_neg, rate, start), and their difference."""
    rows = []
    for n, r_neg, rate, start in dict.fromkeys(key[1:] for key in cells):
        both = {arm: cells[arm, n, r_neg, rate, start] for arm in COMPARED}
        values = [frequency("grpo", found["final"]) for found in both.values()]
        row: t.Row = {"n": n, "r_neg": r_neg, "learning_rate": rate, "start": rounded(start)}
        row["runs"] = len(values[0])
        for arm, found in both.items():
            row |= {f"{arm}_{name}": value for name, value in outcome(found).items()}
        difference = table1.paired(*values)
        row |= {name: difference[name] for name in ("difference", "low", "high", "p")}
        if start == UNIFORM:
            row |= table1.beside_the_paper(n, r_neg, *values)
        rows.append(row)
    return rows


def targets_table(runs: dict[tuple[str, int], dict[str, list[float]]]) -> list[t.Row]:
    """By objective, n and pattern of the target: outcome, p(tail) after 50 steps, and pushes.

    A policy that has all but decided has pushes a thousand times those of others, hence medians
    over runs (with 95 % bootstrap intervals).
    """
    rows = []
    for (arm, n), found in runs.items():
        leaf = np.arange(len(found["final"])) % 2**DEPTH
        pattern = np.where(leaf >= 8, 15 - leaf, leaf)  # exchanging L and R, it begins with L
        for i, name in enumerate(PATTERNS):
            own = {part: np.array(values)[pattern == i] for part, values in found.items()}
            size = len(own["final"])
            row: t.Row = {"objective": arm, "n": n, "pattern": name, "runs": size}
            row |= summary(frequency("grpo", own["final"]))
            drawn = np.random.default_rng(0).integers(size, size=(2000, size))
            for part in PUSHES:
                ends = np.quantile(np.median(own[part][drawn], axis=1), [0.025, 0.975])
                row[part] = rounded(np.median(own[part]))
                row[f"{part}_low"], row[f"{part}_high"] = map(rounded, ends)
            rows.append(row)
    return rows


def text(tables: t.Tables) -> str:
    """The tables for a terminal, the map's cells in favour of one objective only."""
    decided = [row for row in tables["map"] if row["low"] > 0 or row["high"] < 0]
    both = " ".join(f"{arm}_target_frequency" for arm in COMPARED)
    found = " ".join(f"found_{steps}" for steps in LONGER)
    columns = {
        "map": f"n r_neg learning_rate start {both} difference low high",
        "moved": "optimizer learning_rate tabular_rate",
        "longer": f"objective learning_rate {found}",
        "family": "policy n learning_rate alpha target_frequency",
        "targets": f"objective n pattern target_frequency {' '.join(PUSHES)}",
    }
    return t.show(tables | {"map": decided}, columns)


def figures(tables: t.Tables) -> dict[str, Figure]:
    """The map with the cells of the published table 1 on it, the family, and the targets."""
    rates = {(r["optimizer"], r["learning_rate"]): r["tabular_rate"] for r in tables["moved"]}
    marks = [
        row | {"x": rates[key]}
        for row in t.select(committed("results/table1.json")["comparison"], rates="same")
        if row["targets"] == "drawn" and (key := (row["optimizer"], row["grpo_rate"])) in rates
    ]
    return {
        "when": pictures.map_figure(tables["map"], marks),
        "when-family": pictures.family_figure(tables["family"]),
        "when-targets": pictures.targets_figure(tables["targets"], needed(-1.0)),
    }


def run(request: Request) -> t.Tables:
    """Map, family and targets (quick: fewer cells and runs).   seeds: runs, a multiple of 32"""
    quick = request.quick
    number = table1.balanced(request.seeds or (CHUNK if quick else RUNS))

    def jobs(function: Any, keys: list[tuple], names: str, title: str) -> list:
        each = [dict(zip(names.split(), key, strict=True)) for key in keys]
        return request.jobs(function, each, title)

    ns = (1,) if quick else (1, 2)
    settings = [(1, -1.0)] if quick else [(n, r_neg) for n in ns for r_neg in R_NEGS]
    rates, starts = (TABULAR_RATES[::2], STARTS[2:4]) if quick else (TABULAR_RATES, STARTS)
    at = [(*pair, rate, start) for pair in settings for rate in rates for start in starts]
    keys = [(arm, *cell_at) for cell_at in at for arm in COMPARED]
    names = "policy arm n r_neg rate start runs"
    found = jobs(cell, [("tabular", *key, number) for key in keys], names, "map")
    cells = dict(zip(keys, found, strict=True))

    family = [
        {"policy": policy, "alpha": alpha, "n": n, "r_neg": -1.0, "learning_rate": rate}
        for policy, each in FAMILY_RATES.items()
        for n in ns
        for rate in (each[1:3] if quick else each)
        for alpha in (ALPHAS[::2] if quick else ALPHAS)
    ]
    of = [(r["policy"], f"alpha={r['alpha']:g}", r["n"], -1.0, r["learning_rate"]) for r in family]
    outcomes = jobs(cell, [(*key, None, number) for key in of], names, "family")

    sweep = [(name, x) for name, each in RATES.items() for x in (each[2:3] if quick else each)]
    steps = jobs(moved, sweep, "optimizer learning_rate", "rates")
    long = [(arm, x) for x in ((1.0,) if quick else (1.0, 3.0, 10.0, 30.0)) for arm in COMPARED]
    shares = jobs(longer, [(*key, number) for key in long], "arm learning_rate runs", "longer")

    kinds = [(arm, n) for n in ns for arm in COMPARED]
    parts = [
        (*k, RATES["adamw"][2], first, CHUNK) for k in kinds for first in range(0, number, CHUNK)
    ]
    pieces = iter(jobs(causes, parts, "arm n learning_rate first_seed runs", "targets"))
    runs = {}
    for kind in kinds:
        own = [next(pieces) for _ in range(number // CHUNK)]
        runs[kind] = {name: [x for piece in own for x in piece[name]] for name in own[0]}
    return {
        "map": map_table(cells),
        "family": [
            row | {"runs": number} | outcome(o) for row, o in zip(family, outcomes, strict=True)
        ],
        "moved": [
            {"optimizer": name, "learning_rate": rate, "tabular_rate": rounded(x)}
            for (name, rate), x in zip(sweep, steps, strict=True)
        ],
        "longer": [
            {"objective": arm, "learning_rate": rate, "runs": number}
            | {f"found_{s}": x for s, x in zip(LONGER, each, strict=True)}
            for (arm, rate), each in zip(long, shares, strict=True)
        ],
        "targets": targets_table(runs),
    }
