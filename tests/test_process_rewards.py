"""Process rewards of a user's own: verifiers of prefixes, their mixture with the outcome."""

import numpy as np
import pytest
from helpers import rollouts_of

from minigrpo.experiments.step_verifier import Blind, Verified
from minigrpo.tasks import CharTokenizer
from minigrpo.tasks.process_rewards import score_prefixes

CHARS = CharTokenizer("abcd;")


def rollouts_of_texts(groups, prompts=None, tokenizer=CHARS, eos=True):
    encode = tokenizer.encode_with_eos if eos else tokenizer.encode
    prompts = prompts or ["a"] * len(groups)
    return rollouts_of(
        [tokenizer.encode(p) for p in prompts], [[encode(text) for text in g] for g in groups]
    )


def random_texts(rng, k):
    texts = ["".join(rng.choice(list("ab;"), rng.integers(1, 9))) for _ in range(k)]
    return [texts[0][: rng.integers(1, 9)] + text if rng.random() < 0.5 else text for text in texts]


def by_definition(groups, prompts, score, step_end):
    """Values along every completion (EOS is a token): the definition, pair by pair, in texts."""
    out = []
    for prompt, group in zip(prompts, groups, strict=True):
        along = []
        for text in group:
            if step_end is None:  # a step ends where the set of those who agree changes

                def sharing(t, text=text, group=group):
                    return [
                        i
                        for i, x in enumerate(group)
                        if (x + "$")[: t + 1] == (text + "$")[: t + 1]
                    ]

                ends = [t for t in range(len(text)) if sharing(t) != sharing(t + 1)]
            else:
                ends = [t for t in range(len(text)) if text[: t + 1].endswith(step_end)]
            ends = [*[t for t in ends if t < len(text)], len(text)]
            value_at = {t: score(prompt, text[: t + 1]) for t in ends}
            along.append([value_at[min(e for e in ends if e >= t)] for t in range(len(text) + 1)])
        for text in group:
            line = []
            for t in range(len(text) + 1):
                members = [
                    j for j, x in enumerate(group) if (x + "$")[: t + 1] == (text + "$")[: t + 1]
                ]
                line.append(np.mean([along[j][t] for j in members]))
            out.append(line)
    return out


@pytest.mark.parametrize("step_end", [";", None])
def test_a_node_has_the_mean_value_at_the_ends_of_its_members_steps(step_end):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        groups, prompts = [random_texts(rng, 5) for _ in range(2)], ["a", "b"]
        asked = []

        def score(prompt, text, asked=asked):
            asked.append((prompt, text))
            return (hash_of(prompt + "|" + text) % 97) / 97

        rollouts = rollouts_of_texts(groups, prompts)
        values = score_prefixes(rollouts, CHARS, score, step_end)
        assert len(asked) == len(set(asked))  # each distinct prefix is asked once
        expected = by_definition(groups, prompts, score, step_end)
        along = rollouts.tree.on_tokens(values)
        for row, line in zip(along, expected, strict=True):
            np.testing.assert_allclose(row[: len(line)], line, rtol=1e-12)
        assert not values[rollouts.tree.group < 0].any()


def hash_of(text):
    return sum((i + 3) ** 2 * ord(c) for i, c in enumerate(text))


def test_the_verifiers_of_the_experiment():
    score, blind = Verified().score_prefix, Blind().score_prefix
    right = "8+7=15;5+6+1=12;3+4+1=8;825"
    for text, verified, adds_up in [
        (right, 1, 1),
        ("8+7=15;", 1, 1),
        ("8+7=15;5+6=11;", 0, 1),  # the carry is forgotten
        ("8+7=15;5+6=11;3+4+1=8;", 0, 1),
        ("8+7=15;5+6+1=11;", 0, 0),
        ("8+7=16;", 0, 0),
        (right.replace("825", "815"), 0, 1),
        ("8+7=15;5+6+1=12", 0, 1),  # the completion ended here
        (right + ";", 0, 1),
        ("", 0, 1),
        (";", 0, 1),
        ("8+=15;", 0, 0),
    ]:
        assert (score("358+467=", text), blind("358+467=", text)) == (verified, adds_up), text
