"""Every operation, every dtype it takes, on the cpu backend against its NumPy definition: jitted, op by op,
batched and differentiated.

The operations and their inputs come from the declarations (`primitive.CASES`), so a new operation is tested
by being declared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import infini as inf
from infini.core import backend, dtypes, ir, primitive, trace
from infini.core.primitive import Primitive
from infini.lax.cases import Case, Cases
from infini.testing.tolerances import assert_close, tolerance


def applications() -> list[Any]:
    return list(_applications())


def _applications() -> Iterator[Any]:
    for name, op in sorted(primitive.all_primitives().items()):
        if op.has(primitive.CASES):
            cases: Cases = op.rule(primitive.CASES)
            for dtype in sorted(cases.dtypes, key=str):
                yield pytest.param(op, dtype, id=f"{name}-{dtypes.short(dtype)}")


def examples(op: Primitive, dtype: np.dtype) -> list[Case]:
    return list(op.rule(primitive.CASES).examples(dtype))


def function_of(op: Primitive, case: Case) -> Callable[..., tuple[Any, ...]]:
    return lambda *operands: trace.bind(op, *operands, **case.attrs)


def by_definition(op: Primitive, case: Case, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Results of the operation's NumPy definition."""
    types = [ir.ArrayType(x.shape, x.dtype) for x in arrays]
    return interpreted(ir.single_equation(op, types, ir.Attrs(case.attrs)), arrays)


def interpreted(program: ir.Program, arrays: list[np.ndarray]) -> list[np.ndarray]:
    oracle = backend.get("reference")
    device = oracle.devices()[0]
    found = oracle.compile(program, backend.CompileOptions())([oracle.put(x, device) for x in arrays])
    return [np.array(oracle.get(b, t)) for b, t in zip(found, program.out_types, strict=True)]


def given(arrays: list[np.ndarray]) -> list[Any]:
    with inf.config(host64="keep"):
        return [inf.device_put(x) for x in arrays]


def compare(found: Any, expected: list[np.ndarray], case: Case) -> None:
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype
        # A complex function is several real ones.
        is_compound = y.dtype in dtypes.COMPLEX and case.kind == "elementwise"
        assert_close(np.asarray(x), y, "reduction" if is_compound else case.kind)


@pytest.mark.parametrize(("op", "dtype"), applications())
def test_jitted_and_eager_equal_the_definition(
    op: Primitive, dtype: np.dtype, rng: np.random.Generator
) -> None:
    for case in examples(op, dtype):
        arrays = case.draw(dtype, rng)
        expected = by_definition(op, case, arrays)
        run = function_of(op, case)
        compare(run(*given(arrays)), expected, case)
        compare(inf.jit(run)(*given(arrays)), expected, case)


def batchable() -> list[Any]:
    """Those with operands; the others have nothing to map over."""
    return [p for p in applications() if examples(*p.values)[0].operands]


@pytest.mark.parametrize(("op", "dtype"), batchable())
def test_batched_equals_a_loop(op: Primitive, dtype: np.dtype, rng: np.random.Generator) -> None:
    case = examples(op, dtype)[0]
    rows = [case.draw(dtype, rng) for _ in range(3)]
    expected = [np.stack(column) for column in zip(*(by_definition(op, case, r) for r in rows), strict=True)]
    run = function_of(op, case)
    stacked = [np.stack(column) for column in zip(*rows, strict=True)]
    compare(inf.jit(inf.vmap(run))(*given(stacked)), expected, case)
    # The first operand alone is batched; the others are shared.
    shared = [by_definition(op, case, [row[0], *rows[0][1:]]) for row in rows]
    axes = (0, *[None] * (len(stacked) - 1))
    found = inf.vmap(run, in_axes=axes)(*given([stacked[0], *rows[0][1:]]))
    compare(found, [np.stack(column) for column in zip(*shared, strict=True)], case)


def differentiable() -> list[Any]:
    tried = (dtypes.float32, dtypes.float64, dtypes.bfloat16, dtypes.complex64)
    return [p for p in applications() if p.values[1] in tried and has_derivative(p.values[0])]


def has_derivative(op: Primitive) -> bool:
    return any(op.has(key) for key in (primitive.JVP, primitive.VJP, primitive.LINEARIZE))


@pytest.mark.parametrize(("op", "dtype"), differentiable())
def test_derivative(op: Primitive, dtype: np.dtype, rng: np.random.Generator) -> None:
    """In float64 against finite differences, to the second order; in other dtypes against the reference."""
    for case in examples(op, dtype):
        arrays = case.draw(dtype, rng)
        moving = [i for i, x in enumerate(arrays) if x.dtype == dtype]
        moving = moving if case.moving is None else list(case.moving)
        run = function_of(op, case)

        def along(*xs: Any, run: Any = run, arrays: Any = arrays, moving: Any = moving) -> list[Any]:
            full = given(arrays)
            for i, x in zip(moving, xs, strict=True):
                full[i] = x
            return [y for y in run(*full) if dtypes.is_inexact(y.dtype)]

        primals = given([arrays[i] for i in moving])
        if not primals or not along(*primals):
            continue  # nothing that moves, or whole numbers come out
        if dtype == dtypes.float64 and case.is_smooth:
            with inf.config(host64="keep"):
                inf.testing.check_grads(along, primals, order=2, atol=1e-4, rtol=1e-4)
            continue
        out, pullback = inf.vjp(along, *primals)
        weights = given([np.asarray(rng.standard_normal(y.shape)).astype(y.dtype) for y in out])
        program = inf.make_jaxpr(lambda xs, ws, along=along: inf.vjp(along, *xs)[1](ws))(primals, weights)
        expected = interpreted(program, [np.asarray(x) for x in (*primals, *weights)])
        for x, y in zip(pullback(weights), expected, strict=True):
            bound = 4 * tolerance(dtype, "reduction")
            np.testing.assert_allclose(
                np.asarray(x).astype(y.dtype if dtype in dtypes.COMPLEX else np.float64),
                y.astype(y.dtype if dtype in dtypes.COMPLEX else np.float64), rtol=bound, atol=bound,
            )  # fmt: skip
