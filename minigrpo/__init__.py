"""GRPO is secretly a process reward model: the result from scratch, with hand-written gradients.

    >>> import numpy as np, minigrpo as mg
    >>> def score(rollouts):  # a reward for each completion: how many of its tokens are 1
    ...     return [(tokens == 1).sum() for group in rollouts.completions for tokens in group]
    >>> model = mg.Transformer(mg.TransformerConfig(vocab_size=3, dim=16, n_layers=1, n_heads=2))
    >>> optimizer, objective = mg.AdamW(model.parameters), mg.Objective.preset("lambda_grpo")
    >>> state = mg.TrainState(model, optimizer, objective, np.random.default_rng(0))
    >>> for _ in range(30):
    ...     step = mg.grpo_step(state, [[0]], score, 0.01, {"max_new_tokens": 8})
    >>> step.metrics["reward"] > 7  # of 8; it began at 8/3
    True

Your own loop
    grpo_step         one step: sample, score, weigh each node, update the parameters
    TrainState        what a loop holds: model, optimiser, objective, random numbers
    sample            draw completions of prompts; the result is a Rollouts
    Objective         a variant of GRPO: Objective.preset("lambda_grpo"), "grpo", "dapo", …
    Coefficients      what an objective carries to each node; for an objective of your own
    AdamW, SGD        optimisers
A whole run
    train, TrainSettings          train on a task by its name, with a folder to resume from
    evaluate                      pass@1 and pass@k on held-out problems
    load_run, make_policy         the policy of a run; that of a new one
    load_task                     a built-in task, or "my_task.py:MyTask"
Trees and rewards
    PrefixTree, ProcessStep       completions as nodes; process sets and steps
    Rollouts                      prompts and completions, their tree, their log-probabilities
    step_rewards                  GRPO's hidden process reward of each node
    advantages, step_advantages   of each completion; of each node
    lambda_weights                1/|λ| of each token: all you need to try λ-GRPO elsewhere
    monte_carlo_step_rewards      process rewards by more rollouts, to compare with
Models
    Transformer, TransformerConfig    a small one of your own
    load_model                        a pretrained one: Hugging Face folders, GGUF files
    get_backend                       NumPy or CuPy
Plots
    plot_runs                     the metrics of a run, or one metric of several
    draw_tree                     a group of completions as a tree

Each name in full, with an example: help(mg.sample), and so on; all of them follow below.
The textbook, in this order: tree, rewards, objectives, ops, transformer, sampler, trainer.
"""

TYPE_CHECKING = False  # true for type checkers; `typing` is large, and Ctrl-C may come before it
if TYPE_CHECKING:
    from minigrpo.engine.backend import get_backend
    from minigrpo.engine.lambda_weights import lambda_weights
    from minigrpo.engine.optim import SGD, AdamW
    from minigrpo.engine.parameters import TransformerConfig
    from minigrpo.experiments.monte_carlo import monte_carlo_step_rewards
    from minigrpo.models import load_model
    from minigrpo.objectives import Coefficients, Objective, advantages, step_advantages
    from minigrpo.rewards import step_rewards
    from minigrpo.runs.evaluation import evaluate
    from minigrpo.runs.policy import load_run, make_policy
    from minigrpo.runs.settings import TrainSettings
    from minigrpo.runs.train import train
    from minigrpo.sampler import sample
    from minigrpo.show.comparison import plot_runs
    from minigrpo.show.tree_plots import draw_tree
    from minigrpo.tasks import load_task
    from minigrpo.trainer import TrainState, grpo_step
    from minigrpo.transformer import Transformer
    from minigrpo.tree import PrefixTree, ProcessStep, Rollouts

__version__ = "0.1.0"
__all__ = ["SGD", "AdamW", "Coefficients", "Objective", "PrefixTree", "ProcessStep", "Rollouts"]
__all__ += ["TrainSettings", "TrainState", "Transformer", "TransformerConfig", "advantages"]
__all__ += ["draw_tree", "evaluate", "get_backend", "grpo_step", "lambda_weights", "load_model"]
__all__ += ["load_run", "load_task", "make_policy", "monte_carlo_step_rewards", "plot_runs"]
__all__ += ["sample", "step_advantages", "step_rewards", "train"]
_MODULES = ["tree", "rewards", "objectives", "ops", "transformer", "sampler", "trainer"]
_MODULES += ["engine.parameters", "engine.backend", "engine.optim", "engine.lambda_weights"]
_MODULES += ["runs.settings", "runs.policy", "runs.evaluation", "runs.train", "models"]
_MODULES += ["tasks", "experiments.monte_carlo", "show.tree_plots", "show.comparison"]


def __getattr__(name: str) -> object:
    """A public name, or a file of the textbook, imported when it is first asked for."""
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    for module in _MODULES if name in __all__ else ():
        if hasattr(found := import_module(f"{__name__}.{module}"), name):
            return globals().setdefault(name, getattr(found, name))
    told = f"module {__name__!r} has no attribute {name!r}"  # Python adds what may be meant
    raise AttributeError(told, name=name, obj=import_module(__name__))


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
