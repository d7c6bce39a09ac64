"""Exercises of chapter 7, the theorem as a speed-up.

Fill in the functions, then run: minigrpo check ch07

The completions of a group are a tree of N nodes; a node is a distinct (prefix, token).  paths (k,T)
has the node of completion i at position t, and -1 past its end.  Completions that agree have the
same node, so a node may be in paths several times; the rows that contain it are its members.
Shapes: k completions, T time, N nodes, V vocabulary.
"""

import numpy as np  # noqa: F401 (you will need it)


def sum_over_members(paths, values, n_nodes):
    """ch07 task 1: sum over members.   paths (k,T), values (k,), n_nodes an int -> (N,)

    Σ values[i] over the members i of every node.

    >>> paths = np.array([[0, 1], [0, 2], [3, -1]])
    >>> sum_over_members(paths, np.array([1.0, 10.0, 100.0]), 4).tolist()
    [11.0, 1.0, 10.0, 100.0]
    """
    raise NotImplementedError("ch07 task 1: sum over members")


def two_sums(paths, advantages, n_nodes):
    """ch07 task 2: two sums for clipping.   paths (k,T), advantages (k,), n_nodes an int
    -> (positive (N,), negative (N,))

    positive = Σ max(a_i, 0) and negative = Σ min(a_i, 0) over the members of every node.

    >>> positive, negative = two_sums(np.array([[0, 1], [0, 2]]), np.array([2.0, -1.0]), 3)
    >>> positive.tolist(), negative.tolist()
    ([2.0, 2.0, 0.0], [-1.0, 0.0, -1.0])
    """
    raise NotImplementedError("ch07 task 2: two sums for clipping")


def clipped_tree_loss(paths, advantages, logp, old, low, high):
    """ch07 task 3: exact tree update under clipping.   paths (k,T), advantages (k,),
    logp and old (N,) -> (loss, dlogp (N,))

    Over rows, with ρ = exp(logp - old) at the node of (i,t) and Σ|y| the number of tokens of all
    completions,

        loss = - 1/Σ|y| · Σ_i Σ_t min( ρ·a_i, clip(ρ, 1 - low, 1 + high)·a_i )

    Compute this, and dlogp = d loss / d logp for every node, from one ρ per node.  Note that
    min(ρ·a, clip(ρ)·a) is a·min(ρ, 1 + high) for a > 0 and a·max(ρ, 1 - low) for a < 0.

    >>> paths, a = np.array([[0, 1], [0, 2]]), np.array([1.0, -2.0])
    >>> logp = np.log(np.array([1.5, 1.0, 1.0]))
    >>> loss, dlogp = clipped_tree_loss(paths, a, logp, np.zeros(3), 0.2, 0.2)
    >>> round(loss, 6), dlogp.round(6).tolist()
    (0.7, [0.75, -0.25, 0.5])
    """
    raise NotImplementedError("ch07 task 3: exact tree update under clipping")


def cost(prompt, completions):
    """ch07 task 4: what sharing saves.   prompt a list of tokens, completions k lists of tokens
    -> (flat, tree), two ints

    On how many tokens does the transformer run?  flat: on the prompt and the completion, for every
    completion separately.  tree: once per distinct (prefix, token), prompt included.

    >>> cost([7, 8], [[1, 2], [1, 3], [1, 2]])
    (12, 5)
    """
    raise NotImplementedError("ch07 task 4: what sharing saves")


def logits_gradient(dlogp, token, parent, logits):
    """ch07 task 5: gradient of the logits.   dlogp (N,), token (N,) int, parent (N,) int,
    logits (N,V) -> dlogits (N,V)

    logits[p] predict the children of node p; there may be none, one or several.  For a node n with
    parent p, logp[n] = log softmax(logits[p])[token[n]].  A node with parent -1 has no parent and
    is not scored. With c = dlogp = d loss / d logp,

        dlogits[p] = Σ over children n of p:  c_n · (onehot(token[n]) - softmax(logits[p]))

    >>> token, parent = np.array([0, 0, 1]), np.array([-1, 0, 0])  # node 0 has the children 1 and 2
    >>> logits_gradient(np.array([9.0, 1.0, 3.0]), token, parent, np.zeros((3, 2))).tolist()
    [[-1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    """
    raise NotImplementedError("ch07 task 5: gradient of the logits")
