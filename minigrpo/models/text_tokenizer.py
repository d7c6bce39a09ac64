"""Text to token ids and back for pretrained models, over the `tokenizers` package."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np

from minigrpo.models.checks import need, refusing, shown

TODAY = datetime(2024, 7, 26)  # for chat templates: a seed's prompts are the same tomorrow
GENERATION = re.compile(r"(\{%[-+]?\s*(?:end)?)generation(\s*[-+]?%\})")  # marks answers only
MOST_PIECES = 1_000_000  # that a chat template writes
TAIL = 8  # tokens that may belong to a stop string, besides one per byte of it


class Encoded(np.ndarray):
    """Token ids that remember their text; so does a copy, but nothing else made of them."""

    text: str | None = None

    def copy(self, order: str = "C") -> Encoded:
        """As of any array."""
        out = super().copy(order)
        out.text = self.text
        return out


class Rendered(str):
    """The text of a conversation, which differs from the same text of another conversation."""

    asked: Any  # the conversation, as the task gave it
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) and getattr(other, "asked", self.asked) == self.asked


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template, None if the model has none, and the special tokens that it may name.

    Its text is that of `apply_chat_template` in transformers.  Left out: tools, documents, images.
    """

    source: str | None = None
    tokens: Mapping[str, str] = field(default_factory=dict)  # such as "bos_token": "<s>"

    def prompt(self, conversation: Any) -> Rendered:
        """The text of a conversation, up to where the model's answer begins.

        Raises ValueError for what is no conversation, and for what the template refuses or drops.
        """
        is_text, messages, keys = isinstance(conversation, str), [], ("role", "content")
        given = [{"role": "user", "content": conversation}] if is_text else conversation
        with suppress(TypeError, KeyError):
            fits = all(isinstance(it, dict) and len(it) == len(keys) for it in given)
            fits = fits and isinstance(given, list | tuple)  # JSON can hold it
            messages = [{key: str.__str__(it[key]) for key in keys} for it in given if fits]
        if not messages:
            wanted = 'give a text, or a list of {"role": a text, "content": a text}'
            raise ValueError(f"the task gave {shown(conversation)} for a conversation: {wanted}")
        text = Rendered(self.render(messages))
        text.asked = deepcopy(conversation)
        for i, it in enumerate(messages):
            other = [*messages[:i], it | {"content": it["content"] + "?"}, *messages[i + 1 :]]
            if self.render(other) == text:
                told = f"the model's chat template leaves out message {i + 1} of {shown(messages)}"
                raise ValueError(f"{told}: give roles in an order that it knows")
        return text

    def render(self, messages: list[dict[str, str]], answer: bool = True) -> str:
        """The text of messages; answer: up to where the model's answer begins."""
        given = {"messages": messages, "tools": None, "documents": None, **self.tokens}
        template = self._compiled
        with refusing(f"the model's chat template fails on {shown(messages)}"):
            pieces = template.generate(given, add_generation_prompt=answer)
            text = "".join(islice(pieces, MOST_PIECES))
            if next(pieces, None) is not None:
                raise ValueError(f"it writes more than {MOST_PIECES:,} pieces of text")
        return text

    @cached_property
    def _compiled(self) -> Any:
        if self.source is None:
            told = "the model has no chat template"
            raise ValueError(f"{told}: give a chat model, or a task that has texts, not messages")
        need("jinja2")

        def raise_exception(message: str) -> None:
            raise ValueError(message)

        with refusing("the model's chat template is damaged"):
            made = need("jinja2.sandbox").ImmutableSandboxedEnvironment(
                trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
            )
            made.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
            made.globals |= {"raise_exception": raise_exception, "strftime_now": TODAY.strftime}
            return made.from_string(GENERATION.sub(r"\1with\2", self.source))


@dataclass(frozen=True, eq=False)
class TextTokenizer:
    """A tokenizer, the size of the model's vocabulary, and the ids that end a completion."""

    core: Any  # tokenizers.Tokenizer
    vocab_size: int  # of the model, which may be larger than the tokenizer's
    eos: int | None
    more_eos: tuple[int, ...] = ()  # ids that end a completion as well
    chat: ChatTemplate = field(default_factory=ChatTemplate)

    @classmethod
    def from_file(
        cls, path: Path, vocab_size: int, eos: int | Sequence[int] | None
    ) -> TextTokenizer:
        """From a tokenizer.json.   Raises ValueError if it is damaged or does not fit the model."""
        tokenizers = need("tokenizers")
        if not path.exists():
            advice = "put the model's tokenizer.json there (a tokenizer.model alone is not read)"
            raise ValueError(f"{path} is missing: {advice}")
        with refusing(f"{path} is not a tokenizer.json that this version of tokenizers reads"):
            text = path.read_text(encoding="utf-8")
            _check_prefix(text)
            core = tokenizers.Tokenizer.from_str(text)
        core.no_padding()
        core.no_truncation()
        size = max(core.get_vocab().values(), default=-1) + 1
        ends = eos if isinstance(eos, list | tuple) else [] if eos is None else [eos]
        fits = all(type(end) is int and 0 <= end < vocab_size for end in ends)
        if size > vocab_size or eos == [] or not fits:
            told = f"{path} has {size} tokens and EOS {shown(eos)}"
            raise ValueError(f"{told}, the model a vocabulary of {vocab_size}")
        with refusing(f"{path} cannot split a text"):
            whole, bare = (core.encode("a", add_special_tokens=add).ids for add in (True, False))
        if whole[len(whole) - len(bare) :] != bare:
            told = f"{path} adds tokens after a text (its post_processor)"
            raise ValueError(f"{told}, but prompts are to be continued: take that out")
        return cls(core, vocab_size, None).ended_by(ends)

    def ended_by(self, ends: Iterable[int]) -> TextTokenizer:
        """A tokenizer with these ids as `ends`."""
        eos, *more = dict.fromkeys(ends) or [None]
        return replace(self, eos=eos, more_eos=tuple(more))

    @property
    def ends(self) -> list[int]:
        """The ids that end a completion."""
        return [self.eos, *self.more_eos] if self.eos is not None else []

    def encode_chat(self, conversation: Any) -> np.ndarray:
        """As `encode`, the text of [{"role": "user", "content": "Hi"}, …], or of a user's text."""
        return self.encode(self.chat.prompt(conversation))

    def encode(self, text: str) -> np.ndarray:
        """Token ids of a text, which remember it as `.text`.   -> (T,) int64

        What the model expects before it (such as BOS) is there once, though the text may bring it;
        a chat template brings all that there should be.
        """
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            told = f"the text {shown(text)} holds half a character (a lone surrogate)"
            raise ValueError(f"{told}: leave it out")
        ids, bare = (self.core.encode(text, add_special_tokens=add).ids for add in (True, False))
        added = len(ids) - len(bare)
        twice = ids[added:] == bare and bare[:added] == ids[:added]
        twice = twice or isinstance(text, Rendered)
        out = np.array(bare if twice else ids, dtype=np.int64).view(Encoded)
        out.text = text
        return out

    def pieces(self, text: str) -> list[str]:
        """The tokens of a text, by name.   Raises ValueError where they do not say the text."""
        with refusing(f"the tokenizer cannot split the text {shown(text)}"):
            found = self.core.encode(text, add_special_tokens=False)
            says = self.core.decode(found.ids, skip_special_tokens=False)
        if len({"".join(normalize("NFKC", t).split()) for t in (text, says)}) > 1:
            told = f"the tokenizer turns the text {shown(text)} into {shown(says)}"
            raise ValueError(f"{told}: give that of the model which wrote it")
        return found.tokens

    def text_of(self, piece: str) -> str:
        """What a token says in the middle of a text."""
        return self._added([[self.core.token_to_id(piece)]])[0]

    def encode_after(self, before: str, text: str) -> np.ndarray:
        """Token ids of a text that goes on from another, whose tokens stay.   -> (T,) int64

        Raises ValueError if no tokens stand for just this text.
        """
        for start in (before, "", "\n"):
            ids = np.array(self.encode(start + text)[len(self.encode(start)) :])
            if self._added([ids.tolist()]) == [text]:
                return ids
        told = f"the model has no tokens for the text {text[:80]!r}"
        raise ValueError(f"{told}: leave such texts out")

    def _added(self, batch: list[list[int]]) -> list[str]:
        """What each list of tokens adds to a text.

        They are decoded after another text, since a decoder drops the space before the first word.
        """
        a = self.core.encode("a", add_special_tokens=False).ids
        texts = [a, *(a + ids for ids in batch)]
        text, *both = self.core.decode_batch(texts, skip_special_tokens=False)
        return [longer.removeprefix(text) for longer in both]

    def answer_end(self) -> int | None:
        """The first of `ends` that the chat template writes after an answer, else `eos`."""
        turns = [{"role": role, "content": "hello"} for role in ("user", "assistant")]
        after = self.chat.render(turns, answer=False).rpartition("hello")[2]
        ids = self.core.encode(after, add_special_tokens=False).ids
        return next((i for i in ids if i in self.ends), self.eos)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a completion, as it goes on from its prompt, up to its EOS.

        Raises ValueError for an id outside the vocabulary.
        """
        tokens = np.asarray(ids, dtype=np.int64).tolist()
        tokens = tokens[: next((i for i, token in enumerate(tokens) if token in self.ends), None)]
        if tokens and not 0 <= min(tokens) <= max(tokens) < self.vocab_size:
            told = f"token ids {min(tokens)} … {max(tokens)} do not fit a vocabulary of"
            raise ValueError(f"{told} {self.vocab_size}: decode with the tokenizer that made them")
        return self._added([tokens])[0]

    def stops_at(self, *texts: str) -> Callable[[np.ndarray], np.ndarray] | None:
        """A rule for `sampler.sample`: which of n completions have just ended.   (n,t) -> (n,) bool

        They end with one of the texts, or of `more_eos`.  None where nothing but `eos` ends one.
        """
        longest = max((len(text.encode()) for text in texts), default=0)  # a byte may be a token

        def ended(tokens: np.ndarray) -> np.ndarray:
            tails = self._added(tokens[:, -(longest + TAIL) :].tolist()) if texts else []
            found = [any(text in tail for text in texts) for tail in tails] or False
            return np.isin(tokens[:, -1], self.more_eos) | np.array(found, dtype=bool)

        return ended if texts or self.more_eos else None

    def to_json(self) -> str:
        """The content of a tokenizer.json."""
        return self.core.to_str(pretty=False)


def _check_prefix(text: str) -> None:
    """Raises ValueError where a merge lacks the prefix that its tokenizer.json asks for.

    The tokenizers package would end the process.
    """
    if not re.search(r'"continuing_subword_prefix"\s*:\s*"[^"]', text):
        return
    model = json.loads(text)["model"]
    prefix = model["continuing_subword_prefix"]
    for merge in model.get("merges", ()):
        second = merge.split(" ")[-1] if isinstance(merge, str) else merge[-1]
        if not second.startswith(prefix):
            raise ValueError(f"the merge {shown(merge)} lacks the prefix {shown(prefix)}")


def byte_level_tokenizer(
    tokens: Sequence[str],
    merges: Sequence[str],
    special: Sequence[str],
    *,
    eos: int | None,
    vocab_size: int,
    split_digits: bool,
) -> TextTokenizer:
    """The byte-level BPE of GPT-2; split_digits: every digit is a token, as in SmolLM.

    Raises ValueError if a token is there twice, or if there are more than vocab_size.
    """
    tokenizers = need("tokenizers")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, pairs))
    splits = [tokenizers.pre_tokenizers.Digits(individual_digits=True)] if split_digits else []
    splits += [tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    core.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(splits)
    core.decoder = tokenizers.decoders.ByteLevel()
    as_special = partial(tokenizers.AddedToken, special=True, normalized=False)
    core.add_special_tokens([*map(as_special, special)])
    has_eos = eos is None or eos in range(len(tokens))
    if not len(vocabulary) == len(tokens) <= vocab_size or not has_eos:
        told = f"{len(tokens)} tokens ({len(vocabulary)} different ones) with EOS {eos}"
        raise ValueError(f"{told} for a vocabulary of {vocab_size}")
    return TextTokenizer(core, vocab_size, eos)
