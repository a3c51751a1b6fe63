"""Where the weights and the cache of a model go when several devices share it.

Tensor parallelism (Megatron, arXiv:1909.08053): queries, keys, values and the first products of a
feed-forward layer are split by their outputs, the products behind them by their inputs, so a layer adds up
its terms twice. Heads and their part of the cache go together. Nothing else knows of it: programs are
written for whole arrays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from infini.core import errors
from infini.llm.models.config import Config
from infini.sharding import Mesh, NamedSharding, P

AXIS: Final = "tp"
# Ends of the names of weights whose outputs, and of those whose inputs are split.
_BY_OUTPUTS: Final = re.compile(r"\.((q|k|v|q_b|gate|up)_proj(_bias)?|[kv]_up)$|^lm_head(_bias)?$")
_BY_INPUTS: Final = re.compile(r"\.(o|down)_proj$")
_BY_KEY_HEADS: Final = re.compile(r"\.[kv]_proj(_bias)?$")
Dimension = Literal["outputs", "inputs"] | None


def weights(config: Config, mesh: Mesh) -> Callable[[str, Any], NamedSharding]:  # Any: an array
    """What `checkpoints.load(..., sharding=)` asks: (name, array) -> its placement.

    Args:
        config: sizes of the model.
        mesh: devices, with the axis "tp".

    Raises:
        ValueMismatchError: heads or widths cannot be shared by so many devices.
    """
    count = mesh.shape[AXIS]
    _check(config, count)

    def place(name: str, array: Any) -> NamedSharding:  # Any: an array
        return NamedSharding(mesh, _spec(name, split_of(name, config, count)))

    return place


def cache(config: Config, mesh: Mesh) -> Callable[[str], NamedSharding]:
    """Placements of the arrays of a cache by their names: heads are split where there are enough."""
    count = mesh.shape[AXIS]
    has_heads = config.latent is None and config.num_kv_heads % count == 0

    def place(name: str) -> NamedSharding:
        return NamedSharding(mesh, P(None, AXIS) if has_heads else P())

    return place


def split_of(name: str, config: Config, count: int) -> Dimension:
    """Which dimension of a weight so many devices share; None where each has all of it.

    Keys and values stay whole where there are fewer heads of them than devices.
    """
    if _BY_KEY_HEADS.search(name) and config.num_kv_heads % count:
        return None
    if _BY_OUTPUTS.search(name):
        return "outputs"
    if name == "embed_tokens" and config.tie_embeddings:
        return "outputs"
    return "inputs" if _BY_INPUTS.search(name) else None


def _spec(name: str, split: Dimension) -> P:
    """Placement of an array or of a plane of a quantised one: planes have rows and groups where matrices have
    outputs and inputs, and those of experts have the experts in front.
    """
    if split is None:
        return P()
    before: Sequence[None] = (None,) if ".experts." in name else ()
    return P(*before, AXIS) if split == "outputs" else P(*before, None, AXIS)


def _check(config: Config, count: int) -> None:
    for what, number in (("query heads", config.num_heads), ("tokens of the vocabulary", config.vocab_size)):
        if number % count:
            raise errors.ValueMismatchError(
                f"the {what} of this model cannot be shared by {count} devices",
                got=f"{number} {what}",
                expected=f"a multiple of {count}",
                fix="choose a tensor_parallel_size that divides it",
            )
