"""Design 4a.8: operations with a partition rule of their own compute what the whole program computes; random
bits do not depend on the mesh; a predicate that is split is replicated first.
"""

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax, random
from infini.sharding import NamedSharding, P, make_mesh

X = np.arange(64, dtype=np.float32).reshape(8, 8)
PROGRAMS = {
    "iota": lambda x: x + lax.broadcasted_iota("float32", (8, 8), 0),
    "random bits": lambda x: x + random.uniform(random.key(3), (8, 8)),
    "pad": lambda x: lax.pad(x, 1.0, ((1, 2, 0), (0, 0, 1))),
    "slice": lambda x: x[1:7, ::2],
    "concatenate": lambda x: inp.concatenate([x, x + 1]),
    "rev": lambda x: x[::-1],
    "gather": lambda x: x[np.array([3, 0, 7])],
    "scatter": lambda x: x.at[np.array([1, 6])].add(1.0),
    "dynamic_slice": lambda x: lax.dynamic_slice(x, (2, 0), (3, 8)),
    "cumsum": lambda x: inp.cumsum(x, axis=0),
    "sort": lambda x: inp.sort(-x, axis=0),
    "conv": lambda x: lax.conv(x[None, None], inp.ones((1, 1, 3, 3)), (1, 1), "SAME"),
    "while": lambda x: lax.while_loop(lambda y: y.sum() < 1e5, lambda y: y * 2, x),
    "cond": lambda x: lax.cond(x.sum() > 0, lambda y: y + 1, lambda y: y, x),
}


@pytest.mark.parametrize("spec", [P("a"), P(None, "a"), P("a", "b")], ids=str)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_partitioned_program_computes_the_same(name, spec):
    with inf.config(device="reference", cpu_devices=4):
        f = PROGRAMS[name]
        expected = np.asarray(inf.jit(f)(X))
        where = NamedSharding(make_mesh((2, 2), ("a", "b")), spec)
        found = np.asarray(inf.jit(f)(inf.device_put(X, where)))
        if name == "random bits":
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
