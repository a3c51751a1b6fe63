"""Collectives over several axes, some of which are axes of vmap, and collectives of several operands."""

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.core import trace, tree
from infini.sharding import P, make_mesh
from tests.parity.collectives_table import CASES

PARTS = np.sin(np.arange(256, dtype=np.float32)).reshape(2, 2, 2, 8, 4)
NAMES = [name for name in CASES if name != "ppermute"]


@pytest.fixture(autouse=True)
def devices():
    with inf.config(device="reference", cpu_devices=8, check=1):
        yield


def on_a_mesh(f, names):
    """A function of the parts of devices, given and given back under one dimension per axis."""
    mesh = make_mesh((2,) * len(names), names)

    def local(x):
        part = x.reshape(x.shape[len(names) :])
        return tree.map(lambda leaf: leaf.reshape((1,) * len(names) + leaf.shape), f(part))

    return inf.shard_map(local, mesh=mesh, in_specs=P(*names), out_specs=P(*names))


def assert_equal(found, expected):
    for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def expected():
    def every(x):
        return {name: CASES[name](lax, x) for name in NAMES}

    with inf.config(device="reference", cpu_devices=8):
        return inf.jit(on_a_mesh(every, ("x", "y", "z")))(PARTS)


@pytest.mark.parametrize("name", NAMES)
def test_axes_of_vmap_act_like_those_of_a_mesh(name, expected):
    f = lambda x: CASES[name](lax, x)  # noqa: E731
    for axis in ("z", "y", "x"):
        f = inf.vmap(f, axis_name=axis)
    assert_equal(f(PARTS), expected[name])


@pytest.mark.parametrize("name", NAMES)
def test_an_axis_of_vmap_stands_among_those_of_a_mesh(name, expected):
    batched = inf.vmap(lambda x: CASES[name](lax, x), axis_name="y", in_axes=0)
    found = inf.jit(on_a_mesh(batched, ("x", "z")))(np.swapaxes(PARTS, 1, 2))
    assert_equal(tree.map(lambda leaf: np.swapaxes(leaf, 1, 2), found), expected[name])


def test_a_permutation_of_several_axes_is_refused_under_vmap():
    with pytest.raises(NotImplementedError, match="use one vmap over all of these members"):
        inf.vmap(inf.vmap(lambda x: lax.ppermute(x, ("x", "y"), [(0, 3)]), axis_name="y"), axis_name="x")(
            PARTS[0]
        )


def test_an_axis_named_twice_is_refused():
    with pytest.raises(ValueError, match="names an axis twice"):
        inf.vmap(lambda x: lax.psum(x, ("x", "x")), axis_name="x")(PARTS)


AXES = {"axes": ("x", "y"), "sizes": (2, 2)}
OPERATIONS = [
    (lax.psum_p, {}),
    (lax.all_gather_p, {"dimensions": (-2, -1)}),
    (lax.psum_scatter_p, {"dimensions": (-2, -1)}),
    (lax.ppermute_p, {"permutation": ((0, 1), (1, 3), (3, 2), (2, 0))}),
]


def together(op, attrs):
    return lambda a, b: list(trace.bind(op, a, b, **AXES, **attrs))


def apart(op, attrs):
    own = [{k: (v[i],) if k == "dimensions" else v for k, v in attrs.items()} for i in range(2)]
    return lambda a, b: [trace.bind1(op, x, **AXES, **kept) for x, kept in zip((a, b), own, strict=True)]


def over_devices(f):
    return on_a_mesh(lambda x: f(x[0], inp.asarray(x[1, :, :4]) * 2), ("x", "y"))


OPERANDS = np.cos(np.arange(128, dtype=np.float32)).reshape(2, 2, 2, 4, 4)


@pytest.mark.parametrize(("op", "attrs"), OPERATIONS, ids=lambda x: getattr(x, "name", ""))
def test_operands_that_travel_together_arrive_as_they_do_alone(op, attrs):
    def of(make):
        def loss(x):
            return sum((inp.sin(leaf) * leaf).sum() for leaf in over_devices(make(op, attrs))(x))

        mapped = over_devices(make(op, attrs))
        return inf.jit(lambda x: (mapped(x), inf.grad(loss)(x), inf.jvp(mapped, (x,), (x * x,))))(OPERANDS)

    assert_equal(of(together), of(apart))


@pytest.mark.parametrize(("op", "attrs"), OPERATIONS[:3], ids=lambda x: getattr(x, "name", ""))
def test_operands_that_travel_together_are_batched(op, attrs):
    def of(make):
        return inf.vmap(inf.vmap(make(op, attrs), axis_name="y", in_axes=(0, None)), axis_name="x")(
            OPERANDS[:, :, 0], OPERANDS[:, 0, 1]
        )

    assert_equal(of(together), of(apart))


def test_one_cotangent_of_two_is_enough():
    def loss(x):
        kept, _ = over_devices(together(lax.psum_p, {}))(x)
        return kept.sum()

    expected = inf.grad(lambda x: over_devices(lambda a, b: [lax.psum(a, ("x", "y"))])(x)[0].sum())(OPERANDS)
    assert_equal(inf.grad(loss)(OPERANDS), expected)


def test_operands_of_several_dtypes_travel_in_one_equation():
    def f(x):
        half = x[1].astype(inp.bfloat16)
        return list(trace.bind(lax.psum_p, x[0], half, x[0] * 3, **AXES))

    whole, half, triple = on_a_mesh(f, ("x", "y"))(OPERANDS)
    total = OPERANDS.sum((0, 1))
    assert half.dtype == inp.bfloat16
    np.testing.assert_allclose(whole[0, 1], total[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(triple[1, 1], 3 * total[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.asarray(half[0, 0], np.float32), total[1], rtol=0.02, atol=0.02)
