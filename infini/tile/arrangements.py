"""Arrangements that many kernels share, as functions for the `arrangement` of `kernel`.

Each takes the symbolic tensors of a kernel, operands first, and gives them arranged; the shape of the last
result decides the grid. Options are keyword arguments: `functools.partial(arrangements.reduction, axis=0)`.
Scalars stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import sympy

from infini.core import dtypes, errors
from infini.lax import contraction, elementwise as e, loops, view
from infini.tile import reasoning
from infini.tile.arrangement import Tensor
from infini.tile.symbols import Size, block_size

BLOCK: Final = block_size(64, 1024)
BM, BN, BK = (block_size(16, 128, name=name) for name in ("BM", "BN", "BK"))
_ROWS, _COLUMNS = block_size(1, 16, name="ROWS"), block_size(1, 256, name="COLUMNS")
_QUERIES, _KEYS = block_size(16, 64, name="BM"), block_size(16, 64, name="BN")
_CHANNELS, _FILTERS, _PIXELS = (block_size(16, 64, name=name) for name in ("BC", "BK", "BQ"))


def broadcast(tensor: Tensor, shape: Sequence[Size]) -> Tensor:
    """A tensor with the number of dimensions of `shape`, its new dimensions and those of size 1 expanded.

    Args:
        tensor: a tensor of at most as many dimensions.
        shape: what it should broadcast to, by NumPy's rules.

    Raises:
        TypeMismatchError: it has more dimensions, or one that cannot have that size.

    Example:
        >>> from infini.tile import Symbol, Tensor
        >>> n, m = Symbol("n"), Symbol("m")
        >>> broadcast(Tensor(shape=(n, 1)), (4, n, m)).shape
        (4, n, m)
    """
    missing = len(shape) - tensor.ndim
    if missing < 0:
        raise errors.TypeMismatchError(
            "a tensor has more dimensions than what it broadcasts to",
            got=repr(tensor),
            expected=str(tuple(shape)),
        )
    for _ in range(missing):
        tensor = tensor.unsqueeze(0)
    sizes = []
    for d, (have, wanted) in enumerate(zip(tensor.shape, shape, strict=True)):
        is_one = reasoning.is_one(have)
        sizes.append(wanted if is_one else -1)
        if not (is_one or reasoning.may_be_equal(have, wanted)):
            raise errors.TypeMismatchError(
                "a tensor does not broadcast to this shape", got=repr(tensor), expected=str(tuple(shape))
            )
        if not is_one:
            tensor = tensor.require(f"dimension {d} of what is broadcast to {tuple(shape)}", have, wanted)
    return tensor.expand(sizes)


def elementwise(*tensors: Tensor, blocks: Sequence[Size] | None = None) -> tuple[Tensor, ...]:
    """Blocks of the last two dimensions (of the only one), all operands broadcast to the last tensor.

    Dimensions to repeat are those that are missing and those whose size is written as 1.

    Args:
        *tensors: operands and results; the last has the full shape.
        blocks: sizes of a block along the last dimensions, powers of two that may be tuned by default.

    Example:
        >>> import numpy as np
        >>> from infini import tile
        >>> from infini.tile import Tensor, arrangements
        >>> x = Tensor(2)
        >>> column = Tensor(shape=(x.shape[0], 1))
        >>> @tile.kernel(arrangements.elementwise, tensors=(x, column, Tensor(shape=x.shape)))
        ... def add(x, column):
        ...     return x + column
        >>> add(np.zeros((2, 3)), np.ones((2, 1)))
        Array([[1., 1., 1.],
               [1., 1., 1.]], dtype=float32)
    """
    shape = tensors[-1].shape
    if blocks is None:
        blocks = (_ROWS, _COLUMNS) if len(shape) > 1 else (BLOCK,)
    blocks = tuple(blocks)[-len(shape) :] if shape else ()
    return tuple(t if t.is_scalar and shape else _cut(broadcast(t, shape), blocks) for t in tensors)


def _cut(tensor: Tensor, blocks: Sequence[Size]) -> Tensor:
    """Blocks of the last dimensions, one place of the others."""
    others = tensor.ndim - len(blocks)
    return tensor.tile((*[1] * others, *blocks)).squeeze(range(others), level=1)


def reduction(
    *tensors: Tensor, axis: int | Sequence[int] = -1, block: Size | None = None
) -> tuple[Tensor, ...]:
    """One row per program: all of the first tensor along some axes.

    The grid has the other dimensions. Tensors of the first one's rank are rows too, or one element where
    their sizes along the axes are written as 1; tensors of the other dimensions are one element per program;
    tensors of the axes are seen whole by every program.

    Args:
        *tensors: operands and results.
        axis: dimensions of a row.
        block: elements that are loaded at once; a row is then a level of blocks that a loop walks, and
            results have one element per row.

    Raises:
        IndexOutOfRangeError: there is no such dimension.
        TypeMismatchError: it cannot be told what a tensor is, or several axes are walked in blocks.

    Example:
        >>> import functools
        >>> import numpy as np
        >>> from infini import tile
        >>> from infini.tile import Tensor, arrangements
        >>> x = Tensor(2)
        >>> columns = functools.partial(arrangements.reduction, axis=0)
        >>> @tile.kernel(columns, tensors=(x, Tensor(shape=x.shape[1:])))
        ... def largest(column):
        ...     return column.max()
        >>> largest(np.arange(6.0).reshape(2, 3))
        Array([3., 4., 5.], dtype=float32)
    """
    rank = tensors[0].ndim
    given = [axis] if isinstance(axis, int) else list(axis)
    if not given or not all(-rank <= d < rank for d in given):
        raise errors.IndexOutOfRangeError(f"axis {axis} of a tensor of {rank} dimensions does not exist")
    axes = sorted({d % rank for d in given})
    if block is not None and len(axes) > 1:
        raise errors.TypeMismatchError(
            "a row of several axes is not walked in blocks", got=f"axis {axis}", fix="leave block out"
        )
    kept = tuple(d for d in range(rank) if d not in axes)
    rows = _Rows(
        (*kept, *axes),
        tuple(tensors[0].shape[d] for d in kept),
        tuple(tensors[0].shape[d] for d in axes),
        block,
    )
    return tuple(rows.arrange(number, t) for number, t in enumerate(tensors))


@dataclass(frozen=True, slots=True)
class _Rows:
    """How a reduction sees its first tensor.

    Args:
        order: its dimensions, those of a row last.
        grid: sizes of the others.
        row: sizes of a row.
        block: elements loaded at once, all when absent.
    """

    order: tuple[int, ...]
    grid: tuple[Size, ...]
    row: tuple[Size, ...]
    block: Size | None

    def arrange(self, number: int, tensor: Tensor) -> Tensor:
        """A tensor by the rows."""
        if tensor.is_scalar and self.grid:
            return tensor
        is_element, is_shared = _fits(tensor, self.grid), _fits(tensor, self.row)
        if tensor.ndim == len(self.order):
            tensor = tensor.permute(self.order)
            ends = tensor.shape[len(self.grid) :]
            if all(map(reasoning.is_one, ends)) and not all(map(reasoning.is_one, self.row)):
                return self._elements(tensor.squeeze(range(len(self.grid), tensor.ndim)))
            for have, wanted in zip(ends, self.row, strict=True):
                tensor = tensor.require("sizes of rows", have, wanted)
            return self._whole(tensor)
        if is_element and not is_shared:
            return self._elements(tensor)
        if is_shared and not is_element:
            return self._whole(broadcast(tensor, (*[1] * len(self.grid), *self.row)))
        raise errors.TypeMismatchError(
            f"reduction: {tensor.label(number)} is neither a row, nor one element per row, "
            "nor of a row's shape",
            got=repr(tensor),
            expected=f"{len(self.order)} dimensions, or {self.grid} or {self.row} but not both",
        )

    def _elements(self, tensor: Tensor) -> Tensor:
        rank = len(self.grid)
        return tensor.tile([1] * rank).squeeze(range(rank), level=1)

    def _whole(self, tensor: Tensor) -> Tensor:
        rank = len(self.grid)
        ones, ends = [1] * rank, range(rank, len(self.order))
        sizes = [-1] * len(self.row) if self.block is None else [self.block]
        tensor = tensor.tile([*ones, *sizes]).squeeze(range(rank), level=1)
        if self.block is not None:
            tensor = _walked(tensor, -1)
        tensor = tensor.squeeze(ends)
        pairs = zip(tensor.shape, self.grid, strict=True)
        return tensor.expand([n if reasoning.is_one(m) else -1 for m, n in pairs])


def _fits(tensor: Tensor, shape: Sequence[Size]) -> bool:
    return tensor.ndim == len(shape) and all(map(reasoning.is_equal, tensor.shape, shape))


def matmul(
    a: Tensor, b: Tensor, *rest: Tensor, blocks: tuple[Size, Size, Size] = (BM, BN, BK)
) -> tuple[Tensor, ...]:
    """A block of the product per program, which walks the blocks along the inner dimension.

    Args:
        a: (..., M, K); the application sees (K/BK, BM, BK).
        b: (..., K, N); the application sees (K/BK, BK, BN).
        *rest: what takes part at the end, broadcast to the result, and the result (..., M, N); the
            application sees blocks (BM, BN). Leading dimensions are a batch and broadcast.
        blocks: BM, BN and BK.

    Raises:
        TypeMismatchError: sizes do not fit.
        ValueMismatchError: an operand's `other` is not 0.

    Example:
        >>> import numpy as np
        >>> from infini import tile
        >>> from infini.tile import Tensor, arrangements
        >>> a, b = Tensor(2), Tensor(2)
        >>> c = Tensor(shape=(a.shape[0], b.shape[1]))
        >>> @tile.kernel(arrangements.matmul, tensors=(a, b, c))
        ... def mm(a, b):
        ...     return arrangements.sum_of_products(a, b).astype(a.dtype)
        >>> mm(np.ones((2, 3)), np.ones((3, 2)))
        Array([[3., 3.],
               [3., 3.]], dtype=float32)
    """
    m, n, k = blocks
    _must_end_in_zeros(a, b)
    *batch, rows, columns = rest[-1].shape
    ends = tuple(t if t.is_scalar else _cut(broadcast(t, (*batch, rows, columns)), (m, n)) for t in rest)
    grid = ends[-1].shape
    a = a.require("inner sizes of a matrix product", a.shape[-1], b.shape[-2])
    a, b = (
        a.require("rows of a matrix product", a.shape[-2], rows),
        b.require("columns", b.shape[-1], columns),
    )
    a = _walked(_cut(broadcast(a, (*batch, *a.shape[-2:])), (m, k)), -1)
    b = _walked(_cut(broadcast(b, (*batch, *b.shape[-2:])), (k, n)), -2)
    return a.expand((*[-1] * (a.ndim - 1), grid[-1])), b.expand((*[-1] * (b.ndim - 2), grid[-2], -1)), *ends


def _must_end_in_zeros(*tensors: Tensor) -> None:
    for number, tensor in enumerate(tensors):
        if tensor.source.other:
            raise errors.ValueMismatchError(
                f"{tensor.label(number)}: a sum of products runs over the ends of its operands",
                got=f"other={tensor.source.other}",
                expected="other=0 there, which is the default",
            )


def _walked(tensor: Tensor, dim: int) -> Tensor:
    """One dimension of the grid as a level of its own, inside."""
    others = [d for d in range(tensor.ndim) if d != dim % tensor.ndim]
    tiles = [1 if d in others else -1 for d in range(tensor.ndim)]
    return tensor.tile(tiles).squeeze(others, level=1)


def convolution(
    x: Tensor,
    filters: Tensor,
    *rest: Tensor,
    stride: Size | tuple[Size, Size] = 1,
    padding: Size | tuple[Size, Size] = 0,
    dilation: Size | tuple[Size, Size] = 1,
    layout: Literal["NCHW", "NHWC"] = "NCHW",
    blocks: tuple[Size, Size, Size] = (_CHANNELS, _FILTERS, _PIXELS),
) -> tuple[Tensor, ...]:
    """A convolution of images as a sum of matrix products: a block of filters and of the pixels of a line per
    program, which walks blocks of channels and the places of a filter. No patch is copied: places start
    `dilation` apart in the image.

    Args:
        x: images (N, C, H, W), or (N, H, W, C).
        filters: (K, C, R, S), or (R, S, C, K) with the channels last.
        *rest: what takes part at the end, broadcast to the result, and the result (N, K, P, Q), or
            (N, P, Q, K), with the sizes of `convolved`.
        stride: of the places where filters lie, along H and W.
        padding: zeros before and after H and W.
        dilation: of the places of a filter.
        layout: where channels are.
        blocks: channels, filters and pixels of a block.

    Returns:
        As the application sees them: with channels first the filters (C/BC, R, S, BK, BC), the images
        (C/BC, R, S, BC, BQ) and blocks (BK, BQ); with channels last the images (C/BC, R, S, BQ, BC), the
        filters (C/BC, R, S, BC, BK) and blocks (BQ, BK). Images come first in both.

    Raises:
        TypeMismatchError: sizes do not fit.
        ValueMismatchError: there is no such layout, or an operand's `other` is not 0.
    """
    if layout not in ("NCHW", "NHWC"):
        raise errors.ValueMismatchError("no such layout", got=repr(layout), expected="NCHW or NHWC")
    _must_end_in_zeros(x, filters)
    is_last = layout == "NHWC"
    bc, bk, bq = blocks
    (s_h, s_w), (p_h, p_w), (d_h, d_w) = map(_pair, (stride, padding, dilation))
    if is_last:
        x, filters = x.permute((0, 3, 1, 2)), filters.permute((3, 2, 0, 1))
        rest = tuple(t if t.is_scalar else _channels_first(broadcast(t, rest[-1].shape)) for t in rest)
    shape, (_, _, rows, columns) = rest[-1].shape, filters.shape
    for d, have, width, *options in (
        (2, x.shape[2], rows, s_h, p_h, d_h),
        (3, x.shape[3], columns, s_w, p_w, d_w),
    ):
        names = dict(zip(("stride", "padding", "dilation"), options, strict=True))
        x = x.require("sizes of a convolution's result", shape[d], convolved(have, width, **names))
    x = x.require("channels of images and filters", x.shape[1], filters.shape[1])
    x = x.require("filters and channels of the result", filters.shape[0], shape[1])
    ends = tuple(t if t.is_scalar else _cut_pixels(broadcast(t, shape), bk, bq) for t in rest)
    n, k, p, q = ends[-1].shape
    # A tile covers the lines of a filter and all pixels that a block of the result needs.
    width = (bq - 1) * s_w + (columns - 1) * d_w + 1
    x = x.pad(((0, 0), (0, 0), (p_h, p_h), (p_w, p_w)))
    x = x.tile((1, bc, rows, width), strides=(-1, -1, s_h, bq * s_w), dilation=(1, 1, d_h, 1))
    x = x[:, :, :p, :q].squeeze(0, level=1)
    x = x.tile((-1, 1, bq), strides=(-1, -1, d_w), dilation=(1, 1, s_w), floor_mode=True, level=1)
    x = x.squeeze(0, level=1).squeeze(1, level=2)
    # Grid (N, C/BC, P, Q/BQ), places (R, S), tile (BC, BQ).
    x = _walked(x, 1).expand((-1, k, -1, -1))
    filters = filters.tile((bk, bc, 1, 1)).squeeze((2, 3), level=1).tile((1, -1, -1, -1)).squeeze(0, level=1)
    filters = filters.permute((1, 0, 2, 3)).expand((n, -1, p, q))
    if is_last:
        x, filters = x.permute((1, 0), level=-1), filters.permute((1, 0), level=-1)
        ends = tuple(t if t.is_scalar else t.permute((1, 0), level=-1) for t in ends)
    return x, filters, *ends


def convolved(size: Size, width: Size, *, stride: Size = 1, padding: Size = 0, dilation: Size = 1) -> Size:
    """Size of the result of a convolution along one dimension, 0 where a filter does not fit.

    Example:
        >>> from infini.tile import Symbol, arrangements
        >>> arrangements.convolved(Symbol("h", lower=8), 3, stride=2, padding=1)
        floor(h/2 - 1/2) + 1
    """
    room = size + 2 * padding - (width - 1) * dilation - 1
    return reasoning.at_least(reasoning.floor_div(room, stride) + 1, sympy.Integer(0))


def _channels_first(tensor: Tensor) -> Tensor:
    return tensor.permute((0, 3, 1, 2))


def _cut_pixels(tensor: Tensor, filters: Size, pixels: Size) -> Tensor:
    return tensor.tile((1, filters, 1, pixels)).squeeze((0, 2), level=1)


def _pair(value: Any) -> tuple[Size, Size]:  # Any: a size or two
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *rest: Tensor, blocks: tuple[Size, Size] = (_QUERIES, _KEYS)
) -> tuple[Tensor, ...]:
    """A block of queries per program, which walks blocks of keys and values.

    Heads of keys and values serve as many heads of queries as there are times more of these. The last block
    of keys may reach beyond them, where keys are 0: a mask whose `other` is minus infinity, or a comparison
    of the keys' offsets inside the application, leaves those out, and what a causal kernel must not see.

    Args:
        q: (B, H, T, D); the application sees (BM, D).
        k: (B, H, S, D), or fewer heads; the application sees (S/BN, BN, D).
        v: (B, H, S, E), or fewer heads; the application sees (S/BN, BN, E).
        *rest: masks or biases that broadcast to (B, H, T, S), seen as (S/BN, BM, BN), and the result
            (B, H, T, E), seen as (BM, E).
        blocks: BM and BN.

    Raises:
        TypeMismatchError: sizes do not fit.
    """
    m, n = blocks
    heads, out = q.shape[1], rest[-1]
    for what, first, second in (
        ("sizes of heads of queries and keys", q.shape[3], k.shape[3]),
        ("sizes of heads of values and of the result", v.shape[3], out.shape[3]),
        ("numbers of keys and values", k.shape[2], v.shape[2]),
        ("numbers of queries and of rows of the result", q.shape[2], out.shape[2]),
    ):
        q = q.require(what, first, second)
    q, o = (t.tile((1, 1, m, -1)).squeeze(3).squeeze((0, 1), level=1) for t in (q, out))
    scores = (q.source.shape[0], heads, out.shape[2], k.shape[2])
    masks = [
        t if t.is_scalar else _walked(_cut(broadcast(t, scores), (m, n)), 3).squeeze(3) for t in rest[:-1]
    ]
    k, v = (_walked(t.tile((1, 1, n, -1)).squeeze(3).squeeze((0, 1), level=1), 2) for t in (k, v))
    k, v = (_shared(t, heads).expand((-1, -1, q.shape[2])) for t in (k, v))
    return q, k, v, *masks, o


def _shared(tensor: Tensor, heads: Size) -> Tensor:
    """Each head repeated for the heads of queries that it serves."""
    if reasoning.is_equal(tensor.shape[1], heads):
        return tensor
    times = reasoning.floor_div(heads, tensor.shape[1])
    return tensor.unsqueeze(2).expand((-1, -1, times, -1)).flatten(1, 3)


# --- for applications -----------------------------------------------------------------------


def accumulator(dtype: np.dtype) -> np.dtype:
    """The dtype in which sums of products are kept: float32 for floats of fewer bits, others as they are."""
    return dtypes.float32 if dtype in dtypes.FLOATS and dtype.itemsize < 4 else dtype


def sum_of_products(a: Any, b: Any, dtype: Any = None) -> Any:  # Any: tiles, and whatever names a dtype
    """The sum of `a[i] @ b[i]` over all levels that the two tiles share, for applications.

    Args:
        a: (levels..., M, K).
        b: (levels..., K, N).
        dtype: of the sum, `accumulator(a.dtype)` by default.

    Returns:
        (M, N), of the dtype.
    """
    dtype = accumulator(a.dtype) if dtype is None else dtype
    return _added(view.full((a.shape[-2], b.shape[-1]), 0, dtype), a, b, dtype)


def _added(total: Any, a: Any, b: Any, dtype: Any) -> Any:  # Any: as of sum_of_products
    if a.ndim == 2:
        return e.add(total, contraction.dot(a, b, preferred_element_type=dtype))
    return loops.scan(lambda so_far, x: (_added(so_far, x[0], x[1], dtype), None), total, (a, b))[0]
