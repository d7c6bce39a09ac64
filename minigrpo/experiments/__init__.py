"""Experiments: each one function from settings to data, whose figure and words are made from that data alone."""
