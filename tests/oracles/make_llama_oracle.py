"""Write llama_*.npz and ops.npz: a Llama as Hugging Face computes it, in PyTorch, with the
gradients that autograd finds.

Plain and self-contained: it shares no code with the package, and holds every sequence alone (no
tree, no padding).  The rotary embedding is the half-split one (element j of a head turns with
element j + E/2), weights have Hugging Face's names and row order.
Run it with PyTorch 2.x, float64 on the CPU:  python tests/oracles/make_llama_oracle.py
The tests only read the files.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

HERE = Path(__file__).parent
TEMPERATURE = 0.8
CONFIGS = {
    "mha_tied": {
        "vocab_size": 13, "dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "ffn_dim": 24,
        "tie_embeddings": True,
    },
    "gqa_untied": {
        "vocab_size": 11, "dim": 12, "n_layers": 2, "n_heads": 6, "n_kv_heads": 2, "ffn_dim": 20,
        "tie_embeddings": False,
        "rope_base": 500_000.0,
    },
    "mqa_tied": {
        "vocab_size": 17, "dim": 18, "n_layers": 3, "n_heads": 3, "n_kv_heads": 1, "ffn_dim": 16,
        "tie_embeddings": True,
        "norm_eps": 1e-2,
    },
    "qwen2_llama3": {
        "vocab_size": 11, "dim": 12, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 14,
        "tie_embeddings": True, "model_type": "qwen2", "rope_base": 50.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0.4, "high_freq_factor": 3.0,
            "original_max_position_embeddings": 20,
        },
    },
    "qwen3_linear": {
        "vocab_size": 11, "dim": 10, "n_layers": 2, "n_heads": 3, "n_kv_heads": 1, "ffn_dim": 14,
        "tie_embeddings": False, "model_type": "qwen3", "head_dim": 8, "rope_base": 100.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.5},
    },
}  # fmt: skip
DEFAULTS = {"rope_base": 10_000.0, "norm_eps": 1e-5, "max_seq_len": 32}
# Groups: a prompt and its completions.  Shared prefixes, a duplicate, a prefix of another one, an
# empty one, equal prompts.
GROUPS = [
    ([1, 2, 3], [[4, 5, 6, 7], [4, 5, 6, 8], [4, 5], [4, 5, 6, 7], [9], []]),
    ([1, 2], [[3, 4, 5], [3, 4, 0, 0, 1]]),
    ([1, 2, 3], [[4, 5, 6, 7, 10, 2]]),
    ([7], [[0, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 1, 2, 3, 4, 5, 6, 7]]),
]


def width_of_heads(config: dict) -> int:
    return config.get("head_dim") or config["dim"] // config["n_heads"]


def random_weights(config: dict, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Large enough for attention to be far from uniform; float32 numbers (the files are smaller),
    computed with in float64.
    """
    d, f, e = config["dim"], config["ffn_dim"], width_of_heads(config)
    q, kv = config["n_heads"] * e, config["n_kv_heads"] * e
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], d)}
    for i in range(config["n_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "input_layernorm.weight": (d,),
            layer + "self_attn.q_proj.weight": (q, d),
            layer + "self_attn.k_proj.weight": (kv, d),
            layer + "self_attn.v_proj.weight": (kv, d),
            layer + "self_attn.o_proj.weight": (d, q),
            layer + "post_attention_layernorm.weight": (d,),
            layer + "mlp.gate_proj.weight": (f, d),
            layer + "mlp.up_proj.weight": (f, d),
            layer + "mlp.down_proj.weight": (d, f),
        }
        if config.get("model_type") == "qwen2":
            for name, size in (("q", q), ("k", kv), ("v", kv)):
                shapes[f"{layer}self_attn.{name}_proj.bias"] = (size,)
        if config.get("model_type") == "qwen3":
            shapes |= {f"{layer}self_attn.{name}_norm.weight": (e,) for name in "qk"}
    shapes["model.norm.weight"] = (d,)
    if not config["tie_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], d)
    weights = {}
    for name, shape in shapes.items():
        value = (
            1 + 0.3 * rng.standard_normal(shape)
            if len(shape) == 1
            else rng.standard_normal(shape) * 1.2 / np.sqrt(shape[1])
        )
        weights[name] = torch.tensor(
            value.astype(np.float32).astype(np.float64), requires_grad=True
        )
    return weights


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def scaled(inv_freq: torch.Tensor, scaling: dict) -> torch.Tensor:
    """Frequency by frequency, as Llama 3.1's authors describe it."""
    if scaling["rope_type"] == "linear":
        return inv_freq / scaling["factor"]
    factor, context = scaling["factor"], scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    found = []
    for frequency in inv_freq.tolist():
        wavelength = 2 * math.pi / frequency
        if wavelength < context / high:
            found.append(frequency)
        elif wavelength > context / low:
            found.append(frequency / factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            found.append((1 - smooth) * frequency / factor + smooth * frequency)
    return torch.tensor(found, dtype=torch.float64)


def rotary(x: torch.Tensor, base: float, scaling: dict | None = None) -> torch.Tensor:
    """x (heads, T, E)"""
    width = x.shape[-1]
    inv_freq = 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    inv_freq = scaled(inv_freq, scaling) if scaling else inv_freq
    angles = torch.outer(torch.arange(x.shape[1], dtype=torch.float64), inv_freq)
    angles = torch.cat((angles, angles), dim=-1)
    return x * angles.cos() + rotate_half(x) * angles.sin()


def repeat_kv(x: torch.Tensor, times: int) -> torch.Tensor:
    return x[:, None].expand(-1, times, -1, -1).reshape(-1, *x.shape[1:])


def llama_logits(config: dict, weights: dict[str, torch.Tensor], tokens: list[int]) -> torch.Tensor:
    """The logits after every token.   (T,) -> (T,V)"""
    heads, kv_heads, eps = config["n_heads"], config["n_kv_heads"], config["norm_eps"]
    e = width_of_heads(config)
    n = len(tokens)
    mask = torch.full((n, n), -torch.inf, dtype=torch.float64).triu(1)
    x = weights["model.embed_tokens.weight"][torch.tensor(tokens)]
    for i in range(config["n_layers"]):
        layer = {name: weights[f"model.layers.{i}.{name}.weight"] for name in (
            "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
            "self_attn.o_proj",
            "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
        )}  # fmt: skip
        h = rms_norm(x, layer["input_layernorm"], eps)

        def bias(name: str, i: int = i) -> torch.Tensor | float:
            return weights.get(f"model.layers.{i}.self_attn.{name}_proj.bias", 0.0)

        q, k, v = (
            (h @ layer[f"self_attn.{name}_proj"].T + bias(name)).view(n, count, e).transpose(0, 1)
            for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        if config.get("model_type") == "qwen3":
            q_norm, k_norm = (
                weights[f"model.layers.{i}.self_attn.{name}_norm.weight"] for name in "qk"
            )
            q, k = rms_norm(q, q_norm, eps), rms_norm(k, k_norm, eps)
        scaling = config.get("rope_scaling")
        q, k = (rotary(x, config["rope_base"], scaling) for x in (q, k))
        k, v = repeat_kv(k, heads // kv_heads), repeat_kv(v, heads // kv_heads)
        attention = torch.softmax(q @ k.transpose(1, 2) / e**0.5 + mask, dim=-1)
        x = x + (attention @ v).transpose(0, 1).reshape(n, heads * e) @ layer["self_attn.o_proj"].T
        h = rms_norm(x, layer["post_attention_layernorm"], eps)
        x = (
            x
            + (F.silu(h @ layer["mlp.gate_proj"].T) * (h @ layer["mlp.up_proj"].T))
            @ layer["mlp.down_proj"].T
        )
    head = weights["model.embed_tokens.weight" if config["tie_embeddings"] else "lm_head.weight"]
    return rms_norm(x, weights["model.norm.weight"], eps) @ head.T


def write_llama(name: str, config: dict, rng: np.random.Generator) -> None:
    config = DEFAULTS | config
    weights = random_weights(config, rng)
    arrays: dict[str, np.ndarray] = {"config": np.array(json.dumps(config))}
    loss = torch.zeros((), dtype=torch.float64)
    logp_of, cotangent_of = [], []
    for g, (prompt, completions) in enumerate(GROUPS):
        for i, completion in enumerate(completions):
            logits = llama_logits(config, weights, prompt + completion)
            arrays[f"logits.{g}.{i}"] = logits.detach().numpy()
            place = torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1)
            logp = torch.log_softmax(logits[place] / TEMPERATURE, -1)[
                torch.arange(len(place)), torch.tensor(completion, dtype=int)
            ]
            cotangent = torch.tensor(rng.standard_normal(len(place)))
            loss = loss + (cotangent * logp).sum()
            logp_of.append(logp.detach().numpy())
            cotangent_of.append(cotangent.numpy())
    loss.backward()
    arrays |= {
        f"weight.{key}": value.detach().numpy().astype(np.float32) for key, value in weights.items()
    }
    arrays |= {f"gradient.{key}": value.grad.numpy() for key, value in weights.items()}
    arrays |= {"logp": np.concatenate(logp_of), "cotangent": np.concatenate(cotangent_of)}
    np.savez_compressed(
        HERE / f"llama_{name}.npz",
        groups=np.array(json.dumps(GROUPS)),
        temperature=TEMPERATURE,
        **arrays,
    )


def write_ops(rng: np.random.Generator) -> None:
    """Single operations, with PyTorch's own functions for them: inputs, a cotangent dy, the output
    y, and d(y·dy)/d input.
    """
    arrays: dict[str, np.ndarray] = {}

    def record(name: str, function, **inputs: np.ndarray) -> None:
        tensors = {key: torch.tensor(value, requires_grad=True) for key, value in inputs.items()}
        y = function(**tensors)
        dy = torch.tensor(rng.standard_normal(y.shape))
        (y * dy).sum().backward()
        arrays.update({f"{name}.{key}": value for key, value in inputs.items()})
        arrays.update({f"{name}.d{key}": value.grad.numpy() for key, value in tensors.items()})
        arrays.update({f"{name}.y": y.detach().numpy(), f"{name}.dy": dy.numpy()})

    normal = rng.standard_normal
    record(
        "rmsnorm",
        lambda x, weight: F.rms_norm(x, (6,), weight, 1e-3),
        x=normal((5, 6)),
        weight=normal(6),
    )
    record(
        "swiglu", lambda gate, up: F.silu(gate) * up, gate=10 * normal((5, 7)), up=normal((5, 7))
    )
    record("rope", lambda x: rotary(x, 1000.0), x=normal((3, 8, 6)))  # (heads, T, E), half-split
    record("log_softmax", lambda logits: F.log_softmax(logits, -1), logits=5 * normal((4, 9)))
    record(
        "attention",  # (heads, T, E): four heads that read two key/value heads
        lambda q, k, v: F.scaled_dot_product_attention(
            q, repeat_kv(k, 2), repeat_kv(v, 2), is_causal=True
        ),
        q=2 * normal((4, 7, 6)), k=2 * normal((2, 7, 6)), v=normal((2, 7, 6)),
    )  # fmt: skip
    np.savez_compressed(HERE / "ops.npz", **arrays)


if __name__ == "__main__":
    for number, (config_name, settings) in enumerate(CONFIGS.items()):
        write_llama(config_name, settings, np.random.default_rng(number))
    write_ops(np.random.default_rng(99))
