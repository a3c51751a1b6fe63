"""Perplexity and choices against their definitions, with models that are tables."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from infini.core import errors
from infini.llm.benchmarks import evaluation


def bigram(table):
    """A model whose next token depends on the last one alone."""

    def score(rows):
        return [[None, *(table[a, b] for a, b in itertools.pairwise(r))] for r in rows]

    return score


@given(st.integers(2, 60), st.integers(2, 20), st.data())
def test_every_token_but_the_first_is_predicted_once(num_tokens, context, data):
    stride = data.draw(st.integers(1, context))
    seen = []
    for begin, end, first in evaluation.windows(num_tokens, context, stride):
        assert begin < first < end <= begin + context
        seen += range(first, end)
    # A token at the start of a window has nothing before it in there, unless windows overlap.
    expected = set(range(1, num_tokens))
    if stride == context:
        expected -= set(range(0, num_tokens, context))
    assert sorted(seen) == sorted(expected)


def test_perplexity_is_the_exponential_of_the_mean(rng):
    probabilities = rng.dirichlet(np.ones(8), 8)
    ids = rng.integers(0, 8, 100).tolist()
    logs = [math.log(probabilities[a, b]) for a, b in itertools.pairwise(ids)]
    found = evaluation.perplexity(bigram(np.log(probabilities)), ids, context=16, stride=8)
    assert found.num_tokens == 99
    assert found.value == pytest.approx(math.exp(-np.mean(logs)))
    assert found.error == pytest.approx(found.value * np.std(logs) / math.sqrt(98))


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
    found = evaluation.perplexity(bigram(np.full((8, 8), -math.log(8))), [1, 2, 3, 4, 5], context=4)
    assert found.value == pytest.approx(8.0)
    assert found.error == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("ids", "context", "stride"), [([1], 4, None), ([1, 2], 1, None), ([1, 2], 4, 5)])
def test_perplexity_refuses_what_has_nothing_to_predict(ids, context, stride):
    with pytest.raises(errors.ValueMismatchError):
        evaluation.perplexity(bigram(np.zeros((4, 4))), ids, context=context, stride=stride)


def test_questions_are_read_in_their_forms(tmp_path):
    lines = [
        {"question": "1+1?", "choices": ["1", "2"], "answer": 1, "subject": "sums"},
        {"question": "2+2?", "choices": ["4", "5"], "answer": "A"},
        {"question": "3+3?", "choices": {"text": ["6", "7"], "label": ["1", "2"]}, "answerKey": "1"},
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "list.json").write_text(json.dumps(lines[:2]))
    (tmp_path / "ceval.csv").write_text("id,question,A,B,C,D,answer\n0,one?,a,b,c,d,C\n")
    (tmp_path / "mmlu.csv").write_text('"one, two?",a,b,c,d,B\n')
    found = evaluation.questions(tmp_path / "q.jsonl")
    assert [(q.answer, q.subject) for q in found] == [(1, "sums"), (0, "q"), (0, "q")]
    assert evaluation.questions(tmp_path / "list.json") == [
        found[0],
        evaluation.Question("2+2?", ("4", "5"), 0, "list"),
    ]
    (one,) = evaluation.questions(tmp_path / "ceval.csv")
    assert (one.question, one.choices, one.answer) == ("one?", ("a", "b", "c", "d"), 2)
    (one,) = evaluation.questions(tmp_path / "mmlu.csv")
    assert (one.question, one.answer) == ("one, two?", 1)


@pytest.mark.parametrize(
    "text", ["nothing", '{"question": "x"}', '{"question": "x", "choices": ["a"], "answer": 3}', ""]
)
def test_questions_of_another_form_are_named(tmp_path, text):
    file = tmp_path / "q.jsonl"
    file.write_text(text)
    with pytest.raises(errors.ValueMismatchError, match=r"q\.jsonl"):
        evaluation.questions(file)


QUESTIONS = [
    evaluation.Question("q?", ("short", "a much longer answer"), 0, "s"),
    evaluation.Question("r?", ("x", "y"), 1, "t"),
]


def encode(text: str) -> list[int]:
    return list(text.encode())


def test_letters_are_scored_behind_the_lettered_choices():
    seen = []

    def likes_a(rows):
        seen.extend(bytes(r).decode() for r in rows)
        return [[0.0 if i == ord("A") else -1.0 for i in r] for r in rows]

    found = evaluation.choose(likes_a, encode, QUESTIONS)
    assert seen[0] == "q?\nA. short\nB. a much longer answer\nAnswer: A"
    assert [a.chosen for a in found] == [0, 0]
    assert evaluation.accuracy_by_subject(found) == {"s": (1, 1), "t": (0, 1)}


def test_text_is_scored_whole_or_per_byte():
    def constant(rows):
        return [[-1.0] * len(r) for r in rows]

    whole = evaluation.choose(constant, encode, QUESTIONS[:1], scoring="text")[0]
    per_byte = evaluation.choose(constant, encode, QUESTIONS[:1], scoring="text_per_byte")[0]
    assert whole.scores == (-len(" short"), -len(" a much longer answer"))
    assert per_byte.scores == pytest.approx((-1.0, -1.0))


def test_examples_stand_in_front_with_their_answers():
    seen = []

    def score(rows):
        seen.extend(bytes(r).decode() for r in rows)
        return [[-1.0] * len(r) for r in rows]

    evaluation.choose(score, encode, QUESTIONS[:1], examples=QUESTIONS[1:])
    assert seen[0].startswith("r?\nA. x\nB. y\nAnswer: B\n\nq?\n")
