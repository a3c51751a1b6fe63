"""From the fields of a call to `SamplingParams`: the model's defaults, limits, forms of answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Final

from infini.core import errors
from infini.llm.sampling.params import SamplingParams, StructuredOutputsParams
from infini.llm.server import failures, requests
from infini.llm.server.settings import Settings

# Fields of a call that have the same name and meaning in SamplingParams.
_SAME: Final = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "seed", "n", "min_tokens", "stop", "stop_token_ids", "ignore_eos",
    "include_stop_str_in_output", "skip_special_tokens", "allowed_token_ids", "bad_words", "prompt_logprobs",
)  # fmt: skip
_GUIDED: Final = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
_NAMES: Final = frozenset(field.name for field in dataclasses.fields(SamplingParams))


def defaults(model: SamplingParams, settings: Settings) -> dict[str, Any]:  # Any: fields of SamplingParams
    """Values of fields that a call leaves open.

    Args:
        model: what the model's files say.
        settings: what the server's owner says, which goes before.

    Raises:
        ValueMismatchError: the owner names a field that does not exist, or a wrong value.
    """
    own = dict(settings.default_sampling)
    unknown = sorted(set(own) - _NAMES)
    if unknown:
        raise errors.ValueMismatchError(
            "a default of sampling does not exist", got=", ".join(unknown), expected=", ".join(sorted(_NAMES))
        )
    found = {**model.to_dict(), **own}
    SamplingParams.from_dict(found)
    for name in ("max_tokens", "n", "logprobs", "output_kind"):
        found.pop(name, None)
    return found


def params(
    call: requests.Sampled,
    *,
    defaults: Mapping[str, Any],  # Any: fields of SamplingParams
    settings: Settings,
    max_tokens: int,
    logprobs: int | None,
    structure: StructuredOutputsParams | None = None,
) -> SamplingParams:
    """How to choose the tokens of a call.

    Args:
        call: the body.
        defaults: values of fields that it leaves open.
        settings: limits.
        max_tokens: length of the answer at most.
        logprobs: how many likely tokens to tell, None for none.
        structure: a form that the answer must have for another reason than the call's own fields.

    Raises:
        ApiError: a value is not allowed.
    """
    fields = dict(defaults)
    fields |= {name: value for name in _SAME if (value := getattr(call, name, None)) is not None}
    fields["max_tokens"], fields["logprobs"] = max_tokens, logprobs
    if call.logit_bias:
        fields["logit_bias"] = call.logit_bias
    try:
        fields["structured_outputs"] = structure or structured(call)
        found = SamplingParams(**fields)
        found.check(settings.limits)
    except errors.InfiniError as error:
        raise failures.of_infini(error, _field(error)) from None
    if max_tokens < found.min_tokens:
        raise failures.invalid("min_tokens is larger than max_tokens", "min_tokens")
    return found


def _field(error: errors.InfiniError) -> str | None:
    """The field that an error of SamplingParams is about: the first word of what it says."""
    word = error.what.partition(" ")[0]
    return word if word.partition(".")[0] in _NAMES else None


def structured(call: requests.Sampled) -> StructuredOutputsParams | None:
    """The form that a call asks for, in OpenAI's words or in vLLM's; None for any text.

    Args:
        call: the body.

    Raises:
        ApiError: more than one form.
        ValueMismatchError: a form is not what it should be.
    """
    forms: list[dict[str, Any]] = []  # Any: fields of StructuredOutputsParams
    if call.structured_outputs is not None:
        given = call.structured_outputs.model_dump(by_alias=True, exclude_none=True)
        names = {field.name for field in dataclasses.fields(StructuredOutputsParams)}
        forms.append({name: value for name, value in given.items() if name in names})
    forms += [
        {name: getattr(call, field)} for field, name in _GUIDED.items() if getattr(call, field) is not None
    ]
    form = call.response_format
    if form is not None and form.type == "json_object":
        forms.append({"json_object": True})
    elif form is not None and form.type == "json_schema":
        assert form.json_schema is not None
        forms.append({"json": form.json_schema.schema_})
    elif form is not None and form.type == "structural_tag":
        forms.append({"structural_tag": json.dumps({"type": form.type, **(form.model_extra or {})})})
    if not forms:
        return None
    if len(forms) > 1:
        raise failures.invalid(
            "the form of the answer is given twice: use one of response_format and structured_outputs",
            "structured_outputs",
        )
    return StructuredOutputsParams(**forms[0])
