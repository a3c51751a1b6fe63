"""Convolution of images: a block of channels and of one line of pixels per program.

A program walks blocks of the input's channels and the positions of the filter, whose lines start one pixel
apart: a product of matrices at each.
"""

import itertools

import numpy as np

import infini as inf
import infini.numpy as inp
from infini import lax, tile
from infini.tile import Tensor, block_size
from infini.tile.arrangements import accumulator

BK, BC, BQ = (block_size(16, 64, name=name) for name in ("BK", "BC", "BQ"))
x, w = Tensor(4, name="x"), Tensor(4, name="w")
(n, c, height, width), (k, _, rows, columns) = x.shape, w.shape


def arrangement(x, w, y):
    y = y.tile((1, BK, 1, BQ)).squeeze((0, 2), level=1)
    x = x.tile((1, BC, rows, BQ + columns - 1), strides=(-1, -1, 1, BQ))
    x = x.tile((-1, -1, 1, BQ), strides=(-1, -1, 1, 1), level=1).squeeze((0, 1), level=1)
    x = x.squeeze((0, 2), level=2).tile((1, -1, 1, 1)).squeeze((0, 2, 3), level=1)
    w = w.tile((BK, BC, 1, 1)).squeeze((2, 3), level=1).tile((1, -1, -1, -1)).squeeze(0, level=1)
    w = w.permute((1, 0, 2, 3)).expand((y.shape[0], -1, *y.shape[2:]))
    return x.expand((-1, y.shape[1], -1, -1)), w, y


@tile.kernel(
    arrangement,
    tensors=(
        x,
        Tensor(shape=(k, c, rows, columns)),
        Tensor(shape=(n, k, height - rows + 1, width - columns + 1)),
    ),
)
def conv2d(x, w):
    dtype = accumulator(x.dtype)

    def step(total, blocks):
        x, w = blocks
        for at in itertools.product(*map(range, w.shape[:2])):
            total += inp.matmul(w[at], x[at], preferred_element_type=dtype)
        return total, None

    total, _ = lax.scan(step, inp.zeros((w.shape[3], x.shape[4]), dtype), (x, w))
    return total.astype(x.dtype)


def main() -> float:
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 19, 31, 45), np.float32)
    w = random.standard_normal((23, 19, 3, 3), np.float32)
    wanted = lax.conv_general_dilated(x, w, (1, 1), "VALID")
    error = float(abs(inf.jit(conv2d)(x, w) - wanted).max())
    print(f"conv2d: largest difference from lax {error:.1e}")
    return error


if __name__ == "__main__":
    main()
