"""Design 4a.12: an extent is a run-time int32 that bounds a dimension; rows beyond it are skipped."""

import numpy as np
import pytest

import infini.numpy as inp
from infini.core import backend, execute, trace
from infini.lax import elementwise, reduction

ROWS, WIDTH = 64, 32


def program():
    x, n = inp.ones((ROWS, WIDTH)), inp.asarray(5, dtype="int32")
    staged = trace.stage(
        lambda x, n: [elementwise.tanh(elementwise.mul(x, 2.0)), reduction.reduce_sum(x, (1,))],
        [x.type, n.type],
    )
    return staged.program


@pytest.mark.parametrize("rows", [0, 1, 5, 64])
def test_rows_within_the_extent_are_computed(rows):
    host = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
    options = backend.CompileOptions(extents=((1, ((0, 0),)),))
    out, total = execute.run(program(), [inp.asarray(host), inp.asarray(rows, dtype="int32")], options)
    np.testing.assert_allclose(np.asarray(out)[:rows], np.tanh(host[:rows] * 2), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(total)[:rows], host[:rows].sum(1), rtol=1e-4, atol=1e-5)


def test_one_compilation_serves_every_extent():
    options = backend.CompileOptions(extents=((1, ((0, 0),)),))
    device = backend.default_device()
    assert execute.compile(program(), device, options) is execute.compile(program(), device, options)
