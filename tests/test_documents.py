"""The texts of the repository point at what is there: links, headings, files and modules."""

import importlib
import json
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OUT = {".venv", ".venv-trl", ".venv-verl", "build", "dist", "demo", "book", "data", "wrong_answers"}
MADE = {f"../../{name}.html" for name in ("explorer", "walk", "slides/index")}  # with the book
NOT_CHECKED = ["CHANGELOG.md", "tests/test_documents.py"]  # they may name what is not there


@cache
def found(pattern):
    files = [file.relative_to(ROOT) for file in ROOT.rglob(pattern)]
    hidden = {".github", ".ci"}
    return sorted(
        file.as_posix()
        for file in files
        if not any(p in OUT or (p[0] == "." and p not in hidden) for p in file.parts)
    )


DOCUMENTS = [*found("*.md"), *found("*.ipynb")]
CODE = [*found("*.py"), "pyproject.toml", "MANIFEST.in", *found(".github/workflows/*.yml")]


@cache
def text_of(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    if name.endswith(".ipynb"):
        cells = json.loads(text)["cells"]
        code = [c for c in cells if c["cell_type"] == "code"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c not in code)
        text += "\n\n".join("```\n" + "".join(c["source"]) + "\n```" for c in code)
    return text


def anchors(name):
    """The headings of a document as GitHub makes addresses of them."""
    text = re.sub(r"```.*?```", "", text_of(name), flags=re.DOTALL)
    headings = re.findall(r"^#+ +(.*?)\s*$", text, flags=re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in plain}


def broken_links(name, text):
    """The relative links of a document whose file or heading is missing."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    links = re.findall(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", text)
    links += re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    broken = []
    for link in links:
        if re.match(r"[a-z]+:", link) or link in MADE:
            continue
        path, _, heading = link.partition("#")
        target = ROOT / name if not path else (ROOT / name).parent / path
        there = target.exists() and ROOT in target.resolve().parents
        if not there or (
            heading
            and target.suffix in (".md", ".ipynb")
            and heading not in anchors(target.resolve().relative_to(ROOT).as_posix())
        ):
            broken.append(link)
    return broken


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links(name):
    assert broken_links(name, text_of(name)) == []


def test_a_broken_link_is_found():
    text = "[a](README.md) [b](gone.md) [c](README.md#limits) [d](README.md#gone) [e](#gone)"
    text += ' ![f](results/tree.png) [g](https://a.b/c) `[h](code.md)` <img src="gone.png">'
    assert broken_links("README.md", text) == ["gone.md", "README.md#gone", "#gone", "gone.png"]


# -- files and modules that a text names -----------------------------------------------------------

# Files that a reader makes, or that belong to other programs.
NOT_OURS = r"my_task|my|task|jobs|group|log|tokenizer|tokenizer_config|config|generation_config"
NOT_OURS += (
    r"|grpo_trainer|settings|metrics|samples|model|chNN|NAME|FILE|x|a|b|chat_rl|gpt2|trees?|tree"
)


def unknown_files(text):
    """Files in `code quotes` that are nowhere in the repository."""
    names = re.findall(r"``?([\w./-]+\.(?:py|md|ipynb|toml|png))``?", text)
    there = [f"/{name}" for pattern in ("*.*", ".ci/*") for name in found(pattern)]
    return sorted(
        {
            name
            for name in names
            if ("/" in name or not re.fullmatch(NOT_OURS, Path(name).stem))
            and not any(path.endswith("/" + name.removeprefix("./")) for path in there)
        }
    )


def unknown_modules(text):
    """Dotted names of the package that lead to no module, and to no name in a module."""
    unknown = set()
    for name in set(re.findall(r"(?<![/\w])minigrpo(?:\.[A-Za-z_]\w*)+", text)):
        place, parts = ROOT, name.split(".")
        while parts and ((place / parts[0]).is_dir() or (place / f"{parts[0]}.py").exists()):
            place /= parts.pop(0)
        if parts and place.name != "integrations":  # these need what may not be installed
            module = ".".join(place.relative_to(ROOT).parts)
            if not hasattr(importlib.import_module(module), parts[0]):
                unknown.add(name)
    return unknown


@pytest.mark.parametrize("name", [n for n in (*DOCUMENTS, *CODE) if n not in NOT_CHECKED])
def test_what_a_text_names_is_there(name):
    assert unknown_files(text_of(name)) == []
    if not name.startswith("tests/"):  # tests name what must not be there, too
        assert unknown_modules(text_of(name)) == set()


def test_a_name_of_an_older_layout_is_found():
    assert unknown_files("`minigrpo/plan.py`, `plan.py` and `RESULTS.md`") == [
        "RESULTS.md",
        "minigrpo/plan.py",
    ]
    assert unknown_modules("minigrpo.plan, minigrpo.engine.plan and minigrpo.tree.PrefixTree") == {
        "minigrpo.plan"
    }


def torn_rows(text):
    """The rows of tables that have more or fewer cells than the head: | in |λ| ends one."""
    lines, torn = re.sub(r"```.*?```", "", text, flags=re.DOTALL).split("\n"), []
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
    for i, line in enumerate(lines[1:], 1):
        if re.fullmatch(r"\s*\|?(\s*:?-+:?\s*\|)+(\s*:?-+:?\s*)?", line) and "|" in lines[i - 1]:
            rows = [i - 1]
            while rows[-1] + 1 < len(lines) and lines[rows[-1] + 1].lstrip().startswith("|"):
                rows.append(rows[-1] + 1)
            torn += [lines[row] for row in rows if cells[row] != cells[i]]
    return torn


@pytest.mark.parametrize("name", DOCUMENTS)
def test_tables(name):
    assert not torn_rows(text_of(name))


def test_a_torn_row_is_found():
    head = "| a | b |\n| :-- | --: |\n"
    assert not torn_rows(f"{head}| \\|λ\\| | 2 |\n\n| 3 |")
    assert torn_rows(f"{head}| 1 | 2 |\n| |λ| | 2 |") == ["| |λ| | 2 |"]
    assert torn_rows(f"{head}| `|λ|` | 2 |") == ["| `|λ|` | 2 |"]  # also in code
    assert torn_rows("| a |\n|---|---|\n| 1 | 2 |") == ["| a |"]
