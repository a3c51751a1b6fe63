"""What one request asks of the choice of its tokens, with vLLM's names, defaults and ranges.

Everything that can be wrong without knowing the model is checked where the object is made; what needs the
vocabulary is `SamplingParams.check_vocabulary`, and what a server allows less of is `SamplingParams.check`.

References: https://docs.vllm.ai/en/latest/api/vllm/sampling_params.html; typical sampling as in transformers
(arXiv:2202.00666).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from infini.core import errors, events
from infini.llm.sampling import limits as limits_
from infini.llm.sampling.limits import Limits

OutputKind = Literal["cumulative", "delta", "final"]
SMALLEST_TEMPERATURE: Final = 0.01  # below it float32 logits overflow, so smaller ones are raised to it
GREEDY_BELOW: Final = 1e-5
_KINDS: Final = ("cumulative", "delta", "final")


class _Range(NamedTuple):
    """Values of a field that are allowed."""

    low: float
    high: float
    text: str
    is_integer: bool = False
    is_low_open: bool = False

    def holds(self, number: object) -> bool:
        kinds = (int,) if self.is_integer else (int, float)
        if isinstance(number, bool) or not isinstance(number, kinds):
            return False
        if self.is_low_open and number == self.low:
            return False
        return bool(self.low <= number <= self.high)  # False for NaN


_ANY: Final = 2.0**63
_INT64: Final = (-(2**63), 2**63 - 1)
_RANGES: Final[dict[str, _Range]] = {
    "n": _Range(1, _ANY, "an integer of at least 1", is_integer=True),
    "temperature": _Range(0.0, 2.0, "a number in [0, 2]"),
    "top_p": _Range(0.0, 1.0, "a number in (0, 1]", is_low_open=True),
    "top_k": _Range(-1, _ANY, "an integer of at least -1; 0 and -1 mean all tokens", is_integer=True),
    "min_p": _Range(0.0, 1.0, "a number in [0, 1]"),
    "typical_p": _Range(0.0, 1.0, "a number in (0, 1]", is_low_open=True),
    "repetition_penalty": _Range(0.0, 3e38, "a finite number above 0", is_low_open=True),
    "presence_penalty": _Range(-2.0, 2.0, "a number in [-2, 2]"),
    "frequency_penalty": _Range(-2.0, 2.0, "a number in [-2, 2]"),
    "seed": _Range(*_INT64, "None or an integer of 64 bits", is_integer=True),
    "max_tokens": _Range(1, _ANY, "None or an integer of at least 1", is_integer=True),
    "min_tokens": _Range(0, _ANY, "an integer of at least 0", is_integer=True),
    "logprobs": _Range(0, _ANY, "None or an integer of at least 0", is_integer=True),
    "prompt_logprobs": _Range(0, _ANY, "None or an integer of at least 0", is_integer=True),
}
_MAY_BE_NONE: Final = frozenset({"seed", "max_tokens", "logprobs", "prompt_logprobs"})
_FLAGS: Final = ("ignore_eos", "detokenize", "skip_special_tokens", "include_stop_str_in_output")


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputsParams:
    """The form that an answer must have; exactly one of the first six.

    Args:
        json: a JSON schema, as text or as what `json.loads` gives.
        regex: a regular expression that the whole answer matches.
        choice: the answers that are allowed.
        grammar: a context-free grammar in Lark's or GBNF's notation.
        json_object: any JSON object.
        structural_tag: JSON text of the form that llguidance reads: free text with marked parts that
            follow a schema.
        disable_any_whitespace: no white space between the parts of JSON.

    Raises:
        ValueMismatchError: not exactly one form is given, or one has a wrong type or is empty.
    """

    json: str | Mapping[str, Any] | bool | None = None  # Any: JSON
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | None = None
    disable_any_whitespace: bool = False

    def __post_init__(self) -> None:
        given = [name for name in STRUCTURES if getattr(self, name) not in (None, False)]
        if self.json is False:
            given.append("json")
        if len(given) != 1:
            raise errors.ValueMismatchError(
                "structured_outputs takes exactly one form",
                got=", ".join(given) or "none",
                expected="one of " + ", ".join(STRUCTURES),
            )
        for name in ("regex", "grammar", "structural_tag"):
            text = getattr(self, name)
            if text is not None and (not isinstance(text, str) or not text):
                _raise(f"structured_outputs.{name}", text, "a string that is not empty")
        if self.json is not None and not isinstance(self.json, (str, Mapping, bool)):
            _raise("structured_outputs.json", self.json, "a JSON schema as text or as a dict")
        if self.choice is not None:
            object.__setattr__(self, "choice", _strings("structured_outputs.choice", self.choice))
            if not self.choice:
                _raise("structured_outputs.choice", self.choice, "at least one string")


STRUCTURES: Final = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose the tokens of one request, when to stop, and what to tell about them.

    Args:
        n: answers to the prompt.
        temperature: logits are divided by it; 0 takes the likeliest token, what is between 0 and 0.01 is
            raised to 0.01.
        top_p: only the likeliest tokens that together have at least this probability are candidates.
        top_k: only so many of the likeliest are; 0 and -1 mean all.
        min_p: only those with at least this share of the likeliest one's probability are.
        typical_p: only the most typical ones that together have this probability are; 1 means all.
        repetition_penalty: divides (multiplies, where negative) the logits of tokens of prompt and answer.
        presence_penalty: is taken from the logits of tokens of the answer.
        frequency_penalty: is taken from them for each time they occur.
        seed: equal seeds give equal tokens, whatever else the engine does; None takes one at random.
        stop: strings that end the answer, one or several.
        stop_token_ids: tokens that do.
        ignore_eos: go on after the token that ends a text.
        max_tokens: length of the answer at most; None means as much as fits.
        min_tokens: length before which no token may end it.
        logprobs: how many of the likeliest tokens to tell with each token, beside itself; None tells none.
        prompt_logprobs: the same for the tokens of the prompt.
        detokenize: whether text is wanted.
        skip_special_tokens: leave special tokens out of the text.
        include_stop_str_in_output: leave the stop string in the text.
        logit_bias: token -> what is added to its logit, in [-100, 100].
        allowed_token_ids: only these tokens may be chosen.
        bad_words: words that may not be generated.
        structured_outputs: the form that the answer must have.
        output_kind: whether each output has the whole answer so far, what is new, or comes only at the end.

    Raises:
        ValueMismatchError: a field has a wrong type or lies outside its range; it is named.

    Example:
        >>> SamplingParams(temperature=0.7, top_p=0.9, max_tokens=64).is_greedy
        False
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None
    structured_outputs: StructuredOutputsParams | None = None
    output_kind: OutputKind = "cumulative"

    def __post_init__(self) -> None:
        for name, allowed in _RANGES.items():
            number = getattr(self, name)
            if not (number is None and name in _MAY_BE_NONE) and not allowed.holds(number):
                _raise(name, number, allowed.text)
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                _raise(name, getattr(self, name), "True or False")
        self._set("stop", _strings("stop", self.stop))
        self._set("bad_words", _strings("bad_words", self.bad_words))
        self._set("stop_token_ids", _ids("stop_token_ids", self.stop_token_ids))
        if self.allowed_token_ids is not None:
            self._set("allowed_token_ids", _ids("allowed_token_ids", self.allowed_token_ids))
            if not self.allowed_token_ids:
                _raise("allowed_token_ids", [], "None or at least one token")
        self._set("logit_bias", _biases(self.logit_bias))
        if self.output_kind not in _KINDS:
            _raise("output_kind", self.output_kind, "one of " + ", ".join(_KINDS))
        if not isinstance(self.structured_outputs, (StructuredOutputsParams, type(None))):
            _raise("structured_outputs", self.structured_outputs, "None or StructuredOutputsParams")
        self._check_together()
        self.check(limits_.OFFLINE)

    def _check_together(self) -> None:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            _raise("min_tokens", self.min_tokens, f"at most max_tokens, which is {self.max_tokens}")
        if self.is_greedy and self.n > 1:
            _raise("n", self.n, "1 at temperature 0, where all answers would be equal")
        if self.stop and not self.detokenize:
            _raise("detokenize", False, "True, for stop strings are looked for in the text")
        if not self.is_greedy and self.temperature < SMALLEST_TEMPERATURE:
            events.emit(
                "temperature-raised",
                f"temperature {self.temperature} was raised to {SMALLEST_TEMPERATURE}; use 0 for greedy",
            )
            self._set("temperature", SMALLEST_TEMPERATURE)

    def _set(self, name: str, field: object) -> None:
        object.__setattr__(self, name, field)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < GREEDY_BELOW

    def check(self, limits: Limits) -> None:
        """Hold the request against what may be asked for.

        Args:
            limits: a table; a server's has smaller numbers than the one that is always applied.

        Raises:
            ValueMismatchError: a field is larger than its limit.
        """
        stop, bad_words = self.stop or (), self.bad_words or ()
        _at_most("n", self.n, limits.n)
        _at_most("stop", len(stop), limits.num_stop_strings, "strings")
        _at_most(
            "stop", max(map(len, stop), default=0), limits.stop_string_chars, "characters in each string"
        )
        _at_most("bad_words", len(bad_words), limits.num_bad_words, "words")
        _at_most("logit_bias", len(self.logit_bias or ()), limits.num_logit_biases, "entries")
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            _at_most(name, count or 0, limits.top_logprobs)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Hold the tokens that the request names against a vocabulary.

        Args:
            vocab_size: tokens that the model knows.

        Raises:
            ValueMismatchError: one does not exist.
        """
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            tokens = getattr(self, name) or ()
            wrong = next((token for token in tokens if token >= vocab_size), None)
            if wrong is not None:
                _raise(name, wrong, f"token ids below {vocab_size}, the size of the vocabulary")

    def child(self, index: int) -> SamplingParams:
        """The request of answer `index` of `n`, with a seed of its own when this one has a seed."""
        seed = None if self.seed is None else _wrapped(self.seed + index)
        return dataclasses.replace(self, n=1, seed=seed)

    def to_dict(self) -> dict[str, Any]:  # Any: JSON
        """What differs from the defaults, as plain data that JSON and msgpack carry."""
        plain = _differing(self, _DEFAULTS)
        if self.structured_outputs is not None:
            plain["structured_outputs"] = _differing(self.structured_outputs, _ANY_OBJECT)
        return plain

    @staticmethod
    def from_dict(plain: Mapping[str, Any]) -> SamplingParams:  # Any: JSON
        """The inverse of `to_dict`.

        Raises:
            ValueMismatchError: a field is unknown, or wrong.
        """
        unknown = sorted(set(plain) - {field.name for field in dataclasses.fields(SamplingParams)})
        if unknown:
            _raise("SamplingParams", ", ".join(unknown), "fields of SamplingParams")
        given = dict(plain)
        if isinstance(given.get("structured_outputs"), Mapping):
            given["structured_outputs"] = StructuredOutputsParams(**given["structured_outputs"])
        return SamplingParams(**given)


def _differing(given: Any, default: Any) -> dict[str, Any]:  # Any: either of the two classes, JSON
    """Fields that differ from the defaults, and those that the default of a structure must not hide."""
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(given):
        content = getattr(given, field.name)
        if content != getattr(default, field.name) or (field.name == "json_object" and content):
            plain[field.name] = list(content) if isinstance(content, tuple) else content
    return plain


def _raise(name: str, got: object, expected: str) -> None:
    text = repr(got)
    raise errors.ValueMismatchError(
        f"{name} has a value that is not allowed",
        got=text if len(text) <= 200 else text[:197] + "...",
        expected=f"{name} is {expected}",
    )


def _at_most(name: str, count: int, limit: int, unit: str = "") -> None:
    if count > limit:
        _raise(name, count, f"at most {limit} {unit}".strip())


def _strings(name: str, given: str | Sequence[str] | None) -> tuple[str, ...]:
    strings = (given,) if isinstance(given, str) else tuple(given or ())
    if not all(isinstance(string, str) and string for string in strings):
        _raise(name, given, "a string or several, none of them empty")
    return strings


def _ids(name: str, given: Sequence[int] | None) -> tuple[int, ...]:
    tokens = tuple(given or ())
    for token in tokens:
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            _raise(name, token, "token ids, integers of at least 0")
    return tokens


def _biases(given: Mapping[int, float] | None) -> dict[int, float] | None:
    """Keys of JSON are strings, so digits count as integers."""
    if not given:
        return None
    if not isinstance(given, Mapping):
        _raise("logit_bias", given, "a mapping of token ids to numbers")
    biases: dict[int, float] = {}
    for token, bias in given.items():
        is_digits = isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 12
        number = int(token) if is_digits else token
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            _raise("logit_bias", token, "a mapping whose keys are token ids")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
            _raise("logit_bias", bias, "a mapping whose values lie in [-100, 100]")
        biases[number] = float(bias)
    return biases


def _wrapped(seed: int) -> int:
    low, high = _INT64
    return (seed - low) % (high - low + 1) + low


_DEFAULTS: Final = SamplingParams()
_ANY_OBJECT: Final = StructuredOutputsParams(json_object=True)
