"""Run the tutorials and store their outputs, or check that stored outputs belong to the code.

    python tutorials/notebooks.py run [FILES]      # run in a clean kernel, store outputs and a hash
    python tutorials/notebooks.py check [FILES]    # exit code 1 and one line per problem

Without FILES, all notebooks of this folder.  `run` also writes the setup cell; it needs the
package's `tutorials` extra, `check` only Python.  Neither compares outputs with those of a new run,
because pictures and last digits differ between machines.  CI runs every cell (.ci/run).
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
# Where a copy of the course is published: the setup cell then installs from this address, which
# begins with "https://" and ends with ".git".  None: it says how to install from the repository.
REPOSITORY: str | None = None
LARGEST = 1_500_000  # bytes of a notebook with its outputs
SETUP = """\
# The chapters need the package of this repository.
import importlib.util

if importlib.util.find_spec("minigrpo") is None:
    {instead}"""
HOW_TO_INSTALL = """raise SystemExit(
        "minigrpo is missing here. In a terminal, in the root folder of this repository, run\\n"
        '    pip install -e ".[tutorials]"\\n'
        "and start this notebook again."
    )"""
COLOUR = r"\x1b\[[\d;]*m"  # of a terminal
NOISE = [  # (what differs from machine to machine or from run to run, what is stored in its place)
    (COLOUR, ""),
    (re.escape(str(FOLDER.parent)), "."),
    (r"/\S*ipykernel_\d+/\d+\.py", "cell"),
    (re.escape(str(Path.home())) + r"(?=/\w)", "~"),
    (r"\bat 0x[0-9a-f]{6,}", "at 0x…"),
]


def setup_source(repository: str | None = REPOSITORY) -> str:
    """The source of every notebook's setup cell, which asks no package index for our name."""
    if repository is None:
        return SETUP.format(instead=HOW_TO_INSTALL)
    return SETUP.format(instead=f'%pip install -q "minigrpo[tutorials] @ git+{repository}"')


def text(value: str | list[str]) -> str:
    """A multi-line field of a notebook's JSON, which is one string or a list of lines."""
    return value if isinstance(value, str) else "".join(value)


def code_cells(notebook: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """(number of the cell, from 1, cell) of every code cell with something in it."""
    cells = enumerate(notebook["cells"], start=1)
    return [
        (i, cell)
        for i, cell in cells
        if cell["cell_type"] == "code" and text(cell["source"]).strip()
    ]


def digest(notebook: dict[str, Any]) -> str:
    """SHA-256 of all code, in order, and of which cells have outputs."""
    what = [[text(cell["source"]), bool(cell["outputs"])] for _, cell in code_cells(notebook)]
    return hashlib.sha256(json.dumps(what, ensure_ascii=False).encode()).hexdigest()


def is_setup(cell: dict[str, Any]) -> bool:
    """Whether a cell has the tag `setup`."""
    return "setup" in cell["metadata"].get("tags", [])


def clean(notebook: dict[str, Any]) -> None:
    """Remove, in place, what depends on the machine: paths, addresses, versions, times."""
    notebook["metadata"]["language_info"] = {"name": "python"}
    for cell in notebook["cells"]:
        for name in ("execution", "collapsed", "scrolled"):
            cell["metadata"].pop(name, None)
        outputs: list[dict[str, Any]] = []
        for output in cell.get("outputs", []):
            before = outputs[-1] if outputs else {}
            if (
                output["output_type"] == "stream" and before.get("name") == output["name"]
            ):  # where it was cut is chance
                before["text"] = text(before["text"]) + text(output["text"])
            else:
                outputs.append(output)
        if outputs:
            cell["outputs"] = outputs
        for output in outputs:
            for holder, name in [
                (output, "text"),
                *((output.get("data", {}), kind) for kind in ("text/plain", "text/html")),
            ]:
                if name in holder:
                    value = text(holder[name])
                    for pattern, instead in NOISE:
                        value = re.sub(pattern, instead, value)
                    holder[name] = value


def smaller(png: str) -> str:
    """A picture with at most 128 colours, where that takes less room.   base64 -> base64"""
    from PIL import Image

    picture, out = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    picture.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        out, "PNG", optimize=True
    )
    found = base64.b64encode(out.getvalue()).decode()
    return min(found, png.strip(), key=len)


def shorter(svg: str) -> str:
    """A drawing on one line, whose coordinates have two decimals: a hundredth of a point."""

    def rounded(match: re.Match[str]) -> str:
        return re.sub(r"-?\d+\.\d{3,}", lambda n: f"{float(n[0]):.2f}", match[0])

    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r">\s+<", "><", re.sub(r"\s*\n\s*", " ", svg)).strip()
    return re.sub(r'\b(?:d|x|y|points)="[^"]*"', rounded, svg)


def run(file: Path, timeout: int = 300) -> None:
    """Write the setup cell, execute all cells in a new kernel, store outputs and hash.

    Raises nbclient's CellExecutionError.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(file, as_version=4)
    setup = next((cell for cell in notebook.cells if is_setup(cell)), None)
    if setup is None:
        setup = nbformat.v4.new_code_cell(metadata={"tags": ["setup"]})
        notebook.cells.insert(1, setup)
    setup["source"] = setup_source()
    resources = {"metadata": {"path": str(file.resolve().parent)}}
    NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", record_timing=False, resources=resources
    ).execute()
    clean(notebook)
    pictures = {"image/png": smaller, "image/svg+xml": shorter}
    for output in (output for _, cell in code_cells(notebook) for output in cell["outputs"]):
        for kind in pictures.keys() & output.get("data", {}).keys():
            output["data"][kind] = pictures[kind](text(output["data"][kind]))
    notebook["metadata"]["minigrpo"] = {"sha256": digest(notebook)}
    nbformat.write(notebook, file)


def check(file: Path) -> list[str]:
    """The problems of a stored notebook, one line each."""
    try:
        notebook = json.loads(file.read_text(encoding="utf-8"))
        cells, stored = code_cells(notebook), notebook["metadata"].get("minigrpo", {}).get("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"cannot be read as a notebook ({type(error).__name__}: {error})"]
    wrong = []
    if (size := file.stat().st_size) > LARGEST:
        limit = f"{LARGEST / 1e6:g} MB: draw fewer or smaller figures"
        wrong.append(f"has {size / 1e6:.2f} MB, more than {limit}")
    if setup_source() not in [text(cell["source"]) for _, cell in cells if is_setup(cell)]:
        wrong.append("its setup cell is missing or not the one of notebooks.py")
    wrong += [f"cell {i} has not been run" for i, cell in cells if cell["execution_count"] is None]
    if not any(cell["outputs"] for _, cell in cells):
        wrong.append("has no outputs")
    for i, cell in cells:
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                error = f"{output['ename']}: {output['evalue']}".splitlines()[0]
                wrong.append(f"cell {i} ends in an error: {error}")
    if stored != digest(notebook):
        run_it = f"python tutorials/notebooks.py run {file.name}"
        wrong.append(f"its code and its stored outputs are out of step: {run_it}")
    return wrong


def main(arguments: list[str] | None = None) -> int:
    """The command line.   -> exit code: 1 if a notebook fails, 2 for what cannot be asked"""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "check"))
    parser.add_argument("files", nargs="*", type=Path, help="notebooks (all of this folder)")
    options = parser.parse_args(arguments)
    for file in options.files:
        if not file.is_file():
            parser.error(f"there is no file {file}")
    failed = False
    for file in options.files or sorted(FOLDER.glob("*.ipynb")):
        if options.command == "run":
            try:
                run(file)
            except Exception as error:  # whatever a cell raises
                last = re.sub(COLOUR, "", str(error)).strip().splitlines()[-1]
                print(f"{file.name}: {last}", file=sys.stderr)
                failed = True
                continue
            print(f"{file.name}: run, {file.stat().st_size / 1e3:.0f} kB")
        for line in (found := check(file)):
            print(f"{file.name}: {line}", file=sys.stderr)
        failed |= bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
