"""x * sigmoid(x): one block of a line per program, computed in float32."""

import numpy as np

import infini as inf
from infini import lax, tile
from infini.tile import Tensor, block_size

BLOCK = block_size(64, 1024)
x = Tensor(1)


@tile.kernel(lambda *lines: [t.tile((BLOCK,)) for t in lines], tensors=(x, Tensor(shape=x.shape)))
def silu(x):
    wide = x.astype("float32")
    return (wide * lax.logistic(wide)).astype(x.dtype)


def main() -> float:
    x = np.random.default_rng(0).standard_normal(100_003, np.float32)
    error = float(abs(inf.jit(silu)(x) - x / (1 + np.exp(-x))).max())
    print(f"silu: largest difference from NumPy {error:.1e}")
    return error


if __name__ == "__main__":
    main()
