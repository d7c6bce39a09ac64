"""Campaigns against a training run: processes killed, files damaged, bits flipped, rivals, threads.

    python -m tests.campaigns                                     # all, and results/reliability.md
    python -m tests.campaigns --campaign kills --cases 40 --out F # fewer cases, written elsewhere
    python -m tests.campaigns --campaign damages --case 1234      # one case, with all that it says

A case is a function of its campaign and its number, but for the moment at which the system runs
which process.  It tells how it ended ("same": as an undisturbed run, or "refused") and its problems.
"""
