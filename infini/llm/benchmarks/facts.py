"""What a benchmark says about the model that it measured."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from infini import quantization, tree
from infini.llm.checkpoints.loading import Checkpoint


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model in numbers.

    Args:
        description: family, size and form of the weights, such as "llama 1.1B Q4_0".
        num_params: numbers in all weights.
        nbytes: bytes of all weights.
        nbytes_read: bytes of the weights that one token reads: all but the table of embeddings, of which it
            reads a row.
    """

    description: str
    num_params: int
    nbytes: int
    nbytes_read: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> ModelFacts:
        """Of a loaded checkpoint."""
        weights = list(_weights(checkpoint.params))
        num_params = sum(math.prod(w.shape) for w in weights)
        nbytes = sum(w.nbytes for w in weights)
        forms = Counter[str]()
        for w in weights:
            forms[_form(w)] += math.prod(w.shape)
        embedding = checkpoint.params["embed_tokens"]
        is_tied = "lm_head" not in checkpoint.params
        family = checkpoint.config_json.get("model_type", "model")
        return cls(
            f"{family} {_rounded(num_params)} {forms.most_common(1)[0][0]}",
            num_params,
            nbytes,
            nbytes if is_tied else nbytes - embedding.nbytes,
        )


def _weights(params: Any) -> Iterator[Any]:  # Any: a tree of arrays and quantized arrays
    yield from tree.leaves(params, is_leaf=lambda x: isinstance(x, quantization.QuantizedArray))


def _form(weight: Any) -> str:  # Any: an array or a quantized one
    if isinstance(weight, quantization.QuantizedArray):
        return str(dataclasses.replace(weight.scheme, rows=1))  # rows side by side are the same numbers
    return {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}.get(weight.dtype.name, weight.dtype.name)


def _rounded(num_params: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if num_params >= size:
            return f"{num_params / size:.3g}{unit}"
    return str(num_params)
