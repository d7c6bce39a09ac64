"""Completions in any script: aligned and harmless in a terminal, and in figures the letters or
their escapes, never boxes.
"""

import json
import re
import subprocess
import sys
import warnings

import matplotlib.font_manager
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.patches import FancyBboxPatch
from test_plots import written

from minigrpo.logs.groups import read_groups
from minigrpo.show.drawing import tree_text
from minigrpo.show.fonts import fonts_for, printed
from minigrpo.show.plots import learning_curves
from minigrpo.show.tree_plots import draw_tree, draw_trees_page
from minigrpo.system.text import columns, shorten, visible

WORDS = {
    "Chinese": ["中文很好", "中文不好", "英文"],
    "Japanese": ["日本語のテキスト", "日本ｶﾅ", "日"],
    "Korean": ["한국어", "한국", "\u1112\u1161\u11ab글"],  # the last in pieces, three to a cell
    "Arabic": ["مرحبا", "مرحبًا", "سلام"],
    "Thai": ["ไทย", "ไทยดี", "น้ำ"],
    "Hindi": ["हिन्दी", "हिंदी", "नमस्ते"],
    "emoji": ["🧠👍🏽", "🧠❤\ufe0f", "👩\u200d🚀"],
    "combining marks": ["e\u0301a", "ea", "e\u0301\u0323b"],
    "control characters": ["a\x1b[2J\x07b", "a\x9bc", "\r\x00\x7f"],
    "zero width": ["a\u200bb", "a\u202eb", "\ufeff\u2060c\u3164"],
    "half a character": ["\ud83d", "\udc00x", "y"],
}
WIDE = {
    "中": 2,
    "ｶ": 1,
    "한": 2,
    "🧠": 2,
    "é": 1,
    "e\u0301": 1,
    "น้ำ": 2,
    "\u1112\u1161\u11ab": 2,
    "Ａ": 2,
    "λ": 1,
    "हि": 2,
}


def group_of(texts, prompt="translate"):
    record = {"prompt": prompt, "completions": texts, "rewards": [1.0, 0.0, 0.5][: len(texts)]}
    return read_groups(json.dumps(record), unit="characters")[0]


def without_warnings(draw):
    """The texts of a figure with their boxes, once it has been drawn without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return written(draw())


def after_columns(line, n):
    """What stands after so many terminal columns; None if a wide character stands across."""
    return next((line[i:] for i in range(len(line) + 1) if columns(line[:i]) == n), None)


# -- terminals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "wanted"), WIDE.items())
def test_columns_of_a_terminal(text, wanted):
    assert columns(text) == wanted


@pytest.mark.parametrize("width", [100, 40])
@pytest.mark.parametrize("script", WORDS)
def test_lines_are_aligned_and_nothing_moves_the_cursor(script, width):
    group = group_of(WORDS[script], prompt="".join(WORDS[script]))
    text = tree_text(group.tree, group.rewards, group.labels, prompt=group.prompt, width=width)
    assert all(c.isprintable() for c in text.replace("\n", ""))
    assert not set(text) & set("\ufe0f\u3164")
    head, *lines = text.split("\n\n")[1].split("\n")
    place = columns(head[: head.index("members")])
    assert all(
        re.fullmatch(r"[0-9]   y[-y0-9 ]+", after_columns(line, place - 4)) for line in lines
    )
    assert len(lines) >= len(WORDS[script])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\u200bb\u200dc", r"a\u200bb\u200dc"),
        ("\u202eevil", r"\u202eevil"),
        ("\u0301a", r"\u0301a"),  # would stand on the tree's branch
        ("e\u0301", "e\u0301"),
        ("❤\ufe0f", "❤\\ufe0f"),
        ("\U000e0101x", r"\U000e0101x"),
        ("a\xa0b\u3000", r"a\xa0b\u3000"),
        ("\ud83d", r"\ud83d"),
        ("a\r\nb\tc", r"a\r↵b⇥c"),
        ("", ""),
    ],
)
def test_what_shows_nothing_is_escaped(text, shown):
    assert visible(text) == shown
    shown.encode("utf-8")


def test_shortened_texts_are_cut_between_characters():
    assert shorten("\\u4e2d\\u6587\\u4e2d\\u6587", 20) == "\\u4e2d\\u6587…\\u6587"
    for width in range(12, 30):
        cut = shorten("e\u0301" * 10 + "\\u4e2d" * 3 + "中文" * 9 + "e\u0301" * 10, width)
        head, tail = cut.split("…")
        assert columns(cut) <= width and (not tail or columns(tail[0]))
        assert head.count("\\") == head.count("\\u4e2d") and tail.count("\\") == tail.count(
            "\\u4e2d"
        )


# -- figures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", WORDS)
def test_figures_have_no_boxes_and_no_warnings(script):
    group = group_of(WORDS[script], prompt=WORDS[script][0] * 9)
    draws = [
        lambda: draw_tree(group.tree, group.rewards, group.labels, title=group.prompt),
        lambda: draw_trees_page([group, group]),
        lambda: learning_curves(
            {visible(word): [[0.0, 1.0]] for word in WORDS[script]}, title=printed(group.prompt, 50)
        ),
    ]
    for draw in draws:
        for text, box in without_warnings(draw):
            if re.fullmatch(r"[−0-9.]+", text.get_text()):
                continue  # numbers of the axes, those beyond its ends too
            assert text.figure.bbox.x0 <= box.x0 and box.x1 <= text.figure.bbox.x1, text.get_text()


def make_font(path, name, letters, advance):
    """A font of our own: each letter a full square."""
    pen = TTGlyphPen(None)
    for point in ((0, 0), (0, 800), (900, 800), (900, 0)):
        pen.lineTo(point) if pen.points else pen.moveTo(point)
    pen.closePath()
    glyph, names = pen.glyph(), {ord(c): f"g{ord(c):x}" for c in letters}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    builder.setupGlyf(dict.fromkeys([".notdef", *names.values()], glyph))
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names.values()], (advance, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install fonts for a test: name, letters, advance of each letter in thousandths of the font's
    size.
    """
    manager = matplotlib.font_manager.fontManager
    monkeypatch.setattr(manager, "ttflist", list(manager.ttflist))
    return lambda name, letters, advance=1000: manager.addfont(
        make_font(tmp_path / f"{name}.ttf", name, letters, advance)
    )


def test_an_installed_font_draws_what_it_has(install, caplog):
    assert fonts_for("中文ab\U000f1234") == ()  # no font of this machine
    install("Aa Test Last Resort", "中文语")
    install("Bb Test Color Emoji", "中文语")
    install("Cc Test Script", "中文")
    install("Dd Test Script", "文语")
    assert fonts_for("ab中文语言") == ("Cc Test Script", "Dd Test Script")
    group = group_of(["中文a", "中语a", "言b"], prompt="中文语言")
    title = group.prompt
    for draw in (
        lambda: draw_tree(group.tree, group.rewards, group.labels, title=title),
        lambda: draw_trees_page([group]),
    ):
        shown = {text.get_text(): text.get_family() for text, _ in without_warnings(draw)}
        assert list(shown["中文语\\u8a00"]) == ["DejaVu Sans", "Cc Test Script", "Dd Test Script"]
    assert not caplog.records  # that it has no bold letters is no news
    shown = [t.get_text() for t, _ in written(draw_tree(group.tree, labels=group.labels))]
    assert {"中", "文a", "语a", "\\u8a00b"} <= set(shown)
    curves = learning_curves(
        {"中文": [[0.0, 1.0]], "语言": [[0.0, 1.0]]}, title="中", xlabel="文", ylabel="语"
    )
    assert {"中文", "语\\u8a00", "中", "文", "语"} <= {t.get_text() for t, _ in written(curves)}


def test_a_font_that_went_away_is_passed_over(install, tmp_path):
    install("Ee Test Gone", "中")
    install("Ff Test Here", "中")
    (tmp_path / "Ee Test Gone.ttf").unlink()
    matplotlib.font_manager._get_font.cache_clear()
    assert fonts_for("中") == ("Ff Test Here",)


@pytest.mark.parametrize("advance", [500, 1000, 2500])
def test_boxes_are_as_wide_as_the_letters_of_any_font(install, advance):
    install(f"Gg Test {advance}", "ᚠᚢ𐤀中", advance)
    group = group_of(["ᚠᚢ" * 8, "𐤀" * 12, "中" * 9])
    figure = draw_tree(group.tree, group.rewards, group.labels)
    boxes = written(figure)
    frames = [
        patch.get_window_extent()
        for patch in figure.axes[0].patches
        if isinstance(patch, FancyBboxPatch)
    ]
    long = [box for text, box in boxes if set(text.get_text()) & set("ᚠ𐤀中")]
    assert len(long) == 3
    assert all(
        any(frame.x0 <= box.x0 and box.x1 <= frame.x1 for frame in frames if frame.overlaps(box))
        for box in long
    )


# -- what is not drawn needs no matplotlib ---------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [["tree", "group.json"], ["tree", "group.json", "--ascii"], ["--help"], ["plot", "--help"]],
)
def test_matplotlib_is_only_imported_to_draw(arguments, tmp_path):
    (tmp_path / "group.json").write_text(
        json.dumps({"completions": ["ab", "ac", "b"], "rewards": [1, 0, 0]})
    )
    code = "import sys, contextlib\nfrom minigrpo.command.cli import main\n"
    code += "with contextlib.suppress(SystemExit):\n    main(sys.argv[1:])\n"
    code += "found = [name for name in sys.modules if name.split('.')[0] == 'matplotlib']\n"
    code += "print(*found, sep='', end='', file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert (done.returncode, done.stderr) == (0, "") and done.stdout
