"""beta * c + alpha * a @ b: the arrangement of a product, with another block at its end."""

import numpy as np

import infini as inf
from infini import tile
from infini.tile import Symbol, Tensor, arrangements

c, scalar = Tensor(2), Tensor(0, dtype="float32")
a, b = Tensor(shape=(c.shape[0], Symbol("k"))), Tensor(shape=(Symbol("k"), c.shape[1]))


def arrangement(c, a, b, beta, alpha, d):
    a, b, c, d = arrangements.matmul(a, b, c, d)
    return c, a, b, beta, alpha, d


@tile.kernel(arrangement, tensors=(c, a, b, scalar, scalar, Tensor(shape=c.shape)))
def addmm(c, a, b, beta, alpha):
    return (beta * c + alpha * arrangements.sum_of_products(a, b)).astype(c.dtype)


def main() -> float:
    random = np.random.default_rng(0)
    a, b = random.standard_normal((301, 257), np.float32), random.standard_normal((257, 203), np.float32)
    c = random.standard_normal((301, 203), np.float32)
    error = float(abs(inf.jit(addmm)(c, a, b, 0.5, 2.0) - (0.5 * c + 2 * a @ b)).max())
    print(f"addmm: largest difference from NumPy {error:.1e}")
    return error


if __name__ == "__main__":
    main()
