"""`minigrpo demo`: the main result in a minute, from real rollouts to a report that one can pass around.

1. A policy learns to add from imperfect demonstrations (warm start) and samples groups: they are trees.
2. Theorem 1 on these very rollouts, in float64.
3. GRPO and λ-GRPO train on the paper's tree walk over several seeds.
Nothing in the report is written beforehand: numbers, figures and verdicts come from what was just measured.
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
from typing import Any

import numpy as np

from minigrpo.equivalence import Equivalence, check_equivalence
from minigrpo.evaluation import evaluate
from minigrpo.experiments.target_frequency import LAST, Arm, run_arms, table, target_frequency
from minigrpo.explorer import explorer_page
from minigrpo.groups import Group, read_groups, statistics_text, tree_statistics, tree_text
from minigrpo.plots import draw_tree, draw_trees_page, learning_curves, metrics_figure, save, statistics_figure
from minigrpo.policy import make_model
from minigrpo.rewards import check_rewards
from minigrpo.runs import replace
from minigrpo.sampler import Rollouts, sample
from minigrpo.tasks import Task, load_task, sampling_limits
from minigrpo.trainer import TrainSettings, sample_records, warm_start
from minigrpo.transformer import Transformer

ARITHMETIC = TrainSettings(
    task="arithmetic", task_options={"digits": 2}, dim=64, n_layers=2, n_heads=4, warm_start_steps=300, dtype="float64", seed=0
)
GROUPS, GROUP_SIZE = 12, 8
LEARNING_RATE = 3e-4  # of the tree walk; small enough that 250 steps show the speed; the sweep is in RESULTS.md
NAMES = {"grpo": "GRPO", "lambda_grpo": "λ-GRPO"}


def demo(
    out: str | Path, *, seeds: int = 8, steps: int = 250, processes: int | None = None, say: Callable[[str], None] | None = None
) -> Path:
    """Run the demonstration and write figures, data, report.html and explorer.html into a folder.   -> the report

    steps: of the tree walks; the paper's are 250.
    Raises ValueError if fewer than 2 seeds are asked for or the folder cannot be written.
    """
    if seeds < 2:
        raise ValueError(f"{seeds} seeds give no confidence band: take at least 2")
    out, say = Path(out), say or functools.partial(print, flush=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=out, prefix=".new-")
    except OSError as error:
        raise ValueError(f"cannot write to {out} ({error.strerror}): give a folder that can be written") from error
    with folder as new:  # so that a demo that fails leaves the last one as it was
        _demo(Path(new), seeds, steps, processes, say)
        for file in sorted(Path(new).iterdir(), key=lambda file: file.name == "report.html"):
            replace(file, out / file.name)
    return out / "report.html"


def _demo(out: Path, seeds: int, steps: int, processes: int | None, say: Callable[[str], None]) -> None:
    started = time.perf_counter()
    say("1/3  A policy that learned to add from imperfect demonstrations samples groups of completions")
    model, task = _warm_started()
    accuracy = evaluate(model, task, n_prompts=100, progress=False)["eval/pass@1_greedy"]
    rng = np.random.default_rng(1)
    limits = sampling_limits(task)
    rollouts = sample(model, task.prompts(rng, GROUPS, "test"), GROUP_SIZE, rng, **limits)
    rewards = check_rewards(task.score(rollouts), rollouts.tree)
    groups = _as_groups(rollouts, rewards, task, out)
    shown = max(groups, key=_interest)
    stats = tree_statistics([rollouts.tree])  # with EOS, which the groups as texts have not
    say("\n" + tree_text(shown.tree, shown.rewards, shown.labels, prompt=shown.prompt) + "\n")
    save(draw_tree(shown.tree, shown.rewards, shown.labels, title=f"A real group: {shown.prompt}"), out / "tree.png")
    save(draw_trees_page(groups), out / "trees.png")
    (out / "explorer.html").write_text(explorer_page(shown), encoding="utf-8")
    save(statistics_figure(stats), out / "statistics.png")

    say("2/3  Theorem 1 on these rollouts, in float64")
    theorem = check_equivalence(model, rollouts, rewards, rng)
    (out / "equivalence.json").write_text(json.dumps(vars(theorem), indent=2))
    say(theorem.text() + "\n")

    say(f"3/3  GRPO and λ-GRPO on the paper's tree walk, {seeds} seeds each")
    arms = [Arm(objective, n, LEARNING_RATE) for n in (1, 2) for objective in NAMES]
    results = run_arms(arms, range(seeds), steps=steps, processes=processes)
    rows = table(results)
    _write_results(results, rows, out)
    for row in rows:
        say(_row_text(row))
    took = time.perf_counter() - started
    sections = [*_tree_sections(groups, shown, stats, accuracy), _theorem_section(theorem), *_learning_sections(rows, seeds, steps)]
    (out / "report.html").write_text(_page(sections, out, took), encoding="utf-8")


def _warm_started() -> tuple[Transformer, Task]:
    task = load_task(ARITHMETIC.task, **ARITHMETIC.task_options)
    model = make_model(ARITHMETIC, task)
    warm_start(model, task, np.random.default_rng(ARITHMETIC.seed), ARITHMETIC, progress=True)
    return model, task


def _as_groups(rollouts: Rollouts, rewards: np.ndarray, task: Task, out: Path) -> list[Group]:
    text = "".join(json.dumps(record) + "\n" for record in sample_records(rollouts, rewards, task, 0))
    (out / "groups.jsonl").write_text(text)
    return read_groups(text, unit="characters")


def _interest(group: Group) -> tuple:
    """Rewards differ, then as many forks as possible: a group worth looking at."""
    return group.rewards.std() > 0, len(group.tree.steps()), -group.tree.n_nodes


def _write_results(results: dict[Arm, list], rows: list[dict[str, Any]], out: Path) -> None:
    (out / "table.json").write_text(json.dumps(rows, indent=2))
    for n in (1, 2):
        curves = {NAMES[arm.objective]: target_frequency(runs) for arm, runs in results.items() if arm.n == n}
        title = f"Tree walk, n = {n}, r_neg = −1 (learning rate {LEARNING_RATE:g})"
        save(learning_curves(curves, ylabel="frequency of the target path", title=title, smooth=10), out / f"curves-n{n}.png")
    data = [arm._asdict() | {"target_frequency": target_frequency(runs).tolist()} for arm, runs in results.items()]
    (out / "curves.json").write_text(json.dumps(data))
    for arm, runs in results.items():
        (out / f"metrics-{arm.objective}-n{arm.n}-seed0.jsonl").write_text("".join(json.dumps(m) + "\n" for m in runs[0]))
    save(metrics_figure(results[Arm("lambda_grpo", 1, LEARNING_RATE)][0]), out / "metrics.png")


def _row_text(row: dict[str, Any]) -> str:
    interval = f"{row['target_frequency']:.3f}  [{row['low']:.3f}, {row['high']:.3f}]"
    return f"     n={row['n']}  {NAMES[row['objective']]:7} target frequency of the last {LAST} steps {interval}"


# -- the report ----------------------------------------------------------------------------------------------------------

Section = tuple[str, str, list[str], str]  # title, two sentences, figures, preformatted text


def _tree_sections(groups: list[Group], shown: Group, stats: dict[str, Any], accuracy: float) -> list[Section]:
    unique, flat = stats["unique_tokens"], stats["flat_tokens"]
    return [
        (
            "A group of completions is a tree",
            f"A small transformer learned two-digit sums from demonstrations that often forget the carry; greedily it is right "
            f"on {accuracy:.0%} of 100 held-out problems. It wrote the {len(shown.texts)} completions below, and only the outcome "
            "of each is rewarded, yet every shared step has a value R̂ (the mean outcome of the completions that pass through it) "
            "and an advantage Â: a process reward.",
            ["tree.png"],
            tree_text(shown.tree, shown.rewards, shown.labels, prompt=shown.prompt),
        ),
        (
            "Trees are the rule",
            f"Of {stats['groups']} groups, {stats['flat_groups']} have no shared prefix at all. Their completions have {flat} "
            f"tokens, of which {unique} are distinct (prefix, token) pairs: the model computes only those.",
            ["trees.png", "statistics.png"],
            statistics_text(stats),
        ),
    ]


def _theorem_section(theorem: Equivalence) -> Section:
    verdict = "They agree to rounding" if theorem.worst < 1e-12 else "They DISAGREE: this should be reported as a bug"
    return (
        "Theorem 1: GRPO is this process reward model",
        "The loss and all gradients were computed twice on these rollouts: the usual way, on padded rows with one advantage for "
        f"each completion, and on the tree with one process reward for each step. {verdict}: the largest relative difference is "
        f"{theorem.worst:.1e}.",
        [],
        theorem.text(),
    )


def _learning_sections(rows: list[dict[str, Any]], seeds: int, steps: int) -> list[Section]:
    sections: list[Section] = []
    for n in (1, 2):
        grpo, fixed = (next(r for r in rows if r["n"] == n and r["objective"] == o) for o in NAMES)
        apart = fixed["low"] > grpo["high"] or grpo["low"] > fixed["high"]
        relation = "above" if fixed["target_frequency"] > grpo["target_frequency"] else "not above"
        sections.append(
            (
                f"The flaw and the fix: tree walk with n = {n}, r_neg = −1",
                f"One path of 16 earns 1, paths that share its first {n} move{'s' if n > 1 else ''} earn −1, all others 0.7: GRPO "
                "pushes the shared beginning down once for each completion that took it, λ-GRPO once. "
                f"Over {seeds} seeds λ-GRPO's mean target frequency is {relation} GRPO's, and the 95 % intervals "
                f"{'are apart' if apart else 'overlap'} (last {LAST} of {steps} steps, learning rate {LEARNING_RATE:g} for both).",
                [f"curves-n{n}.png"],
                "\n".join(_row_text(r).strip() for r in (grpo, fixed)),
            )
        )
    text = (
        "One run of λ-GRPO in numbers: as it learns, its completions agree, and the tree needs fewer tokens. Every run logs these."
    )
    return [*sections, ("What a run logs", text, ["metrics.png"], "")]


def _page(sections: list[Section], out: Path, seconds: float) -> str:
    body = []
    for title, text, figures, pre in sections:
        body.append(f"<section><h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>")
        for name in figures:
            data = base64.b64encode((out / name).read_bytes()).decode()
            body.append(f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">')
        body.append(f"<pre>{html.escape(pre)}</pre></section>" if pre else "</section>")
    template = (files("minigrpo") / "demo.html").read_text(encoding="utf-8")
    return template.replace("BODY", "\n".join(body)).replace("SECONDS", f"{seconds:.0f}")
