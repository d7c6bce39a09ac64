"""Models that are not quite Llamas: biases, norms of heads, scaled rotary positions, Mistral.

Their gradients are checked in test_transformer.py, against PyTorch in test_torch_oracle.py.
"""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="language models need the extra lm")
pytest.importorskip("tokenizers", reason="language models need the extra lm")
pytest.importorskip("gguf", reason="language models need the extra lm")
from tiny_language_model import (
    KINDS,
    LLAMA3,
    half_split,
    make,
    rewrite_config,
    rope_freqs,
    write_gguf,
)

from minigrpo import PrefixTree, TransformerConfig
from minigrpo.command.cli import main
from minigrpo.models import load_model, save_hugging_face
from minigrpo.runs.checkpoint import checkpoints
from minigrpo.runs.policy import load_run
from minigrpo.sampler import sample

TEXT = np.array([5, 250, 17, 99, 99, 3, 77, 8, 120, 41])


@pytest.mark.parametrize("kind", KINDS)
def test_folder_and_gguf_are_the_same_model(kind: str, tmp_path: Path) -> None:
    """Also saved again: from the folder and from the GGUF file."""
    model, tokenizer = make(kind)
    folder = save_hugging_face(model, tokenizer, tmp_path / "folder")
    loaded, _ = load_model(folder)
    assert loaded.config == model.config
    from_gguf, _ = load_model(write_gguf(tmp_path / "m.gguf", model))
    if kind != "mistral":  # which GGUF calls a llama
        assert from_gguf.config == model.config
    for other in (loaded, from_gguf):
        np.testing.assert_array_equal(other.parameters.flat, model.parameters.flat)
        np.testing.assert_array_equal(other.logits(TEXT), model.logits(TEXT))
    again = save_hugging_face(from_gguf, None, tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    written = [json.loads((path / "config.json").read_text()) for path in (folder, again)]
    assert written[0]["model_type"] == model.config.model_type
    assert written[0]["architectures"] == [f"{model.config.model_type.title()}ForCausalLM"]
    for key in written[0] if kind != "mistral" else ():
        assert key == "eos_token_id" or written[0][key] == written[1][key], key


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_with_a_cache_is_the_full_forward(kind: str) -> None:
    model = make(kind)[0]
    prompts = [TEXT[:4], TEXT[:4], TEXT]
    rollouts = sample(model, prompts, 6, np.random.default_rng(0), max_new_tokens=7)
    assert rollouts.tree.count.max() > 1
    logp = model.forward(rollouts.tree)
    np.testing.assert_allclose(rollouts.logp, logp, rtol=0, atol=2e-5)
    for prompt, group in zip(prompts, rollouts.completions, strict=True):
        sequence = np.concatenate([prompt, group[0]])
        tree = PrefixTree.from_groups([prompt], [[group[0]]])
        logits = model.logits(sequence)[len(prompt) - 1 : -1].astype(np.float64)
        alone = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected = alone[np.arange(len(group[0])), group[0]]
        np.testing.assert_allclose(model.forward(tree)[tree.paths[0]], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama3"])
def test_a_training_run_goes_on_to_the_same_bits_and_is_exported(kind: str, tmp_path: Path) -> None:
    folder = save_hugging_face(*make(kind, max_seq_len=400), tmp_path / "m")
    task = f"{Path(__file__).parent / 'text_task.py'}:Spaces"
    small = "--group-size 4 --prompts-per-step 2 --learning-rate 1e-3 --eval-every 0"
    small += " --checkpoint-every 1 --steps"
    first = ["train", "--model", str(folder), "--task", task, *small.split()]
    assert main([*first, "2", "--out", str(tmp_path / "whole")]) == 0
    run = tmp_path / "run"
    assert main([*first, "2", "--out", str(run)]) == 0
    checkpoints(run)[-1].unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert main(["export", str(run), "--out", str(tmp_path / "exported")]) == 0
    (again, _, _), (whole, _, _) = load_run(run), load_run(tmp_path / "whole")
    np.testing.assert_array_equal(again.parameters.flat, whole.parameters.flat)
    start, exported = load_model(folder)[0], load_model(tmp_path / "exported")[0]
    for name, view in whole.parameters.items():
        assert (view != start.parameters[name]).any(), name
    assert exported.config == whole.config == start.config
    np.testing.assert_array_equal(exported.logits(TEXT), whole.logits(TEXT))


@pytest.mark.parametrize("tensor", ["self_attn.q_proj.bias", "self_attn.k_norm.weight"])
def test_a_tensor_that_is_missing_is_named(tensor: str, tmp_path: Path) -> None:
    kind = "qwen2" if "bias" in tensor else "qwen3"
    folder = save_hugging_face(*make(kind), tmp_path / "m")
    rewrite_config(folder, model_type="qwen3" if kind == "qwen2" else "qwen2")
    with pytest.raises(ValueError, match=r"lacks \d tensors of a Qwen\d model, such as .*attn"):
        load_model(folder)


ROPE = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
REFUSED = {
    "a window in use": ("qwen2", {"use_sliding_window": True}, "use_sliding_window is True"),
    "one window of many": (
        "qwen3",
        {"layer_types": ["full_attention", "sliding_attention"]},
        "layer_types is ['full_attention', 'sliding_attention']: not supported",
    ),
    "layers too many": ("qwen3", {"layer_types": ["full_attention"] * 3}, "layer_types is"),
    "a narrow window": ("mistral", {"sliding_window": 95}, "sliding_window is 95: not supported"),
    "a window in words": ("mistral", {"sliding_window": "96"}, "sliding_window is '96'"),
    "a window of a Llama": ("llama3", {"sliding_window": 96}, "sliding_window is 96"),
    "biases everywhere": ("qwen3", {"attention_bias": True}, "attention_bias is True"),
    "yarn": (
        "qwen2",
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}},
        "scales rotary positions (rope_scaling is {'factor': 4.0",
    ),
    "longrope": ("mistral", {"rope_scaling": {"rope_type": "longrope"}}, "scales rotary positions"),
    "dynamic": (
        "llama3",
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        "scales rotary positions (rope_scaling is {'factor': 2.0, 'rope_type': 'dynamic'}): "
        "supported are linear and llama3",
    ),
    "half of Llama 3": (
        "llama3",
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        "scales",
    ),
    "one number too many": ("llama3", {"rope_scaling": ROPE | {"beta_fast": 32}}, "scales"),
    "low above high": ("llama3", {"rope_scaling": ROPE | {"low_freq_factor": 5}}, "scales"),
    "a factor of 0": ("linear", {"rope_scaling": {"type": "linear", "factor": 0}}, "scales"),
    "a factor in words": ("linear", {"rope_scaling": {"type": "linear", "factor": "2"}}, "scales"),
    "linear without factor": ("linear", {"rope_scaling": {"type": "linear"}}, "scales"),
    "part of a head": (
        "llama3",
        {"rope_scaling": ROPE | {"partial_rotary_factor": 0.5}},
        "scales rotary positions",
    ),
    "divisors of our own": (
        "llama3",
        {"rope_scaling": {"rope_type": "divisors", "divisors": [1.0] * 4}},
        "scales rotary positions",
    ),
    "two scalings": (
        "linear",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        "gives several scalings",
    ),
    "a scaling and none": (
        "linear",
        {"rope_parameters": {"rope_type": "default"}},
        "gives several scalings",
    ),
    "key heads by default": ("qwen2", {"num_key_value_heads": None}, "has shape (16, 32)"),
    "a head width by default": ("qwen3", {"head_dim": None}, "has shape (64, 32)"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_exact_is_refused(what: str, tmp_path: Path) -> None:
    kind, changes, message = REFUSED[what]
    folder = save_hugging_face(*make(kind), tmp_path / "m")
    rewrite_config(folder, **changes)
    with pytest.raises(ValueError) as error:
        load_model(folder)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("qwen2", {"sliding_window": 8, "max_window_layers": 1, "use_sliding_window": False}),
        ("qwen3", {"sliding_window": 8, "layer_types": ["full_attention"] * 2}),
        ("mistral", {"sliding_window": 96}),
        ("mistral", {"head_dim": None}),
        ("llama3", {"layer_types": ["full_attention"] * 2}),
        ("linear", {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 4}}),
        ("linear", {"rope_parameters": {"rope_type": "linear", "factor": 4, "rope_theta": 5e3}}),
    ],
)
def test_what_changes_no_logit_is_let_through(kind: str, changes: dict, tmp_path: Path) -> None:
    model, tokenizer = make(kind)
    folder = save_hugging_face(model, tokenizer, tmp_path / "m")
    rewrite_config(folder, **changes)
    np.testing.assert_array_equal(load_model(folder)[0].logits(TEXT), model.logits(TEXT))


def test_a_window_is_none_for_a_context_that_is_no_longer(tmp_path: Path) -> None:
    """A config.json without the key means 4096, as in transformers."""
    model, tokenizer = make("mistral", max_seq_len=5000)
    folder = save_hugging_face(model, tokenizer, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    del config["sliding_window"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="sliding_window is 4096: not supported"):
        load_model(folder)
    short, _ = load_model(folder, max_seq_len=4096)
    np.testing.assert_array_equal(short.logits(TEXT), model.logits(TEXT))


def test_the_original_context_of_llama3_is_the_context_where_it_is_not_said(tmp_path: Path) -> None:
    folder = save_hugging_face(*make("llama3"), tmp_path / "m")
    rewrite_config(folder, rope_scaling=ROPE)
    found = load_model(folder, max_seq_len=20)[0].config.rope_scaling
    assert found is not None and found["original_max_position_embeddings"] == 96


# -- GGUF ------------------------------------------------------------------------------------------

FREQS = "rope_freqs.weight"


@pytest.mark.parametrize(
    ("kind", "metadata", "extra", "message"),
    [
        ("linear", {}, {FREQS: np.full(4, 2.0)}, "scales rotary positions twice"),
        ("llama3", {}, {FREQS: np.ones(3)}, "or by 3 divisors"),
        ("llama3", {}, {FREQS: np.array([1, 1, 2, np.nan])}, "scales rotary positions by"),
        ("llama3", {}, {FREQS: np.array([1, 1, 2, 0.0])}, "scales rotary positions by"),
        ("qwen2", {"qwen2.rope.scaling.type": "yarn"}, {}, "scales rotary positions (yarn)"),
        ("qwen2", {"qwen2.attention.sliding_window": 8}, {}, "'qwen2.attention.sliding_window'"),
        ("qwen2", {"llama.logit_scale": 2.0}, {}, "'llama.logit_scale' of its header"),
        ("qwen3", {"qwen3.expert_count": 8}, {}, "is a mixture of experts (8)"),
        ("qwen3", {"qwen3.pooling_type": 3}, {}, "'qwen3.pooling_type' of its header"),
        ("qwen3", {"general.architecture": "llama"}, {}, "'qwen3.block_count' of its header"),
        ("qwen2", {}, {"blk.0.attn_output.bias": np.ones(32)}, "has 1 tensors that a plain Qwen2"),
        ("linear", {}, {"blk.0.attn_q.bias": np.ones(32)}, "has 1 tensors that a plain Llama"),
    ],
)
def test_gguf_files_that_are_not_exact_are_refused(
    kind: str, metadata: dict, extra: dict, message: str, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "m.gguf", make(kind)[0], metadata=metadata, extra=extra)
    with pytest.raises(ValueError) as error:
        load_model(path)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "metadata",
    [
        {"llama.rope.scaling.factor": 4.0},  # linear, as in llama.cpp
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.scale_linear": 4.0},
        {"llama.rope.scaling.type": "linear", "llama.rope.scale_linear": 4.0},
    ],
)
def test_linear_scaling_in_gguf_files(metadata: dict, tmp_path: Path) -> None:
    plain, scaled = make("linear", rope_scaling=None)[0], make("linear")[0]
    loaded, _ = load_model(write_gguf(tmp_path / "m.gguf", plain, metadata=metadata))
    assert loaded.config == scaled.config
    np.testing.assert_array_equal(loaded.logits(TEXT), scaled.logits(TEXT))
    none = {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}
    with pytest.raises(ValueError, match="scales rotary positions"):
        load_model(write_gguf(tmp_path / "m.gguf", plain, metadata=none))


@pytest.mark.parametrize(("base", "factor"), [(500_000.0, 8.0), (500_000.0, 32.0), (9e3, 32.0)])
def test_the_scaling_of_llama3_is_found_again(base: float, factor: float, tmp_path: Path) -> None:
    """Also where no pair is so slow that it is divided by the whole factor."""
    model, _ = make("llama3", rope_base=base, rope_scaling=LLAMA3 | {"factor": factor})
    loaded, _ = load_model(
        write_gguf(tmp_path / "m.gguf", model, extra={FREQS: rope_freqs(base, 8, factor)})
    )
    assert loaded.config == model.config


def test_divisors_that_no_scaling_has_made(tmp_path: Path) -> None:
    """They are computed with, but a Hugging Face folder has no word for them."""
    plain, tokenizer = make("linear", rope_scaling=None)
    ones = {FREQS: np.ones(4)}
    assert load_model(write_gguf(tmp_path / "1.gguf", plain, extra=ones))[0].config == plain.config
    divisors = {"rope_type": "divisors", "divisors": [1.0, 3.0, 1.5, 2.0]}
    expected, _ = make("linear", rope_scaling=divisors)
    path = write_gguf(tmp_path / "m.gguf", plain, extra={FREQS: np.array([1, 3, 1.5, 2])})
    loaded, _ = load_model(path)
    assert loaded.config == expected.config
    turns = np.exp(1j * np.arange(9)[:, None] * 5000 ** (-np.arange(4) / 4) / [1, 3, 1.5, 2])
    np.testing.assert_allclose(loaded._turns[:9, 0], turns, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="divides rotary frequencies in a way of its own"):
        save_hugging_face(loaded, tokenizer, tmp_path / "folder")


# -- the config ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2': choose llama, mistral, qwen2, qwen3"),
        ({"rope_scaling": "linear"}, "rope_scaling scales rotary positions by 'linear': give"),
        ({"rope_scaling": {"rope_type": ["linear"], "factor": 2.0}}, "give linear a factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": True}}, "give linear a factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": float("inf")}}, "give linear a factor"),
        ({"rope_scaling": {"rope_type": "divisors", "divisors": [1.0]}}, "give linear a factor"),
    ],
)
def test_a_config_that_cannot_be(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**({"vocab_size": 5, "dim": 16, "n_heads": 4} | changes))


def test_biases_start_at_0_and_norms_at_1() -> None:
    from minigrpo import Transformer

    for kind in ("qwen2", "qwen3"):
        for name, view in Transformer(make(kind)[0].config).parameters.items():
            if view.ndim == 1:
                np.testing.assert_array_equal(view, float(name.endswith("weight")), name)


def test_weights_in_the_order_of_a_checkpoint(tmp_path: Path) -> None:
    """Biases and norms of heads are permuted as their projections are."""
    from safetensors.numpy import load_file

    for kind in ("qwen2", "qwen3"):
        model, _ = make(kind)
        stored = load_file(save_hugging_face(model, None, tmp_path / kind) / "model.safetensors")
        for name, weight in half_split(model).items():
            np.testing.assert_array_equal(stored[name], weight)
    bias = model.parameters["model.layers.0.self_attn.k_norm.weight"]
    assert (stored["model.layers.0.self_attn.k_norm.weight"][[0, 8]] == bias[:2]).all()


# What the published config.json say besides sizes, which are those of `make` here.
COMMON = {"attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02}
COMMON |= {"torch_dtype": "bfloat16", "transformers_version": "4.44.0", "use_cache": True}
NO_WINDOW = {"use_sliding_window": False, "bos_token_id": 8}
PUBLISHED = {
    "Qwen2.5-0.5B": {"max_window_layers": 24, "sliding_window": 32768, "use_mrope": False},
    "DeepSeek-R1-Distill-Qwen-1.5B": {"max_window_layers": 21, "sliding_window": 4}
    | {"use_mrope": False},
    "Qwen3-0.6B": {"attention_bias": False, "max_window_layers": 28, "rope_scaling": None}
    | {"sliding_window": None},
    "Llama-3.2-1B": {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1},
    "Mistral-7B-v0.3": {"bos_token_id": 1, "head_dim": 8, "sliding_window": None},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_keys_of_published_models_are_known(name: str, tmp_path: Path) -> None:
    start = {"Qwen2": "qwen2", "DeepS": "qwen2", "Qwen3": "qwen3", "Llama": "llama3"}
    kind = start.get(name[:5], "mistral")
    model, tokenizer = make(kind)
    file = save_hugging_face(model, tokenizer, tmp_path / "m") / "config.json"
    keys = COMMON | (NO_WINDOW if "Qwen" in name else {}) | PUBLISHED[name]
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))
    np.testing.assert_array_equal(load_model(tmp_path / "m")[0].logits(TEXT), model.logits(TEXT))
