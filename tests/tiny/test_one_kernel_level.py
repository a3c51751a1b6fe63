"""Sentence 3: fused chains and hand-written kernels run on LLVM, Triton and NumPy, with equal results."""

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import lax, tile
from infini.compiler import pipeline

X = np.random.default_rng(0).standard_normal((16, 24)).astype(np.float32)
rows = tile.Tensor(2)


def one_row(tensor):
    return tensor.tile((1, -1)).squeeze(1).squeeze(0, level=1)


@tile.kernel(lambda x, y: (one_row(x), one_row(y)), tensors=(rows, tile.Tensor(shape=rows.shape)))
def by_hand(x):
    e = lax.exp(lax.tanh(x))
    return lax.div(e, lax.broadcast_in_dim(lax.reduce_sum(e, (0,)), x.shape, ()))


def fused(x):
    return inp.exp(inp.tanh(x)) / inp.exp(inp.tanh(x)).sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("f", [fused, by_hand])
def test_one_kernel_three_ways_to_run_it(f):
    emit, interpret = (pytest.importorskip(f"infini.compiler.triton.{m}") for m in ("emit", "interpret"))
    *_, (_, compiled) = pipeline.trace_passes(infini.make_jaxpr(f)(X))
    (made,) = (e for e in compiled.equations if e.op.name == "kernel")
    kernel, types = made.attrs["kernel"], [v.type for v in made.inputs]
    source = emit.emit_triton(kernel, types)
    (found,) = interpret.interpret(source, [X.reshape(types[0].shape)], kernel.outputs)
    for device in ("cpu", "reference"):
        with infini.config(device=device):
            np.testing.assert_allclose(infini.jit(f)(X), found.reshape(X.shape), rtol=2e-6)
