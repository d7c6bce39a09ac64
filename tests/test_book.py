"""The web book's tools: links are mended when it is built, and the check of a built book finds what
is wrong with a page.  CI builds the whole book and checks it (.ci/run).
"""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from chromium import CHROMIUM, in_browser

ROOT = Path(__file__).parents[1]


def tool(name):
    file = ROOT / f"tutorials/book/{name}.py"
    spec = importlib.util.spec_from_file_location(f"book_{name}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build, check = tool("build"), tool("check")


# -- building --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](../README.md#commands)", "[a](../README.md#commands)"),  # a page
        ("[a](05_a_group_is_a_tree.ipynb)", "[a](05_a_group_is_a_tree.ipynb)"),
        ("[a](../minigrpo)", "[a](../minigrpo/README.md)"),  # a folder with a page
        ("see [a `b`](solutions/)!", "see a `b`!"),  # a folder without one
        ("[a](one_page.py#L3)", "[a](one_page.py)"),  # a file
        ("[a](https://example.org/x)", "[a](https://example.org/x)"),
        ("[a](#here), [b](gone.md)", "[a](#here), [b](gone.md)"),  # Sphinx warns of the second
        ("![a](../results/tree.png)", "![a](../results/tree.png)"),
        ("`[a](solutions/)`", "`[a](solutions/)`"),
        ("```\n[a](solutions/)\n```", "```\n[a](solutions/)\n```"),
        ("[[a]](solutions/)", "[a]"),
    ],
)
def test_links_lead_somewhere(text, expected):
    assert build.mended(text, ROOT / "tutorials/README.md") == expected


def test_with_a_repository_links_to_files_lead_there(monkeypatch):
    monkeypatch.setattr(build, "REPOSITORY", "https://example.org/blob/main")
    text = "[a](one_page.py#L3) [b](solutions) [c](README.md) [d](../results)"
    expected = "[a](https://example.org/blob/main/tutorials/one_page.py#L3) "
    expected += "[b](https://example.org/blob/main/tutorials/solutions) [c](README.md) "
    expected += "[d](../results/README.md)"
    assert build.mended(text, ROOT / "tutorials/README.md") == expected


def test_a_notebook_becomes_a_page():
    def cell(kind, source, *tags):
        return {"cell_type": kind, "source": [source], "metadata": {"tags": list(tags)}}

    cells = [cell("code", "x = 1", "setup"), cell("markdown", "## 5.2 The *tree* of $y_i$\nIt")]
    cells += [cell("code", "import numpy"), cell("code", "plot(x)")]
    build.prepare_notebook({"cells": cells}, str.upper)
    assert cells[0]["metadata"]["tags"] == ["setup", "remove-cell"]
    assert cells[1]["source"].startswith("## 5.2 THE")
    assert "hide-input" in cells[2]["metadata"]["tags"]
    assert cells[3]["metadata"]["tags"] == []
    alt = cells[3]["metadata"]["mystnb"]["image"]["alt"]
    assert alt == "Figure of the section 5.2 The tree of y_i"


def test_all_chapters_and_documents_of_the_course_are_in_the_book():
    index = (ROOT / "tutorials/book/index.md").read_text(encoding="utf-8")
    for file in [*(ROOT / "tutorials").glob("*.ipynb"), *(ROOT / "tutorials").glob("*.md")]:
        assert f"\n../{file.name}\n" in index
    assert sorted(re.findall(r"\n\.\./(0.*)\.ipynb", index)) == re.findall(
        r"\n\.\./(0.*)\.ipynb", index
    )


def test_another_folder_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "distribution", str)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="holds something that is no book"):
        build.main(["--out", str(tmp_path)])
    assert (tmp_path / "mine.txt").exists()


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    def nothing(name):
        raise build.PackageNotFoundError(name)

    monkeypatch.setattr(build, "distribution", nothing)
    with pytest.raises(SystemExit, match=r'the book needs sphinx: pip install -e "\.\[book\]"'):
        build.main(["--out", str(tmp_path / "book")])


# -- checking --------------------------------------------------------------------------------------

GOOD = """<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<h1 id="top">A page</h1><a href="#top">a</a> <a href="other.html#x%20y">b</a> <a href="sub/">c</a>
<a href="https://example.org/">d</a> <img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=" alt="e">
<div style="overflow-x: auto"><div style="width: 900px">wide</div></div><pre>$$ \\frac</pre>"""


def book(folder, page=GOOD):
    (folder / "sub").mkdir()
    (folder / "a.html").write_text(page, encoding="utf-8")
    (folder / "other.html").write_text('<p id="x y">', encoding="utf-8")
    (folder / "sub/index.html").write_text("<p>", encoding="utf-8")
    return folder.resolve()


def test_a_good_page_has_no_faults(tmp_path):
    assert check.faults_in_files(book(tmp_path)) == []


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ('<a href="gone.html">', "there is no gone.html"),
        ('<a href="../a.html">', "there is no ../a.html"),  # out of the book
        ('<a href="other.html#z">', "there is no place other.html#z"),
        ('<a href="#z">', "there is no place #z"),
        ('<img src="gone.png" alt="x">', "there is no gone.png"),
        ('<img src="other.html">', "a picture without a text instead"),
        ('<img src="other.html" alt=" ">', "a picture without a text instead"),
        ('<script src="https://example.org/x.js"></script>', "from elsewhere"),
        ('<link rel="stylesheet" href="//example.org/x.css">', "from elsewhere"),
        ('<iframe src="http://example.org"></iframe>', "from elsewhere"),
    ],
)
def test_faults_in_files_are_found(more, fault, tmp_path):
    (found,) = check.faults_in_files(book(tmp_path, GOOD + more))
    assert found.startswith("a.html: ")
    assert fault in found


@in_browser
def test_faults_in_a_browser_are_found(tmp_path):
    """All in one start: a page for each fault, and one without."""
    faults = {
        "good": ("", ""),
        "wide": ('<div style="width: 500px">x</div>', "points wide on a screen of 390"),
        "formula": ('<span class="math">\\(x\\)</span>', "a formula is not drawn"),
        "error": (
            '<p class="math"><mjx-container><g data-mml-node="merror"></g></mjx-container></p>',
            "a formula is not drawn",
        ),
        "plain": ("<p>so $$x$$ is</p>", "mathematics as plain text"),
        "tex": ("<p>so \\frac12 is</p>", "mathematics as plain text"),
        "asks": ('<img src="gone.png" alt="x">', "/gone.png is asked for"),
        "console": ("<script>throw new Error('oh')</script>", "console: "),
    }
    folder = book(tmp_path)
    (folder / "a.html").unlink()
    for name, (more, _) in faults.items():
        (folder / f"{name}.html").write_text(GOOD + more, encoding="utf-8")
    said = []
    found = check.faults_in_browser(folder, CHROMIUM, said.append)
    assert said == [f"{len(faults) + 2} pages looked at in a browser"]
    for name, (_, fault) in faults.items():
        own = [f for f in found if f.startswith((f"/{name}.html", "/gone")) or "oh" in f]
        assert not fault or [f for f in own if fault in f], (name, found)
    assert [f for f in found if "good.html" in f or "other.html" in f] == []


def test_the_command_wants_a_book(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["check.py", "gone"])
    with pytest.raises(SystemExit, match=r"usage: .*BOOK"):
        check.main()
