"""Design 4a.4: linearize is the base; grad is linearize and transpose, eager and traced alike."""

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import lax
from infini.core import check
from infini.transforms import forward, linear

X = np.linspace(0.1, 1.0, 5, dtype=np.float32)


def f(x):
    return (inp.tanh(x) * inp.exp(x)).sum()


def test_grad_equals_linearize_then_transpose():
    _, push = infini.linearize(f, X)
    (transposed,) = infini.linear_transpose(push, X)(np.float32(1.0))
    np.testing.assert_allclose(infini.grad(f)(X), transposed, rtol=1e-6)


def test_grad_of_jit_equals_jit_of_grad_equals_eager_grad():
    eager = np.asarray(infini.grad(f)(X))
    np.testing.assert_allclose(infini.grad(infini.jit(f))(X), eager, rtol=1e-6)
    np.testing.assert_allclose(infini.jit(infini.grad(f))(X), eager, rtol=1e-6)


def test_every_derived_program_is_well_formed():
    def body(c, x):
        return lax.cond(x > 0.5, lambda c: c * inp.sin(x), lambda c: c + x, c), c

    program = infini.make_jaxpr(lambda c, xs: lax.scan(body, c, xs))(1.0, X)
    both = (True,) * len(program.params)
    check.check(forward.jvp_program(program, both)[0])
    parts = linear.linearize_program(program, both)
    check.check(parts.primal)
    check.check(parts.linear)
    mask = (False,) * len(parts.known) + (True,) * 2
    check.check(linear.transpose_program(parts.linear, mask, (True,) * len(parts.linear.results))[0])


def test_residuals_that_are_constants_of_a_scan_are_not_stacked():
    weights = np.eye(4, dtype=np.float32)

    def run(w, c):
        return lax.scan(lambda c, _: (inp.tanh(w @ c), None), c, None, length=7)[0].sum()

    program = infini.make_jaxpr(infini.grad(run))(weights, np.ones(4, np.float32))
    scans = [e for e in program.equations if e.op.name == "scan"]
    stacked_weights = [v for e in scans for v in e.outputs if v.type.shape == (7, 4, 4)]
    assert len(scans) == 2 and not stacked_weights


def test_forward_mode_of_a_vjp_only_function_is_an_error():
    @infini.custom_vjp
    def g(x):
        return x * 2

    g.defvjp(lambda x: (g(x), None), lambda _, ct: (ct * 2,))
    with pytest.raises(TypeError, match="forward-mode"):
        infini.jvp(g, (1.0,), (1.0,))


def test_python_control_flow_under_grad_needs_no_jit():
    assert float(infini.grad(lambda x: x * 3 if x > 0 else -x)(2.0)) == 3.0


def test_a_traced_condition_under_jit_is_an_error_that_names_the_way_out():
    with pytest.raises(TypeError, match=r"lax\.cond"):
        infini.jit(infini.grad(lambda x: x * 3 if x > 0 else -x))(2.0)


def test_integers_have_no_gradient():
    with pytest.raises(TypeError, match="real- or complex-valued"):
        infini.grad(lambda x: x * 1.0)(3)


def test_while_has_no_reverse_mode():
    with pytest.raises(ValueError, match=r"lax\.scan"):
        infini.grad(lambda x: lax.while_loop(lambda c: c < 10.0, lambda c: c * 2, x))(1.0)
