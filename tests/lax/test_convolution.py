"""Convolutions where lowering, batching and placement are hard; values are compared with JAX in the parity
tests, and every dtype with its definition in the oracle tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.compiler import partition, pipeline
from infini.compiler.llvm import lower
from infini.core import errors, primitive, text
from infini.core.ir import Equation, Program
from infini.core.mesh import AbstractMesh
from infini.lax import convolution
from infini.lax.convolution import lowering, spec as spec_
from infini.sharding import P
from infini.testing.tolerances import assert_close

NHWC = ("NHWC", "HWIO", "NHWC")


def drawn(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def equations(program: Program) -> Iterator[Equation]:
    for equation in program.equations:
        yield equation
        for inner in equation.programs:
            yield from equations(inner)


def names(program: Program) -> Counter[str]:
    return Counter(e.op.name for e in equations(program))


def lowered(f: Callable[..., Any], *args: Any) -> Program:
    """The program after decomposition, before anything is fused."""
    program = inf.make_jaxpr(f)(*args)
    steps = dict(pipeline.trace_passes(program, lower.has_route))
    return steps["decompose"]


def conv(x: Any, w: Any, strides: Any = (1, 1), padding: Any = "SAME", **options: Any) -> Any:
    return lax.conv_general_dilated(x, w, strides, padding, **options)


# --- the operation --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text_", ["nc,oc->n", "nc0,oc->no0", "nc1,oc1->no1", "nc0,oc0->no0x", "nn0,oc0->no0", "nc0->no0"]
)
def test_a_spec_names_each_dimension_twice_or_more(text_: str) -> None:
    with pytest.raises(errors.ValueMismatchError, match="no convolution"):
        spec_.parse(text_)


def test_a_program_with_a_convolution_prints_and_parses() -> None:
    program = inf.make_jaxpr(lambda x, w: conv(x, w, (2, 1), ((1, 0), (-1, 2)), rhs_dilation=(1, 2)))(
        np.ones((1, 2, 6, 7), np.float32), np.ones((3, 2, 2, 2), np.float32)
    )
    printed = text.print_program(program)
    assert text.parse(printed) == program
    assert 'spec="nc01,oc01->no01"' in printed


def test_derivatives_of_any_order_are_convolutions() -> None:
    def second(x: Any, w: Any) -> Any:
        inner = inf.grad(lambda x, w: (conv(x, w, feature_group_count=2) ** 2).sum(), 1)
        return inf.grad(lambda x: (inner(x, w) ** 2).sum())(x)

    program = inf.make_jaxpr(second)(np.ones((1, 4, 5, 5), np.float32), np.ones((6, 2, 3, 3), np.float32))
    found = names(program)
    assert found["conv"] >= 4 and not {"dot", "scatter_add", "gather", "scan"} & set(found)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)], ids=str)
def test_vmap_is_one_convolution(axes: tuple[int | None, int | None]) -> None:
    x, w = np.ones((3, 1, 2, 6, 7), np.float32), np.ones((3, 3, 2, 2, 2), np.float32)
    args = [v if axis == 0 else v[0] for v, axis in zip((x, w), axes, strict=True)]
    assert names(inf.make_jaxpr(inf.vmap(conv, axes))(*args)) == {"conv": 1}


def test_the_gradient_of_shared_weights_under_vmap_adds_up_inside_the_convolution() -> None:
    def loss(w: Any, xs: Any) -> Any:
        return inf.vmap(lambda x: (conv(x, w) ** 2).sum())(xs).sum()

    xs, w = np.ones((8, 1, 2, 6, 6), np.float32), np.ones((3, 2, 3, 3), np.float32)
    found = [e for e in equations(inf.make_jaxpr(inf.grad(loss))(w, xs)) if e.op.name == "conv"]
    assert all(v.type.shape in (w.shape, (8, 1, 3, 6, 6)) for e in found for v in e.outputs)


def test_small_floats_accumulate_in_float32() -> None:
    x, w = inp.ones((1, 1, 4096), "bfloat16"), inp.ones((1, 1, 4096), "bfloat16")
    assert float(lax.conv(x, w, (1,), "VALID")[0, 0, 0]) == 4096


def test_integers_wrap_unless_a_wider_dtype_is_preferred() -> None:
    x, w = inp.full((1, 1, 2), 100, "int8"), inp.full((1, 1, 2), 2, "int8")
    assert int(lax.conv(x, w, (1,), "VALID")[0, 0, 0]) == -112
    assert int(lax.conv(x, w, (1,), "VALID", preferred_element_type="int32")[0, 0, 0]) == 400


@pytest.mark.parametrize(
    ("x", "w"),
    [((0, 2, 5), (3, 2, 2)), ((1, 0, 5), (3, 0, 2)), ((1, 2, 1), (3, 2, 2)), ((1, 2, 5), (0, 2, 2))],
)
def test_without_elements_there_are_zeros(x: tuple[int, ...], w: tuple[int, ...]) -> None:
    found = lax.conv(inp.ones(x), inp.ones(w), (1,), "VALID")
    assert found.shape == (x[0], w[0], max(x[2] - w[2] + 1, 0)) and not np.asarray(found).any()


# --- lowering -------------------------------------------------------------------------------------

GEOMETRIES: dict[str, Any] = {
    "batch": ((6, 2, 5, 7), (3, 2, 3, 3), {}),
    "one image": ((1, 2, 9, 5), (3, 2, 3, 3), {}),
    "strides": ((1, 2, 9, 8), (3, 2, 2, 3), {"strides": (2, 3), "rhs_dilation": (2, 1)}),
    "large kernel": ((1, 1, 7, 30), (1, 1, 2, 25), {"padding": "VALID"}),
    "groups": ((1, 4, 6, 6), (6, 2, 3, 3), {"feature_group_count": 2}),
    "depthwise": ((2, 4, 6, 6), (4, 1, 3, 3), {"feature_group_count": 4}),
    "transposed": ((2, 3, 4, 5), (2, 3, 3, 4), {"padding": ((2, 2), (3, 1)), "lhs_dilation": (2, 3)}),
    "holes and strides": ((2, 3, 4, 5), (2, 3, 3, 2), {
        "strides": (2, 1), "padding": ((2, 2), (1, 1)), "lhs_dilation": (3, 2), "rhs_dilation": (1, 2)
    }),
}  # fmt: skip


@pytest.mark.parametrize("limit", [1 << 30, 300, 0], ids=["whole", "in parts", "in the smallest parts"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_parts_of_patches_make_the_whole(
    name: str, limit: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x_shape, w_shape, options = GEOMETRIES[name]
    program = inf.make_jaxpr(lambda x, w: conv(x, w, **options))(np.ones(x_shape, "f"), np.ones(w_shape, "f"))
    (equation,) = (e for e in program.equations if e.op is lax.conv_p)
    x, w = (drawn(rng, *v.type.shape) for v in equation.inputs)
    monkeypatch.setattr(lowering, "PATCH_BYTES", max(limit, 1))
    monkeypatch.setattr(lowering, "MAX_PLACES", 64 if limit else 0)
    found = inf.jit(lambda x, w: lowering.decompose(x, w, **equation.attrs)[0])(x, w)
    expected = lax.conv_p.rule(primitive.REFERENCE)(x, w, **equation.attrs)
    assert_close(found, expected, "contraction")


def test_patches_of_a_large_batch_are_bounded() -> None:
    x, w = np.zeros((64, 32, 56, 56), np.float32), np.zeros((32, 32, 3, 3), np.float32)
    largest = max(v.type.nbytes for e in equations(lowered(conv, x, w)) for v in e.outputs)
    assert largest <= max(lowering.PATCH_BYTES, x.nbytes * 2)


@pytest.mark.parametrize("numbers", [None, NHWC], ids=["channels first", "channels last"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)], ids=str)
def test_gradients_multiply_no_holes(numbers: Any, strides: tuple[int, int]) -> None:
    def loss(x: Any, w: Any) -> Any:
        return (conv(x, w, strides, dimension_numbers=numbers) ** 2).sum()

    shapes = ((2, 8, 8, 4), (3, 3, 4, 6)) if numbers else ((2, 4, 8, 8), (6, 4, 3, 3))
    program = lowered(inf.grad(loss, (0, 1)), *(np.zeros(s, np.float32) for s in shapes))
    pads = [e for e in equations(program) if e.op.name == "pad"]
    assert not any(any(e.attrs["interior"]) for e in pads)


def test_a_kernel_of_one_place_is_a_contraction_of_the_image_itself() -> None:
    program = lowered(conv, np.zeros((2, 4, 8, 8), np.float32), np.zeros((6, 4, 1, 1), np.float32))
    assert names(program)["dot"] == 1 and not {"unfold", "pad", "transpose"} & set(names(program))


def test_a_depthwise_convolution_is_one_kernel() -> None:
    program = inf.make_jaxpr(lambda x, w: conv(x, w, feature_group_count=4))(
        np.zeros((2, 4, 8, 8), np.float32), np.zeros((4, 1, 3, 3), np.float32)
    )
    fused = pipeline.run(program, lower.has_route, backend="cpu")
    assert names(fused)["kernel"] == 1 and not {"dot", "unfold"} & set(names(fused))


def test_a_convolution_without_spatial_dimensions_is_a_product() -> None:
    program = lowered(lambda x, w: lax.conv(x, w, (), "VALID"), np.zeros((5, 3), "f"), np.zeros((4, 3), "f"))
    assert names(program) == {"dot": 1}


# --- placement ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        ((P("data"), P()), {}),
        ((P(), P("data")), {}),
        ((P(None, "data"), P(None, "data")), {"psum": 1}),
        ((P(None, None, "data"), P()), {"ppermute": 2}),
    ],
    ids=["batch", "output features", "input features", "rows"],
)
def test_placements_of_operands_need_these_collectives(specs: Any, expected: dict[str, int]) -> None:
    program = inf.make_jaxpr(conv)(np.zeros((4, 6, 8, 8), np.float32), np.zeros((2, 6, 3, 3), np.float32))
    found = partition.partition(program, AbstractMesh(("data",), (2,)), [tuple(s) for s in specs])
    assert Counter(c.name for c in found.collectives) == expected


# --- refusals -------------------------------------------------------------------------------------


def test_an_error_names_the_argument_and_the_sizes() -> None:
    with pytest.raises(errors.ValueMismatchError) as caught:
        conv(inp.ones((1, 3, 8, 8)), inp.ones((4, 2, 3, 3)))
    message = str(caught.value)
    assert (
        "input features of the kernel" in message and "f32[1,3,8,8]" in message and "3 // 1 and 2" in message
    )


def test_eleven_spatial_dimensions_are_too_many() -> None:
    with pytest.raises(errors.ValueMismatchError, match="at most ten"):
        lax.conv(inp.ones((1,) * 13), inp.ones((1,) * 13), (1,) * 11, "VALID")


def test_dimension_numbers_keep_their_names() -> None:
    found = convolution.conv_dimension_numbers((1, 8, 8, 3), (3, 3, 3, 4), NHWC)
    assert found == lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
