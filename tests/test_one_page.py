"""The one page against the package: numbers, gradients and training; and what it prints."""

import ast
import importlib.util
import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from helpers import relative, rollouts_of

from minigrpo import (
    Objective,
    PrefixTree,
    Transformer,
    TransformerConfig,
    advantages,
    lambda_weights,
    step_advantages,
    step_rewards,
)
from minigrpo.engine.optim import AdamW
from minigrpo.tasks.treewalk import TreeWalk

FILE = Path(__file__).parents[1] / "tutorials/one_page.py"
MATRICES = [f"self_attn.{x}_proj" for x in "qkvo"] + [
    f"mlp.{x}_proj" for x in ("gate", "up", "down")
]
PATHS = np.array(list(np.ndindex(2, 2, 2, 2)))
SEEDS = range(4)


@pytest.fixture
def page():
    spec = importlib.util.spec_from_file_location("one_page", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def opinionated(page, rng):
    """Weights of a policy that is far from a fair coin, a group, and its rewards."""
    W = page.START * rng.standard_normal((8, page.D, page.D))
    W[page.EMBED] *= 8
    y = PATHS[rng.integers(16, size=6)]
    y = np.concatenate([y, y[:3], y[:2] ^ np.array([0, 0, 0, 1])])  # copies and near misses
    return W, y, page.outcome_rewards(y, y[0])


def model_of(page, W):
    """The package's transformer of the same shape with the same weights (its norms stay 1)."""
    shape = {"dim": page.D, "n_layers": 1, "n_heads": 1, "ffn_dim": page.D, "n_drawable": 2}
    model = Transformer(TransformerConfig(vocab_size=3, **shape), dtype="float64")
    for name, view in matrices(model.parameters).items():
        view[...] = W[name][: len(view)]
    return model


def matrices(parameters):
    """The package's matrices by their number on the page."""
    names = [f"model.layers.0.{name}.weight" for name in MATRICES]
    return {i: parameters[name] for i, name in enumerate(["model.embed_tokens.weight", *names])}


def rollouts_and_logp(model, y):
    rollouts = rollouts_of([np.array([2])], [list(y)])
    return rollouts, model.forward(rollouts.tree)


# -- the form --------------------------------------------------------------------------------------


def test_it_is_one_page_of_numpy_in_seven_parts():
    text = FILE.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) < 200
    assert max(map(len, lines)) <= 100
    parts = re.findall(r"^# == (\d)\. ", text, re.M)
    assert parts == list("1234567")
    nodes = list(ast.walk(ast.parse(text)))
    imported = {
        alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
    }
    assert imported == {"numpy"}
    assert not [node for node in nodes if isinstance(node, ast.ImportFrom)]


def test_nothing_runs_when_it_is_imported(page, capsys):
    assert capsys.readouterr().out == ""
    assert page.T == 4
    last = ast.parse(FILE.read_text(encoding="utf-8")).body[-1]
    assert ast.unparse(last) == "if __name__ == '__main__':\n    main()"


# -- rewards, process sets, process rewards --------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("r_neg", [-0.5, -1.5])
def test_outcome_rewards_are_the_tasks(page, n, r_neg):
    for target in PATHS:
        word = "".join("LR"[move] for move in target)
        task = TreeWalk(n=n, r_neg=r_neg, target=word)
        assert (
            page.outcome_rewards(PATHS, target, n, r_neg).tolist() == task.path_rewards().tolist()
        )
    task = TreeWalk(n=2, target="LRRL")
    defaults = page.outcome_rewards(PATHS, np.array([0, 1, 1, 0]))
    assert defaults.tolist() == task.path_rewards().tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_counts_and_process_rewards_are_the_trees(page, seed):
    _, y, r = opinionated(page, np.random.default_rng(seed))
    count, R, A, a = page.process_rewards(y, r)
    tree = PrefixTree.from_sequences(list(y))
    assert count.tolist() == tree.count[tree.paths].tolist()
    assert np.allclose(1 / count, lambda_weights(list(y)), atol=0, rtol=1e-15)
    assert np.allclose(R, step_rewards(tree, r)[tree.paths], atol=1e-14)
    assert np.allclose(A, step_advantages(tree, r)[tree.paths], atol=1e-13)
    assert np.allclose(a[:, 0], advantages(r, np.zeros(len(r))), atol=1e-13)
    members = page.process_sets(y)
    for i, t in np.ndindex(y.shape):
        assert np.flatnonzero(members[i, :, t]).tolist() == tree.members(tree.paths[i, t]).tolist()


def test_equal_rewards_teach_nothing(page):
    y = PATHS[:16]
    for value in (0.7, -1.0):
        _, _, A, a = page.process_rewards(y, np.full(16, value))
        assert not a.any()
        assert abs(A).max() < 1e-11


# -- the transformer -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["grpo", "prm", "lambda_grpo"])
def test_loss_and_gradients_are_the_packages(page, seed, name):
    rng = np.random.default_rng(seed)
    W, y, r = opinionated(page, rng)
    sampler = W + 0.1 * page.START * rng.standard_normal(W.shape)
    count, _, A, a = page.process_rewards(y, r)
    advantage = {"grpo": a, "prm": A, "lambda_grpo": a / count}[name]
    _, _, old = page.objective(sampler, y, a)
    loss, dW, logp = page.objective(W, y, advantage, old)

    _, package_old = rollouts_and_logp(model_of(page, sampler), y)
    model = model_of(page, W)
    rollouts, package_logp = rollouts_and_logp(model, y)
    objective = Objective.preset(name, clip_low=None, clip_high=None)
    package_loss, dlogp = objective(rollouts, r, package_logp, package_old)
    gradients = model.backward(dlogp)

    paths = rollouts.tree.paths
    assert abs(np.exp(logp - old) - 1).max() > 0.05  # ρ is not 1, so ratios matter
    assert np.allclose(logp, package_logp[paths], atol=1e-13)
    assert np.allclose(old, package_old[paths], atol=1e-13)
    assert abs(loss - package_loss) < 1e-13
    for i, gradient in matrices(gradients).items():
        assert np.linalg.norm(gradient) > 1e-3
        assert relative(dW[i][: len(gradient)], gradient) < 1e-12
    assert not dW[page.EMBED, 3:].any()


@pytest.mark.parametrize("seed", SEEDS)
def test_backward_against_central_differences(page, seed):
    rng = np.random.default_rng(seed)
    W, y, _ = opinionated(page, rng)
    tokens = np.insert(y[:, :-1], 0, page.BOS, axis=1)
    cotangent = rng.standard_normal((*y.shape, 1)) * [1, -1]  # a shift of both logits has no effect
    exact = page.forward(W, tokens)[1](cotangent)
    for i in range(8):
        u = np.zeros_like(W)
        u[i] = rng.standard_normal(W[i].shape) / page.D
        values = [np.log(page.forward(W + e * u, tokens)[0]) for e in (1e-3, -1e-3, 2e-3, -2e-3)]
        f = [(cotangent * value).sum() for value in values]
        numeric = (8 * (f[0] - f[1]) - (f[2] - f[3])) / 12e-3  # central, of fourth order
        assert abs(numeric - (exact * u).sum()) < 1e-9 * np.linalg.norm(exact[i])


def test_at_the_policy_that_has_sampled_the_loss_is_0_and_its_gradient_is_not(page):
    W, y, r = opinionated(page, np.random.default_rng(1))
    a = page.process_rewards(y, r)[3]
    loss, dW, logp = page.objective(W, y, a)
    assert abs(loss) < 1e-15
    assert abs(dW).max() > 1e-3
    assert np.array_equal(dW, page.objective(W, y, a, logp)[1])


def test_a_token_sees_no_later_one(page):
    W, y, _ = opinionated(page, np.random.default_rng(0))
    tokens = np.insert(y[:, :-1], 0, page.BOS, axis=1)
    other = tokens.copy()
    other[:, 2:] = 1 - other[:, 2:]
    before, after = page.forward(W, tokens)[0], page.forward(W, other)[0]
    assert np.allclose(before[:, :2], after[:, :2], rtol=1e-14)
    assert abs(before[:, 2:] - after[:, 2:]).max() > 0.01


# -- the sampler and training ----------------------------------------------------------------------


def test_the_sampler_draws_from_the_packages_policy(page):
    W, _, _ = opinionated(page, np.random.default_rng(3))
    y = page.sample(W, np.random.default_rng(5), k=200)
    rollouts, logp = rollouts_and_logp(model_of(page, W), PATHS)
    p = np.exp(logp[rollouts.tree.paths])  # (16,T) of each path's own moves
    uniform = np.random.default_rng(5).random((page.T, 200)).T  # drawn for all walks, move by move
    assert y.shape == (200, 4)
    assert len(np.unique(y, axis=0)) > 8
    for walk, u in zip(y, uniform, strict=True):
        path = walk @ [8, 4, 2, 1]
        p_right = np.where(walk == 1, p[path], 1 - p[path])
        assert walk.tolist() == (u < p_right).tolist()


@pytest.mark.parametrize("fix", [False, True])
def test_training_is_the_packages(page, fix, monkeypatch):
    """The same walks with the package's objective and AdamW give the same weights in the end."""
    groups, weights, sample = [], [], page.sample

    def remember(W, rng):
        weights.append(W)
        if len(groups) == 0:
            weights[0] = W.copy()  # at the start; later ones are changed in place
        groups.append(sample(W, rng))
        return groups[-1]

    monkeypatch.setattr(page, "sample", remember)
    hits = page.train(6, fix, n=1, r_neg=-0.5, lr=3e-3, steps=25)  # the target LRRL
    model, task = model_of(page, weights[0]), TreeWalk(n=1, r_neg=-0.5, target="LRRL")
    objective = Objective.preset("lambda_grpo" if fix else "grpo")
    optimizer = AdamW(model.parameters)
    found = []
    for y in groups:
        rollouts, logp = rollouts_and_logp(model, y)
        rewards = task.score(rollouts)
        _, dlogp = objective(rollouts, rewards, logp, logp)
        gradients = model.backward(dlogp, add=False)
        for gradient in gradients.values():
            if gradient.ndim == 1:
                gradient[...] = 0  # the page's norms have no weights
        optimizer.step(model.parameters, gradients, 3e-3)
        found.append(task.is_correct(rewards).mean())
    assert len(groups) == 25
    assert hits.tolist() == found
    assert max(found) > 0
    moved = weights[-1] - weights[0]
    for i, view in matrices(model.parameters).items():
        assert np.linalg.norm(moved[i]) > 0.1
        assert np.linalg.norm(weights[-1][i][: len(view)] - view) < 1e-9 * np.linalg.norm(moved[i])


def test_every_path_is_the_target_of_one_run_in_16(page, monkeypatch):
    targets = []
    monkeypatch.setattr(page, "sample", lambda W, rng: PATHS)
    rewards = page.outcome_rewards
    monkeypatch.setattr(
        page, "outcome_rewards", lambda y, t, *rest: (targets.append(t), rewards(y, t, *rest))[1]
    )
    for run in range(32):
        assert page.train(run, fix=True, steps=1).tolist() == [1 / 16]
    assert sorted(map(tuple, targets)) == sorted(2 * [tuple(path) for path in PATHS])


# -- what it prints --------------------------------------------------------------------------------


def test_the_picture_of_a_tree(page):
    y = np.array([[0, 0, 1, 1], [0, 0, 0, 1], [1, 0, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]])
    label = page.process_sets(y).sum(1).astype(str)
    assert page.draw_tree(y, label, np.arange(5)) == [
        "┬ L 4 ┬ L 3 ┬ L 1 ─ R 1 ",
        "│     │     └ R 2 ─ R 2 ",
        "│     └ R 1 ─ R 1 ─ R 1 ",
        "└ R 1 ─ L 1 ─ R 1 ─ R 1 ",
    ]


NUMBER = r"([+-]?\d+(?:\.\d+)?(?:e[+-]\d+)?)"
CHECKS = re.compile(
    rf"loss is {NUMBER},\s+the PRM's {NUMBER}; their gradients differ by {NUMBER}.*"
    rf"central differences by {NUMBER}.*sampler's policy, the loss is {NUMBER}, or 0",
    re.DOTALL,
)


@pytest.mark.parametrize("wrong", ["one Â", "one gradient"])
def test_the_checks_of_the_report_can_fail(page, capsys, monkeypatch, wrong):
    process_rewards, forward = page.process_rewards, page.forward

    def wrong_rewards(y, r):
        count, R, A, a = process_rewards(y, r)
        A[3, 1] *= 1.01
        return count, R, A, a

    def wrong_forward(W, tokens):
        moves, backward = forward(W, tokens)
        scale = np.where(np.arange(8) == page.DOWN, 1.01, 1.0)[:, None, None]
        return moves, lambda dlogits: backward(dlogits) * scale

    if wrong == "one Â":
        monkeypatch.setattr(page, "process_rewards", wrong_rewards)
    else:
        monkeypatch.setattr(page, "forward", wrong_forward)
    page.main(runs=2, steps=50)
    loss, again, gap, error, _ = CHECKS.search(capsys.readouterr().out).groups()
    assert (loss != again) == (wrong == "one Â")
    assert (float(gap) > 1e-5) == (wrong == "one Â")
    assert (float(error) > 1e-5) == (wrong == "one gradient")


def test_the_report(page, capsys):
    page.main(runs=2, steps=100, lr=3e-3)
    text = capsys.readouterr().out
    positions = [text.index(f"\n{part} · ") for part in range(1, 8)]
    assert all(a < b for a, b in pairwise(positions))
    loss, again, gap, error, at_sampler = CHECKS.search(text).groups()
    assert loss == again
    assert float(loss) != 0
    assert float(gap) < 1e-12
    assert float(error) < 1e-7
    assert abs(float(at_sampler)) < 1e-15

    rng = np.random.default_rng(2)
    W = page.START * rng.standard_normal((3, 8, page.D, page.D))
    y = page.sample(W[0], rng)
    tree = PrefixTree.from_sequences(list(y))
    r = page.outcome_rewards(y, y[0])
    assert f"tree of {tree.n_nodes} nodes" in text
    A, count = (values[tree.paths[0]] for values in (step_advantages(tree, r), tree.count))
    for node in range(tree.n_nodes):
        R, A_ = step_rewards(tree, r)[node], step_advantages(tree, r)[node]
        assert f"{'LR'[tree.token[node]]} {tree.count[node]:2} {R:+.2f} {A_:+.2f} " in text
    sums = re.findall(rf"Â  \[.*\]  {NUMBER}", text)
    assert [float(x) for x in sums] == [round((count * A).sum(), 2), round(A.sum(), 2)]

    share = np.array(
        [[page.train(run, fix, lr=3e-3, steps=100) for run in range(2)] for fix in (0, 1)]
    )
    for curve in share.reshape(2, 2, 2, 50).mean((1, 3)).round(3):
        assert f"  {curve}\n" in text
    gain = share[1, :, 50:].mean(1) - share[0, :, 50:].mean(1)
    half = 1.96 * gain.std(ddof=1) / np.sqrt(2)
    assert f"ahead by {gain.mean():.3f} ± {half:.3f} (95 % interval)" in text


# -- chapter 0 -------------------------------------------------------------------------------------


def test_the_code_that_chapter_0_shows_is_the_pages():
    notebook = json.loads((FILE.parent / "00_one_page.ipynb").read_text(encoding="utf-8"))
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    texts = ["".join(output.get("data", {}).get("text/markdown", "")) for output in outputs]
    shown = [line for text in texts if text for line in text.splitlines()[1:-1]]
    assert len(shown) > 70
    assert not set(shown) - set(FILE.read_text(encoding="utf-8").splitlines())
