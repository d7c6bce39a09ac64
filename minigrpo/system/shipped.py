"""Files beside the code that users need as well: exercises and measured tables.

setup.py puts copies of them into wheels.
"""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path


def shipped(name: str) -> Traversable:
    """A file by its path in the repository, such as "results/table1.json".

    It is that of the installed package, else of the repository that the package stands in.
    Raises ValueError if neither has it.
    """
    for root in (files("minigrpo").joinpath("data"), Path(__file__).parents[2]):
        found = root.joinpath(*name.split("/"))
        if found.is_file():
            return found
    way_out = "install the package again, from a wheel or as a whole repository"
    raise ValueError(f"there is no {name!r} in this installation: {way_out}")
