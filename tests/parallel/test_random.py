"""The mesh never changes a stream of random numbers."""

import numpy as np
import pytest

import infini as inf
from infini import lax, random
from infini.sharding import NamedSharding, P, make_mesh

DRAWS = {
    "bits": lambda key: random.bits(key, (8, 6)),
    "uniform": lambda key: random.uniform(key, (8, 6)),
    "normal": lambda key: random.normal(key, (8, 6)),
    "bernoulli": lambda key: random.bernoulli(key, 0.3, (8, 6)),
    "split": lambda key: random.normal(random.split(key, 3)[1], (8, 6)),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("spec", [P(), P("a"), P(None, "b"), P(("a", "b"))], ids=str)
def test_the_mesh_does_not_change_the_stream(name, spec):
    with inf.config(device="reference", cpu_devices=4):
        key, where = random.PRNGKey(7), NamedSharding(make_mesh((2, 2), ("a", "b")), spec)
        expected = inf.jit(DRAWS[name])(key)
        found = inf.jit(lambda key: lax.with_sharding_constraint(DRAWS[name](key), where))(key)
        assert found.sharding.shard_shape(found.shape) == where.shard_shape(found.shape)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
