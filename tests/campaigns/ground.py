"""What all campaigns stand on: processes that train, the end of a run, and small runs of many kinds."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from minigrpo.runs import checkpoints, load_checkpoint, read_records

TESTS = Path(__file__).parents[1]
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
SECONDS = 120  # in which everything here must end
LIMIT = "it did not end"

# What goes wrong with a case, and how the table calls it.
PROBLEMS = {
    "bits": "other bits, silent changes",
    "lost": "runs or steps lost",
    "traceback": "tracebacks",
    "said": "wrong exit codes, messages, left-overs",
    "owners": "two owners at a time",
}

SMALL = "--dim 8 --n-layers 1 --n-heads 2 --group-size 4 --prompts-per-step 2 --steps 8 --seed 3"
SMALL += " --checkpoint-every 3 --log-samples-every 2 --eval-every 0 --warm-start-steps 0"
ARITHMETIC = "--task arithmetic --task-option digits=1"
SETUPS = {
    "plain": "--task treewalk",
    "inner epochs": f"{ARITHMETIC} --objective grpo --inner-epochs 2",
    "KL": "--task treewalk --objective-option beta=0.1 --schedule cosine --weight-decay 0.1",
    "SGD": f"{ARITHMETIC} --optimizer sgd --max-grad-norm none",
    "language model": "--model model --task sums --task-option high=20 --steps 5",
    "evaluation": f"{ARITHMETIC} --eval-every 2 --eval-prompts 4",
    "samples": f"{ARITHMETIC} --log-samples-every 1 --checkpoint-every 1",
    "warm start": f"{ARITHMETIC} --warm-start-steps 6 --warm-start-batch 8",
    "float64, parts": "--task countdown --dtype float64 --micro-batch-tokens 16 --max-grad-norm 0.05",
    "everything": f"{ARITHMETIC} --inner-epochs 2 --objective-option beta=0.1 --warm-start-steps 4"
    " --warm-start-batch 8 --eval-every 3 --eval-prompts 4 --log-samples-every 1 --optimizer sgd",
}


def make_language_model() -> None:
    """A language model of a few thousand weights in the folder `model`."""
    sys.path.append(str(TESTS))
    from tiny_language_model import make

    from minigrpo.models import save_hugging_face

    save_hugging_face(*make(max_seq_len=400, n_layers=1), "model")


def start(arguments, plan=None, threads=1, wait=True, where="") -> subprocess.Popen:
    """A command in a process of its own, which (wait) has come to the package's first line."""
    command = [sys.executable, str(Path(__file__).with_name("child.py")), json.dumps(plan or {})]
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        env=os.environ | dict.fromkeys(THREADS, str(threads)) | {"WHERE": str(where)},
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
    return ["train", "--resume", folder] if (folder / "settings.json").exists() else ["train", *flags.split(), "--out", folder]


def reference(name: str, flags: str) -> tuple[Path, float, int]:
    """An undisturbed run, made once in the current folder.   -> its folder, its seconds, its events of writing"""
    folder = Path("whole", name.replace(" ", "-"))
    numbers = folder.with_suffix(".json")
    if not numbers.exists():
        count, began = folder.with_suffix(".count"), time.monotonic()
        folder.parent.mkdir(exist_ok=True)
        plan = {"at": 0, "count": str(count.resolve())}
        code, err = end(start(["train", *flags.split(), "--out", folder], plan))
        if code:
            raise RuntimeError(f"the undisturbed run {name!r} ends with {code}: {err}")
        numbers.write_text(json.dumps([time.monotonic() - began, int(count.read_text())]))
    return folder, *json.loads(numbers.read_text())


def references(flags: dict[str, str]) -> None:
    """Make undisturbed runs side by side."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(reference, flags, flags.values()))


def contents(folder: Path) -> dict:
    """All that a run ends in, but for times: parameters, optimiser, counters, metrics, samples, settings, tokenizer."""
    arrays, state = load_checkpoint(checkpoints(folder)[-1])
    state = {key: value for key, value in state.items() if key != "records"}  # checksums of times, too
    metrics = [{k: v for k, v in r.items() if k != "step_time"} for r in read_records(folder / "metrics.jsonl")]
    found = {name: (array.dtype.str, array.tobytes()) for name, array in arrays.items()}
    found |= {"state": state, "metrics": metrics}
    found["settings"] = json.loads((folder / "settings.json").read_bytes())
    for name in ("samples.jsonl", "tokenizer.json"):
        file = folder / name
        found[name] = file.read_bytes() if file.exists() else None
    return found


def difference(folder: Path, wanted: dict) -> str:
    """What a run ends in otherwise than it should; nothing if all is the same."""
    try:
        found = contents(folder)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ", ".join(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


def one_line(err: str) -> bool:
    """Whether a refusal says what it has to say in one line."""
    return err.startswith("minigrpo ") and err.endswith("\n") and err.count("\n") == 1


def ended(how: str, problems: list[tuple[str, str]]) -> dict:
    """How a case ended, and for each kind of problem the first."""
    return {"ended": how, "problems": dict(reversed(problems))}
