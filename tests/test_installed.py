"""The package as others get it: what its wheel and its source distribution hold, and the wheel
alone at work.

Both are built here, as the build backend builds them (needs setuptools).  CI installs them in new
environments as well.
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import conftest
import pytest

import minigrpo
from minigrpo.course.runner import CHAPTERS

ROOT = Path(__file__).parents[1]
KEPT_OUT = (
    ".venv*",
    ".git",
    "build",
    "dist",
    "*.egg-info",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
    "demo",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and a source distribution, made from a copy of the repository."""
    found = [d.version for d in importlib.metadata.distributions(name="setuptools")]
    if not found or int(found[0].split(".")[0]) < 77:
        pytest.skip("builds the distributions with setuptools 77: pip install -e '.[test]'")
    copy = tmp_path_factory.mktemp("build") / "repository"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*KEPT_OUT))
    (copy / "results/half.cache.jsonl").write_text("{}")
    (copy / "tests/__pycache__").mkdir()
    (copy / "tests/__pycache__/x.pyc").write_bytes(b"x")
    code = "import setuptools.build_meta as b; "
    code += "print(b.build_sdist('dist')); print(b.build_wheel('dist'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [
        copy / "dist" / name for name in done.stdout.split() if name.endswith((".tar.gz", ".whl"))
    ]


@pytest.fixture(scope="module")
def wheel(built, tmp_path_factory):
    """The wheel's files, unpacked as an installation does it, far from the repository."""
    where = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(built[1]) as file:
        file.extractall(where)
    return where


@pytest.fixture(scope="module")
def sources(built, tmp_path_factory):
    """The source distribution, unpacked."""
    where = tmp_path_factory.mktemp("sources")
    with tarfile.open(built[0]) as file:
        file.extractall(where, filter="data")
    (folder,) = where.iterdir()
    return folder


def tracked():
    """The repository's files, as git knows them; without git, those of the folders that must be
    there.
    """
    done = (
        subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
        if shutil.which("git")
        else None
    )
    if done and done.returncode == 0 and done.stdout:
        return {
            name
            for name in done.stdout.splitlines()
            if name != ".gitignore" and (ROOT / name).exists()
        }
    return {
        path.relative_to(ROOT).as_posix()
        for folder in ("tests", "results")
        for path in (ROOT / folder).glob("*.*")
    }


def test_the_source_distribution_is_the_whole_repository(sources):
    there = {path.relative_to(sources).as_posix() for path in sources.rglob("*") if path.is_file()}
    assert tracked() - there == set()
    assert not [
        name for name in there if "__pycache__" in name or name.endswith((".pyc", ".cache.jsonl"))
    ]
    assert os.access(sources / ".ci/run", os.X_OK) or os.name == "nt"


def test_its_tests_run(sources):
    """Some that read what lies around the package; CI runs more of them."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {
        "PYTHONPATH": str(sources),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "tests/test_pull.py",
        "tests/test_benchmarks.py",
        "-k=not checkout and not figure",  # which take long
    ]
    done = subprocess.run(
        command, cwd=sources, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_wheel_holds_what_users_need(wheel):
    names = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*") if path.is_file()}
    shipped = {f"minigrpo/data/tutorials/exercises/{chapter}.py" for chapter in CHAPTERS}
    shipped |= {f"minigrpo/data/results/{path.name}" for path in (ROOT / "results").glob("*.json")}
    assert names >= shipped | {
        "minigrpo/data/benchmarks/results.json",
        "minigrpo/py.typed",
        "minigrpo/show/explorer/page.html",
        "minigrpo/command/demo.html",
        "minigrpo/show/watch.html",
    }
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "minigrpo").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules | {
        name for name in shipped if name.endswith(".py")
    }
    assert not [
        name
        for name in names
        if name.split("/")[0] not in ("minigrpo", f"minigrpo-{minigrpo.__version__}.dist-info")
    ]


def alone(wheel, folder, *arguments):
    """Run the wheel's package from an empty folder, the repository out of sight."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {
        "PYTHONPATH": str(wheel)
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_the_wheel_alone(wheel, tmp_path):
    assert alone(wheel, tmp_path, "-c", "import minigrpo; print(minigrpo.__file__)")[1].startswith(
        str(wheel)
    )
    assert alone(wheel, tmp_path, "-m", "minigrpo", "exercises", "--out", "mine")[0] == 0
    for path in sorted((ROOT / "tutorials/exercises").glob("*.py")):
        assert (tmp_path / "mine" / path.name).read_bytes() == path.read_bytes()
    code, out = alone(wheel, tmp_path, "-m", "minigrpo", "check", "ch04", "mine")
    assert (code, out.splitlines()[-1]) == (
        1,
        f"0 of 5 tasks are right; 5 to do ({Path('mine/ch04.py')})",
    )
    names = [
        "results/table1.json",
        "results/flaw.json",
        "results/smollm2-sums.json",
        "benchmarks/results.json",
    ]
    code = "import json; from minigrpo.experiments import committed; "
    code += f"print(json.dumps([committed(n) for n in {names}]))"
    assert json.loads(alone(wheel, tmp_path, "-c", code)[1]) == [
        json.loads((ROOT / name).read_text("utf-8")) for name in names
    ]


def test_chapters_read_only_tables_that_are_shipped(wheel):
    read = [
        re.findall(r'committed\(\\"([^"\\]+)', path.read_text("utf-8"))
        for path in (ROOT / "tutorials").glob("*.ipynb")
    ]
    names = {name for found in read for name in found}
    assert len(names) > 4
    assert [name for name in names if not (wheel / "minigrpo/data" / name).is_file()] == []


def test_one_place_for_the_version(wheel):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert "version" not in project and "version" in project["dynamic"]
    (metadata,) = wheel.glob("*.dist-info/METADATA")
    assert f"\nVersion: {minigrpo.__version__}\n" in metadata.read_text("utf-8")
    assert importlib.metadata.version("minigrpo") == minigrpo.__version__


def test_the_index_page_has_only_links_that_hold(wheel):
    (metadata,) = wheel.glob("*.dist-info/METADATA")
    head, _, page = metadata.read_text("utf-8").partition("\n\n")
    assert "Description-Content-Type: text/markdown" in head
    assert "Author: " in head and head.count("Classifier: ") >= 8
    links = re.findall(r"\]\(([^)\s]+)\)", page)
    assert links
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
        for line in page.splitlines()
        if line[:1] == "#"
    }
    assert [
        link for link in links if not link.startswith("https://") and link[1:] not in headings
    ] == []
    assert "](" not in re.sub(r"\[[^\]]*\]\((https://|#)[^)\s]*\)", "", page)
    assert (
        "## Two commands" in page
        and "tree.png" not in page
        and "Eight completions that" not in page
    )


def test_links_are_taken_out_and_words_stay():
    spec = importlib.util.spec_from_file_location("setup_of_minigrpo", ROOT / "setup.py")
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    picture = "![a picture](x.png)\n\n*What it shows,\nin two lines.*\n\n"
    text = f"{picture}See [this](results/README.md), [that](https://a.b/c) and [limits](#limits).\n"
    assert setup.index_page(text) == "See this, [that](https://a.b/c) and [limits](#limits).\n"
    assert (
        setup.index_page("![no caption](x.png)\n\nWords *that* go on.\n") == "Words *that* go on.\n"
    )
    assert setup.index_page("[`code`](a.py) ([a \\[b\\]](c.md))") == "`code` (a \\[b\\])"


def test_the_lowest_versions_that_ci_installs_are_those_that_are_allowed():
    """Extras for GPUs, for TRL and for the notebooks have runs of their own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["lm"], *extras["logs"], *extras["test"]]
    wanted = [
        re.fullmatch(r"([\w-]+)>=([\d.]+)", line).groups()
        for line in wanted
        if not line.startswith("minigrpo[")
    ]
    lines = (ROOT / ".ci/lowest.txt").read_text("utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert list(pinned) == [name for name, _ in wanted]
    for name, lowest in wanted:
        assert pinned[name].removesuffix(".0").removesuffix(".0") == lowest.removesuffix(".0"), name


EXTRAS = ("gguf", "tokenizers", "pyarrow")


@pytest.mark.parametrize("name", EXTRAS)
def test_a_package_of_an_extra_that_cannot_be_imported_is_an_error(name, tmp_path, monkeypatch):
    """Where it imports what it does not ask for, tests would be skipped without a word."""
    (tmp_path / f"{name}.py").write_text("import what_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    said = f"^{name} is installed, but importing it fails .No module named 'what_is_not_there'."
    with pytest.raises(pytest.UsageError, match=said):
        conftest.pytest_configure()


def test_such_an_error_ends_the_run_before_a_test(tmp_path):
    (tmp_path / f"{EXTRAS[0]}.py").write_text("import what_is_not_there\n")
    environment = {"PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--collect-only",
        str(ROOT / "tests/test_gguf.py"),
    ]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert f"{EXTRAS[0]} is installed, but importing it fails" in done.stderr
    assert done.stdout == ""
