"""Exchanges beside computation: by one thread, in the order in which they were begun. Order is asserted by
events that depend on each other, never by time.
"""

import threading
import types

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.backends.spmd import executable, mpi, thread
from infini.backends.spmd.lockstep import LockstepComm
from infini.core import comm as comm_, events
from infini.sharding import Collectives, NamedSharding, P, make_mesh

PATIENCE_S = 20  # how long a test waits before it fails


def wait(event):
    assert event.wait(PATIENCE_S), "the other side never came here"


def test_an_exchange_goes_on_while_its_process_computes():
    exchanges, has_computed, found = thread.CommThread(), threading.Event(), []
    pending = exchanges.start(lambda: wait(has_computed) or found.append("exchanged") or 7)
    found.append("computed")  # with one thread this line would never be reached
    has_computed.set()
    assert pending.wait() == 7 and found == ["computed", "exchanged"]


def test_exchanges_are_made_in_the_order_in_which_they_were_begun():
    exchanges, is_open, found = thread.CommThread(), threading.Event(), []
    pending = [exchanges.start(lambda: wait(is_open))]
    pending += [exchanges.start(lambda i=i: found.append(i)) for i in range(20)]
    assert found == []
    is_open.set()
    for one in reversed(pending):
        one.wait()
    assert found == list(range(20))


def test_an_exchange_at_once_comes_after_those_that_were_begun():
    exchanges, is_open, found = thread.CommThread(), threading.Event(), []
    first = exchanges.start(lambda: wait(is_open) or found.append("begun"))
    opener = threading.Thread(target=is_open.set)
    opener.start()
    exchanges.run(lambda: found.append("at once"))
    opener.join()
    first.wait()
    assert found == ["begun", "at once"]


def test_an_exchange_at_once_needs_no_other_thread_when_nothing_was_begun():
    assert thread.CommThread().run(threading.get_ident) == threading.get_ident()


def test_an_exchange_that_fails_raises_where_it_is_awaited():
    exchanges = thread.CommThread()
    pending = exchanges.start(lambda: 1 // 0)
    assert exchanges.start(lambda: "the next one").wait() == "the next one"
    with pytest.raises(ZeroDivisionError):
        pending.wait()


def test_all_exchanges_are_made_by_one_thread():
    exchanges = thread.CommThread()
    found = {exchanges.start(threading.get_ident).wait() for _ in range(5)}
    assert len(found) == 1 and threading.get_ident() not in found


class WaitingComm(LockstepComm):
    """A comm whose first sum ends only when somebody sets its event."""

    may_overlap = True

    def __init__(self, size):
        super().__init__(size)
        self.has_begun, self.has_computed, self.order = threading.Event(), threading.Event(), []

    def all_reduce(self, rows, op, groups):
        if not self.has_begun.is_set():
            self.order.append("begun")
            self.has_begun.set()
            wait(self.has_computed)
        self.order.append("ended")
        return super().all_reduce(rows, op, groups)


def overlapping(x):
    """A sum crosses the mesh while a cosine is computed."""
    y = inp.sin(x)
    total = lax.psum(y, "x")
    return total + lax.psum(inp.cos(y) * 2, "x")


def test_pieces_run_while_an_exchange_is_on_its_way(monkeypatch):
    comms = []
    monkeypatch.setattr(executable, "LockstepComm", lambda size: comms.append(WaitingComm(size)) or comms[-1])
    real = executable.Walk.apply
    seen = []

    def apply(self, step, env, given):
        seen.append(type(step).__name__)
        real(self, step, env, given)
        if seen[-2:] == ["Start", "Piece"]:  # computed between begin and end of the first sum
            wait(self.comm.has_begun)
            self.comm.order.append("computed")
            self.comm.has_computed.set()

    monkeypatch.setattr(executable.Walk, "apply", apply)
    with inf.config(device="reference", cpu_devices=2):
        mesh = make_mesh((2,), ("x",))
        mapped = inf.shard_map(overlapping, mesh=mesh, in_specs=P("x"), out_specs=P())
        f = inf.shard(mapped, mesh=mesh, collectives=Collectives(bucket_bytes=0, first_bucket_bytes=0))
        x = inf.device_put(np.arange(4, dtype=np.float32), NamedSharding(mesh, P("x")))
        found = np.asarray(f(x))
    y = np.sin(np.arange(4, dtype=np.float32))
    np.testing.assert_allclose(found, (y + 2 * np.cos(y)).reshape(2, 2).sum(0), rtol=1e-6)
    assert seen == ["Piece", "Start", "Piece", "Exchange", "Wait", "Piece"]
    assert comms[-1].order == ["begun", "computed", "ended", "ended"]


def test_without_threads_in_mpi_nothing_overlaps_and_an_event_says_so():
    single = types.SimpleNamespace(
        COMM_WORLD=types.SimpleNamespace(rank=0), Query_thread=lambda: 1, THREAD_MULTIPLE=3
    )
    comm = mpi.MpiComm(single, (0, 1))
    with events.record() as said:
        assert executable.exchanger_of(comm) is thread.IMMEDIATE
    assert [event.code for event in said] == ["exchanges-alone"]


def test_with_threads_in_mpi_exchanges_have_the_thread_of_the_process():
    multiple = types.SimpleNamespace(
        COMM_WORLD=types.SimpleNamespace(rank=0), Query_thread=lambda: 3, THREAD_MULTIPLE=3
    )
    comm = mpi.MpiComm(multiple, (0, 1))
    assert isinstance(comm, comm_.Overlaps)
    assert executable.exchanger_of(comm) is thread.shared()
    assert executable.exchanger_of(LockstepComm(2)) is thread.IMMEDIATE
