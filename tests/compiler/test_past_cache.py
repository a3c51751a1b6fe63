"""Results so large that they leave the cache are stored past it: where that can be, with equal numbers."""

from __future__ import annotations

import re

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
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


def _is_in_a_loop(text: str, needle: str) -> bool:
    """Whether a block with this instruction can reach itself, in the text of one function."""
    body = text[text.index("entry:") :]
    parts = re.split(r"^(\w+):$", body, flags=re.MULTILINE)[1:]
    blocks = dict(zip(parts[::2], parts[1::2], strict=True))
    following = {name: set(re.findall(r"label %(\w+)", code)) for name, code in blocks.items()}
    (start,) = (name for name, code in blocks.items() if needle in code)
    reached, ahead = set[str](), [*following[start]]
    while ahead:
        if (name := ahead.pop()) not in reached:
            reached.add(name)
            ahead += following[name]
    return start in reached


@pytest.mark.parametrize("width", [64, 1024])
@pytest.mark.parametrize("turned", [False, True])
def test_a_task_waits_once_for_what_passed_the_cache(width: int, turned: bool) -> None:
    """A fence takes longer than a row of 64 elements."""
    shape = (width, LARGE // width) if turned else (LARGE // width, width)
    function = (lambda x: x.T * 2) if turned else (lambda x: x / (1 + inp.abs(x).sum(-1, keepdims=True)))
    compiled = inf.jit(function).lower(inf.ShapeDtypeStruct(shape, np.float32)).compile()
    text = compiled.executable.text("tasks")
    assert text.count("fence seq_cst") == 1
    assert not _is_in_a_loop(text, "fence seq_cst") and _is_in_a_loop(
        text.replace(STREAMED, "once", 1), "once"
    )


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
