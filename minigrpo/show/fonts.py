"""Text of any script in figures: every letter in a font that has it, or as an escape, never a box.

Every figure of this package is drawn by a function that `styled` wraps.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import wraps
from typing import ParamSpec

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text

from minigrpo.show.drawing import STYLE
from minigrpo.system.text import escape, shorten, visible

Given = ParamSpec("Given")
Fonts = tuple[str, ...]  # their names; a letter is drawn by the first that has it
SANS, MONO = ("DejaVu Sans",), ("DejaVu Sans Mono", "DejaVu Sans")
# Fonts of boxes, of pictures, and of letters in the places of other letters.
UNFIT = re.compile("Last ?Resort|Color|Blank|^cm|NonUnicode")
# A font without bold letters gives its regular ones for a title: standard error need not say so.
logging.getLogger("matplotlib.font_manager").addFilter(
    lambda record: "Failed to find font weight" not in record.getMessage()
)


def styled(draw: Callable[Given, Figure]) -> Callable[Given, Figure]:
    """Let a function that draws a figure do so in this package's style and in legible fonts."""

    @wraps(draw)
    def wrapped(*args: Given.args, **options: Given.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return legible(draw(*args, **options))

    return wrapped


def legible(figure: Figure) -> Figure:
    """Give every text the fonts that it needs, and escapes for what no font has."""
    others = fonts_for("".join(text.get_text() for text in figure.findobj(Text)))
    for text in figure.findobj(Text):
        fonts = (MONO if "monospace" in text.get_family() else SANS) + others
        text.set(text=drawable(text.get_text(), fonts, text.get_weight()), family=fonts)
    return figure


def fonts_for(text: str) -> Fonts:
    """Installed fonts that together draw what DejaVu lacks of a text, as far as any do."""
    regular, bold = (findfont(FontProperties(family=SANS, weight=w)) for w in ("normal", "bold"))
    missing, names = _missing(text, [regular, bold]), []
    if missing:
        fonts = sorted(fontManager.ttflist, key=lambda f: (f.style != "normal", f.name, f.fname))
        for font in fonts:
            if not UNFIT.search(font.name) and (rest := _missing(missing, [font.fname])) < missing:
                missing = rest
                names.append(font.name)
    return tuple(names)


def drawable(text: str, fonts: Fonts, weight: str = "normal") -> str:
    """The text with an escape, such as \\u4e2d, for every character that none of the fonts has."""
    files = (findfont(FontProperties(family=font, weight=weight)) for font in fonts)
    missing = _missing(text, files)
    return "".join(escape(c) if c in missing else c for c in text)


def printed(text: str, width: int, weight: str = "normal") -> str:
    """The text in one line, with escapes where they are needed, cut to at most width columns."""
    line = visible(text)
    return shorten(drawable(line, SANS + fonts_for(line), weight), width)


def _missing(text: Iterable[str], files: Iterable[str]) -> set[str]:
    """The characters of a text that none of the font files has."""
    missing = {c for c in text if not c.isascii()}
    for file in files if missing else ():
        with suppress(OSError, RuntimeError):  # damaged, or removed since matplotlib listed it
            missing = {c for c in missing if not get_font(file).get_char_index(ord(c))}
    return missing
