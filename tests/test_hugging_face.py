"""Hugging Face folders: what is written is read back in the same bits, other kinds are refused."""

import json
import struct
import subprocess
import sys
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
    """An independent writer.   kind: F64, F32, F16 or BF16 (rounded towards 0)"""
    dtype = {"F64": np.float64, "F16": np.float16}.get(kind, np.float32)
    stored = {n: a.astype(dtype) for n, a in tensors.items()}
    if kind == "BF16":
        stored = {name: (a.view(np.uint32) >> 16).astype(np.uint16) for name, a in stored.items()}
    header, offset = {}, 0
    for name, a in stored.items():
        header[name] = {
            "dtype": kind,
            "shape": list(a.shape),
            "data_offsets": [offset, offset + a.nbytes],
        }
        offset += a.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(
        struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in stored.values())
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_saved_is_loaded_in_the_same_bits(shape: str, tmp_path: Path) -> None:
    model, tokenizer = make(shape)
    loaded, its_tokenizer = load_model(save_hugging_face(model, tokenizer, tmp_path / "m"))
    assert loaded.config == model.config
    np.testing.assert_array_equal(loaded.parameters.flat, model.parameters.flat)
    np.testing.assert_array_equal(loaded.logits(TEXT), model.logits(TEXT))
    assert its_tokenizer.eos == EOS and its_tokenizer.vocab_size == model.config.vocab_size
    assert (
        its_tokenizer.encode("abc 12 + é\n\n").tolist()
        == tokenizer.encode("abc 12 + é\n\n").tolist()
    )


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
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "../other.safetensors"}})
    )
    with pytest.raises(ValueError, match="names a file outside its folder"):
        load_model(folder)


def test_a_tied_matrix_that_is_stored_twice(folder: Path) -> None:
    weights = half_split(make()[0])
    write_safetensors(
        folder / "model.safetensors",
        weights | {"lm_head.weight": weights["model.embed_tokens.weight"]},
        "F32",
    )
    assert load_model(folder)[0].config.tie_embeddings


def test_older_and_newer_places_of_the_rotary_base(folder: Path) -> None:
    rewrite_config(
        folder, rope_theta=None, rope_parameters={"rope_theta": 123.0, "rope_type": "default"}
    )
    assert load_model(folder)[0].config.rope_base == 123.0
    rewrite_config(folder, rope_parameters=None)
    assert load_model(folder)[0].config.rope_base == 10_000.0


def test_one_rotary_base(folder: Path) -> None:
    for changes in (
        {"rope_parameters": {"rope_theta": 5_000.0, "rope_type": "default"}},
        {"rope_scaling": {"rope_type": "default"}},
        {"rope_scaling": {"type": "default", "rope_type": "default", "factor": 1.0}},
        {"rope_scaling": {}, "rope_parameters": None},
        {"rope_parameters": {"rope_theta": 5_000, "partial_rotary_factor": 1.0}},
    ):
        rewrite_config(folder, **changes)
        assert load_model(folder)[0].config.rope_base == 5_000.0, changes
    rewrite_config(folder, rope_parameters={"rope_theta": 6_000.0})
    with pytest.raises(ValueError, match=r"gives several rope_theta: \[5000\.0, 6000\.0\]"):
        load_model(folder)


# what transformers' to_dict() wrote in its versions, and others beside it
HARMLESS: dict = {
    "_name_or_path": "x/y", "_attn_implementation_autoset": True, "_commit_hash": None,
    "add_cross_attention": False, "architectures": ["LlamaForCausalLM"], "attention_dropout": 0.0,
    "bad_words_ids": None, "begin_suppress_tokens": None, "bos_token_id": 1,
    "chunk_size_feed_forward": 0, "cross_attention_hidden_size": None, "decoder_start_token_id":
    None, "diversity_penalty": 0.0, "do_sample": False, "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0, "exponential_decay_length_penalty": None, "finetuning_task":
    None, "forced_bos_token_id": None, "forced_eos_token_id": None, "id2label": {"0": "LABEL_0",
    "1": "LABEL_1"}, "initializer_range": 0.02, "is_decoder": False, "is_encoder_decoder": False,
    "is_llama_config": True, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "length_penalty": 1.0,
    "max_length": 20, "max_sequence_length": 2048, "min_length": 0, "name_or_path": "x/y",
    "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1,
    "output_attentions": False, "output_hidden_states": False, "output_scores": False,
    "pad_token_id": 0, "prefix": None, "pretraining_tp": 1, "problem_type": None, "pruned_heads":
    {}, "remove_invalid_values": False, "repetition_penalty": 1.0, "return_dict": True,
    "return_dict_in_generate": False, "rope_interleaved": False, "sep_token_id": None,
    "sliding_window": None, "suppress_tokens": None, "task_specific_params": None, "temperature":
    1.0, "tf_legacy_loss": False, "tie_encoder_decoder": False, "tokenizer_class": None, "top_k":
    50, "top_p": 1.0, "torch_dtype": "bfloat16", "torchscript": False, "transformers.js_config":
    {"dtype": "q4"}, "transformers_version": "4.48.0", "typical_p": 1.0, "unsloth_version":
    "2025.1.1", "use_bfloat16": False, "use_cache": True, "use_sliding_window": False,
    "embedding_multiplier": 1.0, "residual_multiplier": 1, "logits_scaling": 1.0,
    "attention_multiplier": None, "hidden_act": "swish", "quantization_config": None,
    "rope_scaling": None, "anything": None,
}  # fmt: skip


def test_what_changes_no_logit_is_let_through(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | HARMLESS))
    np.testing.assert_array_equal(load_model(folder)[0].logits(TEXT), make()[0].logits(TEXT))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_multiplier", 0.125),
        ("embedding_multiplier", 12.0),
        ("residual_multiplier", 0.22),
        ("logits_scaling", 8.0),
        ("logit_scale", 0.0625),
        ("clip_qkv", 8.0),
        ("sliding_window", 1024),
        ("use_sliding_window", True),
        ("partial_rotary_factor", 0.5),
        ("final_logit_softcapping", 30.0),
        ("query_pre_attn_scalar", 256),
        ("use_qk_norm", True),
        ("no_rope_layers", [1, 0]),
        ("num_local_experts", 8),
        ("per_layer_config", [{"num_key_value_heads": 2}]),
        ("auto_map", {"AutoModelForCausalLM": "modeling_mine.Mine"}),
        ("position_embedding_type", "alibi"),
        ("pruned_heads", {"0": [1]}),
        ("is_encoder_decoder", True),
        ("transformers_weights", "other.safetensors"),
        ("intermediate_sise", 64),
        ("a_key_of_tomorrow", 0.5),
    ],
)
def test_keys_that_change_logits_are_refused_by_name(key: str, value: object, folder: Path) -> None:
    rewrite_config(folder, **{key: value})
    with pytest.raises(ValueError) as error:
        load_model(folder)
    assert f"config.json: {key} is " in str(error.value) and "not supported" in str(error.value)


def test_defaults_are_those_of_transformers(folder: Path) -> None:
    rewrite_config(
        folder,
        max_position_embeddings=None,
        rms_norm_eps=None,
        num_key_value_heads=None,
        eos_token_id=None,
    )
    model, tokenizer = load_model(folder)
    assert (
        model.config.max_seq_len == 2048
        and model.config.norm_eps == 1e-6
        and model.config.n_kv_heads == 4
    )
    assert tokenizer.eos == 2
    rewrite_config(folder, tie_word_embeddings=None)
    with pytest.raises(
        ValueError, match=r"lacks 1 tensors of a Llama model, such as lm_head\.weight"
    ):
        load_model(folder)


def test_tokens_that_end_a_completion(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for eos, expected in ((None, None), (7, 7), ([9], 9), ([11, 12, 13], 11)):
        (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": eos}))
        assert load_tokenizer(folder).eos == expected
    for eos in ("2", True, [], [[1]], 2.0, -1, 288, {"id": 2}):
        (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": eos}))
        with pytest.raises(
            ValueError, match=r"has 261 tokens and EOS .*, the model a vocabulary of 288"
        ):
            load_tokenizer(folder)


def test_token_ids_beyond_the_vocabulary(folder: Path) -> None:
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    tokenizer["added_tokens"] += [tokenizer["added_tokens"][0] | {"id": 288, "content": "<more>"}]
    tokenizer["model"]["vocab"]["<more>"] = 288
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(
        ValueError, match="has 289 tokens and EOS 260, the model a vocabulary of 288"
    ):
        load_model(folder)


def test_buffers_of_the_rotary_positions_are_no_parameters(folder: Path) -> None:
    model, _ = make()
    for names in (
        ["model.rotary_emb.inv_freq"],
        [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(2)],
    ):
        weights = half_split(model) | {name: np.ones(4, np.float32) for name in names}
        write_safetensors(folder / "model.safetensors", weights, "F32")
        np.testing.assert_array_equal(load_model(folder)[0].parameters.flat, model.parameters.flat)
    write_safetensors(
        folder / "model.safetensors",
        half_split(model) | {"model.rotary_emb.inv_freqs": np.ones(4)},
        "F32",
    )
    told = "has 1 tensors that a plain Llama model has not, such as model.rotary_emb.inv_freqs"
    with pytest.raises(ValueError, match=told):
        load_model(folder)


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"model.norm.weight": "gone.safetensors"}},
        {"weight_map": {"x": "../model.safetensors"}},
        {"weight_map": []},
        [],
        "no JSON",
    ],
)
def test_a_whole_file_wins_over_an_index(index: object, folder: Path) -> None:
    text = index if isinstance(index, str) else json.dumps(index)
    (folder / "model.safetensors.index.json").write_text(text)
    np.testing.assert_array_equal(load_model(folder)[0].parameters.flat, make()[0].parameters.flat)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([], "should hold a JSON object"),
        ({}, "does not map tensors to files"),
        ({"weight_map": ["a.safetensors"]}, "does not map tensors to files"),
        ({"weight_map": {"x": 5}}, "does not map tensors to files"),
        ({"weight_map": {"x": ["a.safetensors"]}}, "does not map tensors to files"),
        ({"weight_map": {"x": ".."}}, "names a file outside its folder"),
        ({"weight_map": {"x": "/etc/passwd"}}, "names a file outside its folder"),
        ({"weight_map": {}}, "asks for 2 layers, but the weights are 0 tensors"),
        ({"weight_map": {"x": "gone.safetensors"}}, "gone.safetensors is missing"),
        ({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}, "is in"),
        ({"weight_map": {"x": ""}}, "is cut short or damaged"),
    ],
)
def test_indexes_that_are_wrong(index: object, message: str, folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    for name in ("a.safetensors", "b.safetensors"):
        (folder / name).write_bytes(data)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError) as error:
        load_model(folder)
    assert message in str(error.value)


def test_an_index_that_maps_to_the_wrong_part(folder: Path) -> None:
    """Every tensor of every part is taken, as transformers does, whatever the index says."""
    model, _ = make()
    weights = list(half_split(model).items())
    (folder / "model.safetensors").unlink()
    for name, part in (("a.safetensors", weights[:7]), ("b.safetensors", weights[7:])):
        write_safetensors(folder / name, dict(part), "F32")
    wrong = {name: "ab"[i % 2] + ".safetensors" for i, (name, _) in enumerate(weights)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": wrong}))
    np.testing.assert_array_equal(load_model(folder)[0].parameters.flat, model.parameters.flat)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_a_stored_head_that_differs_from_its_tied_embedding(kind: str, folder: Path) -> None:
    weights = half_split(make()[0])
    head = weights["model.embed_tokens.weight"].copy()
    head[17, 3] += 0.5
    write_safetensors(folder / "model.safetensors", weights | {"lm_head.weight": head}, kind)
    with pytest.raises(
        ValueError,
        match=r"ties its output matrix to the embedding, but lm_head\.weight differs from it",
    ):
        load_model(folder)
    rewrite_config(folder, tie_word_embeddings=False)
    loaded, _ = load_model(folder)
    assert np.abs(loaded.parameters["lm_head.weight"] - head).max() < 1e-2


@pytest.mark.parametrize(
    ("kind", "number"),
    [("F32", "nan"), ("F32", "-inf"), ("F16", "inf"), ("BF16", "nan"), ("F64", "nan")],
)
def test_weights_that_are_not_finite_are_refused_by_name(
    kind: str, number: str, folder: Path
) -> None:
    weights = half_split(make()[0])
    weights["model.layers.1.self_attn.k_proj.weight"][3, 5] = float(number)
    write_safetensors(folder / "model.safetensors", weights, kind)
    with pytest.raises(
        ValueError,
        match=r"model\.layers\.1\.self_attn\.k_proj\.weight has a weight that is not finite",
    ):
        load_model(folder)


def test_float64_weights_that_overflow_float32(folder: Path) -> None:
    weights = {name: weight.astype(np.float64) for name, weight in half_split(make()[0]).items()}
    weights["model.layers.0.mlp.down_proj.weight"][0, 0] = 1e60
    write_safetensors(folder / "model.safetensors", weights, "F64")
    with pytest.raises(
        ValueError,
        match=r"model\.layers\.0\.mlp\.down_proj\.weight has a weight that is not finite",
    ):
        load_model(folder)
    assert (
        load_model(folder, dtype="float64")[0].parameters["model.layers.0.mlp.down_proj.weight"][
            0, 0
        ]
        == 1e60
    )


def test_a_long_context_takes_no_memory(folder: Path) -> None:
    rewrite_config(folder, max_position_embeddings=2_000_000_000)
    loaded, _ = load_model(folder)
    assert loaded.config.max_seq_len == 2_000_000_000
    np.testing.assert_array_equal(loaded.logits(TEXT), make()[0].logits(TEXT))


REFUSED = {
    "another architecture": ({"model_type": "gemma"}, "type 'gemma': only llama"),
    "no architecture": ({"model_type": None}, "type None: only llama"),
    "rotary scaling": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        "scales rotary positions",
    ),
    "rotary scaling, new": ({"rope_parameters": {"rope_type": "yarn"}}, "scales rotary positions"),
    "rotary scaling, old": (
        {"rope_scaling": {"type": "dynamic", "factor": 2}},
        "scales rotary positions",
    ),
    "a rotary scaling that is no object": ({"rope_scaling": "linear"}, "scales rotary positions"),
    "biases": ({"attention_bias": True}, "attention_bias is True: not supported"),
    "ffn biases": ({"mlp_bias": True}, "mlp_bias is True: not supported"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu': not supported"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantization_config"),
    "interleaved": ({"rope_interleaved": True}, "rope_interleaved is True"),
    "no width": ({"hidden_size": None}, "hidden_size is None, it should be a whole number"),
    "a width in words": ({"hidden_size": "32"}, "hidden_size is '32', it should be a whole number"),
    "a width that does not fit": (
        {"hidden_size": 64},
        "has shape (288, 32), the configuration says (288, 64)",
    ),
    "a huge vocabulary": ({"vocab_size": 10**15}, "the configuration says (1000000000000000, 32)"),
    "a huge number of layers": (
        {"num_hidden_layers": 10**12},
        "asks for 1000000000000 layers, but the weights are 20 tensors",
    ),
    "heads that do not divide": ({"num_key_value_heads": 3}, "cannot share 3 key/value heads"),
    "untied": (
        {"tie_word_embeddings": False},
        "lacks 1 tensors of a Llama model, such as lm_head.weight",
    ),
    "fewer layers": (
        {"num_hidden_layers": 1},
        "has 9 tensors that a plain Llama model has not, such as model.layers.1.",
    ),
    "no ffn width": (
        {"intermediate_size": None},
        "config.json: intermediate_size is None, it should be a whole number",
    ),
    "an infinite base": (
        {"rope_theta": float("inf")},
        "rope_theta is inf, it should be a number from 1 to 1e+30",
    ),
    "a base of 400 digits": ({"rope_theta": 10**400}, "it should be a number from 1 to 1e+30"),
    "a true epsilon": ({"rms_norm_eps": True}, "rms_norm_eps is True, it should be a number"),
    "a negative epsilon": (
        {"rms_norm_eps": -1e-5},
        "rms_norm_eps is -1e-05, it should be a number from 1e-30 to 1",
    ),
    "tied in words": (
        {"tie_word_embeddings": "false"},
        "tie_word_embeddings is 'false': not supported",
    ),
    "a true width": ({"hidden_size": True}, "hidden_size is True, it should be a whole number"),
    "a width with a point": (
        {"hidden_size": 32.0},
        "hidden_size is 32.0, it should be a whole number",
    ),
    "a scaling without a type": (
        {"rope_scaling": {"factor": 4.0}},
        "scales rotary positions (rope_scaling is {'factor': 4.0})",
    ),
    "another scaling by one": (
        {"rope_scaling": {"rope_type": "yarn", "factor": 1.0}},
        "scales rotary positions",
    ),
    "two types": (
        {"rope_scaling": {"rope_type": "default", "type": "linear"}},
        "scales rotary positions",
    ),
    "a type of nothing": ({"rope_scaling": {"type": None}}, "scales rotary positions"),
    "a scaling of each kind of layer": (
        {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
        "scales rotary positions",
    ),
    "a part of each head": (
        {"rope_parameters": {"partial_rotary_factor": 0.5}},
        "scales rotary positions",
    ),
    "scaling in a list": ({"rope_scaling": ["linear", 2]}, "scales rotary positions"),
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
    deep = "[" * 50_000 + "]" * 50_000
    for text, message in (
        ("{", "is not JSON"),
        ("[1]", "should hold a JSON object"),
        (deep, "is not JSON"),
        (f'{{"a": {deep}}}', "is not JSON"),
    ):
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
    with pytest.raises(
        ValueError, match=r"config\.json is missing: give the folder of a Hugging Face model"
    ):
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


@pytest.mark.parametrize("prefix", ["2", "ab", "é"])
def test_a_prefix_of_subwords_that_merges_lack_is_refused(prefix: str, folder: Path) -> None:
    """The tokenizers package would cut a merge inside a character, and end the process:
    hence another process.
    """
    file = folder / "tokenizer.json"
    stored = json.loads(file.read_text(encoding="utf-8"))
    stored["model"]["continuing_subword_prefix"] = prefix
    file.write_text(json.dumps(stored))
    load = f"from minigrpo.models import load_tokenizer as load\nload({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True, timeout=120)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("ValueError") and "lacks the prefix" in last, (
        done.stderr
    )


def test_a_prefix_of_subwords_that_merges_have_is_read(folder: Path) -> None:
    file = folder / "tokenizer.json"
    stored = json.loads(file.read_text(encoding="utf-8"))
    before = load_tokenizer(folder).encode("abcb").tolist()
    stored["model"]["continuing_subword_prefix"] = ""
    file.write_text(json.dumps(stored))
    assert load_tokenizer(folder).encode("abcb").tolist() == before


@pytest.mark.parametrize("ends", [[EOS, 97], [97, EOS], [EOS, 98, 97]])
def test_any_of_several_eos_ends_a_completion(
    ends: list[int], folder: Path, tmp_path: Path
) -> None:
    from minigrpo.sampler import sample

    rewrite_config(folder, eos_token_id=ends)
    model, tokenizer = load_model(folder)
    limits = {"max_new_tokens": 30, "eos": (tokenizer.eos, tokenizer.stops_at())}
    rollouts = sample(model, [[5, 6]], 64, np.random.default_rng(0), **limits)
    drawn = [completion.tolist() for completion in rollouts.completions[0]]
    last = {tokens[-1] for tokens in drawn if len(tokens) < 30}
    assert last == set(ends)
    for tokens in drawn:
        assert not set(tokens[:-1]) & set(ends)
    assert tokenizer.decode([65, 97, 66]) == tokenizer.decode([65])
    again = load_tokenizer(save_hugging_face(model, tokenizer, tmp_path / "again"))
    assert again.ends == ends


def test_a_post_processor_that_adds_tokens_after_a_text_is_refused(folder: Path) -> None:
    file = folder / "tokenizer.json"
    stored = json.loads(file.read_text(encoding="utf-8"))
    pieces = [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "<end>", "type_id": 0}},
    ]
    special = {"<end>": {"id": "<end>", "ids": [EOS], "tokens": ["<end>"]}}
    stored["post_processor"] = {
        "type": "TemplateProcessing",
        "single": pieces,
        "pair": pieces,
        "special_tokens": special,
    }
    file.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="adds tokens after a text"):
        load_tokenizer(folder)


def test_messages_name_the_file_and_say_what_to_do(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with pytest.raises(
        ValueError, match=r"tokenizer\.json is missing: put the model's tokenizer\.json there"
    ):
        load_tokenizer(folder)
    rewrite_config(folder, num_attention_heads=3, num_key_value_heads=2, head_dim=8)
    with pytest.raises(ValueError, match=r"config\.json: 3 heads cannot share 2"):
        load_model(folder)


@pytest.mark.parametrize(
    "rope", [{"type": "linear", "factor": 1.0}, {"rope_type": "linear", "factor": 1}]
)
def test_linear_scaling_by_one_is_none(rope: dict, folder: Path) -> None:
    before = load_model(folder)[0].logits(TEXT)
    rewrite_config(folder, rope_scaling=rope)
    np.testing.assert_array_equal(load_model(folder)[0].logits(TEXT), before)
