"""Build the course as a static web book, which needs no network, neither now nor when it is read.

    pip install -e ".[book]"
    python tutorials/book/build.py --out book            # then open book/index.html
    python tutorials/book/check.py book                  # every page in a real browser

Sphinx works on a copy of the repository, so that relative links in notebooks and documents mean the
same in the book.  A link to a file that is no page of the book gives the file itself; with
REPOSITORY it leads there.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# The web address of a published repository's files, such as "https://…/minigrpo/blob/main".
REPOSITORY: str | None = None
PARTS = ["tutorials", "minigrpo", "results", "benchmarks", "tests", ".ci", ".github"]
PARTS += ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "LICENSE"]
PARTS += ["pyproject.toml", "setup.py", "MANIFEST.in"]
# Code, in which brackets are no links, or a link: its words and where it leads.
LINK = re.compile(
    r"```.*?```|(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)|`[^`\n]*`", re.DOTALL
)


def mended(text: str, file: Path) -> str:
    """A page's text, in which links to folders and to files that are no pages lead somewhere."""

    def link(match: re.Match[str]) -> str:
        words, target = match.groups()
        if target is None:
            return match[0]
        path, _, place = target.partition("#")
        there = (file.parent / path).resolve()
        if re.match(r"[a-z]+:", target) or not path or not there.exists():
            return match[0]
        if there.is_dir() and (there / "README.md").is_file():
            return f"[{words}]({path.rstrip('/')}/README.md)"
        if there.suffix in {".md", ".ipynb"} and not there.is_dir():
            return match[0]
        if REPOSITORY is not None:
            anchor = f"#{place}" if place else ""
            return f"[{words}]({REPOSITORY}/{there.relative_to(ROOT).as_posix()}{anchor})"
        return words if there.is_dir() else f"[{words}]({path})"

    return LINK.sub(link, text)


def prepare_notebook(notebook: dict[str, Any], mend: Callable[[str], str]) -> None:
    """Change a notebook, in place, into a page: no setup cell, figures with a text instead."""
    place = ""
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            cell["source"] = mend(source)
            headings = re.findall(r"^#{1,3} (.+)$", source, re.MULTILINE)
            place = re.sub(r"[$*`\\]", "", headings[-1]) if headings else place
        if cell["cell_type"] == "code":
            tags = cell["metadata"].setdefault("tags", [])
            tags += ["remove-cell"] if "setup" in tags else []
            tags += ["hide-input", "remove-output"] if "\nimport " in f"\n{source}" else []
            cell["metadata"]["mystnb"] = {"image": {"alt": f"Figure of the section {place}"}}


def copy_sources(folder: Path) -> None:
    """The repository's files, with pages as the book has them."""
    ignored = shutil.ignore_patterns("__pycache__", "*.cache.jsonl", "warm-*", ".*.lock")
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        elif (ROOT / name).is_file():
            shutil.copy(ROOT / name, folder / name)
    for file in [*folder.rglob("*.md"), *folder.rglob("*.ipynb")]:
        original, text = ROOT / file.relative_to(folder), file.read_text(encoding="utf-8")
        if file.suffix == ".md":
            file.write_text(mended(text, original), encoding="utf-8")
        else:
            notebook = json.loads(text)
            prepare_notebook(notebook, lambda text, original=original: mended(text, original))
            file.write_text(json.dumps(notebook), encoding="utf-8")


def add_live_pages(extra: Path) -> None:
    """The explorer, the live walk and the slides, as they are."""
    from minigrpo.show.explorer import explorer_page

    extra.mkdir()
    (extra / "explorer.html").write_text(explorer_page(), encoding="utf-8")
    pass
    slides = [sys.executable, ROOT / "tutorials/slides/build.py", "--out", extra / "slides"]
    if (ROOT / "tutorials/slides").exists():
        subprocess.run(slides, check=True)
    first = '<!doctype html><meta charset="utf-8"><title>minigrpo, the course</title>'
    first += '<meta http-equiv="refresh" content="0; url=tutorials/book/index.html">'
    first += '<p><a href="tutorials/book/index.html">The course</a></p>\n'
    (extra / "index.html").write_text(first, encoding="utf-8")


def add_mathematics(static: Path) -> None:
    """MathJax with its fonts in one file, from the package sphinx-mathjax-offline."""
    package = distribution("sphinx-mathjax-offline")
    file = package.locate_file("sphinx-mathjax-offline/static/mathjax/tex-svg.js")
    shutil.copy(str(file), static / "tex-svg.js")


def build(out: Path) -> None:
    """Make the book.   Raises SystemExit if Sphinx warns."""
    from sphinx.cmd.build import build_main

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        copy_sources(folder)
        add_live_pages(folder / "tutorials/book/extra")
        add_mathematics(folder / "tutorials/book/static")
        settings = ["-c", str(folder / "tutorials/book"), "-d", str(folder / "doctrees")]
        if build_main(["-W", "--keep-going", "-q", *settings, str(folder), str(out)]):
            sys.exit("the book is not complete: see the warnings above")
    shutil.rmtree(out / ".doctrees", ignore_errors=True)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("book"), metavar="FOLDER")
    out = parser.parse_args(arguments).out.resolve()
    for name in ("sphinx", "myst-nb", "furo", "sphinx-mathjax-offline"):
        try:
            distribution(name)
        except PackageNotFoundError:
            sys.exit(f'the book needs {name}: pip install -e ".[book]"')
    if out.exists() and any(out.iterdir()) and not (out / "searchindex.js").exists():
        sys.exit(f"{out} holds something that is no book: take another folder")
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    build(out)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    pages = len(list(out.rglob("*.html")))
    took = f"{time.perf_counter() - start:.0f} s"
    print(f"{pages} pages, {size / 1e6:.0f} MB, in {took}: open {out / 'index.html'}")


if __name__ == "__main__":
    main()
