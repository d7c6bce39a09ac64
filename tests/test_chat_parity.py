"""Conversations become the same characters and tokens as in `transformers`, where it is installed.

pip install transformers jinja2
python -m pytest tests/test_chat_parity.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

transformers = pytest.importorskip(
    "transformers", reason="compares with transformers: pip install torch transformers"
)
torch = pytest.importorskip("torch", reason="compares with transformers and PyTorch")
pytest.importorskip("gguf", reason="language models need the extra lm")
pytest.importorskip("safetensors", reason="language models need the extra lm")
pytest.importorskip("jinja2", reason="chat templates need the extra lm")
from chat_templates import CONVERSATIONS, TEMPLATES
from test_prompts import byte_level, metaspace, model_for, sentencepiece
from transformers.utils import chat_template_utils

from minigrpo.models import load_tokenizer, save_hugging_face
from minigrpo.models.text_tokenizer import TODAY

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
        assert (name, about) not in LEFT_OUT
        expected = theirs.apply_chat_template(
            conversation, add_generation_prompt=True, return_dict=False
        )
        assert ids.tolist() == expected and ids.text == text, about


LEFT_OUT = set()
