"""Distributions, 64-bit samples and typed keys against JAX's. Discrete samples are equal; continuous ones
agree to the rounding of logarithms and powers, which a difference near zero amplifies."""

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
from infini import random

SEED = 5
A = np.array([0.05, 0.3, 1.0, 5.0, 80.0], np.float32)
Case = Callable[[Any, Any, Any], Any]  # of jax.random or infini.random, a key, and jax.numpy or infini.numpy

EXACT: dict[str, Case] = {
    "geometric": lambda r, k, n: r.geometric(k, n.asarray([0.1, 0.5, 0.9]), (50, 3)),
    "geometric of a number": lambda r, k, n: r.geometric(k, 0.2, (50,), "int16"),
    "binomial": lambda r, k, n: r.binomial(
        k, n.asarray([5.0, 40.0, 1000.0, np.nan, -1, np.inf, 9.0, 9.0]),
        n.asarray([0.2, 0.7, 0.3, 0.3, 0.3, 0.3, 0.0, -0.1]), (40, 8),
    ),
    "binomial of numbers": lambda r, k, n: r.binomial(k, 10, 0.3, (50,)),
    "multinomial": lambda r, k, n: r.multinomial(
        k, n.asarray([10.0, 100.0]), n.asarray([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]])
    ),
    "poisson": lambda r, k, n: r.poisson(k, n.asarray([0.0, 0.3, 5.0, 30.0, 200.0]), (20, 5)),
    "poisson of a number": lambda r, k, n: r.poisson(k, 7, (20,), "int16"),
    "rademacher of floats": lambda r, k, n: r.rademacher(k, (20,), "float32"),
    "permutation of a matrix": lambda r, k, n: r.permutation(k, n.arange(12.0).reshape(3, 4), axis=-1),
    "choice of nothing": lambda r, k, n: r.choice(k, n.arange(3.0), (0,)),
    "categorical high": lambda r, k, n: r.categorical(k, n.asarray(A), shape=(30,), mode="high"),
}  # fmt: skip
CLOSE: dict[str, Case] = {
    "cauchy": lambda r, k, n: r.cauchy(k, (500,)),
    "pareto": lambda r, k, n: r.pareto(k, n.asarray(A), (100, 5)),
    "rayleigh": lambda r, k, n: r.rayleigh(k, n.asarray(A), (100, 5)),
    "triangular": lambda r, k, n: r.triangular(k, -1.0, n.asarray(A[:3]), 5.0, (100, 3)),
    "weibull_min": lambda r, k, n: r.weibull_min(k, 2.0, 1.5, (500,)),
    "weibull_min of arrays": lambda r, k, n: r.weibull_min(k, n.asarray(A), n.asarray(A[1]), (5,)),
    "lognormal": lambda r, k, n: r.lognormal(k, n.asarray(A[:3]), (100, 3)),
    "complex normal": lambda r, k, n: r.normal(k, (100,), "complex64"),
    "maxwell": lambda r, k, n: r.maxwell(k, (500,)),
    "double_sided_maxwell": lambda r, k, n: r.double_sided_maxwell(k, 1.0, n.asarray(A), (10,)),
    "wald": lambda r, k, n: r.wald(k, n.asarray(A[1:4]), (100, 3)),
    "gumbel highest": lambda r, k, n: r.gumbel(k, (500,), mode="highest"),
    "gamma": lambda r, k, n: r.gamma(k, n.asarray(A), (100, 5)),
    "loggamma": lambda r, k, n: r.loggamma(k, n.asarray(A), (100, 5)),
    "beta": lambda r, k, n: r.beta(k, n.asarray(A), 2.0, (100, 5)),
    "dirichlet": lambda r, k, n: r.dirichlet(k, n.asarray(A), (100,)),
    "chisquare": lambda r, k, n: r.chisquare(k, n.asarray(A), (100, 5)),
    "f": lambda r, k, n: r.f(k, n.asarray(A[2:]), n.asarray(A[2:]), (3,)),
    "t": lambda r, k, n: r.t(k, n.asarray(A[1:]), (100, 4)),
    "generalized_normal": lambda r, k, n: r.generalized_normal(k, 1.5, (100,)),
    "ball": lambda r, k, n: r.ball(k, 3, shape=(50,)),
}


@pytest.fixture(autouse=True, scope="module")
def quickly() -> Iterator[None]:
    """JAX's compiler need not optimize what runs once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def on_the_reference_backend() -> Iterator[None]:
    """Streams are compared on the CPU in test_random; these compare methods."""
    with infini.config(device="reference"):
        yield


@functools.cache
def of_jax() -> dict[str, Any]:
    """All of them in one program, compiled once."""
    cases = EXACT | CLOSE
    everything = jax.jit(lambda k: {name: case(jax.random, k, jnp) for name, case in cases.items()})
    key = jax.random.key(SEED)
    return everything(key)


@pytest.mark.parametrize("name", EXACT)
def test_discrete_samples(name: str) -> None:
    found, wanted = EXACT[name](random, random.key(SEED), inp), of_jax()[name]
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", CLOSE)
def test_continuous_samples(name: str) -> None:
    found, wanted = CLOSE[name](random, random.key(SEED), inp), of_jax()[name]
    assert found.dtype == wanted.dtype
    # The smaller root of Wald's equation is a difference of larger numbers.
    np.testing.assert_allclose(found, wanted, rtol=2e-4 if name == "wald" else 2e-5, atol=1e-5)


PUBLIC = [
    name
    for name in dir(jax.random)
    if inspect.isfunction(getattr(jax.random, name)) and not name.startswith("_")
]
# They need a Cholesky factor and a QR factor.
ABSENT = {"multivariate_normal", "orthogonal"}


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in ABSENT])
def test_signatures(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (random, jax.random))
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]


WIDE: dict[str, Case] = {
    "bits": lambda r, k, n: r.bits(k, (7,), "uint64"),
    "uniform": lambda r, k, n: r.uniform(k, (50,), "float64"),
    "randint": lambda r, k, n: r.randint(k, (50,), -5, 1000, "int64"),
    "randint of all": lambda r, k, n: r.randint(k, (50,), np.int64(-(2**63)), np.int64(2**63 - 1), "int64"),
    "randint unsigned": lambda r, k, n: r.randint(k, (50,), 0, 2**31 - 1, "uint64"),
    "bernoulli": lambda r, k, n: r.bernoulli(k, n.asarray(0.3, "float64"), (50,)),
    "choice": lambda r, k, n: r.choice(k, 10, (20,), p=n.asarray(np.arange(10) / 45, "float64")),
    "seed of 64 bits": lambda r, k, n: r.bits(r.PRNGKey(n.asarray(2**40 + 5, "int64")), (3,), "uint32"),
}
WIDE_CLOSE: dict[str, Case] = {
    "normal": lambda r, k, n: r.normal(k, (200,), "float64"),
    "truncated_normal": lambda r, k, n: r.truncated_normal(k, -1.0, 3.0, (200,), "float64"),
    "exponential": lambda r, k, n: r.exponential(k, (200,), "float64"),
    "gumbel": lambda r, k, n: r.gumbel(k, (200,), "float64"),
    "gamma": lambda r, k, n: r.gamma(k, n.asarray(A, "float64"), (20, 5), "float64"),
    "uniform in a range": lambda r, k, n: r.uniform(k, (200,), "float64", -3.0, 5.5),
}


@functools.cache
def of_wide_jax() -> dict[str, Any]:
    """Samples of JAX with its 64-bit dtypes."""
    with jax.enable_x64(True):
        key = jax.random.key(SEED)
        return {name: np.asarray(case(jax.random, key, jnp)) for name, case in (WIDE | WIDE_CLOSE).items()}


@pytest.mark.parametrize("name", WIDE | WIDE_CLOSE)
def test_samples_of_64_bits(name: str) -> None:
    with infini.config(host64="keep"):
        found = np.asarray((WIDE | WIDE_CLOSE)[name](random, random.key(SEED), inp))
    wanted = of_wide_jax()[name]
    if name in WIDE:
        np.testing.assert_array_equal(found, wanted)
    else:
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-13)


# --- typed keys ---


def keys_of(root: Any, r: Any) -> dict[str, Any]:
    """What is done with typed keys, by JAX's names."""
    keys = r.split(r.key(SEED), (2, 3))

    def draw_all(keys: Any) -> Any:
        return root.lax.scan(lambda carry, key: (carry + r.uniform(key), r.fold_in(key, 1)), 0.0, keys)

    total, folded = root.jit(draw_all)(keys[0])
    return {
        "split": keys,
        "row": keys[1],
        "item": keys[0, 2],
        "slice": keys[..., ::-1],
        "mask": keys[0][np.array([True, False, True])],
        "reshape": keys.reshape(3, -1),
        "ravel": keys.ravel(),
        "flatten": keys.flatten(),
        "transpose": keys.T,
        "swapaxes": keys.swapaxes(0, 1),
        "squeeze": keys[:1].squeeze(),
        "take": keys.take(np.array([4, 0])),
        "take of an axis": keys.take(np.array([1, 1]), axis=1),
        "set": keys.at[0, 1].set(keys[1, 2]),
        "scan": folded,
        "total": total,
        "vmap": root.vmap(lambda key: r.split(key))(keys[0]),
        "two vmaps": root.vmap(root.vmap(lambda key: r.bits(key, (2,))))(keys),
        "equal": keys == keys[0],
        "different": keys[0, 0] != keys[0, 1],
        "clone": r.clone(keys[0]),
        "cond": root.lax.cond(True, lambda k: k, lambda k: r.fold_in(k, 1), keys[0, 0]),
    }


@functools.cache
def keys_of_jax() -> dict[str, Any]:
    return keys_of(jax, jax.random)


def test_typed_keys_do_what_those_of_jax_do() -> None:
    ours, theirs = keys_of(infini, random), keys_of_jax()
    for name, wanted in theirs.items():
        found = ours[name]
        assert found.shape == wanted.shape, name
        if isinstance(found, random.KeyArray):
            found, wanted = random.key_data(found), jax.random.key_data(wanted)
        np.testing.assert_array_equal(found, wanted, err_msg=name)


def test_typed_keys_look_like_those_of_jax() -> None:
    ours, theirs = random.split(random.key(SEED), 2), jax.random.split(jax.random.key(SEED), 2)
    assert repr(ours) == repr(theirs) and repr(ours[0]) == repr(theirs[0])
    assert str(ours.dtype) == str(theirs.dtype) == repr(random.key_dtype())
    assert (ours.size, ours.ndim, ours.nbytes, ours.itemsize) == (2, 1, theirs.nbytes, theirs.itemsize)
    assert random.key_impl(ours) == jax.random.key_impl(theirs)
    assert random.key_impl(random.PRNGKey(0)) == jax.random.key_impl(jax.random.PRNGKey(0))


BAD: dict[str, Callable[[Any, Any], Any]] = {
    "a number as a key": lambda r, n: r.uniform(1),
    "text as a key": lambda r, n: r.uniform("key"),
    "floats as a key": lambda r, n: r.uniform(n.zeros(2)),
    "three words": lambda r, n: r.uniform(n.zeros(3, "uint32")),
    "several raw keys": lambda r, n: r.uniform(n.zeros((2, 2), "uint32")),
    "several keys": lambda r, n: r.uniform(r.split(r.key(0), 3)),
    "signed bits": lambda r, n: r.bits(r.key(0), dtype="int32"),
    "another generator": lambda r, n: r.key(0, impl="foo"),
    "a float as a seed": lambda r, n: r.key(1.5),
    "seeds": lambda r, n: r.PRNGKey(n.arange(3)),
    "a negative fold": lambda r, n: r.fold_in(r.key(0), -1),
    "typed keys as words": lambda r, n: r.wrap_key_data(r.key(0)),
    "permutation of a float": lambda r, n: r.permutation(r.key(0), 2.5),
    "bernoulli of an integer": lambda r, n: r.bernoulli(r.key(0), 1),
    "choice of too many": lambda r, n: r.choice(r.key(0), 3, (5,), replace=False),
    "chances of another size": lambda r, n: r.choice(r.key(0), 3, (5,), p=n.ones(4)),
    "uniform integers": lambda r, n: r.uniform(r.key(0), dtype="int32"),
    "normal of text": lambda r, n: r.normal(r.key(0), ("a",)),
    "randint of floats": lambda r, n: r.randint(r.key(0), (), 0, 5, "float32"),
    "geometric floats": lambda r, n: r.geometric(r.key(0), 0.5, dtype="float32"),
    "a shape that does not fit": lambda r, n: r.gamma(r.key(0), n.ones(3), (2,)),
    "dirichlet of a number": lambda r, n: r.dirichlet(r.key(0), 1.0),
    "keys as an index": lambda r, n: hash(r.key(0)),
    "keys as NumPy arrays": lambda r, n: np.asarray(r.key(0)),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_refusals_are_those_of_jax(name: str) -> None:
    with pytest.raises(Exception) as wanted:  # JAX's says which
        BAD[name](jax.random, jnp)
    builtin = next(c for c in (TypeError, ValueError, OverflowError) if isinstance(wanted.value, c))
    with pytest.raises(builtin):
        BAD[name](random, inp)


SLOPES: dict[str, Case] = {
    "gamma": lambda r, k, n: lambda a: r.gamma(k, a).sum(),
    "loggamma": lambda r, k, n: lambda a: r.loggamma(k, a, (3, 5)).sum(),
    "lognormal": lambda r, k, n: lambda a: r.lognormal(k, a).sum(),
    "truncated_normal": lambda r, k, n: lambda a: r.truncated_normal(k, -a, a, (5,)).sum(),
    "uniform": lambda r, k, n: lambda a: r.uniform(k, (5,), minval=-a, maxval=a * a).sum(),
}


@functools.cache
def slopes_of_jax() -> dict[str, Any]:
    def all_of(a: Any) -> dict[str, Any]:
        return {
            name: jax.grad(case(jax.random, jax.random.key(SEED), jnp))(a) for name, case in SLOPES.items()
        }

    return jax.jit(all_of)(A)


@pytest.mark.parametrize("name", SLOPES)
def test_derivatives_by_parameters(name: str) -> None:
    found = infini.jit(infini.grad(SLOPES[name](random, random.key(SEED), inp)))(A)
    np.testing.assert_allclose(found, slopes_of_jax()[name], rtol=2e-4, atol=1e-5)
