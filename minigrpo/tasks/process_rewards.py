"""Process rewards of a user's own: one number per node, or a verifier of prefixes, asked at steps.

A task may have one of

    process_rewards(rollouts)      (N,) a finite number per node of rollouts.tree
    score_prefix(prompt, text)     the value of a completion that has come so far, at a step's end

They are used by an objective with a `process_weight`; its outcome is still what `score` gives.

A step ends with the token that completes an occurrence of `step_end`, a text of the task such as
";", and the text so far is cut behind that occurrence.  A task without `step_end` has the tree's
own steps, `PrefixTree.steps`.  The last token of a completion, EOS or not, always ends a step, and
the text is then what the outcome reward sees.  Every token has the value of the step that holds it,
and a node the mean over its members, so it is a process reward of the tree, as R̂ is.  (Members of
one node differ where they have not reached the end of the step that they are in.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minigrpo.rewards import check_process_rewards
from minigrpo.system.user_code import shown
from minigrpo.tasks.task import Task, Tokenizer, optional
from minigrpo.tasks.tools import finite_reward, prompt_text
from minigrpo.tree import PrefixTree, Rollouts


def process_rewards_of(task: Task) -> Callable[[Rollouts], np.ndarray] | None:
    """rollouts -> (N,) process rewards of the task, or None if it has none.

    Raises ValueError for a task with both kinds, or a step_end that is no text; the function raises
    it for what are not finite numbers.
    """
    own, score = optional(task, "process_rewards"), optional(task, "score_prefix")
    step_end = optional(task, "step_end")
    if own is not None and score is not None:
        told = "the task has process_rewards and score_prefix"
        raise ValueError(f"{told}: leave out one, since only one can be used")
    if step_end is not None and not (isinstance(step_end, str) and step_end):
        raise ValueError(f"step_end is {shown(step_end)}: it must be a text that is not empty")
    if own is not None:
        return lambda rollouts: check_process_rewards(own(rollouts), rollouts.tree)
    if score is None:
        return None
    return lambda rollouts: score_prefixes(rollouts, task.tokenizer, score, step_end)


def score_prefixes(
    rollouts: Rollouts,
    tokenizer: Tokenizer,
    score: Callable[[str, str], float],
    step_end: str | None = None,
) -> np.ndarray:
    """The mean over a node's members of score(prompt, text) at the end of their step.   -> (N,)

    Each distinct pair is asked once.   Raises ValueError for a score that is not finite.
    """
    tree, known = rollouts.tree, {}
    values = np.zeros(tree.paths.shape)  # (B,T)
    is_end = _ends_of_process_steps(tree) if step_end is None else None
    texts: dict[int, str] = {}  # by node
    completions = [(g, y) for g, group in enumerate(rollouts.completions) for y in group]
    prompts = [prompt_text(tokenizer, prompt) for prompt in rollouts.prompts]
    for i, (g, completion) in enumerate(completions):
        whole, path, start = tokenizer.decode(completion), tree.paths[i].tolist(), 0
        n_before = 0
        for t in range(len(completion)):
            last, text = t + 1 == len(completion), None
            if last:
                text = whole
            elif is_end is not None:
                text = tokenizer.decode(completion[: t + 1]) if is_end[path[t]] else None
            elif step_end in whole:
                if (found := texts.get(path[t])) is None:
                    found = texts[path[t]] = tokenizer.decode(completion[: t + 1])
                if (n := found.count(step_end)) > n_before:
                    text, n_before = found[: found.rfind(step_end) + len(step_end)], n
            if text is None:
                continue
            if (pair := (prompts[g], text)) not in known:
                known[pair] = finite_reward(score, *pair, "process reward")
            values[i, start : t + 1], start = known[pair], t + 1
    return np.where(tree.group >= 0, tree.sum_over_members(values) / tree.count, 0.0)


def _ends_of_process_steps(tree: PrefixTree) -> np.ndarray:
    """(N,) bool: the process set of the node is no longer that of the next token's."""
    ends = np.ones(tree.n_nodes, dtype=bool)
    inside = np.flatnonzero((tree.group >= 0) & ~tree.is_step_head)
    ends[tree.parent[inside]] = False
    return ends
