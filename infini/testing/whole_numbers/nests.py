"""Whole programs: makers of programs inside programs, and the strategy that applies makers in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from hypothesis import strategies as st

from infini import lax
from infini.core import config, ir, trace
from infini.core.ir import ArrayType, Program, Var
from infini.testing.makers import Draw
from infini.testing.whole_numbers import axes, common, elements, places, products
from infini.transforms import batching, staging


def _applied(program: Program, *args: Any) -> list[Any]:
    return list(trace.evaluate(program, [trace.as_value(a) for a in args]))


def _scan(draw: Draw, known: common.Known) -> common.Made | None:
    const, carry, xs = (
        common.pick(draw, known),
        common.pick(draw, known),
        common.pick(draw, known, lambda v: bool(v.type.ndim)),
    )
    assert const is not None
    assert carry is not None
    length = draw(st.integers(0, 4))
    if xs is None:
        body = _inner(draw, [const.type, carry.type], [carry.type, const.type])
    else:
        length = min(xs.type.shape[0], 9)
        row = xs.type.update(shape=xs.type.shape[1:])
        body = _inner(draw, [const.type, carry.type, row], [carry.type, row])
        if length * max(row.size, 1) > common.MAX_ELEMENTS:
            return None
    if xs is None and length * max(const.type.size, 1) > common.MAX_ELEMENTS:
        return None
    reverse, unroll = draw(st.booleans()), draw(st.sampled_from((1, 1, 2)))

    def apply(c: Any, start: Any, *rows: Any) -> list[Any]:
        def step(carried: Any, row: Any) -> tuple[Any, Any]:
            found = _applied(body, c, carried, *([] if row is None else [row]))
            return found[0], found[1]

        given = rows[0][:length] if rows else None
        last, every = lax.scan(step, start, given, length=length, reverse=reverse, unroll=unroll)
        return [last, every]

    return apply, [const, carry, *([] if xs is None else [xs])]


def _while(draw: Draw, known: common.Known) -> common.Made | None:
    const, carry = common.pick(draw, known), common.pick(draw, known)
    assert const is not None
    assert carry is not None
    body = _inner(draw, [const.type, carry.type], [carry.type])
    turns = draw(st.integers(0, 4))

    def apply(c: Any, start: Any) -> list[Any]:
        if turns % 2:
            return [lax.fori_loop(0, turns, lambda i, v: _applied(body, c, v)[0], start)]
        (_, result) = lax.while_loop(
            lambda pair: pair[0] < turns,
            lambda pair: (pair[0] + 1, _applied(body, c, pair[1])[0]),
            (0, start),
        )
        return [result]

    return apply, [const, carry]


def _cond(draw: Draw, known: common.Known) -> common.Made | None:
    x, y = common.pick(draw, known), common.pick(draw, known)
    assert x is not None
    assert y is not None
    branches = [_inner(draw, [x.type, y.type], [x.type, y.type]) for _ in range(draw(st.integers(1, 3)))]
    (which,) = places.scalars(draw, known, 1)
    functions = [lambda a, b, body=body: tuple(_applied(body, a, b)) for body in branches]
    if isinstance(which, Var):
        return lambda w, a, b: list(lax.switch(w, functions, a, b)), [which, x, y]
    return lambda a, b: list(lax.switch(which, functions, a, b)), [x, y]


def _call(draw: Draw, known: common.Known) -> common.Made | None:
    """A jitted function inside, or a batched one."""
    x, y = common.pick(draw, known), common.pick(draw, known, lambda v: bool(v.type.ndim))
    assert x is not None
    if y is None or draw(st.booleans()):
        body = _inner(draw, [x.type], [x.type])
        return lambda a: [staging.jit(lambda b: _applied(body, b)[0])(a)], [x]
    row = y.type.update(shape=y.type.shape[1:])
    if y.type.shape[0] == 0:
        return None
    body = _inner(draw, [x.type, row], [row, x.type])
    if y.type.shape[0] * x.type.size > common.MAX_ELEMENTS:
        return None
    mapped = batching.vmap(lambda a, b: tuple(_applied(body, a, b)), in_axes=(None, 0))
    return lambda a, b: list(mapped(a, b)), [x, y]


_LEAVES: Final = dict(sorted({**elements.MAKERS, **axes.MAKERS, **products.MAKERS, **places.MAKERS}.items()))
_NESTS: Final[dict[str, common.Maker]] = {
    "call": _call,
    "cond": _cond,
    "scan": _scan,
    "while": _while,
}
MAKERS: Final = {**_LEAVES, **_NESTS}


def _grow(draw: Draw, builder: ir.Builder, known: list[Var], names: Sequence[str]) -> None:
    """Append one more application to a program."""
    made = MAKERS[draw(st.sampled_from(names))](draw, known)
    if made is None:
        return
    function, inputs = made
    with config.config(host64="keep"):
        staged = trace.stage(function, [v.type for v in inputs])
    assert not staged.captures
    found = ir.inline(builder, staged.program, inputs)
    known += [v for v in found if v.type.size <= common.MAX_ELEMENTS and v.type.ndim <= 6]


def _inner(draw: Draw, params: Sequence[ArrayType], wanted: Sequence[ArrayType]) -> Program:
    """A random program whose results have the wanted types; parameters of those types exist."""
    builder = ir.Builder()
    variables = [Var(type_) for type_ in params]
    known = list(variables)
    names = [*_LEAVES, *(_NESTS if draw(st.integers(0, 3)) == 0 else ())]
    for _ in range(draw(st.integers(0, 4))):
        _grow(draw, builder, known, names)
    results = [draw(st.sampled_from([v for v in known[::-1] if v.type == type_])) for type_ in wanted]
    return builder.build(variables, results)


@st.composite
def programs(
    draw: Draw,
    *,
    allowed: Sequence[np.dtype] = common.DTYPES,
    max_params: int = 3,
    max_applications: int = 8,
    families: Sequence[str] | None = None,
) -> Program:
    """Whole programs of every family.

    Args:
        draw: given by hypothesis.
        allowed: dtypes of the parameters.
        max_params: largest number of parameters, at least 1.
        max_applications: largest number of applications of functions; each is a few equations.
        families: names of `MAKERS` to choose from; all of them when absent.
    """
    builder = ir.Builder()
    # Few dtypes in one program, so that operations find partners.
    some = draw(st.lists(st.sampled_from(list(allowed)), min_size=1, max_size=2))
    types = st.builds(ArrayType, common.shapes(), st.sampled_from(some))
    params = [Var(draw(types)) for _ in range(draw(st.integers(1, max_params)))]
    if draw(st.booleans()):
        params.append(Var(params[0].type))
    known = list(params)
    names = sorted(MAKERS if families is None else families)
    for _ in range(draw(st.integers(1, max_applications))):
        _grow(draw, builder, known, names)
    results = draw(st.lists(st.sampled_from(known), min_size=1, max_size=4))
    return builder.build(params, results)
