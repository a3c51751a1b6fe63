"""What `infini.debug` looks at: a function at some arguments, compiled as a call would compile it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infini.core import array, backend, errors, execute, ir, sharding, trace
from infini.transforms import stages, staging


@dataclass(frozen=True, slots=True)
class Subject:
    """A program with its executable.

    Args:
        name: name of the function.
        program: as it was traced.
        executable: what runs it.
        options: as they were given to the backend.
        device: where it runs.
        arrays: arguments, captured arrays first; empty when the function was given compiled.
    """

    name: str
    program: ir.Program
    executable: backend.Executable
    options: backend.CompileOptions
    device: backend.Device
    arrays: tuple[array.Array, ...] = ()

    def buffers(self) -> list[backend.Buffer]:
        """The memory of the arguments, as the executable takes it."""
        layouts = self.options.in_layouts or (None,) * len(self.arrays)
        return [
            execute.on_device(a, self.device) if layout is None else a.memory.buffers[0]
            for a, layout in zip(self.arrays, layouts, strict=True)
        ]


def of(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Subject:  # Any: pytrees
    """The program of a function.

    Args:
        function: a function, jitted or not, or what `lower` or `compile` of a jitted one gave.
        args: its arguments; none for what is lowered or compiled.
        kwargs: its keyword arguments.

    Raises:
        TypeMismatchError: it is no function, or is lowered and was given arguments.
        UnsupportedError: it runs on several devices.
    """
    if isinstance(function, (stages.Traced, stages.Lowered, stages.Compiled)):
        if args or kwargs:
            raise errors.TypeMismatchError(
                f"{function.traced.name} is {type(function).__name__.lower()} and has its arguments already",
                got=f"{len(args) + len(kwargs)} arguments",
                fix="pass the jitted function, or leave the arguments out",
            )
        return _subject(function.traced, ())
    if not callable(function):
        raise errors.TypeMismatchError(
            "there is no program of this", got=repr(function), expected="a function"
        )
    jitted = function if isinstance(function, staging.Jitted) else staging.jit(function)
    values, found = jitted.specialise(args, dict(kwargs), requires_hashable=False)
    return _subject(found, tuple(trace.to_array(v) for v in (*found.staged.captures, *values)))


def _subject(found: stages.Specialisation, arrays: tuple[array.Array, ...]) -> Subject:
    placement, _ = execute.common_sharding(arrays)
    options = found.runner.options
    if options.mesh is not None or not isinstance(placement, sharding.SingleDeviceSharding):
        raise errors.UnsupportedError(
            f"{found.name} runs on several devices",
            expected="a program of one device",
            fix="call it with arrays of one device, or look at the function inside shard_map",
        )
    layouts = tuple(a.layout if a.sharding == placement else None for a in arrays)
    options = dataclasses.replace(options, in_layouts=layouts if any(layouts) else ())
    program = found.staged.program
    executable = execute.compile(program, placement.device, options)
    return Subject(found.name, program, executable, options, placement.device, arrays)
