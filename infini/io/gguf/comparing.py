"""Looking into GGUF files: whether their numbers make sense, and how two of them differ.

What is wrong with the form of a file is an error when it is opened; here are faults of what it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from infini.io.gguf.dequantizers import DEQUANTIZERS, dequantize
from infini.io.gguf.reader import GGUFFile, GGUFTensor
from infini.io.gguf.types import FLOATS

# Bytes of a tensor that are looked at together.
_PIECE_NBYTES: Final = 8 << 20

Progress = Callable[[str, int, int], None]
"""Called after each tensor: its name, bytes done, bytes in all."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something about the contents of a file that cannot be right.

    Args:
        name: the tensor or key.
        what: what is wrong with it.
    """

    name: str
    what: str


@dataclass(frozen=True, slots=True)
class Difference:
    """Something in which two files differ.

    Args:
        kind: metadata or tensor.
        name: the key or tensor.
        first: what the first file has; None for nothing.
        second: what the second file has.
        rms: root mean square of the differences of numbers, relative to that of the first file's numbers;
            None where there are no numbers to compare.
    """

    kind: Literal["metadata", "tensor"]
    name: str
    first: str | None
    second: str | None
    rms: float | None = None


def faults(file: GGUFFile, *, on_progress: Progress | None = None) -> list[Fault]:
    """What is wrong with the numbers of a file, by several threads: NaN and infinities, in scales too, and
    lists of a tokenizer that do not go together.

    Args:
        file: the file.
        on_progress: called after each tensor.
    """
    found = list(_of_tokenizer(file))
    done = 0
    for name, x in file.tensors.items():
        count = sum(int(size - np.isfinite(part).sum()) for part, size in _floats(x))
        if count:
            found.append(Fault(name, f"{count} of its numbers are NaN or infinite"))
        done += x.nbytes
        if on_progress is not None:
            on_progress(name, done, file.nbytes)
    return found


def differences(
    first: GGUFFile, second: GGUFFile, *, on_progress: Progress | None = None
) -> Iterator[Difference]:
    """In what two files differ: keys and values of metadata, and tensors by types, shapes and numbers.

    Numbers of different types are compared as floats.
    """
    a, b = first.metadata.fields, second.metadata.fields
    for key in sorted(a.keys() | b.keys()):
        if a.get(key) != b.get(key):
            yield Difference("metadata", key, _value(first, key), _value(second, key))
    done, total = 0, first.nbytes
    for name in sorted(first.tensors.keys() | second.tensors.keys()):
        x, y = first.tensors.get(name), second.tensors.get(name)
        if x is None or y is None:
            yield Difference("tensor", name, _kind(x), _kind(y))
            continue
        if x.shape != y.shape:
            yield Difference("tensor", name, _kind(x), _kind(y))
        elif x.type != y.type or not np.array_equal(x.data, y.data):
            yield Difference("tensor", name, _kind(x), _kind(y), _rms(x, y))
        done += x.nbytes
        if on_progress is not None:
            on_progress(name, done, total)


def is_readable(x: GGUFTensor) -> bool:
    """Whether the numbers of a tensor can be had as floats."""
    return x.type in FLOATS or x.type.name in DEQUANTIZERS


def _floats(x: GGUFTensor) -> Iterator[tuple[np.ndarray, int]]:
    """The numbers of a tensor in pieces, with how many each has; nothing for whole numbers."""
    if not is_readable(x):
        return
    flat = x.load()
    step = max(1, _PIECE_NBYTES // x.type.block_nbytes) * x.type.block_nbytes
    for start in range(0, flat.size, step):
        part = flat[start : start + step]
        numbers = part.view(x.type.dtype) if x.type.dtype is not None else dequantize(part, x.type)
        yield numbers, numbers.size


def _rms(x: GGUFTensor, y: GGUFTensor) -> float | None:
    if not (is_readable(x) and is_readable(y)):
        return None
    rest = size = 0.0
    first, second = (own.data.reshape(-1, own.data.shape[-1]) for own in (x, y))
    step = max(1, _PIECE_NBYTES // max(first.shape[1], second.shape[1]))
    for start in range(0, len(first), step):
        a = dequantize(first[start : start + step], x.type).astype(np.float64)
        b = dequantize(second[start : start + step], y.type).astype(np.float64)
        rest += float(((a - b) ** 2).sum())
        size += float((a**2).sum())
    return float(np.sqrt(rest / size)) if size else float(np.sqrt(rest))


def _kind(x: GGUFTensor | None) -> str | None:
    return None if x is None else f"{x.type} {list(x.shape)}"


def _value(file: GGUFFile, key: str) -> str | None:
    found = file.metadata.fields.get(key)
    return None if found is None else f"{found.type_name} {shown(found.plain())}"


def shown(value: object, count: int | None = 8) -> str:
    """A value of metadata as text; of a list the first elements and how many there are.

    Args:
        value: the value.
        count: elements of a list that are shown; None for all.
    """
    if isinstance(value, list):
        part = value if count is None else value[:count]
        text = ", ".join(_one(x) for x in part)
        return f"[{text}]" if len(part) == len(value) else f"[{text}, ...] ({len(value)} in all)"
    return _one(value)


def _one(value: object) -> str:
    if isinstance(value, float):
        return str(np.float32(value)) if float(np.float32(value)) == value else repr(value)
    if isinstance(value, str):
        # Bytes that are no UTF-8 cannot be printed.
        return repr(value.encode("utf-8", "backslashreplace").decode())
    return str(value)


def _of_tokenizer(file: GGUFFile) -> Iterator[Fault]:
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        return
    for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        other = file.metadata.get(key)
        if isinstance(other, np.ndarray) and len(other) != len(tokens):
            yield Fault(key, f"{len(other)} values for {len(tokens)} tokens")
    for key in ("bos", "eos", "unknown", "padding", "seperator"):
        id = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(id, int) and id >= len(tokens):
            yield Fault(f"tokenizer.ggml.{key}_token_id", f"{id}, and there are {len(tokens)} tokens")
    embeddings = file.tensors.get("token_embd.weight")
    if embeddings is not None and embeddings.shape[0] != len(tokens):
        yield Fault("token_embd.weight", f"{embeddings.shape[0]} rows for {len(tokens)} tokens")
