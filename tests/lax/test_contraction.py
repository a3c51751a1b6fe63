"""Contractions where dtypes, precision, sizes or groups are hard; values are compared with JAX in the parity
tests, and every dtype with its definition in the oracle tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.compiler import partition, pipeline
from infini.compiler.llvm import lower
from infini.core import errors
from infini.core.ir import Equation, Program
from infini.core.mesh import AbstractMesh
from infini.lax import precision
from infini.sharding import NamedSharding, P, make_mesh

MATRICES = (((1,), (0,)), ((), ()))


def equations(program: Program) -> Iterator[Equation]:
    for equation in program.equations:
        yield equation
        for inner in equation.programs:
            yield from equations(inner)


def names(program: Program) -> Counter[str]:
    return Counter(e.op.name for e in equations(program))


# --- dtypes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "right", "wanted", "result"),
    [
        ("int8", "int8", None, "int8"),
        ("int8", "int8", "int32", "int32"),
        ("int8", "uint8", None, "int8"),
        ("uint8", "int8", "int32", "int32"),
        ("int32", "int32", "float32", "float32"),
        ("int8", "float32", None, "float32"),
        ("bool", "bool", None, "bool"),
        ("bfloat16", "float32", None, "float32"),
        ("float16", "bfloat16", None, "bfloat16"),
        ("bfloat16", "bfloat16", "float32", "float32"),
        ("float32", "float32", "bfloat16", "bfloat16"),
        ("float8_e4m3fn", "float8_e5m2", None, "float8_e5m2"),
        ("float8_e4m3fn", "float8_e4m3fn", "float32", "float32"),
        ("complex64", "float32", None, "complex64"),
    ],
)
def test_dtypes_of_operands_and_results(
    left: str, right: str, wanted: str | None, result: str, rng: np.random.Generator
) -> None:
    a, b = rng.integers(0, 2, (4, 5)), rng.integers(0, 2, (5, 3))  # sums that 8-bit floats hold
    x, y = inp.asarray(a).astype(left), inp.asarray(b).astype(right)
    found = inf.jit(lambda x, y: lax.dot(x, y, preferred_element_type=wanted))(x, y)
    assert found.dtype == inp.dtype(result)
    exact = (a.astype(bool) @ b.astype(bool)) if result == "bool" else (a @ b)
    np.testing.assert_array_equal(np.asarray(found), exact.astype(found.dtype))


def test_unsigned_bytes_keep_their_value_beside_signed_ones() -> None:
    x, y = inp.full((1, 2), 200, "uint8"), inp.full((2, 1), -3, "int8")
    assert int(lax.dot(x, y, preferred_element_type="int32")[0, 0]) == -1200


def test_gradients_have_the_dtypes_of_the_operands() -> None:
    x, y = inp.ones((2, 3), "bfloat16"), inp.ones((3, 2), "float32")
    found = inf.grad(lambda x, y: lax.dot(x, y).sum(), (0, 1))(x, y)
    assert [g.dtype for g in found] == [x.dtype, y.dtype]


@pytest.mark.parametrize(
    "shapes", [((3, 0), (0, 2)), ((0, 3), (3, 2)), ((2, 3), (3, 0)), ((0,), (0,))], ids=str
)
def test_without_elements_sums_are_zero(shapes: Any) -> None:
    x, y = (inp.ones(shape) for shape in shapes)
    found = inf.jit(lax.dot)(x, y)
    assert found.shape == np.zeros(shapes[0]).dot(np.zeros(shapes[1])).shape and not np.asarray(found).any()
    gradient = inf.grad(lambda x: lax.dot(x, y).sum())(x)
    assert gradient.shape == x.shape


# --- precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        *(None, "highest", "float32", "tensorfloat32", lax.Precision.HIGH, ("high", "default")),
        *((lax.Precision.HIGHEST, lax.Precision.DEFAULT), "F32_F32_F32"),
        *(lax.DotAlgorithmPreset.TF32_TF32_F32, lax.DotAlgorithm("float32", "float32", "float32")),
    ],
    ids=str,
)
def test_every_form_of_precision_is_accepted(given: Any) -> None:
    x = inp.full((2, 2), 1 + 2.0**-12)
    np.testing.assert_allclose(lax.dot(x, x, precision=given), 2 + 2.0**-10, rtol=1e-6)
    np.testing.assert_allclose(inp.matmul(x, x, precision=given), 2 + 2.0**-10, rtol=1e-6)


def test_an_algorithm_rounds_the_operands() -> None:
    x = inp.full((1, 1), 1 + 2.0**-12)
    assert float(lax.dot(x, x, precision="BF16_BF16_F32")[0, 0]) == 1.0
    assert float(lax.dot(x, x, precision="BF16_BF16_F32_X3")[0, 0]) == pytest.approx(1 + 2.0**-11, rel=1e-7)
    half = lax.DotAlgorithm("float16", "float16", "float32")
    assert float(lax.dot(x, x, precision=half)[0, 0]) == 1.0


def test_eight_bit_algorithms_refuse_wider_operands() -> None:
    with pytest.raises(errors.ValueMismatchError, match="8-bit floats"):
        lax.dot(inp.ones((2, 2)), inp.ones((2, 2)), precision="ANY_F8_ANY_F8_F32")


@pytest.mark.parametrize(
    "given", ["fast", 3, ("high",), (None, None), lax.dot], ids=["text", "number", "one", "none", "function"]
)
def test_anything_else_is_no_precision(given: Any) -> None:
    with pytest.raises(errors.ValueMismatchError, match="no precision"):
        precision.canonical(given)


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((((2,), (0,)), ((), ())), "a dimension of lhs does not exist"),
        ((((1,), (-1,)), ((), ())), "a dimension of rhs does not exist"),
        ((((1, 1), (0, 1)), ((), ())), "a dimension of lhs occurs twice"),
        ((((1,), (0,)), ((1,), (1,))), "a dimension of lhs occurs twice"),
        ((((0,), (0,)), ((), ())), r"contracting dimensions .*\n.*lhs_contracting \(0,\) of sizes \(2,\)"),
        ((((1,), (0,)), ((0,), (1,))), "batch dimensions of lhs and rhs differ"),
        ((((1,), (0, 1)), ((), ())), "contracting dimensions of lhs and rhs differ"),
    ],
    ids=lambda value: str(value) if isinstance(value, tuple) else "",
)
def test_errors_name_the_dimensions(numbers: Any, message: str) -> None:
    with pytest.raises(errors.TypeMismatchError, match=message):
        lax.dot_general(inp.ones((2, 3)), inp.ones((3, 4)), numbers)


def test_dot_refuses_what_is_no_matrix() -> None:
    with pytest.raises(errors.ValueMismatchError, match="vectors and matrices"):
        lax.dot(inp.ones((2, 3, 4)), inp.ones((4, 2)))
    assert lax.dot(
        inp.ones((2, 3, 4)), inp.ones((4, 2)), dimension_numbers=(((2,), (0,)), ((), ()))
    ).shape == (2, 3, 2)


def test_batch_matmul_needs_equal_ranks() -> None:
    assert lax.batch_matmul(inp.ones((2, 3, 4)), inp.ones((2, 4, 5))).shape == (2, 3, 5)
    with pytest.raises(errors.ValueMismatchError, match="equal rank"):
        lax.batch_matmul(inp.ones((3, 4)), inp.ones((2, 4, 5)))


def test_a_result_is_placed_where_out_sharding_says() -> None:
    mesh = make_mesh((1,), ("data",))
    program = inf.make_jaxpr(
        lambda x: lax.dot_general(x, x, MATRICES, out_sharding=NamedSharding(mesh, P("data")))
    )(np.ones((2, 2), np.float32))
    assert names(program)["sharding_constraint"] == 1
    with pytest.raises(errors.TypeMismatchError, match="out_sharding is a placement"):
        lax.dot_general(inp.ones((2, 2)), inp.ones((2, 2)), MATRICES, out_sharding="data")


def test_the_gradient_of_shared_weights_under_vmap_adds_up_inside_the_contraction() -> None:
    def loss(w: Any, xs: Any) -> Any:
        return inf.vmap(lambda x: (x @ w).sum())(xs).sum()

    program = inf.make_jaxpr(inf.grad(loss))(np.ones((3, 4), np.float32), np.ones((8, 5, 3), np.float32))
    assert [e.outputs[0].type.shape for e in equations(program) if e.op.name == "dot"][-1] == (3, 4)


# --- groups ---------------------------------------------------------------------------------------

RAGGED = [(9, [2, 4, 3]), (9, [2, 0, 3]), (5, [5]), (700, [70] * 10), (300, [0] * 9 + [300] + [0] * 10)]


@pytest.mark.parametrize(("rows", "sizes"), RAGGED, ids=str)
def test_each_row_meets_the_matrix_of_its_group(
    rows: int, sizes: list[int], rng: np.random.Generator
) -> None:
    x, y = rng.standard_normal((rows, 4)).astype("f"), rng.standard_normal((len(sizes), 4, 3)).astype("f")
    ct = rng.standard_normal((rows, 3)).astype("f")
    owner = np.repeat(np.arange(len(sizes)), sizes)
    expected, dx, dy = np.zeros((rows, 3), "f"), np.zeros_like(x), np.zeros_like(y)
    for row, group in enumerate(owner):
        expected[row] = x[row] @ y[group]
        dx[row] = y[group] @ ct[row]
        dy[group] += np.outer(x[row], ct[row])
    groups = np.asarray(sizes, np.int32)
    found, pullback = inf.vjp(lambda x, y: lax.ragged_dot(x, y, groups), x, y)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    for gradient, wanted in zip(pullback(inp.asarray(ct)), (dx, dy), strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-4)


def test_many_groups_do_not_multiply_the_work() -> None:
    """A loop over blocks of rows, not one product with every matrix for every row."""
    x, y, sizes = np.zeros((4096, 8), "f"), np.zeros((64, 8, 8), "f"), np.zeros(64, np.int32)
    steps = dict(pipeline.trace_passes(inf.make_jaxpr(lax.ragged_dot)(x, y, sizes), lower.has_route))
    (loop,) = (e for e in steps["decompose"].equations if e.op.name == "scan")
    assert loop.attrs["length"] == 4096 // 128 + 64
    assert max(v.type.size for e in equations(steps["decompose"]) for v in e.outputs) <= x.size


def test_groups_of_a_batch_are_mapped() -> None:
    x, y = np.ones((2, 6, 3), "f"), np.arange(2 * 3 * 4, dtype="f").reshape(2, 3, 4)
    sizes = np.asarray([[2, 4], [5, 1]], np.int32)
    found = inf.vmap(lax.ragged_dot, (0, None, 0))(x, y, sizes)
    expected = [lax.ragged_dot(a, y, s) for a, s in zip(x, sizes, strict=True)]
    np.testing.assert_allclose(found, np.stack(expected))


def test_features_of_groups_are_split_and_rows_gathered() -> None:
    program = inf.make_jaxpr(lax.ragged_dot)(
        np.zeros((8, 4), "f"), np.zeros((2, 4, 6), "f"), np.zeros(2, np.int32)
    )
    for specs, expected in (
        ((P(), P(None, None, "m"), P()), {}),
        ((P(None, "m"), P(None, "m"), P()), {"psum": 1}),
    ):
        found = partition.partition(program, AbstractMesh(("m",), (2,)), [tuple(s) for s in specs])
        assert Counter(c.name for c in found.collectives) == expected


def test_group_sizes_are_checked() -> None:
    with pytest.raises(errors.TypeMismatchError, match="another number of groups"):
        lax.ragged_dot(inp.ones((4, 2)), inp.ones((2, 2, 2)), inp.asarray([1, 1, 2]))
    with pytest.raises(errors.TypeMismatchError, match="group_sizes are integers"):
        lax.ragged_dot(inp.ones((4, 2)), inp.ones((2, 2, 2)), inp.ones(2))
