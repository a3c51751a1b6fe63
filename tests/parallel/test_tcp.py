"""Jobs that no MPI has started: processes that meet at an address. What needs no process of its own runs in
threads, each with a carrier.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import msgpack
import numpy as np
import pytest

from infini import parallel
from infini.backends.spmd import tcp
from infini.backends.spmd.lines import Line
from infini.backends.spmd.lockstep import LockstepComm
from infini.backends.spmd.tcp import TcpCarrier, TcpComm
from infini.core import errors

SIZE = 4
EVERYONE = ((0, 1, 2, 3),)
PAIRS = ((0, 2), (1, 3))


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return f"127.0.0.1:{found.getsockname()[1]}"


def together(run: Callable[[int], object], count: int = SIZE) -> list[object]:
    """What a function gives for each number, at once; what it raises is given, too."""
    found: list[object] = [None] * count

    def one(index: int) -> None:
        try:
            found[index] = run(index)
        except errors.InfiniError as error:
            found[index] = error

    threads = [threading.Thread(target=one, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    return found


@pytest.fixture(scope="module")
def carriers() -> Iterator[list[TcpCarrier]]:
    address = free_address()
    found = together(lambda index: TcpCarrier(address, SIZE, index, 20.0))
    made = [carrier for carrier in found if isinstance(carrier, TcpCarrier)]
    assert len(made) == SIZE, found
    yield made
    for carrier in made:
        carrier.close()


@pytest.fixture
def comms(carriers: list[TcpCarrier]) -> list[TcpComm]:
    return [carrier.comm(tuple(range(SIZE))) for carrier in carriers]


def rows(dtype: object) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [(generator.normal(size=(SIZE, 3)) * 8).astype(dtype) for _ in range(SIZE)]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int8, np.bool_, np.complex64])
@pytest.mark.parametrize("groups", [EVERYONE, PAIRS])
def test_collectives_have_the_bits_of_devices_in_one_process(
    comms: list[TcpComm], dtype: object, groups: tuple[tuple[int, ...], ...]
) -> None:
    given, oracle = rows(dtype), LockstepComm(SIZE)
    blocks = [row[: len(groups[0])] for row in given]

    def run(comm: TcpComm | LockstepComm, row: list[np.ndarray], block: list[np.ndarray]) -> list[object]:
        return [
            comm.all_reduce(row, "sum", groups),
            comm.all_gather(row, groups),
            comm.all_to_all(block, groups),
            comm.reduce_scatter(block, "sum", groups),
            comm.permute(row, [(0, 1), (1, 0)], groups),
        ]

    expected = run(oracle, given, blocks)
    found = together(lambda i: run(comms[i], [given[i]], [blocks[i]]))
    for rank in range(SIZE):
        for mine, theirs in zip(found[rank], expected, strict=True):  # type: ignore[call-overload]
            assert mine[0].dtype == theirs[rank].dtype and mine[0].shape == theirs[rank].shape
            assert mine[0].tobytes() == theirs[rank].tobytes()


def test_bytes_of_any_length_go_to_all(comms: list[TcpComm]) -> None:
    found = together(lambda i: (comms[i].gather_bytes(b"x" * i), comms[i].broadcast(b"from %d" % i)))
    assert found == [([b"", b"x", b"xx", b"xxx"], b"from 0")] * SIZE


def test_large_arrays_that_cross_do_not_block_each_other(comms: list[TcpComm]) -> None:
    large = np.arange(1 << 20, dtype=np.float32)
    found = together(
        lambda i: comms[i].permute([large + i], [(0, 1), (1, 2), (2, 3), (3, 0)], EVERYONE)[0][7]
    )
    assert found == [7 + (i - 1) % SIZE for i in range(SIZE)]


def test_messages_keep_their_order_by_tag_and_duplicates_apart(comms: list[TcpComm]) -> None:
    first, second = comms[0], comms[1]
    others = first.duplicate(), second.duplicate()
    for number in range(2):
        first.send(np.full(2, number, np.int32), 0, 1)
        first.send(np.full(2, 10 + number, np.int32), 0, 1, tag=7)
        others[0].send(np.full(2, 20 + number, np.int32), 0, 1)
    take = lambda comm, tag: int(comm.recv((2,), np.dtype(np.int32), 0, 1, tag)[0])  # noqa: E731
    assert [take(second, 7), take(others[1], 0), take(second, 0), take(second, 0)] == [10, 20, 0, 1]
    with pytest.raises(errors.CollectiveError, match="another length"):
        second.recv((3,), np.dtype(np.int32), 0, 1, tag=7)


def test_whoever_waits_for_one_that_has_left_is_told() -> None:
    address = free_address()
    first, second = together(lambda index: TcpCarrier(address, 2, index, 20.0), 2)
    assert isinstance(first, TcpCarrier) and isinstance(second, TcpCarrier)
    second.close()
    with pytest.raises(errors.CollectiveError, match="process 1 of this job is gone"):
        first.comm((0, 1)).barrier()
    first.close()


# --- meeting -----------------------------------------------------------------------------------


def attempt(address: str, count: int, index: int, timeout_s: float = 20.0) -> object:
    """A number of the process that has joined; its connections are closed."""
    carrier = TcpCarrier(address, count, index, timeout_s)
    carrier.close()
    return carrier.index


@pytest.mark.parametrize(
    ("numbers", "problem"),
    [
        (((2, 0), (3, 1)), "process 1 has num_processes=3, and process 0 has 2"),
        (((3, 0), (3, 1), (3, 1)), "two processes have process_id=1"),
    ],
)
def test_numbers_that_make_no_job_are_told_to_all(numbers: tuple[tuple[int, int], ...], problem: str) -> None:
    address = free_address()
    found = together(lambda i: attempt(address, *numbers[i]), len(numbers))
    for error in found:
        assert isinstance(error, errors.CollectiveError) and problem in str(error)


def test_process_0_says_who_has_not_come() -> None:
    with pytest.raises(errors.CollectiveError, match="none with process_id 1, 2"):
        attempt(free_address(), 3, 0, 0.2)


def test_a_process_says_that_process_0_is_not_there() -> None:
    with pytest.raises(errors.CollectiveError, match="process 0 cannot be reached at"):
        attempt(free_address(), 2, 1, 0.2)


def test_strangers_do_not_disturb() -> None:
    address = free_address()
    host, port = address.split(":")

    def join(index: int) -> object:
        if index < 2:
            return attempt(address, 2, index)
        while True:  # until process 0 listens
            try:
                with socket.create_connection((host, int(port))) as stranger:
                    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                return None
            except OSError:
                time.sleep(0.01)

    first = threading.Thread(target=join, args=(2,))
    first.start()
    zero: list[object] = []
    second = threading.Thread(target=lambda: zero.append(join(0)))
    second.start()
    first.join(timeout=20)
    assert join(1) == 1
    second.join(timeout=20)
    assert zero == [0]


@pytest.mark.parametrize("address", ["", "host", "host:", ":12", "host:http"])
def test_an_address_without_host_and_port_is_refused(address: str) -> None:
    with pytest.raises(errors.ValueMismatchError, match="coordinator_address is no address"):
        attempt(address, 2, 0)


def test_all_arguments_are_needed_or_none() -> None:
    with pytest.raises(errors.ValueMismatchError, match="all of its arguments, or none"):
        parallel.initialize(coordinator_address="10.0.0.1:1234", num_processes=2)
    with pytest.raises(errors.ValueMismatchError, match="process_id is not the number"):
        parallel.initialize("10.0.0.1:1234", 2, 2)


# --- whole jobs ----------------------------------------------------------------------------------

HEAD = """
import os, signal, sys, time
import numpy as np
import infini as inf, infini.parallel as parallel
from infini import lax
from infini.sharding import NamedSharding, P, make_mesh
rank = int(sys.argv[1])
parallel.initialize(sys.argv[2], 2, rank)
mesh = make_mesh((2,), ("x",))
x = inf.device_put(np.arange(8, dtype=np.float32), NamedSharding(mesh, P("x")))
total = inf.jit(inf.shard_map(lambda x: lax.psum(x, "x"), mesh=mesh, in_specs=P("x"), out_specs=P()))
"""


def job(folder: Path, body: str) -> list[tuple[int, str, str]]:
    """Status, output and errors of two processes."""
    script = folder / "script.py"
    script.write_text(HEAD + textwrap.dedent(body))
    kept = {name: text for name, text in os.environ.items() if not name.startswith("INFINI_")}
    environment = kept | {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "INFINI_DEVICE": "reference",
        "INFINI_NUM_THREADS": "1",
    }
    address = free_address()
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        told = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    return [(process.returncode, *texts) for process, texts in zip(started, told, strict=True)]


def test_processes_without_an_mpi_run_one_program(tmp_path: Path) -> None:
    found = job(tmp_path, "print(parallel.process_count(), np.asarray(total(x)).tolist(), flush=True)")
    assert [texts[:2] for texts in found] == [(0, "2 [4.0, 6.0, 8.0, 10.0]\n")] * 2, found


def test_an_error_of_one_process_ends_the_other(tmp_path: Path) -> None:
    (first, _, _), (second, _, err) = job(
        tmp_path,
        """
        total(x)
        if rank == 1:
            raise RuntimeError("out of luck")
        time.sleep(600)
        """,
    )
    assert first == 1 and second == 1 and "process 1 of 2 ended the job by this error, after psum" in err


def test_a_killed_process_is_named_by_the_other(tmp_path: Path) -> None:
    (first, _, err), (second, _, _) = job(
        tmp_path,
        """
        total(x)
        if rank == 1:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        total(x)
        """,
    )
    assert first == 1 and second < 0 and "process 1 of this job is gone" in err


def test_a_message_may_come_in_parts() -> None:
    near, far = socket.socketpair()
    content = msgpack.packb(["table", "", [["10.0.0.1", 4000 + i] for i in range(60)], b"x" * 32])
    message = len(content).to_bytes(4, "big") + content
    found: list[object] = []
    with near, far:
        reader = threading.Thread(
            target=lambda: found.append(next(tcp._messages(Line(near), time.monotonic() + 20)))
        )
        reader.start()
        for part in (message[:2], message[2:100], message[100:]):
            far.sendall(part)
            time.sleep(0.02)
        reader.join()
    assert found == [msgpack.unpackb(content)]
