"""What the tests of pipelines share: stages, the same computation on one device, and a step against it."""

import itertools

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import parallel, random
from infini.core import tree
from infini.sharding import P, make_mesh

ROWS, MICROBATCHES = 16, 4
# Name of the schedule, ranks, chunks.
SCHEDULES = [("gpipe", 4, 4), ("1f1b", 4, 4), ("gpipe", 2, 4), ("interleaved", 2, 4), ("1f1b", 1, 1)]


def affine(rng, rows, columns):
    """A weight in PyTorch's layout (out, in), and a bias."""
    weight = rng.normal(size=(columns, rows)) / np.sqrt(rows)
    return {"weight": weight.astype(np.float32), "bias": rng.normal(size=columns).astype(np.float32)}


def layer(params, x):
    return inp.tanh(x @ params["weight"].T + params["bias"])


def squares(y, t):
    return ((y - t) ** 2).mean()


def arguments(rng, widths):
    """Parameters of layers between widths, inputs and targets."""
    params = [affine(rng, *pair) for pair in itertools.pairwise(widths)]
    x, t = (rng.normal(size=(ROWS, n)).astype(np.float32) for n in (widths[0], widths[-1]))
    return params, x, t


def unsharded(stages, loss, params, inputs, targets, key=None, count=MICROBATCHES):
    """Mean of the losses of microbatches and its gradient, on one device."""

    def cut(x, i):
        return tree.map(lambda leaf: leaf[i * len(leaf) // count : (i + 1) * len(leaf) // count], x)

    def total(params):
        losses = []
        for i in range(count):
            x = cut(inputs, i)
            for c, (stage, part) in enumerate(zip(stages, params, strict=True)):
                keys = [] if key is None else [random.fold_in(random.fold_in(key, i), c)]
                x = stage(part, x, *keys)
            losses.append(loss(x, cut(targets, i)))
        return sum(losses) / count

    return inf.jit(inf.value_and_grad(total, allow_int=True))(list(params))


def assert_equal(found, expected, tolerance=1e-5, largest=0.0):
    """Gradients agree in the largest norm, leaf by leaf; leaves smaller than `largest` count as that."""
    for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        if a.dtype != inf.float0:
            a, b = (np.asarray(x).astype(np.float64) for x in (a, b))
            assert np.abs(a - b).max(initial=0) <= tolerance * max(np.abs(b).max(initial=1e-30), largest)


def norm_of(leaves):
    return np.sqrt(sum((np.asarray(x).astype(np.float64) ** 2).sum() for x in leaves))


def check(stages, loss, params, inputs, targets, *, key=None, tolerance=1e-5, **options):
    """A step of a pipeline over two ranks against one device. Returns pipeline and gradient."""
    options = {"mesh": make_mesh((2,), ("pp",)), "num_microbatches": MICROBATCHES, **options}
    step = parallel.pipeline(stages, loss, **options)
    found = step(params, inputs, targets, key=key)
    expected = unsharded(stages, loss, params, inputs, targets, key)
    assert_equal(found, expected, tolerance)
    assert float(step.evaluate(params, inputs, targets, key=key)) == pytest.approx(float(found[0]))
    return step, found[1]


def two_layers(params, x):
    """Megatron's pair: columns, then rows."""
    return layer(params["down"], layer(params["up"], x))


def pairs(rng, count, width=8):
    return [
        {"up": affine(rng, width, 2 * width), "down": affine(rng, 2 * width, width)} for _ in range(count)
    ]


TENSOR = {"up": {"weight": P("tp", None), "bias": P("tp")}, "down": {"weight": P(None, "tp"), "bias": P()}}
