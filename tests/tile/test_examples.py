"""The examples of kernels: right on every route, at odd sizes, on views and on nothing."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import testing
from infini.core import dtypes
from tests.tile.example_kernels import CASES, EMPTY, FLOATS, FOLDER, Case, module

NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_results(case: Case, dtype: np.dtype, backend_name: str, rng: Any) -> None:
    operands = case.operands(rng, dtype)
    with inf.config(device=backend_name):
        found = case.kernel(*operands, **case.static)
    assert found.dtype == dtype
    testing.assert_close(found, case.wanted(*operands), case.kind)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_of_default_block_sizes_under_jit(case: Case, rng: Any) -> None:
    kernel, operands = getattr(module(case.name), case.name), case.operands(rng, dtypes.float32)
    found = inf.jit(lambda *xs: kernel(*xs, **case.static))(*operands)
    testing.assert_close(found, case.wanted(*operands), case.kind)


def turned(x: np.ndarray) -> np.ndarray:
    """The same array, its dimensions in the other order in memory."""
    return np.array(x.T, order="C").T


def sparse(x: np.ndarray) -> np.ndarray:
    """The same array, every second element of a larger one along its last dimension."""
    wide = np.full((*x.shape[:-1], 2 * x.shape[-1]), np.nan, x.dtype)
    wide[..., 1::2] = x
    return wide[..., 1::2]


def reversed_(x: np.ndarray) -> np.ndarray:
    """The same array, backwards in memory."""
    return np.flip(np.array(np.flip(x)))


def repeated(x: np.ndarray) -> np.ndarray:
    """One of its elements along the first dimension, repeated with a stride of 0."""
    return np.broadcast_to(x[:1], x.shape)


@pytest.mark.parametrize("view", [turned, sparse, reversed_, repeated], ids=lambda view: view.__name__)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_views_of_numpy(case: Case, view: Any, rng: Any) -> None:
    operands = [view(x) if x.ndim else x for x in case.operands(rng, dtypes.float32)]
    found = case.kernel(*operands, **case.static)
    testing.assert_close(found, case.wanted(*operands), case.kind)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_views_inside_a_program(case: Case, rng: Any) -> None:
    operands = case.operands(rng, dtypes.float32)

    def views(*mirrored: Any) -> Any:
        return case.kernel(*(inp.flip(x.T) for x in mirrored), **case.static)

    found = inf.jit(views)(*(np.flip(x).T for x in operands))
    testing.assert_close(found, case.wanted(*operands), case.kind)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_arrays_of_our_own(case: Case, rng: Any) -> None:
    operands = case.operands(rng, dtypes.float32)
    found = case.kernel(*map(inp.asarray, operands), **case.static)
    assert isinstance(found, inf.Array)
    testing.assert_close(found, case.wanted(*operands), case.kind)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_batch(case: Case, rng: Any) -> None:
    """Every array but the last has a batch dimension, at another place each."""
    calls = [case.operands(rng, dtypes.float32) for _ in range(3)]
    num_batched = max(len(case.shapes) - 1, 1)
    operands = [np.stack([c[i] for c in calls], i % 2) for i in range(num_batched)]
    shared = calls[0][num_batched:]
    in_axes = (*(i % 2 for i in range(num_batched)), *[None] * len(shared))
    kernel = inf.vmap(lambda *xs: case.kernel(*xs, **case.static), in_axes=in_axes)
    wanted = np.stack([case.wanted(*c[:num_batched], *shared) for c in calls])
    testing.assert_close(kernel(*operands, *shared), wanted, case.kind)


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_empty_operands(case: Case, backend_name: str, rng: Any) -> None:
    operands = case.operands(rng, dtypes.float32)
    with inf.config(device=backend_name):
        found = case.kernel(*operands, **case.static)
    testing.assert_close(found, case.wanted(*operands), case.kind)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_by_the_interpreter_of_triton(case: Case, dtype: np.dtype, rng: Any) -> None:
    pytest.importorskip("triton")
    from infini.compiler.triton import emit, interpret

    operands = case.operands(rng, dtype)
    kernel = case.kernel.specialize(case.types(dtype), **case.static)
    source = emit.emit_triton(kernel, case.types(dtype))
    (found,) = interpret.interpret(source, operands, kernel.outputs)
    assert found.dtype == dtype
    testing.assert_close(found, case.wanted(*operands), case.kind)


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_empty_operands_by_the_interpreter_of_triton(case: Case, rng: Any) -> None:
    pytest.importorskip("triton")
    from infini.compiler.triton import emit, interpret

    operands, types = case.operands(rng, dtypes.float32), case.types(dtypes.float32)
    kernel = case.kernel.specialize(types, **case.static)
    (found,) = interpret.interpret(emit.emit_triton(kernel, types), operands, kernel.outputs)
    testing.assert_close(found, case.wanted(*operands), case.kind)


# --- machine code -----------------------------------------------------------------------------


@pytest.fixture
def own_cache(tmp_path_factory: Any, monkeypatch: Any) -> Any:
    """Caches of this run only: ours, and Triton's."""
    folder = tmp_path_factory.getbasetemp() / "tile_examples"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder / "triton"))
    with inf.config(cache_dir=str(folder)):
        yield


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiles_for_a_gpu(case: Case, dtype: np.dtype) -> None:
    pytest.importorskip("triton")
    from infini.compiler.triton import compile as compile_, emit

    kernel = case.kernel.specialize(case.types(dtype), **case.static)
    cubin = compile_.compile_source(emit.emit_triton(kernel, case.types(dtype)), 90)
    assert cubin.code.startswith(b"\x7fELF") and ".target sm_90" in cubin.ptx
    if dtype != dtypes.float32 and case.name in {"mm", "addmm", "bmm", "conv2d"}:
        assert "mma" in cubin.ptx


TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}


@pytest.mark.night
@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiles_at_default_block_sizes(case: Case, dtype: np.dtype, target: str) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    from infini.compiler.triton import emit
    from infini.compiler.triton.module import load_module

    function = getattr(module(case.name), case.name)
    source = emit.emit_triton(function.specialize(case.types(dtype), **case.static), case.types(dtype))
    attributes = {(i,): [["tt.divisibility", 16]] for i in range(len(source.signature))}
    described = triton.compiler.ASTSource(
        load_module(source.text)[source.function_name],
        signature=dict(source.signature), constexprs={}, attrs=attributes,
    )  # fmt: skip
    # AMD's compiler counts the stage that computes, NVIDIA's the loads in flight.
    options = {"num_warps": source.num_warps, "num_stages": 2 if target == "gfx942" else source.num_stages}
    compiled = triton.compile(
        described, target=GPUTarget(*TARGETS[target]), options={**options, "enable_fp_fusion": True}
    )
    code = compiled.asm["hsaco" if target == "gfx942" else "cubin"]
    assert code.startswith(b"\x7fELF")


# --- as programs ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_runs_as_a_program(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert module(name).main() < 1e-3
    assert capsys.readouterr().out.startswith(f"{name}: largest difference from ")


def test_every_example_has_a_case() -> None:
    assert len(NAMES) == 13
    assert {case.name for case in CASES} == {case.name for case in EMPTY} == set(NAMES)


# Statements of the kernels of https://github.com/InfiniTensor/ninetoothed-examples (ops/ninetoothed/kernels),
# without imports and the choice of configurations; `addmm` and `bmm` have their products from `mm` there.
STATEMENTS = {
    "add": 10, "addmm": 9, "bmm": 18, "conv2d": 42, "fused_rms_norm": 9, "max_pool2d": 17, "mm": 27,
    "rms_norm": 8, "rotary_position_embedding": 25, "scaled_dot_product_attention": 37, "silu": 8,
    "softmax": 10, "swiglu": 9,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_is_as_short_as_its_original(name: str) -> None:
    statements = [
        inner
        for outer in ast.parse(inspect.getsource(module(name))).body
        if not isinstance(outer, (ast.Import, ast.ImportFrom, ast.Expr, ast.If))
        if getattr(outer, "name", "") != "main"
        for inner in ast.walk(outer)
        if isinstance(inner, ast.stmt)
    ]
    assert len(statements) <= STATEMENTS[name]
