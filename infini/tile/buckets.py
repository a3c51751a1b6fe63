"""Shapes that share a tuned configuration: sizes are rounded up to powers of two."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from infini.core.ir import ArrayType


def bucket(types: Sequence[ArrayType]) -> tuple[ArrayType, ...]:
    """The types that stand for these."""
    return tuple(t.update(shape=tuple(1 << (n - 1).bit_length() if n else 0 for n in t.shape)) for t in types)


def key(types: Sequence[ArrayType], static: Mapping[str, Any]) -> Hashable:  # Any: hashable arguments
    """What a tuned configuration goes by."""
    return bucket(types), tuple((name, type(static[name]), static[name]) for name in sorted(static))
