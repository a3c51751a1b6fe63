"""Random indices: `x[index]`, `x.at[index]` and their gradients give what JAX gives."""

from __future__ import annotations

from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini.core import errors
from tests.numpy.indices import draw_index

# 25 by day, thousands in the night profile.
SEEDS = range(hypothesis.settings.default.max_examples // 2)
KINDS = ["set", "add", "subtract", "multiply", "divide", "power", "min", "max"]


def converted(numpy: Any, index: Any) -> Any:  # Any: a namespace and an index
    """The index with arrays of a library in place of NumPy's."""
    one = lambda part: numpy.asarray(part) if isinstance(part, np.ndarray) else part  # noqa: E731
    return tuple(map(one, index)) if isinstance(index, tuple) else one(index)


def outcome(call: Any) -> Any:  # Any: a function, and its result or error
    try:
        return jax.tree.map(np.asarray, call())
    except Exception as error:  # noqa: BLE001  # classes of errors are what is compared
        return error


def is_alike(ours: Any, theirs: Any) -> bool:  # Any: results or errors
    if isinstance(theirs, Exception):
        built_in = next(c for c in type(theirs).__mro__ if c.__module__ == "builtins")
        return isinstance(ours, built_in) and isinstance(ours, errors.InfiniError)
    return not isinstance(ours, Exception) and all(
        x.dtype == y.dtype and x.shape == y.shape and np.allclose(x, y, 1e-5, 1e-5)
        for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_indices_inside_with_gradients(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape, index = draw_index(rng, outside=False)
    x = rng.integers(1, 9, shape).astype(np.float32)
    place = x[index if isinstance(index, tuple) else (index,)].shape
    v = rng.integers(1, 4, place[int(rng.integers(0, len(place) + 1)) :]).astype(np.float32)
    weights = rng.integers(1, 5, shape).astype(np.float32), rng.integers(1, 5, place).astype(np.float32)
    kind = KINDS[seed % len(KINDS)]
    # JAX refuses these two where a place may repeat.
    kwargs = {"unique_indices": True} if kind in ("multiply", "divide", "power") else {}

    def run(api: Any, numpy: Any) -> Any:
        at = converted(numpy, index)

        def both(x: Any, v: Any) -> Any:
            return getattr(x.at[at], kind)(v, **kwargs), x[at]

        def loss(x: Any, v: Any) -> Any:
            return sum((out * w).sum() for out, w in zip(both(x, v), weights, strict=True))

        of_v = (0, 1) if "unique_indices" not in kwargs else (0,)
        return api.jit(lambda x, v: (*both(x, v), *api.grad(loss, of_v)(x, v)))(x, v)

    ours, theirs = outcome(lambda: run(infini, inp)), outcome(lambda: run(jax, jnp))
    assert is_alike(ours, theirs), (shape, index, kind, ours, theirs)


@pytest.mark.parametrize("seed", SEEDS)
def test_indices_outside_in_every_mode(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape, index = draw_index(rng, outside=True)
    x = rng.integers(1, 9, shape).astype(np.float32)
    mode = ["fill", "clip", "promise_in_bounds"][seed % 3]
    kind = KINDS[seed % len(KINDS)]
    wraps = bool(rng.random() < 0.7)

    def run(api: Any, numpy: Any) -> Any:
        at = converted(numpy, index)

        def read_and_write(x: Any) -> Any:
            read = x.at[at].get(mode=mode, fill_value=7, wrap_negative_indices=wraps)
            write = getattr(x.at[at], kind)(
                2, mode="drop" if mode == "fill" else mode, wrap_negative_indices=wraps
            )
            return read, write, x.at[at].set(5), x[at]

        return api.jit(read_and_write)(x)

    ours, theirs = outcome(lambda: run(infini, inp)), outcome(lambda: run(jax, jnp))
    assert is_alike(ours, theirs), (shape, index, kind, mode, ours, theirs)


WRONG = [
    "x[0, 0, 0]", "x['a']", "x[[0, 1]]", "x[1.0]", "x[n.asarray([0.5])]", "x[..., ...]", "x[{}]",
    "x[object()]", "x[n.asarray([True, False, True])]", "x[0:1.5]", "n.zeros((0, 3))[0]",
    "n.zeros((0, 3)).at[0].set(1)", "n.zeros((0, 3))[n.asarray([0])]", "x.at[[0, 1]].set(1)",
    "x.at[0].set([1, 2])", "x.at[0].set({})", "x.at[0].get(mode='other')",
    "x.at[0].set(1, mode='other')", "x.at[n.asarray([7])].get(mode='fill', fill_value=n.ones(1))",
    "x.at[0].set(1, other=2)", "api.jit(lambda x: x[x > 1])(x)",
    "api.jit(lambda x: x.at[x > 1].set(x[0]))(x)", "api.jit(lambda x, i: x[i:])(x, 1)",
    "x[n.asarray([0, 1]), n.asarray([0, 1, 2])]", "x.at[0].multiply({})", "(x > 1).at[0].add(True)",
    "(x > 1).at[n.asarray([0])].multiply(True)",
    "api.grad(lambda v: x.at[n.asarray([0, 0])].mul(v).sum())(2.0)",
]  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_what_jax_refuses_is_refused(text: str) -> None:
    def evaluated(numpy: Any, api: Any) -> Any:
        return outcome(lambda: eval(text, {"n": numpy, "api": api, "x": numpy.arange(6.0).reshape(2, 3)}))

    ours, theirs = evaluated(inp, infini), evaluated(jnp, jax)
    assert isinstance(theirs, Exception) and (is_alike(ours, theirs) or "other=" in text), (ours, theirs)
