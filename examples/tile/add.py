"""x + y: every program adds one block of a line."""

import numpy as np

import infini as inf
from infini import tile
from infini.tile import Tensor, block_size

BLOCK = block_size(64, 1024)
x = Tensor(1)


@tile.kernel(lambda *lines: [t.tile((BLOCK,)) for t in lines], tensors=(x, *[Tensor(shape=x.shape)] * 2))
def add(x, y):
    return x + y


def main() -> float:
    x, y = np.random.default_rng(0).standard_normal((2, 100_003), np.float32)
    error = float(abs(inf.jit(add)(x, y) - (x + y)).max())
    print(f"add: largest difference from NumPy {error:.1e}")
    return error


if __name__ == "__main__":
    main()
