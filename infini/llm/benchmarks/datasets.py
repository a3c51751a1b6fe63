"""What a benchmark asks for: prompts with the number of tokens to make for each.

Random ids, ids with shared beginnings, conversations of a ShareGPT file, and lines of JSON. Everything
follows from the seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from infini.core import errors

Encode = Callable[[str], list[int]]
Name = Literal["random", "prefix_repetition", "sharegpt", "custom"]
# What vLLM keeps of a ShareGPT file: https://docs.vllm.ai/en/latest/benchmarking/
_LEAST_TOKENS: Final = 4
_MOST_PROMPT_TOKENS: Final = 1024
_MOST_TOKENS: Final = 2048


@dataclass(frozen=True, slots=True)
class Sample:
    """One request.

    Args:
        prompt: text, or ids.
        prompt_tokens: how many ids it is.
        output_tokens: how many to ask for.
    """

    prompt: str | tuple[int, ...]
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A choice of what to ask.

    Args:
        name: "random", "prefix_repetition", "sharegpt" or "custom".
        path: file of the last two.
        num_prompts: how many requests.
        input_tokens: ids of a random prompt, or of what follows a shared beginning.
        output_tokens: tokens to ask for; None is what the file says, else 128.
        range_ratio: spread of both numbers of random prompts.
        prefix_tokens: ids of a shared beginning.
        num_prefixes: how many beginnings there are in "prefix_repetition".
        seed: equal seeds give equal prompts.
    """

    name: Name = "random"
    path: Path | None = None
    num_prompts: int = 1000
    input_tokens: int | None = None
    output_tokens: int | None = None
    range_ratio: float = 0.0
    prefix_tokens: int | None = None
    num_prefixes: int = 10
    seed: int = 0

    def samples(self, *, vocab_size: int, encode: Encode | None) -> list[Sample]:
        """The requests.

        Args:
            vocab_size: random ids lie below it.
            encode: text to ids; files need it.

        Raises:
            ValueMismatchError: a number is out of its range, or a file is missing or of another form.
        """
        made = 128 if self.output_tokens is None else self.output_tokens
        if self.name == "random":
            return random_ids(
                self.num_prompts,
                vocab_size=vocab_size,
                input_tokens=1024 if self.input_tokens is None else self.input_tokens,
                output_tokens=made,
                range_ratio=self.range_ratio,
                prefix_tokens=self.prefix_tokens or 0,
                seed=self.seed,
            )
        if self.name == "prefix_repetition":
            return prefix_repetition(
                self.num_prompts,
                vocab_size=vocab_size,
                prefix_tokens=256 if self.prefix_tokens is None else self.prefix_tokens,
                suffix_tokens=256 if self.input_tokens is None else self.input_tokens,
                num_prefixes=self.num_prefixes,
                output_tokens=made,
                seed=self.seed,
            )
        if self.path is None or encode is None:
            raise errors.ValueMismatchError(
                f"the dataset {self.name} needs a file, and a tokenizer to count its tokens",
                fix="add --dataset-path FILE and --tokenizer FOLDER",
            )
        if self.name == "sharegpt":
            return sharegpt(
                self.path, self.num_prompts, encode=encode, output_tokens=self.output_tokens, seed=self.seed
            )
        return lines(self.path, self.num_prompts, encode=encode, output_tokens=made)


def random_ids(
    num_prompts: int,
    *,
    vocab_size: int,
    input_tokens: int = 1024,
    output_tokens: int = 128,
    range_ratio: float = 0.0,
    prefix_tokens: int = 0,
    seed: int = 0,
) -> list[Sample]:
    """Prompts of uniformly random ids.

    Args:
        num_prompts: how many.
        vocab_size: ids lie below it.
        input_tokens: ids of a prompt behind the shared beginning.
        output_tokens: tokens to ask for.
        range_ratio: both numbers are drawn from the number times (1 - r) to (1 + r).
        prefix_tokens: ids with which all prompts begin.
        seed: equal seeds give equal prompts.

    Raises:
        ValueMismatchError: a number is out of its range.
    """
    if not 0.0 <= range_ratio < 1.0:
        raise errors.ValueMismatchError(
            "range_ratio lies in [0, 1)", got=repr(range_ratio), fix="0 gives equal lengths"
        )
    _at_least("num_prompts", num_prompts, 1)
    _at_least("input_tokens", input_tokens, 1)
    _at_least("output_tokens", output_tokens, 1)
    _at_least("prefix_tokens", prefix_tokens, 0)
    rng = np.random.default_rng(seed)
    prefix = rng.integers(0, vocab_size, prefix_tokens)
    inputs = _spread(rng, input_tokens, range_ratio, num_prompts)
    outputs = _spread(rng, output_tokens, range_ratio, num_prompts)
    found = []
    for own, made in zip(inputs, outputs, strict=True):
        ids = np.concatenate([prefix, rng.integers(0, vocab_size, own)])
        found.append(Sample(tuple(ids.tolist()), len(ids), int(made)))
    return found


def prefix_repetition(
    num_prompts: int,
    *,
    vocab_size: int,
    prefix_tokens: int = 256,
    suffix_tokens: int = 256,
    num_prefixes: int = 10,
    output_tokens: int = 128,
    seed: int = 0,
) -> list[Sample]:
    """Prompts of random ids that share a few beginnings, in random order: what a prefix cache is for.

    Args:
        num_prompts: how many.
        vocab_size: ids lie below it.
        prefix_tokens: ids of a beginning.
        suffix_tokens: ids behind it.
        num_prefixes: how many beginnings there are.
        output_tokens: tokens to ask for.
        seed: equal seeds give equal prompts.

    Raises:
        ValueMismatchError: a number is out of its range.
    """
    for name, number in (
        ("num_prompts", num_prompts),
        ("suffix_tokens", suffix_tokens),
        ("num_prefixes", num_prefixes),
        ("output_tokens", output_tokens),
    ):
        _at_least(name, number, 1)
    _at_least("prefix_tokens", prefix_tokens, 0)
    rng = np.random.default_rng(seed)
    prefixes = rng.integers(0, vocab_size, (num_prefixes, prefix_tokens))
    found = []
    for number in rng.permutation(num_prompts):
        ids = np.concatenate([prefixes[number % num_prefixes], rng.integers(0, vocab_size, suffix_tokens)])
        found.append(Sample(tuple(ids.tolist()), len(ids), output_tokens))
    return found


def sharegpt(
    path: Path, num_prompts: int, *, encode: Encode, output_tokens: int | None = None, seed: int = 0
) -> list[Sample]:
    """The first two turns of conversations in ShareGPT's JSON: the question, and an answer of that length.

    Very short and very long ones are left out, as vLLM does.

    Args:
        path: a list of objects with `conversations`, each a list of objects with `value`.
        num_prompts: how many at most.
        encode: text to ids.
        output_tokens: tokens to ask for; as many as the answer has when absent.
        seed: of the order.

    Raises:
        ValueMismatchError: the file is not of this form, or has nothing to take.
    """
    entries = _json(path)
    if not isinstance(entries, list):
        raise _of_other_form(path, "a list of conversations")
    turns = [
        tuple(turn["value"] for turn in entry["conversations"][:2])
        for entry in entries
        if isinstance(entry, dict) and len(entry.get("conversations") or entry.get("conversation") or ()) >= 2
    ]
    found: list[Sample] = []
    for index in np.random.default_rng(seed).permutation(len(turns)):
        question, answer = turns[index]
        length = len(encode(question))
        made = len(encode(answer)) if output_tokens is None else output_tokens
        is_usual = length >= _LEAST_TOKENS and (made >= _LEAST_TOKENS or output_tokens is not None)
        if is_usual and length <= _MOST_PROMPT_TOKENS and length + made <= _MOST_TOKENS:
            found.append(Sample(question, length, made))
        if len(found) == num_prompts:
            break
    return _some(found, path)


def lines(
    path: Path, num_prompts: int, *, encode: Encode, output_tokens: int = 128, seed: int | None = None
) -> list[Sample]:
    """Prompts of a file with one JSON object per line: `prompt`, and `output_tokens` where not the usual.

    Args:
        path: the file.
        num_prompts: how many at most.
        encode: text to ids.
        output_tokens: tokens to ask for where a line does not say.
        seed: of the order; that of the file when absent.

    Raises:
        ValueMismatchError: the file is not of this form, or has nothing to take.
    """
    entries = list(_lines_of(path))
    order: Sequence[int] = range(len(entries))
    if seed is not None:
        order = np.random.default_rng(seed).permutation(len(entries)).tolist()
    found = []
    for index in order[:num_prompts]:
        prompt, made = entries[index]
        found.append(Sample(prompt, len(encode(prompt)), output_tokens if made is None else made))
    return _some(found, path)


def _spread(rng: np.random.Generator, number: int, ratio: float, count: int) -> np.ndarray:
    low, high = max(1, int(number * (1 - ratio))), max(1, int(number * (1 + ratio)))
    return rng.integers(low, high + 1, count)


def _at_least(name: str, number: int, least: int) -> None:
    if number < least:
        raise errors.ValueMismatchError(f"{name} is too small", got=str(number), expected=f"at least {least}")


def _json(path: Path) -> Any:  # Any: whatever JSON holds
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise errors.ValueMismatchError(
            f"{path} cannot be read", got=str(error), expected="a file of JSON"
        ) from error


def _lines_of(path: Path) -> Iterator[tuple[str, int | None]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ValueMismatchError(
            f"{path} cannot be read", got=str(error), expected="lines of JSON"
        ) from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            made = entry.get("output_tokens")
            yield str(entry["prompt"]), None if made is None else int(made)
        except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise _of_other_form(
                path, f'objects such as {{"prompt": "..."}}; line {number} is none'
            ) from error


def _of_other_form(path: Path, expected: str) -> errors.ValueMismatchError:
    return errors.ValueMismatchError(f"{path} has another form", expected=expected)


def _some(found: list[Sample], path: Path) -> list[Sample]:
    if not found:
        raise errors.ValueMismatchError(
            f"{path} has no prompt that can be taken",
            expected=f"prompts of {_LEAST_TOKENS} to {_MOST_PROMPT_TOKENS} tokens",
        )
    return found
