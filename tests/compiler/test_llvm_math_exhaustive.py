"""Vector mathematics over every float of 16 and 32 bits, against NumPy and SciPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

import infini
from infini.core import dtypes
from infini.perf import exhaustive
from infini.perf.exhaustive import Function

by_name = pytest.mark.parametrize("function", exhaustive.FUNCTIONS, ids=lambda function: function.name)


@by_name
@pytest.mark.parametrize("dtype", exhaustive.SIXTEEN_BITS, ids=str)
def test_every_float_of_16_bits_is_rounded_once(function: Function, dtype: np.dtype) -> None:
    pytest.importorskip("scipy")
    with infini.config(device="cpu"):
        worst = exhaustive.measure(function, dtype)
    assert worst.num_wrong == 0
    assert worst.ulp <= 0.51, f"at {worst.argument!r}"


@pytest.mark.night
@by_name
def test_the_stated_bound_holds_for_every_float32(function: Function) -> None:
    pytest.importorskip("scipy")
    with infini.config(device="cpu"):
        worst = exhaustive.measure(function, dtypes.float32)
    assert worst.num_wrong == 0
    assert worst.ulp <= function.bound, f"at {worst.argument!r}"
    print(f"{function.name}: {worst.ulp:.2f} at {worst.argument!r}")
