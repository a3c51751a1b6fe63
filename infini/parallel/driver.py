"""Runs a schedule: the tasks of the ranks that this process holds, with arrays in place of the times of
`schedules.simulate`.

One process that holds all ranks takes turns among them, and keeps a clock for each rank: a task starts when
its rank is free and what it takes has arrived. A process with one rank waits for its messages, and its
times are those of the wall. Either way the record is made of what happened, not of the schedule.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from infini.core import execute
from infini.core.array import Array
from infini.parallel.schedules import Durations, Schedule
from infini.parallel.stages import Chunk
from infini.parallel.timeline import Span, Task, Timeline
from infini.parallel.transport import Transport, local_nbytes
from infini.transforms import stages as jitted


@dataclass(frozen=True, slots=True)
class Record:
    """What happened in a step.

    Args:
        timeline: when each task ran. In one process: on a clock per rank, as if ranks ran at once; over
            several processes: seconds since each began its step.
        peak_activation_bytes: for each rank the most that one of its devices held between forward and
            backward passes.
        sent_bytes: for each rank what one of its devices sent to other ranks.
        num_messages: for each rank the number of arrays that one of its devices sent.
    """

    timeline: Timeline
    peak_activation_bytes: tuple[int, ...]
    sent_bytes: tuple[int, ...]
    num_messages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Programs:
    """What runs a chunk.

    Args:
        chunk: its programs and types.
        forward: from operands to results and residuals.
        backward: from residuals, cotangents and sums to new sums and cotangents.
        operands: captured values and leaves of parameters, on the devices of the rank.
        rest: what a microbatch adds behind its input: leaves of its target, key and number.
    """

    chunk: Chunk
    forward: execute.Runner
    backward: execute.Runner
    operands: Sequence[Array]
    rest: Callable[[int], Sequence[Array]]


@dataclass(slots=True)
class _Rank:
    """What a rank has done, and what it holds."""

    spans: list[Span] = field(default_factory=list)
    clock: float = 0.0
    held_bytes: int = 0
    peak_bytes: int = 0
    sent_bytes: int = 0
    num_messages: int = 0


class Run:
    """One step of a pipeline.

    Args:
        schedule: order of the tasks.
        programs: of the chunks of this process, by number.
        chunks: of all chunks.
        transport: moves arrays between ranks.
        inputs: leaves of the input of a microbatch, for chunk 0.
        durations: how long tasks take on the clocks of ranks; measured when absent.
    """

    def __init__(
        self,
        schedule: Schedule,
        programs: Mapping[int, Programs],
        chunks: Sequence[Chunk],
        transport: Transport,
        inputs: Callable[[int], Sequence[Array]],
        durations: Durations | None = None,
    ) -> None:
        self.schedule, self.programs, self.chunks = schedule, programs, chunks
        self.transport, self.inputs, self.durations = transport, inputs, durations
        self.sums: dict[int, list[Array]] = {}  # of gradients, by chunk
        self.losses: list[Array] = []
        self._held: dict[tuple[int, int], list[Array]] = {}
        self._mail: dict[Task, tuple[Sequence[Array], float]] = {}
        self._ranks: defaultdict[int, _Rank] = defaultdict(_Rank)
        self._began = time.perf_counter()

    def run(self) -> None:
        """All tasks of this process."""
        place = dict.fromkeys(self.transport.ranks, 0)
        while any(number < len(self.schedule.tasks[rank]) for rank, number in place.items()):
            for rank in place:
                order = self.schedule.tasks[rank]
                while place[rank] < len(order) and self._can_run(order[place[rank]]):
                    self._task(rank, order[place[rank]])
                    place[rank] += 1
        self.transport.finish()
        assert not self._held and not self._mail, "every pass forwards has its pass backwards"

    def _can_run(self, task: Task) -> bool:
        """Whether what a task takes is here; a message of another process will be waited for."""
        source = self.schedule.needs(task)
        return source is None or self.transport.is_distributed or source in self._mail

    def _task(self, rank: int, task: Task) -> None:
        state = self._ranks[rank]
        given, arrival = self._taken(task)
        began = time.perf_counter()
        results = (self._forward if task.kind == "forward" else self._backward)(task, given, state)
        for array in results:
            array.block_until_ready()
        ended = time.perf_counter()
        if self.transport.is_distributed:
            state.spans.append(Span(task, began - self._began, ended - self._began))
        else:
            start = max(state.clock, arrival)
            taken = ended - began if self.durations is None else self.durations.of(task)
            state.clock = start + taken
            state.spans.append(Span(task, start, state.clock))
        self._give(task, results, state)

    # --- what goes between tasks ----------------------------------------------------------------------

    def _taken(self, task: Task) -> tuple[Sequence[Array], float]:
        """The arrays that a task takes from another one, and when they were there."""
        source = self.schedule.needs(task)
        if source is None:
            return self.inputs(task.microbatch), 0.0
        origin = self.schedule.rank_of(source.chunk)
        if source in self._mail or origin in self.transport.ranks:
            return self._mail.pop(source)
        chunk = self.chunks[source.chunk]
        if source.kind == "forward":
            message = chunk.output
        else:
            message = self.chunks[task.chunk].output.only(self.chunks[task.chunk].received)
        return self.transport.receive(message, origin, self._tag(source)), 0.0

    def _give(self, task: Task, results: Sequence[Array], state: _Rank) -> None:
        """Send the results of a task to the one that takes them, if there is one."""
        last = self.schedule.num_chunks - 1
        rank, end = self.schedule.rank_of(task.chunk), state.clock
        if task.kind == "forward" and task.chunk == last:
            self.losses += results
            self._mail[task] = ((), end)  # the way back starts here
            return
        if task.kind == "backward" and task.chunk == 0:
            return
        target = self.schedule.rank_of(task.chunk + (1 if task.kind == "forward" else -1))
        if target == rank:
            self._mail[task] = (results, end)
            return
        state.sent_bytes += sum(map(local_nbytes, results))
        state.num_messages += len(results)
        if self.transport.is_distributed:
            self.transport.send(results, target, self._tag(task))
        else:
            transfer = 0.0 if self.durations is None else self.durations.transfer
            self._mail[task] = (self.transport.moved(results, target), end + transfer)

    def _tag(self, task: Task) -> int:
        """What tells messages apart; those of one chunk and direction are in the order of microbatches."""
        return task.chunk + (self.schedule.num_chunks if task.kind == "backward" else 0)

    # --- the tasks ------------------------------------------------------------------------------------

    def _forward(self, task: Task, given: Sequence[Array], state: _Rank) -> Sequence[Array]:
        programs = self.programs[task.chunk]
        operands = [*programs.operands, *given, *programs.rest(task.microbatch)]
        results = programs.forward(operands)
        num_outputs = len(programs.chunk.output.types)
        computed = iter(results[num_outputs:])
        held = [next(computed) if k is None else operands[k] for k in programs.chunk.known]
        self._held[task.chunk, task.microbatch] = held
        state.held_bytes += _nbytes(held)
        state.peak_bytes = max(state.peak_bytes, state.held_bytes)
        return results[:num_outputs]

    def _backward(self, task: Task, given: Sequence[Array], state: _Rank) -> Sequence[Array]:
        programs = self.programs[task.chunk]
        held = self._held.pop((task.chunk, task.microbatch))
        again = [programs.operands[i] for i in programs.chunk.recomputed]
        sums = self.sums[task.chunk]
        results = jitted.run_donating(programs.backward, [*again, *held, *given, *sums], "pipeline")
        state.held_bytes -= _nbytes(held)
        self.sums[task.chunk] = list(results[: len(sums)])
        return results[len(sums) :]

    # --- what is known afterwards -----------------------------------------------------------------------

    def finish(self, scale: float) -> tuple[float, Record]:
        """The loss of the step, and its record; processes tell each other what they know."""
        loss = scale * sum(float(np.asarray(x)) for x in self.losses)
        if not self.transport.is_distributed:
            ranks = [self._ranks[rank] for rank in range(self.schedule.num_stages)]
            return loss, _record([r.spans for r in ranks], [_counts(r) for r in ranks])
        (rank,) = self.transport.ranks
        mine = self._ranks[rank]
        times = [number for span in mine.spans for number in (span.start, span.end)]
        content = np.array([loss, *_counts(mine), *times], np.float64).tobytes()
        found = [np.frombuffer(text, np.float64) for text in self.transport.everywhere(content)]
        rows = []
        for order, numbers in zip(self.schedule.tasks, found, strict=True):
            pairs = zip(order, numbers[4::2].tolist(), numbers[5::2].tolist(), strict=True)
            rows.append([Span(task, start, end) for task, start, end in pairs])
        last = self.schedule.rank_of(self.schedule.num_chunks - 1)
        return float(found[last][0]), _record(rows, [tuple(map(int, numbers[1:4])) for numbers in found])


def _nbytes(arrays: Sequence[Array]) -> int:
    """Bytes on one device; an array that is there twice counts once."""
    return sum(local_nbytes(array) for array in {id(array): array for array in arrays}.values())


def _counts(rank: _Rank) -> tuple[int, ...]:
    return rank.peak_bytes, rank.sent_bytes, rank.num_messages


def _record(rows: Sequence[Sequence[Span]], counts: Sequence[Sequence[int]]) -> Record:
    peaks, sent, messages = zip(*counts, strict=True)
    return Record(Timeline(tuple(map(tuple, rows))), tuple(peaks), tuple(sent), tuple(messages))
