"""Kernels written by hand in Triton, as its users write them, beside which infini's are measured on a GPU.

They are the measure, not a part of infini: nothing else imports this file, which needs Triton and PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import triton
import triton.language as tl

# Any: tensors of PyTorch and values of Triton, which have no types here.


@triton.jit
def _multiply(x, y, out, n, BLOCK: tl.constexpr):  # noqa: ANN001, ANN202
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    tl.store(out + at, tl.load(x + at, mask=inside) * tl.load(y + at, mask=inside), mask=inside)


@triton.jit
def _softmax(x, out, width, BLOCK: tl.constexpr):  # noqa: ANN001, ANN202
    row, at = tl.program_id(0).to(tl.int64) * width, tl.arange(0, BLOCK)
    inside = at < width
    values = tl.load(x + row + at, mask=inside, other=float("-inf"))
    powers = tl.exp(values - tl.max(values, axis=0))
    tl.store(out + row + at, powers / tl.sum(powers, axis=0), mask=inside)


@triton.jit
def _rms_norm(x, weight, out, width, BLOCK: tl.constexpr):  # noqa: ANN001, ANN202
    row, at = tl.program_id(0).to(tl.int64) * width, tl.arange(0, BLOCK)
    inside = at < width
    values = tl.load(x + row + at, mask=inside, other=0.0)
    scale = tl.rsqrt(tl.sum(values * values, axis=0) / width + 1e-6)
    tl.store(out + row + at, values * scale * tl.load(weight + at, mask=inside), mask=inside)


@triton.jit
def _matmul(  # noqa: ANN202, PLR0917
    x, y, out, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr  # noqa: ANN001
):  # fmt: skip
    # Eight rows of tiles at a time, so that the tiles of both operands stay in the cache.
    across = tl.cdiv(N, BN)
    group = tl.program_id(0) // (8 * across)
    height = tl.minimum(tl.cdiv(M, BM) - group * 8, 8)
    within = tl.program_id(0) % (8 * across)
    rows = (group * 8 + within % height) * BM + tl.arange(0, BM)
    columns = within // height * BN + tl.arange(0, BN)
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        depth = start + tl.arange(0, BK)
        a = tl.load(
            x + rows[:, None] * K + depth[None, :], mask=(rows[:, None] < M) & (depth[None, :] < K), other=0.0
        )
        b = tl.load(
            y + depth[:, None] * N + columns[None, :],
            mask=(depth[:, None] < K) & (columns[None, :] < N),
            other=0.0,
        )
        total = tl.dot(a, b, total)
    inside = (rows[:, None] < M) & (columns[None, :] < N)
    tl.store(out + rows[:, None] * N + columns[None, :], total.to(out.dtype.element_ty), mask=inside)


def _flat(kernel: Any, torch: Any) -> Callable[..., Any]:
    def run(x: Any, y: Any) -> Any:
        out = torch.empty_like(x)
        kernel[(triton.cdiv(x.numel(), 1024),)](x, y, out, x.numel(), BLOCK=1024)
        return out

    return run


def _by_rows(kernel: Any, torch: Any) -> Callable[..., Any]:
    def run(x: Any, *weights: Any) -> Any:
        out, width = torch.empty_like(x), x.shape[1]
        kernel[(x.shape[0],)](x, *weights, out, width, BLOCK=triton.next_power_of_2(width), num_warps=8)
        return out

    return run


def _product(kernel: Any, torch: Any) -> Callable[..., Any]:
    def run(x: Any, y: Any) -> Any:
        (m, k), n = x.shape, y.shape[1]
        bm, bn, bk = (128, 256, 64) if m >= 128 else (16, 128, 128)
        out = torch.empty((m, n), dtype=x.dtype, device=x.device)
        grid = (triton.cdiv(m, bm) * triton.cdiv(n, bn),)
        kernel[grid](x, y, out, m, n, k, BM=bm, BN=bn, BK=bk, num_warps=8 if m >= 128 else 4, num_stages=3)
        return out

    return run


_TWINS: Final[dict[str, tuple[Callable[..., Any], Any]]] = {
    "multiply": (_flat, _multiply),
    "softmax": (_by_rows, _softmax),
    "rms_norm": (_by_rows, _rms_norm),
    "matmul": (_product, _matmul),
}


def by_name(name: str, torch: Any) -> Callable[..., Any]:
    """A function of PyTorch's tensors that launches the kernel of that name."""
    make, kernel = _TWINS[name]
    return make(kernel, torch)
