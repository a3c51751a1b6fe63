"""Structured output: grammars that say, token by token, what may come next.

A `Compiler` belongs to a tokenizer. It turns what a request asks for (a JSON schema, a regular expression,
choices, a grammar) into a `Grammar` of that request; compiled forms are kept, up to a bound, and copied.
What a stranger may ask for is limited in size, depth and time, and whatever goes wrong is an error of that
request. The library llguidance does the work; it is loaded with the first compiler.

References: https://github.com/guidance-ai/llguidance; grammars in Lark's notation or llama.cpp's GBNF.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import json
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final, Protocol

import numpy as np

from infini.core import errors
from infini.llm.sampling import forms, limits as limits_
from infini.llm.sampling.limits import Limits
from infini.llm.sampling.params import StructuredOutputsParams

# Enough for a line break and a deep indentation: small models like to go on with spaces for ever.
_WHITE_SPACE: Final = r"[\x20\x0A\x0D\x09]{1,128}"
CACHE_SIZE: Final = 128  # compiled forms that a compiler keeps
_NUM_COMPILING: Final = 2  # threads that compile; one that is too slow occupies its thread until it ends


class Vocabulary(Protocol):
    """What is asked of a tokenizer; `infini.llm.text.Tokenizer` is one."""

    vocab_size: int
    eos_ids: Sequence[int]
    special_ids: Collection[int]

    def token_bytes(self, id: int) -> bytes:
        """Bytes that a token adds to a text."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Tokens of a text."""


class Grammar:
    """The form of one answer, and how far the answer has come; made by `Compiler.compile`.

    Attributes:
        error: why it can say nothing any more, None while it works. Then only the end of the text may come.
    """

    def __init__(self, matcher: Any, eos_ids: Sequence[int], num_words: int) -> None:  # Any: LLMatcher
        self._matcher, self._eos_ids, self.num_words = matcher, tuple(eos_ids), num_words
        self._num_after_end = 0
        self.error: str | None = None

    @property
    def matcher(self) -> Any:  # Any: LLMatcher
        """The library's object, for `fill_masks`."""
        return self._matcher

    @property
    def is_finished(self) -> bool:
        """Whether nothing but the end of the text may come."""
        return bool(self._matcher.is_stopped())

    @property
    def is_complete(self) -> bool:
        """Whether the answer so far has the form: it may end here, and may perhaps go on."""
        return not self._matcher.is_error() and bool(self._matcher.is_accepting())

    def fill_mask(self, out: np.ndarray) -> None:
        """Set the bits of the tokens that may come next, and clear the others.

        Args:
            out: uint32 (W,), contiguous, with a bit for every token of the model.
        """
        out[self.num_words :] = 0
        if self._usable():
            self._matcher.unsafe_compute_mask_ptr(out.ctypes.data, 4 * self.num_words)
        if not self._usable():
            self.fill_end(out)

    def fill_end(self, out: np.ndarray) -> None:
        """Set the bits of the tokens that end a text, and clear the others."""
        out[:] = 0
        for token in self._eos_ids:
            out[token // 32] |= np.uint32(1 << token % 32)

    def accept(self, token: int) -> bool:
        """Go on by a token.

        Args:
            token: any token; the end of the text is accepted wherever the form is complete.

        Returns:
            Whether it may come here. After False the grammar has an error and accepts only `rollback`.
        """
        if self._num_after_end or (token in self._eos_ids and self._matcher.is_stopped()):
            self._num_after_end += 1
            return token in self._eos_ids
        if not self._usable():
            return False
        accepted = bool(self._matcher.consume_token(token))
        self._usable()
        return accepted

    def count_allowed(self, tokens: Sequence[int]) -> int:
        """How many of some tokens may come one after the other; the grammar stays where it is."""
        return int(self._matcher.validate_tokens(list(tokens))) if self._usable() else 0

    def forced(self) -> list[int]:
        """Tokens that must come next, for there is no choice: free proposals for speculation."""
        return list(self._matcher.compute_ff_tokens()) if self._usable() else []

    def rollback(self, count: int) -> None:
        """Take the last `count` accepted tokens back."""
        after_end = min(count, self._num_after_end)
        self._num_after_end -= after_end
        if count > after_end and self._usable():
            self._matcher.rollback(count - after_end)

    def _usable(self) -> bool:
        if self.error is None and self._matcher.is_error():
            self.error = forms.first_line(self._matcher.get_error())
        return self.error is None


class Compiler:
    """Makes grammars for one tokenizer; may be used from several threads.

    Args:
        tokenizer: the model's tokenizer.
        vocab_size: tokens of the model, when it has more or fewer than the tokenizer.
        limits: what may be asked for.
        cache_size: compiled forms to keep.

    Raises:
        UnsupportedError: llguidance is not installed.
    """

    def __init__(
        self,
        tokenizer: Vocabulary,
        *,
        vocab_size: int | None = None,
        limits: Limits = limits_.SERVER,
        cache_size: int = CACHE_SIZE,
    ) -> None:
        self._library = _load()
        self._limits, self._cache_size = limits, cache_size
        self._tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size if vocab_size is None else vocab_size
        self._eos_ids = [token for token in tokenizer.eos_ids if token < self.vocab_size]
        if not self._eos_ids:
            raise errors.ValueMismatchError(
                "structured output needs a token that ends a text", got="a tokenizer without eos_ids"
            )
        wrapper = self._library.TokenizerWrapper(_Wrapped(tokenizer, self.vocab_size, self._eos_ids))
        self._words = self._library.LLTokenizer(wrapper, eos_token=self._eos_ids)
        self._compiled: OrderedDict[tuple[str, str], Any] = OrderedDict()  # Any: LLMatcher
        self._lock = threading.Lock()
        self._threads = concurrent.futures.ThreadPoolExecutor(_NUM_COMPILING, "infini-grammar")
        weakref.finalize(self, self._threads.shutdown, wait=False)

    def compile(self, form: StructuredOutputsParams) -> Grammar:
        """The grammar of one answer.

        Args:
            form: what the request asks for.

        Returns:
            A grammar at its beginning; nothing else uses it.

        Raises:
            ValueMismatchError: the form is larger than it may be, is not valid, uses what is not
                supported, or took too long.
        """
        key = forms.definition(form, self._limits)
        with self._lock:
            matcher = self._compiled.get(key)
            if matcher is not None:
                self._compiled.move_to_end(key)
        if matcher is None:
            matcher = self._limited(key[0], lambda: self._built(*key))
            with self._lock:
                self._compiled[key] = matcher
                while len(self._compiled) > self._cache_size:
                    self._compiled.popitem(last=False)
        return Grammar(matcher.deep_copy(), self._eos_ids, -(-self.vocab_size // 32))

    @property
    def num_cached(self) -> int:
        """Compiled forms that are kept."""
        return len(self._compiled)

    def _built(self, name: str, text: str) -> Any:  # Any: LLMatcher
        matcher = self._library.LLMatcher(
            self._words,
            self._source(name, text),
            log_level=0,
            limits=self._library.LLParserLimits(verbose_errors=False),
        )
        if matcher.is_error():
            raise _invalid(name, matcher.get_error())
        first = np.zeros(-(-self.vocab_size // 32), np.uint32)
        # Much of the work is done for the first mask, which is the same in all copies.
        matcher.unsafe_compute_mask_ptr(first.ctypes.data, first.nbytes)
        if matcher.is_error():
            raise _invalid(name, matcher.get_error())
        return matcher

    def _source(self, name: str, text: str) -> str:
        """The form in the library's notation."""
        make = self._library.LLMatcher
        if name == "json":
            return str(make.grammar_from_json_schema(text, defaults={"whitespace_pattern": _WHITE_SPACE}))
        if name == forms.WITHOUT_SPACE:
            return str(make.grammar_from_json_schema(text, overrides={"whitespace_flexible": False}))
        if name == "regex":
            return str(make.grammar_from_regex(text))
        if name == "choice":
            options = [json.dumps(option, ensure_ascii=False) for option in json.loads(text)]
            return str(make.grammar_from_lark("start: " + " | ".join(options)))
        if name == "grammar":
            return str(self._library.grammar_from("grammar", text))
        return self._tags(text)

    def _tags(self, text: str) -> str:
        """Free text, in which a trigger begins a part that follows a schema."""
        tags = [
            self._library.StructTag(trigger=trigger, begin=begin, grammar=schema, end=end)
            for trigger, begin, schema, end in forms.parts(text, self._limits)
        ]
        special = {tag.trigger for tag in tags if self._is_special(tag.trigger)}
        if special and len(special) != len({tag.trigger for tag in tags}):
            raise ValueError("triggers are special tokens of the model or plain text, not a mixture of both")
        return str(self._library.StructTag.to_grammar(tags, assume_special=bool(special)))

    def _is_special(self, text: str) -> bool:
        tokens = self._tokenizer.encode(text, add_special_tokens=False)
        return len(tokens) == 1 and tokens[0] in self._tokenizer.special_ids

    def _limited(self, name: str, build: Callable[[], Any]) -> Any:  # Any: LLMatcher
        """The result of `build`, unless it takes too long; errors of the library become ours."""
        future = self._threads.submit(build)
        try:
            return future.result(self._limits.grammar_compile_s)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise errors.ValueMismatchError(
                f"structured_outputs.{name} takes too long to compile",
                expected=f"at most {self._limits.grammar_compile_s} s",
                fix="simplify it",
            ) from None
        except errors.InfiniError:
            raise
        except (ValueError, TypeError, RecursionError) as error:
            raise _invalid(name, str(error)) from None


def compile(form: StructuredOutputsParams, tokenizer: Vocabulary) -> Grammar:
    """As `Compiler.compile`, with a compiler that is kept as long as the tokenizer."""
    with _lock:
        compiler = _compilers.get(tokenizer)
        if compiler is None:
            compiler = _compilers[tokenizer] = Compiler(tokenizer)
    return compiler.compile(form)


def fill_masks(grammars: Iterable[tuple[int, Grammar]], mask: np.ndarray) -> None:
    """Fill rows of a mask, several at a time.

    Args:
        grammars: row, grammar.
        mask: uint32 (R, W), contiguous.
    """
    pairs = list(grammars)
    working = [(row, grammar) for row, grammar in pairs if grammar.error is None]
    if len(working) < 2 or mask.shape[1] != working[0][1].num_words:
        for row, grammar in pairs:
            grammar.fill_mask(mask[row])
        return
    jobs = [(grammar.matcher, row) for row, grammar in working]
    _executor().unsafe_compute_mask_ptr(jobs, mask.ctypes.data, mask.strides[0], mask.shape[0])
    for row, grammar in pairs:
        if grammar.matcher.is_error():
            grammar.fill_mask(mask[row])


_compilers: weakref.WeakKeyDictionary[Vocabulary, Compiler] = weakref.WeakKeyDictionary()
_lock: Final = threading.Lock()


class _Wrapped:
    """A tokenizer as llguidance asks for it; tokens that only the model has are special ones of no use."""

    def __init__(self, tokenizer: Vocabulary, vocab_size: int, eos_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = eos_ids[0]
        self.bos_token_id = None
        known = min(vocab_size, tokenizer.vocab_size)
        self.tokens = [tokenizer.token_bytes(token) for token in range(known)]
        special = {token for token in (*tokenizer.special_ids, *eos_ids) if token < known}
        special |= {token for token in range(known) if not self.tokens[token]}
        for token in sorted(special):
            self.tokens[token] = self.tokens[token] or f"<empty {token}>".encode()
        self.tokens += [f"<unused {token}>".encode() for token in range(known, vocab_size)]
        self.special_token_ids = [*sorted(special), *range(known, vocab_size)]
        self._special = frozenset(self.special_token_ids)
        self._by_bytes: dict[bytes, int] = {}

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokens whose bytes are exactly the text, none of them special.

        Some tokenizers put a space before a text, so it is looked at behind a mark, too.
        """
        content = text.encode("utf-8", "replace") if isinstance(text, str) else text
        string = content.decode("utf-8", "replace")
        for mark in ("", _MARK):
            tokens = self._tokenizer.encode(mark + string, add_special_tokens=False)
            start = self._length_of(mark, tokens)
            if start is not None and self._spells(tokens[start:], content):
                return tokens[start:]
        return self._longest(content)

    def _length_of(self, mark: str, tokens: Sequence[int]) -> int | None:
        """How many of the first tokens are a mark; None when they do not end with it."""
        if not mark:
            return 0
        seen = b""
        for count, token in enumerate(tokens[:_MOST_OF_MARK], 1):
            seen += self.tokens[token] if token < len(self.tokens) else b""
            if seen in (mark.encode(), b" " + mark.encode()):
                return count
        return None

    def _spells(self, tokens: Sequence[int], content: bytes) -> bool:
        if any(token >= len(self.tokens) or token in self._special for token in tokens):
            return False
        return b"".join(self.tokens[token] for token in tokens) == content

    def _longest(self, content: bytes) -> list[int]:
        """The longest token at each place, up to a byte that no token begins with."""
        if not self._by_bytes:
            self._by_bytes = {
                spelled: token for token, spelled in enumerate(self.tokens) if token not in self._special
            }
        longest = max(map(len, self._by_bytes), default=0)
        tokens, at = [], 0
        while at < len(content):
            for end in range(min(len(content), at + longest), at, -1):
                token = self._by_bytes.get(content[at:end])
                if token is not None:
                    tokens.append(token)
                    at = end
                    break
            else:
                break
        return tokens


_MARK: Final = "\x02"  # a byte that merges with nothing
_MOST_OF_MARK: Final = 3  # tokens: a space, perhaps, and the mark


def _load() -> Any:  # Any: a module without stubs of ours
    try:
        return importlib.import_module("llguidance")
    except ImportError:
        raise errors.UnsupportedError(
            "structured output needs the package llguidance", fix="pip install 'infini[llm]'"
        ) from None


_executors: Final[list[Any]] = []  # Any: LLExecutor, made with the first mask of several rows


def _executor() -> Any:  # Any: LLExecutor
    if not _executors:
        _executors.append(_load().LLExecutor())
    return _executors[0]


def _invalid(name: str, message: str) -> errors.ValueMismatchError:
    return errors.ValueMismatchError(
        f"structured_outputs.{name} cannot be compiled", got=forms.first_line(message)
    )
