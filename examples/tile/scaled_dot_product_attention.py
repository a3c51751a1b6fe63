"""Attention: a block of queries per program, which walks blocks of keys and values.

Weights are relative to the largest score so far, so that only one block of them exists at a time.
"""

import math

import numpy as np

import infini as inf
import infini.numpy as inp
from infini import lax, tile
from infini.tile import Tensor, block_size

BM, BN = (block_size(16, 64, name=name) for name in ("BM", "BN"))
q, k = Tensor(4), Tensor(4)


def arrangement(q, k, v, o):
    q, o = (t.tile((1, 1, BM, -1)).squeeze(3).squeeze((0, 1), level=1) for t in (q, o))
    k, v = (t.tile((1, 1, BN, -1)).squeeze((0, 1), level=1).tile((1, 1, -1, 1)) for t in (k, v))
    k, v = (t.squeeze((0, 1, 3), level=1).squeeze(3).expand((-1, -1, q.shape[2])) for t in (k, v))
    return q, k, v, o


@tile.kernel(arrangement, tensors=(q, k, Tensor(shape=k.shape), Tensor(shape=q.shape)))
def scaled_dot_product_attention(q, k, v, *, is_causal=False):
    def step(carry, block):
        top, total, out = carry
        number, key, value = block
        scores = inp.matmul(q, key.T, preferred_element_type="float32") / math.sqrt(q.shape[1])
        columns = tile.offsets(k, 2, number).T
        is_seen = columns < tile.array_shape(k)[2]
        if is_causal:
            is_seen = is_seen & (columns <= tile.offsets(q, 2))
        scores = inp.where(is_seen, scores, -inp.inf)
        higher = inp.maximum(top, scores.max(1))
        p, fade = inp.exp(scores - higher[:, None]), inp.exp(top - higher)
        moved = inp.matmul(p.astype(value.dtype), value, preferred_element_type="float32")
        return (higher, total * fade + p.sum(1), out * fade[:, None] + moved), None

    rows = q.shape[0]
    start = (inp.full((rows,), -inp.inf), inp.zeros((rows,)), inp.zeros(q.shape))
    (_, total, out), _ = lax.scan(step, start, (inp.arange(k.shape[0]), k, v))
    return (out / total[:, None]).astype(q.dtype)


def main() -> float:
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 3, 97, 64), np.float32)
    scores = q @ k.swapaxes(2, 3) / math.sqrt(64)
    scores = np.where(np.tri(97, dtype=bool), scores, -np.inf)
    p = np.exp(scores - scores.max(3, keepdims=True))
    wanted = p / p.sum(3, keepdims=True) @ v
    found = inf.jit(lambda *t: scaled_dot_product_attention(*t, is_causal=True))(q, k, v)
    error = float(abs(found - wanted).max())
    print(f"scaled_dot_product_attention: largest difference from NumPy {error:.1e}")
    return error


if __name__ == "__main__":
    main()
