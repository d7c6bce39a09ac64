"""How this package draws: the style of its figures, and a group's tree for a terminal.

Completions are numbered from 0 within their group and drawn as y0, y1, …  `tree_plots.py` draws
the same steps as figures, `plots.py` everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from minigrpo.objectives import advantages
from minigrpo.system.text import columns, plain, shorten, visible
from minigrpo.tree import PrefixTree

Labels = Sequence[str] | Mapping[int, str] | Callable[[int], str]  # the text of a token id

# The colours are Okabe and Ito's, which colour-blind people can tell apart; dashes and markers tell
# lines apart in a grey print.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, YELLOW, INK = "#56B4E9", "#E69F00", "#222222"
LINES = [  # colour, dashes, marker of the first, second, … curve
    (BLUE, "-", "o"),
    (ORANGE, "--", "s"),
    (GREEN, "-.", "^"),
    (PURPLE, ":", "D"),
    (YELLOW, (0, (5, 1, 1, 1, 1, 1)), "v"),
    (SKY, (0, (8, 2)), "P"),
]
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib
    "font.monospace": ["DejaVu Sans Mono"],
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # completions may hold dollar signs
    "text.hinting": "no_hinting",  # letters as wide in pixels as laid out in points
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "savefig.dpi": 150,
    "svg.hashsalt": "minigrpo",
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class DrawnStep:
    """A process step with what is drawn of it.

    A completion that ends where others go on has a step without tokens of its own.
    """

    text: str
    members: tuple[int, ...]  # completions, from 0 within the group
    level: int  # steps above it
    parent: int | None  # index in the list
    start: int
    end: int
    reward: float | None  # R̂: mean outcome reward of the members
    advantage: float | None  # Â: mean advantage; None without rewards or where k = 1


def drawn_steps(
    tree: PrefixTree,
    rewards: Sequence[float] | np.ndarray | None = None,
    labels: Labels | None = None,
    *,
    group: int = 0,
) -> list[DrawnStep]:
    """The process steps of a group, depth first, siblings by their first completion.

    R̂ = mean_{i∈λ} rᵢ and Â = mean_{i∈λ} aᵢ = (R̂ - mean(r)) / (std(r) + 1e-4), std with ddof 1.
    rewards (B,).  Raises ValueError for a group that is not there, for rewards of another length
    than the tree's completions, and for a token without a label.  (Paper, section 3.)
    """
    if not 0 <= group < tree.n_groups:
        raise ValueError(f"group {group} is not in the tree: it has groups 0 … {tree.n_groups - 1}")
    if rewards is not None and len(rewards) != len(tree.paths):
        counts = f"{len(tree.paths)} completions but {len(rewards)} rewards"
        raise ValueError(f"{counts}: give one reward per completion")
    rows = np.flatnonzero(tree.completion_group == group)
    own = adv = None
    if rewards is not None:
        own = np.asarray(rewards, dtype=np.float64)[rows]
        adv = advantages(own, np.zeros(len(own), dtype=np.int64)) if len(own) > 1 else None
    found = tree.steps(group)
    texts = [_step_text(tree.token[list(s.nodes)].tolist(), labels) for s in found]
    steps = [(s.parent, s.members, s.start, s.end, t) for s, t in zip(found, texts, strict=True)]
    children: dict[int | None, list[tuple]] = {}
    for parent, members, *_ in steps:
        children.setdefault(parent, []).append(members)
    for i in range(len(steps)):
        parent, members, start, end, _ = steps[i]
        below = children.get(i, [])
        if start == end:  # only the root can be without tokens
            steps[i] = (None, members, start, end, "(nothing shared)" if below else "(empty)")
        if below and (ended := set(members).difference(*below)):
            steps.append((i, tuple(sorted(ended)), end, end, "(ends here)"))
    # A step's route is the first member of every step from below the root to it: sorting by it is
    # depth first.
    routes: list[tuple] = []
    for parent, members, *_ in steps:
        routes.append(() if parent is None else (*routes[parent], members[0]))
    order = sorted(range(len(steps)), key=routes.__getitem__)
    position = {i: n for n, i in enumerate(order)}

    def mean(values: np.ndarray | None, members: list[int]) -> float | None:
        return None if values is None else float(values[members].mean())

    drawn = []
    for i in order:
        parent, members, start, end, text = steps[i]
        local = [m - int(rows[0]) for m in members]
        advantage = mean(adv, local)
        if advantage is not None and abs(advantage) < 1e-9:
            advantage = 0.0  # all that a step of the whole group has is a rounding error
        place = len(routes[i]), position.get(parent), start, end
        drawn.append(DrawnStep(text, tuple(local), *place, mean(own, local), advantage))
    return drawn


def _step_text(tokens: list[int], labels: Labels | None) -> str:
    """The tokens' texts without the space that opens a word; a token without text is ∎."""
    labels = labels or " {}".format
    label = labels if callable(labels) else labels.__getitem__
    try:
        pieces = [label(t) or "∎" for t in tokens]
    except (LookupError, TypeError):
        wanted = f"a text for every token id from {min(tokens)} to {max(tokens)}"
        raise ValueError(f"labels must give {wanted}") from None
    if pieces and pieces[0].strip():
        pieces[0] = pieces[0].lstrip(" ")
    return visible("".join(pieces))


def member_names(members: Sequence[int]) -> str:
    """(0, 1, 2, 5) -> "y0-y2 y5"."""
    names = []
    for _, run in groupby(enumerate(members), lambda pair: pair[1] - pair[0]):
        own = [f"y{m}" for _, m in run]
        names += [f"{own[0]}-{own[-1]}"] if len(own) > 2 else own
    return " ".join(names)


def number(value: float | None, sign: str = "") -> str:
    """A reward or advantage (sign="+") with two decimals, never -0.00; "-" where undefined."""
    if value is None:
        return "-"
    if abs(value) >= 1e4 or (not sign and 1e-9 < abs(value) < 5e-3):
        return f"{value:{sign}.1e}"
    return "0.00" if round(value, 2) == 0 else f"{value:{sign}.2f}"


def tree_text(
    tree: PrefixTree,
    rewards: Sequence[float] | np.ndarray | None = None,
    labels: Labels | None = None,
    *,
    group: int = 0,
    prompt: str | None = None,
    width: int = 100,
    ascii_only: bool = False,
) -> str:
    """A group's tree for a terminal, one line per process step: its tokens, |λ|, R̂, Â, members.

    The header has the prompt, k, the completions' tokens and how many are distinct, rewards, and
    their std (ddof 1).  Texts that would make lines longer than `width` columns are cut by an
    ellipsis (to no less than 12 columns); so are deep branches.  ascii_only draws with ASCII, and
    "?" for other letters.  rewards (B,).  Raises ValueError as `drawn_steps` does.
    """
    steps = drawn_steps(tree, rewards, labels, group=group)
    last_child = {s.parent: i for i, s in enumerate(steps)}
    indent = 3 if 3 * max(s.level for s in steps) <= width // 3 else 1
    rows, continued = [("", "process step")], []  # continued: what goes on down from every step
    for i, s in enumerate(steps):
        branch = stem = ""
        if s.parent is not None:
            is_last = last_child[s.parent] == i
            above = continued[s.parent]
            branch = above + ("└─ " if is_last else "├─ ")[:indent]
            stem = above + ("   " if is_last else "│  ")[:indent]
        continued.append(stem)
        rows.append((branch, plain(s.text) if ascii_only else s.text))
    cells = [["|λ|", *(str(len(s.members)) for s in steps)]]
    if rewards is not None:
        cells.append(["R̂", *(number(s.reward) for s in steps)])
        cells.append(["Â", *(number(s.advantage, "+") for s in steps)])
    sizes = [max(map(columns, column)) for column in cells]
    names = ["members", *(shorten(member_names(s.members), 24) for s in steps)]
    longest = max(columns(branch) + columns(text) for branch, text in rows[1:])
    free = width - sum(sizes) - 3 * len(sizes) - 3 - max(map(len, names))
    room = max(min(longest, free), 12)
    lines = []
    for i, (branch, text) in enumerate(rows):
        if room < longest and len(branch) > room - 8:
            branch = "…" + branch[len(branch) - room + 9 :]
        line = _padded(branch + shorten(text, room - len(branch)), -room)
        for size, column in zip(sizes, cells, strict=True):
            line += "   " + _padded(column[i], size)
        lines.append(f"{line}   {names[i]}".rstrip())
    header = [f"prompt   {visible(prompt)}"] if prompt else []
    titles = "group    ", "rewards  "
    header += map("".join, zip(titles, describe(tree, rewards, group=group), strict=False))
    out = "\n".join([*(shorten(line, width) for line in header), "", *lines])
    return plain(out) if ascii_only else out


def _padded(text: str, width: int) -> str:
    """The text at the right end of so many terminal columns, or at the left end if negative."""
    spaces = " " * (abs(width) - columns(text))
    return spaces + text if width > 0 else text + spaces


def describe(
    tree: PrefixTree, rewards: Sequence[float] | np.ndarray | None = None, *, group: int = 0
) -> list[str]:
    """A line for a group's sizes and, with rewards, one for each reward, mean and std (ddof 1)."""
    own = tree.completion_group == group
    k, flat = int(own.sum()), int(tree.lengths[own].sum())
    distinct = int((tree.group == group).sum())
    sizes = f"k = {k}, {flat} tokens of which {distinct} distinct"
    shared = f"({(flat - distinct) / max(flat, 1):.0%} shared)"
    lines = [f"{sizes} {shared}" + ": flat" * (k > 1 and bool(tree.is_flat[group]))]
    if rewards is not None:
        r = np.asarray(rewards, dtype=np.float64)[own]
        listed = " ".join(f"{x:.4g}" for x in r)
        if k == 1:
            note = "one completion, so no advantage"
        else:
            note = f"mean {number(r.mean())}, std {number(r.std(ddof=1))}"
            note += ": all equal, so every advantage is 0" * bool(np.ptp(r) == 0)
        lines.append(f"{note}; {listed}" if len(listed) > 40 else f"{listed}; {note}")
    return lines
