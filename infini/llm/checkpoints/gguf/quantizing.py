"""Which tensor of a model gets which type when it is quantised: as llama.cpp chooses, so that models are as
large and as good as those that people know by these names.

Reference: the rules of llama-quantize, https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from infini.core import errors
from infini.io import gguf

FILE_TYPE: Final = "general.file_type"
VERSION: Final = "general.quantization_version"

_KEPT: Final = re.compile(r".*_norm\.weight|.*ffn_gate_inp\.weight|position_embd\.weight|token_types\.weight")
_VALUES: Final = re.compile(r"blk\.(\d+)\.(attn_v|attn_kv_b|attn_qkv)\.weight")
_EXPERTS_OF_MIXTRAL: Final = 8
_LAYERS_OF_70B: Final = 80


@dataclass(frozen=True, slots=True)
class Mixture:
    """A way to store a model.

    Args:
        name: what people call it.
        type: the type of most matrices.
        number: `general.file_type`.
    """

    name: str
    type: str
    number: int


MIXTURES: Final[dict[str, Mixture]] = {
    found.name: found
    for found in (
        Mixture("F32", "F32", 0),
        Mixture("F16", "F16", 1),
        Mixture("BF16", "BF16", 32),
        Mixture("Q4_0", "Q4_0", 2),
        Mixture("Q4_1", "Q4_1", 3),
        Mixture("Q5_0", "Q5_0", 8),
        Mixture("Q5_1", "Q5_1", 9),
        Mixture("Q8_0", "Q8_0", 7),
        Mixture("Q4_K_S", "Q4_K", 14),
        Mixture("Q4_K_M", "Q4_K", 15),
        Mixture("Q5_K_S", "Q5_K", 16),
        Mixture("Q5_K_M", "Q5_K", 17),
        Mixture("Q6_K", "Q6_K", 18),
    )
}
_ALIASES: Final = {"Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
# A row that is not made of blocks of 256 numbers gets a type of blocks of 32 with about as many bits.
_SMALLER_BLOCKS: Final = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def mixture_of(name: str) -> Mixture:
    """The way that a name stands for, in any case of letters.

    Raises:
        ValueMismatchError: there is none.
    """
    upper = name.upper()
    found = MIXTURES.get(_ALIASES.get(upper, upper))
    if found is None:
        raise errors.ValueMismatchError(
            f"there is no way to store a model that is called {name}",
            expected=", ".join([*MIXTURES, *_ALIASES]),
        )
    return found


def quantized(
    file: gguf.GGUFFile,
    mixture: Mixture | str,
    *,
    output: str | None = None,
    embeddings: str | None = None,
    is_pure: bool = False,
    may_requantize: bool = False,
) -> tuple[dict[str, gguf.Value], list[gguf.GGUFTensor]]:
    """Metadata and tensors of a model with fewer bits. The numbers are computed when they are written.

    Args:
        file: the model.
        mixture: what to make of it, or the name of that.
        output: type of the projection to logits; llama.cpp's choice when absent.
        embeddings: type of the table of embeddings; llama.cpp's choice when absent.
        is_pure: whether all matrices get the same type.
        may_requantize: whether matrices that are quantised already are quantised again, which adds errors.

    Raises:
        ValueMismatchError: there is no such type, or the model is quantised already.
    """
    return choose(
        file.metadata,
        list(file.tensors.values()),
        mixture_of(mixture) if isinstance(mixture, str) else mixture,
        output=output,
        embeddings=embeddings,
        is_pure=is_pure,
        may_requantize=may_requantize,
    )


def choose(
    metadata: gguf.Metadata,
    tensors: list[gguf.GGUFTensor],
    mixture: Mixture,
    *,
    output: str | None = None,
    embeddings: str | None = None,
    is_pure: bool = False,
    may_requantize: bool = False,
) -> tuple[dict[str, gguf.Value], list[gguf.GGUFTensor]]:
    """As `quantized`, of a model that need not be in a file yet."""
    choices = _Choices(metadata, tensors, mixture, output=output, embeddings=embeddings, is_pure=is_pure)
    written = []
    for x in tensors:
        target = choices.type_of(x)
        if target == x.type or (x.type.dtype is not None and x.type not in gguf.FLOATS):
            written.append(x)
            continue
        if x.type.is_quantized and not may_requantize:
            raise errors.ValueMismatchError(
                f"the tensor {x.name} is quantised already, and quantising it again adds to its errors",
                got=f"{x.type}, {target} wanted",
                expected="a model in F32, F16 or BF16",
                fix="quantise the original model; or allow it: may_requantize, --allow-requantize",
            )
        written.append(gguf.tensor(x.name, functools.partial(_numbers, x), target, x.shape))
    fields = {**metadata.fields, FILE_TYPE: gguf.value_of(mixture.number), VERSION: gguf.value_of(2)}
    return fields, written


def _numbers(x: gguf.GGUFTensor) -> np.ndarray:
    """Floats of a tensor, which have to be such that something can be made of them."""
    found = gguf.dequantize(x.data, x.type)
    if not np.isfinite(found).all():
        raise errors.ValueMismatchError(
            f"the tensor {x.name} has NaN or infinities, which no type with scales can hold",
            fix="look at the model with `infini gguf verify`",
        )
    return found


class _Choices:
    """The rules, for one model."""

    def __init__(
        self,
        metadata: gguf.Metadata,
        tensors: list[gguf.GGUFTensor],
        mixture: Mixture,
        *,
        output: str | None,
        embeddings: str | None,
        is_pure: bool,
    ) -> None:
        self.mixture = mixture
        self.output = None if output is None else gguf.type_of(output)
        self.embeddings = None if embeddings is None else gguf.type_of(embeddings)
        self.is_pure = is_pure
        self.base = gguf.type_of(mixture.type)
        names = {x.name for x in tensors}
        self.is_tied = "output.weight" not in names
        values = [name for name in names if _VALUES.fullmatch(name)]
        self.places = {name: place for place, name in enumerate(sorted(values, key=_layer))}
        arch = metadata.get("general.architecture")
        self.num_layers = _count(metadata, f"{arch}.block_count")
        self.num_experts = _count(metadata, f"{arch}.expert_count")
        of_keys = _count(metadata, f"{arch}.attention.head_count_kv")
        has_groups = _count(metadata, f"{arch}.attention.head_count") != of_keys
        self.is_70b = arch == "llama" and self.num_layers == _LAYERS_OF_70B and has_groups

    def type_of(self, x: gguf.GGUFTensor) -> gguf.TensorType:
        if len(x.shape) < 2 or not x.name.endswith("weight") or _KEPT.fullmatch(x.name):
            return x.type
        if x.name == "token_embd.weight" and self.embeddings is not None:
            return self._fitting(self.embeddings, x)
        if x.name == "output.weight" and self.output is not None:
            return self._fitting(self.output, x)
        name = self.base.name
        if self.base.is_quantized and not self.is_pure:
            name = self._mixed(x, name)
        return self._fitting(gguf.type_of(name), x)

    def _mixed(self, x: gguf.GGUFTensor, name: str) -> str:
        is_output = x.name == "output.weight" or (self.is_tied and x.name == "token_embd.weight")
        if is_output:
            if self.output is not None:
                return self.output.name
            if x.shape[-1] % self.base.block_size:
                return "Q8_0"
            return name if name == "Q8_0" else "Q6_K"
        block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", x.name)
        if block is None:
            return name
        return self._in_block(x.name, int(block[1]), block[2], name)

    def _in_block(self, full: str, layer: int, part: str, name: str) -> str:
        mixture = self.mixture.name
        is_mixtral = self.num_experts == _EXPERTS_OF_MIXTRAL
        if full in self.places:
            place = self.places[full]
            if mixture in ("Q4_K_M", "Q5_K_M") and self._has_more_bits(place, len(self.places)):
                name = "Q6_K"
            elif mixture == "Q4_K_S" and place < 4:
                name = "Q5_K"
            if self.is_70b and name == "Q4_K":
                name = "Q5_K"
            return "Q8_0" if is_mixtral else name
        if part == "attn_k" and is_mixtral:
            return "Q8_0"
        if part.startswith("ffn_down"):
            if mixture in ("Q4_K_M", "Q5_K_M") and self._has_more_bits(layer, self.num_layers):
                return "Q6_K"
            if mixture == "Q4_K_S" and layer < self.num_layers // 8:
                return "Q5_K"
        if part == "attn_output" and is_mixtral and mixture in ("Q4_K_S", "Q4_K_M"):
            return "Q5_K"
        return name

    @staticmethod
    def _has_more_bits(place: int, count: int) -> bool:
        """The first and last eighth of the layers, and every third between them."""
        eighth = count // 8
        return place < eighth or place >= 7 * count // 8 or (place - eighth) % 3 == 2

    @staticmethod
    def _fitting(found: gguf.TensorType, x: gguf.GGUFTensor) -> gguf.TensorType:
        if x.shape[-1] % found.block_size:
            found = gguf.type_of(_SMALLER_BLOCKS.get(found.name, found.name))
        return gguf.type_of("F16") if x.shape[-1] % found.block_size else found


def _layer(name: str) -> tuple[int, str]:
    return int(name.split(".")[1]), name


def _count(metadata: Mapping[str, Any], key: str) -> int:  # Any: values of metadata
    found = metadata.get(key)
    return found if isinstance(found, int) else 0
