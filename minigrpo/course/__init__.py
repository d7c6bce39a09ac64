"""The checks of the course's exercises: `minigrpo check ch05` says in words what is wrong.

`runner.py` finds a student's file and runs its checks.  `grading.py` compares an answer with the
right one.  `example_groups.py` has the groups of completions on which answers are tried, and
`chNN.py` has the tasks of a chapter.  The right answers come from the package's own functions, from
definitions, or from tables worked out by hand; no file here holds an answer that could be copied.
"""
