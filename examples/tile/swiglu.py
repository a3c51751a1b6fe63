"""a * silu(b): one block of a line per program, computed in float32."""

import numpy as np

import infini as inf
from infini import lax, tile
from infini.tile import Tensor, block_size

BLOCK = block_size(64, 1024)
a = Tensor(1)


@tile.kernel(lambda *lines: [t.tile((BLOCK,)) for t in lines], tensors=(a, *[Tensor(shape=a.shape)] * 2))
def swiglu(a, b):
    gate = b.astype("float32")
    return (a * gate * lax.logistic(gate)).astype(a.dtype)


def main() -> float:
    a, b = np.random.default_rng(0).standard_normal((2, 100_003), np.float32)
    error = float(abs(inf.jit(swiglu)(a, b) - a * b / (1 + np.exp(-b))).max())
    print(f"swiglu: largest difference from NumPy {error:.1e}")
    return error


if __name__ == "__main__":
    main()
