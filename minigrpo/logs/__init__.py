"""Groups of completions out of other people's training logs, read without any model.

rows.py reads files as rows, grouping.py makes groups of rows, reward_columns.py finds the reward,
and groups.py turns groups into trees with the paper's statistics.  Where a log can be read in
several ways it is refused, with the columns that were found and the flag that chooses.
"""
