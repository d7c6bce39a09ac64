"""The explorer: a group in the browser, in one file without network, whose reader edits completions and rewards and sees the tree.

The page computes everything itself: `mathematics.js` says once more, in JavaScript, what `tree.py`, `rewards.py` and
`objectives.py` say in NumPy, and tests/test_explorer.py compares the two.  `view.js` draws and listens.  Here the page is put
together: `page.html` with style, scripts and the groups that it offers, those given and then PRESETS.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from minigrpo.logs.groups import Group
from minigrpo.system.text import shorten, visible

MAX_TOKENS = (
    4000  # of a group: beyond, the page is slow to follow an edit, and no tree that one can read
)


def _file(name: str) -> str:
    return (files("minigrpo.show.explorer") / name).read_text(encoding="utf-8")


# Groups to choose from: what to look at, what texts are split into, completions, rewards.
PRESETS: list[dict[str, Any]] = json.loads(_file("presets.json"))


def explorer_page(*groups: Group) -> str:
    """The explorer as one HTML file, open on the first of the groups (without any, on the first preset).   -> HTML

    Token ids and token texts are shown separated by spaces; a group without rewards starts with rewards of 0.
    Raises ValueError for a group of one completion, and for one of more than MAX_TOKENS tokens.
    """
    # In ASCII, so nothing but "<" could end the script.
    data = json.dumps([*(_as_choice(group) for group in groups), *PRESETS], allow_nan=False)
    page = _file("page.html")
    parts = {
        "STYLE": _file("style.css"),
        "SCRIPT": _file("mathematics.js") + "\n" + _file("view.js"),
    }
    parts["GROUPS"] = data.replace("<", "\\u003c")
    for (
        name,
        text,
    ) in (
        parts.items()
    ):  # the reader's texts come last, so that nothing in them is taken for a place to fill
        page = page.replace(f"/* {name} */", text)
    return page


def _as_choice(group: Group) -> dict[str, Any]:
    name, k = shorten(visible(group.prompt), 24) or "Your group", len(group.sequences)
    if k < 2:
        raise ValueError(
            f"{name}: one completion has nothing to be compared with, so the explorer needs at least two"
        )
    if (total := sum(map(len, group.sequences))) > MAX_TOKENS:
        raise ValueError(
            f"{name}: {total} {group.unit} are too many for the explorer, which takes up to {MAX_TOKENS}"
        )
    texts, note = (
        group.texts,
        "" if group.rewards is not None else "No rewards were given: all start at 0. Change some.",
    )
    if group.unit == "tokens":
        texts = [" ".join(_token(group, t) for t in sequence) for sequence in group.sequences]
    rewards = [0.0] * k if group.rewards is None else group.rewards.tolist()
    return {
        "name": name,
        "note": note,
        "unit": group.unit,
        "completions": texts,
        "rewards": rewards,
    }


def _token(group: Group, token: int) -> str:
    """A token's text without the spaces that separate tokens in the page."""
    return str(token) if group.labels is None else group.labels[token].replace(" ", "␣") or "∎"
