"""Writing a checkpoint: every process its pieces, all into one hidden folder that gets its name at the end.

The processes speak only before and after: while files are written they leave notes in the hidden folder, one
per process, with the length and hash of its part or with what went wrong. The thread of process 0 waits for
all notes, writes the index and renames the folder. So writing can go on beside the steps of a program without
coming between their collectives, and a job that dies leaves a hidden folder that nobody takes for a
checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import operator
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgpack

from infini import io
from infini.core import errors
from infini.io import folders
from infini.parallel.checkpoints import (
    index as index_,
    notes,
    peers,
    reading,
    shares,
)
from infini.parallel.checkpoints.pending import (
    OUTSTANDING,
    CheckpointWriteError as CheckpointWriteError,
    Pending as Pending,
)
from infini.parallel.checkpoints.shares import Share

_SAVING: Final = threading.Lock()  # threads save one after another
_SEEING_S: Final = 10.0  # a network file system shows a folder to other hosts within seconds


def save(
    folder: Path | str,
    tree: Any,
    position: int | Mapping[str, Any],
    *,
    keep: int | None = 3,
    asynchronous: bool = False,
    texts: Mapping[str, str] | None = None,
) -> Pending:  # Any: a pytree of arrays; what msgpack holds
    """Write the arrays of a tree as the checkpoint of a step, then delete older ones that are too many.

    In a job of several processes, call it in every one, with the same tree. Arrays on a mesh are written by
    the processes that hold them, each piece once; of arrays on a single device, and of numbers, those of
    process 0 are written. The folder must be one that all processes see. Checkpoints of later steps are
    deleted: they are of a course that the run has left.

    Args:
        folder: where the checkpoints lie; made when it is not there.
        tree: pytree of arrays, typed keys and numbers.
        position: number of the step; or a table that has it under `step`, with other numbers and words.
        keep: how many of the newest are kept; None for all.
        asynchronous: return as soon as the contents are copied, and write beside the program. The arrays may
            then be donated. A second save waits for the first.
        texts: small files to put beside the arrays, by name.

    Returns:
        The checkpoint on its way; `wait()` gives its folder when it is there. Without `asynchronous` it is.

    Raises:
        CheckpointWriteError: it could not be written, or the one before it could not; whole ones stay.
        CollectiveError: the processes save different trees, or one of them could not begin.
        TypeMismatchError: the tree holds something else than arrays and numbers.
        ValueMismatchError: the position has no step, or holds what msgpack does not.

    Complexity:
        An asynchronous save keeps a copy of what this process writes until it is written.

    Example:
        >>> import tempfile, infini.numpy as inp
        >>> from infini.parallel import checkpoints
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for step in (100, 200):
        ...         pending = checkpoints.save(folder, {"w": inp.ones(3)}, step, asynchronous=True)
        ...     _ = pending.wait()
        ...     checkpoints.latest(folder).step
        200
    """
    with _SAVING:
        return _saved(Path(folder).absolute(), tree, position, keep, asynchronous, texts or {})


def _saved(
    path: Path,
    tree: Any,
    position: int | Mapping[str, Any],
    keep: int | None,
    asynchronous: bool,
    texts: Mapping[str, str],
) -> Pending:  # Any: a pytree of arrays; what msgpack holds
    OUTSTANDING.settle()
    job = peers.find()
    share, problem, facts = None, None, {}
    try:
        facts = _position(position)
        _check(keep, texts)
        share = shares.of(tree, job.index, job.count, is_copied=asynchronous)
    except (errors.InfiniError, MemoryError) as error:
        problem = error
    _agree(job, [f"step {facts.get('step')}", *(share.lines if share else ())], problem)
    assert share is not None
    pending = Pending(path / reading.name_of(facts["step"]), facts["step"], job)
    if job.index == 0:
        files = dict(texts)
        pending.start(lambda: _lead(pending, share, facts, files, keep))
    try:
        written = _shown(job, pending)
    except BaseException:
        pending.give_up()
        raise
    if job.index == 0:
        pending.begin()
    else:
        pending.start(lambda: _follow(share, written))
    OUTSTANDING.put(pending)
    if not asynchronous:
        pending.wait()
    return pending


def _position(position: int | Mapping[str, Any]) -> dict[str, Any]:  # Any: what msgpack holds
    table = dict(position) if isinstance(position, Mapping) else {"step": position}
    try:
        step = operator.index(table["step"])
        msgpack.packb(table | {"step": step})
        if step < 0:
            raise ValueError("a negative step")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise errors.ValueMismatchError(
            "the position of a checkpoint cannot be stored",
            got=f"{position!r} ({type(error).__name__}: {error})",
            expected="a number of steps, or a table of numbers and words with `step` among them",
            fix="convert NumPy's numbers with int() and float(); arrays belong into the tree",
        ) from error
    return table | {"step": step}


def _check(keep: int | None, texts: Mapping[str, str]) -> None:
    if keep is not None and keep < 1:
        raise errors.ValueMismatchError(
            "a save has to keep its own checkpoint",
            got=f"keep={keep}",
            expected="1 or more, or None for all",
            fix="leave it out to keep the newest three",
        )
    for name in texts:
        if Path(name).name != name or name.startswith((".", "part-", "process-")) or name == index_.INDEX:
            raise errors.ValueMismatchError(
                "a text beside a checkpoint cannot have this name",
                got=repr(name),
                expected="the name of a file, and none that checkpoints have themselves",
                fix="use a name such as 'config.toml'",
            )


def _agree(job: peers.Peers, lines: list[str], problem: BaseException | None) -> None:
    """Raise in every process when one of them cannot begin, or when they save different things."""
    digest = hashlib.sha256("\n".join(lines).encode(errors="backslashreplace")).hexdigest()
    words = job.gather([None if problem is None else f"{type(problem).__name__}: {problem}", digest])
    if problem is not None:
        raise problem
    for process, (text, _) in enumerate(words):
        if text is not None:
            raise errors.CollectiveError(
                f"process {process} could not begin a checkpoint",
                got=text,
                expected="a tree that every process can save",
                fix="see to that process; the checkpoints before are whole",
            )
    if len({found for _, found in words}) == 1:
        return
    process = next(i for i, (_, found) in enumerate(words) if found != words[0][1])
    all_lines = job.gather(lines)
    pairs = itertools.zip_longest(all_lines[0], all_lines[process], fillvalue="nothing")
    ours, theirs = next((a, b) for a, b in pairs if a != b)
    raise errors.CollectiveError(
        "the processes of this job save different things",
        got=f"{ours} in process 0, {theirs} in process {process}",
        expected="one tree, in the same placement, after the same step",
        fix="call save with the same arguments in every process",
    )


def _shown(job: peers.Peers, pending: Pending) -> Path:
    """The hidden folder, which process 0 makes and all must see."""
    word: dict[str, str] | None = None
    error: BaseException | None = None
    if job.index == 0:
        try:
            word = {"folder": str(pending.opened.result())}
        except (OSError, errors.InfiniError) as caught:
            error, word = caught, {"problem": str(caught)}
    told: dict[str, str] = job.tell(word)
    if "problem" in told:
        if isinstance(error, errors.InfiniError):
            raise error
        raise pending.failed(0, told["problem"]) from error
    written = Path(told["folder"])
    seen = job.gather(job.index == 0 or notes.appears(written, _SEEING_S))
    if not all(seen):
        raise CheckpointWriteError(
            f"process {seen.index(False)} does not see the folder in which process 0 begins a checkpoint",
            got=str(written),
            expected="a folder on a file system that all processes share",
            fix="name such a folder; checkpoints of several hosts cannot lie on the disk of one",
        )
    return written


def _lead(
    pending: Pending, share: Share, position: Mapping[str, Any], texts: Mapping[str, str], keep: int | None
) -> None:  # Any: what msgpack holds
    """What the thread of process 0 does."""
    with io.replacing_folder(pending.folder, may_replace=("*",)) as written:
        pending.wait_to_begin(written)
        notes.leave(written, 0, share.write(written))
        pending.mark_share_written()
        found = notes.collect(written, share.num_processes, pending.is_given_up)
        for name, text in texts.items():
            (written / name).write_text(text, encoding="utf-8")
        (written / index_.INDEX).write_bytes(index_.pack(share.index(found, position, texts)))
        notes.delete(written, share.num_processes)
    with contextlib.suppress(OSError):  # the checkpoint is there; what is left over goes the next time
        _trim(pending.folder, keep)


def _follow(share: Share, written: Path) -> None:
    """What the threads of the others do."""
    try:
        notes.leave(written, share.process, share.write(written))
    except Exception as error:
        with contextlib.suppress(OSError):
            notes.leave(written, share.process, {"problem": f"{type(error).__name__}: {error}"})
        if not written.exists():
            raise notes.GivenUpError("process 0 has given up") from error
        raise


def _trim(newest: Path, keep: int | None) -> None:
    found = reading.steps(newest.parent)
    if newest not in found:  # somebody has deleted it already
        return
    at = found.index(newest)
    old = [] if keep is None else found[: max(at + 1 - keep, 0)]
    for path in [*old, *found[at + 1 :]]:
        folders.delete(path)
    folders.sweep(newest.parent)
