"""Sources of sorting and of cumulative operations under Triton's interpreter, against their REFERENCE rules,
and as machine code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import infini as inf
from infini.core import dtypes, ir, primitive
from infini.core.ir import ArrayType
from infini.testing import tolerances
from tests.compiler import triton_kernels as k

pytest.importorskip("triton")
from infini.compiler.triton import compile as compile_, cumulative, interpret, sorting  # after the skip
from infini.compiler.triton.source import TritonSource


def run(
    sources: Sequence[TritonSource],
    operands: Sequence[np.ndarray],
    outputs: Sequence[ArrayType],
    scratch: int,
) -> list[np.ndarray]:
    """Results of functions that run one after the other."""
    results = [np.zeros(t.shape, t.dtype) for t in outputs]
    memory = {"scratch": np.full(scratch, 0xCD, np.uint8)}
    memory |= {f"x{i}": np.ascontiguousarray(x) for i, x in enumerate(operands)}
    memory |= {f"y{i}": y for i, y in enumerate(results)}
    for source in sources:
        interpret.launch(source, [memory[name] for name, _ in source.signature])
    return results


# --- sorting --------------------------------------------------------------------------------------


def sorted_by(operands: Sequence[np.ndarray], num_keys: int) -> list[np.ndarray]:
    attrs = ir.Attrs({"num_keys": num_keys, "is_stable": True})
    types = k.types(*operands)
    return run(sorting.sort(types, attrs), operands, types, sorting.scratch_bytes(types, attrs))


def check_sort(operands: Sequence[np.ndarray], num_keys: int) -> None:
    expected = primitive.by_name("sort").rule(primitive.REFERENCE)(
        *operands, num_keys=num_keys, is_stable=True
    )
    for x, y in zip(sorted_by(operands, num_keys), expected, strict=True):
        assert x.tobytes() == np.ascontiguousarray(y).tobytes()


def numbers(dtype: np.dtype, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Elements with ties, and for floats zeros of both signs, infinities and NaN."""
    x = rng.integers(-9, 9, shape)
    if dtype not in dtypes.FLOATS:
        return x.astype(dtype)
    x = np.where(rng.random(shape) < 0.2, -0.0, x / 2).astype(dtype)
    for special in (np.inf, -np.inf, np.nan):
        x[rng.random(shape) < 0.05] = np.asarray(special).astype(dtype)
    return x


@pytest.mark.parametrize("dtype", sorted(dtypes.ALL - dtypes.COMPLEX, key=str), ids=str)
def test_short_rows(dtype: np.dtype, rng: Any) -> None:
    x = numbers(dtype, (5, 21), rng)
    places = np.broadcast_to(np.arange(21, dtype=np.int32), x.shape)
    check_sort([x, places], 1)


@pytest.mark.parametrize("shape", [(1,), (2, 2), (3, 64), (130, 3)], ids=str)
def test_rows_that_share_a_program(shape: tuple[int, ...], rng: Any) -> None:
    check_sort([numbers(dtypes.float32, shape, rng)], 1)


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.int8], ids=str)
def test_long_rows(dtype: np.dtype, rng: Any) -> None:
    x = numbers(dtype, (2, 1500), rng)
    check_sort([x, np.broadcast_to(np.arange(1500, dtype=np.int32), x.shape)], 1)


@pytest.mark.parametrize("length", [30, 1100])
def test_several_keys(length: int, rng: Any) -> None:
    keys = [numbers(dtypes.int8, (length,), rng), numbers(dtypes.bfloat16, (length,), rng)]
    check_sort([*keys, np.arange(length, dtype=np.int64)], 2)


# --- cumulative operations ------------------------------------------------------------------------


def check_cumulative(name: str, x: np.ndarray, axis: int, reverse: bool) -> None:
    attrs = ir.Attrs({"axis": axis, "reverse": reverse})
    types = k.types(x)
    scratch = cumulative.scratch_bytes(name, types, attrs)
    (found,) = run(cumulative.cumulative(name, types, attrs), [x], types, scratch)
    expected = primitive.by_name(name).rule(primitive.REFERENCE)(x, axis=axis, reverse=reverse)
    tolerances.assert_close(found, expected, "exact" if x.dtype in dtypes.INTEGERS else "contraction")


@pytest.mark.parametrize("name", sorted(cumulative.NAMES))
@pytest.mark.parametrize("reverse", [False, True])
def test_lines(name: str, reverse: bool, rng: Any) -> None:
    for shape, axis in (
        ((7,), -1),
        ((3, 20), -1),
        ((6, 5), -2),
        ((2, 5, 3), -2),
        ((4, 2500), -1),
        ((1, 4), -2),
    ):
        check_cumulative(name, rng.uniform(0.5, 1.25, shape).astype(np.float32), axis, reverse)


@pytest.mark.parametrize(
    "dtype", [dtypes.bfloat16, dtypes.float16, dtypes.float64, dtypes.int8, dtypes.uint32], ids=str
)
@pytest.mark.parametrize("name", ["cumsum", "cumprod", "cummax", "cummin"])
def test_dtypes_of_lines(name: str, dtype: np.dtype, rng: Any) -> None:
    check_cumulative(name, rng.integers(1, 4, (3, 9)).astype(dtype), -1, False)


@pytest.mark.parametrize(("shape", "axis"), [((9000,), -1), ((9000, 3), -2)], ids=str)
@pytest.mark.parametrize("name", ["cumsum", "cumlogsumexp", "cummin"])
def test_long_lines_in_blocks(name: str, shape: tuple[int, ...], axis: int, rng: Any) -> None:
    x = rng.integers(0, 3, shape).astype(np.int32)
    x = x / np.float32(4) if name == "cumlogsumexp" else x
    plan = cumulative.layout(ArrayType(shape, x.dtype), axis)
    assert plan.num_blocks > 1
    check_cumulative(name, x.astype(np.float32) if name == "cumlogsumexp" else x, axis, True)


def test_infinities_in_log_sums() -> None:
    x = np.array([-np.inf, -np.inf, 1.0, 1000.0, -1000.0, np.inf, 2.0], np.float32)
    check_cumulative("cumlogsumexp", x, -1, False)


# --- machine code ---------------------------------------------------------------------------------


@pytest.fixture
def own_cache(tmp_path_factory: Any, monkeypatch: Any) -> Any:
    """Caches of this run only: ours, and Triton's."""
    folder = tmp_path_factory.getbasetemp() / "cubins"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder / "triton"))
    with inf.config(cache_dir=str(folder)):
        yield


def test_sources_compile(own_cache: Any) -> None:
    short, long = ArrayType((64, 16), dtypes.float32), ArrayType((2, 5000), dtypes.bfloat16)
    keys = ir.Attrs({"num_keys": 1, "is_stable": True})
    along = ir.Attrs({"axis": -1, "reverse": True})
    sources = [
        *sorting.sort([short], keys),
        *sorting.sort([long, long], keys),
        *cumulative.cumulative("cumsum", [long], along),
        *cumulative.cumulative("cumlogsumexp", [short], along),
    ]
    for source in {s.key: s for s in sources}.values():
        assert compile_.compile_source(source, 80).code
