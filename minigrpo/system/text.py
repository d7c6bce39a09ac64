"""Other people's text in one printable line: what is invisible or moves the cursor is escaped.

The width of a text is counted in terminal columns, of which a Chinese character takes two.
"""

from __future__ import annotations

import re
import unicodedata

MARKS = {"\n": "↵", "\t": "⇥"}
# Unicode calls these characters printable, but nobody sees them: joiners, fillers, variation
# selectors, the empty Braille cell.
HIDDEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)
ESCAPE_OR_CHARACTER = re.compile(r"(?s)\\x[0-9a-f]{2}|\\u[0-9a-f]{4}|\\U[0-9a-f]{8}|.")
# What this package draws with, for terminals without Unicode.
TO_ASCII = str.maketrans("│├└─…␣↵⇥∎λÂ█×−–μ±", "||`-~_/>#LA#x--u~")


def escape(character: str) -> str:
    """A character as Python's escape: \\x1b, \\u200b, \\U0001f9e0."""
    return character.encode("unicode_escape").decode()


def visible(text: str) -> str:
    """The text in one line: line ends as ↵, spaces at its ends as ␣, what nobody sees escaped."""
    text = "".join(
        MARKS.get(c) or (c if c.isprintable() and not HIDDEN.match(c) else escape(c)) for c in text
    )
    if text and not columns(text[0]):  # a combining mark would join what stands before the text
        text = escape(text[0]) + text[1:]
    left, right = len(text) - len(text.lstrip(" ")), len(text.rstrip(" "))
    return "␣" * left + text[left:right] + "␣" * (len(text) - max(left, right))


def columns(text: str) -> int:
    """The number of terminal columns of a text: wide characters take two, combining marks none."""

    def width(c: str) -> int:
        joins = "\u1160" <= c <= "\u11ff" or "\ud7b0" <= c <= "\ud7ff"  # Korean vowels and finals
        if joins or unicodedata.category(c) in ("Mn", "Me"):
            return 0
        return 1 + (unicodedata.east_asian_width(c) in "WF")

    return sum(map(width, text))


def shorten(text: str, width: int) -> str:
    """The text, cut by an ellipsis to at most `width` columns: two thirds of them are its start."""
    if columns(text) <= width:
        return text
    units = ESCAPE_OR_CHARACTER.findall(text)  # so that no escape is cut in two
    third = max(width - 1, 0) // 3
    head, tail = units[:width], units[len(units) - third :]
    while tail and (columns("".join(tail)) > third or not columns(tail[0])):
        tail = tail[1:]
    while head and columns("".join(head + tail)) > width - 1:
        head = head[:-1]
    return "".join([*head, "…", *tail])


def plain(text: str) -> str:
    """The text in ASCII: this package's own signs are replaced letter for letter, others by "?"."""
    text = "".join(c for c in text if not unicodedata.combining(c))
    return text.translate(TO_ASCII).encode("ascii", "replace").decode()
