"""Training, evaluating, sampling and exporting a pretrained language model, on one of a few
thousand weights.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="language models need the extra lm")
pytest.importorskip("tokenizers", reason="language models need the extra lm")
pytest.importorskip("gguf", reason="language models need the extra lm")
from tiny_language_model import EOS, make

from minigrpo.command.cli import main
from minigrpo.models import load_model, save_hugging_face
from minigrpo.runs.checkpoint import checkpoints, load_checkpoint
from minigrpo.runs.folder import read_metrics
from minigrpo.runs.policy import load_run
from minigrpo.runs.settings import TrainSettings
from minigrpo.sampler import sample
from minigrpo.system.files import read_records
from minigrpo.tasks import Tokenised, find_task, load_task
from minigrpo.tasks.sums import Sums

SMALL = "--steps 4 --checkpoint-every 2 --group-size 4 --prompts-per-step 2"
SMALL += " --learning-rate 1e-3 --eval-every 4 --eval-prompts 4"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose first tokens are often digits, so that rewards can differ."""
    return save_hugging_face(*make(max_seq_len=400), tmp_path_factory.mktemp("model") / "m")


def train(model_folder: Path, out: Path, *more: str) -> int:
    return main(
        [
            "train",
            "--model",
            str(model_folder),
            "--task",
            f"{TASK}:Spaces",
            *SMALL.split(),
            *more,
            "--out",
            str(out),
        ]
    )


TASK = Path(__file__).parent / "text_task.py"


# -- text tasks ------------------------------------------------------------------------------------


def test_sums() -> None:
    task, rng = Sums(low=10, high=49), np.random.default_rng(0)
    train_texts, test_texts = task.texts(rng, 500), task.texts(rng, 50, "test")
    preambles = {text.rsplit("\n", 1)[0] for text in train_texts + test_texts}
    assert len(preambles) == 1 and preambles.pop().count("=") == 6
    for line in (train_texts[0].split("\n"))[:-1]:
        a, plus, b, equals, answer = line.split()
        assert (plus, equals, int(answer)) == ("+", "=", int(a) + int(b))
    assert task.reward("1 + 1 = 2\n23 + 45 =", " 68") == task.reward("23 + 45 =", "68 ") == 1
    assert [
        task.reward("23 + 45 =", text) for text in ("", " 67", " 068", " 6 8", " 68.", " 68 68")
    ] == [0] * 6
    assert task.max_new_tokens == len(" ") + len("98") + 2


@pytest.mark.parametrize("name", ["sums", "largest"])
def test_train_and_test_problems_are_disjoint_whatever_the_order(name: str) -> None:
    task, rng = find_task(name, high=19), np.random.default_rng(1)

    def problems(split: str, n: int) -> set:
        return {
            tuple(sorted(re.findall(r"\d+", text.rsplit("\n", 1)[-1])))
            for text in task.texts(rng, n, split)
        }

    seen, held_out = problems("train", 3000), problems("test", 30)
    assert not seen & held_out and len(held_out) > 2


def test_largest() -> None:
    task = find_task("largest")
    text = task.texts(np.random.default_rng(0), 1)[0]
    for line in text.split("\n")[:-1]:
        numbers, answer = line.removeprefix("numbers: ").split("; largest: ")
        assert int(answer) == max(map(int, numbers.split(", ")))
    assert task.reward("numbers: 9, 80, 7; largest:", " 80") == 1
    assert [task.reward("numbers: 9, 80, 7; largest:", t) for t in (" 9", " 8", "", " 80 7")] == [
        0
    ] * 4


def test_a_task_and_a_model_must_fit() -> None:
    tokenizer = make()[1]
    told = "task 'sums' is made of text, for a language model: give one, such as --model smollm2"
    with pytest.raises(ValueError, match=told):
        load_task("sums")
    with pytest.raises(
        ValueError,
        match="task 'treewalk' has tokens of its own, not a language model's: leave out --model",
    ):
        load_task("treewalk", tokenizer)
    assert isinstance(load_task("sums", tokenizer, high=20), Tokenised)
    for options, message in (
        ({"low": -1}, "low is -1"),
        ({"high": 5}, "high is 5"),
        ({"test_share": 2}, "test_share is 2"),
    ):
        with pytest.raises(ValueError, match=message):
            load_task("sums", tokenizer, **options)


def talkative() -> tuple:
    """A model that draws a few pieces often, among them the stop strings of the tests."""
    model, tokenizer = make()
    embedding = model.parameters["model.embed_tokens.weight"]
    embedding *= 0.2  # towards uniform
    embedding[
        sorted(
            {
                t
                for piece in ("+", " +", "a", "b", "ab", "abc")
                for t in tokenizer.encode(piece).tolist()
            }
        )
    ] *= 30
    return model, tokenizer


def test_completions_are_judged_up_to_the_stop_string() -> None:
    model, tokenizer = talkative()
    seen = []

    class Judge:
        stop, max_new_tokens = "+", 12

        def texts(self, rng: np.random.Generator, n: int, split: str = "train") -> list[str]:
            return ["abc"] * n

        def reward(self, prompt: str, completion: str) -> float:
            seen.append(completion)
            return float(len(completion))

    task, rng = Tokenised(Judge(), tokenizer), np.random.default_rng(0)
    rollouts = sample(model, task.prompts(rng, 2), 64, rng, max_new_tokens=12, eos=task.stop)
    texts = [tokenizer.decode(c) for group in rollouts.completions for c in group]
    task.score(rollouts)
    assert any("+" in text for text in texts) and not any("+" in text for text in seen)
    assert {text.split("+")[0] for text in texts} == set(seen)


# -- stop strings in the sampler -------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["+", "ab"])
def test_sampling_ends_at_the_stop_string_and_draws_the_same_tokens(stop: str) -> None:
    """Against the same draw without it, cut by hand at the first token that completes the string;
    some span two tokens.
    """
    model, tokenizer = talkative()
    prompt, ends = [tokenizer.encode("x")], (EOS, tokenizer.stops_at(stop))
    free, held = (
        sample(model, prompt, 200, np.random.default_rng(3), max_new_tokens=24, eos=eos)
        for eos in (EOS, ends)
    )
    ended = 0
    for i, (a, b) in enumerate(zip(free.completions[0], held.completions[0], strict=True)):
        ends = [
            t
            for t in range(1, len(a) + 1)
            if stop in tokenizer.core.decode(a[:t].tolist(), skip_special_tokens=False)
        ]
        length = ends[0] if ends else len(a)
        np.testing.assert_array_equal(b, a[:length])
        assert held.truncated[i] == (not ends and a[-1] != EOS)
        ended += bool(ends)
    assert 10 < ended < 200


@pytest.mark.parametrize("stop", ["é", "a +", "\n\n", "aé"])
def test_the_rule_fires_with_the_token_that_completes_the_string(stop: str) -> None:
    """Also when a character is spread over two tokens, and when a token goes beyond the string."""
    _, tokenizer = make()
    pieces = np.unique(
        np.concatenate(
            [tokenizer.encode(text) for text in ("é", " +", "a", "ab", "\n\n", "\n", "+", " ", "b")]
        )
    )
    rng, rule, fired = np.random.default_rng(0), tokenizer.stops_at(stop), 0
    for tokens in rng.choice(pieces, (300, 20)):
        first = next((t for t in range(1, 21) if stop in tokenizer.decode(tokens[:t])), None)
        found = next((t for t in range(1, 21) if rule(tokens[None, :t])[0]), None)
        assert found == first
        fired += found is not None
    assert fired > 5


def test_the_tokenizer() -> None:
    _, tokenizer = make()
    assert tokenizer.decode([*tokenizer.encode("abc"), EOS, *tokenizer.encode("rest")]) == "abc"
    with pytest.raises(ValueError, match="do not fit a vocabulary of 288"):
        tokenizer.decode([999])
    assert tokenizer.encode("").shape == (0,)


# -- runs ------------------------------------------------------------------------------------------


def test_a_run_that_is_cut_off_and_resumed_ends_in_the_same_bits(
    model_folder: Path, tmp_path: Path
) -> None:
    assert train(model_folder, tmp_path / "whole") == 0
    assert train(model_folder, tmp_path / "cut") == 0
    checkpoints(tmp_path / "cut")[-1].unlink()  # as if killed after step 2
    assert main(["train", "--resume", str(tmp_path / "cut")]) == 0
    (whole, state), (resumed, state_of_resumed) = (
        load_checkpoint(checkpoints(tmp_path / n)[-1]) for n in ("whole", "cut")
    )
    for each in (state, state_of_resumed):
        each["records"].pop("metrics.jsonl")  # of which the times are a part
    assert state == state_of_resumed and set(whole) == set(resumed)
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name])
    start, _ = load_model(model_folder)
    assert np.abs(whole["parameters"] - start.parameters.flat).max() > 1e-4
    assert len(read_metrics(tmp_path / "cut")) == 4


def test_a_run_needs_the_first_model_no_more(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    moved = save_hugging_face(*load_model(model_folder), tmp_path / "moved")
    assert train(moved, tmp_path / "run") == 0
    for file in moved.iterdir():
        file.unlink()
    model, task, _ = load_run(tmp_path / "run")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--prompts", "5"]) == 0
    assert "eval/pass@1_greedy" in capsys.readouterr().out
    assert main(["sample", str(tmp_path / "run"), "--prompt", "abc", "--group-size", "3"]) == 0
    assert "abc" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "export")]) == 0
    exported, tokenizer = load_model(tmp_path / "export")
    np.testing.assert_array_equal(exported.parameters.flat, model.parameters.flat)
    assert tokenizer.encode("abc").tolist() == task.tokenizer.encode("abc").tolist()
    checkpoints(tmp_path / "run")[-1].unlink()
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0


def test_samples_are_texts(model_folder: Path, tmp_path: Path) -> None:
    train(model_folder, tmp_path / "run", "--log-samples-every", "1")
    records = read_records(tmp_path / "run" / "samples.jsonl")
    assert len(records) == 4 * 8 and all(
        isinstance(r["completion"], str) and r["prompt"].startswith("ab") for r in records
    )
    assert (
        json.loads((tmp_path / "run" / "settings.json").read_text())["micro_batch_tokens"]
        == TrainSettings.micro_batch_tokens
    )


def test_sampling_and_evaluating_without_a_run(
    model_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    assert (
        main(
            [
                "sample",
                "--model",
                str(model_folder),
                "abc",
                "--group-size",
                "3",
                "--max-new-tokens",
                "5",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert out.count("log p") == 3 and "distinct prefixes" in out
    assert (
        main(["sample", "--model", str(model_folder), "--task", "largest", "--group-size", "3"])
        == 0
    )
    assert (
        main(["evaluate", "--model", str(model_folder), "--task", "largest", "--prompts", "3"]) == 0
    )
    capsys.readouterr()
    for arguments, message in (
        (["sample", "--model", str(model_folder)], "give the text to go on from"),
        (["evaluate"], "give either the folder of a run or a pretrained model with --model"),
        (
            ["evaluate", "--model", str(model_folder)],
            "a pretrained model needs a task: give --task sums",
        ),
        (["train", "--task", "sums"], "task 'sums' is made of text"),
        (
            ["train", "--task", "treewalk", "--model", str(model_folder)],
            "task 'treewalk' has tokens of its own",
        ),
        (["train", "--task", "sums", "--model", "nowhere"], "there is no model 'nowhere'"),
        (
            ["train", "--task", "sums", "--model", str(model_folder), "--memory-limit", "0.1"],
            "raise memory_limit (it is 0.1 GB)",
        ),
        (["pull", "gpt5"], "there is no model 'gpt5' to pull: choose smollm2"),
    ):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
