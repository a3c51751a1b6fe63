"""Which elements of a tile come from elements that are there.

A load gives a fill value outside its array. What a program computes from it is stored outside of the result,
so nobody sees it; but a place computed from it is a place like others. Here the tiles of places are followed
back to the loads, and what comes from outside becomes -1, which is no place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from infini.core import dtypes, errors, ir, primitive, trace
from infini.core.ir import Equation, Program, Var
from infini.core.value import Literal, Value
from infini.lax import elementwise as e, families, indexing, view
from infini.tile.program import Access


@dataclass(frozen=True, slots=True)
class _Lost:
    """What cannot be followed any further: the equation that mixes elements."""

    equation: Equation


Masks: TypeAlias = dict[Var, Value | _Lost]

_MOVES: Final = frozenset({"broadcast_in_dim", "reshape", "rev", "slice", "transpose"})
_SAME_SHAPE: Final = frozenset({"name", "reduce_precision"})
_REDUCTIONS: Final = frozenset(
    {"reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum", "reduce_xor"}
)
_CALLS: Final = frozenset({"call", "checkpoint", "custom_jvp_call", "custom_vjp_call", "custom_vmap_call"})


def only_there(
    program: Program,
    loads: Sequence[Access],
    arrays: Sequence[ir.Shape],
    grid: Sequence[int],
    numbers: Sequence[int],
) -> Program:
    """The body of a kernel with -1 for places that come from outside an array; for those that come from no
    operand, where all of the row that goes there does.

    An element comes from those that elementwise operations and views take it from, the rows that it is the
    number of, and from any of those that it is the reduction of. Other operations mix elements, and a place
    that one of them makes of such as are not there is refused, unless a selection between it and a negative
    constant says where it counts. From tiles of which a loop walks a level nothing is followed.

    Args:
        program: from the tiles of the loads and the numbers of the program.
        loads: where the tiles lie.
        arrays: shapes of the operands.
        grid: numbers of programs.
        numbers: which results are places, signed integers; the one after each is what goes there.

    Raises:
        UnsupportedError: a place comes from outside an array through an operation that mixes elements.
    """
    tiles, ids = program.params[: len(loads)], program.params[len(loads) :]
    partial = [n for n, access in enumerate(loads) if access.fill is not None and not access.levels]
    if not numbers or _before(program, program.results).isdisjoint(tiles[n] for n in partial):
        return program

    def run(*args: Value) -> list[Value]:
        places, programs = args[: len(numbers)], args[len(numbers) :]

        def mask_of(result: Var) -> Value | _Lost | None:
            relevant = _before(program, [result])
            known = {
                tiles[n]: _inside(loads[n], arrays[n], grid, programs)
                for n in partial
                if tiles[n] in relevant
            }
            return _followed(program, {v: m for v, m in known.items() if m is not None}, relevant).get(result)

        found = []
        for number, place in zip(numbers, places, strict=True):
            result = program.results[number]
            mask = mask_of(result)
            if mask is None and (of_rows := mask_of(program.results[number + 1])) is not None:
                if isinstance(of_rows, _Lost):
                    # Places of elements that are all there say by themselves what counts.
                    mask = of_rows if _before(program, [result]).isdisjoint(tiles) else None
                    found.append(_checked(mask, place))
                    continue
                axes = tuple(axis - of_rows.ndim for axis in range(place.ndim, of_rows.ndim))
                mask = trace.bind1(primitive.by_name("reduce_or"), of_rows, axes=axes) if axes else of_rows
            found.append(_checked(mask, place))
        return found

    variables = [*(program.results[n] for n in numbers), *ids]
    staged = trace.stage(run, [v.type for v in variables], name=program.name).program
    builder = ir.Builder()
    builder.consts.update((constant, var) for var, constant in program.consts)
    for equation in program.equations:
        builder.append(equation)
    changed = dict(zip(numbers, ir.inline(builder, staged, variables), strict=True))
    results = [changed.get(n, var) for n, var in enumerate(program.results)]
    return builder.build(program.params, results, name=program.name)


def _checked(mask: Value | _Lost | None, place: Value) -> Value:
    """A place where its mask holds, and -1 elsewhere.

    Raises:
        UnsupportedError: nothing is known of where it holds.
    """
    if isinstance(mask, _Lost):
        name = mask.equation.op.name
        raise errors.UnsupportedError(
            f"places of a scatter come through {name!r} from elements beyond the end of an operand",
            got=f"{name!r}, of which each element may depend on several",
            expected="places made element by element, by views, reductions or lookups of rows",
            fix="say where a place counts, and -1 elsewhere: "
            "numpy.where(tile.offsets(x, 0) < tile.array_shape(x)[0], place, -1)",
            where=mask.equation.where,
        )
    return place if mask is None else e.select(mask, place, families.full(place.type, -1))


def _before(program: Program, results: Sequence[Var]) -> set[Var]:
    """The variables that some results depend on."""
    found = set(results)
    for equation in reversed(program.equations):
        if not found.isdisjoint(equation.outputs):
            found.update(equation.inputs)
    return found


def _inside(access: Access, shape: ir.Shape, grid: Sequence[int], programs: Sequence[Value]) -> Value | None:
    """Which elements of a tile lie inside the array; None when all do."""
    conditions = []
    for d, size in enumerate(shape):
        by_grid, by_tile, offset = access.grid_strides[d], access.tile_strides[d], access.offsets[d]
        moves = [f * (n - 1) for f, n in zip((*by_grid, *by_tile), (*grid, *access.tile), strict=True)]
        is_below = offset + sum(min(0, move) for move in moves) < 0
        is_above = offset + sum(max(0, move) for move in moves) >= size
        if not (is_below or is_above):
            continue
        at: Value = Literal(np.asarray(offset, np.int32), weak=False)
        for factor, program in zip(by_grid, programs, strict=True):
            at = e.add(at, e.mul(program, factor)) if factor else at
        at = view.broadcast_in_dim(at, access.tile, ())
        for axis, factor in enumerate(by_tile):
            if factor:
                place = view.broadcasted_iota(dtypes.int32, access.tile, axis)
                at = e.add(at, place if factor == 1 else e.mul(place, factor))
        conditions += [e.ge(at, 0)] if is_below else []
        conditions += [e.lt(at, size)] if is_above else []
    return _all(conditions) if conditions else None


def _followed(program: Program, masks: Mapping[Var, Value | _Lost], relevant: set[Var]) -> Masks:
    """Masks of all variables that have one."""
    found = dict(masks)
    makers = {v: equation for equation in program.equations for v in equation.outputs}
    for equation in program.equations:
        if relevant.isdisjoint(equation.outputs):
            continue
        given = found
        if equation.op.name == "select_n" and not isinstance(found.get(equation.inputs[0]), _Lost):
            # Between a place and none at all the program itself says what counts.
            cases = equation.inputs[1:]
            if any(_is_negative(case, program, makers) for case in cases):
                given = {v: mask for v, mask in found.items() if not isinstance(mask, _Lost)}
        found.update(_of(equation, given))
    return found


def _of(equation: Equation, masks: Mapping[Var, Value | _Lost]) -> Masks:
    """Masks of the outputs of an equation."""
    given = {v: masks[v] for v in equation.inputs if v in masks}
    if not given:
        return {}
    name, attrs = equation.op.name, equation.attrs
    if name in _CALLS:
        body: Program = attrs["body"]
        inner = {p: given[v] for p, v in zip(body.params, equation.inputs, strict=True) if v in given}
        found = _followed(body, inner, _before(body, body.results))
        pairs = zip(equation.outputs, body.results, strict=True)
        return {v: found[result] for v, result in pairs if result in found}
    out = equation.outputs[0]
    known = {v: mask for v, mask in given.items() if not isinstance(mask, _Lost)}
    if len(known) < len(given):
        lost = next(mask for mask in given.values() if isinstance(mask, _Lost))
        return dict.fromkeys(equation.outputs, lost)
    (mask, *_) = known.values()
    if name == "gather" and equation.inputs[0] not in known:
        return {out: _of_rows(mask, attrs["dimension_numbers"], out.type.shape)}
    if equation.op.has(primitive.SCALAR) and all(v.type.ndim <= out.type.ndim for v in known):
        return {out: _all([families.broadcast_to(m, out.type.shape) for m in known.values()])}
    if name in _MOVES:
        return {out: trace.bind1(equation.op, mask, **attrs)}
    if name in _SAME_SHAPE:
        return {out: mask}
    if name in _REDUCTIONS or name in ("argmax", "argmin"):
        axes = attrs["axes"] if name in _REDUCTIONS else (attrs["axis"],)
        return {out: trace.bind1(primitive.by_name("reduce_or"), mask, axes=axes)}
    return dict.fromkeys(equation.outputs, _Lost(equation))


def _is_negative(var: Var, program: Program, makers: Mapping[Var, Equation]) -> bool:
    """Whether a variable is a constant below 0, as no place is."""
    while var in makers and makers[var].op.name in {"broadcast_in_dim", "reshape", "convert_element_type"}:
        (var,) = makers[var].inputs
    constant = dict(program.consts).get(var)
    return constant is not None and bool(np.all(constant.array < 0))


def _of_rows(mask: Value, numbers: indexing.GatherDimensionNumbers, shape: ir.Shape) -> Value:
    """The mask of gathered rows, from that of their numbers."""
    is_row = trace.bind1(primitive.by_name("reduce_and"), mask, axes=(-1,))
    kept = [d for d in range(len(shape)) if d not in numbers.offset_dims]
    return view.broadcast_in_dim(is_row, shape, kept)


def _all(masks: Sequence[Value]) -> Value:
    found, *rest = {id(mask): mask for mask in masks}.values()
    for mask in rest:
        found = e.bitwise_and(found, mask)
    return found
