"""Chat models are chat models: conversations in the model's own template, from a task to an export.

tests/test_chat_parity.py compares texts and tokens with transformers, where it is installed.
"""

import json
import sys
import textwrap

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="language models need the extra lm")
pytest.importorskip("safetensors", reason="language models need the extra lm")
pytest.importorskip("gguf", reason="language models need the extra lm")
pytest.importorskip("jinja2", reason="chat templates need the extra lm")
from chat_templates import CONVERSATIONS, TEMPLATES, said
from test_prompts import byte_level, model_for, rollouts_for, sentencepiece
from tiny_language_model import EOS, make, write_gguf

from minigrpo.command.cli import main
from minigrpo.logs.groups import read_groups
from minigrpo.models import load_model, load_tokenizer, save_hugging_face
from minigrpo.models.text_tokenizer import ChatTemplate
from minigrpo.runs.checkpoint import unchecked_state
from minigrpo.runs.policy import load_run
from minigrpo.sampler import sample
from minigrpo.system.files import read_records
from minigrpo.tasks import Tokenised, load_task, sampling_limits
from minigrpo.tasks import text as text_tasks

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def chat(tokenizer, template="chatml", **tokens):
    """A tokenizer with a template."""
    object.__setattr__(tokenizer, "chat", ChatTemplate(TEMPLATES.get(template, template), tokens))
    return tokenizer


class Asked:
    """A task that keeps what its reward is asked."""

    max_new_tokens = 3

    def __init__(self, conversations):
        self.conversations, self.asked = conversations, []

    def messages(self, rng, n, split="train"):
        return (self.conversations * n)[:n]

    def reward(self, prompt, completion):
        self.asked.append((prompt, completion))
        return float(len(completion))


# -- the text --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("chatml", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        ("llama2", "<s>[INST] Hi [/INST]"),
        (
            "llama3.2",
            "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023"
            "\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
            "Hi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        ("gemma", "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"),
        ("zephyr", "<|user|>\nHi</s>\n<|assistant|>\n"),
        ("qwen3", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        ("deepseek-r1", "<s><｜User｜>Hi<｜Assistant｜><think>\n"),
        (
            "smollm3",
            "<|im_start|>system\nToday Date: 26 July 2024\nReasoning Mode: /think\n\n<|im_end|>\n"
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_what_a_template_writes(template, expected):
    """On any day: a template that asks for the date always gets the same."""
    tokenizer = chat(byte_level("</s>", "<s>"), template, **TOKENS)
    for conversation in "Hi", said("Hi"), tuple(said("Hi")):
        ids = tokenizer.encode_chat(conversation)
        assert ids.text == expected and ids.copy().text == expected
        assert tokenizer.core.decode(ids.tolist(), skip_special_tokens=False) == expected
    assert (ids[0] == tokenizer.core.token_to_id("<s>")) == expected.startswith("<s>")
    assert tokenizer.encode("Hi")[0] == tokenizer.core.token_to_id("<s>")  # a text gets its BOS


@pytest.mark.parametrize(
    ("template", "conversation", "message"),
    [
        *[
            ("chatml", it, "for a conversation: give a text, or a list of")
            for it in (
                *(
                    [],
                    {},
                    None,
                    5,
                    b"Hi",
                    np.array(said("Hi")),
                    ["Hi"],
                    [said("Hi")],
                    said("Hi")[0],
                    {"user": "Hi"},
                ),
                *([{"role": "user"}], [{"content": "Hi"}], [{"role": "user", "content": None}]),
                [{"role": "user", "content": ["Hi"]}],
                [{"role": 1, "content": "Hi"}],
                [{"role": "user", "content": "Hi", "name": "me"}],
            )
        ],
        ("llama2", said("a") + said("b"), "roles must alternate user/assistant/user"),
        ("gemma", said("s:Be brief.", "a"), "System role not supported"),
        ("phi3", said("s:Be brief.", "a"), "leaves out message 1 of"),
        ("zephyr", [*said("a"), {"role": "User", "content": "b"}], "leaves out message 2 of"),
        ("chatml", "a\ud800", "holds half a character"),
        (None, "Hi", "has no chat template: give a chat model, or a task that has texts"),
        ("{% for m in messages %}", "Hi", "template is damaged: Unexpected end of template"),
        ("{{ messages[0].content + 1 }}", "Hi", "template fails on"),
        ("{{ messages[0].content.x.y }}", "Hi", "has no attribute 'x'"),
        ("{{ messages.append(1) }}", "Hi", "access to attribute 'append'"),
        ("{{ ''.__class__.__mro__ }}", "Hi", "access to attribute '__class__'"),
        ("{{ cycler.__init__.__globals__.os }}", "Hi", "access to attribute '__init__'"),
        ("{% include 'x' %}", "Hi", "no loader"),
        ("{{ range(10**9) | list }}", "Hi", "Range too big"),
        (
            "{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}",
            "Hi",
            "it writes more than 1,000,000 pieces of text",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "Hi", "recursion"),
        (5, "Hi", "template is damaged"),
        (
            "{{ raise_exception('two\nlines') }}",
            "Hi",
            "template fails on [{'content': 'Hi', 'role'",
        ),
    ],
)
def test_what_cannot_be_rendered(template, conversation, message):
    tokenizer = chat(byte_level("</s>"), template, **TOKENS)
    with pytest.raises(ValueError) as raised:
        tokenizer.encode_chat(conversation)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_what_changes_a_text_is_not_left_out():
    """Though its words do not stand there: a flag in SmolLM3's system message, thoughts in Qwen3's
    earlier answers.
    """
    for template in ("smollm3", "qwen3"):
        for conversation in (CONVERSATIONS["flags"], CONVERSATIONS["thoughts"]):
            chat(byte_level("</s>"), template).encode_chat(conversation)


def test_without_jinja2_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    tokenizer = chat(byte_level("</s>"))
    with pytest.raises(ValueError, match=r'need the package jinja2: pip install "minigrpo\[lm\]"'):
        tokenizer.encode_chat("Hi")
    assert len(tokenizer.encode("Hi"))  # and what is no conversation needs none


# -- a task ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["chatml", "llama2", "deepseek-r1"])
def test_the_reward_gets_the_conversation_that_the_task_gave(template):
    tokenizer = chat(sentencepiece("</s>"), template, **TOKENS)
    conversations = [
        CONVERSATIONS["white space"],
        CONVERSATIONS["unicode"],
        "größer  \n",
        said("A"),
    ]
    task, rng = Tokenised(Asked(conversations), tokenizer), np.random.default_rng(0)
    limits = sampling_limits(task)
    assert limits["eos"] == (tokenizer.eos, None)
    rollouts = sample(model_for(tokenizer), task.prompts(rng, 4), 3, rng, **limits)
    rewards = task.score(rollouts)
    for conversation in conversations:
        assert [len(c) for p, c in task.task.asked if p == conversation]
    assert all(prompt in conversations for prompt, _ in task.task.asked) and len(rewards) == 12


def test_conversations_that_render_alike_stay_apart():
    """Each with its own reward, which may change what it was given, and is asked once per pair."""
    trimmed = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}"
    tokenizer = chat(byte_level("</s>"), trimmed)
    conversations = [said("a"), said("a "), "a", said(" a"), said("a")]
    task = Tokenised(Asked(conversations), tokenizer)

    def reward(prompt, completion):
        task.task.asked.append(completion)
        if isinstance(prompt, list):
            prompt[0]["content"] += "!"
            return {"a!": 1, "a !": 2, " a!": 4}[prompt[0]["content"]]
        return 3

    task.task.reward = reward
    prompts = task.prompts(np.random.default_rng(0), 5)
    assert len({prompt.text.encode() for prompt in prompts}) == 1
    assert len({prompt.text for prompt in prompts}) == 4
    completions = [[tokenizer.encode(text) for text in ("x", "y", "x")]] * 5
    rewards = task.score(rollouts_for(prompts, completions))
    assert rewards.tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 1, 1, 1]
    assert len(task.task.asked) == 8
    assert conversations == [said("a"), said("a "), "a", said(" a"), said("a")]


def test_a_verifier_of_prefixes_gets_the_conversation(here):
    from minigrpo.tasks.process_rewards import process_rewards_of

    task = Tokenised(Asked([said("a"), "b"]), load_tokenizer("model"))
    asked = []
    task.task.score_prefix = lambda prompt, text: asked.append(prompt) or 1.0
    rng = np.random.default_rng(0)
    rollouts = sample(model_for(task.tokenizer), task.prompts(rng, 2), 2, rng, max_new_tokens=3)
    process_rewards_of(task)(rollouts)
    assert said("a") in asked and "b" in asked and all(it in (said("a"), "b") for it in asked)


def test_the_example_in_the_documentation(here):
    """Its rewards are those of the questions that it asked."""
    text = text_tasks.__doc__.split("needs no `stop`:\n\n")[1]
    (here / "even.py").write_text(textwrap.dedent(text))
    task = load_task("even.py:Even", load_tokenizer("model"))
    prompts = task.prompts(np.random.default_rng(0), 20, "test")
    encode = task.tokenizer.encode
    rewards = task.score(rollouts_for(prompts, [[encode("Yes."), encode("no")]] * 20))
    numbers = [int(prompt.text.asked[1]["content"].split()[1]) for prompt in prompts]
    assert rewards.tolist() == [r for n in numbers for r in ((0, 1) if n % 2 else (1, 0))]
    assert min(numbers) >= 100 and prompts[0].text.count("<|im_start|>") == 3


def test_rows_of_a_table_as_a_chat(here, capsys):
    """A task of a CSV file with chat=true trains, warm start and all, and exports."""
    (here / "capitals.csv").write_text(
        "country,capital,split\nPeru,Lima,train\nFrance,Paris,train\nItaly,Rome,test\n"
    )
    options = ["file=capitals.csv", "prompt=The capital of {country}?", "answer=capital"]
    options += ["chat=true", "split=split", "system=One word.", "max_new_tokens=4"]
    small = "--steps 1 --group-size 3 --prompts-per-step 2 --log-samples-every 1 --eval-every 1"
    small += " --eval-prompts 1 --warm-start-steps 1 --warm-start-batch 2"
    named = [word for option in options for word in ("--task-option", option)]
    flags = ["--model", "model", "--task", "rows", *named, *small.split(), "--out", "run"]
    assert main(["train", *flags]) == 0
    records = read_records("run/samples.jsonl")
    asked = [said("s:One word.", f"The capital of {it}?") for it in ("Peru", "France")]
    assert len(records) == 6 and all(record["prompt"] in asked for record in records)
    task = load_run("run")[1]
    ((prompt, answer),) = task.demonstrations(np.random.default_rng(0), 1)
    assert prompt.text.asked in asked and answer[-1] == task.tokenizer.eos
    assert task.tokenizer.decode(answer) in ("Lima", "Paris")
    right = task.tokenizer.encode(task.tokenizer.decode(answer) + ".")
    assert task.score(rollouts_for([prompt], [[answer, right]]))[0] == 1
    assert main(["evaluate", "run", "--prompts", "1"]) == 0


@pytest.mark.parametrize(
    ("template", "ends", "end"),
    [
        ("chatml", ["<|endoftext|>", "<|im_end|>"], "<|im_end|>"),
        ("chatml", ["<|im_end|>", "<|endoftext|>"], "<|im_end|>"),
        ("chatml", ["</s>"], "</s>"),  # a base model's own end
        ("llama2", ["<|endoftext|>", "</s>"], "</s>"),
        ("llama3", ["<|endoftext|>", "<|eot_id|>"], "<|eot_id|>"),
        ("deepseek-r1", ["</s>", "<｜end▁of▁sentence｜>"], "<｜end▁of▁sentence｜>"),
    ],
)
@pytest.mark.parametrize("stop", [None, "\n"])
def test_demonstrations_end_as_the_template_ends_an_answer(template, ends, end, stop):
    tokenizer = byte_level("</s>", "<s>")
    ids = [tokenizer.core.token_to_id(token) for token in ends]
    tokenizer = chat(tokenizer.ended_by(ids), template, **TOKENS)
    task = Tokenised(Asked(["q"]), tokenizer)
    conversation = said("Is 3 > 2?")
    task.task.stop = stop
    task.task.demonstrations = lambda rng, n: [(conversation, "yes"), ("q", "no")][:n]
    for (prompt, answer), (asked, text) in zip(
        task.demonstrations(np.random.default_rng(0), 2),
        ((conversation, "yes"), ("q", "no")),
        strict=True,
    ):
        assert prompt.tolist() == tokenizer.encode_chat(asked).tolist()
        whole = tokenizer.core.decode(answer.tolist(), skip_special_tokens=False)
        assert whole == text + (end if stop is None else stop)
    with pytest.raises(
        ValueError, match="demonstrations of the task gave 5 where a text is wanted"
    ):
        task.task.demonstrations = lambda rng, n: [("q", 5)] * n
        task.demonstrations(np.random.default_rng(0), 1)


TASK = """
import copy
NAMES = ["Ann", "Bob"]
class Greet:
    max_new_tokens = 3
    defaults = {"steps": 4}
    def messages(self, rng, n, split="train"):
        rule = {"role": "system", "content": "Be brief."}
        return [[rule, {"role": "user", "content": f"Greet {NAMES[i]}."}]
                for i in rng.integers(2, size=n)]
    def reward(self, prompt, completion):
        if isinstance(prompt, list):
            assert [m["role"] for m in prompt] == ["system", "user"], prompt
        return len(set(completion)) / 9
    def demonstrations(self, rng, n):
        return [(conversation, "Hi") for conversation in self.messages(rng, n)]
class Seeded(Greet):
    def for_run(self, seed):
        other = copy.copy(self)
        other.max_new_tokens = 2
        return other
class Texts(Greet):
    messages, stop = None, None
    def texts(self, rng, n, split="train"): return ["a"] * n
class Both(Greet):
    def texts(self, rng, n, split="train"): return ["a"] * n
class NoReward:
    max_new_tokens = 3
    def messages(self, rng, n, split="train"): return ["a"] * n
class TwoArguments(Greet):
    def messages(self, rng, n): return ["a"] * n
class One(Greet):
    def messages(self, rng, n, split="train"): return [{"role": "user", "content": "a"}] * n
class Fails(Greet):
    def messages(self, rng, n, split="train"): return [{}["x"]]
class Stops(Greet):
    stop = ""
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a model of ChatML, two of whose ids end a completion, and tasks."""
    monkeypatch.chdir(tmp_path)
    tokenizer = byte_level("<|im_end|>")
    ids = [tokenizer.core.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>")]
    tokenizer = chat(tokenizer.ended_by(ids), eos_token="<|im_end|>", pad_token="</s>")
    save_hugging_face(model_for(tokenizer), tokenizer, tmp_path / "model")
    (tmp_path / "my.py").write_text(TASK)
    return tmp_path


def test_a_run_trains_resumes_evaluates_samples_and_exports(here, capsys, monkeypatch):
    small = "--steps 4 --checkpoint-every 2 --group-size 3 --prompts-per-step 3 --eval-every 2"
    small += " --eval-prompts 3 --log-samples-every 1 --warm-start-steps 2 --warm-start-batch 2"
    train = ["train", "--model", "model", "--task", "my.py:Greet", "--out", "run", *small.split()]
    assert main(train) == 0
    (here / "model").rename(here / "elsewhere")  # a run holds what it needs
    (here / "run/checkpoint-000004.mgc").unlink()
    whole = read_records("run/samples.jsonl")
    assert main(["train", "--resume", "run"]) == 0
    assert read_records("run/samples.jsonl") == whole
    groups = read_groups((here / "run/samples.jsonl").read_text(encoding="utf-8"))
    assert len(groups) == 12 and {len(group.sequences) for group in groups} == {3}
    assert {group.prompt for group in groups} == {"Be brief.\nGreet Ann.", "Be brief.\nGreet Bob."}
    assert all(record["prompt"][0] == said("s:Be brief.")[0] for record in whole)
    assert main(["evaluate", "run", "--prompts", "4", "--samples", "2"]) == 0
    capsys.readouterr()
    assert main(["sample", "run", "--group-size", "2", "--prompt", "Greet Eve."]) == 0
    assert capsys.readouterr().out.startswith("prompt   Greet Eve.\n")
    assert main(["tree", "run/samples.jsonl"]) == 0
    assert main(["export", "run", "--out", "hf"]) == 0
    model, tokenizer = load_model("hf")
    assert tokenizer.chat == load_tokenizer("elsewhere").chat == load_run("run")[1].tokenizer.chat
    assert tokenizer.ends == load_tokenizer("elsewhere").ends and len(tokenizer.ends) == 2
    assert json.loads((here / "hf/generation_config.json").read_text()) == {
        "eos_token_id": tokenizer.ends
    }
    np.testing.assert_array_equal(model.parameters.flat, load_run("run")[0].parameters.flat)


def test_a_runs_template_is_vouched_for_and_an_older_run_has_none(here, monkeypatch):
    from minigrpo.runs import policy

    flags = "--steps 1 --group-size 2 --prompts-per-step 1 --log-samples-every 1"
    flags += " --model model --task my.py:Greet --out run"
    assert main(["train", *flags.split()]) == 0
    state = unchecked_state(here / "run/checkpoint-000001.mgc")
    assert state["chat"] == [TEMPLATES["chatml"], {"eos_token": "<|im_end|>", "pad_token": "</s>"}]
    (here / "run/chat_template.jinja").write_text("{{ 'of another' }}")  # is no part of the run
    assert load_run("run")[1].tokenizer.chat.source == TEMPLATES["chatml"]
    load = policy.load_run_checkpoint

    def older(path):
        arrays, found = load(path)
        return arrays, {key: value for key, value in found.items() if key != "chat"}

    monkeypatch.setattr(policy, "load_run_checkpoint", older)
    _, task, _ = load_run("run")
    with pytest.raises(ValueError, match="the model has no chat template"):
        task.prompts(np.random.default_rng(0), 1)


def test_for_run_defaults_and_a_task_of_texts_beside(here):
    tokenizer = load_tokenizer("model")
    for name in ("Greet", "Seeded", "Texts"):
        task = load_task(f"my.py:{name}", tokenizer)
        assert task.defaults == {"steps": 4}
        assert len(task.prompts(np.random.default_rng(0), 2)[0]) == (1 if name == "Texts" else 48)
    assert load_task("my.py:Seeded", tokenizer).for_run(3).max_new_tokens == 2
    assert load_task("my.py:Seeded", tokenizer).for_run(3).prompts(np.random.default_rng(0), 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model model --task my.py:Both", "has both texts and messages: leave one of them out"),
        ("--task my.py:Greet", "is made of text, for a language model: give one"),
        ("--model model --task my.py:NoReward", "needs max_new_tokens, messages and reward"),
        ("--model model --task my.py:TwoArguments", "cannot be called with 3 arguments"),
        ("--model model --task my.py:One", "for a conversation: give a text, or a list of"),
        ("--model model --task my.py:Fails", "in messages: def messages"),
        ("--model model --task my.py:Stops", "stop is ''"),
        ("--model plain --task my.py:Greet", "the model has no chat template: give a chat model"),
    ],
)
def test_bad_tasks_are_told_in_one_line(arguments, message, here, capsys):
    tokenizer = byte_level("</s>")
    save_hugging_face(model_for(tokenizer), tokenizer, here / "plain")
    assert main(["train", *arguments.split(), "--steps", "1"]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1, told


def test_sample_with_a_users_message(here, capsys):
    few = ["--max-new-tokens", "3", "--group-size", "1"]
    outputs = []
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    for flags in (["--chat", "Hi"], ["Hi", "--chat"], ["--chat", "--prompt", "Hi"], [text]):
        assert main(["sample", "--model", "model", *flags, *few]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0].startswith(f"prompt         {text!r}\n")
    assert {out.removeprefix(f"prompt         {text!r}\n") for out in outputs} == {outputs[-1]}
    for flags in (["--model", "model", "--task", "my.py:Greet", "--chat"], ["run", "--chat"]):
        assert main(["sample", *flags]) == 2
        assert "--chat goes with --model alone" in capsys.readouterr().err


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [
        (1, None, [1]),
        (1, {}, [1]),
        (1, {"eos_token_id": None}, [1]),
        (1, {"eos_token_id": 1}, [1]),
        (1, {"eos_token_id": 4}, [1, 4]),
        (1, {"eos_token_id": [4, 1, 5]}, [1, 4, 5]),
        ([3, 1], {"eos_token_id": [1, 4]}, [3, 1, 4]),
        (None, {"eos_token_id": [4]}, [4]),
        ("absent", {"eos_token_id": 4}, [4]),  # then LlamaConfig's 2 is no one's choice
        ("absent", {}, [2]),
    ],
)
def test_every_id_that_ends_a_completion(config, generation, ends, here):
    file = here / "model/config.json"
    about = json.loads(file.read_text()) | {"eos_token_id": config}
    if config == "absent":
        del about["eos_token_id"]
    file.write_text(json.dumps(about))
    (here / "model/generation_config.json").unlink()
    if generation is not None:
        (here / "model/generation_config.json").write_text(json.dumps(generation))
    tokenizer = load_tokenizer("model")
    assert tokenizer.ends == ends and tokenizer.eos == ends[0]
    assert tokenizer.decode([9, ends[-1], 9]) == tokenizer.decode([9])


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("generation_config.json", "{", "generation_config.json is not JSON that can be read"),
        ("generation_config.json", "[]", "generation_config.json should hold a JSON object"),
        ("generation_config.json", '{"eos_token_id": "x"}', "EOS [257, 268, 'x']"),
        ("generation_config.json", '{"eos_token_id": [[2]]}', "tokens and EOS"),
        ("generation_config.json", '{"eos_token_id": 10000}', "tokens and EOS"),
        ("generation_config.json", '{"eos_token_id": true}', "tokens and EOS"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not JSON that can be read"),
        ("tokenizer_config.json", '{"chat_template": [5]}', "or a damaged chat template"),
        ("tokenizer_config.json", '{"bos_token": {"x": 1}}', "holds damaged special tokens"),
        ("chat_template.jinja", b"\xff\xfe", "or a damaged chat template"),
    ],
)
def test_damaged_files_are_told_in_one_line(file, text, message, here, capsys):
    (here / "model" / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["sample", "--model", "model", "--chat", "Hi"]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1, told


def test_where_a_folders_template_stands(here):
    """chat_template.jinja, then tokenizer_config.json: a text, or the default of several."""
    file, about = here / "model/tokenizer_config.json", {"bos_token": {"content": "<s>"}}
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "one"}]
    for found, expected in (("a text", "a text"), (named, "one"), (named[:1], None), (None, None)):
        file.write_text(json.dumps(about | {"chat_template": found}))
        assert load_tokenizer("model").chat == ChatTemplate(expected, {"bos_token": "<s>"})
    (here / "model/chat_template.jinja").write_text("größer", encoding="utf-8")
    assert load_tokenizer("model").chat.source == "größer"
    file.unlink()
    assert load_tokenizer("model").chat == ChatTemplate("größer", {})


@pytest.mark.parametrize("beside", [False, True])
def test_a_gguf_files_template_and_ends(beside, tmp_path):
    model, tokenizer = make()
    header = {"tokenizer.chat_template": TEMPLATES["chatml"], "tokenizer.ggml.eot_token_id": 7}
    header |= {"tokenizer.ggml.eom_token_id": 9, "tokenizer.ggml.bos_token_id": 3}
    path = write_gguf(tmp_path / "m.gguf", model, metadata=header)
    if beside:
        (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    found = load_tokenizer(path)
    assert found.ends == [EOS, 7, 9]
    assert found.chat.source == TEMPLATES["chatml"]
    assert found.chat.tokens["eos_token"] == "<end>"
    assert found.chat.tokens["bos_token"] == tokenizer.core.id_to_token(3)
    for key, value in (("eot", 300), ("eom", "x"), ("eot", True), ("eot", [5])):
        bad = header | {f"tokenizer.ggml.{key}_token_id": value}
        with pytest.raises(ValueError, match="names special tokens that it has not: EOT and EOM"):
            load_tokenizer(write_gguf(path, model, metadata=bad))
    same = {"tokenizer.ggml.eot_token_id": EOS, "tokenizer.ggml.padding_token_id": 9999}
    assert load_tokenizer(write_gguf(path, model, metadata=same)).ends == [EOS]
