"""Statements of Python's syntax trees: what they hold, the names they read and write."""

from __future__ import annotations

import ast
import keyword
import re
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Final, TypeAlias

Block: TypeAlias = list[ast.stmt]
TEMPORARY: Final = re.compile(r"__\d+$")
_KEYWORDS: Final = frozenset({*keyword.kwlist, "tl", "triton", "range", "float"})


def every(body: Block) -> Iterator[ast.stmt]:
    """The statements of a block and of those inside it."""
    for statement in body:
        yield statement
        for inner in inner_blocks(statement):
            yield from every(inner)


def inner_blocks(statement: ast.stmt) -> Iterator[Block]:
    """The blocks of a loop or a condition."""
    if isinstance(statement, (ast.For, ast.While, ast.If)):
        yield statement.body
        if statement.orelse:
            yield statement.orelse


def note_of(statement: ast.stmt) -> str:
    """The comment above a statement."""
    return getattr(statement, "note", "")


def target_of(statement: ast.stmt) -> str:
    """The name that a statement gives a value; empty when it gives none."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        (target,) = statement.targets
        return target.id if isinstance(target, ast.Name) else ""
    return ""


def loads_of(node: ast.AST) -> Counter[str]:
    """The names that something reads, and how often."""
    return Counter(n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))


def stores_of(node: ast.AST) -> Counter[str]:
    """The names that something gives a value, and how often."""
    return Counter(n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))


def calls_in(node: ast.AST) -> set[str]:
    """The functions that something calls."""
    return {ast.unparse(n.func) for n in ast.walk(node) if isinstance(n, ast.Call)}


def free_name(name: str, used: Collection[str], start: int = 2) -> str:
    """A name that is not in use: with a number behind it where it has to be."""
    found, number = name, start
    while found in used or found in _KEYWORDS:
        found, number = f"{name}{number}", number + 1
    return found


def all_names(body: Block, taken: Collection[str]) -> set[str]:
    """The names in a block, and those that have a meaning already."""
    return {n.id for s in body for n in ast.walk(s) if isinstance(n, ast.Name)} | set(taken)
