"""Conversations become the same characters and tokens as in `transformers`, where it is installed.

pip install transformers jinja2
python -m pytest tests/test_chat_parity.py
"""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest

pytest.importorskip("transformers", reason="compares with transformers: pip install transformers")
pytest.importorskip("torch", reason="compares with transformers and PyTorch")
pytest.importorskip("gguf", reason="language models need the extra lm")
pytest.importorskip("safetensors", reason="language models need the extra lm")
pytest.importorskip("jinja2", reason="chat templates need the extra lm")
import torch
import transformers
from chat_templates import CONVERSATIONS, TEMPLATES
from test_prompts import byte_level, metaspace, model_for, sentencepiece
from transformers.utils import chat_template_utils

from minigrpo.models import load_model, load_tokenizer, save_hugging_face
from minigrpo.models.text_tokenizer import TODAY
from minigrpo.sampler import sample

pytestmark = pytest.mark.filterwarnings("ignore")  # what other packages warn about is not ours
TOKENIZERS = {"byte level": byte_level, "sentencepiece": sentencepiece, "metaspace": metaspace}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<|endoftext|>"}


@pytest.fixture(autouse=True)
def always_the_same_day(monkeypatch):
    class Day:
        def now():
            return TODAY

    monkeypatch.setattr(chat_template_utils, "datetime", Day)


@pytest.fixture(scope="module", params=TOKENIZERS)
def folder(request, tmp_path_factory):
    """A model as transformers reads one, still without a template."""
    tokenizer = TOKENIZERS[request.param]("</s>")
    return save_hugging_face(model_for(tokenizer), tokenizer, tmp_path_factory.mktemp("m") / "hf")


def theirs_for(folder: Path, **about):
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | TOKENS | about)
    )
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", TEMPLATES)
def test_text_and_tokens(name: str, folder: Path) -> None:
    theirs = theirs_for(folder, chat_template=TEMPLATES[name])
    ours = load_tokenizer(folder)
    for about, conversation in CONVERSATIONS.items():
        try:
            text = theirs.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:
            with pytest.raises(ValueError) as raised:
                ours.chat.render(conversation)
            assert " ".join(str(error).split()) in str(raised.value), about
            continue
        assert ours.chat.render(conversation) == text, about
        without = theirs.apply_chat_template(conversation, tokenize=False)
        assert ours.chat.render(conversation, answer=False) == without, about
        try:
            ids = ours.encode_chat(conversation)
        except ValueError as error:
            assert "leaves out message" in str(error), (about, error)
            assert (name, about) in LEFT_OUT
            continue
        assert (name, about) not in LEFT_OUT or name in ("chatml", "smollm2", "llama3", "llama3.2")
        expected = theirs.apply_chat_template(
            conversation, add_generation_prompt=True, return_dict=False
        )
        assert ids.tolist() == expected and ids.text == text, about


def test_figures_for_the_documents() -> None:
    assert len(TEMPLATES) >= 10 and len(CONVERSATIONS) >= 10


@pytest.mark.parametrize("how", ["jinja", "config", "named", "named files", "tokens as dicts"])
def test_where_a_template_stands(how: str, folder: Path, tmp_path: Path) -> None:
    """Ours is what transformers reads from the same files, and what it reads from an export."""
    copytree(folder, tmp_path / "m")
    theirs = theirs_for(tmp_path / "m", chat_template=TEMPLATES["llama2"])
    if how == "jinja":  # as transformers writes it; an older template in the other file loses
        theirs.save_pretrained(tmp_path / "m")
        file = tmp_path / "m/tokenizer_config.json"
        about = json.loads(file.read_text()) | {"chat_template": "{{ older }}"}
        file.write_text(json.dumps(about))
        assert (tmp_path / "m/chat_template.jinja").exists()
    elif how.startswith("named"):
        theirs.chat_template = {"tool_use": "{{ 5 }}", "default": TEMPLATES["llama2"]}
        theirs.save_pretrained(tmp_path / "m", save_jinja_files=how == "named files")
    elif how == "tokens as dicts":
        token = {"__type": "AddedToken", "content": "</s>", "lstrip": False, "normalized": False}
        theirs_for(tmp_path / "m", chat_template=TEMPLATES["llama2"], eos_token=token)
    conversation = CONVERSATIONS["several turns"]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    expected = theirs.apply_chat_template(
        conversation, add_generation_prompt=True, return_dict=False
    )
    model, ours = load_model(tmp_path / "m")
    assert ours.encode_chat(conversation).tolist() == expected and len(expected) > 20
    again = transformers.AutoTokenizer.from_pretrained(
        save_hugging_face(model, ours, tmp_path / "export")
    )
    assert again.special_tokens_map == theirs.special_tokens_map
    for said in CONVERSATIONS["several turns"], CONVERSATIONS["unicode"]:
        assert [again.apply_chat_template(said, tokenize=t) for t in (True, False)] == [
            theirs.apply_chat_template(said, tokenize=t) for t in (True, False)
        ]


def test_completions_end_where_generate_ends_them(folder: Path, tmp_path: Path) -> None:
    """At each id of generation_config.json; where there is none, at each of config.json."""
    copytree(folder, tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    model, tokenizer = load_model(tmp_path / "m")
    prompt = tokenizer.encode("a 3 no")
    rng = np.random.default_rng(0)
    free = sample(model, [prompt], 1, rng, max_new_tokens=12, temperature=0).completions[0][0]
    later = [int(i) for n, i in enumerate(free) if i not in free[:n] and n]
    unused = [i for i in range(9) if i not in free]
    for in_config, in_generation in (
        (unused[0], [unused[1], later[0]]),
        (unused[0], later[0]),
        ([unused[0], later[0]], None),
        (later[0], [later[0], unused[2]]),
        (None, [later[0]]),
    ):
        (tmp_path / "m/config.json").write_text(json.dumps(config | {"eos_token_id": in_config}))
        file = tmp_path / "m/generation_config.json"
        file.unlink(missing_ok=True)
        if in_generation is not None:
            file.write_text(json.dumps({"eos_token_id": in_generation}))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
        out = theirs.generate(
            torch.tensor(prompt)[None], max_new_tokens=12, do_sample=False, pad_token_id=0
        )
        _, ours = load_model(tmp_path / "m")
        found = sample(
            model,
            [prompt],
            1,
            rng,
            max_new_tokens=12,
            temperature=0,
            eos=(ours.eos, ours.stops_at()),
        ).completions[0][0]
        assert found.tolist() == out[0, len(prompt) :].tolist()
        assert len(found) < len(free)
        exported = save_hugging_face(model, ours, tmp_path / f"e{in_config}{in_generation}")
        again = transformers.AutoModelForCausalLM.from_pretrained(exported)
        ends = again.generation_config.eos_token_id
        assert set(ends if isinstance(ends, list) else [ends]) == set(ours.ends)


def test_a_gguf_files_template(tmp_path: Path) -> None:
    from tiny_language_model import EOS, make, write_gguf

    model, _ = make()
    about = {"tokenizer.chat_template": TEMPLATES["llama2"], "tokenizer.ggml.bos_token_id": 5}
    path = write_gguf(tmp_path / "m.gguf", model, metadata=about)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    ours = load_tokenizer(path)
    assert ours.chat.tokens["eos_token"] == theirs.eos_token and ours.ends == [EOS]
    for about, conversation in CONVERSATIONS.items():
        if about in ("several turns", "unicode", "a system message"):
            assert ours.encode_chat(conversation).tolist() == theirs.apply_chat_template(
                conversation, add_generation_prompt=True, return_dict=False
            ), about


LEFT_OUT = {  # what the templates drop without a word, and we refuse
    ("phi3", "a system message"),
    ("phi3", "several turns"),
    ("phi3", "nothing said"),
    ("phi3", "white space"),
    ("phi3", "markup"),
    ("phi3", "flags"),
    ("phi3", "system later"),
    ("smollm3", "system later"),
} | {(name, "a role of its own") for name in TEMPLATES}
