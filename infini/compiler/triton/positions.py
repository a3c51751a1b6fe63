"""Names for positions along the dimensions of tiles, and for conditions on them, that occur several times."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Final, cast

from infini.compiler.triton.statements import Block, all_names, calls_in, free_name, loads_of

_POSITION: Final = re.compile(r"tl\.arange\(0, \d+\)(\[[:None, ]+\])?")


class _Hoist(ast.NodeTransformer):
    """Replaces expressions, found by their text, by names."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names

    def visit(self, node: ast.AST) -> ast.AST:
        if _is_position(node) or _is_mask(node):
            found = self.names.get(ast.unparse(node))
            if found is not None:
                return ast.Name(found, ast.Load())
        return super().visit(node)


def _is_position(node: ast.AST) -> bool:
    """Whether a node gives the positions along one dimension of a tile."""
    called = node.value if isinstance(node, ast.Subscript) else node
    return (
        isinstance(called, ast.Call)
        and isinstance(called.func, ast.Attribute)
        and called.func.attr == "arange"
        and _POSITION.fullmatch(ast.unparse(node)) is not None
    )


def _is_mask(node: ast.AST) -> bool:
    """Whether a node is a comparison, or several of them together."""
    return isinstance(node, ast.Compare) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd))


def _lanes(body: Block) -> Counter[str]:
    """Texts of positions along the dimensions of tiles, and how often each occurs."""
    found: Counter[str] = Counter()

    def visit(node: ast.AST) -> None:
        if _is_position(node):
            found[ast.unparse(node)] += 1
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    for statement in body:
        visit(statement)
    return found


def name_positions(body: Block, taken: Collection[str]) -> set[str]:
    """Name the positions that occur several times, at the top; returns the names."""
    counts = _lanes(body)
    names: dict[str, str] = {}
    used = all_names(body, taken)
    for text, count in counts.items():
        if count < 2:
            continue
        size = text[len("tl.arange(0, ") : text.index(")")]
        index = text[text.index(")") + 1 :]
        base = {"": "lanes", "[:, None]": "rows", "[None, :]": "columns"}.get(index)
        base = base or f"lanes{index.strip('[]').split(', ').index(':')}"
        found = base if base not in used and base not in names.values() else f"{base}_{size}"
        names[text] = free_name(found, used | set(names.values()))
    _insert(body, names, _end_of_head(body))
    return set(names.values())


def _end_of_head(body: Block) -> int:
    return next((i for i, s in enumerate(body) if not _is_head(s)), len(body))


def _insert(body: Block, names: Mapping[str, str], place: int) -> None:
    """Replace expressions by names that are defined at a place."""
    if not names:
        return
    hoist = _Hoist(names)
    body[:] = [cast(ast.stmt, hoist.visit(statement)) for statement in body]
    new: Block = []
    for text, name in names.items():
        assign = ast.parse(f"{name} = {text}").body[0]
        assign.note = assign.type_ = ""  # type: ignore[attr-defined]
        new.append(assign)
    # Never behind a statement that the names stand in now.
    defined = set(names.values())
    place = min([place, *(i for i, statement in enumerate(body) if defined & set(loads_of(statement)))])
    body[place:place] = new


def _is_head(statement: ast.stmt) -> bool:
    """Whether a statement only says which program this is, or names positions."""
    if not isinstance(statement, ast.Assign):
        return False
    return _is_position(statement.value) or not calls_in(statement) - {
        "tl.program_id",
        "tl.minimum",
        "tl.program_id(0).to",
    }


def name_masks(body: Block, positions: set[str], taken: Collection[str]) -> None:
    """Name conditions on positions alone that occur several times."""
    # What is named later may stand in what was named before, so it is defined in front of that.
    place = _end_of_head(body)
    for kind in (ast.BinOp, ast.Compare):
        counts: Counter[str] = Counter()
        for statement in body:
            _count_masks(statement, kind, positions, counts)
        used = all_names(body, taken)
        names: dict[str, str] = {}
        for text, count in counts.items():
            if count >= 2:
                base = f"in_{text.split()[0]}" if kind is ast.Compare else "inside"
                names[text] = free_name(base, used | set(names.values()))
        _insert(body, names, place)


def _count_masks(node: ast.AST, kind: type[ast.AST], positions: set[str], counts: Counter[str]) -> None:
    if _is_mask(node) and isinstance(node, kind) and loads_of(node) and set(loads_of(node)) <= positions:
        counts[ast.unparse(node)] += 1
        return
    for child in ast.iter_child_nodes(node):
        _count_masks(child, kind, positions, counts)
