"""A GGUF file as the source of a checkpoint: what `checkpoints.load` reads folders and GGUF files through.

Matrices in blocks become planes of a `QuantizedArray`: the scales and the codes of a block lie side by side
in the file and in arrays of their own in memory, so the blocks are copied once, and nothing is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from infini.core import errors
from infini.io import gguf
from infini.lax.quantized import scheme as schemes
from infini.llm.checkpoints.gguf import reading
from infini.llm.checkpoints.source import Json, Source
from infini.quantization import QuantizedArray

_ALIGNMENT: Final = 64
_CHAT_TEMPLATE: Final = "tokenizer.chat_template"
# The planes of a block in the order of its bytes.
_PLANES: Final[dict[str, tuple[str, ...]]] = {
    "Q4_0": ("scales", "blocks"),
    "Q4_1": ("scales", "minima", "blocks"),
    "Q5_0": ("scales", "blocks"),
    "Q5_1": ("scales", "minima", "blocks"),
    "Q8_0": ("scales", "blocks"),
    "Q2_K": ("sub_scales", "blocks", "scales", "minima"),
    "Q3_K": ("blocks", "sub_scales", "scales"),
    "Q4_K": ("scales", "minima", "sub_scales", "blocks"),
    "Q5_K": ("scales", "minima", "sub_scales", "blocks"),
    "Q6_K": ("blocks", "sub_scales", "scales"),
}
_FLOAT16: Final = ("scales", "minima")


def source(path: Path | str) -> Source:
    """Look into a GGUF file without reading its weights.

    Raises:
        MissingFileError: it, or another file of the model, is not there.
        GGUFError: it is damaged.
        UnsupportedError: its architecture is not known.
    """
    model = reading.read(path)
    template = model.metadata.get(_CHAT_TEMPLATE)
    return Source(
        place=str(path),
        config_json=model.config,
        tensors=Blocks(model),
        tokenizer_files={},
        generation_config=_generation(model.config),
        chat_template=template if isinstance(template, str) else None,
    )


class Blocks:
    """Weights of a GGUF file by Hugging Face's names."""

    def __init__(self, model: reading.GGUFModel) -> None:
        self._tensors = model.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight."""
        return self._tensors[name].shape

    def nbytes(self, name: str) -> int:
        """Bytes of a weight in the file."""
        return self._tensors[name].nbytes

    def read(self, name: str) -> np.ndarray | QuantizedArray:
        """A weight: mapped where it is plain numbers, in planes where it is in blocks of a kind that products
        take, and as float32 in other kinds of blocks.
        """
        x = self._tensors[name]
        if x.type.name in _PLANES:
            return planes(x.data, x.type)
        found = x.numpy()
        if found.dtype.kind in "iu":
            raise errors.UnsupportedError(f"the weight {name} is of whole numbers", got=str(x.type))
        return found.astype(np.float32) if found.dtype == np.float64 else found


def planes(data: np.ndarray, type: gguf.TensorType | str) -> QuantizedArray:
    """The bytes of a tensor as a `QuantizedArray` with planes on the host: `quantization.from_ggml`, in
    NumPy.

    Args:
        data: uint8 (..., bytes of a row).
        type: one of ggml's types that `infini.quantization` has a scheme for.
    """
    kind = gguf.type_of(type)
    scheme = schemes.GGML[kind.name]
    sizes = {"blocks": scheme.nbytes_of_group, "sub_scales": scheme.sub_scales}
    shape = (*data.shape[:-1], data.shape[-1] // kind.block_nbytes)
    names = _PLANES[kind.name]
    # One element of a structured array per block: NumPy copies a field of it by whole machine words.
    layout = np.dtype([(name, f"V{sizes.get(name, 2)}") for name in names])
    blocks = np.ascontiguousarray(data).reshape(-1).view(layout)
    found: dict[str, Any] = {}  # Any: arrays
    for name in names:
        size = sizes.get(name, 2)
        plane = _aligned(len(blocks) * size)
        plane.view(f"V{size}")[:] = blocks[name]
        own = plane.view("<f2").reshape(shape) if name in _FLOAT16 else plane.reshape(*shape, size)
        own.flags.writeable = False
        found[name] = own
    return QuantizedArray(**found, scheme=scheme)


def _aligned(nbytes: int) -> np.ndarray:
    """Memory that begins at a multiple of 64 bytes, as kernels like it."""
    raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + nbytes]


def _generation(config: Json) -> Json:
    """What generation_config.json says in a folder."""
    return {key: config[key] for key in ("bos_token_id", "eos_token_id") if key in config}
