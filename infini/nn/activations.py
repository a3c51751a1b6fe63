"""Activations: functions of each element with JAX's names, and softmax and its relatives over an axis.
Integers become floats."""

from __future__ import annotations

import math

from infini.core import dtypes, errors, trace
from infini.core.value import Value
from infini.lax import elementwise as e, families, view
from infini.lax.families import bind_scalars
from infini.numpy import _axes, comparison, elementwise, reductions, transcendental
from infini.numpy._promotion import (
    ArrayLike,
    Axis,
    DTypeLike,
    as_value,
    convert,
    inexact_operands,
    numeric_operands,
)


def _float(name: str, x: ArrayLike) -> Value:
    (value,) = inexact_operands(name, x)
    return value


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
    """`min(max(x, 0), 6)`."""
    return elementwise.minimum(elementwise.maximum(x, 0), 6)


def leaky_relu(x: ArrayLike, negative_slope: ArrayLike = 1e-2) -> Value:
    """`x` where it is positive, `negative_slope * x` elsewhere."""
    value = _float("leaky_relu", x)
    return comparison.where(
        comparison.greater_equal(value, 0), value, elementwise.multiply(negative_slope, value)
    )


def elu(x: ArrayLike, alpha: ArrayLike = 1.0) -> Value:
    """`x` where it is positive, `alpha * (exp(x) - 1)` elsewhere."""
    value = _float("elu", x)
    is_positive = bind_scalars(e.gt_p, value, 0)
    # The branch that is not taken must not overflow, or its derivative would be NaN.
    safe = comparison.where(is_positive, 0.0, value)
    return comparison.where(is_positive, value, elementwise.multiply(alpha, transcendental.expm1(safe)))


def selu(x: ArrayLike) -> Value:
    """Scaled `elu` that keeps mean 0 and variance 1. Source: Klambauer et al.,
    https://arxiv.org/abs/1706.02515"""
    return elementwise.multiply(1.0507009873554804934193349852946, elu(x, 1.6732632423543772848170429916717))


def celu(x: ArrayLike, alpha: ArrayLike = 1.0) -> Value:
    """`max(x, 0) + min(0, alpha * (exp(x / alpha) - 1))`."""
    value = _float("celu", x)
    low = elementwise.multiply(
        alpha, transcendental.expm1(elementwise.true_divide(elementwise.minimum(value, 0.0), alpha))
    )
    return elementwise.add(elementwise.maximum(value, 0.0), low)


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
    return transcendental.tanh(x)


def soft_sign(x: ArrayLike) -> Value:
    """`x / (|x| + 1)`."""
    value = _float("soft_sign", x)
    return trace.bind1(e.div_p, value, bind_scalars(e.add_p, trace.bind1(e.abs_p, value), 1))


def softplus(x: ArrayLike) -> Value:
    """`log(1 + exp(x))` without overflow."""
    return transcendental.logaddexp(x, 0.0)


def log_sigmoid(x: ArrayLike) -> Value:
    """`log(sigmoid(x))` without underflow."""
    return elementwise.negative(softplus(elementwise.negative(_float("log_sigmoid", x))))


def squareplus(x: ArrayLike, b: ArrayLike = 4) -> Value:
    """`(x + sqrt(x**2 + b)) / 2`."""
    value = _float("squareplus", x)
    root = transcendental.sqrt(elementwise.add(elementwise.square(value), b))
    return elementwise.true_divide(elementwise.add(value, root), 2)


def gelu(x: ArrayLike, approximate: bool = True) -> Value:
    """`x` times the normal distribution function of `x`.

    Args:
        x: array.
        approximate: by tanh, within 1e-3 of the exact one; otherwise by erf. Source:
            https://arxiv.org/abs/1606.08415
    """
    value = _float("gelu", x)
    if approximate:
        cubic = bind_scalars(e.mul_p, elementwise.power(value, 3), 0.044715)
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
    """`x` limited to the range from -1 to 1."""
    return elementwise.clip(_float("hard_tanh", x), -1.0, 1.0)


def hard_sigmoid(x: ArrayLike) -> Value:
    """`relu6(x + 3) / 6`."""
    return elementwise.true_divide(relu6(elementwise.add(x, 3.0)), 6.0)


def hard_silu(x: ArrayLike) -> Value:
    """`x * hard_sigmoid(x)`."""
    value = _float("hard_silu", x)
    return trace.bind1(e.mul_p, value, hard_sigmoid(value))


hard_swish = hard_silu


# --- over an axis -----------------------------------------------------------------------------


def _largest(x: Value, axis: Axis, where: ArrayLike | None) -> Value:
    """Maximum over an axis, kept with size 1, as a constant for derivatives: the results do not depend on
    it."""
    lowest = -math.inf if where is not None else None
    return e.stop_gradient(reductions.max(x, axis, keepdims=True, initial=lowest, where=where))


def softmax(x: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None) -> Value:
    """`exp(x) / sum(exp(x))` over an axis, without overflow.

    Args:
        x: array.
        axis: axis or axes to sum over.
        where: boolean array that broadcasts with `x`; other elements get 0.
    """
    value = _float("softmax", x)
    shifted = trace.bind1(e.sub_p, value, _largest(value, axis, where))
    if where is not None:
        shifted = comparison.where(where, shifted, -math.inf)
    grown = trace.bind1(e.exp_p, shifted)
    return trace.bind1(e.div_p, grown, reductions.sum(grown, axis, keepdims=True))


def log_softmax(x: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None) -> Value:
    """`log(softmax(x))` over an axis, without underflow; elements left out by `where` are minus infinity."""
    value = _float("log_softmax", x)
    shifted = trace.bind1(e.sub_p, value, _largest(value, axis, where))
    total = reductions.sum(trace.bind1(e.exp_p, shifted), axis, keepdims=True, where=where)
    result = trace.bind1(e.sub_p, shifted, trace.bind1(e.log_p, total))
    return result if where is None else comparison.where(where, result, -math.inf)


def logsumexp(
    a: ArrayLike,
    axis: Axis = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> Value:
    """`log(sum(b * exp(a)))` over axes, without overflow.

    Args:
        a: array.
        axis: axes to sum over; all of them when None.
        b: factors, 1 when absent; they broadcast with `a`.
        keepdims: keep the reduced axes with size 1.
        where: boolean array that broadcasts with `a`; other elements are left out.
    """
    values = inexact_operands("logsumexp", *(x for x in (a, b) if x is not None))
    value = values[0]
    largest = _largest(value, axis, where)
    # Where everything is infinite the difference would be NaN.
    center = comparison.where(trace.bind1(e.is_finite_p, largest), largest, convert(0, largest.dtype))
    grown = trace.bind1(e.exp_p, trace.bind1(e.sub_p, value, center))
    if b is not None:
        grown = trace.bind1(e.mul_p, grown, values[1])
    total = reductions.sum(grown, axis, keepdims=True, where=where)
    result = trace.bind1(e.add_p, trace.bind1(e.log_p, total), center)
    if keepdims:
        return result
    return view.squeeze(result, _axes.several("logsumexp", axis, value.ndim))


def logmeanexp(
    x: ArrayLike, axis: Axis = None, where: ArrayLike | None = None, keepdims: bool = False
) -> Value:
    """`log(mean(exp(x)))` over axes, without overflow."""
    value = _float("logmeanexp", x)
    total = logsumexp(value, axis, keepdims=keepdims, where=where)
    if where is None:
        number = math.prod(value.shape[d] for d in _axes.several("logmeanexp", axis, value.ndim))
        return bind_scalars(e.sub_p, total, math.log(number))
    chosen = families.broadcast_to(comparison.as_bool("logmeanexp", where), value.shape)
    count = reductions.sum(chosen, axis, dtype=value.dtype, keepdims=keepdims)
    return elementwise.subtract(total, transcendental.log(count))


def standardize(
    x: ArrayLike,
    axis: Axis = -1,
    mean: ArrayLike | None = None,
    variance: ArrayLike | None = None,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
) -> Value:
    """`(x - mean) / sqrt(variance + epsilon)` over an axis; mean and variance are those of `x` when
    absent."""
    value = _float("standardize", x)
    center = reductions.mean(value, axis, keepdims=True, where=where) if mean is None else mean
    spread = reductions.var(value, axis, keepdims=True, where=where) if variance is None else variance
    offset = elementwise.subtract(value, center)
    return elementwise.multiply(offset, e.rsqrt(elementwise.add(spread, epsilon)))


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
    found = comparison.equal(wide, classes)
    return convert(found, dtypes.float32 if dtype is None else dtypes.canonical(dtype))
