"""Complex arrays become pairs of real ones, so no emitter knows complex numbers.

Parameters and results keep their memory, seen as real arrays with a last dimension of two; inside, every
complex variable is a `Pair`. Operations that act on both parts alike (moves, sums) run twice, elementwise
ones follow `complex_formulas`, contractions multiply parts, and the rest is taken by its DECOMPOSE first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from infini.compiler.passes import complex_formulas as c, decompose, inline, rewrite
from infini.compiler.passes.complex_formulas import Pair, Part
from infini.core import dtypes, ir, primitive, trace
from infini.core.ir import ArrayType, Attrs, Equation, Program
from infini.core.value import Literal, Value
from infini.lax import complex_views, families

# Linear in every complex operand, with the same attributes: run once for each part.
ALIKE: Final = frozenset({
    "all_gather", "all_to_all", "broadcast_in_dim", "concatenate", "cumsum", "dynamic_slice",
    "dynamic_update_slice", "optimization_barrier", "pad", "ppermute", "psum", "psum_scatter", "reduce_sum",
    "reduce_window_sum", "reshape", "rev", "scatter", "scatter_add", "scatter_sub", "select_n",
    "sharding_constraint", "slice", "stop_gradient", "transpose", "unfold",
})  # fmt: skip
# Products of two operands, linear in each: four real ones.
BILINEAR: Final = frozenset({"conv", "dot", "ragged_dot"})
# Operations whose complex operands and results stay whole: what a host function or a library sees.
WHOLE: Final = frozenset({
    "cholesky", "debug_callback", "eig", "eigh", "fft", "io_callback", "lu", "pure_callback", "qr", "svd",
    "triangular_solve", "view_as_complex", "view_as_real",
})  # fmt: skip


def split_complex(program: Program) -> Program:
    """The program with complex arrays at its edges only.

    Raises:
        LoweringError: an operation of complex arrays has no route.
    """
    if not _mentions_complex(program):
        return program

    def run(*params: Value) -> list[Value]:
        return [_joined(x) for x in _evaluate(program, [_split(p) for p in params])]

    return trace.stage(run, program.in_types, name=program.name).program


def _is_complex(type_: ArrayType) -> bool:
    return type_.dtype in dtypes.COMPLEX


def _mentions_complex(program: Program) -> bool:
    variables = [*program.params, *(v for e in program.equations for v in (*e.inputs, *e.outputs))]
    return any(_is_complex(v.type) for v in variables) or any(
        _mentions_complex(inner) for e in program.equations for inner in e.programs
    )


def _split(x: Value) -> Part:
    if x.dtype not in dtypes.COMPLEX:
        return x
    if isinstance(x, Literal):
        return _constant(x.host)
    parts = complex_views.view_as_real(x)
    return Pair(_part(parts, 0), _part(parts, 1), x)


def _constant(array: np.ndarray) -> Pair:
    return Pair(
        Literal(np.array(array.real), weak=False),
        Literal(np.array(array.imag), weak=False),
    )


def _part(parts: Value, number: int) -> Value:
    piece = trace.bind1(primitive.by_name("slice"), parts, start=(number,), limit=(number + 1,), strides=(1,))
    return trace.bind1(primitive.by_name("reshape"), piece, shape=piece.shape[:-1], ndim=piece.ndim)


def _joined(x: Part) -> Value:
    if not isinstance(x, Pair):
        return x
    if x.whole is not None:
        return x.whole
    reshape = primitive.by_name("reshape")
    columns = [trace.bind1(reshape, p, shape=(*p.shape, 1), ndim=p.ndim) for p in (x.re, x.im)]
    return complex_views.view_as_complex(trace.bind1(primitive.by_name("concatenate"), *columns, axis=-1))


# --- the walk ------------------------------------------------------------------------------------


def _evaluate(program: Program, args: Sequence[Part]) -> list[Part]:
    """Apply a program to real arrays and pairs."""
    env: dict[ir.Var, Part] = dict(zip(program.params, args, strict=True))
    for var, constant in program.consts:
        is_pair = _is_complex(var.type)
        env[var] = _constant(constant.array) if is_pair else Literal(constant.array, weak=False)
    for equation in program.equations:
        with trace.at_line(equation.where):
            results = _apply(equation, [env[v] for v in equation.inputs])
        for var, result in zip(equation.outputs, results, strict=True):
            env[var] = _fitted(result, var.type)
    return [env[v] for v in program.results]


def _fitted(x: Part, type_: ArrayType) -> Part:
    """Parts in the shape of the result: a formula may give one that still has to be broadcast."""
    if not isinstance(x, Pair):
        return families.broadcast_to(x, type_.shape)
    if x.whole is not None:
        return x
    return Pair(families.broadcast_to(x.re, type_.shape), families.broadcast_to(x.im, type_.shape))


def _apply(equation: Equation, operands: Sequence[Part]) -> Sequence[Part]:
    name, attrs = equation.op.name, equation.attrs
    types = [v.type for v in (*equation.inputs, *equation.outputs)]
    inner = any(_mentions_complex(p) for p in equation.programs)
    if not any(map(_is_complex, types)) and not inner:
        values = [x for x in operands if isinstance(x, Value)]
        return trace.bind_attrs(equation.op, values, attrs)
    if name in CONTROL_FLOW:
        return CONTROL_FLOW[name](operands, attrs)
    if name in ALIKE:
        return _alike(equation.op, operands, attrs)
    if name in BILINEAR:
        return [_bilinear(equation.op, operands, attrs)]
    if name in RULES:
        return RULES[name](operands, attrs)
    if name in WHOLE:
        return [_split(y) for y in trace.bind_attrs(equation.op, [_joined(x) for x in operands], attrs)]
    formula = c.formula(name)
    if formula is not None:
        return [formula(*operands, **attrs)]
    if equation.op.has(primitive.DECOMPOSE):
        body = inline.inline_calls(decompose.definition(equation, "complex"))
        return _evaluate(body, operands)
    raise c.refuse(name, *types)


def _alike(op: primitive.Primitive, operands: Sequence[Part], attrs: Attrs) -> list[Part]:
    def part(number: int) -> tuple[Value, ...]:
        chosen = [((x.re, x.im)[number] if isinstance(x, Pair) else x) for x in operands]
        return trace.bind_attrs(op, chosen, attrs)

    return [Pair(re, im) for re, im in zip(part(0), part(1), strict=True)]


def _bilinear(op: primitive.Primitive, operands: Sequence[Part], attrs: Attrs) -> Pair:
    x, y, *rest = operands
    assert isinstance(x, Pair) and isinstance(y, Pair)
    others = [z for z in rest if isinstance(z, Value)]
    real = attrs.replace(**{
        key: complex_views.PART[value] for key, value in attrs.items()
        if isinstance(value, np.dtype) and value in dtypes.COMPLEX
    })  # fmt: skip

    def product(a: Value, b: Value) -> Value:
        (result,) = trace.bind_attrs(op, [a, b, *others], real)
        return result

    return Pair(
        c.apply("sub", product(x.re, y.re), product(x.im, y.im)),
        c.apply("add", product(x.re, y.im), product(x.im, y.re)),
    )


# --- operations with a rule of their own ------------------------------------------------------------


def _iota(operands: Sequence[Part], attrs: Attrs) -> list[Part]:
    line = trace.bind1(primitive.by_name("iota"), **attrs.replace(dtype=complex_views.PART[attrs["dtype"]]))
    return [Pair(line, families.zeros(line.type))]


def _gather(operands: Sequence[Part], attrs: Attrs) -> list[Part]:
    x, indices = operands
    assert isinstance(x, Pair) and isinstance(indices, Value)
    fill = families.default_fill(x.dtype) if attrs["fill_value"] is None else attrs["fill_value"]
    whole = np.asarray(fill).astype(x.dtype)
    re, im = (
        trace.bind1(primitive.by_name("gather"), part, indices, **attrs.replace(fill_value=float(number)))
        for part, number in ((x.re, whole.real), (x.im, whole.imag))
    )
    return [Pair(re, im)]


def _sort(operands: Sequence[Part], attrs: Attrs) -> list[Part]:
    """A complex key is two keys: the order is lexicographic."""
    flat: list[Value] = []
    num_keys = 0
    for i, x in enumerate(operands):
        flat += [x.re, x.im] if isinstance(x, Pair) else [x]
        if i < attrs["num_keys"]:
            num_keys = len(flat)
    results = iter(trace.bind(primitive.by_name("sort"), *flat, **attrs.replace(num_keys=num_keys)))
    return [Pair(next(results), next(results)) if isinstance(x, Pair) else next(results) for x in operands]


RULES: Final[dict[str, Callable[[Sequence[Part], Attrs], Sequence[Part]]]] = {
    "gather": _gather,
    "iota": _iota,
    "sort": _sort,
}


# --- control flow: bodies over pairs ------------------------------------------------------------------


def _flat(parts: Sequence[Part]) -> list[Value]:
    return [v for x in parts for v in ((x.re, x.im) if isinstance(x, Pair) else (x,))]


def _grouped(values: Sequence[Value], types: Sequence[ArrayType]) -> list[Part]:
    items = iter(values)
    return [Pair(next(items), next(items)) if _is_complex(t) else next(items) for t in types]


def _real_types(types: Sequence[ArrayType]) -> list[ArrayType]:
    return [
        part
        for t in types
        for part in ([ArrayType(t.shape, complex_views.PART[t.dtype])] * 2 if _is_complex(t) else [t])
    ]


def _real_body(program: Program) -> Program:
    """A body in which each complex parameter and result is two real ones."""

    def run(*params: Value) -> list[Value]:
        return _flat(_evaluate(program, _grouped(params, program.in_types)))

    return trace.stage(run, _real_types(program.in_types), name=program.name).program


def _types(parts: Sequence[Part]) -> list[ArrayType]:
    return [x.type for x in parts]


def _with_real_bodies(
    name: str, operands: Sequence[Part], attrs: Attrs, out_types: Sequence[ArrayType], **counts: int
) -> list[Part]:
    moved = rewrite.map_programs(attrs, _real_body).replace(**counts)
    return _grouped(trace.bind(primitive.by_name(name), *_flat(operands), **moved), out_types)


def _scan(operands: Sequence[Part], attrs: Attrs) -> list[Part]:
    body: Program = attrs["body"]
    num_consts, num_carry = attrs["num_consts"], attrs["num_carry"]
    out_types = [
        *body.out_types[:num_carry],
        *(ArrayType((attrs["length"], *t.shape), t.dtype) for t in body.out_types[num_carry:]),
    ]
    return _with_real_bodies(
        "scan", operands, attrs, out_types,
        num_consts=len(_flat(operands[:num_consts])),
        num_carry=len(_flat(operands[num_consts : num_consts + num_carry])),
    )  # fmt: skip


def _while(operands: Sequence[Part], attrs: Attrs) -> list[Part]:
    first, second = attrs["num_cond_consts"], attrs["num_body_consts"]
    return _with_real_bodies(
        "while", operands, attrs, _types(operands[first + second :]),
        num_cond_consts=len(_flat(operands[:first])),
        num_body_consts=len(_flat(operands[first : first + second])),
    )  # fmt: skip


def _cond(operands: Sequence[Part], attrs: Attrs) -> list[Part]:
    return _with_real_bodies("cond", operands, attrs, attrs["branches"][0].out_types)


CONTROL_FLOW: Final[dict[str, Callable[[Sequence[Part], Attrs], Sequence[Part]]]] = {
    "cond": _cond,
    "scan": _scan,
    "while": _while,
}
