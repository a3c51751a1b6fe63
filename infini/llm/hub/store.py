"""Models on this machine: those that were pulled, and those in the cache of Hugging Face's own tools.

A pulled model is a folder `ORG/MODEL` under `root()` with a file `infini.json` that says where it came from.
The folder has its name only when it is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from infini.core import config, errors
from infini.io import folders, tensors
from infini.llm.hub import names, remote

MANIFEST: Final = "infini.json"
Where = Literal["store", "huggingface"]


@dataclass(frozen=True, slots=True)
class Model:
    """A model on this machine.

    Args:
        name: `ORG/MODEL`.
        path: its folder.
        where: the store, or Hugging Face's cache.
        nbytes: of its files.
        commit: which state of the repository it is.
        files: their names.
        changed: when it was written, in seconds since 1970.
    """

    name: str
    path: Path
    where: Where
    nbytes: int
    commit: str
    files: tuple[str, ...]
    changed: float

    @property
    def kind(self) -> str:
        """`gguf` or `safetensors`, and `other` for what has no weights."""
        for ending in ("safetensors", "gguf"):
            if any(file.endswith(f".{ending}") for file in self.files):
                return ending
        return "other"


def root() -> Path:
    """The folder of pulled models: the knob `models_dir`, or `infini/models` in the user's data folder."""
    stated = config.get("models_dir")
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(stated or f"{base}/infini/models").expanduser()


def place(repository: str) -> Path:
    """The folder of a repository in the store; it may not be there.

    Raises:
        ValueMismatchError: the name is none.
    """
    parsed = names.parse(repository)
    return names.inside(root(), parsed.repository)


def models() -> list[Model]:
    """All models that are here, by name; one that is in both places is there twice."""
    return sorted([*_stored(), *_cached(os.environ)], key=lambda model: (model.name.lower(), model.where))


def find(name: str) -> Path | None:
    """Where a model is: the path that was given, a model of the store, or one of Hugging Face's cache.

    Args:
        name: a path, or `ORG/MODEL`; `ORG/MODEL:VARIANT` for a GGUF file.

    Returns:
        A folder, or the first GGUF file of a variant; None when it is not here.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    try:
        parsed = names.parse(name)
    except errors.ValueMismatchError:
        return None
    for model in models():
        if model.name == parsed.repository and parsed.revision in (None, model.commit):
            if parsed.variant is None:
                return _only_gguf(model) or model.path
            files = variant_files(model.files, parsed.variant)
            if files:
                return model.path / files[0]
    return None


def place_of(model: Path | str) -> Path:
    """As `find`, for what has to be here.

    Raises:
        MissingFileError: it is not.
    """
    found = find(str(model))
    if found is not None:
        return found
    text = str(model)
    try:
        names.parse(text)
        is_name = "/" in text and not text.endswith(".gguf")
    except errors.ValueMismatchError:
        is_name = False
    raise tensors.MissingFileError(
        f"there is no model {text}",
        got="neither a path nor a model that was pulled" if is_name else "no such file or folder",
        expected="a model folder in Hugging Face's layout, a GGUF file, or the name of a pulled model",
        fix=f"infini pull {text}" if is_name else "`infini models list` shows the models that are here",
    )


def remove(name: str) -> Model:
    """Delete a pulled model, or one variant of it.

    Raises:
        MissingFileError: it is not in the store.
    """
    parsed = names.parse(name)
    model = next((model for model in _stored() if model.name == parsed.repository), None)
    if model is None:
        cached = any(model.name == parsed.repository for model in _cached(os.environ))
        raise tensors.MissingFileError(
            f"{parsed.repository} is not in the store",
            got="it is in Hugging Face's cache" if cached else f"nothing of that name in {root()}",
            fix="delete it there with `hf cache rm`"
            if cached
            else "`infini models list` shows what is there",
        )
    if parsed.variant is not None:
        files = variant_files(model.files, parsed.variant)
        if not files:
            raise tensors.MissingFileError(
                f"{parsed.repository} has no variant {parsed.variant}",
                expected=", ".join(variants(model.files)) or "a repository with GGUF files",
            )
        if any(file.endswith(".gguf") and file not in files for file in model.files):
            manifest = read_manifest(model.path)
            kept = {path: row for path, row in manifest["files"].items() if path not in files}
            write_manifest(model.path, manifest | {"files": kept})
            for file in files:
                names.inside(model.path, file).unlink(missing_ok=True)
            return model
    folders.delete(model.path)
    with contextlib.suppress(OSError):  # the organisation's folder, when it is empty now
        model.path.parent.rmdir()
    return model


# --- variants ---------------------------------------------------------------------------------


def variant_of(path: str) -> str | None:
    """The variant that a GGUF file's name ends with, such as `Q4_K_M`; None for other files."""
    if not path.endswith(".gguf"):
        return None
    stem = Path(path).stem
    head, _, tail = stem.rpartition("-of-")
    if tail.isdigit() and len(tail) == 5 and head[-6:-5] == "-":
        stem = head[:-6]
    parts = stem.replace(".", "-").split("-")
    for start in (-2, -1):  # UD-Q4_K_XL has two parts
        if parts[start:][0].upper() in ("UD",) and len(parts) >= 2:
            return "-".join(parts[start:])
    return parts[-1]


def variants(files: tuple[str, ...] | list[str]) -> list[str]:
    """The variants of a repository's GGUF files."""
    found = dict.fromkeys(
        variant
        for file in sorted(files)
        if "mmproj" not in file and (variant := variant_of(file)) is not None
    )
    return list(found)


def variant_files(files: tuple[str, ...] | list[str], variant: str) -> list[str]:
    """The GGUF files of a variant, in order; letters may be of either case."""
    return sorted(
        file
        for file in files
        if "mmproj" not in file and (own := variant_of(file)) is not None and own.lower() == variant.lower()
    )


def _only_gguf(model: Model) -> Path | None:
    """The first GGUF file of a model that has one variant and no other weights."""
    if model.kind == "gguf" and len(variants(model.files)) == 1:
        return model.path / variant_files(model.files, variants(model.files)[0])[0]
    return None


# --- the store --------------------------------------------------------------------------------


def read_manifest(folder: Path) -> dict[str, Any]:  # Any: JSON
    """What `infini.json` of a model says; empty files when there is none or it is damaged."""
    try:
        data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"files": {}}
    return data if isinstance(data, dict) and isinstance(data.get("files"), dict) else {"files": {}}


def write_manifest(folder: Path, data: Mapping[str, Any]) -> None:  # Any: JSON
    """Write `infini.json` of a model."""
    with folders.replacing_file(folder / MANIFEST) as file:
        file.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _stored() -> Iterator[Model]:
    base = root()
    for manifest in sorted([*base.glob(f"*/{MANIFEST}"), *base.glob(f"*/*/{MANIFEST}")]):
        folder = manifest.parent
        if folder.name.startswith("."):
            continue
        data = read_manifest(folder)
        found = [(path, folder / path) for path in sorted(data["files"])]
        sizes = [_size(file) for _, file in found]
        yield Model(
            folder.relative_to(base).as_posix(),
            folder,
            "store",
            sum(sizes),
            str(data.get("commit", "")),
            tuple(path for path, _ in found),
            manifest.stat().st_mtime,
        )


def _cached(environment: Mapping[str, str]) -> Iterator[Model]:
    """Models that Hugging Face's tools have fetched, at the commit that `main` names, or the newest."""
    stated = environment.get("HF_HUB_CACHE")
    base = Path(stated).expanduser() if stated else remote.home(environment) / "hub"
    for folder in sorted(base.glob("models--*")):
        name = folder.name.removeprefix("models--").replace("--", "/")
        snapshots = sorted((folder / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime)
        if not snapshots:
            continue
        with contextlib.suppress(OSError):
            main = folder / "snapshots" / (folder / "refs" / "main").read_text(encoding="utf-8").strip()
            if main.is_dir():
                snapshots.append(main)
        chosen = snapshots[-1]
        files = sorted(path for path in chosen.rglob("*") if path.is_file())
        if any(path.suffix in (".safetensors", ".gguf") for path in files):
            yield Model(
                name,
                chosen,
                "huggingface",
                sum(map(_size, files)),
                chosen.name,
                tuple(path.relative_to(chosen).as_posix() for path in files),
                chosen.stat().st_mtime,
            )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
