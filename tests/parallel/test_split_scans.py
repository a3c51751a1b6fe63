"""Running sums, products, extrema and log-sum-exps along a split dimension."""

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.sharding import P
from tests.parallel.sharded import assert_same, counts, gradient_of, traffic

OPS = {
    "cumsum": lax.cumsum,
    "cumprod": lax.cumprod,
    "cummax": lax.cummax,
    "cummin": lax.cummin,
    "cumlogsumexp": lax.cumlogsumexp,
}


@pytest.fixture(autouse=True)
def devices():
    with inf.config(device="reference", cpu_devices=8, check=1):
        yield


def table(*shape):
    return np.random.uniform(-1.5, 1.5, shape).astype(np.float32)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("sizes", [(2,), (4,), (8,)])
def test_a_scan_along_a_split_dimension(name, reverse, sizes):
    x = table(16, 3)
    x[5, 0], x[2, 1] = np.inf if name in ("cummax", "cummin") else 0.0, -0.0
    f = lambda x: OPS[name](x, axis=0, reverse=reverse)  # noqa: E731
    assert_same(f, [x], [P("a")], sizes)
    # One row of each part is all that devices tell each other.
    assert traffic(f, [x], [P("a")], sizes) == {"all_gather": (1, 3 * 4)}


@pytest.mark.parametrize("spec", [P(("a", "b")), P("a", "b"), P(None, ("b", "a")), P("b", None)])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_scan_with_two_axes(spec, axis):
    f = lambda x: lax.cumsum(x, axis=axis)  # noqa: E731
    assert_same(f, [table(8, 16)], [spec], (2, 4))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "complex64", "float64"])
def test_scans_of_other_numbers(dtype):
    x = (table(16) * 4).astype(dtype) if dtype != "bfloat16" else inp.array(table(16), dtype)
    assert_same(lambda x: lax.cumsum(x), [x], [P("a")], (4,), exact=dtype == "int8")


def test_a_running_log_sum_exp_of_minus_infinity():
    x = np.full((8,), -np.inf, np.float32)
    x[5:] = 1.0
    assert_same(lambda x: lax.cumlogsumexp(x), [x], [P("a")], (4,), exact=True)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("sizes", [(2,), (8,)])
def test_the_gradient_of_a_scan(name, reverse, sizes):
    f = gradient_of(lambda x: OPS[name](x, axis=0, reverse=reverse), 1)
    assert_same(f, [table(16, 2)], [P("a")], sizes)


def test_the_gradient_of_a_running_sum_is_one_backwards():
    f = gradient_of(lambda x: lax.cumsum(x, axis=0), 1)
    assert counts(f, [table(16, 2)], [P("a")], (4,)) == {"all_gather": 2}


def test_the_result_keeps_the_placement():
    mesh = inf.sharding.make_mesh((4,), ("a",))
    x = inf.device_put(table(8), inf.sharding.NamedSharding(mesh, P("a")))
    assert inf.jit(lax.cumsum)(x).sharding.spec == P("a")
