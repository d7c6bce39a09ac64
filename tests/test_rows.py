"""Problems from a table of the user's own: what is read, what is held out, what is right, and what
is refused, with the row.
"""

import csv
import datetime
import importlib
import io
import json
import sys
from decimal import Decimal

import numpy as np
import pytest

from minigrpo.system.tables import rows_of
from minigrpo.tasks import Rows, find_task
from minigrpo.tasks.rows import last_number

CAPITALS = {"France": "Paris", "Italy": "Rome", "Peru": "Lima", "Cuba": "Havana", "Egypt": "Cairo"}
TABLE = [{"country": c, "capital": a, "split": "train"} for c, a in CAPITALS.items()]
for record in TABLE[3:]:
    record["split"] = "test"
COLUMNS = {"prompt": "Capital of {country}:", "answer": "capital", "split": "split"}


def csv_text(rows, mark=","):
    return "\n".join([mark.join(rows[0]), *(mark.join(map(str, r.values())) for r in rows)]) + "\n"


def write(folder, name, rows):
    """A table in the format of its name, with CSV by hand."""
    file = folder / name
    if name.endswith(".parquet"):
        pa = pytest.importorskip("pyarrow", reason="Parquet needs the extra logs")
        parquet = importlib.import_module("pyarrow.parquet")
        parquet.write_table(pa.Table.from_pylist(rows), file)
    elif name.endswith(("jsonl", "ndjson")):
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    elif name.endswith(".json"):
        file.write_text(json.dumps(rows), encoding="utf-8")
    else:
        file.write_text(csv_text(rows, "\t" if name.endswith(".tsv") else ","), encoding="utf-8")
    return file


def rows_task(folder, rows=None, name="t.jsonl", **options):
    return Rows(write(folder, name, rows or TABLE), **(COLUMNS | options))


def rng():
    return np.random.default_rng(0)


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.json", "t.jsonl", "t.ndjson", "t.parquet"])
def test_every_format_gives_the_same_problems(name, tmp_path):
    task = rows_task(tmp_path, name=name)
    assert sorted(task.texts(rng(), 3)) == [f"Capital of {c}:" for c in ("France", "Italy", "Peru")]
    assert sorted(task.texts(rng(), 2, "test")) == ["Capital of Cuba:", "Capital of Egypt:"]
    assert (
        task.reward("Capital of Cuba:", " HAVANA ") == 1
        and task.reward("Capital of Cuba:", "Lima") == 0
    )


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_as_spreadsheets_write_it(mark, encoding, end, tmp_path):
    text = csv_text([*TABLE[:2], TABLE[2] | {"country": "Per\u00fa"}], mark).replace("\n", end)
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    task = Rows(tmp_path / "t.csv", **COLUMNS)
    assert "Capital of Per\u00fa:" in task.texts(rng(), 3)


def test_cells_with_commas_quotes_and_line_ends(tmp_path):
    (tmp_path / "t.csv").write_text('q,a\n"one, ""two""\nthree",1\n\nfour,2\n', encoding="utf-8")
    task = Rows(tmp_path / "t.csv", prompt="q", answer="a", split=0)
    assert sorted(task.texts(rng(), 2)) == ["four", 'one, "two"\nthree']


def test_csv_is_read_as_pythons_writer_wrote_it():
    draw = np.random.default_rng(6)
    for _ in range(100):
        names = [f"c{i}" for i in range(draw.integers(2, 5))]
        cells = [
            ["".join(draw.choice(list('ab,;\t"\n \u2028\u4e2d'), 5)) for _ in names] for _ in "123"
        ]
        out = io.StringIO(newline="")
        csv.writer(out, delimiter=str(draw.choice([",", ";", "\t"]))).writerows([names, *cells])
        found = [list(row.values()) for _, row in rows_of(out.getvalue().encode(), "t.csv")]
        assert found == cells


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "a,b\n1\n", 'line 2 of t.csv has 1 fields, not one for each of "a", "b"$'),
        ("t.csv", "a,b,a\n1,2,3\n", r'line 2 of t.csv .* \("a" is there twice\)$'),
        ("t.csv", 'a,b\n1,2\n"3,4\n', "malformed CSV of t.csv, at line 3: unexpected end"),
        ("t.csv", "a,b\n", "t.csv has no rows$"),
        ("t.csv", "", "t.csv has no rows$"),
        ("t.csv", b"a,b\n\xe9,1\n", r"t.csv is not UTF-8 text \(at byte 4\): write it as UTF-8"),
        ("t.csv", b"a\0,\0b\0", "t.csv holds zero bytes"),
        ("t.jsonl", '{"a": 1}\n{"a": \n', "malformed JSON at line 2, column 7 of t.jsonl"),
        ("t.jsonl", '{"a": 1}\n[2]\n', "line 2 of t.jsonl is not a JSON object"),
        ("t.jsonl", "\n", "t.jsonl has no rows$"),
        (
            "t.json",
            "[1, 2]",
            "row 0 .from 0. of t.json is not a JSON object: write one for each row",
        ),
        ("t.json", "[]", "t.json has no rows"),
        ("t.txt", "a,b\n1,2\n", "t.txt is no table that is read: give .jsonl, .ndjson, .json, "),
    ],
)
def test_a_damaged_file_is_told_with_the_place(name, text, message, tmp_path):
    data = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(ValueError, match=message):
        rows_of(data, name)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        Rows(tmp_path / name, prompt="a", answer="b")


def test_parquet_without_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    told = r'^t.parquet is a Parquet file, .* pyarrow: pip install "minigrpo\[logs\]"$'
    with pytest.raises(ValueError, match=told):
        Rows(tmp_path / "t.parquet", **COLUMNS)


def test_a_damaged_parquet_file():
    pytest.importorskip("pyarrow", reason="Parquet needs the extra logs")
    with pytest.raises(ValueError, match=r"^t\.parquet: "):
        rows_of(b"PAR1 and nothing else", "t.parquet")


# -- cells -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        *((1, "1"), (1.0, "1"), (-2.0, "-2"), (1.5, "1.5"), ("1.0", "1.0"), ("007", "007")),
        *((True, "true"), (1e22, "10000000000000000000000"), (" a b ", "a b"), (0, "0")),
    ],
)
@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_an_answer_as_a_text(cell, text, name, tmp_path):
    task = Rows(write(tmp_path, name, [{"q": "Q", "a": cell}]), prompt="q", answer="a", split=0)
    assert task.demonstrations(rng(), 1) == [("Q", f" {text}")]
    assert task.reward("Q", text.upper()) == 1 and task.reward("Q", f"{text}.") == 0


def test_what_parquet_alone_can_hold(tmp_path):
    rows = [{"q": datetime.date(2024, 2, 29), "a": Decimal("2.50"), "n": Decimal("3.00")}]
    file = write(tmp_path, "t.parquet", rows)
    task = Rows(file, prompt="q", answer="a", split=0, demonstration="{a} {n}")
    assert task.demonstrations(rng(), 1) == [("2024-02-29", "2.50 3")]


@pytest.mark.parametrize("cell", [None, "", "  \t", float("nan")])
@pytest.mark.parametrize("column", ["country", "capital", "split"])
def test_an_empty_cell_is_refused_with_its_row(cell, column, tmp_path):
    rows = [*TABLE[:2], TABLE[2] | {column: cell}]
    with pytest.raises(ValueError, match=f"^line 3 of t.jsonl has an empty '{column}': fill it in"):
        rows_task(tmp_path, rows)
    del rows[2][column]
    with pytest.raises(ValueError, match=f"^line 3 of t.jsonl has an empty '{column}'"):
        rows_task(tmp_path, rows)
    assert rows_task(tmp_path, [r | {"other": cell} for r in TABLE]).texts(rng(), 1)


@pytest.mark.parametrize("cell", [["a"], {"role": "user"}])
def test_a_cell_that_is_no_text(cell, tmp_path):
    with pytest.raises(ValueError, match=r"^line 6 of t.jsonl has .* as 'country': write a text"):
        rows_task(tmp_path, [*TABLE, {"country": cell, "capital": "x", "split": "test"}])


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "nation"}, "prompt is 'nation', neither a column nor .* \"country\","),
        ({"prompt": "{nation}"}, "prompt is '{nation}', neither"),
        ({"prompt": "{country.__class__}"}, "neither a column"),
        ({"prompt": "{country!r}"}, "neither a column"),
        ({"prompt": "{country:>9}"}, "neither a column"),
        ({"prompt": "{}"}, "neither a column"),
        ({"prompt": "{country"}, "neither a column"),
        ({"prompt": "{answer}"}, "neither a column"),  # of demonstrations alone
        ({"prompt": 'as {"country": 1}: {country}'}, "braces of other use are written twice"),
        ({"answer": "city"}, "answer is 'city', which is no column of t.jsonl: it has \"country\""),
        ({"answer": None}, "needs the option 'answer': its options are file, prompt, answer"),
        ({"split": "part"}, "split is 'part', which is no column of t.jsonl"),
        ({"split": 1.5}, "split is 1.5: it must be a finite number from 0 to 1"),
        ({"split": True}, "split is True"),
        ({"scorer": "fuzzy"}, "scorer is 'fuzzy': choose exact, contains or number"),
        ({"scorer": "number"}, "line 1 of t.jsonl has 'Paris' as its answer: write a number there"),
        ({"chat": "yes"}, "chat is 'yes': it must be true or false"),
        ({"chat": 1}, "chat is 1: it must be true or false"),
        ({"system": "Be brief."}, "system is of a chat: give chat=true too"),
        ({"demonstration": "It is {city}"}, "demonstration is 'It is {city}', neither a column"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
    ],
)  # fmt: skip
def test_options_that_do_not_work(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        rows_task(tmp_path, **options)


def test_a_file_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = "^there is no file 'gone.csv': check the path .* taken from the current folder"
    with pytest.raises(ValueError, match=told):
        find_task("rows", file="gone.csv", prompt="q", answer="a")
    with pytest.raises(ValueError, match="needs the option 'file': its options are file, prompt"):
        find_task("rows")
    with pytest.raises(ValueError, match="task 'rows' has no option 'column'"):
        find_task("rows", column=1)


def test_defaults_follow_the_kind_of_answer(tmp_path):
    found = {
        kind: rows_task(tmp_path, [r | {"n": 1} for r in TABLE], **options)
        for kind, options in {
            "text": {},
            "number": {"scorer": "number", "answer": "n"},
            "chat": {"chat": True},
            "own": {"stop": ["END"], "max_new_tokens": 7},
        }.items()
    }
    limits = {kind: (task.max_new_tokens, task.stop) for kind, task in found.items()}
    assert limits == {
        "text": (64, "\n"),
        "number": (256, ()),
        "chat": (64, ()),
        "own": (7, ["END"]),
    }
    assert (
        found["text"].defaults["eval_prompts"] == 2 and found["text"].defaults["eval_every"] == 10
    )
    assert rows_task(tmp_path, TABLE[:3]).defaults["eval_every"] == 0  # nothing is held out


# -- splits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["val", "Validation", " dev ", "TEST", "eval", "test"])
def test_names_of_splits(name, tmp_path):
    rows = [r | {"split": name if r["split"] == "test" else "Train"} for r in TABLE]
    task = rows_task(tmp_path, rows)
    assert sorted(task.texts(rng(), 2, "test")) == ["Capital of Cuba:", "Capital of Egypt:"]
    with pytest.raises(
        ValueError, match=r"^line 6 of t.jsonl is of the split 'hidden': write train"
    ):
        rows_task(tmp_path, [*rows, {"country": "x", "capital": "y", "split": "hidden"}])


def test_a_share_never_parts_one_question(tmp_path):
    """Every problem is there in four spellings: they land in one split and count once."""
    ways = ["What is {}  + 1 ?", "what is {} + 1 ?", " WHAT IS\n{} + 1 ?", "What is {} + 1 ?\u00a0"]
    rows = [{"q": way.format(i), "a": i + 1} for way in ways for i in range(300)]
    task = Rows(write(tmp_path, "t.jsonl", rows), prompt="q", answer="a", split=0.2)
    held, seen = task.texts(rng(), 10**3, "test"), task.texts(rng(), 10**3)
    n = len({" ".join(t.casefold().split()) for t in held})
    assert 40 <= n <= 80 and len(set(held)) == n and len(set(seen)) == 300 - n
    spelled = [{" ".join(t.casefold().split()) for t in split} for split in (held, seen)]
    assert not spelled[0] & spelled[1]
    again = Rows(write(tmp_path, "s.jsonl", rows[::-1]), prompt="q", answer="a", split=0.2)
    turned = {" ".join(t.casefold().split()) for t in again.texts(rng(), 10**3, "test")}
    assert turned == spelled[0]  # whatever the order of the rows


def test_problems_are_distinct_until_all_were_drawn(tmp_path):
    task = Rows(
        write(tmp_path, "t.jsonl", [{"q": f"q{i}", "a": i} for i in range(50)]),
        prompt="q", answer="a", split=0.5,
    )  # fmt: skip
    for split in ("train", "test"):
        n = len(set(task.texts(rng(), 500, split)))
        drawn = task.texts(rng(), 2 * n + 1, split)
        assert len(set(drawn[:n])) == n and drawn[n : 2 * n] == drawn[:n]
        assert task.texts(rng(), 5, split) == task.texts(rng(), 5, split)
    assert task.texts(rng(), 0) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"capital": "Lyon"}, "with different answers, 'paris' and 'lyon'"),
        ({"split": "test"}, "with different splits, 'train' and 'test'"),
    ],
)
def test_one_question_twice(change, told, tmp_path):
    twin = {"country": "  france", "capital": "PARIS ", "split": "train"}
    assert len(set(rows_task(tmp_path, [*TABLE, twin]).texts(rng(), 99))) == 3
    place = "line 1 of t.jsonl and line 6 of t.jsonl"
    with pytest.raises(ValueError, match=f"^{place} ask the same question {told}: leave one out$"):
        rows_task(tmp_path, [*TABLE, twin | change])


def test_one_question_twice_where_answers_are_numbers(tmp_path):
    rows = [{"q": "1+1", "a": "2"}, {"q": "1 + 1".replace(" ", ""), "a": "so #### 2.0"}]
    assert Rows(write(tmp_path, "t.jsonl", rows), prompt="q", answer="a", scorer="number", split=0)
    rows[1]["a"] = "3"
    with pytest.raises(ValueError, match="different answers, '2' and '3'"):
        Rows(write(tmp_path, "t.jsonl", rows), prompt="q", answer="a", scorer="number", split=0)


@pytest.mark.parametrize(("split", "empty"), [(0, "test"), (1, "train")])
def test_an_empty_split_is_told_when_it_is_asked(split, empty, tmp_path):
    task = rows_task(tmp_path, split=split)
    assert task.texts(rng(), 0, empty) == []
    with pytest.raises(ValueError, match=f"t.jsonl has no {empty} problem at split={split}: give"):
        task.texts(rng(), 1, empty)
    with pytest.raises(ValueError, match="there is no split 'dev'"):
        task.texts(rng(), 1, "dev")


# -- scorers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scorer", "answer", "right", "wrong"),
    [
        (
            "exact",
            "New  York",
            ["new york", " NEW\nYORK "],
            ["New York.", "NewYork", "", "New York City"],
        ),
        ("exact", "Stra\u00dfe", ["STRASSE", "stra\u00dfe"], ["strase"]),
        (
            "contains",
            "5",
            ["5", "it is 5.", "x=5", "(5)", "5\u5186", "5 or 6"],
            ["15", "5th", "a5", "5\u00e9", "", "five"],
        ),
        ("contains", "C++", ["in c++!", "C++"], ["C+", "c ++"]),
        ("contains", "\u6771\u4eac", ["\u7b54\u3048\u306f\u6771\u4eac\u3067\u3059"], ["\u4eac"]),
        (
            "number",
            "1,234.50",
            ["1234.5", "so 7 and then $1,234.50.", "**1234.500**", "1.2345e3", "+1234.5"],
            ["1234", "-1234.5", "1234.5 or 2", "", "none", "1234.50000000000000000001"],
        ),
        ("number", "#### 0.1", [".1", "0.10", "1e-1"], ["0.1000000000000000055", "1", "x.1"]),
        ("number", -7, ["\u22127", "is -7", "5 - 12 = -7"], ["7", "5-7", "a-7"]),
        ("number", 10**30, [str(10**30), "1e30"], [str(10**30 + 1), "1e29", "1e99999"]),
    ],
)
def test_scorers(scorer, answer, right, wrong, tmp_path):
    file = write(tmp_path, "t.jsonl", [{"q": "Q", "a": answer}])
    task = Rows(file, prompt="q", answer="a", scorer=scorer, split=0)
    assert [task.reward("Q", text) for text in right] == [1.0] * len(right)
    assert [task.reward("Q", text) for text in wrong] == [0.0] * len(wrong)


def test_the_last_number_of_a_sentence_is_read_exactly():
    draw = np.random.default_rng(5)
    for _ in range(300):
        n = Decimal(int(draw.integers(-(10**9), 10**9))).scaleb(-int(draw.integers(5)))
        before = draw.choice(["", "2 and 3, so ", "= ", "\\boxed{", "$", "**", "(a) "])
        after = draw.choice(["", ".", "**", "}", " km", "%", ",", ". No more"])
        for text in (f"{before}{n:,f}{after}", f"{before}{n:f}{after}"):
            assert last_number(text) == n, text
    assert last_number("none at all, x2 and v1.2.3") is None


def test_a_prompt_of_no_row(tmp_path):
    task = rows_task(tmp_path)
    assert task.reward("capital  of FRANCE:", "paris") == 1
    told = "the prompt 'Capital of Chile:' is none of t.jsonl, so there is no row to judge by"
    with pytest.raises(ValueError, match=told):
        task.reward("Capital of Chile:", "Santiago")


# -- demonstrations, chats, subclasses -------------------------------------------------------------


def test_demonstrations_are_of_the_train_split_alone(tmp_path):
    task = rows_task(tmp_path)
    pairs = task.demonstrations(rng(), 50)
    assert set(pairs) == {
        (f"Capital of {c}:", f" {CAPITALS[c]}") for c in ("France", "Italy", "Peru")
    }
    own = rows_task(tmp_path, demonstration='{{"{country}": "{answer}"}}')
    assert ("Capital of Peru:", '{"Peru": "Lima"}') in own.demonstrations(rng(), 3)
    spaced = rows_task(tmp_path, prompt="Capital of {country}: ")
    assert ("Capital of Peru: ", "Lima") in spaced.demonstrations(rng(), 3)


def test_a_column_called_answer_is_meant_by_its_name(tmp_path):
    rows = [r | {"answer": "its own"} for r in TABLE]
    own = rows_task(tmp_path, rows, demonstration="{answer}, {capital}")
    assert ("Capital of Peru:", "its own, Lima") in own.demonstrations(rng(), 3)


def test_a_chat(tmp_path):
    task = rows_task(tmp_path, chat=True, system="Answer with one word.")
    assert task.texts is None
    rules = {"role": "system", "content": "Answer with one word."}
    (conversation,) = task.messages(np.random.default_rng(3), 1)
    assert conversation[0] == rules and conversation[1]["role"] == "user"
    prompt, text = task.demonstrations(np.random.default_rng(3), 1)[0]
    assert prompt == conversation and task.reward(conversation, text) == 1
    assert not text.startswith(" ")  # a turn of its own
    assert len(rows_task(tmp_path, chat=True).messages(rng(), 1)[0]) == 1
    assert rows_task(tmp_path).messages is None


TASK = """
from minigrpo.tasks import Rows
from beside import WEIGHT

class Mine(Rows):
    file, prompt, split, answer = "t.csv", "Capital of {country}:", "split", None
    max_new_tokens, stop, reward_weights = 9, "!", {"short": WEIGHT}

    def score_row(self, row, completion):
        return {"right": float(row["capital"] in completion), "short": len(completion) < 8}

class Plain(Rows):
    def __init__(self, file="t.csv"):
        super().__init__(file, prompt="country", answer="capital", scorer="contains", split=0)

class Judge(Mine):
    def reward(self, prompt, completion):
        return len(prompt)
"""


def test_a_subclass_has_options_as_attributes_and_its_file_beside_it(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/mine.py").write_text(TASK, encoding="utf-8")
    (tmp_path / "own/beside.py").write_text("WEIGHT = 0.5\n", encoding="utf-8")
    write(tmp_path / "own", "t.csv", TABLE)
    write(tmp_path / "own", "u.csv", TABLE[:1])
    write(tmp_path, "t.csv", [{"another": "table"}])  # of the current folder
    monkeypatch.chdir(tmp_path)
    task = find_task("own/mine.py:Mine")
    assert task.reward("Capital of Cuba:", "Havana") == {"right": 1, "short": True}
    assert (task.max_new_tokens, task.stop, task.reward_weights) == (9, "!", {"short": 0.5})
    assert find_task("own/mine.py:Mine", split=0, stop="?").stop == "?"
    assert find_task("own/mine.py:Mine", split=0).texts(rng(), 9).count("Capital of Cuba:") == 2
    plain = find_task("own/mine.py:Plain", file="u.csv")
    assert plain.texts(rng(), 1) == ["France"] and plain.reward("france", "in Paris!") == 1
    assert find_task("own/mine.py:Judge").reward("four", "") == 4
    with pytest.raises(ValueError, match=r"no file '.*own/gone.csv'.* taken from the task file"):
        find_task("own/mine.py:Mine", file="gone.csv")
    with pytest.raises(ValueError, match="nothing to demonstrate: give answer, or demonstration"):
        task.demonstrations(rng(), 1)
    (tmp_path / "own/t.csv").write_text(csv_text([*TABLE, TABLE[0] | {"capital": "Lyon"}]))
    with pytest.raises(ValueError, match=r"line 2 of t.csv and line 7 of t.csv ask the same"):
        find_task("own/mine.py:Mine")  # without an answer's column, the whole row decides


@pytest.mark.parametrize(
    "said", ["3,5", "1 234,50", "1/2", "10:30", "1'234", "3 × 10^8", "1.234.567"]
)
def test_an_answer_that_may_be_read_in_several_ways_is_refused(tmp_path, said):
    file = tmp_path / "t.csv"
    file.write_text(f"q;a\nWhat?;{said}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="may be read in several ways"):
        Rows(file=str(file), prompt="q", answer="a", scorer="number")


@pytest.mark.parametrize(
    ("said", "number"),
    [("#### 1,234", "1234"), ("so 8 + 1: 9", "9"), ("$5.50", "5.5"), ("72 kg", "72"), ("-3", "-3")],
)
def test_a_plain_last_number_is_the_answer(tmp_path, said, number):
    file = tmp_path / "t.csv"
    file.write_text(f'q;a\nWhat?;"{said}"\n', encoding="utf-8")
    task = Rows(file=str(file), prompt="q", answer="a", scorer="number")
    assert task.reward("What?", f"It is {number}.") == 1 and task.reward("What?", "4") == 0


def test_an_exponent_is_no_digit(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("q,a\nWhat is 10\u00b2?,100\nWhat is 102?,102\n", encoding="utf-8")
    task = Rows(file=str(file), prompt="q", answer="a")
    assert task.reward("What is 10\u00b2?", "100") == task.reward("What is 102?", "102") == 1


@pytest.mark.parametrize(
    ("rows", "prompt", "told"),
    [
        ('q,a\nWhat?, "z"\n', "q", "a space before its quotation marks"),
        ("q,a\nWhat?,z\n", r"Q: {q}\nA:", "with a backslash and an n"),
    ],
)
def test_what_would_be_taken_into_a_text_by_mistake_is_refused(tmp_path, rows, prompt, told):
    file = tmp_path / "t.csv"
    file.write_text(rows, encoding="utf-8")
    with pytest.raises(ValueError, match=told):
        Rows(file=str(file), prompt=prompt, answer="a")
