"""`minigrpo demo`: the main result in a minute, from real rollouts to a report to pass around.

1. A policy learns to add from imperfect demonstrations and samples groups: they are trees.
2. Theorem 1 is checked on these very rollouts, in float64.
3. GRPO and λ-GRPO train on the paper's tree walk at two learning rates; each of the 16 paths is the
   target equally often.

Nothing in the report is written beforehand: numbers, figures and verdicts come from what was just
measured.
"""

from __future__ import annotations

import base64
import functools
import html
import json
import tempfile
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from string import Template
from textwrap import indent
from typing import Any

import numpy as np

from minigrpo.experiments.controls import COMPARED, TITLES
from minigrpo.experiments.many_walks import BLOCK, GROUP_SIZE, LAST, STEPS, run_walks
from minigrpo.experiments.parallel import run_jobs
from minigrpo.experiments.table1 import summary
from minigrpo.experiments.tables import mean_and_interval, select
from minigrpo.logs.groups import Group, read_groups, statistics_text, tree_statistics
from minigrpo.rewards import check_rewards
from minigrpo.runs.evaluation import evaluate
from minigrpo.runs.policy import make_model, warm_start
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import sample_records
from minigrpo.sampler import sample
from minigrpo.show.drawing import tree_text
from minigrpo.show.explorer import explorer_page
from minigrpo.show.plots import learning_curves, save
from minigrpo.show.tree_plots import draw_tree, draw_trees_page
from minigrpo.system.files import replace
from minigrpo.tasks import load_task, sampling_limits
from minigrpo.verify.equivalence import Equivalence, check_equivalence

ARITHMETIC = TrainSettings(
    "arithmetic", {"digits": 2}, dim=64, n_heads=4, warm_start_steps=300, dtype="float64"
)
GROUPS, COMPLETIONS = 12, 8
RATES = (3e-4, 6e-4)  # a small learning rate, and about the best of both objectives in table 1
CHUNK = 16  # runs side by side: one to each target
NAMES = {name: TITLES[name] for name in COMPARED}

Walks = dict[tuple[int, float, str], np.ndarray]
"""(n, learning rate, objective): the share of target paths, (seeds, steps / BLOCK)."""
ROW = "n={n}  rate {learning_rate:g}  {name:7} target frequency {target_frequency:.3f}  "
ROW += "[{low:.3f}, {high:.3f}]  found by {found:.0%}"

_print = functools.partial(print, flush=True)


def demo(
    out: str | Path,
    *,
    seeds: int = 64,
    steps: int = STEPS,
    processes: int | None = None,
    say: Callable[[str], None] = _print,
) -> Path:
    """Run the demonstration and write a folder with figures, data and two pages.   -> report.html

    seeds: runs of the tree walk for each objective, n and learning rate.
    steps: of the tree walks, a multiple of ten; the paper's are 250.
    Raises ValueError if fewer than 2 seeds are asked for or the folder cannot be written.
    """
    if seeds < 2:
        raise ValueError(f"{seeds} seeds give no confidence band: take at least 2")
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=out, prefix=".new-")
    except OSError as error:
        why = f"cannot write to {out} ({error.strerror})"
        raise ValueError(f"{why}: give a folder that can be written") from error
    with folder as new:  # so that a demo that fails leaves the last one as it was
        _demo(Path(new), seeds, steps, processes, say)
        for file in sorted(Path(new).iterdir(), key=lambda file: file.name == "report.html"):
            replace(file, out / file.name)
    return out / "report.html"


def _demo(
    out: Path, seeds: int, steps: int, processes: int | None, say: Callable[[str], None]
) -> None:
    started = time.perf_counter()
    say("1/3  A policy that learned to add from imperfect demonstrations samples groups")
    task = load_task(ARITHMETIC.task, **ARITHMETIC.task_options)
    model = make_model(ARITHMETIC, task)
    warm_start(model, task, np.random.default_rng(ARITHMETIC.seed), ARITHMETIC, progress=True)
    accuracy = evaluate(model, task, n_prompts=100, progress=False)["eval/pass@1_greedy"]
    rng = np.random.default_rng(1)
    prompts = task.prompts(rng, GROUPS, "test")
    rollouts = sample(model, prompts, COMPLETIONS, rng, **sampling_limits(task))
    rewards = check_rewards(task.score(rollouts), rollouts.tree)
    records = sample_records(rollouts, rewards, task, 0)
    lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
    (out / "groups.jsonl").write_text(lines)
    groups = read_groups(lines, unit="characters")
    # One worth looking at: rewards differ, and there are as many forks as possible.
    shown = max(groups, key=lambda g: (g.rewards.std() > 0, len(g.tree.steps()), -g.tree.n_nodes))
    stats = tree_statistics([rollouts.tree])  # with EOS, which the groups as texts lack
    drawn = shown.tree, shown.rewards, shown.labels
    say("\n" + tree_text(*drawn, prompt=shown.prompt) + "\n")
    save(draw_tree(*drawn, title=f"A real group: {shown.prompt}"), out / "tree.png")
    save(draw_trees_page(groups), out / "trees.png")
    (out / "explorer.html").write_text(explorer_page(shown), encoding="utf-8")

    say("2/3  Theorem 1 on these rollouts, in float64")
    theorem = check_equivalence(model, rollouts, rewards, rng)
    (out / "equivalence.json").write_text(json.dumps(vars(theorem), indent=2, allow_nan=False))
    say(theorem.text() + "\n")

    say(f"3/3  GRPO and λ-GRPO on the paper's tree walk, {seeds} runs each, over all 16 targets")
    results = _walks(seeds, steps, processes)
    rows = [
        {"n": n, "learning_rate": rate, "objective": objective, "seeds": len(values)}
        | summary(_final(values))
        for (n, rate, objective), values in results.items()
    ]
    _write_results(results, rows, steps, out)
    learning = _of_learning(rows, differences(results))
    say(indent(f"{learning['table_n1']}\n{learning['table_n2']}", "     "))
    numbers = {"accuracy": f"{accuracy:.0%}", "seeds": seeds, "steps": steps, "last": LAST}
    numbers |= _of_trees(shown, stats) | _of_theorem(theorem) | learning
    numbers["seconds"] = f"{time.perf_counter() - started:.0f}"
    (out / "report.html").write_text(_page(numbers, out), encoding="utf-8")


# -- the tree walks --------------------------------------------------------------------------------


def _walks(seeds: int, steps: int, processes: int | None) -> Walks:
    keys = [(n, rate, objective) for n in (1, 2) for rate in RATES for objective in NAMES]
    starts = range(0, seeds, CHUNK)
    setting = {"r_neg": -1.0, "optimizer": "adamw", "steps": steps}
    jobs = [
        {"arm": objective, "n": n, "learning_rate": rate, "first_seed": first}
        | {"runs": min(CHUNK, seeds - first)}
        | setting
        for n, rate, objective in keys
        for first in starts
    ]
    found = iter(run_jobs(run_walks, jobs, title="tree walk", processes=processes))
    paths = BLOCK * GROUP_SIZE
    return {key: np.concatenate([next(found) for _ in starts]) / paths for key in keys}


def _final(values: np.ndarray) -> np.ndarray:
    """The frequency of the target path in each run's last LAST steps.   (seeds,)"""
    return values[:, -LAST // BLOCK :].mean(1)


def differences(results: Walks) -> dict[tuple[int, float], tuple[float, float, float]]:
    """λ-GRPO's frequency less GRPO's, run by run, as two runs of a seed have the same target.

    (n, learning rate): mean, low, high of the 95 % bootstrap interval.
    """
    return {
        key: mean_and_interval(_final(results[*key, "lambda_grpo"]) - _final(results[*key, "grpo"]))
        for key in dict.fromkeys(key[:2] for key in results)
    }


def _write_results(results: Walks, rows: list[dict[str, Any]], steps: int, out: Path) -> None:
    (out / "table.json").write_text(json.dumps(rows, indent=2, allow_nan=False))
    middles = np.arange(steps // BLOCK) * BLOCK + BLOCK / 2  # each point is the mean of a block
    for n in (1, 2):
        chosen = {key: values for key, values in results.items() if key[0] == n}
        curves = {f"{NAMES[key[2]]}, {key[1]:g}": values for key, values in chosen.items()}
        about = {"ylabel": "frequency of the target path", "steps": middles}
        about["title"] = f"Tree walk, n = {n}, r_neg = −1, two learning rates"
        save(learning_curves(curves, **about), out / f"curves-n{n}.png")
    data = [
        {name: row[name] for name in ("n", "learning_rate", "objective")}
        | {"target_frequency": values.tolist()}
        for row, values in zip(rows, results.values(), strict=True)
    ]
    (out / "curves.json").write_text(json.dumps(data, allow_nan=False))


# -- the report ------------------------------------------------------------------------------------


def _of_trees(shown: Group, stats: dict[str, Any]) -> dict[str, Any]:
    drawing = tree_text(shown.tree, shown.rewards, shown.labels, prompt=shown.prompt)
    return stats | {"k": len(shown.texts), "tree": drawing, "statistics": statistics_text(stats)}


def _of_theorem(theorem: Equivalence) -> dict[str, str]:
    agree = theorem.worst < 1e-12
    verdict = "They agree to rounding" if agree else "They DISAGREE: please report this as a bug"
    return {"verdict": verdict, "worst": f"{theorem.worst:.1e}", "theorem": theorem.text()}


def _of_learning(
    rows: list[dict[str, Any]], differences: dict[tuple[int, float], tuple[float, float, float]]
) -> dict[str, str]:
    found = {}
    for n in (1, 2):
        verdicts, table = [], []
        for rate in RATES:
            mean, low, high = differences[n, rate]
            told = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
            relation = "above" if low > 0 else "below" if high < 0 else "not distinguishable from"
            verdicts.append(f"at learning rate {rate:g} λ-GRPO is {relation} GRPO ({told})")
            for row in select(rows, n=n, learning_rate=rate):
                table.append(ROW.format(name=NAMES[row["objective"]], **row))
            table.append(f"{'':19}difference by seed      {told}")
        found |= {f"verdicts_n{n}": "; ".join(verdicts), f"table_n{n}": "\n".join(table)}
    return found


def _page(numbers: dict[str, Any], out: Path) -> str:
    """The report: demo.html with its places filled, and the figures in it."""
    template = Template((files("minigrpo.command") / "demo.html").read_text(encoding="utf-8"))
    filled = {name: html.escape(str(value)) for name, value in numbers.items()}
    for file in out.glob("*.png"):
        data = base64.b64encode(file.read_bytes()).decode()
        filled[file.stem.replace("-", "_") + "_png"] = f"data:image/png;base64,{data}"
    return template.substitute(filled)
