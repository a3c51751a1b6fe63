"""The body of a kernel as Triton statements: values, elementwise operations, calls and loops. Other families
have their own files.

Blocks are padded, and what stands in the padding is unspecified unless a `Tile` says so: rules that look
across elements (reductions, products) put an identity there first. Small floats are stored as such and
computed in float32, rounded after every operation, exactly as the oracle does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from infini.compiler.triton import access, language, naming, scalar, small_floats, target as target_
from infini.compiler.triton.source import SIGNATURE_NAMES, language_name, literal, padded
from infini.compiler.triton.writer import Counter, Operand, Tile, Walked, Writer
from infini.core import dtypes, errors, ir, primitive, trace
from infini.core.ir import ArrayType, Equation, Program, Var

# Operations that call one program on their operands as they are.
_CALLS: Final = frozenset({"call", "checkpoint", "custom_vjp_call", "custom_jvp_call"})


class Body:
    """Emits programs into a writer. `load` turns a walked operand into a tile, `rules` has the families
    besides elementwise.
    """

    def __init__(self, writer: Writer, load: Callable[[Walked], Tile], rules: Mapping[str, Rule]) -> None:
        self.writer = writer
        self.load = load
        self.rules = rules

    def run(self, program: Program, arguments: Sequence[Operand]) -> list[Operand]:
        """Emit a program applied to values, and return its results."""
        env: dict[Var, Operand] = dict(zip(program.params, arguments, strict=True))
        env.update((var, self.constant(constant)) for var, constant in program.consts)
        following: list[Equation | None] = [*program.equations, None][1:]
        for equation, after in zip(program.equations, following, strict=True):
            outputs = self.equation(equation, [env[v] for v in equation.inputs])
            env.update(zip(equation.outputs, outputs, strict=True))
            for output, name in zip(outputs, naming.results_of(equation, after), strict=False):
                self.writer.suggest(output, name)
        return [env[v] for v in program.results]

    def equation(self, equation: Equation, operands: Sequence[Operand]) -> Sequence[Operand]:
        """Emit one equation."""
        self.check_target(equation)
        with self.writer.equation(equation):
            return self.lowered(equation, operands)

    def check_target(self, equation: Equation) -> None:
        """Refuse what the target cannot hold.

        Raises:
            LoweringError: a dtype or the rank of a tile is beyond the target.
        """
        target, shown = self.writer.target, f"operation {equation.op.name!r}"
        for type_ in (v.type for v in (*equation.inputs, *equation.outputs)):
            kind = SIGNATURE_NAMES.get(type_.dtype, "")
            if kind in language.SIGNATURE_NEEDS:
                target_.require(target, {language.SIGNATURE_NEEDS[kind]}, f"{shown} of {type_}")
            rank = type_.ndim
            if rank > target.tile_rank and not equation.programs:
                raise errors.LoweringError(
                    f"{shown} needs tiles of {rank} dimensions, and the target {target.name} has"
                    f" {target.tile_rank}",
                    got=str(type_),
                    expected=f"the capability of tiles of rank {rank}",
                    fix="cut the arrays into tiles of fewer dimensions",
                    where=equation.where,
                )

    def lowered(self, equation: Equation, operands: Sequence[Operand]) -> Sequence[Operand]:
        """Emit one equation by the route of its operation."""
        op, attrs = equation.op, equation.attrs
        if op.name in _CALLS:
            return self.run(attrs["body"], operands)
        if op.name == "optimization_barrier":
            return operands
        if op.name == "scan":
            return self.scan(equation, operands)
        if op.name == "cond":
            return self.cond(equation, operands)
        if op.has(primitive.SCALAR) and op.name in scalar.RULES:
            return [self.elementwise(equation, [self.tile(x) for x in operands])]
        if op.name in self.rules:
            return [self.rules[op.name](self, equation, operands)]
        if op.has(primitive.DECOMPOSE):
            return self.decomposed(equation, [self.tile(x) for x in operands])
        raise errors.LoweringError(
            f"operation {op.name!r} has no Triton form inside a kernel",
            got=", ".join(str(v.type) for v in equation.inputs),
            expected="routes tried: scalar table, tile rules, decomposition",
            fix="move it out of the kernel",
            where=equation.where,
        )

    # --- values -----------------------------------------------------------------------------

    def tile(self, value: Operand) -> Tile:
        """A value in registers."""
        if isinstance(value, Walked):
            return self.load(value)
        return self.writer.tile(counter(value.type), value.type) if isinstance(value, Counter) else value

    def constant(self, constant: ir.Constant) -> Tile:
        """A constant: a typed number, repeated over the shape, or chosen by position."""
        type_, name = constant.type, small_floats.storage_name(constant.type.dtype)
        numbers = constant.array.reshape(-1).astype(_host_dtype(type_.dtype))
        shape = list(padded(type_.shape)) if type_.shape else "()"
        if constant.is_scalar:
            return self.repeated(numbers[0].item(), type_)
        compute = name if scalar.is_wide(type_.dtype) else "tl.float32"
        lanes = [access.lane(padded(type_.shape), i) for i in range(type_.ndim)]
        weights = access.c_strides(type_.shape)
        position = " + ".join(f"{x} * {w}" for x, w in zip(lanes, weights, strict=True))
        found = self.writer.tile(f"tl.full({shape}, 0, {compute})", type_)
        where = self.writer.tile(position, type_.update(dtype=dtypes.int32))
        for i, number in enumerate(numbers):
            value = f"tl.full((), {literal(number.item(), type_.dtype)}, {compute})"
            found = self.writer.tile(f"tl.where({where.name} == {i}, {value}, {found.name})", type_)
        return found if scalar.is_wide(type_.dtype) else self.rounded(found.name, type_)

    def repeated(self, number: complex, type_: ArrayType) -> Tile:
        """A constant, the same number everywhere."""
        shape = list(padded(type_.shape)) if type_.shape else "()"
        text, plain = literal(number, type_.dtype), scalar.plain_number(number, type_.dtype)
        if scalar.is_wide(type_.dtype):
            name = small_floats.storage_name(type_.dtype)
            return Tile(f"tl.full({shape}, {text}, {name})", type_, number=plain)
        wide = f"tl.full({shape}, {text}, tl.float32)"
        return Tile(small_floats.narrowed(wide, type_.dtype), type_, wide=wide, number=plain)

    def wide(self, tile: Tile) -> str:
        """Expression of a value as arithmetic takes it: small floats in float32."""
        if scalar.is_wide(tile.type.dtype):
            return tile.name
        return tile.wide or small_floats.widened(tile.name, tile.type.dtype)

    def rounded(self, text: str, type_: ArrayType, *, padding: float | None = None) -> Tile:
        """Name a result that was computed in float32 if its dtype is a small float."""
        result = text if scalar.is_wide(type_.dtype) else small_floats.narrowed(text, type_.dtype)
        return self.writer.tile(result, type_, padding=padding)

    def filled(self, tile: Tile, axes: Sequence[int], value: Any) -> str:  # Any: a number of the tile's dtype
        """Expression of a value, in arithmetic's dtype, with `value` in the padding along some axes."""
        text = self.wide(tile)
        dtype = tile.type.dtype
        cut = [a for a in axes if tile.shape[a] != tile.type.shape[a]]
        if not cut or (tile.padding is not None and tile.padding == value):
            return text
        inside = " & ".join(f"({access.lane(tile.shape, a)} < {tile.type.shape[a]})" for a in cut)
        return f"tl.where({inside}, {text}, {scalar.number(value, dtype)})"

    # --- elementwise ------------------------------------------------------------------------

    def elementwise(self, equation: Equation, tiles: Sequence[Tile]) -> Tile:
        """Emit an operation of the scalar table; Triton broadcasts as NumPy does."""
        type_ = equation.output.type
        name = equation.op.name
        if name == "convert_element_type" and tiles[0].number and not tiles[0].wide:
            given = np.asarray(scalar.value_of(tiles[0].number), tiles[0].type.dtype)
            if type_.dtype in dtypes.FLOATS or type_.dtype == tiles[0].type.dtype:
                rounded = given.astype(type_.dtype).astype(_host_dtype(type_.dtype))
                return self.repeated(rounded.item(), type_)
        is_bitwise = name in scalar.BITWISE
        operands = [t.name if is_bitwise else self.wide(t) for t in tiles]
        # A number takes the dtype of the other operands, one of which has the shape of the result.
        is_typed = any(t.shape == padded(type_.shape) and not t.number for t in tiles[name == "select_n" :])
        if is_typed and not (is_bitwise and not scalar.is_wide(type_.dtype)):
            operands = [
                t.number if t.number and scalar.takes_number(name, i, t.number, t.type.dtype) else text
                for i, (t, text) in enumerate(zip(tiles, operands, strict=True))
            ]
        text = scalar.expression(name, operands, [t.type.dtype for t in tiles], equation.attrs)
        assert text is not None
        keeps = name == "convert_element_type" and tiles[0].padding == 0
        if is_bitwise:
            return self.writer.tile(text, type_)
        return self.rounded(text, type_, padding=0.0 if keeps else None)

    def decomposed(self, equation: Equation, tiles: Sequence[Tile]) -> Sequence[Operand]:
        """Emit the definition of an operation; elementwise ones in float32, rounded once."""
        types = tuple(t.type for t in tiles)
        if not equation.op.has(primitive.SCALAR):
            return self.run(_definition(equation.op, types, equation.attrs), tiles)
        wide_types = tuple(t if scalar.is_wide(t.dtype) else t.update(dtype=dtypes.float32) for t in types)
        wide = [t if t.type == w else Tile(self.wide(t), w) for t, w in zip(tiles, wide_types, strict=True)]
        results = self.run(_definition(equation.op, wide_types, equation.attrs), wide)
        found = zip(map(self.tile, results), equation.outputs, strict=True)
        return [r if r.type == v.type else self.rounded(r.name, v.type) for r, v in found]

    # --- control flow -----------------------------------------------------------------------

    def scan(self, equation: Equation, operands: Sequence[Operand]) -> Sequence[Operand]:
        """A loop over levels; carries are variables of the text."""
        attrs = equation.attrs
        body: Program = attrs["body"]
        first, second, length = attrs["num_consts"], attrs["num_consts"] + attrs["num_carry"], attrs["length"]
        consts, xs = operands[:first], operands[second:]
        if len(body.results) > attrs["num_carry"]:
            raise refused(equation, "a loop inside a kernel cannot stack results", "keep them in the carry")
        if any(isinstance(x, Tile) for x in xs):
            raise refused(
                equation,
                "a loop inside a kernel walks levels of its operands only",
                "tile the operand into levels",
            )
        if length == 1:
            steps = [
                self.step(x, "tl.full((), 0, tl.int32)", v.type)
                for x, v in zip(xs, body.params[second:], strict=True)
            ]
            return self.run(body, [*consts, *operands[first:second], *steps])
        carries = [
            self.writer.tile(self.tile(c).name, v.type, base="carry")
            for c, v in zip(operands[first:second], body.params[first:second], strict=True)
        ]
        counter_name, position = self.writer.fresh("i"), self.writer.fresh("k")
        self.writer.line(f"for {counter_name} in range(0, {length}):")
        self.writer.depth += 1
        index = f"{length - 1} - {counter_name}" if attrs["reverse"] else counter_name
        self.writer.line(f"{position} = tl.full((), 0, tl.int32) + {index}")
        steps = [self.step(x, position, v.type) for x, v in zip(xs, body.params[second:], strict=True)]
        self.writer.leave_block()
        results = [self.tile(r) for r in self.run(body, [*consts, *carries, *steps])]
        names = {c.name for c in carries}
        moved = [self.writer.tile(r.name, r.type) if r.name in names else r for r in results]
        for carry, result in zip(carries, moved, strict=True):
            self.writer.line(f"{carry.name} = {result.name}")
        self.writer.depth -= 1
        self.writer.leave_block()
        return carries

    def step(self, value: Operand, position: str, type_: ArrayType) -> Operand:
        """The part of a walked value at one position."""
        if isinstance(value, Walked):
            return Walked(value.operand, (*value.positions, position), type_)
        return self.writer.tile(f"{position}.to({language_name(type_.dtype)})", type_)

    def cond(self, equation: Equation, operands: Sequence[Operand]) -> Sequence[Operand]:
        """Every branch is computed, the index picks: programs of a warp would wait for each other anyway."""
        index, *arguments = [self.tile(x) for x in operands]
        chosen: list[Tile] = []
        for number, branch in enumerate(equation.attrs["branches"]):
            found = [self.tile(r) for r in self.run(branch, arguments)]
            if number == 0:
                chosen = found
                continue
            chosen = [
                self.writer.tile(f"tl.where({index.name} >= {number}, {new.name}, {old.name})", old.type)
                for new, old in zip(found, chosen, strict=True)
            ]
        return chosen


Rule: TypeAlias = Callable[[Body, Equation, Sequence[Operand]], Operand]


def counter(type_: ArrayType) -> str:
    """Expression of the numbers from 0 up."""
    shape = padded(type_.shape)
    name = language_name(type_.dtype)
    if shape == (1,):
        return f"tl.zeros([1], {name})"
    return f"tl.arange(0, {shape[0]})" + ("" if type_.dtype == dtypes.int32 else f".to({name})")


def refused(equation: Equation, what: str, fix: str) -> errors.LoweringError:
    """The error for an operation that a kernel cannot hold in this form."""
    got = f"{equation.op.name} of {', '.join(str(v.type) for v in equation.inputs)}"
    return errors.LoweringError(what, got=got, fix=fix, where=equation.where)


def _host_dtype(dtype: np.dtype) -> np.dtype:
    return dtype if scalar.is_wide(dtype) else dtypes.float32


@functools.lru_cache(maxsize=1024)
def _definition(op: primitive.Primitive, types: tuple[ArrayType, ...], attrs: ir.Attrs) -> Program:
    """The decomposition of an operation at these types."""
    rule = op.rule(primitive.DECOMPOSE)
    return trace.stage(lambda *xs: rule(*xs, **attrs), types, name=op.name).program
