"""The content of llama.json: a small Llama, its batch, the package's numbers and the wrong ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from making import mistakes as wrong
from making.grpo import (
    FORMAT,
    SETTINGS,
    Batch,
    Right,
    inside,
    loss_mask,
    make_batch,
    plain,
    wrong_numbers,
)

from minigrpo import PrefixTree, Transformer, TransformerConfig
from minigrpo.engine.parameters import rotate_halves, rotate_neighbours

Array = np.ndarray
CONFIG: dict[str, Any] = {
    "vocab_size": 11,
    "dim": 8,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 4,
    "ffn_dim": 8,
    "rope_base": 100.0,
    "norm_eps": 0.01,
    "tie_embeddings": True,
}
PROMPTS = [[1, 2, 3], [4]]  # one of them a single token
COMPLETIONS = [
    [[5, 6, 7, 0], [5, 6, 8, 9, 0], [5, 6, 7, 0], [10, 0]],
    [[5, 6, 0], [5, 7, 7, 7, 7], [5, 6], [0]],
]
REWARDS = [1.0, 0.0, 0.5, 0.0, -0.5, 1.0, 0.25, 1.0]
CLIP = {"clip_low": 0.2, "clip_high": 0.28}
CASES = {  # temperature and settings
    "grpo": (1.0, CLIP),
    "lambda_grpo": (0.8, CLIP | {"alpha": 1.0, "beta": 0.1}),
}
EMBEDDING = "model.embed_tokens.weight"
OF_LOGITS = {
    "rope_interleaved": "neighbours 2j, 2j+1 are rotated together instead of j, j + head_dim/2",
    "heads_tiled": "query head h uses key/value head h mod K instead of h*K // H",
    "norm_eps_missing": "norm_eps is not added to the mean square",
    "attention_scale_missing": "scores are not divided by sqrt(head_dim)",
    "attention_not_causal": "a token attends to later tokens",
    "padding_attended": "tokens attend to the padding to the left of the prompt",
    "padding_attended_at_-1": "tokens attend to padding, at position -1: cumsum(mask) - 1",
    "padding_attended_at_0": "tokens attend to padding, at position 0: cumsum(mask) - 1, clipped",
    "padding_attended_at_1": "tokens attend to padding, at position 1: put there by masked_fill",
    "gate_and_up_swapped": "silu is applied to the up projection instead of the gate",
    "siblings_attended": "in the flattened tree a token attends to all before it, not to ancestors",
    "positions_by_node": "a position is that in the flattened tree instead of the depth",
}
OF_LOGP = {
    "shift_by_one": "logits at position t score token t instead of token t + 1",
    "temperature_ignored": "logits are not divided by the sampling temperature",
    "temperature_multiplied": "logits are multiplied by the temperature",
    "log_softmax_missing": "the logit itself is taken for the log-probability",
}
OF_GRADIENT = {
    "embedding_without_head": "tied embeddings: the gradient of the output head is missing",
    "head_without_embedding": "tied embeddings: the gradient of the input embedding is missing",
}
OF_LOSS = (
    *("eos_without_gradient", "first_token_dropped", "last_token_dropped", "std_missing"),
    *("population_std", "normaliser_is_batch_token_mean", "normaliser_is_sequence_mean"),
    *("clip_missing", "clip_sides_swapped", "kl_missing", "kl_sign", "kl_not_weighted"),
    *("lambda_missing", "lambda_multiplied"),
)
MISTAKES = OF_LOGITS | OF_LOGP | OF_GRADIENT


# -- the model in the package ----------------------------------------------------------------------


def parameters() -> dict[str, Array]:
    """Weights of three decimals, rows in the order of Hugging Face."""
    rng, found = np.random.default_rng(5), {}
    for name, shape in TransformerConfig(**CONFIG).shapes().items():
        x = rng.standard_normal(shape)
        found[name] = (1 + 0.3 * x if len(shape) == 1 else 0.6 * x).round(3)
    return found


def in_order(name: str, x: Array, turn: Any) -> Array:
    """Rows of Q and K in the order of the package or of Hugging Face."""
    heads = TransformerConfig(**CONFIG).rotated_heads(name)
    return x if heads is None else turn(x, heads)


def model_of(weights: dict[str, Array], **changes: Any) -> Transformer:
    model = Transformer(TransformerConfig(**(CONFIG | changes)), seed=None, dtype="float64")
    for name, view in model.parameters.items():
        view[...] = in_order(name, weights[name], rotate_neighbours)
    return model


def gradient_of(
    model: Transformer, tree: PrefixTree, dlogp: Array, temperature: float
) -> dict[str, Array]:
    """d loss / d parameters, from d loss / d logp of tokens (B,T)."""
    inside = tree.paths >= 0
    of_nodes = np.bincount(tree.paths[inside], dlogp[inside], minlength=tree.n_nodes)
    model.forward(tree, temperature)
    found = model.backward(of_nodes, add=False)
    return {name: in_order(name, g.copy(), rotate_halves) for name, g in found.items()}


def padded_rows() -> Batch:
    """Prompts padded on the left, completions on the right."""
    rows = [(p, y) for p, group in zip(PROMPTS, COMPLETIONS, strict=True) for y in group]
    width, t = max(map(len, PROMPTS)), max(len(y) for _, y in rows)
    left = [[0] * (width - len(p)) for p, _ in rows]
    right = [[0] * (t - len(y)) for _, y in rows]
    each = list(zip(left, rows, right, strict=True))
    return {
        "prompts": [p for p, _ in rows],
        "prompt_width": width,
        "input_ids": [a + p + y + b for a, (p, y), b in each],
        "attention_mask": [a + [1] * len(p + y) + b for a, (p, y), b in each],
    }


# -- the model with mistakes -----------------------------------------------------------------------


def forward(weights: dict[str, Array], tokens: Any, at: Any, allowed: Array, m: str = "") -> Array:
    """The logits of a sequence or flattened tree.   tokens, positions at (n,), allowed (n,n)"""
    c, e, heads = CONFIG, CONFIG["head_dim"], np.arange(CONFIG["n_heads"])
    eps = 0.0 if m == "norm_eps_missing" else c["norm_eps"]
    angle = np.outer(at, c["rope_base"] ** (-np.arange(0, e, 2) / e))[:, None]  # (n,1,E/2)
    pairs = slice(0, e // 2), slice(e // 2, e)
    if m == "rope_interleaved":
        pairs = slice(0, e, 2), slice(1, e, 2)
    shared = c["n_kv_heads"] * heads // len(heads)
    if m == "heads_tiled":
        shared = heads % c["n_kv_heads"]

    def norm(x: Array, name: str) -> Array:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weights[name]

    def rotated(x: Array) -> Array:
        out, a, b = np.empty_like(x), x[..., pairs[0]], x[..., pairs[1]]
        out[..., pairs[0]] = a * np.cos(angle) - b * np.sin(angle)
        out[..., pairs[1]] = b * np.cos(angle) + a * np.sin(angle)
        return out

    x = weights[EMBEDDING][tokens]
    for i in range(c["n_layers"]):
        layer = f"model.layers.{i}."
        h = norm(x, layer + "input_layernorm.weight")
        q, k, v = (
            (h @ weights[f"{layer}self_attn.{name}_proj.weight"].T).reshape(len(x), -1, e)
            for name in "qkv"
        )
        score = np.einsum("ihe,jhe->hij", rotated(q), rotated(k)[:, shared])
        score = score if m == "attention_scale_missing" else score / e**0.5
        p = np.exp(np.where(allowed, score, -np.inf))
        y = np.einsum("hij,jhe->ihe", p / p.sum(-1, keepdims=True), v[:, shared])
        x = x + y.reshape(len(x), -1) @ weights[layer + "self_attn.o_proj.weight"].T
        h = norm(x, layer + "post_attention_layernorm.weight")
        gate, up = (h @ weights[f"{layer}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        gate, up = (up, gate) if m == "gate_and_up_swapped" else (gate, up)
        x = x + (gate / (1 + np.exp(-gate)) * up) @ weights[layer + "mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ weights[EMBEDDING].T


def logits_of(weights: dict[str, Array], b: Batch, m: str = "") -> Array:
    """-> (B,S,V), 0 in the padding"""
    real = np.array(b["attention_mask"], dtype=bool)
    out = np.zeros((*real.shape, CONFIG["vocab_size"]))
    if m in ("siblings_attended", "positions_by_node"):
        row = 0
        for prompt, group in zip(PROMPTS, COMPLETIONS, strict=True):
            for nodes, logits in rows_of_flattened(weights, prompt, group, m):
                out[row, real[row]] = logits[nodes]
                row += 1
        return out
    for row, ids in enumerate(np.array(b["input_ids"])):
        inside = np.flatnonzero(real[row])
        start = 0 if m.startswith("padding_attended") else inside[0]
        tokens = ids[start : inside[-1] + 1]
        allowed = np.tri(len(tokens), dtype=bool) | (m == "attention_not_causal")
        at = np.arange(len(tokens))
        if "padding_attended_at_" in m:
            at = np.where(at < inside[0], int(m.split("_")[-1]), at - inside[0])
        logits = forward(weights, tokens, at, allowed, m)
        out[row, inside] = logits[-len(inside) :]
    return out


def rows_of_flattened(weights: dict[str, Array], prompt: list, group: list, m: str) -> list:
    """A prompt and its tree, depth first, as one sequence; the places of each row in it."""
    prefixes = sorted({tuple(y[: t + 1]) for y in group for t in range(len(y))})
    place = {prefix: len(prompt) + n for n, prefix in enumerate(prefixes)}
    tokens = prompt + [prefix[-1] for prefix in prefixes]
    depth = list(range(len(prompt))) + [len(prompt) + len(p) - 1 for p in prefixes]
    allowed = np.tri(len(tokens), dtype=bool)
    if m == "positions_by_node":
        for prefix, n in place.items():
            allowed[n, len(prompt) :] = False
            allowed[n, [place[prefix[: t + 1]] for t in range(len(prefix))]] = True
        depth = list(range(len(tokens)))
    logits = forward(weights, tokens, depth, allowed)
    before = list(range(len(prompt)))
    return [(before + [place[tuple(y[: t + 1])] for t in range(len(y))], logits) for y in group]


def scores(logits: Array, b: Batch, temperature: float, m: str = "") -> Array:
    """log p of the completions' tokens.   logits (B,S,V) -> (B,T), 0 in the padding"""
    ids = np.array(b["ids"])
    start = b["prompt_width"] - (m != "shift_by_one")
    by = {"temperature_ignored": 1.0, "temperature_multiplied": 1 / temperature}
    x = logits[:, start : start + ids.shape[1]] / by.get(m, temperature)
    if m != "log_softmax_missing":
        x = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return np.where(b["mask"], np.take_along_axis(x, ids[..., None], axis=2)[..., 0], 0.0)


# -- cases -----------------------------------------------------------------------------------------


def value_case(kind: str, name: str, b: Batch, inputs: Batch, value: Array, of: Any) -> Batch:
    """of(mistake) -> what it makes of the value"""
    mask = "attention_mask" if kind == "logits" else "mask"
    expected = {"value": inside(value, b[mask])}
    return {
        "name": f"{kind}.{name}",
        "kind": kind,
        "batch": name,
        "settings": {},
        "inputs": inputs,
        "mask": mask,
        "expected": expected,
        "wrong": wrong_numbers(expected, lambda m: {"value": inside(of(m), b[mask])}, MISTAKES),
    }


def loss_case(
    name: str, b: Batch, s: Batch, weights: dict[str, Array], tree: PrefixTree, t: float
) -> Batch:
    """The whole of it: parameters to loss and gradient.   t: temperature"""
    right, model = Right(b), model_of(weights)
    loss, dlogp, _ = right.loss(s)

    def of_mistake(m: str) -> dict[str, Any]:
        slope, found, temperature = dlogp, loss, t
        if m in OF_GRADIENT:
            own = model_of(weights | {"lm_head.weight": weights[EMBEDDING]}, tie_embeddings=False)
            gradient = gradient_of(own, tree, dlogp, t)
            head = gradient.pop("lm_head.weight")
            more = {EMBEDDING: head} if m == "head_without_embedding" else {}
            return {"loss": loss, "gradient": gradient | more}
        if m == "temperature_ignored":
            temperature, at_1 = 1.0, tree.on_tokens(model.forward(tree, 1.0, keep=False))
            found, slope = wrong.loss(b | {"logp": np.where(b["mask"], at_1, -7.5)}, s)
        elif m:
            found, slope = wrong.loss(b, s, m)
        return {"loss": found, "gradient": gradient_of(model, tree, slope, temperature)}

    expected = of_mistake("")
    names = (*OF_GRADIENT, "temperature_ignored", *OF_LOSS)
    return {
        "name": f"model_loss.{name}",
        "kind": "model_loss",
        "batch": name,
        "settings": s,
        "inputs": {
            "temperature": t,
            "parameters": {n: x.tolist() for n, x in weights.items()},
            "config": CONFIG,
            "advantages": plain(right.advantages(s)),
            "token_advantages": plain(np.where(b["mask"], right.advantages(s)[:, None], 0.0)),
            "weights": plain(right.weights(s)),
            "loss_mask": loss_mask(b, s),
        },
        "gradient_by": "parameters",
        "loss_scale": float(np.abs(dlogp).sum()),
        "expected": {
            "loss": loss,
            "gradient": {n: g.tolist() for n, g in expected["gradient"].items()},
        },
        "wrong": wrong_numbers(expected, of_mistake, names, float(np.abs(dlogp).sum())),
    }


def llama() -> Batch:
    """Everything of llama.json."""
    weights, rng = parameters(), np.random.default_rng(8)
    model, tree = model_of(weights), PrefixTree.from_groups(PROMPTS, COMPLETIONS)
    base = make_batch(COMPLETIONS, REWARDS, [5], max_new_tokens=5) | padded_rows()
    real_tokens = np.array(base["mask"], dtype=bool)
    moved = rng.choice([-0.5, -0.3, -0.1, 0.1, 0.23, 0.4], tree.n_nodes)
    away = rng.uniform(-0.5, 0.5, tree.n_nodes).round(2)
    logits = np.zeros((*np.shape(base["input_ids"]), CONFIG["vocab_size"]))
    for row, (ids, real) in enumerate(zip(base["input_ids"], base["attention_mask"], strict=True)):
        places = np.flatnonzero(real)
        logits[row, places] = model.logits(np.array(ids)[places])
    inputs = {"parameters": {n: x.tolist() for n, x in weights.items()}, "config": CONFIG}
    batches, cases = {}, []
    for name, (temperature, changes) in CASES.items():
        logp = model.forward(tree, temperature, keep=False)
        numbers = {"logp": logp, "old": (logp - moved).round(3), "ref": (logp - away).round(3)}
        b = dict(base)
        for n, x in numbers.items():
            b[n] = np.where(real_tokens, tree.on_tokens(x), base[n]).tolist()
        batches[name] = b
        if not cases:
            of = lambda m: logits_of(weights, base, m)  # noqa: E731
            cases.append(value_case("logits", name, b, inputs, logits, of))
        real = np.array(b["attention_mask"], dtype=bool)[..., None]
        garbage = 3 * np.cos(np.arange(logits.size)).reshape(logits.shape).round(2)
        given = np.where(real, logits, garbage)
        of = lambda m: scores(given, base, temperature, m)  # noqa: E731, B023
        inputs_of_scores = {"logits": given.tolist(), "temperature": temperature}
        value = tree.on_tokens(logp)
        cases.append(value_case("logp", name, b, inputs_of_scores, value, of))
        cases.append(loss_case(name, b, SETTINGS | changes, weights, tree, temperature))
    return {
        "format": FORMAT,
        "licence": "CC0-1.0",
        "mistakes": MISTAKES | {m: wrong.MISTAKES[m] for m in OF_LOSS},
        "batches": batches,
        "cases": cases,
    }
