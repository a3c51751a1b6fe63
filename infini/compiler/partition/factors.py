"""The factors of an equation: by its PLACE rule, or derived from its signature."""

from __future__ import annotations

import dataclasses

from infini.core import ir, primitive
from infini.core.primitive import Primitive
from infini.lax import places
from infini.lax.places import Factors


def factors_of(equation: ir.Equation) -> Factors:
    """How the dimensions of an equation correspond.

    Without a PLACE rule, loop dimensions of the signature may be split, and contracted letters of linear
    operations, whose parts add up. Without a signature nothing may be split. LINEAR and TRANSPOSE rules say
    in which operands it is linear, so that sums may wait; a TAIL rule, which factors may have parts of
    different sizes. An operation that is applied to parts as it is has that by its factors alone.
    """
    op = equation.op
    in_types = tuple(v.type for v in equation.inputs)
    out_types = tuple(v.type for v in equation.outputs)
    found = _dimensions(op, in_types, out_types, equation.attrs)
    linear = places.linear_of(op, in_types, out_types, equation.attrs)
    found = dataclasses.replace(found, linear=linear) if linear else found
    has_rule = op.has(primitive.TAIL)
    if not has_rule and op.has(primitive.PARTITION):
        return found
    rule = op.rule(primitive.TAIL) if has_rule else places.tails_through
    factors = places.whole_factors(found, in_types, out_types)
    return dataclasses.replace(found, tails=rule(found, factors, equation.attrs)) if factors else found


def _dimensions(op: Primitive, in_types: places.Types, out_types: places.Types, attrs: ir.Attrs) -> Factors:
    if op.has(primitive.PLACE):
        found: Factors = op.rule(primitive.PLACE)(op, in_types, out_types, attrs)
        return found
    signature = op.signature_for(attrs)
    if signature is None or not out_types:
        return Factors(places.whole(in_types), places.whole(out_types), {})
    splittable = signature.contracted if op.has(primitive.TRANSPOSE) else frozenset[str]()
    return places.by_signature(signature, in_types, out_types, splittable, "sum")


def can_split(op: Primitive) -> bool:
    """Whether an operation says how it may be split; others are gathered first, or decomposed."""
    return op.has(primitive.PLACE) or op.signature is not None or op.is_higher_order
