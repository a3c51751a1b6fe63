"""Finding a checkpoint that is whole, and making arrays of it: on any mesh, in any number of processes.

Every process reads only what its devices hold. The files are checked once: each process takes its share of
them, and all agree on the result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from infini.core import array as array_, dtypes, errors, ir, sharding as sharding_, tree
from infini.core.formats import Format
from infini.core.mesh import P
from infini.io import CorruptFileError, MissingFileError, folders
from infini.parallel.checkpoints import index as index_, parts, peers, pieces
from infini.parallel.checkpoints.pieces import Slices
from infini.transforms import placement

_NAME: Final = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on disk whose files are what its index says.

    Args:
        folder: its folder.
        index: its arrays and files.
    """

    folder: Path
    index: index_.Index = field(repr=False)

    @property
    def position(self) -> Mapping[str, Any]:  # Any: what msgpack holds
        """What was given to `save`; `step` is one of its entries."""
        return self.index.position

    @property
    def step(self) -> int:
        """The step after which it was written."""
        return int(self.position["step"])


def latest(folder: Path | str, *, on_skip: Callable[[str], None] = lambda text: None) -> Checkpoint | None:
    """The newest checkpoint that is whole. In a job of several processes, call it in every one.

    Args:
        folder: the folder given to `save`.
        on_skip: told about every checkpoint that is damaged, and how.

    Returns:
        The checkpoint; None when there is none at all.

    Raises:
        CorruptFileError: there are some, and none of them is whole.
        CollectiveError: a process does not see what process 0 sees.

    Complexity:
        Reads every file of the checkpoint once, each process its share.
    """
    job, path = peers.find(), Path(folder)
    names: list[str] = job.tell([found.name for found in recovered(path)] if job.index == 0 else [])
    problems: list[str] = []
    for name in reversed(names):
        checkpoint, problem = _opened(job, path / name)
        if checkpoint is not None:
            return checkpoint
        problems.append(f"{name}: {problem}")
        on_skip(f"{name} is passed by: {problem}")
    if problems:
        raise CorruptFileError(
            "no checkpoint of this run is whole",
            got=f"{len(problems)} in {path}, each damaged; {problems[0]}",
            expected="at least one that is",
            fix="copy a whole one there, or start another run in another folder",
        )
    return None


def load(source: Checkpoint | Path | str, like: Any) -> Any:  # Any: pytrees of arrays
    """The arrays of a checkpoint, placed as asked. In a job of several processes, call it in every one.

    Args:
        source: what `latest` gave, or the folder of a checkpoint, or the folder given to `save`, whose newest
            checkpoint is taken.
        like: a tree of `ShapeDtypeStruct`, whose `sharding` says where an array goes; arrays do as well, and
            stand for their type and place. Without a sharding an array is put on the default device.

    Returns:
        A tree of the structure of `like`. How the arrays were split when they were saved does not matter.

    Raises:
        MissingFileError: there is no checkpoint.
        CorruptFileError: it is damaged; the error names the file.
        ValueMismatchError: its arrays have other names, or a sharding does not fit an array.
        TypeMismatchError: an array has another shape or dtype.
        CollectiveError: another process could not read it.

    Example:
        >>> import tempfile, infini as inf, infini.numpy as inp
        >>> from infini.parallel import checkpoints
        >>> from infini.sharding import NamedSharding, P, make_mesh
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = checkpoints.save(folder, {"w": inp.arange(4.0)}, 100).wait()
        ...     place = NamedSharding(make_mesh((1,), ("x",)), P("x"))
        ...     like = {"w": inf.ShapeDtypeStruct((4,), "float32", sharding=place)}
        ...     checkpoints.load(folder, like)["w"].tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    checkpoint = source if isinstance(source, Checkpoint) else _found(Path(source))
    wanted = pieces.named(like)
    stored = checkpoint.index.arrays
    if differing := sorted(wanted.keys() ^ stored.keys()):
        raise errors.ValueMismatchError(
            f"the checkpoint {checkpoint.folder.name} holds another tree",
            got=f"{len(differing)} arrays that only one of them has, such as "
            f"{differing[0] or 'a single array'}, which the {_owner(differing[0] in stored)} has",
            expected=f"the {len(stored)} names in {checkpoint.folder}",
            fix="give a tree of the structure that was saved",
        )
    for name, leaf in wanted.items():
        type_ = _type_of(leaf)
        if (stored[name].shape, stored[name].dtype) != (type_.shape, type_.dtype):
            raise errors.TypeMismatchError(
                f"{name or 'the array'} in the checkpoint {checkpoint.folder.name} has another type",
                got=str(stored[name]),
                expected=str(type_),
                fix="ask for the shape and dtype that were saved, and convert the array afterwards",
            )
    return _agreed(lambda: _loaded(_Reader(checkpoint), like))


def name_of(step: int) -> str:
    """Name of the folder of a checkpoint."""
    return f"step-{step:08}"


def steps(folder: Path) -> list[Path]:
    """Folders with the name of a checkpoint, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def recovered(folder: Path) -> list[Path]:
    """As `steps`, after whole checkpoints that a kill kept from their names have got them."""
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.suffix in {".ready", ".old"} and (found := _NAME.match(path.name, 1)):
                folders.recover(folder / found[0])
    return steps(folder)


def _owner(is_stored: bool) -> str:
    return "checkpoint" if is_stored else "tree"


def _found(path: Path) -> Checkpoint:
    job = peers.find()
    is_one = job.tell(any((path / name).exists() for name in (index_.INDEX, index_.MANIFEST)))
    if not is_one and not _NAME.fullmatch(path.name):
        found = latest(path)
        if found is None:
            raise MissingFileError(
                f"there is no checkpoint in {path}",
                got="no folder step-..." if path.is_dir() else "no such folder",
                expected="a folder that was given to infini.parallel.checkpoints.save",
                fix="name that folder, or start from the beginning",
            )
        return found
    checkpoint, problem = _opened(job, path)
    if checkpoint is None:
        is_missing = problem.endswith("is missing")
        raise (MissingFileError if is_missing else CorruptFileError)(
            f"the checkpoint {path.name} {'lacks a file' if is_missing else 'is damaged'}",
            got=problem,
            expected=f"the files as they were written, in {path}",
            fix="load an earlier checkpoint; infini.parallel.checkpoints.latest finds the newest whole one",
        )
    return checkpoint


def _opened(job: peers.Peers, folder: Path) -> tuple[Checkpoint | None, str]:
    """A checkpoint, or why it is none; the same in every process."""
    problem, index = None, None
    try:
        index = index_.read(folder)
        int(index.position["step"])
    except (KeyError, TypeError, ValueError):
        problem = "its index names no step"
    except index_.DamagedError as error:
        problem = str(error)
    for file in index.files[job.index :: job.count] if index is not None and problem is None else ():
        problem = problem or index_.problem_of(folder, file)
    problems = job.gather(problem)
    found = next((text for text in problems if text is not None), None)
    if found is not None or index is None:
        return None, found or ""
    return Checkpoint(folder, index), ""


def _agreed(make: Callable[[], Any]) -> Any:  # Any: pytrees of arrays
    """What `make` gives; an error in one process is one in all, so that none waits for the others."""
    job = peers.find()
    error: BaseException | None = None
    made = None
    try:
        made = make()
    except Exception as caught:  # noqa: BLE001  # raised below, when the others know
        error = caught
    problems = job.gather(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for process, problem in enumerate(problems):
        if problem is not None:
            raise errors.CollectiveError(
                f"process {process} could not load the checkpoint",
                got=problem,
                fix="see to that process; a checkpoint is loaded by all or by none",
            )
    return made


class _Reader:
    """Parts of the arrays of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._parts: dict[int, parts.Part] = {}

    def read(self, name: str, region: Slices) -> np.ndarray:
        """A part of an array; a view of the file where one piece holds all of it.

        Raises:
            CorruptFileError: the files do not hold all of it.
        """
        array = self._checkpoint.index.arrays[name]
        result = np.empty(pieces.shape_of(region), array.dtype)
        left = result.size
        for piece in array.pieces:
            common = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(region, piece.slices, strict=True)]
            if not all(start < stop for start, stop in common):
                continue
            data = self._piece(array, piece)
            inner = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(common, piece.slices, strict=True))
            if tuple(common) == region:
                return data[inner].reshape(result.shape)
            outer = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(common, region, strict=True))
            result[outer] = data[inner]
            left -= result[outer].size
        if left:
            raise self._damaged(index_.INDEX, f"it names no place for {left} elements of {name}")
        return result

    def _piece(self, array: index_.StoredArray, piece: index_.StoredPiece) -> np.ndarray:
        file = self._checkpoint.index.files[piece.file]
        path = self._checkpoint.folder / file.name
        try:
            if piece.file not in self._parts:
                if path.stat().st_size != file.nbytes:  # mapped memory beyond the end ends the process
                    raise ValueError(f"it has {path.stat().st_size} bytes instead of {file.nbytes}")
                self._parts[piece.file] = parts.Part(path)
            return self._parts[piece.file].array(piece.key, array.dtype, pieces.shape_of(piece.slices))
        except FileNotFoundError as error:
            raise MissingFileError(
                f"{file.name} of the checkpoint {self._checkpoint.folder.name} is missing",
                got=str(self._checkpoint.folder),
                expected=f"{file.name} of {file.nbytes} bytes",
                fix="load an earlier checkpoint",
            ) from error
        except (OSError, ValueError) as error:
            raise self._damaged(file.name, str(error)) from error

    def _damaged(self, name: str, problem: str) -> CorruptFileError:
        return CorruptFileError(
            f"{name} of the checkpoint {self._checkpoint.folder.name} is damaged",
            got=problem,
            expected="the file as it was written",
            fix="load an earlier checkpoint",
        )


def _type_of(leaf: Any) -> ir.ArrayType:  # Any: an array, its type, or a number
    shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
    if shape is None or dtype is None:
        return array_.from_host(leaf).type
    return ir.ArrayType(tuple(shape), dtypes.canonical(dtype))


def _loaded(reader: _Reader, like: Any) -> Any:  # Any: pytrees
    names = iter(pieces.named(like))  # in the order of the leaves
    return tree.map(lambda leaf: _array(reader, next(names), leaf), like)


def _array(reader: _Reader, name: str, leaf: Any) -> array_.Array:  # Any: an array, its type, or a number
    type_, where = _type_of(leaf), getattr(leaf, "sharding", None)
    if isinstance(leaf, array_.Array) and not leaf.committed:
        where = None
    weak = bool(getattr(leaf, "weak_type", type(leaf) in {int, float, complex}))
    if isinstance(where, sharding_.NamedSharding):
        summed = sharding_.NamedSharding(where.mesh, P(*where.spec))
        found = _split(reader, name, type_, summed)
        if where.unreduced:  # a sum was stored; its terms are the sum and zeros
            found = placement.device_put(found, where)
    else:
        host = reader.read(name, pieces.whole(type_.shape))
        device = where.device if isinstance(where, sharding_.SingleDeviceSharding) else None
        found = array_.from_host(host, keep_dtype=True, device=device, weak=False)
    layout = getattr(leaf, "layout", None)
    if layout is not None:
        found = placement.device_put(found, Format(layout, found.sharding))
    return found.with_weak(weak)


def _split(reader: _Reader, name: str, type_: ir.ArrayType, where: sharding_.NamedSharding) -> array_.Array:
    if not where.mesh.local_ranks:  # a mesh of other processes
        return array_.Array(type_, (), where, committed=True)
    read: dict[Slices, np.ndarray] = {}  # devices that hold the same read it once

    def part(index: tuple[slice, ...]) -> np.ndarray:
        slices = tuple((entry.start, entry.stop) for entry in index)
        if slices not in read:
            shape = pieces.shape_of(slices)
            read[slices] = reader.read(name, slices) if all(shape) else np.empty(shape, type_.dtype)
        return read[slices]

    return placement.make_array_from_callback(type_.shape, where, part, type_.dtype)
