"""Sorting, the k largest, places of extrema and products along a split dimension."""

import ml_dtypes
import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.sharding import P
from tests.parallel.sharded import assert_same, counts, gradient_of, traffic


@pytest.fixture(autouse=True)
def devices():
    with inf.config(device="reference", cpu_devices=8, check=1):
        yield


def tied(*shape):
    """Few different numbers, zeros of both signs, and NaN."""
    x = np.random.choice([-2.0, -0.0, 0.0, 1.5, 3.0], shape).astype(np.float32)
    x.reshape(-1)[5] = np.nan
    return x


def smooth(*shape):
    return np.random.permutation(np.prod(shape)).reshape(shape).astype(np.float32) / 7 - 3


# --- the k largest -----------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 1, 2, 3])
@pytest.mark.parametrize("sizes", [(2,), (4,), (8,)])
def test_top_k_along_a_split_dimension(sizes, k):
    f = lambda x: lax.top_k(x, k)  # noqa: E731
    assert_same(f, [tied(3, 64)], [P(None, "a")], sizes, exact=True)
    # k candidates of each part, and their places.
    expected = {"all_gather": (2, 2 * 3 * k * 4)} if k else {}
    assert traffic(f, [tied(3, 64)], [P(None, "a")], sizes) == expected


def test_so_many_of_a_part_that_the_part_is_gathered():
    f = lambda x: lax.top_k(x, 5)  # noqa: E731
    assert_same(f, [tied(64)], [P("a")], (8,), exact=True)
    assert traffic(f, [tied(64)], [P("a")], (8,)) == {"all_gather": (1, 8 * 4)}


def test_top_k_with_two_axes():
    assert_same(lambda x: lax.top_k(x, 2), [tied(4, 64)], [P(None, ("a", "b"))], (2, 4), exact=True)
    assert_same(lambda x: lax.top_k(x, 2, axis=0), [tied(64, 4)], [P("b", "a")], (2, 4), exact=True)


@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.bfloat16, bool])
def test_top_k_of_other_elements(dtype):
    assert_same(lambda x: lax.top_k(x, 3), [smooth(64).astype(dtype)], [P("a")], (4,), exact=True)


def test_the_gradient_of_top_k():
    assert_same(gradient_of(lambda x: lax.top_k(x, 2), 1), [smooth(3, 32)], [P(None, "a")], (4,))


# --- places of extrema -------------------------------------------------------------------------


@pytest.mark.parametrize("op", [lax.argmax, lax.argmin])
@pytest.mark.parametrize("sizes", [(2,), (4,), (8,)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_place_of_an_extremum_along_a_split_dimension(op, axis, sizes):
    x = np.moveaxis(tied(3, 2, 16), -1, axis)
    spec = P(*("a" if d == axis else None for d in range(3)))
    f = lambda x: op(x, axis, np.int32)  # noqa: E731
    assert_same(f, [x], [spec], sizes, exact=True)
    # An extremum and a place from each part.
    assert traffic(f, [x], [spec], sizes) == {"all_gather": (2, 2 * 6 * 4)}


def test_places_as_other_integers_and_of_booleans():
    x = np.zeros((2, 16), bool)
    x[0, 9:] = x[1, 3] = True
    assert_same(lambda x: lax.argmax(x, 1, np.int64), [x], [P(None, "a")], (4,), exact=True)
    assert_same(lambda x: lax.argmin(x, 1, np.uint8), [x], [P(None, "a")], (4,), exact=True)


def test_the_place_in_all_of_an_array():
    assert_same(lambda x: inp.argmax(x), [smooth(8, 8)], [P("a", "b")], (2, 4), exact=True)


# --- products and bits -------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(2,), (4,), (8,)])
def test_a_product_along_a_split_dimension(sizes):
    f = lambda x: lax.reduce_prod(x, (0,))  # noqa: E731
    x = np.random.uniform(0.5, 1.5, (16, 3)).astype(np.float32)
    assert_same(f, [x], [P("a")], sizes)
    assert traffic(f, [x], [P("a")], sizes) == {"all_gather": (1, 3 * 4)}


def test_a_product_over_two_split_dimensions():
    x = np.random.uniform(0.5, 1.5, (8, 3, 8)).astype(np.float32)
    assert_same(lambda x: lax.reduce_prod(x, (0, 2)), [x], [P("a", None, "b")], (2, 4))
    assert_same(lambda x: x.prod(), [x.astype(ml_dtypes.bfloat16)], [P("a", None, "b")], (2, 4))


@pytest.mark.parametrize("op", [lax.reduce_xor, lax.reduce_and, lax.reduce_or])
def test_bits_along_a_split_dimension(op):
    x = np.random.randint(0, 255, (16, 3)).astype(np.int32)
    assert_same(lambda x: op(x, (0,)), [x], [P("a")], (8,), exact=True)
    assert_same(lambda x: op(x, (0, 1)), [x > 100], [P("a")], (8,), exact=True)


def test_booleans_are_still_joined_by_a_collective():
    f = lambda x: x.all(0)  # noqa: E731
    assert counts(f, [np.ones((8, 2), bool)], [P("a")], (4,)) == {"pmin": 1}


@pytest.mark.parametrize("sizes", [(2,), (8,)])
def test_the_gradient_of_a_product(sizes):
    f = gradient_of(lambda x: lax.reduce_prod(x, (0,)), 1)
    assert_same(f, [np.random.uniform(0.5, 1.5, (16, 3)).astype(np.float32)], [P("a")], sizes)


# --- sorting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(2,), (4,), (8,)])
def test_sorting_along_a_split_dimension_moves_rows(sizes):
    f = lambda x: lax.sort(x, 1)  # noqa: E731
    assert_same(f, [tied(8, 16)], [P(None, "a")], sizes, exact=True)
    mine = 8 * 16 * 4 // sizes[0]
    assert traffic(f, [tied(8, 16)], [P(None, "a")], sizes) == {"all_to_all": (2, 2 * mine)}


def test_sorting_too_few_rows_gathers_them():
    f = lambda x: lax.sort(x, 0)  # noqa: E731
    assert_same(f, [tied(16, 3)], [P("a")], (4,), exact=True)
    assert counts(f, [tied(16, 3)], [P("a")], (4,)) == {"all_gather": 1}


def test_sorting_several_operands():
    keys, values = tied(8, 16), smooth(8, 16)
    f = lambda k, v: lax.sort((k, v), 1, num_keys=2)  # noqa: E731
    assert_same(f, [keys, values], [P(None, "a"), P("a")], (4,), exact=True)
    assert_same(f, [keys, values], [P(None, "a"), P("b", "a")], (2, 4), exact=True)


def test_sorting_with_two_axes():
    assert_same(lambda x: lax.sort(x, 1), [tied(8, 16)], [P(None, ("a", "b"))], (2, 4), exact=True)


@pytest.mark.parametrize("shape", [(8, 16), (3, 16)])
def test_the_gradient_of_sorting(shape):
    assert_same(gradient_of(lambda x: lax.sort(x, 1), 1), [smooth(*shape)], [P(None, "a")], (4,))


def test_a_median_and_quantiles():
    assert_same(lambda x: inp.median(x, axis=0), [smooth(16, 8)], [P("a")], (4,))
    assert_same(lambda x: inp.unique(x, size=6), [np.round(smooth(32) / 5)], [P("a")], (4,), exact=True)
