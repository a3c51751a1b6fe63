"""Complex numbers from their parts, and parts of complex numbers.

Derivatives follow the convention that a linear map is transposed without conjugation.
"""

from __future__ import annotations

import numpy as np

from infini.core import dtypes, primitive
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import families, places
from infini.lax.cases import Case, Sample, always
from infini.lax.elementwise import terms as t
from infini.lax.elementwise.terms import ArrayLike
from infini.lax.families import elementwise, is_linear

PARTS = frozenset({dtypes.float32, dtypes.float64})  # dtypes that complex numbers have parts of
_COMPLEX_OF: dict[np.dtype, np.dtype] = {dtypes.float32: dtypes.complex64, dtypes.float64: dtypes.complex128}
_PART_OF: dict[np.dtype, np.dtype] = {c: part for part, c in _COMPLEX_OF.items()}


def part_dtype(x: ArrayType, **_: object) -> np.dtype:
    """Dtype of the parts of a complex dtype; other dtypes as they are."""
    return _PART_OF.get(x.dtype, x.dtype)


def complex_dtype(x: ArrayType, *others: ArrayType, **_: object) -> np.dtype:
    """The complex dtype that has parts of this one."""
    families.same_dtype("complex")(x, *others)
    return _COMPLEX_OF.get(x.dtype, x.dtype)


real_p: Primitive = elementwise(
    "real",
    t.COMPLEX,
    np.real,
    dtype=part_dtype,
    jvp=(lambda g, *_: t.real(g),),
    transpose=lambda ct, x: (t.complex_(ct, families.zeros(ct.type)),),
)


def real(x: ArrayLike) -> Value:
    """Real part of complex numbers."""
    return t.unary(real_p, x)


imag_p: Primitive = elementwise(
    "imag",
    t.COMPLEX,
    np.imag,
    dtype=part_dtype,
    jvp=(lambda g, *_: t.imag(g),),
    transpose=lambda ct, x: (t.complex_(families.zeros(ct.type), t.neg(ct)),),
)


def imag(x: ArrayLike) -> Value:
    """Imaginary part of complex numbers."""
    return t.unary(imag_p, x)


def _reference_complex(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    result = np.empty(np.broadcast_shapes(x.shape, y.shape), _COMPLEX_OF[x.dtype])
    result.real, result.imag = x, y  # x + 1j * y would make NaN of infinities
    return result


complex_p: Primitive = elementwise(
    "complex",
    PARTS,
    _reference_complex,
    num_operands=2,
    dtype=complex_dtype,
    cases=always(PARTS, Case((Sample((3, 7)), Sample((3, 7))), kind="exact", is_smooth=False)),
    jvp=(
        lambda g, *_: t.complex_(g, families.zeros(g.type)),
        lambda g, *_: t.complex_(families.zeros(g.type), g),
    ),
    transpose=lambda ct, x, y: (
        t.real(ct) if is_linear(x) else None,
        t.neg(t.imag(ct)) if is_linear(y) else None,
    ),
    extra={primitive.LINEAR: places.together(0, 1)},
)


def complex(x: ArrayLike, y: ArrayLike) -> Value:
    """Complex numbers with real parts `x` and imaginary parts `y`, float32 or float64."""
    return t.binary(complex_p, x, y)


conj_p: Primitive = elementwise(
    "conj",
    t.COMPLEX | PARTS,
    lambda x: np.conj(x).astype(_COMPLEX_OF.get(x.dtype, x.dtype)),
    dtype=complex_dtype,
    cases=always(t.COMPLEX | PARTS, Case((Sample((3, 7)),), kind="exact", is_smooth=False)),
    jvp=(lambda g, *_: t.conj(g),),
    transpose=lambda ct, x: (t.conj(ct) if x.dtype in t.COMPLEX else t.real(ct),),
)


def conj(x: ArrayLike) -> Value:
    """Complex conjugate; real numbers become complex."""
    return t.unary(conj_p, x)
