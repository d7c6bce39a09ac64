"""Checks of the course's exercises: `minigrpo check ch05`.

`runner.py` finds a student's file and runs its checks; `grading.py` compares an answer with the right one and says in words what is
wrong; `chNN.py` has the tasks of a chapter.  What is right comes from the package's own functions, from definitions, or from data
that was worked out by hand; no file here holds an answer that could be copied.
"""
