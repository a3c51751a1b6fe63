"""Custom derivative and batching rules: what rules are given, when they run, and what stays alive."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import custom_batching, custom_derivatives, lax
from infini.core import errors, host
from tests.transforms.test_control_flow import equations

X = np.array([0.5, -1.0, 2.0], np.float32)


@inf.custom_vjp
def scale(x: Any, w: Any) -> Any:
    return x * w


scale.defvjp(lambda x, w: (x * w, (x, w)), lambda r, ct: (10 * ct * r[1], (ct * r[0]).sum()))


@inf.custom_jvp
def twice(x: Any) -> Any:
    return 2 * x


twice.defjvps(lambda t, out, x: 20 * t)


def test_pullbacks_of_several_shapes_do_not_mix():
    pulls = [inf.vjp(scale, np.full(n, 2.0, np.float32), 3.0)[1] for n in (2, 3)]
    for n, pull in zip((2, 3), pulls, strict=True):
        np.testing.assert_array_equal(pull(np.ones(n, np.float32))[0], np.full(n, 30.0))


def test_cotangents_of_arguments_that_are_not_mapped_are_summed():
    def total(w):
        return inf.vmap(scale, (0, None))(X, w).sum()

    np.testing.assert_allclose(inf.grad(total)(2.0), X.sum(), rtol=1e-6)
    np.testing.assert_allclose(inf.jit(inf.grad(total))(2.0), X.sum(), rtol=1e-6)


def test_arguments_that_are_not_mapped_are_not_repeated():
    weights = np.ones((50, 50), np.float32)

    @inf.custom_vjp
    def apply(w, x):
        return w @ x

    apply.defvjp(lambda w, x: (w @ x, (w, x)), lambda r, ct: (inp.outer(ct, r[1]), r[0].T @ ct))
    program = inf.make_jaxpr(inf.vmap(inf.grad(lambda x, w: apply(w, x).sum()), (0, None)))(
        np.ones((4, 50), "f"), weights
    )
    assert not [e for e in equations(program, "broadcast_in_dim") if e.output.type.shape == (4, 50, 50)]


def test_rules_run_on_values_outside_of_traces():
    @inf.custom_vjp
    def f(x):
        return x if x > 0 else -x

    f.defvjp(lambda x: (f(x), x > 0), lambda positive, ct: (ct * (1 if positive else 7),))
    assert [float(inf.grad(f)(v)) for v in (2.0, -2.0)] == [1.0, 7.0]


def test_rules_apply_inside_rules():
    @inf.custom_jvp
    def outer(x):
        return twice(x)

    outer.defjvp(lambda primals, tangents: (outer(*primals), twice(tangents[0])))
    # The tangent goes through `twice`, whose own rule says 20.
    assert float(inf.grad(outer)(1.0)) == 20.0
    assert float(inf.jvp(outer, (1.0,), (1.0,))[1]) == 2.0


def test_a_vjp_rule_applies_inside_a_jvp_rule():
    @inf.custom_jvp
    def f(x):
        return x

    f.defjvp(lambda primals, tangents: (primals[0], scale(tangents[0], 3.0)))
    assert float(inf.grad(f)(1.0)) == 30.0


def test_a_rule_is_found_through_jit_scan_and_cond():
    def f(x):
        return lax.scan(
            lambda c, _: (lax.cond(c > 0, inf.jit(twice), lambda c: c, c), None), x, None, length=2
        )[0]

    assert float(inf.grad(f)(1.0)) == 400.0
    assert float(inf.jit(inf.jacfwd(f))(1.0)) == 400.0


def test_host_functions_die_with_the_programs_that_refer_to_them():
    def traced():
        g = inf.custom_vjp(lambda x: x * 2)
        g.defvjp(lambda x: (x, None), lambda _, ct: (ct,))
        return inf.make_jaxpr(g)(1.0)

    gc.collect()
    before = len(host._functions)
    programs = [traced() for _ in range(5)]
    assert len(host._functions) == before + 5
    del programs
    gc.collect()
    assert len(host._functions) == before


def test_a_rule_of_another_shape_names_the_function_and_both_types():
    f = inf.custom_vjp(lambda x: x * 1.0)
    f.defvjp(lambda x: (x, None), lambda _, ct: (ct[:2],))
    with pytest.raises(errors.ValueMismatchError, match=r"(?s)f32\[2\].*f32\[3\]"):
        inf.grad(lambda x: f(x).sum())(X)


def test_a_rule_must_come_before_the_call():
    with pytest.raises(AttributeError, match="defvjp"):
        inf.custom_vjp(lambda x: x)(1.0)


def test_symbolic_zeros_are_given_to_rules_that_ask():
    seen = []

    @inf.custom_vjp
    def f(x, y):
        return x * y, x

    def forward(x, y):
        seen.append((x.perturbed, y.perturbed))
        return (x.value * y.value, x.value), y.value

    def backward(y, cts):
        seen.append([isinstance(ct, custom_derivatives.SymbolicZero) for ct in cts])
        return cts[0] * y, None

    f.defvjp(forward, backward, symbolic_zeros=True)
    assert float(inf.grad(lambda x: f(x, 3.0)[0])(2.0)) == 3.0
    assert seen == [(True, False), [False, True]]


def test_custom_gradient_keeps_what_its_rule_uses():
    @inf.custom_gradient
    def f(x):
        factor = inp.exp(x)
        return factor, lambda ct: ct * factor * 10

    def in_loop(x):
        return lax.scan(lambda c, _: (f(c) * 0.1, None), x, None, length=2)[0]

    first = np.exp(0.5) * 0.1
    expected = np.exp(0.5) * np.exp(first)
    np.testing.assert_allclose(inf.grad(in_loop)(0.5), expected, rtol=1e-5)
    np.testing.assert_allclose(inf.vmap(inf.grad(in_loop))(np.array([0.5], "f")), [expected], rtol=1e-5)


def test_closure_convert_makes_arguments_of_traced_values():
    def solve(f, x, *hoisted):
        return f(x, *hoisted)

    rule = inf.custom_vjp(solve, nondiff_argnums=(0,))
    rule.defvjp(
        lambda f, x, *hoisted: (f(x, *hoisted), (x, hoisted)),
        lambda f, r, ct: inf.vjp(f, r[0], *r[1])[1](2 * ct),
    )

    def outer(y):
        f, hoisted = inf.closure_convert(lambda x: x * y, 1.0)
        assert len(hoisted) == 1
        return rule(f, 3.0, *hoisted)

    assert float(inf.grad(outer)(5.0)) == 6.0


def test_a_batching_rule_is_used_by_vmap_alone():
    @custom_batching.custom_vmap
    def f(x, y):
        return x + y

    @f.def_vmap
    def rule(axis_size, in_batched, x, y):
        assert axis_size == 3 and in_batched == [True, False]
        return x * 100 + y, True

    assert float(f(1.0, 2.0)) == 3.0
    np.testing.assert_allclose(inf.vmap(f, (0, None))(X, 1.0), 100 * X + 1)
    np.testing.assert_allclose(inf.jit(inf.vmap(inf.jit(f), (0, None)))(X, 1.0), 100 * X + 1)


def test_forward_mode_of_a_mapped_rule_is_the_derivative_of_the_rule():
    f = custom_batching.custom_vmap(lambda x: x)
    f.def_vmap(lambda size, batched, x: (x * x, True))
    _, moved = inf.vmap(lambda x: inf.jvp(f, (x,), (1.0,)))(X)
    np.testing.assert_allclose(moved, 2 * X, rtol=1e-6)


def test_sequential_vmap_is_a_loop():
    f = custom_batching.sequential_vmap(lambda x, y: inp.sin(x) * y)
    program = inf.make_jaxpr(inf.vmap(f, (0, None)))(X, 2.0)
    assert len(equations(program, "scan")) == 1
    np.testing.assert_allclose(inf.vmap(f, (0, None))(X, 2.0), np.sin(X) * 2, rtol=1e-6)


def test_linear_call_uses_its_own_transpose():
    def f(x):
        return custom_derivatives.linear_call(lambda r, x: r * x, lambda r, ct: 10 * r * ct, 2.0, x)

    assert float(f(3.0)) == 6.0 and float(inf.jvp(f, (3.0,), (1.0,))[1]) == 2.0
    assert float(inf.grad(f)(3.0)) == 20.0
    np.testing.assert_array_equal(inf.jit(inf.vmap(inf.grad(f)))(X), [20.0] * 3)
    with pytest.raises(errors.MissingRuleError, match="residual"):
        inf.grad(lambda r: custom_derivatives.linear_call(lambda r, x: r * x, lambda r, ct: r * ct, r, 1.0))(
            2.0
        )
