"""Products of the CUDA backend, chosen by measuring on the stand-in for CuPy, whose clock the tests set."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

from infini import lax  # after the skip
from infini.backends import cuda
from infini.backends.accelerator import products
from infini.compiler import choices
from infini.compiler.triton import matmul
from infini.core import backend as backend_, config, dtypes, errors, execute, trace
from infini.core.backend import CompileOptions, Device
from infini.core.ir import ArrayType
from tests.backends.fake_cupy import Machine

DEVICE = Device("cuda", 0)
LIBRARY = "cublas"
M, N, K = 66, 32, 24  # a ragged product; tiles of 64 need two programs, of 128 one, of 16 five
TILES_BY_GRID = {2: "tiles 64x64x32", 1: "tiles 128x128x32", 5: "tiles 16x128x64"}


@pytest.fixture
def machine(monkeypatch: Any, tmp_path: Any) -> Iterator[Machine]:
    made, real = Machine().install(monkeypatch), backend_.get
    monkeypatch.setattr(products, "MIN_MULTIPLICATIONS", M * N * K)
    # Triton's interpreter is slow, and this clock is exact.
    monkeypatch.setattr(products, "MAX_REPEATS", 1)
    monkeypatch.setattr(choices, "WARM_UPS", 0)
    monkeypatch.setattr(choices, "ROUNDS", 1)
    backend = cuda.CudaBackend()
    monkeypatch.setattr(backend_, "get", lambda name: backend if name == "cuda" else real(name))
    choices.forget()
    with config.config(cache_dir=str(tmp_path), no_cache=False, tune="on"):
        yield made
    choices.forget()
    backend_.forget_default_device()


def fastest(name: str) -> Callable[[str, tuple[int, ...]], float]:
    """A clock by which one way takes half the time of the others."""

    def cost_ms(kind: str, size: tuple[int, ...]) -> float:
        return 1.0 if name == (LIBRARY if kind == "gemm" else TILES_BY_GRID[size[0]]) else 2.0

    return cost_ms


def program(dtype: np.dtype = dtypes.float32, m: int = M) -> Any:
    types = [ArrayType((m, K), dtype), ArrayType((K, N), dtype)]
    return trace.stage(lambda x, y: [lax.dot(x, y)], types).program


def compiled(**options: Any) -> Any:
    """The product, compiled."""
    return execute.compile(program(), DEVICE, CompileOptions(**options))


def results(executable: Any, rng: Any) -> tuple[np.ndarray, np.ndarray]:
    """What an executable gives, and what it should."""
    x, y = rng.standard_normal((M, K), np.float32), rng.standard_normal((K, N), np.float32)
    backend = backend_.get("cuda")
    (out,) = executable([backend.put(x, DEVICE), backend.put(y, DEVICE)])
    return backend.get(out, ArrayType((M, N), dtypes.float32)), x @ y


@pytest.mark.parametrize("name", [LIBRARY, *TILES_BY_GRID.values()])
def test_the_fastest_way_is_taken_and_is_right(name: str, machine: Machine, rng: Any) -> None:
    machine.cost_ms = fastest(name)
    executable = compiled()
    assert [way for _, way in executable.choices] == [name]
    machine.events.clear()
    got, wanted = results(executable, rng)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    started = [event for event in machine.events if event[0] in ("gemm", "launch")]
    assert [LIBRARY if e[0] == "gemm" else TILES_BY_GRID[e[2][0]] for e in started] == [name]


def test_the_text_shows_every_way_with_its_time(machine: Machine, monkeypatch: Any) -> None:
    monkeypatch.setattr(products, "MAX_REPEATS", 3)
    machine.cost_ms = fastest("tiles 128x128x32")
    lines = [" ".join(line.split()) for line in compiled().text("choices").splitlines()]
    assert lines == [
        "dot ba,ac->bc f32[66,24] f32[24,32] -> f32[66,32]: tiles 128x128x32 (measured)",
        "cublas 2000.00 us",
        "tiles 64x64x32 2000.00 us",
        "tiles 128x128x32 1000.00 us",
        "tiles 16x128x64 2000.00 us",
    ]


def test_a_shape_is_measured_once_per_device_and_versions(machine: Machine, monkeypatch: Any) -> None:
    machine.cost_ms = fastest("tiles 16x128x64")
    compiled()
    measured = machine.count("capture")
    choices.forget()
    machine.cost_ms = fastest(LIBRARY)
    assert [way for _, way in compiled().choices] == ["tiles 16x128x64"]
    assert machine.count("capture") == measured == 4
    # The same shape on another device is another question.
    choices.forget()
    monkeypatch.setattr(
        sys.modules["cupy"].cuda.runtime, "getDeviceProperties", lambda number: {"name": b"Another"}
    )
    backend_.get("cuda")._measuring.clear()
    assert [way for _, way in compiled().choices] == [LIBRARY]
    assert machine.count("capture") == 2 * measured


def test_another_choice_is_another_executable_with_other_machine_code(machine: Machine) -> None:
    key = "dot ba,ac->bc f32[66,24] f32[24,32] -> f32[66,32]"
    found = {name: compiled(choices=((key, name),)) for name in TILES_BY_GRID.values()}
    assert len({id(executable) for executable in found.values()}) == len(found)
    assert len({executable.text("triton") for executable in found.values()}) == len(found)
    assert machine.count("capture") == 0


@pytest.mark.parametrize(
    ("settings", "options"), [({"tune": "off"}, {}), ({"tune": "cached"}, {}), ({}, {"deterministic": True})]
)
def test_without_a_measurement_the_library_is_taken(
    settings: dict[str, str], options: dict[str, bool], machine: Machine
) -> None:
    machine.cost_ms = fastest("tiles 128x128x32")
    with config.config(**settings):
        executable = compiled(**options)
    assert [way for _, way in executable.choices] == [LIBRARY]
    assert machine.count("capture") == machine.count("launch") == 0


def test_small_products_are_not_measured(machine: Machine) -> None:
    executable = execute.compile(program(m=M - 1), DEVICE, CompileOptions())
    assert executable.choices == () and executable.text("choices") == "nothing to choose"
    assert machine.count("capture") == 0


def test_without_the_library_tiles_are_chosen(machine: Machine, monkeypatch: Any, rng: Any) -> None:
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs.cublas", None)
    machine.cost_ms = fastest("tiles 16x128x64")
    executable = compiled()
    assert [way for _, way in executable.choices] == ["tiles 16x128x64"]
    got, wanted = results(executable, rng)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_a_way_that_fails_is_out(machine: Machine) -> None:
    def cost_ms(kind: str, size: tuple[int, ...]) -> float:
        if kind == "gemm" or TILES_BY_GRID[size[0]] != "tiles 128x128x32":
            raise RuntimeError("not on this device")
        return 1.0

    machine.cost_ms = cost_ms
    executable = compiled()
    assert [way for _, way in executable.choices] == ["tiles 128x128x32"]
    assert "cublas            failed: RuntimeError: not on this device" in executable.text("choices")


def test_when_every_way_fails_the_error_names_them(machine: Machine) -> None:
    def cost_ms(kind: str, size: tuple[int, ...]) -> float:
        raise RuntimeError(f"no {kind}")

    machine.cost_ms = cost_ms
    with pytest.raises(errors.LoweringError, match=r"cublas: RuntimeError: no gemm; tiles 64x64x32: "):
        compiled()


def test_dtypes_without_matrix_units_have_one_tile(machine: Machine) -> None:
    executable = execute.compile(program(dtypes.float64), DEVICE, CompileOptions())
    ((_, way),) = executable.choices
    assert way == LIBRARY
    assert matmul.edges_of(dtypes.float64) == ((16, 16, 16),)


def test_products_inside_a_loop_are_chosen(machine: Machine) -> None:
    machine.cost_ms = fastest("tiles 128x128x32")

    def looped(x: Any, y: Any) -> Any:
        step = lambda carry, _: (lax.add(carry, lax.dot(x, y)), None)  # noqa: E731
        return [lax.scan(step, lax.full((M, N), 0.0, "float32"), None, length=2)[0]]

    staged = trace.stage(looped, program().in_types)
    executable = execute.compile(staged.program, DEVICE, CompileOptions())
    assert [way for _, way in executable.choices] == ["tiles 128x128x32"]


def test_a_capture_that_raises_leaves_the_stream_usable(machine: Machine) -> None:
    calls: list[int] = []

    def cost_ms(kind: str, size: tuple[int, ...]) -> float:
        calls.append(1)
        if len(calls) == 2:  # the first run inside the capture
            raise RuntimeError("cannot be captured")
        return 1.0

    machine.cost_ms = cost_ms
    executable = compiled()
    assert "cublas" in executable.text("choices") and not machine.recordings
    assert [way for _, way in executable.choices] == ["tiles 64x64x32"]
