"""Several devices in one process: one thread per device, which meet at every collective.

Control flow around collectives needs no special case this way; predicates are replicated, so all devices take the same
branches. The first exception of any device ends them all and is raised.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from infini.backends.reference import interpreter
from infini.core import ir, primitive


class Meeting:
    """Where the devices exchange the operands of a collective: all put theirs down, then each takes what it needs."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.rows: list[Sequence[np.ndarray]] = [()] * size

    def exchange(self, rank: int, operands: Sequence[np.ndarray]) -> list[Sequence[np.ndarray]]:
        """Operands of every device, in the order of the devices."""
        self.rows[rank] = operands
        self.barrier.wait()
        found = list(self.rows)
        self.barrier.wait()
        return found


def evaluate(
    program: ir.Program, inputs: Sequence[Sequence[np.ndarray]], axes: Sequence[tuple[str, int]]
) -> list[list[np.ndarray]]:
    """Results of a program on every device, one row per device in the order of the mesh axes."""
    meeting = Meeting(len(inputs))

    def device(rank: int) -> list[np.ndarray]:
        def apply(
            equation: ir.Equation, operands: Sequence[np.ndarray], run: interpreter.Evaluate
        ) -> list[np.ndarray]:
            if equation.op.is_higher_order or equation.effect is not primitive.Effect.COLLECTIVE:
                return interpreter.apply(equation, operands, run)
            rows = meeting.exchange(rank, operands)
            return interpreter.typed(collective(equation, rows, rank, axes), equation)

        try:
            with np.errstate(all="ignore"):
                return interpreter.evaluator(apply)(program, inputs[rank])
        except BaseException:
            meeting.barrier.abort()
            raise

    if len(inputs) == 1:
        return [device(0)]
    with ThreadPoolExecutor(len(inputs)) as threads:
        futures = [threads.submit(device, rank) for rank in range(len(inputs))]
    errors = [e for e in (future.exception() for future in futures) if e is not None]
    for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]
