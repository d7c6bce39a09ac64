"""How this package draws: the style of its figures, what is shown of a process step, and a group's tree for a terminal.

Completions are numbered from 0 within their group, as everywhere in this package, and drawn as y0, y1, …  What this leaves out:
figures (`tree_plots.py` draws the same steps, `plots.py` the rest) and the reading of groups (`groups.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from minigrpo.objectives import advantages
from minigrpo.system.text import columns, plain, shorten, visible
from minigrpo.tree import PrefixTree

Labels = Sequence[str] | Mapping[int, str] | Callable[[int], str]  # the text of a token id

# The colours are Okabe and Ito's, which colour-blind people can tell apart; lines and markers tell them apart in a grey print.
BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW, INK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#222222",
)
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
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so it is everywhere
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
    """A process step with what is drawn of it.  A completion that ends where others go on has a step without tokens of its own."""

    text: str
    members: tuple[int, ...]  # completions, from 0 within the group
    level: int  # steps above it
    parent: int | None  # index in the list
    start: int
    end: int
    reward: float | None  # R̂: mean outcome reward of the members
    advantage: float | None  # Â: mean advantage of the members; None without rewards or where k = 1


def drawn_steps(
    tree: PrefixTree,
    rewards: Sequence[float] | np.ndarray | None = None,
    labels: Labels | None = None,
    *,
    group: int = 0,
) -> list[DrawnStep]:
    """The process steps of a group for drawing, depth first, siblings by their first completion.   rewards (B,) -> DrawnSteps

    R̂ = mean_{i∈λ} rᵢ and Â = mean_{i∈λ} aᵢ = (R̂ - mean(r)) / (std(r) + 1e-4), std with ddof 1.  Raises ValueError for a group that
    is not there, for rewards of another length than the tree's completions, and for a token without a label.  (Paper, section 3.)
    """
    if not 0 <= group < tree.n_groups:
        raise ValueError(f"group {group} is not in the tree: it has groups 0 … {tree.n_groups - 1}")
    if rewards is not None and len(rewards) != len(tree.paths):
        raise ValueError(
            f"{len(tree.paths)} completions but {len(rewards)} rewards: give one reward a completion"
        )
    everyone = np.flatnonzero(tree.completion_group == group)
    own = None if rewards is None else np.asarray(rewards, dtype=np.float64)[everyone]
    adv = (
        advantages(own, np.zeros(len(own), dtype=np.int64))
        if own is not None and len(own) > 1
        else None
    )
    steps = []
    for s in tree.steps(group):
        steps.append(
            (
                s.parent,
                s.members,
                s.start,
                s.end,
                _step_text(tree.token[list(s.nodes)].tolist(), labels),
            )
        )
    children: dict[int | None, list[tuple]] = {}
    for parent, members, *_ in steps:
        children.setdefault(parent, []).append(members)
    for i, (_, members, start, end, _) in enumerate(list(steps)):
        below = children.get(i, [])
        if start == end:  # only the root can be without tokens
            steps[i] = (None, members, start, end, "(nothing shared)" if below else "(empty)")
        if below and (ended := set(members).difference(*below)):
            steps.append((i, tuple(sorted(ended)), end, end, "(ends here)"))
    route: list[
        tuple
    ] = []  # the first member of every step from below the root to this one: sorting by it is depth first
    for parent, members, *_ in steps:
        route.append(() if parent is None else (*route[parent], members[0]))
    order = sorted(range(len(steps)), key=route.__getitem__)
    place = {i: n for n, i in enumerate(order)}
    drawn = []
    for i in order:
        parent, members, start, end, text = steps[i]
        local = tuple(m - int(everyone[0]) for m in members)
        reward, advantage = (
            None if v is None else float(v[list(local)].mean()) for v in (own, adv)
        )
        if advantage is not None and abs(advantage) < 1e-9:
            advantage = 0.0  # what cancels, as in a step of the whole group, leaves a rounding, which has no colour
        drawn.append(
            DrawnStep(text, local, len(route[i]), place.get(parent), start, end, reward, advantage)
        )
    return drawn


def _step_text(tokens: list[int], labels: Labels | None) -> str:
    """The step's tokens in print: a space that only opens a word is dropped, one that is a token is ␣, a token without text ∎."""
    label = (
        (lambda t: f" {t}")
        if labels is None
        else labels
        if callable(labels)
        else labels.__getitem__
    )
    try:
        pieces = [label(t) or "∎" for t in tokens]
    except (LookupError, TypeError):
        raise ValueError(
            f"labels must give a text for every token id from {min(tokens)} to {max(tokens)}"
        ) from None
    if pieces and pieces[0].strip():
        pieces[0] = pieces[0].lstrip(" ")
    return visible("".join(pieces))


def member_names(members: Sequence[int]) -> str:
    """(0, 1, 2, 5) -> "y0-y2 y5"."""
    runs: list[list[int]] = []
    for m in members:
        if runs and runs[-1][-1] == m - 1:
            runs[-1].append(m)
        else:
            runs.append([m])
    return " ".join(
        f"y{r[0]}" if len(r) == 1 else f"y{r[0]} y{r[1]}" if len(r) == 2 else f"y{r[0]}-y{r[-1]}"
        for r in runs
    )


def number(value: float | None, sign: str = "") -> str:
    """A reward or advantage (sign="+") in print: two decimals, never -0.00, "-" where undefined."""
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
    """A group's tree for a terminal, one line a process step: its tokens, |λ|, R̂, Â and members.   rewards (B,) -> lines

    The header has the prompt, k, the completions' tokens and how many are distinct, rewards, and their std (ddof 1).  Texts that
    would make lines longer than `width` columns are cut by an ellipsis (to no less than 12 columns); so are deep branches.
    ascii_only draws with ASCII, and "?" for other letters.
    Raises ValueError as `drawn_steps` does.
    """
    steps = drawn_steps(tree, rewards, labels, group=group)
    last_child = {s.parent: i for i, s in enumerate(steps)}
    indent = 3 if 3 * max(s.level for s in steps) <= width // 3 else 1
    below: list[str] = []  # what continues down from every step
    rows = []
    for i, s in enumerate(steps):
        above = "" if s.parent is None else below[s.parent]
        is_last = last_child[s.parent] == i
        branch = "" if s.parent is None else ("└─ " if is_last else "├─ ")[:indent]
        below.append(above + ("" if s.parent is None else ("   " if is_last else "│  ")[:indent]))
        rows.append((above + branch, plain(s.text) if ascii_only else s.text))
    cells = [["|λ|", *(str(len(s.members)) for s in steps)]]
    if rewards is not None:
        cells += [
            ["R̂", *(number(s.reward) for s in steps)],
            ["Â", *(number(s.advantage, "+") for s in steps)],
        ]
    names = ["members", *(shorten(member_names(s.members), 24) for s in steps)]
    sizes = [max(map(columns, column)) for column in cells]
    longest = max(columns(branch) + columns(text) for branch, text in rows)
    room = max(min(longest, width - sum(sizes) - 3 * len(sizes) - 3 - max(map(len, names))), 12)
    lines = [""]
    for i, (branch, text) in enumerate([("", "process step"), *rows]):
        branch = (
            branch
            if room >= longest or len(branch) <= room - 8
            else "…" + branch[len(branch) - room + 9 :]
        )
        text = branch + shorten(text, room - len(branch))
        numbers = "".join(
            "   " + " " * (n - columns(c[i])) + c[i] for n, c in zip(sizes, cells, strict=True)
        )
        lines.append((text + " " * (room - columns(text)) + numbers + "   " + names[i]).rstrip())
    values = [visible(prompt)] if prompt else []
    values += describe(tree, rewards, group=group)
    titles = (["prompt"] if prompt else []) + ["group", "rewards"]
    header = [
        shorten(f"{title:<8} {value}", width) for title, value in zip(titles, values, strict=False)
    ]
    out = "\n".join([*header, *lines])
    return plain(out) if ascii_only else out


def describe(
    tree: PrefixTree, rewards: Sequence[float] | np.ndarray | None = None, *, group: int = 0
) -> list[str]:
    """A group in a line for its sizes and, with rewards, a line for these: each reward, mean and std (ddof 1)."""
    own = tree.completion_group == group
    k, flat, distinct = (
        int(own.sum()),
        int(tree.lengths[own].sum()),
        int((tree.group == group).sum()),
    )
    is_flat = ": flat" if k > 1 and tree.is_flat[group] else ""
    lines = [
        f"k = {k}, {flat} tokens of which {distinct} distinct ({(flat - distinct) / max(flat, 1):.0%} shared){is_flat}"
    ]
    if rewards is not None:
        r = np.asarray(rewards, dtype=np.float64)[own]
        listed = " ".join(f"{x:.4g}" for x in r)
        note = (
            "one completion, so no advantage"
            if k == 1
            else f"mean {number(r.mean())}, std {number(r.std(ddof=1))}"
        )
        equal = ": all equal, so every advantage is 0" if k > 1 and np.ptp(r) == 0 else ""
        lines.append(f"{note}{equal}; {listed}" if len(listed) > 40 else f"{listed}; {note}{equal}")
    return lines
