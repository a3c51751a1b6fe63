"""Arrays in few bits: what is stored, what comes back, and products with them, against NumPy."""

import pickle

import ml_dtypes
import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import io, lax, quantization
from infini.core import dtypes, text
from infini.lax.quantized import reference
from infini.quantization import QuantizedArray, Scheme, int4, int8, quantize
from infini.testing import assert_close

SCHEMES = [
    "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1",
    int8(), int8(32, "float16"), int8(64, "bfloat16"),
    int4(), int4(None, scale_dtype="float16"), int4(32, zero_point=True),
]  # fmt: skip


def normal(*shape, dtype=np.float32):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def planes_of(w):
    return [np.asarray(p) for p in w.planes]


# --- storing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_numbers_come_back_within_a_step(scheme):
    x = normal(6, 128)
    w = quantize(x, scheme)
    step = np.asarray(w.scales).astype(np.float32).repeat(w.scheme.group, -1)
    error = np.abs(np.asarray(w.dequantize()) - x)
    # Half a step, and more where scales are rounded to 16 bits or one end of the range lacks a code.
    assert (error <= 1.1 * np.abs(step)).all()
    assert error.mean() < 0.3 * np.abs(step).mean()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_dequantize_equals_its_numpy_definition(scheme):
    w = quantize(normal(5, 128), scheme)
    expected = reference.dequantize(planes_of(w), w.scheme)
    np.testing.assert_array_equal(np.asarray(w.dequantize()), expected)
    np.testing.assert_array_equal(np.asarray(inf.jit(lambda w: w.dequantize())(w)), expected)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_jit_stores_the_same_bytes(scheme):
    x = normal(4, 128)
    stored = inf.jit(quantize, static_argnames="scheme")(x, scheme=scheme)
    for a, b in zip(planes_of(quantize(x, scheme)), planes_of(stored), strict=True):
        np.testing.assert_array_equal(a, b)


def test_int8_is_rounding_to_a_grid():
    x = normal(3, 64)
    w = quantize(x, int8())
    scales = (np.abs(x).max(-1, keepdims=True) / 127).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(w.scales), scales)
    codes = np.asarray(w.blocks)[:, 0].view(np.int8)
    np.testing.assert_array_equal(codes, np.clip(np.rint(x / scales), -127, 127))


def test_a_zero_point_stores_zero_exactly_and_uses_all_codes():
    x = np.linspace(0, 1.5, 32, dtype=np.float32)[None]
    w = quantize(x, int4(32, zero_point=True))
    assert np.asarray(w.zero_points).tolist() == [[0]]
    assert len(np.unique(np.asarray(w.dequantize()))) == 16
    assert float(w.dequantize()[0, 0]) == 0.0


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_zeros_stay_zeros(scheme):
    np.testing.assert_array_equal(
        np.asarray(quantize(np.zeros((2, 128), np.float32), scheme).dequantize()), 0
    )


@pytest.mark.parametrize("scheme", ["int8", "int4", int4(32, zero_point=True, scale_dtype="float16"), "Q4_1"])
def test_tiny_numbers_become_zero_and_no_nan(scheme):
    w = quantize(np.full((1, 64), 1e-42, np.float32), scheme)
    assert np.isfinite(np.asarray(w.dequantize())).all()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_the_dtype_is_that_of_the_numbers_that_were_stored(dtype):
    with inf.config(host64="keep"):
        w = quantize(normal(2, 64, dtype=dtype), "Q8_0")
    assert w.dtype == dtype
    assert w.dequantize().dtype == dtype
    assert w.dequantize("float32").dtype == np.float32


def test_every_half_is_read_from_the_right_byte():
    codes = np.arange(16, dtype=np.uint8)
    blocks = (codes | (15 - codes) << 4).reshape(1, 1, 16)
    w = QuantizedArray(blocks, np.ones((1, 1), np.float16), scheme=quantization.Q4_0)
    np.testing.assert_array_equal(np.asarray(w.dequantize())[0], np.concatenate([codes, 15 - codes]) - 8.0)


# --- the class --------------------------------------------------------------------------------


def test_it_has_the_properties_of_an_array():
    w = quantize(normal(3, 6, 64), "Q4_0")
    assert (w.shape, w.ndim, w.size, w.dtype) == ((3, 6, 64), 3, 1152, np.float32)
    assert w.nbytes == 1152 * 4.5 / 8
    assert w.scheme.bits_per_number == 4.5
    assert repr(w) == "QuantizedArray(Q4_0, f32[3,6,64], 648 bytes)"


def test_rows_are_indexed():
    w = quantize(normal(5, 4, 64), "Q5_0")
    whole = np.asarray(w.dequantize())
    for index in (1, -1, slice(1, 4), (2, 3), (slice(None), 1), np.array([3, 0]), (np.array([0, 1]), 2)):
        np.testing.assert_array_equal(np.asarray(w[index].dequantize()), whole[index])


@pytest.mark.parametrize("index", [(0, 0), (slice(None), slice(None)), Ellipsis, None], ids=repr)
def test_an_index_into_a_group_is_refused(index):
    with pytest.raises(TypeError, match="indexed by whole rows"):
        quantize(normal(2, 64), "Q4_0")[index]


def test_nothing_turns_it_into_floats_silently():
    w = quantize(normal(2, 64), "Q4_0")
    for use in (lambda: inp.ones((2, 64)) @ w, lambda: inp.sin(w), lambda: np.asarray(w), lambda: w + 1):
        with pytest.raises(TypeError):
            use()


def test_files_keep_it(tmp_path):
    w = quantize(normal(4, 64), "Q5_1")
    io.write_tensors(tmp_path / "w.safetensors", {name: np.asarray(p) for name, p in w.named_planes()})
    found = QuantizedArray(**io.read_tensors(tmp_path / "w.safetensors"), scheme=w.scheme)
    np.testing.assert_array_equal(np.asarray(found.dequantize()), np.asarray(w.dequantize()))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_scheme_is_its_text(scheme):
    found = quantize(np.ones((1, 128), np.float32), scheme).scheme
    assert quantize(np.ones((1, 128), np.float32), str(found)).scheme == found
    assert hash(found) == hash(pickle.loads(pickle.dumps(found)))


# --- products ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_product_is_that_with_its_numbers(scheme, dtype):
    w = quantize(normal(6, 128), scheme)
    x = normal(2, 3, 128).astype(dtypes.canonical(dtype))
    numbers = np.asarray(w.dequantize(dtype)).astype(np.float32)
    expected = x.astype(np.float32) @ numbers.T
    found = inf.jit(lax.quantized_matmul)(x, w)
    assert found.dtype == x.dtype
    assert_close(found, expected.astype(x.dtype), "contraction")
    across = lax.quantized_matmul(expected.astype(x.dtype), w, transpose=False)
    assert across.shape == (2, 3, 128)
    again = expected.astype(x.dtype).astype(np.float32) @ numbers
    np.testing.assert_allclose(
        np.asarray(across).astype(np.float32), again, rtol=4 * float(ml_dtypes.finfo(x.dtype).eps), atol=1e-2
    )


def test_a_vector_gives_a_vector():
    w, x = quantize(normal(6, 64), "Q8_0"), normal(64)
    assert_close(lax.quantized_matmul(x, w), x @ np.asarray(w.dequantize()).T, "contraction")


def test_stacked_matrices_broadcast_map_and_scan():
    w, x = quantize(normal(3, 64, 64) / 8, "Q4_1"), normal(5, 64)
    dense = np.asarray(w.dequantize())
    expected = x @ dense.transpose(0, 2, 1)
    assert_close(lax.quantized_matmul(x, w), expected, "contraction")
    assert_close(inf.vmap(lax.quantized_matmul, (None, 0))(x, w), expected, "contraction")
    rows = np.stack([x, x + 1, x - 1])
    found = inf.jit(inf.vmap(lax.quantized_matmul))(rows, w)
    assert_close(found, rows @ dense.transpose(0, 2, 1), "contraction")
    last, _ = inf.jit(lambda x, w: lax.scan(lambda x, w: (lax.quantized_matmul(x, w), None), x, w))(x, w)
    assert_close(last, x @ dense[0].T @ dense[1].T @ dense[2].T, "program")


def test_the_gradient_of_stacked_matrices_adds_up():
    w, x = quantize(normal(3, 6, 64), "Q8_0"), normal(5, 64)
    found = inf.grad(lambda x: lax.quantized_matmul(x, w).sum())(x)
    expected = np.broadcast_to(np.asarray(w.dequantize()).sum((0, 1)), x.shape)
    assert_close(found, expected, "program")


def test_the_result_may_be_wider():
    w, x = quantize(normal(6, 64), "Q8_0"), normal(2, 64).astype(ml_dtypes.bfloat16)
    found = lax.quantized_matmul(x, w, preferred_element_type="float32")
    assert found.dtype == np.float32
    numbers = np.asarray(w.dequantize("bfloat16")).astype(np.float32)
    assert_close(found, x.astype(np.float32) @ numbers.T, "contraction")
    gradient = inf.grad(lambda x: lax.quantized_matmul(x, w, preferred_element_type="float32").sum())(x)
    assert gradient.dtype == x.dtype


def test_a_program_with_it_prints_and_parses():
    program = inf.make_jaxpr(lax.quantized_matmul)(normal(2, 64), quantize(normal(4, 64), int4(32)))
    assert text.parse(repr(program)) == program


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scheme", ["Q4_0", "Q5_1", "Q8_0", "int4", int4(32, zero_point=True)], ids=str)
def test_on_cpu_many_rows_make_the_matrix_by_one_kernel_from_the_bytes(scheme, dtype):
    """The numbers are written once, in the dtype of the activations, and nothing wider beside them."""
    n, k = 64, 256
    w, x = quantize(normal(n, k), scheme), normal(24, k).astype(dtypes.canonical(dtype))
    compiled = inf.jit(lax.quantized_matmul).lower(x, w).compile()
    counts = compiled.cost_analysis()
    assert counts["kernels"] == 2  # the kernel and the product
    assert compiled.memory_analysis()["temp bytes"] <= n * k * x.dtype.itemsize


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda x, w: lax.quantized_matmul(x[:, :32], w), "the contracted sizes differ"),
        (lambda x, w: lax.quantized_matmul(x, w, transpose=False), "the contracted sizes differ"),
        (lambda x, w: lax.quantized_matmul(x.astype(np.int32), w), "an array of floats"),
        (lambda x, w: lax.quantized_matmul(np.float32(1), w), "an array of floats"),
        (lambda x, w: lax.quantized_matmul(x, w.dequantize()), "multiplies by a quantized array"),
        (lambda x, w: lax.quantized_matmul(x, w, preferred_element_type="int32"), "results are floats"),
        (lambda x, w: lax.quantized_matmul(x, w[0]), "do not go together"),
        (
            lambda x, w: lax.quantized_matmul(x, QuantizedArray(*w.planes, scheme=quantization.Q8_0)),
            "do not go together",
        ),
        (
            lambda x, w: lax.quantized_matmul(x, QuantizedArray(*w.planes, scheme=quantization.Q4_1)),
            "has other planes",
        ),
        (lambda x, w: QuantizedArray(*w.planes, scheme=quantization.Q5_0).dequantize(), "do not go together"),
        (lambda x, w: w.dequantize("int8"), "gives floats"),
        (lambda x, w: quantize(x[:, :33], "Q4_0"), "cannot be cut into the groups"),
        (lambda x, w: quantize(x[:, :33], int4(None)), "cannot be cut into the groups"),
        (lambda x, w: quantize(x.astype(np.int32), "Q4_0"), "takes floats"),
        (lambda x, w: quantize(x, "Q7_K"), "is no scheme"),
        (lambda x, w: quantize(x, "int8:wide:f32"), "is no scheme"),
        (lambda x, w: quantize(x, 4), "a scheme is expected"),
        (lambda x, w: quantize(x, int8()).to_ggml(), "only ggml's schemes"),
        (lambda x, w: quantization.from_ggml(np.zeros((2, 17), np.uint8), "Q4_0"), "whole groups"),
        (lambda x, w: quantization.from_ggml(np.zeros((2, 18), np.int8), "Q4_0"), "takes bytes"),
        (lambda x, w: int4(33), "positive and even"),
        (lambda x, w: int8(0), "positive"),
        (lambda x, w: int8(scale_dtype="float64"), "scales do not have this dtype"),
    ],
)
def test_a_mistake_is_named(use, message):
    with pytest.raises((TypeError, ValueError), match=message):
        use(normal(3, 64), quantize(normal(4, 64), "Q4_0"))


def test_the_message_says_which_dimension_would_fit():
    with pytest.raises(TypeError) as error:
        lax.quantized_matmul(normal(3, 4), quantize(normal(4, 64), "Q4_0"))
    assert "expected: x (..., 64)" in str(error.value)
    assert "transpose=False" in str(error.value)


def test_schemes_are_values():
    assert int8(32) == int8(32)
    assert isinstance(quantization.Q4_0, Scheme)
    assert len({int8(), int8(32), int4(32), int4(32, zero_point=True)}) == 4
