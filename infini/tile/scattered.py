"""The op `scattered_kernel`: a kernel some of whose results are written at run-time places.

The kernel itself stays what every kernel is: its programs are independent, and in the place of such a result
each stores where its elements go and what goes there. The op is defined as that kernel and a scatter after
it, so places that several programs name combine as `lax.scatter` says, on every backend by the code that it
has for scatters, and in the same order for any number of threads.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from infini.core import errors, ir, primitive, trace
from infini.core.ir import ArrayType, Program
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import calls, families, indexing
from infini.lax.indexing import ScatterDimensionNumbers
from infini.tile import program as program_
from infini.tile.program import Kernel, check_kernel

# Operations that a result may be written by.
KINDS: Final = frozenset({"scatter", "scatter_add", "scatter_max", "scatter_min"})


@ir.attribute
@dataclass(frozen=True, slots=True)
class Scatter:
    """How a result is made of places and values.

    In the stead of the result the kernel gives two: `places`, shaped (batch..., n...), are numbers of rows
    counted in C order along the indexed dimensions, those of no row being dropped; `values` are shaped
    (batch..., n..., row...).

    Args:
        kind: name of the operation that writes, such as `scatter_add`.
        output: type of the result, shaped (batch..., indexed..., row...).
        num_indexed: how many dimensions the places count along.
        operand: number of the operand that the result starts as, if it is one.
        fill: the number that it starts as otherwise.
        num_batch: how many leading dimensions places, values and result share.
    """

    kind: str
    output: ArrayType
    num_indexed: int
    operand: int | None
    fill: complex = 0
    num_batch: int = 0


def outputs(kernel: Kernel, scatters: Sequence[Scatter | None]) -> tuple[ArrayType, ...]:
    """Types of the results."""
    stored = iter(kernel.outputs)
    found = []
    for scatter in scatters:
        type_ = next(stored)
        if scatter is not None:
            next(stored)
            type_ = scatter.output
        found.append(type_)
    return tuple(found)


def _type(
    *types: ArrayType, kernel: Kernel, scatters: tuple[Scatter | None, ...], definition: Program | None = None
) -> tuple[ArrayType, ...]:
    check_kernel(kernel, types)
    if len(kernel.outputs) != len(scatters) + sum(s is not None for s in scatters):
        raise errors.TypeMismatchError(
            f"kernel {kernel.name} gives another number of results than are scattered and stored",
            got=str(len(kernel.outputs)),
            expected="one for each result, and one more for each that is scattered",
        )
    stored = iter(kernel.outputs)
    for scatter in scatters:
        places = next(stored)
        if scatter is not None:
            _check(kernel.name, scatter, places, next(stored), types)
    return outputs(kernel, scatters)


def _check(
    name: str, scatter: Scatter, places: ArrayType, values: ArrayType, types: Sequence[ArrayType]
) -> None:
    batch = scatter.output.shape[: scatter.num_batch]
    row = scatter.output.shape[scatter.num_batch + scatter.num_indexed :]
    fits = (
        scatter.kind in KINDS
        and places.shape[: scatter.num_batch] == batch
        and values == scatter.output.update(shape=(*places.shape, *row))
        and (scatter.operand is None or types[scatter.operand] == scatter.output)
    )
    if not fits:
        raise errors.TypeMismatchError(
            f"kernel {name}: places and values do not fit the result that they are written to",
            got=f"places {places}, values {values}",
            expected=f"{scatter.kind} into {scatter.output}, {scatter.num_indexed} dimensions of it indexed",
        )


def _decompose(
    *operands: Value,
    kernel: Kernel,
    scatters: tuple[Scatter | None, ...],
    definition: Program | None = None,
) -> list[Value]:
    used = {v for e in kernel.body.equations for v in e.inputs} | set(kernel.body.results)
    kept = [n for n, var in enumerate(kernel.body.params[: len(kernel.loads)]) if var in used]
    # An operand that a result only starts as is read by the scatter alone.
    dense = dataclasses.replace(
        kernel,
        loads=tuple(kernel.loads[n] for n in kept),
        body=kernel.body.replace(
            params=tuple(kernel.body.params[n] for n in kept) + kernel.body.params[len(kernel.loads) :]
        ),
    )
    stored = iter(trace.bind(program_.kernel_p, *[operands[n] for n in kept], kernel=dense))
    found = []
    for scatter in scatters:
        result = next(stored)
        found.append(result if scatter is None else _written(scatter, operands, result, next(stored)))
    return found


def _written(scatter: Scatter, operands: Sequence[Value], places: Value, values: Value) -> Value:
    """The result: rows of it combined with the values."""
    out, rank = scatter.output, scatter.num_batch
    start = families.full(out, scatter.fill) if scatter.operand is None else operands[scatter.operand]
    if 0 in out.shape or 0 in places.shape:
        return start
    batch, indexed = out.shape[:rank], out.shape[rank : rank + scatter.num_indexed]
    row = out.shape[rank + scatter.num_indexed :]
    count = math.prod(places.shape[rank:])
    numbers = ScatterDimensionNumbers(
        tuple(range(rank + 1, rank + 1 + len(row))),
        (rank,),
        (rank,),
        tuple(range(rank)),
        tuple(range(rank)),
    )
    written = trace.bind1(
        primitive.by_name(scatter.kind),
        _reshaped(start, (*batch, math.prod(indexed), *row)),
        _reshaped(places, (*batch, count, 1)),
        _reshaped(values, (*batch, count, *row)),
        dimension_numbers=numbers,
        mode=indexing.GatherScatterMode.FILL_OR_DROP.value,
        unique_indices=False,
    )
    return _reshaped(written, out.shape)


def _reshaped(x: Value, shape: ir.Shape) -> Value:
    return x if x.shape == shape else trace.bind1(primitive.by_name("reshape"), x, shape=shape, ndim=x.ndim)


def _batch(
    ctx: calls.Context, args: calls.Values, batched: calls.Flags, attrs: ir.Attrs
) -> tuple[calls.Values, calls.Flags]:
    kernel: Kernel = attrs["kernel"]
    scatters: tuple[Scatter | None, ...] = attrs["scatters"]
    starts = {s.operand for s in scatters if s is not None}
    flags = tuple(flag or n in starts for n, flag in enumerate(batched))
    operands = [
        x if was or not now else families.broadcast_to(x, (ctx.size, *x.shape))
        for x, was, now in zip(args, batched, flags, strict=True)
    ]
    changes: dict[str, object] = {
        "kernel": program_.batch_kernel(kernel, flags, ctx.size),
        "scatters": tuple(s if s is None else _batched(s, ctx.size) for s in scatters),
    }
    if "definition" in attrs:
        changes["definition"], _ = ctx.batch_program(attrs["definition"], flags, force=True)
    found = trace.bind(scattered_kernel_p, *operands, **attrs.replace(**changes))
    return found, (True,) * len(found)


def _batched(scatter: Scatter, size: int) -> Scatter:
    out = scatter.output
    return dataclasses.replace(
        scatter, output=out.update(shape=(size, *out.shape)), num_batch=scatter.num_batch + 1
    )


# Without rules for meshes: a partitioner takes the definition, whose kernel and scatters have theirs.
scattered_kernel_p: Primitive = primitive.register(
    Primitive(
        "scattered_kernel",
        None,
        {
            primitive.TYPE: _type,
            primitive.DECOMPOSE: _decompose,
            primitive.BATCH: _batch,
            primitive.JVP: program_.jvp_of("scattered_kernel"),
            primitive.LINEARIZE: program_.linearize_of("scattered_kernel"),
        },
        is_higher_order=True,
    )
)
