"""What makes the same numbers cheap: a reader can skip this folder at first.

The files use a few words of their own.

A *node* is a distinct (prefix, token) of a batch.  However many completions pass through it, the
transformer computes it once. A node is *inner* if something follows it.  Only inner nodes are
*computed*: the last token of a completion is predicted, but nothing is predicted from it. A *row*
of a tree is one completion with its prompt before it.  It shares its first nodes with the rows
before it and adds the others. The *prefix* of a row is the path of nodes that it shares, and a
*fork* is the node where that path ends and several rows part. A *block* is a set of forks of
similar size, padded to one shape, whose attention is computed together. A *plan* holds the index
arrays that a computation over a tree needs.  It is made once per tree, on the host. A *part* of a
tree is a run of its rows with the nodes that they read.  A batch is computed part by part (as
micro-batches) where memory or the cores of the machine ask for it, and gradients of parts add up. A
*lane* is a thread that computes some of the parts, or samples after some of the prompts, beside
others. A *replica* is a model that a lane works with: it shares the parameters and has gradients of
its own.
"""
