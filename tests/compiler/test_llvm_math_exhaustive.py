"""Vector mathematics over the whole range of float32: every 16th bit pattern, against NumPy in float64."""

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import lax

STRIDE, CHUNK = 16, 1 << 24
# Bounds in units of the last place of the exact result, as `compiler/llvm/math.py` states them.
BOUNDS = {
    "exp": (inp.exp, np.exp, 2.0),
    "log": (inp.log, np.log, 1.5),
    "tanh": (inp.tanh, np.tanh, 5.0),
    "logistic": (lax.logistic, lambda x: 1 / (1 + np.exp(-x)), 4.0),
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
