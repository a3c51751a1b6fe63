"""Results so large that they leave the cache are stored past it: where that can be, with equal numbers."""

from __future__ import annotations

import numpy as np
import pytest

import infini as inf
from infini.compiler.llvm import past_cache
from infini.core import dtypes
from infini.core.ir import ArrayType
from infini.tile.program import Access

LARGE = past_cache.MIN_BYTES // 4  # float32 elements of a result that is just large enough
STREAMED = "!nontemporal"


@pytest.mark.parametrize("shape, is_streamed", [
    ((LARGE,), True),
    ((LARGE - 4096,), False),
    ((4096, LARGE // 4096), True),
    ((LARGE // 1024 + 1, 1021), False),  # rows that begin anywhere
])  # fmt: skip
def test_large_results_of_whole_vectors_pass_the_cache(shape: tuple[int, ...], is_streamed: bool) -> None:
    x = inf.ShapeDtypeStruct(shape, np.float32)
    row = inf.ShapeDtypeStruct(shape[-1:], np.float32)
    compiled = inf.jit(lambda x, row: x * 2 + row).lower(x, row).compile()
    text = compiled.executable.text("tasks")
    assert (STREAMED in text) == is_streamed


def test_values_are_those_of_small_results(rng: np.random.Generator) -> None:
    x = rng.standard_normal((LARGE // 1024, 1024), dtype=np.float32)
    row = rng.standard_normal(1024, dtype=np.float32)
    fn = inf.jit(lambda x, row: inf.nn.relu(x * row))
    found = np.asarray(fn(x, row))
    np.testing.assert_array_equal(found[:100], np.asarray(fn(x[:100], row)))
    np.testing.assert_array_equal(found, np.maximum(x * row, 0))


def test_a_donated_operand_is_overwritten_in_the_cache(rng: np.random.Generator) -> None:
    x = rng.standard_normal(LARGE, dtype=np.float32)
    given = inf.device_put(x)
    address = given.unsafe_buffer_pointer()
    found = inf.jit(lambda x: x * 3, donate_argnums=0)(given)
    assert found.unsafe_buffer_pointer() == address
    np.testing.assert_array_equal(np.asarray(found), x * 3)


def test_tiles_with_a_step_or_an_odd_start_are_not_aligned() -> None:
    out = [ArrayType((4096,), dtypes.float32)]
    whole = Access((1024,), ((1024,),), ((1,),), (0,))
    assert past_cache.are_vectors_aligned([whole], out, 16)
    for wrong in (
        Access((1024,), ((1024,),), ((2,),), (0,)),
        Access((1024,), ((1000,),), ((1,),), (0,)),
        Access((1024,), ((1024,),), ((1,),), (4,)),
    ):
        assert not past_cache.are_vectors_aligned([wrong], out, 16)
