"""Prompts are what the task wrote:
the reward, the logs and the drawings get its own text, never one decoded from token ids.
"""

import json

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="language models need the extra lm")
pytest.importorskip("safetensors", reason="language models need the extra lm")
import tokenizers

from minigrpo import Transformer, TransformerConfig
from minigrpo.command.cli import main
from minigrpo.logs.groups import read_groups
from minigrpo.models import save_hugging_face
from minigrpo.models.text_tokenizer import TextTokenizer
from minigrpo.runs.policy import warm_start
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import sample_records, train
from minigrpo.sampler import sample
from minigrpo.system.files import read_records
from minigrpo.tasks import CharTokenizer, Tokenised, prompt_text, sampling_limits, score_texts
from minigrpo.tree import Rollouts

QUESTION = "Zwei  Fragen: größer, 大きい, 🙂?\n\tIs 3 > 2 "  # two spaces, a tab, a space at the end
TEMPLATES = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{q}<|im_end|>\n"
    "<|im_start|>assistant\nno<|im_end|>\n"
    "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n",
    "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n{q} [/INST] no "
    "</s><s>[INST] Sure? [/INST]",
    "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{q}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nno<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] {q} [/INST] no</s>[INST] Sure? [/INST]",
    "gemma": "<bos><start_of_turn>user\n{q}<end_of_turn>\n<start_of_turn>model\nno<end_of_turn>\n"
    "<start_of_turn>model\n",
    "phi": "<|user|>\n{q}<|end|>\n<|assistant|>\nno<|end|>\n<|endoftext|><|assistant|>\n",
    "zephyr": "<|system|>\nBe brief.</s>\n<|user|>\n{q}</s>\n<|assistant|>\n",
    "alpaca": "### Instruction:\n{q}\n\n### Response:\nno</s>\n\n"
    "### Instruction:\nSure?\n\n### Response:\n",
    "vicuna": "A chat. USER: {q} ASSISTANT: no</s>USER: Sure? ASSISTANT:",
    "deepseek": "<｜begin▁of▁sentence｜><｜User｜>{q}<｜Assistant｜>no<｜end▁of▁sentence｜>"
    "<｜User｜>Sure?<｜Assistant｜>",
}
ENDS = {  # what ends a completion under each template
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "phi": "<|end|>",
    "deepseek": "<｜end▁of▁sentence｜>",
}
SPECIAL = [
    *ENDS.values(),
    "<s>",
    "</s>",
    "<|im_start|>",
    "<bos>",
    "<｜begin▁of▁sentence｜>",
    "<|begin_of_text|>",
    "<|endoftext|>",
]


def bos_first(bos, ids):
    return tokenizers.processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, ids[bos])]
    )


def byte_level(eos, bos=None):
    """As GPT-2 and Llama 3 have it."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    ids = {token: i for i, token in enumerate([*alphabet, "Ġa", *SPECIAL])}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(ids, [("Ġ", "a")]))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    core.add_special_tokens(
        [tokenizers.AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    )
    if bos:
        core.post_processor = bos_first(bos, ids)
    return TextTokenizer(core, len(ids), ids[eos])


def sentencepiece(eos, bos="<s>", normaliser=None):
    """As Llama 2 has it: a space before the first word, which the decoder drops;
    bytes for what is no piece.
    """
    pieces = [
        "▁",
        *"0123456789abcdefghijklmnopqrstuvwxyzABIRSUE?:.[]/#<>\n",
        "▁3",
        "▁30",
        "no",
        "▁no",
        "30",
    ]
    ids = {
        token: i
        for i, token in enumerate([*SPECIAL, *(f"<0x{b:02X}>" for b in range(256)), *pieces])
    }
    merges = [("▁", "3"), ("3", "0"), ("▁3", "0"), ("n", "o"), ("▁", "no")]
    core = tokenizers.Tokenizer(
        tokenizers.models.BPE(ids, merges, byte_fallback=True, fuse_unk=True)
    )
    steps = [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    core.normalizer = tokenizers.normalizers.Sequence(
        [*([normaliser] if normaliser else []), *steps]
    )
    back = [
        tokenizers.decoders.Replace("▁", " "),
        tokenizers.decoders.ByteFallback(),
        tokenizers.decoders.Fuse(),
    ]
    core.decoder = tokenizers.decoders.Sequence([*back, tokenizers.decoders.Strip(" ", 1, 0)])
    core.add_special_tokens(
        [tokenizers.AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    )
    core.post_processor = bos_first(bos, ids)
    return TextTokenizer(core, len(ids), ids[eos])


def metaspace(eos):
    """As T5 and newer Llama conversions have it: the space is made by the pre-tokenizer; no BOS."""
    pieces = [(token, 0.0) for token in SPECIAL] + [("<unk>", 0.0), ("▁", -2.0)]
    pieces += (
        [(chr(c), -5.0) for c in range(33, 127)] + [(c, -5.0) for c in "\nöß🙂"] + [("▁no", -1.0)]
    )
    core = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=len(SPECIAL)))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = tokenizers.decoders.Metaspace(prepend_scheme="first")
    core.add_special_tokens(
        [tokenizers.AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    )
    return TextTokenizer(core, len(pieces), SPECIAL.index(eos))


LOSSY = tokenizers.normalizers.Sequence(
    [
        tokenizers.normalizers.Lowercase(),
        tokenizers.normalizers.Replace(tokenizers.Regex(" +"), " "),
    ]
)
MAKERS = {
    "byte level": byte_level,
    "BOS is EOS": lambda eos: byte_level(eos, eos),
    "sentencepiece": sentencepiece,
    "sentencepiece, BOS is EOS": lambda eos: sentencepiece(eos, eos),
    "metaspace": metaspace,
    "lossy": lambda eos: sentencepiece(eos, normaliser=LOSSY),
}


class Chat:
    """A task that keeps what its reward is asked."""

    max_new_tokens = 3

    def __init__(self, texts, stop=None):
        self.asked, self._texts, self.stop = [], texts, stop

    def texts(self, rng, n, split="train"):
        return (self._texts * n)[:n]

    def reward(self, prompt, completion):
        self.asked.append((prompt, completion))
        return float(len(completion))


def model_for(tokenizer, seed=0):
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size, dim=8, n_layers=1, n_heads=2, max_seq_len=700
    )
    return Transformer(config, seed=seed)


def rollouts_for(prompts, completions):
    """What the sampler would return, as far as a task's score looks at it."""
    none = np.zeros(0)
    return Rollouts(prompts, completions, None, none, none, none, 1.0, 9)


# -- the prompt ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_reward_and_records_get_the_tasks_own_text(template, kind):
    tokenizer = MAKERS[kind](ENDS.get(template, "</s>"))
    texts = [
        TEMPLATES[template].format(q=q)
        for q in (QUESTION, QUESTION.upper(), QUESTION.replace("  ", " "), "A", "a")
    ]
    task = Tokenised(Chat(texts), tokenizer)
    rng = np.random.default_rng(0)
    rollouts = sample(model_for(tokenizer), task.prompts(rng, 5), 3, rng, **sampling_limits(task))
    rewards = task.score(rollouts)
    assert len({text for text, _ in task.task.asked}) == len(set(texts)) == 5
    records = sample_records(rollouts, rewards, task, 1)
    assert [record["prompt"] for record in records] == [text for text in texts for _ in range(3)]
    assert [record["group"] for record in records] == [g for g in range(5) for _ in range(3)]
    assert rewards.tolist() == [len(record["completion"]) for record in records]


def test_texts_that_tokenise_alike_are_told_apart():
    tokenizer = MAKERS["lossy"]("</s>")
    texts = ["Say NO", "say no", "say  no"]
    assert len({tuple(tokenizer.encode(text).tolist()) for text in texts}) == 1
    task = Tokenised(Chat(texts), tokenizer)
    task.task.reward = lambda prompt, completion: texts.index(prompt)
    rng = np.random.default_rng(0)
    rollouts = sample(model_for(tokenizer), task.prompts(rng, 6), 2, rng, max_new_tokens=2)
    assert task.score(rollouts).tolist() == [0, 0, 1, 1, 2, 2] * 2


def test_ids_remember_their_text_as_long_as_they_are_whole():
    ids = byte_level("</s>", "<s>").encode("ab c")
    assert ids.copy().text == ids.text == "ab c"
    assert (
        ids[1:].text is None
        and ids[::-1].text is None
        and (ids + 1).text is None
        and getattr(np.append(ids, 1), "text", None) is None
    )
    assert ids.dtype == np.int64 and ids.tolist() == np.asarray(ids).tolist()


@pytest.mark.parametrize("text", ["<s>Hi", "<s>", "Hi", "", "Hi<s>", "<s><s>Hi"])
def test_a_text_that_brings_its_bos_gets_no_second_one(text):
    tokenizer = byte_level("</s>", "<s>")
    bos = tokenizer.core.token_to_id("<s>")
    ids = tokenizer.encode(text).tolist()
    assert ids.count(bos) == max(text.count("<s>"), 1) + (text == "Hi<s>")
    assert ids[0] == bos


def test_prompts_given_as_ids_show_eos_and_go_on():
    """A tokenizer of characters has no character for EOS, which few-shot prompts may hold."""
    tokenizer = CharTokenizer("ab=")
    prompts = [np.array(ids) for ids in ([0, 2, 1, 3, 1, 2], [0, 2, 1], [3, 0], [0, 3], [3, 3])]
    asked = []
    rollouts = rollouts_for(prompts, [[np.array([1, 3])]] * len(prompts))
    score_texts(
        rollouts, tokenizer, lambda prompt, completion: asked.append((prompt, completion)) or 0.0
    )
    assert asked == [(p, "b") for p in ("a=b<eos>b=", "a=b", "<eos>a", "a<eos>", "<eos><eos>")]
    text = byte_level("</s>")
    ids = text.encode("ab</s>c")
    assert (
        prompt_text(text, ids) == "ab</s>c"
        and prompt_text(text, np.array(ids.tolist())) == "ab<eos>c"
    )


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (lambda n: "one text", "texts of the task gave 'one text': it must return a list of 3"),
        (
            lambda n: ["a"] * (n - 1),
            "texts of the task gave 2 things, ['a', 'a']: it must return a list of 3",
        ),
        (lambda n: ["a"] * (n + 1), "texts of the task gave more than 3 things"),
        (lambda n: [], "texts of the task gave 0 things, []"),
        (lambda n: None, "texts of the task gave None"),
        (lambda n: {"a": 1, "b": 2, "c": 3}, "texts of the task gave {'a': 1"),
        (lambda n: {"a", "b", "c"}, "it must return a list of 3"),
        (lambda n: iter(lambda: "a", None), "more than 3 things"),  # an endless iterator
        (lambda n: ["a", 7, "b"], "texts of the task gave 7 where a text is wanted"),
        (lambda n: ["a", "b\ud800", "c"], "holds half a character"),
        (lambda n: ["a", b"a", "b"], "texts of the task gave b'a' where a text is wanted"),
        (lambda n: [["a"], ["b"], ["c"]], "texts of the task gave ['a'] where a text is wanted"),
        (lambda n: [{"role": "user", "content": "a"}] * n, "where a text is wanted"),
    ],
)
def test_texts_are_n_texts_or_a_sentence_says_what_came(texts, message):
    task = Tokenised(Chat([]), byte_level("</s>"))
    task.task.texts = lambda rng, n, split: texts(n)
    with pytest.raises(ValueError) as raised:
        task.prompts(np.random.default_rng(0), 3)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "give",
    [tuple, iter, np.array, lambda t: (x for x in t)],
    ids=["tuple", "iterator", "array", "generator"],
)
def test_texts_come_in_whatever_holds_n(give):
    task = Tokenised(Chat([]), byte_level("</s>"))
    task.task.texts = lambda rng, n, split: give(["a", "b", "c"])
    assert [p.text for p in task.prompts(np.random.default_rng(0), 3)] == ["a", "b", "c"]


# -- the completion --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sentencepiece", "metaspace", "byte level", "BOS is EOS"])
@pytest.mark.parametrize(
    "continuation", [" no", "no", "  no", "\nno", " 30 + 3", " größer 🙂", "", " "]
)
def test_prompt_and_completion_make_the_text(kind, continuation):
    tokenizer = MAKERS[kind]("</s>")
    ids = tokenizer.encode_after("Is 3 > 2?", continuation)
    assert tokenizer.decode(ids) == continuation
    assert tokenizer.decode([*ids, tokenizer.eos, *tokenizer.encode("rest")]) == continuation


def test_the_space_before_the_first_word_of_a_completion_stays():
    tokenizer = sentencepiece("</s>")
    ids = [tokenizer.core.token_to_id(piece) for piece in ("▁30", "▁3")]
    assert tokenizer.core.decode(ids) == "30 3"  # what the package makes of it alone
    assert tokenizer.decode(ids) == " 30 3"


@pytest.mark.parametrize("kind", ["sentencepiece", "metaspace", "byte level"])
@pytest.mark.parametrize(
    "stop", [(" no",), ("\n",), ("no",), ("o\n",), ("?", " no"), ("zz", "3 n")]
)
def test_a_completion_ends_where_a_stop_string_appears(kind, stop):
    """The rule fires with the token that completes a string; the reward gets what is before it."""
    tokenizer = MAKERS[kind]("</s>")
    pieces = [
        tokenizer.encode_after("a", text)
        for text in (" no", "3", " ", "n", "o", "\n", "?", " 3", "x")
    ]
    rng, rule, fired = np.random.default_rng(0), tokenizer.stops_at(*stop), 0
    task = Tokenised(Chat(["q"], stop), tokenizer)
    for _ in range(60):
        tokens = np.concatenate([pieces[i] for i in rng.integers(len(pieces), size=12)])
        lengths = range(1, len(tokens) + 1)
        first = next(
            (t for t in lengths if any(s in tokenizer.decode(tokens[:t]) for s in stop)), None
        )
        assert next((t for t in lengths if rule(tokens[None, :t])[0]), None) == first
        fired += first is not None
        text = tokenizer.decode(tokens[:first])
        task.score(rollouts_for([tokenizer.encode("q")], [[tokens[:first]]]))
        assert task.task.asked[-1] == ("q", min((text.split(s)[0] for s in stop), key=len))
    assert fired > 5


@pytest.mark.parametrize("stop", ["日本語の終わりです。" * 3, "🙂🙂🙂🙂🙂🙂🙂🙂"])
def test_a_long_stop_string_of_which_every_byte_is_a_token(stop):
    tokenizer = byte_level("</s>")
    tokens = tokenizer.encode(f"x{stop}")
    rule = tokenizer.stops_at(stop)
    assert rule(tokens[None])[0] and not rule(tokens[None, :-1])[0]


@pytest.mark.parametrize("stop", ["", [""], ["a", ""], 3, b"a", {"a"}, [1], [None], iter("ab")])
def test_a_stop_that_is_none_is_refused(stop):
    task = Tokenised(Chat(["q"], stop), byte_level("</s>"))
    with pytest.raises(
        ValueError, match=r"stop is .*: it must be a text that is not empty, several, or None"
    ):
        sampling_limits(task)
    with pytest.raises(ValueError, match="stop is"):
        task.score(rollouts_for([task.tokenizer.encode("q")], [[np.array([1])]]))


@pytest.mark.parametrize("stop", [None, [], ()])
def test_without_a_stop_string_only_eos_ends(stop):
    tokenizer = byte_level("</s>")
    assert sampling_limits(Tokenised(Chat(["q"], stop), tokenizer))["eos"] == (tokenizer.eos, None)


# -- demonstrations --------------------------------------------------------------------------------


class Shown(Chat):
    """A task that shows pairs of texts."""

    pairs = (("Q: 3? A:", " no"), ("Is 30 3? ", "no"), ("größer?\n", "30 no"))

    def demonstrations(self, rng, n):
        return (self.pairs[i % len(self.pairs)] for i in range(n))


@pytest.mark.parametrize("kind", ["byte level", "BOS is EOS", "sentencepiece"])
@pytest.mark.parametrize(
    ("stop", "end"),
    [(None, ""), ("\n", "\n"), ("</s>", ""), (["<|im_end|>", "\n"], "<|im_end|>"), ("##", "##")],
)
def test_demonstrations_end_as_sampling_ends_them(kind, stop, end):
    tokenizer = MAKERS[kind]("</s>")
    task = Tokenised(Shown([], stop), tokenizer)
    shown = task.demonstrations(np.random.default_rng(0), 4)
    for (prompt, completion), (asked, answer) in zip(
        shown, (*Shown.pairs, Shown.pairs[0]), strict=True
    ):
        assert prompt.text == asked and completion.dtype == np.int64
        assert tokenizer.decode(completion) == answer + end
        assert (completion[-1] == tokenizer.eos) == (stop in (None, "</s>"))
        if task.stop is not None:  # it has ended with the last token, and not before
            assert task.stop(completion[None])[0] and not task.stop(completion[None, :-1])[0]


def test_a_demonstration_that_holds_the_stop_string_is_cut_there():
    task = Tokenised(Shown([], "\n"), byte_level("</s>"))
    task.task.pairs = (("q", "a\nb\n"), ("q", "a\n"), ("q", "a"))
    assert [
        task.tokenizer.decode(c) for _, c in task.demonstrations(np.random.default_rng(0), 3)
    ] == ["a\n"] * 3


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("q", 3)] * 2, "demonstrations of the task gave 3 where a text is wanted"),
        ([([1], [2])] * 2, "demonstrations of the task gave [1] where a text is wanted"),
        (
            [("q", "a", "b")] * 2,
            "demonstrations of the task gave ('q', 'a', 'b'): return (prompt, completion)",
        ),
        (["qa"] * 2, "demonstrations of the task gave 'qa': return (prompt, completion)"),
        ([("q", "a")], "demonstrations of the task gave 1 things"),
        ({"q": "a"}, "demonstrations of the task gave {'q': 'a'}"),
        ([("q", "A")] * 2, "the model has no tokens for the text 'A'"),
    ],
)
def test_demonstrations_that_are_none(pairs, message):
    task = Tokenised(Shown([]), MAKERS["lossy"]("</s>"))
    task.task.demonstrations = lambda rng, n: pairs
    with pytest.raises(ValueError) as raised:
        task.demonstrations(np.random.default_rng(0), 2)
    assert message in str(raised.value)


def test_a_warm_start_on_texts_teaches_them():
    tokenizer = sentencepiece("</s>")
    task, model = Tokenised(Shown([], None), tokenizer), model_for(tokenizer)
    settings = TrainSettings(warm_start_steps=60, warm_start_batch=3, warm_start_learning_rate=3e-2)
    warm_start(model, task, np.random.default_rng(0), settings)
    prompts = [tokenizer.encode(prompt) for prompt, _ in Shown.pairs]
    rollouts = sample(
        model,
        prompts,
        1,
        np.random.default_rng(0),
        max_new_tokens=12,
        eos=tokenizer.eos,
        temperature=0,
    )
    assert [tokenizer.decode(group[0]) for group in rollouts.completions] == [
        answer for _, answer in Shown.pairs
    ]
    assert not hasattr(Tokenised(Chat([]), tokenizer), "demonstrations")


def test_a_pretrained_model_is_warmed_gently():
    for changes, rate in (
        ({"model": "m", "warm_start_steps": 3}, 3e-5),
        ({"model": "m", "warm_start_steps": 3, "warm_start_learning_rate": 1e-4}, 1e-4),
        ({"model": "m"}, 3e-5),
        ({"warm_start_steps": 3}, TrainSettings.warm_start_learning_rate),
    ):
        assert TrainSettings.for_task("sums", **changes).warm_start_learning_rate == rate


def test_a_pretrained_model_is_trained_gently_by_a_task_that_recommends_nothing(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from minigrpo.tasks.sums import Sums\nclass Bare(Sums): defaults = {}\n"
    )
    bare = f"{tmp_path / 'mine.py'}:Bare"
    assert TrainSettings.for_task(bare, model="m").learning_rate == 1e-5
    assert TrainSettings.for_task(bare, model="m", learning_rate=2e-4).learning_rate == 2e-4
    assert TrainSettings.for_task(bare).learning_rate == TrainSettings.learning_rate


# -- runs ------------------------------------------------------------------------------------------

CHAT_TASK = """
START = "<|im_start|>system\\nYes or no.<|im_end|>\\n<|im_start|>user\\nIs "
class Even:
    max_new_tokens = 3
    stop = None
    def texts(self, rng, n, split="train"):
        return [START + f"{i} even?<|im_end|>\\n" for i in rng.integers(3, size=n)]
    def reward(self, prompt, completion):
        assert prompt.startswith(START)
        assert prompt.endswith(" even?<|im_end|>\\n"), prompt
        return len(set(completion)) / 9
    def demonstrations(self, rng, n):
        return [(text, "no") for text in self.texts(rng, n)]
"""


@pytest.mark.parametrize("kind", ["byte level", "BOS is EOS", "sentencepiece"])
def test_a_chat_run_trains_resumes_evaluates_and_samples(kind, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = MAKERS[kind]("<|im_end|>")
    save_hugging_face(model_for(tokenizer), tokenizer, tmp_path / "model")
    (tmp_path / "chat.py").write_text(CHAT_TASK)
    small = "--steps 4 --checkpoint-every 2 --group-size 3 --prompts-per-step 4 --eval-every 2"
    small += " --eval-prompts 3 --log-samples-every 1 --warm-start-steps 2 --warm-start-batch 2"
    assert (
        main(
            ["train", "--model", "model", "--task", "chat.py:Even", "--out", "run", *small.split()]
        )
        == 0
    )
    (tmp_path / "run/checkpoint-000004.mgc").unlink()
    whole = read_records("run/samples.jsonl")
    assert main(["train", "--resume", "run"]) == 0
    assert read_records("run/samples.jsonl") == whole
    groups = read_groups((tmp_path / "run/samples.jsonl").read_text(encoding="utf-8"))
    assert len(groups) == 16 and {len(group.sequences) for group in groups} == {
        3
    }  # 4 of 3 prompts a step: some twice
    assert len({(group.step, group.prompt) for group in groups}) < 16
    assert {group.prompt.count("<|im_end|>") for group in groups} == {2}
    capsys.readouterr()
    assert main(["evaluate", "run", "--prompts", "4", "--samples", "2"]) == 0
    prompt = "<|im_start|>system\nYes or no.<|im_end|>\n<|im_start|>user\nIs 77 even?<|im_end|>\n"
    assert main(["sample", "run", "--group-size", "2", "--prompt", prompt]) == 0
    assert "Is 77 even?<|im_end|>" in capsys.readouterr().out


def test_groups_of_one_prompt_stay_apart_in_the_records(tmp_path):
    task = Tokenised(Chat(["one prompt"]), byte_level("</s>"))
    settings = TrainSettings(
        steps=2, group_size=3, prompts_per_step=4, dim=8, n_layers=1, log_samples_every=1
    )
    train(settings, tmp_path / "run", task=task, progress=False)
    text = (tmp_path / "run/samples.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["group"] for line in text.splitlines()] == [
        g for _ in range(2) for g in range(4) for _ in range(3)
    ]
    groups = read_groups(text)
    assert len(groups) == 8 and {len(group.sequences) for group in groups} == {3}


def test_texts_of_a_subclass_are_their_characters():
    from enum import Enum

    class Question(str, Enum):  # noqa: UP042
        ONE = "1 + 1 ="

    task = Tokenised(Chat([Question.ONE]), byte_level("</s>"))
    assert [prompt.text for prompt in task.prompts(np.random.default_rng(0), 2)] == ["1 + 1 ="] * 2


@pytest.mark.parametrize(("stop", "text"), [(None, "ab</s>"), (None, "ab</s>cd"), ("\n", "ab</s>")])
def test_a_demonstration_ends_at_its_first_eos(stop, text):
    tokenizer = byte_level("</s>")
    task = Tokenised(Shown([], stop), tokenizer)
    task.task.demonstrations = lambda rng, n: [("1 + 1 =", text)] * n
    ((_, completion),) = task.demonstrations(np.random.default_rng(0), 1)
    assert completion.tolist() == [*tokenizer.encode_after("1 + 1 =", "ab").tolist(), tokenizer.eos]
