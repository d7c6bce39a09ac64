"""Training runs in a process whose BLAS has so many threads, and digests of all that they leave
behind.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent


def run(settings: dict[str, Any], threads: int) -> dict[str, str]:
    """Train from these settings in a new folder, in a process of its own.   -> digests, as
    `digests` gives them
    """
    with tempfile.TemporaryDirectory() as folder:
        return run_all([{"settings": settings, "out": str(Path(folder) / "run")}], threads)["runs"][
            0
        ]


def run_all(jobs: list[dict[str, Any]], threads: int, limited: bool = True) -> dict[str, Any]:
    """Run jobs in turn in one process.   -> threads of BLAS, most lanes at a time, digests per job

    A job has settings, out, and optionally stop: the step after which the run is interrupted.  A
    run that is in `out` already is resumed.  limited=False breaks the promise: BLAS keeps its
    threads.
    """
    variables = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = os.environ | dict.fromkeys(variables, str(threads))
    told = json.dumps({"jobs": jobs, "threads": threads, "limited": limited})
    done = subprocess.run(
        [sys.executable, __file__], input=told, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"a run with {threads} threads failed: {done.stderr}")
    return json.loads(done.stdout)


def digests(folder: str | Path) -> dict[str, str]:
    """Of every array and the random state in the newest checkpoint, of the metrics without times,
    and of the samples.
    """
    from minigrpo.runs.checkpoint import checkpoints, load_checkpoint

    folder = Path(folder)
    arrays, state = load_checkpoint(checkpoints(folder)[-1])
    found = {name: array.tobytes() for name, array in arrays.items()}
    found["rng"] = json.dumps([state["step"], state["num_tokens"], state["rng"]]).encode()
    metrics = [
        json.loads(line)
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    found["metrics"] = json.dumps(
        [{k: v for k, v in record.items() if k != "step_time"} for record in metrics]
    ).encode()
    samples = folder / "samples.jsonl"
    found["samples"] = samples.read_bytes() if samples.exists() else b""
    return {name: hashlib.sha256(value).hexdigest() for name, value in found.items()}


def main() -> None:
    """What `run_all` wants done."""
    from contextlib import suppress

    from threadpoolctl import threadpool_info, threadpool_limits

    from minigrpo.engine import lanes
    from minigrpo.runs.settings import TrainSettings
    from minigrpo.runs.train import train

    told, used = json.load(sys.stdin), [1]
    if not told["limited"]:
        lanes._set_threads = lambda n_threads: None
    pool = lanes.ThreadPoolExecutor
    lanes.ThreadPoolExecutor = lambda n: (used.append(n), pool(n))[1]
    found = []
    with threadpool_limits(
        told["threads"], user_api="blas"
    ):  # OpenBLAS takes more threads than cores from here alone
        for job in told["jobs"]:

            def stop(metrics: dict[str, Any], last: int | None = job.get("stop")) -> None:
                if metrics["step"] == last:
                    raise KeyboardInterrupt

            out = Path(job["out"])
            with suppress(KeyboardInterrupt):
                train(
                    TrainSettings.for_task(**job["settings"]),
                    out,
                    resume=out.exists(),
                    progress=False,
                    on_step=stop,
                )
            found.append(digests(out))
        threads = [
            library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"
        ]
    json.dump({"threads": threads, "lanes": max(used), "runs": found}, sys.stdout)


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    main()
