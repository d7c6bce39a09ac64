"""Does the sign of Â find the first wrong step of an addition in written steps?

For a wrong completion in a group with both outcomes.  Its text is cut at semicolons into written
steps, the last of which ends at the last token (EOS).  Step j is the first wrong one, or, where
that one was never written, the last.  Rules that mark steps, and what they should mark:

    negative   step i, if Â < 0 at its end, that is R̂ < mean(r)                    all i ≥ j
    zero       step i, if R̂ = 0 at its end: nobody who shares it was right         all i ≥ j
    drop       step i, if R̂ falls from the end of step i - 1 (or mean(r)) to its   i = j
    token      token t, if Â < 0 there                                 all from step j's first

The share of right marks is the precision, that of what is marked rightly the recall; exact is the
share of completions whose first mark is in step j.  Detectors: the hidden PRM; chance, with the
rewards shuffled in each group; the outcome alone, which marks everything.  If there is only one
right text, as in `Arithmetic`, `negative` cannot fail: of c right among k, all share each right
step, so R̂ = c/n ≥ c/k there, and R̂ = 0 after the error.  In `AnyOrder` right solutions part from
each other, as those of a language model do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minigrpo.experiments import tables as t
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
COUNTS = ("true", "false", "hidden found", "hidden accused", "hidden exact")
COUNTS += ("shuffled found", "shuffled accused", "shuffled exact")
OFFSETS = (-2, -1, 0, 1, 2)  # written steps after the first wrong one
PROFILE = ("all", "hidden", "shuffled")


@dataclass(frozen=True)
class AnyOrder(Arithmetic):
    """`Arithmetic` with demonstrations whose summands stand in random order."""

    def demonstrations(self, rng: np.random.Generator, n: int) -> list[tuple]:
        """As `Arithmetic.demonstrations`, then each step's summands shuffled."""
        pairs = super().demonstrations(rng, n)
        texts = [shuffle_summands(CHARACTERS.decode(text), rng) for _, text in pairs]
        encode = CHARACTERS.encode_with_eos
        return [(prompt, encode(text)) for (prompt, _), text in zip(pairs, texts, strict=True)]


TASKS = {"one order": Arithmetic, "any order": AnyOrder}


def shuffle_summands(text: str, rng: np.random.Generator) -> str:
    """A completion with the summands of every step in random order: 8+7=15;… may become 7+8=15;…"""
    steps = []
    for step in text.split(";"):
        summands, equals, total = step.partition("=")
        parts = summands.split("+")
        steps.append("+".join(parts[i] for i in rng.permutation(len(parts))) + equals + total)
    return ";".join(steps)


def step_ends(text: str, n_tokens: int) -> np.ndarray:
    """The position of the last token of every written step of a completion."""
    last = n_tokens - 1
    return np.array([*(i for i, x in enumerate(text) if x == ";" and i < last), last])


def marks(writing: str, folder: str, seed: int, n_groups: int) -> dict[str, list[list[float]]]:
    """Counts over the wrong completions of each group with both outcomes.

    Groups are drawn from the warm-started policy in `folder`, for held-out problems; those of size
    k are the first k members.   -> {k: [numbers of a group, as `count` gives them]}
    """
    task = TASKS[writing]()
    model = make_model(TrainSettings.for_task("arithmetic"), task)
    load_weights(model, folder)
    rng, limits = np.random.default_rng([seed, 3]), sampling_limits(task)
    rollouts = sample(model, task.prompts(rng, n_groups, "test"), max(SIZES), rng, **limits)
    rewards = task.score(rollouts).reshape(n_groups, -1)
    decode, out = task.tokenizer.decode, {}
    for k in SIZES:
        some, reward = [group[:k] for group in rollouts.completions], rewards[:, :k]
        tree = PrefixTree.from_groups(rollouts.prompts, some)
        shuffled = [rng.permuted(reward, axis=1) for _ in range(SHUFFLES)]
        # values: (1+SHUFFLES,N)
        values = np.stack([step_rewards(tree, r.ravel()) for r in [reward, *shuffled]])
        found = out[str(k)] = []
        for g in np.flatnonzero(reward.any(1) & ~reward.all(1)):
            prompt, mean = decode(rollouts.prompts[g]), reward[g].mean()
            paths = tree.paths[g * k : (g + 1) * k]
            wrong = np.flatnonzero((reward[g] == 0) & (paths[:, 0] >= 0))
            along = [values[:, paths[i][paths[i] >= 0]] for i in wrong]
            texts = [decode(some[g][i]) for i in wrong]
            counts = [count(prompt, *own, mean) for own in zip(texts, along, strict=True)]
            if counts:
                found.append(sum(counts).round(6).tolist())
    return out


def count(prompt: str, text: str, values: np.ndarray, mean: float) -> np.ndarray:
    """The counts of one wrong completion.   values (1+SHUFFLES,T): R̂ along it

    -> 1, then COUNTS for each of RULES, then PROFILE of `negative` at each of OFFSETS.  Those of
    shuffles are means over them.
    """
    ends = step_ends(text, values.shape[1])
    error = min(first_wrong_step(prompt, text), len(ends) - 1)
    step = np.arange(len(ends))
    step_of_token = np.searchsorted(ends, np.arange(values.shape[1]))
    at_end = values[:, ends]  # (1+SHUFFLES,steps)
    negative = at_end < mean
    rules = (  # what is marked, what should be, the step that each belongs to
        (negative, step >= error, step),
        (at_end == 0, step >= error, step),
        (np.diff(at_end, axis=1, prepend=mean) < 0, step == error, step),
        (values < mean, step_of_token >= error, step_of_token),
    )
    numbers: list[float] = [1.0]
    for marked, true, step_of in rules:
        exact = marked.any(1) & (step_of[marked.argmax(1)] == error)
        each = np.stack([(marked & true).sum(1), (marked & ~true).sum(1), exact])  # (3,1+SHUFFLES)
        numbers += [true.sum(), (~true).sum(), *each[:, 0], *each[:, 1:].mean(1)]
    for at in (error + offset for offset in OFFSETS):
        here = 0 <= at < len(ends)
        numbers += [1, negative[0, at], negative[1:, at].mean()] if here else [0, 0, 0]
    return np.array(numbers, dtype=float)


def table(found: dict[str, Sequence[dict[str, list[list[float]]]]]) -> t.Tables:
    """Rows for each way of writing, k, rule and detector, and the profile of `negative`.

    found: {writing: [what `marks` gave, for each seed]}; intervals are over groups.   Raises
    ValueError if no group has both outcomes.
    """
    rows, profile = [], []
    for writing, k in ((w, k) for w, jobs in found.items() for k in jobs[0]):
        counts = np.array([group for job in found[writing] for group in job[k]])  # (G,1+4·8+5·3)
        n = len(counts)
        if not n:
            none = f"no group of {k} has both outcomes ({writing})"
            raise ValueError(f"{none}: sample more groups, or from a better policy")
        drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=1000)
        about = {"writing": writing, "k": int(k)}
        sizes = {"groups": n, "completions": int(counts[:, 0].sum())}
        rules, places = np.split(counts[:, 1:], [len(RULES) * len(COUNTS)], axis=1)
        for rule, numbers in zip(RULES, np.split(rules, len(RULES), axis=1), strict=True):
            of = dict(zip(COUNTS, numbers.T, strict=True))
            of |= {"outcome found": of["true"], "outcome accused": of["false"]}
            has_outcome = rule in ("negative", "token")
            for who in ("hidden", "shuffled", "outcome")[: 2 + has_outcome]:
                hit, wrongly = of[f"{who} found"], of[f"{who} accused"]
                row = about | {"rule": rule, "detector": who} | sizes
                row |= ratio("precision", hit, hit + wrongly, drawn)
                row |= ratio("recall", hit, of["true"], drawn)
                row |= ratio("false_alarms", wrongly, of["false"], drawn)
                if who != "outcome":
                    row |= ratio("exact", of[f"{who} exact"], counts[:, 0], drawn)
                rows.append(row)
        by_offset = places.T.reshape(len(OFFSETS), len(PROFILE), -1)
        for offset, (n_there, *marked) in zip(OFFSETS, by_offset, strict=True):
            for who, m in zip(PROFILE[1:], marked, strict=True):
                row = about | {"detector": who, "offset": offset}
                profile.append(row | ratio("marked", m, n_there, drawn))
    return {"first_error": rows, "first_error_profile": profile}


def ratio(name: str, above: np.ndarray, below: np.ndarray, drawn: np.ndarray) -> dict:
    """Σ above / Σ below over groups, with its interval over bootstrap draws (n,G)."""
    names = [name + end for end in t.ENDS]
    if not below.sum():
        return dict.fromkeys(names)
    ends = np.quantile((drawn @ above) / np.maximum(drawn @ below, 1e-12), [0.025, 0.975])
    numbers = (above.sum() / below.sum(), *ends)
    return {key: t.rounded(x, 6) for key, x in zip(names, numbers, strict=True)}
