"""The operation `conv`, whose attribute is its spec (`spec`).

JVP and TRANSPOSE are the same operation with other specs, so derivatives of any order are convolutions again.
Groups are letters of all three arrays, and `vmap` adds loop dimensions on the left as everywhere; both become
batch dimensions when the operation is lowered.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, primitive, trace
from infini.core.ir import ArrayType, Attrs, Shape
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import cases, contraction, families, places, view
from infini.lax.cases import Case, Sample
from infini.lax.convolution import lowering, places as places_, spec as spec_
from infini.lax.families import is_linear
from infini.lax.windows import halos, reference
from infini.lax.windows.padding import Pads

# Any: attributes are of many types; they are those of `spec.analyse`.
Attributes = Any


def _type(x: ArrayType, w: ArrayType, **attrs: Attributes) -> tuple[ArrayType]:
    families.accept("conv", dtypes.NUMERIC, [x, w])
    return (ArrayType(spec_.analyse(x, w, **attrs).shape, attrs["dtype"]),)


def _reference(x: np.ndarray, w: np.ndarray, **attrs: Attributes) -> np.ndarray:
    problem = spec_.analyse(ArrayType(x.shape, x.dtype), ArrayType(w.shape, w.dtype), **attrs)
    spec, dtype = problem.spec, attrs["dtype"]
    if 0 in (*problem.shape, *x.shape, *w.shape):
        return np.zeros(problem.shape, dtype)
    is_small = dtype in dtypes.FLOATS and dtype.itemsize <= 2
    x, w = (a.astype(np.float32 if is_small else dtype) for a in (x, w))
    axes = [spec.lhs.index(c) - len(spec.lhs) for c in spec.digits]
    for axis, line in zip(axes, problem.lines, strict=True):
        x = reference.padded(x, axis, line)
    x = reference.windows(x, axes, problem.lines)
    free = [c for c in string.ascii_letters if c not in str(spec)]
    inside = dict(zip(spec.digits, free, strict=False))
    position = dict(zip(spec.digits, reversed(free), strict=False))

    def named(part: str, table: dict[str, str]) -> str:
        return "".join(table.get(c, c) for c in part)

    image = named(spec.lhs, position) + "".join(inside.values())
    text = f"...{image},...{named(spec.rhs, inside)}->...{named(spec.out, position)}"
    return np.asarray(np.einsum(text, x, w, optimize=True)).astype(dtype)


def _transpose(ct: Value, x: Any, w: Any, **attrs: Attributes) -> tuple[Value | None, Value | None]:
    problem = spec_.analyse(x.type, w.type, **attrs)
    spec = problem.spec
    if is_linear(x):
        axes = tuple(sorted(spec.rhs.index(c) - len(spec.rhs) for c in spec.digits))
        flipped = trace.bind1(view.rev_p, w, axes=axes) if axes else w
        out, rhs, lhs = contraction.shared_loops(ct, spec.out, flipped, spec.rhs, x, spec.lhs)
        moved = {
            "spec": f"{out},{rhs}->{lhs}",
            "window_strides": attrs["lhs_dilation"],
            "padding": tuple(map(spec_.towards_lhs, problem.lines)),
            "lhs_dilation": attrs["window_strides"],
            "rhs_dilation": attrs["rhs_dilation"],
        }
        return trace.bind1(conv_p, ct, flipped, dtype=x.dtype, **moved), None
    out, lhs, rhs = contraction.shared_loops(ct, spec.out, x, spec.lhs, w, spec.rhs)
    moved = {
        "spec": f"{lhs},{out}->{rhs}",
        "window_strides": attrs["rhs_dilation"],
        "padding": tuple(map(spec_.towards_rhs, problem.lines)),
        "lhs_dilation": attrs["lhs_dilation"],
        "rhs_dilation": attrs["window_strides"],
    }
    return None, trace.bind1(conv_p, x, ct, dtype=w.dtype, **moved)


def _cost(types: Sequence[ArrayType], attrs: Attrs) -> float:
    """Floating-point operations: two per product."""
    problem = spec_.analyse(*types, **attrs)
    return 2.0 * families.prod(problem.shape) * problem.num_products


def _cases(dtype: np.dtype) -> list[Case]:
    def case(spec: str, x: Shape, w: Shape, strides: Shape, pads: Pads, lhs: Shape, rhs: Shape) -> Case:
        attrs = {
            "spec": spec, "window_strides": strides, "padding": pads, "lhs_dilation": lhs,
            "rhs_dilation": rhs, "dtype": dtype,
        }  # fmt: skip
        return Case((Sample(x), Sample(w)), attrs, "contraction")

    found = [case("n01c,01co->n01o", (1, 7, 6, 2), (3, 3, 2, 3), (2, 1), ((1, 0), (-1, 2)), (1, 1), (1, 2))]
    if dtype in (dtypes.float32, dtypes.float64, dtypes.complex64):
        found += [
            case("ngc0,goc0->ngo0", (2, 2, 2, 5), (2, 3, 2, 3), (1,), ((1, 1),), (2,), (1,)),
            case("nc,oc->no", (2, 3), (4, 3), (), (), (), ()),
        ]
    if dtype in (dtypes.float32, dtypes.float64):
        found.append(case("n0gc,0gc->n0g", (2, 9, 3, 1), (4, 3, 1), (1,), ((3, 0),), (1,), (1,)))
    return found


conv_p: Primitive = primitive.register(
    Primitive(
        "conv",
        lambda *, spec, **_: spec_.signature(spec),
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: _reference,
            primitive.JVP: families.jvp_by_operand(
                lambda g, out, x, w, **attrs: trace.bind1(conv_p, g, w, **attrs),
                lambda g, out, x, w, **attrs: trace.bind1(conv_p, x, g, **attrs),
            ),
            primitive.TRANSPOSE: _transpose,
            primitive.LINEAR: places.alone(0, 1),
            primitive.PLACE: places_.place,
            primitive.PARTITION: places_.partition,
            primitive.TAIL: halos.tails,
            primitive.COST: _cost,
            primitive.DECOMPOSE: lowering.decompose,
            primitive.CASES: cases.Cases(dtypes.NUMERIC, _cases),
        },
    )
)
