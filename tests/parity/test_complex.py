"""Functions of complex numbers against JAX: values, derivatives along a direction, both kinds of gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini.testing import assert_close

# Points on both sides of every branch cut, none on one.
Z = np.array([0.3 + 0.4j, -0.7 + 1.2j, 1.5 - 0.8j, -2.0 - 0.3j, 0.1 - 1.7j, 2.5 + 0.2j], np.complex64)
W = np.array([1.1 - 0.2j, 0.4 + 0.9j, -0.6 + 0.7j, 1.3 + 0.1j, -0.2 - 1.1j, 0.5 + 0.5j], np.complex64)
HOLOMORPHIC = (
    "arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctanh", "cos", "cosh", "exp", "exp2",
    "expm1", "log", "log1p", "log2", "log10", "negative", "positive", "reciprocal", "sin", "sinh",
    "sqrt", "square", "tan", "tanh",
)  # fmt: skip
OTHERS: dict[str, Callable[[Any, Any], Any]] = {
    "abs": lambda np_, z: np_.abs(z),
    "angle": lambda np_, z: np_.angle(z),
    "real": lambda np_, z: np_.real(z),
    "imag": lambda np_, z: np_.imag(z),
    "conj": lambda np_, z: np_.conj(z),
    "sign": lambda np_, z: np_.sign(z),
    "add": lambda np_, z: z + W,
    "multiply": lambda np_, z: z * W * z,
    "divide": lambda np_, z: W / z,
    "power": lambda np_, z: np_.power(z, W),
    "integer power": lambda np_, z: z**3,
    "matmul": lambda np_, z: np_.matmul(z.reshape(2, 3), z.reshape(3, 2)),
    "vdot": lambda np_, z: np_.vdot(z, W),
    "mean": lambda np_, z: np_.mean(z),
    "prod": lambda np_, z: np_.prod(z),
    "cumprod": lambda np_, z: np_.cumprod(z),
    "var": lambda np_, z: np_.var(z),
    "where": lambda np_, z: np_.where(np_.real(z) > 0, z, np_.conj(z)),
    "complex": lambda np_, z: np_.real(z) * 1j + np_.imag(z),
}


def functions() -> dict[str, Callable[[Any, Any], Any]]:
    return {name: (lambda np_, z, name=name: getattr(np_, name)(z)) for name in HOLOMORPHIC} | OTHERS


@pytest.mark.parametrize("name", functions())
def test_values_and_derivatives_along_a_direction(name: str) -> None:
    f = functions()[name]
    found = inf.jvp(lambda z: f(inp, z), (inp.asarray(Z),), (inp.asarray(W),))
    expected = jax.jvp(lambda z: f(jnp, z), (jnp.asarray(Z),), (jnp.asarray(W),))
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype
        assert_close(x, y, "program")


@pytest.mark.parametrize("name", functions())
def test_gradient_of_a_real_number(name: str) -> None:
    f = functions()[name]

    def size(np_: Any) -> Callable[[Any], Any]:
        return lambda z: np_.sum(np_.abs(f(np_, z)) ** 2)

    assert_close(inf.grad(size(inp))(inp.asarray(Z)), jax.grad(size(jnp))(jnp.asarray(Z)), "program")


@pytest.mark.parametrize("name", HOLOMORPHIC)
def test_holomorphic_gradient_under_jit(name: str) -> None:
    found = inf.jit(inf.grad(lambda z: getattr(inp, name)(z).sum(), holomorphic=True))(inp.asarray(Z))
    expected = jax.grad(lambda z: getattr(jnp, name)(z).sum(), holomorphic=True)(jnp.asarray(Z))
    assert_close(found, expected, "program")
