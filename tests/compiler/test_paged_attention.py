"""Attention over keys in blocks as native code: random problems against NumPy for three widths of registers,
and what neither neighbours nor threads nor buckets change.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest

import infini as inf
from infini.compiler.llvm import paged, paged_problem, paged_update
from infini.compiler.llvm.target import Target, host_target
from infini.core import dtypes, ir, trace
from infini.core.ir import ArrayType
from infini.lax.composites.paged_attention import paged_attention_p
from infini.lax.composites.paged_definition import Options, operands_of
from tests.compiler import llvm_kernels, paged_cases
from tests.compiler.paged_cases import Problem

LANES = {4: 16, 8: 16, 16: 32}  # and registers


def target_of(lanes: int) -> Target:
    if lanes > host_target().lanes:
        pytest.skip("the processor has no registers of that width")
    return dataclasses.replace(host_target(), lanes=lanes, num_registers=LANES[lanes])


def native(problem: Problem, lanes: int = 0) -> np.ndarray:
    types = tuple(llvm_kernels.types(*problem.operands))
    attrs = ir.Attrs(problem.options.attrs())
    assert paged_problem.is_suited(operands_of(types, problem.options), problem.options)
    phases = paged.emit(types, attrs, target_of(lanes) if lanes else host_target())
    (out,) = ir.single_equation(paged_attention_p, types, attrs).out_types
    return llvm_kernels.run_phases(phases, problem.operands, [out])[0]


@pytest.mark.parametrize("seed", range(24))
def test_random_problems(seed: int) -> None:
    problem = paged_cases.draw(seed)
    problem.check(native(problem))


@pytest.mark.parametrize("lanes", [4, 8])
@pytest.mark.parametrize("seed", range(100, 108))
def test_random_problems_with_narrower_registers(seed: int, lanes: int) -> None:
    problem = paged_cases.draw(seed)
    problem.check(native(problem, lanes))


@pytest.mark.parametrize("seed", range(200, 212))
def test_random_problems_in_pairs_of_bfloat16(seed: int) -> None:
    problem = paged_cases.draw(seed, is_bfloat16=True)
    problem.check(native(problem))


# --- what changes nothing -----------------------------------------------------------------------

HEADS, KEY_HEADS, DEPTH, SIZE = 4, 2, 32, 16


def jitted(**options: Any) -> Any:
    attrs = Options(scale=0.2, **options).attrs()
    return inf.jit(lambda *operands: trace.bind1(paged_attention_p, *operands, **attrs))


@functools.cache
def caches() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return tuple(rng.normal(size=(160, KEY_HEADS, SIZE, DEPTH)).astype(np.float32) for _ in range(2))


def batch(requests: list[tuple[int, int]], *, tokens: int, rows: int, table: int) -> list[np.ndarray]:
    """Operands for requests of (tokens, keys), padded; request i has the same numbers in every batch, which
    follow from its sizes."""
    query = np.zeros((tokens, HEADS, DEPTH), np.float32)
    tables = np.zeros((rows, table), np.int32)
    starts, lengths = np.zeros(rows + 1, np.int32), np.zeros(rows, np.int32)
    at = 0
    for r, (count, keys) in enumerate(requests):
        rng = np.random.default_rng([count, keys])
        query[at : at + count] = rng.normal(size=(count, HEADS, DEPTH))
        blocks = -(-keys // SIZE)
        tables[r, :blocks] = rng.permutation(160)[:blocks]
        starts[r], lengths[r] = at, keys
        at += count
    starts[len(requests) :] = at
    keys, values = caches()
    return [query, keys, tables, lengths, starts, values]


REQUESTS = [(1, 1300), (3, 700), (40, 900), (1, 5)]


@pytest.mark.parametrize("number", range(len(REQUESTS)))
def test_a_request_is_the_same_alone_and_among_neighbours(number: int) -> None:
    step = jitted()
    count = REQUESTS[number][0]
    first = sum(n for n, _ in REQUESTS[:number])
    together = np.asarray(step(*batch(REQUESTS, tokens=64, rows=8, table=128)))
    alone = np.asarray(step(*batch([REQUESTS[number]], tokens=64, rows=1, table=128)))
    np.testing.assert_array_equal(together[first : first + count], alone[:count])


def test_buckets_change_nothing() -> None:
    count = sum(n for n, _ in REQUESTS)
    small = np.asarray(jitted()(*batch(REQUESTS, tokens=count, rows=4, table=82)))
    large = np.asarray(jitted()(*batch(REQUESTS, tokens=96, rows=16, table=150)))
    np.testing.assert_array_equal(small, large[:count])
    assert not large[count:].any()


def test_a_chunk_of_tokens_is_the_same_with_those_after_it() -> None:
    """Tiles begin elsewhere, and what a token gets stays."""
    whole = batch([(60, 500)], tokens=60, rows=1, table=40)
    later = [whole[0][21:], *whole[1:4], np.array([0, 39], np.int32), whole[5]]
    found = np.asarray(jitted()(*whole))[21:]
    np.testing.assert_array_equal(found, np.asarray(jitted()(*later)))


def test_the_number_of_tasks_follows_from_shapes() -> None:
    operands = batch(REQUESTS, tokens=64, rows=8, table=128)
    problem = Problem(operands, Options(scale=0.2))
    phases = paged.emit(
        tuple(llvm_kernels.types(*operands)), ir.Attrs(problem.options.attrs()), host_target()
    )
    assert [phase.num_tasks for phase in phases[:2]] == [1, 256]
    assert phases[2].num_tasks == 64
    assert len({phase.name for phase in phases}) == 3


def test_scratch_memory_is_none_of_partial_results_where_keys_are_never_cut() -> None:
    operands = batch([(1, 100)], tokens=4, rows=4, table=16)
    phases = paged.emit(
        tuple(llvm_kernels.types(*operands)), ir.Attrs(Options(scale=0.2).attrs()), host_target()
    )
    assert len(phases) == 2 and max(phase.scratch_bytes for phase in phases) <= 64


def test_stacks_are_small() -> None:
    """A thread of the system may have half a megabyte."""
    limit = 400 << 10
    for depth, width, group in ((64, 64, 1), (128, 128, 4), (256, 256, 2), (576, 512, 128), (640, 640, 8)):
        for lanes, registers in LANES.items():
            query = ArrayType((512, group, depth), dtypes.float32)
            cache = [ArrayType((64, 1, 32, n), dtypes.float32) for n in (depth, width)]
            integers = [ArrayType(shape, dtypes.int32) for shape in ((8, 64), (8,), (9,))]
            options = Options(scale=1.0)
            types = operands_of([query, cache[0], *integers, cache[1]], options)
            target = dataclasses.replace(host_target(), lanes=lanes, num_registers=registers)
            problem = paged_problem.Problem(types, options, target)
            assert paged_problem.is_suited(types, options)
            assert paged.stack_bytes(problem) <= limit, (depth, width, group, lanes)


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.bfloat16, dtypes.int8])
@pytest.mark.parametrize("rest", [(), (6,), (300,)])
def test_rows_are_written_where_their_slots_are(dtype: np.dtype, rest: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    cache = rng.integers(-9, 9, (5, 3, 4, *rest)).astype(dtype)
    new = rng.integers(-9, 9, (90, 3, *rest)).astype(dtype)
    slots = rng.integers(-3, 26, 90).astype(np.int32)  # some are equal, some are no slots
    expected = cache.copy()
    for row, slot in zip(new, slots, strict=True):
        if 0 <= slot < 20:
            expected[slot // 4, :, slot % 4] = row
    phases = paged_update.emit(tuple(llvm_kernels.types(cache, new, slots)), ir.Attrs({}), host_target())
    assert phases[0].num_tasks == (3 if new.nbytes > paged_update.SMALL_BYTES else 1)
    found = inf.jit(inf.lax.paged_update)(cache, new, slots)
    np.testing.assert_array_equal(np.asarray(found), expected)
