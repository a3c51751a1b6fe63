"""Host callbacks of compiled programs: a C function pointer per callback that calls Python with copies of the
operands, and copies the results out.

An exception cannot cross native code: it is kept, the program ends early, and whoever called the program
raises it.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import ir
from infini.lax import callbacks

_Function = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p))
_failures = threading.local()


class Callback:
    """A host function as C function; `address` goes into the table of a program.

    Args:
        function: the host function.
        types: types of its operands.
        out_types: types of its results, whose pointers follow those of the operands.
    """

    def __init__(
        self, function: ir.HostFunction, types: Sequence[ir.ArrayType], out_types: Sequence[ir.ArrayType]
    ) -> None:
        self._function = _Function(self._call)  # kept alive as long as the program
        self.host_function, self.types, self.out_types = function, tuple(types), tuple(out_types)
        self.address = ctypes.cast(self._function, ctypes.c_void_p).value or 0

    def _call(self, pointers: Any) -> int:  # Any: ctypes' pointer to addresses
        try:
            arrays = tuple(_copied(pointers[i], type_) for i, type_ in enumerate(self.types))
            results = callbacks.call_host(self.host_function, arrays, self.out_types)
            for i, result in enumerate(results, len(arrays)):
                if result.nbytes:
                    ctypes.memmove(pointers[i], result.ctypes.data, result.nbytes)
        except BaseException as error:  # noqa: BLE001  # raised again by `raise_failure`
            _failures.error = error
            return 1
        return 0


def _copied(address: int, type_: ir.ArrayType) -> np.ndarray:
    array = np.empty(type_.shape, type_.dtype)
    if type_.nbytes:
        ctypes.memmove(array.ctypes.data, address, type_.nbytes)
    array.flags.writeable = False
    return array


def raise_failure() -> None:
    """Raise what a callback of the program that just ran in this thread has raised."""
    error = getattr(_failures, "error", None)
    if error is not None:
        _failures.error = None
        raise error
