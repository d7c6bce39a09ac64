"""The tutorials' stored outputs belong to their code, and the check of this can fail."""

import base64
import importlib.util
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).parents[1] / "tutorials"
CHAPTERS = sorted(FOLDER.glob("*.ipynb"))


def load_tool():
    spec = importlib.util.spec_from_file_location("notebooks", FOLDER / "notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool()


def code(source, outputs=(), count=1, tags=()):
    metadata = {"tags": list(tags)} if tags else {}
    return {
        "cell_type": "code",
        "source": source,
        "outputs": list(outputs),
        "execution_count": count,
        "metadata": metadata,
    }


def printed(text):
    return {"output_type": "stream", "name": "stdout", "text": text}


@pytest.fixture
def small(tmp_path):
    """A notebook of two cells that passes, and a function that writes a changed one."""
    cells = [code(tool.setup_source(), tags=["setup"]), code("print(1 + 1)", [printed("2\n")], 2)]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
    notebook["metadata"]["minigrpo"] = {"sha256": tool.digest(notebook)}
    file = tmp_path / "small.ipynb"

    def write(sign=False):
        if sign:
            notebook["metadata"]["minigrpo"] = {"sha256": tool.digest(notebook)}
        file.write_text(json.dumps(notebook), encoding="utf-8")
        return file

    return notebook, write


# -- the chapters ----------------------------------------------------------------------------------


def shown_code(notebook):
    """Lines of the package's source among the outputs."""
    outputs = (output for cell in notebook["cells"] for output in cell.get("outputs", ()))
    texts = (tool.text(output.get("data", {}).get("text/markdown", "")) for output in outputs)
    return [
        line.strip()
        for text in texts
        if text.startswith("```python")
        for line in text.splitlines()[1:-1]
    ]


def test_the_code_that_chapter_2_shows_is_the_packages():
    package = {line.strip() for line in (source("ops") + source("transformer")).splitlines()}
    for file, operations in (("", ("linear", "rmsnorm")), ("_part_2", ("rope", "attention"))):
        notebook = FOLDER / f"02_a_transformer_by_hand{file}.ipynb"
        shown = shown_code(json.loads(notebook.read_text(encoding="utf-8")))
        for name in operations:
            assert any(line.startswith(f"def {name}(") for line in shown)
            assert any(line.startswith(f"def {name}_backward(") for line in shown)
        # else: python tutorials/notebooks.py run tutorials/02_…
        assert [line for line in shown if line not in package] == []


def test_nothing_of_how_the_package_plans_comes_before_the_tree():
    for file in CHAPTERS:
        if file.stem < "05":
            code = "".join(tool.text(cell["source"]) for _, cell in tool.code_cells(load(file)))
            assert not re.search(r"engine[. ](?:import )?(?:plan|blocks|segments)|\.plan\b", code)


def load(file):
    return json.loads(file.read_text(encoding="utf-8"))


def source(name):
    return (FOLDER.parent / "minigrpo" / f"{name}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", CHAPTERS, ids=lambda file: file.stem)
def test_a_chapter_is_as_it_was_run(file):
    assert tool.check(file) == []


@pytest.mark.parametrize("file", CHAPTERS, ids=lambda file: file.stem)
def test_a_chapter_has_its_parts(file):
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    number = int(re.fullmatch(r"(\d\d)_[a-z_]+?(?:_part_\d)?", file.stem)[1])
    head = tool.text(cells[0]["source"])
    assert head.startswith(f"# Chapter {number} · ")
    assert all(f"**{part}**" in head for part in ("You will be able to", "You need", "Time"))
    assert tool.is_setup(cells[1])
    words = "\n".join(
        tool.text(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"
    )
    assert all(
        re.search(rf"^## {part}", words, re.M)
        for part in ("Summary", "Exercises", "Further reading")
    )
    assert re.search(rf"^## {number}\.\d+ ", words, re.M)
    figures = [
        o
        for cell in cells
        for o in cell.get("outputs", [])
        if {"image/png", "image/svg+xml"} & o.get("data", {}).keys()
    ]
    assert len(figures) >= 3


def test_chapters_and_their_sections_are_numbered_without_repeats():
    numbers = [file.stem[:2] for file in CHAPTERS if not re.search(r"_part_[2-9]$", file.stem)]
    assert numbers
    assert len(set(numbers)) == len(numbers)
    for number in numbers:
        words = "\n".join(
            tool.text(cell["source"])
            for file in CHAPTERS
            if file.stem.startswith(number)
            for cell in load(file)["cells"]
        )
        sections = re.findall(rf"^## {int(number)}\.(\d+) ", words, re.M)
        assert list(map(int, sections)) == list(range(1, len(sections) + 1))


PREDICTION = re.compile(
    r"\*\*Predict\.\*\* .+\n\n<details><summary>Answer</summary>\n\n\S.+\n\n</details>\n*",
    re.DOTALL,
)
DRAWS = re.compile(
    r"\bplt\.\w+\(|\b(?:ax|axes|left|middle|right|figure)(?:\[.*?\])?\.\w+\(|^figure, "
)


def unasked(cells):
    """What is wrong with a chapter's predictions."""
    found = [i for i, cell in enumerate(cells) if "**Predict" in tool.text(cell["source"])]
    wrong = [] if len(found) >= 4 else [f"{len(found)} predictions"]
    for i in found:
        if not PREDICTION.fullmatch(tool.text(cells[i]["source"])):
            wrong.append(f"cell {i}: no prediction with a folded answer")
        answered = [j for j, cell in enumerate(cells) if j > i and cell.get("outputs")]
        between = cells[i + 1 : answered[0]] if answered else []
        if not answered or any(tool.text(cell["source"]).startswith("## ") for cell in between):
            wrong.append(f"cell {i}: no output of its section answers it")
    return wrong


def unfolded(cells):
    """Code cells that mostly draw and are not folded, in Jupyter and in the book."""
    wrong = []
    for i, cell in enumerate(cells):
        if cell["cell_type"] != "code":
            continue
        lines = [line for line in tool.text(cell["source"]).splitlines() if line.strip()]
        drawing = sum(bool(DRAWS.search(line)) for line in lines)
        if 2 * drawing > len(lines) or any("plt.show(" in line for line in lines):
            hidden = cell["metadata"].get("jupyter", {}).get("source_hidden")
            if not hidden or "hide-input" not in cell["metadata"].get("tags", []):
                wrong.append(i)
    return wrong


@pytest.mark.parametrize("file", CHAPTERS, ids=lambda file: file.stem)
def test_a_chapter_asks_its_reader_to_predict_and_folds_what_only_draws(file):
    cells = load(file)["cells"]
    assert unasked(cells) == []
    assert unfolded(cells) == []


def test_predictions_and_folding_can_be_wrong():
    def words(source):
        return {"cell_type": "markdown", "source": source, "metadata": {}}

    good = "**Predict.** What?\n\n<details><summary>Answer</summary>\n\nThis.\n\n</details>"
    asked = [words(good), code("1", [printed("1")])]
    assert unasked(asked * 4) == []
    assert unasked(asked * 3) == ["3 predictions"]
    assert len(unasked([words("**Predict.** What?"), *asked * 3])) == 1
    assert len(unasked([words(good.replace("\n\nThis", "\nThis")), *asked * 3])) == 1
    assert len(unasked([*asked * 3, words(good), words("## Later"), *asked])) == 1
    assert len(unasked([*asked * 3, words(good)])) == 1
    drawn = code("figure, ax = plt.subplots()\nax.plot(x)\nplt.show()")
    assert unfolded([code("x = 1"), drawn]) == [1]
    drawn["metadata"] = {"tags": ["hide-input"]}
    assert unfolded([drawn]) == [0]
    drawn["metadata"]["jupyter"] = {"source_hidden": True}
    assert unfolded([drawn]) == []
    assert unfolded([code("def draw(ax):\n    ax.plot(x)\n    ax.set(title=y)")]) == [0]


@pytest.mark.parametrize("file", CHAPTERS, ids=lambda file: file.stem)
def test_a_changed_cell_is_found(file, tmp_path):
    notebook = json.loads(file.read_text(encoding="utf-8"))
    cells = tool.code_cells(notebook)
    cells[-1][1]["source"] = tool.text(cells[-1][1]["source"]) + "\nprint('changed')"
    changed = tmp_path / file.name
    changed.write_text(json.dumps(notebook), encoding="utf-8")
    assert [line for line in tool.check(changed) if "out of step" in line]


# -- the tool --------------------------------------------------------------------------------------


def test_what_passes(small):
    _, write = small
    assert tool.check(write()) == []


def test_a_source_may_be_a_list_of_lines(small):
    notebook, write = small
    notebook["cells"][0]["source"] = tool.setup_source().splitlines(keepends=True)
    assert tool.check(write()) == []


@pytest.mark.parametrize("change", ["source", "order", "outputs"])
def test_code_and_outputs_out_of_step(small, change):
    notebook, write = small
    if change == "source":
        notebook["cells"][1]["source"] = "print(1 + 2)"
    elif change == "order":
        notebook["cells"].reverse()
    else:
        notebook["cells"][0]["outputs"] = [printed("installed\n")]
    found = tool.check(write())
    assert len(found) == 1
    assert "out of step" in found[0]


def test_words_between_the_cells_may_change(small):
    notebook, write = small
    notebook["cells"].append({"cell_type": "markdown", "source": "A remark.", "metadata": {}})
    assert tool.check(write()) == []


def test_missing_outputs_and_cells_that_were_not_run(small):
    notebook, write = small
    notebook["cells"][1]["outputs"] = []
    assert "has no outputs" in tool.check(write(sign=True))
    notebook["cells"][1]["execution_count"] = None
    assert "cell 2 has not been run" in tool.check(write(sign=True))


def test_an_error_a_large_file_and_another_setup_cell(small):
    notebook, write = small
    notebook["cells"][1]["outputs"] = [
        {"output_type": "error", "ename": "ValueError", "evalue": "no\nnever", "traceback": []}
    ]
    assert tool.check(write(sign=True)) == ["cell 2 ends in an error: ValueError: no"]
    notebook["cells"][1]["outputs"] = [printed("x" * tool.LARGEST)]
    (found,) = tool.check(write(sign=True))
    assert "1.50 MB, more than 1.5 MB" in found
    notebook["cells"][1]["outputs"] = [printed("2\n")]
    notebook["cells"][0]["source"] += "\n"
    assert tool.check(write(sign=True)) == [
        "its setup cell is missing or not the one of notebooks.py"
    ]


def test_what_is_no_notebook(tmp_path):
    file = tmp_path / "no.ipynb"
    for content in ("no", "[]", "{}", '{"cells": [{}], "metadata": {}}'):
        file.write_text(content, encoding="utf-8")
        (found,) = tool.check(file)
        assert "cannot be read as a notebook" in found


def test_the_setup_cell_asks_no_index_for_a_package_of_our_name():
    """A package index may have another one of this name: it says how to install this one."""
    assert "%pip" not in tool.setup_source(None)
    assert 'pip install -e ".[tutorials]"' in tool.setup_source(None)
    assert '"minigrpo[tutorials] @ git+https://example.org/x.git"' in tool.setup_source(
        "https://example.org/x.git"
    )


# pip and uv, where what is installed has our name and no address; extras and versions may follow.
FROM_AN_INDEX = re.compile(
    r"(?:pip3?|uv add|conda) (?:install )?[^\n;&|`]*?(?<![\w./-])minigrpo(?![\w/.-])(?!\S* *@)"
)


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("pip install minigrpo", True),
        ("%pip install -q 'minigrpo[tutorials]>=0.1'", True),
        ('!pip3 install -U "minigrpo"', True),
        ("uv pip install minigrpo", True),
        ("uv add minigrpo[lm]", True),
        ('pip install -e ".[tutorials]"', False),
        ('pip install "minigrpo[tutorials] @ git+https://example.org/minigrpo.git"', False),
        ("pip install git+https://example.org/me/minigrpo.git", False),
        ("pip install -e . && minigrpo demo", False),
        ("pip install ./minigrpo", False),
        ("pip install torch; minigrpo pull smollm2", False),
    ],
)
def test_what_asks_an_index_for_our_name_is_seen(text, asks):
    assert bool(FROM_AN_INDEX.search(text)) == asks


def test_no_text_of_the_course_asks_an_index_for_our_name():
    root = FOLDER.parent
    texts = [*root.glob("*.md"), *root.glob("minigrpo/**/*.md"), *root.glob("results/*.md")]
    for kind in ("ipynb", "md", "py", "html", "toml"):
        texts += FOLDER.rglob(f"*.{kind}")
    texts = [file for file in texts if file != FOLDER / "notebooks.py"]  # it has the address
    assert len(texts) > 30
    for file in texts:
        found = FROM_AN_INDEX.search(file.read_text(encoding="utf-8"))
        assert found is None, (file, found)


@pytest.mark.parametrize("here", [True, False])
def test_the_setup_cell_stops_where_the_package_is_missing(here, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found(name) if here else None)
    if here:
        exec(tool.setup_source(), {})
    else:
        with pytest.raises(SystemExit, match="root folder of this repository"):
            exec(tool.setup_source(), {})


def test_a_drawing_is_stored_shorter_and_looks_the_same():
    svg = '<?xml version="1.0"?>\n<svg>\n <!-- y -->\n <metadata>\n  <a/>\n </metadata>\n'
    svg += ' <path d="M 1.23456 2.5 \nL -0.001234 3 \n" transform="scale(0.015625)"/>\n'
    svg += ' <use x="7.123456" width="1.23456"/>\n</svg>\n'
    short = (
        '<?xml version="1.0"?><svg><path d="M 1.23 2.5 L -0.00 3 " transform="scale(0.015625)"/>'
    )
    assert tool.shorter(svg) == short + '<use x="7.12" width="1.23456"/></svg>'
    assert tool.shorter(tool.shorter(svg)) == tool.shorter(svg)


def command(*arguments):
    done = subprocess.run(
        [sys.executable, FOLDER / "notebooks.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_line(small):
    notebook, write = small
    assert command("check", write()) == (0, "", "")
    notebook["cells"][1]["source"] = "print(3)"
    status, _, errors = command("check", write())
    assert status == 1
    assert len(errors.splitlines()) == 1
    assert command("check", write().with_name("nothing.ipynb"))[0] == 2


def test_pictures_are_stored_with_fewer_colours_and_look_the_same():
    rng = np.random.default_rng(0)
    pixels = np.full((200, 300, 3), 255, dtype=np.uint8)
    for colour in [(0, 114, 178), (213, 94, 0), (34, 34, 34)]:
        x, y = rng.integers(150, size=2)
        pixels[y : y + 40, x : x + 60] = colour
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=0)
    png = base64.b64encode(out.getvalue()).decode()
    stored = tool.smaller(png)
    assert len(stored) < len(png) / 10
    again = np.asarray(Image.open(io.BytesIO(base64.b64decode(stored))).convert("RGB"))
    assert np.abs(again.astype(int) - pixels).max() <= 2
    assert tool.smaller(stored) == stored


def test_clean_joins_what_was_printed_in_pieces():
    picture = {
        "output_type": "display_data",
        "data": {"text/plain": ["<Figure at 0x7f0123456789>"]},
        "metadata": {},
    }
    warning = {"output_type": "stream", "name": "stderr", "text": ["careful\n"]}
    cell = code("…", [printed("a"), printed(["b\n", "c"]), picture, printed("d"), warning])
    tool.clean({"cells": [cell, {"cell_type": "markdown", "metadata": {}}], "metadata": {}})
    assert [output.get("text") for output in cell["outputs"]] == ["ab\nc", None, "d", "careful\n"]
    assert cell["outputs"][1]["data"]["text/plain"] == "<Figure at 0x…>"


def test_run_stamps_executes_and_strips(small):
    notebook, write = small
    del notebook["cells"][0]  # no setup cell yet
    source = "import os, sys\nprint(object(), os.getcwd())\nprint(1 + 1)"
    notebook["cells"] = [code("1 + 1", count=None), code(source, count=None)]
    file = write()
    fails = file.with_name("fails.ipynb")
    notebook["cells"][1]["source"] = "raise ValueError('a reason')"
    fails.write_text(json.dumps(notebook), encoding="utf-8")
    before = fails.read_bytes()
    status, out, errors = command("run", fails, file)  # the first one does not stop the second
    assert status == 1
    assert out.startswith("small.ipynb: run, ") and len(out.splitlines()) == 1
    stored = json.loads(file.read_text(encoding="utf-8"))
    assert tool.is_setup(stored["cells"][1])
    assert tool.text(stored["cells"][1]["source"]) == tool.setup_source()
    (output,) = stored["cells"][2]["outputs"]
    assert tool.text(output["text"]) == f"<object object at 0x…> {file.parent}\n2\n"
    assert "execution" not in stored["cells"][2]["metadata"]
    assert stored["metadata"]["language_info"] == {"name": "python"}
    # a kernel may have something to say on this stream, too
    assert "fails.ipynb: ValueError: a reason" in errors.splitlines()
    assert "small.ipynb" not in errors and fails.read_bytes() == before


def places(root):
    """(name, text) of documents, pages and sources, and of notebooks with outputs."""
    folders = ("minigrpo", "tests", "tutorials", "benchmarks", ".ci")
    files = {file for name in folders for file in (root / name).rglob("*")} | set(root.glob("*.*"))
    for file in sorted(files):
        name = str(file.relative_to(root))
        if (
            file.suffix in {".py", ".md", ".html", ".js", ".css", ".toml", ".cff"}
            or file.name == "run"
        ):
            yield name, file.read_text(encoding="utf-8")
        elif file.suffix == ".ipynb":  # not their pictures, in whose code anything may stand
            for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
                yield name, tool.text(cell["source"])
                for output in cell.get("outputs", []):
                    data = {"stream": output.get("text", "")} | output.get("data", {})
                    yield from ((name, tool.text(v)) for k, v in data.items() if "image" not in k)


def left_over(root):
    mark = re.compile(r"@{2}|\b(?:TO[D]O|FIX[M]E|XX[X])\b")  # so written that this line has none
    return [
        f"{name}: {line}"
        for name, text in places(root)
        for line in text.splitlines()
        if mark.search(line)
    ]


def test_no_placeholder_is_left(tmp_path):
    assert left_over(FOLDER.parent) == []
    (tmp_path / "tests").mkdir()
    mark = "@" * 2 + "WRONG"
    cells = {"cells": [code("1", [printed(f"a\n{mark}\n")])]}
    (tmp_path / "tests/a.ipynb").write_text(json.dumps(cells), encoding="utf-8")
    (tmp_path / "a.md").write_text("How long?\n" + "FIX" + "ME", encoding="utf-8")
    assert left_over(tmp_path) == ["a.md: FIX" + "ME", f"tests/a.ipynb: {mark}"]


# -- how long it takes -----------------------------------------------------------------------------


def load_times():
    spec = importlib.util.spec_from_file_location("times", FOLDER / "times.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["times"] = module  # its dataclass looks it up
    spec.loader.exec_module(module)
    return module


times = load_times()


def test_the_guide_has_the_times():
    """Else: python tutorials/times.py --write"""
    assert (
        times.TABLE.search((FOLDER / "README.md").read_text(encoding="utf-8"))[0] == times.table()
    )


@pytest.mark.parametrize("file", CHAPTERS, ids=lambda file: file.stem)
def test_a_chapter_says_how_long_it_takes(file):
    head = tool.text(json.loads(file.read_text(encoding="utf-8"))["cells"][0]["source"])
    assert times.HEAD.search(head)
    assert times.head(head, times.load(file)) == head


def test_times_are_counted(tmp_path):
    words = "# Chapter 5 · x\n" + "word " * 240 + "\n$$x$$\n"
    asked = "## Exercises\n1. **(easy)** a\n2. **(easy)** b\n## Further reading\n" + "word " * 999
    cells = [code("x = 1\n\ny = 2\n"), code("plot()", tags=["hide-input"])]
    cells += [{"cell_type": "markdown", "source": s, "metadata": {}} for s in (words, asked)]
    cells[1]["outputs"] = [{"output_type": "display_data", "data": {"image/svg+xml": "<svg/>"}}]
    cells += [{"cell_type": "markdown", "source": "**Predict.** Why?", "metadata": {}}]
    file = tmp_path / "05_x.ipynb"
    file.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    found = times.load(file)
    assert (found.lines, found.formulas, found.figures, found.predictions) == (2, 1, 1, 1)
    assert (found.questions, found.tasks) == (2, 6)
    assert 245 < found.words < 265
    assert found.reading == 10  # two minutes of words, and one formula, figure, prediction: 4.95
    assert found.practice == 60
