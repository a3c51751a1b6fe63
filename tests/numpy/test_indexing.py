"""Indexing equals NumPy's inside the array; outside, reads are clamped and writes are dropped."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import infini
import infini.numpy as inp
from infini.core import errors, execute
from infini.sharding import NamedSharding, P, make_mesh
from infini.testing import assert_max_traces
from tests.numpy.indices import draw_index

X = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
ROWS, COLUMNS = np.array([[1, 0], [0, 1]]), np.array([2, -1])
INDICES = [
    0, -1, (1, 2), (1, 2, 3), slice(None), slice(1, None), slice(None, None, -1), slice(None, None, 2),
    slice(5, 1, -2), (slice(None), 1), (..., 0), (..., slice(1, 3)), (0, ..., -1), None, (None, 1),
    (slice(None), None, slice(0, 2)), (...,), (slice(1, 1),),
    (slice(None), slice(None, None, -2), slice(1, 4, 2)), (1, None, ..., None), ROWS, (ROWS, COLUMNS),
    (slice(None), COLUMNS), (slice(None), ROWS, COLUMNS), (ROWS, slice(None), COLUMNS),
    (0, slice(None), COLUMNS), (0, COLUMNS), (slice(None), COLUMNS, 1), (ROWS, ..., COLUMNS),
    (None, ROWS, None, COLUMNS), (slice(None), slice(0, 3, 2), COLUMNS), (slice(None, None, -1), COLUMNS),
    (..., COLUMNS), (ROWS, 1, COLUMNS), (np.array(1), slice(1, 3)), (slice(None), np.array(-1)),
    (np.array([], np.int64),), (COLUMNS.astype(np.uint8) % 2,),

]  # fmt: skip


def show(index: object) -> str:
    return str(index).replace("\n", "")


@pytest.mark.parametrize("index", INDICES, ids=show)
def test_reading_equals_numpy(index: object) -> None:
    np.testing.assert_array_equal(np.asarray(inp.asarray(X)[index]), X[index])


@pytest.mark.parametrize("index", INDICES, ids=show)
def test_reading_under_jit_equals_numpy(index: object) -> None:
    np.testing.assert_array_equal(np.asarray(infini.jit(lambda x: x[index])(X)), X[index])


@pytest.mark.parametrize("index", INDICES, ids=show)
def test_writing_equals_numpy(index: object) -> None:
    expected = X.copy()
    values = np.full(X[index].shape, -1, np.float32)
    expected[index] = values
    np.testing.assert_array_equal(np.asarray(inp.asarray(X).at[index].set(values)), expected)


@pytest.mark.parametrize("index", INDICES, ids=show)
def test_adding_equals_numpy(index: object) -> None:
    expected = X.copy()
    values = np.arange(X[index].size, dtype=np.float32).reshape(X[index].shape) + 1
    np.add.at(expected, index, values)
    np.testing.assert_array_equal(np.asarray(inp.asarray(X).at[index].add(values)), expected)


@pytest.mark.parametrize("index", INDICES, ids=show)
def test_writing_under_jit_equals_numpy(index: object) -> None:
    expected = X.copy()
    expected[index] = -1
    np.testing.assert_array_equal(np.asarray(infini.jit(lambda x: x.at[index].set(-1))(X)), expected)


@pytest.mark.parametrize("block", range(10))
def test_random_indices_equal_numpy(block: int) -> None:
    """Reading, writing and adding at 20 indices of all kinds, and at what NumPy refuses."""
    for seed in range(20 * block, 20 * block + 20):
        rng = np.random.default_rng(seed)
        shape, index = draw_index(rng, outside=False)
        x = rng.integers(1, 9, shape).astype(np.float32)
        y = inp.asarray(x)
        expected = x[index]
        np.testing.assert_array_equal(np.asarray(y[index]), expected, err_msg=str((shape, index)))
        added, written = x.copy(), x.copy()
        values = rng.integers(1, 9, expected.shape).astype(np.float32)
        np.add.at(added, index, values)
        written[index] = -1
        np.testing.assert_array_equal(np.asarray(y.at[index].add(values)), added, err_msg=str((shape, index)))
        np.testing.assert_array_equal(np.asarray(y.at[index].set(-1)), written, err_msg=str((shape, index)))


@pytest.mark.parametrize(
    "index",
    [
        True, False, (True, 0), (0, True), (slice(None), True), (slice(None), False, ROWS[:1, :1]),
        (COLUMNS % 2, True), (None, True, 0), (True, False), (True, ..., True), np.array(True),
        [True, False], ([0, 1], [1, 2]), ([], slice(1)),
    ],
    ids=show,
)  # fmt: skip
def test_single_booleans_and_lists_equal_numpy(index: object) -> None:
    index = (index,) if isinstance(index, list) else index
    expected = X.copy()
    expected[index] = 7
    np.testing.assert_array_equal(np.asarray(inp.asarray(X)[index]), X[index])
    np.testing.assert_array_equal(np.asarray(inp.asarray(X).at[index].set(7)), expected)


@hypothesis.given(st.data())
def test_any_index_equals_numpy(data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=4))
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    basic = hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True)
    index = data.draw(st.one_of(basic, hnp.integer_array_indices(shape)))
    np.testing.assert_array_equal(np.asarray(inp.asarray(x)[index]), x[index])


@pytest.mark.parametrize("make", [lambda i: i, inp.asarray], ids=["host", "array"])
def test_reads_outside_are_clamped(make) -> None:
    x = inp.arange(3.0)
    assert float(x[make(5)]) == 2
    assert float(x[make(-7)]) == 0
    assert np.asarray(x[inp.asarray([5, -7])]).tolist() == [2, 0]


def test_numbers_beyond_32_bits_lie_outside() -> None:
    x = inp.arange(3.0)
    for at in (np.array([2**40, -(2**40)]), inp.asarray([2**33 + 1, -(2**33)], dtype="int64")):
        assert x[at].tolist() == [2, 0]
        assert x.at[at].get(mode="fill", fill_value=7).tolist() == [7, 7]
        assert x.at[at].set(9).tolist() == [0, 1, 2]
    assert x[2**70] == 2 and x.at[-(2**70)].set(9).tolist() == [0, 1, 2]
    assert x[inp.asarray([2**64 - 1, 1], dtype="uint64")].tolist() == [2, 1]


def test_arrays_on_a_mesh_and_on_other_devices() -> None:
    with infini.config(device="reference", cpu_devices=4):
        mesh = make_mesh((4,), ("data",))
        x = infini.device_put(np.arange(8.0).reshape(4, 2), NamedSharding(mesh, P("data")))
        assert x[2].tolist() == [4, 5] and x[1:3, 1].tolist() == [3, 5]
        assert x[np.array([3, 0])].tolist() == [[6, 7], [0, 1]]
        assert x.at[0].set(9)[:2].tolist() == [[9, 9], [2, 3]]
    there = infini.device_put(np.arange(4.0), infini.devices("reference")[0])
    assert there[1] == 1 and there[1].devices() == there.devices()
    assert there.at[1].set(5).devices() == there.devices()


def test_writes_outside_are_dropped() -> None:
    x = inp.arange(3.0)
    assert x.at[5].set(9).tolist() == [0, 1, 2]
    assert x.at[-4].add(9).tolist() == [0, 1, 2]
    assert x.at[inp.asarray([5, -1])].set(9).tolist() == [0, 1, 9]
    assert infini.jit(lambda x, i: x.at[i].set(9))(x, 7).tolist() == [0, 1, 2]


def test_a_traced_scalar_index_reads_and_writes() -> None:
    read = infini.jit(lambda x, i: x[:, i, 1:])
    write = infini.jit(lambda x, i: x.at[:, i].set(0))
    expected = X.copy()
    expected[:, 2] = 0
    np.testing.assert_array_equal(np.asarray(read(X, -1)), X[:, -1, 1:])
    np.testing.assert_array_equal(np.asarray(write(X, 2)), expected)


def test_masks_read_outside_tracing() -> None:
    x = inp.asarray(X)
    np.testing.assert_array_equal(np.asarray(x[x > 10]), X[X > 10])
    np.testing.assert_array_equal(np.asarray(x[:, np.array([True, False, True])]), X[:, [True, False, True]])


def test_scalars_are_written_under_masks_also_while_tracing() -> None:
    expected = np.where(X > 10, 0, X)
    np.testing.assert_array_equal(np.asarray(infini.jit(lambda x: x.at[x > 10].set(0))(X)), expected)


def test_updates_by_other_operations() -> None:
    x = inp.asarray([1.0, 2.0, 3.0])
    assert x.at[1].multiply(5).tolist() == [1, 10, 3]
    assert x.at[1:].divide(2).tolist() == [1, 1, 1.5]
    assert x.at[:2].max(1.5).tolist() == [1.5, 2, 3]
    assert x.at[::2].min(2).tolist() == [1, 2, 2]
    assert x.at[1].subtract(1).tolist() == [1, 1, 3]
    assert x.at[0].apply(inp.exp)[0] == inp.exp(x[0])


def test_get_fills_outside_when_asked() -> None:
    x = inp.arange(3.0)
    assert np.isnan(np.asarray(x.at[inp.asarray([7])].get(mode="fill"))).all()
    assert x.at[inp.asarray([7, 1])].get(mode="fill", fill_value=-1).tolist() == [-1, 1]


def test_updates_keep_the_dtype_of_the_array() -> None:
    assert inp.arange(3).at[0].set(1.5).tolist() == [1, 1, 2]
    # Sums are rounded once, as in JAX.
    assert inp.arange(3).at[inp.asarray([0, 0])].add(0.6).tolist() == [1, 1, 2]
    assert inp.arange(3).at[0].divide(2).dtype == inp.float32


def test_updates_at_repeated_places() -> None:
    x, at = inp.asarray([2.0, 3.0]), inp.asarray([0, 1, 0])
    assert x.at[at].multiply(inp.asarray([2.0, 1.0, 5.0])).tolist() == [20, 3]
    assert x.at[at].divide(2).tolist() == [0.5, 1.5]
    assert x.at[at].power(2).tolist() == [16, 9]
    assert x.at[at].min(inp.asarray([5.0, 1.0, 0.5])).tolist() == [0.5, 1]
    assert x.at[at].subtract(1).tolist() == [0, 2]
    assert x.at[at].apply(lambda v: v * v).tolist() == [16, 9]
    assert x.at[1:].apply(inp.negative).tolist() == [2, -3]


def test_negative_numbers_may_lie_outside() -> None:
    x = inp.arange(3.0)
    assert x.at[-1].set(9, wrap_negative_indices=False).tolist() == [0, 1, 2]
    assert x.at[inp.asarray([-1, 1])].get(
        mode="fill", fill_value=7, wrap_negative_indices=False
    ).tolist() == [7, 1]
    assert x.at[-1].get(wrap_negative_indices=False) == 0
    assert x.at[9].set(5, mode="clip").tolist() == [0, 1, 5]


LOOPS = [
    lambda x, i: x[i], lambda x, i: x[i, 2], lambda x, i: x[-i, 1:], lambda x, i: x[i : i + 3],
    lambda x, i: x[i : i + 7 : 2], lambda x, i: x[i + 3 : i : -1], lambda x, i: x[..., None, i % 4],
    lambda x, i: x[i, np.array([0, 2])], lambda x, i: x[i : i + 2, np.array([1, 3]), None],
    lambda x, i: x[np.array([i, i + 1])], lambda x, i: x.at[i].set(i), lambda x, i: x.at[i : i + 2, 1].add(2),
    lambda x, i: x.at[i, np.array([0, 2])].max(1), lambda x, i: x.at[i].get(mode="fill", fill_value=0),
    lambda x, i: x.at[i, 0].multiply(2), lambda x, i: x.take(i, 0),
]  # fmt: skip


@pytest.mark.parametrize("step", LOOPS, ids=range(len(LOOPS)))
def test_a_loop_over_indices_compiles_once(step) -> None:
    """Numbers in an index are operands, outside of tracing too."""
    x = inp.asarray(np.arange(200.0).reshape(50, 4))
    step(x, 20)
    before = len(execute._executables)
    for i in range(1, 40, 3):
        step(x, i)
    assert len(execute._executables) == before


def test_a_traced_index_is_traced_once() -> None:
    read = infini.jit(lambda x, i: (x[i], x[:, i], x.at[i].set(0), x[1:, i, ::2]))
    with assert_max_traces(read, 1):
        for i in range(-2, 2):
            read(X, i)


@pytest.mark.parametrize(
    ("index", "error"),
    [
        ((0, 0, 0, 0), IndexError), ((..., ...), IndexError), (1.0, TypeError), ("a", TypeError),
        ([0, 1], TypeError), (np.array([0.5]), TypeError), ((ROWS, np.array([0, 1, 2])), IndexError),
        (np.array([True, False, True]), IndexError), (slice(0, 1.5), TypeError), ({}, IndexError),
    ],
    ids=show,
)  # fmt: skip
def test_wrong_indices_are_errors_in_four_parts(index: object, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        inp.asarray(X)[index]
    assert isinstance(caught.value, errors.InfiniError)
    assert caught.value.got


def test_a_traced_mask_is_refused_with_the_way_out() -> None:
    for index in (lambda x: x > 1, lambda x: (0, x[0] > 1)):
        with pytest.raises(errors.NonConcreteBooleanIndexError, match="where") as caught:
            infini.jit(lambda x, index=index: x[index(x)])(X)
        assert isinstance(caught.value, IndexError)


def test_traced_bounds_of_slices_are_refused_with_the_way_out() -> None:
    with pytest.raises(errors.IndexOutOfRangeError, match="dynamic_slice"):
        infini.jit(lambda x, i: x[i:])(X, 1)


def test_assignment_is_refused_with_the_way_out() -> None:
    with pytest.raises(TypeError, match=r"at\[index\]"):
        inp.asarray(X)[0] = 1


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_take_equals_numpy(axis: int | None) -> None:
    np.testing.assert_array_equal(np.asarray(inp.take(X, ROWS, axis=axis)), np.take(X, ROWS, axis=axis))


@pytest.mark.parametrize(("mode", "expected"), [("clip", [0, 2]), ("wrap", [2, 1]), ("fill", [2, -1])])
def test_take_outside(mode: str, expected: list[int]) -> None:
    assert inp.take(inp.arange(3.0), inp.asarray([-1, 4]), mode=mode, fill_value=-1).tolist() == expected


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_take_along_axis_equals_numpy(axis: int) -> None:
    order = np.argsort(-X, axis=axis)
    np.testing.assert_array_equal(
        np.asarray(inp.take_along_axis(X, order, axis)), np.take_along_axis(X, order, axis)
    )


def test_take_along_axis_broadcasts_other_dimensions() -> None:
    at = np.array([[[1], [0], [3]]])
    np.testing.assert_array_equal(
        np.asarray(inp.take_along_axis(X, at, -1)), np.take_along_axis(X, np.broadcast_to(at, (2, 3, 1)), -1)
    )


def test_gradient_of_a_gather_adds_up_equal_indices() -> None:
    at = np.array([1, 1, 0])
    assert infini.grad(lambda x: (x[at] * inp.asarray([1.0, 2.0, 5.0])).sum())(inp.zeros(3)).tolist() == [
        5,
        3,
        0,
    ]


def test_gradient_of_updates() -> None:
    def loss(x, y):
        return (x.at[1:3].set(y) * inp.arange(4.0)).sum()

    of_x, of_y = infini.grad(loss, argnums=(0, 1))(inp.ones(4), inp.ones(2))
    assert of_x.tolist() == [0, 0, 0, 3]
    assert of_y.tolist() == [1, 2]
