"""The opponent of the benchmark: one GRPO step in plain PyTorch, in float32, as a competent user
would write it.

Everything that helps the usual way is used: prompts are run once and their keys and values copied
to the group, the cache is allocated once, attention is PyTorch's causal kernel (and plain products
for single tokens, where they are faster), Q/K/V and gate/up are one matrix each, logits are
computed only where they are needed, AdamW is fused, and the update takes micro-batches of any size
and can be compiled.  What it does not do is what `minigrpo` is about: it computes every completion
on its own, also where completions agree.

The weights are those of a `minigrpo` model, so both compute the same numbers: `python -m
benchmarks.peer_pytorch` checks it.

Shape letters: G prompts, k group size, B = G·k completions, P prompt length, T tokens, D width, H
heads, K kv heads, E head width, F ffn width, V vocabulary.  Prompts of a batch have the same length
here, so nothing needs padding on the left, or a mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from minigrpo import Objective, PrefixTree, Rollouts, Transformer, TransformerConfig
from minigrpo.trainer import compute_gradients

KERNELS = {"fused": nullcontext, "plain": partial(sdpa_kernel, SDPBackend.MATH)}
Cache = tuple[Tensor, Tensor]  # keys and values of a layer, (B,K,room,E) each


def rope(x: Tensor, turn: Tensor) -> Tensor:
    """Rotate neighbours, each pair a complex number.

    x (B,T,heads,E), turn (T,1,E/2,2) -> (B,T,heads,E)
    """
    pairs = x.unflatten(-1, (-1, 2))  # (B,T,heads,E/2,2)
    if (
        torch.compiler.is_compiling()
    ):  # the compiler knows no complex numbers, but makes one loop of the real ones
        (re, im), (cos, sin) = pairs.unbind(-1), turn.unbind(-1)
        return torch.stack((re * cos - im * sin, im * cos + re * sin), -1).flatten(-2)
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turn)).flatten(
        -2
    )


class Block(nn.Module):
    """One layer.   Matrices that read the same input are one Linear."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = (
            config.n_heads,
            config.n_kv_heads,
            config.head_dim,
        )
        self.attention_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.qkv = nn.Linear(
            config.dim, (config.n_heads + 2 * config.n_kv_heads) * config.head_dim, bias=False
        )
        self.o = nn.Linear(config.dim, config.dim, bias=False)
        self.ffn_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.gate_up = nn.Linear(config.dim, 2 * config.ffn_dim, bias=False)
        self.down = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(
        self, x: Tensor, turn: Tensor, cache: Cache | None = None, start: int = 0
    ) -> Tensor:
        """x (B,T,D), turn (T,1,E/2,2) -> (B,T,D).

        With a cache, T is all of a prompt or one new token after it.
        """
        (b, t, d), h, k_heads, e = x.shape, self.n_heads, self.n_kv_heads, self.head_dim
        qkv = self.qkv(self.attention_norm(x)).view(b, t, h + 2 * k_heads, e)
        qk, v = qkv.split((h + k_heads, k_heads), dim=2)  # (B,T,H+K,E), (B,T,K,E)
        q, k = rope(qk, turn).transpose(1, 2).split((h, k_heads), dim=1)  # (B,H,T,E), (B,K,T,E)
        v = v.transpose(1, 2)  # (B,K,T,E)
        if cache is not None:
            end = start + t
            cache[0][:, :, start:end], cache[1][:, :, start:end] = k, v
            k, v = cache[0][:, :, :end], cache[1][:, :, :end]
        if t == 1:
            # One new token sees the whole cache, so two products without a mask do, and are faster
            # than the fused kernel here; the H/K queries of a kv head are rows of one product.
            q = q.reshape(b, k_heads, h // k_heads, e) * e**-0.5
            y = (torch.softmax(q @ k.transpose(2, 3), -1) @ v).view(b, 1, d)
        else:
            options = {"is_causal": True, "enable_gqa": h != k_heads}
            y = F.scaled_dot_product_attention(q, k, v, **options)  # (B,H,T,E)
            y = y.transpose(1, 2).reshape(b, t, d)
        x = x + self.o(y)
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)  # (B,T,F) each
        return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    """The model that `minigrpo.Transformer` is."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        frequency = config.rope_base ** (
            -torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        )  # (E/2,)
        angle = torch.outer(torch.arange(config.max_seq_len, dtype=torch.float64), frequency)
        turn = torch.stack((angle.cos(), angle.sin()), -1)[:, None].float()  # (max_seq_len,1,E/2,2)
        self.register_buffer("turn", turn, persistent=False)

    def forward(
        self,
        tokens: Tensor,
        first: int = 0,
        caches: Sequence[Cache | None] | None = None,
        start: int = 0,
    ) -> Tensor:
        """The logits after the tokens from position `first` on.   tokens (B,T) -> (B,T-first,V)"""
        x, turn = self.embedding(tokens), self.turn[start : start + tokens.shape[1]]
        for block, cache in zip(self.blocks, caches or [None] * len(self.blocks), strict=True):
            x = block(x, turn, cache, start)
        return self.head(self.norm(x[:, first:]))

    def named(self) -> dict[str, tuple[nn.Parameter, list[str]]]:
        """Every parameter with the names, in minigrpo, of the matrices that it joins."""
        out = {"embedding": (self.embedding.weight, ["model.embed_tokens.weight"])}
        for i, block in enumerate(self.blocks):
            for own, theirs in (
                ("attention_norm", ["input_layernorm"]),
                ("qkv", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
                ("o", ["self_attn.o_proj"]),
                ("ffn_norm", ["post_attention_layernorm"]),
                ("gate_up", ["mlp.gate_proj", "mlp.up_proj"]),
                ("down", ["mlp.down_proj"]),
            ):
                out[f"{own}.{i}"] = (
                    getattr(block, own).weight,
                    [f"model.layers.{i}.{name}.weight" for name in theirs],
                )
        out["norm"] = self.norm.weight, ["model.norm.weight"]
        if not self.config.tie_embeddings:
            out["head"] = self.head.weight, ["lm_head.weight"]
        return out


class PyTorchGRPO:
    """A policy with its optimiser.   `sample`, then rewards, then `update`, is a GRPO step.

    parameters: a mapping name -> NumPy array such as `minigrpo.Transformer.parameters` (copied).
    micro_batch: completions that go forward and backward at a time; None for all.
    eos: the token that ends a completion; None for completions of full length.
    attention: the update's kernel, "fused" (PyTorch's own choice) or "plain" (products and a
    softmax); either may be faster.
    compile: compile the update's forward and backward (needs a C++ compiler; the first update takes
    about a minute); or its mode.
    device: where the model is, "cpu" or "cuda"; tokens, rewards and generators are there too.
    """

    def __init__(
        self,
        config: TransformerConfig,
        parameters: Mapping[str, np.ndarray],
        *,
        learning_rate: float = 1e-3,
        max_grad_norm: float = 1.0,
        micro_batch: int | None = None,
        eos: int | None = None,
        attention: str = "fused",
        compile: bool | str = False,
        device: str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.model = Llama(config).to(self.device)
        with torch.no_grad():
            for own, names in self.model.named().values():
                own.copy_(torch.from_numpy(np.concatenate([parameters[name] for name in names])))
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=learning_rate, weight_decay=0.0, fused=True
        )
        self.attention = attention
        mode = compile if isinstance(compile, str) else None
        self.train_model = torch.compile(self.model, mode=mode) if compile else self.model
        self.max_grad_norm, self.micro_batch, self.eos = max_grad_norm, micro_batch, eos

    def sample(
        self,
        prompts: Sequence[np.ndarray] | Tensor,
        group_size: int,
        max_new_tokens: int,
        generator: torch.Generator | None = None,
        forced: Tensor | None = None,
    ) -> Tensor:
        """group_size completions of every prompt.

        prompts (G,P) -> (B,P+T) int64, each prompt with its completion

        After an EOS a row is filled up with EOS; T is max_new_tokens, or less if all rows ended
        before. forced (B,P+T): compute and draw as always, but go on with these tokens instead of
        those drawn.
        """
        model, config = self.model, self.model.config
        prompts = torch.as_tensor(np.asarray(prompts), dtype=torch.int64).to(self.device)
        width, batch = prompts.shape[1], len(prompts) * group_size
        tokens = torch.empty(batch, width + max_new_tokens, dtype=torch.int64, device=self.device)
        tokens[:, :width] = prompts.repeat_interleave(group_size, 0)
        ended = torch.zeros(batch, dtype=torch.bool, device=self.device)
        with torch.inference_mode():
            shape = (len(prompts), config.n_kv_heads, width, config.head_dim)
            prompt_caches = [
                tuple(torch.empty(shape, device=self.device) for _ in "kv") for _ in model.blocks
            ]
            logits = model(prompts, width - 1, prompt_caches)[:, 0].repeat_interleave(
                group_size, 0
            )  # (B,V)
            caches = [
                tuple(self._expand(part, group_size, max_new_tokens) for part in cache)
                for cache in prompt_caches
            ]
            for position in range(width, width + max_new_tokens):
                drawn = torch.multinomial(torch.softmax(logits, -1), 1, generator=generator)[
                    :, 0
                ]  # (B,)
                if forced is not None:
                    drawn = forced[:, position]
                if self.eos is not None:
                    drawn = drawn.masked_fill(ended, self.eos)
                    ended |= drawn == self.eos
                tokens[:, position] = drawn
                if position == width + max_new_tokens - 1 or (self.eos is not None and ended.all()):
                    break
                logits = model(drawn[:, None], 0, caches, position)[:, 0]
        return tokens[:, : position + 1]

    @staticmethod
    def _expand(part: Tensor, group_size: int, room: int) -> Tensor:
        """Keys or values of the prompts, copied to every completion, with room for what is to come.

        Returns (B,K,P+room,E).
        """
        n, kv_heads, width, e = part.shape
        out = part.new_empty(n * group_size, kv_heads, width + room, e)
        out[:, :, :width] = part.repeat_interleave(group_size, 0)
        return out

    def update(
        self, tokens: Tensor, rewards: Tensor, prompt_length: int, old_logp: Tensor | None = None
    ) -> float:
        """One step of AdamW on the GRPO loss.

        tokens (B,P+T) as from `sample`, rewards (G,k) -> the loss

        old_logp (B,T): under the policy that sampled; None if that is the policy as it is now,
        which saves computing it.
        """
        loss = self.backward(tokens, rewards, prompt_length, old_logp)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.optimizer.step()
        return loss

    def backward(
        self, tokens: Tensor, rewards: Tensor, prompt_length: int, old_logp: Tensor | None = None
    ) -> float:
        """The loss, with its gradient left in the parameters.   Arguments as for `update`.

        loss = -1/G Σ_groups 1/(tokens of the group) Σᵢₜ aᵢ·ratioᵢₜ,   aᵢ = (rᵢ - mean) / (std +
        1e-4)
        """
        target = tokens[:, prompt_length:]  # (B,T)
        advantage = (rewards - rewards.mean(1, keepdim=True)) / (
            rewards.std(1, keepdim=True) + 1e-4
        )  # (G,k)
        weight = torch.ones(target.shape, device=self.device)
        if self.eos is not None:  # up to and with the first EOS
            is_eos = (target == self.eos).int()
            weight = (is_eos.cumsum(1) == is_eos).float()
        weight = weight.view(*rewards.shape, -1)  # (G,k,T)
        weight = (
            weight * advantage[..., None] / (len(rewards) * weight.sum((1, 2), keepdim=True))
        ).view(target.shape)  # (B,T)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for start in range(0, len(tokens), self.micro_batch or len(tokens)):
            rows = slice(start, start + (self.micro_batch or len(tokens)))
            logp = self.log_probabilities(tokens[rows], prompt_length)
            ratio = torch.exp(logp - (logp.detach() if old_logp is None else old_logp[rows]))
            loss = -(weight[rows] * ratio).sum()
            loss.backward()
            total += loss.detach()
        return total.item()  # waits for a GPU, once

    def log_probabilities(self, tokens: Tensor, prompt_length: int) -> Tensor:
        """log p of every token of the completions.   (B,P+T) -> (B,T)"""
        with KERNELS[self.attention]():
            logits = self.train_model(
                tokens[:, :-1], prompt_length - 1
            )  # (B,T,V): the last token predicts nothing
        return torch.log_softmax(logits, -1).gather(-1, tokens[:, prompt_length:, None])[..., 0]

    def gradients(self) -> dict[str, np.ndarray]:
        """The gradients under minigrpo's names."""
        config, out = self.model.config, {}
        for own, names in self.model.named().values():
            sizes = [config.shapes()[name][0] for name in names]
            out |= dict(
                zip(names, (part.cpu().numpy() for part in own.grad.split(sizes)), strict=True)
            )
        return out


def check(tolerance: float = 1e-4) -> dict[str, float]:
    """Hold this file against minigrpo, both in float32: logits, log-probabilities, sampling with
    the cache, all gradients.

    Returns the largest difference of each; gradients relative to each parameter's norm.  Raises
    AssertionError above tolerance.
    """
    worst: dict[str, float] = {}

    def note(what: str, difference: float) -> None:
        worst[what] = max(worst.get(what, 0.0), float(difference))
        assert difference <= tolerance, f"{what}: {difference:.2e}"

    for kv_heads, tied, base, eos, kernel in (
        (4, True, 10_000.0, None, "fused"),
        (2, False, 500_000.0, 3, "fused"),
        (2, False, 10_000.0, None, "plain"),
        (1, True, 10_000.0, 5, "fused"),
    ):
        config = TransformerConfig(
            11, 64, 3, 4, kv_heads, 88, max_seq_len=32, rope_base=base, tie_embeddings=tied
        )
        model, rng = Transformer(config, seed=kv_heads), np.random.default_rng(kv_heads)
        for view in (
            model.parameters.values()
        ):  # as initialised, the policy is nearly uniform and hides mistakes
            noise = rng.standard_normal(view.shape)
            view[...] = 1 + 0.3 * noise if view.ndim == 1 else 1.2 * noise / np.sqrt(view.shape[1])
        peer = PyTorchGRPO(config, model.parameters, micro_batch=7, eos=eos, attention=kernel)
        prompts, k, new = rng.integers(config.vocab_size, size=(3, 6)), 5, 9
        width = prompts.shape[1]

        # Sampling: the same draws from logits that a forward of the whole sequence gives.
        tokens = peer.sample(prompts, k, new, torch.Generator().manual_seed(0))
        assert torch.equal(
            tokens, peer.sample(prompts, k, new, torch.Generator().manual_seed(1), forced=tokens)
        )
        generator, live = (
            torch.Generator().manual_seed(0),
            torch.ones(len(tokens), dtype=torch.bool),
        )
        with torch.no_grad():
            for t in range(width, tokens.shape[1]):
                p = torch.softmax(peer.model(tokens[:, :t], t - 1)[:, 0], -1)
                drawn = torch.multinomial(p, 1, generator=generator)[:, 0]
                note("tokens drawn", (drawn != tokens[:, t])[live].sum())
                live &= drawn != eos if eos is not None else True

            for row, logits in zip(tokens.numpy(), peer.model(tokens).numpy(), strict=True):
                note("logits", np.abs(model.logits(row) - logits).max())

        # The update, from an older policy (old_logp) and from this one.
        ends = [
            np.flatnonzero(row == eos)[:1] + 1 if eos is not None else []
            for row in tokens[:, width:].numpy()
        ]
        cut = [
            row[: end[0]] if len(end) else row
            for row, end in zip(tokens[:, width:].numpy(), ends, strict=True)
        ]
        groups = [cut[g * k : (g + 1) * k] for g in range(len(prompts))]
        tree = PrefixTree.from_groups(prompts, groups)
        nothing, rewards = np.zeros(tree.n_nodes), rng.random((len(prompts), k))
        rollouts = Rollouts(
            list(prompts), groups, tree, nothing, nothing, np.zeros(len(cut), dtype=bool), 1.0, new
        )
        objective = Objective.preset("grpo", clip_low=None, clip_high=None)
        logp = model.forward(tree, keep=False)
        with torch.no_grad():
            difference = np.abs(
                peer.log_probabilities(tokens, width).numpy() - tree.on_tokens(logp)
            )
        note("log-probabilities", difference[tree.paths >= 0].max())
        for old in (
            logp,
            logp
            + np.where(tree.scored, rng.uniform(-0.5, 0.5, tree.n_nodes), 0).astype(np.float32),
        ):
            coefficients = objective.coefficients(rollouts, rewards.ravel())
            loss, _ = compute_gradients(
                model, [(tree, np.arange(tree.n_nodes))], objective, coefficients, 1.0, old
            )
            old_logp = None if old is logp else torch.from_numpy(tree.on_tokens(old))
            note(
                "loss",
                abs(
                    peer.backward(tokens, torch.from_numpy(rewards).float(), width, old_logp) - loss
                ),
            )
            for name, gradient in peer.gradients().items():
                expected = model.gradients[name]
                note("gradients", np.linalg.norm(gradient - expected) / np.linalg.norm(expected))
    return worst


if __name__ == "__main__":
    for what, difference in check().items():
        print(f"{what:20s} largest difference {difference:.1e}")
