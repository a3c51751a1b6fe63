"""`python -m tools.draw_kernels`: the pictures of `docs/kernels-tools.md`. The second one measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from infini import lax, tile
from infini.tile import Tensor, block_size

PICTURES: Final = Path(__file__).resolve().parent.parent / "docs" / "pictures"
_SIZE: Final = 512
_MOST: Final = 48  # configurations that are measured

BM, BN, BK = (block_size(16, 128, name=name) for name in ("BM", "BN", "BK"))
_a, _b = Tensor(2), Tensor(2)


def _by_blocks(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    c = c.tile((BM, BN))
    a = a.tile((BM, BK)).tile((1, -1)).expand((-1, c.shape[1])).squeeze(0, level=1)
    b = b.tile((BK, BN)).tile((-1, 1)).expand((c.shape[0], -1)).squeeze(1, level=1)
    return a, b, c


@tile.kernel(_by_blocks, tensors=(_a, _b, Tensor(shape=(_a.shape[0], _b.shape[1]))))
def matmul(a: Any, b: Any) -> Any:  # Any: tiles
    """The kernel of the page."""

    def step(total: Any, pair: Any) -> tuple[Any, None]:
        return lax.add(total, lax.dot(*pair, preferred_element_type="float32")), None

    total, _ = lax.scan(step, lax.full((a.shape[1], b.shape[2]), 0.0, "float32"), (a, b))
    return lax.convert_element_type(total, a.dtype)


def main() -> None:
    """Write both pictures."""
    left, right = np.ones((70, 50), np.float32), np.ones((50, 40), np.float32)
    kernel = matmul.configure(BM=32, BN=16, BK=16)
    tile.draw(kernel, [left, right], PICTURES / "tiles.svg", program=(2, 1), step=1)
    random = np.random.default_rng(0)
    operands = [random.standard_normal((_SIZE, _SIZE)).astype(np.float32) for _ in range(2)]
    matmul.tune(*operands, most=_MOST).draw(PICTURES / "tuning.svg")


if __name__ == "__main__":
    main()
