"""What of the GPU benchmark needs no GPU, and the table of exactness; no time is tested."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import strict_cupy

from minigrpo.engine.backend import Backend, get_backend
from minigrpo.engine.optim import AdamW
from minigrpo.engine.profiling import Stopwatch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import gpu_exactness
from benchmarks.gpu_floor import CASES, PEERS, device_rates, floor, our_side, seconds_of, table, toy


@pytest.fixture
def cupy(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """CuPy, if the command line asked for it; else the stand-in."""
    return (
        backend.xp if backend.name == "cupy" else strict_cupy.install(monkeypatch, other_order=True)
    )


def test_the_cases() -> None:
    assert (
        sum(np.prod(shape) for shape in CASES["SmolLM2"].workload.config.shapes().values())
        == 134_515_008
    )  # as published
    for case in CASES.values():
        small, w = toy(case), case.workload
        bench = our_side(small, get_backend("numpy"))
        shared = small.preamble
        assert bool(shared) == bool(case.preamble) and shared < small.workload.prompt_length
        assert all((prompt[:shared] == bench.prompts[0][:shared]).all() for prompt in bench.prompts)
        assert any((prompt[shared:] != bench.prompts[0][shared:]).any() for prompt in bench.prompts)
        c = small.workload.config
        assert c.n_heads / c.n_kv_heads == w.config.n_heads / w.config.n_kv_heads
        rollouts = bench.step(Stopwatch())
        assert (
            rollouts.tree.n_nodes
            <= shared + 2 * (small.workload.prompt_length - shared) + 8 * small.workload.new_tokens
        )


def test_the_floor() -> None:
    config = toy(CASES["W1"]).workload.config
    weights = 4 * sum(np.prod(shape) for shape in config.shapes().values())
    rates = {"operations": 100.0, "bytes": 10.0 * weights}  # a pass over the weights takes 0.1 s
    found = floor(config, 3, {"sample": 1000.0, "forward": 1.0, "backward": 40.0}, rates)
    assert found == pytest.approx(
        {"sample": 10.0, "forward": 0.1, "backward": 0.4, "optimizer": 0.7}
    )
    found = floor(config, 3, {}, rates)
    assert found == pytest.approx(
        {"sample": 0.3, "forward": 0.1, "backward": 0.2, "optimizer": 0.7}
    )


def test_rates_and_events(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = device_rates(get_backend("numpy"), 32, repeats=2)
    assert min(rates.values()) > 0
    log = []
    event = lambda: SimpleNamespace(  # noqa: E731
        record=lambda: log.append("record"), synchronize=lambda: log.append("wait")
    )
    module = strict_cupy.install(monkeypatch)
    module.cuda.Event, module.cuda.get_elapsed_time = (
        event,
        lambda first, last: 250.0,
    )  # milliseconds
    module.cuda.runtime.deviceSynchronize = lambda: log.append("idle")
    assert seconds_of(lambda: log.append("work"), Backend("cupy", module)) == 0.25
    assert log == ["idle", "record", "work", "record", "wait"]


def test_the_table() -> None:
    row = {
        "seconds": {"minigrpo": 0.010, "torch": 0.025, "torch compiled": 0.020},
        "ratio": {"torch": 2.5, "torch compiled": 2.0},
        "memory": {"minigrpo": 1_500_000_000, "torch": None},
        "distinct share": 0.25,
        "step / floor": 3.0,
    }
    results = {
        "machine": {"device": "a device"},
        "rates": {"operations": 2e12, "bytes": 3e11},
        "workloads": {"W1": row},
    }
    head, _, titles, rule, cells = table(results)
    assert head == "a device: products 2 TFLOP/s, copies 300 GB/s"
    assert titles.count("|") == rule.count("|") == cells.count("|") == 6 + len(PEERS) and all(
        t in titles for t in PEERS.values()
    )
    times = "10.00 | 25.00 (**2.50**) | 20.00 (**2.00**) | not measured"
    assert cells == f"| W1 | 0.25 | {times} | 3.0 | 1.50, – |"


def test_a_rehearsal_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("torch", reason="the benchmark compares with PyTorch")
    from benchmarks import gpu

    kept = Path(gpu.__file__).with_name("gpu-results.json")
    before = kept.read_bytes() if kept.exists() else None
    gpu.main(
        ["--device", "cpu", "--rounds", "1", "--no-compile", "--out", str(tmp_path / "r.json")]
    )
    assert capsys.readouterr().out.startswith("CPU (a rehearsal")
    results = json.loads((tmp_path / "r.json").read_text())
    assert list(results["workloads"]) == list(CASES)
    for row in results["workloads"].values():
        assert (
            set(row["seconds"]) == {"minigrpo", "torch"}
            and row["difference"]["log p"] < 1e-4 > row["difference"]["gradients"]
        )
    gpu.main(["--device", "cpu", "--workloads", "W1", "--profile"])
    assert "backward" in capsys.readouterr().out
    assert (
        kept.read_bytes() if kept.exists() else None
    ) == before  # a rehearsal leaves a GPU's results alone


# -- exactness -------------------------------------------------------------------------------------


def test_the_table_of_exactness(
    cupy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert gpu_exactness.main(["--out", str(tmp_path / "e.json")]) == 0
    out = capsys.readouterr().out
    checks = json.loads((tmp_path / "e.json").read_text())["checks"]
    assert len(checks) == out.count("| ok |") == 15 and out.startswith("on the GPU: ")
    assert all(
        c["value"] > 0 for c in checks if "gradient" in c["what"]
    )  # two different computations


def test_the_table_of_exactness_notices(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    module, right = strict_cupy.install(monkeypatch), AdamW._update

    def wrong(self, part, parameters, gradients, rate, spare):
        right(
            self,
            part,
            parameters,
            gradients,
            rate * (1 + 1e-4 * isinstance(parameters, module.ndarray)),
            spare,
        )

    monkeypatch.setattr(AdamW, "_update", wrong)
    exact = SimpleNamespace(worst=0.0)  # no optimizer there, and half of the time
    monkeypatch.setattr(gpu_exactness, "check_equivalence", lambda *_: exact)
    assert gpu_exactness.main([]) == 1
    bad = [line for line in capsys.readouterr().out.splitlines() if "**too far**" in line]
    assert len(bad) == 3 and "losses of ten steps" in bad[0] and "resumed on" in bad[1]


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert gpu_exactness.main([]) == 2
    assert "the cupy backend cannot be used" in capsys.readouterr().err
