"""Builders that several tests share: small models, random groups that branch, rollouts."""

import numpy as np

from minigrpo import PrefixTree, Rollouts, Transformer, TransformerConfig


def tiny_model(vocab_size=5, seed=0, dtype="float64", max_seq_len=64, **shape):
    """A random transformer whose distributions, unlike after initialisation, are not uniform."""
    settings = {
        "dim": 16,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "ffn_dim": 24,
        "tie_embeddings": False,
    } | shape
    model = Transformer(
        TransformerConfig(vocab_size=vocab_size, max_seq_len=max_seq_len, **settings),
        seed=seed,
        dtype=dtype,
    )
    rng = np.random.default_rng(seed)
    for view in model.parameters.values():
        view[...] = 0.35 * rng.standard_normal(view.shape) + (view.ndim == 1)
    return model


class WrappedFile:
    """A file whose `write` a subclass replaces."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


def random_group(rng, k, length=8, vocab_size=3):
    """k completions of 0 to `length` tokens; some are copies or beginnings of earlier ones."""
    group = []
    for _ in range(k):
        tokens = rng.integers(vocab_size, size=rng.integers(length + 1))
        if group and rng.random() < 0.3:
            tokens = group[rng.integers(len(group))]
            tokens = tokens[: rng.integers(len(tokens) + 1)] if rng.random() < 0.5 else tokens
        group.append(tokens)
    return group


def rollouts_of(prompts, completions, truncated=None, max_new_tokens=None):
    """Rollouts that no model has drawn: a tree and flags, log-probabilities 0."""
    tree = PrefixTree.from_groups(prompts, completions)
    nothing = np.zeros(tree.n_nodes)
    truncated = (
        np.zeros(len(tree.paths), dtype=bool) if truncated is None else np.asarray(truncated)
    )
    return Rollouts(
        prompts,
        completions,
        tree,
        nothing,
        nothing,
        truncated,
        1.0,
        max_new_tokens or max(1, int(tree.lengths.max())),
    )


def random_rollouts(rng, n_groups=3, k=6, length=8, vocab_size=3, p_truncated=0.0):
    """Groups of `random_group`, every second prompt alike, with random truncation flags."""
    prompts = [np.array([1, 2]) if g % 2 else np.array([1]) for g in range(n_groups)]
    completions = [random_group(rng, k, length, vocab_size) for _ in prompts]
    return rollouts_of(prompts, completions, rng.random(n_groups * k) < p_truncated, length)


def random_logps(rng, tree, apart=0.6):
    """logp, old and ref on the nodes, so far apart that many ratios leave any clip range."""
    old = np.where(tree.scored, -rng.exponential(1.0, tree.n_nodes) - 0.01, 0.0)
    logp, ref = (
        np.where(tree.scored, old + rng.uniform(-apart, apart, tree.n_nodes), 0.0) for _ in range(2)
    )
    return logp, old, ref


def relative(a, b):
    """‖a - b‖ / ‖b‖."""
    return np.linalg.norm(np.asarray(a) - b) / max(np.linalg.norm(b), 1e-300)
