"""Sums of exponentials without overflow, and what is made of them."""

from __future__ import annotations

import math
from typing import Any

import infini.numpy as inp
from infini.core import trace
from infini.core.value import Value
from infini.lax import elementwise as e, view
from infini.numpy import _axes
from infini.numpy._promotion import ArrayLike, Axis, convert, inexact_operands


def _float(name: str, x: ArrayLike) -> Value:
    (value,) = inexact_operands(name, x)
    return value


def _largest(x: Value, axis: Axis, where: ArrayLike | None) -> Value:
    """Maximum over an axis, kept with size 1, as a constant for derivatives: the results do not depend on
    it."""
    lowest = -math.inf if where is not None or x.size == 0 else None
    return e.stop_gradient(inp.max(x, axis, keepdims=True, initial=lowest, where=where))


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
        shifted = inp.where(where, shifted, -math.inf)
    grown = trace.bind1(e.exp_p, shifted)
    total = inp.sum(grown, axis, keepdims=True)
    if where is not None:
        total = inp.where(total == 0, 1, total)  # nothing is left: all are 0, not NaN
    return trace.bind1(e.div_p, grown, total)


def log_softmax(x: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None) -> Value:
    """`log(softmax(x))` over an axis, without underflow; elements left out by `where` are minus infinity."""
    value = _float("log_softmax", x)
    shifted = trace.bind1(e.sub_p, value, _largest(value, axis, where))
    total = inp.sum(trace.bind1(e.exp_p, shifted), axis, keepdims=True, where=where)
    result = trace.bind1(e.sub_p, shifted, trace.bind1(e.log_p, total))
    return result if where is None else inp.where(where, result, -math.inf)


def logsumexp(
    a: ArrayLike,
    axis: Axis = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
    where: ArrayLike | None = None,
) -> Any:  # Any: an array, or a pair
    """`log(sum(b * exp(a)))` over axes, without overflow.

    Args:
        a: array.
        axis: axes to sum over; all of them when None.
        b: factors, 1 when absent; they broadcast with `a`.
        keepdims: keep the reduced axes with size 1.
        return_sign: give the logarithm of the absolute value and the sign; otherwise negative sums are NaN.
        where: boolean array that broadcasts with `a`; other elements are left out.
    """
    values = inexact_operands("logsumexp", *(x for x in (a, b) if x is not None))
    value = values[0]
    if where is not None:
        value = inp.where(where, value, convert(0, value.dtype))
    if b is not None:
        # What counts for nothing must not set the largest element.
        value = inp.where(inp.not_equal(values[1], 0), value, convert(-math.inf, value.dtype))
    largest = _largest(value, axis, where)
    # Where everything is infinite the difference would be NaN.
    center = inp.where(trace.bind1(e.is_finite_p, largest), largest, convert(0, largest.dtype))
    grown = trace.bind1(e.exp_p, trace.bind1(e.sub_p, value, center))
    if b is not None:
        grown = trace.bind1(e.mul_p, grown, values[1])
    total = inp.sum(grown, axis, keepdims=True, where=where)
    sign = e.sign(total)
    if return_sign:
        total = inp.abs(total)
    result = trace.bind1(e.add_p, trace.bind1(e.log_p, total), center)
    axes = () if keepdims else _axes.several("logsumexp", axis, value.ndim)
    if return_sign:
        return view.squeeze(result, axes), view.squeeze(sign, axes)
    return view.squeeze(result, axes)
