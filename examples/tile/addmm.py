"""beta * c + alpha * a @ b: a matrix product whose sum starts from nothing and ends with another block."""

import numpy as np

import infini as inf
import infini.numpy as inp
from infini import lax, tile
from infini.tile import Symbol, Tensor, block_size
from infini.tile.arrangements import accumulator

BM, BN, BK = (block_size(16, 128, name=name) for name in ("BM", "BN", "BK"))
c, scalar = Tensor(2), Tensor(0, dtype="float32")
a, b = Tensor(shape=(c.shape[0], Symbol("k"))), Tensor(shape=(Symbol("k"), c.shape[1]))


def arrangement(c, a, b, beta, alpha, d):
    c, d = c.tile((BM, BN)), d.tile((BM, BN))
    a = a.tile((BM, BK)).tile((1, -1)).expand((-1, d.shape[1])).squeeze(0, level=1)
    b = b.tile((BK, BN)).tile((-1, 1)).expand((d.shape[0], -1)).squeeze(1, level=1)
    return c, a, b, beta, alpha, d


@tile.kernel(arrangement, tensors=(c, a, b, scalar, scalar, Tensor(shape=c.shape)))
def addmm(c, a, b, beta, alpha):
    dtype = accumulator(a.dtype)

    def step(total, blocks):
        return total + inp.matmul(*blocks, preferred_element_type=dtype), None

    total, _ = lax.scan(step, inp.zeros(c.shape, dtype), (a, b))
    return (beta * c + alpha * total).astype(c.dtype)


def main() -> float:
    random = np.random.default_rng(0)
    a, b = random.standard_normal((301, 257), np.float32), random.standard_normal((257, 203), np.float32)
    c = random.standard_normal((301, 203), np.float32)
    error = float(abs(inf.jit(addmm)(c, a, b, 0.5, 2.0) - (0.5 * c + 2 * a @ b)).max())
    print(f"addmm: largest difference from NumPy {error:.1e}")
    return error


if __name__ == "__main__":
    main()
