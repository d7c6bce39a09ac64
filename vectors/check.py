"""Test an implementation of GRPO against the vectors, and name its mistake.   See README.md.

    python vectors/check.py MODULE:FUNCTION [--arrays torch] [--cases dapo.] [--kind weights]
The function is called with those numbers of a case that its parameters name.
"""

import inspect
import json
import math
import sys
from argparse import ArgumentParser
from argparse import ArgumentTypeError as BadCall
from importlib import import_module
from pathlib import Path

TOLERANCE = {"float64": 1e-9, "float32": 2e-5, "differences": 1e-6}  # relative
NEAREST, STEP = 1e-8, 1e-5  # no stored mistake is nearer to the right numbers; of differences
RAGGED = "completions", "prompts", "micro_batches"  # they stay lists


def flat(x):
    """All numbers in nested lists, dicts and tensors, in order."""
    x = x.tolist() if hasattr(x, "tolist") else list(x.values()) if isinstance(x, dict) else x
    return [n for part in x for n in flat(part)] if isinstance(x, list | tuple) else [x]


def error(got, expected, scale=0.0):
    """The largest difference, relative to the largest number expected, or scale; and where."""
    if expected == "nan":
        return (math.inf if all(map(math.isfinite, flat(got))) else 0.0), ""
    worst = 0.0, ""
    for name, wanted in expected.items():
        if isinstance(wanted, dict):
            worst = max(worst, error({n: got[name].get(n, []) for n in wanted}, wanted))
            continue
        a, b = flat(got[name]), flat(wanted)
        if len(a) != len(b):
            return math.inf, f"{name} has {len(a)} numbers, expected {len(b)}"
        size = max([1e-3, *map(abs, b), scale if name == "loss" else 0.0])  # a loss may cancel
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            apart = abs(x - y) / size if math.isfinite(x) else math.inf
            if apart > worst[0]:
                worst = apart, f"{name}, number {i}: {x:.9g}, expected {y:.9g}"
    return worst


def convert(x, arrays, dtype, by):
    """A list as it is, as a NumPy array, or as a tensor; by: the loss is differentiated by it."""
    if isinstance(x, dict):
        return {name: convert(value, arrays, dtype, by) for name, value in x.items()}
    if arrays not in ("numpy", "torch") or not isinstance(x, list):
        return json.loads(json.dumps(x))  # a copy
    library, floats = import_module(arrays), any(isinstance(n, float) for n in flat(x))
    x = library.asarray(x, dtype=getattr(library, dtype if floats else "int64"))
    return x.requires_grad_() if by and arrays == "torch" else x


def result_of(function, given, case, mask):
    """What the function makes of a case, under the names of what is expected."""
    out, at = function(**given), given.get(case.get("gradient_by", "logp"))
    if "value" in case["expected"]:
        rows = zip(out, mask, strict=True) if mask else []  # without the padding
        return {"value": [[x for x, m in zip(*r, strict=False) if m] for r in rows] or out}
    if isinstance(out, tuple | list):
        return {"loss": out[0], "gradient": out[1]}
    if hasattr(out, "backward"):
        (out + 0 * sum(x.sum() for x in (at.values() if isinstance(at, dict) else [at]))).backward()
        of_all = {n: x.grad for n, x in at.items()} if isinstance(at, dict) else at.grad
        return {"loss": out, "gradient": of_all}
    slopes = []
    for row in at:
        for t, x in enumerate(list(row)):
            row[t] = x + STEP
            above = float(function(**given))
            row[t] = x - STEP
            slopes.append((above - float(function(**given))) / (2 * STEP))
            row[t] = x
    return {"loss": out, "gradient": slopes, "differences": 1}


def check(function, kind="loss", cases="", arrays="lists", dtype="float64", tolerance=None):
    """-> of each case: the case, whether it agrees, its error, where, and the mistakes that fit"""
    file = "llama.json" if kind in ("logits", "logp", "model_loss") else "grpo.json"
    data = json.loads(Path(__file__).with_name(file).read_text(encoding="utf-8"))
    parameters, results = inspect.signature(function).parameters.values(), []
    for case in data["cases"]:
        if case["kind"] != kind or not case["name"].startswith(cases):
            continue
        found = data["batches"][case["batch"]] | case["settings"] | case["inputs"]
        names, by = [p.name for p in parameters if p.name in found], case.get("gradient_by", "logp")
        lacks = [p.name for p in parameters if p.default is p.empty and p.name not in found]
        if lacks or ("loss" in case["expected"] and by not in names):
            raise BadCall(f"ask for {by} and any of {', '.join(sorted(found))}, not for {lacks}")
        if any(found[n] is None for n in names if n in case["inputs"]):
            continue  # it has advantages of tokens, not of completions
        given = {n: convert(found[n], n not in RAGGED and arrays, dtype, n == by) for n in names}
        try:
            got = result_of(function, given, case, found.get(case.get("mask")))
        except (OverflowError, ZeroDivisionError, FloatingPointError):
            got = dict.fromkeys(case["expected"], math.nan)
        limit = tolerance or TOLERANCE["differences" if "differences" in got else dtype]
        worst, where = error(got, case["expected"], scale := case.get("loss_scale", 0.0))
        near = case["wrong"].items() if max(worst, limit) > NEAREST else []
        fits = [m for m, x in near if error(got, x, scale)[0] <= limit]
        results.append((case, worst <= limit, worst, where, fits))
    if not results:
        raise BadCall(f"no case of the kind {kind!r} has a name that begins with {cases!r}")
    return results, data["mistakes"]


def verdict(results):
    """Mistakes that explain failing cases, and how many each does; how many none of them does."""
    failing, found = [fits for _, right, _, _, fits in results if not right], []
    absent = {m for case, _, _, _, fits in results for m in case["wrong"] if m not in fits}
    while any(failing):  # the best explains most; if several do, one that is nowhere absent
        score = {m: (sum(m in f for f in failing), m not in absent) for f in failing for m in f}
        best = [m for m in score if score[m] == max(score.values())]
        found.append((best, score[best[0]][0]))
        failing = [fits for fits in failing if best[0] not in fits]
    return found, len(failing)


def main():
    parser = ArgumentParser(description="README.md has all that a function may ask for.")
    parser.add_argument("function", metavar="MODULE:FUNCTION")
    parser.add_argument("--kind", default="loss", help="what the function gives")
    parser.add_argument("--cases", default="", help="how the names of the cases begin")
    parser.add_argument("--arrays", choices=["lists", "numpy", "torch"], default="lists")
    parser.add_argument("--dtype", choices=["float64", "float32"], default="float64")
    parser.add_argument("--tolerance", type=float, help="relative; 1e-9, in float32 2e-5")
    options, sys.path[:0] = vars(parser.parse_args()), [""]
    module, _, name = options.pop("function").partition(":")
    try:
        function = getattr(import_module(module), name, 0) or parser.error(f"no function {name!r}")
        results, mistakes = check(function, **options)
    except (ImportError, BadCall) as problem:
        parser.error(str(problem))
    wrong, (found, unexplained) = [r for r in results if not r[1]], verdict(results)
    for case, _, worst, where, fits in wrong:
        names = ", ".join(fits) or "no known mistake"
        print(f"{case['name']}: off by {worst:.1e} ({where}); the numbers of: {names}")
    print(f"{len(wrong)} of {len(results)} cases disagree; of these unexplained: {unexplained}")
    for best, n in found:
        print(f"explains {n}: " + "; or ".join(f"{m} ({mistakes[m]})" for m in best))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
