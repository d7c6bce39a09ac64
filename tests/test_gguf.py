"""GGUF files: the same model as the Hugging Face folder they were made from; damaged and foreign ones are refused."""

import struct
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf", reason="language models need the extra lm")
pytest.importorskip("tokenizers", reason="language models need the extra lm")
import gguf
from tiny_language_model import EOS, MERGES, SHAPES, TOKENS, make, write_gguf

from minigrpo.models import load_model, load_tokenizer
from minigrpo.models.gguf_file import GGUFFile

TEXT = np.array([5, 250, 17, 99, 99, 3])
STRING, ARRAY, U8, U64 = 8, 9, 0, 10


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_model(shape: str, tmp_path: Path) -> None:
    """The writer permutes Q and K of the half-split checkpoint as llama.cpp does."""
    model, _ = make(shape)
    loaded, tokenizer = load_model(write_gguf(tmp_path / "m.gguf", model))
    assert loaded.config == model.config
    np.testing.assert_array_equal(loaded.parameters.flat, model.parameters.flat)
    np.testing.assert_array_equal(loaded.logits(TEXT), model.logits(TEXT))
    assert tokenizer.eos == EOS


@pytest.mark.parametrize(
    ("kind", "error"), [("F16", 5e-4), ("BF16", 4e-3), ("Q8_0", 5e-3), ("Q4_0", 0.1), ("Q4_1", 0.08), ("Q5_0", 0.05)]
)
def test_quantisations(kind: str, error: float, tmp_path: Path) -> None:
    """Dequantised weights are those of the gguf package's own reader, and near the ones that were quantised."""
    model, _ = make("gqa_untied")
    path = write_gguf(tmp_path / "m.gguf", model, kind)
    loaded, _ = load_model(path)
    difference = np.linalg.norm(loaded.parameters.flat - model.parameters.flat) / np.linalg.norm(model.parameters.flat)
    assert 0 < difference < error
    for tensor in gguf.GGUFReader(path).tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        name = {"token_embd.weight": "model.embed_tokens.weight", "blk.1.attn_k.weight": "model.layers.1.self_attn.k_proj.weight"}
        if tensor.name in name:
            np.testing.assert_array_equal(loaded.parameters[name[tensor.name]], expected)


def test_the_tokenizer_is_rebuilt(tmp_path: Path) -> None:
    _, expected = make()
    for pre in ("smollm", "gpt-2"):
        tokenizer = load_tokenizer(write_gguf(tmp_path / f"{pre}.gguf", make()[0], metadata={"tokenizer.ggml.pre": pre}))
        for text in ("abc + 12\n\n", "<end>abc", "é 🙂", ""):
            assert tokenizer.encode(text).tolist() == expected.encode(text).tolist()
            assert tokenizer.core.decode(tokenizer.encode(text), skip_special_tokens=False) == text


def test_digits_stay_apart_only_where_the_model_wants_it(tmp_path: Path) -> None:
    changes = {"tokenizer.ggml.tokens": [*TOKENS[:-1], "12", "<end>"], "tokenizer.ggml.merges": [*MERGES, "1 2"]}
    changes |= {"tokenizer.ggml.token_type": [1] * len(TOKENS) + [3], "tokenizer.ggml.eos_token_id": EOS + 1}
    lengths = {}
    for pre in ("smollm", "gpt-2"):
        tokenizer = load_tokenizer(write_gguf(tmp_path / f"{pre}.gguf", make()[0], metadata=changes | {"tokenizer.ggml.pre": pre}))
        lengths[pre] = len(tokenizer.encode("12"))
    assert lengths == {"smollm": 2, "gpt-2": 1}


def test_a_tokenizer_beside_the_file(tmp_path: Path) -> None:
    model, tokenizer = make()
    path = write_gguf(tmp_path / "m.gguf", model, metadata={"tokenizer.ggml.model": "llama"})
    with pytest.raises(ValueError, match=r"kind 'llama' .* put the model's tokenizer\.json beside the file"):
        load_model(path)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    assert load_model(path)[1].eos == EOS


REFUSED = {
    "another architecture": ({"general.architecture": "qwen2"}, "architecture 'qwen2': only llama"),
    "rotary scaling": ({"llama.rope.scaling.type": "yarn"}, "scales rotary positions (yarn)"),
    "experts": ({"llama.expert_count": 8}, "mixture of experts"),
    "no layers": ({"llama.block_count": None}, "lacks llama.block_count"),
    "a huge number of layers": ({"llama.block_count": 2**32 - 1}, "4294967295 layers but 20 tensors"),
    "a huge width": ({"llama.embedding_length": 2**31}, "has shape"),
    "half of each head rotated": ({"llama.rope.dimension_count": 4}, "rope.dimension_count is 4, but heads are 8 wide"),
    "heads in words": ({"llama.attention.head_count": "four"}, "attention.head_count is 'four'"),
    "a base in words": ({"llama.rope.freq_base": "big"}, "rope.freq_base is 'big', it should be a number"),
    "an unknown splitting of text": ({"tokenizer.ggml.pre": "qwen2"}, "kind 'gpt2' ('qwen2'), which is not rebuilt"),
    "merges of nothing": ({"tokenizer.ggml.merges": ["x"]}, "holds a damaged tokenizer"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, "holds a damaged tokenizer"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_supported_is_refused(what: str, tmp_path: Path) -> None:
    changes, message = REFUSED[what]
    path = write_gguf(tmp_path / "m.gguf", make()[0], metadata=changes)
    with pytest.raises(ValueError) as error:
        load_model(path)
    assert message in str(error.value)


def test_tensors_that_do_not_belong(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", make()[0], extra={"rope_freqs.weight": np.ones(4)})
    with pytest.raises(ValueError, match=r"'rope_freqs\.weight' belongs to a kind of model that is not supported"):
        load_model(path)


def test_quantisations_that_are_not_supported(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", make()[0])
    data = bytearray(path.read_bytes())
    place = data.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 16
    for number, name in ((18, "IQ3_XXS"), (999, "number 999")):
        data[place : place + 4] = struct.pack("<I", number)
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"has quantisation {name}: supported are F32"):
            GGUFFile(path)


# -- damaged and malicious files -------------------------------------------------------------------------------------------


def test_cut_short_anywhere(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", make(n_layers=1)[0])
    data, cut = path.read_bytes(), tmp_path / "cut.gguf"
    for length in (*range(0, 64), *np.random.default_rng(0).integers(64, len(data) - 32, 60).tolist()):
        cut.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"is cut short|is not a GGUF file"):
            load_model(cut)


def header(n_tensors: int, *values: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, len(values)) + b"".join(values)


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


MALICIOUS = {
    "a count of tensors": header(2**62) + bytes(64),
    "a count of values": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**62) + bytes(64),
    "a long name": header(0, struct.pack("<Q", 2**63)) + bytes(64),
    "an array of bytes": header(0, string("x") + struct.pack("<IIQ", ARRAY, U8, 2**62)) + bytes(64),
    "an array of numbers whose size overflows": header(0, string("x") + struct.pack("<IIQ", ARRAY, U64, 2**61)) + bytes(64),
    "an array of strings": header(0, string("x") + struct.pack("<IIQ", ARRAY, STRING, 2**62)) + bytes(64),
    "arrays in arrays": header(0, string("x") + struct.pack("<IIQ", ARRAY, ARRAY, 2**62)) + bytes(64),
    "a type that is not there": header(0, string("x") + struct.pack("<I", 77)) + bytes(64),
    "dimensions": header(1) + string("token_embd.weight") + struct.pack("<I", 2**31) + bytes(64),
    "a shape": header(1) + string("token_embd.weight") + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0) + bytes(64),
    "an offset": header(1) + string("token_embd.weight") + struct.pack("<IQQIQ", 2, 32, 2, 0, 2**63) + bytes(64),
    "an empty tensor": header(1) + string("token_embd.weight") + struct.pack("<IQQIQ", 2, 0, 2, 0, 0) + bytes(64),
    "an alignment of nothing": header(0, string("general.alignment") + struct.pack("<II", 4, 0)) + bytes(64),
    "another version": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "nothing else": header(0),
}


@pytest.mark.parametrize("what", MALICIOUS)
def test_malicious_headers_are_refused_at_once(what: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(MALICIOUS[what])
    with pytest.raises(ValueError):
        load_model(path)


def test_any_flipped_bit_of_the_header_gives_a_model_or_a_clear_error(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", make(n_layers=1)[0])
    data = path.read_bytes()
    end = len(data) - 4 * make(n_layers=1)[0].parameters.flat.size
    rng, refused = np.random.default_rng(1), 0
    for place in rng.integers(end, size=250).tolist():
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            load_model(path)
        except ValueError:
            refused += 1
    assert 20 < refused < 250
