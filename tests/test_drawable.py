"""Tokens that can be read but not drawn: they have no logit, in sampling, in scoring and in the
gradient alike.
"""

from __future__ import annotations

import numpy as np
import pytest
from helpers import tiny_model

from minigrpo import PrefixTree, Transformer, TransformerConfig, sample
from minigrpo.command.cli import main
from minigrpo.runs.policy import load_run, make_policy
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.stored_settings import read_settings
from minigrpo.runs.train import train
from minigrpo.tasks import Tokenised
from minigrpo.tasks.treewalk import TreeWalk

ROOT = 2
SMALL = {
    "dim": 8,
    "n_layers": 1,
    "n_heads": 2,
    "group_size": 8,
    "prompts_per_step": 1,
    "checkpoint_every": 1,
}


def masked(tied: bool = False, seed: int = 0, loud: float = 0.0, **shape: int) -> Transformer:
    """Draws 0 and 1 of three tokens.   loud: added to the head's row of the third"""
    model = tiny_model(vocab_size=3, n_drawable=2, tie_embeddings=tied, seed=seed, **shape)
    model.parameters["model.embed_tokens.weight" if tied else "lm_head.weight"][ROOT] += loud
    return model


def every_walk(prompt=(ROOT,), depth: int = 3) -> PrefixTree:
    """All walks of a depth after one prompt."""
    return PrefixTree.from_groups([list(prompt)], [list(np.ndindex(*(2,) * depth))])


@pytest.mark.parametrize("bad", [0, 4, -1, 2.0, True])
def test_n_drawable_is_checked(bad):
    with pytest.raises(
        ValueError,
        match=f"n_drawable is {bad}: it must be a whole number from 1 to 3, the vocabulary",
    ):
        TransformerConfig(vocab_size=3, n_drawable=bad)
    assert (
        TransformerConfig(vocab_size=3).n_logits
        == TransformerConfig(vocab_size=3, n_drawable=3).n_logits
        == 3
    )


@pytest.mark.parametrize("tied", [True, False])
def test_probabilities_of_what_can_be_drawn_sum_to_1(tied):
    model, tree = masked(tied, loud=50.0), every_walk((ROOT, 0, ROOT))
    logp = model.forward(tree, keep=False)
    inner = np.unique(tree.parent[tree.scored])
    sums = np.bincount(tree.parent[tree.scored], np.exp(logp[tree.scored]))[inner]
    np.testing.assert_allclose(sums, 1, atol=1e-14)
    assert model.logits(np.array([ROOT, 0, ROOT])).shape == (3, 2)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampling_and_scoring_have_the_same_mask(temperature):
    for seed in range(5):
        model = masked(seed=seed, loud=20.0)
        prompts = [np.array([ROOT]), np.array([0, ROOT, 1]), np.array([ROOT])]
        rollouts = sample(
            model,
            prompts,
            9,
            np.random.default_rng(seed),
            max_new_tokens=5,
            temperature=temperature,
        )
        again = model.forward(rollouts.tree, temperature, keep=False)
        np.testing.assert_allclose(rollouts.logp, again, atol=1e-13)
        assert rollouts.tree.token[rollouts.tree.scored].max() == 1
        assert rollouts.entropy.max() <= np.log(2) + 1e-12


@pytest.mark.parametrize("tied", [True, False])
def test_the_masked_token_is_never_drawn_and_the_others_as_often_as_they_should(tied):
    """10⁵ completions, with a row of the head that would take all probability if it had a logit."""
    model, tree = masked(tied, loud=100.0 if not tied else 3.0), every_walk(depth=2)
    p = np.exp(tree.on_tokens(model.forward(tree, keep=False)).sum(1))
    drawn = sample(
        model, [np.array([ROOT])], 100_000, np.random.default_rng(0), max_new_tokens=2
    ).completions[0]
    tokens = np.array(drawn)
    assert tokens.max() == 1
    counts = np.bincount(tokens @ [2, 1], minlength=4)
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert (
        (counts - 1e5 * p) ** 2 / (1e5 * p)
    ).sum() < 16.3  # chi-squared, 3 degrees of freedom, p = 0.001
    best = sample(
        model, [np.array([ROOT])], 1, np.random.default_rng(0), max_new_tokens=2, temperature=0
    ).completions[0][0]
    assert best.max() <= 1


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_by_central_differences(tied, add):
    """Of every parameter, against a random cotangent, on top of what `gradients` held (add) or in
    its place.
    """
    model, temperature = (
        masked(tied, loud=1.0, dim=8, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=8),
        0.7,
    )
    tree = PrefixTree.from_groups(
        [[ROOT, 0], [1, ROOT, ROOT]], [[[0, 1, 1], [0, 1, 0], [1]], [[1, 1], [1, 0, 1], [1, 1]]]
    )
    rng, step = np.random.default_rng(1), 1e-6
    dlogp, before = (
        np.where(tree.scored, rng.standard_normal(tree.n_nodes), 1e9),
        rng.standard_normal(model.gradients.flat.size),
    )
    model.gradients.flat[:] = before
    model.forward(tree, temperature)
    found = model.backward(dlogp, add=add).flat - (before if add else 0)
    flat, expected = model.parameters.flat, np.empty_like(found)

    def loss() -> float:
        return float(model.forward(tree, temperature, keep=False)[tree.scored] @ dlogp[tree.scored])

    for i, value in enumerate(flat.tolist()):
        flat[i] = value + step
        above = loss()
        flat[i] = value - step
        expected[i] = (above - loss()) / (2 * step)
        flat[i] = value
    np.testing.assert_allclose(found, expected, atol=2e-8)
    if not tied:
        head = model.gradients["lm_head.weight"]
        held = before.reshape(-1)[-head.size :].reshape(head.shape) if add else np.zeros(head.shape)
        np.testing.assert_array_equal(head[ROOT], held[ROOT])
        assert (head[:ROOT] != held[:ROOT]).all()
    assert np.abs(model.gradients["model.embed_tokens.weight"][ROOT]).min() > 0  # it is read


def test_a_row_that_is_not_used_changes_nothing():
    """The model with the third row of the head is the model that never had one."""
    model, tree = masked(), every_walk((0, 1))
    two = tiny_model(vocab_size=2, tie_embeddings=False)
    for name, view in two.parameters.items():
        view[...] = (
            model.parameters[name][:2]
            if name.startswith(("model.embed", "lm_head"))
            else model.parameters[name]
        )
    np.testing.assert_allclose(two.forward(tree), model.forward(tree), atol=1e-15)
    model.backward(np.ones(tree.n_nodes))
    two.backward(np.ones(tree.n_nodes))
    np.testing.assert_allclose(
        two.gradients["lm_head.weight"], model.gradients["lm_head.weight"][:2], atol=1e-13
    )


def test_what_cannot_be_drawn_is_refused():
    model = masked()
    bad = PrefixTree.from_groups([[ROOT]], [[[0, ROOT], [1]]])
    with pytest.raises(
        ValueError,
        match="token id 2 of a completion cannot be drawn: the model draws those below 2",
    ):
        model.forward(bad)
    with pytest.raises(ValueError, match="eos 2 cannot be drawn: the model draws tokens below 2"):
        sample(model, [np.array([ROOT])], 2, np.random.default_rng(0), max_new_tokens=2, eos=2)
    with pytest.raises(ValueError, match="token id 3 is outside the model's vocabulary of 3"):
        model.forward(PrefixTree.from_groups([[3]], [[[0]]]))


def test_a_folder_for_transformers_cannot_say_it(tmp_path):
    pytest.importorskip("safetensors")
    from minigrpo.models import save_hugging_face

    with pytest.raises(ValueError, match="draws its first 2 tokens only"):
        save_hugging_face(masked(), None, tmp_path / "m")
    assert not (tmp_path / "m").exists()


# -- the walk's target through a run ---------------------------------------------------------------


def test_train_resume_evaluate_and_sample_agree_on_the_target(tmp_path, capsys):
    def run(*arguments) -> list[str]:
        assert main([str(a) for a in arguments]) == 0
        return capsys.readouterr().out.splitlines()

    for seed, target in ((1, "RLLR"), (5, "RLLL")):
        settings = TrainSettings(**SMALL, steps=2, seed=seed)
        task = make_policy(settings)[1]
        assert (task.target, task.seed) == (target, seed)
        folder = tmp_path / str(seed)
        _, history = train(settings, folder, progress=False)
        model, loaded, _ = load_run(folder)
        assert loaded == task and model.config.n_drawable == 2
        half = tmp_path / f"half-{seed}"
        train(TrainSettings(**SMALL, steps=2, seed=seed), half, progress=False)
        (half / "checkpoint-000002.mgc").unlink()
        _, rest = train(settings, half, resume=True, progress=False)
        assert [m["reward"] for m in rest] == [history[1]["reward"]]
    flags = [
        item
        for name, value in SMALL.items()
        if name != "checkpoint_every"
        for item in (f"--{name.replace('_', '-')}", value)
    ]
    started = run("train", *flags, "--steps", 2, "--seed", 5, "--out", tmp_path / "cli")
    assert (
        started[1]
        == run("train", "--resume", tmp_path / "cli")[1]
        == "target path RLLL, drawn from the seed"
    )
    assert read_settings(tmp_path / "cli")["task_options"] == {}
    assert (
        run(
            "train",
            *flags,
            "--steps",
            1,
            "--task-option",
            "target=LLRL",
            "--out",
            tmp_path / "given",
        )[1]
        == "target path LLRL"
    )
    assert "^" in "".join(run("sample", tmp_path / "cli", "--group-size", 64))


def test_a_run_of_the_old_walk_is_refused_by_its_vocabulary(tmp_path):
    """Its settings name no root, as a version before had none; its model knows two tokens."""
    task = TreeWalk(root="L", target="RRRR")
    settings = TrainSettings(**SMALL, steps=1, task_options={"root": "bos", "target": "RRRR"})
    train(settings, tmp_path / "old", task=task, progress=False)
    for use in (
        load_run,
        lambda folder: train(
            TrainSettings(**read_settings(folder)), folder, resume=True, progress=False
        ),
    ):
        with pytest.raises(
            ValueError,
            match="a model with a vocabulary of 2, but task 'treewalk' has 3: it has changed since",
        ):
            use(tmp_path / "old")


def test_a_task_for_a_run_is_of_its_class_and_text_stays_tokenised(tmp_path):
    file = tmp_path / "mine.py"
    body = (
        "from minigrpo.tasks.treewalk import TreeWalk\n"
        "class T(TreeWalk):\n    def for_run(self, seed): return {}\n"
    )
    file.write_text(body.format("None"))
    with pytest.raises(
        ValueError, match=r"for_run of task .* gave None: it must return a task of the same class"
    ):
        make_policy(TrainSettings(**SMALL, task=f"{file}:T"))
    file.write_text(
        body.format("TreeWalk(target='L' * (seed + 2), depth=seed + 2)")
        + "class U(TreeWalk):\n    n_drawable = 9\n"
    )
    with pytest.raises(ValueError, match="it must return a task of the same class"):
        make_policy(TrainSettings(**SMALL, task=f"{file}:T"))
    with pytest.raises(
        ValueError, match=r"n_drawable of task .* is 9: it must be a whole number from 1 to 3"
    ):
        make_policy(TrainSettings(**SMALL, task=f"{file}:U"))

    class Text:
        seed = 0

        def for_run(self, seed):
            other = Text()
            other.seed = seed
            return other

    own = Tokenised(Text(), "a tokenizer").for_run(7)
    assert (type(own), own.seed, own.tokenizer) == (Tokenised, 7, "a tokenizer")
