"""Factorisations of matrices on the stand-in for a GPU: the host computes them between launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

import infini as inf  # after the skip
import infini.numpy as inp
from infini import lax
from infini.backends import cuda
from infini.core import trace
from infini.core.backend import CompileOptions, Device
from infini.core.ir import ArrayType
from tests.backends.fake_cupy import Machine

DEVICE = Device("cuda", 0)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine().install(monkeypatch)


def runs(function: Callable[..., Any], *arrays: np.ndarray, times: int = 1) -> list[np.ndarray]:
    """Results of a function on the device, of the last of several calls."""
    backend = cuda.CudaBackend()
    types = [ArrayType(a.shape, a.dtype) for a in arrays]
    program = trace.stage(lambda *xs: inf.tree.leaves(function(*xs)), types).program
    executable = backend.compile(program, CompileOptions())
    for _ in range(times):
        found = executable([backend.put(a, DEVICE) for a in arrays])
    return [backend.get(x, t) for x, t in zip(found, program.out_types, strict=True)]


def positive(rng: np.random.Generator, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    x = rng.standard_normal(shape)
    x = x + 1j * rng.standard_normal(shape) if np.issubdtype(dtype, np.complexfloating) else x
    return (x @ x.conj().swapaxes(-1, -2) + 3 * np.eye(shape[-1])).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64])
def test_the_factor_of_a_sum_is_numpys(dtype: Any, machine: Machine, rng: np.random.Generator) -> None:
    x = positive(rng, 2, 5, 5, dtype=dtype)
    (found,) = runs(lambda x: inp.linalg.cholesky(x + x) * 2, x)
    np.testing.assert_allclose(found, 2 * np.linalg.cholesky(x + x), rtol=1e-4, atol=1e-4)


NUMPY = {
    "solve": (lambda x, y: inp.linalg.solve(x, y), lambda x, y: np.linalg.solve(x, y)),
    "inv": (lambda x, y: inp.linalg.inv(x) @ y, lambda x, y: np.linalg.inv(x) @ y),
    "det": (lambda x, y: inp.linalg.det(x), lambda x, y: np.linalg.det(x)),
    "eigvalsh": (lambda x, y: inp.linalg.eigvalsh(x), lambda x, y: np.linalg.eigvalsh(x)),
    "svd": (lambda x, y: inp.linalg.svd(y)[1], lambda x, y: np.linalg.svd(y)[1]),
    "qr": (lambda x, y: abs(inp.linalg.qr(y)[1]), lambda x, y: abs(np.linalg.qr(y)[1])),
    "pinv": (lambda x, y: inp.linalg.pinv(y), lambda x, y: np.linalg.pinv(y)),
}


@pytest.mark.parametrize("name", NUMPY)
def test_functions_of_matrices_are_numpys(name: str, machine: Machine, rng: np.random.Generator) -> None:
    x, y = positive(rng, 4, 4), rng.standard_normal((4, 3)).astype(np.float32)
    ours, theirs = NUMPY[name]
    (found,) = runs(ours, x, y)
    np.testing.assert_allclose(found, theirs(x, y), rtol=1e-4, atol=1e-4)


def test_eigenvalues_of_any_matrix_are_complex(machine: Machine) -> None:
    turn = np.asarray([[0.0, -1.0], [1.0, 0.0]], np.float32)
    (found,) = runs(lambda x: inp.linalg.eigvals(x), turn)
    np.testing.assert_allclose(sorted(found.imag), [-1, 1], atol=1e-6)


def test_a_gradient_goes_through_a_solution(machine: Machine, rng: np.random.Generator) -> None:
    x, y = positive(rng, 4, 4), rng.standard_normal(4).astype(np.float32)
    (found,) = runs(inf.grad(lambda y, x: inp.linalg.solve(x, y).sum()), y, x)
    np.testing.assert_allclose(found, np.linalg.solve(x.T, np.ones(4)), rtol=1e-4, atol=1e-4)


def test_many_matrices_under_vmap_and_in_a_loop(machine: Machine, rng: np.random.Generator) -> None:
    x = positive(rng, 3, 4, 4)

    def turn(i: Any, x: Any) -> Any:
        return lax.linalg.cholesky(x, symmetrize_input=False) + 4 * inp.eye(4)

    wanted = x
    for _ in range(3):
        wanted = np.linalg.cholesky(wanted) + 4 * np.eye(4, dtype=np.float32)
    (found,) = runs(inf.vmap(lambda x: lax.fori_loop(0, 3, turn, x)), x)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_matrix_that_is_not_positive_definite_gives_nan(machine: Machine) -> None:
    (found,) = runs(lambda x: lax.linalg.cholesky(x), -np.eye(3, dtype=np.float32))
    assert np.isnan(np.diag(found)).all()


def test_graphs_stand_before_and_after_it(machine: Machine, rng: np.random.Generator) -> None:
    x = positive(rng, 4, 4)

    def around(x: Any) -> Any:
        for _ in range(3):
            x = inp.cumsum(inp.sort(x, axis=0), axis=1)
        found = inp.linalg.svd(x, compute_uv=False)
        for _ in range(3):
            found = inp.cumsum(inp.sort(found))
        return found

    first, again = runs(around, x), runs(around, x, times=4)
    np.testing.assert_array_equal(first, again)
    assert machine.count("replay") > 0
