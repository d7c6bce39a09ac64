"""How good is the PRM hidden in GRPO?   (results/README.md, "How good is the hidden PRM?")

Ours: the paper leaves it open.  On `treewalk` (n = 1, r_neg = -1, a target drawn for each seed) a
policy has 2**depth paths, so the value of every prefix, the mean outcome of those who go on from
it, is a finite sum.  Against these exact values: the error of R̂ by depth and group size, before
and during training; the same for a Monte-Carlo PRM that spends its tokens on a smaller group and on
extra rollouts; and how step advantages go with exact ones.  The exact values themselves are checked
against a million rollouts.

Given that n = |λ| visited a prefix, what they write after it are n independent draws, so R̂ has
mean V(prefix) and variance Var(outcome|prefix) / n: no bias.  But it contains the completion's own
outcome with weight 1/n (`own_weight`), and R̂ - mean(r) is too small, as the mean holds the
visitors too: 1 - 1/k of the exact advantage is left on average over tokens (`slope_tokens`), and
(1 - p/(1-(1-p)^k)) / (1-p) over nodes of probability p, as λ-GRPO weighs them (`slope_nodes`).

On `arithmetic` the first wrong step is known from the text: `first_error.py`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from minigrpo.experiments import first_error
from minigrpo.experiments import tables as t
from minigrpo.experiments.monte_carlo import monte_carlo_step_rewards
from minigrpo.experiments.prm_quality_figures import first_error_figure, values_figure
from minigrpo.experiments.reproduce import Request
from minigrpo.experiments.warm_start import warm_policies
from minigrpo.objectives import step_advantages
from minigrpo.rewards import step_rewards
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train
from minigrpo.sampler import sample
from minigrpo.tasks.treewalk import TreeWalk
from minigrpo.transformer import Transformer
from minigrpo.tree import PrefixTree, Rollouts

STEPS = (0, 100, 200)  # of λ-GRPO before the policy is looked at
SIZES = (4, 8, 16, 32, 64)
MONTE_CARLO = [(k, m) for k in (2, 4, 8, 16) for m in (1, 2, 4, 8)]  # group size, extra rollouts
COMPLETIONS = 2**14  # sampled for each policy and group size
BRUTE_FORCE = 1_000_000  # rollouts


def path_probabilities(model: Transformer, task: TreeWalk) -> np.ndarray:
    """The probability of each of `task.paths()`, by one pass over their tree.   -> (2**depth,)"""
    tree = PrefixTree.from_groups(task.prompts(np.random.default_rng(0), 1), [task.paths()])
    p = np.exp(tree.on_tokens(np.asarray(model.forward(tree, keep=False), dtype=np.float64)).sum(1))
    return p / p.sum()


def means_below(p: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """The conditional mean of a number on paths given each prefix.   -> (2**(depth+1) - 1,)

    Prefixes are in heap order: that of length d which reads b as a binary number is 2**d - 1 + b.
    """
    levels = [2**d for d in range(len(p).bit_length())]
    sums = [[x.reshape(n, -1).sum(1) for n in levels] for x in (p * outcome, p)]
    return np.concatenate(sums[0]) / np.concatenate(sums[1])


def exact_moments(model: Transformer, task: TreeWalk) -> tuple[np.ndarray, np.ndarray]:
    """V(prefix) and Var(outcome | prefix), in heap order; V[0] is the policy's value."""
    p, outcome = path_probabilities(model, task), task.path_rewards()
    exact = means_below(p, outcome)
    return exact, np.maximum(means_below(p, outcome**2) - exact**2, 0.0)


def heap_index(tree: PrefixTree) -> np.ndarray:
    """The prefix of each node, in heap order; 0, the empty one, for the prompt.   -> (N,)"""
    index = np.zeros(tree.n_nodes, dtype=np.int64)
    at = np.zeros(len(tree.paths), dtype=np.int64)
    for nodes in tree.paths.T:
        at = 2 * at + 1 + tree.token[nodes]
        index[nodes] = at
    return index


def policy(seed: int, steps: int) -> tuple[Transformer, TreeWalk]:
    """The policy after some steps of λ-GRPO, and its task: the target is drawn from the seed."""
    settings = TrainSettings.for_task("treewalk", objective="lambda_grpo", steps=steps, seed=seed)
    return train(settings, progress=False)[0], TreeWalk().for_run(seed)


def draw(
    model: Transformer, task: TreeWalk, n_groups: int, k: int, rng: np.random.Generator
) -> tuple[Rollouts, np.ndarray]:
    """Groups of the one prompt, and their rewards (B,)."""
    rollouts = sample(model, task.prompts(rng, n_groups), k, rng, max_new_tokens=task.depth)
    return rollouts, task.score(rollouts)


def value_errors(seed: int, steps: int, completions: int = COMPLETIONS) -> list[t.Row]:
    """The hidden PRM of one policy against exact values: a row for each k and depth."""
    model, task = policy(seed, steps)
    exact, spread = exact_moments(model, task)
    rng, rows = np.random.default_rng([seed, steps]), []
    for k in SIZES:
        rollouts, rewards = draw(model, task, completions // k, k, rng)
        for depth in range(1, task.depth + 1):
            found = value_row(rollouts.tree, rewards, exact, spread, depth)
            rows.append({"k": k, "depth": depth} | found)
    return rows


def value_row(
    tree: PrefixTree, rewards: np.ndarray, exact: np.ndarray, spread: np.ndarray, depth: int
) -> dict[str, Any]:
    """The nodes of one depth of a batch against exact values and variances (in heap order).

    nodes       visited prefixes per group            single     share of them with |λ| = 1
    bias, sd, rmse    of R̂ - V, every visited node once
    predicted   √ mean of Var(outcome | prefix) / |λ|
    bias_error  standard error of the bias; given how many visit, errors of nodes are independent
    advantage, centred   correlation of Â, and of R̂ - mean(r), with V - V(root)
    move        correlation of R̂ - R̂(parent) with V - V(parent); None where nothing varies

    Slopes, as pairs of what is divided: own_weight, of R̂ - V on r_i - V over tokens (i,t);
    slope_nodes, slope_tokens, of R̂ - mean(r) on V - V(root), every node once or |λ| times.
    """
    index = heap_index(tree)
    at = np.flatnonzero(tree.scored & (tree.depth == depth))  # the prompt is one token long
    group, count, parent = tree.group[at], tree.count[at], tree.parent[at]
    mean = np.bincount(tree.completion_group, rewards) / tree.group_sizes
    estimate = step_rewards(tree, rewards)
    error, centred = (estimate - exact[index])[at], estimate[at] - mean[group]
    before = np.where(tree.scored[parent], estimate[parent], mean[group])
    gain, move = (exact[index] - exact[0])[at], exact[index[at]] - exact[index[parent]]
    on_tokens = tree.paths[:, depth - 1]  # (B,)
    owner_error = rewards - exact[index[on_tokens]]
    token_error = (estimate - exact[index])[on_tokens]

    def slope(x: np.ndarray, y: np.ndarray, weight: Any = 1) -> list[float]:
        return [float((weight * y) @ x), float((weight * x) @ x)]

    return {
        "nodes": len(at) / tree.n_groups,
        "single": float((count == 1).mean()),
        "bias": float(error.mean()),
        "bias_error": float(np.sqrt((error**2).sum())) / len(at),
        "sd": float(error.std()),
        "rmse": _rms(error),
        "predicted": float(np.sqrt((spread[index[at]] / count).mean())),
        "advantage": _correlation(step_advantages(tree, rewards)[at], gain),
        "centred": _correlation(centred, gain),
        "move": _correlation(estimate[at] - before, move),
        "own_weight": slope(owner_error, token_error),
        "slope_nodes": slope(gain, centred),
        "slope_tokens": slope(gain, centred, count),
    }


def _correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    varies = len(x) > 1 and x.std() > 1e-9 and y.std() > 1e-9
    return float(np.corrcoef(x, y)[0, 1]) if varies else None


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt((x**2).mean()))


def equal_tokens(seed: int, steps: int, n_groups: int = 128) -> list[t.Row]:
    """What tokens buy: extra rollouts for the prefixes of k completions, or more members.

    A row is a Monte-Carlo PRM: m extra rollouts each from `where`, the ends of the inner process
    steps ("steps", by `monte_carlo_step_rewards`) or every visited inner prefix ("prefixes", as
    VinePPO does; the error of such an estimate is known, Var(outcome | prefix) / m, and not
    sampled).  tokens: sampled in all for a group; rmse: over the inner nodes that the k completions
    visit, each once.  hidden_rmse: that of R̂ on nodes drawn alike, those that the first k members
    of a group of hidden_k = tokens / depth visit.
    """
    model, task = policy(seed, steps)
    exact, spread = exact_moments(model, task)
    rng, rows = np.random.default_rng([seed, steps, 1]), []

    @cache
    def hidden_rmse(k: int, first: int) -> float:
        rollouts, rewards = draw(model, task, n_groups, k, rng)
        members = np.arange(n_groups * k) % k < first
        visited = np.unique(rollouts.tree.paths[members, : task.depth - 1])
        error = step_rewards(rollouts.tree, rewards) - exact[heap_index(rollouts.tree)]
        return _rms(error[visited])

    for k, m in MONTE_CARLO:
        rollouts, rewards = draw(model, task, n_groups, k, rng)
        tree, index = rollouts.tree, heap_index(rollouts.tree)
        inner = np.flatnonzero(tree.scored & (tree.depth < task.depth))
        ends = np.intersect1d(tree.parent[tree.is_step_head], inner)  # of inner process steps
        values = monte_carlo_step_rewards(model, rollouts, rewards, task.score, m, rng)
        by_theory = float(np.sqrt((spread[index[inner]] / m).mean()))
        sampled = _rms((values - exact[index])[inner])
        for where, rmse, starts in (("steps", sampled, ends), ("prefixes", by_theory, inner)):
            tokens = k * task.depth + m * float((task.depth - tree.depth[starts]).sum()) / n_groups
            same = max(round(tokens / task.depth), k)
            row = {"where": where, "k": k, "m": m, "tokens": tokens, "rmse": rmse}
            rows.append(row | {"hidden_k": same, "hidden_rmse": hidden_rmse(same, k)})
    return rows


def brute_force(seed: int, steps: int, draws: int) -> list[t.Row]:
    """Exact values against the mean outcome of `draws` rollouts: enumerated paths, and real ones.

    A row each: the root's exact value, estimate, standard error and their ratio z; the largest |z|
    over all prefixes that 30 rollouts visit and whose outcome varies; and χ² of the path
    frequencies over its degrees of freedom, which should be near 1.
    """
    model, task = policy(seed, steps)
    p, outcome = path_probabilities(model, task), task.path_rewards()
    exact, spread = exact_moments(model, task)
    rng = np.random.default_rng([seed, steps, 2])
    real = np.zeros(len(p))
    for done in range(0, draws, 50_000):
        tree = draw(model, task, 1, min(50_000, draws - done), rng)[0].tree
        real += np.bincount(heap_index(tree)[tree.paths[:, -1]] - len(p) + 1, minlength=len(p))
    rows = []
    for source, counts in (("enumerated policy", rng.multinomial(draws, p)), ("sampler", real)):
        visits = np.concatenate([counts.reshape(2**d, -1).sum(1) for d in range(task.depth + 1)])
        seen = (visits >= 30) & (spread > 1e-9)
        estimate = means_below(np.maximum(counts, 1e-300), outcome)
        error = np.sqrt(spread[seen] / visits[seen])
        z = (estimate[seen] - exact[seen]) / error
        chi2 = ((counts - draws * p) ** 2 / (draws * p)).sum() / (len(p) - 1)
        row: t.Row = {"source": source, "seed": seed, "steps": steps, "draws": draws}
        row["prefixes"] = int(seen.sum())
        names = ("value", "estimate", "standard_error", "z", "max_abs_z", "chi2_per_dof")
        numbers = (exact[0], estimate[0], error[0], z[0], np.abs(z).max(), chi2)
        rows.append(row | dict(zip(names, map(float, numbers), strict=True)))
    return rows


MEANS = ("nodes", "single", "bias", "sd", "rmse", "predicted", "advantage", "centred", "move")
SLOPES = ("own_weight", "slope_nodes", "slope_tokens")


def tables(found: dict[str, dict[int, list[list[t.Row]]]]) -> t.Tables:
    """Means over seeds with intervals.   found: {name of a job: {steps: [rows of a seed]}}

    bias_z is the mean bias over its standard error; slopes are Σ over Σ of all seeds.  What does
    not vary is None.
    """
    out: t.Tables = {"value_errors": [], "equal_tokens": []}
    for steps, seeds in found["value_errors"].items():
        for rows in zip(*seeds, strict=True):
            row = {"steps": steps, "k": rows[0]["k"], "depth": rows[0]["depth"], "seeds": len(rows)}
            for name in MEANS:  # at leaves, 0 but for rounding
                row |= t.interval(name, [round(r[name], 7) for r in rows if r[name] is not None])
            error = np.sqrt(np.sum([r["bias_error"] ** 2 for r in rows]))
            parts = {"bias_z": (np.sum([r["bias"] for r in rows]), error)}
            parts |= {name: np.sum([r[name] for r in rows], axis=0) for name in SLOPES}
            for name, (above, below) in parts.items():
                row[name] = t.rounded(above / below, 6) if below > 1e-6 else None
            out["value_errors"].append(row)
    for steps, seeds in found["equal_tokens"].items():
        for rows in zip(*seeds, strict=True):
            row = {"steps": steps, "seeds": len(rows)}
            row |= {name: rows[0][name] for name in ("where", "k", "m")}
            for name in ("tokens", "rmse", "hidden_k", "hidden_rmse"):
                row |= t.interval(name, [r[name] for r in rows])
            ratios = [r["rmse"] / r["hidden_rmse"] for r in rows]
            out["equal_tokens"].append(row | t.interval("ratio", ratios))
    return out


def text(table: t.Tables) -> str:
    """The main numbers for a terminal."""
    columns = {
        "value_errors": "steps k depth bias rmse predicted advantage centred",
        "equal_tokens": "steps where k m tokens rmse hidden_rmse hidden_k",
        "brute_force": "source seed draws value estimate standard_error z chi2_per_dof",
        "first_error": "writing k rule detector precision recall false_alarms exact",
    }
    return t.show(table, columns)


def figures(table: t.Tables) -> dict[str, Figure]:
    """Errors of R̂ and correlations; where the sign of Â accuses."""
    values, accused = values_figure(table), first_error_figure(table)
    return {"prm-quality": values, "prm-quality-first-error": accused}


def run(request: Request) -> t.Tables:
    """Everything above and `first_error` (quick: 2 seeds, fewer draws)."""
    seeds, by_steps = request.seeds or (2 if request.quick else 8), {x: {"steps": x} for x in STEPS}
    errors = request.seeded(value_errors, by_steps, seeds, "exact values")
    tokens = request.seeded(equal_tokens, by_steps, seeds, "equal tokens")
    table = tables({"value_errors": errors, "equal_tokens": tokens})
    check = {"steps": STEPS[-1], "draws": BRUTE_FORCE // (10 if request.quick else 1)}
    checked = request.seeded(brute_force, {0: check}, min(seeds, 4), "a million rollouts")[0]
    table["brute_force"] = t.round_rows([row for rows in checked for row in rows], 6)

    start = TrainSettings.for_task("arithmetic", steps=0, eval_every=0)
    warm = warm_policies(request, dict.fromkeys(first_error.TASKS, start), first_error.TASKS)
    jobs = {w: {"writing": w, "folder": warm[w], "n_groups": 100} for w in warm}
    marks = request.seeded(first_error.marks, jobs, seeds, "first wrong step")
    return table | first_error.table(marks)
