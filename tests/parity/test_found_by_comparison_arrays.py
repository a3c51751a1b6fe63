"""Small programs with arrays on which infini once differed from JAX; each stays here."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import errors, lax

A = np.array
Program = Callable[[Any, Any], Any]  # of a library and its numpy


def collective(function: Callable[..., Any], *operands: np.ndarray) -> Program:
    return lambda api, np_: api.vmap(lambda *x: function(api.lax, *x), axis_name="i")(*operands)


def viewed(x: np.ndarray, *dtypes: str) -> Program:
    return lambda api, np_: [np_.asarray(x).view(dtype) for dtype in dtypes]


CUBE = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
CASES: dict[str, Program] = {
    **{
        f"all_to_all {split} {concat}": collective(
            lambda lax, x, split=split, concat=concat: lax.all_to_all(x, "i", split, concat), x
        )
        for split, concat, x in ((0, 1, CUBE), (1, 0, CUBE), (0, 0, CUBE[:, :, :2]), (1, 0, CUBE[:, :2]))
    },
    "slope of all_to_all": lambda api, np_: api.grad(
        lambda x: (api.vmap(lambda x: api.lax.all_to_all(x, "i", 0, 1) * x[0], axis_name="i")(x) ** 2).sum()
    )(CUBE),
    "pswapaxes": collective(lambda lax, x: lax.pswapaxes(x, "i", 1), CUBE[:, :2]),
    "pshuffle": collective(lambda lax, x: lax.pshuffle(x, "i", [2, 0, 1]), CUBE[:, 0, 0]),
    "mean of integers over a named axis": collective(
        lambda lax, x: (lax.pmean(x, "i"), lax.pmean(x > 1, "i")), A([1, 2, 4])
    ),
    "booleans counted over a named axis": collective(lambda lax, x: lax.psum(x, "i"), A([True, False, True])),
    "softmax of nothing chosen": lambda api, np_: [
        function(lambda x: api.nn.softmax(x, where=A([[True, False], [False, False]])))(
            A([[1, 2], [3, 4]], "f")
        )
        for function in (api.jit, api.jacrev)
    ],
    "softmax of nothing": lambda api, np_: [
        function(np.zeros((2, 0), "f"), axis=1)
        for function in (api.nn.softmax, api.nn.log_softmax, api.nn.logsumexp)
    ],
    "Python's round": lambda api, np_: [
        round(x, *digits)
        for x in map(np_.asarray, (A(2.56, "f"), A([2.5, -3.5], "f")))
        for digits in ((), (1,))
    ],
    "Python's round inside jit": lambda api, np_: api.jit(lambda x: (round(x), round(x, 1)))(A(2.56, "f")),
    "more digits than there are": lambda api, np_: np_.round(np_.asarray(A([0.3, -2], "f")), 40),
    "views of floats": viewed(A([[1, 2]], "f"), "uint8", "float16", "int32", "complex64", "float32"),
    "views of complex numbers": viewed(A([[1 + 3j, 2]], "complex64"), "float32", "int32", "uint8", "bool"),
    "views of booleans": viewed(A([True, False] * 4), "int8", "uint8", "bool", "int32", "complex64"),
    "views of bytes": viewed(np.arange(16, dtype=np.uint8), "bool", "int16", "float32", "complex64"),
    "views of nothing": viewed(np.ones((2, 0), "int8"), "int32", "complex64", "bool"),
    "view of a scalar": viewed(A(1.0, "f"), "int32"),
    "whole angles": lambda api, np_: [
        np_.unwrap(A([3, 1, 2, 1, -4], dtype), period=period)
        for dtype in ("int32", "int8")
        for period in (3, 4, 5)
    ],
    "subscripts in Greek": lambda api, np_: np_.einsum("αβ,βγ", np.ones((2, 3), "f"), np.ones((3, 2), "f")),
    "several pseudo-inverses": lambda api, np_: np_.linalg.pinv(
        np.arange(24, dtype="f").reshape(2, 3, 4) % 7
    ),
    "subtracted unsigned numbers and booleans": lambda api, np_: [
        np_.asarray(x).at[:2].subtract(value)
        for x in (A([1, 2, 3], "f"), A([1, 2, 3], "int32"), A([1 + 1j, 2, 3], "complex64"))
        for value in (True, np.uint8(3), A([1, 2], "uint8"))
    ],
    "full of what is no integer": lambda api, np_: [
        np_.full(2, fill, "int32") for fill in (float("nan"), 1e10, -1e10)
    ],
}


@pytest.mark.parametrize("name", CASES)
def test_equals_jax(name: str) -> None:
    ours, theirs = CASES[name](infini, inp), CASES[name](jax, jnp)
    for a, b in zip(infini.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert isinstance(a, infini.Array) and a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "program",
    [
        lambda np_: np_.array(float("nan"), dtype="int32"),
        lambda np_: np_.array([1.0, float("nan")], dtype="int32"),
        lambda np_: np_.array(1e10, dtype="int32"),
        lambda np_: np_.array([float("inf")], dtype="uint8"),
        lambda np_: np_.asarray(300.5, dtype="int8"),
        lambda np_: np_.result_type(),
        lambda np_: np_.asarray(A(1.0, "f")).view("int8"),
        lambda np_: np_.asarray(A([1, 2, 3], "int8")).view("int16"),
        lambda np_: np_.asarray(A([1, 2, 3], "f")).view("complex64"),
    ],
)
def test_errors_are_jax_s(program: Callable[[Any], Any]) -> None:
    with pytest.raises((ValueError, OverflowError)) as theirs:
        program(jnp)
    with pytest.raises(theirs.type) as ours:
        program(inp)
    assert isinstance(ours.value, errors.InfiniError)


def test_all_to_all_of_another_size_says_so() -> None:
    with pytest.raises(errors.ValueMismatchError, match="size of the axis"):
        infini.vmap(lambda x: lax.all_to_all(x, "i", 0, 0), axis_name="i")(np.ones((3, 2), "f"))
