"""The memory of complex arrays as arrays of real ones: what a compiler needs to compute with pairs.

`view_as_real` and `view_as_complex` (PyTorch's names) move no byte: real and imaginary part lie side by side.
Users write `lax.real`, `lax.imag` and `lax.complex`; these two stand at the edges of compiled programs.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive, Signature
from infini.core.value import Value
from infini.lax.cases import Case, Sample, always

PART: Final[dict[np.dtype, np.dtype]] = {dtypes.complex64: dtypes.float32, dtypes.complex128: dtypes.float64}
WHOLE: Final[dict[np.dtype, np.dtype]] = {part: whole for whole, part in PART.items()}


def _type_as_real(x: ArrayType) -> tuple[ArrayType]:
    if x.dtype not in PART:
        raise errors.TypeMismatchError("view_as_real takes complex arrays", got=str(x))
    return (ArrayType((*x.shape, 2), PART[x.dtype]),)


def _type_as_complex(x: ArrayType) -> tuple[ArrayType]:
    if x.dtype not in WHOLE or x.shape[-1:] != (2,):
        raise errors.TypeMismatchError(
            "view_as_complex takes arrays of float32 or float64 whose last dimension is 2", got=str(x)
        )
    return (ArrayType(x.shape[:-1], WHOLE[x.dtype]),)


def _as_real(x: np.ndarray) -> np.ndarray:
    return np.stack([x.real, x.imag], -1)


def _as_complex(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view(WHOLE[x.dtype])[..., 0]


view_as_real_p: Primitive = primitive.register(
    Primitive(
        "view_as_real",
        Signature(((),), (("part",),)),
        {
            primitive.TYPE: _type_as_real,
            primitive.REFERENCE: _as_real,
            primitive.CASES: always(dtypes.COMPLEX, Case((Sample((3, 5)),), kind="exact")),
        },
    )
)

view_as_complex_p: Primitive = primitive.register(
    Primitive(
        "view_as_complex",
        Signature((("part",),), ((),)),
        {
            primitive.TYPE: _type_as_complex,
            primitive.REFERENCE: _as_complex,
            primitive.CASES: always(WHOLE, Case((Sample((3, 2)),), kind="exact")),
        },
    )
)


def view_as_real(x: Any) -> Value:  # Any: arrays, NumPy arrays and Python numbers
    """Real and imaginary part along a new last dimension of size 2; shares memory in compiled programs."""
    return trace.bind1(view_as_real_p, x)


def view_as_complex(x: Any) -> Value:  # Any: as above
    """The complex array whose parts lie along the last dimension of `x`, of size 2."""
    return trace.bind1(view_as_complex_p, x)
