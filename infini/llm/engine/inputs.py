"""From what a user hands in to what the engine keeps: prompts become ids, settings are checked and completed.

Everything that is wrong with a request is found here, in the caller's thread, before it is in the queue.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from infini.core import errors
from infini.llm.engine.config import EngineConfig
from infini.llm.engine.jobs import Completion, Job
from infini.llm.engine.outputs import OutputKind
from infini.llm.engine.requests import Prompt, Request
from infini.llm.engine.scheduler import Scheduler
from infini.llm.sampling import bad_words as bad_words_, guided
from infini.llm.sampling.params import SamplingParams
from infini.llm.sampling.speculative import History
from infini.llm.sampling.state import Row
from infini.llm.text.detokenizer import Incremental
from infini.llm.text.tokenizer import Tokenizer

# Fields of generation_config.json that are settings of sampling, by our names.
_STATED: Final = ("temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty")
_MIX: Final = 0x9E3779B97F4A7C15  # odd, so that different numbers of requests give different seeds
_SALT_CHARS: Final = 128


class InputProcessor:
    """Makes jobs of requests.

    Args:
        config: of the engine.
        tokenizer: the model's; None where prompts are ids and texts are not wanted.
        vocab_size: ids that the model knows.
        max_model_len: most tokens of a request.
        scheduler: asked what can never run; only its limits are read.
        generation_config: what the checkpoint says about sampling.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        tokenizer: Tokenizer | None,
        vocab_size: int,
        max_model_len: int,
        scheduler: Scheduler,
        generation_config: Mapping[str, Any],  # Any: whatever JSON holds
    ) -> None:
        self._config, self.tokenizer = config, tokenizer
        self.vocab_size, self.max_model_len = vocab_size, max_model_len
        self._scheduler = scheduler
        stated = generation_config if config.generation_config == "auto" else {}
        self._defaults = _defaults(stated)
        self.eos_ids = _eos_ids(generation_config, tokenizer)
        self._numbers = itertools.count()
        self._compiler: guided.Compiler | None = None  # made when it is needed: it loads a library

    @property
    def default_params(self) -> SamplingParams:
        """What the checkpoint says, and defaults for the rest."""
        return self._defaults

    def make(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        kind: OutputKind | None = None,
    ) -> Job:
        """A job, ready for the queue.

        Raises:
            ValueMismatchError: the request cannot be served; the error names what is wrong.
        """
        text, ids, salt = self._prompt(prompt)
        params = self._defaults_for(len(ids)) if params is None else params
        number = next(self._numbers)
        request_id = str(number) if request_id is None else request_id
        self._check_params(params)
        max_tokens = self._max_tokens(params, len(ids))
        grammar_of = self._grammars(params)
        is_cached, salt = self._sharing(params, request_id, salt)
        eos_ids = frozenset() if params.ignore_eos else frozenset(self.eos_ids)
        bad_words = self._bad_words(params)
        spec = self._config.speculation
        is_looked_up = spec is not None and spec.method == "ngram"
        completions = []
        for index in range(params.n):
            request = Request(
                f"{request_id}-{index}" if params.n > 1 else request_id,
                tuple(ids),
                max_tokens,
                priority=priority,
                cache_salt=salt,
                is_cached=is_cached,
                wants_prompt_logprobs=params.prompt_logprobs is not None and index == 0,
            )
            if index == 0:
                self._scheduler.check(request)
            row = Row(
                params.child(index),
                vocab_size=self.vocab_size,
                prompt_token_ids=ids,
                eos_ids=sorted(eos_ids),
                seed=self._seed(number, index),
                bad_words=bad_words,
                grammar=grammar_of(),
            )
            completion = Completion(
                request,
                row,
                index,
                self._detokenizer(params, ids),
                eos_ids,
                frozenset(params.stop_token_ids or ()),
                history=History(ids) if is_looked_up else None,
            )
            if params.logprobs is not None:
                completion.logprobs, completion.cumulative_logprob = [], 0.0
            completions.append(completion)
        job = Job(
            request_id,
            text,
            list(ids),
            params,
            kind or params.output_kind,
            completions,
            time.monotonic(),
            time.time(),
        )
        if params.prompt_logprobs is not None:
            job.prompt_logprobs = [None]
        return job

    def _prompt(self, prompt: Prompt) -> tuple[str | None, Sequence[int], str]:
        """Text, ids and salt of a prompt."""
        salt = ""
        text: str | None = None
        ids: Any = None  # Any: what was given may be anything
        if isinstance(prompt, str):
            text = prompt
        elif isinstance(prompt, Mapping):
            text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
            salt = prompt.get("cache_salt") or ""
            if not isinstance(salt, str) or len(salt) > _SALT_CHARS:
                raise errors.ValueMismatchError(
                    "cache_salt has a value that is not allowed",
                    got=repr(salt)[:200],
                    expected=f"a text of at most {_SALT_CHARS} letters",
                )
        else:
            ids = prompt
        if ids is None:
            if not isinstance(text, str):
                raise errors.ValueMismatchError(
                    "a prompt has neither text nor ids",
                    got=repr(prompt)[:200],
                    expected='a text, {"prompt": text}, {"prompt_token_ids": ids} or ids',
                )
            if self.tokenizer is None:
                raise errors.ValueMismatchError(
                    "a prompt is text and the model has no tokenizer",
                    fix='pass {"prompt_token_ids": [...]}, or name a tokenizer',
                )
            ids = self.tokenizer.encode(text)
        ids = _token_ids(ids)
        return text, [self._id(id) for id in ids], salt

    def _id(self, given: Any) -> int:  # Any: what was given may be anything
        """An id of a prompt; NumPy's integers are integers, too."""
        try:
            id = operator.index(given)
        except TypeError:
            id = -1
        if not 0 <= id < self.vocab_size:
            raise errors.ValueMismatchError(
                "the prompt holds an id that the model does not know",
                got=repr(given)[:200],
                expected=f"integers from 0 to {self.vocab_size - 1}",
                fix="use the tokenizer of the model",
            )
        return id

    def _check_params(self, params: SamplingParams) -> None:
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(params, name)
            if count is not None and count > self._config.max_logprobs:
                raise errors.ValueMismatchError(
                    f"{name} is more than the engine gives",
                    got=str(count),
                    expected=f"at most {self._config.max_logprobs} (max_logprobs)",
                )
        if self.tokenizer is None and (params.stop or params.bad_words or params.structured_outputs):
            raise errors.ValueMismatchError(
                "stop strings, bad words and structured output need a tokenizer",
                got="a model without one",
                fix="name a tokenizer, or use stop_token_ids",
            )

    def _max_tokens(self, params: SamplingParams, length: int) -> int:
        if length >= self.max_model_len:
            raise errors.ValueMismatchError(
                "the prompt is longer than the model allows",
                got=f"{length} tokens",
                expected=f"at most {self.max_model_len - 1} (max_model_len is {self.max_model_len})",
                fix="shorten the prompt",
            )
        return self.max_model_len - length if params.max_tokens is None else params.max_tokens

    def _defaults_for(self, length: int) -> SamplingParams:
        """What the checkpoint says, but no more tokens than there is room for: nobody asked for so many."""
        most = self._defaults.max_tokens
        if most is None or length + most <= self.max_model_len:
            return self._defaults
        return dataclasses.replace(self._defaults, max_tokens=None)

    def _grammars(self, params: SamplingParams) -> Callable[[], guided.Grammar | None]:
        form = params.structured_outputs
        if form is None or self.tokenizer is None:
            return lambda: None
        if self._compiler is None:
            self._compiler = guided.Compiler(
                self.tokenizer,  # type: ignore[arg-type]  # its attributes are read, and tuples are sequences
                vocab_size=self.vocab_size,
            )
        compiler = self._compiler
        return lambda: compiler.compile(form)

    def _sharing(self, params: SamplingParams, request_id: str, salt: str) -> tuple[bool, str]:
        """Whether blocks of a request are shared, and with whom: those of n > 1 always among themselves."""
        if self._config.cache_mode == "static":
            return False, salt
        if self._config.enable_prefix_caching:
            return True, salt
        return params.n > 1, f"{salt}\0{request_id}"

    def _bad_words(self, params: SamplingParams) -> list[tuple[int, ...]]:
        if self.tokenizer is None or not params.bad_words:
            return []
        encode = functools.partial(self.tokenizer.encode, add_special_tokens=False)
        return bad_words_.token_ids(params.bad_words, encode, vocab_size=self.vocab_size)

    def _detokenizer(self, params: SamplingParams, ids: Sequence[int]) -> Incremental | None:
        if self.tokenizer is None or not params.detokenize:
            return None
        return Incremental(
            self.tokenizer,
            skip_special_tokens=params.skip_special_tokens,
            stop=params.stop or (),
            include_stop_str_in_output=params.include_stop_str_in_output,
            prompt=ids[-8:],
            min_tokens=params.min_tokens,
        )

    def _seed(self, number: int, index: int) -> int:
        """Of a request that brings none: different for each, equal for the same request of another run."""
        return (self._config.seed + (number * 65537 + index + 1) * _MIX) & (2**64 - 1)


def _token_ids(given: Any) -> list[Any]:  # Any: whatever a user gave
    """Ids of a list or of any library's array."""
    several = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(several, str | bytes | Mapping) or not isinstance(several, Iterable):
        raise errors.ValueMismatchError(
            "the ids of a prompt are no list", got=repr(given)[:200], expected="integers, one for each token"
        )
    return list(several)


def _defaults(stated: Mapping[str, Any]) -> SamplingParams:
    found = {name: stated[name] for name in _STATED if stated.get(name) is not None}
    if stated.get("do_sample") is False:
        found["temperature"] = 0.0
    if stated.get("max_new_tokens"):
        found["max_tokens"] = stated["max_new_tokens"]
    try:
        return SamplingParams(**found)
    except errors.ValueMismatchError as error:
        raise errors.ValueMismatchError(
            f"generation_config.json: {error.what}",
            got=error.got,
            expected=error.expected,
            fix="correct it, or set generation_config='none'",
        ) from None


def _eos_ids(generation_config: Mapping[str, Any], tokenizer: Tokenizer | None) -> tuple[int, ...]:
    stated = generation_config.get("eos_token_id")
    ids = [] if stated is None else list(stated) if isinstance(stated, list) else [stated]
    wrong = next((id for id in ids if isinstance(id, bool) or not isinstance(id, int) or id < 0), None)
    if wrong is not None:
        raise errors.ValueMismatchError(
            "generation_config.json: eos_token_id is no token",
            got=repr(wrong)[:200],
            expected="an integer of at least 0, or several",
        )
    return tuple(dict.fromkeys([*ids, *(() if tokenizer is None else tokenizer.eos_ids)]))
