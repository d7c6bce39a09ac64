"""Logs of completions, as training frameworks write them, as groups with rewards.

Nothing is guessed in silence: notes say what was taken for a group and for its reward, and a reward that the file's own advantages
contradict is refused.  Files are read in `log_files.py`; trees and statistics are made in `groups.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from minigrpo.log_files import EXPECTED, NAMES, PLURAL, Item, Names, by_number, listed, present
from minigrpo.tree import MAX_TOKEN

NO_REWARD = {"", "index", "Unnamed: 0"}.union(*(NAMES[kind] for kind in NAMES if kind != "reward"))


class Completion(NamedTuple):
    """A completion with all that was logged of it."""

    where: str
    row: dict
    key: tuple  # those of a group have the same key and ids
    ids: tuple
    prompt: str
    step: int | float | str | None
    content: str | list
    parts: tuple[str, ...]  # the fields that came from a dict of rewards
    reward: Any = None


def read_completions(
    items: Iterable[Item], names: Names = NAMES, group_size: int | None = None
) -> tuple[list[list[Completion]], list[str]]:
    """Objects as groups of completions.   -> groups in order of appearance, and notes on what was taken for what

    A group is what an object gives as one ("completions" of one prompt), else the completions of the same step, prompt and group
    id, next to each other or not; without a step, of the same file, too.  group_size splits these into so many after each other.
    A reward name "a,b" is the sum of two fields.  Raises ValueError with line and keys.
    """
    try:
        found = [c for i, item in enumerate(items) for c in _completions(*item, i, names)]
    except RecursionError:
        raise ValueError("an object of the log is nested too deeply") from None
    if not found:
        raise ValueError(f"no completions: {EXPECTED}")
    columns = list(dict.fromkeys(key for c in found for key in c.row))
    for kind in (kind for kind in NAMES if names[kind] != NAMES[kind]):
        for part in _parts(names[kind][0], columns) if kind == "reward" else names[kind]:
            if part not in columns:
                raise ValueError(f"no line has {part!r} (--{kind}-name); the columns are {listed(columns)}")
    groups: dict[tuple, list[Completion]] = {}
    for c in found:
        groups.setdefault((c.key, c.ids), []).append(c)
    rewards, said = _rewards(list(groups.values()), names["reward"], columns)
    split, whole = [], False
    for group, own in zip(groups.values(), rewards, strict=True):
        size = group_size if group_size is not None and group[0].key[0] == "log" else len(group)
        if size < 1 or len(group) % size:
            raise ValueError(f"{group[0].where} begins {len(group)} completions of one prompt, which are no groups of {size}")
        members = [c._replace(reward=r) for c, r in zip(group, own, strict=True)]
        split += [members[i : i + size] for i in range(0, len(group), size)]
        whole |= group[0].key[0] == "log" and not group[0].ids and group_size is None and size > 1
    say = ["all lines of one step and prompt are one group; if they are several, give --group-size K"] if whole else []
    return split, say + said


def choose_steps(groups: list[list[Completion]], steps: Iterable[str] = (), *, last: bool = False) -> list[list[Completion]]:
    """The groups of these steps, or of the last; all if none is asked for.  Raises ValueError for a step that is not there."""
    there = {str(group[0].step) for group in groups} - {"None"}
    wanted = {*steps, *([max(there, key=by_number, default="")] if last else [])}
    if wanted - there:
        raise ValueError(
            f"no group is of step {listed(wanted - there)}; their steps are: {listed(sorted(there, key=by_number)) or 'none'}"
        )
    return [group for group in groups if not wanted or str(group[0].step) in wanted]


def _completions(where: str, item: dict, file: str, number: int, names: Names) -> list[Completion]:
    """The completions of an object: its only one, those of a group, or those of a table of columns."""
    chat = _chat(item.get("messages"))
    if [m.get("role") for m in chat].count("assistant") == 1 and chat[-1].get("role") == "assistant":
        item = {"prompt": chat[:-1], "completion": chat[-1:], **item}
    if not (fields := present(item, names["completion"])):
        keys = f"only {listed(item) or 'nothing'}; --completion-name names another field"
        raise ValueError(f'{where} has neither "completions" nor "completion", {keys}. {EXPECTED}')
    field, value = fields[0], item[fields[0]]
    kinds = {n: kind for kind in names if kind != "completion" for n in present(item, names[kind])}
    lists = {n: item[n] for n in kinds if isinstance(item[n], list)}  # of which a chat or a list of ids is one prompt
    columns = {n: len(v) for n, v in lists.items() if not (kinds[n] == "prompt" and v and isinstance(v[0], int | dict))}
    texts = isinstance(value, list) and all(isinstance(c, str) for c in value) and len(value) in columns.values()
    several = isinstance(value, list) and (texts or field in PLURAL or any(isinstance(c, list) for c in value))
    if field in PLURAL and not (several and (value or columns)):
        raise ValueError(f'{where}: "{field}" must be a list of at least one text or list of token ids')
    if not several:
        return [_completion(where, item, field, kinds, file, None)]
    size = len(value)
    for n, kind in kinds.items():
        for v in item[n].values() if kind == "reward" and isinstance(item[n], dict) else [item[n]]:
            one = kind == "reward" and v is not None and not isinstance(v, list)
            count = "one number for" if one else len(v) if kind == "reward" and v is not None else columns.get(n, size)
            if count != size:
                raise ValueError(f"{where} has {size} {field} but {count} {n}: give one for each completion")
    rows = [{k: _entry(v, i, size, k not in kinds or k in columns) for k, v in item.items()} for i in range(size)]
    number = number if not {"prompt", "step", "group"} & {kinds[n] for n in columns} else -1 - number
    return [_completion(f"completion {i} of {where}", row, field, kinds, file, number) for i, row in enumerate(rows)]


def _entry(value: Any, i: int, size: int, is_column: bool) -> Any:
    """Completion i's part of a column, or of a dict of columns; anything else is for all."""
    if isinstance(value, dict) and value and all(isinstance(v, list) and len(v) == size for v in value.values()):
        return {k: v[i] for k, v in value.items()}
    return value[i] if is_column and isinstance(value, list) and len(value) == size else value


def _completion(where: str, row: dict, field: str, kinds: dict, file: str, number: int | None) -> Completion:
    """number: None for a line of its own, i for a group, -1 - i for a table's row (i: which object of the log)."""
    dicts = {n: row[n] for n in NAMES["reward"] if isinstance(row.get(n), dict)}
    row = {k: v for k, v in row.items() if k not in dicts}
    parts = {k if k not in row else f"{n}/{k}": v for n in dicts for k, v in dicts[n].items()}
    has = {kind: [n for n in kinds if kinds[n] == kind and row.get(n) is not None] for kind in NAMES}
    told = {kind: tuple(json.dumps([n, row[n]], sort_keys=True) for n in has[kind]) for kind in has}
    place = os.path.dirname(file) if told["step"] else (file, number)
    key = ("group", number) if number is not None and number >= 0 else ("log", place, told["step"], told["prompt"])
    step = next((row[n] for n in has["step"] if isinstance(row[n], int | float | str)), None)
    prompt = next((_text(row[n]) for n in has["prompt"]), "")
    return Completion(where, row | parts, key, told["group"], prompt, step, _content(row[field], where), tuple(parts))


def _chat(value: Any) -> list[dict]:
    messages = [value] if isinstance(value, dict) else value if isinstance(value, list) else []
    return messages if all(isinstance(m, dict) and "content" in m for m in messages) else []


def _text(value: Any) -> str:
    """A text, or a chat's messages joined, or anything else as JSON."""
    return "\n".join(map(_said, _chat(value))) if _chat(value) else value if isinstance(value, str) else json.dumps(value)


def _said(message: dict) -> str:
    """All that a message says: reasoning, content (a text, or parts), calls of tools."""
    content = message["content"]
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        content = "".join(p["text"] for p in content)
    parts = [content if k == "content" else message.get(k) for k in ("reasoning_content", "thinking", "content", "tool_calls")]
    return "\n".join(p if isinstance(p, str) else json.dumps(p, sort_keys=True) for p in parts if p)


def _content(value: Any, where: str) -> str | list:
    """A completion as a text, a list of ids or a list of texts."""
    value = _text(value) if _chat(value) else value
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(t, str) for t in value)):
        return value
    if not isinstance(value, list) or not all(type(t) is int for t in value):
        raise ValueError(f"{where} is neither a text nor a list of token ids (whole numbers): {json.dumps(value)[:60]}")
    if not 0 <= min(value) <= max(value) <= MAX_TOKEN:
        raise ValueError(f"{where} holds a token id outside [0, 2**31): {min(value)} … {max(value)}")
    return value


# -- rewards -------------------------------------------------------------------------------------------------------------


def _parts(name: str, columns: list[str]) -> list[str]:
    return [name] if name in columns else [part.strip() for part in name.split(",")]


def _rewards(groups: list[list[Completion]], names: tuple[str, ...], columns: list[str]) -> tuple[list[list], list[str]]:
    """The reward of every completion of every group, and a note on what it is where that is not plain.

    Where a file has advantages but no field called reward, they say which column, or which sum of columns, is the reward: in every
    group, a = (r - mean(r)) / scale.  If none does, or several do with other values, it is refused.  In sums null counts 0.
    """
    everyone = [c for group in groups for c in group]

    def sums(fields: Iterable[str], null: float | None = None) -> list[list]:
        return [[_sum([v for f in fields if (v := c.row.get(f)) is not None], null) for c in group] for group in groups]

    if names != NAMES["reward"]:
        return sums(_parts(names[0], columns)), []
    types = {n: {type(v) for c in everyone if (v := c.row.get(n)) is not None} for n in columns}
    plain = [n for n in names if types.get(n)]
    numbers = [n for n in columns if types[n] and types[n] <= {int, float, bool} and n not in NO_REWARD]
    unused = [] if plain or not numbers else [f"no rewards; --reward-name may name one of {listed(numbers)}"]
    numbers = [n for n in numbers if bool not in types[n]]
    parts = [n for n in columns if any(n in c.parts for c in everyone)]
    claimed = [n for n in parts if n in numbers] or parts or [n for n in numbers if "reward" in n.lower()]
    stated = next((n for n in NAMES["advantage"] if types.get(n, set()) & {int, float}), "")
    for c in everyone:
        said = [c.row[n] for n in plain if c.row.get(n) is not None]
        if any(v != said[0] for v in said[1:]):
            raise ValueError(f"{c.where} has rewards that differ, {listed(plain)}: choose with --reward-name")
        if stated and (huge := [n for n in numbers if abs(c.row.get(n) or 0) >= 1e300]):
            raise ValueError(f"{huge[0]!r} is not finite, or too large, in {c.where}: choose the reward with --reward-name")
    rewards = [[next((c.row[n] for n in plain if c.row.get(n) is not None), None) for c in group] for group in groups]
    if not (numbers or parts) or (plain and not stated):
        return rewards, unused
    if not stated:
        return (sums(claimed), [f"the reward is {' + '.join(claimed)}"]) if parts else (rewards, unused)
    advantages = [[c.row.get(stated) for c in group] for group in groups]
    first = tuple(plain[:1] or claimed or numbers)
    rewards = rewards if plain else sums(first, 0.0)
    if (plain or claimed or len(numbers) == 1) and _agreement(rewards, advantages) is not None:
        return rewards, [] if plain else [f"the reward is {' + '.join(first)}"]
    sizes = range(1, len(numbers) + 1) if len(numbers) < 6 else (1, len(numbers))
    readings = {r: sums(r, 0.0) for size in sizes for r in combinations(numbers, size)}
    shown = {r: size for r, values in readings.items() if (size := _agreement(values, advantages)) is not None}
    fits = [r for r, size in shown.items() if size > (2 if claimed else 1)]  # two show too little to leave out a claimed reward
    if plain and not fits:
        return rewards, [f"{first[0]!r} is taken for the reward, but {stated!r} is not its advantage"]
    if fits and not plain and all(readings[r] == readings[fits[0]] for r in shown):
        return readings[fits[0]], [f"the reward is {' + '.join(fits[0])}"]
    raise ValueError(
        f"{everyone[0].where} and below: {stated!r} shows {'several' if fits else 'none'} of {listed(numbers)} and their sums "
        "to be the reward: choose with --reward-name NAME, or NAME,NAME for a sum"
    )


def _sum(values: list, null: float | None) -> Any:
    """The sum of numbers; anything else, which is to be refused, as it is."""
    wrong = [v for v in values if not isinstance(v, int | float) or abs(v) >= 1e300]
    if wrong or (len(values) == 1 and null is None):
        return (wrong or values)[0]
    return float(sum(v for v in values if v == v)) if values else null


def _agreement(rewards: list[list], advantages: list[list]) -> int | None:
    """Whether a = (r - mean(r)) / scale in every group, to the digits printed.   -> size of the largest group that shows it

    0 if no group shows anything, as its advantages are all equal; None if a group contradicts.
    """
    both = [
        (r, a) for r, a in zip(rewards, advantages, strict=True) if all(type(v) in (int, float) and abs(v) < 1e300 for v in r + a)
    ]
    pairs = [(np.array(r, float), np.array(a, float)) for r, a in both]
    digits = max((17 if "e" in repr(v) else len(repr(v).partition(".")[2]) for _, a in pairs for v in a.tolist()), default=0)
    noise = 1e-5 * max((np.abs(a).max() for _, a in pairs), default=0.0)
    shown = 0
    for r, a in pairs:
        order = np.lexsort((a, r))  # equal rewards have equal advantages, and larger ones no smaller, however these are rounded
        step, rise = np.diff(r[order]), np.diff(a[order])
        x, y = r - r.mean(), a - a.mean()
        size, largest = np.abs(r).max(), np.abs(x).max()
        x = x / largest if largest > 1e-6 * size else 0 * x  # x @ x is at least 1, or 0 where all rewards are equal
        residual = np.abs(y - x @ y / max(x @ x, 1.0) * x).max()
        if (rise < -noise).any() or (rise[step <= 1e-9 * size] > noise).any() or residual > 0.75 * 10.0**-digits + noise:
            return None
        if x.any() and np.ptp(a) <= noise:
            return None
        shown = max(shown, len(r) if x.any() else 0)
    return shown
