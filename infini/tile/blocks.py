"""Values of block sizes where nobody chose any: small enough for registers, no larger than the operands fill.

A deterministic rule, not a measurement; `KernelFunction.configure` overrides it, and so will the tuner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from infini.tile import symbols
from infini.tile.arrangement import Tensor
from infini.tile.symbols import BlockSize, Size

# Elements of the largest tile: at 128 threads a program, 32 values each.
MAX_TILE_SIZE: Final = 4096


def found_in(tensors: Sequence[Tensor]) -> tuple[BlockSize, ...]:
    """The block sizes that an arrangement uses, by name."""
    return symbols.block_sizes(symbol for t in tensors for symbol in t.map.block_sizes)


def choose(
    tensors: Sequence[Tensor], values: Mapping[Size, int], fixed: Mapping[str, int]
) -> dict[Size, int]:
    """Values of every symbol: those given, those fixed by name, and block sizes by the rule of this file.

    Args:
        tensors: the arranged tensors.
        values: sizes known from the operands.
        fixed: block sizes chosen by name.
    """
    chosen: dict[Size, int] = dict(values)
    free: list[BlockSize] = []
    for symbol in found_in(tensors):
        chosen[symbol] = fixed.get(symbol.name, symbol.upper)
        if symbol.name not in fixed:
            free.append(symbol)
    while too_large := [
        s for s in free if chosen[s] > s.lower and _largest_tile(tensors, chosen) > MAX_TILE_SIZE
    ]:
        chosen[max(too_large, key=lambda s: chosen[s])] //= 2
    for symbol in free:
        while chosen[symbol] > symbol.lower:
            halved = {**chosen, symbol: chosen[symbol] // 2}
            if _touched(tensors, halved) >= _touched(tensors, chosen):
                break
            chosen = halved
    return chosen


def _largest_tile(tensors: Sequence[Tensor], values: Mapping[Size, int]) -> int:
    return max((t.map.counts(values)[0] for t in tensors if len(t.map.levels) > 1), default=1)


def _touched(tensors: Sequence[Tensor], values: Mapping[Size, int]) -> int:
    """Elements that all programs load and store, those outside the arrays included."""
    return sum(t.map.counts(values)[1] for t in tensors)
