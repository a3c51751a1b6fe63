"""How a kernel is split over a mesh: its grid dimensions are factors, as long as programs of one device read
and write one device's part of every array.

A grid dimension may be split where every array that moves with it is cut into one piece per program, without
gaps, rests or overlaps: then the part of a device is a kernel over fewer programs. Everything else is whole.
Called by the rules of the op in `program`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from infini.core import dtypes, ir, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import elementwise as e, places
from infini.lax.places import Dimension, Factors, Part, Types

if TYPE_CHECKING:
    from infini.tile.program import Access, Kernel


def place(op: Primitive, in_types: Types, out_types: Types, attrs: ir.Attrs) -> Factors:
    """PLACE of a kernel."""
    kernel: Kernel = attrs["kernel"]
    nothing = Factors(places.whole(in_types), places.whole(out_types), {})
    if kernel.extents or 0 in kernel.grid:
        return nothing
    arrays = [*zip(kernel.loads, in_types, strict=True), *zip(kernel.stores, out_types, strict=True)]
    splittable = {j for j, size in enumerate(kernel.grid) if size > 1}
    for access in kernel.stores:  # otherwise every device would hold a result of its own
        splittable &= {j for j in splittable if any(row[j] for row in access.grid_strides)}
    cuts = [[_cut(access, kernel.grid, d, n) for d, n in enumerate(t.shape)] for access, t in arrays]
    before: set[int] = set()
    while splittable != before:  # a dimension that falls out takes with it those inside of it
        before = set(splittable)
        for (access, _), dims in zip(arrays, cuts, strict=True):
            for j in before:
                moving = [d for d, row in enumerate(access.grid_strides) if row[j]]
                if len(moving) > 1 or any(j not in _leading(dims[d], before) for d in moving):
                    splittable.discard(j)
    found: list[tuple[Dimension, ...]] = [
        tuple(tuple(_name(j) for j in _leading(cut, splittable)) for cut in dims) for dims in cuts
    ]
    used = {name for dims in found for names in dims for name in names}
    sizes = {_name(j): size for j, size in enumerate(kernel.grid) if _name(j) in used}
    return Factors(tuple(found[: len(in_types)]), tuple(found[len(in_types) :]), sizes)


def partition(part: Part, *operands: Value) -> tuple[Value, ...]:
    """PARTITION of a kernel: the programs of this device, which count from where they begin."""
    kernel: Kernel = part.attrs["kernel"]
    grid = list(kernel.grid)
    found = place(part.op, part.in_types, part.out_types, part.attrs)
    for dims, whole, local in zip(found.outputs, part.out_types, part.local_shapes, strict=True):
        for names, size, local_size in zip(dims, whole.shape, local, strict=True):
            pieces = size // local_size if local_size else 1
            for name in names:
                j = int(name[1:])
                grid[j] = kernel.grid[j] // min(pieces, kernel.grid[j])
                pieces = max(pieces // kernel.grid[j], 1)
    ids = kernel.body.params[len(kernel.loads) :]
    used = {v for equation in kernel.body.equations for v in equation.inputs} | set(kernel.body.results)
    starts = {
        j: start
        for j, var in enumerate(ids)
        if var in used and (start := part.start(_name(j), dtypes.int32)) is not None
    }
    outputs = tuple(t.update(shape=shape) for t, shape in zip(kernel.outputs, part.local_shapes, strict=True))
    scalar = dataclasses.replace(
        kernel.stores[0], tile=(), grid_strides=(), tile_strides=(), offsets=(), fill=None, levels=0
    )
    own = dataclasses.replace(
        kernel,
        grid=tuple(grid),
        loads=(*kernel.loads, *[scalar] * len(starts)),
        outputs=outputs,
        body=_counted_from(kernel, list(starts)) if starts else kernel.body,
    )
    return tuple(trace.bind(part.op, *operands, *starts.values(), kernel=own))


def _name(j: int) -> str:
    return f"g{j}"


def _cut(access: Access, grid: tuple[int, ...], d: int, size: int) -> tuple[int, ...]:
    """The grid dimensions that cut an array dimension into pieces, the largest first."""
    row = access.grid_strides[d]
    movers = sorted((j for j, n in enumerate(grid) if row[j] and n > 1), key=lambda j: -row[j])
    found, extent = [], size
    for j in movers:
        if row[j] < 0 or row[j] * grid[j] != extent:
            break
        found.append(j)
        extent = row[j]
    # What else moves in this dimension has to stay inside the smallest piece.
    moves = [row[j] * (grid[j] - 1) for j in movers if j not in found]
    moves += [s * (n - 1) for s, n in zip(access.tile_strides[d], access.tile, strict=True)]
    low = access.offsets[d] + sum(min(0, move) for move in moves)
    high = access.offsets[d] + sum(max(0, move) for move in moves)
    return tuple(found) if low >= 0 and high < extent else ()


def _leading(cut: tuple[int, ...], splittable: set[int]) -> tuple[int, ...]:
    """The factors of a dimension up to the first that may not be split."""
    count = next((i for i, j in enumerate(cut) if j not in splittable), len(cut))
    return cut[:count]


def _counted_from(kernel: Kernel, dimensions: list[int]) -> ir.Program:
    """The body with one more scalar per grid dimension of these, which is added to the program's number."""
    num_loads, num_starts = len(kernel.loads), len(dimensions)
    types = [v.type for v in kernel.body.params]
    params = [*types[:num_loads], *[ArrayType((), dtypes.int32)] * num_starts, *types[num_loads:]]

    def run(*args: Value) -> list[Value]:
        ids = list(args[num_loads + num_starts :])
        for j, start in zip(dimensions, args[num_loads:], strict=False):
            ids[j] = e.add(ids[j], start)
        return list(trace.evaluate(kernel.body, [*args[:num_loads], *ids]))

    return trace.stage(run, params, name=kernel.body.name).program
