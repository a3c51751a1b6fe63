"""What operations accept: `Value` is the base of arrays, tracers and host literals. `weak` is a flag of
values, never of types.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from infini.core import config, dtypes, errors, ir

if TYPE_CHECKING:
    Unary = Callable[["Value"], "Value"]
    Binary = Callable[["Value", Any], "Value"]  # Any: whatever goes with an array
    Method = Callable[..., "Value"]


class Value:
    """Anything with an `ArrayType` and a weak flag. Operators and methods are installed by `infini.numpy`."""

    __slots__ = ("type", "weak")
    # NumPy leaves `ndarray + Value` to us, and still takes a Value in its own functions through `__array__`.
    __array_priority__ = 1000

    type: ir.ArrayType
    weak: bool

    def with_weak(self, weak: bool) -> Value:
        """The same value with another weak flag."""
        raise NotImplementedError("arrays, tracers and literals have their own")

    @property
    def shape(self) -> ir.Shape:
        """Size of each dimension."""
        return self.type.shape

    @property
    def dtype(self) -> np.dtype:
        """Type of the elements."""
        return self.type.dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.type.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.type.size

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.type.nbytes

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.type.dtype.itemsize

    @property
    def aval(self) -> ir.ArrayType:
        """Shape and dtype without contents, under JAX's name."""
        return self.type

    @property
    def weak_type(self) -> bool:
        """Whether the dtype came from a Python scalar and yields to others."""
        return self.weak

    if TYPE_CHECKING:
        # What `infini.numpy._methods` installs; its test compares the two lists.
        __add__: Binary
        __radd__: Binary
        __sub__: Binary
        __rsub__: Binary
        __mul__: Binary
        __rmul__: Binary
        __truediv__: Binary
        __rtruediv__: Binary
        __floordiv__: Binary
        __rfloordiv__: Binary
        __mod__: Binary
        __rmod__: Binary
        __divmod__: Callable[[Value, Any], tuple[Value, Value]]
        __rdivmod__: Callable[[Value, Any], tuple[Value, Value]]
        __pow__: Binary
        __rpow__: Binary
        __matmul__: Binary
        __rmatmul__: Binary
        __and__: Binary
        __rand__: Binary
        __or__: Binary
        __ror__: Binary
        __xor__: Binary
        __rxor__: Binary
        __lshift__: Binary
        __rlshift__: Binary
        __rshift__: Binary
        __rrshift__: Binary
        __eq__: Binary  # type: ignore[assignment]  # elementwise, where object's gives a bool
        __ne__: Binary  # type: ignore[assignment]  # as __eq__
        __lt__: Binary
        __le__: Binary
        __gt__: Binary
        __ge__: Binary
        __neg__: Unary
        __pos__: Unary
        __abs__: Unary
        __invert__: Unary
        __round__: Method
        __getitem__: Binary
        __setitem__: Callable[[Value, Any, Any], None]
        __len__: Callable[[Value], int]
        __iter__: Callable[[Value], Iterator[Value]]
        __contains__: Callable[[Value, Any], bool]

        def __bool__(self) -> bool: ...
        def __int__(self) -> int: ...
        def __float__(self) -> float: ...
        def __index__(self) -> int: ...

        all: Method
        any: Method
        argmax: Method
        argmin: Method
        argpartition: Method
        argsort: Method
        astype: Method
        choose: Method
        clip: Method
        compress: Method
        conj: Method
        conjugate: Method
        copy: Method
        cumsum: Method
        cumprod: Method
        diagonal: Method
        dot: Method
        flatten: Method
        max: Method
        mean: Method
        min: Method
        nonzero: Callable[..., tuple[Value, ...]]
        prod: Method
        ptp: Method
        ravel: Method
        repeat: Method
        reshape: Method
        round: Method
        searchsorted: Method
        sort: Method
        squeeze: Method
        std: Method
        sum: Method
        swapaxes: Method
        take: Method
        trace: Method
        transpose: Method
        view: Method
        item: Callable[..., Any]  # a Python number
        tolist: Callable[..., Any]  # a Python number or nested lists
        T: Value
        mT: Value  # noqa: N815  # NumPy's name
        at: Any  # a helper that infini.numpy defines
        real: Value
        imag: Value


class Literal(Value):
    """Host data on its way into a program: a Python scalar (weak) or a NumPy array."""

    __slots__ = ("host",)

    def __init__(self, host: np.ndarray, *, weak: bool) -> None:
        self.host = host
        self.type = ir.ArrayType(tuple(host.shape), host.dtype)
        self.weak = weak

    def with_weak(self, weak: bool) -> Literal:
        """The same data with another weak flag."""
        return Literal(self.host, weak=weak)

    def __repr__(self) -> str:
        return f"Literal({self.host!r}, weak={self.weak})"


_DEFAULTS = {
    dtypes.int64: dtypes.int32,
    dtypes.uint64: dtypes.uint32,
    dtypes.float64: dtypes.float32,
    dtypes.complex128: dtypes.complex64,
}


def literal(data: object, dtype: np.dtype | None = None) -> Literal:
    """Host data as a literal, by the rules of design 4a.2: 64 bits become the 32-bit default unless
    `dtype` is given.

    Raises:
        TypeMismatchError: `data` is not numeric.
        OutOfRangeError: an integer does not fit.
    """
    from_python = type(data) in (bool, int, float, complex)
    if from_python and dtype is None:
        host = np.asarray(data, dtypes.canonical(type(data)) if type(data) is not int else None)
    else:
        host = np.asarray(data)
        if host.dtype not in dtypes.ALL and host.dtype.newbyteorder("=") not in dtypes.ALL:
            raise errors.TypeMismatchError(
                "this is not data infini computes with",
                got=f"{type(data).__name__} with dtype {host.dtype}",
                expected="numbers, NumPy arrays or infini arrays",
            )
        host = host.astype(host.dtype.newbyteorder("="), copy=False)
    target = (
        dtype
        if dtype is not None
        else narrow(host.dtype)
        if not from_python
        else dtypes.canonical(type(data))
    )
    if target != host.dtype:
        if type(data) in (float, list, tuple) and host.dtype == dtypes.float64:
            _check_whole(host, target)
        _check_fits(host, target)
        with np.errstate(over="ignore", invalid="ignore"):
            host = host.astype(target)
    return Literal(host, weak=from_python and dtype is None and type(data) is not bool)


def number_in(dtype: np.dtype, number: complex, what: str) -> np.ndarray:
    """A Python number in the dtype that something has, as an array without dimensions.

    Args:
        dtype: which.
        number: rounded as that dtype rounds; whole where it is one of integers.
        what: has the dtype, for the message.

    Raises:
        OutOfRangeError: the dtype has no such number: a fraction among integers, one beyond the largest, a
            complex one among real ones.
    """
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a part that is lost
        found = np.asarray(number).astype(dtype)
    lost = (
        found.item() != number
        if dtype in dtypes.INTEGERS or dtype == dtypes.bool_
        else (
            (isinstance(number, complex) and number.imag != 0 and dtype not in dtypes.COMPLEX)
            or bool(np.isfinite(number)) != bool(np.isfinite(found.astype(np.complex128)))
        )
    )
    if lost:
        raise errors.OutOfRangeError(
            f"{what} is of {dtype.name}, which has no such number", got=str(number), fix="give another dtype="
        )
    return found


def narrow(dtype: np.dtype) -> np.dtype:
    """The dtype that host data of `dtype` get: 64 bits become 32 unless the knob `host64` keeps them."""

    return dtype if config.get("host64") == "keep" else _DEFAULTS.get(dtype, dtype)


def _check_whole(host: np.ndarray, target: np.dtype) -> None:
    """Python floats that become integers are those of which Python's `int` makes an integer that fits."""
    if target not in dtypes.INTEGERS or not host.size:
        return
    if np.isnan(host).any():
        raise errors.ValueMismatchError(
            f"NaN does not convert to {target.name}", fix="leave out dtype=, or replace it by a number"
        )
    bounds = np.iinfo(target)
    whole = np.trunc(host)
    outside = host[(whole < float(bounds.min)) | (whole >= float(bounds.max) + 1.0)]
    if outside.size:
        raise errors.OutOfRangeError(
            f"a number does not fit {target.name}",
            got=str(outside[0]),
            expected=f"{bounds.min} to {bounds.max}",
            fix="leave out dtype=, or give a wider one",
        )


def _check_fits(host: np.ndarray, target: np.dtype) -> None:
    # A Python integer beyond 64 bits is an object for NumPy.
    is_integer = host.dtype in dtypes.INTEGERS or host.dtype == object
    if is_integer and target in dtypes.INTEGERS and host.size:
        bounds = np.iinfo(target)
        low, high = int(host.min()), int(host.max())
        if low < bounds.min or high > bounds.max:
            raise errors.OutOfRangeError(
                f"an integer does not fit {target.name}",
                got=str(low if low < bounds.min else high),
                expected=f"{bounds.min} to {bounds.max}",
                fix="pass dtype= explicitly, for example infini.numpy.asarray(x, dtype='int64')",
            )
