"""Defaults that leave a warm-started policy whole, and sentences where a run does not learn;
silence where it does.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from campaigns import own_tasks

from minigrpo.command.cli import main
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train
from minigrpo.runs.warning_signs import Watchman

HERE = Path(__file__).parent
TASK = """
from minigrpo.tasks import CharTokenizer, score_texts

class Reverse:
    tokenizer = CharTokenizer("abcd=")
    max_new_tokens = 5
    def prompts(self, rng, n, split="train"):
        return [self.tokenizer.encode("".join(rng.choice(list("abcd"), 3)) + "=") for _ in range(n)]
    def demonstrations(self, rng, n):
        t = self.tokenizer
        return [(p, t.encode_with_eos(t.decode(p)[:-1][::-1])) for p in self.prompts(rng, n)]
    def reward(self, prompt, completion):
        return float(completion == prompt[2::-1])
    def score(self, rollouts):
        return score_texts(rollouts, self.tokenizer, self.reward)

class Never(Reverse):
    def reward(self, prompt, completion):
        return 0.25

class Half(Reverse):
    def reward(self, prompt, completion):
        return super().reward(prompt, completion) / 2

class Partly(Reverse):
    def reward(self, prompt, completion):
        return sum(a == b for a, b in zip(completion, prompt[2::-1])) / 3

class Short(Reverse):  # no room for a whole answer
    max_new_tokens = 2

class First(Partly):
    max_new_tokens = 1
"""
GENTLER = "lower --learning-rate (or raise --prompts-per-step, or --warmup-steps)"
RASH = "--learning-rate 3e-3 --warmup-steps 0"
# Each with the task, the flags and the number of steps of a run from the warm-started policy, and
# all that it says.
PROVOKED = {
    "a reward that tells nothing apart": (
        ("Never", "", 12),
        "all completions of every prompt earned the same in steps 1 to 10 (mean 0.25), so nothing "
        "is learned: take easier problems (harder ones if this is the best reward), finer rewards, "
        "a warm start, or a larger --group-size",
    ),
    "no room for the answer": (
        ("Short", "", 12),
        "all completions of every prompt earned the same in steps 1 to 10 (mean 0), so nothing is "
        "learned: all were cut off at the length limit, so raise max_new_tokens of the task",
    ),
    "always the same answer": (
        ("Half", "--temperature 0.01", 12),
        "all completions of every prompt earned the same in steps 1 to 10 (mean 0.5), so nothing "
        f"is learned: they are all alike, so raise --temperature, or start again and {GENTLER}",
    ),
    "destroyed by large steps": (
        ("Reverse", f"--prompts-per-step 1 {RASH}", 16),
        r"step \d+: the mean reward fell from [\d.]+ at step \d to 0, and all completions of a "
        f"prompt now earn the same, so nothing more is learned: start again and {GENTLER}",
    ),
    "destroyed between two evaluations": (
        ("Reverse", f"--prompts-per-step 1 {RASH} --eval-every 6 --eval-prompts 60", 8),
        r"greedy accuracy on held-out problems fell from \d+% at step 0 to \d+% at step 6: start "
        f"again and {GENTLER}",
    ),
    "too far in many epochs": (
        ("Partly", "--temperature 2 --inner-epochs 8 --learning-rate 1e-2 --warmup-steps 0", 10),
        r"clipping left out \d\d% of the tokens in steps 1 to 10, as a step moves too far: lower "
        f"--inner-epochs, or {GENTLER}",
    ),
    "far from the reference": (
        ("Reverse", f"--objective grpo_original {RASH}", 15),  # later the reward may have fallen
        r"the KL to the reference was [\d.]+ nats per token in steps 6 to 15, and the reward no "
        f"better for it: raise --objective-option beta=…, or start again and {GENTLER}",
    ),
    "a learning rate far too small": (
        ("Partly", "--temperature 2 --learning-rate 1e-8", 12),
        r"the parameters move by \de-09 of their size per step, too little to learn: raise "
        "--learning-rate",
    ),
    "the learning rate of another optimiser": (
        ("Partly", "--temperature 2 --optimizer sgd", 12),
        r"the parameters move by \de-\d\d of their size per step, too little to learn: raise "
        "--learning-rate",
    ),
    "all are cut off, and the objective masks such": (
        ("First", "--temperature 0.8 --objective dapo", 30),
        r"the gradient was 0 in steps \d+ to \d+, although rewards differ: all were cut off at the "
        "length limit, so raise max_new_tokens of the task (the objective masks such)",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tasks' file, and a policy that mostly reverses three letters."""
    folder = tmp_path_factory.mktemp("signs")
    (folder / "mine.py").write_text(TASK, encoding="utf-8")
    settings = TrainSettings.for_task(f"{folder}/mine.py:Reverse", warm_start_steps=120, steps=0)
    train(settings, folder / "warm", progress=False)
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


def run(task, flags, steps):
    command = f"train --task mine.py:{task} --init warm --steps {steps} --prompts-per-step 4"
    return main(f"{command} {flags}".split())


@pytest.mark.parametrize("what", PROVOKED)
def test_a_provoked_failure_gets_its_sentence_once_and_no_other(what, here, capsys):
    (task, flags, steps), sentence = PROVOKED[what]
    assert run(task, flags, steps) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(said) == 1
    pattern = sentence if "\\d" in sentence else re.escape(sentence)
    for bracket in "()":
        pattern = pattern.replace(bracket, "\\" + bracket) if "\\d" in sentence else pattern
    assert re.fullmatch(f"warning: {pattern}", said[0]), said[0]


@pytest.mark.parametrize("flags", ["", "--inner-epochs 4", "--objective grpo_original"])
def test_a_run_that_learns_is_left_alone(flags, here, capsys):
    assert run("Reverse", flags, 20) == 0
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("stop", [6, 11])
def test_a_resumed_run_remembers(stop, here, tmp_path, capsys):
    """A run that ends on the way: the steps before count, and what was said is not said again."""
    settings = TrainSettings.for_task(
        "mine.py:Never", steps=14, dim=8, prompts_per_step=1, checkpoint_every=stop
    )

    def end(metrics):
        if metrics["step"] == stop + 1:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train(settings, tmp_path / "run", on_step=end)
    before = capsys.readouterr().err.count("warning: ")
    train(settings, tmp_path / "run", resume=True)
    after = capsys.readouterr().err
    assert (before, after.count("warning: ")) == ((0, 1) if stop < 10 else (1, 0))
    assert stop > 10 or "in steps 1 to 10 (mean 0.25)" in after


def test_the_default_settings_leave_a_warm_started_policy_whole(here, capsys):
    """Of a task that recommends nothing."""
    records, shape = [], {"init": "warm", "steps": 12, "eval_every": 12, "eval_prompts": 64}
    train(TrainSettings.for_task("mine.py:Reverse", **shape), on_step=records.append)
    before, after = (r["eval/pass@1_greedy"] for r in records if "eval/pass@1_greedy" in r)
    assert before > 0.5
    assert after > before - 0.1
    assert "warning" not in capsys.readouterr().err


# -- the campaign ----------------------------------------------------------------------------------

OWN = json.loads((HERE.parent / "results/own-tasks.json").read_text(encoding="utf-8"))


def test_untuned_tasks_learn_with_the_defaults():
    rows = [row for row in OWN["own"] if row["arm"] == "defaults"]
    assert len(rows) == 3 and all(len(row["before"]) == 3 for row in rows)
    for row in rows:
        assert all(a > b for a, b in zip(row["after"], row["before"], strict=True))
        assert row["warned"] == 0


def test_healthy_runs_of_the_campaign_are_left_alone():
    runs = {row["task"]: (row["runs"], row["warned"]) for row in OWN["built_in"]}
    assert runs["treewalk"] == (80, 0)
    assert all(n >= 1 and warned == 0 for n, warned in runs.values())


@pytest.mark.parametrize("task", own_tasks.OWN)
def test_a_case_of_the_campaign(task, monkeypatch):
    """A run of an own task is recorded, with what it says."""
    monkeypatch.chdir(HERE)  # and back
    case = {"arm": "defaults", "task": f"tutorials/own_work/{task}", "seed": 0}
    few = {"warm_start_steps": 1, "steps": 10, "eval_every": 10, "eval_prompts": 8}
    record = own_tasks.work(case | few | {"prompts_per_step": 1, "group_size": 4, "dim": 8})
    assert len(record["history"]) == 11 and len(record["said"]) == len(own_tasks.kinds(record))
    row = own_tasks.own_row("defaults", case["task"], [record])
    assert row["warm_start_steps"] == 1 and row["warned"] == bool(row["warnings"][0])


# -- recorded runs of the built-in tasks -----------------------------------------------------------

RECORDED = json.loads((HERE / "recorded_runs.json").read_text(encoding="utf-8"))
SUMS = json.loads((HERE.parent / "results/smollm2-sums.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", RECORDED)
def test_a_healthy_run_of_a_built_in_task_is_left_alone(name):
    columns = RECORDED[name]
    records = [
        {key: values[i] for key, values in columns.items() if values[i] is not None}
        for i in range(len(columns["step"]))
    ]
    assert len(records) >= 30 and records[-1]["step"] == len(records) - ("eval/prompts" in columns)
    assert all_signs(records) == {}


def test_a_healthy_run_of_a_language_model_is_left_alone():
    """The run on two-digit sums that the README tells of."""
    assert all_signs([{"eval/prompts": 100} | metrics for metrics in SUMS["metrics"]]) == {}


# -- histories -------------------------------------------------------------------------------------


def history(rewards, dead=0.0, greedy=(), prompts=200, **more):
    """Metrics as training writes them: rewards per step, dead groups from a step on, greedy
    accuracy every 10 steps.
    """
    dead = np.broadcast_to(dead, len(rewards))
    records = (
        [{"step": 0, "eval/pass@1_greedy": greedy[0], "eval/prompts": prompts}] if greedy else []
    )
    for i, (reward, share) in enumerate(zip(rewards, dead, strict=True), 1):
        records.append({"step": i, "reward": float(reward), "frac_reward_zero_std": float(share)})
        records[-1] |= {"frac_correct": float(reward >= 1)} | more
        if greedy and i % 10 == 0 and i // 10 < len(greedy):
            records[-1] |= {"eval/pass@1_greedy": greedy[i // 10], "eval/prompts": prompts}
    return records


def all_signs(records):
    """All that a run hears that is looked at after every step."""
    watchman, said = Watchman(), {}
    for metrics in records:
        new = watchman.look(metrics)
        assert not set(new) & set(said)
        said |= new
    return said


NOISE = np.random.default_rng(0).normal(size=300)
STUCK = [0.3, 0.5, 0.6, 0.65] + [0.7] * 12
ILL = {
    "all zero from the start": (history(np.zeros(12), 1.0), "nothing to compare", "--group-size"),
    "all the same, not zero": (history(np.full(12, 0.7), 1.0), "nothing to compare", "mean 0.7"),
    "stuck later, not right": (
        history(STUCK, [0] * 4 + [1] * 12, frac_correct=0.0),
        "nothing to compare",
        "in steps 5 to 14 (mean 0.7)",
    ),
    "half of the problems never right": (
        history([0.4] * 5 + [0.5] * 12, [0] * 5 + [1] * 12, frac_correct=0.5),
        "nothing to compare",
        "in steps 6 to 15",
    ),
    "one lucky completion is no reward to fall from": (
        history([0] * 10 + [0.004] + [0] * 20, [1] * 10 + [0.97] + [1] * 20),
        "nothing to compare",
        "in steps 1 to 10",
    ),
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
    "an objective that weighs nothing": (
        history(0.5 + 0.1 * NOISE[:12], grad_norm=0.0),
        "no gradient",
        "take another --objective",
    ),
}
WELL = {
    "learns": history(np.linspace(0.1, 0.9, 60) + 0.05 * NOISE[:60], greedy=(0.3, 0.5, 0.6, 0.8)),
    "stays, with noise": history(0.5 + 0.3 * NOISE),
    "solved: all groups dead at the best reward": history(
        [0.6, 0.8, 0.9] + [1.0] * 40, [0, 0, 0] + [1] * 40
    ),
    "solved by its own measure": history(
        [-9, -5, -3] + [-2] * 40, [0, 0, 0] + [1] * 40, frac_correct=1.0
    ),
    "one prompt a step, mostly solved": history([0.9, 1.0, 0.0] + [1.0] * 12, [0] + [1] * 14),
    "greedy accuracy wavers": history(0.5 + 0.2 * NOISE[:30], greedy=(0.5, 0.42, 0.55), prompts=50),
    "from very good to good": history(0.95 + 0.01 * NOISE[:30], greedy=(0.99, 0.95, 0.97)),
    "far from the reference, and better for it": history(
        np.linspace(0.1, 0.9, 40) + 0.05 * NOISE[:40], kl=1.5
    ),
    "a few dead steps": history(0.2 + 0.1 * NOISE[:40], [0, 1, 1, 1, 1] * 8, grad_norm=0.1),
    "a short run": history([0.5, 0.1, 0.0, 0.0], [0, 0, 1, 1]),
    "no steps": [],
}


@pytest.mark.parametrize("what", ILL)
def test_a_sick_run_is_told(what):
    records, kind, words = ILL[what]
    said = all_signs(records)
    assert list(said) == [kind]
    assert words in said[kind]
    assert "\n" not in said[kind]


@pytest.mark.parametrize("what", WELL)
def test_a_healthy_run_is_left_alone(what):
    assert all_signs(WELL[what]) == {}
