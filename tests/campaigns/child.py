"""One command of minigrpo as it is typed, in a process that may send itself signals as it writes.

    python child.py PLAN train --out RUN        # PLAN is JSON: at, signals, count, threads

The process counts what it writes: each opening, write, sync, renaming, removal and new folder.  At
number `at` it sends itself the signals; if that is SIGKILL in a write, half of it has been written.
The file `count` gets the number of events.
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


def main(plan: dict) -> None:
    """Prepare for what is planned, say so in one line, and run the command."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # which may be ignored, under nohup say
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "threads" in plan:
        set_threads(plan["threads"])
    if "at" in plan:
        watch_writes(**plan)
    del sys.path[0]  # this folder, which is not on it when the command is typed
    print("here", flush=True)
    runpy.run_module("minigrpo", run_name="__main__", alter_sys=True)


def set_threads(n: int) -> None:
    """More threads than cores too, which no environment variable gives."""
    import numpy  # noqa: F401 - loads the BLAS
    from threadpoolctl import threadpool_info, threadpool_limits

    threadpool_limits(n, user_api="blas")
    found = [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]
    if set(found) != {n}:
        sys.exit(f"the BLAS has {found} threads, not {n}: this would compare nothing")


def watch_writes(at: int, signals: list, count: str | None = None, threads: int = 0) -> None:
    """Count events of writing, and at one of them send the signals."""
    events, opened = [0], builtins.open

    def tick(half=lambda: None) -> None:
        events[0] += 1
        if events[0] == at:
            if signals == [signal.SIGKILL]:
                half()
            for number in signals:
                os.kill(os.getpid(), number)

    def watched(function):
        return lambda *these, **those: (tick(), function(*these, **those), tick())[1]

    def open_watched(file, mode="r", *these, **those):
        stream = opened(file, mode, *these, **those)
        if set(mode) & set("wax+"):
            tick()
            write = stream.write

            def torn(data):
                tick(lambda: (write(data[: len(data) // 2]), stream.flush()))
                return write(data)

            stream.write = torn
        return stream

    builtins.open = io.open = open_watched
    for name in ("replace", "unlink", "mkdir"):
        setattr(os, name, watched(getattr(os, name)))
    os.fsync = lambda file: tick()  # what is written outlives the process in any case
    if count:
        atexit.register(lambda: Path(count).write_text(str(events[0]), encoding="ascii"))


if __name__ == "__main__":
    main(json.loads(sys.argv.pop(1)))
