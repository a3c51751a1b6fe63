"""A convolution as its lowering sees it: values, no loop dimensions, no array without elements."""

from __future__ import annotations

import dataclasses
import itertools
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from infini.core import dtypes
from infini.core.value import Literal, Value
from infini.lax import families, view
from infini.lax.convolution.spec import Problem, Spec
from infini.lax.windows.padding import Line


@dataclass(frozen=True, slots=True, eq=False)
class Convolution:
    """Operands and what to do with them; the result has its dimensions as the spec says.

    Args:
        x: the image.
        w: the kernel.
        spec: what each dimension is.
        lines: how the kernel lies along each spatial dimension.
        dtype: dtype of the result.
    """

    x: Value
    w: Value
    spec: Spec
    lines: tuple[Line, ...]
    dtype: np.dtype

    @property
    def sizes(self) -> dict[str, int]:
        """Size of every letter, and of every digit in the result."""
        found = dict(zip(self.spec.lhs, self.x.shape, strict=True))
        found |= dict(zip(self.spec.rhs, self.w.shape, strict=True))
        return found | {str(i): line.count for i, line in enumerate(self.lines)}

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        sizes = self.sizes
        return tuple(sizes[c] for c in self.spec.out)

    @property
    def accumulator(self) -> np.dtype:
        """Dtype of sums."""
        return dtypes.float32 if self.dtype in dtypes.FLOATS and self.dtype.itemsize <= 2 else self.dtype

    @property
    def of_image(self) -> str:
        """Letters of the image and the result alone, such as that of the batch."""
        return "".join(c for c in self.spec.letters if c not in self.spec.rhs)

    @property
    def of_kernel(self) -> str:
        """Letters of the kernel and the result alone, such as that of output features."""
        return "".join(c for c in self.spec.letters if c not in self.spec.lhs)

    @property
    def window(self) -> int:
        """Elements of the kernel in all spatial dimensions."""
        return families.prod([line.window for line in self.lines])

    @property
    def count(self) -> int:
        """Elements of the result in all spatial dimensions."""
        return families.prod([line.count for line in self.lines])

    def size(self, letters: Sequence[str]) -> int:
        """Elements of some letters together."""
        sizes = self.sizes
        return families.prod([sizes[c] for c in letters])

    def padded(self) -> Value:
        """The image padded and cut to what windows reach."""
        config = [(0, 0, 0)] * self.x.ndim
        for i, line in enumerate(self.lines):
            config[self.spec.lhs.index(str(i))] = (line.low, line.reach - line.size - line.low, 0)
        return padded(self.x, config)


Compute: TypeAlias = Callable[[Convolution], Value]


def padded(x: Value, config: Sequence[tuple[int, int, int]]) -> Value:
    """An array with zeros at its ends and between its elements, or without what lies there."""
    if not any(itertools.chain(*config)):
        return x
    return view.pad(x, Literal(np.zeros((), x.dtype), weak=False), config)


def fresh(spec: Spec, count: int) -> str:
    """Letters that a spec does not use."""
    return "".join([c for c in string.ascii_letters if c not in str(spec)][:count])


def without_loops(x: Value, w: Value, problem: Problem, dtype: np.dtype) -> Convolution:
    """Loop dimensions as letters: those of both operands are groups. Those that an operand repeats are left
    out of it.
    """
    spec, count = problem.spec, len(problem.loops)
    names = fresh(spec, count)
    kept = []
    for value, letters in ((x, spec.lhs), (w, spec.rhs)):
        rank = value.ndim - len(letters)
        own = [(c, n) for c, n in zip(names[count - rank :], value.shape[:rank], strict=True) if n != 1]
        shape = (*(n for _, n in own), *value.shape[rank:])
        kept.append((view.reshape(value, shape), "".join(c for c, _ in own) + letters))
    (x, lhs), (w, rhs) = kept
    out = "".join(c for c in names if c in lhs + rhs) + spec.out
    return Convolution(x, w, Spec(lhs, rhs, out), tuple(map(_simpler, problem.lines)), dtype)


def _simpler(line: Line) -> Line:
    """The same windows without steps that are never made."""
    if line.window == 1:
        line = dataclasses.replace(line, window_dilation=1)
    if line.size == 1:
        line = dataclasses.replace(line, base_dilation=1)
    if line.count == 1:
        line = dataclasses.replace(line, stride=1, high=line.extent - line.base - line.low)
    return line
