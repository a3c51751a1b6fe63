"""The folder that `build` writes: object files, and a manifest in msgpack that names them.

Files are named after their content, so a folder is only ever added to until its manifest is replaced; whoever
reads an old manifest meanwhile finds its files or an error, never others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

import msgpack

import infini
from infini.core import dtypes, errors
from infini.core.ir import ArrayType

NAME: Final = "manifest.msgpack"
_FORMAT: Final = "infini-kernel-1"
_DIGEST_SIZE: Final = 20
Kind: TypeAlias = Literal["cpu", "cuda", "hip"]  # of machine code


@dataclass(frozen=True, slots=True)
class Signature:
    """Types of operands, and of the results they give."""

    operands: tuple[ArrayType, ...]
    results: tuple[ArrayType, ...]

    def __str__(self) -> str:
        operands, results = (", ".join(map(str, part)) for part in (self.operands, self.results))
        return f"({operands}) -> {results}"


@dataclass(frozen=True, slots=True)
class Binary:
    """Machine code of a kernel for one signature and one target.

    Args:
        signature: number of the signature.
        target: as it was asked for, such as `cpu:x86-64-v3`, `cuda:90` or `hip:gfx942`.
        kind: what loads it.
        files: names of its files, by what they are for.
        facts: what else running it needs, see `building`.
    """

    signature: int
    target: str
    kind: Kind
    files: Mapping[str, str]
    facts: Mapping[str, Any]  # Any: what msgpack holds


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is in a folder.

    Args:
        kernel: name of the kernel.
        signatures: types it was built for.
        binaries: machine code.
        digests: hash of every file, by name.
    """

    kernel: str
    signatures: tuple[Signature, ...]
    binaries: tuple[Binary, ...]
    digests: Mapping[str, str]


def digest(content: bytes) -> str:
    """Hexadecimal hash of the content of a file."""
    return hashlib.blake2b(content, digest_size=_DIGEST_SIZE).hexdigest()


def write(folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """Write files, then the manifest that names them, then remove those that only the manifest before
    named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        before = set(read(folder).digests)
    except errors.InfiniError:
        before = set()
    for name, content in files.items():
        _place(folder / name, content)
    _place(folder / NAME, _packed(manifest))
    for name in before - set(files):
        (folder / name).unlink(missing_ok=True)


def read(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        ValueMismatchError: there is none, or another version of infini wrote it.
    """
    try:
        fields = msgpack.unpackb((folder / NAME).read_bytes(), use_list=False)
    except OSError as error:
        raise errors.ValueMismatchError(
            f"{folder} holds no built kernel", got=f"no {NAME}: {error.strerror}", fix="tile.build writes one"
        ) from None
    except (ValueError, msgpack.UnpackException) as error:
        raise _broken(folder, str(error)) from None
    written = (fields.get("format"), fields.get("infini")) if isinstance(fields, dict) else (None, None)
    if written != (_FORMAT, infini.__version__):
        raise errors.ValueMismatchError(
            f"the kernel in {folder} was built by another version of infini",
            got=f"{written[1]} ({written[0]})",
            expected=f"{infini.__version__} ({_FORMAT})",
            fix="build it again with this version",
        )
    try:
        return _unpacked(fields)
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(folder, f"{type(error).__name__}: {error}") from None


def content(folder: Path, manifest: Manifest, name: str) -> bytes:
    """A file that a manifest names.

    Raises:
        ValueMismatchError: it is missing or is another one.
    """
    try:
        found = (folder / name).read_bytes()
    except OSError as error:
        raise _broken(folder, f"{name}: {error.strerror}") from None
    if digest(found) != manifest.digests.get(name):
        raise _broken(folder, f"{name} has changed")
    return found


def _broken(folder: Path, reason: str) -> errors.ValueMismatchError:
    return errors.ValueMismatchError(
        f"the built kernel in {folder} is broken", got=reason, fix="build it again, or copy the whole folder"
    )


def _place(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _packed(manifest: Manifest) -> bytes:
    def types(found: tuple[ArrayType, ...]) -> list[tuple[str, tuple[int, ...]]]:
        return [(t.dtype.name, t.shape) for t in found]

    fields = {
        "format": _FORMAT,
        "infini": infini.__version__,
        "kernel": manifest.kernel,
        "signatures": [(types(s.operands), types(s.results)) for s in manifest.signatures],
        "binaries": [
            {field.name: getattr(binary, field.name) for field in dataclasses.fields(Binary)}
            for binary in manifest.binaries
        ],
        "digests": dict(manifest.digests),
    }
    return bytes(msgpack.packb(fields))


def _unpacked(fields: Mapping[str, Any]) -> Manifest:  # Any: what msgpack holds
    def types(found: tuple[tuple[str, tuple[int, ...]], ...]) -> tuple[ArrayType, ...]:
        return tuple(ArrayType(tuple(shape), dtypes.canonical(name)) for name, shape in found)

    names = list(fields["digests"])
    if any(Path(name).name != name or name == NAME for name in names):
        raise ValueError("files of other folders")
    kinds = {binary["kind"] for binary in fields["binaries"]}
    if not kinds <= set(get_args(Kind)):
        raise ValueError(f"code of kind {', '.join(sorted(kinds - set(get_args(Kind))))}")
    return Manifest(
        str(fields["kernel"]),
        tuple(Signature(types(operands), types(results)) for operands, results in fields["signatures"]),
        tuple(Binary(**binary) for binary in fields["binaries"]),
        dict(fields["digests"]),
    )
