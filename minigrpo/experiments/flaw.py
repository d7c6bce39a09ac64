"""Which tokens are pushed up, which down?   (results/README.md, "The flaw made visible")

The push on a node is d objective / d log p there, at the sampling policy: Σ_{i∈λ} aᵢ = |λ|·Â under
GRPO, Â under λ-GRPO (both over the token count).  The signs are the same; the sizes are not, and so
the sum over a path may have another sign.

1. Two groups made by hand, 16 walks of depth 4, under a policy of one softmax per prefix,
   p(move) = (count + ½) / (total + 1).  "exploration": every path once, one of eight that begin
   with R is the best walk, the other seven are bad.  "exploitation": all steps of the best walk
   have Â > 0, but so has a popular, merely good step beside it.  One step of the same length along
   each gradient gives the change of probability of every node.
2. Training on `treewalk`, each run to the target that its seed draws: `statistics` counts how many
   good tokens are pushed down, and how often a step or a gradient lowers a target that was drawn.

Source: arXiv:2509.21154, section 4.
"""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from minigrpo.engine.parameters import with_parameters
from minigrpo.experiments import tables as t
from minigrpo.experiments.controls import COMPARED, TITLES
from minigrpo.experiments.figures import dots, panels, styled
from minigrpo.experiments.reproduce import Request
from minigrpo.objectives import Objective, advantages
from minigrpo.runs.policy import make_policy, make_state
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train_step
from minigrpo.show.drawing import BLUE, INK, ORANGE
from minigrpo.tree import PrefixTree, Rollouts

OBJECTIVES = {name: TITLES[name] for name in COMPARED}
LENGTH = 0.3  # of the step along either gradient, in logits
LEARNING_RATE, STEPS, EARLY = 3e-4, 250, 50

# The groups: (walk, reward) of each completion; the first one is the best.
_OTHERS = ["".join(walk) for walk in product("RL", repeat=4)][1:]
EXPLORATION = [("RRRR", 1.0), *((walk, -1.0 if walk[0] == "R" else 0.7) for walk in _OTHERS)]
EXPLOITATION = (
    [("LRRR", 1.0), ("LRRL", 0.1), ("LRLR", 0.1), ("LRLL", 0.1)]
    + [("LL" + walk, 0.7) for walk in ("LL", "LR", "RL", "RR") for _ in range(2)]
    + [("R" + walk, -1.0) for walk in ("LLL", "LRR", "RLL", "RRR")]
)
CASES = {"exploration": EXPLORATION, "exploitation": EXPLOITATION}


def push(objective: str, rollouts: Rollouts, rewards: np.ndarray) -> np.ndarray:
    """d objective / d log p of every node of one group, times the number of tokens.   -> (N,)"""
    c = Objective.preset(objective).coefficients(rollouts, rewards)
    return (c.positive + c.negative) * rollouts.tree.lengths.sum()


def one_step(tree: PrefixTree, dlogp: np.ndarray, length: float = LENGTH) -> np.ndarray:
    """Probabilities of the nodes' tokens, before and after a gradient step of a length in logits.

    One softmax over two moves for every prefix; both logits' gradients are ±g, with
    g = dlogp - p·(sum over the prefix's moves).   dlogp (N,) -> (2,N)
    """
    nodes = np.flatnonzero(tree.scored)
    parent, ones = tree.parent[nodes], np.ones(tree.n_nodes)
    sums = [np.bincount(parent, x[nodes])[parent] for x in (tree.count, dlogp, ones)]
    p = (tree.count[nodes] + 0.5) / (sums[0] + 1)
    g = dlogp[nodes] - p * sums[1]
    norm = np.sqrt((2 / sums[2] * g * g).sum())  # a move that nobody took has a logit too
    odds = p / (1 - p) * np.exp(2 * g * length / norm)
    both = np.zeros((2, tree.n_nodes))
    both[:, nodes] = p, odds / (1 + odds)
    return both


def by_hand() -> list[t.Row]:
    """A row for every case, objective and node: |λ|, R̂, push, probability before and after."""
    rows = []
    for (case, group), objective in product(CASES.items(), OBJECTIVES):
        walks, rewards = [walk for walk, _ in group], np.array([reward for _, reward in group])
        completions = [np.array(["LR".index(move) for move in walk]) for walk in walks]
        tree, root = PrefixTree.from_groups([[0]], [completions]), np.array([0])
        nothing, whole = np.zeros(tree.n_nodes), np.zeros(len(walks), dtype=bool)
        rollouts = Rollouts([root], [completions], tree, nothing, nothing, whole, 1.0, 4)
        dlogp = push(objective, rollouts, rewards)
        before, after = one_step(tree, dlogp)
        for prefix in sorted({walk[:n] for walk in walks for n in range(1, 5)}):
            members = [i for i, walk in enumerate(walks) if walk.startswith(prefix)]
            node = tree.paths[members[0], len(prefix) - 1]
            row = {"case": case, "objective": objective, "prefix": prefix}
            row |= {"best": walks[0].startswith(prefix), "count": len(members)}
            row |= {"mean_reward": rewards[members].mean(), "push": dlogp[node]}
            rows.append(row | {"before": before[node], "after": after[node]})
    return rows


def path_probability(rows: t.Rows, case: str, objective: str, column: str, skip: int = 0) -> float:
    """The probability of a case's best walk, "before" or "after"; given its first `skip` moves."""
    path = t.select(rows, case=case, objective=objective, best=True)
    return float(np.prod([row[column] for row in path if len(row["prefix"]) > skip]))


def training_run(objective: str, n: int, seed: int, steps: int = STEPS) -> list[t.Row]:
    """Train on treewalk and count.   -> two rows of sums over steps: the first 50, and all"""
    options = {"objective": objective, "learning_rate": LEARNING_RATE, "steps": steps, "seed": seed}
    s = TrainSettings.for_task("treewalk", task_options={"n": n, "r_neg": -1.0}, **options)
    model, task = make_policy(s)
    state = make_state(s, model)
    prompts = task.prompts(np.random.default_rng(0), 1)
    target = PrefixTree.from_groups(prompts, [[task.tokenizer.encode(task.target)]])
    sums: Counter[str] = Counter()
    rows = []
    for step in range(1, steps + 1):
        before = model.parameters.flat.copy()
        _, rollouts, rewards = train_step(state, task, s)
        sums.update(step_counts(model, before, target, rollouts, rewards))
        if step in (EARLY, steps):
            rows.append({"n": n, "trained_with": objective, "seed": seed, "steps": step} | sums)
    return rows


def step_counts(
    model: Any, before: Any, target: PrefixTree, rollouts: Rollouts, rewards: np.ndarray
) -> dict[str, float]:
    """What a step from the parameters `before` did to good tokens, and to a sampled target."""
    tree, a = rollouts.tree, advantages(rewards, rollouts.tree.completion_group)
    pushes = {name: push(name, rollouts, rewards) for name in OBJECTIVES}
    sampled = np.flatnonzero(rewards >= 1) if a.any() else []
    met = len(sampled) > 0
    path = tree.paths[sampled[0]] if met else np.zeros(0, dtype=int)
    shared = tree.count[path] > len(sampled)  # with other paths
    log_p = float(model.forward(target, keep=False).sum())
    out: dict[str, Any] = {"hits": met}
    with with_parameters(model, before):
        out["falls"] = met and log_p < float(model.forward(target, keep=False).sum())
        slope = _gradient(model, target, target.scored.astype(float)) if met else 0.0
        for name, dlogp in pushes.items():
            good = tree.on_tokens(dlogp)[a > 0]
            out[f"up_{name}"] = np.maximum(good, 0).sum()
            out[f"down_{name}"] = -np.minimum(good, 0).sum()
            out[f"shared_{name}"] = dlogp[path][shared].sum()
            out[f"tail_{name}"] = dlogp[path][~shared].sum()
            out[f"points_down_{name}"] = met and (_gradient(model, tree, dlogp) * slope).sum() < 0
            if name == "grpo":  # the signs are the same under both
                out |= {"good_tokens": good.size, "good_tokens_down": (good < 0).sum()}
    return {name: float(value) for name, value in out.items()}


def _gradient(model: Any, tree: PrefixTree, dlogp: np.ndarray) -> np.ndarray:
    model.gradients.flat[:] = 0
    model.forward(tree)
    return model.backward(dlogp).flat.copy()


OF_TRAINING = {"good_tokens_down": ("good_tokens_down", "good_tokens"), "falls": ("falls", "hits")}
OF_OBJECTIVE = {
    "down_to_up": ("down_{}", "up_{}"),
    "points_down": ("points_down_{}", "hits"),
    "shared_to_tail": ("shared_{}", "tail_{}"),
}


def statistics(runs: t.Rows) -> list[t.Row]:
    """Shares and ratios of a run's sums: mean over seeds and interval.   runs: of `training_run`

    good_tokens_down  of all tokens of above-average completions, the share that is pushed down
    down_to_up        the downward push on these tokens over the upward push
    shared_to_tail    the push on what the target shares over the push on its own tail
    falls             of all steps with the target in a group of unequal rewards, the share that
                      lowers its probability
    points_down       of the same steps, the share on whose batch the plain gradient points down
    """
    ratios = OF_TRAINING | {
        f"{measure}_{name}": (part.format(name), whole.format(name))
        for name in OBJECTIVES
        for measure, (part, whole) in OF_OBJECTIVE.items()
    }
    rows = []
    for key in t.distinct(runs, "n", "trained_with", "steps"):
        row: t.Row = dict(zip(("n", "trained_with", "steps"), key, strict=True))
        own = t.select(runs, **row)
        row |= {"seeds": len(own), "hits": float(np.mean([run["hits"] for run in own]))}
        for name, (part, whole) in ratios.items():  # a run may never meet the target
            row |= t.interval(name, [run[part] / run[whole] for run in own if run[whole]], 17)
        rows.append(row)
    return rows


def differences(runs: t.Rows) -> list[t.Row]:
    """λ-GRPO minus GRPO, seed by seed: mean and interval.   runs: of `training_run`

    Both trainings of a seed have the same start and the same target, so what targets differ in
    drops out.  OF_TRAINING compares the two trainings; OF_OBJECTIVE the two objectives on the
    batches of GRPO's training.  A seed in which a training never met the target is left out.
    """
    rows = []
    for n, steps in t.distinct(runs, "n", "steps"):
        own = [run for run in t.select(runs, n=n, steps=steps) if run["hits"]]
        of = {(run["trained_with"], run["seed"]): run for run in own}
        seeds = [seed for name, seed in of if name == "grpo" and ("lambda_grpo", seed) in of]
        row: t.Row = {"n": n, "steps": steps, "seeds": len(seeds)}
        for measure, (part, whole) in (OF_TRAINING | OF_OBJECTIVE).items():
            values = {}
            for name in OBJECTIVES:
                trained = name if measure in OF_TRAINING else "grpo"
                each = [of[trained, seed] for seed in seeds]
                values[name] = [run[part.format(name)] / run[whole.format(name)] for run in each]
            row |= t.interval(measure, np.subtract(values["lambda_grpo"], values["grpo"]), 17)
        rows.append(row)
    return rows


@styled
def tree_figure(rows: t.Rows, case: str) -> Figure:
    """The tree of a case twice, GRPO and λ-GRPO: push and change of probability of every move."""
    own = t.select(rows, case=case)
    height = 0.42 * sum(len(row["prefix"]) == 4 for row in own) / 2 + 1.3  # inches
    figure = Figure(figsize=(13, height))
    for i, (objective, name) in enumerate(OBJECTIVES.items()):
        ax = figure.add_axes((0.5 * i + 0.005, 0.4 / height, 0.49, 1 - 1.1 / height))
        _draw_tree(ax, t.select(own, objective=objective))
        numbers = [
            path_probability(own, case, objective, column, skip)
            for skip in (0, 1)
            for column in ("before", "after")
        ]
        title = "{}: the best walk {:.2%} → {:.2%}\nof those with its first move {:.2%} → {:.2%}"
        ax.set_title(title.format(name, *numbers), weight="bold")
    about = (
        "Box: move ×|λ|, push (▲ up, solid; ▼ down, dashed; darker: larger), p(move) before → "
        "after a step of equal length. Thick: the best walk. Right: reward."
    )
    figure.text(0.01, 0.12 / height, about, fontsize=9, color="#555555")
    return figure


def _draw_tree(ax: Axes, rows: t.Rows) -> None:
    leaves = [row["prefix"] for row in rows if len(row["prefix"]) == 4]
    y = {leaf: -float(i) for i, leaf in enumerate(leaves)}
    for row in sorted(rows, key=lambda row: -len(row["prefix"])):
        below = [y[row["prefix"] + move] for move in "LR" if row["prefix"] + move in y]
        y.setdefault(row["prefix"], float(np.mean(below)) if below else 0.0)
    largest = max(abs(row["push"]) for row in rows)
    for row in rows:
        prefix, up, size = row["prefix"], row["push"] > 0, abs(row["push"])
        x, colour = len(prefix) - 1.0, BLUE if up else ORANGE
        if x:
            ends = [x - 0.19, x - 0.1, x], [y[prefix[:-1]], y[prefix], y[prefix]]
            style = {"lw": 0.5 + 0.6 * row["count"], "ls": "-" if up else (0, (2, 0.6))}
            ax.plot(*ends, color=colour, alpha=0.6, zorder=1, **style)
        style = {"fc": str(1 - 0.32 * size / largest), "ec": colour, "zorder": 2}
        style |= {"lw": 2.6 if row["best"] else 1, "ls": "-" if up else (0, (3, 1.5))}
        shape = {"boxstyle": "round,pad=0,rounding_size=0.06"}
        ax.add_patch(FancyBboxPatch((x, y[prefix] - 0.38), 0.8, 0.76, **shape, **style))
        told = f"{prefix[-1]} ×{row['count']}  {'▲' if up else '▼'} {size:.2f}"
        told += f"\n{row['before']:.1%} → {row['after']:.1%}"
        at = {"ha": "center", "va": "center", "fontsize": 7.5, "zorder": 3, "color": INK}
        ax.text(x + 0.4, y[prefix], told, **at)
        if prefix in leaves:
            at = {"va": "center", "fontsize": 9, "weight": "bold"}
            ax.text(x + 0.86, y[prefix], f"{row['mean_reward']:+g}", **at)
    ax.set(xlim=(-0.05, 4.1), ylim=(-len(leaves) + 0.2, 0.6))
    ax.axis("off")


PANELS = {
    "good_tokens_down": "Tokens of above-average completions\nthat are pushed down: share",
    "shared_to_tail": "Target: push on what it shares over push\non its tail, GRPO's batches",
    "falls": "Steps that lower the target although it is in\nthe group: share (AdamW)",
    "points_down": "Gradients that point to a lower target\nthat is there: share, GRPO's batches",
}


@styled
def training_figure(rows: t.Rows) -> Figure:
    """Four panels of shares and ratios for n = 1 and 2, early and over all steps."""
    figure, grid = panels(2, 2, 10, 6.4)
    for ax, (measure, title) in zip(grid.flat, PANELS.items(), strict=True):
        for i, (name, label) in enumerate(OBJECTIVES.items()):
            own_training = measure in OF_TRAINING
            shown = t.select(rows, trained_with=name if own_training else "grpo")
            column = measure if own_training else f"{measure}_{name}"
            dots(ax, np.arange(len(shown)) + 0.2 * i - 0.1, shown, column, number=i, label=label)
        ax.set_xticks(range(len(shown)), [f"n = {r['n']}\nsteps 1-{r['steps']}" for r in shown])
        ax.axhline(0, color="#888888", lw=0.8)
        ax.set_title(title, fontsize=10)
    names = ax.get_legend_handles_labels()
    figure.legend(*names, loc="outside upper right", ncols=2, frameon=False)
    return figure


def figures(tables: t.Tables) -> dict[str, Figure]:
    """The two groups by hand, and the training."""
    return {
        "flaw": tree_figure(tables["trees"], "exploration"),
        "flaw-exploitation": tree_figure(tables["trees"], "exploitation"),
        "flaw-training": training_figure(tables["training"]),
    }


def text(tables: t.Tables) -> str:
    """The tables of training for a terminal."""
    about, own = "n trained_with steps seeds hits", [f"{name}±" for name in OF_TRAINING]
    columns = {"training": " ".join([about, *own])}
    for name in OF_OBJECTIVE:
        columns[name] = " ".join(["n trained_with steps", *(f"{name}_{x}±" for x in OBJECTIVES)])
    columns["differences"] = " ".join(["n steps", *own, *(f"{name}±" for name in OF_OBJECTIVE)])
    return t.show(dict.fromkeys(OF_OBJECTIVE, tables["training"]) | tables, columns)


def run(request: Request) -> t.Tables:
    """Both parts, 20 seeds (quick: 3)."""
    settings = product((1, 2), OBJECTIVES)
    jobs = {(n, objective): {"objective": objective, "n": n} for n, objective in settings}
    found = request.seeded(training_run, jobs, request.seeds or (3 if request.quick else 20))
    runs = [row for own in found.values() for rows in own for row in rows]
    tables = {"trees": by_hand(), "training": statistics(runs), "differences": differences(runs)}
    return {name: t.round_rows(rows, 6) for name, rows in tables.items()}
