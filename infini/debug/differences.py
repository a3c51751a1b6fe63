"""`compare`: where a compiled kernel first computes something else than the interpreter.

The body is bisected by kernels that stop early (`probes`): when what the rest of the body needs is equal up
to some statement, the fault is behind it, else before. So the statement found takes equal values and gives
different ones. Loops are entered: first the step is found, then the statement.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from infini.backends.reference.interpreter import evaluate
from infini.compiler import inspection
from infini.compiler.passes import inline
from infini.core import backend, config, dtypes, errors, ir, text, trace
from infini.core.ir import ArrayType, Attrs, Program, Var
from infini.core.source import Where
from infini.debug import distances, probes
from infini.debug.distances import Tolerance
from infini.debug.probes import Scope
from infini.tile import function, program as tile_program
from infini.tile.function import KernelFunction
from infini.tile.program import Kernel, kernel_p

TRITON: Final = "triton"

Run = Callable[[Kernel, Sequence[np.ndarray]], Sequence[np.ndarray]]


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where two ways of computing a kernel differ.

    Args:
        kind: what differs: a tile that was loaded, what a statement gives for equal operands, what was
            stored, or only the kernel as a whole, when every part of it on its own is right.
        statement: text of the load, statement or store; several lines when no part between could be compiled.
        where: the user's line.
        program: number of the program along each dimension of the grid.
        step: of the loops around the statement, outer ones first, counted as they are executed.
        element: index in the tile.
        expected: what the interpreter gives.
        found: what the compiled kernel gives.
        absolute: their distance.
        ulps: how many numbers of the dtype lie between them; None for what has no order.
        num_elements: how many elements of the tile differ.
    """

    kind: Literal["load", "statement", "store", "kernel"]
    statement: str
    where: Where | None
    program: tuple[int, ...]
    step: tuple[int, ...]
    element: tuple[int, ...]
    expected: Any  # Any: a NumPy scalar
    found: Any
    absolute: float
    ulps: int | None
    num_elements: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found.

    Args:
        kernel: its name.
        way: how it was computed: the platform of a device, or `triton`.
        difference: the first one, if any.
        num_programs: programs that were compared.
        largest_distance: of results that count as equal.
    """

    kernel: str
    way: str
    difference: Difference | None
    num_programs: int
    largest_distance: float

    @property
    def is_equal(self) -> bool:
        """Whether no difference was found."""
        return self.difference is None

    def __str__(self) -> str:
        found = self.difference
        if found is None:
            return (
                f"{self.kernel} on {self.way} equals the interpreter: {self.num_programs} programs, "
                f"results at most {self.largest_distance:.2g} apart"
            )
        lines = [f"{self.kernel} on {self.way} differs from the interpreter", ""]
        if found.where is not None:
            lines += [f"  {found.where}    {inspection.source_line(found.where)}".rstrip()]
        lines += [f"  {line}" for line in found.statement.splitlines()]
        lines += [f"  {_KINDS[found.kind]}", ""]
        place = [f"program {_index(found.program)}" if found.program else ""]
        place += [f"step {_index(found.step)}" if found.step else ""]
        place += [f"element {_index(found.element)}" if found.element else ""]
        apart = f"{found.absolute:.6g}" + ("" if found.ulps is None else f", {found.ulps} ulp")
        rows = [
            ("at", ", ".join(filter(None, place)) or "the only element"),
            ("expected", _shown(found.expected)),
            ("found", _shown(found.found)),
            ("apart", apart),
            ("in all", f"{found.num_elements} elements of this tile differ"),
        ]
        return "\n".join([*lines, *(f"  {name + ':':<10}{value}" for name, value in rows)])

    __repr__ = __str__


_KINDS: Final = {
    "load": "the tile that is loaded differs",
    "statement": "takes equal values and gives others",
    "store": "is right, and is stored wrongly",
    "kernel": "is right in every kernel that stops early, and wrong in the whole kernel",
}


def compare(
    kernel: KernelFunction | Kernel,
    *operands: Any,
    on: str = "cpu",
    rtol: float | None = None,
    atol: float | None = None,
    **static: Hashable,
) -> Comparison:  # Any: arrays
    """Run a kernel by the NumPy interpreter and compiled, and find the first statement that differs.

    Both run program by program of the grid until one differs; then kernels that compute ever smaller parts
    of the body are compiled, about as many as the logarithm of the number of statements. Of a result that is
    written at run-time places, the places and what goes there are compared.

    Args:
        kernel: a kernel, or a tile program such as the compiler makes.
        operands: what it is called with.
        on: platform of the device that it is compiled for, or `triton` for Triton's interpreter.
        rtol: allowed difference relative to the interpreter's value; by default 512 machine epsilons of
            the dtype. Integers are equal or not.
        atol: allowed difference besides, by default the same number.
        **static: keyword arguments of the application.

    Raises:
        TypeMismatchError: this is no kernel, or it cannot be called so.
        UnsupportedError: an operand is traced.
        LoweringError: the kernel cannot be compiled there.
        DeviceError: there is no such device.

    Example:
        >>> import numpy as np
        >>> from infini import debug, lax
        >>> from infini.tile import Tensor, kernel
        >>> x = Tensor(1)
        >>> fours = lambda x, y: (x.tile((4,)), y.tile((4,)))
        >>> twice = kernel(fours, tensors=(x, Tensor(shape=x.shape)), name="twice")(lambda x: lax.add(x, x))
        >>> debug.compare(twice, np.arange(6.0))
        twice on cpu equals the interpreter: 2 programs, results at most 0 apart
    """
    if isinstance(kernel, Kernel):
        arrays = [np.asarray(trace.to_array(trace.as_value(x))) for x in operands]
        types: Sequence[ArrayType] = [ArrayType(x.shape, x.dtype) for x in arrays]
        tiled = kernel
    else:
        call = function.checked(kernel, "compare").bind(operands, static)
        values = call.values("compare")
        if any(isinstance(x, trace.Tracer) for x in values):
            raise errors.UnsupportedError(
                "compare runs a kernel, and a traced array has no elements",
                got=", ".join(str(x.type) for x in values),
                fix="call it outside of jit, grad and vmap",
            )
        arrays = [np.asarray(trace.to_array(x)) for x in values]
        types, static = call.types, call.static
        tiled = kernel.specialize(types, **static)
    tile_program.check_kernel(tiled, types)
    body = inline.inline_calls(tiled.body)
    tiled = dataclasses.replace(tiled, body=body)
    search = _Search(tiled, arrays, _runner(on, types), Tolerance(rtol, atol))
    with np.errstate(all="ignore"):
        difference, num_programs = search.run()
    if difference is not None and isinstance(kernel, KernelFunction):
        parts = kernel.lower(types, static)[0].grid_parts
        difference = _arranged(difference, tiled.grid, parts)
    return Comparison(tiled.name, on, difference, num_programs, search.largest_distance)


# --- running -----------------------------------------------------------------------------------


def _runner(on: str, types: Sequence[ArrayType]) -> Run:
    if on == TRITON:
        return functools.partial(_interpret_triton, types)
    devices = backend.devices(on)
    return functools.partial(_run_compiled, devices[0], types)


def _run_compiled(
    device: backend.Device, types: Sequence[ArrayType], kernel: Kernel, arrays: Sequence[np.ndarray]
) -> list[np.ndarray]:
    program = ir.single_equation(kernel_p, types, Attrs({"kernel": kernel}))
    # Each is compiled once: the caches are for others.
    with config.config(no_cache=True):
        executable = device.backend.compile(program, backend.CompileOptions())
        found = executable([device.backend.put(x, device) for x in arrays])
    return [device.backend.get(x, t) for x, t in zip(found, kernel.outputs, strict=True)]


def _interpret_triton(
    types: Sequence[ArrayType], kernel: Kernel, arrays: Sequence[np.ndarray]
) -> Sequence[np.ndarray]:
    source = _triton("emit").emit_triton(kernel, types)
    found: Sequence[np.ndarray] = _triton("interpret").interpret(source, arrays, kernel.outputs)
    return found


# --- searching ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Mismatch:
    """A variable whose tiles differ in the program that is looked at."""

    var: Var
    expected: np.ndarray
    found: np.ndarray
    differs: np.ndarray


class _Search:
    """The search for the first difference of a kernel."""

    def __init__(self, kernel: Kernel, arrays: Sequence[np.ndarray], run: Run, tolerance: Tolerance) -> None:
        self.kernel, self.arrays, self.compiled, self.tolerance = kernel, arrays, run, tolerance
        self.program: tuple[int, ...] = ()
        self.largest_distance = 0.0

    def run(self) -> tuple[Difference | None, int]:
        """The difference, and how many programs were compared."""
        kernel = self.kernel
        results = self.compiled(kernel, self.arrays)
        count = 0
        for count, program in enumerate(self._programs(), 1):
            self.program = program
            tiles = self._expected(kernel)
            for number, (access, result, tile) in enumerate(zip(kernel.stores, results, tiles, strict=True)):
                index, inside = tile_program.indices(access, result.shape, program)
                safe = tuple(np.where(inside, at, 0) for at in index)
                found = np.where(inside, result[safe] if safe else result, tile)
                differs = self.tolerance.differs(found, tile)
                if differs.any():
                    stored = _Mismatch(kernel.body.results[number], tile, found, differs)
                    return self._locate(number, stored), count
                self.largest_distance = max(self.largest_distance, distances.farthest(found, tile))
        return None, count

    def _programs(self) -> Iterator[tuple[int, ...]]:
        grid = list(self.kernel.grid)
        for dimension, rows, operand in self.kernel.extents:
            grid[dimension] = min(grid[dimension], -(-int(self.arrays[operand]) // rows))
        return itertools.product(*map(range, grid))

    def _expected(self, kernel: Kernel) -> list[np.ndarray]:
        """What the interpreter computes in the program that is looked at."""
        tiles = [
            tile_program.load(a, x, self.program) for a, x in zip(kernel.loads, self.arrays, strict=False)
        ]
        return evaluate(kernel.body, [*tiles, *(np.asarray(i, np.int32) for i in self.program)])

    def _mismatches(self, scope: Scope, values: Sequence[Var]) -> list[_Mismatch]:
        """Which of some variables differ.

        Raises:
            LoweringError: no kernel that stores them can be compiled.
        """
        if not values:
            return []
        probe = probes.probe(self.kernel, scope, values)
        expected = self._expected(probe)
        found = [np.asarray(x[self.program]) for x in self.compiled(probe, self.arrays)]
        triples = zip(values, expected, found, strict=True)
        compared = [_Mismatch(v, e, f, self.tolerance.differs(f, e)) for v, e, f in triples]
        return [m for m in compared if m.differs.any()]

    def _locate(self, number: int, stored: _Mismatch) -> Difference:
        """The statement behind a result that differs."""
        found = self._in_scope(probes.outermost(self.kernel))
        if found is not None:
            return found
        body = self.kernel.body
        made = [(n, e) for n, e in enumerate(body.equations) if stored.var in e.outputs]
        where = made[-1][1].where if made else None
        statement = _line(body, made[-1][0]) if made else f"result {number}"
        try:
            is_right = not self._mismatches(probes.outermost(self.kernel), [stored.var])
        except errors.LoweringError:
            is_right = False
        is_alone = is_right and len(body.results) == 1 and len(body.equations) <= 1
        return self._difference("store" if is_alone else "kernel", statement, where, (), stored)

    def _in_scope(self, scope: Scope) -> Difference | None:
        """The first statement of a scope that differs; None when all that can be looked at is equal."""
        steps = tuple(step for _, step in scope.path)
        at_start = self._tried(scope, 0)
        if at_start:
            return self._loaded(scope, at_start[0], steps)
        size = len(scope.program.equations)
        found = self._bisected(lambda n: self._tried(scope, n + 1), size)
        if found is None:
            return None
        first, last, mismatches = found
        equation = scope.program.equations[last]
        if first == last and equation.op.name == probes.LOOP:
            inside = self._in_loop(scope, last)
            if inside is not None:
                return inside
        statement = "\n".join(_line(scope.program, n, self.kernel.body) for n in range(first, last + 1))
        return self._difference("statement", statement, equation.where, steps, mismatches[0])

    def _in_loop(self, scope: Scope, number: int) -> Difference | None:
        """The first step of a loop after which its state differs, and the statement in it."""
        length: int = scope.program.equations[number].attrs["length"]

        def after(step: int) -> list[_Mismatch] | None:
            inner = scope.enter(number, step)
            return self._tried(inner, len(inner.program.equations))

        found = self._bisected(after, length)
        if found is None:
            return None
        _, step, _ = found
        return self._in_scope(scope.enter(number, step))

    def _bisected(
        self, test: Callable[[int], list[_Mismatch] | None], size: int
    ) -> tuple[int, int, list[_Mismatch]] | None:
        """The first of `size` tests with mismatches, when one that finds some is not followed by others
        without: first and last place where it may be, as some tests give no answer (None).
        """
        known: dict[int, list[_Mismatch] | None] = {}

        def asked(n: int) -> list[_Mismatch] | None:
            if n not in known:
                known[n] = test(n)
            return known[n]

        bad = next((n for n in range(size - 1, -1, -1) if asked(n) is not None), None)
        if bad is None or not asked(bad):
            return None
        good = -1
        while True:
            center = (good + bad) / 2
            between = sorted(range(good + 1, bad), key=functools.partial(_apart, center))
            middle = next((n for n in between if asked(n) is not None), None)
            if middle is None:
                return good + 1, bad, asked(bad) or []
            good, bad = (good, middle) if asked(middle) else (middle, bad)

    def _tried(self, scope: Scope, cut: int) -> list[_Mismatch] | None:
        """The mismatches behind the first `cut` statements; None when that cannot be compiled."""
        try:
            return self._mismatches(scope, scope.live(cut))
        except errors.LoweringError:
            return None

    def _loaded(self, scope: Scope, mismatch: _Mismatch, steps: tuple[int, ...]) -> Difference:
        """A parameter that differs: a tile that was loaded, as the state of loops is known to be equal."""
        number = scope.program.params.index(mismatch.var)
        name = f"parameter {number} of a loop" if scope.path else f"operand {number}"
        statement = f"load of {name}: {mismatch.var.type}"
        users = [e.where for e in scope.program.equations if mismatch.var in e.inputs]
        return self._difference("load", statement, users[0] if users else None, steps, mismatch)

    def _difference(
        self,
        kind: Literal["load", "statement", "store", "kernel"],
        statement: str,
        where: Where | None,
        steps: tuple[int, ...],
        mismatch: _Mismatch,
    ) -> Difference:
        place = tuple(int(i) for i in np.argwhere(mismatch.differs)[0])
        expected, found = mismatch.expected[place], mismatch.found[place]
        return Difference(
            kind, statement, where, self.program, steps, place, expected, found,
            distances.distance(found, expected), distances.ulps(found, expected), int(mismatch.differs.sum()),
        )  # fmt: skip


def _line(program: Program, number: int, whole: Program | None = None) -> str:
    """The text of a statement, with the names it has in the text of the whole body."""
    for section in text.sections(whole or program, lines=False):
        if section.program == program:
            return section.lines[section.first_equation + number].strip()
    return inspection.equation_key(program.equations[number])


def _arranged(difference: Difference, grid: Sequence[int], parts: Sequence[Sequence[int]]) -> Difference:
    """With the program's number along the dimensions of the arrangement, which the grid may have cut."""
    program = []
    for part in parts:
        number = 0
        for d in part:
            number = number * grid[d] + difference.program[d]
        program.append(number)
    return dataclasses.replace(difference, program=tuple(program))


def _apart(a: float, b: float) -> float:
    return abs(a - b)


def _index(place: Sequence[int]) -> str:
    return str(place[0]) if len(place) == 1 else f"({', '.join(map(str, place))})"


def _shown(value: Any) -> str:  # Any: a NumPy scalar
    return f"{value} ({dtypes.short(np.asarray(value).dtype)})"


@functools.cache
def _triton(name: str) -> Any:  # Any: a module, which loads Triton
    return importlib.import_module(f"infini.compiler.triton.{name}")
