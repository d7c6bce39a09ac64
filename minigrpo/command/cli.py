"""The command line: it parses the flags, runs the command and tells what failed in one clear line.

`flags.py` has the flags of each command, `policies.py` and `commands.py` what the commands do.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from minigrpo import __version__
from minigrpo.command import commands, policies, sweep
from minigrpo.command.flags import FLAGS, PURPOSES
from minigrpo.engine.backend import ran_out_of_memory
from minigrpo.runs.checkpoint import checkpoints
from minigrpo.system.signals import exit_code, interrupting, reason, tell
from minigrpo.system.terminal import is_closed_pipe, on_any_terminal, quoted, reason_of
from minigrpo.system.user_code import named

EPILOG = """examples:
  minigrpo demo --out demo                      the main result in a minute, with a report
  minigrpo tree classroom.json                  draw a group that you typed: |λ|, R̂ and Â per step
  minigrpo equivalence                          check Theorem 1 on real rollouts
  minigrpo check ch05                           check your answers to the exercises of chapter 5
  minigrpo train --task arithmetic --out run    then: minigrpo evaluate run, sample run, plot run
"""


class _Parser(argparse.ArgumentParser):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.color = False  # Python 3.14's colours are control characters, which nobody may print

    def error(self, message: str) -> NoReturn:
        """One line, as for all other bad input, in place of argparse's list of all flags."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="minigrpo",
        description="GRPO is secretly a process reward model: the result from scratch, on the "
        "prefix tree of completions.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"minigrpo {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command, text in PURPOSES.items():
        added = subparsers.add_parser(command, help=text.split(":")[0], description=text)
        run = f"run_{command}"
        modules = [module for module in (policies, sweep, commands) if hasattr(module, run)]
        added.set_defaults(run=getattr(modules[0], run))
        for name, options in FLAGS[command]:
            added.add_argument(name, **options)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.   -> exit code

    0: it went well.  1: a check failed, training diverged, or memory ran out.  2: bad input.
    130, 143, 129: Ctrl-C, SIGTERM or SIGHUP ended it.  141: nobody reads the output any more.
    """
    try:
        with interrupting():
            return on_any_terminal(lambda: _run(argv))
    except KeyboardInterrupt as error:  # in the moments before and after the command
        tell(f"minigrpo: {reason(error)}")
        return exit_code(error)


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 0
    try:
        with named():
            return arguments.run(arguments) or 0
    except KeyboardInterrupt as error:
        hint = _go_on(arguments)
        tell(f"minigrpo {arguments.command}: {reason(error)}{hint and f'; {hint}'}")
        return exit_code(error)
    except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        if is_closed_pipe(error):
            raise
        code, told = _failure(error, arguments)
        print(f"minigrpo {arguments.command}: {told}", file=sys.stderr)
        return code


def _failure(error: Exception, arguments: argparse.Namespace) -> tuple[int, str]:
    """The exit code and the line for an error; one that is a bug is raised again."""
    if isinstance(error, OSError):
        if error.strerror and not error.filename:  # a full disk does not say which file it was
            error.filename = getattr(arguments, "out", None)
        hint = _go_on(arguments)
        return 2, reason_of(error) + (hint and f": {hint}")
    if isinstance(error, ValueError):
        return 2, reason_of(error)
    if isinstance(error, FloatingPointError):
        return 1, str(error)
    if "home directory" in str(error):  # the path is ~nobody/run, or there is no HOME
        return 2, f"{error} Write the path without ~."
    if not ran_out_of_memory(error):
        raise error
    return 1, _out_of_memory(arguments, error)


def _go_on(arguments: argparse.Namespace) -> str:
    """How to go on with the run of a command; "" if it left none."""
    if arguments.command == "sweep":
        return "the same command goes on with it"
    out = getattr(arguments, "resume", None) or getattr(arguments, "out", None)
    is_run = arguments.command == "train" and out
    is_run = is_run and os.path.exists(os.path.join(out, "settings.json"))
    return f"go on with: minigrpo train --resume {quoted(out)}" if is_run else ""


def _out_of_memory(arguments: argparse.Namespace, error: BaseException) -> str:
    told = f"out of memory ({' '.join(str(error).split()).rstrip('.') or 'no details'})"
    if arguments.command != "train":
        return f"{told}: ask for less at a time, or end what else uses the memory"
    out = arguments.resume or arguments.out
    again = "start again with"
    if out and checkpoints(out):
        again = f"go on with minigrpo train --resume {quoted(out)} and"
    return f"{told}: {again} a smaller --micro-batch-tokens or --memory-limit"
