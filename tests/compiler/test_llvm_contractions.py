"""Contractions by native code against np.einsum: every route, edges of blocks, strides, batches, dtypes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini.compiler.llvm import contraction, gemm
from infini.compiler.llvm.target import host_target
from infini.core import dtypes
from infini.core.ir import ArrayType
from tests.compiler import llvm_kernels as k

TOLERANCES = {"float32": 2e-6, "float64": 1e-14, "bfloat16": 8e-3, "float16": 1e-3}
FLOATS = [dtypes.float32, dtypes.float64, dtypes.bfloat16, dtypes.float16]


def check(
    spec: str, x_shape: tuple[int, ...], y_shape: tuple[int, ...], dtype: np.dtype, rng: np.random.Generator
) -> None:
    if dtype in dtypes.FLOATS:
        x, y = (rng.standard_normal(shape).astype(dtype) for shape in (x_shape, y_shape))
    elif dtype == dtypes.bool_:
        x, y = (rng.random(shape) < 0.2 for shape in (x_shape, y_shape))
    else:
        x, y = (rng.integers(-50, 50, shape).astype(dtype) for shape in (x_shape, y_shape))
    wide = np.float64 if dtype in dtypes.FLOATS else dtype
    a, b, out = contraction.contraction.parse_spec(spec)
    wanted = np.einsum(f"...{a},...{b}->...{out}", x.astype(wide), y.astype(wide))
    found = k.contract(spec, x, y).astype(wide)
    scale = max(1.0, float(np.abs(wanted.astype(np.float64)).max(initial=0)))
    difference = np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max(initial=0)
    assert found.shape == wanted.shape
    assert difference <= TOLERANCES.get(dtype.name, 0.0) * scale


@pytest.mark.parametrize("m", [1, 4, 5, 12, 13, 97, 130])
@pytest.mark.parametrize("n", [1, 4, 31, 32, 33, 100])
@pytest.mark.parametrize("depth", [1, 3, 64, 70])
def test_matrix_product_of_every_size(m: int, n: int, depth: int, rng: np.random.Generator) -> None:
    check("mk,kn->mn", (m, depth), (depth, n), dtypes.float32, rng)


@pytest.mark.parametrize(
    "spec", ["mk,kn->mn", "mk,nk->mn", "km,kn->mn", "km,nk->mn", "mk,kn->nm", "km,nk->nm"]
)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_blocks_over_several_depths_and_columns(spec: str, dtype: np.dtype, rng: np.random.Generator) -> None:
    sizes = {"m": 203, "k": 530, "n": 571}
    a, b, _ = contraction.contraction.parse_spec(spec)
    check(spec, tuple(sizes[c] for c in a), tuple(sizes[c] for c in b), dtype, rng)


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.bfloat16, dtypes.int32], ids=str)
@pytest.mark.parametrize("spec, x, y", [
    ("mk,kn->mn", (3, 40, 20), (20, 50)),
    ("mk,kn->mn", (40, 20), (3, 20, 50)),
    ("mk,kn->mn", (2, 1, 9, 20), (5, 20, 33)),
    ("bthd,bshd->bhts", (2, 33, 4, 32), (2, 40, 4, 32)),
    ("bhts,bshd->bthd", (2, 4, 33, 40), (2, 40, 4, 32)),
    ("bhts,bthd->bshd", (2, 4, 33, 40), (2, 33, 4, 32)),
    ("mab,abn->mn", (31, 5, 6), (5, 6, 30)),
    ("mab,ban->mn", (31, 5, 6), (6, 5, 30)),
    ("abk,kn->nab", (6, 7, 40), (40, 50)),
    ("ab,cd->abcd", (5, 6), (7, 8)),
    ("k,k->", (100,), (100,)),
    ("mk,k->m", (9, 50), (50,)),
    ("bk,bk->b", (9, 50), (9, 50)),
    ("bmk,bkn->mbn", (3, 20, 12), (3, 12, 40)),
    ("bk,bkn->bn", (6, 20), (6, 20, 40)),
    ("mk,kn->mn", (5, 1), (1, 7)),
])  # fmt: skip
def test_letters_and_loops(
    spec: str, x: tuple[int, ...], y: tuple[int, ...], dtype: np.dtype, rng: np.random.Generator
) -> None:
    check(spec, x, y, dtype, rng)


@pytest.mark.parametrize("dtype", [dtypes.int8, dtypes.uint16, dtypes.int64, dtypes.bool_], ids=str)
def test_integers_and_bool(dtype: np.dtype, rng: np.random.Generator) -> None:
    check("mk,kn->mn", (9, 30), (30, 140), dtype, rng)


def any_bytes(shape: tuple[int, ...], dtype: np.dtype, rng: np.random.Generator) -> np.ndarray:
    """Bytes of every value, and whole rows of the extreme ones."""
    info = np.iinfo(dtype)
    x = rng.integers(info.min, info.max + 1, shape).astype(dtype)
    x[..., 0, :], x[..., -1, :] = info.min, info.max
    return x


@pytest.mark.parametrize("spec", ["mk,kn->mn", "mk,nk->mn", "km,kn->mn", "km,nk->mn", "mk,kn->nm"])
@pytest.mark.parametrize("x_dtype", [dtypes.int8, dtypes.uint8], ids=str)
@pytest.mark.parametrize("y_dtype", [dtypes.int8, dtypes.uint8], ids=str)
@pytest.mark.parametrize("m, depth, n", [(5, 64, 33), (97, 1031, 130), (20, 3, 9), (130, 4100, 40)])
def test_products_of_bytes_are_exact(
    spec: str, x_dtype: np.dtype, y_dtype: np.dtype, m: int, depth: int, n: int, rng: np.random.Generator
) -> None:
    sizes = {"m": m, "k": depth, "n": n}
    a, b, _ = contraction.contraction.parse_spec(spec)
    x = any_bytes(tuple(sizes[c] for c in a), x_dtype, rng)
    y = any_bytes(tuple(sizes[c] for c in b), y_dtype, rng)
    wanted = np.einsum(spec, x.astype(np.float64), y.astype(np.float64), optimize=True)  # exact below 2**53
    np.testing.assert_array_equal(k.contract(spec, x, y, np.int32), wanted.astype(np.int64).astype(np.int32))


@pytest.mark.parametrize("x_shape, y_shape", [((3, 40, 70), (3, 70, 50)), ((3, 9, 70), (70, 50))])
def test_batches_of_products_of_bytes(
    x_shape: tuple[int, ...], y_shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    x, y = any_bytes(x_shape, dtypes.int8, rng), any_bytes(y_shape, dtypes.int8, rng)
    wanted = np.matmul(x.astype(np.int32), y.astype(np.int32))
    np.testing.assert_array_equal(k.contract("mk,kn->mn", x, y, np.int32), wanted)


@pytest.mark.parametrize("x_dtype, y_dtype, dtype", [
    (dtypes.int16, dtypes.int16, dtypes.int32),
    (dtypes.int32, dtypes.int32, dtypes.int32),
    (dtypes.uint32, dtypes.uint32, dtypes.uint32),
    (dtypes.int8, dtypes.int8, dtypes.int64),
    (dtypes.int64, dtypes.int64, dtypes.int64),
    (dtypes.int8, dtypes.int16, dtypes.int32),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("y_spec", ["kn", "nk"])
def test_blocked_products_of_integers_wrap_around(
    x_dtype: np.dtype, y_dtype: np.dtype, dtype: np.dtype, y_spec: str, rng: np.random.Generator
) -> None:
    sizes = {"k": 531, "n": 130}
    x, y = any_bytes((70, 531), x_dtype, rng), any_bytes(tuple(sizes[c] for c in y_spec), y_dtype, rng)
    wanted = np.matmul(x.astype(dtype), (y if y_spec == "kn" else y.T).astype(dtype))
    np.testing.assert_array_equal(k.contract(f"mk,{y_spec}->mn", x, y, dtype), wanted)


def test_bytes_are_multiplied_four_at_a_time_where_the_processor_can() -> None:
    x, y = ArrayType((64, 128), dtypes.int8), ArrayType((128, 96), dtypes.int8)
    target = dataclasses.replace(host_target(), features="+avx512vnni", lanes=16, num_registers=32)
    phases = gemm.emit_contraction(x, y, spec="mk,kn->mn", dtype=dtypes.int32, target=target)
    assert "vpdpbusd" in phases[-1].text
    target = dataclasses.replace(target, features="")
    phases = gemm.emit_contraction(x, y, spec="mk,kn->mn", dtype=dtypes.int32, target=target)
    assert "vpdpbusd" not in phases[-1].text


@pytest.mark.parametrize("rows", [1, 3, 8, 15, 27, 36])
@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float64, dtypes.bfloat16], ids=str)
def test_few_rows_times_a_large_matrix(rows: int, dtype: np.dtype, rng: np.random.Generator) -> None:
    check("mk,kn->mn", (rows, 1031), (1031, 2051), dtype, rng)
    check("mk,nk->mn", (rows, 1030), (1051, 1030), dtype, rng)


@pytest.mark.parametrize("rows", [1, 2, 8])
@pytest.mark.parametrize("dtype", [dtypes.bfloat16, dtypes.float16], ids=str)
def test_few_rows_times_a_matrix_of_small_floats_with_contiguous_k(
    rows: int, dtype: np.dtype, rng: np.random.Generator
) -> None:
    """Pairs where the length is even, and what is left of a row after several registers."""
    for depth in (1030, 1029):
        check("mk,nk->mn", (rows, depth), (1051, depth), dtype, rng)


@pytest.mark.parametrize("rows, depth, columns", [(2, 3, 350_000), (20, 5, 210_011), (9, 70_003, 17)])
def test_few_rows_times_a_flat_or_a_high_matrix(
    rows: int, depth: int, columns: int, rng: np.random.Generator
) -> None:
    check("mk,kn->mn", (rows, depth), (depth, columns), dtypes.float32, rng)


@pytest.mark.parametrize("rows, is_packed", [(8, False), (16, False), (36, False), (37, True)])
def test_few_rows_pack_nothing(rows: int, is_packed: bool) -> None:
    x, y = ArrayType((rows, 4096), dtypes.float32), ArrayType((4096, 4096), dtypes.float32)
    spec, target = "mk,kn->mn", host_target()
    assert (gemm.blocked(x, y, spec=spec, dtype=dtypes.float32, target=target) is not None) == is_packed


@pytest.mark.parametrize("rows", [20, 150])
@pytest.mark.parametrize("y_spec", ["kn", "nk"])
def test_tiles_that_ask_for_what_they_pack_next(rows: int, y_spec: str, rng: np.random.Generator) -> None:
    sizes = {"k": 530, "n": 1001}
    check(f"mk,{y_spec}->mn", (rows, 530), tuple(sizes[c] for c in y_spec), dtypes.float32, rng)


@pytest.mark.parametrize("spec", ["mk,kn->mn", "mk,nk->mn", "km,kn->mn", "km,nk->mn", "bmk,bnk->bmn"])
@pytest.mark.parametrize("depth", [2, 31, 32, 700])
def test_pairs_of_bfloat16_in_every_order(spec: str, depth: int, rng: np.random.Generator) -> None:
    sizes = {"b": 2, "m": 61, "k": depth, "n": 75}
    a, b, _ = contraction.contraction.parse_spec(spec)
    shapes = (tuple(sizes[c] for c in a), tuple(sizes[c] for c in b))
    check(spec, *shapes, dtypes.bfloat16, rng)


def test_a_product_reads_narrow_operands_as_they_are(rng: np.random.Generator) -> None:
    """A weight in bfloat16 is widened on the way: there is no kernel that makes float32 of it."""
    x = rng.standard_normal((40, 64)).astype(np.float32)
    w = rng.standard_normal((96, 64)).astype(dtypes.bfloat16)
    compiled = infini.jit(lambda x, w: x @ w.astype(inp.float32).T).lower(x, w).compile()
    steps = compiled.runtime_executable().block.steps
    assert [step.name.partition(" ")[0] for step in steps] == ["dot"]
    wanted = x.astype(np.float64) @ w.astype(np.float64).T
    np.testing.assert_allclose(compiled(x, w), wanted, rtol=1e-5, atol=1e-5)


def test_attention_of_widened_operands_is_found_all_the_same(rng: np.random.Generator) -> None:
    q, k_, v = (rng.standard_normal((2, 3, 40, 16)).astype(dtypes.bfloat16) for _ in range(3))

    def attend(q: Any, k: Any, v: Any) -> Any:
        q, k, v = (x.astype(inp.float32) for x in (q, k, v))
        scores = inp.einsum("bhtd,bhsd->bhts", q, k) * 0.25
        return inp.einsum("bhts,bhsd->bhtd", infini.nn.softmax(scores), v)

    compiled = infini.jit(attend).lower(q, k_, v).compile()
    names = [getattr(step, "name", "") for step in compiled.runtime_executable().block.steps]
    assert names[-1] == "attention"


def test_result_of_another_dtype(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((50, 64)), rng.standard_normal((64, 40))
    found = k.contract("mk,kn->mn", x.astype(dtypes.bfloat16), y.astype(dtypes.bfloat16), np.float32)
    wanted = x.astype(dtypes.bfloat16).astype(np.float64) @ y.astype(dtypes.bfloat16).astype(np.float64)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_contraction_over_nothing_is_zero() -> None:
    found = k.contract("mk,kn->mn", np.zeros((3, 0), np.float32), np.zeros((0, 4), np.float32))
    np.testing.assert_array_equal(found, np.zeros((3, 4)))


def test_empty_result_has_no_tasks() -> None:
    x, y = ArrayType((0, 4), dtypes.float32), ArrayType((4, 5), dtypes.float32)
    phases = gemm.emit_contraction(x, y, spec="mk,kn->mn", dtype=dtypes.float32, target=host_target())
    assert sum(p.num_tasks for p in phases) == 0


def test_loops_shared_by_one_operand_join_its_rows() -> None:
    x, y = ArrayType((8, 16, 32), dtypes.float32), ArrayType((32, 64), dtypes.float32)
    problem = contraction.analyse(x, y, "mk,kn->mn")
    assert (problem.batch, problem.m.size, problem.n.size) == ((), 128, 64)
