"""Arrays as text, laid out as JAX's: `Array([1., 2.], dtype=float32)`."""

from __future__ import annotations

from typing import Final

import numpy as np

from infini.core import dtypes

_START: Final = "Array("


def of(host: np.ndarray, weak: bool) -> str:
    """The representation of an array with these contents; NumPy's print options decide how much is shown."""
    end = f"dtype={host.dtype.name}{', weak_type=True' if weak else ''})"
    if host.size == 0:
        body = f"[], shape={host.shape}"
    else:
        # NumPy prints the small floats without their point.
        is_small = host.dtype in dtypes.FLOATS and host.dtype.itemsize <= 2
        shown = host.astype(np.float32) if is_small else host
        body = np.array2string(shown, separator=", ", prefix=_START, suffix=",")
    # The first line stands behind `Array(`; the others are indented by NumPy.
    used = len(body.rpartition("\n")[2]) + (0 if "\n" in body else len(_START))
    is_long = used + len(", ") + len(end) > np.get_printoptions()["linewidth"]
    gap = "\n" + " " * len(_START) if is_long else " "
    return f"{_START}{body},{gap}{end}"
