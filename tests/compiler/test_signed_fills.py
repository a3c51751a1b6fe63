"""Fills that differ in their sign only are different code, in one process and on disk."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini.tile.program import Access

X = np.ones(5, np.float32)


def padded(fill: float) -> Callable[[Any], Any]:
    return lambda x: 1 / inp.pad(x, (0, 3), constant_values=fill)


@pytest.mark.parametrize("order", [(0.0, -0.0), (-0.0, 0.0)])
def test_zeros_of_both_signs(order: tuple[float, float]) -> None:
    for fill in order:
        found = np.asarray(infini.jit(padded(fill))(X))
        np.testing.assert_array_equal(found[-3:], [math.copysign(math.inf, fill)] * 3)


def test_both_in_one_program() -> None:
    found = np.asarray(infini.jit(lambda x: (padded(0.0)(x), padded(-0.0)(x)))(X)).tolist()
    assert found[0][-3:] == [math.inf] * 3 and found[1][-3:] == [-math.inf] * 3


def access(fill: Any) -> Access:
    return Access((4,), ((4,),), ((1,),), (0,), fill)


def test_accesses_with_other_fills_are_other_accesses() -> None:
    assert access(0.0) != access(-0.0) and access(None) != access(0.0)
    assert access(math.nan) == access(math.nan) and len({access(math.nan), access(math.nan)}) == 1
    assert access(-math.inf) == access(-math.inf) and hash(access(1.0)) == hash(access(1.0))
