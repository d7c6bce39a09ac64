"""λ-GRPO in TRL: `GRPOTrainer` with the weight 1/|λ| on every token, for larger models.

    from minigrpo.integrations.trl import LambdaGRPOTrainer

    args = GRPOConfig(...)  # everything else is as in TRL
    trainer = LambdaGRPOTrainer(model, reward_funcs, args=args, train_dataset=dataset)

TRL generates, scores, shuffles, splits, clips and takes the mean; this adds one factor.  A weight
is positive, so min(ρ·a, clip(ρ)·a)·w = min(ρ·aw, clip(ρ)·aw): it is enough to multiply the
advantages, which TRL's loss takes with shape (B,T) as well as (B,).  The KL term stands apart from
them, so its coefficient gets the same weights.  Groups may lie across processes: their token ids
are gathered as TRL gathers their rewards.  |λ| counts the completions of a group that count in the
loss, so not those that `mask_truncated_completions` leaves out, and prefixes with the results of
tools in them.

|λ| is by token ids, so tools that answer with images are refused.  This was run with plain PyTorch,
in one process and in several, not with vLLM, DeepSpeed, FSDP or PEFT.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrpo.engine.tree_statistics import tree_metrics
from minigrpo.objectives import Objective
from minigrpo.tree import PrefixTree

TESTED = "1.14", "1.16"  # versions of TRL, as in pyproject.toml; 1.15 needs Triton
LOSS_TYPES = "dapo", "bnpo", "grpo", "dr_grpo"
INSTALL = 'pip install "minigrpo[trl]"'

try:
    import torch
    import trl
    from accelerate.utils import gather_object
    from transformers import ProcessorMixin
    from trl import GRPOConfig, GRPOTrainer
except ImportError as error:
    raise ImportError(f"minigrpo.integrations.trl needs TRL ({error}): {INSTALL}") from error

if ".".join(trl.__version__.split(".")[:2]) not in TESTED:
    versions = f"{' and '.join(TESTED)}, but {trl.__version__} is installed"
    raise ImportError(f"minigrpo.integrations.trl is tested with TRL {versions}: {INSTALL}")
if GRPOTrainer.__module__ != "trl.trainer.grpo_trainer":  # unsloth's has a loss of its own
    why = f"trl.GRPOTrainer has been replaced by one of {GRPOTrainer.__module__}"
    raise ImportError(f"{why}, whose loss takes no weights: train without it")


class LambdaGRPOTrainer(GRPOTrainer):
    """TRL's GRPOTrainer with process weights and the tree's metrics in its logs.

        J = Σᵢ cᵢ Σₜ w(i,t) · ( min(ρ·aᵢ, clip(ρ)·aᵢ) - β·D ),   w(i,t) = |λ(i,t)|^-α

    alpha: 1 is λ-GRPO; 0 is bit for bit what GRPOTrainer does, with the metrics of the tree; other
    powers are ours.  cᵢ is by TRL's loss_type: "dapo" (TRL's default) is our batch_token_mean, and
    the paper's mean if an update has one group; "grpo" is sequence_mean; "dr_grpo" is constant;
    "bnpo" is the mean over the tokens of a micro-batch.  The rest is as in GRPOTrainer.
    Raises ValueError for settings under which w would not be what the paper means.  (Paper,
    section 4.)
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        *others: Any,
        alpha: float = 1.0,
        **options: Any,
    ) -> None:
        self.alpha = Objective(alpha=alpha).alpha  # checked
        if alpha and args is not None:  # before the model is loaded; TRL's defaults are fine
            _check(args)
        super().__init__(model, reward_funcs, args, *others, **options)
        if alpha and self.tools and isinstance(self.processing_class, ProcessorMixin):
            why = "tools may answer with images, and |λ| cannot tell two images apart"
            raise ValueError(f"{why}: leave out the tools")

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: list[list[int]]
    ) -> torch.Tensor:
        """TRL's own; the token ids of all processes are gathered, in the order of the rewards."""
        self._sequences = gather_object(completion_ids_list)
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's own, with advantages (B,T) in place of (B,)."""
        output = super()._generate_and_score_completions(inputs)
        training = self.model.training
        mode = "train" if training else "eval"
        k = self.num_generations if training else self.num_generations_eval
        groups = [self._sequences[i : i + k] for i in range(0, len(self._sequences), k)]
        tree = PrefixTree.from_groups([()] * len(groups), groups)
        for name, value in tree_metrics(tree).items():
            self._metrics[mode][name].append(value)
        if not self.alpha:
            return output
        mask = output["completion_mask"]  # of this process, padded; the tree has the rows of all
        counts_in_loss = self.accelerator.gather(mask.any(1)).cpu().numpy()
        count = tree.sum_over_members(counts_in_loss)
        first, (rows, width) = self.accelerator.process_index * len(mask), mask.shape
        own = tree.on_tokens(np.maximum(count, 1) ** -self.alpha)[first:][:rows, :width]
        padded = np.pad(own, ((0, 0), (0, width - own.shape[1])))
        weights = output["advantages"].new_tensor(padded)  # (B,T), 0 on padding
        output["advantages"] = output["advantages"].unsqueeze(1) * weights
        if self.beta:
            output["process_weights"] = weights
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """TRL's own, with β·w in place of β where it multiplies the KL term."""
        if "process_weights" not in inputs:
            return super()._compute_loss(model, inputs)
        plain, self.beta = self.beta, _WeightedBeta(self.beta, inputs["process_weights"])
        try:
            loss = super()._compute_loss(model, inputs)
            if self.beta.uses != 1:
                why = f"TRL {trl.__version__} does not multiply its KL term by beta once"
                raise RuntimeError(f"{why}: set beta to 0")
        finally:
            self.beta = plain
        return loss


class _WeightedBeta(float):
    """β, a plain number but that `beta * per_token_kl`, as TRL writes it, is β·w·KL."""

    def __new__(cls, beta: float, weights: torch.Tensor) -> _WeightedBeta:
        self = super().__new__(cls, beta)
        self.weights, self.uses = weights, 0
        return self

    def __mul__(self, per_token_kl: torch.Tensor) -> torch.Tensor:
        self.uses += 1
        return float(self) * (self.weights * per_token_kl)


def _check(args: GRPOConfig) -> None:
    """Refuse what does not go with process weights; alpha=0 takes it all."""
    if args.loss_type not in LOSS_TYPES:
        why = f"loss_type {args.loss_type!r} is not checked with process weights"
        raise ValueError(f"{why}: choose from {', '.join(LOSS_TYPES)}")
    whole = "ratios of whole completions differ within a process step: take"
    corrected = args.use_vllm and args.vllm_importance_sampling_correction
    mode = args.vllm_importance_sampling_mode if corrected else "token"
    bonus = "an entropy bonus counts a shared step |λ| times: leave"
    for wrong, why in (
        (args.importance_sampling_level != "token", f"{whole} importance_sampling_level='token'"),
        (mode[:5] != "token", f"{whole} vllm_importance_sampling_mode='token_truncate'"),
        (args.entropy_coef, f"{bonus} entropy_coef at 0"),
        (args.use_adaptive_entropy, f"{bonus} use_adaptive_entropy off"),
    ):
        if wrong:
            raise ValueError(why)
