"""Linking: task functions are loaded once per process, whichever programs use them, and found again by name.

Names hold a hash of the text, so equal kernels of different programs are one function. New ones are compiled
in parallel. Code stays loaded as long as a program has its address.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from infini.backends.cpu import libraries, objects, pool
from infini.backends.cpu.images import Image
from infini.compiler.llvm.target import Target

if TYPE_CHECKING:
    from infini.compiler.llvm.task import TaskFunction

PROGRAM_LEVEL: Final = 0  # effort of the code generator for what only hands pointers to phases
_PARALLEL: Final = 4  # modules from which on it pays to compile in several threads

_loaded: weakref.WeakValueDictionary[str, objects.Library] = weakref.WeakValueDictionary()
# Reentrant: a collection inside may run code of the user that compiles.
_lock = threading.RLock()


class Address(int):
    """The address of a function, which keeps its code loaded."""

    library: objects.Library


def _find(symbol: str) -> Address | None:
    library = _loaded.get(symbol)
    if library is None:
        return None
    address = Address(library[symbol])
    address.library = library
    return address


def compilations(target: Target) -> objects.Compilations:
    """What compiles the functions of one program."""
    return objects.Compilations(target, pool.num_threads())


def begin(task: TaskFunction, ahead: objects.Compilations) -> None:
    """Compile a task function soon, unless it is loaded."""
    if task.name not in _loaded:
        ahead.begin(module_text(task, ahead.target))


def functions(tasks: Mapping[str, TaskFunction], ahead: objects.Compilations) -> dict[str, int]:
    """Addresses of task functions by name, after compiling the ones that are not loaded."""
    with _lock:
        found = {name: _find(name) for name in tasks}
        missing = [task for name, task in tasks.items() if found[name] is None]
        added = _add(missing, ahead) if missing else {}
        return {name: address if address is not None else added[name] for name, address in found.items()}


def stored(image: Image, fetch: Callable[[str], bytes | None] = objects.stored) -> dict[str, int] | None:
    """Addresses of the functions of an image and, under its own name, of its entry; None when an object file
    is not there.

    Args:
        image: the program.
        fetch: gives the object file under a key; from the disk cache by default.
    """
    with _lock:
        found = {code.symbol: _find(code.symbol) for code in image.functions}
        addresses: dict[str, int] = {name: address for name, address in found.items() if address is not None}
        missing = [code for code in image.functions if code.symbol not in addresses]
        files = [fetch(code.key) for code in missing]
        entry = None if image.program is None else _find(image.program.symbol)
        program = fetch(image.program.key) if image.program is not None and entry is None else None
        present = [file for file in files if file is not None]
        if len(present) != len(files) or (image.program is not None and entry is None and program is None):
            return None
        if missing:
            externs = libraries.addresses(text for code in missing for text in code.declares)
            addresses |= _load(present, [code.symbol for code in missing], externs)
        if image.program is not None:
            if entry is None and program is not None:
                (entry,) = _load(
                    [program], [image.program.symbol], {**addresses, **pool.shared().symbols}
                ).values()
            assert entry is not None
            addresses[image.program.symbol] = entry
        return addresses


def program(name: str, text: str, externs: Mapping[str, int], target: Target) -> int:
    """Address of the entry function of a program whose task functions are linked."""
    with _lock:
        found = _find(name)
        if found is None:
            # It only hands pointers to phases, and may be long: the least effort is right for it.
            code = objects.compile_module(text, target, level=PROGRAM_LEVEL)
            (found,) = _load([code], [name], {**externs, **pool.shared().symbols}).values()
        return found


def module_text(task: TaskFunction, target: Target) -> str:
    """A whole module with one task function."""
    return "\n".join([f'target triple = "{target.triple}"', *sorted(task.declares), task.text])


def _add(tasks: Sequence[TaskFunction], ahead: objects.Compilations) -> dict[str, Address]:
    if len(tasks) >= _PARALLEL:
        for task in tasks:
            begin(task, ahead)
    code = [ahead.code(module_text(task, ahead.target)) for task in tasks]
    externs = libraries.addresses(text for task in tasks for text in task.declares)
    return _load(code, [task.name for task in tasks], externs)


def _load(code: Sequence[bytes], names: Sequence[str], externs: Mapping[str, int]) -> dict[str, Address]:
    library = objects.load(code, names, externs, is_kept=False)
    _loaded.update((name, library) for name in names)
    found = {name: _find(name) for name in names}
    return {name: address for name, address in found.items() if address is not None}
