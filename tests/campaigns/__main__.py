"""python -m tests.campaigns: run the campaigns, print their table and write it; the same command goes on where it stopped."""

import argparse
import datetime
import json
import os
import sys
import tempfile
from pathlib import Path

from .cases import CAMPAIGNS, count, enter, machine, run, table, work
from .ground import PROBLEMS, THREADS

RESULTS = Path(__file__).parents[2] / "results"
AGAIN = "python -m tests.campaigns --campaign {campaign} --case {case}"


def main() -> int:
    """-> 1 if anything went wrong"""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns", description=__doc__)
    parser.add_argument("--campaign", nargs="+", choices=CAMPAIGNS, default=list(CAMPAIGNS))
    parser.add_argument("--cases", type=int, help="so many cases of each (default: all)")
    parser.add_argument("--case", type=int, help="one case, with all that it says; nothing is written")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--title", default="Now", help="of the table's part that this run makes (default: Now)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    a = parser.parse_args()
    if a.case is not None:
        with tempfile.TemporaryDirectory() as folder:
            enter(folder)
            CAMPAIGNS[a.campaign[0]][0]()
            record = work(a.campaign[0], a.case)
            os.chdir("/")
        print(record["ended"], *(f"{PROBLEMS[kind]}: {text}" for kind, text in record["problems"].items()), sep="\n")
        return bool(record["problems"])
    a.out.mkdir(parents=True, exist_ok=True)
    file, failed = (a.out / "reliability.json").resolve(), False
    data = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    part = data.setdefault(a.title, {"campaigns": {}})
    part |= {"date": datetime.date.today().isoformat(), "machine": machine()}
    for campaign in a.campaign:
        records = run(campaign, a.cases, a.processes, file.with_name("reliability.cache.jsonl"))
        part["campaigns"][campaign] = count(records)
        bad = [record for record in records if record["problems"]]
        for record in bad[:20]:
            print(AGAIN.format(**record), *record["problems"].values(), sep="\n    ")
        failed |= bool(bad)
        file.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        file.with_suffix(".md").write_text(table(data), encoding="utf-8")
    print(table(data))
    return failed


if __name__ == "__main__":
    for name in THREADS:
        os.environ[name] = "1"
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on")
