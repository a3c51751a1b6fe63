"""LLVM's parser and code generator without llvmlite's lock, so that several threads compile at once.

llvmlite lets one thread at a time into LLVM. LLVM itself asks only that a context, its modules and a code
generator belong to one thread. So the two calls that take time go to the same library directly, with a
context and a generator of the calling thread; everything else goes through llvmlite, and so do these when its
names have changed.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from dataclasses import dataclass
from typing import Any, Final

import llvmlite.binding as llvm
from llvmlite.binding import ffi

from infini.compiler.llvm.target import Target
from infini.core import errors


@dataclass(frozen=True, slots=True)
class _Calls:
    """Functions of the library, without the lock."""

    parse: Any  # Any: foreign functions
    emit: Any


@functools.cache
def _calls() -> _Calls | None:
    try:
        library = ctypes.CDLL(ffi.lib._name)
        text = ctypes.POINTER(ctypes.c_char_p)
        parse, emit = library.LLVMPY_ParseAssembly, library.LLVMPY_TargetMachineEmitToMemory
        parse.argtypes, parse.restype = [ffi.LLVMContextRef, ctypes.c_char_p, text], ffi.LLVMModuleRef
        emit.argtypes = [ffi.LLVMTargetMachineRef, ffi.LLVMModuleRef, ctypes.c_int, text]
        emit.restype = ffi.LLVMMemoryBufferRef
        return _Calls(parse, emit)
    except (AttributeError, OSError):
        return None


class _Generators(threading.local):
    """One code generator per thread, processor and effort: none may be shared."""

    def __init__(self) -> None:
        self.made: dict[tuple[Target, int], llvm.TargetMachine] = {}


_GENERATORS: Final = _Generators()


def _generator(target: Target, level: int) -> llvm.TargetMachine:
    found = _GENERATORS.made.get((target, level))
    if found is None:
        found = _GENERATORS.made[target, level] = new_generator(target, level)
    return found


def new_generator(target: Target, level: int) -> llvm.TargetMachine:
    """A code generator for a processor."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=level, reloc="pic", codemodel="default"
    )


def generate(text: str, target: Target, level: int) -> bytes:
    """The object file of a module.

    Args:
        text: LLVM IR.
        target: processor to make code for.
        level: effort of the code generator.

    Raises:
        LoweringError: LLVM refuses the text.
    """
    machine, calls = _generator(target, level), _calls()
    if calls is None:
        return _generate_in_turn(text, machine)
    with llvm.create_context() as context, ffi.OutputString() as message:
        pointer = calls.parse(context._ptr, text.encode(), message._as_parameter_)
        module = llvm.ModuleRef(pointer, context) if pointer else None
        if module is None or message:
            raise _refused(str(message))
        with module:
            buffer = calls.emit(machine._ptr, module._ptr, 1, message._as_parameter_)
            if not buffer:
                raise _refused(str(message))
            try:
                start, size = ffi.lib.LLVMPY_GetBufferStart(buffer), ffi.lib.LLVMPY_GetBufferSize(buffer)
                return ctypes.string_at(start, size)
            finally:
                ffi.lib.LLVMPY_DisposeMemoryBuffer(buffer)


def _generate_in_turn(text: str, machine: llvm.TargetMachine) -> bytes:
    try:
        module = llvm.parse_assembly(text, llvm.create_context())
    except RuntimeError as error:
        raise _refused(str(error)) from None
    return bytes(machine.emit_object(module))


def assembly(text: str, target: Target, level: int) -> str:
    """The assembly of a module, for people."""
    module = llvm.parse_assembly(text, llvm.create_context())
    return str(new_generator(target, level).emit_assembly(module))


def _refused(message: str) -> errors.LoweringError:
    return errors.LoweringError("LLVM refuses the text of a kernel", got=message)
