"""Figures: the right numbers in them, nothing overlapping or cut off, the same bytes every time,
and the bootstrap's coverage.
"""

import json
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Text

from minigrpo.logs.groups import read_groups, statistics_text, tree_statistics
from minigrpo.show.drawing import drawn_steps
from minigrpo.show.plots import (
    METRICS,
    STYLE,
    bootstrap_interval,
    learning_curves,
    metrics_figure,
    save,
)
from minigrpo.show.tree_plots import draw_tree, draw_trees_page
from minigrpo.tree import PrefixTree

SMALL = {
    "prompt": "costs $x$ or $y$",
    "completions": ["ab", "ac", "ab", "b"],
    "rewards": [1, 0, 1, 0],
}


def small_group():
    return read_groups(json.dumps(SMALL))[0]


def small_figure(**options):
    group = small_group()
    return draw_tree(group.tree, group.rewards, group.labels, title=group.prompt, **options)


def texts(figure):
    return [t.get_text() for t in figure.findobj(Text) if t.get_text() and t.get_visible()]


def written(figure):
    """Text artists with their boxes in pixels (without arrows), as `save` draws them."""
    with matplotlib.rc_context(STYLE):
        FigureCanvasAgg(figure).draw()
        return [
            (t, Text.get_window_extent(t))
            for t in figure.findobj(Text)
            if t.get_text() and t.get_visible()
        ]


def random_group(rng, k, length, letters="ab", unit="characters"):
    joiner = " " if unit == "words" else ""
    rows = [
        joiner.join(rng.choice(list(letters), size=rng.integers(1, length + 1))) for _ in range(k)
    ]
    rewards = rng.integers(-1, 2, size=k).tolist()
    return read_groups(
        json.dumps({"prompt": "p", "completions": rows, "rewards": rewards}), unit=unit
    )[0]


# -- trees -----------------------------------------------------------------------------------------


def test_draw_tree_shows_the_numbers_worked_out_by_hand():
    """As in test_groups.py: root 1/2; a 2/3 and 0.29; ab 1 and 0.87; ac and b 0 and -0.87."""
    shown = " / ".join(texts(small_figure()))
    for text in (
        "a / |λ|=3 R̂=0.67 / Â=+0.29",
        "b / |λ|=2 R̂=1.00 / Â=+0.87",
        "c / |λ|=1 R̂=0.00 / Â=-0.87",
    ):
        assert text in shown or text.replace(" / Â", " Â") in shown, text  # on two lines or one
    assert "costs $x$ or $y$" in shown and "k = 4, 7 tokens of which 4 distinct" in shown
    assert "y0 y2 / 1.00" in shown and "y3 / 0.00" in shown
    figure = small_figure()
    widths = sorted(
        p.get_linewidth() for p in figure.axes[0].patches if not isinstance(p, FancyBboxPatch)
    )
    assert widths == pytest.approx([4, 4, 8, 12])  # lines as wide as |λ| = 1, 1, 2, 3
    dashed = [
        p.get_linestyle() not in ("-", "solid")
        for p in figure.axes[0].patches
        if isinstance(p, FancyBboxPatch)
    ]
    assert dashed == [False, False, False, True, True]  # below the mean, also told without colour


@pytest.mark.parametrize(
    "rewards", [[1.0, 0.3], [0.1, 1.0, 0.3], [0.7, 1.0, 0.3, 0.1, 0.7], [0.1] * 7]
)
@pytest.mark.parametrize("completion", [[1], [1, 2, 3]])
def test_a_step_at_the_group_s_mean_is_white(rewards, completion):
    """All share it, so Â is 0 but for a rounding, which must not be scaled up to the deepest
    colour.
    """
    tree = PrefixTree.from_sequences([completion] * len(rewards))
    (step,) = drawn_steps(tree, rewards)
    assert step.advantage == 0
    (frame,) = [
        p for p in draw_tree(tree, rewards).axes[0].patches if isinstance(p, FancyBboxPatch)
    ]
    assert frame.get_facecolor() == (1, 1, 1, 1) and frame.get_linestyle() in ("-", "solid")
    inner = PrefixTree.from_sequences(
        [[1, 2], [1, 3], [4, 5], [4, 6]]
    )  # each pair's mean is the group's
    assert [s.advantage for s in drawn_steps(inner, [0.1, 0.7, 0.3, 0.5])][1::3] == [0, 0]


def test_draw_tree_without_rewards_or_with_one_completion():
    tree = PrefixTree.from_groups([[1], [1]], [[[5, 6], [5]], [[7]]])
    shown = " ".join(texts(draw_tree(tree)))
    assert (
        "(ends here)" in shown and "|λ|=2" in shown and "R̂" not in shown and "reward" not in shown
    )
    assert "R̂=3.00 Â=-" in " ".join(texts(draw_tree(tree, [0, 1, 3.0], group=1)))
    nothing = PrefixTree.from_sequences([[], []])  # completions without a token are still a group
    assert "(empty)" in texts(draw_tree(nothing, [0.0, 1.0])) and "0.00…1.00" in texts(
        draw_tree(nothing, [0.0, 1.0])
    )
    assert "k = 2, 0 tokens of which 0 distinct (0% shared): flat" in texts(draw_tree(nothing))
    assert "0, of which 0 distinct (0.0% shared)" in statistics_text(tree_statistics([nothing]))
    with pytest.raises(ValueError, match="group 2 is not in the tree"):
        draw_tree(tree, group=2)


SIZES = [
    (2, 4, "ab"),
    (7, 6, "ab"),
    (16, 4, "LR"),
    (16, 9, "ab"),
    (8, 40, "abc"),
    (5, 3, "abcdefgh"),
]


@pytest.mark.parametrize(("k", "length", "letters"), SIZES)
@pytest.mark.parametrize("figsize", [None, (6, 4)])
def test_nothing_in_a_tree_overlaps_or_is_cut_off(k, length, letters, figsize):
    rng = np.random.default_rng(k * length)
    group = random_group(rng, k, length, letters, "words" if length == 9 else "characters")
    figure = draw_tree(group.tree, group.rewards, group.labels, title=group.prompt, figsize=figsize)
    boxes, canvas = written(figure), figure.bbox
    for (a, one), (b, other) in ((x, y) for i, x in enumerate(boxes) for y in boxes[:i]):
        assert not one.padded(-0.6).overlaps(other.padded(-0.6)), (a.get_text(), b.get_text())
    frames = [
        p.get_window_extent() for p in figure.axes[0].patches if isinstance(p, FancyBboxPatch)
    ]
    assert not any(one.overlaps(other) for i, one in enumerate(frames) for other in frames[:i])
    assert len(frames) == len(drawn_steps(group.tree))
    for _, box in boxes:
        assert (
            canvas.x0 <= box.x0
            and box.x1 <= canvas.x1
            and canvas.y0 <= box.y0
            and box.y1 <= canvas.y1
        )
        inside = [f for f in frames if f.overlaps(box)]
        assert len(inside) <= 1 and all(f.x0 <= box.x0 and box.x1 <= f.x1 for f in inside)
    assert figure.get_size_inches()[0] <= 13.31 and figure.get_size_inches()[1] <= 7.51


def test_a_page_of_trees():
    rng = np.random.default_rng(0)
    groups = [small_group(), *(random_group(rng, 5, 8) for _ in range(13))]
    figure = draw_trees_page(groups)
    shown = texts(figure)
    assert len(figure.axes) == 12 and "Groups as trees: the first 12 of 14" in shown
    assert (
        "k = 4, mean reward 0.50, 43% shared" in shown
        and "1.00 ×2" in shown
        and shown.count("position (characters)") == 12
    )
    assert len(draw_trees_page(groups[:2]).axes) == 2


# -- curves ----------------------------------------------------------------------------------------


def test_bootstrap_interval_covers_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = []
    for seeds in (8, 40):
        low, high = bootstrap_interval(rng.normal(size=(seeds, 3000)), rng)
        covered.append(np.mean((low <= 0) & (high >= 0)))
    assert 0.86 < covered[0] < 0.93 and 0.925 < covered[1] < 0.96
    # The normal approximation has 2·1.96 standard errors of sqrt(60/9)/sqrt(9).
    width = np.ptp(bootstrap_interval(np.arange(9.0), rng))
    assert width == pytest.approx(2 * 1.96 * 0.861, rel=0.05)


def test_bootstrap_interval_edges():
    values = np.random.default_rng(1).normal(size=(6, 3, 2))
    low, high = bootstrap_interval(values, np.random.default_rng(2))
    again = bootstrap_interval(values, np.random.default_rng(2))
    assert low.shape == (3, 2) and np.array_equal(low, again[0]) and np.array_equal(high, again[1])
    assert (low < values.mean(0)).all() and (values.mean(0) < high).all()
    assert [float(x) for x in bootstrap_interval(np.array([3.0]), np.random.default_rng(0))] == [
        3.0,
        3.0,
    ]
    with pytest.raises(ValueError, match="at least one seed"):
        bootstrap_interval(np.zeros((0, 3)), np.random.default_rng(0))


def test_learning_curves_draw_means_and_bands():
    rng = np.random.default_rng(0)
    curves = {
        name: rng.normal(level, 0.1, (8, 50))
        for name, level in (("λ-GRPO", 1), ("GRPO", 0.2), ("placebo", 0.2))
    }
    figure = learning_curves(
        curves,
        xlabel="step",
        ylabel="target frequency",
        title="Table 1",
    )
    ax = figure.axes[0]
    assert {
        *curves,
        "step",
        "target frequency",
        "Table 1",
        "mean and 95 % bootstrap band over 8 seeds",
    } <= set(texts(figure))
    for line, values in zip(ax.lines, curves.values(), strict=True):
        assert np.allclose(line.get_ydata(), values.mean(0)) and line.get_xdata()[0] == 1
    low, high = bootstrap_interval(curves["λ-GRPO"], np.random.default_rng(0))
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(low.min()) and band[:, 1].max() == pytest.approx(
        high.max()
    )
    assert (
        len({(str(line.get_linestyle()), line.get_marker()) for line in ax.lines}) == 3
    )  # told apart without colour
    names = [box for t, box in written(figure) if t.get_text() in curves]
    assert not any(a.overlaps(b) for i, a in enumerate(names) for b in names[:i])
    assert all(box.x1 <= figure.bbox.x1 for box in names)


def test_positions_and_numbers_of_seeds():
    curves = {"a": np.array([[0.0, 2.0, 4.0, 12.0]]), "b": np.zeros((2, 4))}
    figure = learning_curves(curves, steps=[10, 20, 30, 40])
    line = figure.axes[0].lines[0]
    assert line.get_xdata().tolist() == [10, 20, 30, 40]
    about = "mean and 95 % bootstrap band over seeds (their number in brackets)"
    assert {about, "a (1)", "b (2)"} <= set(texts(figure))
    assert "one seed" in texts(learning_curves({"a": np.zeros((1, 1))}))


@pytest.mark.parametrize(
    ("curves", "options", "message"),
    [
        ({}, {}, "no curves to draw"),
        ({"a": np.zeros(4)}, {}, r"curve 'a' has shape \(4,\)"),
        ({"a": np.zeros((2, 4)), "b": np.zeros((2, 3))}, {}, r"curve 'b' has shape \(2, 3\)"),
        ({"a": np.full((2, 4), np.nan)}, {}, "finite numbers"),
        ({"a": np.zeros((2, 4))}, {"steps": [1, 2]}, r"shape \(2, 4\): it must be \(seeds, 2\)"),
    ],
)
def test_learning_curves_refuse(curves, options, message):
    with pytest.raises(ValueError, match=message):
        learning_curves(curves, **options)


# -- metrics and statistics ------------------------------------------------------------------------


def test_metrics_figure():
    records = [
        {"step": i, "reward": i / 10, "kl": None if i % 2 else 0.1 * i, "extra": 1.0, "name": "x"}
        for i in range(6)
    ]
    figure = metrics_figure(records)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["reward", "kl"]
    assert figure.axes[0].lines[0].get_ydata().tolist() == [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert figure.axes[1].lines[0].get_xdata().tolist() == [0, 2, 4] and "nats per token" in texts(
        figure
    )
    assert len(metrics_figure([dict.fromkeys(METRICS, 1.0) | {"step": 0}]).axes) == len(METRICS)
    long = metrics_figure([{"step": i, "extra": float(i)} for i in range(50)], keys=["extra"]).axes[
        0
    ]
    assert len(long.lines) == 2 and long.lines[1].get_ydata()[-1] == pytest.approx(44.5)
    assert "running mean of 10" in long.get_xlabel()
    with pytest.raises(
        ValueError, match=r"no record has loss: choose from step, reward, kl, extra"
    ):
        metrics_figure(records, keys=["reward", "loss"])
    with pytest.raises(ValueError, match="no record has any of the usual metrics"):
        metrics_figure([])
    with pytest.raises(ValueError, match='record 1 has no "step"'):
        metrics_figure([{"step": 0, "kl": 1}, {"kl": 2}])


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_same_figure_gives_the_same_bytes(tmp_path, suffix):
    def figures():
        return [
            small_figure(),
            learning_curves({"a": np.arange(12.0).reshape(3, 4)}),
            draw_trees_page([small_group()]),
        ]

    for figure, same in zip(figures(), figures(), strict=True):
        first, second = (
            save(figure, tmp_path / "new" / f"a{suffix}"),
            save(same, tmp_path / f"b{suffix}"),
        )
        assert first.read_bytes() == second.read_bytes()
        content = first.read_bytes()
        assert b"dc:date" not in content and matplotlib.__version__.encode() not in content
    if suffix == ".png":
        assert matplotlib.image.imread(first).shape[1] == pytest.approx(
            figure.get_size_inches()[0] * 150, abs=1
        )


def test_save_refuses_other_suffixes(tmp_path):
    with pytest.raises(
        ValueError, match=r"cannot write a figure to 'tree.bmp': end its name in .png or .svg"
    ):
        save(Figure(), tmp_path / "tree.bmp")


def test_no_global_state():
    before = dict(matplotlib.rcParams)
    small_figure()
    assert dict(matplotlib.rcParams) == before
    code = "import sys, minigrpo.show.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
