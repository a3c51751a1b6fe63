"""The spec of a convolution: which dimension of which operand is what, by one character each.

`"nc01,oc01->no01"` is the usual one. Digits are spatial dimensions: of the image on the left, of the kernel,
and of the result. Letters are as in a contraction: of all three a group, of both operands alone contracted,
of one operand and the result free. A convolution without digits is a contraction; groups are just letters.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from infini.core import errors
from infini.core.ir import ArrayType, Shape
from infini.core.primitive import Signature
from infini.lax import families
from infini.lax.windows import padding as padding_
from infini.lax.windows.padding import Line, Pads


@dataclass(frozen=True, slots=True)
class Spec:
    """Characters of the dimensions of the left operand, the kernel and the result."""

    lhs: str
    rhs: str
    out: str

    def __str__(self) -> str:
        return f"{self.lhs},{self.rhs}->{self.out}"

    @property
    def rank(self) -> int:
        """Number of spatial dimensions."""
        return sum(c.isdigit() for c in self.lhs)

    @property
    def digits(self) -> str:
        """The spatial dimensions in order."""
        return "".join(sorted(c for c in self.lhs if c.isdigit()))

    @property
    def letters(self) -> tuple[str, ...]:
        """The other dimensions, those of the left operand first."""
        return tuple(c for c in dict.fromkeys(self.lhs + self.rhs) if not c.isdigit())

    @property
    def contracted(self) -> str:
        """Letters that the result has not."""
        return "".join(c for c in self.letters if c not in self.out)

    @property
    def groups(self) -> str:
        """Letters of all three."""
        return "".join(c for c in self.letters if c in self.lhs and c in self.rhs and c in self.out)


@functools.cache
def parse(text: str) -> Spec:
    """A spec from its text.

    Raises:
        ValueMismatchError: the text is none.
    """
    left, _, out = text.partition("->")
    lhs, comma, rhs = left.partition(",")
    parts = (lhs, rhs, out)
    digits = [{c for c in part if c.isdigit()} for part in parts]
    rank = len(digits[0])
    is_one = (
        comma
        and all(len(set(part)) == len(part) and part.isascii() and part.isalnum() for part in parts if part)
        and all(found == {str(i) for i in range(rank)} for found in digits)
        and all(sum(c in part for part in parts) >= 2 for c in "".join(parts))
    )
    if not is_one:
        raise errors.ValueMismatchError(
            f"{text!r} is no convolution", expected="such as nc01,oc01->no01: each character in two or three"
        )
    return Spec(lhs, rhs, out)


def signature(spec: str) -> Signature:
    """Core dimensions; a spatial dimension has another letter in each array, as its sizes differ."""
    found = parse(spec)

    def named(part: str, prefix: str) -> tuple[str, ...]:
        return tuple(prefix + c if c.isdigit() else c for c in part)

    return Signature((named(found.lhs, "s"), named(found.rhs, "k")), (named(found.out, "p"),))


@dataclass(frozen=True, slots=True)
class Problem:
    """A convolution of two types.

    Args:
        spec: what each dimension is.
        sizes: size of every letter, of spatial dimension i of the left operand under `s{i}` and of the kernel
            under `k{i}`.
        lines: how the kernel lies along each spatial dimension.
        loops: loop dimensions of the result.
    """

    spec: Spec
    sizes: Mapping[str, int]
    lines: tuple[Line, ...]
    loops: Shape

    @property
    def shape(self) -> Shape:
        """Shape of the result."""
        core = (self.lines[int(c)].count if c.isdigit() else self.sizes[c] for c in self.spec.out)
        return (*self.loops, *core)

    @property
    def num_products(self) -> int:
        """Products that make one element of the result."""
        kernel = [line.window for line in self.lines]
        return families.prod([*(self.sizes[c] for c in self.spec.contracted), *kernel])


def analyse(
    x: ArrayType,
    w: ArrayType,
    *,
    spec: str,
    window_strides: tuple[int, ...],
    padding: Pads,
    lhs_dilation: tuple[int, ...],
    rhs_dilation: tuple[int, ...],
    dtype: object = None,
) -> Problem:
    """The convolution that the attributes of `conv` describe for two operands.

    Raises:
        TypeMismatchError: an operand has too few dimensions, or sizes do not go together.
    """
    found = parse(spec)
    sizes = families.core_sizes("conv", signature(spec), [x, w])
    along = padding_.lines(
        [sizes[f"s{i}"] for i in range(found.rank)],
        [sizes[f"k{i}"] for i in range(found.rank)],
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
    )
    loops = families.loop_shape("conv", [x, w], [len(found.lhs), len(found.rhs)])
    return Problem(found, sizes, tuple(along), loops)


def towards_lhs(line: Line) -> tuple[int, int]:
    """Padding of the convolution of a cotangent with the reversed kernel that gives the left operand's."""
    low = line.extent - 1 - line.low
    return low, line.base + line.extent - 1 - padding_.dilated(line.count, line.stride) - low


def towards_rhs(line: Line) -> tuple[int, int]:
    """Padding of the convolution of the left operand with a cotangent that gives the kernel's."""
    high = padding_.dilated(line.count, line.stride) - line.base + line.extent - line.low - 1
    return line.low, high
