"""Cumulative operations where lines are long or values hard; the oracle tests try them everywhere else."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest

import infini as inf
from infini import lax
from infini.backends.reference.interpreter import evaluate
from infini.compiler.llvm import cumulative as native
from infini.compiler.llvm.target import host_target
from infini.core import dtypes, errors, primitive, trace
from infini.core.ir import ArrayType
from infini.lax import cumulative


def on_device(x: np.ndarray) -> inf.Array:
    with inf.config(host64="keep"):
        return inf.device_put(x)


def definition(name: str, x: np.ndarray, axis: int, reverse: bool) -> np.ndarray:
    """In float64 for floats."""
    wide = x.astype(np.float64) if x.dtype in dtypes.FLOATS else x
    rule = primitive.by_name(name).rule(primitive.REFERENCE)
    return np.asarray(rule(wide, axis=axis, reverse=reverse))


# Rows and columns that are cut into blocks, and some that are not; ends that fill no vector.
SHAPES = [
    ((40_000,), -1),
    ((33_003,), -1),
    ((3, 40_001), -1),
    ((33_000, 5), -2),
    ((2, 33_001, 40), -2),
    ((9, 100, 3), -2),
]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
@pytest.mark.parametrize("name", sorted(cumulative.NAMES))
def test_long_lines(name: str, shape: tuple[int, ...], axis: int, reverse: bool, rng: Any) -> None:
    x = rng.uniform(-1, 1, shape).astype(np.float32)
    x = 1 + x / 1000 if name == "cumprod" else x
    found = inf.jit(functools.partial(trace.bind1, primitive.by_name(name), axis=axis, reverse=reverse))(x)
    expected = definition(name, x, axis, reverse)
    scale = np.abs(expected).max()
    # Columns are added up one after the other within a block.
    np.testing.assert_allclose(np.asarray(found), expected, rtol=3e-5, atol=4e-6 * scale)


@pytest.mark.parametrize(
    "dtype", [dtypes.int8, dtypes.uint16, dtypes.int64, dtypes.float64, dtypes.bfloat16], ids=str
)
def test_long_lines_of_other_dtypes(dtype: np.dtype, rng: Any) -> None:
    x = rng.integers(0, 4, 33_003).astype(dtype)
    x[100:] = 0  # so that bfloat16 holds the sums
    found = inf.jit(lambda x: lax.cumsum(x))(on_device(x))
    np.testing.assert_array_equal(
        np.asarray(found).astype(np.float64), definition("cumsum", x, -1, False).astype(np.float64)
    )


def test_long_lines_are_cut_and_many_lines_are_not() -> None:
    target = host_target()
    cut = functools.partial(native.layout, axis=-1, target=target)
    assert cut(ArrayType((1_000_000,), dtypes.float32)).num_blocks > 8
    assert cut(ArrayType((64, 100_000), dtypes.float32)).num_blocks == 1
    assert native.layout(ArrayType((100_000, 1000), dtypes.float32), -2, target).num_blocks == 1


@pytest.mark.parametrize("name", sorted(cumulative.NAMES))
@pytest.mark.parametrize("reverse", [False, True])
def test_the_decomposition_is_the_definition(name: str, reverse: bool, rng: Any) -> None:
    op = primitive.by_name(name)
    for shape, axis in (((3, 7), -1), ((6, 2), -2), ((1,), -1), ((0, 2), -2), ((2, 0), -2)):
        x = rng.uniform(-2, 2, shape)
        rule = op.rule(primitive.DECOMPOSE)
        program = trace.stage(
            lambda x, rule=rule, axis=axis: rule(x, axis=axis, reverse=reverse), [ArrayType(shape, x.dtype)]
        ).program
        (found,) = evaluate(program, [x])
        np.testing.assert_allclose(found, definition(name, x, axis, reverse), rtol=1e-12, atol=1e-12)


def test_infinities_and_nan_in_log_sums() -> None:
    x = np.array([-math.inf, -math.inf, 1.0, 1000.0, -1000.0, math.inf, 2.0, math.nan, 3.0], np.float32)
    found = np.asarray(inf.jit(lambda x: lax.cumlogsumexp(x))(x))
    expected = [-math.inf, -math.inf, 1.0, 1000.0, 1000.0, math.inf, math.inf, math.nan, math.nan]
    np.testing.assert_array_equal(found, np.array(expected, np.float32))


def test_nan_wins_in_running_extrema() -> None:
    x = np.array([1.0, math.nan, 3.0, 0.0], np.float32)
    assert np.isnan(np.asarray(lax.cummax(x))).tolist() == [False, True, True, True]
    assert np.isnan(np.asarray(lax.cummin(x, reverse=True))).tolist() == [True, True, False, False]


@pytest.mark.parametrize("reverse", [False, True])
def test_derivatives_of_running_products_with_zeros(reverse: bool) -> None:
    x = np.array([2.0, 0.0, -1.5, 0.0, 3.0])

    def without(k: int, *left_out: int) -> float:
        inside = range(k, 5) if reverse else range(k + 1)
        if not set(left_out) <= set(inside):
            return 0.0
        return float(np.prod([x[i] for i in inside if i not in left_out]))

    jacobian = [[without(k, i) for i in range(5)] for k in range(5)]
    second = [[[0.0 if i == j else without(k, i, j) for j in range(5)] for i in range(5)] for k in range(5)]
    product = lambda x: lax.cumprod(x, 0, reverse)  # noqa: E731
    np.testing.assert_allclose(np.asarray(inf.jacfwd(product)(on_device(x))), jacobian, atol=1e-12)
    np.testing.assert_allclose(np.asarray(inf.jacrev(product)(on_device(x))), jacobian, atol=1e-12)
    np.testing.assert_allclose(np.asarray(inf.jacfwd(inf.jacrev(product))(on_device(x))), second, atol=1e-12)


def test_axes_are_checked_as_jax_checks_them() -> None:
    x = np.ones((2, 3), np.float32)
    for axis in (-1, 2):
        with pytest.raises(errors.ValueMismatchError, match="an axis does not exist"):
            lax.cumsum(x, axis)
    with pytest.raises(errors.TypeMismatchError, match="cumsum"):
        lax.cumsum(x > 0)
