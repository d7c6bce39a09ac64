"""Hugging Face folders: what is written is read back in the same bits, and what is not supported is refused."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="language models need the extra lm")
pytest.importorskip("tokenizers", reason="language models need the extra lm")
pytest.importorskip("gguf", reason="language models need the extra lm")
from tiny_language_model import EOS, SHAPES, half_split, make, rewrite_config

from minigrpo.models import load_model, load_tokenizer, save_hugging_face

TEXT = np.array([5, 250, 17, 99, 99, 3])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_hugging_face(*make(), tmp_path / "model")


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], kind: str) -> None:
    """An independent writer.   kind: F32, F16 or BF16 (rounded towards 0)"""
    stored = {n: a.astype(np.float16) if kind == "F16" else a.astype(np.float32) for n, a in tensors.items()}
    if kind == "BF16":
        stored = {name: (a.view(np.uint32) >> 16).astype(np.uint16) for name, a in stored.items()}
    header, offset = {}, 0
    for name, a in stored.items():
        header[name] = {"dtype": kind, "shape": list(a.shape), "data_offsets": [offset, offset + a.nbytes]}
        offset += a.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in stored.values()))


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_saved_is_loaded_in_the_same_bits(shape: str, tmp_path: Path) -> None:
    model, tokenizer = make(shape)
    loaded, its_tokenizer = load_model(save_hugging_face(model, tokenizer, tmp_path / "m"))
    assert loaded.config == model.config
    np.testing.assert_array_equal(loaded.parameters.flat, model.parameters.flat)
    np.testing.assert_array_equal(loaded.logits(TEXT), model.logits(TEXT))
    assert its_tokenizer.eos == EOS and its_tokenizer.vocab_size == model.config.vocab_size
    assert its_tokenizer.encode("abc 12 + é\n\n").tolist() == tokenizer.encode("abc 12 + é\n\n").tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_q_and_k_are_written_half_split(shape: str, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    model, _ = make(shape)
    stored = load_file(save_hugging_face(model, None, tmp_path / "m") / "model.safetensors")
    assert stored.keys() == model.parameters.keys()
    for name, weight in half_split(model).items():
        np.testing.assert_array_equal(stored[name], weight)


@pytest.mark.parametrize(("kind", "step"), [("F32", 0), ("F16", 2**-11), ("BF16", 2**-7)])
def test_stored_precisions(kind: str, step: float, folder: Path) -> None:
    model, _ = make()
    write_safetensors(folder / "model.safetensors", half_split(model), kind)
    loaded, _ = load_model(folder)
    difference = np.abs(loaded.parameters.flat - model.parameters.flat)
    assert (difference <= step * np.abs(model.parameters.flat) + 1e-7 * (kind == "F16")).all()
    assert kind == "F32" or difference.max() > 0


def test_shards(folder: Path) -> None:
    model, _ = make()
    weights = list(half_split(model).items())
    (folder / "model.safetensors").unlink()
    index = {}
    for i, part in enumerate((weights[:7], weights[7:])):
        name = f"model-0000{i + 1}-of-00002.safetensors"
        write_safetensors(folder / name, dict(part), "F32")
        index |= {parameter: name for parameter, _ in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    loaded, _ = load_model(folder)
    np.testing.assert_array_equal(loaded.parameters.flat, model.parameters.flat)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../other.safetensors"}}))
    with pytest.raises(ValueError, match="names a file outside its folder"):
        load_model(folder)


def test_a_tied_matrix_that_is_stored_twice(folder: Path) -> None:
    weights = half_split(make()[0])
    write_safetensors(folder / "model.safetensors", weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}, "F32")
    assert load_model(folder)[0].config.tie_embeddings


def test_older_and_newer_places_of_the_rotary_base(folder: Path) -> None:
    rewrite_config(folder, rope_theta=None, rope_parameters={"rope_theta": 123.0, "rope_type": "default"})
    assert load_model(folder)[0].config.rope_base == 123.0
    rewrite_config(folder, rope_parameters=None)
    assert load_model(folder)[0].config.rope_base == 10_000.0


REFUSED = {
    "another architecture": ({"model_type": "mistral"}, "type 'mistral': only llama"),
    "no architecture": ({"model_type": None}, "type None: only llama"),
    "rotary scaling": ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "scales rotary positions"),
    "rotary scaling, new": ({"rope_parameters": {"rope_type": "yarn"}}, "scales rotary positions"),
    "rotary scaling, old": ({"rope_scaling": {"type": "linear", "factor": 2}}, "scales rotary positions"),
    "a rotary scaling that is no object": ({"rope_scaling": "linear"}, "scales rotary positions"),
    "biases": ({"attention_bias": True}, "attention_bias is True: not supported"),
    "ffn biases": ({"mlp_bias": True}, "mlp_bias is True: not supported"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu': not supported"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantization_config"),
    "interleaved": ({"rope_interleaved": True}, "rope_interleaved is True"),
    "no width": ({"hidden_size": None}, "hidden_size is None, it should be a whole number"),
    "a width in words": ({"hidden_size": "32"}, "hidden_size is '32', it should be a whole number"),
    "a width that does not fit": ({"hidden_size": 64}, "has shape (288, 32), the configuration says (288, 64)"),
    "a huge vocabulary": ({"vocab_size": 10**15}, "the configuration says (1000000000000000, 32)"),
    "a huge number of layers": ({"num_hidden_layers": 10**12}, "asks for 1000000000000 layers, but the weights are 20 tensors"),
    "heads that do not divide": ({"num_key_value_heads": 3}, "cannot share 3 key/value heads"),
    "untied": ({"tie_word_embeddings": False}, "lacks 1 tensors of a Llama model, such as lm_head.weight"),
    "fewer layers": ({"num_hidden_layers": 1}, "has 9 tensors that a plain Llama model has not, such as model.layers.1."),
    "a base in words": ({"rope_theta": "big"}, "rope_theta is 'big', it should be a number"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_supported_is_refused(what: str, folder: Path) -> None:
    changes, message = REFUSED[what]
    rewrite_config(folder, **changes)
    with pytest.raises(ValueError) as error:
        load_model(folder)
    assert message in str(error.value)


def test_damaged_files(folder: Path) -> None:
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    for length in (0, 4, 8, 100, len(data) // 2, len(data) - 1):
        weights.write_bytes(data[:length])
        with pytest.raises(ValueError, match="is cut short or damaged"):
            load_model(folder)
    weights.write_bytes(struct.pack("<Q", 2**60) + data[8:])
    with pytest.raises(ValueError, match="is cut short or damaged"):
        load_model(folder)
    weights.write_bytes(data)
    for text, message in (("{", "is not JSON"), ("[1]", "should hold a JSON object")):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_model(folder)


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is not a tokenizer\.json"):
        load_tokenizer(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="other formats than safetensors are not read"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json is missing: give the folder of a Hugging Face model"):
        load_model(folder)
    with pytest.raises(ValueError, match="there is no model 'nowhere': give smollm2"):
        load_model("nowhere")


def test_a_folder_that_holds_a_model_is_not_overwritten(folder: Path) -> None:
    with pytest.raises(ValueError, match="holds a model already"):
        save_hugging_face(*make(seed=1), folder)
    np.testing.assert_array_equal(load_model(folder)[0].parameters.flat, make()[0].parameters.flat)


def test_a_shorter_context(folder: Path) -> None:
    assert load_model(folder, max_seq_len=10)[0].config.max_seq_len == 10
    assert load_model(folder, max_seq_len=10_000)[0].config.max_seq_len == 96
