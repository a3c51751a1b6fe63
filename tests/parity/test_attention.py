"""Attention of infini, JAX and PyTorch: the same programs and the library's functions, with gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import infini as inf
import infini.numpy as inp
from infini import nn

Function = Callable[..., Any]
B, T, S, N, K, H = 2, 33, 47, 4, 2, 16
SHAPES = ((B, T, N, H), (B, S, K, H), (B, S, K, H))


def draw(rng: np.random.Generator, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def with_gradients(run: Function, namespace: Any, xs: list[Any], ct: Any) -> list[np.ndarray]:
    def both(ct: Any, *ys: Any) -> Any:
        out, pull = namespace.vjp(run, *ys)
        return out, *pull(ct)

    return [np.asarray(x) for x in namespace.jit(both)(ct, *xs)]


def agree(ours: Function, theirs: Function, arrays: list[np.ndarray], rng: np.random.Generator) -> None:
    (ct,) = draw(rng, inf.eval_shape(ours, *map(inp.asarray, arrays)).shape)
    found = with_gradients(ours, inf, [inp.asarray(x) for x in arrays], inp.asarray(ct))
    expected = with_gradients(theirs, jax, arrays, ct)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=3e-5, atol=3e-5)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "scaled": {"scale": 0.7, "is_causal": True},
    "window": {"local_window_size": (3, 60)},
    "narrow causal window": {"local_window_size": 5, "is_causal": True},
    "lengths of keys": {"key_value_seq_lengths": np.array([7, 30], np.int32)},
    "lengths of queries": {"query_seq_lengths": np.array([5, 20], np.int32), "is_causal": True},
    "mask": {"mask": np.arange(S)[None, None, None] % 3 > 0},
    "mask per head": {"mask": np.random.default_rng(5).random((1, N, T, S)) > 0.3, "is_causal": True},
    "empty rows": {"mask": np.broadcast_to(np.arange(T)[:, None] != 4, (1, 1, T, S))},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_library_function_agrees_with_jax(name: str, rng: np.random.Generator) -> None:
    options = OPTIONS[name]
    agree(
        lambda *xs: nn.dot_product_attention(*xs, **options),
        lambda *xs: jax.nn.dot_product_attention(*xs, **options),
        draw(rng, *SHAPES),
        rng,
    )


@pytest.mark.parametrize("shape", [(B, N, T, S), (1, N, T, S), (B, 1, 1, S), (1, 1, T, 1)])
def test_gradient_by_a_bias_agrees_with_jax(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    agree(
        lambda q, k, v, b: nn.dot_product_attention(q, k, v, b),
        lambda q, k, v, b: jax.nn.dot_product_attention(q, k, v, b),
        draw(rng, *SHAPES, shape),
        rng,
    )


def written(namespace: Any, softmax: Function) -> Function:
    def run(q: Any, k: Any, v: Any) -> Any:
        q = q.reshape(B, T, K, N // K, H)
        scores = namespace.einsum("btkgh,bskh->bkgts", q, k) / 4
        rows, columns = namespace.arange(T)[:, None], namespace.arange(S)
        weights = softmax(namespace.where(rows >= columns, scores, -1e30), axis=-1)
        return namespace.einsum("bkgts,bskh->btkgh", weights, v).reshape(B, T, N * H)

    return run


def test_written_program_agrees_with_jax(rng: np.random.Generator) -> None:
    agree(written(inp, nn.softmax), written(jnp, jax.nn.softmax), draw(rng, *SHAPES), rng)


def test_batches_agree_with_jax(rng: np.random.Generator) -> None:
    agree(
        inf.vmap(lambda q, k, v: nn.dot_product_attention(q, k, v, is_causal=True), (0, None, 0)),
        jax.vmap(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True), (0, None, 0)),
        draw(rng, (3, T, N, H), (S, K, H), (3, S, K, H)),
        rng,
    )


def test_forward_mode_agrees_with_jax(rng: np.random.Generator) -> None:
    arrays, moving = draw(rng, *SHAPES), draw(rng, *SHAPES)
    found = inf.jvp(lambda *xs: nn.dot_product_attention(*xs, is_causal=True), arrays, moving)
    expected = jax.jvp(lambda *xs: jax.nn.dot_product_attention(*xs, is_causal=True), arrays, moving)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize(("is_causal", "heads"), [(False, N), (True, N), (True, K)])
def test_torchs_function_agrees_with_torch(is_causal: bool, heads: int, rng: np.random.Generator) -> None:
    arrays = draw(rng, (B, N, T, H), (B, heads, S, H), (B, heads, S, 5))
    options = {"is_causal": is_causal, "enable_gqa": heads != N}
    leaves = [torch.from_numpy(x).requires_grad_() for x in arrays]
    out = torch.nn.functional.scaled_dot_product_attention(*leaves, **options)
    (ct,) = draw(rng, tuple(out.shape))
    expected = [out, *torch.autograd.grad(out, leaves, torch.from_numpy(ct))]
    found, pull = inf.vjp(
        inf.jit(lambda *xs: nn.scaled_dot_product_attention(*xs, **options)),
        *(inp.asarray(x) for x in arrays),
    )
    for x, y in zip((found, *pull(inp.asarray(ct))), expected, strict=True):
        np.testing.assert_allclose(np.asarray(x), y.detach().numpy(), rtol=3e-5, atol=3e-5)
