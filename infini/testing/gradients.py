"""Derivatives against finite differences: `check_grads`, with the signature of `jax.test_util`'s."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from infini.core import dtypes, errors, trace, tree
from infini.transforms import differentiate

# Step and tolerance of central differences by width: the step balances truncation against rounding.
_STEP: Final = {8: 1e-5, 4: 3e-3, 2: 3e-2}
_TOLERANCE: Final = {8: 1e-5, 4: 2e-2, 2: 2e-1}


def check_grads(
    f: Callable[..., Any],
    args: Sequence[Any],
    order: int,
    modes: Sequence[str] = ("fwd", "rev"),
    atol: float | None = None,
    rtol: float | None = None,
    eps: float | None = None,
) -> None:
    """Assert that derivatives of `f` agree with central differences along random directions.

    Args:
        f: function of pytrees of float or complex arrays that returns such pytrees.
        args: where to differentiate.
        order: how many times; the derivative itself is checked for every order but the last.
        modes: `fwd` checks `jvp`, `rev` checks `vjp`.
        atol: absolute tolerance; by the width of the narrowest argument when absent.
        rtol: relative tolerance, likewise.
        eps: step of the difference, likewise.

    Raises:
        AssertionError: a derivative differs.
        ValueMismatchError: a mode is unknown.
    """
    if not set(modes) <= {"fwd", "rev"}:
        raise errors.ValueMismatchError("check_grads: unknown mode", got=str(modes), expected="'fwd', 'rev'")
    width = min(map(_width, tree.leaves(tuple(args))), default=4)
    step = _STEP[width] if eps is None else eps
    bounds = (_TOLERANCE[width] if rtol is None else rtol, _TOLERANCE[width] if atol is None else atol)
    rng = np.random.default_rng(order)
    tangents = _random_like(tuple(args), rng)
    expected = _difference(f, tuple(args), tangents, step)
    if "fwd" in modes:
        _, found = differentiate.jvp(f, tuple(args), tangents)
        _compare(found, expected, bounds, f"jvp, order {order} from the last")
    if "rev" in modes:
        out, pullback = differentiate.vjp(f, *args)
        weights = _random_like(out, rng)
        _compare(
            _inner(pullback(weights), tangents),
            _inner(weights, expected),
            bounds,
            f"vjp, order {order} from the last",
        )
    if order <= 1:
        return
    if "fwd" in modes:
        check_grads(
            lambda *xs: differentiate.jvp(f, xs, tangents)[1], args, order - 1, modes, atol, rtol, eps
        )
    if "rev" in modes:
        check_grads(
            lambda *xs: differentiate.vjp(f, *xs)[1](weights), args, order - 1, modes, atol, rtol, eps
        )


def _random_like(x: Any, rng: np.random.Generator) -> Any:  # Any: pytrees of arrays
    def draw(leaf: Any) -> np.ndarray:
        dtype = trace.as_value(leaf).dtype
        if dtype not in dtypes.INEXACT:
            raise errors.TypeMismatchError(
                "check_grads takes floating-point numbers", got=str(trace.as_value(leaf).type)
            )
        numbers = rng.standard_normal(np.shape(leaf))
        if dtype in dtypes.COMPLEX:
            return (numbers + 1j * rng.standard_normal(np.shape(leaf))).astype(dtype)
        return numbers.astype(dtype)

    return tree.map(draw, x)


def _difference(
    f: Callable[..., Any], args: Any, tangents: Any, step: float
) -> Any:  # Any: pytrees of arrays
    def moved(sign: int) -> Any:
        shifted = tree.map(lambda x, t: (_wide(x) + sign * step * _wide(t)).astype(t.dtype), args, tangents)
        return f(*shifted)

    return tree.map(lambda high, low: (_wide(high) - _wide(low)) / (2 * step), moved(1), moved(-1))


def _width(x: Any) -> int:  # Any: arrays of any library
    """Bytes of a number, of a complex one of its parts."""
    dtype = trace.as_value(x).dtype
    return dtype.itemsize // (2 if dtype in dtypes.COMPLEX else 1)


def _wide(x: Any) -> np.ndarray:  # Any: arrays of any library
    array = np.asarray(x)
    return array.astype(np.complex128 if array.dtype in dtypes.COMPLEX else np.float64)


def _inner(x: Any, y: Any) -> float:  # Any: pytrees of arrays
    # Of complex numbers the real part: a cotangent is conjugate to a direction, as in JAX.
    pairs = zip(tree.leaves(x), tree.leaves(y), strict=True)
    return float(sum((_wide(a) * _wide(b)).sum().real for a, b in pairs))


def _compare(
    found: Any, expected: Any, bounds: tuple[float, float], what: str
) -> None:  # Any: pytrees of arrays
    for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        np.testing.assert_allclose(_wide(a), _wide(b), rtol=bounds[0], atol=bounds[1], err_msg=what)
