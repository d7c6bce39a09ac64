"""Build the slides of the two lectures, and the handout: HTML that opens offline, and PDF.

    pip install -e ".[book]"
    python tutorials/slides/build.py --out slides     # then open slides/index.html
    python tutorials/slides/check.py slides           # every slide in Chromium

The sources are Markdown.  `## ` begins a slide, `+++` what appears at the next key, the line
`Notes (3 min):` what the speaker sees, `<!-- 10 minutes: … -->` a part of the lecture, whose slides
must add up to that.  A picture `![text](figure:name)` and a number `{{name}}` are from material.py.
reveal.js is that of the package sphinx-revealjs, MathJax that of sphinx-mathjax-offline, the fonts
are Matplotlib's.  PDF needs a Chromium or Chrome on the path.  A fault in a source is an error.
"""

from __future__ import annotations

import argparse
import html
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

HERE = Path(__file__).resolve().parent
DECKS, HANDOUT = ("lecture_1", "lecture_2"), "handout"
BUNDLED = {  # package: its files
    "sphinx-revealjs": [
        f"sphinx_revealjs/_static/revealjs/{file}"
        for file in ("dist/reveal.js", "dist/reveal.css", "plugin/notes/notes.js")
    ],
    "sphinx-mathjax-offline": ["sphinx-mathjax-offline/static/mathjax/tex-svg.js"],
    "matplotlib": [
        f"matplotlib/mpl-data/fonts/ttf/{file}"
        for file in (
            *(f"DejaVuSans{kind}.ttf" for kind in ("", "-Bold", "-Oblique", "Mono")),
            "LICENSE_DEJAVU",
        )
    ],
}
NEEDED = (*BUNDLED, "markdown-it-py", "mdit-py-plugins")
NOTES = re.compile(r"^Notes \((\d+(?:\.5)?) min\):\s*", re.MULTILINE)
PART = re.compile(r"^<!-- (\d+) minutes: (.+) -->$")


def to_html(text: str) -> str:
    """Markdown with tables and $mathematics$ -> HTML; a picture alone is a figure."""
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin

    def mathematics(content: str, options: dict) -> str:
        left, right = (r"\[", r"\]") if options["display_mode"] else (r"\(", r"\)")
        return left + html.escape(content.strip()) + right

    markdown = MarkdownIt("commonmark", {"xhtmlOut": False}).enable("table")
    markdown.use(dollarmath_plugin, renderer=mathematics, double_inline=True)
    return re.sub(r"<p>(<img [^>]*>)</p>", r"<figure>\1</figure>", markdown.render(text))


def filled(text: str, numbers: dict[str, str], source: str) -> str:
    """The text with its {{numbers}}.   Raises ValueError for one that there is not."""

    def number(match: re.Match[str]) -> str:
        if match[1] not in numbers:
            raise ValueError(f"{source}: there is no number {{{{{match[1]}}}}}")
        return numbers[match[1]]

    return re.sub(r"\{\{([^{}]+)\}\}", number, text)


def slides(text: str, source: str) -> tuple[str, list[tuple[str, str, str, float, str]]]:
    """A deck's title, and (title, body, notes, minutes, part) of each slide, all in Markdown.

    Raises ValueError for a slide without notes, and for parts that do not take what they say.
    """
    found, part, planned = [], "", {}
    heading, *rest = re.split(r"^(?=#{1,2} |<!-- \d+ minutes)", text, flags=re.MULTILINE)
    for piece in rest:
        first, _, below = piece.partition("\n")
        if match := PART.match(first):
            part = match[2]
            planned[part] = float(match[1])
            continue
        title = first.lstrip("# ")
        body, *noted = NOTES.split(below)
        if len(noted) != 2 or not noted[1].strip():
            raise ValueError(f"{source}, {title!r}: a slide needs one 'Notes (3 min):' and a text")
        found.append((title, body.strip(), noted[1].strip(), float(noted[0]), part))
    if heading.strip() or not found:
        raise ValueError(f"{source} must begin with a part, then a slide")
    for part, minutes in planned.items():
        took = sum(slide[3] for slide in found if slide[4] == part)
        if took != minutes:
            raise ValueError(
                f"{source}: {part!r} has {minutes:g} minutes, its slides take {took:g}"
            )
    return found[0][0], found


def deck_html(found: list[tuple[str, str, str, float, str]]) -> str:
    """The slides as reveal.js wants them: a section each, with its notes."""
    sections, now = [], 0.0
    for n, (title, body, notes, minutes, part) in enumerate(found):
        shown, *later = re.split(r"^\+\+\+$", body, flags=re.MULTILINE)
        inside = to_html(f"{'##' if n else '#'} {title}\n\n{shown}")
        inside += "".join(f'<div class="fragment">\n{to_html(x)}</div>\n' for x in later)
        when = f"**Minute {now:g} to {now + minutes:g} of 90** · {part}\n\n"
        kind = "figure" if "![" in body else "words"
        if not n or re.match("Predict|Vote", title):
            kind = "question" if n else "opening"
        note = f'<aside class="notes">\n{to_html(when + notes)}</aside>'
        sections.append(f'<section class="{kind}">\n{inside}{note}\n</section>')
        now += minutes
    return "\n".join(sections)


def page(kind: str, title: str, body: str) -> str:
    """A whole file: deck.html or handout.html with its title and body."""
    template = (HERE / f"{kind}.html").read_text(encoding="utf-8")
    return template.replace("TITLE", html.escape(title)).replace("BODY", body)


def smallest_text(svg: str) -> float:
    """The smallest font size in a figure of Matplotlib's, in points: its letters are paths."""
    sizes = []
    for size, letters in re.findall(r"scale\(([\d.]+) -(.*?)</g>", svg, re.DOTALL):
        inner = re.findall(r"translate\([^)]*\) scale\(([\d.]+)\)", letters)  # exponents
        sizes.append(100 * float(size) * min(map(float, inner), default=1))
    return min(sizes)


def add_pictures(body: str, out: Path, source: str) -> str:
    """Write the figures that a page names, and give their files in place of the names."""
    from material import figure

    def picture(match: re.Match[str]) -> str:
        name, words = html.unescape(match[1]), match[2]
        if not words.strip():
            raise ValueError(f"{source}: the figure {name!r} has no text instead")
        svg = figure(name)
        file = f"figures/{re.sub('[/.]', '_', name)}.svg"
        (out / "figures").mkdir(exist_ok=True)
        (out / file).write_text(svg, encoding="utf-8")
        width, height = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', svg).groups()
        smallest = smallest_text(svg) / float(width)  # as a share of its width
        size = f'width="{float(width):.0f}" height="{float(height):.0f}"'
        return f'<img src="{file}" alt="{words}" {size} data-smallest="{smallest:.5f}">'

    if other := re.search(r'<img src="(?!figure:)([^"]*)"', body):
        raise ValueError(f"{source}: write figure:NAME, not {other[1]!r}")
    return re.sub(r'<img src="figure:([^"]*)" alt="([^"]*)">', picture, body)


def find_chromium() -> str | None:
    """A Chromium or Chrome on the path."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next(filter(None, map(shutil.which, names)), None)


def print_pdf(chromium: str, file: Path) -> None:
    """The PDF beside an HTML file."""
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        flags += ["--no-pdf-header-footer", f"--print-to-pdf={file.with_suffix('.pdf')}"]
        address = file.as_uri() + ("" if file.stem == HANDOUT else "?print")
        flags += ["--virtual-time-budget=60000", address]
        done = subprocess.run([chromium, *flags], capture_output=True, timeout=300)
    if done.returncode or not file.with_suffix(".pdf").exists():
        sys.exit(f"Chromium did not print {file.name}: {done.stderr.decode()[-500:]}")


def add_packages(out: Path) -> None:
    """What slides need of packages, beside them."""
    for package, files in BUNDLED.items():
        for file in files:
            shutil.copy(str(distribution(package).locate_file(file)), out)


def build(out: Path) -> None:
    """Write everything into a folder.   Raises ValueError for a fault in a source."""
    from material import numbers

    out.mkdir(parents=True, exist_ok=True)
    add_packages(out)
    values = numbers()
    for name in (*DECKS, HANDOUT):
        source = f"{name}.md"
        text = filled((HERE / source).read_text(encoding="utf-8"), values, source)
        if name == HANDOUT:
            title, kind, body = text.partition("\n")[0].lstrip("# "), "handout", to_html(text)
        else:
            (title, found), kind = slides(text, source), "deck"
            body = deck_html(found)
        body = add_pictures(body, out, source)
        (out / f"{name}.html").write_text(page(kind, title, body), encoding="utf-8")


def add_index(out: Path) -> None:
    """The page that leads to all of it."""
    lines = ["# Slides and handout", "Two lectures of 90 minutes, with speaker notes."]
    for name in (*DECKS, HANDOUT):
        title = re.search("<title>(.*)</title>", (out / f"{name}.html").read_text(encoding="utf-8"))
        pdf = f" · [PDF]({name}.pdf)" if (out / f"{name}.pdf").exists() else ""
        lines.append(f"[**{html.unescape(title[1])}**]({name}.html){pdf}")
    keys = "Keys: arrows or space go on, **S** opens the notes, **F** fills the screen, **B** is "
    keys += "black, **Esc** shows all slides. The address with `?print` behind it can be printed."
    lines.append(keys)
    body = to_html("\n\n".join(lines))
    (out / "index.html").write_text(page("handout", "Slides and handout", body), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("slides"), metavar="FOLDER")
    out = parser.parse_args(arguments).out.resolve()
    for name in NEEDED:
        try:
            distribution(name)
        except PackageNotFoundError:
            sys.exit(f'the slides need {name}: pip install -e ".[book]"')
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / "reveal.js").exists()):
        sys.exit(f"{out} holds something that is no slides: take another folder")
    shutil.rmtree(out, ignore_errors=True)
    try:
        build(out)
    except ValueError as error:
        sys.exit(f"the slides are not complete: {error}")
    if chromium := find_chromium():
        for name in (*DECKS, HANDOUT):
            print_pdf(chromium, out / f"{name}.html")
    add_index(out)
    made = "HTML and PDF" if chromium else "HTML; no Chromium or Chrome on the path, so no PDF"
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{made}, {size / 1e6:.0f} MB: open {out / 'index.html'}")


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
