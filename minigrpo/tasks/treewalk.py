"""The paper's synthetic task: walk a binary tree to one target leaf, past a bad-looking first move.

The prompt is a root, written "^", that is no move.  A completion is exactly `depth` moves, each L
or R; there is no EOS, and the root is masked: it has a row in the embedding, so that it can be
read, but none in the head, so it has no logit (`n_drawable` = 2).

The target, drawn from the run's seed, earns +1.  The other paths that share its first n moves earn
r_neg (less than the rest), all others r_other.  A group that has not met the target yet therefore
learns to leave its prefix.  A group that has met it once among many failures pushes the shared
prefix down with a weight of |λ|, and the target's own tail up with a weight of 1: this is the
effect that λ-GRPO lessens.

The paper's grid is n in {1, 2} times r_neg in {-0.5, -1, -1.5}, at depth 4 with r_other = 0.7; the
defaults are one of its six settings.  The train and test splits are the same single problem.

Source: Sullivan & Koller, "GRPO is Secretly a Process Reward Model", arXiv:2509.21154, section 4.3
and table 1.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from minigrpo.tasks.problems import check_split
from minigrpo.tasks.tools import CharTokenizer, real_number, whole_number

MOVES, ROOTED = CharTokenizer("LR", eos=False), CharTokenizer("LR^", eos=False)


@dataclass(frozen=True)
class TreeWalk:
    """reward(path) = 1 if path = target, r_neg if path[:n] = target[:n], r_other otherwise.

    depth    2 … 12; n from 1 to depth - 1; r_neg and r_other below 1
    target   a string of `depth` letters L and R; if not given, drawn: all paths are equally likely,
             letter i being "LR"[default_rng((seed, depth)).integers(2, size=depth)[i]]
    root     "bos": the prompt is a token of its own, 2, that cannot be drawn.  "L": it is the move
             L (an easier walk if the target is RRRR, as the root's parameters are a move's)
    seed     of the drawn target; if not given, that of the run (`for_run`), and 0 outside of runs
    Raises ValueError for anything else.
    """

    depth: int = 4
    n: int = 1
    r_neg: float = -1.0
    r_other: float = 0.7
    target: str | None = None
    root: str = "bos"
    seed: int | None = None

    n_drawable: ClassVar[int] = 2  # the two moves
    defaults: ClassVar[dict[str, Any]] = {"steps": 250, "group_size": 16, "prompts_per_step": 1}
    defaults |= {"learning_rate": 3e-4, "warmup_steps": 0, "max_grad_norm": None}

    def __post_init__(self) -> None:
        depth = whole_number("depth", self.depth, 2, 12)
        whole_number("n", self.n, 1, depth - 1)
        for name in ("r_neg", "r_other"):
            if (value := real_number(name, getattr(self, name), -np.inf, np.inf)) >= 1:
                allowed = "it must be below 1, the reward of the target path"
                raise ValueError(f"{name} is {value}: {allowed}")
        if self.root not in ("bos", "L"):
            raise ValueError(f"root is {self.root!r}: it must be bos or L")
        if self.seed is not None:
            whole_number("seed", self.seed, 0, 2**63 - 1)
        object.__setattr__(self, "is_drawn", self.target is None)
        target = self._drawn(self.seed or 0) if self.is_drawn else self.target
        if not isinstance(target, str) or len(target) != depth or set(target) - set("LR"):
            allowed = f"it must be {depth} letters (the depth), each L or R"
            raise ValueError(f"target is {target!r}: {allowed}")
        object.__setattr__(self, "target", target)

    def _drawn(self, seed: int) -> str:
        moves = np.random.default_rng((seed, self.depth)).integers(2, size=self.depth)
        return "".join("LR"[move] for move in moves)

    def for_run(self, seed: int) -> TreeWalk:
        """The walk of a run with this seed: its target is drawn unless it, or a seed, was given."""
        if not self.is_drawn or self.seed is not None:
            return self
        task = copy(self)
        task.__dict__.pop("_leaf_rewards", None)  # of the other target
        object.__setattr__(task, "seed", seed)
        object.__setattr__(task, "target", self._drawn(seed))
        return task

    @property
    def tokenizer(self) -> CharTokenizer:
        """L is 0, R is 1, the root, if it is a token of its own, 2; no EOS."""
        return MOVES if self.root == "L" else ROOTED

    @property
    def max_new_tokens(self) -> int:
        """The depth: every walk ends at a leaf."""
        return self.depth

    def prompts(self, rng: np.random.Generator, n: int, split: str = "train") -> list[np.ndarray]:
        """n times the one prompt: the root, a single token that predicts the first move."""
        check_split(split)
        root, n = "L" if self.root == "L" else "^", whole_number("the number of prompts", n, 0)
        return [self.tokenizer.encode(root) for _ in range(n)]

    def score(self, rollouts: Any) -> np.ndarray:
        """(B,) the reward of each leaf.   Raises ValueError for what is no full path."""
        completions = [completion for group in rollouts.completions for completion in group]
        if any(len(completion) != self.depth for completion in completions):
            advice = f"sample with max_new_tokens={self.depth} and no EOS"
            raise ValueError(f"a completion does not have {self.depth} moves: {advice}")
        moves = np.array(completions, dtype=np.int64).reshape(-1, self.depth)  # (B,depth)
        if ((moves < 0) | (moves > 1)).any():
            told = "a completion has a token that is neither 0 (L) nor 1 (R)"
            raise ValueError(f"{told}: use a model that draws no other")
        return self._leaf_rewards[moves @ self._place_values]

    def is_correct(self, rewards: np.ndarray) -> np.ndarray:
        """(B,) bool: the completion is the target path (no other one earns 1)."""
        return np.asarray(rewards) >= 1

    def paths(self) -> np.ndarray:
        """All paths as token ids, L before R.   -> (2**depth, depth) int64"""
        return np.arange(2**self.depth)[:, None] // self._place_values % 2

    def path_rewards(self) -> np.ndarray:
        """The reward of every leaf, in the order of `paths`.   -> (2**depth,) float64"""
        return self._leaf_rewards.copy()

    @cached_property
    def _place_values(self) -> np.ndarray:
        """(depth,) a path read as a binary number is its place in lexicographic order"""
        return 2 ** np.arange(self.depth)[::-1]

    @cached_property
    def _leaf_rewards(self) -> np.ndarray:
        agrees = self.paths() == MOVES.encode(self.target)  # (2**depth,depth)
        others = np.where(agrees[:, : self.n].all(1), float(self.r_neg), float(self.r_other))
        return np.where(agrees.all(1), 1.0, others)
