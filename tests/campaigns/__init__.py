"""Campaigns against a training run: processes killed, files damaged, bits flipped, rivals, threads.

    python -m tests.campaigns                                   # all, and results/reliability.md
    python -m tests.campaigns --campaign kills --cases 40 --out F   # fewer cases, to elsewhere
    python -m tests.campaigns --campaign damages --case 1234        # one case, with all it says

What is done in a case is a function of its campaign and its number; when the system runs which
process is not.  A case tells how it ended ("same": as an undisturbed run, or "refused" in a line)
and its problems, of the kinds in `ground.PROBLEMS`.
"""
