"""Comms: devices in one process, and processes under mpirun. One script makes every call under two and four
processes, and writes down what it found; each test looks at a part.
"""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from infini.backends.spmd.lockstep import LockstepComm
from infini.core import errors

DTYPES = ("float32", "float64", "int32", "bool", "float16", "bfloat16", "complex64")


def rows(size, dtype="float32", columns=3):
    """One row per rank with blocks for all ranks, of small whole numbers: sums are exact."""
    dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    found = np.arange(size * size * columns).reshape(size, size, columns) % 7 - 2
    return list(found.astype(dtype))


def reduced(found, op):
    """The reduction of rows by NumPy, in float32 and back for floats of 16 bits."""
    wide = np.stack(found)
    wide = wide.astype(np.float32) if wide.dtype.itemsize == 2 else wide
    return {"sum": np.add, "max": np.maximum, "min": np.minimum}[op].reduce(wide).astype(found[0].dtype)


@pytest.mark.parametrize("op", ["sum", "max", "min"])
@pytest.mark.parametrize("dtype", DTYPES[:-1])
def test_reduce_scatter_gives_each_member_its_block(dtype, op):
    given = rows(4, dtype)
    found = LockstepComm(4).reduce_scatter([row[:2] for row in given], op, ((0, 2), (1, 3)))
    for group in ((0, 2), (1, 3)):
        for i, rank in enumerate(group):
            np.testing.assert_array_equal(found[rank], reduced([given[r][i] for r in group], op))
            assert found[rank].dtype == given[0].dtype


def test_messages_arrive_in_order_by_ranks_and_tag():
    comm = LockstepComm(3)
    for number in range(3):
        comm.send(np.full(2, number, np.int32), 0, 1)
        comm.send(np.full(2, 10 + number, np.int32), 0, 1, tag=7)
        comm.send(np.full(2, 20 + number, np.int32), 2, 1)
    take = lambda source, tag: int(comm.recv((2,), np.dtype(np.int32), source, 1, tag)[0])  # noqa: E731
    assert [take(0, 7), take(2, 0), take(0, 0), take(0, 0), take(0, 7)] == [10, 20, 0, 1, 11]


def test_a_message_keeps_what_was_sent():
    comm, row = LockstepComm(2), np.zeros(2, np.float32)
    comm.send(row, 0, 1)
    row[:] = np.nan
    assert comm.recv((2,), row.dtype, 0, 1).tolist() == [0, 0]


def test_a_message_that_nobody_sent_is_an_error_in_lockstep():
    with pytest.raises(errors.CollectiveError, match="would wait for ever for a message of device 1"):
        LockstepComm(2).recv((2,), np.dtype(np.float32), 1, 0)


def test_a_message_of_another_type_is_an_error_in_lockstep():
    comm = LockstepComm(2)
    comm.send(np.ones(2, np.float32), 0, 1)
    with pytest.raises(errors.CollectiveError, match="sent another array"):
        comm.recv((3,), np.dtype(np.float32), 0, 1)


def test_duplicates_have_their_own_messages():
    comm = LockstepComm(2)
    comm.send(np.ones(1, np.float32), 0, 1)
    with pytest.raises(errors.CollectiveError):
        comm.duplicate().recv((1,), np.dtype(np.float32), 0, 1)


def test_one_process_gathers_its_own_bytes():
    assert LockstepComm(4).gather_bytes(b"mine") == [b"mine"]


# --- the same under mpirun -----------------------------------------------------------------------

SCRIPT = """
import json, os, sys, threading
sys.path[:0] = json.loads(os.environ["TESTED_PATHS"])
import numpy as np
import infini.parallel as parallel
from infini.core import comm as comm_
from test_comm import DTYPES, rows

parallel.initialize()
job = comm_.processes()
size, me = job.count, job.index
comm = job.launcher.comm(tuple(range(size)))
everyone = (tuple(range(size)),)
found = {}
plain = lambda x: [str(x.dtype), x.astype(complex).real.ravel().tolist()]

for dtype in DTYPES:
    for op in ("sum", "max", "min") if dtype != "complex64" else ("sum",):
        mine = rows(size, dtype)[me]
        found[f"reduce_scatter {dtype} {op}"] = plain(comm.reduce_scatter([mine], op, everyone)[0])
if size == 4:
    mine = rows(4)[me][:2]
    found["reduce_scatter groups"] = plain(comm.reduce_scatter([mine], "sum", ((0, 2), (1, 3)))[0])

after, before = (me + 1) % size, (me - 1) % size
if me % 2 == 0:
    comm.send(rows(size, "bfloat16")[me], me, after, tag=3)
bits = rows(size, "bfloat16")[0].dtype
found["ring"] = plain(comm.recv((size, 3), bits, before, me, 3)) if me % 2 else None
if me % 2:
    comm.send(np.full(2, me, np.int32), me, after)
    comm.send(np.full(2, me + 10, np.int32), me, after)
else:
    found["order"] = [int(comm.recv((2,), np.dtype("int32"), before, me)[0]) for _ in range(2)]

gathered = comm.gather_bytes(bytes([me]) * (3 * me))
found["bytes"] = gathered == [bytes([i]) * (3 * i) for i in range(size)]

# The duplicate's calls come in another order than those of the comm: they must not match.
other, results = comm.duplicate(), []
def beside():
    results.append(other.all_reduce([np.full(3, me, np.float32)], "sum", everyone)[0])
thread = threading.Thread(target=beside)
if me == 0:
    thread.start(); thread.join(0.05)
found["comm"] = plain(comm.all_reduce([np.full(3, 100, np.float32)], "sum", everyone)[0])
if me != 0:
    thread.start()
thread.join()
found["duplicate"] = plain(results[0])
with open(os.path.join(os.environ["FOUND"], str(me)), "w") as file:
    json.dump(found, file)
"""


@pytest.fixture(scope="module", params=[2, 4], ids=lambda size: f"{size} processes")
def job(request, mpirun_path, tmp_path_factory):
    """What each process found."""
    size, here, folder = request.param, str(Path(__file__).parent), tmp_path_factory.mktemp("found")
    kept = {name: text for name, text in os.environ.items() if not name.startswith("INFINI_")}
    settings = {
        "INFINI_DEVICE": "reference",
        "INFINI_NUM_THREADS": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "FOUND": str(folder),
        "TESTED_PATHS": json.dumps([here, *sys.path]),
    }
    command = [mpirun_path, "-n", str(size), sys.executable, "-c", textwrap.dedent(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**kept, **settings})
    assert done.returncode == 0, done.stderr
    return {rank: json.loads((folder / str(rank)).read_text()) for rank in range(size)}


def plain(row):
    return [str(row.dtype), row.astype(complex).real.ravel().tolist()]


@pytest.mark.multi
@pytest.mark.xdist_group("mpi")
class TestMpi:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_reduce_scatter(self, job, dtype):
        given = rows(len(job), dtype)
        for op in ("sum", "max", "min") if dtype != "complex64" else ("sum",):
            for rank, found in job.items():
                expected = plain(reduced([row[rank] for row in given], op))
                assert found[f"reduce_scatter {dtype} {op}"] == expected, (op, rank)

    def test_reduce_scatter_over_groups(self, job):
        if len(job) != 4:
            pytest.skip("two groups of two need four processes")
        given = rows(4)
        for group in ((0, 2), (1, 3)):
            for i, rank in enumerate(group):
                expected = plain(reduced([given[r][i] for r in group], "sum"))
                assert job[rank]["reduce_scatter groups"] == expected

    def test_send_and_recv(self, job):
        for rank, found in job.items():
            if rank % 2:
                assert found["ring"] == plain(rows(len(job), "bfloat16")[rank - 1])
            else:
                before = (rank - 1) % len(job)
                assert found["order"] == [before, before + 10]

    def test_gather_bytes_of_different_lengths(self, job):
        for found in job.values():
            assert found["bytes"]

    def test_a_duplicate_never_meets_its_origin(self, job):
        for found in job.values():
            assert found["comm"] == ["float32", [100.0 * len(job)] * 3]
            assert found["duplicate"] == ["float32", [float(sum(range(len(job))))] * 3]
