"""Exercises of chapter 1, policy gradients.

Fill in the functions, then run: minigrpo check ch01

The setting is a bandit with A actions; action a pays the reward r_a.  The policy is a softmax of
one logit per action, π(a) = exp(θ_a) / Σ_b exp(θ_b).  Shapes: A actions, n draws.
"""

import numpy as np  # noqa: F401 (you will need it)


def expected_reward_gradient(logits, rewards):
    """ch01 task 1: gradient of the expected reward.   logits (A,), rewards (A,) -> (A,)

    J(θ) = Σ_a π(a) r_a.  Return dJ/dθ, exactly.  Logits may be as large as 1000, so subtract their
    maximum before exp.

    >>> expected_reward_gradient(np.array([0.0, 0.0]), np.array([1.0, 0.0])).tolist()
    [0.25, -0.25]
    """
    raise NotImplementedError("ch01 task 1: gradient of the expected reward")


def reinforce(logits, actions, rewards):
    """ch01 task 2: REINFORCE estimate.   logits (A,), actions (n,) int, rewards (n,) -> (A,)

    Draw j took action actions[j] and got rewards[j].  Return the mean over the n draws of

        rewards[j] · d log π(actions[j]) / dθ

    The same action may have been drawn several times.

    >>> rewards = np.array([1.0, 1.0, 0.0, 1.0])
    >>> reinforce(np.array([0.0, 0.0]), np.array([0, 0, 1, 0]), rewards).tolist()
    [0.375, -0.375]
    """
    raise NotImplementedError("ch01 task 2: REINFORCE estimate")


def best_baseline(logits, rewards):
    """ch01 task 3: baseline of least variance.   logits (A,), rewards (A,) -> a number

    The estimate from one draw is g = (r_a - b) · d log π(a) / dθ with a ~ π.  Its mean does not
    depend on b, but its variance does. Return the b at which the total variance, Σ_c Var[g_c], is
    smallest.  (It is not the expected reward.)

    >>> round(best_baseline(np.log(np.array([0.8, 0.2])), np.array([1.0, 0.0])), 6)
    0.2
    """
    raise NotImplementedError("ch01 task 3: baseline of least variance")


def leave_one_out_gradient(logits, actions, rewards):
    """ch01 task 4: leave-one-out baseline.   logits (A,), actions (n,) int, rewards (n,) -> (A,)

    As task 2, but the mean reward of the *other* n - 1 draws (n ≥ 2) is first subtracted from each
    draw's reward.  This baseline does not depend on the draw itself, so the estimate stays unbiased
    (RLOO).

    >>> rewards = np.array([1.0, 0.0])
    >>> leave_one_out_gradient(np.array([0.0, 0.0]), np.array([0, 1]), rewards).tolist()
    [0.5, -0.5]
    """
    raise NotImplementedError("ch01 task 4: leave-one-out baseline")
