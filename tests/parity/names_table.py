"""Programs of names beside the arrays, and what JAX gives for them: `python -m tests.parity.names_table`
records it, because compiling them with JAX takes a minute."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Program = Callable[[Any, Any, Any], Any]  # of a library, its numpy and its scipy
X = np.array([-15, -4.5, -3, -1.2, -0.5, 0, -0.0, 0.3, 0.7, 1, 2.5, 6, 12], np.float32)
P = np.array([0.01, 0.3, 0.5, 0.99, 1e-5, 0.7, 0.2, 0.9, 0.4, 0.6, 0.8, 0.1, 0.25], np.float32)
Y = np.abs(X) + np.float32(0.5)
ROWS = np.array([5.0, 1, 7, 2, 9], np.float32)
IDS = np.array([0, 0, 1, 3, -1])
MATRIX = np.array([[4.0, 1, 0], [1, 3, 1], [0, 1, 2]], np.float32)
TREE = {"a": np.arange(4, dtype=np.int32).reshape(2, 2), "b": [np.ones(2, np.float32), 3.0]}


def special(name: str, *operands: Any) -> Program:
    return lambda lib, np_, sp: getattr(sp.special, name)(*operands)


def undone(lib: Any, tree: Any) -> Any:
    flat, undo = lib.flatten_util.ravel_pytree(tree)
    return flat, undo(flat)["a"], undo(flat)["b"]


PROGRAMS: dict[str, Program] = {
    **{
        name: special(name, X)
        for name in (
            "erf",
            "erfc",
            "expit",
            "gamma",
            "gammaln",
            "gammasgn",
            "i0",
            "i0e",
            "i1",
            "i1e",
            "log_ndtr",
            "loggamma",
            "ndtr",
            "softmax",
            "log_softmax",
            "logsumexp",
        )
    },
    **{name: special(name, P) for name in ("erfinv", "logit", "entr")},
    **{
        name: special(name, Y, P)
        for name in ("beta", "betaln", "gammainc", "gammaincc", "kl_div", "rel_entr")
    },
    **{name: special(name, X, Y) for name in ("xlogy", "xlog1py")},
    "betainc": special("betainc", Y, P, P),
    "digamma": special("digamma", Y),
    "factorial": special("factorial", np.arange(-1, 5)),
    "multigammaln": special("multigammaln", Y + 4, 3),
    "polygamma": special("polygamma", 1, Y),
    "zeta": special("zeta", Y + 1, Y),
    **{
        f"norm.{name}": (lambda lib, np_, sp, name=name: getattr(sp.stats.norm, name)(X, 0.5, 2.0))
        for name in (
            "cdf",
            "logcdf",
            "logpdf",
            "logsf",
            "pdf",
            "sf",
        )
    },
    "slope of entr": lambda lib, np_, sp: lib.grad(lambda v: np_.sum(sp.special.entr(v)))(P),
    "slope of log_ndtr": lambda lib, np_, sp: lib.grad(lambda v: np_.sum(sp.special.log_ndtr(v)))(X),
    "slope of xlogy": lambda lib, np_, sp: lib.grad(lambda v: np_.sum(sp.special.xlogy(v, Y)))(X),
    "cho_solve": lambda lib, np_, sp: sp.linalg.cho_solve(sp.linalg.cho_factor(MATRIX), ROWS[:3]),
    "scipy solve": lambda lib, np_, sp: sp.linalg.solve(MATRIX, ROWS[:3], assume_a="pos"),
    **{
        f"lu_solve {t}": (
            lambda lib, np_, sp, t=t: sp.linalg.lu_solve(sp.linalg.lu_factor(MATRIX), ROWS[:3], t)
        )
        for t in (0, 1)
    },
    "solve_triangular": lambda lib, np_, sp: sp.linalg.solve_triangular(
        MATRIX, ROWS[:3], trans=1, lower=True
    ),
    **{
        name: (lambda lib, np_, sp, name=name: getattr(lib.ops, name)(ROWS, IDS))
        for name in (
            "segment_max",
            "segment_min",
            "segment_prod",
            "segment_sum",
        )
    },
    "segments of rows": lambda lib, np_, sp: lib.ops.segment_sum(np.ones((5, 2), np.float32), IDS, 3),
    "segments of integers": lambda lib, np_, sp: lib.ops.segment_max(
        ROWS.astype(np.int32), IDS, num_segments=6
    ),
    "slope of segments": lambda lib, np_, sp: lib.grad(lambda x: (lib.ops.segment_sum(x, IDS, 4) ** 2).sum())(
        ROWS
    ),
    "ravel_pytree": lambda lib, np_, sp: undone(lib, TREE),
    "ravel_pytree of one dtype": lambda lib, np_, sp: lib.flatten_util.ravel_pytree({"x": np.arange(3)}),
    "orthogonal": lambda lib, np_, sp: lib.random.orthogonal(lib.random.key(1), 3, (2,), None, 5),
    "orthogonal complex": lambda lib, np_, sp: lib.random.orthogonal(lib.random.key(1), 3, dtype="complex64"),
    **{
        f"multivariate_normal {method}": (
            lambda lib, np_, sp, method=method: lib.random.multivariate_normal(
                lib.random.key(1), ROWS[:3], MATRIX, (4,), method=method
            )
        )
        for method in ("cholesky", "eigh", "svd")
    },
    **{
        f"initializers.orthogonal {shape} {axis}": (
            lambda lib, np_, sp, shape=shape, axis=axis: lib.nn.initializers.orthogonal(2.0, axis)(
                lib.random.key(0), shape
            )
        )
        for shape, axis in (((4, 3), -1), ((3, 4), -1), ((2, 3, 4), 0))
    },
    "delta_orthogonal": lambda lib, np_, sp: lib.nn.initializers.delta_orthogonal()(
        lib.random.key(0), (3, 2, 5)
    ),
}


RECORDED = Path(__file__).parent / "recorded" / "names.npz"


def flat(results: Any) -> list[Any]:
    """The arrays of a result in order."""
    if isinstance(results, (tuple, list)):
        return [y for part in results for y in flat(part)]
    return [] if callable(results) else [results]


def record() -> None:
    """Evaluate every program with JAX."""
    jax, *modules = (
        importlib.import_module(name)
        for name in (
            "jax",
            "jax.numpy",
            "jax.scipy",
            "jax.flatten_util",
            "jax.scipy.special",
            "jax.scipy.stats",
        )
    )
    found = {
        f"{name}/{i}": np.asarray(y)
        for name, run in PROGRAMS.items()
        for i, y in enumerate(flat(run(jax, *modules[:2])))
    }
    np.savez_compressed(RECORDED, **found)


if __name__ == "__main__":
    record()
