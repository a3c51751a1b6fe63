"""The golden kernels: their text, the names it uses, what Triton makes of it, and their results under
Triton's interpreter.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
import pytest

import infini as inf
from infini.backends import cuda
from infini.backends.reference import interpreter
from infini.compiler.triton import language
from infini.compiler.triton.source import TritonSource
from infini.compiler.triton.target import GENERIC, target_of
from infini.core.backend import CompileOptions, Device
from tests.compiler import golden_kernels as g

DEVICE = Device("cuda", 0)


@functools.cache
def sources(name: str) -> list[TritonSource]:
    return g.sources({**g.PROGRAMS, **g.RULES}[name])


@pytest.mark.parametrize("name", g.PROGRAMS)
def test_text(name: str, golden: Any) -> None:
    text = "\n\n".join(
        f"# --- {s.function_name}: grid {s.grid}, {s.num_warps} warps\n\n{s.text}" for s in sources(name)
    )
    golden(f"triton/{name}.txt", re.sub(r"(golden_kernels|kernels)\.py:\d+", r"\1.py", text))


@pytest.mark.parametrize("name", [*g.PROGRAMS, *g.RULES])
def test_only_names_of_the_language_are_used(name: str) -> None:
    assert [v for s in sources(name) for v in language.violations(s.text, GENERIC)] == []


@pytest.mark.parametrize("how", g.NARROW)
@pytest.mark.parametrize("name", ["softmax", "matmul_gelu", "gather"])
def test_folded_grids_compile(name: str, how: str, monkeypatch: Any, tmp_path_factory: Any) -> None:
    compile_ = pytest.importorskip("infini.compiler.triton.compile")
    folder = tmp_path_factory.getbasetemp() / "golden"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder / "triton"))
    with inf.config(cache_dir=str(folder)):
        for source in g.sources(g.PROGRAMS[name], g.NARROW[how]):
            assert language.violations(source.text, GENERIC) == []
            assert compile_.compile_source(source, target_of("sm_90")).code.startswith(b"\x7fELF")


@pytest.mark.parametrize("name", g.PROGRAMS)
def test_results_are_the_oracles(name: str, monkeypatch: Any, rng: np.random.Generator) -> None:
    pytest.importorskip("infini.compiler.triton.compile")
    from tests.backends.fake_cupy import Machine  # which loads Triton

    Machine().install(monkeypatch)
    golden = g.PROGRAMS[name]
    arrays, program, backend = g.operands(golden, rng), g.program(golden), cuda.CudaBackend()
    executable = backend.compile(program, CompileOptions())
    found = executable([backend.put(x, DEVICE) for x in arrays])
    wanted = interpreter.evaluate(program, arrays)
    for buffer, type_, expected in zip(found, program.out_types, wanted, strict=True):
        np.testing.assert_allclose(
            backend.get(buffer, type_).astype(np.float64), expected.astype(np.float64),
            rtol=golden.tolerance, atol=golden.tolerance,
        )  # fmt: skip


# Every version for every target is a matter of the night; here one target has all of them.
FEW = ("softmax", "matmul_gelu", "scatter_add_bfloat16", "sort_short")


@pytest.mark.parametrize(
    ("name", "target"),
    [*((name, "sm_90") for name in g.PROGRAMS), *((name, t) for name in FEW for t in ("sm_80", "gfx942"))],
)
def test_the_installed_triton_compiles_it(
    name: str, target: str, monkeypatch: Any, tmp_path_factory: Any
) -> None:
    compile_ = pytest.importorskip("infini.compiler.triton.compile")
    folder = tmp_path_factory.getbasetemp() / "golden"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder / "triton"))
    with inf.config(cache_dir=str(folder)):
        for source in sources(name):
            assert compile_.compile_source(source, target_of(target)).code.startswith(b"\x7fELF")
