"""Vector mathematics over the whole range of float32: every 16th bit pattern, against NumPy in float64."""

import numpy as np
import pytest

import infini
from infini import lax

STRIDE, CHUNK = 16, 1 << 24
# Bounds in units of the last place of the exact result, as `compiler/llvm/math.py` states them.
BOUNDS = {
    "exp": (lax.exp, np.exp, 2.0),
    "exp2": (lax.exp2, np.exp2, 2.0),
    "expm1": (lax.expm1, np.expm1, 2.0),
    "log": (lax.log, np.log, 1.5),
    "log1p": (lax.log1p, np.log1p, 2.0),
    "tanh": (lax.tanh, np.tanh, 5.0),
    "logistic": (lax.logistic, lambda x: 1 / (1 + np.exp(-x)), 4.0),
    "sin": (lax.sin, np.sin, 2.0),
    "cos": (lax.cos, np.cos, 2.0),
    "tan": (lax.tan, np.tan, 4.0),
    "asin": (lax.asin, np.arcsin, 3.0),
    "acos": (lax.acos, np.arccos, 2.0),
    "atan": (lax.atan, np.arctan, 2.5),
    "sinh": (lax.sinh, np.sinh, 3.0),
    "cosh": (lax.cosh, np.cosh, 3.0),
    "asinh": (lax.asinh, np.arcsinh, 2.5),
    "acosh": (lax.acosh, np.arccosh, 2.5),
    "atanh": (lax.atanh, np.arctanh, 3.0),
    "cbrt": (lax.cbrt, np.cbrt, 1.5),
}


@pytest.mark.night
@pytest.mark.parametrize("name", BOUNDS)
def test_bound_holds_over_every_sixteenth_float(name):
    ours, exact, bound = BOUNDS[name]
    compiled, worst = infini.jit(ours), 0.0
    with infini.config(device="cpu"), np.errstate(all="ignore"):
        for start in range(0, 1 << 32, STRIDE * CHUNK):
            bits = np.arange(start, start + STRIDE * CHUNK, STRIDE, dtype=np.uint64).astype(np.uint32)
            x = bits.view(np.float32)
            found, expected = np.asarray(compiled(x)), exact(x.astype(np.float64))
            rounded = expected.astype(np.float32)
            np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
            normal = np.isfinite(rounded) & (np.abs(rounded) >= np.finfo(np.float32).tiny)
            np.testing.assert_array_equal(found[np.isinf(rounded)], rounded[np.isinf(rounded)])
            error = np.abs(found[normal] - expected[normal]) / np.spacing(np.abs(rounded[normal]))
            worst = max(worst, float(error.max(initial=0.0)))
    assert worst <= bound
