"""λ-GRPO in verl: its synchronous trainer with the weight 1/|λ| on every token.

    export VERL_USE_EXTERNAL_MODULES=minigrpo.integrations.verl  # verl then imports it everywhere
    python -m verl.trainer.main_ppo trainer.v1.trainer_mode=lambda_grpo algorithm.adv_estimator=grpo

A weight is positive, so it commutes with clipping, dual clip included, and it is enough to multiply
the advantages.  `_compute_advantage` has those of whole groups; an estimator of `register_adv_est`
sees no responses.  |λ| counts members whose token counts in the loss; results of tools are part of
a prefix.  A KL penalty in the reward is part of the one reward; the KL term of the loss is refused,
since no weight reaches it.  Run on a CPU, from advantages to loss, not with vLLM and GPUs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrpo.engine.tree_statistics import tree_metrics
from minigrpo.objectives import Objective
from minigrpo.tree import PrefixTree

TESTED = "0.9."  # versions of verl, as in pyproject.toml
ESTIMATORS = "grpo", "grpo_vectorized", "rloo", "rloo_vectorized", "opo"
LOSS_MODES = "vanilla", "dppo_tv", "dppo_kl", "sapo", "gpg", "cispo"
INSTALL = 'pip install "minigrpo[verl]"'

try:
    import verl
    from omegaconf import OmegaConf
    from verl import DataProto
    from verl.trainer.ppo.v1 import PPOTrainerSync
    from verl.trainer.ppo.v1.trainer_base import register_trainer, response_to_nested, tq
    from verl.utils.tensordict_utils import get_tensordict
except ImportError as error:
    raise ImportError(f"minigrpo.integrations.verl needs verl ({error}): {INSTALL}") from error
if not verl.__version__.startswith(TESTED):
    raise ImportError(f"minigrpo.integrations.verl is for {TESTED}x, not verl {verl.__version__}")


def weigh_advantages(data: DataProto, alpha: float = 1.0) -> dict[str, float]:
    """Multiply advantages by w(i,t) = |λ(i,t)|^-alpha, in place.   -> metrics of the tree

    data: responses, response_mask and advantages (B,T), uid (B,), of whole groups in any order.
    Raises ValueError if their shapes differ.  (Paper, section 4.)
    """
    fields = [data.batch[name] for name in ("responses", "response_mask", "advantages")]
    if len(shapes := {tuple(field.shape) for field in fields}) > 1:
        raise ValueError(f"responses, response_mask and advantages differ in shape: {shapes}")
    tokens, counts = fields[0].cpu().numpy(), fields[1].cpu().numpy() > 0
    end = np.where(counts, np.arange(1, counts.shape[1] + 1), 0).max(1, initial=0)
    group = np.unique(data.non_tensor_batch["uid"].astype(str), return_inverse=True)[1]
    rows = np.argsort(group, kind="stable")
    rows = rows[end[rows] > 0]  # rows that verl fills a batch up with do not count
    if not len(rows):
        return {}
    starts = np.flatnonzero(np.diff(group[rows])) + 1
    groups = [[tokens[i, : end[i]] for i in own] for own in np.split(rows, starts)]
    tree = PrefixTree.from_groups([()] * len(groups), groups)
    count = tree.sum_over_members(counts[rows, : tree.paths.shape[1]])
    weights = np.ones(tokens.shape)
    weights[rows, : tree.paths.shape[1]] = tree.on_tokens(np.maximum(count, 1) ** -alpha, 1.0)
    data.batch["advantages"] = fields[2] * fields[2].new_tensor(weights)
    return tree_metrics(tree)


@register_trainer("lambda_grpo")
class LambdaGRPOTrainer(PPOTrainerSync):
    """PPOTrainerSync with J = Σᵢ cᵢ Σₜ |λ(i,t)|^-α · min(ρ·aᵢ, clip(ρ)·aᵢ), the tree in its logs.

    α is `+trainer.v1.lambda_grpo.alpha=…`: 1, the default, is λ-GRPO; 0 is PPOTrainerSync.  cᵢ is
    by verl's loss_agg_mode: "token-mean" is our batch_token_mean over a mini-batch.
    Raises ValueError for settings under which the weights would not be what the paper means.
    """

    def __init__(self, config: Any) -> None:
        options = {"alpha": 1.0, **(config.trainer.v1.get("lambda_grpo") or {})}
        if unknown := set(options) - {"alpha"}:
            raise ValueError(f"trainer.v1.lambda_grpo has no {', '.join(unknown)}: it has alpha")
        self.alpha = Objective(alpha=options["alpha"]).alpha  # checked
        if self.alpha:
            _check(config)
        config.trainer.v1.trainer_mode = "sync"  # verl compares this name in many places
        super().__init__(config)

    def _compute_advantage(self, batch: Any, metrics: dict) -> Any:
        """verl's own, after which advantages differ within a completion."""
        batch = super()._compute_advantage(batch, metrics)
        uid, _, sample = np.array([key.rsplit("_", 2) for key in batch.keys]).T
        where = {"keys": batch.keys, "partition_id": batch.partition_id}
        fields = ["responses", "response_mask", "advantages"]
        nested = tq.kv_batch_get(**where, select_fields=fields)
        data = DataProto(nested.to_padded_tensor(), {"uid": uid})
        metrics.update(weigh_advantages(data, self.alpha))
        if not self.alpha:
            return batch
        if set(sample) != {"0"}:
            raise ValueError("an agent cuts a rollout into several samples: take one that does not")
        if self.processor is not None and (data.batch["response_mask"].diff() > 0).any():
            raise ValueError("tools may answer with images, which |λ| cannot tell apart: take none")
        weighted = response_to_nested(data.batch["advantages"], nested["response_mask"])
        tq.kv_batch_put(**where, fields=get_tensordict({"advantages": weighted}))
        return batch


def _check(config: Any) -> None:
    """Refuse what does not go with process weights; alpha=0 takes it all."""
    actor, counted = "actor_rollout_ref.actor", "counts a shared step |λ| times"
    for path, choices, why in (
        ("algorithm.adv_estimator", ESTIMATORS, "is not checked with process weights"),
        (f"{actor}.policy_loss.loss_mode", LOSS_MODES, "is not checked with process weights"),
        ("algorithm.rollout_correction.rollout_is", ("token", None), "differs within a step"),
        (f"{actor}.use_kl_loss", (False,), "adds a KL term that no weight reaches"),
        (f"{actor}.entropy_coeff", (0,), counted),
        ("distillation.enabled", (False, None), counted),
        ("actor_rollout_ref.model.mtp.enable_train", (False, None), counted),
    ):
        if (value := OmegaConf.select(config, path)) not in choices:
            raise ValueError(f"{path}={value} {why}: take {' or '.join(map(str, choices))}")
