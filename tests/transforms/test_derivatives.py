"""Derivative transforms beyond the table of parity: pytrees of residuals, float0, errors of linearity."""

from __future__ import annotations

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.core import errors
from infini.tree_util import Partial

X = np.array([0.5, -1.0, 2.0], np.float32)
M = np.array([[1.0, 2.0, 0.0], [0.0, -1.0, 3.0]], np.float32)


def test_a_vjp_function_is_a_pytree_of_its_residuals():
    _, pull = inf.vjp(lambda x: inp.sin(x) * x, X)
    assert isinstance(pull, Partial)
    assert {leaf.shape for leaf in inf.tree.leaves(pull)} == {(3,)}


def test_vjp_functions_of_equal_form_share_a_trace():
    apply = inf.jit(lambda pull, ct: pull(ct)[0])
    for scale in (1.0, 2.0, 3.0):
        x = scale * X
        np.testing.assert_allclose(apply(inf.vjp(inp.sin, x)[1], X), X * np.cos(x), rtol=1e-6)
    assert apply.num_traces == 1


def test_a_vjp_function_leaves_jit_and_comes_back():
    pull = inf.jit(lambda x: inf.vjp(lambda x: x**3, x)[1])(X)
    np.testing.assert_allclose(pull(X)[0], 3 * X**3, rtol=1e-6)


def test_residuals_nothing_needs_are_not_kept():
    big = inp.ones((100, 100))
    _, pull = inf.vjp(lambda x: (x * 2 + big.sum()).sum(), X)
    assert all(leaf.size < 100 for leaf in inf.tree.leaves(pull))


def test_integers_have_float0_everywhere():
    def f(x, i):
        return x[i] * 2, i + 1

    (_, _), pull = inf.vjp(f, X, 1)
    ct_x, ct_i = pull((np.float32(1.0), np.zeros((), inf.float0)))
    np.testing.assert_array_equal(ct_x, [0, 2, 0])
    assert ct_i.dtype == inf.float0
    _, (moved, moved_i) = inf.jvp(f, (X, 1), (X, np.zeros((), inf.float0)))
    assert float(moved) == -2.0 and moved_i.dtype == inf.float0


def test_float0_goes_through_jit_and_vmap():
    gradient = inf.jit(inf.grad(lambda p: p["x"][p["i"]], allow_int=True))({"x": X, "i": np.int32(2)})
    np.testing.assert_array_equal(gradient["x"], [0, 0, 1])
    assert gradient["i"].dtype == inf.float0 and gradient["i"].shape == ()
    mapped = inf.vmap(inf.grad(lambda i, x: x * 1.0, argnums=(0, 1), allow_int=True), (0, None))(
        np.arange(4), 2.0
    )
    assert mapped[0].dtype == inf.float0 and mapped[0].shape == (4,)


@pytest.mark.parametrize(
    ("f", "named"),
    [
        (inp.sin, "'sin'"),
        (lambda x: x * x, "f32[3]"),
        (lambda x: inp.exp(2 * x), "'exp'"),
        (lambda x: x @ x, "f32[3]"),
    ],
)
def test_the_transpose_of_a_function_that_is_not_linear_names_what_is_not(f, named):
    ct = inp.ones_like(f(X))
    with pytest.raises(errors.MissingRuleError, match="linear") as found:
        inf.linear_transpose(f, X)(ct)
    assert named in str(found.value) and "vjp" in str(found.value)


def test_linear_transpose_is_the_adjoint():
    y = np.array([1.0, -2.0], np.float32)
    (found,) = inf.linear_transpose(lambda x: M @ (2 * x), X)(y)
    np.testing.assert_allclose(float((found * X).sum()), float(((M @ (2 * X)) * y).sum()), rtol=1e-6)


def test_python_control_flow_sees_values_under_every_derivative():
    def f(x):
        return x * 3 if x > 0 else -x

    assert float(inf.grad(inf.grad(lambda x: f(x) ** 2))(2.0)) == 18.0
    assert float(inf.jvp(inf.grad(lambda x: f(x) ** 2), (-2.0,), (1.0,))[1]) == 2.0


def test_auxiliary_outputs_are_primal_in_nested_derivatives():
    def inner(x):
        return x**3, {"square": x**2, "text": "kept"}

    def outer(x):
        slope, aux = inf.grad(inner, has_aux=True)(x)
        assert aux["text"] == "kept"
        return slope * aux["square"]

    assert float(inf.grad(outer)(1.0)) == pytest.approx(12.0)


def test_gradients_of_gradients_of_a_scan_in_a_rule():
    # The rule mixes primals with tangents in one loop.
    @inf.custom_jvp
    def f(x):
        return lax.fori_loop(0, 3, lambda _, c: c * x, 1.0)

    @f.defjvp
    def rule(primals, tangents):
        return inf.jvp(
            lambda x: lax.scan(lambda c, _: (c * x, None), 1.0, None, length=3)[0], primals, tangents
        )

    assert float(inf.grad(f)(2.0)) == pytest.approx(12.0)
    assert float(inf.grad(inf.grad(f))(2.0)) == pytest.approx(12.0)
    assert float(inf.jit(inf.grad(inf.jit(f)))(2.0)) == pytest.approx(12.0)


def test_a_call_has_to_pass_what_argnums_name():
    with pytest.raises(errors.TypeMismatchError, match="at least 3 positional arguments"):
        inf.grad(lambda x, y: x, argnums=2)(1.0, 2.0)
