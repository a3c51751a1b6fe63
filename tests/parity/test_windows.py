"""Windowed reductions as JAX's and PyTorch's: values, gradients with ties, shapes and errors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax as jax_lax

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.core import errors
from infini.testing.tolerances import assert_close

# operand, window, strides, padding, base dilation, window dilation
TABLE: list[tuple[Any, ...]] = [
    ((2, 8, 7, 3), (1, 2, 2, 1), (1, 2, 2, 1), "VALID", None, None),
    ((2, 8, 7, 3), (1, 3, 3, 1), (1, 2, 2, 1), "SAME", None, None),
    ((2, 3, 8, 7), (1, 1, 3, 3), (1,) * 4, "SAME_LOWER", None, None),
    ((2, 3, 8, 8), (1, 1, 8, 8), (1,) * 4, "VALID", None, None),
    ((2, 60), (1, 12), (1, 8), "SAME", None, None),
    ((2, 9, 8), (1, 3, 2), (1, 1, 2), ((0, 0), (2, 1), (1, 1)), (1, 2, 1), None),
    ((200,), (100,), (1,), "SAME", None, None),
]
DILATED = ((2, 9, 8), (1, 3, 2), (1, 1, 2), ((0, 0), (2, 1), (1, 1)), (1, 2, 1), (1, 1, 3))
REDUCTIONS = {"add": 0.0, "max": -np.inf, "min": np.inf}


def of(module: Any, name: str, start: float, row: Any) -> Any:
    return lambda x: module.reduce_window(x, start, getattr(module, name), *row[1:])


def with_ties(row: Any, rng: np.random.Generator) -> np.ndarray:
    x = 2 * rng.standard_normal(row[0]).astype(np.float32)
    # Which of equal elements XLA chooses among dilated ones depends on how it lays out its loops.
    return x if row[4] else np.round(x)


@pytest.mark.parametrize(
    ("name", "row"),
    [*(("add", row) for row in TABLE), *(("max", row) for row in TABLE), ("min", TABLE[1])],
    ids=lambda value: value if isinstance(value, str) else f"{value[0]} {value[1]}",
)
def test_values_and_derivatives_are_those_of_jax(name: str, row: Any, rng: np.random.Generator) -> None:
    x = with_ties(row, rng)
    theirs, ours = (of(module, name, REDUCTIONS[name], row) for module in (jax_lax, lax))
    expected, pullback = jax.vjp(jax.jit(theirs), x)
    ct, tangent = (rng.standard_normal(shape).astype(np.float32) for shape in (expected.shape, x.shape))

    def all_of_it(x: Any, ct: Any, tangent: Any) -> Any:
        found, back = inf.vjp(ours, x)
        return found, back(ct)[0], inf.jvp(ours, (x,), (tangent,))[1]

    moved = jax.jit(lambda x, t: jax.jvp(theirs, (x,), (t,))[1])(x, tangent)
    for found, wanted in zip(
        inf.jit(all_of_it)(x, ct, tangent), (expected, *pullback(ct), moved), strict=True
    ):
        assert_close(found, np.asarray(wanted), "program")


@pytest.mark.parametrize(("name", "start"), [("add", 2.0), ("mul", 1.0), ("max", 0.5), ("min", np.inf)])
@pytest.mark.parametrize("row", [TABLE[1], TABLE[4], DILATED], ids=lambda row: f"{row[0]} {row[1]}")
def test_other_functions_and_starts_as_by_jax(
    name: str, start: float, row: Any, rng: np.random.Generator
) -> None:
    x = np.stack([with_ties(row, rng), with_ties(row, rng)])
    found = inf.jit(inf.vmap(of(lax, name, start, row)))(x)
    assert_close(found, np.asarray(jax.vmap(of(jax_lax, name, start, row))(x)), "program")


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bfloat16"])
def test_dtypes_are_those_of_jax(dtype: str, rng: np.random.Generator) -> None:
    x = rng.integers(0, 5, (4, 9))
    for name, start in (("add", 0), ("max", 0), ("mul", 1)):
        scalar = np.asarray(start, jnp.dtype(dtype))
        found, theirs = (
            module.reduce_window(array.astype(dtype), scalar, getattr(module, name), (2, 3), (1, 2), "SAME")
            for module, array in ((lax, inp.asarray(x)), (jax_lax, jnp.asarray(x)))
        )
        assert_close(found, np.asarray(theirs), "reduction")


@pytest.mark.parametrize(
    ("name", "start"), [("bitwise_or", False), ("bitwise_and", True), ("max", False), ("bitwise_xor", False)]
)
def test_booleans_as_by_jax(name: str, start: bool, rng: np.random.Generator) -> None:
    x = rng.integers(0, 2, (4, 9)).astype(bool)
    found, theirs = (
        module.reduce_window(x, start, getattr(module, name), (2, 3), (1, 2), "SAME")
        for module in (lax, jax_lax)
    )
    assert_close(found, np.asarray(theirs), "exact")


def test_complex_sums_and_extrema_as_by_jax(rng: np.random.Generator) -> None:
    x = (rng.standard_normal(12) + 1j * rng.standard_normal(12)).astype(np.complex64)
    for name, start in (("add", 0), ("max", complex(-np.inf, -np.inf))):
        found, theirs = (
            module.reduce_window(x, np.complex64(start), getattr(module, name), (3,), (2,))
            for module in (lax, jax_lax)
        )
        assert_close(found, np.asarray(theirs), "reduction")


def test_shapes_are_those_of_jax() -> None:
    arguments = ((9, 8), (3, 2), (1, 2), ((2, 1), (1, 1)), (2, 1), (1, 3))
    assert lax.reduce_window_shape_tuple(*arguments) == jax_lax.reduce_window_shape_tuple(*arguments)


# x: 4 x 4; each refused by both with one built-in class
REFUSED = """
l.reduce_window(x, 0.0, l.add, (2,)); l.reduce_window(x, 0.0, l.add, (2, 2), (1,))
l.reduce_window(x, (0.0, 0.0), l.add, (2, 2)); l.reduce_window((), (), l.add, ())
l.reduce_window(x, 0.0, l.add, (2, 2), padding="FOO"); l.reduce_window(x > 0, False, l.add, (2, 2))
l.reduce_window(x, n.zeros(2), l.mul, (2, 2)); l.reduce_window(x, 1.0, lambda a, b: (a, b), (2, 2))
l.reduce_window(x, n.int32(1), l.mul, (2, 2))
""".replace("\n", ";")


@pytest.mark.parametrize("text", [row.strip() for row in REFUSED.split(";") if row.strip()])
def test_refusals(text: str) -> None:
    def refused(numpy: Any, functions: Any) -> BaseException:
        with pytest.raises(Exception) as caught:  # the class is what is compared
            eval(text, {"n": numpy, "l": functions, "x": numpy.ones((4, 4))})
        return caught.value

    ours, theirs = refused(inp, lax), refused(jnp, jax_lax)
    built_in = next(c for c in type(theirs).__mro__ if c.__module__ == "builtins")
    assert isinstance(ours, built_in), (type(ours), type(theirs), theirs)
    assert isinstance(ours, errors.InfiniError)


@pytest.mark.parametrize(("window", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (5, 1, 2)])
def test_pooling_and_its_gradient_are_those_of_torch(
    window: int, stride: int, padding: int, rng: np.random.Generator
) -> None:
    image = rng.standard_normal((2, 3, 9, 8)).astype("f")
    options = (
        (1, 1, window, window),
        (1, 1, stride, stride),
        ((0, 0), (0, 0), (padding, padding), (padding, padding)),
    )
    for name, ours in (
        ("max_pool2d", lambda x: lax.reduce_window(x, -np.inf, lax.max, *options)),
        ("avg_pool2d", lambda x: lax.reduce_window(x, 0.0, lax.add, *options) / window**2),
    ):
        given = torch.tensor(image, requires_grad=True)
        expected = getattr(torch.nn.functional, name)(given, window, stride, padding)
        ct = rng.standard_normal(expected.shape).astype("f")
        (gradient,) = torch.autograd.grad(expected, given, torch.tensor(ct))
        found, pullback = inf.vjp(inf.jit(ours), image)
        assert_close(found, expected.detach().numpy(), "program")
        assert_close(pullback(inp.asarray(ct))[0], gradient.numpy(), "program")
