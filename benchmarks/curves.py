"""How the time of a step grows: with group size, length, width, and with the share of tokens that
completions have in common.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from minigrpo.engine.profiling import Stopwatch
from minigrpo.runs.bench import WORKLOADS, Bench, Workload
from minigrpo.show.drawing import BLUE, INK, ORANGE, STYLE
from minigrpo.show.plots import save
from minigrpo.tree import PrefixTree, Rollouts

Rows = list[dict[str, float]]
W1 = WORKLOADS["W1"]
SHARED = (0.0, 0.25, 0.5, 0.75, 0.875, 0.95)
LONG = replace(
    W1, new_tokens=128, n_prompts=8, config=replace(W1.config, max_seq_len=160)
)  # so that 0.95 of it is shared


def workloads() -> dict[str, list[tuple[int, Workload]]]:
    """What is varied: [(value, workload)]."""
    return {
        "group size k": [(k, replace(W1, group_size=k)) for k in (4, 8, 16, 32, 64)],
        "new tokens a completion": [
            (n, replace(W1, new_tokens=n, config=replace(W1.config, max_seq_len=16 + n)))
            for n in (8, 16, 32, 64, 128)
        ],
        "width D": [
            (
                d,
                replace(
                    W1,
                    config=replace(
                        W1.config, dim=d, n_heads=d // 32, n_kv_heads=d // 32, ffn_dim=d * 8 // 3
                    ),
                ),
            )
            for d in (64, 128, 256, 512)
        ],
    }


def grow(progress: Any = print, repeats: int = 3) -> dict[str, Rows]:
    """Median seconds of a step for everything that `workloads` varies."""
    found: dict[str, Rows] = {}
    for name, cases in workloads().items():
        for value, workload in cases:
            bench = Bench(workload)
            rows = []
            for _ in range(repeats + 1):
                watch = Stopwatch()
                nodes = bench.step(watch).tree.n_nodes
                rows.append(sum(watch.phases().values()))
            found.setdefault(name, []).append(
                {"value": value, "seconds": float(np.median(rows[1:])), "nodes": nodes}
            )
            progress(f"  {name} {value}: {found[name][-1]['seconds']:.3f} s")
    return found


def share(progress: Any = print, repeats: int = 5) -> Rows:
    """Median seconds of an update, by the share that a group's completions have in common."""
    bench = Bench(LONG)
    cases = {s: forced(bench, s) for s in SHARED}
    seconds: dict[float, list[float]] = {s: [] for s in SHARED}
    for i in range(repeats + 1):
        for s, rollouts in cases.items():
            started = time.perf_counter()
            bench.update(rollouts)
            if i:
                seconds[s].append(time.perf_counter() - started)
    rows = [
        {"shared": s, "nodes": cases[s].tree.n_nodes, "seconds": float(np.median(seconds[s]))}
        for s in SHARED
    ]
    for row in rows:
        progress(f"  shared {row['shared']:.3f}: {row['nodes']} nodes, {row['seconds']:.3f} s")
    return rows


def forced(bench: Bench, shared: float) -> Rollouts:
    """Random completions of which the members of a group share the first part."""
    w, rng = bench.workload, np.random.default_rng(1)
    tokens = rng.integers(w.config.vocab_size, size=(w.n_prompts, w.group_size, w.new_tokens))
    tokens[:, :, : round(shared * w.new_tokens)] = tokens[:, :1, : round(shared * w.new_tokens)]
    completions = [list(group) for group in tokens]
    tree = PrefixTree.from_groups(bench.prompts, completions)
    nothing = np.zeros(tree.n_nodes)
    ended = np.zeros(len(tree.paths), dtype=bool)
    logp = bench.model.forward(tree, keep=False)
    return Rollouts(bench.prompts, completions, tree, logp, nothing, ended, 1.0, w.new_tokens)


def slope(x: list[float], y: list[float]) -> float:
    """Of log y against log x, least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def figure(
    grown: dict[str, Rows], shared: list[dict[str, float]], trees: list[dict[str, Any]], out: Path
) -> None:
    """Three log-log panels: the step, the update by distinct tokens, the tree's weights."""
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(13, 3.6), layout="constrained")
        panels = drawn.subplots(1, 3)
        looks = zip(grown.items(), (BLUE, ORANGE, INK), ("-", "--", ":"), "osv", strict=True)
        for (name, rows), colour, dash, marker in looks:
            x, y = [row["value"] for row in rows], [row["seconds"] for row in rows]
            label = f"{name}: slope {slope(x, y):.2f}"
            panels[0].plot(x, y, color=colour, ls=dash, marker=marker, label=label)
        panels[0].set(
            title="a full step of W1, one thing varied", xlabel="value", ylabel="seconds a step"
        )
        x, y = [row["nodes"] for row in shared], [row["seconds"] for row in shared]
        panels[1].plot(x, y, color=BLUE, marker="o", label=f"slope {slope(x, y):.2f}")
        for row in shared:
            panels[1].annotate(
                f"{row['shared']:.0%}",
                (row["nodes"], row["seconds"]),
                (4, -10),
                textcoords="offset points",
                fontsize=8,
            )
        panels[1].set(
            title="update; members share …", xlabel="distinct tokens", ylabel="seconds an update"
        )
        for key, colour, marker, dash in (
            ("minigrpo", BLUE, "o", "-"),
            ("by definition", INK, "v", ":"),
            ("authors", ORANGE, "s", "--"),
        ):
            rows = [row for row in trees if key in row]
            if rows:
                x, y = [row["tokens"] / 1e3 for row in rows], [row[key] * 1e3 for row in rows]
                panels[2].plot(
                    x,
                    y,
                    color=colour,
                    marker=marker,
                    ls=dash,
                    label=f"{key}: slope {slope(x, y):.2f}",
                )
        panels[2].set(
            title="weights 1/|λ| of one group",
            xlabel="tokens of the group, k × n (thousands)",
            ylabel="milliseconds",
        )
        for ax in panels:
            ax.set(xscale="log", yscale="log")
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_locator(LogLocator(10, subs=(1, 2, 5), numticks=12))
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter("")
            ax.legend(fontsize=8, loc="upper left" if ax is not panels[2] else "lower right")
        panels[2].xaxis.set_major_locator(
            LogLocator(10, numticks=12)
        )  # four powers of ten: no room for more
        save(drawn, out)
