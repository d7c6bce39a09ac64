"""Groups that people typed or logged, as trees, without any model: reading them, and the paper's statistics over them.

A *unit* is what a node stands for: a token id or token as given, or a character or word of a text (words keep the white space
before them, so joining them gives the text back).  Completions are numbered from 0 within their group, as everywhere in this
package.  What this leaves out: drawing (`show`), and the formats of files (`logs.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minigrpo.engine.tree_statistics import intermediate_proportion, path_depth
from minigrpo.logs.files import NAMES, parse
from minigrpo.logs.formats import Completion, read_completions
from minigrpo.system.text import TO_ASCII
from minigrpo.tree import PrefixTree

MAX_CELLS = (
    2**25
)  # completions times the longest of a group: a quarter of a GB for each array over them


@dataclass(frozen=True, eq=False)
class Group:
    """k completions of one prompt."""

    prompt: str
    sequences: list[list[int]]  # k lists of token ids
    rewards: np.ndarray | None  # (k,) float64
    labels: (
        tuple[str, ...] | None
    )  # text of every token id; None where the completions were given as ids
    unit: str  # "tokens", "characters" or "words"
    step: int | float | str | None = None  # of the training run it was logged in

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


# -- reading -----------------------------------------------------------------------------------------------------------


def read_groups(text: str, *, unit: str = "auto", reward_name: str | None = None) -> list[Group]:
    """Read groups from JSON, JSON lines, CSV or TSV.   -> groups in order of appearance

    Each object is a group {"prompt", "completions", "rewards"} or a logged completion {"prompt", "completion", "reward"}, or has
    these under the names that `logs.py` knows; logged ones form a group if they have the same prompt (and step and group, where
    present), next to each other or not.  Only the completions are required.  A completion is a text, a list of token ids, a list
    of token texts, or a chat (its contents joined).  A reward is a number up to 1e100; true counts 1, false 0.
    unit: "characters" or "words" to split texts into; "auto" is words if any text of the input holds a space.
    reward_name: the field of a completion's reward, or several with commas, which are added.
    Raises ValueError, naming line or group and completion, for anything else.
    """
    names = NAMES | ({"reward": (reward_name,)} if reward_name else {})
    return make_groups(read_completions([(*item, "") for item in parse(text)], names)[0], unit=unit)


def make_groups(found: Sequence[Sequence[Completion]], *, unit: str = "auto") -> list[Group]:
    """Groups of completions, as `read_completions` returns them, with their texts split into units.

    Raises ValueError for a unit that is none, for texts among token ids, and for rewards that are no numbers or too few.
    """
    if unit not in ("auto", "characters", "words"):
        raise ValueError(f"unit is {unit!r}: choose auto, characters or words")
    if unit == "auto":
        unit = (
            "words"
            if any(
                isinstance(c.content, str) and " " in c.content for group in found for c in group
            )
            else "characters"
        )
    split = [[_split(c.content, unit) for c in group] for group in found]
    vocabulary = tuple(
        sorted({t for pieces in split for piece in pieces for t in piece if isinstance(t, str)})
    )
    index = {token: i for i, token in enumerate(vocabulary)}
    groups = []
    for group, pieces in zip(found, split, strict=True):
        kind = next((type(piece[0]) for piece in pieces if piece), str)
        for c, piece in zip(group, pieces, strict=True):
            if piece and type(piece[0]) is not kind:
                raise ValueError(f"{c.where}: a group holds texts or token ids, not both")
        if (size := len(pieces) * max(map(len, pieces))) > MAX_CELLS:
            raise ValueError(
                f"the {len(group)} completions from {group[0].where} on are too long for one tree: {size:,} places"
            )
        sequences = [list(piece) if kind is int else [index[t] for t in piece] for piece in pieces]
        own_unit = unit if any(isinstance(c.content, str) for c in group) else "tokens"
        labels = None if kind is int else vocabulary
        groups.append(
            Group(group[0].prompt, sequences, _rewards(group), labels, own_unit, group[0].step)
        )
    return groups


def _split(completion: str | list, unit: str) -> list:
    if isinstance(completion, list):
        return completion
    return list(completion) if unit == "characters" else re.findall(r"^\s+|\s*\S+|\s+$", completion)


def _rewards(group: Sequence[Completion]) -> np.ndarray | None:
    if all(c.reward is None for c in group):
        return None
    for c in group:
        if c.reward is None:
            raise ValueError(
                f"{c.where} has no reward, but others of its group do: give all or none"
            )
        if not isinstance(c.reward, int | float) or not abs(c.reward) <= 1e100:
            raise ValueError(
                f"the reward of {c.where} is {json.dumps(c.reward)[:60]}: it must be a finite number up to 1e100"
            )
    return np.array([c.reward for c in group], dtype=np.float64)


# -- statistics --------------------------------------------------------------------------------------------------------


def group_statistics(groups: Sequence[Group]) -> dict:
    """`tree_statistics` of groups as `read_groups` returns them, with their unit under "unit"."""
    units = {g.unit for g in groups}
    return {
        "unit": units.pop() if len(units) == 1 else "tokens",
        **tree_statistics(PrefixTree.from_sequences(g.sequences) for g in groups),
    }


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
        depth += path_depth(tree)[rows].tolist()
        inner += intermediate_proportion(tree)[rows].tolist()
        flat += tree.is_flat[use].tolist()
        counts.append(tree.on_tokens(tree.count)[rows].ravel())
        unique += int(use[tree.group[tree.group >= 0]].sum())
    if not flat:
        raise ValueError(
            f"no group has two completions ({skipped} groups of one): log several completions of each prompt"
        )
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
    skipped = (
        f" (and {stats['skipped_groups']} of one completion, left out)"
        if stats["skipped_groups"]
        else ""
    )
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
        lines.append(
            f"{size:>3}   {tokens:>10}   {share:>5.1%}  {'█' * round(40 * share)}".rstrip()
        )
    out = "\n".join(lines)
    return out.translate(TO_ASCII) if ascii_only else out
