"""Rotary embeddings in GGUF metadata and in config.json: what stretches them for long texts.

GGUF keeps some kinds as numbers and others as tensors: `rope_freqs.weight` has what each frequency of Llama
3 is divided by, `rope_factors_long.weight` and `rope_factors_short.weight` those of LongRoPE. References:
YaRN (arXiv:2309.00071), LongRoPE (arXiv:2402.13753), Llama 3 (arXiv:2407.21783).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from infini.core import errors
from infini.io import gguf
from infini.llm.checkpoints.gguf.architectures import Json

FREQUENCIES: Final = "rope_freqs.weight"
LONG: Final = "rope_factors_long.weight"
SHORT: Final = "rope_factors_short.weight"
TENSORS: Final = (FREQUENCIES, LONG, SHORT)

_YARN: Final = (
    ("yarn_beta_fast", "beta_fast"),
    ("yarn_beta_slow", "beta_slow"),
    ("yarn_attn_factor", "attention_factor"),
    ("yarn_ext_factor", "extrapolation_factor"),
)
_DEEPSEEK_MSCALE: Final = 0.1  # files hold `mscale_all_dim` times this


def read(
    get: Any, tensors: Mapping[str, gguf.GGUFTensor], config: Json, rope_dim: int
) -> Json | None:  # Any: a function from keys and defaults to values
    """What config.json says under `rope_scaling`; None for plain rotary embeddings.

    Args:
        get: value of a key after the architecture's name, with a default.
        tensors: those of the file.
        config: what is known of config.json.
        rope_dim: how many of a head's numbers are rotated.
    """
    if LONG in tensors and SHORT in tensors:
        return _read_long(get, tensors, config, rope_dim)
    if FREQUENCIES in tensors:
        return _read_llama3(_factors(tensors, FREQUENCIES, rope_dim), config, rope_dim)
    kind = get("rope.scaling.type", "none")
    factor = get("rope.scaling.factor", get("rope.scale_linear", 1.0))
    if not factor > 0:
        raise gguf.GGUFError("a GGUF file stretches texts by nothing", got=f"rope.scaling.factor {factor}")
    if kind == "none" and not get("rope.scale_linear", 0):
        return None
    if kind in ("none", "linear"):
        return {"rope_type": "linear", "factor": factor} if factor != 1.0 else None
    if kind != "yarn":
        raise errors.UnsupportedError(
            "a GGUF file has rotary embeddings of an unknown kind",
            got=f"rope.scaling.type {kind!r}",
            expected="none, linear, yarn, or longrope with its factors",
        )
    found: Json = {"rope_type": "yarn", "factor": factor}
    original = _original(get)
    if original is not None:
        found["original_max_position_embeddings"] = original
    for key, name in _YARN:
        value = get(f"rope.scaling.{key}", None)
        if value is not None:
            found[name] = value
    log_multiplier = get("rope.scaling.yarn_log_multiplier", None)
    if log_multiplier is not None:
        found["mscale"] = found["mscale_all_dim"] = round(log_multiplier / _DEEPSEEK_MSCALE, 6)
    return found


def write(config: Json, rope_dim: int) -> tuple[Json, dict[str, np.ndarray]]:
    """Metadata after the architecture's name, and tensors, for what a config.json says of rotary
    embeddings.
    """
    stated = scaling_of(config)
    kind = stated.get("rope_type") or stated.get("type") or "default"
    if kind == "default":
        return {}, {}
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(stated["factor"])}, {}
    if kind == "yarn":
        return _write_yarn(config, stated), {}
    if kind in ("longrope", "su"):
        return _write_long(config, stated)
    if kind == "llama3":
        return {}, {FREQUENCIES: _llama3_factors(stated, theta_of(config), rope_dim)}
    raise errors.UnsupportedError(
        "GGUF files have no rotary embeddings of this kind",
        got=f"rope_type {kind!r} in config.json",
        expected="default, linear, yarn, longrope or llama3",
        fix="remove it from config.json: shorter texts are computed without it",
    )


def scaling_of(config: Json) -> Json:
    """`rope_scaling` or `rope_parameters` of a config.json, whichever it has."""
    return {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}


def theta_of(config: Json) -> float:
    """Base of the frequencies."""
    return float(scaling_of(config).get("rope_theta") or config.get("rope_theta") or 10_000.0)


def _factors(tensors: Mapping[str, gguf.GGUFTensor], name: str, rope_dim: int) -> np.ndarray:
    found = tensors[name].numpy().astype(np.float32).reshape(-1)
    if found.size != rope_dim // 2 or not np.isfinite(found).all() or (found <= 0).any():
        raise gguf.GGUFError(
            f"the tensor {name} is not one positive number for each frequency",
            got=f"{found.size} numbers",
            expected=f"{rope_dim // 2}",
        )
    return found


def _original(get: Any) -> int | None:  # Any: as `read`
    """Longest text of the first training; None where the file does not say."""
    found = get("rope.scaling.original_context_length", None)
    if found is not None and (not isinstance(found, int) or found < 2):
        raise gguf.GGUFError(
            "a GGUF file was made for texts of no length", got=f"original_context_length {found}"
        )
    return found


def _shortest(numbers: np.ndarray) -> list[float]:
    """Floats of 32 bits as the shortest decimal numbers that mean them."""
    return [float(str(x)) for x in numbers]


def _read_long(
    get: Any, tensors: Mapping[str, gguf.GGUFTensor], config: Json, rope_dim: int
) -> Json:  # Any: as `read`
    length = config["max_position_embeddings"]
    original = _original(get) or length
    found: Json = {
        "rope_type": "longrope",
        "long_factor": _shortest(_factors(tensors, LONG, rope_dim)),
        "short_factor": _shortest(_factors(tensors, SHORT, rope_dim)),
        "original_max_position_embeddings": original,
    }
    sharper = get("rope.scaling.attn_factor", None)
    if sharper is not None and not math.isclose(
        sharper, _long_attention_factor(length, original), rel_tol=1e-6
    ):
        found["attention_factor"] = sharper
    return found


def _long_attention_factor(length: int, original: int) -> float:
    """What LongRoPE multiplies queries and keys by, unless a model says otherwise."""
    scale = length / original
    return math.sqrt(1.0 + math.log(scale) / math.log(original)) if scale > 1.0 else 1.0


def _write_long(config: Json, stated: Json) -> tuple[Json, dict[str, np.ndarray]]:
    name = "original_max_position_embeddings"
    length = int(config["max_position_embeddings"])
    original = int(config.get(name) or stated.get(name) or length)
    sharper = stated.get("attention_factor") or _long_attention_factor(length, original)
    return {
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": float(sharper),
    }, {
        LONG: np.array(stated["long_factor"], np.float32),
        SHORT: np.array(stated["short_factor"], np.float32),
    }


def _write_yarn(config: Json, stated: Json) -> Json:
    original = stated.get("original_max_position_embeddings") or config["max_position_embeddings"]
    found: Json = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(stated["factor"]),
        "rope.scaling.original_context_length": int(original),
    }
    for key, name in _YARN:
        if stated.get(name) is not None:
            found[f"rope.scaling.{key}"] = float(stated[name])
    if stated.get("mscale_all_dim") is not None:
        if stated.get("mscale", 1.0) != stated["mscale_all_dim"]:
            raise errors.UnsupportedError(
                "GGUF files have one number for what YaRN multiplies queries and keys by, and what scores",
                got=f"mscale {stated.get('mscale', 1.0)}, mscale_all_dim {stated['mscale_all_dim']}",
                expected="two equal numbers",
            )
        found["rope.scaling.yarn_log_multiplier"] = _DEEPSEEK_MSCALE * float(stated["mscale_all_dim"])
    return found


def _frequencies(theta: float, rope_dim: int) -> np.ndarray:
    return 1.0 / theta ** (np.arange(0, rope_dim, 2, dtype=np.float64) / rope_dim)


def _llama3_factors(stated: Json, theta: float, rope_dim: int) -> np.ndarray:
    """What each frequency is divided by: nothing for fast ones, `factor` for slow ones, and between the two a
    line in the number of turns within the original length."""
    factor = float(stated.get("factor", 8.0))
    low, high = float(stated.get("low_freq_factor", 1.0)), float(stated.get("high_freq_factor", 4.0))
    original = float(stated.get("original_max_position_embeddings", 8192))
    turns = original * _frequencies(theta, rope_dim) / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - share) / factor + share)).astype(np.float32)


def _read_llama3(factors: np.ndarray, config: Json, rope_dim: int) -> Json:
    """The numbers of config.json that give these factors.

    Only ratios matter of the three that bound the line between fast and slow, so the lower bound is 1.
    Factors that no such numbers give are written as those of LongRoPE, which has one for each frequency.
    """
    theta = theta_of(config)
    factor = float(factors.max())
    turns = _frequencies(theta, rope_dim) / (2 * math.pi)
    between = (factors > 1.0) & (factors < factor)
    candidates = [(float(2**power), 4.0) for power in (13, *range(3, 21))]  # as Llama 3 has it, 8192, first
    if between.sum() >= 2:
        # share = (original * turns - 1) / (high - 1) is a line in turns.
        share = (1.0 / factors[between].astype(np.float64) - 1.0 / factor) / (1.0 - 1.0 / factor)
        slope, start = np.polyfit(turns[between], share, 1)
        if start < 0:
            high = 1.0 - 1.0 / start
            candidates.append((float(round(slope * (high - 1.0))), float(round(high, 4))))
    for original, high in candidates:
        stated = {
            "rope_type": "llama3",
            "factor": float(str(np.float32(factor))),
            "low_freq_factor": 1.0,
            "high_freq_factor": high,
            "original_max_position_embeddings": int(original),
        }
        if high > 1.0 and np.allclose(_llama3_factors(stated, theta, rope_dim), factors, rtol=1e-5, atol=0):
            return stated
    numbers = _shortest(factors)
    return {
        "rope_type": "longrope",
        "long_factor": numbers,
        "short_factor": numbers,
        "attention_factor": 1.0,
        "factor": 1.0,
        "original_max_position_embeddings": config["max_position_embeddings"],
    }
