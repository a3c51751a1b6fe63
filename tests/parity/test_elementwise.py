"""Elementwise operations against JAX: signatures, values and slopes, at edges and over wide ranges."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import infini as inf
from infini import lax

jax = pytest.importorskip("jax")
jnp = jax.numpy

EDGES = np.array(
    [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, 1.5, -1.5, 1e-10, -1e-10, 20.0, -20.0, 100.0, 1e10,
     -1e10, np.inf, -np.inf, np.nan, 0.9, -0.9, 7.0, -7.0]
)  # fmt: skip
UNARY = [
    "abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "bessel_i0e", "bessel_i1e", "cbrt",
    "ceil", "cos", "cosh", "digamma", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor",
    "is_finite", "lgamma", "log", "log1p", "logistic", "neg", "reciprocal", "round", "rsqrt", "sign",
    "sin", "sinh", "sqrt", "square", "tan", "tanh",
]  # fmt: skip
BINARY = [
    "add", "atan2", "div", "max", "min", "mul", "nextafter", "pow", "rem", "sub",
]  # fmt: skip
SPECIAL = [
    "betainc", "igamma", "igamma_grad_a", "igammac", "polygamma", "random_gamma_grad", "zeta",
]  # fmt: skip
BITS = [
    "bitwise_and", "bitwise_not", "bitwise_or", "bitwise_xor", "clz", "mulhi", "population_count",
    "shift_left", "shift_right_arithmetic", "shift_right_logical",
]  # fmt: skip
OTHERS = [
    "bitcast_convert_type", "clamp", "complex", "conj", "convert_element_type", "eq", "ge", "gt",
    "imag", "integer_pow", "le", "lt", "ne", "real", "reduce_precision", "select", "select_n",
    "stop_gradient",
]  # fmt: skip


@pytest.mark.parametrize("name", [*UNARY, *BINARY, *SPECIAL, *BITS, *OTHERS])
def test_signature(name: str) -> None:
    def parameters(function: Callable[..., Any]) -> list[tuple[str, Any]]:
        return [(p.name, p.kind) for p in inspect.signature(function).parameters.values()]

    theirs = parameters(getattr(jax.lax, name))
    if name != "random_gamma_grad":  # JAX's wrapper hides the names
        assert parameters(getattr(lax, name)) == theirs


def close(found: Any, expected: Any, tolerance: float) -> None:
    x, y = (np.asarray(v).astype(np.float64) for v in (found, expected))
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", UNARY)
def test_values_and_slopes_at_edges(name: str) -> None:
    ours, theirs = getattr(lax, name), getattr(jax.lax, name)
    x = EDGES.astype(np.float32)
    close(inf.jit(ours)(x), theirs(x), 3e-5)
    if name == "is_finite":
        return
    if name == "digamma":  # JAX's trigamma of infinity is NaN, ours is the limit
        x = x[~np.isposinf(x)]
    slopes = inf.jit(inf.vmap(inf.grad(lambda v: ours(v))))(x)
    close(slopes, jax.vmap(jax.grad(lambda v: theirs(v)))(x), 1e-4)


@pytest.mark.parametrize("name", BINARY)
def test_values_and_slopes_at_pairs_of_edges(name: str) -> None:
    ours, theirs = getattr(lax, name), getattr(jax.lax, name)
    x, y = (v.reshape(-1) for v in np.meshgrid(EDGES.astype(np.float32), EDGES.astype(np.float32)))
    close(inf.jit(ours)(x, y), theirs(x, y), 3e-5)
    if name == "nextafter":
        return
    for operand in (0, 1):
        slopes = inf.jit(inf.vmap(inf.grad(lambda u, v: ours(u, v), argnums=operand)))(x, y)
        close(slopes, jax.vmap(jax.grad(lambda u, v: theirs(u, v), argnums=operand))(x, y), 1e-4)


def test_whole_powers_and_their_slopes() -> None:
    x, y = (
        v.reshape(-1) for v in np.meshgrid(EDGES.astype(np.float32), np.array([0, 1, 2, 3, -1, -2], np.int32))
    )
    close(inf.jit(lax.pow)(x, y), jax.lax.pow(x, y), 1e-5)
    close(inf.vmap(inf.grad(lax.pow))(x, y), jax.vmap(jax.grad(jax.lax.pow))(x, y), 1e-5)
    x = EDGES.astype(np.float32)
    for power in (-2, -1, 0, 1, 2, 3, 5):
        close(lax.integer_pow(x, power), jax.lax.integer_pow(x, power), 1e-5)


def test_clamp_and_its_slopes() -> None:
    numbers = np.array([0.0, 1.0, 0.5, 2.0, np.inf, np.nan], np.float32)
    operands = [v.reshape(-1) for v in np.meshgrid(numbers[:4], numbers, numbers[:5])]
    close(lax.clamp(*operands), jax.lax.clamp(*operands), 0.0)
    for operand in range(3):
        slopes = inf.vmap(inf.grad(lax.clamp, argnums=operand))(*operands)
        close(slopes, jax.vmap(jax.grad(jax.lax.clamp, argnums=operand))(*operands), 0.0)


@pytest.mark.parametrize("name", ["igamma", "igammac", "igamma_grad_a", "random_gamma_grad", "zeta"])
def test_special_functions_of_two_operands(name: str, rng: np.random.Generator) -> None:
    a, x = (rng.uniform(0.1, 30.0, 400).astype(np.float32) for _ in range(2))
    a = a + 1.05 if name == "zeta" else a
    close(getattr(lax, name)(a, x), getattr(jax.lax, name)(a, x), 3e-5)


def test_polygamma_and_betainc(rng: np.random.Generator) -> None:
    m, x = rng.integers(0, 6, 400).astype(np.float32), rng.uniform(0.5, 20.0, 400).astype(np.float32)
    expected = np.asarray(jax.lax.polygamma(m, x))
    np.testing.assert_allclose(lax.polygamma(m, x), expected, rtol=1e-4)
    a, b, y = (rng.uniform(0.1, high, 400).astype(np.float32) for high in (20.0, 20.0, 1.0))
    close(lax.betainc(a, b, y), jax.lax.betainc(a, b, y), 3e-5)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32"])
@pytest.mark.parametrize("name", BITS)
def test_bits(name: str, dtype: str, rng: np.random.Generator) -> None:
    info = np.iinfo(dtype)
    x, y = (rng.integers(info.min, info.max, 200, dtype, endpoint=True) for _ in range(2))
    y = (rng.integers(-3, 40, 200) if "shift" in name else y).astype(dtype)
    operands = (x,) if name in ("bitwise_not", "clz", "population_count") else (x, y)
    np.testing.assert_array_equal(getattr(lax, name)(*operands), getattr(jax.lax, name)(*operands))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8_e5m2"])
@pytest.mark.parametrize("bits", [(5, 10), (4, 3), (8, 7), (2, 1)])
def test_reduce_precision(dtype: str, bits: tuple[int, int], rng: np.random.Generator) -> None:
    words = rng.integers(0, 2**32, 4000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    x = np.concatenate([words, rng.standard_normal(1000).astype(np.float32)])
    with np.errstate(all="ignore"):
        x = np.asarray(jnp.asarray(x).astype(dtype))
    found, expected = (
        np.asarray(f(x, *bits)).astype(np.float32) for f in (lax.reduce_precision, jax.lax.reduce_precision)
    )
    if dtype == "float32":  # XLA takes subnormal numbers for zero
        expected = np.where(np.abs(x) < np.finfo(np.float32).tiny, found, expected)
    np.testing.assert_array_equal(found, expected)


def test_conversions_between_all_dtypes() -> None:
    numbers = np.array(
        [0, 1, -1, 100, 300, -300, 0.5, 1.5, 2.5, -0.5, 1e9, -1e9, np.inf, -np.inf, np.nan], np.float32
    )
    names = [
        "bool",
        "int8",
        "uint8",
        "int32",
        "uint32",
        "float16",
        "bfloat16",
        "float32",
        "float8_e4m3fn",
        "float8_e5m2",
    ]
    for source in names:
        with np.errstate(all="ignore"):
            x = np.asarray(jnp.asarray(numbers).astype(source))
        for target in names:
            found = np.asarray(lax.convert_element_type(x, target)).astype(np.float64)
            expected = np.asarray(jax.lax.convert_element_type(x, target)).astype(np.float64)
            np.testing.assert_array_equal(found, expected, err_msg=f"{source} to {target}")


@pytest.mark.parametrize(
    ("name", "theirs", "spans"),
    [
        ("erf_inv", "erfinv", [(-0.999999, 0.999999)]),
        ("lgamma", "gammaln", [(0.01, 1e4)]),
        ("digamma", "digamma", [(0.01, 1e4)]),
        ("digamma", "digamma", [(-20.4, -0.2)]),
        ("bessel_i0e", "i0e", [(-300, 300)]),
        ("bessel_i1e", "i1e", [(-300, 300)]),
        ("erfc", "erfc", [(-5, 26)]),
        ("igamma", "gammainc", [(0.01, 200), (0.01, 200)]),
        ("igammac", "gammaincc", [(0.01, 200), (0.01, 200)]),
        ("betainc", "betainc", [(0.05, 60), (0.05, 60), (0.001, 0.999)]),
        ("zeta", "zeta", [(1.05, 30), (0.05, 60)]),
    ],
)
def test_float64_equals_scipy(
    name: str, theirs: str, spans: list[tuple[float, float]], rng: np.random.Generator
) -> None:
    special = pytest.importorskip("scipy.special")
    operands = [rng.uniform(low, high, 500) for low, high in spans]
    with inf.config(host64="keep"):
        found = np.asarray(getattr(lax, name)(*operands))
    assert found.dtype == np.float64
    # Prefactors such as x^a exp(-x) / gamma(a) lose the digits of their logarithm.
    tolerance = 1e-12 if len(spans) > 1 else 1e-13
    np.testing.assert_allclose(found, getattr(special, theirs)(*operands), rtol=tolerance, atol=1e-13)
