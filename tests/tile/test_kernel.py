"""The kernel language: what a kernel computes, its specialisations, and how it takes part in transforms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import infini as inf
from infini import lax, tile
from infini.backends.reference.interpreter import evaluate
from infini.core import check, dtypes, errors, ir, text, trace
from infini.core.ir import ArrayType
from infini.tile import Tensor, block_size, program as kernel_
from tests.tile import kernels

F32 = dtypes.float32


@pytest.fixture(autouse=True)
def on_backend(backend_name: str) -> Any:
    """Every test runs on the oracle and on the CPU."""
    with inf.config(device=backend_name):
        yield


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


# --- results ---------------------------------------------------------------------------------


def test_elementwise_kernel(rng: Any) -> None:
    x, y = normal(rng, 1000), normal(rng, 1000)
    z = (x + y).astype(np.float64)
    expected = 0.5 * z * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
    np.testing.assert_allclose(kernels.add_gelu(x, y), expected, rtol=1e-5, atol=1e-6)


def test_row_softmax(rng: Any) -> None:
    x = normal(rng, 5, 37)
    p = np.exp(x - x.max(1, keepdims=True))
    np.testing.assert_allclose(kernels.softmax(x), p / p.sum(1, keepdims=True), rtol=1e-5)


def test_matmul_walks_levels(rng: Any) -> None:
    x, y = normal(rng, 70, 50), normal(rng, 50, 40)
    found = kernels.matmul.configure(BM=32, BN=16, BK=16)(x, y)
    np.testing.assert_allclose(found, x @ y, rtol=1e-4, atol=1e-4)


def test_rms_norm_takes_static_options(rng: Any) -> None:
    x, w = normal(rng, 6, 20), normal(rng, 20)
    expected = x / np.sqrt((x * x).mean(1, keepdims=True) + 0.5) * w
    np.testing.assert_allclose(kernels.rms_norm(x, w, eps=0.5), expected, rtol=1e-5)


def test_bfloat16_kernel(rng: Any) -> None:
    x = normal(rng, 32, 32).astype(dtypes.bfloat16)
    found = np.asarray(kernels.matmul(x, x)).astype(np.float32)
    np.testing.assert_allclose(found, x.astype(np.float32) @ x.astype(np.float32), rtol=1e-2, atol=1e-2)


def test_program_id_is_along_the_grid_of_the_arrangement() -> None:
    x = Tensor(3)

    @tile.kernel(
        lambda x, y: (x.tile((1, 1, -1)).squeeze(2).flatten().squeeze((0, 1), level=1), y),
        tensors=(x, Tensor(shape=(x.shape[0] * x.shape[1],))),
    )
    def number(row: Any) -> Any:
        return tile.program_id(0)

    np.testing.assert_array_equal(number(np.zeros((3, 4, 5), np.float32)), np.arange(12))


def test_several_results_have_their_own_dtypes(rng: Any) -> None:
    x, block = Tensor(1), block_size(16, 64)
    results = (Tensor(shape=x.shape, dtype="float32"), Tensor(shape=x.shape, dtype="int32"))

    @tile.kernel(lambda *ts: [t.tile((block,)) for t in ts], tensors=(x, *results), num_results=2)
    def split(x: Any) -> Any:
        whole = lax.floor(x)
        return lax.sub(x, whole), whole

    values = normal(rng, 50).astype(dtypes.bfloat16)
    fraction, whole = split(values)
    assert fraction.dtype == F32 and whole.dtype == dtypes.int32
    np.testing.assert_array_equal(whole, np.floor(values.astype(np.float32)).astype(np.int32))


def test_a_python_number_takes_the_dtype_of_a_scalar_tensor() -> None:
    x = Tensor(1)

    @tile.kernel(
        lambda x, a, y: (x.tile((8,)), a, y.tile((8,))),
        tensors=(x, Tensor(0, dtype="bfloat16"), Tensor(shape=x.shape)),
    )
    def scaled(x: Any, a: Any) -> Any:
        return lax.mul(x, lax.broadcast_in_dim(a, x.shape, ()))

    assert scaled(np.ones(20, dtypes.bfloat16), 3).dtype == dtypes.bfloat16


# --- specialisation --------------------------------------------------------------------------


def test_equal_types_share_a_specialisation() -> None:
    types = [ArrayType((100,), F32)] * 2
    assert kernels.add_gelu.specialize(types) is kernels.add_gelu.specialize(types)


def test_block_sizes_do_not_exceed_what_the_operands_fill() -> None:
    kernel = kernels.add_gelu.specialize([ArrayType((100,), F32)] * 2)
    assert kernel.loads[0].tile == (128,)
    large = kernels.add_gelu.specialize([ArrayType((1 << 20,), F32)] * 2)
    assert large.loads[0].tile == (1024,) and large.grid == (1024,)


def test_block_sizes_bound_the_largest_tile() -> None:
    kernel = kernels.matmul.specialize([ArrayType((1024, 1024), F32)] * 2)
    assert kernel.loads[0].tile == (16, 64, 64) and kernel.loads[0].levels == 1


def test_results_do_not_depend_on_block_sizes(rng: Any) -> None:
    x, y = normal(rng, 40, 64), normal(rng, 64, 24)
    first = kernels.matmul.configure(BM=16, BN=16, BK=64)(x, y)
    np.testing.assert_allclose(
        kernels.matmul.configure(BM=64, BN=32, BK=64)(x, y), first, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("choice", [{"BM": 8}, {"BM": 24}, {"BX": 16}], ids=str)
def test_configure_refuses_what_is_out_of_bounds(choice: dict[str, int]) -> None:
    with pytest.raises(errors.ValueMismatchError):
        kernels.matmul.configure(**choice)


def test_the_body_is_a_program_that_the_checker_accepts() -> None:
    kernel = kernels.softmax.specialize([ArrayType((5, 37), F32)])
    check.check(kernel.body)
    program = ir.single_equation(kernel_.kernel_p, [ArrayType((5, 37), F32)], ir.Attrs({"kernel": kernel}))
    assert text.parse(text.print_program(check.check(program))) == program


# --- errors ----------------------------------------------------------------------------------


def test_operands_of_another_rank_are_refused() -> None:
    with pytest.raises(errors.TypeMismatchError, match="operand 1 does not fit"):
        kernels.matmul(np.zeros((4, 4), np.float32), np.zeros(4, np.float32))


def test_operands_whose_shared_sizes_differ_are_refused() -> None:
    with pytest.raises(errors.TypeMismatchError, match="operand 1"):
        kernels.rms_norm(np.zeros((4, 8), np.float32), np.zeros(9, np.float32))


def test_an_unknown_result_shape_says_what_to_give() -> None:
    x = Tensor(1)
    copy = tile.kernel(lambda x, y: (x.tile((4,)), y.tile((4,))), tensors=(x, Tensor(1)))(lambda x: x)
    with pytest.raises(errors.TypeMismatchError, match="shape="):
        copy(np.zeros(8, np.float32))


def test_a_tile_of_the_wrong_shape_is_refused() -> None:
    x = Tensor(1)
    total = tile.kernel(lambda x, y: (x.tile((4,)), y.tile((4,))), tensors=(x, Tensor(shape=x.shape)))
    with pytest.raises(errors.TypeMismatchError, match="another shape"):
        total(lambda x: lax.reduce_sum(x, (0,)))(np.zeros(8, np.float32))


def test_captured_arrays_are_refused() -> None:
    x, table = Tensor(1), inf.numpy.arange(100)
    wrong = tile.kernel(lambda x, y: (x.tile((4,)), y.tile((4,))), tensors=(x, Tensor(shape=x.shape)))
    with pytest.raises(errors.TypeMismatchError, match="from outside"):
        wrong(lambda x: lax.add(x, table[:4]))(np.zeros(8, np.int32))


def test_program_id_outside_an_application_is_refused() -> None:
    with pytest.raises(errors.ValueMismatchError, match="program_id"):
        tile.program_id(0)


# --- transforms ------------------------------------------------------------------------------


def test_jit_keeps_the_kernel(rng: Any) -> None:
    x = normal(rng, 4, 10)
    np.testing.assert_allclose(inf.jit(lambda x: kernels.softmax(x))(x), kernels.softmax(x), rtol=1e-6)


@pytest.mark.parametrize("in_axes", [(0, None), (1, 0), (None, 0)], ids=str)
def test_vmap_adds_a_dimension_of_the_grid(in_axes: tuple[Any, Any], rng: Any) -> None:
    x = normal(rng, 3, 4, 5) if in_axes[0] is not None else normal(rng, 4, 5)
    x = np.moveaxis(x, 0, in_axes[0]) if in_axes[0] else x
    w = normal(rng, 3, 5) if in_axes[1] is not None else normal(rng, 5)
    found = inf.vmap(kernels.rms_norm_by_definition, in_axes=in_axes)(x, w)
    plain = inf.vmap(kernels.norm_definition, in_axes=in_axes)(x, w)
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-6)


def test_vmap_of_a_kernel_is_one_kernel() -> None:
    kernel = kernels.softmax.specialize([ArrayType((5, 37), F32)])
    batched = kernel_.batch_kernel(kernel, [True], 3)
    assert batched.grid == (3, 5)
    x = np.random.default_rng(0).standard_normal((3, 5, 37)).astype(np.float32)
    (found,) = kernel_.interpret(batched, [x], evaluate)
    np.testing.assert_allclose(found, [kernels.softmax(row) for row in x], rtol=1e-6)


@pytest.mark.parametrize(
    "kernel", [kernels.rms_norm, kernels.rms_norm_by_definition], ids=["vjp", "definition"]
)
def test_grad_equals_that_of_the_definition(kernel: Any, rng: Any) -> None:
    x, w, g = normal(rng, 6, 20), normal(rng, 20), normal(rng, 6, 20)
    loss = lambda f: lambda x, w: lax.reduce_sum(lax.mul(f(x, w), g), (0, 1))  # noqa: E731
    found = inf.grad(loss(kernel), argnums=(0, 1))(x, w)
    wanted = inf.grad(loss(kernels.norm_definition), argnums=(0, 1))(x, w)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "kernel", [kernels.rms_norm, kernels.rms_norm_by_definition], ids=["vjp", "definition"]
)
def test_grad_under_jit_and_vmap(kernel: Any, rng: Any) -> None:
    x, w = normal(rng, 3, 2, 8), normal(rng, 8)

    def gradient(f: Any) -> Any:
        return inf.jit(inf.vmap(inf.grad(lambda x, w: lax.reduce_sum(f(x, w), (0, 1))), in_axes=(0, None)))

    np.testing.assert_allclose(
        gradient(kernel)(x, w), gradient(kernels.norm_definition)(x, w), rtol=1e-4, atol=1e-5
    )


def test_jvp_of_a_kernel_with_a_definition(rng: Any) -> None:
    x, w, t = normal(rng, 4, 8), normal(rng, 8), normal(rng, 4, 8)
    found = inf.jvp(lambda x: kernels.rms_norm_by_definition(x, w), (x,), (t,))
    wanted = inf.jvp(lambda x: kernels.norm_definition(x, w), (x,), (t,))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_kernel_without_a_derivative_says_how_to_give_one(rng: Any) -> None:
    x = normal(rng, 8)
    with pytest.raises(errors.MissingRuleError, match="definition="):
        inf.grad(lambda x: lax.reduce_sum(kernels.add_gelu(x, x), (0,)))(x)


def test_both_vjp_and_definition_are_refused() -> None:
    x = Tensor(1)
    with pytest.raises(errors.TypeMismatchError, match="not both"):
        tile.kernel(lambda x, y: (x, y), tensors=(x, x), vjp=(len, len), definition=len)(lambda x: x)


def test_a_kernel_stages_one_equation() -> None:
    staged = trace.stage(lambda x: [kernels.softmax(x)], [ArrayType((5, 37), F32)])
    assert [e.op.name for e in staged.program.equations] == ["kernel"]
