"""What the slides show: figures, and numbers, none of them typed.

A figure is one of a chapter as it is stored there, or is drawn here, large enough for a hall, from
the package and its committed tables.  A number is computed here, or is read from a committed table
or from what a chapter printed.  Whatever is not found is an error.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import minigrpo as mg
from minigrpo.experiments import committed, flaw
from minigrpo.experiments.controls import TITLES
from minigrpo.objectives import Coefficients
from minigrpo.runs.bench import Bench, Workload
from minigrpo.show.drawing import BLUE, INK, ORANGE, STYLE, number
from minigrpo.show.plots import drawn
from minigrpo.show.tree_plots import draw_tree
from minigrpo.verify.equivalence import Equivalence, check_equivalence

CHAPTERS = Path(__file__).resolve().parents[1]
WIDTH = 1760  # of a slide's figure, in pixels; a point of a figure drawn here is a pixel
LARGE = STYLE | {"font.size": 28, "axes.titlesize": 28, "text.parse_math": True}
LARGE |= {"lines.linewidth": 5, "lines.markersize": 16, "axes.linewidth": 2, "hatch.linewidth": 2}
CENTRE = {"ha": "center", "va": "center"}

# The group of chapter 5.
COMPLETIONS = ["91 = 7 × 13 so no", "91 = 7 × 13 so no", "91 = 7 × 13 so yes"]
COMPLETIONS += ["91 is odd so yes", "91 is odd but 7 divides it so no", "91 is odd so prime"]
REWARDS = np.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.0])
WORDS = sorted({word for text in COMPLETIONS for word in text.split()})
TREE = mg.PrefixTree.from_sequences([[WORDS.index(w) for w in c.split()] for c in COMPLETIONS])


@cache
def chapter(name: str) -> list[dict[str, Any]]:
    """The cells of a chapter, by the beginning of its file's name."""
    (file,) = CHAPTERS.glob(f"{name}_*.ipynb")
    return json.loads(file.read_text(encoding="utf-8"))["cells"]


def chapter_figure(name: str, words: str) -> str:
    """The SVG of a chapter's figure, found by words in the code that draws it (_ for a space)."""
    found = []
    for cell in chapter(name):
        if words.replace("_", " ") in "".join(cell["source"]):
            outputs = [output.get("data", {}) for output in cell.get("outputs", [])]
            found += ["".join(data["image/svg+xml"]) for data in outputs if "image/svg+xml" in data]
    if len(found) != 1:
        raise ValueError(f"chapter {name} has {len(found)} stored figures of code with {words!r}")
    return found[0]


def printed(name: str, pattern: str) -> tuple[str, ...]:
    """What the groups of a pattern match in the text that a chapter printed."""
    outputs = [output for cell in chapter(name) for output in cell.get("outputs", [])]
    text = "\n".join("".join(output.get("text", [])) for output in outputs)
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"chapter {name} prints nothing like {pattern!r}: mend the slides")
    return tuple(group.replace("-", "−") for group in found.groups())


def pick(rows: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """The rows of a table with these values."""
    return [row for row in rows if wanted.items() <= row.items()]


# -- figures drawn here ----------------------------------------------------------------------------


def panels(n: int = 1, height: int = 760, **options: Any) -> tuple[Figure, Any]:
    """A slide's figure with so many panels side by side."""
    return plt.subplots(
        1, n, figsize=(WIDTH / 72, height / 72), layout="constrained", squeeze=False, **options
    )


def grid(values: np.ndarray, label: Any, colours: tuple[str, str]) -> Figure:
    """A cell for every word of the six completions, with its value (k,T)."""
    figure, ((ax,),) = panels(height=800)
    for i, completion in enumerate(COMPLETIONS):
        for t, word in enumerate(completion.split()):
            size = abs(values[i, t]) / np.abs(values).max()
            face = colours[int(values[i, t] < 0)], 0.5 * size
            ax.add_patch(plt.Rectangle((t, i), 0.96, 0.92, fc=face, ec="#888888", lw=1.5))
            ax.text(t + 0.48, i + 0.29, word, **CENTRE)
            ax.text(t + 0.48, i + 0.68, label(values[i, t]), **CENTRE, family="monospace")
    ax.set(xlim=(0, 9), ylim=(6, -0.1), xlabel="position t")
    ax.set_xticks(np.arange(9) + 0.48, range(9))
    rows = [f"y{i}: r = {r:g}" for i, r in enumerate(REWARDS)]
    ax.set_yticks(np.arange(6) + 0.45, rows)
    ax.grid(False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return figure


def counts() -> Figure:
    return grid(TREE.on_tokens(TREE.count), str, ("#777777", "#777777"))


def by_completion() -> Figure:
    a = mg.advantages(REWARDS, np.zeros(6, dtype=int))
    values = np.repeat(a[:, None], TREE.paths.shape[1], axis=1)
    return grid(values, "{:+.2f}".format, (BLUE, ORANGE))


def by_step() -> Figure:
    values = TREE.on_tokens(mg.step_advantages(TREE, REWARDS))
    return grid(values, lambda x: number(x, "+"), (BLUE, ORANGE))


def tree(rewards: np.ndarray | None = None) -> Figure:
    """The package's drawing without its heading and its caption, so that letters are larger."""
    drawing = draw_tree(TREE, rewards, [f" {word}" for word in WORDS])
    (ax,) = drawing.axes
    width, height = 72 * drawing.get_size_inches()
    top, bottom = 28, height - 32
    for text in list(ax.texts):
        if not top < text.get_position()[1] < bottom or text.get_text().startswith("k ="):
            text.remove()
    ax.set_ylim(bottom, top)
    drawing.set_size_inches(width / 72, (bottom - top) / 72)
    return drawing


def tree_of_steps() -> Figure:
    return tree()


def tree_of_rewards() -> Figure:
    return tree(REWARDS)


def clip_cases() -> Figure:
    """GRPO's term of one token over the ratio, for either sign of its advantage."""
    figure, (axes,) = panels(2, 800, sharex=True)
    rho, objective = np.linspace(0.4, 1.6, 241), mg.Objective.preset("grpo")
    for ax, a in zip(axes, (1, -1), strict=True):
        parts = (max(a, 0), min(a, 0), 1, 1, a > 0, a < 0)
        c = Coefficients(*(np.array([float(x)]) for x in parts))
        both = [objective.evaluate(c, np.log([x]), np.zeros(1)) for x in rho]
        terms, slopes = np.array([-loss for loss, _ in both]), np.array([-g[0] for _, g in both])
        flat = np.abs(slopes) < 1e-12
        ax.plot(rho, np.where(flat, np.nan, terms), color=BLUE, label="has a gradient")
        ax.plot(rho, np.where(flat, terms, np.nan), color=ORANGE, ls=":", lw=8, label="none")
        ax.axvspan(0.8, 1.2, color="#eeeeee", zorder=0)
        ax.axvline(1, color=INK, lw=1.5)
        ax.set(xlabel="ratio ρ", ylabel="term of one token")
        ax.set_title("a = +1: make it likelier" if a > 0 else "a = −1: make it rarer")
    axes[0].legend(frameon=False, loc="upper left")
    axes[0].text(1.0, 0.42, "grey: within 1 ± ε, ε = 0.2", ha="center")
    return figure


def pushes() -> Figure:
    """The push on each move of the best walk of 16, by both objectives."""
    figure, ((ax,),) = panels(height=720)
    rows = flaw.by_hand()
    looks = {"grpo": {"color": BLUE}, "lambda_grpo": {"color": ORANGE, "hatch": "//"}}
    for shift, (objective, look) in zip((-0.2, 0.2), looks.items(), strict=True):
        own = pick(rows, case="exploration", objective=objective, best=True)
        heights = [row["push"] for row in own]
        style = {"width": 0.38, "ec": INK, "lw": 2, "label": TITLES[objective]} | look
        bars = ax.bar(np.arange(4) + shift, heights, **style)
        ax.bar_label(bars, [f"{x:+.2f}" for x in heights], padding=6)
    ax.set_xticks(range(4), [f"{row['prefix']}\n|λ| = {row['count']}" for row in own])
    ax.axhline(0, color=INK, lw=2)
    ax.set(ylabel="push on the move", xlabel="move of the best walk", ylim=(-7.6, 2.4))
    ax.legend(frameon=False, loc="lower right")
    return figure


@cache
def equivalence() -> tuple[Equivalence, Equivalence, int]:
    """Theorem 1 by machine: intact, with one reward 1 % larger on one side; how many rewards."""
    config = mg.TransformerConfig(32, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64)
    sizes = {"n_prompts": 4, "prompt_length": 8, "group_size": 8, "new_tokens": 24}
    bench = Bench(Workload(config, **sizes, agreeing=0.35), dtype="float64")
    rollouts = bench.sample()
    rewards = np.array([(c % 2 == 0).mean() for group in rollouts.completions for c in group])
    off, inputs = rewards * np.where(np.arange(len(rewards)) == 0, 1.01, 1), (bench.model, rollouts)
    intact, broken = (
        check_equivalence(*inputs, rewards, np.random.default_rng(4), prm_rewards=prm)
        for prm in (None, off)
    )
    return intact, broken, len(rewards)


def one_per_cent() -> Figure:
    """How far apart the two gradients of Theorem 1 are at each tensor, intact and broken."""
    figure, ((ax,),) = panels(height=760)
    looks = {"intact": (BLUE, "o"), "one reward off by 1 %": (ORANGE, "s")}
    for found, (name, (colour, marker)) in zip(equivalence(), looks.items(), strict=False):
        x = np.log10(list(found.gradient_difference.values()))
        ax.plot(x, np.arange(1, len(x) + 1), marker, color=colour, label=name)
    ax.set(xlim=(-17, -1), xlabel="relative difference of the gradient, GRPO against PRM")
    ax.set_xticks(range(-16, -1, 4), [f"1e{x}".replace("-", "−") for x in range(-16, -1, 4)])
    ax.axvline(np.log10(np.finfo(np.float64).eps), color=INK, lw=2, ls=":", label="rounding")
    ax.set(ylabel="parameter tensor", yticks=[1, 5, 10, 15, 20])
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def compared(**wanted: Any) -> list[dict[str, Any]]:
    """The six settings of the paper, in its order, for a way to choose the rates."""
    rows = pick(committed("results/table1.json")["comparison"], targets="drawn", **wanted)
    return sorted((r for r in rows if r["n"] < 3), key=lambda r: (r["n"], -r["r_neg"]))


COLUMNS = {
    "AdamW, both at 0.0003": {"optimizer": "adamw", "rates": "same", "grpo_rate": 3e-4},
    "AdamW, best rates": {"optimizer": "adamw", "rates": "best"},
    "SGD, best rates": {"optimizer": "sgd", "rates": "best"},
}


def differences() -> Figure:
    """λ-GRPO less GRPO in the six settings, with intervals, by how the rates are chosen."""
    figure, (axes,) = panels(3, 760, sharex=True, sharey=True)
    for ax, (title, wanted) in zip(axes, COLUMNS.items(), strict=True):
        for y, row in enumerate(compared(**wanted)):
            x, clear = row["difference"], row["low"] > 0
            error = [[x - row["low"]], [row["high"] - x]]
            style = {"color": ORANGE, "mfc": ORANGE if clear else "white", "mew": 3, "capsize": 8}
            ax.errorbar([x], [y], xerr=error, marker="s", lw=4, **style)
        ax.axvline(0, color=INK, lw=2)
        ax.set(title=title, xlabel="λ-GRPO − GRPO")
        ax.set_xticks([0, 0.1, 0.2])
        names = [f"n = {row['n']}, r_neg = {row['r_neg']:g}" for row in compared(**wanted)]
    axes[0].set_yticks(range(6), [name.replace("-", "−") for name in names])
    axes[0].invert_yaxis()
    return figure


def controls() -> Figure:
    """The arms of Table 1 at their best rates of AdamW, r_neg = -1."""
    figure, (axes,) = panels(2, 760, sharex=True, sharey=True)
    arms = [arm for arm in TITLES if arm not in ("dr_grpo", "rloo")]
    for ax, n in zip(axes, (1, 2), strict=True):
        key = {"n": n, "r_neg": -1.0, "optimizer": "adamw", "targets": "drawn"}
        for row in pick(committed("results/table1.json")["best"], **key):
            if row["arm"] in arms:
                x = row["target_frequency"]
                error = [[x - row["low"]], [row["high"] - x]]
                fixed = row["arm"].startswith("lambda")
                colour = ORANGE if fixed else BLUE if row["arm"] == "grpo" else INK
                marker = "s" if fixed else "o"
                y = arms.index(row["arm"])
                ax.errorbar([x], [y], xerr=error, marker=marker, color=colour, lw=4, capsize=8)
        ax.set(title=f"n = {n}, r_neg = −1", xlabel="frequency of the target", xlim=(0, 1))
    axes[0].set_yticks(range(len(arms)), [TITLES[arm] for arm in arms])
    axes[0].invert_yaxis()
    return figure


def when_map() -> Figure:
    """Who is ahead on the tabular walk, by learning rate and start, n = 1 and r_neg = -1."""
    figure, ((ax,),) = panels(height=760)
    rows = pick(committed("results/when.json")["map"], n=1, r_neg=-1.0)
    rates, starts = (sorted({row[name] for row in rows}) for name in ("learning_rate", "start"))
    for row in rows:
        x, y = rates.index(row["learning_rate"]), starts.index(row["start"])
        ahead = (row["low"] > 0) - (row["high"] < 0)
        colour, sign = {1: (ORANGE, "▲"), -1: (BLUE, "▼"), 0: ("#999999", "–")}[ahead]
        face = colour, 0.05 + 0.6 * abs(row["difference"])
        ax.add_patch(plt.Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, fc=face, ec="#888888"))
        pair = f"{row['grpo_target_frequency']:.2f} → {row['lambda_grpo_target_frequency']:.2f}"
        ax.text(x, y, f"{sign}\n{pair}", **CENTRE, fontsize=24)
    ax.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    ax.set_yticks(range(len(starts)), [f"1/{round(1 / start):,}" for start in starts])
    ax.set(xlim=(-0.5, len(rates) - 0.5), ylim=(-0.5, len(starts) - 0.5))
    ax.set(xlabel="learning rate of plain SGD", ylabel="target's probability at the start")
    ax.grid(False)
    return figure


DRAWN = {f.__name__: f for f in (counts, by_completion, by_step, tree_of_steps, tree_of_rewards)}
DRAWN |= {f.__name__: f for f in (clip_cases, pushes, one_per_cent, differences)}
DRAWN |= {f.__name__: f for f in (controls, when_map)}


def figure(name: str) -> str:
    """The SVG of a figure: one of DRAWN, or a chapter's, such as "04/Clipped_tokens"."""
    if name in DRAWN:
        with plt.rc_context(LARGE):
            made = DRAWN[name]()
            svg = drawn(made, "svg").decode()
        plt.close("all")
        return svg
    which, _, words = name.partition("/")
    if not words:
        raise ValueError(f"no figure is called {name!r}: {', '.join(DRAWN)}, or 04/Clipped_tokens")
    return chapter_figure(which, words)


# -- numbers ---------------------------------------------------------------------------------------


def table_1() -> str:
    """The paper's six pairs and ours, as the rows of a Markdown table."""
    lines = ["| n | r_neg | the paper, 5 seeds | " + " | ".join(COLUMNS) + " |", "|:-:|:-:" * 3]
    lines[1] = "|:-:" * (3 + len(COLUMNS)) + "|"
    columns = [compared(**wanted) for wanted in COLUMNS.values()]
    for rows in zip(*columns, strict=True):
        pairs = [(rows[0]["paper_grpo"], rows[0]["paper_lambda_grpo"])]
        pairs += [(row["grpo"], row["lambda_grpo"]) for row in rows]
        cells = [f"{x:.2f} → {y:.2f}" for x, y in pairs]
        setting = [f"{rows[0]['n']}", f"{rows[0]['r_neg']:g}".replace("-", "−")]
        lines.append(f"| {' | '.join(setting + cells)} |")
    return "\n".join(lines)


def steps_table() -> str:
    """Every process step of the six completions with |λ|, R̂, Â and both sides of the proof."""
    R, A = mg.step_rewards(TREE, REWARDS), mg.step_advantages(TREE, REWARDS)
    sums = TREE.sum_over_members(mg.advantages(REWARDS, TREE.completion_group))
    lines = ["| process step | members | \\|λ\\| | R̂ | Â | \\|λ\\| · Â | Σ aᵢ |"]
    lines.append("|:--|:--|--:|--:|--:|--:|--:|")
    for step in TREE.steps():
        node = step.nodes[0]
        text = " ".join(WORDS[TREE.token[node]] for node in step.nodes)
        members = " ".join(f"y{i}" for i in step.members)
        shown = number(A[node], "+"), number(TREE.count[node] * A[node], "+")
        cells = [text, members, str(TREE.count[node]), number(R[node]), *shown]
        lines.append(f"| {' | '.join([*cells, number(sums[node], '+')])} |")
    return "\n".join(lines)


def rows_table(source: str, name: str) -> str:
    """Four prompts with what two policies wrote, from chapter 3."""
    (line,) = printed("03", rf"\n{source} +(\d\+\d=.*)")
    texts = re.split(r"\s{3,}", line.strip())
    if len(texts) != 4:
        raise ValueError(f"chapter 3 shows {len(texts)} texts of {name!r}: mend the slides")
    return "\n".join(texts)


def numbers() -> dict[str, str]:
    """Every {{name}} of the slides."""
    a16 = mg.advantages(np.eye(16)[0], np.zeros(16, dtype=int))
    half = mg.advantages([1.0, 1.0, 0.0, 0.0], np.zeros(4, dtype=int))
    intact, broken, n_rewards = equivalence()
    rows = flaw.by_hand()
    push = {
        (objective, row["prefix"]): f"{row['push']:+.2f}".replace("-", "−")
        for objective in flaw.OBJECTIVES
        for row in pick(rows, case="exploration", objective=objective, best=True)
    }
    when = committed("results/when.json")
    theorem = committed("results/theorem.json")
    learning = {
        (row["task"], row["arm"]): f"{row['pass@1']:.3f}"
        for row in pick(committed("results/learning.json"), beta=0)
        if (row["task"], row["learning_rate"]) in {("arithmetic", 1e-4), ("countdown", 3e-4)}
    }
    best = pick(compared(**COLUMNS["AdamW, best rates"]), r_neg=-1.0)
    p, r = np.array([0.3, 0.6, 0.1]), np.array([0.0, 0.7, 1.0])  # the bandit of chapter 1
    g = r[:, None] * (np.eye(3) - p)
    A, same = mg.step_advantages(TREE, REWARDS), TREE.on_tokens(mg.step_advantages(TREE, REWARDS))
    own = mg.advantages(REWARDS, TREE.completion_group)[:, None]
    inside = TREE.paths >= 0
    differ = int((~np.isclose(same, own))[inside].sum())
    is_odd = TREE.paths[3, 2]
    found = {
        "hacked": rows_table("anywhere", "hacked"),
        "honest": rows_table("final", "honest"),
        "a_rare": f"{a16[0]:.2f}",
        "a_rare_wrong": f"{a16[1]:.2f}".replace("-", "−"),
        "a_rare_undivided": f"{1 - 1 / 16:.2f}",
        "dead_99": f"{0.99**8 + 0.01**8:.0%}".replace("%", " %"),
        "dead_50": f"{2 * 0.5**8:.1%}".replace("%", " %"),
        "a_right_half": f"{half[0]:+.2f}",
        "a_wrong_half": f"{half[-1]:+.2f}",
        "a_right": f"{own.max():+.2f}",
        "a_wrong": f"{own.min():+.2f}",
        "std": f"{REWARDS.std(ddof=1):.3f}",
        "paper_pair": f"{best[0]['paper_grpo']:.2f} → {best[0]['paper_lambda_grpo']:.2f}",
        "worst": f"{intact.worst:.0e}",
        "least": f"{min(broken.gradient_difference.values()):.0e}",
        "n_rewards": str(n_rewards),
        "A_is_odd": number(A[is_odd], "+").replace("-", "−"),
        "words": str(int(inside.sum())),
        "nodes": str(TREE.n_nodes),
        "differ": str(differ),
        "steps_table": steps_table(),
        "table_1": table_1(),
        "push_R": push["grpo", "R"],
        "push_R_fixed": push["lambda_grpo", "R"],
        "push_RRRR": push["grpo", "RRRR"],
        "map_cells": str(len(when["map"])),
        "map_lambda": str(sum(row["low"] > 0 for row in when["map"])),
        "map_grpo": str(sum(row["high"] < 0 for row in when["map"])),
        "runs_best": str(best[0]["runs"]),
        "runs_same": str(compared(**COLUMNS["AdamW, both at 0.0003"])[0]["runs"]),
        "settings": str(len(theorem)),
        "best_n1": f"{best[0]['difference']:+.2f} [{best[0]['low']:+.2f}, {best[0]['high']:+.2f}]",
        "best_n2": f"{best[1]['difference']:+.2f} [{best[1]['low']:+.2f}, {best[1]['high']:+.2f}]",
    }
    for name, row in zip(("g_A", "g_B", "g_C", "g_mean"), [*g, p @ g], strict=True):
        found[name] = ", ".join(f"{x + 0.0:+.3f}" if abs(x) > 1e-12 else "0" for x in row)
    found |= {f"{task}_{arm}": value for (task, arm), value in learning.items()}
    patterns = {  # name, or several: what a chapter prints
        "hacked_from hacked_to": ("03", r"trained on anywhere +“anywhere” (\S+) -> (\S+)"),
        "final_from final_to": ("03", r"trained on anywhere .*“final” (\S+) -> (\S+)"),
        "honest_to": ("03", r"trained on final .*“final” \S+ -> (\S+)"),
        "J40 J500 J800": ("01", r"step  40 .*J = (\S+)[\s\S]*step 500 .*J = (\S+)\n.*J = (\S+)"),
        "pC0 pC40 pC320 pC500": (
            "01",
            r"step   0 .* (\S+)\] +J[\s\S]*step  40 .* (\S+)\] +J[\s\S]*"
            r"step 320 .* (\S+)\] +J[\s\S]*step 500 .* (\S+)\] +J",
        ),
        "noise4 noise16": ("01", r"noise / length.*4: (\S+), 16: (\S+?),"),
        "wrong_arm": ("01", r"no baseline +\S+ +\S+ +(\d+)%"),
        "variance variance_J": ("01", r"rewards r +(\S+) +(\S+)"),
        "variance_10": ("01", r"r \+ 10 +(\S+)"),
        "worse_clipped": ("04", r"\nclipped +μ = 60.*made worse by (\d+)"),
        "worse_free": ("04", r"not clipped +μ = 60.*made worse by (\d+)"),
        "blamed_wrong": ("05", r"first wrong steps +\d+ +(\S+)%"),
        "blamed_right": ("05", r"right steps +\d+ +(\S+)%"),
        "blamed_chance": ("05", r"first wrong steps +\d+ +\S+ +mean (\S+)%"),
        "reward0": ("06", r"expected reward before: (\S+)"),
        "reward_grpo": ("06", r"after a step of GRPO +(\S+)"),
        "reward_fixed": ("06", r"after a step of λ-GRPO +(\S+)"),
        "walk0 walk_grpo": ("06", r"whole walk: \S+ probability (\S+) → (\S+)\n"),
        "walk_fixed": ("06", r"λ-GRPO +push[\s\S]*?whole walk: \S+ probability \S+ → (\S+)"),
        "LR0 LR_grpo": ("06", r"GRPO +p\(LR \| L\) (\S+) → (\S+?);"),
        "LR_fixed": ("06", r"λ-GRPO +p\(LR \| L\) \S+ → (\S+?);"),
        "flat_nodes tree_nodes": ("07", r"(\d+) nodes flat, (\d+) in the tree"),
        "apart": ("07", r"largest difference of a log-probability (\S+)"),
    }
    for names, (name, pattern) in patterns.items():
        found |= dict(zip(names.split(), printed(name, pattern), strict=True))
    found["hacked_percent"] = f"{round(100 * float(found['hacked_to']))} %"
    return {
        name: re.sub(r"(?<![A-Za-df-z\d.|:-])-(?=[\d.])", "−", text) for name, text in found.items()
    }
