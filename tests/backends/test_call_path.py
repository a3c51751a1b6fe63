"""Calls that machine code repeats give what Python gives, and leave to Python what it does not know."""

from __future__ import annotations

import collections
import gc
import os
import sys
import threading
import weakref
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest

import infini
import infini.experimental.layout
import infini.numpy as inp
from infini import lax, tree_util
from infini.backends.cpu import call_path
from infini.core import errors, memory

pytestmark = pytest.mark.skipif(call_path.make() is None, reason="this Python has no machine-code calls")


class Pair(NamedTuple):
    first: Any
    second: Any


@tree_util.register_dataclass
@dataclass(frozen=True)
class Layer:
    weight: Any
    scale: float = field(metadata={"static": True}, default=2.0)


def repeats(function: Any, *args: Any, **kwargs: Any) -> bool:
    """Whether machine code answers this call by itself."""
    return function._path is not None and function._path(args, kwargs) is not NotImplemented


X = np.arange(6, dtype=np.float32).reshape(2, 3)

TREES = {
    "array": lambda: (inp.asarray(X),),
    "two": lambda: (inp.asarray(X), inp.asarray(X * 2)),
    "tuple": lambda: ((inp.asarray(X), (inp.asarray(X[0]),)),),
    "list": lambda: ([inp.asarray(X), inp.asarray(X[0])],),
    "dict": lambda: ({"b": inp.asarray(X), "a": inp.asarray(X[0])},),
    "none": lambda: ({"b": inp.asarray(X), "a": None},),
    "empty": lambda: ({}, inp.asarray(X), [], ()),
    "named tuple": lambda: (Pair(inp.asarray(X), inp.asarray(X[0])),),
    "dataclass": lambda: (Layer(inp.asarray(X)),),
    "number": lambda: (inp.asarray(X), 3.5),
    "integer": lambda: (inp.asarray(X), -7),
    "flag": lambda: (inp.asarray(X), True),
    "no elements": lambda: (inp.zeros((0, 3)),),
    "scalar": lambda: (inp.float32(4.0),),
}


def doubled(*args: Any) -> Any:
    return infini.tree.map(lambda x: x * 2 + 1, args)


@pytest.mark.parametrize("name", TREES)
def test_a_repeated_call_equals_the_first(name: str) -> None:
    function = infini.jit(doubled)
    first = function(*TREES[name]())
    assert repeats(function, *TREES[name]())
    second = function(*TREES[name]())
    assert infini.tree.structure(first) == infini.tree.structure(second)
    for a, b in zip(infini.tree.leaves(first), infini.tree.leaves(second), strict=True):
        assert (a.type, a.weak, a.committed, a.sharding) == (b.type, b.weak, b.committed, b.sharding)
        np.testing.assert_array_equal(a, b)
    assert function.num_traces == 1


def test_values_are_those_of_the_call() -> None:
    function = infini.jit(lambda x, y, s: x * s - y)
    for i in range(5):
        x, y = inp.full(3, float(i)), inp.full(3, 10.0 * i)
        np.testing.assert_array_equal(function(x, y, 0.5 * i), np.full(3, i * 0.5 * i - 10.0 * i, np.float32))


DIFFERENT = {
    "shape": (lambda x: x * 2, (inp.ones(3),), (inp.ones(4),)),
    "dtype": (lambda x: x * 2, (inp.ones(3),), (inp.ones(3, inp.int32),)),
    "weak": (lambda x: x * 2, (inp.float32(1.0),), (inp.asarray(1.0),)),
    "NumPy": (lambda x: x * 2, (inp.ones(3),), (np.ones(3, np.float32),)),
    "list for tuple": (lambda t: t[0] * 2, ((inp.ones(3),),), ([inp.ones(3)],)),
    "one more": (lambda t: t[0] * 2, ([inp.ones(3)],), ([inp.ones(3), inp.ones(3)],)),
    "other key": (lambda t: sum(t.values()), ({"a": inp.ones(3)},), ({"b": inp.ones(3)},)),
    "ordered": (
        lambda t: t["a"] * 2, ({"a": inp.ones(3)},), (collections.OrderedDict(a=inp.ones(3)),),
    ),
    "static field": (lambda t: t.weight * t.scale, (Layer(inp.ones(3)),), (Layer(inp.ones(3), 5.0),)),
    "number": (lambda x, s: x * s, (inp.ones(3), 2.0), (inp.ones(3), 2)),
    "flag": (lambda x, s: x * s, (inp.ones(3), 1), (inp.ones(3), True)),
    "committed": (
        lambda x: x * 2, (inp.ones(3),), (infini.device_put(inp.ones(3), infini.devices("cpu")[0]),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_another_signature_is_not_taken_for_a_known_one(name: str) -> None:
    function, known, other = DIFFERENT[name]
    jitted = infini.jit(function)
    jitted(*known)
    assert repeats(jitted, *known)
    assert not repeats(jitted, *other)
    expected, found = infini.jit(function)(*other), jitted(*other)
    assert (found.type, found.weak, found.committed) == (expected.type, expected.weak, expected.committed)
    np.testing.assert_array_equal(found, expected)


def test_several_signatures_are_known_at_once() -> None:
    function = infini.jit(lambda x: x + 1)
    for n in range(6):
        function(inp.ones(n))
    assert all(repeats(function, inp.ones(n)) for n in range(6))


def test_loops_look_at_their_own_flag() -> None:
    """The entry of the table that tells a loop to end is the last, after the one for counters."""

    def recurrence(w: Any, h: Any, xs: Any) -> Any:
        return lax.scan(lambda h, x: (inp.tanh(h @ w + x), inp.sum(h)), h, xs)

    function = infini.jit(recurrence)
    args = (inp.ones((8, 8)) / 9, inp.ones(8), inp.ones((200, 8)))
    expected = [np.asarray(x) for x in function(*args)]
    assert repeats(function, *args)
    for _ in range(20):
        for a, b in zip(function(*args), expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_static_arguments_are_told_apart_by_value_and_class() -> None:
    function = infini.jit(lambda x, n: x * n, static_argnums=1, static_argnames="n")
    for n, dtype in ((2, "int32"), (2.0, "float32"), (True, "int32"), (3, "int32")):
        for _ in range(2):
            result = function(inp.ones(2, inp.int32), n)
            assert str(result.dtype) == dtype
            np.testing.assert_array_equal(result, np.full(2, n))
    assert repeats(function, inp.ones(2, inp.int32), 3)
    assert not repeats(function, inp.ones(2, inp.int32), 4)


def test_keywords_in_any_order() -> None:
    function = infini.jit(lambda *, a, b: a - b)
    function(a=inp.ones(2), b=inp.zeros(2))
    assert repeats(function, b=inp.zeros(2), a=inp.ones(2))
    np.testing.assert_array_equal(function(b=inp.zeros(2), a=inp.ones(2)), np.ones(2))


def test_captured_arrays_are_parameters() -> None:
    captured = inp.arange(100.0)
    function = infini.jit(lambda x: x + captured)
    for _ in range(3):
        np.testing.assert_array_equal(function(inp.ones(100)), np.arange(100) + 1)
    assert repeats(function, inp.ones(100))
    captured.delete()
    with pytest.raises(errors.DeletedBufferError):
        function(inp.ones(100))


def test_integers_that_do_not_fit_are_the_error_they_always_were() -> None:
    function = infini.jit(lambda x, n: x + n)
    function(inp.ones(2, inp.int32), 5)
    with pytest.raises(errors.InfiniError) as slow:
        infini.jit(lambda x, n: x + n)(inp.ones(2, inp.int32), 2**40)
    with pytest.raises(type(slow.value)):
        function(inp.ones(2, inp.int32), 2**40)
    with pytest.raises(type(slow.value)):
        function(inp.ones(2, inp.int32), 2**70)


def test_arrays_in_a_layout_are_recognised_by_it() -> None:
    function = infini.jit(lambda x, w: x @ w)
    x, w = inp.ones((8, 64)), inp.arange(64.0 * 128).reshape(64, 128)
    expected = np.asarray(function(x, w))
    format_ = infini.experimental.layout.Format(
        infini.experimental.layout.Layout((1, 0)), infini.sharding.SingleDeviceSharding(infini.devices()[0])
    )
    turned = infini.device_put(w, format_)
    for _ in range(2):
        np.testing.assert_allclose(function(x, turned), expected, rtol=1e-6)
    assert repeats(function, x, turned)
    assert not repeats(infini.jit(lambda x, w: x @ w), x, turned)
    other = infini.jit(lambda x, w: x @ w)
    other(x, infini.device_put(w, infini.devices()[0]))
    assert not repeats(other, x, turned)
    turned.delete()
    with pytest.raises(errors.DeletedBufferError):
        function(x, turned)


# --- donation ---------------------------------------------------------------------------------------


def test_donated_arrays_are_reused_and_deleted() -> None:
    function = infini.jit(lambda x: x + 1, donate_argnums=0)
    function(inp.ones(1000))
    x = inp.ones(1000) * 3
    address = x.unsafe_buffer_pointer()
    assert function._path is not None
    y = function._path((x,), {})
    assert y is not NotImplemented
    assert x.is_deleted()
    assert y.unsafe_buffer_pointer() == address
    np.testing.assert_array_equal(y, np.full(1000, 4))
    with pytest.raises(errors.DeletedBufferError):
        function(x)


def test_a_donated_array_that_numpy_sees_is_left_to_python() -> None:
    function = infini.jit(lambda x: x + 1, donate_argnums=0)
    function(inp.ones(10))
    x = inp.ones(10) * 1
    view = np.asarray(x)
    y = function(x)
    np.testing.assert_array_equal(view, np.ones(10))
    np.testing.assert_array_equal(y, np.full(10, 2))


def test_the_same_array_twice_is_the_error_it_always_was() -> None:
    function = infini.jit(lambda x, y: x + y, donate_argnums=0)
    function(inp.ones(10), inp.ones(10))
    x = inp.ones(10) * 1
    with pytest.raises(errors.DonationError):
        function(x, x)
    assert not x.is_deleted()


# --- conditions besides the arguments ---------------------------------------------------------------


def test_transformations_see_the_function() -> None:
    function = infini.jit(lambda x: inp.sin(x) * 2)
    x = inp.linspace(0, 1, 5)
    function(x)
    np.testing.assert_allclose(infini.vmap(function)(x), np.sin(x) * 2, rtol=1e-6)
    np.testing.assert_allclose(infini.vmap(infini.grad(function))(x), np.cos(x) * 2, rtol=1e-6)
    assert "call" in repr(infini.make_jaxpr(lambda x: function(x) + 1)(x))


def test_knobs_count() -> None:
    function = infini.jit(lambda x: inp.log(x))
    x = inp.asarray([-1.0])
    function(x)
    assert repeats(function, x)
    with infini.config(nan=True), pytest.raises(FloatingPointError):
        function(x)
    with infini.config(disable_jit=True):
        seen = []
        other = infini.jit(lambda x: seen.append(float(x[0])) or x)
        other(x)
        assert seen == [-1.0]
    assert np.isnan(function(x)[0])


def test_a_named_axis_counts() -> None:
    function = infini.jit(lambda x: x + 1)
    function(inp.ones(3))
    np.testing.assert_array_equal(
        infini.vmap(lambda x: lax.psum(function(x), "i"), axis_name="i")(inp.ones(3)), np.full(3, 6)
    )


def test_cleared_caches_are_forgotten() -> None:
    function = infini.jit(lambda x: x + 1)
    function(inp.ones(3))
    assert repeats(function, inp.ones(3))
    infini.clear_caches()
    assert not repeats(function, inp.ones(3))
    function(inp.ones(3))
    assert repeats(function, inp.ones(3))


def test_the_knob_turns_it_off() -> None:
    with infini.config(call_path="python"):
        function = infini.jit(lambda x: x + 1)
        for _ in range(3):
            function(inp.ones(3))
        assert function._path is None


def test_host_functions_are_called_every_time() -> None:
    seen = []
    function = infini.jit(lambda x: infini.debug.callback(seen.append, x))
    for i in range(3):
        function(inp.float32(i))
    assert [float(x) for x in seen] == [0.0, 1.0, 2.0]


# --- references and threads -------------------------------------------------------------------------


def test_nothing_leaks() -> None:
    function = infini.jit(lambda t, s: {"x": t["x"] * s, "y": (t["y"] + 1, t["x"])})
    tree = {"x": inp.ones(100), "y": inp.ones((3, 3))}
    for _ in range(3):
        function(tree, 2.0)
    gc.collect()
    before = [sys.getrefcount(x) for x in (tree, tree["x"], tree["x"].buffers[0], tree["x"].sharding, None)]
    used, objects = memory.HOST.stats()["bytes_in_use"], len(gc.get_objects())
    for _ in range(2000):
        function(tree, 2.0)
        function._path(({"x": 1},), {})  # refused
    gc.collect()
    after = [sys.getrefcount(x) for x in (tree, tree["x"], tree["x"].buffers[0], tree["x"].sharding, None)]
    assert all(abs(a - b) < 50 for a, b in zip(after, before, strict=True))
    assert memory.HOST.stats()["bytes_in_use"] == used
    assert len(gc.get_objects()) < objects + 100


def test_arguments_are_not_kept() -> None:
    function = infini.jit(lambda t: t["x"] * 2)
    big = inp.ones(1_000_000)
    gone = weakref.ref(big)
    function({"x": big})
    del big
    gc.collect()
    assert gone() is None


def test_a_function_that_dies_frees_its_calls() -> None:
    captured = inp.arange(1000.0)
    function = infini.jit(lambda x: x + captured)
    function(inp.ones(1000))
    gone = weakref.ref(captured)
    assert repeats(function, inp.ones(1000))
    del function
    captured = None  # type: ignore[assignment]  # which the lambda names
    gc.collect()
    assert gone() is None


def test_kept_memory_is_used_again_and_counted() -> None:
    function = infini.jit(lambda x: x + 1)
    x = inp.ones(3000)
    for _ in range(3):
        y = function(x)
    addresses = {function(x).unsafe_buffer_pointer() for _ in range(20)}
    assert len(addresses) <= 2
    before = memory.HOST.stats()["bytes_in_use"]
    kept = [function(x) for _ in range(10)]
    assert memory.HOST.stats()["bytes_in_use"] == before + 10 * memory.size_class(12000)
    del kept, y
    view = np.asarray(function(x))
    copy = view.copy()
    others = [function(x * 5) for _ in range(5)]
    np.testing.assert_array_equal(view, copy)
    assert len(others) == 5


def test_threads_call_at_once() -> None:
    function = infini.jit(lambda x, s: inp.sum(x * s))
    x = inp.ones(100_000)
    function(x, 1.0)
    wrong: list[float] = []

    def work(scale: float) -> None:
        wrong.extend(r for _ in range(200) if (r := float(function(x, scale))) != 100_000 * scale)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_of_a_fork_computes() -> None:
    function = infini.jit(lambda x: inp.sum(inp.exp(x)))
    x = inp.zeros(1_000_000)
    function(x)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if float(function(x)) == 1_000_000 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
