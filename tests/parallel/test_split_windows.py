"""Convolutions, reductions over windows and windows themselves along split dimensions."""

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.sharding import P
from tests.parallel.sharded import assert_same, counts, gradient_of, traffic

NHWC = ("NHWC", "HWIO", "NHWC")


@pytest.fixture(autouse=True)
def devices():
    with inf.config(device="reference", cpu_devices=8, check=1):
        yield


def numbers(*shape):
    return np.random.standard_normal(shape).astype(np.float32)


def convolution(strides=(1, 1), padding="SAME", lhs=None, rhs=None, **more):
    return lambda x, w: lax.conv_general_dilated(
        x, w, strides, padding, lhs_dilation=lhs, rhs_dilation=rhs, dimension_numbers=NHWC, **more
    )


def pads(rows, columns=(1, 1)):
    return (rows, columns)


# By name: a convolution of 32 rows by a kernel of so many, and how many ppermutes it takes on four devices.
CONVOLUTIONS = {
    "same": (convolution(), 3, 2),
    "one by one": (convolution(), 1, 0),
    "wide kernel": (convolution(), 7, 2),
    "even kernel": (convolution(), 4, 2),
    "two apart": (convolution((2, 1)), 3, 1),
    "patches": (convolution((4, 1), "VALID"), 4, 0),
    "dilated kernel": (convolution(padding=pads((2, 2)), rhs=(2, 1)), 3, 2),
    "dilated kernel, two apart": (convolution((2, 1), pads((2, 2)), rhs=(2, 1)), 3, 2),
    "causal": (convolution(padding=pads((3, 0))), 4, 1),
    "anticausal": (convolution(padding=pads((0, 3))), 4, 1),
    "moved": (convolution(padding=pads((-2, 4))), 3, 1),
    "transposed": (convolution(padding=pads((1, 2)), lhs=(2, 1)), 3, 1),
    "transposed by three": (convolution(padding=pads((2, 2)), lhs=(3, 1)), 3, 0),
    "dilated, two of three": (convolution((2, 1), pads((3, 1)), lhs=(3, 1)), 3, 1),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_over_split_rows(name):
    f, size, exchanges = CONVOLUTIONS[name]
    x, w = numbers(2, 32, 5, 3), numbers(size, 3, 3, 4)
    for sizes in ((2,), (4,), (8,)):
        assert_same(f, [x, w], [P(None, "a"), P()], sizes)
    expected = {"ppermute": exchanges} if exchanges else {}
    assert counts(f, [x, w], [P(None, "a"), P()], (4,)) == expected


def test_the_bytes_of_a_halo():
    f = convolution()
    x, w = numbers(2, 32, 5, 3), numbers(5, 3, 3, 4)
    # Two rows for each neighbour.
    expected = {"ppermute": (2, 2 * 2 * (2 * 5 * 3) * 4)}
    assert traffic(f, [x, w], [P(None, "a"), P()], (4,)) == expected


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_both_gradients_of_a_convolution(name):
    f, size, _ = CONVOLUTIONS[name]
    x, w = numbers(2, 32, 4, 2), numbers(size, 3, 2, 3)
    gradient = gradient_of(f, 2)
    for sizes in ((4,), (8,)):
        assert_same(gradient, [x, w], [P(None, "a"), P()], sizes)
    found = counts(gradient, [x, w], [P(None, "a"), P()], (4,))
    assert found.get("psum") == 1 and set(found) <= {"psum", "ppermute"}


def test_a_kernel_that_reaches_over_several_devices():
    f, x, w = convolution(padding=pads((6, 6))), numbers(1, 32, 3, 2), numbers(13, 3, 2, 2)
    assert_same(f, [x, w], [P(None, "a"), P()], (8,))
    assert counts(f, [x, w], [P(None, "a"), P()], (8,)) == {"ppermute": 4}


def test_windows_that_do_not_begin_with_the_parts():
    f, x, w = convolution(padding=pads((0, 0))), numbers(1, 32, 3, 2), numbers(3, 3, 2, 2)
    assert_same(f, [x, w], [P(None, "a"), P()], (2,))
    assert counts(f, [x, w], [P(None, "a"), P()], (2,)) == {"ppermute": 1}
    # Thirty rows do not divide by four.
    assert_same(f, [x, w], [P(None, "a"), P()], (4,))


@pytest.mark.parametrize(
    "spec", [P(None, "a", "b"), P("b", "a"), P(None, ("a", "b")), P(None, "a", None, "b")]
)
def test_a_convolution_with_two_axes(spec):
    x, w = numbers(4, 16, 16, 4), numbers(3, 3, 4, 2) / 6
    for f in (convolution(), gradient_of(convolution((2, 2)), 2)):
        assert_same(f, [x, w], [spec, P()], (2, 4))
    assert "all_gather" not in counts(convolution(), [x, w], [spec, P()], (2, 4))


def test_groups_features_and_other_types():
    x, w = numbers(2, 16, 4, 4), numbers(3, 3, 1, 8)
    f = convolution(feature_group_count=4)
    assert_same(f, [x, w], [P(None, "a"), P()], (4,))
    assert_same(f, [x, w], [P(None, "a"), P(None, None, None, "b")], (2, 4))
    assert_same(f, [x.astype(np.int32), w.astype(np.int32)], [P(None, "a"), P()], (4,), exact=True)
    g = lambda x, w: lax.conv_general_dilated(x, w, (2,), "SAME")  # noqa: E731
    assert_same(g, [numbers(2, 3, 32), numbers(4, 3, 5)], [P(None, None, "a"), P()], (4,))
    assert_same(inf.vmap(f, in_axes=(0, None)), [numbers(2, *x.shape), w], [P(None, None, "a"), P()], (4,))


def test_a_small_network_over_split_images():
    def network(x, first, second):
        x = inp.tanh(convolution((2, 2))(x, first))
        x = lax.reduce_window(x, -np.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1))
        return convolution()(x, second).mean((1, 2))

    args = [numbers(2, 32, 32, 3), numbers(3, 3, 3, 4), numbers(3, 3, 4, 4)]
    specs = [P(None, "a", "b"), P(), P()]
    assert_same(network, args, specs, (2, 4))
    assert_same(gradient_of(network, 3), args, specs, (2, 4))
    assert set(counts(gradient_of(network, 3), args, specs, (2, 4))) == {"psum", "ppermute"}


# --- windows ---------------------------------------------------------------------------------------

# Size, stride, padding, dilation of the array and of windows.
WINDOWS = {
    "same": (3, 1, (1, 1), 1, 1),
    "pooling": (2, 2, (0, 0), 1, 1),
    "overlapping pooling": (3, 2, (0, 1), 1, 1),
    "far apart": (2, 4, (0, 0), 1, 1),
    "dilated": (3, 1, (2, 2), 1, 2),
    "between": (3, 1, (1, 2), 2, 1),
    "between, moved": (2, 2, (3, -1), 2, 1),
    "long": (9, 1, (8, 0), 1, 1),
}
REDUCERS = {"sum": (lax.add, 0.0), "max": (lax.max, -np.inf), "min": (lax.min, np.inf)}


def reduced(name, reducer):
    size, stride, padding, base, hole = WINDOWS[name]
    join, start = REDUCERS[reducer]
    return lambda x: lax.reduce_window(
        x, np.float32(start), join, (size, 1), (stride, 1), (padding, (0, 0)), (base, 1), (hole, 1)
    )


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("name", WINDOWS)
def test_a_reduction_over_windows_of_split_rows(name, reducer):
    f, x = reduced(name, reducer), numbers(32, 3)
    for sizes in ((2,), (8,)):
        assert_same(f, [x], [P("a")], sizes)
    assert "all_gather" not in counts(f, [x], [P("a")], (4,))


@pytest.mark.parametrize("reducer", ["sum", "max"])
@pytest.mark.parametrize("name", WINDOWS)
def test_the_gradient_of_a_reduction_over_windows(name, reducer):
    x = np.round(numbers(32, 3) * 2)  # with equal elements
    gradient = gradient_of(reduced(name, reducer), 1)
    for sizes in ((2,), (8,)):
        assert_same(gradient, [x], [P("a")], sizes)
    if WINDOWS[name][3] == 1:
        assert "all_gather" not in counts(gradient, [x], [P("a")], (4,))


def test_derivatives_of_a_derivative_of_pooling():
    def f(x):
        pooled = reduced("overlapping pooling", "max")
        return inf.grad(lambda x: (pooled(x * x) ** 3).sum())(x)

    assert_same(gradient_of(f, 1), [numbers(32, 3)], [P("a")], (4,))


def test_pooling_moves_nothing():
    assert counts(reduced("pooling", "max"), [numbers(32, 3)], [P("a")], (4,)) == {}
    assert counts(gradient_of(reduced("pooling", "max"), 1), [numbers(32, 3)], [P("a")], (4,)) == {}


def test_windows_over_two_split_dimensions():
    f = lambda x: lax.reduce_window(x, -np.inf, lax.max, (3, 3), (2, 1), ((1, 1), (1, 1)))  # noqa: E731
    x = numbers(16, 16)
    assert_same(f, [x], [P("a", "b")], (2, 4))
    assert_same(gradient_of(f, 1), [x], [P("a", "b")], (2, 4))


def test_the_patches_of_a_convolution():
    f = lambda x: lax.conv_general_dilated_patches(x, (4, 3), (4, 1), ((0, 0), (1, 1)))  # noqa: E731
    assert_same(f, [numbers(2, 3, 32, 6)], [P(None, None, "a")], (4,), exact=True)
    assert counts(f, [numbers(2, 3, 32, 6)], [P(None, None, "a")], (4,)) == {}
    g = lambda x: lax.conv_general_dilated_patches(x, (3, 3), (1, 1), "SAME")  # noqa: E731
    for sizes in ((2,), (4,)):
        assert_same(g, [numbers(2, 3, 32, 6)], [P(None, None, "a")], sizes, exact=True)
        assert_same(gradient_of(g, 1), [numbers(1, 2, 32, 6)], [P(None, None, "a")], sizes)


def test_windows_joined_by_another_function():
    f = lambda x: lax.reduce_window(x, np.float32(1), lambda a, b: a * b + 0, (3, 1), (1, 1), "SAME")  # noqa: E731
    assert_same(f, [numbers(32, 3)], [P("a")], (4,))


def test_every_backend_runs_split_convolutions_and_windows(backend_name):
    def f(x, w):
        y = convolution((2, 1))(x, w)
        y = lax.reduce_window(y, -np.inf, lax.max, (1, 3, 1, 1), (1, 1, 1, 1), "SAME")
        return inp.cumsum(inp.concatenate([y, y[:, ::-1]], 1), 1), lax.top_k(y[:, 3], 1)

    with inf.config(device=backend_name):
        assert_same(f, [numbers(2, 32, 4, 2), numbers(3, 3, 2, 3)], [P(None, "a"), P()], (4,))
