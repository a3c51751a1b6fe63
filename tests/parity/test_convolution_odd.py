"""Convolutions of odd sizes, groups and dtypes as JAX's; what infinite elements reach in JAX and PyTorch."""

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
from infini.core import dtypes
from infini.testing.tolerances import assert_close

NHWC = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}

# left operand, kernel, strides, padding, dtype, other arguments
TABLE: list[tuple[tuple[int, ...], tuple[int, ...], Any, Any, str, dict[str, Any]]] = [
    ((0, 8, 7, 3), (3, 3, 3, 4), (1, 1), "SAME", "float32", NHWC),  # no batch
    ((2, 3, 0, 7), (4, 3, 3, 3), (1, 1), ((2, 2), (1, 1)), "float32", {}),  # nothing but padding
    ((2, 4, 4, 32), (9, 9, 32, 32), (1, 1), ((4, 4), (5, 3)), "float32", NHWC),  # larger than the image
    ((2, 3, 4, 4), (5, 3, 7, 7), (1, 1), "VALID", "float32", {}),  # no window fits
    ((2, 6, 7, 16), (3, 2, 16, 24), (2, 3), ((2, 3), (1, 4)), "float32",
     {"lhs_dilation": (3, 2), "rhs_dilation": (2, 2), **NHWC}),
    ((2, 6, 7, 4), (3, 2, 1, 12), (1, 1), ((2, 3), (1, 4)), "float32",
     {"lhs_dilation": (2, 3), "rhs_dilation": (1, 3), "feature_group_count": 4, **NHWC}),
    ((2, 7, 9, 6), (3, 3, 1, 18), (1, 2), "SAME", "float32", {"feature_group_count": 6, **NHWC}),
    ((2, 6, 7, 9), (120, 1, 3, 3), (1, 2), "SAME", "float32", {"feature_group_count": 6}),
    ((2, 8, 9, 8), (3, 3, 8, 8), (1, 1), ((-3, -3), (-1, -1)), "float32", {"lhs_dilation": (2, 2), **NHWC}),
    ((2, 8, 8, 16), (3, 3, 16, 32), (1, 1), "SAME", "int8", {"preferred_element_type": np.int32, **NHWC}),
    ((2, 8, 7, 4), (3, 3, 1, 8), (2, 1), "SAME", "int16", {"feature_group_count": 4, **NHWC}),
    ((2, 8, 8, 16), (3, 3, 16, 3), (1, 1), "SAME", "bfloat16",
     {"preferred_element_type": np.float32, **NHWC}),
    ((2, 8, 8, 8), (3, 3, 1, 16), (1, 1), "SAME", "float16",
     {"preferred_element_type": np.float32, "feature_group_count": 8, **NHWC}),
]  # fmt: skip


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]} {row[1]} {row[4]}")
def test_odd_convolutions_are_those_of_jax(row: Any, rng: np.random.Generator) -> None:
    x_shape, w_shape, strides, padding, name, options = row
    dtype = np.dtype(name)
    x, w = (rng.integers(-4, 5, shape).astype(dtype) for shape in (x_shape, w_shape))

    def of(module: Any) -> Any:
        return lambda x, w: module.conv_general_dilated(x, w, strides, padding, **options)

    expected, found = jax.jit(of(jax_lax))(x, w), inf.jit(of(lax))(inp.asarray(x), inp.asarray(w))
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert_close(found, np.asarray(expected), kind="contraction")
    if not dtypes.is_float(dtype):
        return
    ct = rng.integers(-4, 5, expected.shape).astype(expected.dtype)
    pulled = jax.jit(lambda x, w, ct: jax.vjp(of(jax_lax), x, w)[1](ct))(x, w, ct)
    ours = inf.jit(lambda *a: inf.vjp(of(lax), *a[:2])[1](a[2]))(*map(inp.asarray, (x, w, ct)))
    for a, b in zip(ours, pulled, strict=True):
        assert_close(a, np.asarray(b), kind="contraction")


# channels, features, groups
INFINITE = [(16, 3, 1), (3, 40, 1), (16, 16, 4), (6, 12, 6)]


@pytest.mark.parametrize("case", INFINITE, ids=str)
def test_infinite_elements_of_the_image_reach_what_they_reach_in_jax(
    case: Any, rng: np.random.Generator
) -> None:
    channels, features, groups = case
    x = rng.integers(-4, 5, (2, 8, 21, channels)).astype(np.float32)
    w = rng.integers(-4, 5, (3, 3, channels // groups, features)).astype(np.float32)
    x.reshape(-1)[rng.choice(x.size, 3, replace=False)] = np.inf, -np.inf, np.nan
    options = {"dimension_numbers": NHWC["dimension_numbers"], "feature_group_count": groups}
    expected = jax_lax.conv_general_dilated(jnp.asarray(x), w, (1, 2), "SAME", **options)
    found = inf.jit(lambda x, w: lax.conv_general_dilated(x, w, (1, 2), "SAME", **options))(x, w)
    assert_close(found, np.asarray(expected), kind="contraction")


@pytest.mark.parametrize("case", INFINITE, ids=str)
def test_infinite_cotangents_reach_what_they_reach_in_torch(case: Any, rng: np.random.Generator) -> None:
    channels, features, groups = case
    x = rng.integers(-4, 5, (2, channels, 8, 21)).astype(np.float32)
    w = rng.integers(-4, 5, (features, channels // groups, 3, 3)).astype(np.float32)
    ct = rng.integers(-4, 5, (2, features, 6, 19)).astype(np.float32)
    ct.reshape(-1)[rng.choice(ct.size, 3, replace=False)] = np.inf, -np.inf, np.nan
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, w)]
    expected = torch.autograd.grad(
        torch.nn.functional.conv2d(*leaves, groups=groups), leaves, torch.tensor(ct)
    )

    def conv(x: Any, w: Any) -> Any:
        return lax.conv_general_dilated(x, w, (1, 1), "VALID", feature_group_count=groups)

    found = inf.jit(lambda x, w, ct: inf.vjp(conv, x, w)[1](ct))(x, w, ct)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b.numpy(), kind="contraction")
