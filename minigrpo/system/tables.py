"""Tables in files, as rows of named cells: CSV, TSV, JSON, JSON lines, W&B tables, Parquet.

Every row comes with the words to name it by in an error, such as "line 3 of capitals.csv".
`rows_of` reads a file of any kind; logs/rows.py, for other programs' logs, uses its parts.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
PACKED = b"\x1f\x8b", b"BZh91AY", b"\xfd7zXZ", b"(\xb5/\xfd", b"PK\3\4", b"PAR1"  # gzip, …
Named = list[tuple[str, dict[str, Any]]]  # rows, each after the words to name it by


def rows_of(data: bytes, name: str) -> Named:
    """The rows of a file that holds this data, at least one; cells of CSV are texts.

    CSV is split at commas, or at semicolons or tabs if its header has more of those.  Raises
    ValueError, with the place, for what is no such table, or damaged.
    """
    suffix, of = Path(name).suffix.lower(), f" of {name}"
    if suffix not in SUFFIXES:
        raise ValueError(f"{name} is no table that is read: give {', '.join(SUFFIXES)}")
    text = "" if suffix == ".parquet" else decode(data, name)
    if suffix == ".parquet":
        rows = parquet_rows(data, name)
    elif suffix in (".csv", ".tsv"):
        header = text.lstrip().partition("\n")[0]
        rows = csv_rows(text, "\t" if suffix == ".tsv" else max(",;\t", key=header.count), of)
    else:
        rows = json_rows(text, of, "row") if text.strip() else []
    if not rows:
        raise ValueError(f"{name} has no rows")
    if bad := [where for where, row in rows if not isinstance(row, dict)]:
        raise ValueError(f"{bad[0]} is not a JSON object: write one for each row")
    return rows


def decode(data: bytes, name: str) -> str:
    """The text of a file.   Raises ValueError for what is neither UTF-8 nor marked as UTF-16."""
    if data.startswith(PACKED):
        raise ValueError(f"{name} is compressed (unpack it) or Parquet (end its name in .parquet)")
    codec = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(codec)
    except UnicodeDecodeError as error:
        told = f"{name} is not {codec[:6].strip('-').upper()} text (at byte {error.start})"
        raise ValueError(f"{told}: write it as UTF-8") from None
    if "\0" in text[:1000]:
        raise ValueError(f"{name} holds zero bytes (binary, or unmarked UTF-16): write it as UTF-8")
    return text


def parquet_rows(data: bytes, name: str) -> Named:
    """The rows of a Parquet file, as Python's values.   Raises ValueError if it is damaged."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError:
        told = f"{name} is a Parquet file, and to read it takes pyarrow"
        raise ValueError(f'{told}: pip install "minigrpo[logs]"') from None
    try:
        rows = read_table(io.BytesIO(data)).to_pylist()
    except (ArrowException, OSError) as error:
        raise ValueError(f"{name}: {error}") from None
    return [(f"row {i} (from 0) of {name}", row) for i, row in enumerate(rows)]


def csv_rows(text: str, mark: str, of: str) -> Named:
    """The rows below a header, cells as texts.   Raises ValueError for a row of another length."""
    old, reader = csv.field_size_limit(len(text) + 1), None
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
        rows = [(f"line {reader.line_num}{of}", row) for row in reader if row]
    except csv.Error as error:
        at = f", at line {reader.line_num}" if reader else ""
        raise ValueError(f"malformed CSV{of}{at}: {error}") from None
    finally:
        csv.field_size_limit(old)
    return [(where, _row(rows[0][1], cells, where)) for where, cells in rows[1:]]


def json_rows(text: str, of: str, kind: str) -> list[tuple[str, Any]]:
    """What a JSON document, a list in it, JSON lines or a table of W&B hold; `kind` names them."""
    # splitlines would cut at U+2028 in a text
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    try:
        one_per_line = len(lines) > 1 and isinstance(json.loads(lines[0][1]), dict)
    except (ValueError, RecursionError):
        one_per_line = False
    if one_per_line:
        return [(f"line {n}{of}", _json(line, n, of)) for n, line in lines]
    value = _json(text, 1, of)
    table = value if isinstance(value, dict) else {}
    columns, data = table.get("columns"), table.get("data")
    if isinstance(columns, list) and isinstance(data, list):  # of W&B
        value = [_row(columns, cells, f"row {i} (from 0){of}") for i, cells in enumerate(data)]
    if isinstance(value, list):
        return [(f"{kind} {i} (from 0){of}", row) for i, row in enumerate(value)]
    return [(f"the {kind}{of}", value)]


def _json(text: str, first_line: int, of: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {first_line + error.lineno - 1}, column {error.colno}{of}"
        raise ValueError(f"malformed JSON at {where}: {error.msg}") from None
    except (RecursionError, ValueError) as error:  # or a number of thousands of digits
        told = f"malformed JSON at line {first_line}{of}: {error}"
        raise ValueError(f"{told}, or nested too deeply") from None


def _row(columns: list, cells: Any, where: str) -> dict[str, Any]:
    n, names = len(cells) if isinstance(cells, list) else "no", [*map(str, columns)]
    twice = [name for name in names if names.count(name) > 1]
    if n != len(columns) or twice:
        also = f" ({listed(twice[:1])} is there twice)" if twice else ""
        raise ValueError(f"{where} has {n} fields, not one for each of {listed(columns)}{also}")
    return dict(zip(names, cells, strict=True))


def listed(names: Iterable[object]) -> str:
    """Names for an error message."""
    return ", ".join(json.dumps(name, ensure_ascii=False) for name in names)[:500]
