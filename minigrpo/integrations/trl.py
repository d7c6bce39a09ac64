"""λ-GRPO in TRL: `GRPOTrainer` with the weight 1/|λ| on every token, for models and machines that this package is not made for.

    from minigrpo.integrations.trl import LambdaGRPOTrainer
    trainer = LambdaGRPOTrainer(model, reward_funcs, args=GRPOConfig(...), train_dataset=dataset)      # all else as in TRL

TRL generates, scores, shuffles, splits, clips and takes the mean; what this adds is one factor.  Its loss takes advantages of
shape (B,), or (B,T) from a subclass.  A weight is positive, so min(ρ·a, clip(ρ)·a)·w = min(ρ·aw, clip(ρ)·aw): multiplying the
advantages is enough.  The KL term stands apart from them, so its coefficient gets the same weights.  Groups may lie across
processes: their token ids are gathered as TRL gathers their rewards.  |λ| counts the completions of a group that count in the
loss, so not those that `mask_truncated_completions` leaves out, and prefixes with the results of tools in them.

What it leaves out: |λ| is by token ids, so tools that answer with images are refused.  Run with plain PyTorch, in one process and
in several; vLLM, DeepSpeed, FSDP and PEFT act above or below these few lines, but have not been run with them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrpo.engine.tree_statistics import tree_metrics
from minigrpo.objectives import Objective
from minigrpo.tree import PrefixTree

TESTED = (
    "1.14",
    "1.16",
)  # versions of TRL that the tests have run on, as in pyproject.toml; 1.15 needs Triton
LOSS_TYPES = ("dapo", "bnpo", "grpo", "dr_grpo")

try:
    import torch
    import trl
    from accelerate.utils import gather_object
    from transformers import ProcessorMixin
    from trl import GRPOConfig, GRPOTrainer
except ImportError as error:
    raise ImportError(
        f'minigrpo.integrations.trl needs TRL ({error}): pip install "minigrpo[trl]"'
    ) from error

if ".".join(trl.__version__.split(".")[:2]) not in TESTED:
    raise ImportError(
        f"minigrpo.integrations.trl is tested with TRL {' and '.join(TESTED)}, but {trl.__version__} is installed: "
        'pip install "minigrpo[trl]"'
    )


class LambdaGRPOTrainer(GRPOTrainer):
    """TRL's GRPOTrainer with process weights and the tree's metrics in its logs.

        J = Σᵢ cᵢ Σₜ w(i,t) · ( min(ρ·aᵢ, clip(ρ)·aᵢ) - β·D ),   w(i,t) = |λ(i,t)|^-α, and cᵢ by TRL's loss_type

    alpha: 1 is λ-GRPO; 0 is bit for bit what GRPOTrainer does, with the metrics of the tree; other powers are ours.
    loss_type: "dapo" (TRL's default) is our batch_token_mean, and the paper's mean where an update has one group; "grpo" is
    sequence_mean; "dr_grpo" is constant; "bnpo" is the mean over the tokens of a micro-batch.  The rest is as in GRPOTrainer.
    Raises ValueError for settings under which w would not be what the paper means.  (Paper, section 4.)
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
            raise ValueError(
                "tools may answer with images, and |λ| cannot tell two images apart: leave out the tools"
            )

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: list[list[int]]
    ) -> torch.Tensor:
        """TRL's own; on the way the token ids of all processes are gathered, in the order of the rewards that it returns."""
        self._sequences = gather_object(completion_ids_list)
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's own, with advantages (B,T) in place of (B,)."""
        output = super()._generate_and_score_completions(inputs)
        mode, k = (
            ("train", self.num_generations)
            if self.model.training
            else ("eval", self.num_generations_eval)
        )
        groups = [self._sequences[i : i + k] for i in range(0, len(self._sequences), k)]
        tree = PrefixTree.from_groups([()] * len(groups), groups)
        for name, value in tree_metrics(tree).items():
            self._metrics[mode][name].append(value)
        if not self.alpha:
            return output
        rows, width = output[
            "completion_ids"
        ].shape  # of this process, padded; the tree's rows are those of all processes
        count = tree.sum_over_members(
            self.accelerator.gather(output["completion_mask"].any(1)).cpu().numpy()
        )
        own = tree.on_tokens(np.maximum(count, 1) ** -self.alpha)[
            self.accelerator.process_index * rows :
        ][:rows, :width]
        advantages = output["advantages"]
        weights = advantages.new_tensor(
            np.pad(own, ((0, 0), (0, width - own.shape[1])))
        )  # (B,T), 0 on padding
        output["advantages"] = advantages.unsqueeze(1) * weights
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
                raise RuntimeError(
                    f"TRL {trl.__version__} does not multiply its KL term by beta once: set beta to 0"
                )
        finally:
            self.beta = plain
        return loss


class _WeightedBeta(float):
    """β, a plain number in all but one thing: `beta * per_token_kl`, as TRL writes it, is β·w·KL."""

    def __new__(cls, beta: float, weights: torch.Tensor) -> _WeightedBeta:
        self = super().__new__(cls, beta)
        self.weights, self.uses = weights, 0
        return self

    def __mul__(self, per_token_kl: torch.Tensor) -> torch.Tensor:
        self.uses += 1
        return float(self) * (self.weights * per_token_kl)


def _check(args: GRPOConfig) -> None:
    """Refuse what does not go with process weights: alpha=0 takes it all."""
    if args.loss_type not in LOSS_TYPES:
        raise ValueError(
            f"loss_type {args.loss_type!r} is not checked with process weights: choose from {', '.join(LOSS_TYPES)}"
        )
    if args.importance_sampling_level != "token":
        raise ValueError(
            "ratios of whole completions differ within a process step: take importance_sampling_level='token'"
        )
    if args.entropy_coef or args.use_adaptive_entropy:
        raise ValueError(
            "an entropy bonus counts a shared step |λ| times: leave entropy_coef at 0, use_adaptive_entropy off"
        )
