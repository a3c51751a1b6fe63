"""Prompts of benchmarks: lengths, shared beginnings, seeds, and files of other forms."""

from __future__ import annotations

import json

import pytest

from infini.core import errors
from infini.llm.benchmarks import datasets


def encode(text: str) -> list[int]:
    return [len(word) for word in text.split()]


def test_random_prompts_have_their_lengths_and_follow_the_seed():
    found = datasets.random_ids(50, vocab_size=64, input_tokens=20, output_tokens=8, range_ratio=0.5, seed=1)
    assert found == datasets.random_ids(
        50, vocab_size=64, input_tokens=20, output_tokens=8, range_ratio=0.5, seed=1
    )
    assert all(len(s.prompt) == s.prompt_tokens and 10 <= s.prompt_tokens <= 30 for s in found)
    assert all(4 <= s.output_tokens <= 12 for s in found)
    assert {i for s in found for i in s.prompt} <= set(range(64))
    assert len({s.prompt_tokens for s in found}) > 5


def test_random_prompts_share_the_beginning_asked_for():
    found = datasets.random_ids(4, vocab_size=64, input_tokens=5, prefix_tokens=7)
    assert len({s.prompt[:7] for s in found}) == 1
    assert len({s.prompt[7:] for s in found}) == 4
    assert {s.prompt_tokens for s in found} == {12}


def test_repeated_prefixes_are_as_many_as_asked_for():
    found = datasets.prefix_repetition(
        12, vocab_size=64, prefix_tokens=6, suffix_tokens=3, num_prefixes=3, output_tokens=2
    )
    beginnings = [s.prompt[:6] for s in found]
    assert sorted(beginnings.count(b) for b in set(beginnings)) == [4, 4, 4]
    assert {s.output_tokens for s in found} == {2}


def test_sharegpt_takes_the_first_two_turns_and_leaves_short_ones_out(tmp_path):
    turns = [("a b c d e", "f g h i"), ("too short", "a b c d e"), ("a b c d e f", "no")]
    entries = [{"conversations": [{"from": "x", "value": t} for t in pair]} for pair in turns]
    entries.append({"conversations": [{"value": "alone"}]})
    file = tmp_path / "s.json"
    file.write_text(json.dumps(entries))
    assert datasets.sharegpt(file, 9, encode=encode) == [datasets.Sample("a b c d e", 5, 4)]
    assert {s.output_tokens for s in datasets.sharegpt(file, 9, encode=encode, output_tokens=7)} == {7}


def test_lines_say_how_many_tokens_or_take_the_usual(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a b", "output_tokens": 3}\n\n{"prompt": "c"}\n')
    found = datasets.lines(file, 9, encode=encode, output_tokens=5)
    assert found == [datasets.Sample("a b", 2, 3), datasets.Sample("c", 1, 5)]


@pytest.mark.parametrize("text", ["not json", '{"no": "prompt"}', "[1]", ""])
def test_lines_of_another_form_are_named(tmp_path, text):
    file = tmp_path / "p.jsonl"
    file.write_text(text)
    with pytest.raises(errors.ValueMismatchError, match=r"p\.jsonl"):
        datasets.lines(file, 9, encode=encode)


def test_a_dataset_of_a_file_asks_for_the_file():
    with pytest.raises(errors.ValueMismatchError, match="needs a file") as caught:
        datasets.Dataset(name="sharegpt").samples(vocab_size=9, encode=None)
    assert "--dataset-path" in caught.value.fix


@pytest.mark.parametrize(("field", "value"), [("range_ratio", 1.0), ("input_tokens", 0), ("num_prompts", 0)])
def test_numbers_out_of_range_are_named(field, value):
    with pytest.raises(errors.ValueMismatchError, match=field):
        datasets.Dataset(**{field: value}).samples(vocab_size=9, encode=None)
