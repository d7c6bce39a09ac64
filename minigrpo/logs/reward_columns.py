"""Which columns of a log are the reward, by their names and by the advantages in the same file.

A file that has advantages but no field called reward says itself which column, or which sum of
columns, is the reward: a = (r - mean(r)) / scale in every group.  A reward that the advantages
contradict, and two that they cannot tell apart, are refused.  In sums null counts 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from minigrpo.logs.rows import NAMES, Names
from minigrpo.system.tables import listed

# Of a reward, not a part of it: "reward_mean", "total_reward", "rewardStd".
STATISTIC = re.compile(
    "(?:^|[^a-zA-Z]|(?<=[a-z])(?=[A-Z]))"
    "(?i:mean|avg|average|std|var|total|sum|overall|final|combined|weighted|min|max|baseline)"
    "(?![a-z])"
)
MISSING = re.compile(r"(?i)\s*[-+]?(nan|none|n/?a|inf(inity)?)\s*")  # texts in place of a number
CHOOSE = "choose with --reward-name NAME, or NAME,NAME for a sum, or NAME,NAME:0.5 with weights"
LARGEST = 1e300  # beyond it squares and sums overflow

Values = list[list[Any]]  # one per completion, group by group


def weighted_fields(name: str, columns: Sequence[str]) -> list[tuple[str, float]]:
    """The fields that a --reward-name adds, each with its weight."""
    if name in columns:
        return [(name, 1)]
    fields = []
    for part in map(str.strip, name.split(",")):
        weight = re.fullmatch(r"(.+):\s*([-+]?\d*\.?\d+)", part)
        named = part in columns or not weight
        fields.append((part, 1) if named else (weight[1].strip(), float(weight[2])))
    return fields


def find_rewards(groups: Sequence[Sequence], names: Names, columns: Sequence[str]) -> tuple:
    """The reward of every completion.   groups of `Completion` -> Values, notes

    Raises ValueError, naming the columns, where the rewards are not certain.
    """
    everyone = [c for group in groups for c in group]
    types = {n: {type(v) for c in everyone if (v := c.row.get(n)) is not None} for n in columns}
    stated = next((n for n in NAMES["advantage"] if types.get(n, set()) & {int, float}), "")
    advantages = [[c.row.get(stated) for c in group] for group in groups]
    if names["reward"] != NAMES["reward"]:
        asked = names["reward"][0]
        rewards = _sums(groups, weighted_fields(asked, columns), null=None)
        if not stated or stated == asked or _agreement(rewards, advantages) is not None:
            return rewards, []
        return rewards, [f"{asked!r} is the reward, as asked, but {stated!r} is not its advantage"]

    others = {"", "index", "Unnamed: 0"}
    others |= {n for kind in NAMES if kind != "reward" for n in (*NAMES[kind], *names[kind])}
    free = [n for n in columns if types[n] and n not in others]
    named = [n for n in names["reward"] if n in free]  # columns that are called reward
    parts = [n for n in columns if any(n in c.parts for c in everyone)]  # of dicts of rewards
    numbers = [n for n in free if types[n] <= {int, float, bool}]
    # Columns that say of themselves that they are rewards; claimed: but not computed from others.
    titled = [n for n in numbers if "reward" in n.lower() and bool not in types[n]]
    claims = [n for n in parts if n in numbers] or titled
    claimed = [n for n in claims if not STATISTIC.search(n)]
    first = f"{everyone[0].where} and below"
    notes = []
    for n in (n for n in free if n not in named and ("reward" in n.lower() or n in parts)):
        for c in [c for c in everyone if isinstance(c.row.get(n), str | list)][-1:]:
            has = f"{c.where} has {json.dumps(c.row[n])[:60]}, which is no number"
            notes.append(f"{n!r} is no reward, as {has}")
    for c in everyone if stated else []:
        if huge := [n for n in numbers if abs(c.row.get(n) or 0) >= LARGEST]:
            told = f"{huge[0]!r} is not finite, or too large, in {c.where}"
            raise ValueError(f"{told}: choose the reward with --reward-name")
    none = [[None for _ in group] for group in groups]
    unused = f"no rewards; --reward-name may name one of {listed(numbers)}"

    if named:
        rewards = [[_only([c.row.get(n) for n in named], named, c) for c in g] for g in groups]
        if not stated or _agreement(rewards, advantages) is not None:
            return rewards, notes
    elif parts and not stated:
        for c, n in ((c, n) for c in everyone for n in parts):
            if not claims or MISSING.fullmatch(str(c.row.get(n, ""))):
                told = f"{c.where} has {json.dumps(c.row.get(n))[:60]} for {n!r} of its reward"
                raise ValueError(f"{told}: it must be a number, or {CHOOSE}")
        for n in claims if len(claims) > 1 else []:
            own = _sums(groups, [n])
            rest = _sums(groups, [other for other in claims if other != n])
            if n not in claimed or (len(claims) > 2 and any(map(any, own)) and _same(own, rest)):
                told = f"{first}: {n!r} seems to be made of others of {listed(claims)}"
                raise ValueError(f"{told}: {CHOOSE}")
        return _sums(groups, claims, null=None), [f"the reward is {' + '.join(claims)}", *notes]
    elif not stated or not numbers:
        told = f"no rewards: no field but {stated!r} holds a number in every line that has it"
        return none, [unused] * bool(numbers) + notes or [told] * bool(stated)

    def fit(fields: Sequence[str]) -> int | None:
        return _agreement(_sums(groups, fields), advantages)

    claim = tuple(claimed) if not named and fit(claimed) is not None else ()
    shown = {r: size for r in _subsets(claim or numbers) if (size := fit(r)) is not None}
    certain = claim or (len(numbers) == 1 and bool not in types[numbers[0]])
    enough = 2 if claimed else 1  # of two completions, all that have the sign agree
    clear = [r for r, size in shown.items() if certain or size > enough]
    if named and not clear:
        told = f"{named[0]!r} is taken for the reward, but {stated!r} is not its advantage"
        return rewards, [told, *notes]
    if clear and not named:
        best = claim or clear[0]
        found = _sums(groups, best)
        if all(_same(_sums(groups, r), found, shifted=bool(claim)) for r in shown):
            return found, [f"the reward is {' + '.join(best)}", *notes]
    if not clear and all(types[n] == {bool} for n in numbers):
        return none, [unused, *notes]
    told = f"{first}: {stated!r} shows {'several' if clear else 'none'} of {listed(numbers)}"
    raise ValueError(f"{told} and their sums to be the reward: {CHOOSE}")


def _only(values: list[Any], named: list[str], c: Any) -> Any:
    """The reward of a completion.   Raises ValueError where two fields called reward differ."""
    values = [v for v in values if v is not None]
    if any(v != values[0] for v in values[1:]):
        told = f"{c.where} has rewards that differ, {listed(named)}"
        raise ValueError(f"{told}: choose with --reward-name")
    return values[0] if values else None


def _subsets(fields: Sequence[str]) -> list[tuple[str, ...]]:
    """All sets of up to five fields; of more, each field and all together."""
    sizes = range(1, len(fields) + 1) if len(fields) < 6 else (1, len(fields))
    return [subset for size in sizes for subset in combinations(fields, size)]


def _sums(groups: Sequence[Sequence], fields: Iterable, null: float | None = 0.0) -> Values:
    """The sum of fields, some with weights, of every completion; null where it has none of them."""
    pairs = [f if isinstance(f, tuple) else (f, 1) for f in fields]
    return [[_sum([(c.row.get(f), w) for f, w in pairs], null) for c in g] for g in groups]


def _sum(values: list[tuple[Any, float]], null: float | None) -> Any:
    """The sum of weighted numbers, null if none is given; what is no number, as it is."""
    values = [(v, w) for v, w in values if v is not None]
    for v, w in values:
        alone = len(values) == 1 and null is None and w == 1
        if alone or not isinstance(v, int | float) or abs(v) >= LARGEST:
            return v
    return float(sum(w * v for v, w in values if v == v)) if values else null


def _same(a: Values, b: Values, shifted: bool = False) -> bool:
    """Whether these are the same numbers, or within each group the same but for a constant."""
    if any(abs(v) >= LARGEST for group in a + b for v in group):
        return False
    pairs = [(np.array(x, float), np.array(y, float)) for x, y in zip(a, b, strict=True)]
    return all(
        np.allclose(x - x.mean() * shifted, y - y.mean() * shifted, rtol=1e-9, atol=1e-12)
        for x, y in pairs
    )


def _agreement(rewards: Values, advantages: Values) -> int | None:
    """Whether a = (r - mean(r)) / scale in every group, to the digits printed.

    -> size of the largest group that shows it; 0 if none does, as its advantages are all equal;
    None if a group contradicts.
    """
    pairs = [
        (np.array(r, float), np.array(a, float))
        for r, a in zip(rewards, advantages, strict=True)
        if all(isinstance(v, int | float) and abs(v) < LARGEST for v in r + a)
    ]
    printed = [repr(v) for _, a in pairs for v in a.tolist()]
    digits = max((17 if "e" in v else len(v.partition(".")[2]) for v in printed), default=0)
    noise = 1e-5 * max((np.abs(a).max() for _, a in pairs), default=0.0)
    shown = 0
    for r, a in pairs:
        # Equal rewards have equal advantages, and larger ones no smaller, however they are rounded.
        order = np.lexsort((a, r))
        step, rise = np.diff(r[order]), np.diff(a[order])
        x, y = r - r.mean(), a - a.mean()
        size, largest = np.abs(r).max(), np.abs(x).max()
        x = x / largest if largest > 1e-6 * size else 0 * x  # x @ x is at least 1, or 0
        residual = np.abs(y - x @ y / max(x @ x, 1.0) * x).max()
        falls = (rise < -noise).any() or (rise[step <= 1e-9 * size] > noise).any()
        flat = x.any() and np.ptp(a) <= noise
        if falls or flat or residual > 0.75 * 10.0**-digits + noise:
            return None
        shown = max(shown, len(r) if x.any() else 0)
    return shown
