"""What the page says of the losses of TRL, verl and OpenRLHF, and the losses themselves."""

from __future__ import annotations

import json
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "vectors"))

import frameworks  # noqa: E402

STORED = json.loads((ROOT / "vectors" / "frameworks.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "minigrpo" / "integrations" / "README.md").read_text(encoding="utf-8")


def test_the_page_shows_the_stored_table():
    assert list(STORED) == list(frameworks.FRAMEWORKS)
    assert frameworks.table([row for rows in STORED.values() for row in rows]) in PAGE


def test_the_stored_table_is_of_these_vectors():
    """verl is asked for every loss; where the number differs, frameworks.py has to run again."""
    data = json.loads((ROOT / "vectors" / "grpo.json").read_text(encoding="utf-8"))
    kinds = [case["kind"] for case in data["cases"]]
    assert STORED["verl"][0]["cases"] == kinds.count("loss")


def test_what_the_page_says_in_words():
    """Only KL terms without weights, and two NaN, are wrong; TRL's default is another KL term."""
    rows = {(module, row["what"]): row for module, rows in STORED.items() for row in rows}
    for module, nan in (("trl", "exp_before_mask"), *[(m, "all_masked_nan") for m in OTHERS]):
        row = rows[module, "loss"]
        unweighted = row["others"].get("kl_not_weighted", 0)
        assert (unweighted > 0) == (module in OTHERS)
        assert row["others"].get(nan) == 1 and row["error"] < frameworks.AGREES
        assert row["agree"] == row["cases"] - unweighted - 1
    assert rows["trl", frameworks.CORRECTED]["agree"] == 0
    assert rows["verl", "advantages, epsilon 1e-4"]["others"] == {}


OTHERS = ["verl", "openrlhf"]


@pytest.mark.parametrize("module", list(frameworks.FRAMEWORKS))
@pytest.mark.filterwarnings("ignore")
def test_they_still_answer_so(module, monkeypatch):
    if not (find_spec("torch") and find_spec(module)):
        pytest.skip(f"needs PyTorch and {frameworks.TITLES[module]}")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = frameworks.measure(module)
    for row, stored in zip(found, STORED[module], strict=True):
        assert row["error"] < frameworks.AGREES
        assert {**row, "error": 0, "framework": ""} == {**stored, "error": 0, "framework": ""}
