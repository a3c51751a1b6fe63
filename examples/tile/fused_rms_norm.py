"""Root-mean-square norm of rows with a weight per column, which every program sees whole."""

import numpy as np

import infini as inf
from infini import lax, tile
from infini.tile import Tensor

x = Tensor(2)


def arrangement(x, weight, eps, y):
    rows = [t.tile((1, -1)).squeeze(1).squeeze(0, level=1) for t in (x, y)]
    return rows[0], weight.tile((-1,)).expand(rows[0].shape), eps, rows[1]


@tile.kernel(
    arrangement,
    tensors=(x, Tensor(shape=x.shape[1:]), Tensor(0, dtype="float32"), Tensor(shape=x.shape)),
)
def fused_rms_norm(row, weight, eps):
    wide = row.astype("float32")
    return (wide * lax.rsqrt((wide * wide).mean() + eps) * weight).astype(row.dtype)


def main() -> float:
    random = np.random.default_rng(0)
    x, weight = random.standard_normal((200, 777), np.float32), random.standard_normal(777, np.float32)
    wanted = x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-6) * weight
    error = float(abs(inf.jit(fused_rms_norm)(x, weight, 1e-6) - wanted).max())
    print(f"fused_rms_norm: largest difference from NumPy {error:.1e}")
    return error


if __name__ == "__main__":
    main()
