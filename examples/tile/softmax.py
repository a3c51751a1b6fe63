"""Softmax of rows: one row per program, minus infinity beyond its end."""

import numpy as np

import infini as inf
import infini.numpy as inp
from infini import tile
from infini.tile import Tensor

x = Tensor(2, other=float("-inf"))


def one_row(t):
    return t.tile((1, -1)).squeeze(1).squeeze(0, level=1)


@tile.kernel(lambda *rows: [one_row(t) for t in rows], tensors=(x, Tensor(shape=x.shape)))
def softmax(row):
    p = inp.exp((row - row.max(initial=-inp.inf)).astype("float32"))
    return (p / p.sum()).astype(row.dtype)


def main() -> float:
    x = np.random.default_rng(0).standard_normal((200, 777), np.float32)
    p = np.exp(x - x.max(1, keepdims=True))
    error = float(abs(inf.jit(softmax)(x) - p / p.sum(1, keepdims=True)).max())
    print(f"softmax: largest difference from NumPy {error:.1e}")
    return error


if __name__ == "__main__":
    main()
