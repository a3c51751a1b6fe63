"""Libraries that compiled code calls: LAPACK, from OpenBLAS as SciPy's developers build it for PyPI.

It is a copy of its own beside the one in NumPy, so it runs on one thread, here and nowhere else:
parallelism is the pool's, and the number of threads changes no result (design 4a.14).
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from infini.compiler.llvm import linear_algebra
from infini.core import errors

PACKAGE: Final = "scipy_openblas32"
_SYMBOL: Final = re.compile(rf"@({linear_algebra.SYMBOL_PREFIX}\w+)\(")


def addresses(declarations: Iterable[str]) -> dict[str, int]:
    """Addresses of the functions of libraries among declarations; loads nothing when there are none.

    Raises:
        LoweringError: the package with the library is not installed.
    """
    names = {match.group(1) for text in declarations if (match := _SYMBOL.search(text))}
    if not names:
        return {}
    library = lapack()
    return {name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in names}


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
