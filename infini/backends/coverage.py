"""Which operation each backend computes, and how: what `python -m infini.backends` shows.

Operations are tried one at a time in programs of their own, made from their CASES for every dtype they take.
A backend answers by running its passes over such a program, so the route is what a jitted function would get.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

import infini as inf
from infini import lax
from infini.backends import routes
from infini.compiler import pipeline
from infini.core import backend, dtypes, errors, interpret, ir, primitive, trace
from infini.core.backend import Route
from infini.core.ir import ArrayType, Program
from infini.core.primitive import Primitive
from infini.lax import callbacks
from infini.lax.cases import Cases
from infini.tile.program import Access, Kernel
from infini.tile.scattered import Scatter, scattered_kernel_p

# From best to worst: of several examples the worst is told.
ORDER: Final[tuple[Route, ...]] = (
    "own", "kernel", "library", "inlined", "decomposition", "mesh", "transform", "hole"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sample:
    """A program around one application of an operation; `dtype` is the one under test."""

    op: Primitive
    dtype: np.dtype
    program: Program


def samples(op: Primitive) -> Iterator[Sample]:
    """Programs that apply an operation, one per example and dtype; none when nobody gives examples."""
    if op.has(primitive.CASES):
        cases: Cases = op.rule(primitive.CASES)
        for dtype in sorted(cases.dtypes, key=list(dtypes.SHORT_NAMES).index):
            for case in cases.examples(dtype):
                program = ir.single_equation(op, case.types(dtype), ir.Attrs(case.attrs))
                yield Sample(op, dtype, program)
    elif op.name in STRUCTURED:
        function, types = STRUCTURED[op.name]
        program = trace.stage(function, types, name=op.name).program
        yield Sample(op, program.in_types[-1].dtype, program)
    elif op.name == "kernel":
        program = trace.stage(lambda x: [_sine(x)], (_VECTOR,), name=op.name).program
        yield Sample(op, dtypes.float32, pipeline.run(program, pipeline.basis_route, backend="basis"))


def definition(sample: Sample) -> Program:
    """The definition of the operation of a sample by other operations, which it must have."""
    (equation,) = (equation for equation in sample.program.equations if equation.op is sample.op)
    types = tuple(v.type for v in equation.inputs)
    return interpret.decomposition(sample.op, types, equation.attrs)


# --- operations that hold programs: their examples are small functions ----------------------------

_VECTOR: Final = ArrayType((4,), dtypes.float32)
_SCALAR: Final = ArrayType((), dtypes.float32)
_INDEX: Final = ArrayType((), dtypes.int32)
_BITS: Final = ArrayType((4,), dtypes.uint32)


def _sine(x: Any) -> Any:  # Any: a value
    return lax.sin(x)


def _custom_jvp(x: Any) -> Any:  # Any: a value
    function = inf.custom_jvp(_sine)
    function.defjvp(lambda primals, tangents: (_sine(*primals), tangents[0]))
    return function(x)


def _custom_vjp(x: Any) -> Any:  # Any: a value
    function = inf.custom_vjp(_sine)
    function.defvjp(lambda v: (_sine(v), None), lambda _, ct: (ct,))
    return function(x)


def _custom_vmap(x: Any) -> Any:  # Any: a value
    function = inf.custom_batching.custom_vmap(_sine)
    function.def_vmap(lambda _, in_batched, v: (_sine(v), in_batched[0]))
    return function(x)


def _linear_call(x: Any) -> Any:  # Any: a value
    return inf.custom_derivatives.linear_call(lambda _, v: lax.neg(v), lambda _, ct: lax.neg(ct), (), x)


def _composite_tangent(x: Any) -> Any:  # Any: a value
    return inf.linearize(lambda v: lax.rms_norm(v, v), x)[1](x)


def _scan(carry: Any, xs: Any) -> Any:  # Any: values
    return lax.scan(lambda c, x: (lax.add(c, x), c), carry, xs)


def _while(n: Any) -> Any:  # Any: a value
    return lax.while_loop(lambda i: lax.gt(i, 0), lambda i: lax.sub(i, 1), n)


def _scattered(x: Any) -> Any:  # Any: a value
    body = trace.stage(lambda v: [lax.iota(dtypes.int32, 4), lax.sin(v)], (_VECTOR,)).program
    whole, places = Access.whole((4,), 0), ArrayType((4,), dtypes.int32)
    kernel = Kernel((), (whole,), (whole, whole), (places, _VECTOR), body)
    scatters = (Scatter("scatter_add", _VECTOR, 1, None),)
    return trace.bind1(scattered_kernel_p, x, kernel=kernel, scatters=scatters)


def _solve(b: Any) -> Any:  # Any: a value
    return lax.custom_linear_solve(lambda x: lax.mul(x, 2.0), b, lambda _, y: lax.div(y, 2.0))


def _called(function: Callable[..., Any]) -> Callable[[Any], Sequence[Any]]:  # Any: values
    shape = inf.ShapeDtypeStruct(_VECTOR.shape, _VECTOR.dtype)
    return lambda x: [function(lambda v: v, shape, x)]


def _callback(x: Any) -> Sequence[Any]:  # Any: a value
    inf.debug.callback(lambda _: None, x)
    return ()


def _inspected(x: Any) -> Sequence[Any]:  # Any: a value
    inf.debug.inspect_array_sharding(x, callback=lambda _: None)
    return ()


STRUCTURED: Final[Mapping[str, tuple[Callable[..., Sequence[Any]], tuple[ArrayType, ...]]]] = {  # Any: values
    "call": (lambda x: [inf.jit(_sine)(x)], (_VECTOR,)),
    "checkpoint": (lambda x: [inf.checkpoint(_sine)(x)], (_VECTOR,)),
    "composite_tangent": (lambda x: [_composite_tangent(x)], (_VECTOR,)),
    "cond": (lambda i, x: [lax.switch(i, [_sine, lax.cos], x)], (_INDEX, _VECTOR)),
    "custom_jvp_call": (lambda x: [_custom_jvp(x)], (_VECTOR,)),
    "custom_vmap_call": (lambda x: [_custom_vmap(x)], (_VECTOR,)),
    "custom_vjp_call": (lambda x: [_custom_vjp(x)], (_VECTOR,)),
    "debug_callback": (_callback, (_VECTOR,)),
    "inspect_sharding": (_inspected, (_VECTOR,)),
    "io_callback": (_called(callbacks.io_callback), (_VECTOR,)),
    "linear_call": (lambda x: [_linear_call(x)], (_VECTOR,)),
    "linear_solve": (lambda b: [_solve(b)], (_VECTOR,)),
    "name": (lambda x: [inf.ad_checkpoint.checkpoint_name(x, "x")], (_VECTOR,)),
    "optimization_barrier": (lambda x: [lax.optimization_barrier(x)], (_VECTOR,)),
    "pure_callback": (_called(callbacks.pure_callback), (_VECTOR,)),
    "pvary": (lambda x: trace.bind(lax.pvary_p, x, axes=("a",), sizes=(1,)), (_VECTOR,)),
    "scan": (_scan, (_SCALAR, _VECTOR)),
    "scattered_kernel": (lambda x: [_scattered(x)], (_VECTOR,)),
    "threefry2x32": (lax.threefry2x32, (_BITS,) * 4),
    "while": (lambda n: [_while(n)], (_INDEX,)),
}


# --- the table ------------------------------------------------------------------------------------


def route(name: str, sample: Sample) -> Route:
    """How a backend computes a sample; one that does not say is asked to compile it."""
    chosen = backend.get(name)
    if isinstance(chosen, backend.Explains):
        return chosen.route(sample.program, sample.op)
    special = routes.without_program(sample.op, has_mesh=True)
    if special is not None:
        return special
    try:
        chosen.compile(sample.program, backend.CompileOptions())
    except errors.LoweringError:
        return "hole"
    return "own"


@dataclass(frozen=True, slots=True)
class Row:
    """An operation: by backend and dtype its route. An operation without a dtype of its own has one entry."""

    op: Primitive
    routes: Mapping[str, Mapping[str, Route]]

    def worst(self, name: str) -> Route:
        """The worst route that a backend takes."""
        return max(self.routes[name].values(), key=ORDER.index)

    def dtypes_of(self, name: str, wanted: Route) -> tuple[str, ...]:
        """The dtypes for which a backend takes a route."""
        return tuple(dtype for dtype, found in self.routes[name].items() if found == wanted)


def table(names: Sequence[str], only: str | None = None, *, every_example: bool = False) -> list[Row]:
    """Rows for every operation, or for the one called `only`.

    Args:
        names: backends to ask.
        only: name of an operation.
        every_example: try all examples of an operation, not the first of each dtype.

    Raises:
        ParseError: there is no operation of that name.
    """
    ops = primitive.all_primitives() if only is None else {only: primitive.by_name(only)}
    rows = []
    for _, op in sorted(ops.items()):
        tried = list(samples(op))
        if not every_example:
            tried = list({sample.dtype: sample for sample in reversed(tried)}.values())[::-1]
        rows.append(Row(op, {name: _routes(name, op, tried) for name in names}))
    return rows


def _routes(name: str, op: Primitive, tried: Sequence[Sample]) -> dict[str, Route]:
    found: dict[str, Route] = {}
    for sample in tried:
        key = dtypes.short(sample.dtype)
        taken = route(name, sample)
        found[key] = max(found.get(key, taken), taken, key=ORDER.index)
    if not found:
        program = Program((), (), ())
        found["any"] = route(name, Sample(op, dtypes.float32, program))
    return found
