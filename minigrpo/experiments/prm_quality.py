"""How good is the process reward model hidden in GRPO?   (Ours: the paper leaves it open.)

On `treewalk` (n = 1, r_neg = -1, a target drawn for each seed) a policy has 2**D paths, so the value of every
prefix, the mean outcome of those who go on from it, is a finite sum.
Against these exact values: the error of R̂ by depth and group size, before and during training; the same for a Monte-Carlo PRM
that spends its tokens on a smaller group and on extra rollouts; and how step advantages go with exact ones.  The exact values
themselves are checked against a million rollouts.

Is R̂ biased?  A prefix is looked at only where somebody has visited it, and by groups that hold the visitor himself.  But given how
many visited it, n = |λ|, what they write after it are n independent draws from the policy.  So R̂, their mean outcome, has mean
V(prefix) and variance Var(outcome | prefix) / n: no bias, for all that is known is that they came, not how they ended.  This is the
value after the token just chosen, as the token is part of the prefix.  Two other things are biased.  To the owner of a token,
R̂ looks better the better he ended: it holds his own outcome with weight 1/n (`own_weight`).  And R̂ - mean(r) is too small: the
mean holds the visitors too.  Averaged over tokens, 1 - 1/k of the exact advantage is left (`slope_tokens`); averaged over nodes, as
λ-GRPO weighs them (`slope_nodes`), (1 - p/(1-(1-p)^k)) / (1-p) for a prefix of probability p: from 1 - 1/k for a rare one to 1.
What division by std(r) adds to that is seen by comparing the correlations `advantage` and `centred`.

On `arithmetic` the first wrong step is known from the text: `first_error.py`.  Figures: `prm_quality_plots.py`.  Left out: what the
errors do to learning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from minigrpo.experiments import first_error, write_tables
from minigrpo.experiments.monte_carlo import monte_carlo_step_rewards
from minigrpo.experiments.parallel import run_jobs
from minigrpo.experiments.prm_quality_plots import first_error_figure, text, values_figure
from minigrpo.experiments.trees import interval
from minigrpo.objectives import step_advantages
from minigrpo.rewards import step_rewards
from minigrpo.runs.checkpoint import checkpoints
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train
from minigrpo.sampler import sample
from minigrpo.show.plots import save
from minigrpo.tasks.treewalk import TreeWalk
from minigrpo.transformer import Transformer
from minigrpo.tree import PrefixTree, Rollouts

STEPS = (0, 100, 200)  # of λ-GRPO before the policy is looked at
SIZES = (4, 8, 16, 32, 64)
MONTE_CARLO = [
    (k, m) for k in (2, 4, 8, 16) for m in (1, 2, 4, 8)
]  # group size, extra rollouts from each place
COMPLETIONS = 2**14  # sampled for each policy and group size
BRUTE_FORCE = 1_000_000  # rollouts


# -- exact values --------------------------------------------------------------------------------------------------------


def path_probabilities(model: Transformer, task: TreeWalk) -> np.ndarray:
    """The probability of each of `task.paths()`, by one forward pass over the complete tree.   -> (2**D,) float64, sum 1"""
    tree = PrefixTree.from_groups(task.prompts(np.random.default_rng(0), 1), [task.paths()])
    p = np.exp(tree.on_tokens(np.asarray(model.forward(tree, keep=False), dtype=np.float64)).sum(1))
    return p / p.sum()


def means_below(p: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """The conditional mean of a number on paths given each prefix.   p, outcome (2**D,) -> (2**(D+1) - 1,) in heap order"""
    levels = [2**d for d in range(len(p).bit_length())]
    return np.concatenate(
        [(p * outcome).reshape(n, -1).sum(1) / p.reshape(n, -1).sum(1) for n in levels]
    )


def exact_moments(model: Transformer, task: TreeWalk) -> tuple[np.ndarray, np.ndarray]:
    """V(prefix) = Σ p(path) r(path) / Σ p(path) over the paths that begin with it; Var(outcome | prefix).   -> (2**(D+1) - 1,) each

    Prefixes are in heap order: that of length d which reads b as a binary number is at 2**d - 1 + b; V[0] is the policy's value.
    """
    p, outcome = path_probabilities(model, task), task.path_rewards()
    exact = means_below(p, outcome)
    return exact, np.maximum(means_below(p, outcome**2) - exact**2, 0.0)


def heap_index(tree: PrefixTree) -> np.ndarray:
    """The prefix at which each node stands, in heap order; the prompt's nodes stand at the empty one.   -> (N,)"""
    index = np.zeros(tree.n_nodes, dtype=np.int64)
    at = np.zeros(len(tree.paths), dtype=np.int64)
    for nodes in tree.paths.T:
        at = 2 * at + 1 + tree.token[nodes]
        index[nodes] = at
    return index


# -- what is measured ----------------------------------------------------------------------------------------------------


def policy(seed: int, steps: int) -> tuple[Transformer, TreeWalk]:
    """The policy after some steps of λ-GRPO (n = 1, r_neg = -1), and its task: the target is drawn from the seed."""
    settings = TrainSettings.for_task("treewalk", objective="lambda_grpo", steps=steps, seed=seed)
    return train(settings, progress=False)[0], TreeWalk().for_run(seed)


def draw(
    model: Transformer, task: TreeWalk, n_groups: int, k: int, rng: np.random.Generator
) -> tuple[Rollouts, np.ndarray]:
    """Groups of the one prompt, and their rewards (B,)."""
    rollouts = sample(model, task.prompts(rng, n_groups), k, rng, max_new_tokens=task.depth)
    return rollouts, task.score(rollouts)


def value_errors(seed: int, steps: int, completions: int = COMPLETIONS) -> list[dict[str, Any]]:
    """The hidden PRM of one policy against exact values: a row for each k and depth.   See `value_row` for the columns."""
    model, task = policy(seed, steps)
    exact, spread = exact_moments(model, task)
    rng, rows = np.random.default_rng([seed, steps]), []
    for k in SIZES:
        rollouts, rewards = draw(model, task, completions // k, k, rng)
        rows += [
            {"k": k, "depth": d} | value_row(rollouts.tree, rewards, exact, spread, d)
            for d in range(1, task.depth + 1)
        ]
    return rows


def value_row(
    tree: PrefixTree, rewards: np.ndarray, exact: np.ndarray, spread: np.ndarray, depth: int
) -> dict[str, Any]:
    """The nodes of one depth of a batch against exact values and variances (in heap order).

    nodes          visited prefixes a group                     single        share of them with |λ| = 1
    bias, sd, rmse of R̂ - V, every visited node once            predicted     √ mean of Var(outcome | prefix) / |λ|
    bias_error     standard error of the bias (given how many visit them, the errors of different nodes are independent)
    advantage      correlation of Â with V - V(root)             centred       of R̂ - mean(r) with it: Â before division by std(r)
    move           of R̂ - R̂(parent) with V - V(parent)
    A correlation is None where nothing varies.  Slopes, as pairs of what is divided:
    own_weight     of R̂ - V on r_i - V, over tokens (i,t)        slope_nodes, slope_tokens     of R̂ - mean(r) on V - V(root),
                                                                 every node once, or |λ| times
    """
    index = heap_index(tree)
    at = np.flatnonzero(tree.scored & (tree.depth == depth))  # the prompt is one token long
    group, count, parent = tree.group[at], tree.count[at], tree.parent[at]
    mean = np.bincount(tree.completion_group, rewards) / tree.group_sizes
    estimate = step_rewards(tree, rewards)
    error, centred = (estimate - exact[index])[at], estimate[at] - mean[group]
    before = np.where(tree.scored[parent], estimate[parent], mean[group])
    gain, move = (exact[index] - exact[0])[at], exact[index[at]] - exact[index[parent]]
    owner_error = rewards - exact[index[tree.paths[:, depth - 1]]]  # (B,) r_i - V
    token_error = (estimate - exact[index])[tree.paths[:, depth - 1]]
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
        "own_weight": [float(token_error @ owner_error), float(owner_error @ owner_error)],
        "slope_nodes": [float(centred @ gain), float(gain @ gain)],
        "slope_tokens": [float((count * centred) @ gain), float((count * gain) @ gain)],
    }


def _correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    return (
        float(np.corrcoef(x, y)[0, 1]) if len(x) > 1 and x.std() > 1e-9 and y.std() > 1e-9 else None
    )


def equal_tokens(seed: int, steps: int, n_groups: int = 128) -> list[dict[str, Any]]:
    """What a budget of tokens buys: extra rollouts for the prefixes of k completions, or more members in their group.

    A row is a Monte-Carlo PRM: m extra rollouts each from `where`, the ends of the inner process steps ("steps", by
    `monte_carlo_step_rewards`) or every visited inner prefix ("prefixes", as VinePPO does; the error of such an estimate is known,
    Var(outcome | prefix) / m, and not sampled).  tokens: sampled in all for a group; rmse: over the inner nodes that the k
    completions visit, each once.  hidden_rmse: that of R̂ on nodes drawn alike, those that the first k members of a group of
    hidden_k = tokens / D visit.
    """
    model, task = policy(seed, steps)
    exact, spread = exact_moments(model, task)
    rng, rows = np.random.default_rng([seed, steps, 1]), []
    known: dict[tuple[int, int], float] = {}

    def hidden_rmse(k: int, first: int) -> float:
        if (k, first) not in known:
            rollouts, rewards = draw(model, task, n_groups, k, rng)
            members = np.arange(n_groups * k) % k < first
            visited = np.unique(rollouts.tree.paths[members, : task.depth - 1])
            error = step_rewards(rollouts.tree, rewards) - exact[heap_index(rollouts.tree)]
            known[k, first] = _rms(error[visited])
        return known[k, first]

    for k, m in MONTE_CARLO:
        rollouts, rewards = draw(model, task, n_groups, k, rng)
        tree, index = rollouts.tree, heap_index(rollouts.tree)
        inner = np.flatnonzero(tree.scored & (tree.depth < task.depth))
        ends = np.intersect1d(tree.parent[tree.is_step_head], inner)  # of inner process steps
        values = monte_carlo_step_rewards(model, rollouts, rewards, task.score, m, rng)
        errors = {
            "steps": _rms((values - exact[index])[inner]),
            "prefixes": float(np.sqrt((spread[index[inner]] / m).mean())),
        }
        for (where, rmse), starts in zip(errors.items(), (ends, inner), strict=True):
            tokens = k * task.depth + m * float((task.depth - tree.depth[starts]).sum()) / n_groups
            same = max(round(tokens / task.depth), k)
            row = {"where": where, "k": k, "m": m, "tokens": tokens, "rmse": rmse}
            rows.append(row | {"hidden_k": same, "hidden_rmse": hidden_rmse(same, k)})
    return rows


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt((x**2).mean()))


def brute_force(seed: int, steps: int, draws: int) -> list[dict[str, Any]]:
    """Exact values against the mean outcome of `draws` rollouts: paths drawn from the enumerated policy, and real ones.

    A row each: the root's exact value, estimate, standard error and their ratio z; the largest |z| over all prefixes that 30
    rollouts visit and whose outcome varies; and χ² of the path frequencies over its degrees of freedom, which should be near 1.
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
        root = {
            "value": exact[0],
            "estimate": estimate[0],
            "standard_error": error[0],
            "z": z[0],
            "max_abs_z": np.abs(z).max(),
        }
        root["chi2_per_dof"] = ((counts - draws * p) ** 2 / (draws * p)).sum() / (len(p) - 1)
        about = {
            "source": source,
            "seed": seed,
            "steps": steps,
            "draws": draws,
            "prefixes": int(seen.sum()),
        }
        rows.append(about | {name: float(value) for name, value in root.items()})
    return rows


# -- tables --------------------------------------------------------------------------------------------------------------


def tables(
    found: dict[str, dict[int, list[list[dict[str, Any]]]]],
) -> dict[str, list[dict[str, Any]]]:
    """Means over seeds with 95 % bootstrap intervals.   found: {"value_errors" or "equal_tokens": {steps: [rows of a seed]}}

    bias_z is the mean bias over its standard error; slopes and own_weight are Σ over Σ of all seeds, None where nothing varies.
    """
    out: dict[str, list[dict[str, Any]]] = {"value_errors": [], "equal_tokens": []}
    for steps, seeds in found["value_errors"].items():
        for rows in zip(*seeds, strict=True):
            row = {"steps": steps, "k": rows[0]["k"], "depth": rows[0]["depth"], "seeds": len(rows)}
            for name in (
                "nodes",
                "single",
                "bias",
                "sd",
                "rmse",
                "predicted",
                "advantage",
                "centred",
                "move",
            ):
                row |= interval(
                    name, [round(r[name], 7) for r in rows if r[name] is not None]
                )  # at leaves, 0 but for rounding
            error = np.sqrt(np.sum([r["bias_error"] ** 2 for r in rows]))
            row["bias_z"] = six(np.sum([r["bias"] for r in rows]) / error) if error > 1e-6 else None
            for name in ("own_weight", "slope_nodes", "slope_tokens"):
                above, below = np.sum([r[name] for r in rows], axis=0)
                row[name] = six(above / below) if below > 1e-6 else None
            out["value_errors"].append(row)
    for steps, seeds in found["equal_tokens"].items():
        for rows in zip(*seeds, strict=True):
            row = {"steps": steps, "seeds": len(rows)} | {
                name: rows[0][name] for name in ("where", "k", "m")
            }
            for name in ("tokens", "rmse", "hidden_k", "hidden_rmse"):
                row |= interval(name, [r[name] for r in rows])
            out["equal_tokens"].append(
                row | interval("ratio", [r["rmse"] / r["hidden_rmse"] for r in rows])
            )
    return out


def six(x: float) -> float:
    """Rounded to 6 significant digits."""
    return float(f"{x:.6g}")


# -- all of it -----------------------------------------------------------------------------------------------------------


def run(
    out: Path, *, quick: bool = False, seeds: int | None = None, processes: int | None = None
) -> str:
    """Everything above and `first_error` (quick: 2 seeds, fewer draws); write prm-quality.json and two figures.   -> text"""
    seeds, draws = seeds or (2 if quick else 8), BRUTE_FORCE // (10 if quick else 1)
    options = {"processes": processes, "cache": out / "prm-quality.cache.jsonl"}
    cells = [{"seed": seed, "steps": steps} for steps in STEPS for seed in range(seeds)]
    found: dict[str, dict[int, list[Any]]] = {}
    for function, title in ((value_errors, "exact values"), (equal_tokens, "equal tokens")):
        rows = run_jobs(function, cells, title=title, **options)
        found[function.__name__] = {
            steps: rows[i * seeds : (i + 1) * seeds] for i, steps in enumerate(STEPS)
        }
    table = tables(found)
    checks = [{"seed": seed, "steps": STEPS[-1], "draws": draws} for seed in range(min(seeds, 4))]
    checked = [
        row
        for rows in run_jobs(brute_force, checks, title="a million rollouts", **options)
        for row in rows
    ]
    table["brute_force"] = [
        {name: six(x) if isinstance(x, float) else x for name, x in row.items()} for row in checked
    ]

    policies = {
        writing: str(out / f"warm-{writing.replace(' ', '-')}") for writing in first_error.TASKS
    }
    missing = [
        {"writing": w, "folder": folder}
        for w, folder in policies.items()
        if not checkpoints(Path(folder))
    ]
    run_jobs(first_error.prepare, missing, title="warm start", processes=processes)
    for writing, folder in policies.items():
        first_error.prepare(writing, folder)  # raises if the folder holds something else
    groups = [
        {"writing": w, "folder": policies[w], "seed": s, "n_groups": 100}
        for w in policies
        for s in range(seeds)
    ]
    marks = run_jobs(first_error.marks, groups, title="first wrong step", **options)
    table |= first_error.table(
        {w: marks[i * seeds : (i + 1) * seeds] for i, w in enumerate(policies)}
    )

    write_tables(out / "prm-quality.json", table)
    save(values_figure(table), out / "prm-quality.png")
    save(first_error_figure(table), out / "prm-quality-first-error.png")
    return text(table)
