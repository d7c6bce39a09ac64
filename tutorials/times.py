"""How long the course takes, estimated from its words, code, figures, questions and tasks.

    python tutorials/times.py            # the table
    python tutorials/times.py --write    # the same into README.md and the chapters' first cells

The rates are those of a student who works the chapter through, not of someone who skims it.  Plain
prose is read at about 240 words a minute; with formulas and arguments to follow we take half of it.
"""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
WORDS, LINES = 120, 10  # read in a minute: words; lines of code that are not folded away
FORMULA, FIGURE, PREDICTION = 0.5, 0.75, 1.5  # minutes for one of each
TASK, QUESTION = 10, 12  # minutes for a task that `minigrpo check` checks; for a question on paper
HEAD = re.compile(r"(\*\*Time\*\*) \d+ minutes(?: to read)?(?:, \d+ for the programming tasks)?\.")
TABLE = re.compile(r"(?<=<!-- times -->\n).*?(?=<!-- end of times -->)", re.DOTALL)


@dataclass(frozen=True)
class Load:
    """What a notebook asks of its reader."""

    words: int
    lines: int
    formulas: int
    figures: int
    predictions: int
    questions: int
    tasks: int

    @property
    def reading(self) -> int:
        """Minutes, in steps of 5."""
        minutes = self.words / WORDS + self.lines / LINES + self.formulas * FORMULA
        return _fives(minutes + self.figures * FIGURE + self.predictions * PREDICTION)

    @property
    def practice(self) -> int:
        """Minutes for the tasks that are checked."""
        return self.tasks * TASK


def _fives(minutes: float) -> int:
    return 5 * math.ceil(minutes / 5)


def load(file: Path) -> Load:
    """Count a notebook's parts; its tasks are those of the exercises that its text names."""
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    main = "\n".join(text.split("## Further reading")[0] for text in texts)
    asked = main.split("## Exercises")[-1] if "## Exercises" in main else ""
    folded = {"hide-input", "setup"}
    shown = [
        "".join(cell["source"])
        for cell in cells
        if cell["cell_type"] == "code" and not folded & set(cell["metadata"].get("tags", []))
    ]
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    return Load(
        words=len(re.sub(r"\$\$.*?\$\$|<[^>]+>", " ", main, flags=re.DOTALL).split()),
        lines=sum(bool(line.strip()) for text in shown for line in text.splitlines()),
        formulas=main.count("$$") // 2,
        figures=sum(bool({"image/png", "image/svg+xml"} & data.keys()) for data in outputs),
        predictions=sum("**Predict" in text for text in texts),
        questions=len(re.findall(r"^(?:- \*\*)?[A-Z0-9]+\.(?:\*\*)? ", asked, re.M)),
        tasks=_tasks(file, asked),
    )


def _tasks(file: Path, asked: str) -> int:
    """Functions to fill in: the chapter's, or those that the text lists as "tasks 1 to 3"."""
    stub = FOLDER / f"exercises/ch{file.stem[:2]}.py"
    if not stub.exists():
        return 0
    all_tasks = len(re.findall(r"^def ", stub.read_text(encoding="utf-8"), re.M))
    part = re.search(r"tasks (\d) (?:to|and) (\d)", asked)
    return int(part[2]) - int(part[1]) + 1 if part else all_tasks


def table() -> str:
    """The times of all chapters as Markdown."""
    rows = [
        "| chapter | words | lines of code | figures | predictions | reading | tasks | questions |"
    ]
    rows += ["|:--|--:|--:|--:|--:|--:|--:|--:|"]
    reading = practice = paper = 0
    for file in sorted(FOLDER.glob("0*.ipynb")):
        x = load(file)
        title = json.loads(file.read_text(encoding="utf-8"))["cells"][0]["source"]
        name = "".join(title).splitlines()[0].removeprefix("# Chapter ")
        cells = [f"[{name}]({file.name})", f"{x.words:,}", x.lines, x.figures, x.predictions]
        cells += [f"{x.reading} min", f"{x.tasks}: {x.practice} min" if x.tasks else "–"]
        rows.append("| " + " | ".join(map(str, [*cells, x.questions])) + " |")
        reading, practice = reading + x.reading, practice + x.practice
        paper += x.questions
    hours = f"**{reading / 60:.0f} h** | **{practice / 60:.0f} h** | {paper}"
    rows.append(f"| **all** | | | | | {hours} |")
    return "\n".join(rows) + "\n"


def head(text: str, x: Load) -> str:
    """A chapter's first cell with its times."""
    tasks = f", {x.practice} for the programming tasks" if x.tasks else ""
    return HEAD.sub(rf"\1 {x.reading} minutes to read{tasks}.", text)


def main(arguments: list[str]) -> None:
    """Print the table, or write it."""
    if arguments not in ([], ["--write"]):
        sys.exit("usage: python tutorials/times.py [--write]")
    if not arguments:
        print(table(), end="")
        return
    for file in sorted(FOLDER.glob("0*.ipynb")):
        text = file.read_text(encoding="utf-8")
        notebook = json.loads(text)
        first = "".join(notebook["cells"][0]["source"])
        notebook["cells"][0]["source"] = head(first, load(file)).splitlines(keepends=True)
        new = json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"
        if new != text:
            file.write_text(new, encoding="utf-8")
    guide = FOLDER / "README.md"
    text = TABLE.sub(lambda _: table(), guide.read_text(encoding="utf-8"))
    guide.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
