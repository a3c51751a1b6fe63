"""Operands of `infini.numpy`: which values are accepted, and their common dtype by JAX's lattice, weak
types included.

Python numbers stay Python numbers until their dtype is known, so `uint32_array & 0xFFFFFFFF` fits and
`bf16_array * 0.1` is rounded once. Everything here returns values of one dtype whose weak flags make the
result weak exactly when JAX's is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.value import Literal, Value
from infini.lax import elementwise, families

ArrayLike: TypeAlias = Any  # Any: arrays, tracers, NumPy arrays and Python numbers
DTypeLike: TypeAlias = (
    Any  # Any: a dtype, its name, a scalar type of `infini.numpy` or NumPy, or a Python type
)
Axis: TypeAlias = int | Sequence[int] | None

_PYTHON_SCALARS: Final = {
    bool: (dtypes.bool_, False),
    int: (dtypes.int32, True),
    float: (dtypes.float32, True),
    complex: (dtypes.complex64, True),
}
_FLOAT_OF: Final = {dtypes.int64: dtypes.float64, dtypes.uint64: dtypes.float64}


def as_value(name: str, x: ArrayLike) -> Value:
    """One operand of the function `name` as an array or tracer; host data become arrays on the default
    device.

    Raises:
        TypeMismatchError: `x` is neither an array nor a number; lists need `asarray` first, as in JAX.
    """
    if isinstance(x, Value):
        return x
    accepted = (
        isinstance(x, (np.ndarray, np.generic))
        or type(x) in _PYTHON_SCALARS
        or hasattr(x, "__infini_array__")
    )
    if not accepted:
        raise errors.TypeMismatchError(
            f"{name} needs arrays or numbers",
            got=f"an argument of type {type(x).__name__}",
            expected="an infini or NumPy array, or a Python number",
            fix="convert it with infini.numpy.asarray(...)",
        )
    value = trace.as_value(x)
    return trace.to_array(value) if isinstance(value, Literal) else value


def operands(name: str, *args: ArrayLike) -> list[Value]:
    """Operands converted to their common dtype."""
    kept = [_keep_host(name, x) for x in args]
    dtype, weak = dtypes.promote(tuple(map(_kind, kept)))
    return [convert(x, dtype, weak) for x in kept]


def numeric_operands(name: str, *args: ArrayLike) -> list[Value]:
    """As `operands`; booleans become int32."""
    kept = [_keep_host(name, x) for x in args]
    dtype, weak = dtypes.promote(tuple(map(_kind, kept)))
    return [convert(x, dtypes.int32 if dtype == dtypes.bool_ else dtype, weak) for x in kept]


def inexact_operands(name: str, *args: ArrayLike) -> list[Value]:
    """As `operands`; booleans and integers become floats: float32, or float64 when they have 64 bits."""
    kept = [_keep_host(name, x) for x in args]
    dtype, weak = dtypes.promote(tuple(map(_kind, kept)))
    return [convert(x, to_inexact(dtype), weak) for x in kept]


def to_inexact(dtype: np.dtype) -> np.dtype:
    """The floating dtype that functions such as `sqrt` compute `dtype` in."""
    return dtype if dtypes.is_inexact(dtype) else _FLOAT_OF.get(dtype, dtypes.float32)


def convert(x: ArrayLike, dtype: np.dtype, weak: bool = False) -> Value:
    """`x` in another dtype and with this weak flag, without an equation when the dtype is the same.

    Raises:
        OutOfRangeError: a Python integer does not fit.
    """
    if type(x) in _PYTHON_SCALARS:
        return Literal(_scalar(x, dtype), weak=weak)
    value = trace.as_value(x)
    if isinstance(value, Literal):
        return (
            value
            if value.dtype == dtype and value.weak == weak
            else Literal(_cast(value.host, dtype), weak=weak)
        )
    if value.dtype != dtype:
        value = trace.bind1(elementwise.convert_element_type_p, value, new_dtype=dtype)
    return with_weak(value, weak)


def _cast(host: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype in dtypes.INTEGERS and host.dtype in dtypes.FLOATS:  # as programs do, which NumPy leaves open
        reference: Callable[..., np.ndarray] = elementwise.convert_element_type_p.rules[primitive.REFERENCE]
        return reference(host, new_dtype=dtype)
    return host.astype(dtype)


def with_weak(x: Value, weak: bool) -> Value:
    """The same value with this weak flag."""
    if x.weak == weak:
        return x
    if isinstance(x, Literal):
        return Literal(x.host, weak=weak)
    return x.with_weak(weak)


def constant(number: complex, dtype: np.dtype, shape: Sequence[int], weak: bool = False) -> Value:
    """An array of one number, also where it has no dimensions."""
    result = families.broadcast_to(Literal(_scalar(number, dtype), weak=weak), tuple(shape))
    return trace.to_array(result) if isinstance(result, Literal) else result


def result_type(*args: Any) -> np.dtype:  # Any: values, Python numbers, or dtypes
    """The dtype that arguments promote to, as `jax.numpy.result_type`.

    Args:
        *args: arrays, Python numbers (weak), or dtypes and their names.

    Example:
        >>> import infini.numpy as inp
        >>> inp.result_type(inp.bfloat16, 2.0)
        dtype(bfloat16)
    """
    if not args:
        raise errors.ValueMismatchError("result_type of nothing", expected="at least one array or dtype")
    dtype, _ = dtypes.promote(
        tuple(
            _kind(x) if _is_operand(x) else (dtypes.canonical(float if x is None else x), False) for x in args
        )
    )
    return dtype


def promote_types(a: DTypeLike, b: DTypeLike) -> np.dtype:
    """The dtype that two dtypes promote to; the Python types `int`, `float` and `complex` are weak."""
    weak_types = (int, float, complex)
    dtype, _ = dtypes.promote(tuple((dtypes.canonical(t), t in weak_types) for t in (a, b)))
    return dtype


def _is_operand(x: object) -> bool:
    return isinstance(x, (Value, np.ndarray, np.generic)) or type(x) in _PYTHON_SCALARS


def _keep_host(name: str, x: ArrayLike) -> ArrayLike:
    """Python numbers as they are, other host data as literals, which need no buffer."""
    if isinstance(x, Value) or type(x) in _PYTHON_SCALARS:
        return x
    return trace.as_value(x) if isinstance(x, (np.ndarray, np.generic)) else as_value(name, x)


def _kind(x: ArrayLike) -> tuple[np.dtype, bool]:
    found = _PYTHON_SCALARS.get(type(x))
    if found is not None:
        return found
    value = trace.as_value(x)
    return value.dtype, value.weak


def _scalar(x: complex, dtype: np.dtype) -> np.ndarray:
    if type(x) is int and dtype in dtypes.INTEGERS:
        bounds = np.iinfo(dtype)
        if not bounds.min <= x <= bounds.max:
            raise errors.OutOfRangeError(
                f"a Python integer does not fit {dtype.name}",
                got=str(x),
                expected=f"{bounds.min} to {bounds.max}",
                fix="convert the array it meets to a wider dtype, or pass dtype= explicitly",
            )
    return _cast(np.asarray(x), dtype)
