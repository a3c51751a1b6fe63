"""A folder of files that is replaced as a whole: a reader sees the old one or the new one, never a mixture.

The files are written to a folder beside the target, forced to disk, and change places with the target in
one call of the system where it has such a call. Elsewhere two renames do it, and what a kill between them
leaves is found by its name: for the target `model` there may be, with a random middle part,

    .model.x.new      being written, or given up
    .model.x.ready    written and on disk
    .model.x.old      the earlier folder, out of the way
    .model.x.trash    being deleted

`recover` puts a `.ready` folder, or else an `.old` one, in the place of a target that is missing; every
writer and every reader begins with it. A writer holds a lock on its folder, which ends with its process, so
leftovers are told from folders in use.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fnmatch
import functools
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

from infini.core import errors, events

try:
    import fcntl
except ImportError:  # Windows has no such locks: leftovers stay until someone deletes them
    fcntl = None  # type: ignore[assignment]  # a module, or none

_SUFFIXES: Final = (".new", ".ready", ".old", ".trash")


@contextlib.contextmanager
def replacing_folder(path: Path | str, *, may_replace: Collection[str]) -> Iterator[Path]:
    """Write a folder; it takes the name `path` when the block ends, and is deleted when the block raises.

    Args:
        path: the folder to create, or to replace when it is there.
        may_replace: names of the files that an existing folder may hold, as patterns such as `*.json`; one
            with others is left alone.

    Yields:
        An empty folder to write files into.

    Raises:
        ValueMismatchError: `path` is a file, or a folder that holds other files.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     with replacing_folder(f"{root}/new", may_replace=["a.txt"]) as folder:
        ...         _ = (folder / "a.txt").write_text("whole")
        ...     (Path(root) / "new" / "a.txt").read_text()
        'whole'
    """
    target = Path(path).resolve()
    recover(target)
    check_replaceable(target, may_replace)
    target.parent.mkdir(parents=True, exist_ok=True)
    delete_leftovers(target)
    written = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".new", dir=target.parent))
    with locked(written):
        try:
            yield written
            _finish(written)
            ready = written.rename(written.with_suffix(".ready"))
            _swap(ready, target)
            sync(target.parent)
        finally:
            for suffix in (".new", ".ready", ".trash"):  # never .old: it may be all there is
                delete(written.with_suffix(suffix))


def recover(path: Path | str) -> Path:
    """Finish a replacement of `path` that was cut off, when there is one.

    Returns:
        The folder to read: `path`, or what was left of it where this process may not rename it.
    """
    target = Path(path).resolve()
    if target.exists() or not target.parent.is_dir():
        return target
    for suffix in (".ready", ".old"):
        for found in sorted(_leftovers(target, suffix), key=_changed, reverse=True):
            with locked(found):  # waits for a writer that is at it
                if target.exists():
                    return target
                if not found.exists():
                    continue
                try:
                    found.rename(target)
                except OSError:
                    return found
            events.emit("folder-recovered", f"{target} was put back: its replacement had been cut off")
            return target
    return target


def delete_leftovers(path: Path | str) -> None:
    """Delete what writers of `path` left when they were killed; folders of writers at work stay."""
    target = Path(path).resolve()
    if fcntl is None or not target.parent.is_dir():
        return
    for suffix in _SUFFIXES if target.exists() else (".new", ".trash"):
        for found in _leftovers(target, suffix):
            with contextlib.suppress(BlockingIOError), locked(found, wait=False):
                delete(found)


def sweep(parent: Path) -> None:
    """Delete what killed writers and deleters left in a folder that holds nothing but folders written so."""
    for found in parent.iterdir():
        if found.name.startswith(".") and found.suffix in (".new", ".trash"):
            with contextlib.suppress(BlockingIOError), locked(found, wait=False):
                delete(found)


def check_replaceable(path: Path | str, may_replace: Collection[str]) -> None:
    """Raise when `path` cannot become a folder of these files, so that hours of work are not done in vain.

    Raises:
        ValueMismatchError: as `replacing_folder`.
    """
    target = Path(path)
    if target.is_dir():
        names = sorted(file.name for file in target.iterdir())
        foreign = [name for name in names if not any(fnmatch.fnmatch(name, own) for own in may_replace)]
        if not foreign:
            return
        got = f"it holds {foreign[0]}" + (f" and {len(foreign) - 1} more" if foreign[1:] else "")
    elif target.exists():
        got = "it is a file"
    else:
        return
    raise errors.ValueMismatchError(
        f"{target} cannot be replaced by a model folder",
        got=got,
        expected="a name that is free, an empty folder, or one with files of an earlier model only",
        fix="choose another output folder",
    )


@contextlib.contextmanager
def replacing_file(path: Path | str) -> Iterator[Path]:
    """Write a file beside `path`; it takes that name, on disk, when the block ends without an error.

    Yields:
        The path to write to.
    """
    target = Path(path).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".new", dir=target.parent)
    os.close(handle)
    written = Path(name)
    try:
        yield written
        written.chmod(0o666 & ~_umask())
        sync(written)
        written.replace(target)
        sync(target.parent)
    finally:
        written.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Force a file or folder to disk; systems that cannot open a folder have no need to."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        with contextlib.suppress(OSError):  # some file systems refuse it for folders
            os.fsync(handle)
    finally:
        os.close(handle)


def _finish(folder: Path) -> None:
    """Usual permissions, since temporary folders and some writers keep others out, and everything on disk."""
    mask = _umask()
    for inner in folder.rglob("*"):
        inner.chmod((0o777 if inner.is_dir() else 0o666) & ~mask)
        sync(inner)
    folder.chmod(0o777 & ~mask)
    sync(folder)


def _swap(ready: Path, target: Path) -> None:
    """Give `ready` the name `target`; a folder that had it ends as `.trash`."""
    if not target.exists():
        ready.rename(target)
        return
    trash = ready.with_suffix(".trash")
    exchange = _exchange()
    if exchange is not None and exchange(ready, target):
        ready.rename(trash)
        return
    aside = ready.with_suffix(".old")
    target.rename(aside)
    try:
        ready.rename(target)
    except BaseException:  # interrupted or not, the name has to mean a folder
        aside.rename(target)
        raise
    aside.rename(trash)


@functools.cache
def _exchange() -> Callable[[Path, Path], bool] | None:
    """A function that lets two folders change names in one step, and says whether it did; None without such a
    call: Linux has renameat2, macOS renamex_np, and not every file system takes part."""
    here, flag = -100, 2  # AT_FDCWD; RENAME_EXCHANGE and RENAME_SWAP have the same number
    if os.name != "posix":
        return None
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform.startswith("linux") and hasattr(library, "renameat2"):
        call = lambda a, b: library.renameat2(here, a, here, b, flag)  # noqa: E731
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        call = lambda a, b: library.renamex_np(a, b, flag)  # noqa: E731
    else:
        return None

    def exchange(first: Path, second: Path) -> bool:
        if call(os.fsencode(first), os.fsencode(second)) == 0:
            return True
        code = ctypes.get_errno()
        if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM):
            return False
        raise OSError(code, os.strerror(code), str(first), None, str(second))

    return exchange


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock on a folder, which follows it when it is renamed and ends with the process.

    Raises:
        BlockingIOError: another has it, and `wait` is false.
    """
    if fcntl is None:
        yield
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # renamed or deleted by its owner, or not ours to read
        yield
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError:  # a network file system without locks
            if not wait:
                raise BlockingIOError(errno.EWOULDBLOCK, "locks are not supported", str(folder)) from None
        yield
    finally:
        os.close(handle)


def _leftovers(target: Path, suffix: str) -> list[Path]:
    """This target's folders with a suffix; a random part has no dot, so those of `model.v2` are others."""
    pattern = re.compile(re.escape(f".{target.name}.") + r"[^.]+" + re.escape(suffix))
    return [path for path in target.parent.iterdir() if pattern.fullmatch(path.name)]


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def delete(folder: Path) -> None:
    """Delete a folder. It loses its name first, so that what a kill leaves of it is not taken for a whole."""
    if not folder.exists():
        return
    trash = folder.with_suffix(".trash") if folder.name.startswith(".") else _trash(folder)
    if folder != trash:
        with contextlib.suppress(OSError):
            folder = folder.rename(trash)
    shutil.rmtree(folder, ignore_errors=True)


def _trash(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{os.getpid()}.trash")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
