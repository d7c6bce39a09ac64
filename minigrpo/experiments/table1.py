"""Table 1 of the paper, with controls: does λ-GRPO find the target path of the tree walk where GRPO does not, and why?

The paper (section 4.3): a binary tree of depth 4; the target path earns 1, paths that share its first n moves r_neg, all others
0.7; k = 16, 250 steps, the share of target paths in the last 50.  Its policy is GPT-2-small; here it is a transformer of two
layers that starts near the uniform policy, so learning rates are not comparable and every arm's is swept.

The arms are `grpo`, `lambda_grpo`, `dr_grpo` and `rloo`; the controls of `arms.py`; and `monte_carlo_prm`, a group of 4 with the
other sampled tokens spent on rollouts from each step (as VinePPO does).

A run is 250 steps on 30 prefixes; `whole_tree.py` draws and learns from all of them at once, as the package would from some.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minigrpo.experiments.arms import gradients_of_arm
from minigrpo.experiments.parallel import run_jobs
from minigrpo.experiments.table1_plots import best, best_figure, sweep_figure
from minigrpo.experiments.whole_tree import WholeTree
from minigrpo.objectives import Objective
from minigrpo.plots import bootstrap_interval, save
from minigrpo.policy import make_optimizer, make_policy
from minigrpo.rewards import monte_carlo_step_rewards
from minigrpo.sampler import Rollouts
from minigrpo.tasks.treewalk import TreeWalk
from minigrpo.trainer import TrainSettings

ARMS = ("grpo", "lambda_grpo", "grpo_at_lambda_norm", "lambda_at_grpo_norm", "placebo", "dr_grpo", "rloo", "monte_carlo_prm")
SETTINGS = [(n, r_neg) for n in (1, 2, 3) for r_neg in (-1.0, -0.5)]
SWEEPS = {  # optimiser: settings, learning rates
    "adamw": (SETTINGS, (3e-4, 1e-3, 3e-3, 1e-2)),
    "sgd": (SETTINGS, (0.1, 0.3, 1.0)),  # Adam hides a gradient's scale; plain SGD does not
}
WALK = {"root": "L", "target": "RRRR"}  # as the published table was made
STEPS, LAST, GROUP_SIZE, MC_GROUP_SIZE = 250, 50, 16, 4


def walk(arm: str, n: int, r_neg: float, optimizer: str, learning_rate: float, seed: int, steps: int = STEPS) -> list[int]:
    """Train one arm with one seed.   -> target paths among the group's 16 (monte_carlo_prm: 4) completions, step by step"""
    options = {"optimizer": optimizer, "learning_rate": learning_rate, "seed": seed}
    settings = TrainSettings.for_task("treewalk", task_options=WALK | {"n": n, "r_neg": r_neg}, **options)
    model, task = make_policy(settings)
    stepper = make_optimizer(settings, model)
    rng = np.random.default_rng(seed)
    group_size = MC_GROUP_SIZE if arm == "monte_carlo_prm" else GROUP_SIZE
    policy = WholeTree(model, task.prompts(rng, 1)[0], task.max_new_tokens)
    hits = []
    for _ in range(steps):
        policy.look()
        rollouts = policy.sample(task.prompts(rng, 1), group_size, rng, max_new_tokens=task.max_new_tokens)
        rewards = task.score(rollouts)
        hits.append(int(task.is_correct(rewards).sum()))
        gradients(arm, policy, task, rollouts, rewards, rng)
        stepper.step(model.parameters, model.gradients, learning_rate)
    return hits


def gradients(
    arm: str, policy: WholeTree, task: TreeWalk, rollouts: Rollouts, rewards: np.ndarray, rng: np.random.Generator
) -> None:
    """Leave the arm's gradient in policy.model.gradients."""
    if arm == "monte_carlo_prm":
        prm = Objective.preset("prm")
        values = monte_carlo_values(policy, task, rollouts, rewards, rng)
        policy.learn(rollouts, prm, prm.coefficients(rollouts, rewards, values))
    else:
        gradients_of_arm(arm, policy.model, rollouts, rewards, rng, learn=policy.learn)


def monte_carlo_values(
    policy: WholeTree, task: TreeWalk, rollouts: Rollouts, rewards: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Values of the steps from as many fresh rollouts as the tokens of a group of 16 leave, the same number for each step."""
    tree = rollouts.tree
    begun = [s.end for s in tree.steps() if s.nodes and s.end < task.max_new_tokens]
    budget = (GROUP_SIZE - len(tree.paths)) * task.max_new_tokens
    each = max(budget // max(sum(task.max_new_tokens - end for end in begun), 1), 1)
    return monte_carlo_step_rewards(policy.model, rollouts, rewards, task.score, each, rng, draw=policy.sample)


# -- the table -----------------------------------------------------------------------------------------------------------


def table(hits: dict[tuple, list[list[int]]]) -> list[dict[str, Any]]:
    """A row for each (arm, n, r_neg, optimizer, learning rate): mean target frequency of the last 50 steps, 95 % interval."""
    rows = []
    for (arm, n, r_neg, optimizer, rate), runs in hits.items():
        size = MC_GROUP_SIZE if arm == "monte_carlo_prm" else GROUP_SIZE
        final = np.array(runs)[:, -LAST:].mean(1) / size  # (seeds,)
        low, high = bootstrap_interval(final, np.random.default_rng(0))
        row = {"arm": arm, "n": n, "r_neg": r_neg, "optimizer": optimizer, "learning_rate": rate, "seeds": len(runs)}
        numbers = {"target_frequency": final.mean(), "low": low, "high": high, "found": (final > 0.5).mean()}
        numbers = {name: float(f"{value:.4g}") for name, value in numbers.items()}
        rows.append(row | numbers | {"final_of_seed": [float(f"{value:.4g}") for value in final]})
    return rows


def text(rows: Sequence[dict[str, Any]]) -> str:
    """Each arm at its own best learning rate, as a table for a terminal."""
    chosen = best(rows)
    lines = []
    for optimizer in dict.fromkeys(row["optimizer"] for row in rows):
        lines.append(f"{optimizer}: target frequency of the last {LAST} steps, each arm at its best learning rate")
        for n, r_neg in dict.fromkeys((row["n"], row["r_neg"]) for row in rows if row["optimizer"] == optimizer):
            lines.append(f"  n={n}  r_neg={r_neg:g}")
            for arm in ARMS:
                if row := chosen.get((optimizer, n, r_neg, arm)):
                    interval = f"{row['target_frequency']:.3f}  [{row['low']:.3f}, {row['high']:.3f}]"
                    lines.append(f"    {arm:20} {interval}   at {row['learning_rate']:g}")
    return "\n".join(lines)


def run(out: Path, *, quick: bool = False, seeds: int | None = None, processes: int | None = None) -> str:
    """All arms, settings, optimisers and learning rates (quick: one setting, two arms and controls, fewer seeds)."""
    seeds = seeds or (6 if quick else 20)
    sweeps = {"adamw": ([(2, -1.0)], (3e-4, 1e-3, 3e-3))} if quick else SWEEPS
    arms = ARMS[:5] if quick else ARMS
    combinations = [(a, n, r, o, rate) for o, (where, rates) in sweeps.items() for n, r in where for rate in rates for a in arms]
    names = ("arm", "n", "r_neg", "optimizer", "learning_rate")
    jobs = [dict(zip(names, c, strict=True)) | {"seed": seed} for c in combinations for seed in range(seeds)]
    found = run_jobs(walk, jobs, title="table 1", processes=processes, cache=out / "table1.cache.jsonl")
    rows = table({c: found[i * seeds : (i + 1) * seeds] for i, c in enumerate(combinations)})
    (out / "table1.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    save(best_figure(rows), out / "table1.png")
    save(sweep_figure(rows), out / "table1-sweep.png")
    return text(rows)
