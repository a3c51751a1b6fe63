"""Random chains of arrangement operations against a model of their meaning in plain NumPy.

The model knows no affine maps: it is an array that says for every element which array element it is, -1
outside, and the operations slice, pad, repeat and reshape it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import assume, given, settings, strategies as st

import infini as inf
from infini import tile as tile_
from infini.core import errors
from infini.core.ir import ArrayType
from infini.tile import lowering
from infini.tile.arrangement import Tensor
from infini.tile.program import indices
from infini.tile.symbols import Symbol

LARGEST = 4000  # elements of a case


@dataclass(frozen=True)
class Axis:
    """What the model remembers of an axis beside its size.

    Args:
        repeats: it does not move in the array, so it has no end.
        is_mixed: it was flattened of axes that repeat and others; tiles that overrun it are left out here.
    """

    repeats: bool = False
    is_mixed: bool = False


@dataclass(frozen=True)
class Model:
    """Positions in the array, and per level its axes."""

    positions: np.ndarray
    levels: tuple[tuple[Axis, ...], ...]

    def start(self, level: int) -> int:
        return sum(map(len, self.levels[:level]))

    def sizes(self, level: int) -> tuple[int, ...]:
        start = self.start(level)
        return self.positions.shape[start : start + len(self.levels[level])]

    def with_level(self, level: int, positions: np.ndarray, *found: tuple[Axis, ...]) -> Model:
        return Model(positions, (*self.levels[:level], *found, *self.levels[level + 1 :]))


def numbers_of_tiles(size: int, tile: int, stride: int, reach: int, floor_mode: bool) -> int:
    """Count tiles one by one."""
    if stride == 0:
        return 1
    count = 0
    while (floor_mode and count * stride + reach <= size) or (
        not floor_mode
        and count * stride < size
        and (count == 0 or (count - 1) * stride + reach < size or stride >= reach)
    ):
        count += 1
    return count


def taken(positions: np.ndarray, axis: int, index: np.ndarray, repeats: bool) -> np.ndarray:
    """Elements along an axis at an array of indices, -1 where there is none."""
    size = positions.shape[axis]
    if repeats and size:
        index = index % size
    padded = np.concatenate([positions, np.full_like(positions.take([0] if size else [], axis), -1)], axis)
    if not size:
        shape = list(positions.shape)
        shape[axis] = 1
        padded = np.full(shape, -1)
    return padded.take(np.where((index >= 0) & (index < size), index, padded.shape[axis] - 1), axis)


# --- operations, each drawn and done on both ------------------------------------------------------


def tile(draw: Any, tensor: Tensor, model: Model, level: int) -> tuple[Any, Model]:
    tiles: list[int] = []
    strides: list[int] = []
    dilation: list[int] = []
    floor_mode = draw(st.booleans())
    positions, counts, elements = model.positions, [], []
    start = model.start(level)
    # Each axis becomes two neighbours; they are sorted into counts and elements at the end.
    for n, (axis, size) in enumerate(zip(model.levels[level], model.sizes(level), strict=True)):
        is_simple = axis.is_mixed or size == 0
        t = draw(st.sampled_from([-1, 1]) if is_simple else st.integers(-1, size + 1).filter(bool))
        s = -1 if is_simple else draw(st.sampled_from([-1, -1, 0, 1, 2, 3, 5]))
        d = 1 if is_simple else draw(st.sampled_from([1, 1, 1, 2, 3]))
        tiles, strides, dilation = [*tiles, t], [*strides, s], [*dilation, d]
        is_plain = d == 1 and s in (-1, t)
        width = size if t == -1 else t
        stride = width if s == -1 else s
        reach = (width - 1) * d + 1
        count = 1 if t == -1 and is_plain else numbers_of_tiles(size, width, stride, reach, floor_mode)
        index = np.arange(count)[:, None] * stride + np.arange(width) * d
        positions = taken(positions, start + 2 * n, index.reshape(-1), axis.repeats)
        shape = positions.shape
        positions = positions.reshape(*shape[: start + 2 * n], count, width, *shape[start + 2 * n + 1 :])
        counts.append(replace(axis, repeats=axis.repeats or (is_plain and t == -1) or stride == 0))
        elements.append(replace(axis, repeats=axis.repeats or (is_plain and t == 1)))
    rank = len(tiles)
    order = [*range(start), *(start + 2 * n for n in range(rank)), *(start + 2 * n + 1 for n in range(rank))]
    order += range(start + 2 * rank, positions.ndim)
    found = model.with_level(level, positions.transpose(order), tuple(counts), tuple(elements))
    return lambda t, **at: t.tile(tiles, strides, dilation, floor_mode=floor_mode, **at), found


def expand(draw: Any, tensor: Tensor, model: Model, level: int) -> tuple[Any, Model]:
    start, sizes, shape, axes = model.start(level), model.sizes(level), [], []
    full = list(model.positions.shape)
    for n, (axis, size) in enumerate(zip(model.levels[level], sizes, strict=True)):
        wanted = draw(st.integers(2, 3)) if size == 1 and draw(st.booleans()) else -1
        shape.append(wanted)
        axes.append(axis if wanted == -1 else Axis(repeats=True))
        full[start + n] = size if wanted == -1 else wanted
    positions = np.broadcast_to(model.positions, full)
    return lambda t, **at: t.expand(shape, **at), model.with_level(level, positions, tuple(axes))


def unsqueeze(draw: Any, tensor: Tensor, model: Model, level: int) -> tuple[Any, Model]:
    axes = list(model.levels[level])
    dim = draw(st.integers(-len(axes) - 1, len(axes)))
    at_axis = dim % (len(axes) + 1)
    axes.insert(at_axis, Axis(repeats=True))
    positions = np.expand_dims(model.positions, model.start(level) + at_axis)
    return lambda t, **at: t.unsqueeze(dim, **at), model.with_level(level, positions, tuple(axes))


def squeeze(draw: Any, tensor: Tensor, model: Model, level: int) -> tuple[Any, Model]:
    sizes = model.sizes(level)
    dims = [d for d, size in enumerate(sizes) if size == 1 and draw(st.booleans())]
    positions = model.positions.squeeze(tuple(model.start(level) + d for d in dims))
    axes = tuple(x for d, x in enumerate(model.levels[level]) if d not in dims)
    given = [d - len(sizes) if draw(st.booleans()) else d for d in dims]
    return lambda t, **at: t.squeeze(given, **at), model.with_level(level, positions, axes)


def permute(draw: Any, tensor: Tensor, model: Model, level: int) -> tuple[Any, Model]:
    start, axes = model.start(level), model.levels[level]
    dims = draw(st.permutations(range(len(axes))))
    order = [*range(start), *(start + d for d in dims), *range(start + len(axes), model.positions.ndim)]
    found = model.with_level(level, model.positions.transpose(order), tuple(axes[d] for d in dims))
    return lambda t, **at: t.permute(dims, **at), found


def flatten(draw: Any, tensor: Tensor, model: Model, level: int) -> tuple[Any, Model]:
    axes, sizes, start = model.levels[level], model.sizes(level), model.start(level)
    assume(axes)
    first = draw(st.integers(0, len(axes) - 1))
    last = draw(st.integers(first + 1, len(axes)))
    shape = model.positions.shape
    joined = math.prod(sizes[first:last])
    positions = model.positions.reshape(*shape[: start + first], joined, *shape[start + last :])
    parts = [x for x, size in zip(axes[first:last], sizes[first:last], strict=True) if size != 1]
    parts = parts or list(axes[first:last])
    is_mixed = any(x.is_mixed for x in parts) or len({x.repeats for x in parts}) > 1
    axis = Axis(all(x.repeats for x in parts), is_mixed)
    found = model.with_level(level, positions, (*axes[:first], axis, *axes[last:]))
    return lambda t, **at: t.flatten(first, last, **at), found


def ravel(draw: Any, tensor: Tensor, model: Model, level: int) -> tuple[Any, Model]:
    joined = tuple(axis for inside in model.levels[level:] for axis in inside)
    return lambda t, **at: t.ravel(**at), Model(model.positions, (*model.levels[:level], joined))


def pad(draw: Any, tensor: Tensor, model: Model, level: int) -> tuple[Any, Model]:
    start, axes, widths = model.start(level), [], []
    around = [(0, 0)] * model.positions.ndim
    for n, axis in enumerate(model.levels[level]):
        both = (0, 0) if axis.is_mixed else draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
        widths.append(both)
        around[start + n] = both
        axes.append(replace(axis, repeats=axis.repeats and both == (0, 0)))
    positions = np.pad(model.positions, around, constant_values=-1) if around else model.positions
    return lambda t, **at: t.pad(widths, **at), model.with_level(level, positions, tuple(axes))


def index(draw: Any, tensor: Tensor, model: Model, level: int) -> tuple[Any, Model]:
    items: list[Any] = []
    axes: list[Axis] = []
    for axis, size in zip(model.levels[level], model.sizes(level), strict=True):
        kind = draw(st.sampled_from(["slice", "whole", "integer", "new"]))
        if kind == "new":
            items.append(None)
            axes.append(Axis(repeats=True))
        if kind == "integer" and size:
            items.append(draw(st.integers(-size, size - 1)))
        elif kind == "slice":
            ends = st.none() | st.integers(-size - 2, size + 2)
            items.append(slice(draw(ends), draw(ends), draw(st.sampled_from([None, 1, 2, 3, -1, -2]))))
            axes.append(axis)
        else:
            items.append(slice(None))
            axes.append(axis)
    before = (slice(None),) * model.start(level)
    if draw(st.booleans()):
        while items and items[-1] == slice(None):
            items.pop()
        items.append(...)
    positions = model.positions[(*before, *(x for x in items if x is not ...))]

    def picked(t: Tensor, level: int = 0) -> Tensor:
        if level == 0:
            return t[tuple(items)]
        t = t[...]
        inner = t.inner
        t.inner = picked(inner, level - 1)
        return t

    return picked, model.with_level(level, positions, tuple(axes))


OPERATIONS = (tile, tile, expand, unsqueeze, squeeze, permute, flatten, ravel, pad, index)


def applied(operation: Any, tensor: Tensor, level: int, by_inner: bool) -> Tensor:
    """By `level=`, or by assigning inner levels: the same."""
    if not by_inner or level == 0:
        return operation(tensor, level=level)
    tensor = tensor[...]
    tensor.inner = applied(operation, tensor.inner, level - 1, by_inner)
    return tensor


@st.composite
def arrangements(draw: Any) -> tuple[Tensor, Model, dict[Any, int]]:
    shape = tuple(draw(st.lists(st.sampled_from([0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 12]), max_size=3)))
    names = [Symbol(f"n{d}") for d in range(len(shape))]
    values = dict(zip(names, shape, strict=True))
    tensor = Tensor(shape=names if draw(st.booleans()) else shape, name="x")
    model = Model(np.arange(math.prod(shape)).reshape(shape), ((Axis(),) * len(shape),))
    for _ in range(draw(st.integers(1, 5))):
        level = draw(st.integers(0, len(model.levels) - 1))
        operation, changed = draw(st.sampled_from(OPERATIONS))(draw, tensor, model, level)
        if changed.positions.size > LARGEST or changed.positions.ndim > 12:
            continue
        try:
            tensor = applied(operation, tensor, level, draw(st.booleans()))
        except errors.TypeMismatchError as error:
            # What is no affine map is refused with a way out.
            assert "flattened" in str(error) and "fix:" in str(error)
            continue
        model = changed
    return tensor, model, values


@given(arrangements())
def test_eval_is_the_model(case: tuple[Tensor, Model, dict[Any, int]]) -> None:
    tensor, model, values = case
    found = tensor.eval(values)
    assert found.shape == model.positions.shape
    np.testing.assert_array_equal(found, model.positions)


@given(arrangements())
def test_accesses_are_the_model(case: tuple[Tensor, Model, dict[Any, int]]) -> None:
    tensor, model, values = case
    shape = tuple(int(n.xreplace(values)) for n in tensor.source.shape)
    try:
        lowered = lowering.lower([tensor], 0, values)
    except errors.TypeMismatchError as error:
        assert "reach from a part of the array" in str(error) or "walked must lie evenly" in str(error)
        return
    (access,) = lowered.accesses
    found = []
    for program in np.ndindex(*lowered.grid):
        where, inside = indices(access, shape, program)
        safe = tuple(np.where(inside, at, 0) for at in where)
        at = np.ravel_multi_index(safe, shape) if inside.any() and shape else np.zeros(access.tile, np.int64)
        found.append(np.where(inside, at, -1))
    np.testing.assert_array_equal(np.reshape(found, model.positions.shape), model.positions)
    if model.positions.size:
        assert (access.fill is None) == bool((model.positions >= 0).all())


@given(arrangements())
def test_results_that_are_taken_are_written_once_and_whole(
    case: tuple[Tensor, Model, dict[Any, int]],
) -> None:
    tensor, model, values = case
    written = np.sort(model.positions[model.positions >= 0])
    shape = tuple(int(n.xreplace(values)) for n in tensor.source.shape)
    everything = np.arange(math.prod(shape))
    try:
        lowered = lowering.lower([tensor], 1, values)
        # What every program has whole may be written by numbers of rows, but not as a tile.
        lowering.check_alone(lowered, 0, shape, "x")
    except errors.TypeMismatchError as error:
        if "leave out" in str(error):
            assert len(np.unique(written)) < len(everything)
    else:
        np.testing.assert_array_equal(written, everything)


@settings(max_examples=max(settings.default.max_examples // 2, 10))
@given(arrangements(), st.sampled_from([np.int32, np.float32]))
def test_kernels_on_them_compute_what_the_model_does(
    case: tuple[Tensor, Model, dict[Any, int]], dtype: Any
) -> None:
    """The sum of each tile: on the CPU, by the interpreter of kernels, and by the model."""
    tensor, model, values = case
    assume(len(model.levels) <= 2)
    shape = tuple(int(n.xreplace(values)) for n in tensor.source.shape)
    grid = model.sizes(0)
    assume(0 not in grid)
    sums = Tensor(shape=grid).tile((1,) * len(grid)).squeeze(tuple(range(len(grid))), level=1)
    arranged = tensor, sums
    try:
        kernel = tile_.kernel(
            lambda x, y: arranged, tensors=(Tensor(shape=tensor.source.shape), Tensor(shape=grid))
        )(lambda x: x.sum() if x.ndim else x)
        # Whole numbers, whose sums are exact in any order.
        data = (np.arange(math.prod(shape)) % 11 + 1).astype(dtype).reshape(shape)
        kernel.specialize([ArrayType(shape, np.dtype(dtype))])
    except errors.TypeMismatchError as error:
        assert "reach from a part of the array" in str(error)
        return
    places = model.positions.reshape(*grid, -1)
    known = np.where(places >= 0, np.append(data.reshape(-1), 0)[np.maximum(places, -1)], 0)
    for device in ("cpu", "reference"):
        with inf.config(device=device):
            np.testing.assert_array_equal(kernel(data), known.sum(-1, dtype=dtype))
