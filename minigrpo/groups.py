"""Groups that people typed or logged, as trees, without any model: reading them, and the paper's statistics over them.

A *unit* is what a node stands for: a token id or token as given, or a character or word of a text (words keep the white space
before them, so joining them gives the text back).  Completions are numbered from 0 within their group, as everywhere in this
package.  What this leaves out: drawing (`drawing.py` for a terminal, `plots.py`), and files (the caller reads and writes those).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minigrpo.drawing import TO_ASCII, drawn_steps, tree_text
from minigrpo.tree import MAX_TOKEN, PrefixTree

__all__ = ["Group", "drawn_steps", "group_statistics", "read_groups", "statistics_text", "tree_statistics", "tree_text"]

EXPECTED = """a group is a JSON object with its completions (texts or lists of token ids) and, if there are any, their rewards:
  {"prompt": "2+3=", "completions": ["5", "6", "5!"], "rewards": [1, 0, 0]}
Several groups are a JSON list of such objects or one object a line; a log is one completion a line:
  {"prompt": "2+3=", "completion": "5", "reward": 1}"""


@dataclass(frozen=True, eq=False)
class Group:
    """k completions of one prompt."""

    prompt: str
    sequences: list[list[int]]  # k lists of token ids
    rewards: np.ndarray | None  # (k,) float64
    labels: tuple[str, ...] | None  # text of every token id; None where the completions were given as ids
    unit: str  # "tokens", "characters" or "words"
    step: int | float | str | None = None  # of the training run it was logged in

    @cached_property
    def tree(self) -> PrefixTree:
        """The group's tree, completions only."""
        return PrefixTree.from_sequences(self.sequences)

    @property
    def texts(self) -> list[str]:
        """The completions as they were given; ids are joined by spaces."""
        return [" ".join(map(str, s)) if self.labels is None else "".join(self.labels[t] for t in s) for s in self.sequences]


# -- reading -----------------------------------------------------------------------------------------------------------


def read_groups(text: str, *, unit: str = "auto", reward_name: str = "reward") -> list[Group]:
    """Read groups from JSON or JSON lines.   -> groups in order of appearance

    Each object is a group {"prompt", "completions", "rewards"} or a logged completion {"prompt", "completion", "reward"}; logged
    ones form a group if they have the same prompt (and "step" and "group", where present), next to each other or not.  Only the
    completions are required.  A completion is a text, a list of token ids, a list of token texts, or a chat (its contents joined).
    unit: "characters" or "words" to split texts into; "auto" is words if any text of the input holds a space.
    reward_name: the field of a logged completion's reward.  Where it is missing but "advantage" is there, the line is taken for one
    of TRL's log_completions tables: its reward is the sum of its other numbers but "step", null counting 0.
    Raises ValueError, naming line or group and completion, for anything else.
    """
    if unit not in ("auto", "characters", "words"):
        raise ValueError(f"unit is {unit!r}: choose auto, characters or words")
    logged: dict[tuple, list[tuple]] = {}
    found: list[tuple[dict, list[tuple]]] = []  # for every group its first object and a (where, completion, reward) a completion
    for where, item in _objects(text):
        if "completions" in item:
            completions, rewards = item["completions"], item.get("rewards")
            if not isinstance(completions, list) or not completions:
                raise ValueError(f'{where}: "completions" must be a list of at least one text or list of token ids')
            rewards = [None] * len(completions) if rewards is None else rewards
            if not isinstance(rewards, list) or len(rewards) != len(completions):
                count = len(rewards) if isinstance(rewards, list) else "one number for"
                raise ValueError(f"{where} has {len(completions)} completions but {count} rewards: give one reward a completion")
            names = [f"completion {i} of {where}" for i in range(len(completions))]
            found.append((item, [(n, _content(c, n), r) for n, c, r in zip(names, completions, rewards, strict=True)]))
        elif "completion" in item:
            key = tuple(json.dumps(item.get(name)) for name in ("prompt", "step", "group"))
            if key not in logged:
                found.append((item, logged.setdefault(key, [])))
            logged[key].append((where, _content(item["completion"], where), _logged_reward(item, reward_name)))
        else:
            raise ValueError(f'{where} has neither "completions" nor "completion": {EXPECTED}')
    if unit == "auto":
        unit = "words" if any(isinstance(c, str) and " " in c for _, members in found for _, c, _ in members) else "characters"
    split = [[_split(c, unit) for _, c, _ in members] for _, members in found]
    vocabulary = tuple(sorted({t for pieces in split for piece in pieces for t in piece if isinstance(t, str)}))
    index = {token: i for i, token in enumerate(vocabulary)}
    groups = []
    for (item, members), pieces in zip(found, split, strict=True):
        kind = next((type(piece[0]) for piece in pieces if piece), str)
        for (where, _, _), piece in zip(members, pieces, strict=True):
            if piece and type(piece[0]) is not kind:
                raise ValueError(f"{where}: a group holds texts or token ids, not both")
        sequences = [list(piece) if kind is int else [index[t] for t in piece] for piece in pieces]
        own_unit = unit if any(isinstance(c, str) for _, c, _ in members) else "tokens"
        step = item.get("step") if isinstance(item.get("step"), int | float | str) else None
        labels = None if kind is int else vocabulary
        groups.append(Group(_text(item.get("prompt", "")), sequences, _rewards(members), labels, own_unit, step))
    return groups


def _objects(text: str) -> list[tuple[str, dict]]:
    """The JSON objects of a document or of lines, each with the words to name it by in an error."""
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise ValueError(f"no input: {EXPECTED}")
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]  # splitlines would cut at U+2028 in a text
    try:
        value = _json(text, 1)
    except ValueError:
        try:
            one_a_line = len(lines) > 1 and isinstance(_json(lines[0][1], 1), dict)
        except ValueError:
            one_a_line = False
        if not one_a_line:
            raise
        items = [(f"line {n}", _json(line, n)) for n, line in lines]
    else:
        items = [(f"group {i}", v) for i, v in enumerate(value)] if isinstance(value, list) else [("the group", value)]
    for where, value in items:
        if not isinstance(value, dict):
            raise ValueError(f"{where} is not a JSON object: {EXPECTED}")
    if not items:
        raise ValueError(f"the list is empty: {EXPECTED}")
    return items


def _json(text: str, first_line: int) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ValueError(f"malformed JSON at line {line}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise ValueError(f"malformed JSON at line {first_line}: nested too deeply") from None


def _text(value: object) -> str:
    """A prompt as a text: a chat's contents joined, anything else but a text as JSON."""
    if isinstance(value, list) and value and all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in value):
        return "\n".join(m["content"] for m in value)
    return value if isinstance(value, str) else json.dumps(value)


def _content(value: object, where: str) -> str | list:
    """A completion as a text, a list of ids or a list of texts."""
    if isinstance(value, list) and any(isinstance(m, dict) for m in value):
        value = _text(value)
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(t, str) for t in value)):
        return value
    if not isinstance(value, list) or not all(type(t) is int for t in value):
        raise ValueError(f"{where} is neither a text nor a list of token ids (whole numbers): {json.dumps(value)[:60]}")
    if not 0 <= min(value) <= max(value) <= MAX_TOKEN:
        raise ValueError(f"{where} holds a token id outside [0, 2**31): {min(value)} … {max(value)}")
    return value


def _split(completion: str | list, unit: str) -> list:
    if isinstance(completion, list):
        return completion
    return list(completion) if unit == "characters" else re.findall(r"^\s+|\s*\S+|\s+$", completion)


def _logged_reward(item: dict, name: str) -> object:
    if name in item or "advantage" not in item:
        return item.get(name)
    numbers = [v for key, v in item.items() if key not in ("step", "advantage", "group") and type(v) in (int, float)]
    return sum(numbers) if numbers else None


def _rewards(members: list[tuple]) -> np.ndarray | None:
    if all(reward is None for _, _, reward in members):
        return None
    for where, _, reward in members:
        if reward is None:
            raise ValueError(f"{where} has no reward, but others of its group do: give all or none")
        if not isinstance(reward, int | float) or not abs(reward) <= 1e100:
            raise ValueError(f"the reward of {where} is {json.dumps(reward)[:60]}: it must be a finite number up to 1e100")
    return np.array([reward for _, _, reward in members], dtype=np.float64)


# -- statistics --------------------------------------------------------------------------------------------------------


def group_statistics(groups: Sequence[Group]) -> dict:
    """`tree_statistics` of groups as `read_groups` returns them, with their unit under "unit"."""
    units = {g.unit for g in groups}
    return {"unit": units.pop() if len(units) == 1 else "tokens", **tree_statistics(g.tree for g in groups)}


def tree_statistics(trees: Iterable[PrefixTree]) -> dict:
    """The paper's section 3.2 over all groups of some trees: how much tree is there?   -> numbers and lists, ready for JSON

    groups, completions, flat_groups, flat_share    a group is flat if no two of its completions begin with the same token
    path_depth, path_depth_mean, path_depth_median  a completion's number of process sets between root and leaf
    intermediate_proportion, …_mean                 share of a completion's tokens in non-leaf steps
    count_histogram                                 {n: number of tokens (i,t) with |λ(i,t)| = n}
    flat_tokens, unique_tokens                      tokens of all completions, and distinct ones, which the trees hold
    skipped_groups                                  groups with k = 1, left out of everything else
    Means are over completions.  Raises ValueError if no group has two completions.
    """
    depth, inner, flat, counts, unique, skipped = [], [], [], [], 0, 0
    for tree in trees:
        use = tree.group_sizes > 1  # (G,)
        rows = use[tree.completion_group]  # (B,)
        skipped += int((~use).sum())
        depth += tree.path_depth[rows].tolist()
        inner += tree.intermediate_proportion[rows].tolist()
        flat += tree.is_flat[use].tolist()
        counts.append(tree.on_tokens(tree.count)[rows].ravel())
        unique += int(use[tree.group[tree.group >= 0]].sum())
    if not flat:
        raise ValueError(f"no group has two completions ({skipped} groups of one): log several completions of each prompt")
    sizes, tokens = np.unique(np.concatenate(counts), return_counts=True)
    histogram = {n: c for n, c in zip(sizes.tolist(), tokens.tolist(), strict=True) if n > 0}
    return {
        "groups": len(flat),
        "skipped_groups": skipped,
        "completions": len(depth),
        "flat_groups": sum(flat),
        "flat_share": sum(flat) / len(flat),
        "path_depth_mean": float(np.mean(depth)),
        "path_depth_median": float(np.median(depth)),
        "intermediate_proportion_mean": float(np.mean(inner)),
        "flat_tokens": sum(histogram.values()),
        "unique_tokens": unique,
        "count_histogram": histogram,
        "path_depth": depth,
        "intermediate_proportion": inner,
    }


def statistics_text(stats: dict, *, ascii_only: bool = False) -> str:
    """The statistics as a small table for a terminal."""
    unit = stats.get("unit", "tokens")
    flat, unique = stats["flat_tokens"], stats["unique_tokens"]
    skipped = f" (and {stats['skipped_groups']} of one completion, left out)" if stats["skipped_groups"] else ""
    depth = f"{stats['path_depth_mean']:.2f} process sets between root and leaf, median {stats['path_depth_median']:g}"
    lines = [
        f"groups                   {stats['groups']} with {stats['completions']} completions{skipped}",
        f"flat groups              {stats['flat_groups']} ({stats['flat_share']:.1%}): no two completions begin alike",
        f"path depth               {depth}",
        f"intermediate proportion  {stats['intermediate_proportion_mean']:.1%} of a completion's {unit} are before its leaf",
        f"{unit:<24} {flat}, of which {unique} distinct ({(flat - unique) / max(flat, 1):.1%} shared)",
        "",
        f"|λ|   {unit:>10}   share",
    ]
    for size, tokens in stats["count_histogram"].items():
        share = tokens / flat
        lines.append(f"{size:>3}   {tokens:>10}   {share:>5.1%}  {'█' * round(40 * share)}".rstrip())
    out = "\n".join(lines)
    return out.translate(TO_ASCII) if ascii_only else out
