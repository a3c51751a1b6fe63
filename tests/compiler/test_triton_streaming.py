"""Kernels whose tiles are walked in chunks give what they give in one piece, under Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from infini import lax
from infini.compiler.triton import streaming
from infini.core import dtypes
from infini.core.ir import ArrayType
from tests.compiler import triton_kernels as k
from tests.tile import kernels

pytest.importorskip("triton")

TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2, "int32": 0.0}


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: Any) -> None:
    """Tiles of more than 64 elements are streamed, 32 at a time."""
    monkeypatch.setattr(streaming, "MAX_TILE", 64)
    monkeypatch.setattr(streaming, "CHUNK", 32)


def column_sums(x: Any) -> Any:
    return lax.reduce_sum(x, (0,)), lax.reduce_max(lax.mul(x, x), (0,))


def softmax(x: Any) -> Any:
    e = lax.exp(lax.sub(x, lax.broadcast_in_dim(lax.reduce_max(x, (1,)), x.shape, (0,))))
    return lax.div(e, lax.broadcast_in_dim(lax.reduce_sum(e, (1,)), x.shape, (0,)))


def centred(x: Any) -> Any:
    mean = lax.div(lax.reduce_sum(x, (0,)), lax.full((x.shape[1],), x.shape[0], x.dtype))
    return lax.sub(x, lax.broadcast_in_dim(mean, x.shape, (1,))), mean


def pointwise(x: Any) -> Any:
    return lax.mul(lax.add(x, x), 2)


def positions(x: Any) -> Any:
    at = lax.convert_element_type(lax.broadcasted_iota("int32", x.shape, 1), x.dtype)
    return lax.reduce_sum(lax.mul(x, at), (0, 1))


@pytest.mark.parametrize(
    ("function", "shape", "dtype"),
    [
        (column_sums, (100, 3), dtypes.float32),
        (column_sums, (128, 2), dtypes.bfloat16),
        (column_sums, (90, 4), dtypes.int32),
        (softmax, (2, 100), dtypes.float32),
        (softmax, (1, 96), dtypes.bfloat16),
        (centred, (70, 4), dtypes.float32),
        (pointwise, (101,), dtypes.int32),
        (positions, (2, 75), dtypes.float32),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_chunks(function: Callable[..., Any], shape: tuple[int, ...], dtype: np.dtype, rng: Any) -> None:
    x = k.numbers(rng, shape, dtype)
    kernel = k.on_tiles(function, *k.types(x))
    assert streaming.plan(kernel) is not None
    k.check(kernel, x, tolerance=TOLERANCES[dtype.name])


@pytest.mark.parametrize("kernel", [kernels.softmax, kernels.rms_norm], ids=lambda f: f.name)
def test_rows_of_kernels_by_hand(kernel: Any, rng: Any) -> None:
    arrays = [k.numbers(rng, (3, 150), dtypes.float32)]
    arrays += [k.numbers(rng, (150,), dtypes.float32)] if kernel is kernels.rms_norm else []
    k.check(kernel.specialize(k.types(*arrays)), *arrays, tolerance=1e-5)


def test_a_softmax_is_three_passes() -> None:
    kernel = kernels.softmax.specialize([ArrayType((3, 150), dtypes.float32)])
    plan = streaming.plan(kernel)
    assert plan is not None and plan.num_passes == 3 and plan.size == 150
    text = k.source_of(kernel, np.zeros((3, 150), np.float32)).text
    assert text.count("for ") == text.count("tl.load") == 3


def test_tiles_that_fit_are_not_streamed() -> None:
    assert streaming.plan(kernels.softmax.specialize([ArrayType((3, 64), dtypes.float32)])) is None


def test_an_operation_that_mixes_dimensions_is_not_streamed() -> None:
    kernel = k.on_tiles(lambda x: lax.reshape(x, (4, 32)), ArrayType((128,), dtypes.float32))
    assert streaming.plan(kernel) is None
