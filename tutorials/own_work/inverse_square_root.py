"""An objective of your own, the shortest one: another weight per node, 1/√|λ|.

    minigrpo train --objective tutorials/own_work/inverse_square_root.py:InverseSquareRoot --out run

|λ| is how many completions share a node.  GRPO weighs each token with 1, λ-GRPO with 1/|λ|; this
stands between them.  The option alpha=0.5 of `lambda_grpo` is the same: a test compares the two.
"""

from dataclasses import dataclass

import numpy as np

from minigrpo import Objective


@dataclass(frozen=True)
class InverseSquareRoot(Objective):
    clip_low: float | None = 0.2
    clip_high: float | None = 0.2

    def node_weights(self, count):
        return 1 / np.sqrt(count)
