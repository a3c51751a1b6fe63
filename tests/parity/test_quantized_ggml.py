"""ggml's schemes against the package `gguf`, bit by bit: storing, reading, and the bytes in a file."""

from pathlib import Path

import gguf
import numpy as np
import pytest

import infini as inf
from infini import quantization
from infini.testing import assert_close

NAMES = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
# Where a group has its numbers of 16 bits; the package reads these schemes and does not store them.
PARTS = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


def inputs():
    rng = np.random.default_rng(3)
    grid = (rng.integers(-4, 5, (40, 64)) / 4).astype(np.float32)  # ties, in magnitude and in rounding
    return {
        "normal": rng.standard_normal((96, 256)).astype(np.float32),
        "ties": grid,
        "small": (rng.standard_normal((8, 64)) * 1e-6).astype(np.float32),
        "large": (rng.standard_normal((8, 64)) * 1e4).astype(np.float32),
        "one side": rng.uniform(1, 2, (8, 64)).astype(np.float32),
        "zeros": np.zeros((2, 64), np.float32),
        "stack": rng.standard_normal((2, 3, 32)).astype(np.float32),
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("kind", "x"), inputs().items(), ids=lambda v: v if isinstance(v, str) else "")
def test_stored_and_read_as_ggml_does(kind, x, name):
    scheme = gguf.GGMLQuantizationType[name]
    expected = gguf.quants.quantize(x, scheme)
    for store in (quantization.quantize, inf.jit(quantization.quantize, static_argnames="scheme")):
        np.testing.assert_array_equal(np.asarray(store(x, scheme=name).to_ggml()), expected)
    w = quantization.from_ggml(expected, name)
    assert w.shape == x.shape
    np.testing.assert_array_equal(np.asarray(w.to_ggml()), expected)
    # Equal bits, not only equal numbers: the sign of zero included.
    numbers = gguf.quants.dequantize(expected, scheme)
    np.testing.assert_array_equal(np.asarray(w.dequantize()).view(np.uint32), numbers.view(np.uint32))


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_are_read_as_ggml_does(name):
    scheme = gguf.GGMLQuantizationType[name]
    _, width = gguf.GGML_QUANT_SIZES[scheme]
    data = np.random.default_rng(4).integers(0, 256, (64, 4, width)).astype(np.uint8)
    data[..., 1] &= 0x3F  # scales and minima that are finite: an exponent below the largest
    data[..., 3] &= 0x3F
    data = data.reshape(64, -1)
    found = quantization.from_ggml(data, name).dequantize()
    np.testing.assert_array_equal(np.asarray(found), gguf.quants.dequantize(data, scheme))


@pytest.mark.parametrize(("name", "halves"), PARTS.items())
def test_any_bytes_of_groups_in_parts_are_read_as_ggml_does(name, halves):
    scheme = gguf.GGMLQuantizationType[name]
    _, width = gguf.GGML_QUANT_SIZES[scheme]
    data = np.random.default_rng(4).integers(0, 256, (16, 4, width)).astype(np.uint8)
    for place in halves:
        data[..., place + 1] &= 0xBF  # finite
    data = data.reshape(16, -1)
    w = quantization.from_ggml(data, name)
    np.testing.assert_array_equal(np.asarray(w.dequantize()), gguf.quants.dequantize(data, scheme))
    np.testing.assert_array_equal(np.asarray(w.to_ggml()), data)
    np.testing.assert_array_equal(np.asarray(w.arranged().to_ggml()), data)


def test_a_tensor_of_a_file_is_multiplied(tmp_path: Path):
    rng = np.random.default_rng(5)
    weight, x = (
        rng.standard_normal((6, 64)).astype(np.float32),
        rng.standard_normal((3, 64)).astype(np.float32),
    )
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    stored = np.asarray(quantization.quantize(weight, "Q5_0").to_ggml())
    writer.add_tensor("w", stored, raw_dtype=gguf.GGMLQuantizationType.Q5_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tensor,) = gguf.GGUFReader(path).tensors
    w = quantization.from_ggml(np.array(tensor.data), tensor.tensor_type.name)
    numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    assert_close(inf.lax.quantized_matmul(x, w), x @ numbers.T, "contraction")
