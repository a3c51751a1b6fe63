"""Bands of attention: conditions that compare the number of the key with the number of the query."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from infini.compiler import views
from infini.compiler.passes.attention_region import Region
from infini.compiler.passes.attention_terms import Condition, Dims, Located, regrouped
from infini.core import dtypes
from infini.core.ir import Equation, Var
from infini.lax.composites.attention import Band

_COMPARISONS: Final = ("ge", "gt", "le", "lt")
_OPPOSITE: Final = {"ge": "lt", "gt": "le", "le": "gt", "lt": "ge"}


def split(
    region: Region, conditions: tuple[Condition, ...], query: str, key: str
) -> tuple[Band, list[Condition]]:
    """The band that conditions leave, and the conditions that are no band."""
    low: int | None = None
    high: int | None = None
    rest = []
    pending = list(conditions)
    while pending:
        condition = pending.pop(0)
        parts = _parts(region, condition)
        if parts is not None:
            pending = [*parts, *pending]
            continue
        band = _band(region, condition, query, key)
        if band is None:
            rest.append(condition)
            continue
        if band[0] is not None:
            low = band[0] if low is None else max(low, band[0])
        if band[1] is not None:
            high = band[1] if high is None else min(high, band[1])
    return (low, high), rest


def _parts(region: Region, condition: Condition) -> list[Condition] | None:
    """The conditions of a conjunction."""
    equation = region.table.definition(condition.where.var)
    if equation is not None and equation.op.name == "select_n" and len(equation.inputs) == 3:
        return _chosen(region, condition, equation)
    wanted = "or" if condition.is_inverted else "and"
    if equation is None or equation.op.name not in (wanted, "not"):
        return None
    found = []
    is_inverted = condition.is_inverted != (equation.op.name == "not")
    for var in equation.inputs:
        dims = _of_operand(var, condition.where.dims)
        if dims is None:
            return None
        found.append(Condition(region.table.located(var, dims, region.sizes), is_inverted))
    return found


def _chosen(region: Region, condition: Condition, equation: Equation) -> list[Condition] | None:
    """A selection between true and false is its condition, or the opposite."""
    chooser, no, yes = equation.inputs
    numbers = [region.table.number(v) for v in (no, yes)]
    dims = _of_operand(chooser, condition.where.dims)
    if numbers not in ([0.0, 1.0], [1.0, 0.0]) or dims is None or chooser.type.dtype != dtypes.bool_:
        return None
    located = region.table.located(chooser, dims, region.sizes)
    return [Condition(located, condition.is_inverted != (numbers == [1.0, 0.0]))]


def _of_operand(var: Var, dims: Dims) -> Dims | None:
    """Letters of an operand that broadcasts, from those of the result."""
    shape = var.type.shape
    if len(shape) > len(dims):
        return None
    own = dims[len(dims) - len(shape) :]
    return tuple(() if n == 1 else d for n, d in zip(shape, own, strict=True))


def _band(region: Region, condition: Condition, query: str, key: str) -> Band | None:
    equation = region.table.definition(condition.where.var)
    if equation is None or equation.op.name not in _COMPARISONS:
        return None
    if any(v.type.dtype not in dtypes.INTEGERS for v in equation.inputs):
        return None
    name = _OPPOSITE[equation.op.name] if condition.is_inverted else equation.op.name
    sides = []
    for var in equation.inputs:
        dims = _of_operand(var, condition.where.dims)
        found = None if dims is None else _linear(region, Located(var, dims))
        if found is None:
            return None
        sides.append(found)
    if name in ("le", "lt"):
        sides.reverse()
    (more, more_start), (less, less_start) = sides
    factors = {c: more.get(c, 0) - less.get(c, 0) for c in {*more, *less}}
    factors = {c: n for c, n in factors.items() if n}
    start = more_start - less_start - (name in ("gt", "lt"))  # sum of factor * number + start >= 0
    if factors == {query: 1, key: -1}:
        return None, start
    if factors == {query: -1, key: 1}:
        return -start, None
    return None


def _linear(region: Region, at: Located) -> tuple[Mapping[str, int], int] | None:
    """Whole numbers as a sum of multiples of the letters' numbers, and a constant."""
    constant = region.table.constants.get(at.var)
    if constant is not None:
        return _of_constant(constant.array, at.dims)
    equation = region.table.definition(at.var)
    if equation is None:
        return None
    name = equation.op.name
    if name == "iota":
        letters = at.dims[equation.attrs["dimension"] % len(at.dims)]
        return (dict.fromkeys(letters, 1), 0) if len(letters) <= 1 else None
    (x, *others) = equation.inputs
    if name == "reshape":
        before = regrouped(at.dims, region.sizes, x.type.shape)
        return None if before is None else _linear(region, Located(x, before))
    if name == "broadcast_in_dim":
        dims = tuple(
            () if n == 1 else at.dims[place]
            for n, place in zip(x.type.shape, views.kept(equation), strict=True)
        )
        return _linear(region, Located(x, dims))
    if name == "convert_element_type" and x.type.dtype in dtypes.INTEGERS:
        return _linear(region, Located(x, at.dims))
    if name in ("add", "sub") and others:
        found = []
        for var in (x, *others):
            own = _of_operand(var, at.dims)
            one = None if own is None else _linear(region, Located(var, own))
            if one is None:
                return None
            found.append(one)
        (a, start), (b, more) = found
        sign = 1 if name == "add" else -1
        return {c: a.get(c, 0) + sign * b.get(c, 0) for c in {*a, *b}}, start + sign * more
    return None


def _of_constant(array: np.ndarray, dims: Dims) -> tuple[Mapping[str, int], int] | None:
    flat = array.reshape(-1)
    letters = [c for dim in dims for c in dim]
    if flat.size == 0 or array.dtype not in dtypes.INTEGERS:
        return None
    if np.all(flat == flat[0]):
        return {}, int(flat[0])
    steps = np.diff(flat.astype(np.int64))
    if len(letters) == 1 and np.all(steps == steps[0]):
        return {letters[0]: int(steps[0])}, int(flat[0])
    return None
