"""Do untuned tasks learn with the default settings, and are healthy runs left without a warning?

    python -m tests.campaigns.own_tasks       # about an hour of one core; goes on where it stopped

Writes results/own-tasks.json: for each run greedy accuracy on held-out problems and the mean reward
before and after, and the kinds of the warnings that it gave.
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
ENDS = 10  # steps whose mean reward is told at the end, 5 at the start
KEPT = ("loss", "grad_norm", "learning_rate", "num_tokens", "tree/", "step_time", "reward_std")


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
    others = [
        {"arm": "built-in", "task": task, "seed": seed, "objective": objective}
        for task in ("arithmetic", "countdown")
        for seed in range(2)
        for objective in ("lambda_grpo", "grpo")
    ]
    text = [
        {"arm": "built-in", "task": task, "seed": 0, "model": "smollm2"}
        for task in ("sums", "largest")
    ]
    return own + walks + others + text


def work(case: dict) -> dict:
    """One run: its case, the metrics of its steps, and what it said."""
    threadpool_limits(1)
    os.chdir(ROOT)
    history, said = [], io.StringIO()
    settings = TrainSettings.for_task(**{k: v for k, v in case.items() if k != "arm"})
    with contextlib.redirect_stderr(said):
        train(settings, on_step=history.append)
    lines = [line for line in said.getvalue().splitlines() if line.startswith("warning: ")]
    return {"case": case, "history": history, "said": lines}


def row(record: dict) -> dict:
    """What the table tells of a run."""
    steps = [m for m in record["history"] if "reward" in m]
    greedy = [m["eval/pass@1_greedy"] for m in record["history"] if "eval/pass@1_greedy" in m]
    rewards = np.array([m["reward"] for m in steps])
    watchman = Watchman()
    kinds = [kind for m in record["history"] for kind in watchman.look(m)]
    about = {k: v for k, v in record["case"].items() if k in ("arm", "task", "seed", "objective")}
    about |= {"warm_start": record["case"].get("warm_start_steps", 0)}
    if greedy:
        about |= {"before": greedy[0], "after": greedy[-1]}
    about |= {"reward_before": rewards[:5].mean().round(4), "reward_after": rewards[-ENDS:].mean()}
    about["reward_after"] = about["reward_after"].round(4)
    about["correct_after"] = float(np.mean([m["frac_correct"] for m in steps[-ENDS:]]).round(4))
    return about | {"said": len(record["said"]), "kinds": kinds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--arm", nargs="+", help="only these (default: all)")
    a = parser.parse_args()
    cache, records = RESULTS / "own-tasks.cache.jsonl", {}
    for record in read_records(cache) if cache.exists() else []:
        records[key(record["case"])] = record
    wanted = [case for case in cases() if not a.arm or case["arm"] in a.arm]
    waiting = [case for case in wanted if key(case) not in records]
    with ProcessPoolExecutor(a.processes) as pool:
        jobs = [pool.submit(work, case) for case in waiting]
        for job in tqdm(as_completed(jobs), "runs", len(jobs), disable=not sys.stderr.isatty()):
            record = job.result()
            records[key(record["case"])] = record
            with open(cache, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
    rows = [row(records[key(case)]) for case in wanted]
    out = json.dumps({"runs": rows}, ensure_ascii=False, indent=1) + "\n"
    (RESULTS / "own-tasks.json").write_text(out, encoding="utf-8")


def key(case: dict) -> str:
    """A case's name, with a checksum of its task's file."""
    file = ROOT / case["task"].partition(":")[0]
    code = hashlib.sha256(file.read_bytes()).hexdigest()[:8] if file.is_file() else ""
    return json.dumps(case, sort_keys=True) + code


if __name__ == "__main__":
    main()
