"""Checkpoints of a run: `infini.parallel.checkpoints` with the position in the run, and its configuration.

    checkpoints/step-00000200/{part-00000.safetensors, config.toml, index.msgpack}

Every process of the run takes part, and writes beside the steps. Checkpoints of one `state.safetensors`, as
earlier versions wrote them, are read as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from infini import io
from infini.core import errors
from infini.parallel import checkpoints
from infini.train.step import State

CONFIG: Final = "config.toml"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run stands.

    Args:
        step: steps taken.
        num_windows: windows of text consumed.
        num_timed_steps: steps that `train_s` counts: not the first of each process, which compiles.
        train_s: seconds they took.
        metrics_bytes: length of the file of measurements.
        held_out_before: loss on held-out text before the first step.
        tokens: name of the ids the run sees, see `data.tokens.fingerprint`.
        seed: seed of the run.
    """

    step: int
    num_windows: int
    num_timed_steps: int
    train_s: float
    metrics_bytes: int
    held_out_before: float
    tokens: str
    seed: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    stored: checkpoints.Checkpoint
    position: Position

    @property
    def folder(self) -> Path:
        """Its folder."""
        return self.stored.folder


class Store:
    """The checkpoints of one run. Every process of the run has one and calls its methods with the others.

    Args:
        folder: where they lie; made when the first one is written.
        keep: how many of the newest are kept.
        config: text of the run's configuration, written into each.
        on_skip: told about every checkpoint that cannot be used, and why.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 3,
        config: str = "",
        on_skip: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.folder = folder
        self._keep, self._config, self._on_skip = keep, config, on_skip

    def save(self, state: State, position: Position, *, asynchronous: bool = False) -> checkpoints.Pending:
        """Write a checkpoint, then delete those that are too many.

        Args:
            state: the state after the step.
            position: where the run stands; that of the first process counts.
            asynchronous: return when the state is copied, so that the next step may donate it.

        Returns:
            The checkpoint on its way.

        Raises:
            CheckpointWriteError: it could not be written, or the one before it; whole ones are as they were.
        """
        return checkpoints.save(
            self.folder,
            state,
            asdict(position),
            keep=self._keep,
            asynchronous=asynchronous,
            texts={CONFIG: self._config},
        )

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None when there is none at all.

        Raises:
            CorruptFileError: there are some, and none of them is whole, or the newest is not of a run.
        """
        found = checkpoints.latest(self.folder, on_skip=self._on_skip)
        if found is None:
            return None
        try:
            return Checkpoint(found, Position(**found.position))
        except TypeError as error:
            raise io.CorruptFileError(
                f"{found.folder.name} is no checkpoint of a run",
                got=f"a position of {', '.join(map(repr, found.position))}",
                expected="what `infini train` writes",
                fix="name the folder of a run with --out",
            ) from error

    def load(self, checkpoint: Checkpoint, like: State) -> State:
        """The state of a checkpoint.

        Args:
            checkpoint: which one.
            like: a state of the same structure, arrays or their types; their shardings say where arrays go.

        Raises:
            CorruptFileError: its arrays are not those of such a state.
        """
        try:
            state: Any = checkpoints.load(checkpoint.stored, like)  # Any: a pytree of arrays
        except (errors.ValueMismatchError, errors.TypeMismatchError) as error:
            raise io.CorruptFileError(
                f"the checkpoint is of another model or optimizer: {error.what}",
                got=error.got,
                expected=error.expected,
                fix="use the configuration that the run was started with",
            ) from error
        return state
