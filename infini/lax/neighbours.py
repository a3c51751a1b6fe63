"""Reading along a split dimension: each device gets a window of it, and neighbours send what it lacks.

`starts` and other tables have one number per part. Windows that begin equally far from every part take
their borders by one exchange per neighbour (a *halo*). Others are put together in *rounds*, in each of
which every device sends and receives at most one piece; where that would move as much as a gather, it is
a gather. PARTITION rules call this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infini.core import dtypes, primitive, trace
from infini.core.value import Literal, Value
from infini.lax import families
from infini.lax.places import Part

Table = Sequence[int]  # a number for each part


@dataclass(frozen=True, slots=True)
class Message:
    """Elements `start` to `stop` of the part of one device that another needs, or it itself."""

    sender: int
    receiver: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.stop - self.start


Round = Sequence[Message]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Elements on their way into a window, and where each device puts the first of them.

    Places outside of the window are allowed; what lies there is dropped.
    """

    value: Value
    places: Table


def window(part: Part, factor: str, x: Value, axis: int, starts: Table, size: int, fill: Value) -> Value:
    """Elements `starts[i]` to `starts[i] + size` of a split dimension, on device i.

    Args:
        part: the part of the equation.
        factor: the factor that splits the dimension.
        x: the part that this device has.
        axis: the dimension.
        starts: first element for each device; windows may reach out of the array.
        size: elements of a window.
        fill: scalar that stands outside of the array.
    """
    count, length = len(starts), x.shape[axis]
    shift = starts[0]
    if all(start == i * length + shift for i, start in enumerate(starts)):
        distances = _distances(shift, size, length)
        if _is_cheaper([b - a for d, a, b in distances if 0 < abs(d) < count], length, count):
            return _halo(part, factor, x, axis, distances, fill)
    found = pieces(part, factor, x, axis, starts, size)
    if not found:  # every window lies outside
        return families.broadcast_to(fill, (*x.shape[:axis], size, *x.shape[axis + 1 :]))
    return assemble(part, factor, found, axis, size, fill)


def from_whole(part: Part, factor: str, x: Value, axis: int, starts: Table, size: int, fill: Value) -> Value:
    """As `window`, of elements that this device has all of; the first of them is number 0."""
    width = min(size, x.shape[axis])
    inside = [min(max(start, 0), x.shape[axis] - width) for start in starts]
    own = cut(x, axis, by_device(part, factor, inside), width)
    # Where the window begins in what was cut; further out than its size there is nothing new.
    rest = [min(max(start - first, -size), width) for start, first in zip(starts, inside, strict=True)]
    low, high = max(0, -min(rest)), max(0, max(rest) + size - width)
    return cut(pad(own, axis, low, high, fill), axis, by_device(part, factor, [n + low for n in rest]), size)


def pieces(part: Part, factor: str, x: Value, axis: int, starts: Table, size: int) -> list[Piece]:
    """What makes up the windows of `window`, from this device, from others, or from a gather of all."""
    length, count = x.shape[axis], len(starts)
    messages = _messages(starts, size, length)
    rounds = [[m for m in messages if m.sender == m.receiver], *_rounds(messages)]
    if not _is_cheaper([max(m.size for m in found) for found in rounds[1:]], length, count):
        whole = part.gather(x, factor, axis)
        return [Piece(whole, [-start for start in starts])]
    return [_piece(part, factor, x, axis, found, starts, size) for found in rounds if found]


def assemble(part: Part, factor: str, found: Sequence[Piece], axis: int, size: int, fill: Value) -> Value:
    """A window from its pieces, at least one; where there is none it has `fill`."""
    if len(found) == 1 and found[0].value.shape[axis] == size and not any(found[0].places):
        return found[0].value
    # Pieces may stick out of the window, so it is written with room on both sides.
    room = max(piece.value.shape[axis] for piece in found)
    shape = [*found[0].value.shape]
    shape[axis] = size + 2 * room
    total = families.broadcast_to(fill, tuple(shape))
    for piece in found:
        places = [min(max(place + room, 0), size + room) for place in piece.places]
        total = _written(total, piece.value, axis, by_device(part, factor, places))
    return cut(total, axis, room, size)


def by_device(part: Part, factor: str, table: Table) -> int | Value:
    """The entry of this device, as a number where all are equal and otherwise as an int32 scalar."""
    first, step = table[0], table[1] - table[0] if len(table) > 1 else 0
    if all(n == first for n in table):
        return first
    index = part.index(factor)
    if all(n == first + i * step for i, n in enumerate(table)):
        scaled = index if step == 1 else families.bind_scalars(primitive.by_name("mul"), index, step)
        return scaled if first == 0 else families.bind_scalars(primitive.by_name("add"), scaled, first)
    numbers = Literal(np.asarray(table, np.int32), weak=False)
    found = trace.bind1(primitive.by_name("dynamic_slice"), numbers, index, slice_sizes=(1,))
    return trace.bind1(primitive.by_name("reshape"), found, shape=(), ndim=1)


def cut(x: Value, axis: int, start: int | Value, size: int, stride: int = 1) -> Value:
    """`size` elements from `start` on along an axis, `stride` apart."""
    reach = (size - 1) * stride + 1 if size else 0
    if not isinstance(start, int):
        if x.shape[axis] != reach:
            sizes = [*x.shape]
            sizes[axis] = reach
            starts = _at(x.ndim, axis, start)
            x = trace.bind1(primitive.by_name("dynamic_slice"), x, *starts, slice_sizes=tuple(sizes))
        start = 0
    if start == 0 and x.shape[axis] == size:
        return x
    first, limit, steps = [0] * x.ndim, [*x.shape], [1] * x.ndim
    first[axis], limit[axis], steps[axis] = start, start + reach, stride
    return trace.bind1(
        primitive.by_name("slice"), x, start=tuple(first), limit=tuple(limit), strides=tuple(steps)
    )


def pad(x: Value, axis: int, low: int, high: int, fill: Value, interior: int = 0) -> Value:
    """An array with elements added at the ends of an axis, and between its elements."""
    if low == high == interior == 0:
        return x
    ends = {"low": low, "high": high, "interior": interior}
    attrs = {name: tuple(n if d == axis else 0 for d in range(x.ndim)) for name, n in ends.items()}
    return trace.bind1(primitive.by_name("pad"), x, fill, **attrs)


def zero(x: Value) -> Value:
    """The scalar 0 in the dtype of an array."""
    return families.like(0, x)


# --- halos ----------------------------------------------------------------------------------------


def _distances(shift: int, size: int, length: int) -> list[tuple[int, int, int]]:
    """Parts that make up a window which begins `shift` after this one's first element: how many parts further
    on each is, and which of its elements belong to the window.
    """
    first, last = shift // length, (shift + size - 1) // length
    return [
        (d, max(shift - d * length, 0), min(shift + size - d * length, length))
        for d in range(first, last + 1)
    ]


def _halo(
    part: Part, factor: str, x: Value, axis: int, distances: Sequence[tuple[int, int, int]], fill: Value
) -> Value:
    """The window out of this part and its neighbours, side by side."""
    count = part.count(factor)
    found = []
    for distance, start, stop in distances:
        own = cut(x, axis, start, stop - start)
        if distance == 0:
            found.append(own)
        elif abs(distance) >= count:
            found.append(families.broadcast_to(fill, own.shape))
        else:
            found.append(_border(part, factor, own, distance, fill))
    return (
        found[0]
        if len(found) == 1
        else trace.bind1(primitive.by_name("concatenate"), *found, axis=axis - x.ndim)
    )


def _border(part: Part, factor: str, own: Value, distance: int, fill: Value) -> Value:
    """The same elements of the part `distance` further on, or `fill` where there is none."""
    count = part.count(factor)
    pairs = [(i + distance, i) for i in range(count) if 0 <= i + distance < count]
    arrived = part.permute(own, factor, pairs)
    if is_zero(fill):
        return arrived
    index = part.index(factor)
    edge = "ge" if distance < 0 else "lt"
    limit = -distance if distance < 0 else count - distance
    is_there = families.bind_scalars(primitive.by_name(edge), index, limit)
    return trace.bind1(primitive.by_name("select_n"), is_there, fill, arrived)


def is_zero(x: Value) -> bool:
    """Whether a scalar is known to be 0, of positive sign."""
    return isinstance(x, Literal) and not x.host.tobytes().strip(b"\0")


def _is_cheaper(moved: Sequence[int], length: int, count: int) -> bool:
    """Whether exchanges of so many elements move less than a gather, or as much in one exchange."""
    gathered = (count - 1) * length
    if len(moved) > max(2, count // 2):
        return False
    return sum(moved) < gathered + (len(moved) < 2)


# --- rounds ---------------------------------------------------------------------------------------


def _messages(starts: Table, size: int, length: int) -> list[Message]:
    """What each device needs from which, near ones first."""
    found = []
    for receiver, start in enumerate(starts):
        low, high = max(start, 0), min(start + size, len(starts) * length)
        for sender in range(low // length, -(-high // length)):
            first, last = max(low - sender * length, 0), min(high - sender * length, length)
            if first < last:
                found.append(Message(sender, receiver, first, last))
    return sorted(found, key=lambda m: (abs(m.receiver - m.sender), m.receiver - m.sender, m.receiver))


def _rounds(messages: Sequence[Message]) -> list[list[Message]]:
    """Messages between devices such that each sends and receives one at most in a round."""
    rounds: list[list[Message]] = []
    for message in messages:
        if message.sender == message.receiver:
            continue
        for found in rounds:
            if all(m.sender != message.sender and m.receiver != message.receiver for m in found):
                found.append(message)
                break
        else:
            rounds.append([message])
    return rounds


def _piece(part: Part, factor: str, x: Value, axis: int, found: Round, starts: Table, size: int) -> Piece:
    """One round: pieces are of one size, so shorter ones take some elements beside them along."""
    width, length = max(m.size for m in found), x.shape[axis]
    offsets = {m.sender: min(m.start, length - width) for m in found}
    anywhere = offsets[found[0].sender]
    table = [offsets.get(i, anywhere) for i in range(len(starts))]
    value = cut(x, axis, by_device(part, factor, table), width)
    if found[0].sender != found[0].receiver:
        value = part.permute(value, factor, [(m.sender, m.receiver) for m in found])
    # Who receives nothing puts it behind the window.
    places = [size] * len(starts)
    for m in found:
        places[m.receiver] = m.sender * length + offsets[m.sender] - starts[m.receiver]
    return Piece(value, places)


def _written(x: Value, piece: Value, axis: int, start: int | Value) -> Value:
    starts = _at(x.ndim, axis, families.like(start, _ZERO))
    return trace.bind1(primitive.by_name("dynamic_update_slice"), x, piece, *starts)


_ZERO = Literal(np.zeros((), dtypes.int32), weak=False)


def _at(ndim: int, axis: int, start: Value) -> list[Value]:
    return [start if d == axis else _ZERO for d in range(ndim)]
