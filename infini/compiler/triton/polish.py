"""Statements as a person would write them: what is used once stands where it is used, positions and masks
that repeat have names, nothing is multiplied by 1, and what nobody reads is gone.

Takes the lines of a function's body as emitters write them; temporaries end in `__` and a number. Comments
stand before the first statement of a block, and values do not move from one block into another.
"""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

from infini.compiler.triton import positions
from infini.compiler.triton.statements import (
    TEMPORARY,
    Block,
    all_names,
    calls_in,
    every,
    free_name,
    inner_blocks,
    loads_of,
    note_of,
    stores_of,
    target_of,
)

LONGEST: Final = 100
# From lines, of which the first ones were put before those that notes count.
Polish: TypeAlias = Callable[[Sequence[str], int], list[str]]


def polished(
    lines: Sequence[str],
    *,
    notes: Mapping[int, str] | None = None,
    types: Mapping[str, str] | None = None,
    suggested: Mapping[str, str] | None = None,
    always: Collection[str] = (),
    taken: Collection[str] = (),
) -> list[str]:
    """The lines of a function's body in their final form.

    Args:
        lines: statements, indented by four spaces or more.
        notes: comments, by the number of the line that begins their block.
        types: for the comment behind the last value of a block, by name.
        suggested: names for temporaries, instead of what they begin with.
        always: temporaries whose type is shown wherever they stand.
        taken: names that have a meaning already.
    """
    function = ast.parse("def function():\n" + "\n".join(lines)).body[0]
    assert isinstance(function, ast.FunctionDef)
    body = function.body
    noted = {number + 2: note for number, note in (notes or {}).items()}
    for statement in every(body):
        statement.note = noted.get(statement.lineno, "")  # type: ignore[attr-defined]
        statement.type_ = ""  # type: ignore[attr-defined]
    body = [_Simpler().visit(statement) for statement in body]
    _drop_loop_positions(body)
    _inline(body, body, 1)
    body = [_Simpler().visit(statement) for statement in body]
    _drop_unused(body)
    names = positions.name_positions(body, taken)
    positions.name_masks(body, names, taken)
    shown = types or {}
    for statement in every(body):
        target = target_of(statement)
        if target in shown:
            statement.type_ = shown[target]  # type: ignore[attr-defined]
            statement.is_shown = target in always  # type: ignore[attr-defined]
    _rename(body, suggested or {}, taken)
    return list(_printed(body, 1))


# --- arithmetic -------------------------------------------------------------------------------------


def _number(node: ast.expr) -> int | float | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _number(node.operand)
        return None if inner is None else -inner
    is_number = isinstance(node, ast.Constant) and type(node.value) in (int, float)
    return node.value if is_number else None  # type: ignore[attr-defined]


def _is_zero(node: ast.expr) -> bool:
    return type(_number(node)) is int and _number(node) == 0


def _is_one(node: ast.expr) -> bool:
    return type(_number(node)) is int and _number(node) == 1


class _Simpler(ast.NodeTransformer):
    """Arithmetic with the whole numbers 0 and 1, and with negative numbers."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        left, op, right = node.left, node.op, node.right
        if isinstance(op, ast.Mult) and (_is_one(left) or _is_one(right)):
            return right if _is_one(left) else left
        if isinstance(op, (ast.Add, ast.Sub)) and _is_zero(right):
            return left
        if isinstance(op, ast.Add) and _is_zero(left):
            return right
        if isinstance(op, ast.Add) and _number(left) == 0 and ast.unparse(right).startswith("tl.dot("):
            return right  # whose sums begin with 0 as well
        if isinstance(op, ast.FloorDiv) and _is_one(right):
            return left
        if isinstance(op, ast.Add) and isinstance(right, ast.UnaryOp) and isinstance(right.op, ast.USub):
            return ast.BinOp(left, ast.Sub(), right.operand)
        negative = isinstance(op, ast.Add) and isinstance(right, ast.BinOp) and isinstance(right.op, ast.Mult)
        if negative and (number := _number(right.right)) is not None and -(1 << 31) < number < 0:  # type: ignore[attr-defined]
            positive = ast.BinOp(right.left, ast.Mult(), ast.Constant(-number))  # type: ignore[attr-defined]
            return ast.BinOp(left, ast.Sub(), self.visit_BinOp(positive))
        return node


class _Replace(ast.NodeTransformer):
    """Expressions by text, replaced by others."""

    def __init__(self, names: Mapping[str, ast.expr]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        found = self.names.get(node.id) if isinstance(node.ctx, ast.Load) else None
        return node if found is None else copy.deepcopy(found)


# --- temporaries --------------------------------------------------------------------------------------


def _drop_loop_positions(body: Block) -> None:
    """A position `tl.full((), 0, tl.int32) + i` is `i` where it only takes part in sums and products."""
    parents = {
        id(child): parent
        for statement in body
        for parent in ast.walk(statement)
        for child in ast.iter_child_nodes(parent)
    }
    uses: dict[str, list[ast.Name]] = {}
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                uses.setdefault(node.id, []).append(node)
    for statement in every(body):
        if not isinstance(statement, ast.For):
            continue
        first = statement.body[0]
        name = target_of(first)
        if not name or not TEMPORARY.search(name) or not isinstance(first, ast.Assign):
            continue
        value = first.value
        head = "tl.full((), 0, tl.int32) + "
        text = ast.unparse(value)
        if not text.startswith(head) or not text.removeprefix(head).isidentifier():
            continue
        if all(isinstance(parents[id(node)], ast.BinOp) for node in uses.get(name, ())):
            statement.body[:] = [
                _Replace({name: ast.Name(text.removeprefix(head), ast.Load())}).visit(s)
                for s in statement.body[1:]
            ] or [ast.Pass()]


def _may_move(value: ast.expr) -> bool:
    return not any(name == "tl.load" or "atomic" in name for name in calls_in(value))


def _inline(whole: Block, block: Block, depth: int) -> None:
    """Put temporaries that are used once, further on in the same block, where they are used."""
    for statement in block:
        for inner in inner_blocks(statement):
            _inline(whole, inner, depth + 1)
    if not any(TEMPORARY.search(target_of(statement)) for statement in block):
        return
    loads: Counter[str] = Counter()
    stores: Counter[str] = Counter()
    for statement in whole:
        loads.update(loads_of(statement))
        stores.update(stores_of(statement))
    i = 0
    while i < len(block):
        name = target_of(block[i])
        once = TEMPORARY.search(name) and loads[name] == 1 and stores[name] == 1 if name else False
        if not once or not _place_in(block, i, name, LONGEST - 4 * depth):
            i += 1


def _place_in(block: Block, i: int, name: str, room: int) -> bool:
    """Put one value into the statement that uses it; whether that was possible."""
    defining = block[i]
    assert isinstance(defining, ast.Assign)
    needed = loads_of(defining.value)
    for j in range(i + 1, len(block)):
        statement = block[j]
        if note_of(statement):
            return False
        if name in loads_of(statement):
            is_simple = isinstance(statement, (ast.Assign, ast.Expr))
            is_copy = isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name)
            length = len(ast.unparse(statement)) + len(ast.unparse(defining.value)) - len(name)
            if not is_simple or not (is_copy or (_may_move(defining.value) and length <= room)):
                return False
            note = note_of(defining)
            _Replace({name: defining.value}).visit(statement)
            del block[i]
            if note:
                block[i].note = note  # type: ignore[attr-defined]
            return True
        if set(stores_of(statement)) & set(needed):
            return False
    return False


def _drop_unused(body: Block) -> None:
    """Take out values that nobody reads."""
    while True:
        loads: Counter[str] = Counter()
        for statement in body:
            loads.update(loads_of(statement))
        if not _drop_from(body, loads):
            return


def _drop_from(block: Block, loads: Counter[str]) -> bool:
    found = False
    for statement in list(block):
        for inner in inner_blocks(statement):
            found |= _drop_from(inner, loads)
            if not inner:
                block.remove(statement)
                found = True
        if statement not in block:
            continue
        name = target_of(statement)
        if name and not loads[name] and not any("atomic" in c for c in calls_in(statement)):
            place = block.index(statement)
            del block[place]
            if note_of(statement) and place < len(block) and not note_of(block[place]):
                block[place].note = note_of(statement)  # type: ignore[attr-defined]
            found = True
    return found


# --- names and print ----------------------------------------------------------------------------------


def _rename(body: Block, suggested: Mapping[str, str], taken: Collection[str]) -> None:
    """Give temporaries short names, in the order in which they appear."""
    names: dict[str, str] = {}
    used = {name for name in all_names(body, taken) if not TEMPORARY.search(name)}
    for statement in every(body):
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and TEMPORARY.search(node.id) and node.id not in names:
                base = suggested.get(node.id) or TEMPORARY.sub("", node.id)
                names[node.id] = free_name(base, used)
                used.add(names[node.id])
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name):
                node.id = names.get(node.id, node.id)


def _printed(block: Block, depth: int) -> Iterator[str]:
    indent = "    " * depth
    for place, statement in enumerate(block):
        if note := note_of(statement):
            yield f"{indent}# {note}"
        is_last = place + 1 == len(block) or bool(note_of(block[place + 1]))
        inner = list(inner_blocks(statement))
        if inner:
            yield indent + _head(statement)
            yield from _printed(inner[0], depth + 1)
            assert len(inner) == 1, "emitters write no else"
            continue
        shown = getattr(statement, "type_", "") if is_last or getattr(statement, "is_shown", False) else ""
        yield from _wrapped(statement, indent, f"  # {shown}" if shown else "")


def _head(statement: ast.stmt) -> str:
    bare = copy.copy(statement)
    bare.body = [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(bare).splitlines()[0]


def wrapped(line: str, indent: str, comment: str) -> Iterator[str]:
    """A line, or a long call with an argument per line; the comment stands behind its first line."""
    return _wrapped(ast.parse(line.strip()).body[0], indent, comment)


def _wrapped(statement: ast.stmt, indent: str, comment: str) -> Iterator[str]:
    """A statement on one line, or a long call with an argument per line."""
    text = _text(statement)
    if len(indent) + len(text) <= LONGEST + 10:
        yield indent + text + comment
        return
    value = statement.value if isinstance(statement, (ast.Assign, ast.Expr)) else None
    if not isinstance(value, ast.Call) or ast.unparse(value.func).count("(") or len(value.args) > 4:
        yield indent + text + comment
        return
    head = f"{target_of(statement)} = " if target_of(statement) else ""
    yield f"{indent}{head}{ast.unparse(value.func)}({comment}"
    for argument in value.args:
        yield f"{indent}    {_text(argument)},"
    for given in value.keywords:
        yield f"{indent}    {given.arg}={_text(given.value)},"
    yield f"{indent})"


def _text(node: ast.AST) -> str:
    return ast.unparse(node).replace("'", '"')
