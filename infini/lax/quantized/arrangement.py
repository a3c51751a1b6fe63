"""Arranged arrays: the codes of 16 rows side by side, as processors multiply them.

A plane of bytes (..., N, G, B) is (..., N/16, G, 16 * B): of 16 rows the first four bytes of a group, then
their next four bytes, and so on. Planes with a number per group are (..., N/16, G, 16). Numbers stay what
they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from infini.core.ir import ArrayType
from infini.core.value import Value
from infini.lax import view
from infini.lax.quantized.scheme import ROWS, Scheme

WORD = 4  # bytes of a row that lie together


def is_possible(scheme: Scheme, rows: int) -> bool:
    """Whether arrays of a scheme, with a known group, can be arranged that have so many rows."""
    return rows > 0 and rows % ROWS == 0 and scheme.nbytes_of_group % WORD == 0


def has_bytes(scheme: Scheme) -> list[bool]:
    """Of each plane of a scheme, whether it has several bytes per group."""
    return [True, False, *([False] if scheme.beside else []), *([True] if scheme.part else [])]


def arranged(planes: Sequence[Value], scheme: Scheme) -> list[Value]:
    """Planes of rows one after the other as planes of 16 rows together."""
    found = []
    for plane, is_wide in zip(planes, has_bytes(scheme), strict=True):
        *loop, rows, groups = plane.shape[:-1] if is_wide else plane.shape
        n, panels = len(loop), rows // ROWS
        if is_wide:
            words = plane.shape[-1] // WORD
            x = view.reshape(plane, (*loop, panels, ROWS, groups, words, WORD))
            x = view.transpose(x, [*range(n), n, n + 2, n + 3, n + 1, n + 4])
            found.append(view.reshape(x, (*loop, panels, groups, ROWS * words * WORD)))
        else:
            x = view.reshape(plane, (*loop, panels, ROWS, groups))
            found.append(view.transpose(x, [*range(n), n, n + 2, n + 1]))
    return found


def plain(planes: Sequence[Value], scheme: Scheme) -> list[Value]:
    """What `arranged` undoes."""
    return [
        _plain(p, b, view.reshape, view.transpose) for p, b in zip(planes, has_bytes(scheme), strict=True)
    ]


def plain_host(planes: Sequence[np.ndarray], scheme: Scheme) -> list[np.ndarray]:
    """`plain` in NumPy."""
    return [_plain(p, b, np.reshape, np.transpose) for p, b in zip(planes, has_bytes(scheme), strict=True)]


def plain_types(planes: Sequence[ArrayType], scheme: Scheme) -> list[ArrayType]:
    """Types of planes as they are where every row is for itself; for planes that are none, what they are."""
    kinds = has_bytes(scheme)
    if scheme.rows == 1 or len(kinds) != len(planes) or any(p.ndim < 3 or p.shape[-1] % ROWS for p in planes):
        return list(planes)
    found = []
    for type_, is_wide in zip(planes, kinds, strict=True):
        *loop, panels, groups, last = type_.shape
        own = (last // ROWS,) if is_wide else ()
        found.append(type_.update(shape=(*loop, panels * ROWS, groups, *own)))
    return found


def row_of(planes: Sequence[Any], scheme: Scheme, index: Any) -> list[Any]:  # Any: arrays and integers
    """The planes of rows by their numbers, each row for itself."""
    found = []
    for plane, is_wide in zip(planes, has_bytes(scheme), strict=True):
        panels, groups, last = plane.shape
        if is_wide:
            words = last // (ROWS * WORD)
            split = view.reshape(plane, (panels, groups, words, ROWS, WORD))
            rows = split[index // ROWS, :, :, index % ROWS]
            found.append(view.reshape(rows, (*rows.shape[:-2], words * WORD)))
        else:
            found.append(plane[index // ROWS, :, index % ROWS])
    return found


def _plain(x: Any, is_wide: bool, reshape: Callable[..., Any], transpose: Callable[..., Any]) -> Any:
    # Any: arrays of either library
    *loop, panels, groups, last = x.shape
    n = len(loop)
    if is_wide:
        words = last // (ROWS * WORD)
        x = reshape(x, (*loop, panels, groups, words, ROWS, WORD))
        x = transpose(x, [*range(n), n, n + 3, n + 1, n + 2, n + 4])
        return reshape(x, (*loop, panels * ROWS, groups, words * WORD))
    return reshape(transpose(x, [*range(n), n, n + 2, n + 1]), (*loop, panels * ROWS, groups))
