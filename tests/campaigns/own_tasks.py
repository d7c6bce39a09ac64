"""Do untuned tasks learn with the default settings, and are healthy runs left without a warning?

    python -m tests.campaigns.own_tasks       # about an hour of one core; goes on where it stopped

Writes results/own-tasks.json: greedy accuracy on held-out problems of each run, the mean reward of
the first 5 and of the last 10 steps, and the kinds of the warnings that were given.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train
from minigrpo.runs.warning_signs import Watchman
from minigrpo.system.files import read_records

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
OWN = {  # files of tutorials/own_work that recommend nothing, and the length of their warm starts
    "parity.py:Parity": 300,
    "sort_letters.py:SortLetters": 400,
    "brackets.py:Brackets": 400,
}
ARMS = {
    "defaults": {},
    "1e-3, one prompt": {"learning_rate": 1e-3, "prompts_per_step": 1, "warmup_steps": 0},
    "3e-4": {"learning_rate": 3e-4},
    "half the warm start": {},
}
GREEDY = "eval/pass@1_greedy"


def cases() -> list[dict]:
    """Settings of all runs, the own tasks' first."""
    shape = {"steps": 120, "eval_every": 40}
    own = [
        {"arm": arm, "task": f"tutorials/own_work/{task}", "warm_start_steps": n, "seed": seed}
        | shape
        | (changes or {"warm_start_steps": n // (2 if arm == "half the warm start" else 1)})
        for arm, changes in ARMS.items()
        for task, n in OWN.items()
        for seed in range(3)
    ]
    walks = [
        {"arm": "built-in", "task": "treewalk", "seed": seed, "objective": objective}
        for seed in range(40)
        for objective in ("lambda_grpo", "grpo")
    ]
    short = {"countdown": {"warm_start_steps": 1000, "steps": 30, "eval_every": 15}}
    others = [
        {"arm": "built-in", "task": task, "seed": 0, "objective": objective} | short.get(task, {})
        for task in ("arithmetic", "countdown")
        for objective in ("lambda_grpo", "grpo")
    ]
    return own + walks + others


def work(case: dict) -> dict:
    """One run: its case, the metrics of its steps, and what it said."""
    os.chdir(ROOT)
    history, said = [], io.StringIO()
    settings = TrainSettings.for_task(**{k: v for k, v in case.items() if k != "arm"})
    with contextlib.redirect_stderr(said), threadpool_limits(1):
        train(settings, on_step=history.append)
    lines = [line for line in said.getvalue().splitlines() if line.startswith("warning: ")]
    return {"key": key(case), "case": case, "history": history, "said": lines}


def kinds(record: dict) -> list[str]:
    """The kinds of warnings of a run: from its metrics, and what was said of its parameters."""
    watchman = Watchman()
    found = {kind for metrics in record["history"] for kind in watchman.look(metrics)}
    if any("the parameters move" in line for line in record["said"]):
        found.add("no movement")
    return sorted(found)


def own_row(arm: str, task: str, records: list[dict]) -> dict:
    """What the table tells of a task's runs, in the order of their seeds."""
    greedy = [[m[GREEDY] for m in r["history"] if GREEDY in m] for r in records]
    rewards = [[m["reward"] for m in r["history"] if "reward" in m] for r in records]
    return {
        "arm": arm,
        "task": task.partition(":")[2],
        "warm_start_steps": records[0]["case"]["warm_start_steps"],
        "before": [g[0] for g in greedy],
        "after": [g[-1] for g in greedy],
        "reward_before": round(float(np.mean([r[:5] for r in rewards])), 4),
        "reward_after": round(float(np.mean([r[-10:] for r in rewards])), 4),
        "warned": sum(bool(kinds(r)) for r in records),
        "warnings": [kinds(r) for r in records],
    }


def built_in_row(task: str, records: list[dict]) -> dict:
    """How many runs of a built-in task there were, and how many of them were warned."""
    warned = [r["case"] | {"kinds": found} for r in records if (found := kinds(r))]
    steps = [m for r in records for m in r["history"] if "reward" in m]
    about = {"task": task, "runs": len(records), "steps": len(steps)}
    return about | {"warned": len(warned), "cases": warned}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--only", help="runs whose case has this in it; then no table is written")
    a = parser.parse_args()
    cache, records = RESULTS / "own-tasks.cache.jsonl", {}
    for record in read_records(cache) if cache.exists() else []:
        records[record.get("key", key(record["case"]))] = record
    wanted = [case for case in cases() if (a.only or "") in str(case)]
    waiting = [case for case in wanted if key(case) not in records]
    with ProcessPoolExecutor(a.processes) as pool:
        jobs = [pool.submit(work, case) for case in waiting]
        for job in tqdm(as_completed(jobs), "runs", len(jobs), disable=not sys.stderr.isatty()):
            record = job.result()
            records[record["key"]] = record
            with open(cache, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
    if a.only:
        return
    groups: dict[tuple[str, str], list[dict]] = {}
    for case in wanted:
        groups.setdefault((case["arm"], case["task"]), []).append(records[key(case)])
    parts = {"own": [], "built_in": []}
    for (arm, task), some in groups.items():
        if arm == "built-in":
            parts["built_in"].append(built_in_row(task, some))
        else:
            parts["own"].append(own_row(arm, task, some))
    out = json.dumps(parts, ensure_ascii=False, indent=1) + "\n"
    (RESULTS / "own-tasks.json").write_text(out, encoding="utf-8")


def key(case: dict) -> str:
    """A case's name, with a checksum of its task's file."""
    file = ROOT / case["task"].partition(":")[0]
    code = hashlib.sha256(file.read_bytes()).hexdigest()[:8] if file.is_file() else ""
    return json.dumps(case, sort_keys=True) + code


if __name__ == "__main__":
    main()
