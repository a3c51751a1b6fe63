"""The oracle: every program interpreted with NumPy, equation by equation, through the REFERENCE rules.
Slow and exact.

A buffer is a read-only NumPy array in C order. Higher-order operations get an evaluator for their
programs as the first argument of their rule; `backends.spmd` runs programs over several devices.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from infini.backends import routes, spmd
from infini.backends.spmd import executable
from infini.core import backend as backend_, errors, interpret, ir, mesh, primitive
from infini.core.backend import CompileOptions, Device


class ReferenceExecutable:
    """A program waiting to be interpreted."""

    def __init__(self, program: ir.Program, options: CompileOptions) -> None:
        self.program = program
        self.options = options
        self.in_specs: tuple[mesh.Spec, ...] = ()
        self.out_specs: tuple[mesh.Spec, ...] = ()

    def __call__(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Interpret on one device; donation is ignored, since nothing is written in place."""
        with np.errstate(all="ignore"):
            return tuple(_frozen(x) for x in interpret.evaluate(self.program, inputs))

    def run_spmd(
        self, inputs: Sequence[Sequence[np.ndarray]], devices: Sequence[Device]
    ) -> list[tuple[np.ndarray, ...]]:
        """Interpret on each device; a program with communication is compiled for a mesh instead."""
        return [self(row) for row in inputs]

    def text(self, stage: str) -> str:
        """The program; there is no other stage.

        Raises:
            ValueMismatchError: another stage was asked for.
        """
        if stage != "program":
            raise errors.ValueMismatchError(
                f"the reference backend has no stage {stage!r}", expected="program"
            )
        return repr(self.program)

    def cost_analysis(self) -> dict[str, float]:
        """Number of equations."""
        return {"equations": float(len(self.program.equations))}

    def memory_analysis(self) -> dict[str, int]:
        """Bytes of arguments and results."""
        return {
            "argument bytes": sum(t.nbytes for t in self.program.in_types),
            "output bytes": sum(t.nbytes for t in self.program.out_types),
        }


class ReferenceBackend:
    """NumPy on the host; as many devices as the knob `cpu_devices` says."""

    name = "reference"

    def devices(self) -> tuple[Device, ...]:
        """The simulated devices."""
        return spmd.host_devices(self.name)

    def owns(self, device: Device) -> bool:
        """Whether this process holds the device."""
        return spmd.owns(device)

    def why_unavailable(self) -> str | None:
        """It always has a device."""
        return None

    def adopt(self, host: np.ndarray, device: Device) -> np.ndarray:
        """The array itself, read-only."""
        return _frozen(host)

    def put(self, host: np.ndarray, device: Device) -> np.ndarray:
        """A copy in C order."""
        return _frozen(np.array(host, order="C"))

    def get(self, buffer: np.ndarray, type: ir.ArrayType) -> np.ndarray:
        """The array itself."""
        return buffer.view()

    def copy(self, buffer: np.ndarray, type: ir.ArrayType, device: Device) -> np.ndarray:
        """The same array: devices share memory and nothing is written in place."""
        return buffer

    def compile(self, program: ir.Program, options: CompileOptions) -> backend_.Executable:
        """Check that every operation has a REFERENCE rule. A program for a mesh is partitioned first.

        Raises:
            LoweringError: one has none.
        """
        if options.mesh is not None:
            return executable.compile(self, program, options)
        _require_rules(program)
        return ReferenceExecutable(program, options)

    def route(self, program: ir.Program, op: primitive.Primitive) -> backend_.Route:
        """How `op` is computed in a program made of nothing else: by its REFERENCE rule or its definition."""
        return routes.without_program(op, has_mesh=True) or _route(program, op)

    def memory_stats(self, device: Device) -> dict[str, int]:
        """Nothing is counted."""
        return {"bytes_in_use": 0, "peak_bytes_in_use": 0, "bytes_kept": 0}


def _frozen(array: np.ndarray) -> np.ndarray:
    """Read-only and in C order; copied only when the memory is laid out otherwise."""
    array = np.asarray(array)
    if not array.flags.c_contiguous:
        array = np.array(array, order="C")
    view = array.view()
    view.flags.writeable = False
    return view


def _route(program: ir.Program, op: primitive.Primitive) -> backend_.Route:
    if op.has(primitive.REFERENCE):
        return "own"
    if not op.has(primitive.DECOMPOSE):
        return "hole"
    found = [
        _route(definition, equation.op)
        for definition in _definitions(program, op)
        for equation in definition.equations
    ]
    return "hole" if "hole" in found else "decomposition"


def _definitions(program: ir.Program, op: primitive.Primitive) -> Iterator[ir.Program]:
    for equation in program.equations:
        if equation.op is op:
            yield interpret.decomposition(op, tuple(v.type for v in equation.inputs), equation.attrs)


def _require_rules(program: ir.Program) -> None:
    for equation in program.equations:
        if not interpret.has_route(equation.op):
            raise errors.LoweringError(
                f"the reference backend has no route for {equation.op.name!r}",
                expected="a REFERENCE or a DECOMPOSE rule",
                fix=primitive.REFERENCE.hint,
                where=equation.where,
            )
        for inner in equation.programs:
            _require_rules(inner)


@functools.cache
def backend() -> backend_.Backend:
    """The backend of this module, for the registry."""
    return ReferenceBackend()
