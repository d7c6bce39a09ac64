"""The packages of the extra `lm`, imported only where a language model is loaded or saved."""

from __future__ import annotations

import importlib
from types import ModuleType


def need(name: str) -> ModuleType:
    """Import a package of the extra.   Raises ValueError, saying how to install it, if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f'language models need the package {name}: pip install "minigrpo[lm]"') from error
