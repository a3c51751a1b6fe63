"""The tokenizer and the chat templates of a model as metadata of a GGUF file, as llama.cpp's converter
writes them.

Two families have a form there: byte-level BPE (`gpt2`) with merges and the name of the rule by which texts
are cut into words, and SentencePiece's BPE (`llama`) with a score for each piece. The rule is found by what
it does: a text of all that such rules treat differently is cut by the tokenizer and by every rule that is
known.
Reference: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, the keys `tokenizer.*`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from infini.core import errors
from infini.io import gguf
from infini.llm.text import gguf_vocabulary
from infini.llm.text.gguf_vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from infini.llm.text.tokenizer import DEFAULT, Tokenizer, from_gguf

Json = dict[str, Any]  # Any: whatever JSON holds

_IDS: Final = (
    ("bos_token", "bos_token_id"),
    ("eos_token", "eos_token_id"),
    ("unk_token", "unknown_token_id"),
    ("sep_token", "seperator_token_id"),
    ("pad_token", "padding_token_id"),
    ("mask_token", "mask_token_id"),
)
_BYTE: Final = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# Added tokens that are no text of a user, whether their files call them special or not.
_LOOKS_SPECIAL: Final = re.compile(r"<\|.*\|>|<｜.*｜>|<unused.*>|<pad>|<mask>|<2mass>|\[@BOS@\]", re.DOTALL)
# Where rules are equal: the first of these names.
_PREFERRED: Final = (
    "gpt-2",
    "llama-bpe",
    "qwen2",
    "deepseek-v3",
    "deepseek-llm",
    "tekken",
    "gpt-4o",
    "smollm",
)
_PROBE: Final = (
    "I'll say HE'LL we'Ve don'T  3 33 333 3333 1234567 a1b2 3.14 x==y;  \n\n \n\t\t tab\r\n\r\n end   \n"
    "naïve Ünïcode е́ нещо 東京へ行く。ภาษาไทย한국어 العربية 🚀 😶‍🌫️\n"
    "!!!?? #include <a/b.h> $5 <=> a|b ^_^ `x` /* c */\n"
    "CamelCaseWord ALLCAPS mixedCASE don't 'tis _under_score_\n"
    "e\u0301 ½ Ⅷ ٣٤ 　 wide\u00a0space ...!)\n\n\n  x"
)


def write(tokenizer: Tokenizer, vocab_size: int) -> dict[str, gguf.Value]:
    """Metadata for a tokenizer.

    Args:
        tokenizer: the tokenizer of a model folder.
        vocab_size: rows of the table of embeddings; ids without a token get a name that no text has.

    Raises:
        UnsupportedError: GGUF has no form for a tokenizer of this kind, or none that llama.cpp knows for
            how it cuts words.
        ValueMismatchError: it has more tokens than the table has rows.
    """
    data = json.loads(tokenizer.to_json())
    model = data["model"]
    if model.get("type") != "BPE":
        raise errors.UnsupportedError(
            "tokenizers of this kind have no form in GGUF files that is written here",
            got=f"a model of the type {model.get('type')}",
            expected="BPE, over bytes or with SentencePiece's pieces",
        )
    tokens, kinds = _tokens(data, model, vocab_size)
    is_spaced = _is_spaced(data)
    if is_spaced:
        found: dict[str, Any] = {"model": "llama", "pre": "default"}
        found["scores"] = gguf.value_of(_scores(model, tokens))
        kinds = [
            BYTE if _BYTE.fullmatch(token) else UNKNOWN if token == model.get("unk_token") else kind
            for token, kind in zip(tokens, kinds, strict=True)
        ]
    else:
        found = {"model": "gpt2", "pre": rule_of(tokenizer, data)}
        found["merges"] = gguf.value_of(
            [" ".join(_pair(merge)) for merge in model["merges"]], item=gguf.ValueType.STRING
        )
    found["tokens"] = gguf.value_of(tokens)
    found["token_type"] = gguf.value_of(np.array(kinds, np.int32))
    for name, key in _IDS:
        id = tokenizer.special_id(name)
        if id is not None:
            found[key] = id
    before, after = _ends(tokenizer)
    found |= {"add_bos_token": before, "add_eos_token": after}
    if is_spaced:
        found["add_space_prefix"] = _has_prefix(data)
    written = {f"tokenizer.ggml.{key}": gguf.value_of(value) for key, value in found.items()}
    return written | _further_ends(tokenizer, written) | _templates(tokenizer.chat_templates)


def rule_of(tokenizer: Tokenizer, data: Json) -> str:
    """llama.cpp's name for how a byte-level tokenizer cuts words.

    Raises:
        UnsupportedError: it has none.
    """
    from tokenizers import Regex, Tokenizer as Library, pre_tokenizers

    own = Library.from_str(json.dumps(data)).pre_tokenizer
    if own is None:
        raise _no_rule("none")
    wanted = [place for _, place in own.pre_tokenize_str(_PROBE)]
    takes_whole = bool(data["model"].get("ignore_merges"))
    found = []
    for name, (patterns, whole) in gguf_vocabulary.word_rules().items():
        rule = pre_tokenizers.Sequence(
            [
                *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        if [place for _, place in rule.pre_tokenize_str(_PROBE)] == wanted:
            found.append((whole != takes_whole, name not in _PREFERRED, name))
    if not found:
        raise _no_rule(json.dumps(data.get("pre_tokenizer"))[:200])
    return min(found)[2]


def _no_rule(got: str) -> errors.UnsupportedError:
    return errors.UnsupportedError(
        "llama.cpp has no rule that cuts words as this tokenizer does",
        got=f"pre_tokenizer {got}",
        expected="that of " + ", ".join(sorted(gguf_vocabulary.word_rules())),
    )


def _tokens(data: Json, model: Json, vocab_size: int) -> tuple[list[str], list[int]]:
    """Tokens by id, and their kinds."""
    ids: dict[str, int] = dict(model["vocab"])
    added = {token["content"]: token for token in data.get("added_tokens", [])}
    ids |= {content: token["id"] for content, token in added.items()}
    last = max(ids.values(), default=-1)
    if last >= vocab_size:
        raise errors.ValueMismatchError(
            "the tokenizer has more tokens than the model",
            got=f"the id {last}, and {vocab_size} rows of embeddings",
            fix="use the tokenizer that belongs to the model",
        )
    tokens = [f"[PAD{id}]" for id in range(vocab_size)]
    kinds = [UNUSED] * vocab_size
    for content, id in ids.items():
        tokens[id], kinds[id] = content, NORMAL
        token = added.get(content)
        if token is not None:
            kinds[id] = CONTROL if token.get("special") or _LOOKS_SPECIAL.fullmatch(content) else USER_DEFINED
    return tokens, kinds


def _parts(step: Json | None, name: str) -> list[Json]:
    """The steps of a pipeline of the library, one after the other."""
    if step is None:
        return []
    return step[name] if step.get("type") == "Sequence" else [step]


def _is_spaced(data: Json) -> bool:
    """Whether pieces have a sign for the space, as SentencePiece's have, instead of bytes."""
    normalizers = _parts(data.get("normalizer"), "normalizers")
    cutters = _parts(data.get("pre_tokenizer"), "pretokenizers")
    is_replaced = any(step.get("type") == "Replace" and step.get("content") == "▁" for step in normalizers)
    return is_replaced or any(step.get("type") == "Metaspace" for step in cutters)


def _has_prefix(data: Json) -> bool:
    """Whether a space is put before a text."""
    for step in _parts(data.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace":
            return step.get("prepend_scheme", "always") != "never"
    return any(step.get("type") == "Prepend" for step in _parts(data.get("normalizer"), "normalizers"))


def _pair(merge: str | list[str]) -> list[str]:
    """The two tokens of a merge; a space within a token is written as byte-level vocabularies write it."""
    pair = merge.split(" ", 1) if isinstance(merge, str) else merge
    return [token.replace(" ", "Ġ") for token in pair]


def _scores(model: Json, tokens: list[str]) -> np.ndarray:
    """A score per token: the earlier a piece is merged the larger, and pieces that no merge makes come
    last.
    """
    merges = model["merges"]
    rank: dict[str, int] = {}
    for merge in merges:
        first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
        rank.setdefault(first + second, len(rank))
    return np.array([-float(rank.get(token, len(rank))) for token in tokens], np.float32)


def _ends(tokenizer: Tokenizer) -> tuple[bool, bool]:
    """Whether tokens are put before and after a text."""
    ids = tokenizer.encode("a")
    return bool(ids) and ids[0] == tokenizer.bos_id, bool(ids) and ids[-1] == tokenizer.special_id(
        "eos_token"
    )


def _further_ends(tokenizer: Tokenizer, written: Mapping[str, gguf.Value]) -> dict[str, gguf.Value]:
    """Ids that end an answer beside EOS. generation_config.json may have any; readers of GGUF know some by
    their texts, and there are two more keys for others.
    """
    known = from_gguf(gguf.Metadata(written)).eos_ids
    others = [id for id in tokenizer.eos_ids if id not in known]
    keys = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
    return {key: gguf.value_of(id) for key, id in zip(keys, others, strict=False)}


def _templates(templates: Mapping[str, str]) -> dict[str, gguf.Value]:
    found = {}
    if DEFAULT in templates:
        found["tokenizer.chat_template"] = gguf.value_of(templates[DEFAULT])
    others = sorted(name for name in templates if name != DEFAULT)
    if others:
        found["tokenizer.chat_templates"] = gguf.value_of(others)
    for name in others:
        found[f"tokenizer.chat_template.{name}"] = gguf.value_of(templates[name])
    return found
