"""Sentence 1: one program type. What is traced, transformed, compiled or written as a kernel is a Program."""

import numpy as np

import infini
import infini.numpy as inp
from infini import lax
from infini.compiler import pipeline
from infini.core import check, ir, text

X = np.linspace(0.1, 1.0, 12, dtype=np.float32).reshape(3, 4)


def f(x):
    total, ys = lax.scan(lambda c, r: (infini.checkpoint(lambda c: inp.tanh(c * r))(c), c.sum()), x[0], x)
    return lax.cond(ys.sum() > 0, lambda t: (t * t).sum(), lambda t: inp.exp(t).sum(), total)


def test_every_transform_gives_a_program_that_prints_parses_and_checks():
    for transform in (lambda g: g, infini.grad, infini.jit, infini.checkpoint, infini.jacfwd, infini.hessian):
        program = infini.make_jaxpr(transform(f))(X)
        assert text.parse(repr(check.check(program))) == program
    check.check(infini.make_jaxpr(infini.vmap(infini.grad(f)))(np.stack([X, X])))


def test_every_pass_gives_a_program_and_the_body_of_a_kernel_is_one():
    program = infini.make_jaxpr(infini.grad(lambda x: inp.tanh(x @ x.T).sum()))(X)
    for name, passed in pipeline.trace_passes(program):
        assert isinstance(check.check(passed), ir.Program), name
    kernels = [e.attrs["kernel"] for e in passed.equations if e.op.name == "kernel"]
    assert kernels and all(text.parse(repr(k.body)) == check.check(k.body) for k in kernels)
