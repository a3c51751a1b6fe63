"""What a workload of the CPU and GPU suites is, and what it is written against.

A workload is data: its arguments as NumPy arrays, the program for infini and JAX, which share one source, and
the same in idiomatic PyTorch. How it is compiled, differentiated, called and timed is `contestants`'s
business, so no workload can favour a contender.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from infini.perf import jax_twin

# Any: pytrees of arrays of three frameworks, and programs over them.
Tree: TypeAlias = Any
Program: TypeAlias = Callable[..., Any]
ArrayLibrary: TypeAlias = Literal["infini", "jax"]
Family: TypeAlias = Literal[
    "elementwise",
    "rows",
    "movement",
    "matmul",
    "mlp",
    "attention",
    "paged_attention",
    "convolution",
    "models",
    "calls",
    "compile_cold",
    "compile_warm",
    "start",
    "memory",
    "tile_memory",
    "tile_product",
    "tile_convolution",
    "gpu_bandwidth",
    "gpu_matmul",
    "gpu_attention",
    "gpu_models",
]


@dataclass(frozen=True, slots=True)
class Namespace:
    """The modules that infini and JAX have under equal names; `optim`, `gpt` and `step` are infini's source
    on either of them."""

    name: ArrayLibrary
    root: ModuleType
    numpy: ModuleType
    lax: ModuleType
    nn: ModuleType
    random: ModuleType

    def own(self, module: str) -> ModuleType:
        """A module of infini that runs on both, such as `train.gpt`."""
        return jax_twin.load(module) if self.name == "jax" else importlib.import_module(f"infini.{module}")


def namespace(name: ArrayLibrary) -> Namespace:
    """The modules of one library; imports nothing of the other."""
    parts = (importlib.import_module(f"{name}.{part}") for part in ("numpy", "lax", "nn", "random"))
    return Namespace(name, importlib.import_module(name), *parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One line of the table.

    Args:
        name: `kind/size`, and what else tells it from its neighbours, between slashes.
        family: row of the table of targets it belongs to.
        arguments: makes the arguments, pytrees of NumPy arrays, from a generator that is seeded alike for
            everyone.
        program: the function of the arguments, given a namespace. For a step, a pair: the function that makes
            the state from the first argument, and the step from (state, other arguments) to (state, what is
            compared).
        torch: the same given the module torch; None when PyTorch has nothing like it. For a step, a function
            of (wrap, *arguments) that returns a function without arguments which does one step; `wrap` is
            torch.compile, or nothing.
        triton: the same by a kernel written in Triton by hand, given the module torch; None where there is
            none.
        gradient: positions of the arguments whose gradients are returned too, for a random cotangent.
        is_step: whether the program carries a state, which is donated.
        flops: floating-point operations of one call that any implementation must do; 0 when it is the bytes
            that count.
        num_bytes: bytes that must be read and written when these are not those of all arguments and results.
        is_quick: whether `--quick` includes it.
        tolerance: largest difference of results, relative to the largest value.
        compared: whether results are compared value by value or by their mean and deviation.
        least_share: share of the measured peak that is asked of infini, beside the ratio.
    """

    name: str
    family: Family
    arguments: Callable[[np.random.Generator], tuple[Tree, ...]]
    program: Callable[[Namespace], Any]
    torch: Callable[[Any], Any] | None
    triton: Callable[[Any], Any] | None = None
    gradient: tuple[int, ...] = ()
    is_step: bool = False
    flops: float = 0.0
    num_bytes: float | None = None
    is_quick: bool = False
    tolerance: float = 1e-4
    compared: Literal["values", "moments"] = "values"
    least_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked of a family against one peer, as peer's cost / infini's.

    Args:
        geomean: of all workloads of the family.
        floor: of each.
    """

    geomean: float
    floor: float | None = None


# Against JAX's jit, and against the best of PyTorch: eager, compiled, or with a kernel by hand in Triton.
TARGETS: Final[dict[Family, dict[str, Target]]] = {
    "elementwise": {"jax": Target(1.5, 1.0), "torch": Target(2.0, 1.0)},
    "rows": {"jax": Target(2.0, 1.0), "torch": Target(1.5, 1.0)},
    "movement": {"jax": Target(2.0, 1.0), "torch": Target(1.2, 0.95)},
    "matmul": {"jax": Target(1.2, 0.97), "torch": Target(1.05, 0.97)},
    "mlp": {"jax": Target(1.1), "torch": Target(1.1)},
    "attention": {"jax": Target(2.0), "torch": Target(1.3)},
    "paged_attention": {"jax": Target(2.0), "torch": Target(1.3)},
    "convolution": {"jax": Target(1.2), "torch": Target(1.0)},
    "models": {"jax": Target(1.5, 1.5), "torch": Target(1.2, 1.2)},
    "calls": {"jax": Target(2.0, 2.0)},
    "compile_cold": {"jax": Target(2.0), "torch": Target(10.0)},
    "compile_warm": {"jax": Target(10.0)},
    "start": {"jax": Target(2.0), "torch": Target(1 / 0.3)},
    "memory": {"jax": Target(1.0), "torch": Target(1 / 0.8)},
    "tile_memory": {"jax": Target(1.0, 1.0), "torch": Target(1.0, 1.0)},
    "tile_product": {"jax": Target(0.9, 0.9), "torch": Target(0.9, 0.9)},
    "tile_convolution": {"jax": Target(0.9), "torch": Target(0.9)},
    "gpu_bandwidth": {"jax": Target(1.0), "torch": Target(1.0)},
    "gpu_matmul": {"torch": Target(0.9, 0.9)},
    "gpu_attention": {"torch": Target(0.8, 0.8)},
    "gpu_models": {"jax": Target(1.0, 1.0)},
}


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Normally distributed float32."""
    found = rng.standard_normal(shape, dtype=np.float32)
    return found if scale == 1.0 else found * np.float32(scale)


def by_bytes(nbytes: int) -> str:
    """A size in a name: `64KB`, `16MB`."""
    return f"{nbytes >> 20}MB" if nbytes >= 1 << 20 else f"{nbytes >> 10}KB"


def by_shape(shape: Sequence[int]) -> str:
    """A shape in a name: `4096x1024`."""
    return "x".join(str(extent) for extent in shape)
