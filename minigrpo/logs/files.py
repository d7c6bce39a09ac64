"""The objects that logs of completions hold: JSON, JSON lines, CSV, TSV, W&B tables, Parquet; files, folders, standard input.

An object or row is a completion, a group, or a table of columns; `logs.py` makes groups of them.
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

EXPECTED = """a group is a JSON object with its completions (texts or lists of token ids) and, if there are any, their rewards:
  {"prompt": "2+3=", "completions": ["5", "6", "5!"], "rewards": [1, 0, 0]}
Several groups are a JSON list of such objects or one object a line; a log is one completion a line:
  {"prompt": "2+3=", "completion": "5", "reward": 1}"""

# What fields are called by TRL, verl, open-instruct, ms-swift, prime-rl and OpenRLHF; the first that has a value counts.
PLURAL = ("completions", "responses", "outputs", "generations")  # always several completions
PROMPTS = ("prompt", "prompts", "query", "queries", "input", "inputs", "question", "problem")
NAMES = {
    "completion": (
        *PLURAL,
        "completion",
        "response",
        "output",
        "generation",
        "response_tokens",
        "completion_ids",
    ),
    "prompt": (*PROMPTS, "prompt_tokens", "env", "env_name"),
    "step": (
        "step",
        "global_step",
        "training_step",
        "train_step",
        "gen_step",
        "iteration",
        "epoch",
    ),
    "reward": ("reward", "rewards", "score", "scores"),
    "advantage": ("advantage", "advantages"),
    "group": (
        "group",
        "group_id",
        "uid",
        "prompt_idx",
        "prompt_id",
        "problem_id",
        "example_id",
        "task_idx",
    ),
}
KNOWN = {name for own in NAMES.values() for name in own}
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")

CHAT_TEXT = re.compile(
    r"""\s*(\[[\[\s]*\{[^{}]{0,99}?['"](role|content)['"]|\{\s*['"]role['"]\s*:\s*['"]assistant['"])\s*[:,]"""
)

Item = tuple[str, dict, str]  # the words to name it by in an error, the object, its file
Names = Mapping[str, tuple[str, ...]]  # as NAMES


def read_log(file: str, names: Names = NAMES) -> tuple[list[Item], list[str]]:
    """The objects of a file, of a folder's files in the order of their numbers, or of standard input ("-").   -> items, notes

    Raises ValueError where a file is no such log, OSError where it cannot be read.
    """
    path = Path(file)
    if file == "-":
        data = (
            sys.stdin.buffer.read()
            if hasattr(sys.stdin, "buffer")
            else sys.stdin.read().encode("utf-8", "surrogatepass")
        )
        return [(*item, "") for item in parse(_decode(data, "standard input"), names=names)], []
    if not path.is_dir():
        return _read_file(path, path.name, names), []
    files = {
        str(f.relative_to(path)): f
        for f in path.rglob("*")
        if f.suffix.lower() in SUFFIXES and f.is_file()
    }
    order = sorted(files, key=by_number)
    kinds = (
        "completions_*.parquet",
        "completions.jsonl",
        "samples.jsonl",
    )  # by TRL, ms-swift and us, among files of other kinds
    preferred = {}  # of each folder the kind of log that is read there
    for kind in reversed(kinds):
        preferred |= {files[name].parent: kind for name in order if Path(name).match(kind)}
    items, left_out, beside = [], [], []
    for name in order:
        if not Path(name).match(preferred.get(files[name].parent, "*")):
            beside.append(name)
            continue
        found = _read_file(files[name], name, names)
        if _fields(found[0][1], names):
            items += found
        else:
            left_out.append(f"{name} ({listed(found[0][1])})")
    out = f"left out, as without completions: {', '.join(left_out)[:500]}" if left_out else ""
    if not items:
        raise ValueError(
            f"{file} is a folder without completions_*.parquet, which TRL writes with log_completions=True, "
            f"and without other logs of completions ({', '.join(SUFFIXES)}){out and '; ' + out}"
        )
    other = (
        f"left out, beside {' and '.join(sorted({*preferred.values()}))}: {', '.join(beside)[:500]}"
        if beside
        else ""
    )
    return items, [note for note in (out, other) if note]


def _read_file(path: Path, name: str, names: Names) -> list[Item]:
    is_parquet = path.suffix.lower() == ".parquet"
    rows = (
        _parquet(path, name, names)
        if is_parquet
        else parse(_decode(path.read_bytes(), name), name, names)
    )
    place = str(Path(*path.parts[-3:]))
    if said := re.fullmatch(r"(\d{1,18})\.\w+", path.name) or re.search(
        r"step[_-]?(\d{1,18}(?:\.\d+)?)(?!\d)", place
    ):
        step = float(said[1]) if "." in said[1] else int(said[1])
        rows = [
            (where, row if present(row, names["step"]) else {"step": step, **row})
            for where, row in rows
        ]
    return [(where, row, str(path)) for where, row in rows]


def _decode(data: bytes, name: str) -> str:
    codec = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(codec)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not {codec.removesuffix('-sig').upper()} text (at byte {error.start}): write it as UTF-8"
        ) from None
    if "\0" in text[:1000]:
        raise ValueError(
            f"{name} holds zero bytes, as binary files do, and UTF-16 without its mark: write it as UTF-8"
        )
    return text


def _parquet(path: Path, name: str, names: Names) -> list[tuple[str, dict]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError:
        raise ValueError(
            f"{name} is a Parquet file, and to read it takes pyarrow: pip install pyarrow"
        ) from None
    try:
        rows = read_table(path).to_pylist() or [{}]
    except ArrowException as error:
        raise ValueError(f"{name}: {error}") from None
    plain = (
        json.dumps(row, default=lambda v: float(v) if hasattr(v, "as_tuple") else str(v))
        for row in rows
    )  # Decimal, dates
    return [(f"row {i} of {name}", _plain(json.loads(row), names)) for i, row in enumerate(plain)]


def parse(text: str, name: str = "", names: Names = NAMES) -> list[tuple[str, dict]]:
    """The objects of a JSON document, of JSON lines or of a table, each with the words to name it by in an error."""
    of, text = f" of {name}" if name else "", text.removeprefix("\ufeff")
    if not text.strip():
        raise ValueError(f"no input{of}: {EXPECTED}")
    whole, text = text, re.sub(r'\A\s*"?sep=[\t,;|]"?(\r\n?|\n)', "", text)  # as Excel has it
    header = text.lstrip().partition("\n")[0].strip()
    for mark in "\t,;|" if header[0] not in "{[" else "":
        if _fields({cell.strip().strip('"'): "" for cell in header.split(mark)}, names):
            rest = text.lstrip("\r\n")
            return _table(rest, mark, of, names, whole.count("\n") - rest.count("\n"))
    if name.lower().endswith((".csv", ".tsv")):
        raise ValueError(
            f"the header{of} has no completion, or name it with --completion-name: {header[:300]}"
        )
    lines = [
        (n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()
    ]  # splitlines would cut at U+2028 in a text
    try:
        one_a_line = len(lines) > 1 and isinstance(json.loads(lines[0][1]), dict)
    except (ValueError, RecursionError):
        one_a_line = False
    if one_a_line:
        items = [(f"line {n}{of}", _json(line, n, of)) for n, line in lines]
    else:
        value = _json(text, 1, of)
        if (
            isinstance(value, dict)
            and isinstance(value.get("columns"), list)
            and isinstance(value.get("data"), list)
        ):  # of W&B
            value = [
                _row(value["columns"], row, f"row {i}{of}") for i, row in enumerate(value["data"])
            ]
        value = _of_pandas(value, names)
        items = (
            [(f"group {i}{of}", v) for i, v in enumerate(value)]
            if isinstance(value, list)
            else [(f"the group{of}", value)]
        )
    for where, value in items:
        if not isinstance(value, dict):
            raise ValueError(f"{where} is not a JSON object: {EXPECTED}")
    if not items:
        raise ValueError(f"the list{of} is empty: {EXPECTED}")
    return [(where, _plain(item, names)) for where, item in items]


def _of_pandas(value: Any, names: Names) -> Any:
    """What DataFrame.to_json writes by default, or with orient="index" or "table", as rows; anything else as it is."""
    if not isinstance(value, dict) or not value:
        return value
    if "schema" in value and isinstance(value.get("data"), list):
        return value["data"]
    inner = list(value.values())
    if not all(isinstance(v, dict) and v.keys() == inner[0].keys() for v in inner):
        return value
    if _fields(value, names):  # {"completion": {"0": "a", "1": "b"}, …}
        return (
            [{k: v[i] for k, v in value.items()} for i in inner[0]]
            if all(map(str.isdecimal, inner[0]))
            else value
        )
    return inner if _fields(inner[0], names) else value


def _plain(item: dict, names: Names) -> dict:
    """With known names of fields in lower case, as "Completion", and with the completion of "messages": its last turn."""
    chosen = {
        part.strip() for own in names.values() for n in own for part in (n, *re.split("[,:]", n))
    }
    low = {k: k.strip().lower() for k in item if k not in chosen}
    item = {
        low[k] if low.get(k) in KNOWN and [*low.values(), *item].count(low[k]) == 1 else k: v
        for k, v in item.items()
    }
    chat = chat_of(item.get("messages"))
    said = (
        {"prompt": chat[:-1], "completion": chat[-1:]}
        if chat and chat[-1].get("role") == "assistant"
        else {}
    )
    return said | item


def _json(text: str, first_line: int, of: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"malformed JSON at line {first_line + error.lineno - 1}, column {error.colno}{of}: {error.msg}"
        ) from None
    except (RecursionError, ValueError) as error:  # or a number of thousands of digits
        raise ValueError(
            f"malformed JSON at line {first_line}{of}: {error}, or nested too deeply"
        ) from None


def _row(columns: list, row: Any, where: str) -> dict:
    if (
        not isinstance(row, list)
        or len(row) != len(columns)
        or len({*map(str, columns)}) < len(columns)
    ):
        raise ValueError(
            f"{where} has {len(row) if isinstance(row, list) else 'no'} fields, not one for each of {listed(columns)}"
        )
    return dict(zip(map(str, columns), row, strict=True))


def _table(text: str, mark: str, of: str, names: Names, above: int) -> list[tuple[str, dict]]:
    """The rows of CSV with a header.  Numbers, true and false are read but in texts and ids; an empty cell is null."""
    old = csv.field_size_limit(len(text) + 1)
    try:
        spaced = bool(
            re.match(rf"[^\n{mark}]*{re.escape(mark)} ", text)
        )  # "step, prompt, completion"
        reader = csv.reader(
            io.StringIO(text, newline=""), delimiter=mark, strict=True, skipinitialspace=spaced
        )
        (_, head), *rows = [(f"line {reader.line_num + above}{of}", row) for row in reader if row]
    except csv.Error as error:
        raise ValueError(f"malformed CSV{of}: {error}") from None
    finally:
        csv.field_size_limit(old)
    texts, items = {*names["completion"], *names["prompt"], *names["group"]}, []
    head = (
        list(_plain(dict.fromkeys(map(str.strip, head)), names))
        if len({*map(str.strip, head)}) == len(head)
        else head
    )
    is_json = re.compile(r"(?i)-?(0|[1-9]\d*)(\.\d+)?(e[-+]?\d+)?|true|false").fullmatch
    for where, row in rows:
        cells = _row(head, row, where).items()
        items.append(
            (
                where,
                {
                    c: v if c in texts else _json(v.lower(), 1, of) if is_json(v) else v or None
                    for c, v in cells
                },
            )
        )
    return items or [(f"the table{of}", {})]


def present(item: dict, names: Iterable[str]) -> list[str]:
    """Those of the names that the object has, first those with a value; "…_tokens" may also be how many there are."""
    there = [n for n in names if n in item and not (n.endswith("_tokens") and type(item[n]) is int)]
    return sorted(there, key=lambda n: item[n] is None)


def _fields(item: dict, names: Names) -> list[str]:
    return present(_plain(item, names), names["completion"])


def by_number(name: str) -> list:
    """To sort by: 9 comes before 10, and .125 before .25."""
    return [
        Decimal(part) if i % 2 else part
        for i, part in enumerate(re.split(r"(\d+(?:\.\d+)?|\.\d+)", name))
    ]


def listed(names: Iterable[object]) -> str:
    """Names for an error message."""
    return ", ".join(json.dumps(name, ensure_ascii=False) for name in names)[:500]


def chat_of(value: Any) -> list[dict]:
    """The messages of a chat, or of one as JSON in a text; none if it is no chat."""
    if isinstance(value, str) and CHAT_TEXT.match(value):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    messages = [value] if isinstance(value, dict) else value if isinstance(value, list) else []
    return (
        messages
        if all(
            isinstance(m, dict) and {"content", "tool_calls", "function_call"} & {*m}
            for m in messages
        )
        else []
    )


def text_of(value: Any) -> str:
    """A text, or a chat's messages joined, or anything else as JSON."""
    return (
        "\n".join(map(_said, chat_of(value)))
        if chat_of(value)
        else value
        if isinstance(value, str)
        else json.dumps(value)
    )


def _said(message: dict) -> str:
    """All that a message says: reasoning, content (a text, or parts), calls of tools."""
    content = message.get("content")
    if isinstance(content, list) and all(
        isinstance(p, dict) and isinstance(p.get("text"), str) for p in content
    ):
        content = "".join(p["text"] for p in content)
    parts = [
        content if k == "content" else message.get(k)
        for k in ("reasoning_content", "thinking", "content", "tool_calls", "function_call")
    ]
    return "\n".join(p if isinstance(p, str) else json.dumps(p, sort_keys=True) for p in parts if p)


def content_of(value: Any, where: str) -> str | list:
    """A completion as a text, a list of ids or a list of texts."""
    if isinstance(value, str) and CHAT_TEXT.match(value) and not chat_of(value):
        raise ValueError(
            f"{where} holds a chat as a text that is no JSON, in which all begin alike: write it as JSON"
        )
    value = text_of(value) if chat_of(value) else value
    if isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(t, str) for t in value)
    ):
        return value
    if not isinstance(value, list) or not all(type(t) is int for t in value):
        raise ValueError(
            f"{where} is neither a text nor a list of token ids (whole numbers): {json.dumps(value)[:60]}"
        )
    if not 0 <= min(value) <= max(value) <= MAX_TOKEN:
        raise ValueError(
            f"{where} holds a token id outside [0, 2**31): {min(value)} … {max(value)}"
        )
    return value
