"""The table of operators, methods and properties of arrays. `import infini` installs it on
`core.value.Value`.

Arrays and tracers share it, so `x @ y` means the same inside and outside a transformation. A test pins the
table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Final

import numpy as np

from infini.core import backend, dtypes, errors
from infini.core.value import Value
from infini.numpy import (
    _bits,
    choosing,
    comparison,
    complex_numbers,
    creation,
    cumulative,
    elementwise,
    indexing,
    manipulation,
    ordering,
    positions,
    products,
    rearranging,
    reductions,
    searching,
    updates,
)
from infini.numpy._promotion import ArrayLike, DTypeLike
from infini.numpy._repeated import repeated

Binary = Callable[[ArrayLike, ArrayLike], Any]  # Any: an array, or a pair for divmod


def _accepts(other: object) -> bool:
    return isinstance(other, (Value, int, float, complex, np.ndarray, np.generic)) or hasattr(
        other, "__infini_array__"
    )


def _operator(function: Binary) -> Callable[[Value, object], Any]:  # Any: as Binary
    def method(self: Value, other: object) -> Any:
        return function(self, other) if _accepts(other) else NotImplemented

    return method


def _reflected(function: Binary) -> Callable[[Value, object], Any]:  # Any: as Binary
    def method(self: Value, other: object) -> Any:
        return function(other, self) if _accepts(other) else NotImplemented

    return method


_matmul: Final = repeated()(products.matmul)


def _reshape(self: Value, *shape: Any, order: str = "C") -> Value:  # Any: sizes, or one sequence of sizes
    """`reshape` with the sizes as one sequence or as arguments."""
    return manipulation.reshape(self, shape[0] if len(shape) == 1 else shape, order)


def _transpose(self: Value, *axes: Any) -> Value:  # Any: axes, or one sequence of axes, or None
    """`transpose` with the axes as one sequence or as arguments."""
    if len(axes) == 1 and not isinstance(axes[0], int):
        return manipulation.transpose(self, axes[0])
    return manipulation.transpose(self, axes or None)


def _matrix_transpose(self: Value) -> Value:
    """The last two dimensions swapped."""
    if self.ndim < 2:
        raise errors.ValueMismatchError("mT needs at least two dimensions", got=str(self.type))
    return manipulation.matrix_transpose(self)


def _ravel(self: Value, order: str = "C") -> Value:
    """The elements in one dimension."""
    return manipulation.ravel(self, order)


def _compress(
    self: Value,
    condition: ArrayLike,
    axis: int | None = None,
    *,
    out: None = None,
    size: int | None = None,
    fill_value: ArrayLike = 0,
) -> Value:
    """The slices along an axis where a condition holds."""
    return choosing.compress(condition, self, axis, out=out, size=size, fill_value=fill_value)


def _copy(self: Value) -> Value:
    """A copy in a buffer of its own."""
    return creation.array(self, copy=True)


def _view(self: Value, dtype: DTypeLike | None = None) -> Value:
    """The same bits read as another dtype; one of another width changes the size of the last dimension."""
    return _bits.view(self, self.dtype if dtype is None else dtypes.canonical(dtype))


def _round(self: Value, ndigits: int | None = None) -> Value:
    """Python's `round`: to integers, unless a number of digits is given."""
    rounded = elementwise.round(self, ndigits or 0)
    return elementwise.astype(rounded, dtypes.int32) if ndigits is None else rounded


def _astype(
    self: Value, dtype: DTypeLike | None, copy: bool = False, device: backend.Device | None = None
) -> Value:
    """The array in another dtype, never weak."""
    return elementwise.astype(self, dtype)


def _at(self: Value) -> updates.IndexUpdateHelper:
    """`x.at[index].set(y)` and its kind: copies with other elements at an index."""
    return updates.IndexUpdateHelper(self)


def _len(self: Value) -> int:
    if self.ndim == 0:
        raise errors.TypeMismatchError("an array without dimensions has no length", got=str(self.type))
    return self.shape[0]


def _iterate(self: Value) -> Iterator[Value]:
    if self.ndim == 0:
        raise errors.TypeMismatchError(
            "an array without dimensions cannot be iterated over", got=str(self.type)
        )
    return (indexing.getitem(self, i) for i in range(self.shape[0]))


def _contains(self: Value, item: ArrayLike) -> bool:
    return bool(reductions.any(comparison.equal(self, item)))


def _array_namespace(self: Value, *, api_version: str | None = None) -> ModuleType:
    """The module of functions for this array, as the Array API standard."""
    if api_version is not None and api_version not in _API_VERSIONS:
        raise errors.ValueMismatchError(
            "this version of the Array API standard is not available",
            got=repr(api_version),
            expected=", ".join(_API_VERSIONS),
        )
    # This module belongs to the namespace, which imports it.
    return sys.modules[__package__]


_API_VERSIONS: Final = ("2022.12", "2023.12", "2024.12")


def _refuse_assignment(self: Value, index: Any, values: Any) -> None:  # Any: as in assignments
    raise errors.TypeMismatchError(
        "arrays cannot be changed",
        got=str(self.type),
        fix="use y = x.at[index].set(values), a copy with other elements",
    )


OPERATORS: Final[dict[str, Callable[..., Any]]] = {  # Any: as Binary
    "__add__": _operator(elementwise.add),
    "__radd__": _reflected(elementwise.add),
    "__sub__": _operator(elementwise.subtract),
    "__rsub__": _reflected(elementwise.subtract),
    "__mul__": _operator(elementwise.multiply),
    "__rmul__": _reflected(elementwise.multiply),
    "__truediv__": _operator(elementwise.true_divide),
    "__rtruediv__": _reflected(elementwise.true_divide),
    "__floordiv__": _operator(elementwise.floor_divide),
    "__rfloordiv__": _reflected(elementwise.floor_divide),
    "__mod__": _operator(elementwise.remainder),
    "__rmod__": _reflected(elementwise.remainder),
    "__divmod__": _operator(elementwise.divmod),
    "__rdivmod__": _reflected(elementwise.divmod),
    "__pow__": _operator(elementwise.power),
    "__rpow__": _reflected(elementwise.power),
    "__matmul__": _operator(_matmul),
    "__rmatmul__": _reflected(_matmul),
    "__and__": _operator(comparison.bitwise_and),
    "__rand__": _reflected(comparison.bitwise_and),
    "__or__": _operator(comparison.bitwise_or),
    "__ror__": _reflected(comparison.bitwise_or),
    "__xor__": _operator(comparison.bitwise_xor),
    "__rxor__": _reflected(comparison.bitwise_xor),
    "__lshift__": _operator(comparison.left_shift),
    "__rlshift__": _reflected(comparison.left_shift),
    "__rshift__": _operator(comparison.right_shift),
    "__rrshift__": _reflected(comparison.right_shift),
    "__eq__": _operator(comparison.equal),
    "__ne__": _operator(comparison.not_equal),
    "__lt__": _operator(comparison.less),
    "__le__": _operator(comparison.less_equal),
    "__gt__": _operator(comparison.greater),
    "__ge__": _operator(comparison.greater_equal),
    "__neg__": elementwise.negative,
    "__pos__": elementwise.positive,
    "__abs__": elementwise.abs,
    "__invert__": comparison.bitwise_not,
    "__round__": _round,
    "__getitem__": indexing.getitem,
    "__setitem__": _refuse_assignment,
    "__len__": _len,
    "__iter__": _iterate,
    "__contains__": _contains,
    "__array_namespace__": _array_namespace,
}

METHODS: Final[dict[str, Callable[..., Any]]] = {  # Any: arrays, and lists of them
    "all": reductions.all,
    "any": reductions.any,
    "argmax": reductions.argmax,
    "argmin": reductions.argmin,
    "argpartition": ordering.argpartition,
    "argsort": ordering.argsort,
    "astype": _astype,
    "choose": choosing.choose,
    "clip": elementwise.clip,
    "compress": _compress,
    "conj": complex_numbers.conj,
    "conjugate": complex_numbers.conj,
    "copy": _copy,
    "cumsum": cumulative.cumsum,
    "cumprod": cumulative.cumprod,
    "diagonal": products.diagonal,
    "dot": products.dot,
    "flatten": _ravel,
    "max": reductions.max,
    "mean": reductions.mean,
    "min": reductions.min,
    "nonzero": positions.nonzero,
    "prod": reductions.prod,
    "ptp": reductions.ptp,
    "ravel": _ravel,
    "repeat": rearranging.repeat,
    "reshape": _reshape,
    "round": elementwise.round,
    "searchsorted": searching.searchsorted,
    "sort": ordering.sort,
    "squeeze": manipulation.squeeze,
    "std": reductions.std,
    "sum": reductions.sum,
    "swapaxes": manipulation.swapaxes,
    "take": indexing.take,
    "trace": products.trace,
    "transpose": _transpose,
    "var": reductions.var,
    "view": _view,
}

PROPERTIES: Final[dict[str, Callable[[Value], Any]]] = {  # Any: arrays and helpers
    "T": manipulation.transpose,
    "mT": _matrix_transpose,
    "at": _at,
    "real": complex_numbers.real,
    "imag": complex_numbers.imag,
}


def install() -> None:
    """Put the table on `Value`. Called once by `import infini`."""
    for name, method in (*OPERATORS.items(), *METHODS.items()):
        setattr(Value, name, method)
    for name, getter in PROPERTIES.items():
        setattr(Value, name, property(getter))
