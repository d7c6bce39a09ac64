"""The objects in a log: JSON, JSON lines, CSV, TSV, W&B tables, Parquet; in files and folders.

An object is a completion, a group of completions, or a table of columns; `grouping.py` tells them
apart.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

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
    "prompt_tokens env env_name",
    "step": "step global_step training_step train_step gen_step iteration epoch",
    "reward": "reward rewards score scores",
    "advantage": "advantage advantages",
    "group": "group group_id uid prompt_idx prompt_id problem_id example_id task_idx",
}
NAMES = {kind: tuple(names.split()) for kind, names in FIELDS.items()}
KNOWN = {name for names in NAMES.values() for name in names} | {"messages"}
PLURAL = NAMES["completion"][:4]
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
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
        text = data if isinstance(data, str) else _decode(data, "standard input")
        return [(*row, "") for row in parse(text, names=names)], []
    if not path.is_dir():
        return _read_file(path, path.name, names), []
    files = {str(f.relative_to(path)): f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES}
    order = sorted((name for name, f in files.items() if f.is_file()), key=by_number)
    kind = next((k for k in KNOWN_FILES if any(files[name].match(k) for name in order)), "*")
    rows, without, beside = [], [], [name for name in order if not files[name].match(kind)]
    for name in (name for name in order if name not in beside):
        found = _read_file(files[name], name, names)
        if present(found[0][1], names["completion"]):
            rows += found
        else:
            without.append(f"{name} ({listed(found[0][1])})")
    left_out = {"as without completions": without, f"beside {kind}": beside}
    notes = [f"left out, {why}: {', '.join(them)[:500]}" for why, them in left_out.items() if them]
    if not rows:
        told = f"{file} is a folder without completions_*.parquet, which TRL writes with "
        told += f"log_completions=True, and without other logs ({', '.join(SUFFIXES)})"
        raise ValueError("; ".join([told, *notes]))
    return rows, notes


def _read_file(path: Path, name: str, names: Names) -> list[Row]:
    """Rows of a file.  A number in its name or folder (STEP.jsonl, step_N/…) is their step."""
    if path.suffix.lower() == ".parquet":
        rows = _parquet(path, name, names)
    else:
        rows = parse(_decode(path.read_bytes(), name), name, names)
    number = re.fullmatch(r"(\d{1,18})\.\w+", path.name)
    number = number or re.search(r"step[_-]?(\d{1,18}(\.\d+)?)(?!\d)", str(Path(*path.parts[-3:])))
    if number:
        step = {"step": float(number[1]) if "." in number[1] else int(number[1])}
        rows = [(w, row if present(row, names["step"]) else step | row) for w, row in rows]
    return [(where, row, str(path)) for where, row in rows]


def _decode(data: bytes, name: str) -> str:
    codec = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(codec)
    except UnicodeDecodeError as error:
        told = f"{name} is not {codec[:6].strip('-').upper()} text (at byte {error.start})"
        raise ValueError(f"{told}: write it as UTF-8") from None
    if "\0" in text[:1000]:
        told = f"{name} holds zero bytes, as binary files do, and UTF-16 without its mark"
        raise ValueError(f"{told}: write it as UTF-8")
    return text


def _parquet(path: Path, name: str, names: Names) -> list[tuple[str, dict]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError:
        told = f"{name} is a Parquet file, and to read it takes pyarrow"
        raise ValueError(f"{told}: pip install pyarrow") from None
    try:
        table = read_table(path).to_pylist() or [{}]
    except ArrowException as error:
        raise ValueError(f"{name}: {error}") from None
    plain = json.dumps(table, default=lambda v: float(v) if isinstance(v, Decimal) else str(v))
    return [(f"row {i} of {name}", _opened(row, names)) for i, row in enumerate(json.loads(plain))]


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
            return _table(text, mark, of, names)
    if name.lower().endswith((".csv", ".tsv")):
        advice = f"or name it with --completion-name: {header[:300]}"
        raise ValueError(f"the header{of} has no completion, {advice}")
    # splitlines would cut at U+2028 in a text
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    try:
        one_per_line = len(lines) > 1 and isinstance(json.loads(lines[0][1]), dict)
    except (ValueError, RecursionError):
        one_per_line = False
    if one_per_line:
        rows = [(f"line {n}{of}", _json(line, n, of)) for n, line in lines]
    else:
        value = _json(text, 1, of)
        table = value if isinstance(value, dict) else {}
        columns, data = table.get("columns"), table.get("data")
        if isinstance(columns, list) and isinstance(data, list):  # of W&B
            value = [_row(columns, cells, f"row {i}{of}") for i, cells in enumerate(data)]
        rows = [(f"the group{of}", value)]
        if isinstance(value, list):
            rows = [(f"group {i}{of}", row) for i, row in enumerate(value)]
    for where, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{where} is not a JSON object: {EXPECTED}")
    if not rows:
        raise ValueError(f"the list{of} is empty: {EXPECTED}")
    return [(where, _opened(row, names)) for where, row in rows]


def _renamed(fields: Iterable[str], names: Names) -> dict[str, str]:
    """Each field with its name here: "Step" and " step" are the known "step", unless asked for."""
    asked = {part.strip() for own in names.values() for n in own for part in re.split("[,:]", n)}
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


def _json(text: str, first_line: int, of: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {first_line + error.lineno - 1}, column {error.colno}{of}"
        raise ValueError(f"malformed JSON at {where}: {error.msg}") from None
    except (RecursionError, ValueError) as error:  # or a number of thousands of digits
        told = f"malformed JSON at line {first_line}{of}: {error}"
        raise ValueError(f"{told}, or nested too deeply") from None


def _row(columns: list, cells: Any, where: str) -> dict:
    n = len(cells) if isinstance(cells, list) else "no"
    if n != len(columns) or len({*map(str, columns)}) < len(columns):
        raise ValueError(f"{where} has {n} fields, not one for each of {listed(columns)}")
    return dict(zip(map(str, columns), cells, strict=True))


def _table(text: str, mark: str, of: str, names: Names) -> list[tuple[str, dict]]:
    """The rows of CSV with a header.  Numbers and truths are read, but not in texts and ids."""
    old = csv.field_size_limit(len(text) + 1)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
        (_, head), *rows = [(f"line {reader.line_num}{of}", row) for row in reader if row]
    except csv.Error as error:
        raise ValueError(f"malformed CSV{of}: {error}") from None
    finally:
        csv.field_size_limit(old)
    texts = {*names["completion"], *names["prompt"], *names["group"]}
    known = _renamed(head, names)
    head = [known[field] for field in head]
    found = [(where, _row(head, row, where)) for where, row in rows]
    return [
        (where, {k: v if k in texts else _cell(v) for k, v in row.items()}) for where, row in found
    ] or [(f"the table{of}", {})]


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


def listed(names: Iterable[object]) -> str:
    """Names for an error message."""
    return ", ".join(json.dumps(name, ensure_ascii=False) for name in names)[:500]


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
        told = f"{where} holds a chat as a text that is no JSON, in which all begin alike"
        raise ValueError(f"{told}: write it as JSON")
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
