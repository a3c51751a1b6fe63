"""Attention reads queries, keys and values where they lie in a larger array, and gives what it gives for
copies of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import lax, nn
from infini.compiler import cost, pipeline
from infini.compiler.llvm import lower
from infini.compiler.passes import attention_views
from infini.core.ir import ArrayType, Program
from tests.compiler import programs
from tests.compiler.programs import evaluate, f32, program_of

LIMIT = 2e-5


def inputs_for(types: Sequence[ArrayType]) -> list[np.ndarray]:
    """Small numbers: differences of large scores are weights' exponents."""
    return [x / 4 for x in programs.inputs_for(types)]


def attend(q: Any, k: Any, v: Any) -> Any:
    """Causal attention of (B, H, T, D)."""
    scores = q @ k.swapaxes(-1, -2) * (q.shape[-1] ** -0.5)
    seen = inp.tril(inp.ones(scores.shape[-2:], bool))
    return nn.softmax(inp.where(seen, scores, -inp.inf), -1) @ v


def heads(x: Any, count: int) -> Any:
    """(B, T, H * D) as (B, H, T, D)."""
    return x.reshape(*x.shape[:-1], count, -1).swapaxes(-2, -3)


def of_one_product(x: Any, w: Any) -> Any:
    return attend(*(heads(part, 4) for part in inp.split(x @ w, 3, -1)))


def with_bias(x: Any, w: Any) -> Any:
    return attend(*(heads(part, 4) for part in inp.split(x @ w + w[0], 3, -1)))


def shared_keys(x: Any, w: Any) -> Any:
    y = x @ w  # 4 heads of queries, 2 of keys and of values
    q, k, v = heads(y[..., :32], 4), heads(y[..., 32:48], 2), heads(y[..., 48:64], 2)
    return attend(q, inp.repeat(k, 2, 1), inp.repeat(v, 2, 1))


def by_head(x: Any, w: Any) -> Any:
    y = (x @ w).reshape(*x.shape[:-1], 4, 3, -1)  # queries, keys and values of a head side by side
    return attend(*(y[..., i, :].swapaxes(-2, -3) for i in range(3)))


def some_positions(x: Any, w: Any) -> Any:
    q, k, v = (heads(part, 4) for part in inp.split(x @ w, 3, -1))
    return attend(q, k[:, :, 3:], v[:, :, 3:]) if x.shape[1] < 12 else attend(q, k, v)[:, :, 2:9]


def every_second(x: Any, w: Any) -> Any:
    q, k, v = (heads(part, 4) for part in inp.split(x @ w, 3, -1))
    return attend(q[:, :, 1::2], k[:, :, ::2], v[:, :, ::2])


PROGRAMS: dict[str, tuple[Callable[..., Any], int]] = {  # and how many operands are read in place
    "one product": (of_one_product, 3),
    "with a bias": (with_bias, 3),
    "by head": (by_head, 3),
    "some positions": (some_positions, 3),
    "every second": (every_second, 3),
}
TYPES = (f32(2, 20, 24), f32(24, 96))


def lowered(program: Program) -> Program:
    """The program as the CPU lowers it."""
    return pipeline.run(program, lower.has_route, backend="cpu", reads_views=True)


def viewed(program: Program) -> list[Any]:
    """Where the operands that are read in place lie."""
    return [
        view
        for equation in program.equations
        if equation.op is attention_views.attention_of_views_p
        for view in equation.attrs["views"]
        if view is not None
    ]


@pytest.mark.parametrize("name", PROGRAMS)
def test_operands_are_read_in_place(name: str) -> None:
    f, num_viewed = PROGRAMS[name]
    program = program_of(f, *TYPES)
    found = lowered(program)
    assert len(viewed(found)) == num_viewed
    inputs = inputs_for(TYPES)
    (want,) = evaluate(program, inputs)
    np.testing.assert_allclose(evaluate(found, inputs)[0], want, rtol=LIMIT, atol=LIMIT)
    np.testing.assert_allclose(np.asarray(infini.jit(f)(*inputs)), want, rtol=LIMIT, atol=LIMIT)


@pytest.mark.parametrize("name", PROGRAMS)
def test_gradients_are_those_of_copies(name: str) -> None:
    f, _ = PROGRAMS[name]
    types = (*TYPES, *program_of(f, *TYPES).out_types)

    def gradients(x: Any, w: Any, ct: Any) -> Any:
        out, pull = infini.vjp(f, x, w)
        return (out, *pull(ct))

    inputs = inputs_for(types)
    wanted = evaluate(program_of(gradients, *types), inputs)
    for got, want in zip(infini.jit(gradients)(*inputs), wanted, strict=True):
        np.testing.assert_allclose(np.asarray(got), want, rtol=1e-4, atol=1e-4)


def test_keys_that_are_repeated_are_no_part_of_a_larger_array() -> None:
    types = (f32(2, 20, 24), f32(24, 64))
    program, inputs = program_of(shared_keys, *types), inputs_for(types)
    assert len(viewed(lowered(program))) == 1  # the queries
    (want,) = evaluate(program, inputs)
    np.testing.assert_allclose(np.asarray(infini.jit(shared_keys)(*inputs)), want, rtol=LIMIT, atol=LIMIT)


def test_what_is_computed_element_by_element_is_not_computed_as_a_whole_for_a_part() -> None:
    def f(x: Any) -> Any:
        y = inp.tanh(x) + 1.0  # attention needs a quarter of it
        return attend(*(heads(y[..., i : i + 8], 2) for i in (0, 8, 16)))

    program = program_of(f, f32(2, 20, 96))
    assert not viewed(lowered(program))


def test_a_parameter_is_read_in_place_whatever_part_of_it_is_read() -> None:
    def f(cache: Any) -> Any:
        q, k, v = (heads(cache[:, i], 2) for i in (0, 2, 3))
        return attend(q[:, :, :9], k[:, :, :9], v[:, :, :9])

    types = (f32(2, 4, 20, 16),)
    program = program_of(f, *types)
    assert len(viewed(lowered(program))) == 3
    inputs = inputs_for(types)
    (want,) = evaluate(program, inputs)
    np.testing.assert_allclose(np.asarray(infini.jit(f)(*inputs)), want, rtol=LIMIT, atol=LIMIT)


@pytest.mark.parametrize("dtype", [np.float64, inp.float16, inp.bfloat16])
def test_other_dtypes(dtype: Any) -> None:
    inputs = [inp.asarray(x, dtype=dtype) for x in inputs_for(TYPES)]
    limit = {2: 3e-2, 8: 1e-12}[np.dtype(dtype).itemsize]
    exact = [np.asarray(x).astype(np.float64) for x in inputs]
    (want,) = evaluate(program_of(of_one_product, *(ArrayType(x.shape, x.dtype) for x in exact)), exact)
    got = np.asarray(infini.jit(of_one_product)(*inputs)).astype(np.float64)
    np.testing.assert_allclose(got, want, rtol=limit, atol=limit)


def test_layers_of_a_scan_read_in_place() -> None:
    def f(x: Any, w: Any) -> Any:
        def layer(x: Any, w: Any) -> Any:
            y = of_one_product(x, w).swapaxes(1, 2)
            return x + y.reshape(x.shape), None

        return lax.scan(layer, x, w)[0]

    types = (f32(2, 20, 32), f32(3, 32, 96))
    program = program_of(f, *types)
    (scan,) = [e for e in lowered(program).equations if e.op.name == "scan"]
    assert len(viewed(scan.attrs["body"])) == 3
    inputs = inputs_for(types)
    (want,) = evaluate(program, inputs)
    np.testing.assert_allclose(np.asarray(infini.jit(f)(*inputs)), want, rtol=1e-4, atol=1e-4)


def test_a_block_of_a_gpt_is_at_most_nine_kernels() -> None:
    width = 64

    def norm(x: Any, scale: Any) -> Any:
        mean = x.mean(-1, keepdims=True)
        return (x - mean) * lax.rsqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * scale

    def block(x: Any, p: dict[str, Any]) -> Any:
        y = norm(x, p["norm"]) @ p["qkv"] + p["bias"]
        y = attend(*(heads(part, 4) for part in inp.split(y, 3, -1)))
        x = x + y.swapaxes(1, 2).reshape(x.shape) @ p["out"]
        return x + nn.gelu(norm(x, p["norm"]) @ p["up"]) @ p["down"]

    shapes = {
        "norm": (width,), "qkv": (width, 3 * width), "bias": (3 * width,), "out": (width, width),
        "up": (width, 4 * width), "down": (4 * width, width),
    }  # fmt: skip
    rng = np.random.default_rng(0)
    p = {name: rng.standard_normal(shape).astype(np.float32) / 8 for name, shape in shapes.items()}
    x = rng.standard_normal((2, 64, width)).astype(np.float32)
    compiled = infini.jit(block).lower(x, p).compile()
    assert compiled.cost_analysis()["phases"] <= 9
    with infini.disable_jit():
        want = np.asarray(block(inp.asarray(x), infini.tree.map(inp.asarray, p)))
    np.testing.assert_allclose(np.asarray(compiled(x, p)), want, rtol=1e-4, atol=1e-4)


def test_traffic_is_that_of_what_is_read() -> None:
    def f(cache: Any) -> Any:
        return attend(*(heads(cache[:, i, :9], 2) for i in (0, 2, 3)))

    (equation,) = [
        e for e in lowered(program_of(f, f32(2, 4, 400, 16))).equations if e.op.name == "attention_of_views"
    ]
    part = 4 * 2 * 9 * 16
    assert cost.traffic(equation) == (3 * part, part)
