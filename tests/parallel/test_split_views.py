"""slice, pad, rev and concatenate along a split dimension."""

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.sharding import P
from tests.parallel.sharded import assert_same, counts, traffic


@pytest.fixture(autouse=True)
def devices():
    with inf.config(device="reference", cpu_devices=8, check=1):
        yield


def numbers(*shape):
    x = np.random.standard_normal(shape).astype(np.float32)
    x.reshape(-1)[:2] = np.nan, np.inf
    return x


def padded(*config, fill=0.0):
    return lambda x: lax.pad(x, np.float32(fill), [config, (0, 0, 0)])


# By name: a function of one array of 32 x 2 whose rows are split.
ONE = {
    "rev": lambda x: lax.rev(x, (0, 1)),
    "every second": lambda x: x[::2],
    "every second after the first": lambda x: x[1::2],
    "every fourth after the second": lambda x: x[2::4],
    "first half": lambda x: x[:16],
    "second half": lambda x: x[16:],
    "middle half": lambda x: x[8:24],
    "odd middle": lambda x: x[5:21],
    "backwards half": lambda x: x[23:7:-1],
    "one row": lambda x: x[13],
    "last row": lambda x: x[-1],
    "few rows": lambda x: x[14:17],
    "few rows apart": lambda x: x[3:29:5],
    "most rows": lambda x: x[1:],
    "nothing": lambda x: x[5:5],
    "moved": padded(1, -1, 0),
    "moved back, filled": padded(-3, 3, 0, fill=7.0),
    "moved far": padded(20, -20, 0, fill=np.nan),
    "padded to twice": padded(16, 16, 0),
    "padded to twice, askew": padded(5, 27, 0, fill=1.0),
    "padded unevenly": padded(1, 1, 0),
    "cropped": padded(-8, -8, 0),
    "dilated": padded(0, 1, 1, fill=2.0),
    "dilated askew": padded(3, 31, 2),
    "dilated and cropped": padded(-7, -24, 1, fill=3.0),
    "moved out": padded(-40, 40, 0, fill=5.0),
    "one row to many": lambda x: lax.pad(x[3:4], np.float32(0), [(9, 22, 0), (0, 0, 0)]),
    "rolled": lambda x: inp.roll(x, 3, axis=0),
    "joined with itself": lambda x: inp.concatenate([x, x]),
    "joined halves": lambda x: inp.concatenate([x[16:], x[:16]]),
    "joined with zeros": lambda x: inp.concatenate([inp.zeros_like(x), x, inp.ones((64, 2), x.dtype)]),
    "joined with few": lambda x: inp.concatenate([x, inp.ones((8, 2), x.dtype), x[:24]]),
    "joined unevenly": lambda x: inp.concatenate([x, x[:1]]),
    "stacked": lambda x: inp.stack([x, -x], axis=1),
    "joined rows": lambda x: inp.concatenate([x[i : i + 1] for i in range(0, 32, 4)]),
    "joined with nothing": lambda x: inp.concatenate([x, x[:0]]),
    "split and swapped": lambda x: inp.concatenate(inp.split(x, 4)[::-1]),
    "tiled": lambda x: inp.tile(x, (2, 3)),
}  # fmt: skip
# What some of them communicate on four devices, and how many bytes a device gives. A row has eight bytes,
# a part eight rows.
EXPECTED = {
    "rev": {"ppermute": (1, 64)},
    "every second": {},
    "every second after the first": {},
    "first half": {"ppermute": (2, 64)},
    "middle half": {"ppermute": (1, 32)},
    "one row": {"psum": (1, 8)},
    "few rows": {"psum": (1, 24)},
    "most rows": {"all_gather": (1, 64)},
    "moved": {"ppermute": (1, 8)},
    "moved back, filled": {"ppermute": (1, 24)},
    "dilated": {},
    "padded to twice": {"ppermute": (1, 64)},
    "joined with itself": {"ppermute": (4, 256)},
    "stacked": {},
}


@pytest.mark.parametrize("name", ONE)
def test_a_view_along_a_split_dimension(name):
    for sizes in ((2,), (4,), (8,)):
        assert_same(ONE[name], [numbers(32, 2)], [P("a")], sizes, exact=True)
    assert_same(ONE[name], [numbers(32, 2)], [P(("b", "a"))], (2, 2), exact=True)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_a_view_communicates(name):
    assert traffic(ONE[name], [numbers(32, 2)], [P("a")], (4,)) == EXPECTED[name]


@pytest.mark.parametrize("name", ONE)
def test_the_gradient_of_a_view(name):
    x = np.random.standard_normal((32, 2)).astype(np.float32)

    def loss(x):
        y = ONE[name](x)
        return (inp.sin(inp.where(inp.isnan(y), 0, y)) * 2).sum()

    assert_same(inf.grad(loss), [x], [P("a")], (4,))


@pytest.mark.parametrize("dtype", ["bool", "int8", "bfloat16", "complex64"])
def test_views_of_other_elements(dtype):
    x = inp.array(np.random.randint(0, 2, (16, 2)), dtype)
    for f in (
        lambda x: x[3],
        lambda x: x[1::2],
        lambda x: lax.rev(x, (0,)),
        lambda x: inp.concatenate([x, x]),
    ):
        assert_same(f, [x], [P("a")], (4,), exact=True)


def test_views_of_two_split_dimensions():
    f = lambda x: lax.pad(lax.rev(x, (0, 1)), np.float32(1), [(2, -2, 0), (-1, 1, 0)])  # noqa: E731
    assert_same(f, [numbers(8, 16)], [P("a", "b")], (2, 4), exact=True)
    assert counts(f, [numbers(8, 16)], [P("a", "b")], (2, 4)) == {"ppermute": 4}


def test_views_under_vmap_and_in_a_loop():
    f = inf.vmap(lambda x: inp.concatenate([x[8:], x[:8]]), in_axes=1)
    assert_same(f, [numbers(16, 3)], [P("a")], (4,), exact=True)
    g = lambda x: lax.fori_loop(0, 3, lambda i, x: lax.pad(x, np.float32(0), [(1, -1, 0)]) + x, x)  # noqa: E731
    assert_same(g, [np.ones(16, np.float32)], [P("a")], (4,), exact=True)


def test_what_a_partial_sum_becomes_in_a_view():
    def f(x, w):
        return (x @ w)[::-1], inp.concatenate([x @ w, x @ w])[8:24]

    x, w = np.ones((16, 8), np.float32), np.ones((8, 4), np.float32)
    assert_same(f, [x, w], [P("a", "b"), P("b")], (2, 4))


def test_halves_of_features_are_not_gathered():
    def gated(x):
        gate, up = inp.split(x, 2, axis=-1)
        return inp.tanh(gate) * up

    assert_same(gated, [np.ones((4, 64), np.float32)], [P(None, "a")], (4,))
    assert set(counts(gated, [np.ones((4, 64), np.float32)], [P(None, "a")], (4,))) == {"ppermute"}
