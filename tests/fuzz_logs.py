"""Mutated logs, read, counted and drawn: only ValueError is raised, and no completion gets lost.

    python tests/fuzz_logs.py --n 60000 --seed 1      # about five minutes

The short form is in test_logs.py.  Every completion that is written carries a mark of its own, so
it can be found again in the groups; a document whose mutation may have spoilt marks is only read,
counted and drawn.
"""

from __future__ import annotations

import argparse
import codecs
import json
import re
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from copy import deepcopy
from pathlib import Path

import numpy as np

from minigrpo.logs.grouping import choose_steps, read_completions
from minigrpo.logs.groups import group_statistics, make_groups, statistics_text
from minigrpo.logs.rows import NAMES, read_log
from minigrpo.show.drawing import tree_text

ODD = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    1e400,
    -1e300,
    float("nan"),
    10**400,
    "",
    "7",
    "nan",
    " \n",
    "\ud800",
    "\0",
    "日\u2028",
]
ODD += [
    [],
    [[]],
    [1],
    [1, -1],
    [1.5],
    ["a", 1],
    [None],
    [["a", "b"], [1]],
    {},
    {"a": 1},
    {"a": [1, 2]},
    {"content": 3},
]
ODD += [
    "[1, 2]",
    "[1 2 3]",
    '[{"role": "assistant", "content": "x"}]',
    "[{'role': 'user'",
    {"0": "a", "1": "b"},
]
ODD += [
    [{"content": part}] for part in (None, [{"type": "text", "text": "x"}], [{"type": "image"}])
]
FIELDS = [
    *(n for known in NAMES.values() for n in known),
    "acc_reward",
    "length",
    "columns",
    "data",
    "messages",
    "",
    "x",
    "total_reward",
    "Completion",
    "Reward",
]


def document(rng: np.random.Generator) -> tuple[list[dict], str]:
    """Rows of a plausible log, each completion with its mark.

    -> objects, "rows", "groups" or "columns"
    """
    count, n = int(rng.integers(1, 4)), int(rng.integers(1, 5))
    style = ["rows", "rows", "groups", "columns"][rng.integers(4)]
    objects: list[dict] = []
    for g in range(count):
        step, prompt = int(rng.integers(2)), f"p{rng.integers(2)}"
        texts = [f"{'ab '[rng.integers(3)]}{'xyz'[rng.integers(3)]}<{g}.{i}>" for i in range(n)]
        kind = rng.integers(4)
        contents = [
            [{"role": "assistant", "content": t}] if kind == 0 else [t, "!"] if kind == 1 else t
            for t in texts
        ]
        a, b = rng.integers(0, 2, n).astype(float), rng.normal(size=n)
        total = a + (b if rng.random() < 0.5 else 0)
        columns = {"prompt": [prompt] * n, "completion": contents, "step": [step] * n}
        columns |= (
            {"reward": a.tolist()}
            if rng.random() < 0.5
            else {"acc_reward": a.tolist(), "length": b.tolist()}
        )
        if rng.random() < 0.5:
            columns["advantage"] = (
                ((total - total.mean()) / (total.std(ddof=1) + 1e-4 if n > 1 else 1))
                .round(4)
                .tolist()
            )
        if rng.random() < 0.3:
            columns["uid"] = [f"u{rng.integers(2)}"] * n
        if style == "columns":
            objects.append(columns)
        elif style == "groups":
            objects.append({"prompt": prompt, "completions": contents, "rewards": a.tolist()})
        else:
            objects += [{k: v[i] for k, v in columns.items()} for i in range(n)]
    return objects, style


def mutate(objects: list[dict], rng: np.random.Generator) -> bool:
    """Spoil something in place.   -> whether the marks of completions are whole"""
    whole = True
    for _ in range(rng.integers(0, 3)):
        item = objects[rng.integers(len(objects))]
        if not item:
            continue
        key = list(item)[rng.integers(len(item))]
        touched = key in NAMES["completion"]
        what = rng.integers(6)
        if what == 0:
            item[key], whole = deepcopy(ODD[rng.integers(len(ODD))]), whole and not touched
        elif what == 1:
            del item[key]
            whole = whole and not touched
        elif what == 2:
            other = FIELDS[rng.integers(len(FIELDS))]
            whole = whole and not touched and other not in NAMES["completion"]
            item[other] = item.pop(key)
        elif what == 3:
            item[FIELDS[rng.integers(len(FIELDS))]] = deepcopy(ODD[rng.integers(len(ODD))])
            whole = False
        elif what == 4 and isinstance(item[key], list) and item[key]:
            if rng.random() < 0.5:
                item[key].pop()
            else:
                item[key][rng.integers(len(item[key]))] = deepcopy(ODD[rng.integers(len(ODD))])
            whole = whole and not touched
        else:
            objects.insert(rng.integers(len(objects) + 1), dict(item))
    return whole


def written(objects: list[dict], style: str, rng: np.random.Generator) -> tuple[bytes, str]:
    """The document as a file.   -> bytes, suffix"""
    keys = list(dict.fromkeys(k for item in objects for k in item))
    how = rng.integers(5)
    if how == 0 and style == "rows":
        mark = ",\t;"[rng.integers(3)]
        cells = [
            [item.get(k) if isinstance(item.get(k), str) else json.dumps(item.get(k)) for k in keys]
            for item in objects
        ]
        quoted = [
            "\u007f".join(keys),
            *("\u007f".join('"' + c.replace('"', '""') + '"' for c in row) for row in cells),
        ]
        text = "\n".join(quoted).replace("\u007f", mark)
    elif how == 1 and style == "rows":
        text = json.dumps(
            {"columns": keys, "data": [[item.get(k) for k in keys] for item in objects]}
        )
    elif how == 2:
        text = json.dumps(objects, indent=int(rng.integers(3)) or None)
    else:
        text = "\n".join(json.dumps(item, ensure_ascii=bool(rng.integers(2))) for item in objects)
    if rng.random() < 0.1:
        text = text.replace("\n", "\r\n")
    data = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        others = ["utf-16", "utf-16-le"][rng.integers(2)]
        data = (
            codecs.BOM_UTF8 + data if rng.random() < 0.5 else text.encode(others, "surrogatepass")
        )
    return data, ".csv" if how == 0 and style == "rows" else [".json", ".jsonl"][rng.integers(2)]


def spoil(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut, double, overwrite or insert bytes."""
    at, to = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    what = rng.integers(5)
    if what == 0:
        return data[:at]
    if what == 1:
        return data[:at] + data[to:]
    if what == 2:
        return data + data[at:to]
    pieces = [
        b"[" * 3000,
        b'"',
        b"{",
        b"}",
        b",",
        b"\n",
        b"1e999",
        b"9" * 5000,
        b"null",
        b"\xff",
        b"\0",
        b"NaN",
        b"\\u0000",
    ]
    piece = pieces[rng.integers(len(pieces))]
    return data[:at] + piece + data[at + (what == 3) :]


def run_one(rng: np.random.Generator, folder: Path) -> str:
    """Read a mutated log and draw it.   -> "accepted" or "refused";
    AssertionError if a completion is lost
    """
    objects, style = document(rng)
    whole = mutate(objects, rng)
    data, suffix = written(objects, style, rng)
    if rng.random() < 0.4 and data:
        data, whole = spoil(data, rng), False
    file = folder / f"log{suffix}"
    file.write_bytes(data)
    names = NAMES | ({"reward": (FIELDS[rng.integers(len(FIELDS))],)} if rng.random() < 0.1 else {})
    size = int(rng.integers(0, 4)) if rng.random() < 0.1 else None
    try:
        items, _ = read_log(str(folder if rng.random() < 0.1 else file), names)
        found, _ = read_completions(items, names, size)
        last = rng.random() < 0.05
        groups = make_groups(
            choose_steps(found, last=last and found[0][0].step is not None),
            unit=["auto", "characters", "words"][rng.integers(3)],
        )
    except (ValueError, OSError) as error:
        assert str(error).strip(), "a refusal says why"
        return "refused"
    finally:
        file.unlink()
    n = sum(len(group.sequences) for group in groups)
    if n < sum(map(len, found)):  # the last step only
        return "accepted"
    assert n >= len(items) - sum(1 for _, item, _ in items if [] in item.values()), "a line is lost"
    if whole:
        marks = Counter(re.findall(r"<\d+\.\d+>", json.dumps(objects)))
        again = Counter(
            m for group in groups for t in group.texts for m in re.findall(r"<\d+\.\d+>", t)
        )
        assert again == marks, "completions are lost"
    for group in groups:
        tree_text(
            group.tree,
            group.rewards,
            group.labels,
            prompt=group.prompt,
            ascii_only=bool(rng.integers(2)),
        )
    if any(len(group.sequences) > 1 for group in groups):
        stats = group_statistics(groups)
        assert stats["completions"] + stats["skipped_groups"] == n, "a completion is not counted"
        statistics_text(stats)
    return "accepted"


def fuzz(n: int, seed: int, seconds: int = 0) -> Counter:
    """n mutated logs.   -> how many were accepted, refused, or failed by which error;
    the first of each kind is printed
    """
    counts: Counter = Counter()
    alarm = seconds > 0 and hasattr(signal, "SIGALRM")  # a case that takes longer counts as hanging
    if alarm:
        signal.signal(signal.SIGALRM, _too_long)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n):
            if alarm:
                signal.alarm(seconds)
            try:
                counts[run_one(np.random.default_rng([seed, i]), Path(folder))] += 1
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-1].name
                kind = f"{type(error).__name__} at {place}: {str(error)[:60]}"
                if kind not in counts:
                    print(f"case {i} of seed {seed}: {kind}")
                    traceback.print_exception(error)
                counts[kind] += 1
            finally:
                if alarm:
                    signal.alarm(0)
    return counts


def _too_long(*_: object) -> None:
    raise AssertionError("hangs")  # a TimeoutError would be an OSError


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    try:
        import resource

        resource.setrlimit(
            resource.RLIMIT_AS, (5 << 29, 5 << 29)
        )  # 2 GB and what is loaded: more is a MemoryError
    except ImportError:
        pass
    warnings.simplefilter("error")
    began = time.perf_counter()
    found = fuzz(arguments.n, arguments.seed, seconds=60)
    print(dict(found), f"in {time.perf_counter() - began:.0f} s")
    raise SystemExit(0 if found.keys() <= {"accepted", "refused"} else 1)
