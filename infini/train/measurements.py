"""The file of measurements: a line of JSON for the start, every step, every evaluation and the end of a run.

A line is readable by others as soon as it is written. A run that goes on from a checkpoint cuts off the lines
written after it, so that no line is there twice and none is lost.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from infini.core import errors


class Measurements:
    """Lines of an open file; without a file they go nowhere."""

    def __init__(self, file: BinaryIO | None) -> None:
        self._file = file

    def write(self, record: Mapping[str, object]) -> None:
        """Append a line."""
        if self._file is not None:
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()

    def sync(self) -> int:
        """Force what was written to disk.

        Returns:
            Length of the file in bytes.
        """
        if self._file is None:
            return 0
        os.fsync(self._file.fileno())
        return self._file.tell()


@contextlib.contextmanager
def writing(path: Path | None, *, keep_bytes: int = 0) -> Iterator[Measurements]:
    """Open a file of measurements.

    Args:
        path: the file; None for none.
        keep_bytes: length of the part to keep of a file that is there.

    Raises:
        ValueMismatchError: the file is shorter than the part to keep.
    """
    if path is None:
        yield Measurements(None)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        size = path.stat().st_size
        if size < keep_bytes:
            raise errors.ValueMismatchError(
                f"{path.name} lacks measurements that were there at the checkpoint",
                got=f"{size} bytes in {path}",
                expected=f"at least {keep_bytes}",
                fix="put the file back, or start another run with another --out",
            )
        file.truncate(keep_bytes)
        file.seek(0, os.SEEK_END)
        yield Measurements(file)
