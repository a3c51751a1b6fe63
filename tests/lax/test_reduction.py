"""Reductions where sizes, dtypes or values are hard; the oracle tests try them everywhere else."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import infini as inf
from infini import lax
from infini.backends.reference.interpreter import evaluate
from infini.core import dtypes, errors, primitive, trace
from infini.core.ir import ArrayType
from infini.lax import reduction


def on_device(x: np.ndarray) -> inf.Array:
    with inf.config(host64="keep"):
        return inf.device_put(x)


def jitted(f: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
    return np.asarray(inf.jit(f)(*map(on_device, arrays)))


# --- long axes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axis"), [((1_000_000,), 0), ((1_000_003,), 0), ((3, 200_000), 1), ((200_000, 9), 0)], ids=str
)
def test_long_float32_sums_stay_accurate(shape: tuple[int, ...], axis: int, rng: Any) -> None:
    x = rng.uniform(0, 1, shape).astype(np.float32)
    found = jitted(lambda x: lax.reduce_sum(x, (axis,)), x)
    np.testing.assert_allclose(found, x.astype(np.float64).sum(axis), rtol=32 * np.finfo(np.float32).eps)


@pytest.mark.parametrize(
    ("shape", "axis"), [((1024, 64), 0), ((1000, 5), 0), ((40, 513, 3), 1), ((64, 4099), 1)], ids=str
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_error_of_a_sum_does_not_grow_with_its_length(
    shape: tuple[int, ...], axis: int, dtype: type, rng: Any
) -> None:
    x = rng.uniform(0, 1, shape).astype(dtype)
    exact = np.vectorize(math.fsum, signature="(n)->()")(np.moveaxis(x, axis, -1))
    found = jitted(lambda x: lax.reduce_sum(x, (axis,)), x)
    # One after the other, 1024 numbers have an error of about ten epsilons.
    np.testing.assert_allclose(found, exact, rtol=2.5 * np.finfo(dtype).eps)


def test_a_long_sum_and_a_long_extremum_share_a_pass(rng: Any) -> None:
    x = rng.standard_normal((1000, 24)).astype(np.float32)
    found = inf.jit(lambda x: (x.sum(0), x.max(0), x.argmax(0), (x > 0).any(0)))(x)
    np.testing.assert_allclose(found[0], x.astype(np.float64).sum(0), rtol=1e-4, atol=1e-4)
    for one, expected in zip(found[1:], (x.max(0), x.argmax(0), (x > 0).any(0)), strict=True):
        np.testing.assert_array_equal(one, expected)


@pytest.mark.parametrize(
    "name", ["reduce_max", "reduce_min", "reduce_and", "reduce_or", "reduce_xor", "reduce_sum"]
)
def test_a_long_axis_of_prime_size_is_padded_with_the_neutral_element(name: str, rng: Any) -> None:
    x = rng.integers(-1000, -1, 65_537).astype(np.int32)
    op = primitive.by_name(name)
    found = jitted(functools.partial(trace.bind1, op, axes=(-1,)), x)
    np.testing.assert_array_equal(found, op.rule(primitive.REFERENCE)(x, axes=(-1,)))


@pytest.mark.parametrize("name", ["argmax", "argmin"])
@pytest.mark.parametrize("shape", [(100_003,), (3, 40_000), (40_001, 3)], ids=str)
def test_the_first_of_equal_elements_of_a_long_axis(name: str, shape: tuple[int, ...], rng: Any) -> None:
    x = rng.integers(0, 50, shape).astype(np.float32)
    axis = int(np.argmax(shape))
    found = jitted(lambda x: getattr(lax, name)(x, axis, "int32"), x)
    np.testing.assert_array_equal(found, getattr(np, name)(x, axis=axis))


@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_the_first_nan_of_a_long_axis(name: str, rng: Any) -> None:
    x = rng.standard_normal(70_001).astype(np.float32)
    x[[66_000, 40_123, 69_999]] = np.nan
    assert jitted(lambda x: getattr(lax, name)(x, 0, "int32"), x) == 40_123


@pytest.mark.parametrize(("name", "number"), [("argmax", -math.inf), ("argmin", math.inf)])
@pytest.mark.parametrize("size", [5, 33, 40_001])
def test_the_farthest_number_everywhere_is_found_first(name: str, number: float, size: int) -> None:
    x = np.full(size, number, np.float32)
    assert jitted(lambda x: getattr(lax, name)(x, 0, "int32"), x) == 0


# --- accumulation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [dtypes.float16, dtypes.bfloat16, dtypes.float8_e5m2], ids=str)
def test_small_floats_accumulate_in_float32(dtype: np.dtype) -> None:
    ones = np.ones((8, 512), dtype)
    assert jitted(lambda x: lax.reduce_sum(x, (0, 1)), ones).astype(np.float64) == 4096
    near_one = np.full(1000, 1.0009765625 if dtype == dtypes.float16 else 1.0, dtype)
    expected = np.prod(near_one.astype(np.float64))
    found = jitted(lambda x: lax.reduce_prod(x, (0,)), near_one).astype(np.float64)
    np.testing.assert_allclose(found, expected, rtol=2e-3)


@pytest.mark.parametrize("dtype", sorted(dtypes.INTEGERS, key=str), ids=str)
def test_integers_wrap_around(dtype: np.dtype) -> None:
    x = np.full(7, np.iinfo(dtype).max, dtype)
    with np.errstate(over="ignore"):
        total, product = np.sum(x, dtype=dtype), np.prod(x, dtype=dtype)
    assert jitted(lambda x: lax.reduce_sum(x, (0,)), x) == total
    assert jitted(lambda x: lax.reduce_prod(x, (0,)), x) == product


@pytest.mark.parametrize("name", sorted(reduction.MONOIDS))
def test_the_decomposition_is_the_definition(name: str, rng: Any) -> None:
    op = primitive.by_name(name)
    for shape, axes in (((3, 5), (-1,)), ((4, 3, 2), (-3, -1)), ((0, 3), (-2,)), ((2, 3), ())):
        x = rng.integers(-3, 4, shape).astype(np.int16)
        rule = op.rule(primitive.DECOMPOSE)
        program = trace.stage(
            lambda x, rule=rule, axes=axes: rule(x, axes=axes), [ArrayType(shape, x.dtype)]
        ).program
        (found,) = evaluate(program, [x])
        np.testing.assert_array_equal(found, op.rule(primitive.REFERENCE)(x, axes=axes))


# --- derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("zeros", [(), (1,), (1, 3), (0, 2, 4)], ids=str)
def test_derivatives_of_a_product_with_zeros(zeros: tuple[int, ...]) -> None:
    x = np.array([2.0, -1.5, 0.5, 3.0, -2.0])
    x[list(zeros)] = 0.0

    def without(*left_out: int) -> float:
        return float(np.prod(np.delete(x, left_out)))

    gradient = [without(i) for i in range(5)]
    hessian = [[0.0 if i == j else without(i, j) for j in range(5)] for i in range(5)]
    product = lambda x: lax.reduce_prod(x, (0,))  # noqa: E731
    np.testing.assert_allclose(jitted(inf.grad(product), x), gradient, atol=1e-12)
    np.testing.assert_allclose(jitted(inf.hessian(product), x), hessian, atol=1e-12)


# --- lax.reduce -----------------------------------------------------------------------------------


def test_a_known_function_becomes_its_reduction() -> None:
    program = inf.make_jaxpr(lambda x: lax.reduce(x, -math.inf, lambda p, q: lax.max(q, p), (1,)))(
        np.zeros((3, 4), np.float32)
    )
    assert [e.op.name for e in program.equations] == ["reduce_max", "max"]


@pytest.mark.parametrize("shape", [(7,), (4, 3), (0, 2), (1,)], ids=str)
def test_an_associative_function_keeps_the_order(shape: tuple[int, ...], rng: Any) -> None:
    a, b = (rng.standard_normal(shape) for _ in range(2))

    def after(p: Any, q: Any) -> Any:  # of affine maps a x + b
        return p[0] * q[0], p[1] * q[0] + q[1]

    found = inf.jit(lambda a, b: lax.reduce((a, b), (1.0, 0.0), after, (0,)))(on_device(a), on_device(b))
    expected = (np.ones(shape[1:]), np.zeros(shape[1:]))
    for row in zip(a, b, strict=True):
        expected = after(expected, row)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(x), y, rtol=1e-12, atol=1e-12)


def test_a_choice_inside_the_function() -> None:
    def larger(p: Any, q: Any) -> Any:
        return lax.cond(p > q, lambda: p, lambda: q)

    assert lax.reduce(inf.numpy.array([3.0, 7.0, 5.0]), -1.0, larger, (0,)) == 7.0


def test_a_loop_inside_the_function_is_refused() -> None:
    def odd(p: Any, q: Any) -> Any:
        return lax.fori_loop(0, 3, lambda _, c: c + q, p)

    with pytest.raises(errors.TypeMismatchError, match="elementwise operations on scalars"):
        lax.reduce(inf.numpy.ones(3), 0.0, odd, (0,))
