"""The configurations a kernel may run in: values of its block sizes, and on GPUs how many warps a program has
and how many loads are in flight.

All give the same results up to the order of sums; which is fastest is for `infini.perf.tuning` to find out.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import sympy

from infini.core import errors
from infini.tile import blocks
from infini.tile.function import KernelFunction
from infini.tile.program import Kernel
from infini.tile.symbols import BlockSize, Size

MOST: Final = 1 << 16  # combinations that are looked at
LAUNCH: Final[dict[str, tuple[int, ...]]] = {"num_warps": (1, 2, 4, 8, 16), "num_stages": (1, 2, 3, 4)}


@dataclass(frozen=True, slots=True, order=True)
class Configuration:
    """Names and values, block sizes first."""

    values: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.values) or "nothing to choose"

    def __getitem__(self, name: str) -> int:
        return dict(self.values)[name]

    @classmethod
    def parse(cls, text: str) -> Configuration:
        """What `str` wrote."""
        parts = (part.partition("=") for part in text.split() if "=" in part)
        return cls(tuple((name, int(value)) for name, _, value in parts))


def all_of(
    kernel: KernelFunction, constraints: Sequence[Size] = (), *, has_launch: bool = False
) -> Iterator[Configuration]:
    """Every configuration: powers of two within the bounds of the block sizes that are free.

    Args:
        kernel: the kernel.
        constraints: relations between block sizes that must hold, such as `BM * BN <= 4096`.
        has_launch: whether warps and stages are part of it.

    Raises:
        ValueMismatchError: a constraint is no relation of block sizes of the kernel, or there are too many
            configurations.
    """
    symbols = free(kernel)
    _check(kernel, constraints)
    ranges = [_powers(s) for s in symbols]
    options = {n: v for n, v in LAUNCH.items() if has_launch and n not in dict(kernel.launch)}
    count = math.prod(len(values) for values in (*ranges, *options.values()))
    if count > MOST:
        raise errors.ValueMismatchError(
            f"{kernel.name} has too many configurations to look at",
            got=f"{count}",
            expected=f"at most {MOST}",
            fix="narrow the bounds of its block sizes, or fix some with configure",
        )
    for values in itertools.product(*ranges):
        named = tuple((s.name, v) for s, v in zip(symbols, values, strict=True))
        if holds(kernel, constraints, Configuration(named)):
            for launch in itertools.product(*options.values()):
                yield Configuration((*named, *zip(options, launch, strict=True)))


def free(kernel: KernelFunction) -> list[BlockSize]:
    """The block sizes that nobody has fixed."""
    return [s for s in blocks.found_in(kernel.arranged) if s.name not in kernel.block_sizes]


def holds(kernel: KernelFunction, constraints: Sequence[Size], configuration: Configuration) -> bool:
    """Whether the constraints hold."""
    chosen = {**kernel.block_sizes, **dict(configuration.values)}
    values = {s: chosen[s.name] for s in blocks.found_in(kernel.arranged)}
    return all(sympy.sympify(c, strict=True).subs(values) is sympy.true for c in constraints)


def launched(kernel: Kernel, launch: tuple[tuple[str, int], ...]) -> Kernel:
    """The tile program with these launch options instead of its own; the same when there are none."""
    return dataclasses.replace(kernel, launch=launch) if launch else kernel


def _powers(symbol: BlockSize) -> tuple[int, ...]:
    first, last = symbol.lower.bit_length() - 1, symbol.upper.bit_length() - 1
    return tuple(1 << n for n in range(first, last + 1))


def _check(kernel: KernelFunction, constraints: Sequence[Size]) -> None:
    known = set(blocks.found_in(kernel.arranged))
    for constraint in constraints:
        if not _is_relation(constraint, known):
            names = sorted(s.name for s in known)
            raise errors.ValueMismatchError(
                f"{kernel.name}: a constraint is a relation of its block sizes",
                got=str(constraint),
                expected=f"such as 2 * {names[0]} <= 256, of {', '.join(names)}"
                if names
                else "none: it has none",
            )


def _is_relation(constraint: Size, known: set[BlockSize]) -> bool:
    try:
        relation = sympy.sympify(constraint, strict=True)  # text is not evaluated
    except sympy.SympifyError:
        return False
    return isinstance(relation, sympy.logic.boolalg.Boolean) and relation.free_symbols <= known
