"""Every elementwise operation of every dtype by native code, against the NumPy oracle."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest

from infini.compiler.llvm import operations, registers
from infini.core import dtypes, primitive, trace
from infini.core.ir import ArrayType
from infini.lax import elementwise as e
from tests.compiler import llvm_kernels as k

SIZE = 41  # two vectors and a tail
# Relative to the value or 1; measured bounds of single functions are in test_llvm_math.
TOLERANCES = {"float32": 2e-6, "float64": 1e-13, "bfloat16": 8e-3}
# The oracle tests try every dtype.
TRIED = (dtypes.float32, dtypes.bfloat16, dtypes.int32, dtypes.bool_)
NAMES_OF_SPECIAL = [
    "add",
    "mul",
    "div",
    "max",
    "min",
    "abs",
    "neg",
    "sign",
    "floor",
    "ceil",
    "round_even",
    "round_away",
    "is_finite",
    "exp",
    "log",
    "log1p",
    "expm1",
    "tanh",
    "logistic",
    "sqrt",
    "rsqrt",
    "erf",
    "eq",
    "lt",
    "ge",
    "ne",
    "exp2",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "atan2",
    "sinh",
    "cosh",
    "asinh",
    "acosh",
    "atanh",
    "cbrt",
    "pow",
    "erfc",
    "erf_inv",
    "lgamma",
    "digamma",
    "bessel_i0e",
    "bessel_i1e",
]
SPECIAL = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-30, 3e38, 0.5, 1.5, 2.5]


def elementwise_operations() -> list[tuple[str, np.dtype]]:
    found = []
    for name, op in sorted(primitive.all_primitives().items()):
        if name in operations.NAMES and not name.endswith("convert_type") and name != "convert_element_type":
            found += [(name, d) for d in TRIED if d in op.rule(primitive.CASES).dtypes]
    return found


@pytest.mark.parametrize("name, dtype", elementwise_operations(), ids=str)
def test_elementwise_operation(name: str, dtype: np.dtype, rng: np.random.Generator) -> None:
    op = primitive.by_name(name)
    case = op.rule(primitive.CASES).examples(dtype)[0]
    # As many elements as make two vectors and a tail, which the examples of the oracle tests do not.
    long = dataclasses.replace(
        case, operands=tuple(dataclasses.replace(x, shape=(SIZE,)) for x in case.operands)
    )
    arrays = long.draw(dtype, rng)
    if dtype in dtypes.INTEGERS:
        info = np.iinfo(dtype)
        arrays[0][:2] = info.min, info.max
    kernel = k.on_tiles(lambda *xs: trace.bind1(op, *xs[: len(arrays)], **case.attrs), *k.types(*arrays))
    k.check(kernel, *arrays, tolerance=TOLERANCES.get(dtype.name, 0.0))


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float64], ids=str)
@pytest.mark.parametrize("name", NAMES_OF_SPECIAL)
def test_special_values(name: str, dtype: np.dtype) -> None:
    op = primitive.by_name(name)
    a, b = np.meshgrid(np.array(SPECIAL, dtype), np.array(SPECIAL, dtype))
    arrays = [a.reshape(-1), b.reshape(-1)][: len(op.signature.inputs)]  # type: ignore[union-attr]
    kernel = k.on_tiles(lambda *xs: trace.bind1(op, *xs[: len(arrays)]), *k.types(*arrays))
    k.check(kernel, *arrays, tolerance=TOLERANCES[dtype.name])


@pytest.mark.parametrize(
    "name", ["sin", "tan", "sinh", "asin", "atan", "asinh", "atanh", "cbrt", "erf", "erf_inv"]
)
@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float64], ids=str)
def test_odd_functions_keep_the_sign_of_zero(name: str, dtype: np.dtype) -> None:
    x = np.array([0.0, -0.0] * 20, dtype)
    op = primitive.by_name(name)
    (found,) = k.run(k.on_tiles(lambda x: trace.bind1(op, x), *k.types(x)), x)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(x))


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float64], ids=str)
def test_subnormal_numbers_are_numbers(dtype: np.dtype) -> None:
    x = np.arange(1, 41, dtype=dtype) * np.finfo(dtype).smallest_subnormal
    for name in ("log", "sqrt", "cbrt", "atan", "asinh", "expm1", "log1p", "sin", "erf", "lgamma"):
        op = primitive.by_name(name)
        kernel = k.on_tiles(functools.partial(trace.bind1, op), *k.types(x))
        with np.errstate(all="ignore"):
            expected = op.rule(primitive.REFERENCE)(x)
        np.testing.assert_allclose(k.run(kernel, x)[0], expected, rtol=4 * np.finfo(dtype).eps, atol=x[0])


@pytest.mark.parametrize("source", sorted(registers.SUPPORTED, key=str), ids=str)
def test_conversions(source: np.dtype, rng: np.random.Generator) -> None:
    targets = sorted(registers.SUPPORTED, key=str)
    x = rng.uniform(-300, 300, SIZE)
    if source in dtypes.INTEGERS:
        info = np.iinfo(source)
        x = x.clip(info.min, info.max).astype(source)
        x[:2] = info.min, info.max
    else:
        x = (x > 0) if source == dtypes.bool_ else x.astype(source)
        if source in dtypes.FLOATS:
            x[:6] = np.nan, np.inf, -np.inf, 60000.0, -0.5, 2.5

    def convert(x: Any) -> Any:
        return tuple(trace.bind1(e.convert_element_type_p, x, new_dtype=d) for d in targets)

    k.check(k.on_tiles(convert, ArrayType(x.shape, source)), x, tolerance=1e-6)


@pytest.mark.parametrize(
    "source, target",
    [("f32", "i32"), ("i32", "f32"), ("f16", "u16"), ("i16", "bf16"), ("f64", "u64"), ("bf16", "f16")],
)
def test_bitcast(source: str, target: str, rng: np.random.Generator) -> None:
    a, b = dtypes.BY_SHORT_NAME[source], dtypes.BY_SHORT_NAME[target]
    x = rng.uniform(1, 100, SIZE).astype(a)
    kernel = k.on_tiles(
        lambda x: trace.bind1(e.bitcast_convert_type_p, x, new_dtype=b), ArrayType(x.shape, a)
    )
    (found,) = k.run(kernel, x)
    np.testing.assert_array_equal(found.view(np.uint8), x.view(np.uint8))


def test_operands_broadcast_like_numpy(rng: np.random.Generator) -> None:
    x, y, z = (rng.standard_normal(s).astype(np.float32) for s in ((5, 1, 7), (3, 1), ()))
    kernel = k.on_tiles(
        lambda x, y, z: trace.bind1(e.add_p, trace.bind1(e.mul_p, x, y), z), *k.types(x, y, z)
    )
    k.check(kernel, x, y, z)


def test_rounding_of_bfloat16_follows_every_operation(rng: np.random.Generator) -> None:
    x, y = (rng.standard_normal(200).astype(dtypes.bfloat16) for _ in range(2))

    def chain(x: Any, y: Any) -> Any:
        z = trace.bind1(e.mul_p, trace.bind1(e.add_p, x, y), y)
        return trace.bind1(e.div_p, trace.bind1(e.sub_p, z, x), y)

    k.check(k.on_tiles(chain, *k.types(x, y)), x, y)


def test_division_by_zero_and_of_the_smallest_integer() -> None:
    x = np.array([-(2**31), -(2**31), 7, -7, 0, 5], np.int32)
    y = np.array([-1, 0, 0, 2, 3, -1], np.int32)
    kernel = k.on_tiles(lambda x, y: (trace.bind1(e.div_p, x, y), trace.bind1(e.rem_p, x, y)), *k.types(x, y))
    k.check(kernel, x, y)
