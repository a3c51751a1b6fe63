"""Resharding: every pair of placements of an array gives the same array, over no more bytes than the fixed
order of one axis at a time, and other links give other paths.
"""

import math

import numpy as np
import pytest

import infini as inf
from infini.compiler.partition import costs, moves, placement as p
from infini.compiler.partition.placement import Placement
from infini.core.ir import ArrayType
from infini.core.machine import DEFAULT
from infini.core.mesh import AbstractMesh, P
from infini.core.sharding import NamedSharding
from infini.sharding import Link, Machine, make_mesh
from infini.testing import count_collectives

FOUR = AbstractMesh(("a", "b"), (2, 2))
EIGHT = AbstractMesh(("a", "b", "c"), (2, 2, 2))
X = np.arange(128, dtype=np.float32).reshape(8, 16)
SMALL, TYPE = (ArrayType(shape, np.dtype(np.float32)) for shape in ((8, 16), (8192, 16384)))


def pairs(mesh, partial):
    """Placements of a matrix, some partial sums among them, with every target. Axes have one size, so sources
    that are equal but for their names are one.
    """
    found = moves._placements(2, mesh.axis_names)
    for source in found:
        order = [axis for axes in source for axis in axes]
        if order != sorted(order) or order != list(mesh.axis_names[: len(order)]):
            continue
        used = {axis for axes in source for axis in axes}
        free = tuple(axis for axis in mesh.axis_names if axis not in used)
        for target in found:
            yield Placement(source, free if partial else ()), target


def sent(mesh, steps, source):
    """Bytes that a device sends on a path."""
    total, state = 0.0, source
    for step in steps:
        nbytes = TYPE.nbytes / math.prod(p.size_of(axes, mesh) for axes in state.dims)
        if step.name != "cut":
            total += costs.wire_bytes(step.name, nbytes, p.size_of(step.axes, mesh))
        state = step.after
    return total


def sent_in_fixed_order(mesh, source, target):
    """Bytes of a fixed order: sums, then cuts, exchanges and gathers, of one axis each."""
    dims, total = list(source.dims), 0.0

    def local():
        return TYPE.nbytes / math.prod(p.size_of(axes, mesh) for axes in dims)

    for axis in source.partial:
        at = next((d for d, axes in enumerate(target) if axes == (*dims[d], axis)), None)
        total += costs.wire_bytes("psum" if at is None else "psum_scatter", local(), mesh.shape[axis])
        if at is not None:
            dims[at] = (*dims[at], axis)
    while tuple(dims) != target:
        used = {axis for axes in dims for axis in axes}
        finer = [
            then if then[: len(now)] == now and used.isdisjoint(then[len(now) :]) else now
            for now, then in zip(dims, target, strict=True)
        ]
        if finer != dims:
            dims = finer
            continue
        exchange = next(
            (
                (d, to)
                for d, now in enumerate(dims)
                if now and target[d][: len(now)] != now
                for to, then in enumerate(target)
                if to != d and then == (*dims[to], now[-1])
            ),
            None,
        )
        if exchange is not None:
            d, to = exchange
            total += costs.wire_bytes("all_to_all", local(), mesh.shape[dims[d][-1]])
            dims[d], dims[to] = dims[d][:-1], (*dims[to], dims[d][-1])
            continue
        d = next(d for d, now in enumerate(dims) if target[d][: len(now)] != now)
        total += costs.wire_bytes("all_gather", local(), mesh.shape[dims[d][-1]])
        dims[d] = dims[d][:-1]
    return total


@pytest.mark.parametrize("mesh", [FOUR, EIGHT], ids=["2x2", "2x2x2"])
@pytest.mark.parametrize("partial", [False, True], ids=["whole", "partial"])
def test_no_pair_of_placements_sends_more_than_one_axis_at_a_time(mesh, partial):
    saved = 0.0
    for source, target in pairs(mesh, partial):
        now = sent(mesh, moves.path(TYPE, source, target, mesh), source)
        before = sent_in_fixed_order(mesh, source, target)
        assert now <= before, (source, target)
        saved += before - now
    assert saved > 0


def parts(mesh, source, x):
    """What each device holds: its part, a share of it where it is a partial sum."""
    found = []
    for rank in range(mesh.size):
        index = inf.core.mesh.shard_index(x.shape, p.to_spec(source.dims), mesh, rank)
        at = mesh.coordinates(rank)
        share = 1.0
        for axis in source.partial:
            share *= 0.25 if at[axis] == 0 else 0.75
        found.append(x[index] * np.float32(share))
    return found


def follow(mesh, rows, step):
    """What devices hold after a step, by NumPy alone."""
    groups = mesh.groups(step.axes)
    found = list(rows)
    for group in groups:
        given = [rows[rank] for rank in group]
        for i, rank in enumerate(group):
            if step.name == "all_gather":
                found[rank] = np.concatenate(given, step.dimension)
            elif step.name == "all_to_all":
                blocks = [np.split(x, len(group), step.dimension)[i] for x in given]
                found[rank] = np.concatenate(blocks, step.source)
            elif step.name == "psum":
                found[rank] = np.sum(given, 0)
            elif step.name == "psum_scatter":
                found[rank] = np.split(np.sum(given, 0), len(group), step.dimension)[i]
            elif step.name == "ppermute":
                (origin,) = [a for a, b in step.pairs if b == i]
                found[rank] = given[origin]
    return found


def cut(mesh, rows, before, after):
    """What devices keep when dimensions are split further."""
    found = []
    for rank, row in enumerate(rows):
        at, index = mesh.coordinates(rank), []
        for n, now, then in zip(row.shape, before.dims, after.dims, strict=True):
            assert then[: len(now)] == now
            number, count = 0, 1
            for axis in then[len(now) :]:
                number, count = number * mesh.shape[axis] + at[axis], count * mesh.shape[axis]
            index.append(slice(number * n // count, (number + 1) * n // count))
        found.append(row[tuple(index)])
    return found


@pytest.mark.parametrize("mesh", [FOUR, EIGHT], ids=["2x2", "2x2x2"])
@pytest.mark.parametrize("partial", [False, True], ids=["whole", "partial"])
def test_every_path_leads_to_its_target(mesh, partial):
    for source, target in pairs(mesh, partial):
        rows, state = parts(mesh, source, X), source
        for step in moves.path(SMALL, source, target, mesh):
            rows = cut(mesh, rows, state, step.after) if step.name == "cut" else follow(mesh, rows, step)
            state = step.after
        for found, expected in zip(rows, parts(mesh, Placement(target), X), strict=True):
            np.testing.assert_array_equal(found, expected, err_msg=f"{source} -> {target}")


def names(source, target, machine=DEFAULT, partial=(), type_=TYPE):
    dims = [p.from_spec(tuple(spec), 2) for spec in (source, target)]
    return [(s.name, s.axes) for s in moves.path(type_, Placement(dims[0], partial), dims[1], FOUR, machine)]


def test_swapped_axes_are_one_permutation():
    assert names(P("a", "b"), P("b", "a")) == [("ppermute", ("a", "b"))]
    assert names(P("a"), P("b")) == [("ppermute", ("a", "b"))]
    assert names(P(("a", "b")), P(("b", "a"))) == [("ppermute", ("a", "b"))]


def test_two_axes_of_one_dimension_are_one_collective():
    assert names(P(("a", "b")), P()) == [("all_gather", ("a", "b"))]
    assert names(P(("b", "a")), P(None, ("b", "a"))) == [("all_to_all", ("b", "a"))]
    assert names(P(), P(("a", "b")), partial=("a", "b")) == [("psum_scatter", ("a", "b"))]
    assert names(P(), P(), partial=("a", "b")) == [("psum", ("a", "b"))]


def test_over_a_slow_link_goes_as_little_as_can():
    slow = Machine(Link(1e11), links={"a": Link(1e9)})
    assert names(P(("a", "b")), P(), machine=slow) == [
        ("all_to_all", ("b",)), ("all_gather", ("a",)), ("all_gather", ("b",)),
    ]  # fmt: skip


def test_with_latency_one_gather_becomes_two_shorter_rings():
    late = Machine(Link(1e11, latency_s=1.0))
    assert names(P(("a", "b")), P(), machine=late) == [("all_gather", ("b",)), ("all_gather", ("a",))]


def test_small_arrays_take_fewer_collectives_and_large_ones_fewer_bytes():
    few = names(P("a"), P("b"), partial=("b",), type_=SMALL)
    many = names(P("a"), P("b"), partial=("b",))
    assert [name for name, _ in few] == ["all_gather", "psum_scatter"]
    assert [name for name, _ in many] == ["all_to_all", "psum_scatter", "all_gather"]


def test_a_dimension_that_axes_do_not_divide_is_gathered():
    odd = ArrayType((8, 3), np.dtype(np.float32))
    (step,) = moves.path(odd, Placement((("a",), ())), ((), ()), FOUR)
    assert step.name == "all_gather"


def test_arrays_move_between_all_placements_of_a_mesh():
    with inf.config(device="reference", cpu_devices=4, check=1):
        mesh = make_mesh((2, 2), ("a", "b"))
        specs = [P(*p.to_spec(dims)) for dims in moves._placements(2, ("a", "b"))]
        move = {
            spec: inf.jit(lambda x, spec=spec: inf.lax.with_sharding_constraint(x, spec)) for spec in specs
        }
        for source in specs[::3]:
            placed = inf.device_put(X, NamedSharding(mesh, source))
            for target, f in move.items():
                with mesh, count_collectives() as counts:
                    found = f(placed)
                path = names(source, target, type_=SMALL)
                assert found.sharding.spec == target
                assert [name for name, _ in counts] == [name for name, _ in path if name != "cut"]
                np.testing.assert_array_equal(found, X)
