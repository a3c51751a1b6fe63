"""Composites with a VJP of their own: reverse mode uses it, forward mode differentiates the definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.core import primitive, trace
from infini.core.primitive import Primitive, Signature
from tests.transforms.test_control_flow import equations

Function = Callable[..., Any]
X = np.array([[0.3, -1.2, 2.0], [1.1, 0.4, -0.7]], np.float32)
W = np.array([0.5, 2.0, -1.5], np.float32)
DX = np.array([[1.0, 0.5, -0.3], [0.2, -2.0, 0.8]], np.float32)
DW = np.array([-0.4, 0.1, 0.9], np.float32)


def composite(x: Any, w: Any = W) -> Any:
    return lax.rms_norm(x, w)


def plain(x: Any, w: Any = W) -> Any:
    return x / inp.sqrt(inp.mean(x * x, -1, keepdims=True) + 1e-6) * w


def tangent(f: Function) -> Function:
    return lambda x: inf.linearize(f, x)[1](DX)


def repeated(f: Function) -> Function:
    return lambda x: lax.scan(lambda c, _: (f(c), None), x, None, length=3)[0]


def cubed(f: Function) -> Function:
    return lambda x: (f(x) ** 3).sum()


DERIVATIVES: dict[str, Callable[[Function], Function]] = {
    "jvp": lambda f: lambda x: inf.jvp(f, (x, W), (DX, DW))[1],
    "linearize": lambda f: lambda x: inf.linearize(f, x, W)[1](DX, DW),
    "linearize one operand": tangent,
    "linearize scan": lambda f: tangent(repeated(f)),
    "vmap of linearize": lambda f: lambda x: inf.vmap(lambda v, t: inf.linearize(f, v)[1](t))(x, DX),
    "vmap of a linearized function": lambda f: lambda x: inf.vmap(inf.linearize(f, x)[1])(np.stack([DX, X])),
    "jacfwd of linearize": lambda f: inf.jacfwd(tangent(f)),
    "jacrev of linearize": lambda f: inf.jacrev(tangent(f)),
    "transpose of linearize": lambda f: lambda x: inf.linear_transpose(inf.linearize(f, x)[1], x)(DX),
    "jacfwd": lambda f: inf.jacfwd(cubed(f)),
    "jacrev": lambda f: inf.jacrev(cubed(f)),
    "hessian": lambda f: inf.hessian(cubed(f)),
    "jacrev of jacfwd": lambda f: inf.jacrev(inf.jacfwd(cubed(f))),
    "jacfwd of hessian": lambda f: inf.jacfwd(inf.hessian(cubed(f))),
    "grad of checkpoint": lambda f: inf.grad(inf.checkpoint(cubed(f))),
    "grad of scan": lambda f: inf.grad(cubed(repeated(f))),
}


@pytest.mark.parametrize("is_jitted", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("derivative", DERIVATIVES.values(), ids=DERIVATIVES.keys())
def test_a_composite_has_every_derivative_of_its_definition(
    derivative: Callable[[Function], Function], is_jitted: bool
) -> None:
    # Third derivatives of one row are 27 numbers, of the whole array 216.
    x = X[0] if derivative is DERIVATIVES["jacfwd of hessian"] else X
    found = derivative(composite)
    np.testing.assert_allclose(
        np.asarray((inf.jit(found) if is_jitted else found)(x)),
        np.asarray(derivative(plain)(x)),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.fixture
def halved_backwards() -> Any:
    """A composite that doubles, with a VJP that is wrong on purpose: it halves; its second result counts."""
    op = Primitive(
        "halved_backwards",
        Signature(((),), ((), ())),
        {
            primitive.TYPE: lambda x: (x, x.update(dtype=np.dtype(np.int32))),
            primitive.DECOMPOSE: lambda x: (x + x, lax.convert_element_type(x, np.int32)),
            primitive.VJP: (lambda x: (trace.bind(op, x), [x]), lambda saved, cts: [cts[0] / 2]),
        },
    )
    primitive.register(op)
    yield lambda x: trace.bind(op, x)[0]
    primitive.unregister(op)


def test_reverse_mode_uses_the_vjp_and_forward_mode_the_definition(halved_backwards: Function) -> None:
    _, tangents = inf.linearize(halved_backwards, 3.0)
    _, pull = inf.vjp(halved_backwards, 3.0)
    assert (float(tangents(1.0)), float(pull(1.0)[0])) == (2.0, 0.5)
    assert float(inf.jvp(halved_backwards, (3.0,), (1.0,))[1]) == 2.0
    many = inf.vmap(inf.grad(halved_backwards))(np.ones(3, np.float32))
    np.testing.assert_array_equal(many, np.full(3, 0.5))


def test_a_linearized_composite_keeps_one_equation_for_its_tangent() -> None:
    program = inf.make_jaxpr(lambda x, t: inf.linearize(composite, x)[1](t))(X, DX)
    assert len(equations(program, "composite_tangent")) == len(equations(program, "rms_norm")) == 1


def test_linearizing_twice_gives_equal_programs() -> None:
    traces = []

    @inf.jit
    def apply(f: Any, t: Any) -> Any:
        traces.append(None)
        return f(t)

    for x in (inp.asarray(X), inp.asarray(X + 1)):
        apply(inf.linearize(composite, x)[1], DX)
    assert len(traces) == 1
