"""The campaigns' short forms, that they would see a fault, and the table of the long form."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fcntl", reason="SIGKILL and SIGHUP are of Unix")
pytest.importorskip("safetensors", reason="language models need the extra lm")
pytest.importorskip("tokenizers", reason="language models need the extra lm")
pytest.importorskip("gguf", reason="language models need the extra lm")
from campaigns import cases, damages, ground, kills, rivals

from minigrpo.runs.checkpoint import checkpoints

RESULTS = Path(__file__).parents[1] / "results"
SHORT = {"kills": 4, "damages": 16, "flips": 16, "rivals": 1, "threads": 1}


@pytest.mark.parametrize("campaign", SHORT)
def test_the_short_form(campaign, tmp_path):
    command = [sys.executable, "-m", "tests.campaigns", "--campaign", campaign]
    command += ["--cases", str(SHORT[campaign]), "--out", str(tmp_path)]
    options = {"capture_output": True, "text": True, "encoding": "utf-8"}
    done = subprocess.run(command, cwd=RESULTS.parent, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "reliability.json").read_text())["Now"]["campaigns"]
    found = found[campaign]
    assert found["cases"] == SHORT[campaign] == found["same"] + found["refused"]
    if campaign in ("damages", "flips"):
        assert found["refused"] >= 6  # else it damages nothing that matters


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The runs that are damaged, in the current folder."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("campaigns"))
    damages.prepare()
    yield
    os.chdir(before)
    damages.expected.cache_clear()


def trial(*changed, base="walk-stopped", source="walk-other"):
    """What the judge says of a run in which files were exchanged for those of another."""

    def hurt(folder):
        for name in changed:
            shutil.copy(Path(source, name), folder)
        return folder / "settings.json", "exchanged"

    return damages.trial(base, hurt, ("evaluate", "sample", "plot"))


def test_a_silent_change_would_be_seen(runs):
    """A whole other run cannot be refused: it stands for what nobody notices."""
    assert trial() == {"ended": "same", "problems": {}}
    everything = [file.name for file in Path("walk-other").iterdir()]
    found = trial(*everything)
    assert found["ended"] == "same" and list(found["problems"]) == ["bits"]
    assert "gives something else" in found["problems"]["bits"]
    assert "parameters" in ground.difference(Path("walk"), ground.contents(Path("walk-other")))


def test_a_command_that_ends_badly_would_be_seen(runs, monkeypatch):
    def ends(code, err):
        monkeypatch.setattr(damages, "call", lambda *_: (code, "", err))
        return set(trial()["problems"])

    damages.expected("walk-stopped")
    assert ends("Traceback (most recent call last): …", "") == {"traceback", "lost"}
    assert ends(2, "minigrpo train: two\nlines about settings.json\n") == {"said", "lost"}
    assert ends(2, "minigrpo train: it names no file\n") == {"said", "lost"}
    assert ends(1, "minigrpo train: settings.json\n") == {"said", "lost"}
    assert ends(2, "minigrpo train: settings.json is damaged: put it back\n") == {"lost"}


def test_how_a_killed_process_ends():
    hup, kill = signal.SIGHUP, signal.SIGKILL
    assert kills.judged(-kill, "", [kill]) == kills.judged(129, "stopped", [hup]) == []
    assert [kind for kind, _ in kills.judged(-hup, "", [hup])] == ["said"]
    assert [kind for kind, _ in kills.judged(130, "", [signal.SIGINT])] == ["said"]
    assert [kind for kind, _ in kills.judged(130, "Traceback", [signal.SIGINT])] == ["traceback"]


def test_two_owners_would_be_seen():
    assert rivals.one_after_another([]) and rivals.one_after_another(["1", "1", "2"])
    assert not rivals.one_after_another(["1", "2", "1"])


def test_a_case_is_a_function_of_its_number(runs, tmp_path):
    made = []
    for name in "ab":
        shutil.copytree("words", tmp_path / name)
        rng = damages.np.random.default_rng([2, 7])
        made.append([damages.damage(tmp_path / name, "words", rng)[1] for _ in range(3)])
        files = filter(Path.is_file, (tmp_path / name).iterdir())
        made[-1].append({file.name: file.read_bytes() for file in files})
    assert made[0] == made[1] != []
    assert len(checkpoints("words")) == 2


def test_the_table_is_made_of_the_counts():
    data = json.loads((RESULTS / "reliability.json").read_text(encoding="utf-8"))
    assert (RESULTS / "reliability.md").read_text(encoding="utf-8") == cases.table(data)
    found = data["Now"]["campaigns"]
    assert found["kills"]["stopped"] >= 1000 and found["damages"]["cases"] >= 5000
    assert (
        found["rivals"]["cases"] >= 50
        and found["rivals"]["refused"] > 0
        and found["threads"]["cases"] >= 15
    )
    assert (
        found["flips"]["cases"] == found["flips"]["refused"] > 5000
    )  # every bit of a settings.json
    assert not any(counts[kind] for counts in found.values() for kind in cases.PROBLEMS)
