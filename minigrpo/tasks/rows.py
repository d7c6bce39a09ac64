"""A text task whose problems are the rows of a table of your own (README.md, "Your own data").

A subclass may have the options as attributes, its table beside its own file, and a scorer.
"""

from __future__ import annotations

import hashlib
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from decimal import Decimal
from os import PathLike
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

import numpy as np

from minigrpo.system.tables import listed, rows_of
from minigrpo.system.user_code import shown
from minigrpo.tasks.problems import FewShot, check_split, in_test_split
from minigrpo.tasks.tools import real_number, whole_number

SPLITS = {"train": "train", "training": "train"}
SPLITS |= dict.fromkeys(("test", "testing", "val", "valid", "validation", "dev", "eval"), "test")
NUMBER = re.compile(
    r"(?<![\w.])[-+\u2212]?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+|(?=\.[0-9]))"
    r"(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,4}\b)?"
)
ENDS_PLAINLY = re.compile(  # a last number that is no part of a fraction, a time, or 3,5
    rf"(?:^|[^\d\s,./:'^×*·]\s*|[A-Za-z=#:;,.]\s+)(?:{NUMBER.pattern})[^\d]*$"
)
LETTER = r"[^\W\u0e00-\U0010ffff]"  # not of Thai or Chinese, which write words without spaces
Chat = list[dict[str, str]]
Template = list[tuple[str, str | None]]  # pieces of text, each with the column that follows it


class _Problem(NamedTuple):
    where: str  # the words to name its row by
    row: dict[str, Any]
    prompt: str
    split: str
    answer: Any  # what two rows with one question must agree in


@dataclass(eq=False)
class Rows:
    """A problem for each row of a .csv, .tsv, .json, .jsonl or .parquet file.

    file       a relative path is taken from the current folder; a subclass's, from its own file's
    prompt     a column, or a text with columns in braces: "The capital of {country} is"
    answer     the column of right answers; not needed if a subclass has score_row or reward
    split      a column of "train" and "test" (or "validation", which is "test"), or the share of
               questions that are held out, by a hash (default 0.1)
    scorer     reward = 1 if the completion is the answer but for case and space ("exact"), has it
               as whole words ("contains"), or the last numbers are equal ("number"), else 0
    chat       true: the prompt is what a user says, after the text `system`, if there is one
    demonstration   what a warm start copies, with columns in braces (default: the answer)
    max_new_tokens  default 64, of numbers 256;   stop: default the line's end, but of numbers and
               in a chat nothing ([])

    What differs in case and space alone is one question.  Test problems are distinct until all were
    drawn.  Raises ValueError, naming the row, for an empty cell, one that is no text or number, an
    unknown split, and a question with two answers or in two splits.
    """

    file: str | PathLike[str] | None = None
    prompt: str | None = None
    answer: str | None = None
    split: str | float | None = None
    scorer: str | None = None
    chat: bool | None = None
    system: str | None = None
    demonstration: str | None = None
    max_new_tokens: int | None = None
    stop: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        names, kinds = [f.name for f in fields(Rows)], {"file": str | PathLike, "chat": bool}
        for name in names:  # what is not given is a subclass's attribute, or has a default
            if getattr(self, name) is None:
                setattr(self, name, getattr(type(self), name))
            value, kind = getattr(self, name), kinds.get(name, str)
            checked_below = name in ("split", "max_new_tokens", "stop")
            if not (value is None or checked_below or isinstance(value, kind)):
                told = "true or false" if kind is bool else "a text"
                raise ValueError(f"{name} is {shown(value)}: it must be {told}")
        default = {"scorer": "exact", "chat": False, "split": 0.1}
        default["max_new_tokens"] = 256 if self.scorer == "number" else 64
        default["stop"] = () if self.scorer == "number" or self.chat else "\n"
        vars(self).update({n: v for n, v in default.items() if getattr(self, n) is None})
        whole_number("max_new_tokens", self.max_new_tokens, 1)
        if not isinstance(self.split, str):
            real_number("split", self.split, 0, 1)
        if self.scorer not in ("exact", "contains", "number"):
            raise ValueError(f"scorer is {self.scorer!r}: choose exact, contains or number")
        if self.system and not self.chat:
            raise ValueError("system is of a chat: give chat=true too, or leave it out")
        own = any(getattr(type(self), n) is not getattr(Rows, n) for n in ("reward", "score_row"))
        for name in ("file", "prompt") if own else ("file", "prompt", "answer"):
            if not getattr(self, name):
                told = f"a task of rows needs the option {name!r}"
                raise ValueError(f"{told}: its options are {', '.join(names)}")
        setattr(self, "texts" if self.chat else "messages", None)  # a task has one of them
        self._problems = self._read()
        self._of_split: dict[str, list[_Problem]] = {"train": [], "test": []}
        for problem in self._problems.values():
            self._of_split[problem.split].append(problem)

    def _read(self) -> dict[str, _Problem]:
        """The distinct problems of the file, by the canonical text of their prompts."""
        module = None if type(self) is Rows else sys.modules.get(type(self).__module__)
        folder = Path(getattr(module, "__file__", None) or "here").parent
        path = folder / Path(self.file).expanduser()
        if not path.is_file():
            told = f"there is no file {str(path)!r}: check the path (a relative one is taken from "
            raise ValueError(f"{told}the {'current folder' if module is None else 'task file'})")
        data, self.file = path.read_bytes(), str(path.resolve())
        self.data_sha256 = hashlib.sha256(data).hexdigest()
        rows = rows_of(data, path.name)
        if "\\n" in self.prompt:
            told = f"prompt is {shown(self.prompt)}, with a backslash and an n"
            raise ValueError(f"{told}: for a line end write $'prompt=…\\n…' in a shell")
        columns = {column: column for _, row in rows for column in row}
        for name in ("answer", "split"):
            column = getattr(self, name)
            if isinstance(column, str) and column not in columns:
                told = f"{name} is {shown(column)}, which is no column of {path.name}"
                raise ValueError(f"{told}: it has {listed(columns)}")
        prompt, copied = _template("prompt", self.prompt, columns), self.demonstration
        if copied or self.answer:
            named = ({"answer": self.answer} if self.answer else {}) | columns
            self._copied = _template("demonstration", copied or "{answer}", named)
        problems: dict[str, _Problem] = {}
        for where, row in rows:
            text = _filled(prompt, row, where)
            key, split = canonical(text), "train"
            if not isinstance(self.split, str):
                split = "test" if in_test_split(key, self.split) else "train"
            elif not (split := SPLITS.get(canonical(said := _cell(row, self.split, where)))):
                told = f"{where} is of the split {shown(said)}"
                raise ValueError(f"{told}: write train or test (validation is test, too)")
            new = _Problem(where, row, text, split, self._answer(row, where))
            old = problems.setdefault(key, new)
            for name in ("split", "answer"):
                if (a := getattr(old, name)) != (b := getattr(new, name)):
                    told = f"{old.where} and {where} ask the same question with different {name}s"
                    raise ValueError(f"{told}, {shown(str(a))} and {shown(str(b))}: leave one out")
        return problems

    def _answer(self, row: dict[str, Any], where: str) -> Any:
        """A row's answer as completions are compared with it; the row, if it has none."""
        if self.answer is None:
            return row
        text = _cell(row, self.answer, where)
        answer = last_number(text) if self.scorer == "number" else canonical(text)
        if answer is None:
            raise ValueError(f"{where} has {shown(text)} as its answer: write a number there")
        if self.scorer == "number" and not ENDS_PLAINLY.search(text):
            told = f"{where} has {shown(text)} as its answer, which may be read in several ways"
            raise ValueError(f"{told}: write the number as 1234.5, or take another scorer")
        return answer

    @property
    def defaults(self) -> dict[str, Any]:
        """Those of tasks for language models; each test problem is evaluated at most once."""
        n = self.n_test_problems
        return FewShot.defaults | {"eval_every": 10 * (n > 0), "eval_prompts": min(n, 100) or 1}

    @property
    def n_test_problems(self) -> int:
        """How many distinct problems are held out."""
        return len(self._of_split["test"])

    def texts(self, rng: np.random.Generator, n: int, split: str = "train") -> list[str]:
        """n prompts.   Raises ValueError for a split without problems."""
        return [problem.prompt for problem in self._draw(rng, n, split)]

    def messages(self, rng: np.random.Generator, n: int, split: str = "train") -> list[Chat]:
        """Of a chat: n prompts as conversations."""
        return [self._chat(problem) for problem in self._draw(rng, n, split)]

    def demonstrations(self, rng: np.random.Generator, n: int) -> list[tuple[str | Chat, str]]:
        """n train problems, each with a text to copy."""
        if not self.demonstration and not self.answer:
            raise ValueError("there is nothing to demonstrate: give answer, or demonstration")
        found = []
        for p in self._draw(rng, n, "train"):
            text = _filled(self._copied, p.row, p.where)
            if not (self.demonstration or self.chat or p.prompt[-1:].isspace()):
                text = " " + text.strip()  # between two words
            found.append((self._chat(p) if self.chat else p.prompt, text))
        return found

    def reward(self, prompt: str | Chat, completion: str) -> Any:
        """What `score_row` gives for the row of the prompt."""
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        if (problem := self._problems.get(canonical(text))) is None:
            told = f"the prompt {shown(text)} is none of {Path(self.file).name}"
            raise ValueError(f"{told}, so there is no row to judge by: give one that is")
        return self.score_row(problem.row, completion)

    def score_row(self, row: dict[str, Any], completion: str) -> Any:
        """1 if the completion is right by the scorer, else 0; yours may return named parts."""
        answer, said = self._answer(row, "the row"), canonical(completion)
        if self.scorer == "number":
            return float(last_number(completion) == answer)
        if self.scorer == "contains":
            return float(bool(re.search(rf"(?<!{LETTER}){re.escape(answer)}(?!{LETTER})", said)))
        return float(said == answer)

    def _draw(self, rng: np.random.Generator, n: int, split: str) -> list[_Problem]:
        """n problems, distinct until all were drawn; then they are repeated in order."""
        check_split(split)
        n, of_split = whole_number("the number of prompts", n, 0), self._of_split[split]
        if n and not of_split:
            told = f"{Path(self.file).name} has no {split} problem at split={self.split}"
            raise ValueError(f"{told}: give another share, or rows of both splits")
        picked = rng.choice(len(of_split), min(n, len(of_split)), replace=False)
        return [of_split[picked[i % len(picked)]] for i in range(n)]

    def _chat(self, problem: _Problem) -> Chat:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": problem.prompt}]


def _cell(row: Mapping[str, Any], column: str, where: str) -> str:
    """A cell as a text: a whole number without ".0".   Raises ValueError for an empty one."""
    value = row.get(column)
    if isinstance(value, list | dict | bytes):
        raise ValueError(f"{where} has {shown(value)} as {column!r}: write a text or a number")
    if isinstance(value, float | Decimal) and value % 1 == 0:
        value = int(value)
    if value is None or value != value or not str(value).strip():
        raise ValueError(f"{where} has an empty {column!r}: fill it in, or leave the row out")
    if re.match(r'\s+".*"\s*$', str(value), re.DOTALL):
        told = f"{where} has {shown(value)} as {column!r}, a space before its quotation marks"
        raise ValueError(f"{told}, which then belong to the text: take out the space")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _template(name: str, text: str, columns: Mapping[str, str]) -> Template:
    """A column, or a text with columns in braces.   Raises ValueError for anything else."""
    if text in columns:
        return [("", columns[text])]
    with suppress(ValueError):  # as of a lone brace
        pieces = list(Formatter().parse(text))
        used = {column for _, column, *_ in pieces} - {None}
        if used and used <= set(columns) and not any(a or b for *_, a, b in pieces):
            return [(before, columns.get(column or "")) for before, column, *_ in pieces]
    told = f"{name} is {shown(text)}, neither a column nor a text with columns in braces"
    told += f": the columns are {listed(columns)}, and braces of other use are written twice"
    raise ValueError(told)


def _filled(template: Template, row: Mapping[str, Any], where: str) -> str:
    return "".join(before + (_cell(row, c, where) if c else "") for before, c in template)


def canonical(text: str) -> str:
    """What a text shares with those that differ from it in case and space alone."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def last_number(text: str) -> Decimal | None:
    """The last number in a text, exactly: 1234.50 of "#### 1,234.50".   None if there is none"""
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace("\u2212", "-")) if found else None
