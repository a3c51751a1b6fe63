"""Matrix product: a block of the result per program, which walks the blocks along the inner dimension."""

import numpy as np

import infini as inf
import infini.numpy as inp
from infini import lax, tile
from infini.tile import Symbol, Tensor, block_size
from infini.tile.arrangements import accumulator

BM, BN, BK = (block_size(16, 128, name=name) for name in ("BM", "BN", "BK"))
a = Tensor(2)
b = Tensor(shape=(a.shape[1], Symbol("n")))


def arrangement(a, b, c):
    c = c.tile((BM, BN))
    a = a.tile((BM, BK)).tile((1, -1)).expand((-1, c.shape[1])).squeeze(0, level=1)
    b = b.tile((BK, BN)).tile((-1, 1)).expand((c.shape[0], -1)).squeeze(1, level=1)
    return a, b, c


@tile.kernel(arrangement, tensors=(a, b, Tensor(shape=(a.shape[0], b.shape[1]))))
def mm(a, b):
    dtype = accumulator(a.dtype)

    def step(total, blocks):
        return total + inp.matmul(*blocks, preferred_element_type=dtype), None

    total, _ = lax.scan(step, inp.zeros((a.shape[1], b.shape[2]), dtype), (a, b))
    return total.astype(a.dtype)


def main() -> float:
    random = np.random.default_rng(0)
    a, b = random.standard_normal((301, 257), np.float32), random.standard_normal((257, 203), np.float32)
    error = float(abs(inf.jit(mm)(a, b) - a @ b).max())
    print(f"mm: largest difference from NumPy {error:.1e}")
    return error


if __name__ == "__main__":
    main()
