"""Build the course as a static web book, which needs no network, neither now nor when it is read.

    pip install -e ".[book]"
    python tutorials/book/build.py --out book            # then open book/index.html
    python tutorials/book/check.py book                  # every page in a real browser

Sphinx works on a copy of the repository, so that relative links in notebooks and documents mean the
same in the book.  A Python file that is linked becomes a page.  A link to another file gives the
file itself, and one to a folder is plain text; with --repository both lead to that address.
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
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PARTS = ["tutorials", "minigrpo", "results", "benchmarks", "vectors", "tests", ".ci", ".github"]
PARTS += ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "LICENSE"]
PARTS += ["pyproject.toml", "setup.py", "MANIFEST.in"]
FIRST_PAGE = "tutorials/book/index.html"
# Code, in which brackets are no links, or a link: its words and where it leads.
LINK = re.compile(
    r"```.*?```|(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)|`[^`\n]*`", re.DOTALL
)


def mended(text: str, file: Path, linked: set[Path], repository: str | None = None) -> str:
    """A page's text, in which links to folders and to files that are no pages lead somewhere.

    linked gains the Python files for which the text now needs a page.
    """

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
        if there.suffix == ".py":
            linked.add(there.relative_to(ROOT))
            return f"[{words}]({path}.md)"
        if repository is not None:
            anchor = f"#{place}" if place else ""
            return f"[{words}]({repository}/{there.relative_to(ROOT).as_posix()}{anchor})"
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
            titles = [t for t in re.findall(r'title(?:\(|=)"([^"]+)"', source) if "{" not in t]
            about = re.sub(r"[$\\]", "", "; ".join([place, *titles]))
            cell["metadata"]["mystnb"] = {"image": {"alt": f"Figure of the section {about}"}}


def copy_sources(folder: Path, repository: str | None) -> None:
    """The repository's files, with pages as the book has them."""
    ignored = shutil.ignore_patterns(
        "__pycache__", ".ipynb_checkpoints", "*.cache.jsonl", "warm-*", ".*.lock"
    )
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        elif (ROOT / name).is_file():
            shutil.copy(ROOT / name, folder / name)
    linked: set[Path] = set()
    for file in [*folder.rglob("*.md"), *folder.rglob("*.ipynb")]:
        original, text = ROOT / file.relative_to(folder), file.read_text(encoding="utf-8")
        mend = partial(mended, file=original, linked=linked, repository=repository)
        if file.suffix == ".md":
            file.write_text(mend(text), encoding="utf-8")
        else:
            notebook = json.loads(text)
            prepare_notebook(notebook, mend)
            file.write_text(json.dumps(notebook), encoding="utf-8")
    for file in linked:
        page = f"---\norphan: true\n---\n# `{file.as_posix()}`\n\n"
        page += f"```{{literalinclude}} {file.name}\n:language: python\n```\n"
        (folder / f"{file}.md").write_text(page, encoding="utf-8")


def add_live_pages(extra: Path) -> None:
    """The explorer, the live walk and the slides, as they are."""
    from minigrpo.show.explorer import explorer_page, walk_page

    extra.mkdir()
    (extra / "explorer.html").write_text(explorer_page(), encoding="utf-8")
    (extra / "walk.html").write_text(walk_page(), encoding="utf-8")
    slides = [sys.executable, ROOT / "tutorials/slides/build.py", "--out", extra / "slides"]
    if (ROOT / "tutorials/slides").exists() and subprocess.run(
        slides, stdout=subprocess.DEVNULL
    ).returncode:
        sys.exit("the book is not complete: its slides could not be built, see above")
    first = '<!doctype html><meta charset="utf-8"><title>minigrpo, the course</title>'
    first += f'<meta http-equiv="refresh" content="0; url={FIRST_PAGE}">'
    first += f'<p><a href="{FIRST_PAGE}">The course</a></p>\n'
    (extra / "index.html").write_text(first, encoding="utf-8")


def add_mathematics(static: Path) -> None:
    """MathJax with its fonts in one file, from the package sphinx-mathjax-offline."""
    package = distribution("sphinx-mathjax-offline")
    file = package.locate_file("sphinx-mathjax-offline/static/mathjax/tex-svg.js")
    shutil.copy(str(file), static / "tex-svg.js")


def build(out: Path, repository: str | None = None) -> None:
    """Make the book, in place of the one that was there.   Raises SystemExit if Sphinx warns."""
    from sphinx.cmd.build import build_main

    with tempfile.TemporaryDirectory() as temporary:
        folder, book = Path(temporary).resolve() / "sources", Path(temporary).resolve() / "book"
        copy_sources(folder, repository)
        add_live_pages(folder / "tutorials/book/extra")
        add_mathematics(folder / "tutorials/book/static")
        settings = ["-c", str(folder / "tutorials/book"), "-d", str(folder / "doctrees")]
        if build_main(["-W", "--keep-going", "-q", *settings, str(folder), str(book)]):
            sys.exit("the book is not complete: see the warnings above")
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(book, out)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("book"), metavar="FOLDER")
    parser.add_argument(
        "--repository",
        metavar="ADDRESS",
        help="of the published files, such as https://github.com/NAME/minigrpo/blob/main",
    )
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    for name in ("sphinx", "myst-nb", "furo", "sphinx-mathjax-offline"):
        try:
            distribution(name)
        except PackageNotFoundError:
            sys.exit(f'the book needs {name}: pip install -e ".[book]"')
    if out.exists() and not out.is_dir():
        sys.exit(f"{out} is a file: take a folder")
    if out.exists() and any(out.iterdir()) and not (out / FIRST_PAGE).exists():
        sys.exit(f"{out} holds something that is not this book: take another folder")
    repository = options.repository
    if repository is not None and not re.fullmatch(r"https?://\S+", repository):
        parser.error(f"--repository wants an address that begins with https://, not {repository!r}")
    start = time.perf_counter()
    build(out, repository and repository.rstrip("/"))
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    pages = len(list(out.rglob("*.html")))
    took = f"{time.perf_counter() - start:.0f} s"
    print(f"{pages} pages, {size / 1e6:.0f} MB, in {took}: open {out / 'index.html'}")


if __name__ == "__main__":
    main()
