"""The packages of the extra `lm`, imported only where a language model is loaded or saved; what goes wrong in them and in files."""

from __future__ import annotations

import importlib
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


def need(name: str) -> ModuleType:
    """Import a package of the extra.   Raises ValueError, saying how to install it, if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f'language models need the package {name}: pip install "minigrpo[lm]"'
        ) from error


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Whatever is raised becomes a ValueError that says what.  A panic of the tokenizers package is no Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise ValueError(f"{what}: {shown(error)}") from error


def shown(value: object, quotes: bool = True) -> str:
    """A value of a file in one short line, for a message."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    text = (
        " ".join(str(value).split())[:300]
        if isinstance(value, BaseException)
        else short.repr(value)
    )
    return text if quotes else text[1:-1]
