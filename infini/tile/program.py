"""The kernel (tile program): a grid, how each array is cut into tiles, and a body over tiles that is an
ordinary Program.

Both the fuser and the kernel language make it; the LLVM emitter, the Triton emitter and the NumPy interpreter
below consume it. The grid is logical: programs are independent and an emitter may fold or reorder them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infini.core import dtypes, errors, ir, primitive, trace
from infini.core.ir import ArrayType, Program, Shape
from infini.core.primitive import Primitive
from infini.lax import calls
from infini.lax.checkpoint import checkpoint_p
from infini.tile import splitting


@ir.attribute
@dataclass(frozen=True, slots=True, eq=False)
class Access:
    """Where the tile of one program lies in its array.

    Element `i` of the tile of program `g` is array element
    `index[d] = offsets[d] + sum_j grid_strides[d][j] * g[j] + sum_t tile_strides[d][t] * i[t]`.

    Args:
        tile: shape of the tile.
        grid_strides: per array dimension, a factor per grid dimension.
        tile_strides: per array dimension, a factor per tile dimension.
        offsets: per array dimension, a constant.
        fill: what a load gives outside the array (a store skips there); None when no index is ever outside.
        levels: how many leading tile dimensions are walked by a `scan` of the body; such a tile is loaded
            step by step.
    """

    tile: Shape
    grid_strides: tuple[tuple[int, ...], ...]
    tile_strides: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    fill: complex | None = None
    levels: int = 0

    def _key(self) -> tuple[object, ...]:
        # 0.0 and -0.0 are different fills, and a NaN is the same as itself.
        fill = None if self.fill is None else repr(self.fill)
        return self.tile, self.grid_strides, self.tile_strides, self.offsets, fill, self.levels

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Access) and self._key() == other._key())

    def __hash__(self) -> int:
        return hash(self._key())

    @classmethod
    def whole(cls, shape: Shape, grid_rank: int) -> Access:
        """The whole array as one tile, the same for every program."""
        rank = len(shape)
        identity = tuple(tuple(int(i == j) for j in range(rank)) for i in range(rank))
        return cls(shape, ((0,) * grid_rank,) * rank, identity, (0,) * rank)


@ir.attribute
@dataclass(frozen=True, slots=True)
class Kernel:
    """A tile program.

    Args:
        grid: number of programs along each grid dimension.
        loads: one access per array operand.
        stores: one access per result; programs never store to the same element.
        outputs: types of the results.
        body: from the tiles of the loads, then one int32 program id per grid dimension, to the tiles of the
            stores.
        extents: (grid dimension, rows per program, operand): the int32 scalar operand, which stands after the
            loads, bounds the grid dimension to `ceil(extent / rows)` at run time; results beyond it are
            unspecified.
        name: for people and generated symbols.
        launch: how many warps and stages a GPU takes, by name, where somebody chose: `num_warps`,
            `num_stages`. No result depends on it.
    """

    grid: tuple[int, ...]
    loads: tuple[Access, ...]
    stores: tuple[Access, ...]
    outputs: tuple[ArrayType, ...]
    body: Program
    extents: tuple[tuple[int, int, int], ...] = ()
    name: str = field(default="kernel", compare=False)
    launch: tuple[tuple[str, int], ...] = ()

    @property
    def num_programs(self) -> int:
        """Size of the grid."""
        return int(np.prod(self.grid, dtype=np.int64))


def check_kernel(kernel: Kernel, types: Sequence[ArrayType]) -> None:
    """Check that the accesses fit the operands and the body fits the accesses.

    Raises:
        TypeMismatchError: they do not.
    """
    num_extents = len({operand for _, _, operand in kernel.extents})
    if len(types) != len(kernel.loads) + num_extents:
        raise errors.TypeMismatchError(
            f"kernel {kernel.name} takes {len(kernel.loads) + num_extents} operands", got=f"{len(types)}"
        )
    arrays = [*types[: len(kernel.loads)], *kernel.outputs]
    for access, type_ in zip((*kernel.loads, *kernel.stores), arrays, strict=True):
        if not len(access.grid_strides) == len(access.tile_strides) == len(access.offsets) == type_.ndim:
            raise errors.TypeMismatchError(
                f"kernel {kernel.name}: an access does not have the rank of {type_}"
            )
    expected = [
        *(ArrayType(a.tile, t.dtype) for a, t in zip(kernel.loads, types, strict=False)),
        *(ArrayType((), dtypes.int32) for _ in kernel.grid),
    ]
    if list(kernel.body.in_types) != expected:
        raise errors.TypeMismatchError(
            f"kernel {kernel.name}: the body takes other tiles",
            got=str(kernel.body.in_types),
            expected=str(expected),
        )
    stored = [ArrayType(a.tile, t.dtype) for a, t in zip(kernel.stores, kernel.outputs, strict=True)]
    if list(kernel.body.out_types) != stored:
        raise errors.TypeMismatchError(
            f"kernel {kernel.name}: the body gives other tiles",
            got=str(kernel.body.out_types),
            expected=str(stored),
        )


def _type(*types: ArrayType, kernel: Kernel, definition: Program | None = None) -> tuple[ArrayType, ...]:
    check_kernel(kernel, types)
    return kernel.outputs


def interpret(
    kernel: Kernel,
    operands: Sequence[np.ndarray],
    run_body: Callable[[Program, Sequence[np.ndarray]], Sequence[np.ndarray]],
) -> tuple[np.ndarray, ...]:
    """Run a kernel with NumPy, program by program: the oracle of both emitters.

    Args:
        kernel: the kernel.
        operands: arrays of the loads, then the extents.
        run_body: evaluates a program on NumPy arrays.
    """
    outputs = [np.zeros(t.shape, t.dtype) for t in kernel.outputs]
    grid = list(kernel.grid)
    for dimension, rows, operand in kernel.extents:
        grid[dimension] = min(grid[dimension], -(-int(operands[operand]) // rows))
    for program in itertools.product(*map(range, grid)):
        tiles = [load(a, x, program) for a, x in zip(kernel.loads, operands, strict=False)]
        ids = [np.asarray(i, np.int32) for i in program]
        for access, out, tile in zip(
            kernel.stores, outputs, run_body(kernel.body, [*tiles, *ids]), strict=True
        ):
            index, inside = indices(access, out.shape, program)
            out[tuple(d[inside] for d in index) or ...] = tile[inside] if index else tile.reshape(())
    return tuple(outputs)


def indices(
    access: Access, shape: Shape, program: Sequence[int]
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Array indices of each element of a tile, per array dimension, and where they lie inside the array."""
    places = np.indices(access.tile, dtype=np.int64)
    index = []
    inside = np.ones(access.tile, bool)
    for d, size in enumerate(shape):
        at = np.full(access.tile, access.offsets[d], np.int64)
        at += sum(factor * g for factor, g in zip(access.grid_strides[d], program, strict=True))
        for factor, place in zip(access.tile_strides[d], places, strict=True):
            at = at + factor * place
        index.append(at)
        inside &= (at >= 0) & (at < size)
    return tuple(index), inside


def load(access: Access, array: np.ndarray, program: Sequence[int]) -> np.ndarray:
    """The tile of one program, with the fill value outside the array."""
    index, inside = indices(access, array.shape, program)
    if access.fill is None:
        return np.asarray(array[index]) if index else np.broadcast_to(array, access.tile)
    tile = np.full(access.tile, np.asarray(access.fill).astype(array.dtype), array.dtype)
    tile[inside] = array[tuple(d[inside] for d in index)]
    return tile


def batch_kernel(kernel: Kernel, batched: Sequence[bool], size: int) -> Kernel:
    """The kernel over a leading batch dimension of the operands marked in `batched`: it becomes the first
    grid dimension.
    """

    def widen(access: Access, is_batched: bool) -> Access:
        grid = tuple((0, *row) for row in access.grid_strides)
        if not is_batched:
            return Access(access.tile, grid, access.tile_strides, access.offsets, access.fill, access.levels)
        return Access(
            access.tile,
            ((1, *(0,) * len(kernel.grid)), *grid),
            ((0,) * len(access.tile), *access.tile_strides),
            (0, *access.offsets),
            access.fill,
            access.levels,
        )

    num_loads = len(kernel.loads)
    params = kernel.body.params
    ids = (ir.Var(ArrayType((), dtypes.int32)), *params[num_loads:])
    return Kernel(
        (size, *kernel.grid),
        tuple(widen(a, b) for a, b in zip(kernel.loads, batched, strict=False)),
        tuple(widen(a, True) for a in kernel.stores),
        tuple(t.update(shape=(size, *t.shape)) for t in kernel.outputs),
        kernel.body.replace(params=(*params[:num_loads], *ids)),
        tuple((dimension + 1, rows, operand) for dimension, rows, operand in kernel.extents),
        kernel.name,
        kernel.launch,
    )


# --- the operation ----------------------------------------------------------------------------
# Attributes: the kernel, and optionally the same function as a program on whole arrays, whose derivative
# stands for the kernel's.


def _reference(
    evaluate: Callable[[Program, Sequence[np.ndarray]], Sequence[np.ndarray]],
    *arrays: np.ndarray,
    kernel: Kernel,
    definition: Program | None = None,
) -> tuple[np.ndarray, ...]:
    return interpret(kernel, arrays, evaluate)


def _batch(
    ctx: calls.Context, args: calls.Values, batched: calls.Flags, attrs: ir.Attrs
) -> tuple[calls.Values, calls.Flags]:
    kernel: Kernel = attrs["kernel"]
    if any(batched[len(kernel.loads) :]):
        raise errors.TypeMismatchError(
            f"vmap cannot batch a run-time extent of kernel {kernel.name}", fix="map with lax.map instead"
        )
    changes: dict[str, object] = {"kernel": batch_kernel(kernel, batched, ctx.size)}
    if "definition" in attrs:
        changes["definition"], _ = ctx.batch_program(attrs["definition"], batched, force=True)
    return trace.bind(kernel_p, *args, **attrs.replace(**changes)), (True,) * len(kernel.outputs)


def _tangents(
    ctx: calls.Context, tangents: calls.MaybeValues, attrs: ir.Attrs
) -> tuple[Program, calls.Flags]:
    """The derivative of the definition, without its primal results."""
    if "definition" not in attrs:
        raise errors.MissingRuleError(
            f"kernel {attrs['kernel'].name} has no derivative",
            fix="give tile.kernel vjp=(forward, backward) or definition=",
        )
    definition: Program = attrs["definition"]
    jvp, out_flags = ctx.jvp_program(definition, calls.nonzero(tangents))
    return jvp.replace(results=jvp.results[len(definition.results) :]), out_flags


def jvp_of(op_name: str) -> Any:  # Any: a rule
    """JVP rule of an operation with a kernel: the derivative of its definition."""

    def rule(
        ctx: calls.Context, primals: calls.Values, tangents: calls.MaybeValues, attrs: ir.Attrs
    ) -> tuple[calls.Values, calls.MaybeValues]:
        results = trace.bind(primitive.by_name(op_name), *primals, **attrs)
        given = [t for t in tangents if t is not None]
        if not given:
            return results, (None,) * len(results)
        body, out_flags = _tangents(ctx, tangents, attrs)
        return results, calls.merge(out_flags, trace.bind(calls.call_p, *primals, *given, body=body))

    return rule


def linearize_of(op_name: str) -> Any:  # Any: a rule
    """LINEARIZE rule of an operation with a kernel.

    As of `checkpoint`: the kernel gives the results, the linear part recomputes from the operands.
    """

    def rule(
        ctx: calls.Context, primals: calls.Values, tangents: calls.MaybeValues, attrs: ir.Attrs
    ) -> tuple[calls.Values, calls.MaybeValues]:
        body, out_flags = _tangents(ctx, tangents, attrs)
        results = ctx.bind_primal(primitive.by_name(op_name), *primals, **attrs)
        given = [t for t in tangents if t is not None]
        moved = ctx.bind_linear(checkpoint_p, *primals, *given, body=body) if any(out_flags) else ()
        return results, calls.merge(out_flags, moved)

    return rule


kernel_p: Primitive = primitive.register(
    Primitive(
        "kernel",
        None,
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: _reference,
            primitive.BATCH: _batch,
            primitive.JVP: jvp_of("kernel"),
            primitive.LINEARIZE: linearize_of("kernel"),
            primitive.PLACE: splitting.place,
            primitive.PARTITION: splitting.partition,
        },
        is_higher_order=True,
    )
)
