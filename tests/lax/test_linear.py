"""What operations say of the operands in which they are linear: results of the terms of a sum are terms of
its result. The partitioner lets sums over devices wait by it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from infini.core import backend, dtypes, ir, primitive
from infini.core.primitive import Primitive
from infini.lax import elementwise as e, places
from infini.lax.cases import Case


def applications() -> list[Any]:
    """Operations with cases in a dtype, the set of operands in which they are linear."""
    found = []
    for name, op in sorted(primitive.all_primitives().items()):
        if not op.has(primitive.CASES):
            continue
        cases = op.rule(primitive.CASES)
        taken = [d for d in (dtypes.float64, dtypes.float32) if d in cases.dtypes][:1]
        for dtype in [*taken, *(d for d in (dtypes.int32,) if d in cases.dtypes)]:
            for number, case in enumerate(cases.examples(dtype)):
                arrays = case.draw(dtype, np.random.default_rng(0))
                for operands in linear(op, case, arrays):
                    label = f"{name}-{dtypes.short(dtype)}-{number}-{sorted(operands)}"
                    found.append(pytest.param(op, case, dtype, operands, id=label))
    return found


def equation_of(op: Primitive, case: Case, arrays: list[np.ndarray]) -> ir.Program:
    types = [ir.ArrayType(x.shape, x.dtype) for x in arrays]
    return ir.single_equation(op, types, ir.Attrs(case.attrs))


def linear(op: Primitive, case: Case, arrays: list[np.ndarray]) -> places.Linear:
    program = equation_of(op, case, arrays)
    return places.linear_of(op, program.in_types, program.out_types, program.equations[0].attrs)


def run(program: ir.Program, arrays: list[np.ndarray]) -> list[np.ndarray]:
    oracle = backend.get("reference")
    device = oracle.devices()[0]
    found = oracle.compile(program, backend.CompileOptions())([oracle.put(x, device) for x in arrays])
    return [np.array(oracle.get(b, t)) for b, t in zip(found, program.out_types, strict=True)]


@pytest.mark.parametrize(("op", "case", "dtype", "operands"), applications())
def test_terms_of_operands_give_terms_of_results(
    op: Primitive, case: Case, dtype: np.dtype, operands: frozenset[int], rng: np.random.Generator
) -> None:
    drawn = [np.nan_to_num(x, posinf=2, neginf=-2) for x in case.draw(dtype, rng)]
    arrays = [np.where(x == 0, 1, x).astype(x.dtype) if dtypes.is_inexact(x.dtype) else x for x in drawn]
    program = equation_of(op, case, arrays)
    if any(not dtypes.is_inexact(arrays[i].dtype) and arrays[i].dtype != dtypes.int32 for i in operands):
        pytest.skip("booleans are no terms of sums")

    def term(x: np.ndarray) -> np.ndarray:
        return np.asarray(rng.uniform(-4, 4, x.shape)).astype(x.dtype)

    first = [term(x) if i in operands else x for i, x in enumerate(arrays)]
    second = [term(x) if i in operands else x for i, x in enumerate(arrays)]
    total = [a + b if i in operands else a for i, (a, b) in enumerate(zip(first, second, strict=True))]
    for a, b, c in zip(*(run(program, given) for given in (first, second, total)), strict=True):
        np.testing.assert_allclose(a + b, c, rtol=1e-4, atol=1e-4)


def test_what_rounds_each_term_is_not_linear() -> None:
    wide, narrow = ir.ArrayType((3,), dtypes.float32), ir.ArrayType((3,), dtypes.bfloat16)
    whole = ir.ArrayType((3,), dtypes.int32)
    attrs = ir.Attrs({})
    convert = lambda a, b: places.linear_of(e.convert_element_type_p, (a,), (b,), attrs)  # noqa: E731
    assert convert(narrow, wide) == places.alone(0)
    assert convert(wide, narrow) == convert(wide, whole) == convert(whole, wide) == ()
    assert places.linear_of(e.div_p, (whole, whole), (whole,), attrs) == ()
    assert places.linear_of(primitive.by_name("reduce_precision"), (wide,), (wide,), attrs) == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("add", places.together(0, 1)),
        ("mul", places.alone(0, 1)),
        ("dot", places.alone(0, 1)),
        ("neg", places.alone(0)),
        ("select_n", places.together(1, 2)),
        ("scatter_add", places.together(0, 2)),
        ("exp", ()),
        ("sort", ()),
    ],
)
def test_operands_in_which_an_operation_is_linear(name: str, expected: places.Linear) -> None:
    op = primitive.by_name(name)
    case = op.rule(primitive.CASES).examples(dtypes.float32)[0]
    assert linear(op, case, case.draw(dtypes.float32, np.random.default_rng(0))) == expected
