"""The examples in the package's docstrings run, and every public name has one."""

import ast
import doctest
import inspect
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minigrpo as mg

PACKAGE = Path(mg.__file__).parent
NEEDED = {"minigrpo/models/__init__.py:load_model": "my-model"}  # a folder in the current one


def examples():
    """The docstrings of the package that have examples.   -> (file and name, text, line)"""
    for file in sorted(PACKAGE.rglob("*.py")):
        inside = file.relative_to(PACKAGE)
        text = file.read_text(encoding="utf-8")
        if ">>>" not in text or inside.parts[0] == "data":
            continue
        todo = [("", ast.parse(text))]
        while todo:
            name, node = todo.pop(0)
            found = ast.get_docstring(node) or ""
            if ">>>" in found:
                line = node.body[0].lineno
                yield f"minigrpo/{inside.as_posix()}:{name}".removesuffix(":"), found, line
            kinds = ast.ClassDef | ast.FunctionDef
            inner = [n for n in node.body if isinstance(n, kinds)]
            todo += [(f"{name}.{n.name}".lstrip("."), n) for n in inner]


EXAMPLES = {name: (text, line) for name, text, line in examples()}


def run(name, text, line=0):
    """Run a text's examples as a reader would, who has `mg` and `np`.   -> what goes wrong"""
    names = {"mg": mg, "np": np}
    test = doctest.DocTestParser().get_doctest(text, names, name, name.partition(":")[0], line)
    said = []
    doctest.DocTestRunner().run(test, out=said.append)
    return "".join(said)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if folder := NEEDED.get(name):
        for package in ("safetensors", "tokenizers", "gguf"):
            pytest.importorskip(package, reason="language models need the extra lm")
        from tiny_language_model import make

        from minigrpo.models import save_hugging_face

        save_hugging_face(*make(), folder)
    assert run(name, *EXAMPLES[name]) == ""


def test_an_example_that_is_wrong_is_found(capsys):
    said = run("x", ">>> mg.lambda_weights([[1]])[0].tolist()\n[2.0]\n>>> mg.nothing\n")
    assert "Got:\n    [1.0]\n" in said and "no attribute 'nothing'" in said


METHODS = ["PrefixTree.from_sequences", "PrefixTree.from_groups", "Objective.preset"]
METHODS += ["TrainSettings.for_task"]


@pytest.mark.parametrize("name", [*mg.__all__, *METHODS])
def test_a_public_name_has_an_example_of_a_few_lines(name):
    thing = mg
    for part in name.split("."):
        thing = getattr(thing, part)
    lines = [line.strip()[:4].strip() for line in inspect.getdoc(thing).splitlines()]
    assert 1 <= lines.count(">>>") + lines.count("...") <= 8
    assert name.split(".")[-1] in inspect.getdoc(thing)


def test_a_name_that_is_mistyped():
    code = "import minigrpo as mg; mg.grop_step"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    told = "module 'minigrpo' has no attribute 'grop_step'. Did you mean: 'grpo_step'?"
    assert told in done.stderr and not hasattr(mg, "grop_step")


def test_help_is_a_page():
    page = pydoc.render_doc(mg, renderer=pydoc.plaintext)
    overview = page[: page.index("PACKAGE CONTENTS")]
    assert [name for name in mg.__all__ if overview.count(name) == 0] == []
    assert len(overview.splitlines()) < 60
    for internal in ("_MODULES", "TYPE_CHECKING", "__getattr__", "__all__", "__dir__"):
        assert internal not in page
    assert f"VERSION\n    {mg.__version__}" in page
    assert set(dir(mg)) == {*mg.__all__, "__version__"}


def test_the_guide_from_python(tmp_path, monkeypatch, capsys):
    """What its comments say is true."""
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "minigrpo/README.md").read_text(encoding="utf-8")
    part = text[text.index("## From Python") :].split("\n## ")[0]
    names = {}
    for code in re.findall(r"```python\n(.*?)```", part, re.DOTALL):
        exec(code, names)
    rewards = [float(line) for line in capsys.readouterr().out.splitlines()[:60]]
    assert rewards[0] < 0.2 and rewards[-1] > 0.9
    assert {path.name for path in tmp_path.iterdir()} == {"tree.png", "run", "metrics.png"}
