"""The inverse of the normal distribution function.

Source: M. J. Wichura, "Algorithm AS 241: the percentage points of the normal distribution" (1988): three
quotients of polynomials, with a relative error of about 1e-16 for every probability down to the smallest
float64.
"""

from __future__ import annotations

import math
from typing import Final

import infini.numpy as inp
from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import elementwise as e
from infini.numpy._promotion import ArrayLike, as_value, convert
from infini.transforms import custom

# Numerator and denominator, from the highest power down: of (0.425^2 - q^2), and of r - 1.6 and r - 5, where
# r is the root of -log of the smaller side.
_MIDDLE: Final = (
    (
        2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
        13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608,
    ),
    (
        5226.495278852854561, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867,
        5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1.0,
    ),
)  # fmt: skip
_NEAR: Final = (
    (
        7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177, 1.27045825245236838258,
        3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734,
    ),
    (
        1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966, 0.14810397642748007459,
        0.68976733498510000455, 1.6763848301838038494, 2.05319162663775882187, 1.0,
    ),
)  # fmt: skip
_FAR: Final = (
    (
        2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.0012426609473880784386,
        0.026532189526576123093, 0.29656057182850489123, 1.7848265399172913358,
        5.4637849111641143699, 6.6579046435011037772,
    ),
    (
        2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.8463183175100546818e-5,
        7.868691311456132591e-4, 0.0148753612908506148525, 0.13692988092273580531,
        0.59983220655588793769, 1.0,
    ),
)  # fmt: skip


def ndtri(p: ArrayLike) -> Value:
    """The inverse of the standard normal distribution function `ndtr`.

    Args:
        p: probabilities, in floats.

    Returns:
        Numbers like `p`; infinite for 0 and 1, NaN outside.

    Raises:
        TypeMismatchError: `p` are no floats.

    Example:
        >>> import infini.numpy as inp
        >>> from infini.scipy import special
        >>> print(inp.round(special.ndtri(inp.array([0.025, 0.5, 0.975])), 4))
        [-1.96  0.    1.96]
    """
    value = as_value("ndtri", p)
    if value.dtype not in dtypes.FLOATS:
        raise errors.TypeMismatchError("ndtri takes floats", got=str(value.type), fix="convert with astype")
    found: Value = _ndtri(value)
    return found


@custom.custom_jvp
def _ndtri(p: Value) -> Value:
    wide = p if p.dtype == dtypes.float64 else convert(p, dtypes.float32)
    middle = wide - 0.5
    inside = _quotient(0.180625 - middle * middle, _MIDDLE) * middle
    smaller = inp.minimum(wide, 1.0 - wide)
    root = e.sqrt(e.neg(e.log(inp.clip(smaller, inp.finfo(wide.dtype).tiny, 0.5))))
    outside = inp.where(root <= 5.0, _quotient(root - 1.6, _NEAR), _quotient(root - 5.0, _FAR))
    found = inp.where(inp.abs(middle) <= 0.425, inside, inp.where(middle < 0, -outside, outside))
    found = inp.where(smaller == 0, inp.where(middle < 0, -inp.inf, inp.inf), found)
    return convert(inp.where(smaller >= 0, found, inp.nan), p.dtype)


@_ndtri.defjvp
def _ndtri_slope(primals: tuple[Value], tangents: tuple[Value]) -> tuple[Value, Value]:
    (p,), (dp,) = primals, tangents
    found = _ndtri(p)
    return found, dp * math.sqrt(2 * math.pi) * inp.exp(0.5 * found * found)


def _quotient(x: Value, parts: tuple[tuple[float, ...], tuple[float, ...]]) -> Value:
    over, under = (_polynomial(x, part) for part in parts)
    return over / under


def _polynomial(x: Value, coefficients: tuple[float, ...]) -> Value:
    total: Value | float = coefficients[0]
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    assert not isinstance(total, float), "there are several coefficients"
    return total
