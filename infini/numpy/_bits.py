"""The bits of an array read as another dtype, as `numpy.ndarray.view` does: the width of an element changes
the size of the last dimension, where `lax.bitcast_convert_type` adds or takes a dimension.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from infini.core import dtypes, errors, ir
from infini.core.value import Value
from infini.lax import elementwise as e, view as view_
from infini.numpy._promotion import with_weak

# What the dtypes consist of whose bits no operation reads.
_PARTS: Final = {
    dtypes.bool_: dtypes.uint8,
    dtypes.complex64: dtypes.float32,
    dtypes.complex128: dtypes.float64,
}


def view(x: Value, dtype: np.dtype) -> Value:
    """`x` read as `dtype`; booleans are bytes, and every byte that is not 0 is true.

    Raises:
        ValueMismatchError: the widths differ and `x` has no dimension, or its last one does not hold whole
            elements.
    """
    if x.dtype == dtype:
        return with_weak(x, False)
    shape = _shape(x, dtype)
    parts, part_dtype = _parts(x), _PARTS.get(dtype, dtype)
    num_parts = part_dtype.itemsize // parts.dtype.itemsize
    if num_parts > 1:  # a wider dtype takes a last dimension of the parts of an element
        pair = (2,) if dtype in dtypes.COMPLEX else ()
        parts = view_.reshape(parts, (*shape, *pair, num_parts))
    bits = e.bitcast_convert_type(parts, part_dtype)
    if dtype == dtypes.bool_:
        return view_.reshape(e.convert_element_type(bits, dtypes.bool_), shape)
    if dtype not in dtypes.COMPLEX:
        return view_.reshape(bits, shape)
    pairs = view_.reshape(bits, (*shape, 2))
    real, imag = (view_.slice(pairs, (0,) * len(shape) + (n,), (*shape, n + 1)) for n in range(2))
    return view_.reshape(e.complex(real, imag), shape)


def _parts(x: Value) -> Value:
    if x.dtype == dtypes.bool_:
        return e.convert_element_type(x, dtypes.uint8)
    if x.dtype in dtypes.COMPLEX:
        return view_.stack([e.real(x), e.imag(x)], x.ndim)
    return x


def _shape(x: Value, dtype: np.dtype) -> ir.Shape:
    """Shape of the result."""
    if x.dtype.itemsize == dtype.itemsize:
        return x.shape
    if not x.shape or x.shape[-1] * x.dtype.itemsize % dtype.itemsize:
        raise errors.ValueMismatchError(
            f"the last dimension does not hold whole elements of {dtype.name}",
            got=str(x.type),
            expected="a dtype of the same width, or a last dimension of that many bytes",
        )
    return (*x.shape[:-1], x.shape[-1] * x.dtype.itemsize // dtype.itemsize)
