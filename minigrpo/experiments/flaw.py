"""The flaw made visible: how hard GRPO and λ-GRPO push every token of a tree, and how often a good token is pushed down.

The push on a node is d objective / d log p there, at the sampling policy: Σ_{i∈λ} aᵢ = |λ|·Â under GRPO, Â under λ-GRPO (both over
the token count).  The signs are the same; the sizes are not, and so the sum over a path may have another sign.

1. Two groups made by hand, 16 walks of depth 4, under a policy of one softmax a prefix, p(move) = (count + ½) / (total + 1):
   "exploration": every path once, one of eight that begin with R is the best walk, the other seven are bad (Â < 0 above the best);
   "exploitation": all steps of the best walk have Â > 0, but so has a popular, merely good step beside it.
   One step of the same length along each gradient; the table has the push and the change of probability of every node.
2. Training on `treewalk`, each run to the target that its seed draws (AdamW, learning rate 3e-4): at every
   step, how many tokens of above-average completions are pushed down; and, where the target is in a group of
   unequal rewards, the push on the part of its path that it shares with other paths against the push on its own
   tail, whether the step lowers its probability, and whether the plain gradients of both objectives, on this same
   batch, point towards a lower one (d log p(target) < 0).

To be kept in mind: on average over groups GRPO's gradient, with its |λ|, is that of the expected reward (but for the division by
the standard deviation).  What is called a flaw is that following it greedily leads away from a best walk behind a bad prefix.
Source: arXiv:2509.21154, section 4.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from minigrpo.engine.parameters import with_parameters
from minigrpo.experiments.parallel import run_jobs
from minigrpo.objectives import Objective, advantages
from minigrpo.runs.policy import make_policy, make_state
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train_step
from minigrpo.show.drawing import BLUE, INK, ORANGE, STYLE
from minigrpo.show.plots import bootstrap_interval, save
from minigrpo.tree import PrefixTree, Rollouts

OBJECTIVES = {"grpo": "GRPO", "lambda_grpo": "λ-GRPO"}
LENGTH = 0.3  # of the step along either gradient, in logits
LEARNING_RATE, STEPS, EARLY = 3e-4, 250, 50

# The groups: (walk, reward) of each completion; the first one is the best.
EXPLORATION = [("RRRR", 1.0)] + [
    ("".join(walk), -1.0 if walk[0] == "R" else 0.7)
    for walk in product("RL", repeat=4)
    if walk != ("R",) * 4
]
EXPLOITATION = (
    [("LRRR", 1.0), ("LRRL", 0.1), ("LRLR", 0.1), ("LRLL", 0.1)]
    + [("LL" + walk, 0.7) for walk in ("LL", "LR", "RL", "RR") for _ in range(2)]
    + [("R" + walk, -1.0) for walk in ("LLL", "LRR", "RLL", "RRR")]
)
CASES = {"exploration": EXPLORATION, "exploitation": EXPLOITATION}


# -- two groups by hand --------------------------------------------------------------------------------------------------


def push(objective: str, rollouts: Rollouts, rewards: np.ndarray) -> np.ndarray:
    """d objective / d log p of every node of one group at the sampling policy, times the number of tokens.   -> (N,)"""
    c = Objective.preset(objective).coefficients(rollouts, rewards)
    return (c.positive + c.negative) * rollouts.tree.lengths.sum()


def one_step(
    tree: PrefixTree, dlogp: np.ndarray, length: float = LENGTH
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of the nodes' tokens, before and after a gradient step of a length in logits.   dlogp (N,) -> (N,), (N,)

    One softmax over two moves for every prefix.  With both logits' gradients ±g, g = dlogp - p·(sum over the prefix's moves).
    """
    nodes = np.flatnonzero(tree.scored)
    parent = tree.parent[nodes]
    total, pushes, known = (
        np.bincount(parent, x[nodes])[parent] for x in (tree.count, dlogp, np.ones(tree.n_nodes))
    )
    p = (tree.count[nodes] + 0.5) / (total + 1)
    g = dlogp[nodes] - p * pushes
    norm = np.sqrt((2 / known * g * g).sum())  # a move that nobody took has a logit too
    odds = p / (1 - p) * np.exp(2 * g * length / norm)
    before, after = np.zeros(tree.n_nodes), np.zeros(tree.n_nodes)
    before[nodes], after[nodes] = p, odds / (1 + odds)
    return before, after


def by_hand() -> list[dict[str, Any]]:
    """A row for every case, objective and node: |λ|, R̂, push, probability before and after the step."""
    rows = []
    for (case, group), objective in product(CASES.items(), OBJECTIVES):
        walks, rewards = [walk for walk, _ in group], np.array([reward for _, reward in group])
        completions = [np.array(["LR".index(move) for move in walk]) for walk in walks]
        tree = PrefixTree.from_groups([[0]], [completions])
        nothing = np.zeros(tree.n_nodes)
        rollouts = Rollouts(
            [np.array([0])],
            [completions],
            tree,
            nothing,
            nothing,
            np.zeros(len(walks), dtype=bool),
            1.0,
            4,
        )
        dlogp = push(objective, rollouts, rewards)
        before, after = one_step(tree, dlogp)
        for prefix in sorted({walk[:t] for walk in walks for t in range(1, 5)}):
            members = [i for i, walk in enumerate(walks) if walk.startswith(prefix)]
            node = tree.paths[members[0], len(prefix) - 1]
            row = {
                "case": case,
                "objective": objective,
                "prefix": prefix,
                "best": walks[0].startswith(prefix),
            }
            row |= {
                "count": len(members),
                "mean_reward": rewards[members].mean(),
                "push": dlogp[node],
            }
            rows.append(row | {"before": before[node], "after": after[node]})
    return rows


def path_probability(
    rows: Sequence[dict[str, Any]], case: str, objective: str, column: str, skip: int = 0
) -> float:
    """The probability of the best walk of a case, "before" or "after"; given its first `skip` moves."""
    path = [
        row for row in rows if (row["case"], row["objective"]) == (case, objective) and row["best"]
    ]
    return float(np.prod([row[column] for row in path if len(row["prefix"]) > skip]))


# -- training ------------------------------------------------------------------------------------------------------------


def training_run(objective: str, n: int, seed: int, steps: int = STEPS) -> list[dict[str, Any]]:
    """Train on treewalk, as `trainer.train` does, and count.   -> two rows of sums over steps: the first 50, and all"""
    options = {"objective": objective, "learning_rate": LEARNING_RATE, "steps": steps, "seed": seed}
    s = TrainSettings.for_task("treewalk", task_options={"n": n, "r_neg": -1.0}, **options)
    model, task = make_policy(s)
    state = make_state(s, model)
    target = PrefixTree.from_groups(
        task.prompts(np.random.default_rng(0), 1), [[task.tokenizer.encode(task.target)]]
    )
    sums: dict[str, float] = {}
    rows = []
    for step in range(1, steps + 1):
        before = model.parameters.flat.copy()
        _, rollouts, rewards = train_step(state, task, s)
        for name, value in step_counts(model, before, target, rollouts, rewards).items():
            sums[name] = sums.get(name, 0.0) + value
        if step in (EARLY, steps):
            rows.append({"n": n, "trained_with": objective, "seed": seed, "steps": step} | sums)
    return rows


def step_counts(
    model: Any, before: Any, target: PrefixTree, rollouts: Rollouts, rewards: np.ndarray
) -> dict[str, float]:
    """What a step from the parameters `before` did to good tokens and, if it was sampled, to the target."""
    tree, a = rollouts.tree, advantages(rewards, rollouts.tree.completion_group)
    pushes = {name: push(name, rollouts, rewards) for name in OBJECTIVES}
    good = {name: tree.on_tokens(dlogp)[a > 0] for name, dlogp in pushes.items()}
    out = {"good_tokens": good["grpo"].size, "good_tokens_down": (good["grpo"] < 0).sum()}
    for name, on_good in good.items():
        out |= {
            f"up_{name}": np.maximum(on_good, 0).sum(),
            f"down_{name}": -np.minimum(on_good, 0).sum(),
        }
    sampled = np.flatnonzero(rewards >= 1) if a.any() else []
    path = tree.paths[sampled[0]] if len(sampled) else np.zeros(0, dtype=int)
    shared = tree.count[path] > len(sampled)  # with other paths
    log_p = float(model.forward(target, keep=False).sum())
    with with_parameters(model, before):
        out |= {
            "hits": len(path) > 0,
            "falls": len(path) > 0 and log_p < float(model.forward(target, keep=False).sum()),
        }
        slope = (
            _gradient(model, target, target.scored.astype(float)) if len(path) else 0.0
        )  # d log p(target) / d parameters
        for name, dlogp in pushes.items():
            out |= {
                f"shared_{name}": dlogp[path][shared].sum(),
                f"tail_{name}": dlogp[path][~shared].sum(),
            }
            out[f"points_down_{name}"] = (
                len(path) > 0 and (_gradient(model, tree, dlogp) * slope).sum() < 0
            )
    return {name: float(value) for name, value in out.items()}


def _gradient(model: Any, tree: PrefixTree, dlogp: np.ndarray) -> np.ndarray:
    model.gradients.flat[:] = 0
    model.forward(tree)
    return model.backward(dlogp).flat.copy()


def statistics(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Shares and ratios of a run's sums: mean over seeds and 95 % bootstrap interval.   runs: rows of `training_run`

    good_tokens_down  of all tokens of above-average completions, the share that is pushed down
    down_to_up        the downward push on these tokens over the upward push
    shared_to_tail    the push on what the target shares with other paths over the push on its own tail
    falls             of all steps with the target in a group of unequal rewards, the share that lowers its probability
    points_down       of the same steps, the share on whose batch the plain gradient points towards a lower probability
    """
    ratios = {"good_tokens_down": ("good_tokens_down", "good_tokens"), "falls": ("falls", "hits")}
    for name in OBJECTIVES:
        ratios |= {
            f"down_to_up_{name}": (f"down_{name}", f"up_{name}"),
            f"points_down_{name}": (f"points_down_{name}", "hits"),
        }
        ratios[f"shared_to_tail_{name}"] = (f"shared_{name}", f"tail_{name}")
    rows = []
    for key in dict.fromkeys((run["n"], run["trained_with"], run["steps"]) for run in runs):
        own = [run for run in runs if (run["n"], run["trained_with"], run["steps"]) == key]
        row = dict(zip(("n", "trained_with", "steps"), key, strict=True)) | {"seeds": len(own)}
        row["hits"] = float(np.mean([run["hits"] for run in own]))
        for name, (part, whole) in ratios.items():  # a run may never meet the target
            row |= _over_seeds(name, [run[part] / run[whole] for run in own if run[whole]])
        rows.append(row)
    return rows


def differences(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """λ-GRPO minus GRPO, seed by seed: mean and 95 % bootstrap interval.   runs: rows of `training_run`

    Both trainings of a seed have the same start and the same target, so what targets differ in drops out.
    `good_tokens_down` and `falls` compare the two trainings; the other three compare the two objectives on the
    batches of GRPO's training.  A seed in which a training never met the target is left out.
    """
    own = {"good_tokens_down": ("good_tokens_down", "good_tokens"), "falls": ("falls", "hits")}
    same = {"down_to_up": ("down_{}", "up_{}"), "shared_to_tail": ("shared_{}", "tail_{}")}
    same["points_down"] = ("points_down_{}", "hits")
    of = {
        (run["n"], run["steps"], run["trained_with"], run["seed"]): run
        for run in runs
        if run["hits"]
    }
    rows = []
    for n, steps in dict.fromkeys((run["n"], run["steps"]) for run in runs):
        seeds = [
            run["seed"]
            for run in runs
            if run["trained_with"] == "grpo" and (run["n"], run["steps"]) == (n, steps)
        ]
        seeds = [seed for seed in seeds if all((n, steps, name, seed) in of for name in OBJECTIVES)]
        row: dict[str, Any] = {"n": n, "steps": steps, "seeds": len(seeds)}
        for name, (part, whole) in (own | same).items():
            values = {
                o: [
                    run[part.format(o)] / run[whole.format(o)]
                    for seed in seeds
                    for run in [of[n, steps, o if name in own else "grpo", seed]]
                ]
                for o in OBJECTIVES
            }
            row |= _over_seeds(name, np.subtract(values["lambda_grpo"], values["grpo"]))
        rows.append(row)
    return rows


def _over_seeds(name: str, values: Any) -> dict[str, float]:
    low, high = bootstrap_interval(np.array(values), np.random.default_rng(0))
    return {name: float(np.mean(values)), f"{name}_low": float(low), f"{name}_high": float(high)}


# -- figures -------------------------------------------------------------------------------------------------------------


def tree_figure(rows: Sequence[dict[str, Any]], case: str) -> Figure:
    """The tree of a case twice, GRPO and λ-GRPO: push and change of probability of every move."""
    own = [row for row in rows if row["case"] == case]
    height = 0.42 * sum(len(row["prefix"]) == 4 for row in own) / 2 + 1.3  # inches
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(13, height))
        for i, (objective, name) in enumerate(OBJECTIVES.items()):
            ax = figure.add_axes((0.5 * i + 0.005, 0.4 / height, 0.49, 1 - 1.1 / height))
            _draw_tree(ax, [row for row in own if row["objective"] == objective])
            before, after = (
                path_probability(own, case, objective, column) for column in ("before", "after")
            )
            within = [
                path_probability(own, case, objective, column, 1) for column in ("before", "after")
            ]
            title = f"{name}: the best walk {before:.2%} → {after:.2%}"
            ax.set_title(
                title + "\nof those with its first move {:.2%} → {:.2%}".format(*within),
                weight="bold",
            )
        about = "Box: move ×|λ|, push (▲ up, solid; ▼ down, dashed; darker: larger), p(move) before → after a step of equal length."
        figure.text(
            0.01,
            0.12 / height,
            about + " Thick: the best walk. Right: reward.",
            fontsize=9,
            color="#555555",
        )
    return figure


def _draw_tree(ax: Axes, rows: Sequence[dict[str, Any]]) -> None:
    leaves = [row["prefix"] for row in rows if len(row["prefix"]) == 4]
    y = {leaf: -float(i) for i, leaf in enumerate(leaves)}
    for row in sorted(rows, key=lambda row: -len(row["prefix"])):
        below = [y[row["prefix"] + move] for move in "LR" if row["prefix"] + move in y]
        y.setdefault(row["prefix"], float(np.mean(below)) if below else 0.0)
    largest = max(abs(row["push"]) for row in rows)
    for row in rows:
        prefix, up = row["prefix"], row["push"] > 0
        x, colour = len(prefix) - 1.0, BLUE if up else ORANGE
        if x:
            ends = [x - 0.19, x - 0.1, x], [y[prefix[:-1]], y[prefix], y[prefix]]
            ax.plot(
                *ends,
                color=colour,
                lw=0.5 + 0.6 * row["count"],
                ls="-" if up else (0, (2, 0.6)),
                zorder=1,
                alpha=0.6,
            )
        shade = str(1 - 0.32 * abs(row["push"]) / largest)
        style = {
            "fc": shade,
            "ec": colour,
            "lw": 2.6 if row["best"] else 1,
            "ls": "-" if up else (0, (3, 1.5)),
            "zorder": 2,
        }
        ax.add_patch(
            FancyBboxPatch(
                (x, y[prefix] - 0.38), 0.8, 0.76, boxstyle="round,pad=0,rounding_size=0.06", **style
            )
        )
        text = f"{prefix[-1]} ×{row['count']}  {'▲' if up else '▼'} {abs(row['push']):.2f}\n{row['before']:.1%} → {row['after']:.1%}"
        ax.text(
            x + 0.4, y[prefix], text, ha="center", va="center", fontsize=7.5, zorder=3, color=INK
        )
        if prefix in leaves:
            ax.text(
                x + 0.86,
                y[prefix],
                f"{row['mean_reward']:+g}",
                va="center",
                fontsize=9,
                weight="bold",
            )
    ax.set(xlim=(-0.05, 4.1), ylim=(-len(leaves) + 0.2, 0.6))
    ax.axis("off")


def training_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Four panels of shares and ratios for n = 1 and 2, early and over all steps, with 95 % intervals."""
    own = {"GRPO": ("grpo", ""), "λ-GRPO": ("lambda_grpo", "")}
    same = {"GRPO": ("grpo", "_grpo"), "λ-GRPO": ("grpo", "_lambda_grpo")}
    panels = [
        (
            "good_tokens_down",
            "Tokens of above-average completions\nthat are pushed down: share, own training",
            own,
        ),
        (
            "shared_to_tail",
            "Target: push on what it shares over push\non its tail, batches of GRPO's training",
            same,
        ),
        (
            "falls",
            "Steps that lower the target although it is in\nthe group: share, own training (AdamW)",
            own,
        ),
        (
            "points_down",
            "Gradients that point to a lower target\nalthough it is there: share, same batches",
            same,
        ),
    ]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 6.4), layout="constrained")
        for ax, (measure, title, sources) in zip(figure.subplots(2, 2).flat, panels, strict=True):
            for i, (label, (trained, suffix)) in enumerate(sources.items()):
                shown = [row for row in rows if row["trained_with"] == trained]
                mean, low, high = (
                    np.array([row[measure + suffix + end] for row in shown])
                    for end in ("", "_low", "_high")
                )
                style = {
                    "fmt": "os"[i],
                    "color": (BLUE, ORANGE)[i],
                    "mfc": (BLUE, "white")[i],
                    "capsize": 3,
                    "label": label,
                }
                ax.errorbar(
                    np.arange(len(shown)) + 0.2 * i - 0.1, mean, [mean - low, high - mean], **style
                )
            ax.set_xticks(
                range(len(shown)), [f"n = {row['n']}\nsteps 1-{row['steps']}" for row in shown]
            )
            ax.axhline(0, color="#888888", lw=0.8)
            ax.set_title(title, fontsize=10)
        figure.legend(
            *ax.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False
        )
    return figure


# -- run -----------------------------------------------------------------------------------------------------------------


def run(
    out: Path, *, quick: bool = False, seeds: int | None = None, processes: int | None = None
) -> str:
    """Both parts: flaw.json, flaw.png (exploration), flaw-exploitation.png, flaw-training.png; the training table as text."""
    jobs = [
        {"objective": objective, "n": n, "seed": seed}
        for n, objective in product((1, 2), OBJECTIVES)
        for seed in range(seeds or (3 if quick else 20))
    ]
    results = run_jobs(
        training_run, jobs, title="flaw", processes=processes, cache=out / "flaw.cache.jsonl"
    )
    runs = [row for result in results for row in result]
    tables = {"trees": by_hand(), "training": statistics(runs), "differences": differences(runs)}
    for row in [row for rows in tables.values() for row in rows]:
        row |= {name: float(f"{x:.6g}") for name, x in row.items() if isinstance(x, float)}
    (out / "flaw.json").write_text(
        json.dumps(tables, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    save(tree_figure(tables["trees"], "exploration"), out / "flaw.png")
    save(tree_figure(tables["trees"], "exploitation"), out / "flaw-exploitation.png")
    save(training_figure(tables["training"]), out / "flaw-training.png")
    return text(tables["training"])


def text(rows: Sequence[dict[str, Any]]) -> str:
    """The training table: a block of lines for every n, objective and number of steps."""
    lines = []
    for row in rows:
        lines.append(
            "n = {n}, trained with {trained_with}, steps 1-{steps}, {hits:.0f} with the target, {seeds} seeds".format(
                **row
            )
        )
        names = [name for name in row if f"{name}_low" in row]
        lines += [
            f"  {name:28}{row[name]:7.3f}  [{row[name + '_low']:.3f}, {row[name + '_high']:.3f}]"
            for name in names
        ]
    return "\n".join(lines)
