"""GRPO is secretly a process reward model: the result from scratch, on the prefix tree, with hand-written gradients.

Read in this order: tree, objectives, rewards, ops, transformer, sampler, trainer.
"""

from minigrpo.backend import get_backend
from minigrpo.objectives import Objective, advantages, step_advantages
from minigrpo.parameters import TransformerConfig
from minigrpo.rewards import monte_carlo_step_rewards, step_rewards
from minigrpo.sampler import Rollouts, sample
from minigrpo.transformer import Transformer
from minigrpo.tree import PrefixTree, ProcessStep, lambda_weights

__version__ = "0.1.0"

__all__ = [
    "Objective",
    "PrefixTree",
    "ProcessStep",
    "Rollouts",
    "Transformer",
    "TransformerConfig",
    "advantages",
    "get_backend",
    "lambda_weights",
    "monte_carlo_step_rewards",
    "sample",
    "step_advantages",
    "step_rewards",
]
