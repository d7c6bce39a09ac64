"""What every kind of model file needs: the packages of the extra, refusals, numbers that fit."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from minigrpo.engine.parameters import TransformerConfig
from minigrpo.system import user_code

BOUNDS = {"rope_base": (1.0, 1e30), "norm_eps": (1e-30, 1.0)}  # what a model may have


def need(name: str) -> ModuleType:
    """Import a package of the extra.   Raises ValueError, with how to install it, if it lacks."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        told = f"language models need the package {name}"
        raise ValueError(f'{told}: pip install "minigrpo[lm]"') from error


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Whatever is raised becomes a ValueError that says what.

    That includes what is no Exception, such as a panic of the tokenizers package.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise ValueError(f"{what}: {shown(error)}") from error


def shown(value: object, quotes: bool = True) -> str:
    """A value of a file in one short line, for a message."""
    if isinstance(value, BaseException):
        return " ".join(str(value).split())[:300]
    text = user_code.shown(value)
    return text if quotes else text[1:-1]


def whole(value: object, what: str) -> int:
    """A size that a file claims.   Raises ValueError for what is no whole number above 0."""
    if type(value) is not int or value < 1:
        wanted = "it should be a whole number above 0 (the same in all layers)"
        raise ValueError(f"{what} is {shown(value)}, {wanted}")
    return value


def real(value: object, kind: str, what: str) -> float:
    """A number of a file.   Raises ValueError for what is none, or out of its BOUNDS."""
    low, high = BOUNDS[kind]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        wanted = f"it should be a number from {low:g} to {high:g}"
        raise ValueError(f"{what} is {shown(value)}, {wanted}")
    return float(value)


def check_tensors(
    path: Path, found: Mapping[str, tuple[int, ...]], config: TransformerConfig
) -> None:
    """Raises ValueError unless a file has exactly the parameters of this shape of model."""
    expected, kind = config.shapes(), config.model_type.title()
    for name in sorted(expected.keys() - found.keys())[:1]:
        told = f"{path} lacks {len(expected.keys() - found.keys())} tensors of a {kind} model"
        raise ValueError(f"{told}, such as {shown(name, False)}")
    for name in sorted(found.keys() - expected.keys())[:1]:
        count = len(found.keys() - expected.keys())
        told = f"{path} has {count} tensors that a plain {kind} model has not"
        raise ValueError(f"{told}, such as {shown(name, False)}: not supported")
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            told = f"{path}: {name} has shape {tuple(found[name])}"
            raise ValueError(f"{told}, the configuration says {shape}")
