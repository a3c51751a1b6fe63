"""The operation `ragged_dot`: the product of a mixture of experts.

The spec has the letters of both operands, of the sizes, and of the result; the last letter of the sizes
numbers groups, and `ragged` is the letter whose elements are grouped. `mk,gkn,g->mn` multiplies each row by
the matrix of its group, `mk,mn,g->gkn` sums over the rows of each group. The derivative of each is the other,
so they are one operation. `has_others` says that many rows may belong to no group, which changes how it is
computed and not what.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, primitive, trace
from infini.core.ir import ArrayType, Attrs
from infini.core.primitive import Primitive, Signature
from infini.core.value import Value
from infini.lax import cases, elementwise as e, families, places
from infini.lax.cases import Case, Sample, Span
from infini.lax.families import is_linear
from infini.lax.ragged import lowering
from infini.lax.ragged.spec import parse


def _signature(*, spec: str, **_: object) -> Signature:
    found = parse(spec)
    return Signature((tuple(found.x), tuple(found.y), tuple(found.sizes)), (tuple(found.out),))


def _type(
    x: ArrayType, y: ArrayType, sizes: ArrayType, *, spec: str, dtype: np.dtype, **_: object
) -> tuple[ArrayType]:
    families.accept("ragged_dot", dtypes.NUMERIC, [x, y])
    families.accept("ragged_dot", dtypes.INTEGERS, [sizes])
    found = _signature(spec=spec)
    letters = families.core_sizes("ragged_dot", found, [x, y, sizes])
    loop = families.loop_shape("ragged_dot", [x, y, sizes], [len(group) for group in found.inputs])
    return (ArrayType((*loop, *(letters[c] for c in found.outputs[0])), dtype),)


def _reference(
    x: np.ndarray, y: np.ndarray, sizes: np.ndarray, *, spec: str, ragged: str, dtype: np.dtype, **_: object
) -> np.ndarray:
    found = parse(spec)
    wide = np.float32 if dtype in dtypes.FLOATS and dtype.itemsize <= 2 else dtype
    ends = np.cumsum(sizes, -1)
    row = np.arange(x.shape[found.x.index(ragged) - len(found.x)])
    inside = (row >= (ends - sizes)[..., None]) & (row < ends[..., None])
    text = f"...{found.sizes}{ragged},...{found.x},...{found.y}->...{found.out}"
    result = np.einsum(text, inside.astype(wide), x.astype(wide), y.astype(wide), optimize=True)
    return np.asarray(result).astype(dtype)


def _transpose(
    ct: Value, x: Any, y: Any, sizes: Value, *, spec: str, dtype: np.dtype, **attrs: Any
) -> tuple[Value | None, Value | None, None]:
    s = parse(spec)

    def back(left: Value, right: Value, letters: str, target: Any) -> Value:
        return trace.bind1(ragged_dot_p, left, right, sizes, spec=letters, dtype=target.dtype, **attrs)

    if is_linear(x):
        # Rows stand in the first operand, matrices of groups in the second.
        if s.is_summed:
            return back(y, ct, f"{s.y},{s.out},{s.sizes}->{s.x}", x), None, None
        return back(ct, y, f"{s.out},{s.y},{s.sizes}->{s.x}", x), None, None
    return None, back(x, ct, f"{s.x},{s.out},{s.sizes}->{s.y}", y), None


def _place(op: Primitive, in_types: places.Types, out_types: places.Types, attrs: Attrs) -> places.Factors:
    """Everything is split but rows and groups, whose sizes are not known before the program runs."""
    found = op.signature_for(attrs)
    assert found is not None
    kept = found.letters - set(parse(attrs["spec"]).sizes) - {attrs["ragged"]}
    return places.by_signature(found, in_types, out_types, kept, "sum")


def _jvp(
    primals: Sequence[Value],
    tangents: Sequence[Value | None],
    results: Sequence[Value],
    **attrs: Any,  # Any: attributes are of many types
) -> tuple[Value | None]:
    x, y, sizes = primals
    terms = []
    if tangents[0] is not None:
        terms.append(trace.bind1(ragged_dot_p, tangents[0], y, sizes, **attrs))
    if tangents[1] is not None:
        terms.append(trace.bind1(ragged_dot_p, x, tangents[1], sizes, **attrs))
    return (functools.reduce(lambda a, b: trace.bind1(e.add_p, a, b), terms) if terms else None,)


def _cost(types: Sequence[ArrayType], attrs: Attrs) -> float:
    """Two operations per product, each row with the matrix of one group."""
    group = parse(attrs["spec"]).group
    signature = _signature(**attrs)
    letters = families.core_sizes("ragged_dot", signature, types)
    loop = families.loop_shape("ragged_dot", types, [len(group) for group in signature.inputs])
    products = families.prod([size for letter, size in letters.items() if letter != group])
    return 2.0 * products * families.prod(loop)


def _cases(dtype: np.dtype) -> list[Case]:
    rows, sizes = Sample((9, 4)), Sample((3,), dtypes.int32, Span(0, 3))
    attrs = {"ragged": "m", "dtype": dtype}
    return [
        Case((rows, Sample((3, 4, 5)), sizes), {"spec": "mk,gkn,g->mn", **attrs}, "contraction"),
        Case((rows, Sample((9, 5)), sizes), {"spec": "mk,mn,g->gkn", **attrs}, "contraction"),
    ]


ragged_dot_p: Primitive = primitive.register(
    Primitive(
        "ragged_dot",
        _signature,
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: _reference,
            primitive.JVP: _jvp,
            primitive.TRANSPOSE: _transpose,
            primitive.LINEAR: places.alone(0, 1),
            primitive.PLACE: _place,
            primitive.DECOMPOSE: lowering.decompose,
            primitive.COST: _cost,
            primitive.CASES: cases.Cases(dtypes.FLOATS | dtypes.COMPLEX | {dtypes.int32}, _cases),
        },
    )
)
