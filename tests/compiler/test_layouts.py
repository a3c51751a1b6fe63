"""Programs over memory that is not row-major, and the passes that read panels in place."""

from __future__ import annotations

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini.compiler import pipeline
from infini.compiler.llvm import layouts as llvm_layouts, lower, target as target_
from infini.compiler.passes import panels
from infini.core import check, interpret, ir, layout as layout_, physical
from infini.core.layout import Layout

CASES = [
    ((5, 7), Layout((1, 0))),
    ((5, 7), Layout((0, 1), ((2, 3),))),
    ((6, 8), Layout((1, 0), ((4, 2),))),
    ((5, 7), Layout((0, 1), ((8, 3),))),
    ((2, 3, 4), Layout((2, 0, 1))),
    ((2, 5, 7), Layout((0, 2, 1), ((4, 4),))),
    ((3, 4), Layout((1, 0), ((3,),))),
    ((0, 4), Layout((1, 0))),
    ((), Layout(())),
]
TARGET = target_.host_target()


@pytest.mark.parametrize("shape, layout", CASES, ids=str)
def test_packing_and_views_undo_each_other(shape: tuple[int, ...], layout: Layout):
    x = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    type_ = ir.ArrayType(shape, x.dtype)
    (memory,) = interpret.evaluate(physical.packing(type_, layout), [x])
    assert memory.shape == layout_.physical_type(layout, type_).shape
    np.testing.assert_array_equal(layout_.logical_host(layout, shape, memory), x)
    identity = ir.Builder()
    param = ir.Var(type_)
    program = physical.with_layouts(identity.build([param], [param]), [layout])
    check.check(program)
    np.testing.assert_array_equal(interpret.evaluate(program, [memory])[0], x)


def test_one_tile_stores_blocks_row_by_row():
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    (memory,) = interpret.evaluate(
        physical.packing(ir.ArrayType(x.shape, x.dtype), Layout((0, 1), ((2, 3),))), [x]
    )
    np.testing.assert_array_equal(memory, x.reshape(2, 2, 2, 3).transpose(0, 2, 1, 3))


def program(f, *shapes: tuple[int, ...]) -> ir.Program:
    return inf.make_jaxpr(f)(*(inf.ShapeDtypeStruct(s, inp.float32) for s in shapes))


def reads(equation: ir.Equation) -> bool:
    return lower.reads_panels(equation, TARGET)


def names(f, layouts, *shapes: tuple[int, ...]) -> list[str]:
    """Operations of the fused program of a function of parameters in layouts."""
    laid_out = physical.with_layouts(program(f, *shapes), layouts)
    fused = pipeline.run(laid_out, lower.has_route, backend="cpu", reads_panels=reads)
    check.check(fused)
    return [e.op.name for e in fused.equations]


WIDTH = 2 * TARGET.lanes


def test_a_product_of_panels_reads_them_in_place():
    assert names(lambda x, w: x @ w, [None, Layout((0, 1), ((30, WIDTH),))], (8, 30), (30, 50)) == [
        "packed_dot"
    ]


def test_a_transposed_product_reads_panels_of_the_transpose():
    layouts = [None, Layout((1, 0), ((30, WIDTH),))]
    assert names(lambda x, w: x @ w.T, layouts, (8, 30), (50, 30)) == ["packed_dot"]


@pytest.mark.parametrize(
    "layout",
    [
        Layout((0, 1), ((30, WIDTH // 2),)),  # other columns than a register block
        Layout((0, 1), ((10, WIDTH),)),  # fewer rows than are summed at once
        Layout((1, 0), ((30, WIDTH),)),  # panels of the transpose
    ],
    ids=str,
)
def test_other_tiles_are_views(layout: Layout):
    found = names(lambda x, w: x @ w, [None, layout], (8, 30), (30, 50))
    assert "packed_dot" not in found
    assert "from_panels" not in found
    assert "dot" in found


def test_a_second_reader_gets_the_views_and_the_product_its_panels():
    layouts = [None, Layout((0, 1), ((30, WIDTH),))]
    found = names(lambda x, w: (x @ w, inp.tanh(w)), layouts, (8, 30), (30, 50))
    assert "packed_dot" in found
    assert "kernel" in found
    assert "dot" not in found


def test_results_of_the_passes_are_those_of_the_definitions():
    layouts = [None, Layout((1, 0), ((4, 3),))]
    laid_out = physical.with_layouts(program(lambda x, w: x @ w.T, (8, 30), (50, 30)), layouts)
    kept = panels.keep(laid_out)
    joined = panels.products(kept, lambda equation: True)
    x, w = (np.random.default_rng(0).standard_normal(s).astype(np.float32) for s in ((8, 30), (50, 30)))
    assert layouts[1] is not None
    (memory,) = interpret.evaluate(physical.packing(ir.ArrayType(w.shape, w.dtype), layouts[1]), [w])
    for changed in (laid_out, kept, joined, panels.products(kept, lambda equation: False)):
        check.check(changed)
        np.testing.assert_allclose(interpret.evaluate(changed, [x, memory])[0], x @ w.T, rtol=1e-5, atol=1e-5)


def preferred(f, *shapes: tuple[int, ...]) -> tuple[Layout | None, ...]:
    found = program(f, *shapes)
    for step in pipeline.canonical_passes(lower.has_route, backend="cpu"):
        found = step.run(found)
    return llvm_layouts.preferred(found, TARGET)


PREFERENCES = {
    "one row": (lambda x, w: x @ w, (1, 300), (300, 520), None),
    "small": (lambda x, w: x @ w, (8, 30), (30, 50), None),
    "few rows, large": (lambda x, w: x @ w, (8, 2048), (2048, 1024), None),
    "left operand": (lambda x, w: w @ x, (300, 523), (256, 300), None),
    "looked up": (lambda x, w: w[x.astype(inp.int32)], (8,), (300, 50), None),
    "result": (lambda x, w: (x @ w, w), (128, 300), (300, 520), None),
    "transposed": (lambda x, w: x + w.T, (30, 50), (50, 30), Layout((1, 0), ())),
    "twice": (
        lambda x, w: inp.tanh(x @ w) @ w, (128, 300), (300, 300), Layout((0, 1), ((300, WIDTH),)),
    ),
    "forward and transposed": (lambda x, w: inp.tanh(x @ w) @ w.T, (128, 300), (300, 300), None),
}  # fmt: skip


@pytest.mark.parametrize("name", PREFERENCES)
def test_preferred_layout(name: str):
    f, x, w, expected = PREFERENCES[name]
    assert preferred(f, x, w)[1] == expected
