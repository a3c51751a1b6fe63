"""Every elementwise operation of every dtype by native code, against the NumPy oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from infini.compiler.llvm import operations, registers
from infini.core import dtypes, primitive, trace
from infini.core.ir import ArrayType
from infini.lax import elementwise as e
from infini.lax.families import Span
from tests.compiler import llvm_kernels as k

SIZE = 41  # two vectors and a tail
# Relative to the value or 1; measured bounds of single functions are in test_llvm_math.
TOLERANCES = {"float32": 2e-6, "float64": 1e-13, "bfloat16": 8e-3, "float16": 1e-3}
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
]
SPECIAL = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-30, 3e38, 0.5, 1.5, 2.5]


def elementwise_operations() -> list[tuple[str, np.dtype]]:
    found = []
    for name, op in sorted(primitive.all_primitives().items()):
        if name in operations.NAMES and not name.endswith("convert_type") and name != "convert_element_type":
            allowed, _ = op.rule(primitive.CASES)
            found += [(name, d) for d in sorted(allowed & registers.SUPPORTED, key=str)]
    return found


def inputs(name: str, dtype: np.dtype, rng: np.random.Generator) -> list[np.ndarray]:
    op = primitive.by_name(name)
    spans: tuple[Span, ...] = op.rule(primitive.CASES)[1]
    arrays = [rng.uniform(span.low, span.high, SIZE) for span in spans]
    if name == "select_n":
        return [arrays[0] > 0, arrays[1].astype(dtype), arrays[2].astype(dtype)]
    if dtype in dtypes.INTEGERS:
        info = np.iinfo(dtype)
        arrays = [np.where(np.arange(SIZE) % 5 == 0, 0, x) for x in arrays]
        out = [x.astype(np.int64).clip(info.min, info.max).astype(dtype) for x in arrays]
        out[0][:2] = info.min, info.max
        return out
    return [(x > 0) if dtype == dtypes.bool_ else x.astype(dtype) for x in arrays]


@pytest.mark.parametrize("name, dtype", elementwise_operations(), ids=str)
def test_elementwise_operation(name: str, dtype: np.dtype, rng: np.random.Generator) -> None:
    arrays = inputs(name, dtype, rng)
    op = primitive.by_name(name)
    kernel = k.on_tiles(lambda *xs: trace.bind1(op, *xs[: len(arrays)]), *k.types(*arrays))
    k.check(kernel, *arrays, tolerance=TOLERANCES.get(dtype.name, 0.0))


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float64], ids=str)
@pytest.mark.parametrize("name", NAMES_OF_SPECIAL)
def test_special_values(name: str, dtype: np.dtype) -> None:
    op = primitive.by_name(name)
    a, b = np.meshgrid(np.array(SPECIAL, dtype), np.array(SPECIAL, dtype))
    arrays = [a.reshape(-1), b.reshape(-1)][: len(op.signature.inputs)]  # type: ignore[union-attr]
    kernel = k.on_tiles(lambda *xs: trace.bind1(op, *xs[: len(arrays)]), *k.types(*arrays))
    k.check(kernel, *arrays, tolerance=TOLERANCES[dtype.name])


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
