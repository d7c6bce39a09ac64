"""Defaults that leave a warm-started policy whole, and sentences where a run does not learn;
silence where it does.
"""

import numpy as np
import pytest

from minigrpo.command.cli import main
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train
from minigrpo.runs.warning_signs import warning_sign

TASK = """
import numpy as np
from minigrpo.tasks import CharTokenizer, score_texts

class Reverse:
    tokenizer = CharTokenizer("abcd=")
    max_new_tokens = 5
    def prompts(self, rng, n, split="train"):
        return [self.tokenizer.encode("".join(rng.choice(list("abcd"), 3)) + "=") for _ in range(n)]
    def demonstrations(self, rng, n):
        t = self.tokenizer
        return [(p, t.encode_with_eos(t.decode(p)[:-1][::-1])) for p in self.prompts(rng, n)]
    def score(self, rollouts):
        return score_texts(rollouts, self.tokenizer, lambda p, c: float(c == p[:-1][::-1]))

class Parity(Reverse):
    tokenizer = CharTokenizer("01=")
    max_new_tokens = 7
    def prompts(self, rng, n, split="train"):
        return [self.tokenizer.encode("".join(rng.choice(list("01"), 6)) + "=") for _ in range(n)]
    def demonstrations(self, rng, n):
        steps = [(p, np.cumsum(p[:-1]) % 2) for p in self.prompts(rng, n)]
        return [(p, np.append(running, self.tokenizer.eos)) for p, running in steps]
    def score(self, rollouts):
        right = lambda p, c: float(len(c) == 6 and c[-1] == str(p.count("1") % 2))
        return score_texts(rollouts, self.tokenizer, right)

class Rash(Reverse):
    defaults = {"learning_rate": 1e-3, "prompts_per_step": 1, "warmup_steps": 0}

class Never(Reverse):
    def score(self, rollouts):
        return score_texts(rollouts, self.tokenizer, lambda p, c: 0.25)
"""


SHAPE = {"warm_start_steps": 120, "steps": 20, "eval_every": 20, "eval_prompts": 100}


@pytest.fixture
def task_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(TASK)
    return "mine.py"


def history(rewards, dead=0.0, greedy=(), prompts=200):
    """Metrics as training writes them: rewards per step, dead groups from a step on, greedy
    accuracy every 10 steps.
    """
    dead = np.broadcast_to(dead, len(rewards))
    records = (
        [{"step": 0, "eval/pass@1_greedy": greedy[0], "eval/prompts": prompts}] if greedy else []
    )
    for i, (reward, share) in enumerate(zip(rewards, dead, strict=True), 1):
        records.append({"step": i, "reward": float(reward), "frac_reward_zero_std": float(share)})
        if greedy and i % 10 == 0 and i // 10 < len(greedy):
            records[-1] |= {"eval/pass@1_greedy": greedy[i // 10], "eval/prompts": prompts}
    return records


def first_sign(records):
    """What a run that is looked at after every step hears first."""
    return next(
        (sign for n in range(1, len(records) + 1) if (sign := warning_sign(records[:n]))), None
    )


NOISE = np.random.default_rng(0).normal(size=300)
ILL = {
    "all zero from the start": (history(np.zeros(12), 1.0), "nothing to compare", "--group-size"),
    "all the same, not zero": (history(np.full(12, 0.7), 1.0), "nothing to compare", "mean 0.7"),
    "destroyed by one step": (
        history([0.53, 0.03] + [0.0] * 12, [0, 0.5] + [1] * 12),
        "collapse",
        "from 0.53 at step 1 to 0",
    ),
    "destroyed later": (
        history([0.2, 0.5, 0.8] + [-1.0] * 12, [0, 0, 0] + [1] * 12),
        "collapse",
        "at step 3 to -1",
    ),
    "falls and goes on": (
        history([0.6] * 5 + list(0.1 + 0.03 * NOISE[:20])),
        "collapse",
        "--learning-rate",
    ),
    "negative rewards fall": (
        history(list(-1 + 0.1 * NOISE[:5]) + list(-9 + 0.3 * NOISE[5:30])),
        "collapse",
        "--learning-rate",
    ),
    "greedy accuracy falls": (
        history(0.5 + 0.2 * NOISE[:12], greedy=(1.0, 0.36)),
        "collapse",
        "from 100% at step 0 to 36%",
    ),
}
WELL = {
    "learns": history(np.linspace(0.1, 0.9, 60) + 0.05 * NOISE[:60], greedy=(0.3, 0.5, 0.6, 0.8)),
    "stays, with noise": history(0.5 + 0.3 * NOISE),
    "solved: all groups dead at the best reward": history(
        [0.6, 0.8, 0.9] + [1.0] * 40, [0, 0, 0] + [1] * 40
    ),
    "one prompt a step, mostly solved": history([0.9, 1.0, 0.0] + [1.0] * 12, [0] + [1] * 14),
    "greedy accuracy wavers": history(0.5 + 0.2 * NOISE[:30], greedy=(0.5, 0.42, 0.55), prompts=50),
    "from very good to good": history(0.95 + 0.01 * NOISE[:30], greedy=(0.99, 0.95, 0.97)),
    "a short run": history([0.5, 0.1, 0.0, 0.0], [0, 0, 1, 1]),
    "no steps": [],
}


@pytest.mark.parametrize("what", ILL)
def test_a_sick_run_is_told(what):
    records, kind, words = ILL[what]
    found, sentence = first_sign(records)
    assert found == kind
    assert words in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("what", WELL)
def test_a_healthy_run_is_left_alone(what):
    assert first_sign(WELL[what]) is None


@pytest.mark.parametrize("name", ["Reverse", "Parity"])
def test_the_default_settings_leave_a_warm_started_policy_whole(name, task_file):
    """Own tasks that recommend nothing."""
    records = []
    settings = TrainSettings.for_task(f"{task_file}:{name}", **SHAPE)
    train(settings, progress=False, on_step=records.append)
    before, after = (r["eval/pass@1_greedy"] for r in records if "eval/pass@1_greedy" in r)
    assert before > 0.5
    assert after > before - 0.1
    assert first_sign(records) is None


def test_a_rash_task_is_told(task_file):
    """A task that recommends a learning rate which destroys its own warm-started policy."""
    records = []
    train(
        TrainSettings.for_task(f"{task_file}:Rash", **SHAPE), progress=False, on_step=records.append
    )
    before, after = (r["eval/pass@1_greedy"] for r in records if "eval/pass@1_greedy" in r)
    assert after < before - 0.3
    kind, sentence = first_sign(records)
    assert kind == "collapse"
    assert "lower --learning-rate" in sentence


def test_the_command_says_it_once(task_file, capsys):
    assert (
        main(
            [
                "train",
                "--task",
                "mine.py:Never",
                "--steps",
                "14",
                "--dim",
                "8",
                "--prompts-per-step",
                "1",
            ]
        )
        == 0
    )
    err = capsys.readouterr().err
    assert err.count("warning: ") == 1
    assert (
        "all completions of every prompt have earned the same reward for 10 steps (mean 0.25)"
        in err
    )
