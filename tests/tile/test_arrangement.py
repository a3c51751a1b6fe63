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


@pytest.mark.parametrize(
    "index",
    [np.s_[::-1], np.s_[::-2, 4:0:-3], np.s_[2:100, -9:2], np.s_[5:2], np.s_[-2:, ::-1], np.s_[..., None, 0]],
    ids=str,
)
def test_indices_run_backwards_and_stop_at_the_ends(index: Any) -> None:
    n, m = Symbol("n"), Symbol("m")
    np.testing.assert_array_equal(of(X)[index].eval(), X[index])
    np.testing.assert_array_equal(Tensor(shape=(n, m))[index].eval({n: 4, "m": 6}), X[index])


def test_a_symbol_is_an_index() -> None:
    n, i = Symbol("n"), Symbol("i")
    assert list(Tensor(shape=(n,))[i : i + 3].eval({n: 10, i: 4})) == [4, 5, 6]
    assert list(Tensor(shape=(n,))[i:].eval({n: 3, i: 4})) == []
    with pytest.raises(errors.TypeMismatchError, match="index i does not fit"):
        Tensor(shape=(n,))[i].eval({n: 3, i: 3})


def test_stride_zero_is_one_tile_that_expand_repeats() -> None:
    tensor = of(np.arange(10)).tile((4,), strides=(0,))
    assert tensor.shape == (1,)
    np.testing.assert_array_equal(tiles(tensor.expand((3,)), np.arange(10)), [[0, 1, 2, 3]] * 3)


@pytest.mark.parametrize(
    ("options", "starts"),
    [
        ({"strides": (3,)}, [0, 3, 6]),
        ({"strides": (3,), "floor_mode": True}, [0, 3]),
        ({"strides": (7,)}, [0, 7]),
        ({"dilation": (2,), "strides": (1,), "floor_mode": True}, [0, 1, 2]),
        ({"dilation": (2,)}, [0, 4]),
    ],
    ids=str,
)
def test_tiles_start_inside_up_to_the_first_that_reaches_the_end(
    options: dict[str, Any], starts: list[int]
) -> None:
    assert list(Tensor(shape=(9,)).tile((4,), **options).eval()[:, 0]) == starts
    n = Symbol("n")
    assert list(Tensor(shape=(n,)).tile((4,), **options).eval({n: 9})[:, 0]) == starts


@pytest.mark.parametrize("floor_mode", [False, True])
@pytest.mark.parametrize("stride", [1, 4, 7])
def test_an_empty_dimension_has_no_tiles(stride: int, floor_mode: bool) -> None:
    n = Symbol("n")
    tensor = Tensor(shape=(n,)).tile((4,), strides=(stride,), floor_mode=floor_mode)
    assert tensor.eval({n: 0}).shape == (0, 4)


def test_a_repeated_dimension_has_no_end() -> None:
    found = tiles(of(np.arange(3)).unsqueeze(0).expand((5, -1)).tile((4, 3)), np.arange(3))
    np.testing.assert_array_equal(found, np.broadcast_to(np.arange(3), (2, 1, 4, 3)))


def test_pad_after_tile_flatten_and_index() -> None:
    padded = (
        of(X, other=-1).tile((1, 6)).squeeze(1).squeeze(0, level=1).pad(((1, 0),)).pad(((0, 2),), level=1)
    )
    np.testing.assert_array_equal(tiles(padded, X), np.pad(X, ((1, 0), (0, 2)), constant_values=-1))
    twice = of(X, other=-1)[::-1].pad(((1, 1), (0, 0)))[1:].pad(((0, 1), (0, 0)))
    np.testing.assert_array_equal(tiles(twice, X), np.pad(X[::-1], ((0, 2), (0, 0)), constant_values=-1))


def test_flatten_of_dimensions_that_lie_evenly_can_be_cut() -> None:
    line = np.arange(24)
    joined = of(line).tile((6,)).ravel().flatten()
    np.testing.assert_array_equal(tiles(joined.tile((4,)), line), line.reshape(6, 4))


@pytest.mark.parametrize("size", [1, 2, 3, 6, 12, 24])
def test_flatten_of_parts_is_cut_where_the_tile_divides(size: int) -> None:
    tensor = of(X).flatten().tile((size,))
    assert tensor.shape == (24 // size,)
    np.testing.assert_array_equal(tiles(tensor, X).reshape(-1, size), X.reshape(-1, size))


def test_the_slowest_part_of_a_flattened_dimension_may_be_overrun() -> None:
    n = Symbol("n")
    found = Tensor(shape=(n, 6)).flatten().tile((18,)).eval({n: 4})
    np.testing.assert_array_equal(found, np.pad(np.arange(24), (0, 12), constant_values=-1).reshape(2, 18))


def test_divisible_sizes_let_a_flattened_dimension_be_cut() -> None:
    n, m = Symbol("n"), Symbol("m", divisible_by=16)
    block = block_size(1, 16, name="block")
    with pytest.raises(errors.TypeMismatchError, match="divisible_by="):
        Tensor(shape=(n, n)).flatten().tile((block,))
    tensor = Tensor(shape=(n, m)).flatten().tile((block,))
    np.testing.assert_array_equal(tensor.eval({n: 3, m: 32, block: 8}), np.arange(96).reshape(12, 8))


# --- inner levels ------------------------------------------------------------------------------


def test_inner_levels_are_assigned() -> None:
    x = of(X).tile((2, 3))
    x.inner = x.inner.permute((1, 0)).unsqueeze(0)
    by_level = of(X).tile((2, 3)).permute((1, 0), level=1).unsqueeze(0, level=1)
    assert repr(x) == repr(by_level) == "Tensor((2, 2) of (1, 3, 2))"
    np.testing.assert_array_equal(tiles(x, X), tiles(by_level, X))


def test_inner_levels_are_indexed_and_padded() -> None:
    x = of(X, other=-1).tile((2, 3))
    x.inner = x.inner[::-1, 1].pad(((0, 1),))
    picked = X.reshape(2, 2, 2, 3)[:, ::-1, :, 1].transpose(0, 2, 1)
    np.testing.assert_array_equal(x.eval(), np.pad(picked, ((0, 0), (0, 0), (0, 1)), constant_values=-1))
    with pytest.raises(errors.TypeMismatchError, match="tiles or pads reach"):
        lowered([x])


def test_inner_of_another_tensor_is_refused() -> None:
    x = of(X).tile((2, 3))
    with pytest.raises(errors.TypeMismatchError, match="not the inner levels"):
        x.inner = of(X).tile((2, 3)).inner
    with pytest.raises(errors.TypeMismatchError, match="not the inner levels"):
        x.inner = x
    with pytest.raises(errors.TypeMismatchError, match="tile it first"):
        of(X).inner  # noqa: B018  # reading is what is tested


def test_what_a_tensor_says_of_itself() -> None:
    x = Tensor(2, name="x", dtype="float32", other=1)
    tiled = x.tile((2, 3)).tile((1, -1))
    assert tiled.num_levels == 3 and tiled.innermost.shape == (2, 3) and tiled.inner.inner.shape == (2, 3)
    assert str(x.size) == "x_0*x_1" and tiled.source.shape == x.shape and tiled.source.other == 1
    assert repr(tiled) == "Tensor x((ceiling(x_0/2), 1) of (1, ceiling(x_1/3)) of (2, 3))"


def test_subs_makes_sizes_concrete_and_shared() -> None:
    n, m = Symbol("n"), Symbol("m")
    tensor = Tensor(shape=(n, m)).tile((2, m))
    assert tensor.subs({"n": 5, m: n}).shape == (3, 1)
    np.testing.assert_array_equal(tensor.subs({n: 4, m: 6}).eval(), tensor.eval({n: 4, m: 6}))


def test_a_name_that_two_symbols_have_is_refused() -> None:
    x, y = Tensor(1), Tensor(1)
    tensor = x.tile((y.shape[0],))
    assert tensor.eval({x.shape[0]: 4, y.shape[0]: 2}).shape == (2, 2)
    with pytest.raises(errors.ValueMismatchError, match="2 symbols are called size_0"):
        tensor.eval({"size_0": 4})


# --- masks ---------------------------------------------------------------------------------------


def masks(*tensors: Tensor, **values: int) -> list[bool]:
    """Which accesses are masked."""
    named = {s: values[str(s)] for t in tensors for s in t.map.free_symbols}
    return [a.fill is not None for a in lowering.lower(tensors, 0, named).accesses]


def test_masks_are_made_only_where_sizes_do_not_divide() -> None:
    n, block = Symbol("n"), block_size(8, 16, name="block")
    tensors = [Tensor(shape=(n,)).tile((block,)), Tensor(shape=(n,)).tile((8,)).tile((block // 8,))]
    assert masks(*tensors, n=64, block=16) == [False, False]
    assert masks(*tensors, n=65, block=16) == [True, True]
    assert masks(Tensor(shape=(n,)).tile((8,), floor_mode=True), n=65) == [False]
    assert masks(Tensor(shape=(n,))[: n // 8 * 8].tile((8,)), n=65) == [False]


def test_masks_of_pads_go_where_tiles_do_not_touch_them() -> None:
    n = Symbol("n")
    padded = Tensor(shape=(n,)).pad(((3, 3),))
    assert masks(padded.tile((4,)), n=10) == [True]
    assert masks(padded[3:-3].tile((5,)), n=10) == [False]


def test_proven_sizes_make_no_requirements_and_no_bounds() -> None:
    n = Symbol("n", divisible_by=16)
    one = Symbol("one", lower=1, upper=1)
    assert Tensor(shape=(n,)).tile((16,)).map.bounds == ()
    assert Tensor(shape=(Symbol("m"),)).tile((16,)).map.bounds != ()
    assert len(Tensor(shape=(one,)).squeeze(0).map.requirements) == 1
    assert Tensor(shape=(Symbol("k", lower=3),))[2].map.requirements == ()


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
    with pytest.raises(errors.TypeMismatchError, match="reach from a part"):
        lowered([Tensor(shape=(10,))[:5].tile((4,))])


def test_overlapping_tiles_of_a_result_are_refused() -> None:
    with pytest.raises(errors.TypeMismatchError, match="overlap"):
        lowered([Tensor(shape=(10,)).tile((4,), strides=(2,))], num_results=1)


def test_an_expanded_result_is_refused() -> None:
    with pytest.raises(errors.TypeMismatchError, match="same place"):
        lowered([Tensor(shape=(1, 4)).expand((3, -1))], num_results=1)


@pytest.mark.parametrize(
    "result",
    [
        Tensor(shape=(10,)).tile((4,), floor_mode=True),
        Tensor(shape=(10,))[::2].tile((1,)),
        Tensor(shape=(10,))[:8].tile((4,)),
        Tensor(shape=(3, 4)).tile((2, 2), strides=(2, 3)),
        Tensor(shape=(3, 4))[0],
        Tensor(shape=(5,))[:0],
        Tensor(shape=())[None].expand((0,)),
    ],
    ids=repr,
)
def test_a_result_whose_elements_are_left_out_is_refused(result: Tensor) -> None:
    with pytest.raises(errors.TypeMismatchError, match="leave out some of its elements"):
        lowered([result], num_results=1)


@pytest.mark.parametrize(
    "result",
    [
        Tensor(shape=(10,)).tile((4,)).tile((3,)),
        Tensor(shape=(8,)).tile((4,), floor_mode=True),
        Tensor(shape=(10,))[::-1].tile((4,)),
        Tensor(shape=(3, 1)).pad(((2, 2), (0, 0))).tile((2, 1)).permute((1, 0)),
        Tensor(shape=(2,)).pad(((4, 0),)).tile((2,), strides=(4,)),
        Tensor(shape=(0, 4)).tile((2, 3)),
        Tensor(shape=()),
    ],
    ids=repr,
)
def test_a_result_that_is_written_once_is_taken(result: Tensor) -> None:
    written = [p for p in result.eval().ravel() if p >= 0]
    assert sorted(written) == list(range(len(written)))
    lowered([result], num_results=1)


def test_squeezing_a_dimension_found_not_to_be_one_is_refused() -> None:
    n = Symbol("n")
    with pytest.raises(errors.TypeMismatchError, match="n = 3"):
        lowering.lower([Tensor(shape=(n, 4)).squeeze(0)], 0, {n: 3})


def test_squeezing_what_cannot_be_one_is_refused_at_once() -> None:
    for size in (2 * Symbol("n"), Symbol("m", lower=2), Symbol("k", divisible_by=4)):
        with pytest.raises(errors.TypeMismatchError, match=r"squeeze\(0\): the dimension cannot have size 1"):
            Tensor(shape=(size,)).squeeze(0)
        with pytest.raises(errors.TypeMismatchError, match="expand of dimension 0 to 7"):
            Tensor(shape=(size,)).expand((7,))


def test_sizes_that_must_be_equal_are_checked() -> None:
    n, m = Symbol("n"), Symbol("m")
    tensor = Tensor(shape=(n,)).require("sizes of a line", n, m)
    assert tensor.eval({n: 3, m: 3}).shape == (3,)
    with pytest.raises(errors.TypeMismatchError, match=r"sizes of a line \(n = m\) does not fit") as caught:
        tensor.eval({n: 3, m: 4})
    assert "n = 3" in str(caught.value) and "expected: 4" in str(caught.value)
    with pytest.raises(errors.TypeMismatchError, match="sizes of a line must be equal"):
        tensor.require("sizes of a line", n, n + 1)
    assert tensor.require("sizes", n, n) is tensor


def test_expanding_to_the_size_it_has_keeps_a_dimension() -> None:
    n = Symbol("n")
    np.testing.assert_array_equal(Tensor(shape=(n, 1)).expand((n, 2)).eval({n: 2}), [[0, 0], [1, 1]])


def test_a_part_of_an_array_cannot_be_masked_at_its_end() -> None:
    for tensor in (
        Tensor(shape=(10,))[2:7],
        Tensor(shape=(10,))[6:1:-1],
        Tensor(shape=(2, 5)).ravel()[0][:3],
    ):
        with pytest.raises(errors.TypeMismatchError, match="give the kernel the part as an operand"):
            lowered([tensor.tile((4,))])
    assert lowered([Tensor(shape=(10,))[5:].tile((4,))]).accesses[0].fill == 0
    assert lowered([Tensor(shape=(10,))[5::-1].tile((4,))]).accesses[0].fill == 0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x.tile((0, 1)),
        lambda x: x.tile((1, 1), strides=(-2, 1)),
        lambda x: x.tile((2, 1), dilation=(0, 1)),
        lambda x: x.pad(((-1, 0), (0, 0))),
        lambda x: x[::0],
        lambda x: x.permute((0, 0)),
        lambda _: Tensor(shape=(-1,)),
    ],
)
def test_sizes_out_of_range_are_refused(wrong: Any) -> None:
    with pytest.raises(errors.ValueMismatchError):
        wrong(of(X))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x[4],
        lambda x: x[0, -7],
        lambda x: x[0, 0, 0],
        lambda x: x[..., ..., 0],
        lambda x: x.flatten(1, 1),
        lambda x: x.squeeze(2),
        lambda x: x.tile((1, 1), level=1),
    ],
)
def test_places_out_of_range_are_refused(wrong: Any) -> None:
    with pytest.raises(errors.IndexOutOfRangeError):
        wrong(of(X))


WRONG: Any = ({"low": 1}, {"constexpr": True})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Tensor(), "needs ndim or shape"),
        (lambda: Tensor(1, shape=(1,)), "needs ndim or shape"),
        (lambda: Tensor(1, shape_options=WRONG[0]), "no such option"),
        (lambda: Tensor(1, shape_options=WRONG[1]), "constant of a compiled kernel"),
        (lambda: Tensor(2, shape_options=[None]), "one entry per dimension"),
        (lambda: Tensor(shape=(4,), shape_options={"lower": 1}), "say it of the symbol"),
        (lambda: Tensor(1, constexpr=True), "only a scalar"),
        (lambda: Tensor(0, value=1), "only a scalar"),
        (lambda: Tensor(shape=(1.5,)), "not a size"),
        (lambda: Tensor(2).tile((1,)), "one entry per dimension"),
        (lambda: Tensor(2).tile((1, 1), strides=(1,)), "one entry per dimension"),
    ],
)
def test_tensors_that_make_no_sense_are_refused(wrong: Any, message: str) -> None:
    with pytest.raises(errors.TypeMismatchError, match=message):
        wrong()


@pytest.mark.parametrize(("lower", "upper"), [(3, 8), (16, 8), (0, 8)])
def test_bounds_of_a_block_size_are_powers_of_two_in_order(lower: int, upper: int) -> None:
    with pytest.raises(errors.ValueMismatchError, match="powers of two"):
        block_size(lower, upper)
