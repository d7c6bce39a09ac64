"""One command of minigrpo as it is typed, in a process that may send itself signals while it writes.

    python child.py PLAN train --out RUN        # PLAN is JSON: at, signals, count, threads

The process counts what it writes: each opening, write, sync, renaming, removal and new folder.  At
number `at` it sends itself the signals; if that is SIGKILL in a write, half of it has been written.
"""

import atexit
import builtins
import io
import json
import os
import runpy
import signal
import sys
from pathlib import Path

SIGKILL = getattr(signal, "SIGKILL", None)


def main(plan: dict) -> None:
    """Prepare for what is planned, say so in one line, and run the command."""
    for number in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
        signal.signal(number, signal.SIG_DFL)  # whatever the campaign itself ignores, under nohup say
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "threads" in plan:
        set_threads(plan["threads"])
    if "at" in plan:
        watch_writes(plan)
    del sys.path[0]  # this folder, which is not on it when the command is typed
    print("here", flush=True)
    runpy.run_module("minigrpo", run_name="__main__", alter_sys=True)


def set_threads(n: int) -> None:
    """More threads than cores too, which an environment variable cannot ask of every BLAS."""
    import numpy  # noqa: F401 - loads the BLAS
    from threadpoolctl import threadpool_info, threadpool_limits

    threadpool_limits(n, user_api="blas")
    found = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
    if found != [n] * max(len(found), 1):
        sys.exit(f"the BLAS has {found} threads, not {n}: this campaign would compare nothing")


def watch_writes(plan: dict) -> None:
    """Count events of writing, and at one of them send the signals."""
    count = [0]

    def tick(half=lambda: None) -> None:
        count[0] += 1
        if count[0] == plan["at"]:
            if plan["signals"] == [SIGKILL]:
                half()
            for number in plan["signals"]:
                os.kill(os.getpid(), number)

    def mortal(function):
        def counted(*arguments, **options):
            tick()
            found = function(*arguments, **options)
            tick()
            return found

        return counted

    opened = builtins.open

    def watched(file, mode="r", *arguments, **options):
        if not set(mode) & set("wax+"):
            return opened(file, mode, *arguments, **options)
        tick()
        stream = opened(file, mode, *arguments, **options)
        write = stream.write

        def torn(data):
            tick(lambda: (write(data[: len(data) // 2]), stream.flush()))
            return write(data)

        stream.write = torn
        return stream

    builtins.open = io.open = watched
    for name in ("replace", "unlink", "mkdir"):
        setattr(os, name, mortal(getattr(os, name)))
    os.fsync = lambda file: tick()  # what is written outlives the process in any case
    if "count" in plan:
        atexit.register(lambda: Path(plan["count"]).write_text(str(count[0]), encoding="ascii"))


if __name__ == "__main__":
    main(json.loads(sys.argv.pop(1)))
