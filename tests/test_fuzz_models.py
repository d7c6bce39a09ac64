"""A few hundred damaged model files (`fuzz_models.py` makes as many as one likes):
each is loaded or refused, nothing else.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="language models need the extra lm")
pytest.importorskip("resource", reason="alarms that end what hangs are there on POSIX systems only")


def test_damaged_models_are_loaded_or_refused() -> None:
    """In a process of its own, whose memory is limited;
    a panic of the tokenizers package may write to stderr.
    """
    command = [
        sys.executable,
        str(Path(__file__).parent / "fuzz_models.py"),
        "--n",
        "600",
        "--seed",
        "0",
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    counts = json.loads(run.stdout.splitlines()[-1])
    assert run.returncode == 0 and counts.keys() == {"loaded", "refused"}, run.stdout + run.stderr
    assert sum(counts.values()) == 600 and min(counts.values()) > 60
