"""A second stream of every device, where exchanges go on beside what is computed, and the small programs that
run there: parts of arrays brought together or taken apart, and sums of what came from several devices.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from infini import lax
from infini.backends.accelerator.driver import DeviceBuffer, Driver
from infini.core import dtypes, ir, trace
from infini.core.backend import CompileOptions, Device
from infini.core.ir import ArrayType


class Runs(Protocol):
    """A program of a stream."""

    def __call__(self, inputs: Sequence[DeviceBuffer]) -> tuple[DeviceBuffer, ...]:
        """Start it where the inputs are."""


class Maker(Protocol):
    """The backend of these streams."""

    name: str

    def driver(self, number: int) -> Driver:
        """What drives a device."""

    def number(self, device: Device) -> int:
        """Number of a device in this process."""

    def owns(self, device: Device) -> bool:
        """Whether this process holds a device."""

    def default_device(self) -> int:
        """Number of the device of programs without inputs."""

    def compiled_for(self, owner: Any, program: ir.Program, options: CompileOptions) -> Runs:  # Any: an Owner
        """A program whose work goes to the streams of an owner."""


class Aside:
    """The streams beside those of a backend, one per device.

    Args:
        maker: the backend.
    """

    def __init__(self, maker: Maker) -> None:
        self.name = maker.name
        self._maker = maker
        self._drivers: dict[int, Driver] = {}
        self._programs: dict[Hashable, Runs] = {}
        self._lock = threading.Lock()

    def driver(self, number: int) -> Driver:
        """The stream beside that of a device."""
        if number not in self._drivers:
            driver = self._maker.driver(number)
            with self._lock:
                if number not in self._drivers:
                    self._drivers[number] = driver.beside()
        return self._drivers[number]

    def number(self, device: Device) -> int:
        """Number of a device in this process."""
        return self._maker.number(device)

    def owns(self, device: Device) -> bool:
        """Whether this process holds a device."""
        return self._maker.owns(device)

    def default_device(self) -> int:
        """Number of the device of programs without inputs."""
        return self._maker.default_device()

    # --- programs -----------------------------------------------------------------------------

    def split(self, buffer: DeviceBuffer, type_: ArrayType, count: int, dimension: int) -> DeviceBuffer:
        """The blocks of an array along a dimension, one after another."""
        dimension %= type_.ndim
        before, after = type_.shape[:dimension], type_.shape[dimension + 1 :]
        if _is_one(before) or count == 1:
            return buffer
        shape = (*before, count, type_.shape[dimension] // count, *after)
        order = (dimension, *(i for i in range(len(shape)) if i != dimension))
        return self._run(
            ("split", type_, count, dimension),
            lambda x: lax.transpose(lax.reshape(x, shape), order),
            buffer,
            type_,
        )

    def joined(self, buffer: DeviceBuffer, type_: ArrayType, count: int, dimension: int) -> DeviceBuffer:
        """The array whose blocks along a dimension stand one after another; each has a type."""
        dimension %= type_.ndim
        if _is_one(type_.shape[:dimension]) or count == 1:
            return buffer
        shape = list(type_.shape)
        shape[dimension] *= count
        order = (*range(1, dimension + 1), 0, *range(dimension + 1, type_.ndim + 1))
        return self._run(
            ("joined", type_, count, dimension),
            lambda x: lax.reshape(lax.transpose(x, order), shape),
            buffer,
            ArrayType((count, *type_.shape), type_.dtype),
        )

    def padded(self, buffer: DeviceBuffer, type_: ArrayType, size: int) -> DeviceBuffer:
        """The elements of an array, followed by zeros."""
        if type_.size == size:
            return buffer
        return self._run(
            ("padded", type_, size),
            lambda x: lax.concatenate(
                [lax.reshape(x, (type_.size,)), lax.full((size - type_.size,), 0, type_.dtype)], 0
            ),
            buffer,
            type_,
        )

    def folded(self, buffer: DeviceBuffer, dtype: Any, op: str, count: int, size: int) -> DeviceBuffer:
        """Several arrays of one size, reduced in their order; floats of 16 bits and less are added up in
        float32 and rounded once.
        """
        reduce = {"sum": lax.add, "max": lax.max, "min": lax.min}[op]
        is_wide = dtype in dtypes.FLOATS and dtype.itemsize <= 2

        def fold(x: Any) -> Any:  # Any: a value
            total = None
            for i in range(count):
                row = lax.reshape(lax.slice(x, (i, 0), (i + 1, size)), (size,))
                row = lax.convert_element_type(row, dtypes.float32) if is_wide else row
                total = row if total is None else reduce(total, row)
            return lax.convert_element_type(total, dtype) if is_wide else total

        return self._run(("folded", dtype, op, count, size), fold, buffer, ArrayType((count, size), dtype))

    def zeros(self, buffer: DeviceBuffer, type_: ArrayType) -> DeviceBuffer:
        """Zeros where another array is."""
        return self._run(("zeros", type_), lambda x: lax.full(type_.shape, 0, type_.dtype), buffer, type_)

    def _run(
        self,
        key: Hashable,
        function: Callable[[Any], Any],  # Any: values
        buffer: DeviceBuffer,
        type_: ArrayType,
    ) -> DeviceBuffer:
        if not type_.size:
            return buffer
        found = self._programs.get(key)
        if found is None:
            program = trace.stage(lambda x: [function(x)], [type_], name=str(key[0])).program  # type: ignore[index]
            made = self._maker.compiled_for(self, program, CompileOptions(deterministic=True))
            found = self._programs[key] = made
        (result,) = found([buffer])
        return result


def _is_one(sizes: Sequence[int]) -> bool:
    return all(size == 1 for size in sizes)
