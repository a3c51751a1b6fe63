"""What a model knows: perplexity of a text, and questions with several answers.

Perplexity is the exponential of the mean negative log-likelihood of each token given those before it in a
window (https://huggingface.co/docs/transformers/perplexity). Choices are scored by the likelihood of the
answer's letter, as in MMLU (arXiv:2009.03300), or of its text, per byte or not.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from infini.core import errors
from infini.llm.benchmarks.datasets import Encode

LogLikelihood = Callable[[Sequence[Sequence[int]]], list[list[float | None]]]
Scoring = Literal["letter", "text", "text_per_byte"]
_LETTERS: Final = "ABCDEFGHIJ"


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How surprised a model is by a text.

    Args:
        num_tokens: tokens that were predicted.
        negative_log_likelihood: their sum, in nats.
        sum_of_squares: sum of their squares, for the error.
    """

    num_tokens: int = 0
    negative_log_likelihood: float = 0.0
    sum_of_squares: float = 0.0

    @property
    def value(self) -> float:
        """The perplexity."""
        return math.exp(self.negative_log_likelihood / self.num_tokens)

    @property
    def error(self) -> float:
        """Standard error of the perplexity, by the spread of the tokens."""
        if self.num_tokens < 2:
            return 0.0
        mean = self.negative_log_likelihood / self.num_tokens
        variance = max(self.sum_of_squares / self.num_tokens - mean**2, 0.0)
        return math.exp(mean) * math.sqrt(variance / (self.num_tokens - 1))

    def with_tokens(self, logprobs: Sequence[float]) -> Perplexity:
        """With more predicted tokens."""
        return replace(
            self,
            num_tokens=self.num_tokens + len(logprobs),
            negative_log_likelihood=self.negative_log_likelihood - math.fsum(logprobs),
            sum_of_squares=self.sum_of_squares + math.fsum(x * x for x in logprobs),
        )


def windows(num_tokens: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Windows over a text: (begin, end, first predicted token), so that each token is predicted once.

    Args:
        num_tokens: of the text.
        context: tokens of a window.
        stride: by how much windows move on; the tokens before the last `stride` of a window are only read.
    """
    done = 1  # nothing predicts the first token
    for begin in range(0, num_tokens, stride):
        end = min(begin + context, num_tokens)
        first = max(done, begin + 1)
        if first < end:
            yield begin, end, first
            done = end
        if end == num_tokens:
            return


def perplexity(
    log_likelihood: LogLikelihood,
    ids: Sequence[int],
    *,
    context: int,
    stride: int | None = None,
    batch_size: int = 8,
    on_window: Callable[[Perplexity, int], None] = lambda found, num_windows: None,
) -> Perplexity:
    """Perplexity of a text.

    Args:
        log_likelihood: of each id of each sequence given those before it; the first is None.
        ids: the text.
        context: tokens of a window.
        stride: see `windows`; half a window when absent.
        batch_size: windows handed over at once.
        on_window: called with the value so far and the number of windows.

    Raises:
        ValueMismatchError: the text has less than two tokens, or a number is out of its range.
    """
    step = context // 2 if stride is None else stride
    if context < 2 or not 1 <= step <= context:
        raise errors.ValueMismatchError(
            "windows need at least 2 tokens and move by 1 up to their length",
            got=f"context={context}, stride={stride}",
        )
    if len(ids) < 2:
        raise errors.ValueMismatchError(
            "the text is too short", got=f"{len(ids)} tokens", expected="at least 2"
        )
    places = list(windows(len(ids), context, step))
    found = Perplexity()
    for start in range(0, len(places), batch_size):
        part = places[start : start + batch_size]
        scores = log_likelihood([ids[begin:end] for begin, end, _ in part])
        for (begin, _, first), row in zip(part, scores, strict=True):
            found = found.with_tokens([float(x) for x in row[first - begin :] if x is not None])
            on_window(found, len(places))
    return found


@dataclass(frozen=True, slots=True)
class Question:
    """A question with several answers.

    Args:
        question: its text.
        choices: the answers.
        answer: index of the right one.
        subject: what it is about; results are told by subject.
    """

    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str = ""


def questions(path: Path) -> list[Question]:
    """Questions of a file.

    Lines of JSON with `question`, `choices` and `answer` (an index or a letter), and perhaps `subject`; or
    CSV with the columns question, A, B, C, D, answer, as C-Eval has them; without a header the columns are
    MMLU's: question, the choices, the letter.

    Raises:
        ValueMismatchError: the file is not of these forms.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ValueMismatchError(f"{path} cannot be read", got=str(error)) from error
    subject = path.stem
    try:
        found = (
            list(_of_json(text, subject))
            if path.suffix in (".jsonl", ".json")
            else list(_of_csv(text, subject))
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise errors.ValueMismatchError(
            f"{path} has another form",
            got=f"{type(error).__name__}: {error}",
            expected='lines such as {"question": "...", "choices": ["...", "..."], "answer": 0}, '
            "or CSV with the columns question, A, B, C, D, answer",
        ) from error
    if not found:
        raise errors.ValueMismatchError(f"{path} has no questions")
    return found


def _of_json(text: str, subject: str) -> Iterator[Question]:
    stripped = text.lstrip()
    entries: Iterable[Any] = (  # Any: whatever JSON holds
        json.loads(text)
        if stripped.startswith("[")
        else (json.loads(line) for line in text.splitlines() if line.strip())
    )
    for entry in entries:
        choices = entry["choices"]
        if isinstance(choices, Mapping):  # as ARC has them: {"text": [...], "label": [...]}
            labels = [str(x) for x in choices["label"]]
            answer = labels.index(str(entry.get("answerKey", entry.get("answer"))))
            choices = choices["text"]
        else:
            answer = _index(entry["answer"], len(choices))
        yield Question(
            str(entry["question"]), tuple(map(str, choices)), answer, str(entry.get("subject", subject))
        )


def _of_csv(text: str, subject: str) -> Iterator[Question]:
    rows = [row for row in csv.reader(text.splitlines()) if row]
    header = [cell.strip().lower() for cell in rows[0]]
    if "question" in header and "answer" in header:
        at = {name: header.index(name) for name in header}
        letters = [c for c in _LETTERS.lower() if c in at]
        for row in rows[1:]:
            choices = tuple(row[at[c]] for c in letters)
            yield Question(row[at["question"]], choices, _index(row[at["answer"]], len(choices)), subject)
        return
    for question, *texts, answer in rows:
        yield Question(question, tuple(texts), _index(answer, len(texts)), subject)


def _index(answer: Any, count: int) -> int:  # Any: an index or a letter
    if isinstance(answer, str):
        text = answer.strip()
        index = _LETTERS.index(text.upper()) if text.upper() in _LETTERS and text else int(text)
    else:
        index = int(answer)
    if not 0 <= index < count:
        raise ValueError(f"the answer {answer!r} is none of {count} choices")
    return index


def prompt_of(question: Question, *, has_answer: bool = False) -> str:
    """A question with its lettered answers, up to the letter; with it for an example."""
    lines = [question.question.strip()]
    lines += [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, question.choices, strict=False)]
    lines.append("Answer:" + (f" {_LETTERS[question.answer]}\n\n" if has_answer else ""))
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Answered:
    """A question and what the model chose.

    Args:
        question: the question.
        scores: of its choices; the largest is chosen.
    """

    question: Question
    scores: tuple[float, ...]

    @property
    def chosen(self) -> int:
        """Index of the choice."""
        return max(range(len(self.scores)), key=self.scores.__getitem__)

    @property
    def is_right(self) -> bool:
        """Whether it is the right one."""
        return self.chosen == self.question.answer


def choose(
    log_likelihood: LogLikelihood,
    encode: Encode,
    asked: Sequence[Question],
    *,
    scoring: Scoring = "letter",
    examples: Sequence[Question] = (),
    on_question: Callable[[Answered], None] = lambda answered: None,
) -> list[Answered]:
    """Let a model choose.

    Args:
        log_likelihood: as for `perplexity`.
        encode: text to ids, with the token that begins a text.
        asked: the questions.
        scoring: by the letter of the answer behind the lettered choices, or by the answer's text behind the
            question alone, as it is or divided by its number of bytes.
        examples: questions put in front with their answers.
        on_question: called after each.
    """
    shots = "".join(prompt_of(q, has_answer=True) for q in examples)
    found = []
    for question in asked:
        if scoring == "letter":
            start = shots + prompt_of(question)
            ends = [f" {_LETTERS[i]}" for i in range(len(question.choices))]
        else:
            start = shots + question.question.strip()
            ends = [f" {choice.strip()}" for choice in question.choices]
        whole = [encode(start + end) for end in ends]
        shared = _num_shared(encode(start), whole)
        scores = [math.fsum(row[shared:]) for row in _numbers(log_likelihood(whole))]
        if scoring == "text_per_byte":
            scores = [s / len(end.encode()) for s, end in zip(scores, ends, strict=True)]
        found.append(Answered(question, tuple(scores)))
        on_question(found[-1])
    return found


def _num_shared(start: Sequence[int], whole: Sequence[Sequence[int]]) -> int:
    """Ids that all candidates share with the text before them: a token may span the seam."""
    return min(
        next(
            (i for i, (a, b) in enumerate(zip(start, ids, strict=False)) if a != b), min(len(start), len(ids))
        )
        for ids in whole
    )


def _numbers(rows: list[list[float | None]]) -> list[list[float]]:
    return [[0.0 if x is None else x for x in row] for row in rows]


def accuracy_by_subject(answered: Sequence[Answered]) -> dict[str, tuple[int, int]]:
    """Right answers and questions of every subject, in the order of their first question."""
    found: dict[str, tuple[int, int]] = {}
    for one in answered:
        right, count = found.get(one.question.subject, (0, 0))
        found[one.question.subject] = (right + one.is_right, count + 1)
    return found
