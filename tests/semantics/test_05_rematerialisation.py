"""Design 4a.5: recomputation is fenced, and pays in memory."""

import numpy as np

import infini
import infini.numpy as inp

ROWS, WIDTH, DEPTH = 256, 256, 8


def network(wrap):
    def layer(w, x):
        return inp.tanh(inp.exp(inp.sin(x @ w)) * x)

    def loss(weights, x):
        for w in weights:
            x = wrap(layer)(w, x)
        return x.sum()

    return loss


def arguments():
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) * 0.05 for _ in range(DEPTH)]
    return weights, rng.standard_normal((ROWS, WIDTH)).astype(np.float32)


def test_checkpoint_changes_no_gradient():
    plain = infini.jit(infini.grad(network(lambda f: f)))(*arguments())
    saved = infini.jit(infini.grad(network(infini.checkpoint)))(*arguments())
    for a, b in zip(plain, saved, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_checkpoint_lowers_the_peak_of_the_plan():
    def temporaries(wrap):
        compiled = infini.jit(infini.grad(network(wrap))).lower(*arguments()).compile()
        return compiled.memory_analysis()["temp bytes"]

    assert temporaries(infini.checkpoint) < 0.75 * temporaries(lambda f: f)


def test_the_fence_survives_common_subexpressions():
    # Without the barrier the recomputed layers would be merged with the first computation.
    def dots(wrap):
        compiled = infini.jit(infini.grad(network(wrap))).lower(*arguments()).compile()
        return compiled.as_text("kernels").count(" = dot(")

    assert dots(infini.checkpoint) > dots(lambda f: f)
