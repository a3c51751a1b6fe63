"""Discrete Fourier transforms, under `jax.lax`'s names: one operation over the last one, two or three
dimensions.

A library computes it, as it does decompositions of matrices (`lax.linalg`); `python -m infini.backends --op
fft` shows the route. `numpy.fft` builds every other transform of it.
"""

from __future__ import annotations

import enum
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.ir import ArrayType, Attrs
from infini.core.primitive import Primitive, Signature
from infini.core.value import Literal, Value
from infini.lax import cases, complex_views, elementwise as e, families, places
from infini.lax.cases import Case, Sample
from infini.lax.places import Factors

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers
MAX_RANK: Final = 3  # transformed dimensions of one operation
_COMPLEX_OF: Final = {**complex_views.WHOLE, **{dtype: dtype for dtype in dtypes.COMPLEX}}


class FftType(enum.IntEnum):
    """What `fft` computes, as `jax.lax.FftType`."""

    FFT = 0
    IFFT = 1
    RFFT = 2
    IRFFT = 3


_NAMES: Final = tuple(kind.name.lower() for kind in FftType)


# --- the operation ---------------------------------------------------------------------------


def _signature(*, fft_type: str, fft_lengths: tuple[int, ...]) -> Signature:
    letters = families.letters(len(fft_lengths), "n")
    halved = (*letters[:-1], "m1")
    has_half_in, has_half_out = fft_type == "irfft", fft_type == "rfft"
    return Signature((halved if has_half_in else letters,), (halved if has_half_out else letters,))


def _type(x: ArrayType, *, fft_type: str, fft_lengths: tuple[int, ...]) -> tuple[ArrayType, ...]:
    if 0 in fft_lengths:
        raise errors.ValueMismatchError("fft needs dimensions with elements", got=str(x))
    return (_result_type(x, fft_type, fft_lengths),)


def _result_type(x: ArrayType, fft_type: str, fft_lengths: tuple[int, ...]) -> ArrayType:
    rank = len(fft_lengths)
    name = f"fft_type={fft_type.upper()}"
    if not 0 < rank <= min(x.ndim, MAX_RANK):
        raise errors.ValueMismatchError(
            f"lax.fft transforms the last 1 to {MAX_RANK} dimensions of an array that has them",
            got=f"{x}, fft_lengths={fft_lengths}",
            fix="transform the other dimensions by a second call, after a transpose",
        )
    allowed = complex_views.WHOLE if fft_type == "rfft" else complex_views.PART
    if x.dtype not in allowed:
        raise errors.ValueMismatchError(
            f"lax.fft with {name} does not take this dtype",
            got=str(x),
            expected=" or ".join(sorted(dtype.name for dtype in allowed)),
            fix="convert the operand, for example with x.astype('float32')",
        )
    halved = (*fft_lengths[:-1], fft_lengths[-1] // 2 + 1 if fft_lengths[-1] else 0)
    needed = halved if fft_type == "irfft" else fft_lengths
    if x.shape[x.ndim - rank :] != needed:
        raise errors.ValueMismatchError(
            f"lax.fft with {name}: the last dimensions of the operand are not those of fft_lengths",
            got=f"{x}, fft_lengths={fft_lengths}",
            expected=f"last dimensions {list(needed)}",
            fix="cut or pad the operand, or use infini.numpy.fft, which does",
        )
    shape = (*x.shape[: x.ndim - rank], *(halved if fft_type == "rfft" else fft_lengths))
    dtype = complex_views.PART[x.dtype] if fft_type == "irfft" else _COMPLEX_OF[x.dtype]
    return ArrayType(shape, dtype)


def _reference(x: np.ndarray, *, fft_type: str, fft_lengths: tuple[int, ...]) -> np.ndarray:
    function: Callable[..., np.ndarray] = getattr(np.fft, f"{fft_type}n")
    return function(x, fft_lengths, tuple(range(-len(fft_lengths), 0)))


def _transpose(ct: Value, x: Value, *, fft_type: str, fft_lengths: tuple[int, ...]) -> tuple[Value]:
    # The matrices of FFT and IFFT are symmetric. Of a spectrum of real numbers only one half is kept, in
    # which all but the first and, of an even number, the middle element stand for two.
    size = math.prod(fft_lengths)
    if fft_type == "rfft":
        single = e.div(e.conj(ct), _weights(fft_lengths[-1], ct.type))
        return (e.mul(_bind(single, "irfft", fft_lengths), float(size)),)
    if fft_type == "irfft":
        half = _bind(ct, "rfft", fft_lengths)
        return (e.conj(e.mul(half, e.div(_weights(fft_lengths[-1], half.type), float(size)))),)
    return (_bind(ct, fft_type, fft_lengths),)


def _weights(length: int, half: ArrayType) -> Value:
    """How many elements of a spectrum of `length` real numbers each element of a half of it stands for."""
    number = trace.bind1(primitive.by_name("iota"), shape=(length // 2 + 1,), dimension=0, dtype=dtypes.int32)
    is_double = e.bitwise_and(e.gt(number, 0), e.lt(number, (length + 1) // 2))
    weights = e.add(e.convert_element_type(is_double, half.dtype), 1.0)
    return families.broadcast_to(weights, half.shape)


def _bind(x: Value, fft_type: str, fft_lengths: tuple[int, ...]) -> Value:
    return trace.bind1(fft_p, x, fft_type=fft_type, fft_lengths=fft_lengths)


def _place(
    op: Primitive, in_types: Sequence[ArrayType], out_types: Sequence[ArrayType], attrs: Attrs
) -> Factors:
    """PLACE: loop dimensions only; every element of a spectrum is made of all elements."""
    signature = op.signature_for(attrs)
    assert signature is not None, "the operation has one"
    return places.by_signature(signature, in_types, out_types, frozenset(), "sum")


def _cost(types: Sequence[ArrayType], attrs: Attrs) -> float:
    """`5 n log2 n` operations for `n` complex numbers, half of them for real ones."""
    lengths = attrs["fft_lengths"]
    size = math.prod(lengths)
    count = math.prod(types[0].shape[: types[0].ndim - len(lengths)])
    each = 5.0 * size * math.log2(size)
    return count * each * (0.5 if attrs["fft_type"] in ("rfft", "irfft") else 1.0)


def _examples(dtype: np.dtype) -> tuple[Case, ...]:
    def case(fft_type: str, shape: tuple[int, ...], *lengths: int) -> Case:
        return Case((Sample(shape),), {"fft_type": fft_type, "fft_lengths": lengths}, "program")

    if dtype not in dtypes.COMPLEX:
        return case("rfft", (2, 6), 6), case("rfft", (5,), 5), case("rfft", (3, 4), 3, 4)
    return (
        case("fft", (3, 6), 6),
        case("ifft", (5,), 5),
        case("irfft", (2, 4), 6),
        case("irfft", (3,), 5),
        case("fft", (2, 3, 4), 2, 3, 4),
        case("irfft", (3, 3), 3, 4),
    )


fft_p: Primitive = primitive.register(
    Primitive(
        "fft",
        _signature,
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: _reference,
            primitive.JVP: families.linear_jvp("fft"),
            primitive.TRANSPOSE: _transpose,
            primitive.PLACE: _place,
            primitive.COST: _cost,
            primitive.CASES: cases.Cases(frozenset(_COMPLEX_OF), _examples),
        },
    )
)


# --- the function ----------------------------------------------------------------------------


def fft(x: ArrayLike, fft_type: FftType | str, fft_lengths: Sequence[int]) -> Value:
    """The discrete Fourier transform over the last dimensions.

    Args:
        x: operand (..., *fft_lengths); for IRFFT the last dimension is `fft_lengths[-1] // 2 + 1`. Integers
            become floats, and real numbers complex ones unless the transform is RFFT.
        fft_type: `FftType.FFT`, `IFFT`, `RFFT` or `IRFFT`, or its name. RFFT takes real numbers and gives the
            first half of their spectrum, IRFFT is its inverse. Inverses divide by the number of elements.
        fft_lengths: sizes of the transformed dimensions, at most three; with none the operand is only
            converted.

    Returns:
        The transform: complex, real for IRFFT.

    Raises:
        ValueMismatchError: sizes that the operand does not have, an unknown name, or a dtype that the
            transform does not take.
        TypeMismatchError: `fft_type` is neither an `FftType` nor a text.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import lax
        >>> lax.fft(inp.array([1.0, 2.0, 3.0, 4.0]), lax.FftType.RFFT, (4,))
        Array([10.+0.j, -2.+2.j, -2.+0.j], dtype=complex64)
    """
    kind = _kind(fft_type)
    lengths = tuple(operator.index(n) for n in fft_lengths)
    given = trace.as_value(x)
    value = trace.to_array(given) if isinstance(given, Literal) else given
    if kind == "rfft" and value.dtype in dtypes.COMPLEX:
        raise errors.ValueMismatchError(
            "lax.fft with fft_type=RFFT takes real numbers only",
            got=str(value.type),
            fix="use fft_type=FFT, or take the real part",
        )
    value = _converted(value, is_real=kind == "rfft")
    if not lengths:
        return value
    if kind == "rfft" and lengths[-1] == 0:
        raise errors.ValueMismatchError(
            "lax.fft with fft_type=RFFT needs numbers along the last dimension", got=str(value.type)
        )
    if 0 in lengths:
        return families.zeros(_result_type(value.type, kind, lengths))
    return _bind(value, kind, lengths)


def _kind(fft_type: object) -> str:
    if isinstance(fft_type, FftType):
        return fft_type.name.lower()
    if not isinstance(fft_type, str):
        raise errors.TypeMismatchError(
            "this is no kind of Fourier transform", got=repr(fft_type), expected="an FftType or its name"
        )
    name = fft_type.lower()
    if name not in _NAMES or fft_type not in (name, name.upper()):
        raise errors.ValueMismatchError(
            "there is no Fourier transform of this name", got=repr(fft_type), expected=", ".join(_NAMES)
        )
    return name


def _converted(x: Value, *, is_real: bool) -> Value:
    """Integers as floats; complex unless the transform takes real numbers."""
    wide = x.dtype in (dtypes.int64, dtypes.uint64)
    dtype = x.dtype if dtypes.is_inexact(x.dtype) else dtypes.float64 if wide else dtypes.float32
    if not is_real:
        dtype = _COMPLEX_OF.get(dtype, dtypes.complex64)
    return e.convert_element_type(x, dtype)
