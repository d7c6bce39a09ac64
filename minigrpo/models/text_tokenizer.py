"""Text to token ids and back, as a pretrained model was trained with; a thin cover over the `tokenizers` package."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minigrpo.models.packages import need, refusing, shown

TAIL = 8  # tokens before the newest one that may belong to a stop string, besides one a byte


class Encoded(np.ndarray):
    """Token ids that remember the text that they stand for; a copy does, too, and nothing else that is made of them."""

    text: str | None = None

    def copy(self, order: str = "C") -> Encoded:
        """As of any array."""
        out = super().copy(order)
        out.text = self.text
        return out


@dataclass(frozen=True, eq=False)
class TextTokenizer:
    """A tokenizer with the two numbers that a model needs: the size of its vocabulary and the id that ends a completion."""

    core: Any  # tokenizers.Tokenizer
    vocab_size: int  # of the model, which may be larger than the tokenizer's
    eos: int | None
    more_eos: tuple[int, ...] = ()  # ids that end a completion as well

    @classmethod
    def from_file(
        cls, path: str | Path, vocab_size: int, eos: int | Sequence[int] | None
    ) -> TextTokenizer:
        """From a tokenizer.json.   Raises ValueError if it cannot be read or does not fit the vocabulary."""
        tokenizers = need("tokenizers")
        if not Path(path).exists():
            raise ValueError(
                f"{path} is missing: put the model's tokenizer.json there (a tokenizer.model alone is not read)"
            )
        with refusing(f"{path} is not a tokenizer.json that this version of tokenizers reads"):
            text = Path(path).read_text(encoding="utf-8")
            _check_prefix(text)
            core = tokenizers.Tokenizer.from_str(text)
        core.no_padding()
        core.no_truncation()
        size = max(core.get_vocab().values(), default=-1) + 1
        ends = eos if isinstance(eos, list | tuple) else [] if eos is None else [eos]
        if (
            size > vocab_size
            or eos == []
            or not all(type(end) is int and 0 <= end < vocab_size for end in ends)
        ):
            raise ValueError(
                f"{path} has {size} tokens and EOS {shown(eos)}, the model a vocabulary of {vocab_size}"
            )
        with refusing(f"{path} cannot split a text"):
            whole, bare = (core.encode("a", add_special_tokens=add).ids for add in (True, False))
        if whole[len(whole) - len(bare) :] != bare:
            raise ValueError(
                f"{path} adds tokens after a text (its post_processor), but prompts are to be continued: take that out"
            )
        return cls(core, vocab_size, next(iter(ends), None), tuple(ends[1:]))

    @property
    def ends(self) -> list[int]:
        """The ids that end a completion."""
        return [self.eos, *self.more_eos] if self.eos is not None else []

    def encode(self, text: str) -> np.ndarray:
        """Token ids of a text, which remember it as `.text`.   -> (T,) int64

        What the model expects before it (such as BOS) is there once, though the text may bring it.
        """
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            raise ValueError(
                f"the text {shown(text)} holds half a character (a lone surrogate): leave it out"
            )
        ids, bare = (self.core.encode(text, add_special_tokens=add).ids for add in (True, False))
        added = len(ids) - len(bare)
        twice = ids[added:] == bare and bare[:added] == ids[:added]
        out = np.array(bare if twice else ids, dtype=np.int64).view(Encoded)
        out.text = text
        return out

    def encode_after(self, before: str, text: str) -> np.ndarray:
        """Token ids of a text that goes on from another, of which no token is changed.   -> (T,) int64

        Raises ValueError if no tokens stand for just this text.
        """
        for start in (before, "", "\n"):
            ids = np.array(self.encode(start + text)[len(self.encode(start)) :])
            if self._added([ids.tolist()]) == [text]:
                return ids
        raise ValueError(
            f"the model has no tokens for the text {text[:80]!r}: leave such texts out"
        )

    def _added(self, batch: list[list[int]]) -> list[str]:
        """What each list of tokens adds to a text: a decoder drops the space before a text's first word."""
        a = self.core.encode("a", add_special_tokens=False).ids
        text, *both = self.core.decode_batch(
            [a, *(a + ids for ids in batch)], skip_special_tokens=False
        )
        return [longer.removeprefix(text) for longer in both]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a completion, as it goes on from its prompt; EOS and all after it are dropped.

        Raises ValueError for an id outside the vocabulary.
        """
        tokens = np.asarray(ids, dtype=np.int64).tolist()
        tokens = tokens[: next((i for i, token in enumerate(tokens) if token in self.ends), None)]
        if tokens and not 0 <= min(tokens) <= max(tokens) < self.vocab_size:
            found = f"token ids {min(tokens)} … {max(tokens)}"
            raise ValueError(
                f"{found} do not fit a vocabulary of {self.vocab_size}: decode with the tokenizer that made them"
            )
        return self._added([tokens])[0]

    def stops_at(self, *texts: str) -> Callable[[np.ndarray], np.ndarray] | None:
        """A rule for `sampler.sample`: which of n completions so far have just completed one of the texts, or drawn one of
        `more_eos`.   (n,t) -> (n,) bool; None where nothing but `eos` ends a completion"""
        longest = max(
            (len(text.encode()) for text in texts), default=0
        )  # a byte of a character may be a token

        def ended(tokens: np.ndarray) -> np.ndarray:
            done = np.isin(tokens[:, -1], self.more_eos)
            tails = self._added(tokens[:, -(longest + TAIL) :].tolist()) if texts else []
            return done | np.array(
                [any(text in tail for text in texts) for tail in tails] or False, dtype=bool
            )

        return ended if texts or self.more_eos else None

    def to_json(self) -> str:
        """The content of a tokenizer.json."""
        return self.core.to_str(pretty=False)


def _check_prefix(text: str) -> None:
    """Raise ValueError where a merge lacks the prefix that its tokenizer.json asks for: the package would end the process."""
    if not re.search(r'"continuing_subword_prefix"\s*:\s*"[^"]', text):
        return
    model = json.loads(text)["model"]
    for merge in model.get("merges", ()):
        second = merge.split(" ")[-1] if isinstance(merge, str) else merge[-1]
        if not second.startswith(model["continuing_subword_prefix"]):
            raise ValueError(
                f"the merge {shown(merge)} lacks the prefix {shown(model['continuing_subword_prefix'])}"
            )


def byte_level_tokenizer(
    tokens: Sequence[str],
    merges: Sequence[str],
    special: Sequence[str],
    *,
    eos: int | None,
    vocab_size: int,
    split_digits: bool,
) -> TextTokenizer:
    """The byte-level BPE of GPT-2 from its vocabulary and merges; split_digits: every digit is a token, as in SmolLM.

    Raises ValueError if a token is there twice, or if the vocabulary of the model, vocab_size, has no room for the tokens.
    """
    tokenizers = need("tokenizers")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, pairs))
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    core.pre_tokenizer = (
        tokenizers.pre_tokenizers.Sequence([digits, byte_level]) if split_digits else byte_level
    )
    core.decoder = tokenizers.decoders.ByteLevel()
    core.add_special_tokens(
        [tokenizers.AddedToken(token, special=True, normalized=False) for token in special]
    )
    if not len(vocabulary) == len(tokens) <= vocab_size or not (
        eos is None or eos in range(len(tokens))
    ):
        raise ValueError(
            f"{len(tokens)} tokens ({len(vocabulary)} different ones) with EOS {eos} for a vocabulary of {vocab_size}"
        )
    return TextTokenizer(core, vocab_size, eos)
