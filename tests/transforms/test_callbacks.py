"""Callbacks with results on every backend at hand: values, order, failures, batches, meshes."""

from __future__ import annotations

import numpy as np
import pytest

import infini as inf
import infini.experimental
import infini.numpy as inp
from infini import lax
from infini.core import errors
from infini.sharding import NamedSharding, P, make_mesh

X = np.array([0.5, -1.0, 2.0], np.float32)


def struct(*shape, dtype=np.float32):
    return inf.ShapeDtypeStruct(shape, dtype)


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with inf.config(device=request.param):
        yield request.param


def test_results_of_several_dtypes_come_back(backend):
    types = {"f": struct(3), "b": struct(3, dtype=bool), "i": struct(2, 2, dtype=np.int16), "none": struct(0)}

    def host(x):
        return {
            "f": np.cos(x),
            "b": x > 0,
            "i": np.arange(4, dtype=np.int16).reshape(2, 2),
            "none": np.zeros(0, "f"),
        }

    found = inf.jit(lambda x: inf.pure_callback(host, types, x))(X)
    np.testing.assert_allclose(found["f"], np.cos(X), rtol=1e-6)
    np.testing.assert_array_equal(found["b"], X > 0)
    np.testing.assert_array_equal(found["i"], [[0, 1], [2, 3]])
    assert found["none"].shape == (0,)


def test_numbers_and_wide_floats_become_the_declared_type(backend):
    assert float(inf.pure_callback(lambda x: 2.5, struct(), 1.0)) == 2.5
    found = inf.pure_callback(lambda x: np.asarray(x, np.float64) * 2, struct(3), X)
    assert found.dtype == "float32"


@pytest.mark.parametrize(
    "result",
    [np.ones(2, np.float32), np.ones(3, np.int32), np.array(["a"] * 3)],
    ids=["shape", "kind", "text"],
)
def test_another_type_than_declared_is_named(backend, result):
    with pytest.raises(errors.TypeMismatchError, match=r"f32\[3\]"):
        inf.block_until_ready(inf.jit(lambda x: inf.pure_callback(lambda x: result, struct(3), x))(X))


def test_an_exception_of_the_host_is_raised_at_the_call(backend):
    def complain(x):
        raise RuntimeError("no such luck")

    with pytest.raises(RuntimeError, match="no such luck"):
        inf.block_until_ready(inf.jit(lambda x: inf.pure_callback(complain, struct(3), x) + 1)(X))


def test_what_nothing_uses_is_not_called_but_effects_are():
    calls = []

    def host(x):
        calls.append(1)
        return x

    inf.block_until_ready(inf.jit(lambda x: (inf.pure_callback(host, x, x), x)[1])(X))
    assert calls == []
    inf.block_until_ready(inf.jit(lambda x: (infini.experimental.io_callback(host, x, x), x)[1])(X))
    assert calls == [1]


def test_ordered_calls_keep_program_order_in_loops(backend):
    seen = []

    def note(x):
        seen.append(float(x))
        return np.float32(x * 10)

    def body(c, x):
        y = infini.experimental.io_callback(note, struct(), x, ordered=True)
        return c + infini.experimental.io_callback(note, struct(), y, ordered=True), y

    total, _ = inf.jit(lambda x: lax.scan(body, 0.0, x))(np.array([1.0, 2.0], np.float32))
    assert seen == [1.0, 10.0, 2.0, 20.0] and float(total) == 300.0


@pytest.mark.parametrize(
    ("method", "shapes"),
    [
        ("sequential", [((), ())] * 3),
        ("sequential_unrolled", [((), ())] * 3),
        ("expand_dims", [((3,), (1,))]),
        ("broadcast_all", [((3,), (3,))]),
        ("legacy_vectorized", [((3,), ())]),
    ],
)
def test_a_mapped_call_is_made_as_its_method_says(method, shapes):
    seen = []

    def host(x, y):
        seen.append((np.shape(x), np.shape(y)))
        return np.asarray(x) * np.asarray(y)

    def f(x, y):
        return inf.pure_callback(host, struct(), x, y, vmap_method=method)

    np.testing.assert_array_equal(inf.vmap(f, (0, None))(X, np.float32(2.0)), 2 * X)
    assert seen == shapes


def test_a_callback_in_a_custom_rule_has_a_derivative():
    @inf.custom_jvp
    def sine(x):
        return inf.pure_callback(np.sin, x, x, vmap_method="expand_dims")

    sine.defjvp(lambda p, t: (sine(*p), inp.cos(p[0]) * t[0]))
    np.testing.assert_allclose(inf.jit(inf.vmap(inf.grad(sine)))(X), np.cos(X), rtol=1e-6)


def test_on_a_mesh_the_host_is_called_once_with_whole_arrays():
    seen = []

    def host(x):
        seen.append(np.shape(x))
        return np.asarray(x) > 0, np.asarray(x) * 2

    with inf.config(cpu_devices=2):
        mesh = make_mesh((2,), ("a",))
        x = inf.device_put(np.arange(4, dtype=np.float32), NamedSharding(mesh, P("a")))
        types = (struct(4, dtype=bool), struct(4))
        found = inf.jit(lambda x: infini.experimental.io_callback(host, types, x + 1))(x)
        np.testing.assert_array_equal(found[0], [True] * 4)
        np.testing.assert_array_equal(found[1], 2 * np.arange(1, 5))
    assert seen == [(4,)]


def test_prints_are_checked_while_tracing():
    with pytest.raises(ValueError, match="does not use"):
        inf.debug.print("{}", 1, 2)
    with pytest.raises(IndexError, match="fewer values"):
        inf.debug.print("{} {}", 1)
    with pytest.raises(TypeError, match="string"):
        inf.debug.print(X)


def test_prints_format_fields_and_attributes(capfd):
    inf.debug.print("{x:.2f} {0.shape} {{}} {y[0]}", inp.asarray(X), x=1.5, y=X)
    assert capfd.readouterr().out == "1.50 (3,) {} 0.5\n"


def test_debug_callback_is_a_decorator_too():
    seen = []

    @inf.debug.callback(ordered=True)
    def note(x):
        seen.append(float(x))

    inf.jit(lambda x: (note(x), x)[1])(1.5)
    assert seen == [1.5]
