"""Rotary position embedding: the two halves of a head, one head of one token per program."""

import numpy as np

import infini as inf
from infini import tile
from infini.tile import Tensor

x = Tensor(4)
batch, tokens, heads, size = x.shape
angles = Tensor(shape=(tokens, size // 2))


def arrangement(x, sin, cos, y):
    x, y = (t.tile((1, 1, 1, size // 2)).squeeze((0, 1, 2), level=1) for t in (x, y))
    x, y = (t.tile((1, 1, 1, -1)).squeeze((0, 1, 2), level=1).squeeze(3) for t in (x, y))
    rows = (t.tile((1, -1)).squeeze(0, level=1).unsqueeze(0) for t in (sin, cos))
    return x, *(t.expand((x.shape[0], -1, x.shape[2])) for t in rows), y


@tile.kernel(arrangement, tensors=(x, angles, angles, Tensor(shape=x.shape)))
def rotary_position_embedding(x, sin, cos):
    return tile.stack([x[0] * cos - x[1] * sin, x[1] * cos + x[0] * sin])


def main() -> float:
    random = np.random.default_rng(0)
    x, angles = random.standard_normal((2, 37, 5, 64), np.float32), random.standard_normal((37, 1, 32))
    sin, cos = np.sin(angles).astype(np.float32), np.cos(angles).astype(np.float32)
    first, second = np.split(x, 2, -1)
    wanted = np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    error = float(abs(inf.jit(rotary_position_embedding)(x, sin[:, 0], cos[:, 0]) - wanted).max())
    print(f"rotary_position_embedding: largest difference from NumPy {error:.1e}")
    return error


if __name__ == "__main__":
    main()
