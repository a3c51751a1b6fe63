"""`python -m tools.measure`: the shape of the code, for people.

Sizes of files and functions, shares of annotated functions and documented public names, `Any` without its
reason, and import cycles. It informs; the exit status is not zero only when there is a cycle or the
layering is broken.
"""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from tools import layers


@dataclass(frozen=True, slots=True)
class Function:
    """What is counted of one function."""

    name: str
    num_lines: int
    is_annotated: bool
    is_public: bool
    is_documented: bool


@dataclass(frozen=True, slots=True)
class File:
    """What is counted of one file."""

    path: Path
    num_lines: int
    functions: tuple[Function, ...]
    classes: tuple[Function, ...] = field(default=())
    num_bare_any: int = 0


def measure(path: Path) -> File:
    """Count one file."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    lines = text.splitlines()
    return File(
        path,
        len(lines),
        tuple(_functions(tree)),
        tuple(_classes(tree)),
        sum(_is_bare_any(line) for line in lines),
    )


def _is_bare_any(line: str) -> bool:
    code, _, comment = line.partition("#")
    return "Any" in code and "import" not in code and "Any" not in comment


def _functions(tree: ast.AST, is_public: bool = True) -> Iterator[Function]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            own_is_public = is_public and not node.name.startswith("_")
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            given = [a.annotation for a in arguments if a.arg not in ("self", "cls")]
            yield Function(
                node.name,
                (node.end_lineno or node.lineno) - node.lineno + 1,
                all(given) and node.returns is not None,
                own_is_public,
                ast.get_docstring(node) is not None,
            )
            yield from _functions(node, is_public=False)
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node, is_public and not node.name.startswith("_"))
        else:
            yield from _functions(node, is_public)


def _classes(tree: ast.Module) -> Iterator[Function]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            yield Function(
                node.name, length, True, not node.name.startswith("_"), ast.get_docstring(node) is not None
            )


def percentile(values: Sequence[int], share: float) -> int:
    """The value below which `share` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0


def folder_row(name: str, files: Sequence[File]) -> tuple[str, ...]:
    """One line of the table."""
    functions = [function for file in files for function in file.functions]
    public = [f for file in files for f in (*file.functions, *file.classes) if f.is_public]
    sizes = [file.num_lines for file in files]
    lengths = [function.num_lines for function in functions]
    return (
        name,
        str(len(files)),
        str(sum(sizes)),
        f"{percentile(sizes, 0.5)}/{percentile(sizes, 0.9)}/{max(sizes)}",
        f"{statistics.median(lengths or [0]):.0f}/{percentile(lengths, 0.9)}/{max(lengths, default=0)}",
        _share(sum(f.is_annotated for f in functions), len(functions)),
        _share(sum(f.is_documented for f in public), len(public)),
        str(sum(file.num_bare_any for file in files)),
    )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}%" if whole else "-"


def main(*, longest: int = 8) -> None:
    """Print the table and the longest files and functions.

    Args:
        longest: how many of each.
    """
    console = Console(highlight=False, width=130)
    files = [measure(path) for path in layers.modules().values()]
    table = Table(
        "folder",
        "files",
        "lines",
        "file p50/p90/max",
        "function p50/p90/max",
        "annotated",
        "documented",
        "bare Any",
    )
    folders: dict[str, list[File]] = {}
    for file in files:
        parts = file.path.relative_to(layers.ROOT).parts
        folders.setdefault("/".join(parts[:2]) if len(parts) > 2 else parts[0], []).append(file)
    for name, members in sorted(folders.items()):
        table.add_row(*folder_row(name, members))
    table.add_section()
    table.add_row(*folder_row("all", files))
    console.print(table)
    console.print("longest files")
    for file in sorted(files, key=lambda f: -f.num_lines)[:longest]:
        console.print(f"  {file.num_lines:5} {file.path.relative_to(layers.ROOT)}")
    console.print("longest functions")
    found = [(function, file) for file in files for function in file.functions]
    for function, file in sorted(found, key=lambda pair: -pair[0].num_lines)[:longest]:
        console.print(f"  {function.num_lines:5} {file.path.relative_to(layers.ROOT)} {function.name}")
    faults = layers.faults()
    for fault in faults:
        console.print(fault, style="red", markup=False)
    raise typer.Exit(int(bool(faults)))


if __name__ == "__main__":
    typer.run(main)
