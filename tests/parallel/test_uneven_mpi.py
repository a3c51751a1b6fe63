"""Dimensions that processes do not divide, under mpirun: one job runs all cases."""

import pytest

from tests.parallel.test_mpi import mpirun

pytestmark = pytest.mark.multi

BODY = """
from infini.core import tree
config = inf.config(check=1)
config.__enter__()
numbers = lambda *shape: np.random.default_rng(0).standard_normal(shape).astype(np.float32)
def trained(w, x):
    return w - 0.1 * inf.grad(lambda w: (inp.tanh(x @ w) ** 2).sum())(w)
def scanned(x):
    return lax.scan(lambda c, row: (c + row.max(), c.cumsum()), x[0], x)
CASES = {
    "one element": (lambda x: x + 1, [numbers(1)], [P("x")]),
    "reductions": (lambda x: (x.sum(0), x.max(0), x.prod(0), inp.argmin(x, 0), x.std()),
                   [numbers(5, 3)], [P("x")]),
    "order": (lambda x: (inp.sort(x, 0), lax.top_k(x, 2, axis=0), x[::-1]), [numbers(5, 3)], [P("x")]),
    "running": (lambda x: (inp.cumsum(x, 0), lax.cummax(x, 0, reverse=True)), [numbers(5, 3)], [P("x")]),
    "training": (trained, [numbers(7, 5), numbers(3, 7)], [P("x"), P()]),
    "batch": (trained, [numbers(7, 5), numbers(3, 7)], [P(), P("x")]),
    "columns": (trained, [numbers(7, 5), numbers(3, 7)], [P(None, "x"), P(None, "x")]),
    "scan": (scanned, [numbers(5, 3)], [P(None, "x")]),
    "gathered": (lambda x: inp.concatenate([x, x * 2]), [numbers(5)], [P("x")]),
}
for name, (f, args, specs) in CASES.items():
    placed = [inf.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(args, specs)]
    found = inf.jit(f, out_shardings=everywhere)(*placed)
    for a, b in zip(tree.leaves(found), tree.leaves(inf.jit(f)(*args)), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-5, err_msg=name)
part = inf.device_put(np.arange(5.0, dtype=np.float32), NamedSharding(mesh, P("x")))
say(parallel.process_index(), [np.asarray(s.data).tolist() for s in part.addressable_shards])
"""


def test_results_equal_those_of_one_process(mpirun_path):
    code, out, err = mpirun(mpirun_path, BODY)
    assert code == 0, err
    assert sorted(out.splitlines()) == ["0 [[0.0, 1.0, 2.0]]", "1 [[3.0, 4.0]]"]
