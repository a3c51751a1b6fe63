"""The same bits for any number of threads and from run to run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.core.ir import Program
from infini.testing import programs, whole_numbers
from tests.property.running import run

THREADS = (1, 2, 3, 8)


def normal(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def whole(high: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, high, shape).astype(np.int32)


def layer_norm(x: Any, scale: Any, bias: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred / inp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias


def softmax(x: Any) -> Any:
    e = inp.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(q: Any, k: Any, v: Any) -> Any:
    scores = inp.einsum("bhqd,bhkd->bhqk", q, k) / 8
    length = q.shape[-2]
    mask = inp.arange(length)[:, None] >= inp.arange(length)
    return inp.einsum("bhqk,bhkd->bhqd", softmax(inp.where(mask, scores, -1e30)), v)


def cross_entropy(x: Any, labels: Any) -> Any:
    shifted = x - x.max(-1, keepdims=True)
    logs = shifted - inp.log(inp.exp(shifted).sum(-1, keepdims=True))
    return -inp.take_along_axis(logs, labels[:, None], -1).mean()


def convolution(x: Any, w: Any) -> Any:
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def multilayer(x: Any, *weights: Any) -> Any:
    for w in weights:
        x = inp.tanh(x @ w)
    return (x**2).sum()


def recurrent(x: Any, w: Any) -> Any:
    return lax.scan(lambda h, row: (inp.tanh(h @ w + row), h.sum()), inp.zeros_like(x[0]), x)


def gradients(f: Callable[..., Any], *numbers: int) -> Callable[..., Any]:
    return inf.grad(lambda *xs: (f(*xs) ** 2).sum(), numbers)


QKV = tuple(normal(2, 4, 130, 64, seed=i) for i in range(3))
PIXELS = (normal(2, 33, 31, 12), normal(3, 3, 12, 24))
PRODUCTS = ((64, 64, 64), (63, 65, 67), (512, 512, 512), (1, 2048, 512), (300, 4000, 7), (700, 1, 700))
WORKLOADS: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...]]] = {
    "layer norm": (layer_norm, (normal(512, 768), normal(768), normal(768))),
    "layer norm gradient": (gradients(layer_norm, 0, 1, 2), (normal(512, 768), normal(768), normal(768))),
    "softmax": (softmax, (normal(300, 1000),)),
    "softmax of long rows": (softmax, (normal(3, 100_000),)),
    "cross entropy gradient": (inf.grad(cross_entropy), (normal(64, 5000), whole(5000, 64))),
    "attention": (attention, QKV),
    "attention gradient": (gradients(attention, 0, 1, 2), QKV),
    "convolution": (convolution, PIXELS),
    "convolution gradient": (gradients(convolution, 0, 1), PIXELS),
    **{f"product of {m}, {k}, {n}": (inp.matmul, (normal(m, k), normal(k, n))) for m, k, n in PRODUCTS},
    "product of bfloat16": (inp.matmul, tuple(normal(200, 200).astype(inp.bfloat16) for _ in range(2))),
    "batched product": (inp.matmul, (normal(20, 30, 40), normal(20, 40, 50))),
    "network gradient": (inf.grad(multilayer, (1, 2)), (normal(256, 300), normal(300, 400), normal(400, 50))),
    "recurrence": (recurrent, (normal(30, 64, 64), normal(64, 64))),
    "sums": (lambda x: (x.sum(), x.sum(0), x.sum(1), x.sum((0, 2)), x.var(2)), (normal(130, 70, 90),)),
    "sum of float16": (lambda x: x.sum(), (normal(300_000, dtype=np.float16),)),
    "product along an axis": (lambda x: x.prod(0), (normal(2000, 33),)),
    "running sum": (lambda x: (inp.cumsum(x), inp.cumsum(x.reshape(400, 500), 0)), (normal(200_000),)),
    "sort": (lambda x: (inp.sort(x), inp.argsort(x)), (normal(200_000).round(2),)),
    "top k": (lambda x: lax.top_k(x, 40), (normal(50, 20_000).round(2),)),
    "sums of rows": (
        lambda x, i: inp.zeros((1000, 32), np.float32).at[i].add(x),
        (normal(40_000, 32), whole(1000, 40_000)),
    ),
    "overwritten rows": (
        lambda x, i: inp.zeros(1000, np.float32).at[i].set(x),
        (normal(40_000), whole(1000, 40_000)),
    ),
    "embedding gradient": (
        inf.grad(lambda table, i: inp.sin(table[i]).sum()), (normal(1000, 48), whole(1000, 20_000)),
    ),
    "random numbers": (lambda s: inf.random.normal(inf.random.key(s), (200_000,)), (np.uint32(3),)),
    "chain": (lambda x: inp.exp(inp.sin(x) * 3) / (1 + x * x), (normal(1_000_000),)),
    "transpose": (lambda x: x.T + 1, (normal(900, 1100),)),
}  # fmt: skip


def bits(results: Any) -> list[bytes]:
    return [np.asarray(x).tobytes() for x in inf.tree.leaves(results)]


@pytest.mark.parametrize("name", WORKLOADS)
def test_bits_do_not_depend_on_threads_or_on_the_run(name: str) -> None:
    function, args = WORKLOADS[name]
    found = []
    for num_threads in THREADS:
        with inf.config(num_threads=num_threads):
            compiled = inf.jit(function)
            found += [bits(compiled(*args)) for _ in range(3)]
    assert all(other == found[0] for other in found)


def assert_bits_are_equal(program: Program, arrays: list[np.ndarray]) -> None:
    found = []
    for num_threads in THREADS:
        with inf.config(num_threads=num_threads):
            found.append([x.tobytes() for x in run("cpu", program, arrays)])
    assert all(other == found[0] for other in found)


few = hypothesis.settings(max_examples=max(20, hypothesis.settings.default.max_examples // 5))


@few
@hypothesis.given(programs.programs(), st.integers(0, 9))
def test_random_programs_give_the_same_bits(program: Program, seed: int) -> None:
    assert_bits_are_equal(program, programs.arguments(program, seed))


@few
@hypothesis.given(whole_numbers.programs(), st.integers(0, 9))
def test_random_programs_of_whole_numbers_give_the_same_bits(program: Program, seed: int) -> None:
    assert_bits_are_equal(program, whole_numbers.arguments(program, seed))
