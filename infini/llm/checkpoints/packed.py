"""Weights that Hugging Face's folders store in few bits, as the weights that models know.

Several arrays of a file make one weight then. What has a form as a `QuantizedArray` stays in few bits:

    GPTQ, AWQ             qweight qzeros scales (g_idx)                  4-bit codes with zero points
    compressed-tensors    weight_packed weight_scale (weight_zero_point) 4-bit codes
    compressed-tensors    weight (int8) weight_scale                     bytes with a scale per row
    DeepSeek              weight (8-bit floats) weight_scale_inv         floats: a scale per block
    compressed-tensors    weight (8-bit floats) weight_scale             floats: a scale per row or matrix

8-bit floats become floats of the model's dtype when they are read. Scales of activations are not used.

References: AWQ (arXiv:2306.00978), GPTQ (arXiv:2210.17323), https://github.com/vllm-project/compressed-tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from infini import quantization
from infini.core import dtypes, errors
from infini.io import tensors as tensors_
from infini.llm.checkpoints.source import Json, Tensors
from infini.quantization import QuantizedArray

_METHODS: Final = ("fp8", "compressed-tensors", "awq", "gptq", "fbgemm_fp8")
# What stands beside weights and is no weight: parts of one, or how to round activations.
_BESIDE: Final = (
    "weight_scale", "weight_scale_inv", "weight_zero_point", "weight_shape", "weight_g_idx", "input_scale",
    "input_zero_point", "input_scale_ub", "output_scale", "k_scale", "v_scale", "q_scale", "qzeros", "scales",
    "g_idx",
)  # fmt: skip
_FLOATS: Final = frozenset({dtypes.float8_e4m3fn, dtypes.float8_e5m2})
# Nibble i of AWQ's integers belongs to this of eight columns.
_AWQ_ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)
_ROWS: Final = 512  # rows of 8-bit floats that are converted together


class Stored(Protocol):
    """Arrays of files."""

    def __iter__(self) -> Iterator[str]:
        """All names."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array."""

    def dtype(self, name: str) -> np.dtype:
        """Dtype of an array."""

    def nbytes(self, name: str) -> int:
        """Bytes of an array."""

    def read(self, name: str) -> np.ndarray:
        """An array."""


@dataclass(frozen=True, slots=True)
class _Made:
    """A weight that several arrays make.

    Args:
        parts: names of the arrays.
        shape: its shape.
        make: makes it of the arrays by their last names.
    """

    parts: tuple[str, ...]
    shape: tuple[int, ...]
    make: Callable[[dict[str, np.ndarray]], np.ndarray | QuantizedArray]


def unpacked(stored: Stored, config: Json) -> Tensors:
    """Weights by the names that models know, whatever their folder calls the arrays that they are made of.

    Args:
        stored: the arrays of its files.
        config: its config.json.

    Raises:
        ValueMismatchError: weights are stored in few bits in a way that is not supported.
        CorruptFileError: arrays that make a weight do not go together.
    """
    stated = config.get("quantization_config") or {}
    method = stated.get("quant_method") if isinstance(stated, dict) else None
    if stated and method not in _METHODS:
        raise _unsupported(f"quant_method = {method!r}", ", ".join(_METHODS))
    if not stated:
        return _Unpacked(stored, dict.fromkeys(stored))
    made: dict[str, _Made | None] = {}
    names = set(stored)
    for name in stored:
        base, _, last = name.rpartition(".")
        if last in _BESIDE and {f"{base}.{own}" for own in ("weight", "weight_packed", "qweight")} & names:
            continue
        if last in ("k_scale", "v_scale", "q_scale"):
            continue
        if last in ("qweight", "weight_packed"):
            make = (
                _int4(stored, base, names, stated) if last == "qweight" else _compressed(stored, base, names)
            )
            made[f"{base}.weight"] = make
        else:
            made[name] = _scaled(stored, name, names, _dtype_of(config))
    return _Unpacked(stored, made)


class _Unpacked:
    """Weights of which some are made of several arrays."""

    def __init__(self, stored: Stored, made: dict[str, _Made | None]) -> None:
        self._stored, self._made = stored, made

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight."""
        made = self._made[name]
        return self._stored.shape(name) if made is None else made.shape

    def nbytes(self, name: str) -> int:
        """Bytes of the arrays that make a weight."""
        made = self._made[name]
        return sum(self._stored.nbytes(part) for part in ((name,) if made is None else made.parts))

    def read(self, name: str) -> np.ndarray | QuantizedArray:
        """A weight."""
        made = self._made[name]
        if made is None:
            return self._stored.read(name)
        return made.make({part.rpartition(".")[2]: self._stored.read(part) for part in made.parts})


def _dtype_of(config: Json) -> np.dtype:
    stated = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    found = dtypes.canonical(str(stated).removeprefix("torch."))
    return found if found in dtypes.FLOATS else dtypes.bfloat16


def _scaled(stored: Stored, name: str, names: set[str], dtype: np.dtype) -> _Made | None:
    """A weight of bytes with scales beside it; None for a plain one."""
    base, _, last = name.rpartition(".")
    kind = stored.dtype(name)
    if last != "weight" or (kind not in _FLOATS and kind != dtypes.int8):
        return None
    scale = next((own for own in ("weight_scale_inv", "weight_scale") if f"{base}.{own}" in names), None)
    shape = stored.shape(name)
    if scale is None or len(shape) != 2:
        raise _broken(
            name, f"{kind.name}{list(shape)} without scales", "weight_scale or weight_scale_inv beside it"
        )
    sizes = stored.shape(f"{base}.{scale}")
    count = math.prod(sizes)
    if kind == dtypes.int8:
        if count not in (1, shape[0]) or f"{base}.weight_zero_point" in names:
            raise _unsupported(
                f"{name} of int8 with scales {list(sizes)}", "a scale for each row, and no zero points"
            )
        return _Made((name, f"{base}.{scale}"), shape, lambda parts: _bytes(parts["weight"], parts[scale]))
    blocks = (1, 1) if count == 1 else (sizes[0], sizes[1] if len(sizes) > 1 else 1)
    if len(sizes) > 2 or any(size < 1 for size in blocks):
        raise _broken(
            name, f"scales {list(sizes)}", "a scale for the matrix, for each row, or for each block"
        )
    return _Made(
        (name, f"{base}.{scale}"),
        shape,
        lambda parts: _floats(parts["weight"], parts[scale].reshape(blocks), dtype),
    )


def _floats(weight: np.ndarray, scales: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """8-bit floats times the scales of their blocks, as floats of some dtype."""
    rows, columns = weight.shape
    # Blocks have 128 rows and columns, or as many as there are; the last may be smaller.
    height, width = (_block(size, count) for size, count in zip(weight.shape, scales.shape, strict=True))
    wide = np.repeat(scales.astype(np.float32), width, axis=1)[:, :columns]
    found = np.empty(weight.shape, dtype)
    for start in range(0, rows, _ROWS):
        own = slice(start, min(start + _ROWS, rows))
        numbers = np.arange(own.start, own.stop) // height
        found[own] = (weight[own].astype(np.float32) * wide[numbers]).astype(dtype)
    return _fixed(found)


def _block(size: int, count: int) -> int:
    """Numbers of a block, of which `count` cover `size`: 128 where that fits, as files have it."""
    return 128 if count > 1 and math.ceil(size / 128) == count else math.ceil(size / count)


def _bytes(weight: np.ndarray, scales: np.ndarray) -> QuantizedArray:
    """Bytes with a scale per row."""
    rows = weight.shape[0]
    scales = np.broadcast_to(scales.reshape(-1, 1), (rows, 1))
    dtype = scales.dtype if scales.dtype in (dtypes.float16, dtypes.bfloat16) else dtypes.float32
    scheme = quantization.int8(scale_dtype=dtype).for_row(weight.shape[1])
    return QuantizedArray(
        _fixed(weight.view(np.uint8)[:, None]), _fixed(np.ascontiguousarray(scales, dtype)), scheme=scheme
    )


def _int4(stored: Stored, base: str, names: set[str], stated: Json) -> _Made:
    """A matrix of GPTQ or AWQ."""
    bits, method = stated.get("bits", stated.get("w_bit", 4)), stated["quant_method"]
    version = stated.get("version", "gemm")
    if bits != 4 or (method == "awq" and str(version).lower() != "gemm"):
        raise _unsupported(
            f"{method} with bits = {bits}, version = {version!r}", "4 bits, and AWQ's version 'gemm'"
        )
    parts = [f"{base}.{own}" for own in ("qweight", "qzeros", "scales", "g_idx") if f"{base}.{own}" in names]
    packed, groups = (
        stored.shape(parts[0]),
        stored.shape(f"{base}.scales") if f"{base}.scales" in names else (),
    )
    is_awq = method == "awq"
    shape = (packed[1] * 8, packed[0]) if is_awq else (packed[1], packed[0] * 8)  # (out, in)
    if len(groups) != 2 or groups[1] != shape[0] or shape[1] % groups[0] or f"{base}.qzeros" not in names:
        raise _broken(
            f"{base}.qweight", f"integers {list(packed)}, scales {list(groups)}", "scales (groups, out)"
        )
    offset = 0 if is_awq or stated.get("checkpoint_format") == "gptq_v2" else 1

    def make(arrays: dict[str, np.ndarray]) -> np.ndarray | QuantizedArray:
        order = _AWQ_ORDER if is_awq else tuple(range(8))
        codes = _nibbles(arrays["qweight"], order, axis=1 if is_awq else 0).T
        zeros = _nibbles(arrays["qzeros"], order, axis=1).T + np.uint8(offset)
        scales = np.ascontiguousarray(arrays["scales"].T)
        size = shape[1] // groups[0]
        owners = arrays.get("g_idx")
        if owners is not None and not np.array_equal(owners, np.arange(shape[1]) // size):
            # Columns in the order of their importance: groups are not neighbours.
            own = np.asarray(owners, np.int64)
            numbers = codes.astype(np.float32) - zeros[:, own]
            return _fixed((numbers * scales[:, own].astype(np.float32)).astype(scales.dtype))
        return _four_bits(codes, scales, zeros)

    return _Made(tuple(parts), shape, make)


def _compressed(stored: Stored, base: str, names: set[str]) -> _Made:
    """A matrix of compressed-tensors in 4 bits: eight codes of a row in an integer, lowest first."""
    own = ("weight_packed", "weight_scale", "weight_zero_point")
    parts = tuple(f"{base}.{name}" for name in own if f"{base}.{name}" in names)
    packed = stored.shape(parts[0])
    groups = stored.shape(f"{base}.weight_scale") if f"{base}.weight_scale" in names else ()
    if f"{base}.weight_g_idx" in names:
        raise _unsupported(f"{base}.weight_g_idx", "groups of neighbouring columns")
    shape = (packed[0], packed[1] * 8)
    if len(groups) != 2 or groups[0] != shape[0] or shape[1] % groups[1]:
        raise _broken(
            f"{base}.weight_packed",
            f"integers {list(packed)}, scales {list(groups)}",
            "4 bits, scales (out, groups)",
        )

    def make(arrays: dict[str, np.ndarray]) -> QuantizedArray:
        codes = _nibbles(arrays["weight_packed"], range(8), axis=1)
        zeros = arrays.get("weight_zero_point")
        if zeros is not None:
            zeros = _nibbles(zeros, range(8), axis=0)[: shape[0]]
        return _four_bits(codes, arrays["weight_scale"], zeros)

    return _Made(parts, shape, make)


def _four_bits(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None) -> QuantizedArray:
    """Codes (out, in) with scales and zero points (out, groups); the zero is 8 where none is given."""
    rows, columns = codes.shape
    size = columns // scales.shape[1]
    dtype = scales.dtype if scales.dtype in (dtypes.float16, dtypes.bfloat16) else dtypes.float32
    grouped = codes.reshape(rows, -1, size)
    blocks = grouped[..., : size // 2] | (grouped[..., size // 2 :] << np.uint8(4))
    scheme = quantization.int4(group=size, scale_dtype=dtype, zero_point=zeros is not None)
    return QuantizedArray(
        _fixed(blocks),
        _fixed(np.ascontiguousarray(scales, dtype)),
        zero_points=None if zeros is None else _fixed(np.ascontiguousarray(zeros)),
        scheme=scheme,
    )


def _nibbles(packed: np.ndarray, order: Any, axis: int) -> np.ndarray:  # Any: eight numbers
    """Integers (m, n) as their eight codes of 4 bits along an axis: nibble i is number `order[i]`."""
    words = packed.view(np.uint32)
    shape = [*packed.shape]
    shape.insert(axis + 1, 8)
    found = np.empty(shape, np.uint8)
    for place, number in enumerate(order):
        found[(slice(None),) * (axis + 1) + (number,)] = (words >> np.uint32(4 * place)) & np.uint32(15)
    return found.reshape([size * (8 if at == axis else 1) for at, size in enumerate(packed.shape)])


def _fixed(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def _broken(name: str, got: str, expected: str) -> errors.InfiniError:
    return tensors_.CorruptFileError(
        f"the arrays of {name} do not go together", got=got, expected=expected, fix="copy the folder again"
    )


def _unsupported(got: str, expected: str) -> errors.InfiniError:
    return errors.ValueMismatchError(
        "this way to store weights in few bits is not supported",
        got=got,
        expected=expected,
        fix='take the folder with plain weights, and quantization="q4_k" or another when loading it',
    )
