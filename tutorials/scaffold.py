"""Train the paper's tree walk with your own code: python tutorials/scaffold.py [FOLDER]

Your functions from the exercises stand in for the reference's, wherever they are done: they draw
the walks, make the advantages and weights, take the loss and its gradient, and carry this back to
the logits of a policy.  The same training with the solutions' functions runs beside it, from the
same random numbers, so both curves must agree.  A function that is still to do, or whose answer
cannot be used, is named.  FOLDER holds your ch03.py, ch04.py and so on (tutorials/exercises).

The policy is tabular: two logits for each of the 15 prefixes of a walk of four moves.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from minigrpo.course.isolation import Desk, Limits
from minigrpo.course.runner import tasks_of
from minigrpo.system.user_code import run_file
from minigrpo.tree import PrefixTree

HERE = Path(__file__).parent
DEPTH, GROUP, STEPS, RATE = 4, 16, 120, 1.0
SECONDS = 120.0  # for each function, from its start to the end of all training
TARGET = np.array([1, 0, 1, 1])
TOLERANCE = 2e-5  # float32 is right; the curves of known mistakes differ by more
# function: chapter
PARTS = {
    "draw": "ch03",
    "completion_logps": "ch03",  # matters in grpo_twice only: at the sampling policy the ratio is 1
    "group_advantages": "ch04",
    "lambda_weights": "ch06",
    "step_advantages": "ch05",
    "sum_over_members": "ch07",
    "clipped_tree_loss": "ch07",
    "logits_gradient": "ch07",
}
Functions = dict[str, Callable[..., Any]]


class Failed(Exception):
    """A function whose answer the training cannot use; the text names it."""


def outcome_rewards(walks: np.ndarray) -> np.ndarray:
    """+1 for the target, -1 for whoever leaves it after two moves, else 0.7.   (k,T) -> (k,)"""
    agrees = walks == TARGET
    return np.where(agrees.all(1), 1.0, np.where(agrees[:, :2].all(1), -1.0, 0.7))


def checked(name: str, answer: Any, shape: tuple) -> np.ndarray:
    """An answer as numbers.   Raises Failed unless it is finite numbers of this shape."""
    try:
        value = np.asarray(answer, dtype=np.float64)
    except (TypeError, ValueError):
        raise Failed(f"{name} returned {type(answer).__name__}, not numbers") from None
    if value.shape != shape:
        raise Failed(f"{name} returned shape {value.shape}; the training needs {shape}")
    if not np.isfinite(value).all():
        raise Failed(f"{name} returned a nan or an infinity")
    return value


def call(functions: Functions, name: str, shape: tuple | None, *arguments: Any) -> Any:
    """What a function returns.   Raises Failed if it raises, or for numbers of another shape."""
    try:
        with np.errstate(all="ignore"):
            answer = functions[name](*arguments)
    except (Exception, SystemExit) as error:
        raise Failed(f"{name}: {type(error).__name__}: {str(error)[:120]}") from None
    return answer if shape is None else checked(name, answer, shape)


def rows_of(functions: Functions, name: str, *arguments: Any) -> np.ndarray:
    """An answer with an array per completion, as one array.   -> (k,T)"""
    answer = call(functions, name, None, *arguments)
    return checked(name, answer, (GROUP, DEPTH))


def probability(table: np.ndarray) -> float:
    """P(target) under the policy."""
    p, state = 1.0, 1
    for move in TARGET:
        z = np.exp(table[state] - table[state].max())
        p, state = p * z[move] / z.sum(), 2 * state + move
    return p


def train(functions: Functions, arm: str, steps: int = STEPS, seed: int = 0) -> np.ndarray:
    """Train by "grpo", by "prm" (Â in place of a), …   -> P(target) before each step

    Raises Failed if an answer cannot be used.
    """
    rng, table, curve = np.random.default_rng(seed), np.zeros((2**DEPTH, 2)), []
    for _ in range(steps):
        state, walks = np.ones(GROUP, dtype=int), np.zeros((GROUP, DEPTH), dtype=int)
        for t in range(DEPTH):  # prefix 1 is empty; a move m leads from prefix s to 2s + m
            moves = call(functions, "draw", (GROUP,), table[state], 1.0, rng.random(GROUP))
            if not np.isin(moves, (0, 1)).all():
                raise Failed("draw returned a token that is neither 0 nor 1")
            walks[:, t] = moves
            state = 2 * state + walks[:, t]
        # A trunk of one node predicts the first move; node n's own logits predict its children.
        completions = walks.tolist()
        tree = PrefixTree.from_groups([[0]], [completions])
        prefix = np.ones(tree.n_nodes, dtype=int)
        for node in np.flatnonzero(tree.parent >= 0):  # parents come before their children
            prefix[node] = 2 * prefix[tree.parent[node]] + tree.token[node]
        r = outcome_rewards(walks)
        curve.append(probability(table))
        if np.ptp(r) == 0:
            continue
        a = call(functions, "group_advantages", (1, GROUP), r[None])[0]
        old = None
        for epoch in range(2 if arm == "grpo_twice" else 1):
            logits = table[np.where(prefix < 2**DEPTH, prefix, 0)]
            logp = np.zeros(tree.n_nodes)
            for walk, path in zip(walks, tree.paths, strict=True):
                own = np.concatenate([logits[:1], logits[path]])
                tokens = np.concatenate([[0], walk])
                logp[path] = call(functions, "completion_logps", (DEPTH,), own, tokens, 1, 1.0)
            old = logp if epoch == 0 else old
            arguments = tree.paths, a, logp, old, 0.2, 0.2
            answer = call(functions, "clipped_tree_loss", None, *arguments)
            if not isinstance(answer, tuple | list) or len(answer) != 2:
                raise Failed("clipped_tree_loss returned no pair (loss, dlogp)")
            d = checked("clipped_tree_loss", answer[1], (tree.n_nodes,))
            if arm == "lambda_grpo":
                scale = np.ones(tree.n_nodes)
                scale[tree.paths] = rows_of(functions, "lambda_weights", completions)
                d = d * scale
            if arm == "prm":  # every member brings Â of its node: |λ|·Â in all
                hat, count = rows_of(functions, "step_advantages", completions, r), np.ones(GROUP)
                at_node = np.zeros(tree.n_nodes)
                at_node[tree.paths] = hat
                shape = (tree.n_nodes,)
                count = call(functions, "sum_over_members", shape, tree.paths, count, tree.n_nodes)
                d = -at_node * count / tree.lengths.sum()
            shape, arguments = (tree.n_nodes, 2), (d, tree.token, tree.parent, logits)
            gradient = call(functions, "logits_gradient", shape, *arguments)
            inner = prefix < 2**DEPTH
            np.add.at(table, prefix[inner], -RATE * gradient[inner])
    return np.array(curve)


def collect(
    load: Callable[[Path, str], Callable[..., Any]], folder: Path
) -> tuple[Functions, dict]:
    """The student's functions where they are done, else the solutions'.   -> all, whose each is"""
    functions, whose = {}, {}
    for name, chapter in PARTS.items():
        solution = getattr(run_file(HERE / f"solutions/{chapter}.py", f"solution_{chapter}"), name)
        functions[name], whose[name] = solution, "to do: the solution's stands in"
        file = folder / f"{chapter}.py"
        if not file.is_file():
            whose[name] = f"no {chapter}.py: the solution's stands in"
            continue
        own = load(file, name)
        if not getattr(own, "is_function", callable(own)):
            whose[name] = f"no def {name}: the solution's stands in"
            continue
        (task,) = (task for task in tasks_of(chapter) if task.function == name)
        try:
            task.grade(own)
            whose[name] = "yours"
        except NotImplementedError:
            continue
        except Exception:
            whose[name] = f"yours, though minigrpo check {chapter} calls it not right yet"
        functions[name] = own
    return functions, whose


def report(functions: Functions, whose: dict[str, str], steps: int = STEPS) -> tuple[str, bool]:
    """The text, and whether every curve of the student's code agrees with the reference."""
    lines = [f"  {name:18} {PARTS[name]}  {whose[name]}" for name in PARTS]
    reference = {
        name: getattr(run_file(HERE / f"solutions/{chapter}.py", f"solution_{chapter}"), name)
        for name, chapter in PARTS.items()
    }
    lines += [
        "",
        f"P(target), means of {steps // 4} steps each (grpo_twice: 2 updates per group):",
    ]
    agrees = True
    for arm in ("grpo", "prm", "lambda_grpo", "grpo_twice"):
        right, told = train(reference, arm, steps), "the same as the reference's"
        try:
            curve = train(functions, arm, steps)
        except Failed as failed:
            lines.append(f"  {arm:12} stopped: {failed}")
            agrees = False
            continue
        if not np.allclose(curve, right, rtol=0, atol=TOLERANCE):
            at = int(np.argmax(np.abs(curve - right) > TOLERANCE))
            agrees = False
            told = f"differs from the reference's after {at} steps"
            shown = " ".join(f"{x:.2f}" for x in right.reshape(4, -1).mean(1))
            told += f" (reference: {shown})"
        shown = " ".join(f"{x:.2f}" for x in curve.reshape(4, -1).mean(1))
        lines.append(f"  {arm:12} {shown}   {told}")
    own = sum(text.startswith("yours") for text in whose.values())
    done = "your code trains the walk" if agrees else "something is wrong with it"
    lines += [
        "",
        f"{own} of {len(PARTS)} functions are yours: {done if own else 'nothing to see yet'}",
    ]
    return "\n".join(lines), agrees


def main(folder: str | None = None) -> int:
    """Print the report.   -> 0 if all curves agree, 1 if not, 2 if a file cannot be run"""
    path = Path(folder) if folder else HERE / "exercises"
    with ExitStack() as stack:
        try:
            if not path.is_dir():
                raise ValueError(
                    f"there is no folder {str(path)!r}: give the one with your ch03.py"
                )
            functions, whose = collect(loader(stack), path)
        except ValueError as error:
            print(f"scaffold: error: {error}", file=sys.stderr)
            return 2
        text, agrees = report(functions, whose)
    print(text)
    return 0 if agrees else 1


def loader(stack: ExitStack) -> Callable[[Path, str], Callable[..., Any]]:
    """What gets a function from a student's file, in a process of its own as in minigrpo check."""

    def load(file: Path, name: str) -> Callable[..., Any]:
        desk = stack.enter_context(Desk(Limits(seconds=SECONDS)))  # a desk has one task at a time
        return stack.enter_context(desk.task(file, name))[0]

    return load


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
