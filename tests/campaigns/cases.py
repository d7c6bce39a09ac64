"""The campaigns by name: their cases run side by side, remembered, counted, put in a table."""

import functools
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import minigrpo
from minigrpo.system.files import read_records

from . import damages, flips, kills, rivals, threads
from .ground import PROBLEMS, ended

MODULES = (kills, damages, flips, rivals, threads)
CAMPAIGNS = {module.__name__.rpartition(".")[2]: module for module in MODULES}


def enter(folder: str) -> None:
    """Work in a folder, on one thread; Ctrl-C is for the process that started this one."""
    if multiprocessing.parent_process():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.chdir(folder)
    threadpool_limits(1)


def work(campaign: str, number: int) -> dict:
    """One case, as a record; that the judge itself fails is a problem, too."""
    try:
        found = CAMPAIGNS[campaign].case(number)
    except Exception:
        found = ended("same", [("traceback", traceback.format_exc())])
    return {"campaign": campaign, "case": number} | found


@functools.cache
def code() -> str:
    """A checksum of what decides how a case ends."""
    digest = hashlib.sha256()
    for folder in (Path(minigrpo.__file__).parent, Path(__file__).parent):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def run(campaign: str, cases: int | None, processes: int, cache: Path) -> list[dict]:
    """The records of a campaign's cases, all or so many evenly spaced ones.

    Each is written to the cache when it is there; what the cache has of this code is not run again.
    """
    records = read_records(cache) if cache.exists() else []
    if cache.exists() and not cache.read_bytes().endswith(b"\n"):  # a line that was cut short
        cache.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    known = {r["case"]: r for r in records if r["campaign"] == campaign and r["code"] == code()}
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        enter(folder)
        try:
            CAMPAIGNS[campaign].prepare()
            total = CAMPAIGNS[campaign].cases()
            wanted = total if cases is None else min(cases, total)
            numbers = sorted({int(number) for number in np.linspace(0, total - 1, wanted)})
            waiting = [number for number in numbers if number not in known]
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(processes, spawn, enter, (folder,)) as pool:
                jobs = [pool.submit(work, campaign, number) for number in waiting]
                silent = not sys.stderr.isatty()
                try:
                    for job in tqdm(as_completed(jobs), campaign, len(jobs), disable=silent):
                        record = job.result() | {"code": code()}
                        known[record["case"]] = record
                        with open(cache, "a", encoding="utf-8") as file:
                            file.write(json.dumps(record) + "\n")
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
        finally:
            os.chdir(before)
    return [known[number] for number in numbers]


def count(records: list[dict]) -> dict:
    """How the cases of a campaign ended."""
    found = {"cases": len(records)}
    for how in ("same", "refused"):
        found[how] = sum(r["ended"] == how and not r["problems"] for r in records)
    if stopped := sum(r.get("stopped", 0) for r in records):
        found["stopped"] = stopped
    return found | {kind: sum(kind in r["problems"] for r in records) for kind in PROBLEMS}


def table(data: dict) -> str:
    """reliability.md from what is in reliability.json."""
    columns = {"cases": "cases", "same": "as undisturbed", "refused": "refused in a line"}
    columns |= PROBLEMS
    text = "# What a run survives\n\nMade by `python -m tests.campaigns`; `tests/campaigns/` says "
    text += "what is done in a case.\nA case counts in each column whose problem it had.\n"
    for title, part in data.items():
        where = ", ".join(f"{key} {value}" for key, value in part["machine"].items())
        text += f"\n## {title}\n\n{part['date']}; {where}\n\n| campaign | "
        text += " | ".join(columns.values()) + f" |\n|---|{'---:|' * len(columns)}\n"
        for name in filter(part["campaigns"].get, CAMPAIGNS):
            found = part["campaigns"][name]
            counts = " | ".join(f"{found[key]:,}" for key in columns)
            stopped = (
                f" (a signal ended one {found['stopped']:,} times in all)"
                if "stopped" in found
                else ""
            )
            text += f"| {name}: {CAMPAIGNS[name].WHAT}{stopped} | {counts} |\n"
    return text
