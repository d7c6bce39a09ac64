"""A Llama-shaped transformer over the nodes of a prefix tree, forward and backward by hand.

A node stands for a whole prefix: on the nodes of a tree the model gives, for every completion, the
numbers that it gives on each completion alone.  The operations are in `ops.py`, the parameters in
`engine/parameters.py`; who attends to whom, and who predicts, is planned by `engine/plan.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import asdict
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from minigrpo import ops
from minigrpo.engine.backend import Array, Backend, get_backend
from minigrpo.engine.blocks import block_attention_backward
from minigrpo.engine.divergence import OVERFLOW, DivergenceError, try_weights
from minigrpo.engine.lanes import LANES, limited
from minigrpo.engine.parameters import EMBEDDING, Parameters, TransformerConfig
from minigrpo.engine.plan import Predictions, TreePlan, plan_tree
from minigrpo.engine.profiling import timed
from minigrpo.tree import PrefixTree

MAX_LANE_PARAMETERS = 8_000_000  # each lane has gradients of its own
MAX_LOGITS = 1 << 24  # logits that are held at a time
FIRST_TURNS = 4096  # positions whose rotations are computed at first; a context may be far longer
Attend = Callable[[int, Array, Array, Array, Array], Any]  # layer, q, k, v, y; it writes y


class Transformer:
    """The model.   `parameters` and `gradients` map a name to a view; `.flat` is the one vector.

    The same seed gives the same weights on every backend (see `Parameters.start`); seed=None leaves
    them 0, to be written into.  Raises ValueError for an unknown backend or dtype.
    >>> model = mg.Transformer(mg.TransformerConfig(vocab_size=10), dtype="float64")
    >>> tree = mg.PrefixTree.from_groups([[1, 2]], [[[3], [4]]])
    >>> logp = model.forward(tree)  # (N,), 0 in the prompt
    >>> gradients = model.backward(np.where(tree.scored, -0.5, 0.0))  # of -mean log p
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
            self.parameters.start(config, np.random.default_rng(seed), self.backend)
        self._turns: Any = ()  # rotations of the first positions, see `check`
        self.check(np.array([]), 1)
        self._plans: WeakKeyDictionary[PrefixTree, TreePlan] = WeakKeyDictionary()
        self._saved: tuple | None = None
        self._replicas: list[Transformer] = []

    # -- over a tree -------------------------------------------------------------------------------

    @timed("forward")
    @limited
    def forward(self, tree: PrefixTree, temperature: float = 1.0, keep: bool = True) -> np.ndarray:
        """log p(token | its prefix) per scored node, 0 elsewhere.   -> (N,) on the host

        keep=True saves what `backward` needs.  Raises ValueError for a token that the model does
        not have or cannot draw and for a path beyond max_seq_len, DivergenceError for overflow.
        """
        plan = self._plan(tree)
        x, saved = self._body(plan.token, plan.position, plan.attend, keep)  # (M,D)
        weight, eps = self.parameters["model.norm.weight"], self.config.norm_eps
        h, norm = ops.rmsnorm(x[plan.predictor], weight, eps)  # (predictors,D)
        logp, softmax = np.zeros(tree.n_nodes, dtype=self.dtype), None
        for p in plan.predictions:
            chosen, softmax = self._predict(h, p, temperature)  # (C,)
            logp[p.child] = self.backend.to_host(chosen)
        if not np.isfinite(logp).all():
            raise DivergenceError(OVERFLOW)
        if keep:  # several softmaxes would take much memory: `backward` computes them again
            softmax = softmax if len(plan.predictions) == 1 else None
            self._saved = plan, temperature, saved, norm, h, softmax
        return logp

    @timed("backward")
    @limited
    def backward(self, dlogp: np.ndarray, add: bool = True) -> Parameters:
        """Add d loss / d parameters to `gradients`, given d loss / d logp.   dlogp (N,) on the host

        add=False overwrites them, which is faster than setting them to 0 first.  Undoes the last
        `forward`; raises RuntimeError if there is none to undo.
        """
        if self._saved is None:
            raise RuntimeError("backward needs a forward (with keep=True), one for each backward")
        plan, temperature, saved, norm, h, softmax = self._saved
        self._saved = None
        gradients, xp = self.gradients, self.backend.xp
        learn = any(dlogp[p.child].any() for p in plan.predictions)
        if not add:
            gradients.clear(self.config, matrices=not learn)
        if not learn:
            return gradients
        dh = xp.empty_like(h)  # (predictors,D)
        for i, p in enumerate(plan.predictions):
            sums = (self.backend.to_device(x, self.dtype) for x in p.sums(dlogp / temperature))
            row_sum, pair_sum = sums
            cache = softmax or self._predict(h, p, temperature)[1]
            pairs = p.pair_row, p.pair_token, pair_sum
            dlogits = ops.log_softmax_gather_backward(row_sum, *pairs, cache)  # (predictors,V)
            head = h[p.rows], self._head(self.parameters)
            dh[p.rows] = ops.linear_backward(dlogits, head, self._head(gradients), add or i > 0)
        dx = xp.zeros((len(plan.token), self.config.dim), dtype=self.dtype)
        dx[plan.predictor] = ops.rmsnorm_backward(dh, norm, gradients["model.norm.weight"])
        dx = self._body_backward(dx, saved, plan, add)  # (M,D)
        ops.embedding_backward(dx, plan.token_sum, gradients[EMBEDDING])
        return gradients

    @limited
    def extend(
        self, attend: Attend, token: np.ndarray, position: np.ndarray, wanted: Any = slice(None)
    ) -> Array:
        """The logits of more nodes, which attend to earlier ones by a cache (`engine/kv_cache.py`).

        token and position (n,) -> (wanted,V)
        """
        device = self.backend.to_device
        x, _ = self._body(device(token), device(position), attend, keep=False)
        return self._logits(x[wanted])

    @limited
    def logits(self, sequence: np.ndarray) -> np.ndarray:
        """The logits after every token of one sequence.   (T,) -> (T,V) on the host"""
        return self.backend.to_host(self._logits(self.residual(sequence)))

    @limited
    def residual(self, sequence: np.ndarray) -> Array:
        """What the last layer leaves at every token of one sequence.   (T,) -> (T,D)"""
        self.check(np.asarray(sequence), len(sequence))
        # A completion of one more token makes every token of the sequence an inner node.
        tree = PrefixTree.from_groups([sequence], [[[0]]])
        plan = plan_tree(tree, self.backend, self.dtype)
        return self._body(plan.token, plan.position, plan.attend, keep=False)[0]

    # -- the layers --------------------------------------------------------------------------------

    def _body(
        self, token: Array, position: Array, attend: Attend, keep: bool
    ) -> tuple[Array, list]:
        """Embedding and layers.   token and position (N,) -> x (N,D), what each backward needs"""
        c, eps, saved = self.config, self.config.norm_eps, []
        x = ops.embedding(token, self.parameters[EMBEDDING])  # (N,D)
        turn = self._turns[position].repeat(c.n_heads + c.n_kv_heads, axis=1)  # (N,H+K,E/2)
        for i, layer in enumerate(self.parameters.layers):
            h, norm1 = ops.rmsnorm(x, layer.attention_norm, eps)  # (N,D)
            qkv, linear1 = ops.linear(h, layer.qkv, layer.qkv_bias)  # (N,(H+2K)·E)
            q, k, v, turned = self._heads(qkv)  # (N,H,E), (N,K,E), (N,K,E)
            normed = []  # what undoes the norms of Q and K, if the model has them
            for heads, weight in zip((q, k), layer.head_norms, strict=False):
                heads[...], cache = ops.rmsnorm(heads, weight, eps)
                normed.append(cache)
            ops.rope(turned, turn)
            y = self.backend.xp.empty(q.shape, dtype=self.dtype)  # (N,H,E)
            attended = attend(i, q, k, v, y)
            o, linear2 = ops.linear(y.reshape(len(x), layer.o.shape[1]), layer.o)  # (N,D)
            x += o
            h, norm2 = ops.rmsnorm(x, layer.ffn_norm, eps)  # (N,D)
            gate_up, linear3 = ops.linear(h, layer.gate_up)  # (N,2F)
            y, activated = ops.swiglu(gate_up[:, : c.ffn_dim], gate_up[:, c.ffn_dim :])  # (N,F)
            y, linear4 = ops.linear(y, layer.down)  # (N,D)
            x += y
            if keep:
                first = norm1, linear1, normed, attended, linear2
                saved.append((*first, norm2, linear3, activated, linear4, turn))
        return x, saved

    def _body_backward(self, dx: Array, saved: list, plan: TreePlan, add: bool) -> Array:
        """Undo the passes of `_body`, from the last to the first.   dx (M,D) -> dx (M,D)"""
        f, xp = self.config.ffn_dim, self.backend.xp
        for grad in reversed(self.gradients.layers):
            *first, norm2, linear3, activated, linear4, turn = saved.pop()
            norm1, linear1, normed, attended, linear2 = first
            dy = ops.linear_backward(dx, linear4, grad.down, add)  # (M,F)
            dgate_up = xp.empty((len(dx), 2 * f), dtype=self.dtype)
            ops.swiglu_backward(dy, activated, dgate_up[:, :f], dgate_up[:, f:])
            dh = ops.linear_backward(dgate_up, linear3, grad.gate_up, add)  # (M,D)
            dx += ops.rmsnorm_backward(dh, norm2, grad.ffn_norm)
            dy = ops.linear_backward(dx, linear2, grad.o, add)  # (M,H·E)
            dqkv = xp.zeros((len(dx), len(grad.qkv)), dtype=self.dtype)  # (M,(H+2K)·E)
            dq, dk, dv, dturned = self._heads(dqkv)
            for block, cache in zip(plan.blocks, attended, strict=True):
                block_attention_backward(dy.reshape(dq.shape), cache, block, dq, dk, dv)
            ops.rope_backward(dturned, turn)
            for d, cache, dweight in zip((dq, dk), normed, grad.head_norms, strict=False):
                d[...] = ops.rmsnorm_backward(d, cache, dweight)
            dh = ops.linear_backward(dqkv, linear1, grad.qkv, add, grad.qkv_bias)
            dx += ops.rmsnorm_backward(dh, norm1, grad.attention_norm)
        return dx

    def _heads(self, qkv: Array) -> tuple[Array, Array, Array, Array]:
        """Views of q, k and v, and of q and k together, which are rotated.   (N,(H+2K)·E)"""
        n, kv = self.config.n_heads, self.config.n_kv_heads
        heads = qkv.reshape(len(qkv), n + 2 * kv, self.config.head_dim)  # (N,H+2K,E)
        return heads[:, :n], heads[:, n : n + kv], heads[:, n + kv :], heads[:, : n + kv]

    # -- the head ----------------------------------------------------------------------------------

    def _head(self, parameters: Parameters) -> Array:
        """The rows whose tokens can be drawn: all logits come from them.   -> (V,D)"""
        return parameters[self.config.head][: self.config.n_logits]

    def _logits(self, x: Array) -> Array:
        h, _ = ops.rmsnorm(x, self.parameters["model.norm.weight"], self.config.norm_eps)
        return ops.linear(h, self._head(self.parameters))[0]

    def _predict(self, h: Array, p: Predictions, temperature: float) -> tuple[Array, ops.Cache]:
        logits, _ = ops.linear(h[p.rows], self._head(self.parameters))  # (predictors,V)
        if temperature != 1:
            logits /= temperature
        return ops.log_softmax_gather(logits, p.child_row, p.child_token)

    # -- for runs and lanes ------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """The config as a plain dict, to be written down and given to TransformerConfig again."""
        return asdict(self.config)

    @property
    def lanes(self) -> int:
        """How many lanes may divide its work (see `engine`): 1 on a GPU, or for a large model."""
        small = self.parameters.flat.size <= MAX_LANE_PARAMETERS
        return LANES if self.backend.name == "numpy" and small else 1

    def replicas(self, n: int) -> list[Transformer]:
        """n models with the same parameters, each with its own gradients; the first is this one."""
        while len(self._replicas) < n - 1:
            replica = copy(self)
            replica.gradients = Parameters(self.config.shapes(), self.backend.xp, self.dtype)
            replica._plans, replica._saved, replica._replicas = WeakKeyDictionary(), None, []
            self._replicas.append(replica)
        return [self, *self._replicas[: n - 1]]

    # -- what must hold ----------------------------------------------------------------------------

    def _plan(self, tree: PrefixTree) -> TreePlan:
        if tree not in self._plans:
            self.check(tree.token, int(tree.row_end.max()), tree.token[tree.scored])
            at_a_time = max(MAX_LOGITS // self.config.vocab_size, 1)
            self._plans[tree] = plan_tree(tree, self.backend, self.dtype, at_a_time)
        return self._plans[tree]

    def check(self, token: np.ndarray, length: int, drawn: np.ndarray | tuple = ()) -> None:
        """Raise ValueError for what `TransformerConfig.check` refuses; prepare for the length."""
        self.config.check(token, length, drawn)
        if length > len(self._turns):
            position = np.arange(min(max(2 * length, FIRST_TURNS), self.config.max_seq_len))
            turns = ops.rotation(position, *self.config.rotary())[:, None]
            self._turns = self.backend.to_device(turns, np.result_type(self.dtype, np.complex64))

    def check_weights(self) -> None:
        """Raise DivergenceError if weights are not finite, or so large that a trial overflows."""
        try_weights(self)
