"""Programs of `shard_map` for eight devices; what JAX answers is recorded by `mesh_programs`."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.parity.mesh_programs import Program

X = np.arange(16, dtype=np.float32).reshape(8, 2) / 8
W = np.array([0.5, -1.5], np.float32)
GROUPS = [[0, 1, 2, 3], [4, 5, 6, 7]]
PAIRS = [[0, 5], [1, 4], [2, 7], [3, 6]]


def row(lib: Any) -> Any:
    return lib.make_mesh((8,), ("a",), axis_types=(lib.sharding.AxisType.Auto,))


def square(lib: Any) -> Any:
    return lib.make_mesh((2, 4), ("x", "y"), axis_types=(lib.sharding.AxisType.Auto,) * 2)


def mapped(lib: Any, f: Any, ins: Any, outs: Any, **options: Any) -> Any:
    """`f` over the eight rows; specs are written as axis names or None."""
    return lib.shard_map(f, mesh=row(lib), in_specs=spec(lib, ins), out_specs=spec(lib, outs), **options)


def spec(lib: Any, x: Any) -> Any:
    if isinstance(x, tuple):
        return tuple(spec(lib, part) for part in x)
    return lib.P() if x is None else lib.P(x)


def rows(f: Callable[[Any, Any], Any], out: Any = "a", **options: Any) -> Program:
    """A program that applies `f(lib, part)` to every row."""
    return lambda lib: mapped(lib, lambda v: f(lib, v), "a", out, **options)(X)


def weighted(f: Callable[[Any, Any, Any], Any], out: Any = None, **options: Any) -> Program:
    """As `rows`, with weights that are whole: `f(lib, w, part)`."""
    return lambda lib: mapped(lib, lambda w, v: f(lib, w, v), (None, "a"), out, **options)(W, X)


def slopes(f: Callable[[Any, Any, Any], Any], **options: Any) -> Program:
    """Gradients of a scalar of weights and rows by both, from outside."""

    def program(lib: Any) -> Any:
        g = mapped(lib, lambda w, v: f(lib, w, v), (None, "a"), None, **options)
        return lib.grad(g, argnums=(0, 1))(W, X)

    return program


def loss(lib: Any, w: Any, v: Any) -> Any:
    return lib.lax.psum((lib.numpy.tanh(v @ w) ** 2).sum(), "a")


def mean_loss(lib: Any, w: Any, v: Any) -> Any:
    return lib.lax.pmean((lib.numpy.tanh(v @ w) ** 2).sum(), "a")


def local(lib: Any, w: Any, v: Any) -> Any:
    return (lib.numpy.tanh(v @ w) ** 2).sum()


def gathered(lib: Any, w: Any, v: Any) -> Any:
    whole = lib.lax.all_gather(v, "a", tiled=True)
    return lib.lax.psum((lib.numpy.sin(whole @ w) * v.sum()).sum(), "a")


def scattered(lib: Any, w: Any, v: Any) -> Any:
    part = lib.lax.psum_scatter(lib.numpy.tile(v @ w, 8) * lib.numpy.arange(8.0), "a", tiled=True)
    return lib.lax.psum((part**2).sum(), "a")


def permuted(lib: Any, w: Any, v: Any) -> Any:
    moved = lib.lax.ppermute(v @ w, "a", [(i, (i + 1) % 8) for i in range(8)])
    return lib.lax.psum((moved * (v @ w)).sum(), "a")


def scanned(lib: Any, w: Any, v: Any) -> Any:
    start = lib.lax.pcast(lib.numpy.zeros(()), "a", to="varying")

    def step(c: Any, r: Any) -> Any:
        return c + (r @ w) ** 2, None

    return lib.lax.psum(lib.lax.scan(step, start, v)[0], "a")


def trained(lib: Any, w: Any, v: Any) -> Any:
    """Steps of descent inside: the gradient of a mean is the same on all devices."""

    def step(w: Any, _: Any) -> Any:
        value, slope = lib.value_and_grad(lambda w: mean_loss(lib, w, v))(w)
        return w - 0.5 * slope, value

    return lib.lax.scan(step, w, None, length=3)


def counted(lib: Any, w: Any, v: Any) -> Any:
    return lib.lax.psum(lib.lax.fori_loop(0, 3, lambda i, c: c * w.sum(), v.sum()), "a")


def branched(lib: Any, w: Any, v: Any) -> Any:
    """Marked before the branches: JAX would mark inside, and some devices would wait for a sum for ever."""
    w = lib.lax.pcast(w, "a", to="varying")
    found = lib.lax.cond(lib.lax.axis_index("a") > 3, lambda u: u @ w, lambda u: (u @ w) ** 2, v)
    return lib.lax.psum(found.sum(), "a")


def rule(lib: Any, *, adds: bool) -> Any:
    @lib.custom_vjp
    def f(w: Any, v: Any) -> Any:
        return (v @ w).sum()

    def backward(saved: Any, ct: Any) -> Any:
        w, v = saved
        by_w = 3 * ct * v.sum(0)
        return (lib.lax.psum(by_w, "a") if adds else by_w), ct * w * lib.numpy.ones_like(v)

    f.defvjp(lambda w, v: (f(w, v), (w, v)), backward)
    return f


def with_rule(*, adds: bool) -> Callable[[Any, Any, Any], Any]:
    return lambda lib, w, v: lib.lax.psum(rule(lib, adds=adds)(w, v), "a")


def forward_rule(lib: Any, w: Any, v: Any) -> Any:
    @lib.custom_jvp
    def f(w: Any, v: Any) -> Any:
        return (v @ w).sum()

    @f.defjvp
    def f_jvp(primals: Any, tangents: Any) -> Any:
        (w, v), (dw, dv) = primals, tangents
        return f(w, v), 2 * (v @ dw).sum() + (dv @ w).sum()

    return lib.lax.psum(f(w, v), "a")


def jitted(lib: Any, w: Any, v: Any) -> Any:
    return lib.jit(lambda w, v: mean_loss(lib, w, v))(w, v)


def remembered(lib: Any, w: Any, v: Any) -> Any:
    return lib.lax.psum(lib.checkpoint(lambda w, v: local(lib, w, v))(w, v), "a")


def batched(lib: Any, w: Any, v: Any) -> Any:
    return lib.lax.psum(lib.vmap(lambda r: (r @ w) ** 2)(v).sum(), "a")


def both_ways(lib: Any, w: Any, v: Any) -> Any:
    """A gradient inside, of which another one is taken."""
    inner = lib.grad(lambda w: mean_loss(lib, w, v))(w)
    return (inner**2).sum()


LOSSES: dict[str, Callable[[Any, Any, Any], Any]] = {
    f.__name__: f
    for f in (
        loss, mean_loss, gathered, scattered, permuted, scanned, counted, branched,
        forward_rule, jitted, remembered, batched, both_ways,
    )
}  # fmt: skip


def partly(
    f: Callable[[Any, Any], Any],
    ins: tuple[Any, ...],
    outs: tuple[Any, ...],
    wrap: Any = None,
    **options: Any,
) -> Program:
    """A program that is manual along `x` of two axes."""

    def program(lib: Any) -> Any:
        g = lib.shard_map(
            lambda v: f(lib, v), mesh=square(lib), in_specs=lib.P(*ins), out_specs=lib.P(*outs),
            axis_names={"x"}, **options,
        )  # fmt: skip
        g = g if wrap is None else wrap(lib, g)
        return lib.jit(g)(lib.device_put(X, lib.NamedSharding(square(lib), lib.P("y"))))

    return program


def sum_of_squares(lib: Any, g: Any) -> Any:
    return lib.grad(lambda v: (g(v) ** 2).sum())


PROGRAMS: dict[str, Program] = {
    # collectives
    "psum": rows(lambda lib, v: lib.lax.psum(v, "a"), None),
    "psum of an equal value": weighted(lambda lib, w, v: lib.lax.psum(w, "a")),
    "psum twice": rows(lambda lib, v: lib.lax.psum(lib.lax.psum(v, "a"), "a"), None),
    "psum of ones": rows(lambda lib, v: lib.lax.psum(lib.numpy.ones(()), "a"), None),
    "psum of a number": rows(lambda lib, v: v * lib.lax.psum(2, "a")),
    "pmax": rows(lambda lib, v: lib.lax.pmax(v, "a"), None),
    "pmin": rows(lambda lib, v: lib.lax.pmin(v, "a"), None),
    "pmean": rows(lambda lib, v: lib.lax.pmean(v, "a"), None),
    "axis_size": rows(lambda lib, v: v * lib.lax.axis_size("a")),
    "axis_index": rows(lambda lib, v: v * 0 + lib.lax.axis_index("a")),
    "all_gather": rows(lambda lib, v: lib.lax.all_gather(v, "a", tiled=True)[:1] * v),
    "pcast": rows(lambda lib, v: v + lib.lax.pcast(lib.numpy.ones((1, 2)), "a", to="varying")),
    "pcast of a pair of axes": lambda lib: lib.shard_map(
        lambda v: v + lib.lax.pcast(lib.numpy.ones((1, 2)), ("x", "y"), to="varying"),
        mesh=square(lib), in_specs=lib.P(("x", "y")), out_specs=lib.P(("x", "y")),
    )(X),
    # groups of members
    **{
        f"psum over {name}": rows(
            lambda lib, v, g=g: lib.lax.psum(v, "a", axis_index_groups=g), check_vma=False
        )
        for name, g in (("groups", GROUPS), ("pairs", PAIRS))
    },
    "pmean over pairs": rows(lambda lib, v: lib.lax.pmean(v, "a", axis_index_groups=PAIRS), check_vma=False),
    "pmax over pairs": rows(lambda lib, v: lib.lax.pmax(v, "a", axis_index_groups=PAIRS), check_vma=False),
    "pmin over groups": rows(lambda lib, v: lib.lax.pmin(v, "a", axis_index_groups=GROUPS), check_vma=False),
    "all_gather over pairs": rows(lambda lib, v: lib.lax.all_gather(v, "a", axis_index_groups=PAIRS)),
    "tiled all_gather over groups": rows(
        lambda lib, v: lib.lax.all_gather(v, "a", axis=1, tiled=True, axis_index_groups=GROUPS)
    ),
    "psum_scatter over pairs": rows(
        lambda lib, v: lib.lax.psum_scatter(v[0], "a", axis_index_groups=PAIRS)[None]
    ),
    "tiled psum_scatter over groups": rows(
        lambda lib, v: lib.lax.psum_scatter(
            lib.numpy.tile(v, 2), "a", scatter_dimension=1, tiled=True, axis_index_groups=GROUPS
        )
    ),
    "all_to_all over pairs": rows(lambda lib, v: lib.lax.all_to_all(v, "a", 1, 0, axis_index_groups=PAIRS)),
    "tiled all_to_all over groups": rows(
        lambda lib, v: lib.lax.all_to_all(
            lib.numpy.tile(v, 4), "a", 1, 0, tiled=True, axis_index_groups=GROUPS
        )
    ),
    # what varies
    "what an argument varies along": rows(lambda lib, v: seen(lib, v) or v),
    "an equal result": weighted(lambda lib, w, v: w * 2),
    "an equal result along its axis": weighted(lambda lib, w, v: w * 2, "a"),
    "pmax is equal": rows(lambda lib, v: lib.lax.pmax(v, "a"), None),
    "a branch by an equal predicate": weighted(
        lambda lib, w, v: lib.lax.cond(w.sum() > 0, lambda: w, lambda: -w)
    ),
    "descent inside": weighted(trained, (None, None)),
    "a result that differs": rows(lambda lib, v: v, None),
    "a gathered result": rows(lambda lib, v: lib.lax.all_gather(v, "a", tiled=True), None),
    "a gathered result, not checked": rows(
        lambda lib, v: lib.lax.all_gather(v, "a", tiled=True), None, check_vma=False
    ),
    "pcast of what varies": rows(lambda lib, v: lib.lax.pcast(v, "a", to="varying")),
    "pcast to a word": rows(lambda lib, v: lib.lax.pcast(v, "a", to="anything")),
    # derivatives
    **{f"slopes of {n}": slopes(f) for n, f in LOSSES.items()},
    **{
        f"slopes of {n}, not checked": slopes(f, check_vma=False)
        for n, f in LOSSES.items() if n != "both_ways"
    },
    "slopes of a rule that adds": slopes(with_rule(adds=True)),
    "slopes of a rule that does not": slopes(with_rule(adds=False)),
    **{
        f"inner slope of {f.__name__}, {check}": weighted(
            lambda lib, w, v, f=f: lib.grad(lambda w: f(lib, w, v))(w),
            None if check else "a", check_vma=check,
        )
        for f in (loss, mean_loss, local) for check in (True, False)
    },
    "inner slope by rows": weighted(lambda lib, w, v: lib.grad(lambda v: loss(lib, w, v))(v), "a"),
    "inner slope of a rule that adds": weighted(
        lambda lib, w, v: lib.grad(lambda w: rule(lib, adds=True)(w, v))(w)
    ),
    "inner slope of a rule that does not": weighted(
        lambda lib, w, v: lib.grad(lambda w: rule(lib, adds=False)(w, v))(w)
    ),
    "slopes of copies": lambda lib: lib.grad(
        lambda w: (mapped(lib, lambda w: w * 2, None, "a")(w) * np.arange(16.0)).sum()
    )(W),
    "slopes of copies, not checked": lambda lib: lib.grad(
        lambda w: (mapped(lib, lambda w: w * 2, None, "a", check_vma=False)(w) * np.arange(16.0)).sum()
    )(W),
    "tangents": lambda lib: lib.jvp(
        lambda w: mapped(lib, lambda w, v: loss(lib, w, v), (None, "a"), None)(w, X), (W,), (W,)
    ),
    "a second derivative": lambda lib: lib.hessian(
        lambda w: mapped(lib, lambda w, v: loss(lib, w, v), (None, "a"), None)(w, X)
    )(W),
    "vmap around": lambda lib: lib.vmap(
        mapped(lib, lambda w, v: loss(lib, w, v), (None, "a"), None), in_axes=(0, None)
    )(np.stack([W, 2 * W]), X),
    # arguments
    "an argument that is no array": lambda lib: lib.shard_map(
        lambda v, op: op(v, 2), mesh=row(lib), in_specs=(lib.P("a"), None), out_specs=lib.P("a")
    )(X, operator.mul),
    "a decorator": lambda lib: lib.shard_map(mesh=row(lib), in_specs=lib.P("a"), out_specs=lib.P("a"))(
        lambda v: v + 1
    )(X),
    "the mesh that is set": lambda lib: under(
        lib, row(lib), lambda: lib.shard_map(lambda v: v + 1, in_specs=lib.P("a"), out_specs=lib.P("a"))(X)
    ),
    "inferred": lambda lib: lib.shard_map(lambda v: v * v.shape[0], mesh=explicit(lib), out_specs=lib.P("x"))(
        lib.device_put(X, lib.NamedSharding(explicit(lib), lib.P("x")))
    ),
    "smap": lambda lib: under(
        lib, square(lib),
        lambda: lib.jit(
            lib.smap(lambda v: lib.lax.psum(v, "y"), in_axes=0, out_axes=None, axis_name="y")
        )(X),
    ),
    # some axes
    "one of two axes": partly(lambda lib, v: lib.lax.psum(v, "x"), ("x",), ()),
    "one of two axes, elementwise": partly(lambda lib, v: lib.numpy.sin(v), ("x",), ("x",)),
    "one of two axes, sums": partly(lambda lib, v: v.sum(0, keepdims=True), ("x",), ("x",)),
    "one of two axes, products": partly(lambda lib, v: v @ v.T, ("x",), ("x",)),
    "one of two axes, gradient": partly(lambda lib, v: lib.lax.psum(v**2, "x"), ("x",), (), sum_of_squares),
    "one of two axes, loops": partly(
        lambda lib, v: lib.lax.scan(lambda c, r: (c + r, c * r), v[0], v)[1], ("x",), ("x",)
    ),
    # mistakes
    "no mesh": lambda lib: lib.shard_map(lambda v: v, in_specs=lib.P("a"), out_specs=lib.P("a"))(X),
    "unknown axis of a spec": lambda lib: mapped(lib, lambda v: v, "z", "a")(X),
    "unknown axis by name": lambda lib: mapped(lib, lambda v: v, "a", "a", axis_names={"z"})(X),
    "a rule that adds, not checked": slopes(with_rule(adds=True), check_vma=False),
    "a rule that does not, not checked": slopes(with_rule(adds=False), check_vma=False),
    "uneven rows": lambda lib: mapped(lib, lambda v: v, "a", "a")(X[:6]),
    "a spec that is too long": lambda lib: lib.shard_map(
        lambda v: v, mesh=row(lib), in_specs=lib.P("a", None, None), out_specs=lib.P("a")
    )(X),
    "a result with too few dimensions": rows(lambda lib, v: v.sum()),
    "too many specs": lambda lib: mapped(lib, lambda v: v, ("a", None), "a")(X),
    "other results": rows(lambda lib, v: v, ("a", None)),
    "axis_size outside": lambda lib: lib.lax.axis_size("a"),
    "an axis that is not manual": partly(lambda lib, v: v, ("x", "y"), ("x",)),
    "a sum along an axis that is not manual": partly(lambda lib, v: lib.lax.psum(v, "y"), ("x",), ()),
    "no function": lambda lib: mapped(lib, 3, "a", "a")(X),
}  # fmt: skip


def seen(lib: Any, v: Any) -> None:
    assert lib.typeof(v).mat.varying == {"a"} and lib.typeof(lib.lax.psum(v, "a")).mat.varying == set()


def explicit(lib: Any) -> Any:
    return lib.make_mesh((8,), ("x",), axis_types=(lib.sharding.AxisType.Explicit,))


def under(lib: Any, mesh: Any, program: Any) -> Any:
    with lib.set_mesh(mesh):
        return program()
