"""Softmax attention, written out in the program for infini and JAX, and by PyTorch's fused function; causal,
full and with grouped queries; forward and gradient.

Shapes: B sequences, H query heads, K key-value heads, T tokens, D head width.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np

from infini.perf.workload import Program, Tree, Workload, normal


def attention(
    kind: Literal["causal", "full", "gqa"],
    length: int,
    *,
    batch: int = 1,
    num_heads: int = 12,
    head_dim: int = 64,
    is_gradient: bool,
    is_quick: bool = False,
) -> Workload:
    """Causal, full, or causal with a third as many key-value heads as query heads."""
    num_kv_heads = num_heads // 3 if kind == "gqa" else num_heads
    is_causal = kind != "full"

    def arguments(rng: np.random.Generator) -> tuple[Tree, ...]:
        kv = (batch, num_kv_heads, length, head_dim)
        return normal(rng, batch, num_heads, length, head_dim), normal(rng, *kv), normal(rng, *kv)

    def program(ns: Any) -> Program:  # Any: Namespace
        def run(query: Any, key: Any, value: Any) -> Any:
            shape = query.shape
            query = query.reshape(batch, num_kv_heads, num_heads // num_kv_heads, length, head_dim)
            scores = ns.numpy.einsum("bkgtd,bksd->bkgts", query, key) * head_dim**-0.5
            if is_causal:
                positions = ns.numpy.arange(length)
                scores = ns.numpy.where(positions[:, None] >= positions[None, :], scores, -1e30)
            weights = ns.nn.softmax(scores, axis=-1)
            return ns.numpy.einsum("bkgts,bksd->bkgtd", weights, value).reshape(shape)

        return run

    def in_torch(torch: Any) -> Program:  # Any: the module
        fused = torch.nn.functional.scaled_dot_product_attention
        return lambda q, k, v: fused(q, k, v, is_causal=is_causal, enable_gqa=kind == "gqa")

    pairs = length * (length + 1) / 2 if is_causal else length**2
    return Workload(
        name=f"{kind}/h{num_heads}_t{length}" + ("/grad" if is_gradient else ""),
        family="attention",
        arguments=arguments,
        program=program,
        torch=in_torch,
        gradient=(0, 1, 2) if is_gradient else (),
        # The backward pass has five products of this size where the forward has two, the scores once more
        # included.
        flops=4.0 * batch * num_heads * pairs * head_dim * (3.5 if is_gradient else 1.0),
        is_quick=is_quick,
    )


def library(length: int, *, num_heads: int = 12, head_dim: int = 64, is_quick: bool = False) -> Workload:
    """nn.dot_product_attention of infini and JAX, causal."""
    shape = (1, length, num_heads, head_dim)

    def in_torch(torch: Any) -> Program:  # Any: the module
        fused = torch.nn.functional.scaled_dot_product_attention
        return lambda q, k, v: fused(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True).transpose(1, 2)

    return Workload(
        name=f"dot_product_attention/h{num_heads}_t{length}",
        family="attention",
        arguments=lambda rng: tuple(normal(rng, *shape) for _ in range(3)),
        program=lambda ns: lambda q, k, v: ns.nn.dot_product_attention(q, k, v, is_causal=True),
        torch=in_torch,
        flops=2.0 * num_heads * length * (length + 1) * head_dim,
        is_quick=is_quick,
    )


_LENGTHS: Final = (128, 512, 1024, 2048, 4096)
WORKLOADS: Final = (
    *(
        attention(
            kind, length,
            is_gradient=is_gradient,
            is_quick=length in ({128, 512, 2048} if kind == "causal" else {512}),
        )
        for kind in ("causal", "full", "gqa")
        for is_gradient in (False, True)
        for length in _LENGTHS
    ),
    library(512, is_quick=True),
)  # fmt: skip
TINY: Final = (
    *(
        attention(kind, 8, num_heads=3, head_dim=4, batch=2, is_gradient=is_gradient)
        for kind in ("causal", "full", "gqa")
        for is_gradient in (False, True)
    ),
    library(8, num_heads=2, head_dim=4),
)
