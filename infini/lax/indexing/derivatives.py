"""Derivatives of the scatters: the JVP and TRANSPOSE rules that their declarations name."""

from __future__ import annotations

from typing import Any

from infini.core import dtypes, errors, ir, primitive, trace
from infini.core.ir import ArrayType
from infini.core.value import Value
from infini.lax import families
from infini.lax.families import bind_scalars, is_linear
from infini.lax.indexing.dimension_numbers import ScatterDimensionNumbers
from infini.lax.indexing.gather import gather_p


def _read(x: Value, indices: Value, updates: Any, attrs: Any, fill: Any = 0) -> Value:  # Any: attributes
    """What stands in `x` where the updates go; `fill` where they are dropped for lying outside."""
    dn: ScatterDimensionNumbers = attrs["dimension_numbers"]
    mode = attrs["mode"]
    return trace.bind1(
        gather_p, x, indices, dimension_numbers=dn.as_gather,
        slice_sizes=dn.slice_sizes(x.shape, updates.shape), mode=mode,
        fill_value=fill if mode == "fill" else None, unique_indices=attrs["unique_indices"],
    )  # fmt: skip


def _zeros_for(missing: Any, like: Value) -> Value:  # Any: a tangent or None
    return families.zeros(like.type) if missing is None else missing


def jvp_add(primals: Any, tangents: Any, results: Any, **attrs: Any) -> tuple[Value | None]:
    """JVP of scatter_add, which is linear."""
    operand, indices, updates = primals
    if tangents[0] is None and tangents[2] is None:
        return (None,)
    moved = _zeros_for(tangents[0], operand), indices, _zeros_for(tangents[2], updates)
    return (trace.bind1(primitive.by_name("scatter_add"), *moved, **attrs),)


def transpose_add(
    ct: Value, operand: Any, indices: Any, updates: Any, **attrs: Any
) -> tuple[Value | None, None, Value | None]:
    """TRANSPOSE of scatter_add."""
    given = _read(ct, indices, updates, attrs) if is_linear(updates) else None
    return ct if is_linear(operand) else None, None, given


def jvp_set(primals: Any, tangents: Any, results: Any, **attrs: Any) -> tuple[Value | None]:
    """JVP of scatter: the tangents of the updates that stay, and of what none overwrote."""
    operand, indices, updates = primals
    if tangents[0] is None and tangents[2] is None:
        return (None,)
    g_operand, g_updates = _zeros_for(tangents[0], operand), _zeros_for(tangents[2], updates)
    if attrs["unique_indices"]:
        return (trace.bind1(primitive.by_name("scatter"), g_operand, indices, g_updates, **attrs),)
    # Number the updates and scatter the numbers: where one comes back, its update was the last to be written,
    # and where none arrived the operand shows through. Only those tangents count.
    op = primitive.by_name
    numbers = bind_scalars(op("add"), _numbered(updates.shape), 1)
    nothing = families.zeros(ArrayType(operand.shape, numbers.dtype))
    written = trace.bind1(primitive.by_name("scatter"), nothing, indices, numbers, **attrs)
    won = trace.bind1(op("eq"), _read(written, indices, updates, attrs), numbers)
    kept = bind_scalars(op("eq"), written, 0)
    base = bind_scalars(op("select_n"), kept, families.like(0, g_operand), g_operand)
    moved = bind_scalars(op("select_n"), won, families.like(0, g_updates), g_updates)
    return (trace.bind1(primitive.by_name("scatter_add"), base, indices, moved, **attrs),)


def _numbered(shape: ir.Shape) -> Value:
    """Consecutive int32 numbers in C order."""
    count = families.prod(shape)
    line = trace.bind1(primitive.by_name("iota"), shape=(count,), dimension=0, dtype=dtypes.int32)
    return trace.bind1(primitive.by_name("reshape"), line, shape=shape, ndim=1)


def transpose_set(
    ct: Value, operand: Any, indices: Any, updates: Any, **attrs: Any
) -> tuple[Value | None, None, Value | None]:
    """TRANSPOSE of a scatter without repeated places, where it is linear."""
    kept = None
    if is_linear(operand):
        nothing = families.zeros(ArrayType(updates.shape, ct.dtype))
        kept = trace.bind1(primitive.by_name("scatter"), ct, indices, nothing, **attrs)
    return kept, None, _read(ct, indices, updates, attrs) if is_linear(updates) else None


def jvp_mul(primals: Any, tangents: Any, results: Any, **attrs: Any) -> tuple[Value | None]:
    """JVP of scatter_mul; for the updates only where no place repeats, as in JAX."""
    operand, indices, updates = primals
    total: Value | None = None
    if tangents[0] is not None:
        total = trace.bind1(primitive.by_name("scatter_mul"), tangents[0], indices, updates, **attrs)
    if tangents[2] is None:
        return (total,)
    if not attrs["unique_indices"]:
        raise errors.MissingRuleError(
            "scatter_mul has a derivative with respect to its updates only where no place repeats",
            got="unique_indices=False",
            fix="pass unique_indices=True if that is so, or multiply an array of the full shape",
        )
    before = _read(operand, indices, updates, attrs)
    moved = trace.bind1(primitive.by_name("mul"), before, tangents[2])
    base = families.zeros(operand.type) if total is None else total
    return (trace.bind1(primitive.by_name("scatter_add"), base, indices, moved, **attrs),)


def transpose_mul(
    ct: Value, operand: Any, indices: Any, updates: Any, **attrs: Any
) -> tuple[Value | None, None, None]:
    """TRANSPOSE of scatter_mul, which is linear in the array."""
    return trace.bind1(primitive.by_name("scatter_mul"), ct, indices, updates, **attrs), None, None


def jvp_extremum(primals: Any, tangents: Any, results: Any, **attrs: Any) -> tuple[Value | None]:
    """JVP of scatter_min and scatter_max: the tangents of all that equal the result share it evenly."""
    operand, indices, updates = primals
    if tangents[0] is None and tangents[2] is None:
        return (None,)
    op = primitive.by_name

    def as_float(flags: Value) -> Value:
        return trace.bind1(op("convert_element_type"), flags, new_dtype=operand.dtype)

    is_operand = as_float(trace.bind1(op("eq"), operand, results[0]))
    found = _read(results[0], indices, updates, attrs, fill=None)
    is_update = as_float(trace.bind1(op("eq"), updates, found))
    count = trace.bind1(primitive.by_name("scatter_add"), is_operand, indices, is_update, **attrs)
    shares = [
        trace.bind1(op("mul"), _zeros_for(g, x), flags)
        for g, x, flags in ((tangents[0], operand, is_operand), (tangents[2], updates, is_update))
    ]
    total = trace.bind1(primitive.by_name("scatter_add"), shares[0], indices, shares[1], **attrs)
    return (trace.bind1(op("div"), total, count),)
