"""Names of positions and masks are defined before anything uses them."""

from __future__ import annotations

import ast

import numpy as np

from infini.compiler.triton import emit, interpret, matmul
from infini.core import dtypes
from infini.core.ir import ArrayType


def test_a_mask_that_stands_in_another_mask_is_defined_before_it(rng: np.random.Generator) -> None:
    x, y = ArrayType((2, 4, 4), dtypes.float32), ArrayType((4, 8), dtypes.float32)
    kernel = matmul.matmul_kernel(x, y, "bmk,kn->bmn", dtypes.float32)
    source = emit.emit_triton(kernel, (x, y), name="matmul")
    assert "in_rows = rows < 4" in source.text and "inside = in_rows & (columns < 8)" in source.text
    (function,) = (n for n in ast.parse(source.text).body if isinstance(n, ast.FunctionDef))
    known = {a.arg for a in function.args.args} | {"tl"}
    for statement in function.body:
        names = [n for n in ast.walk(statement) if isinstance(n, ast.Name)]
        assert {n.id for n in names if isinstance(n.ctx, ast.Load)} <= known, ast.unparse(statement)
        known |= {n.id for n in names if isinstance(n.ctx, ast.Store)}
    arrays = [rng.standard_normal(t.shape).astype(np.float32) for t in (x, y)]
    (found,) = interpret.interpret(source, arrays, kernel.outputs)
    np.testing.assert_allclose(found, arrays[0] @ arrays[1], rtol=1e-5)
