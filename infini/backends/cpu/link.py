"""Linking: task functions are compiled once per process, whichever programs use them, and found again by
name.

Names hold a hash of the text, so equal kernels of different programs are one function. New ones are compiled
in parallel.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Final

from infini.backends.cpu import libraries, objects, pool
from infini.backends.cpu.images import Image
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.core import config

PROGRAM_LEVEL: Final = 0  # effort of the code generator for what only hands pointers to phases
_PARALLEL: Final = 4  # modules from which on it pays to compile in several threads

_addresses: dict[str, int] = {}  # never forgotten: code is never unmapped, and programs keep addresses
_libraries: list[objects.Library] = []
_lock = threading.Lock()


def functions(tasks: Mapping[str, TaskFunction], target: Target) -> dict[str, int]:
    """Addresses of task functions by name, after compiling the ones this process has not seen."""
    with _lock:
        missing = [task for name, task in tasks.items() if name not in _addresses]
        if missing:
            _add(missing, target)
        return {name: _addresses[name] for name in tasks}


def stored(image: Image, target: Target) -> dict[str, int] | None:
    """Addresses of the functions of an image and, under its own name, of its entry; None when an object file
    is no longer on disk.
    """
    with _lock:
        missing = [code for code in image.functions if code.symbol not in _addresses]
        found = [objects.stored(code.key) for code in missing]
        entry = None
        if image.program is not None and image.program.symbol not in _addresses:
            entry = objects.stored(image.program.key)
            if entry is None:
                return None
        present = [code for code in found if code is not None]
        if len(present) != len(found):
            return None
        if missing:
            externs = libraries.addresses(text for code in missing for text in code.declares)
            _keep(present, [code.symbol for code in missing], externs)
        addresses = {code.symbol: _addresses[code.symbol] for code in image.functions}
        if image.program is not None:
            if entry is not None:
                _keep([entry], [image.program.symbol], {**addresses, **pool.shared().symbols})
            addresses[image.program.symbol] = _addresses[image.program.symbol]
        return addresses


def program(name: str, text: str, externs: Mapping[str, int], target: Target) -> int:
    """Address of the entry function of a program whose task functions are linked."""
    with _lock:
        if name not in _addresses:
            # It only hands pointers to phases, and may be long: the least effort is right for it.
            code = objects.compile_module(text, target, level=PROGRAM_LEVEL)
            _keep([code], [name], {**externs, **pool.shared().symbols})
        return _addresses[name]


def module_text(task: TaskFunction, target: Target) -> str:
    """A whole module with one task function."""
    return "\n".join([f'target triple = "{target.triple}"', *sorted(task.declares), task.text])


def _add(tasks: Sequence[TaskFunction], target: Target) -> None:
    num_threads = (config.get("num_threads") or pool.num_cores()) if len(tasks) >= _PARALLEL else 1
    code = objects.compile_modules([module_text(task, target) for task in tasks], target, num_threads)
    externs = libraries.addresses(text for task in tasks for text in task.declares)
    _keep(code, [task.name for task in tasks], externs)


def _keep(code: Sequence[bytes], names: Sequence[str], externs: Mapping[str, int]) -> None:
    library = objects.load(code, externs)
    _libraries.append(library)
    _addresses.update((name, library[name]) for name in names)
