"""Work is what the COST rules of operations say, counted by hand here."""

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import lax
from infini.compiler import cost
from infini.core import primitive
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
