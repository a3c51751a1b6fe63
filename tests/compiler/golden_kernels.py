"""The programs whose Triton text is kept in `tests/golden/triton`: one or two of every family.

Each is compiled for the GPU as any program is, without one; its kernels are read by people, compiled for
several processors by several versions of Triton, and run under Triton's interpreter.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

import infini as inf
import infini.numpy as inp
from infini import lax, nn, random, tile
from infini.compiler import pipeline
from infini.compiler.triton import lower, scalar
from infini.compiler.triton.source import TritonSource
from infini.compiler.triton.target import GENERIC, Target
from infini.core import dtypes, ir, primitive, trace
from infini.core.ir import ArrayType
from tests.tile import kernels, scatter_kernels

Value = Any  # Any: traced values


@dataclass(frozen=True, slots=True)
class Golden:
    """A program: a function of arrays, the types of its operands, and how far from the oracle it may be."""

    function: Callable[..., Value]
    types: tuple[ArrayType, ...]
    tolerance: float = 1e-5
    largest: int = 0  # of integer operands, when they are positions


def _f32(*shape: int) -> ArrayType:
    return ArrayType(shape, dtypes.float32)


def _bf16(*shape: int) -> ArrayType:
    return ArrayType(shape, dtypes.bfloat16)


def _i32(*shape: int) -> ArrayType:
    return ArrayType(shape, dtypes.int32)


def elementwise(x: Value, y: Value) -> Value:
    total = x + y
    return inp.tanh(total) * 0.5 + total


def broadcasting(x: Value, scale: Value, shift: Value) -> Value:
    return x * scale[:, None] + shift


def reductions(x: Value) -> Value:
    mean = x.mean(-1)
    return mean, x.max(0), inp.abs(x).sum()


def softmax(scores: Value) -> Value:
    largest = scores.max(-1, keepdims=True)
    weights = inp.exp(scores - largest)
    return weights / weights.sum(-1, keepdims=True)


def layer_norm(x: Value, weight: Value, bias: Value) -> Value:
    mean = x.mean(-1, keepdims=True)
    centred = x - mean
    variance = (centred * centred).mean(-1, keepdims=True)
    return centred * lax.rsqrt(variance + 1e-5) * weight + bias


def matmul(x: Value, w: Value) -> Value:
    return x @ w


_x, _w, _bias = tile.Tensor(2, name="x"), tile.Tensor(2, name="w"), tile.Tensor(1, name="bias")


def _with_bias(x: tile.Tensor, w: tile.Tensor, bias: tile.Tensor, y: tile.Tensor) -> tuple[tile.Tensor, ...]:
    x, w, y = kernels._matmul_arrangement(x, w, y)
    return x, w, bias.tile((kernels.BN,)).unsqueeze(0).expand((y.shape[0], -1)), y


@tile.kernel(_with_bias, tensors=(_x, _w, _bias, tile.Tensor(shape=(_x.shape[0], _w.shape[1]))))
def matmul_gelu(x: Value, w: Value, bias: Value) -> Value:
    def step(total: Value, blocks: tuple[Value, Value]) -> tuple[Value, None]:
        return lax.add(total, lax.dot(*blocks, preferred_element_type="float32")), None

    total, _ = lax.scan(step, lax.full((x.shape[1], w.shape[2]), 0.0, "float32"), (x, w))
    moved = lax.add(total, lax.broadcast_in_dim(lax.convert_element_type(bias, "float32"), total.shape, (1,)))
    gate = lax.logistic(lax.mul(moved, 1.702))
    return lax.convert_element_type(lax.mul(moved, gate), x.dtype)


def batched_matmul(x: Value, y: Value) -> Value:
    return x @ y


def cumulative_sum(x: Value) -> Value:
    return inp.cumsum(x, -1)


def cumulative_logsumexp(x: Value) -> Value:
    return lax.cumlogsumexp(x, axis=0)


def sort_short(x: Value) -> Value:
    return inp.sort(x, -1)


def sort_long(x: Value) -> Value:
    return inp.sort(x)


def top_k(x: Value) -> Value:
    return tuple(lax.top_k(x, 4))


def gather(table: Value, tokens: Value) -> Value:
    return table[tokens]


def scatter_add(table: Value, tokens: Value, updates: Value) -> Value:
    return table.at[tokens].add(updates)


def scattered(numbers: Value, rows: Value) -> Value:
    return scatter_kernels.embedding_gradient(numbers, rows, height=20)


def spectrum(signal: Value) -> Value:
    return inp.abs(inp.fft.rfft(signal))


def join(a: Value, b: Value, c: Value, d: Value) -> Value:
    return inp.concatenate([a, b, c, d], -1)


def convolution(images: Value, filters: Value) -> Value:
    return lax.conv_general_dilated(images, filters, (1, 1), "SAME")


def random_bits(key: Value) -> Value:
    return random.bits(random.wrap_key_data(key), (300,))


def attention(q: Value, k: Value, v: Value) -> Value:
    return nn.dot_product_attention(q, k, v, is_causal=True)


def attention_gradient(q: Value, k: Value, v: Value) -> Value:
    def loss(q: Value, k: Value, v: Value) -> Value:
        return attention(q, k, v).astype("float32").sum()

    return inf.grad(loss, (0, 1, 2))(q, k, v)


_HEADS = (_bf16(1, 80, 4, 32), _bf16(1, 80, 2, 32), _bf16(1, 80, 2, 32))

PROGRAMS: Final[dict[str, Golden]] = {
    "elementwise": Golden(elementwise, (_f32(40, 30), _f32(40, 30))),
    "elementwise_bfloat16": Golden(elementwise, (_bf16(40, 30), _bf16(40, 30)), 2e-2),
    "broadcasting": Golden(broadcasting, (_f32(40, 30), _f32(40), _f32(30))),
    "reductions": Golden(reductions, (_f32(40, 300),), 1e-4),
    "softmax": Golden(softmax, (_f32(20, 300),)),
    "layer_norm": Golden(layer_norm, (_bf16(20, 300), _bf16(300), _bf16(300)), 3e-2),
    "matmul": Golden(matmul, (_f32(40, 70), _f32(70, 50)), 1e-4),
    "matmul_bfloat16": Golden(matmul, (_bf16(64, 64), _bf16(64, 64)), 2e-2),
    "matmul_gelu": Golden(
        matmul_gelu.configure(BM=32, BN=32, BK=32), (_bf16(50, 70), _bf16(70, 40), _bf16(40)), 3e-2
    ),
    "batched_matmul": Golden(batched_matmul, (_f32(3, 40, 20), _f32(3, 20, 30)), 1e-4),
    "cumulative_sum": Golden(cumulative_sum, (_f32(5, 300),), 1e-4),
    "cumulative_logsumexp": Golden(cumulative_logsumexp, (_f32(300, 5),), 1e-4),
    "sort_short": Golden(sort_short, (_f32(6, 50),)),
    "sort_long": Golden(sort_long, (_bf16(600),)),
    "top_k": Golden(top_k, (_f32(6, 20),)),
    "gather": Golden(gather, (_f32(20, 30), _i32(7)), largest=20),
    "scatter_add": Golden(scatter_add, (_f32(20, 30), _i32(7), _f32(7, 30)), largest=20),
    "scatter_add_bfloat16": Golden(scatter_add, (_bf16(20, 30), _i32(7), _bf16(7, 30)), 2e-2, largest=20),
    "scattered": Golden(scattered, (_i32(19), _f32(19, 30)), largest=22),
    "join": Golden(join, (_f32(6, 3), _f32(6, 5), _f32(6, 1), _f32(6, 4)), 0.0),
    "spectrum": Golden(spectrum, (_f32(3, 60),), 1e-4),
    "convolution": Golden(convolution, (_f32(2, 3, 10, 12), _f32(4, 3, 3, 3)), 1e-4),
    "random_bits": Golden(random_bits, (ArrayType((2,), dtypes.uint32),)),
    "attention": Golden(attention, _HEADS, 3e-2),
    "attention_gradient": Golden(attention_gradient, _HEADS, 5e-2),
}  # fmt: skip


def _every_rule(dtype: np.dtype) -> Golden:
    """A program of every elementwise operation that takes a dtype, with and without constants."""
    ops = [
        op
        for name, op in sorted(primitive.all_primitives().items())
        if name in scalar.RULES and op.has(primitive.CASES)
    ]
    taken = [op for op in ops if dtype in op.rule(primitive.CASES).dtypes and op.name not in _CHANGE_DTYPE]

    def everything(x: Value, y: Value) -> Value:
        found = []
        for op in taken:
            count = len(op.rule(primitive.CASES).examples(dtype)[0].operands)
            results = [trace.bind1(op, *(x, y)[:count])]
            if count == 2:
                three = inp.full_like(x, 3)
                results += [trace.bind1(op, x, three), trace.bind1(op, three, x)]
            found.append(functools.reduce(inp.add, [r.astype(dtype) for r in results]))
        return [*found, lax.reduce_sum(x, (0,)), lax.reduce_max(x, (0,)), lax.argmax(x, 0, "int32")]

    return Golden(everything, (ArrayType((256,), dtype),) * 2)


# Operations that need attributes, or other operands.
_CHANGE_DTYPE: Final = frozenset({"convert_element_type", "bitcast_convert_type", "select_n"})
# Not for reading: what every version of Triton has to take.
RULES: Final[dict[str, Golden]] = {
    f"rules_{dtype.name}": _every_rule(dtype)
    for dtype in (
        dtypes.float32, dtypes.bfloat16, dtypes.float16, dtypes.float64, dtypes.float8_e4m3fn, dtypes.int8,
        dtypes.int32, dtypes.int64, dtypes.uint8, dtypes.uint32, dtypes.uint64,
    )
}  # fmt: skip


def program(golden: Golden) -> ir.Program:
    """The traced program."""
    types = [inf.ShapeDtypeStruct(t.shape, t.dtype) for t in golden.types]
    return inf.jit(golden.function).trace(*types).program


def sources(golden: Golden, target: Target = GENERIC) -> list[TritonSource]:
    """The functions it becomes, each once, in their order."""
    fused = pipeline.run(program(golden), lower.has_route, backend="cuda")
    found = [source for emitted in lower.of_program(fused, target) for source in emitted.sources]
    return list({source.key: source for source in found}.values())


# Targets on which a few programs are one too many.
NARROW: Final = {
    "in a loop": dataclasses.replace(GENERIC, name="narrow", grid=(3, 1, 1)),
    "in two dimensions": dataclasses.replace(GENERIC, name="flat", grid=(3, 999, 1)),
}
FOLDED: Final = (
    "softmax",
    "matmul_gelu",
    "batched_matmul",
    "cumulative_sum",
    "gather",
    "attention",
    "spectrum",
)


def operands(golden: Golden, rng: np.random.Generator) -> list[np.ndarray]:
    """Operands to run it with."""
    found = []
    for type_ in golden.types:
        if type_.dtype in dtypes.FLOATS:
            found.append(rng.uniform(-2.0, 2.0, type_.shape).astype(type_.dtype))
        else:
            found.append(rng.integers(0, golden.largest or 1 << 31, type_.shape).astype(type_.dtype))
    return found
