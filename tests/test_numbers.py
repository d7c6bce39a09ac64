"""No number without its table: README.md, results/README.md and the chapters' text against the
tables.

`numbers.toml` lists the numbers and explains how to add one.  Three things are checked: a listed
number is its table's, to the digits that are written; a listed sentence is still in its document;
and whatever looks like a measured number is listed.
"""

import itertools
import json
import re
import shlex
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minigrpo.show.plots import bootstrap_interval

ROOT = Path(__file__).parents[1]
LIST = tomllib.loads((ROOT / "tests/numbers.toml").read_text(encoding="utf-8"))
CHAPTERS = sorted(f"tutorials/{file.name}" for file in (ROOT / "tutorials").glob("*.ipynb"))
DOCUMENTS = ("README.md", "minigrpo/README.md", "results/README.md", *CHAPTERS)
LISTED_IN_PART = ("benchmarks/README.md",)  # much of it tells of runs that no table holds

TABLE = "⊞"  # stands in a section's prose where a table is
NUMBER = r"(?<![\w.,:/^])[−+-]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[−+-]?\d+)?(?![\w.]?\d)"
NUMERALS = ["none", "one", "two", "three", "four", "five", "six"]
NUMERALS += ["seven", "eight", "nine", "ten", "eleven", "twelve"]
MARKED = rf"\{{({NUMBER}|{'|'.join(NUMERALS)})\}}"
UNIT = r"\\?(?:%|ms\b|s\b|min\b|minutes?\b|hours?\b|seconds?\b|times\b|[GM]i?B\b|GFLOP)"
# "20 to 35 %": the 20 is a percentage, too.
LIST_OF = rf"(?:\s?(?:,|to|and|or|…|against|instead of)?\s?{NUMBER})*\s?"
NO_CLAIM = (  # links, code in a sentence, numbers of sections, of papers and of pages
    r"\]\([^)]*\)|https?://\S+|arXiv:\S+|\d{4}\.\d{5}|`[^`]*`",
    r"CUDA \d+|\b[a-zA-Z] = \d+(?![\d.]|\s?\\?%)",
    r"[Ss]ections?\s+\d+\.\d+(?:(?:,| and| to|, and)\s+\d+\.\d+)*|(?:setting|map) of \d\.\d",
)


# -- documents -------------------------------------------------------------------------------------


def words(lines):
    return " ".join(" ".join(lines).split())


@cache
def text_of(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    if document.endswith(".ipynb"):
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
    return text


def sections(text):
    """Of every section its heading, its prose in one line, and its tables as lists of lines."""
    found, fenced = [SimpleNamespace(heading="", prose=[], tables=[])], False
    for line in [*text.splitlines(), ""]:
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced and re.match(r"#+ ", line):
            found.append(SimpleNamespace(heading=line.lstrip("# "), prose=[], tables=[]))
        elif not fenced and line.startswith("|"):
            if not found[-1].prose or found[-1].prose[-1] != TABLE:
                found[-1].tables.append([])
                found[-1].prose.append(TABLE)
            found[-1].tables[-1].append(line)
        else:
            found[-1].prose.append(line.partition("# ")[2] if fenced else line)  # its comments
    for section in found:
        section.prose = words(section.prose)
    return found


def places(text):
    """(heading, text in one line) of every section's prose and of each of its tables."""
    for section in sections(text):
        for lines in ([section.prose], *section.tables):
            yield section.heading, words(lines)


@cache
def printed_in(document):
    """The numbers that a chapter's cells have printed, by the heading of their section."""
    found, heading = {}, ""
    if not document.endswith(".ipynb"):
        return found
    for cell in json.loads((ROOT / document).read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            for line in "".join(cell["source"]).splitlines():
                heading = line.lstrip("# ") if re.match(r"#+ ", line) else heading
        for output in cell.get("outputs", []):
            shown = [output.get("text", ""), output.get("data", {}).get("text/markdown", "")]
            numbers = re.findall(
                r"[−+-]?\d+(?:\.\d*)?(?:e[−+-]?\d+)?", "".join(map("".join, shown))
            )
            found.setdefault(heading, set()).update(map(number, numbers))
    return found


def is_printed(text, match, printed):
    """Whether one of the printed numbers is this one, to the digits that are written."""
    value, half = abs(number(match[0])), 0.5000001 * unit_of_last_digit(match[0])
    scales = (1, 100) if is_percentage(text, match.end()) else (1,)
    return any(abs(abs(x) * scale - value) <= half for x in printed for scale in scales)


def blank(pattern, text):
    return re.sub(pattern, lambda match: " " * len(match[0]), text)


def claims(text):
    """The numbers that look measured: with decimals, an exponent, or a unit after them."""
    for pattern in NO_CLAIM:
        text = blank(pattern, text)
    for match in re.finditer(NUMBER, text):
        if re.search(r"\.|\de", match[0]) or re.match(LIST_OF + UNIT, text[match.end() :]):
            yield match


def is_percentage(text, end):
    return re.match(LIST_OF + r"\\?%", text[end:]) is not None


def number(text):
    return float(text.replace(",", "").replace("−", "-"))


def unit_of_last_digit(text):
    digits, _, exponent = text.replace("−", "-").partition("e")
    return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))


# -- tables ----------------------------------------------------------------------------------------

REDUCTIONS = {
    "max": max,
    "min": min,
    "sum": sum,
    "mean": lambda values: sum(values) / len(values),
    "maxabs": lambda values: max(map(abs, values)),
    "how_many": len,
}
COMPARE = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
}
COMBINE = {
    "over": lambda a, b: a / b,
    "minus": lambda a, b: a - b,
    "times": lambda a, b: a * b,
    "plus": lambda a, b: a + b,
    "larger": max,
    "smaller": min,
}


@cache
def table(name):
    folder = ROOT if "/" in name else ROOT / "results"
    return json.loads((folder / name).read_text(encoding="utf-8"))


def reach(value, path):
    for i, key in enumerate(path):
        if key == "*":
            items = value.values() if isinstance(value, dict) else value
            return [reach(item, path[i + 1 :]) for item in items]
        value = value[int(key) if isinstance(value, list) else key]
    return value


def column_of(row, column):
    if "/" in column and " / " not in column:  # a ratio, and not a name with a slash
        above, below = column.split("/")
        return reach(row, above.split(":")) / reach(row, below.split(":"))
    return reach(row, column.split(":"))


def flat(value):
    return [x for item in value for x in flat(item)] if isinstance(value, list) else [value]


def passes(row, key, sign, wanted):
    value = reach(row, key.split(":"))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return COMPARE[sign](value, float(wanted))
    return COMPARE[sign](str(value), wanted)


def term(tokens):
    """One number out of a table, from the words that select it (see numbers.toml)."""
    if len(tokens) == 1 and re.fullmatch(NUMBER, tokens[0]):
        return number(tokens[0])
    file, filters, reduction, largest, columns = None, [], None, False, []
    for token in tokens:
        if found := re.fullmatch(r"(.+?)(!=|=|<|>)(.*)", token):
            filters.append(found.groups())
        elif ".json" in token:
            file = token
        elif token == "largest":
            largest = True
        elif token in REDUCTIONS:
            reduction = token
        else:
            columns = token.split(",")
    name, *path = file.split(":")
    rows = reach(table(name), path)
    rows = rows if isinstance(rows, list) else [rows]
    values = rows = [row for row in rows if all(passes(row, *f) for f in filters)]
    if columns:
        values = [flat([column_of(row, column) for column in columns]) for row in rows]
        values = [max(row) for row in values] if largest else flat(values)
    if not values and reduction != "how_many":
        raise LookupError(f"no row fits {' '.join(tokens)}")
    if reduction is None and len(values) > 1:
        raise LookupError(f"{len(values)} numbers fit {' '.join(tokens)}")
    return REDUCTIONS[reduction](values) if reduction else values[0]


def value_of(selector, common=""):
    """The number that a selector means; `common` stands before its terms that name no table."""
    parts, operators = [[]], []
    for token in shlex.split(selector):
        if token in COMBINE:
            operators.append(token)
            parts.append([])
        else:
            parts[-1].append(token)
    values = []
    for part in parts:
        alone = ".json" in " ".join(part) or re.fullmatch(NUMBER, " ".join(part))
        values.append(term(part if alone else [*shlex.split(common), *part]))
    for operator, other in zip(operators, values[1:], strict=True):
        values[0] = COMBINE[operator](values[0], other)
    return values[0]


def problem(written, selector, common="", percentage=False):
    """Why the number that is written is not the one of the table; None if it is."""
    if selector in LIST["reasons"]:
        return None
    written = str(NUMERALS.index(written)) if written in NUMERALS else written
    bound, _, rest = selector.partition(" ")
    selector = rest if bound in ("below", "above") else selector
    try:
        value = float(value_of(selector, common)) * (100 if percentage else 1)
    except (LookupError, ValueError, TypeError, OSError) as error:
        return f"{written}: {error!r} ({common} {selector})"
    said = number(written)
    if bound == "below":
        right = value < said
    elif bound == "above":
        right = value > said
    else:
        half = 0.5 * unit_of_last_digit(written)
        right = abs(value - said) <= half * (1 + 1e-6) + 1e-9 * abs(value)
    return None if right else f"{written}: the table has {value:.6g} ({common} {selector})"


# -- what is listed --------------------------------------------------------------------------------


def check_sentence(entry, text):
    """Problems of an entry of `sentence`."""
    says, problems = words([entry["says"]]), []
    plain = re.sub(MARKED, r"\1", says)
    if not any(plain in place for _, place in places(text)):
        return [f"gone: {plain}"]
    marks, reason = list(re.finditer(MARKED, says)), entry.get("reason")
    if reason:
        known = reason in LIST["reasons"] and not marks
        return [] if known else [f"a reason that is not listed, or marks beside it: {plain}"]
    if not marks or len(marks) != len(entry["are"]):
        return [f"{len(marks)} marked numbers, {len(entry['are'])} selectors: {plain}"]
    for mark, selector in zip(marks, entry["are"], strict=True):
        after = re.sub(MARKED, r"\1", says[mark.end() :])
        problems.append(problem(mark[1], selector, entry.get("from", ""), is_percentage(after, 0)))
    return [f"{p} in: {plain}" for p in problems if p]


def tables_like(entry, text):
    """The tables whose first line begins as the entry says, after its words, if it has any."""
    found = []
    for section in sections(text):
        before = section.prose.split(TABLE)
        for lines, prose in zip(section.tables, before, strict=False):
            after = prose.strip().endswith(entry.get("after", ""))
            if lines[0].startswith(entry["header"]) and after:
                found.append(lines)
    return found


def cells(line):
    return [cell.strip().replace("**", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def parts_of(spec):
    """`±x` is x, x_low, x_high."""
    out = []
    for part in spec.split(";"):
        found = re.search(r"±(\S+)", part)
        ends = ("", "_low", "_high") if found else ()
        out += [part.replace(found[0], found[1] + end) for end in ends] or [part.strip()]
    return out


def check_table(entry, text):
    """Problems of an entry of `table`."""
    found = tables_like(entry, text)
    if len(found) != 1:
        return [f"{len(found)} tables begin with {entry['header']}"]
    if "reason" in entry:
        return [] if entry["reason"] in LIST["reasons"] else [f"no such reason: {entry['reason']}"]
    lines, problems = found[0][2:], []
    rows = entry.get("rows", [""] * len(lines))
    if len(rows) != len(lines):
        return [f"{len(rows)} rows listed, {len(lines)} in the table of {entry['header']}"]
    for line, row in zip(lines, rows, strict=True):
        row_cells = cells(line)
        specs = row if isinstance(row, list) else entry["columns"]
        common = f"{entry.get('from', '')} {'' if isinstance(row, list) else row}"
        if len(specs) != len(row_cells):
            problems.append(f"{len(specs)} cells listed, {len(row_cells)} in {line}")
            continue
        for spec, cell in zip(specs, row_cells, strict=True):
            if spec.startswith("where "):
                common += f" {shlex.quote(spec[6:] + '=' + LIST['names'].get(cell, cell))}"
        for spec, cell in zip(specs, row_cells, strict=True):
            written = list(re.finditer(NUMBER, cell))
            empty = spec == "-" and not written
            if spec == "" and any(claims(cell)):
                problems.append(f"a number in a column of words: {cell}")
            if empty or spec.startswith("where ") or spec in ("", *LIST["reasons"]):
                continue
            selectors = parts_of(spec)
            if len(selectors) != len(written):
                problems.append(f"{len(selectors)} selectors for the cell {cell} in {line}")
                continue
            for match, selector in zip(written, selectors, strict=True):
                percentage = is_percentage(cell, match.end())
                if found := problem(match[0], selector, common, percentage):
                    problems.append(f"{found} in {line}")
    return problems


def covered(entry, place):
    """Where a sentence's numbers stand in a text: its marked ones, or all where it has a reason."""
    says = words([entry["says"]])
    plain, marks = re.sub(MARKED, r"\1", says), re.finditer(MARKED, says)
    spans = [(m.start() - 2 * i, m.end() - 2 * i - 2) for i, m in enumerate(marks)]
    spans = [(0, len(plain))] if "reason" in entry else spans
    starts = [match.start() for match in re.finditer(re.escape(plain), place)]
    return [(start + a, start + b) for start in starts for a, b in spans]


def unlisted(text, sentences, tables, pending=(), printed=None):
    """The numbers that look measured, with what stands around them, that are in no entry and that
    no cell of their section has printed (printed: the numbers by heading).
    """
    listed = [words(lines) for entry in tables for lines in tables_like(entry, text)]
    out = []
    for heading, place in places(text):
        if heading in pending or place in listed:
            continue
        spans = [span for entry in sentences for span in covered(entry, place)]
        for pattern in LIST["patterns"]:
            spans += [match.span() for match in re.finditer(pattern["like"], place)]
        for match in claims(place):
            if is_printed(place, match, (printed or {}).get(heading, ())):
                continue
            if not any(a <= match.start() and match.end() <= b for a, b in spans):
                around = place[max(0, match.start() - 60) : match.end() + 40]
                out.append(f"{heading}: {match[0]} in …{around}…")
    return out


def entries(kind, document):
    return [entry for entry in LIST.get(kind, []) if entry["in"] == document]


@pytest.mark.parametrize("document", [*DOCUMENTS, *LISTED_IN_PART])
def test_listed_numbers_are_those_of_their_tables(document):
    text = text_of(document)
    found = [p for entry in entries("sentence", document) for p in check_sentence(entry, text)]
    found += [p for entry in entries("table", document) for p in check_table(entry, text)]
    assert found == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_looks_measured_is_listed(document):
    pending = [heading for name, heading in LIST["pending"] if name == document]
    text = text_of(document)
    assert set(pending) <= {section.heading for section in sections(text)}
    listed = entries("sentence", document), entries("table", document)
    assert unlisted(text, *listed, pending, printed_in(document)) == []


def test_the_list_itself():
    """Its entries are of known documents, its patterns are of use, few sections are left out."""
    listed = [entry for kind in ("sentence", "table") for entry in LIST[kind]]
    assert {entry["in"] for entry in listed} <= {*DOCUMENTS, *LISTED_IN_PART}
    reasons = [{entry.get("reason"), *entry.get("are", ())} for entry in listed]
    waiting = [e["says"] for e, of in zip(listed, reasons, strict=True) if "pending" in of]
    assert waiting + LIST["pending"] == [], "these are without a check"
    everything = [place for name in DOCUMENTS for _, place in places(text_of(name))]
    for pattern in LIST["patterns"]:
        assert pattern["reason"] in LIST["reasons"]
        assert any(re.search(pattern["like"], place) for place in everything), pattern


def test_what_is_said_in_words_about_the_controls():
    """Counts of the six settings, and the comparison on the 96 seeds that all arms have."""
    places_of_it = [place for _, place in places(text_of("results/README.md"))]

    def said(sentence_of_it):
        return any(sentence_of_it in place for place in places_of_it)

    six = [
        row for row in table("table1.json")["best"] if row["targets"] == "drawn" and row["n"] < 3
    ]

    def lead(first, second, optimizer="adamw"):
        a, b = (
            [r["target_frequency"] for r in six if (r["arm"], r["optimizer"]) == (arm, optimizer)]
            for arm in (first, second)
        )
        return [x - y for x, y in zip(a, b, strict=True)]

    def ahead(*of):
        return sum(difference > 0 for difference in lead(*of))

    both = ("GRPO at λ-GRPO's norm is below GRPO in all six settings, and λ-GRPO at GRPO's norm "
            "has the highest mean in all six")  # fmt: skip
    assert said(both) and ahead("grpo", "grpo_at_lambda_norm") == 6
    assert all(
        ahead("lambda_at_grpo_norm", r["arm"]) >= 6 for r in six if "at_grpo" not in r["arm"]
    )
    plain = "is above GRPO in four of the six, λ-GRPO at GRPO's norm above λ-GRPO in five."
    assert said(plain) and ahead("grpo_at_lambda_norm", "grpo", "sgd") == 4
    assert ahead("lambda_at_grpo_norm", "lambda_grpo", "sgd") == 5
    assert said("is below GRPO in all six settings with both optimisers")
    assert ahead("grpo", "placebo") == ahead("grpo", "placebo", "sgd") == 6
    assert said("is below GRPO in all six settings with AdamW and in five with plain SGD")
    assert ahead("grpo", "monte_carlo_prm") == 6 and ahead("grpo", "monte_carlo_prm", "sgd") == 5

    def paired(arm):  # at AdamW's 6e-4, of 50 steps of 16 completions
        rows_of_it = [
            row["hits_of_run"][:96]
            for row in table("table1.json")["rows"]
            if row["arm"] == arm and row["targets"] == "drawn" and row["n"] < 3
            if (row["optimizer"], row["learning_rate"]) == ("adamw", 6e-4)
        ]
        return [sum(hits) / 96 / 800 for hits in rows_of_it]

    gains = [
        a - b for a, b in zip(paired("lambda_at_grpo_norm"), paired("lambda_grpo"), strict=True)
    ]
    unpaired = lead("lambda_at_grpo_norm", "lambda_grpo")
    assert min(gains) > 0 and [f"{sum(x) / 6:.2f}" for x in (gains, unpaired)] == ["0.06", "0.11"]
    for arm in ("grpo_at_lambda_norm", "placebo", "dr_grpo", "rloo"):
        assert all(a < b for a, b in zip(paired(arm), paired("grpo"), strict=True)), arm


def test_where_the_placebo_is_ahead_is_said_with_its_rates():
    """At a common rate, on the 96 seeds that all arms have."""
    keys = ("optimizer", "learning_rate", "n", "r_neg", "arm")
    runs = {
        tuple(row[key] for key in keys): np.array(row["hits_of_run"][:96]) / 800
        for row in table("table1.json")["rows"]
        if row["targets"] == "drawn" and row["n"] < 3
    }

    def above(optimizer, other):
        """{cell: (lead, beyond its interval)} of the placebo's leads, and the number of cells."""
        cells = [cell for cell in runs if cell[0] == optimizer and cell[-1] == "placebo"]
        leads = {cell[1:4]: runs[cell] - runs[(*cell[:-1], other)] for cell in cells}
        low = {
            cell: bootstrap_interval(x, np.random.default_rng(0))[0] for cell, x in leads.items()
        }
        found = {cell: (x.mean(), low[cell] > 0) for cell, x in leads.items() if x.mean() > 0}
        return found, len(cells)

    assert above("adamw", "lambda_grpo") == ({}, 36)
    found, n_cells = above("sgd", "lambda_grpo")
    assert n_cells == 36 and set(found) == {(0.1, 1, -0.5), (1.0, 2, -0.5)}
    said = [(f"{lead:.3f}", beyond) for lead, beyond in found.values()]
    assert sorted(said) == [("0.009", False), ("0.058", False)]
    found, _ = above("adamw", "grpo")
    assert len(found) == 3 and {cell[0] for cell in found} == {0.0024, 0.0048}
    assert not any(beyond for _, beyond in found.values())
    found, _ = above("sgd", "grpo")
    rates = [rate for rate, _, _ in found]
    assert {rate: rates.count(rate) for rate in rates} == {0.1: 5, 0.3: 6, 1.0: 6}
    assert sum(beyond for _, beyond in found.values()) == 8
    best = {  # GRPO's
        row["optimizer"]: row["learning_rate"]
        for row in sorted(table("table1.json")["best"], key=lambda row: row["learning_rate"])
        if row["arm"] == "grpo" and row["targets"] == "drawn" and row["n"] < 3
    }  # the largest of the six settings
    assert best["adamw"] < 0.0024 and best["sgd"] < 0.1


def test_chapter_6_compares_norms_seed_by_seed():
    """λ-GRPO at GRPO's norm minus λ-GRPO, each at its best rate, on the 48 seeds that both have."""
    tables = table("table1.json")
    best = [row for row in tables["best"] if row["targets"] == "drawn" and row["n"] < 3]

    def runs(arm, optimizer, n, r_neg):
        key = {"arm": arm, "optimizer": optimizer, "n": n, "r_neg": r_neg, "targets": "drawn"}
        (chosen,) = (row["learning_rate"] for row in best if key.items() <= row.items())
        key["learning_rate"] = chosen
        (row,) = (row for row in tables["rows"] if key.items() <= row.items())
        return np.array(row["hits_of_run"][48:96]) / 800

    for optimizer in ("adamw", "sgd"):
        found = {}
        for n, r_neg in itertools.product((1, 2), (-0.5, -1.0, -1.5)):
            cell = optimizer, n, r_neg
            x = runs("lambda_at_grpo_norm", *cell) - runs("lambda_grpo", *cell)
            found[n, r_neg] = x.mean(), *bootstrap_interval(x, np.random.default_rng(0))
        assert all(high > 0 for _, _, high in found.values())
        if optimizer == "adamw":
            mean, low, _ = found.pop((2, -0.5))
            assert round(mean, 2) == 0.15 and low > 0
            assert all(low < 0 for _, low, _ in found.values())
            means = [mean for mean, _, _ in found.values()]
            assert (round(min(means), 2), round(max(means), 2)) == (-0.02, 0.03)


def test_what_chapter_8_says_about_the_answers():
    """Length, carries and errors of ten among the greedy answers to all 820 sums."""
    record, pairs = (
        table("smollm2-sums.json"),
        [(a, b) for a in range(10, 50) for b in range(a, 50)],
    )
    texts = {
        name: [text.split("\n")[0].strip() for text in record[f"greedy, {name}"]]
        for name in ("before", "after")
    }
    error = {name: np.array([int(x) for x in texts[name]]) - np.sum(pairs, 1) for name in texts}
    assert {name: round(100 * np.mean(x == 0)) for name, x in error.items()} == {
        "before": 22,
        "after": 85,
    }
    long = np.array([len(x) == 3 for x in texts["before"]])
    large = np.array([b >= 46 for _, b in pairs])
    assert {len(x) for x in texts["before"]} == {2, 3} and {len(x) for x in texts["after"]} == {2}
    assert 0.2 < long.mean() < 0.25 and long[large].sum() > long.sum() / 2
    units, after = np.array([a % 10 + b % 10 for a, b in pairs]), error["after"]
    near = (units >= 8) & (units <= 11)
    assert round(100 * np.mean(after[units >= 12] == 0)) == 95
    assert np.mean(after[units >= 14] == 0) > 0.99
    assert 0.3 < np.mean(after[near] != 0) < 0.36 and np.mean(np.abs(after[near]) == 10) > 0.3
    ten = near & (np.abs(after) == 10)
    assert (after[ten] == np.where(units[ten] < 10, 10, -10)).all()
    # "nine wrong answers of ten are of one kind", "asked to add 10 to a multiple of ten …"
    right = [str(a + b) for a, b in pairs]
    only_tens = [x[1] == y[1] and x != y for x, y in zip(texts["after"], right, strict=True)]
    assert 0.9 < np.sum(only_tens) / np.sum(after != 0) < 0.95
    copied = [p for p, x in zip(pairs, texts["after"], strict=True) if int(x) in p]
    assert copied == [(10, 10), (10, 20), (10, 30), (10, 40)]
    last = record["training"][-10:]
    sampled = [
        (str(sum(map(int, group["question"].removesuffix("=").split("+")))), text.split("\n")[0])
        for groups in last
        for group in groups
        for text in group["completions"]
    ]
    wrong_units = np.mean([text.strip()[-1:] != right[-1] for right, text in sampled])
    assert 0 < wrong_units < 0.03  # "nearly all", and not all
    chapter = text_of("tutorials/08_a_real_language_model.ipynb")
    for said in ("nearly all errors of the **units** have", "nine wrong answers of ten are of one"):
        assert said in chapter
    assert "asked to add 10 to a multiple of ten, the model copies that number" in chapter


def test_what_is_said_in_words_about_the_map_and_ordinary_tasks():
    """Where the target starts at 1/4 GRPO is ahead at the middle rates only, in all six settings;
    at 1/64 λ-GRPO is ahead at nearly all rates; on countdown it is never above GRPO.
    """
    cells = table("when.json")["map"]
    common = [row for row in cells if row["start"] == 0.25]
    behind = Counter(row["learning_rate"] for row in common if row["high"] < 0)
    assert behind == {0.1: 2, 0.3: 6, 1.0: 6, 3.0: 6}
    rare = [row["low"] > 0 for row in cells if row["start"] == 0.01562 and row["r_neg"] == -1.0]
    assert (sum(rare), len(rare)) == (11, 12)
    for document in ("06_the_flaw_and_the_fix.ipynb", "README.md", "slides/handout.md"):
        assert "at rates neither small nor large" in text_of(f"tutorials/{document}")
        assert "at most rates" not in text_of(f"tutorials/{document}")
    rows = [row for row in table("learning.json") if row["task"] == "countdown"]
    ends = {(row["arm"], row["learning_rate"], row["beta"]): row for row in rows}
    for (arm, *where), row in ends.items():
        if arm == "lambda_grpo":
            other = ends["grpo", *where]
            assert row["pass@1"] < other["pass@1"] and row["pass@1_high"] > other["pass@1_low"]
    assert sum(arm == "lambda_grpo" for arm, *_ in ends) == 4  # three rates, and with the KL term


def test_the_paper_is_cited_and_its_fix_not_confused_with_others_of_that_name():
    readme = text_of("README.md")
    for words_of_it in ("{306}", "{116364--116379}", "arXiv:2510.06870", "arXiv:2510.00194"):
        assert words_of_it in readme


# -- that these checks can fail --------------------------------------------------------------------

ROWS = """[{"arm": "a", "n": 1, "x": 0.8625, "x_low": 0.84, "x_high": 0.9, "runs": [0.2, 0.4]},
           {"arm": "b", "n": 1, "x": 0.5, "x_low": 0.41, "x_high": 0.6, "runs": [0.1, 0.9]}]"""
DOCUMENT = """# Title
Arm b ends at 0.5, arm a at
86 % [84 %, 90 %]; chosen: 0.7.

```bash
run --rate 0.3   # takes 3.5 s
```

## A table
| arm | x | best run |
|---|---|---|
| A | 0.863 [0.840, 0.900] | 40 % |
| B | **0.50** [0.41, 0.60] | 90 % |
"""


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(ROWS)
    return str(file)


def sentence(says, *are):
    return {"in": "d", "says": says, "are": are}


def test_a_sentence_is_compared_with_its_table(rows):
    says = "Arm b ends at {0.5}, arm a at {86} % [{84} %, {90} %]"
    right = [f"{rows} arm=b x", *(f"{rows} arm=a {x}" for x in ("x", "x_low", "x_high"))]
    assert check_sentence(sentence(says, *right), DOCUMENT) == []
    (wrong,) = check_sentence(sentence(says, f"{rows} arm=b x_low", *right[1:]), DOCUMENT)
    assert wrong.startswith("0.5: the table has 0.41")
    (wrong,) = check_sentence(sentence(says, *right), DOCUMENT.replace("86 %", "87 %"))
    assert wrong.startswith("gone: Arm b ends at 0.5, arm a at 86 %")
    both = says.replace("86", "87"), DOCUMENT.replace("86 %", "87 %")
    (wrong,) = check_sentence(sentence(both[0], *right), both[1])
    assert wrong.startswith("87: the table has 86.25")
    (wrong,) = check_sentence(sentence(says, *right[1:]), DOCUMENT)
    assert "4 marked numbers, 3 selectors" in wrong
    in_words = sentence("{one} of 4", f"{rows} how_many x>0.6"), "In one of 4."
    assert check_sentence(*in_words) == []
    (wrong,) = check_sentence(in_words[0] | {"says": "{two} of 4"}, "In two of 4.")
    assert wrong.startswith("2: the table has 1")
    assert "gone" in check_sentence({"says": "not there", "reason": "time"}, DOCUMENT)[0]
    assert "not listed" in check_sentence({"says": "chosen: 0.7", "reason": "because"}, DOCUMENT)[0]


@pytest.mark.parametrize(
    ("selector", "value"),
    [
        ("n=1 arm=a x", 0.8625),
        ("x<0.6 x", 0.5),
        ("arm!=b x", 0.8625),
        ("max x", 0.8625),
        ("min runs", 0.1),
        ("mean runs", 0.4),
        ("sum runs:1", 1.3),
        ("arm=b runs:-1", 0.9),
        ("max largest x,x_high minus 1", -0.1),
        ("min x/x_high", 0.5 / 0.6),
        ("how_many x>0.6", 1),
        ("arm=a x over arm=b x times 2", 3.45),
        ("arm=a x smaller arm=b x plus 1", 1.5),
    ],
)
def test_selectors(rows, selector, value):
    assert value_of(selector, rows) == pytest.approx(value, rel=1e-12)


NO_NUMBER = ("x", "arm=c x", "arm=a y", "arm=a runs:7", "arm=a arm", "gone.json x", "arm=a x over")


@pytest.mark.parametrize("selector", NO_NUMBER)
def test_a_selector_that_means_no_number_is_a_problem(rows, selector):
    assert problem("0.5", selector, rows)


def test_rounding_is_that_of_the_digits_written(rows):
    for written in ("0.8625", "0.863", "0.862", "0.86", "0.9", "1"):
        assert problem(written, "arm=a x", rows) is None
    for written in ("0.861", "0.8624", "0.87", "0.8", "0"):
        assert problem(written, "arm=a x", rows)
    assert problem("8.6e-1", "arm=a x", rows) is None and problem("8.7e-1", "arm=a x", rows)
    assert problem("−0.86", "arm=a x", rows) and problem("+0.86", "arm=a x", rows) is None
    assert problem("0.87", "below arm=a x", rows) is None and problem("0.86", "below arm=a x", rows)
    assert problem("0.86", "above arm=a x", rows) is None and problem("0.87", "above arm=a x", rows)


def test_a_table_is_compared_cell_by_cell(rows):
    whole = {
        "header": "| arm |",
        "from": rows,
        "rows": ["arm=a", "arm=b"],
        "columns": ["", "±x", "max runs"],
    }
    assert check_table(whole, DOCUMENT) == []
    (wrong,) = check_table(whole, DOCUMENT.replace("0.41", "0.42"))
    assert wrong.startswith("0.42: the table has 0.41")
    (wrong,) = check_table(whole, DOCUMENT.replace("90 % |", "80 % |"))
    assert wrong.startswith("80: the table has 90 ")
    named = {"header": "| arm |", "from": rows, "columns": ["where arm", "±x", "max runs"]}
    assert check_table(named, DOCUMENT.replace("| A", "| a").replace("| B", "| b")) == []
    assert "1 rows listed, 2 in the table" in check_table(whole | {"rows": ["arm=a"]}, DOCUMENT)[0]
    assert "2 cells listed, 3 in" in check_table(whole | {"columns": ["", "±x"]}, DOCUMENT)[0]
    fewer = whole | {"columns": ["", "x", "max runs"]}
    wordy = whole | {"columns": ["", "±x", ""]}
    assert check_table(wordy, DOCUMENT)[0] == "a number in a column of words: 40 %"
    assert "1 selectors for the cell" in check_table(fewer, DOCUMENT)[0]
    assert "0 tables begin" in check_table(whole | {"after": "not there"}, DOCUMENT)[0]
    assert "0 tables begin" in check_table(whole, DOCUMENT.replace("| arm |", "| arms |"))[0]


def test_a_number_that_is_not_listed_is_found(rows):
    def left(sentences=(), tables=(), pending=()):
        return [line.split(" in …")[0] for line in unlisted(DOCUMENT, sentences, tables, pending)]

    cells_of_it = ("0.863", "0.840", "0.900", "40", "0.50", "0.41", "0.60", "90")
    of_the_table = [f"A table: {x}" for x in cells_of_it]
    assert left() == [
        *(f"Title: {x}" for x in ("0.5", "86", "84", "90", "0.7", "3.5")),
        *of_the_table,
    ]
    one = sentence("at {0.5}, arm a at {86} % [84 %, 90 %]", "", "")
    assert left([one], pending=["A table"]) == [
        "Title: 84",
        "Title: 90",
        "Title: 0.7",
        "Title: 3.5",
    ]
    assert left([{"says": "chosen: 0.7", "reason": "setting"}], [{"header": "| arm"}]) == [
        f"Title: {x}" for x in ("0.5", "86", "84", "90", "3.5")
    ]
    assert left(pending=["Title"]) == of_the_table


def test_a_chapters_own_outputs_are_a_table():
    text = "## 1.1 A\n\nIt is 0.12 or −0.12, and 12 % of all; not 0.13.\n\n## 1.2 B\n\nHere 0.12."
    printed = {"1.1 A": {-0.1249}, "1.2 B": {0.126}}
    left = [line.split(" in …")[0] for line in unlisted(text, [], [], printed=printed)]
    assert left == ["1.1 A: 0.13", "1.2 B: 0.12"]
    numbers = printed_in("tutorials/01_policy_gradients.ipynb")
    assert 58.8681 in numbers["1.4 A baseline"]
    assert 58.8681 not in numbers["1.5 A baseline from the group"]
    assert printed_in("README.md") == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("20 to 35 % of 12 runs, in 3 min or 2 s", ["20", "35", "3", "2"]),
        ("54 % at k = 8, 48 % at k = 32 (5.0e-16, −0.3, 1,024)", ["54", "48", "5.0e-16", "−0.3"]),
        ("k = 8, p = 8 %", ["8"]),
        ("[0.1, 0.2], $-6.51$ and 16 times", ["0.1", "0.2", "-6.51", "16"]),
        ("section 4.3, sections 6.1 to 6.4, arXiv:2509.21154, `x=0.5`, [a](b/1.5), CUDA 12", []),
    ],
)
def test_what_looks_measured(text, found):
    assert [match[0] for match in claims(text)] == found
