"""A Llama-shaped transformer over the nodes of a prefix tree, forward and backward by hand.

RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases, optional tied embeddings.  A node stands
for a whole prefix: running the model on the nodes of a tree gives, for every completion, the numbers that running it on each
completion alone would give.
The shape of a model and its parameters in one flat vector are in `parameters.py`, the operations in `ops.py`.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import asdict
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from minigrpo import ops
from minigrpo.engine.backend import Backend, get_backend
from minigrpo.engine.divergence import OVERFLOW, DivergenceError
from minigrpo.engine.lanes import LANES, limited
from minigrpo.engine.parameters import Layer, Parameters, TransformerConfig
from minigrpo.engine.plan import Predictions, TreePlan, plan_tree
from minigrpo.engine.profiling import timed
from minigrpo.ops import Array
from minigrpo.tree import PrefixTree

MAX_LANE_PARAMETERS = 8_000_000  # each lane has gradients of its own
MAX_LOGITS = 1 << 24  # logits that are held at a time
HARMLESS = 1e6  # a norm of all parameters; below it nothing that they compute overflows
FIRST_TURNS = 4096  # positions whose rotations are computed at once; a context may be far longer than any sequence


class Transformer:
    """The model.   `parameters` and `gradients` are mappings name -> view; their `.flat` is the one vector.

    Embeddings start as N(0, 0.02²), matrices as N(0, 1/inputs), those that write into the residual stream as N(0, 1/(2·layers·
    inputs)), norms as 1: with tied embeddings the policy starts near the uniform one.
    The same seed gives the same weights on every backend; seed=None leaves them 0, to be written into.
    Raises ValueError for an unknown backend or dtype.
    """

    def __init__(
        self,
        config: TransformerConfig,
        seed: int | None = 0,
        backend: str | Backend = "numpy",
        dtype: str = "float32",
    ) -> None:
        if str(dtype) not in ("float32", "float64"):
            raise ValueError(f"dtype {dtype!r} is not supported: choose float32 or float64")
        self.config = config
        self.backend = backend if isinstance(backend, Backend) else get_backend(backend)
        self.dtype = np.dtype(dtype)
        self.parameters = Parameters(config.shapes(), self.backend.xp, self.dtype)
        self.gradients = Parameters(config.shapes(), self.backend.xp, self.dtype)
        if seed is not None:
            self._start(np.random.default_rng(seed))
        self._layers = [Layer.of(self.parameters, i) for i in range(config.n_layers)]
        self._layer_gradients = [Layer.of(self.gradients, i) for i in range(config.n_layers)]
        self._head = "model.embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"
        self._turns = self._rotations(FIRST_TURNS)
        self._plans: WeakKeyDictionary[PrefixTree, TreePlan] = WeakKeyDictionary()
        self._saved: tuple | None = None
        self._twins: list[Transformer] = []

    def _rotations(self, length: int) -> Array:
        """Those of the positions below `length` and within the context.   -> (T,1,E/2)"""
        positions = np.arange(min(length, self.config.max_seq_len))
        turns = ops.rotation(positions, self.config.head_dim, self.config.rope_base)[:, None]
        return self.backend.to_device(
            turns, dtype=np.complex64 if self.dtype == np.float32 else np.complex128
        )

    def _start(self, rng: np.random.Generator) -> None:
        for name, view in self.parameters.items():
            if view.ndim == 1:
                view[...] = 1
            else:
                writes = (
                    2 * self.config.n_layers
                    if name.endswith(("o_proj.weight", "down_proj.weight"))
                    else 1
                )
                scale = 0.02 if "embed" in name else 1 / math.sqrt(view.shape[1] * writes)
                view[...] = self.backend.to_device(
                    rng.standard_normal(view.shape) * scale, dtype=self.dtype
                )

    def settings(self) -> dict[str, Any]:
        """The config as a plain dict, to be written down and given to TransformerConfig again."""
        return asdict(self.config)

    # -- in lanes (see `lanes.py`) -----------------------------------------------------------------------------------

    @property
    def lanes(self) -> int:
        """Into how many lanes its work may be divided: 1 on a GPU, or for a large model."""
        small = self.parameters.flat.size <= MAX_LANE_PARAMETERS
        return LANES if self.backend.name == "numpy" and small else 1

    def twins(self, n: int) -> list[Transformer]:
        """n models with the same parameters, each with gradients of its own; the first is this one."""
        while len(self._twins) < n - 1:
            twin = copy(self)
            twin.gradients = Parameters(self.config.shapes(), self.backend.xp, self.dtype)
            twin._layer_gradients = [
                Layer.of(twin.gradients, i) for i in range(self.config.n_layers)
            ]
            twin._plans, twin._saved, twin._twins = WeakKeyDictionary(), None, []
            self._twins.append(twin)
        return [self, *self._twins[: n - 1]]

    # -- over a tree -------------------------------------------------------------------------------------------------

    @timed("forward")
    @limited
    def forward(self, tree: PrefixTree, temperature: float = 1.0, keep: bool = True) -> np.ndarray:
        """log p(token | its prefix) at temperature, for every scored node; 0 for the others.   -> (N,) on the host

        keep=True saves what `backward` needs.  Raises ValueError for a token outside the vocabulary, a completion's
        token that cannot be drawn, and a path longer than max_seq_len; DivergenceError for an overflow.
        """
        plan = self._plan(tree)
        x, saved = self._body(plan.token, plan.position, self._attend_in_tree(plan), keep)
        h, norm = ops.rmsnorm(
            x[plan.predictor], self.parameters["model.norm.weight"], self.config.norm_eps
        )  # (P,D)
        logp = np.zeros(tree.n_nodes, dtype=self.dtype)
        softmax = None
        for block in plan.predictions:
            chosen, softmax = self._predict(h, block, temperature)  # (C,)
            logp[block.child] = self.backend.to_host(chosen)
        if not np.isfinite(logp).all():
            raise DivergenceError(OVERFLOW)
        if (
            keep
        ):  # the softmax of one block is kept; of more, each is computed again on the way back
            self._saved = (
                plan,
                temperature,
                saved,
                norm,
                h,
                softmax if len(plan.predictions) == 1 else None,
            )
        return logp

    def _predict(self, h: Array, block: Predictions, temperature: float) -> tuple[Array, ops.Cache]:
        logits, _ = ops.linear(h[block.rows], self._head_of(self.parameters))  # (P,V)
        if temperature != 1:
            logits /= temperature
        return ops.log_softmax_gather(logits, block.child_row, block.child_token)

    @timed("backward")
    @limited
    def backward(self, dlogp: np.ndarray, add: bool = True) -> Parameters:
        """Add d loss / d parameters to `gradients`, given d loss / d logp of every node.   dlogp (N,) on the host

        add=False overwrites what `gradients` held; faster than setting it to 0 first.
        Undoes the last `forward`; raises RuntimeError if there is none to undo.
        """
        if self._saved is None:
            raise RuntimeError(
                "backward needs a forward (with keep=True) before it, one for each backward"
            )
        plan, temperature, saved, norm, h, softmax = self._saved
        self._saved = None
        device, gradients = self.backend.to_device, self.gradients
        if not any(
            dlogp[block.child].any() for block in plan.predictions
        ):  # a group of equal rewards: all gradients are 0
            if not add:
                gradients.flat[:] = 0
            return gradients
        if not add:  # what is no matrix product is added in any case
            gradients[self._head][self.config.n_logits :] = 0
            for name, gradient in gradients.items():
                if gradient.ndim == 1 or ("embed" in name and name != self._head):
                    gradient[...] = 0
        dh = self.backend.xp.empty_like(h)  # (P,D)
        for i, block in enumerate(plan.predictions):
            c = dlogp[block.child] / temperature
            row_sum = np.bincount(
                block.row_of_child, c, minlength=block.rows.stop - block.rows.start
            )
            pair_sum = np.bincount(block.pair_of_child, c, minlength=len(block.pair_row))
            dlogits = ops.log_softmax_gather_backward(
                device(row_sum, self.dtype),
                block.pair_row,
                block.pair_token,
                device(pair_sum, self.dtype),
                softmax or self._predict(h, block, temperature)[1],
            )  # (P,V)
            head = h[block.rows], self._head_of(self.parameters)
            dh[block.rows] = ops.linear_backward(
                dlogits, head, self._head_of(gradients), add or i > 0
            )
        dx = self.backend.xp.zeros((len(plan.token), self.config.dim), dtype=self.dtype)
        dx[plan.predictor] = ops.rmsnorm_backward(dh, norm, gradients["model.norm.weight"])
        dx = self._body_backward(dx, saved, plan, add)
        ops.embedding_backward(dx, plan.token_sum, gradients["model.embed_tokens.weight"])
        return gradients

    @limited
    def logits(self, sequence: np.ndarray) -> np.ndarray:
        """The logits after every token of one sequence.   (T,) -> (T,V) on the host"""
        return self.backend.to_host(self._logits(self.residual(sequence)))

    def check_weights(self) -> None:
        """Raise DivergenceError if the parameters are not finite, or so large that a trial overflows.

        The trial, of a few tokens, looks at the residual stream as well: a norm makes 0 of what
        overflows, and no logit would show it.
        """
        flat = self.parameters.flat
        size = float(flat @ flat)  # the caller tells NumPy not to warn of an overflow here
        if size < HARMLESS**2:
            return
        n = min(8, self.config.max_seq_len - 1)
        if math.isfinite(size) and n:
            tokens = np.linspace(0, self.config.vocab_size - 1, n).astype(np.int64)
            with np.errstate(all="ignore"):
                x = self.backend.to_host(self.residual(tokens)).astype(np.float64)
                size = (x * x).sum() if np.isfinite(self.logits(tokens)).all() else np.inf
        if not size < np.finfo(self.dtype).max:
            raise DivergenceError(OVERFLOW)

    @limited
    def residual(self, sequence: np.ndarray) -> Array:
        """The residual stream after the last layer, at every token of one sequence.   (T,) -> (T,D)"""
        tokens = np.asarray(sequence)
        self.check(tokens, len(tokens))
        tree = PrefixTree.from_groups(
            [tokens], [[[0]]]
        )  # one more token, so that every token of the sequence is an inner node
        plan = plan_tree(tree, self.backend, self.dtype)
        return self._body(plan.token, plan.position, self._attend_in_tree(plan), keep=False)[0]

    # -- over some nodes only, with the keys and values of earlier ones in a cache (for the sampler) ------------------

    @limited
    def extend(
        self, attend: Any, token: np.ndarray, position: np.ndarray, wanted: Any = slice(None)
    ) -> Array:
        """Compute more nodes, which attend as attend(layer, q, k, v, y) does (see `kv_cache.py`), and return their logits.

        token and position (n,) on the host; wanted: of which nodes -> (P,V)
        """
        device = self.backend.to_device
        x, _ = self._body(device(token), device(position), attend, keep=False)
        return self._logits(x[wanted])

    # -- the layers --------------------------------------------------------------------------------------------------

    def _body(self, token: Array, position: Array, attend: Any, keep: bool) -> tuple[Array, list]:
        """Embedding and all layers.   token and position (N,) -> x (N,D), what each layer's backward needs"""
        config, xp = self.config, self.backend.xp
        n, f, e = len(token), config.ffn_dim, config.head_dim
        n_rotated = config.n_heads + config.n_kv_heads
        saved = []
        x = ops.embedding(token, self.parameters["model.embed_tokens.weight"])  # (N,D)
        turn = self._turns[position].repeat(n_rotated, axis=1)  # (N,H+K,E/2)
        for i, layer in enumerate(self._layers):
            h, norm1 = ops.rmsnorm(x, layer.attention_norm, config.norm_eps)  # (N,D)
            qkv, linear1 = ops.linear(h, layer.qkv)  # (N, (H+2K)·E)
            heads = qkv.reshape(n, n_rotated + config.n_kv_heads, e)  # (N, H+K+K, E)
            ops.rope(heads[:, :n_rotated], turn)
            y = xp.empty((n, config.n_heads, e), dtype=self.dtype)
            attended = attend(
                i,
                heads[:, : config.n_heads],
                heads[:, config.n_heads : n_rotated],
                heads[:, n_rotated:],
                y,
            )
            o, linear2 = ops.linear(y.reshape(n, config.n_heads * e), layer.o)  # (N,D)
            x += o
            h, norm2 = ops.rmsnorm(x, layer.ffn_norm, config.norm_eps)  # (N,D)
            gate_up, linear3 = ops.linear(h, layer.gate_up)  # (N,2F)
            y, activated = ops.swiglu(gate_up[:, :f], gate_up[:, f:])  # (N,F)
            y, linear4 = ops.linear(y, layer.down)  # (N,D)
            x += y
            if keep:
                saved.append(
                    (norm1, linear1, attended, linear2, norm2, linear3, activated, linear4, turn)
                )
        return x, saved

    def _body_backward(self, dx: Array, saved: list, plan: TreePlan, add: bool) -> Array:
        """The layers in reverse, each undoing the passes of `_body` from the last to the first.   dx (N,D) -> dx (N,D)"""
        config, xp = self.config, self.backend.xp
        n, f, e = len(dx), config.ffn_dim, config.head_dim
        n_rotated = config.n_heads + config.n_kv_heads
        for i in reversed(range(config.n_layers)):
            norm1, linear1, attended, linear2, norm2, linear3, activated, linear4, turn = (
                saved.pop()
            )
            layer, grad = self._layers[i], self._layer_gradients[i]
            dy = ops.linear_backward(dx, linear4, grad.down, add)  # (N,F)
            dgate_up = xp.empty((n, 2 * f), dtype=self.dtype)
            ops.swiglu_backward(dy, activated, dgate_up[:, :f], dgate_up[:, f:])
            dh = ops.linear_backward(dgate_up, linear3, grad.gate_up, add)
            dx += ops.rmsnorm_backward(dh, norm2, grad.ffn_norm)
            dy = ops.linear_backward(dx, linear2, grad.o, add).reshape(n, config.n_heads, e)
            dheads = xp.zeros((n, n_rotated + config.n_kv_heads, e), dtype=self.dtype)
            dq, dk, dv = (
                dheads[:, : config.n_heads],
                dheads[:, config.n_heads : n_rotated],
                dheads[:, n_rotated:],
            )
            for block, cache in zip(plan.blocks, attended, strict=True):
                ops.attention_backward(dy, cache, block, dq, dk, dv)
            ops.rope_backward(dheads[:, :n_rotated], turn)
            dh = ops.linear_backward(dheads.reshape(n, len(layer.qkv)), linear1, grad.qkv, add)
            dx += ops.rmsnorm_backward(dh, norm1, grad.attention_norm)
        return dx

    @staticmethod
    def _attend_in_tree(plan: TreePlan) -> Any:
        return lambda i, q, k, v, y: [ops.attention(q, k, v, block, y) for block in plan.blocks]

    def _logits(self, x: Array) -> Array:
        h, _ = ops.rmsnorm(x, self.parameters["model.norm.weight"], self.config.norm_eps)
        return ops.linear(h, self._head_of(self.parameters))[0]

    def _head_of(self, parameters: Parameters) -> Array:
        """The rows of the head whose tokens can be drawn: all logits, drawn from or scored, come from them.   -> (V,D)"""
        return parameters[self._head][: self.config.n_logits]

    def _plan(self, tree: PrefixTree) -> TreePlan:
        plan = self._plans.get(tree)
        if plan is None:
            self.check(tree.token, int(tree.row_end.max()))
            last, drawable = tree.token[tree.scored].max(initial=0), self.config.n_logits
            if last >= drawable:
                raise ValueError(
                    f"token id {last} of a completion cannot be drawn: the model draws those below {drawable}"
                )
            plan = self._plans[tree] = plan_tree(
                tree, self.backend, self.dtype, max(MAX_LOGITS // self.config.vocab_size, 1)
            )
        return plan

    def check(self, token: np.ndarray, length: int) -> None:
        """Raise ValueError if a token is outside the vocabulary or a sequence of this length outside the context."""
        if len(token) and token.max() >= self.config.vocab_size:
            raise ValueError(
                f"token id {token.max()} is outside the model's vocabulary of {self.config.vocab_size}"
            )
        if length > self.config.max_seq_len:
            raise ValueError(
                f"a prompt with its completion takes {length} tokens, the model's context (max_seq_len) holds "
                f"{self.config.max_seq_len}: shorten the prompt or max_new_tokens"
            )
        if length > len(self._turns):
            self._turns = self._rotations(2 * length)
