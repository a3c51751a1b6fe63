"""Which way a contraction is computed: the library where its layout allows, or the tile kernel with one of
several tiles, measured once per shape (design 4a.15).

A product that is too small to be worth a compilation takes the first way: the library, or the usual tiles.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Final

import numpy as np

from infini.backends.accelerator import gemm
from infini.backends.accelerator.driver import Driver
from infini.backends.accelerator.tasks import Product, start
from infini.compiler import choices
from infini.compiler.choices import Choice, Chooser
from infini.compiler.triton import matmul
from infini.compiler.triton.emit import emit_triton
from infini.compiler.triton.target import GENERIC, Target
from infini.core import dtypes
from infini.core.ir import ArrayType
from infini.lax import contraction

# Products of fewer multiplications are not measured: a candidate's compilation takes a second.
MIN_MULTIPLICATIONS: Final = 1 << 22
# Runs of a candidate in one sample, as one graph: enough to be long for the clock, few of large products.
MAX_REPEATS: Final = 8
_LONG_ENOUGH: Final = 1 << 33  # multiplications
_PATTERN: Final = 1 << 20  # different elements of the operands while measuring


class Products:
    """Decides for the contractions of one program.

    Args:
        chooser: asks, and remembers.
        measuring: gives the driver to measure with; None where there is no device.
        target: what kernels are for.
    """

    def __init__(
        self, chooser: Chooser, measuring: Callable[[], Driver] | None, target: Target = GENERIC
    ) -> None:
        self.chooser, self.target = chooser, target
        self._measuring = measuring

    def product(self, x: ArrayType, y: ArrayType, spec: str, dtype: np.dtype) -> Product:
        """The way to compute a contraction without loop dimensions.

        Args:
            x: left operand.
            y: right operand.
            spec: letters, such as `bmk,bkn->bmn`.
            dtype: dtype of the result.

        Raises:
            LoweringError: no way works.
        """
        usual = _by_kernel(x, y, spec, dtype, matmul.edges_of(x.dtype)[0], self.target)
        library = gemm.plan(x, y, spec, dtype)
        multiplications = math.prod(_sizes(x, y, spec).values())
        if self._measuring is None or multiplications < MIN_MULTIPLICATIONS:
            return Product(library, usual.kernel)
        driver = self._measuring()
        ways = dict(_kernels(x, y, spec, dtype, self.target))
        if library is not None and driver.gemm_library is not None:
            ways = {driver.gemm_library: Product(library, usual.kernel), **ways}
        out = ArrayType(_result_shape(x, y, spec), dtype)
        choice = Choice(
            f"dot {spec} {x} {y} -> {out}",
            tuple(ways),
            (*driver.facts, *(way.kernel.key for way in ways.values())),
        )
        return ways[self.chooser.choose(choice, _preparing(driver, ways, (x, y), out, multiplications))]


def _preparing(
    driver: Driver,
    ways: dict[str, Product],
    types: tuple[ArrayType, ArrayType],
    out: ArrayType,
    multiplications: int,
) -> choices.Prepare:
    """What makes a way ready to be measured: operands are made when the first one is."""

    repeats = max(1, min(MAX_REPEATS, _LONG_ENOUGH // multiplications))

    @functools.cache
    def memory() -> tuple[list[int], list[int], object]:
        operands = [driver.upload(_filled(t)) for t in types]
        result = driver.allocate(out.nbytes)
        return [b.address for b in operands], [result.address], (operands, result)

    def prepare(name: str) -> Callable[[], float]:
        reads, writes, owners = memory()

        def work(_: object = owners) -> None:
            start(driver, ways[name], reads, writes)

        work()  # compiles and loads, which a graph cannot record
        driver.synchronize()
        return driver.timer(work, repeats)

    return prepare


def _filled(type_: ArrayType) -> np.ndarray:
    """An operand to measure with: a device computes faster on zeros than on data."""
    rng = np.random.default_rng(0)
    if type_.dtype in dtypes.FLOATS:
        pattern = rng.standard_normal(min(type_.size, _PATTERN)).astype(type_.dtype)
    else:
        pattern = rng.integers(0, 100, min(type_.size, _PATTERN)).astype(type_.dtype)
    return np.resize(pattern, type_.shape)


@functools.lru_cache(maxsize=1024)
def _kernels(
    x: ArrayType, y: ArrayType, spec: str, dtype: np.dtype, target: Target
) -> tuple[tuple[str, Product], ...]:
    """The kernels with tiles that differ for these sizes, by name."""
    found: dict[str, tuple[str, Product]] = {}
    for edges in matmul.edges_of(x.dtype):
        product = _by_kernel(x, y, spec, dtype, edges, target)
        found.setdefault(product.kernel.key, ("tiles " + "x".join(map(str, edges)), product))
    return tuple(found.values())


@functools.lru_cache(maxsize=4096)
def _by_kernel(
    x: ArrayType, y: ArrayType, spec: str, dtype: np.dtype, edges: tuple[int, int, int], target: Target
) -> Product:
    kernel = matmul.matmul_kernel(x, y, spec, dtype, edges)
    return Product(None, emit_triton(kernel, (x, y), name="matmul", target=target))


def _result_shape(x: ArrayType, y: ArrayType, spec: str) -> tuple[int, ...]:
    sizes = _sizes(x, y, spec)
    return tuple(sizes[c] for c in contraction.parse_spec(spec)[2])


def _sizes(x: ArrayType, y: ArrayType, spec: str) -> dict[str, int]:
    a, b, _ = contraction.parse_spec(spec)
    return dict(zip(a, x.shape, strict=True)) | dict(zip(b, y.shape, strict=True))
