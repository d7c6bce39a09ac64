"""Rewards as named parts: what is added up, what is logged, and what is refused."""

import json
import math

import numpy as np
import pytest
from helpers import rollouts_of

from minigrpo.command.cli import main
from minigrpo.logs.groups import read_groups
from minigrpo.runs.evaluation import evaluate, is_correct
from minigrpo.runs.folder import read_metrics
from minigrpo.runs.policy import make_policy
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train
from minigrpo.show.comparison import compare_runs
from minigrpo.system.files import read_records
from minigrpo.tasks import CharTokenizer, score, score_texts
from minigrpo.tasks.countdown import Countdown

TASK = """
import numpy as np
from minigrpo.tasks import CharTokenizer, score_texts

class T:
    tokenizer, max_new_tokens = CharTokenizer("abc"), 4
    reward_weights = {"short": 0.5, "idle": 0}

    def prompts(self, rng, n, split="train"):
        return [self.tokenizer.encode("ab"[i % 2]) for i in range(n)]

    def score(self, rollouts):
        return score_texts(rollouts, self.tokenizer, self.one)

    def one(self, prompt, completion):
        n = len(completion)
        return {"right": completion.count(prompt), "short": n < 3, "idle": n}
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.py").write_text(TASK, encoding="utf-8")
    return tmp_path / "t.py"


def rollouts(groups=(("a", ["ab", "b", "abab"]), ("b", ["b", "", "aa"]))):
    tokenizer = CharTokenizer("abc")
    prompts = [tokenizer.encode(prompt) for prompt, _ in groups]
    return rollouts_of(prompts, [[tokenizer.encode(t) for t in texts] for _, texts in groups])


class Own:
    """A task that gives whatever it is told to."""

    tokenizer, max_new_tokens = CharTokenizer("abc"), 4

    def __init__(self, found, **attributes):
        self.found = found
        vars(self).update(attributes)

    def score(self, rollouts):
        return self.found


# -- the sum ---------------------------------------------------------------------------------------


def test_the_reward_is_the_weighted_sum_of_its_parts():
    parts = {"format": [1, 0, 1, 0, 1, 0], "answer": np.arange(6) / 2}
    for weights in ({}, {"format": 0.2}, {"format": 0, "answer": -2}, {"answer": np.float32(0.5)}):
        own = Own(parts, reward_weights=weights) if weights else Own(parts)
        rewards, found = score(own, rollouts())
        sum_ = sum(weights.get(n, 1) * np.array(v, dtype=float) for n, v in parts.items())
        assert np.array_equal(rewards, sum_) and rewards.dtype == np.float64
        assert list(found) == ["format", "answer"] and np.array_equal(
            found["answer"], parts["answer"]
        )


def test_all_parts_right_is_right_however_their_sum_is_rounded():
    parts = {f"p{i}": np.array([1.0] * 5 + [float(i < 9)]) for i in range(10)}
    rewards, _ = score(Own(parts, reward_weights=dict.fromkeys(parts, 0.1)), rollouts())
    assert rewards[0] < 1
    assert is_correct(Own(parts), rewards).tolist() == [True] * 5 + [False]


def test_plain_rewards_have_no_parts():
    rewards, parts = score(Own([1, 2, 3, 4, 5, 6], reward_weights={"unused": 1}), rollouts())
    assert rewards.tolist() == [1, 2, 3, 4, 5, 6] and parts == {}
    built_in = Countdown()
    drawn = rollouts_of([built_in.tokenizer.encode("3,5,7:22=")], [[np.array([3])]])
    assert score(built_in, drawn)[0].tolist() == built_in.score(drawn).tolist()


def test_parts_by_text_are_asked_once_per_pair():
    asked = []

    def reward(prompt, completion):
        asked.append((prompt, completion))
        return {"n": len(completion), "b": completion.count("b")}

    found = score_texts(rollouts((("a", ["b", "ab", "b"]),)), CharTokenizer("abc"), reward)
    assert {name: v.tolist() for name, v in found.items()} == {"n": [1, 2, 1], "b": [1, 1, 1]}
    assert len(asked) == 2


# -- what is refused -------------------------------------------------------------------------------

SIX = [0.0] * 6


@pytest.mark.parametrize(
    ("found", "weights", "message"),
    [
        ({"my part": SIX}, {}, "^rewards with parts named ..my part..: name each as Python"),
        ({"a": SIX, 1: SIX}, {}, "^rewards with parts named"),
        ({"a": SIX, "": SIX}, {}, "^rewards with parts named"),
        ({"a": SIX[1:]}, {}, r"^of part a of the rewards: 6 completions need as many rewards"),
        ({"a": SIX, "b": 1.0}, {}, "^of part b of the rewards: 6 completions need"),
        ({"a": [*SIX[1:], math.nan]}, {}, "^of part a .* completion 2 of prompt 1 is nan"),
        ({"a": [math.inf, *SIX[1:]]}, {"a": 0}, "^of part a .* completion 0 of prompt 0 is inf"),
        ({}, {}, "^6 completions need as many rewards, not {}"),
        ({0: SIX}, {}, "^6 completions need as many rewards, not {0:"),
        ({"a": SIX}, {"b": 1}, "^reward_weights of the task is {'b': 1}: give .* its parts, a$"),
        ({"a": SIX}, {"a": math.nan}, "^reward_weights of the task is {'a': nan}"),
        ({"a": SIX}, {"a": None}, "^reward_weights of the task is {'a': None}"),
        ({"a": SIX}, {"a": 1e300}, "^reward_weights of the task is"),
        ({"a": SIX}, [1.0], r"^reward_weights of the task is \[1.0\]: give a dict of finite"),
        ({"a": SIX}, {"a": "x"}, "^1 parts need as many weights, not .'x'."),
        ({"a": [1e99] * 6}, {"a": 1e99}, "^the reward of completion 0 of prompt 0 is .*e.19[78]"),
    ],
)  # fmt: skip
def test_parts_that_are_none(found, weights, message):
    with pytest.raises(ValueError, match=message):
        score(Own(found, reward_weights=weights), rollouts())


PAIR = "of completion 'ab' to prompt 'a'"


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (
            lambda p, c: {"right": 1} if c else {"wrong": 1},
            "{'wrong': 1}, that of another completion had the parts right: return the same",
        ),
        (
            lambda p, c: {"right": 1.0} if c else {"right": 1, "more": 2},
            "of completion '' to prompt 'b' is {'more': 2, 'right': 1}, that of another completion",
        ),
        (lambda p, c: {"right": 1.0} if c else 1, "is 1, that of another completion had the parts"),
        (lambda p, c: 1 if c else {"right": 1.0}, "of another completion had no parts: return"),
        (lambda p, c: {"a-b": 1}, f"the reward {PAIR} with parts named ['a-b']: name each as"),
        (
            lambda p, c: {"ok": 1, "bad": math.nan},
            f"part bad of the reward {PAIR} is nan: return a",
        ),
        (lambda p, c: {"ok": "1"}, f"part ok of the reward {PAIR} is '1'"),
        (lambda p, c: {"ok": None}, f"part ok of the reward {PAIR} is None"),
        (lambda p, c: {"ok": [1, 2]}, f"part ok of the reward {PAIR} is [1, 2]"),
        (lambda p, c: {}, f"the reward {PAIR} is {{}}: return a finite number"),
    ],
)
def test_parts_by_text_are_refused_with_prompt_and_completion(reward, message):
    with pytest.raises(ValueError, match=r"^(part|the reward) ") as raised:
        score_texts(rollouts(), CharTokenizer("abc"), reward)
    assert message in str(raised.value) and "\n" not in str(raised.value)


# -- a run -----------------------------------------------------------------------------------------

SETTINGS = {"task": "t.py:T", "steps": 3, "group_size": 4, "prompts_per_step": 2, "dim": 16}
SETTINGS |= {"eval_every": 3, "eval_prompts": 4, "log_samples_every": 1}


def test_a_run_logs_its_parts(file, capsys):
    seen = []
    train(TrainSettings(**SETTINGS), "run", progress=False, on_step=seen.append)
    records, samples = read_metrics("run"), read_records("run/samples.jsonl")
    assert len(samples) == 3 * 8
    for metrics in records:
        own = [record for record in samples if record["step"] == metrics["step"]]
        for name in ("right", "short", "idle"):
            values = np.array([record[f"rewards/{name}"] for record in own])
            assert math.isclose(metrics[f"rewards/{name}/mean"], values.mean(), abs_tol=1e-12)
            assert math.isclose(metrics[f"rewards/{name}/std"], values.std(ddof=1), abs_tol=1e-12)
        total = metrics["rewards/right/mean"] + metrics["rewards/short/mean"] / 2
        assert math.isclose(metrics["reward"], total, abs_tol=1e-12)
    for record in samples:
        assert record["reward"] == record["rewards/right"] + record["rewards/short"] / 2
        assert record["rewards/idle"] == len(record["completion"])
    # `minigrpo tree` draws the reward, and does not add its parts to it
    groups = read_groups("\n".join(map(json.dumps, samples)))
    drawn = np.concatenate([group.rewards for group in groups])
    assert sorted(drawn) == sorted(record["reward"] for record in samples)
    assert main(["tree", "run", "--reward-name", "rewards/short", "--last"]) == 0
    assert main(["plot", "run", "--key", "rewards/short/mean", "--out", "short.svg"]) == 0
    assert compare_runs(["run"], "rewards/short/mean").axes[0].lines
    last = seen[-1]
    assert {f"eval/rewards/{n}" for n in ("right", "short", "idle")} <= last.keys()
    told = last["eval/rewards/right"] + last["eval/rewards/short"] / 2
    assert math.isclose(last["eval/reward_greedy"], told, abs_tol=1e-12)
    capsys.readouterr()
    assert main(["evaluate", "run", "--prompts", "4"]) == 0
    out = capsys.readouterr().out
    value = dict(line.split() for line in out.splitlines())["eval/rewards/idle"]
    assert math.isclose(float(value), last["eval/rewards/idle"], abs_tol=1e-3)
    assert main(["sample", "run", "--group-size", "3"]) == 0
    assert main(["equivalence", "run", "--tolerance", "1e-6"]) == 0


def test_parts_change_no_bit_of_training(file):
    """The same weighted sum as one number trains to the same bits."""
    single = TASK.replace("return {", "return sum({").replace(
        '"idle": n}', '"idle": 0, **{"short": (n < 3) / 2}}.values())'
    )
    (file.parent / "s.py").write_text(single, encoding="utf-8")
    models = {}
    for name in ("t", "s"):
        settings = TrainSettings(**SETTINGS | {"task": f"{name}.py:T"})
        models[name], history = train(settings, progress=False)
        assert history[0]["reward_std"] > 0
    assert np.array_equal(*(m.parameters.flat for m in models.values()))


def test_a_weight_of_no_part_ends_the_command(file, capsys):
    file.write_text(TASK.replace('"idle": 0}', '"format": 1}'), encoding="utf-8")
    assert main(["train", "--task", "t.py:T", "--steps", "1"]) == 2
    err = capsys.readouterr().err
    told = "reward_weights of the task is {'format': 1, 'short': 0.5}: give a dict of finite"
    assert told in err and "Traceback" not in err
    settings = TrainSettings(task="t.py:T")
    with pytest.raises(ValueError, match="reward_weights"):
        evaluate(*make_policy(settings), n_prompts=2, progress=False)


def test_a_run_without_parts_logs_none(tmp_path):
    train(TrainSettings(steps=1, log_samples_every=1), tmp_path / "run", progress=False)
    assert not [name for name in read_metrics(tmp_path / "run")[0] if name.startswith("rewards/")]
    sample = read_records(tmp_path / "run/samples.jsonl")
    assert set(sample[0]) == {"step", "group", "prompt", "completion", "reward"}
