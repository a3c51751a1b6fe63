"""From one placement of an array to another: a table of moves, and the cheapest path through it.

A *state* is a placement. Every move says which states it leads to and what it takes: cutting is free, the
others are collectives (`costs.seconds`). The path is Dijkstra's, over placements that use the axes of the
two ends; among paths of equal cost the one of fewest collectives is taken, then of fewest messages. A
`Machine` with other links therefore has other paths: with a slow axis, a gather over two becomes several.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from infini.compiler.partition import costs
from infini.compiler.partition.placement import Axes, Dims, Placement, whole
from infini.core import mesh as mesh_
from infini.core.ir import ArrayType, Shape
from infini.core.machine import DEFAULT, Machine
from infini.core.mesh import AbstractMesh

Pairs: TypeAlias = tuple[tuple[int, int], ...]
# Up to so many axes every placement of equal parts may be permuted into every other; with more, only into
# the target and what it is cut from, since there are thousands.
_FEW_AXES: Final = 3


@dataclass(frozen=True, slots=True)
class Step:
    """One move of an array.

    Args:
        name: `cut`, or a collective.
        axes: axes that it is over.
        after: the placement that it leads to.
        dimension: the dimension that is cut, gathered or scattered, or that becomes split by an exchange.
        source: the dimension that an exchange joins.
        pairs: (source, destination) pairs of a permutation.
    """

    name: str
    axes: Axes
    after: Placement
    dimension: int = 0
    source: int = 0
    pairs: Pairs = ()


class _Problem:
    """What moves are told: the global shape, sizes of axes, those in use at either end, and the target."""

    def __init__(self, shape: Shape, mesh: AbstractMesh, used: frozenset[str], target: Dims) -> None:
        self.shape, self.mesh, self.target = shape, mesh, target
        self.sizes = mesh.shape
        self.axes = tuple(axis for axis in mesh.axis_names if axis in used)
        self._like: dict[tuple[int, ...], list[Dims]] | None = None

    def count(self, axes: Axes) -> int:
        """Number of parts that some axes make."""
        count = 1
        for axis in axes:
            count *= self.sizes[axis]
        return count

    def fits(self, dimension: int, before: Axes, after: Axes) -> bool:
        """Whether a dimension may be split further; see `may_cut`."""
        return may_cut(self.shape[dimension], before, after, self.target[dimension], self.mesh)

    def joins(self, dimension: int, before: Axes, after: Axes) -> bool:
        """Whether the parts of a dimension joined along its last axes are those of the axes that are left."""
        rest = self.count(after)
        return rest == 1 or mesh_.nests(self.shape[dimension], rest, self.count(before) // rest)

    def nbytes(self, dims: Dims, itemsize: int) -> int:
        """Bytes of one part."""
        return itemsize * math.prod(
            mesh_.part_size(n, count) for n, count in zip(self.shape, self.parts(dims), strict=True)
        )

    def free(self, state: Placement) -> Axes:
        """Axes over which a state holds equal parts."""
        used = state.axes
        return tuple(axis for axis in self.axes if axis not in used)

    def parts(self, dims: Dims) -> tuple[int, ...]:
        """Into how many parts each dimension is cut."""
        return tuple(self.count(axes) for axes in dims)

    def like(self, dims: Dims) -> list[Dims]:
        """The placements that a permutation may lead to: those that cut an array into such parts."""
        if self._like is None:
            self._like = {}
            if len(self.axes) <= _FEW_AXES:
                found: Iterable[Dims] = _placements(len(self.shape), self.axes)
            else:
                found = itertools.product(*([a[:n] for n in range(len(a) + 1)] for a in self.target))
            for other in found:
                self._like.setdefault(self.parts(other), []).append(other)
        return self._like.get(self.parts(dims), [])


def may_cut(size: int, before: Axes, after: Axes, target: Axes, mesh: AbstractMesh) -> bool:
    """Whether a dimension that is split over some axes may be split over more: into equal parts, or as far as
    it is to be split in the end, since parts of parts are other parts where these are no multiples.
    """
    sizes = mesh.shape
    now, then = (math.prod(sizes[axis] for axis in axes) for axes in (before, after))
    if size % then == 0:
        return True
    return after == target and (now == 1 or mesh_.nests(size, now, then // now))


def path(
    type_: ArrayType, source: Placement, target: Dims, mesh: AbstractMesh, machine: Machine = DEFAULT
) -> tuple[Step, ...]:
    """The cheapest steps that bring an array of a global type from one placement to another, which is no
    partial sum.
    """
    return _search(type_.shape, type_.dtype.itemsize, source, target, mesh, machine)[0]


def seconds(
    type_: ArrayType, source: Placement, target: Dims, mesh: AbstractMesh, machine: Machine = DEFAULT
) -> float:
    """What the path costs."""
    return _search(type_.shape, type_.dtype.itemsize, source, target, mesh, machine)[1]


@functools.lru_cache(maxsize=65536)
def _search(
    shape: Shape, itemsize: int, source: Placement, target: Dims, mesh: AbstractMesh, machine: Machine
) -> tuple[tuple[Step, ...], float]:
    goal = Placement(target)
    problem = _Problem(shape, mesh, source.axes | goal.axes, target)
    # Costs are bytes over the usual link: exact numbers, so that ties are ties.
    unit = machine.link.bytes_per_s
    numbers = itertools.count()
    # Cost, collectives, messages, and a number that keeps entries comparable and their order certain.
    heap: list[tuple[float, int, int, int, Placement, tuple[Step, ...]]] = [
        (0.0, 0, 0, next(numbers), source, ())
    ]
    done: set[Placement] = set()
    while heap:
        spent, num_collectives, num_messages, _, state, steps = heapq.heappop(heap)
        if state == goal:
            return _joined(steps), spent / unit
        if state in done:
            continue
        done.add(state)
        nbytes = problem.nbytes(state.dims, itemsize)
        for move in MOVES:
            for step in move(state, problem):
                if step.after in done:
                    continue
                price, count, messages = 0.0, problem.count(step.axes), 0
                if step.name != "cut" and count > 1:
                    link, messages = machine.link_of(step.axes), costs.num_messages(step.name, count)
                    price = costs.wire_bytes(step.name, nbytes, count) * (unit / link.bytes_per_s)
                    price += (machine.start_s + messages * link.latency_s) * unit
                after = spent + price, num_collectives + (messages > 0), num_messages + messages
                heapq.heappush(heap, (*after, next(numbers), step.after, (*steps, step)))
    raise AssertionError("an array that is gathered and cut is anywhere")


def _joined(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps, with cuts that follow each other as one."""
    found: list[Step] = []
    for step in steps:
        if found and step.name == found[-1].name == "cut":
            found[-1] = Step("cut", found[-1].axes + step.axes, step.after)
        else:
            found.append(step)
    return tuple(found)


def _at(state: Placement, dimension: int, axes: Axes) -> Placement:
    """The state with another split of one dimension."""
    dims = (*state.dims[:dimension], axes, *state.dims[dimension + 1 :])
    return Placement(dims, state.partial)


# --- the moves --------------------------------------------------------------------------------


def _cut(state: Placement, problem: _Problem) -> Iterator[Step]:
    """Keep a part of what every device along an axis has."""
    for axis in problem.free(state):
        for d, axes in enumerate(state.dims):
            if problem.fits(d, axes, (*axes, axis)):
                yield Step("cut", (axis,), _at(state, d, (*axes, axis)), d)
    for d, axes in enumerate(problem.target):
        is_free = len(axes) > 1 and not state.dims[d] and state.axes.isdisjoint(axes)
        if is_free and problem.shape[d] % problem.count(axes):
            yield Step("cut", axes, _at(state, d, axes), d)


def _gather(state: Placement, problem: _Problem) -> Iterator[Step]:
    """Join the parts of a dimension along its least significant axes."""
    for d, axes in enumerate(state.dims):
        for start in range(len(axes)):
            if problem.joins(d, axes, axes[:start]):
                yield Step("all_gather", axes[start:], _at(state, d, axes[:start]), d)


def _exchange(state: Placement, problem: _Problem) -> Iterator[Step]:
    """Move axes from the end of one dimension to the end of another."""
    for source, axes in enumerate(state.dims):
        for start in range(len(axes)):
            moved = axes[start:]
            if not problem.joins(source, axes, axes[:start]):
                continue
            for d, others in enumerate(state.dims):
                if d != source and problem.fits(d, others, others + moved):
                    after = _at(_at(state, source, axes[:start]), d, others + moved)
                    yield Step("all_to_all", moved, after, d, source)


def _permute(state: Placement, problem: _Problem) -> Iterator[Step]:
    """Rename axes: every device keeps the shape of its part, and gets that of another."""
    for dims in problem.like(state.dims):
        used = {axis for axes in dims for axis in axes}
        if dims == state.dims or not used.isdisjoint(state.partial):
            continue
        found = permutation(state.dims, dims, problem.mesh)
        if found is not None:
            yield Step("ppermute", found[0], Placement(dims, state.partial), pairs=found[1])


def _scatter(state: Placement, problem: _Problem) -> Iterator[Step]:
    """Add up, and keep a part of the sum."""
    for axes, rest in _chosen(state.partial):
        for order in itertools.permutations(axes):
            for d, own in enumerate(state.dims):
                if problem.fits(d, own, own + order):
                    after = Placement(_at(state, d, own + order).dims, rest)
                    yield Step("psum_scatter", order, after, d)


def _sum(state: Placement, problem: _Problem) -> Iterator[Step]:
    """Add up."""
    for axes, rest in _chosen(state.partial):
        yield Step("psum", axes, Placement(state.dims, rest))


MOVES: Final[tuple[Callable[[Placement, _Problem], Iterator[Step]], ...]] = (
    _cut, _gather, _exchange, _permute, _scatter, _sum,
)  # fmt: skip


def _chosen(axes: Axes) -> Iterator[tuple[Axes, Axes]]:
    """Every choice of some axes, with the rest."""
    for count in range(len(axes), 0, -1):
        for some in itertools.combinations(axes, count):
            yield some, tuple(axis for axis in axes if axis not in some)


# --- permutations of parts ---------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _placements(ndim: int, axes: Axes) -> tuple[Dims, ...]:
    """Every way to split some dimensions over some axes."""
    found, latest = {whole(ndim): None}, [whole(ndim)]
    for _ in axes:
        longer = [
            (*dims[:d], (*dims[d], axis), *dims[d + 1 :])
            for dims in latest
            for axis in axes
            if not any(axis in own for own in dims)
            for d in range(ndim)
        ]
        latest = list(dict.fromkeys(longer))
        found.update(dict.fromkeys(latest))
    return tuple(found)


@functools.lru_cache(maxsize=4096)
def permutation(before: Dims, after: Dims, mesh: AbstractMesh) -> tuple[Axes, Pairs] | None:
    """The axes over which parts change places, and the (source, destination) pairs of a permutation that
    brings an array from one placement to another with parts of the same shape; None when there is none.
    """
    sizes = mesh.shape
    now, then = _strides(before, sizes), _strides(after, sizes)
    axes = tuple(a for a in mesh.axis_names if now.get(a) != then.get(a))
    members = list(itertools.product(*(range(sizes[a]) for a in axes)))
    held = [_block(dict(zip(axes, at, strict=True)), now, len(before)) for at in members]
    wanted = [_block(dict(zip(axes, at, strict=True)), then, len(after)) for at in members]
    if Counter(held) != Counter(wanted):
        return None
    # Who has what it wants keeps it; the others are served in order.
    source = {i: i for i, (has, wants) in enumerate(zip(held, wanted, strict=True)) if has == wants}
    spare: dict[tuple[int, ...], list[int]] = {}
    for i, block in enumerate(held):
        if i not in source:
            spare.setdefault(block, []).append(i)
    for i, block in enumerate(wanted):
        if i not in source:
            source[i] = spare[block].pop(0)
    return axes, tuple(sorted((origin, target) for target, origin in source.items()))


def _strides(dims: Dims, sizes: dict[str, int]) -> dict[str, tuple[int, int]]:
    """For each axis the dimension that it splits, and how many parts one step along it is."""
    found = {}
    for d, axes in enumerate(dims):
        stride = 1
        for axis in reversed(axes):
            found[axis] = (d, stride)
            stride *= sizes[axis]
    return found


def _block(at: dict[str, int], strides: dict[str, tuple[int, int]], ndim: int) -> tuple[int, ...]:
    """Where the part of a member starts, as far as these axes say."""
    found = [0] * ndim
    for axis, index in at.items():
        if axis in strides:
            d, stride = strides[axis]
            found[d] += index * stride
    return tuple(found)
