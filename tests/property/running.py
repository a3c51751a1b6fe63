"""Running a program on a backend, and comparing results of programs whose order of rounding may differ."""

from __future__ import annotations

import numpy as np

from infini.core import backend, dtypes
from infini.core.ir import Program


def run(
    name: str, program: Program, arrays: list[np.ndarray], *, donated: tuple[int, ...] = ()
) -> list[np.ndarray]:
    chosen = backend.get(name)
    device = chosen.devices()[0]
    buffers = [chosen.put(x, device) for x in arrays]
    results = chosen.compile(program, backend.CompileOptions(donated=donated))(buffers)
    return [np.array(chosen.get(b, t)) for b, t in zip(results, program.out_types, strict=True)]


def close(found: np.ndarray, wanted: np.ndarray, what: str) -> None:
    """Equal, or for floats close: roundings add up over the equations of a program."""
    if found.dtype not in dtypes.FLOATS:
        np.testing.assert_array_equal(found, wanted, err_msg=what)
        return
    bound = 1e-4 if found.dtype.itemsize >= 4 else 0.1
    np.testing.assert_allclose(
        found.astype(np.float64), wanted.astype(np.float64), rtol=bound, atol=bound, err_msg=what
    )
