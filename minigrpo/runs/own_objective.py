"""An objective of a user's own: loaded from a file, or given in Python; what it returns is checked.

A file has a subclass of `Objective`, or a function that makes one, named "path/to/file.py:Name" as
a task is.  It is asked through `checked`, so that a wrong shape or number is told in one line.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import numpy as np

from minigrpo.objectives import PRESETS, Coefficients, Objective
from minigrpo.system.user_code import named, shown
from minigrpo.tasks.loading import made_from_file
from minigrpo.tree import Array, Rollouts

RESERVED = {"step", "loss", "grad_norm", "learning_rate", "num_tokens"}
IN_PYTHON = " (given in Python)"  # after the name of a class, which no file leads back to


def is_own(name: str) -> bool:
    """Whether a setting names no preset but an objective of the user's."""
    return ":" in name or name.endswith((".py", IN_PYTHON))


def short_name(name: str) -> str:
    """The class of path/to/file.py:Class; other names, of tasks too, as they are."""
    file, _, cls = name.removesuffix(IN_PYTHON).rpartition(":")
    return cls if cls and (file.endswith(".py") or not file) else name


def load_objective(name: str, **options: Any) -> Objective:
    """The objective of "path/to/file.py:MyObjective", made with options.

    The file is run as Python.   Raises ValueError for what cannot be loaded, as `find_task` does,
    for one that was given in Python, and for what is no `Objective`.
    """
    if name.endswith(IN_PYTHON):
        told = f"the run was started with objective {name}"
        raise ValueError(f"{told}: resume it there, by train(..., resume=True, objective=...)")
    if ":" not in name:
        raise ValueError(f"{name!r} names a file but no class in it: write {name}:MyObjective")
    _, objective = made_from_file("objective", name, options)
    if not isinstance(objective, Objective):
        told = f"objective {name!r} is {shown(objective)}"
        raise ValueError(f"{told}: it must be a subclass of minigrpo.Objective")
    own = [c for c in type(objective).__mro__ if c is not Objective and issubclass(c, Objective)]
    for cls in own:
        for option, kind in vars(cls).get("__annotations__", {}).items():
            if "ClassVar" not in str(kind) and vars(cls).get("__dataclass_fields__") is None:
                told = f"{option} of objective {name!r} would not be used"
                above = f"write @dataclass(frozen=True) above class {cls.__name__}"
                raise ValueError(f"{told}: {above}")
    return objective


def described(objective: Objective) -> dict[str, Any]:
    """The settings `objective` and `objective_options` of a run with an objective given in Python.

    A plain `Objective` is written as changes to a preset, so that they lead back to it.
    """
    if not isinstance(objective, Objective):
        raise ValueError(f"objective is {shown(objective)}: it must be a minigrpo.Objective")
    if type(objective) is Objective:
        name = objective.name if objective.name in PRESETS else "grpo"
        base = Objective.preset(name)
    else:
        name, base = type(objective).__qualname__ + IN_PYTHON, None
    options = {}
    for field in fields(objective):
        value = getattr(objective, field.name)
        if not (value is None or isinstance(value, int | float | str)):
            value = shown(value)
        if field.name != "name" and value != getattr(base, field.name, field.default):
            options[field.name] = value
    return {"objective": name, "objective_options": options}


# -- checks ----------------------------------------------------------------------------------------


def checked(objective: Objective, name: str) -> Objective:
    """The same objective, if it is the user's own behind checks of all that it returns."""
    cls = type(objective)
    if cls is Objective:
        return objective
    out = object.__new__(type(cls.__name__, (_Checked, cls), {}))
    out.__dict__.update(vars(objective), _called=name)
    return out


class _Checked(Objective):
    """Stands before a user's class, whose methods are `super()`'s."""

    def coefficients(self, rollouts: Rollouts, *args: Any) -> Coefficients:
        with self._told("coefficients"):
            found = super().coefficients(rollouts, *args)
            if not isinstance(found, Coefficients):
                raise ValueError(f"it gave {shown(found)}: it must return Coefficients")
            n = (rollouts.tree.n_nodes,)
            return replace(found, **{x: _array(x, y, n) for x, y in vars(found).items()})

    def advantages(self, rollouts: Rollouts, rewards: Any) -> Array:
        tree = rollouts.tree
        shapes = tree.completion_group.shape, tree.paths.shape
        return _array("advantages", super().advantages(rollouts, rewards), *shapes)

    def node_weights(self, count: Array) -> Array:
        return _array("node_weights", super().node_weights(count), count.shape)

    def node_values(self, coefficients: Any, logp: Array, old: Array) -> tuple[Array, Array]:
        found = super().node_values(coefficients, logp, old)
        value, slope = _array("node_values", found, (2, *logp.shape), finite=False)
        return value, slope

    def evaluate(
        self, coefficients: Coefficients, logp: Array, old: Array, ref: Array | None = None
    ) -> tuple[float, Array]:
        with self._told("evaluate"):
            loss, dlogp = super().evaluate(coefficients, logp, old, ref)
            change = (logp - old)[coefficients.tokens > 0]
            finite = bool(np.isfinite(change).all())  # else training diverged
            dlogp = _array("the derivative", dlogp, logp.shape, finite=finite)
            loss = float(_array("the loss", loss, (), finite=finite))
            if (stray := np.flatnonzero((coefficients.tokens == 0) & (dlogp != 0))).size:
                node = stray[0]
                told = f"the derivative is {dlogp[node]} at node {node}, which has no tokens"
                raise ValueError(f"{told}: it must be 0 where coefficients.tokens is 0")
            return loss, dlogp

    def metrics(self, *args: Any) -> dict[str, float]:
        with self._told("metrics"):
            found = dict(super().metrics(*args))
            if taken := sorted(RESERVED & found.keys()):
                raise ValueError(f"{taken[0]} is a metric of every run: give yours another name")
            return {str(k): float(_array(str(k), x, (), finite=False)) for k, x in found.items()}

    def _told(self, method: str) -> Any:
        cls = type(self).__mro__[2]  # the user's
        return named(f"{method} of objective {vars(self)['_called']!r} failed", cls)


def _array(what: str, found: Any, *shapes: tuple[int, ...], finite: bool = True) -> Array:
    """Numbers of one of these shapes in float64.   Raises ValueError for anything else."""
    array = None
    with suppress(Exception):  # whatever NumPy says of other people's types
        given = np.asarray(found)
        array = given.astype(np.float64) if given.dtype.kind in "biuf" else None
    if array is None or array.shape not in shapes:
        came = shown(found) if array is None else f"an array of shape {array.shape}"
        wanted = " or ".join("a number" if s == () else f"shape {s}" for s in shapes)
        raise ValueError(f"{what} gave {came}: it must return {wanted}")
    if finite and len(bad := np.argwhere(~np.isfinite(array))):
        place = f" at {bad[0].tolist()}" if array.ndim else ""
        raise ValueError(f"{what} gave {array[tuple(bad[0])]}{place}: it must be finite")
    return array
