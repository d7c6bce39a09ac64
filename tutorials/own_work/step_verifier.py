"""Process rewards of your own: a verifier of the steps of an addition.

    minigrpo train --task tutorials/own_work/step_verifier.py:Verified --objective grpo \\
        --objective-option process_weight=1 --out run

`score_prefix` is asked at every ";", and at the end of a completion: 1 if what was written so far
is right, else 0.  The mean over the completions that share a node is the node's process reward.
Less the mean over the group's tokens, over their standard deviation, times process_weight, it is
added to the outcome's advantage, so also groups learn in which all answers are equally wrong.
For the verifier alone add --objective-option outcome_weight=0; results/README.md has what it does.
"""

from minigrpo.tasks.arithmetic import Arithmetic, first_wrong_step


class Verified(Arithmetic):
    step_end = ";"

    def score_prefix(self, prompt, text):
        wrong = first_wrong_step(prompt, text.removesuffix(";"))  # or the step that is missing
        return float((wrong or 0) >= text.count(";") if text.endswith(";") else wrong is None)
