"""`explain_sharding`: what the partitioner made of a function, as text and as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from infini.compiler import partition
from infini.compiler.partition import costs
from infini.compiler.partition.costs import Collective
from infini.core import backend, errors, ir, mesh as mesh_, sharding, text, tree
from infini.core.array import Array
from infini.core.backend import CompileOptions
from infini.parallel import pages
from infini.parallel.pages import amount
from infini.transforms import staging


@dataclass(frozen=True, slots=True)
class Message:
    """What one equation of the global program has to do with a collective.

    Args:
        collective: the collective, which may carry arrays for other equations too.
        nbytes: bytes that each device gives for this equation.
        reason: what for.
    """

    collective: Collective
    nbytes: int
    reason: str

    def __str__(self) -> str:
        made = self.collective
        others = made.num_operands - 1
        company = f" (in one message with {others} other{'s' * (others > 1)})" if others else ""
        size = f"{self.nbytes} bytes{trips(made)}"
        return f"{made.name} over {', '.join(made.axes)}: {size} for {self.reason}{company}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """A partitioned function: `str` gives text, `page` HTML, and a notebook shows the page.

    Args:
        program: the program as it was traced.
        found: its partition, collectives joined as they run.
        seconds: time that one device communicates in a run, on the machine that it was planned for.
        memory: bytes that each device needs, by what for; empty when that was not asked.
        unused: names that were given a place and that no value has.
    """

    program: ir.Program
    found: partition.Partitioned
    seconds: float
    memory: Mapping[str, int]
    _messages: dict[int, list[Message]] = field(repr=False)
    unused: tuple[str, ...] = ()

    @property
    def collectives(self) -> tuple[Collective, ...]:
        """The collectives that each device runs, with their trips."""
        return self.found.collectives

    def messages(self, equation: ir.Equation) -> list[Message]:
        """The collectives that an equation of the global program `found.source` needs."""
        return self._messages.get(id(equation), [])

    def placement(self, equation: ir.Equation) -> str:
        """Where the parts of the results of an equation are."""
        known = self.found.placements
        return ", ".join(str(known[v]) for v in equation.outputs if v in known)

    def form(self, equation: ir.Equation) -> str:
        """In which form an equation is computed, and why, where there are several; else nothing."""
        return next((self.found.forms[v] for v in equation.outputs if v in self.found.forms), "")

    def summary(self) -> str:
        """The mesh and the sums, in one line."""
        sizes = ", ".join(f"{name}={size}" for name, size in self.found.mesh.shape.items())
        sent = sum(c.wire_bytes * (c.times or 1) for c in self.collectives)
        runs = sum(c.times or 1 for c in self.collectives)
        facts = [f"{runs} collective{'s' * (runs != 1)}", f"{amount(sent)} sent by each device"]
        if self.memory:
            facts.append(f"{amount(self.memory['peak'])} on each device at the peak")
        return f"over {sizes}: {', '.join(facts)}"

    def __str__(self) -> str:
        return describe(self)

    def __contains__(self, words: str) -> bool:
        return words in str(self)

    def page(self) -> str:
        """A page that needs nothing else: the mesh, every equation with its placement and collectives, what
        is sent, the memory, and the program of one device.
        """
        return pages.page(self)

    def save(self, path: str | Path) -> Path:
        """Write the page.

        Args:
            path: the file.
        """
        target = Path(path)
        target.write_text(self.page(), encoding="utf-8")
        return target

    def _repr_html_(self) -> str:
        return pages.framed(self.page())


def explain_sharding(
    f: Callable[..., Any], *args: Any, mesh: sharding.Mesh | None = None, memory: bool = True
) -> Explanation:  # Any: pytrees
    """The placement of every value of a function over a mesh, every collective with its bytes, reason and
    line, and the memory that each device needs.

    Args:
        f: function, or a jitted or sharded one.
        *args: arguments; those that are on a mesh are taken as they are placed.
        mesh: the mesh; that of the arguments or of the function when absent.
        memory: whether to compile for the memory; without it the partitioner alone runs.

    Returns:
        An explanation; print it, or `save` it as a page.

    Raises:
        ValueMismatchError: there is no mesh.

    Example:
        >>> import infini as inf, infini.numpy as inp, infini.parallel as parallel
        >>> from infini.sharding import P, make_mesh
        >>> with inf.config(device="reference", cpu_devices=2):
        ...     mesh = make_mesh((2,), ("data",))
        ...     total = inf.shard(lambda x: x.sum(), mesh=mesh, in_specs=P("data"))
        ...     shown = parallel.explain_sharding(total, inp.ones((4, 8)))
        >>> [(c.name, c.nbytes) for c in shown.collectives]
        [('psum', 4)]
    """
    jitted = f if isinstance(f, staging.Jitted) else staging.jit(f)
    lowered = jitted.lower(*args)
    leaves = tree.leaves(args)
    placed = [x.sharding if isinstance(x, Array) else None for x in leaves]
    found = next((s.mesh for s in placed if isinstance(s, sharding.NamedSharding)), mesh)
    options = lowered.traced.runner.options
    axes = options.mesh if found is None else found.abstract
    if axes is None and jitted.options.mesh is not None:
        axes = jitted.options.mesh.abstract
    if axes is None:
        raise errors.ValueMismatchError(
            "explain_sharding needs a mesh", fix="pass mesh=, or put an argument on one"
        )
    captured: list[mesh_.Spec | None] = [None] * (len(lowered.program.params) - len(leaves))
    specs = [s.spec if isinstance(s, sharding.NamedSharding) else None for s in placed]
    return explain(lowered.program, replace(options, mesh=axes, in_specs=(*captured, *specs)), memory=memory)


def explain(program: ir.Program, options: CompileOptions, *, memory: bool = True) -> Explanation:
    """The explanation of a traced program; see `explain_sharding`."""
    found = partition.for_options(program, options)
    messages: dict[int, list[Message]] = {}
    seconds = 0.0
    for equation, made in costs.walk(found.program, found.mesh, found.notes):
        once = costs.seconds(made.name, made.axes, made.nbytes, found.mesh, found.machine)
        seconds += once * (made.times or 1)
        for operand, result in zip(equation.inputs, equation.outputs, strict=True):
            note = found.notes.get(result)
            if note is not None and note.equation is not None:
                message = Message(made, operand.type.nbytes, note.reason)
                messages.setdefault(id(note.equation), []).append(message)
    needed: dict[str, int] = {}
    if memory:
        # The backend that computes nothing plans the memory of what each device runs.
        compiled = backend.get("null").compile(program, options).memory_analysis()
        needed = {
            "arguments": compiled["argument bytes"],
            "results": compiled["output bytes"],
            "peak": compiled["peak bytes"],
        }
    names = set(_names(program))
    unused = tuple(name for name, _ in options.named if name not in names)
    return Explanation(program, found, seconds, needed, messages, unused)


def _names(program: ir.Program) -> Iterator[str]:
    """The names that values of a program have."""
    for equation in program.equations:
        if equation.op.name == "name":
            yield equation.attrs["name"]
        for body in equation.programs:
            yield from _names(body)


def trips(made: Collective) -> str:
    """How often a collective runs, in words; nothing when it is once."""
    if made.times is None:
        return ", as often as values say,"
    return f", {made.times} times," if made.times != 1 else ""


def ends(shown: Explanation) -> Iterator[tuple[str, int, ir.ArrayType, mesh_.Spec]]:
    """Arguments and results: which, number, type, split."""
    program, found = shown.program, shown.found
    for title, types, specs in (
        ("argument", program.in_types, found.in_specs),
        ("result", program.out_types, found.out_specs),
    ):
        for number, (type_, spec) in enumerate(zip(types, specs, strict=True)):
            yield title, number, type_, spec


def _room(type_: ir.ArrayType, spec: mesh_.Spec, mesh: mesh_.AbstractMesh) -> str:
    """What each device has room for, where parts differ in size."""
    counts = mesh_.part_counts(type_.shape, spec, mesh)
    if all(size % count == 0 for size, count in zip(type_.shape, counts, strict=True)):
        return ""
    return f" in parts of up to {type_.update(shape=mesh_.shard_shape(type_.shape, spec, mesh))}"


def describe(shown: Explanation) -> str:
    """The explanation as text."""
    found = shown.found
    lines = [f"@{shown.program.name} {shown.summary()}"]
    for title, number, type_, spec in ends(shown):
        lines.append(f"  {title} {number}: {type_} {mesh_.as_p(spec)!r}{_room(type_, spec, found.mesh)}")
    if shown.unused:
        lines.append(f"  no value is named {' or '.join(map(repr, shown.unused))}, which have places")
    if shown.memory:
        parts = ", ".join(f"{name} {amount(nbytes)}" for name, nbytes in shown.memory.items())
        lines.append(f"  memory of each device: {parts}")
    totals: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for c in found.collectives:
        totals[c.name, c.axes] += c.times or 1
    lines += ["", "collectives"]
    lines += [f"  {count} x {name} over {', '.join(axes)}" for (name, axes), count in sorted(totals.items())]
    for c in found.collectives:
        size = f"{c.nbytes} bytes{trips(c)}"
        lines.append(f"  {c.name} over {', '.join(c.axes)}: {size} for {c.reason}, {c.where or 'no line'}")
    lines += ["", "equations, for whole arrays, with the placement of what they make"]
    for section in pages.sections(found.source):
        width = max((len(line) for line in section.lines), default=0)
        for number, line in enumerate(section.lines):
            index = number - section.first_equation
            if not 0 <= index < len(section.program.equations):
                lines.append(f"  {line}")
                continue
            equation = section.program.equations[index]
            where = f"  # {equation.where}" if equation.where is not None else ""
            lines.append(f"  {line.ljust(min(width, 70))}  {shown.placement(equation)}{where}")
            lines += [f"      {form}" for form in (shown.form(equation),) if form]
            lines += [f"      {message}" for message in shown.messages(equation)]
    return "\n".join([*lines, "", "what each device runs", text.print_program(found.program)])
