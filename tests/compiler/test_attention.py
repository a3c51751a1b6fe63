"""Attention without the matrix of weights: kernels against NumPy in float64, the pattern in programs as
people write them, memory, and results that do not depend on threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax, nn, random
from infini.compiler import pipeline
from infini.compiler.llvm import lower
from infini.core import dtypes, trace
from infini.core.ir import Program
from infini.lax.composites import attention
from infini.train import gpt

Function = Callable[..., Any]
LIMITS = {"float32": 2e-5, "float64": 1e-12, "float16": 2e-2, "bfloat16": 6e-2}


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


@dataclass(frozen=True)
class Problem:
    """Attention of (B, K, G, T, D), (B, K, S, D) and (B, K, S, V)."""

    sizes: tuple[int, ...]  # B K G T S D V
    band: attention.Band = (None, None)
    extras: str = ""  # "b" for a bias (B, K, T, S), "m" for a mask (T, S)
    dtype: Any = np.float32
    fill: float = -1e30

    @property
    def attrs(self) -> dict[str, Any]:
        letters = "".join({"b": ",bkts", "m": ",ts"}[c] for c in self.extras)
        return {
            "spec": f"bkgtd,bksd,bksv{letters}->btkgv,bkgt", "scale": 0.3, "band": self.band,
            "fill": self.fill, "has_bias": "b" in self.extras, "has_mask": "m" in self.extras,
        }  # fmt: skip

    def operands(self, rng: np.random.Generator) -> list[np.ndarray]:
        b, k, g, t, s, d, v = self.sizes
        wide = np.float64 if self.dtype == np.float64 else np.float32
        found = [
            normal(rng, *shape).astype(self.dtype) for shape in ((b, k, g, t, d), (b, k, s, d), (b, k, s, v))
        ]
        if "b" in self.extras:
            found.append(normal(rng, b, k, t, s).astype(wide))
        if "m" in self.extras:
            mask = rng.random((t, s)) > 0.4
            mask[1] = False  # a query that may look at nothing
            found.append(mask)
        return found

    def weights(self, operands: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Weights, where scores count, the largest score and the sum of each row."""
        q, k = (x.astype(np.float64) for x in operands[:2])
        scores = np.einsum("bkgtd,bksd->bkgts", q, k) * 0.3
        if "b" in self.extras:
            scores += operands[3][:, :, None]
        distance = np.arange(self.sizes[4]) - np.arange(self.sizes[3])[:, None]
        allowed = np.ones(distance.shape, bool)
        if self.band[0] is not None:
            allowed &= distance >= self.band[0]
        if self.band[1] is not None:
            allowed &= distance <= self.band[1]
        if "m" in self.extras:
            allowed &= operands[-1]
        scores = np.where(allowed, scores, self.fill)
        largest = scores.max(-1, keepdims=True)
        grown = np.exp(scores - largest)
        total = grown.sum(-1, keepdims=True)
        return grown / total, allowed, largest[..., 0], total[..., 0]

    def results(self, operands: list[np.ndarray]) -> list[np.ndarray]:
        weights, _, largest, total = self.weights(operands)
        return [np.einsum("bkgts,bksv->btkgv", weights, operands[2].astype(np.float64)), largest, total]

    def gradients(self, operands: list[np.ndarray], ct: np.ndarray) -> list[np.ndarray]:
        q, k, v = (x.astype(np.float64) for x in operands[:3])
        weights, allowed, _, _ = self.weights(operands)
        change = np.einsum("btkgv,bksv->bkgts", ct, v)
        change = np.where(allowed, weights * (change - (weights * change).sum(-1, keepdims=True)), 0)
        found = [
            np.einsum("bkgts,bksd->bkgtd", change, k) * 0.3,
            np.einsum("bkgts,bkgtd->bksd", change, q) * 0.3,
            np.einsum("bkgts,btkgv->bksv", weights, ct),
        ]
        return [*found, change.sum(2)] if "b" in self.extras else found


PROBLEMS = [
    Problem((1, 2, 3, 70, 70, 64, 64), (None, 0)),
    Problem((2, 2, 2, 37, 53, 17, 9)),
    Problem((2, 1, 2, 37, 53, 17, 9), (None, 16), fill=-np.inf),
    Problem((1, 1, 1, 53, 37, 5, 3), (None, 0)),
    Problem((1, 1, 2, 53, 37, 5, 3), (-4, 2)),  # the last queries see no key
    Problem((1, 1, 2, 130, 1300, 16, 16), (None, 1170)),  # several blocks of keys
    Problem((1, 1, 1, 700, 1300, 8, 8), (-100, 600)),
    Problem((1, 1, 2, 40, 1300, 16, 16), extras="bm"),
    Problem((1, 1, 2, 30, 41, 16, 16), (None, 11), extras="bm"),
    Problem((1, 1, 2, 30, 41, 16, 16), (None, 11), extras="m", dtype=np.float64),
    Problem((1, 2, 2, 100, 600, 32, 32), (None, 500), dtype=np.float64),
    Problem((1, 2, 2, 64, 64, 32, 40), (None, 0), dtype=np.float16),
    Problem((1, 2, 1, 64, 80, 24, 24), dtype=dtypes.bfloat16),
    Problem((1, 1, 1, 4, 3, 2, 2), (None, 0)),
    Problem((1, 1, 1, 50, 60, 256, 250), (None, 10), dtype=np.float64),
    Problem((1, 1, 1, 40, 40, 8, 8), (None, 0), fill=-3.0),  # masked keys have weights
]


def given(operands: list[np.ndarray]) -> list[Any]:
    return [inp.asarray(x, dtype=x.dtype) for x in operands]


def compare(problem: Problem, found: Any, expected: list[np.ndarray]) -> None:
    bound = LIMITS[np.dtype(problem.dtype).name]
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(x).astype(np.float64), y, rtol=bound, atol=bound)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_kernels_agree_with_numpy(problem: Problem, rng: np.random.Generator) -> None:
    operands = problem.operands(rng)
    run = inf.jit(lambda *xs: trace.bind(lax.attention_sums_p, *xs, **problem.attrs))
    compare(problem, run(*given(operands)), problem.results(operands))


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_gradients_agree_with_numpy(problem: Problem, rng: np.random.Generator) -> None:
    operands = problem.operands(rng)
    b, k, g, t, _, _, v = problem.sizes
    ct = normal(rng, b, t, k, g, v).astype(problem.dtype)
    count = 3 + ("b" in problem.extras)

    def run(*moving: Any) -> Any:
        fixed = given(operands[count:])
        return trace.bind1(lax.attention_p, *moving, *fixed, **problem.attrs)

    (cotangent,) = given([ct])
    _, pull = inf.vjp(inf.jit(run), *given(operands[:count]))
    compare(problem, pull(cotangent), problem.gradients(operands, ct.astype(np.float64)))


def test_a_row_without_keys_is_not_a_number_where_the_fill_is_infinite(rng: np.random.Generator) -> None:
    q, k, v = (normal(rng, 8, 4).astype(np.float32) for _ in range(3))
    mask = np.ones((8, 8), bool)
    mask[3] = False
    attrs = {
        "spec": "td,sd,sv,ts->tv,t", "scale": 1.0, "band": (None, None), "fill": -np.inf, "has_bias": False,
        "has_mask": True,
    }  # fmt: skip
    found = np.asarray(inf.jit(lambda *xs: trace.bind1(lax.attention_p, *xs, **attrs))(q, k, v, mask))
    assert np.isnan(found[3]).all() and np.isfinite(np.delete(found, 3, 0)).all()


# --- results do not depend on threads ------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 5])
def test_the_same_bits_for_any_number_of_threads(heads: int, rng: np.random.Generator) -> None:
    q, k, v = (inp.asarray(normal(rng, 1, 300, heads, 16).astype(np.float32)) for _ in range(3))

    def run(*xs: Any) -> Any:
        return inf.value_and_grad(
            lambda *ys: (nn.dot_product_attention(*ys, is_causal=True) ** 2).sum(), (0, 1, 2)
        )(*xs)

    found = []
    for threads in (1, 2, 3):
        with inf.config(num_threads=threads):
            found.append([np.asarray(x).tobytes() for x in inf.tree.leaves(inf.jit(run)(q, k, v))])
    assert found[0] == found[1] == found[2]


# --- the pattern ---------------------------------------------------------------------------------------

B, H, T, S, D = 2, 4, 24, 40, 16
HEADS = ((B, H, T, D), (B, H, S, D), (B, H, S, D))
POSITIONS = (np.arange(T)[:, None], np.arange(S)[None, :])


def scores(q: Any, k: Any) -> Any:
    return q @ inp.swapaxes(k, -1, -2) * 0.25


def by_hand(x: Any) -> Any:
    grown = inp.exp(x - lax.stop_gradient(inp.max(x, axis=-1, keepdims=True)))
    return grown / grown.sum(-1, keepdims=True)


def positions() -> tuple[Any, Any]:
    return inp.arange(T)[:, None], inp.arange(S)[None, :]


def where_causal(x: Any, fill: float) -> Any:
    i, j = positions()
    return inp.where(i >= j, x, fill)


def windowed(q: Any, k: Any, v: Any) -> Any:
    i, j = positions()
    return nn.softmax(inp.where((j <= i) & (i - j < 5), scores(q, k), -1e30)) @ v


def grouped(q: Any, k: Any, v: Any) -> Any:
    q = q.reshape(B, 2, H // 2, T, D)
    weights = nn.softmax(inp.einsum("bkgtd,bksd->bkgts", q, k) * 0.25)
    return inp.einsum("bkgts,bksd->btkgd", weights, v).reshape(B, T, H * D)


def token_major(q: Any, k: Any, v: Any) -> Any:
    weights = nn.softmax(inp.einsum("bthd,bshd->bhts", q, k) * 0.25)
    return inp.einsum("bhts,bshd->bthd", weights, v)


def max_moves(q: Any, k: Any, v: Any) -> Any:
    x = scores(q, k)
    grown = inp.exp(x - x.max(-1, keepdims=True))
    return (grown / grown.sum(-1, keepdims=True)) @ v


@dataclass(frozen=True)
class Written:
    """A program as someone writes it, with the shapes of its arguments."""

    run: Function
    shapes: tuple[tuple[int, ...], ...] = HEADS


WRITTEN = {
    "matmul": Written(lambda q, k, v: nn.softmax(scores(q, k)) @ v),
    "by hand": Written(lambda q, k, v: by_hand(scores(q, k)) @ v),
    "max moves": Written(max_moves),
    "scaled queries": Written(lambda q, k, v: nn.softmax((q * 0.25) @ inp.swapaxes(k, -1, -2)) @ v),
    "causal": Written(lambda q, k, v: nn.softmax(where_causal(scores(q, k), -1e30)) @ v),
    "lower triangle": Written(
        lambda q, k, v: nn.softmax(inp.where(inp.tril(inp.ones((T, S), bool)), scores(q, k), -np.inf)) @ v
    ),
    "upper triangle": Written(
        lambda q, k, v: nn.softmax(inp.where(positions()[1] > positions()[0], -1e9, scores(q, k))) @ v
    ),
    "added mask": Written(
        lambda q, k, v: nn.softmax(scores(q, k) + inp.where(inp.tril(inp.ones((T, S), bool)), 0.0, -1e9)) @ v
    ),
    "window": Written(windowed),
    "one head": Written(lambda q, k, v: nn.softmax(q @ k.T) @ v, ((T, D), (S, D), (S, D))),
    "groups": Written(grouped, ((B, H, T, D), (B, 2, S, D), (B, 2, S, D))),
    "token major": Written(token_major, ((B, T, H, D), (B, S, H, D), (B, S, H, D))),
    "narrow values": Written(
        lambda q, k, v: nn.softmax(scores(q, k)) @ v, ((B, H, T, D), (B, H, S, D), (B, H, S, 5))
    ),
}


def compiled(function: Function, *arguments: Any) -> Program:
    traced = inf.make_jaxpr(function)(*arguments)
    return pipeline.run(traced, lower.has_route, backend="cpu")


def counted(program: Program) -> tuple[int, int]:
    """Kernels of attention, and contractions."""
    found = [e.op.name for e in program.equations]
    return sum(name.startswith("attention") for name in found), found.count("dot")


def largest_array(program: Program) -> int:
    return max(v.type.size for e in program.equations for v in e.outputs)


@pytest.mark.parametrize("name", WRITTEN)
def test_the_pattern_is_found_and_right(name: str, rng: np.random.Generator) -> None:
    written = WRITTEN[name]
    arrays = [inp.asarray(normal(rng, *shape).astype(np.float32)) for shape in written.shapes]
    ct = normal(rng, *inf.eval_shape(written.run, *arrays).shape).astype(np.float32)

    def both(*xs: Any) -> Any:
        out, pull = inf.vjp(written.run, *xs)
        return out, pull(inp.asarray(ct))

    assert counted(compiled(written.run, *arrays)) == (1, 0)
    program = compiled(both, *arrays)
    assert counted(program) == (2, 0)
    sizes = [max(np.prod(shape) for shape in written.shapes), ct.size, T * S]
    assert largest_array(program) <= max(sizes)
    with inf.config(device="reference"):
        expected = both(*(inp.asarray(np.asarray(x)) for x in arrays))
    for x, y in zip(inf.tree.leaves(inf.jit(both)(*arrays)), inf.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=2e-5, atol=2e-5)


UNTOUCHED: dict[str, Function] = {
    "weights are a result": lambda q, k, v: (nn.softmax(scores(q, k)), nn.softmax(scores(q, k)) @ v),
    "scores are used": lambda q, k, v: nn.softmax(scores(q, k)) @ v + scores(q, k).sum(),
    "weights are changed": lambda q, k, v: inp.tanh(nn.softmax(scores(q, k))) @ v,
    "another axis": lambda q, k, v: nn.softmax(scores(q, k), axis=-2) @ v,
    "another largest": lambda q, k, v: by_hand(scores(q, k) - scores(q, k).max()) @ v,
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_what_needs_the_matrix_keeps_it(name: str, rng: np.random.Generator) -> None:
    arrays = [inp.asarray(normal(rng, *shape).astype(np.float32)) for shape in HEADS]
    assert counted(compiled(UNTOUCHED[name], *arrays))[0] == 0


def test_rows_of_vmap_are_no_dimension_that_is_repeated(rng: np.random.Generator) -> None:
    """The largest score of each row is repeated along keys, under vmap with a dimension in front."""
    x = rng.standard_normal((3, 2, 2)).astype(np.float32)
    gradient = inf.vmap(inf.grad(lambda x: (x @ x).max(axis=-1).sum()))
    found = inf.jit(gradient)(x)
    with inf.config(disable_jit=True):
        np.testing.assert_allclose(found, gradient(inp.asarray(x)), rtol=1e-6)


def test_bodies_of_loops_are_searched(rng: np.random.Generator) -> None:
    q, k, v = (inp.asarray(normal(rng, *shape).astype(np.float32)) for shape in HEADS)
    step = WRITTEN["causal"].run
    program = compiled(lambda x: lax.scan(lambda c, _: (step(c, k, v), None), x, None, length=2)[0], q)
    (loop,) = [e for e in program.equations if e.op.name == "scan"]
    assert counted(loop.attrs["body"]) == (1, 0)


# --- memory and counts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_gradient", [False, True])
@pytest.mark.parametrize("form", ["written", "library"])
def test_no_matrix_of_weights_in_memory(form: str, is_gradient: bool) -> None:
    length = 4096

    def written(q: Any, k: Any, v: Any) -> Any:
        places = inp.arange(length)
        x = inp.einsum("bthd,bshd->bhts", q, k) * 0.25
        x = inp.where(places[:, None] >= places, x, -1e30)
        return inp.einsum("bhts,bshd->bthd", nn.softmax(x), v)

    run = written if form == "written" else lambda q, k, v: nn.dot_product_attention(q, k, v, is_causal=True)
    function: Function = inf.grad(lambda *xs: run(*xs).sum(), (0, 1, 2)) if is_gradient else run
    array = inf.ShapeDtypeStruct((1, length, 2, 16), np.float32)
    memory = inf.jit(function).lower(array, array, array).compile().memory_analysis()
    assert memory["temp bytes"] < 4 * length**2 / 2  # half of what the weights of one of the heads need


CONFIG = gpt.Config(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
)


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_language_model_has_no_matrix_of_weights(dtype: str, is_checkpointed: bool) -> None:
    params = inf.tree.map(lambda x: x.astype(dtype), gpt.init(random.key(0), CONFIG))
    windows = inp.zeros((2, 129), inp.int32)

    def loss(params: Any) -> Any:
        return gpt.loss(params, windows, CONFIG, is_checkpointed=is_checkpointed)

    forward, step = compiled(loss, params), compiled(inf.grad(loss), params)
    assert counted(forward)[0] == CONFIG.num_layers
    assert counted(step)[0] == (3 if is_checkpointed else 2) * CONFIG.num_layers
    weights = 2 * 4 * 128 * 128
    assert max(largest_array(forward), largest_array(step)) < weights
