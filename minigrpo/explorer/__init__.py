"""The explorer: a group in the browser, in one file without network, whose reader edits completions and rewards and sees the tree.

The page computes everything itself: `mathematics.js` says once more, in JavaScript, what `tree.py`, `rewards.py` and
`objectives.py` say in NumPy, and tests/test_explorer.py compares the two.  `view.js` draws and listens.  Here the page is put
together: `page.html` with style, scripts and the groups that it offers, those given and then PRESETS.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from minigrpo.drawing import shorten, visible
from minigrpo.groups import Group

MAX_TOKENS = 4000  # of a group: beyond, the page is slow to follow an edit, and no tree that one can read

# Groups to choose from: what to look at, what texts are split into, completions, rewards.
PRESETS: list[dict[str, Any]] = [
    {
        "name": "A sum in steps",
        "note": "“17 + 25 = ?” Only the final answers were graded, yet the step “12 so” has a value R̂ of its own, and “13 so 43” "
        "a lower one: process rewards.",
        "unit": "words",
        "completions": ["7 + 5 = 12 so 42", "7 + 5 = 12 so 32", "7 + 5 = 12 so 42", "7 + 5 = 13 so 43", "I guess 40"],
        "rewards": [1, 0, 1, 0, 0],
    },
    {
        "name": "Exploration",
        "note": "The one best walk, RRR, lies behind a bad first move. GRPO pushes this move down once for each of the four that "
        "took it: harder than it pushes up the move that is RRR’s own.",
        "unit": "characters",
        "completions": ["RRR", "RRL", "RLR", "RLL", "LRR", "LRL", "LLR", "LLL"],
        "rewards": [1, -1, -1, -1, 0.7, 0.7, 0.7, 0.7],
    },
    {
        "name": "Exploitation",
        "note": "After L, four completions went on to a good end (0.7) and one to the best (LRR, 1). GRPO pushes the popular move "
        "up about three times as hard as the move towards the best, λ-GRPO one and a half times: milder, but not gone.",
        "unit": "characters",
        "completions": ["LRR", "LRL", "LLR", "LLR", "LLL", "LLL", "RRL", "RLR"],
        "rewards": [1, 0.1, 0.7, 0.7, 0.7, 0.7, -1, -1],
    },
    {
        "name": "Duplicates",
        "note": "The same text three times is one leaf with |λ| = 3: under GRPO even its last token counts three times.",
        "unit": "characters",
        "completions": ["42", "42", "42", "43", "7"],
        "rewards": [1, 1, 1, 0, 0],
    },
    {
        "name": "Prefix of another",
        "note": "y0 stops where y1 goes on, and y1 where y2 does. They end inside the tree: all their tokens are shared.",
        "unit": "characters",
        "completions": ["42", "42.", "42.0", "40"],
        "rewards": [1, 1, 0, 0],
    },
    {
        "name": "All different",
        "note": "No two completions begin alike, so no step is shared, every |λ| is 1, and λ-GRPO is GRPO. Make two begin alike!",
        "unit": "characters",
        "completions": ["42", "36", "no", "?"],
        "rewards": [1, 0, 0, 0],
    },
    {
        "name": "All equal",
        "note": "The policy has made up its mind: one path, one reward, nothing to compare. Change one reward, then one text.",
        "unit": "characters",
        "completions": ["42", "42", "42", "42"],
        "rewards": [1, 1, 1, 1],
    },
    {
        "name": "Equal rewards",
        "note": "A tree, but all failed alike: a group without a signal. Let one of them be right.",
        "unit": "characters",
        "completions": ["RRR", "RRL", "RLR", "LLL"],
        "rewards": [0, 0, 0, 0],
    },
]


def explorer_page(*groups: Group) -> str:
    """The explorer as one HTML file, open on the first of the groups (without any, on the first preset).   -> HTML

    Token ids and token texts are shown separated by spaces; a group without rewards starts with rewards of 0.
    Raises ValueError for a group of one completion, and for one of more than MAX_TOKENS tokens.
    """
    data = json.dumps([*(_as_choice(group) for group in groups), *PRESETS])  # ASCII, so nothing but "<" could end the script
    page = _file("page.html")
    parts = {"STYLE": _file("style.css"), "SCRIPT": _file("mathematics.js") + "\n" + _file("view.js")}
    parts["GROUPS"] = data.replace("<", "\\u003c")
    for name, text in parts.items():  # the reader's texts come last, so that nothing in them is taken for a place to fill
        page = page.replace(f"/* {name} */", text)
    return page


def _file(name: str) -> str:
    return (files("minigrpo.explorer") / name).read_text(encoding="utf-8")


def _as_choice(group: Group) -> dict[str, Any]:
    name, k = shorten(visible(group.prompt), 24) or "Your group", len(group.sequences)
    if k < 2:
        raise ValueError(f"{name}: one completion has nothing to be compared with, so the explorer needs at least two")
    if (total := sum(map(len, group.sequences))) > MAX_TOKENS:
        raise ValueError(f"{name}: {total} {group.unit} are too many for the explorer, which takes up to {MAX_TOKENS}")
    texts, note = group.texts, "" if group.rewards is not None else "No rewards were given: all start at 0. Change some."
    if group.unit == "tokens":
        texts = [" ".join(_token(group, t) for t in sequence) for sequence in group.sequences]
    rewards = [0.0] * k if group.rewards is None else group.rewards.tolist()
    return {"name": name, "note": note, "unit": group.unit, "completions": texts, "rewards": rewards}


def _token(group: Group, token: int) -> str:
    """A token's text without the spaces that separate tokens in the page."""
    return str(token) if group.labels is None else group.labels[token].replace(" ", "␣") or "∎"
