"""Byte-level BPE: training, and the few calls that training and generation make.

Every text can be encoded and comes back unchanged, because the alphabet is the 256 bytes. The library
`tokenizers` is imported when the first tokenizer is made, so nothing else pays for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from infini.core import errors

if TYPE_CHECKING:
    import tokenizers

BEGIN: Final = "<s>"
END: Final = "</s>"
MIN_VOCAB_SIZE: Final = 258  # the bytes, BEGIN and END


class Tokenizer:
    """A tokenizer of the library `tokenizers`, read from its `tokenizer.json`.

    Args:
        inner: the library's object.
        begin_id: id of the token before a document; that of `<s>` when absent, None when there is none.
        end_ids: ids of the tokens that end a text, the one between documents first; that of `</s>` when
            absent.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        *,
        begin_id: int | None = None,
        end_ids: Sequence[int] | None = None,
    ) -> None:
        self._inner = inner
        self.begin_id: int | None = inner.token_to_id(BEGIN) if begin_id is None else begin_id
        own_end = inner.token_to_id(END)
        self.end_ids: tuple[int, ...] = tuple(
            ([] if own_end is None else [own_end]) if end_ids is None else end_ids
        )

    @classmethod
    def from_json(
        cls, text: str, *, begin_id: int | None = None, end_ids: Sequence[int] | None = None
    ) -> Tokenizer:
        """The tokenizer that `to_json` described.

        Raises:
            ValueMismatchError: the text is not a tokenizer.
        """
        import tokenizers

        try:
            inner = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing more specific than Exception
            raise errors.ValueMismatchError(
                "tokenizer.json is not a tokenizer",
                got=str(error),
                expected="a file of the library tokenizers",
                fix="copy it again, or install the version of tokenizers that wrote it",
            ) from error
        return cls(inner, begin_id=begin_id, end_ids=end_ids)

    def to_json(self) -> str:
        """The text of `tokenizer.json`."""
        return self._inner.to_str(pretty=False)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self._inner.get_vocab_size(with_added_tokens=True)

    @property
    def end_id(self) -> int | None:
        """Id of the token after a document, None when there is none."""
        return self.end_ids[0] if self.end_ids else None

    def id_of(self, token: str) -> int | None:
        """Id of a token by its text, None when there is no such token."""
        return self._inner.token_to_id(token)

    def token_of(self, id: int) -> str | None:
        """Text of the token with an id, None when there is no such id."""
        return self._inner.id_to_token(id)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        return self._inner.encode(text, add_special_tokens=False).ids

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text to continue: with the special tokens that the tokenizer puts before a text, and never
        those after one. An empty text gives the token before a document alone.
        """
        ids = self._inner.encode(text, add_special_tokens=True).ids
        while ids and ids[-1] in self.end_ids:
            ids.pop()
        return ids or ([] if self.begin_id is None else [self.begin_id])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD, special tokens vanish."""
        return self._inner.decode(list(ids), skip_special_tokens=True)

    @property
    def dtype(self) -> np.dtype:
        """The narrowest unsigned type that holds every id: uint16 or uint32."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of texts, without special tokens, on all cores: one array of `dtype` each."""
        found = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, self.dtype) for encoding in found]

    def stream(self, ids: Iterable[int], *, prompt: Sequence[int] = ()) -> Iterator[str]:
        """Text of ids as they arrive, never cutting a character in two.

        Args:
            ids: the ids; taken one at a time.
            prompt: ids before them, which are context and are not part of the result.

        Returns:
            One piece for each id, empty while a character is incomplete; at the end what was left incomplete,
            as U+FFFD.
        """
        shown, pending = list(prompt[-_CONTEXT:]), []
        before = self.decode(shown)
        for token in ids:
            pending.append(token)
            text = self.decode(shown + pending)
            if text.endswith("\ufffd") and len(pending) < _CONTEXT:
                yield ""
                continue
            yield text[len(before) :]
            shown, pending = (shown + pending)[-_CONTEXT:], []
            before = self.decode(shown)
        if pending:
            yield self.decode(shown + pending)[len(before) :]


# A character has at most four bytes, each of which is at most one token; decoders look back one token more.
_CONTEXT: Final = 6


def train(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer; equal texts give equal tokenizers.

    Args:
        texts: documents in a fixed order.
        vocab_size: number of ids wanted, at least 258; a small text may give fewer.

    Raises:
        ValueMismatchError: the vocabulary is too small for the 256 bytes and the two special tokens.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise errors.ValueMismatchError(
            "the vocabulary is too small",
            got=str(vocab_size),
            expected=f"at least {MIN_VOCAB_SIZE}: 256 bytes, {BEGIN}, {END}",
        )
    from tokenizers import Tokenizer as Inner, decoders, models, pre_tokenizers, trainers

    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BEGIN, END],
        # The library lists the alphabet in no fixed order.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer=trainer)
    return Tokenizer(inner)


def read(path: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`."""
    return Tokenizer.from_json(path.read_text(encoding="utf-8"))
