"""How attention and its gradient are split over devices: by batch, by heads, by groups of heads, and by
queries, as long as every device has all keys.

The gradient's keys and values lack the groups and the queries, so theirs are sums over devices.
"""

from __future__ import annotations

import dataclasses

from infini.core import dtypes, ir, trace
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import places, view
from infini.lax.composites import attention_letters as letters_
from infini.lax.places import Factors, Part, Types


def place(op: Primitive, in_types: Types, out_types: Types, attrs: ir.Attrs) -> Factors:
    """PLACE of attention, its sums, and its gradient."""
    signature = op.signature_for(attrs)
    assert signature is not None
    free = frozenset(letters_.parse_spec(attrs["spec"]).rows)
    found = places.by_signature(signature, in_types, out_types, free, "sum")
    lacking = sorted({letter for group in signature.outputs for letter in free.difference(group)})
    return dataclasses.replace(found, reduced=dict.fromkeys(lacking, "sum"))


tails = places.tails_kept  # TAIL: what is lost along a split dimension is summed over equal parts


def partition(part: Part, *operands: Value) -> tuple[Value, ...]:
    """PARTITION of the same: rows that do not begin at 0 look at other keys than their numbers say, so what
    they look at becomes a mask.
    """
    attrs, band = part.attrs, part.attrs["band"]
    first = None if band == (None, None) else part.start("t", dtypes.int32)
    if first is None:
        return tuple(trace.bind(part.op, *operands, **attrs))
    letters, has_mask = letters_.parse_spec(attrs["spec"]), attrs["has_mask"]
    count = len(letters.extras) + 3  # what follows are the rows of the gradient
    given, rest = operands[:count], operands[count:]
    mask = letters_.allowed(letters, given, band, has_mask, first)
    assert mask is not None
    own = letters.extras[-1] if has_mask else ""
    kept = "".join(c for c in letters.scores if c in own or c in "ts")
    rank = len(letters.scores)
    core = zip(mask.shape[mask.ndim - rank :], letters.scores, strict=True)
    mask = trace.bind1(view.reshape_p, mask, shape=tuple(n for n, c in core if c in kept), ndim=rank)
    extras = letters.extras[:-1] if has_mask else letters.extras
    spec = ",".join((letters.query, letters.key, letters.value, *extras, kept))
    spec = f"{spec}->{letters.out},{letters.rows}"
    before = given[:-1] if has_mask else given
    changed = attrs.replace(spec=spec, band=(None, None), has_mask=True)
    return tuple(trace.bind(part.op, *before, mask, *rest, **changed))
