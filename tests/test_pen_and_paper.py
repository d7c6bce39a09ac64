"""The written answers to the chapters' questions: there is one for each, and their numbers are
right, computed here in other ways.
"""

import json
import re
from itertools import product
from math import comb, exp, sqrt
from pathlib import Path

import numpy as np
import pytest

import minigrpo as mg

TUTORIALS = Path(__file__).parents[1] / "tutorials"
ANSWERS = (TUTORIALS / "solutions/pen_and_paper.md").read_text(encoding="utf-8")


def questions(chapter):
    """The marks of the questions that the chapter's notebooks ask, such as "1" or "A"."""
    found = []
    for file in sorted(TUTORIALS.glob(f"{chapter:02}_*.ipynb")):
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
            words = "".join(cell["source"])
            if cell["cell_type"] == "markdown" and "\n## Exercises" in "\n" + words:
                asked = words.split("## Exercises", 1)[1].split("\n## ", 1)[0]
                found += re.findall(r"^(?:- \*\*)?([A-Z0-9]+)\.(?:\*\*)? ", asked, re.M)
    return found


def answers(chapter):
    (text,) = re.findall(rf"^## Chapter {chapter} · (.*?)(?=^## |\Z)", ANSWERS, re.M | re.S)
    return dict(
        re.findall(r"^\*\*([A-Z0-9]+)\.\*\* (.*?)(?=^\*\*[A-Z0-9]+\.\*\* |\Z)", text, re.M | re.S)
    )


@pytest.mark.parametrize("chapter", range(9))
def test_every_question_has_an_answer(chapter):
    assert len(questions(chapter)) >= 5
    assert list(answers(chapter)) == questions(chapter)
    assert min(map(len, answers(chapter).values())) > 90


def said(chapter, mark, *numbers):
    """Whether an answer has these numbers, as they are written."""
    text = answers(chapter)[mark].replace("{,}", "").replace(",", "")
    return all(re.search(rf"(?<![\d.]){re.escape(n)}(?![\d]|\.\d)", text) for n in numbers)


def test_numbers_can_be_missed():
    assert said(3, "B", "131072", "20536")
    assert not said(3, "B", "131073")
    assert not said(3, "B", "2053")


@pytest.mark.parametrize(
    ("kind", "central", "one_sided"), [("float64", 4e-11, 1e-8), ("float32", 2e-5, 3e-4)]
)
def test_errors_of_differences(kind, central, one_sided):
    """Measured with exp at 1, at the steps that the answer gives."""
    x, eps = np.array(1, kind), np.finfo(kind).eps
    for back, power, size in ((1, 1 / 3, central), (0, 1 / 2, one_sided)):
        errors = []
        for h in np.asarray(eps**power * np.linspace(0.7, 1.4, 50), kind):
            high, low = x + h, x - back * h
            errors.append(abs(float(np.exp(high) - np.exp(low)) / float(high - low) - np.exp(1.0)))
        assert size / 10 < max(errors) < 10 * size


def test_a_softmax_overflows():
    with np.errstate(all="ignore"):
        z = np.exp(np.array([100, 0], np.float32))
        assert np.isnan((z / z.sum())[0])
        assert np.exp(np.float32(88.7)) < np.inf == np.exp(np.float32(88.8))


def test_rollouts():
    assert 2 * 32 * 8 * 128 * 2 == 131_072
    assert said(3, "B", "8.6", "2.7")
    assert round(65_536 * 131_072 / 1e9, 1) == 8.6
    assert round((3000 + 16 * 1096) * 131_072 / 1e9, 1) == 2.7
    m = 10_000
    k = min(range(m, 2 * m), key=lambda k: abs(m * (1 - (1 - 1 / m) ** k) - k / 2))
    assert said(3, "D", f"{k / m:.2f}")


def test_groups():
    def spread(k, p, divide):  # per rollout
        total = 0.0
        for c in range(k + 1):
            r = np.arange(k) < c
            a = r - r.mean()
            a = a / a.std(ddof=1) if divide and a.any() else a
            total += comb(k, c) * p**c * (1 - p) ** (k - c) * abs(a).sum() / k
        return total

    for p in (0.1, 0.5, 0.8):
        sums = [[spread(k, p, divide) for k in (2, 3, 4, 8, 16, 64)] for divide in (False, True)]
        assert (np.diff(sums) > 0).all()  # all grow
        assert np.isclose(sums[0][3], 2 * p * (1 - p) * (1 - 1 / 8))
        assert np.isclose(sums[1][0], sqrt(2) * p * (1 - p))
        assert sums[1][-1] < 2 * sqrt(p * (1 - p))
    assert said(4, "E", "1.7", "22000")
    assert round(exp(1) - 1, 1) == 1.7
    assert round(exp(10) - 1, -3) == 22_000


def test_kl_estimates_to_third_order():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(6))
    for size in (0.1, 0.01):
        ref = p * np.exp(size * rng.standard_normal(6))
        x = np.log(ref / ref.sum() / p)
        kl = -(p * x).sum()
        assert np.isclose((p * (np.exp(x) - x - 1)).sum(), kl)
        assert abs((p * x**2).sum() / 2 - kl + (p * x**3).sum() / 6) < size**4


@pytest.mark.parametrize("g", [0.3, 0.7, 0.9])
def test_the_length_bias_of_a_wrong_branch(g):
    n = np.arange(1, 2000)
    chance, score = g ** (n - 1) * (1 - g), n * (1 - g) - 1
    mean = (chance * score / (n + 1)).sum()
    assert np.isclose(mean, (1 - g) - (2 - g) * (chance / (n + 1)).sum())
    assert mean < -0.01
    assert abs((chance * score).sum()) < 1e-9


def test_the_walk():
    assert said(6, "1", "0.657")
    for r in (0.65, 0.66):
        tree = mg.PrefixTree.from_sequences([list(w) for w in product([1, 0], repeat=4)])
        rewards = np.array([1] + [r] * 7 + [0.7] * 8)
        push = mg.step_advantages(tree, rewards)[tree.paths[0, 0]]
        assert (push < 0) == (r < 0.657)
    for elsewhere, bounds in ((0.7, ("0.80", "0.85", "0.88")), (0.0, ("0.33", "0.50", "0.60"))):
        for r, bound in zip((-0.5, -1, -1.5), bounds, strict=True):
            assert f"{(elsewhere - r) / (1 - r):.2f}" == bound
        assert said(6, "3", *bounds)


def test_the_expected_push_of_the_first_move():
    """All 2^k draws of first moves of k = 5 walks, with values 1/4 and 3/4 of the two branches."""
    k, values = 5, np.array([0.25, 0.75])
    total = {"grpo": 0.0, "lambda": 0.0}
    for moves in product([0, 1], repeat=k):
        count = moves.count(0)
        if count:  # the mean of R̂ is the branch's value
            total["lambda"] += (values[0] - values.mean()) / 2**k
            total["grpo"] += count * (values[0] - values.mean()) / 2**k
    assert np.isclose(total["lambda"], (1 - 0.5**k) * (values[0] - values.mean()))
    assert np.isclose(total["grpo"], k / 2 * (values[0] - values.mean()))


def test_a_group_that_lambda_grpo_serves_worse():
    counts, rewards = np.array([3, 8, 1]), np.array([1, 0.9, 0])
    r = np.repeat(rewards, counts)
    A, pi = (rewards - r.mean()) / (r.std(ddof=1) + 1e-4), counts / 12
    for push, change in ((counts * A, "+0.036"), (A, "-0.012")):
        gradient = push - pi * push.sum()
        z = np.log(pi) + 0.3 * gradient / np.linalg.norm(gradient)
        assert f"{z[0] - np.log(np.exp(z).sum()) - np.log(pi[0]):+.3f}" == change
        assert said(6, "5", change)


def test_what_a_tree_saves():
    assert said(7, "1", "0.533")
    assert round(0.5 / (1 - 1 / 16), 3) == 0.533
    for P, L, shares in ((1000, 100, ("0.15", "0.23")), (100, 1000, ("0.91", "0.99"))):
        group = [list(range(P)) + [P + i] * L for i in range(16)]
        tree, keys = mg.PrefixTree.from_sequences(group), np.arange(P + L) + 1.0
        tokens = tree.n_nodes / (16 * (P + L))
        pairs = (tree.depth - tree.depth.min() + 1.0).sum() / (16 * keys.sum())
        assert [f"{x:.2f}" for x in (tokens, pairs)] == list(shares)
        assert said(7, "3", *shares)


def test_a_real_model():
    more = 49_152 * 576
    assert said(8, "1", str(more), f"{16 * more / 1e6:.0f}", f"{(134_515_008 + more) / 1e6:.1f}")
    flat, tree = (lambda p: 64 * (p + 11)), (lambda p: p + 56 + 256)
    assert flat(44) < 10 * tree(44)
    assert flat(45) > 10 * tree(45)
