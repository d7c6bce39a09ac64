"""A strict stand-in for CuPy that computes with NumPy, to try code for the GPU without one.

`install(monkeypatch)` puts a module `cupy` into sys.modules.  Its arrays are no NumPy arrays, and
refuse what real device arrays refuse: becoming a host array unasked, meeting a host array in an
operator, a function or an assignment.  They also refuse what CuPy would do, but at a price: host
arrays as indices (copied over at every use), truth values, int(x) and iteration (each waits for the
device), NumPy functions on device arrays, and duplicate places in an assignment (the GPU leaves
open which value wins). `asarray` and `asnumpy` are the only border, and they always copy; float(x)
of a single number is allowed, being plain to see. Functions, methods and their parameters are those
of real CuPy, read from cupy_names.txt; where CuPy is installed, `python strict_cupy.py >
cupy_names.txt` writes that list anew.

With other_order=True matrix products add up from the other end, so that results differ by rounding
as a GPU's do.

COUNTS tells what was asked of the device: "operations" (each a kernel or more, if it computes),
arrays carried "to device", and "to host" (each waits for the device).

Left out: how exactly CuPy rounds, streams, kernels, memory.
"""

from __future__ import annotations

import functools
import inspect
import operator
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

UFUNC = ("*", "out", "dtype", "casting")  # what a CuPy ufunc takes
DTYPES = "?bBhHiIlLqQefdFD"
ARITHMETIC = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
)
COMPARISON = ("lt", "le", "eq", "ne", "gt", "ge")
NO_IN_PLACE = ("matmul",)  # CuPy has no @=
NOT_FOR_US = (
    "get",
    "set",
    "item",
    "tolist",
    "tobytes",
    "data",
    "dump",
    "flat",
    "scatter_add",
    "scatter_max",
    "scatter_min",
)
VIEWS = (
    "reshape",
    "transpose",
    "swapaxes",
    "view",
    "empty",
    "empty_like",
)  # cost no kernel, unless reshape must copy
COUNTS: Counter[str] = Counter()
WAITS = ("bool", "int", "complex", "index", "iter", "contains")


def read_names() -> tuple[dict[str, tuple[str, ...] | None], dict[str, tuple[str, ...] | None]]:
    """What CuPy's module and its arrays offer: name -> parameters, None where they are not known
    (and for no functions).
    """
    module: dict[str, tuple[str, ...] | None] = {}
    array: dict[str, tuple[str, ...] | None] = {}
    for line in (Path(__file__).parent / "cupy_names.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, parameters = line.partition("(")
            into = array if name.startswith("ndarray.") else module
            known = tuple(parameters.rstrip(")").split(",")) if parameters else None
            into[name.removeprefix("ndarray.")] = UFUNC if known == ("ufunc",) else known
    return module, array


MODULE_NAMES, ARRAY_NAMES = read_names()


class DeviceArray:
    """Stands in for cupy.ndarray: a NumPy array that only this file can reach."""

    __slots__ = ("_numpy",)
    other_order = False
    __array_ufunc__ = None  # NumPy's operators leave the decision to ours, NumPy's functions refuse
    __hash__ = None

    def __init__(self, array: np.ndarray) -> None:
        if array.dtype.char not in DTYPES or not array.dtype.isnative:
            raise ValueError(f"Unsupported dtype {array.dtype}")
        self._numpy = array

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed: use asnumpy")

    def __len__(self) -> int:
        return len(self._numpy)

    def __float__(self) -> float:
        COUNTS["to host"] += 1
        return float(self._numpy[()])

    def __repr__(self) -> str:
        return f"DeviceArray({self._numpy!r})"

    def __getitem__(self, index: Any) -> DeviceArray:
        index = _index(index)
        COUNTS["operations"] += any(
            isinstance(part, np.ndarray) for part in index
        )  # a slice is a view
        return DeviceArray(self._numpy[index])

    def __setitem__(self, index: Any, value: Any) -> None:
        COUNTS["operations"] += 1
        value = _operand(value)
        index = _index(index)
        if isinstance(value, np.ndarray) and any(
            isinstance(part, np.ndarray) and part.dtype != bool for part in index
        ):
            places = np.arange(self._numpy.size).reshape(self._numpy.shape)[index]
            if len(np.unique(places)) < places.size:
                raise ValueError(
                    "an assignment names a place twice: on a GPU it is left open which value wins"
                )
        self._numpy[index] = value

    def __getattr__(self, name: str) -> Any:
        if name not in ARRAY_NAMES:
            raise AttributeError(f"cupy.ndarray has no {name!r}")
        if name in NOT_FOR_US:
            border = "asarray and asnumpy are the border here, and sums have an order"
            raise AttributeError(f"cupy.ndarray.{name} exists, but {border}")
        value = getattr(self._numpy, name)
        return _function(value, name, ARRAY_NAMES[name]) if callable(value) else _result(value)


def _refuse_to_wait(name: str) -> Any:
    def refuse(self: DeviceArray, *args: Any) -> None:
        raise TypeError(
            f"__{name}__ of a device array waits for the device: carry it over with asnumpy"
        )

    return refuse


def _operator(function: Any, swapped: bool = False) -> Any:
    def method(self: DeviceArray, other: Any) -> DeviceArray:
        COUNTS["operations"] += 1
        a, b = self._numpy, _operand(other)
        return DeviceArray(np.asarray(function(b, a) if swapped else function(a, b)))

    return method


def _matmul(a: np.ndarray, b: np.ndarray, **kwargs: Any) -> np.ndarray:
    """The product; from the other end if that is wanted."""
    if DeviceArray.other_order:
        a, b = a[..., ::-1], b[::-1] if b.ndim == 1 else b[..., ::-1, :]
    return np.matmul(a, b, **kwargs)


def _unary(function: Any) -> Any:
    return lambda self: DeviceArray(np.asarray(function(self._numpy)))


def _in_place(function: Any) -> Any:
    def method(self: DeviceArray, other: Any) -> DeviceArray:
        COUNTS["operations"] += 1
        self._numpy = function(self._numpy, _operand(other))
        return self

    return method


for _name in WAITS:
    setattr(DeviceArray, f"__{_name}__", _refuse_to_wait(_name))
for _name in ARITHMETIC:
    _function_of_it = _matmul if _name == "matmul" else getattr(operator, f"__{_name}__")
    setattr(DeviceArray, f"__{_name}__", _operator(_function_of_it))
    setattr(DeviceArray, f"__r{_name}__", _operator(_function_of_it, swapped=True))
    if _name not in NO_IN_PLACE:
        setattr(DeviceArray, f"__i{_name}__", _in_place(getattr(operator, f"__i{_name}__")))
for _name in COMPARISON:
    setattr(DeviceArray, f"__{_name}__", _operator(getattr(operator, f"__{_name}__")))
for _name in ("neg", "pos", "abs", "invert"):
    setattr(DeviceArray, f"__{_name}__", _unary(getattr(operator, f"__{_name}__")))


def _operand(value: Any) -> Any:
    """A device array's inside, or a scalar.   Everything else (host arrays, lists) is refused with
    CuPy's own words.
    """
    if isinstance(value, DeviceArray):
        return value._numpy
    if isinstance(value, (bool, int, float, complex, np.generic)):
        return value
    raise TypeError(f"Unsupported type {type(value)}")


def _index(index: Any) -> tuple:
    parts = []
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, DeviceArray):
            if part._numpy.dtype.kind not in "biu":
                kinds = "of integer or boolean type"
                raise IndexError(f"arrays used as indices must be {kinds}, not {part._numpy.dtype}")
            part = part._numpy
        elif isinstance(part, slice):
            if any(
                isinstance(bound, (DeviceArray, np.ndarray))
                for bound in (part.start, part.stop, part.step)
            ):
                raise TypeError("the bounds of a slice are numbers on the host")
        elif not (part is None or part is Ellipsis or isinstance(part, (int, np.integer))):
            raise TypeError(
                f"a {type(part)} as an index is copied to the device at every use: "
                "carry it over once with asarray"
            )
        parts.append(part)
    return (
        tuple(parts)
        if Ellipsis in [p for p in parts if not isinstance(p, np.ndarray)]
        else (*parts, ...)
    )  # no host scalars


def _argument(value: Any) -> Any:
    """An argument of a function: lists of device arrays, axes, dtypes and flags pass, host arrays
    do not.
    """
    if isinstance(value, DeviceArray):
        return value._numpy
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    return type(value)(_argument(v) for v in value) if type(value) in (list, tuple) else value


def _result(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return DeviceArray(np.asarray(value))
    return (
        type(value)(_result(v) for v in value)
        if type(value) in (list, tuple) and len(value) and not _plain(value)
        else value
    )


def _plain(values: Any) -> bool:
    return all(isinstance(v, int) for v in values)  # a shape


def _function(function: Any, name: str, parameters: tuple[str, ...] | None) -> Any:
    function = _matmul if name == "matmul" else function

    @functools.wraps(function, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        unknown = set(kwargs) - set(parameters or kwargs)
        if unknown:
            raise TypeError(f"cupy's {name} takes no {', '.join(sorted(unknown))}")
        COUNTS["operations"] += name not in VIEWS
        out = kwargs.get("out")
        result = function(
            *_argument(args), **{key: _argument(value) for key, value in kwargs.items()}
        )
        return out if isinstance(out, DeviceArray) else _result(result)

    return call


class StrictCupy(ModuleType):
    """The module.   `asarray`, `array`, `asnumpy` and `empty` are its own; the rest are NumPy's
    functions under CuPy's names.
    """

    ndarray = DeviceArray
    __version__ = "strict stand-in"

    def __init__(self) -> None:
        super().__init__("cupy")
        self.cuda = SimpleNamespace(
            runtime=SimpleNamespace(
                getDeviceCount=lambda: 1,
                getDevice=lambda: 0,
                getDeviceProperties=lambda device: {"name": b"stand-in"},
                memGetInfo=lambda: (3_000_000_000, 4_000_000_000),
            )
        )

    def __getattr__(self, name: str) -> Any:
        if name not in MODULE_NAMES or not hasattr(np, name):
            raise AttributeError(
                f"cupy has no {name!r}"
                if name not in MODULE_NAMES
                else f"the stand-in has no {name!r}"
            )
        value = getattr(np, name)
        if isinstance(value, ModuleType):
            raise AttributeError(f"the stand-in has no module {name!r}")
        return (
            _function(value, name, MODULE_NAMES[name])
            if callable(value) and not isinstance(value, type)
            else value
        )

    @staticmethod
    def asarray(value: Any, dtype: Any = None) -> DeviceArray:
        """Carry a host array over (always a copy); a device array of this dtype is returned as it
        is.
        """
        if isinstance(value, DeviceArray):
            return (
                value
                if dtype in (None, value._numpy.dtype)
                else DeviceArray(value._numpy.astype(dtype))
            )
        COUNTS["to device"] += 1
        return DeviceArray(np.array(value, dtype=dtype, order="C"))

    @staticmethod
    def array(value: Any, dtype: Any = None) -> DeviceArray:
        """As asarray, but always a copy."""
        return DeviceArray(
            np.array(value._numpy if isinstance(value, DeviceArray) else value, dtype=dtype)
        )

    @staticmethod
    def asnumpy(array: Any) -> np.ndarray:
        """Carry an array back; a copy."""
        if not isinstance(array, DeviceArray):
            raise TypeError(f"asnumpy of a {type(array)}: it is on the host already")
        COUNTS["to host"] += 1
        return array._numpy.copy()

    @staticmethod
    def empty(shape: Any, dtype: Any = float) -> DeviceArray:
        """Memory as it is found: full of what looks most wrong, so that a result that depends on it
        shows.
        """
        dtype = np.dtype(dtype)
        return DeviceArray(np.full(shape, np.nan if dtype.kind in "fc" else 77, dtype=dtype))


def install(monkeypatch: Any, other_order: bool = False) -> StrictCupy:
    """Make `import cupy` give the stand-in until the test ends."""
    module = StrictCupy()
    monkeypatch.setattr(DeviceArray, "other_order", other_order)
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def list_names(cupy: ModuleType) -> list[str]:
    """The lines of cupy_names.txt for an installed CuPy."""

    def parameters(value: Any) -> str:
        if type(value).__name__ == "ufunc":
            return "(ufunc)"
        try:
            return "(" + ",".join(inspect.signature(value).parameters) + ")"
        except (
            TypeError,
            ValueError,
        ):  # compiled: the first line of its documentation is its signature
            first = re.match(
                r"[\w.]+\((.*)\)(?: ->.*)?$", (getattr(value, "__doc__", None) or "").split("\n")[0]
            )
            names = (
                re.findall(r"(\*?\w+)(?:=[^,]*)?(?:,|$)", first[1])
                if first and callable(value)
                else []
            )
            return f"({','.join(names)})" if names else ""

    lines = [f"# cupy {cupy.__version__}: what the module and ndarray offer, with parameters"]
    for prefix, owner in (("", cupy), ("ndarray.", cupy.ndarray)):
        public = [
            name
            for name in sorted(dir(owner))
            if not name.startswith("_") and not inspect.isclass(getattr(owner, name))
        ]
        lines += [prefix + name + parameters(getattr(owner, name)) for name in public]
        lines += [
            name
            for name in sorted(dir(owner))
            if not prefix and name[0] != "_" and inspect.isclass(getattr(owner, name))
        ]
    return lines


if __name__ == "__main__":
    import cupy

    print("\n".join(list_names(cupy)))
