"""The explorer: a page in which a reader edits completions and rewards and sees the tree.

It is one file without network.  `mathematics.js` says once more, in JavaScript, what `tree.py`,
`rewards.py` and `objectives.py` say in NumPy, and tests/test_explorer.py compares the two;
`view.js`, which starts the page, says what the other scripts do.  Here `page.html` gets its
style, its scripts and the groups that it offers: those given, then PRESETS.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from minigrpo.logs.groups import Group
from minigrpo.system.text import shorten, visible

SCRIPTS = "mathematics", "words", "drawing", "editing", "lecture", "link", "export", "view"
MAX_TOKENS = 4000  # of a group: beyond, the page follows edits slowly and its tree is unreadable


def _file(name: str) -> str:
    return (files("minigrpo.show.explorer") / name).read_text(encoding="utf-8")


# Groups to choose from: what to look at, what texts are split into, completions, rewards.
PRESETS: list[dict[str, Any]] = json.loads(_file("presets.json"))


def explorer_page(*groups: Group) -> str:
    """The explorer as one HTML file, open on the first of the groups, else on the first preset.

    Token ids and token texts are separated by spaces; a group without rewards starts with 0.
    Raises ValueError for a group of one completion, and for one of more than MAX_TOKENS tokens.
    """
    data = json.dumps([*map(_as_choice, groups), *PRESETS], allow_nan=False)
    page = _file("page.html").replace("/* STYLE */", _file("style.css"))
    page = page.replace("/* SCRIPT */", "\n".join(_file(f"{name}.js") for name in SCRIPTS))
    # The reader's texts come last, so that nothing in them is taken for a place to fill; they are
    # in ASCII, so that only "<" could end the script.
    return page.replace("/* GROUPS */", data.replace("<", "\\u003c"))


def walk_page() -> str:
    """The live walk as one HTML file: two tabular policies learn the paper's walk side by side.

    Its numbers are those of experiments/many_walks.py for the same uniform numbers; a test compares
    the two.   Source: Sullivan & Koller, arXiv:2509.21154, section 4.3.
    """
    page = _file("walk.html").replace("/* STYLE */", _file("walk.css"))
    names = "mathematics", "walk_mathematics", "walk_drawing", "walk_view"
    return page.replace("/* SCRIPT */", "\n".join(_file(f"{name}.js") for name in names))


def _as_choice(group: Group) -> dict[str, Any]:
    name, k = shorten(visible(group.prompt), 24) or "Your group", len(group.sequences)
    if k < 2:
        why = "one completion has nothing to be compared with"
        raise ValueError(f"{name}: {why}, so the explorer needs at least two")
    if (total := sum(map(len, group.sequences))) > MAX_TOKENS:
        why = f"{total} {group.unit} are too many for the explorer"
        raise ValueError(f"{name}: {why}, which takes up to {MAX_TOKENS}")
    texts, given = group.texts, group.rewards is not None
    if group.unit == "tokens" and group.labels is not None:  # spaces separate tokens in the page
        tokens = [label.replace(" ", "␣") or "∎" for label in group.labels]
        texts = [" ".join(tokens[t] for t in sequence) for sequence in group.sequences]
    note = "" if given else "No rewards were given: all start at 0. Change some."
    rewards = group.rewards.tolist() if given else [0.0] * k
    about = {"name": name, "note": note, "unit": group.unit}
    return about | {"completions": texts, "rewards": rewards}
