"""The layering table of `tools/layers.py` holds, and modules load without cycles."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import layers


@pytest.fixture(scope="module")
def found() -> list[layers.Import]:
    return layers.imports(layers.modules())


def test_every_folder_stands_in_a_level() -> None:
    assert layers.unknown_folders(layers.modules()) == []


def test_folders_import_from_lower_levels_only(found: list[layers.Import]) -> None:
    assert layers.broken_layers(found) == []


def test_own_modules_are_imported_at_the_top_of_a_file(found: list[layers.Import]) -> None:
    assert layers.lazy_imports(found) == []


def test_modules_load_without_cycles(found: list[layers.Import]) -> None:
    assert layers.cycles(layers.modules(), found) == []


def test_allowances_are_in_use(found: list[layers.Import]) -> None:
    assert layers.unused_allowances(found) == []


def _tree(root: Path, **files: str) -> dict[str, Path]:
    for name, text in files.items():
        path = root / "infini" / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return layers.modules(root)


def test_an_import_from_above_is_found(tmp_path: Path) -> None:
    files = _tree(tmp_path, core__ir="from infini.lax import view\n", lax__view="")
    assert layers.broken_layers(layers.imports(files)) == [
        "infini.core.ir:1 imports infini.lax.view: L0 may not import L1 here"
    ]


def test_folders_of_one_level_do_not_import_each_other(tmp_path: Path) -> None:
    files = _tree(tmp_path, tile__kernel="import infini.transforms.jit\n", transforms__jit="")
    assert len(layers.broken_layers(layers.imports(files))) == 1


def test_an_ordered_level_allows_only_folders_written_before(tmp_path: Path) -> None:
    files = _tree(
        tmp_path, nn__linear="from infini.random import bits", random__bits="from infini.nn import linear"
    )
    assert layers.broken_layers(layers.imports(files)) == [
        "infini.random.bits:1 imports infini.nn.linear: L5 may not import L5 here"
    ]


def test_a_cycle_is_found(tmp_path: Path) -> None:
    files = _tree(
        tmp_path,
        core__a="from infini.core import b",
        core__b="from infini.core import c",
        core__c="import infini.core.a",
    )
    assert layers.cycles(files, layers.imports(files)) == [
        ["infini.core.a", "infini.core.b", "infini.core.c"]
    ]


def test_imports_for_types_and_inside_functions_make_no_cycle(tmp_path: Path) -> None:
    late = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from infini.core import a
def f():
    import infini.core.a
"""
    files = _tree(tmp_path, core__a="from infini.core import b", core__b=late)
    found = layers.imports(files)
    assert layers.cycles(files, found) == []
    assert len(layers.lazy_imports(found)) == 1


def test_relative_imports_are_resolved(tmp_path: Path) -> None:
    files = _tree(tmp_path, core__a="from . import b\nfrom ..lax.view import x", core__b="", lax__view="")
    assert [item.imported for item in layers.imports(files)] == ["infini.core.b", "infini.lax.view"]
