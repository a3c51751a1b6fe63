"""The families of models that there are, found by the names in a config.json."""

from __future__ import annotations

from typing import Final

from infini.core import errors
from infini.io import tensors as tensors_
from infini.llm.models import checking, deepseek, gemma2, gpt2, llama, minicpm, mistral, phi3, qwen
from infini.llm.models.config import Config
from infini.llm.models.family import Family, Json

_FAMILIES: Final[list[Family]] = [
    llama.FAMILY,
    mistral.FAMILY,
    mistral.MIXTRAL,
    qwen.QWEN2,
    qwen.QWEN3,
    qwen.QWEN3_MOE,
    gemma2.FAMILY,
    phi3.FAMILY,
    gpt2.FAMILY,
    deepseek.V2,
    deepseek.V3,
    minicpm.FAMILY,
    minicpm.JIUGE,
]


def register(family: Family) -> None:
    """Make a family known; it stands above those that were known by its names before.

    Args:
        family: the family.
    """
    _FAMILIES.insert(0, family)


def names() -> list[str]:
    """All values of `model_type` that are known, sorted."""
    return sorted({name for family in _FAMILIES for name in family.names})


def family_named(name: str) -> Family:
    """The family of a value of `model_type`.

    Raises:
        ValueMismatchError: there is none.
    """
    for family in _FAMILIES:
        if name in family.names:
            return family
    raise errors.ValueMismatchError(
        "this kind of model is not supported",
        got=f"model_type = {name!r}",
        expected=", ".join(names()),
        fix="a new kind is one file: see docs/llm-models.md, and models.register",
    )


def family_of(config_json: Json) -> Family:
    """The family of a config.json, by `model_type`, or by `architectures` where that is absent or unknown.

    Raises:
        ValueMismatchError: there is none.
    """
    kind, listed = config_json.get("model_type"), config_json.get("architectures") or []
    for family in _FAMILIES:
        if kind in family.names:
            return family
    for family in _FAMILIES:
        if set(listed) & set(family.architectures):
            return family
    return family_named(str(kind if kind is not None else ", ".join(map(str, listed))))


def config_from_json(config_json: Json) -> Config:
    """The model that a config.json describes.

    Raises:
        ValueMismatchError: its kind, or something that it states, is not supported.
        CorruptFileError: it lacks a size, or a value is of a wrong kind.

    Example:
        >>> tiny = config_from_json({"model_type": "llama", "vocab_size": 64, "hidden_size": 32,
        ...     "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4})
        >>> tiny.head_dim, tiny.num_kv_heads
        (8, 4)
    """
    family = family_of(config_json)
    # A file that names its architecture alone is of the family's first name.
    name = config_json.get("model_type")
    stated = {**config_json, "model_type": name if name in family.names else family.names[0]}
    try:
        return checking.check(family.config(stated))
    except errors.InfiniError:
        raise
    except KeyError as error:
        raise _broken(f"config.json does not state {error.args[0]}") from None
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
        raise _broken("config.json has a value of a wrong kind", str(error)) from None


def _broken(what: str, got: str | None = None) -> tensors_.CorruptFileError:
    return tensors_.CorruptFileError(what, got=got, fix="copy the whole model folder again")
