"""Libraries that compiled code calls: LAPACK, from OpenBLAS as SciPy's developers build it for PyPI, and the
Fourier transforms in NumPy.

OpenBLAS is a copy of its own beside the one in NumPy, so it runs on one thread, here and nowhere else:
parallelism is the pool's, and the number of threads changes no result (design 4a.14).
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np

from infini.compiler.llvm import library_symbols as names
from infini.core import errors

PACKAGE: Final = "scipy_openblas32"
TRANSFORMS: Final = "numpy.fft._pocketfft_umath"
_LAPACK: Final = re.compile(rf"@({names.LAPACK_PREFIX}\w+)\(")
_TRANSFORM: Final = re.compile(rf"@({names.TRANSFORM_PREFIX}\w+)")


def addresses(declarations: Iterable[str]) -> dict[str, int]:
    """Addresses of what declarations name in libraries; loads nothing when there is nothing.

    Raises:
        LoweringError: a library is not installed, or is not as expected.
    """
    texts = list(declarations)
    routines = {name for text in texts for name in _LAPACK.findall(text)}
    transforms = {name for text in texts for name in _TRANSFORM.findall(text)}
    found = {}
    if routines:
        library = lapack()
        found = {name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in routines}
    return found | {name: transform_symbols()[name] for name in transforms}


@functools.cache
def lapack() -> ctypes.CDLL:
    """The library, loaded on first use and kept.

    Raises:
        LoweringError: the package with it is not installed.
    """
    try:
        package = importlib.import_module(PACKAGE)
    except ImportError:
        raise errors.LoweringError(
            "linear algebra on the CPU needs a library that is not installed",
            got=f"no package {PACKAGE}",
            expected="LAPACK from OpenBLAS",
            fix="pip install scipy-openblas32",
        ) from None
    library = ctypes.CDLL(str(Path(package.get_lib_dir()) / package.get_library(fullname=True)))
    library.scipy_openblas_set_num_threads(1)
    return library


# --- Fourier transforms ----------------------------------------------------------------------


class _Ufunc(ctypes.Structure):
    """The head of a ufunc, which NumPy's C interface declares (`numpy/ufuncobject.h`)."""

    _fields_ = (
        ("head", ctypes.c_byte * object.__basicsize__),
        ("nin", ctypes.c_int),
        ("nout", ctypes.c_int),
        ("nargs", ctypes.c_int),
        ("identity", ctypes.c_int),
        ("functions", ctypes.POINTER(ctypes.c_void_p)),
        ("data", ctypes.POINTER(ctypes.c_void_p)),
        ("ntypes", ctypes.c_int),
    )


@functools.cache
def transform_symbols() -> dict[str, int]:
    """Addresses of NumPy's transforms of lines, and of what they were registered with, by symbol.

    They need no interpreter, so tasks call them as they call LAPACK.

    Raises:
        LoweringError: this NumPy has no such functions.
    """
    found: dict[str, int] = {}
    try:
        module = importlib.import_module(TRANSFORMS)
        for routine, types in names.TRANSFORM_LOOPS.items():
            for letter, signature in types.items():
                symbol = f"{names.TRANSFORM_PREFIX}{routine}_{letter}"
                function, data = _loop(getattr(module, routine), signature)
                if (data is not None) != (routine in names.WITH_DATA):
                    raise ValueError(f"{routine} is registered in another way")
                found[symbol] = function
                if data is not None:
                    found[symbol + names.DATA_SUFFIX] = data
    except (ImportError, AttributeError, ValueError) as error:
        raise errors.LoweringError(
            "this version of NumPy does not have the Fourier transforms that the CPU calls",
            got=f"NumPy {np.__version__}: {error}",
            expected=f"functions {', '.join(names.TRANSFORM_LOOPS)} in {TRANSFORMS}",
            fix="install another version of NumPy 2, or run with INFINI_DEVICE=reference",
        ) from None
    return found


def _loop(ufunc: Any, types: str) -> tuple[int, int | None]:  # Any: a ufunc; NumPy's stubs hide its types
    """The function of a ufunc for operand and result types, and what it was registered with."""
    head = _Ufunc.from_address(id(ufunc))
    shown = (head.nin, head.nout, head.nargs, head.ntypes)
    if shown != (ufunc.nin, ufunc.nout, ufunc.nargs, ufunc.ntypes) or shown[:2] != (2, 1):
        raise ValueError(f"{ufunc.__name__} lies in memory in another way")
    number = ufunc.types.index(types)
    function = head.functions[number]
    if function is None:
        raise ValueError(f"{ufunc.__name__} has no function for {types}")
    return function, head.data[number] if head.data else None
