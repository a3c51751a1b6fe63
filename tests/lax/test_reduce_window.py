"""Windows where lowering, ties and general functions are hard; values are compared with JAX in the parity
tests, and every dtype with its definition in the oracle tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.compiler import partition, pipeline
from infini.compiler.llvm import lower
from infini.core import errors, primitive, trace
from infini.core.ir import Equation, Program
from infini.core.mesh import AbstractMesh
from infini.lax.windows import folds, reductions, selection, unfolding
from infini.lax.windows.padding import Line
from infini.sharding import P


def equations(program: Program) -> Iterator[Equation]:
    for equation in program.equations:
        yield equation
        for inner in equation.programs:
            yield from equations(inner)


def names(program: Program) -> Counter[str]:
    return Counter(e.op.name for e in equations(program))


def lowered(f: Any, *args: Any) -> Program:
    return dict(pipeline.trace_passes(inf.make_jaxpr(f)(*args), lower.has_route))["decompose"]


def max_pool(x: Any, window: Any, strides: Any, padding: Any = "VALID") -> Any:
    return lax.reduce_window(x, -np.inf, lax.max, window, strides, padding)


# --- extrema --------------------------------------------------------------------------------------


def test_of_equal_elements_the_first_is_selected() -> None:
    x = inp.asarray([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    gradient = inf.grad(lambda x: max_pool(x, (2, 2), (1, 1)).sum())(x)
    np.testing.assert_array_equal(gradient, [[1, 1, 0], [0, 0, 0]])


def test_windows_of_nothing_but_padding_pass_no_gradient() -> None:
    x = inp.asarray([1.0, 2.0])
    found, gradient = inf.value_and_grad(
        lambda x: inp.where(inp.isinf(y := max_pool(x, (1,), (1,), ((2, 0),))), 0, y).sum()
    )(x)
    assert float(found) == 3 and np.asarray(gradient).tolist() == [1, 1]


def test_the_second_derivative_of_an_extremum_selects_again() -> None:
    x = inp.asarray([3.0, 1.0, 2.0, 5.0])
    hessian = inf.hessian(lambda x: (max_pool(x, (2,), (2,)) ** 3).sum())(x)
    np.testing.assert_allclose(np.diag(hessian), [18, 0, 0, 30])


@pytest.mark.parametrize("stride", [1, 3, 32])
def test_long_windows_take_a_logarithmic_number_of_steps(stride: int) -> None:
    program = lowered(lambda x: max_pool(x, (512,), (stride,)), np.zeros(4096, np.float32))
    assert names(program)["max"] <= 20


def test_windows_apart_are_one_reduction() -> None:
    program = lowered(lambda x: max_pool(x, (1, 16, 16), (1, 16, 16)), np.zeros((2, 64, 64), np.float32))
    assert names(program)["reduce_max"] == 1 and "max" not in names(program)


def test_small_windows_are_one_kernel_forwards_and_backwards() -> None:
    x = np.zeros((2, 16, 16, 8), np.float32)
    for f in (
        lambda x: max_pool(x, (1, 3, 3, 1), (1, 2, 2, 1), "SAME"),
        lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1)),
    ):
        fused = pipeline.run(inf.make_jaxpr(f)(x), lower.has_route, backend="cpu")
        assert names(fused)["kernel"] == 1
    gradient = inf.make_jaxpr(inf.grad(lambda x: max_pool(x, (1, 3, 3, 1), (1, 2, 2, 1), "SAME").sum()))(x)
    found = names(pipeline.run(gradient, lower.has_route, backend="cpu"))
    assert not {"scatter_add", "gather", "pad", "scan"} & set(found)


@pytest.mark.parametrize("terms", [64, 0], ids=["asked", "scattered"])
def test_both_ways_to_add_at_extrema_agree(
    terms: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = lax.select_and_scatter_add_p.rules
    monkeypatch.setattr(selection, "MAX_TERMS", terms)
    x, source = rng.standard_normal((2, 9, 8)).astype("f"), rng.standard_normal((2, 5, 4)).astype("f")
    lines = (Line(9, 3, 2, 1, 1), Line(8, 3, 2, 0, 1))
    attrs = {"select": "ge", **reductions.attributes(lines)}
    found = inf.jit(lambda s, x: rules[primitive.DECOMPOSE](s, x, **attrs)[0])(source, x)
    np.testing.assert_allclose(found, rules[primitive.REFERENCE](source, x, **attrs), rtol=1e-5)


# --- general functions ----------------------------------------------------------------------------


@pytest.mark.parametrize("window", [3, 50], ids=["in order", "as a tree"])
def test_several_operands_are_reduced_together(window: int, rng: np.random.Generator) -> None:
    """A windowed argmax: values and their positions."""
    x, places = rng.standard_normal(64).astype(np.float32), np.arange(64, dtype=np.int32)

    def later(a: Any, b: Any) -> Any:
        is_first = a[0] >= b[0]
        return lax.select(is_first, a[0], b[0]), lax.select(is_first, a[1], b[1])

    found = inf.jit(
        lambda x, i: lax.reduce_window(
            (x, i), (np.float32(-np.inf), np.int32(-1)), later, (window,), (1,), "SAME"
        )
    )(x, places)
    low = (window - 1) // 2
    expected = [max(0, p - low) + int(np.argmax(x[max(0, p - low) : p - low + window])) for p in range(64)]
    np.testing.assert_array_equal(found[1], expected)


def test_a_function_may_close_over_arrays_and_branch() -> None:
    limit = inp.asarray(2.0)

    def bounded(a: Any, b: Any) -> Any:
        return lax.cond(a + b > limit, lambda: limit, lambda: a + b)

    found = lax.reduce_window(inp.asarray([1.0, 1.0, 1.0, 0.0]), 0.0, bounded, (3,), (1,))
    np.testing.assert_array_equal(found, [2, 2])


def test_an_unknown_function_is_differentiable() -> None:
    x = inp.asarray([1.0, 2.0, 3.0])
    product = lambda x: lax.reduce_window(x, 1.0, lambda a, b: a * b, (2,), (1,)).sum()  # noqa: E731
    np.testing.assert_allclose(inf.grad(product)(x), [2, 4, 2])


def test_an_initial_value_is_joined_to_every_window() -> None:
    found = lax.reduce_window(inp.ones(3), 1.0, lax.add, (3,), (1,), "SAME")
    np.testing.assert_array_equal(found, [3, 4, 3])


def test_places_are_joined_in_their_order() -> None:
    """Composition of affine maps does not commute."""
    maps = np.random.default_rng(0).integers(1, 3, (2, 40)).astype(np.float32)

    def then(a: Any, b: Any) -> Any:
        return a[0] * b[0] % 8, (a[1] * b[0] + b[1]) % 8

    for window in (4, 37):
        found = lax.reduce_window(tuple(maps), (np.float32(1), np.float32(0)), then, (window,), (1,))
        total = (1.0, 0.0)
        for k in range(window):
            total = then(total, (maps[0, k], maps[1, k]))
        assert (float(found[0][0]), float(found[1][0])) == total


# --- unfold ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [Line(10, 3), Line(10, 3, 2), Line(20, 3, 2, window_dilation=3), Line(300, 100), Line(11, 2, 3)],
    ids=str,
)
@pytest.mark.parametrize("limit", [64, 0], ids=["shifted", "scattered"])
def test_fold_is_the_transpose_of_unfold(
    line: Line, limit: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfolding, "MAX_TERMS", limit)
    windows = rng.standard_normal((2, line.count, 3, line.window)).astype(np.float32)
    found = inf.jit(lambda w: unfolding.fold(trace.as_value(w), -3, line))(windows)
    expected = np.zeros((2, line.size, 3), np.float32)
    for p in range(line.count):
        for k in range(line.window):
            expected[:, p * line.stride + k * line.window_dilation] += windows[:, p, :, k]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_reduction_reads_windows_without_an_array_of_them() -> None:
    def smoothed(x: Any) -> Any:
        return unfolding.unfold(x, (0,), (5,), (1,), (1,)).sum(-1)

    fused = pipeline.run(inf.make_jaxpr(smoothed)(np.zeros(100, np.float32)), lower.has_route, backend="cpu")
    assert names(fused)["kernel"] == 1


def test_a_monoid_without_a_reduction_folds_in_row_major_order() -> None:
    first = folds.Monoid(lambda a, b: a, (trace.as_value(0.0),))
    x = trace.as_value(np.arange(40 * 40, dtype=np.float32).reshape(40, 40))
    (found,) = folds.fold(first, (x,), [Line(40, 20), Line(40, 20)])
    np.testing.assert_array_equal(np.asarray(found), np.asarray(x.host)[:21, :21])


# --- placement and refusals -----------------------------------------------------------------------


@pytest.mark.parametrize("spec", [P("data"), P(None, "data")])
def test_dimensions_with_and_without_windows_are_split(spec: P) -> None:
    program = inf.make_jaxpr(lambda x: max_pool(x, (1, 2, 1), (1, 2, 1)))(np.zeros((4, 8, 3), np.float32))
    found = partition.partition(program, AbstractMesh(("data",), (2,)), [tuple(spec)])
    assert found.collectives == () and found.out_specs == (tuple(spec),)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((2,), (1,)), "one entry per dimension of the operand"),
        (((2, 0), (1, 1)), "window_dimensions is not positive"),
        (((2, 2), (1,)), "window_strides has another number of entries"),
        (((2, 2), (1, 1), ((0, 0),)), "one pair per dimension"),
        (((2, 2), (1, 1), "HALF"), "no padding of this name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_error_names_the_argument(arguments: Any, message: str) -> None:
    with pytest.raises(errors.InfiniError, match=message):
        lax.reduce_window(inp.ones((4, 4)), 0.0, lax.add, *arguments)


def test_an_initial_value_of_another_dtype_is_refused() -> None:
    with pytest.raises(errors.TypeMismatchError, match="another dtype"):
        lax.reduce_window(inp.ones(4), np.int32(0), lax.mul, (2,))
