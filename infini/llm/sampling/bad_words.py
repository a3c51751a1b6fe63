"""Tokens of words that may not be generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from infini.core import errors
from infini.llm.sampling import limits as limits_
from infini.llm.sampling.limits import Limits


def token_ids(
    words: Sequence[str],
    encode: Callable[[str], Sequence[int]],
    *,
    vocab_size: int | None = None,
    limits: Limits = limits_.OFFLINE,
) -> list[tuple[int, ...]]:
    """Sequences of tokens that spell some words.

    A word has other tokens at the beginning of a text than after a space, so both are looked up. Spellings
    that a tokenizer would not choose are not found.

    Args:
        words: the words.
        encode: tokens of a text without special tokens.
        vocab_size: tokens that the model knows.
        limits: how many tokens all words may have.

    Returns:
        Sequences for `state.Row`; none of them empty, no two equal.

    Raises:
        ValueMismatchError: a word has no tokens, or one the model does not know, or all have too many.

    Example:
        >>> token_ids(["ab"], lambda text: list(text.encode()))
        [(97, 98), (32, 97, 98)]
    """
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip()
        spellings = [tuple(encode(text)) for text in ((bare, " " + bare) if bare else (word,))]
        if not any(spellings):
            raise errors.ValueMismatchError("bad_words has a word without tokens", got=repr(word))
        wrong = [
            token for each in spellings for token in each if vocab_size is not None and token >= vocab_size
        ]
        if wrong:
            raise errors.ValueMismatchError(
                "bad_words has a word whose tokens the model does not know",
                got=f"{word!r}, token {wrong[0]}",
                expected=f"tokens below {vocab_size}",
            )
        found.update(dict.fromkeys(filter(None, spellings)))
    count = sum(map(len, found))
    if count > limits.num_bad_word_tokens:
        raise errors.ValueMismatchError(
            "bad_words has too many tokens", got=str(count), expected=f"at most {limits.num_bad_word_tokens}"
        )
    return list(found)
