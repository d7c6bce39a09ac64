"""Tests of the tasks: tokenizer, splits, loading; each one's rewards, demonstrations, verifier."""

import ast
import operator
from fractions import Fraction
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigrpo.tasks import CharTokenizer, draw_problems, in_test_split, load_task, score_texts
from minigrpo.tasks import countdown as countdown_module
from minigrpo.tasks.arithmetic import Arithmetic, first_wrong_step, write_steps
from minigrpo.tasks.countdown import Countdown, evaluate_expression, random_expression
from minigrpo.tasks.treewalk import TreeWalk


def rollouts_of(tokenizer, prompts, completions):
    """What the sampler would return, as far as `score` looks at it;
    texts in, G prompts and G lists of completions.
    """
    encoded = [[tokenizer.encode(text) for text in group] for group in completions]
    return SimpleNamespace(
        prompts=[tokenizer.encode(text) for text in prompts], completions=encoded
    )


def texts(task, ids):
    return [task.tokenizer.decode(i) for i in ids]


# -- tokenizer and scoring by text -----------------------------------------------------------------


def test_tokenizer_round_trip_and_eos_is_the_last_id():
    tokenizer = CharTokenizer("abc")
    assert (tokenizer.eos, tokenizer.vocab_size) == (3, 4)
    assert tokenizer.encode("cab").tolist() == [2, 0, 1]
    assert tokenizer.encode_with_eos("ca").tolist() == [2, 0, 3]
    assert tokenizer.decode([2, 0, 3, 1, 3]) == "ca"
    assert (
        tokenizer.decode(np.array([], dtype=np.int64)) == ""
        and tokenizer.encode("").dtype == np.int64
    )
    without = CharTokenizer("ab", eos=False)
    assert (without.eos, without.vocab_size) == (None, 2)
    assert without.encode_with_eos("ab").tolist() == [0, 1] and without.decode([0, 1]) == "ab"
    assert (
        without
        == CharTokenizer("ab", eos=None)
        != CharTokenizer("ab")
        == CharTokenizer("ab", eos=2)
    )


def test_tokenizer_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="'x' is not in the alphabet 'abc'"):
        CharTokenizer("abc").encode("abx")
    for ids in ([4], [-1], [0, 9]):
        with pytest.raises(ValueError, match="do not fit a vocabulary of 4"):
            CharTokenizer("abc").decode(ids)
    for alphabet in ("", "aba"):
        with pytest.raises(ValueError, match="none twice"):
            CharTokenizer(alphabet)


def test_score_texts_asks_once_per_distinct_pair_and_keeps_the_order():
    tokenizer, calls = CharTokenizer("abc"), []

    def reward(prompt, completion):
        calls.append((prompt, completion))
        return len(completion) + 10 * (prompt == "b")

    rollouts = rollouts_of(tokenizer, ["a", "b", "a"], [["a", "ab", "a"], ["a", ""], ["ab"]])
    rollouts.completions[0][2] = np.array([0, 3])  # the text "a" again, this time with EOS
    rewards = score_texts(rollouts, tokenizer, reward)
    assert rewards.dtype == np.float64 and rewards.tolist() == [1, 2, 1, 11, 10, 2]
    assert sorted(calls) == [("a", "a"), ("a", "ab"), ("b", ""), ("b", "a")]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None, "much"])
def test_score_texts_refuses_rewards_that_are_no_finite_numbers(bad):
    tokenizer = CharTokenizer("ab")
    with pytest.raises(ValueError, match="completion 'b' to prompt 'a'"):
        score_texts(
            rollouts_of(tokenizer, ["a"], [["b"]]), tokenizer, lambda prompt, completion: bad
        )


# -- splits, demonstrations, determinism -----------------------------------------------------------

ONE_DIGIT = Arithmetic(digits=1, test_share=0.3)
TASKS = [
    Arithmetic(),
    ONE_DIGIT,
    Countdown(),
    Countdown(n_numbers=4, max_number=12),
    Countdown(max_number=5),
]


def canonical(prompt):
    """A problem without the order of its operands, written independently of the tasks."""
    numbers, _, target = prompt.rstrip("=").partition(":")
    return tuple(sorted(map(int, numbers.replace("+", ",").split(",")))), target


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_splits_are_disjoint_up_to_order_and_demonstrations_are_of_train(task):
    rng = np.random.default_rng(0)
    train = {canonical(text) for text in texts(task, task.prompts(rng, 500))}
    test = {canonical(text) for text in texts(task, task.prompts(rng, 50, "test"))}
    shown = {
        canonical(text)
        for text in texts(task, [prompt for prompt, _ in task.demonstrations(rng, 500)])
    }
    assert train and test and shown
    assert not test & train and not test & shown


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_everything_drawn_is_determined_by_the_seed(task):
    def draw(seed):
        rng = np.random.default_rng(seed)
        drawn = [
            task.prompts(rng, 20),
            task.prompts(rng, 20, "test"),
            *zip(*task.demonstrations(rng, 20), strict=True),
        ]
        return [[ids.tolist() for ids in part] for part in drawn]

    assert draw(3) == draw(3) != draw(4)


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_demonstrations_fit_the_length_limit_and_end_with_eos(task):
    for prompt, completion in task.demonstrations(np.random.default_rng(1), 300):
        assert len(completion) <= task.max_new_tokens
        assert (
            completion[-1] == task.tokenizer.eos and (completion[:-1] != task.tokenizer.eos).all()
        )
        assert prompt.dtype == completion.dtype == np.int64 and task.tokenizer.decode(
            prompt
        ).endswith("=")


def test_test_prompts_are_distinct_as_far_as_available_and_then_repeat():
    prompts = texts(Arithmetic(), Arithmetic().prompts(np.random.default_rng(0), 500, "test"))
    assert len({canonical(p) for p in prompts}) == 500
    small = Arithmetic(digits=1, test_share=0.3)
    unordered = [(a, b) for a in range(1, 10) for b in range(a, 10)]
    available = {((a, b), "") for a, b in unordered if in_test_split(f"{a}+{b}=", 0.3)}
    prompts = [
        canonical(p) for p in texts(small, small.prompts(np.random.default_rng(0), 100, "test"))
    ]
    assert len(prompts) == 100 and set(prompts[: len(available)]) == set(prompts) == available


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_the_test_split_has_its_share(share):
    sums = [f"{a}+{b}=" for a in range(100, 300) for b in range(a, 300)]
    assert np.mean([in_test_split(text, share) for text in sums]) == pytest.approx(share, abs=0.01)
    assert not in_test_split("358+467=", 0.0) and in_test_split("358+467=", 1.0)


def test_split_errors():
    rng = np.random.default_rng(0)
    for task in (TreeWalk(), Arithmetic(), Countdown()):
        with pytest.raises(ValueError, match="no split 'dev'"):
            task.prompts(rng, 3, "dev")
        with pytest.raises(ValueError, match="number of prompts is -1"):
            task.prompts(rng, -1)
        assert task.prompts(rng, 0) == []
    for share, split in ((0.0, "test"), (1.0, "train")):
        with pytest.raises(ValueError, match=f"the {split} split is empty"):
            Arithmetic(test_share=share).prompts(rng, 1, split)
    assert draw_problems(rng, 3, "train", lambda rng: 7, str, 0.0) == [7, 7, 7]


# -- treewalk --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_treewalk_rewards_equal_the_definition(data):
    depth = data.draw(st.integers(2, 6))
    n = data.draw(st.integers(1, depth - 1))
    target = data.draw(st.text("LR", min_size=depth, max_size=depth))
    task = TreeWalk(depth=depth, n=n, r_neg=-0.5, r_other=0.25, target=target)

    def reward(path):
        return 1.0 if path == target else -0.5 if path.startswith(target[:n]) else 0.25

    every_path = ["".join(moves) for moves in product("LR", repeat=depth)]  # lexicographic
    assert texts(task, task.paths()) == every_path
    assert task.path_rewards().tolist() == [reward(path) for path in every_path]
    groups = data.draw(
        st.lists(
            st.lists(st.sampled_from(every_path), min_size=1, max_size=5), min_size=1, max_size=3
        )
    )
    rewards = task.score(rollouts_of(task.tokenizer, ["L"] * len(groups), groups))
    assert rewards.tolist() == [reward(path) for group in groups for path in group]
    assert task.is_correct(rewards).tolist() == [
        path == target for group in groups for path in group
    ]


@pytest.mark.parametrize(("root", "vocab_size", "prompt"), [("bos", 3, 2), ("L", 2, 0)])
def test_treewalk_as_in_the_paper_and_as_it_was(root, vocab_size, prompt):
    task = TreeWalk(root=root, target="RRRR")
    assert (
        task.max_new_tokens,
        task.tokenizer.vocab_size,
        task.tokenizer.eos,
        task.n_drawable,
    ) == (4, vocab_size, None, 2)
    assert task.tokenizer.encode("LR").tolist() == [0, 1]
    assert task.tokenizer.decode([prompt]) == ("^" if root == "bos" else "L")
    assert task.path_rewards().tolist() == [0.7] * 8 + [-1.0] * 7 + [1.0]
    task.path_rewards()[:] = 5  # the caller's copy
    assert task.path_rewards().max() == 1
    assert [prompt.tolist() for prompt in task.prompts(np.random.default_rng(0), 2, "test")] == [
        [prompt]
    ] * 2


def test_treewalk_targets_are_drawn_from_the_seed_alone_and_uniformly():
    targets = [TreeWalk().for_run(seed).target for seed in range(3200)]
    counts = np.unique(targets, return_counts=True)[1]
    assert len(counts) == 16
    assert ((counts - 200) ** 2 / 200).sum() < 37.7  # chi-squared, 15 degrees of freedom, p = 0.001
    for seed in range(5):  # as the docstring says
        moves = np.random.default_rng((seed, 4)).integers(2, size=4)
        assert targets[seed] == "".join(np.array(["L", "R"])[moves]) == TreeWalk(seed=seed).target
    assert TreeWalk().target == targets[0] and TreeWalk().is_drawn


def test_treewalk_of_a_run_keeps_what_was_given():
    task = TreeWalk(depth=5, n=2)
    assert task.path_rewards().argmax() == int(
        task.target.replace("L", "0").replace("R", "1"), 2
    )  # kept from here on
    own = task.for_run(3)
    assert (own.depth, own.n, own.seed, own.is_drawn) == (5, 2, 3, True)
    assert own.target == TreeWalk(depth=5, seed=3).target != task.target
    assert own.path_rewards().argmax() == int(own.target.replace("L", "0").replace("R", "1"), 2)
    assert task.path_rewards().argmax() != own.path_rewards().argmax()
    assert own.for_run(4) == own and TreeWalk(seed=7).for_run(4) == TreeWalk(seed=7)
    assert TreeWalk(target="LLRL").for_run(4).target == "LLRL"

    class Deeper(TreeWalk):
        def __init__(self):
            super().__init__(depth=6)

    assert Deeper().for_run(1).target == TreeWalk(depth=6, seed=1).target
    assert type(Deeper().for_run(1)) is Deeper


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 1}, "depth is 1: it must be a whole number from 2 to 12"),
        ({"depth": 13}, "depth is 13"),
        ({"depth": 4.0}, "depth is 4.0"),
        ({"depth": True}, "depth is True"),
        ({"n": 0}, "n is 0: it must be a whole number from 1 to 3"),
        ({"n": 4}, "n is 4"),
        ({"r_neg": float("nan")}, "r_neg is nan: it must be a finite number"),
        ({"r_other": 1.0}, "r_other is 1.0: it must be below 1"),
        ({"r_other": "0.5"}, "r_other is '0.5'"),
        ({"target": "RRR"}, "target is 'RRR': it must be 4 letters"),
        ({"target": "RRRX"}, "target is 'RRRX'"),
        ({"root": "R"}, "root is 'R': it must be bos or L"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_treewalk_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        TreeWalk(**options)


def test_treewalk_refuses_what_is_no_path():
    task = TreeWalk()
    for completions in ([["RRR"]], [["RRRR", "RRRRR"]], [[""]]):
        with pytest.raises(ValueError, match="does not have 4 moves"):
            task.score(rollouts_of(task.tokenizer, ["L"], completions))
    with pytest.raises(ValueError, match="neither 0"):
        task.score(SimpleNamespace(prompts=[np.array([0])], completions=[[np.array([0, 1, 2, 0])]]))


# -- arithmetic ------------------------------------------------------------------------------------


def test_arithmetic_written_steps_of_known_sums():
    assert write_steps(358, 467) == "8+7=15;5+6+1=12;3+4+1=8;825"
    assert write_steps(999, 999) == "9+9=18;9+9+1=19;9+9+1=19;1998"
    assert write_steps(100, 100) == "0+0=0;0+0=0;1+1=2;200"
    assert write_steps(7, 8) == "7+8=15;15"
    # The pupil forgets the carry into the tens, but goes on from what he wrote: 11 carries on.
    assert write_steps(358, 467, [False, True, False]) == "8+7=15;5+6=11;3+4+1=8;815"
    # Here what he wrote (9, not 10) no longer carries.
    assert write_steps(345, 457, [False, True, False]) == "5+7=12;4+5=9;3+4=7;792"


@given(st.integers(1, 6), st.data())
def test_arithmetic_right_steps_give_the_right_answer(digits, data):
    a, b = (data.draw(st.integers(10 ** (digits - 1), 10**digits - 1)) for _ in range(2))
    steps = write_steps(a, b).split(";")
    assert len(steps) == digits + 1 and int(steps[-1]) == a + b
    assert all(
        sum(map(int, left.split("+"))) == int(total)
        for left, total in (step.split("=") for step in steps[:-1])
    )
    assert len(";".join(steps)) + 1 <= Arithmetic(digits=digits).max_new_tokens


def test_arithmetic_scores_of_known_texts():
    task = Arithmetic()
    good = ["8+7=15;5+6+1=12;3+4+1=8;825", "825", ";825", "1+1=3;825"]
    bad = [
        "8+7=15;5+6=11;3+4+1=8;815",
        "",
        ";",
        "825;",
        "0825",
        "+825",
        "825=",
        "82",
        "8+7=15;5+6+1=12;3+4+1=8",
    ]
    rewards = task.score(
        rollouts_of(task.tokenizer, ["358+467=", "999+999="], [good + bad, ["1998", "825"]])
    )
    assert rewards.tolist() == [1.0] * len(good) + [0.0] * len(bad) + [1.0, 0.0]
    assert task.max_new_tokens == 30


def test_arithmetic_greedy_base_rate_is_exactly_as_documented():
    """A greedy copy of the pupil forgets every carry.

    The leading digits cannot matter, so 100 … 199 stand for all operands.
    """
    always = [True, True, True]
    right = [
        write_steps(a, b, always).endswith(f";{a + b}")
        for a in range(100, 200)
        for b in range(100, 200)
    ]
    assert sum(right) == 3025  # of 10,000
    a, b = np.meshgrid(
        np.arange(100, 1000), np.arange(100, 1000)
    )  # all problems: right where no column receives a carry
    assert ((a % 10 + b % 10 < 10) & (a % 100 + b % 100 < 100)).mean() == 0.3025
    two = [
        write_steps(a, b, always[:2]).endswith(f";{a + b}")
        for a in range(10, 100)
        for b in range(10, 100)
    ]
    assert sum(two) == 0.55 * len(two)
    held_out = texts(Arithmetic(), Arithmetic().prompts(np.random.default_rng(0), 3000, "test"))
    sums = [map(int, text[:-1].split("+")) for text in held_out]
    assert np.mean(
        [write_steps(a, b, always).endswith(f";{a + b}") for a, b in sums]
    ) == pytest.approx(0.3025, abs=0.03)


def test_arithmetic_pupil_forgets_as_often_as_documented():
    task = Arithmetic()
    shown = task.demonstrations(np.random.default_rng(0), 6000)
    pairs = [
        (task.tokenizer.decode(prompt), task.tokenizer.decode(completion))
        for prompt, completion in shown
    ]
    right = rollouts_of(task.tokenizer, [p for p, _ in pairs], [[c] for _, c in pairs])
    assert task.score(right).mean() == pytest.approx(0.5221, abs=0.02)
    carried = [
        c.split(";")[1].count("+") == 2
        for p, c in pairs
        if int(c.split(";")[0].split("=")[1]) >= 10
    ]
    assert np.mean(carried) == pytest.approx(0.4, abs=0.03)
    perfect = Arithmetic(forget=0.0)
    for prompt, completion in perfect.demonstrations(np.random.default_rng(0), 200):
        assert (
            first_wrong_step(perfect.tokenizer.decode(prompt), perfect.tokenizer.decode(completion))
            is None
        )


def test_arithmetic_sampled_rate_of_the_docstring():
    """0.4 a carry remembered, over all problems:
    the mean of P(right) by enumeration of what can be forgotten.
    """
    total = 0.0
    for x, y in product(range(100), repeat=2):
        units = x % 10 + y % 10 >= 10
        tens = x + y >= 100
        total += (0.4 if units else 1) * (0.4 if tens else 1)
    assert total / 10_000 == pytest.approx(0.5221, abs=5e-5)


@pytest.mark.parametrize(
    ("completion", "wrong"),
    [
        ("8+7=15;5+6+1=12;3+4+1=8;825", None),
        ("7+8=15;1+5+6=12;3+4+1=8;825", None),  # the order of summands is free
        ("8+7=14;5+6+1=12;3+4+1=8;825", 0),
        ("8+7=15;5+6=11;3+4+1=8;815", 1),  # true in itself, but the carry is missing
        ("8+7=15;5+6+1=12;3+4=7;725", 2),
        ("8+7=15;5+6+1=12;3+4+1=8;815", 3),
        ("8+7=15;5+6+1=12;3+4+1=8;825;825", 4),
        ("8+7=15;5+6+1=12;", 2),
        ("8+7=15;5+6+1=12", 2),
        ("0+15=15;5+6+1=12;3+4+1=8;825", 0),
        ("825", 0),
        ("", 0),
        (";", 0),
        (";;;;;;", 0),
        (";8+7=15;5+6+1=12;3+4+1=8;825", 0),
        ("8+7=15;;5+6+1=12;3+4+1=8;825", 1),
        ("8+7=15;", 1),
        ("8+7=15;5+6+1=12;3+4+1=8", 3),
        ("8+7=15;5+6+1=12;3+4+1=8;", 3),
        ("8+7=15;5+6+1=12;3+4+1=8;825;", 4),  # a step too many, though it is empty
        ("8+7=15;5+6+1=12;3+4+1=8;825;;;", 4),
        ("8+7=15;5+6+1=12;3+4+1=8;;825", 3),
        ("8+7=15;5+6+1=12;3+4+1=8;825 ", 3),
    ],
)
def test_arithmetic_first_wrong_step(completion, wrong):
    assert first_wrong_step("358+467=", completion) == wrong


@pytest.mark.parametrize("prompt", ["6+8=", "1+1=", "15+27=", "358+467="])
def test_arithmetic_whatever_ends_wrong_has_a_wrong_step(prompt):
    """Right texts with characters added, left out or changed, cut anywhere:
    outcome 0 means that some step is wrong.
    """
    rng, a, b = np.random.default_rng(0), *map(int, prompt[:-1].split("+"))
    right, seen = write_steps(a, b), [0, 0]
    assert first_wrong_step(prompt, right) is None
    for _ in range(400):
        text = list(right)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(len(text) + 1))
            text[at : at + int(rng.integers(2))] = list("0123456789+=;;;"[rng.integers(15)]) * int(
                rng.integers(2)
            )
        for written in ("".join(text), "".join(text)[: rng.integers(len(text) + 1)]):
            wrong = first_wrong_step(prompt, written)
            steps = written.count(";") + 1
            assert wrong is None or 0 <= wrong <= min(steps, right.count(";") + 1)
            assert Arithmetic().outcome(prompt, written) == 1.0 or wrong is not None
            seen[wrong is None] += 1
    assert seen[0] > 200


def test_arithmetic_errors():
    for name, value in [
        ("digits", 0),
        ("digits", 13),
        ("digits", "3"),
        ("forget", 1.5),
        ("forget", None),
        ("test_share", -0.1),
    ]:
        with pytest.raises(ValueError, match=f"{name} is {value!r}"):
            Arithmetic(**{name: value})
    for prompt in ("358+46=", "358467=", "358+467", "²58+467=", ""):
        with pytest.raises(ValueError, match="no sum of two numbers"):
            first_wrong_step(prompt, "825")


# -- countdown -------------------------------------------------------------------------------------

BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def by_python(text):
    """Value and numbers by Python's grammar; None where there is more than numbers, +-*/ and ()."""
    numbers = []

    def value(node):
        if isinstance(node, ast.Constant) and type(node.value) is int:
            numbers.append((node.lineno, node.col_offset, node.value))
            return Fraction(node.value)
        if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
            return BINARY[type(node.op)](value(node.left), value(node.right))
        raise SyntaxError

    try:
        result = value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ZeroDivisionError):
        return None
    return result, [number for *_, number in sorted(numbers)]


EXPRESSIONS = st.recursive(
    st.integers(0, 999).map(str),
    lambda inner: st.one_of(
        inner.map("({})".format), st.tuples(inner, st.sampled_from("+-*/"), inner).map("".join)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(EXPRESSIONS)
def test_the_parser_agrees_with_pythons_on_expressions(text):
    if len(text) > countdown_module.MAX_LENGTH:
        text = "1"
    expected = by_python(text)
    if expected is None:
        with pytest.raises(ValueError, match="division by zero"):
            evaluate_expression(text)
    else:
        assert evaluate_expression(text) == expected


@settings(max_examples=500, deadline=None)
@given(st.text("0123456789+-*/()", max_size=9))
def test_the_parser_accepts_exactly_what_it_should(text):
    """Any text at all of these characters:
    accepted with Python's value, or refused where Python's grammar refuses it too.
    """
    try:
        found = evaluate_expression(text)
    except ValueError:
        digits_runs = "".join(c if c.isdigit() else " " for c in text).split()
        beyond = any(
            len(run) > countdown_module.MAX_DIGITS or (len(run) > 1 and run[0] == "0")
            for run in digits_runs
        )
        assert beyond or by_python(text) is None
    else:
        assert found == by_python(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("9" * 10000, "10000 characters"),
        ("(" * 10000, "10000 characters"),
        ("(" * 50, "more than 20 open parentheses at position 20"),
        ("(" * 21 + "1" + ")" * 21, "more than 20 open parentheses"),
        ("9" * 50, "50 digits"),
        ("12345", "5 digits"),
        ("__import__('os')", "position 0, not '_'"),
        ("1/0", "division by zero at position 1"),
        ("1/(2-2)", "division by zero"),
        ("1e9", "operator was expected at position 1, not 'e'"),
        ("1.5", "not '.'"),
        ("1_0", "not '_'"),
        ("0x10", "not 'x'"),
        ("--1", "position 0, not '-'"),
        ("+1", "position 0, not '\\+'"),
        ("2*-1", "position 2, not '-'"),
        ("2**3", "position 2, not '\\*'"),
        ("7//2", "position 2, not '/'"),
        ("007", "leading zero"),
        ("", "position 0, not the end"),
        ("()", "position 1, not '\\)'"),
        ("(1+2", "closing parenthesis was expected at position 4"),
        ("1+2)", "operator was expected at position 3"),
        ("2(3)", "operator was expected at position 1"),
        ("1+", "position 2, not the end"),
        ("1 + 2", "not ' '"),
        ("1+2\n", "not '\\\\n'"),
        ("²", "not '²'"),
        ("١+٢", "not '١'"),
        ("３", "not '３'"),
        ("1\x00", "not '\\\\x00'"),
        ("1+2=3", "not '='"),
        ("lambda:0", "not 'l'"),
    ],
    ids=lambda value: value[:20],
)
def test_the_parser_refuses_hostile_texts_with_a_reason(text, reason):
    with pytest.raises(ValueError, match=reason) as error:
        evaluate_expression(text)
    assert len(str(error.value)) < 200


def test_the_parser_at_its_limits_is_right_and_reads_once(monkeypatch):
    calls, factor = [], countdown_module._factor
    monkeypatch.setattr(
        countdown_module, "_factor", lambda *place: calls.append(place) or factor(*place)
    )
    assert evaluate_expression("(" * 20 + "9999" + ")" * 20) == (9999, [9999])
    longest = "9999*" * 19 + "9999"
    assert evaluate_expression(longest) == (9999**20, [9999] * 20)
    assert evaluate_expression("/".join("1" * 50))[0] == 1
    assert len(calls) == 21 + 20 + 50  # parentheses and numbers, each once: no way back
    assert evaluate_expression("8/(3-8/3)") == (24, [8, 3, 8, 3])
    assert evaluate_expression("2-3-4")[0] == -5 and evaluate_expression("8/4/2")[0] == 1


def test_countdown_scores_of_known_texts():
    task = Countdown()
    good = ["3*5+7", "7+5*3", "(3*5)+7", "7+(5*3)"]
    bad = ["3+5+7", "3*5", "3*5+7+7-7", "22", "3*5+7=22", "", "3*5+", "5*(3+7)", "15+7", "35-13"]
    rewards = task.score(
        rollouts_of(
            task.tokenizer,
            ["3,5,7:22=", "7,3,5:22=", "2,2,8:8="],
            [good + bad, good, ["8*2/2", "8"]],
        )
    )
    assert rewards.tolist() == [1.0] * len(good) + [0.0] * len(bad) + [1.0] * len(good) + [1.0, 0.0]
    # Fractions are exact on the way, and a repeated number must be used as often as it is given.
    four = Countdown(n_numbers=4)
    assert four.score(
        rollouts_of(four.tokenizer, ["3,3,8,8:24="], [["8/(3-8/3)", "8*3*(8/8)"]])
    ).tolist() == [1.0, 0.0]
    assert task.score(
        rollouts_of(task.tokenizer, ["1,3,9:3="], [["1/3*9", "9/3*1", "3/1*9"]])
    ).tolist() == [1.0, 1.0, 0.0]


def test_countdown_demonstrations_are_right_as_often_as_asked():
    def share_right(task, n):
        shown = task.demonstrations(np.random.default_rng(0), n)
        for prompt, completion in shown:  # always an expression of the right numbers
            numbers = sorted(map(int, task.tokenizer.decode(prompt).split(":")[0].split(",")))
            assert sorted(evaluate_expression(task.tokenizer.decode(completion))[1]) == numbers
        return task.score(
            SimpleNamespace(prompts=[p for p, _ in shown], completions=[[c] for _, c in shown])
        ).mean()

    by_chance = share_right(Countdown(p_right=0.0), 500)
    assert share_right(Countdown(p_right=1.0), 200) == 1.0
    assert by_chance < 0.2
    assert share_right(Countdown(), 2000) == pytest.approx(0.5 + 0.5 * by_chance, abs=0.04)


def test_countdown_problems_keep_to_their_ranges():
    task = Countdown(n_numbers=4, max_number=12, max_target=30)
    for text in texts(task, task.prompts(np.random.default_rng(0), 200)):
        numbers, target = text[:-1].split(":")
        assert len(numbers.split(",")) == 4 and all(
            1 <= int(number) <= 12 for number in numbers.split(",")
        )
        assert 1 <= int(target) <= 30


def test_random_expressions_have_no_needless_parentheses():
    rng, seen = np.random.default_rng(0), set()
    for _ in range(2000):
        text = random_expression(rng, (2, 3, 5))
        value = evaluate_expression(text)[0]
        seen.add(text)
        if "(" in text:
            bare = text.replace("(", "").replace(")", "")
            assert evaluate_expression(bare)[0] != value or bare == text
    assert {"2+3+5", "(2+3)*5", "5-(2-3)", "2/(3/5)", "3*5-2"} <= seen


def test_countdown_errors():
    wrong = [
        ("n_numbers", 1),
        ("n_numbers", 7),
        ("max_number", 0),
        ("max_target", 10**5),
        ("p_right", 2),
        ("test_share", 2),
    ]
    for name, value in wrong:
        with pytest.raises(ValueError, match=f"{name} is {value!r}"):
            Countdown(**{name: value})
    task = Countdown()
    for prompt in ("3,5,7=", "3,5,7:22", ":22=", "3,,7:22="):
        with pytest.raises(ValueError, match="no countdown problem"):
            task.score(rollouts_of(task.tokenizer, [prompt], [["1"]]))


# -- loading ---------------------------------------------------------------------------------------

USER_TASK = '''
"""Count the letters b of a word: written by a user."""
from __future__ import annotations
from dataclasses import dataclass
from minigrpo.tasks import CharTokenizer, check_split, score_texts

@dataclass(frozen=True)
class CountB:
    length: int = 3
    tokenizer = CharTokenizer("ab=0123456789")
    max_new_tokens = 2

    def prompts(self, rng, n, split="train"):
        check_split(split)
        words = ["".join(rng.choice(["a", "b"], self.length)) for _ in range(n)]
        return [self.tokenizer.encode(word + "=") for word in words]

    def score(self, rollouts):
        return score_texts(rollouts, self.tokenizer, self.reward)

    def reward(self, prompt, text): return float(text == str(prompt.count("b")))
'''


def test_a_users_task_of_twenty_lines_is_loaded_from_its_file(tmp_path):
    assert len(USER_TASK.strip().splitlines()) <= 20
    file = tmp_path / "my task.py"
    file.write_text(USER_TASK)
    task = load_task(f"{file}:CountB", length=5)
    prompt = task.prompts(np.random.default_rng(0), 1)[0]
    assert len(prompt) == 6
    assert task.score(
        rollouts_of(task.tokenizer, ["abb=", "a="], [["2", "1"], ["0"]])
    ).tolist() == [1, 0, 1]
    file.write_text(
        USER_TASK.replace("length: int = 3", "length: int = 4")
    )  # loading again reads the file again
    assert load_task(f"{file}:CountB").length == 4


def test_built_in_tasks_load_by_name_with_options():
    assert load_task("treewalk", n=2, r_neg=-0.5) == TreeWalk(n=2, r_neg=-0.5)
    assert load_task("arithmetic", digits=2) == Arithmetic(digits=2)
    assert load_task("countdown") == Countdown()


def test_loading_errors_say_what_is_wrong(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(USER_TASK)
    broken = tmp_path / "broken.py"
    broken.write_text("import json\nimport no_such_module_anywhere\n")
    (tmp_path / "notes.txt").write_text("x")
    cases = {
        "sorting": "no task 'sorting': choose arithmetic, countdown, largest, rows, sums, treewalk",
        "": "no task ''",
        str(file): "no class in it: write .*mine.py:MyTask",
        f"{tmp_path}/absent.py:CountB": "no task file .*absent.py",
        f"{tmp_path}:CountB": "no task file",
        f"{tmp_path}/notes.txt:CountB": "is no .py file",
        f"{file}:CountC": "no class 'CountC': it has CountB",
        f"{file}:": "no class ''",
        f"{broken}:X": "cannot be imported: ModuleNotFoundError: No module named 'no_such",
    }
    for name, message in cases.items():
        with pytest.raises(ValueError, match=message):
            load_task(name)
    with pytest.raises(
        ValueError, match="no option 'digit': its options are digits, forget, test_share"
    ):
        load_task("arithmetic", digit=3)
    with pytest.raises(ValueError, match="depth is 'deep'"):
        load_task("treewalk", depth="deep")


def test_a_class_that_lacks_a_part_of_the_protocol_is_refused_by_name(tmp_path):
    file = tmp_path / "mine.py"
    for line, part in (
        ("max_new_tokens = 2", "max_new_tokens"),
        ("    tokenizer = ", "tokenizer"),
        ("def prompts", "prompts"),
    ):
        file.write_text(USER_TASK.replace(line, line.replace(part, "other")))
        with pytest.raises(ValueError, match=f"has no attribute '{part}': a task needs"):
            load_task(f"{file}:CountB")
    file.write_text(USER_TASK.replace("max_new_tokens = 2", "max_new_tokens = 0"))
    with pytest.raises(ValueError, match=r"max_new_tokens of task .* is 0"):
        load_task(f"{file}:CountB")
    file.write_text("class T:\n    tokenizer, max_new_tokens, prompts, score = 'abc', 1, 2, 3\n")
    with pytest.raises(ValueError, match=r"the tokenizer of task .* has no attribute 'decode'"):
        load_task(f"{file}:T")
    file.write_text("class T:\n    def __init__(self, size): pass\n")
    with pytest.raises(ValueError, match="needs the option 'size'"):
        load_task(f"{file}:T")
