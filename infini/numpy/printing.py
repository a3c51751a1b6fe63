"""How arrays are printed, with NumPy's names. The options are those of NumPy, which prints our arrays."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from infini.numpy import creation


def array_repr(
    arr: Any,  # Any: as asarray
    max_line_width: int | None = None,
    precision: int | None = None,
    suppress_small: bool | None = None,
) -> str:
    """An array as text with its dtype, as `numpy.array_repr`."""
    with _options(max_line_width, precision, suppress_small):
        return repr(creation.asarray(arr))


def array_str(
    a: Any,  # Any: as asarray
    max_line_width: int | None = None,
    precision: int | None = None,
    suppress_small: bool | None = None,
) -> str:
    """The numbers of an array as text, as `numpy.array_str`."""
    with _options(max_line_width, precision, suppress_small):
        return str(creation.asarray(a))


def get_printoptions() -> dict[str, Any]:  # Any: NumPy's options
    """The options of printing, as `numpy.get_printoptions`."""
    return dict(np.get_printoptions())


def set_printoptions(*args: Any, **kwargs: Any) -> None:  # Any: NumPy's options
    """Change options of printing, as `numpy.set_printoptions`."""
    np.set_printoptions(*args, **kwargs)


def printoptions(*args: Any, **kwargs: Any) -> contextlib.AbstractContextManager[Any]:  # Any: NumPy's options
    """Other options of printing within a `with` block, as `numpy.printoptions`."""
    return np.printoptions(*args, **kwargs)


def _options(
    width: int | None, precision: int | None, suppress: bool | None
) -> contextlib.AbstractContextManager[Any]:  # Any: NumPy's options
    given: dict[str, Any] = {  # Any: NumPy's options
        "linewidth": width,
        "precision": precision,
        "suppress": suppress,
    }
    return np.printoptions(**{name: value for name, value in given.items() if value is not None})
