"""Test an implementation of GRPO against the vectors, and name its mistake.   See README.md.

    python vectors/check.py MODULE:FUNCTION [--arrays torch] [--cases dapo.] [--kind weights]
The function is called with those numbers of a case that its parameters name; calling.py does it.
"""

import inspect
import math
import sys
from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # for python -m and -P
from calling import BadCall, by_of, convert, flat, not_numbers, read, result_of, tried

TOLERANCE = {"float64": 1e-9, "float32": 2e-5, "differences": 1e-6}  # relative
NEAREST = 1e-8  # no stored mistake is nearer to the right numbers
RAGGED = "completions", "prompts", "micro_batches"  # they stay lists
COARSE = {"float64": ("float32", "float16", "float8"), "float32": ("float16", "float8")}
OF_GRPO = "loss", "weights", "counts", "advantages", "step_rewards", "step_advantages", "steps"
OF_LLAMA = "logits", "logp", "model_loss"


def pairs(got, expected, place):
    """Place, number and expected number of all; lists, where their lengths differ."""
    if not (isinstance(got, list) and isinstance(expected, list) and len(got) == len(expected)):
        return [(place, got, expected)]
    parts = enumerate(zip(got, expected, strict=True))
    return [each for i, both in parts for each in pairs(*both, f"{place}[{i}]")]


def error(got, expected, scale=0.0):
    """The largest difference, relative to the largest number expected, or scale; and where."""
    if expected == "nan":
        return (math.inf if all(map(math.isfinite, flat(got))) else 0.0), ""
    worst = 0.0, ""
    for name, wanted in expected.items():
        if isinstance(wanted, dict):
            worst = max(worst, error(got[name], wanted))
            continue
        size = max([1e-3, *map(abs, flat(wanted)), scale if name == "loss" else 0.0])  # may cancel
        for place, x, y in pairs(got[name], wanted, name):
            apart = math.inf if list in map(type, (x, y)) or math.isnan(x) else abs(x - y) / size
            if apart > worst[0]:
                a, b = (f"{len(z)} entries" if isinstance(z, list) else f"{z:.9g}" for z in (x, y))
                worst = apart, f"{place}: {a}, expected {b}"
    return worst


def check(function, kind="loss", cases="", arrays="lists", dtype="float64", tolerance=None):
    """-> of each case: the case, whether it agrees, its error, where, and the mistakes that fit"""
    if kind not in OF_GRPO + OF_LLAMA:
        raise BadCall(f"there is no kind {kind!r}, but {', '.join(OF_GRPO + OF_LLAMA)}")
    if tolerance is not None and not 0 < tolerance < 1:
        raise BadCall(f"the tolerance is relative, between 0 and 1, not {tolerance}")
    file = Path(__file__).with_name("llama.json" if kind in OF_LLAMA else "grpo.json")
    data = tried(f"check.py needs {file.name} beside it", read, file)
    what = f"{function!r:.60} is no function with names of parameters"
    parameters = tried(what, inspect.signature, function).parameters.values()
    if arrays != "lists":
        tried(f"--arrays {arrays} needs {arrays}", import_module, arrays)
    of_kind, results = [case for case in data["cases"] if case["kind"] == kind], []
    chosen = [case for case in of_kind if case["name"].startswith(cases)]
    if not chosen:
        begin = dict.fromkeys(case["name"].split(".")[0] for case in of_kind)
        raise BadCall(f"no case of {kind} begins with {cases!r}; they do with {', '.join(begin)}")
    for case in chosen:
        found, by = data["batches"][case["batch"]] | case["settings"] | case["inputs"], by_of(case)
        names = [p.name for p in parameters if p.name in found]
        lacks = [p.name for p in parameters if p.default is p.empty and p.name not in found]
        if lacks or ("loss" in case["expected"] and by not in names):
            first = f"{by} and " if "loss" in case["expected"] else ""
            raise BadCall(f"ask for {first}any of {', '.join(sorted(found))}, not for {lacks}")
        if any(found[n] is None for n in names if n in case["inputs"]):
            continue  # it has advantages of tokens, not of completions
        given = {n: convert(found[n], n not in RAGGED and arrays, dtype, n == by) for n in names}
        try:
            (got, how), raised = tried(case["name"], result_of, function, given, case, found), ""
        except BadCall as bad:
            if not isinstance(bad.__cause__, ArithmeticError):  # in arrays it would be NaN
                raise
            (got, how), raised = (not_numbers(case["expected"]), ()), str(bad).partition(": ")[2]
        if "differences" in how and dtype != "float64":
            raise BadCall("derivatives by differences need float64: return (loss, gradient)")
        limit = tolerance or TOLERANCE["differences" if "differences" in how else dtype]
        worst, where = error(got, case["expected"], scale := case.get("loss_scale", 0.0))
        coarse = [d for d in how if any(name in d for name in COARSE[dtype])]
        if worst > limit and coarse and not tolerance:
            advice = "or give --dtype float32 or a --tolerance"
            raise BadCall(f"{case['name']}: the result is {coarse[0]}: keep {dtype}, {advice}")
        near = case["wrong"].items() if max(worst, limit) > NEAREST else []
        fits = [m for m, x in near if error(got, x, scale)[0] <= limit]
        results.append((case, worst <= limit, worst, raised or where, fits))
    if not results:
        raise BadCall("these cases have advantages of tokens: ask for token_advantages")
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
    parser.error = lambda message: parser.exit(2, f"check.py: {message}\n")
    options, sys.path[:0] = vars(parser.parse_args()), [""]
    module, _, name = (text := options.pop("function")).partition(":")
    what = f"MODULE:FUNCTION {text!r} (my:my_loss is that of my.py in this folder)"
    try:
        function = tried(what, lambda: getattr(import_module(module), name))
        results, mistakes = check(function, **options)
    except (BadCall, KeyboardInterrupt) as problem:
        parser.error(str(problem) or "interrupted")
    wrong, (found, unexplained) = [r for r in results if not r[1]], verdict(results)
    lines = [f"{len(wrong)} of {len(results)} cases disagree; of these unexplained: {unexplained}"]
    for case, _, worst, where, fits in reversed(wrong):
        names = ", ".join(fits) or "no known mistake"
        lines[:0] = [f"{case['name']}: off by {worst:.1e} ({where}); the numbers of: {names}"]
    for best, n in found:
        of = sum(best[0] in case["wrong"] for case, *_ in wrong)  # it would show in them
        lines += [f"explains {n} of {of}: " + "; or ".join(f"{m} ({mistakes[m]})" for m in best)]
    try:
        sys.stdout.reconfigure(errors="backslashreplace")
        print(*lines, sep="\n", flush=True)
    except (OSError, AttributeError, ValueError) as problem:  # no pipe, a full disk; closed
        sys.stdout = None  # else Python tries to write the rest
        if not isinstance(problem, BrokenPipeError):
            parser.error(f"the answer cannot be written: {problem}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
