"""Quantiles, searching, histograms and sets where JAX does not say what is right, and while tracing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini.core import errors
from infini.numpy import quantiles

LINE = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0], np.float32)
# Shares that fall between elements, and on them.
SHARES = np.array([0.0, 0.06, 0.125, 0.3, 0.5, 0.625, 0.77, 0.875, 1.0], np.float32)


@pytest.mark.parametrize("method", sorted(quantiles.METHODS))
def test_quantiles_by_every_method_of_numpy(method: str) -> None:
    found = inp.quantile(inp.asarray(LINE), inp.asarray(SHARES), method=method)
    expected = np.quantile(LINE.astype(np.float64), SHARES.astype(np.float64), method=method)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5)


@pytest.mark.parametrize("method", sorted(quantiles.METHODS))
def test_quantiles_without_nan(method: str) -> None:
    x = np.stack([np.append(LINE, [np.nan, np.nan]), np.append(LINE[:5], [np.nan] * 5)])
    found = inp.nanquantile(inp.asarray(x), 0.4, axis=1, method=method)
    expected = [np.quantile(row[~np.isnan(row)].astype(np.float64), 0.4, method=method) for row in x]
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5)


def test_infinite_neighbours_do_not_make_nan() -> None:
    x = inp.array([-inp.inf, 0.0, inp.inf])
    assert inp.quantile(x, inp.array([0.0, 0.5, 0.75, 1.0])).tolist() == [-np.inf, 0.0, np.inf, np.inf]


def test_quantiles_of_nothing_are_refused() -> None:
    with pytest.raises(errors.ValueMismatchError, match="at least one element"):
        inp.median(inp.zeros((0,)))
    with pytest.raises(errors.UnsupportedError, match="takes no weights"):
        inp.quantile(inp.asarray(LINE), 0.5, weights=inp.asarray(LINE))


@pytest.mark.parametrize("method", ["scan", "scan_unrolled", "sort", "compare_all"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_every_search_finds_the_same_places(method: str, side: str, rng: Any) -> None:
    line = np.append(np.sort(rng.integers(0, 30, 100)).astype(np.float32), [np.inf, np.nan, np.nan])
    values = np.append(rng.integers(-2, 33, (3, 9)), [[-np.inf, np.nan, np.inf]] * 3, axis=1).astype(
        np.float32
    )
    found = inf.jit(lambda a, v: inp.searchsorted(a, v, side, method=method))(line, values)
    np.testing.assert_array_equal(np.asarray(found), np.searchsorted(line, values, side))
    rows = inf.vmap(lambda v: inp.searchsorted(line, v, side, method=method))(inp.asarray(values))
    np.testing.assert_array_equal(np.asarray(rows), np.searchsorted(line, values, side))


def test_partitions() -> None:
    for kth in (0, 3, -1):
        x = np.asarray(inp.partition(inp.asarray(LINE), kth))
        assert (x[:kth] <= x[kth]).all() and (x[kth] <= x[kth:]).all()
        np.testing.assert_array_equal(LINE[np.asarray(inp.argpartition(inp.asarray(LINE), kth))], x)


@pytest.mark.parametrize("density", [False, True])
def test_histograms(density: bool, rng: Any) -> None:
    x, w = (rng.standard_normal(200).astype(np.float32) for _ in range(2))
    for bins in (7, np.array([-2.0, -0.5, 0.0, 1.5], np.float32)):
        counts, edges = inp.histogram(inp.asarray(x), bins, weights=inp.asarray(w), density=density)
        expected, wanted = np.histogram(x, bins, weights=w, density=density)
        np.testing.assert_allclose(np.asarray(edges), wanted, rtol=1e-5)
        np.testing.assert_allclose(np.asarray(counts), expected, rtol=1e-4, atol=1e-5)
    counts, edges = inp.histogramdd(inp.asarray(np.stack([x, w], 1)), [3, 4], density=density)
    expected, wanted = np.histogramdd(np.stack([x, w], 1), [3, 4], density=density)
    np.testing.assert_allclose(np.asarray(counts), expected, rtol=1e-4)
    for mine, other in zip(edges, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(mine), other, rtol=1e-5)


SIZED: list[Callable[..., Any]] = [
    lambda x, y: inp.unique(x, size=4, return_index=True, return_inverse=True, return_counts=True),
    lambda x, y: inp.union1d(x, y, size=9),
    lambda x, y: inp.intersect1d(x, y, size=3, return_indices=True, fill_value=-1),
    lambda x, y: inp.setdiff1d(x, y, size=3, fill_value=0),
    lambda x, y: inp.setxor1d(x, y, size=6),
    lambda x, y: inp.bincount(x, length=5),
    lambda x, y: inp.isin(x, y),
]


@pytest.mark.parametrize("function", SIZED, ids=range(len(SIZED)))
def test_a_size_makes_sets_traceable(function: Callable[..., Any]) -> None:
    x, y = inp.array([3, 1, 3, 2, 7]), inp.array([2, 9, 3])
    for traced, eager in zip(
        inf.tree.leaves(inf.jit(function)(x, y)), inf.tree.leaves(function(x, y)), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(traced), np.asarray(eager))


@pytest.mark.parametrize("function", [inp.unique, inp.bincount], ids=["unique", "bincount"])
def test_without_a_size_tracing_says_what_is_missing(function: Any) -> None:
    with pytest.raises(errors.ConcretizationError, match="depends on data that are being traced"):
        inf.jit(function)(inp.array([3, 1, 3]))


def test_sets_of_random_numbers(rng: Any) -> None:
    x, y = rng.integers(0, 40, 30), rng.integers(0, 40, 25)
    for name in ("union1d", "intersect1d", "setdiff1d", "setxor1d"):
        found = getattr(inp, name)(inp.asarray(x), inp.asarray(y))
        np.testing.assert_array_equal(np.asarray(found), getattr(np, name)(x, y))
    values, first, second = inp.intersect1d(inp.asarray(x), inp.asarray(y), return_indices=True)
    for mine, other in zip((values, first, second), np.intersect1d(x, y, return_indices=True), strict=True):
        np.testing.assert_array_equal(np.asarray(mine), other)


def test_methods_of_arrays() -> None:
    x = inp.asarray(LINE)
    np.testing.assert_array_equal(np.asarray(x.argpartition(3)), np.argsort(LINE, kind="stable"))
    assert x.sort().searchsorted(4.5).item() == 5
    assert x.cumsum().tolist() == np.cumsum(LINE).tolist()
