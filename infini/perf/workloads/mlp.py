"""Feed-forward layers, forward and gradient."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from infini.perf.workload import Program, Tree, Workload, by_shape, normal


def gelu_mlp(tokens: int, width: int, hidden: int, *, is_gradient: bool, is_quick: bool = False) -> Workload:
    """Two layers with GELU between them, as in GPT-2."""

    def arguments(rng: np.random.Generator) -> tuple[Tree, ...]:
        params = {
            "w1": normal(rng, width, hidden, scale=width**-0.5),
            "b1": normal(rng, hidden, scale=0.1),
            "w2": normal(rng, hidden, width, scale=hidden**-0.5),
            "b2": normal(rng, width, scale=0.1),
        }
        return normal(rng, tokens, width), params

    def program(ns: Any) -> Program:  # Any: Namespace
        return lambda x, p: ns.nn.gelu(x @ p["w1"] + p["b1"], approximate=True) @ p["w2"] + p["b2"]

    def in_torch(torch: Any) -> Program:  # Any: the module
        def run(x: Any, p: Any) -> Any:
            inner = torch.nn.functional.gelu(torch.addmm(p["b1"], x, p["w1"]), approximate="tanh")
            return torch.addmm(p["b2"], inner, p["w2"])

        return run

    return Workload(
        name=f"gelu_mlp/{by_shape((tokens, width, hidden))}" + ("/grad" if is_gradient else ""),
        family="mlp",
        arguments=arguments,
        program=program,
        torch=in_torch,
        gradient=(0, 1) if is_gradient else (),
        flops=4.0 * tokens * width * hidden * (3 if is_gradient else 1),
        is_quick=is_quick,
    )


def swiglu(tokens: int, width: int, hidden: int, *, is_gradient: bool, is_quick: bool = False) -> Workload:
    """silu(x G') * (x U') times D', with weights (out, in), as in LLaMA."""

    def arguments(rng: np.random.Generator) -> tuple[Tree, ...]:
        params = {
            "gate": normal(rng, hidden, width, scale=width**-0.5),
            "up": normal(rng, hidden, width, scale=width**-0.5),
            "down": normal(rng, width, hidden, scale=hidden**-0.5),
        }
        return normal(rng, tokens, width), params

    def program(ns: Any) -> Program:  # Any: Namespace
        return lambda x, p: (ns.nn.silu(x @ p["gate"].T) * (x @ p["up"].T)) @ p["down"].T

    def in_torch(torch: Any) -> Program:  # Any: the module
        functional = torch.nn.functional

        def run(x: Any, p: Any) -> Any:
            inner = functional.silu(functional.linear(x, p["gate"])) * functional.linear(x, p["up"])
            return functional.linear(inner, p["down"])

        return run

    return Workload(
        name=f"swiglu/{by_shape((tokens, width, hidden))}" + ("/grad" if is_gradient else ""),
        family="mlp",
        arguments=arguments,
        program=program,
        torch=in_torch,
        gradient=(0, 1) if is_gradient else (),
        flops=6.0 * tokens * width * hidden * (3 if is_gradient else 1),
        is_quick=is_quick,
    )


_SIZES: Final = ((256, 768, 3072), (1024, 256, 768), (64, 1024, 4096))
WORKLOADS: Final = tuple(
    kind(*size, is_gradient=is_gradient, is_quick=size == _SIZES[index])
    for index, kind in enumerate((gelu_mlp, swiglu))
    for is_gradient in (False, True)
    for size in _SIZES
)
TINY: Final = tuple(
    kind(5, 6, 7, is_gradient=is_gradient) for kind in (gelu_mlp, swiglu) for is_gradient in (False, True)
)
