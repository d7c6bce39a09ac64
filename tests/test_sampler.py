"""Tests of the sampler: the right distribution, the right records, and no prefix computed twice."""

from itertools import product

import numpy as np
import pytest
from helpers import tiny_model

from minigrpo import Transformer, get_backend, sample
from minigrpo.engine.draw import STRETCH, draw_tokens, first_above

PROMPTS = [
    [1],
    [2, 3, 1],
    [2, 3],
    [1],
    [4, 4, 4, 4],
]  # one token; a prefix of another; twice the same
CHI2_26, CHI2_8 = 54.1, 26.1  # 99.9 % points of chi-square with 26 and 8 degrees of freedom


def distribution(model, prefix, temperature=1.0):
    """Probabilities of the next token, by a forward pass over this one sequence."""
    logits = model.logits(np.array(prefix))[-1] / temperature
    p = np.exp(logits - logits.max())
    return p / p.sum()


def texts(rollouts):
    return [[y.tolist() for y in group] for group in rollouts.completions]


# -- records ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_recorded_logp_is_that_of_a_forward_pass(temperature):
    model = tiny_model()
    rollouts = sample(
        model,
        PROMPTS,
        8,
        np.random.default_rng(1),
        max_new_tokens=9,
        eos=0,
        temperature=temperature,
    )
    tree = rollouts.tree
    assert tree.count.max() > 3
    assert rollouts.temperature == temperature
    assert rollouts.logp.dtype == np.float64
    assert (rollouts.logp[tree.scored] < 0).all()
    assert not rollouts.logp[~tree.scored].any()
    np.testing.assert_allclose(model.forward(tree, temperature), rollouts.logp, rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logp_and_entropy_equal_those_of_each_sequence_alone(temperature):
    model = tiny_model(seed=3)
    rollouts = sample(
        model,
        PROMPTS,
        4,
        np.random.default_rng(2),
        max_new_tokens=5,
        eos=0,
        temperature=temperature,
    )
    tree = rollouts.tree
    row = 0
    for prompt, group in zip(rollouts.prompts, rollouts.completions, strict=True):
        for y in group:
            for t, token in enumerate(y):
                p = distribution(model, [*prompt, *y[:t]], temperature)
                node = tree.paths[row, t]
                np.testing.assert_allclose(
                    rollouts.logp[node], np.log(p[token]), rtol=0, atol=1e-12
                )
                np.testing.assert_allclose(
                    rollouts.entropy[node], -(p * np.log(p)).sum(), rtol=0, atol=1e-12
                )
            row += 1
    assert not rollouts.entropy[~tree.scored].any()


def test_float32_records_are_those_of_a_forward_pass():
    model = tiny_model(dtype="float32")
    rollouts = sample(model, PROMPTS, 8, np.random.default_rng(1), max_new_tokens=9, eos=0)
    assert rollouts.logp.dtype == np.float32
    np.testing.assert_allclose(model.forward(rollouts.tree), rollouts.logp, rtol=0, atol=2e-5)


def test_greedy_takes_the_likeliest_token_and_no_random_number():
    model, rng = tiny_model(seed=5), np.random.default_rng(0)
    rollouts = sample(model, PROMPTS, 2, rng, max_new_tokens=6, eos=0, temperature=0)
    for prompt, group in zip(PROMPTS, texts(rollouts), strict=True):
        expected = []
        while len(expected) < 6 and (not expected or expected[-1] != 0):
            expected.append(int(distribution(model, prompt + expected).argmax()))
        assert group == [expected, expected]
    assert rollouts.temperature == 1.0  # the temperature of the recorded log-probabilities
    np.testing.assert_allclose(model.forward(rollouts.tree, 1.0), rollouts.logp, rtol=0, atol=1e-12)
    assert rng.random() == np.random.default_rng(0).random()


# -- the distribution ------------------------------------------------------------------------------


def chi_square(observed, expected):
    assert expected.min() > 5
    return ((observed - expected) ** 2 / expected).sum()


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize(("n_groups", "group_size"), [(1, 6000), (3000, 2)])
def test_distribution_is_that_of_sampling_each_completion_alone(n_groups, group_size, temperature):
    """All 27 sequences of length 3 against their exact probabilities, and members of a group
    against independence.
    """
    model, prompt = tiny_model(vocab_size=3, seed=12), [1]
    sequences = list(product(range(3), repeat=3))
    exact = np.array(
        [
            np.prod([distribution(model, [*prompt, *y[:t]], temperature)[y[t]] for t in range(3)])
            for y in sequences
        ]
    )
    assert abs(exact.sum() - 1) < 1e-12
    rng = np.random.default_rng(11)
    rollouts = sample(
        model, [prompt] * n_groups, group_size, rng, max_new_tokens=3, temperature=temperature
    )
    drawn = np.array(texts(rollouts)).reshape(-1, 3) @ [9, 3, 1]
    assert chi_square(np.bincount(drawn, minlength=27), 6000 * exact) < CHI2_26
    first, second = drawn[::2], drawn[1::2]  # two members of one group
    same, n = (exact**2).sum(), len(first)
    assert abs((first == second).sum() - n * same) < 3.3 * np.sqrt(n * same * (1 - same))
    for place in (9, 1):  # the first token of both, and the last
        marginal = np.bincount(np.arange(27) // place % 3, exact)
        together = np.bincount(first // place % 3 * 3 + second // place % 3, minlength=9)
        assert chi_square(together, n * np.outer(marginal, marginal).ravel()) < CHI2_8


# -- the work --------------------------------------------------------------------------------------


@pytest.mark.parametrize("eos", [None, 0])
def test_each_live_prefix_is_computed_once(monkeypatch, eos):
    computed = []
    extend = Transformer.extend

    def counting(self, cache, token, *rest):
        computed.append(len(token))
        return extend(self, cache, token, *rest)

    monkeypatch.setattr(Transformer, "extend", counting)
    rollouts = sample(
        tiny_model(), PROMPTS, 12, np.random.default_rng(3), max_new_tokens=5, eos=eos
    )
    prefill = {tuple(p[: t + 1]) for p in PROMPTS for t in range(len(p))}
    inner = {
        (g, *y[: t + 1])
        for g, group in enumerate(texts(rollouts))
        for y in group
        for t in range(len(y) - 1)
    }
    assert computed[0] == len(prefill)
    assert sum(computed) == len(prefill) + len(inner)
    assert len(inner) < sum(
        len(y) - 1 for group in texts(rollouts) for y in group
    )  # something was shared


# -- stopping --------------------------------------------------------------------------------------


def test_eos_ends_a_completion_and_truncation_says_so():
    rollouts = sample(tiny_model(), PROMPTS, 20, np.random.default_rng(0), max_new_tokens=4, eos=2)
    completions = [y for group in texts(rollouts) for y in group]
    for y, truncated in zip(completions, rollouts.truncated, strict=True):
        assert 2 not in y[:-1]
        assert truncated == (y[-1] != 2)
        assert len(y) == 4 or not truncated
    at_the_limit = [y[-1] == 2 for y in completions if len(y) == 4]
    assert any(at_the_limit)  # an EOS on the last possible place is no truncation
    assert not all(at_the_limit)
    assert {len(y) for y in completions} == {1, 2, 3, 4}
    assert rollouts.max_new_tokens == 4


@pytest.mark.parametrize("eos", [None, 0])
def test_a_stop_rule_sees_the_newest_token_and_ends_a_completion_there(eos):
    """It is asked once a token, of all that go on, with everything they have written; nothing is
    written after it says yes.
    """
    widths = []

    def stop(tokens):
        widths.append(tokens.shape[1])
        assert (tokens >= 0).all()
        return (tokens[:, -1] == 2) & (
            tokens.sum(1) > 2
        )  # the second 2 at the latest, or a 2 after something else

    rollouts = sample(
        tiny_model(), PROMPTS, 20, np.random.default_rng(6), max_new_tokens=5, eos=(eos, stop)
    )
    assert widths == list(range(1, len(widths) + 1))
    ended = [[stops(y, eos) for y in group] for group in texts(rollouts)]
    assert rollouts.truncated.tolist() == [not any(at) for group in ended for at in group]
    assert all(not any(at[:-1]) for group in ended for at in group)  # at the last token or never
    assert all(len(at) == 5 for group in ended for at in group if not any(at))
    assert 10 < rollouts.truncated.sum() < 90


def stops(y, eos):
    """Whether a completion should end at each of its tokens."""
    return [token == eos or (token == 2 and sum(y[: t + 1]) > 2) for t, token in enumerate(y)]


def test_without_eos_all_run_to_the_limit_and_none_is_truncated():
    rollouts = sample(tiny_model(), PROMPTS, 3, np.random.default_rng(0), max_new_tokens=6)
    assert {len(y) for group in rollouts.completions for y in group} == {6}
    assert not rollouts.truncated.any()


def test_one_completion_and_one_token():
    rollouts = sample(tiny_model(), PROMPTS, 1, np.random.default_rng(0), max_new_tokens=1, eos=0)
    assert [len(group) for group in rollouts.completions] == [1] * 5
    assert rollouts.tree.lengths.tolist() == [1] * 5
    assert [p.tolist() for p in rollouts.prompts] == PROMPTS


def test_a_completion_of_the_whole_context_fits():
    model = tiny_model(max_seq_len=12)
    rollouts = sample(model, [[1, 2]], 3, np.random.default_rng(0), max_new_tokens=10)
    np.testing.assert_allclose(model.forward(rollouts.tree), rollouts.logp, rtol=0, atol=1e-12)


# -- random numbers --------------------------------------------------------------------------------


def test_equal_seeds_give_equal_rollouts():
    first, again, other = (
        sample(tiny_model(), PROMPTS, 6, np.random.default_rng(seed), max_new_tokens=8, eos=0)
        for seed in (7, 7, 8)
    )
    assert texts(first) == texts(again)
    np.testing.assert_array_equal(first.logp, again.logp)
    assert texts(first) != texts(other)


def test_what_a_completion_draws_does_not_depend_on_the_others():
    """Rows of the batch take their random numbers in order, so more prompts behind, or before,
    change nothing.
    """
    model = tiny_model()
    together = sample(
        model, [[1], [2, 3], [2]], 5, np.random.default_rng(6), max_new_tokens=7, eos=0
    )
    alone = sample(model, [[1]], 5, np.random.default_rng(6), max_new_tokens=7, eos=0)
    assert texts(alone) == texts(together)[:1]
    rng = np.random.default_rng(6)
    rng.random((5, 7))  # those of the first prompt
    assert (
        texts(sample(model, [[2, 3], [2]], 5, rng, max_new_tokens=7, eos=0)) == texts(together)[1:]
    )
    fewer = sample(model, [[1]], 2, np.random.default_rng(6), max_new_tokens=7, eos=0)
    assert texts(fewer)[0] == texts(alone)[0][:2]


def test_random_numbers_used_do_not_depend_on_when_completions_stop():
    after = []
    for eos in (None, 0, 1, 2):
        rng = np.random.default_rng(9)
        rollouts = sample(tiny_model(), PROMPTS, 4, rng, max_new_tokens=8, eos=eos)
        after.append((rng.random(), int(rollouts.tree.lengths.sum())))
    assert len({number for number, _ in after}) == 1
    assert len({length for _, length in after}) > 1
    rng = np.random.default_rng(9)
    rng.random((len(PROMPTS) * 4, 8))
    assert after[0][0] == rng.random()


def test_sampling_leaves_the_model_alone():
    model = tiny_model()
    before = model.parameters.flat.copy()
    sample(model, PROMPTS, 2, np.random.default_rng(0), max_new_tokens=3)
    np.testing.assert_array_equal(model.parameters.flat, before)
    assert not model.gradients.flat.any()


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 0}, "group_size"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -0.5}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"eos": 5}, "eos 5 is outside"),
        ({"eos": -1}, "eos -1 is outside"),
        ({"prompts": []}, "at least one"),
        ({"prompts": [[1], []]}, "at least one token"),
        ({"prompts": [[1], [5]]}, "token id 5 is outside the model's vocabulary of 5"),
        ({"prompts": [[1], [-1]]}, "outside"),
        (
            {"prompts": [[1], [1] * 60]},
            r"takes 70 tokens, the model's context \(max_seq_len\) holds 64",
        ),
    ],
)
def test_bad_input_is_one_clear_error(changes, message):
    arguments = {"prompts": [[1]], "group_size": 2, "max_new_tokens": 10} | changes
    prompts, group_size = arguments.pop("prompts"), arguments.pop("group_size")
    with pytest.raises(ValueError, match=message):
        sample(tiny_model(), prompts, group_size, np.random.default_rng(0), **arguments)


def test_rollouts_keep_their_prompts():
    prompt = np.array([1, 2, 3])
    rollouts = sample(tiny_model(), [prompt], 2, np.random.default_rng(0), max_new_tokens=2)
    prompt[:] = 0
    assert rollouts.prompts[0].tolist() == [1, 2, 3]


# -- drawing from one distribution -----------------------------------------------------------------


def draw(logits, uniform, temperature=1.0, dtype="float64"):
    """`draw_tokens` from one row of logits, with a completion per uniform number."""
    u, row = np.atleast_1d(np.asarray(uniform, dtype=np.float64)), np.array([logits], dtype=dtype)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        return draw_tokens(get_backend("numpy"), row, np.zeros(len(u), dtype=int), u, temperature)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shift", [0.0, 300.0, -3000.0, 1e4])
def test_logits_of_any_size_are_drawn_from(shift, dtype):
    """exp(300) overflows in float32, and exp(-3000) is 0 in both."""
    logits = np.array([1.0, 0.0, 2.0, -400.0])
    tokens, logp, entropy = draw(logits + shift, [0.0, 0.3, 0.5, 0.999], dtype=dtype)
    p = np.exp(logits) / np.exp(logits).sum()
    assert tokens.tolist() == [0, 1, 2, 2]
    np.testing.assert_allclose(logp, np.log(p[tokens]), rtol=1e-5 if dtype == "float32" else 1e-11)
    np.testing.assert_allclose(entropy, -(p[:3] * np.log(p[:3])).sum(), rtol=1e-5)
    assert draw(logits + shift, [0.5] * 3, temperature=0.0, dtype=dtype)[0].tolist() == [2] * 3


@pytest.mark.parametrize("vocab_size", [400, STRETCH, STRETCH + 1, 3 * STRETCH + 100])
@pytest.mark.parametrize("certain", [0, 399])
def test_many_rare_tokens_beside_a_likely_one_keep_their_probabilities(vocab_size, certain):
    """Each adds 3·10⁻⁸ to a sum near 1, which float32 would not notice; together they are drawn
    once in 10⁴ to 10⁵ tokens.
    """
    rare = np.log(3e-8)
    logits = np.full(vocab_size, rare, dtype=np.float32)
    logits[certain] = 0
    p = np.exp(logits.astype(np.float64))
    total, edges = p.sum(), np.cumsum(p)
    wanted = np.unique([1, 150, 300, vocab_size // 2, vocab_size - 2, certain])
    middle = (edges[wanted] - p[wanted] / 2) / total
    tokens, logp, _ = draw(logits, middle, dtype="float32")
    assert tokens.tolist() == wanted.tolist()
    likely = logp[wanted == certain]
    np.testing.assert_allclose(likely, -np.log(total), rtol=1e-5)  # 1.2e-5 … 4.6e-5


def test_a_token_of_no_probability_is_never_drawn():
    logits = np.array([-1e5, 0.0, -1e5, 0.0, -1e5])
    just_below_one = np.nextafter(1.0, 0.0)
    for dtype in ("float32", "float64"):
        assert draw(logits, [0.0, 0.25, 0.5, 0.75, just_below_one], dtype=dtype)[0].tolist() == [
            1,
            1,
            3,
            3,
            3,
        ]
    wide = np.full(
        2 * STRETCH + 5, -1e5
    )  # zeros at the ends of stretches, and whole stretches of them
    wide[[STRETCH - 2, STRETCH + 1]] = 0.0
    assert draw(wide, [0.0, 0.49, 0.5, just_below_one])[0].tolist() == [
        STRETCH - 2,
        STRETCH - 2,
        STRETCH + 1,
        STRETCH + 1,
    ]
    lonely = np.full(2 * STRETCH + 5, -1e5)
    lonely[2 * STRETCH + 1] = 0.0
    assert draw(lonely, [0.0, 0.5, just_below_one])[0].tolist() == [2 * STRETCH + 1] * 3


@pytest.mark.parametrize(
    ("cumulative", "threshold", "place"),
    [
        (
            [0.0, 0.0, 0.5, 0.5, 1.0, 1.0],
            0.0,
            2,
        ),  # what adds nothing is not chosen by a threshold of 0
        ([0.0, 0.0, 0.5, 0.5, 1.0, 1.0], 0.5, 4),  # nor at a sum that is met exactly
        ([0.0, 0.0, 0.5, 0.5, 1.0, 1.0], 0.49, 2),
        ([0.0, 0.0, 0.5, 0.5, 1.0, 1.0], 0.99, 4),
        (
            [0.0, 0.0, 0.5, 0.5, 1.0, 1.0],
            1.0,
            4,
        ),  # rounded up to the total: the last that adds something
        ([0.0, 0.0, 0.5, 0.5, 1.0, 1.0], 1.1, 4),
        ([0.3, 0.7, 1.0], 1.0, 2),
        ([1.0, 1.0, 1.0], 1.0, 0),
        ([1.0, 1.0, 1.0], 2.0, 0),
        ([2.0], 5.0, 0),
    ],
)
def test_first_above_and_its_guards(cumulative, threshold, place):
    rows, thresholds = (
        np.array([cumulative, np.arange(1.0, len(cumulative) + 1)]),
        np.array([[threshold], [0.5]]),
    )
    assert first_above(rows, thresholds).tolist() == [place, 0]


@pytest.mark.parametrize(
    "gave", ["one truth value", "one number per completion", "of the last row"]
)
def test_a_rule_that_gives_no_truth_value_per_completion_is_refused(gave):
    def rule(tokens):
        if gave == "one truth value":
            return len(tokens) > 2
        return tokens[:, -1] if gave == "one number per completion" else tokens[-1] == 2

    with pytest.raises(ValueError, match=r"a rule of eos gave .* completions need a bool each"):
        sample(tiny_model(), PROMPTS, 3, np.random.default_rng(0), max_new_tokens=4, eos=rule)


def test_several_tokens_end_a_completion():
    for several in ((1, 2), [1, 2]):
        rng = np.random.default_rng(1)
        rollouts = sample(tiny_model(), PROMPTS, 20, rng, max_new_tokens=6, eos=several)
        ended = [y for group in rollouts.completions for y in group if y[-1] in (1, 2)]
        assert ended and (~rollouts.truncated).sum() == len(ended)
        assert not any(np.isin(y[:-1], (1, 2)).any() for y in ended)
