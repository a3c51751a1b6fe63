"""Linear algebra with `jax.numpy.linalg`'s names. Matrices are the last two dimensions.

Decompositions are operations of `lax.linalg`, which LAPACK computes on the CPU: a library call, which
`python -m infini.backends` shows as such. Integers become floats.
"""

from infini.numpy.linalg.decompositions import (
    EighResult as EighResult,
    QRResult as QRResult,
    SVDResult as SVDResult,
    cholesky as cholesky,
    eigh as eigh,
    eigvalsh as eigvalsh,
    matrix_rank as matrix_rank,
    qr as qr,
    svd as svd,
    svdvals as svdvals,
)
from infini.numpy.linalg.determinants import (
    SlogdetResult as SlogdetResult,
    det as det,
    slogdet as slogdet,
)
from infini.numpy.linalg.eigenvalues import (
    EigResult as EigResult,
    eig as eig,
    eigvals as eigvals,
)
from infini.numpy.linalg.norms import (
    matrix_norm as matrix_norm,
    norm as norm,
    vector_norm as vector_norm,
)
from infini.numpy.linalg.powers import (
    cross as cross,
    diagonal as diagonal,
    matmul as matmul,
    matrix_power as matrix_power,
    multi_dot as multi_dot,
    outer as outer,
    tensordot as tensordot,
    trace as trace,
    vecdot as vecdot,
)
from infini.numpy.linalg.solving import (
    cond as cond,
    inv as inv,
    lstsq as lstsq,
    pinv as pinv,
    solve as solve,
    tensorinv as tensorinv,
    tensorsolve as tensorsolve,
)
from infini.numpy.manipulation import matrix_transpose as matrix_transpose
