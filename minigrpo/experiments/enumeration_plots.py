"""The table of `enumeration.py` as text and as a figure, from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minigrpo.show.drawing import INK, STYLE

WEIGHTS = {"members": "|λ|", "distinct": "1", "draws": "draws", "shares": "shares"}
PANELS = {  # rewards, baseline, scale
    ("any", "none", "none"): "no baseline",
    ("any", "group_mean", "none"): "minus group mean",
    ("any", "group_mean", "group_std"): "… divided by std",
    ("0 or 1", "group_mean", "group_std"): "… and rewards 0 or 1",
    ("any", "parent", "none"): "minus parent's R̂",
}
LEFT_OUT = ("(a) 2 independent", "(a) 3 independent")  # much as 4
TITLE = "|λ| belongs to the gradient if each member is a draw from π; in cut samples it does not"
KEY = "= c: E[g] = c·∇J;  t: one c per depth;  p: one per prefix;  numbers: cosine, rounded down"


def mark(row: dict[str, Any]) -> str:
    """As KEY says; "= c" if c differs between policies, "0" if E[g] = 0, "–" if it is refused."""
    if row["verdict"] in ("zero", "refused"):
        return {"zero": "0", "refused": "–"}[row["verdict"]]
    if row["verdict"] == "exact":
        return f"= {np.mean(row['factors']):.2g}" if np.ptp(row["factors"]) < 1e-5 else "= c"
    kind = {"depth": "t ", "prefix": "p "}.get(row["verdict"], "")
    return f"{kind}{np.floor(100 * row['cosine']) / 100:.2f}"


def lookup(rows: Sequence[dict[str, Any]]) -> tuple[list[tuple], dict[tuple, dict[str, Any]]]:
    """What is shown, (scheme, lengths); each row by its first six values, scheme to weight."""
    table = {tuple(row.values())[:6]: row for row in rows}
    return list(dict.fromkeys(key[:2] for key in table if key[0] not in LEFT_OUT)), table


def text(tables: dict[str, list[dict[str, Any]]]) -> str:
    """A block for each of PANELS, a line per way to draw, a column per weight; then directions."""
    shown, table = lookup(tables["estimators"])
    lines = []
    for panel, title in PANELS.items():
        lines.append(f"{title:44}" + "".join(f"{name:>10}" for name in WEIGHTS))
        for scheme, lengths in shown:
            marks = [mark(table[(scheme, lengths, *panel, weight)]) for weight in WEIGHTS]
            about = f"  {scheme:27}{lengths + ' lengths':15}"
            lines.append(about + "".join(f"{m:>10}" for m in marks))
    lines += [KEY, "", "λ-GRPO with independent completions, random policies:"]
    lines.append("".join(f"{name:>17}" for name in tables["directions"][0]))
    lines += ["".join(f"{x!s:>17}" for x in row.values()) for row in tables["directions"]]
    return "\n".join(lines)


def figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Matrices, way to draw by weight: exact cells are framed, others darker for a wider angle."""
    shown, table = lookup(rows)
    bare = {"axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}
    with matplotlib.rc_context(STYLE | bare):
        fig = Figure(figsize=(13.5, 0.36 * len(shown) + 1.8), layout="constrained")
        panels = fig.subplots(1, len(PANELS), sharey=True)
        for ax, (panel, title) in zip(panels, PANELS.items(), strict=True):
            for (y, scheme), (x, weight) in product(enumerate(shown), enumerate(WEIGHTS)):
                row = table[(*scheme, *panel, weight)]
                exact, cosine = row["verdict"] == "exact", row["cosine"]
                plain = exact or cosine is None
                shade = 1.0 if plain else float(np.interp(cosine, [0.6, 1.0], [0.6, 0.92]))
                frame = {"ec": INK if exact else "white", "lw": 1 + exact / 2, "zorder": 2 + exact}
                ax.add_patch(Rectangle((x - 0.47, y - 0.43), 0.94, 0.86, fc=str(shade), **frame))
                style = {"ha": "center", "va": "center", "size": 8.5, "zorder": 4}
                ax.text(x, y, mark(row), weight="bold" if exact else "normal", **style)
            ax.set(xlim=(-0.5, 3.5), ylim=(len(shown) - 0.5, -0.5), title=title)
            ax.set_xticks(range(4), WEIGHTS.values())
            names = [f"{name}{', unequal lengths' * (how == 'unequal')}" for name, how in shown]
            ax.set_yticks(range(len(shown)), names)
            ax.tick_params(length=0, labelsize=9)
        fig.suptitle(TITLE, x=0.01, ha="left", weight="bold")
        counts = "What a process step counts for: |λ| (GRPO), 1 (λ-GRPO), its draws, their shares"
        fig.supxlabel(f"{counts}.   {KEY}.", fontsize=9)
    return fig
