"""What students get wrong and what they are told: python tests/wrong_answers/table.py > README.md

It runs every wrong answer of this folder through its task's check and lists the hints.
"""

from pathlib import Path

from minigrpo.course.runner import CHAPTERS, tasks_of, verdict
from minigrpo.system.user_code import run_file

FOLDER = Path(__file__).parent
HEAD = """# What students get wrong, and what they are told

Each line is an answer that the checks of `minigrpo check` call wrong, named after its mistake, and
the hint of the message (or, where the message says it all, the message). The code of the answers
is in the files beside this one. `python tests/wrong_answers/table.py > README.md` makes this table
again.
"""


def table():
    """The whole text."""
    lines, n, hints = [], 0, 0
    for chapter, title in CHAPTERS.items():
        answers = run_file(FOLDER / f"{chapter}.py", f"wrong_{chapter}")
        lines += [f"\n## Chapter {int(chapter[2:])}: {title}\n", "| task | mistake | told |"]
        lines += ["| --- | --- | --- |"]
        for number, task in enumerate(tasks_of(chapter), 1):
            for name, function in list(vars(answers).items()):
                if name.startswith(f"{task.function}__"):
                    setattr(answers, task.function, function)
                    said = verdict("", task, answers).message
                    told = said.splitlines()[-1].removeprefix("Hint: ").replace("|", "\\|")
                    mistake = name.split("__")[1].replace("_", " ")
                    lines += [f"| {int(chapter[2:])}.{number} {task.title} | {mistake} | {told} |"]
                    n, hints = n + 1, hints + ("Hint: " in said)
    return f"{HEAD}\n{n} wrong answers; {hints} of them get a hint.\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
