"""Kernels in the kernel language, those of `examples/tile`, beside the operators that JAX and PyTorch have.

infini runs the kernel, JAX what its users write, PyTorch its operator. The examples are read from the source
tree, where this suite runs.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from infini.perf import record
from infini.perf.workload import Family, Namespace, Program, Workload, by_shape, normal

_EPSILON: Final = 1e-6


# Block sizes that fill the nearest caches of a CPU; what is chosen without being told suits a GPU.
_BLOCKS: Final = {"BM": 128, "BN": 128, "BK": 128}


@functools.cache
def example(name: str) -> Program:
    """The kernel of an example, products in blocks for a CPU."""
    path = record.ROOT / "examples" / "tile" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"infini_example_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kernel: Any = getattr(module, name)
    return kernel.configure(**_BLOCKS) if name in {"mm", "addmm", "bmm"} else kernel


def _made(
    name: str,
    shape: tuple[int, ...],
    arguments: Callable[[np.random.Generator], tuple[Any, ...]],
    plain: Callable[[Namespace], Program],
    torch: Callable[[Any], Program],
    *,
    family: Family = "tile_memory",
    flops: float = 0.0,
) -> Workload:
    return Workload(
        name=f"tile/{name}/{by_shape(shape)}",
        family=family,
        arguments=arguments,
        program=lambda ns: example(name) if ns.name == "infini" else plain(ns),
        torch=torch,
        flops=flops,
        is_quick=True,
    )


def lines(name: str, size: int) -> Workload:
    """add, silu or swiglu of lines."""
    numbers = 1 if name == "silu" else 2
    of_arrays: dict[str, Callable[[Any], Program]] = {
        "add": lambda nn: lambda x, y: x + y,
        "silu": lambda nn: nn.silu,
        "swiglu": lambda nn: lambda x, y: x * nn.silu(y),
    }
    return _made(
        name,
        (size,),
        lambda rng: tuple(normal(rng, size) for _ in range(numbers)),
        lambda ns: of_arrays[name](ns.nn),
        lambda torch: of_arrays[name](torch.nn.functional),
    )


def softmax(rows: int, width: int) -> Workload:
    """Along rows."""
    return _made(
        "softmax",
        (rows, width),
        lambda rng: (normal(rng, rows, width),),
        lambda ns: ns.nn.softmax,
        lambda torch: lambda x: torch.softmax(x, -1),
    )


def rms_norm(rows: int, width: int, *, is_fused: bool) -> Workload:
    """Along rows, with a weight when it is fused."""

    def plain(ns: Namespace) -> Program:
        def run(x: Any, *rest: Any) -> Any:
            *weight, epsilon = rest
            x = x * ns.lax.rsqrt(ns.numpy.mean(ns.numpy.square(x), -1, keepdims=True) + epsilon)
            return x * weight[0] if weight else x

        return run

    def in_torch(torch: Any) -> Program:  # Any: the module
        norm = torch.nn.functional.rms_norm
        return lambda x, *rest: norm(x, (width,), rest[0] if is_fused else None, _EPSILON)

    return _made(
        "fused_rms_norm" if is_fused else "rms_norm",
        (rows, width),
        lambda rng: (
            normal(rng, rows, width),
            *([normal(rng, width)] if is_fused else []),
            np.float32(_EPSILON),
        ),
        plain,
        in_torch,
    )


def rotary(batch: int, tokens: int, heads: int, size: int) -> Workload:
    """Halves of heads turned by the angles of their tokens."""

    def turned(concatenate: Callable[..., Any]) -> Program:
        def run(x: Any, sin: Any, cos: Any) -> Any:
            sin, cos = sin[:, None], cos[:, None]
            first, second = x[..., : size // 2], x[..., size // 2 :]
            return concatenate((first * cos - second * sin, second * cos + first * sin), -1)

        return run

    return _made(
        "rotary_position_embedding",
        (batch, tokens, heads, size),
        lambda rng: (
            normal(rng, batch, tokens, heads, size),
            normal(rng, tokens, size // 2),
            normal(rng, tokens, size // 2),
        ),
        lambda ns: turned(ns.numpy.concatenate),
        lambda torch: turned(torch.cat),
    )


def max_pool(batch: int, channels: int, size: int) -> Workload:
    """Windows of three by three, side by side."""
    window = (1, 1, 3, 3)
    return _made(
        "max_pool2d",
        (batch, channels, size, size),
        lambda rng: (normal(rng, batch, channels, size, size),),
        lambda ns: lambda x: ns.lax.reduce_window(x, -np.inf, ns.lax.max, window, window, "VALID"),
        lambda torch: lambda x: torch.nn.functional.max_pool2d(x, 3),
    )


def product(name: str, shape: tuple[int, ...]) -> Workload:
    """mm and addmm of (m, k, n), bmm of (batch, m, k, n)."""
    *batch, m, k, n = shape

    def arguments(rng: np.random.Generator) -> tuple[Any, ...]:
        pair = normal(rng, *batch, m, k), normal(rng, *batch, k, n)
        return (normal(rng, m, n), *pair, np.float32(0.5), np.float32(2.0)) if name == "addmm" else pair

    def run(*arrays: Any) -> Any:
        if name != "addmm":
            return arrays[0] @ arrays[1]
        c, a, b, beta, alpha = arrays
        return beta * c + alpha * (a @ b)

    def in_torch(torch: Any) -> Program:  # Any: the module
        if name != "addmm":
            return run
        return lambda c, a, b, beta, alpha: torch.addmm(c, a, b, beta=0.5, alpha=2.0)

    return _made(
        name, shape, arguments, lambda ns: run, in_torch, family="tile_product", flops=2.0 * np.prod(shape)
    )


def attention(batch: int, heads: int, tokens: int, size: int) -> Workload:
    """Full attention."""

    def plain(ns: Namespace) -> Program:
        def run(q: Any, k: Any, v: Any) -> Any:
            weights = ns.nn.softmax(q @ ns.numpy.swapaxes(k, 2, 3) / size**0.5)
            return weights @ v

        return run

    return _made(
        "scaled_dot_product_attention",
        (batch, heads, tokens, size),
        lambda rng: tuple(normal(rng, batch, heads, tokens, size) for _ in range(3)),
        plain,
        lambda torch: torch.nn.functional.scaled_dot_product_attention,
        family="tile_product",
        flops=4.0 * batch * heads * tokens**2 * size,
    )


def convolution(batch: int, channels: int, size: int, features: int) -> Workload:
    """Filters of three by three without padding, channels first."""
    return _made(
        "conv2d",
        (batch, channels, size, features),
        lambda rng: (
            normal(rng, batch, channels, size, size),
            normal(rng, features, channels, 3, 3, scale=(9 * channels) ** -0.5),
        ),
        lambda ns: lambda x, w: ns.lax.conv_general_dilated(x, w, (1, 1), "VALID"),
        lambda torch: torch.nn.functional.conv2d,
        family="tile_convolution",
        flops=18.0 * batch * (size - 2) ** 2 * channels * features,
    )


WORKLOADS: Final = (
    *(lines(name, 1 << 22) for name in ("add", "silu", "swiglu")),
    softmax(4096, 1024),
    *(rms_norm(4096, 1024, is_fused=is_fused) for is_fused in (False, True)),
    rotary(4, 512, 12, 64),
    max_pool(8, 64, 57),
    product("mm", (1024, 1024, 1024)),
    product("addmm", (1024, 1024, 1024)),
    product("bmm", (12, 512, 512, 512)),
    attention(1, 12, 1024, 64),
    convolution(8, 64, 56, 64),
)
TINY: Final = (
    *(lines(name, 1000) for name in ("add", "silu", "swiglu")),
    softmax(6, 10),
    *(rms_norm(6, 10, is_fused=is_fused) for is_fused in (False, True)),
    rotary(2, 5, 3, 8),
    max_pool(2, 3, 9),
    product("mm", (33, 40, 17)),
    product("addmm", (33, 40, 17)),
    product("bmm", (2, 17, 20, 18)),
    attention(1, 2, 19, 8),
    convolution(1, 5, 9, 6),
)
