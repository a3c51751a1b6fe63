"""Work is what the COST rules of operations say, counted by hand here."""

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import lax
from infini.compiler import cost
from infini.core import ir, primitive
from tests.compiler.programs import f32, program_of


def analysis(f, *args):
    return infini.jit(f).lower(*args).compile().cost_analysis()


X, W = np.ones((64, 128), np.float32), np.ones((128, 256), np.float32)
IMAGE, FILTER = np.ones((2, 8, 10, 10), np.float32), np.ones((16, 8, 3, 3), np.float32)
LINE, BATCH = np.ones(1024, np.float32), np.ones((4, 8, 16), np.float32)
ROWS = np.arange(32, dtype=np.int32)

FLOPS = {
    "elementwise": (lambda x: x * 2 + 1, (X,), 2 * X.size),
    "dot": (lambda x, w: x @ w, (X, W), 2 * 64 * 128 * 256),
    "batched dot": (lambda x: x @ inp.swapaxes(x, 1, 2), (BATCH,), 2 * 4 * 8 * 8 * 16),
    "dot and epilogue": (lambda x, w: (x @ w) * 2, (X, W), 2 * 64 * 128 * 256 + 64 * 256),
    "convolution": (lambda x, w: lax.conv(x, w, (1, 1), "VALID"), (IMAGE, FILTER), 2 * 2 * 16 * 64 * 8 * 9),
    "sum": (lambda x: x.sum(), (X,), X.size),
    "sum of rows": (lambda x: x.sum(-1), (X,), X.size),
    "argmax": (lambda x: x.argmax(-1), (X,), X.size),
    "cumsum": (lambda x: inp.cumsum(x), (LINE,), LINE.size),
    "sort": (lambda x: inp.sort(x), (LINE,), LINE.size * 10),
    "scatter": (lambda x, i: x.at[i].set(0.0, mode="promise_in_bounds"), (X, ROWS), 0),
    "loop": (lambda x: lax.fori_loop(0, 10, lambda i, c: c * 2, x), (X,), 10 * X.size),
    "scan of dots": (
        lambda x, w: lax.scan(lambda c, _: (c @ w, None), x, None, length=5)[0],
        (np.ones((8, 16), np.float32), np.ones((16, 16), np.float32)),
        5 * 2 * 8 * 16 * 16,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOPS)
def test_flops_are_those_counted_by_hand(name):
    f, args, expected = FLOPS[name]
    found = analysis(f, *args)["flops"]
    # Indices of loops are counted, too.
    assert expected <= found <= expected * 1.02 + 256


def test_scatter_add_counts_its_additions():
    found = analysis(lambda x, i: x.at[i].add(1.0, mode="promise_in_bounds"), X, ROWS)["flops"]
    assert 32 * 128 <= found < 33 * 128


def test_windows_count_their_places():
    def f(x):
        return lax.reduce_window(x, 0.0, lax.add, (1, 1, 5, 5), (1, 1, 1, 1), "VALID")

    windows = program_of(f, f32(*IMAGE.shape)).equations[-1]
    assert cost.work(windows) == {"flops": 2 * 8 * 6 * 6 * 25}


def test_transcendentals_are_counted_apart():
    found = analysis(lambda x: inp.tanh(x) * inp.exp(x), X)
    assert (found["flops"], found["transcendentals"]) == (X.size, 2 * X.size)


def test_weights_are_in_the_declarations():
    assert cost.op_weight(primitive.by_name("exp")) == 10.0
    assert cost.op_weight(primitive.by_name("add")) == 1.0
    assert cost.op_weight(primitive.by_name("bitcast_convert_type")) == 0.0


def test_moves_do_no_work():
    found = analysis(lambda x: inp.transpose(x)[::2].reshape(-1), X)
    assert found["flops"] == found["transcendentals"] == 0


M, N, K = 6, 4, 3
SQUARE, TALL, WIDE = np.ones((5, N, N)), np.ones((M, N)), np.ones((N, M))
# Leading terms of LAPACK's operation counts; those of a batch are added up.
LINEAR_ALGEBRA = {
    "lu": (lax.linalg.lu, (SQUARE,), 5 * 2 / 3 * N**3),
    "lu tall": (lax.linalg.lu, (TALL,), N * N * (M - N / 3)),
    "lu wide": (lax.linalg.lu, (WIDE,), N * N * (M - N / 3)),
    "lu complex": (lax.linalg.lu, (SQUARE.astype("complex64"),), 4 * 5 * 2 / 3 * N**3),
    "cholesky": (lax.linalg.cholesky, (SQUARE,), 5 / 3 * N**3),
    "triangular_solve": (
        lambda a, b: lax.linalg.triangular_solve(a, b, left_side=True),
        (np.eye(N), np.ones((N, K))),
        K * N * N,
    ),
    "triangular_solve right": (
        lax.linalg.triangular_solve, (SQUARE, np.ones((5, K, N))), 5 * K * N * N,
    ),
    "qr": (
        lambda x: lax.linalg.qr(x, full_matrices=False), (TALL,), 4 * N * N * (M - N / 3),
    ),
    "qr full": (lax.linalg.qr, (np.eye(N),), 8 / 3 * N**3),
    "eigh": (lax.linalg.eigh, (np.eye(N),), 14 / 3 * N**3),
    "svd": (
        lambda x: lax.linalg.svd(x, compute_uv=False), (TALL,), 4 * N * N * (M - N / 3),
    ),
    "svd vectors": (
        lambda x: lax.linalg.svd(x, full_matrices=False),
        (TALL,),
        4 * N * N * (M - N / 3) + 8 / 3 * N**3 + 2 * N * N * (2 * M - N) + 2 * N**3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LINEAR_ALGEBRA)
def test_linear_algebra_counts_as_lapack_does(name):
    f, args, expected = LINEAR_ALGEBRA[name]
    program = program_of(f, *(ir.ArrayType(x.shape, x.dtype) for x in args))
    (found,) = (e for e in program.equations if e.op.name == name.partition(" ")[0])
    assert cost.work(found)["flops"] == pytest.approx(expected)


def test_products_with_quantized_matrices_count_as_others():
    w = infini.quantization.quantize(np.ones((64, 96), np.float32), "Q8_0")
    program = program_of(lambda x: lax.quantized_matmul(x, w), f32(3, 7, 96))
    (found,) = (e for e in program.equations if e.op.name == "quantized_matmul")
    assert cost.work(found) == {"flops": 2 * 3 * 7 * 96 * 64}


def test_rows_of_experts_count_once():
    def f(x, y):
        return lax.ragged_dot(x, y, np.array([3, 5], np.int32))

    def count(program):
        return [cost.work(e)["flops"] for e in program.equations if e.op.name == "ragged_dot"]

    x, y = f32(8, 16), f32(2, 16, 32)
    assert count(program_of(f, x, y)) == [2 * 8 * 16 * 32]
    gradients = program_of(lambda x, y: infini.grad(lambda *xs: f(*xs).sum(), (0, 1))(x, y), x, y)
    assert set(count(gradients)) == {2 * 8 * 16 * 32}


def test_libraries_count_in_whole_programs():
    found = analysis(lambda x: lax.linalg.cholesky(x @ x.T), np.eye(64, dtype=np.float32))["flops"]
    assert 2 * 64**3 + 64**3 / 3 <= found <= (2 * 64**3 + 64**3 / 3) * 1.02
