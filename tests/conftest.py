"""`pytest --backend cupy` runs the model's tests on a GPU; the tests under the strict stand-in for CuPy always run."""

from __future__ import annotations

import pytest

from minigrpo.backend import Backend, get_backend


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", choices=("numpy", "cupy"), default="numpy", help="where the transformer computes")


@pytest.fixture(scope="session")
def backend(request: pytest.FixtureRequest) -> Backend:
    """The backend that was asked for on the command line."""
    return get_backend(request.config.getoption("--backend"))
