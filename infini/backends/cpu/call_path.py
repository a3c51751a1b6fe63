"""Calls without the interpreter: a jitted function that is called again with the same signature is checked,
run and wrapped by machine code (`call_text`).

The way through Python is the definition, and stays for everything that machine code does not know: it is
taken when anything differs. The knob `INFINI_CALL_PATH=python` takes it always. The machine code needs
CPython with its interpreter lock, on a 64-bit little-endian processor; elsewhere there is only the other way.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import sysconfig
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeAlias

import optree

from infini.backends.cpu import call_text, interrupts, objects, pool
from infini.backends.cpu.executable import CpuExecutable
from infini.compiler.llvm import target as target_
from infini.core import array, backend, config, dtypes, execute, ir, memory, sharding, trace, tree_nodes
from infini.core.memory import HOST, HostBuffer

RELEASE_NS: Final = 20_000.0  # programs from this estimate on release the interpreter lock
MAX_LEAVES: Final = 4096
_MAX_PAIRS: Final = 4096  # donated inputs times inputs that are compared in every call
_MAX_REFUSALS: Final = 16
_MAX_HELD: Final = 48
_EQUALS: Final = (int, float, str, bytes)  # classes whose comparison runs no code of the user
_METH_NOARGS: Final = 4
_METH_FASTCALL: Final = 0x80
_METH_O: Final = 8
Words: TypeAlias = list[int]


class _UnlearnableError(Exception):
    """A call that machine code cannot repeat."""


class _MethodDef(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


class CallPath:
    """The calls of one jitted function that have been learned; see `backend.CallPath`."""

    def __init__(self, native: _Native) -> None:
        self._native = native
        self._head = (ctypes.c_int64 * (len(call_text.HEAD) - 1 + call_text.MAX_STATES))()
        self._held: list[Any] = []  # Any: whatever the words point to
        self._num_refusals = 0
        self._lock = threading.Lock()
        self._conditions: list[tuple[Any, ...]] = []
        self._write("facts", ctypes.addressof(native.facts))
        _LIVE.add(self)

    @property
    def call(self) -> Any:  # Any: a function of C
        """A bound function of C: its first argument is the number that is the address of the head. It keeps
        this path, whose words a call may be reading when everybody else has let go of it.
        """
        return self._native.function("infini_call", _METH_FASTCALL, ctypes.addressof(self._head), self)

    def _write(self, name: str, value: int) -> None:
        self._head[call_text.HEAD.index(name)] = value

    def forget(self) -> None:
        """Forget every call. The words stay as long as this path, for a thread that may be reading them."""
        self._write("num_states", 0)

    def learn(self, call: backend.Call) -> None:
        """Remember a call, unless it is of a kind that machine code does not know."""
        if self._num_refusals >= _MAX_REFUSALS:
            return
        with self._lock:
            try:
                self._learn(call)
            except _UnlearnableError:
                self._num_refusals += 1

    def _learn(self, call: backend.Call) -> None:
        conditions = _conditions()
        if conditions is None:
            return
        number = self._head[0]
        if number and not _are_same(conditions, self._conditions):
            number = 0
            self._write("num_states", 0)
        if number >= call_text.MAX_STATES or len(self._held) >= _MAX_HELD:
            raise _UnlearnableError
        state = _State(call)
        if number == 0:
            self._conditions = conditions
            words = _array([word for owner, name, value in conditions for word in _ids(owner, name, value)])
            self._held.append((words, conditions))
            self._write("conditions", ctypes.addressof(words))
            self._write("num_conditions", len(conditions))
        frame = self._head[call_text.HEAD.index("frame_words")]
        self._write("frame_words", max(frame, state.frame_words))
        self._held.append(state)
        self._head[len(call_text.HEAD) - 1 + number] = ctypes.addressof(state.words)
        self._write("num_states", number + 1)  # last: another thread may be calling


def _ids(owner: object, name: str | None, value: object) -> Words:
    return [id(owner), 0 if name is None else id(name), id(value)]


def _are_same(a: Sequence[tuple[Any, ...]], b: Sequence[tuple[Any, ...]]) -> bool:
    return all(x is y for left, right in zip(a, b, strict=True) for x, y in zip(left, right, strict=True))


def _conditions() -> list[tuple[Any, str | None, Any]] | None:  # Any: objects of every kind
    """What must hold besides the arguments, as (context variable, None, value) or (object, attribute, value);
    None where knobs are set for a block, whose scope ends with it.
    """
    if config.in_block():
        return None
    return [*trace.plain_state(), *sharding.plain_state(), *config.plain_state()]


class _State:
    """The words of one signature, and everything they point to."""

    def __init__(self, call: backend.Call) -> None:
        executable = call.executable
        if not isinstance(executable, CpuExecutable):
            raise _UnlearnableError
        facts = executable.call_facts()
        if facts is None:
            raise _UnlearnableError
        # Whatever the words point to; not the arguments, whose memory would never be free again.
        self.held: list[Any] = [executable, facts, *call.captures, call.placement, call.finish]
        leaves = iter(range(len(call.captures), MAX_LEAVES))
        self.numbers: set[int] = set()
        checks = self._arguments(call, leaves)
        num_inputs = next(leaves)
        for slot, captured in enumerate(call.captures):
            checks += self._leaf(captured, slot)
        donated = facts.donated
        if num_inputs != facts.num_inputs or self.numbers & set(donated):
            raise _UnlearnableError
        if len(donated) * num_inputs > _MAX_PAIRS:
            raise _UnlearnableError
        records = []
        for type_, weak, alias in zip(call.out_types, call.out_weak, facts.aliases, strict=True):
            records += self._record(type_.nbytes, alias, type_, weak, call.committed)
        arena = (
            self._keep(self._record(facts.arena_bytes, None, None, False, False)) if facts.arena_bytes else 0
        )
        num_outputs = len(call.out_types)
        mode = _MODES[facts.mode]
        threads = pool.shared() if mode == call_text.POOLED else None
        if threads is not None and not threads.is_native:
            raise _UnlearnableError  # its workers are woken from Python
        tail = [*facts.tail, 0, interrupts.NEVER]  # no counters
        values = {
            "num_inputs": num_inputs,
            "num_outputs": num_outputs,
            "entry": facts.entry,
            "mode": mode,
            "pool": threads.memory if threads is not None else 0,
            "wakes": int(facts.wakes),
            "releases": int(facts.cost_ns >= RELEASE_NS),
            "tail": self._keep(tail),
            "tail_start": num_inputs + num_outputs + 1,
            "tail_count": len(tail),
            "arena": arena,
            "outputs": self._keep(records),
            "sharding": id(call.placement),
            "checks": self._keep(checks),
            "captures": self._keep([id(x) for x in call.captures]),
            "num_captures": len(call.captures),
            "donated": self._keep(list(donated)),
            "num_donated": len(donated),
            "finish": 0 if call.finish is None else id(call.finish),
        }
        self.words = _array([values[name] for name in call_text.STATE])
        table = num_inputs + num_outputs + 1 + len(tail)
        self.frame_words = 2 * num_inputs + num_outputs + 1 + table

    def _keep(self, words: Words) -> int:
        """Address of words that live as long as this state."""
        found = _array(words)
        self.held.append(found)
        return ctypes.addressof(found)

    def _record(
        self, nbytes: int, alias: int | None, type_: ir.ArrayType | None, weak: bool, committed: bool
    ) -> Words:
        size = memory.size_class(nbytes)
        free = HOST.free.setdefault(size, [])
        things = [size, nbytes, free, type_]
        self.held += things
        return [
            -1 if alias is None else alias,
            *(id(x) for x in things[:3]),
            size,
            id(type_),
            id(weak),
            id(committed),
        ]

    # --- checks of the arguments --------------------------------------------------------------------

    def _arguments(self, call: backend.Call, leaves: Iterator[int]) -> Words:
        words = [call_text.TUPLE, id(tuple), len(call.args)]
        for number, arg in enumerate(call.args):
            words += self._constant(arg) if number in call.static else self._tree(arg, leaves)
        names = sorted(call.kwargs)
        words += [call_text.DICT, id(dict), len(names), *self._ids_of(names)]
        for name in names:
            value = call.kwargs[name]
            words += self._constant(value) if name in call.static_names else self._tree(value, leaves)
        return words

    def _ids_of(self, things: Sequence[Any]) -> Words:  # Any: keys of a dictionary
        self.held.append(things)
        return [id(x) for x in things]

    def _constant(self, value: object) -> Words:
        self.held.append(value)
        if type(value) in _EQUALS:
            return [call_text.EQUAL, id(type(value)), id(value)]
        return [call_text.SAME, id(value)]

    def _leaf(self, x: object, slot: int) -> Words:
        if type(x) is not array.Array or type(x.sharding) is not sharding.SingleDeviceSharding:
            raise _UnlearnableError
        layout = x.layout
        self.held += [x.type, x.sharding, layout]
        return [
            call_text.LEAF, slot, id(x.type), id(x.type.dtype), id(x.type.shape), id(bool(x.weak)),
            id(bool(x.committed)), id(x.sharding), 0 if layout is None else id(layout),
        ]  # fmt: skip

    def _tree(self, x: Any, leaves: Iterator[int]) -> Words:  # Any: a pytree
        kind = type(x)
        if kind is array.Array:
            return self._leaf(x, next(leaves))
        if x is None:
            return self._constant(x)
        if kind in _NUMBERS:
            self.numbers.add(slot := next(leaves))
            return [call_text.NUMBER, id(kind), slot, _number_kind(kind)]
        if kind in tree_nodes.FIELDS:
            data, meta = tree_nodes.FIELDS[kind]
            names = tuple(map(sys.intern, (*data, *meta)))
            words = [call_text.FIELDS, id(kind), len(names), *self._ids_of(names)]
            for name in data:
                words += self._tree(getattr(x, name), leaves)
            for name in meta:
                words += self._constant(getattr(x, name))
            return words
        if kind is dict:
            keys = optree.tree_flatten_one_level(x, namespace=tree_nodes.NAMESPACE)[2]
            if not all(type(key) in _EQUALS for key in keys):
                raise _UnlearnableError
            words = [call_text.DICT, id(dict), len(keys), *self._ids_of(keys)]
            return words + [word for key in keys for word in self._tree(x[key], leaves)]
        if (
            kind is list
            or kind is tuple
            or (optree.is_namedtuple_class(kind) and not tree_nodes.is_registered(kind))
        ):
            code = call_text.LIST if kind is list else call_text.TUPLE
            return [code, id(kind), len(x), *(word for item in x for word in self._tree(item, leaves))]
        raise _UnlearnableError


_MODES: Final = {"single": call_text.SINGLE, "serial": call_text.SERIAL, "pooled": call_text.POOLED}
_NUMBERS: Final = (bool, int, float)


def _number_kind(kind: type) -> int:
    dtype = {bool: dtypes.bool_, int: dtypes.int32, float: dtypes.float32}[kind]
    return call_text.NUMBERS.index(str(dtype))


def _array(words: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * max(len(words), 1))(*words)


# --- the machine code -----------------------------------------------------------------------------


class _Native:
    """The loaded code and the objects it compares with."""

    def __init__(self) -> None:
        target = target_.host_target()
        slots = _slots()
        text = call_text.call_text(target, slots)
        symbols = {name: _address(name) for name in call_text.API}
        symbols |= {name: pool.shared().symbols[name] for name in ("infini_begin", "infini_end")}
        self._library = objects.load(
            [objects.compile_module(text, target)],
            ["infini_call", "infini_know", "infini_take", "infini_give"],
            symbols,
        )
        things = {
            "array": array.Array,
            "buffer": HostBuffer,
            "none": None,
            "not_implemented": NotImplemented,
            "free_lists": HOST.free,
        }
        numbers = {"counts": ctypes.addressof(HOST.counts), "most_kept": memory.MAX_FREE_BYTES}
        self.facts = _array([id(things[n]) if n in things else numbers[n] for n in call_text.FACTS])
        self._held = (things, HOST)
        self._definitions: dict[str, _MethodDef] = {}
        ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(self._library["infini_know"])(ctypes.addressof(self.facts))
        memory.install(
            self.function("infini_take", _METH_O, None),
            self._method(HostBuffer, "__del__", "infini_give", _METH_NOARGS),
        )

    def _definition(self, name: str, symbol: str, flags: int) -> _MethodDef:
        if symbol not in self._definitions:
            self._definitions[symbol] = _MethodDef(name.encode(), self._library[symbol], flags, None)
        return self._definitions[symbol]

    def function(
        self, symbol: str, flags: int, bound: object, keeps: object = None
    ) -> Any:  # Any: a function of C
        """A built-in function with `bound` as what C calls self; it keeps `keeps` alive, as its module."""
        make = ctypes.pythonapi.PyCFunction_NewEx
        make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, *[ctypes.py_object] * 2]
        return make(ctypes.addressof(self._definition(symbol, symbol, flags)), bound, keeps)

    def _method(self, owner: type, name: str, symbol: str, flags: int) -> Any:  # Any: a method of C
        make = ctypes.pythonapi.PyDescr_NewMethod
        make.restype, make.argtypes = ctypes.py_object, [ctypes.py_object, ctypes.c_void_p]
        return make(owner, ctypes.addressof(self._definition(name, symbol, flags)))


def _address(name: str) -> int:
    return int(ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0)


def _slots() -> dict[str, int]:
    """Offsets of the slots, as the descriptors of the classes tell, and looked at in an object of each."""
    named: dict[str, tuple[Any, tuple[str, ...]]] = {  # Any: classes
        "ARRAY": (array.Array, ("type", "weak", "_buffers", "sharding", "committed", "ready", "_arranged")),
        "BUFFER": (HostBuffer, ("_block", "_size", "address", "nbytes")),
        "TYPE": (ir.ArrayType, ("shape", "dtype")),
        "ARRANGED": (array.Arranged, ("layout", "buffers")),
    }
    found = {}
    for prefix, (owner, names) in named.items():
        probe = owner.__new__(owner)
        for name in names:
            offset = _offset(owner, name)
            value = object()
            object.__setattr__(probe, name, value)
            if ctypes.c_size_t.from_address(id(probe) + offset).value != id(value):
                raise OSError(f"{owner.__name__}.{name} is not where its descriptor says")
            object.__delattr__(probe, name)
            found[f"{prefix}_{name.strip('_').upper()}"] = offset
    return found


def _offset(owner: type, name: str) -> int:
    """Where a slot lies in its object. A member descriptor is {header 16, class 8, name 8, qualified name 8,
    definition 8}; its definition {name 8, kind 8, offset 8}.
    """
    definition = ctypes.c_size_t.from_address(id(getattr(owner, name)) + 40).value
    return int(ctypes.c_ssize_t.from_address(definition + 16).value)


def _is_possible() -> bool:
    return (
        sys.implementation.name == "cpython"
        and sys.byteorder == "little"
        and sys.maxsize > 2**32
        and not hasattr(sys, "gettotalrefcount")
        and not sysconfig.get_config_var("Py_GIL_DISABLED")
    )


@functools.cache
def _native() -> _Native | None:
    try:
        native = _Native() if _is_possible() else None
    except (AttributeError, OSError):  # another Python than those this was written for
        return None
    if native is not None:
        # When the interpreter ends it empties modules before it frees the last buffers and functions, whose
        # destructors read what is held here. So it is never freed.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(native))
    return native


_LIVE: weakref.WeakSet[CallPath] = weakref.WeakSet()
_making: Final = threading.Lock()


def make() -> CallPath | None:
    """A short way for the calls of one jitted function; None where there is none."""
    if config.get("call_path") != "native":
        return None
    with _making:
        native = _native()
    return None if native is None else CallPath(native)


def forget_all() -> None:
    """Forget the calls of every function: executables were dropped, or the threads are gone after a fork."""
    for path in list(_LIVE):
        path.forget()


execute.on_clear.append(forget_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_all)
