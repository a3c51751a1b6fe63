"""A model under Hugging Face's names as a GGUF file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from infini.core import errors
from infini.io import gguf, tensors as tensors_
from infini.llm.checkpoints.gguf import configs
from infini.llm.checkpoints.gguf.architectures import Architecture, Json, Rule
from infini.llm.checkpoints.gguf.reading import pattern

_OWN_TYPES: Final = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F32"}
# Buffers that some folders hold beside the weights.
_IGNORED: Final = re.compile(
    r".*\.rotary_emb\.inv_freq|.*\.attn\.(masked_)?bias|.*\.attention\.(masked_)?bias"
)
# What llama.cpp computes with in float32 only.
_ALWAYS_F32: Final = re.compile(r".*(_norm\.weight|ffn_gate_inp\.weight|position_embd\.weight|\.bias)")
_FILE_TYPES: Final = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q4_K": 14, "Q5_K": 16,
    "Q6_K": 18, "BF16": 32,
}  # fmt: skip


def write_model(
    config: Json, tensors: Mapping[str, np.ndarray], *, type: str = "auto"
) -> tuple[dict[str, Any], list[gguf.GGUFTensor]]:  # Any: values of metadata
    """Metadata and tensors of a GGUF file, without the tokenizer's part.

    Args:
        config: config.json.
        tensors: weights by Hugging Face's names. They are read when they are written.
        type: what matrices are stored as: "F32", "F16", "BF16", "Q8_0" ... or "auto", as they are. Norms,
            biases and the like are float32. Matrices whose rows are not made of whole blocks are F16.

    Raises:
        UnsupportedError: GGUF has no architecture for this model, or none of its tensors is one of these.
    """
    found, keys, extra = configs.write(config)
    written = [gguf.tensor(name, array, "F32") for name, array in extra.items()]
    source = _Source(config, tensors, found)
    written += source.all(type)
    metadata = {
        configs.ARCHITECTURE: found.name,
        "general.type": "model",
        **keys,
        "general.file_type": gguf.value_of(file_type(written)),
        "general.quantization_version": gguf.value_of(2),
    }
    return metadata, _ordered(written)


def file_type(tensors: list[gguf.GGUFTensor]) -> int:
    """llama.cpp's number for the type of most matrices."""
    sizes: dict[str, int] = {}
    for x in tensors:
        if len(x.shape) > 1:
            sizes[x.type.name] = sizes.get(x.type.name, 0) + x.nbytes
    most = max(sizes, key=lambda name: sizes[name]) if sizes else "F32"
    return _FILE_TYPES.get(most, 1024)


class _Source:
    """The tensors of a folder, taken one rule of the table after the other."""

    def __init__(self, config: Json, tensors: Mapping[str, np.ndarray], found: Architecture) -> None:
        self.config = config
        self.tensors = tensors
        self.found = found
        self.is_tied = bool(config.get("tie_word_embeddings", found.model_type in ("gemma2", "gpt2")))

    def all(self, type: str) -> list[gguf.GGUFTensor]:
        groups: dict[tuple[int, str], list[tuple[int, str]]] = {}
        unknown = []
        patterns = [(pattern(rule.model), n) for n, rule in enumerate(self.found.rules)]
        for name in self.tensors:
            if _IGNORED.fullmatch(name) or (self.is_tied and name == "lm_head.weight"):
                continue
            hits = [(n, m.groupdict()) for regex, n in patterns if (m := regex.fullmatch(name))]
            if not hits:
                unknown.append(name)
                continue
            for number, parts in self._chosen(hits):
                own = self.found.rules[number].file.format(**parts)
                groups.setdefault((number, own), []).append((int(parts.get("e") or 0), name))
        if unknown:
            raise errors.UnsupportedError(
                f"a model of the kind {self.found.model_type} has tensors that are not known",
                got=", ".join(unknown[:4]) + (f" and {len(unknown) - 4} more" if unknown[4:] else ""),
                fix="write the model without them, as `save_pretrained` of transformers does",
            )
        return [
            self._tensor(self.found.rules[n], own, [name for _, name in sorted(names)], type)
            for (n, own), names in groups.items()
        ]

    def _chosen(self, hits: list[tuple[int, dict[str, str]]]) -> list[tuple[int, dict[str, str]]]:
        """Of the rules for one name those that files are written by today: tensors of all experts together,
        and DeepSeek's latent form.
        """
        latent = [hit for hit in hits if self.found.rules[hit[0]].kind.startswith("latent")]
        return latent or hits[:1]

    def _tensor(self, rule: Rule, own: str, names: list[str], type: str) -> gguf.GGUFTensor:
        shape = self._shape(names[0])
        load = lambda: self._array(names[0])  # noqa: E731
        if rule.kind == "experts":
            shape = (len(names), *shape)
            load = lambda: np.stack([self._array(name) for name in names])  # noqa: E731
            self._check_experts(own, names)
        elif rule.kind in ("queries", "keys"):
            heads = configs.heads(self.config)[rule.kind == "keys"]
            load = lambda: _rotated(self._array(names[0]), heads)  # noqa: E731
        elif rule.kind == "plus one":
            load = lambda: self._array(names[0]).astype(np.float32) + np.float32(1)  # noqa: E731
        elif rule.kind == "transposed" and len(shape) == 2:
            shape = shape[::-1]
            load = lambda: np.ascontiguousarray(self._array(names[0]).T)  # noqa: E731
        elif rule.kind in ("latent keys", "latent values"):
            shape, load = self._latent(names[0], is_keys=rule.kind == "latent keys")
        return gguf.tensor(own, load, self._type(own, shape, names[0], type), shape)

    def _check_experts(self, own: str, names: list[str]) -> None:
        said = next((self.config[key] for key in configs.EXPERT_COUNTS if self.config.get(key)), None)
        if said != len(names):
            raise tensors_.CorruptFileError(
                f"not all experts of {own} are there",
                got=f"{len(names)}",
                expected=f"{said}",
                fix="copy the whole model folder again",
            )

    def _array(self, name: str) -> np.ndarray:
        """A tensor, which nobody writes to; that of a file is not copied."""
        if isinstance(self.tensors, tensors_.TensorFiles):
            return self.tensors.mapped(name)
        return self.tensors[name]

    def _shape(self, name: str) -> tuple[int, ...]:
        if isinstance(self.tensors, tensors_.TensorFiles):
            return self.tensors.shape(name)
        return tuple(self.tensors[name].shape)

    def _type(self, own: str, shape: tuple[int, ...], name: str, type: str) -> str:
        if len(shape) < 2 or _ALWAYS_F32.fullmatch(own):
            return "F32"
        if type == "auto":
            kind = str(self._array(name).dtype)
            if kind not in _OWN_TYPES:
                raise errors.UnsupportedError(
                    f"the tensor {name} is not of floats that GGUF has", got=kind, fix="name a type"
                )
            return _OWN_TYPES[kind]
        found = gguf.type_of(type)
        return "F16" if shape[-1] % found.block_size else found.name

    def _latent(self, name: str, *, is_keys: bool) -> tuple[tuple[int, ...], Callable[[], np.ndarray]]:
        heads = int(self.config["num_attention_heads"])
        rank = int(self.config["kv_lora_rank"])
        plain, values = int(self.config["qk_nope_head_dim"]), int(self.config["v_head_dim"])

        def load() -> np.ndarray:
            whole = self._array(name).reshape(heads, plain + values, rank)
            part = whole[:, :plain].swapaxes(1, 2) if is_keys else whole[:, plain:]
            return np.ascontiguousarray(part)

        return ((heads, rank, plain) if is_keys else (heads, values, rank)), load


def _rotated(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows in llama.cpp's order: the two numbers of a pair side by side."""
    rows = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(array.shape)


def _ordered(tensors: list[gguf.GGUFTensor]) -> list[gguf.GGUFTensor]:
    """In the order of a forward pass, so that a split file has whole layers."""

    def place(x: gguf.GGUFTensor) -> tuple[int, int]:
        block = re.match(r"blk\.(\d+)\.", x.name)
        if block is not None:
            return 1, int(block[1])
        return (2 if x.name.startswith("output") else 0), 0

    return sorted(tensors, key=place)
