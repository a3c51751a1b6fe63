"""Collectives over named axes, with JAX's names: reductions, indices, and what all collectives share; those
that move parts are in `exchanges`. They are differentiable operations; a backend's comm runs them.

Under `vmap(axis_name=...)` they act on the batch dimension; in partitioned programs on the devices of some
mesh axes, counted with the first axis most significant. Sizes of the axes are attributes, so a program types
without a mesh. Several operands of one equation travel together (`compiler.partition.combine` joins them).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors, primitive, trace, tree
from infini.core.ir import ArrayType
from infini.core.primitive import Effect, Primitive
from infini.core.value import Value
from infini.lax import elementwise as e, families

AxisName = str | tuple[str, ...]
Axes = tuple[tuple[str, ...], tuple[int, ...]]  # names and sizes


def axes_of(axis_name: AxisName) -> Axes:
    """The axes that a user names, with their sizes.

    Raises:
        UnboundAxisError: no enclosing transformation names one of them.
        ValueMismatchError: one is named twice.
    """
    names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    if len(set(names)) != len(names):
        raise errors.ValueMismatchError(
            "a collective names an axis twice", got=str(names), fix="name each axis once"
        )
    return names, tuple(trace.axis_size(name) for name in names)


def refuse_several(name: str, sizes: Sequence[int]) -> None:
    """What a REFERENCE rule can run is a collective of one member.

    Raises:
        LoweringError: there are several.
    """
    if any(size != 1 for size in sizes):
        raise errors.LoweringError(
            f"{name} over several devices needs a backend with communication",
            fix="run it in a program over a mesh",
        )


def declare(
    name: str,
    type_rule: Callable[..., Any],
    reference: Callable[..., Any],
    transpose: Any,
    batch: Any,
    jvp: Any = None,
) -> Primitive:
    """A collective. It takes several operands, which travel together."""
    rules: dict[primitive.RuleKey, Any] = {  # Any: each key has its own kind of rule
        primitive.TYPE: type_rule,
        primitive.REFERENCE: reference,
        primitive.JVP: jvp or _linear_jvp(name),
        primitive.BATCH: batch,
    }
    if transpose is not None:
        rules[primitive.TRANSPOSE] = transpose
    return primitive.register(Primitive(name, None, rules, effect=Effect.COLLECTIVE))


def linear_map(
    name: str, values: Sequence[Value | None], attrs: Mapping[str, Any]
) -> tuple[Value | None, ...]:
    """A linear collective of the values that are there; None where there is none.

    Attributes that have one entry per operand are those called `dimensions`.
    """
    kept = [i for i, value in enumerate(values) if value is not None]
    if not kept:
        return (None,) * len(values)
    own = dict(attrs)
    if "dimensions" in own:
        own["dimensions"] = tuple(own["dimensions"][i] for i in kept)
    given = [value for value in values if value is not None]
    found = dict(zip(kept, trace.bind(primitive.by_name(name), *given, **own), strict=True))
    return tuple(found.get(i) for i in range(len(values)))


def _linear_jvp(name: str) -> Callable[..., Any]:
    def rule(primals: Any, tangents: Sequence[Value | None], results: Any, **attrs: Any) -> Any:
        return linear_map(name, tangents, attrs)

    return rule


def _without_derivative(name: str) -> Callable[..., Any]:
    def rule(primals: Any, tangents: Sequence[Value | None], results: Sequence[Value], **attrs: Any) -> Any:
        if any(tangent is not None for tangent in tangents):
            raise errors.MissingRuleError(
                f"{name} has no derivative",
                expected="a value that is held fixed",
                fix=f"lax.{name}(lax.stop_gradient(x), axis_name), as in a stable softmax",
            )
        return (None,) * len(results)

    return rule


def transposed(
    name: str, change: Callable[..., dict[str, Any]] = lambda **attrs: attrs
) -> Callable[..., tuple[Value | None, ...]]:
    """TRANSPOSE of a collective that is the linear collective `name` backwards, with changed attributes."""

    def rule(ct: Any, *operands: Any, **attrs: Any) -> tuple[Value | None, ...]:
        return linear_map(name, ct if isinstance(ct, tuple) else (ct,), change(**attrs))

    return rule


def around(name: Hashable, axes: Sequence[str], sizes: Sequence[int]) -> tuple[Axes, Axes]:
    """The axes before and after the one called `name`."""
    at = list(axes).index(name)  # type: ignore[arg-type]  # an axis of vmap may have any name
    return (tuple(axes[:at]), tuple(sizes[:at])), (tuple(axes[at + 1 :]), tuple(sizes[at + 1 :]))


# --- psum and relatives ------------------------------------------------------------------------


def _all_reduce(name: str, reducer: str, transpose: Any, jvp: Any = None) -> Primitive:
    def reference(*xs: np.ndarray, axes: tuple[str, ...], sizes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        refuse_several(name, sizes)
        return xs

    def batch(ctx: Any, args: Any, batched: Any, attrs: Any) -> Any:  # Any: see transforms.batching
        if ctx.axis_name not in attrs["axes"]:
            return trace.bind(primitive.by_name(name), *args, **attrs), batched
        before, after = around(ctx.axis_name, attrs["axes"], attrs["sizes"])
        axes, sizes = before[0] + after[0], before[1] + after[1]
        results = [_reduced(x, is_batched, ctx.size) for x, is_batched in zip(args, batched, strict=True)]
        if axes:
            results = list(trace.bind(primitive.by_name(name), *results, axes=axes, sizes=sizes))
        return results, (False,) * len(results)

    def _reduced(x: Value, is_batched: bool, size: int) -> Value:
        if is_batched:
            return trace.bind1(primitive.by_name(reducer), x, axes=(-x.ndim,))
        return families.bind_scalars(e.mul_p, x, size) if reducer == "reduce_sum" else x

    return declare(name, lambda *xs, axes, sizes: xs, reference, transpose, batch, jvp)


psum_p: Primitive = _all_reduce("psum", "reduce_sum", transposed("psum"))
pmax_p: Primitive = _all_reduce("pmax", "reduce_max", None, _without_derivative("pmax"))
pmin_p: Primitive = _all_reduce("pmin", "reduce_min", None, _without_derivative("pmin"))


def _tree_collective(op: Primitive, x: Any, axis_name: AxisName) -> Any:  # Any: pytrees
    axes, sizes = axes_of(axis_name)
    return tree.map(lambda leaf: trace.bind1(op, leaf, axes=axes, sizes=sizes), x)


def psum(x: Any, axis_name: AxisName) -> Any:  # Any: pytrees
    """Sum over the members of a named axis; booleans count as int32. A Python number is multiplied by the
    size of the axis.

    Raises:
        UnboundAxisError: no enclosing transformation names the axis.
    """
    axes, sizes = axes_of(axis_name)

    def one(leaf: Any) -> Any:  # Any: numbers and arrays
        if type(leaf) in (bool, int, float):
            return leaf * families.prod(sizes)
        value = trace.as_value(leaf)
        if value.dtype == dtypes.bool_:
            value = trace.bind1(e.convert_element_type_p, value, new_dtype=dtypes.int32)
        return trace.bind1(psum_p, value, axes=axes, sizes=sizes)

    return tree.map(one, x)


def pmean(x: Any, axis_name: AxisName) -> Any:  # Any: pytrees
    """Mean over the members of a named axis; integers and booleans become floats."""
    count = families.prod(axes_of(axis_name)[1])

    def one(leaf: Any) -> Any:  # Any: numbers and arrays
        if type(leaf) in (int, float):
            return leaf / count
        total = trace.as_value(leaf)
        if not dtypes.is_inexact(total.dtype):
            total = trace.bind1(e.convert_element_type_p, total, new_dtype=dtypes.float32)
        return families.bind_scalars(e.div_p, total, count)

    return tree.map(one, psum(x, axis_name))


def pmax(x: Any, axis_name: AxisName) -> Any:  # Any: pytrees
    """Maximum over the members of a named axis. It has no derivative, as in JAX.

    Raises:
        MissingRuleError: it is differentiated.
    """
    return _tree_collective(pmax_p, x, axis_name)


def pmin(x: Any, axis_name: AxisName) -> Any:  # Any: pytrees
    """Minimum over the members of a named axis. It has no derivative, as in JAX.

    Raises:
        MissingRuleError: it is differentiated.
    """
    return _tree_collective(pmin_p, x, axis_name)


# --- axis_index ----------------------------------------------------------------------------------


def _reference_axis_index(*, axis_name: str, size: int) -> np.ndarray:
    refuse_several("axis_index", [size])
    return np.zeros((), np.int32)


axis_index_p: Primitive = primitive.register(
    Primitive(
        "axis_index",
        None,
        {
            primitive.TYPE: lambda *, axis_name, size: (ArrayType((), dtypes.int32),),
            primitive.REFERENCE: _reference_axis_index,
            primitive.JVP: families.no_jvp,
        },
    )
)


def axis_index(axis_name: AxisName) -> Value:
    """Index of this member along a named axis, int32; several names count in row-major order."""
    axes, sizes = axes_of(axis_name)
    result: Value | None = None
    for name, size in zip(axes, sizes, strict=True):
        own = trace.bind1(axis_index_p, axis_name=name, size=size)
        result = own if result is None else e.add(e.mul(result, size), own)
    assert result is not None
    return result


def axis_size(axis_name: AxisName) -> int:
    """Number of members of a named axis."""
    return families.prod(axes_of(axis_name)[1])
