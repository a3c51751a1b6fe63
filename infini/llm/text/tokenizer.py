"""The tokenizer of a model: from a folder in Hugging Face's layout, from a GGUF file, or from its JSON.

It is the library `tokenizers` with what stands beside it: the tokens with a meaning, the ids that end an
answer, and the chat templates. Encoding is the library's; decoding is, too, but for bytes that are no UTF-8
in vocabularies of SentencePiece, where the library gives up the whole run of bytes and SentencePiece only
those.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from infini.core import config as config_, errors
from infini.io import gguf, hugging_face, tensors
from infini.llm.text import gguf_vocabulary, pieces, sentencepiece

if TYPE_CHECKING:
    import tokenizers

Json = Mapping[str, Any]  # Any: whatever JSON holds

NAMES: Final = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
DEFAULT: Final = "default"  # the template that is meant when none is named


class Tokenizer:
    """A model's tokenizer.

    Args:
        inner: the library's object; it is not copied.
        special_tokens: texts of tokens with a meaning by their names, such as `bos_token`.
        eos_ids: ids that end an answer, the one of `eos_token` first.
        chat_templates: templates by name; the one that is meant when none is named is `default`.
        bos_id: id of the token before a text; that of `bos_token` when absent.
        model_max_length: most tokens the model was made for, where the files say so.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        eos_ids: Sequence[int] = (),
        chat_templates: Mapping[str, str] | None = None,
        bos_id: int | None = None,
        model_max_length: int | None = None,
    ) -> None:
        self._inner = inner
        inner.no_truncation()
        inner.no_padding()
        self.special_tokens: dict[str, str] = dict(special_tokens or {})
        self.chat_templates: dict[str, str] = dict(chat_templates or {})
        self.model_max_length = model_max_length
        self.vocab_size: int = _vocab_size(inner)
        self.bos_id: int | None = self.special_id("bos_token") if bos_id is None else bos_id
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys(eos_ids))
        added = inner.get_added_tokens_decoder()
        self.special_ids: frozenset[int] = frozenset(id for id, token in added.items() if token.special)
        self.added_ids: frozenset[int] = frozenset(added)
        decoder = inner.decoder
        self._kind = pieces.kind_of(None if decoder is None else json.loads(decoder.__getstate__()))
        self._tokens: dict[int, str | None] = {}

    # --- encoding and decoding ---------------------------------------------------------------

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text.

        Args:
            text: any text; special tokens written in it become their ids.
            add_special_tokens: whether to add what the tokenizer puts before and after a text. Not for the
                text of a chat template, which has written them.
        """
        return self._inner.encode(_encodable(text), add_special_tokens=add_special_tokens).ids

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Ids of texts: on all cores, or on one if the knob `num_threads` is 1."""
        if config_.get("num_threads") == 1:
            return [self.encode(text, add_special_tokens) for text in texts]
        found = self._inner.encode_batch_fast(
            [_encodable(text) for text in texts], add_special_tokens=add_special_tokens
        )
        return [encoding.ids for encoding in found]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD, ids that are not there vanish."""
        ids = [int(id) for id in ids]
        if self._kind is None or not self._kind.get("has_bytes"):
            return self._inner.decode(
                [id for id in ids if 0 <= id < 1 << 32], skip_special_tokens=skip_special_tokens
            )
        decoder = pieces.make(self._kind)
        texts = [
            decoder.push(token) for id in ids if (token := self.shown(id, skip_special_tokens)) is not None
        ]
        return "".join(texts) + decoder.finish()

    def decode_from_start(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """As `decode`, always by the library; for decoders that cannot run on a stream."""
        return self._inner.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def stream_decoder(self) -> pieces.Decoder | None:
        """A decoder at the beginning of a text; None when this tokenizer's needs the whole text."""
        return None if self._kind is None else pieces.make(self._kind)

    def shown(self, id: int, skip_special_tokens: bool = True) -> str | None:
        """The token with an id as the decoder sees it; None when it sees nothing."""
        return None if skip_special_tokens and id in self.special_ids else self.token_text(id)

    # --- tokens ------------------------------------------------------------------------------

    def token_text(self, id: int) -> str | None:
        """A token as the vocabulary writes it, None when there is no such id."""
        if id not in self._tokens:
            self._tokens[id] = self._inner.id_to_token(id) if 0 <= id < 1 << 32 else None
        return self._tokens[id]

    def token_bytes(self, id: int) -> bytes:
        """Bytes that a token adds to a text, empty when there is no such id. Tokens of half a character have
        bytes, though they have no text of their own.
        """
        token = self.token_text(id)
        if token is None:
            return b""
        if id in self.added_ids and pieces.byte_of(token) is None:
            return token.encode()
        return pieces.bytes_of(token, self._kind)

    def token_id(self, token: str) -> int | None:
        """Id of a token as the vocabulary writes it, None when there is no such token."""
        return self._inner.token_to_id(token)

    def special_id(self, name: str) -> int | None:
        """Id of a token with a meaning, such as `pad_token`; None when there is none."""
        token = self.special_tokens.get(name)
        return None if token is None else self._inner.token_to_id(token)

    @property
    def eos_id(self) -> int | None:
        """The first id that ends an answer, None when there is none."""
        return self.eos_ids[0] if self.eos_ids else None

    @property
    def chat_template(self) -> str | None:
        """The template that is meant when none is named, None when the model has none."""
        return self.chat_templates.get(DEFAULT)

    def to_json(self) -> str:
        """The text of `tokenizer.json`."""
        return self._inner.to_str(pretty=False)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, bos_id={self.bos_id}, eos_ids={self.eos_ids})"


# --- making one -------------------------------------------------------------------------------


def load(path: Path | str) -> Tokenizer:
    """The tokenizer of a model folder, of a GGUF file, or of a tokenizer.json.

    Raises:
        MissingFileError: it is not there.
        CorruptFileError: a file is damaged.
        ValueMismatchError: the file is no tokenizer, or of a kind that is not supported.
    """
    place = Path(path).expanduser()
    if place.suffix == ".gguf":
        return from_gguf(gguf.read(place, has_data=False).metadata)
    if place.is_file():
        stated = hugging_face.read_optional_json(place.with_name(hugging_face.TOKENIZER_CONFIG))
        return from_json(_text(place), stated)
    ggufs = sorted(place.glob("*.gguf"))
    if ggufs and not (place / hugging_face.TOKENIZER).is_file():
        return load(ggufs[0])
    return from_folder(place)


def from_folder(path: Path | str) -> Tokenizer:
    """The tokenizer of a model folder.

    Args:
        path: a folder with tokenizer.json, or with tokenizer.model (SentencePiece's file), and what stands
            beside them: tokenizer_config.json, special_tokens_map.json, generation_config.json, config.json,
            chat_template.jinja or chat_template.json, additional_chat_templates/.

    Raises:
        MissingFileError: it has neither.
        CorruptFileError: a file is damaged.
        ValueMismatchError: the file is no tokenizer.
    """
    folder = Path(path).expanduser()
    config = dict(hugging_face.read_optional_json(folder / hugging_face.TOKENIZER_CONFIG))
    for name, token in hugging_face.read_optional_json(folder / "special_tokens_map.json").items():
        config.setdefault(name, token)
    stated = {
        name: hugging_face.read_optional_json(folder / name)
        for name in (hugging_face.CONFIG, hugging_face.GENERATION_CONFIG)
    }
    file = folder / hugging_face.TOKENIZER
    templates = _templates_of(folder, config)
    if file.is_file():
        return from_json(
            _text(file), config, eos_ids=_stated_ids(stated, "eos_token_id"), templates=templates
        )
    model = folder / "tokenizer.model"
    if not model.is_file():
        raise tensors.MissingFileError(
            f"there is no tokenizer in {folder}",
            got=", ".join(sorted(p.name for p in folder.iterdir())[:6])
            if folder.is_dir()
            else "no such folder",
            expected="tokenizer.json, or tokenizer.model of SentencePiece",
            fix="copy the whole model folder, or save one with transformers' AutoTokenizer.save_pretrained",
        )
    pieces_ = sentencepiece.read(model.read_bytes())
    config = {**pieces_.special_tokens, "add_bos_token": pieces_.has_bos, **config}
    # A tokenizer.json says itself what stands around a text; this file does not, and the flags do.
    special = {name: _content(config[name]) for name in ("bos_token", "eos_token") if config.get(name)}
    _set_ends(pieces_.inner, special, bool(config["add_bos_token"]), bool(config.get("add_eos_token")))
    return finished(pieces_.inner, config, eos_ids=_stated_ids(stated, "eos_token_id"), templates=templates)


def from_json(
    text: str,
    config: Json | None = None,
    *,
    eos_ids: Sequence[int] = (),
    templates: Mapping[str, str] | None = None,
) -> Tokenizer:
    """A tokenizer from the text of `tokenizer.json`.

    Args:
        text: the file's text.
        config: tokenizer_config.json, with the entries of special_tokens_map.json.
        eos_ids: further ids that end an answer.
        templates: chat templates by name; those of `config` when absent.

    Raises:
        ValueMismatchError: the text is not a tokenizer.
    """
    import tokenizers

    try:
        inner = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more specific
        raise errors.ValueMismatchError(
            "tokenizer.json is not a tokenizer",
            got=str(error),
            expected="a file of the library tokenizers",
            fix="copy it again, or install the version of tokenizers that wrote it",
        ) from error
    return finished(inner, config or {}, eos_ids=eos_ids, templates=templates)


def from_gguf(metadata: Json) -> Tokenizer:
    """The tokenizer that the metadata of a GGUF file describes.

    Args:
        metadata: values by key; arrays may be lists or NumPy arrays.

    Raises:
        CorruptFileError: something is missing or has the wrong type.
        ValueMismatchError: a kind of tokenizer that is not supported.
    """
    found = gguf_vocabulary.read(metadata)
    _set_ends(found.inner, found.special_tokens, *found.adds)
    return Tokenizer(
        found.inner,
        special_tokens=found.special_tokens,
        eos_ids=found.eos_ids,
        chat_templates=found.templates,
        bos_id=found.bos_id,
    )


def finished(
    inner: tokenizers.Tokenizer,
    config: Json,
    *,
    eos_ids: Sequence[int] = (),
    templates: Mapping[str, str] | None = None,
) -> Tokenizer:
    """A tokenizer with what tokenizer_config.json says of it, as transformers reads it."""
    special = {name: _content(config[name]) for name in NAMES if config.get(name) is not None}
    _add_tokens(inner, config, special)
    own = inner.token_to_id(special["eos_token"]) if "eos_token" in special else None
    longest = config.get("model_max_length")
    return Tokenizer(
        inner,
        special_tokens=special,
        eos_ids=[*([] if own is None else [own]), *eos_ids],
        chat_templates=_templates_in(config) if templates is None else templates,
        model_max_length=longest if isinstance(longest, int) and longest < 1 << 40 else None,
    )


def _add_tokens(inner: tokenizers.Tokenizer, config: Json, special: Mapping[str, str]) -> None:
    """Tokens that the configuration has beside those of the vocabulary."""
    import tokenizers

    have = {token.content: token for token in inner.get_added_tokens_decoder().values()}

    def token_of(entry: Any, is_special: bool) -> tokenizers.AddedToken:  # Any: JSON
        if isinstance(entry, str):
            return tokenizers.AddedToken(entry, special=is_special, normalized=False)
        flags = {
            key: bool(entry[key]) for key in ("lstrip", "rstrip", "single_word", "normalized") if key in entry
        }
        return tokenizers.AddedToken(
            _content(entry), special=is_special or bool(entry.get("special")), **flags
        )

    named = set(special.values())
    wanted = []
    table = config.get("added_tokens_decoder") or {}
    for _, entry in sorted(table.items(), key=lambda item: int(item[0])):
        wanted.append(token_of(entry, _content(entry) in named))
    wanted += [token_of(config[name], True) for name in NAMES if config.get(name) is not None]
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    wanted += [token_of(entry, True) for entry in (extra.values() if isinstance(extra, dict) else extra)]
    missing: dict[str, tokenizers.AddedToken] = {}
    for token in wanted:
        known = have.get(token.content) or missing.get(token.content)
        if known is None or (token.special and not known.special):
            missing[token.content] = token
    if missing:
        inner.add_tokens(list(missing.values()))


def _set_ends(inner: tokenizers.Tokenizer, special: Mapping[str, str], begin: bool, end: bool) -> None:
    """Let the tokenizer put its tokens before and after a text."""
    from tokenizers import processors

    bos, eos = special.get("bos_token"), special.get("eos_token")
    ends = {
        token: inner.token_to_id(token)
        for token in (bos if begin else None, eos if end else None)
        if token is not None
    }
    before = [bos] if begin and bos is not None else []
    after = [eos] if end and eos is not None else []
    inner.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *[f"{t}:1" for t in before], "$B:1", *[f"{t}:1" for t in after]],
        special_tokens=list(ends.items()),
    )


def _content(token: Any) -> str:  # Any: JSON
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise tensors.CorruptFileError(
            "tokenizer_config.json has a token without a text",
            got=repr(token)[:80],
            fix="copy the file again",
        )
    return text


def _stated_ids(files: Mapping[str, Json], name: str) -> list[int]:
    """Ids by the files that state them, generation_config.json before config.json."""
    found: list[int] = []
    for file in (hugging_face.GENERATION_CONFIG, hugging_face.CONFIG):
        stated = files[file].get(name)
        ids = stated if isinstance(stated, list) else [stated]
        found += [id for id in ids if isinstance(id, int) and not isinstance(id, bool)]
        if found:
            break
    return found


def _templates_in(config: Json) -> dict[str, str]:
    """Templates of tokenizer_config.json: one, or several with names."""
    stated = config.get("chat_template")
    if isinstance(stated, str):
        return {DEFAULT: stated}
    if isinstance(stated, dict):
        return {str(name): text for name, text in stated.items() if isinstance(text, str)}
    if isinstance(stated, list):
        return {
            str(entry["name"]): entry["template"]
            for entry in stated
            if isinstance(entry, dict) and isinstance(entry.get("template"), str) and "name" in entry
        }
    return {}


def _templates_of(folder: Path, config: Json) -> dict[str, str]:
    """Templates of a folder; files of their own stand above tokenizer_config.json."""
    found: dict[str, str] = {}
    if (folder / "chat_template.jinja").is_file():
        found[DEFAULT] = _text(folder / "chat_template.jinja")
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[file.stem] = _text(file)
    if found:
        return found
    stated = hugging_face.read_optional_json(folder / "chat_template.json")
    return _templates_in(stated) or _templates_in(config)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise tensors.CorruptFileError(f"{file.name} is not text", got=f"{file}: {error}") from error


def _vocab_size(inner: tokenizers.Tokenizer) -> int:
    """One more than the largest id: vocabularies may have holes."""
    count: int = inner.get_vocab_size(with_added_tokens=True)
    if inner.id_to_token(count - 1) is not None:
        return count
    return 1 + max(inner.get_vocab(with_added_tokens=True).values(), default=-1)


def _encodable(text: str) -> str:
    """Lone surrogates, which JSON may bring, are no Unicode text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text
