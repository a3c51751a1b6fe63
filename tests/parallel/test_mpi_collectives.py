"""Collectives over two axes and of several operands under mpirun: the numbers of devices in one process, and
what was predicted is what is sent.
"""

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.compiler import partition
from infini.core import tree
from infini.core.backend import CompileOptions
from infini.sharding import Collectives, NamedSharding, P, make_mesh
from infini.testing import count_collectives, predicted
from tests.parallel import jobs

X = np.sin(np.arange(64, dtype=np.float32)).reshape(8, 8)


def over_two_axes(x):
    """Everything that two axes do in one message, for parts of (4, 4)."""
    both = ("a", "b")
    swapped = lax.ppermute(x, both, [(0, 2), (2, 3), (3, 0), (1, 1)])
    return [
        lax.psum(x, both),
        lax.psum(x.astype(inp.bfloat16), both).astype(inp.float32),
        lax.pmax(x, ("b", "a")),
        *(lax.all_gather(y, both, tiled=True) for y in (x, swapped)),
        lax.all_gather(lax.psum_scatter(x, ("b", "a"), tiled=True), ("b", "a"), tiled=True),
        lax.all_gather(lax.all_to_all(x, both, 0, 1, tiled=True), both, tiled=True),
    ]


def moved(x):
    for spec in (P("a", "b"), P("b", "a"), P(("a", "b")), P(None, ("b", "a")), P("a"), P("b"), P()):
        x = lax.with_sharding_constraint(x * 2, spec)
    return [x]


def step(x):
    """Sums of gradients, which travel together."""
    weights = [inp.cos(x[:, i::2]) for i in range(2)]
    rows = lax.with_sharding_constraint(x, P(("a", "b")))
    return inf.grad(lambda w: sum((inp.tanh(rows @ p) ** 2).sum() for p in w))(weights)


def runs():
    """Results on one process, and whether what was sent is what was predicted."""
    mesh, found = make_mesh((2, 2), ("a", "b")), {}
    mapped = inf.shard_map(over_two_axes, mesh=mesh, in_specs=P("a", "b"), out_specs=P(), check_vma=False)
    for name, f in (("by hand", mapped), ("moved", moved), ("step", step)):
        x = inf.device_put(X, NamedSharding(mesh, P("a", "b")))
        with mesh:
            f = inf.shard(f, mesh=mesh, out_specs=P(), collectives=Collectives(1 << 10, 1 << 10))
            options = CompileOptions(
                mesh=mesh.abstract, in_specs=(("a", "b"),), collectives=f.options.collectives
            )
            expected = predicted(partition.for_options(f.lower(x).program, options))
            with count_collectives() as counts:
                results = f(x)
        found[name] = [np.asarray(leaf).tolist() for leaf in tree.leaves(results)]
        found[f"{name}: sent"] = [counts == expected, sum(count.calls for count in counts.values())]
    return found


@pytest.fixture(scope="module")
def job(mpirun_path, tmp_path_factory):
    """What each of four processes found."""
    return jobs.found(mpirun_path, 4, runs, tmp_path_factory.mktemp("found"))


@pytest.fixture(scope="module")
def expected():
    with inf.config(device="reference", cpu_devices=4):
        return runs()


@pytest.mark.multi
@pytest.mark.xdist_group("mpi")
@pytest.mark.parametrize("name", ["by hand", "moved", "step"])
def test_processes_send_and_find_what_devices_of_one_process_do(name, job, expected):
    assert expected[f"{name}: sent"][0]
    for found in job:
        assert found[f"{name}: sent"] == expected[f"{name}: sent"]
        for a, b in zip(found[name], expected[name], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
