"""A whole run from its configuration: text, tokenizer, training, model folder, all in one folder that can be
resumed.

    run/config.toml        the effective configuration
    run/metrics.jsonl      a line for every step
    run/checkpoints/       the newest checkpoints
    run/model/             the model in Hugging Face's layout, when the run has ended or was interrupted
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from infini import io
from infini.core import errors
from infini.data import tokenizer as tokenizer_, tokens as tokens_
from infini.io import hugging_face as files_, tensors
from infini.train import (
    checkpoints as checkpoints_,
    configuration as configuration_,
    gpt,
    hugging_face,
    model_files,
    options,
    settings as settings_,
    trainer,
)
from infini.train.configuration import Configuration


@dataclass(frozen=True, slots=True)
class Places:
    """Where a run keeps what it writes; without checkpoints it cannot be resumed.

    Args:
        model: the model folder.
        metrics: the file of measurements.
        config: the effective configuration.
        checkpoints: folder of checkpoints.
    """

    model: Path
    metrics: Path
    config: Path | None = None
    checkpoints: Path | None = None

    @classmethod
    def of_run(cls, folder: Path) -> Places:
        """All in one folder."""
        return cls(folder / "model", folder / "metrics.jsonl", folder / "config.toml", folder / "checkpoints")

    @classmethod
    def of_model(cls, folder: Path) -> Places:
        """A model folder, and the measurements beside it."""
        return cls(folder, folder.with_name(f"{folder.name}.metrics.jsonl"))


@dataclass(frozen=True, slots=True)
class Listener:
    """Who wants to know what a run does.

    Args:
        on_text: reading and tokenising: what is done, bytes so far, bytes in all.
        on_data: the text is ready.
        on_step: a step was taken.
        on_note: something worth a sentence.
    """

    on_text: tokens_.Progress = lambda stage, done, total: None
    on_data: Callable[[tokens_.TokenizedCorpus], None] = lambda data: None
    on_step: Callable[[trainer.StepReport], None] = lambda report: None
    on_note: Callable[[str], None] = lambda text: None


@dataclass(frozen=True, slots=True)
class Result:
    """A trained model and how its training went."""

    model: model_files.Model
    outcome: trainer.Outcome
    places: Places


SILENT = Listener()


def resume_configuration(
    folder: Path, config: Path | None, assignments: Sequence[str]
) -> tuple[Configuration, list[str]]:
    """The configuration to go on with in a run's folder, and sentences about what is other than before.

    Args:
        folder: the run's folder.
        config: a configuration to use instead of the run's own.
        assignments: changes to it, as for `options.override`.

    Raises:
        ValueMismatchError: the folder holds no run, or what a run is has changed.
    """
    own = Places.of_run(folder).config
    assert own is not None
    if not own.is_file():
        raise errors.ValueMismatchError(
            f"there is no run to resume in {folder}",
            got="no config.toml" if folder.is_dir() else "no such folder",
            expected="the folder of a run that was started with --out",
            fix="name it with --out, or start without --resume",
        )
    before = configuration_.read(own)
    after = options.override(before if config is None else configuration_.read(config), assignments)
    after = _with_absolute_paths(after) if config is None else resolved(after)
    return after, configuration_.check_resume(before, after)


def resolved(configuration: Configuration) -> Configuration:
    """With what depends on the moment made plain, so that it means the same later and elsewhere: absolute
    paths, and the sizes of the model that the run starts from.

    Raises:
        InfiniError: there is no such model.
    """
    configuration = _with_absolute_paths(configuration)
    folder = configuration.model.start_from
    if folder is None:
        return configuration
    config = hugging_face.from_json(files_.read_json(Path(folder) / files_.CONFIG))
    return dataclasses.replace(configuration, model=configuration.model.with_sizes(config))


def check_new(folder: Path) -> None:
    """Refuse a folder that a new run would spoil.

    Raises:
        ValueMismatchError: it holds a run, or something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    is_run = Places.of_run(folder).config
    if is_run is not None and is_run.is_file():
        raise errors.ValueMismatchError(
            f"{folder} already holds a run",
            got=f"{is_run}",
            expected="a new folder",
            fix="go on with it by --resume, or choose another --out",
        )
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else [folder.name]
    raise errors.ValueMismatchError(
        f"{folder} cannot become the folder of a run",
        got="it is a file" if folder.is_file() else f"it holds {names[0]}",
        expected="a new or empty folder",
        fix="choose another --out",
    )


def run(
    configuration: Configuration,
    places: Places,
    *,
    is_resumed: bool = False,
    listener: Listener = SILENT,
) -> Result:
    """Read text, train a tokenizer and a model on it, and write the model folder.

    Args:
        configuration: all options.
        places: where to keep what is written.
        is_resumed: go on from the newest checkpoint.
        listener: who wants to know.

    Returns:
        The model and its measurements; after Ctrl-C, those until then.

    Raises:
        InfiniError: options do not go together, there is no text, a folder holds other files, the loss is not
            finite, a checkpoint is damaged ...
    """
    if not is_resumed:
        configuration = resolved(configuration)
    settings = configuration.settings()
    _check(configuration, settings, places)
    team = trainer.find_team(settings)
    if not team.is_first:
        team.agree(0.0)  # what the first process has tokenised, the others find
    data = _data(configuration, listener)
    if team.is_first:
        team.agree(0.0)
    config = configuration.model.to_gpt(_vocab_size(configuration, data.tokenizer))
    listener.on_data(data)
    text = options.to_toml(configuration)
    if places.config is not None and team.is_first:
        with io.replacing_file(places.config) as written:
            written.write_text(text, encoding="utf-8")
    store = None
    if places.checkpoints is not None:
        store = checkpoints_.Store(
            places.checkpoints,
            keep=configuration.run.keep_checkpoints,
            config=text,
            on_skip=listener.on_note,
        )
    outcome = trainer.train(
        config,
        settings,
        data.train,
        data.held_out,
        on_step=listener.on_step,
        metrics_file=places.metrics,
        checkpoints=store,
        is_resumed=is_resumed,
        params=_starting_model(configuration),
        tokens_name=data.manifest.tokens,
    )
    model = model_files.Model(config, outcome.params, data.tokenizer)
    if team.is_first:
        model_files.save(places.model, model, dtype=configuration.precision.saved)
    return Result(model, outcome, places)


def _check(configuration: Configuration, settings: settings_.Settings, places: Places) -> None:
    """Refuse what would only fail after hours."""
    config = configuration.model.to_gpt()
    settings_.check(config, settings)
    hugging_face.to_json(config)
    if places.checkpoints is None:
        io.check_replaceable(places.model, files_.FILES)


def _with_absolute_paths(configuration: Configuration) -> Configuration:
    model, data = configuration.model, configuration.data
    return dataclasses.replace(
        configuration,
        model=dataclasses.replace(model, start_from=_absolute(model.start_from)),
        data=dataclasses.replace(
            data,
            paths=tuple(str(_absolute(path)) for path in data.paths),
            tokenizer=_absolute(data.tokenizer),
            cache=_absolute(data.cache),
        ),
    )


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())


def _starting_model(configuration: Configuration) -> Callable[[], gpt.Params] | None:
    folder = configuration.model.start_from
    return None if folder is None else lambda: model_files.load(folder, dtype="float32").params


def _data(configuration: Configuration, listener: Listener) -> tokens_.TokenizedCorpus:
    options_ = configuration.data
    place = options_.tokenizer or configuration.model.start_from
    return tokens_.prepare(
        options_.paths,
        vocab_size=configuration.model.vocab_size,
        tokenizer=None if place is None else model_files.load_tokenizer(place),
        held_out_share=options_.held_out_share,
        field=options_.text_field,
        invalid=options_.invalid_text,
        max_bytes=options_.max_bytes,
        tokenizer_bytes=options_.tokenizer_bytes,
        cache=options_.cache,
        on_progress=listener.on_text,
    )


def _vocab_size(configuration: Configuration, tokenizer: tokenizer_.Tokenizer) -> int:
    """Ids of the model: those of the tokenizer, of which a small text may give fewer than asked for; a model
    that the run starts from keeps its own number, which may be larger.
    """
    size = configuration.model.vocab_size
    if configuration.model.start_from is None:
        return tokenizer.vocab_size
    if tokenizer.vocab_size > size:
        raise tensors.CorruptFileError(
            "the tokenizer has more tokens than the model knows",
            got=f"{tokenizer.vocab_size} tokens",
            expected=f"at most {size}",
            fix="use the tokenizer of model.start_from: leave data.tokenizer out",
        )
    return size
