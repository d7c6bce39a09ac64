"""λ-GRPO in TRL against our own: one batch, the same weights in both libraries.

Skipped where the extra "trl" is missing.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("trl", reason='needs TRL: pip install -e ".[test,trl]"')
pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[test,trl]"')

import torch
import trl
from helpers import rollouts_of, tiny_model
from trl import GRPOConfig, GRPOTrainer
from trl_setup import (
    EOS,
    GROUPS,
    LENGTH,
    PROMPTS,
    SHAPE,
    K,
    apart,
    brute_weights,
    copy_weights,
    fixed_groups,
    gradients_of,
    hugging_face,
    make_trainer,
    moved,
    reward,
)

from minigrpo import Objective
from minigrpo.engine.tree_statistics import tree_metrics
from minigrpo.integrations import trl as integration
from minigrpo.integrations.trl import LambdaGRPOTrainer

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # what TRL, transformers and PyTorch say about each other is not ours
MATCHING = {
    "dapo": "batch_token_mean",
    "bnpo": "batch_token_mean",
    "grpo": "sequence_mean",
    "dr_grpo": "constant",
}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


def batch_of(trainer: GRPOTrainer, prompts: list[str]) -> dict:
    """A generation batch as the trainer makes it."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # TRL's loop sets it
    return trainer._generate_and_score_completions(
        [{"prompt": p} for p in prompts for _ in range(K)]
    )


def both(
    folder: Path,
    prompts: list[str],
    objective: Objective,
    loss_type: str,
    alpha: float = 1.0,
    **options,
):
    """Loss and gradients of one batch, TRL's and ours, with a policy away from both the old and the
    reference policy.
    """
    n = len(prompts) * K
    trainer = make_trainer(
        folder,
        alpha=alpha,
        rollout_func=fixed_groups,
        loss_type=loss_type,
        per_device_train_batch_size=n,
        beta=objective.beta,
        epsilon=objective.clip_low,
        mask_truncated_completions=objective.mask_truncated,
        use_bias_correction_kl=False,  # TRL's default multiplies D by ρ, which the paper does not
        **options,
    )
    groups = [GROUPS[p] for p in prompts]
    truncated = [c[-1] != EOS for group in groups for c in group]
    rollouts = rollouts_of(
        [[int(w) for w in p.split()] for p in prompts], groups, truncated, LENGTH
    )
    tree = rollouts.tree
    mine = tiny_model(**SHAPE)
    ref = mine.forward(tree, keep=False)  # TRL's reference is the stored model
    batch = batch_of(trainer, prompts)
    copy_weights(moved(mine), trainer.model)
    logp = mine.forward(tree)
    old = logp + np.random.default_rng(5).uniform(-0.5, 0.5, tree.n_nodes) * tree.scored
    batch["old_per_token_logps"] = torch.tensor(tree.on_tokens(old), dtype=torch.float32)
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    rewards = np.array(reward([c for group in groups for c in group]))
    expected, dlogp = objective(rollouts, rewards, logp, old, ref if objective.beta else None)
    mine.gradients.flat[:] = 0
    gradients = {name: np.array(g) for name, g in mine.backward(dlogp.astype(np.float32)).items()}
    clipped = objective.metrics(objective.coefficients(rollouts, rewards), logp, old)
    assert max(clipped.values()) > 0.05 and (
        min(clipped.values()) > 0.05 or n == K
    )  # on both sides, if the batch is large enough
    return float(loss), gradients_of(trainer.model), expected, hugging_face(gradients, mine.config)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "truncated masked"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("loss_type", MATCHING)
def test_loss_and_gradients_are_our_objective(
    loss_type: str, beta: float, masked: bool, tmp_path: Path
) -> None:
    changes = {"aggregation": MATCHING[loss_type], "beta": beta, "mask_truncated": masked}
    loss, gradients, expected, own = both(
        tmp_path, PROMPTS, Objective.preset("lambda_grpo", **changes), loss_type
    )
    print(f"loss {loss:.6f} {abs(loss - expected):.1e} gradients {apart(gradients, own):.1e}")
    assert abs(loss - expected) < 1e-5
    assert apart(gradients, own) < 1e-5


def test_between_grpo_and_lambda_grpo(tmp_path: Path) -> None:
    objective = Objective.preset(
        "grpo", alpha=0.5, aggregation="batch_token_mean", beta=0.3, mask_truncated=True
    )
    loss, gradients, expected, own = both(tmp_path, PROMPTS, objective, "dapo", alpha=0.5)
    assert abs(loss - expected) < 1e-5 and apart(gradients, own) < 1e-5


def test_one_group_is_the_preset_itself(tmp_path: Path) -> None:
    loss, gradients, expected, own = both(
        tmp_path, PROMPTS[:1], Objective.preset("lambda_grpo"), "dapo"
    )
    assert abs(loss - expected) < 1e-5 and apart(gradients, own) < 1e-5


def test_the_comparison_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does without the weights, and with a KL term without them."""
    loss, gradients, expected, own = both(
        tmp_path, PROMPTS, Objective.preset("lambda_grpo"), "dapo", 0.0
    )
    assert abs(loss - expected) > 1e-2 and apart(gradients, own) > 0.1
    monkeypatch.delattr(LambdaGRPOTrainer, "_compute_loss")
    objective = Objective.preset("lambda_grpo", aggregation="batch_token_mean", beta=0.3)
    loss, gradients, expected, own = both(tmp_path, PROMPTS, objective, "dapo")
    assert abs(loss - expected) > 1e-3 and apart(gradients, own) > 1e-2


def test_weights_and_metrics_of_a_batch(tmp_path: Path) -> None:
    plain = batch_of(make_trainer(tmp_path, alpha=0.0, rollout_func=fixed_groups), PROMPTS)
    trainer = make_trainer(tmp_path, rollout_func=fixed_groups, pad_to_multiple_of=16)
    batch = batch_of(trainer, PROMPTS)
    assert batch["advantages"].shape == batch["completion_ids"].shape == (16, 16)
    rows = [w for p in PROMPTS for w in brute_weights(GROUPS[p])]
    for advantage, row, weights in zip(plain["advantages"], batch["advantages"], rows, strict=True):
        np.testing.assert_allclose(row[: len(weights)], float(advantage) * weights, rtol=1e-6)
        assert (row[len(weights) :] == 0).all()
    assert len({w for row in rows for w in row}) == 4  # 1, 1/2, 1/3, 1/4
    expected = tree_metrics(rollouts_of([[0]] * len(PROMPTS), [GROUPS[p] for p in PROMPTS]).tree)
    assert {name: trainer._metrics["train"][name] for name in expected} == {
        name: [value] for name, value in expected.items()
    }
    assert expected["tree/flat_fraction"] == 0.25  # the last group
    assert "process_weights" not in batch


def test_masked_completions_are_not_counted(tmp_path: Path) -> None:
    """So that the members that do count have weights that add up to 1 in every step."""
    batch = batch_of(
        make_trainer(
            tmp_path, rollout_func=fixed_groups, mask_truncated_completions=True, beta=0.1
        ),
        PROMPTS,
    )
    weights = batch["process_weights"].numpy() * batch["completion_mask"].numpy()
    counted = [w for p in PROMPTS for w in brute_weights(GROUPS[p], masked=True)]
    everyone = [w for p in PROMPTS for w in brute_weights(GROUPS[p])]
    ended = [c[-1] == EOS for p in PROMPTS for c in GROUPS[p]]
    for row, own, is_counted in zip(weights, counted, ended, strict=True):
        np.testing.assert_allclose(row[: len(own)], own * is_counted, rtol=1e-6)
    assert not all(ended) and any((a != b).any() for a, b in zip(counted, everyone, strict=True))
    steps = [
        {tuple(c[: t + 1]) for c in GROUPS[p] if c[-1] == EOS for t in range(len(c))}
        for p in PROMPTS
    ]
    assert weights.sum() == pytest.approx(
        sum(map(len, steps)), rel=1e-6
    )  # every token of a step that counts, once


def test_tokens_of_tools_count_as_prefix_but_not_in_the_loss(tmp_path: Path) -> None:
    def with_tools(prompts: list[str], trainer: LambdaGRPOTrainer) -> dict[str, list]:
        dealt = fixed_groups(prompts, trainer)
        return dealt | {
            "env_mask": [[int(t != 1) for t in range(len(c))] for c in dealt["completion_ids"]]
        }

    trainer, plain = (make_trainer(tmp_path, rollout_func=f) for f in (with_tools, fixed_groups))
    batch, other = batch_of(trainer, PROMPTS), batch_of(plain, PROMPTS)
    assert (
        torch.equal(batch["advantages"], other["advantages"])
        and not (batch["tool_mask"] * batch["completion_mask"])[:, 1].any()
    )
    batch["advantages"][:, 1] = 1e3  # of tokens that the policy did not write
    assert float(trainer._compute_loss(trainer.model, batch)) == pytest.approx(
        -float(
            (other["advantages"] * batch["tool_mask"] * batch["completion_mask"]).sum()
            / batch["num_items_in_batch"]
        ),
        rel=1e-4,
    )


def test_eval_has_its_own_group_size(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, rollout_func=fixed_groups, num_generations_eval=2)
    trainer.model.eval()
    prompts = ["0", "3 3", "2 3 1", "1 2"]  # the first two begin alike, which must not matter
    batch = trainer._generate_and_score_completions(
        [{"prompt": p} for p in prompts for _ in range(2)]
    )
    halves = [
        GROUPS[p][i : i + 2] for p, i in zip(prompts, (0, 2, 0, 2), strict=True)
    ]  # as fixed_groups counts rows
    for row, weights in zip(
        batch["advantages"], [w for half in halves for w in brute_weights(half)], strict=True
    ):
        assert float(abs(row[0])) > 0
        np.testing.assert_allclose(row[: len(weights)] / row[0], weights / weights[0], rtol=1e-5)
    assert (
        trainer._metrics["eval"]["tree/mean_count"]
        and not trainer._metrics["train"]["tree/mean_count"]
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"loss_type": "luspo"},
            "loss_type 'luspo' is not checked with process weights: choose from dapo, bnpo, grpo",
        ),
        ({"loss_type": "vespo"}, "loss_type 'vespo'"),
        ({"loss_type": "cispo"}, "loss_type 'cispo'"),
        ({"loss_type": "sapo"}, "loss_type 'sapo'"),
        ({"importance_sampling_level": "sequence"}, "take importance_sampling_level='token'"),
        ({"entropy_coef": 0.1}, "leave entropy_coef at 0"),
        ({"use_adaptive_entropy": True}, "use_adaptive_entropy off"),
        ({"alpha": -1}, "alpha is -1: it must be a finite number, at least 0"),
    ],
)
def test_what_is_not_meant_is_refused(settings: dict, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        make_trainer(tmp_path, **settings)
    assert "\n" not in str(caught.value)
    if "alpha" not in settings:
        make_trainer(tmp_path, alpha=0.0, **settings)  # as GRPOTrainer takes it


@pytest.mark.parametrize("level", ["sequence", "token"])
@pytest.mark.parametrize("way", ["mask", "truncate"])
def test_importance_weights_of_whole_completions_are_refused(
    level: str, way: str, tmp_path: Path
) -> None:
    """Two completions that share a step have a weight each; "sequence_mask" is TRL's default."""
    mode = f"{level}_{way}"
    args = GRPOConfig(str(tmp_path), use_cpu=True, vllm_importance_sampling_mode=mode)
    integration._check(args)  # without vLLM it is not read
    args.use_vllm = True
    if level == "sequence":
        with pytest.raises(ValueError, match="take vllm_importance_sampling_mode='token_truncate'"):
            integration._check(args)
        args.vllm_importance_sampling_correction = False
    integration._check(args)


def test_a_trl_that_writes_its_kl_term_otherwise_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, rollout_func=fixed_groups, beta=0.1)
    batch = batch_of(trainer, PROMPTS)
    monkeypatch.setattr(
        GRPOTrainer,
        "_compute_loss",
        lambda self, model, inputs: inputs["process_weights"].sum() * self.beta,
    )
    with pytest.raises(
        RuntimeError, match="does not multiply its KL term by beta once: set beta to 0"
    ):
        trainer._compute_loss(trainer.model, batch)
    assert type(trainer.beta) is float


@pytest.mark.parametrize("version", ["1.15.0", "1.17.0.dev0", "1.1.0", "2.16.0"])
def test_untested_versions_are_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trl, "__version__", version)
    with pytest.raises(
        ImportError, match=rf"tested with TRL 1.14 and 1.16, but {version} is installed"
    ):
        importlib.reload(integration)
    monkeypatch.undo()
    assert LambdaGRPOTrainer.__name__ in vars(integration)


def test_a_trainer_that_another_library_put_in_its_place_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As unsloth does, whose own loss would be minimised in place of TRL's."""
    own = type("UnslothGRPOTrainer", (GRPOTrainer,), {"__module__": "UnslothGRPOTrainer"})
    monkeypatch.setattr(trl, "GRPOTrainer", own)
    with pytest.raises(ImportError, match=r"replaced by one of UnslothGRPOTrainer, whose loss"):
        importlib.reload(integration)
    monkeypatch.undo()
    importlib.reload(integration)
