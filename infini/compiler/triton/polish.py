"""Statements as a person would write them: what is used once stands where it is used, positions and masks that
repeat have names, nothing is multiplied by 1, and what nobody reads is gone.

Takes the lines of a function's body as emitters write them; temporaries end in `__` and a number. Comments stand
before the first statement of a block, and values do not move from one block into another.
"""

from __future__ import annotations

import ast
import copy
import keyword
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

LONGEST: Final = 100
_POSITION: Final = re.compile(r"tl\.arange\(0, \d+\)(\[[:None, ]+\])?")
_TEMPORARY: Final = re.compile(r"__\d+$")
_KEYWORDS: Final = frozenset({*keyword.kwlist, "tl", "triton", "range", "float"})
_Block = list[ast.stmt]
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
    for statement in _statements(body):
        statement.note = noted.get(statement.lineno, "")  # type: ignore[attr-defined]
        statement.type_ = ""  # type: ignore[attr-defined]
    body = [_Simpler().visit(statement) for statement in body]
    _drop_loop_positions(body)
    _inline(body, body, 1)
    _drop_unused(body)
    names = _hoist_positions(body, taken)
    _hoist_masks(body, names, taken)
    shown = types or {}
    for statement in _statements(body):
        target = _target(statement)
        if target in shown:
            statement.type_ = shown[target]  # type: ignore[attr-defined]
            statement.is_shown = target in always  # type: ignore[attr-defined]
    _rename(body, suggested or {}, taken)
    return list(_printed(body, 1))


def _statements(body: _Block) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        for inner in _inner(statement):
            yield from _statements(inner)


def _inner(statement: ast.stmt) -> Iterator[_Block]:
    if isinstance(statement, (ast.For, ast.While, ast.If)):
        yield statement.body
        if statement.orelse:
            yield statement.orelse


def _note(statement: ast.stmt) -> str:
    return getattr(statement, "note", "")


def _target(statement: ast.stmt) -> str:
    """The name that a statement gives a value; empty when it gives none."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        (target,) = statement.targets
        return target.id if isinstance(target, ast.Name) else ""
    return ""


def _loads(node: ast.AST) -> Counter[str]:
    return Counter(
        n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)
    )


def _stores(node: ast.AST) -> Counter[str]:
    found = Counter(
        n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    )
    return found


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
        if negative and (number := _number(right.right)) is not None and number < 0:  # type: ignore[attr-defined]
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


def _drop_loop_positions(body: _Block) -> None:
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
    for statement in _statements(body):
        if not isinstance(statement, ast.For):
            continue
        first = statement.body[0]
        name = _target(first)
        if not name or not _TEMPORARY.search(name) or not isinstance(first, ast.Assign):
            continue
        value = first.value
        head = "tl.full((), 0, tl.int32) + "
        text = ast.unparse(value)
        if not text.startswith(head) or not text.removeprefix(head).isidentifier():
            continue
        if all(isinstance(parents[id(node)], ast.BinOp) for node in uses.get(name, ())):
            statement.body[:] = [
                _Replace({name: ast.Name(text.removeprefix(head), ast.Load())}).visit(s) for s in statement.body[1:]
            ] or [ast.Pass()]


def _calls(node: ast.AST) -> set[str]:
    return {ast.unparse(n.func) for n in ast.walk(node) if isinstance(n, ast.Call)}


def _may_move(value: ast.expr) -> bool:
    return not any(name == "tl.load" or "atomic" in name for name in _calls(value))


def _inline(whole: _Block, block: _Block, depth: int) -> None:
    """Put temporaries that are used once, further on in the same block, where they are used."""
    for statement in block:
        for inner in _inner(statement):
            _inline(whole, inner, depth + 1)
    loads: Counter[str] = Counter()
    stores: Counter[str] = Counter()
    for statement in whole:
        loads += _loads(statement)
        stores += _stores(statement)
    i = 0
    while i < len(block):
        name = _target(block[i])
        once = _TEMPORARY.search(name) and loads[name] == 1 and stores[name] == 1 if name else False
        if not once or not _place_in(block, i, name, LONGEST - 4 * depth):
            i += 1


def _place_in(block: _Block, i: int, name: str, room: int) -> bool:
    """Put one value into the statement that uses it; whether that was possible."""
    defining = block[i]
    assert isinstance(defining, ast.Assign)
    needed = _loads(defining.value)
    for j in range(i + 1, len(block)):
        statement = block[j]
        if _note(statement):
            return False
        if name in _loads(statement):
            is_simple = isinstance(statement, (ast.Assign, ast.Expr))
            is_copy = isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name)
            length = len(ast.unparse(statement)) + len(ast.unparse(defining.value)) - len(name)
            if not is_simple or not (is_copy or (_may_move(defining.value) and length <= room)):
                return False
            note = _note(defining)
            _Replace({name: defining.value}).visit(statement)
            del block[i]
            if note:
                block[i].note = note  # type: ignore[attr-defined]
            return True
        if set(_stores(statement)) & set(needed):
            return False
    return False


def _drop_unused(body: _Block) -> None:
    """Take out values that nobody reads."""
    while True:
        loads: Counter[str] = Counter()
        for statement in body:
            loads += _loads(statement)
        if not _drop_from(body, loads):
            return


def _drop_from(block: _Block, loads: Counter[str]) -> bool:
    found = False
    for statement in list(block):
        for inner in _inner(statement):
            found |= _drop_from(inner, loads)
        name = _target(statement)
        if name and not loads[name] and not any("atomic" in c for c in _calls(statement)):
            place = block.index(statement)
            del block[place]
            if _note(statement) and place < len(block) and not _note(block[place]):
                block[place].note = _note(statement)  # type: ignore[attr-defined]
            found = True
    return found


# --- positions and masks ------------------------------------------------------------------------------


def _free(name: str, used: Collection[str], start: int = 2) -> str:
    found, number = name, start
    while found in used or found in _KEYWORDS:
        found, number = f"{name}{number}", number + 1
    return found


def _all_names(body: _Block, taken: Collection[str]) -> set[str]:
    return {n.id for s in body for n in ast.walk(s) if isinstance(n, ast.Name)} | set(taken)


class _Hoist(ast.NodeTransformer):
    """Replaces expressions, found by their text, by names."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.expr) and not isinstance(node, (ast.Name, ast.Constant)):
            found = self.names.get(ast.unparse(node))
            if found is not None:
                return ast.Name(found, ast.Load())
        return super().visit(node)


def _lanes(body: _Block) -> Counter[str]:
    """Texts of positions along the dimensions of tiles, and how often each occurs."""
    found: Counter[str] = Counter()

    def visit(node: ast.AST) -> None:
        text = ast.unparse(node) if isinstance(node, (ast.Subscript, ast.Call)) else ""
        if _POSITION.fullmatch(text):
            found[text] += 1
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    for statement in body:
        visit(statement)
    return found


def _hoist_positions(body: _Block, taken: Collection[str]) -> set[str]:
    """Name the positions that occur several times, at the top; returns the names."""
    counts = _lanes(body)
    names: dict[str, str] = {}
    used = _all_names(body, taken)
    for text, count in counts.items():
        if count < 2:
            continue
        size = text[len("tl.arange(0, ") : text.index(")")]
        index = text[text.index(")") + 1 :]
        base = {"": "lanes", "[:, None]": "rows", "[None, :]": "columns"}.get(index)
        base = base or f"lanes{index.strip('[]').split(', ').index(':')}"
        found = base if base not in used and base not in names.values() else f"{base}_{size}"
        names[text] = _free(found, used | set(names.values()))
    _insert(body, names)
    return set(names.values())


def _insert(body: _Block, names: Mapping[str, str]) -> None:
    """Replace expressions by names that are defined after the first statements of the function."""
    if not names:
        return
    place = next((i for i, s in enumerate(body) if not _is_head(s)), len(body))
    for number, statement in enumerate(body):
        body[number] = _Hoist(names).visit(statement)
    new: _Block = []
    for text, name in names.items():
        assign = ast.parse(f"{name} = {text}").body[0]
        assign.note = assign.type_ = ""  # type: ignore[attr-defined]
        new.append(assign)
    body[place:place] = new


def _is_head(statement: ast.stmt) -> bool:
    """Whether a statement only says which program this is, or names positions."""
    if not isinstance(statement, ast.Assign):
        return False
    is_position = _POSITION.fullmatch(ast.unparse(statement.value)) is not None
    return is_position or not _calls(statement) - {"tl.program_id", "tl.minimum", "tl.program_id(0).to"}


def _hoist_masks(body: _Block, positions: set[str], taken: Collection[str]) -> None:
    """Name conditions on positions alone that occur several times."""
    for kind in (ast.BinOp, ast.Compare):
        counts: Counter[str] = Counter()
        for statement in body:
            _count_masks(statement, kind, positions, counts)
        used = _all_names(body, taken)
        names: dict[str, str] = {}
        for text, count in counts.items():
            if count >= 2:
                base = f"in_{text.split()[0]}" if kind is ast.Compare else "inside"
                names[text] = _free(base, used | set(names.values()))
        _insert(body, names)


def _count_masks(node: ast.AST, kind: type[ast.AST], positions: set[str], counts: Counter[str]) -> None:
    is_mask = isinstance(node, ast.Compare) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd))
    if is_mask and isinstance(node, kind) and _loads(node) and set(_loads(node)) <= positions:
        counts[ast.unparse(node)] += 1
        return
    for child in ast.iter_child_nodes(node):
        _count_masks(child, kind, positions, counts)


# --- names and print ----------------------------------------------------------------------------------


def _rename(body: _Block, suggested: Mapping[str, str], taken: Collection[str]) -> None:
    """Give temporaries short names, in the order in which they appear."""
    names: dict[str, str] = {}
    used = {name for name in _all_names(body, taken) if not _TEMPORARY.search(name)}
    for statement in _statements(body):
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and _TEMPORARY.search(node.id) and node.id not in names:
                base = suggested.get(node.id) or _TEMPORARY.sub("", node.id)
                names[node.id] = _free(base, used)
                used.add(names[node.id])
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name):
                node.id = names.get(node.id, node.id)


def _printed(block: _Block, depth: int) -> Iterator[str]:
    indent = "    " * depth
    for place, statement in enumerate(block):
        if note := _note(statement):
            yield f"{indent}# {note}"
        is_last = place + 1 == len(block) or bool(_note(block[place + 1]))
        inner = list(_inner(statement))
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
    head = f"{_target(statement)} = " if _target(statement) else ""
    yield f"{indent}{head}{ast.unparse(value.func)}({comment}"
    for argument in value.args:
        yield f"{indent}    {_text(argument)},"
    for given in value.keywords:
        yield f"{indent}    {given.arg}={_text(given.value)},"
    yield f"{indent})"


def _text(node: ast.AST) -> str:
    return ast.unparse(node).replace("'", '"')
