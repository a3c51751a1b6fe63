"""Functions that make, join, move and choose elements: under `jit`, `vmap` and `grad`, and where sizes depend
on data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini.core import errors
from infini.testing import check_grads

X = np.arange(12, dtype=np.float32).reshape(3, 4) - 4
V = np.array([3, 0, 1, 2, 0], np.int32)

# function of X and V, and NumPy's result
TRACED: list[tuple[Any, np.ndarray]] = [
    (lambda x, v: inp.nonzero(x, size=11)[1], np.nonzero(X)[1]),
    (lambda x, v: inp.argwhere(x > 2, size=5), np.argwhere(X > 2)),
    (lambda x, v: inp.compress(v, x, 1, size=2) * 0 + 1, np.ones((3, 2))),
    (lambda x, v: inp.extract(x > 2, x, size=5), X[X > 2]),
    (lambda x, v: inp.repeat(x, v[:3], 0, total_repeat_length=4), np.repeat(X, V[:3], 0)),
    (lambda x, v: inp.roll(x, v[0], 1), np.roll(X, 3, 1)),
    (lambda x, v: inp.insert(x, v[:2], 7, 1), np.insert(X, V[:2], 7, 1)),
    (lambda x, v: inp.delete(x, v[:2], 1, assume_unique_indices=True), np.delete(X, V[:2], 1)),
    (lambda x, v: inp.choose(v % 2, [v, -v], mode="clip"), np.choose(V % 2, [V, -V])),
    (lambda x, v: inp.select([x < 0, x < 4], [x, -x], 9), np.select([X < 0, X < 4], [X, -X], 9)),
    (
        lambda x, v: inp.piecewise(x, [x < 0, x > 3], [abs, 1, lambda a: a / 2]),
        np.piecewise(X, [X < 0, X > 3], [abs, 1, lambda a: a / 2]),
    ),
    (lambda x, v: inp.place(x, x > 2, v, inplace=False), np.where(X > 2, np.r_[[0] * 7, V].reshape(3, 4), X)),
    (lambda x, v: inp.put(x, v[:3], v, inplace=False), np.array([0, 1, -2, 3, *X.ravel()[4:]]).reshape(3, 4)),
    (
        lambda x, v: inp.pad(x, 2, mode="symmetric", reflect_type="odd"),
        np.pad(X, 2, mode="symmetric", reflect_type="odd"),
    ),
    (
        lambda x, v: inp.pad(x, (3, 1), mode="linear_ramp", end_values=(1, 2)),
        np.pad(X, (3, 1), mode="linear_ramp", end_values=(1, 2)),
    ),
    (lambda x, v: inp.pad(x, 1, constant_values=x[0, 0]), np.pad(X, 1, constant_values=-4)),
    (lambda x, v: inp.unpackbits(inp.packbits(v > 0)), np.unpackbits(np.packbits(V > 0))),
    (lambda x, v: inp.vectorize(inp.dot, signature="(n),(n)->()")(x, x[0]), X @ X[0]),
    (lambda x, v: inp.apply_along_axis(lambda r: r[::-1] * 2, 0, x), X[::-1] * 2),
    (lambda x, v: inp.fromfunction(lambda i, j: i * 10 + j, (2, 3)), np.array([[0, 1, 2], [10, 11, 12]])),
    (lambda x, v: inp.block([[x, x], [x[:1], x[:1]]]), np.block([[X, X], [X[:1], X[:1]]])),
    (lambda x, v: inp.r_["1,2,0", v, v], np.r_["1,2,0", V, V]),
    (lambda x, v: inp.tril(x, v[1] - 1), np.tril(X, -1)),
    (lambda x, v: inp.eye(3, k=v[2]), np.eye(3, k=1)),
    (lambda x, v: inp.diag(x[0], 1), np.diag(X[0], 1)),
    (lambda x, v: inp.unravel_index(v, (2, 2))[1], V % 2),
]  # fmt: skip


@pytest.mark.parametrize(("function", "expected"), TRACED, ids=range(len(TRACED)))
def test_traced_equals_numpy(function: Any, expected: np.ndarray) -> None:
    for run in (function, infini.jit(function)):
        np.testing.assert_allclose(run(inp.asarray(X), inp.asarray(V)), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("number", [3, 4, 5, 9, 11, 13, 14, 17, 20, 22], ids=str)
def test_traced_functions_have_derivatives(number: int) -> None:
    function = TRACED[number][0]
    with infini.config(host64="keep"):
        x = np.random.default_rng(number).permutation(X.ravel()).reshape(X.shape).astype(np.float64) + 0.3
        check_grads(lambda x: function(x, inp.asarray(V)), (x,), order=1, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("number", [0, 4, 5, 6, 7, 9, 13], ids=str)
def test_traced_functions_may_be_batched(number: int) -> None:
    function = TRACED[number][0]
    xs = np.stack([X, X[::-1], -X])
    rows = infini.vmap(function, in_axes=(0, None))(inp.asarray(xs), inp.asarray(V))
    for found, x in zip(rows, xs, strict=True):
        np.testing.assert_allclose(found, function(inp.asarray(x), inp.asarray(V)), rtol=1e-6)


SIZED = [
    inp.nonzero, inp.argwhere, inp.where, inp.flatnonzero,
    lambda x: inp.repeat(X, x.astype(int).ravel()[:3], 0),
    lambda x: inp.delete(X, x.astype(int).ravel()[:1], 0), lambda x: inp.compress(x[0], X, 1),
    lambda x: inp.trim_zeros(x[0]), lambda x: inp.ravel_multi_index((x[0].astype(int),), (20,)),
    lambda x: inp.choose(x.astype(int), [X, X]), lambda x: inp.reshape(X, (x.astype(int)[0, 0], 4)),
    lambda x: inp.arange(x[0, 0]),
]  # fmt: skip


@pytest.mark.parametrize("function", SIZED, ids=range(len(SIZED)))
def test_what_depends_on_data_is_refused_while_tracing(function: Any) -> None:
    with pytest.raises(errors.ConcretizationError) as caught:
        infini.jit(function)(X)
    assert caught.value.fix


def test_new_arrays_go_where_they_are_asked_for() -> None:
    device = infini.devices("reference")[0]
    for x in (
        inp.zeros(3, device=device), inp.arange(3, device=device), inp.asarray([1, 2], device=device),
        inp.eye(2, device=device), inp.full_like(inp.ones(2), 3, device=device),
        inp.linspace(0, 1, 3, device=device),
        inp.from_dlpack(np.arange(3, dtype=np.int32), device=device),
    ):  # fmt: skip
        assert x.devices() == {device} and x.committed


def test_numbers_of_another_shape_are_refused_with_the_way_out() -> None:
    for call in (
        lambda: inp.asarray(None), lambda: inp.fromiter([1], int), lambda: inp.fromfile("x"),
        lambda: inp.take(X, np.array([0.5])), lambda: inp.take(X, np.array([0]), mode="raise"),
        lambda: inp.put(X, np.array([0]), 1), lambda: inp.pad(X, 1, mode="other"), lambda: inp.pad(X, -1),
        lambda: inp.unravel_index(3, (2.5,)), lambda: inp.split(X, 5, 1),
        lambda: inp.meshgrid(X), lambda: inp.vectorize(inp.dot, signature="(n),(n)->()")(X, V),
    ):  # fmt: skip
        with pytest.raises(errors.InfiniError) as caught:
            call()
        assert caught.value.where


def test_index_tricks_print_their_names() -> None:
    names = ("mgrid", "ogrid", "r_", "c_", "s_", "index_exp")
    assert [repr(getattr(inp, name)) for name in names] == list(names)
