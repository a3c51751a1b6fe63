"""Elementwise functions of `infini.numpy` against `jax.numpy`: numbers, dtypes and weak types for every
kind of operand, errors for the same operands, and slopes at edges."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import infini as inf
import infini.numpy as inp

jax = pytest.importorskip("jax")
jnp = jax.numpy

_FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -2.5, 3.0, 1e-3, 40.0, np.inf, -np.inf, np.nan]
KINDS: dict[str, Any] = {
    "int32": np.array([0, 1, -1, 2, -7, 12, 100, 31], np.int32),
    "float32": np.array(_FLOATS, np.float32),
    "bfloat16": np.array(_FLOATS, ml_dtypes.bfloat16),
    "bool": np.array([False, True]),
    "complex64": np.array([0, 1, -1, 0.5 + 2j, -1.5 + 0.5j, 2j, -3 - 1j], np.complex64),
    "python": 3,
}
UNARY = [
    "abs",
    "acos",
    "acosh",
    "angle",
    "asin",
    "asinh",
    "atan",
    "atanh",
    "bitwise_count",
    "bitwise_not",
    "cbrt",
    "ceil",
    "conj",
    "cos",
    "cosh",
    "deg2rad",
    "exp",
    "exp2",
    "expm1",
    "fabs",
    "floor",
    "frexp",
    "i0",
    "imag",
    "iscomplex",
    "isfinite",
    "isinf",
    "isnan",
    "isneginf",
    "isposinf",
    "isreal",
    "log",
    "log10",
    "log1p",
    "log2",
    "logical_not",
    "modf",
    "nan_to_num",
    "negative",
    "positive",
    "rad2deg",
    "real",
    "reciprocal",
    "rint",
    "round",
    "sign",
    "signbit",
    "sin",
    "sinc",
    "sinh",
    "spacing",
    "sqrt",
    "square",
    "tan",
    "tanh",
    "trunc",
    "unwrap",
]
BINARY = [
    "add",
    "atan2",
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "copysign",
    "divide",
    "equal",
    "float_power",
    "floor_divide",
    "fmax",
    "fmin",
    "fmod",
    "gcd",
    "greater",
    "greater_equal",
    "heaviside",
    "hypot",
    "isclose",
    "lcm",
    "less",
    "less_equal",
    "logaddexp",
    "logaddexp2",
    "logical_and",
    "logical_or",
    "logical_xor",
    "maximum",
    "minimum",
    "multiply",
    "nextafter",
    "not_equal",
    "polyadd",
    "polysub",
    "remainder",
    "subtract",
]
# Where the result differs on purpose or by a gap, and why.
WIDER = {
    ("exp2", "bfloat16"): "theirs is a twentieth off at large exponents",
    ("fmod", "bool"): "theirs guards against zero for integers only, ours for booleans too",
    ("polyadd", "bool"): "theirs cannot pad booleans",
}
TOLERANCE = {"bfloat16": 2e-2}


def both(name: str, *args: Any) -> tuple[Any, Any]:
    """Results of ours and theirs; None for an error."""
    results = []
    for namespace in (inp, jnp):
        try:
            results.append(getattr(namespace, name)(*args))
        except (TypeError, ValueError, inf.errors.InfiniError):
            results.append(None)
    return results[0], results[1]


def compare(name: str, ours: Any, theirs: Any) -> None:
    if theirs is None or ours is None:
        assert ours is None and theirs is None, f"{name}: ours {ours}, theirs {theirs}"
        return
    if isinstance(theirs, tuple):
        for one, other in zip(ours, theirs, strict=True):
            compare(name, one, other)
        return
    assert (ours.dtype.name, ours.shape) == (theirs.dtype.name, theirs.shape), name
    if ours.dtype != bool:  # booleans promote alike, weak or not
        assert ours.weak == theirs.weak_type, name
    wide = np.complex128 if ours.dtype.kind == "c" else np.float64
    tolerance = TOLERANCE.get(ours.dtype.name, 2e-5)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(
            np.asarray(ours).astype(wide), np.asarray(theirs).astype(wide), tolerance, tolerance
        )


@pytest.mark.parametrize("name", UNARY)
def test_one_operand(name: str) -> None:
    for kind, x in KINDS.items():
        if (name, kind) not in WIDER and not (name == "unwrap" and kind == "python"):
            compare(f"{name} of {kind}", *both(name, x))


@pytest.mark.parametrize("name", BINARY)
def test_two_operands(name: str) -> None:
    for kind, x in KINDS.items():
        if (name, kind) in WIDER or (name.startswith("poly") and kind == "python"):
            continue
        y = x if kind == "python" else x[::-1].copy()
        compare(f"{name} of {kind}", *both(name, x, y))
    if not name.startswith("poly"):
        compare(f"{name} with a number", *both(name, KINDS["bfloat16"], 2))


def test_slopes_of_two_orders_at_zero() -> None:
    ours, theirs = inf.grad(inp.sinc), jax.grad(jnp.sinc)
    assert float(ours(0.0)) == float(theirs(0.0)) == 0
    assert float(inf.grad(ours)(0.0)) == pytest.approx(float(jax.grad(theirs)(0.0)), abs=1e-4)
    # Theirs is 0 here, since an absolute value is differentiated; ours is the derivative.
    assert float(inf.grad(inf.grad(inp.i0))(0.0)) == pytest.approx(0.5)


def test_polynomials_and_samples() -> None:
    p, q = np.array([1.0, 2, 3, 4], np.float32), np.array([2.0, 1], np.float32)
    places = np.array([-1.0, 0.3, 1, 1.7, 9], np.float32)
    xs, ys = np.array([0.0, 1, 2, 4], np.float32), np.array([1.0, 3, -1, 2], np.float32)
    cases = [
        ("polyval", p, places), ("polymul", p, q), ("polydiv", p, q), ("polydiv", q, p), ("polyder", p, 2),
        ("polyint", p, 2), ("polysub", p, q), ("polyadd", p, q), ("poly", p), ("interp", places, xs, ys),
        ("interp", places, xs, ys, "extrapolate", 7.0), ("interp", places, xs, ys, None, None, 3.0),
        ("unwrap", 3 * xs), ("kaiser", 7, 3.0), ("hamming", 6), ("hanning", 1), ("bartlett", 5),
        ("blackman", 5), ("ldexp", p, np.array([1, -2, 0, 200], np.int32)),
    ]  # fmt: skip
    for name, *args in cases:
        compare(name, *both(name, *args))
