"""`pytest --backend cupy` runs the model's tests on a GPU; the tests under the strict stand-in for
CuPy always run.
"""

from __future__ import annotations

import importlib
import importlib.util
import signal
from collections.abc import Iterator
from functools import cache

import pytest

from minigrpo.command import cli
from minigrpo.engine.backend import Backend, get_backend


def pytest_configure() -> None:
    """Signals as in a terminal, also for a job in the background, which ignores some of them.

    A package of an extra that is here but cannot be imported would only skip the tests that need
    it: that is an error.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    for name in ("safetensors", "tokenizers", "gguf", "jinja2", "pyarrow"):
        if importlib.util.find_spec(name):
            try:
                importlib.import_module(name)
            except ImportError as error:
                said = f"{name} is installed, but importing it fails ({error})"
                raise pytest.UsageError(f"{said}: its tests would be skipped") from error


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        choices=("numpy", "cupy"),
        default="numpy",
        help="where the transformer computes",
    )
    parser.addoption("--long", action="store_true", help="whole tests where else a part is tried")


@pytest.fixture(scope="session")
def backend(request: pytest.FixtureRequest) -> Backend:
    """The backend that was asked for on the command line."""
    return get_backend(request.config.getoption("--backend"))


@pytest.fixture(scope="session", autouse=True)
def one_parser() -> Iterator[None]:
    """The flags of all commands are set up once, which thousands of commands would do anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "_parser", cache(cli._parser))
        yield
