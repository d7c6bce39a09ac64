"""What the walk-through of tutorials/own_work says is what its run has measured."""

import csv
import re
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "tutorials/own_work"


def test_the_table_is_that_of_the_run():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    with open(FOLDER / "capitals-run.csv", encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    before, after = re.search(r"\| right in all parts \| (\d+) % \| (\d+) % \|", text).groups()
    greedy = "eval/pass@1_greedy"
    assert int(before) == round(100 * float(row[f"{greedy}_first"]))
    assert int(after) == round(100 * float(row[f"{greedy}_last"]))
    assert row["steps_done"] == "40" and row["last/eval/prompts"] == "11"
    assert float(row["last/eval/rewards/json"]) == float(row["last/eval/rewards/keys"]) == 1
