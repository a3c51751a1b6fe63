"""Small tokenizers of the two families, and their folders and GGUF metadata."""

# ruff: noqa: E501  # texts of templates and answers are as long as they are
from __future__ import annotations

import functools
import json
import struct
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It isn't 12345 dogs, they're 3.14 foxes!",
    "def f(x):\n    return x + 1  # naïve 🦉\n\n\nprint(f(2))\t'don't'",
    "你好，世界！我们今天学习语言模型。 你好，你好。 今天 天气 很好",
    "Ça va? Été à Zürich; Übung macht den Meister. ΑΒΓ αβγ",
] * 4

TRICKY = [
    "",
    " ",
    "  two  spaces  ",
    "\n\n\nlines\r\n\tand tabs ",
    "naïve café — “quotes” … e\u0301",
    "你好，世界！ 今天天气很好。",
    "🦉👩‍👩‍👧‍👦🏳️‍🌈 flags 🇨🇳",
    "1 12 123 1234 12345 3.14e-10",
    "I'M don't WE'LL they'Re",
    "<s> not special </s> <|im_start|>user",
    "a\u0000b\u200bc\ufeff",
    "ﬁ ½ ① Ⅷ ％",
    "мир عالم שלום हिन्दी ไทย 한국어",
    "x" * 200,
    " " * 37 + "end",
    "def f(x):\n        return [i**2 for i in range(10)]",
]

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level() -> tokenizers.Tokenizer:
    """Byte-level BPE that cuts words as Qwen 2 does; a new object of the same vocabulary with every call."""
    return tokenizers.Tokenizer.from_str(_byte_level())


def sentencepiece() -> tokenizers.Tokenizer:
    """BPE over letters with a sign for the space, bytes for what has no piece, BOS before a text; a new object of
    the same vocabulary with every call.
    """
    return tokenizers.Tokenizer.from_str(_sentencepiece())


@functools.cache
def _byte_level(vocab_size: int = 420) -> str:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(QWEN2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    inner.add_tokens([AddedToken("<tool_call>", normalized=False)])
    return inner.to_str()


@functools.cache
def _sentencepiece(vocab_size: int = 300) -> str:
    trained = tokenizers.Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex("▁*[^▁]*"), "isolated")
    trained.train_from_iterator(
        [text for text in CORPUS if "你" not in text],
        trainers.BpeTrainer(vocab_size=vocab_size, limit_alphabet=60, show_progress=False),
    )
    learned = json.loads(trained.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # As in SentencePiece's files the pieces that were merged stand in the order in which they were learned.
    merged = ["".join(pair if isinstance(pair, list) else pair.split(" ")) for pair in learned["merges"]]
    letters = [token for token in learned["vocab"] if token not in set(merged)]
    tokens = [*names, *dict.fromkeys(merged), *letters]
    vocab = {token: id for id, token in enumerate(tokens)}
    merges = [tuple(pair if isinstance(pair, list) else pair.split(" ")) for pair in learned["merges"]]
    inner = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    inner.normalizer = trained.normalizer
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in names[:3]])
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return inner.to_str()


def gguf_metadata(inner: tokenizers.Tokenizer, *, pre: str | None = "qwen2") -> dict[str, Any]:
    """What a converter writes for a tokenizer; `pre` None for SentencePiece's."""
    model = json.loads(inner.to_str())["model"]
    added = inner.get_added_tokens_decoder()
    tokens = [inner.id_to_token(id) or f"[PAD{id}]" for id in range(inner.get_vocab_size())]
    kinds = [
        (3 if added[id].special else 4) if id in added
        else 6 if pre is None and token.startswith("<0x") and len(token) == 6
        else 1
        for id, token in enumerate(tokens)
    ]  # fmt: skip
    found: dict[str, Any] = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    if pre is None:
        kinds[0] = 2
        return found | {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.scores": [-1000.0 if kind != 1 else -float(id) for id, kind in enumerate(kinds)],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
        }
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return found | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": tokens.index("<s>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
        "tokenizer.ggml.add_bos_token": False,
    }


def write_folder(folder: Path, inner: tokenizers.Tokenizer, **config: Any) -> Path:
    """A model folder with nothing but the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    stated = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(stated | config))
    return folder


def varint(value: int) -> bytes:
    """A number in the wire format of protocol buffers."""
    value &= (1 << 64) - 1
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def field(number: int, value: int | bytes | float) -> bytes:
    """A field of a message: a number, bytes, or a float of 32 bits."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def model_proto(
    pieces: list[tuple[str, float, int]], *, algorithm: int, byte_fallback: bool = True, prefix: bool = True
) -> bytes:
    """A `tokenizer.model`."""
    rows = b"".join(
        field(1, field(1, text.encode()) + field(2, score) + (field(3, kind) if kind != 1 else b""))
        for text, score, kind in pieces
    )
    trainer = field(3, algorithm) + field(35, int(byte_fallback)) + field(40, 0) + field(41, 1) + field(42, 2)
    normalizer = field(1, b"identity") + field(3, int(prefix)) + field(4, 0)
    return rows + field(2, trainer) + field(3, normalizer)
