"""The objects in a log: JSON, JSON lines, CSV, TSV, W&B tables, Parquet; in files and folders.

An object is a completion, a group of completions, or a table of columns; `grouping.py` tells them
apart.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from minigrpo.system.tables import SUFFIXES, csv_rows, decode, json_rows, listed, parquet_rows
from minigrpo.tree import MAX_TOKEN

EXPECTED = """\
a group is a JSON object with its completions (texts or lists of token ids) and maybe their rewards:
  {"prompt": "2+3=", "completions": ["5", "6", "5!"], "rewards": [1, 0, 0]}
Several groups are a JSON list or one object per line; a log is one completion per line:
  {"prompt": "2+3=", "completion": "5", "reward": 1}"""

# What TRL, verl, open-instruct, ms-swift, prime-rl and OpenRLHF call the fields; the first that has
# a value counts.  The first four names of a completion always hold several.
FIELDS = {
    "completion": "completions responses outputs generations "
    "completion response output generation response_tokens completion_ids",
    "prompt": "prompt prompts query queries input inputs question problem "
    "prompt_tokens prompt_ids prompt_token_ids env env_name",
    "step": "step global_step training_step train_step gen_step iteration epoch",
    "reward": "reward rewards score scores",
    "advantage": "advantage advantages",
    "group": "group group_id uid prompt_idx prompt_id problem_id example_id task_idx",
}
NAMES = {kind: tuple(names.split()) for kind, names in FIELDS.items()}
KNOWN = {name for names in NAMES.values() for name in names} | {"messages"}
PLURAL = NAMES["completion"][:4]
# What TRL, ms-swift and this package write: in a folder that has some, other files are left out.
KNOWN_FILES = ("completions_*.parquet", "completions.jsonl", "samples.jsonl")
CHAT_TEXT = re.compile(
    r"""\s*(\[[\[\s]*\{[^{}]{0,99}?['"](role|content)['"]|\{\s*['"]role['"])\s*[:,]"""
)

Row = tuple[str, dict, str]  # the words to name it by in an error, the object, its file
Names = Mapping[str, tuple[str, ...]]  # as NAMES


def read_log(file: str, names: Names = NAMES) -> tuple[list[Row], list[str]]:
    """The objects of a file, a folder's files, or standard input ("-").   -> rows, notes

    Raises ValueError where a file is no such log, OSError where it cannot be read.
    """
    path = Path(file)
    if file == "-":
        data = getattr(sys.stdin, "buffer", sys.stdin).read()
        text = data if isinstance(data, str) else decode(data, "standard input")
        return [(*row, "") for row in parse(text, names=names)], []
    if not path.is_dir():
        return _read_file(path, path.name, names), []
    found = [f for f in path.rglob("*") if {*SUFFIXES} & {s.lower() for s in f.suffixes}]
    files = {str(f.relative_to(path)): f for f in found if f.is_file()}
    order = [n for n in sorted(files, key=by_number) if files[n].suffix.lower() in SUFFIXES]
    order = [n for n in order if "/." not in f"/{Path(n).as_posix()}"]  # none that is hidden
    kind = next((k for k in KNOWN_FILES if any(files[name].match(k) for name in order)), "*")
    rows, without, beside = [], [], [name for name in order if not files[name].match(kind)]
    for name in (name for name in order if name not in beside):
        found = _read_file(files[name], name, names)
        if present(found[0][1], names["completion"]):
            rows += found
        else:
            without.append(f"{name} ({listed(found[0][1])})")
    left_out = {"as without completions": without, f"beside {kind}": beside}
    left_out["by name"] = sorted({*files} - {*order})
    notes = [f"left out, {why}: {', '.join(them)[:500]}" for why, them in left_out.items() if them]
    if not rows:
        told = f"{file} is a folder without completions_*.parquet, which TRL writes with "
        told += f"log_completions=True, and without other logs ({', '.join(SUFFIXES)})"
        raise ValueError("; ".join([told, *notes]))
    return rows, notes


def _read_file(path: Path, name: str, names: Names) -> list[Row]:
    """Rows of a file.  A number in its name or folder (STEP.jsonl, step_N/…) is their step."""
    data = path.read_bytes()
    if path.suffix.lower() == ".parquet":
        rows = _plain(parquet_rows(data, name) or [(f"the table of {name}", {})], names)
    else:
        rows = parse(decode(data, name), name, names)
    number = re.fullmatch(r"(\d{1,18})\.\w+", path.name)
    number = number or re.search(r"step[_=-]?(\d{1,18}(\.\d+)?)(?!\d)", str(Path(*path.parts[-3:])))
    if number:
        step = {"step": float(number[1]) if "." in number[1] else int(number[1])}
        rows = [(w, row if present(row, names["step"]) else step | row) for w, row in rows]
    return [(where, row, str(path)) for where, row in rows]


def _plain(rows: list[tuple[str, dict]], names: Names) -> list[tuple[str, dict]]:
    """Rows with values as JSON has them, for what Parquet stores otherwise, such as dates."""
    text = json.dumps(rows, default=lambda v: float(v) if isinstance(v, Decimal) else str(v))
    return [(where, _opened(row, names)) for where, row in json.loads(text)]


def parse(text: str, name: str = "", names: Names = NAMES) -> list[tuple[str, dict]]:
    """The objects of a JSON document, of JSON lines or of a table, with words to name each by."""
    of, text = f" of {name}" if name else "", text.removeprefix("\ufeff")
    if not text.strip():
        raise ValueError(f"no input{of}: {EXPECTED}")
    header = text.lstrip().partition("\n")[0].strip()
    for mark in "\t,;" if header[0] not in "{[" else "":
        cells = [cell.strip('"') for cell in header.split(mark)]
        if spaced := [c for c in cells if c != c.strip() and c.strip().lower() in KNOWN]:
            told = f"the header{of} has {spaced[0]!r}, with a space, as its texts then would"
            raise ValueError(f"{told}: write no space after {mark!r}, or give --completion-name")
        if present(dict.fromkeys(_renamed(cells, names).values()), names["completion"]):
            rows = csv_rows(text, mark, of) or [(f"the table{of}", {})]
            return [(where, _typed(row, names)) for where, row in rows]
    if name.lower().endswith((".csv", ".tsv")):
        advice = f"or name it with --completion-name: {header[:300]}"
        raise ValueError(f"the header{of} has no completion, {advice}")
    rows = json_rows(text, of, "group")
    for where, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{where} is not a JSON object: {EXPECTED}")
    if not rows:
        raise ValueError(f"the list{of} is empty: {EXPECTED}")
    return [(where, _opened(row, names)) for where, row in rows]


def _renamed(fields: Iterable[str], names: Names) -> dict[str, str]:
    """Each field with its name here: "Step" and " step" are the known "step", unless asked for."""
    asked = {p.strip() for k in names for n in {*names[k]} - KNOWN for p in re.split("[,:]", n)}
    fields = [*fields]
    low = {f: f.strip().lower() for f in fields if f not in asked}
    taken = [*low.values(), *(f for f in fields if f in asked)]
    return {f: low[f] if low.get(f) in KNOWN and taken.count(low[f]) == 1 else f for f in fields}


def _opened(row: dict, names: Names) -> dict:
    """With names as `_renamed` gives them, and with the prompt and the completion of "messages"."""
    known = _renamed(row, names)
    row = {known[field]: value for field, value in row.items()}
    chat = chat_of(row.get("messages"))
    if not chat or chat[-1].get("role") != "assistant":
        return row
    return {"prompt": chat[:-1], "completion": chat[-1:]} | row


def _typed(row: dict[str, str], names: Names) -> dict[str, Any]:
    """A row of CSV: numbers and truths are read, but not in texts and ids."""
    texts = {*names["completion"], *names["prompt"], *names["group"]}
    known = _renamed(row, names)
    return {known[k]: v if known[k] in texts else _cell(v) for k, v in row.items()}


def _cell(text: str) -> int | float | str | None:
    """A cell as a number or a truth if it is one; an empty one is null."""
    try:
        value = json.loads(text.lower())
    except (ValueError, RecursionError):
        return text or None
    return value if isinstance(value, int | float) else text


def present(row: dict, names: Iterable[str]) -> list[str]:
    """Those of the names that a row has, first those with a value.

    A field "…_tokens" that is a number says how many there are: it is none of them.
    """
    there = [n for n in names if n in row and not (n.endswith("_tokens") and type(row[n]) is int)]
    return sorted(there, key=lambda n: row[n] is None)


def by_number(name: str) -> list:
    """To sort by: 9 comes before 10, and .125 before .25."""
    pieces = re.split(r"(\d+(?:\.\d+)?|\.\d+)", name)
    return [Decimal(piece) if i % 2 else piece for i, piece in enumerate(pieces)]


# -- what a completion says ------------------------------------------------------------------------


def chat_of(value: Any) -> list[dict]:
    """The messages of a chat, or of one as JSON in a text; none if it is no chat."""
    if isinstance(value, str) and CHAT_TEXT.match(value):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    messages = [value] if isinstance(value, dict) else value if isinstance(value, list) else []
    says = {"content", "tool_calls", "function_call"}
    return messages if all(isinstance(m, dict) and says & m.keys() for m in messages) else []


def text_of(value: Any) -> str:
    """A text, or a chat's messages joined, or anything else as JSON."""
    if chat := chat_of(value):
        return "\n".join(map(_said, chat))
    return value if isinstance(value, str) else json.dumps(value)


def _said(message: dict) -> str:
    """All that a message says: reasoning, content (a text, or parts), calls of tools."""
    content = message.get("content")
    if isinstance(content, list) and all(
        isinstance(p, dict) and isinstance(p.get("text"), str) for p in content
    ):
        content = "".join(p["text"] for p in content)
    said = [message.get("reasoning_content"), message.get("thinking"), content]
    said += [message.get("tool_calls"), message.get("function_call")]
    return "\n".join(p if isinstance(p, str) else json.dumps(p, sort_keys=True) for p in said if p)


def content_of(value: Any, where: str) -> str | list:
    """A completion as a text, a list of ids or a list of texts.   Raises ValueError for others."""
    chat = chat_of(value)
    if isinstance(value, str) and CHAT_TEXT.match(value) and not chat:
        raise ValueError(f"{where} holds a chat as a text that is no JSON: write it as JSON")
    value = text_of(value) if chat else value
    pieces = [value] if isinstance(value, str) else value if isinstance(value, list) else [None]
    if all(isinstance(piece, str) for piece in pieces):
        return value
    if not all(type(piece) is int for piece in pieces):
        told = f"{where} is neither a text nor a list of token ids (whole numbers)"
        raise ValueError(f"{told}: {json.dumps(value)[:60]}")
    if not 0 <= min(value) <= max(value) <= MAX_TOKEN:
        ids = f"{min(value)} … {max(value)}"
        raise ValueError(f"{where} holds a token id outside [0, 2**31): {ids}")
    return value
