"""One small program per family, written with `lax` alone, for the golden files in `tests/golden/programs`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import infini as inf
from infini import lax
from infini.core import ir, text
from infini.core.sharding import P, make_mesh
from tests.tile import kernels

Traced = Callable[..., Any]
Program = tuple[Traced, tuple[tuple[str, tuple[int, ...]], ...]]


def elementwise(x, y):
    z = lax.add(lax.tanh(x), lax.mul(y, 0.5))
    return lax.select(lax.gt(z, y), z, lax.exp(y)), lax.convert_element_type(z, "bfloat16")


def reduction(x):
    shifted = lax.sub(x, lax.broadcast_in_dim(lax.reduce_max(x, (1,)), x.shape, (0,)))
    return lax.reduce_sum(lax.exp(shifted), (1,)), lax.argmax(x, 1, "int32")


def contraction(x, y):
    product = lax.dot_general(x, y, (((2,), (1,)), ((0,), (0,))))
    return lax.mul(product, product)


def view(x):
    moved = lax.reshape(lax.transpose(x, (1, 0)), (2, 6))
    padded = lax.pad(moved, 1.5, ((1, 0, 0), (0, 2, 1)))
    return lax.concatenate([lax.rev(padded, (0,)), padded], 0), lax.slice(x, (0, 1), (3, 4), (2, 1))


def indexing(x, start, update):
    row = lax.dynamic_slice(x, (start, 0), (1, 4))
    changed = lax.dynamic_update_slice(x, update, (start, 1))
    return row, changed


def sorting(keys, values):
    return lax.sort((keys, values), num_keys=1)


def random_bits(key, counts):
    return lax.threefry2x32(key, lax.add(key, key), counts, lax.add(counts, counts))


def scan(carry, xs):
    def step(c, x):
        c = lax.add(lax.mul(c, 0.5), x)
        return c, lax.sin(c)

    return lax.scan(step, carry, xs)


def cond(which, x):
    def root(v):
        return lax.sqrt(lax.abs(v))

    return lax.switch(which, [lambda v: lax.neg(v), lambda v: lax.mul(v, v), root], x)


def while_loop(count, x):
    def step(state):
        i, v = state
        return lax.sub(i, 1), lax.mul(v, 0.5)

    return lax.while_loop(lambda state: lax.gt(state[0], 0), step, (count, x))


def kernel(x, y):
    return kernels.add_gelu(x, y)


def custom_vjp(x):
    @inf.custom_vjp
    def clipped(v):
        return lax.sin(v)

    clipped.defvjp(lambda v: (clipped(v), v), lambda v, ct: (lax.mul(ct, lax.cos(v)),))
    return lax.mul(clipped(x), 2.0)


def checkpoint(x):
    return inf.grad(lambda v: lax.reduce_sum(inf.checkpoint(lambda u: lax.sin(lax.sin(u)))(v), (0,)))(x)


def nested_calls(x):
    inner = inf.jit(lambda v: lax.add(lax.exp(v), 1.0))
    return lax.mul(inner(x), inner(lax.neg(x)))


def collectives(x):
    mesh = make_mesh((2,), ("data",))

    def local(part):
        total = lax.psum(part, "data")
        return lax.add(lax.all_gather(part, "data", tiled=True)[:2], total)

    return inf.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P("data"))(x)


def effects(x):
    inf.debug.print("x = {}", x)
    return lax.neg(x)


PROGRAMS: dict[str, Program] = {
    "elementwise": (elementwise, (("float32", (3, 4)), ("float32", (3, 4)))),
    "reduction": (reduction, (("float32", (3, 5)),)),
    "contraction": (contraction, (("float32", (2, 3, 4)), ("float32", (2, 4, 5)))),
    "view": (view, (("float32", (3, 4)),)),
    "indexing": (indexing, (("float32", (5, 4)), ("int32", ()), ("float32", (2, 2)))),
    "sorting": (sorting, (("int32", (7,)), ("float32", (7,)))),
    "random_bits": (random_bits, (("uint32", (4,)), ("uint32", (4,)))),
    "scan": (scan, (("float32", ()), ("float32", (6,)))),
    "cond": (cond, (("int32", ()), ("float32", (3,)))),
    "while_loop": (while_loop, (("int32", ()), ("float32", (3,)))),
    "kernel": (kernel, (("float32", (100,)), ("float32", (100,)))),
    "custom_vjp": (custom_vjp, (("float32", (3,)),)),
    "checkpoint": (checkpoint, (("float32", (3,)),)),
    "nested_calls": (nested_calls, (("float32", (3,)),)),
    "collectives": (collectives, (("float32", (4, 2)),)),
    "effects": (effects, (("float32", (3,)),)),
}


def traced(name: str) -> ir.Program:
    """The program of a row of the table."""
    function, types = PROGRAMS[name]
    with inf.config(cpu_devices=2, device="cpu"):
        return inf.make_jaxpr(function)(*(inf.ShapeDtypeStruct(shape, dtype) for dtype, shape in types))


def golden_text(name: str) -> str:
    """Text of a program with host functions numbered from 0, since their ids depend on the process."""
    numbers: dict[str, int] = {}

    def number(match):
        return str(numbers.setdefault(match[0], len(numbers)))

    return re.sub(r"(?<=, id=)\d+", number, text.print_program(traced(name)))
