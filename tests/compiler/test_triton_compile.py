"""Ahead-of-time compilation for GPUs that are not here: the machine code exists, uses the right instructions,
and is cached.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import infini as inf
from infini.compiler import disk_cache, pipeline
from infini.core import dtypes, errors, trace
from infini.core.ir import ArrayType
from infini.core.source import Where
from tests.compiler import triton_kernels as k
from tests.tile import kernels

pytest.importorskip("triton")
from triton.backends.nvidia import compiler as nvidia_compiler

from infini.compiler.triton import (
    compile as compile_,  # after the skip
    emit,
    interpret,
    lower,
    toolchain,
)
from infini.compiler.triton.source import TritonSource
from infini.compiler.triton.target import nvidia

CAPABILITIES = [80, 90]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: Any, monkeypatch: Any) -> Any:
    """Caches of this run only: ours, and Triton's."""
    folder = tmp_path_factory.getbasetemp() / "cubins"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder / "triton"))
    with inf.config(cache_dir=str(folder)):
        yield


def compiled(function: Any, capability: int, *types: ArrayType) -> compile_.Cubin:
    kernel = function.specialize(types)
    return compile_.compile_source(emit.emit_triton(kernel, types), capability)


def of(shape: tuple[int, ...], dtype: np.dtype) -> ArrayType:
    return ArrayType(shape, dtype)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.bfloat16], ids=str)
def test_elementwise_loads_are_16_bytes_wide(dtype: np.dtype, capability: int) -> None:
    cubin = compiled(kernels.add_gelu, capability, *[of((1 << 16,), dtype)] * 2)
    assert cubin.code.startswith(b"\x7fELF")
    assert f".target sm_{capability}" in cubin.ptx and "ld.global.v4" in cubin.ptx


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_softmax_reduces_in_shared_memory(capability: int) -> None:
    cubin = compiled(kernels.softmax, capability, of((64, 3000), dtypes.float32))
    assert "shfl.sync" in cubin.ptx and 0 < cubin.shared_bytes <= 1024


@pytest.mark.parametrize(("capability", "instruction"), [(80, "mma.sync"), (90, "wgmma")])
def test_products_use_the_matrix_units(capability: int, instruction: str) -> None:
    function = kernels.matmul.configure(BM=64, BN=64, BK=32)
    cubin = compiled(function, capability, *[of((512, 512), dtypes.bfloat16)] * 2)
    assert instruction in cubin.ptx and "cp.async" in cubin.ptx
    assert cubin.parameters == ("*bf16", "*bf16", "*bf16")


def test_float32_products_do_not_use_tf32() -> None:
    function = kernels.matmul.configure(BM=16, BN=16, BK=16)
    assert "tf32" not in compiled(function, 80, *[of((64, 64), dtypes.float32)] * 2).ptx


def test_products_of_bytes_compile() -> None:
    from infini.lax import contraction

    for depth in (16, 32):
        x, y = ArrayType((16, depth), dtypes.int8), ArrayType((depth, 16), dtypes.int8)
        dot = lambda x, y: contraction.contract("mk,kn->mn", x, y, preferred_element_type="int32")  # noqa: E731
        assert compile_.compile_source(emit.emit_triton(k.on_tiles(dot, x, y), [x, y]), 90).code


def test_every_scalar_rule_compiles() -> None:
    from infini.core import primitive, trace

    def everything(x: Any) -> Any:
        total = x
        for name in sorted(compile_names):
            op = primitive.by_name(name)
            count = len(op.rule(primitive.CASES).examples(x.dtype)[0].operands)
            total = trace.bind1(primitive.by_name("add"), total, trace.bind1(op, *[x] * count))
        return total

    compile_names = [
        "abs", "ceil", "cos", "div", "erf", "erf_inv", "exp", "expm1", "floor", "log", "log1p", "logistic",
        "max", "min", "neg", "pow", "rem", "round_even", "rsqrt", "sign", "sin", "sqrt", "tanh",
    ]  # fmt: skip
    for dtype in (dtypes.float32, dtypes.bfloat16):
        x = ArrayType((256,), dtype)
        kernel = k.on_tiles(everything, x)
        assert compile_.compile_source(emit.emit_triton(kernel, [x]), 90).code


def test_an_entry_of_the_cache_gives_an_equal_cubin(monkeypatch: Any, tmp_path: Path) -> None:
    types = [of((128,), dtypes.float32)] * 2
    source = emit.emit_triton(kernels.add_gelu.specialize(types), types)
    with inf.config(cache_dir=str(tmp_path)):
        first = compile_.compile_source(source, 80)
        monkeypatch.setattr(compile_, "_compile", None)
        assert compile_.compile_source(source, 80) == first


def test_a_broken_entry_of_the_cache_counts_as_missing(tmp_path: Path) -> None:
    with inf.config(cache_dir=str(tmp_path)):
        disk_cache.write("cubins", "ab12", b"content")
        (entry,) = (path for path in tmp_path.rglob("ab12"))
        assert disk_cache.read("cubins", "ab12") == b"content"
        entry.write_bytes(entry.read_bytes()[:-1])
        assert disk_cache.read("cubins", "ab12") is None


def test_the_knob_no_cache_neither_reads_nor_writes(tmp_path: Path) -> None:
    with inf.config(cache_dir=str(tmp_path), no_cache=True):
        disk_cache.write("cubins", "ab12", b"content")
    assert list(tmp_path.iterdir()) == []


def test_older_gpus_are_refused() -> None:
    types = [of((128,), dtypes.float32)] * 2
    with pytest.raises(errors.LoweringError, match=r"8\.0"):
        compile_.compile_source(emit.emit_triton(kernels.add_gelu.specialize(types), types), 75)


def test_a_driver_of_cuda_12_gets_the_assembler_of_cuda_12() -> None:
    assert compile_._assembler(90, 12040).endswith("ptxas")
    assert compile_._assembler(90, 13000) == compile_._assembler(80, 12040) == ""


def test_compilation_works_after_the_interpreter_ran(rng: Any) -> None:
    x = k.numbers(rng, (5, 8), dtypes.float32)
    kernel = kernels.softmax.specialize(k.types(x))
    interpret.interpret(k.source_of(kernel, x), [x], kernel.outputs)
    assert compiled(kernels.softmax, 80, of((7, 24), dtypes.float32)).code


# --- refusals ---------------------------------------------------------------------------------------


def gelu_of_a_line() -> TritonSource:
    types = [of((128,), dtypes.float32)] * 2
    source = emit.emit_triton(kernels.add_gelu.specialize(types), types)
    return dataclasses.replace(source, where=Where("/home/me/model.py", 12))


@pytest.fixture
def no_caches(tmp_path: Path, monkeypatch: Any) -> Any:
    """Nothing is compiled before the test."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    with inf.config(cache_dir=str(tmp_path / "ours")):
        yield


@pytest.mark.usefixtures("no_caches")
def test_a_refused_text_is_an_error_with_the_kernel_and_the_line() -> None:
    source = gelu_of_a_line()
    broken = dataclasses.replace(source, text=source.text.replace("tl.load(", "tl.unload("))
    message = r"(?s)for sm_80 refuses the kernel add_gelu.*unload.*at: +model.py:12"
    with pytest.raises(errors.LoweringError, match=message):
        compile_.compile_source(broken, 80)


@pytest.mark.usefixtures("no_caches")
def test_a_text_that_is_not_python_is_an_error_with_the_kernel() -> None:
    broken = dataclasses.replace(gelu_of_a_line(), text="@triton.jit\ndef f(:\n")
    with pytest.raises(errors.LoweringError, match=r"(?s)refuses the kernel add_gelu.*SyntaxError"):
        toolchain.compiled(broken, nvidia(80))


@pytest.mark.usefixtures("no_caches")
def test_a_pass_that_fails_is_an_error_with_the_kernel_and_the_line(monkeypatch: Any) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("PassManager::run failed")

    monkeypatch.setattr(nvidia_compiler.CUDABackend, "make_ttgir", fails)
    message = r"(?s)for sm_90 refuses the kernel add_gelu.*PassManager::run failed.*model.py:12"
    with pytest.raises(errors.LoweringError, match=message):
        compile_.compile_source(gelu_of_a_line(), 90)


@pytest.mark.usefixtures("no_caches")
def test_an_assembler_that_fails_is_an_error_with_its_words(tmp_path: Path, monkeypatch: Any) -> None:
    assembler = tmp_path / "ptxas"
    real = Path(nvidia_compiler.__file__).parent / "bin" / "ptxas"
    assembler.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exec {real} --version\necho "no registers left" >&2\nexit 1\n'
    )
    assembler.chmod(0o755)
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(assembler))
    message = r"(?s)for sm_80 refuses the kernel add_gelu.*no registers left.*model.py:12"
    with pytest.raises(errors.LoweringError, match=message):
        compile_.compile_source(gelu_of_a_line(), 80)


@pytest.mark.usefixtures("no_caches")
def test_a_kernel_with_too_much_shared_memory_is_refused_before_it_is_launched() -> None:
    types = [of((512, 512), dtypes.float32)] * 2
    kernel = kernels.matmul.configure(BM=64, BN=64, BK=64).specialize(types)
    source = dataclasses.replace(emit.emit_triton(kernel, types), num_stages=5)
    small = dataclasses.replace(nvidia(80), shared_bytes=16 << 10)
    with pytest.raises(
        errors.LoweringError, match=r"(?s)matmul_kernel needs more shared memory.*at most 16384"
    ):
        compile_.compile_source(source, small)


def test_a_source_knows_the_line_that_it_computes() -> None:
    program = trace.stage(
        lambda x: [inf.numpy.cumsum(x), inf.numpy.exp(x)], [of((8,), dtypes.float32)]
    ).program
    fused = pipeline.run(program, lower.has_route, backend="triton", observe=lambda *_: None)
    found = [source for emitted in lower.of_program(fused) for source in emitted.sources]
    assert {source.where.file for source in found if source.where is not None} == {__file__}
    assert all(source.where is not None for source in found)
