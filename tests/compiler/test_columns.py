"""Reductions of columns walk the rows as they lie in memory, alone or behind a kernel that has the rows."""

import ml_dtypes
import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import lax
from infini.compiler import pipeline
from infini.compiler.llvm import lower, target
from infini.compiler.steps import Phase
from infini.core.ir import ArrayType
from tests.compiler.programs import program_of


def normal(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype) + dtype(0.5)


def phases(f, *arrays):
    """The phases that compute `f`."""
    types = [ArrayType(x.shape, x.dtype) for x in arrays]
    program = pipeline.run(program_of(f, *types), lower.has_route, backend="cpu")
    return [step for step in lower.lower(program, target.host_target()).steps if isinstance(step, Phase)]


def is_by_rows(phase):
    return len(phase.tasks) == 2 and phase.scratch_bytes > 0


def relative(found, expected):
    expected = np.asarray(expected, np.float64)
    return np.abs(np.asarray(found).astype(np.float64) - expected).max() / np.abs(expected).max()


# --- alone --------------------------------------------------------------------------------------

REDUCED = {
    "sum": (lambda x: x.sum(0), lambda x: x.sum(0)),
    "max": (lambda x: x.max(0), lambda x: x.max(0)),
    "mean_of_squares": (lambda x: (x * x).mean(0) * 2.0, lambda x: (x * x).mean(0) * 2.0),
}
SHAPES = [(4096, 64), (1000, 77), (67, 1009), (4099, 33), (16, 8192)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", REDUCED)
def test_columns_are_reduced_row_by_row(name, shape):
    ours, expected = REDUCED[name]
    x = normal(*shape)
    (phase,) = phases(ours, x)
    assert is_by_rows(phase)
    assert relative(infini.jit(ours)(x), expected(x.astype(np.float64))) < 1e-6


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16, np.int32])
def test_columns_of_every_width_of_element(dtype):
    x = (normal(3000, 96) * 8).astype(dtype)
    a = inp.asarray(x, dtype=dtype)
    expected = x.astype(np.float64).sum(0)
    tolerance = {8: 1e-14, 4: 0.0, 2: 5e-3}[x.dtype.itemsize]
    assert relative(infini.jit(lambda a: a.sum(0, dtype=a.dtype))(a), expected) <= tolerance


@pytest.mark.parametrize("shape", [(5, 300, 77), (64, 40, 128), (2, 131, 1009)], ids=str)
def test_columns_of_several_arrays(shape):
    x = normal(*shape)
    (phase,) = phases(lambda x: x.sum(1), x)
    assert is_by_rows(phase)
    assert relative(infini.jit(lambda x: x.sum(1))(x), x.astype(np.float64).sum(1)) < 1e-6


APART = {
    "variance": (lambda x: x.var(0), lambda x: x.var(0)),
    "mean_and_variance": (lambda x: (x.mean(0), x.var(0)), lambda x: (x.mean(0), x.var(0))),
    "log_of_sum_of_exponentials": (
        lambda x: infini.nn.logsumexp(x, axis=0),
        lambda x: np.log(np.exp(x - x.max(0)).sum(0)) + x.max(0),
    ),
}


@pytest.mark.parametrize("shape", [(4096, 96), (1003, 277)], ids=str)
@pytest.mark.parametrize("name", APART)
def test_reductions_that_need_each_other_walk_the_rows_one_after_the_other(name, shape):
    ours, expected = APART[name]
    x = normal(*shape)
    found = phases(ours, x)
    assert len(found) == 2 and all(map(is_by_rows, found))
    results = infini.tree.leaves(infini.jit(ours)(x))
    for result, wanted in zip(results, infini.tree.leaves(expected(x.astype(np.float64))), strict=True):
        assert relative(result, wanted) < 1e-6


@pytest.mark.parametrize("shape", [(100, 64), (500, 512), (64, 512, 64)], ids=str)
def test_what_a_program_finds_in_its_cache_again_is_reduced_by_one_kernel(shape):
    (phase,) = phases(lambda x: x.var(-2), normal(*shape))
    assert not is_by_rows(phase)


def test_what_is_small_or_narrow_is_not_walked_by_rows():
    for shape in [(64, 64), (20000, 16), (12, 65536)]:
        assert not any(map(is_by_rows, phases(lambda x: x.sum(0), normal(*shape))))


def test_a_result_with_rows_is_stored_on_the_way():
    x, g = normal(2000, 96), normal(2000, 96, seed=1)

    def f(x, g):
        masked = inp.where(x > 0, g, 0.0)
        return masked, masked.sum(0)

    (phase,) = phases(f, x, g)
    assert is_by_rows(phase)
    full, total = infini.jit(f)(x, g)
    np.testing.assert_array_equal(full, np.where(x > 0, g, 0))
    assert relative(total, np.where(x > 0, g, 0).astype(np.float64).sum(0)) < 1e-6


def test_a_result_with_rows_may_take_the_memory_of_an_operand():
    x = normal(2000, 96)
    step = infini.jit(lambda x: (x * 2.0, (x * 2.0).sum(0)), donate_argnums=(0,))
    full, total = step(inp.array(x))
    np.testing.assert_array_equal(full, x * 2)
    assert relative(total, (x.astype(np.float64) * 2).sum(0)) < 1e-6


def test_long_columns_round_as_little_as_pairs_do():
    x = np.full((100_000, 64), 0.1, np.float32)
    total = infini.jit(lambda x: x.sum(0))(x)
    assert relative(total, x.astype(np.float64).sum(0)) < 1e-6


def test_nan_in_a_column_is_its_maximum():
    x = normal(1000, 77)
    x[501, 3] = np.nan
    found = np.asarray(infini.jit(lambda x: x.max(0))(x))
    assert np.isnan(found[3]) and np.isnan(found).sum() == 1


# --- behind a kernel of rows --------------------------------------------------------------------


def layer_norm(x, weight, bias):
    centred = x - inp.mean(x, -1, keepdims=True)
    return centred * lax.rsqrt(inp.mean(centred * centred, -1, keepdims=True) + 1e-5) * weight + bias


def with_gradients(g, x, weight, bias):
    y, pull = infini.vjp(layer_norm, x, weight, bias)
    return y, *pull(g)


def expected_gradients(g, x, weight, bias):
    g, x, weight, bias = (a.astype(np.float64) for a in (g, x, weight, bias))
    centred = x - x.mean(-1, keepdims=True)
    scale = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    normed, inner = centred * scale, g * weight
    means = inner.mean(-1, keepdims=True) + normed * (inner * normed).mean(-1, keepdims=True)
    return normed * weight + bias, scale * (inner - means), (g * normed).sum(0), g.sum(0)


def norm_arguments(rows, width):
    return normal(rows, width, seed=1), normal(rows, width), normal(width), normal(width, seed=2)


@pytest.mark.parametrize(("rows", "width"), [(1024, 256), (1000, 77), (8000, 33)])
def test_gradients_of_a_normalisation_are_one_phase(rows, width):
    arguments = norm_arguments(rows, width)
    (phase,) = phases(with_gradients, *arguments)
    assert is_by_rows(phase)
    found = infini.jit(with_gradients)(*arguments)
    for a, b in zip(found, expected_gradients(*arguments), strict=True):
        assert relative(a, b) < 2e-6


def test_gradients_of_wide_rows_share_a_phase_of_their_own():
    arguments = norm_arguments(16, 24576)
    first, second = phases(with_gradients, *arguments)
    assert not is_by_rows(first) and is_by_rows(second)
    found = infini.jit(with_gradients)(*arguments)
    for a, b in zip(found, expected_gradients(*arguments), strict=True):
        assert relative(a, b) < 2e-6


def test_what_is_reduced_may_be_overwritten_row_by_row():
    g = normal(1024, 256)

    def f(g):
        return g - inp.mean(g, -1, keepdims=True), g.sum(0)

    (phase,) = phases(f, g)
    assert is_by_rows(phase)
    centred, total = infini.jit(f, donate_argnums=(0,), donation="require")(inp.array(g))
    wide = g.astype(np.float64)
    assert relative(centred, wide - wide.mean(-1, keepdims=True)) < 2e-6
    assert relative(total, wide.sum(0)) < 1e-6


def test_a_reduction_that_the_kernel_of_rows_needs_comes_before_it():
    x = normal(2000, 128)

    def f(x):
        y = x - x.mean(0)
        return y / inp.sqrt((y * y).mean(-1, keepdims=True))

    wide = x.astype(np.float64)
    wide = wide - wide.mean(0)
    expected = wide / np.sqrt((wide * wide).mean(-1, keepdims=True))
    assert relative(infini.jit(f)(x), expected) < 2e-6


def test_a_reduction_of_a_reduction_that_goes_behind_waits_for_it():
    x = normal(2000, 128)

    def f(x):
        y = x / inp.sqrt((x * x).mean(-1, keepdims=True))
        mean = y.mean(0)
        return y, ((y - mean) ** 2).sum(0)

    wide = x.astype(np.float64)
    normed = wide / np.sqrt((wide * wide).mean(-1, keepdims=True))
    y, spread = infini.jit(f)(x)
    assert relative(y, normed) < 2e-6
    assert relative(spread, ((normed - normed.mean(0)) ** 2).sum(0)) < 2e-6


@pytest.mark.parametrize("shape", [(512, 4, 32), (16, 768, 32)], ids=str)
def test_a_sum_that_is_made_later_has_its_other_shapes_later(shape):
    flat = (shape[0], -1)

    def f(g, x, weight, bias):
        def norm(x, weight, bias):
            return layer_norm(x.reshape(flat), weight.reshape(-1), bias.reshape(-1)).reshape(shape)

        y, pull = infini.vjp(norm, x, weight, bias)
        dx, dw, db = pull(g)
        return y, dx, dw, db.reshape(shape[2], shape[1]).reshape(shape[1:])

    g, x = normal(*shape, seed=1), normal(*shape)
    weight, bias = normal(*shape[1:]), normal(*shape[1:], seed=2)
    expected = expected_gradients(g.reshape(flat), x.reshape(flat), weight.reshape(-1), bias.reshape(-1))
    for a, b in zip(infini.jit(f)(g, x, weight, bias), expected, strict=True):
        assert relative(a, b.reshape(a.shape)) < 2e-6
