"""The slides of the two lectures: their sources keep to the plan, no measured number is typed, and
the tools find what is wrong.  CI builds the slides and looks at every one in a browser (.ci/run).
"""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from chromium import CHROMIUM, in_browser
from test_numbers import claims

FOLDER = Path(__file__).parents[1] / "tutorials/slides"
SOURCES = ["lecture_1", "lecture_2", "handout"]
TEXTS = {name: (FOLDER / f"{name}.md").read_text(encoding="utf-8") for name in SOURCES}


@pytest.fixture(scope="module")
def tools():
    """The modules build, material and check, which import each other by these names."""
    sys.path.insert(0, str(FOLDER))
    names = ("build", "material", "check")
    before = {name: sys.modules.pop(name, None) for name in names}
    found = {}
    for name in names:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        found[name] = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found[name])
    yield found
    sys.path.remove(str(FOLDER))
    for name in names:
        del sys.modules[name]
        if before[name] is not None:
            sys.modules[name] = before[name]


needs_book = pytest.mark.skipif(
    any(
        importlib.util.find_spec(name) is None
        for name in ("markdown_it", "mdit_py_plugins", "sphinx_revealjs")
    ),
    reason='the packages of the extra "book" are not here',
)

# -- the sources -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lecture", [1, 2])
def test_a_lecture_keeps_to_the_minutes_of_its_plan(tools, lecture):
    guide = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    plan = guide.split(f"**Lecture {lecture}:")[1].split("\n\n")[1]
    planned = [int(row) for row in re.findall(r"^\| (\d+) \|", plan, re.MULTILINE)]
    parts = re.findall(r"^<!-- (\d+) minutes", TEXTS[f"lecture_{lecture}"], re.MULTILINE)
    assert [int(minutes) for minutes in parts] == planned and sum(planned) == 90
    _, found = tools["build"].slides(TEXTS[f"lecture_{lecture}"], "source")
    assert 30 <= len(found) <= 40
    assert sum(re.match("Predict|Vote", title) is not None for title, *_ in found) >= 5


def test_every_number_and_figure_that_a_slide_names_is_there(tools):
    numbers, material = tools["material"].numbers(), tools["material"]
    named = {x for text in TEXTS.values() for x in re.findall(r"\{\{([^{}]+)\}\}", text)}
    assert named <= numbers.keys()
    figures = [
        x for text in TEXTS.values() for x in re.findall(r"!\[[^\]]+\]\(figure:([^)]+)\)", text)
    ]
    assert len(figures) == sum(text.count("![") for text in TEXTS.values()) > 20
    for name in figures:
        if name not in material.DRAWN:
            assert "<svg" in material.chapter_figure(*name.split("/"))


# Chosen for an example or worked out beside it; everything else is filled in by the build.
CHOSEN = (
    "0.7 0.18 0.80 0.02 5.7 0.3 0.6 0.1 0.75 0.9 0.5 0.99 0.2 1.5 −1.5 −1.2 2.5 0.0000 0.00 1 95"
)


@pytest.mark.parametrize("name", SOURCES)
def test_no_measured_number_is_typed(name):
    text = re.sub(r"\{\{.*?\}\}|\]\(.*?\)|Notes \(.*?\)|<!-- \d+ minutes", "", TEXTS[name])
    assert {match[0].lstrip("+-") for match in claims(text)} <= set(CHOSEN.split())
    assert [match[0] for match in claims(f"{text} It is 0.137 here.")][-1] == "0.137"


# -- that the tools find what is wrong -------------------------------------------------------------

GOOD = "<!-- 2 minutes: A part -->\n\n# A title\n\nWords.\n\nNotes (2 min): Say it.\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("Notes (2 min): Say it.", ""), "needs one 'Notes"),
        (GOOD.replace("Say it.", ""), "needs one 'Notes"),
        (GOOD + "\nNotes (1 min): Twice.\n", "needs one 'Notes"),
        (GOOD.replace("(2 min)", "(3 min)"), "has 2 minutes, its slides take 3"),
        ("Words first.\n\n" + GOOD, "must begin with a part"),
        ("", "must begin with a part"),
    ],
)
def test_a_fault_in_a_source_is_named(tools, text, message):
    assert tools["build"].slides(GOOD, "source")[0] == "A title"
    with pytest.raises(ValueError, match=message):
        tools["build"].slides(text, "source")


def test_a_number_or_figure_that_is_not_there_is_named(tools):
    build, material = tools["build"], tools["material"]
    assert build.filled("a {{x}} b", {"x": "1"}, "source") == "a 1 b"
    with pytest.raises(ValueError, match=r"no number \{\{y\}\}"):
        build.filled("a {{y}} b", {"x": "1"}, "source")
    with pytest.raises(ValueError, match="no figure is called 'gone'"):
        material.figure("gone")
    with pytest.raises(ValueError, match="chapter 04 has 0 stored figures of code with 'gone'"):
        material.figure("04/gone")
    with pytest.raises(ValueError, match="prints nothing like"):
        material.printed("04", "no such line (.)")


def test_the_check_of_a_page_finds_loads_and_missing_notes(tools):
    check = tools["check"]
    page = '<section>a<aside class="notes">b</aside></section>'
    assert check.faults_in_text("lecture_1", 35 * page) == []
    assert "29 slides" in check.faults_in_text("lecture_1", 29 * page)[0]
    bare = 34 * page + "<section>a</section>"
    assert check.faults_in_text("lecture_1", bare) == ["lecture_1: slide 35 has no notes"]
    for load in ('<img src="https://x.org/a.png">', "<i style='background:url(//x.org/a)'>"):
        assert "from elsewhere" in check.faults_in_text("handout", load)[0]
    assert check.faults_in_text("handout", '<img src="a.svg"><link href="data:,">') == []


def test_a_pdf_with_too_many_pages_is_found(tools, tmp_path):
    pdf = tmp_path / "handout.pdf"
    pdf.write_bytes(b"<< /Type /Pages >> << /Type /Page /Parent >> << /Type /Page >>")
    assert tools["check"].faults_in_pdf("handout", pdf, 2) == []
    assert tools["check"].faults_in_pdf("handout", pdf, 1) == ["handout.pdf has 2 pages, not 1"]


BAD = {  # what is put on a slide, and what is said of it
    '<p style="font-size: 17px">tiny</p>': "a text of 17.0 pixels",
    '<p style="width: 2500px">wide</p>': "<p> reaches",
    '<div style="height: 1000px; flex: none">tall</div>': "<div> reaches",
    "<p>$x</p>": "is not typeset",
    '<p style="margin-top: -120px">over</p>': "overlaps part",
    r'<p style="font-size: 24px">\(x_{y_{z}}\)</p>': "pixels: a formula",
    r"<p>\(\frac{1}\)</p>": "a formula has an error",
    r"<p>\(\lamda\)</p>": "a formula has an error",
    '<p><img src="a.svg" alt="a" style="width: 400px" data-smallest="0.02"></p>': "in a.svg",
}


@needs_book
@in_browser
def test_the_browser_finds_what_is_wrong_with_a_slide(tools, tmp_path):
    build, check = tools["build"], tools["check"]
    build.add_packages(tmp_path)
    square = '<svg xmlns="http://www.w3.org/2000/svg" width="400" height="100"/>'
    (tmp_path / "a.svg").write_text(square, encoding="utf-8")
    fine = r"<section><h2>Fine</h2><p>\(x_i\)</p></section>"
    bad = "".join(f"<section><h2>Bad {n}</h2>{what}</section>" for n, what in enumerate(BAD))
    page = build.page("deck", "Slides", fine + bad + fine)
    (tmp_path / "lecture_1.html").write_text(page, encoding="utf-8")
    found = check.faults_in_browser(tmp_path, "lecture_1", CHROMIUM)
    for n, said in enumerate(BAD.values()):
        assert any(f"Bad {n}: " in fault and said in fault for fault in found), (said, found)
    assert not any("Fine" in fault for fault in found)
    broken = page.replace("</body>", "<script>undefinedThing()</script></body>")
    (tmp_path / "lecture_1.html").write_text(broken.replace(bad, ""), encoding="utf-8")
    (fault,) = check.faults_in_browser(tmp_path, "lecture_1", CHROMIUM)
    assert "console" in fault and "undefinedThing" in fault


@needs_book
def test_markdown_becomes_slides_with_notes_fragments_and_formulas(tools):
    build = tools["build"]
    body = "A $|\\lambda|$.\n\n+++\n\n$$x^2$$\n"
    text = GOOD.replace("(2 min)", "(1 min)")
    text += f"## Predict: it\n\n{body}\nNotes (1 min): See $x$.\n"
    made = build.deck_html(build.slides(text, "source")[1])
    assert made.count("<section") == 2 and made.count('class="notes"') == 2
    assert '<section class="question">' in made and '<div class="fragment">' in made
    assert r"\(|\lambda|\)" in made and r"\[x^2\]" in made
    assert "Minute 1 to 2 of 90" in made


@needs_book
def test_a_folder_of_something_else_is_left_alone(tools, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit, match="holds something that is no slides"):
        tools["build"].main(["--out", str(tmp_path)])
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "mine"
