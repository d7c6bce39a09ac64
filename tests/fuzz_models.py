"""Damaged model files by the thousand: each is loaded as it means, or refused.

What refuses is a ValueError or an OSError.

python tests/fuzz_models.py --n 20000 --seed 1
`test_fuzz_models.py` runs a few hundred.  Every case is its own seed, so that one can be looked at
again: --only NUMBER.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import signal
import struct
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from chat_templates import TEMPLATES
from tiny_language_model import half_split, make, write_gguf

from minigrpo.models import load_model, save_hugging_face
from minigrpo.models.text_tokenizer import ChatTemplate

CHAT = ChatTemplate(TEMPLATES["llama2"], {"bos_token": "a", "eos_token": "<end>"})
SECONDS = 20  # after which a case counts as hanging
ROOM = 2 << 30  # bytes that loading may take beyond what the process has
TOKENS = np.array([5, 250, 17, 99, 3])
NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
NASTY: tuple[Any, ...] = (
    *NUMBERS, -(2**63), 10**400, 0.5, -0.0, 1e-320, 1e-30, 1e30, 1e308, float("nan"), float("inf"),
    -float("inf"), True, False, None, "", "x", "\x00", "2", "nan", "silu", "linear", "é\n\ud800",
    "y" * 10_000, "../a", [], [1], [2, 3], [[]], ["a"], {}, {"a": 1}, {"type": "yarn"},
)  # fmt: skip
KEYS = (
    "rope_scaling", "rope_parameters", "rope_theta", "head_dim", "sliding_window",
    "tie_word_embeddings", "eos_token_id", "attention_multiplier", "logit_scale",
    "partial_rotary_factor", "num_key_value_heads", "mlp_bias", "auto_map", "foo", "_foo",
    "model_type", "layer_types", "use_sliding_window", "max_window_layers",
)  # fmt: skip
GGUF_KEYS = (
    "llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.rope.scale_linear",
    "llama.expert_count", "split.count", "llama.logit_scale", "llama.attention.clamp_kqv",
    "tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.add_space_prefix", "general.alignment", "general.name", "general.type",
    "llama.vocab_size", "foo.bar",
)  # fmt: skip
SCALARS = (
    "BbHhIif?  Qqd"  # struct letters of GGUF's types 0 … 12, of which 8 is a string and 9 an array
)
STRING, ARRAY = 8, 9


class Hangs(KeyboardInterrupt):
    """A case took too long."""


# -- any file --------------------------------------------------------------------------------------


def any_bytes(data: bytes, rng: random.Random, end: int | None = None) -> bytes:
    """Flipped bits, nasty numbers, parts cut out, doubled or lost;
    the first `end` bytes (a header) are hit more often.
    """
    out = bytearray(data)
    place = lambda: rng.randrange(  # noqa: E731
        min(end or len(out), len(out)) if rng.random() < 0.8 else len(out)
    )
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        if len(out) < 16:
            break
        how = rng.randrange(6)
        if how < 2:
            out[place()] ^= 1 << rng.randrange(8)
        elif how == 2:
            size = rng.choice((4, 8))
            start = place()
            out[start : start + size] = (rng.choice(NUMBERS) % 2 ** (8 * size)).to_bytes(
                size, "little"
            )
        elif how == 3:
            del out[place() :]
        else:
            start = place()
            stop = start + rng.choice((1, 2, 4, 8, 100))
            out[start:stop] = b"" if how == 4 else out[start:stop] * 2
    return bytes(out)


def any_json(value: Any, rng: random.Random) -> Any:
    """One value somewhere inside is made nasty, is lost, changes places, or gets a neighbour."""
    value = copy.deepcopy(value)
    parent, at = None, value
    while isinstance(at, dict | list) and at and (parent is None or rng.random() < 0.75):
        parent, key = at, rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
        at = parent[key]
    how = rng.randrange(6)
    if parent is None or how == 5:
        nested: Any = rng.choice(NASTY)
        for _ in range(rng.choice((1, 3, 500, 20_000))):
            nested = [nested] if rng.random() < 0.5 else {"a": nested}
        return nested if parent is None or rng.random() < 0.2 else {"nested": nested}
    if how == 0:
        del parent[key]
    elif how == 1 and isinstance(parent, dict):
        parent[rng.choice(KEYS)] = rng.choice(NASTY)
    elif how == 2 and isinstance(at, int | float) and not isinstance(at, bool):
        parent[key] = rng.choice(
            (at + 1, at - 1, at * 2, -at, float(at), str(at), [at], at * 10**9)
        )
    elif how == 3 and isinstance(parent, dict):
        parent[key] = parent[rng.choice(list(parent))]
    else:
        parent[key] = rng.choice(NASTY)
    return value


def to_json(value: Any, rng: random.Random) -> bytes:
    """As bytes; sometimes a key is there twice, or the bytes are damaged too."""
    try:
        text = json.dumps(value)
    except RecursionError:
        text = "[" * 20_000 + "]" * 20_000
    data = text.encode()
    if rng.random() < 0.1 and text.startswith("{") and len(text) > 2:
        data = (
            b'{"%s": %s, '
            % (
                rng.choice((*KEYS, "hidden_size")).encode(),
                json.dumps(rng.choice(NUMBERS)).encode(),
            )
            + data[1:]
        )
    return any_bytes(data, rng) if rng.random() < 0.1 else data


# -- GGUF ------------------------------------------------------------------------------------------


def gguf_value(value: Any, rng: random.Random) -> bytes:
    """A value with its type, which need not fit."""
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
        return struct.pack("<IQ", STRING, len(data)) + data
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, float):
        return struct.pack("<Id", 12, value)
    if isinstance(value, int):
        return (
            struct.pack("<II", 4, value % 2**32)
            if rng.random() < 0.5
            else struct.pack("<IQ", 10, value % 2**64)
        )
    item = rng.choice([i for i in range(13) if i != ARRAY])
    n = rng.choice((0, 1, 2, 100))
    body = b"".join(
        struct.pack("<Q", 1) + b"x" if item == STRING else bytes(struct.calcsize(SCALARS[item]))
        for _ in range(n)
    )
    return struct.pack("<IIQ", ARRAY, item, n) + body


class Gguf:
    """A file in parts: values (key, bytes with type), tensors (name, shape, type, offset), data."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 24
        n_tensors, n_values = struct.unpack("<QQ", data[8:24])
        self.values = [(self.take_string(), self.take_value()) for _ in range(n_values)]
        self.tensors = []
        for _ in range(n_tensors):
            name, n = self.take_string(), self.take("I")
            self.tensors.append(
                [name, [self.take("Q") for _ in range(n)], self.take("I"), self.take("Q")]
            )
        self.end = self.at
        self.data = data[-(-self.at // 32) * 32 :]

    def take(self, letter: str) -> Any:
        (value,) = struct.unpack_from("<" + letter, self.data, self.at)
        self.at += struct.calcsize("<" + letter)
        return value

    def take_string(self) -> bytes:
        n = self.take("Q")
        self.at += n
        return self.data[self.at - n : self.at]

    def take_value(self) -> bytes:
        start, type_ = self.at, self.take("I")
        item, n = (self.take("I"), self.take("Q")) if type_ == ARRAY else (type_, 1)
        for _ in range(n):
            self.take_string() if item == STRING else self.take(SCALARS[item])
        return self.data[start : self.at]

    def joined(self) -> bytes:
        out = [b"GGUF", struct.pack("<IQQ", 3, len(self.tensors), len(self.values))]
        for key, value in self.values:
            out += [struct.pack("<Q", len(key)), key, value]
        for name, shape, kind, offset in self.tensors:
            out += [struct.pack("<Q", len(name)), name, struct.pack("<I", len(shape))]
            out += [struct.pack("<Q", n % 2**64) for n in shape] + [
                struct.pack("<IQ", kind % 2**32, offset % 2**64)
            ]
        head = b"".join(out)
        return head + bytes(-len(head) % 32) + self.data


def any_gguf(base: bytes, rng: random.Random) -> bytes:
    """A damaged GGUF file."""
    file = Gguf(base)
    how = rng.randrange(8)
    if how == 0:
        return any_bytes(base, rng, file.end)
    place = rng.randrange(len(file.values))
    key, value = file.values[place]
    if how in (1, 2):
        file.values[place] = key, gguf_value(rng.choice(NASTY), rng)
    elif how == 3:
        file.values.append((rng.choice(GGUF_KEYS).encode(), gguf_value(rng.choice(NASTY), rng)))
    elif how == 4:
        rng.choice(
            (
                lambda: file.values.pop(place),
                lambda: file.values.append((key, value)),
                lambda: rng.shuffle(file.values),
            )
        )()
    elif how == 5:
        file.values[place] = (
            key,
            any_bytes(value, rng) if len(value) > 16 else bytes(rng.randrange(256) for _ in value),
        )
    elif how == 6:
        tensor, other = rng.choice(file.tensors), rng.choice(file.tensors)
        field = rng.randrange(4)
        if field == 1:
            tensor[1] = rng.choice(
                (
                    tensor[1][::-1],
                    [*tensor[1], 1],
                    tensor[1][:-1],
                    [rng.choice(NUMBERS)] * len(tensor[1]),
                )
            )
        elif field and rng.random() < 0.7:
            tensor[field] = rng.choice(
                (*NUMBERS, tensor[field] + 1, tensor[field] + 32, rng.randrange(40))
            )
        else:
            tensor[field] = other[field]
    else:  # a weight that is not finite, or huge
        start = rng.randrange(len(file.data) // 4) * 4
        number = rng.choice((float("nan"), float("inf"), -float("inf"), 3e38, 1e30, 1e19, -1e25))
        file.data = file.data[:start] + struct.pack("<f", number) + file.data[start + 4 :]
    return file.joined()


# -- Hugging Face folders --------------------------------------------------------------------------


def any_safetensors(base: bytes, rng: random.Random) -> bytes:
    """A damaged .safetensors file."""
    (n,) = struct.unpack("<Q", base[:8])
    header, data = json.loads(base[8 : 8 + n]), bytearray(base[8 + n :])
    how = rng.randrange(5)
    if how == 0:
        return any_bytes(base, rng, 8 + n)
    if how == 1:
        header = any_json(header, rng)
    elif how == 2:
        name = rng.choice(list(header))
        header[
            rng.choice(list(header)) if rng.random() < 0.5 else f"model.{name}.rotary_emb.inv_freq"
        ] = header.pop(name)
    elif how == 3:
        name = rng.choice([name for name in header if name != "__metadata__"])
        header[name] |= rng.choice(
            (
                {"dtype": rng.choice(("F16", "BF16", "F64", "I32", "F8_E4M3", "", None))},
                {"shape": header[name]["shape"][::-1]},
                {
                    "data_offsets": [
                        x + rng.choice((-4, 1, 4)) for x in header[name]["data_offsets"]
                    ]
                },
            )
        )
    else:
        size = rng.choice((2, 4, 8))
        start = rng.randrange(len(data) // 8) * 8
        letter = {2: "<e", 4: "<f", 8: "<d"}[size]
        data[start : start + size] = struct.pack(
            letter, rng.choice((float("nan"), float("inf"), 6e4))
        )
    text = to_json(header, rng)
    return struct.pack("<Q", len(text)) + text + bytes(data)


def any_folder(base: dict[str, bytes], rng: random.Random) -> dict[str, bytes]:
    """A folder with one damaged file; an index or a part of the weights may be there too."""
    files = dict(base)
    name = rng.choice(
        (
            "config.json",
            "config.json",
            "tokenizer.json",
            "model.safetensors",
            "model.safetensors.index.json",
        )
    )
    if name == "model.safetensors":
        files[name] = any_safetensors(files[name], rng)
    elif name.endswith("index.json"):
        files["part.safetensors"] = files.pop("model.safetensors")
        weight_map = dict.fromkeys(("lm_head.weight", "model.norm.weight"), "part.safetensors")
        files[name] = to_json(
            any_json({"metadata": {"total_size": 1}, "weight_map": weight_map}, rng), rng
        )
        if rng.random() < 0.2:
            files["other.safetensors"] = any_safetensors(files["part.safetensors"], rng)
    else:
        files[name] = to_json(any_json(json.loads(files[name]), rng), rng)
    if rng.random() < 0.02:
        files.pop(rng.choice(list(files)))
    return files


# -- the run ---------------------------------------------------------------------------------------


def bases(folder: Path) -> tuple[list[bytes], list[dict[str, bytes]]]:
    """The files that are damaged: GGUF, and the files of Hugging Face folders."""
    ggufs, folders = [], []
    for shape in ("mha_tied", "gqa_untied", "qwen2", "llama3"):
        model, tokenizer = make(shape, n_layers=1)
        tokenizer = replace(tokenizer.ended_by([260, 7]), chat=CHAT)
        header = {"general.quantization_version": 2, "tokenizer.chat_template": CHAT.source}
        for kind in ("F32", "Q4_0", "F16"):
            ggufs.append(write_gguf(folder / "m.gguf", model, kind, header).read_bytes())
        saved = save_hugging_face(model, tokenizer, folder / shape)
        folders.append({file.name: file.read_bytes() for file in saved.iterdir()})
        stored = {name: weight.astype(np.float64) for name, weight in half_split(model).items()}
        header, offset = {}, 0
        for name, weight in stored.items():
            header[name] = {
                "dtype": "F64",
                "shape": weight.shape,
                "data_offsets": [offset, offset + weight.nbytes],
            }
            offset += weight.nbytes
        text = json.dumps(header).encode()
        weights = (
            struct.pack("<Q", len(text))
            + text
            + b"".join(weight.tobytes() for weight in stored.values())
        )
        folders.append(folders[-1] | {"model.safetensors": weights})
    return ggufs, folders


def outcome(path: Path) -> str:
    """What loading a damaged model leads to: loaded, refused, or one of the faults."""
    try:
        model, tokenizer = load_model(path)
        tokenizer.encode("ab 12 <end>")
        if tokenizer.chat.source is not None:
            tokenizer.encode_chat("ab 12")
    except (ValueError, OSError) as error:
        if "does not fit into the memory" in str(error):
            return "over 2 GB"
        return "several lines" if "\n" in str(error) else "refused"
    except Hangs:
        return "hangs"
    except BaseException:  # a panic of a Rust library is no Exception
        traceback.print_exc()
        return "traceback"
    tokens = TOKENS[: model.config.max_seq_len] % model.config.vocab_size
    with np.errstate(all="ignore"):
        finite = (
            np.isfinite(model.parameters.flat).all() and np.isfinite(model.logits(tokens)).all()
        )
    return "loaded" if finite else "not finite"


def run(
    n: int, seed: int, only: int | None = None, report: Callable[[str], Any] = print
) -> Counter:
    """n damaged models.   -> how many came out how"""

    def hangs(*_: Any) -> None:
        raise Hangs

    found: Counter = Counter()
    signal.signal(signal.SIGALRM, hangs)
    with tempfile.TemporaryDirectory() as name:
        ggufs, folders = bases(Path(name))
        file, folder = Path(name) / "case.gguf", Path(name) / "case"
        folder.mkdir()
        outcome(Path(name) / "mha_tied")  # what is imported is imported
        if Path("/proc/self/statm").exists():  # elsewhere the memory is not limited
            import resource

            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(
                resource.RLIMIT_AS, (used + ROOM, resource.getrlimit(resource.RLIMIT_AS)[1])
            )
        for i in range(n) if only is None else (only,):
            rng = random.Random(f"{seed} {i}")
            if i % 2:
                path = file
                path.write_bytes(any_gguf(rng.choice(ggufs), rng))
            else:
                path = folder
                for old in folder.iterdir():
                    old.unlink()
                for part, data in any_folder(rng.choice(folders), rng).items():
                    (folder / part).write_bytes(data)
            signal.alarm(SECONDS)
            result = outcome(path)
            signal.alarm(0)
            found[result] += 1
            if result not in ("loaded", "refused"):
                report(f"case {i}: {result}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="the number of one case")
    options = parser.parse_args()
    counts = run(options.n, options.seed, options.only)
    print(json.dumps(counts))
    sys.exit(0 if set(counts) <= {"loaded", "refused"} else 1)
