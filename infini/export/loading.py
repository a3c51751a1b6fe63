"""`load`: run kernels that `build` has made, where no compiler is installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from infini.backends.cpu import ahead, processor
from infini.backends.cpu.ahead import Ahead
from infini.backends.cuda.driver import Driver, Function
from infini.compiler.llvm.target import Target
from infini.core import array as array_, backend, errors, execute, sharding, text, trace, value
from infini.core.backend import CompileOptions, Device
from infini.core.ir import ArrayType
from infini.export import manifest as manifest_
from infini.export.manifest import Binary, Manifest, Signature

Run = Callable[[Sequence[backend.Buffer]], Sequence[backend.Buffer]]
_OPTIONS: Final = CompileOptions()


def load(folder: str | Path) -> LoadedKernel:
    """The kernel that `build` wrote into a folder. Its machine code is read when it is first called.

    Args:
        folder: what `build` returned, or a copy of it.

    Raises:
        ValueMismatchError: there is no kernel, or one of another version of infini.
        DeviceError: nothing in the folder runs on this machine.
    """
    place = Path(folder)
    found = LoadedKernel(place, manifest_.read(place))
    reasons = {target: found.why_not(target) for target in found.targets}
    if all(reasons.values()):
        raise errors.DeviceError(
            f"the kernel {found.name} in {place} does not run on this machine",
            got="; ".join(f"{target}: {reason}" for target, reason in reasons.items()),
            fix="build it for this machine as well",
        )
    return found


class LoadedKernel:
    """A kernel that was built ahead of time. It runs on arrays of the types it was built for; it cannot be
    traced, so jit and grad do not take it.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest
        # One per binary and device.
        self._running: dict[tuple[int, Device], Run] = {}

    @property
    def name(self) -> str:
        """Name of the kernel."""
        return self._manifest.kernel

    @property
    def signatures(self) -> tuple[Signature, ...]:
        """Types it was built for."""
        return self._manifest.signatures

    @property
    def targets(self) -> tuple[str, ...]:
        """Targets it was built for."""
        return tuple(dict.fromkeys(binary.target for binary in self._manifest.binaries))

    def why_not(self, target: str) -> str | None:
        """Why a target's code does not run on this machine; None when it does."""
        binary = next((b for b in self._manifest.binaries if b.target == target), None)
        if binary is None:
            return "it was not built"
        kind = _KINDS[binary.kind]
        reasons = [kind.why_not(binary, device) for device in kind.devices()]
        return kind.nowhere() if not reasons else None if None in reasons else reasons[0]

    def __call__(self, *operands: Any) -> Any:  # Any: arrays in, an array or a tuple of arrays out
        values = [trace.as_value(x) for x in operands]
        if any(isinstance(v, trace.Tracer) for v in values):
            raise errors.UnsupportedError(
                f"{self.name} was built ahead of time and cannot be traced",
                got=", ".join(str(v.type) for v in values),
                fix="call it outside of jit, grad and vmap, or use the kernel that it was built from",
            )
        number = self._signature(values)
        signature = self.signatures[number]
        arrays = [_array(v, t) for v, t in zip(values, signature.operands, strict=True)]
        placement, committed = execute.common_sharding(arrays)
        if not isinstance(placement, sharding.SingleDeviceSharding):
            raise errors.UnsupportedError(
                f"{self.name} was built for one device", got=f"arrays on {placement}"
            )
        device = placement.device if committed else self._device(placement.device)
        placement = sharding.on_one(device)
        buffers = [execute.on_device(a, device) for a in arrays]
        outputs = self._run(number, device)(buffers)
        results = tuple(
            array_.Array(type_, (buffer,), placement, committed=committed)
            for type_, buffer in zip(signature.results, outputs, strict=True)
        )
        return results[0] if len(results) == 1 else results

    def _device(self, default: Device) -> Device:
        """Where operands go that nobody has put anywhere: the default device when the kernel was built for
        it, else the first one that it was built for.
        """
        kinds = [binary.kind for binary in self._manifest.binaries]
        if default.platform in kinds:
            return default
        return next((d for kind in kinds for d in _KINDS[kind].devices()), default)

    def _signature(self, values: Sequence[value.Value]) -> int:
        """The number of the signature of operands. A Python number takes the dtype that is asked for."""
        for number, signature in enumerate(self.signatures):
            if len(signature.operands) == len(values) and all(
                v.type == t or (_is_number(v) and v.shape == t.shape)
                for v, t in zip(values, signature.operands, strict=True)
            ):
                return number
        raise errors.TypeMismatchError(
            f"{self.name} was not built for these operands",
            got=f"({', '.join(str(v.type) for v in values)})",
            expected=" or ".join(f"({', '.join(map(str, s.operands))})" for s in self.signatures),
            fix="add their types to the signatures of tile.build",
        )

    def _run(self, number: int, device: Device) -> Run:
        key = (number, device)
        found = self._running.get(key)
        if found is None:
            found = self._running[key] = self._load(number, device)
        return found

    def _load(self, number: int, device: Device) -> Run:
        """The best machine code for a device."""
        own = [b for b in self._manifest.binaries if b.signature == number and b.kind == device.platform]
        reasons = {b.target: _KINDS[b.kind].why_not(b, device) for b in own}
        able = [b for b in own if reasons[b.target] is None]
        if not able:
            raise errors.DeviceError(
                f"{self.name} was not built for {device}",
                got="; ".join(f"{target}: {reason}" for target, reason in reasons.items())
                or f"targets {', '.join(self.targets)}",
                fix=f"add {device.platform} to the targets of tile.build, or move the operands",
            )
        kind = _KINDS[device.platform]
        binary = max(able, key=kind.rank)
        files = {
            use: manifest_.content(self._folder, self._manifest, name) for use, name in binary.files.items()
        }
        return kind.load(binary, files, self.signatures[number], device)

    def __repr__(self) -> str:
        lines = [f"LoadedKernel {self.name} for {', '.join(self.targets)}", *map(str, self.signatures)]
        return "\n  ".join(lines)


def _is_number(v: value.Value) -> bool:
    return isinstance(v, value.Literal) and v.weak


def _array(v: value.Value, type_: ArrayType) -> array_.Array:
    if v.dtype != type_.dtype and isinstance(v, value.Literal):
        v = value.Literal(value.number_in(type_.dtype, v.host.item(), "an operand"), weak=False)
    return trace.to_array(v)


# --- what runs the code ----------------------------------------------------------------------------


class _Kind(Protocol):
    """Loading of one kind of machine code."""

    def devices(self) -> Sequence[Device]:
        """Devices of this machine that may run it."""

    def nowhere(self) -> str:
        """Why there is none."""

    def why_not(self, binary: Binary, device: Device) -> str | None:
        """Why a device cannot run a binary; None when it can."""

    def rank(self, binary: Binary) -> tuple[int, ...]:
        """The higher the better."""

    def load(self, binary: Binary, files: dict[str, bytes], signature: Signature, device: Device) -> Run:
        """What runs a binary."""


class _Cpu:
    def devices(self) -> Sequence[Device]:
        return backend.devices("cpu")[:1]

    def nowhere(self) -> str:
        return "there is no CPU"

    def why_not(self, binary: Binary, device: Device) -> str | None:
        absent = processor.missing(_target(binary))
        return f"this processor is without {', '.join(absent)}" if absent else None

    def rank(self, binary: Binary) -> tuple[int, ...]:
        return (_target(binary).lanes, _target(binary).features.count("+"))

    def load(self, binary: Binary, files: dict[str, bytes], signature: Signature, device: Device) -> Run:
        target = _target(binary)
        if binary.facts["runtime"] != ahead.runtime_digest(target):
            raise errors.ValueMismatchError(
                f"machine code for {binary.target} was built by another version of infini",
                fix="build it again with this version",
            )
        ahead.require_loader()
        mark = "runtime "
        ahead.provide_runtime({use.removeprefix(mark): c for use, c in files.items() if use.startswith(mark)})
        program = text.parse(binary.facts["program"])
        return ahead.load(program, _OPTIONS, Ahead(target, binary.facts["image"], files))


def _target(binary: Binary) -> Target:
    return Target(**binary.facts["target"])


@dataclass(frozen=True, slots=True)
class _Launched:
    """A kernel on a GPU."""

    driver: Driver
    function: Function
    grid: tuple[int, ...]
    results: tuple[ArrayType, ...]

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:  # Any: buffers of the device
        outputs = [self.driver.allocate(t.nbytes) for t in self.results]
        self.driver.launch(self.function, self.grid, [b.address for b in (*inputs, *outputs)])
        return outputs


@dataclass(frozen=True, slots=True)
class _Module:
    """A cubin and how it is launched, as `Driver.load` takes it."""

    code: bytes
    function_name: str
    parameters: tuple[str, ...]
    shared_bytes: int
    num_warps: int
    scratch_bytes: int
    scratch_alignment: int
    profile_bytes: int


class _Cuda:
    def devices(self) -> Sequence[Device]:
        return backend.get("cuda").devices() if backend.get("cuda").why_unavailable() is None else ()

    def nowhere(self) -> str:
        return str(backend.get("cuda").why_unavailable())

    def why_not(self, binary: Binary, device: Device) -> str | None:
        made, own = int(binary.facts["arch"]), _driver(device).capability
        if made // 10 == own // 10 and made <= own:
            return None
        return f"{device} has compute capability {own / 10}"

    def rank(self, binary: Binary) -> tuple[int, ...]:
        return (int(binary.facts["arch"]),)

    def load(self, binary: Binary, files: dict[str, bytes], signature: Signature, device: Device) -> Run:
        driver = _driver(device)
        function = driver.load(_Module(code=files["code"], **binary.facts["binary"]))
        return _Launched(driver, function, tuple(binary.facts["grid"]), signature.results)


class _Hip:
    """Code for GPUs of AMD, which an adapter may launch; infini itself does not."""

    def devices(self) -> Sequence[Device]:
        return ()

    def nowhere(self) -> str:
        return "infini has no backend that launches it"

    def why_not(self, binary: Binary, device: Device) -> str | None:
        return self.nowhere()

    def rank(self, binary: Binary) -> tuple[int, ...]:
        return (0,)

    def load(self, binary: Binary, files: dict[str, bytes], signature: Signature, device: Device) -> Run:
        raise errors.DeviceError(f"{binary.target} cannot run here", got=self.nowhere())


def _driver(device: Device) -> Driver:
    found: Any = device.backend  # Any: the CUDA backend, which has drivers
    driver: Driver = found.driver(device.id)
    return driver


_KINDS: Final[dict[str, _Kind]] = {"cpu": _Cpu(), "cuda": _Cuda(), "hip": _Hip()}
