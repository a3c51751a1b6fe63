"""Functions of `infini.numpy` give NumPy's numbers: one table, evaluated in both namespaces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import infini.numpy as inp
from infini.testing import tolerances

RNG = np.random.default_rng(0)
# f, g: float32 (2, 3, 4); p: positive; i, j: int32 (2, 3, 4), j without zeros; t: bool; m: (4, 5); v:
# vector of 4; q: (3, 3)
ARRAYS: dict[str, Any] = {
    "f": RNG.standard_normal((2, 3, 4)).astype(np.float32),
    "g": RNG.standard_normal((2, 3, 4)).astype(np.float32),
    "p": RNG.uniform(0.1, 4, (2, 3, 4)).astype(np.float32),
    "i": RNG.integers(-9, 9, (2, 3, 4)).astype(np.int32),
    "j": RNG.choice([-5, -3, -1, 1, 2, 7], (2, 3, 4)).astype(np.int32),
    "t": RNG.integers(0, 2, (2, 3, 4)).astype(bool),
    "m": RNG.standard_normal((4, 5)).astype(np.float32),
    "v": RNG.standard_normal(4).astype(np.float32),
    "q": RNG.standard_normal((3, 3)).astype(np.float32),
    "x": np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, -2.5], np.float32),
}
EXACT = """
i + j; i - j; i * j; i // j; i % j; i ** 3; f + g; f - g; f * g; -f; +f; abs(i); f[0] * g; f > g; i == j
f <= 0; t & t; i & 3; i | 8; i ^ j; ~i; ~t; i << 2; i >> 1; n.maximum(f, g); n.minimum(i, j); n.sign(f)
n.sign(x); n.floor(f * 3); n.ceil(f * 3); n.rint(f * 3); n.trunc(f * 3); n.round(f, 1); n.clip(f, -0.5, 0.5)
n.where(t, f, g); n.isnan(x); n.isinf(x); n.isfinite(x); n.signbit(x); n.isposinf(x); n.isneginf(x)
n.nan_to_num(x); n.logical_and(t, i); n.logical_or(t, i); n.logical_xor(t, i); n.logical_not(i)
n.fmod(i, j); n.right_shift(i, 2); n.left_shift(i, 2); n.floor_divide(f * 10, p); n.maximum(x, 0)
n.minimum(x, x[::-1]); n.sum(i); n.sum(i, 1); n.sum(i, axis=(0, 2), keepdims=True); n.max(f)
n.min(f, axis=-1); n.max(i, axis=(0, 1)); n.any(t, 0); n.all(t, -1); n.argmax(f); n.argmax(f, 1)
n.argmin(f, -1); n.argmin(i, 0); n.argmax(x[:3]); n.prod(i[0, 0]); n.cumsum(i, 1); n.cumsum(i)
n.count_nonzero(i); n.ptp(i, 0); n.sum(t); n.max(f, 1, keepdims=True); n.argmax(f, 1, keepdims=True)
n.sum(i, where=t); n.max(f, initial=-9, where=t); n.reshape(f, (6, 4)); n.reshape(f, (-1, 2))
n.reshape(f, (4, 6), order="F"); n.ravel(f); n.transpose(f); n.transpose(f, (1, 0, 2)); n.swapaxes(f, 0, 2)
n.moveaxis(f, 0, -1); n.moveaxis(f, (0, 1), (2, 0)); n.expand_dims(f, (0, 3)); n.squeeze(f[:1])
n.squeeze(f[:, :1], 1); n.broadcast_to(v, (3, 4)); n.concatenate([f, g], 1); n.concatenate([f, g], None)
n.stack([f, g], -1); n.hstack([v, v]); n.vstack([v, v]); n.split(f, 3, 1)[2]; n.split(f, [1, 3], -1)[1]
n.array_split(v, 3)[0]; n.repeat(f, 2, 1); n.repeat(f, n.asarray([1, 0, 2]), 1); n.repeat(v, 3); n.tile(v, 3)
n.tile(f, (2, 1, 2)); n.flip(f); n.flip(f, 1); n.roll(f, 2); n.roll(f, -1, 2); n.roll(f, (1, 2), (0, 1))
n.append(v, v); n.pad(f, 1); n.pad(f, ((0, 1), (2, 0), (1, 1)), constant_values=3); n.pad(m, 2, mode="edge")
n.pad(m, 3, mode="wrap"); n.pad(m, 2, mode="reflect"); n.sort(f); n.sort(f, 0); n.sort(f, None)
n.argsort(f, 1); n.argsort(i[0, 0], stable=True); n.sort(x); n.take(f, n.asarray([1, 0]), 1); n.tril(q)
n.triu(q, 1); n.tril(f, -1); n.eye(3, 4, 1); n.tri(3, 4, -1); n.arange(7); n.arange(2, 20, 3)
n.arange(5, -5, -2)
n.zeros((2, 3)); n.ones(3); n.full((2, 2), 7); n.full((2, 4), v); n.zeros_like(f); n.identity(3)
n.diagonal(f, 1, 0, 2); n.diagonal(m, -2); n.meshgrid(v, v[:2])[0]; n.meshgrid(v, v[:2], indexing="ij")[1]
n.array_equal(f, f); n.array_equal(x, x, equal_nan=True); n.allclose(f, g); n.isclose(x, x, equal_nan=True)
n.searchsorted(n.sort(v), v); n.atleast_2d(v); n.searchsorted(n.sort(v), v, side="right"); n.nonzero(i)[1]
n.flatnonzero(t); n.argwhere(t); n.matrix_transpose(f); n.unstack(f, axis=1)[2]; i @ i.swapaxes(1, 2)
n.einsum("bij->bji", f); n.einsum("ii->i", q); n.median(i, 1); f.T; f.mT; f.reshape(6, 4); f.reshape((4, 6))
f.transpose(2, 0, 1); f.ravel(); f.flatten(); f.astype("int32"); f.max(0); t.any(); t.all(); f.squeeze()
f.swapaxes(0, 1); f.round(1); f.clip(0, 1); f.argmax(1); f.argmin(); f.take(n.asarray([1]), 0); f.copy()
f.view("int32"); f.real; f.repeat(2, 0); len(f); [row.tolist() for row in i]; 3 in i; i.nonzero()[0]
f.diagonal(); i.sum(axis=1); i.min()
""".replace("\n", ";")
CLOSE = """
f / p; f % p; p ** 2.5; n.power(p, f); n.exp(f); n.exp2(f); n.expm1(f); n.log(p); n.log2(p); n.log10(p)
n.log1p(p); n.sqrt(p); n.sin(f); n.cos(f); n.tan(f); n.tanh(f); n.sinh(f); n.cosh(f); n.logaddexp(f, g)
n.hypot(f, g); n.reciprocal(p); n.square(f); n.deg2rad(f); n.rad2deg(f); n.float_power(p, 2); i / j; f ** 3
p ** -2; n.divmod(f * 10, p)[1]; n.remainder(-p, p[::-1]); n.linspace(0, 1, 7)
n.linspace(0, 5, 4, endpoint=False); n.linspace(v, 1, 3, axis=1); n.trace(m); n.arange(0, 1, 0.1)
""".replace("\n", ";")
SUMS = """
n.sum(f); n.sum(f, (0, 2)); n.mean(f); n.mean(f, 1); n.mean(i, -1, keepdims=True); n.var(f)
n.var(f, 2, ddof=1); n.std(f, 0); n.prod(p, 1); n.cumsum(f, 2); n.cumprod(p, 1); n.mean(f, where=t)
n.var(f, 0, where=t | (f > 0) | (g > 0)); n.median(f, 1); f.mean(0); f.var(); f.std(1); f.cumsum(1)
f.prod()
""".replace("\n", ";")
PRODUCTS = """
f @ m; m.T @ m; v @ m; f @ v; v @ v; n.dot(f, m); n.dot(v, v); n.dot(f, 2.0); n.inner(f, v); n.outer(v, v)
n.vdot(f, g); n.vecdot(f, g); n.tensordot(f, m, 1); n.tensordot(f, g, ((0, 1), (0, 1))); n.kron(q, q)
n.einsum("bij,jk->bik", f, m); n.einsum("bij,bij->b", f, g); n.einsum("bij,bkj->bik", f, g)
n.einsum("...j,jk->...k", f, m); n.einsum("ij,ij", m, m); n.einsum("ij->", m); n.einsum("ij->j", m)
n.einsum("bij,bij,j->bi", f, g, v); n.einsum("ii", q); n.einsum("iij->j", f[:, :2])
n.einsum("ij,jk,kl->il", q, q, q); n.einsum("...i,...i->...", f, v)
n.einsum("bhq,khd->qbd", f, f[:, :, :1].repeat(3, 1)[:, :3]); f.dot(m)
""".replace("\n", ";")


def rows(text: str) -> list[str]:
    return sorted({row.strip() for row in text.split(";") if row.strip()})


def check(text: str, kind: tolerances.Kind) -> None:
    expected = eval(text, {"n": np, **ARRAYS})
    found = eval(text, {"n": inp, **{name: inp.asarray(x) for name, x in ARRAYS.items()}})
    tolerances.assert_close(found, expected, kind)


@pytest.mark.parametrize("text", rows(EXACT))
def test_exact(text: str) -> None:
    check(text, "exact" if "round" not in text else "elementwise")


@pytest.mark.parametrize("text", rows(CLOSE))
def test_within_rounding(text: str) -> None:
    check(text, "elementwise")


@pytest.mark.parametrize("text", rows(SUMS))
def test_reductions(text: str) -> None:
    check(text, "reduction")


@pytest.mark.parametrize("text", rows(PRODUCTS))
def test_products(text: str) -> None:
    check(text, "contraction")
