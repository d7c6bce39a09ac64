"""Check a submission and write what Gradescope reads: python results.py SUBMISSION results.json

A point for each right task of the chapters in chapters.json.  A student sees the messages; the
notes, on imports of the package or of a solution, are for the teacher alone.
"""

import json
import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Run the checks and convert what they report."""
    submission, results = map(Path, sys.argv[1:])
    chapters = json.loads(Path(__file__).with_name("chapters.json").read_text(encoding="utf-8"))
    command = [sys.executable, "-P", "-m", "minigrpo", "check", "all", str(submission), "--json"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    tests, notes = [], []
    if done.returncode in (0, 1):
        for task in json.loads(done.stdout)["tasks"]:
            if task["task"].split()[0] in chapters:
                tests.append(as_test(task))
                notes += [f"{task['task']} {note}" for note in task["notes"]]
    found = {"score": sum(test["score"] for test in tests), "tests": tests}
    if not tests:
        found["output"] = f"Nothing could be checked: {done.stderr.strip()[-1000:]}"
    if notes:
        hidden = {"name": "notes for the teacher", "score": 0, "max_score": 0}
        tests.append(hidden | {"output": "\n".join(notes), "visibility": "hidden"})
    results.write_text(json.dumps(found, indent=1), encoding="utf-8")


def as_test(task: dict) -> dict:
    """One task as Gradescope's test."""
    test = {"name": task["task"], "score": task["points"], "max_score": 1, "visibility": "visible"}
    printed = f"\n\nYour code printed:\n{task['printed']}" if task["printed"] else ""
    output = f"{task['state']}\n{task['message']}{printed}"
    return test | {"output": output, "status": "passed" if task["points"] else "failed"}


if __name__ == "__main__":
    main()
