"""Whole random programs give the reference's results on the CPU backend."""

from __future__ import annotations

import hypothesis
import numpy as np
from hypothesis import strategies as st

from infini.core import backend, dtypes
from infini.core.ir import Program
from infini.testing import programs

# Roundings of 16-bit floats add up over the equations of a program, and a floor or a comparison may turn
# one into a step; such
# functions are left out of the programs whose floats are compared.
SMOOTH = tuple(name for name in programs.MAKERS if name not in ("compare", "convert", "unary"))


def run(name: str, program: Program, arrays: list[np.ndarray]) -> list[np.ndarray]:
    chosen = backend.get(name)
    device = chosen.devices()[0]
    buffers = [chosen.put(x, device) for x in arrays]
    results = chosen.compile(program, backend.CompileOptions())(buffers)
    return [np.array(chosen.get(b, t)) for b, t in zip(results, program.out_types, strict=True)]


@hypothesis.given(programs.programs(families=SMOOTH), st.integers(0, 9))
def test_the_cpu_backend_agrees_with_the_reference(program: Program, seed: int) -> None:
    arrays = programs.arguments(program, seed)
    for found, wanted in zip(run("cpu", program, arrays), run("reference", program, arrays), strict=True):
        if found.dtype in dtypes.FLOATS:
            bound = 1e-4 if found.dtype == np.float32 else 0.1
            np.testing.assert_allclose(
                found.astype(np.float64), wanted.astype(np.float64), rtol=bound, atol=bound
            )
        else:
            np.testing.assert_array_equal(found, wanted)
