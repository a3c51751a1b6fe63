"""Our plain-function modules on JAX: the same source text with its imports changed.

`load("train.gpt")` gives `infini/train/gpt.py` with `infini` replaced by `jax` in its import lines, as the
module `infini_on_jax.train.gpt`. The parity tests and the benchmarks compare the two. Such a module may
import only names that JAX has, other modules of the folders in `PORTABLE`, and what `STAND_INS` has.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

PACKAGE: Final = "infini_on_jax"
# Folders whose modules are written against names that JAX has.
PORTABLE: Final = ("optim", "train")
# Names of ours that JAX lacks, and the portable modules that write them out.
STAND_INS: Final = {"expert_layer": "train.grouped"}
_ROOT: Final = Path(__file__).resolve().parents[1]


def load(name: str) -> ModuleType:
    """The module `infini.<name>` on JAX.

    Args:
        name: dotted name below `infini`, such as `train.gpt` or the package `optim`.

    Raises:
        ModuleNotFoundError: there is no such module, or JAX is not installed.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    return importlib.import_module(f"{PACKAGE}.{name}")


def rewritten(source: str) -> str:
    """Source text with the imports of infini turned into those of JAX; lines keep their numbers."""
    for name, module in STAND_INS.items():
        ours, theirs = f"from infini.lax import {name}", f"from {PACKAGE}.{module} import {name}"
        source = re.sub(rf"^{re.escape(ours)}$", theirs, source, flags=re.MULTILINE)
    portable = "|".join(PORTABLE)
    source = re.sub(
        rf"^(from|import) infini\.({portable})\b", rf"\1 {PACKAGE}.\2", source, flags=re.MULTILINE
    )
    source = re.sub(r"^from infini import ([\w, ]+)$", _split_names, source, flags=re.MULTILINE)
    # Our errors are ours on either side.
    return re.sub(r"^(from|import) infini\b(?!\.core\b)", r"\1 jax", source, flags=re.MULTILINE)


def _split_names(line: re.Match[str]) -> str:
    """One import line as two on one line: what JAX has, and what is ours."""
    names = line[1].split(", ")
    ours = [name for name in names if name in PORTABLE]
    theirs = [name for name in names if name not in PORTABLE]
    parts = (("jax", theirs), (PACKAGE, ours))
    return "; ".join(f"from {package} import {', '.join(found)}" for package, found in parts if found)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds `infini_on_jax.x` where `infini.x` is."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] != PACKAGE:
            return None
        place = _ROOT.joinpath(*fullname.split(".")[1:])
        is_package = place.is_dir()
        file = place / "__init__.py" if is_package else place.with_suffix(".py")
        if not file.is_file():
            return None
        return importlib.util.spec_from_file_location(
            fullname,
            file,
            loader=_Loader(fullname, str(file)),
            submodule_search_locations=[] if is_package else None,
        )


class _Loader(importlib.machinery.SourceFileLoader):
    """Reads a file as JAX's; the root package is left empty, and no byte code is cached."""

    def get_code(self, fullname: str):  # noqa: ANN202  # as SourceLoader's
        text = "" if fullname == PACKAGE else rewritten(Path(self.path).read_text(encoding="utf-8"))
        return compile(text, self.path, "exec")
