"""Independent code that checks the rest.

The package computes everything on the prefix tree.  A mistake in the tree would be in every result
built on it, so this folder computes the same numbers again without one, on padded rows and by the
definitions, and compares.  It is slow and plain on purpose, and no training imports it.
"""
