"""Activations: functions of each element with JAX's names, and softmax and its relatives over an axis.
Integers become floats."""

from __future__ import annotations

import math
from typing import Literal

import infini.numpy as inp
from infini.core import dtypes, errors, trace
from infini.core.value import Value
from infini.lax import elementwise as e, families, view
from infini.lax.families import bind_scalars
from infini.numpy import _axes
from infini.numpy._promotion import (
    ArrayLike,
    Axis,
    DTypeLike,
    as_value,
    convert,
    inexact_operands,
    numeric_operands,
    to_inexact,
    with_weak,
)
from infini.scipy.sums import log_softmax as log_softmax, logsumexp as logsumexp, softmax as softmax
from infini.transforms import custom


def _float(name: str, x: ArrayLike) -> Value:
    (value,) = inexact_operands(name, x)
    return value


def _with_floats(name: str, x: ArrayLike) -> Value:
    """The operand as it meets Python floats: integers become weak ones."""
    value = as_value(name, x)
    if dtypes.is_inexact(value.dtype):
        return value
    return convert(value, to_inexact(value.dtype), weak=True)


def identity(x: ArrayLike) -> Value:
    """The same elements."""
    return as_value("identity", x)


def relu(x: ArrayLike) -> Value:
    """`max(x, 0)`; its derivative at 0 is 0."""
    (value,) = numeric_operands("relu", x)
    # A choice instead of a maximum: the derivative of a maximum splits ties in two.
    return trace.bind1(
        e.select_n_p, bind_scalars(e.le_p, value, 0), value, convert(0, value.dtype, value.weak)
    )


def relu6(x: ArrayLike) -> Value:
    """`min(max(x, 0), 6)`; its derivative at 0 and 6 is 0."""
    return _relu6(*numeric_operands("relu6", x))


@custom.custom_jvp
def _relu6(x: Value) -> Value:
    return inp.minimum(inp.maximum(x, 0), 6.0)


@_relu6.defjvp
def _relu6_slope(primals: tuple[Value], tangents: tuple[Value]) -> tuple[Value, Value]:
    (x,), (tangent,) = primals, tangents
    is_inside = inp.logical_and(inp.greater(x, 0), inp.less(x, 6))
    return _relu6(x), inp.where(is_inside, tangent, 0)


def leaky_relu(x: ArrayLike, negative_slope: ArrayLike = 1e-2) -> Value:
    """`x` where it is positive, `negative_slope * x` elsewhere."""
    value = _with_floats("leaky_relu", x)
    return inp.where(inp.greater_equal(value, 0), value, inp.multiply(negative_slope, value))


def elu(x: ArrayLike, alpha: ArrayLike = 1.0) -> Value:
    """`x` where it is positive, `alpha * (exp(x) - 1)` elsewhere."""
    value = _with_floats("elu", x)
    is_positive = bind_scalars(e.gt_p, value, 0)
    # The branch that is not taken must not overflow, or its derivative would be NaN.
    safe = inp.where(is_positive, 0.0, value)
    return inp.where(is_positive, value, inp.multiply(alpha, inp.expm1(safe)))


def selu(x: ArrayLike) -> Value:
    """Scaled `elu` that keeps mean 0 and variance 1. Source: Klambauer et al.,
    https://arxiv.org/abs/1706.02515"""
    return inp.multiply(1.0507009873554804934193349852946, elu(x, 1.6732632423543772848170429916717))


def celu(x: ArrayLike, alpha: ArrayLike = 1.0) -> Value:
    """`max(x, 0) + min(0, alpha * (exp(x / alpha) - 1))`."""
    value = _with_floats("celu", x)
    low = inp.multiply(alpha, inp.expm1(inp.true_divide(inp.minimum(value, 0.0), alpha)))
    return inp.add(inp.maximum(value, 0.0), low)


def sigmoid(x: ArrayLike) -> Value:
    """`1 / (1 + exp(-x))`."""
    return trace.bind1(e.logistic_p, _float("sigmoid", x))


def silu(x: ArrayLike) -> Value:
    """`x * sigmoid(x)`, also called swish."""
    value = _float("silu", x)
    return trace.bind1(e.mul_p, value, trace.bind1(e.logistic_p, value))


swish = silu


def mish(x: ArrayLike) -> Value:
    """`x * tanh(softplus(x))`."""
    value = _float("mish", x)
    return trace.bind1(e.mul_p, value, trace.bind1(e.tanh_p, softplus(value)))


def tanh(x: ArrayLike) -> Value:
    """Hyperbolic tangent."""
    return inp.tanh(x)


def soft_sign(x: ArrayLike) -> Value:
    """`x / (|x| + 1)`."""
    value = _float("soft_sign", x)
    return trace.bind1(e.div_p, value, bind_scalars(e.add_p, trace.bind1(e.abs_p, value), 1))


def softplus(x: ArrayLike) -> Value:
    """`log(1 + exp(x))` without overflow."""
    return _softplus(_float("softplus", x))


@custom.custom_jvp
def _softplus(x: Value) -> Value:
    return inp.logaddexp(x, 0.0)


@_softplus.defjvp
def _softplus_slope(primals: tuple[Value], tangents: tuple[Value]) -> tuple[Value, Value]:
    (x,), (tangent,) = primals, tangents
    return _softplus(x), inp.multiply(tangent, trace.bind1(e.logistic_p, x))


def log_sigmoid(x: ArrayLike) -> Value:
    """`log(sigmoid(x))` without underflow."""
    return inp.negative(softplus(inp.negative(_float("log_sigmoid", x))))


def sparse_plus(x: ArrayLike) -> Value:
    """0 below -1, `x` above 1, and `(x + 1)**2 / 4` between them."""
    value = _with_floats("sparse_plus", x)
    between = inp.true_divide(inp.square(inp.add(value, 1.0)), 4)
    high = inp.where(inp.greater_equal(value, 1.0), value, between)
    return inp.where(inp.less_equal(value, -1.0), 0.0, high)


def sparse_sigmoid(x: ArrayLike) -> Value:
    """0 below -1, 1 above 1, and `(x + 1) / 2` between them: the derivative of `sparse_plus`."""
    half = inp.multiply(0.5, inp.add(_with_floats("sparse_sigmoid", x), 1.0))
    return inp.clip(half, 0.0, 1.0)


def log1mexp(x: ArrayLike) -> Value:
    """`log(1 - exp(-x))` of positive `x` without cancellation.

    Source: M. Mächler, "Accurately computing log(1 - exp(-|a|))", the vignette of Rmpfr.
    """
    return _log1mexp(_float("log1mexp", x))


@custom.custom_jvp
def _log1mexp(x: Value) -> Value:
    near = inp.log(inp.negative(inp.expm1(inp.negative(x))))
    far = inp.log1p(inp.negative(inp.exp(inp.negative(x))))
    return inp.where(inp.less(x, math.log(2.0)), near, far)


@_log1mexp.defjvp
def _log1mexp_slope(primals: tuple[Value], tangents: tuple[Value]) -> tuple[Value, Value]:
    (x,), (tangent,) = primals, tangents
    return _log1mexp(x), inp.true_divide(tangent, inp.expm1(x))


def squareplus(x: ArrayLike, b: ArrayLike = 4) -> Value:
    """`(x + sqrt(x**2 + b)) / 2`."""
    value = _float("squareplus", x)
    root = inp.sqrt(inp.add(inp.square(value), b))
    return inp.true_divide(inp.add(value, root), 2)


def gelu(x: ArrayLike, approximate: bool = True) -> Value:
    """`x` times the normal distribution function of `x`.

    Args:
        x: array.
        approximate: by tanh, within 1e-3 of the exact one; otherwise by erf. Source:
            https://arxiv.org/abs/1606.08415
    """
    value = with_weak(_float("gelu", x), False)
    if approximate:
        cubic = bind_scalars(e.mul_p, inp.power(value, 3), 0.044715)
        inner = bind_scalars(e.mul_p, trace.bind1(e.add_p, value, cubic), math.sqrt(2 / math.pi))
        grown = bind_scalars(e.add_p, trace.bind1(e.tanh_p, inner), 1.0)
    else:
        grown = bind_scalars(e.add_p, trace.bind1(e.erf_p, bind_scalars(e.mul_p, value, math.sqrt(0.5))), 1.0)
    return trace.bind1(e.mul_p, value, bind_scalars(e.mul_p, grown, 0.5))


def glu(x: ArrayLike, axis: int = -1) -> Value:
    """One half of an axis times the sigmoid of the other half.

    Raises:
        ValueMismatchError: the axis has an odd size.
    """
    value = _float("glu", x)
    place = _axes.one("glu", axis, value.ndim)
    size = value.shape[place]
    if size % 2:
        raise errors.ValueMismatchError("glu needs an axis of even size", got=f"{value.type}, axis {axis}")
    first, second = (
        view.slice_in_dim(value, start, start + size // 2, axis=place) for start in (0, size // 2)
    )
    return trace.bind1(e.mul_p, first, sigmoid(second))


def hard_tanh(x: ArrayLike) -> Value:
    """`x` limited to the range from -1 to 1; its derivative at -1 and 1 is 1. Integers stay integers."""
    (value,) = numeric_operands("hard_tanh", x)
    high = inp.where(inp.greater(value, 1), 1, value)
    return inp.where(inp.less(value, -1), -1, high)


def hard_sigmoid(x: ArrayLike) -> Value:
    """`relu6(x + 3) / 6`."""
    return inp.true_divide(relu6(inp.add(x, 3.0)), 6.0)


def hard_silu(x: ArrayLike) -> Value:
    """`x * hard_sigmoid(x)`."""
    value = _with_floats("hard_silu", x)
    return trace.bind1(e.mul_p, value, hard_sigmoid(value))


hard_swish = hard_silu


# --- over an axis -----------------------------------------------------------------------------


def logmeanexp(
    x: ArrayLike, axis: Axis = None, where: ArrayLike | None = None, keepdims: bool = False
) -> Value:
    """`log(mean(exp(x)))` over axes, without overflow."""
    value = _float("logmeanexp", x)
    total = logsumexp(value, axis, keepdims=keepdims, where=where)
    if where is None:
        number = math.prod(value.shape[d] for d in _axes.several("logmeanexp", axis, value.ndim))
        return bind_scalars(e.sub_p, total, math.log(number))
    chosen = families.broadcast_to(inp.astype(where, dtypes.bool_), value.shape)
    count = inp.sum(chosen, axis, dtype=value.dtype, keepdims=keepdims)
    return inp.subtract(total, inp.log(count))


def standardize(
    x: ArrayLike,
    axis: Axis = -1,
    mean: ArrayLike | None = None,
    variance: ArrayLike | None = None,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    *,
    algorithm: Literal["fast", "stable"] = "fast",
) -> Value:
    """`(x - mean) / sqrt(variance + epsilon)` over an axis; mean and variance are those of `x` when
    absent.

    Args:
        x: array.
        axis: axis or axes of the statistics.
        mean: mean.
        variance: variance.
        epsilon: added to the variance.
        where: boolean array that broadcasts with `x`; other elements do not count in the statistics.
        algorithm: `fast` takes the variance as the mean of squares less the square of the mean; `stable`
            as the mean of squared differences, which does not cancel.

    Raises:
        ValueMismatchError: the algorithm is another one.
    """
    value = _float("standardize", x)
    if algorithm not in ("fast", "stable"):
        raise errors.ValueMismatchError(
            "standardize: unknown algorithm", got=repr(algorithm), expected="'fast' or 'stable'"
        )
    center = inp.mean(value, axis, keepdims=True, where=where) if mean is None else mean
    offset = inp.subtract(value, center)
    if variance is not None:
        spread = variance
    elif algorithm == "stable":
        spread = inp.mean(inp.square(offset), axis, keepdims=True, where=where)
    else:
        squares = inp.mean(inp.square(value), axis, keepdims=True, where=where)
        spread = inp.clip(inp.subtract(squares, inp.square(center)), 0)
    return inp.multiply(offset, e.rsqrt(inp.add(spread, epsilon)))


def one_hot(x: ArrayLike, num_classes: int, *, dtype: DTypeLike | None = None, axis: int = -1) -> Value:
    """A new axis with 1 at the place that each integer names and 0 elsewhere; integers outside give zeros
    only.

    Args:
        x: integers.
        num_classes: size of the new axis.
        dtype: dtype of the result, float32 when absent.
        axis: place of the new axis in the result.
    """
    value = as_value("one_hot", x)
    place = _axes.one("one_hot", axis, value.ndim + 1)
    wide = view.expand_dims(value, (place,))
    shape = [num_classes if d == place else 1 for d in range(wide.ndim)]
    classes = view.broadcasted_iota(wide.dtype if wide.dtype != dtypes.bool_ else dtypes.int32, shape, place)
    found = inp.equal(wide, classes)
    return convert(found, dtypes.float32 if dtype is None else dtypes.canonical(dtype))
