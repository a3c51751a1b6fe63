"""`kernel.tune`: which configuration of a kernel is fastest, found by measuring the likely ones once.

Configurations that tiles do not fit, and that a roofline thinks slow, are left out; the rest is a question of
`compiler.choices`, so an answer is kept on disk, shared by processes, and given without a clock where nothing
may be measured. Processes of one job take the answer of the first one (design 4a.15).
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from infini.backends.spmd import agreement, differences
from infini.compiler import choices, inspection
from infini.compiler.choices import Choice
from infini.core import backend, comm, config, dtypes, errors, ir, trace
from infini.core.backend import CompileOptions, Device
from infini.core.ir import ArrayType, Attrs
from infini.core.value import Value
from infini.perf import configuration_cost as cost, tuning_plot
from infini.perf.configuration_cost import DeviceFacts
from infini.tile import buckets, configurations, function
from infini.tile.configurations import Configuration
from infini.tile.drawing import Drawing
from infini.tile.function import KernelFunction
from infini.tile.program import Kernel, kernel_p
from infini.tile.symbols import Size

MOST: Final = 12  # configurations that are measured
_SAMPLE_S: Final = 2e-3  # a measurement takes so long, by as many runs as that needs
_MOST_RUNS: Final = 1000
_HOSTS: Final = frozenset({"cpu", "reference", "null"})  # platforms that launch no warps
_OPTIONS: Final = CompileOptions()


@dataclass(frozen=True, slots=True)
class Row:
    """A configuration that was looked at.

    Args:
        configuration: its values.
        predicted_s: the shortest time that the roofline allows.
        measured_s: median of its samples; None when it was not measured.
        note: why it was not, or could not be.
    """

    configuration: Configuration
    predicted_s: float
    measured_s: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What tuning found. It prints as a table, the fastest configuration first.

    Args:
        kernel: name of the kernel.
        types: types of the operands.
        device: where it ran.
        chosen: the configuration that is used from now on.
        source: where the answer comes from: `measured`, `disk`, `default`, or `agreed` with other processes.
        rows: configurations that could be used.
        left_out: how many were not, by the reason.
    """

    kernel: str
    types: tuple[ArrayType, ...]
    device: str
    chosen: Configuration
    source: str
    rows: tuple[Row, ...]
    left_out: tuple[tuple[str, int], ...] = ()

    def __rich__(self) -> Table:
        table = Table(
            title=f"{self.kernel}({', '.join(map(str, self.types))}) on {self.device}", title_justify="left"
        )
        for name, side in (
            ("configuration", "left"),
            ("predicted", "right"),
            ("measured", "right"),
            ("", "left"),
        ):
            table.add_column(name, justify=side)  # type: ignore[arg-type]  # two of its literals
        shown = [r for r in self.rows if r.measured_s is not None or r.note or r.configuration == self.chosen]
        shown = shown if len(shown) > 1 else list(self.rows[:MOST])
        for row in shown:
            is_chosen = row.configuration == self.chosen
            measured = "" if row.measured_s is None else inspection.duration(row.measured_s * 1e9)
            note = f"chosen ({self.source})" if is_chosen else row.note
            table.add_row(
                str(row.configuration), inspection.duration(row.predicted_s * 1e9), measured, note,
                style="bold" if is_chosen else None,
            )  # fmt: skip
        more = len(self.rows) - len(shown)
        notes = [f"{more} more, predicted to be slower"] if more else []
        notes += [f"{count} left out: {reason}" for reason, count in self.left_out]
        table.caption, table.caption_justify = "\n".join(notes), "left"
        return table

    def draw(self, path: str | Path | None = None) -> Drawing:
        """Predicted and measured times as a picture, written to an `.svg` or `.png` file."""
        drawing = tuning_plot.plot(self)
        if path is not None:
            drawing.save(path)
        return drawing

    def _repr_svg_(self) -> str:
        return self.draw().svg

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=120).print(self)
        return text.getvalue()

    __repr__ = __str__


def tune(
    kernel: KernelFunction,
    *operands: Any,
    constraints: Sequence[Size] = (),
    most: int = MOST,
    on: str | None = None,
    deterministic: bool = False,
    **static: Hashable,
) -> Report:  # Any: arrays, or types in their place
    """Find the fastest configuration of a kernel, and use it from now on for operands of about this size.

    Sizes are about the same when they round up to the same powers of two. What was found is kept on disk for
    the kernel, these sizes, the device and the versions of the compilers. In a job of several processes all
    must call this; the first one measures and tells the others.

    Args:
        kernel: the kernel. Block sizes that `configure` has fixed stay.
        operands: what it is called with; types are filled with random numbers.
        constraints: relations of block sizes that must hold, such as `BM * BN <= 4096`.
        most: how many configurations to measure, the ones that should be fastest.
        on: platform of the device; the default device when absent.
        deterministic: measure nothing and keep the usual configuration, as the knob `tune` = `off` does.
        **static: keyword arguments of the application.

    Raises:
        ValueMismatchError: no configuration holds the constraints, or `most` is not positive.
        LoweringError: every configuration failed.

    Example:
        >>> from infini.tile import Tensor, block_size, kernel
        >>> x, block = Tensor(1), block_size(64, 1024)
        >>> cut = lambda x, y: (x.tile((block,)), y.tile((block,)))
        >>> copy = kernel(cut, tensors=(x, Tensor(shape=x.shape)), name="copy")(lambda x: x)
        >>> copy.tune(ArrayType((5000,), dtypes.float32), deterministic=True).chosen["BLOCK"]
        1024
    """
    if most < 1:
        raise errors.ValueMismatchError("tuning needs a configuration to measure", got=f"most={most}")
    call = function.checked(kernel, "tune").bind(operands, static)
    device = backend.devices(on)[0]
    return _Tuner(kernel, call.types, call.static, device).tune(
        call.operands, constraints, most, may_measure=not deterministic
    )


def tune_first_use(
    kernel: KernelFunction, types: Sequence[ArrayType], static: Mapping[str, Any]
) -> None:  # Any: hashable arguments
    """What a call does with the knob `tune` = `all` when nothing is known for its sizes. One process of
    several cannot know that the others call the same, so there nothing is measured.
    """
    device = backend.default_device()
    is_alone = comm.processes().count == 1
    with config.config(tune="on"):  # compiling the candidates calls no kernel for the first time
        _Tuner(kernel, tuple(types), static, device).tune(types, (), MOST, may_measure=is_alone, tells=False)


class _Tuner:
    """The search for one kernel at one kind of operands."""

    def __init__(
        self, kernel: KernelFunction, types: tuple[ArrayType, ...], static: Mapping[str, Any], device: Device
    ) -> None:
        self.kernel, self.types, self.static, self.device = kernel, types, static, device
        self.has_launch = device.platform not in _HOSTS
        # Candidates are those of the bucket, so that all sizes in it are one question.
        self.rounded = self._rounded()

    def _rounded(self) -> tuple[ArrayType, ...]:
        """Types that stand for the bucket; the types themselves where sizes cannot be rounded."""
        rounded = buckets.bucket(self.types)
        try:
            self.kernel.in_configuration(rounded, {}, self.static)
        except errors.InfiniError:
            return self.types
        return rounded

    def tune(
        self,
        operands: Sequence[Value | ArrayType],
        constraints: Sequence[Size],
        most: int,
        *,
        may_measure: bool,
        tells: bool = True,
    ) -> Report:
        """Search, and use what is found."""
        facts = cost.facts_of(self.device)
        usual = self._usual()
        rows, left_out = self._rows(facts, constraints, usual)
        if not rows:
            raise errors.ValueMismatchError(
                f"{self.kernel.name} has no configuration that can be used",
                got="; ".join(f"{count}: {reason}" for reason, count in left_out),
                fix="loosen the constraints, or widen the bounds of the block sizes",
            )
        likely = [row.configuration for row in rows[:most]]
        # The first is what is taken where nothing may be measured; it must not depend on a clock.
        first = usual if usual in _names(rows) else min(_names(rows))
        candidates = [first, *(c for c in likely if c != first)]
        choice = Choice(self._question(), tuple(map(str, candidates)), self._context(facts))
        chosen, source, seconds, failures = self._decided(
            choice, operands, may_measure=may_measure, tells=tells
        )
        self.kernel.use(self.types, dict(chosen.values), self.static)
        found = [
            Row(
                row.configuration, row.predicted_s, seconds.get(str(row.configuration)),
                failures.get(str(row.configuration), ""),
            )
            for row in rows
        ]  # fmt: skip
        found.sort(key=lambda r: (r.measured_s is None, r.measured_s or r.predicted_s))
        return Report(
            self.kernel.name, self.types, str(self.device), chosen, source, tuple(found), tuple(left_out)
        )

    def _usual(self) -> Configuration:
        """What the rule of `tile.blocks` gives, without launch options: the emitter has a rule for them."""
        _, sizes = self.kernel.lower(self.rounded, self.static, {})
        free = (s for s in configurations.free(self.kernel))
        return Configuration(tuple((s.name, sizes[s]) for s in free))

    # --- the candidates -------------------------------------------------------------------------

    def _rows(
        self, facts: DeviceFacts, constraints: Sequence[Size], usual: Configuration
    ) -> tuple[list[Row], list[tuple[str, int]]]:
        """Configurations that can be used, the one that should be fastest first, and how many cannot."""
        found: list[Row] = []
        reasons: dict[str, int] = {}
        kernels: dict[tuple[tuple[str, int], ...], Kernel | str] = {}
        every = list(configurations.all_of(self.kernel, constraints, has_launch=self.has_launch))
        if usual not in every and configurations.holds(self.kernel, constraints, usual):
            every.insert(0, usual)
        for configuration in every:
            blocks = tuple((n, v) for n, v in configuration.values if n not in configurations.LAUNCH)
            if blocks not in kernels:
                kernels[blocks] = self._tiled(dict(blocks), is_usual=blocks == usual.values)
            tiled = kernels[blocks]
            if isinstance(tiled, Kernel):
                launch = tuple(x for x in configuration.values if x[0] in configurations.LAUNCH)
                launched = configurations.launched(tiled, launch)
                reason = cost.why_not(launched, self.rounded, facts)
                if reason is None or configuration == usual:
                    predicted = cost.predicted_s(launched, self.rounded, facts)
                    found.append(Row(configuration, predicted))
                    continue
                reason = "tiles do not fit the device"
            else:
                reason = tiled
            reasons[reason] = reasons.get(reason, 0) + 1
        return sorted(found, key=lambda row: row.predicted_s), sorted(reasons.items())

    def _tiled(self, blocks: Mapping[str, int], *, is_usual: bool) -> Kernel | str:
        """The tile program with these block sizes, or why there is none."""
        try:
            counts = self._counts(blocks)
            for symbol in configurations.free(self.kernel):
                size = blocks[symbol.name]
                is_larger = size > symbol.lower and not is_usual
                if is_larger and self._counts({**blocks, symbol.name: size // 2}) == counts:
                    return "a smaller block has as many tiles"
            return self.kernel.in_configuration(self.rounded, blocks, self.static)
        except errors.InfiniError as error:
            return str(error).partition("\n")[0]

    def _counts(self, blocks: Mapping[str, int]) -> tuple[object, ...]:
        """How many programs there are, and how many steps of walked levels."""
        lowered, _ = self.kernel.lower(self.rounded, self.static, blocks)
        return (lowered.grid, *(a.tile[: a.levels] for a in lowered.accesses))

    # --- the answer -----------------------------------------------------------------------------

    def _question(self) -> str:
        types = ", ".join(map(str, self.rounded))
        return f"tile {self.kernel.name} {types}"

    def _context(self, facts: DeviceFacts) -> tuple[str, ...]:
        return (self._program().fingerprint, *facts.name)

    def _program(self) -> ir.Program:
        """What the kernel computes at these sizes, the block sizes left open."""
        return _program(self.kernel.in_configuration(self.rounded, {}, self.static), self.rounded)

    def _decided(
        self, choice: Choice, operands: Sequence[Value | ArrayType], *, may_measure: bool, tells: bool
    ) -> tuple[Configuration, str, Mapping[str, float], Mapping[str, str]]:
        job = comm.processes()
        if job.count > 1 and tells:
            assert job.launcher is not None, "a job of several processes has a launcher"
            owners = tuple(range(job.count))
            made: list[choices.Decision] = []

            def make() -> agreement.Choices:
                made.append(choices.decide(choice, self._prepare(operands), may_measure=may_measure))
                return ((choice.key, made[0].winner),)

            # Limits are measured too, so candidates may differ between processes: they are no part of it.
            subject = differences.Subject(self._program(), (("choice", choice.key),))
            agreed = dict(agreement.agree(job.launcher.comm(owners), owners, subject, make))
            times = dict(made[0].seconds) if made else {}
            return Configuration.parse(agreed[choice.key]), "agreed", times, {}
        decision = choices.decide(choice, self._prepare(operands), may_measure=may_measure)
        return (
            Configuration.parse(decision.winner), decision.source, dict(decision.seconds),
            dict(decision.failures),
        )  # fmt: skip

    # --- measuring ------------------------------------------------------------------------------

    def _prepare(self, operands: Sequence[Value | ArrayType]) -> choices.Prepare:
        """Makes a configuration ready to run, see `compiler.choices`."""
        buffers: list[backend.Buffer] = []

        def prepare(name: str) -> Callable[[], float]:
            if not buffers:
                buffers.extend(self.device.backend.put(_filled(x), self.device) for x in operands)
            values = dict(Configuration.parse(name).values)
            tiled = self.kernel.in_configuration(self.types, values, self.static)
            executable = self.device.backend.compile(_program(tiled, self.types), _OPTIONS)
            return _timer(executable, buffers, self.device)

        return prepare


def _names(rows: Sequence[Row]) -> set[Configuration]:
    return {row.configuration for row in rows}


def _program(kernel: Kernel, types: Sequence[ArrayType]) -> ir.Program:
    return ir.single_equation(kernel_p, types, Attrs({"kernel": kernel}))


def _filled(x: Value | ArrayType) -> np.ndarray:
    """An operand as a host array; random numbers where only the type is known."""
    if isinstance(x, Value) and not isinstance(x, trace.Tracer):
        return np.asarray(trace.to_array(x))
    random = np.random.default_rng(0)
    if x.dtype in dtypes.FLOATS or x.dtype in dtypes.COMPLEX:
        return random.standard_normal(x.shape).astype(x.dtype)
    return random.integers(0, 2, x.shape).astype(x.dtype)


def _timer(
    executable: backend.Executable, buffers: Sequence[backend.Buffer], device: Device
) -> Callable[[], float]:
    """A function that gives the seconds of one run."""
    synchronize = getattr(device.backend, "synchronize", lambda device: None)

    def seconds(runs: int) -> float:
        started = time.perf_counter()
        for _ in range(runs):
            executable(buffers)
        synchronize(device)
        return (time.perf_counter() - started) / runs

    seconds(1)
    runs = max(1, min(_MOST_RUNS, int(_SAMPLE_S / max(seconds(1), 1e-9))))
    return lambda: seconds(runs)
