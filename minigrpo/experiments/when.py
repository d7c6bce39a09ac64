"""When does λ-GRPO matter, and why?   (Ours: the paper has one start and one learning rate.)

1. map      A tabular policy (a softmax for every prefix: nothing is shared and all targets are alike), plain SGD: learning rate
            by start probability of the target by r_neg by n, GRPO and λ-GRPO on the same draws.  The small transformer's cells
            of `table1.py` stand on the same map at the tabular rate that moves the log-odds of the moves as far (`moved`).
            A run is *lost* if it ends below one half, with a probability of the target's first n moves that brings less than one
            walk through them in 50 groups: then the rewards of nearly all groups are equal, and nothing more is learned.
2. family   Weights |λ|^-α, α from 0 (GRPO) to 1.5, 1 being λ-GRPO: the tabular policy and the small transformer.
3. targets  The small transformer, by the target's pattern (a repeats the first move, b is the other one; exchanging L and R
            changes nothing): p(tail), the probability of the target given its first n moves, and how much of the push on the
            first move and on the tail comes from other positions of the tree, through shared parameters, by the gradient.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minigrpo.experiments import write_tables
from minigrpo.experiments.many_walks import (
    DEPTH,
    GROUP_SIZE,
    LAST,
    R_OTHER,
    loss_gradient,
    moves_to,
    run_walks,
)
from minigrpo.experiments.parallel import run_jobs
from minigrpo.experiments.table1 import (
    CHUNK,
    COMPARED,
    RATES,
    beside_the_paper,
    digits,
    frequency,
    sign_test,
    summary,
)
from minigrpo.experiments.walk_policies import log_softmax_backward
from minigrpo.experiments.when_plots import family_figure, map_figure, targets_figure
from minigrpo.show.plots import bootstrap_interval, save

TABULAR_RATES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
UNIFORM = 1 / 2**DEPTH
STARTS = (0.001, 0.004, 1 / 64, UNIFORM, 0.25)
R_NEGS = (-0.5, -1.0, -1.5)
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
FAMILY_RATES = {"tabular": TABULAR_RATES, "transformer": RATES["adamw"][1:4]}
RUNS, EARLY, LONGER = 192, 50, (250, 500, 1000, 2000)
PUSHES = ("tail", "up_own", "up_other", "down_own", "down_other", "tail_own", "tail_other")
PATTERNS = ["a" + "".join("ab"[i >> 2 - j & 1] for j in range(3)) for i in range(8)]


def cell(
    policy: str,
    arm: str,
    n: int,
    r_neg: float,
    optimizer: str,
    learning_rate: float,
    start: float | None,
    runs: int,
) -> dict:
    """-> {"final": target paths in the last 50 steps of each run, "lost": whether it has lost the target}"""
    last: dict[str, np.ndarray] = {}

    def observe(model: Any, logp: np.ndarray, leaves: Any, rewards: Any, aim: np.ndarray) -> None:
        if leaves is None:
            last["prefix"] = np.exp(np.take_along_axis(logp, moves_to(aim)[:, :n], 1).sum(1))

    options = {"policy": policy, "start": start, "runs": runs, "observe": observe}
    hits = run_walks(arm, n, r_neg, optimizer, learning_rate, **options)
    final = np.array(hits)[:, -LAST // 10 :].sum(1)
    lost = (final < LAST * GROUP_SIZE / 2) & (last["prefix"] < 1 / (LAST * GROUP_SIZE))
    return {"final": final.tolist(), "lost": lost.tolist()}


def moved(
    optimizer: str,
    learning_rate: float,
    policy: str = "transformer",
    runs: int = 32,
    steps: int = 20,
) -> float:
    """The rate of plain SGD at which a tabular policy's log-odds would move as far on the same groups: median over steps.

    The transformer's, from GRPO's first steps with n = 1, r_neg = -1; ‖change of the 15 log-odds‖ over that at rate 1.
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
            step = log_softmax_backward(
                loss_gradient("grpo", leaves, rewards, np.random.default_rng(0)), logp
            )
            before.append((odds, np.linalg.norm(step[..., 0] - step[..., 1], axis=1)))

    run_walks(
        "grpo",
        1,
        -1.0,
        optimizer,
        learning_rate,
        policy=policy,
        runs=runs,
        steps=steps,
        observe=observe,
    )
    return float(np.median(np.concatenate(ratios)))


def causes(
    arm: str, n: int, r_neg: float, learning_rate: float, first_seed: int, runs: int
) -> dict[str, list[float]]:
    """The small transformer with AdamW: final target paths, p(tail) after 50 steps, and pushes summed over steps.

    The push on x for a step of rate 1 along the plain gradient is -⟨dx/dθ, d loss/dθ⟩.  Its part `own` comes from the nodes at
    which x's moves are made, `other` from all others, through shared parameters.  tail_*: x = log p(tail), the first 50 steps.
    up_* and down_*: x is the log-odds of the first move, the steps in which its whole push is up or down.
    """
    seen: dict[str, Any] = {name: np.zeros(runs) for name in PUSHES}
    steps = [0]

    def observe(model: Any, logp: np.ndarray, leaves: Any, rewards: Any, aim: np.ndarray) -> None:
        steps[0] += 1
        if leaves is None:
            return
        path, dlogp = moves_to(aim), loss_gradient(arm, leaves, rewards, np.random.default_rng(0))
        own, other = pushes(model, dlogp, path[:, :1], -1.0)
        for way, chosen in (("up", own + other > 0), ("down", own + other < 0)):
            seen[f"{way}_own"] += own * chosen
            seen[f"{way}_other"] += other * chosen
        if steps[0] <= EARLY:
            seen["tail"] = np.exp(np.take_along_axis(logp, path[:, n:], 1).sum(1))
            own, other = pushes(model, dlogp, path[:, n:], 0.0)
            seen["tail_own"] += own
            seen["tail_other"] += other

    hits = run_walks(
        arm, n, r_neg, "adamw", learning_rate, runs=runs, first_seed=first_seed, observe=observe
    )
    final = np.array(hits)[:, -LAST // 10 :].sum(1)
    return {"final": final.tolist()} | {name: values.tolist() for name, values in seen.items()}


def pushes(
    model: Any, dlogp: np.ndarray, moves: np.ndarray, against: float
) -> tuple[np.ndarray, np.ndarray]:
    """-⟨dx/dθ, d loss/dθ⟩, from the nodes at which x's moves are made and from all others.   dlogp (R,N), moves (R,m) -> (R,), (R,)

    x is the sum of log p over the moves, plus `against` times that of the other move at the same nodes (-1: log-odds).
    """
    x, here = np.zeros_like(dlogp), np.zeros_like(dlogp)
    np.put_along_axis(x, moves, 1.0, 1)
    np.put_along_axis(x, moves ^ 1, against, 1)
    for both in (moves, moves ^ 1):
        np.put_along_axis(here, both, 1.0, 1)
    slope = model.gradients(x).reshape(len(x), -1).astype(np.float64)
    own, other = (
        -(model.gradients(part).reshape(len(x), -1) * slope).sum(1)
        for part in (dlogp * here, dlogp * (1 - here))
    )
    return own, other


def needed(r_neg: float) -> float:
    """p(tail) from which on a walk through the first n moves earns more than one elsewhere: p + (1 - p)·r_neg > 0.7."""
    return (R_OTHER - r_neg) / (1 - r_neg)


# -- tables --------------------------------------------------------------------------------------------------------------


def outcome(found: dict[str, list]) -> dict[str, Any]:
    """Mean frequency, interval, the shares of runs that found the target, lost it, and never drew it in the last 50 steps."""
    shares = {
        "lost": digits(np.mean(found["lost"])),
        "zero": digits(np.mean(np.array(found["final"]) == 0)),
    }
    return summary(frequency("grpo", found["final"])) | shares


def longer(arm: str, learning_rate: float, runs: int) -> list[float]:
    """The share of tabular runs, n = 1 and r_neg = -1, that have found the target after each of LONGER steps."""
    hits = run_walks(
        arm, 1, -1.0, "sgd", learning_rate, policy="tabular", runs=runs, steps=LONGER[-1]
    )
    windows = [np.array(hits)[:, (steps - LAST) // 10 : steps // 10].sum(1) for steps in LONGER]
    return [digits((window > LAST * GROUP_SIZE / 2).mean()) for window in windows]


def map_table(cells: dict[tuple, dict[str, list]]) -> list[dict[str, Any]]:
    """GRPO and λ-GRPO side by side for every (n, r_neg, rate, start), with the paired difference and sign test."""
    rows = []
    for n, r_neg, rate, start in dict.fromkeys(key[1:] for key in cells):
        a, b = (cells[arm, n, r_neg, rate, start] for arm in COMPARED)
        x, y = frequency("grpo", a["final"]), frequency("grpo", b["final"])
        low, high = bootstrap_interval(y - x, np.random.default_rng(0))
        row: dict[str, Any] = {
            "n": n,
            "r_neg": r_neg,
            "learning_rate": rate,
            "start": digits(start),
            "runs": len(x),
        }
        for arm, found in zip(COMPARED, (a, b), strict=True):
            row |= {f"{arm}_{name}": value for name, value in outcome(found).items()}
        only = int(((x > 0.5) & (y <= 0.5)).sum()), int(((y > 0.5) & (x <= 0.5)).sum())
        row |= {
            "difference": digits((y - x).mean()),
            "low": digits(low),
            "high": digits(high),
            "p": digits(sign_test(*only)),
        }
        if start == UNIFORM:
            row |= beside_the_paper(n, r_neg, x, y)
        rows.append(row)
    return rows


def targets_table(runs: dict[tuple[str, int], dict[str, list[float]]]) -> list[dict[str, Any]]:
    """By objective, n and pattern of the target: outcome, and medians over runs of p(tail) after 50 steps and of the pushes.

    A policy that has all but decided has pushes a thousand times those of others, hence medians (95 % bootstrap intervals).
    """
    rows = []
    for (arm, n), found in runs.items():
        leaf = np.arange(len(found["final"])) % 2**DEPTH
        pattern = np.where(
            leaf >= 8, 15 - leaf, leaf
        )  # L and R exchanged, so that the first move is L
        for i, name in enumerate(PATTERNS):
            chosen = pattern == i
            values = frequency("grpo", np.array(found["final"])[chosen])
            row = {"objective": arm, "n": n, "pattern": name, "runs": int(chosen.sum())} | summary(
                values
            )
            for part in PUSHES:
                own = np.array(found[part])[chosen]
                drawn = np.median(
                    own[np.random.default_rng(0).integers(len(own), size=(2000, len(own)))], axis=1
                )
                low, high = np.quantile(drawn, [0.025, 0.975])
                row |= {
                    part: digits(np.median(own)),
                    f"{part}_low": digits(low),
                    f"{part}_high": digits(high),
                }
            rows.append(row)
    return rows


def text(tables: dict[str, Any]) -> str:
    """What a terminal shows: where on the map either objective is ahead, the family, and the targets."""
    rows = tables["map"]
    ahead = [sum(1 for r in rows if r[end] * sign > 0) for end, sign in (("low", 1), ("high", -1))]
    lines = [
        f"of {len(rows)} cells of the map λ-GRPO is ahead in {ahead[0]}, GRPO in {ahead[1]} (95 % interval of the difference)"
    ]
    lines += ["the small transformer's rates, and the tabular rates that move log-odds as far"]
    lines += [
        f"    {r['optimizer']:6} {r['learning_rate']:g}: {r['tabular_rate']:.3g}"
        for r in tables["moved"]
    ]
    lines.append("weights |λ|^-α: mean target frequency by α at each rate")
    for key in dict.fromkeys((r["policy"], r["n"], r["learning_rate"]) for r in tables["family"]):
        own = [r for r in tables["family"] if (r["policy"], r["n"], r["learning_rate"]) == key]
        numbers = "  ".join(f"{r['alpha']:g}: {r['target_frequency']:.2f}" for r in own)
        lines.append(f"    {key[0]:12} n={key[1]} {key[2]:<7g} {numbers}")
    lines.append(
        "by target: frequency; p(tail) after 50 steps; pushes on the first move when up: own, other, down: own, other; on the tail"
    )
    for r in tables["targets"]:
        where = f"{r['objective']:12} n={r['n']} {r['pattern']}"
        numbers = "  ".join(f"{r[part]:+.0f}" for part in PUSHES[1:])
        lines.append(f"    {where:24} {r['target_frequency']:.2f}  {r['tail']:.2f}  {numbers}")
    return "\n".join(lines)


def run(
    out: Path, *, quick: bool = False, seeds: int | None = None, processes: int | None = None
) -> str:
    """Map, family and targets: when.json, when.png, when-family.png, when-targets.png (quick: fewer cells and runs)."""
    if seeds is not None and seeds % CHUNK:
        raise ValueError(
            f"{seeds} runs do not walk to each of the 16 targets equally often: take a multiple of {CHUNK}"
        )
    number = seeds or (CHUNK if quick else RUNS)
    options: dict[str, Any] = {"processes": processes, "cache": out / "when.cache.jsonl"}
    settings = [(1, -1.0)] if quick else [(n, r_neg) for n in (1, 2) for r_neg in R_NEGS]
    rates, starts = (TABULAR_RATES[::2], STARTS[2:4]) if quick else (TABULAR_RATES, STARTS)
    keys = [
        (arm, n, r, rate, start)
        for n, r in settings
        for rate in rates
        for start in starts
        for arm in COMPARED
    ]
    jobs = [_job("tabular", arm, n, r, rate, start, number) for arm, n, r, rate, start in keys]
    cells = dict(zip(keys, run_jobs(cell, jobs, title="map", **options), strict=True))
    family = [
        (policy, alpha, n, rate)
        for policy, family_rates in FAMILY_RATES.items()
        for n in ((1,) if quick else (1, 2))
        for rate in (family_rates[1:3] if quick else family_rates)
        for alpha in (ALPHAS[::2] if quick else ALPHAS)
    ]
    jobs = [
        _job(policy, f"alpha={alpha:g}", n, -1.0, rate, None, number)
        for policy, alpha, n, rate in family
    ]
    outcomes = run_jobs(cell, jobs, title="family", **options)
    sweep = [
        (name, rate) for name, each in RATES.items() for rate in (each[2:3] if quick else each)
    ]
    steps = run_jobs(
        moved,
        [{"optimizer": o, "learning_rate": rate} for o, rate in sweep],
        title="rates",
        **options,
    )
    longest = [
        (arm, rate) for rate in ((1.0,) if quick else (1.0, 3.0, 10.0, 30.0)) for arm in COMPARED
    ]
    jobs = [{"arm": arm, "learning_rate": rate, "runs": number} for arm, rate in longest]
    shares = run_jobs(longer, jobs, title="longer", **options)
    kinds = [(arm, n) for n in ((1,) if quick else (1, 2)) for arm in COMPARED]
    jobs = [
        {
            "arm": arm,
            "n": n,
            "r_neg": -1.0,
            "learning_rate": RATES["adamw"][2],
            "first_seed": first,
            "runs": CHUNK,
        }
        for arm, n in kinds
        for first in range(0, number, CHUNK)
    ]
    pieces = iter(run_jobs(causes, jobs, title="targets", **options))
    runs = {}
    for kind in kinds:
        own = [next(pieces) for _ in range(number // CHUNK)]
        runs[kind] = {name: [x for piece in own for x in piece[name]] for name in own[0]}
    tables = {
        "map": map_table(cells),
        "family": [
            {
                "policy": policy,
                "alpha": alpha,
                "n": n,
                "r_neg": -1.0,
                "learning_rate": rate,
                "runs": number,
            }
            | outcome(found)
            for (policy, alpha, n, rate), found in zip(family, outcomes, strict=True)
        ],
        "moved": [
            {"optimizer": o, "learning_rate": r, "tabular_rate": digits(x)}
            for (o, r), x in zip(sweep, steps, strict=True)
        ],
        "longer": [
            {"objective": arm, "learning_rate": rate, "runs": number}
            | {f"found_{s}": x for s, x in zip(LONGER, found, strict=True)}
            for (arm, rate), found in zip(longest, shares, strict=True)
        ],
        "targets": targets_table(runs),
    }
    write_tables(out / "when.json", tables)
    save(map_figure(tables["map"], _marks(tables["moved"], out)), out / "when.png")
    save(family_figure(tables["family"]), out / "when-family.png")
    save(targets_figure(tables["targets"], needed(-1.0)), out / "when-targets.png")
    return text(tables)


def _job(
    policy: str, arm: str, n: int, r_neg: float, rate: float, start: float | None, runs: int
) -> dict[str, Any]:
    optimizer = "sgd" if policy == "tabular" else "adamw"
    names = ("policy", "arm", "n", "r_neg", "optimizer", "learning_rate", "start", "runs")
    return dict(zip(names, (policy, arm, n, r_neg, optimizer, rate, start, runs), strict=True))


def _marks(steps: Sequence[dict[str, Any]], out: Path) -> list[dict[str, Any]]:
    """The cells of table 1, if it is there, at the tabular rates that correspond to theirs."""
    file = out / "table1.json"
    if not file.exists():
        return []
    same = [
        row
        for row in json.loads(file.read_text())["comparison"]
        if row["rates"] == "same" and row["targets"] == "drawn"
    ]
    rates = {(row["optimizer"], row["learning_rate"]): row["tabular_rate"] for row in steps}
    return [
        row | {"x": rates[key]}
        for row in same
        if (key := (row["optimizer"], row["grpo_rate"])) in rates
    ]
