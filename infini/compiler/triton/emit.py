"""From a kernel to the text of one Triton function.

The grid is folded into one dimension, tiles are padded to powers of two, accesses become pointers and masks
(`access`), the body is emitted equation by equation (`body`). Sizes are constants of the text. Language:
Triton 3.0, so forks can compile it.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from infini.compiler.triton import (
    access as access_,
    body as body_,
    function_text,
    naming,
    polish,
    products,
    reductions,
    shapes,
    streaming,
    table_rows,
    target as target_,
)
from infini.compiler.triton.access import Place, Tail
from infini.compiler.triton.scalar import HELPERS
from infini.compiler.triton.source import TritonSource, literal
from infini.compiler.triton.target import GENERIC, Target
from infini.compiler.triton.writer import Counter, Operand, Tile, Walked, Writer
from infini.core import dtypes, errors, ir
from infini.core.ir import ArrayType
from infini.core.source import Where
from infini.tile.program import Access, Kernel, check_kernel

# Programs of this many rows of the grid run column by column, so that tiles of both operands stay in the L2
# cache.
_GROUP: Final = 8
_ELEMENTS_PER_WARP: Final = 256
_LARGE_PRODUCT: Final = 1 << 14
_RULES: Final = {**reductions.RULES, **shapes.RULES, **products.RULES, **table_rows.RULES}


def emit_triton(
    kernel: Kernel,
    in_types: Sequence[ArrayType],
    *,
    name: str | None = None,
    target: Target = GENERIC,
    names: Mapping[str, str] | None = None,
) -> TritonSource:
    """The Triton function of a kernel at these operand types.

    Args:
        kernel: the kernel.
        in_types: types of the operands, extents included.
        name: name of the function, made from the kernel's by default.
        target: what the text is for.
        names: the user's names of operands and results by role, such as `{"x0": "weight"}`; those of the
            body's parameters by default.

    Raises:
        LoweringError: an operation of the body has no Triton form, or the target lacks a capability that it
            needs.
    """
    check_kernel(kernel, in_types)
    hints = {f"x{i}": naming.plain(v.hint) for i, v in enumerate(kernel.body.params[: len(kernel.loads)])}
    given = {role: found for role, found in {**hints, **(names or {})}.items() if found}
    function_name = re.sub(r"\W", "_", name or f"{kernel.name}_kernel")
    lines = tuple(equation.where for equation in kernel.body.equations)
    limits = (streaming.MAX_TILE, streaming.CHUNK)
    return _emitted(
        kernel, tuple(in_types), function_name, target, tuple(sorted(given.items())), lines, limits
    )


@functools.lru_cache(maxsize=1024)
def _emitted(
    kernel: Kernel,
    in_types: tuple[ArrayType, ...],
    function_name: str,
    target: Target,
    names: tuple[tuple[str, str], ...],
    _lines: tuple[Where | None, ...],
    _limits: tuple[int, int],
) -> TritonSource:
    """The function of a kernel; those of other lines of the user are others, since the lines are comments."""
    emitter = _Emitter(kernel, in_types, target)
    parameters = emitter.parameters()
    lines = emitter.function()
    writer = emitter.writer
    num_warps = min(_num_warps(writer), target.max_warps)
    plural = "s" if kernel.num_programs != 1 else ""
    source = function_text.module(
        function_name,
        parameters,
        lines,
        kernel.num_programs,
        target=target,
        num_warps=num_warps,
        num_stages=3,
        about=[f"{kernel.name}: {kernel.num_programs} program{plural}", *emitter.about()],
        polishes=lambda raw, before: polish.polished(
            raw,
            notes={number + before: note for number, note in writer.notes.items()},
            types={tile: str(type_) for tile, type_ in writer.types.items()},
            suggested=writer.suggested,
            always=emitter.loaded_names,
            taken=[*HELPERS, *(role for role, _ in parameters)],
        ),
    )
    return source.renamed(dict(names))


def _num_warps(writer: Writer) -> int:
    """Warps per program: one per 256 elements of the largest tile, from 1 to 16; with products 4, or 8 for
    large ones.
    """
    if writer.has_dot:
        return 8 if writer.largest >= _LARGE_PRODUCT else 4
    return min(1 << max(0, (writer.largest // _ELEMENTS_PER_WARP).bit_length() - 1), 16)


class _Emitter:
    """Writes one function. Parameters are x0, x1 ... for loads, n0 ... for extents, y0 ... for results."""

    def __init__(self, kernel: Kernel, in_types: tuple[ArrayType, ...], target: Target) -> None:
        self.kernel = kernel
        self.in_types = in_types
        self.writer = Writer(target)
        self.programs: list[str] = []
        self.loaded_names: list[str] = []

    def parameters(self) -> list[tuple[str, ArrayType]]:
        """Role and type of each parameter."""
        num_loads = len(self.kernel.loads)
        names = [f"x{i}" for i in range(num_loads)] + [f"n{i}" for i in range(len(self.in_types) - num_loads)]
        names += [f"y{i}" for i in range(len(self.kernel.outputs))]
        return list(zip(names, (*self.in_types, *self.kernel.outputs), strict=True))

    def about(self) -> list[str]:
        """The parameters in words."""
        kernel, found = self.kernel, []
        arrays = [
            *zip(kernel.loads, self.in_types, strict=False),
            *zip(kernel.stores, kernel.outputs, strict=True),
        ]
        for (access, type_), role in zip(
            arrays, [*(r for r, _ in self.parameters() if r[0] != "n")], strict=True
        ):
            tile = "x".join(map(str, access.tile[access.levels :])) or "1"
            steps = "x".join(map(str, access.tile[: access.levels]))
            verb = "written" if role[0] == "y" else "read"
            found.append(
                f"  {role}: {type_}, {verb} in tiles of {tile}" + (f", {steps} of them" if steps else "")
            )
        return found

    def function(self) -> list[str]:
        """Lines of the function's body."""
        kernel, writer = self.kernel, self.writer
        num_loads = len(kernel.loads)
        self.write_grid()
        self.write_extents()
        body = body_.Body(writer, self.load, _RULES)
        streamed = streaming.plan(kernel, writer.target.max_tile)
        values: list[Operand | None] = []
        for number, (access, var) in enumerate(zip(kernel.loads, kernel.body.params, strict=False)):
            walked = Walked(number, (), var.type)
            is_later = streamed is not None and var in streamed.axes
            values.append(None if is_later else walked if access.levels else self.load(walked))
        for var, program in zip(kernel.body.params[num_loads:], self.programs, strict=True):
            values.append(Tile(program, var.type))
        if streamed is not None:
            streaming.Stream(body, kernel, streamed, self.load_chunk, self.store).run(values)
            return writer.lines
        results = body.run(kernel.body, [v for v in values if v is not None])
        writer.leave_block()
        for number, result in enumerate(results):
            self.store(number, self.loaded(result))
        return writer.lines

    def write_grid(self) -> None:
        """Program ids of the kernel's grid from the one of the launch."""
        grid, line = self.kernel.grid, self.writer.line
        self.programs = [f"g{i}" for i in range(len(grid))] if len(grid) != 1 else ["pid"]
        if len(grid) == 1:
            return
        if max(grid, default=1) > 1:
            self.writer.note(f"program ({', '.join(self.programs)}) of {grid}")
        if len(grid) >= 2 and _has_dot(self.kernel.body) and min(grid[-2:]) > 1:
            rows, columns = grid[-2:]
            line(f"inner = pid % {rows * columns}" if math.prod(grid[:-2]) > 1 else "inner = pid")
            line(f"first = inner // {_GROUP * columns} * {_GROUP}")
            line(f"height = tl.minimum({rows} - first, {_GROUP})")
            line(f"g{len(grid) - 2} = first + inner % {_GROUP * columns} % height")
            line(f"g{len(grid) - 1} = inner % {_GROUP * columns} // height")
            last, faster = len(grid) - 2, rows * columns
        else:
            last, faster = len(grid), 1
        # A dimension of one program has no number, and the slowest of the others needs no remainder.
        slowest = next((i for i in range(last) if grid[i] > 1), 0)
        for i in reversed(range(last)):
            divided = "pid" if faster == 1 else f"pid // {faster}"
            if grid[i] == 1:
                self.programs[i] = "tl.full((), 0, tl.int32)"
                continue
            line(f"g{i} = {divided}" if i == slowest else f"g{i} = {divided} % {grid[i]}")
            faster *= max(grid[i], 1)

    def write_extents(self) -> None:
        """Programs beyond a run-time extent return."""
        num_loads = len(self.kernel.loads)
        is_loop = target_.fold(self.kernel.num_programs, self.writer.target).step > 0
        for dimension, rows, operand in self.kernel.extents:
            first, extent = f"{self.programs[dimension]} * {rows}", f"tl.load(n{operand - num_loads})"
            if is_loop:  # a loop has no way out
                self.writer.line(f"if {first} < {extent}:")
                self.writer.depth += 1
            else:
                self.writer.line(f"if {first} >= {extent}:")
                self.writer.line("    return")

    def load(self, walked: Walked) -> Tile:
        """Load what is left of an operand after the positions that loops have reached."""
        access, shape = self.kernel.loads[walked.operand], self.in_types[walked.operand].shape
        place = access_.place(
            access, shape, self.kernel.grid, self.programs, walked.positions, block_rank=walked.block_rank
        )
        return self.load_at(place, walked)

    def load_chunk(self, operand: int, tail: Tail, type_: ArrayType) -> Tile:
        """Load one chunk of an operand."""
        access, shape = self.kernel.loads[operand], self.in_types[operand].shape
        place = access_.place(access, shape, self.kernel.grid, self.programs, tail=tail)
        return self.load_at(place, Walked(operand, (), type_))

    def load_at(self, place: Place, walked: Walked) -> Tile:
        """Load a tile from where it lies."""
        access, type_ = self.kernel.loads[walked.operand], self.in_types[walked.operand]
        pointer = f"x{walked.operand} + {place.offset}" if place.offset != "0" else f"x{walked.operand}"
        fill = 0 if access.fill is None else access.fill
        padding = float(np.asarray(fill).astype(type_.dtype).real)
        text = f"tl.load({pointer})"
        if place.mask:
            text = f"tl.load({pointer}, mask={place.mask}, other={_other(fill, type_.dtype)})"
        text = f"({text} != 0)" if type_.dtype == dtypes.bool_ else text
        tile = Tile("", walked.type)
        if place.shape == tile.shape:
            tile = self.writer.tile(text, walked.type, padding=padding, base=f"x{walked.operand}_tile")
        else:
            spread = f"tl.broadcast_to({text}, {_shape(tile.shape)})"
            tile = self.writer.tile(spread, walked.type, base=f"x{walked.operand}_tile")
        self.loaded_names.append(tile.name)
        return tile

    def loaded(self, value: Operand) -> Tile:
        """A value in registers."""
        if isinstance(value, Walked):
            return self.load(value)
        if isinstance(value, Counter):
            return self.writer.tile(body_.counter(value.type), value.type)
        return value

    def store(self, number: int, tile: Tile, tail: Tail | None = None) -> None:
        """Store the tile of a result, or one chunk of it."""
        access: Access = self.kernel.stores[number]
        type_ = self.kernel.outputs[number]
        place = access_.place(access, type_.shape, self.kernel.grid, self.programs, tail=tail)
        if place.shape != tile.shape:
            raise errors.LoweringError(
                f"kernel {self.kernel.name}: several elements of a result tile are one element of the array"
            )
        value = f"{tile.name}.to(tl.int8)" if type_.dtype == dtypes.bool_ else tile.name
        pointer = f"y{number} + {place.offset}" if place.offset != "0" else f"y{number}"
        self.writer.line(f"tl.store({pointer}, {value}" + (f", mask={place.mask})" if place.mask else ")"))


def _shape(shape: ir.Shape) -> str:
    return str(list(shape))


def _other(fill: complex, dtype: np.dtype) -> str:
    if dtype == dtypes.bool_:
        return str(int(bool(fill)))
    if dtype.itemsize == 1 and dtype in dtypes.FLOATS:  # held as bits
        return str(np.asarray(fill).astype(dtype).view(np.uint8))
    return literal(fill, dtype)


def _has_dot(program: ir.Program) -> bool:
    return any(e.op.name == "dot" or any(map(_has_dot, e.programs)) for e in program.equations)
