"""What one process writes of a checkpoint, and the index of what all write."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import infini as inf
from infini.parallel.checkpoints import index as index_, parts, pieces
from infini.parallel.checkpoints.notes import Facts
from infini.parallel.checkpoints.pieces import Leaf

Keyed = dict[tuple[int, int], str]  # name in the file, by number of the leaf and of its piece


@dataclass(frozen=True, slots=True)
class Share:
    """What one process writes.

    Args:
        process: its number.
        leaves: the arrays of the tree.
        keys: for each process, the pieces that it writes with their names in its file.
        entries: the contents of this one's file; emptied when they are written.
    """

    process: int
    leaves: Sequence[Leaf]
    keys: Sequence[Keyed]
    entries: list[parts.Entry]

    @property
    def num_processes(self) -> int:
        """How many processes write."""
        return len(self.keys)

    @property
    def lines(self) -> list[str]:
        """What is saved, the same in every process."""
        return [str(leaf) for leaf in self.leaves]

    def write(self, folder: Path) -> Facts:
        """Write the file of this process, if it has any pieces.

        Returns:
            Its length and SHA-256.

        Raises:
            OSError: the system refused.
        """
        try:
            if not self.entries:
                return {}
            length, sha256 = parts.write(folder / _file_name(self.process), self.entries)
            return {"bytes": length, "sha256": sha256}
        finally:
            self.entries.clear()  # copies of arrays are no longer needed

    def index(
        self, facts: Sequence[Facts], position: Mapping[str, Any], texts: Mapping[str, str]
    ) -> index_.Index:  # Any: what msgpack holds
        """The index, given what the processes say of their files."""
        files: list[index_.StoredFile] = []
        places: list[list[index_.StoredPiece]] = [[] for _ in self.leaves]
        for process, (keys, found) in enumerate(zip(self.keys, facts, strict=True)):
            if not keys:
                continue
            for (i, j), key in keys.items():
                slices = self.leaves[i].pieces[j].slices
                places[i].append(index_.StoredPiece(len(files), key, slices))
            files.append(index_.StoredFile(_file_name(process), found["bytes"], found["sha256"]))
        for name, text in texts.items():
            data = text.encode()
            files.append(index_.StoredFile(name, len(data), hashlib.sha256(data).hexdigest()))
        arrays = {
            leaf.name: index_.StoredArray(leaf.type.dtype, leaf.type.shape, leaf.placement, tuple(found))
            for leaf, found in zip(self.leaves, places, strict=True)
        }
        return index_.Index(position, arrays, tuple(files), inf.__version__)


def of(tree: Any, process: int, num_processes: int, *, is_copied: bool) -> Share:  # Any: a pytree of arrays
    """What a process writes of a tree.

    Args:
        tree: the arrays.
        process: its number.
        num_processes: number of all.
        is_copied: copy the contents now, so that the arrays may change or go.

    Raises:
        InfiniError: as `pieces.leaves_of`.
    """
    leaves = pieces.leaves_of(tree)
    dealt = pieces.deal(leaves, num_processes)
    keys = [_keys(leaves, own) for own in dealt]
    entries = []
    for (i, j), key in keys[process].items():
        leaf, slices = leaves[i], leaves[i].pieces[j].slices
        read = functools.partial(leaf.read, slices)
        if is_copied:
            read = functools.partial(_same, _own(read()))
        entries.append(parts.Entry(key, leaf.type.dtype, pieces.shape_of(slices), read))
    if is_copied:  # nothing is to keep the arrays alive
        leaves = [dataclasses.replace(leaf, read=_gone) for leaf in leaves]
    return Share(process, leaves, keys, entries)


def _keys(leaves: Sequence[Leaf], dealt: Sequence[tuple[int, int]]) -> Keyed:
    """Names in a file, for people; the index has them, so nothing is read from how they look."""
    keys: Keyed = {}
    used = {"", "__metadata__"}  # the format keeps the latter for itself
    for i, j in dealt:
        leaf, slices = leaves[i], leaves[i].pieces[j].slices
        is_whole = slices == pieces.whole(leaf.type.shape)
        key = leaf.name if is_whole else f"{leaf.name}[{','.join(f'{a}:{b}' for a, b in slices)}]"
        while key in used:
            key += "'"
        used.add(key)
        keys[i, j] = key
    return keys


def _own(host: np.ndarray) -> np.ndarray:
    """Contents that nothing else refers to; what came from a device is such a copy already."""
    return host if host.flags.owndata else np.array(host, order="C")


def _gone(slices: pieces.Slices) -> np.ndarray:
    raise AssertionError("the contents were copied before")


def _same(host: np.ndarray) -> np.ndarray:
    return host


def _file_name(process: int) -> str:
    return f"part-{process:05}.safetensors"
