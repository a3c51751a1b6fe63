"""Along which axes of a mesh values vary inside `shard_map(check_vma=True)`, and the operations that say so.

Devices hold different values of what comes from a split argument, and equal ones of what comes from a whole
argument or from `psum`. The flag `varying` of tracers knows. Where equal and different values meet, `pvary`
marks the equal one: it does nothing, and its transpose adds up the cotangents of all devices. `psum` turns a
varying value into an equal one, so its transpose is `pvary`. As the marks are equations, programs that are
differentiated later need no flags. The idea is JAX's (https://docs.jax.dev/en/latest/notebooks/shard_map.html).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from infini.core import dtypes, errors, ir, primitive, trace, tree
from infini.core.ir import Program
from infini.core.primitive import Primitive
from infini.core.trace import Varying
from infini.core.value import Value
from infini.lax import collectives
from infini.lax.collectives import AxisName, axes_of

# --- operations ----------------------------------------------------------------------------------


def _same(*xs: Any, axes: tuple[str, ...], sizes: tuple[int, ...]) -> tuple[Any, ...]:  # Any: types or values
    return xs


def _bound_again(op: Callable[[], Primitive]) -> Any:  # Any: a rule
    def rule(ctx: Any, args: Any, batched: Any, attrs: Any) -> Any:  # Any: see transforms.batching
        return trace.bind(op(), *args, **attrs), batched

    return rule


def _marked_tangents(primals: Any, tangents: Sequence[Value | None], results: Any, **attrs: Any) -> Any:
    return collectives.linear_map("pvary", tangents, attrs)


pvary_p: Primitive = primitive.register(
    Primitive(
        "pvary",
        None,
        {
            primitive.TYPE: _same,
            primitive.REFERENCE: _same,
            primitive.JVP: _marked_tangents,
            primitive.TRANSPOSE: collectives.transposed("psum_invariant"),
            primitive.BATCH: _bound_again(lambda: pvary_p),
            primitive.DECOMPOSE: _same,
        },
    )
)


def _reference_psum(*xs: np.ndarray, axes: tuple[str, ...], sizes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    collectives.refuse_several("psum", sizes)
    return xs


psum_invariant_p: Primitive = collectives.declare(
    "psum_invariant",
    _same,
    _reference_psum,
    collectives.transposed("pvary"),
    _bound_again(lambda: psum_invariant_p),
)
psum_invariant_p.rules[primitive.DECOMPOSE] = lambda *xs, axes, sizes: trace.bind(
    primitive.by_name("psum"), *xs, axes=axes, sizes=sizes
)


# --- what varies ---------------------------------------------------------------------------------

_EQUALISING: Final = frozenset({"psum", "psum_invariant", "pmax", "pmin"})
_MARKING: Final = frozenset({"pvary", "all_gather", "psum_scatter", "all_to_all", "ppermute"})
_LOOPS: Final = frozenset({"scan", "while", "cond", "shard_map"})


def _named(attrs: ir.Attrs) -> tuple[str, ...]:
    """The axes that a collective acts over."""
    found = attrs.get("axes", ()) or attrs.get("axis_name", ())
    return (found,) if isinstance(found, str) else tuple(found)


def of_results(
    op: Primitive, given: Sequence[Varying], attrs: ir.Attrs, count: int, axes: Varying
) -> tuple[Varying, ...]:
    """Along which axes the results of an operation vary.

    Args:
        op: operation.
        given: along which axes its operands vary.
        attrs: its attributes.
        count: number of results.
        axes: the manual axes.
    """
    if op.name in _EQUALISING:
        return tuple(v - frozenset(_named(attrs)) for v in given)
    if op.name in _MARKING:
        return tuple(v | (axes & frozenset(_named(attrs))) for v in given)
    if op.name == "axis_index":
        return (axes & frozenset(_named(attrs)),)
    if op.name == "optimization_barrier":
        return tuple(given)
    if op.name == "scan":
        return _of_scan(attrs, given, axes)
    if op.name == "while":
        return _of_while(attrs, given, axes)
    if op.name == "cond":
        return _of_cond(attrs, given, axes)
    body = attrs.get("body")
    if op.name not in _LOOPS and isinstance(body, Program) and len(body.params) == len(given):
        found = of_program(body, tuple(given), axes)
        if len(found) == count:
            return found
    return (trace.EQUAL.union(*given),) * count


@functools.lru_cache(maxsize=4096)
def of_program(program: Program, given: tuple[Varying, ...], axes: Varying) -> tuple[Varying, ...]:
    """Along which axes the results of a program vary, from those of its parameters."""
    env = dict(zip(program.params, given, strict=True))
    env.update((var, trace.EQUAL) for var, _ in program.consts)
    for equation in program.equations:
        operands = [env[v] for v in equation.inputs]
        found = of_results(equation.op, operands, equation.attrs, len(equation.outputs), axes)
        env.update(zip(equation.outputs, found, strict=True))
    return tuple(env[v] for v in program.results)


def _grown(first: Sequence[Varying], second: Sequence[Varying]) -> tuple[Varying, ...]:
    return tuple(a | b for a, b in zip(first, second, strict=True))


def _of_scan(attrs: ir.Attrs, given: Sequence[Varying], axes: Varying) -> tuple[Varying, ...]:
    start, stop = attrs["num_consts"], attrs["num_consts"] + attrs["num_carry"]
    carry, count = tuple(given[start:stop]), attrs["num_carry"]
    while True:
        found = of_program(attrs["body"], (*given[:start], *carry, *given[stop:]), axes)
        larger = _grown(carry, found[:count])
        if larger == carry:
            return (*carry, *found[count:])
        carry = larger


def _of_while(attrs: ir.Attrs, given: Sequence[Varying], axes: Varying) -> tuple[Varying, ...]:
    first, second = attrs["num_cond_consts"], attrs["num_body_consts"]
    consts, carry = tuple(given[first : first + second]), tuple(given[first + second :])
    while True:
        (chosen,) = of_program(attrs["cond"], (*given[:first], *carry), axes)
        found = of_program(attrs["body"], (*consts, *carry), axes)
        larger = tuple(v | chosen for v in _grown(carry, found))
        if larger == carry:
            return carry
        carry = larger


def _of_cond(attrs: ir.Attrs, given: Sequence[Varying], axes: Varying) -> tuple[Varying, ...]:
    branches = [of_program(b, tuple(given[1:]), axes) for b in attrs["branches"]]
    return tuple(given[0].union(*column) for column in zip(*branches, strict=True))


# --- marks ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Manual:
    """The manual axes of `shard_map(check_vma=True)`, see `trace.Manual`.

    Args:
        axes: names and sizes.
        everything: axes along which every value varies here, as devices take different branches.
    """

    axes: tuple[tuple[str, int], ...]
    everything: Varying = trace.EQUAL

    @property
    def names(self) -> Varying:
        """Names of the axes."""
        return frozenset(name for name, _ in self.axes)

    def varying(self, x: Value) -> Varying:
        """Along which axes a value varies here."""
        return trace.varying_axes(x) | self.everything

    def prepare(
        self, op: Primitive, args: Sequence[Value], attrs: ir.Attrs
    ) -> tuple[Primitive, Sequence[Value], ir.Attrs]:
        """An operation with operands that vary along the same axes; a sum over manual axes becomes the one
        whose result is equal on all devices.
        """
        if op is pvary_p or op is psum_invariant_p:
            return op, args, attrs
        if op.name in _EQUALISING or op.name in _MARKING:
            return self._collective(op, args, attrs)
        if op.name == "custom_jvp_call" or (len(args) > 1 and not op.is_higher_order):
            flags = [self.varying(x) for x in args]
            if any(flag != flags[0] for flag in flags):
                common = trace.EQUAL.union(*flags)
                args = [self.mark(x, common) for x in args]
        return op, args, attrs

    def _collective(
        self, op: Primitive, args: Sequence[Value], attrs: ir.Attrs
    ) -> tuple[Primitive, Sequence[Value], ir.Attrs]:
        mine = self.names.intersection(_named(attrs))
        if not mine:
            return op, args, attrs
        if op.name != "psum":
            return op, [self.mark(x, mine) for x in args], attrs
        sizes = dict(zip(attrs["axes"], attrs["sizes"], strict=True))
        others = tuple(name for name in attrs["axes"] if name not in mine)
        if others:
            args = trace.bind(op, *args, axes=others, sizes=tuple(sizes[name] for name in others))
        ours = tuple(name for name in attrs["axes"] if name in mine)
        changed = ir.Attrs({"axes": ours, "sizes": tuple(sizes[name] for name in ours)})
        return psum_invariant_p, [self.mark(x, mine) for x in args], changed

    def results(
        self, op: Primitive, args: Sequence[Value], attrs: ir.Attrs, count: int
    ) -> tuple[Varying, ...]:
        """Along which axes the results of an operation vary."""
        return of_results(op, [self.varying(x) for x in args], attrs, count, self.names)

    def mark(self, x: Value, axes: Varying, *, always: bool = False) -> Value:
        """The value, marked as varying along these axes as well; what has no derivative needs no mark,
        unless it is asked for.
        """
        missing = axes - self.varying(x)
        if not missing or not (always or (isinstance(x, trace.Tracer) and dtypes.is_inexact(x.dtype))):
            return x
        ours = [(name, size) for name, size in self.axes if name in missing]
        return trace.bind1(pvary_p, x, axes=tuple(n for n, _ in ours), sizes=tuple(s for _, s in ours))


def marked(values: Sequence[Value], axes: Sequence[Varying]) -> list[Value]:
    """Values marked so that each varies at least along its axes; as they are outside of `shard_map`."""
    manual = trace.current().manual
    if not isinstance(manual, Manual):
        return list(values)
    return [manual.mark(x, wanted) for x, wanted in zip(values, axes, strict=True)]


def inside_branch(chosen: Value) -> Manual | None:
    """What holds in branches that devices choose by a value: everything varies along its axes."""
    manual = trace.current().manual
    if not isinstance(manual, Manual):
        return None
    return Manual(manual.axes, manual.everything | trace.varying_axes(chosen))


# --- what users call -----------------------------------------------------------------------------


def pvary(x: Any, axis_name: AxisName) -> Any:  # Any: pytrees
    """Mark values as varying along manual axes of a mesh; nothing where they are marked already, and outside
    of `shard_map(check_vma=True)`. The transpose is `psum`.

    Raises:
        UnboundAxisError: no enclosing transformation names the axis.
    """
    names, _ = axes_of(axis_name)
    manual = trace.current().manual

    def one(leaf: Any) -> Value:
        value = trace.as_value(leaf)
        if not isinstance(manual, Manual):
            return value
        return manual.mark(value, manual.names.intersection(names), always=True)

    return tree.map(one, x)


def pcast(x: Any, axis_name: AxisName, *, to: str) -> Any:  # Any: pytrees
    """Change how values are known to vary along manual axes, as `jax.lax.pcast`.

    Args:
        x: pytree of arrays.
        axis_name: axis or axes.
        to: `varying`; JAX's `reduced` and `unreduced` are the partitioner's in infini.

    Raises:
        ValueMismatchError: a value varies along one of the axes already, or `to` is another word.
        UnsupportedError: `to` is `reduced` or `unreduced`.
    """
    if to in ("reduced", "unreduced"):
        raise errors.UnsupportedError(
            f"pcast(to={to!r}) is not there",
            fix="use psum or psum_scatter where the sum is needed",
        )
    if to != "varying":
        raise errors.ValueMismatchError("pcast: there is no such state", got=repr(to), expected="'varying'")
    names, _ = axes_of(axis_name)
    if isinstance(trace.current().manual, Manual):
        for leaf in tree.leaves(x):
            found = trace.varying_axes(trace.as_value(leaf)).intersection(names)
            if found:
                raise errors.ValueMismatchError(
                    "pcast: a value varies along an axis already",
                    got=f"{', '.join(sorted(found))} for a value of type {trace.as_value(leaf).type}",
                    fix="leave that axis out; pvary takes values in either state",
                )
    return pvary(x, axis_name)
