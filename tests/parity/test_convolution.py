"""Convolutions as JAX's and PyTorch's: values, gradients, shapes and errors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax as jax_lax

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.core import errors
from infini.testing.tolerances import assert_close

NHWC = ("NHWC", "HWIO", "NHWC")

# left operand, kernel, strides, padding, other arguments
TABLE: list[tuple[tuple[int, ...], tuple[int, ...], Any, Any, dict[str, Any]]] = [
    ((2, 3, 8, 7), (4, 3, 3, 3), (2, 1), "same_lower", {}),
    ((2, 8, 7, 3), (3, 2, 3, 4), (2, 1), ((1, 2), (-1, 3)),
     {"dimension_numbers": NHWC, "rhs_dilation": (2, 1)}),
    ((2, 8, 7, 3), (4, 3, 3, 2), (1, 1), ((1, 2), (1, 3)),
     {"dimension_numbers": ("NHWC", "OIHW", "NCHW"), "lhs_dilation": (2, 3)}),
    ((2, 3, 5, 6), (4, 3, 3, 3), (2, 2), ((1, 2), (1, 3)), {"lhs_dilation": (2, 3), "rhs_dilation": (1, 2)}),
    ((2, 4, 8, 7), (6, 2, 3, 3), (1, 1), "SAME", {"feature_group_count": 2}),
    ((2, 8, 7, 4), (3, 3, 2, 6), (1, 2), "SAME", {"feature_group_count": 2, "dimension_numbers": NHWC}),
    ((2, 8, 7, 4), (3, 3, 1, 8), (2, 2), "SAME", {"feature_group_count": 4, "dimension_numbers": NHWC}),
    ((2, 4, 8, 7), (4, 1, 3, 3), (1, 1), ((2, 2), (1, 1)),
     {"feature_group_count": 4, "lhs_dilation": (2, 2)}),
    ((4, 3, 6, 5), (4, 3, 2, 2), (1, 1), "SAME", {"batch_group_count": 2}),
    ((2, 4, 5, 4, 3), (3, 4, 2, 3, 2), (1, 2, 1), "SAME", {}),
    ((2, 4), (3, 4), (), "VALID", {}),
    ((2, 5, 5, 3), (4, 3, 3, 2), (1, 1), "SAME", {"dimension_numbers": ("CHWN", "OHWI", "HWNC")}),
]  # fmt: skip


def of(module: Any, row: Any) -> Any:
    _, _, strides, padding, options = row
    return lambda x, w: module.conv_general_dilated(x, w, strides, padding, **options)


def arrays(row: Any, rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.standard_normal(shape).astype(np.float32) for shape in row[:2]]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]} {row[1]}")
def test_values_and_gradients_are_those_of_jax(row: Any, rng: np.random.Generator) -> None:
    x, w = arrays(row, rng)
    expected, pullback = jax.vjp(jax.jit(of(jax_lax, row)), x, w)
    ct = rng.standard_normal(expected.shape).astype(np.float32)

    def all_of_it(x: Any, w: Any, ct: Any) -> Any:
        found, back = inf.vjp(of(lax, row), x, w)
        return found, *back(ct)

    found = inf.jit(all_of_it)(x, w, ct)
    for ours, theirs in zip(found, (expected, *pullback(ct)), strict=True):
        assert_close(ours, np.asarray(theirs), "program")


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (2, 1)], ids=str)
def test_mapped_as_by_jax(axes: tuple[int | None, int | None], rng: np.random.Generator) -> None:
    row = TABLE[4]
    x, w = arrays(row, rng)
    x, w = (v if axis is None else np.stack([v, v + 1], axis) for v, axis in zip((x, w), axes, strict=True))
    found = inf.jit(inf.vmap(of(lax, row), axes))(x, w)
    assert_close(found, np.asarray(jax.vmap(of(jax_lax, row), axes)(x, w)), "program")


def test_the_short_forms_are_those_of_jax(rng: np.random.Generator) -> None:
    x, w = rng.standard_normal((2, 3, 6)).astype("f"), rng.standard_normal((4, 3, 2)).astype("f")
    for name, arguments in (
        ("conv", ((2,), "SAME")),
        ("conv_with_general_padding", ((2,), [(1, 0)], (2,), (1,))),
    ):
        ours, theirs = (getattr(module, name)(x, w, *arguments) for module in (lax, jax_lax))
        assert_close(ours, np.asarray(theirs), "program")


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 2), (0, 1))], ids=str)
@pytest.mark.parametrize("options", [
    {}, {"transpose_kernel": True}, {"use_consistent_padding": True}, {"rhs_dilation": (2, 1)},
    {"dimension_numbers": ("NCHW", "OIHW", "NCHW")},
], ids=str)  # fmt: skip
def test_transposed_as_by_jax(padding: Any, options: dict[str, Any], rng: np.random.Generator) -> None:
    x, w = rng.standard_normal((2, 3, 5, 3)).astype("f"), rng.standard_normal((3, 2, 3, 3)).astype("f")
    if "dimension_numbers" in options:
        w = rng.standard_normal((4, 3, 2, 3)).astype("f")
    found = lax.conv_transpose(x, w, (2, 3), padding, **options)
    assert_close(found, np.asarray(jax_lax.conv_transpose(x, w, (2, 3), padding, **options)), "program")


@pytest.mark.parametrize("numbers", [NHWC, ("NCHW", "OIWH", "CNHW")], ids=str)
def test_patches_and_local_convolutions_as_by_jax(numbers: Any, rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 6, 7, 3) if numbers == NHWC else (2, 3, 6, 7)).astype("f")
    arguments = ((2, 3), (1, 2), ((1, 0), (2, 1)), (1, 2), (2, 1), numbers)
    found = lax.conv_general_dilated_patches(x, *arguments)
    assert_close(found, np.asarray(jax_lax.conv_general_dilated_patches(x, *arguments)), "exact")
    dims = lax.conv_dimension_numbers(x.shape, (1, 1, 2, 3), numbers)
    shape = [0] * 4
    sizes = [4, found.shape[dims.out_spec[1]], *(found.shape[d] for d in dims.out_spec[2:])]
    for d, n in zip(dims.rhs_spec, sizes, strict=True):
        shape[d] = n
    w = rng.standard_normal(shape).astype("f")
    local = (arguments[1], arguments[2], arguments[0], *arguments[3:])
    ours, theirs = (m.conv_general_dilated_local(x, w, *local) for m in (lax, jax_lax))
    assert_close(ours, np.asarray(theirs), "program")


@pytest.mark.parametrize("dtype", ["int8", "bool", "bfloat16", "complex64"])
def test_dtypes_are_those_of_jax(dtype: str, rng: np.random.Generator) -> None:
    x, w = rng.integers(0, 3, (1, 2, 5)), rng.integers(0, 3, (3, 2, 2))
    found = lax.conv(inp.asarray(x).astype(dtype), inp.asarray(w).astype(dtype), (1,), "SAME")
    theirs = jax_lax.conv(jnp.asarray(x).astype(dtype), jnp.asarray(w).astype(dtype), (1,), "SAME")
    assert_close(found, np.asarray(theirs), "contraction")


@pytest.mark.parametrize(
    "name", ["conv_shape_tuple", "conv_general_shape_tuple", "conv_transpose_shape_tuple"]
)
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 2), (0, 1))], ids=str)
def test_shapes_are_those_of_jax(name: str, padding: Any) -> None:
    rest = () if name == "conv_shape_tuple" else (("NCHW", "OIHW", "NHWC"),)
    arguments = ((2, 3, 9, 8), (4, 3, 2, 3), (2, 1), padding, *rest)
    assert getattr(lax, name)(*arguments) == tuple(map(int, getattr(jax_lax, name)(*arguments)))


@pytest.mark.parametrize("padding", ["SAME", "same_lower", "VALID"])
def test_named_paddings_are_those_of_jax(padding: str) -> None:
    arguments = ((10, 7, 1), (3, 2, 4), (2, 1, 3), padding)
    assert lax.padtype_to_pads(*arguments) == jax_lax.padtype_to_pads(*arguments)


# x: 1 x 1 x 3, w: 1 x 1 x 2; each refused by both with one built-in class
REFUSED = """
l.conv(x, w, (1,), "FOO"); l.conv(x, w, (1, 1), "SAME"); l.conv(x, n.ones((1, 2, 2)), (1,), "SAME")
l.conv_general_dilated(x, w, (1,), [1]); l.conv_general_dilated(x, w, (1,), "SAME", (2,))
l.conv(x, w, (0,), "VALID"); l.conv_general_dilated(x, w, (1,), ((0, 0), (0, 0)))
l.conv_general_dilated(x, w, (1,), [(-2, -2)])
l.conv_general_dilated(x, w, (1,), "SAME", feature_group_count=2)
l.conv(x, n.ones((1, 1, 0)), (1,), "VALID"); l.conv_general_dilated(x, w, (1,), "SAME", batch_group_count=0)
l.conv(x, w.astype("int32"), (1,), "SAME")
l.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=("NC", "OI", "NC"))
l.conv(x, w, (1,), "SAME", "foo")
l.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=("NCH", "OIW", "NCH"))
l.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=("NNH", "OIH", "NCH"))
l.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=5)
l.conv_transpose(x, w, (1,), "FOO", None, ("NCH", "OIH", "NCH"))
l.conv(x, w, (1,), "SAME", preferred_element_type="int32"); l.padtype_to_pads((3,), (2,), (1,), 3)
l.conv(x.astype("int32"), w.astype("int32"), (1,), "SAME", preferred_element_type="int8")
""".replace("\n", ";")


@pytest.mark.filterwarnings("ignore:divide by zero")  # inside JAX, for a stride of 0
@pytest.mark.parametrize("text", [row.strip() for row in REFUSED.split(";") if row.strip()])
def test_refusals(text: str) -> None:
    def refused(numpy: Any, functions: Any) -> BaseException:
        with pytest.raises(Exception) as caught:  # the class is what is compared
            eval(text, {"n": numpy, "l": functions, "x": numpy.ones((1, 1, 3)), "w": numpy.ones((1, 1, 2))})
        return caught.value

    ours, theirs = refused(inp, lax), refused(jnp, jax_lax)
    built_in = next(c for c in type(theirs).__mro__ if c.__module__ == "builtins")
    assert isinstance(ours, built_in), (type(ours), type(theirs), theirs)
    assert isinstance(ours, errors.InfiniError)


@pytest.mark.parametrize(
    ("x", "w", "options"),
    [
        ((2, 4, 9, 8), (6, 4, 3, 3), {"stride": 2, "padding": 1}),
        ((2, 4, 9, 8), (8, 2, 3, 2), {"groups": 2, "dilation": 2}),
        ((2, 4, 9, 8), (4, 1, 3, 3), {"groups": 4, "padding": 1}),
        ((2, 4, 30), (6, 4, 5), {"stride": 3, "padding": 2}),
    ],
    ids=str,
)
def test_gradients_are_those_of_torch(
    x: Any, w: Any, options: dict[str, int], rng: np.random.Generator
) -> None:
    rank = len(x) - 2
    image, kernel = rng.standard_normal(x).astype("f"), rng.standard_normal(w).astype("f")
    inputs = [torch.tensor(v, requires_grad=True) for v in (image, kernel)]
    expected = getattr(torch.nn.functional, f"conv{rank}d")(*inputs, **options)
    ct = rng.standard_normal(expected.shape).astype("f")
    gradients = torch.autograd.grad(expected, inputs, torch.tensor(ct))

    def ours(x: Any, w: Any) -> Any:
        pads = [(options.get("padding", 0),) * 2] * rank
        strides, holes = ((options.get(name, 1),) * rank for name in ("stride", "dilation"))
        groups = options.get("groups", 1)
        return lax.conv_general_dilated(x, w, strides, pads, None, holes, feature_group_count=groups)

    found, pullback = inf.vjp(inf.jit(ours), image, kernel)
    assert_close(found, expected.detach().numpy(), "program")
    for mine, theirs in zip(pullback(inp.asarray(ct)), gradients, strict=True):
        assert_close(mine, theirs.numpy(), "program")
