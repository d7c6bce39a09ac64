"""Logs of completions, as training frameworks write them, as groups with rewards.

Nothing is guessed in silence: notes say what was taken for a group and for its reward, and a reward that the file's own advantages
contradict is refused.  Files are read in `log_files.py`; trees and statistics are made in `groups.py`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal, DecimalException
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from minigrpo.logs.files import (
    EXPECTED,
    NAMES,
    PLURAL,
    Item,
    Names,
    by_number,
    content_of,
    listed,
    present,
    text_of,
)

NO_REWARD = {"", "index", "Unnamed: 0"}.union(*(NAMES[kind] for kind in NAMES if kind != "reward"))
# Of a reward, not a part of it: "reward_mean", "total_reward", "rewardStd".
STATISTIC = re.compile(
    "(?:^|[^a-zA-Z]|(?<=[a-z])(?=[A-Z]))(?i:mean|avg|average|std|var|total|sum|overall|final|combined|weighted|min|max|baseline)"
    "(?![a-z])"
)
CHOOSE = "choose with --reward-name NAME, or NAME,NAME for a sum, or NAME,NAME:0.5 with weights"


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
    A reward name "a,b" is the sum of two fields, "a,b:0.5" with a weight.  Raises ValueError with line and keys.
    """
    try:
        found = [c for i, item in enumerate(items) for c in _completions(*item, i, names)]
    except RecursionError:
        raise ValueError("an object of the log is nested too deeply") from None
    if not found:
        raise ValueError(f"no completions: {EXPECTED}")
    columns = list(dict.fromkeys(key for c in found for key in c.row))
    for kind in (kind for kind in NAMES if names[kind] != NAMES[kind]):
        for part in dict(_parts(names[kind][0], columns)) if kind == "reward" else names[kind]:
            if part not in columns:
                raise ValueError(
                    f"no line has {part!r} (--{kind}-name); the columns are {listed(columns)}"
                )
    found, said_ids = _read_ids(found, names["completion"])
    groups: dict[tuple, list[Completion]] = {}
    for c in found:
        groups.setdefault((c.key, c.ids), []).append(c)
    if group_size is not None and not any(key[0] == "log" for key, _ in groups):
        raise ValueError(
            "--group-size splits the lines of a log: here each group is given as one already"
        )
    rewards, said = _rewards(list(groups.values()), names, columns)
    split, whole = [], False
    for group, own in zip(groups.values(), rewards, strict=True):
        size = group_size if group_size is not None and group[0].key[0] == "log" else len(group)
        if size < 1 or len(group) % size:
            raise ValueError(
                f"{group[0].where} begins {len(group)} completions of one prompt, which are no groups of {size}"
            )
        members = [c._replace(reward=r) for c, r in zip(group, own, strict=True)]
        split += [members[i : i + size] for i in range(0, len(group), size)]
        whole |= group[0].key[0] == "log" and not group[0].ids and group_size is None and size > 1
    say = (
        ["all lines of one step and prompt are one group; if they are several, give --group-size K"]
        if whole
        else []
    )
    return split, said_ids + say + said


def choose_steps(
    groups: list[list[Completion]], steps: Iterable[str] = (), *, last: bool = False
) -> list[list[Completion]]:
    """The groups of these steps, or of the last; all if none is asked for.  Raises ValueError for a step that is not there."""
    there = {
        _step(group[0].step): str(group[0].step) for group in groups if group[0].step is not None
    }
    order = sorted(
        there,
        key=lambda step: (
            isinstance(step, Decimal),
            step if isinstance(step, Decimal) else by_number(step),
        ),
    )
    wanted = {_step(s): s for s in steps} | (
        {step: there[step] for step in order[-1:] or [""]} if last else {}
    )
    if gone := [s for step, s in wanted.items() if step not in there]:
        raise ValueError(
            f"no group is of step {listed(gone)}; their steps are: {listed(map(there.get, order)) or 'none'}"
        )
    return [
        group
        for group in groups
        if not wanted or (group[0].step is not None and _step(group[0].step) in wanted)
    ]


def _step(step: object) -> Decimal | str:
    """A step as the number that it is, or a text: 10, "10" and 10.0 are one step."""
    try:
        return number if (number := Decimal(str(step))).is_finite() else str(step)
    except DecimalException:
        return str(step)


def check_not_alone(groups: Sequence[list[Completion]]) -> None:
    """Raises ValueError, naming the field that told them apart, if there are groups but none has two completions."""
    if len(groups) < 2 or any(len(group) > 1 for group in groups):
        return
    ones = [group[0] for group in groups]
    told = {
        "group": [c.ids for c in ones],
        "prompt": [c.key[-1] for c in ones],
        "step": [c.key[-2] for c in ones],
    }
    for kind, own in told.items() if all(c.key[0] == "log" for c in ones) else ():
        others = {(c.key[1], *(told[k][i] for k in told if k != kind)) for i, c in enumerate(ones)}
        fields = {json.loads(pair)[0]: 0 for pairs in own for pair in pairs}
        if fields and (len(others) < len(ones) or len({*own}) == len(ones)):
            apart = f"{listed(fields)} tells them apart; --{kind}-name names another field"
            raise ValueError(f"no group has two completions ({len(ones)} groups of one): {apart}")


def _completions(where: str, item: dict, file: str, number: int, names: Names) -> list[Completion]:
    """The completions of an object: its only one, those of a group, or those of a table of columns."""
    if not (fields := present(item, names["completion"])):
        keys = f"only {listed(item) or 'nothing'}; --completion-name names another field"
        raise ValueError(f'{where} has neither "completions" nor "completion", {keys}. {EXPECTED}')
    field, value = fields[0], item[fields[0]]
    kinds = {n: kind for kind in names if kind != "completion" for n in present(item, names[kind])}
    lists = {
        n: item[n] for n in kinds if isinstance(item[n], list)
    }  # of which a chat or a list of ids is one prompt
    columns = {
        n: len(v)
        for n, v in lists.items()
        if not (kinds[n] == "prompt" and v and isinstance(v[0], int | dict))
    }
    texts = (
        isinstance(value, list)
        and all(isinstance(c, str) for c in value)
        and len(value) in columns.values()
    )
    several = isinstance(value, list) and (
        texts or field in PLURAL or any(isinstance(c, list) for c in value)
    )
    if field in PLURAL and not (several and (value or columns)):
        raise ValueError(
            f'{where}: "{field}" must be a list of at least one text or list of token ids'
        )
    if not several:
        ones = ("reward", "advantage")
        item = {
            k: v[0] if isinstance(v, list) and len(v) == 1 and kinds.get(k) in ones else v
            for k, v in item.items()
        }
        return [_completion(where, item, field, kinds, file, None)]
    size = len(value)
    for n, kind in kinds.items():
        for v in item[n].values() if kind == "reward" and isinstance(item[n], dict) else [item[n]]:
            one = kind == "reward" and v is not None and not isinstance(v, list)
            count = (
                "one number for"
                if one
                else len(v)
                if kind == "reward" and v is not None
                else columns.get(n, size)
            )
            if count != size:
                raise ValueError(
                    f"{where} has {size} {field} but {count} {n}: give one for each completion"
                )
    rows = [
        {k: _entry(v, i, size, k not in kinds or k in columns) for k, v in item.items()}
        for i in range(size)
    ]
    number = (
        number if not {"prompt", "step", "group"} & {kinds[n] for n in columns} else -1 - number
    )
    return [
        _completion(f"completion {i} of {where}", row, field, kinds, file, number)
        for i, row in enumerate(rows)
    ]


def _entry(value: Any, i: int, size: int, is_column: bool) -> Any:
    """Completion i's part of a column, or of a dict of columns; anything else is for all."""
    if (
        isinstance(value, dict)
        and value
        and all(isinstance(v, list) and len(v) == size for v in value.values())
    ):
        return {k: v[i] for k, v in value.items()}
    return value[i] if is_column and isinstance(value, list) and len(value) == size else value


def _completion(
    where: str, row: dict, field: str, kinds: dict, file: str, number: int | None
) -> Completion:
    """number: None for a line of its own, i for a group, -1 - i for a table's row (i: which object of the log)."""
    dicts = {n: row[n] for n in NAMES["reward"] if isinstance(row.get(n), dict)}
    row = {k: v for k, v in row.items() if k not in dicts}
    parts = {k if k not in row else f"{n}/{k}": v for n in dicts for k, v in dicts[n].items()}
    has = {
        kind: [n for n in kinds if kinds[n] == kind and row.get(n) is not None] for kind in NAMES
    }
    told = {kind: tuple(json.dumps([n, row[n]], sort_keys=True) for n in has[kind]) for kind in has}
    folder, base = os.path.split(file)  # files of one name with other numbers are parts of one log
    place = (folder, re.sub(r"\d+", "", base)) if told["step"] else (file, number)
    key = (
        ("group", number)
        if number is not None and number >= 0
        else ("log", place, told["step"], told["prompt"])
    )
    step = next((row[n] for n in has["step"] if isinstance(row[n], int | float | str)), None)
    prompt = next((text_of(row[n]) for n in has["prompt"]), "")
    return Completion(
        where,
        row | parts,
        key,
        told["group"],
        prompt,
        step,
        content_of(row[field], where),
        tuple(parts),
    )


def _read_ids(
    found: list[Completion], names: tuple[str, ...]
) -> tuple[list[Completion], list[str]]:
    """Texts that are all lists of numbers, as tables of text hold token ids, as these ids.   -> completions, notes"""
    field = next((n for n in names if found[0].row.get(n) is not None), "")
    named = re.search(r"(?i)(^|_)(ids|tokens)$", field)
    opened = (
        r"(?:\w+[.\w]*(?=[\[(]))?[\[(]*" if named else r"(?:(?:np\.|torch\.)?(?:array|tensor)\()?\["
    )
    ids = re.compile(opened + r"([-+\de\s,.]*)[\])]*|")
    cells = [
        ids.fullmatch(c.content.strip()) if isinstance(c.content, str) else None for c in found
    ]
    if not any(cell and re.search(r"\d", cell[1] or "") for cell in cells) or not (
        named or all(cells)
    ):
        return found, []
    out = []
    for c, cell in zip(found, cells, strict=True):
        try:
            texts = (
                re.findall(r"[^\s,]+", (cell[1] or "") if cell else c.content)
                if isinstance(c.content, str)
                else []
            )
            numbers = [
                int(re.sub(r"\.0*$", "", n)) for n in texts
            ]  # "1." and "1.0", as of floats, are 1
        except ValueError:
            if not named and "..." not in c.content:
                return found, []
            raise ValueError(
                f"{c.where}: {field!r} is no list of token ids: {json.dumps(c.content)[:60]}"
            ) from None
        out.append(
            c._replace(content=content_of(numbers, c.where)) if isinstance(c.content, str) else c
        )
    return out, [f"the texts of {field!r} are lists of numbers: they are taken for token ids"]


# -- rewards -------------------------------------------------------------------------------------------------------------


def _parts(name: str, columns: list[str]) -> list[tuple[str, float]]:
    """The fields that a --reward-name adds, each with its weight."""
    weighted = [
        (part.strip(), re.fullmatch(r"(.+):\s*([-+]?\d*\.?\d+)", part.strip()))
        for part in name.split(",")
    ]
    if name in columns:
        return [(name, 1)]
    return [
        (part, 1) if part in columns or not m else (m[1].strip(), float(m[2]))
        for part, m in weighted
    ]


def _rewards(
    groups: list[list[Completion]], named: Names, columns: list[str]
) -> tuple[list[list], list[str]]:
    """The reward of every completion of every group, and a note on what it is where that is not plain.

    Where a file has advantages but no field called reward, they say which column, or which sum of columns, is the reward: in every
    group, a = (r - mean(r)) / scale.  If none does, or several do with other values, it is refused.  In sums null counts 0.
    """
    everyone, names = [c for group in groups for c in group], named["reward"]

    def sums(fields: Iterable[str | tuple], null: float | None = None) -> list[list]:
        pairs = [f if isinstance(f, tuple) else (f, 1) for f in fields]
        return [
            [
                _sum([(v, w) for f, w in pairs if (v := c.row.get(f)) is not None], null)
                for c in group
            ]
            for group in groups
        ]

    types = {n: {type(v) for c in everyone if (v := c.row.get(n)) is not None} for n in columns}
    stated = next((n for n in NAMES["advantage"] if types.get(n, set()) & {int, float}), "")
    advantages = [[c.row.get(stated) for c in group] for group in groups]
    if names != NAMES["reward"]:
        rewards = sums(_parts(names[0], columns))
        contradicted = stated and stated != names[0] and _agreement(rewards, advantages) is None
        return rewards, [
            f"{names[0]!r} is the reward, as asked, but {stated!r} is not its advantage"
        ] if contradicted else []
    plain, no_reward = (
        [n for n in names if types.get(n)],
        NO_REWARD.union(*(named[kind] for kind in named if kind != "reward")),
    )
    parts = [n for n in columns if any(n in c.parts for c in everyone)]
    numbers = [
        n for n in columns if types[n] and types[n] <= {int, float, bool} and n not in no_reward
    ]
    hidden = [
        n
        for n in columns
        if ("reward" in n.lower() or n in parts) and n not in {*plain, *numbers, *no_reward}
    ]
    texts = {
        n: c for n in hidden for c in reversed(everyone) if isinstance(c.row.get(n), str | list)
    }
    odd = [
        f"{n!r} is no reward, as {c.where} has {json.dumps(c.row[n])[:60]}, which is no number"
        for n, c in texts.items()
    ]
    empty = re.compile(r"(?i)\s*([-+]?[\d.]+(e[-+]?\d+)?|-?inf|nan?|n/a|none|null)?\s*")
    if half := [
        note
        for note, (n, c) in zip(odd, texts.items(), strict=True)
        if n in parts and empty.fullmatch(str(c.row[n]))
    ]:
        raise ValueError(f"{half[0]}: {CHOOSE}")
    unused = (
        []
        if plain or not numbers
        else [f"no rewards; --reward-name may name one of {listed(numbers)}"]
    )
    if stated and not plain and not numbers and not odd:
        unused = [
            f"no rewards: there is {stated!r}, but no other field holds a number in every line that has it"
        ]
    mine = (
        [n for n in parts if n in numbers]
        or parts
        or [n for n in numbers if "reward" in n.lower() and bool not in types[n]]
    )
    claimed = [n for n in mine if not STATISTIC.search(n)]
    for c in everyone:
        said = [c.row[n] for n in plain if c.row.get(n) is not None]
        if any(v != said[0] for v in said[1:]):
            raise ValueError(
                f"{c.where} has rewards that differ, {listed(plain)}: choose with --reward-name"
            )
        if stated and (huge := [n for n in numbers if abs(c.row.get(n) or 0) >= 1e300]):
            raise ValueError(
                f"{huge[0]!r} is not finite, or too large, in {c.where}: choose the reward with --reward-name"
            )
    rewards = [
        [next((c.row[n] for n in plain if c.row.get(n) is not None), None) for c in group]
        for group in groups
    ]
    if not (numbers or parts) or (plain and not stated):
        return rewards, unused + odd
    if not stated:
        if not parts:
            return rewards, unused + odd
        claimed = claimed or mine[: len(mine) == 1]
        for n in (n for n in mine if n in numbers):
            own, rest = sums([n], 0.0), sums([other for other in claimed if other != n], 0.0)
            if (
                (len(claimed) > 2 and any(map(any, own)) and _same(own, rest))
                if n in claimed
                else not _same(own, rest)
            ):
                raise ValueError(
                    f"{everyone[0].where} and below: {n!r} seems to hold all of {listed(mine)}: {CHOOSE}"
                )
        return sums(claimed), [f"the reward is {' + '.join(claimed)}", *odd]
    first = tuple(plain[:1] or claimed or numbers)
    rewards = rewards if plain else sums(first, 0.0)

    def agreeing(fields: list[str]) -> dict[tuple, int]:
        sizes = range(1, len(fields) + 1) if len(fields) < 6 else (1, len(fields))
        all_sizes = {
            r: _agreement(sums(r, 0.0), advantages)
            for size in sizes
            for r in combinations(fields, size)
        }
        return {r: size for r, size in all_sizes.items() if size is not None}

    sure = plain or claimed or (len(numbers) == 1 and bool not in types[numbers[0]])
    others = agreeing([n for n in claimed if n in numbers and not plain])
    if (
        sure
        and _agreement(rewards, advantages) is not None
        and all(_same(sums(r, 0.0), rewards, shifted=True) for r in others)
    ):
        return rewards, odd if plain else [f"the reward is {' + '.join(first)}", *odd]
    shown = agreeing(numbers)
    fits = [
        r for r, size in shown.items() if size > (2 if claimed else 1)
    ]  # two show too little to leave out a claimed reward
    if plain and not fits:
        return rewards, [
            f"{first[0]!r} is taken for the reward, but {stated!r} is not its advantage",
            *odd,
        ]
    if not fits and all(types[n] == {bool} for n in numbers):
        return [[None for _ in group] for group in groups], unused + odd
    if fits and not plain and all(_same(sums(r, 0.0), sums(fits[0], 0.0)) for r in shown):
        return sums(fits[0], 0.0), [f"the reward is {' + '.join(fits[0])}", *odd]
    raise ValueError(
        f"{everyone[0].where} and below: {stated!r} shows {'several' if fits else 'none'} of {listed(numbers)} and their sums "
        f"to be the reward: {CHOOSE}"
    )


def _same(a: list[list], b: list[list], *, shifted: bool = False) -> bool:
    """Whether these are the same numbers, or within each group the same but for a constant."""
    if any(abs(v) >= 1e300 for group in a + b for v in group):
        return False
    pairs = [(np.array(x, float), np.array(y, float)) for x, y in zip(a, b, strict=True)]
    return all(
        np.allclose(x - x.mean() * shifted, y - y.mean() * shifted, rtol=1e-9, atol=1e-12)
        for x, y in pairs
    )


def _sum(values: list[tuple], null: float | None) -> Any:
    """The sum of numbers with weights; anything else, which is to be refused, as it is."""
    wrong = [v for v, _ in values if not isinstance(v, int | float) or abs(v) >= 1e300]
    if wrong or (len(values) == 1 and null is None and values[0][1] == 1):
        return (wrong or values[0])[0]
    return float(sum(w * v for v, w in values if v == v)) if values else null


def _agreement(rewards: list[list], advantages: list[list]) -> int | None:
    """Whether a = (r - mean(r)) / scale in every group, to the digits printed.   -> size of the largest group that shows it

    0 if no group shows anything, as its advantages are all equal; None if a group contradicts.
    """
    numbers = [
        all(isinstance(v, int | float) and abs(v) < 1e300 for v in r + a)
        for r, a in zip(rewards, advantages, strict=True)
    ]
    pairs = [
        (np.array(rewards[i], float), np.array(advantages[i], float))
        for i, ok in enumerate(numbers)
        if ok
    ]
    digits = max(
        (
            17 if "e" in repr(v) else len(repr(v).partition(".")[2])
            for _, a in pairs
            for v in a.tolist()
        ),
        default=0,
    )
    noise = 1e-5 * max((np.abs(a).max() for _, a in pairs), default=0.0)
    shown = 0
    for r, a in pairs:
        order = np.lexsort(
            (a, r)
        )  # equal rewards have equal advantages, and larger ones no smaller, however these are rounded
        step, rise = np.diff(r[order]), np.diff(a[order])
        x, y = r - r.mean(), a - a.mean()
        size, largest = np.abs(r).max(), np.abs(x).max()
        x = (
            x / largest if largest > 1e-6 * size else 0 * x
        )  # x @ x is at least 1, or 0 where all rewards are equal
        residual = np.abs(y - x @ y / max(x @ x, 1.0) * x).max()
        if (
            (rise < -noise).any()
            or (rise[step <= 1e-9 * size] > noise).any()
            or residual > 0.75 * 10.0**-digits + noise
        ):
            return None
        if x.any() and np.ptp(a) <= noise:
            return None
        shown = max(shown, len(r) if x.any() else 0)
    return shown
