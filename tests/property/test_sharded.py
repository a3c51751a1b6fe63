"""Random programs over random meshes, with random placements of what they are given and of what they compute:
the results are those of one device, and what is sent is what the partitioner predicts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
from hypothesis import strategies as st

import infini as inf
from infini import lax
from infini.core import dtypes, trace
from infini.core.ir import ArrayType, Program, Var
from infini.parallel import explain_sharding
from infini.parallel.explain import Explanation
from infini.sharding import NamedSharding, P, make_mesh
from infini.testing import count_collectives, predicted, programs
from infini.testing.collectives import Count, Counts
from tests.property.running import close

MESHES = ((2,), (4,), (8,), (2, 2), (4, 2), (2, 2, 2))
# Sums over devices are rounded in another order, so steps of floats are left out as between backends.
SIZES = (8, 4, 2, 3, 7)
# Few dtypes, so that values meet. None of 16 bits: what sums of these round differently, a sine makes another
# value of.
split = programs.programs(
    families=programs.EXACT,
    allowed=(dtypes.float32, dtypes.int32, dtypes.uint8, dtypes.bool_),
    sizes=SIZES,
    min_rank=1,
    min_equations=3,
    max_equations=10,
    is_all_used=True,
)
smooth = programs.programs(
    families=programs.SMOOTH,
    allowed=(dtypes.float32,),
    sizes=SIZES,
    min_rank=1,
    min_equations=3,
    max_equations=8,
    is_all_used=True,
)
few = hypothesis.settings(max_examples=max(40, hypothesis.settings.default.max_examples // 5))


@st.composite
def specs(draw: Callable[[st.SearchStrategy[Any]], Any], type_: ArrayType, mesh: tuple[int, ...]) -> P:
    """A placement of an array: every axis of the mesh on no dimension, or on one, which it divides or not."""
    is_even = draw(st.booleans())
    entries: list[tuple[str, ...]] = [()] * type_.ndim
    parts = [1] * type_.ndim
    for axis in draw(st.permutations(range(len(mesh)))):
        fits = [d for d, n in enumerate(type_.shape) if not is_even or n % (parts[d] * mesh[axis]) == 0]
        if fits and draw(st.integers(0, 3)) < 3:
            at = draw(st.sampled_from(fits))
            entries[at] += ("abc"[axis],)
            parts[at] *= mesh[axis]
    return P(*(e or None for e in entries))


def function_of(program: Program, places: dict[Var, NamedSharding]) -> Callable[..., Any]:
    """The program as a function, with constraints for some of its variables."""

    def run(*args: Any) -> tuple[Any, ...]:
        env = dict(zip(program.params, map(trace.as_value, args), strict=True))
        env.update((var, trace.as_value(constant.array)) for var, constant in program.consts)
        for equation in program.equations:
            found = trace.bind_attrs(equation.op, [env[v] for v in equation.inputs], equation.attrs)
            for var, value in zip(equation.outputs, found, strict=True):
                env[var] = lax.with_sharding_constraint(value, places[var]) if var in places else value
        return tuple(env[v] for v in program.results)

    return run


def check_counts(expected: Explanation, counts: Counts) -> None:
    """What was sent is what was predicted: how often, over which axes, how many bytes. Where a loop or a
    branch depends on values it is at least what is certain, and nothing that was not named.
    """
    certain = tuple(c for c in expected.collectives if c.times is not None)
    known = predicted(dataclasses.replace(expected.found, collectives=certain))
    if len(certain) == len(expected.collectives):
        assert counts == known, str(expected)
        return
    assert counts.keys() <= {(c.name, c.axes) for c in expected.collectives}, str(expected)
    for key, count in known.items():
        sent = counts.get(key, Count(0, 0))
        assert sent.calls >= count.calls and sent.nbytes >= count.nbytes, str(expected)


def check(
    draw: st.DataObject,
    program: Program,
    of: Callable[[Callable[..., Any]], Callable[..., Any]],
    *,
    what: str,
) -> None:
    """What `of` makes of a program finds with values placed at random what it finds on one device, and sends
    what is predicted.
    """
    shape = draw.draw(st.sampled_from(MESHES), label="mesh")
    with inf.config(device="reference", cpu_devices=8, check=1):
        mesh = make_mesh(shape, tuple("abc"[: len(shape)]))

        def place(type_: ArrayType) -> NamedSharding:
            return NamedSharding(mesh, draw.draw(specs(type_, shape), label="spec"))

        arrays = programs.arguments(program, draw.draw(st.integers(0, 9), label="seed"))
        placed = [inf.device_put(x, place(t)) for x, t in zip(arrays, program.in_types, strict=True)]
        made = [v for equation in program.equations for v in equation.outputs]
        places = {v: place(v.type) for v in made if draw.draw(st.integers(0, 3), label="constrained") == 1}
        alone, over_mesh = inf.jit(of(function_of(program, {}))), inf.jit(of(function_of(program, places)))
        expected = explain_sharding(over_mesh, *placed, mesh=mesh, memory=False)
        with count_collectives() as counts:
            found = over_mesh(*placed)
        check_counts(expected, counts)
        for x, y in zip(map(np.asarray, found), map(np.asarray, alone(*arrays)), strict=True):
            if y.dtype in dtypes.FLOATS:
                # The error of a sum is that of its terms, which may cancel.
                sizes = np.abs(y.astype(np.float64))
                scale = float(np.max(sizes, initial=1.0, where=np.isfinite(sizes)))
                x, y = ((z.astype(np.float64) / scale).astype(z.dtype) for z in (x, y))
            close(x, y, what)


@few
@hypothesis.given(st.data(), split)
def test_sharded_programs_equal_unsharded_ones(data: st.DataObject, program: Program) -> None:
    check(data, program, lambda f: f, what="sharded")


@few
@hypothesis.given(st.data(), smooth)
def test_gradients_of_sharded_programs_equal_unsharded_ones(data: st.DataObject, program: Program) -> None:
    def gradient(f: Callable[..., Any]) -> Callable[..., Any]:
        def total(*args: Any) -> Any:
            found = 0.0
            for y in f(*args):
                weights = np.cos(np.arange(y.size, dtype=np.float32)).reshape(y.shape)
                found = found + (y.astype("float32") * weights).sum()
            return found

        return inf.grad(total, argnums=tuple(range(len(program.params))))

    check(data, program, gradient, what="gradient")
