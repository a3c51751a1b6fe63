"""Elementwise operations on the stand-in for CuPy that reach the device in an unusual way: by loops, by bits,
or as floats of 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("triton")

from infini import lax  # after the skip
from tests.backends import test_cuda_fake as on_cuda

machine, backend = on_cuda.machine, on_cuda.backend

X = np.linspace(0.3, 5.0, 60).astype(np.float32).reshape(3, 20)
E4M3, E5M2 = X.astype(ml_dtypes.float8_e4m3fn), X.astype(ml_dtypes.float8_e5m2)
CASES: dict[str, tuple[Callable[..., Any], list[np.ndarray]]] = {
    "arithmetic of float8": (lambda x: lax.add(lax.mul(x, x), x), [E4M3]),
    "to float8": (lambda x: lax.convert_element_type(lax.mul(x, 2.0), "float8_e5m2"), [X]),
    "bits of float8": (lambda x: lax.bitcast_convert_type(x, "uint8"), [E4M3]),
    "largest float8": (lambda x: lax.reduce_max(x, (1,)), [E5M2]),
    "moved float8": (lambda x: lax.transpose(x, (1, 0)), [E5M2]),
    "igamma": (lax.igamma, [X, X + 1]),
    "betainc": (lax.betainc, [X, X + 1, X / 6]),
    "zeta": (lax.zeta, [X + 1.5, X]),
    "lgamma": (lax.lgamma, [X]),
    "nextafter of bfloat16": (lax.nextafter, [X.astype(ml_dtypes.bfloat16), E4M3.astype(ml_dtypes.bfloat16)]),
    "reduce_precision": (lambda x: lax.reduce_precision(x, 5, 3), [X]),
    "bits taken apart": (lambda x: lax.bitcast_convert_type(x, "uint8"), [X]),
    "bits put together": (
        lambda x: lax.bitcast_convert_type(x, "uint32"),
        [np.arange(12, dtype=np.uint8).reshape(3, 4)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_definition(name: str, backend: Any) -> None:
    function, arrays = CASES[name]
    on_cuda.check(backend, function, *arrays, tolerance=2e-5)
