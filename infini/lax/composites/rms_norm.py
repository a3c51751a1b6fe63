"""Root mean square normalisation (B. Zhang and R. Sennrich, https://arxiv.org/abs/1910.07467) as one
primitive.

Transforms use the definition and the VJP below; a backend may lower the primitive by a fused kernel and
otherwise takes the
definition. Statistics are computed in float32 for 16-bit inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive, Signature
from infini.core.value import Value
from infini.lax import cases, elementwise as e, families, reduction
from infini.lax.cases import Case, Sample
from infini.lax.families import bind_scalars

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers
_SIGNATURE = Signature((("d",), ("d",)), (("d",),))


def _wide(x: Value) -> Value:
    return e.convert_element_type(x, dtypes.float32) if x.dtype.itemsize <= 2 else x


def _mean(x: Value) -> Value:
    """Mean over the last dimension, which stays with size 1."""
    total = trace.bind1(reduction.reduce_sum_p, x, axes=(-1,))
    mean = bind_scalars(e.div_p, total, float(x.shape[-1]))
    return trace.bind1(primitive.by_name("reshape"), mean, shape=(1,), ndim=0)


def _scale_of(x: Value, epsilon: float) -> Value:
    return e.rsqrt(bind_scalars(e.add_p, _mean(bind_scalars(e.mul_p, x, x)), epsilon))


def _decompose(x: Value, weight: Value, *, epsilon: float) -> tuple[Value]:
    wide = _wide(x)
    normal = bind_scalars(e.mul_p, wide, _scale_of(wide, epsilon))
    return (e.convert_element_type(bind_scalars(e.mul_p, normal, _wide(weight)), x.dtype),)


def _reference(x: np.ndarray, weight: np.ndarray, *, epsilon: float) -> np.ndarray:
    wide = x.astype(np.result_type(np.float32, np.float64 if x.dtype == np.float64 else np.float32))
    scale = 1 / np.sqrt(np.mean(np.square(wide), -1, keepdims=True) + wide.dtype.type(epsilon))
    return (wide * scale * weight.astype(wide.dtype)).astype(x.dtype)


def _forward(x: Value, weight: Value, *, epsilon: float) -> tuple[Sequence[Value], Sequence[Value]]:
    return trace.bind(rms_norm_p, x, weight, epsilon=epsilon), [x, weight]


def _backward(residuals: Sequence[Value], cotangents: Sequence[Value], *, epsilon: float) -> list[Value]:
    # With r = 1/rms and n = x r:  dx = r (g - n mean(g n)),  g = ct w;  dw = sum of ct n over the loop
    # dimensions.
    x, weight = residuals
    wide, ct = _wide(x), _wide(cotangents[0])
    scale = _scale_of(wide, epsilon)
    normal = bind_scalars(e.mul_p, wide, scale)
    g = bind_scalars(e.mul_p, ct, _wide(weight))
    along = bind_scalars(e.mul_p, normal, _mean(bind_scalars(e.mul_p, g, normal)))
    dx = bind_scalars(e.mul_p, scale, bind_scalars(e.sub_p, g, along))
    dw = bind_scalars(e.mul_p, ct, normal)
    return [
        e.convert_element_type(families.sum_to(dx, x.shape), x.dtype),
        e.convert_element_type(families.sum_to(dw, weight.shape), weight.dtype),
    ]


def _dtype(x: ArrayType, weight: ArrayType, **_: object) -> np.dtype:
    return families.same_dtype("rms_norm")(x, weight)


rms_norm_p: Primitive = primitive.register(
    Primitive(
        "rms_norm",
        _SIGNATURE,
        {
            primitive.TYPE: families.type_from_signature("rms_norm", _SIGNATURE, dtypes.FLOATS, _dtype),
            primitive.REFERENCE: _reference,
            primitive.DECOMPOSE: _decompose,
            primitive.VJP: (_forward, _backward),
            primitive.CASES: cases.always(
                dtypes.FLOATS, Case((Sample((3, 8)), Sample((8,))), {"epsilon": 1e-6}, "program")
            ),
        },
    )
)


def rms_norm(x: ArrayLike, weight: ArrayLike, epsilon: float = 1e-6) -> Value:
    """`x / sqrt(mean(x**2) + epsilon) * weight` over the last dimension.

    Args:
        x: floating array (..., D).
        weight: array (D,) of the same dtype.
        epsilon: added to the mean square.

    Returns:
        Array of the shape and dtype of `x`.

    Raises:
        TypeMismatchError: the dtypes differ or are not floating.
        ValueMismatchError: `epsilon` is negative.
    """
    if epsilon < 0:
        raise errors.ValueMismatchError("rms_norm: epsilon must not be negative", got=str(epsilon))
    return trace.bind1(rms_norm_p, x, weight, epsilon=float(epsilon))
