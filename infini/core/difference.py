"""What differs between two programs: equations that one has and the other has not, and operands that moved.

Equations are lined up by operation, attributes and types; then the operands of each pair are compared through
the pairing, so that a renumbered variable is no difference. Bodies are compared where their users pair.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from infini.core import ir, text

CONTEXT = 3  # equal lines shown around a difference


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a comparison.

    Args:
        kind: in both, only in the first, only in the second, or in both with other operands or attributes.
        first: line of the first program, empty when it has none.
        second: line of the second program, empty when it has none.
        note: what differs, for lines of kind `changed`.
    """

    kind: Literal["same", "removed", "added", "changed"]
    first: str = ""
    second: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """The comparison of two programs, or of two bodies in them; `path` says where."""

    path: str
    rows: tuple[Row, ...]

    @property
    def count(self) -> int:
        """How many lines differ."""
        return sum(row.kind != "same" for row in self.rows)


def compare(first: ir.Program, second: ir.Program) -> list[Difference]:
    """The differences of two programs, the outermost first; empty when they are structurally equal."""
    return list(_compare(first, second, f"@{first.name}")) if first != second else []


def to_text(differences: Sequence[Difference]) -> str:
    """Differences as lines that begin with `-`, `+` or `~` (changed), with a few equal lines around them."""
    out = []
    for difference in differences:
        out.append(f"{difference.path}: {difference.count} lines differ")
        near = _near(difference.rows)
        shown = False
        for row, is_near in zip(difference.rows, near, strict=True):
            if is_near:
                out += _lines(row)
            elif shown:
                out.append("  ...")
            shown = is_near
    return "\n".join(out)


def _near(rows: Sequence[Row]) -> list[bool]:
    places = [i for i, row in enumerate(rows) if row.kind != "same"]
    return [any(abs(i - place) <= CONTEXT for place in places) for i in range(len(rows))]


def _lines(row: Row) -> list[str]:
    if row.kind == "same":
        return [f"  {row.first}"]
    if row.kind == "removed":
        return [f"- {row.first}"]
    if row.kind == "added":
        return [f"+ {row.second}"]
    return [f"~ {row.first}", f"~ {row.second}   <- {row.note}"]


def _compare(first: ir.Program, second: ir.Program, path: str) -> Iterator[Difference]:
    left, right = text.sections(first, lines=False)[0].lines, text.sections(second, lines=False)[0].lines
    pairing = _Pairing()
    rows = [_head(first, second, left[0], right[0], pairing)]
    inner: list[tuple[ir.Equation, ir.Equation]] = []

    consts = _aligned([c for _, c in first.consts], [c for _, c in second.consts], lambda c: c)
    for i, j in consts:
        if i is not None and j is not None:
            pairing.join(first.consts[i][0], second.consts[j][0])
        rows.append(_row(left, right, 1, 1, i, j))

    start, other_start = 1 + len(first.consts), 1 + len(second.consts)
    for i, j in _aligned(first.equations, second.equations, _key):
        row = _row(left, right, start, other_start, i, j)
        if i is not None and j is not None:
            one, other = first.equations[i], second.equations[j]
            note = _note(one, other, pairing)
            if note:
                row = dataclasses.replace(row, kind="changed", note=note)
            for a, b in zip(one.outputs, other.outputs, strict=True):
                pairing.join(a, b)
            inner.append((one, other))
        rows.append(row)
    rows.append(_results(first, second, left[-2], right[-2], pairing))

    found = Difference(path, tuple(rows))
    if found.count:
        yield found
    for one, other in inner:
        for number, (body, other_body) in enumerate(zip(one.programs, other.programs, strict=False)):
            if body != other_body:
                yield from _compare(body, other_body, f"{path} > {one.op.name} @{body.name} ({number})")


class _Pairing:
    """Which variable of the second program stands for one of the first."""

    def __init__(self) -> None:
        self._partner: dict[ir.Var, ir.Var] = {}

    def join(self, one: ir.Var, other: ir.Var) -> None:
        self._partner[one] = other

    def are_same(self, one: ir.Var, other: ir.Var) -> bool:
        return self._partner.get(one) is other


def _head(first: ir.Program, second: ir.Program, one: str, other: str, pairing: _Pairing) -> Row:
    for a, b in zip(first.params, second.params, strict=False):
        pairing.join(a, b)
    if first.in_types == second.in_types:
        return Row("same", one, other)
    return Row("changed", one, other, "other parameters")


def _results(first: ir.Program, second: ir.Program, one: str, other: str, pairing: _Pairing) -> Row:
    are_same = len(first.results) == len(second.results) and all(
        map(pairing.are_same, first.results, second.results)
    )
    return Row("same", one, other) if are_same else Row("changed", one, other, "other results")


def _row(
    left: Sequence[str], right: Sequence[str], start: int, other_start: int, i: int | None, j: int | None
) -> Row:
    one = "" if i is None else left[start + i]
    other = "" if j is None else right[other_start + j]
    return Row("added" if i is None else "removed" if j is None else "same", one, other)


def _key(equation: ir.Equation) -> Hashable:
    """What equations are lined up by; attributes, and bodies within them, are compared afterwards."""
    return equation.op, tuple(v.type for v in equation.inputs), tuple(v.type for v in equation.outputs)


def _note(one: ir.Equation, other: ir.Equation, pairing: _Pairing) -> str:
    notes = [
        f"operand {number}"
        for number, (a, b) in enumerate(zip(one.inputs, other.inputs, strict=True))
        if not pairing.are_same(a, b)
    ]
    names = sorted({*one.attrs, *other.attrs})
    changed = [name for name in names if not _is_same_attribute(name, one.attrs, other.attrs)]
    return ", ".join([*notes, *(f"attribute {name}" for name in changed)])


def _is_same_attribute(name: str, one: ir.Attrs, other: ir.Attrs) -> bool:
    if name not in one or name not in other:
        return False
    return ir.Attrs({name: one[name]}) == ir.Attrs({name: other[name]})


def _aligned(
    first: Sequence[Any], second: Sequence[Any], key: Callable[[Any], Hashable]
) -> Iterator[tuple[int | None, int | None]]:
    """Pairs of places, with None where one side has no partner; equal keys pair in order."""
    matcher = difflib.SequenceMatcher(None, [key(x) for x in first], [key(x) for x in second], autojunk=False)
    for tag, i, i_end, j, j_end in matcher.get_opcodes():
        if tag == "equal":
            yield from zip(range(i, i_end), range(j, j_end), strict=True)
        else:
            yield from ((n, None) for n in range(i, i_end))
            yield from ((None, n) for n in range(j, j_end))
