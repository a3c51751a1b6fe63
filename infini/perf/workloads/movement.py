"""Reductions over any axes, running sums, sorting, and what moves data: transposes, gathers, scatters; random
numbers too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from infini.perf.workload import Program, Workload, by_shape, normal

Shape = tuple[int, ...]


def reduction(
    kind: str, shape: Shape, axis: int | tuple[int, ...] | None, *, is_quick: bool = False
) -> Workload:
    """sum, mean, max, var or argmax over axes."""

    def in_torch(torch: Any) -> Program:  # Any: the module
        name = {"max": "amax", "min": "amin"}.get(kind, kind)
        options = {"correction": 0} if kind == "var" else {}
        dims = {} if axis is None and kind != "amax" else {"dim": axis}
        return lambda x: getattr(torch, name)(x, **dims, **options)

    axes = "all" if axis is None else by_shape(axis) if isinstance(axis, tuple) else str(axis)
    return Workload(
        name=f"{kind}/{by_shape(shape)}/axis_{axes}",
        family="movement",
        arguments=lambda rng: (normal(rng, *shape),),
        program=lambda ns: lambda x: getattr(ns.numpy, kind)(x, axis=axis),
        torch=in_torch,
        is_quick=is_quick,
        # Sums that cancel: the error is relative to the largest, and a single sum may be near zero.
        tolerance=1e-3,
    )


def one(
    kind: str,
    shape: Shape,
    program: Callable[[Any], Program],  # Any: Namespace
    torch: Callable[[Any], Program],  # Any: the module
    *,
    is_quick: bool = False,
    suffix: str = "",
) -> Workload:
    """A function of one array of normally distributed numbers."""
    return Workload(
        name=f"{kind}/{by_shape(shape)}{suffix}",
        family="movement",
        arguments=lambda rng: (normal(rng, *shape),),
        program=program,
        torch=torch,
        is_quick=is_quick,
        tolerance=1e-3,
    )


def cumsum(shape: Shape, axis: int, *, is_quick: bool = False) -> Workload:
    """Running sum along an axis."""
    return one(
        "cumsum",
        shape,
        lambda ns: lambda x: ns.numpy.cumsum(x, axis=axis),
        lambda torch: lambda x: torch.cumsum(x, axis),
        is_quick=is_quick,
        suffix=f"/axis_{axis}",
    )


def top_k(shape: Shape, k: int, *, is_quick: bool = False) -> Workload:
    """Largest of each row, with their places."""
    return one(
        f"top_{k}",
        shape,
        lambda ns: lambda x: tuple(ns.lax.top_k(x, k)),
        lambda torch: lambda x: tuple(torch.topk(x, k)),
        is_quick=is_quick,
    )


def sort(shape: Shape, *, is_quick: bool = False) -> Workload:
    """Along the last axis."""
    return one(
        "sort",
        shape,
        lambda ns: lambda x: ns.numpy.sort(x, axis=-1),
        lambda torch: lambda x: torch.sort(x, -1).values,
        is_quick=is_quick,
    )


def argsort(shape: Shape, *, is_quick: bool = False) -> Workload:
    """Along the last axis."""
    return one(
        "argsort",
        shape,
        lambda ns: lambda x: ns.numpy.argsort(x, axis=-1),
        lambda torch: lambda x: torch.argsort(x, dim=-1, stable=True),
        is_quick=is_quick,
    )


def transpose(shape: Shape, axes: Shape, *, is_quick: bool = False) -> Workload:
    """Axes in another order, written out."""
    return one(
        "transpose",
        shape,
        lambda ns: lambda x: ns.numpy.transpose(x, axes),
        lambda torch: lambda x: x.permute(axes).contiguous(),
        is_quick=is_quick,
        suffix=f"/{''.join(map(str, axes))}",
    )


def concatenate(shape: Shape, *, is_quick: bool = False) -> Workload:
    """The array, its double and itself backwards, side by side."""
    return one(
        "concatenate",
        shape,
        lambda ns: lambda x: ns.numpy.concatenate([x, x * 2.0, x[::-1]], axis=1),
        lambda torch: lambda x: torch.cat([x, x * 2.0, x.flip(0)], 1),
        is_quick=is_quick,
    )


def pad(shape: Shape, *, is_quick: bool = False) -> Workload:
    """Two rows and columns of zeros on each side."""
    return one(
        "pad",
        shape,
        lambda ns: lambda x: ns.numpy.pad(x, ((2, 2), (2, 2))),
        lambda torch: lambda x: torch.nn.functional.pad(x, (2, 2, 2, 2)),
        is_quick=is_quick,
    )


def gather(num_rows: int, width: int, count: int, *, is_quick: bool = False) -> Workload:
    """Rows of a table by number."""
    return Workload(
        name=f"gather_rows/{by_shape((num_rows, width, count))}",
        family="movement",
        arguments=lambda rng: (normal(rng, num_rows, width), _indices(rng, num_rows, count)),
        program=lambda ns: lambda table, places: table[places],
        torch=lambda torch: lambda table, places: torch.nn.functional.embedding(places, table),
        is_quick=is_quick,
        num_bytes=8.0 * count * width,
    )


def take_along(shape: tuple[int, int], *, is_quick: bool = False) -> Workload:
    """Single elements of each row by number."""

    def arguments(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        return normal(rng, *shape), rng.integers(0, shape[1], shape, dtype=np.int32)

    return Workload(
        name=f"take_along_axis/{by_shape(shape)}",
        family="movement",
        arguments=arguments,
        program=lambda ns: lambda x, places: ns.numpy.take_along_axis(x, places, axis=1),
        torch=lambda torch: lambda x, places: torch.gather(x, 1, places),
        is_quick=is_quick,
    )


def embedding_gradient(num_rows: int, width: int, count: int, *, is_quick: bool = False) -> Workload:
    """The gradient of looking up rows: rows added where they came from."""

    def in_torch(torch: Any) -> Program:  # Any: the module
        def run(places: Any, update: Any) -> Any:
            return torch.ops.aten.embedding_dense_backward(update, places, num_rows, -1, False)

        return run

    return Workload(
        name=f"embedding_gradient/{by_shape((num_rows, width, count))}",
        family="movement",
        arguments=lambda rng: (_indices(rng, num_rows, count), normal(rng, count, width)),
        program=lambda ns: lambda places, update: ns.numpy.zeros((num_rows, width)).at[places].add(update),
        torch=in_torch,
        is_quick=is_quick,
    )


def scatter_add(size: int, count: int, *, is_quick: bool = False) -> Workload:
    """Single numbers added at places that repeat."""
    return Workload(
        name=f"scatter_add/{by_shape((size, count))}",
        family="movement",
        arguments=lambda rng: (normal(rng, size), _indices(rng, size, count), normal(rng, count)),
        program=lambda ns: lambda x, places, update: x.at[places].add(update),
        torch=lambda torch: lambda x, places, update: x.index_add(0, places, update),
        is_quick=is_quick,
        tolerance=1e-3,
    )


def random_normal(size: int, *, is_quick: bool = False) -> Workload:
    """Threefry in infini and JAX, bit for bit; PyTorch's generator is another, so moments are compared."""
    return Workload(
        name=f"random_normal/{size}",
        family="movement",
        arguments=lambda rng: (np.array([0, 7], np.uint32),),
        program=lambda ns: lambda key: ns.random.normal(key, (size,)),
        torch=lambda torch: lambda key: torch.randn(size),
        is_quick=is_quick,
        tolerance=4 * size**-0.5,  # four deviations of the mean of so many
        compared="moments",
    )


def _indices(rng: np.random.Generator, below: int, count: int) -> np.ndarray:
    return rng.integers(0, below, count, dtype=np.int32)


_MATRIX: Final = (4096, 1024)
WORKLOADS: Final = (
    *(reduction("sum", _MATRIX, axis, is_quick=True) for axis in (0, 1, None)),
    reduction("sum", (64, 256, 512), 1, is_quick=True),
    *(reduction("sum", (64, 256, 512), axis) for axis in ((0, 1), (0, 2), (1, 2))),
    reduction("sum", (1000, 777), 0),
    reduction("sum", (1 << 24,), None),
    reduction("sum", (65536, 64), 1),
    *(reduction("max", _MATRIX, axis, is_quick=axis == 1) for axis in (0, 1)),
    *(reduction("var", _MATRIX, axis, is_quick=axis == 0) for axis in (0, 1)),
    *(reduction("argmax", _MATRIX, axis, is_quick=True) for axis in (0, 1)),
    *(cumsum(_MATRIX, axis, is_quick=True) for axis in (0, 1)),
    cumsum((1 << 20,), 0, is_quick=True),
    top_k((512, 32768), 8, is_quick=True),
    top_k((4096, 128), 2),
    sort((1 << 20,), is_quick=True),
    sort((1024, 1024)),
    argsort((1 << 20,), is_quick=True),
    transpose((4096, 4096), (1, 0), is_quick=True),
    transpose((8, 512, 12, 64), (0, 2, 1, 3), is_quick=True),
    transpose((1000, 777), (1, 0)),
    transpose((64, 3, 128, 128), (0, 2, 3, 1)),
    concatenate((4096, 512), is_quick=True),
    pad((2048, 1024), is_quick=True),
    gather(32000, 512, 4096, is_quick=True),
    gather(1 << 20, 4, 1 << 18),
    take_along((4096, 512), is_quick=True),
    embedding_gradient(32000, 512, 4096, is_quick=True),
    embedding_gradient(1000, 64, 65536),
    scatter_add(1 << 16, 1 << 20, is_quick=True),
    scatter_add(1 << 20, 1 << 16),
    random_normal(1 << 22, is_quick=True),
    random_normal(1 << 14),
)
TINY: Final = (
    *(reduction(kind, (6, 7), 1) for kind in ("sum", "max", "var", "argmax")),
    reduction("sum", (3, 4, 5), (0, 2)),
    reduction("sum", (6, 7), None),
    cumsum((5, 6), 0),
    top_k((5, 9), 8),
    top_k((5, 9), 2),
    sort((5, 9)),
    argsort((5, 9)),
    transpose((3, 4, 5), (2, 0, 1)),
    concatenate((3, 4)),
    pad((3, 4)),
    gather(10, 4, 6),
    take_along((5, 6)),
    embedding_gradient(10, 4, 30),
    scatter_add(10, 40),
    random_normal(1 << 15),
)
