"""GRPO is secretly a process reward model: the result from scratch, with hand-written gradients.

Read the textbook in this order: tree, rewards, objectives, ops, transformer, sampler, trainer.

    engine/         what makes the same numbers cheap: plans, caches, lanes, optimisers
    system/         files, signals, the terminal, other people's code
    tasks/          prompts and outcome rewards      models/   pretrained language models
    verify/         independent code that checks Theorem 1
    runs/           training runs: settings, folder, checkpoints, evaluation, bench
    logs/           groups of completions from other programs' logs
    show/           figures, trees, the explorer
    course/         checks of the exercises          integrations/   λ-GRPO in TRL
    experiments/    the results                      command/        the command line
"""

TYPE_CHECKING = False  # true for type checkers; `typing` is large, and Ctrl-C may come before it
if TYPE_CHECKING:
    from minigrpo.engine.backend import get_backend
    from minigrpo.engine.lambda_weights import lambda_weights
    from minigrpo.engine.optim import SGD, AdamW
    from minigrpo.engine.parameters import TransformerConfig
    from minigrpo.experiments.monte_carlo import monte_carlo_step_rewards
    from minigrpo.objectives import Objective, advantages, step_advantages
    from minigrpo.rewards import step_rewards
    from minigrpo.runs.evaluation import evaluate
    from minigrpo.runs.policy import load_run, make_policy
    from minigrpo.runs.settings import TrainSettings
    from minigrpo.runs.train import train
    from minigrpo.sampler import sample
    from minigrpo.tasks import load_task
    from minigrpo.trainer import TrainState, grpo_step
    from minigrpo.transformer import Transformer
    from minigrpo.tree import PrefixTree, ProcessStep, Rollouts

__version__ = "0.1.0"
__all__ = ["SGD", "AdamW", "Objective", "PrefixTree", "ProcessStep", "Rollouts", "TrainSettings"]
__all__ += ["TrainState", "Transformer", "TransformerConfig", "advantages", "evaluate"]
__all__ += ["get_backend", "grpo_step", "lambda_weights", "load_run", "load_task", "make_policy"]
__all__ += ["monte_carlo_step_rewards", "sample", "step_advantages", "step_rewards", "train"]
_MODULES = ["tree", "rewards", "objectives", "ops", "transformer", "sampler", "trainer"]
_MODULES += ["engine.parameters", "engine.backend", "engine.optim", "engine.lambda_weights"]
_MODULES += ["runs.settings", "runs.policy", "runs.evaluation", "runs.train"]
_MODULES += ["tasks", "experiments.monte_carlo"]


def __getattr__(name: str) -> object:
    """A public name, or a file of the textbook, imported when it is first asked for."""
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    for module in _MODULES if name in __all__ else ():
        if hasattr(found := import_module(f"{__name__}.{module}"), name):
            return globals().setdefault(name, getattr(found, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
