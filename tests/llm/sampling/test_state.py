"""Arrays of a step from the records of its requests."""

from __future__ import annotations

import pytest

from infini.core import errors
from infini.llm.sampling import bad_words, rows as rows_, state
from infini.llm.sampling.params import SamplingParams
from infini.llm.sampling.state import Features, Row

V = 100
EDITED = Features(is_random=True, is_edited=True, is_masked=True)


def _row(vocab_size: int = V, **fields: object) -> Row:
    return Row(SamplingParams(**fields), vocab_size=vocab_size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 0.0}, Features()),
        ({"temperature": 0.0, "typical_p": 0.5, "top_k": 3}, Features()),
        ({}, Features(is_random=True)),
        ({"typical_p": 0.5}, Features(is_random=True, is_typical=True)),
        ({"temperature": 0.0, "presence_penalty": 1.0}, Features(is_edited=True)),
        ({"temperature": 0.0, "logit_bias": {1: 1.0}}, Features(is_edited=True)),
        ({"temperature": 0.0, "allowed_token_ids": [1]}, Features(is_masked=True)),
        ({"temperature": 0.0, "logprobs": 0}, Features(num_logprobs=0)),
        ({"temperature": 0.0, "logprobs": 3}, Features(num_logprobs=20)),
    ],
)
def test_a_row_asks_for_what_its_request_needs(fields: dict[str, object], expected: Features) -> None:
    assert _row(**fields).features == expected


def test_a_step_uses_the_first_program_that_covers_it() -> None:
    rows = [_row(temperature=0.0), _row(presence_penalty=1.0)]
    assert state.preset_of(state.features_of(rows)) == state.PRESETS[2]
    assert state.preset_of(state.features_of(rows[:1])) == Features()
    assert state.preset_of(state.features_of([_row(logprobs=1)])) == state.PRESETS[-1]
    assert state.preset_of(state.features_of([])) == Features()


def test_what_no_preset_covers_is_compiled_as_it_is() -> None:
    asked = Features(num_logprobs=20)
    assert state.preset_of(asked, state.PRESETS[:2]) is asked


def test_nothing_is_made_that_no_program_reads() -> None:
    made = state.build([_row()], 2, Features(is_random=True))
    assert made.edits is None and made.forbidden is None and made.mask is None


def test_the_number_of_a_token_counts_the_answer() -> None:
    row = _row(seed=(5 << 32) + 9)
    row.push(1)
    row.push(2)
    made = state.build([row], 1, Features(is_random=True))
    assert made.numbers[0].tolist() == [5, 9, 2, 0]


def test_shapes_do_not_depend_on_how_much_is_edited() -> None:
    few, many = _row(frequency_penalty=1.0, vocab_size=5000), _row(frequency_penalty=1.0, vocab_size=5000)
    for token in range(4000):
        many.push(token)
    shapes = [
        [leaf.shape for leaf in (made.edits, made.biases, made.forbidden)]
        for made in (state.build([row], 4, EDITED) for row in (few, many))
    ]
    assert shapes[0] == shapes[1]
    for token in range(4000, 4200):
        many.push(token)
    assert state.build([many], 4, EDITED).edits.shape == (3, state.LIST_SIZES[1])


def test_lists_beyond_the_largest_size_still_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "LIST_SIZES", (2, 4))
    row = _row(frequency_penalty=1.0)
    for token in range(70):
        row.push(token)
    assert state.build([row], 1, EDITED).edits.shape == (3, 4 * 16**2)


def test_programs_to_compile_have_the_shapes_of_steps() -> None:
    shapes = {
        (features, made.edits.shape if made.edits is not None else None)
        for features, made in state.programs(4, V)
    }
    row = _row(presence_penalty=1.0, logprobs=3)
    features = state.preset_of(row.features)
    assert (features, state.build([row], 4, features).edits.shape) in shapes
    assert len(shapes) == 6


def test_words_of_several_tokens_are_forbidden_where_they_would_end() -> None:
    row = Row(SamplingParams(), vocab_size=V, bad_words=[(9,), (4, 5, 6), (5, 7)])
    forbidden = []
    for token in (4, 5, 5, 4):
        forbidden.append(sorted(row.forbidden().tolist()))
        row.push(token)
    assert forbidden == [[9], [9], [6, 7, 9], [7, 9]]


def test_guesses_have_rows_of_their_own() -> None:
    row, other = _row(frequency_penalty=1.0), _row(seed=8)
    row.push(3)
    made = state.build([row, other], 6, EDITED, drafts=[[3, 4], []])
    assert made.numbers[:, rows_.INDEX].tolist() == [1, 2, 3, 0, 0, 0]
    places = made.edits[:, made.edits[0] < 6].T.tolist()
    assert places == [[0, 3, 2], [1, 3, 4], [2, 3, 4], [2, 4, 2]]
    assert row.num_output == 1


def test_bad_words_are_spelled_alone_and_after_a_space() -> None:
    found = bad_words.token_ids(["ab", " ab"], lambda text: list(text.encode()), vocab_size=128)
    assert found == [(97, 98), (32, 97, 98)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["é"], "does not know"), (["x" * 1200], "too many tokens"), (["?"], "without tokens")],
)
def test_bad_words_that_cannot_be(words: list[str], expected: str) -> None:
    def encode(text: str) -> list[int]:
        return [] if "?" in text else list(text.encode())

    with pytest.raises(errors.ValueMismatchError, match=expected):
        bad_words.token_ids(words, encode, vocab_size=128)
