"""Collectives as users call them: over whole named axes, or within groups of their members
(`axis_index_groups`); and what is made of them, `pbroadcast`, `ragged_all_to_all`, `psend` and `precv`.

Members of a group exchange what they have by permutations, one per distance, in which all groups take part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infini.core import dtypes, errors, primitive, trace, tree
from infini.core.value import Value
from infini.lax import collectives, elementwise as e, exchanges, families, view
from infini.lax.collectives import AxisName, axes_of
from infini.lax.indexing import dynamic_slices
from infini.lax.indexing.dimension_numbers import ScatterDimensionNumbers
from infini.lax.indexing.scatter import scatter

Groups = Sequence[Sequence[int]] | None


@dataclass(frozen=True, slots=True)
class _Members:
    """The members of some axes in groups of equal size."""

    axis_name: AxisName
    groups: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, axis_name: AxisName, groups: Sequence[Sequence[int]]) -> _Members:
        """The groups that a user names.

        Raises:
            ValueMismatchError: a member is missing or named twice, or sizes differ.
        """
        found = tuple(tuple(int(i) for i in group) for group in groups)
        count = families.prod(axes_of(axis_name)[1])
        if sorted(i for group in found for i in group) != list(range(count)):
            raise errors.ValueMismatchError(
                f"axis_index_groups must name each of {count} members once", got=str(groups)
            )
        if len({len(group) for group in found}) != 1:
            raise errors.ValueMismatchError("axis_index_groups must be of one size", got=str(groups))
        return cls(axis_name, found)

    @property
    def size(self) -> int:
        """Members of one group."""
        return len(self.groups[0])

    def position(self) -> Value:
        """Place of this member in its group."""
        places = np.empty(len(self.groups) * self.size, np.int32)
        for group in self.groups:
            places[list(group)] = range(self.size)
        index = collectives.axis_index(self.axis_name)
        return dynamic_slices.dynamic_index_in_dim(places, index, 0, keepdims=False)

    def sent(self, x: Value, distance: int) -> Value:
        """What the member `distance` places before this one gives; the first of a group follows the last."""
        pairs = [
            (group[k], group[(k + distance) % self.size]) for group in self.groups for k in range(self.size)
        ]
        found: Value = exchanges.ppermute(x, self.axis_name, pairs)
        return found

    def in_order(self, received: Sequence[Value]) -> Value:
        """What came from each distance, stacked in the order of the group."""
        # Backwards they are the members after this one, from the next on.
        rows = [view.expand_dims(x, (0,)) for x in reversed(received)]
        twice = view.concatenate([*rows, *rows], 0)
        start = e.sub(self.size - 1, self.position())
        return dynamic_slices.dynamic_slice_in_dim(twice, start, self.size, 0)

    def gathered(self, x: Value) -> Value:
        """What each member of the group has, stacked."""
        return self.in_order([x if s == 0 else self.sent(x, s) for s in range(self.size)])

    def exchanged(self, x: Value, split: int) -> Value:
        """The parts along `split` that the members of the group have for this one, stacked."""
        if x.shape[split] % self.size:
            raise errors.TypeMismatchError(
                f"the dimension does not divide into {self.size} parts", got=f"{x.type}, dimension {split}"
            )
        rows, mine = x.shape[split] // self.size, self.position()
        received = []
        for distance in range(self.size):
            target = e.rem(e.add(mine, distance), self.size)
            part = dynamic_slices.dynamic_slice_in_dim(x, e.mul(target, rows), rows, split)
            received.append(part if distance == 0 else self.sent(part, distance))
        return self.in_order(received)


def _each(x: Any, one: Callable[[Value], Any]) -> Any:  # Any: pytrees
    return tree.map(lambda leaf: one(trace.as_value(leaf)), x)


def _reduced(op_name: str, x: Value) -> Value:
    return trace.bind1(primitive.by_name(op_name), x, axes=(-x.ndim,))


def psum(x: Any, axis_name: AxisName, *, axis_index_groups: Groups = None) -> Any:  # Any: pytrees
    """Sum over the members of a named axis, as `jax.lax.psum`; booleans count as int32, and a Python number
    is multiplied by the number of members.

    Args:
        x: pytree of arrays and numbers.
        axis_name: axis or axes.
        axis_index_groups: groups of members, of one size, that add up among themselves.

    Raises:
        UnboundAxisError: no enclosing transformation names the axis.
        ValueMismatchError: the groups do not name each member once.
    """
    if axis_index_groups is None:
        return collectives.psum(x, axis_name)
    members = _Members.of(axis_name, axis_index_groups)

    def one(leaf: Any) -> Any:  # Any: numbers and arrays
        if type(leaf) in (bool, int, float):
            return leaf * members.size
        value = trace.as_value(leaf)
        if value.dtype == dtypes.bool_:
            value = e.convert_element_type(value, dtypes.int32)
        return _reduced("reduce_sum", members.gathered(value))

    return tree.map(one, x)


def pmean(x: Any, axis_name: AxisName, *, axis_index_groups: Groups = None) -> Any:  # Any: pytrees
    """Mean over the members of a named axis, or of their groups as in `psum`; integers and booleans become
    floats.
    """
    if axis_index_groups is None:
        return collectives.pmean(x, axis_name)
    size = _Members.of(axis_name, axis_index_groups).size

    def one(value: Value) -> Value:
        if not dtypes.is_inexact(value.dtype):
            value = e.convert_element_type(value, dtypes.float32)
        return e.div(psum(value, axis_name, axis_index_groups=axis_index_groups), families.like(size, value))

    return _each(x, one)


def pmax(x: Any, axis_name: AxisName, *, axis_index_groups: Groups = None) -> Any:  # Any: pytrees
    """Maximum over the members of a named axis, or of their groups as in `psum`."""
    if axis_index_groups is None:
        return collectives.pmax(x, axis_name)
    members = _Members.of(axis_name, axis_index_groups)
    return _each(x, lambda value: _reduced("reduce_max", members.gathered(value)))


def pmin(x: Any, axis_name: AxisName, *, axis_index_groups: Groups = None) -> Any:  # Any: pytrees
    """Minimum over the members of a named axis, or of their groups as in `psum`."""
    if axis_index_groups is None:
        return collectives.pmin(x, axis_name)
    members = _Members.of(axis_name, axis_index_groups)
    return _each(x, lambda value: _reduced("reduce_min", members.gathered(value)))


def _front_to(x: Value, at: int) -> Value:
    """The first dimension moved to place `at` of the others."""
    return view.transpose(x, [*range(1, at + 1), 0, *range(at + 1, x.ndim)])


def _joined(x: Value, at: int) -> Value:
    """The first dimension merged into dimension `at` of the others, as the major part of it."""
    moved = _front_to(x, at)
    shape = (*moved.shape[:at], moved.shape[at] * moved.shape[at + 1], *moved.shape[at + 2 :])
    return view.reshape(moved, shape)


def all_gather(
    x: Any, axis_name: AxisName, *, axis_index_groups: Groups = None, axis: int = 0, tiled: bool = False
) -> Any:  # Any: pytrees
    """Arrays of every member of a named axis, of several, or of a group as in `psum`: stacked along a fresh
    dimension `axis`, or joined along it when `tiled`.
    """
    if axis_index_groups is None:
        return exchanges.all_gather(x, axis_name, axis=axis, tiled=tiled)
    members = _Members.of(axis_name, axis_index_groups)

    def one(value: Value) -> Value:
        at = families.normalize_axis(axis, value.ndim + (not tiled))
        found = members.gathered(value)
        return _joined(found, at) if tiled else _front_to(found, at)

    return _each(x, one)


def psum_scatter(
    x: Any,
    axis_name: AxisName,
    *,
    scatter_dimension: int = 0,
    axis_index_groups: Groups = None,
    tiled: bool = False,
) -> Any:  # Any: pytrees
    """Sum over a named axis, several, or a group as in `psum`, of which each member keeps its part along
    `scatter_dimension`.
    """
    if axis_index_groups is None:
        return exchanges.psum_scatter(x, axis_name, scatter_dimension=scatter_dimension, tiled=tiled)
    members = _Members.of(axis_name, axis_index_groups)

    def one(value: Value) -> Value:
        at = families.normalize_axis(scatter_dimension, value.ndim)
        if not tiled:
            _check_whole(value, at, members.size, "psum_scatter")
        part = _reduced("reduce_sum", members.exchanged(value, at))
        return part if tiled else view.squeeze(part, (at,))

    return _each(x, one)


def _check_whole(value: Value, at: int, size: int, what: str) -> None:
    if value.shape[at] != size:
        raise errors.ValueMismatchError(
            f"{what} without tiled=True needs a dimension of the size of a group",
            got=f"{value.type}, dimension {at}, groups of {size}",
        )


def all_to_all(
    x: Any,
    axis_name: AxisName,
    split_axis: int,
    concat_axis: int,
    *,
    axis_index_groups: Groups = None,
    tiled: bool = False,
) -> Any:  # Any: pytrees
    """Cut along `split_axis`, send part j to member j of the axis or of the group, and join what arrives
    along `concat_axis` when `tiled`. Otherwise `split_axis` has the size of the named axis or of a group and
    disappears, and what arrives is stacked along a fresh dimension `concat_axis`.

    Raises:
        TypeMismatchError: the dimension of `split_axis` does not divide into the members.
        ValueMismatchError: without `tiled`, it has another size than the named axis or the groups.
    """
    if axis_index_groups is None:
        return exchanges.all_to_all(x, axis_name, split_axis, concat_axis, tiled=tiled)
    members = _Members.of(axis_name, axis_index_groups)

    def one(value: Value) -> Value:
        split = families.normalize_axis(split_axis, value.ndim)
        concat = families.normalize_axis(concat_axis, value.ndim)
        if tiled:
            return _joined(members.exchanged(value, split), concat)
        _check_whole(value, split, members.size, "all_to_all")
        return _front_to(view.squeeze(members.exchanged(value, split), (split + 1,)), concat)

    return _each(x, one)


# --- what is made of collectives -----------------------------------------------------------------


def pbroadcast(x: Any, axis_name: AxisName, source: int) -> Any:  # Any: pytrees
    """What one member of a named axis has, on all of them, as `jax.lax.pbroadcast`. In each step twice as
    many members have it.

    Args:
        x: pytree of arrays.
        axis_name: axis or axes.
        source: number of the member.

    Raises:
        ValueMismatchError: there is no such member.
    """
    count = families.prod(axes_of(axis_name)[1])
    if not 0 <= source < count:
        raise errors.ValueMismatchError(
            f"an axis of size {count} has no member {source}", expected=f"0 to {count - 1}"
        )
    after = e.rem(e.add(collectives.axis_index(axis_name), count - source), count)

    def one(value: Value) -> Value:
        done = 1
        while done < count:
            pairs = [(i, (i + done) % count) for i in range(count)]
            arrived = exchanges.ppermute(value, axis_name, pairs)
            is_target = e.bitwise_and(e.ge(after, done), e.lt(after, 2 * done))
            which = view.broadcast_in_dim(is_target, value.shape, ())
            value = e.select_n(which, value, arrived)
            done *= 2
        return value

    return _each(x, one)


def ragged_all_to_all(
    operand: Any,
    output: Any,
    input_offsets: Any,
    send_sizes: Any,
    output_offsets: Any,
    recv_sizes: Any,
    *,
    axis_name: AxisName,
    axis_index_groups: Groups = None,
) -> Value:  # Any: operands
    """Send rows to members of a named axis, as many as each of them should get, as
    `jax.lax.ragged_all_to_all`.

    Args:
        operand: rows to send.
        output: rows that are kept where nothing arrives.
        input_offsets: for each member the first row of `operand` that it gets.
        send_sizes: how many rows it gets.
        output_offsets: where they begin in its output.
        recv_sizes: how many rows come from each member; they follow from what the members send.
        axis_name: axis or axes.
        axis_index_groups: not supported.

    Returns:
        `output` with the rows that arrived.

    Raises:
        TypeMismatchError: dtypes or shapes of rows differ, or offsets and sizes are not one integer per
            member.
        UnsupportedError: groups are given.

    Complexity:
        Whole operands travel, as sizes are known when the program runs.
    """
    if axis_index_groups is not None:
        raise errors.UnsupportedError(
            "ragged_all_to_all takes no axis_index_groups", fix="use an axis of the mesh for the groups"
        )
    rows, kept = trace.as_value(operand), trace.as_value(output)
    if rows.dtype != kept.dtype or rows.shape[1:] != kept.shape[1:] or not rows.ndim or not kept.ndim:
        raise errors.TypeMismatchError(
            "ragged_all_to_all: operand and output must have rows of one type",
            got=f"{rows.type}, {kept.type}",
        )
    count = families.prod(axes_of(axis_name)[1])
    numbers = [trace.as_value(v) for v in (input_offsets, send_sizes, output_offsets, recv_sizes)]
    if any(n.shape != (count,) or n.dtype not in dtypes.INTEGERS for n in numbers):
        raise errors.TypeMismatchError(
            f"ragged_all_to_all: offsets and sizes must be {count} integers, one per member",
            got=", ".join(str(n.type) for n in numbers),
        )
    mine = collectives.axis_index(axis_name)
    first, size, place = (
        dynamic_slices.dynamic_index_in_dim(exchanges.all_gather(n, axis_name), mine, 1, keepdims=True)
        for n in numbers[:3]
    )  # (members, 1)
    row = view.broadcasted_iota(first.dtype, (count, rows.shape[0]), 1)
    arrives = e.bitwise_and(
        e.ge(row, _over(first, row)), e.lt(e.sub(row, _over(first, row)), _over(size, row))
    )
    target = e.add(e.sub(row, _over(first, row)), _over(place, row))
    nowhere = view.full_like(target, kept.shape[0])
    index = e.select_n(arrives, nowhere, target)
    arrived = exchanges.all_gather(rows, axis_name, tiled=True)
    return scatter(
        kept,
        view.reshape(index, (count * rows.shape[0], 1)),
        arrived,
        ScatterDimensionNumbers(tuple(range(1, kept.ndim)), (0,), (0,)),
        mode="drop",
    )


def _over(x: Value, like: Value) -> Value:
    return view.broadcast_in_dim(x, like.shape, (0, 1))


def psend(x: Any, axis_name: AxisName, perm: Sequence[tuple[int, int]]) -> Any:  # Any: pytrees
    """Send along (source, destination) pairs of a named axis, as `jax.lax.psend`. What is returned stands for
    what is on its way; give it to `precv`.
    """
    return exchanges.ppermute(x, axis_name, perm)


def precv(
    token: Any, out_shape: Any, axis_name: AxisName, perm: Sequence[tuple[int, int]]
) -> Any:  # Any: pytrees
    """Receive what `psend` sent, as `jax.lax.precv`; members that receive nothing get zeros.

    Args:
        token: what `psend` returned.
        out_shape: tree of `ShapeDtypeStruct`, one per array that was sent.
        axis_name: axis or axes of `psend`.
        perm: pairs of `psend`.

    Raises:
        TypeMismatchError: other arrays were sent.
    """
    axes_of(axis_name)
    leaves, structure = tree.flatten(token)
    wanted, expected = tree.flatten(out_shape)
    values = [trace.as_value(leaf) for leaf in leaves]
    got, asked = ([(tuple(x.shape), np.dtype(x.dtype)) for x in side] for side in (values, wanted))
    if got != asked or structure != expected:
        raise errors.TypeMismatchError(
            "precv: other arrays were sent", got=str([str(v.type) for v in values]), expected=str(out_shape)
        )
    return tree.unflatten(structure, values)
