"""Arrays in NumPy's files, `.npy` and `.npz`. Pickled objects are neither written nor read: reading them
runs code of whoever wrote the file.
"""

from __future__ import annotations

import os
from typing import IO, Any

import ml_dtypes
import numpy as np

from infini.core import errors
from infini.numpy import creation

File = IO[bytes] | str | os.PathLike[str]


def save(file: File, arr: Any, allow_pickle: bool = False) -> None:  # Any: as asarray
    """Write an array to a `.npy` file, as `numpy.save`.

    Args:
        file: path, which gets the ending `.npy` when it has none, or an open file.
        arr: the array.
        allow_pickle: has to be False.

    Raises:
        UnsupportedError: `allow_pickle` is true.
    """
    _refuse_pickle("save", allow_pickle)
    np.save(file, _host(arr), allow_pickle=False)


def savez(file: File, *args: Any, allow_pickle: bool = False, **kwds: Any) -> None:  # Any: as asarray
    """Write several arrays to a `.npz` file, as `numpy.savez`.

    Args:
        file: path, which gets the ending `.npz` when it has none, or an open file.
        *args: arrays, named `arr_0`, `arr_1` and so on.
        allow_pickle: has to be False.
        **kwds: arrays by name.

    Raises:
        UnsupportedError: `allow_pickle` is true.
    """
    _refuse_pickle("savez", allow_pickle)
    named = {name: _host(x) for name, x in kwds.items()}
    np.savez(file, *map(_host, args), allow_pickle=False, **named)


def load(file: File, mmap_mode: None = None, allow_pickle: bool = False) -> Any:
    """Read a `.npy` or `.npz` file, as `numpy.load`.

    Args:
        file: path or open file.
        mmap_mode: has to be None: arrays are copied to the device.
        allow_pickle: has to be False.

    Returns:
        An array, or for `.npz` NumPy's mapping from names to NumPy arrays, which reads them as they are
        asked for. Two-byte elements without a dtype are bfloat16, which the format cannot name.

    Raises:
        UnsupportedError: `allow_pickle` or `mmap_mode` is given.
    """
    _refuse_pickle("load", allow_pickle)
    if mmap_mode is not None:
        raise errors.UnsupportedError(
            "load does not map files to memory", got=f"mmap_mode={mmap_mode!r}", fix="use numpy.load"
        )
    found = np.load(file, allow_pickle=False)
    if not isinstance(found, np.ndarray):
        return found
    if found.dtype == np.dtype("V2"):
        found = found.view(ml_dtypes.bfloat16)
    return creation.asarray(found)


def _host(x: Any) -> np.ndarray:  # Any: as asarray
    return np.asarray(creation.asarray(x))


def _refuse_pickle(name: str, allow_pickle: bool) -> None:
    if allow_pickle:
        raise errors.UnsupportedError(
            f"{name} does not pickle objects",
            got="allow_pickle=True",
            expected="arrays of numbers",
            fix="leave out allow_pickle; infini.io writes trees of arrays",
        )
