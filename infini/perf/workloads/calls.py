"""What a call of a jitted function costs beside the work."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from infini.perf.workload import Program, Tree, Workload


def one_array(size: int) -> Workload:
    """One array in, one out."""
    return Workload(
        name=f"one_array/{size}",
        family="calls",
        arguments=lambda rng: (np.linspace(0, 1, size, dtype=np.float32),),
        program=lambda ns: lambda x: x + 1.0,
        torch=lambda torch: lambda x: x + 1.0,
        is_quick=True,
        num_bytes=0.0,
    )


def pytree(num_leaves: int) -> Workload:
    """A dictionary of pairs in, the same structure out."""

    def arguments(rng: np.random.Generator) -> tuple[Tree, ...]:
        def leaf(scale: float) -> np.ndarray:
            return np.linspace(0, scale, 8, dtype=np.float32)

        return ({f"layer_{i:03}": {"weight": leaf(i), "bias": leaf(-i)} for i in range(num_leaves // 2)},)

    def program(ns: Any) -> Program:  # Any: Namespace
        return lambda tree: ns.root.tree.map(lambda x: x * 2.0, tree)

    def in_torch(torch: Any) -> Program:  # Any: the module
        return lambda tree: {name: {key: x * 2.0 for key, x in pair.items()} for name, pair in tree.items()}

    return Workload(
        name=f"pytree/{num_leaves}",
        family="calls",
        arguments=arguments,
        program=program,
        torch=in_torch,
        is_quick=True,
        num_bytes=0.0,
    )


WORKLOADS: Final = (one_array(64), pytree(100))
TINY: Final = (one_array(8), pytree(4))
