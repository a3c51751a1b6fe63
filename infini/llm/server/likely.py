"""Logarithms of probabilities in OpenAI's shapes: a list of objects for chat, lists for completions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from infini.llm.engine.outputs import Logprob, TokenLogprobs
from infini.llm.text.tokenizer import Tokenizer

LEAST: Final = -9999.0  # JSON has no infinities


def finite(logprob: float) -> float:
    """A logarithm that JSON can hold."""
    return max(logprob, LEAST) if not math.isnan(logprob) else LEAST


def likeliest(entry: TokenLogprobs, most: int) -> list[tuple[int, Logprob]]:
    """The likeliest tokens at one place, at most so many."""
    return sorted(entry.items(), key=lambda item: -finite(item[1].logprob))[:most]


def _text(id: int, known: Logprob, tokenizer: Tokenizer) -> str:
    if known.decoded_token is not None:
        return known.decoded_token
    return tokenizer.decode([id], skip_special_tokens=False)


def chat(
    ids: Sequence[int], entries: Sequence[TokenLogprobs], most: int, tokenizer: Tokenizer
) -> dict[str, Any]:  # Any: JSON
    """Chat's object for some tokens.

    Args:
        ids: the tokens.
        entries: what is known about each.
        most: likeliest tokens to tell beside it.
        tokenizer: names tokens.
    """
    content = []
    for id, entry in zip(ids, entries, strict=True):
        item = _chat_token(id, entry[id], tokenizer)
        item["top_logprobs"] = [
            _chat_token(other, known, tokenizer) for other, known in likeliest(entry, most)
        ]
        content.append(item)
    return {"content": content, "refusal": None}


def _chat_token(id: int, known: Logprob, tokenizer: Tokenizer) -> dict[str, Any]:  # Any: JSON
    return {
        "token": _text(id, known, tokenizer),
        "logprob": finite(known.logprob),
        "bytes": list(tokenizer.token_bytes(id)),
    }


class Completion:
    """Completions' object for the tokens of one choice, which knows how far its text has come.

    Args:
        most: likeliest tokens to tell beside each.
        tokenizer: names tokens.
        skips_special: whether special tokens are missing in the text.
    """

    def __init__(self, most: int, tokenizer: Tokenizer, *, skips_special: bool = True) -> None:
        self._most, self._tokenizer, self._offset = most, tokenizer, 0
        self._hidden = tokenizer.special_ids if skips_special else frozenset()

    def body(
        self, ids: Sequence[int], entries: Sequence[TokenLogprobs | None]
    ) -> dict[str, Any]:  # Any: JSON
        """The object for the next tokens.

        Args:
            ids: the tokens.
            entries: what is known about each; None for the first one of a prompt.
        """
        offsets: list[int] = []
        logprobs: list[float | None] = []
        tokens: list[str] = []
        tops: list[dict[str, float] | None] = []
        for id, entry in zip(ids, entries, strict=True):
            offsets.append(self._offset)
            if entry is None:
                text = self._tokenizer.decode([id], skip_special_tokens=False)
                logprobs.append(None)
                tops.append(None)
            else:
                text = _text(id, entry[id], self._tokenizer)
                logprobs.append(finite(entry[id].logprob))
                chosen = dict(likeliest(entry, self._most))
                chosen.setdefault(id, entry[id])
                tops.append({_text(i, k, self._tokenizer): finite(k.logprob) for i, k in chosen.items()})
            tokens.append(text)
            self._offset += 0 if id in self._hidden else len(text)
        return {"text_offset": offsets, "token_logprobs": logprobs, "tokens": tokens, "top_logprobs": tops}


def prompt(entries: Sequence[TokenLogprobs | None] | None) -> list[dict[str, Any] | None] | None:  # Any: JSON
    """vLLM's `prompt_logprobs`: for each token of the prompt what is likely there, by id."""
    if entries is None:
        return None
    return [
        None
        if entry is None
        else {
            str(id): {
                "logprob": finite(known.logprob),
                "rank": known.rank,
                "decoded_token": known.decoded_token,
            }
            for id, known in entry.items()
        }
        for entry in entries
    ]
