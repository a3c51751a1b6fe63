"""Kernels in the text form of programs: what is printed is readable, and parses back to an equal kernel."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.compiler import pipeline
from infini.core import dtypes, errors, frames, ir, primitive, text
from infini.core.ir import ArrayType
from infini.tile.program import Access, Kernel, kernel_p

X = np.ones((6, 10), np.float32)

FUNCTIONS = {
    "softmax": lambda x: inp.exp(x) / inp.exp(x).sum(-1, keepdims=True),
    "columns": lambda x: (x - x.mean(0)).sum(0),
    "shifted": lambda x: inp.pad(x, 1)[:-2, 2:] * 2 + x[::-1],
    "positions": lambda x: x.argmax(-1) + inp.arange(6),
    "scan": lambda x: lax.scan(lambda c, r: (c + inp.tanh(r), c * r), inp.zeros(10), x),
    "integers": lambda x: (x > 0).astype(inp.int32) << 2,
    "complex": lambda x: (x * 1j) * (x + 2j),
    "tail": lambda x: inp.sin(inp.concatenate([x.reshape(-1)] * 200)[:-7]),
}


def kernel_of(kernel: Kernel) -> ir.Program:
    """A program with one kernel over arrays that fit it."""
    shapes = [tuple(64 for _ in access.offsets) for access in kernel.loads]
    types = [ArrayType(shape, v.type.dtype) for shape, v in zip(shapes, kernel.body.params, strict=False)] + [
        ArrayType((), dtypes.int32)
    ] * len({operand for *_, operand in kernel.extents})
    return ir.single_equation(kernel_p, types, ir.Attrs({"kernel": kernel}))


def scaled(tiles: list[ArrayType], grid_rank: int) -> ir.Program:
    """A body that gives its tiles times two."""
    builder = ir.Builder()
    params = [ir.Var(t) for t in tiles] + [ir.Var(ArrayType((), dtypes.int32)) for _ in range(grid_rank)]
    results = [builder.emit1(primitive.by_name("add"), [v, v]) for v in params[: len(tiles)]]
    return builder.build(params, results, name="scaled")


def one(load: Access, store: Access, grid: tuple[int, ...], rank: int, **fields: object) -> Kernel:
    tile = ArrayType(load.tile, dtypes.float32)
    outputs = (ArrayType((64,) * rank, dtypes.float32),)
    return Kernel(grid, (load,), (store,), outputs, scaled([tile], len(grid)), name="scaled", **fields)


PLAIN = Access((8,), ((8,),), ((1,),), (0,))
KERNELS = {
    "plain": one(PLAIN, PLAIN, (8,), 1),
    "backwards": one(Access((8,), ((-8,),), ((-1,),), (63,)), PLAIN, (8,), 1),
    "filled": one(
        Access((8,), ((8,),), ((1,),), (-3,), -1.5), Access((8,), ((8,),), ((1,),), (0,), 0), (8,), 1
    ),
    "filled with nan": one(Access((8,), ((8,),), ((1,),), (2,), float("nan")), PLAIN, (8,), 1),
    "store with a value": one(PLAIN, Access((8,), ((8,),), ((1,),), (1,), 2.5), (8,), 1),
    "two dimensions": one(
        Access((4, 8), ((4, 0), (0, 8)), ((1, 0), (0, 2)), (1, -1), 0),
        Access((4, 8), ((4, 0), (0, 8)), ((1, 0), (0, 1)), (0, 0)),
        (2, 4), 2,
    ),
    "single elements": one(Access((), ((3,),), ((),), (1,)), Access((), ((1,),), ((),), (0,)), (8,), 1),
    "nothing moves": one(Access((8,), ((0,),), ((1,),), (0,)), Access((8,), ((8,),), ((0,),), (5,)), (8,), 1),
    "walked": one(
        Access((2, 8), ((8,),), ((16, 1),), (0,), None, 1), Access((2, 8), ((8,),), ((16, 1),), (0,)), (8,), 1
    ),
    "extent": one(PLAIN, PLAIN, (8,), 1, extents=((0, 8, 1),)),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_fused_programs_parse_back(name: str) -> None:
    program = inf.make_jaxpr(FUNCTIONS[name])(X)
    *_, (_, fused) = pipeline.trace_passes(program)
    printed = text.print_program(fused)
    assert "\nkernel @" in printed and "Kernel(" not in printed
    again = text.parse(printed)
    assert again == fused and text.print_program(again) == printed


@pytest.mark.parametrize("name", KERNELS)
def test_every_form_of_access_parses_back(name: str) -> None:
    program = kernel_of(KERNELS[name])
    printed = text.print_program(program)
    assert "\nkernel @scaled(" in printed
    again = text.parse(printed)
    assert again == program and text.print_program(again) == printed
    assert again.equations[0].attrs["kernel"].name == "scaled"


def test_lines_say_where_tiles_lie() -> None:
    printed = text.print_program(kernel_of(KERNELS["two dimensions"])).splitlines()
    assert "  grid (%1 < 2, %2 < 4)" in printed
    assert "  load %0[i0, i1] = in0[4*%1 + i0 + 1, 8*%2 + 2*i1 - 1] else 0" in printed
    assert "  store out0[4*%1 + i0, 8*%2 + i1] = %3[i0, i1]" in printed


def test_equal_kernels_are_printed_once_and_others_get_numbers() -> None:
    builder = ir.Builder()
    x = y = ir.Var(ArrayType((64,), dtypes.float32))
    for kernel in (KERNELS["plain"], KERNELS["backwards"], KERNELS["plain"]):
        y = builder.emit1(kernel_p, [y], kernel=kernel)
    printed = text.print_program(builder.build([x], [y]))
    assert printed.count("\nkernel @") == 2 and "kernel=@scaled_1}" in printed
    assert text.parse(printed) == text.parse(text.print_program(text.parse(printed)))


def test_a_kernel_whose_body_takes_other_tiles_prints_by_field() -> None:
    kernel = dataclasses.replace(KERNELS["plain"], body=scaled([ArrayType((9,), dtypes.float32)], 1))
    assert frames.style_of(kernel) is None
    assert "body=@" in text.attribute_text(kernel) or "body=" in text.attribute_text(kernel)


def test_the_form_by_field_is_still_read() -> None:
    program = kernel_of(KERNELS["filled"])
    (section, body) = text.sections(program)
    fields = text.attribute_text(KERNELS["filled"]).replace(KERNELS["filled"].body.fingerprint, "scaled")
    main = "\n".join(section.lines).replace("kernel=@scaled", f"kernel={fields}")
    printed = f"{main}\n\n{text.print_program(KERNELS['filled'].body)}"
    assert body.keyword == "kernel" and text.parse(printed) == program


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("in0[8*%1 + i0]", "in0[8*%7 + i0]", "%7 is no number of a program"),
        ("in0[8*%1 + i0]", "in0[8*%1 + i3]", "i3 is beyond the 1 dimensions"),
        ("load %0[i0] = in0", "load %0[i0] = in2", "stand in order"),
        ("load %0[i0] = in0[", "load %0[i0] from in0[", "is not a line of a kernel"),
        ("= %2[i0]", "= %9[i0]", "%9 is used before it is defined"),
    ],
)
def test_a_fault_names_the_kernel_and_its_line(old: str, new: str, message: str) -> None:
    printed = text.print_program(kernel_of(KERNELS["plain"]))
    with pytest.raises(errors.ParseError, match="kernel @scaled") as caught:
        text.parse(printed.replace(old, new))
    assert message in str(caught.value)


def test_equations_of_kernels_keep_the_users_lines() -> None:
    *_, (_, fused) = pipeline.trace_passes(inf.make_jaxpr(FUNCTIONS["softmax"])(X))
    (kernel,) = [e.attrs["kernel"] for e in fused.equations if e.op is kernel_p]
    lines = [e.where.file for e in kernel.body.equations if e.op.name in ("exp", "div", "reduce_sum")]
    assert len(lines) == 3 and set(lines) == {__file__}
