"""Which folder may import which: the table, and the check that holds it.

Only Python's syntax is read; nothing is imported. A folder imports from lower levels. Folders of one level
do not import each other, unless the level is ordered: then a folder may import those written before it.
Modules at the top of the package (`infini/__init__.py`, `infini/tree.py` ...) are public names that
re-export; whatever they load may not import them, which is the general rule that no cycle exists while
modules load.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGE: Final = "infini"


@dataclass(frozen=True, slots=True)
class Level:
    """Folders of one level; in an ordered level each may import those before it."""

    name: str
    folders: tuple[str, ...]
    is_ordered: bool = False


LEVELS: Final = (
    Level("L0", ("core",)),
    Level("L1", ("lax",)),
    Level("L2", ("transforms", "tile")),
    Level("L3", ("compiler",)),
    Level("L4", ("backends",)),
    Level(
        "L5",
        (
            "numpy", "random", "scipy", "image", "ops", "nn", "optim", "io", "data", "parallel", "train",
        ),
        is_ordered=True,
    ),
    Level("L6", ("perf", "testing", "debug", "profiler", "export", "experimental")),
    Level("L7", ("llm",)),
    Level("L8", ("studio", "cli", "as_jax"), is_ordered=True),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Allowance:
    """One import that the table forbids and the design wants, with the reason.

    A trailing `.*` covers a folder.
    """

    importer: str
    imported: str
    reason: str


# Imports against the table. Keep this short: each line is a place where the design bends.
ALLOWED: Final[tuple[Allowance, ...]] = (
    Allowance(
        "infini.lax",
        "infini.transforms.*",
        "JAX keeps lax.map, custom_root and custom_linear_solve under lax; they are built on transformations",
    ),
    Allowance("infini.tile", "infini.debug.*", "tile.compare, for type checkers; it loads at its first use"),
    Allowance("infini.tile", "infini.export.*", "tile.build and tile.load, likewise"),
)

# Imports of our own package inside functions. Everything else is imported at the top of its file.
ALLOWED_IN_FUNCTIONS: Final[tuple[Allowance, ...]] = (
    Allowance(
        "infini.cli.*", "infini.*", "a command loads what it needs, so that `infini --help` answers at once"
    ),
    Allowance(
        "infini.backends.*",
        "infini.compiler.*",
        "a backend loads its emitter when it compiles for the first time",
    ),
    Allowance(
        "infini.backends.vendors.adapter",
        "infini.backends.vendors.*",
        "an adapter without a device costs a process nothing but the look for its library",
    ),
)


@dataclass(frozen=True, slots=True)
class Import:
    """`importer` names `imported` on a line.

    `is_lazy` when inside a function, `is_typing` under TYPE_CHECKING.
    """

    importer: str
    imported: str
    line: int
    is_lazy: bool = False
    is_typing: bool = False

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def modules(root: Path = ROOT, package: str = PACKAGE) -> dict[str, Path]:
    """Files of the package by module name; a package's name stands for its `__init__.py`."""
    found = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(files: dict[str, Path]) -> list[Import]:
    """Every import between these modules, by module.

    `from a import b` is an import of `a.b` when that is a module.
    """
    found: list[Import] = []
    for name, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        found += _imports_of(name, path.name == "__init__.py", tree, files)
    return found


def _imports_of(name: str, is_package: bool, tree: ast.Module, files: dict[str, Path]) -> Iterator[Import]:
    for node, is_lazy, is_typing in _walk(tree):
        for target in _targets(node, name, is_package, files):
            if target != name:
                yield Import(name, target, node.lineno, is_lazy, is_typing)


def _walk(
    node: ast.AST, is_lazy: bool = False, is_typing: bool = False
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, is_lazy, is_typing
            continue
        in_function = is_lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for_types = is_typing or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
        yield from _walk(child, in_function, for_types)


def _targets(
    node: ast.Import | ast.ImportFrom, name: str, is_package: bool, files: dict[str, Path]
) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in files)
        return
    base = node.module or ""
    if node.level:
        above = name.split(".")[: None if is_package and node.level == 1 else -(node.level - int(is_package))]
        base = ".".join([*above, *([node.module] if node.module else [])])
    for alias in node.names:
        inner = f"{base}.{alias.name}"
        if inner in files:
            yield inner
        elif base in files:
            yield base


def place(module: str) -> tuple[int, int] | None:
    """Level and position in the level of a module's folder; None for the public modules at the top."""
    parts = module.split(".")
    folder = parts[1] if len(parts) > 1 else ""
    for number, level in enumerate(LEVELS):
        if folder in level.folders:
            return number, level.folders.index(folder)
    return None


def unknown_folders(files: dict[str, Path]) -> list[str]:
    """Folders of the package that stand in no level."""
    folders = {
        path.relative_to(ROOT).parts[1] for path in files.values() if len(path.relative_to(ROOT).parts) > 2
    }
    return sorted(folders - {folder for level in LEVELS for folder in level.folders})


def broken_layers(found: Sequence[Import]) -> list[str]:
    """What breaks the table, one sentence each."""
    faults = []
    for item in found:
        importer, imported = place(item.importer), place(item.imported)
        if importer is None or imported is None or item.is_lazy or _is_allowed(item, ALLOWED):
            continue
        is_same_folder = importer == imported
        is_before = (
            importer[0] == imported[0] and LEVELS[importer[0]].is_ordered and imported[1] < importer[1]
        )
        if imported[0] < importer[0] or is_same_folder or is_before:
            continue
        faults.append(f"{item}: {LEVELS[importer[0]].name} may not import {LEVELS[imported[0]].name} here")
    return faults


def lazy_imports(found: Sequence[Import]) -> list[str]:
    """Imports of our own package inside functions that no allowance covers."""
    return [str(item) for item in found if item.is_lazy and not _is_allowed(item, ALLOWED_IN_FUNCTIONS)]


def _is_allowed(item: Import, table: Sequence[Allowance]) -> bool:
    return any(_covers(row.importer, item.importer) and _covers(row.imported, item.imported) for row in table)


def _covers(pattern: str, module: str) -> bool:
    if pattern.endswith(".*"):
        return module == pattern[:-2] or module.startswith(pattern[:-1])
    return module == pattern


def unused_allowances(found: Sequence[Import]) -> list[str]:
    """Allowances against the table that nothing uses any more."""
    return [
        f"{row.importer} -> {row.imported}"
        for row in ALLOWED
        if not any(
            _covers(row.importer, item.importer) and _covers(row.imported, item.imported) for item in found
        )
    ]


def cycles(files: dict[str, Path], found: Sequence[Import]) -> list[list[str]]:
    """Groups of modules that import each other while they load: Tarjan's algorithm, without recursion."""
    graph: dict[str, list[str]] = {name: [] for name in files}
    for item in found:
        if not item.is_lazy and not item.is_typing:
            graph[item.importer].append(item.imported)
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []
    for start in graph:
        if start in number:
            continue
        work = [(start, iter(graph[start]))]
        number[start] = low[start] = len(number)
        stack.append(start)
        while work:
            node, successors = work[-1]
            following = next(successors, None)
            if following is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == number[node]:
                    cut = stack.index(node)
                    groups.append(sorted(stack[cut:]))
                    del stack[cut:]
            elif following not in number:
                number[following] = low[following] = len(number)
                stack.append(following)
                work.append((following, iter(graph[following])))
            elif following in stack:
                low[node] = min(low[node], number[following])
    return [group for group in groups if len(group) > 1]


def faults() -> list[str]:
    """Everything wrong with the layering of the tree, one sentence each."""
    files = modules()
    found = imports(files)
    return [
        *(f"infini/{folder} stands in no level of tools/layers.py" for folder in unknown_folders(files)),
        *broken_layers(found),
        *(f"{text} inside a function" for text in lazy_imports(found)),
        *(f"the allowance {text} is not used" for text in unused_allowances(found)),
        *(f"import cycle: {' <-> '.join(group)}" for group in cycles(files, found)),
    ]
