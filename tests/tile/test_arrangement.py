"""Arrangements: which array element each (program, tile element) pair is, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from infini.core import errors
from infini.tile import lowering
from infini.tile.arrangement import Tensor
from infini.tile.program import Access, load
from infini.tile.symbols import Symbol, block_size


def lowered(arranged: Sequence[Tensor], num_results: int = 0) -> lowering.Lowered:
    return lowering.lower(arranged, num_results, {})


def tiles(tensor: Tensor, array: np.ndarray) -> np.ndarray:
    """Every tile of an array: dimensions of the grid, then those of a tile."""
    found = lowered([tensor])
    (access,) = found.accesses
    stacked = [load(access, array, program) for program in np.ndindex(*found.grid)]
    return np.reshape(stacked, (*found.grid, *found.tiles[0]))


X = np.arange(24).reshape(4, 6)


def of(array: np.ndarray, **options: Any) -> Tensor:
    return Tensor(shape=array.shape, **options)


def test_tile_cuts_into_blocks() -> None:
    found = tiles(of(X).tile((2, 3)), X)
    np.testing.assert_array_equal(found, X.reshape(2, 2, 2, 3).transpose(0, 2, 1, 3))


def test_a_last_tile_that_is_not_full_reads_other() -> None:
    found = tiles(of(X, other=-1).tile((3, 6)), X)
    np.testing.assert_array_equal(found[1, 0], np.concatenate([X[3:], np.full((2, 6), -1)]))


def test_floor_mode_drops_a_tile_that_is_not_full() -> None:
    assert tiles(of(X).tile((3, -1), floor_mode=True), X).shape == (1, 1, 3, 6)


def test_minus_one_takes_the_whole_dimension() -> None:
    np.testing.assert_array_equal(tiles(of(X).tile((1, -1)), X), X.reshape(4, 1, 1, 6))


def test_strides_overlap_tiles_as_a_sliding_window() -> None:
    line = np.arange(10)
    found = tiles(of(line).tile((4,), strides=(2,)), line)
    np.testing.assert_array_equal(found, np.lib.stride_tricks.sliding_window_view(line, 4)[::2])


def test_dilation_spaces_the_elements_of_a_tile() -> None:
    line = np.arange(10)
    found = tiles(of(line).tile((3,), strides=(1,), dilation=(2,)), line)
    np.testing.assert_array_equal(found, np.stack([line[i : i + 5 : 2] for i in range(6)]))


def test_pad_reads_other_around_the_array() -> None:
    found = tiles(of(X, other=0).pad(((1, 1), (0, 2))).tile((6, 8)), X)
    np.testing.assert_array_equal(found[0, 0], np.pad(X, ((1, 1), (0, 2))))


def test_expand_repeats() -> None:
    found = tiles(of(X).tile((1, -1)).expand((-1, 3)), X)
    np.testing.assert_array_equal(found, np.broadcast_to(X.reshape(4, 1, 1, 6), (4, 3, 1, 6)))


def test_permute_squeeze_and_unsqueeze_act_on_a_level() -> None:
    tensor = of(X).tile((2, 3)).permute((1, 0)).unsqueeze(0).permute((1, 0), level=1)
    found = tiles(tensor, X)
    expected = X.reshape(2, 2, 2, 3).transpose(2, 0, 3, 1)[None]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(tiles(tensor.squeeze(0), X), expected[0])


def test_flatten_joins_dimensions_of_a_tile() -> None:
    found = tiles(of(X).tile((2, 3)).flatten(level=1), X)
    np.testing.assert_array_equal(found, X.reshape(2, 2, 2, 3).transpose(0, 2, 1, 3).reshape(2, 2, 6))


def test_ravel_joins_levels() -> None:
    found = tiles(of(X).tile((2, 3)).ravel(), X)
    np.testing.assert_array_equal(found, X.reshape(2, 2, 2, 3).transpose(0, 2, 1, 3))


def test_tiles_of_tiles_are_levels() -> None:
    tensor = of(X).tile((2, 2)).tile((1, -1)).squeeze(0, level=1)
    access = lowered([tensor]).accesses[0]
    assert access.tile == (3, 2, 2) and access.levels == 1
    np.testing.assert_array_equal(tiles(tensor, X)[1, 0], X[2:].reshape(2, 3, 2).transpose(1, 0, 2))


@pytest.mark.parametrize(
    "index", [np.s_[1], np.s_[..., 2:], np.s_[::2, None, 1:5:2], np.s_[-1, 3], np.s_[:-1]], ids=str
)
def test_indexing_is_numpy_indexing(index: Any) -> None:
    np.testing.assert_array_equal(tiles(of(X)[index], X), X[index])


# --- grids -----------------------------------------------------------------------------------


def test_a_flattened_grid_and_a_plain_one_meet_in_their_refinement() -> None:
    rows = Tensor(shape=(4, 6, 5)).tile((1, 1, -1)).squeeze(2).flatten()
    found = lowered([rows, Tensor(shape=(24,))])
    assert found.grid == (4, 6) and found.grid_parts == ((0, 1),)
    assert found.accesses[0].grid_strides == ((1, 0), (0, 1), (0, 0))
    assert found.accesses[1].grid_strides == ((6, 1),)


def test_a_scalar_joins_every_grid() -> None:
    found = lowered([of(X).tile((2, 6)), Tensor(0)])
    assert found.grid == (2, 1) and found.accesses[1] == Access((), (), (), ())


def test_tensors_that_disagree_on_the_grid_are_refused_with_both_expressions() -> None:
    n, m = Symbol("n"), Symbol("m")
    tensors = [Tensor(shape=(n,)).tile((16,)), Tensor(shape=(m,)).tile((8,))]
    with pytest.raises(errors.TypeMismatchError, match=r"ceiling\(n/16\).*ceiling\(m/8\)"):
        lowering.lower(tensors, 0, {n: 64, m: 64})


def test_flattenings_that_do_not_fit_are_refused() -> None:
    tensors = [
        Tensor(shape=(4, 3, 9))[:, :, :6].flatten(1).flatten(),
        Tensor(shape=(9, 9))[:8].flatten(),
    ]
    with pytest.raises(errors.TypeMismatchError, match="do not fit together"):
        lowered([tensors[0], tensors[1]])


# --- refusals --------------------------------------------------------------------------------


def test_cutting_a_flattened_dimension_across_its_parts_is_refused() -> None:
    with pytest.raises(errors.TypeMismatchError, match="tile before flatten"):
        Tensor(shape=(4, 6))[:, 1:4].flatten().tile((4,))


def test_a_tile_that_overruns_into_other_elements_is_refused() -> None:
    with pytest.raises(errors.TypeMismatchError, match="overrun"):
        lowered([Tensor(shape=(10,))[:5].tile((4,))])


def test_overlapping_tiles_of_a_result_are_refused() -> None:
    with pytest.raises(errors.TypeMismatchError, match="overlap"):
        lowered([Tensor(shape=(10,)).tile((4,), strides=(2,))], num_results=1)


def test_an_expanded_result_is_refused() -> None:
    with pytest.raises(errors.TypeMismatchError, match="same place"):
        lowered([Tensor(shape=(1, 4)).expand((3, -1))], num_results=1)


def test_squeezing_a_dimension_found_not_to_be_one_is_refused() -> None:
    n = Symbol("n")
    with pytest.raises(errors.TypeMismatchError, match="n = 3"):
        lowering.lower([Tensor(shape=(n, 4)).squeeze(0)], 0, {n: 3})


@pytest.mark.parametrize(("lower", "upper"), [(3, 8), (16, 8), (0, 8)])
def test_bounds_of_a_block_size_are_powers_of_two_in_order(lower: int, upper: int) -> None:
    with pytest.raises(errors.ValueMismatchError, match="powers of two"):
        block_size(lower, upper)
