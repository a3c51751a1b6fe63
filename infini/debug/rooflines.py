"""The roofline of a program: what each kernel moves and computes, how long that takes at least on this
machine, and how long it takes.
"""

from __future__ import annotations

import html
import io
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from infini.backends.cpu import inspect, limits as limits_
from infini.backends.cpu.executable import CpuExecutable
from infini.backends.cpu.limits import Limits
from infini.backends.cpu.profiling import PhaseTime
from infini.compiler import cost, inspection
from infini.compiler.steps import Group, Phase
from infini.core import errors, tree
from infini.core.array import Array
from infini.core.source import Where
from infini.debug import subject as subject_
from infini.transforms import stages, staging

OUTSIDE: Final = "outside kernels"
_WARM_CALLS: Final = 3  # until a jitted function knows how to repeat a call
MOST_ROWS: Final = 40  # of the table; the object has all


@dataclass(frozen=True, slots=True)
class Row:
    """A kernel, or what one phase of the program computes. All turns of a loop are one row, and so are equal
    kernels of one line, such as those of equal layers.

    Args:
        name: its operations.
        where: the user's line.
        runs: how often it ran in a call.
        flops: floating-point operations, a multiply-add counted as two.
        transcendentals: exponentials, logarithms and the like.
        read_bytes: bytes that it must read.
        written_bytes: bytes that it must write.
        predicted_s: the shortest time that the limits of the machine allow.
        measured_s: time on the clock.
        bound: which limit decides.
    """

    name: str
    where: Where | None
    runs: int
    flops: float
    transcendentals: float
    read_bytes: float
    written_bytes: float
    predicted_s: float
    measured_s: float
    bound: Literal["compute", "memory", "mixed", ""]

    @property
    def share(self) -> float:
        """How much of the limit is reached: predicted over measured time."""
        return self.predicted_s / self.measured_s if self.measured_s > 0 else 0.0

    @property
    def nbytes(self) -> float:
        """Bytes read and written."""
        return self.read_bytes + self.written_bytes


@dataclass(frozen=True, slots=True)
class Roofline:
    """What `roofline` found. It prints as a table.

    Args:
        name: name of the function.
        rows: kernels, the slowest first; the last row is the time outside of them.
        wall_s: time of one call, which the rows add up to: of the fastest plain call, or of the one with
            clocks around its kernels when that was faster.
        call_s: time of the fastest plain call.
        num_calls: calls that were measured; the rows are those of the fastest.
        limits: of this machine.
        source: lines of the user's files, for the table.
    """

    name: str
    rows: tuple[Row, ...]
    wall_s: float
    call_s: float
    num_calls: int
    limits: Limits
    source: dict[Where, str] = field(default_factory=dict)

    @property
    def kernels(self) -> tuple[Row, ...]:
        """The rows without the last one."""
        return self.rows[:-1]

    @property
    def totals(self) -> dict[str, float]:
        """Sums over the kernels under the names of `cost_analysis`. Loops of unknown length count as often as
        they turned, and branches that were not taken not at all.
        """
        return {
            "flops": sum(row.flops for row in self.rows),
            "transcendentals": sum(row.transcendentals for row in self.rows),
            "bytes accessed": sum(row.nbytes for row in self.rows),
        }

    def __rich__(self) -> Table:
        return _table(self)

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=160).print(_table(self))
        return text.getvalue()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def roofline(function: Any, /, *args: Any, calls: int = 10, **kwargs: Any) -> Roofline:  # Any: pytrees
    """Measure every kernel of a function, print a table, slowest first, and return it.

    The limits of the machine (multiply-adds, reading and copying from caches and memory) are measured the
    first time and kept in the cache folder. The function runs about twice as often as `calls` says. Donated
    arguments are copied, so the arrays stay as they are.

    Args:
        function: a function, jitted or not.
        args: its arguments.
        calls: how many calls to measure; the fastest is shown, as what else the machine does only adds.
        kwargs: its keyword arguments.

    Returns:
        The rows; `rows[-1]` is the time outside kernels.

    Raises:
        UnsupportedError: the program is for another backend than the CPU's, or for several devices.

    Example:
        >>> import infini as inf, infini.numpy as inp
        >>> report = inf.debug.roofline(lambda x: inp.tanh(x @ x), inp.ones((256, 256)))  # doctest: +SKIP
    """
    if calls < 1:
        raise errors.ValueMismatchError("roofline needs a call to measure", got=f"calls={calls}")
    found = measure(function, args, kwargs, calls, limits_.known())
    Console().print(found)
    return found


def measure(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], calls: int, limits: Limits
) -> Roofline:  # Any: pytrees
    """The roofline of a function, without printing; see `roofline`."""
    if callable(function) and not isinstance(function, (staging.Jitted, stages.Compiled)):
        function = staging.jit(function)
    subject = subject_.of(function, args, kwargs)
    executable = subject.executable
    if not isinstance(executable, CpuExecutable):
        raise errors.UnsupportedError(
            f"roofline measures programs of the CPU backend, and {subject.name} is not one",
            got=f"a program for {subject.device}",
            fix="put the arguments on infini.devices('cpu')[0]",
        )
    if len(subject.arrays) != len(subject.program.params):
        raise errors.TypeMismatchError(
            f"{subject.name} was given compiled, without arguments to run it with",
            fix="pass the jitted function and its arguments",
        )
    profile = executable.profile(subject.buffers(), calls)
    rows = _rows(profile.phases, _costs(executable), limits)
    rows.sort(key=lambda row: -row.measured_s)
    inside, clocked = sum(row.measured_s for row in rows), profile.wall_ns * 1e-9
    call_s = _call_s(function, args, kwargs, calls, has_donated=bool(subject.options.donated))
    # A call in which the machine had other work says nothing about what is outside.
    wall_s = call_s if inside <= call_s <= clocked else max(clocked, inside)
    rows.append(Row(OUTSIDE, None, 1, 0.0, 0.0, 0.0, 0.0, 0.0, wall_s - inside, ""))
    lines = {row.where: inspection.source_line(row.where) for row in rows if row.where is not None}
    return Roofline(subject.name, tuple(rows), wall_s, call_s, calls, limits, lines)


def _call_s(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], calls: int, *, has_donated: bool
) -> float:
    """Time of the fastest plain call."""
    found = []
    for _ in range(_WARM_CALLS + calls):
        given = tree.map(_copied, (args, kwargs)) if has_donated else (args, kwargs)
        started = time.perf_counter()
        function(*given[0], **given[1])
        found.append(time.perf_counter() - started)
    return min(found[_WARM_CALLS:])


def _copied(leaf: Any) -> Any:
    return leaf.copy() if isinstance(leaf, Array) else leaf


# --- from phases to rows ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Cost:
    """Work of one run of a task function; `effort` is in additions that a vector unit does, times two."""

    flops: float = 0.0
    transcendentals: float = 0.0
    read: float = 0.0
    written: float = 0.0
    effort: float = 0.0

    def __add__(self, other: _Cost) -> _Cost:
        return _Cost(
            self.flops + other.flops,
            self.transcendentals + other.transcendentals,
            self.read + other.read,
            self.written + other.written,
            self.effort + other.effort,
        )


def _costs(executable: CpuExecutable) -> dict[str, _Cost]:
    """Work by the symbol of the function that does it: the last one of a phase; what packs for it does no
    work of its own.
    """
    found: dict[str, _Cost] = {}
    for call in inspect.calls_of(executable.fused, executable.target, executable.options.donated):
        if not call.is_last:
            found.setdefault(call.task.name, _Cost())
            continue
        total = _Cost(read=call.read, written=call.written)
        for equation in call.equations:
            work = cost.work(equation)
            total += _Cost(
                work.get("flops", 0.0), work.get("transcendentals", 0.0), effort=cost.effort(equation)
            )
        found[call.task.name] = total
    return found


def _rows(phases: Iterable[PhaseTime], costs: dict[str, _Cost], limits: Limits) -> list[Row]:
    """One row per kernel and line: the tasks of one phase are added up, and then equal phases."""
    by_phase: dict[int, list[PhaseTime]] = {}
    for number, phase in enumerate(phases):
        if phase.runs:
            by_phase.setdefault(number if phase.step is None else -1 - id(phase.step), []).append(phase)
    equal: dict[object, list[list[PhaseTime]]] = {}
    for parts in by_phase.values():
        symbols = tuple(task.name for phase in _phases(parts[0]) for task in phase.tasks)
        equal.setdefault((symbols, parts[0].nbytes, parts[0].where), []).append(parts)
    return [_row(group, costs, limits) for group in equal.values()]


def _phases(part: PhaseTime) -> tuple[Phase, ...]:
    """The phases that are timed together."""
    if part.step is None:
        return ()
    return part.step.phases if isinstance(part.step, Group) else (part.step,)


def _row(group: list[list[PhaseTime]], costs: dict[str, _Cost], limits: Limits) -> Row:
    """The row of equal phases, each given by the times of its tasks."""
    first = group[0][0]
    phases = _phases(first)
    work, name = _Cost(read=float(first.nbytes), written=float(first.nbytes)), first.name
    for task in (task for phase in phases for task in phase.tasks):
        work += costs.get(task.name, _Cost())
    if phases:
        counts = Counter(phase.name for phase in phases)
        name = " + ".join(n if count == 1 else f"{count} x {n}" for n, count in counts.items())
    moving, computing = limits.least_s(0.0, work.read, work.written), work.effort / limits.flops_per_s
    runs = sum(parts[0].runs for parts in group)
    measured = sum(part.ns for parts in group for part in parts) * 1e-9
    return Row(
        name, first.where, runs, work.flops * runs, work.transcendentals * runs, work.read * runs,
        work.written * runs, max(moving, computing) * runs, measured,
        "compute" if computing > moving else "memory",
    )  # fmt: skip


# --- the table --------------------------------------------------------------------------------------


def _table(found: Roofline) -> Table:
    limits = found.limits
    reading = max(limits.read_bytes_per_s.values())
    memory = limits.read_bytes_per_s[max(limits.read_bytes_per_s)]
    table = Table(
        title=f"{escape(found.name)}: a call takes {_time(found.wall_s)}",
        caption=f"limits with {limits.num_threads} threads: {limits.flops_per_s / 1e9:.0f} GFLOP/s, reading "
        f"{reading / 1e9:.0f} GB/s from caches and {memory / 1e9:.0f} from memory",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("of call", justify="right", no_wrap=True)
    table.add_column("kernel", overflow="fold", max_width=38)
    table.add_column("your line", overflow="ellipsis", no_wrap=True, max_width=44)
    for head in ("runs", "FLOP", "bytes", "GFLOP/s", "GB/s", "at least", "of limit", "bound"):
        table.add_column(head, justify="right", no_wrap=True)
    shown = found.kernels[:MOST_ROWS]
    rest = found.kernels[MOST_ROWS:]
    for row in (*shown, *_together(rest), found.rows[-1]):
        line = "" if row.where is None else f"{row.where}  {found.source.get(row.where, '')}"
        share = row.measured_s / found.wall_s if found.wall_s else 0.0
        own = ("",) * 8
        if row.bound:
            work = row.flops + row.transcendentals
            own = (
                str(row.runs),
                _count(work),
                _count(row.nbytes),
                f"{work / row.measured_s / 1e9:.3g}" if row.measured_s else "",
                f"{row.nbytes / row.measured_s / 1e9:.3g}" if row.measured_s else "",
                _time(row.predicted_s),
                f"{row.share:.0%}",
                row.bound,
            )
        table.add_row(_time(row.measured_s), f"{share:.1%}", escape(row.name), escape(line), *own)
    totals = found.totals
    table.add_section()
    table.add_row(
        _time(found.wall_s), "100%", "sum", "", "", _count(totals["flops"] + totals["transcendentals"]),
        _count(totals["bytes accessed"]), "", "", _time(sum(row.predicted_s for row in found.rows)), "", "",
    )  # fmt: skip
    return table


def _together(rows: tuple[Row, ...]) -> list[Row]:
    """The rows that the table does not show one by one, as one."""
    if not rows:
        return []
    more = Row(
        name=f"{len(rows)} more rows",
        where=None,
        runs=sum(row.runs for row in rows),
        flops=sum(row.flops for row in rows),
        transcendentals=sum(row.transcendentals for row in rows),
        read_bytes=sum(row.read_bytes for row in rows),
        written_bytes=sum(row.written_bytes for row in rows),
        predicted_s=sum(row.predicted_s for row in rows),
        measured_s=sum(row.measured_s for row in rows),
        bound="mixed",
    )
    return [more]


def _time(seconds: float) -> str:
    return inspection.duration(seconds * 1e9)


def _count(number: float) -> str:
    for scale, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number:.0f}"
