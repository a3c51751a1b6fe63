"""Backends and devices: the protocol every backend implements, and the registry that finds them.

A backend turns programs into executables and moves bytes. Backends in the tree are in `infini/backends`;
others advertise
themselves under the entry point group `infini.backends` and need no edit here. Nothing is imported before
it is asked for.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias

import numpy as np

from infini.core import config, errors, ir
from infini.core.mesh import AbstractMesh, AxisEntry

Buffer: TypeAlias = Any  # Any: each backend has its own kind of buffer; core never looks inside
ENTRY_POINTS: Final = "infini.backends"
# Backends of the tree, best first: the default device is the first device of the first available one.
BUILT_IN: Final[dict[str, str]] = {
    "cuda": "infini.backends.cuda",
    "cpu": "infini.backends.cpu",
    "reference": "infini.backends.reference",
    "null": "infini.backends.null",
}


@dataclass(frozen=True, slots=True)
class Device:
    """One device: the name of its backend, its number there, and the process that owns it."""

    platform: str
    id: int = 0
    process_index: int = 0

    @property
    def backend(self) -> Backend:
        """The backend that drives it."""
        return get(self.platform)

    def memory_stats(self) -> dict[str, int]:
        """Bytes in use, at the peak and kept for reuse."""
        return self.backend.memory_stats(self)

    def __str__(self) -> str:
        return f"{self.platform}:{self.id}"

    __repr__ = __str__


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """What a backend must know besides the program; part of the cache key.

    Args:
        donated: numbers of parameters whose buffers the program may reuse for results.
        donation: `require` makes it an error when a donated buffer cannot be reused.
        extents: pairs (parameter, (parameter, dimension), ...): the int32 scalar that bounds these
            dimensions at run time.
        mesh: axes over which the program, written for global shapes, is split; None for one device.
        in_specs: for each parameter how it is split over the mesh (a `P`), or None to let the
            partitioner choose.
        deterministic: fixed reduction splits that do not depend on batch neighbours.
    """

    donated: tuple[int, ...] = ()
    donation: Literal["allow", "require"] = "allow"
    extents: tuple[tuple[int, tuple[tuple[int, int], ...]], ...] = ()
    mesh: AbstractMesh | None = None
    in_specs: tuple[tuple[AxisEntry, ...] | None, ...] = ()
    deterministic: bool = False


class Executable(Protocol):
    """A compiled program. One compiled for a mesh says in `in_specs` and `out_specs` how arrays are
    split over it.
    """

    in_specs: tuple[tuple[AxisEntry, ...], ...]
    out_specs: tuple[tuple[AxisEntry, ...], ...]

    def __call__(self, inputs: Sequence[Buffer]) -> tuple[Buffer, ...]:
        """Run on one device; donated inputs must not be used by the caller afterwards."""

    def run_spmd(
        self, inputs: Sequence[Sequence[Buffer]], devices: Sequence[Device]
    ) -> list[tuple[Buffer, ...]]:
        """Run on the devices of a mesh; one row of inputs and of results per device of this process, in
        mesh order.
        """

    def text(self, stage: str) -> str:
        """Text of a stage: `program`, `kernels`, or a stage of this backend such as `llvm`."""

    def cost_analysis(self) -> dict[str, float]:
        """Counts such as `flops`, `bytes accessed`, `kernels`."""

    def memory_analysis(self) -> dict[str, int]:
        """Bytes of arguments, results, aliases and temporaries of the plan."""


class Backend(Protocol):
    """What core, jit and eager execution ask of a backend."""

    name: str

    def devices(self) -> tuple[Device, ...]:
        """Its devices; empty when it cannot be used here."""

    def owns(self, device: Device) -> bool:
        """Whether this process holds the device."""

    def why_unavailable(self) -> str | None:
        """Why it has no device, and what would change that; None when it has some."""

    def put(self, host: np.ndarray, device: Device) -> Buffer:
        """A buffer with a copy of `host` in C order."""

    def adopt(self, host: np.ndarray, device: Device) -> Buffer:
        """A buffer over the memory of a C-contiguous array where the device can share it, else a copy."""

    def get(self, buffer: Buffer, type: ir.ArrayType) -> np.ndarray:
        """The contents as a NumPy array, without a copy when memory is shared."""

    def copy(self, buffer: Buffer, type: ir.ArrayType, device: Device) -> Buffer:
        """A copy on another device of this backend."""

    def compile(self, program: ir.Program, options: CompileOptions) -> Executable:
        """Machine code for a program.

        Raises:
            LoweringError: an operation has no route; names the routes tried.
        """

    def memory_stats(self, device: Device) -> dict[str, int]:
        """Bytes in use, at the peak and kept for reuse."""


@functools.cache
def _advertised() -> Mapping[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}


@functools.cache
def get(name: str) -> Backend:
    """The backend called `name`.

    Raises:
        DeviceError: there is none of that name.
    """
    if name in BUILT_IN:
        module = importlib.import_module(BUILT_IN[name])
        return module.backend()
    if name in _advertised():
        return _advertised()[name].load()()
    raise errors.DeviceError(
        f"there is no backend called {name!r}",
        expected="one of " + ", ".join(names()),
        fix=f"install a package that advertises it under the entry point group {ENTRY_POINTS!r}",
    )


def names() -> tuple[str, ...]:
    """Names of every backend, available or not, best first."""
    return (*(name for name in _advertised() if name not in BUILT_IN), *BUILT_IN)


def available() -> tuple[str, ...]:
    """Names of the backends that have a device here, best first."""
    return tuple(name for name in names() if get(name).why_unavailable() is None)


def devices(platform: str | None = None) -> tuple[Device, ...]:
    """Devices of a backend, of the default one when none is named.

    Raises:
        DeviceError: it has none here; the message says why.

    Example:
        >>> import infini
        >>> infini.devices("cpu")[0]
        cpu:0
    """
    if platform is None:
        return default_device().backend.devices()
    chosen = get(platform)
    reason = chosen.why_unavailable()
    if reason is not None:
        raise errors.DeviceError(f"the backend {platform!r} has no device here", got=reason)
    return chosen.devices()


@functools.cache
def _device_by_name(name: str) -> Device:
    if not name:
        for candidate in names():
            if candidate != "null" and get(candidate).why_unavailable() is None:
                return local_devices(candidate)[0]
        raise errors.DeviceError("no backend has a device here", fix="run `infini doctor`")
    platform, _, number = name.partition(":")
    if not number:
        return local_devices(platform)[0]
    found = devices(platform)
    if not number.isdigit() or int(number) >= len(found):
        raise errors.DeviceError(f"there is no device {name!r}", expected=", ".join(map(str, found)))
    return found[int(number)]


def local_devices(platform: str | None = None) -> tuple[Device, ...]:
    """As `devices`, those of this process only."""
    return tuple(device for device in devices(platform) if device.backend.owns(device))


def forget_default_device() -> None:
    """Choose the default device again: this process has become one of several."""
    _device_by_name.cache_clear()


def default_device() -> Device:
    """The device that uncommitted values live on: the knob `device`, or the best there is."""
    return _device_by_name(config.get("device"))
