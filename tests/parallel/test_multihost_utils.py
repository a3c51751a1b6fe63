"""What processes tell each other outside of programs; JAX is the oracle of results in one process."""

from __future__ import annotations

import numpy as np
import pytest

import infini as inf
from infini import random
from infini.core import errors
from infini.experimental import multihost_utils as utils
from infini.sharding import P, make_mesh
from tests.parallel import jobs

SCRIPT = """
import numpy as np
import infini as inf, infini.parallel as parallel
from infini import dtypes, errors
from infini.experimental import multihost_utils as utils
from infini.sharding import NamedSharding, P, make_mesh

parallel.initialize()
me, count = parallel.process_index(), parallel.process_count()


def message(call):
    try:
        call()
    except (errors.InfiniError, AssertionError) as error:
        return str(error)
    return ""


told = utils.broadcast_one_to_all({"a": np.arange(3) + me, "b": np.full((), me, np.float32)})
assert told["a"].tolist() == [0, 1, 2] and told["b"] == 0 and told["b"].dtype == np.float32
assert utils.broadcast_one_to_all(np.int8(me), is_source=me == count - 1) == count - 1
assert "0 of 2 processes" in message(lambda: utils.broadcast_one_to_all(1, is_source=False))
rows = utils.process_allgather(np.full((2, 3), me, dtypes.bfloat16))
assert rows.shape == (count, 2, 3) and rows.dtype == dtypes.bfloat16
assert rows[:, 0, 0].tolist() == list(range(count))
assert utils.process_allgather(np.full((2, 3), me), tiled=True).shape == (2 * count, 3)
assert utils.process_allgather(np.zeros((0, 3)), tiled=True).shape == (0, 3)
assert "no dimension" in message(lambda: utils.process_allgather(1.0, tiled=True))
assert "different types" in message(lambda: utils.process_allgather(np.zeros(me + 1)))
assert "different structures" in message(lambda: utils.process_allgather([0] * (me + 1)))
utils.sync_global_devices("here")
assert "process 1 at 'place 1'" in message(lambda: utils.sync_global_devices(f"place {me}"))
utils.assert_equal({"a": 1, "b": np.nan})
found = message(lambda: utils.assert_equal({"a": 1, "b": [0.0, float(me)]}, "config."))
assert found == "config. Leaf ['b'][1] of process 0 differs in 1", found
assert "Trees differ" in message(lambda: utils.assert_equal([0] * (me + 1)))

mesh = make_mesh((count,), ("x",))
array = utils.host_local_array_to_global_array(np.full((2, 3), me), mesh, P("x"))
assert array.shape == (2 * count, 3) and array.sharding.spec == P("x")
assert utils.process_allgather(array, tiled=True)[:, 0].tolist() == [i for i in range(count) for _ in "ab"]
assert "one array already" in message(lambda: utils.process_allgather(array))
back = utils.global_array_to_host_local_array({"w": array}, mesh, {"w": P("x")})
assert np.array_equal(back["w"], np.full((2, 3), me))
assert utils.global_array_to_host_local_array(array, mesh, P()).shape == (2 * count, 3)
print("equal")
"""


@pytest.mark.multi
@pytest.mark.xdist_group("mpi")
def test_two_processes(mpirun_path: str) -> None:
    done = jobs.run(mpirun_path, 2, "-c", SCRIPT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == 2


def test_one_process_is_alone() -> None:
    utils.sync_global_devices("here")
    utils.assert_equal({"a": 1})
    assert utils.broadcast_one_to_all({"a": 7})["a"] == 7
    assert utils.process_allgather(np.ones((2, 3))).shape == (1, 2, 3)
    assert utils.process_allgather(np.ones((2, 3)), tiled=True).shape == (2, 3)
    assert utils.process_allgather(3.0, tiled=True).shape == ()


def test_bytes_in_another_order_are_numbers_all_the_same() -> None:
    swapped = np.arange(3).astype(">f4")
    np.testing.assert_array_equal(utils.process_allgather(swapped), [[0, 1, 2]])
    np.testing.assert_array_equal(utils.broadcast_one_to_all(swapped), [0, 1, 2])
    with pytest.raises(errors.TypeMismatchError, match="arrays of numbers"):
        utils.process_allgather(np.array(["text"]))


def test_devices_of_one_process_are_one_block() -> None:
    with inf.config(device="reference", cpu_devices=4):
        mesh = make_mesh((2, 2), ("x", "y"))
        x = np.asarray(random.normal(random.key(0), (4, 6)))
        array = utils.host_local_array_to_global_array(x, mesh, P("x", "y"))
        np.testing.assert_array_equal(array, x)
        np.testing.assert_array_equal(utils.global_array_to_host_local_array(array, mesh, P("y")), x)
        np.testing.assert_array_equal(utils.process_allgather(array, tiled=True), x)
