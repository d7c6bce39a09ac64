"""Comparisons with other ways to do the same work.

Nothing here is imported by the package; PyTorch and TRL are optional.
"""
