"""Backends and devices: the protocol every backend implements, and the registry that finds them.

A backend turns programs into executables and moves bytes. Backends in the tree are in `infini/backends`;
others advertise
themselves under the entry point group `infini.backends` and need no edit here. Nothing is imported before
it is asked for.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from infini.core import config, errors, events, ir, primitive
from infini.core.layout import AutoLayout, Layout
from infini.core.machine import Collectives, Machine
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


# Packages without which a backend has no device: looking for a device does not load the backend to hear so.
_NEEDS: Final = {"cuda": ("cupy",)}


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
        donation: `require` makes it an error when a donated buffer cannot be reused, `allow` a warning, and
            `offer` is silent.
        extents: pairs (parameter, (parameter, dimension), ...): the int32 scalar that bounds these
            dimensions at run time.
        mesh: axes over which the program, written for global shapes, is split; None for one device.
        in_specs: for each parameter how it is split over the mesh (a `P`), or None to let the
            partitioner choose.
        deterministic: fixed reduction splits that do not depend on batch neighbours; nothing is measured.
            Sums over a mesh are taken in the order of its devices, so how they travel does not show.
        choices: pairs (question, candidate) that were chosen before, see `Chooses`; they are taken as they
            are, and what the program does not ask is ignored.
        in_layouts: for each parameter how its memory is laid out, None for row-major; all are when it is
            empty. A backend sees layouts only beside a mesh, see `execute.compile`.
        machine: what the partitioner compares ways to split the program by; see `core.machine`.
        strategies: pairs (operation, strategy): how operations are split that the user decided about.
        collectives: how collectives are joined, and in which order sums are taken.
        named: pairs (name, spec): how values with a name are split over the mesh.
    """

    donated: tuple[int, ...] = ()
    donation: Literal["allow", "require", "offer"] = "allow"
    extents: tuple[tuple[int, tuple[tuple[int, int], ...]], ...] = ()
    mesh: AbstractMesh | None = None
    in_specs: tuple[tuple[AxisEntry, ...] | None, ...] = ()
    deterministic: bool = False
    choices: tuple[tuple[str, str], ...] = ()
    in_layouts: tuple[Layout | None, ...] = ()
    machine: Machine | None = None
    strategies: tuple[tuple[str, str], ...] = ()
    collectives: Collectives = Collectives()  # noqa: RUF009  # immutable
    named: tuple[tuple[str, tuple[AxisEntry, ...]], ...] = ()


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


@runtime_checkable
class Chooses(Protocol):
    """What an executable may offer besides: the choices between equal ways that were made for it (design
    4a.15).
    """

    choices: tuple[tuple[str, str], ...]  # (question, candidate), in the order of the program


@runtime_checkable
class Reuses(Protocol):
    """What an executable may offer besides: what became of the buffers that were donated to it."""

    @property
    def reused(self) -> frozenset[int]:
        """Numbers of the donated parameters whose memory a result has."""


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


@runtime_checkable
class Prefers(Protocol):
    """What a backend may offer besides: the layouts its kernels like best. Others like row-major memory."""

    def preferred_layouts(
        self, program: ir.Program, layouts: Sequence[Layout | AutoLayout | None], options: CompileOptions
    ) -> tuple[Layout | None, ...]:
        """Layouts of the parameters, those that are `AUTO` chosen; over a mesh those of their parts."""


# How a backend computes an operation: by an emitter of its own, inside a fused kernel, by a library, by its
# definition in other operations, by putting its body in its place, by communication over a mesh, or not at
# all. `transform` marks what never reaches a backend.
Route: TypeAlias = Literal[
    "own", "kernel", "library", "decomposition", "inlined", "mesh", "transform", "hole"
]  # fmt: skip


@runtime_checkable
class Explains(Protocol):
    """What a backend may offer besides: the route it takes. `python -m infini.backends` asks."""

    def route(self, program: ir.Program, op: primitive.Primitive) -> Route:
        """How `op` is computed in a program made of nothing else. Needs no device."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a jitted function outside every transformation, for a backend that can repeat it.

    Args:
        args: positional arguments as given.
        kwargs: arguments by keyword.
        static: positions of arguments that are constants.
        static_names: the same by keyword.
        captures: arrays the function closes over; the first parameters of its program.
        executable: what ran.
        placement: where (a `SingleDeviceSharding`).
        committed: whether the results are committed there.
        out_types: types of the results.
        out_weak: their weak flags.
        finish: function of the list of results that makes what the user gets; None for the only array.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    static: frozenset[int]
    static_names: frozenset[str]
    captures: Sequence[Any]
    executable: Executable
    placement: Any  # Any: a sharding, a module above this one
    committed: bool
    out_types: tuple[ir.ArrayType, ...]
    out_weak: tuple[bool, ...]
    finish: Callable[[list[Any]], Any] | None


class CallPath(Protocol):
    """What repeats the calls of one jitted function that it has learned, without going through Python."""

    @property
    def call(self) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
        """`call(args, kwargs)`: the result, or `NotImplemented` for a call that is unlike all it knows."""

    def learn(self, call: Call) -> None:
        """Remember a call, when it is of a kind that can be repeated."""

    def forget(self) -> None:
        """Forget what was learned."""


@runtime_checkable
class HasCallPath(Protocol):
    """What a backend may offer besides: a short way for calls that are repeated."""

    def call_path(self) -> CallPath | None:
        """A way for the calls of one function; None where there is none."""


class Broken:
    """Stands for a backend that is installed and cannot be loaded; it has no device, and says why."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason

    def why_unavailable(self) -> str | None:
        """What went wrong when it was loaded."""
        return self.reason

    def devices(self) -> tuple[Device, ...]:
        """None."""
        return ()

    def owns(self, device: Device) -> bool:
        """No."""
        return False

    def __getattr__(self, attribute: str) -> Any:  # Any: every other method of a backend, none of which works
        if attribute not in _METHODS:
            raise AttributeError(attribute)
        raise errors.DeviceError(f"the backend {self.name!r} cannot be used", got=self.reason)


_METHODS: Final = (
    "adopt", "compile", "copy", "devices", "get", "memory_stats", "owns", "put", "why_unavailable",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Point:
    """What a package advertises under our group: a name, `module:function`, and the folder that says so."""

    name: str
    value: str
    folder: Path

    def __str__(self) -> str:
        fields = {}
        for file in ("METADATA", "PKG-INFO"):
            with contextlib.suppress(OSError):
                head = (self.folder / file).read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
                fields = dict(line.split(": ", 1) for line in head.splitlines() if ": " in line)
        package = f" of {fields['Name']} {fields.get('Version', '')}".rstrip() if "Name" in fields else ""
        return f"entry point {self.name} = {self.value}{package}"


@functools.cache
def _advertised() -> Mapping[str, _Point]:
    """Entry points by name. They are read here: every process asks, and `importlib.metadata`, which reads
    those in archives, takes longer to load than all of this.
    """
    points = []
    for place in map(Path, sys.path or ["."]):
        if place.is_file():
            import importlib.metadata

            for distribution in importlib.metadata.distributions(path=[str(place)]):
                mine = distribution.entry_points.select(group=ENTRY_POINTS)
                points += [_Point(point.name, point.value, place) for point in mine]
            continue
        for path in (*place.glob("*.dist-info/entry_points.txt"), *place.glob("*.egg-info/entry_points.txt")):
            with contextlib.suppress(OSError):
                points += _points(path)
    # Two packages may advertise one name; the first by its reference is taken, whatever order they come in.
    return {point.name: point for point in sorted(points, key=lambda point: point.value, reverse=True)}


def _points(path: Path) -> list[_Point]:
    text = path.read_text(encoding="utf-8", errors="replace")
    if f"[{ENTRY_POINTS}]" not in text:
        return []
    lines = text.partition(f"[{ENTRY_POINTS}]")[2].splitlines()
    found = []
    for line in map(str.strip, lines):
        if line.startswith("["):
            break
        name, is_point, value = line.partition("=")
        if is_point and not line.startswith(("#", ";")):
            found.append(_Point(name.strip(), value.partition("[")[0].strip(), path.parent))
    return found


@functools.cache
def get(name: str) -> Backend:
    """The backend called `name`. One that cannot be loaded is there too, without devices and with a reason.

    Raises:
        DeviceError: there is none of that name.
    """
    if name in BUILT_IN:
        try:
            found: Backend = importlib.import_module(BUILT_IN[name]).backend()
        except ImportError as error:
            return Broken(name, f"cannot be imported: {error}")
        return found
    if name in _advertised():
        return _load(_advertised()[name])
    raise errors.DeviceError(
        f"there is no backend called {name!r}",
        expected="one of " + ", ".join(names()),
        fix=f"install a package that advertises it under the entry point group {ENTRY_POINTS!r}",
    )


def _load(point: _Point) -> Backend:
    """The backend behind an entry point: a function without arguments that gives it."""
    module, _, attribute = point.value.partition(":")
    try:
        found = operator.attrgetter(attribute)(importlib.import_module(module))()
    except Exception as error:  # noqa: BLE001  # a package of others may fail in any way, and must not stop us
        return Broken(point.name, f"cannot be loaded ({point}): {type(error).__name__}: {error}")
    missing = [method for method in _METHODS if not callable(getattr(found, method, None))]
    if missing:
        reason = f"{point} gives {type(found).__name__}, which has no {', '.join(missing)}"
        return Broken(point.name, f"is no backend: {reason}")
    backend: Backend = found
    return backend


def names() -> tuple[str, ...]:
    """Names of every backend, available or not, best first: those of other packages, then ours."""
    found = _advertised()
    advertised = sorted(found, key=lambda name: found[name].value.startswith("infini."))
    return (*(name for name in advertised if name not in BUILT_IN), *BUILT_IN)


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
def device_by_name(name: str) -> Device:
    """The device of a name such as `cpu:1`, or the first of this process where no number is given.

    Args:
        name: a platform, and a number after a colon; the empty name is that of the best device there is.

    Raises:
        DeviceError: there is none of that name here; the message says why.

    Example:
        >>> from infini.core import backend
        >>> backend.device_by_name("cpu:0")
        cpu:0
    """
    if not name:
        for candidate in names():
            if any(importlib.util.find_spec(package) is None for package in _NEEDS.get(candidate, ())):
                continue
            chosen = get(candidate)
            if isinstance(chosen, Broken) and candidate not in BUILT_IN:
                # It was installed to be used: running elsewhere without a word would hide that.
                message = f"the backend {candidate!r} is installed and {chosen.reason}"
                events.emit("backend-broken", message, level="warning")
            elif candidate != "null" and chosen.why_unavailable() is None:
                return local_devices(candidate)[0]
        raise errors.DeviceError("no backend has a device here", fix="run `infini doctor`")
    platform, _, number = name.partition(":")
    if not number:
        return local_devices(platform)[0]
    found = devices(platform)
    if not number.isdecimal() or int(number) >= len(found):
        raise errors.DeviceError(f"there is no device {name!r}", expected=", ".join(map(str, found)))
    return found[int(number)]


def local_devices(platform: str | None = None) -> tuple[Device, ...]:
    """As `devices`, those of this process only."""
    return tuple(device for device in devices(platform) if device.backend.owns(device))


def forget_default_device() -> None:
    """Choose the default device again: this process has become one of several."""
    device_by_name.cache_clear()


def default_device() -> Device:
    """The device that uncommitted values live on: the knob `device`, or the best there is."""
    return device_by_name(config.get("device"))
