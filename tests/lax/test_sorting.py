"""Sorting and top_k bit for bit: row lengths around the limits of the algorithms, dtypes, ties, specials."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import infini as inf
from infini import lax
from infini.backends.reference.interpreter import evaluate
from infini.compiler.llvm import top_k
from infini.compiler.llvm.target import make_target
from infini.core import dtypes, errors, ir, primitive, trace
from infini.core.ir import ArrayType
from infini.lax.top_k import top_k_p

AVX512 = make_target("x86_64-unknown-linux-gnu", "znver4", "+avx2,+avx512f,+avx512vl,+avx512dq,+avx512bw")
DTYPES = sorted(dtypes.ALL - dtypes.COMPLEX, key=str)


def on_device(x: np.ndarray) -> inf.Array:
    with inf.config(host64="keep"):
        return inf.device_put(x)


def random(dtype: np.dtype, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Elements with ties, zeros of both signs, infinities and NaNs of both signs."""
    if dtype == dtypes.bool_:
        return rng.integers(0, 2, shape).astype(bool)
    if dtype in dtypes.INTEGERS:
        bounds = np.iinfo(dtype)
        x = rng.integers(bounds.min, bounds.max, shape, dtype=dtype, endpoint=True)
        x[..., ::3] //= bounds.max // 5  # few values, so they tie
        return x
    x = rng.standard_normal(shape)
    x[rng.random(shape) < 0.2] = 0.0
    x = np.where(rng.random(shape) < 0.1, -x, x).astype(dtype)
    for special in (np.inf, -np.inf, np.nan, -np.nan):
        x[rng.random(shape) < 0.03] = np.asarray(special).astype(dtype)
    return x


def keys_of(x: np.ndarray) -> np.ndarray:
    """Numbers that NumPy orders as we do."""
    return x.astype(np.float64) if x.dtype in dtypes.FLOATS else x


def same_bits(x: Any, y: np.ndarray) -> bool:
    return np.asarray(x).tobytes() == np.ascontiguousarray(y).tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_key_alone(dtype: np.dtype, rng: Any) -> None:
    for length in (1, 2, 17, 100, 1000):
        x = random(dtype, (3, length), rng)
        order = np.argsort(keys_of(x), axis=-1, kind="stable")
        assert same_bits(lax.sort(on_device(x)), np.take_along_axis(x, order, -1)), length


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_places_tell_that_sorting_is_stable(dtype: np.dtype, rng: Any) -> None:
    for length in (5, 64, 700):
        x = random(dtype, (2, length), rng)
        places = np.broadcast_to(np.arange(length, dtype=np.int32), x.shape)
        found, order = lax.sort_key_val(on_device(x), on_device(places))
        expected = np.argsort(keys_of(x), axis=-1, kind="stable")
        np.testing.assert_array_equal(np.asarray(order), expected)
        assert same_bits(found, np.take_along_axis(x, expected, -1))


@pytest.mark.parametrize("length", [9, 900])
def test_several_keys_of_different_widths(length: int, rng: Any) -> None:
    first = rng.integers(0, 3, length).astype(np.int8)
    second, third = random(dtypes.float64, (length,), rng), random(dtypes.bfloat16, (length,), rng)
    payload = rng.standard_normal(length).astype(np.float32)
    found = inf.jit(lambda *xs: lax.sort(xs, num_keys=3))(*map(on_device, (first, second, third, payload)))
    order = np.lexsort([keys_of(third), second, first])
    for x, y in zip(found, (first, second, third, payload), strict=True):
        assert same_bits(x, y[order])


def test_complex_numbers_are_ordered_lexicographically(rng: Any) -> None:
    x = rng.integers(-2, 3, 50) + 1j * rng.integers(-2, 3, 50)
    x[[3, 7, 20]] = [complex(np.nan, 1), complex(1, np.nan), complex(np.nan, np.nan)]
    x = x.astype(np.complex64)
    order = np.lexsort([x.imag, x.real])
    np.testing.assert_array_equal(np.asarray(inf.jit(lax.sort)(x)), x[order])


def test_other_dimensions(rng: Any) -> None:
    x = rng.standard_normal((3, 4, 5)).astype(np.float32)
    for axis in range(3):
        np.testing.assert_array_equal(np.asarray(lax.sort(x, axis)), np.sort(x, axis))
        values, places = lax.top_k(x, 2, axis=axis)
        np.testing.assert_array_equal(
            np.asarray(values), np.flip(np.sort(x, axis), axis).take(range(2), axis)
        )
        np.testing.assert_array_equal(np.take_along_axis(x, np.asarray(places), axis), np.asarray(values))


def test_refusals() -> None:
    x = np.ones((2, 3), np.float32)
    for wrong, match in (
        (lambda: lax.sort(()), "at least one operand"),
        (lambda: lax.sort((x, x[0])), "one shape"),
        (lambda: lax.sort((x, x), num_keys=3), "num_keys"),
        (lambda: lax.top_k(x, 4), "k is not between 0 and the size"),
        (lambda: lax.approx_max_k(x.astype(np.int32), 1), "takes floats"),
    ):
        with pytest.raises(errors.InfiniError, match=match):
            wrong()


# --- top_k ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_of_a_row(dtype: np.dtype, rng: Any) -> None:
    for length, k in ((1, 1), (40, 40), (300, 3), (5000, 50), (5000, 2000)):
        x = random(dtype, (2, length), rng)
        check_top_k(x, k)


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_few_of_rows_of_any_length(k: int, rng: Any) -> None:
    for length in (k, 15, 17, 64, 129):
        if length >= k:
            check_top_k(random(dtypes.float32, (3, length), rng), k)
    for dtype in (dtypes.uint8, dtypes.bfloat16, dtypes.uint32):
        check_top_k(random(dtype, (3, 70), rng), k)


def test_few_of_a_row_that_holds_only_the_smallest_element() -> None:
    for x in (np.zeros((2, 40), np.uint32), np.full((2, 40), -(2**31), np.int32), np.zeros((2, 40), bool)):
        check_top_k(x, 4)


def test_few_of_a_row_are_found_in_registers() -> None:
    for length, k, dtype, is_in_registers in (
        (128, 2, dtypes.float32, True),
        (4096, 8, dtypes.bfloat16, True),
        (1 << 17, 8, dtypes.float32, False),  # a threshold spares nearly all elements the way
        (128, 2, dtypes.float64, False),
    ):
        (task,) = top_k.top_k((ArrayType((64, length), dtype),), ir.Attrs({"k": k}), AVX512)
        assert (task.scratch_bytes == 0) == is_in_registers, (length, k, dtype)


@pytest.mark.parametrize("order", ["rising", "falling", "equal", "saw"])
@pytest.mark.parametrize("k", [1, 40, 500])
def test_rows_that_pass_many_or_few_elements(order: str, k: int) -> None:
    line = np.arange(20_000, dtype=np.float32)
    x = {"rising": line, "falling": line[::-1], "equal": line * 0, "saw": line % 97}[order]
    check_top_k(np.stack([x, -x]), k)


def check_top_k(x: np.ndarray, k: int) -> None:
    values, places = inf.jit(lambda x: lax.top_k(x, k))(on_device(x))
    expected, order = top_k_p.rule(primitive.REFERENCE)(x, k=k)
    np.testing.assert_array_equal(np.asarray(places), order)
    assert same_bits(values, expected)


@pytest.mark.parametrize(
    "dtype", [dtypes.float32, dtypes.int8, dtypes.uint32, dtypes.bool_, dtypes.bfloat16], ids=str
)
def test_the_decomposition_is_the_definition(dtype: np.dtype, rng: Any) -> None:
    x = random(dtype, (3, 20), rng)
    program = trace.stage(
        lambda x: top_k_p.rule(primitive.DECOMPOSE)(x, k=7), [ArrayType(x.shape, x.dtype)]
    ).program
    for found, expected in zip(
        evaluate(program, [x]), top_k_p.rule(primitive.REFERENCE)(x, k=7), strict=True
    ):
        assert same_bits(found, expected)


def test_the_smallest_come_in_rising_order() -> None:
    values, places = lax.approx_min_k(inf.numpy.array([3.0, 1.0, 2.0, 1.0]), 3)
    assert values.tolist() == [1.0, 1.0, 2.0] and places.tolist() == [1, 3, 2]
