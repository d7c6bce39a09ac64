"""What makes the same numbers cheap: a reader can skip this folder at first.

Its files use a few words of their own.

- A *node* is a distinct (prefix, token) of a batch.  However many completions pass through it, the
  transformer computes it once.
- A node is *inner* if something follows it.  Only inner nodes are *computed*: the last token of a
  completion is predicted, but nothing is predicted from it.
- A *row* of a tree is one completion with its prompt before it.  It shares its first nodes with the
  rows before it and adds the others.  While the sampler draws, a row is a live prefix.
- The *prefix* of a row is the path of nodes that it shares.  A *fork* is where that path ends: the
  rows that continue the same prefix belong to one fork.
- A *block* is a set of forks of similar size, padded to one shape and attended to together.
- A *plan* holds the arrays of indices that a computation over a tree needs.  It is made once.
- A *part* of a tree is a run of its rows with the nodes that they read.  A large batch is computed
  part by part (these are its micro-batches), and the gradients of the parts add up.
- A *lane* is a thread that computes some of the parts, or samples after some of the prompts, while
  others do the same beside it.
- A *replica* is the model that a lane works with.  Replicas share the parameters, and each has
  gradients of its own.

Letters for the shapes of arrays are explained in `ops.py`.
"""
