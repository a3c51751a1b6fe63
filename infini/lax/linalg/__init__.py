"""Decompositions of matrices and equations with triangular ones, under `jax.lax.linalg`'s names.

Each is an operation that a library computes, and is declared as such (`python -m infini.backends` shows the
route): LAPACK on the CPU; on other devices NumPy on the host, with copies there and back. Matrices are the
last two dimensions; all others are loop dimensions.
"""

from typing import Final

from infini.lax.linalg.eigen import eigh as eigh, eigh_p as eigh_p
from infini.lax.linalg.elimination import (
    lu as lu,
    lu_p as lu_p,
    lu_pivots_to_permutation as lu_pivots_to_permutation,
)
from infini.lax.linalg.general import eig as eig, eig_p as eig_p
from infini.lax.linalg.positive_definite import cholesky as cholesky, cholesky_p as cholesky_p
from infini.lax.linalg.reflections import qr as qr, qr_p as qr_p
from infini.lax.linalg.singular import svd as svd, svd_p as svd_p
from infini.lax.linalg.triangular import (
    triangular_solve as triangular_solve,
    triangular_solve_p as triangular_solve_p,
)

NAMES: Final = frozenset(op.name for op in (cholesky_p, eig_p, eigh_p, lu_p, qr_p, svd_p, triangular_solve_p))
