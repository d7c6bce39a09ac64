"""python -m benchmarks: all measurements of results/README.md but those on a GPU, in one run; needs
PyTorch, and TRL for its part.

To measure NumPy at its best, unset OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE where they are set.
Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import curves, memory, steps, tree_building
from minigrpo.runs.bench import WORKLOADS

PARTS = ("steps", "trl", "memory", "trees", "curves")


def main() -> None:
    """Measure the parts asked for, and write benchmarks/results.json and curves.png."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--parts",
        nargs="*",
        choices=PARTS,
        default=PARTS,
        help="what to measure (default: all; none: draw again)",
    )
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument(
        "--rounds", type=int, default=7, help="interleaved rounds of each workload (default: 7)"
    )
    parser.add_argument(
        "--authors",
        metavar="FILE",
        help="the authors' lambda_grpo/utils.py, to compare tree building with",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent,
        metavar="FOLDER",
        help="where results.json goes",
    )
    a = parser.parse_args()
    missing = [
        name
        for name in ("torch", *(["trl"] if "trl" in a.parts else []))
        if not importlib.util.find_spec(name)
    ]
    if missing:
        way_out = "pip install torch trl, or leave out --parts trl"
        sys.exit(f"python -m benchmarks: {', '.join(missing)} is not installed: {way_out}")
    import torch

    from benchmarks.machine import describe

    file = a.out / "results.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if set(a.parts) - {"memory"}:  # what takes time
        results["machine"] = describe() | {"torch threads": torch.get_num_threads()}
        print(results["machine"])

    def keep(part: str, value: Any) -> None:
        results[part] = value
        file.write_text(json.dumps(results, indent=1) + "\n")

    if "steps" in a.parts:
        found = results.get("steps", {})
        for name in a.workloads:
            keep("steps", found | {name: (row := steps.compare(name, a.rounds))})
            found[name] = row
        print(steps.HEADER, *(steps.text(name, row) for name, row in found.items()), sep="\n")
    if "trl" in a.parts:
        from benchmarks.peer_trl import trl_step_times

        w = WORKLOADS["W1"]
        shape = (w.n_prompts, w.prompt_length, w.group_size, w.new_tokens)
        tried = {
            str(size): trl_step_times(w.config, *shape, steps=4, micro_batch=size)
            for size in (None, 64)
        }
        keep(
            "trl",
            {
                "W1": min(float(np.median(seconds)) for seconds in tried.values()),
                "by micro_batch": tried,
            },
        )
        print(f"TRL, W1: {results['trl']['W1']:.3f} s a step")
    if "memory" in a.parts:
        found = {}
        for name in a.workloads:
            micro_batch = results.get("steps", {}).get(name, {}).get("torch micro_batch")
            found[name] = {
                who: memory.measure(who, name, micro_batch) for who in ("minigrpo", "torch")
            }
            print(name, found[name])
        keep("memory", found)
    if "trees" in a.parts:
        found = tree_building.measure(a.authors)
        keep("trees", {"rows": found, "slope": tree_building.slope(found)})
        print(*found, f"slope {results['trees']['slope']:.2f}", sep="\n")
    if "curves" in a.parts:
        keep("curves", {"step": curves.grow(), "shared": curves.share()})
    if "curves" in results and "trees" in results:
        curves.figure(
            results["curves"]["step"],
            results["curves"]["shared"],
            results["trees"]["rows"],
            a.out / "curves.png",
        )


if __name__ == "__main__":
    main()
