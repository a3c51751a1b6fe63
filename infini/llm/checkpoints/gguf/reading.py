"""A GGUF file as a model: config.json and tensors under Hugging Face's names."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from infini.core import errors
from infini.io import gguf
from infini.llm.checkpoints.gguf import configs
from infini.llm.checkpoints.gguf.architectures import Architecture, Json, Rule

F32: Final = gguf.type_of("F32")
# What files have besides weights: some hold the frequencies of rotary embeddings, which the configuration
# gives.
_IGNORED: Final = re.compile(
    r"blk\.\d+\.attn_rot_embd\.weight|rope_freqs\.weight|rope_factors_(long|short)\.weight"
)


@dataclass(frozen=True, slots=True)
class GGUFModel:
    """A model of a GGUF file.

    Args:
        config: what config.json says in a folder of Hugging Face.
        tensors: its weights by Hugging Face's names. They are still what the file has, blocks of numbers in
            few bits where it has such: `type`, `shape` and `data` say what and how many, `numpy()` gives
            floats.
        metadata: all that the file says, the tokenizer and the chat template included.
        file: the file.
    """

    config: Json
    tensors: Mapping[str, gguf.GGUFTensor]
    metadata: gguf.Metadata
    file: gguf.GGUFFile


def read(path: Path | str | gguf.GGUFFile) -> GGUFModel:
    """Open a GGUF file as a model. Nothing is read but its header, until a tensor is asked for.

    Args:
        path: the file, one of several files of a model, or a file that is open already.

    Raises:
        MissingFileError: it is not there.
        GGUFError: it is damaged, or its tensors are not those of its metadata.
        UnsupportedError: its architecture is not known, or has tensors that are not.
    """
    file = path if isinstance(path, gguf.GGUFFile) else gguf.read(path)
    found, config = configs.read(file.metadata, file.tensors)
    tensors = dict(_renamed(file.tensors, found, config))
    return GGUFModel(config, tensors, file.metadata, file)


def _renamed(
    tensors: Mapping[str, gguf.GGUFTensor], found: Architecture, config: Json
) -> Iterator[tuple[str, gguf.GGUFTensor]]:
    patterns = [(pattern(rule.file), rule) for rule in found.rules]
    unknown = []
    for name, x in tensors.items():
        if _IGNORED.fullmatch(name):
            continue
        for regex, rule in patterns:
            match = regex.fullmatch(name)
            if match is not None:
                yield from _translated(x, rule, match.groupdict(), config, tensors)
                break
        else:
            unknown.append(name)
    if unknown:
        raise errors.UnsupportedError(
            f"a GGUF file of the architecture {found.name} has tensors that are not known",
            got=", ".join(unknown[:4]) + (f" and {len(unknown) - 4} more" if unknown[4:] else ""),
        )


@functools.cache
def pattern(name: str) -> re.Pattern[str]:
    """What a name of a table matches; parts have the names of their places."""
    escaped = re.escape(name).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{e\}", r"(?P<e>\d+)")
    return re.compile(escaped.replace(r"\{s\}", "(?P<s>weight|bias)"))


def _translated(
    x: gguf.GGUFTensor,
    rule: Rule,
    parts: dict[str, str],
    config: Json,
    tensors: Mapping[str, gguf.GGUFTensor],
) -> Iterator[tuple[str, gguf.GGUFTensor]]:
    """The tensors of a folder that one tensor of a file stands for."""
    name = rule.model.format(**{"e": "{e}", **parts})
    if rule.kind == "experts":
        for number in range(x.shape[0]):
            own = name.format(e=number)
            yield own, gguf.GGUFTensor(own, x.type, x.shape[1:], functools.partial(_slice, x, number))
    elif rule.kind in ("queries", "keys"):
        count = configs.heads(config)[rule.kind == "keys"]
        yield name, _with(x, name, functools.partial(_unrotated, x, _divided(x, count)))
    elif rule.kind == "plus one":
        yield name, gguf.GGUFTensor(name, F32, x.shape, lambda: _raw(_floats(x) - np.float32(1)))
    elif rule.kind == "transposed" and len(x.shape) == 2:
        kind = F32 if x.type.is_quantized else x.type
        yield (
            name,
            gguf.GGUFTensor(name, kind, x.shape[::-1], lambda: _raw(np.ascontiguousarray(x.numpy().T))),
        )
    elif rule.kind == "latent keys":
        values = tensors.get(x.name.replace("attn_k_b", "attn_v_b"))
        if values is None:
            raise gguf.GGUFError(f"a GGUF file has {x.name} and no values beside it")
        yield name, _latent(name, x, values)
    elif rule.kind != "latent values":  # these come with their keys
        yield name, _with(x, name, x.load)


def _with(x: gguf.GGUFTensor, name: str, load: Callable[[], np.ndarray]) -> gguf.GGUFTensor:
    return gguf.GGUFTensor(name, x.type, x.shape, load)


def _slice(x: gguf.GGUFTensor, number: int) -> np.ndarray:
    return x.data[number].reshape(-1)


def _raw(numbers: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(numbers).view(np.uint8).reshape(-1)


def _floats(x: gguf.GGUFTensor) -> np.ndarray:
    return gguf.dequantize(x.data, x.type)


def _divided(x: gguf.GGUFTensor, heads: int) -> int:
    if x.shape[0] % (2 * heads):
        raise gguf.GGUFError(
            f"rows of the tensor {x.name!r} are not those of {heads} heads", got=str(x.shape)
        )
    return heads


def _unrotated(x: gguf.GGUFTensor, heads: int) -> np.ndarray:
    """Rows in Hugging Face's order: of each head the first numbers of all pairs, then the second ones."""
    rows = x.load().reshape(heads, x.shape[0] // heads // 2, 2, -1)
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(-1)


def _latent(name: str, keys: gguf.GGUFTensor, values: gguf.GGUFTensor) -> gguf.GGUFTensor:
    """DeepSeek's projection from the latent vector to keys and values, head by head."""
    if len(keys.shape) != 3 or len(values.shape) != 3 or keys.shape[:2] != (values.shape[0], values.shape[2]):
        raise gguf.GGUFError(
            f"the tensors {keys.name!r} and {values.name!r} do not go together",
            got=f"{keys.shape} and {values.shape}",
        )
    heads, rank, width = keys.shape
    shape = (heads * (width + values.shape[1]), rank)

    def load() -> np.ndarray:
        whole = np.concatenate([_floats(keys).swapaxes(1, 2), _floats(values)], axis=1)
        return _raw(whole)

    return gguf.GGUFTensor(name, F32, shape, load)
