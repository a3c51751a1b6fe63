"""Running programs on devices: choose the device, compile once, wrap buffers. Eager execution and jit
both end here.

Two caches: executables by program fingerprint, device and options (those that somebody still runs, and the
last 512); programs of one equation by operation, types and attributes (at most 2048, oldest out first).
`clear_caches` empties both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Final, Generic, TypeAlias, TypeVar

import numpy as np

from infini.core import (
    array as array_,
    backend,
    config,
    errors,
    ir,
    layout as layout_,
    mesh as mesh_,
    physical,
    primitive,
    sharding as sharding_,
    shards as shards_,
)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """A dictionary of at most `limit` entries; the oldest goes first. Safe from several threads."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._items: dict[K, V] = {}
        self._lock = threading.Lock()
        # One lock per entry that is being made. Reentrant, since making one may ask for it again.
        self._making: dict[K, threading.RLock] = {}
        self.num_clears = 0

    def get(self, key: K) -> V | None:
        """The entry, or None."""
        return self._items.get(key)

    def put(self, key: K, item: V) -> V:
        """Add an entry and return it."""
        with self._lock:
            if len(self._items) >= self.limit and key not in self._items:
                self._items.pop(next(iter(self._items)))
            self._items[key] = item
        return item

    def make(self, key: K, maker: Callable[[], V]) -> V:
        """The entry, made by `maker` when there is none; threads that want one entry wait for the first."""
        found = self.get(key)
        if found is not None:
            return found
        with self._lock:
            lock = self._making.setdefault(key, threading.RLock())
        try:
            with lock:
                found = self.get(key)
                return found if found is not None else self.put(key, maker())
        finally:
            with self._lock:
                self._making.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._items.clear()
            self.num_clears += 1

    def __len__(self) -> int:
        return len(self._items)


class LivingCache(BoundedCache[K, V]):
    """It also finds older entries, as long as somebody else keeps them."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._alive: weakref.WeakValueDictionary[K, V] = weakref.WeakValueDictionary()

    def get(self, key: K) -> V | None:
        """The entry, or None."""
        found = self._items.get(key)
        return found if found is not None else self._alive.get(key)

    def put(self, key: K, item: V) -> V:
        """Add an entry and return it."""
        self._alive[key] = item
        return super().put(key, item)

    def clear(self) -> None:
        """Forget everything."""
        super().clear()
        self._alive.clear()


# A compiled program takes about 100 kB, so a process that compiles for ever must let go of some.
_executables: LivingCache[Hashable, backend.Executable] = LivingCache(512)
_equations: BoundedCache[Hashable, Runner] = BoundedCache(2048)
_PLAIN: Final = backend.CompileOptions()


def clear_caches() -> None:
    """Forget every compiled program of this process."""
    _executables.clear()
    _equations.clear()
    for forget in on_clear:
        forget()


# What else holds compiled programs: called when they are dropped.
on_clear: Final[list[Callable[[], None]]] = []


@contextlib.contextmanager
def unswept() -> Iterator[None]:
    """No garbage collection inside the block: tracing and compiling make many objects that live on, and the
    collector would walk them again and again (a third of the time they take).
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def compile(
    program: ir.Program, device: backend.Device, options: backend.CompileOptions
) -> backend.Executable:
    """The executable of a program on a device's backend, compiled at most once.

    Parameters that are not row-major become so here: the program starts with the views of their memory. Over
    a mesh that is for after the partitioner, which splits logical arrays.
    """

    def made() -> backend.Executable:
        with unswept():
            if options.in_layouts and options.mesh is None:
                plain = dataclasses.replace(options, in_layouts=())
                return device.backend.compile(physical.with_layouts(program, options.in_layouts), plain)
            return device.backend.compile(program, options)

    return _executables.make((program.fingerprint, device.platform, options, config.cache_key()), made)


def chosen_layouts(
    program: ir.Program,
    device: backend.Device,
    options: backend.CompileOptions,
    wanted: Sequence[layout_.Layout | layout_.AutoLayout | None],
) -> tuple[layout_.Layout | None, ...]:
    """Layouts of the parameters of a program, those that are `AUTO` chosen by the backend.

    A donated parameter stays row-major, as results are.
    """
    donated = set(options.donated)
    open_ = [None if i in donated and item is layout_.AUTO else item for i, item in enumerate(wanted)]
    if not any(item is layout_.AUTO for item in open_):
        chosen: Sequence[layout_.Layout | layout_.AutoLayout | None] = open_
    elif isinstance(device.backend, backend.Prefers):
        chosen = device.backend.preferred_layouts(program, open_, options)
    else:
        chosen = [None if item is layout_.AUTO else item for item in open_]
    return tuple(layout_.normal(item) if isinstance(item, layout_.Layout) else None for item in chosen)


def common_sharding(arrays: Sequence[array_.Array]) -> tuple[sharding_.Sharding, bool]:
    """Where a program with these arguments runs, and whether its results are committed (design 4a.13).

    Raises:
        DeviceError: two committed arguments live in different places.
    """
    if arrays:
        first = arrays[0].sharding
        if type(first) is sharding_.SingleDeviceSharding and all(a.sharding is first for a in arrays):
            if any(a.committed for a in arrays):
                return first, True
            if first.device == backend.default_device():
                return first, False
    chosen: array_.Array | None = None
    for array in arrays:
        if not array.committed:
            continue
        if chosen is not None and set(chosen.sharding.devices) != set(array.sharding.devices):
            raise errors.DeviceError(
                "arguments of one computation were put on different devices",
                got=f"{chosen.type} on {chosen.device}, {array.type} on {array.device}",
                fix="move them to one device with infini.device_put",
            )
        if chosen is None or len(array.sharding.devices) > len(chosen.sharding.devices):
            chosen = array
    if chosen is not None:
        return chosen.sharding, True
    for array in arrays:
        if len(array.sharding.devices) > 1:
            return array.sharding, False
    return sharding_.on_one(backend.default_device()), False


def on_device(array: array_.Array, device: backend.Device) -> backend.Buffer:
    """A buffer of `array` on `device`, moved there when needed."""
    if isinstance(array.sharding, sharding_.SingleDeviceSharding):
        source = array.sharding.device
        if source == device:
            return array.buffers[0]
        array.block_until_ready()
        if source.platform == device.platform:
            return device.backend.copy(array.buffers[0], array.type, device)
    return device.backend.put(array.to_host(), device)


@dataclasses.dataclass(frozen=True, slots=True)
class _OverMesh:
    """A program compiled for a mesh, and where its arguments and results are."""

    executable: backend.Executable
    inputs: tuple[sharding_.NamedSharding, ...]
    outputs: tuple[sharding_.NamedSharding, ...]


def _over_mesh(
    program: ir.Program,
    options: backend.CompileOptions,
    mesh: sharding_.Mesh,
    specs: tuple[mesh_.Spec | None, ...],
    layouts: tuple[layout_.Layout | None, ...],
) -> _OverMesh:
    options = dataclasses.replace(options, mesh=mesh.abstract, in_specs=specs, in_layouts=layouts)
    executable = compile(program, mesh.flat_devices[0], options)
    inputs, outputs = (
        tuple(sharding_.NamedSharding(mesh, mesh_.as_p(spec)) for spec in found)
        for found in (executable.in_specs, executable.out_specs)
    )
    return _OverMesh(executable, inputs, outputs)


class Runner:
    """A program ready to run: remembers its executable per backend and knobs, so a call does not hash the
    program.

    Args:
        program: program to run.
        options: what the backend must know besides.
        mesh: devices for a program that names a mesh, when no argument says which.
    """

    __slots__ = ("_executables", "_over_meshes", "_types", "mesh", "options", "program")

    def __init__(
        self,
        program: ir.Program,
        options: backend.CompileOptions = _PLAIN,
        mesh: sharding_.Mesh | None = None,
    ) -> None:
        self.program, self.options, self.mesh = program, options, mesh
        self._types = program.out_types
        self._executables: dict[Hashable, backend.Executable] = {}
        self._over_meshes: dict[Hashable, _OverMesh] = {}

    def __call__(self, arrays: Sequence[array_.Array]) -> tuple[array_.Array, ...]:
        """Run on one device, or on a mesh when an argument or the program names one."""
        placement, committed = common_sharding(arrays)
        if self.options.mesh is not None or type(placement) is not sharding_.SingleDeviceSharding:
            return self._run_on_mesh(arrays)
        device = placement.device
        scope = config.current()
        layouts: tuple[layout_.Layout | None, ...] = ()
        try:
            inputs = [
                # What the annotation says may be None is looked for by failing: nothing is faster.
                a._buffers[0] if a.sharding is placement else on_device(a, device)  # type: ignore[index]
                for a in arrays
            ]
        except TypeError:  # an array without `_buffers`: deleted, or in a layout
            inputs, layouts = _arranged(arrays, placement, scope.inspects)
        key = (device.platform, scope.key, _executables.num_clears, layouts)
        executable = self._executables.get(key)
        if executable is None:
            options = dataclasses.replace(self.options, in_layouts=layouts)
            executable = self._executables[key] = compile(self.program, device, options)
        try:
            outputs = self._inspected(executable, inputs, device) if scope.inspects else executable(inputs)
        except KeyboardInterrupt:
            for i in self.options.donated:  # half overwritten
                arrays[i].delete()
            raise
        return tuple(
            [
                array_.Array(type_, (buffer,), placement, committed=committed)
                for type_, buffer in zip(self._types, outputs, strict=True)
            ]
        )

    def _run_on_mesh(self, arrays: Sequence[array_.Array]) -> tuple[array_.Array, ...]:
        mesh = mesh_of(arrays, self.options, self.mesh)
        scope = config.current()
        # Parts of arrays that live on the mesh are used as they lie; see `backends.spmd`.
        found = [a.sharding if isinstance(a.sharding, sharding_.NamedSharding) else None for a in arrays]
        arranged = tuple([None if s is None else a.layout for a, s in zip(arrays, found, strict=True)])
        specs = tuple([None if s is None else mesh_.trim(s.spec) for s in found])
        key = (mesh, specs, arranged, scope.key, _executables.num_clears)
        over = self._over_meshes.get(key)
        if over is None:
            layouts = arranged if any(item is not None for item in arranged) else ()
            over = self._over_meshes[key] = _over_mesh(self.program, self.options, mesh, specs, layouts)
            # Arguments that lie as the partitioner has placed these need no other program.
            chosen = tuple([mesh_.trim(target.spec) for target in over.inputs])
            self._over_meshes.setdefault((mesh, chosen, *key[2:]), over)
        if not mesh.local_ranks:
            # It happens in other processes. This one only knows of what kind the results are.
            pairs = zip(self._types, over.outputs, strict=True)
            return tuple(array_.Array(type_, (), target, committed=True) for type_, target in pairs)
        placed = [
            array.memory.buffers if layout is not None else shards(array, target)
            for array, target, layout in zip(arrays, over.inputs, arranged, strict=True)
        ]
        # Donated buffers are overwritten, so what might be interpreted again is fetched before.
        is_seen = scope.inspects
        kept = [np.array(a.to_host()) if a.is_fully_addressable else None for a in arrays] if is_seen else []
        for (
            i
        ) in self.options.donated:  # from here on they are the program's, which frees them when they are dead
            arrays[i].delete()
        given = list(zip(*placed, strict=True)) or [()] * len(mesh.local_ranks)
        placed.clear()
        rows = over.executable.run_spmd(given, mesh.flat_devices)
        results = tuple(
            [
                array_.Array(type_, buffers, target, committed=True)
                for type_, buffers, target in zip(
                    self._types, zip(*rows, strict=True), over.outputs, strict=True
                )
            ]
        )
        if is_seen and all(x is not None for x in kept) and all(r.is_fully_addressable for r in results):
            known = [x for x in kept if x is not None]
            _inspect(self.program, lambda: known, [r.to_host() for r in results], mesh.flat_devices[0])
        return results

    def last_executable(
        self, device: backend.Device, layouts: Sequence[layout_.Layout | None]
    ) -> backend.Executable | None:
        """What a call with arrays in these layouts on a device runs now, if there was one."""
        known = tuple(layouts) if any(item is not None for item in layouts) else ()
        return self._executables.get((device.platform, config.current().key, _executables.num_clears, known))

    def _inspected(
        self, executable: backend.Executable, inputs: Sequence[backend.Buffer], device: backend.Device
    ) -> Sequence[backend.Buffer]:
        """Run, and look at the results. Donated inputs are overwritten, so they are copied before."""
        types = self.program.in_types
        kept = list(inputs)
        for i in self.options.donated:
            kept[i] = device.backend.copy(inputs[i], types[i], device)
        outputs = executable(inputs)
        get = device.backend.get
        _inspect(
            self.program,
            lambda: [get(buffer, type_) for buffer, type_ in zip(kept, types, strict=True)],
            [get(buffer, type_) for buffer, type_ in zip(outputs, self._types, strict=True)],
            device,
        )
        return outputs


def _arranged(
    arrays: Sequence[array_.Array], placement: sharding_.SingleDeviceSharding, inspects: bool
) -> tuple[list[backend.Buffer], tuple[layout_.Layout | None, ...]]:
    """Buffers for one device, as they are where they live there, with their layouts; row-major ones for who
    wants to look at them.
    """
    inputs: list[backend.Buffer] = []
    layouts: list[layout_.Layout | None] = []
    for array in arrays:
        layout = array.layout
        if layout is not None and not inspects and array.sharding == placement:
            inputs.append(array.memory.buffers[0])
        else:
            layout = None
            inputs.append(on_device(array, placement.device))
        layouts.append(layout)
    return inputs, tuple(layouts) if any(item is not None for item in layouts) else ()


# What `core.finite`, which imports this module, installs: (program, its arguments, its results, runner of one
# equation).
_Inspector: TypeAlias = Callable[..., None]
_inspectors: list[_Inspector] = []


def install_inspector(inspector: _Inspector) -> None:
    """Called once by `core.finite`, which looks at the results of programs."""
    _inspectors[:] = [inspector]


def _inspect(
    program: ir.Program,
    arguments: Callable[[], Sequence[np.ndarray]],
    results: Sequence[np.ndarray],
    device: backend.Device,
) -> None:
    def run_alone(equation: ir.Equation, operands: Sequence[np.ndarray], _: object) -> list[np.ndarray]:
        types = [v.type for v in equation.inputs]
        with config.config(nan=False, inf=False, device=str(device)):
            given = [array_.from_host(x, keep_dtype=True) for x in operands]
            alone = ir.single_equation(equation.op, types, equation.attrs)
            options = backend.CompileOptions(mesh=equation.attrs.get("mesh"))
            return [np.asarray(result) for result in run(alone, given, options)]

    for inspector in _inspectors:
        inspector(program, arguments, results, run_alone)


def run(
    program: ir.Program,
    arrays: Sequence[array_.Array],
    options: backend.CompileOptions = _PLAIN,
    mesh: sharding_.Mesh | None = None,
) -> tuple[array_.Array, ...]:
    """Run a program once; see `Runner`."""
    return Runner(program, options, mesh)(arrays)


def mesh_in(program: ir.Program) -> mesh_.AbstractMesh | None:
    """The mesh that a program names in a constraint or a shard_map, if any."""
    for equation in program.equations:
        found: mesh_.AbstractMesh | None = equation.attrs.get("mesh")
        for inner in equation.programs:
            found = found or mesh_in(inner)
        if found is not None:
            return found
    return None


def mesh_of(
    arrays: Sequence[array_.Array], options: backend.CompileOptions, given: sharding_.Mesh | None
) -> sharding_.Mesh:
    """The mesh of the arguments; else one given or entered; else the first devices there are.

    Raises:
        DeviceError: arguments live on two meshes, or on other devices than those of the one given.
    """
    found = {a.sharding.mesh for a in arrays if isinstance(a.sharding, sharding_.NamedSharding)}
    if len(found) > 1:
        raise errors.DeviceError(
            "arguments of one computation are split over different meshes",
            got=", ".join(map(repr, found)),
            fix="move them to one mesh with infini.device_put",
        )
    if found:
        (own,) = found
        if given is not None and given.abstract == own.abstract and given != own:
            raise errors.DeviceError(
                "an argument lies on other devices than the mesh that the function names",
                got=f"{', '.join(map(str, own.flat_devices))}",
                expected=f"{', '.join(map(str, given.flat_devices))}",
                fix="move it with infini.device_put",
            )
        return own
    for candidate in (given, sharding_.current_mesh()):
        if candidate is not None and candidate.abstract == options.mesh:
            return candidate
    assert options.mesh is not None
    return sharding_.make_mesh(options.mesh.axis_sizes, options.mesh.axis_names)


def shards(array: array_.Array, target: sharding_.NamedSharding) -> list[backend.Buffer]:
    """Buffers of an array on the devices of this process, split as `target` says; an array on one device
    is cut up.
    """
    if isinstance(array.sharding, sharding_.NamedSharding):
        return list(array.buffers)
    host, mesh, room = array.to_host(), target.mesh, target.shard_shape(array.shape)
    buffers = []
    for rank in mesh.local_ranks:
        part = host[mesh_.shard_index(array.shape, target.spec, mesh.abstract, rank)]
        device = mesh.flat_devices[rank]
        buffers.append(device.backend.put(shards_.padded(part, room), device))
    return buffers


def run_equation(
    op: primitive.Primitive, arrays: Sequence[array_.Array], attrs: ir.Attrs
) -> tuple[array_.Array, ...]:
    """Run one operation eagerly."""
    types = tuple(array.type for array in arrays)
    key = (op, types, attrs)
    found = _equations.get(key)
    if found is None:
        program = ir.single_equation(op, types, attrs)
        options = backend.CompileOptions(mesh=mesh_in(program))
        found = _equations.make(key, lambda: Runner(program, options))
    return found(arrays)
