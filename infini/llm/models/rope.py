"""Rotary embeddings: which frequencies a configuration names, and how heads are rotated by them.

Frequencies are computed once, on the host in float64, and are constants of the program. Kinds that depend on
the length of a text (`dynamic`, `longrope`) take the length that a model is served for instead: then keys of
one sequence, and of others with the same beginning, go together whatever was computed in which step.

Shapes: T tokens, D head width.
References: rotary embeddings (arXiv:2104.09864), linear scaling (arXiv:2306.15595), YaRN and the dynamic kind
(arXiv:2309.00071), the kind of Llama 3 (arXiv:2407.21783), LongRoPE (arXiv:2402.13753).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

import infini.numpy as inp
from infini import Array
from infini.core import errors
from infini.train import hugging_face, rotary

Json = Mapping[str, Any]  # Any: whatever JSON holds
_LONG: Final = ("longrope", "su")


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embeddings of a model.

    Args:
        dim: how many of a head's numbers are rotated; those behind them stay.
        theta: base of the frequencies.
        scaling: how they are changed for long texts.
        short_factors: `longrope`: what each frequency is divided by in texts of at most `original_length`.
        long_factors: `longrope`: the same in longer ones.
        original_length: `longrope`: longest text of the first training.
        is_interleaved: whether neighbours are pairs, instead of the two halves.
    """

    dim: int
    theta: float = 10000.0
    scaling: rotary.Scaling = rotary.UNSCALED
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    original_length: int = 0
    is_interleaved: bool = False


def read(data: Json, head_dim: int, *, is_interleaved: bool = False) -> Rope:
    """The rotary embeddings of a config.json, in either spelling: `rope_theta` and `rope_scaling`, or
    `rope_parameters`; with `type` or `rope_type`.

    Args:
        data: the contents of config.json, with the defaults of its family.
        head_dim: width D of a head.
        is_interleaved: whether neighbours are pairs in this family; `rope_interleaved` in the file stands
            above it.

    Raises:
        ValueMismatchError: it names a kind that is not supported.
        CorruptFileError: it lacks what its kind needs.
    """
    stated = {**(data.get("rope_scaling") or {}), **(data.get("rope_parameters") or {})}
    if any(isinstance(value, dict) for value in stated.values()):
        raise errors.ValueMismatchError(
            "different rotary embeddings in different layers are not supported",
            got=f"rope_parameters of {', '.join(sorted(stated))}",
        )
    share = stated.pop("partial_rotary_factor", None) or data.get("partial_rotary_factor") or 1.0
    common: dict[str, Any] = {  # Any: fields of several kinds
        "dim": int(head_dim * share),
        "theta": float(stated.get("rope_theta") or data.get("rope_theta") or 10000.0),
        "is_interleaved": bool(data.get("rope_interleaved", is_interleaved)),
    }
    kind = stated.get("rope_type") or stated.get("type") or "default"
    if kind in _LONG or (kind == "yarn" and "long_factor" in stated):
        return Rope(**common, **_long(data, stated, common["dim"]))
    plain = dict(data) | {"rope_parameters": {**stated, "rope_type": kind}, "rope_scaling": None}
    return Rope(**common, scaling=hugging_face.scaling_of(plain))


def _long(data: Json, stated: Json, dim: int) -> dict[str, Any]:  # Any: fields of several kinds
    name = "original_max_position_embeddings"
    original = int(data.get(name) or stated.get(name) or data["max_position_embeddings"])
    factor = float(stated.get("factor") or data["max_position_embeddings"] / original)
    sharper = stated.get("attention_factor")
    if sharper is None:
        sharper = 1.0 if factor <= 1.0 else math.sqrt(1.0 + math.log(factor) / math.log(original))
    factors = {key: tuple(map(float, stated.get(key) or ())) for key in ("short_factor", "long_factor")}
    for key, values in factors.items():
        if len(values) != dim // 2:
            raise errors.ValueMismatchError(
                f"{key} of the rotary embeddings has the wrong length",
                got=f"{len(values)} numbers in config.json",
                expected=f"{dim // 2}, half of the {dim} numbers that are rotated",
            )
    return {
        "short_factors": factors["short_factor"],
        "long_factors": factors["long_factor"],
        "original_length": original,
        "scaling": rotary.Scaling(attention_factor=float(sharper)),
    }


def frequencies(rope: Rope, *, max_length: int, served_length: int) -> np.ndarray:
    """Radians that each pair turns from one token to the next, float32 (dim / 2,).

    Args:
        rope: the embeddings.
        max_length: longest text the model was made for.
        served_length: longest text it is used for.
    """
    half, scaling, theta = rope.dim // 2, rope.scaling, rope.theta
    if scaling.kind in ("llama3", "yarn"):
        return np.asarray(rotary.mixed(rope.dim, theta, scaling), np.float32)
    if scaling.kind == "dynamic":
        longer = max(served_length, max_length) / max_length
        theta *= (scaling.factor * longer - (scaling.factor - 1.0)) ** (rope.dim / (rope.dim - 2))
    found = theta ** (-np.arange(half, dtype=np.float64) / half)
    if scaling.kind == "linear":
        found = found / scaling.factor
    if rope.long_factors:
        is_long = served_length > rope.original_length
        found = found / np.asarray(rope.long_factors if is_long else rope.short_factors)
    return found.astype(np.float32)


def rotation(
    positions: Array, rope: Rope, *, max_length: int, served_length: int, dtype: Any
) -> tuple[Array, Array]:  # Any: a dtype
    """Cosines and sines of the angles at some positions (T,), each (T, 1, dim / 2)."""
    turns = inp.asarray(frequencies(rope, max_length=max_length, served_length=served_length))
    angles = positions[:, None, None].astype(inp.float32) * turns
    cos, sin = inp.cos(angles), inp.sin(angles)
    factor = rope.scaling.attention_factor
    if factor != 1.0:
        cos, sin = cos * factor, sin * factor
    return cos.astype(dtype), sin.astype(dtype)


def rotate(x: Array, by: tuple[Array, Array], rope: Rope) -> Array:
    """Rotate heads (T, heads, D).

    Of pairs of neighbours the result has all firsts and then all seconds: queries and keys are treated alike,
    and products of both do not see the order.
    """
    cos, sin = by
    half = rope.dim // 2
    if rope.is_interleaved:
        first, second = x[..., 0 : rope.dim : 2], x[..., 1 : rope.dim : 2]
    else:
        first, second = x[..., :half], x[..., half : rope.dim]
    parts = [first * cos - second * sin, second * cos + first * sin]
    if rope.dim < x.shape[-1]:
        parts.append(x[..., rope.dim :])
    return inp.concatenate(parts, axis=-1)
