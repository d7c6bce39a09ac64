"""A small demo: all its files, a report that stands alone, numbers that agree, words that follow
the data.
"""

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from minigrpo.command import demo as demo_module
from minigrpo.command.demo import (
    ARITHMETIC,
    NAMES,
    RATES,
    _of_learning,
    _of_theorem,
    _of_trees,
    _page,
    demo,
)
from minigrpo.experiments.many_walks import BLOCK, GROUP_SIZE, LAST, run_walks
from minigrpo.experiments.table1 import frequency, summary
from minigrpo.logs.groups import group_statistics, read_groups
from minigrpo.verify.equivalence import Equivalence

FIGURES = [
    "tree.png",
    "trees.png",
    "curves-n1.png",
    "curves-n2.png",
]
DATA = [
    "explorer.html",
    "groups.jsonl",
    "equivalence.json",
    "table.json",
    "curves.json",
]
STEPS, SEEDS = 60, 18
KEYS = [(n, rate, objective) for n in (1, 2) for rate in RATES for objective in NAMES]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a demo in small, what it said, the curves that it drew."""
    folder, said, drawn = tmp_path_factory.mktemp("demo") / "new" / "demo", [], []
    with pytest.MonkeyPatch.context() as patch:
        small = replace(
            ARITHMETIC, warm_start_steps=60, warm_start_batch=8, dim=16, n_layers=1, n_heads=2
        )
        patch.setattr(demo_module, "ARITHMETIC", small)
        patch.setattr(demo_module, "GROUPS", 4)
        draw = demo_module.learning_curves
        patch.setattr(
            demo_module,
            "learning_curves",
            lambda curves, **options: drawn.append(curves) or draw(curves, **options),
        )
        report = demo(folder, seeds=SEEDS, steps=STEPS, processes=2, say=said.append)
    assert report == folder / "report.html"
    return folder, "\n".join(said), drawn


class Page(HTMLParser):
    """The report's text, images, links, and whether its tags match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.links, self.text, self.resources = [], [], [], "", 0
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "img":
            self.images.append(attributes["src"])
            assert attributes["alt"]
        self.links += [
            value
            for name, value in attributes.items()
            if name in ("href", "src", "srcset", "data", "action")
        ]
        self.resources += tag in ("script", "link", "iframe", "object")
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(made):
    return Page((made[0] / "report.html").read_text(encoding="utf-8"))


def test_all_files_are_there(made):
    assert sorted(file.name for file in made[0].iterdir()) == sorted(
        [*FIGURES, *DATA, "report.html"]
    )


@pytest.mark.parametrize("name", FIGURES)
def test_figures_show_something(name, made):
    pixels = imread(made[0] / name)
    assert min(pixels.shape[:2]) > 250
    colours = (255 * pixels[::2, ::2, :3]).astype(np.int64) @ [1, 1 << 8, 1 << 16]
    assert len(np.unique(colours)) > 50
    assert 0.002 < (colours != 0xFFFFFF).mean() < 0.7  # neither blank nor full


def test_the_report_stands_alone(made, page):
    assert page.resources == 0
    assert page.links == [*page.images, "explorer.html"]  # which lies beside it
    wanted = [(made[0] / name).read_bytes() for name in FIGURES]
    found = [
        base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in page.images
    ]
    assert found == wanted
    css = (made[0] / "report.html").read_text().partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in css
    assert "@import" not in css


def test_the_report_has_the_numbers_of_the_data(made, page):
    folder, said, _ = made
    rows = json.loads((folder / "table.json").read_text())
    assert [(row["n"], row["learning_rate"], row["objective"]) for row in rows] == KEYS
    for row in rows:
        assert row["seeds"] == SEEDS
        assert row["low"] <= row["target_frequency"] <= row["high"]
        numbers = "{target_frequency:.3f}  [{low:.3f}, {high:.3f}]  found by {found:.0%}".format(
            **row
        )
        assert numbers in page.text
        assert numbers in said
    curves = json.loads((folder / "curves.json").read_text())
    results = {key: np.array(c["target_frequency"]) for key, c in zip(KEYS, curves, strict=True)}
    for numbers in demo_module.differences(results).values():
        told = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*numbers)
        assert page.text.count(told) >= 2  # in words and below the table
        assert told in said
    theorem = json.loads((folder / "equivalence.json").read_text())
    for words in (
        f"{theorem['grpo_loss']:+.15f}",
        f"{theorem['prm_loss']:+.15f}",
        f"{theorem['unique_tokens']} of them distinct",
    ):
        assert words in page.text
        assert words in said
    worst = max(theorem["value_difference"], *theorem["gradient_difference"].values())
    assert worst < 1e-12
    assert f"They agree to rounding: the largest relative difference is {worst:.1e}." in page.text
    groups = read_groups((folder / "groups.jsonl").read_text(), unit="characters")
    stats = group_statistics(groups)
    assert (stats["groups"], stats["completions"]) == (4, 32)
    assert f"Of 4 groups, {stats['flat_groups']} have no shared prefix" in page.text
    assert (
        f"{theorem['flat_tokens']} tokens, of which {theorem['unique_tokens']} are distinct"
        in page.text
    )
    assert (
        0 <= theorem["flat_tokens"] - stats["flat_tokens"] <= 32
    )  # an EOS for most completions, which the texts do not have
    assert f"last {LAST} of {STEPS} steps" in page.text
    assert re.search(r"Made by minigrpo demo in \d+ seconds", page.text)
    assert f"Over {SEEDS} runs each, at learning rate" in page.text
    assert not re.search(r"\$|\bnan\b", page.text)


def test_the_table_is_the_mean_of_the_curves_and_the_curves_are_the_runs(made):
    rows = json.loads((made[0] / "table.json").read_text())
    curves = json.loads((made[0] / "curves.json").read_text())
    for row, curve, (n, rate, objective) in zip(rows, curves, KEYS, strict=True):
        values = np.array(curve["target_frequency"])
        assert values.shape == (SEEDS, STEPS // BLOCK)
        final = values[:, -LAST // BLOCK :].mean(1)
        assert row["target_frequency"] == pytest.approx(final.mean(), rel=1e-3)
        assert row["found"] == pytest.approx((final > 0.5).mean(), rel=1e-3)
        assert (curve["n"], curve["learning_rate"], curve["objective"]) == (n, rate, objective)
        np.testing.assert_array_equal(made[2][n - 1][f"{NAMES[objective]}, {rate:g}"], values)
    again = run_walks("lambda_grpo", 2, -1.0, "adamw", RATES[0], runs=1, first_seed=17, steps=STEPS)
    assert curves[KEYS.index((2, RATES[0], "lambda_grpo"))]["target_frequency"][17] == [
        h / BLOCK / GROUP_SIZE for h in again[0]
    ]


def test_the_readme_shows_what_the_demo_prints():
    """Its 64 runs are the first 64 of table 1's cells (`run_walks` with the same seeds)."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    stored = json.loads(
        (Path(__file__).parents[1] / "results/table1.json").read_text(encoding="utf-8")
    )["rows"]
    for n in (1, 2):
        for rate, written in zip(RATES, ("3e-4", "6e-4"), strict=True):
            cells, shares = [], []
            for arm in NAMES:
                wanted = {
                    "arm": arm,
                    "n": n,
                    "r_neg": -1.0,
                    "optimizer": "adamw",
                    "learning_rate": rate,
                    "targets": "drawn",
                }
                (row,) = (row for row in stored if wanted.items() <= row.items())
                found = summary(frequency(arm, row["hits_of_run"][:64]))
                cells.append("{target_frequency:.3f} [{low:.3f}, {high:.3f}]".format(**found))
                shares.append(f"{found['found']:.0%}".replace("%", " %"))
            cells.append(", ".join(shares))
            row = f"| n = {n}, r_neg = −1, learning rate {written} | {' | '.join(cells)} |"
            assert row in readme


# -- words that follow the data --------------------------------------------------------------------


def test_differences_are_taken_run_by_run():
    """The runs of a seed have one target, hard or easy to find: what they share cancels."""
    rng, differs = np.random.default_rng(0), np.array([0.1, 0.2, 0.3, 0.2])
    hard = rng.random((4, 1)) * np.ones(STEPS // BLOCK)
    results = {key: hard + (key[2] == "lambda_grpo") * differs[:, None] for key in KEYS}
    for mean, low, high in demo_module.differences(results).values():
        assert mean == pytest.approx(0.2)
        assert 0.1 <= low < mean < high <= 0.3


@pytest.mark.parametrize(
    ("found", "relation"),
    [
        ((0.2, 0.1, 0.3), "above"),
        ((0.2, 0.0, 0.4), "not distinguishable from"),
        ((-0.2, -0.4, 0.1), "not distinguishable from"),
        ((-0.2, -0.4, -0.1), "below"),
    ],
)
def test_the_verdict_on_learning(found, relation):
    row = {"target_frequency": 0.6, "low": 0.5, "high": 0.7, "found": 0.25}
    rows = [dict(zip(("n", "learning_rate", "objective"), key, strict=True)) | row for key in KEYS]
    none = {(n, rate): (0.0, 0.0, 0.0) for n in (1, 2) for rate in RATES}
    told = _of_learning(rows, none | {(1, RATES[0]): found})
    text, numbers = told["verdicts_n1"], told["table_n1"]
    interval = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*found)
    assert f"at learning rate {RATES[0]:g} λ-GRPO is {relation} GRPO ({interval})" in text
    assert f"at learning rate {RATES[1]:g} λ-GRPO is not distinguishable from GRPO" in text
    assert told["verdicts_n2"].count("λ-GRPO is not distinguishable from GRPO") == 2
    assert numbers.count("0.600  [0.500, 0.700]  found by 25%") == 4
    assert f"difference by seed      {interval}" in numbers


@pytest.mark.parametrize(
    ("off", "words"), [(3e-15, "They agree to rounding"), (2e-3, "They DISAGREE")]
)
def test_the_verdict_on_the_theorem(off, words):
    for differences in ((off, 0.0), (0.0, off)):
        theorem = Equivalence(
            0.25, 0.25, differences[0], {"a": differences[1], "b": 0.0}, 10, 20, True
        )
        told = _of_theorem(theorem)
        assert told["verdict"].startswith(words)
        assert told["worst"] == f"{off:.1e}"
        assert "20 tokens, 10 of them distinct" in told["theorem"]


def test_the_page_is_filled_with_what_is_measured(tmp_path):
    """Texts are escaped, and a number that is missing is an error."""
    groups = read_groups(
        '[{"completions": ["ab<", "ac<"], "rewards": [1, 0]},'
        '{"completions": ["a", "b"], "rewards": [1, 1]}]'
    )
    for name in FIGURES:
        (tmp_path / name).write_bytes(b"figure")
    numbers = _of_trees(groups[0], group_statistics(groups))
    numbers |= _of_theorem(Equivalence(0.25, 0.25, 0.0, {"a": 0.0}, 10, 20, True))
    names = ["accuracy", "seeds", "steps", "last"]
    names += ["verdicts_n1", "verdicts_n2", "table_n1", "table_n2"]
    numbers |= {name: f"the {name}" for name in names}
    with pytest.raises(KeyError, match="seconds"):
        _page(numbers, tmp_path)
    page = Page(_page(numbers | {"seconds": 3}, tmp_path))
    for words in (
        "It wrote the 2 completions below",
        "Of 2 groups, 1 have no shared prefix at all.",
        "Their completions have 8 tokens, of which 7 are distinct",
        "+0.71",
        "b<",
        *(f"the {name}" for name in names),
    ):
        assert words in page.text


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="1 seeds give no confidence band: take at least 2"):
        demo(tmp_path / "demo", seeds=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to .*: give a folder that can be written"):
        demo(tmp_path / "file" / "demo")
    assert not (tmp_path / "demo").exists()
