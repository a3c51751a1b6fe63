"""The kernels of attention over keys in blocks under Triton's interpreter, against NumPy, and compiled for
processors that are not here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import infini as inf
from infini import lax
from infini.backends import cuda
from infini.compiler.triton import compile as compile_, lower, paged
from infini.compiler.triton.target import nvidia
from infini.core import dtypes, ir
from infini.core.backend import CompileOptions
from infini.core.ir import ArrayType
from infini.lax.composites.paged_attention import paged_attention_p
from infini.lax.composites.paged_definition import Options
from tests.compiler import paged_cases
from tests.compiler.paged_cases import Problem

interpret = pytest.importorskip("infini.compiler.triton.interpret")


def run(problem: Problem) -> np.ndarray:
    types = tuple(ArrayType(x.shape, x.dtype) for x in problem.operands)
    attrs = ir.Attrs(problem.options.attrs())
    (equation,) = ir.single_equation(paged_attention_p, types, attrs).equations
    assert lower.has_route(equation)
    out = equation.outputs[0].type
    memory = {f"x{i}": np.ascontiguousarray(x) for i, x in enumerate(problem.operands)}
    memory["y0"] = np.full(out.shape, np.nan, out.dtype)
    memory["scratch"] = np.full(lower.scratch_bytes(equation) // 4, np.nan, np.float32)
    for source in lower.sources(equation):
        interpret.launch(source, [memory[role] for role in source.roles])
    return memory["y0"]


@pytest.mark.parametrize("seed", [3, 7, 11, 12, 17, 24, 35, 38])
def test_random_problems(seed: int) -> None:
    problem = paged_cases.draw(seed)
    problem.check(run(problem))


@pytest.mark.parametrize("window", [None, 90])
def test_several_runs_of_keys(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged, "_CHUNK", 128)
    rng = np.random.default_rng(0)
    caches = [rng.normal(size=(30, 1, 16, 16)).astype(np.float32) for _ in range(2)]
    integers = (rng.permutation(60).reshape(3, 20) % 30, [310, 200, 17], [0, 1, 4, 4])
    tables, lengths, starts = (np.array(x, np.int32) for x in integers)
    query = rng.normal(size=(5, 3, 16)).astype(np.float32)
    sinks = rng.normal(size=3).astype(np.float32)
    options = Options(scale=0.3, window=window, softcap=2.0, has_sinks=True)
    problem = Problem([query, caches[0], tables, lengths, starts, caches[1], sinks], options)
    problem.check(run(problem))


def types_of(
    tokens: int, requests: int, heads: int, key_heads: int, width: int, *, query: Any, stored: Any
) -> list[ArrayType]:
    found = [ArrayType((tokens, heads, width), query), ArrayType((300, key_heads, 32, width), stored)]
    found += [ArrayType(shape, dtypes.int32) for shape in ((requests, 128), (requests,), (requests + 1,))]
    found += [found[1]]
    if stored == dtypes.int8:
        found += [ArrayType((300, key_heads, 32), dtypes.float32)] * 2
    return found


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("tokens, width, query, stored", [
    (16, 128, dtypes.bfloat16, dtypes.bfloat16),
    (512, 128, dtypes.bfloat16, dtypes.int8),
    (512, 256, dtypes.bfloat16, dtypes.float32),
])  # fmt: skip
def test_tiles_fit_the_shared_memory(
    tokens: int, width: int, query: Any, stored: Any, capability: int, tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    target = nvidia(capability)
    types = types_of(tokens, 16, 32, 8, width, query=query, stored=stored)
    options = Options(scale=0.1, window=100, has_scales=stored == dtypes.int8)
    with inf.config(cache_dir=str(tmp_path)):
        for source in paged.paged_attention(types, ir.Attrs(options.attrs()), target):
            # The compiler refuses what does not fit.
            assert compile_.compile_source(source, target).shared_bytes <= target.shared_bytes


def test_latent_attention_and_floats_of_a_byte_take_the_definition() -> None:
    attrs = ir.Attrs(Options(scale=1.0).attrs())
    given = {"query": dtypes.float32, "stored": dtypes.float32}
    assert paged.is_suited(types_of(4, 2, 4, 2, 64, **given), attrs)
    assert not paged.is_suited(types_of(4, 2, 4, 2, 576, **given), attrs)
    assert not paged.is_suited(
        types_of(4, 2, 4, 2, 64, query=dtypes.float32, stored=dtypes.float8_e4m3fn), attrs
    )


def test_a_step_compiles_for_a_gpu() -> None:
    types = types_of(16, 16, 8, 2, 64, query=dtypes.bfloat16, stored=dtypes.bfloat16)
    query, keys, tables, lengths, starts, values = (inf.ShapeDtypeStruct(t.shape, t.dtype) for t in types)
    new = inf.ShapeDtypeStruct((16, 2, 64), dtypes.bfloat16)
    slots = inf.ShapeDtypeStruct((16,), dtypes.int32)

    def step(keys: Any, values: Any, query: Any, new: Any, slots: Any, *rest: Any) -> Any:
        keys, values = lax.paged_update(keys, new, slots), lax.paged_update(values, new, slots)
        return keys, values, lax.paged_attention(query, keys, values, *rest)

    program = inf.jit(step).trace(keys, values, query, new, slots, tables, lengths, starts).program
    executable = cuda.CudaBackend().compile(program, CompileOptions(donated=(0, 1)))
    assert executable.plan.donated == {0, 1}
    assert executable.plan.nbytes < types[1].nbytes
