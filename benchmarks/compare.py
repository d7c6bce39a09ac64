"""python benchmarks/compare.py OTHER: is a training step of this checkout slower than one of
another checkout?

One process for each checkout takes its turn, in a random order, while the other waits.  So what
else the machine does meets both, and the ratio of each pair counts: the median with a 95 %
bootstrap interval, of the time on the clock and of the processor time of all threads.  The
processes are started anew several times, since one and the same program is a few percent faster in
one process than in the next; the interval is over these starts.  Both begin with the same seed and
a policy that stays as it is, so they do the same work.

To measure NumPy at its best, unset OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE where they are set.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

NAMES = (
    "treewalk",
    "saved",
    "W1",
    "W2",
    "W3",
)  # saved: treewalk, with the run folder that it writes
WARM_UP = 2  # turns before the first that counts
STEPS = {"treewalk": 20, "saved": 20}  # of a turn, where one step is too short to be measured
PAUSE = 0.3  # seconds, since the threads of a BLAS go on spinning for a while


def main() -> None:
    """Compare, and print a Markdown row for each workload and number of threads."""
    parser = argparse.ArgumentParser(prog="python benchmarks/compare.py", description=__doc__)
    parser.add_argument(
        "other",
        type=Path,
        help="the checkout to compare with; the ratios are this one's time over its",
    )
    parser.add_argument("--workloads", nargs="+", choices=NAMES, default=["treewalk", "W1"])
    parser.add_argument(
        "--threads",
        nargs="+",
        type=int,
        default=[1, 2],
        help="how many threads BLAS has (default: 1 and 2)",
    )
    parser.add_argument(
        "--starts", type=int, default=8, help="how often the processes are started (default: 8)"
    )
    parser.add_argument(
        "--pairs", type=int, default=8, help="turns of each in a start (default: 8)"
    )
    a = parser.parse_args()
    print(
        "| workload | threads | ms this, other | time: ratio (95 %) "
        "| processor time: ratio (95 %) | peak GFLOP/s |\n" + "|---" * 6 + "|"
    )
    for name in a.workloads:
        for threads in a.threads:
            checkouts = Path(__file__).parents[1], a.other.resolve()
            times, peaks = zip(
                *(measure(checkouts, name, threads, a.pairs, seed) for seed in range(a.starts)),
                strict=True,
            )
            each = np.array(times)  # (starts, pairs, 2 checkouts, 2 kinds of time)
            ms = ", ".join(f"{1e3 * x:.1f}" for x in np.median(each[..., 0], axis=(0, 1)))
            wall, cpu = (interval(each[:, :, 0, kind] / each[:, :, 1, kind]) for kind in (0, 1))
            print(f"| {name} | {threads} | {ms} | {wall} | {cpu} | {max(peaks):.0f} |", flush=True)


def measure(
    checkouts: tuple[Path, Path], name: str, threads: int, pairs: int, seed: int
) -> tuple[np.ndarray, float]:
    """One start.

    Returns (pairs, 2 checkouts, 2) seconds on the clock and of the processor; the best rate of a
    product in GFLOP/s.
    """
    variables = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    workers: list[subprocess.Popen] = []
    for checkout in checkouts:
        environment = (
            os.environ | {"PYTHONPATH": str(checkout)} | dict.fromkeys(variables, str(threads))
        )
        command = [sys.executable, __file__, "--work", name]
        workers.append(subprocess.Popen(command, env=environment, stdin=-1, stdout=-1, text=True))
    rng, times, peaks = np.random.default_rng(seed), np.zeros((pairs, 2, 2)), []

    def ask(which: int) -> list:
        print(file=workers[which].stdin, flush=True)
        answer = json.loads(workers[which].stdout.readline())
        time.sleep(PAUSE)
        return answer

    try:
        for which, checkout in enumerate(checkouts):
            found, peak = ask(which)
            if not Path(found).is_relative_to(checkout):
                why = f"{found} was imported, which is not in {checkout}"
                sys.exit(f"python benchmarks/compare.py: {why}")
            peaks.append(peak)
        for pair in range(-WARM_UP, pairs):
            for which in rng.permutation(2):
                answer = ask(which)
                if pair >= 0:
                    times[pair, which] = answer
    finally:
        for worker in workers:
            worker.communicate()  # the end of its input ends it
    return times, max(peaks)


def interval(ratios: np.ndarray) -> str:
    """The median of the ratios (starts, pairs) with a 95 % bootstrap interval over the starts."""
    starts = np.random.default_rng(1).integers(len(ratios), size=(4000, len(ratios)))
    low, high = np.quantile([np.median(ratios[drawn]) for drawn in starts], [0.025, 0.975])
    return f"{np.median(ratios):.3f} ({low:.3f} … {high:.3f})"


def work(name: str) -> None:
    """A turn for every line of the standard input, then a line with the seconds per step."""
    import minigrpo
    from minigrpo.engine.backend import get_backend
    from minigrpo.engine.profiling import Stopwatch, peak_rate
    from minigrpo.runs.bench import WORKLOADS, Bench
    from minigrpo.runs.settings import TrainSettings
    from minigrpo.runs.train import train

    started, steps, done = np.zeros(2), STEPS.get(name, 1), 0

    def now() -> np.ndarray:
        return np.array([time.perf_counter(), time.process_time()])

    def begin() -> None:
        input()
        started[:] = now()

    def end(_: object = None) -> None:
        nonlocal done
        done += 1
        if done % steps == 0:
            print(json.dumps(((now() - started) / steps).tolist()), flush=True)
            begin()

    with suppress(EOFError), tempfile.TemporaryDirectory() as folder:
        input()
        print(json.dumps([minigrpo.__file__, peak_rate(get_backend("numpy")) / 1e9]), flush=True)
        begin()
        if name in WORKLOADS:
            bench = Bench(WORKLOADS[name])
            while True:
                bench.step(Stopwatch())
                end()
        out = folder if name == "saved" else None
        still = TrainSettings.for_task("treewalk", steps=10**6, learning_rate=1e-12)
        train(still, out, progress=False, on_step=end)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2])
    else:
        main()
