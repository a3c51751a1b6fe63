"""Arrangements that many kernels share: results against NumPy, on the oracle and the CPU, and as Triton."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax, tile
from infini.compiler.triton.emit import emit_triton
from infini.core import dtypes, errors
from infini.core.ir import ArrayType
from infini.tile import Symbol, Tensor, arrangements

Tile = Any  # Any: traced tiles
F32 = dtypes.float32


@pytest.fixture(autouse=True)
def on_backend(backend_name: str) -> Any:
    """Every test runs on the oracle and on the CPU."""
    with inf.config(device=backend_name):
        yield


@pytest.fixture
def normal(rng: np.random.Generator) -> Callable[..., np.ndarray]:
    return lambda *shape: rng.standard_normal(shape).astype(np.float32)


def agrees(kernel: Any, operands: tuple[Any, ...], wanted: np.ndarray) -> None:
    """The kernel gives what is wanted, and Triton's emitter takes it."""
    found = np.asarray(kernel(*operands))
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    types = [ArrayType(np.shape(x), F32) for x in operands]
    assert emit_triton(kernel.specialize(types), types).text


# --- elementwise -----------------------------------------------------------------------------

n, m, k = Symbol("n"), Symbol("m"), Symbol("k")


@pytest.mark.parametrize(
    ("shapes", "sizes"),
    [
        ([(n,), (n,)], [(1000,), (1000,)]),
        ([(n, m), (m,)], [(33, 300), (300,)]),
        ([(n, 1), (1, m)], [(7, 1), (1, 20)]),
        ([(n, 1, m), (k, 1)], [(3, 1, 5), (4, 1)]),
        ([(2, n, m, k), (1,)], [(2, 3, 4, 5), (1,)]),
        ([(n, m), (n, m)], [(0, 5), (0, 5)]),
        ([(n, m), ()], [(6, 5), ()]),
    ],
    ids=str,
)
def test_elementwise_broadcasts(shapes: list[Any], sizes: list[Any], normal: Any) -> None:
    x, y = (np.asarray(normal(*s)) for s in sizes)
    result = np.broadcast_shapes(*sizes)
    numbers = dict(zip([s for t in shapes for s in t], [s for t in sizes for s in t], strict=True))
    symbols = [next(s for s in (n, m, k, *result) if numbers.get(s, s) == size) for size in result]
    add = tile.kernel(
        arrangements.elementwise,
        tensors=(*(Tensor(shape=s) for s in shapes), Tensor(shape=symbols)),
    )(lambda x, y: x + y)
    agrees(add, (x, y), x + y)


def test_what_does_not_broadcast_is_refused() -> None:
    tensors = (Tensor(shape=(4, 3), name="x"), Tensor(shape=(4, 5)))
    with pytest.raises(errors.TypeMismatchError, match="does not broadcast"):
        arrangements.elementwise(*tensors)
    with pytest.raises(errors.TypeMismatchError, match="more dimensions"):
        arrangements.broadcast(Tensor(3), (n, m))


# --- rows --------------------------------------------------------------------------------------


def softmax(row: Tile) -> Tile:
    p = inp.exp(row - row.max())
    return p / p.sum()


@pytest.mark.parametrize("axis", [-1, 0, 1, (0, 2), (0, 1, 2)], ids=str)
def test_rows_along_any_axes(axis: Any, normal: Any) -> None:
    x = Tensor(3, other=-np.inf)
    rows = functools.partial(arrangements.reduction, axis=axis)
    operand = normal(3, 37, 5)
    p = np.exp(operand - operand.max(axis, keepdims=True))
    kernel = tile.kernel(rows, tensors=(x, Tensor(shape=x.shape)))(softmax)
    agrees(kernel, (operand,), p / p.sum(axis, keepdims=True))


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [-1, 0, (0, 2), (0, 1, 2)], ids=str)
def test_one_element_per_row(axis: Any, keepdims: bool, normal: Any) -> None:
    x = Tensor(3)
    axes = {d % 3 for d in ([axis] if isinstance(axis, int) else axis)}
    shape = [1 if d in axes else size for d, size in enumerate(x.shape) if keepdims or d not in axes]
    rows = functools.partial(arrangements.reduction, axis=axis)
    kernel = tile.kernel(rows, tensors=(x, Tensor(shape=shape)))(lambda row: row.sum())
    operand = normal(3, 7, 5)
    agrees(kernel, (operand,), operand.sum(axis, keepdims=keepdims))


def test_a_row_in_blocks_is_a_level(normal: Any) -> None:
    x = Tensor(2)
    rows = functools.partial(arrangements.reduction, block=16)

    def product(row: Tile, weight: Tile) -> Tile:
        return lax.scan(
            lambda total, pair: (total + (pair[0] * pair[1]).sum(), None), inp.zeros(()), (row, weight)
        )[0]

    kernel = tile.kernel(rows, tensors=(x, Tensor(shape=x.shape[1:]), Tensor(shape=x.shape[:1])))(product)
    operand, weight = normal(5, 77), normal(77)
    agrees(kernel, (operand, weight), operand @ weight)
    assert kernel.specialize([ArrayType((5, 77), F32), ArrayType((77,), F32)]).loads[0].tile == (5, 16)


def test_a_tensor_that_is_neither_row_nor_element_is_refused() -> None:
    x = Tensor(shape=(n, n))
    with pytest.raises(errors.TypeMismatchError, match="neither a row"):
        arrangements.reduction(x, Tensor(shape=(n,)), Tensor(shape=x.shape))
    with pytest.raises(errors.IndexOutOfRangeError, match="axis 2"):
        arrangements.reduction(x, axis=2)
    with pytest.raises(errors.TypeMismatchError, match="several axes"):
        arrangements.reduction(x, axis=(0, 1), block=16)


# --- matrices ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "right"),
    [((70, 50), (50, 40)), ((3, 20, 33), (3, 33, 17)), ((3, 20, 33), (33, 17)), ((2, 1, 9, 8), (5, 8, 7))],
    ids=str,
)
def test_matmul_of_batches(left: tuple[int, ...], right: tuple[int, ...], normal: Any) -> None:
    x, y = normal(*left), normal(*right)
    wanted = x @ y
    a = Tensor(shape=[size if size == 1 else Symbol(f"a{d}") for d, size in enumerate(left)])
    b = Tensor(shape=[size if size == 1 else Symbol(f"b{d}") for d, size in enumerate(right)])
    batch = [p if p != 1 else q for p, q in zip(a.shape[:-2], (1,) * 9, strict=False)]
    offset = len(batch) - (b.ndim - 2)
    batch = [q if p == 1 and d >= offset and (q := b.shape[d - offset]) else p for d, p in enumerate(batch)]
    c = Tensor(shape=(*batch, a.shape[-2], b.shape[-1]))
    kernel = tile.kernel(arrangements.matmul, tensors=(a, b, c))(arrangements.sum_of_products)
    agrees(kernel.configure(BM=16, BN=32, BK=16), (x, y), wanted)


def test_matmul_ends_with_what_broadcasts_to_the_result(normal: Any) -> None:
    a, b = Tensor(2), Tensor(2)
    tensors = (a, b, Tensor(shape=b.shape[1:]), Tensor(0), Tensor(shape=(a.shape[0], b.shape[1])))

    @tile.kernel(arrangements.matmul, tensors=tensors)
    def linear(a: Tile, b: Tile, bias: Tile, scale: Tile) -> Tile:
        return scale * arrangements.sum_of_products(a, b) + bias

    x, y, bias = normal(37, 21), normal(21, 45), normal(45)
    agrees(linear, (x, y, bias, np.float32(0.5)), 0.5 * (x @ y) + bias)


def test_matrices_and_lines_whose_sizes_differ_are_refused(normal: Any) -> None:
    a, b = Tensor(2), Tensor(2)
    tensors = (a, b, Tensor(shape=(a.shape[0], b.shape[1])))
    product = tile.kernel(arrangements.matmul, tensors=tensors)(arrangements.sum_of_products)
    with pytest.raises(errors.TypeMismatchError, match="inner sizes of a matrix product"):
        product(normal(2, 3), normal(4, 4))
    x = Tensor(1)
    add = tile.kernel(arrangements.elementwise, tensors=(x, Tensor(1), Tensor(shape=x.shape)))(
        lambda x, y: x + y
    )
    with pytest.raises(errors.TypeMismatchError, match="what is broadcast"):
        add(normal(1000), normal(1001))


def test_operands_of_products_end_in_zeros() -> None:
    a = Tensor(2, other=1, name="a")
    with pytest.raises(errors.ValueMismatchError, match="tensor a: a sum of products"):
        arrangements.matmul(a, Tensor(2), Tensor(2))


def test_products_over_nothing_are_zero(normal: Any) -> None:
    a, b = Tensor(2), Tensor(2)
    tensors = (a, b, Tensor(shape=(a.shape[0], b.shape[1])))
    product = tile.kernel(arrangements.matmul, tensors=tensors)(arrangements.sum_of_products)
    np.testing.assert_array_equal(product(normal(3, 0), normal(0, 4)), np.zeros((3, 4)))
    assert product(normal(0, 3), normal(3, 4)).shape == (0, 4)


# --- images --------------------------------------------------------------------------------------


def convolution(layout: Any, stride: int, padding: int, dilation: int) -> Any:
    """A kernel of that convolution."""
    x, filters = Tensor(4, name="x"), Tensor(4, name="w")
    is_last = layout == "NHWC"
    batch, *lines, channels = x.shape if is_last else (x.shape[0], *x.shape[2:], x.shape[1])
    *places, _, count = filters.shape if is_last else (*filters.shape[2:], filters.shape[1], filters.shape[0])
    options: Any = {"stride": stride, "padding": padding, "dilation": dilation}
    p, q = (arrangements.convolved(*pair, **options) for pair in zip(lines, places, strict=True))
    w = Tensor(shape=(*places, channels, count) if is_last else (count, channels, *places))
    y = Tensor(shape=(batch, p, q, count) if is_last else (batch, count, p, q))

    def application(x: Tile, w: Tile) -> Tile:
        return arrangements.sum_of_products(*((x, w) if is_last else (w, x)))

    arrangement = functools.partial(arrangements.convolution, layout=layout, **options)
    return tile.kernel(arrangement, tensors=(x, w, y), name="convolution")(application)


@pytest.mark.parametrize(
    ("layout", "stride", "padding", "dilation"),
    [
        ("NCHW", 1, 0, 1),
        ("NCHW", 2, 1, 1),
        ("NCHW", 2, 3, 2),
        ("NHWC", 1, 1, 1),
        ("NHWC", 3, 0, 1),
        ("NHWC", 1, 2, 2),
    ],
)
def test_convolution_is_a_product_of_matrices(
    layout: str, stride: int, padding: int, dilation: int, normal: Any
) -> None:
    is_last = layout == "NHWC"
    x = normal(2, 9, 41, 19) if is_last else normal(2, 19, 9, 41)
    w = normal(3, 3, 19, 21) if is_last else normal(21, 19, 3, 3)
    names = ("NHWC", "HWIO", "NHWC") if is_last else ("NCHW", "OIHW", "NCHW")
    wanted = lax.conv_general_dilated(
        x, w, (stride,) * 2, [(padding,) * 2] * 2, rhs_dilation=(dilation,) * 2, dimension_numbers=names
    )
    kernel = convolution(layout, stride, padding, dilation).configure(BQ=16, BK=16, BC=16)
    agrees(kernel, (x, w), np.asarray(wanted))


def test_a_filter_of_one_pixel_and_an_image_smaller_than_a_filter(normal: Any) -> None:
    x, w = normal(1, 4, 5, 6), normal(3, 4, 1, 1)
    wanted = np.einsum("nchw,kc->nkhw", x, w[:, :, 0, 0])
    agrees(convolution("NCHW", 1, 0, 1), (x, w), wanted)
    assert convolution("NCHW", 1, 0, 1)(normal(1, 4, 2, 9), normal(3, 4, 3, 3)).shape == (1, 3, 0, 7)


def test_a_result_of_another_size_than_the_convolution_is_refused(normal: Any) -> None:
    x, w = Tensor(4, name="x"), Tensor(4, name="w")
    y = Tensor(shape=(x.shape[0], w.shape[0], *x.shape[2:]))
    same = tile.kernel(arrangements.convolution, tensors=(x, w, y))(
        lambda x, w: arrangements.sum_of_products(w, x)
    )
    with pytest.raises(errors.TypeMismatchError, match="sizes of a convolution's result"):
        same(normal(1, 4, 8, 8), normal(2, 4, 3, 3))


def test_images_lie_in_blocks_of_a_line() -> None:
    types = [ArrayType((2, 32, 18, 66), F32), ArrayType((16, 32, 3, 3), F32)]
    kernel = convolution("NCHW", 1, 0, 1).specialize(types)
    assert kernel.grid == (2, 1, 16, 1)
    assert [load.tile for load in kernel.loads] == [(1, 3, 3, 32, 64), (1, 3, 3, 16, 32)]
    assert [load.levels for load in kernel.loads] == [3, 3]
    assert [x.fill for x in (*kernel.loads, *kernel.stores)] == [None, None, None]


def test_no_other_layout() -> None:
    x = Tensor(4)
    with pytest.raises(errors.ValueMismatchError, match="NCHW or NHWC"):
        arrangements.convolution(x, x, x, layout="CHWN")  # type: ignore[arg-type]


# --- attention -------------------------------------------------------------------------------------


def attend(q: Tile, keys: Tile, values: Tile, *masks: Tile) -> Tile:
    """Softmax of the scores, block by block of keys; rows beyond the last key are left to a mask."""

    def step(state: Any, blocks: Any) -> Any:
        largest, sum_, total = state
        k, v, *mask = blocks
        scores = lax.dot(q, k.T, preferred_element_type="float32") + sum(mask)
        new = inp.maximum(largest, scores.max(1))
        p, scale = inp.exp(scores - new[:, None]), inp.exp(largest - new)
        total = total * scale[:, None] + lax.dot(p, v, preferred_element_type="float32")
        return (new, sum_ * scale + p.sum(1), total), None

    state = (
        inp.full(q.shape[:1], -1e30, "float32"),
        inp.zeros(q.shape[:1]),
        inp.zeros((q.shape[0], values.shape[2])),
    )
    (_, sum_, total), _ = lax.scan(step, state, (keys, values, *masks))
    return total / sum_[:, None]


def softmax_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> np.ndarray:
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.swapaxes(-1, -2) + mask
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True) @ v


@pytest.mark.parametrize("heads", [4, 2, 1])
def test_attention_shares_heads_of_keys(heads: int, normal: Any) -> None:
    q, k = Tensor(4, name="q"), Tensor(4, name="k")
    mask = Tensor(shape=(q.shape[2], k.shape[2]), other=-1e30)
    v, o = Tensor(shape=k.shape), Tensor(shape=q.shape)
    kernel = tile.kernel(arrangements.attention, tensors=(q, k, v, mask, o))(attend)
    x, y, z = normal(2, 4, 21, 16), normal(2, heads, 37, 16), normal(2, heads, 37, 16)
    causal = np.where(np.arange(37) <= np.arange(21)[:, None] + 16, 0, -1e30).astype(np.float32)
    agrees(kernel.configure(BM=16, BN=16), (x, y, z, causal), softmax_attention(x, y, z, causal))


def test_attention_leaves_scalars_alone(normal: Any) -> None:
    q, k = Tensor(4, name="q"), Tensor(4, name="k")
    mask = Tensor(shape=(1, k.shape[2]), other=-1e30)
    tensors = (q, k, Tensor(shape=k.shape), Tensor(0), mask, Tensor(0, constexpr=True), Tensor(shape=q.shape))

    @tile.kernel(arrangements.attention, tensors=tensors)
    def scaled(q: Tile, k: Tile, v: Tile, scale: Tile, mask: Tile, sign: int) -> Tile:
        return attend(q * scale * sign, k, v, mask)

    x, y, z, none = (
        normal(1, 2, 9, 8),
        normal(1, 2, 20, 8),
        normal(1, 2, 20, 8),
        np.zeros((1, 20), np.float32),
    )
    found = scaled(x, y, z, np.float32(0.25), none, -2)
    np.testing.assert_allclose(found, softmax_attention(-0.5 * x, y, z, none), rtol=1e-4, atol=1e-5)


def test_heads_that_do_not_divide_are_refused(normal: Any) -> None:
    q, k = Tensor(4, name="q"), Tensor(4, name="k")
    tensors = (q, k, Tensor(shape=k.shape), Tensor(shape=q.shape))
    kernel = tile.kernel(arrangements.attention, tensors=tensors)(attend)
    with pytest.raises(errors.TypeMismatchError, match="grid of programs"):
        kernel(normal(1, 4, 16, 8), normal(1, 3, 16, 8), normal(1, 3, 16, 8))


def test_arrangements_are_found_in_tile() -> None:
    assert tile.arrangements is arrangements and "arrangements" in dir(tile)
