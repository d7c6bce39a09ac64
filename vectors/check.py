"""Test an implementation of GRPO against the vectors, and name its mistake.   See README.md.

    python vectors/check.py my_module:my_loss                      # lists in, a loss out
    python vectors/check.py my_module:my_loss --arrays torch       # tensors and autograd
    python vectors/check.py my_module:my_loss --cases "dapo.*"     # the cases of one variant
    python vectors/check.py my_module:my_weights --kind weights    # 1/|λ|, or another kind

The function is called with those numbers of a case that its parameters name.
"""

import argparse
import copy
import importlib
import inspect
import json
import math
import sys
from fnmatch import fnmatch
from pathlib import Path

OF_MODEL = ["logits", "logp", "model_loss"]
KINDS = "loss weights counts advantages step_rewards step_advantages steps".split() + OF_MODEL
TOLERANCE = {"float64": 1e-9, "float32": 2e-5}  # relative
OF_DIFFERENCES, STEP = 1e-6, 1e-5  # tolerance and step of a numerical derivative
AS_LISTS = "completions", "prompts", "micro_batches"  # ragged: never made tensors


def flat(x):
    """All numbers in nested lists, dicts and tensors, in order."""
    x = x.detach().cpu() if hasattr(x, "detach") else x
    x = x.tolist() if hasattr(x, "tolist") else x
    x = list(x.values()) if isinstance(x, dict) else x
    return [n for part in x for n in flat(part)] if isinstance(x, list | tuple) else [float(x)]


def error(got, expected, scale=0.0):
    """The largest difference, relative to the largest number expected, and where it is.

    scale: Σ |terms| of the loss, since they may cancel
    """
    if expected == "nan":
        finite = all(math.isfinite(x) for value in got.values() for x in flat(value))
        return (math.inf if finite else 0.0), ""
    worst = 0.0, ""
    for name, wanted in expected.items():
        a, b = flat(got[name]), flat(wanted)
        if len(a) != len(b):
            return math.inf, f"{name} has {len(a)} numbers, expected {len(b)}"
        size = max([1e-3, *map(abs, b), scale if name == "loss" else 0.0])
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            apart = abs(x - y) / size if math.isfinite(x) else math.inf
            if apart > worst[0]:
                worst = apart, f"{name}, number {i}: {x:.9g}, expected {y:.9g}"
    return worst


def inputs_of(data, case):
    """Everything that a function may ask for."""
    found = data["batches"][case["batch"]] | case["settings"] | case.get("inputs", {})
    lengths = [sum(row) for row in found["mask"]]
    completions = [ids[:n] for ids, n in zip(found["ids"], lengths, strict=True)]
    more = {"lengths": lengths, "completions": completions, "settings": case["settings"]}
    return copy.deepcopy(found | more)


def convert(x, arrays, dtype, differentiate):
    """A list as it is, as an array of NumPy, or as a tensor of PyTorch."""
    if isinstance(x, dict):
        return {name: convert(value, arrays, dtype, differentiate) for name, value in x.items()}
    if arrays == "lists" or not isinstance(x, list):
        return x
    library, first = importlib.import_module(arrays), x
    while isinstance(first, list):
        first = first[0]
    kind = getattr(library, dtype if isinstance(first, float) else "int64")
    if arrays == "numpy":
        return library.array(x, dtype=kind)
    return library.tensor(x, dtype=kind, requires_grad=differentiate)


def cleaned(out, kind, mask):
    """Process steps in order; 0 in the padding, whatever the function has there."""
    if kind == "steps":
        return [sorted([int(a), int(b), sorted(map(int, m))] for a, b, m in group) for group in out]
    rows = [([*row, *[0.0] * len(of_row)], of_row) for row, of_row in zip(out, mask, strict=True)]
    return [[[n if m else 0.0 for n in flat(x)] for x, m in zip(*row)] for row in rows]  # noqa: B905


def run(function, case, given, mask):
    """What the function makes of a case, under the names of what is expected."""
    by, kind = case.get("gradient_by", "logp"), case["kind"]
    try:
        out = function(**given)
        if out is None:
            raise ValueError("the function returned None: return a number, or what the kind asks")
        if "value" in case["expected"]:
            return {"value": out if kind == "advantages" else cleaned(out, kind, mask)}
        if isinstance(out, tuple | list):
            return {"loss": out[0], "gradient": out[1]}
        if not hasattr(out, "backward"):
            return {"loss": out, "gradient": differences(function, given, by), "numerical": 1}
        if out.requires_grad:
            out.backward()
        leaves = given[by].values() if isinstance(given[by], dict) else [given[by]]
        return {"loss": out, "gradient": [0 * x if x.grad is None else x.grad for x in leaves]}
    except (OverflowError, ZeroDivisionError, FloatingPointError):
        return dict.fromkeys(case["expected"], math.nan)


def differences(function, given, by):
    """d loss / d logp by central differences, where the function gives the loss alone."""
    slopes = []
    for row in given[by]:
        for t, x in enumerate(list(row)):
            row[t] = x + STEP
            above = float(function(**given))
            row[t] = x - STEP
            slopes.append((above - float(function(**given))) / (2 * STEP))
            row[t] = x
    return slopes


def check(function, kind="loss", cases="*", arrays="lists", dtype="float64", tolerance=None):
    """-> of each case: the case, whether it agrees, its error, where, and the mistakes that fit"""
    file = Path(__file__).with_name("llama.json" if kind in OF_MODEL else "grpo.json")
    data, results = json.loads(file.read_text(encoding="utf-8")), []
    parameters = inspect.signature(function).parameters.values()
    for case in data["cases"]:
        if case["kind"] != kind or not fnmatch(case["name"], cases):
            continue
        found, by = inputs_of(data, case), case.get("gradient_by", "logp")
        if lacks := [p.name for p in parameters if p.default is p.empty and p.name not in found]:
            raise ValueError(f"no case has {lacks[0]!r}; it has {', '.join(sorted(found))}")
        names = [p.name for p in parameters if p.name in found]
        if any(found[n] is None for n in names if n in case.get("inputs", {})):
            continue  # it has advantages of tokens, not of completions
        given = {n: convert(found[n], arrays, dtype, n == by) for n in names if n not in AS_LISTS}
        given |= {n: found[n] for n in names if n in AS_LISTS}
        got = run(function, case, given, found["attention_mask" if kind == "logits" else "mask"])
        limit = tolerance or (OF_DIFFERENCES if "numerical" in got else TOLERANCE[dtype])
        scale = case.get("loss_scale", 0.0)
        worst, where = error(got, case["expected"], scale)
        stored = case["wrong"].items() if max(worst, limit) > 1e-8 else []  # else none is as near
        fits = [m for m, x in stored if error(got, x, scale)[0] <= limit]
        results.append((case, worst <= limit, worst, where, fits))
    return results, data["mistakes"]


def verdict(results):
    """Mistakes that explain failing cases, and how many each explains; how many none explains.

    Of mistakes that explain as many, those come first that fit wherever they would show.
    """
    failing = [fits for _, right, _, _, fits in results if not right]
    absent = {m for case, _, _, _, fits in results for m in case["wrong"] if m not in fits}
    found = []
    while any(failing):
        score = {m: (sum(m in f for f in failing), m not in absent) for f in failing for m in f}
        best = [m for m in score if score[m] == max(score.values())]
        found.append((best, score[best[0]][0]))
        failing = [fits for fits in failing if best[0] not in fits]
    return found, len(failing)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("function", help="MODULE:FUNCTION, of this folder or installed")
    parser.add_argument("--kind", choices=KINDS, default="loss")
    parser.add_argument("--cases", default="*", help='a pattern of names, such as "dapo.*"')
    parser.add_argument("--arrays", choices=["lists", "numpy", "torch"], default="lists")
    parser.add_argument("--dtype", choices=list(TOLERANCE), default="float64")
    parser.add_argument("--tolerance", type=float, help="relative; 1e-9, in float32 2e-5")
    options = vars(parser.parse_args())
    module, _, name = options.pop("function").partition(":")
    sys.path.insert(0, "")
    try:
        results, mistakes = check(getattr(importlib.import_module(module), name), **options)
    except (ImportError, AttributeError, ValueError) as problem:
        parser.error(str(problem))
    for case, right, worst, where, fits in results:
        if not right:
            names = ", ".join(fits) or "no known mistake"
            print(f"{case['name']}: off by {worst:.1e} ({where}); the numbers of: {names}")
    found, unexplained = verdict(results)
    wrong = sum(not right for _, right, *_ in results)
    print(f"{wrong} of {len(results)} cases disagree")
    for best, n in found:
        print(f"explains {n}: " + "; or ".join(f"{m} ({mistakes[m]})" for m in best))
    print(f"{unexplained} are no known mistake alone" if unexplained else "", end="")
    return int(wrong > 0 or not results)


if __name__ == "__main__":
    sys.exit(main())
