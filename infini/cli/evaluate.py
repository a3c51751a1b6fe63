"""`infini eval`: perplexity of a text, and questions with several answers."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from infini.cli import output
from infini.core import errors
from infini.io import folders
from infini.llm import checkpoints, hub, models
from infini.llm.benchmarks import evaluation
from infini.llm.engine.llm import LLM
from infini.llm.sampling.params import SamplingParams
from infini.llm.text.tokenizer import Tokenizer

app = typer.Typer(help="Measure what a language model knows.", no_args_is_help=True)

_WINDOW: Final = 512

_Model = Annotated[str, typer.Argument(help="Model folder, GGUF file, or name of a pulled model.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_DType = Annotated[str, typer.Option(help="Dtype to compute in; auto is the model's.")]
_Quantization = Annotated[
    str | None, typer.Option("--quantization", "-q", help="Quantise weights on load, such as q8_0.")
]


@app.command("ppl")
def ppl(  # noqa: PLR0917  # typer passes them by name
    model: _Model,
    file: Annotated[Path, typer.Argument(help="A text in UTF-8.")],
    context: Annotated[
        int | None,
        typer.Option("--context", "-c", help="Tokens of a window; 512, or what the model takes.", min=2),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="By how much windows move on; half a window if absent.", min=1)
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Take only the beginning.", min=2)] = None,
    dtype: _DType = "auto",
    quantization: _Quantization = None,
    as_json: _Json = False,
) -> None:
    """Perplexity of a text: how surprised the model is by each token, on average."""
    text = _read(file)
    context = _longest_window(model) if context is None else context
    engine = LLM(model, dtype=dtype, quantization=quantization, max_model_len=context + 1)
    ids = _tokenizer(engine).encode(text)[:max_tokens]
    with _bar("windows") as bar:

        def on_window(found: evaluation.Perplexity, num_windows: int) -> None:
            bar.advance(num_windows, f"{found.value:.4f}" if found.num_tokens else "")

        found = evaluation.perplexity(
            lambda rows: _log_likelihood(engine, rows),
            ids,
            context=context,
            stride=stride,
            on_window=on_window,
        )
    if as_json:
        data = {
            "perplexity": found.value,
            "error": found.error,
            "num_tokens": found.num_tokens,
            "negative_log_likelihood": found.negative_log_likelihood,
            "context": context,
            "stride": stride or context // 2,
        }
        output.stream(json.dumps(data) + "\n")
    else:
        output.stream(f"perplexity {found.value:.4f} ± {found.error:.4f} over {found.num_tokens} tokens\n")


@app.command("choices")
def choices(  # noqa: PLR0913, PLR0917  # typer passes them by name
    model: _Model,
    files: Annotated[list[Path], typer.Argument(help="Lines of JSON, or CSV as MMLU and C-Eval have it.")],
    scoring: Annotated[
        Literal["letter", "text", "text_per_byte"], typer.Option(help="What the likelihood is taken of.")
    ] = "letter",
    examples: Annotated[Path | None, typer.Option(help="Questions put in front with their answers.")] = None,
    num_examples: Annotated[int, typer.Option(help="How many of them.", min=0)] = 5,
    num_samples: Annotated[int | None, typer.Option(help="Most questions of a file.", min=1)] = None,
    output_csv: Annotated[Path | None, typer.Option(help="Write every answer to this file.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Most tokens of a question.", min=1)] = None,
    dtype: _DType = "auto",
    quantization: _Quantization = None,
    as_json: _Json = False,
) -> None:
    """Questions with several answers: the likeliest is the model's."""
    asked = [q for file in files for q in evaluation.questions(file)[:num_samples]]
    shots = evaluation.questions(examples)[:num_examples] if examples else []
    engine = LLM(model, dtype=dtype, quantization=quantization, max_model_len=max_model_len)
    with _bar("questions") as bar:
        right = 0

        def on_question(answered: evaluation.Answered) -> None:
            nonlocal right
            right += answered.is_right
            bar.advance(len(asked), f"{right} right")

        answered = evaluation.choose(
            lambda rows: _log_likelihood(engine, rows),
            _tokenizer(engine).encode,
            asked,
            scoring=scoring,
            examples=shots,
            on_question=on_question,
        )
    if output_csv is not None:
        _write_csv(output_csv, answered)
    subjects = evaluation.accuracy_by_subject(answered)
    total = sum(right for right, _ in subjects.values())
    if as_json:
        shares = {name: right / count for name, (right, count) in subjects.items()}
        data = {"accuracy": total / len(answered), "num_questions": len(answered), "subjects": shares}
        output.stream(json.dumps(data) + "\n")
        return
    counts = subjects | {"all": (total, len(answered))}
    rows = [(name, f"{right / count:.1%}", f"{right} of {count}") for name, (right, count) in counts.items()]
    output.show_table("accuracy", rows, header=("subject", "right", ""))


def _tokenizer(engine: LLM) -> Tokenizer:
    if engine.tokenizer is None:
        raise errors.ValueMismatchError(
            "the model has no tokenizer", fix="copy tokenizer.json into its folder"
        )
    return engine.tokenizer


def _longest_window(model: str) -> int:
    """512 tokens, or fewer where the model was made for less; the engine adds a token to each window."""
    source = checkpoints.read(hub.place_of(model))
    return min(_WINDOW, models.config_from_json(source.config_json).max_length - 1)


def _log_likelihood(engine: LLM, rows: Sequence[Sequence[int]]) -> list[list[float | None]]:
    """Log-probabilities of the ids of prompts, the first None."""
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, ignore_eos=True)
    found: list[list[float | None]] = []
    prompts = [list(row) for row in rows]
    for output_, row in zip(engine.generate(prompts, params, use_tqdm=False), rows, strict=True):
        entries = output_.prompt_logprobs
        if entries is None:
            raise errors.InfiniError("the engine gave no logprobs of the prompt")
        found.append([None if e is None else e[id].logprob for e, id in zip(entries, row, strict=True)])
    return found


def _write_csv(path: Path, answered: Sequence[evaluation.Answered]) -> None:
    with folders.replacing_file(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["subject", "question", "answer", "chosen", "is_right", "scores"])
        for one in answered:
            q = one.question
            scores = " ".join(f"{s:.4f}" for s in one.scores)
            writer.writerow([q.subject, q.question, q.answer, one.chosen, int(one.is_right), scores])


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ValueMismatchError(
            f"{file} cannot be read", got=str(error), expected="a file with text in UTF-8"
        ) from error


class _bar:  # noqa: N801  # used as a function
    """A bar on a terminal, with a text behind it."""

    def __init__(self, text: str) -> None:
        console = output.console(stderr=True)
        columns: tuple[Any, ...] = (  # Any: columns of several classes
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task(text, total=None, text="")

    def advance(self, total: int, text: str) -> None:
        """One more of so many is done."""
        self._progress.update(self._task, total=total, text=text, advance=1)

    def __enter__(self) -> _bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
