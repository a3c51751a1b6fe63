"""Attention of a split sequence under mpirun: one job runs every form, with overlap and without."""

import pytest

from tests.parallel.test_mpi import mpirun

pytestmark = pytest.mark.multi

BODY = """
from infini import nn
from infini.sharding import Collectives
generator = np.random.default_rng(0)
args = [generator.standard_normal((2, 32, 4, 8)).astype(np.float32) for _ in range(3)]
spec = P(None, "x")

def f(q, k, v):
    value, back = inf.vjp(lambda q, k, v: nn.dot_product_attention(q, k, v, is_causal=True), q, k, v)
    return value, *back(np.cos(1.0) * value)

wanted = [np.asarray(x) for x in inf.jit(f)(*args)]
for form in ("gather", "ring", "all_to_all"):
    for bucket in (1, 1 << 20):
        run = inf.shard(
            f, mesh=mesh, in_specs=spec, out_specs=P(), strategies={"attention": form},
            collectives=Collectives(bucket, bucket),
        )
        for a, b in zip(run(*args), wanted, strict=True):
            np.testing.assert_allclose(np.asarray(a), b, rtol=1e-5, atol=1e-5, err_msg=form)
say("equal")
"""


def test_every_form_equals_one_process(mpirun_path):
    code, out, err = mpirun(mpirun_path, BODY)
    assert (code, out.split()) == (0, ["equal", "equal"]), err
