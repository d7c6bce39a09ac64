"""Run campaigns, print their table and write it; the same command goes on where it stopped."""

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import libraries

from .cases import CAMPAIGNS, count, enter, run, table, work
from .ground import PROBLEMS, THREADS

RESULTS = Path(__file__).parents[2] / "results"


def main() -> int:
    """-> 1 if there was any problem"""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns", description=__doc__)
    add = parser.add_argument
    add("--campaign", nargs="+", choices=CAMPAIGNS, default=list(CAMPAIGNS))
    add("--cases", type=int, help="so many cases of each (default: all)")
    add("--case", type=int, help="one case, with all that it says; nothing is written")
    add("--processes", type=int, default=os.cpu_count())
    add("--title", default="Now", help="of the part of the table that is made (default: Now)")
    add("--out", type=Path, default=RESULTS, metavar="FOLDER")
    a = parser.parse_args()
    if a.case is not None:
        return tell(a.campaign[0], a.case)
    a.out.mkdir(parents=True, exist_ok=True)
    file, failed = (a.out / "reliability.json").resolve(), False
    data = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    part = data.setdefault(a.title, {"campaigns": {}})
    where = {"system": f"{platform.system()} {platform.machine()}"} | libraries()
    part |= {"date": datetime.date.today().isoformat(), "machine": where}
    for campaign in a.campaign:
        records = run(campaign, a.cases, a.processes, file.with_suffix(".cache.jsonl"))
        part["campaigns"][campaign] = count(records)
        bad = [record for record in records if record["problems"]]
        for record in bad[:20]:
            print(f"python -m tests.campaigns --campaign {campaign} --case {record['case']}")
            print(*(f"    {text}" for text in record["problems"].values()), sep="\n")
        failed |= bool(bad)
        file.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        file.with_suffix(".md").write_text(table(data), encoding="utf-8")
    print(table(data))
    return failed


def tell(campaign: str, number: int) -> int:
    """Run one case, and print all that it says."""
    with tempfile.TemporaryDirectory() as folder:
        enter(folder)
        CAMPAIGNS[campaign].prepare()
        record = work(campaign, number)
        os.chdir("/")
    print(record["ended"])
    for kind, text in record["problems"].items():
        print(f"{PROBLEMS[kind]}: {text}")
    return bool(record["problems"])


if __name__ == "__main__":
    os.environ |= dict.fromkeys(THREADS, "1")
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on")
