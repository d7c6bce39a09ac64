"""`python -m minigrpo` is the command `minigrpo`.

A signal is answered in one line, also while the rest of the package is still being loaded.
"""

import atexit
import signal
import sys

from minigrpo.system.signals import ENDING, end_at_once


def main() -> int:
    """The command line, as a program of its own."""
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end_at_once)
            # What has ended keeps its exit code.
            atexit.register(signal.signal, number, signal.SIG_IGN)
    from minigrpo.command.cli import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
