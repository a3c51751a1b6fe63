"""What a contraction is for the machine: sizes and strides of batch, m, n and k, whatever letters the spec
has.

Dimensions that lie one after the other in every array are joined. Loop dimensions that one operand repeats
count as free dimensions of the other, so a stack of activations times one weight is a single matrix
product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infini.compiler.llvm.indexing import c_strides
from infini.core import ir
from infini.core.ir import ArrayType
from infini.lax import contraction, families


@dataclass(frozen=True, slots=True)
class Dimension:
    """One dimension of the product space: its size and its stride in elements in x, y and the result."""

    size: int
    x: int
    y: int
    out: int

    def swapped(self) -> Dimension:
        """The same with the operands exchanged."""
        return Dimension(self.size, self.y, self.x, self.out)


ONE = Dimension(1, 0, 0, 0)
SINGLE = Dimension(1, 1, 1, 0)  # a contraction of one product; contiguous, as nothing says otherwise


@dataclass(frozen=True, slots=True)
class Problem:
    """A batch of matrix products.

    Args:
        batch: dimensions of the batch; m and n dimensions that do not join are among them, with stride 0 in
            one operand.
        m: free dimension of x.
        n: free dimension of y; where possible the one along which the result is contiguous.
        k: contracted dimensions, usually one.
        is_swapped: whether x and y have changed places.
    """

    batch: tuple[Dimension, ...]
    m: Dimension
    n: Dimension
    k: tuple[Dimension, ...]
    is_swapped: bool = False

    @property
    def num_batches(self) -> int:
        """Products in the batch."""
        return int(np.prod([d.size for d in self.batch], dtype=np.int64))

    @property
    def depth(self) -> int:
        """Length of the contraction."""
        return int(np.prod([d.size for d in self.k], dtype=np.int64))

    @property
    def flops(self) -> float:
        """Floating-point operations, two per product."""
        return 2.0 * self.num_batches * self.m.size * self.n.size * self.depth

    def swapped(self) -> Problem:
        """The transposed problem: x and y, m and n change places."""
        return Problem(
            tuple(d.swapped() for d in self.batch),
            self.n.swapped(),
            self.m.swapped(),
            tuple(d.swapped() for d in self.k),
            not self.is_swapped,
        )


def analyse(x: ArrayType, y: ArrayType, spec: str) -> Problem:
    """The matrix products that a contraction is."""
    a, b, out = contraction.parse_spec(spec)
    loops = families.loop_shape("dot", [x, y], [len(a), len(b)])
    x_strides, y_strides = _strides(x, a, len(loops)), _strides(y, b, len(loops))
    sizes = _sizes(x, a) | _sizes(y, b) | {f"loop{i}": n for i, n in enumerate(loops)}
    names = [*(f"loop{i}" for i in range(len(loops))), *out]
    out_strides = dict(zip(names, c_strides(tuple(sizes[name] for name in names)), strict=True))
    order = [*names, *dict.fromkeys(letter for letter in a + b if letter not in out)]
    groups: dict[str, list[Dimension]] = {"batch": [], "m": [], "n": [], "k": []}
    for name in order:
        d = Dimension(sizes[name], x_strides.get(name, 0), y_strides.get(name, 0), out_strides.get(name, 0))
        if d.size == 1:
            continue
        kind = "k" if name not in out_strides else "batch" if d.x and d.y else "m" if d.x else "n"
        groups[kind].append(d)
    batch = groups["batch"]
    m, n = _largest(_joined(groups["m"]), batch), _largest(_joined(groups["n"]), batch)
    k = sorted(_joined(groups["k"]), key=lambda d: -d.y)
    problem = Problem(tuple(_joined(batch)), m, n, tuple(k) or (SINGLE,))
    return problem.swapped() if n.out != 1 and (m.out == 1 or n.size == 1) else problem


def _strides(type_: ArrayType, letters: str, num_loops: int) -> dict[str, int]:
    """Stride of each letter and loop dimension of one operand; repeated loop dimensions have none."""
    strides = c_strides(type_.shape)
    rank = type_.ndim - len(letters)
    found = dict(zip(letters, strides[rank:], strict=True))
    for i in range(rank):
        if type_.shape[i] != 1:
            found[f"loop{num_loops - rank + i}"] = strides[i]
    return found


def _sizes(type_: ArrayType, letters: str) -> dict[str, int]:
    shape: ir.Shape = type_.shape[type_.ndim - len(letters) :] if letters else ()
    return dict(zip(letters, shape, strict=True))


def _joined(dimensions: Sequence[Dimension]) -> list[Dimension]:
    """Neighbours joined where the outer one continues the inner one in every array."""
    result: list[Dimension] = []
    for d in sorted(dimensions, key=lambda d: (-d.out, -d.x, -d.y)):
        last = result[-1] if result else None
        if last and (last.x, last.y, last.out) == (d.x * d.size, d.y * d.size, d.out * d.size):
            result[-1] = Dimension(last.size * d.size, d.x, d.y, d.out)
        else:
            result.append(d)
    return result


def _largest(dimensions: list[Dimension], batch: list[Dimension]) -> Dimension:
    """The dimension to be m or n: contiguous in the result if one is, else the largest. The others join the
    batch."""
    if not dimensions:
        return ONE
    chosen = max(dimensions, key=lambda d: (d.out == 1, d.size))
    batch.extend(d for d in dimensions if d is not chosen)
    return chosen
