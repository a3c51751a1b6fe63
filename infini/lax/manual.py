"""`shard_map`: a program over the local parts of arrays, with collectives written by hand.

An operand is cut by its entry of `in_specs`; results are joined by `out_specs`. A result is taken to be
equal on all devices along manual axes its spec does not name. The partitioner inlines the body, which is
per-device already along its manual axes.

With `check_vma` the body marks where equal values meet different ones (`lax.varying`), so it is transposed as
it stands. Without, cotangents of equal values are shared and added up at its edges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import errors, ir, mesh, primitive, trace
from infini.core.ir import ArrayType, Program
from infini.core.mesh import AbstractMesh, AxisEntry
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import collectives, exchanges, families, placement, places
from infini.lax.calls import Context, Flags, MaybeValues, Values, check_operands, merge, nonzero
from infini.lax.families import is_linear

Spec = tuple[AxisEntry, ...]


def local_type(type_: ArrayType, spec: Spec, mesh_: AbstractMesh) -> ArrayType:
    """Type of one device's part."""
    mesh.check_even(type_.shape, spec, mesh_)
    return type_.update(shape=mesh.shard_shape(type_.shape, spec, mesh_))


def global_type(type_: ArrayType, spec: Spec, mesh_: AbstractMesh) -> ArrayType:
    """Type of the array whose parts have `type_`."""
    full = placement.full_spec(spec, type_.ndim)
    return type_.update(
        shape=tuple(n * mesh_.size_of(entry) for n, entry in zip(type_.shape, full, strict=True))
    )


def _type(
    *types: ArrayType,
    body: Program,
    mesh: AbstractMesh,
    in_specs: tuple[Spec, ...],
    out_specs: tuple[Spec, ...],
    **_: object,
) -> tuple[ArrayType, ...]:
    for type_, spec in zip(types, in_specs, strict=True):
        placement.check_spec(type_, mesh, spec)
    check_operands("shard_map", body, [local_type(t, s, mesh) for t, s in zip(types, in_specs, strict=True)])
    return tuple(global_type(t, s, mesh) for t, s in zip(body.out_types, out_specs, strict=True))


def _reference(evaluate: Any, *arrays: np.ndarray, body: Program, mesh: AbstractMesh, **_: object) -> Any:
    if mesh.size != 1:
        raise errors.LoweringError(
            "shard_map over several devices needs a backend with communication",
            fix="run it in a program over a mesh",
        )
    return evaluate(body, arrays)


def manual_axes(attrs: ir.Attrs) -> tuple[str, ...]:
    """The axes along which the body is per-device; all that the mesh has unless some are named."""
    found: tuple[str, ...] = attrs.get("axes", ()) or attrs["mesh"].axis_names
    return found


def unnamed_axes(spec: Spec, axes: Sequence[str]) -> tuple[str, ...]:
    """Those of some axes that a spec does not name."""
    named = {name for entry in spec for name in mesh.entry_axes(entry)}
    return tuple(name for name in axes if name not in named)


def _jvp(ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs) -> tuple[Values, MaybeValues]:
    flags, count = nonzero(tangents), len(attrs["out_specs"])
    body, out_flags = ctx.jvp_program(attrs["body"], flags)
    results = trace.bind(
        shard_map_p, *primals, *(t for t in tangents if t is not None),
        **attrs.replace(
            body=body,
            in_specs=(*attrs["in_specs"], *_where(flags, attrs["in_specs"])),
            out_specs=(*attrs["out_specs"], *_where(out_flags, attrs["out_specs"])),
        ),
    )  # fmt: skip
    return results[:count], merge(out_flags, results[count:])


def _where(flags: Flags, items: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(item for item, flag in zip(items, flags, strict=True) if flag)


def _linearize(
    ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs
) -> tuple[Values, MaybeValues]:
    body, flags = attrs["body"], nonzero(tangents)
    count = len(body.results)
    parts = ctx.linearize_program(body, flags)
    # Each device keeps its own residuals: they are stacked along a fresh leading dimension split over
    # all manual axes.
    stacked_spec = (manual_axes(attrs),)
    primal, linear = _stacking(parts.primal, count), _unstacking(parts.linear, parts.known)
    extra_specs = (stacked_spec,) * (len(primal.results) - count)
    results = ctx.bind_primal(
        shard_map_p, *primals, **attrs.replace(body=primal, out_specs=(*attrs["out_specs"], *extra_specs))
    )
    residuals = parts.residual_values(primals, results[count:])
    residual_specs = tuple(stacked_spec if k is None else attrs["in_specs"][k] for k in parts.known)
    moved = ctx.bind_linear(
        shard_map_p, *residuals, *(t for t in tangents if t is not None),
        **attrs.replace(
            body=linear,
            in_specs=(*residual_specs, *_where(flags, attrs["in_specs"])),
            out_specs=_where(parts.out_nonzero, attrs["out_specs"]),
        ),
    )  # fmt: skip
    return results[:count], merge(parts.out_nonzero, moved)


def _stacking(program: Program, count: int) -> Program:
    """The program with results from `count` on under a leading dimension of size 1."""

    def run(*args: Value) -> Sequence[Value]:
        results = trace.evaluate(program, args)
        reshape = primitive.by_name("reshape")
        return [
            *results[:count],
            *(trace.bind1(reshape, r, shape=(1, *r.shape), ndim=r.ndim) for r in results[count:]),
        ]

    return trace.stage(run, program.in_types, name=program.name).program


def _unstacking(program: Program, known: Sequence[int | None]) -> Program:
    """The program with parameters that are not `known` under a leading dimension of size 1."""
    stacked = [k is None for k in known] + [False] * (len(program.params) - len(known))
    types = [
        t.update(shape=(1, *t.shape)) if flag else t
        for t, flag in zip(program.in_types, stacked, strict=True)
    ]

    def run(*args: Value) -> Sequence[Value]:
        reshape = primitive.by_name("reshape")
        flat = [
            trace.bind1(reshape, a, shape=a.shape[1:], ndim=a.ndim) if flag else a
            for a, flag in zip(args, stacked, strict=True)
        ]
        return trace.evaluate(program, flat)

    return trace.stage(run, types, name=program.name).program


def _transpose(ctx: Context, cts: MaybeValues, args: Sequence[Any], attrs: ir.Attrs) -> MaybeValues:
    in_specs = attrs["in_specs"]
    linear, given = tuple(is_linear(a) for a in args), nonzero(cts)
    body, out_flags = ctx.transpose_program(attrs["body"], linear, given)
    known_specs = _where(tuple(not flag for flag in linear), in_specs)
    ct_specs = _where(given, attrs["out_specs"])
    found_specs = _where(out_flags, _where(linear, in_specs))
    backward = (
        body if attrs.get("check_vma") else _balanced(body, ct_specs, found_specs, attrs, len(known_specs))
    )
    found = trace.bind(
        shard_map_p, *(a for a in args if not is_linear(a)), *(ct for ct in cts if ct is not None),
        **attrs.replace(body=backward, in_specs=(*known_specs, *ct_specs), out_specs=found_specs),
    )  # fmt: skip
    return merge(linear, merge(out_flags, found))


def _balanced(
    body: Program, ct_specs: Sequence[Spec], found_specs: Sequence[Spec], attrs: ir.Attrs, num_known: int
) -> Program:
    """The transposed body between specs: a value that was equal on devices is one value, so its
    cotangents share and add.
    """
    mesh_, axes = attrs["mesh"], manual_axes(attrs)

    def run(*args: Value) -> Sequence[Value]:
        shared = [
            _divided(ct, math.prod(mesh_.shape[name] for name in unnamed_axes(spec, axes)))
            for ct, spec in zip(args[num_known:], ct_specs, strict=True)
        ]
        found = trace.evaluate(body, [*args[:num_known], *shared])
        return [
            collectives.psum(ct, unnamed_axes(spec, axes)) if unnamed_axes(spec, axes) else ct
            for ct, spec in zip(found, found_specs, strict=True)
        ]

    with trace.named_axes(*mesh_.shape.items()):
        return trace.stage(run, body.in_types, name=body.name).program


def _divided(x: Value, count: int) -> Value:
    return x if count == 1 else families.bind_scalars(primitive.by_name("div"), x, count)


def _batch(ctx: Context, args: Values, batched: Flags, attrs: ir.Attrs) -> tuple[Values, Flags]:
    body, out_flags = ctx.batch_program(attrs["body"], batched)

    def moved(specs: Sequence[Spec], flags: Flags) -> tuple[Spec, ...]:
        return tuple((None, *spec) if flag else spec for spec, flag in zip(specs, flags, strict=True))

    changed = attrs.replace(
        body=body, in_specs=moved(attrs["in_specs"], batched), out_specs=moved(attrs["out_specs"], out_flags)
    )
    return trace.bind(shard_map_p, *args, **changed), out_flags


shard_map_p: Primitive = primitive.register(
    Primitive(
        "shard_map",
        None,
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: _reference,
            primitive.JVP: _jvp,
            primitive.LINEARIZE: _linearize,
            primitive.TRANSPOSE: _transpose,
            primitive.BATCH: _batch,
        },
        is_higher_order=True,
    )
)


# --- collectives over manual axes inside what is split over others ---------------------------------


def _place_collective(
    op: Primitive, in_types: Sequence[ArrayType], out_types: Sequence[ArrayType], attrs: ir.Attrs
) -> places.Factors:
    """PLACE of collectives: every dimension that they leave alone may be split over other axes."""
    moved = attrs.get("dimensions", (None,) * len(in_types))
    both = {attrs[name] for name in ("split", "concat") if name in attrs}
    found, sizes = [], {}
    for number, (type_, dimension) in enumerate(zip(in_types, moved, strict=True)):
        busy = {d % type_.ndim for d in both | ({dimension} - {None})}
        own = {d: f"operand{number}_{d}" for d in range(type_.ndim) if d not in busy}
        sizes.update({name: type_.shape[d] for d, name in own.items()})
        found.append(tuple((own[d],) if d in own else places.WHOLE for d in range(type_.ndim)))
    return places.Factors(tuple(found), tuple(found), sizes)


for _op in (
    collectives.psum_p, collectives.pmax_p, collectives.pmin_p, exchanges.all_gather_p,
    exchanges.psum_scatter_p, exchanges.ppermute_p, exchanges.all_to_all_p,
):  # fmt: skip
    _op.rules[primitive.PLACE] = _place_collective
