"""Fused programs compute what unfused ones do, in the number of kernels the fuser promises."""

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import lax
from infini.compiler import affine, cost, fuse, pipeline
from infini.core import check, dtypes
from tests.compiler import programs
from tests.compiler.programs import evaluate, f32, i32, inputs_for, kernels, program_of, random_function

B, T, H, D = 2, 6, 3, 8


def fused(f, *types):
    """The fused program, after checking that it gives the same numbers as the traced one."""
    before = program_of(f, *types)
    after = check.check(pipeline.run(before, pipeline.basis_route, backend="test"))
    inputs = [np.abs(x) if x.dtype.kind == "f" else x for x in inputs_for(types)]
    for a, b in zip(evaluate(after, inputs), evaluate(before, inputs), strict=True):
        assert a.dtype == b.dtype
        tolerance = 1e-2 if a.dtype == dtypes.bfloat16 else 2e-5
        np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=tolerance, atol=tolerance)
    return after


ONE_KERNEL = {
    "chain": (lambda x, y: inp.tanh(x * y + 1.0) * x, [f32(7, 9), f32(7, 9)]),
    "broadcast": (lambda x, y, z: x * y + z, [f32(5, 7), f32(7), f32()]),
    "softmax": (programs.softmax, [f32(4, 6, 16)]),
    "layer_norm": (programs.layer_norm, [f32(4, 6, 16), f32(16), f32(16)]),
    "adam": (programs.adam, [*[f32(12, 5)] * 4, f32()]),
    "rope": (programs.rope, [f32(B, T, H, D), f32(T, D // 2), f32(T, D // 2)]),
    "column_sum": (lambda x, y: (x * y).sum(axis=(0, 1)) * 2.0, [f32(4, 6, 80), f32(4, 6, 80)]),
    "middle_sum": (lambda x: inp.exp(x.sum(axis=1)), [f32(4, 6, 8)]),
    "column_softmax": (lambda x: inp.exp(x) / inp.exp(x).sum(axis=0), [f32(6, 10)]),
    "transposed_input": (lambda x, y: x.T + y, [f32(5, 7), f32(7, 5)]),
    "transposed_chain": (lambda x, y: inp.exp(x).T + y, [f32(5, 7), f32(7, 5)]),
    "slices": (lambda x: x[1:, ::2] * x[:-1, ::2], [f32(5, 8)]),
    "pad": (lambda x: inp.pad(x, ((1, 2), (0, 3))) * 2.0, [f32(3, 4)]),
    "concatenate": (lambda x, y: inp.concatenate([x, y * 2.0]) + 1.0, [f32(3, 4), f32(2, 4)]),
    "flip": (lambda x: lax.rev(x, (1,)) + x, [f32(3, 4)]),
    "iota_mask": (lambda x: inp.where(inp.arange(8) > inp.arange(8)[:, None], x, 0.0), [f32(8, 8)]),
    "argmax": (lambda x: inp.argmax(x * 2.0, axis=-1), [f32(4, 9)]),
    "casts": (
        lambda x, y: (x.astype("float32") * y).astype("bfloat16"),
        [f32(4, 9).update(dtype=dtypes.bfloat16), f32(4, 9)],
    ),
    "heads": (lambda x: inp.exp(x).reshape(B, T, H, D) * 2.0, [f32(B, T, H * D)]),
    "swapped_heads": (lambda x: inp.swapaxes(inp.exp(x).reshape(B, T, H, D), 1, 2), [f32(B, T, H * D)]),
    "column_bias": (lambda x, b: programs.softmax(x + b[:, None]), [f32(6, 8), f32(6)]),
    "one_element": (lambda x: x * 2.0 + 1.0, [f32()]),
    "prime": (lambda x: x * 2.0, [f32(10007)]),
    "causal": (
        lambda s: programs.softmax(inp.where(inp.arange(6)[:, None] >= inp.arange(6), s, -1e30)),
        [f32(2, 3, 6, 6)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_KERNEL)
def test_one_kernel_is_enough(name):
    f, types = ONE_KERNEL[name]
    program = fused(f, *types)
    assert len(kernels(program)) == 1
    assert {e.op.name for e in program.equations} <= {"kernel", "reshape"}


COUNTS = {
    "cross_entropy": (programs.cross_entropy, [f32(12, 40), i32(12)], 2),
    "full_sum_of_many": (lambda x: (x * x).sum(), [f32(1 << 16)], 2),
    "scattered_sum": (lambda x: x.sum(axis=(0, 2)), [f32(3, 4, 5)], 2),
    "rows_then_columns": (lambda x: programs.softmax(x).sum(axis=0), [f32(16, 40)], 2),
    "around_a_product": (lambda x, y: inp.tanh(inp.exp(x) @ y) + 1.0, [f32(4, 5), f32(5, 6)], 2),
    "residual_and_norm": (
        lambda x, y, w: (x + y, programs.layer_norm(x + y, w, w)), [f32(4, 16), f32(4, 16), f32(16)], 1,
    ),
    # Tables that are not much smaller than what they turn: each half is computed once all the same.
    "rotation_of_a_few_heads": (
        lambda x, w, cos, sin: programs.rope((x @ w).reshape(1, 8, 1, 16), cos, sin),
        [f32(1, 8, 24), f32(24, 16), f32(8, 8), f32(8, 8)], 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_number_of_kernels(name):
    f, types, expected = COUNTS[name]
    assert len(kernels(fused(f, *types))) == expected


def test_gradient_of_a_norm_recomputes_instead_of_storing():
    def loss(x, w, b):
        return (programs.layer_norm(x, w, b) ** 2).sum()

    program = fused(infini.grad(loss, argnums=(0, 1, 2)), f32(8, 32), f32(32), f32(32))
    stored = [v for e in kernels(program) for v in e.outputs if v.type.size == 8 * 32]
    # The gradient of x, the forward result, and nothing else of that size.
    assert len(stored) <= 2


def test_results_used_by_a_product_and_by_elementwise_work_share_a_kernel():
    program = fused(lambda x, y: (x * y, (x * y) @ y.T), f32(6, 5), f32(6, 5))
    assert len(kernels(program)) == 1


def test_a_group_never_depends_on_itself_through_a_product():
    def f(x, w):
        a = inp.exp(x)
        return a + (a @ w) * a

    program = fused(f, f32(5, 5), f32(5, 5))
    assert [e.op.name for e in program.equations if e.op.name != "reshape"].count("dot") == 1


def test_bodies_of_loops_are_fused():
    program = fused(lambda x: lax.scan(lambda c, r: (inp.tanh(c * r + 1.0), c.sum()), x[0], x), f32(5, 8))
    (scan,) = [e for e in program.equations if e.op.name == "scan"]
    assert len(kernels(scan.attrs["body"])) == 2 or len(kernels(scan.attrs["body"])) == 1


def test_no_fuse_gives_one_kernel_per_equation():
    with infini.config(no_fuse=True):
        program = fused(programs.softmax, f32(4, 16))
    assert all(
        sum(e.op.name not in ("reshape", "broadcast_in_dim") for e in k.attrs["kernel"].body.equations) <= 1
        for k in kernels(program)
    )


def test_random_bits_are_one_kernel():
    key = infini.random.key(0)
    f = lambda: infini.random.bits(key, (50,))  # noqa: E731
    assert len(kernels(fused(f))) <= 3


def test_equal_kernels_of_equal_layers_are_equal():
    def f(x, a, b):
        return programs.layer_norm(programs.layer_norm(x, a, a) @ inp.eye(8), b, b)

    first, *_, last = [e.attrs["kernel"] for e in kernels(fused(f, f32(4, 8), f32(8), f32(8)))]
    assert first.body == last.body or len({first, last}) == 2


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (2, 3, 4), (24,), (3, 8)])
def test_delinearize_undoes_linearize(shape):
    sizes = list(shape)
    index = tuple(affine.axis(i) for i in range(len(shape)))
    assert affine.delinearize(affine.linearize(index, shape), shape, sizes) == index


def test_delinearize_asks_for_a_finer_axis():
    with pytest.raises(affine.SplitAxis) as request:
        affine.delinearize(affine.axis(0), (3, 8), [24])
    assert affine.split([24], request.value) == [3, 8]


def test_delinearize_refuses_what_is_not_affine():
    with pytest.raises(affine.NotAffine):
        affine.delinearize(affine.flat([0, 1], [2, 5]).shifted(3), (4, 5), [2, 5])


def test_refinement_is_the_coarsest_common_one():
    assert affine.refinement([(6, 4), (2, 12)]) == [2, 3, 4]
    assert affine.refinement([(6, 4), (4, 6)]) is None


@pytest.mark.parametrize("seed", range(40))
def test_random_programs(seed):
    fused(random_function(seed), f32(4, 6), f32(6), f32(2, 4, 6))


# Found by a thousand random programs: reshapes that are not affine inside a kernel, results of one kernel
# whose shapes
# cut the domain in different places, a group that reads another at a reversed index.
@pytest.mark.parametrize(
    "f",
    [
        lambda x: ((x * 2.0).reshape(6, 4).T + 1.0).reshape(8, 3).sum(axis=0),
        lambda x: (inp.tanh(x), inp.tanh(x).reshape(6, 4) * 3.0),
        lambda x: inp.concatenate([x.reshape(6, 4), x.reshape(6, 4) + 1.0]).reshape(3, 16) * 2.0,
        lambda x: (lax.rev(x * x + x, (1,)), lax.rev(x * x + x, (1,)) * 0.5 + (x * x + x)),
    ],
)
def test_what_random_programs_found(f):
    fused(f, f32(4, 6))


def test_fuse_keeps_programs_without_fusable_equations():
    program = program_of(lambda x: x, f32(3))
    assert fuse.fuse(program) == program


def test_an_extent_bounds_the_grid_of_everything_that_keeps_the_dimension():
    def f(x, w, n):
        y = programs.layer_norm(x, w, w)
        return y * 2.0, (y @ w[:, None])[:, 0] + 1.0

    program = pipeline.run(
        program_of(f, f32(16, 8), f32(8), i32()),
        pipeline.basis_route,
        backend="test",
        declared=((2, ((0, 0),)),),
    )
    check.check(program)
    assert [bool(k.attrs["kernel"].extents) for k in kernels(program)] == [
        k.attrs["kernel"].num_programs > 1 for k in kernels(program)
    ]
    inputs = [*inputs_for([f32(16, 8), f32(8)]), np.int32(5)]
    for a, b in zip(
        evaluate(program, inputs), evaluate(program_of(f, f32(16, 8), f32(8), i32()), inputs), strict=True
    ):
        np.testing.assert_allclose(a[:5], b[:5], rtol=1e-4, atol=1e-5)


def test_an_extent_does_not_bound_what_sums_over_the_dimension():
    program = pipeline.run(
        program_of(lambda x, n: (x * x).sum(axis=0), f32(16, 8), i32()), pipeline.basis_route, backend="test",
        declared=((1, ((0, 0),)),),
    )  # fmt: skip
    assert not any(k.attrs["kernel"].extents for k in kernels(program))


def test_a_value_read_at_shifted_places_is_not_computed_once_for_each_of_them():
    program = fused(lambda x: inp.cumsum(x, axis=-1), f32(2, 1024))
    sizes = [len(equation.attrs["kernel"].body.equations) for equation in kernels(program)]
    assert sum(sizes) < 400  # all ten steps in one would be thousands


def test_what_several_parts_of_a_view_read_is_computed_once() -> None:
    def f(x: infini.Array, w: infini.Array, c: infini.Array) -> infini.Array:
        y = (x @ w).reshape(8, 4, 16)
        y = inp.concatenate([y[..., 8:], y[..., :8]], -1) * c
        y = inp.tanh(inp.sin(inp.exp(y))).transpose(1, 0, 2)
        first, second = y[..., :8], y[..., 8:]
        return inp.concatenate([first * 2 - second, second * 2 + first], -1)

    program = fused(f, f32(32, 24), f32(24, 16), f32(16))
    assert sum(cost.work(k)["transcendentals"] for k in kernels(program)) == 3 * 8 * 4 * 16


def test_a_parameter_that_a_kernel_cannot_read_takes_the_kernel_apart() -> None:
    def f(b: infini.Array, w: infini.Array, c: infini.Array) -> tuple[infini.Array, ...]:
        p = inp.broadcast_to(b, (3, 4)) * inp.mean(c)
        r = (p @ inp.tanh(w @ w) @ w) * 0.3
        return inp.tanh(p + 0.5 * c), b + r.sum(axis=0), c @ w

    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in ((4,), (4, 4), (3, 4))]
    found = infini.jit(f)(*arrays)
    with infini.config(disable_jit=True):
        expected = f(*map(inp.asarray, arrays))
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)


def test_a_result_of_another_operation_that_a_kernel_cannot_read_takes_the_kernel_apart() -> None:
    def f(x: infini.Array) -> infini.Array:
        wide = lax.pad(x, np.float32(1), [(0, 0, 0), (0, 0, 0), (0, 0, 1)])
        weights = np.cos(np.arange(6, dtype=np.float32)).reshape(1, 2, 3)
        return (wide * weights).sum() + x.max(axis=(-2, -1)).sum()

    x = np.random.default_rng(0).normal(size=(1, 2, 2)).astype(np.float32)
    found = infini.grad(infini.checkpoint(f))(x)  # which reads x behind a barrier
    np.testing.assert_allclose(found, infini.grad(f)(x), rtol=1e-5)


def test_sizes_of_one_that_are_added_are_no_array_of_their_own() -> None:
    def f(x):
        total = lax.broadcast_in_dim(x.sum(-1), (x.shape[0], 1), (0,))
        return x + total, total

    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    with infini.config(device="cpu"):
        added, total = infini.jit(f)(x)
    np.testing.assert_array_equal(total, x.sum(-1, keepdims=True))
    np.testing.assert_array_equal(added, x + x.sum(-1, keepdims=True))
