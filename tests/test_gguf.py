"""GGUF files: the same model as the Hugging Face folder they were made from;
damaged and foreign ones are refused.
"""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf", reason="language models need the extra lm")
pytest.importorskip("tokenizers", reason="language models need the extra lm")
import gguf
from fuzz_models import Gguf
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
    ("kind", "error"),
    [("F16", 5e-4), ("BF16", 4e-3), ("Q8_0", 5e-3), ("Q4_0", 0.1), ("Q4_1", 0.08), ("Q5_0", 0.05)],
)
def test_quantisations(kind: str, error: float, tmp_path: Path) -> None:
    """Dequantised weights are those of the gguf package's own reader, and near the original."""
    model, _ = make("gqa_untied")
    path = write_gguf(tmp_path / "m.gguf", model, kind)
    loaded, _ = load_model(path)
    difference = np.linalg.norm(loaded.parameters.flat - model.parameters.flat) / np.linalg.norm(
        model.parameters.flat
    )
    assert 0 < difference < error
    for tensor in gguf.GGUFReader(path).tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        name = {
            "token_embd.weight": "model.embed_tokens.weight",
            "blk.1.attn_k.weight": "model.layers.1.self_attn.k_proj.weight",
        }
        if tensor.name in name:
            np.testing.assert_array_equal(loaded.parameters[name[tensor.name]], expected)


def test_the_tokenizer_is_rebuilt(tmp_path: Path) -> None:
    _, expected = make()
    for pre in ("smollm", "gpt-2"):
        tokenizer = load_tokenizer(
            write_gguf(tmp_path / f"{pre}.gguf", make()[0], metadata={"tokenizer.ggml.pre": pre})
        )
        for text in ("abc + 12\n\n", "<end>abc", "é 🙂", ""):
            assert tokenizer.encode(text).tolist() == expected.encode(text).tolist()
            assert tokenizer.core.decode(tokenizer.encode(text), skip_special_tokens=False) == text


def test_digits_stay_apart_only_where_the_model_wants_it(tmp_path: Path) -> None:
    changes = {
        "tokenizer.ggml.tokens": [*TOKENS[:-1], "12", "<end>"],
        "tokenizer.ggml.merges": [*MERGES, "1 2"],
    }
    changes |= {
        "tokenizer.ggml.token_type": [1] * len(TOKENS) + [3],
        "tokenizer.ggml.eos_token_id": EOS + 1,
    }
    lengths = {}
    for pre in ("smollm", "gpt-2"):
        tokenizer = load_tokenizer(
            write_gguf(
                tmp_path / f"{pre}.gguf", make()[0], metadata=changes | {"tokenizer.ggml.pre": pre}
            )
        )
        lengths[pre] = len(tokenizer.encode("12"))
    assert lengths == {"smollm": 2, "gpt-2": 1}


def test_a_tokenizer_beside_the_file(tmp_path: Path) -> None:
    model, tokenizer = make()
    path = write_gguf(tmp_path / "m.gguf", model, metadata={"tokenizer.ggml.model": "llama"})
    with pytest.raises(
        ValueError, match=r"kind 'llama' .* put the model's tokenizer\.json beside the file"
    ):
        load_model(path)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    assert load_model(path)[1].eos == EOS


ADDED = ["<think>", "  ", "<é>", "<end>", "<start>"]  # 260 … 264
ADDED_TYPES = [1] * (len(TOKENS) - 1) + [4, 4, 4, 3, 3]


def with_tokens(path: Path, **keys) -> Path:
    """A file whose tokenizer has the added tokens.   keys: of its header, in place of these"""
    keys = {"tokens": [*TOKENS[:-1], *ADDED], "types": ADDED_TYPES, "eos_token_id": 263} | keys
    keys["token_type"] = keys.pop("types")
    metadata = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    return write_gguf(path, make()[0], metadata=metadata)


def test_tokens_of_the_user_are_found_in_a_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(with_tokens(tmp_path / "m.gguf"))
    end, think, two_spaces, accent, a, b = 263, 260, 261, 262, TOKENS.index("a"), TOKENS.index("b")
    for text, expected in {
        "<think>": [think],
        "a<think>b<end>": [a, think, b, end],
        "<think><think>": [think, think],
        "a  b": [a, two_spaces, b],
        "a<é>b": [a, accent, b],
        "a<thinkb": [a, *(TOKENS.index(c) for c in "<thinkb")],
    }.items():
        assert tokenizer.encode(text).tolist() == expected, text
    assert (
        tokenizer.core.decode([a, two_spaces, think, b], skip_special_tokens=False) == "a  <think>b"
    )


def test_texts_begin_with_bos_where_the_file_says_so(tmp_path: Path) -> None:
    start, end, a = 264, 263, TOKENS.index("a")
    plain = load_tokenizer(
        with_tokens(tmp_path / "plain.gguf", add_bos_token=False, bos_token_id=start)
    )
    assert plain.encode("a").tolist() == [a] and plain.encode("").tolist() == []
    tokenizer = load_tokenizer(
        with_tokens(tmp_path / "bos.gguf", add_bos_token=True, bos_token_id=start)
    )
    assert tokenizer.encode("a<end>").tolist() == [start, a, end]
    assert tokenizer.encode("").tolist() == [start]
    assert tokenizer.encode("<start>a").tolist() == [start, a], (
        "a template that writes the BOS itself gets no second one"
    )
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    assert load_tokenizer(tmp_path / "bos.gguf").encode("a").tolist() == [start, a]
    with pytest.raises(ValueError, match=r"begins with \[264\] there; add_bos_token is False here"):
        load_tokenizer(tmp_path / "plain.gguf")
    (tmp_path / "tokenizer.json").write_text(plain.to_json(), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"begins with \[\d+\] there; add_bos_token is True here, and BOS 264"
    ):
        load_tokenizer(tmp_path / "bos.gguf")


@pytest.mark.parametrize(
    "what", ["of another model", "two tokens changed places", "without the EOS"]
)
def test_a_tokenizer_beside_the_file_that_is_not_its_own_is_refused(
    what: str, tmp_path: Path
) -> None:
    model, tokenizer = make()
    write_gguf(tmp_path / "m.gguf", model)
    stored = json.loads(tokenizer.to_json())
    vocabulary = stored["model"]["vocab"]
    if what == "of another model":
        stored["model"]["vocab"], stored["model"]["merges"] = {"a": 0, "b": 1, "<end>": 2}, []
        stored["added_tokens"][0]["id"] = 2
    elif what == "two tokens changed places":
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    else:
        del vocabulary["<end>"]
        stored["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="is not this model's, or one of them is damaged"):
        load_model(tmp_path / "m.gguf")


@pytest.mark.parametrize("what", ["a norm's weight", "all weights", "a layer's matrices"])
def test_finite_weights_whose_products_overflow_are_refused(what: str, tmp_path: Path) -> None:
    """A norm divides what has overflowed by infinity:
    the logits would be 0 or NaN, and no weight shows it.
    """
    model, _ = make()
    if what == "a norm's weight":
        model.parameters["model.layers.1.post_attention_layernorm.weight"][3] = 1e18
    elif what == "all weights":
        model.parameters.flat[:] = (
            np.random.default_rng(0).standard_normal(model.parameters.flat.size) * 1e12
        )
    else:
        for name in ("gate", "up", "down"):
            model.parameters[f"model.layers.0.mlp.{name}_proj.weight"][:] *= 1e14
    path = write_gguf(tmp_path / "m.gguf", model)
    with pytest.raises(
        ValueError, match="needs more than float32: the model's weights are not finite, or so large"
    ):
        load_model(path)
    if what == "a norm's weight":
        assert np.isfinite(load_model(path, dtype="float64")[0].logits([65, 66])).all()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"add_bos_token": True}, "begin with a BOS that it does not name"),
        ({"add_bos_token": True, "bos_token_id": 265}, "begin with a BOS that it does not name"),
        (
            {"add_bos_token": True, "bos_token_id": "<start>"},
            "begin with a BOS that it does not name",
        ),
        ({"add_bos_token": "yes", "bos_token_id": 264}, "begin with a BOS that it does not name"),
        (
            {"add_eos_token": True},
            "(True): 'tokenizer.ggml.add_eos_token' of its header is not supported",
        ),
        ({"add_sep_token": True}, "'tokenizer.ggml.add_sep_token' of its header is not supported"),
        (
            {"add_space_prefix": True},
            "'tokenizer.ggml.add_space_prefix' of its header is not supported",
        ),
        (
            {"remove_extra_whitespaces": True},
            "'tokenizer.ggml.remove_extra_whitespaces' of its header",
        ),
        ({"precompiled_charsmap": [1, 2]}, "'tokenizer.ggml.precompiled_charsmap' of its header"),
        ({"normalizer.lowercase": True}, "'tokenizer.ggml.normalizer.lowercase' of its header"),
        ({"types": ADDED_TYPES[:-1]}, "its tokens need a type each"),
        ({"types": [*ADDED_TYPES[:-1], 6]}, "its tokens need a type each"),
        ({"types": 0}, "holds a damaged tokenizer"),
        ({"types": None}, "holds a damaged tokenizer"),
        ({"types": ["a"] * len(ADDED_TYPES)}, "its tokens need a type each"),
        ({"tokens": [*TOKENS[:-1], *ADDED[:-1], "<end>"]}, "265 tokens (264 different ones)"),
        ({"tokens": list(range(265))}, "holds a damaged tokenizer"),
        ({"eos_token_id": 265}, "265 tokens (265 different ones) with EOS 265"),
        ({"eos_token_id": "<end>"}, "with EOS <end> for a vocabulary of 288"),
    ],
)
def test_tokenizers_that_are_not_rebuilt(keys: dict, message: str, tmp_path: Path) -> None:
    path = with_tokens(tmp_path / "m.gguf", **keys)
    with pytest.raises(ValueError) as error:
        load_model(path)
    assert message in str(error.value) and "\n" not in str(error.value)


NEUTRAL = {
    "general.name": "a name",
    "general.license": "apache-2.0",
    "general.tags": ["a", "b"],
    "general.base_model.0.name": "a",
    "general.sampling.temp": 0.6,
    "general.type": "model",
    "general.quantization_version": 2,
    "general.file_type": 7,
    "quantize.imatrix.entries_count": 210,
    "mradermacher.quantize_version": 2,
    "someone.note": "made with care",
    "split.count": 0,
    "split.tensors.count": 20,
    "llama.vocab_size": 288,
    "llama.rope.scaling.type": "none",
    "llama.rope.scaling.factor": 1.0,
    "llama.rope.scale_linear": 0.0,
    "llama.rope.scaling.original_context_length": 32,
    "llama.rope.scaling.finetuned": False,
    "llama.expert_count": 0,
    "llama.attention.causal": True,
    "llama.attention.value_length": 8,
    "llama.attention.layer_norm_epsilon": 0.5,
    "llama.tensor_data_layout": "Meta AI original pth",
    "tokenizer.chat_template": "{{ messages }}",
    "tokenizer.chat_template.tool_use": "{{ messages }}",
    "tokenizer.ggml.padding_token_id": 0,
    "tokenizer.ggml.fim_pre_token_id": 1,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.add_space_prefix": False,
    "tokenizer.ggml.scores": [0.0] * 261,
}


def test_what_changes_no_number_is_let_through(tmp_path: Path) -> None:
    model, _ = make()
    loaded, _ = load_model(write_gguf(tmp_path / "m.gguf", model, metadata=NEUTRAL))
    np.testing.assert_array_equal(loaded.logits(TEXT), model.logits(TEXT))


SCALED, UNKNOWN = "scales rotary positions", "has a key that may change what is computed"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "llama.rope.scaling.type",
            "yarn",
            f"{SCALED} (yarn): 'llama.rope.scaling.type' of its header is not supported",
        ),
        ("llama.rope.scaling.factor", float("nan"), SCALED),
        ("llama.rope.scaling.factor", -2.0, SCALED),
        ("llama.rope.scaling.factor", "two", SCALED),
        ("llama.rope.scaling.type", ["none"], SCALED),
        ("llama.rope.scale_linear", float("inf"), SCALED),
        ("llama.rope.scaling.attn_factor", 1.1, SCALED),
        ("llama.rope.scaling.yarn_ext_factor", 1.0, SCALED),
        ("llama.rope.dimension_sections", [1, 2], SCALED),
        ("llama.expert_used_count", 2, "is a mixture of experts (2)"),
        ("llama.expert_weights_scale", 2.0, "is a mixture of experts (2.0)"),
        ("split.count", 3, "is one of several parts (3): 'split.count'"),
        ("general.type", "adapter", f"{UNKNOWN} (adapter)"),
        ("general.quantization_version", 1, UNKNOWN),
        ("llama.attention.clamp_kqv", 8.0, f"{UNKNOWN} (8.0): 'llama.attention.clamp_kqv'"),
        ("llama.attention.scale", 0.5, UNKNOWN),
        ("llama.attention.sliding_window", 32, UNKNOWN),
        ("llama.attention.max_alibi_bias", 8.0, UNKNOWN),
        ("llama.attention.causal", False, UNKNOWN),
        ("llama.logit_scale", 0.25, UNKNOWN),
        ("llama.embedding_scale", 12.0, UNKNOWN),
        ("llama.residual_scale", 0.2, UNKNOWN),
        ("llama.final_logit_softcapping", 30.0, UNKNOWN),
        ("llama.hidden_activation", "gelu", UNKNOWN),
        ("llama.use_parallel_residual", True, UNKNOWN),
        ("adapter.lora.alpha", 16.0, UNKNOWN),
        ("nobody.knows", 1, UNKNOWN),
        (
            "llama.attention.layer_norm_rms_epsilon",
            float("inf"),
            "it should be a number from 1e-30 to 1",
        ),
        ("llama.rope.freq_base", float("nan"), "it should be a number from 1 to 1e+30"),
        ("llama.rope.freq_base", 1e-40, "it should be a number from 1 to 1e+30"),
        ("llama.rope.freq_base", True, "it should be a number"),
        ("llama.block_count", True, "it should be a whole number above 0"),
        (
            "llama.block_count",
            [1, 2],
            "llama.block_count is [1, 2], it should be a whole number above 0",
        ),
        ("general.architecture", "x" * 10_000, "holds a model of architecture 'xxx"),
        ("general.alignment", 24, "its alignment is 24, it should be a power of two"),
    ],
)
def test_keys_that_change_numbers_are_refused_by_name(
    key: str, value: object, message: str, tmp_path: Path
) -> None:
    path = write_gguf(
        tmp_path / "m.gguf",
        make(n_layers=1)[0],
        metadata={key: value} if key != "general.alignment" else None,
    )
    if key == "general.alignment":
        file = Gguf(path.read_bytes())
        file.values.append((key.encode(), struct.pack("<II", 4, value)))
        path.write_bytes(file.joined())
    with pytest.raises(ValueError) as error:
        load_model(path)
    assert message in str(error.value) and len(str(error.value)) < 500


def test_a_rotary_base_is_read_to_its_last_digit(tmp_path: Path) -> None:
    for base in (1_234_567.0, 500_000.0, 10_000.0, 123_456.79):
        model, _ = make(rope_base=base, norm_eps=3e-6)
        loaded, _ = load_model(write_gguf(tmp_path / "m.gguf", model))
        assert np.float32(loaded.config.rope_base) == np.float32(base)
        assert loaded.config.norm_eps == 3e-6


def test_a_long_context_takes_no_memory(tmp_path: Path) -> None:
    model, _ = make(n_layers=1)
    for context in (2**31 - 1, 2**32 - 1):
        loaded, _ = load_model(
            write_gguf(tmp_path / "m.gguf", model, metadata={"llama.context_length": context})
        )
        assert loaded.config.max_seq_len == context
        np.testing.assert_array_equal(loaded.logits(TEXT), model.logits(TEXT))


REFUSED = {
    "another architecture": ({"general.architecture": "gemma"}, "architecture 'gemma': only llama"),
    "rotary scaling": ({"llama.rope.scaling.type": "yarn"}, "scales rotary positions (yarn)"),
    "experts": ({"llama.expert_count": 8}, "mixture of experts"),
    "no layers": ({"llama.block_count": None}, "lacks llama.block_count"),
    "a huge number of layers": (
        {"llama.block_count": 2**32 - 1},
        "4294967295 layers but 20 tensors",
    ),
    "a huge width": ({"llama.embedding_length": 2**31}, "has shape"),
    "half of each head rotated": (
        {"llama.rope.dimension_count": 4},
        "rope.dimension_count is 4, but heads are 8 wide",
    ),
    "heads in words": ({"llama.attention.head_count": "four"}, "attention.head_count is 'four'"),
    "a base in words": (
        {"llama.rope.freq_base": "big"},
        "rope.freq_base is 'big', it should be a number",
    ),
    "an unknown splitting of text": (
        {"tokenizer.ggml.pre": "qwen2"},
        "kind 'gpt2' ('qwen2'), which is not rebuilt",
    ),
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


def place(file: Gguf, name: bytes) -> list:
    return next(tensor for tensor in file.tensors if tensor[0] == name)


@pytest.mark.parametrize(
    "what",
    [
        "overlap",
        "the same place",
        "a part of another",
        "not aligned",
        "a name twice",
        "a key twice",
    ],
)
def test_tensors_that_cannot_be(what: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", make(n_layers=1)[0])
    file = Gguf(path.read_bytes())
    up, gate, down = (place(file, f"blk.0.ffn_{x}.weight".encode()) for x in ("up", "gate", "down"))
    if what == "overlap":
        up[3] -= 64
    elif what == "the same place":
        up[3] = gate[3]
    elif what == "a part of another":
        place(file, b"output_norm.weight")[3] = down[3] + 32
    elif what == "not aligned":
        file.tensors[-1][3] += 4
        file.data += bytes(4)
    elif what == "a name twice":
        file.tensors.append(list(file.tensors[0]))
    else:
        file.values.append(file.values[3])
    path.write_bytes(file.joined())
    with pytest.raises(
        ValueError, match=r"twice, overlaps another or is not aligned|says 'llama\.\w+' twice"
    ):
        load_model(path)


def test_tensors_may_lie_in_any_order(tmp_path: Path) -> None:
    model, _ = make(n_layers=1)
    path = write_gguf(tmp_path / "m.gguf", model)
    file = Gguf(path.read_bytes())
    file.tensors.reverse()
    path.write_bytes(file.joined())
    np.testing.assert_array_equal(load_model(path)[0].parameters.flat, model.parameters.flat)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("bits", ["nan", "inf", "-inf"])
def test_weights_that_are_not_finite_are_refused_by_name(
    kind: str, bits: str, tmp_path: Path
) -> None:
    """In quantised tensors, it is the scale of a block that is not finite."""
    path = write_gguf(tmp_path / "m.gguf", make("gqa_untied", n_layers=1)[0], kind)
    file = Gguf(path.read_bytes())
    start = place(file, b"blk.0.ffn_up.weight")[3]
    raw = (
        np.float32(bits).tobytes()[2:]
        if kind == "BF16"
        else np.array(bits, "<f4" if kind == "F32" else "<f2").tobytes()
    )
    file.data = file.data[:start] + raw + file.data[start + len(raw) :]
    path.write_bytes(file.joined())
    with pytest.raises(
        ValueError, match=r"model\.layers\.0\.mlp\.up_proj\.weight has a weight that is not finite"
    ):
        load_model(path)


def test_weights_whose_squares_overflow_are_refused(tmp_path: Path) -> None:
    model, _ = make(n_layers=1)
    model.parameters["model.norm.weight"][3] = -3e38
    path = write_gguf(tmp_path / "m.gguf", model)
    with pytest.raises(
        ValueError, match=r"model\.norm\.weight has a weight that is not finite, or too large"
    ):
        load_model(path)
    assert load_model(path, dtype="float64")[0].parameters["model.norm.weight"][3] < -2e38


def test_tensors_that_do_not_belong(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "m.gguf", make()[0], extra={"rope_factors_long.weight": np.ones(4)}
    )
    with pytest.raises(
        ValueError, match=r"'rope_factors_long\.weight' belongs to a kind of model that is not"
    ):
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


# -- damaged and malicious files -------------------------------------------------------------------


def test_cut_short_anywhere(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", make(n_layers=1)[0])
    data, cut = path.read_bytes(), tmp_path / "cut.gguf"
    for length in (
        *range(0, 64),
        *np.random.default_rng(0).integers(64, len(data) - 32, 60).tolist(),
    ):
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
    "an array of numbers whose size overflows": header(
        0, string("x") + struct.pack("<IIQ", ARRAY, U64, 2**61)
    )
    + bytes(64),
    "an array of strings": header(0, string("x") + struct.pack("<IIQ", ARRAY, STRING, 2**62))
    + bytes(64),
    "arrays in arrays": header(0, string("x") + struct.pack("<IIQ", ARRAY, ARRAY, 2**62))
    + bytes(64),
    "a type that is not there": header(0, string("x") + struct.pack("<I", 77)) + bytes(64),
    "dimensions": header(1) + string("token_embd.weight") + struct.pack("<I", 2**31) + bytes(64),
    "a shape": header(1)
    + string("token_embd.weight")
    + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0)
    + bytes(64),
    "an offset": header(1)
    + string("token_embd.weight")
    + struct.pack("<IQQIQ", 2, 32, 2, 0, 2**63)
    + bytes(64),
    "an empty tensor": header(1)
    + string("token_embd.weight")
    + struct.pack("<IQQIQ", 2, 0, 2, 0, 0)
    + bytes(64),
    "an alignment of nothing": header(0, string("general.alignment") + struct.pack("<II", 4, 0))
    + bytes(64),
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
