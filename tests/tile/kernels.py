"""Kernels written by hand that the tests of the language share: each shows one part of it."""

from __future__ import annotations

import math
from typing import Any

from infini import lax, tile
from infini.tile import Tensor, block_size

Tile = Any  # Any: traced tiles and arrays

# --- fused add and gelu: one block of each array per program -----------------------------------

BLOCK = block_size(64, 1024)
_x = Tensor(1, name="x")


@tile.kernel(
    lambda *tensors: [t.tile((BLOCK,)) for t in tensors],
    tensors=(_x, Tensor(shape=_x.shape), Tensor(shape=_x.shape)),
)
def add_gelu(x: Tile, y: Tile) -> Tile:
    z = lax.add(x, y)
    return lax.mul(lax.mul(z, 0.5), lax.add(lax.erf(lax.mul(z, 1 / math.sqrt(2))), 1.0))


# --- softmax: one row per program, minus infinity outside ---------------------------------------

_rows = Tensor(2, other=-math.inf, name="rows")


def _row(tensor: Tensor) -> Tensor:
    return tensor.tile((1, -1)).squeeze(1).squeeze(0, level=1)


def _like(row: Tile, scalar: Tile) -> Tile:
    return lax.broadcast_in_dim(scalar, row.shape, ())


@tile.kernel(lambda x, y: (_row(x), _row(y)), tensors=(_rows, Tensor(shape=_rows.shape)))
def softmax(row: Tile) -> Tile:
    p = lax.exp(lax.sub(row, _like(row, lax.reduce_max(row, (0,)))))
    return lax.div(p, _like(row, lax.reduce_sum(p, (0,))))


# --- matmul: a level of blocks along K that a loop walks ----------------------------------------

BM, BN, BK = (block_size(16, 128, name=name) for name in ("BM", "BN", "BK"))
_a, _b = Tensor(2, name="a"), Tensor(2, name="b")


def _matmul_arrangement(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    c = c.tile((BM, BN))
    a = a.tile((BM, BK)).tile((1, -1)).expand((-1, c.shape[1])).squeeze(0, level=1)
    b = b.tile((BK, BN)).tile((-1, 1)).expand((c.shape[0], -1)).squeeze(1, level=1)
    return a, b, c


@tile.kernel(_matmul_arrangement, tensors=(_a, _b, Tensor(shape=(_a.shape[0], _b.shape[1]))))
def matmul(a: Tile, b: Tile) -> Tile:
    def step(total: Tile, blocks: tuple[Tile, Tile]) -> tuple[Tile, None]:
        return lax.add(total, lax.dot(*blocks, preferred_element_type="float32")), None

    total, _ = lax.scan(step, lax.full((a.shape[1], b.shape[2]), 0.0, "float32"), (a, b))
    return lax.convert_element_type(total, a.dtype)


# --- rms_norm: two operands of different rank, and a derivative given by hand -------------------

_h = Tensor(2, name="h")
_w = Tensor(shape=_h.shape[1:])


def _norm_arrangement(x: Tensor, weight: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _row(x), weight.tile((-1,)).expand((x.shape[0],)), _row(y)


def _inverse_rms(x: Tile, eps: float) -> Tile:
    mean = lax.div(lax.reduce_sum(lax.mul(x, x), (x.ndim - 1,)), float(x.shape[-1]))
    return lax.rsqrt(lax.add(mean, eps))


def _norm(x: Tile, weight: Tile, *, eps: float = 1e-6) -> Tile:
    return lax.mul(lax.mul(x, _like(x, _inverse_rms(x, eps))), weight)


def norm_definition(x: Tile, weight: Tile, *, eps: float = 1e-6) -> Tile:
    """`rms_norm` of whole arrays in plain lax."""
    scale = lax.broadcast_in_dim(_inverse_rms(x, eps), x.shape, (0,))
    return lax.mul(lax.mul(x, scale), lax.broadcast_in_dim(weight, x.shape, (1,)))


def _norm_forward(x: Tile, weight: Tile, *, eps: float = 1e-6) -> tuple[Tile, tuple[Tile, ...]]:
    return rms_norm(x, weight, eps=eps), (x, weight, _inverse_rms(x, eps))


def _norm_backward(residuals: tuple[Tile, ...], g: Tile, *, eps: float = 1e-6) -> tuple[Tile, Tile]:
    x, weight, scale = residuals
    scale = lax.broadcast_in_dim(scale, x.shape, (0,))
    normal = lax.mul(x, scale)
    weighted = lax.mul(g, lax.broadcast_in_dim(weight, x.shape, (1,)))
    mean = lax.div(lax.reduce_sum(lax.mul(weighted, normal), (1,)), float(x.shape[1]))
    moved = lax.sub(weighted, lax.mul(normal, lax.broadcast_in_dim(mean, x.shape, (0,))))
    return lax.mul(scale, moved), lax.reduce_sum(lax.mul(g, normal), (0,))


_norm_tensors = (_h, _w, Tensor(shape=_h.shape))
rms_norm = tile.kernel(
    _norm_arrangement, tensors=_norm_tensors, vjp=(_norm_forward, _norm_backward), name="rms_norm"
)(_norm)
rms_norm_by_definition = tile.kernel(
    _norm_arrangement, tensors=_norm_tensors, definition=norm_definition, name="rms_norm_by_definition"
)(_norm)
