"""Largest element of each window of images: a block of one line of windows per program.

Windows lie side by side; those at the edges are completed by minus infinity.
"""

import numpy as np

import infini as inf
from infini import lax, tile
from infini.tile import Tensor, block_size

HEIGHT, WIDTH = 3, 3  # of a window
BLOCK = block_size(16, 256)
x = Tensor(4, other=float("-inf"))
n, c, rows, columns = x.shape


def arrangement(x, y):
    x = x.tile((1, 1, HEIGHT, BLOCK * WIDTH)).tile((1, 1, -1, WIDTH), level=1).ravel()
    x = x.tile((1, 1, 1, 1, *[-1] * 8)).squeeze(range(4, 12)).squeeze((*range(7), 8, 9), level=1)
    return x, y.tile((1, 1, 1, BLOCK)).squeeze((0, 1, 2), level=1)


@tile.kernel(arrangement, tensors=(x, Tensor(shape=(n, c, -(-rows // HEIGHT), -(-columns // WIDTH)))))
def max_pool2d(windows):
    return windows.max((1, 2))


def main() -> float:
    x = np.random.default_rng(0).standard_normal((2, 5, 31, 200), np.float32)
    wanted = lax.reduce_window(
        x, -np.inf, lax.max, (1, 1, 3, 3), (1, 1, 3, 3), [(0, 0), (0, 0), (0, 2), (0, 1)]
    )
    error = float(abs(inf.jit(max_pool2d)(x) - wanted).max())
    print(f"max_pool2d: largest difference from lax {error:.1e}")
    return error


if __name__ == "__main__":
    main()
