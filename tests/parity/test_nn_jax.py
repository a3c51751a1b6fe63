"""Functions of `infini.nn` against `jax.nn`: signatures, values, derivatives, dtypes and weak types."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import nn

# Those of blockwise scaled 8-bit products, which need dtypes that infini does not have.
ABSENT = {"get_scaled_dot_general_config", "scaled_dot_general", "scaled_matmul"}
NAMES = sorted(name for name in dir(jax.nn) if callable(getattr(jax.nn, name)) and not name.startswith("_"))
POINTS = np.array(
    [-200, -20, -6, -3, -1, -0.5, -1e-3, -0.0, 0, 1e-3, 0.5, 1, 3, 6, 20, 200, np.inf, -np.inf], np.float32
)
ELEMENTWISE = (
    "celu", "elu", "gelu", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "leaky_relu", "log1mexp",
    "log_sigmoid", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "soft_sign", "softplus", "sparse_plus",
    "sparse_sigmoid", "squareplus", "tanh",
)  # fmt: skip
FLOATS_ONLY = {"mish", "sigmoid", "silu", "tanh"}  # JAX refuses integers here
TOLERANCES = {"float32": 3e-6, "float16": 3e-3, "bfloat16": 2e-2, "int32": 3e-6}


@pytest.fixture(autouse=True)
def on_the_reference_backend() -> Iterator[None]:
    """These compare formulas; how well the backends do them is tested with the operations."""
    with infini.config(device="reference"):
        yield


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ABSENT])
def test_signatures(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (nn, jax.nn))
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]


def agree(ours: Any, theirs: Any, dtype: str = "float32") -> None:
    assert (ours.dtype, ours.weak_type) == (theirs.dtype, theirs.weak_type)
    bound = TOLERANCES[dtype]
    np.testing.assert_allclose(
        np.asarray(ours, np.float32), np.asarray(theirs, np.float32), rtol=bound, atol=bound / 10
    )


def inputs(name: str) -> dict[str, np.ndarray]:
    """Operands by dtype."""
    points = np.abs(POINTS) if name == "log1mexp" else POINTS
    found = {dtype: points.astype(jnp.dtype(dtype)) for dtype in ("float32", "float16", "bfloat16")}
    return found if name in FLOATS_ONLY else found | {"int32": np.arange(-3, 8, dtype=np.int32) % 200}


@functools.cache
def of_jax() -> dict[str, tuple[dict[str, Any], Any, Any]]:
    """Values by dtype, that of a Python number, and slopes, of every function: one program, compiled once."""

    def all_of(name: str, given: dict[str, Any]) -> tuple[dict[str, Any], Any, Any]:
        f = getattr(jax.nn, name)
        return {dtype: f(x) for dtype, x in given.items()}, f(2.5), jax.vmap(jax.grad(f))(given["float32"])

    run = jax.jit(lambda given: {name: all_of(name, x) for name, x in given.items()})
    return run({name: inputs(name) for name in ELEMENTWISE})


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_functions_of_each_element(name: str) -> None:
    values, of_number, _ = of_jax()[name]
    for dtype, x in inputs(name).items():
        agree(getattr(nn, name)(inp.asarray(x)), values[dtype], dtype)
    agree(getattr(nn, name)(2.5), of_number)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_slopes(name: str) -> None:
    found = infini.vmap(infini.grad(getattr(nn, name)))(inputs(name)["float32"])
    np.testing.assert_allclose(found, of_jax()[name][2], rtol=1e-5, atol=1e-6)


X = np.random.default_rng(0).standard_normal((3, 4, 6)).astype(np.float32)
WHERE = np.random.default_rng(1).random((3, 4, 6)) < 0.7
B = np.random.default_rng(2).standard_normal((4, 1)).astype(np.float32)
SEVERAL: dict[str, Callable[[Any], Any]] = {
    "softmax": lambda n: n.softmax(X, (0, 2)),
    "softmax where": lambda n: n.softmax(X, -1, where=WHERE),
    "log_softmax": lambda n: n.log_softmax(X, 1),
    "log_softmax where": lambda n: n.log_softmax(X, -1, where=WHERE),
    "logsumexp": lambda n: n.logsumexp(X, (0, 1), keepdims=True),
    "logsumexp b": lambda n: n.logsumexp(X, 1, b=B),
    "logsumexp of zeros": lambda n: n.logsumexp(X * 1000, 1, b=(B > 0) * 1.0),
    "logsumexp sign": lambda n: n.logsumexp(X, 1, b=B, return_sign=True)[0],
    "logsumexp its sign": lambda n: n.logsumexp(X, 1, b=B, return_sign=True)[1],
    "logsumexp where": lambda n: n.logsumexp(X, where=WHERE),
    "logmeanexp": lambda n: n.logmeanexp(X, 2),
    "logmeanexp where": lambda n: n.logmeanexp(X, 2, where=WHERE, keepdims=True),
    "standardize": lambda n: n.standardize(X, (1, 2)),
    "standardize stable": lambda n: n.standardize(X, algorithm="stable", where=WHERE),
    "standardize given": lambda n: n.standardize(X, mean=0.5, variance=2.0, epsilon=0.1),
    "glu": lambda n: n.glu(X, 1),
    "one_hot": lambda n: n.one_hot(np.array([[0, 2], [5, -1]]), 4, axis=0),
    "one_hot dtype": lambda n: n.one_hot(np.array([0, 2]), 4, dtype="bool"),
    "gelu exact": lambda n: n.gelu(X, approximate=False),
    "elu": lambda n: n.elu(X, 0.3),
    "celu": lambda n: n.celu(X, 0.3),
    "leaky_relu": lambda n: n.leaky_relu(X, 0.3),
    "squareplus": lambda n: n.squareplus(X, 1.0),
}


@functools.cache
def several_of_jax() -> dict[str, Any]:
    return jax.jit(lambda: {name: case(jax.nn) for name, case in SEVERAL.items()})()


@pytest.mark.parametrize("name", SEVERAL)
def test_functions_with_options(name: str) -> None:
    np.testing.assert_allclose(SEVERAL[name](nn), several_of_jax()[name], rtol=1e-5, atol=1e-6)


RNG = np.random.default_rng(3)
Q = RNG.standard_normal((2, 5, 4, 8)).astype(np.float32)
K, V = (RNG.standard_normal((2, 6, 2, 8)).astype(np.float32) for _ in range(2))
OPTIONS: list[dict[str, Any]] = [
    {"is_causal": True},
    {"bias": RNG.standard_normal((1, 4, 5, 6)).astype(np.float32), "scale": 0.2},
    {"mask": RNG.random((2, 1, 5, 6)) < 0.8, "is_causal": True},
    {"local_window_size": 1},
    {"local_window_size": (2, 0), "is_causal": True},
    {"query_seq_lengths": np.array([5, 2]), "key_value_seq_lengths": np.array([6, 3])},
]


@functools.cache
def attention_of_jax() -> list[Any]:
    return jax.jit(lambda: [jax.nn.dot_product_attention(Q, K, V, **options) for options in OPTIONS])()


@pytest.mark.parametrize("number", range(len(OPTIONS)), ids=lambda number: " ".join(OPTIONS[number]))
def test_attention(number: int) -> None:
    found = nn.dot_product_attention(Q, K, V, **OPTIONS[number])
    np.testing.assert_allclose(found, attention_of_jax()[number], rtol=1e-5, atol=1e-5)


def test_slopes_of_attention() -> None:
    def slopes(root: Any, n: Any) -> Any:
        loss = root.grad(
            lambda *given: (n.dot_product_attention(*given, is_causal=True) ** 2).sum(), (0, 1, 2)
        )
        return root.jit(loss)(Q, K, V)

    for found, wanted in zip(slopes(infini, nn), slopes(jax, jax.nn), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
