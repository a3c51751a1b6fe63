"""Random streams are JAX's, bit for bit; samples that go through logarithms or erf_inv agree within a few
ulp."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import random


@pytest.fixture(autouse=True, scope="module")
def quickly() -> Iterator[None]:
    """JAX's compiler need not optimize what runs once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


SEEDS = (0, 1, 42, -1, 2**31 - 1, 2**40 + 5)
SHAPES = ((), (2, 3, 4), (0, 3))
FLOATS = ("float32", "bfloat16", "float16")


def words(x: Any) -> np.ndarray:
    if isinstance(x, random.KeyArray):
        return np.asarray(x.words)
    is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)


def distance(ours: Any, theirs: Any) -> int:
    """Largest distance in units in the last place; shape and dtype have to be equal."""
    a, b = words(ours), words(theirs)
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    if a.dtype == bool:
        return int((a != b).sum())
    integer = np.dtype(f"int{a.dtype.itemsize * 8}")
    return int(np.abs(a.view(integer).astype(np.int64) - b.view(integer).astype(np.int64)).max(initial=0))


Case = Callable[[Any, Any, Any], Any]


@pytest.mark.parametrize("seed", SEEDS)
def test_keys(seed: int) -> None:
    ours, theirs = random.PRNGKey(seed), jax.random.PRNGKey(seed)
    assert distance(ours, theirs) == 0
    assert distance(random.key(seed), jax.random.key(seed)) == 0
    assert distance(random.split(ours), jax.random.split(theirs)) == 0
    assert distance(random.split(ours, (2, 3)), jax.random.split(theirs, (2, 3))) == 0
    assert distance(random.split(random.key(seed), 3), jax.random.split(jax.random.key(seed), 3)) == 0
    assert distance(random.fold_in(ours, 7), jax.random.fold_in(theirs, 7)) == 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", SEEDS[:3])
def test_bits_and_uniform_floats(seed: int, shape: tuple[int, ...]) -> None:
    ours, theirs = random.PRNGKey(seed), jax.random.PRNGKey(seed)
    for dtype in ("uint8", "uint16", "uint32"):
        assert distance(random.bits(ours, shape, dtype), jax.random.bits(theirs, shape, dtype)) == 0
    for dtype in FLOATS:
        assert distance(random.uniform(ours, shape, dtype), jax.random.uniform(theirs, shape, dtype)) == 0


@pytest.mark.parametrize("dtype", ["int32", "int8", "uint8", "int16", "uint16", "uint32"])
def test_integers(dtype: str) -> None:
    for seed in SEEDS:
        ours, theirs = random.PRNGKey(seed), jax.random.PRNGKey(seed)
        for low, high in ((0, 10), (3, 100), (5, 5), (9, 2), (0, 127)):
            found = random.randint(ours, (3, 7), low, high, dtype)
            assert distance(found, jax.random.randint(theirs, (3, 7), low, high, dtype)) == 0


@pytest.mark.parametrize(
    ("low", "high", "dtype"), [(0, 256, "uint8"), (-128, 128, "int8"), (-(2**31), 2**31 - 1, "int32")]
)
def test_integers_over_the_whole_range(low: int, high: int, dtype: str) -> None:
    ours = random.randint(random.PRNGKey(0), (99,), low, high, dtype)
    assert distance(ours, jax.random.randint(jax.random.PRNGKey(0), (99,), low, high, dtype)) == 0


LOGITS = np.random.default_rng(0).standard_normal((5, 17)).astype(np.float32)
P = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
M = np.arange(12, dtype=np.float32).reshape(3, 4)
EXACT: dict[str, Case] = {
    "bernoulli": lambda r, k, n: r.bernoulli(k, 0.3, (100,)),
    "bernoulli of an array": lambda r, k, n: r.bernoulli(k, n.asarray(P)),
    "bernoulli high": lambda r, k, n: r.bernoulli(k, 0.3, (100,), mode="high"),
    "rademacher": lambda r, k, n: r.rademacher(k, (20,)),
    "categorical": lambda r, k, n: r.categorical(k, n.asarray(LOGITS)),
    "categorical over another axis": lambda r, k, n: r.categorical(
        k, n.asarray(LOGITS), axis=0, shape=(4, 17)
    ),
    "categorical without replacement": lambda r, k, n: r.categorical(
        k, n.asarray(LOGITS), shape=(3, 5), replace=False
    ),
    "permutation of a number": lambda r, k, n: r.permutation(k, 100),
    "permutation of rows": lambda r, k, n: r.permutation(k, n.asarray(M)),
    "permutation of each row": lambda r, k, n: r.permutation(k, n.asarray(M), 1, True),
    "choice": lambda r, k, n: r.choice(k, 10, (3, 2)),
    "choice of rows": lambda r, k, n: r.choice(k, n.asarray(M), (5,), axis=1),
    "choice without replacement": lambda r, k, n: r.choice(k, 10, (4,), replace=False),
    "choice by probability": lambda r, k, n: r.choice(k, 4, (30,), p=n.asarray(P)),
    "choice by probability without replacement": lambda r, k, n: r.choice(
        k, 4, (2,), replace=False, p=n.asarray(P)
    ),
    "uniform integers of arrays": lambda r, k, n: r.randint(
        k, (2, 3), n.asarray([0, 5, 9]), n.asarray([1, 50, 90])
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_discrete_samples(name: str) -> None:
    for seed in SEEDS:
        ours = EXACT[name](random, random.PRNGKey(seed), inp)
        assert distance(ours, EXACT[name](jax.random, jax.random.PRNGKey(seed), jnp)) == 0


# Logarithms and erf_inv of different implementations, and JAX's CPU compiler fuses multiplications into
# additions.
CLOSE: dict[str, tuple[Case, int]] = {
    "normal": (lambda r, k, n: r.normal(k, (1000,)), 3),
    "normal bfloat16": (lambda r, k, n: r.normal(k, (1000,), "bfloat16"), 1),
    "normal float16": (lambda r, k, n: r.normal(k, (1000,), "float16"), 1),
    "exponential": (lambda r, k, n: r.exponential(k, (1000,)), 3),
}


@pytest.mark.parametrize("name", CLOSE)
def test_continuous_samples(name: str) -> None:
    case, ulp = CLOSE[name]
    for seed in SEEDS[:3]:
        ours, theirs = (
            case(random, random.PRNGKey(seed), inp),
            case(jax.random, jax.random.PRNGKey(seed), jnp),
        )
        assert distance(ours, theirs) <= ulp


# Near zero these cancel, so the error is absolute.
CANCELLING: dict[str, Case] = {
    "uniform": lambda r, k, n: r.uniform(k, (1000,), minval=-3.0, maxval=5.5),
    "gumbel": lambda r, k, n: r.gumbel(k, (1000,)),
    "gumbel high": lambda r, k, n: r.gumbel(k, (1000,), mode="high"),
    "laplace": lambda r, k, n: r.laplace(k, (1000,)),
    "logistic": lambda r, k, n: r.logistic(k, (1000,)),
    "truncated normal": lambda r, k, n: r.truncated_normal(k, -2.0, 2.0, (1000,)),
    "truncated normal of arrays": lambda r, k, n: r.truncated_normal(
        k, n.asarray([-1.0, 0.0]), n.asarray([0.0, 3.0])
    ),
}


@pytest.mark.parametrize("name", CANCELLING)
def test_cancelling_samples(name: str) -> None:
    for seed in SEEDS[:3]:
        ours = np.asarray(CANCELLING[name](random, random.PRNGKey(seed), inp))
        theirs = np.asarray(CANCELLING[name](jax.random, jax.random.PRNGKey(seed), jnp))
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=2e-6)


def test_samples_under_jit_and_vmap() -> None:
    def draw(api: Any, r: Any) -> Any:
        keys = r.split(r.PRNGKey(3), 4)
        one = api.jit(lambda k: r.bits(k, (3, 5)))
        return api.vmap(one)(keys), api.vmap(lambda k: r.split(k, 2))(keys), api.jit(r.PRNGKey)(7)

    for ours, theirs in zip(draw(infini, random), draw(jax, jax.random), strict=True):
        assert distance(ours, theirs) == 0


INITIALIZERS = [
    "normal()", "uniform(0.3)", "truncated_normal(0.5)", "zeros", "ones", "constant(3.0)",
    "glorot_uniform()", "glorot_normal()", "lecun_normal()", "lecun_uniform()", "he_normal()",
    "he_uniform()", "variance_scaling(2.0, 'fan_out', 'normal', in_axis=0)",
    "variance_scaling(1.0, 'fan_geo_avg', 'uniform')",

]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "dtype"), [*((text, "float32") for text in INITIALIZERS), ("glorot_normal()", "bfloat16")]
)
def test_initial_values(text: str, dtype: str) -> None:
    import infini.nn

    ours, theirs = (eval(f"i.{text}", {"i": i}) for i in (infini.nn.initializers, jax.nn.initializers))
    found = np.asarray(ours(random.PRNGKey(5), (3, 8, 16), dtype))
    wanted = np.asarray(theirs(jax.random.PRNGKey(5), (3, 8, 16), dtype))
    assert found.dtype == wanted.dtype
    bound = 1e-5 if dtype == "float32" else 1e-2
    np.testing.assert_allclose(
        found.astype(np.float32), wanted.astype(np.float32), rtol=bound, atol=bound * 1e-2
    )


@pytest.mark.parametrize(
    "name", ["zeros", "ones", "normal", "glorot_uniform", "variance_scaling", "constant"]
)
def test_signatures_of_initializers(name: str) -> None:
    ours, theirs = (getattr(root.nn.initializers, name) for root in (infini, jax))
    assert [(p.name, p.default) for p in inspect.signature(ours).parameters.values()] == [
        (p.name, p.default) for p in inspect.signature(theirs).parameters.values()
    ]
