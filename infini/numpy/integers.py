"""Divisors, multiples and bits of integers, with NumPy's names."""

from __future__ import annotations

from infini.core import dtypes, errors, trace
from infini.core.value import Value
from infini.lax import elementwise as e, loops, reduction
from infini.lax.families import bind_scalars, broadcast_to
from infini.numpy import _axes, _eager
from infini.numpy._promotion import ArrayLike, as_value, convert, operands, with_weak


def gcd(x1: ArrayLike, x2: ArrayLike) -> Value:
    """Greatest common divisor of each pair, never negative, as `numpy.gcd`; with 0 it is the other number.

    Raises:
        TypeMismatchError: an operand is not of integers.

    Example:
        >>> import infini.numpy as inp
        >>> inp.gcd(12, inp.asarray([8, 9, 0]))
        Array([ 4,  3, 12], dtype=int32)
    """
    x, y = _integers("gcd", x1, x2)
    return with_weak(_eager.call(_gcd, (), (x, y)), x.weak)


def lcm(x1: ArrayLike, x2: ArrayLike) -> Value:
    """Least common multiple of each pair, never negative, as `numpy.lcm`; with 0 it is 0.

    Raises:
        TypeMismatchError: an operand is not of integers.
    """
    x, y = _integers("lcm", x1, x2)
    return with_weak(_eager.call(_lcm, (), (x, y)), x.weak)


def bitwise_count(x: ArrayLike, /) -> Value:
    """Number of set bits of the absolute value, uint8, as `numpy.bitwise_count`.

    Raises:
        TypeMismatchError: `x` is not of integers or booleans.
    """
    value = as_value("bitwise_count", x)
    if value.dtype == dtypes.bool_:
        return convert(value, dtypes.uint8)
    _require("bitwise_count", value)
    if value.dtype in dtypes.SIGNED:
        value = trace.bind1(e.abs_p, value)
    return convert(trace.bind1(e.population_count_p, value), dtypes.uint8)


def _gcd(x: Value, y: Value) -> Value:
    shape = _axes.broadcast("gcd", x.shape, y.shape)
    pair = tuple(broadcast_to(_size(v), shape) for v in (x, y))

    def is_unfinished(state: tuple[Value, Value]) -> Value:
        return reduction.reduce_or(bind_scalars(e.ne_p, state[1], 0), tuple(range(len(shape))))

    def step(state: tuple[Value, Value]) -> tuple[Value, Value]:
        large, small = state
        is_done = bind_scalars(e.eq_p, small, 0)
        divisor = trace.bind1(e.select_n_p, is_done, small, convert(1, small.dtype))
        rest = trace.bind1(e.rem_p, large, divisor)
        nothing = bind_scalars(e.mul_p, small, 0)
        return (
            trace.bind1(e.select_n_p, is_done, small, large),
            trace.bind1(e.select_n_p, is_done, rest, nothing),
        )

    result: Value = loops.while_loop(is_unfinished, step, pair)[0]
    return result


def _lcm(x: Value, y: Value) -> Value:
    divisor = _gcd(x, y)
    divisor = bind_scalars(e.max_p, divisor, 1)  # both are 0 where it is 0
    return trace.bind1(e.mul_p, _size(x), trace.bind1(e.div_p, _size(y), divisor))


def _size(x: Value) -> Value:
    return with_weak(x if x.dtype in dtypes.UNSIGNED else trace.bind1(e.abs_p, x), False)


def _integers(name: str, *xs: ArrayLike) -> list[Value]:
    values = operands(name, *xs)
    _require(name, values[0])
    return values


def _require(name: str, x: Value) -> None:
    if x.dtype not in dtypes.INTEGERS:
        raise errors.TypeMismatchError(
            f"{name} needs integers", got=str(x.type), fix="convert with .astype('int32')"
        )
