"""Does the sign of Â find the first wrong step?   Addition in written steps, where the text itself tells which step is wrong.

A careful definition, for a wrong completion in a group with both outcomes.  Its text is cut at semicolons into written steps; a
step ends at its semicolon, the last one at the last token (EOS).  Step j is the one that `first_wrong_step` names, or, where that
one was never written, the last, in which the text broke off.  Rules:

    negative   step i is marked if Â < 0 at its end, that is R̂ < mean(r).                True for i ≥ j: after an error all is lost.
    zero       step i is marked if R̂ = 0 at its end: nobody who shares it was right.     True for i ≥ j.
    drop       step i is marked if R̂ is lower at its end than at the end of step i - 1   True for i = j: there the value falls.
               (than mean(r) for i = 0).
    token      token t is marked if Â < 0 there.                                          True from the first token of step j on.

What is marked and true over what is marked is the precision, over what is true the recall; `exact` is the share of completions
whose first mark is in step j.  Three detectors: the hidden PRM; chance, the same with the rewards shuffled in each group; and the
outcome alone (Â of the whole completion), which marks everything.

If there is only one right text, `negative` cannot fail: of c right among k, all share each right step, so R̂ = c/n ≥ c/k there,
and R̂ = 0 after the error.  `Arithmetic` is such a task.  In `AnyOrder` the pupil writes the summands of a step in any order (still
right), so right solutions part from each other as those of a language model do.  Left out: errors of those who end right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minigrpo.experiments.trees import warm_policy
from minigrpo.rewards import step_rewards
from minigrpo.runs.policy import load_weights, make_model
from minigrpo.runs.settings import TrainSettings
from minigrpo.sampler import sample
from minigrpo.tasks import sampling_limits
from minigrpo.tasks.arithmetic import CHARACTERS, Arithmetic, first_wrong_step
from minigrpo.tree import PrefixTree

SIZES = (8, 16, 32)
SHUFFLES = 16
RULES = ("negative", "zero", "drop", "token")
COUNTS = (
    "true",
    "false",
    "hidden found",
    "hidden accused",
    "hidden exact",
    "shuffled found",
    "shuffled accused",
    "shuffled exact",
)
OFFSETS = (-2, -1, 0, 1, 2)  # written steps after the first wrong one
PROFILE = ("all", "hidden", "shuffled")


@dataclass(frozen=True)
class AnyOrder(Arithmetic):
    """`Arithmetic` with demonstrations whose summands stand in random order: many right texts for one problem."""

    def demonstrations(
        self, rng: np.random.Generator, n: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """As `Arithmetic.demonstrations`, then each step's summands shuffled."""
        pairs = super().demonstrations(rng, n)
        return [
            (prompt, CHARACTERS.encode_with_eos(shuffle_summands(CHARACTERS.decode(text), rng)))
            for prompt, text in pairs
        ]


TASKS = {"one order": Arithmetic, "any order": AnyOrder}


def shuffle_summands(text: str, rng: np.random.Generator) -> str:
    """A completion with the summands of every step in random order: 8+7=15;… may become 7+8=15;…"""
    steps = []
    for step in text.split(";"):
        summands, equals, total = step.partition("=")
        parts = summands.split("+")
        steps.append("+".join(parts[i] for i in rng.permutation(len(parts))) + equals + total)
    return ";".join(steps)


def prepare(writing: str, folder: str) -> str:
    """Warm-start the policy of a way of writing, with the task's recommended settings, once.   -> folder"""
    settings = TrainSettings.for_task("arithmetic", steps=0, eval_every=0)
    return warm_policy(settings, Path(folder), TASKS[writing]())


def step_ends(text: str, n_tokens: int) -> np.ndarray:
    """The position of the last token of every written step of a completion."""
    return np.array(
        [t for t, character in enumerate(text) if character == ";" and t < n_tokens - 1]
        + [n_tokens - 1]
    )


def marks(writing: str, folder: str, seed: int, n_groups: int) -> dict[str, list[list[float]]]:
    """Counts over the wrong completions of each group with both outcomes.   -> {k: [numbers of a group, as `count` gives them]}

    Groups are drawn from the warm-started policy in `folder`, for held-out problems; those of size k are the first k members.
    """
    task = TASKS[writing]()
    model = make_model(replace(TrainSettings.for_task("arithmetic")), task)
    load_weights(model, folder)
    rng = np.random.default_rng([seed, 3])
    limits = sampling_limits(task)
    rollouts = sample(model, task.prompts(rng, n_groups, "test"), max(SIZES), rng, **limits)
    rewards = task.score(rollouts).reshape(n_groups, -1)
    out: dict[str, list[list[float]]] = {}
    for k in SIZES:
        some, reward = [group[:k] for group in rollouts.completions], rewards[:, :k]
        tree = PrefixTree.from_groups(rollouts.prompts, some)
        shuffled = [rng.permuted(reward, axis=1) for _ in range(SHUFFLES)]
        values = np.stack([step_rewards(tree, r.ravel()) for r in [reward, *shuffled]])  # (1+S,N)
        out[str(k)] = []
        for g in np.flatnonzero(reward.any(1) & ~reward.all(1)):
            prompt, total = task.tokenizer.decode(rollouts.prompts[g]), 0.0
            for i in np.flatnonzero((reward[g] == 0) & (tree.lengths[g * k : (g + 1) * k] > 0)):
                nodes = tree.paths[g * k + i]
                total = total + count(
                    prompt,
                    task.tokenizer.decode(some[g][i]),
                    values[:, nodes[nodes >= 0]],
                    reward[g].mean(),
                )
            out[str(k)].append(total.round(6).tolist())
    return out


def count(prompt: str, text: str, values: np.ndarray, mean: float) -> np.ndarray:
    """The counts of one wrong completion.   values (1+S,T): R̂ along it, as it is and for S shuffles

    -> 1, then COUNTS for each of RULES, then PROFILE of `negative` at each of OFFSETS.  Those of shuffles are means over them.
    """
    ends = step_ends(text, values.shape[1])
    error = min(first_wrong_step(prompt, text), len(ends) - 1)
    step = np.arange(len(ends))
    step_of_token = np.searchsorted(ends, np.arange(values.shape[1]))
    at_end = values[:, ends]  # (1+S,J)
    negative = at_end < mean
    falls = np.diff(at_end, axis=1, prepend=mean) < 0
    rules = [
        (negative, step >= error, step),
        (at_end == 0, step >= error, step),
        (falls, step == error, step),
    ]
    rules += [(values < mean, step_of_token >= error, step_of_token)]
    numbers: list[float] = [1.0]
    for marked, true, step_of in rules:
        found, accused = (marked & true).sum(1), (marked & ~true).sum(1)
        exact = marked.any(1) & (step_of[marked.argmax(1)] == error)
        numbers += [true.sum(), (~true).sum(), found[0], accused[0], exact[0]]
        numbers += [found[1:].mean(), accused[1:].mean(), exact[1:].mean()]
    for at in (error + offset for offset in OFFSETS):
        numbers += (
            [1, negative[0, at], negative[1:, at].mean()] if 0 <= at < len(ends) else [0, 0, 0]
        )
    return np.array(numbers, dtype=float)


def table(
    found: dict[str, Sequence[dict[str, list[list[float]]]]],
) -> dict[str, list[dict[str, Any]]]:
    """Rows for each way of writing, k, rule and detector, and the profile of `negative`; 95 % bootstrap intervals over groups.

    found: {writing: [what `marks` gave, for each seed]}.   Raises ValueError if no group has both outcomes.
    """
    rows, profile = [], []
    for writing, jobs in found.items():
        for k in jobs[0]:
            counts = np.array([group for job in jobs for group in job[k]])  # (G,1+4·8+5·3)
            if not len(counts):
                raise ValueError(
                    f"no group of {k} has both outcomes ({writing}): sample more groups, or from a better policy"
                )
            drawn = np.random.default_rng(0).multinomial(
                len(counts), np.full(len(counts), 1 / len(counts)), size=1000
            )
            about = {"writing": writing, "k": int(k)}
            sizes = {"groups": len(counts), "completions": int(counts[:, 0].sum())}
            rules, places = np.split(counts[:, 1:], [len(RULES) * len(COUNTS)], axis=1)
            for rule, numbers in zip(RULES, np.split(rules, len(RULES), axis=1), strict=True):
                of = dict(zip(COUNTS, numbers.T, strict=True))
                of |= {"outcome found": of["true"], "outcome accused": of["false"]}
                for who in ("hidden", "shuffled", "outcome")[
                    : 2 if rule in ("zero", "drop") else 3
                ]:
                    hit, wrongly = of[f"{who} found"], of[f"{who} accused"]
                    row = about | {"rule": rule, "detector": who} | sizes
                    row |= ratio("precision", hit, hit + wrongly, drawn) | ratio(
                        "recall", hit, of["true"], drawn
                    )
                    row |= ratio("false_alarms", wrongly, of["false"], drawn)
                    rows.append(
                        row
                        | (
                            ratio("exact", of[f"{who} exact"], counts[:, 0], drawn)
                            if who != "outcome"
                            else {}
                        )
                    )
            for offset, (n, *marked) in zip(
                OFFSETS, places.T.reshape(len(OFFSETS), len(PROFILE), -1), strict=True
            ):
                for who, m in zip(PROFILE[1:], marked, strict=True):
                    profile.append(
                        about | {"detector": who, "offset": offset} | ratio("marked", m, n, drawn)
                    )
    return {"first_error": rows, "first_error_profile": profile}


def ratio(
    name: str, above: np.ndarray, below: np.ndarray, drawn: np.ndarray
) -> dict[str, float | None]:
    """Σ above / Σ below over groups, with its interval over bootstrap draws (n,G)."""
    if not below.sum():
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    low, high = np.quantile((drawn @ above) / np.maximum(drawn @ below, 1e-12), [0.025, 0.975])
    of = {name: above.sum() / below.sum(), f"{name}_low": low, f"{name}_high": high}
    return {key: float(f"{x:.6g}") for key, x in of.items()}
