"""Table of small programs of callbacks, each run on infini and on JAX."""

from __future__ import annotations

import jax.experimental  # noqa: F401  # JAX does not load it by itself
import numpy as np
import pytest

import infini.experimental  # noqa: F401  # nor does infini
from tests.parity import transforms_table as table

X = np.array([0.3, -1.2, 2.0], np.float32)


def shape_of(j, *shape, dtype=np.float32):
    return j.ShapeDtypeStruct(shape, dtype)


def plus_one(x):
    return np.asarray(x) + 1


def host_sin(j, n, l, **options):
    return lambda x: j.pure_callback(np.sin, j.ShapeDtypeStruct(x.shape, x.dtype), x, **options)


def batch_shapes(j, n, l, method):
    seen = []

    def host(x, y):
        seen.append((np.shape(x), np.shape(y)))
        return np.asarray(x) * np.asarray(y)

    def f(x, y):
        shape = x.shape[:1] if False else ()
        return j.pure_callback(host, j.ShapeDtypeStruct(shape, np.float32), x, y, vmap_method=method)

    return j.vmap(f, (0, None))(X, np.float32(2.0)), seen


def ordered_calls(j, n, l):
    seen = []

    def record(x):
        seen.append(float(x))
        return np.float32(x + 1)

    @j.jit
    def f(x):
        y = j.experimental.io_callback(record, j.ShapeDtypeStruct((), np.float32), x, ordered=True)
        z = j.experimental.io_callback(record, j.ShapeDtypeStruct((), np.float32), y, ordered=True)
        j.experimental.io_callback(lambda v: seen.append(float(v)), None, z, ordered=True)
        return z

    result = j.block_until_ready(f(np.float32(1.0)))
    j.effects_barrier()
    return result, seen


def callbacks_seen(j, program, *args):
    """What debug.callback records while `program` runs with it."""
    seen = []
    result = program(
        lambda *values: j.debug.callback(lambda *v: seen.append([float(np.sum(x)) for x in v]), *values)
    )(*args)
    j.block_until_ready(result)
    j.effects_barrier()
    return result, sorted(seen)


def uncalled(j, n):
    calls = []

    def host(x):
        calls.append(1)
        return x

    j.block_until_ready(j.jit(lambda x: (j.pure_callback(host, shape_of(j, 3), x), x * 2)[1])(X))
    return len(calls)


def callback_with_rule(j, n):
    @j.custom_jvp
    def f(x):
        return j.pure_callback(np.sin, j.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims")

    f.defjvp(lambda p, t: (f(*p), n.cos(p[0]) * t[0]))
    return f


def io_in_scan(j, n, l):
    seen = []

    def body(c, x):
        y = j.experimental.io_callback(
            lambda v: (seen.append(float(v)), np.float32(v))[1], shape_of(j), x, ordered=True
        )
        return c + y, y

    result = j.block_until_ready(j.jit(lambda x: l.scan(body, np.float32(0), x))(X))
    j.effects_barrier()
    return result, seen


def mapped_io(j, n):
    seen = []

    def host(x):
        seen.append(float(x))
        return np.float32(x * 2)

    result = j.vmap(lambda x: j.experimental.io_callback(host, shape_of(j), x))(X)
    return j.block_until_ready(result), sorted(seen)


CASES: dict[str, table.Case] = {
    "pure_callback": lambda j, n, l: host_sin(j, n, l)(n.asarray(X)),
    "pure_callback under jit": lambda j, n, l: j.jit(host_sin(j, n, l))(X),
    "pure_callback of a tree": lambda j, n, l: j.jit(
        lambda d: j.pure_callback(
            lambda d, *, k: {"s": np.asarray(d["a"]) + np.asarray(k), "n": None},
            {"s": shape_of(j, 3), "n": None},
            d,
            k=d["a"],
        )
    )({"a": X}),
    "pure_callback in scan": lambda j, n, l: l.scan(
        lambda c, x: (c + j.pure_callback(np.cos, shape_of(j), x), None), np.float32(0), X
    ),
    "pure_callback in while": lambda j, n, l: l.while_loop(
        lambda c: c < 3, lambda c: j.pure_callback(plus_one, shape_of(j, dtype=np.int32), c), np.int32(0)
    ),
    "pure_callback in cond": lambda j, n, l: j.jit(
        lambda p: l.cond(p, lambda x: j.pure_callback(np.sin, shape_of(j, 3), x), lambda x: x, X)
    )(True),
    "pure_callback with integers": lambda j, n, l: j.jit(
        lambda x: j.pure_callback(
            lambda x: (np.asarray(x) > 0, np.int32(7)),
            (shape_of(j, 3, dtype=bool), shape_of(j, dtype=np.int32)),
            x,
        )
    )(X),
    "pure_callback whose result nothing uses": lambda j, n, l: uncalled(j, n),
    "vmap of pure_callback sequentially": lambda j, n, l: batch_shapes(j, n, l, "sequential"),
    "vmap of pure_callback with expand_dims": lambda j, n, l: batch_shapes(j, n, l, "expand_dims"),
    "vmap of pure_callback with broadcast_all": lambda j, n, l: batch_shapes(j, n, l, "broadcast_all"),
    "pure_callback in custom_jvp": lambda j, n, l: j.jit(j.vmap(j.grad(callback_with_rule(j, n))))(X),
    "io_callback in order": ordered_calls,
    "io_callback in scan": lambda j, n, l: io_in_scan(j, n, l),
    "vmap of io_callback": lambda j, n, l: mapped_io(j, n),
    "debug.callback": lambda j, n, l: callbacks_seen(j, lambda call: lambda x: (call(x), x * 2)[1], X),
    "debug.callback under jit": lambda j, n, l: callbacks_seen(
        j, lambda call: j.jit(lambda x: (call(x * 3), x)[1]), X
    ),
    "debug.callback under vmap": lambda j, n, l: callbacks_seen(
        j, lambda call: j.vmap(lambda x: (call(x, 1.0), x)[1]), X
    ),
    "debug.callback under grad": lambda j, n, l: callbacks_seen(
        j, lambda call: j.grad(lambda x: (call(x), n.sin(x))[1]), 2.0
    ),
    "debug.callback under grad of checkpoint": lambda j, n, l: callbacks_seen(
        j, lambda call: j.grad(j.checkpoint(lambda x: (call(x), n.sin(x))[1])), 2.0
    ),
    "vmap of ordered debug.callback": lambda j, n, l: callbacks_seen(
        j, lambda call: j.vmap(lambda x: (j.debug.callback(lambda v: None, x, ordered=True), x)[1]), X
    ),
    "debug.callback in scan": lambda j, n, l: callbacks_seen(
        j, lambda call: lambda x: l.scan(lambda c, y: ((call(y), c + y)[1], None), 0.0, x), X
    ),
    "debug.callback in cond": lambda j, n, l: callbacks_seen(
        j, lambda call: lambda x: l.cond(x[0] > 0, lambda: (call(x), x)[1], lambda: x), X
    ),
}


REFUSALS: dict[str, table.Case] = {
    "pure_callback with an unknown method": lambda j, n, l: j.vmap(host_sin(j, n, l, vmap_method="other"))(X),
    "vmap of pure_callback without a method": lambda j, n, l: j.vmap(host_sin(j, n, l))(X),
    "jvp of pure_callback": lambda j, n, l: j.jvp(host_sin(j, n, l), (n.asarray(X),), (n.asarray(X),)),
    "grad of pure_callback": lambda j, n, l: j.grad(lambda x: host_sin(j, n, l)(x).sum())(n.asarray(X)),
    "jvp of io_callback": lambda j, n, l: j.jvp(
        lambda x: j.experimental.io_callback(np.sin, shape_of(j, 3), x), (X,), (X,)
    ),
    "vmap of ordered io_callback": lambda j, n, l: j.vmap(
        lambda x: j.experimental.io_callback(np.sin, shape_of(j), x, ordered=True)
    )(X),
    "debug.print with too few values": lambda j, n, l: j.debug.print("{} {}", 1),
    "debug.print of an unused value": lambda j, n, l: j.debug.print("{}", 1, 2),
    "debug.print of an f-string value": lambda j, n, l: j.debug.print(3),
    "debug.callback of no function": lambda j, n, l: j.debug.callback(3, 1),
}

TABLE = table.Table("callbacks", CASES, REFUSALS)


@pytest.mark.parametrize("name", CASES)
def test_equals_jax(name: str) -> None:
    TABLE.check(name)


@pytest.mark.parametrize("name", REFUSALS)
def test_refuses_what_jax_refuses(name: str) -> None:
    TABLE.check_refusal(name)


@pytest.mark.slow
def test_the_record_is_what_jax_says(request: pytest.FixtureRequest) -> None:
    TABLE.check_record(is_update=request.config.getoption("update_golden"))
