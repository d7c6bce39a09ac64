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
        ("[a](one_page.py#L3)", "[a](one_page.py.md)"),  # a Python file, which becomes a page
        ("[a](../LICENSE)", "[a](../LICENSE)"),  # another file
        ("[a](https://example.org/x)", "[a](https://example.org/x)"),
        ("[a](#here), [b](gone.md)", "[a](#here), [b](gone.md)"),  # Sphinx warns of the second
        ("![a](../results/tree.png)", "![a](../results/tree.png)"),
        ("`[a](solutions/)`", "`[a](solutions/)`"),
        ("```\n[a](solutions/)\n```", "```\n[a](solutions/)\n```"),
        ("[[a]](solutions/)", "[a]"),
    ],
)
def test_links_lead_somewhere(text, expected):
    linked = set()
    assert build.mended(text, ROOT / "tutorials/README.md", linked) == expected
    assert linked == ({Path("tutorials/one_page.py")} if ".py.md" in expected else set())


def test_with_a_repository_links_to_files_lead_there():
    text = "[a](one_page.py) [b](solutions) [c](README.md) [d](../results) [e](../LICENSE#L3)"
    expected = "[a](one_page.py.md) [b](https://example.org/blob/main/tutorials/solutions) "
    expected += "[c](README.md) [d](../results/README.md) "
    expected += "[e](https://example.org/blob/main/LICENSE#L3)"
    file, address = ROOT / "tutorials/README.md", "https://example.org/blob/main"
    assert build.mended(text, file, set(), address) == expected


def test_a_notebook_becomes_a_page():
    def cell(kind, source, *tags):
        return {"cell_type": kind, "source": [source], "metadata": {"tags": list(tags)}}

    cells = [cell("code", "x = 1", "setup"), cell("markdown", "## 5.2 The *tree* of $y_i$\nIt")]
    cells += [cell("code", "import numpy")]
    cells += [cell("code", 'left.set_title("GRPO: $|\\lambda|$"); right.set(title="two")')]
    build.prepare_notebook({"cells": cells}, str.upper)
    assert cells[0]["metadata"]["tags"] == ["setup", "remove-cell"]
    assert cells[1]["source"].startswith("## 5.2 THE")
    assert "hide-input" in cells[2]["metadata"]["tags"]
    assert cells[3]["metadata"]["tags"] == []
    alt = cells[3]["metadata"]["mystnb"]["image"]["alt"]
    assert alt == "Figure of the section 5.2 The tree of y_i; GRPO: |lambda|; two"


def test_all_chapters_and_documents_of_the_course_are_in_the_book():
    index = (ROOT / "tutorials/book/index.md").read_text(encoding="utf-8")
    for file in [*(ROOT / "tutorials").glob("*.ipynb"), *(ROOT / "tutorials").glob("*.md")]:
        assert f"\n../{file.name}\n" in index or f" <../{file.name}>\n" in index
    assert sorted(re.findall(r"\n\.\./(0.*)\.ipynb", index)) == re.findall(
        r"\n\.\./(0.*)\.ipynb", index
    )


def test_every_page_of_the_book_is_in_its_index_and_so_is_every_document_that_one_links():
    """What Sphinx would warn of, seen without Sphinx."""
    folder = ROOT / "tutorials/book"
    names = {"__file__": str(folder / "conf.py")}
    exec((folder / "conf.py").read_text(encoding="utf-8"), names)
    left_out = {f for pattern in names["exclude_patterns"] for f in ROOT.glob(pattern)}
    pages = {f for pattern in names["include_patterns"][:-1] for f in ROOT.glob(pattern)} - left_out
    index = (folder / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^(?:.*<)?(\S+?\.(?:md|ipynb)|one_page)>?$", index, re.MULTILINE)
    listed = {(folder / re.sub("^one_page$", "one_page.md", name)).resolve() for name in listed}
    assert listed | {folder / "index.md"} == pages
    for page in pages:
        for target in re.findall(r"\]\(([\w./-]+\.(?:md|ipynb))[)#]", page.read_text("utf-8")):
            assert (page.parent / target).resolve() in pages, (page, target)


@pytest.mark.parametrize("name", ["mine.txt", "searchindex.js"])  # the second: another's book
def test_another_folder_is_left_alone(name, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "distribution", str)
    (tmp_path / name).write_text("mine")
    with pytest.raises(SystemExit, match="holds something that is not this book"):
        build.main(["--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="is a file: take a folder"):
        build.main(["--out", str(tmp_path / name)])
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("address", ["github.com/me/minigrpo", "https://", "https://a b", ""])
def test_a_repository_is_a_web_address(address, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "distribution", str)
    with pytest.raises(SystemExit):
        build.main(["--out", str(tmp_path / "book"), "--repository", address])
    assert "--repository wants an address that begins with https://" in capsys.readouterr().err


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
        "half": ("<p>so $<b>x</b>$ is</p>", "mathematics as plain text"),
        "table": ("<p>| a | b |\n|:–|–:|\n| 1 | 2 |</p>", "Markdown as plain text"),
        "bold": ("<p>so **x** is</p>", "Markdown as plain text"),
        "link": ("<p>see [x](y.md)</p>", "Markdown as plain text"),
        "box": (
            '<main style="overflow: auto"><h1>A</h1><p style="width: 500px">x</main>',
            "has text 500 points wide in a box of ",
        ),
        "folded": ("<details><div style='width: 500px'>x</div></details>", "points wide on"),
        "elsewhere": (
            '<style>@import url("http://none.invalid/x.css")</style>',
            "loads http://none.invalid/x.css",
        ),
        "asks": ('<img src="gone.png" alt="x">', "/gone.png is asked for"),
        "console": ("<script>throw new Error('oh')</script>", "console: "),
        "searched": (
            "<script>if (/highlight=/.test(location)) throw new Error('oh, marked')</script>",
            "oh, marked",
        ),
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


SEARCH = """<!doctype html><meta charset="utf-8"><ul class="search"></ul><script>
setTimeout(() => document.querySelector("ul").innerHTML = RESULT, 100); MORE</script>"""


@in_browser
@pytest.mark.parametrize(
    ("result", "more", "fault"),
    [
        ("`<li>${decodeURI(location.search)}`", "", None),
        ("''", "", "finds nothing for 'process reward'"),
        ("'<li>x'", "fetch('other.html')", "console: "),  # what a page opened as a file may not do
    ],
)
def test_the_search_is_tried_without_a_server(result, more, fault, tmp_path):
    folder = book(tmp_path)
    page = SEARCH.replace("RESULT", result).replace("MORE", more)
    (folder / "search.html").write_text(page, encoding="utf-8")
    found = check.faults_in_search(folder, CHROMIUM)
    assert bool(found) == bool(fault)
    assert all(fault in line or "Failed to fetch" in line for line in found[:1])


def test_the_command_wants_a_book(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["check.py", "gone"])
    with pytest.raises(SystemExit, match=r"usage: .*BOOK"):
        check.main()
