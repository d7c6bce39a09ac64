"""λ-GRPO in verl against brute force and against our own objective, on the CPU.

verl computes the advantages, the plug-in weighs them, verl computes the loss.  No model runs: log-
probabilities are numbers that depend on the prefix alone, as those of any policy.
Skipped where verl is missing, or its TransferQueue.
"""

from __future__ import annotations

import importlib
import warnings
from copy import deepcopy
from functools import cache
from itertools import count, pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what verl, Ray and PyTorch say of each other is not ours
    pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[test,verl]"')
    pytest.importorskip("verl", reason='needs verl: pip install -e ".[test,verl]"')
    pytest.importorskip("transfer_queue", reason="needs verl's TransferQueue")

    import ray
    import torch
    import transfer_queue as tq
    import verl
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf
    from verl import DataProto
    from verl.trainer.ppo.core_algos import FixedKLController, get_policy_loss_fn
    from verl.trainer.ppo.ray_trainer import apply_kl_penalty, compute_advantage
    from verl.trainer.ppo.v1 import PPOTrainerSync, get_trainer_cls
    from verl.utils.config import omega_conf_to_dataclass
    from verl.utils.tensordict_utils import assign_non_tensor, get_tensordict
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict as stacked
    from verl.workers.utils.losses import ppo_loss

    from minigrpo.integrations import verl as integration
    from minigrpo.integrations.verl import (
        ESTIMATORS,
        LOSS_MODES,
        LambdaGRPOTrainer,
        weigh_advantages,
    )

from helpers import rollouts_of

import minigrpo as mg
from minigrpo.engine.tree_statistics import tree_metrics

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).parent.parent
ACTOR, ALPHA = "actor_rollout_ref.actor", "trainer.v1.lambda_grpo.alpha"
NOTHING, SYNC = {}, {"trainer.v1.trainer_mode": "sync"}
SPARE = {  # what verl's defaults want to know about GPUs and files
    f"{ACTOR}.ppo_micro_batch_size_per_gpu": 1,
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 1,
    "actor_rollout_ref.model.path": "none",
}


@cache
def defaults():
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer")


def settings(changes=()):
    """verl's own configuration, with changes to it."""
    config = deepcopy(defaults())
    wanted = {"algorithm.adv_estimator": "grpo", "trainer.v1.trainer_mode": "lambda_grpo"}
    for name, value in (SPARE | wanted | dict(changes)).items():
        OmegaConf.update(config, name, value, force_add=True)
    return config


def make_groups(rng, n_groups=3, k=6, length=8):
    """Groups that branch, with copies and beginnings of others; every completion has a token."""
    return [
        [rng.integers(2, size=rng.integers(1, length + 1)).tolist() for _ in range(k)]
        for _ in range(n_groups)
    ]


def make_data(rng, groups, rewards, mask=None):
    """A shuffled DataProto, padded with a token that completions have too; the order of its rows.

    mask: of every completion's tokens, 1 if they count in the loss; all by default
    """
    completions = [y for group in groups for y in group]
    mask = [[1] * len(y) for y in completions] if mask is None else mask
    uid = [f"prompt-{g}" for g, group in enumerate(groups) for _ in group]
    order = rng.permutation(len(completions))
    width = max(map(len, completions)) + 1
    padded = np.zeros((3, len(order), width))
    for row, i in enumerate(order):
        n = len(completions[i])
        padded[:2, row, :n] = completions[i], mask[i]
        padded[2, row, n - 1] = rewards[i]  # verl puts it on the last token
    tokens, counts, scores = map(torch.tensor, padded)
    tensors = {"responses": tokens.long(), "response_mask": counts.long()}
    uid = np.array(uid, dtype=object)[order]
    data = DataProto.from_dict(tensors | {"token_level_rewards": scores}, {"uid": uid})
    return data, order


def brute_weights(group, mask, alpha=1.0):
    """|λ|^-α from the definition: how many members with the same prefix count at its last token."""
    return [
        [
            max(1, sum(z[: t + 1] == y[: t + 1] and m[t] for z, m in zip(group, mask, strict=True)))
            ** -alpha
            for t in range(len(y))
        ]
        for y in group
    ]


# -- weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_advantages_of_a_completion_times_the_weight(estimator, alpha):
    rng = np.random.default_rng(0)
    groups = make_groups(rng)
    data, order = make_data(rng, groups, rng.standard_normal(18))
    compute_advantage(data, estimator, config=settings().algorithm)
    before = data.batch["advantages"].clone()
    metrics = weigh_advantages(data, alpha)
    expected = [w for g in groups for w in brute_weights(g, [[1] * len(y) for y in g], alpha)]
    shared = 0
    for row, i in enumerate(order):
        n = len(expected[i])
        assert len(set(before[row, :n].tolist())) == 1 and before[row, 0] != 0  # one number
        got = data.batch["advantages"][row]
        np.testing.assert_allclose(got[:n], before[row, 0] * np.array(expected[i]), rtol=1e-12)
        assert not got[n:].any()
        shared += sum(w < 1 for w in expected[i])
    assert shared > 20
    assert metrics == tree_metrics(rollouts_of([[]] * 3, groups).tree)
    if alpha == 1:
        ours = [w for g in groups for w in mg.lambda_weights(g)]
        np.testing.assert_allclose(np.concatenate(expected), np.concatenate(ours))


def test_only_tokens_that_count_in_the_loss_are_counted():
    """Results of tools are part of a prefix; verl masks rejected completions and tokens."""
    group = [[0, 1, 1, 0], [0, 1, 1, 1], [0, 1, 0], [0, 1, 0], [1]]
    mask = [[1, 0, 1, 1], [1, 0, 0, 1], [1, 0, 1], [0, 0, 0], [1]]  # tool, a token, a completion
    data, order = make_data(np.random.default_rng(1), [group], np.zeros(5), mask)
    data.batch["advantages"] = data.batch["response_mask"].double()
    weigh_advantages(data)
    expected = brute_weights(group, mask)
    for row, i in enumerate(order):
        n = len(group[i])
        got = data.batch["advantages"][row, :n].tolist()
        assert got == pytest.approx([w * m for w, m in zip(expected[i], mask[i], strict=True)])
    # Every node that counts does so once: 0, 011 with its two ends, 010 and 1.
    assert float(data.batch["advantages"].sum()) == pytest.approx(6)


def test_a_kl_penalty_in_the_reward_leaves_one_number_per_completion():
    """So it is not refused: it is another outcome reward."""
    rng = np.random.default_rng(2)
    data, _ = make_data(rng, make_groups(rng), np.zeros(18))
    data.batch["token_level_scores"] = data.batch.pop("token_level_rewards")
    for name in ("old_log_probs", "ref_log_prob"):
        data.batch[name] = torch.tensor(rng.uniform(-2, 0, data.batch["responses"].shape))
    data, _ = apply_kl_penalty(data, FixedKLController(0.5))
    compute_advantage(data, "grpo")
    for row, mask in zip(data.batch["advantages"], data.batch["response_mask"], strict=True):
        assert len(set(row[mask > 0].tolist())) == 1 and abs(row[0]) > 1e-3
    integration._check(settings({"algorithm.use_kl_in_reward": True}))


def test_a_batch_in_which_nothing_counts_is_left_alone():
    data, _ = make_data(np.random.default_rng(1), [[[1], [1]]], [1, 0], [[0], [0]])
    data.batch["advantages"] = data.batch["response_mask"].float()
    assert weigh_advantages(data) == {} and not data.batch["advantages"].any()
    assert data.batch["advantages"].dtype == torch.float32


def test_advantages_of_another_shape_are_refused():
    data, _ = make_data(np.random.default_rng(1), [[[1], [1]]], [1, 0])
    data.batch["advantages"] = torch.ones(2)
    with pytest.raises(ValueError, match="responses, response_mask and advantages differ in shape"):
        weigh_advantages(data)


# -- loss ------------------------------------------------------------------------------------------


def policy(rng, groups):
    """Log-probabilities now and before, by prefix: some ratios beyond either side of the clip."""
    tree = rollouts_of([[]] * len(groups), groups).tree
    logp = rng.uniform(-2, -0.1, tree.n_nodes)
    return logp, logp - rng.uniform(-0.6, 0.6, tree.n_nodes)


def verls_loss(config, data, logp, old, parts=1):
    """Loss and its gradient (B,T) as verl's workers compute them, in micro-batches."""
    mask = data.batch["response_mask"]
    length = mask.sum(1)  # without holes
    leaf = torch.tensor(logp, requires_grad=True)
    dealt = torch.arange(len(data)).chunk(parts)
    total = 0.0
    for rows in dealt:

        def nested(x, rows=rows):
            own = [x[i, : length[i]] for i in rows]
            return torch.nested.as_nested_tensor(own, layout=torch.jagged)

        fields = {
            "prompts": nested(torch.full_like(mask, 7)),  # as long as the response: it is not read
            "responses": nested(data.batch["responses"]),
            "response_mask": nested(mask),
            "old_log_probs": nested(torch.tensor(old)),
            "advantages": nested(data.batch["advantages"]),
        }
        batch = get_tensordict(fields)
        numbers = {"dp_size": 1, "batch_num_tokens": int(mask.sum())}
        assign_non_tensor(batch, **numbers, global_batch_size=len(data))
        # A model scores the token t at t - 1, so a row of a prompt and a response is shifted.
        both = [
            torch.cat([leaf.new_zeros(length[i] - 1), leaf[i, : length[i]], leaf.new_zeros(1)])
            for i in rows
        ]
        output = {"log_probs": torch.nested.as_nested_tensor(both, layout=torch.jagged)}
        total = total + ppo_loss(config, output, batch)[0]
    (gradient,) = torch.autograd.grad(total, leaf)
    return float(total), gradient.numpy()


MATCHING = {
    "token-mean": "batch_token_mean",
    "seq-mean-token-mean": "sequence_mean",
    "seq-mean-token-sum": "sequence_sum",
    "seq-mean-token-sum-norm": "constant",
}


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("mode", MATCHING)
@pytest.mark.parametrize("estimator", ["grpo", "rloo"])
def test_loss_and_gradient_are_our_objective(estimator, mode, parts):
    rng = np.random.default_rng(3)
    groups, length = make_groups(rng), 8
    rewards = rng.standard_normal(18)
    data, order = make_data(rng, groups, rewards)
    logp, old = policy(rng, groups)
    rollouts = rollouts_of([[]] * 3, groups, max_new_tokens=length)
    tree = rollouts.tree
    own = {"baseline": "leave_one_out", "scale": "none"} if estimator == "rloo" else {}
    objective = mg.Objective.preset(
        "lambda_grpo", aggregation=MATCHING[mode], beta=0.0, std_eps=1e-6, **own
    )
    objective = mg.Objective(**{**vars(objective), "clip_low": 0.2, "clip_high": 0.28})
    expected, dlogp = objective(rollouts, rewards, logp, old)

    changes = {"loss_agg_mode": mode, "loss_scale_factor": length, "clip_ratio_high": 0.28}
    config = settings({f"{ACTOR}.{name}": value for name, value in changes.items()})
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    compute_advantage(data, estimator, config=config.algorithm)

    def on_rows(x):
        padded = np.zeros(data.batch["responses"].shape)
        padded[:, : tree.paths.shape[1]] = tree.on_tokens(x)[order]
        return padded

    plain = verls_loss(actor, data, on_rows(logp), on_rows(old), parts)
    weigh_advantages(data)
    loss, gradient = verls_loss(actor, data, on_rows(logp), on_rows(old), parts)
    on_nodes = tree.sum_over_members(gradient[np.argsort(order), : tree.paths.shape[1]])
    print(f"loss {abs(loss - expected):.1e} gradient {abs(on_nodes - dlogp).max():.1e}")
    assert loss == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(on_nodes, dlogp, atol=1e-6 * abs(dlogp).max())
    assert abs(plain[0] - expected) > 1e-2 * abs(expected)  # without the weights it differs
    clipped = objective.metrics(objective.coefficients(rollouts, rewards), logp, old)
    assert min(clipped.values()) > 0.05  # on both sides


def actor_of(mode, **changes):
    changes = {f"{ACTOR}.policy_loss.{name}": value for name, value in changes.items()}
    config = settings({f"{ACTOR}.policy_loss.loss_mode": mode} | changes)
    return omega_conf_to_dataclass(config.actor_rollout_ref.actor)


def summed_loss(actor, advantages, logp, old, mask):
    """verl's policy loss, summed over tokens, and its gradient."""
    leaf = logp.clone().requires_grad_()
    loss, _ = get_policy_loss_fn(actor.policy_loss.loss_mode)(
        old_log_prob=old,
        log_prob=leaf,
        advantages=advantages,
        response_mask=mask,
        loss_agg_mode="token-sum",
        config=actor,
    )
    return float(loss), torch.autograd.grad(loss, leaf)[0]


def scene():
    """Advantages, weights, logp, old: ratios from e^-1.8 to e^1.8, clipped on either side."""
    rng = np.random.default_rng(0)
    shape = (6, 30)
    logp, shift = (torch.tensor(rng.uniform(-b, b, shape)) for b in (1.0, 1.8))
    advantages, weights = torch.tensor(rng.standard_normal(shape)), 1.0 / rng.integers(1, 7, shape)
    return advantages, torch.tensor(weights), logp - 2.5, logp - 2.5 - shift


@pytest.mark.parametrize("mode", LOSS_MODES)
def test_positive_weights_commute_with_the_loss(mode):
    """So the loss of weighted advantages is the weighted loss, token by token."""
    advantages, weights, logp, old = scene()
    actor, mask = actor_of(mode), torch.ones_like(logp)
    _, plain = summed_loss(actor, advantages, logp, old, mask)
    loss, gradient = summed_loss(actor, advantages * weights, logp, old, mask)
    torch.testing.assert_close(gradient, weights * plain, rtol=1e-9, atol=1e-12)
    if mode == "vanilla":  # its value too, since it is constant where dual clip acts
        tokens = torch.eye(mask.numel()).reshape(-1, *mask.shape).bool()
        alone = [summed_loss(actor, advantages, logp, old, token)[0] for token in tokens]
        assert loss == pytest.approx(np.dot(alone, weights.ravel()), rel=1e-6)
        ratio, silent = torch.exp(logp - old), plain == 0
        assert (silent & (ratio > 1.2) & (advantages > 0)).sum() > 10
        assert (silent & (ratio < 0.8) & (advantages < 0)).sum() > 10
        assert (silent & (ratio > 3) & (advantages < 0)).sum() > 10  # dual clip


def test_gspo_gives_members_of_a_step_ratios_of_their_own():
    """Two completions with one first token: its derivative is not a times one number."""
    logp = torch.tensor([[-1.0, -1.0], [-1.0, -2.0]], dtype=torch.float64)
    old, ones = torch.tensor([[-1.0, -1.1], [-1.0, -2.0]], dtype=torch.float64), torch.ones(2, 2)
    (_, token), (_, sequence) = (
        summed_loss(actor_of(mode), ones.double(), logp, old, ones) for mode in ("vanilla", "gspo")
    )
    assert token[0, 0] == token[1, 0] and abs(sequence[0, 0] - sequence[1, 0]) > 0.01


@pytest.mark.parametrize("mode", ["geo_mean", "clip_cov", "kl_cov", "dro"])
def test_with_other_modes_they_do_not(mode):
    advantages, weights, logp, old = scene()
    changes = {"dro_beta": 0.1} if mode == "dro" else {}
    changes |= {f"{mode}_ratio": 0.2} if mode.endswith("cov") else {}
    actor, mask = actor_of(mode, **changes), torch.ones_like(logp)
    _, plain = summed_loss(actor, advantages, logp, old, mask)
    _, gradient = summed_loss(actor, advantages * weights, logp, old, mask)
    assert abs(gradient - weights * plain).max() > 1e-3 * abs(plain).max()


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("algorithm.adv_estimator", "gae", "is not checked with process weights: take grpo or"),
        (f"{ACTOR}.policy_loss.loss_mode", "gspo", "is not checked with process weights"),
        (f"{ACTOR}.use_kl_loss", True, "adds a KL term that no weight reaches: take False"),
        (f"{ACTOR}.entropy_coeff", 0.1, "counts a shared step .* times: take 0"),
        ("algorithm.rollout_correction.rollout_is", "sequence", "differs within a step: take tok"),
        ("distillation.enabled", True, "counts a shared step .* times: take False"),
        ("actor_rollout_ref.model.mtp.enable_train", True, "counts a shared step .* times: take"),
    ],
)
def test_what_is_not_meant_is_refused(path, value, sentence):
    with pytest.raises(ValueError, match=f"^{path}={value} {sentence}") as caught:
        LambdaGRPOTrainer(settings({path: value}))
    assert "\n" not in str(caught.value)
    integration._check(settings())


@pytest.mark.parametrize("alpha", [-1, "x"])
def test_alpha_is_checked(alpha):
    with pytest.raises(ValueError, match="alpha is"):
        LambdaGRPOTrainer(settings({ALPHA: alpha}))
    with pytest.raises(ValueError, match=r"trainer.v1.lambda_grpo has no alhpa: it has alpha"):
        LambdaGRPOTrainer(settings({ALPHA.replace("alpha", "alhpa"): 0}))


@pytest.mark.parametrize("version", ["0.8.0", "0.10.0.dev0", "1.0.0"])
def test_untested_versions_are_refused(version, monkeypatch):
    monkeypatch.setattr(verl, "__version__", version)
    with pytest.raises(ImportError, match=rf"is for 0\.9\.x, not verl {version}"):
        importlib.reload(integration)


# -- the trainer -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def queue():
    """A local Ray whose processes import the plug-in, and verl's own queue of samples."""
    variables = {"VERL_USE_EXTERNAL_MODULES": integration.__name__, "PYTHONPATH": str(ROOT)}
    environment = {"env_vars": variables}
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    config = settings().transfer_queue
    config.enable, config.backend.SimpleStorage.num_data_storage_units = True, 1
    tq.init(config)
    yield
    tq.close()
    ray.shutdown()


def test_processes_of_verl_know_the_trainer_by_name(queue):
    """As verl looks it up: `main_ppo` does so inside a process of Ray."""

    @ray.remote
    def look_up():
        from verl.trainer.ppo.v1 import get_trainer_cls

        found = get_trainer_cls("lambda_grpo")
        return found.__module__, [base.__name__ for base in found.__mro__]

    module, bases = ray.get(look_up.remote())
    assert module == integration.__name__ and bases[1] == "PPOTrainerSync"
    assert get_trainer_cls("sync") is PPOTrainerSync


class Workers:
    """verl's two data-parallel workers, without a model: they look log-probabilities up."""

    _dispatch_info = {"actor": [0, 1]}  # noqa: RUF012

    def __init__(self, values):
        self.values = values  # of (uid, prefix): log-probability before the update

    def compute_log_prob(self, batch):
        """What a model gives for prompt and response, one token behind."""
        where = {"keys": batch.keys, "partition_id": batch.partition_id}
        data = tq.kv_batch_get(**where, select_fields=["prompts", "responses"])
        rows = []
        for key, prompt, response in zip(
            batch.keys, data["prompts"].unbind(), data["responses"].unbind(), strict=True
        ):
            uid, y = key.rsplit("_", 2)[0], response.tolist()
            own = [self.values.get((uid, tuple(y[: t + 1])), 0.0) for t in range(len(y))]
            rows.append(torch.tensor([0.0] * (len(prompt) - 1) + own + [0.0], dtype=torch.float64))
        nested = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
        fields = {"log_probs": nested, "entropy": nested * 0}
        tq.kv_batch_put(**where, fields=get_tensordict(fields))
        return batch

    def update_actor(self, batch):
        """Keeps what reaches a worker."""
        where = {"keys": batch.keys, "partition_id": batch.partition_id}
        fields = ["responses", "response_mask", "old_log_probs", "advantages"]
        self.keys, self.data = batch.keys, tq.kv_batch_get(**where, select_fields=fields)
        return {"metrics": {"mfu": [0.0]}}


numbers = count()


def one_step(groups, rewards, own=NOTHING, kind=LambdaGRPOTrainer, mask=None, **odd):
    """A trainer's step between sampling and the update, on groups that are in the queue."""
    uids = [f"prompt-{next(numbers)}" for _ in groups]
    fields, keys = [], []
    for g, group in enumerate(groups):
        for i, y in enumerate(group):
            n = len(fields)
            own_mask = [1] * len(y) if mask is None else mask[n]
            scores = [0.0] * (len(y) - 1) + [float(rewards[n])]
            field = {"prompts": [5] * (g + 1), "responses": y, "response_mask": own_mask}
            field |= {"input_ids": [5] * (g + 1) + y, "loss_mask": own_mask, "num_turns": 1}
            field = {name: torch.tensor(value) for name, value in field.items()}
            field |= {"rm_scores": torch.tensor(scores), "uid": uids[g]}
            field["position_ids"] = torch.arange(len(field["input_ids"]))
            field["rollout_log_probs"] = torch.zeros(len(y))
            fields.append(field)
            keys.append(f"{uids[g]}_{i}_{odd.get('sample', 0)}")
    tags = [{"status": "success", "seq_len": len(f["input_ids"])} for f in fields]
    tq.kv_batch_put(keys=keys, partition_id="train", fields=stacked(fields), tags=tags)
    done = {"is_prompt": True, "status": "finished", "global_steps": 1}
    tq.kv_batch_put(keys=uids, partition_id="train", tags=[done] * len(uids))

    own = {f"{ACTOR}.ppo_mini_batch_size": 2, "actor_rollout_ref.rollout.n": len(groups[0])} | own
    trainer = kind(settings(own))
    trainer.curr_step_profile, trainer.global_steps = False, 1
    trainer.tokenizer, trainer.processor = SimpleNamespace(eos_token_id=0), odd.get("processor")
    trainer.checkpoint_manager = SimpleNamespace(sleep_replicas=lambda: None)
    trainer.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[])
    trainer.distillation_config = None
    tree = rollouts_of([[]] * len(groups), groups).tree
    logp = np.random.default_rng(5).uniform(-2, -0.1, tree.n_nodes)
    values = {}
    for i, (uid, y) in enumerate((u, y) for u, g in zip(uids, groups, strict=True) for y in g):
        values |= {(uid, tuple(y[: t + 1])): logp[tree.paths[i, t]] for t in range(len(y))}
    trainer.actor_rollout_wg, metrics = Workers(values), {}
    trainer._step_once(metrics, {}, len(groups))
    tq.kv_clear(keys=trainer.actor_rollout_wg.keys, partition_id="train")
    places = [keys.index(k) if k in keys else None for k in trainer.actor_rollout_wg.keys]
    return trainer, metrics, places, trainer.actor_rollout_wg.data


def test_a_step_of_the_trainer(queue):
    """verl samples whole groups, deals rows to workers, fills up; each token has its weight."""
    rng = np.random.default_rng(7)
    groups, rewards = make_groups(rng, k=5), rng.standard_normal(15)  # 15 rows become 20
    plain, _, plain_places, before = one_step(groups, rewards, kind=PPOTrainerSync, own=SYNC)
    none, logs, _, _ = one_step(groups, rewards, own={ALPHA: 0})
    trainer, metrics, places, data = one_step(groups, rewards)
    assert plain.trainer_mode == trainer.trainer_mode == "sync"
    assert type(trainer.replay_buffer) is type(plain.replay_buffer)
    assert len(places) == 20 and places.count(None) == 5 and places == plain_places
    completions = [y for group in groups for y in group]
    expected = [w for g in groups for w in brute_weights(g, [[1] * len(y) for y in g])]
    owners = [place // 5 for place in places if place is not None]
    assert sum(a != b for a, b in pairwise(owners)) > 4  # verl mixes the groups
    for place, y, old, a in zip(
        places,
        data["responses"].unbind(),
        before["advantages"].unbind(),
        data["advantages"].unbind(),
        strict=True,
    ):
        if place is None:
            assert a.tolist() == [0.0]
            continue
        assert y.tolist() == completions[place]
        np.testing.assert_allclose(a, old * torch.tensor(expected[place]), rtol=1e-6)
    tree = tree_metrics(rollouts_of([[]] * 3, groups).tree)
    assert {name: metrics[name] for name in tree} == tree == {name: logs[name] for name in tree}
    assert none.alpha == 0


def test_without_alpha_it_is_verls_own(queue):
    rng = np.random.default_rng(8)
    groups, rewards = make_groups(rng, n_groups=2, k=4), rng.standard_normal(8)
    *_, none = one_step(groups, rewards, own={ALPHA: 0, f"{ACTOR}.entropy_coeff": 0.1})
    *_, plain = one_step(groups, rewards, kind=PPOTrainerSync, own=SYNC)
    for a, b in zip(none["advantages"].unbind(), plain["advantages"].unbind(), strict=True):
        assert torch.equal(a, b)


def test_rollouts_in_several_samples_and_images_of_tools_are_refused(queue):
    groups, rewards = [[[0, 1, 1], [0, 1, 0]]], [1.0, 0.0]
    with pytest.raises(ValueError, match="an agent cuts a rollout into several samples: take one"):
        one_step(groups, rewards, sample=1)
    mask = [[1, 0, 1], [1, 0, 1]]
    with pytest.raises(ValueError, match="tools may answer with images"):
        one_step(groups, rewards, mask=mask, processor=object())
    one_step(groups, rewards, processor=object())
    _, _, places, data = one_step(groups, rewards, mask=mask)  # tools that answer with text
    for place, row in zip(places, data["advantages"].unbind(), strict=True):
        a = [1, -1, 0][2 if place is None else place] / 2**0.5  # mean 1/2, std 1/√2
        assert row.tolist() == pytest.approx([a / 2, 0, a] if place is not None else [0], abs=1e-5)
