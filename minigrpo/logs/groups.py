"""Groups that people typed or logged, as trees, without any model, and the paper's statistics.

A *unit* is what a node stands for: a token as it was given, or a character or word of a text (words
keep the white space before them, so joining them gives the text back).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minigrpo.engine.tree_statistics import intermediate_proportion, path_depth
from minigrpo.logs.grouping import Completion, read_completions
from minigrpo.logs.rows import NAMES, chat_of, parse, text_of
from minigrpo.models.text_tokenizer import TextTokenizer
from minigrpo.system.text import TO_ASCII
from minigrpo.tree import PrefixTree

ENVIRONMENTS = ("env", "env_name")  # of prime-rl: these tell prompts apart, but are none
MAX_CELLS = 2**25  # completions times the longest of a group: 256 MB per array over them


@dataclass(frozen=True, eq=False)
class Group:
    """k completions of one prompt."""

    prompt: str
    sequences: list[list[int]]  # k lists of token ids
    rewards: np.ndarray | None  # (k,) float64
    labels: tuple[str, ...] | None  # text of every token id; None for completions given as ids
    unit: str  # "tokens", "characters" or "words"
    step: int | float | str | None = None  # of the training run it was logged in
    prompt_length: int | None = None  # of the prompt as it was logged, in units; None: not known

    @cached_property
    def tree(self) -> PrefixTree:
        """The group's tree, completions only."""
        return PrefixTree.from_sequences(self.sequences)

    @property
    def texts(self) -> list[str]:
        """The completions as they were given; ids are joined by spaces."""
        return [
            " ".join(map(str, s)) if self.labels is None else "".join(self.labels[t] for t in s)
            for s in self.sequences
        ]


# -- reading ---------------------------------------------------------------------------------------


def read_groups(text: str, *, unit: str = "auto", reward_name: str | None = None) -> list[Group]:
    """Groups out of JSON, JSON lines, CSV or TSV, in order of appearance.

    Each object is a group {"prompt", "completions", "rewards"} or a logged completion {"prompt",
    "completion", "reward"}, under any names that `rows.py` knows; completions with the same prompt,
    step and group form a group.  Only the completions are required.  A completion is a text, a list
    of token ids, a list of token texts, or a chat.  A reward is a number up to 1e100.
    unit: "characters" or "words" to split texts into; "auto" is words if any text holds a space.
    reward_name: the field of a completion's reward, or several with commas, which are added.
    Raises ValueError, naming line or group and completion, for anything else.
    """
    names = NAMES | ({"reward": (reward_name,)} if reward_name else {})
    return make_groups(read_completions([(*row, "") for row in parse(text)], names)[0], unit=unit)


def make_groups(
    found: Sequence[Sequence[Completion]],
    *,
    unit: str = "auto",
    tokenizer: TextTokenizer | None = None,
) -> list[Group]:
    """Groups of completions, as `read_completions` returns them, with their texts in units.

    tokenizer: splits texts, in place of a unit.  Raises ValueError for a unit that is none, for
    texts among token ids, for what a tokenizer cannot split, and for rewards that are no numbers or
    too few.
    """
    if unit not in ("auto", "characters", "words"):
        raise ValueError(f"unit is {unit!r}: choose auto, characters or words")
    texts = [c.content for group in found for c in group if isinstance(c.content, str)]
    if unit == "auto":
        unit = "words" if any(" " in text for text in texts) else "characters"
    split_text = list if unit == "characters" else re.compile(r"^\s+|\s*\S+|\s+$").findall
    if tokenizer is not None:
        unit, split_text = "tokens", tokenizer.pieces
        for c in (c for group in found for c in group if not isinstance(c.content, str)):
            raise ValueError(f"{c.where} is no text: a tokenizer splits texts alone")
    split = [
        [c.content if isinstance(c.content, list) else split_text(c.content) for c in group]
        for group in found
    ]
    tokens = {t for pieces in split for piece in pieces for t in piece if isinstance(t, str)}
    vocabulary = tuple(sorted(tokens))
    index = {token: i for i, token in enumerate(vocabulary)}
    labels = vocabulary if tokenizer is None else tuple(map(tokenizer.text_of, vocabulary))
    groups = []
    for group, pieces in zip(found, split, strict=True):
        kind = next((type(piece[0]) for piece in pieces if piece), str)
        for c, piece in zip(group, pieces, strict=True):
            if piece and type(piece[0]) is not kind:
                raise ValueError(f"{c.where}: a group holds texts or token ids, not both")
        if (size := len(pieces) * max(map(len, pieces))) > MAX_CELLS:
            told = f"the {len(group)} completions from {group[0].where} on"
            raise ValueError(f"{told} are too long for one tree: {size:,} places")
        sequences = [list(piece) if kind is int else [index[t] for t in piece] for piece in pieces]
        own_unit = unit if any(isinstance(c.content, str) for c in group) else "tokens"
        about = None if kind is int else labels, own_unit, group[0].step
        length = _prompt_length(group[0], split_text)
        groups.append(Group(group[0].prompt, sequences, _rewards(group), *about, length))
    return groups


def _prompt_length(c: Completion, split_text: Callable[[str], list]) -> int | None:
    """Units of a prompt, if it is logged as its completion is: as a text or as token ids."""
    for name, value in ((name, json.loads(told)) for name, told in c.identity["prompt"]):
        if isinstance(c.content, list):
            if isinstance(value, list) and all(type(token) is int for token in value):
                return len(value)
        elif name not in ENVIRONMENTS and (isinstance(value, str) or chat_of(value)):
            return len(split_text(text_of(value)))
    return None  # the name of an environment is not what the model saw


def _rewards(group: Sequence[Completion]) -> np.ndarray | None:
    if all(c.reward is None for c in group):
        return None
    for c in group:
        if c.reward is None:
            raise ValueError(f"{c.where} has no reward, but others of its group do: all or none")
        if not isinstance(c.reward, int | float) or not abs(c.reward) <= 1e100:
            told = f"the reward of {c.where} is {json.dumps(c.reward)[:60]}"
            raise ValueError(f"{told}: it must be a finite number up to 1e100")
    return np.array([c.reward for c in group], dtype=np.float64)


# -- statistics ------------------------------------------------------------------------------------


def group_statistics(groups: Sequence[Group]) -> dict:
    """`tree_statistics` of groups as `read_groups` returns them, with their unit under "unit"."""
    units = {g.unit for g in groups}
    unit = units.pop() if len(units) == 1 else "tokens"
    return {"unit": unit} | tree_statistics(PrefixTree.from_sequences(g.sequences) for g in groups)


def tree_statistics(trees: Iterable[PrefixTree]) -> dict:
    """The paper's section 3.2 over all groups of some trees: how much tree is there?

    groups, completions     how many there are with k > 1; skipped_groups: those with k = 1
    flat_groups, flat_share a group is flat if no two of its completions begin with the same token
    path_depth              process sets between root and leaf, per completion; …_mean, …_median
    intermediate_proportion share of tokens in non-leaf steps, per completion; …_mean
    count_histogram         {n: number of tokens (i,t) with |λ(i,t)| = n}
    flat_tokens             tokens of all completions; unique_tokens: those that the trees hold
    -> numbers and lists, ready for JSON.  Raises ValueError if no group has two completions.
    """
    depth, inner, flat, counts, unique, skipped = [], [], [], [], 0, 0
    for tree in trees:
        use = tree.group_sizes > 1  # (G,)
        rows = use[tree.completion_group]  # (B,)
        skipped += int((~use).sum())
        depth += path_depth(tree)[rows].tolist()
        inner += intermediate_proportion(tree)[rows].tolist()
        flat += tree.is_flat[use].tolist()
        counts.append(tree.on_tokens(tree.count)[rows].ravel())
        unique += int(use[tree.group[tree.group >= 0]].sum())
    if not flat:
        told = f"no group has two completions ({skipped} groups of one)"
        raise ValueError(f"{told}: log several completions of each prompt")
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
    s, unit = stats, stats.get("unit", "tokens")
    flat, skipped = s["flat_tokens"], s["skipped_groups"]
    left_out = f" (and {skipped} of one completion, left out)" if skipped else ""
    shared = f"({(flat - s['unique_tokens']) / max(flat, 1):.1%} shared)"
    flat_groups = f"{s['flat_groups']} ({s['flat_share']:.1%})"
    depth = f"{s['path_depth_mean']:.2f} process sets between root and leaf"
    inner = f"{s['intermediate_proportion_mean']:.1%} of a completion's {unit}"
    rows = {
        "groups": f"{s['groups']} with {s['completions']} completions{left_out}",
        "flat groups": f"{flat_groups}: no two completions begin alike",
        "path depth": f"{depth}, median {s['path_depth_median']:g}",
        "intermediate proportion": f"{inner} are before its leaf",
        unit: f"{flat}, of which {s['unique_tokens']} distinct {shared}",
    }
    lines = [*(f"{name:<24} {value}" for name, value in rows.items()), ""]
    lines.append(f"|λ|   {unit:>10}   share")
    for size, tokens in s["count_histogram"].items():
        share = tokens / flat
        bar = "█" * round(40 * share)
        lines.append(f"{size:>3}   {tokens:>10}   {share:>5.1%}  {bar}".rstrip())
    out = "\n".join(lines)
    return out.translate(TO_ASCII) if ascii_only else out
