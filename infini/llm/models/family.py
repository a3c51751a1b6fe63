"""A family of models: how its config.json is read, what its weights are called, what its blocks compute.

A file in this folder makes one `Family` for each; `registry` finds it by the names in a config.json.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from infini import Array
from infini.llm.models.config import Config
from infini.llm.models.weights import Weight

Json: TypeAlias = Mapping[str, Any]  # Any: whatever JSON holds
Params: TypeAlias = dict[str, Any]  # Any: arrays, and dictionaries and lists of them
Entry: TypeAlias = dict[str, Array]
Cache: TypeAlias = list[Entry]


@dataclass(frozen=True, slots=True)
class Family:
    """One family.

    Args:
        names: values of `model_type` in config.json.
        architectures: values of `architectures` there.
        config: reads a config.json.
        weights: every weight of a model, with its names in files.
        block: one block: (layer's params, its part of the cache, x (T, M), step, number, config) -> x and
            that part of the cache. None for the decoder's own.
        stored_name: (name in a file, config) -> the name in `weights`; None for what nothing reads. None
            where files have no other names.
        fitted: (config, names in the files) -> config, where a model's files say what its config.json does
            not.
    """

    names: tuple[str, ...]
    architectures: tuple[str, ...]
    config: Callable[[Json], Config]
    weights: Callable[[Config], list[Weight]]
    block: Callable[..., tuple[Array, Entry]] | None = None
    stored_name: Callable[[str, Config], str | None] | None = None
    fitted: Callable[[Config, Collection[str]], Config] | None = None
