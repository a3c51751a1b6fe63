"""Arrays in few bits whose groups are cut into parts, arrays whose rows lie together, and activations that
are rounded before they are multiplied.
"""

from __future__ import annotations

import numpy as np
import pytest

import infini as inf
from infini import lax, quantization
from infini.core import primitive, text
from infini.lax.quantized import reference, scheme as scheme_
from infini.quantization import QuantizedArray, int4, int8, quantize
from infini.testing import assert_close

PARTS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
ARRANGED = ["Q8_0", "Q4_1", "Q5_0", "Q3_K", "Q4_K", "Q6_K", int4(64, zero_point=True), int8()]


def normal(*shape, dtype=np.float32):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def planes_of(w):
    return [np.asarray(p) for p in w.planes]


# --- groups in parts --------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", PARTS)
def test_numbers_come_back_within_a_step_of_their_part(scheme):
    x = normal(3, 512)
    w = quantize(x, scheme)
    size = w.scheme.part
    parts = x.reshape(3, -1, size)
    low, high = np.minimum(parts.min(-1), 0), np.maximum(parts.max(-1), 0)
    # From the smallest number to the largest, or twice the largest magnitude.
    spans = high - low if w.scheme.beside else 2 * np.abs(parts).max(-1)
    step = spans / (2**w.scheme.bits - 1)
    error = np.abs(np.asarray(w.dequantize()) - x).reshape(parts.shape)
    # Half a step, more where one end lacks a code, and sub-scales are whole numbers themselves.
    rounding = {2: 1 / 15, 3: 1 / 31}.get(w.scheme.bits, 1 / 63) * spans.max()
    assert (error.max(-1) <= 1.1 * step + rounding).all()


@pytest.mark.parametrize("scheme", PARTS)
def test_dequantize_equals_its_numpy_definition(scheme):
    w = quantize(normal(3, 512), scheme)
    expected = reference.dequantize(planes_of(w), w.scheme)
    np.testing.assert_array_equal(np.asarray(w.dequantize()), expected)
    np.testing.assert_array_equal(np.asarray(inf.jit(lambda w: w.dequantize())(w)), expected)


@pytest.mark.parametrize("scheme", PARTS)
def test_the_bytes_of_a_file_go_there_and_back(scheme):
    w = quantize(normal(2, 3, 256), scheme)
    again = quantization.from_ggml(w.to_ggml(), scheme)
    assert again.scheme.bits_per_number == 8 * again.to_ggml().size / again.size
    for a, b in zip(planes_of(w), planes_of(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_zeros_stay_zeros():
    for scheme in PARTS:
        assert not np.asarray(quantize(np.zeros((1, 256), np.float32), scheme).dequantize()).any()


def test_it_is_a_pytree_with_a_plane_more():
    w = quantize(normal(4, 512), "Q4_K")
    assert inf.tree.map(lambda p: p.shape, w).sub_scales == (4, 2, 12)
    assert repr(w) == "QuantizedArray(Q4_K, f32[4,512], 1152 bytes)"
    assert w[1:3].shape == (2, 512)
    with pytest.raises(TypeError, match="do not go together"):
        QuantizedArray(
            w.blocks, w.scales, w.minima, None, w.sub_scales[..., :8], scheme=w.scheme
        ).dequantize()
    with pytest.raises(TypeError, match="has other planes"):
        QuantizedArray(w.blocks, w.scales, w.minima, scheme=w.scheme).dequantize()


# --- rows that lie together -------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ARRANGED, ids=str)
def test_an_arranged_array_has_the_same_numbers(scheme):
    w = quantize(normal(2, 32, 256), scheme)
    found = w.arranged()
    assert found.scheme.rows == 16 and (found.shape, found.nbytes) == (w.shape, w.nbytes)
    np.testing.assert_array_equal(np.asarray(found.dequantize()), np.asarray(w.dequantize()))
    for a, b in zip(planes_of(w), planes_of(found.plain()), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(
        reference.dequantize(planes_of(found), found.scheme), np.asarray(w.dequantize())
    )
    assert scheme_.parse(str(found.scheme)) == found.scheme


def test_what_cannot_be_arranged_stays_as_it_is():
    for w in (
        quantize(normal(17, 64), "Q4_0"),
        quantize(normal(64), "Q4_0"),
        quantize(normal(16, 2), int8()),
    ):
        assert w.arranged() is w
    once = quantize(normal(16, 64), "Q4_0").arranged()
    assert once.arranged() is once


@pytest.mark.parametrize("scheme", ["Q4_0", "Q6_K"])
def test_rows_of_an_arranged_array_are_found(scheme):
    w = quantize(normal(48, 256), scheme)
    whole, found = np.asarray(w.dequantize()), w.arranged()
    for index in (1, -1, slice(1, 20), np.array([3, 40, -2]), np.array([[0], [17]])):
        np.testing.assert_array_equal(np.asarray(found[index].dequantize()), whole[index])
    stacked = quantize(normal(2, 16, 256), scheme).arranged()
    np.testing.assert_array_equal(np.asarray(stacked[1].dequantize()), np.asarray(stacked.dequantize())[1])


def test_an_arranged_array_has_the_bytes_of_a_file():
    w = quantize(normal(16, 256), "Q4_K")
    np.testing.assert_array_equal(np.asarray(w.arranged().to_ggml()), np.asarray(w.to_ggml()))


@pytest.mark.parametrize("activations", ["exact", "int8"])
def test_products_with_an_arranged_array(activations):
    w, x = quantize(normal(32, 64), "Q4_0"), normal(3, 5, 64)
    found = lax.quantized_matmul(x, w.arranged(), activations=activations)
    assert_close(found, lax.quantized_matmul(x, w, activations=activations), "contraction")
    back = lax.quantized_matmul(normal(3, 32), w.arranged(), transpose=False)
    assert_close(back, lax.quantized_matmul(normal(3, 32), w, transpose=False), "contraction")
    stacked = quantize(normal(2, 16, 64), "Q4_0")
    mapped = inf.vmap(lambda x, w: lax.quantized_matmul(x, w))(normal(2, 3, 64), stacked.arranged())
    assert_close(mapped, inf.vmap(lax.quantized_matmul)(normal(2, 3, 64), stacked), "contraction")


def test_an_arranged_array_is_split_by_panels_and_by_groups():
    program = inf.make_jaxpr(lax.quantized_matmul)(normal(2, 64), quantize(normal(32, 64), "Q4_0").arranged())
    (equation,) = [e for e in program.equations if e.op.name == "quantized_matmul"]
    rule = equation.op.rule(primitive.PLACE)
    factors = rule(
        equation.op, [v.type for v in equation.inputs], [v.type for v in equation.outputs], equation.attrs
    )
    assert factors.inputs == ((("m",), ("g",)), (("p",), ("g",), ()), (("p",), ("g",), ()))
    assert factors.outputs == ((("m",), ("p",)),)


# --- rounded activations ----------------------------------------------------------------------


@pytest.mark.parametrize("k", [64, 70])
def test_activations_are_rounded_by_32(k):
    w, x = quantize(normal(6, k), int8()), normal(3, k)
    found = lax.quantized_matmul(x, w, activations="int8")
    rounded = reference.rounded(x)
    assert np.abs(rounded - x).max() <= np.abs(x).max() / 254 * 1.001
    assert_close(found, rounded @ np.asarray(w.dequantize()).T, "contraction")
    across = lax.quantized_matmul(normal(3, 6), w, transpose=False, activations="int8")
    assert_close(across, reference.rounded(normal(3, 6)) @ np.asarray(w.dequantize()), "contraction")


def test_rounding_counts_as_the_identity_in_derivatives():
    w, x = quantize(normal(6, 64), "Q8_0"), normal(3, 64)
    found = inf.grad(lambda x: lax.quantized_matmul(x, w, activations="int8").sum())(x)
    expected = inf.grad(lambda x: lax.quantized_matmul(x, w).sum())(x)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    _, tangent = inf.jvp(lambda x: lax.quantized_matmul(x, w, activations="int8"), (x,), (x,))
    assert_close(tangent, lax.quantized_matmul(x, w), "contraction")


def test_another_form_of_activations_is_refused():
    with pytest.raises(ValueError, match="no such form of activations"):
        lax.quantized_matmul(normal(1, 64), quantize(normal(2, 64), "Q4_0"), activations="int4")


def test_a_program_with_rounded_activations_prints_and_parses():
    program = inf.make_jaxpr(lambda x, w: lax.quantized_matmul(x, w, activations="int8"))(
        normal(2, 64), quantize(normal(16, 64), "Q4_0").arranged()
    )
    assert text.parse(repr(program)) == program
