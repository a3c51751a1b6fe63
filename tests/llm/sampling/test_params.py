"""What a request may ask: defaults, ranges, and errors that name the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from infini.core import errors, events
from infini.llm.sampling import limits
from infini.llm.sampling.params import SamplingParams, StructuredOutputsParams

NAN, INF = float("nan"), float("inf")


def test_defaults_are_those_of_vllm() -> None:
    params = SamplingParams()
    assert (params.n, params.temperature, params.top_p, params.top_k, params.min_p) == (1, 1.0, 1.0, 0, 0.0)
    assert (params.max_tokens, params.min_tokens, params.seed, params.logprobs) == (16, 0, None, None)
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.0, 0.0, 0.0)
    assert params.skip_special_tokens and not params.ignore_eos and not params.include_stop_str_in_output


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("n", [0, -1, 1.0, True, 10**9, None]),
        ("temperature", [-0.1, 2.01, NAN, INF, "1", None, True]),
        ("top_p", [0.0, -0.5, 1.5, NAN]),
        ("top_k", [-2, 1.5, NAN]),
        ("min_p", [-0.1, 1.1, NAN]),
        ("typical_p", [0.0, 1.1, NAN]),
        ("repetition_penalty", [0.0, -1.0, NAN, INF]),
        ("presence_penalty", [-2.1, 2.1, NAN]),
        ("frequency_penalty", [-2.1, 2.1, NAN]),
        ("seed", [2**63, -(2**63) - 1, 0.5]),
        ("max_tokens", [0, -1, 1.5, NAN]),
        ("min_tokens", [-1, 17, None]),
        ("logprobs", [-1, 21, 0.5]),
        ("prompt_logprobs", [-1, 21]),
        ("stop", ["", ["a", ""], [1]]),
        ("stop_token_ids", [[-1], ["a"], [True]]),
        ("logit_bias", [{1: 101}, {1: NAN}, {"x": 1}, {-1: 1}, {1: "1"}, [1]]),
        ("allowed_token_ids", [[], [-1]]),
        ("bad_words", [[""], [3], ["x"] * 129]),
        ("ignore_eos", [1, None]),
        ("output_kind", ["all", None]),
        ("structured_outputs", ["json", {"json": {}}]),
    ],
)
def test_a_value_out_of_range_is_an_error_that_names_the_field(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(
            errors.ValueMismatchError, match=rf"(?s)^{field} has a value.*expected: +{field} is"
        ):
            SamplingParams(**{field: value})


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.0, "n": 2},
        {"min_tokens": 5, "max_tokens": 4},
        {"stop": "a", "detokenize": False},
    ],
)
def test_fields_that_exclude_each_other(fields: dict[str, Any]) -> None:
    with pytest.raises(errors.ValueMismatchError, match="has a value that is not allowed"):
        SamplingParams(**fields)


def test_bounds_themselves_are_allowed() -> None:
    SamplingParams(
        temperature=2.0, top_p=1.0, top_k=-1, min_p=1.0, presence_penalty=-2.0, frequency_penalty=2
    )
    SamplingParams(seed=-(2**63), max_tokens=None, logprobs=20, prompt_logprobs=0, min_tokens=16)


def test_a_tiny_temperature_is_raised_and_said() -> None:
    with events.record() as found:
        params = SamplingParams(temperature=0.001)
    assert params.temperature == 0.01
    assert [event.code for event in found] == ["temperature-raised"]


def test_a_server_allows_less_than_a_program() -> None:
    params = SamplingParams(n=17, stop=["a"] * 5)
    with pytest.raises(errors.ValueMismatchError, match=r"(?s)^n has.*at most 16"):
        params.check(limits.SERVER)
    SamplingParams(n=16, stop=["a"] * 4).check(limits.SERVER)
    with pytest.raises(errors.ValueMismatchError, match=r"(?s)^stop has.*at most 256 characters"):
        SamplingParams(stop="a" * 257).check(limits.SERVER)


@pytest.mark.parametrize(
    "fields", [{"logit_bias": {9: 1.0}}, {"stop_token_ids": [9]}, {"allowed_token_ids": [9]}]
)
def test_tokens_have_to_be_in_the_vocabulary(fields: dict[str, Any]) -> None:
    SamplingParams(**fields).check_vocabulary(10)
    with pytest.raises(errors.ValueMismatchError, match="token ids below 9"):
        SamplingParams(**fields).check_vocabulary(9)


def test_keys_of_json_are_token_ids() -> None:
    assert SamplingParams(logit_bias={"17": 2}).logit_bias == {17: 2.0}  # type: ignore[dict-item]


def test_answers_have_seeds_of_their_own() -> None:
    params = SamplingParams(n=2, seed=2**63 - 1)
    assert [params.child(index).seed for index in (0, 1)] == [2**63 - 1, -(2**63)]
    assert params.child(1).n == 1
    assert SamplingParams(n=2).child(1).seed is None


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(n=3, stop=["a", "b"], logit_bias={3: 1.5}, max_tokens=None, bad_words=["x"]),
        SamplingParams(structured_outputs=StructuredOutputsParams(json_object=True)),
        SamplingParams(structured_outputs=StructuredOutputsParams(choice=["a", "b"])),
        SamplingParams(structured_outputs=StructuredOutputsParams(json={"type": "string"})),
    ],
)
def test_plain_data_and_back(params: SamplingParams) -> None:
    if params.logit_bias:
        assert SamplingParams.from_dict(json.loads(json.dumps(params.to_dict()))) == params
    assert SamplingParams.from_dict(params.to_dict()) == params


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(errors.ValueMismatchError, match="best_of"):
        SamplingParams.from_dict({"best_of": 2})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"regex": "a", "json_object": True},
        {"regex": ""},
        {"choice": []},
        {"choice": [1]},
        {"json": 3},
        {"json_object": False},
    ],
)
def test_a_structure_has_exactly_one_form(fields: dict[str, Any]) -> None:
    with pytest.raises(errors.ValueMismatchError, match="structured_outputs"):
        StructuredOutputsParams(**fields)
