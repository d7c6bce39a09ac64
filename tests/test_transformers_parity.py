"""Against `transformers` and PyTorch, where they are installed.

Logits, gradients, tokens and continuations are the same.

pip install torch transformers && minigrpo pull smollm2
python -m pytest tests/test_transformers_parity.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from minigrpo import PrefixTree
from minigrpo.engine.parameters import rotate_halves
from minigrpo.models import cached, load_model, load_tokenizer, save_hugging_face
from minigrpo.sampler import sample

torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install torch transformers")
transformers = pytest.importorskip(
    "transformers", reason="compares with transformers: pip install torch transformers"
)
pytest.importorskip("gguf", reason="language models need the extra lm")
safetensors = pytest.importorskip("safetensors.torch", reason="language models need the extra lm")

pytestmark = pytest.mark.filterwarnings("ignore")  # what other packages warn about is not ours
HEADS = (
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
)
SHAPES = {
    "tied": (48, 6, 6, 8, True),
    "untied, grouped": (64, 8, 2, 8, False),
    "one key head": (64, 4, 1, 16, True),
    "wide heads": (48, 2, 1, 64, False),
    "narrow heads": (64, 4, 4, 4, True),
}
SMALL = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64, "rope_theta": 5000.0}
KINDS = {
    "qwen2": ("Qwen2", SMALL | {"tie_word_embeddings": True}),
    "qwen2, no window": ("Qwen2", SMALL | {"sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ("Qwen3", SMALL | {"head_dim": 16}),
    "llama3": ("Llama", SMALL | {"head_dim": 16, "rope_parameters": LLAMA3}),
    "linear": (
        "Llama",
        SMALL | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0}},
    ),
    "mistral": ("Mistral", SMALL | {"sliding_window": None}),
    "mistral, wide window": ("Mistral", SMALL | {"sliding_window": 64, "head_dim": 16}),
}
SEQUENCES = ([5, 1, 8, 2, 77], [5, 1, 8, 2, 77], [5, 1, 9], [3, 90, 4, 4, 4, 4, 60])


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.fixture(params=[*SHAPES, *KINDS])
def llama(request: pytest.FixtureRequest, tmp_path: Path):
    """A small random model, saved by transformers, with this package's copy of it."""
    torch.manual_seed(0)
    plain = "Llama", dict(zip(HEADS, SHAPES.get(request.param, ()), strict=False))
    kind, changes = KINDS.get(request.param, plain)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=100,
        num_hidden_layers=3,
        intermediate_size=80,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        **changes,
    )
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).float()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(
                torch.rand_like(parameter) + 0.5
                if "norm" in name
                else torch.randn_like(parameter) * 0.2
            )
    return theirs, pretrained(theirs, tmp_path)


def heads_of(config, name: str) -> int | None:
    """How many heads a parameter is rotated in; None for the others."""
    heads = {"q_proj": config.n_heads, "k_proj": config.n_kv_heads, "q_norm": 1, "k_norm": 1}
    return heads.get(name.split(".")[-2])


def pretrained(theirs, folder: Path):
    """Saved by transformers, and this package's copy of it."""
    theirs.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(), eos_token="e"
    ).save_pretrained(folder)
    return load_model(folder)[0]


def logits_of(theirs, sequence: list[int]) -> np.ndarray:
    with torch.no_grad():
        return theirs(torch.tensor([sequence])).logits[0].float().numpy()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_checkpoints_in_16_bits(dtype: str, llama, tmp_path: Path) -> None:
    """The rounded weights are the same bits, and so float32 computes the same.

    A model that was itself moved to 16 bits and back differs: that rounds the frequencies of its
    rotary positions, which are no weights and are not stored.
    """
    theirs, _ = llama
    rounded = theirs.to(getattr(torch, dtype))
    ours = pretrained(rounded, tmp_path / dtype)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / dtype, dtype=torch.float32)
    for name, parameter in again.named_parameters():
        n, weight = heads_of(ours.config, name), ours.parameters[name]
        np.testing.assert_array_equal(
            weight if n is None else rotate_halves(weight, n), parameter.detach().numpy()
        )
    expected = logits_of(again, SEQUENCES[3])
    found = ours.logits(np.array(SEQUENCES[3]))
    assert np.abs(found - expected).max() < 1e-5 * max(1, np.abs(expected).max())
    moved = rounded.float()
    frequencies = moved.model.rotary_emb.inv_freq
    if (
        dtype == "bfloat16" and len(frequencies) > 2
    ):  # of two, 1 and 0.01, the rounding hardly shows
        assert np.abs(logits_of(moved, SEQUENCES[3]) - found).max() > np.abs(expected - found).max()
    frequencies.copy_(again.model.rotary_emb.inv_freq)
    np.testing.assert_array_equal(logits_of(moved, SEQUENCES[3]), expected)


def test_what_transformers_loads_is_loaded(llama, tmp_path: Path) -> None:
    """Buffers of the rotary positions, an index that was left over, unknown keys that transformers
    does not read either.
    """
    theirs, _ = llama
    pretrained(theirs, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = safetensors.load_file(file)
    tensors |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(3)}
    safetensors.save_file(tensors, file, metadata={"format": "pt"})
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"model.norm.weight": "gone.safetensors"}}'
    )
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    expected = logits_of(again, SEQUENCES[0])
    found = load_model(tmp_path)[0].logits(np.array(SEQUENCES[0]))
    assert np.abs(found - expected).max() < 1e-5 * max(1, np.abs(expected).max())


def test_the_keys_that_transformers_writes_are_known(llama, tmp_path: Path) -> None:
    theirs, ours = llama
    pretrained(theirs, tmp_path)
    config = theirs.config.to_dict() | {"dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_model(tmp_path)[0].config == ours.config
    assert ours.config.model_type == theirs.config.model_type
    standard = transformers.LlamaConfig()
    (tmp_path / "config.json").write_text(json.dumps(standard.to_dict()))
    with pytest.raises(
        ValueError, match=r"asks for 32 layers|lacks \d+ tensors"
    ):  # known keys, other sizes
        load_model(tmp_path)
    assert (
        standard.max_position_embeddings == 2048
        and standard.eos_token_id == 2
        and standard.rms_norm_eps == 1e-6
    )


@pytest.mark.parametrize("bos", [None, 264])
def test_tokens_of_a_gguf_file(bos: int | None, tmp_path: Path) -> None:
    """Tokens of the user, special ones, and BOS: as transformers reads them from the same file."""
    from tiny_language_model import TOKENS, make, write_gguf

    added = ["<think>", "<b>", "</a>", "<end>", "<start>"]
    keys = {
        "tokens": [*TOKENS[:-1], *added],
        "token_type": [1] * 260 + [4, 4, 4, 3, 3],
        "pre": "gpt-2",
        "eos_token_id": 263,
    }
    keys |= {"bos_token_id": 264, "add_bos_token": bos is not None}
    path = write_gguf(
        tmp_path / "m.gguf",
        make()[0],
        metadata={f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    )
    tokenizer, theirs = (
        load_tokenizer(path),
        transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name),
    )
    rng = np.random.default_rng(0)
    for _ in range(300):
        text = "".join(
            rng.choice(
                [*added, "a", "b", "ab", " ", "\n\n", "12", "é", "🙂", "<"], rng.integers(0, 9)
            )
        )
        expected = theirs(text)["input_ids"]
        if bos is not None and text.startswith(
            "<start>"
        ):  # a template that writes the BOS itself: ours gives it no second one
            expected = expected[1:]
        assert tokenizer.encode(text).tolist() == expected, text


def _tokenizer():
    import tokenizers

    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "e": 1}, unk_token="a"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return core


def test_logits(llama) -> None:
    theirs, ours = llama
    for sequence in SEQUENCES:
        with torch.no_grad():
            expected = theirs(torch.tensor([sequence])).logits[0].numpy()
        assert np.abs(ours.logits(np.array(sequence)) - expected).max() < 1e-5 * max(
            1, np.abs(expected).max()
        )


def test_every_gradient(llama) -> None:
    """Of a random weighting of the log-probabilities of all tokens after the first, on the tree
    against one sequence at a time.
    """
    theirs, ours = llama
    rng, loss = np.random.default_rng(0), 0.0
    weights = [rng.standard_normal(len(s) - 1) for s in SEQUENCES]
    for sequence, weight in zip(SEQUENCES, weights, strict=True):
        logp = theirs(torch.tensor([sequence])).logits[0, :-1].double().log_softmax(-1)
        loss = (
            loss
            + (
                torch.tensor(weight)
                * logp[torch.arange(len(sequence) - 1), torch.tensor(sequence[1:])]
            ).sum()
        )
    loss.backward()
    first, other = SEQUENCES[:3], SEQUENCES[3:]
    tree = PrefixTree.from_groups(
        [first[0][:1], other[0][:1]], [[s[1:] for s in first], [s[1:] for s in other]]
    )
    ours.forward(tree)
    nodes = tree.paths[tree.paths >= 0]
    gradients = ours.backward(np.bincount(nodes, np.concatenate(weights), minlength=tree.n_nodes))
    expected = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    assert expected.keys() == gradients.keys()
    for name, gradient in gradients.items():
        n = heads_of(ours.config, name)
        assert (
            relative(gradient if n is None else rotate_halves(gradient, n), expected[name]) < 1e-4
        ), name


def test_what_is_exported_is_loaded_again(llama, tmp_path: Path) -> None:
    theirs, ours = llama
    again = transformers.AutoModelForCausalLM.from_pretrained(
        save_hugging_face(ours, None, tmp_path / "export"), dtype=torch.float32
    )
    assert type(again) is type(theirs)
    np.testing.assert_array_equal(logits_of(again, SEQUENCES[3]), logits_of(theirs, SEQUENCES[3]))
    for name, parameter in theirs.named_parameters():
        np.testing.assert_array_equal(
            dict(again.named_parameters())[name].detach().numpy(), parameter.detach().numpy()
        )


# -- SmolLM2 ---------------------------------------------------------------------------------------

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a land far away,",
    "12 + 30 = 42\n23 + 45 =",
    "def fibonacci(n):\n",
    "Water boils at",
    "The three primary colours are",
    "Q: Who wrote Hamlet?\nA:",
    "In 1969,",
    "El perro y el gato",
    "To make tea, first",
)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory):
    """The pulled model in both packages:
    theirs reads the same file with its own dequantisation and permutation.
    """
    try:
        path = cached("smollm2")
    except ValueError as error:
        pytest.skip(str(error))
    ours, tokenizer = load_model("smollm2")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    folder = save_hugging_face(ours, tokenizer, tmp_path_factory.mktemp("export") / "smollm2")
    return ours, tokenizer, theirs, folder


def test_smollm2_logits_and_greedy_continuations(smollm2) -> None:
    ours, tokenizer, theirs, _ = smollm2
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        with torch.no_grad():
            expected = theirs(torch.tensor(ids)[None]).logits[0].numpy()
            greedy = theirs.generate(
                torch.tensor(ids)[None], max_new_tokens=64, do_sample=False, pad_token_id=0
            )[0, len(ids) :]
        assert np.abs(ours.logits(ids) - expected).max() < 1e-3
        found = sample(
            ours,
            [ids],
            1,
            np.random.default_rng(0),
            max_new_tokens=64,
            eos=tokenizer.eos,
            temperature=0,
        )
        assert found.completions[0][0].tolist() == greedy.tolist(), prompt


def test_smollm2_exported_folder(smollm2) -> None:
    ours, tokenizer, _, folder = smollm2
    again = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer.encode(PROMPTS[0])
    with torch.no_grad():
        expected = again(torch.tensor(ids)[None]).logits[0].numpy()
    assert np.abs(ours.logits(ids) - expected).max() < 1e-3


def test_smollm2_tokenizer_on_a_thousand_strings(smollm2) -> None:
    """Theirs: the GPT-2 tokenizer of transformers from vocabulary and merges, each digit split off
    first as SmolLM2 does.
    """
    _, tokenizer, _, folder = smollm2
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    rng = np.random.default_rng(0)
    alphabets = [
        "abc DEF",
        "0123456789 +-=*/().",
        " \n\t\r",
        "éüñßøçæ",
        "你好世界",
        "🙂🎉👩",
        "<|im_start|><|im_end|>",
        "_{}[]:;'~@#$%^&",
    ]
    for i in range(1000):
        letters = "".join(rng.choice(alphabets, rng.integers(1, 4)))
        text = "".join(rng.choice(list(letters), rng.integers(0, 60))) + (
            "<|im_end|>" if i % 7 == 0 else ""
        )
        ids = tokenizer.encode(text).tolist()
        assert ids == theirs(text)["input_ids"], text
        assert tokenizer.core.decode(ids, skip_special_tokens=False) == text
