"""The body of a kernel as Triton statements, one rule per operation.

Blocks are padded, and what stands in the padding is unspecified unless a `Tile` says so: rules that look across elements
(reductions, products) put an identity there first. 16-bit floats are stored as such and computed in float32, rounded after
every operation, exactly as the oracle does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from infini.compiler.triton import access, scalar
from infini.compiler.triton.source import is_padded, language_name, literal, padded
from infini.compiler.triton.writer import Counter, Operand, Tile, Walked, Writer
from infini.core import dtypes, errors, ir, primitive, trace
from infini.core.ir import ArrayType, Equation, Program, Shape, Var
from infini.lax import contraction, reduction

# Operations that call one program on their operands as they are.
_CALLS: Final = frozenset({"call", "checkpoint", "custom_vjp_call", "custom_jvp_call"})
# Smallest sizes that Triton's dot takes.
_MIN_DOT: Final = 16
# Elements of the product space above which a small contraction is refused instead of multiplied out.
_MAX_OUTER: Final = 1 << 16


class Body:
    """Emits programs into a writer. `load` turns a walked operand into a tile."""

    def __init__(self, writer: Writer, load: Callable[[Walked], Tile]) -> None:
        self.writer = writer
        self.load = load

    def run(self, program: Program, arguments: Sequence[Operand]) -> list[Operand]:
        """Emit a program applied to values, and return its results."""
        env: dict[Var, Operand] = dict(zip(program.params, arguments, strict=True))
        env.update((var, self.constant(constant)) for var, constant in program.consts)
        for equation in program.equations:
            outputs = self.equation(equation, [env[v] for v in equation.inputs])
            env.update(zip(equation.outputs, outputs, strict=True))
        return [env[v] for v in program.results]

    def equation(self, equation: Equation, operands: Sequence[Operand]) -> Sequence[Operand]:
        """Emit one equation."""
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
        if op.name in _RULES:
            return [_RULES[op.name](self, equation, operands)]
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
        type_, name = constant.type, language_name(constant.type.dtype)
        numbers = constant.array.reshape(-1).astype(_host_dtype(type_.dtype))
        shape = list(padded(type_.shape)) if type_.shape else "()"
        if constant.is_scalar:
            if scalar.is_wide(type_.dtype):
                return Tile(f"tl.full({shape}, {literal(numbers[0].item(), type_.dtype)}, {name})", type_)
            wide = f"tl.full({shape}, {literal(numbers[0].item(), type_.dtype)}, tl.float32)"
            return Tile(f"{wide}.to({name})", type_, wide=wide)
        compute = name if scalar.is_wide(type_.dtype) else "tl.float32"
        lanes = [access.lane(padded(type_.shape), i) for i in range(type_.ndim)]
        weights = access.c_strides(type_.shape)
        position = " + ".join(f"{x} * {w}" for x, w in zip(lanes, weights, strict=True))
        found = self.writer.tile(f"tl.full({shape}, 0, {compute})", type_)
        where = self.writer.tile(position, type_.update(dtype=dtypes.int32))
        for i, number in enumerate(numbers):
            value = f"tl.full((), {literal(number.item(), type_.dtype)}, {compute})"
            found = self.writer.tile(f"tl.where({where.name} == {i}, {value}, {found.name})", type_)
        return found if scalar.is_wide(type_.dtype) else self.writer.tile(f"{found.name}.to({name})", type_)

    def wide(self, tile: Tile) -> str:
        """Expression of a value as arithmetic takes it: 16-bit floats in float32."""
        if scalar.is_wide(tile.type.dtype):
            return tile.name
        return tile.wide or f"{tile.name}.to(tl.float32)"

    def rounded(self, text: str, type_: ArrayType, *, padding: float | None = None) -> Tile:
        """Name a result that was computed in float32 if its dtype is a 16-bit float."""
        suffix = "" if scalar.is_wide(type_.dtype) else f".to({language_name(type_.dtype)})"
        return self.writer.tile(f"{text}{suffix}", type_, padding=padding)

    def filled(self, tile: Tile, axes: Sequence[int], value: Any) -> str:  # Any: a number of the tile's dtype
        """Expression of a value, in arithmetic's dtype, with `value` in the padding along some axes."""
        text = self.wide(tile)
        dtype = tile.type.dtype
        cut = [a for a in axes if tile.shape[a] != tile.type.shape[a]]
        if not cut or (tile.padding is not None and tile.padding == value):
            return text
        inside = " & ".join(f"({access.lane(tile.shape, a)} < {tile.type.shape[a]})" for a in cut)
        name = language_name(dtype) if scalar.is_wide(dtype) else "tl.float32"
        return f"tl.where({inside}, {text}, tl.full((), {literal(value, dtype)}, {name}))"

    # --- elementwise ------------------------------------------------------------------------

    def elementwise(self, equation: Equation, tiles: Sequence[Tile]) -> Tile:
        """Emit an operation of the scalar table; Triton broadcasts as NumPy does."""
        type_ = equation.output.type
        name = equation.op.name
        is_bitwise = name in scalar.BITWISE
        operands = [t.name if is_bitwise else self.wide(t) for t in tiles]
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
        return [self.rounded(self.tile(r).name, v.type) for r, v in zip(results, equation.outputs, strict=True)]

    # --- control flow -----------------------------------------------------------------------

    def scan(self, equation: Equation, operands: Sequence[Operand]) -> Sequence[Operand]:
        """A loop over levels; carries are variables of the text."""
        attrs = equation.attrs
        body: Program = attrs["body"]
        first, second, length = attrs["num_consts"], attrs["num_consts"] + attrs["num_carry"], attrs["length"]
        consts, xs = operands[:first], operands[second:]
        if len(body.results) > attrs["num_carry"]:
            raise _refused(equation, "a loop inside a kernel cannot stack results", "keep them in the carry")
        if any(isinstance(x, Tile) for x in xs):
            raise _refused(equation, "a loop inside a kernel walks levels of its operands only", "tile the operand into levels")
        carries = [self.writer.tile(self.tile(c).name, v.type, prefix="c") for c, v in zip(operands[first:second], body.params[first:second], strict=True)]
        counter_name, position = self.writer.fresh("i"), self.writer.fresh("k")
        self.writer.line(f"for {counter_name} in range(0, {length}):")
        self.writer.depth += 1
        index = f"{length - 1} - {counter_name}" if attrs["reverse"] else counter_name
        self.writer.line(f"{position} = tl.full((), 0, tl.int32) + {index}")
        steps = [self.step(x, position, v.type) for x, v in zip(xs, body.params[second:], strict=True)]
        results = [self.tile(r) for r in self.run(body, [*consts, *carries, *steps])]
        names = {c.name for c in carries}
        moved = [self.writer.tile(r.name, r.type) if r.name in names else r for r in results]
        for carry, result in zip(carries, moved, strict=True):
            self.writer.line(f"{carry.name} = {result.name}")
        self.writer.depth -= 1
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

    # --- reductions ---------------------------------------------------------------------------

    def reduce(self, equation: Equation, operands: Sequence[Operand]) -> Tile:
        """Sum, maximum or minimum: one axis after the other, from the right."""
        tile = self.tile(operands[0])
        dtype = tile.type.dtype
        axes = sorted((a + tile.type.ndim for a in equation.attrs["axes"]), reverse=True)
        text = self.filled(tile, axes, reduction.identity_of(equation.op, dtype))
        is_bool = dtype == dtypes.bool_
        for axis in axes:
            text = _reduced(equation.op.name, f"{text}.to(tl.int32)" if is_bool else text, axis, dtype)
        if dtype in dtypes.INTEGERS:
            text = f"{text}.to({language_name(dtype)})"
        return self.rounded(f"({text} != 0)" if is_bool else text, equation.output.type)

    def argmax(self, equation: Equation, operands: Sequence[Operand]) -> Tile:
        """Position of the first largest element; a NaN is larger than everything."""
        tile = self.tile(operands[0])
        type_ = equation.output.type
        dtype, axis = tile.type.dtype, equation.attrs["axis"] + tile.type.ndim
        lowest = reduction.identity_of(primitive.by_name("reduce_max"), dtype)
        text = self.filled(tile, [axis], lowest)
        text = f"{text}.to(tl.int32)" if dtype == dtypes.bool_ else text
        found = f"tl.argmax({text}, {axis})"
        if dtype in dtypes.FLOATS:
            named = self.writer.tile(text, tile.type)
            is_nan = self.writer.tile(f"({named.name} != {named.name}).to(tl.int32)", tile.type.update(dtype=dtypes.int32))
            found = f"tl.argmax({named.name}, {axis})"
            found = f"tl.where(tl.max({is_nan.name}, {axis}) != 0, tl.argmax({is_nan.name}, {axis}), {found})"
        return self.writer.tile(f"{found}.to({language_name(type_.dtype)})", type_)

    # --- shapes -------------------------------------------------------------------------------

    def broadcast(self, equation: Equation, operands: Sequence[Operand]) -> Tile:
        """Repeat along new dimensions."""
        tile = self.tile(operands[0])
        type_ = equation.output.type
        dims = [d + type_.ndim for d in equation.attrs["dims"]]
        kept = [*range(tile.type.ndim - len(dims)), *dims]
        if not tile.type.shape:
            return self.repeated_scalar(tile, type_)
        shape = padded(type_.shape)
        text = tile.name
        if tile.type.ndim < type_.ndim:
            text = f"{text}[{', '.join(':' if d in kept else 'None' for d in range(type_.ndim))}]"
        return self.writer.tile(text if _with_ones(tile.shape, kept, len(shape)) == shape else f"tl.broadcast_to({text}, {list(shape)})", type_)

    def repeated_scalar(self, tile: Tile, type_: ArrayType) -> Tile:
        """A block from a scalar."""
        if not type_.shape:
            return tile
        shape = list(padded(type_.shape))
        if scalar.is_wide(type_.dtype):
            return self.writer.tile(f"tl.full({shape}, {tile.name}, {language_name(type_.dtype)})", type_)
        return self.rounded(f"tl.full({shape}, {self.wide(tile)}, tl.float32)", type_)

    def reshape(self, equation: Equation, operands: Sequence[Operand]) -> Tile:
        """Add and drop dimensions of size 1, or reorder a block without padding."""
        tile = self.tile(operands[0])
        type_ = equation.output.type
        if not tile.type.shape:
            return self.repeated_scalar(tile, type_)
        is_same_padded = [n for n in tile.shape if n != 1] == [n for n in padded(type_.shape) if n != 1]
        if not is_same_padded and (tile.is_padded or is_padded(type_.shape)):
            raise _refused(equation, "a tile whose sizes are no powers of two cannot be reshaped", "choose tile sizes that are powers of two")
        if not type_.shape:
            text = f"{self.wide(tile)}.to(tl.int32)" if type_.dtype == dtypes.bool_ else self.wide(tile)
            for _ in tile.shape:
                text = f"tl.max({text}, 0)"
            if type_.dtype == dtypes.bool_:
                return self.writer.tile(f"({text} != 0)", type_)
            return self.rounded(f"{text}.to({language_name(type_.dtype)})" if type_.dtype in dtypes.INTEGERS else text, type_)
        return self.writer.tile(f"tl.reshape({tile.name}, {list(padded(type_.shape))})", type_, padding=tile.padding)

    def transpose(self, equation: Equation, operands: Sequence[Operand]) -> Tile:
        """Permute dimensions."""
        tile = self.tile(operands[0])
        ndim, order = tile.type.ndim, equation.attrs["permutation"]
        full = [*range(ndim - len(order)), *(p + ndim for p in order)]
        return self.transposed(tile, full, equation.output.type)

    def transposed(self, tile: Tile, order: Sequence[int], type_: ArrayType) -> Tile:
        """The block with its dimensions in another order."""
        if list(order) == sorted(order):
            return tile
        text = f"tl.trans({tile.name})" if len(order) == 2 else f"tl.permute({tile.name}, {list(order)})"
        return self.writer.tile(text, type_, padding=tile.padding)

    def slice(self, equation: Equation, operands: Sequence[Operand]) -> Tile:
        """A static position of a level, or everything."""
        attrs, (value,) = equation.attrs, operands
        ndim = value.type.ndim
        start = (0,) * (ndim - len(attrs["start"])) + attrs["start"]
        if equation.output.type == value.type:
            return self.tile(value)
        return self.at_level(equation, value, [str(n) for n in start])

    def dynamic_slice(self, equation: Equation, operands: Sequence[Operand]) -> Tile:
        """A position of a level that is computed, kept inside the level."""
        value, *starts = operands
        last = [n - m for n, m in zip(value.type.shape, equation.output.type.shape, strict=True)]
        names = [f"tl.minimum(tl.maximum({self.tile(s).name}, 0), {n})" for s, n in zip(starts, last, strict=True)]
        return self.at_level(equation, value, names)

    def at_level(self, equation: Equation, value: Operand, starts: Sequence[str]) -> Tile:
        """Load one position of the leading dimensions that a slice makes of size 1."""
        type_ = equation.output.type
        picked = [n == 1 for n in type_.shape]
        lead = picked.index(False) if False in picked else len(picked)
        if not isinstance(value, Walked) or value.type.shape[lead:] != type_.shape[lead:]:
            raise _refused(equation, "a kernel can slice levels of its operands only", "express the slice in the arrangement")
        positions = []
        for start in starts[:lead]:
            positions.append(self.writer.fresh("k"))
            self.writer.line(f"{positions[-1]} = tl.full((), 0, tl.int32) + {start}")
        inner = type_.update(shape=type_.shape[lead:])
        tile = self.load(Walked(value.operand, (*value.positions, *positions), inner))
        if not inner.shape:
            return self.repeated_scalar(tile, type_)
        return self.writer.tile(f"tl.reshape({tile.name}, {list(padded(type_.shape))})", type_, padding=tile.padding)

    def iota(self, equation: Equation, operands: Sequence[Operand]) -> Operand:
        """Positions along one dimension."""
        type_, dimension = equation.output.type, equation.attrs["dimension"]
        if type_.ndim == 1:
            return Counter(type_)
        shape = padded(type_.shape)
        if shape[dimension] == 1:
            return self.writer.tile(f"tl.zeros({list(shape)}, {language_name(type_.dtype)})", type_)
        text = f"tl.broadcast_to({access.lane(shape, dimension)}, {list(shape)})"
        return self.writer.tile(f"{text}.to({language_name(type_.dtype)})", type_)

    # --- contraction ----------------------------------------------------------------------------

    def dot(self, equation: Equation, operands: Sequence[Operand]) -> Tile:
        """A product on the matrix units where its shape allows, multiplied out and summed elsewhere."""
        tiles = [self.tile(x) for x in operands]
        a, b, out = contraction.parse_spec(equation.attrs["spec"])
        if any(t.type.ndim != len(letters) for t, letters in zip(tiles, (a, b), strict=True)):
            return self.multiplied_out(equation, tiles, a, b, out)
        batch = [x for x in out if x in a and x in b]
        m = [x for x in a if x not in b]
        n = [x for x in b if x not in a]
        k = [x for x in a if x in b and x not in out]
        dtype = tiles[0].type.dtype
        fits = len(m) == len(n) == len(k) == 1 and len(batch) <= 1 and set(m + n) <= set(out)
        sizes = [dict(zip(s, t.shape, strict=True)) for s, t in zip((a, b), tiles, strict=True)]
        fits = fits and dtype in _DOT_RESULTS and min(sizes[0][m[0]], sizes[0][k[0]], sizes[1][n[0]]) >= _MIN_DOT
        if not fits:
            return self.multiplied_out(equation, tiles, a, b, out)
        left = self.arranged(tiles[0], a, batch + m + k, k)
        right = self.arranged(tiles[1], b, batch + k + n, k)
        precision = ', input_precision="ieee"' if dtype == dtypes.float32 else ""
        result_dtype = _DOT_RESULTS[dtype]
        self.writer.has_dot = True
        lengths = {**dict(zip(a, tiles[0].type.shape, strict=True)), **dict(zip(b, tiles[1].type.shape, strict=True))}
        order = batch + m + n
        raw_type = ArrayType(tuple(lengths[x] for x in order), result_dtype)
        raw = self.writer.tile(f"tl.dot({left}, {right}{precision}, out_dtype={language_name(result_dtype)})", raw_type)
        raw = self.transposed(raw, [order.index(x) for x in out], raw_type.update(shape=equation.output.type.shape))
        return self.converted(raw, equation.output.type)

    def arranged(self, tile: Tile, letters: str, order: Sequence[str], contracted: Sequence[str]) -> str:
        """An operand of a product with zeros in the padding of contracted dimensions, its dimensions in this order."""
        axes = [letters.index(x) for x in contracted]
        cut = [i for i in axes if tile.shape[i] != tile.type.shape[i]]
        if cut and tile.padding != 0:
            inside = " & ".join(f"({access.lane(tile.shape, i)} < {tile.type.shape[i]})" for i in cut)
            zero = f"tl.full((), 0, tl.float32).to({language_name(tile.type.dtype)})"
            tile = self.writer.tile(f"tl.where({inside}, {tile.name}, {zero})", tile.type)
        turned = [letters.index(x) for x in order]
        return self.transposed(tile, turned, tile.type.update(shape=tuple(tile.type.shape[i] for i in turned))).name

    def multiplied_out(self, equation: Equation, tiles: Sequence[Tile], a: str, b: str, out: str) -> Tile:
        """A contraction as a broadcast product and sums, in float32 for small floats."""
        loops = max(t.type.ndim - len(s) for t, s in zip(tiles, (a, b), strict=True))
        summed = [x for x in dict.fromkeys(a + b) if x not in out]
        order = [*out, *summed]
        texts = []
        total = 1
        shape: dict[str, int] = {}
        for tile, letters in zip(tiles, (a, b), strict=True):
            own = tile.type.ndim - len(letters)
            axes = [own + letters.index(x) for x in summed if x in letters]
            text = self.filled(tile, axes, 0)
            turned = [*range(own), *(own + letters.index(x) for x in order if x in letters)]
            if turned != list(range(len(turned))):
                text = f"tl.trans({text})" if len(turned) == 2 else f"tl.permute({text}, {turned})"
            index = ["None"] * (loops - own) + [":"] * own + [":" if x in letters else "None" for x in order]
            texts.append(f"{text}[{', '.join(index)}]" if "None" in index else text)
            shape |= dict(zip(letters, tile.shape[own:], strict=True))
        for n in shape.values():
            total *= n
        if total > _MAX_OUTER:
            raise _refused(equation, "this contraction fits no matrix unit and is too large to multiply out", "use tiles of at least 16 in every dimension")
        dtype = equation.attrs["dtype"]
        if dtype in dtypes.INTEGERS:
            texts = [f"{t}.to({language_name(dtype)})" for t in texts]
        text = " * ".join(f"({t})" for t in texts)
        for axis in reversed(range(loops + len(out), loops + len(order))):
            text = f"tl.sum({text}, {axis})"
        return self.rounded(f"({text}).to({language_name(dtype)})" if dtype in dtypes.INTEGERS else f"({text})", equation.output.type)

    def converted(self, tile: Tile, type_: ArrayType) -> Tile:
        """A value in another dtype."""
        if tile.type.dtype == type_.dtype:
            return tile
        return self.writer.tile(f"{tile.name}.to({language_name(type_.dtype)})", type_)


_DOT_RESULTS: Final[dict[np.dtype, np.dtype]] = {
    dtypes.float16: dtypes.float32,
    dtypes.bfloat16: dtypes.float32,
    dtypes.float32: dtypes.float32,
    dtypes.int8: dtypes.int32,
}

_RULES: Final[dict[str, Callable[[Body, Equation, Sequence[Operand]], Operand]]] = {
    "reduce_sum": Body.reduce,
    "reduce_max": Body.reduce,
    "reduce_min": Body.reduce,
    "argmax": Body.argmax,
    "broadcast_in_dim": Body.broadcast,
    "reshape": Body.reshape,
    "transpose": Body.transpose,
    "slice": Body.slice,
    "dynamic_slice": Body.dynamic_slice,
    "iota": Body.iota,
    "dot": Body.dot,
}


def counter(type_: ArrayType) -> str:
    """Expression of the numbers from 0 up."""
    shape = padded(type_.shape)
    name = language_name(type_.dtype)
    return f"tl.zeros([1], {name})" if shape == (1,) else f"tl.arange(0, {shape[0]}).to({name})"


def _reduced(name: str, text: str, axis: int, dtype: np.dtype) -> str:
    if name == "reduce_sum":
        return f"tl.sum({text}, {axis})"
    if dtype in dtypes.FLOATS:
        return f"tl.reduce({text}, {axis}, {'max_with_nan' if name == 'reduce_max' else 'min_with_nan'})"
    return f"tl.{'max' if name == 'reduce_max' else 'min'}({text}, {axis})"


def _with_ones(shape: Shape, kept: Sequence[int], ndim: int) -> Shape:
    result = [1] * ndim
    for d, n in zip(kept, shape, strict=True):
        result[d] = n
    return tuple(result)


def _host_dtype(dtype: np.dtype) -> np.dtype:
    return dtypes.float32 if dtype in (dtypes.bfloat16, dtypes.float16) else dtype


def _refused(equation: Equation, what: str, fix: str) -> errors.LoweringError:
    got = f"{equation.op.name} of {', '.join(str(v.type) for v in equation.inputs)}"
    return errors.LoweringError(what, got=got, fix=fix, where=equation.where)


@functools.lru_cache(maxsize=1024)
def _definition(op: primitive.Primitive, types: tuple[ArrayType, ...], attrs: ir.Attrs) -> Program:
    """The decomposition of an operation at these types."""
    rule = op.rule(primitive.DECOMPOSE)
    return trace.stage(lambda *xs: rule(*xs, **attrs), types, name=op.name).program
