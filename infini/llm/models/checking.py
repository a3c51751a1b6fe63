"""Configurations are checked before anything is made of them: files may say anything."""

from __future__ import annotations

import dataclasses
import math
from typing import Final

from infini.io import tensors as tensors_
from infini.llm.models.config import Config, Experts

# Beyond what any model has, and before what a table of weights would take all memory for.
MOST_LAYERS: Final = 1 << 12
_MOST_EXPERTS: Final = 1 << 17


def check(config: Config) -> Config:
    """A configuration as it is, if a model can have it.

    Raises:
        CorruptFileError: it contradicts itself, or states a number that no model has.
    """
    found = _problem(config)
    if found is not None:
        raise tensors_.CorruptFileError(
            "config.json describes no model", got=found, fix="copy the whole model folder again"
        )
    return config


def _problem(config: Config) -> str | None:
    if not _are_numbers(config):
        return "a number that is not one"
    if config.num_layers > MOST_LAYERS:
        return f"{config.num_layers} layers"
    if config.num_heads % config.num_kv_heads:
        return f"{config.num_kv_heads} key heads, which do not divide {config.num_heads} query heads"
    if any(window is not None and not _is_size(window) for window in config.windows):
        return f"windows of {config.windows[:4]}"
    if config.windows and len(config.windows) != config.num_layers:
        return f"kinds of attention for {len(config.windows)} of {config.num_layers} layers"
    width = config.head_dim if config.latent is None else config.latent.rope_dim
    rope = config.rope
    if rope is not None and (rope.dim < 2 or rope.dim % 2 or rope.dim > width or rope.theta <= 0):
        return f"rotations of {rope.dim} of the {width} numbers of a head, with the base {rope.theta}"
    return None if config.experts is None else _problem_of_experts(config.experts)


def _problem_of_experts(experts: Experts) -> str | None:
    sizes = (experts.count, experts.per_token, experts.width, experts.num_groups, experts.groups_per_token)
    if not all(map(_is_size, sizes)) or experts.count * max(1, len(experts.layers)) > _MOST_EXPERTS:
        return f"{experts.count} experts of width {experts.width} in {len(experts.layers)} layers"
    if experts.per_token > experts.count:
        return f"{experts.per_token} of {experts.count} experts for a token"
    in_group, rest = divmod(experts.count, experts.num_groups)
    if rest or experts.groups_per_token > experts.num_groups:
        return f"{experts.groups_per_token} of {experts.num_groups} groups of {experts.count} experts"
    if experts.groups_per_token * in_group < experts.per_token:
        return f"{experts.per_token} experts for a token, of {experts.groups_per_token} groups of {in_group}"
    if experts.group_score == "best two" and experts.num_groups > 1 and in_group < 2:
        return f"groups of {in_group} expert, which are compared by their best two"
    return None


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 1


def _are_numbers(config: Config) -> bool:
    """Whether all floats are finite."""
    parts = [config, config.rope, config.experts, None if config.rope is None else config.rope.scaling]
    values = [
        value
        for part in parts
        if part is not None
        for field in dataclasses.fields(part)
        for value in _flat(getattr(part, field.name))
    ]
    return all(math.isfinite(value) for value in values if isinstance(value, float))


def _flat(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)
