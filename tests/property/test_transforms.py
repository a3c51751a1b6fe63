"""What holds for every program of smooth operations: vmap is a loop, jit and grad commute, checkpoint and the
order of transforms change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
from hypothesis import strategies as st

import infini as inf
import infini.numpy as inp
from infini.core import dtypes, trace
from infini.core.ir import Program
from infini.testing import programs
from tests.property.running import close

smooth = programs.programs(families=programs.SMOOTH, allowed=(dtypes.float32,), max_equations=8)
few = hypothesis.settings(max_examples=max(20, hypothesis.settings.default.max_examples // 5))


def function_of(program: Program) -> Callable[..., Any]:
    return lambda *args: trace.evaluate(program, [trace.as_value(a) for a in args])


def scalar_of(program: Program) -> Callable[..., Any]:
    """A number made of every result, each element with a weight of its own."""

    def f(*args: Any) -> Any:
        total = inp.float32(0)
        for y in function_of(program)(*args):
            weights = np.cos(np.arange(y.size, dtype=np.float32)).reshape(y.shape)
            total = total + (y.astype("float32") * weights).sum()
        return total

    return f


def every(program: Program) -> tuple[int, ...]:
    return tuple(range(len(program.params)))


def all_close(found: Any, wanted: Any, what: str) -> None:
    for x, y in zip(found, wanted, strict=True):
        scale = max(1.0, float(np.max(np.abs(np.asarray(y)), initial=0.0)))
        close(np.asarray(x) / np.float32(scale), np.asarray(y) / np.float32(scale), what)


@few
@hypothesis.given(smooth, st.integers(0, 9))
def test_vmap_is_a_loop(program: Program, seed: int) -> None:
    rows = [programs.arguments(program, seed + 7 * i) for i in range(3)]
    f = function_of(program)
    expected = [
        np.stack(column) for column in zip(*([np.asarray(y) for y in f(*r)] for r in rows), strict=True)
    ]
    stacked = [np.stack(column) for column in zip(*rows, strict=True)]
    all_close(inf.jit(inf.vmap(f))(*stacked), expected, "jit of vmap")
    all_close(inf.vmap(f)(*stacked), expected, "vmap")


@few
@hypothesis.given(smooth, st.integers(0, 9))
def test_grad_and_jit_commute_and_checkpoint_changes_nothing(program: Program, seed: int) -> None:
    arrays = programs.arguments(program, seed)
    f, numbers = scalar_of(program), every(program)
    expected = inf.grad(f, numbers)(*arrays)
    all_close(inf.jit(inf.grad(f, numbers))(*arrays), expected, "jit of grad")
    all_close(inf.grad(inf.jit(f), numbers)(*arrays), expected, "grad of jit")
    all_close(inf.grad(inf.checkpoint(f), numbers)(*arrays), expected, "grad of checkpoint")
    all_close(inf.jit(inf.grad(inf.checkpoint(f), numbers))(*arrays), expected, "jit of grad of checkpoint")


@few
@hypothesis.given(smooth, st.integers(0, 9))
def test_reverse_and_forward_mode_agree(program: Program, seed: int) -> None:
    arrays = programs.arguments(program, seed)
    tangents = programs.arguments(program, seed + 100)
    f = scalar_of(program)
    _, forward = inf.jvp(f, tuple(arrays), tuple(tangents))
    gradients = inf.grad(f, every(program))(*arrays)
    reverse = sum(
        float((np.asarray(g, np.float64) * t).sum()) for g, t in zip(gradients, tangents, strict=True)
    )
    scale = max(1.0, abs(reverse), *(float(np.abs(np.asarray(g)).max(initial=0.0)) for g in gradients))
    np.testing.assert_allclose(float(forward) / scale, reverse / scale, atol=2e-4)
    _, linear = inf.linearize(f, *arrays)
    np.testing.assert_allclose(float(linear(*tangents)) / scale, reverse / scale, atol=2e-4)


@few
@hypothesis.given(smooth, st.integers(0, 9))
def test_a_gradient_of_vmap_is_a_vmap_of_gradients(program: Program, seed: int) -> None:
    rows = [programs.arguments(program, seed + 7 * i) for i in range(2)]
    stacked = [np.stack(column) for column in zip(*rows, strict=True)]
    f, numbers = scalar_of(program), every(program)
    each = inf.vmap(inf.grad(f, numbers))(*stacked)
    together = inf.grad(lambda *xs: inf.vmap(f)(*xs).sum(), numbers)(*stacked)
    all_close(inf.jit(inf.vmap(inf.grad(f, numbers)))(*stacked), each, "jit")
    all_close(together, each, "grad of vmap")
