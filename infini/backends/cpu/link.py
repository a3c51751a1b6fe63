"""Linking: task functions are compiled once per process, whichever programs use them, and found again by
name.

Names hold a hash of the text, so equal kernels of different programs are one function. New ones are compiled
in parallel.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Final

from infini.backends.cpu import objects, pool
from infini.compiler.llvm.target import Target
from infini.compiler.llvm.task import TaskFunction
from infini.core import config

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


def program(name: str, text: str, externs: Mapping[str, int], target: Target) -> int:
    """Address of the entry function of a program whose task functions are linked."""
    with _lock:
        if name not in _addresses:
            # It only hands pointers to phases, and may be long: the least effort is right for it.
            code = objects.compile_module(text, target, level=0)
            _keep([code], [name], {**externs, **pool.shared().symbols})
        return _addresses[name]


def module_text(task: TaskFunction, target: Target) -> str:
    """A whole module with one task function."""
    return "\n".join([f'target triple = "{target.triple}"', *sorted(task.declares), task.text])


def _add(tasks: Sequence[TaskFunction], target: Target) -> None:
    num_threads = (config.get("num_threads") or pool.num_cores()) if len(tasks) >= _PARALLEL else 1
    code = objects.compile_modules([module_text(task, target) for task in tasks], target, num_threads)
    _keep(code, [task.name for task in tasks], {})


def _keep(code: Sequence[bytes], names: Sequence[str], externs: Mapping[str, int]) -> None:
    library = objects.load(code, externs)
    _libraries.append(library)
    _addresses.update((name, library[name]) for name in names)
