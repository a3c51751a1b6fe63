"""Programs of linear algebra, and what JAX gives for them: `python -m tests.parity.linalg_table` records it,
because compiling them with JAX takes minutes.

Vectors of decompositions are compared as what they make, since their signs and phases are free.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Function = Callable[..., Any]
RNG = np.random.default_rng(11)


def square(n: int = 4, dtype: str = "float32") -> np.ndarray:
    """A well conditioned matrix."""
    return (general(n, n, dtype) + 4 * np.eye(n)).astype(dtype)


def general(rows: int, columns: int, dtype: str = "float32") -> np.ndarray:
    x = RNG.standard_normal((rows, columns))
    return (x + 1j * RNG.standard_normal(x.shape) if dtype.startswith("complex") else x).astype(dtype)


def positive(n: int = 4, dtype: str = "float32") -> np.ndarray:
    x = general(n, n, dtype)
    return (x @ x.conj().T + n * np.eye(n)).astype(dtype)


def hermitian(n: int = 4, dtype: str = "float32") -> np.ndarray:
    x = general(n, n, dtype)
    return (x + x.conj().T + np.diag(5.0 * np.arange(n))).astype(dtype)


NORMS = {
    f"norm {shape} ord={order} axis={axis} keepdims={keepdims}": (
        lambda np_, x, o=order, a=axis, k=keepdims: np_.linalg.norm(x, o, a, k),
        (general(*shape),) if len(shape) == 2 else (RNG.standard_normal(shape).astype("float32"),),
    )
    for shape, axis, orders in [
        ((6,), None, [None, 0, 1, 2, 3, -1, 2.5, np.inf, -np.inf]),
        ((3, 4), None, [None, "fro", "nuc", 1, -1, 2, -2, np.inf, -np.inf]),
        ((3, 4), 0, [None, 1, np.inf, 4]),
        ((2, 3, 4), (2, 0), [None, "fro", 1, -1, 2, np.inf, -np.inf, "nuc"]),
        ((2, 3, 4), None, [None]),
    ]
    for order in orders
    for keepdims in ((False, True) if order in (None, 1) else (False,))
}

# name: (function of a numpy namespace and operands, operands)
VALUES: dict[str, tuple[Function, tuple[Any, ...]]] = {
    **NORMS,
    "norm of integers": (lambda np_, x: np_.linalg.norm(x), (np.arange(6).reshape(2, 3),)),
    "norm of float16": (lambda np_, x: np_.linalg.norm(x), (general(2, 3, "float16"),)),
    "norm of complex": (lambda np_, x: np_.linalg.norm(x, 1, 0), (general(2, 3, "complex64"),)),
    "vector_norm": (lambda np_, x: np_.linalg.vector_norm(x, axis=(0, 1), keepdims=True), (general(2, 3),)),
    "vector_norm 3": (lambda np_, x: np_.linalg.vector_norm(x, axis=1, ord=3), (general(2, 3),)),
    "matrix_norm": (lambda np_, x: np_.linalg.matrix_norm(x, keepdims=True, ord=1), (general(2, 3),)),
    "cholesky": (lambda np_, x: np_.linalg.cholesky(x), (positive(),)),
    "cholesky upper": (lambda np_, x: np_.linalg.cholesky(x, upper=True), (positive(dtype="complex64"),)),
    "cholesky of 50": (lambda np_, x: np_.linalg.cholesky(x), (positive(50),)),
    "cholesky fails": (lambda np_, x: np_.linalg.cholesky(x), (-positive(),)),
    "solve": (lambda np_, a, b: np_.linalg.solve(a, b), (square(), general(4, 2))),
    "solve vector": (lambda np_, a, b: np_.linalg.solve(a, b), (square(), general(4, 1)[:, 0])),
    "solve complex": (
        lambda np_, a, b: np_.linalg.solve(a, b), (square(dtype="complex64"), general(4, 2, "complex64")),
    ),
    "solve broadcasts": (
        lambda np_, a, b: np_.linalg.solve(a, b), (np.stack([square(3), square(3)]), general(3, 2)),
    ),
    "solve of 60": (lambda np_, a, b: np_.linalg.solve(a, b), (square(60), general(60, 3))),
    "inv": (lambda np_, x: np_.linalg.inv(x), (square(),)),
    "inv of integers": (lambda np_, x: np_.linalg.inv(x), (np.array([[2, 1], [1, 1]]),)),
    **{f"det {n}": (lambda np_, x: np_.linalg.det(x), (square(n),)) for n in (1, 2, 3, 4, 5)},
    "det of a batch": (lambda np_, x: np_.linalg.det(x), (np.stack([square(4)] * 2),)),
    "det singular": (lambda np_, x: np_.linalg.det(x), (np.ones((4, 4), np.float32),)),
    "slogdet": (lambda np_, x: tuple(np_.linalg.slogdet(x)), (square(5),)),
    "slogdet complex": (lambda np_, x: tuple(np_.linalg.slogdet(x)), (square(4, "complex64"),)),
    "slogdet singular": (lambda np_, x: tuple(np_.linalg.slogdet(x)), (np.zeros((3, 3), np.float32),)),
    "qr": (lambda np_, x: tuple(np_.linalg.qr(x)), (general(5, 3),)),
    "qr wide": (lambda np_, x: tuple(np_.linalg.qr(x)), (general(3, 5),)),
    "qr complete": (lambda np_, x: tuple(np_.linalg.qr(x, "complete")), (general(5, 3),)),
    "qr r": (lambda np_, x: np_.linalg.qr(x, "r"), (general(5, 3, "complex64"),)),
    "qr of 70": (lambda np_, x: np_.linalg.qr(x, "r"), (general(70, 40),)),
    "eigh": (lambda np_, x: np_.abs(np_.linalg.eigh(x)[1]), (hermitian(),)),
    "eigvalsh": (lambda np_, x: np_.linalg.eigvalsh(x), (hermitian(dtype="complex64"),)),
    "eigvalsh of 60": (lambda np_, x: np_.linalg.eigvalsh(x), (hermitian(60),)),
    "eigvalsh U": (
        lambda np_, x: np_.linalg.eigvalsh(x, "U", symmetrize_input=False), (general(4, 4, "complex64"),),
    ),
    "eigvalsh L": (
        lambda np_, x: np_.linalg.eigvalsh(x, "L", symmetrize_input=False), (general(4, 4, "complex64"),),
    ),
    "svd": (lambda np_, x: tuple(np_.linalg.svd(x, full_matrices=False))[1], (general(5, 3),)),
    "svd rebuilt": (lambda np_, x: rebuilt(np_, np_.linalg.svd(x, False)), (general(3, 5, "complex64"),)),
    "svd full": (lambda np_, x: np_.abs(np_.linalg.svd(x)[0]), (general(3, 5),)),
    "svd hermitian": (lambda np_, x: rebuilt(np_, np_.linalg.svd(x, hermitian=True)), (hermitian(),)),
    "svdvals": (lambda np_, x: np_.linalg.svdvals(x), (general(40, 70),)),
    "pinv": (lambda np_, x: np_.linalg.pinv(x), (general(5, 3),)),
    "pinv of rank 1": (lambda np_, x: np_.linalg.pinv(x), (np.ones((3, 4), np.float32),)),
    "lstsq": (lambda np_, a, b: np_.linalg.lstsq(a, b), (general(6, 3), general(6, 2))),
    "lstsq vector": (lambda np_, a, b: np_.linalg.lstsq(a, b)[0], (general(6, 3), general(6, 1)[:, 0])),
    "matrix_rank": (lambda np_, x: np_.linalg.matrix_rank(x), (np.ones((3, 3), np.float32),)),
    "matrix_rank rtol": (
        lambda np_, x: np_.linalg.matrix_rank(x, rtol=0.05),
        (np.diag([100.0, 0.1, 1e-7]).astype("float32"),),
    ),
    "matrix_rank vector": (lambda np_, x: np_.linalg.matrix_rank(x), (np.ones(3, np.float32),)),
    "cond": (lambda np_, x: np_.linalg.cond(x), (square(),)),
    "cond 1": (lambda np_, x: np_.linalg.cond(x, 1), (square(),)),
    "cond -2": (lambda np_, x: np_.linalg.cond(x, -2), (square(),)),
    "cond singular": (lambda np_, x: np_.linalg.cond(x, 1), (np.array([[1, 2], [2, 4]], np.float32),)),
    **{
        f"matrix_power {n}": (lambda np_, x, n=n: np_.linalg.matrix_power(x, n), (square(3),))
        for n in (-2, 0, 1, 5)
    },
    "multi_dot": (lambda np_, *x: np_.linalg.multi_dot(x), (general(2, 6), general(6, 3), general(3, 1))),
    "multi_dot vectors": (
        lambda np_, *x: np_.linalg.multi_dot(x), (general(1, 6)[0], general(6, 3), general(1, 3)[0]),
    ),
    "tensorinv": (
        lambda np_, x: np_.linalg.tensorinv(x), (square(24).reshape(4, 6, 8, 3),),
    ),
    "tensorsolve": (
        lambda np_, a, b: np_.linalg.tensorsolve(a, b), (square(6).reshape(2, 3, 6), general(2, 3)),
    ),
    "outer": (lambda np_, a, b: np_.linalg.outer(a, b), (np.arange(3.0), np.arange(2.0))),
    "diagonal": (lambda np_, x: np_.linalg.diagonal(x, offset=1), (general(3, 4),)),
    "trace": (lambda np_, x: np_.linalg.trace(x, offset=-1), (general(3, 4),)),
    "vecdot": (lambda np_, a, b: np_.linalg.vecdot(a, b), (general(3, 4), general(3, 4))),
    "cross": (lambda np_, a, b: np_.linalg.cross(a, b), (general(2, 3), general(2, 3))),
    "matrix_transpose": (lambda np_, x: np_.linalg.matrix_transpose(x), (general(2, 3),)),
}  # fmt: skip


def rebuilt(np_: Any, factors: Any) -> Any:
    u, s, vh = factors
    return np_.matmul(u * s, vh)


# Functions that JAX differentiates, each to a scalar that does not depend on free signs.
SLOPES: dict[str, tuple[Function, tuple[Any, ...]]] = {
    "norm fro": (lambda np_, x: np_.linalg.norm(x), (general(3, 4),)),
    "norm 3": (lambda np_, x: np_.linalg.norm(x, 3, 0), (general(3, 4),)),
    "norm nuc": (lambda np_, x: np_.linalg.norm(x, "nuc"), (general(3, 4),)),
    "norm complex": (lambda np_, x: np_.linalg.norm(x), (general(3, 4, "complex64"),)),
    "cholesky": (lambda np_, x: np_.linalg.cholesky(x), (positive(),)),
    "cholesky complex": (lambda np_, x: np_.abs(np_.linalg.cholesky(x)), (positive(3, "complex64"),)),
    "solve": (lambda np_, a, b: np_.linalg.solve(a, b), (square(), general(4, 2))),
    "solve complex": (
        lambda np_, a, b: np_.abs(np_.linalg.solve(a, b)),
        (square(dtype="complex64"), general(4, 2, "complex64")),
    ),
    "inv": (lambda np_, x: np_.linalg.inv(x), (square(),)),
    **{f"det {n}": (lambda np_, x: np_.linalg.det(x), (square(n),)) for n in (2, 3, 4)},
    "slogdet": (lambda np_, x: np_.linalg.slogdet(x)[1], (square(),)),
    "qr": (lambda np_, x: tuple(np_.linalg.qr(x)), (general(5, 3),)),
    "qr wide": (lambda np_, x: tuple(np_.linalg.qr(x)), (general(3, 5),)),
    "qr complex": (lambda np_, x: np_.abs(np_.linalg.qr(x, "r")), (general(4, 3, "complex64"),)),
    "eigvalsh": (lambda np_, x: np_.linalg.eigvalsh(x), (hermitian(),)),
    "eigvalsh complex": (lambda np_, x: np_.linalg.eigvalsh(x), (hermitian(3, "complex64"),)),
    "eigenvectors": (lambda np_, x: np_.abs(np_.linalg.eigh(x)[1]), (hermitian(),)),
    "singular values": (lambda np_, x: np_.linalg.svd(x, compute_uv=False), (general(3, 5),)),
    "left vectors": (lambda np_, x: np_.abs(np_.linalg.svd(x, False)[0]), (general(5, 3),)),
    "right vectors": (lambda np_, x: np_.abs(np_.linalg.svd(x, False)[2]), (general(3, 4, "complex64"),)),
    "pinv": (lambda np_, x: np_.linalg.pinv(x), (general(5, 3),)),
    "lstsq": (lambda np_, a, b: np_.linalg.lstsq(a, b)[0], (general(6, 3), general(6, 2))),
    "matrix_power": (lambda np_, x: np_.linalg.matrix_power(x, -3), (square(3),)),
}


def weighted(np_: Any, results: Any) -> Any:
    """A scalar that every element counts in, each in its own way."""
    parts = results if isinstance(results, tuple) else (results,)
    return sum(np_.sum(np_.sin(np_.arange(y.size).reshape(y.shape) + 1.0) * y) for y in parts)


BATCHED = ("cholesky", "solve", "qr", "eigvalsh", "singular values", "slogdet", "pinv")
RECORDED = Path(__file__).parent / "recorded" / "linalg.npz"


def values(lib: Any, np_: Any, name: str) -> Any:
    function, operands = VALUES[name]
    return lib.jit(lambda *xs: function(np_, *xs))(*operands)


def slopes(lib: Any, np_: Any, name: str) -> Any:
    function, operands = SLOPES[name]
    places = tuple(range(len(operands)))
    return lib.jit(lib.grad(lambda *xs: weighted(np_, function(np_, *xs)), places))(*operands)


def slopes_of_a_batch(lib: Any, np_: Any, name: str) -> Any:
    """Forward derivatives along the operands themselves."""
    function, operands = SLOPES[name]
    stacked = [np.stack([x, x * np.float32(1.5)]) for x in operands]

    def along(*xs: Any) -> Any:
        return lib.jvp(lambda *ys: weighted(np_, function(np_, *ys)), xs, xs)[1]

    return lib.jit(lib.vmap(along))(*stacked)


PROGRAMS: dict[str, tuple[Function, tuple[str, ...]]] = {
    "values": (values, tuple(VALUES)),
    "slopes": (slopes, tuple(SLOPES)),
    "slopes_of_a_batch": (slopes_of_a_batch, BATCHED),
}


def flat(results: Any) -> list[Any]:
    """The arrays of a result in order."""
    return [y for part in results for y in flat(part)] if isinstance(results, (tuple, list)) else [results]


def record() -> None:
    """Evaluate every program with JAX."""
    jax, jnp = importlib.import_module("jax"), importlib.import_module("jax.numpy")
    found = {
        f"{kind}/{name}/{i}": np.asarray(y)
        for kind, (run, names) in PROGRAMS.items()
        for name in names
        for i, y in enumerate(flat(run(jax, jnp, name)))
    }
    np.savez_compressed(RECORDED, **found)


if __name__ == "__main__":
    record()
