"""Storing weights in few bits while they are loaded: some rows at a time, so that no second copy of the
floats is ever in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

import infini as inf
from infini import quantization
from infini.core import errors, tree
from infini.lax.quantized import arrangement
from infini.llm.models.weights import Weight
from infini.quantization import QuantizedArray, Scheme

_ALIGNMENT: Final = 64
ROWS: Final = 256  # rows that one call stores
# For each name: how matrices are stored, and how the embedding table and the projection to logits are, whose
# errors every token sees.
_SCHEMES: Final[dict[str, tuple[Scheme, Scheme]]] = {
    "int8": (quantization.int8(), quantization.int8()),
    "q8_0": (quantization.Q8_0, quantization.Q8_0),
    "q6_k": (quantization.Q6_K, quantization.Q6_K),
    "q4_k": (quantization.Q4_K, quantization.Q6_K),
    "q4_0": (quantization.Q4_0, quantization.Q8_0),
}
NAMES: Final = tuple(_SCHEMES)
_plain = inf.jit(quantization.quantize, static_argnames="scheme")
_arranged = inf.jit(lambda x, scheme: quantization.quantize(x, scheme).arranged(), static_argnames="scheme")


def check(name: str) -> str:
    """A name of a way to store weights, in lower case.

    Raises:
        ValueMismatchError: there is none of that name.
    """
    found = name.lower()
    if found not in _SCHEMES:
        raise errors.ValueMismatchError(
            "there is no quantization of that name", got=repr(name), expected=", ".join(NAMES)
        )
    return found


def scheme_for(weight: Weight, name: str) -> Scheme | None:
    """How a weight is stored; None for one that stays as it is, as do rows that groups of 32 do not divide.

    Args:
        weight: the weight.
        name: what was asked for, one of `NAMES`.
    """
    if weight.kind == "plain":
        return None
    usual, ends = _SCHEMES[name]
    scheme = ends if weight.kind == "embedding" or weight.path[0] == "lm_head" else usual
    for own in (scheme, quantization.Q8_0):
        if own.group is None or weight.shape[-1] % own.group == 0:
            return own
    return None


def quantized(
    array: np.ndarray,
    scheme: Scheme,
    *,
    is_arranged: bool = False,
    on_rows: Callable[[int], None] | None = None,
) -> QuantizedArray:
    """Floats (..., N, K) in few bits, with planes on the host.

    Args:
        array: the floats.
        scheme: how to store them.
        is_arranged: whether rows lie side by side, as kernels of CPUs multiply them, where that is possible.
        on_rows: called with the rows that are done, after each step.
    """
    *before, count, columns = array.shape
    rows = array.reshape(math.prod(before) * count, columns)
    make = _arranged if is_arranged and can_arrange(scheme, array.shape) else _plain
    planes: list[np.ndarray] = []
    structure = None
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        size = len(part)
        if size < ROWS:  # one program serves all sizes
            part = np.concatenate([part, np.zeros((ROWS - size, columns), part.dtype)])
        found, structure = tree.flatten(make(part, scheme=scheme))
        if not planes:
            planes = [
                _aligned((len(rows) * leaf.shape[0] // ROWS, *leaf.shape[1:]), leaf.dtype) for leaf in found
            ]
        for plane, leaf in zip(planes, found, strict=True):
            per = ROWS // leaf.shape[0]  # rows that lie together
            plane[start // per : (start + size) // per] = np.asarray(leaf)[: size // per]
        if on_rows is not None:
            on_rows(start + size)
    shaped = [plane.reshape(*before, len(plane) // math.prod(before), *plane.shape[1:]) for plane in planes]
    for plane in shaped:
        plane.flags.writeable = False
    assert structure is not None
    return tree.unflatten(structure, shaped)


def can_arrange(scheme: Scheme, shape: tuple[int, ...]) -> bool:
    """Whether rows of a matrix (..., N, K) can lie side by side."""
    return arrangement.is_possible(scheme.for_row(shape[-1]), shape[-2])


@inf.jit
def arranged(array: QuantizedArray) -> QuantizedArray:
    """An array with rows side by side, where that is possible."""
    return array.arranged()


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that begins at a multiple of 64 bytes, as kernels like it."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + nbytes].view(dtype).reshape(shape)
