"""An objective of your own, the whole sequence at once: ratios as in GSPO (arXiv:2507.18071).

    minigrpo train --objective tutorials/own_work/gspo.py:GSPO --inner-epochs 4 --out run

GSPO takes one ratio per completion, s = exp(mean over its tokens of log π/π_old), and clips that:
J = mean over completions of min(s·a, clip(s)·a).  Its derivative by each token's log π is s·a/|y|,
or 0 where it is clipped.  s depends on all tokens of a completion, and members of a node have
different ones; so `on_nodes` asks for the policy before each update (`every_update`), and puts what
still moves into `positive`, and what is clipped and only adds to the value into `negative`.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from minigrpo import Objective


@dataclass(frozen=True)
class GSPO(Objective):
    aggregation: str = "sequence_mean"
    clip_low: float | None = 3e-4
    clip_high: float | None = 4e-4
    every_update: ClassVar[bool] = True

    def on_nodes(self, rollouts, a, per_node=False, logp=None):
        tree, change = rollouts.tree, 0 * rollouts.logp if logp is None else logp - rollouts.logp
        a = tree.on_tokens(a) if per_node else np.broadcast_to(a.T, tree.paths.T.shape).T  # (B,T)
        ratio = np.exp(tree.on_tokens(change).sum(1) / np.maximum(tree.lengths, 1))[:, None]
        value = np.minimum(ratio * a, np.clip(ratio, *self.clip_range) * a)
        moves = super().on_nodes(rollouts, np.where(value == ratio * a, value, 0.0))
        fixed = super().on_nodes(rollouts, np.where(value == ratio * a, 0.0, value))
        return replace(fixed, positive=moves.push, negative=fixed.push)

    def node_values(self, coefficients, logp, old):
        return coefficients.push, coefficients.positive

    def metrics(self, c, logp, old, ref=None):  # tokens of clipped completions
        share = float((c.tokens_up + c.tokens_down).sum() / max(c.tokens.sum(), 1))
        return super().metrics(c, logp, logp, ref) | {"clip_ratio/region_mean": share}
