"""Fetching a repository into the local store: which files, side by side, with checks, whole or not at all.

Files gather in a folder beside the model's, which keeps its name and its parts when a pull is cut off, so the
next one goes on. Only when all are there and right does the folder take the model's name. Files that an
earlier state of the model has unchanged are linked, not fetched.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fnmatch
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from infini.core import errors
from infini.io import folders
from infini.llm.hub import fetching, names, remote, store

if TYPE_CHECKING:
    import httpx

# What models of text are made of; the rest of a repository is pictures, code, and weights in other forms.
_WANTED: Final = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "*.txt",
    "LICENSE*",
    "*.md",
    "*.gguf",
)
_UNWANTED: Final = (store.MANIFEST, "original/*", "onnx/*", "openvino/*", "*mmproj*", ".*", "*/.*")
_USUAL: Final = ("Q4_K_M", "Q4_0", "Q8_0", "Q5_K_M", "F16", "BF16")
_MARGIN: Final = 64 << 20  # bytes of disk that are left free
_CONNECTIONS: Final = 4


class Progress(Protocol):
    """Hears of a pull; its methods are called from several threads."""

    def begin(self, files: Sequence[remote.RemoteFile]) -> None:
        """These files will be fetched."""

    def advance(self, path: str, nbytes: int) -> None:
        """A file has so many bytes more, or fewer when some were thrown away."""

    def end(self, path: str) -> None:
        """A file is here and right."""


class _Silent:
    def begin(self, files: Sequence[remote.RemoteFile]) -> None:
        pass

    def advance(self, path: str, nbytes: int) -> None:
        pass

    def end(self, path: str) -> None:
        pass


def pull(
    name: str,
    *,
    source: remote.Source = "huggingface",
    endpoint: str | None = None,
    token: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    progress: Progress | None = None,
    wait_s: float = 0.5,
) -> Path:
    """Fetch a model into the store.

    Args:
        name: `ORG/MODEL`, with `:VARIANT` for one file of a GGUF repository, with `@REVISION` for one state.
        source: `huggingface` or `modelscope`.
        endpoint: address of a mirror, in place of HF_ENDPOINT or MODELSCOPE_ENDPOINT.
        token: in place of HF_TOKEN or MODELSCOPE_API_TOKEN.
        include: patterns of the files that are wanted, in place of the usual ones.
        exclude: patterns of files that are not.
        progress: hears of it.
        wait_s: pause before the second try of a request.

    Returns:
        The model's folder; the first file of the variant when there is one.

    Raises:
        HubError: the hub cannot be reached, or has no such model.
        CorruptFileError: a file arrives damaged, twice.
        ValueMismatchError: a wrong name, nothing that fits, or too little space.
    """
    parsed = names.parse(name)
    target = store.place(parsed.repository)
    if os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "ON", "YES"):
        raise remote.HubError(
            "HF_HUB_OFFLINE forbids asking the hub",
            got=f"a pull of {name}",
            fix="unset it, or use what is here",
        )
    asked = remote.hub(source, endpoint=endpoint, token=token)
    with asked.client() as client, remote.named_faults(asked):
        found = remote.repository(asked, parsed, client, wait_s=wait_s)
        variant, files = _chosen(parsed, found.files, include, exclude)
        for file in files:
            names.inside(target, file.path)
        listener = progress or _Silent()
        _fetch_all(_Pull(parsed, files, found.commit, asked, client, listener, wait_s), target)
    return target / store.variant_files([file.path for file in files], variant)[0] if variant else target


def _chosen(
    name: names.Name, files: Sequence[remote.RemoteFile], include: Sequence[str], exclude: Sequence[str]
) -> tuple[str | None, list[remote.RemoteFile]]:
    """The variant, when it is one, and the files that are fetched."""
    paths = [file.path for file in files]

    def fits(path: str, patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(path, p) or fnmatch.fnmatchcase(Path(path).name, p) for p in patterns)

    def these(wanted: Callable[[str], bool]) -> list[remote.RemoteFile]:
        found = [file for file in files if wanted(file.path) and not fits(file.path, exclude)]
        if not found:
            raise errors.ValueMismatchError(
                f"{name.repository} has no file that fits",
                got=", ".join(sorted(paths)[:8]) + (" ..." if len(paths) > 8 else ""),
                fix="change --include and --exclude",
            )
        return found

    if include:
        return None, these(lambda path: fits(path, include))
    offered = store.variants(paths)
    has_tensors = any(path.endswith(".safetensors") for path in paths)
    variant = name.variant
    if variant is None and offered and not has_tensors:
        variant = offered[0] if len(offered) == 1 else next((v for v in _USUAL if v in offered), None)
    if variant is None and offered and not has_tensors:
        raise errors.ValueMismatchError(
            f"{name.repository} has several variants and none of the usual ones",
            expected=", ".join(offered),
            fix=f"name one: {name.repository}:{offered[0]}",
        )
    if variant is not None:
        chosen = store.variant_files(paths, variant)
        if not chosen:
            raise errors.ValueMismatchError(
                f"{name.repository} has no variant {variant}",
                expected=", ".join(offered) or "a repository with GGUF files",
            )
        return variant, these(lambda path: path in chosen)
    if not has_tensors and any(path.endswith((".bin", ".pt", ".pth")) for path in paths):
        raise errors.ValueMismatchError(
            f"{name.repository} has its weights as pickles, which are never read",
            got=", ".join(sorted(path for path in paths if path.endswith((".bin", ".pt", ".pth")))[:3]),
            expected="safetensors or GGUF",
            fix="look for a repository of the same model in one of them",
        )
    return None, these(
        lambda path: fits(path, _WANTED) and not fits(path, _UNWANTED) and not path.endswith(".gguf")
    )


@dataclass(frozen=True, slots=True)
class _Pull:
    """What is fetched, from where, and who hears of it."""

    name: names.Name
    files: Sequence[remote.RemoteFile]
    commit: str
    hub: remote.Hub
    client: httpx.Client
    progress: Progress
    wait_s: float


def _fetch_all(pull: _Pull, target: Path) -> None:
    folders.recover(target)
    staging = target.parent / f".{target.name}.{_safe(pull.commit)}.part"
    staging.mkdir(parents=True, exist_ok=True)
    try:
        with folders.locked(staging, wait=False):
            _gather(pull, target, staging)
            _take_place(staging, target)
    except BlockingIOError as error:
        raise errors.ValueMismatchError(
            f"another pull of {pull.name} is at work", got=str(staging), fix="wait for it"
        ) from error


def _gather(pull: _Pull, target: Path, staging: Path) -> None:
    """Fill the folder beside the model's with what the model will have."""
    manifest = store.read_manifest(target)
    known = manifest["files"] if manifest.get("commit") == pull.commit else {}
    # Other variants of the same state stay; of another state nothing does but what is equal.
    kept = {path: row for path, row in known.items() if path not in {file.path for file in pull.files}}
    for path in kept:
        _link(names.inside(target, path), names.inside(staging, path))
    missing = []
    for file in pull.files:
        place, before = names.inside(staging, file.path), names.inside(target, file.path)
        is_known = _row(file) == known.get(file.path)
        if fetching.is_unchanged(file, place):
            continue
        if before.is_file() and (is_known or fetching.is_unchanged(file, before)):
            _link(before, place)
            continue
        missing.append(file)
    _check_space(staging, missing)
    pull.progress.begin(missing)
    _fetch_side_by_side(pull, staging, missing)
    store.write_manifest(
        staging,
        {
            "repository": pull.name.repository,
            "source": pull.hub.source,
            "endpoint": pull.hub.endpoint,
            "commit": pull.commit,
            "pulled_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "files": kept | {file.path: _row(file) for file in pull.files},
        },
    )


class _StoppedError(Exception):
    """Another file failed, or someone interrupted."""


def _fetch_side_by_side(pull: _Pull, staging: Path, files: Sequence[remote.RemoteFile]) -> None:
    stop = threading.Event()

    def get(file: remote.RemoteFile) -> None:
        def on_bytes(nbytes: int) -> None:
            if stop.is_set():
                raise _StoppedError
            pull.progress.advance(file.path, nbytes)

        fetching.fetch(
            file,
            names.inside(staging, file.path),
            pull.client,
            pull.hub,
            pull.name,
            on_bytes=on_bytes,
            wait_s=pull.wait_s,
        )
        pull.progress.end(file.path)

    with concurrent.futures.ThreadPoolExecutor(_CONNECTIONS, "infini-pull") as pool:
        jobs = [pool.submit(get, file) for file in sorted(files, key=lambda file: file.size or 0)]
        try:
            for job in concurrent.futures.as_completed(jobs):
                job.result()
        except BaseException:  # an interrupt as well: what is fetched stays for the next time
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _row(file: remote.RemoteFile) -> dict[str, object]:
    return {"size": file.size, "sha256": file.sha256, "blob": file.blob}


def _safe(commit: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in commit)[:40]


def _link(before: Path, place: Path) -> None:
    """The same file under a second name, or a copy where the file system has no links."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    try:
        os.link(before, place)
    except OSError:
        shutil.copyfile(before, place)


def _check_space(folder: Path, files: Sequence[remote.RemoteFile]) -> None:
    needed = 0
    for file in files:
        part = names.inside(folder, file.path + fetching.PART)
        needed += max(0, (file.size or 0) - (part.stat().st_size if part.is_file() else 0))
    free = shutil.disk_usage(folder).free
    if needed + _MARGIN > free:
        raise errors.ValueMismatchError(
            "there is too little space for the model",
            got=f"{free / 1e9:,.1f} GB free at {folder.parent}",
            expected=f"{(needed + _MARGIN) / 1e9:,.1f} GB",
            fix="make room with `infini models rm`, or set INFINI_MODELS_DIR to another disk",
        )


def _take_place(staging: Path, target: Path) -> None:
    """Give a folder that is whole the model's name; `folders.recover` finishes this after a kill."""
    for part in staging.rglob(f"*{fetching.PART}"):
        part.unlink()
    marked = staging.with_suffix(".ready")
    staging.rename(marked)
    folders.sync(target.parent)
    aside = staging.with_suffix(".old")
    if target.exists():
        folders.delete(aside)
        target.rename(aside)
    marked.rename(target)
    folders.sync(target.parent)
    folders.delete(aside)
    for left in target.parent.glob(f".{target.name}.*.part"):  # of states that are not wanted any more
        with contextlib.suppress(OSError):
            shutil.rmtree(left)
