"""Chains of elementwise operations of 1 to 20 steps, from 64 KB to 256 MB, and a few that every model has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import ml_dtypes
import numpy as np

from infini.perf.workload import Namespace, Program, Workload, by_bytes, by_shape, normal

# m is a module: numpy of infini or JAX, or torch, which have these names in common.
STEPS: Final[tuple[Callable[[Any, Any, Any], Any], ...]] = (
    lambda m, x, y: x * y,
    lambda m, x, y: x + 1.5,
    lambda m, x, y: m.tanh(x),
    lambda m, x, y: x - y,
    lambda m, x, y: m.abs(x),
    lambda m, x, y: x * 0.5,
    lambda m, x, y: m.maximum(x, y),
    lambda m, x, y: m.exp(-x),
    lambda m, x, y: 1.0 / (1.0 + x),
    lambda m, x, y: m.square(x),
    lambda m, x, y: m.sqrt(x + 0.25),
    lambda m, x, y: m.log1p(x),
    lambda m, x, y: m.where(x > y, x, y),
    lambda m, x, y: x * y,
    lambda m, x, y: m.sin(x),
    lambda m, x, y: x + y,
    lambda m, x, y: m.minimum(x, y),
    lambda m, x, y: x / (2.0 + m.abs(y)),
    lambda m, x, y: m.cos(x),
    lambda m, x, y: x - 0.5,
)


def chain(num_steps: int, size: int, *, is_quick: bool = False) -> Workload:
    """The first steps on arrays of `size` float32."""

    def program(module: Any) -> Program:  # Any: a module
        def run(x: Any, y: Any) -> Any:
            for step in STEPS[:num_steps]:
                x = step(module, x, y)
            return x

        return run

    return Workload(
        name=f"chain{num_steps}/{by_bytes(4 * size)}",
        family="elementwise",
        arguments=lambda rng: (normal(rng, size), normal(rng, size)),
        program=lambda ns: program(ns.numpy),
        torch=program,
        is_quick=is_quick,
        tolerance=1e-5,
    )


def bias_relu(shape: tuple[int, int], *, is_quick: bool = False) -> Workload:
    """A row added to every row."""
    return Workload(
        name=f"bias_relu/{by_shape(shape)}",
        family="elementwise",
        arguments=lambda rng: (normal(rng, *shape), normal(rng, shape[1])),
        program=lambda ns: lambda x, b: ns.nn.relu(x + b),
        torch=lambda torch: lambda x, b: torch.relu(x + b),
        is_quick=is_quick,
    )


def gelu(shape: tuple[int, int], *, is_quick: bool = False) -> Workload:
    """GELU by tanh, with its gradient."""
    return Workload(
        name=f"gelu/{by_shape(shape)}/grad",
        family="elementwise",
        arguments=lambda rng: (normal(rng, *shape),),
        program=lambda ns: lambda x: ns.nn.gelu(x, approximate=True),
        torch=lambda torch: lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        gradient=(0,),
        is_quick=is_quick,
    )


def swish_gate(shape: tuple[int, int], *, is_quick: bool = False) -> Workload:
    """silu(x) * y in bfloat16."""
    return Workload(
        name=f"swish_gate_bf16/{by_shape(shape)}",
        family="elementwise",
        arguments=lambda rng: tuple(normal(rng, *shape).astype(ml_dtypes.bfloat16) for _ in range(2)),
        program=lambda ns: lambda x, y: ns.nn.silu(x) * y,
        torch=lambda torch: lambda x, y: torch.nn.functional.silu(x) * y,
        is_quick=is_quick,
        tolerance=2e-2,
    )


def adam(size: int, *, is_quick: bool = False) -> Workload:
    """Adam's update of one array: four are read and three written."""

    def program(module: Any) -> Program:  # Any: a module
        def run(p: Any, g: Any, m: Any, v: Any) -> Any:
            m = 0.9 * m + 0.1 * g
            v = 0.95 * v + 0.05 * g * g
            return p - 1e-3 * (m / (module.sqrt(v) + 1e-8) + 0.1 * p), m, v

        return run

    def arguments(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        p, g, m = (normal(rng, size) for _ in range(3))
        return p, g, m, np.square(normal(rng, size))

    def shared(ns: Namespace) -> Program:
        return program(ns.numpy)

    return Workload(
        name=f"adam/{by_bytes(4 * size)}",
        family="elementwise",
        arguments=arguments,
        program=shared,
        torch=program,
        is_quick=is_quick,
    )


_SIZES: Final = (1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26)

WORKLOADS: Final = (
    *(
        chain(steps, size, is_quick=steps in {1, 5, 20} and size in {1 << 14, 1 << 20, 1 << 24})
        for steps in (1, 2, 5, 10, 20)
        for size in _SIZES
    ),
    *(bias_relu(s, is_quick=s == (4096, 1024)) for s in ((256, 256), (4096, 1024), (1000, 777))),
    *(gelu(s, is_quick=s == (1024, 3072)) for s in ((256, 768), (1024, 3072))),
    swish_gate((1024, 3072), is_quick=True),
    *(adam(size, is_quick=size == 1 << 22) for size in (1 << 16, 1 << 22, 1 << 24)),
)
TINY: Final = (
    *(chain(steps, 1024) for steps in (1, 2, 5, 10, 20)),
    bias_relu((6, 5)),
    gelu((6, 5)),
    swish_gate((6, 5)),
    adam(1024),
)
