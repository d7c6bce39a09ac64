"""Peak memory of a step, each peer in a process of its own."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

CODE = """
import sys
from benchmarks.memory import peak_mib
from benchmarks.steps import TorchStep
from minigrpo.runs.bench import WORKLOADS, Bench
from minigrpo.engine.profiling import Stopwatch

who, name, micro_batch = sys.argv[1:]
ours = Bench(WORKLOADS[name])
if who == "torch":
    peer = TorchStep(WORKLOADS[name])
    peer.model_from(ours)
    peer.peer.micro_batch = int(micro_batch) or None
before = peak_mib()
for _ in range(3):
    ours.step(Stopwatch()) if who == "minigrpo" else peer.step(ours)
print(before, peak_mib())
"""


def peak_mib() -> float:
    """The largest resident size of this process so far.

    (On Linux getrusage would count the parent's too.)
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == "darwin" else 2**10
    )


def measure(who: str, workload: str, micro_batch: int | None = None) -> dict[str, float]:
    """who: "minigrpo" or "torch".   -> MiB before the first step, and at the peak of three"""
    command = [sys.executable, "-c", CODE, who, workload, str(micro_batch or 0)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, peak = map(float, done.stdout.split())
    return {"before": before, "peak": peak}
