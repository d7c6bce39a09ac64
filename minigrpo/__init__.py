"""GRPO is secretly a process reward model: the result from scratch, on the prefix tree, with hand-written gradients.

Read in this order: tree, objectives, rewards, ops, transformer, sampler, trainer.
"""

TYPE_CHECKING = (
    False  # what type checkers take for true; `typing` is not loaded yet when Ctrl-C may come
)
if TYPE_CHECKING:
    from minigrpo.engine.backend import get_backend
    from minigrpo.engine.lambda_weights import lambda_weights
    from minigrpo.engine.parameters import TransformerConfig
    from minigrpo.experiments.monte_carlo import monte_carlo_step_rewards
    from minigrpo.objectives import Objective, advantages, step_advantages
    from minigrpo.rewards import step_rewards
    from minigrpo.sampler import sample
    from minigrpo.transformer import Transformer
    from minigrpo.tree import PrefixTree, ProcessStep, Rollouts

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
_MODULES = (
    "tree",
    "objectives",
    "rewards",
    "engine.parameters",
    "sampler",
    "transformer",
    "engine.backend",
    "engine.lambda_weights",
    "experiments.monte_carlo",
)


def __getattr__(name: str) -> object:
    """A public name, imported when it is first asked for, so that the command line can answer Ctrl-C before NumPy is loaded."""
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    for module in _MODULES if name in __all__ else ():
        if hasattr(found := import_module(f"{__name__}.{module}"), name):
            return globals().setdefault(name, getattr(found, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
