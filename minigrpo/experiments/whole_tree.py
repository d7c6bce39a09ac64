"""The policy of a small task as a whole: all that it can say, as one tree, computed in one pass.

The 16 paths of the tree walk have 30 prefixes.  One forward pass over them gives the probability of every completion, so a group is
drawn without running the model again, and one backward pass over the same nodes gives a gradient.  A step does what `sample` and
`compute_gradients` do, from the same random numbers, in a third of the time: no plan and no cache is made anew.  For thousands
of runs on a task of this kind, and no other: the tree has vocabulary ** depth leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from minigrpo.objectives import Coefficients, Objective
from minigrpo.sampler import Rollouts, first_above
from minigrpo.transformer import Transformer
from minigrpo.tree import PrefixTree


class WholeTree:
    """Every completion of `depth` tokens after one prompt, and what the model thinks of it as of the last `look`."""

    def __init__(self, model: Transformer, prompt: np.ndarray, depth: int) -> None:
        self.model, self.prompt, self.depth, self.vocab_size = model, prompt, depth, model.config.n_logits
        self.tree = PrefixTree.from_groups([prompt], [list(product(range(self.vocab_size), repeat=depth))])
        self.logp = np.zeros(self.tree.n_nodes)
        self._can_go_back = False

    def look(self) -> None:
        """Run the model over the tree; to be called whenever its parameters have changed."""
        self.logp = self.model.forward(self.tree)
        self._can_go_back = True

    def sample(
        self,
        prompts: Sequence[np.ndarray],
        group_size: int,
        rng: np.random.Generator,
        *,
        max_new_tokens: int,
        eos: int | None = None,
        temperature: float = 1.0,
    ) -> Rollouts:
        """As `minigrpo.sample`, for prompts that are this tree's or go on from it, all to its full depth, at temperature 1."""
        v, begun = self.vocab_size, [prompt[len(self.prompt) :] for prompt in prompts]
        if eos is not None or temperature != 1 or any(len(tokens) + max_new_tokens != self.depth for tokens in begun):
            raise ValueError(f"a tree of {self.depth} tokens is drawn from to its end, without EOS, at temperature 1")
        if not all(np.array_equal(prompt[: len(self.prompt)], self.prompt) for prompt in prompts):
            raise ValueError("a prompt does not begin with the one of this tree")
        place = np.repeat([self._place(tokens) for tokens in begun], group_size)  # (B,) prefixes of equal length, numbered in order
        uniform = rng.random((len(place), max_new_tokens))
        tokens = np.empty(uniform.shape, dtype=np.int64)
        for step in range(max_new_tokens):
            below = v ** (max_new_tokens - step - 1)  # completions that a child leads to
            children = self.tree.paths[(place[:, None] * v + np.arange(v)) * below, step - max_new_tokens]  # (B,V)
            cumulative = np.exp(self.logp[children], dtype=np.float64).cumsum(1)
            tokens[:, step] = first_above(cumulative, uniform[:, step, None] * cumulative[:, -1:])
            place = place * v + tokens[:, step]
        completions = [list(group) for group in tokens.reshape(len(prompts), group_size, max_new_tokens)]
        tree = PrefixTree.from_groups(prompts, completions)
        nodes = self._nodes(tree, place)
        surprise = np.bincount(self.tree.parent[1:], -np.exp(self.logp[1:]) * self.logp[1:])
        return Rollouts(
            prompts=list(prompts),
            completions=completions,
            tree=tree,
            logp=np.where(tree.scored, self.logp[nodes], 0),
            entropy=np.where(tree.scored, surprise[self.tree.parent[nodes]], 0),
            truncated=np.zeros(len(place), dtype=bool),
            temperature=temperature,
            max_new_tokens=max_new_tokens,
        )

    def learn(self, rollouts: Rollouts, objective: Objective, coefficients: Coefficients) -> None:
        """Leave an objective's gradient in model.gradients, for rollouts drawn since the last `look`, after this tree's prompt."""
        tree, place = rollouts.tree, [self._place(tokens) for group in rollouts.completions for tokens in group]
        nodes = self._nodes(tree, np.array(place))
        _, dlogp = objective.evaluate(coefficients, rollouts.logp, rollouts.logp)
        on_whole = np.zeros(self.tree.n_nodes)
        on_whole[nodes[tree.scored]] = dlogp[tree.scored]
        if not self._can_go_back:
            self.look()
        self.model.backward(on_whole, add=False)
        self._can_go_back = False

    def _nodes(self, tree: PrefixTree, place: np.ndarray) -> np.ndarray:
        """Where the nodes of a tree of completions stand in this one; place (B,): each completion's.   -> (N,)"""
        nodes = np.zeros(tree.n_nodes, dtype=np.int64)
        nodes[tree.paths] = self.tree.paths[place][:, -tree.paths.shape[1] :]
        return nodes

    def _place(self, tokens: np.ndarray) -> int:
        """A prefix read as a number: its place among those of its length."""
        return int(tokens @ self.vocab_size ** np.arange(len(tokens))[::-1])
