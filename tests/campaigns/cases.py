"""The campaigns by name: their cases run side by side and remembered, counted, and put in a table."""

import functools
import hashlib
import json
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits
from tqdm import tqdm

import minigrpo
from minigrpo.runs import read_records

from . import damages, kills, rivals, threads
from .ground import PROBLEMS

# The name of a campaign: what makes its ground, one case of it, and how many there are.
CAMPAIGNS = {
    "kills": (kills.prepare, kills.case, kills.CASES),
    "damages": (damages.prepare, damages.case, damages.CASES),
    "flips": (damages.prepare, damages.flip_case, damages.flips),
    "rivals": (rivals.prepare, rivals.case, rivals.CASES),
    "threads": (threads.prepare, threads.case, threads.CASES),
}
WHAT = {
    "kills": "processes killed or asked to stop, up to five times a run, then resumed",
    "damages": "one file of a run damaged; then evaluate, sample, plot, export, resume",
    "flips": "each bit of `settings.json` flipped; then evaluate, resume",
    "rivals": "two processes that want one run",
    "threads": "1, 2 and 4 BLAS threads, whole and resumed with another number",
}


def enter(folder: str) -> None:
    """Work in a folder, on one thread; Ctrl-C is for the process that started this one."""
    if multiprocessing.parent_process():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.chdir(folder)
    threadpool_limits(1)


def work(campaign: str, number: int) -> dict:
    """One case, as a record."""
    return {"campaign": campaign, "case": number} | CAMPAIGNS[campaign][1](number)


@functools.cache
def code() -> str:
    """A checksum of what decides how a case ends."""
    digest = hashlib.sha256()
    for folder in (Path(minigrpo.__file__).parent, Path(__file__).parent):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def machine() -> dict:
    """Where this was measured."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    blas = [f"{x['internal_api']} {x['version']}" for x in threadpool_info() if x["user_api"] == "blas"]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": (names or [platform.processor()])[0],
        "cores": os.cpu_count(),
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "BLAS": ", ".join(blas) or "unknown",
    }


def count(records: list[dict]) -> dict:
    """How the cases of a campaign ended."""
    good = [record for record in records if not record["problems"]]
    found = {how: sum(record["ended"] == how for record in good) for how in ("same", "refused")}
    return {"cases": len(records)} | found | {kind: sum(kind in r["problems"] for r in records) for kind in PROBLEMS}


def table(data: dict) -> str:
    """results/reliability.md from reliability.json."""
    columns = {"cases": "cases", "same": "as undisturbed", "refused": "refused in a line", **PROBLEMS}
    text = "# What a run survives\n\n`python -m tests.campaigns` measures this; "
    text += "`tests/campaigns/` says what is done and what counts.\n"
    for title, part in data.items():
        text += f"\n## {title}\n\n{part['date']}; {', '.join(f'{k} {v}' for k, v in part['machine'].items())}\n\n"
        text += f"| campaign | {' | '.join(columns.values())} |\n|---|{'---:|' * len(columns)}\n"
        for name in filter(part["campaigns"].get, CAMPAIGNS):
            found = part["campaigns"][name]
            text += f"| {name}: {WHAT[name]} | {' | '.join(f'{found[key]:,}' for key in columns)} |\n"
    return text


def run(campaign: str, cases: int | None, processes: int, cache: Path) -> list[dict]:
    """The records of a campaign's cases (all, or so many evenly spaced ones), those that are in the cache not run again."""
    prepare, _, total = CAMPAIGNS[campaign]
    known = {}
    if cache.exists():
        for record in read_records(cache):
            known[record["code"], record["campaign"], record["case"]] = record
    context, before = multiprocessing.get_context("spawn"), os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        enter(folder)
        try:
            prepare()
            total = total() if callable(total) else total
            numbers = sorted({int(x) for x in np.linspace(0, total - 1, min(cases or total, total))})
            waiting = [n for n in numbers if (code(), campaign, n) not in known]
            with ProcessPoolExecutor(processes, context, enter, (folder,)) as pool:
                jobs = [pool.submit(work, campaign, n) for n in waiting]
                silent = not sys.stderr.isatty()
                try:
                    for job in tqdm(as_completed(jobs), campaign, len(jobs), unit="case", disable=silent):
                        record = job.result() | {"code": code()}
                        known[code(), campaign, record["case"]] = record
                        with open(cache, "a", encoding="utf-8") as file:
                            file.write(json.dumps(record) + "\n")
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
        finally:
            os.chdir(before)
    return [known[code(), campaign, n] for n in numbers]
