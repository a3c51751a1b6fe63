"""Comms: devices in one process, and processes under mpirun. One script makes every call under two and four
processes, and writes down what it found; each test looks at a part.
"""

import ml_dtypes
import numpy as np
import pytest

from infini.backends.spmd import ordered
from infini.backends.spmd.lockstep import LockstepComm
from infini.core import errors
from tests.parallel import jobs

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


def awkward(size, dtype, count=7):
    """Numbers whose sum depends on the order in which it is taken, as many as no number of parts divides."""
    dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    generator = np.random.default_rng(size)
    scales = 10.0 ** generator.integers(-4, 5, (size, count))
    return list((generator.standard_normal((size, count)) * scales).astype(dtype))


@pytest.mark.parametrize("op", ["sum", "max", "min"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int32", "bool"])
def test_reductions_made_of_exchanges_have_the_bits_of_a_fold(dtype, op):
    given, groups = awkward(4, dtype), ((0, 2), (1, 3))
    plain, other = LockstepComm(4), ordered.OrderedComm(LockstepComm(4))
    with np.errstate(over="ignore"):
        pairs = zip(plain.all_reduce(given, op, groups), other.all_reduce(given, op, groups), strict=True)
        for a, b in pairs:
            assert a.tobytes() == b.tobytes() and a.dtype == b.dtype and a.shape == b.shape


def test_arrays_without_elements_and_scalars_are_reduced():
    comm = ordered.OrderedComm(LockstepComm(2))
    everyone = ((0, 1),)
    assert comm.all_reduce([np.zeros((0, 3), np.float32)] * 2, "sum", everyone)[0].shape == (0, 3)
    found = comm.all_reduce([np.float32(1), np.float32(2)], "sum", everyone)
    assert [float(x) for x in found] == [3, 3] and found[0].shape == ()


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


def test_messages_that_are_not_waited_for():
    comm, row = LockstepComm(2), np.ones(3, np.float32)
    pending = comm.start_send(row, 0, 1, tag=2)
    assert comm.recv((3,), row.dtype, 0, 1, tag=2).tolist() == [1, 1, 1]
    pending.wait()


def test_duplicates_have_their_own_messages():
    comm = LockstepComm(2)
    comm.send(np.ones(1, np.float32), 0, 1)
    with pytest.raises(errors.CollectiveError):
        comm.duplicate().recv((1,), np.dtype(np.float32), 0, 1)


def test_one_process_gathers_its_own_bytes():
    assert LockstepComm(4).gather_bytes(b"mine") == [b"mine"]


# --- the same under mpirun -----------------------------------------------------------------------

SCRIPT = """
import threading
import numpy as np
import infini.parallel as parallel
from infini.core import comm as comm_
from infini.backends.spmd import mpi, ordered
from mpi4py import MPI
from tests.parallel.test_comm import DTYPES, awkward, rows

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

# Sums in the order of the ranks; those of 16-bit floats always are.
for dtype in ("float32", "float64", "float16", "bfloat16"):
    exact = ordered.OrderedComm(comm) if dtype in ("float32", "float64") else comm
    (total,) = exact.all_reduce([awkward(size, dtype)[me]], "sum", everyone)
    found[f"ordered {dtype}"] = total.tobytes().hex()

# The calls that a sum of 16-bit floats is made of, with what each sends.
sent = []
class Counting(mpi.MpiComm):
    def all_to_all(self, rows, groups):
        sent.append(["all_to_all", rows[0].nbytes])
        return super().all_to_all(rows, groups)
    def all_gather(self, rows, groups):
        sent.append(["all_gather", rows[0].nbytes])
        return super().all_gather(rows, groups)
Counting(MPI, tuple(range(size))).all_reduce([np.ones(16, bits)], "sum", everyone)
found["sent"] = sent

# The same calls in messages of at most 16 bytes.
small = mpi.MpiComm(MPI, tuple(range(size)), (9,), 16)
mine = rows(size)[me]
for name in ("all_reduce", "reduce_scatter"):
    results = [getattr(c, name)([mine], "sum", everyone)[0] for c in (comm, small)]
    found[f"small {name}"] = bool((results[0] == results[1]).all())
ring = [(i, (i + 1) % size) for i in range(size)]
for name, extra in (("all_gather", ()), ("all_to_all", ()), ("permute", (ring,))):
    results = [getattr(c, name)([mine], *extra, everyone)[0] for c in (comm, small)]
    found[f"small {name}"] = bool((results[0] == results[1]).all())
found["small broadcast"] = small.broadcast(bytes(range(50)) if me == 0 else b"") == bytes(range(50))
gathered = small.gather_bytes(bytes([me]) * 7 * me)
found["small gather_bytes"] = gathered == [bytes([i]) * 7 * i for i in range(size)]
if me % 2 == 0:
    small.send(mine, me, after)
else:
    found["small recv"] = bool((small.recv(mine.shape, mine.dtype, before, me) == rows(size)[before]).all())

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
"""


@pytest.fixture(scope="module", params=[2, 4], ids=lambda size: f"{size} processes")
def job(request, mpirun_path, tmp_path_factory):
    """What each process found."""
    folder = tmp_path_factory.mktemp("found")
    return dict(enumerate(jobs.found_by(mpirun_path, request.param, SCRIPT, folder)))


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

    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
    def test_sums_have_the_bits_of_devices_in_one_process(self, job, dtype):
        size = len(job)
        alone = LockstepComm(size).all_reduce(awkward(size, dtype), "sum", (tuple(range(size)),))
        for found in job.values():
            assert found[f"ordered {dtype}"] == alone[0].tobytes().hex()

    def test_sums_of_16_bits_send_two_bytes_an_element(self, job):
        for found in job.values():
            assert found["sent"] == [["all_to_all", 32], ["all_gather", 32 // len(job)]]

    def test_large_arrays_go_in_several_messages(self, job):
        for found in job.values():
            small = {name: is_equal for name, is_equal in found.items() if name.startswith("small")}
            assert len(small) >= 7 and all(small.values()), small

    def test_a_duplicate_never_meets_its_origin(self, job):
        for found in job.values():
            assert found["comm"] == ["float32", [100.0 * len(job)] * 3]
            assert found["duplicate"] == ["float32", [float(sum(range(len(job))))] * 3]
