"""`inspect_array_sharding`: asks how a value is placed; inside programs the partitioner answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from infini.core import backend, errors, host, ir, mesh, primitive, sharding, trace
from infini.core.ir import ArrayType
from infini.core.mesh import AbstractMesh, P
from infini.core.primitive import Effect, Primitive
from infini.core.value import Value
from infini.lax import places
from infini.lax.callbacks import debug_callback_p
from infini.lax.calls import Context, Flags, MaybeValues, Values

Callback = Callable[[sharding.Sharding], None]


def inspect_array_sharding(value: Any, *, callback: Callback) -> None:  # Any: an operand
    """Tell a function how a value is placed, as `jax.debug.inspect_array_sharding`.

    Args:
        value: array. Inside `jit` over a mesh the partitioner says where it puts it, while it compiles;
            without a mesh the function is called when the program runs.
        callback: function of a sharding.

    Raises:
        TypeMismatchError: `callback` is no function.

    Example:
        >>> import infini
        >>> infini.debug.inspect_array_sharding(
        ...     infini.numpy.ones(3), callback=lambda where: print(where.is_fully_replicated)
        ... )
        True
    """
    if not callable(callback):
        raise errors.TypeMismatchError("inspect_array_sharding needs a function", got=repr(callback))
    operand = trace.as_value(value)
    if not isinstance(operand, trace.Tracer):
        callback(trace.to_array(operand).sharding)
        return
    reference = host.register(callback, key=("inspect sharding", callback))
    trace.bind(inspect_sharding_p, operand, callback=reference)


def _partition(part: Any, x: Value, **_: object) -> Sequence[Value]:  # Any: lax.places.Part
    """The partitioner's answer: axes of the only operand."""
    dims = [tuple(part.split.get(f"d{i}", ())) for i in range(part.in_types[0].ndim)]
    spec = P(*mesh.trim([None if not axes else axes[0] if len(axes) == 1 else axes for axes in dims]))
    where = sharding.NamedSharding(_mesh_of(part.mover.mesh), spec)
    host.lookup(part.attrs["callback"])(where)
    return ()


def _mesh_of(abstract: AbstractMesh) -> sharding.Mesh:
    """The mesh that is set when it has these axes; else one of the first devices there are."""
    found = sharding.current_mesh()
    if found is not None and found.abstract == abstract:
        return found
    return sharding.make_mesh(abstract.axis_sizes, abstract.axis_names)


def _place(
    op: Primitive, in_types: Sequence[ArrayType], out_types: Sequence[ArrayType], attrs: ir.Attrs
) -> places.Factors:
    dims, sizes = places.same_dimensions(in_types[0])
    return places.Factors((dims,), (), sizes)


def _definition(x: Value, *, callback: Any) -> Sequence[Value]:  # Any: ir.HostFunction
    """Off a mesh: say so when the program runs."""

    def tell() -> None:
        host.lookup(callback)(sharding.on_one(backend.default_device()))

    reference = host.register(tell, key=("inspect sharding", callback))
    return trace.bind(debug_callback_p, callback=reference, ordered=False)


def _reference(x: np.ndarray, *, callback: Any) -> Sequence[np.ndarray]:  # Any: ir.HostFunction
    host.lookup(callback)(sharding.on_one(backend.default_device()))
    return ()


def _linearize(ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs) -> Any:
    return ctx.bind_primal(inspect_sharding_p, *primals, **attrs), ()


def _batch(ctx: Context, args: Values, batched: Flags, attrs: ir.Attrs) -> tuple[Values, Flags]:
    return trace.bind(inspect_sharding_p, *args, **attrs), ()


inspect_sharding_p: Primitive = primitive.register(
    Primitive(
        "inspect_sharding",
        None,
        {
            primitive.TYPE: lambda x, *, callback: (),
            primitive.REFERENCE: _reference,
            primitive.JVP: lambda primals, tangents, results, *, callback: (),
            primitive.LINEARIZE: _linearize,
            primitive.BATCH: _batch,
            primitive.PLACE: _place,
            primitive.PARTITION: _partition,
            primitive.TAIL: places.tails_through,
            primitive.DECOMPOSE: _definition,
        },
        effect=Effect.IO,
    )
)
