"""Kernels that read matrices in few bits, against the definition in NumPy: every scheme, both arrangements,
few and many rows, rows that end inside a chunk, and the instructions of other processors.
"""

from __future__ import annotations

import functools

import ml_dtypes
import numpy as np
import pytest

import infini as inf
from infini import lax, quantization
from infini.backends.cpu import processor
from infini.compiler.llvm.quantized import activations, exact, forms, matrix, panel_forms, panels, rows
from infini.compiler.llvm.target import Target, host_target, make_target
from infini.compiler.passes import quantized
from infini.compiler.passes.quantized import Form
from infini.core import dtypes
from infini.core.ir import ArrayType
from infini.lax.quantized import reference
from infini.quantization import QuantizedArray, Scheme, int4, int8, quantize
from tests.compiler import llvm_kernels

LINUX = "x86_64-unknown-linux-gnu"
AVX2 = make_target(LINUX, "haswell", "+avx2,+fma,+f16c,+avx,+sse4.2")
VNNI = make_target(LINUX, "alderlake", "+avx2,+fma,+f16c,+avx,+sse4.2,+avxvnni")
TARGETS = [pytest.param(t, id=t.cpu) for t in (host_target(), AVX2, VNNI)]
SCHEMES = [
    "Q8_0", "Q4_0", "Q4_1", "Q3_K", "Q4_K", "Q5_K", "Q6_K", int8(), int8(64, "bfloat16"),
    int4(64, scale_dtype="float16"), int4(32, zero_point=True), int4(128), int4(256),
]  # fmt: skip
SOME = ["Q8_0", "Q4_0", "Q4_K", "Q6_K"]  # on processors that are not this one
FEW = [("Q8_0", VNNI), ("Q6_K", VNNI), *((s, AVX2) for s in SOME), *((s, host_target()) for s in SCHEMES)]
MANY = [("Q4_0", VNNI), *((s, host_target()) for s in SCHEMES)]
EXACT = [("Q8_0", AVX2), ("Q6_K", AVX2), *((s, host_target()) for s in SCHEMES)]


def name_of(x: object) -> str:
    return x.cpu if isinstance(x, Target) else str(x)


def needs(target: Target) -> None:
    if not target.is_x86 or not host_target().is_x86 or processor.missing(target):
        pytest.skip("the processor lacks instructions")


def normal(*shape: int, dtype: object = np.float32) -> np.ndarray:
    found = np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)
    return found.astype(dtypes.canonical(dtype))


@functools.cache
def stored(scheme: Scheme | str, n: int, k: int, *, is_arranged: bool = False) -> QuantizedArray:
    w = quantize(normal(n, k), scheme)
    return w.arranged() if is_arranged else w


def planes_of(w: QuantizedArray) -> list[np.ndarray]:
    return [np.asarray(p) for p in w.planes]


def numbers(w: QuantizedArray) -> np.ndarray:
    return reference.dequantize(planes_of(w), w.scheme)


def by_bytes(x: np.ndarray, w: QuantizedArray, target: Target, *, is_many: bool) -> np.ndarray:
    """The product of rounded activations by the kernels for a processor."""
    planes = planes_of(w)
    types = [ArrayType(p.shape, p.dtype) for p in planes]
    form = Form(is_biased=True, part=w.scheme.part if w.scheme.name == "Q2_K" else 32)
    if not is_many:
        form = Form()
        if w.scheme.rows > 1:
            reader = panels.reader_of(types, w.scheme, target)
            form = Form(part=reader.part, center=reader.center)
    x_type = ArrayType(x.shape, x.dtype)
    given = llvm_kernels.run_phases(
        activations.emit(x_type, form, target),
        [x],
        quantized.types_of(x_type, form.part, form.center),
        target,
    )
    emit = matrix.emit if is_many else rows.emit if w.scheme.rows == 1 else panels.emit
    phases = emit(len(x), types, scheme=w.scheme, dtype=dtypes.float32, target=target)
    out = ArrayType((len(x), w.shape[0]), dtypes.float32)
    return llvm_kernels.run_phases(phases, [*given, *planes], [out], target)[0]


def close(found: np.ndarray, wanted: np.ndarray, tolerance: float = 2e-6) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * float(np.abs(wanted).max()))


# --- rounded activations ------------------------------------------------------------------------


@pytest.mark.parametrize("form", [Form(), Form(is_biased=True), Form(part=16, center=32)], ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_activations_are_rounded_as_the_definition_says(form: Form, target: Target) -> None:
    needs(target)
    x = normal(3, 300, dtype="bfloat16")
    x[1] = 0
    type_ = ArrayType(x.shape, x.dtype)
    types = quantized.types_of(type_, form.part, form.center)
    found = llvm_kernels.run_phases(activations.emit(type_, form, target), [x], types, target)
    attrs = {"is_biased": form.is_biased, "part": form.part, "center": form.center}
    for a, b in zip(found, quantized._reference_bytes(x, **attrs), strict=True):
        np.testing.assert_array_equal(a, b)
    codes = found[0][:, :300].view(np.uint8).astype(np.float32) - 128 if form.is_biased else found[0][:, :300]
    whole = codes.astype(np.float32) * np.repeat(found[1], 32, -1)[:, :300]
    np.testing.assert_array_equal(whole, reference.rounded(x))


@pytest.mark.parametrize("odd", [np.nan, np.inf], ids=str)
def test_an_activation_that_is_no_number_reaches_the_result(odd: float) -> None:
    x = normal(2, 256)
    x[0, 5] = odd
    found = np.asarray(inf.jit(product)(x, stored("Q4_0", 16, 256)))
    assert np.isnan(found[0]).all() and np.isfinite(found[1]).all()


def product(x: np.ndarray, w: QuantizedArray) -> object:
    return lax.quantized_matmul(x, w, activations="int8")


# --- products -----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_arranged", [False, True], ids=["plain", "arranged"])
@pytest.mark.parametrize(("scheme", "target"), FEW, ids=name_of)
def test_few_rows_in_bytes(scheme: Scheme | str, is_arranged: bool, target: Target) -> None:
    needs(target)
    w, x = stored(scheme, 48 if is_arranged else 7, 512, is_arranged=is_arranged), normal(3, 512)
    close(by_bytes(x, w, target, is_many=False), reference.rounded(x) @ numbers(w).T)


@pytest.mark.parametrize("is_arranged", [False, True], ids=["plain", "arranged"])
@pytest.mark.parametrize(("scheme", "target"), MANY, ids=name_of)
def test_many_rows_in_bytes(scheme: Scheme | str, is_arranged: bool, target: Target) -> None:
    needs(target)
    if not matrix.is_possible(target):
        pytest.skip("there is no such kernel for this processor")
    w, x = stored(scheme, 48 if is_arranged else 37, 512, is_arranged=is_arranged), normal(13, 512)
    close(by_bytes(x, w, target, is_many=True), reference.rounded(x) @ numbers(w).T)


@pytest.mark.parametrize("is_arranged", [False, True], ids=["plain", "arranged"])
@pytest.mark.parametrize(("scheme", "target"), EXACT, ids=name_of)
def test_few_exact_rows(scheme: Scheme | str, is_arranged: bool, target: Target) -> None:
    needs(target)
    w, x = stored(scheme, 16 if is_arranged else 5, 512, is_arranged=is_arranged), normal(3, 512)
    planes = planes_of(w)
    types = [ArrayType(p.shape, p.dtype) for p in planes]
    phases = exact.emit(3, types, scheme=w.scheme, dtype=dtypes.float32, target=target)
    out = ArrayType((3, w.shape[0]), dtypes.float32)
    close(llvm_kernels.run_phases(phases, [x, *planes], [out], target)[0], x @ numbers(w).T)


@pytest.mark.parametrize("scheme", ["Q5_0", "Q5_1", "Q2_K"])
def test_schemes_that_only_arranged_arrays_have_kernels_for(scheme: str) -> None:
    w, x = stored(scheme, 48, 512, is_arranged=True), normal(9, 512)
    rounded = reference.rounded(x) @ numbers(w).T
    close(by_bytes(x, w, host_target(), is_many=False), rounded)
    if matrix.is_possible(host_target()):
        close(by_bytes(x, w, host_target(), is_many=True), rounded)
    few = x[:3]
    compiled = inf.jit(lax.quantized_matmul).lower(few, w).compile()
    assert compiled.cost_analysis()["kernels"] == 1
    close(np.asarray(compiled(few, w)), few @ numbers(w).T)


@pytest.mark.parametrize("is_many", [False, True], ids=["few", "many"])
@pytest.mark.parametrize("scheme", ["Q8_0", "Q4_0", int8()], ids=str)
@pytest.mark.parametrize("is_arranged", [False, True], ids=["plain", "arranged"])
def test_rows_that_end_inside_a_chunk(scheme: Scheme | str, is_arranged: bool, is_many: bool) -> None:
    if is_many and not matrix.is_possible(host_target()):
        pytest.skip("there is no such kernel for this processor")
    w, x = stored(scheme, 16 if is_arranged else 5, 288, is_arranged=is_arranged), normal(2, 288)
    found = by_bytes(x, w, host_target(), is_many=is_many)
    close(found, reference.rounded(x) @ numbers(w).T)


def test_a_row_of_any_length_with_one_scale() -> None:
    w, x = stored(int8(), 5, 101), normal(2, 101)
    close(by_bytes(x, w, host_target(), is_many=False), reference.rounded(x) @ numbers(w).T)
    close(np.asarray(lax.quantized_matmul(x, w)), x @ numbers(w).T)


def test_sums_over_more_than_fits_the_stack() -> None:
    if not matrix.is_possible(host_target()):
        pytest.skip("there is no such kernel for this processor")
    k = (matrix.DEPTH_CHUNKS + 3) * 256
    w, x = stored("Q4_0", 33, k), normal(9, k)
    close(by_bytes(x, w, host_target(), is_many=True), reference.rounded(x) @ numbers(w).T)


def test_more_rows_than_one_task_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    if not matrix.is_possible(host_target()):
        pytest.skip("there is no such kernel for this processor")
    monkeypatch.setattr(matrix, "ROW_BLOCK", 16)
    w, x = stored("Q8_0", 40, 256), normal(41, 256)
    close(by_bytes(x, w, host_target(), is_many=True), reference.rounded(x) @ numbers(w).T)


def test_a_row_does_not_depend_on_the_others() -> None:
    w, x = stored("Q4_K", 32, 512, is_arranged=True), normal(6, 512)
    whole = by_bytes(x, w, host_target(), is_many=False)
    for i in range(6):
        np.testing.assert_array_equal(by_bytes(x[i : i + 1], w, host_target(), is_many=False)[0], whole[i])


# --- programs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("activations_", ["exact", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("scheme", ["Q4_0", "Q6_K"])
def test_a_few_rows_make_no_matrix(scheme: str, dtype: str, activations_: str) -> None:
    w, x = stored(scheme, 64, 512), normal(1, 2, 512, dtype=dtype)
    compiled = (
        inf.jit(lambda x, w: lax.quantized_matmul(x, w, activations=activations_)).lower(x, w).compile()
    )
    assert compiled.memory_analysis()["temp bytes"] <= 2 * 512 * 8
    assert compiled.cost_analysis()["kernels"] <= 2
    found = np.asarray(compiled(x, w)).astype(np.float32)
    given = x.astype(np.float32) if activations_ == "exact" else reference.rounded(x)
    eps = float(ml_dtypes.finfo(dtypes.canonical(dtype)).eps)
    close(found, given @ numbers(w).T, 2e-6 + eps)


def test_many_rows_in_bytes_make_no_matrix() -> None:
    if not matrix.is_possible(host_target()):
        pytest.skip("there is no such kernel for this processor")
    w, x = stored("Q4_0", 256, 512), normal(32, 512)
    compiled = inf.jit(product).lower(x, w).compile()
    assert compiled.memory_analysis()["temp bytes"] <= 32 * 512 * 2
    close(np.asarray(compiled(x, w)), reference.rounded(x) @ numbers(w).T)


def test_products_of_one_input_share_its_bytes() -> None:
    def three(x: np.ndarray, ws: list[QuantizedArray]) -> list[object]:
        return [product(x, w) for w in ws]

    ws = [stored("Q4_0", 32, 256), stored("Q8_0", 16, 256), stored("Q4_K", 48, 256)]
    program = inf.jit(three).lower(normal(2, 256), ws).compile()
    names = [phase["name"] for phase in program.phases()] if hasattr(program, "phases") else []
    assert program.cost_analysis()["kernels"] == 4, names


def test_a_loop_over_layers_reads_the_matrix_of_each() -> None:
    w, x = quantize(normal(3, 64, 64) / 8, "Q4_0"), normal(1, 64)

    def run(x: np.ndarray, w: QuantizedArray) -> object:
        return lax.scan(lambda x, w: (product(x, w), None), x, w)[0]

    expected = x
    for matrix_ in np.asarray(w.dequantize()):
        expected = reference.rounded(expected) @ matrix_.T
    close(np.asarray(inf.jit(run)(x, w)), expected, 1e-5)


def test_what_has_no_kernel_is_computed_by_its_definition() -> None:
    odd = make_target("aarch64-unknown-linux-gnu", "generic", "+neon")
    for scheme in (quantization.Q4_0, quantization.Q6_K):
        assert not forms.has_code(scheme, 512, odd) and not panel_forms.has_code(scheme, 512, odd)
    assert not forms.has_code(quantization.Q5_0, 512, host_target())
    w, x = stored("Q5_0", 16, 256), normal(3, 256)
    close(np.asarray(inf.jit(product)(x, w)), reference.rounded(x) @ numbers(w).T)
