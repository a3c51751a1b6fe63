"""Operations along split dimensions under mpirun: one job runs them all."""

import pytest

from tests.parallel.test_mpi import mpirun

pytestmark = pytest.mark.multi

BODY = """
from infini.core import tree
generator = np.random.default_rng(0)
numbers = lambda *shape: generator.standard_normal(shape).astype(np.float32)
conv = lambda x, w: lax.conv_general_dilated(x, w, (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
pool = lambda x: lax.reduce_window(x, -np.inf, lax.max, (3, 1), (2, 1), ((0, 1), (0, 0)))
rows, image = numbers(16, 4), numbers(2, 16, 4, 3)
CASES = {
    "cumsum": (lambda x: lax.cumsum(x, 0), [rows], [P("x")]),
    "cummax": (lambda x: lax.cummax(x, 0, reverse=True), [rows], [P("x")]),
    "top_k": (lambda x: lax.top_k(x, 2, axis=0), [rows], [P("x")]),
    "argmin": (lambda x: lax.argmin(x, 0, np.int32), [rows], [P("x")]),
    "product": (lambda x: x.prod(0), [rows], [P("x")]),
    "sort": (lambda x: lax.sort(x, 0), [rows], [P("x")]),
    "views": (lambda x: (x[::-1], x[5], x[8:], lax.pad(x, np.float32(2), [(1, -1, 0), (0, 0, 0)])),
              [rows], [P("x")]),
    "concatenate": (lambda x: inp.concatenate([x, -x]), [rows], [P("x")]),
    "convolution": (conv, [image, numbers(3, 3, 3, 2)], [P(None, "x"), P()]),
    "gradients": (inf.grad(lambda x, w: inp.sin(conv(x, w)).sum(), argnums=(0, 1)),
                  [image, numbers(3, 3, 3, 2)], [P(None, "x"), P()]),
    "pooling": (inf.grad(lambda x: inp.sin(pool(x)).sum()), [rows], [P("x")]),
}
for name, (f, args, specs) in CASES.items():
    placed = [inf.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(args, specs)]
    found = inf.jit(f, out_shardings=everywhere)(*placed)
    for a, b in zip(tree.leaves(found), tree.leaves(inf.jit(f)(*args)), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-5, err_msg=name)
say("equal")
"""


def test_results_equal_those_of_one_process(mpirun_path):
    code, out, err = mpirun(mpirun_path, BODY)
    assert (code, out.split()) == (0, ["equal", "equal"]), err
