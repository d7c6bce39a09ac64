"""Which rows of a log are a group: the completions of one prompt, with their rewards.

Nothing is guessed in silence: notes say what was taken for a group and for its reward.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal, DecimalException
from typing import Any, NamedTuple

from minigrpo.logs.reward_columns import LARGEST, find_rewards, weighted_fields
from minigrpo.logs.rows import (
    EXPECTED,
    NAMES,
    PLURAL,
    Names,
    Row,
    by_number,
    content_of,
    present,
    text_of,
)
from minigrpo.system.tables import listed

VERL_UID = re.compile(r"(?:pad[0-9a-f]{32}|(.+))_\d+_\d+")  # group (not of padding)_sample_output
# A list of numbers as a text, as tables hold token ids: of JSON, NumPy or PyTorch.
LIST_TEXT = re.compile(r"\s*([\w.]+\()?\[[-+\d\s,.]*[\])]*\s*")


class Completion(NamedTuple):
    """A completion with all that was logged of it."""

    where: str
    row: dict
    origin: tuple  # ("group", number) if its group was given as one, else ("log", file)
    identity: dict[str, tuple[tuple, ...]]  # its fields of step, prompt and group, with values
    prompt: str
    step: int | float | str | None
    content: str | list
    parts: tuple[str, ...]  # the fields that came from a dict of rewards
    reward: Any = None


def read_completions(
    rows: Iterable[Row], names: Names = NAMES, group_size: int | None = None
) -> tuple[list[list[Completion]], list[str]]:
    """Rows as groups of completions.   -> groups in order of appearance, notes

    A group is what an object gives as one ("completions" of one prompt), else the completions of
    the same step, prompt and group id, next to each other or not; without a step, of the same file,
    too.  group_size splits these into so many after each other.  A reward name "a,b" is the sum of
    two fields, "a,b:0.5" with a weight.  Raises ValueError with line and keys.
    """
    try:
        found = [c for i, row in enumerate(rows) for c in _completions(*row, i, names)]
    except RecursionError:
        raise ValueError("an object of the log is nested too deeply") from None
    if not found:
        raise ValueError(f"no completions: {EXPECTED}")
    columns = list(dict.fromkeys(key for c in found for key in c.row))
    for kind in (kind for kind in NAMES if names[kind] != NAMES[kind]):
        chosen = names[kind]
        for field in dict(weighted_fields(chosen[0], columns)) if kind == "reward" else chosen:
            if field not in columns:
                told = f"no line has {field!r} (--{kind}-name)"
                raise ValueError(f"{told}; the columns are {listed(columns)}")
    found, notes = _read_ids(found, names["completion"])
    uids = [VERL_UID.fullmatch(str(c.row.get("uid"))) for c in found if "uid" in names["group"]]
    if uids and all(uids) and len({uid[0] for uid in uids}) == len(uids):
        own = [(c, {"group": (("uid", g[1]),)}) for c, g in zip(found, uids, strict=True) if g[1]]
        found = [c._replace(identity=c.identity | group) for c, group in own]
        notes.append("'uid' is of a line, as in verl: without its last two numbers, of a group")
    groups: dict[tuple, list[Completion]] = {}
    for c in found:
        key = c.origin + tuple(c.identity.values() if c.origin[0] == "log" else ())
        groups.setdefault(key, []).append(c)
    logged = [group[0].origin[0] == "log" for group in groups.values()]
    if group_size is not None and not any(logged):
        raise ValueError("--group-size splits the lines of a log: here groups are given as such")
    rewards, said = find_rewards(list(groups.values()), names, columns)
    split = []
    for group, own, is_logged in zip(groups.values(), rewards, logged, strict=True):
        size = group_size if group_size is not None and is_logged else len(group)
        if size < 1 or len(group) % size:
            told = f"{group[0].where} begins {len(group)} completions of one prompt"
            raise ValueError(f"{told}, which are no groups of {size}")
        members = [c._replace(reward=r) for c, r in zip(group, own, strict=True)]
        split += [members[i : i + size] for i in range(0, len(group), size)]
        if is_logged and len(group) > 1 and group_size is None and not group[0].identity["group"]:
            told = "no prompt is known (--prompt-name NAME): " * (not group[0].identity["prompt"])
            told += f"all lines of one step{' and prompt' * (not told)} are one group"
            notes = [*notes, f"{told}; if they are several, give --group-size K"]
    return split, [*dict.fromkeys(notes), *said]


def choose_steps(
    groups: list[list[Completion]], steps: Iterable[str] = (), *, last: bool = False
) -> list[list[Completion]]:
    """The groups of these steps, or of the last; all if none is asked for.

    Raises ValueError for a step that is not there.
    """
    known = [(step_of(group[0].step), group) for group in groups if group[0].step is not None]
    there = {step: str(group[0].step) for step, group in known}
    order = in_order(there)
    wanted = {step_of(s): s for s in steps}
    if last:
        wanted |= {step: there[step] for step in order[-1:] or [""]}
    if gone := [s for step, s in wanted.items() if step not in there]:
        those = listed(map(there.get, order)) or "none"
        raise ValueError(f"no group is of step {listed(gone)}; their steps are: {those}")
    return [group for step, group in known if step in wanted] if wanted else groups


def step_of(step: object) -> Decimal | str:
    """A step as the number that it is, or a text: 10, "10" and 10.0 are one step."""
    try:
        return number if abs(number := Decimal(str(step))) < LARGEST else str(step)
    except DecimalException:
        return str(step)


def in_order(steps: Iterable[Decimal | str]) -> list[Decimal | str]:
    """Steps as `step_of` gives them, texts before numbers."""
    numbers = sorted(step for step in steps if isinstance(step, Decimal))
    return [*sorted((step for step in steps if isinstance(step, str)), key=by_number), *numbers]


def check_not_alone(groups: Sequence[list[Completion]]) -> None:
    """Raises ValueError, naming a field that differs on every line, if no group has two."""
    ones = [group[0] for group in groups]
    if len(groups) < 2 or any(len(group) > 1 or group[0].origin[0] == "group" for group in groups):
        return
    for kind in ("group", "prompt", "step"):
        fields = {name: 0 for c in ones for name, _ in c.identity[kind]}
        if fields and len({c.identity[kind] for c in ones}) == len(ones):
            apart = f"{listed(fields)} tells them apart; --{kind}-name names another field"
            raise ValueError(f"no group has two completions ({len(ones)} groups of one): {apart}")


def _completions(where: str, row: dict, file: str, number: int, names: Names) -> list[Completion]:
    """The completions of an object: its only one, those of a group, or those of a table."""
    if not (fields := present(row, names["completion"])):
        keys = f"only {listed(row) or 'nothing'}; --completion-name names another field"
        raise ValueError(f'{where} has neither "completions" nor "completion", {keys}. {EXPECTED}')
    field, value = fields[0], row[fields[0]]
    kinds = {n: kind for kind in names if kind != "completion" for n in present(row, names[kind])}
    lists = {n: row[n] for n in kinds if isinstance(row[n], list)}
    shared = {  # a prompt that is a chat or a list of ids
        n for n, v in lists.items() if kinds[n] == "prompt" and v and isinstance(v[0], int | dict)
    }
    lengths = {n: len(v) for n, v in lists.items() if n not in shared}
    items = value if isinstance(value, list) else []
    several = isinstance(value, list) and (
        field in PLURAL
        or any(isinstance(item, list) for item in items)
        or (all(isinstance(item, str) for item in items) and len(items) in lengths.values())
    )
    if field in PLURAL and not (several and (items or lengths)):
        raise ValueError(f'{where}: "{field}" must be a list of at least one text or list of ids')
    if not several:
        return [_completion(where, row, field, kinds, ("log", file))]
    for n, kind in kinds.items():
        counts = [lengths[n]] if n in lengths else []
        if kind == "reward":
            given = row[n].values() if isinstance(row[n], dict) else [row[n]]
            given = [v for v in given if v is not None]
            counts = [len(v) if isinstance(v, list) else "one number for" for v in given]
        for count in {*counts} - {len(items)}:
            told = f"{where} has {len(items)} {field} but {count} {n}"
            raise ValueError(f"{told}: give one for each completion")
    split = [
        {k: v if k in shared else _entry(v, i, len(items)) for k, v in row.items()}
        for i in range(len(items))
    ]
    is_table = {"prompt", "step", "group"} & {kinds[n] for n in lengths}
    origin = ("log", file, number) if is_table else ("group", number)
    return [
        _completion(f"completion {i} (from 0) of {where}", own, field, kinds, origin)
        for i, own in enumerate(split)
    ]


def _entry(value: Any, i: int, size: int) -> Any:
    """Completion i's part of a column, or of a dict of columns; anything else is for all."""
    is_dict = isinstance(value, dict) and value
    columns = list(value.values()) if is_dict else [value]
    if not all(isinstance(column, list) and len(column) == size for column in columns):
        return value
    return {k: column[i] for k, column in value.items()} if is_dict else value[i]


def _completion(where: str, row: dict, field: str, kinds: dict, origin: tuple) -> Completion:
    dicts = {n: row[n] for n in NAMES["reward"] if isinstance(row.get(n), dict)}
    row = {k: v for k, v in row.items() if k not in dicts}
    parts = {k if k not in row else f"{n}/{k}": v for n in dicts for k, v in dicts[n].items()}
    present_of = {
        kind: [n for n in kinds if kinds[n] == kind and (v := row.get(n)) is not None and v == v]
        for kind in ("step", "prompt", "group")
    }
    texts = [n for n in present_of["prompt"] if not n.endswith(("_ids", "_tokens"))]
    if any(n not in ("env", "env_name") for n in texts):  # ids of one text may be padded otherwise
        present_of["prompt"] = texts
    values = {n: json.dumps(row[n], sort_keys=True) for own in present_of.values() for n in own}
    numbers = [n for n in present_of["group"] if isinstance(row[n], int | float)]
    values |= {n: step_of(row[n]) for n in present_of["step"] + numbers}
    identity = {kind: tuple((n, values[n]) for n in own) for kind, own in present_of.items()}
    if origin[0] == "log" and identity["step"]:  # files that differ in a number are one log
        folder, base = os.path.split(origin[1])
        origin = ("log", folder, re.sub(r"\d+", "", base))
    step = next((row[n] for n in present_of["step"] if isinstance(row[n], int | float | str)), None)
    prompt = next((text_of(row[n]) for n in present_of["prompt"]), "")
    content = content_of(row[field], where)
    return Completion(where, row | parts, origin, identity, prompt, step, content, tuple(parts))


def _read_ids(found: list[Completion], names: Sequence[str]) -> tuple[list[Completion], list[str]]:
    """Texts that are all JSON lists of whole numbers, as token ids.   -> completions, notes

    Raises ValueError for a field "…_ids" or "…_tokens" that holds other texts, and where all texts
    are lists of numbers but not in JSON.
    """
    field = next((n for n in names if found[0].row.get(n) is not None), "")
    named = re.search(r"(?i)(^|_)(ids|tokens)$", field)
    texts = [c for c in found if isinstance(c.content, str)]
    full = [c for c in texts if c.content.strip()]
    if not full or not (named or all(LIST_TEXT.fullmatch(c.content) for c in full)):
        return found, []
    ids: dict[str, list[int]] = {}
    for c in texts:
        try:
            value = json.loads(c.content.strip() or "[]")
        except (ValueError, RecursionError):
            value = None
        is_ids = isinstance(value, list) and all(
            type(v) is int or (type(v) is float and v.is_integer()) for v in value
        )
        if not is_ids and (named or value is None):
            told = f"{c.where}: {field!r} is no list of token ids as JSON writes it"
            raise ValueError(f"{told}: {json.dumps(c.content)[:60]}")
        if not is_ids:
            return found, []
        ids[c.content] = content_of([int(v) for v in value], c.where)
    read = [c._replace(content=ids[c.content]) if isinstance(c.content, str) else c for c in found]
    return read, [f"the texts of {field!r} are lists of numbers: they are taken for token ids"]
