"""Sentence 2: an operation declared here, in one block, is typed, mapped, jitted, differentiated, sharded
and compiled.
"""

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini.core import dtypes, primitive, trace
from infini.lax import elementwise as e, families
from infini.sharding import NamedSharding, P


@pytest.fixture
def softsign():
    op = families.elementwise(
        "softsign", dtypes.FLOATS, lambda x: x / (1 + np.abs(x)),
        jvp=(lambda g, out, x: g / families.bind_scalars(e.add_p, abs(x), 1.0) ** 2,),
        decompose=lambda x: (x / families.bind_scalars(e.add_p, abs(x), 1.0),),
    )  # fmt: skip
    yield lambda x: trace.bind1(op, x)
    primitive.unregister(op)


def test_one_block_is_enough(softsign):
    x = np.linspace(-3, 3, 24, dtype=np.float32).reshape(4, 6)
    expected, slope = x / (1 + np.abs(x)), 1 / (1 + np.abs(x)) ** 2
    with pytest.raises(TypeError, match="softsign does not take this dtype"):
        softsign(np.ones(3, np.int32))
    np.testing.assert_allclose(infini.jit(softsign)(x), expected, rtol=1e-6)
    np.testing.assert_allclose(infini.vmap(softsign)(x), expected, rtol=1e-6)
    np.testing.assert_allclose(infini.jit(infini.grad(lambda x: softsign(x).sum()))(x), slope, rtol=1e-5)
    with infini.config(cpu_devices=2, device="cpu"):
        mesh = infini.make_mesh((2,), ("data",))
        split = infini.device_put(x, NamedSharding(mesh, P("data")))
        found = infini.jit(lambda x: inp.exp(softsign(x)))(split)
    assert found.sharding.spec[0] == "data"
    np.testing.assert_allclose(found, np.exp(expected), rtol=1e-5)
