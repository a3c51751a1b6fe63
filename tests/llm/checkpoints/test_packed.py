"""Folders that store weights in few bits: what is loaded is what the formats' definitions say, number by
number.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import infini as inf
from infini import io
from infini.llm import checkpoints
from infini.quantization import QuantizedArray
from tests.llm.checkpoints.folders import CONFIG, tensors_of, write

NAME = "model.layers.0.mlp.up_proj"  # (256, 64)
FP8 = ml_dtypes.float8_e4m3fn


def loaded(folder: Path, packed: dict[str, np.ndarray], config: dict[str, Any], **options: Any) -> Any:
    """`NAME` of a folder that stores it in another way."""
    tensors = tensors_of(CONFIG)
    del tensors[f"{NAME}.weight"]
    stated = CONFIG | {"quantization_config": config}
    found = checkpoints.load(
        write(folder, stated, tensors | {f"{NAME}.{k}": v for k, v in packed.items()}), **options
    )
    return found.params["layers"][0]["mlp"]["up_proj"]


def nibbles(codes: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Rows of codes as integers of eight: nibble i holds number order[i]."""
    eights = codes.reshape(*codes.shape[:-1], -1, 8).astype(np.uint32)
    words = np.zeros(eights.shape[:-1], np.uint32)
    for place, number in enumerate(order):
        words |= eights[..., number] << np.uint32(4 * place)
    return words.view(np.int32)


# --- 8-bit floats -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, shape", [
    ("weight_scale_inv", (2, 1)), ("weight_scale", ()), ("weight_scale", (1,)), ("weight_scale", (256, 1)),
])  # fmt: skip
def test_8_bit_floats_times_the_scales_of_their_blocks(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    random = np.random.default_rng(0)
    weight = random.normal(size=(256, 64)).astype(FP8)
    scale = np.asarray(random.uniform(0.5, 2, shape), np.float32)
    found = loaded(tmp_path, {"weight": weight, name: scale}, {"quant_method": "fp8"})
    rows = np.repeat(scale.reshape(-1), 256 // scale.size)
    np.testing.assert_array_equal(found, weight.astype(np.float32) * rows[:, None])


def test_blocks_at_the_edges_are_smaller(tmp_path: Path) -> None:
    config = CONFIG | {
        "hidden_size": 160,
        "intermediate_size": 300,
        "quantization_config": {"quant_method": "fp8"},
    }
    tensors = tensors_of(config)
    random = np.random.default_rng(0)
    weight, scale = (
        random.normal(size=(300, 160)).astype(FP8),
        random.uniform(0.5, 2, (3, 2)).astype(np.float32),
    )
    tensors |= {f"{NAME}.weight": weight, f"{NAME}.weight_scale_inv": scale}
    found = checkpoints.load(write(tmp_path, config, tensors)).params["layers"][0]["mlp"]["up_proj"]
    wide = np.kron(scale, np.ones((128, 128), np.float32))[:300, :160]
    np.testing.assert_array_equal(found, weight.astype(np.float32) * wide)


def test_8_bit_floats_can_be_quantised_further(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(256, 64)).astype(FP8)
    packed = {
        "weight": weight,
        "weight_scale": np.ones((), np.float32),
        "input_scale": np.ones((), np.float32),
    }
    found = loaded(tmp_path, packed, {"quant_method": "fp8"}, quantization="q8_0")
    np.testing.assert_allclose(found.dequantize(), weight.astype(np.float32), atol=0.03)


def test_8_bit_floats_without_scales_are_refused(tmp_path: Path) -> None:
    weight = np.ones((256, 64), FP8)
    with pytest.raises(io.CorruptFileError, match="do not go together"):
        loaded(tmp_path, {"weight": weight}, {"quant_method": "fp8"})


# --- bytes --------------------------------------------------------------------------------------------------


def test_bytes_with_a_scale_per_row_stay_bytes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weight = random.integers(-128, 128, (256, 64)).astype(np.int8)
    scale = random.uniform(0.5, 2, (256, 1)).astype(np.float32)
    found = loaded(
        tmp_path, {"weight": weight, "weight_scale": scale}, {"quant_method": "compressed-tensors"}
    )
    assert isinstance(found, QuantizedArray) and found.scheme.name == "int8"
    np.testing.assert_array_equal(found.dequantize(), weight * scale)


# --- four bits ----------------------------------------------------------------------------------------------


def four_bits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Codes (256, 64), scales and zero points (256, 2), and what they stand for."""
    random = np.random.default_rng(0)
    codes, zeros = random.integers(0, 16, (256, 64)), random.integers(1, 16, (256, 2))
    scales = random.uniform(0.5, 2, (256, 2)).astype(np.float16)
    own = [np.repeat(part, 32, axis=1) for part in (scales.astype(np.float32), zeros)]
    return codes, scales, zeros, own[0] * (codes - own[1])


@pytest.mark.parametrize("checkpoint_format, offset", [("gptq", 1), ("gptq_v2", 0)])
def test_gptq(tmp_path: Path, checkpoint_format: str, offset: int) -> None:
    codes, scales, zeros, expected = four_bits()
    packed = {
        "qweight": np.ascontiguousarray(nibbles(codes, tuple(range(8))).T),
        "qzeros": nibbles(np.ascontiguousarray(zeros.T) - offset, tuple(range(8))),
        "scales": np.ascontiguousarray(scales.T),
        "g_idx": (np.arange(64) // 32).astype(np.int32),
    }
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": checkpoint_format}
    found = loaded(tmp_path, packed, config)
    assert isinstance(found, QuantizedArray)
    np.testing.assert_allclose(found.dequantize(), expected, rtol=1e-6)


def test_gptq_with_columns_in_another_order(tmp_path: Path) -> None:
    codes, scales, zeros, _ = four_bits()
    owners = np.random.default_rng(1).permutation(np.arange(64) // 32).astype(np.int32)
    packed = {
        "qweight": np.ascontiguousarray(nibbles(codes, tuple(range(8))).T),
        "qzeros": nibbles(np.ascontiguousarray(zeros.T) - 1, tuple(range(8))),
        "scales": np.ascontiguousarray(scales.T),
        "g_idx": owners,
    }
    found = loaded(tmp_path, packed, {"quant_method": "gptq", "bits": 4, "desc_act": True})
    expected = (codes - zeros[:, owners]) * scales.astype(np.float32)[:, owners]
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, rtol=1e-3)


def test_awq(tmp_path: Path) -> None:
    codes, scales, zeros, expected = four_bits()
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    packed = {
        "qweight": nibbles(np.ascontiguousarray(codes.T), order),
        "qzeros": nibbles(np.ascontiguousarray(zeros.T), order),
        "scales": np.ascontiguousarray(scales.T),
    }
    found = loaded(tmp_path, packed, {"quant_method": "awq", "bits": 4, "version": "gemm"})
    np.testing.assert_allclose(found.dequantize(), expected, rtol=1e-6)


@pytest.mark.parametrize("has_zeros", [True, False])
def test_compressed_tensors(tmp_path: Path, has_zeros: bool) -> None:
    codes, scales, zeros, expected = four_bits()
    packed = {
        "weight_packed": nibbles(codes, tuple(range(8))),
        "weight_scale": scales,
        "weight_shape": np.asarray([256, 64]),
    }
    if has_zeros:
        packed["weight_zero_point"] = np.ascontiguousarray(
            nibbles(np.ascontiguousarray(zeros.T), tuple(range(8))).T
        )
    else:
        expected = np.repeat(scales.astype(np.float32), 32, axis=1) * (codes - 8)
    found = loaded(tmp_path, packed, {"quant_method": "compressed-tensors", "format": "pack-quantized"})
    assert isinstance(found, QuantizedArray) and math.isclose(found.scheme.bits, 4)
    np.testing.assert_allclose(found.dequantize(), expected, rtol=1e-6)


@pytest.mark.parametrize("config, words", [
    ({"quant_method": "gptq", "bits": 3}, "bits = 3"),
    ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "gemv"),
    ({"quant_method": "aqlm"}, "aqlm"),
])  # fmt: skip
def test_what_is_not_known_is_refused(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    codes, scales, zeros, _ = four_bits()
    packed = {"qweight": nibbles(codes, tuple(range(8))), "qzeros": zeros.astype(np.int32), "scales": scales}
    with pytest.raises(inf.errors.ValueMismatchError, match=words):
        loaded(tmp_path, packed, config)


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    codes, scales, _, _ = four_bits()
    packed = {"weight_packed": nibbles(codes, tuple(range(8))), "weight_scale": scales[:7]}
    with pytest.raises(io.CorruptFileError, match="do not go together"):
        loaded(tmp_path, packed, {"quant_method": "compressed-tensors"})
