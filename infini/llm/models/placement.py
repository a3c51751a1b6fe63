"""Where the weights and the cache of a model go when several devices share it.

Tensor parallelism (Megatron, arXiv:1909.08053): queries, keys, values and the first products of a
feed-forward layer are split by their outputs, the products behind them by their inputs, so a layer adds up
its terms twice. Heads and their part of the cache go together. Expert parallelism beside it: each device has
some of the experts whole, instead of a part of each. Programs are written for whole arrays; only the layer of
experts knows that they are apart.

Loading applies a placement to the planes of quantised weights (`checkpoints.placing`): no group of columns
and no panel of arranged rows is cut.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Final, Literal

from infini.core import errors
from infini.llm.models.config import Config
from infini.llm.models.experts import AXIS as AXIS
from infini.sharding import Mesh, NamedSharding, P

# Ends of the names of weights whose outputs, and of those whose inputs are split.
_BY_OUTPUTS: Final = re.compile(r"\.((q|k|v|q_b|gate|up)_proj(_bias)?|[kv]_up)$|^lm_head(_bias)?$")
_BY_INPUTS: Final = re.compile(r"\.(o|down)_proj$")
_BY_KEY_HEADS: Final = re.compile(r"\.[kv]_proj(_bias)?$")
Dimension = Literal["outputs", "inputs", "experts"] | None


def apart(config: Config, count: int) -> Config:
    """The same model with its experts divided among so many devices by their number.

    Args:
        config: a model with experts.
        count: devices.

    Raises:
        ValueMismatchError: it has none, or cannot give each device as many.
    """
    experts = config.experts
    if experts is None or experts.count % count:
        raise errors.ValueMismatchError(
            "the experts of this model cannot be divided by their number",
            got="a model without experts" if experts is None else f"{experts.count} experts, {count} devices",
            expected=f"a multiple of {count}",
            fix="leave enable_expert_parallel out: experts are then divided by their width",
        )
    return dataclasses.replace(config, experts=dataclasses.replace(experts, num_places=count))


def weights(config: Config, mesh: Mesh) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """What `checkpoints.load(..., sharding=)` asks: (name, shape) -> its placement.

    Args:
        config: sizes of the model.
        mesh: devices, with the axis "tp".

    Raises:
        ValueMismatchError: heads or widths cannot be shared by so many devices.
    """
    count = mesh.shape[AXIS]
    _check(config, count)

    def place(name: str, shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(mesh, _spec(name, split_of(name, config, count), shape, count))

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
    if ".experts." in name and config.experts is not None and config.experts.num_places > 1:
        return "experts"
    if _BY_KEY_HEADS.search(name) and config.num_kv_heads % count:
        return None
    if _BY_OUTPUTS.search(name):
        return "outputs"
    if name == "embed_tokens" and config.tie_embeddings:
        return "outputs"
    return "inputs" if _BY_INPUTS.search(name) else None


def _spec(name: str, split: Dimension, shape: tuple[int, ...], count: int) -> P:
    """Placement of a matrix (outputs, inputs), of stacked ones (experts, outputs, inputs), or of a bias."""
    if split is None:
        return P()
    at = (".experts." in name) * (split != "experts") + (split == "inputs")
    return P(*[None] * at, AXIS) if shape[at] >= count else P()


def _check(config: Config, count: int) -> None:
    for what, number in (("query heads", config.num_heads), ("tokens of the vocabulary", config.vocab_size)):
        if number % count:
            raise errors.ValueMismatchError(
                f"the {what} of this model cannot be shared by {count} devices",
                got=f"{number} {what}",
                expected=f"a multiple of {count}",
                fix="choose a tensor_parallel_size that divides it",
            )
