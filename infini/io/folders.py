"""A folder of files that is replaced as a whole: a reader sees the old one or the new one, never a mixture.

The files are written to a temporary folder beside the target, forced to disk, and renamed into place.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from infini.core import errors


@contextlib.contextmanager
def replacing_folder(path: Path | str, *, may_replace: Collection[str]) -> Iterator[Path]:
    """Write a folder; it takes the name `path` when the block ends, and is deleted when the block raises.

    Args:
        path: the folder to create, or to replace when it is there.
        may_replace: names of the files that an existing folder may hold; one with others is left alone.

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
    target = Path(path).absolute()
    check_replaceable(target, may_replace)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".new", dir=target.parent))
    try:
        yield temporary
        # Temporary folders and some writers keep others out; a finished folder has the usual permissions.
        mask = _umask()
        for file in temporary.iterdir():
            file.chmod(0o666 & ~mask)
            _sync(file)
        temporary.chmod(0o777 & ~mask)
        _sync(temporary)
        _swap(temporary, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(path: Path | str, may_replace: Collection[str]) -> None:
    """Raise when `path` cannot become a folder of these files, so that hours of work are not done in vain.

    Raises:
        ValueMismatchError: as `replacing_folder`.
    """
    target = Path(path)
    if target.is_dir():
        foreign = sorted({file.name for file in target.iterdir()} - set(may_replace))
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


def _swap(temporary: Path, target: Path) -> None:
    """Rename into place; an old folder steps aside first and comes back when the rename fails."""
    if not target.exists():
        temporary.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    target.rename(aside)  # onto an empty folder, which POSIX allows
    try:
        temporary.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
