"""Convolutions and windowed reductions on the stand-in for a GPU, with gradients, against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

import infini as inf  # after the skip
from infini import lax
from infini.backends import cuda
from infini.backends.reference import interpreter
from infini.core import trace
from infini.core.backend import CompileOptions, Device
from infini.core.ir import ArrayType
from tests.backends.fake_cupy import Machine

DEVICE = Device("cuda", 0)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> cuda.CudaBackend:
    Machine().install(monkeypatch)
    return cuda.CudaBackend()


def conv(**options: Any) -> Callable[..., Any]:
    strides, padding = options.pop("strides", (1, 1)), options.pop("padding", "SAME")
    return lambda x, w: lax.conv_general_dilated(x, w, strides, padding, **options)


def pool(name: str, start: float) -> Callable[..., Any]:
    return lambda x: lax.reduce_window(x, start, getattr(lax, name), (1, 1, 3, 2), (1, 1, 2, 2), "SAME")


GROUPS = np.asarray([3, 0, 4], np.int32)
PROGRAMS: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "strides": (conv(strides=(2, 1)), [(1, 2, 6, 5), (3, 2, 3, 2)]),
    "channels last": (conv(dimension_numbers=("NHWC", "HWIO", "NHWC")), [(1, 4, 5, 2), (2, 2, 2, 3)]),
    "depthwise": (conv(feature_group_count=2), [(1, 2, 4, 4), (2, 1, 2, 2)]),
    "transposed": (conv(padding=((1, 2), (1, 1)), lhs_dilation=(2, 2)), [(1, 2, 3, 3), (2, 2, 3, 2)]),
    "sum": (pool("add", 0.0), [(1, 2, 6, 5)]),
    "max": (pool("max", -np.inf), [(1, 2, 6, 5)]),
    "ragged": (lambda x, y: lax.ragged_dot(x, y, GROUPS), [(8, 4), (3, 4, 5)]),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_values_and_gradients(name: str, backend: cuda.CudaBackend, rng: np.random.Generator) -> None:
    function, shapes = PROGRAMS[name]

    def both(*xs: Any) -> list[Any]:
        found, pullback = inf.vjp(function, *xs)
        return [found, *pullback(found)]

    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    program = trace.stage(both, [ArrayType(a.shape, a.dtype) for a in arrays]).program
    buffers = backend.compile(program, CompileOptions())([backend.put(a, DEVICE) for a in arrays])
    expected = interpreter.evaluate(program, arrays)
    for buffer, type_, wanted in zip(buffers, program.out_types, expected, strict=True):
        np.testing.assert_allclose(backend.get(buffer, type_), wanted, rtol=1e-4, atol=1e-4)
