"""Schedules of pipelines as data: which rank does which pass in which order. Pure: no arrays, no devices.

A model is cut into chunks, numbered in its order. Chunk c is on rank c mod p of p ranks, so with one chunk
per rank a chunk is a stage, and with several (virtual stages) a microbatch goes round the ranks several
times. Here p is the number of ranks, m of microbatches, v of chunks per rank.

    gpipe        all forward passes, then all backward passes   waiting (p-1)/(m+p-1)   holds m
    one_f_one_b  backward passes as soon as they can be         waiting (p-1)/(m+p-1)   holds min(p-r, m)
    interleaved  the same with v chunks per rank                waiting (p-1)/(vm+p-1)  holds more, see there

GPipe: arXiv:1811.06965. PipeDream-flush (1F1B): arXiv:2006.09503. Interleaved: Narayanan et al. 2021,
arXiv:2104.04473.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from infini.core import errors
from infini.parallel.timeline import Span as Span, Task as Task, Timeline as Timeline

Order: TypeAlias = tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class Schedule:
    """What every rank of a pipeline does, in order. It is checked when it is made, so that one which exists
    can be run; schedules of your own are welcome.

    Args:
        name: name for people.
        num_stages: number of ranks.
        num_microbatches: number of microbatches of a step.
        num_virtual: number of chunks per rank.
        tasks: for each rank its tasks in order. Every chunk takes the microbatches in ascending order in
            both directions, so that neighbours agree on the order of their messages and every schedule
            adds gradients in one order.

    Raises:
        ValueMismatchError: a number is not positive; a task is missing, there twice, or on the wrong rank;
            microbatches are out of order; or ranks would wait for each other for ever.
    """

    name: str
    num_stages: int
    num_microbatches: int
    num_virtual: int
    tasks: tuple[Order, ...]

    def __post_init__(self) -> None:
        _check_counts(self.name, self.num_stages, self.num_microbatches, self.num_virtual)
        _check_tasks(self)
        simulate(self)

    @property
    def num_chunks(self) -> int:
        """Number of chunks of the model."""
        return self.num_stages * self.num_virtual

    def rank_of(self, chunk: int) -> int:
        """The rank that holds a chunk."""
        return chunk % self.num_stages

    def needs(self, task: Task) -> Task | None:
        """The task whose result a task takes; None for the first pass of a microbatch."""
        if task.kind == "forward":
            return Task("forward", task.chunk - 1, task.microbatch) if task.chunk else None
        last = self.num_chunks - 1
        if task.chunk == last:
            return Task("forward", last, task.microbatch)
        return Task("backward", task.chunk + 1, task.microbatch)

    def __repr__(self) -> str:
        return (
            f"Schedule({self.name!r}, num_stages={self.num_stages}, "
            f"num_microbatches={self.num_microbatches}, num_virtual={self.num_virtual})"
        )


def gpipe(num_stages: int, num_microbatches: int, num_virtual: int = 1) -> Schedule:
    """All forward passes, then all backward passes. A rank holds the activations of all microbatches.

    Args:
        num_stages: number of ranks.
        num_microbatches: number of microbatches of a step.
        num_virtual: chunks per rank; each goes through all microbatches before the next one does.

    Raises:
        ValueMismatchError: a number is not positive.

    Example:
        >>> from infini.parallel import schedules
        >>> timeline = schedules.simulate(schedules.gpipe(num_stages=4, num_microbatches=8))
        >>> round(timeline.bubble_fraction, 4) == round(3 / 11, 4)
        True
        >>> timeline.peak_activations
        (8, 8, 8, 8)
    """
    _check_counts("gpipe", num_stages, num_microbatches, num_virtual)
    orders = []
    for rank in range(num_stages):
        chunks = range(rank, num_stages * num_virtual, num_stages)
        forward = [Task("forward", c, i) for c in chunks for i in range(num_microbatches)]
        backward = [Task("backward", c, i) for c in reversed(chunks) for i in range(num_microbatches)]
        orders.append((*forward, *backward))
    return Schedule("gpipe", num_stages, num_microbatches, num_virtual, tuple(orders))


def one_f_one_b(num_stages: int, num_microbatches: int) -> Schedule:
    """One forward pass, one backward pass: a backward pass goes first once it can. Rank r of p holds the
    activations of at most p - r microbatches, however many there are.

    Args:
        num_stages: number of ranks.
        num_microbatches: number of microbatches of a step.

    Raises:
        ValueMismatchError: a number is not positive.

    Example:
        >>> from infini.parallel import schedules
        >>> timeline = schedules.simulate(schedules.one_f_one_b(num_stages=4, num_microbatches=8))
        >>> timeline.peak_activations
        (4, 3, 2, 1)
    """
    _check_counts("1f1b", num_stages, num_microbatches, 1)
    orders = []
    for rank in range(num_stages):
        forward = [Task("forward", rank, i) for i in range(num_microbatches)]
        backward = [Task("backward", rank, i) for i in range(num_microbatches)]
        orders.append(_alternating(forward, backward, num_stages - rank - 1))
    return Schedule("1f1b", num_stages, num_microbatches, 1, tuple(orders))


def interleaved(num_stages: int, num_microbatches: int, num_virtual: int) -> Schedule:
    """1F1B with several chunks per rank: waiting shrinks by their number, and messages grow by it.

    Microbatches go round in groups of p. Rank r of p with v chunks runs 2(p - r - 1) + (v - 1)p forward
    passes ahead, so rank 0 holds the activations of pv + p - 1 passes through chunks, which are v times
    smaller than stages: 1 + (p - 1)/(pv) of what 1F1B holds.

    Args:
        num_stages: number of ranks.
        num_microbatches: number of microbatches of a step, a multiple of `num_stages`.
        num_virtual: chunks per rank.

    Raises:
        ValueMismatchError: a number is not positive, or `num_stages` does not divide `num_microbatches`.

    Example:
        >>> from infini.parallel import schedules
        >>> timeline = schedules.simulate(schedules.interleaved(4, 8, num_virtual=2))
        >>> round(timeline.bubble_fraction, 4) == round(3 / 19, 4)
        True
        >>> timeline.peak_activations
        (11, 9, 7, 5)
    """
    _check_counts("interleaved", num_stages, num_microbatches, num_virtual)
    if num_microbatches % num_stages:
        raise errors.ValueMismatchError(
            "interleaved: microbatches go round the ranks in whole groups",
            got=f"num_microbatches={num_microbatches}, num_stages={num_stages}",
            expected=f"a multiple of {num_stages} microbatches",
            fix="change num_microbatches, or take 1f1b, which takes any number",
        )
    orders = []
    for rank in range(num_stages):
        chunks = range(rank, num_stages * num_virtual, num_stages)
        forward = [Task("forward", c, i) for c, i in _rounds(chunks, num_microbatches, num_stages)]
        backward = [Task("backward", c, i) for c, i in _rounds(chunks[::-1], num_microbatches, num_stages)]
        num_ahead = 2 * (num_stages - rank - 1) + (num_virtual - 1) * num_stages
        orders.append(_alternating(forward, backward, num_ahead))
    return Schedule("interleaved", num_stages, num_microbatches, num_virtual, tuple(orders))


def _rounds(chunks: Sequence[int], num_microbatches: int, num_stages: int) -> Iterable[tuple[int, int]]:
    """Groups of as many microbatches as there are ranks, each through one chunk after the other."""
    for first in range(0, num_microbatches, num_stages):
        for chunk in chunks:
            for i in range(first, first + num_stages):
                yield chunk, i


def _alternating(forward: Sequence[Task], backward: Sequence[Task], num_ahead: int) -> Order:
    """Some forward passes ahead, then forward and backward in turn, then what is left."""
    ahead = min(num_ahead, len(forward))
    pairs = zip(forward[ahead:], backward, strict=False)
    steady = [task for pair in pairs for task in pair]
    return (*forward[:ahead], *steady, *backward[len(forward) - ahead :])


def named(name: str, num_stages: int, num_microbatches: int, num_virtual: int = 1) -> Schedule:
    """A schedule by name: `gpipe`, `1f1b` or `interleaved`.

    Args:
        name: which.
        num_stages: number of ranks.
        num_microbatches: number of microbatches of a step.
        num_virtual: chunks per rank; 1f1b takes one.

    Raises:
        ValueMismatchError: there is no such schedule, or the numbers do not go with it.
    """
    if name == "gpipe":
        return gpipe(num_stages, num_microbatches, num_virtual)
    if name == "interleaved":
        return interleaved(num_stages, num_microbatches, num_virtual)
    if name != "1f1b":
        raise errors.ValueMismatchError(
            "there is no such schedule", got=repr(name), expected="'gpipe', '1f1b' or 'interleaved'"
        )
    if num_virtual != 1:
        raise errors.ValueMismatchError(
            "1f1b has one chunk per rank",
            got=f"num_virtual={num_virtual}",
            fix="take 'interleaved', which is 1F1B with several",
        )
    return one_f_one_b(num_stages, num_microbatches)


# --- checks -----------------------------------------------------------------------------------------


def _check_counts(name: str, num_stages: int, num_microbatches: int, num_virtual: int) -> None:
    counts = {
        "num_stages": num_stages,
        "num_microbatches": num_microbatches,
        "num_virtual": num_virtual,
    }
    for what, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise errors.ValueMismatchError(
                f"{name}: {what} is a positive integer", got=f"{what}={count!r}", expected="1 or more"
            )


def _check_tasks(schedule: Schedule) -> None:
    name, count = schedule.name, schedule.num_microbatches
    if len(schedule.tasks) != schedule.num_stages:
        raise errors.ValueMismatchError(
            f"{name}: there is one order of tasks per rank",
            got=f"{len(schedule.tasks)}",
            expected=f"{schedule.num_stages}",
        )
    for rank, order in enumerate(schedule.tasks):
        passes: dict[tuple[str, int], list[int]] = {}
        for task in order:
            if task.kind not in ("forward", "backward") or task.chunk not in range(
                rank, schedule.num_chunks, schedule.num_stages
            ):
                raise errors.ValueMismatchError(
                    f"{name}: rank {rank} has a task that is not its own",
                    got=str(task),
                    expected=f"chunks {list(range(rank, schedule.num_chunks, schedule.num_stages))}",
                )
            passes.setdefault((task.kind, task.chunk), []).append(task.microbatch)
        for chunk in range(rank, schedule.num_chunks, schedule.num_stages):
            for kind in ("forward", "backward"):
                found = passes.get((kind, chunk), [])
                if found != list(range(count)):
                    raise errors.ValueMismatchError(
                        f"{name}: a chunk takes every microbatch once, in ascending order",
                        got=f"{kind} passes of chunk {chunk} for microbatches {found}",
                        expected=f"0 to {count - 1}",
                    )


# --- simulated time ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Durations:
    """How long tasks take, in any unit.

    Args:
        forward: of a forward pass: one number, or one per chunk.
        backward: of a backward pass: one number, or one per chunk.
        transfer: of a message from one rank to another; ranks work on meanwhile.

    Raises:
        ValueMismatchError: one is negative.
    """

    forward: float | Sequence[float] = 1.0
    backward: float | Sequence[float] = 2.0
    transfer: float = 0.0

    def __post_init__(self) -> None:
        for what in ("forward", "backward", "transfer"):
            given = getattr(self, what)
            if any(number < 0 for number in (given if isinstance(given, Sequence) else (given,))):
                raise errors.ValueMismatchError(
                    f"durations are not negative: {what}", got=repr(given), expected="0 or more"
                )

    def of(self, task: Task) -> float:
        """How long a task takes.

        Raises:
            ValueMismatchError: there is no number for its chunk.
        """
        given = self.forward if task.kind == "forward" else self.backward
        if not isinstance(given, Sequence):
            return float(given)
        if task.chunk >= len(given):
            raise errors.ValueMismatchError(
                f"durations have one number per chunk: {task.kind}",
                got=f"{len(given)} numbers",
                expected=f"one for chunk {task.chunk} too",
            )
        return float(given[task.chunk])


def simulate(
    schedule: Schedule,
    durations: Durations | Mapping[Task, float] = Durations(),
    transfer: float = 0.0,
) -> Timeline:
    """When each task of a schedule runs, if every rank begins its next task as soon as it is free and has
    what the task takes.

    Args:
        schedule: the schedule.
        durations: how long tasks take: by a rule, or each task by itself, such as measured ones.
        transfer: duration of a message when `durations` is a mapping.

    Raises:
        ValueMismatchError: a duration is missing.

    Example:
        >>> from infini.parallel import schedules
        >>> schedule = schedules.one_f_one_b(2, 4)
        >>> schedules.simulate(schedule, schedules.Durations(1, 1)).makespan
        10.0
    """
    moving = durations.transfer if isinstance(durations, Durations) else transfer
    done: dict[Task, float] = {}
    rows: list[list[Span]] = [[] for _ in range(schedule.num_stages)]
    pending = set(range(schedule.num_stages))
    while pending:
        has_moved = False
        for rank in sorted(pending):
            order, row = schedule.tasks[rank], rows[rank]
            while len(row) < len(order):
                task = order[len(row)]
                source = schedule.needs(task)
                if source is not None and source not in done:
                    break
                is_far = source is not None and schedule.rank_of(source.chunk) != rank
                arrival = 0.0 if source is None else done[source] + moving * is_far
                start = max(row[-1].end if row else 0.0, arrival)
                row.append(Span(task, start, start + _duration(durations, task)))
                done[task] = row[-1].end
                has_moved = True
            if len(row) == len(order):
                pending.discard(rank)
        if pending and not has_moved:
            waiting = [f"rank {rank}: {schedule.tasks[rank][len(rows[rank])]}" for rank in sorted(pending)]
            raise errors.ValueMismatchError(
                f"{schedule.name}: ranks would wait for each other for ever",
                got="; ".join(waiting),
                expected="an order in which some rank can always go on",
            )
    return Timeline(tuple(map(tuple, rows)))


def _duration(durations: Durations | Mapping[Task, float], task: Task) -> float:
    if isinstance(durations, Durations):
        return durations.of(task)
    if task not in durations:
        raise errors.ValueMismatchError("a task has no duration", got=str(task))
    return float(durations[task])
