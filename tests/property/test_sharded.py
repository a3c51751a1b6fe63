"""Random programs over random meshes with random placements give the results of one device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
from hypothesis import strategies as st

import infini as inf
from infini.core import dtypes, trace
from infini.core.ir import ArrayType, Program
from infini.sharding import NamedSharding, P, make_mesh
from infini.testing import programs
from tests.property.running import close

MESHES = ((2,), (4,), (8,), (2, 2), (4, 2), (2, 2, 2))
# Sums over devices are rounded in another order, so steps of floats are left out as between backends.
SIZES = (8, 4, 2, 3, 7)
split = programs.programs(families=programs.EXACT, sizes=SIZES, min_equations=3, max_equations=10)
smooth = programs.programs(
    families=programs.SMOOTH, allowed=(dtypes.float32,), sizes=SIZES, min_equations=2, max_equations=8
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


def function_of(program: Program) -> Callable[..., Any]:
    return lambda *args: trace.evaluate(program, [trace.as_value(a) for a in args])


def check(draw: st.DataObject, program: Program, f: Callable[..., Any], *, what: str) -> None:
    """Results of `f` with parameters placed at random equal those of one device."""
    shape = draw.draw(st.sampled_from(MESHES), label="mesh")
    with inf.config(device="reference", cpu_devices=8, check=1):
        mesh = make_mesh(shape, tuple("abc"[: len(shape)]))
        arrays = programs.arguments(program, draw.draw(st.integers(0, 9), label="seed"))
        placed = [
            inf.device_put(x, NamedSharding(mesh, draw.draw(specs(t, shape), label="spec")))
            for x, t in zip(arrays, program.in_types, strict=True)
        ]
        wanted, found = inf.jit(f)(*arrays), inf.jit(f)(*placed)
        for x, y in zip(map(np.asarray, found), map(np.asarray, wanted), strict=True):
            if y.dtype in dtypes.FLOATS:
                # The error of a sum is that of its terms, which may cancel.
                scale = max(1.0, float(np.max(np.abs(y.astype(np.float64)), initial=0.0)))
                x, y = ((z.astype(np.float64) / scale).astype(z.dtype) for z in (x, y))
            close(x, y, what)


@few
@hypothesis.given(st.data(), split)
def test_sharded_programs_equal_unsharded_ones(data: st.DataObject, program: Program) -> None:
    check(data, program, function_of(program), what="sharded")


@few
@hypothesis.given(st.data(), smooth)
def test_gradients_of_sharded_programs_equal_unsharded_ones(data: st.DataObject, program: Program) -> None:
    def total(*args: Any) -> Any:
        found = 0.0
        for y in function_of(program)(*args):
            weights = np.cos(np.arange(y.size, dtype=np.float32)).reshape(y.shape)
            found = found + (y.astype("float32") * weights).sum()
        return found

    numbers = tuple(range(len(program.params)))
    check(data, program, inf.grad(total, argnums=numbers), what="gradient")
