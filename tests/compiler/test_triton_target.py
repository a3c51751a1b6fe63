"""Targets of the Triton emitter: capabilities that are missing, grids that are too large, and the table of
names.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np
import pytest

from infini import lax
from infini.backends import coverage
from infini.compiler import pipeline
from infini.compiler.triton import cumulative, emit, language, lower, movement, sorting, target as target_
from infini.compiler.triton.source import TritonSource
from infini.compiler.triton.target import GENERIC, Target
from infini.core import dtypes, errors, primitive
from infini.core.ir import ArrayType
from tests.compiler import triton_kernels as k
from tests.tile import kernels

# As the smallest of the vendors' processors: few programs, and nothing of 64 bits.
SMALL = dataclasses.replace(
    GENERIC,
    name="small",
    grid=(48, 1, 1),
    max_warps=4,
    capabilities=GENERIC.capabilities - {"float64", "int64"},
)


def grid_of(*sizes: int) -> Target:
    return dataclasses.replace(GENERIC, name="grid", grid=sizes)


# --- grids ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "count", "grid", "step", "is_ragged"),
    [
        ((100, 1, 1), 100, (100,), 0, False),
        ((10, 10, 1), 95, (10, 10), 0, True),
        ((10, 10, 1), 90, (10, 9), 0, False),
        ((10, 3, 4), 61, (10, 3, 3), 0, True),
        ((48, 1, 1), 49, (48,), 48, False),
        ((65535, 65535, 65535), 1 << 31, (65535,), 65535, False),
    ],
)
def test_fold(limits: Any, count: int, grid: Any, step: int, is_ragged: bool) -> None:
    found = target_.fold(count, grid_of(*limits))
    assert (found.grid, found.step, found.is_ragged) == (grid, step, is_ragged)


def numbers_of(folded: target_.Folded, count: int) -> list[int]:
    """The numbers of the programs that run, as the text computes them."""
    sizes = (*folded.grid, 1, 1)[:3]
    launched = [x + y * sizes[0] + z * sizes[0] * sizes[1] for z, y, x in np.ndindex(*sizes[::-1])]
    if folded.step:
        return [number for first in launched for number in range(first, count, folded.step)]
    return [number for number in launched if number < count or not folded.is_ragged]


@pytest.mark.parametrize("limits", [(7, 1, 1), (7, 9, 1), (7, 3, 9)], ids=str)
def test_every_program_of_a_folded_grid_runs_once(limits: Any) -> None:
    for count in (1, 7, 8, 21, 63, 64, 150):
        folded = target_.fold(count, grid_of(*limits))
        assert all(n <= most for n, most in zip(folded.grid, limits, strict=False))
        assert sorted(numbers_of(folded, count)) == list(range(count))


@pytest.mark.parametrize("limits", [(3, 1, 1), (3, 2, 1), (3, 2, 2)], ids=str)
def test_results_do_not_depend_on_the_grid(limits: Any, rng: np.random.Generator) -> None:
    interpret = pytest.importorskip("infini.compiler.triton.interpret")
    x = k.numbers(rng, (11, 20), dtypes.float32)
    kernel = kernels.softmax.specialize(k.types(x))
    source = emit.emit_triton(kernel, k.types(x), target=grid_of(*limits))
    assert math.prod(source.grid) <= math.prod(limits)
    (found,) = interpret.interpret(source, [x], kernel.outputs)
    np.testing.assert_allclose(found, k.oracle(kernel, x)[0], rtol=1e-6, atol=1e-6)


def test_moved_elements_do_not_depend_on_the_grid(rng: np.random.Generator) -> None:
    interpret = pytest.importorskip("infini.compiler.triton.interpret")
    x, start = k.numbers(rng, (70, 90), dtypes.float32), np.int32(3)
    attrs = k.attrs_of(slice_sizes=(60, 80))
    (source,) = movement.dynamic_slice(
        [*k.types(x), *[ArrayType((), dtypes.int32)] * 2], attrs, grid_of(2, 1, 1)
    )
    (found,) = interpret.interpret(
        source, [x, np.asarray(start), np.asarray(start)], [ArrayType((60, 80), x.dtype)]
    )
    np.testing.assert_array_equal(found, x[3:63, 3:83])
    assert source.grid == (2,)


@pytest.mark.parametrize("limits", [(64, 1, 1), (2, 1, 1)], ids=str)
def test_programs_beyond_an_extent_do_nothing(limits: Any) -> None:
    interpret = pytest.importorskip("infini.compiler.triton.interpret")
    x = np.ones((8, 16), np.float32)
    kernel = kernels.softmax.specialize(k.types(x))
    bounded = dataclasses.replace(kernel, extents=((0, 1, 1),))
    types = [*k.types(x), ArrayType((), dtypes.int32)]
    source = emit.emit_triton(bounded, types, target=grid_of(*limits))
    (found,) = interpret.interpret(source, [x, np.asarray(5, np.int32)], kernel.outputs)
    assert (found[:5] > 0).all() and (found[5:] == 0).all()


def test_more_programs_than_32_bits_count_have_numbers_of_64() -> None:
    x = ArrayType((1 << 32, 1), dtypes.int8)
    double = k.on_tiles(lambda x: lax.add(x, x), ArrayType((1,), dtypes.int8))
    whole = dataclasses.replace(
        double.loads[0], grid_strides=((1,), (0,)), tile_strides=((0,), (1,)), offsets=(0, 0)
    )
    kernel = dataclasses.replace(double, grid=(1 << 32,), loads=(whole,), stores=(whole,), outputs=(x,))
    source = emit.emit_triton(kernel, [x])
    assert re.search(
        r"for program in range\(tl.program_id\(0\).to\(tl.int64\), 4294967296, \d+\)", source.text
    )


# --- capabilities -----------------------------------------------------------------------------------


def test_a_missing_capability_is_named_with_operation_and_target() -> None:
    kernel = k.on_tiles(lambda x: lax.sin(x), ArrayType((8,), dtypes.float64))
    with pytest.raises(errors.LoweringError) as caught:
        emit.emit_triton(kernel, [ArrayType((8,), dtypes.float64)], target=SMALL)
    text = str(caught.value)
    assert "'float64'" in text and "'sin'" in text and "small" in text and "float32" in text


def test_too_many_dimensions_of_a_tile_are_named() -> None:
    line = dataclasses.replace(GENERIC, name="line", tile_rank=1)
    types = [ArrayType((4, 8), dtypes.float32)]
    with pytest.raises(errors.LoweringError, match=r"tiles of 2 dimensions, and the target line has 1"):
        emit.emit_triton(k.on_tiles(lambda x: lax.sin(x), *types), types, target=line)


def test_tiles_are_as_large_as_the_target_takes() -> None:
    x = ArrayType((1, 1024), dtypes.float32)
    narrow = dataclasses.replace(GENERIC, name="narrow", max_tile=256)
    kernel = kernels.softmax.specialize([x])
    sizes = re.findall(r"tl.arange\(0, (\d+)\)", emit.emit_triton(kernel, [x], target=narrow).text)
    assert sizes and max(map(int, sizes)) <= 256


def test_positions_need_64_bits_only_in_large_arrays() -> None:
    index = ArrayType((), dtypes.int32)
    for rows, has_wide in ((1 << 10, False), (1 << 22, True)):
        types = [ArrayType((rows, 1 << 10), dtypes.float32), index, index]
        (source,) = movement.dynamic_slice(types, k.attrs_of(slice_sizes=(4, 4)))
        assert ("int64" in source.text) == has_wide
    with pytest.raises(errors.LoweringError, match=r"int64.*small"):
        movement.dynamic_slice(types, k.attrs_of(slice_sizes=(4, 4)), SMALL)


def test_families_without_kernels_of_tiles_keep_to_a_small_target() -> None:
    x = ArrayType((6000,), dtypes.bfloat16)
    sources = [
        *cumulative.cumulative("cumsum", [x], k.attrs_of(axis=-1, reverse=False), SMALL),
        *sorting.sort([x], k.attrs_of(num_keys=1), SMALL),
    ]
    assert [v for s in sources for v in language.violations(s.text, SMALL)] == []
    assert all(math.prod(s.grid) <= 48 and s.num_warps <= 4 for s in sources)


def test_unknown_targets_are_named() -> None:
    with pytest.raises(errors.LoweringError, match="gfx942"):
        target_.target_of("sm_75")


# --- names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("y = tl.gather(x, x, 0)", "needs the capability gather"),
        ("y = tl.make_block_ptr(x)", "needs the capability block_pointers"),
        ("y = tl.frobnicate(x)", "not a name of Triton 3.0"),
        ("y = tl.load(x, mask=None, padding_option='zero')", "no argument padding_option"),
        ("y = x.cast(tl.int32)", "no method of tiles"),
        ("y = helper(x)", "defined nowhere"),
        ("y = [i for i in x]", "not part of the language"),
    ],
)
def test_other_names_are_found(line: str, what: str) -> None:
    text = f"import triton\nimport triton.language as tl\n\n\n@triton.jit\ndef f(x):\n    {line}\n"
    assert any(what in fault for fault in language.violations(text, GENERIC))


def test_the_names_are_names_of_the_installed_triton() -> None:
    tl = pytest.importorskip("triton.language")
    capable = {
        name for name in language.NEEDS if name not in ("load_tensor_descriptor", "store_tensor_descriptor")
    }
    gone = {"make_block_ptr", "advance", "load_tensor_descriptor", "store_tensor_descriptor", "view"}
    names = (set(language.FUNCTIONS) | language.CONSTANTS | capable) - gone
    assert [name for name in sorted(names) if not hasattr(tl, name)] == []


def _emitted(op: primitive.Primitive, target: Target) -> list[TritonSource]:
    """Functions of the first example of an operation that is computed on GPUs."""
    samples = list(coverage.samples(op))
    chosen = next((s for s in samples if s.dtype == dtypes.float32), samples[0] if samples else None)
    if chosen is None:
        return []
    try:
        fused = pipeline.run(chosen.program, lower.has_route, backend="cuda")
    except errors.LoweringError:
        return []
    known = lower.STRUCTURE | set(lower.ROUTES)
    if any(e.op.name not in known for e in fused.equations):
        return []
    return [source for emitted in lower.of_program(fused, target) for source in emitted.sources]


def test_every_operation_is_emitted_in_the_names_of_the_language() -> None:
    faults = {}
    count = 0
    for name, op in sorted(primitive.all_primitives().items()):
        for source in _emitted(op, GENERIC):
            count += 1
            if found := language.violations(source.text, GENERIC):
                faults[name] = found
    assert faults == {} and count > 200


# --- keys -------------------------------------------------------------------------------------------


def test_the_key_knows_neither_names_nor_comments() -> None:
    types = [ArrayType((40,), dtypes.float32)] * 2
    kernel = k.on_tiles(lambda x, y: lax.add(x, y), *types)
    first = emit.emit_triton(kernel, types, name="f")
    second = emit.emit_triton(kernel, types, name="f", names={"x0": "weight", "y0": "out"}).commented(
        "a line"
    )
    other = emit.emit_triton(k.on_tiles(lambda x, y: lax.sub(x, y), *types), types, name="f")
    assert first.text != second.text and first.key == second.key != other.key


def test_renamed_functions_run(rng: np.random.Generator) -> None:
    interpret = pytest.importorskip("infini.compiler.triton.interpret")
    x = k.numbers(rng, (40,), dtypes.float32)
    kernel = k.on_tiles(lambda x: lax.add(x, x), *k.types(x))
    for name in ("x", "tanh", "lanes", "y0", "for_", "tl"):
        source = emit.emit_triton(kernel, k.types(x), names={"x0": name, "y0": name})
        (found,) = interpret.interpret(source, [x], kernel.outputs)
        np.testing.assert_array_equal(found, x + x)
