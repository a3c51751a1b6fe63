"""`tile.simulate`: which array element lies in which tile of which program, against views of NumPy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from infini import lax, tile
from infini.core import dtypes, errors
from infini.core.ir import ArrayType
from infini.tile import Tensor, simulation
from tests.tile import kernels

F32 = dtypes.float32


def of(*shape: int) -> ArrayType:
    return ArrayType(shape, F32)


def numbered(*shape: int) -> np.ndarray:
    """An array of the positions of its elements."""
    return np.arange(np.prod(shape)).reshape(shape)


def test_results_come_after_operands_and_are_cut_like_them() -> None:
    x, y, result = tile.simulate(kernels.add_gelu.configure(BLOCK=64), [of(130), of(130)])
    padded = np.concatenate([np.arange(130), np.full(62, -1)]).reshape(3, 64)
    for found in (x, y, result):
        np.testing.assert_array_equal(found, padded)


def test_a_walked_level_stands_between_grid_and_tile() -> None:
    a, b, c = tile.simulate(kernels.matmul.configure(BM=16, BN=16, BK=16), [of(20, 40), of(40, 33)])
    assert a.shape == (2, 3, 3, 16, 16) and b.shape == (2, 3, 3, 16, 16) and c.shape == (2, 3, 16, 16)
    rows = np.pad(numbered(20, 40), ((0, 12), (0, 8)), constant_values=-1)
    blocks = rows.reshape(2, 16, 3, 16).transpose(0, 2, 1, 3)
    for column in range(3):
        np.testing.assert_array_equal(a[:, column], blocks)
    columns = np.pad(numbered(40, 33), ((0, 8), (0, 15)), constant_values=-1)
    blocks = columns.reshape(3, 16, 3, 16).transpose(2, 0, 1, 3)
    np.testing.assert_array_equal(b[1], blocks)


def test_windows_overlap_and_padding_lies_outside() -> None:
    x = Tensor(1, other=0)
    shifted = tile.kernel(
        lambda x, y: (x.pad(((1, 1),)).tile((3,), strides=(1,)), y),
        tensors=(x, Tensor(shape=x.shape)),
    )(lambda window: lax.reduce_sum(window, (0,)))
    windows, result = tile.simulate(shifted, [of(5)])
    padded = np.array([-1, 0, 1, 2, 3, 4, -1])
    np.testing.assert_array_equal(windows, np.lib.stride_tricks.sliding_window_view(padded, 3))
    np.testing.assert_array_equal(result, np.arange(5))


def test_strides_and_dilation_skip_elements() -> None:
    x = Tensor(1)
    every = tile.kernel(
        lambda x, y: (x.tile((2,), strides=(4,), dilation=(2,)), y),
        tensors=(x, Tensor(shape=((x.shape[0] + 1) // 4,))),
    )(lambda pair: lax.reduce_sum(pair, (0,)))
    pairs, _ = tile.simulate(every, [of(11)])
    np.testing.assert_array_equal(pairs, [[0, 2], [4, 6], [8, 10]])


def test_a_flattened_grid_is_counted_as_arranged() -> None:
    x = Tensor(3)
    number = tile.kernel(
        lambda x, y: (x.tile((1, 1, -1)).squeeze(2).flatten().squeeze((0, 1), level=1), y),
        tensors=(x, Tensor(shape=(x.shape[0] * x.shape[1],))),
    )(lambda row: lax.reduce_sum(row, (0,)))
    rows, result = tile.simulate(number, [of(3, 4, 5)])
    np.testing.assert_array_equal(rows, numbered(12, 5))
    np.testing.assert_array_equal(result, np.arange(12))


def test_a_flattened_tile_has_the_shape_that_the_application_sees() -> None:
    x = Tensor(2)
    flat = tile.kernel(
        lambda x, y: (x.tile((2, 3)).flatten(level=1), y.tile((2, 3)).flatten(level=1)),
        tensors=(x, Tensor(shape=x.shape)),
    )(lambda block: block)
    found, _ = tile.simulate(flat, [of(4, 6)])
    np.testing.assert_array_equal(
        found, numbered(4, 6).reshape(2, 2, 2, 3).transpose(0, 2, 1, 3).reshape(2, 2, 6)
    )


def test_a_scalar_is_the_same_element_in_every_program() -> None:
    x = Tensor(1)
    scaled = tile.kernel(
        lambda x, a, y: (x.tile((8,)), a, y.tile((8,))), tensors=(x, Tensor(0), Tensor(shape=x.shape))
    )(lambda x, a: lax.mul(x, lax.broadcast_in_dim(a, x.shape, ())))
    _, scale, _ = tile.simulate(scaled, [of(20), of()])
    np.testing.assert_array_equal(scale, np.zeros(3))


def test_an_empty_grid_has_no_elements() -> None:
    found = tile.simulate(kernels.softmax, [of(0, 7)])
    assert [x.shape for x in found] == [(0, 7), (0, 7)]


def test_arrays_stand_for_their_types() -> None:
    (found, *_), (expected, *_) = (
        tile.simulate(kernels.softmax, operands) for operands in ([np.zeros((2, 3), np.float32)], [of(2, 3)])
    )
    np.testing.assert_array_equal(found, expected)


def test_what_has_no_type_is_refused() -> None:
    with pytest.raises(errors.TypeMismatchError, match="not data infini computes with"):
        tile.simulate(kernels.softmax, ["rows"])


@pytest.mark.parametrize("program", [(0, 0), (1, 2)])
def test_one_program_equals_its_part_of_all(program: Any) -> None:
    placed = simulation.placements(kernels.matmul.configure(BM=16, BN=16, BK=16), [of(20, 40), of(40, 33)])
    for placement in placed:
        whole, one = placement.indices(), placement.indices(program)
        for d in range(2):
            np.testing.assert_array_equal(whole[d][program], one[d])
