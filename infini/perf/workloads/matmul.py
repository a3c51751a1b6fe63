"""Products of matrices: squares of 32 to 2048, odd sizes, skinny, batched, transposed, by a vector, and with
weights in bfloat16."""

from __future__ import annotations

from typing import Any, Final

import ml_dtypes

from infini.perf.workload import Workload, by_shape, normal

_BF16: Final = ml_dtypes.bfloat16


def product(m: int, k: int, n: int, *, kind: str = "matmul", is_quick: bool = False) -> Workload:
    """(m, k) by (k, n)."""
    return Workload(
        name=f"{kind}/{by_shape((m, k, n))}",
        family="matmul",
        arguments=lambda rng: (normal(rng, m, k), normal(rng, k, n)),
        program=lambda ns: lambda x, y: x @ y,
        torch=lambda torch: lambda x, y: x @ y,
        flops=2.0 * m * k * n,
        is_quick=is_quick,
        least_share=0.9 if min(m, k, n) >= 512 else 0.0,
    )


def transposed(which: str, size: int, *, is_quick: bool = False) -> Workload:
    """x.T @ y, x @ y.T or x.T @ y.T."""

    def run(x: Any, y: Any) -> Any:
        return (x.T if which in {"tn", "tt"} else x) @ (y.T if which in {"nt", "tt"} else y)

    return Workload(
        name=f"matmul_{which}/{size}",
        family="matmul",
        arguments=lambda rng: (normal(rng, size, size), normal(rng, size, size)),
        program=lambda ns: run,
        torch=lambda torch: run,
        flops=2.0 * size**3,
        is_quick=is_quick,
        least_share=0.9 if size >= 512 else 0.0,
    )


def batched(batch: int, m: int, k: int, n: int, *, is_quick: bool = False) -> Workload:
    """(batch, m, k) by (batch, k, n)."""
    return Workload(
        name=f"batched/{by_shape((batch, m, k, n))}",
        family="matmul",
        arguments=lambda rng: (normal(rng, batch, m, k), normal(rng, batch, k, n)),
        program=lambda ns: lambda x, y: x @ y,
        torch=lambda torch: lambda x, y: x @ y,
        flops=2.0 * batch * m * k * n,
        is_quick=is_quick,
    )


def by_vector(which: str, k: int, n: int, *, is_quick: bool = False) -> Workload:
    """x @ w with w of shape (k, n), or w @ x with w of shape (n, k)."""
    shape, run = ((k, n), lambda x, w: x @ w) if which == "xw" else ((n, k), lambda x, w: w @ x)
    return Workload(
        name=f"gemv_{which}/{by_shape(shape)}",
        family="matmul",
        arguments=lambda rng: (normal(rng, k), normal(rng, *shape)),
        program=lambda ns: run,
        torch=lambda torch: run,
        flops=2.0 * k * n,
        is_quick=is_quick,
    )


def bf16_weights(m: int, k: int, n: int, *, is_quick: bool = False) -> Workload:
    """Activations in float32 by weights (n, k) in bfloat16, computed in float32."""
    return Workload(
        name=f"bf16_weights/{by_shape((m, k, n))}",
        family="matmul",
        arguments=lambda rng: (normal(rng, m, k), normal(rng, n, k, scale=k**-0.5).astype(_BF16)),
        program=lambda ns: lambda x, w: x @ w.astype(ns.numpy.float32).T,
        torch=lambda torch: lambda x, w: torch.nn.functional.linear(x, w.float()),
        flops=2.0 * m * k * n,
        is_quick=is_quick,
    )


def bf16_both(m: int, k: int, n: int, *, is_quick: bool = False) -> Workload:
    """Both in bfloat16 with sums in float32, the result in bfloat16."""
    return Workload(
        name=f"bf16/{by_shape((m, k, n))}",
        family="matmul",
        arguments=lambda rng: (
            normal(rng, m, k).astype(_BF16),
            normal(rng, n, k, scale=k**-0.5).astype(_BF16),
        ),
        program=lambda ns: lambda x, w: x @ w.T,
        torch=lambda torch: torch.nn.functional.linear,
        # The peak is that of float32: instructions for bfloat16 may pass it.
        flops=2.0 * m * k * n,
        is_quick=is_quick,
        tolerance=2e-2,
    )


WORKLOADS: Final = (
    *(product(n, n, n, is_quick=n in {32, 128, 512, 1024}) for n in (32, 64, 128, 256, 512, 1024, 2048)),
    *(product(*s, is_quick=s[0] == 1000) for s in ((1000, 777, 333), (511, 513, 509), (100, 4096, 100))),
    *(product(m, 4096, 4096, kind="skinny", is_quick=m in {2, 32}) for m in (2, 4, 8, 16, 32, 64)),
    product(64, 8192, 64, kind="skinny", is_quick=True),
    product(4096, 64, 4096, kind="skinny", is_quick=True),
    *(transposed(which, 512, is_quick=which != "tt") for which in ("nt", "tn", "tt")),
    *(transposed(which, 1024) for which in ("nt", "tn")),
    batched(12, 512, 64, 512, is_quick=True),
    batched(12, 512, 512, 64),
    batched(256, 32, 32, 32, is_quick=True),
    batched(32, 100, 50, 75),
    *(by_vector(which, 4096, 4096, is_quick=True) for which in ("xw", "wx")),
    by_vector("xw", 1024, 1024),
    *(bf16_weights(m, 4096, 4096, is_quick=m in {1, 32}) for m in (1, 4, 32)),
    *(bf16_both(m, 4096, 4096, is_quick=m == 1) for m in (1, 4, 32)),
    bf16_both(512, 512, 512, is_quick=True),
)
TINY: Final = (
    product(5, 7, 3),
    product(2, 9, 8, kind="skinny"),
    *(transposed(which, 6) for which in ("nt", "tn", "tt")),
    batched(3, 4, 5, 6),
    *(by_vector(which, 9, 7) for which in ("xw", "wx")),
    bf16_weights(3, 8, 5),
    bf16_both(3, 8, 5),
)
