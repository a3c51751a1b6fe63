"""Movement on the CPU as in NumPy: transposes in registers, narrow tiles, loops cut where conditions change,
and gathers of elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import infini
from infini import numpy as inp

DTYPES = (np.float32, np.float16, np.int8, np.bool_)


def array(rng: np.random.Generator, shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    """Numbers that every dtype can tell apart."""
    return (rng.standard_normal(shape) * 50).astype(dtype)


def agrees(function: Callable[..., Any], *arrays: np.ndarray) -> None:
    """The compiled function gives what NumPy gives; `function` takes a namespace and arrays."""
    found = infini.jit(lambda *xs: function(inp, *xs))(*map(inp.asarray, arrays))
    np.testing.assert_array_equal(np.asarray(found), function(np, *arrays))


def text_of(function: Callable[..., Any], *arrays: np.ndarray) -> str:
    """LLVM IR of the function's tasks."""
    lowered = infini.jit(lambda *xs: function(inp, *xs)).lower(*map(inp.asarray, arrays))
    return lowered.compile().as_text("tasks")


@pytest.mark.parametrize(
    "shape",
    [
        (16, 16),
        (17, 33),
        (130, 47),
        (3, 100),
        (100, 3),
        (4, 64),
        (64, 4),
        (12, 200),
        (7, 9),
        (1, 5),
        (300, 20),
    ],
    ids=str,
)
def test_transpose_of_any_size(rng: np.random.Generator, shape: tuple[int, int]) -> None:
    for dtype in DTYPES[:2]:
        agrees(lambda ns, x: ns.transpose(x), array(rng, shape, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_transpose_of_any_dtype(rng: np.random.Generator, dtype: type) -> None:
    for shape in ((37, 70), (3, 50), (50, 3)):
        agrees(lambda ns, x: ns.transpose(x), array(rng, shape, dtype))


@pytest.mark.parametrize("shape", [(3, 20, 16), (17, 2, 33), (40, 7, 40), (6, 16, 5)], ids=str)
@pytest.mark.parametrize("axes", [(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)], ids=str)
def test_axes_in_any_order(rng: np.random.Generator, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    agrees(lambda ns, x: ns.transpose(x, axes), array(rng, shape))


FUSED = {
    "sum": lambda ns, x, y: ns.transpose(x) + y,
    "with itself": lambda ns, x, y: ns.where(ns.transpose(x) > y, ns.transpose(x), y * y),
    "per row": lambda ns, x, y: ns.transpose(x) * y[:, :1] + y[0],
    "places": lambda ns, x, y: ns.transpose(x) + ns.arange(x.shape[0], dtype=np.float32),
}


@pytest.mark.parametrize("shape", [(33, 47), (3, 100), (100, 3)], ids=str)
@pytest.mark.parametrize("name", FUSED)
def test_what_is_fused_to_a_transpose(rng: np.random.Generator, name: str, shape: tuple[int, int]) -> None:
    agrees(FUSED[name], array(rng, shape), array(rng, shape[::-1]))


def test_square_matrix_plus_its_transpose_in_place(rng: np.random.Generator) -> None:
    agrees(lambda ns, x: ns.transpose(x) + x, array(rng, (70, 70)))


@pytest.mark.parametrize("shape", [(48, 80), (5, 1000), (1000, 5)], ids=str)
def test_transpose_loads_whole_vectors(rng: np.random.Generator, shape: tuple[int, int]) -> None:
    text = text_of(lambda ns, x: ns.transpose(x), array(rng, shape))
    assert "masked.gather" not in text


def test_large_transpose_passes_the_cache_by(rng: np.random.Generator) -> None:
    x = np.zeros((2048, 2048), np.float32)
    x[:3], x[:, -2:] = rng.standard_normal((3, 2048)), 1
    assert text_of(lambda ns, x: ns.transpose(x), x).count("!nontemporal") > 0
    agrees(lambda ns, x: ns.transpose(x), x)
    assert "!nontemporal" not in text_of(lambda ns, x: ns.transpose(x), x[:512, :512])


NARROW = {
    "stack 2": lambda ns, x: ns.stack([x, x * 2], -1),
    "stack 7": lambda ns, x: ns.stack([x, x, x + x, x, x * 2, x, x], -1),
    "repeat": lambda ns, x: ns.repeat(x, 3, axis=-1),
    "times channels": lambda ns, x: x[..., None] * ns.arange(5, dtype=np.float32),
}


@pytest.mark.parametrize("shape", [(5,), (33,), (20, 37)], ids=str)
@pytest.mark.parametrize("name", NARROW)
def test_results_narrower_than_a_vector(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> None:
    agrees(NARROW[name], array(rng, shape))


CUT = {
    "pad": lambda ns, x: ns.pad(x, ((2, 1), (3, 2))),
    "concatenate columns": lambda ns, x: ns.concatenate([x, x * 2, x[::-1]], 1),
    "concatenate rows": lambda ns, x: ns.concatenate([x, x * 2, x[::-1]], 0),
    "roll": lambda ns, x: ns.roll(x, 3, axis=1),
    "flip": lambda ns, x: x[:, ::-1],
    "below": lambda ns, x: ns.where(ns.arange(x.shape[1]) < 5, x, -x),
    "beside": lambda ns, x: ns.where(ns.arange(x.shape[1]) == 4, x, -x),
    "falling": lambda ns, x: ns.where(7 - 2 * ns.arange(x.shape[1]) >= -5, x, -x),
    "every third": lambda ns, x: ns.where(ns.arange(x.shape[1]) % 3 == 1, x, -x),
    "triangle": lambda ns, x: ns.tril(x, 2),
}


@pytest.mark.parametrize("shape", [(3, 6), (9, 133)], ids=str)
@pytest.mark.parametrize("name", CUT)
def test_conditions_on_places(rng: np.random.Generator, name: str, shape: tuple[int, int]) -> None:
    agrees(CUT[name], array(rng, shape))


@pytest.mark.parametrize("name", ["concatenate columns", "concatenate rows", "roll"])
def test_loops_cut_at_places_choose_nothing(rng: np.random.Generator, name: str) -> None:
    text = text_of(CUT[name], array(rng, (64, 128)))
    assert "select <" not in text


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 33, 40_000])
def test_gather_of_elements(rng: np.random.Generator, count: int, dtype: type) -> None:
    x, y = array(rng, (50,), dtype), array(rng, (20, 50), dtype)
    i = rng.integers(-50, 50, count).astype(np.int32)
    j = rng.integers(-20, 20, count).astype(np.int32)
    agrees(lambda ns, x, i: x[i], x, i)
    agrees(lambda ns, y, j, i: y[j, i], y, j, i)


@pytest.mark.parametrize("shape", [(4, 5), (40, 33), (3, 1000)], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_take_along_axis(rng: np.random.Generator, shape: tuple[int, int], axis: int) -> None:
    places = rng.integers(-shape[axis], shape[axis], (shape[0], 67) if axis else (67, shape[1]))
    agrees(lambda ns, x, i: ns.take_along_axis(x, i, axis), array(rng, shape), places.astype(np.int32))


def test_elements_outside_are_filled(rng: np.random.Generator) -> None:
    x, places = array(rng, (50,)), rng.integers(-200, 200, 3000).astype(np.int32)
    found = infini.jit(lambda x, i: x.at[i].get(mode="fill", fill_value=7))(x, places)
    wrapped = np.where(places < 0, places + 50, places)
    is_inside = (wrapped >= 0) & (wrapped < 50)
    np.testing.assert_array_equal(np.asarray(found), np.where(is_inside, x[wrapped % 50], 7))
