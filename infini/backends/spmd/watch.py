"""Who keeps a job waiting: what each process says of itself, and what follows from all of it.

Pure: reports go in, a verdict comes out; `control` carries the reports. A process has arrived at a
collective when it has entered as many of that group as the one that waits. Nobody can arrive who is gone or
has ended; of all others it is only known after the time that the knob `collective_timeout_s` gives them.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final, TypeAlias

from infini.backends.spmd.activity import Activity, Group, named
from infini.core import errors, source

_MAX_LINES: Final = 16  # processes that a report shows
_INDENT: Final = "\n" + " " * 12  # below the label `got:`
_COMPILES: Final = tuple(source.PACKAGE_DIRECTORY + part for part in ("compiler/", "backends/cpu/objects"))


@dataclass(frozen=True, slots=True)
class Waiting:
    """A collective that a process is in.

    Args:
        op: operation.
        where: the user's line, or nothing.
        group: who takes part.
        number: its number among those of the group.
        for_s: how long the process has been in it.
    """

    op: str
    where: str
    group: Group
    number: int
    for_s: float

    def __str__(self) -> str:
        return f"{self.op} at {self.where}" if self.where else self.op


@dataclass(frozen=True, slots=True)
class Report:
    """What a living process says of itself.

    Args:
        counts: how many collectives of each group it has entered.
        waiting: those it is in.
        doing: what its main thread does, a part of a sentence.
        idle_s: seconds since it left a collective.
    """

    counts: Mapping[Group, int]
    waiting: tuple[Waiting, ...]
    doing: str
    idle_s: float


@dataclass(frozen=True, slots=True)
class Silent:
    """A process that does not answer."""

    for_s: float


@dataclass(frozen=True, slots=True)
class Gone:
    """A process that does not exist any more, and did not say that it would end."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A process whose program has ended.

    Args:
        counts: how many collectives of each group it had entered.
        how: a part of a sentence.
        stack: where it left, when it left early.
    """

    counts: Mapping[Group, int]
    how: str
    stack: str = ""


Fate: TypeAlias = Report | Silent | Gone | Ended


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong, and whether waiting on can help.

    Args:
        is_fatal: the job cannot go on.
        error: what to tell people.
        stacks: where processes left that ended early.
    """

    is_fatal: bool
    error: errors.CollectiveError
    stacks: str = ""


def judge(fates: Mapping[int, Fate], *, patience_s: float, timeout_s: float) -> Verdict | None:
    """What is wrong with a job; None when nobody waits for long, and nobody is gone.

    Args:
        fates: what is known of each process.
        patience_s: who waits less is not worth a word.
        timeout_s: who waits longer ends the job; 0 for never.
    """
    gone = [i for i, fate in fates.items() if isinstance(fate, Gone)]
    waits = _Waits(fates, patience_s)
    if gone:
        return _of_the_gone(fates, gone, waits)
    found = waits.longest
    if found is None:
        return None
    ended = [i for i in waits.absent if isinstance(fates[i], Ended)]
    if ended:
        return _of_the_ended(fates, ended, found)
    if waits.is_mixed or waits.is_knot:
        what = (
            f"the processes are in different collectives where all should be in {found}"
            if waits.is_mixed
            else "the processes wait for each other in different collectives"
        )
        return _verdict(
            fates,
            what,
            is_fatal=waits.is_mixed or found.for_s >= 2 * patience_s,
            expected="the same collectives in the same order in every process",
            fix="call the same functions in the same order everywhere: no branch, loop or early return "
            "around them may depend on the process",
        )
    is_fatal = 0 < timeout_s <= found.for_s
    if not waits.absent:
        return _verdict(
            fates,
            f"{found} does not end, though all of {named(found.group.processes)} are in it",
            is_fatal=is_fatal,
            expected="an exchange that ends",
            fix="see to the network between them; for very large arrays, raise INFINI_COLLECTIVE_TIMEOUT_S",
        )
    roots = waits.roots or waits.absent
    silent = [i for i in roots if isinstance(fates[i], Silent)]
    return _verdict(
        fates,
        f"{named(roots)} did not arrive at {found}" + (", and does not answer" if silent else ""),
        is_fatal=is_fatal,
        expected=f"all of {named(found.group.processes)} in it within {_time(timeout_s or found.for_s)}",
        fix="it is stopped, its machine cannot be reached, or C code holds Python's lock: look at it there"
        if silent
        else "see what it does at that line; when it only takes long, raise INFINI_COLLECTIVE_TIMEOUT_S",
    )


class _Waits:
    """Who waits for whom."""

    def __init__(self, fates: Mapping[int, Fate], patience_s: float) -> None:
        reports = {i: fate for i, fate in fates.items() if isinstance(fate, Report)}
        long = [(i, w) for i, report in reports.items() for w in report.waiting if w.for_s >= patience_s]
        self.longest = max((w for _, w in long), key=lambda w: w.for_s, default=None)
        waiting = {i for i, _ in long}
        wanted: dict[int, set[int]] = {}
        for i, wait in long:
            others = (j for j in wait.group.processes if j != i and j in fates)
            wanted.setdefault(i, set()).update(j for j in others if not _has_arrived(fates[j], wait))
        self.absent = sorted(set().union(*wanted.values())) if wanted else []
        self.roots = [i for i in self.absent if i not in waiting]
        # Every absent one waits itself, and has for longer than reports take: nobody can move.
        self.is_knot = bool(self.absent) and not self.roots
        self.is_mixed = any(
            other.op != wait.op
            for _, wait in long
            for _, other in long
            if (wait.group, wait.number) == (other.group, other.number) and "#" not in wait.group.channel
        )


def _has_arrived(fate: Fate, wait: Waiting) -> bool:
    return isinstance(fate, Report | Ended) and fate.counts.get(wait.group, 0) >= wait.number


def _of_the_gone(fates: Mapping[int, Fate], gone: list[int], waits: _Waits) -> Verdict:
    at = f" and will not arrive at {waits.longest}" if waits.longest else ""
    return _verdict(
        fates,
        f"{named(gone)} of this job is gone{at}",
        is_fatal=True,
        expected="every process alive until its program ends",
        fix="it was killed, crashed in native code, or left by os._exit: see the system's log for lack of "
        "memory, then start again from the last checkpoint",
    )


def _of_the_ended(fates: Mapping[int, Fate], ended: list[int], found: Waiting) -> Verdict:
    stacks = [
        f"process {i} left here:\n{fate.stack}"
        for i in ended
        if isinstance(fate := fates[i], Ended) and fate.stack
    ]
    return _verdict(
        fates,
        f"{named(ended)} has ended, and the others wait for it in {found}",
        is_fatal=True,
        expected="the same number of collectives in every process",
        fix="let no process leave before the others: not by sys.exit, nor by a shorter loop over its data",
        stacks="\n".join(stacks),
    )


def _verdict(
    fates: Mapping[int, Fate], what: str, *, is_fatal: bool, expected: str, fix: str, stacks: str = ""
) -> Verdict:
    # Those that wait are least worth a line, when there are too many.
    order = sorted(fates, key=lambda i: (isinstance(f := fates[i], Report) and bool(f.waiting), i))
    shown = sorted(order[:_MAX_LINES])
    lines = [f"process {i} {_told(fates[i])}" for i in shown]
    if len(order) > len(shown):
        lines.append(f"and {len(order) - len(shown)} more")
    error = errors.CollectiveError(what, got=_INDENT.join(lines), expected=expected, fix=fix)
    return Verdict(is_fatal, error, stacks)


def _told(fate: Fate) -> str:
    if isinstance(fate, Gone):
        return "is gone"
    if isinstance(fate, Silent):
        return f"has not answered for {_time(fate.for_s)}"
    if isinstance(fate, Ended):
        return fate.how
    if fate.waiting:
        wait = max(fate.waiting, key=lambda w: w.for_s)
        processes, line = named(wait.group.processes), fate.doing.removeprefix("at ")
        called = "" if line == wait.where or line == fate.doing else f", called at {line},"
        return f"has been in {wait}{called} for {_time(wait.for_s)}, number {wait.number} of {processes}"
    return f"is {fate.doing}, {_time(fate.idle_s)} after its last collective"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


# --- what a process says of itself -----------------------------------------------------------


def report_of(activity: Activity, now: float) -> Report:
    """The report of this process, from another thread than its main one.

    Args:
        activity: its collectives.
        now: time on its monotonic clock.
    """
    waiting = tuple(
        Waiting(c.op, str(c.where or ""), c.group, c.number, now - c.since) for c in activity.current
    )
    return Report(activity.counts, waiting, _doing(), activity.idle_s)


def _doing() -> str:
    """What the main thread does."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    where = source.line_of(frame)
    verb = "compiling" if any(f.f_code.co_filename.startswith(_COMPILES) for f in _outwards(frame)) else "at"
    if where is None:
        return "compiling" if verb == "compiling" else "busy"
    return f"{verb} {where}" if verb == "at" else f"compiling for {where}"


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def packed(report: Report) -> list[Any]:  # Any: what msgpack takes
    """A report as plain data."""
    waiting = [
        [w.op, w.where, list(w.group.processes), w.group.channel, w.number, w.for_s] for w in report.waiting
    ]
    return [packed_counts(report.counts), waiting, report.doing, report.idle_s]


def unpacked(content: list[Any]) -> Report:  # Any: what msgpack gives
    """What `packed` made."""
    counts, waiting, doing, idle_s = content
    waits = tuple(Waiting(w[0], w[1], Group(tuple(w[2]), w[3]), w[4], w[5]) for w in waiting)
    return Report(unpacked_counts(counts), waits, doing, idle_s)


def packed_counts(counts: Mapping[Group, int]) -> list[Any]:  # Any: what msgpack takes
    """Counts as plain data."""
    return [[list(group.processes), group.channel, number] for group, number in counts.items()]


def unpacked_counts(content: list[Any]) -> dict[Group, int]:  # Any: what msgpack gives
    """What `packed_counts` made."""
    return {Group(tuple(processes), channel): number for processes, channel, number in content}
