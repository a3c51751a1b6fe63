"""Kernels of the language through the Triton emitter: the interpreter against NumPy, and the text where its
form matters.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import pytest

from infini.compiler.triton import scalar
from infini.core import dtypes
from infini.core.ir import ArrayType
from infini.tile import program as kernel_
from tests.compiler import triton_kernels as k
from tests.tile import kernels

pytest.importorskip("triton")

FLOATS = [dtypes.float32, dtypes.bfloat16, dtypes.float16]
TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-3}


def specialised(function: Any, *arrays: np.ndarray) -> kernel_.Kernel:
    return function.specialize(k.types(*arrays))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", [64, 1000, 3000])
def test_add_gelu(size: int, dtype: np.dtype, rng: Any) -> None:
    x, y = k.numbers(rng, (size,), dtype), k.numbers(rng, (size,), dtype)
    k.check(specialised(kernels.add_gelu, x, y), x, y, tolerance=TOLERANCES[dtype.name])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(5, 37), (3, 64), (1, 1)], ids=str)
def test_softmax(shape: tuple[int, int], dtype: np.dtype, rng: Any) -> None:
    x = k.numbers(rng, shape, dtype)
    k.check(specialised(kernels.softmax, x), x, tolerance=TOLERANCES[dtype.name])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("sizes", [(64, 64, 64), (70, 40, 50), (17, 130, 33)], ids=str)
def test_matmul_with_levels(sizes: tuple[int, int, int], dtype: np.dtype, rng: Any) -> None:
    m, n, inner = sizes
    x, y = k.numbers(rng, (m, inner), dtype), k.numbers(rng, (inner, n), dtype)
    kernel = specialised(kernels.matmul.configure(BM=32, BN=32, BK=16), x, y)
    k.check(kernel, x, y, tolerance=TOLERANCES[dtype.name])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rms_norm(dtype: np.dtype, rng: Any) -> None:
    x, w = k.numbers(rng, (6, 20), dtype), k.numbers(rng, (20,), dtype)
    k.check(specialised(kernels.rms_norm, x, w), x, w, tolerance=2 * TOLERANCES[dtype.name])


def test_a_batched_kernel(rng: Any) -> None:
    x, w = k.numbers(rng, (3, 6, 20), dtypes.float32), k.numbers(rng, (20,), dtypes.float32)
    kernel = specialised(kernels.rms_norm, x[0], w)
    batched = kernel_.batch_kernel(kernel, [True, False], 3)
    k.check(batched, x, w, tolerance=1e-5)


def test_tiles_that_fit_have_no_mask(rng: Any) -> None:
    x = k.numbers(rng, (2048,), dtypes.float32)
    assert "mask" not in k.source_of(specialised(kernels.add_gelu, x, x), x, x).text


def test_masks_of_a_product_are_on_the_sides_that_do_not_fit(rng: Any) -> None:
    x, y = k.numbers(rng, (64, 50), dtypes.float32), k.numbers(rng, (50, 64), dtypes.float32)
    text = k.source_of(specialised(kernels.matmul.configure(BM=32, BN=32, BK=32), x, y), x, y).text
    loads = [line for line in k.statements(text) if "tl.load" in line]
    assert all("mask=" in line and "&" not in line for line in loads)
    assert "mask" not in next(line for line in text.splitlines() if "tl.store" in line)


def test_programs_of_a_product_are_grouped_for_the_cache(rng: Any) -> None:
    x = k.numbers(rng, (256, 256), dtypes.float32)
    kernel = specialised(kernels.matmul.configure(BM=16, BN=16, BK=128), x, x)
    source = k.source_of(kernel, x, x)
    assert "height" in source.text
    seen = set()
    rows, columns = kernel.grid
    body = re.findall(r"^    (inner|first|height|g0|g1) = (.*)$", source.text, re.M)
    for pid in range(rows * columns):
        names: dict[str, Any] = {"pid": pid, "tl": type("tl", (), {"minimum": staticmethod(min)})}
        for name, expression in body:
            names[name] = eval(expression, names)  # the index arithmetic of the text
        seen.add((names["g0"], names["g1"]))
    assert seen == {(i, j) for i in range(rows) for j in range(columns)}


def test_equal_kernels_have_equal_text_and_key(rng: Any) -> None:
    x = k.numbers(rng, (4, 16), dtypes.float32)
    first, second = (k.source_of(specialised(kernels.softmax, x), x) for _ in range(2))
    assert first == second and first.key == second.key


def test_source_says_how_to_compile_and_launch_it(rng: Any) -> None:
    x = k.numbers(rng, (300, 200), dtypes.bfloat16)
    source = k.source_of(specialised(kernels.softmax, x), x)
    assert source.signature == (("rows_ptr", "*bf16"), ("y0", "*bf16")) and source.roles == ("x0", "y0")
    assert source.grid == (300,) and source.divisibility == ("rows_ptr", "y0")
    assert source.num_warps in {1, 2, 4, 8, 16}


# What tl of Triton 3.0 has among the names that the emitter writes; forks of vendors are based on it.
_TRITON_3_0 = {
    "PropagateNan", "abs", "arange", "argmax", "atomic_add", "atomic_cas", "atomic_max", "atomic_min",
    "broadcast", "broadcast_to", "ceil", "constexpr", "cos", "div_rn", "dot", "erf", "exp", "exp2",
    "floor", "fma", "full", "load", "log", "log2", "max", "maximum", "min", "minimum", "permute",
    "pointer_type", "program_id", "reduce", "reshape", "rsqrt", "sin", "sqrt", "sqrt_rn", "store",
    "sum", "trans", "where", "zeros",
}  # fmt: skip
_DTYPES = {"float32", "float16", "bfloat16", "float64", "int1"} | {
    f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)
}


def test_only_names_of_triton_3_0_are_written() -> None:
    from infini.compiler.triton import body, emit, movement, products, reductions, shapes

    texts = [
        inspect.getsource(module) for module in (body, emit, movement, products, reductions, shapes, scalar)
    ]
    names = set(re.findall(r"\btl\.(\w+)", "\n".join(texts))) - {"uint"}
    assert names <= _TRITON_3_0 | _DTYPES


def test_extents_follow_the_loads_in_the_signature() -> None:
    access = kernel_.Access((16,), ((16,),), ((1,),), (0,))
    type_ = ArrayType((64,), dtypes.float32)
    plain = k.on_tiles(lambda x: x, ArrayType((16,), dtypes.float32), grid=(4,))
    kernel = kernel_.Kernel((4,), (access,), (access,), (type_,), plain.body, extents=((0, 16, 1),))
    x = np.arange(64, dtype=np.float32)
    source = k.source_of(kernel, x, np.asarray(20, np.int32))
    assert [name for name, _ in source.signature] == ["x0", "n0", "y0"]
    k.check(kernel, x, np.asarray(20, np.int32))
