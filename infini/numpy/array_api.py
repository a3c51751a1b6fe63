"""What the Array API standard asks of a namespace: its version, and what it can do and has.

Source: https://data-apis.org/array-api/2024.12/
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from infini.core import backend, dtypes, errors
from infini.numpy import scalars

__array_api_version__: Final = "2024.12"

_NAMED: Final = tuple(
    d
    for d in dtypes.SHORT_NAMES
    if d not in {dtypes.bfloat16, dtypes.float16, dtypes.float8_e4m3fn, dtypes.float8_e5m2}
)  # the dtypes that the standard names


class ArrayNamespaceInfo:
    """The standard's inspection functions."""

    def capabilities(self) -> dict[str, bool | int]:
        """What depends on data: neither indexing by booleans nor shapes while tracing."""
        return {"boolean indexing": False, "data-dependent shapes": False, "max dimensions": 64}

    def default_device(self) -> backend.Device:
        """Device that arrays are made on when none is given."""
        return backend.default_device()

    def devices(self) -> list[backend.Device]:
        """All devices of the default platform."""
        return list(backend.devices())

    def default_dtypes(self, *, device: object = None) -> dict[str, np.dtype]:
        """Dtypes of results when none is given, by kind."""
        return {
            "real floating": dtypes.float32,
            "complex floating": dtypes.complex64,
            "integral": dtypes.int32,
            "indexing": dtypes.int32,
        }

    def dtypes(
        self, *, device: object = None, kind: str | tuple[str, ...] | None = None
    ) -> dict[str, np.dtype]:
        """Dtypes of the standard that arrays can have, by name.

        Args:
            device: has no effect; devices have the same dtypes.
            kind: a kind of dtypes such as `real floating`, or several; all when absent.

        Raises:
            ValueMismatchError: there is no such kind.
        """
        kinds = (kind,) if isinstance(kind, str) else kind
        for word in kinds or ():
            if word not in scalars.KINDS:
                raise errors.ValueMismatchError(
                    "there is no such kind of dtypes", got=repr(word), expected=", ".join(scalars.KINDS)
                )
        return {d.name: d for d in _NAMED if kinds is None or scalars.isdtype(d, kinds)}


def __array_namespace_info__() -> Any:  # Any: as above, the standard leaves the class open  # noqa: N807
    """The standard's inspection functions, of this namespace."""
    return ArrayNamespaceInfo()
