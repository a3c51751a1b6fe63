"""Checkpoints as configurations and parameters, ready to run.

Weights whose dtype is kept are not copied: the arrays are the mapped files. Everything else is made weight
by weight, so that memory holds the model once.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from infini import io
from infini.core import backend, dtypes, errors, tree
from infini.llm import models
from infini.llm.checkpoints import gguf, hugging_face, placing, quantizing
from infini.llm.checkpoints.source import Json, Source, Tensors
from infini.llm.models import weights as weights_
from infini.llm.models.weights import Weight
from infini.quantization import QuantizedArray

Progress: TypeAlias = Callable[[int, int], None]
_SHOWN = 4  # names that a message lists


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that is ready to run, and what lay beside its weights.

    Args:
        config_json: the contents of config.json, or what a GGUF file says in its place.
        config: what `models.forward` takes.
        params: weights, as `models.forward` takes them.
        tokenizer_files: texts of the tokenizer's files by name: tokenizer.json, tokenizer_config.json ...
        generation_config: the contents of generation_config.json; empty when there is none.
        chat_template: the template that makes a prompt of messages; None when there is none.
        nbytes: bytes that the weights take in memory.
        seconds: how long loading took.
    """

    config_json: Json
    config: models.Config
    params: dict[str, Any]  # Any: arrays, and dictionaries and lists of them
    tokenizer_files: Mapping[str, str]
    generation_config: Json
    chat_template: str | None
    nbytes: int
    seconds: float


def load(
    path: Path | str,
    *,
    dtype: Any = "auto",  # Any: what names a dtype
    quantization: str | None = None,
    keep: Collection[str] = (),
    quantized_activations: Literal["exact", "int8"] = "int8",
    is_arranged: bool | None = None,
    sharding: placing.Placing | None = None,
    on_progress: Progress | None = None,
    allow_unexpected: bool = False,
) -> Checkpoint:
    """Read a model folder or a GGUF file.

    Files that weights are mapped from must not be written to while the model is in use; replacing them by
    others of their name is fine.

    Args:
        path: the folder or file.
        dtype: dtype of the weights and of what is computed with them; "auto" as they are stored.
        quantization: how to store matrices in memory: "int8", "q8_0", "q6_k", "q4_k" or "q4_0"; None as they
            are in the files. What the files have in few bits stays so.
        keep: parts of names of weights that are not quantised, such as "lm_head".
        quantized_activations: "int8" rounds what is multiplied with a matrix in few bits to bytes, with a
            scale for every 32 of them; "exact" takes it as it is, which is several times slower.
        is_arranged: whether rows of matrices in few bits lie side by side, as kernels of CPUs multiply them
            fastest; None for yes where the model is on one CPU.
        sharding: (name of a weight such as "layers.0.self_attn.q_proj", its shape) -> where it goes, or None
            for the default device; see `by_recipe`.
        on_progress: called with the bytes read so far and those there are.
        allow_unexpected: whether files may hold weights that the model does not have.

    Raises:
        MissingFileError: the folder, or one of its files, is not there.
        CorruptFileError: a file is damaged, or its weights are not those of its configuration.
        ValueMismatchError: the model needs something that is not supported.
    """
    start = time.perf_counter()
    method = None if quantization is None else quantizing.check(quantization)
    wanted = None if dtype == "auto" else _float(dtype)
    source = read(path)
    family = models.family_of(source.config_json)
    names = _names(source, family, models.config_from_json(source.config_json))
    config = _fitted(source, family, names)
    config = dataclasses.replace(config, quantized_activations=quantized_activations)
    table = family.weights(config)
    _check(table, names, source, allow_unexpected=allow_unexpected)
    if is_arranged is None:
        is_arranged = sharding is None and backend.default_device().platform == "cpu"
    target = _Target(
        wanted or _stated(source, table, names),
        is_asked=wanted is not None,
        method=method,
        keep=keep,
        is_arranged=is_arranged,
    )
    reader = _Reader(source.tensors, names, target, on_progress, table)
    params: dict[str, Any] = {}
    nbytes = 0
    for weight in table:
        value = reader.read(weight)
        nbytes += sum(leaf.nbytes for leaf in tree.leaves(value))
        name = ".".join(map(str, weight.path))
        placed = placing.placed(value, name, sharding)
        if is_arranged and isinstance(placed, QuantizedArray):
            placed = quantizing.arranged(placed)
        weights_.put(params, weight.path, placed)
    return Checkpoint(
        config_json=source.config_json,
        config=config,
        params=params,
        tokenizer_files=source.tokenizer_files,
        generation_config=source.generation_config,
        chat_template=source.chat_template,
        nbytes=nbytes,
        seconds=time.perf_counter() - start,
    )


def read(path: Path | str) -> Source:
    """Look into a model folder or a GGUF file without reading its weights.

    Raises:
        MissingFileError: it, or one of its files, is not there.
        CorruptFileError: a file is damaged.
    """
    place = Path(path).expanduser()
    if place.is_dir() and not (place / "config.json").is_file():
        files = sorted(place.glob("*.gguf"))
        stems = {re.sub(r"-\d{5}-of-\d{5}$", "", file.stem) for file in files}
        if len(stems) > 1:
            raise io.MissingFileError(
                f"{place} has several models",
                got=", ".join(sorted(stems)[:_SHOWN]),
                fix="give the path of one of the .gguf files",
            )
        place = files[0] if files else place
    return gguf.source(place) if place.is_file() else hugging_face.read(place)


def check(path: Path | str) -> models.Config:
    """Look whether a checkpoint holds the weights that its configuration asks for, without reading them.

    Raises:
        MissingFileError: it, or one of its files, is not there.
        CorruptFileError: a file is damaged, or its weights are not those of its configuration.
        ValueMismatchError: the model needs something that is not supported.
    """
    source = read(path)
    family = models.family_of(source.config_json)
    names = _names(source, family, models.config_from_json(source.config_json))
    config = _fitted(source, family, names)
    _check(family.weights(config), names, source, allow_unexpected=False)
    return config


def _float(dtype: Any) -> np.dtype:  # Any: what names a dtype
    found = dtypes.canonical(dtype)
    if found not in dtypes.FLOATS or found.itemsize > 4:
        raise errors.ValueMismatchError(
            "models compute in float32, bfloat16 or float16", got=f"dtype = {found.name}"
        )
    return found


def _names(source: Source, family: models.Family, config: models.Config) -> dict[str, str]:
    """What models call the weights of the files, and what the files call them."""
    if family.stored_name is None:
        found = {name: name for name in source.tensors}
    else:
        named = {name: family.stored_name(name, config) for name in source.tensors}
        found = {known: name for name, known in named.items() if known is not None}
    return {known: name for known, name in found.items() if not known.endswith("rotary_emb.inv_freq")}


def _fitted(source: Source, family: models.Family, names: Collection[str]) -> models.Config:
    config = models.config_from_json(source.config_json)
    if family.fitted is not None:
        config = family.fitted(config, names)
    if "tie_word_embeddings" not in source.config_json and "lm_head.weight" not in names:
        config = dataclasses.replace(config, tie_embeddings=True)
    return config


def _check(table: list[Weight], names: Mapping[str, str], source: Source, *, allow_unexpected: bool) -> None:
    """Files hold the weights of the table, in their shapes, and no others."""
    expected = {name: weight.file_shape for weight in table for name in weight.names}
    missing = sorted(expected.keys() - names.keys())
    extra = sorted(names.keys() - expected.keys() - {"lm_head.weight"})  # tied ones are often stored, too
    problems = [("are missing", missing)]
    if not allow_unexpected:
        problems.append(("are not part of the model", extra))
    for problem, found in problems:
        if found:
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise io.CorruptFileError(
                f"{len(found)} weights {problem}"
                if len(found) > 1
                else f"a weight {problem.replace('are', 'is', 1)}",
                got=f"{', '.join(found[:_SHOWN])}{more} in {source.place}",
                expected=f"the {len(expected)} weights that its configuration asks for",
                fix="copy the whole model again"
                + ("" if found is missing else "; load(..., allow_unexpected=True) leaves them out"),
            )
    for name, shape in expected.items():
        own = source.tensors.shape(names[name])
        if own != shape:
            raise io.CorruptFileError(
                f"the weight {name} has the wrong shape",
                got=f"{list(own)} in {source.place}",
                expected=f"{list(shape)}, by its configuration",
                fix="copy the whole model again",
            )


def _stated(source: Source, table: list[Weight], names: Mapping[str, str]) -> np.dtype:
    """The dtype in which a checkpoint is to be computed: what it states, else that of its norms."""
    stated = source.config_json.get("dtype") or source.config_json.get("torch_dtype")
    if isinstance(stated, str):
        try:
            return _float(stated.removeprefix("torch."))
        except errors.InfiniError:
            pass  # what training wrote there, such as float64
    norm = next(weight for weight in table if weight.path == ("norm",))
    found = source.tensors.read(names[norm.names[0]])
    return found.dtype if found.dtype in dtypes.FLOATS and found.dtype.itemsize <= 4 else dtypes.float32


@dataclass(frozen=True, slots=True)
class _Target:
    """How weights are to be in memory.

    Args:
        dtype: of vectors, and of what is computed.
        is_asked: whether matrices take this dtype, too; else they keep their own.
        method: how matrices are quantised, if they are.
        keep: parts of names of weights that are not.
        is_arranged: whether rows of quantised matrices lie side by side.
    """

    dtype: np.dtype
    is_asked: bool
    method: str | None
    keep: Collection[str]
    is_arranged: bool

    def scheme(self, weight: Weight) -> Any:  # Any: a scheme, or None
        """How a weight is quantised; None for not at all."""
        name = ".".join(map(str, weight.path))
        if self.method is None or any(part in name for part in self.keep):
            return None
        return quantizing.scheme_for(weight, self.method)

    def floats(self, weight: Weight, array: np.ndarray) -> np.ndarray:
        """A weight in the dtype that it is to have."""
        is_free = weight.kind != "plain" and not self.is_asked and array.dtype in dtypes.FLOATS
        dtype = array.dtype if is_free and array.dtype.itemsize <= 4 else self.dtype
        return array.astype(dtype, copy=False)


class _Reader:
    """Weights one after the other, with the bytes that were read."""

    def __init__(
        self,
        tensors: Tensors,
        names: Mapping[str, str],
        target: _Target,
        on_progress: Progress | None,
        table: list[Weight],
    ) -> None:
        self._tensors, self._names, self._target = tensors, names, target
        self._on_progress = on_progress
        self._sizes: dict[str, int] = {}
        if on_progress is not None:
            stored = {names[name] for weight in table for name in weight.names}
            self._sizes = {name: tensors.nbytes(name) for name in stored}
        self._total, self._done = sum(self._sizes.values()), 0

    def read(self, weight: Weight) -> Any:  # Any: a NumPy array, or a quantised one of such
        """A weight as it is to be in memory."""
        scheme = self._target.scheme(weight)
        parts = []
        for name in weight.names:
            stored = self._names[name]
            parts.append(self._one(weight, self._tensors.read(stored), scheme))
            # Several weights may be parts of one array; it is read once.
            self._count(self._sizes.pop(stored, 0))
        if weight.kind != "experts":
            return parts[0]
        return tree.map(lambda *leaves: np.stack(leaves), *_alike(parts))

    def _one(self, weight: Weight, stored: np.ndarray | QuantizedArray, scheme: Any) -> Any:  # Any: as `read`
        if isinstance(stored, QuantizedArray) and (weight.kind == "plain" or weight.is_transposed):
            stored = np.asarray(stored.dequantize())
        own = _part(weight, stored)
        if isinstance(own, QuantizedArray):
            return own
        if scheme is None or own.dtype not in dtypes.FLOATS:
            return self._target.floats(weight, own)
        return quantizing.quantized(own, scheme, is_arranged=self._target.is_arranged)

    def _count(self, nbytes: int) -> None:
        self._done += nbytes
        if self._on_progress is not None and nbytes:
            self._on_progress(self._done, self._total)


def _part(weight: Weight, stored: Any) -> Any:  # Any: a NumPy array, or a quantised one of such
    """What belongs to a weight of the array that a file has."""
    if weight.is_transposed:
        stored = stored.T
    if weight.heads is not None:
        heads = weight.heads
        stored = tree.map(lambda leaf: leaf.reshape(heads, leaf.shape[0] // heads, *leaf.shape[1:]), stored)
    if weight.part is None:
        return stored
    rows = slice(*weight.part)
    return tree.map(lambda leaf: leaf[:, rows] if weight.heads is not None else leaf[rows], stored)


def _alike(parts: list[Any]) -> list[Any]:  # Any: as `_part`
    """Experts that are stored differently as floats, so that they can be stacked."""
    kinds = {part.scheme if isinstance(part, QuantizedArray) else None for part in parts}
    if len(kinds) == 1:
        return parts
    return [np.asarray(part.dequantize()) if isinstance(part, QuantizedArray) else part for part in parts]
