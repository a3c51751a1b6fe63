"""Loops and branches: what they trace to, how carries widen, and what the errors name."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.experimental
import infini.numpy as inp
from infini import lax
from infini.core import errors, ir

X = np.array([0.5, -1.0, 2.0], np.float32)
Pair = collections.namedtuple("Pair", ["a", "b"])  # a pytree


def equations(program: ir.Program, name: str) -> list[ir.Equation]:
    """Equations of an operation, those of inner programs included."""
    own = [e for e in program.equations if e.op.name == name]
    inner = [e for equation in program.equations for p in equation.programs for e in equations(p, name)]
    return own + inner


def message(kind: type[Exception], f: Any, *args: Any) -> str:
    with pytest.raises(kind) as found:
        f(*args)
    return str(found.value)


# --- carries ----------------------------------------------------------------------------------------


def test_weak_carries_widen_until_nothing_changes():
    # Each leaf takes the type of the next one, so it takes three rounds; JAX gives up after one.
    def body(c, x):
        return (c[1], c[2], c[2] + x), None

    found, _ = lax.scan(body, (0, 0, 0), X)
    assert [v.dtype.name for v in found] == ["float32"] * 3


def carry_of(a: Any, b: Any) -> Any:
    """A body of scan that returns another carry."""
    return lambda c, x: ({"a": a(c), "b": b(c)}, x)


A, B = (lambda c: c["a"]), (lambda c: c["b"])  # as they came


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (carry_of(lambda c: c["a"].astype(int), B), "carry['a'] goes in as f32[3] and comes out as i32[3]"),
        (carry_of(lambda c: c["a"][:2], B), "carry['a'] goes in as f32[3] and comes out as f32[2]"),
        (carry_of(A, lambda c: Pair(c["b"].a, c["a"])), "carry['b'].b goes in as f32[]"),
        (carry_of(A, lambda c: (1.0, 2.0)), "carry['b'] comes out as (1.0, 2.0) of type tuple"),
        (lambda c, x: ({"a": c["a"]}, x), "carry comes out as a dict of length 1"),
        (lambda c, x: c, "must return (carry, y)"),
    ],
)
def test_a_carry_of_another_type_is_named_with_both_types(body, expected):
    init = {"a": X, "b": Pair(np.float32(0), np.float32(1))}
    text = message(errors.TypeMismatchError, lambda: lax.scan(body, init, X))
    assert expected in text and "at:" in text


def test_every_leaf_that_changes_is_named():
    text = message(
        TypeError,
        lambda: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1.5, c[1][:1]), (np.int32(0), X)),
    )
    assert "carry[0] goes in as i32[] and comes out as f32[]" in text and "carry[1]" in text


def test_branches_that_differ_are_named_with_the_leaf():
    text = message(TypeError, lambda: lax.cond(True, lambda: {"u": X, "v": X}, lambda: {"u": X, "v": X[0]}))
    assert "result['v'] is f32[] in false_fun and f32[3] in true_fun" in text


def test_a_carry_that_never_changes_becomes_a_constant():
    program = inf.make_jaxpr(lambda w, x: lax.scan(lambda c, a: ((c[0], c[1] * a), c[0] + a), (w, x[0]), x))(
        2.0, X
    )
    (scan,) = equations(program, "scan")
    assert (scan.attrs["num_consts"], scan.attrs["num_carry"]) == (1, 1)


# --- loops ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unroll", "turns"), [(1, 7), (2, 3), (3, 2), (7, None), (9, None), (True, None), (0, None)]
)
def test_unrolled_scans_take_fewer_turns(unroll, turns):
    program = inf.make_jaxpr(
        lambda c: lax.scan(lambda c, _: (c * 2 + 1, c), c, None, length=7, unroll=unroll)
    )(1.0)
    assert [e.attrs["length"] for e in equations(program, "scan")] == ([] if turns is None else [turns])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("unroll", [2, 3, 4, True])
def test_unrolling_changes_no_result(unroll, reverse):
    xs = np.arange(7, dtype=np.float32)

    def run(unroll):
        return lax.scan(lambda c, x: (c * 0.5 + x, (c, x * x)), 1.0, xs, reverse=reverse, unroll=unroll)

    for a, b in zip(inf.tree.leaves(run(unroll)), inf.tree.leaves(run(1)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_known_bounds_make_a_scan_and_traced_ones_a_while_loop():
    program = inf.make_jaxpr(lambda k: lax.fori_loop(0, 3, lambda i, c: c + i, k))(1)
    assert equations(program, "scan") and not equations(program, "while")
    program = inf.make_jaxpr(lambda k: lax.fori_loop(0, k, lambda i, c: c + i, 0))(1)
    assert equations(program, "while") and not equations(program, "scan")


def test_a_scan_equals_a_python_loop():
    carry, ys = 0.3, []
    for x in X:
        ys.append(carry * x)
        carry = np.sin(carry + x)
    found, stacked = lax.scan(lambda c, x: (inp.sin(c + x), c * x), 0.3, X)
    np.testing.assert_allclose(found, carry, rtol=1e-6)
    np.testing.assert_allclose(stacked, ys, rtol=1e-6)


def test_linearize_of_a_while_loop_pushes_tangents_and_its_transpose_is_the_error():
    def power(x):
        return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * x), (0, x))[1]

    value, push = inf.linearize(power, 2.0)
    assert float(value) == 16.0 and float(push(1.0)) == 32.0
    _, pull = inf.vjp(power, 2.0)
    assert "lax.scan" in message(ValueError, pull, 1.0)


def test_map_in_batches_traces_the_batch_and_the_rest():
    sizes = []

    def f(x):
        sizes.append(x.shape)
        return x * 2

    np.testing.assert_array_equal(lax.map(f, np.arange(7), batch_size=3), 2 * np.arange(7))
    assert sizes == [(), ()]
    program = inf.make_jaxpr(lambda x: lax.map(lambda x: x * 2, x, batch_size=3))(np.arange(7))
    assert [e.attrs["length"] for e in equations(program, "scan")] == [2]


def test_associative_scan_combines_about_twice_as_often_as_there_are_elements():
    count = 64
    program = inf.make_jaxpr(lambda x: lax.associative_scan(inp.multiply, x))(np.ones(count, np.float32))
    assert sum(e.output.type.size for e in equations(program, "mul")) < 2 * count


def test_associative_scan_keeps_the_order_of_operands():
    words = np.stack([np.array([[1.0, k], [0.0, 1.0 + k]], np.float32) for k in range(5)])
    found = lax.associative_scan(inp.matmul, words)
    expected = words[0]
    for i in range(5):
        expected = words[0] if i == 0 else expected @ words[i]
        np.testing.assert_allclose(found[i], expected, rtol=1e-5)


# --- branches ---------------------------------------------------------------------------------------


def test_gradients_of_a_mapped_cond_are_finite_where_the_branch_not_taken_is_not():
    def f(x):
        return lax.cond(x > 0, lambda x: inp.sqrt(x), lambda x: x * 0.0, x)

    zeros = np.array([0.0, 4.0], np.float32)
    np.testing.assert_array_equal(inf.grad(lambda x: inf.vmap(f)(x).sum())(zeros), [0.0, 0.25])
    np.testing.assert_array_equal(inf.vmap(inf.grad(f))(zeros), [0.0, 0.25])


def test_an_io_callback_in_a_branch_with_a_batched_condition_is_an_error():
    def call(x):
        return infini.experimental.io_callback(lambda v: v, x, x)

    text = message(TypeError, lambda: inf.vmap(lambda x: lax.cond(x > 0, call, lambda x: x, x))(X))
    assert "io_callback" in text


def test_the_older_form_of_cond_is_understood():
    assert float(lax.cond(False, 1.0, lambda x: x + 1, 2.0, lambda x: x * 10)) == 20.0


# --- plain Python -----------------------------------------------------------------------------------


def test_disable_jit_shows_values_in_bodies():
    seen = []
    with inf.disable_jit():
        inf.jit(lambda x: seen.append(float(x)))(1.5)
        lax.scan(lambda c, x: (seen.append(float(x)), (c, x))[1], 0.0, X[:1])
        lax.cond(True, lambda: seen.append("true"), lambda: seen.append("false"))
    assert seen == [1.5, 0.5, "true"]
    with inf.disable_jit(), inf.disable_jit(False), pytest.raises(TypeError, match="Python float"):
        inf.jit(float)(1.5)
