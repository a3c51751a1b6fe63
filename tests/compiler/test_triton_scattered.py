"""Kernels that write results at run-time places, on a stand-in for a GPU that runs Triton's interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from infini.core import dtypes
from infini.core.backend import CompileOptions, Device
from infini.core.ir import ArrayType
from tests.tile import scatter_kernels as k
from tests.tile.scatter_kernels import DTYPES, UFUNCS, draw, wanted


def by_triton(monkeypatch: Any, function: Any, *arrays: np.ndarray, **static: Any) -> list[np.ndarray]:
    """Results of a kernel."""
    pytest.importorskip("infini.compiler.triton.compile")
    from infini.backends import cuda
    from tests.backends.fake_cupy import Machine  # which loads Triton

    Machine().install(monkeypatch)
    program = function.as_program([ArrayType(x.shape, x.dtype) for x in arrays], **static)
    backend, device = cuda.CudaBackend(), Device("cuda", 0)
    found = backend.compile(program, CompileOptions())([backend.put(x, device) for x in arrays])
    return [backend.get(x, t) for x, t in zip(found, program.out_types, strict=True)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", UFUNCS)
def test_rows_combine_on_a_gpu(name: str, dtype: np.dtype, monkeypatch: Any, rng: Any) -> None:
    table, numbers, rows = draw(rng, 7, 19, 3, dtype)
    (found,) = by_triton(monkeypatch, getattr(k, name), table, numbers, rows)
    np.testing.assert_array_equal(found, wanted(UFUNCS[name], table, numbers, rows))


def test_rows_are_overwritten_on_a_gpu(monkeypatch: Any, rng: Any) -> None:
    table, _, rows = draw(rng, 20, 19, 3, dtypes.float32)
    numbers = rng.permutation(30)[:19].astype(np.int32)
    expected = table.copy()
    expected[numbers[numbers < 20]] = rows[numbers < 20]
    (found,) = by_triton(monkeypatch, k.put, table, numbers, rows)
    np.testing.assert_array_equal(found, expected)


def test_two_results_on_a_gpu(monkeypatch: Any, rng: Any) -> None:
    x = rng.uniform(0.2, 1, 21).astype(np.float32)
    counts, largest = by_triton(monkeypatch, k.histogram, x)
    bins = np.floor(x * np.float32(5)).astype(int)
    np.testing.assert_array_equal(counts, np.bincount(bins, minlength=5)[:5])
    np.testing.assert_array_equal(
        largest, np.array([x[bins == b].max(initial=-np.inf) for b in range(5)], "f")
    )


def test_places_of_rows_and_lookups_on_a_gpu(monkeypatch: Any, rng: Any) -> None:
    x = rng.standard_normal((21, 6)).astype(np.float32)
    np.testing.assert_array_equal(
        by_triton(monkeypatch, k.chosen, x)[0], np.bincount(x.argmax(1), minlength=6)
    )
    slots, numbers = np.array([3, 0, 4, 2, 1], np.int32), np.array([2, 1, 2], np.int32)
    np.testing.assert_array_equal(by_triton(monkeypatch, k.through_slots, slots, numbers)[0], [1, 0, 0, 0, 1])


def test_one_row_per_program_on_a_gpu(monkeypatch: Any, rng: Any) -> None:
    table, numbers, rows = draw(rng, 10, 21, 4, dtypes.float32)
    (found,) = by_triton(monkeypatch, k.one_by_one, numbers, rows, height=10)
    np.testing.assert_array_equal(found, wanted(np.add, np.zeros_like(table), numbers, rows))


@pytest.mark.parametrize("count", [0, 5])
def test_empty_results_on_a_gpu(count: int, monkeypatch: Any) -> None:
    table, rows = np.ones((4 if count == 0 else 0, 3), np.float32), np.ones((count, 3), np.float32)
    (found,) = by_triton(monkeypatch, k.add, table, np.zeros(count, np.int32), rows)
    np.testing.assert_array_equal(found, table)
