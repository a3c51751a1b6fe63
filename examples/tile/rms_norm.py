"""Rows divided by the root of their mean square: one row per program; eps is an operand."""

import numpy as np

import infini as inf
from infini import lax, tile
from infini.tile import Tensor

x = Tensor(2)


def one_row(t):
    return t.tile((1, -1)).squeeze(1).squeeze(0, level=1)


@tile.kernel(
    lambda x, eps, y: (one_row(x), eps, one_row(y)),
    tensors=(x, Tensor(0, dtype="float32"), Tensor(shape=x.shape)),
)
def rms_norm(row, eps):
    wide = row.astype("float32")
    return (wide * lax.rsqrt((wide * wide).mean() + eps)).astype(row.dtype)


def main() -> float:
    x = np.random.default_rng(0).standard_normal((200, 777), np.float32)
    wanted = x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-6)
    error = float(abs(inf.jit(rms_norm)(x, 1e-6) - wanted).max())
    print(f"rms_norm: largest difference from NumPy {error:.1e}")
    return error


if __name__ == "__main__":
    main()
