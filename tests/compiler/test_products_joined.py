"""Products with the kernels behind them: the bits of both apart, and how many phases there are."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import lax, nn, random
from infini.backends.cpu import compiling
from infini.backends.cpu.executable import CpuExecutable
from infini.compiler.llvm import products
from infini.compiler.llvm.target import host_target
from infini.compiler.steps import Group, Phase
from infini.core import dtypes, physical
from infini.core.backend import CompileOptions
from infini.core.ir import ArrayType, Program
from infini.core.layout import Layout
from infini.core.memory import HostBuffer
from tests.compiler.programs import evaluate, f32, inputs_for, program_of


def bf16(*shape: int) -> ArrayType:
    return ArrayType(shape, dtypes.bfloat16)


def compiled(program: Program, donated: tuple[int, ...] = ()) -> CpuExecutable:
    """The executable, from no cache."""
    return compiling.compiled(program, CompileOptions(donated=donated), host_target(), None)


@functools.cache
def case(name: str) -> CpuExecutable:
    """The executable of a case."""
    f, types = CASES[name]
    return compiled(program_of(f, *types))


def run(executable: CpuExecutable, inputs: list[np.ndarray]) -> list[np.ndarray]:
    types = [v.type for v in executable.source.results]
    buffers = executable([HostBuffer.copy_of(x) for x in inputs])
    return [b.view(t.shape, t.dtype).copy() for b, t in zip(buffers, types, strict=True)]


def joined(executable: CpuExecutable) -> list[Phase]:
    """The phases that compute several equations."""
    steps = executable.block.steps
    phases = [p for s in steps for p in (s.phases if isinstance(s, Group) else [s])]
    return [p for p in phases if isinstance(p, Phase) and p.parts]


def apart(program: Program, monkeypatch: pytest.MonkeyPatch) -> CpuExecutable:
    """The executable with a phase for every equation."""
    with monkeypatch.context() as patch:
        patch.setattr(products, "phases", lambda *_: {})
        return compiled(program)


# --- values ---------------------------------------------------------------------------------------


def gelu(x):
    return nn.gelu(x)


def rms_norm(x):
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def layer_norm(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred * lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)


def product_of_the_other(x):
    y = x @ x.T
    return inp.tanh(y) * (y @ y.T), y


def swiglu(x, gate, up):
    return lax.logistic(x @ gate) * (x @ gate) * (x @ up)


def halves(x, w):
    first, second = inp.split(x @ w, 2, -1)
    return nn.silu(first) * second


def cell(x, w, b, memory):
    i, f, g, o = inp.split(x @ w.T + b, 4, -1)
    memory = nn.sigmoid(f) * memory + nn.sigmoid(i) * inp.tanh(g)
    return nn.sigmoid(o) * inp.tanh(memory), memory


def rotated(x, w, cos):
    y = (x @ w).reshape(-1, 4, 32)
    first, second = y[..., :16], y[..., 16:]
    return inp.concatenate([first * cos - second, second * cos + first], -1)


def two_readers(x, w, b):
    y = x @ w
    return inp.exp(y * 0.1), rms_norm(y + b), y.sum(0)


def normed_residual(x, w, r):
    y = r + x @ w
    return y, rms_norm(y)


def with_gradient(x, w, b):
    def loss(x, w, b):
        return (gelu(x @ w + b) ** 2).sum()

    value, found = infini.value_and_grad(loss, (0, 1, 2))(x, w, b)
    return value, *found


CASES: dict[str, tuple[Callable, list[ArrayType]]] = {
    "bias and gelu": (lambda x, w, b: gelu(x @ w + b), [f32(200, 70), f32(70, 130), f32(130)]),
    "one block": (lambda x, w, b: gelu(x @ w + b), [f32(12, 16), f32(16, 32), f32(32)]),
    "odd sizes": (lambda x, w, b: inp.tanh(x @ w + b), [f32(131, 37), f32(37, 71), f32(71)]),
    "several depth blocks": (lambda x, w, b: gelu(x @ w + b), [f32(301, 530), f32(530, 571), f32(571)]),
    "few rows, wide": (lambda x, w, b: gelu(x @ w + b), [f32(13, 300), f32(300, 1100), f32(1100)]),
    "one row": (lambda x, w, b: gelu(x @ w + b), [f32(1, 300), f32(300, 200), f32(200)]),
    "one column": (lambda x, w, b: gelu(x @ w + b), [f32(200, 300), f32(300, 1), f32(1)]),
    "empty": (lambda x, w, b: gelu(x @ w + b), [f32(0, 30), f32(30, 20), f32(20)]),
    "nothing contracted": (lambda x, w, b: gelu(x @ w + b), [f32(40, 0), f32(0, 20), f32(20)]),
    "value per row": (lambda x, w, s: (x @ w) * s, [f32(150, 64), f32(64, 96), f32(150, 1)]),
    "mask": (lambda x, w, m: inp.where(m > 0, x @ w, -1e9), [f32(150, 64), f32(64, 96), f32(150, 96)]),
    "scale and sign": (lambda x, w: inp.maximum(x @ w, 0.0) * 2, [f32(100, 60), f32(60, 100)]),
    "residual": (lambda x, w, r: r + x @ w, [f32(4, 128, 256), f32(256, 256), f32(4, 128, 256)]),
    "residual is the operand": (lambda x, w: x + x @ w, [f32(256, 128), f32(128, 128)]),
    "batch": (lambda x, y: gelu(x @ y), [f32(6, 50, 40), f32(6, 40, 60)]),
    "large batch": (lambda x, y: gelu(x @ y), [f32(3, 140, 270), f32(3, 270, 160)]),
    "batch with bias": (lambda x, y, b: x @ y + b, [f32(6, 50, 40), f32(6, 40, 60), f32(6, 1, 60)]),
    "heads": (
        lambda x, y: inp.exp(inp.einsum("bqhd,bkhd->bhqk", x, y) * 0.1),
        [f32(2, 70, 3, 32), f32(2, 90, 3, 32)],
    ),
    "heads in rows": (
        lambda x, y, r: inp.einsum("bhqk,bkhd->bqhd", x, y) + r,
        [f32(2, 3, 70, 90), f32(2, 90, 3, 32), f32(2, 70, 3, 32)],
    ),
    "left transposed": (lambda x, y: gelu(x.T @ y), [f32(90, 150), f32(90, 130)]),
    "right transposed": (lambda x, y: gelu(x @ y.T), [f32(150, 90), f32(130, 90)]),
    "result transposed": (
        lambda x, y, b: gelu(inp.einsum("mk,kn->nm", x, y) + b), [f32(150, 90), f32(90, 130), f32(150)],
    ),
    "kernel across": (lambda x, y, r: (x @ y).T * r, [f32(150, 90), f32(90, 130), f32(130, 150)]),
    "bfloat16": (lambda x, w, b: gelu(x @ w + b), [bf16(150, 300), bf16(300, 130), bf16(130)]),
    "float32 of bfloat16": (
        lambda x, w: gelu(lax.dot(x, w, preferred_element_type=dtypes.float32)).astype(dtypes.bfloat16),
        [bf16(150, 300), bf16(300, 130)],
    ),
    "row norm": (lambda x, w: rms_norm(x @ w), [f32(200, 90), f32(90, 160)]),
    "row norm of a wide row": (lambda x, w: layer_norm(x @ w), [f32(300, 256), f32(256, 768)]),
    "softmax": (lambda x, w: nn.softmax(x @ w), [f32(200, 90), f32(90, 161)]),
    "residual and norm": (normed_residual, [f32(256, 200), f32(200, 192), f32(256, 192)]),
    "norm of heads": (lambda x, w: rms_norm((x @ w).reshape(-1, 4, 32)), [f32(90, 64), f32(64, 128)]),
    "rotation of heads": (rotated, [f32(90, 64), f32(64, 128), f32(90, 1, 16)]),
    "two readers": (two_readers, [f32(150, 80), f32(80, 100), f32(100)]),
    "also a result": (lambda x, w: (x @ w, inp.tanh(x @ w)), [f32(150, 80), f32(80, 100)]),
    "two outputs": (lambda x, w, b: ((x @ w) + b, gelu(x @ w + b)), [f32(150, 80), f32(80, 100), f32(100)]),
    "gate": (swiglu, [f32(200, 96), f32(96, 136), f32(96, 136)]),
    "gate of many columns": (swiglu, [f32(512, 300), f32(300, 1400), f32(300, 1400)]),
    "gate of few rows": (swiglu, [f32(16, 300), f32(300, 1400), f32(300, 1400)]),
    "gate of one block": (swiglu, [f32(16, 20), f32(20, 40), f32(20, 40)]),
    "halves of few columns": (halves, [f32(96, 100), f32(100, 256)]),
    "halves of many columns": (halves, [f32(96, 300), f32(300, 1024)]),
    "halves of a batch": (halves, [f32(3, 40, 300), f32(300, 1024)]),
    "halves of many rows": (halves, [f32(600, 530), f32(530, 1408)]),
    "halves of no whole panel": (halves, [f32(96, 300), f32(300, 1000)]),
    "halves, left transposed": (lambda x, w: halves(x.T, w), [f32(300, 96), f32(300, 1024)]),
    "halves of bfloat16": (halves, [bf16(96, 300), bf16(300, 1024)]),
    "recurrent cell": (cell, [f32(32, 256), f32(1024, 256), f32(1024), f32(32, 256)]),
    "recurrent cell of few rows": (cell, [f32(5, 300), f32(1024, 300), f32(1024), f32(5, 256)]),
    "products of other depth": (
        lambda x, w, y, v: (x @ w) * inp.tanh(y @ v),
        [f32(150, 80), f32(80, 100), f32(150, 30), f32(30, 100)],
    ),
    "chain": (
        lambda x, w, v, r: r + gelu(rms_norm(x) @ w) @ v,
        [f32(150, 80), f32(80, 320), f32(320, 80), f32(150, 80)],
    ),
    "product of the other": (lambda x: (x @ x.T) + (x @ x.T) @ (x @ x.T).T, [f32(96, 96)]),
    "product of the other, flat": (lambda x: (x @ x.T) + (x @ x.T) @ (x @ x.T).T, [f32(4, 1)]),
    "product of the other, kept": (product_of_the_other, [f32(150, 150)]),
    "gradient": (with_gradient, [f32(150, 80), f32(80, 100), f32(100)]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bits_are_those_of_the_equations_apart(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    executable = case(name)
    program = executable.source
    inputs = inputs_for(program.in_types)
    expected = run(apart(program, monkeypatch), inputs)
    for count in (1, 2):
        with infini.config(num_threads=count):
            found = run(executable, inputs)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_numpy(name: str) -> None:
    program = case(name).source
    inputs = inputs_for(program.in_types)
    tolerance = 4e-2 if any(x.dtype == dtypes.bfloat16 for x in inputs) else 1e-4
    for a, b in zip(run(case(name), inputs), evaluate(program, inputs), strict=True):
        a, b = a.astype(np.float64), b.astype(np.float64)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, np.abs(b).max(initial=0)))


def test_a_product_of_a_loop_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    def f(x, ws):
        return lax.scan(lambda c, w: (gelu(c @ w), c.sum()), x, ws)

    program = program_of(f, f32(40, 64), f32(5, 64, 64))
    inputs = inputs_for(program.in_types)
    together, alone = compiled(program), apart(program, monkeypatch)
    assert together.cost_analysis()["kernels"] == alone.cost_analysis()["kernels"] - 5
    for a, b in zip(run(together, inputs), run(alone, inputs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_donated_operand_is_updated_behind_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    program = program_of(lambda w, x, g: w - 0.1 * (x.T @ g), f32(96, 130), f32(70, 96), f32(70, 130))
    inputs = inputs_for(program.in_types)
    executable = compiled(program, donated=(0,))
    assert len(joined(executable)) == 1
    assert executable.plan.donated == {0} and executable.image.copied_bytes == 0
    (expected,) = run(apart(program, monkeypatch), inputs)
    np.testing.assert_array_equal(run(executable, inputs)[0], expected)


def test_an_operand_that_a_kernel_can_replace_is_donated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The product reads it too, so the kernel comes after all of the product."""
    program = program_of(lambda x, w: (x + x @ w, w.sum()), f32(128, 128), f32(128, 128))
    inputs = inputs_for(program.in_types)
    (expected, _) = run(apart(program, monkeypatch), inputs)
    assert len(joined(compiled(program))) == 1
    executable = compiled(program, donated=(0,))
    assert not joined(executable) and executable.plan.donated == {0}
    np.testing.assert_array_equal(run(executable, inputs)[0], expected)


def test_the_carry_of_a_loop_is_replaced_in_place() -> None:
    program = program_of(
        lambda h, w: lax.fori_loop(0, 9, lambda i, h: h + inp.tanh(h @ w), h), f32(64, 256), f32(256, 256)
    )
    assert compiled(program).image.copied_bytes <= 64 * 256 * 4 + 64  # of the operand and the counter, once


def test_weights_in_panels_are_read_in_windows() -> None:
    layout = Layout((0, 1), ((300, 2 * host_target().lanes),))
    types = [f32(96, 300), f32(300, 1024)]
    program = program_of(halves, *types)
    x, w = inputs_for(types)
    (memory,) = evaluate(physical.packing(types[1], layout), [w])
    executable = compiled(physical.with_layouts(program, [None, layout]))
    assert [e.op.name for e in joined(executable)[0].parts] == ["packed_dot", "kernel"]
    np.testing.assert_array_equal(run(executable, [x, memory])[0], run(compiled(program), [x, w])[0])


def test_tasks_of_windows_pack_their_own_columns() -> None:
    """Tiles of whole rows would need all columns, which another phase would pack into an array."""
    executable = case("halves of many columns")
    (phase,) = joined(executable)
    assert len(phase.tasks) == 1 and phase.tasks[0].num_tasks >= 4 and executable.plan.nbytes == 0


def test_weights_in_panels_are_joined() -> None:
    layout = Layout((0, 1), ((64, 2 * host_target().lanes),))
    types = [f32(100, 64), f32(64, 200), f32(200)]
    program = program_of(lambda x, w, b: gelu(x @ w + b), *types)
    x, w, b = inputs_for(types)
    (memory,) = evaluate(physical.packing(types[1], layout), [w])
    executable = compiled(physical.with_layouts(program, [None, layout, None]))
    assert [e.op.name for e in joined(executable)[0].parts] == ["packed_dot", "kernel"]
    np.testing.assert_array_equal(run(executable, [x, memory, b])[0], run(compiled(program), [x, w, b])[0])


# --- how many there are -----------------------------------------------------------------------------


def working(executable: CpuExecutable) -> int:
    """Phases and groups, what they pack not counted apart."""
    return sum(isinstance(step, (Group, Phase)) for step in executable.block.steps)


def module(layer: nn.Module, *shape: int) -> CpuExecutable:
    compiled = infini.jit(lambda layer, x: layer(x)).lower(layer, inp.ones(shape)).compile()
    assert isinstance(compiled.executable, CpuExecutable)
    return compiled.executable


def test_a_block_of_llama_is_few_phases() -> None:
    executable = module(nn.TransformerBlock(256, 680, 4, key=random.key(0)), 2, 128, 256)
    assert working(executable) <= 9


def test_a_feed_forward_layer_is_two_kernels() -> None:
    counts = module(nn.MLP(256, 1024, key=random.key(0)), 2, 64, 256).cost_analysis()
    assert counts["kernels"] == 2 and counts["phases"] <= 4


def test_a_gate_is_one_kernel_without_arrays_for_its_products() -> None:
    executable = module(nn.SwiGLU(256, 680, key=random.key(0)), 512, 256)
    counts = executable.cost_analysis()
    assert counts["kernels"] == 2
    packed = 3 * 256 * 704 * 4
    assert executable.plan.nbytes <= packed + 512 * 680 * 4


@pytest.mark.parametrize("name, kernels", [
    ("bias and gelu", 1), ("residual", 1), ("mask", 1), ("row norm", 1), ("softmax", 1), ("heads", 1),
    ("residual and norm", 1), ("norm of heads", 1), ("rotation of heads", 1), ("gate", 1), ("two readers", 3),
    ("also a result", 1), ("large batch", 1), ("result transposed", 1),
    ("halves of few columns", 1), ("halves of many columns", 1), ("halves of a batch", 1),
    ("halves of many rows", 1), ("recurrent cell", 1),
    ("float32 of bfloat16", 1), ("products of other depth", 2), ("few rows, wide", 1),
])  # fmt: skip
def test_kernels_of(name: str, kernels: int) -> None:
    assert case(name).cost_analysis()["kernels"] == kernels


def test_what_stays_in_the_cache_is_not_accessed() -> None:
    counts = case("bias and gelu").cost_analysis()
    assert counts["bytes accessed"] == 4 * (200 * 70 + 70 * 130 + 130 + 200 * 130)
    assert counts["flops"] > 2 * 200 * 70 * 130 and counts["transcendentals"] == 200 * 130


def test_a_phase_is_called_after_all_it_does() -> None:
    (phase,) = joined(case("gate"))
    assert phase.name == "2 x dot mk,kn->mn + logistic_mul"
    assert [e.op.name for e in phase.parts] == ["dot", "dot", "kernel"]


def test_nothing_is_joined_without_fusion() -> None:
    f, types = CASES["bias and gelu"]
    with infini.config(no_fuse=True):
        assert not joined(compiled(program_of(f, *types)))


def test_a_row_that_does_not_fit_a_tile_is_normalised_apart() -> None:
    program = program_of(lambda x, w: rms_norm(x @ w), f32(300, 300), f32(300, 2048))
    assert compiled(program).cost_analysis()["kernels"] == 2


def test_a_kernel_for_many_threads_is_not_left_to_one() -> None:
    program = program_of(lambda x, w: gelu(gelu(gelu(x @ w))), f32(4096, 4), f32(4, 32))
    assert compiled(program).cost_analysis()["kernels"] == 2


def test_independent_products_are_one_phase_per_stage() -> None:
    program = program_of(lambda x, a, b, c: (x @ a, x @ b, x @ c), f32(256, 256), *[f32(256, 256)] * 3)
    executable = compiled(program)
    (group,) = executable.block.steps
    assert isinstance(group, Group) and executable.cost_analysis()["phases"] <= 2
    inputs = inputs_for(program.in_types)
    for a, b in zip(run(executable, inputs), evaluate(program, inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_arrays_from_far_are_walked_apart() -> None:
    def f(g, w, a, b):
        z = g @ w
        return z * a, z * b

    wide = [f32(1024, 64), f32(64, 768), f32(1024, 768), f32(1024, 768)]
    assert not joined(compiled(program_of(f, *wide)))


def test_products_that_would_pack_much_at_once_are_computed_one_by_one() -> None:
    program = program_of(swiglu, bf16(300, 1024), bf16(1024, 1400), bf16(1024, 1400))
    (phase,) = joined(compiled(program))
    assert [e.op.name for e in phase.parts] == ["dot", "kernel"]
