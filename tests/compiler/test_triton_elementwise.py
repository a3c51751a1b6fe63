"""Elementwise operations of emitted kernels under Triton's interpreter, against NumPy."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from infini.compiler.triton import scalar
from infini.core import dtypes, primitive, trace
from infini.core.ir import ArrayType
from infini.lax import elementwise as e
from infini.lax.cases import Span
from tests.compiler import triton_kernels as k

pytest.importorskip("triton")

from infini.compiler.triton import interpret  # after the skip

_CONVERSIONS = {"convert_element_type", "bitcast_convert_type"}
_ON_COMPLEX = {"real", "imag", "complex", "conj"}  # what a pass replaces by operations on pairs
_DTYPES = [
    dtypes.float32, dtypes.bfloat16, dtypes.float16, dtypes.float64,
    dtypes.int32, dtypes.int8, dtypes.int64, dtypes.uint32, dtypes.uint8, dtypes.bool_,
    dtypes.float8_e4m3fn, dtypes.float8_e5m2,
]  # fmt: skip
_BY_RULE = [
    dtypes.float32, dtypes.bfloat16, dtypes.float8_e4m3fn, dtypes.float64,
    dtypes.int32, dtypes.int8, dtypes.uint32, dtypes.bool_,
]  # fmt: skip
# Dtypes of operations without a rule, whose definitions are made of those that have one.
_BY_DEFINITION = [dtypes.float32, dtypes.float64, dtypes.int32]
# Differences from NumPy in float32: its functions and those of the helpers are good to a few units in the
# last place.
_TOLERANCES = {
    "float32": 2e-6, "float16": 1e-3, "bfloat16": 1e-2, "float64": 1e-12,
    "float8_e4m3fn": 0.13, "float8_e5m2": 0.26,
}  # fmt: skip
# Operations that give what NumPy gives at their edges too; others may differ in the last place or in NaN.
_EDGES = frozenset({
    e.abs_p, e.sign_p, e.floor_p, e.ceil_p, e.round_even_p, e.round_away_p, e.is_finite_p, e.max_p, e.min_p,
    e.clamp_p, e.atan_p, e.atan2_p, e.asin_p, e.acos_p, e.sinh_p, e.cosh_p, e.acosh_p, e.cbrt_p, e.erfc_p,
})  # fmt: skip


def _cases() -> list[Any]:
    """Operation and dtype, for every elementwise operation with a Triton route that takes the dtype."""
    found = []
    for name, op in sorted(primitive.all_primitives().items()):
        if not op.has(primitive.SCALAR) or name in _CONVERSIONS | _ON_COMPLEX:
            continue
        assert name in scalar.RULES or op.has(primitive.DECOMPOSE), name
        allowed = op.rule(primitive.CASES).dtypes
        tried = _BY_RULE if name in scalar.RULES else _BY_DEFINITION
        found += [pytest.param(op, d, id=f"{name}-{d.name}") for d in tried if d in allowed]
    return found


def _tolerance(op: primitive.Primitive, dtype: np.dtype) -> float:
    if op is e.erf_inv_p and dtype == dtypes.float64:
        return 1e-7  # the interpreter's erf is of float32
    return _TOLERANCES.get(dtype.name, 0.0)


@pytest.mark.parametrize(("op", "dtype"), _cases())
def test_elementwise_operation(op: primitive.Primitive, dtype: np.dtype, rng: np.random.Generator) -> None:
    for case in op.rule(primitive.CASES).examples(dtype)[:2]:
        if not case.is_smooth and op not in _EDGES:
            continue
        arrays = case.draw(dtype, rng)
        kernel = k.on_tiles(functools.partial(trace.bind1, op, **case.attrs), *k.types(*arrays))
        k.check(kernel, *arrays, tolerance=_tolerance(op, dtype))


@pytest.mark.parametrize("target", _DTYPES, ids=str)
@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
def test_conversion(dtype: np.dtype, target: np.dtype, rng: np.random.Generator) -> None:
    x = k.numbers(rng, (64,), dtype, Span(-200.0, 200.0))
    kernel = k.on_tiles(lambda x: trace.bind1(e.convert_element_type_p, x, new_dtype=target), *k.types(x))
    k.check(kernel, x)


@pytest.mark.parametrize("target", [dtypes.int32, dtypes.int8, dtypes.uint8, dtypes.uint32], ids=str)
def test_floats_become_integers_saturating_and_nan_becomes_0(target: np.dtype) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1e20, -1e20, -0.9, 0.9, 300.0], np.float32)
    kernel = k.on_tiles(lambda x: trace.bind1(e.convert_element_type_p, x, new_dtype=target), *k.types(x))
    k.check(kernel, x)


@pytest.mark.parametrize(
    ("dtype", "target"),
    [(dtypes.float32, dtypes.int32), (dtypes.int32, dtypes.float32), (dtypes.bfloat16, dtypes.uint16)],
    ids=str,
)
def test_bitcast(dtype: np.dtype, target: np.dtype, rng: np.random.Generator) -> None:
    x = k.numbers(rng, (32,), dtype)
    kernel = k.on_tiles(lambda x: trace.bind1(e.bitcast_convert_type_p, x, new_dtype=target), *k.types(x))
    k.check(kernel, x)


@pytest.mark.parametrize("dtype", [dtypes.float8_e4m3fn, dtypes.float8_e5m2], ids=str)
def test_every_float8_and_every_tie(dtype: np.dtype) -> None:
    codes = np.arange(256, dtype=np.uint8).view(dtype)
    numbers = np.sort(codes[np.isfinite(codes.astype(np.float32))].astype(np.float32))
    ties = (numbers[1:] + numbers[:-1]) / 2
    far = np.array([464, 465, 61440, 61439, 1e30, -1e30, np.inf, -np.inf, np.nan, 1e-30], np.float32)
    x = np.concatenate(
        [ties, np.nextafter(ties, np.float32(-1e30)), np.nextafter(ties, np.float32(1e30)), far]
    )
    for source, target in ((codes, dtypes.float32), (x, dtype)):
        convert = functools.partial(trace.bind1, e.convert_element_type_p, new_dtype=target)
        with np.errstate(all="ignore"):
            k.check(k.on_tiles(convert, *k.types(source)), source)


_SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 1e-30], np.float32)


@pytest.mark.parametrize(
    "op",
    [e.tanh_p, e.exp_p, e.sign_p, e.round_even_p, e.is_finite_p, e.abs_p, e.floor_p, e.logistic_p, e.log1p_p],
    ids=str,
)
def test_special_values(op: primitive.Primitive) -> None:
    kernel = k.on_tiles(functools.partial(trace.bind1, op), *k.types(_SPECIAL))
    k.check(kernel, _SPECIAL, tolerance=1e-6)


@pytest.mark.parametrize("op", [e.max_p, e.min_p, e.pow_p, e.rem_p], ids=str)
def test_special_values_of_two_operands(op: primitive.Primitive) -> None:
    # The remainder is exact for quotients up to 2^24 only, so the tiny number stays out.
    numbers = _SPECIAL[:-1] if op is e.rem_p else _SPECIAL
    x, y = (np.ascontiguousarray(a.reshape(-1)) for a in np.meshgrid(numbers, numbers))
    kernel = k.on_tiles(functools.partial(trace.bind1, op), *k.types(x, y))
    k.check(kernel, x, y, tolerance=1e-5)


def test_negative_numbers_to_whole_powers() -> None:
    x = np.repeat(np.array([-2.0, -0.5, 3.0], np.float32), 4)
    y = np.tile(np.array([2.0, 3.0, -1.0, 0.5], np.float32), 3)
    k.check(k.on_tiles(functools.partial(trace.bind1, e.pow_p), *k.types(x, y)), x, y, tolerance=1e-6)


def test_a_constant_to_the_power_of_a_tile() -> None:
    y = np.arange(8, dtype=np.float32)
    kernel = k.on_tiles(lambda y: trace.bind1(e.pow_p, np.float32(10.0), y), *k.types(y))
    k.check(kernel, y, tolerance=1e-5)


def test_integer_division_by_zero_gives_minus_one_and_remainder_keeps_the_dividend() -> None:
    x, y = np.array([7, -7, 0, 9], np.int32), np.array([0, 2, 0, -4], np.int32)
    k.check(k.on_tiles(lambda x, y: (e.div(x, y), e.rem(x, y)), *k.types(x, y)), x, y)


def test_shifts_beyond_the_width_give_zero() -> None:
    x = np.array([-1, -1, 5, 5], np.int32)
    y = np.array([31, 32, -1, 2], np.int32)
    k.check(k.on_tiles(lambda x, y: (e.shift_left(x, y), e.shift_right_logical(x, y)), *k.types(x, y)), x, y)


def test_bfloat16_is_rounded_after_every_operation(rng: np.random.Generator) -> None:
    x = k.numbers(rng, (256,), dtypes.bfloat16)
    kernel = k.on_tiles(lambda x: e.add(e.mul(x, x), e.mul(x, 3.0)), *k.types(x))
    k.check(kernel, x)


def test_operands_broadcast_as_numpy_does(rng: np.random.Generator) -> None:
    x, y, z = (k.numbers(rng, shape, dtypes.float32) for shape in ((5, 1), (24,), ()))
    kernel = k.on_tiles(
        lambda x, y, z: trace.bind1(e.mul_p, trace.bind1(e.add_p, x, y), z), *k.types(x, y, z)
    )
    assert kernel.outputs == (ArrayType((5, 24), dtypes.float32),)
    k.check(kernel, x, y, z, tolerance=1e-6)


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float64], ids=str)
def test_remainders_are_exact_for_every_exponent_and_keep_the_sign_of_zero(dtype: np.dtype) -> None:
    """NumPy's fmod is exact; that of 1e30 by 7 has a quotient of more bits than a significand."""
    info, rng = np.finfo(dtype), np.random.default_rng(0)
    exponents = rng.integers(info.minexp - info.nmant, info.maxexp, (2, 768))
    special = np.array(
        [0.0, -0.0, 1, -1, 2, 7, -4, np.inf, -np.inf, np.nan, 1e30, 3.5, info.max, info.tiny,
         info.smallest_subnormal, -info.smallest_subnormal], dtype,
    )  # fmt: skip
    x, y = np.ldexp(rng.uniform(-2, 2, (2, 768)).astype(dtype), exponents)
    x = np.concatenate([x, np.repeat(special, 16)])
    y = np.concatenate([y, np.tile(special, 16)])
    kernel = k.on_tiles(e.rem, *k.types(x, y))
    (found,) = interpret.interpret(k.source_of(kernel, x, y), [x, y], [ArrayType(x.shape, dtype)])
    with np.errstate(all="ignore"):
        wanted = np.fmod(x, y)
    np.testing.assert_array_equal(found, wanted)
    is_number = ~np.isnan(wanted)
    np.testing.assert_array_equal(np.signbit(found)[is_number], np.signbit(wanted)[is_number])
