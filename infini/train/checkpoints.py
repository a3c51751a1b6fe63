"""Checkpoints of a run: folders that appear whole or not at all, and are checked before they are used.

    checkpoints/step-00000200/{state.safetensors, config.toml, manifest.json}

The manifest holds the position in the run and the SHA-256 of the other files. A folder without a manifest, or
whose files are not what it says, is passed by. Nothing is unpickled: the state's structure is that of a fresh
one, and its arrays have the names of their places in it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import infini as inf
import infini.numpy as inp
from infini import io, tree, tree_util
from infini.core import errors
from infini.io import folders
from infini.train.step import State

STATE: Final = "state.safetensors"
CONFIG: Final = "config.toml"
MANIFEST: Final = "manifest.json"
_FORMAT: Final = 1
_NAME: Final = re.compile(r"step-(\d{8,})")


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

    folder: Path
    position: Position


class Store:
    """The checkpoints of one run.

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

    def save(self, state: State, position: Position) -> Path:
        """Write a checkpoint, then delete those that are too many.

        Raises:
            ValueMismatchError: it could not be written; the earlier ones are as they were.
        """
        target = self.folder / f"step-{position.step:08}"
        try:
            with io.replacing_folder(target, may_replace=(STATE, CONFIG, MANIFEST)) as written:
                io.write_tensors(written / STATE, _named(state))
                (written / CONFIG).write_text(self._config, encoding="utf-8")
                manifest = {
                    "format": _FORMAT,
                    "infini": inf.__version__,
                    "position": asdict(position),
                    "files": {name: _facts(written / name) for name in (STATE, CONFIG)},
                }
                (written / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise errors.ValueMismatchError(
                f"the checkpoint of step {position.step} could not be written",
                got=str(error),
                expected=f"a folder with enough space at {self.folder}",
                fix="make room, then go on with --resume: the checkpoints before it are whole",
            ) from error
        found = self._folders()
        at = found.index(target)  # any after it are of a course that the run has left
        for old in [*found[: max(at + 1 - self._keep, 0)], *found[at + 1 :]]:
            folders.delete(old)
        folders.sweep(self.folder)
        return target

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None when there is none at all.

        Raises:
            CorruptFileError: there are some, and none of them is whole.
        """
        found = self._folders()
        for folder in reversed(found):
            checkpoint, problem = _read(folder)
            if checkpoint is not None:
                return checkpoint
            self._on_skip(f"{folder.name} is passed by: {problem}")
        if found:
            raise io.CorruptFileError(
                "no checkpoint of this run is whole",
                got=f"{len(found)} in {self.folder}, each damaged",
                expected="at least one that is",
                fix="start another run with another --out, or delete this one's folder",
            )
        return None

    def load(self, checkpoint: Checkpoint, like: State) -> State:
        """The state of a checkpoint.

        Args:
            checkpoint: which one.
            like: a state of the same structure, arrays or their shapes and dtypes.

        Raises:
            CorruptFileError: its arrays are not those of such a state.
        """
        tensors = io.read_tensors(checkpoint.folder / STATE)
        wanted = _named(like)
        if differing := sorted(wanted.keys() ^ tensors.keys()):
            raise io.CorruptFileError(
                f"the checkpoint {checkpoint.folder.name} is of another model or optimizer",
                got=f"{len(differing)} arrays that only one of them has, such as {differing[0]}",
                fix="use the configuration that the run was started with",
            )

        def read(
            path: tuple[Any, ...], leaf: Any
        ) -> inf.Array:  # Any: keys of the tree; an array or its type
            name = _name(path)
            found = tensors[name]
            if found.shape != tuple(leaf.shape) or found.dtype != leaf.dtype:
                raise io.CorruptFileError(
                    f"{name} in the checkpoint {checkpoint.folder.name} has another type",
                    got=f"{found.dtype}{list(found.shape)}",
                    expected=f"{leaf.dtype}{list(leaf.shape)}",
                    fix="use the configuration that the run was started with",
                )
            return inp.asarray(found, dtype=found.dtype)

        return tree.map_with_path(read, like)

    def _folders(self) -> list[Path]:
        """Folders with the name of a checkpoint, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _named(state: State) -> dict[str, Any]:  # Any: arrays, or their shapes and dtypes
    """Leaves by the names of their places, such as `params/layers/0/mlp/up_proj`."""
    return {_name(path): leaf for path, leaf in tree.flatten_with_path(state)[0]}


def _name(path: tuple[Any, ...]) -> str:  # Any: keys of a tree
    return tree_util.keystr(path, simple=True, separator="/")


def _facts(file: Path) -> dict[str, Any]:  # Any: JSON
    with file.open("rb") as handle:
        return {
            "bytes": file.stat().st_size,
            "sha256": hashlib.file_digest(handle, "sha256").hexdigest(),
        }


def _read(folder: Path) -> tuple[Checkpoint | None, str]:
    """A checkpoint, or why it is none."""
    try:
        manifest: Mapping[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))  # Any: JSON
        if manifest["format"] != _FORMAT:
            return None, f"it has the format {manifest['format']}, and this version reads {_FORMAT}"
        for name, facts in manifest["files"].items():
            if _facts(folder / name) != facts:
                return None, f"{name} is damaged"
        return Checkpoint(folder, Position(**manifest["position"])), ""
    except FileNotFoundError as error:
        return None, f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return None, f"{MANIFEST} is damaged ({error})"
