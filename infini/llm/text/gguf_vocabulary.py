"""The vocabulary in the metadata of a GGUF file, as an object of the library `tokenizers`.

Two families: byte-level BPE with merges (`gpt2`), whose rule for cutting text into words is known by a name,
and SentencePiece's BPE (`llama`), where the score of a piece says how early it is merged. Facts: the GGUF
specification, and the files `tokenizer.json` of the models that the names stand for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from infini.core import errors
from infini.io import tensors

if TYPE_CHECKING:
    import tokenizers

Metadata = Mapping[str, Any]  # Any: numbers, texts, and arrays of them

# Kinds of tokens.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

# Control tokens that end an answer wherever a vocabulary has them.
_ENDS: Final = frozenset(
    ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>",
     "<|end_of_text|>", "<end_of_utterance>", "<｜end▁of▁sentence｜>", "<turn|>", "[EOT]", "[EOS]",
     "<|return|>", "<|call|>")
)  # fmt: skip

# --- how words are cut ------------------------------------------------------------------------
# Patterns apply one after the other, each to the parts that the ones before it left.

_CONTRACTIONS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_END: Final = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3: Final = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_END}"
_QWEN2: Final = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_END}"
_QWEN35: Final = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORD_START: Final = r"[^\r\n\p{L}\p{N}]?"
_SLASH_END: Final = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN: Final = rf"{_WORD_START}{_UPPER}*{_LOWER}+|{_WORD_START}{_UPPER}+{_LOWER}*|\p{{N}}|{_SLASH_END}"
_GPT4O: Final = (
    rf"{_WORD_START}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_WORD_START}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{_SLASH_END}"
)
_DEEPSEEK3: Final = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_CASED: Final = (  # letters with two cases, as the model's file lists them
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5"
    "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
    "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45"
    "\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102"
    "\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)
_PUNCTUATION: Final = "[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_CJK: Final = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK: Final = (r"[\r\n]", rf"\s?[{_CASED}]+", rf"\s?{_PUNCTUATION}", r"\s+$", _CJK, r"\p{N}")
_DEEPSEEK_CODER: Final = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")
_DIGITS: Final = (r"\p{N}", _GPT2)
_FALCON: Final = (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")
_DEFAULT: Final = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")


@dataclass(frozen=True, slots=True)
class _Words:
    """How a vocabulary cuts words.

    Args:
        patterns: regular expressions, in order.
        takes_whole: whether a word that is a token is that token, whatever the merges say.
        has_bos: whether a text begins with BOS where the file does not say.
    """

    patterns: tuple[str, ...]
    takes_whole: bool = False
    has_bos: bool = False


def _table() -> dict[str, _Words]:
    named = {
        "default": _Words(_DEFAULT),
        "falcon": _Words(_FALCON),
        "deepseek-llm": _Words(_DEEPSEEK),
        "deepseek-coder": _Words(_DEEPSEEK_CODER),
        "tekken": _Words((_TEKKEN,), takes_whole=True, has_bos=True),
        "qwen35": _Words((_QWEN35,)),
        "minicpm5": _Words(
            (r"\p{N}{1,3}", rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}+|{_END}"),
            takes_whole=True,
        ),
        "glm4": _Words((_LLAMA3,), takes_whole=True),
        "glm5": _Words((_LLAMA3,), takes_whole=True),
        "seed-coder": _Words(
            (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+"
             r"|\s*[\r\n]+|\s+(?!\S)|\s+",)
        ),
        "bailingmoe": _Words(
            (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
             r"|\s+(?!\S)|\s+",)
        ),
    }  # fmt: skip
    for words, names in (
        (_Words((_GPT2,)), "gpt-2 phi-2 mpt olmo jais trillion exaone4 modern-bert mellum gigachat a.x-4.0"),
        (_Words(_DIGITS), "starcoder refact command-r smollm codeshell exaone minerva-7b"),
        (_Words((_LLAMA3,), True, True), "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2"),
        (_Words((_LLAMA3,)), "dbrx smaug-bpe chatglm-bpe"),
        (_Words((_QWEN2,)), "qwen2 deepseek-r1-qwen megrez stablelm2 hunyuan grok-2 solar-open"),
        (_Words(_DEEPSEEK3), "deepseek-v3 hunyuan-dense joyai-llm"),
        (_Words((_GPT4O,)), "gpt-4o llama4 minimax-m2"),
    ):
        named |= dict.fromkeys(names.split(), words)
    return named


_WORDS: Final = _table()


def word_rules() -> dict[str, tuple[tuple[str, ...], bool]]:
    """For each name of `tokenizer.ggml.pre` its patterns, and whether a word that is a token is it."""
    return {name: (words.patterns, words.takes_whole) for name, words in _WORDS.items()}


# --- reading ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What the metadata describe.

    Args:
        inner: the library's object, with its special tokens.
        special_tokens: texts of tokens with a meaning, by the names of tokenizer_config.json.
        adds: whether BOS and EOS are put around a text.
        bos_id: id of BOS.
        eos_ids: ids that end an answer, that of EOS first.
        templates: chat templates by name.
    """

    inner: tokenizers.Tokenizer
    special_tokens: dict[str, str]
    adds: tuple[bool, bool]
    bos_id: int | None
    eos_ids: tuple[int, ...]
    templates: dict[str, str]


def read(metadata: Metadata) -> Vocabulary:
    """The vocabulary of a GGUF file.

    Raises:
        CorruptFileError: something is missing or has the wrong type.
        ValueMismatchError: a kind of vocabulary that is not supported.
    """
    kind = _value(metadata, "model", str)
    if kind is None:
        raise tensors.CorruptFileError(
            "the GGUF file has no tokenizer",
            got="no tokenizer.ggml.model",
            fix="convert the model again, with its tokenizer; or pass a tokenizer folder",
        )
    tokens = _array(metadata, "tokens", str)
    if not tokens:
        raise tensors.CorruptFileError(
            "the GGUF tokenizer has no tokens", got="no tokenizer.ggml.tokens", fix="convert the model again"
        )
    kinds = _array(metadata, "token_type", int) or [NORMAL] * len(tokens)
    if len(kinds) != len(tokens):
        raise tensors.CorruptFileError(
            "tokenizer.ggml.token_type does not fit the tokens",
            got=f"{len(kinds)} types of {len(tokens)} tokens",
            fix="copy the file again",
        )
    words = _Words(())
    if kind == "llama":
        inner = _sentencepiece(metadata, tokens, kinds)
    elif kind == "gpt2":
        words = _words(metadata)
        inner = _byte_level(metadata, tokens, words)
    elif kind == "gemma4":
        inner = _spaced_bpe(metadata, tokens)
    else:
        raise errors.ValueMismatchError(
            f"a GGUF tokenizer of the kind {kind} is not supported",
            got=f"tokenizer.ggml.model = {kind}",
            expected="gpt2 (byte-level BPE), llama (SentencePiece's BPE), gemma4",
            fix="pass the folder of the original tokenizer",
        )
    return _finished(metadata, inner, tokens, kinds, kind, words)


def _finished(
    metadata: Metadata,
    inner: tokenizers.Tokenizer,
    tokens: Sequence[str],
    kinds: Sequence[int],
    kind: str,
    words: _Words,
) -> Vocabulary:
    from tokenizers import AddedToken

    inner.add_special_tokens(
        [
            AddedToken(t, special=True, normalized=False)
            for t, k in zip(tokens, kinds, strict=True)
            if k == CONTROL
        ]
    )
    inner.add_tokens(
        [
            AddedToken(t, normalized=False)
            for t, k in zip(tokens, kinds, strict=True)
            if k == USER_DEFINED and t
        ]
    )
    defaults = {"bos": 1, "eos": 2, "unknown": 0} if kind == "llama" else {}
    ids: dict[str, int] = {}
    for name in ("bos", "eos", "unknown", "padding", "seperator", "mask", "eot", "eom"):
        id = _value(metadata, f"{name}_token_id", int)
        id = defaults.get(name) if id is None else int(id)
        if id is not None and 0 <= id < len(tokens):
            ids[name] = id
    ends = [ids[name] for name in ("eos", "eot", "eom") if name in ids]
    ends += [id for id, token in enumerate(tokens) if kinds[id] == CONTROL and token in _ENDS]
    flags = [
        default if stated is None else bool(stated)
        for stated, default in (
            (_value(metadata, "add_bos_token", bool), kind == "llama" or words.has_bos),
            (_value(metadata, "add_eos_token", bool), False),
        )
    ]
    long_names = {
        "bos": "bos",
        "eos": "eos",
        "unknown": "unk",
        "padding": "pad",
        "seperator": "sep",
        "mask": "mask",
    }
    return Vocabulary(
        inner,
        {f"{long}_token": tokens[ids[short]] for short, long in long_names.items() if short in ids},
        (flags[0] and "bos" in ids, flags[1] and "eos" in ids),
        ids.get("bos"),
        tuple(dict.fromkeys(ends)),
        _templates(metadata),
    )


def _templates(metadata: Metadata) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in metadata.items():
        if key == "tokenizer.chat_template" and isinstance(value, str):
            found["default"] = _text(value)
        elif key.startswith("tokenizer.chat_template.") and isinstance(value, str):
            found[key.removeprefix("tokenizer.chat_template.")] = _text(value)
    return found


# --- byte-level BPE ---------------------------------------------------------------------------


def _words(metadata: Metadata) -> _Words:
    name = _value(metadata, "pre", str) or "default"
    found = _WORDS.get(name)
    if found is None:
        raise errors.ValueMismatchError(
            f"the GGUF tokenizer cuts words in a way that is not known: {name}",
            got=f"tokenizer.ggml.pre = {name}",
            expected=", ".join(sorted(_WORDS)),
            fix="pass the folder of the original tokenizer",
        )
    return found


def _byte_level(metadata: Metadata, tokens: Sequence[str], words: _Words) -> tokenizers.Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocab = _ids(tokens)
    inner = Tokenizer(models.BPE(vocab, _merges(metadata, vocab), ignore_merges=words.takes_whole))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in words.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    return inner


def _merges(metadata: Metadata, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    lines = _array(metadata, "merges", str)
    if not lines:
        raise tensors.CorruptFileError(
            "the GGUF tokenizer has no merges", got="no tokenizer.ggml.merges", fix="convert the model again"
        )
    found = []
    for line in lines:
        cut = line.find(" ", 1)
        if cut < 0:
            raise tensors.CorruptFileError("a merge is no pair of tokens", got=repr(line)[:80])
        first, second = line[:cut], line[cut + 1 :]
        if first in vocab and second in vocab and first + second in vocab:
            found.append((first, second))
    return found


def _ids(tokens: Sequence[str]) -> dict[str, int]:
    """Ids by token. Of equal tokens the first counts, as no text can become the others."""
    found: dict[str, int] = {}
    for id, token in enumerate(tokens):
        found.setdefault(token, id)
    return found


# --- SentencePiece's BPE ----------------------------------------------------------------------


def _sentencepiece(metadata: Metadata, tokens: Sequence[str], kinds: Sequence[int]) -> tokenizers.Tokenizer:
    scores = _array(metadata, "scores", float)
    if len(scores) != len(tokens):
        raise tensors.CorruptFileError(
            "tokenizer.ggml.scores does not fit the tokens",
            got=f"{len(scores)} scores of {len(tokens)} tokens",
            fix="copy the file again",
        )
    has_prefix = _value(metadata, "add_space_prefix", bool)
    unknown = next((token for token, kind in zip(tokens, kinds, strict=True) if kind == UNKNOWN), None)
    return sentencepiece_bpe(
        tokens, scores, kinds, unknown, has_prefix=has_prefix is None or bool(has_prefix)
    )


def sentencepiece_bpe(
    tokens: Sequence[str],
    scores: Sequence[float],
    kinds: Sequence[int],
    unknown: str | None,
    *,
    has_prefix: bool,
    has_bytes: bool = True,
) -> tokenizers.Tokenizer:
    """BPE in which the pair with the best piece is merged first, with bytes for what has no piece.

    Args:
        tokens: pieces by id.
        scores: of each piece; larger is merged earlier.
        kinds: of each piece.
        unknown: the piece for what has none; None when bytes stand for everything.
        has_prefix: whether a space is put before a text.
        has_bytes: whether letters without a piece become bytes.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocab = _ids(tokens)
    plain = {token: id for token, id in vocab.items() if kinds[id] in (NORMAL, USER_DEFINED)}
    merges = [
        (first, second)
        for *_, first, second in sorted(
            (-scores[id], id, plain[first], plain[second], first, second)
            for token, id in plain.items()
            for first, second in _halves(token)
            if first in plain and second in plain
        )
    ]
    inner = Tokenizer(models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes))
    inner.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend("▁")] if has_prefix else []), normalizers.Replace(" ", "▁")]
    )
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            *([decoders.ByteFallback()] if has_bytes else []),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if has_prefix else []),
        ]
    )
    return inner


def _halves(token: str) -> Iterator[tuple[str, str]]:
    return ((token[:cut], token[cut:]) for cut in range(1, len(token)))


def _spaced_bpe(metadata: Metadata, tokens: Sequence[str]) -> tokenizers.Tokenizer:
    """BPE with merges over letters, where a sign stands for the space and bytes for what has no token."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocab = _ids(tokens)
    inner = Tokenizer(models.BPE(vocab, _merges(metadata, vocab), fuse_unk=True, byte_fallback=True))
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|[\n]+"), "isolated")
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return inner


# --- values -----------------------------------------------------------------------------------

T = TypeVar("T", str, int, float)


def _value(metadata: Metadata, name: str, kind: type) -> Any:  # Any: of the kind, or None
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is None:
        return None
    value = _plain(value)
    if not isinstance(value, kind) and not (kind is bool and isinstance(value, int)):
        raise tensors.CorruptFileError(
            f"tokenizer.ggml.{name} has the wrong type", got=type(value).__name__, expected=kind.__name__
        )
    return value


def _array(metadata: Metadata, name: str, kind: type[T]) -> list[T]:
    """Values of an array, all of one kind; empty when there is none."""
    value = _plain(metadata.get(f"tokenizer.ggml.{name}"))
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise tensors.CorruptFileError(f"tokenizer.ggml.{name} is no array", got=type(value).__name__)
    wrong = next((each for each in value if not _is_of(each, kind)), None)
    if wrong is not None or None in value:
        raise tensors.CorruptFileError(
            f"tokenizer.ggml.{name} has a value of the wrong type",
            got=repr(wrong)[:80],
            expected=kind.__name__,
            fix="copy the file again",
        )
    read: Callable[[Any], Any] = _text if kind is str else kind  # Any: the values
    return [read(each) for each in value]


def _plain(value: Any) -> Any:  # Any: NumPy's values, or Python's
    return value.tolist() if hasattr(value, "tolist") else value


def _is_of(value: object, kind: type) -> bool:
    if kind is str:
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return kind is float or value == int(value)


def _text(value: str) -> str:
    """A text without lone surrogates, which stand for bytes of the file that are no UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return value
