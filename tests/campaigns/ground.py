"""What all campaigns stand on: processes that train, undisturbed runs, and what a run ends in."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import minigrpo
from minigrpo.runs.checkpoint import checkpoints, load_checkpoint
from minigrpo.system.files import read_records

TESTS = Path(__file__).parents[1]
PACKAGE = str(Path(minigrpo.__file__).parents[1])  # the one that is judged here, for processes too
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
SECONDS = 120  # in which everything here must end
LIMIT = "it did not end"

# What may go wrong with a case, and how the table calls it.
PROBLEMS = {
    "bits": "other bits, silent changes",
    "lost": "runs or steps lost",
    "traceback": "tracebacks",
    "said": "wrong exit codes, messages, left-overs",
    "owners": "two owners at a time",
}

SHORT = "--group-size 4 --prompts-per-step 2 --steps 8 --seed 3 --checkpoint-every 3"
SHORT += " --log-samples-every 2 --eval-every 0 --warm-start-steps 0"
SMALL = SHORT + " --dim 8 --n-layers 1 --n-heads 2"


def make_language_model() -> None:
    """A language model of a few thousand weights in the folder `model`."""
    sys.path.append(str(TESTS))
    from tiny_language_model import make

    from minigrpo.models import save_hugging_face

    save_hugging_face(*make(max_seq_len=400, n_layers=1), "model")


def start(words, plan=None, threads=1, wait=True, where="") -> subprocess.Popen:
    """A command in a process of its own, which (wait) has come to the package's first line."""
    child = Path(__file__).with_name("child.py")
    process = subprocess.Popen(
        [sys.executable, str(child), json.dumps(plan or {}), *map(str, words)],
        env=os.environ
        | dict.fromkeys(THREADS, str(threads))
        | {"WHERE": str(where), "PYTHONPATH": PACKAGE},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    if wait:
        process.stdout.readline()
    return process


def end(process) -> tuple[int | str, str]:
    """-> exit code, what it said on stderr"""
    try:
        _, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return LIMIT, ""
    return process.returncode, err


def next_command(folder: Path, flags: str) -> list:
    """Go on, or start if there is nothing yet to go on with."""
    if (folder / "settings.json").exists():
        return ["train", "--resume", folder]
    return ["train", *flags.split(), "--out", folder]


def reference(name: str, flags: str) -> tuple[Path, float, int]:
    """An undisturbed run, made once.   -> its folder, its seconds, its events of writing"""
    place = Path("whole", name)
    if not place.exists():
        place.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=".") as where:
            made, began = Path(where, "made"), time.monotonic()
            made.mkdir()
            count = made / "count"
            plan = {"at": 0, "signals": [], "count": str(count.resolve())}
            code, err = end(start(["train", *flags.split(), "--out", made / "run"], plan))
            if code:
                raise RuntimeError(f"the undisturbed run {name!r} ends with {code}: {err}")
            numbers = [time.monotonic() - began, int(count.read_text())]
            (made / "numbers").write_text(json.dumps(numbers))
            with contextlib.suppress(OSError):  # another process was faster
                made.rename(place)
    return place / "run", *json.loads((place / "numbers").read_text())


def contents(folder: Path) -> dict:
    """All that a run ends in, but for times."""
    arrays, state = load_checkpoint(checkpoints(folder)[-1])
    found = {name: (array.dtype.str, array.tobytes()) for name, array in arrays.items()}
    found["state"] = {k: v for k, v in state.items() if k != "records"}  # checksums of times, too
    metrics = read_records(folder / "metrics.jsonl")
    found["metrics"] = [{k: v for k, v in m.items() if k != "step_time"} for m in metrics]
    found["settings"] = json.loads((folder / "settings.json").read_bytes())
    for name in ("samples.jsonl", "tokenizer.json"):
        found[name] = (folder / name).read_bytes() if (folder / name).exists() else None
    return found


def difference(folder: Path, wanted: dict) -> str:
    """What a run ends in otherwise than it should; nothing if all is the same."""
    try:
        found = contents(folder)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ", ".join(k for k in sorted(wanted.keys() | found) if wanted.get(k) != found.get(k))


def one_line(err: str) -> bool:
    """Whether a refusal says what it has to say in one line."""
    return err.startswith("minigrpo ") and err.endswith("\n") and err.count("\n") == 1


def ended(how: str, problems: list[tuple[str, str]]) -> dict:
    """How a case ended, and of each kind of problem the first."""
    return {"ended": how, "problems": dict(reversed(problems))}
