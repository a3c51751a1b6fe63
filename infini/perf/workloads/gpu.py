"""The GPU suite: what memory bounds, products, attention and whole models, at sizes that fill a large GPU.

Kernels are those of the CPU suite with larger operands, so infini and JAX run the same sources; products and
attention are in bfloat16. Some have a twin written by hand in Triton (`triton_twins`).
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, Final

import ml_dtypes
import numpy as np

from infini import tree
from infini.perf.workload import Family, Program, Workload, by_shape, normal
from infini.perf.workloads import attention, elementwise, models, rows

_BF16: Final = ml_dtypes.bfloat16
_OF_COPY: Final = 0.9  # of the rate of a copy, asked of what memory bounds


def by_hand(name: str) -> Callable[[Any], Program]:
    """A kernel of `triton_twins`, which is imported when it is used."""
    return lambda torch: importlib.import_module("infini.perf.workloads.triton_twins").by_name(name, torch)


def _moved(workload: Workload, family: Family, **changes: Any) -> Workload:  # Any: fields of a workload
    """A workload of the CPU suite as one of this."""
    return dataclasses.replace(workload, name=f"gpu/{workload.name}", family=family, **changes)


def bandwidth(workload: Workload, twin: str | None = None) -> Workload:
    """Something that memory bounds."""
    return _moved(
        workload, "gpu_bandwidth", least_share=_OF_COPY, triton=None if twin is None else by_hand(twin)
    )


def product(m: int, k: int, n: int) -> Workload:
    """(m, k) by (k, n) in bfloat16."""
    return Workload(
        name=f"gpu/bf16/{by_shape((m, k, n))}",
        family="gpu_matmul",
        arguments=lambda rng: (
            normal(rng, m, k).astype(_BF16),
            normal(rng, k, n, scale=k**-0.5).astype(_BF16),
        ),
        program=lambda ns: lambda x, y: x @ y,
        torch=lambda torch: lambda x, y: x @ y,
        triton=by_hand("matmul"),
        flops=2.0 * m * k * n,
        tolerance=2e-2,
    )


def in_bfloat16(workload: Workload, **changes: Any) -> Workload:  # Any: fields of a workload
    """Attention with operands in bfloat16."""

    def arguments(rng: np.random.Generator) -> tuple[Any, ...]:
        return tuple(tree.map(lambda x: x.astype(_BF16), list(workload.arguments(rng))))

    return _moved(workload, "gpu_attention", arguments=arguments, tolerance=4e-2, **changes)


WORKLOADS: Final = (
    bandwidth(elementwise.chain(1, 1 << 26), "multiply"),
    *(bandwidth(elementwise.chain(steps, 1 << 26)) for steps in (5, 20)),
    bandwidth(elementwise.swish_gate((8192, 8192))),
    bandwidth(elementwise.adam(1 << 26)),
    bandwidth(rows.softmax((8192, 4096), is_gradient=False), "softmax"),
    bandwidth(rows.rms_norm((8192, 4096), is_gradient=False), "rms_norm"),
    *(
        bandwidth(kind((8192, 4096), is_gradient=is_gradient))
        for kind in (rows.layer_norm, rows.logsumexp)
        for is_gradient in (False, True)
    ),
    bandwidth(rows.softmax((8192, 4096), is_gradient=True)),
    bandwidth(rows.rms_norm((8192, 4096), is_gradient=True)),
    bandwidth(rows.cross_entropy((8192, 32768), is_gradient=True)),
    *(product(n, n, n) for n in (1024, 2048, 4096, 8192)),
    product(4096, 4096, 11008),
    product(16, 4096, 4096),
    *(in_bfloat16(attention.library(length, num_heads=64, head_dim=128)) for length in (1024, 4096, 8192)),
    *(
        in_bfloat16(attention.attention("causal", length, batch=4, num_heads=24, is_gradient=is_gradient))
        for length in (1024, 4096)
        for is_gradient in (False, True)
    ),
    _moved(models.gpt_step(models.config(12, 768), 8, 1024), "gpu_models"),
    _moved(models.decode(models.config(12, 768), 1024, 512), "gpu_models"),
)
TINY: Final = (
    bandwidth(elementwise.chain(1, 1000), "multiply"),
    bandwidth(rows.softmax((5, 37), is_gradient=False), "softmax"),
    bandwidth(rows.rms_norm((5, 37), is_gradient=False), "rms_norm"),
    product(33, 40, 17),
    in_bfloat16(attention.library(16, num_heads=2, head_dim=8)),
)
