"""What follows from the reports of processes, and who may send them."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Mapping

import numpy as np
import pytest

from infini.backends.spmd import activity, control, lines as lines_, watch, witness
from infini.backends.spmd.activity import Activity, Group, WatchedComm
from infini.backends.spmd.job import Job
from infini.backends.spmd.lockstep import LockstepComm
from infini.backends.spmd.watch import Ended, Fate, Gone, Report, Silent, Verdict, Waiting
from infini.core import comm as comm_, errors, source

ALL = Group((0, 1, 2))
ROWS, COLUMNS = Group((0, 1)), Group((1, 2))


def waits(group: Group, number: int, for_s: float, op: str = "psum") -> Report:
    wait = Waiting(op, "train.py:41", group, number, for_s)
    return Report({group: number}, (wait,), "at train.py:50", 0.0)


def works(counts: Mapping[Group, int], doing: str = "at load.py:7") -> Report:
    return Report(counts, (), doing, 12.0)


def judged(*fates: Fate, timeout_s: float = 300) -> Verdict | None:
    return watch.judge(dict(enumerate(fates)), patience_s=10, timeout_s=timeout_s)


def fatal(*fates: Fate, timeout_s: float = 300) -> errors.CollectiveError:
    found = judged(*fates, timeout_s=timeout_s)
    assert found is not None and found.is_fatal
    return found.error


def test_a_short_wait_is_not_worth_a_word() -> None:
    assert judged(waits(ALL, 4, 9.0), works({ALL: 3}), works({ALL: 3})) is None


def test_a_long_wait_is_told_with_who_has_not_arrived_and_what_it_does() -> None:
    found = judged(waits(ALL, 4, 11.0), waits(ALL, 4, 10.0), works({ALL: 3}, "compiling for load.py:7"))
    assert found is not None and not found.is_fatal
    assert found.error.what == "process 2 did not arrive at psum at train.py:41"
    assert found.error.got is not None
    assert found.error.got.splitlines()[0] == (
        "process 0 has been in psum at train.py:41, called at train.py:50, for 11 s, "
        "number 4 of processes 0 to 2"
    )
    assert "process 2 is compiling for load.py:7, 12 s after its last collective" in found.error.got


def test_a_wait_longer_than_the_timeout_is_fatal() -> None:
    error = fatal(waits(ALL, 4, 31.0), works({ALL: 3}), works({}), timeout_s=30)
    assert error.what == "processes 1, 2 did not arrive at psum at train.py:41"
    assert error.expected == "all of processes 0 to 2 in it within 30 s"


def test_a_timeout_of_nothing_waits_for_ever() -> None:
    found = judged(waits(ALL, 4, 1e6), works({ALL: 3}), works({ALL: 3}), timeout_s=0)
    assert found is not None and not found.is_fatal


def test_who_has_gone_on_past_a_collective_has_arrived_at_it() -> None:
    found = judged(waits(ALL, 4, 20.0), works({ALL: 5}), works({ALL: 3}))
    assert found is not None and found.error.what.startswith("process 2 did not arrive")


def test_the_one_that_others_wait_for_in_the_end_is_named() -> None:
    found = judged(waits(ROWS, 1, 20.0), waits(COLUMNS, 1, 15.0), works({}))
    assert found is not None and found.error.what.startswith("process 2 did not arrive")


def test_processes_that_wait_for_each_other_end_the_job() -> None:
    error = fatal(waits(ROWS, 1, 25.0), waits(Group((0, 1), "/1"), 1, 25.0))
    assert error.what == "the processes wait for each other in different collectives"


def test_different_collectives_of_one_number_end_the_job() -> None:
    error = fatal(waits(ROWS, 7, 12.0), waits(ROWS, 7, 12.0, op="all_gather"))
    assert "different collectives where all should be in" in error.what


def test_a_transfer_that_does_not_end_says_that_all_are_there() -> None:
    error = fatal(waits(ROWS, 7, 400.0), waits(ROWS, 7, 400.0))
    assert "does not end, though all of processes 0, 1 are in it" in error.what


def test_a_process_that_is_gone_ends_the_job_though_nobody_waits() -> None:
    assert fatal(works({}), Gone()).what == "process 1 of this job is gone"


def test_a_process_that_ended_ends_the_job_when_one_waits_for_it() -> None:
    left = Ended({ALL: 3}, "has ended its program by sys.exit(3) at train.py:9", "its stack")
    assert judged(works({ALL: 3}), left, works({ALL: 3})) is None
    assert judged(waits(ALL, 3, 30.0), left, works({ALL: 2})) is not None  # it had arrived
    found = judged(waits(ALL, 4, 11.0), left, works({ALL: 3}))
    assert found is not None and found.is_fatal and "its stack" in found.stacks
    assert found.error.what == "process 1 has ended, and the others wait for it in psum at train.py:41"


def test_a_silent_process_is_told_apart() -> None:
    error = fatal(waits(ALL, 4, 31.0), Silent(25.0), waits(ALL, 4, 31.0), timeout_s=30)
    assert error.what == "process 1 did not arrive at psum at train.py:41, and does not answer"
    assert error.got is not None and "process 1 has not answered for 25 s" in error.got


def test_a_large_job_shows_those_that_matter() -> None:
    everyone = Group(tuple(range(100)))
    fates: list[Fate] = [waits(everyone, 2, 20.0) for _ in range(100)]
    fates[77] = works({everyone: 1})
    found = judged(*fates)
    assert found is not None and found.error.got is not None
    lines = found.error.got.splitlines()
    assert any("process 77 is at load.py:7" in line for line in lines)
    assert "and 84 more" in lines[-1] and len(lines) == 17


def test_reports_survive_their_way() -> None:
    report = waits(ROWS, 3, 1.5)
    assert watch.unpacked(watch.packed(report)) == report


# --- what a process notes of itself ----------------------------------------------------------


class Waiter(LockstepComm):
    """Communication that shows what is noted meanwhile."""

    def __init__(self, noted: Activity) -> None:
        super().__init__(2)
        self.noted = noted

    def barrier(self) -> None:
        """Look."""
        (found,) = self.noted.current
        assert (found.op, found.number, found.group) == ("psum", 2, Group((4, 6)))
        raise OSError("down")


def test_a_collective_is_noted_before_it_blocks_and_remembered_when_it_fails() -> None:
    noted = Activity()
    watched = WatchedComm(Waiter(noted), (4, 6), noted)
    assert noted.place() == "before its first collective"
    rows = [np.ones(2), np.ones(2)]
    watched.all_reduce(rows, "sum", ((0, 1),))
    assert noted.place().startswith("after all_reduce of sum at test_watch.py:")
    line = source.Where("/home/train.py", 41)
    with activity.doing("psum", line), pytest.raises(OSError, match="down"):
        watched.barrier()
    assert noted.place() == "in psum at train.py:41, number 2 of processes 4, 6"
    assert not noted.current


def test_groups_of_one_wait_for_nobody() -> None:
    noted = Activity()
    WatchedComm(LockstepComm(2), (0, 1), noted).all_reduce([np.ones(2)] * 2, "sum", ((0,), (1,)))
    assert not noted.counts


def test_messages_and_duplicates_are_numbered_apart() -> None:
    noted = Activity()
    watched = WatchedComm(LockstepComm(2), (0, 1), noted)
    watched.barrier()
    watched.duplicate().barrier()
    watched.send(np.ones(1), 0, 1, tag=5)
    watched.recv((1,), np.dtype(np.float64), 0, 1, tag=5)
    assert list(noted.counts.values()) == [1, 1, 2]


# --- who may speak on the channel ------------------------------------------------------------


class Carrier:
    """A carrier of a job of two that notes how it ends."""

    index, count = 0, 2

    def comm(self, process_of_rank: tuple[int, ...]) -> comm_.Comm:
        """Nobody communicates."""
        raise AssertionError

    def abort(self, status: int) -> None:
        """Nobody aborts."""
        raise AssertionError


def test_a_connection_without_the_secret_is_closed_and_one_with_it_is_heard() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    hub = control.Hub(Job(Carrier()), listener, b"secret", (1,))
    hub.start()
    try:
        for greeting in (("hello", 1, b"guess"), ("hello", 2, b"secret"), ("ended", [], "", ""), (7,)):
            stranger = socket.create_connection(listener.getsockname())
            lines_.Line(stranger).send(*greeting)
            assert stranger.recv(10) == b""
            stranger.close()
        member = socket.create_connection(listener.getsockname())
        line = lines_.Line(member)
        line.send("hello", 1, b"secret")
        line.send("ended", [], "has ended its program", "")
        ended = threading.Thread(target=hub.close, args=(control.Ending("has ended its program"),))
        ended.start()
        ended.join(timeout=10)
        assert not ended.is_alive()
        messages: list[list[str]] = []
        end = time.monotonic() + 5
        while ["over"] not in messages and time.monotonic() < end:
            messages += line.receive() or []
        assert ["over"] in messages
        member.close()
    finally:
        hub.is_over.set()
        hub.thread.join(timeout=10)
        hub.forget()


def test_a_message_that_is_too_long_ends_the_connection() -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall((1 << 30).to_bytes(4, "big") + b"....")
    assert lines_.Line(ours).receive() is None
    ours.close()
    theirs.close()


def test_a_witness_knows_who_was_gone_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with witness.Witness() as seen:
        (variable, told), *_ = seen.environment.items()
        assert witness.connected(7) is None
        monkeypatch.setenv(variable, told)
        lines = {index: witness.connected(index) for index in (4, 2, 3)}
        end = time.monotonic() + 10
        while seen.known != {2, 3, 4} and time.monotonic() < end:
            time.sleep(0.005)
        monkeypatch.setenv(variable, told[:-1])
        stranger = witness.connected(9)
        lines[3].send("ended")
        for line in (stranger, lines[3], lines[2], lines[4]):
            assert line is not None
            line.close()
    assert seen.gone == [2, 4]


def test_a_witness_counts_nobody_who_is_ended_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with witness.Witness() as seen:
        monkeypatch.setenv(*next(iter(seen.environment.items())))
        first, second = witness.connected(0), witness.connected(1)
        assert first is not None and second is not None
        first.send("aborting")
        first.close()
        second.close()
    assert not seen.gone


def test_a_job_whose_output_nobody_reads_ends_all_the_same() -> None:
    script = """
        import os, threading, time
        from infini.backends.spmd import failures, job
        class Carrier:
            index, count = 0, 2
            def comm(self, process_of_rank): ...
            def abort(self, status): os._exit(40 + status)
        failures.Failures(job.Job(Carrier())).install()
        os.close(1), os.close(2)
        threading.Thread(target=lambda: 1 / 0).start()
        time.sleep(60)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=60)
    assert done.returncode == 41
