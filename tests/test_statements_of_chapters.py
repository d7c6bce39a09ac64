"""What chapters 0 to 4 say in words, computed here in other ways."""

import importlib.util
import json
import sys
from math import comb, sqrt
from pathlib import Path

import numpy as np
import pytest

import minigrpo as mg

TUTORIALS = Path(__file__).parents[1] / "tutorials"


def words(name):
    (file,) = TUTORIALS.glob(f"{name}*ipynb")
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells)


# -- 1.8: division by the standard deviation of a small group --------------------------------------


def division(q, k):
    """Mean push of a group on a success's logit: divided by its std, not divided, and the least std
    of a group that is not dead.  Two arms, rewards 1 and 0, group mean as the baseline.
    """
    divided = plain = 0.0
    smallest = np.inf
    for c in range(1, k):
        chance, r = comb(k, c) * q**c * (1 - q) ** (k - c), (np.arange(k) < c).astype(float)
        push = np.mean((r - r.mean()) * np.where(r > 0, 1 - q, -q))
        divided, plain = divided + chance * push / r.std(ddof=1), plain + chance * push
        smallest = min(smallest, r.std(ddof=1))
    return divided, plain, smallest


@pytest.mark.parametrize("k", [2, 4, 8, 16])
def test_a_living_group_bounds_what_the_division_can_do(k):
    for q in (0.01, 0.1, 0.5, 0.95):
        divided, plain, smallest = division(q, k)
        assert np.isclose(smallest, 1 / sqrt(k))
        assert np.isclose(plain, (k - 1) / k * q * (1 - q))
        assert divided <= sqrt(k) * plain * (1 + 1e-12)


def test_why_the_factor_is_smaller_than_the_formula_says():
    factor = {q: division(q, 8)[0] / (q * (1 - q)) for q in (0.1, 0.5)}
    assert [f"{factor[q]:.2f}" for q in (0.5, 0.1)] == ["1.74", "2.18"]
    assert factor[0.5] > 0.99 * 2 * 7 / 8  # so (k - 1)/k is nearly all of it
    assert factor[0.1] < 0.8 * 10 / 3 * 7 / 8  # and here it is not
    assert "Smaller, 1.74 and 2.18" in words("01")


def test_no_move_of_the_random_table_is_rarer_than_one_in_four():
    p = np.exp(0.8 * np.random.default_rng(29).standard_normal((7, 2)))
    assert 0.25 < (p / p.sum(1, keepdims=True)).min() < 0.3
    assert "no move is rarer than one in four" in words("01")


# -- 2.7: the mistake in RMSNorm -------------------------------------------------------------------


def test_how_far_off_the_mistake_in_rmsnorm_is():
    x, dy = (np.random.default_rng([seed, 5, 6]).standard_normal((5, 6)) for seed in (0, 1))
    rms = np.sqrt((x**2).mean(1, keepdims=True) + 1e-5)
    right = (dy - x / rms * (x / rms * dy).mean(1, keepdims=True)) / rms
    error = np.linalg.norm(right - dy / rms) / np.linalg.norm(dy / rms)
    assert f"off by {error:.0%}".replace("%", " %") in words("02_a_transformer_by_hand.")


# -- 4.5: what the surrogate promises --------------------------------------------------------------


def test_the_surrogate_times_the_length_is_the_gain_in_standard_deviations():
    """All 8 walks of 3 moves once, from a uniform policy, so that the group is the distribution."""
    walks = np.array(list(np.ndindex(2, 2, 2)))
    tree = mg.PrefixTree.from_groups([[0]], [[list(walk) for walk in walks]])
    rewards = np.array([0.2, 0.3, 0.4, 0.5, 0.3, 0.5, 0.6, 0.4])
    old = np.where(tree.scored, np.log(0.5), 0.0)
    zero, cut = np.zeros(tree.n_nodes), np.zeros(8, dtype=bool)
    batch = mg.Rollouts([np.zeros(1, dtype=int)], [list(walks)], tree, old, zero, cut, 1.0, 3)
    objective = mg.Objective.preset("grpo", std_eps=0.0)
    coefficients = objective.coefficients(batch, rewards)
    move = np.random.default_rng(0).standard_normal(tree.n_nodes)
    logp, h = old.copy(), 1e-5
    for parent in np.unique(tree.parent[tree.scored]):  # a small move of both logits at a prefix
        children = np.flatnonzero(tree.scored & (tree.parent == parent))
        z = h * move[children]
        logp[children] = z - np.log(np.exp(z).sum())
    promised = -3 * objective.evaluate(coefficients, logp, old)[0]
    true = np.exp(tree.on_tokens(logp).sum(1)) @ rewards - rewards.mean()
    assert abs(true) > 1e-8
    assert np.isclose(promised, true / rewards.std(ddof=1), rtol=1e-3)
    assert 'walk = load_task("treewalk", depth=3' in words("04")
    assert "rows.append([-3 * loss, true_reward(), clipped])" in words("04")


def test_k2_is_a_quarter_too_large_in_the_example():
    pi, ref = (
        np.array([0.50, 0.20, 0.12, 0.10, 0.05, 0.03]),
        np.array([0.10, 0.30, 0.05, 0.20, 0.30, 0.05]),
    )
    x = np.log(ref / pi)
    assert 1.2 < (pi @ x**2 / 2) / -(pi @ x) < 1.3
    assert "it is a quarter too large" in words("04")


# -- 0, question 6: the work of the page's sampler -------------------------------------------------


def test_the_page_computes_every_position_for_every_move(monkeypatch):
    spec = importlib.util.spec_from_file_location("one_page_counted", TUTORIALS / "one_page.py")
    page = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, page)
    spec.loader.exec_module(page)
    forward, computed = page.forward, []

    def counted(W, tokens):
        computed.append(tokens.shape[1])
        return forward(W, tokens)

    monkeypatch.setattr(page, "forward", counted)
    page.sample(np.zeros((8, page.D, page.D)), np.random.default_rng(0), k=2)
    assert sum(computed) == page.T**2
    answer = (TUTORIALS / "solutions/pen_and_paper.md").read_text(encoding="utf-8")
    assert f"For $T = {page.T}$ that saves a factor of {page.T}" in answer
