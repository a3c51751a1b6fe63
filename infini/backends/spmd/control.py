"""The control channel of a job: one thread and one socket per process, beside whatever carries the data.

Process 0 is the hub. It asks all others what they do when one of them has waited for long, judges what they
say (`watch`), and ends the job when it cannot go on. It also sees at once when a connection breaks, which is
how a killed process is named. A process that ends says so; the hub ends last. Messages are msgpack, and a
connection begins with a secret that the carrier has told to the processes of the job.
"""

from __future__ import annotations

import abc
import atexit
import hmac
import os
import secrets
import selectors
import socket
import threading
import time
from typing import Any, Final

import msgpack

from infini.backends.spmd import watch, witness
from infini.backends.spmd.failures import Ending, Failures
from infini.backends.spmd.job import Job
from infini.backends.spmd.lines import ANSWER_S, Line
from infini.core import config, events
from infini.core.comm import Comm

_MAX_PATIENCE_S: Final = 10.0
_URGENT_S: Final = 0.5  # patience when a process has ended, for then waiting may be in vain
_CONNECT_S: Final = 10.0


class Station(abc.ABC):
    """What the hub and the others share: a thread that listens, and looks at its own process now and then.

    Args:
        job: the job.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.selector = selectors.DefaultSelector()
        self.is_urgent = False
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self._run, name="infini-control", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self.thread.start()

    @property
    def timeout_s(self) -> float:
        """How long a collective may wait for those that live; 0 for ever."""
        return float(config.get("collective_timeout_s"))

    @property
    def patience_s(self) -> float:
        """After how long a wait is looked into."""
        if self.is_urgent:
            return _URGENT_S
        return min(_MAX_PATIENCE_S, self.timeout_s / 3 or _MAX_PATIENCE_S)

    @property
    def tick_s(self) -> float:
        """Time between two looks."""
        return min(1.0, max(0.05, self.patience_s / 4))

    def longest_wait_s(self) -> float:
        """How long this process has been in a collective."""
        now = time.monotonic()
        return max((now - collective.since for collective in self.job.activity.current), default=0.0)

    def own_report(self) -> watch.Report:
        """What this process says of itself."""
        return watch.report_of(self.job.activity, time.monotonic())

    def end_job(self, verdict: watch.Verdict) -> None:
        """Say why, and end all processes; unless somebody does so already."""
        if self.job.is_ending.is_set():
            return
        self.job.say("".join([*([verdict.stacks, "\n"] if verdict.stacks else []), _text(verdict)]))
        self.job.abort(1)

    def _run(self) -> None:
        while not self.is_over.is_set():
            for key, _ in self.selector.select(self.tick_s):
                key.data(key.fileobj)
            if self.job.is_ending.is_set():
                continue  # somebody has said why already
            self.look()

    @abc.abstractmethod
    def look(self) -> None:
        """What there is to do now and then."""

    @abc.abstractmethod
    def say_aborting(self) -> None:
        """Tell the others that the job ends now, and that they need not say why."""

    @abc.abstractmethod
    def close(self, ending: Ending) -> None:
        """The program of this process has ended."""

    def forget(self) -> None:
        """Close what a fork has inherited, so that the others see when its parent is gone."""
        for key in list(self.selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self.selector.close()


class Hub(Station):
    """The station of process 0.

    Args:
        job: the job.
        listener: where the others have connected.
        token: what they show.
        others: who they are.
    """

    def __init__(self, job: Job, listener: socket.socket, token: bytes, others: tuple[int, ...]) -> None:
        super().__init__(job)
        self._token, self._others = token, others
        self._lines: dict[int, Line] = {}
        self._fates: dict[int, watch.Fate] = {}
        self._asked: dict[int, float] = {}  # since when an answer is due
        self._round: float | None = None  # when the others were asked
        self._heard_waiting = 0.0  # when a process said last that it waits
        self._next_note_s = 0.0
        self._own_end: Ending | None = None
        self._all_ended = threading.Event()
        listener.setblocking(False)
        self.selector.register(listener, selectors.EVENT_READ, self._accept)

    def _accept(self, listener: Any) -> None:  # Any: a socket
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        line = Line(connection)
        self.selector.register(connection, selectors.EVENT_READ, lambda _: self._greet(line))

    def _greet(self, line: Line) -> None:
        """The first message of a connection, which has the secret."""
        messages = line.receive()
        if messages == []:
            return
        self.selector.unregister(line.socket)
        if messages is None or not self._is_known(messages[0]):
            line.close()
            return
        index = messages[0][1]
        self._lines[index] = line
        self.selector.register(line.socket, selectors.EVENT_READ, lambda _: self._listen(index, line))
        for message in messages[1:]:
            self._take(index, message)

    def _is_known(self, message: list[Any]) -> bool:  # Any: a message
        match message:
            case ["hello", int(index), bytes(token)]:
                is_new = index in self._others and index not in self._lines and index not in self._fates
                return is_new and hmac.compare_digest(token, self._token)
        return False

    def _listen(self, index: int, line: Line) -> None:
        messages = line.receive()
        for message in messages or ():
            self._take(index, message)
        if messages is None:
            self.selector.unregister(line.socket)
            line.close()
            del self._lines[index]
            self._asked.pop(index, None)
            if not isinstance(self._fates.get(index), watch.Ended):
                self._fates[index] = watch.Gone()
                self._judge()  # at once: the launcher may kill this process next
            self._see_who_is_left()

    def _take(self, index: int, message: list[Any]) -> None:  # Any: a message
        match message:
            case ["waiting"]:
                self._heard_waiting = time.monotonic()
            case ["report", content]:
                self._asked.pop(index, None)
                self._fates[index] = watch.unpacked(content)
            case ["ended", counts, how, stack]:
                self._fates[index] = watch.Ended(watch.unpacked_counts(counts), how, stack)
                self._asked.pop(index, None)
                self._hurry()
                self._see_who_is_left()
            case ["aborting"]:
                self.job.is_ending.set()
                self.tell_all("over")  # the launcher may kill this process before the others

    def _hurry(self) -> None:
        if not self.is_urgent:
            self.is_urgent = True
            self.tell_all("hurry")

    def look(self) -> None:
        """Ask the others when somebody waits; judge when they have answered."""
        now = time.monotonic()
        if self._round is not None:
            if not self._asked or now - self._round >= min(ANSWER_S, max(self.timeout_s / 3, 0.3)):
                self._round = None
                self._judge()
        elif self.longest_wait_s() >= self.patience_s or now - self._heard_waiting <= 2 * self.tick_s:
            self._round = now
            for index, line in self._lines.items():
                if index not in self._asked and not isinstance(self._fates.get(index), watch.Ended):
                    line.send("tell")
                    self._asked[index] = now

    def _judge(self) -> None:
        now = time.monotonic()
        fates: dict[int, watch.Fate] = dict(self._fates)
        for index, since in self._asked.items():
            fates[index] = watch.Silent(now - since)
        own = self._own_end
        fates[0] = (
            self.own_report() if own is None else watch.Ended(self.job.activity.counts, own.how, own.stack)
        )
        # What a process does now, the next round has to ask again.
        self._fates = {i: fate for i, fate in self._fates.items() if not isinstance(fate, watch.Report)}
        verdict = watch.judge(fates, patience_s=self.patience_s, timeout_s=self.timeout_s)
        if verdict is None:
            self._next_note_s = 0.0
        elif verdict.is_fatal:
            self.end_job(verdict)
        else:
            self._note(verdict, fates)

    def _note(self, verdict: watch.Verdict, fates: dict[int, watch.Fate]) -> None:
        """Tell of a wait, and again when it has become twice as long."""
        waits = (w.for_s for fate in fates.values() if isinstance(fate, watch.Report) for w in fate.waiting)
        for_s = max(waits, default=0.0)
        if self._next_note_s <= for_s:
            self._next_note_s = 2 * max(for_s, self.patience_s)
            events.emit("collective-waits", _sentence(verdict), is_asked=True)

    def close(self, ending: Ending) -> None:
        """End when all others have: until then they are watched."""
        self._own_end = ending
        self._hurry()
        self._see_who_is_left()
        self._all_ended.wait()
        self.tell_all("over")
        self.is_over.set()

    def say_aborting(self) -> None:
        """To everybody."""
        self.tell_all("over")

    def tell_all(self, message: str) -> None:
        """Send a message to everybody who is there."""
        for line in list(self._lines.values()):
            line.send(message)

    def _see_who_is_left(self) -> None:
        if all(isinstance(self._fates.get(index), watch.Ended) for index in self._others):
            self._all_ended.set()


class Member(Station):
    """The station of a process that is not the hub.

    Args:
        job: the job.
        line: the connection to the hub.
    """

    def __init__(self, job: Job, line: Line) -> None:
        super().__init__(job)
        self._line = line
        self._heard = time.monotonic()
        self.selector.register(line.socket, selectors.EVENT_READ, self._listen)

    def _listen(self, _: object) -> None:
        messages = self._line.receive()
        if messages:
            self._heard = time.monotonic()
        for message in messages or ():
            match message:
                case ["tell"]:
                    self._line.send("report", watch.packed(self.own_report()))
                case ["hurry"]:
                    self.is_urgent = True
                case ["over"]:
                    self.is_over.set()
        if messages is None:
            self.selector.unregister(self._line.socket)
            if not self.is_over.is_set() and not self.job.is_ending.is_set():
                self._judge_alone(watch.Gone())

    def look(self) -> None:
        """Tell the hub when this process waits; end the job when the hub is silent for too long."""
        waits_s = self.longest_wait_s()
        if waits_s >= self.patience_s:
            self._line.send("waiting")
            silent_s = time.monotonic() - self._heard
            if 0 < self.timeout_s < min(waits_s, silent_s) - ANSWER_S:
                self._judge_alone(watch.Silent(silent_s))

    def _judge_alone(self, hub: watch.Fate) -> None:
        """Without the hub, only it and this process are known."""
        # One process has time to speak and to end the job before the next one does.
        time.sleep(0.05 * (self.job.index - 1))
        fates = {0: hub, self.job.index: self.own_report()}
        verdict = watch.judge(fates, patience_s=self.patience_s, timeout_s=self.timeout_s)
        if verdict is not None and verdict.is_fatal:
            self.end_job(verdict)

    def say_aborting(self) -> None:
        """To the hub."""
        self._line.send("aborting")

    def close(self, ending: Ending) -> None:
        """Tell the hub."""
        self._line.send("ended", watch.packed_counts(self.job.activity.counts), ending.how, ending.stack)


def open_channel(job: Job, world: Comm, failures: Failures) -> None:
    """Connect the processes of a job, and watch them until they end; called by all of them.

    Args:
        job: the job.
        world: communication among all of its processes, which tells where the hub is.
        failures: knows how the program of this process has ended.
    """
    is_local = len(set(world.gather_bytes(socket.gethostname().encode()))) == 1
    if job.index == 0:
        listener = socket.create_server(("127.0.0.1" if is_local else "", 0), backlog=job.count)
        token = secrets.token_bytes(32)
        host = "127.0.0.1" if is_local else socket.getfqdn()
        world.broadcast(msgpack.packb([host, listener.getsockname()[1], token]))
        found = world.gather_bytes(b"")
        others = tuple(index for index, is_there in enumerate(found) if is_there)
        station: Station = Hub(job, listener, token, others)
    else:
        host, port, token = msgpack.unpackb(world.broadcast(b""))
        line = _connected(job, host, port)
        world.gather_bytes(b"" if line is None else b"here")
        if line is None:
            return
        line.send("hello", job.index, token)
        station = Member(job, line)
    seen_by = witness.connected(job.index)

    def say_aborting() -> None:
        station.say_aborting()
        if seen_by is not None:
            seen_by.send("aborting")

    def leave() -> None:
        if job.is_here:
            station.close(failures.ending())
            if seen_by is not None:
                seen_by.send("ended")

    job.last_words = say_aborting
    station.start()
    atexit.register(leave)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=station.forget)
        if seen_by is not None:
            os.register_at_fork(after_in_child=seen_by.close)


def _connected(job: Job, host: str, port: int) -> Line | None:
    try:
        return Line(socket.create_connection((host, port), timeout=_CONNECT_S))
    except OSError as error:
        events.emit(
            "no-control-channel",
            f"process {job.index} cannot reach {host}:{port} ({error}): when it fails or hangs, the others "
            "will not know",
            is_asked=True,
        )
        return None


def _text(verdict: watch.Verdict) -> str:
    return f"infini.{type(verdict.error).__name__}: {verdict.error}"


def _sentence(verdict: watch.Verdict) -> str:
    error = verdict.error
    return f"{error.what}: " + "; ".join(line.strip() for line in (error.got or "").splitlines())
