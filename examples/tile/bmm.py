"""Products of a batch of matrices: the batch is a dimension of the grid."""

import numpy as np

import infini as inf
import infini.numpy as inp
from infini import lax, tile
from infini.tile import Symbol, Tensor, block_size
from infini.tile.arrangements import accumulator

BM, BN, BK = (block_size(16, 128, name=name) for name in ("BM", "BN", "BK"))
a = Tensor(3)
b = Tensor(shape=(a.shape[0], a.shape[2], Symbol("n")))


def arrangement(a, b, c):
    c = c.tile((1, BM, BN)).squeeze(0, level=1)
    a = a.tile((1, BM, BK)).tile((1, 1, -1)).expand((-1, -1, c.shape[2]))
    b = b.tile((1, BK, BN)).tile((1, -1, 1)).expand((-1, c.shape[1], -1))
    a, b = (t.squeeze(0, level=2) for t in (a.squeeze((0, 1), level=1), b.squeeze((0, 2), level=1)))
    return a, b, c


@tile.kernel(arrangement, tensors=(a, b, Tensor(shape=(*a.shape[:2], b.shape[2]))))
def bmm(a, b):
    dtype = accumulator(a.dtype)

    def step(total, blocks):
        return total + inp.matmul(*blocks, preferred_element_type=dtype), None

    total, _ = lax.scan(step, inp.zeros((a.shape[1], b.shape[2]), dtype), (a, b))
    return total.astype(a.dtype)


def main() -> float:
    random = np.random.default_rng(0)
    a, b = random.standard_normal((3, 101, 57), np.float32), random.standard_normal((3, 57, 83), np.float32)
    error = float(abs(inf.jit(bmm)(a, b) - a @ b).max())
    print(f"bmm: largest difference from NumPy {error:.1e}")
    return error


if __name__ == "__main__":
    main()
