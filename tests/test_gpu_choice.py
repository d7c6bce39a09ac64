"""What a user is told where the GPU cannot be used, or is full: one line with the way out.

CuPy is faked.  Types, attributes and texts of the errors are those of CuPy 14.2; where CuPy is
installed, a test compares them with it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import strict_cupy

from minigrpo import get_backend, trainer
from minigrpo.command.cli import main
from minigrpo.engine.backend import describe_backend, ran_out_of_memory
from minigrpo.runs.checkpoint import checkpoints, load_checkpoint
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.train import train

FLAGS = "train --task treewalk --steps 2 --dim 8 --n-layers 1 --n-heads 2 --group-size 4"
TINY = [*FLAGS.split(), "--checkpoint-every", "1"]


class CUDARuntimeError(RuntimeError):
    """As cupy.cuda.runtime.CUDARuntimeError."""

    TEXTS = {  # noqa: RUF012
        2: "cudaErrorMemoryAllocation: out of memory",
        35: "cudaErrorInsufficientDriver: "
        "CUDA driver version is insufficient for CUDA runtime version",
        100: "cudaErrorNoDevice: no CUDA-capable device is detected",
        999: "cudaErrorUnknown: unknown error",
    }

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(self.TEXTS[status])


class OutOfMemoryError(MemoryError):
    """As cupy.cuda.memory.OutOfMemoryError."""

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        self._size, self._total, self._limit = size, total, limit
        end = f", limit set to: {limit:,} bytes)." if limit else ")."
        super().__init__(
            f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes{end}"
        )


class CUBLASError(RuntimeError):
    """As cupy_backends.cuda.libs.cublas.CUBLASError."""


def broken_import() -> ImportError:
    """What `import cupy` raises where a library is missing: a box of text over several lines, with
    a cause.
    """
    error = ImportError(
        "\n====\nFailed to import CuPy.\n\nOriginal error:\n  ImportError: …\n====\n"
    )
    error.__cause__ = ImportError(
        "libcublas.so.12: cannot open shared object file: No such file or directory"
    )
    return error


LOADING = (
    "CuPy failed to load libnvrtc.so.12: OSError: libnvrtc.so.12: "
    "cannot open shared object file: No such file or directory"
)
# what goes wrong -> (while counting devices, version of the driver, what the user must read)
CANNOT = {
    "no CuPy": (None, 0, "CuPy is not installed: pip install"),
    "no driver": (CUDARuntimeError(35), 0, "there is no NVIDIA driver"),
    "an old driver": (
        CUDARuntimeError(35),
        11080,
        "the NVIDIA driver is too old (CUDA 11.8): update it",
    ),
    "no device": (CUDARuntimeError(100), 12040, "the driver shows no GPU"),
    "a broken installation": (
        broken_import(),
        12040,
        "CUDA's libraries are not found (libcublas.so.12: cannot open",
    ),
    "no compiler": (
        RuntimeError(LOADING),
        12040,
        "CUDA's libraries are not found (CuPy failed to load libnvrtc.so.12",
    ),
    "no memory": (OutOfMemoryError(512, 0), 12040, "too little free memory even to start"),
    "no memory for a context": (CUDARuntimeError(2), 12040, "too little free memory even to start"),
    "built for another NumPy": (
        ValueError("numpy.dtype size changed,\nmay indicate"),
        12040,
        "numpy.dtype size changed, may indicate",
    ),
    "something else": (CUDARuntimeError(999), 12040, "cudaErrorUnknown: unknown error"),
}


def fake(monkeypatch: pytest.MonkeyPatch, what: str) -> str:
    """Put a CuPy that fails so into sys.modules.   -> what the user must read"""
    error, version, expected = CANNOT[what]

    def count() -> int:
        raise error

    module = ModuleType("cupy")
    module.cuda = SimpleNamespace(
        runtime=SimpleNamespace(getDeviceCount=count, driverGetVersion=lambda: version)
    )
    monkeypatch.setitem(sys.modules, "cupy", None if error is None else module)
    if error is None:  # as if it were not installed: Python then says so itself
        missing = ModuleNotFoundError("No module named 'cupy'", name="cupy")
        monkeypatch.setattr("importlib.import_module", lambda name: (_ for _ in ()).throw(missing))
    return expected


@pytest.mark.parametrize("what", CANNOT)
def test_why_there_is_no_gpu(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        expected = fake(patch, what)
        assert get_backend("auto").name == "numpy"
        said = describe_backend("auto")
        with pytest.raises(ValueError, match="the cupy backend cannot be used") as caught:
            get_backend("cupy")
    for text in (str(caught.value), said):
        assert expected in text
        assert "\n" not in text
    assert said.startswith("on the CPU, since no GPU can be used: ")
    assert str(caught.value).endswith("; or take --backend numpy")
    if what not in ("no driver", "no device", "no memory", "no memory for a context"):
        assert 'pip install "minigrpo[gpu]" (CUDA 12) or "minigrpo[gpu-cuda13]"' in said


def test_a_gpu_without_devices_or_with_a_wrong_first_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cupy = strict_cupy.install(monkeypatch)
    assert (
        describe_backend("cupy")
        == describe_backend("auto")
        == "on the GPU: stand-in, 3.0 of 4.0 GB free"
    )
    cupy.ones = lambda *_, **__: (_ for _ in ()).throw(
        RuntimeError(LOADING)
    )  # counting works, the first kernel does not
    assert get_backend("auto").name == "numpy"
    cupy.cuda.runtime.getDeviceCount = lambda: 0
    with pytest.raises(ValueError, match="the driver shows no GPU"):
        get_backend("cupy")
    assert describe_backend("numpy") == "on the CPU"


def test_the_errors_are_cupys_own() -> None:
    cupy = pytest.importorskip("cupy", reason="compares the fakes above with CuPy")
    real = cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.memory.OutOfMemoryError
    assert [r.__mro__[1:] for r in real] == [
        f.__mro__[1:] for f in (CUDARuntimeError, OutOfMemoryError)
    ]
    for status, text in CUDARuntimeError.TEXTS.items():
        assert (str(real[0](status)), real[0](status).status) == (text, status)
    for arguments in ((10**10, 2000), (10**10, 2000, 4000)):
        assert str(real[1](*arguments)) == str(OutOfMemoryError(*arguments))
    assert all(
        hasattr(cupy.cuda.runtime, name)
        for name in ("getDevice", "getDeviceProperties", "memGetInfo", "driverGetVersion")
    )


def test_what_counts_as_out_of_memory() -> None:
    full = [
        OutOfMemoryError(1, 2),
        CUDARuntimeError(2),
        CUBLASError("CUBLAS_STATUS_ALLOC_FAILED"),
        MemoryError(),
    ]
    assert all(map(ran_out_of_memory, full))
    assert not any(
        map(
            ran_out_of_memory,
            [
                CUDARuntimeError(999),
                CUBLASError("CUBLAS_STATUS_NOT_INITIALIZED"),
                ValueError("memory"),
            ],
        )
    )


# -- at the command line ---------------------------------------------------------------------------


def test_auto_says_in_one_line_where_it_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    with monkeypatch.context() as patch:
        strict_cupy.install(patch)
        assert main([*TINY, "--backend", "auto", "--out", str(tmp_path / "gpu")]) == 0
    assert capsys.readouterr().out.count("on the GPU: stand-in, 3.0 of 4.0 GB free\n") == 1
    with monkeypatch.context() as patch:
        fake(patch, "no driver")
        assert main([*TINY[:-2], "--backend", "auto"]) == 0
        assert (
            capsys.readouterr().out.count(
                "on the CPU, since no GPU can be used: there is no NVIDIA driver"
            )
            == 1
        )
        assert main([*TINY[:-2], "--backend", "cupy"]) == 2
        error = capsys.readouterr().err
        assert (
            error.startswith("minigrpo train: the cupy backend cannot be used: there is no")
            and error.count("\n") == 1
        )
        assert main(["evaluate", str(tmp_path / "gpu"), "--prompts", "2"]) == 0
        assert "on the CPU, since" in capsys.readouterr().out
    assert main(TINY[:-2]) == 0  # without --checkpoint-every, which wants a folder
    assert "CPU" not in capsys.readouterr().out  # nobody asked


@pytest.mark.parametrize(
    "error", [OutOfMemoryError(9_000_000, 4_000_000_000), CUDARuntimeError(2), MemoryError()]
)
def test_out_of_memory_in_the_second_step(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    out, real, calls = tmp_path / "run", trainer.compute_gradients, []

    def compute_gradients(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "compute_gradients", compute_gradients)
        assert main([*TINY, "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"({str(error).rstrip('.') or 'no details'})" in said
    assert (
        f"go on with minigrpo train --resume {out} "
        "and a smaller --micro-batch-tokens or --memory-limit" in said
    )
    assert (
        main(["train", "--resume", str(out), "--micro-batch-tokens", "64", "--memory-limit", "2"])
        == 0
    )
    assert main(["train", "--resume", str(out), "--learning-rate", "1"]) == 2
    started_with = json.loads((out / "settings.json").read_text())["micro_batch_tokens"]
    assert started_with == TrainSettings.micro_batch_tokens
    whole, _ = train(
        TrainSettings.for_task("treewalk", steps=2, dim=8, n_layers=1, n_heads=2, group_size=4)
    )
    arrays, _ = load_checkpoint(checkpoints(out)[-1])
    np.testing.assert_allclose(arrays["parameters"], whole.parameters.flat, rtol=1e-5, atol=1e-7)


def test_out_of_memory_elsewhere_and_other_errors(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def fail(*_, **__):
        raise errors.pop()

    monkeypatch.setattr("minigrpo.runs.bench.measure", fail)
    errors = [CUDARuntimeError(999), OutOfMemoryError(1, 2, 3)]
    assert main(["bench"]) == 1
    said = capsys.readouterr().err
    assert (
        said.startswith("minigrpo bench: out of memory (Out of memory allocating 1 bytes (")
        and said.count("\n") == 1
    )
    with pytest.raises(CUDARuntimeError, match="unknown error"):  # not ours to hide
        main(["bench"])
