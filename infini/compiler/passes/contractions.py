"""Contractions in canonical form: every dimension has a letter, and transposes and reshapes of operands are
in the spec.

A backend then sees one kind of `dot`: batch, free and contracted letters in any order, no loop dimensions.
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from infini.compiler.passes import dead_code, rewrite, simplify
from infini.compiler.passes.rewrite import Match, Rule
from infini.core import dtypes
from infini.core.ir import Program, Var
from infini.lax import contraction

ENOUGH: Final = 64  # rows or columns of a matrix product with which its registers and caches are used well


@dataclass(frozen=True, slots=True)
class Product:
    """The matrix products that a contraction is, as far as its layout says.

    Args:
        is_dense: whether the result is contiguous along rows or columns of the products, not along the batch.
        rows: most elements of the free dimensions of x that lie one after the other in x and the result.
        columns: the same of y.
        num_depths: stretches in which the contracted dimensions lie one after the other in x and y.
    """

    is_dense: bool
    rows: int
    columns: int
    num_depths: int

    def is_worse(self, other: Product) -> bool:
        """Whether it costs more than a transpose that makes it the other."""
        return (
            self.is_dense < other.is_dense
            or self.num_depths > other.num_depths
            or self.rows < min(other.rows, ENOUGH)
            or self.columns < min(other.columns, ENOUGH)
        )


def _sizes(a: str, b: str, x: Var, y: Var) -> dict[str, int]:
    return dict(zip(a, x.type.shape, strict=True)) | dict(zip(b, y.type.shape, strict=True))


def product(a: str, b: str, out: str, sizes: Mapping[str, int]) -> Product:
    """What a contraction without loop dimensions is; every dimension has a letter."""
    free = (set(a) ^ set(b)) & set(out)

    def longest(one: str, two: str) -> int:
        runs = _runs(one, two)
        # The side along which the result is contiguous is that run, however short.
        last = [run for run in runs if two.endswith(run)]
        return max((math.prod(sizes[c] for c in run) for run in last or runs), default=1)

    return Product(
        not free or out[-1] in free,
        longest("".join(c if c not in b else " " for c in a), out),
        longest("".join(c if c not in a else " " for c in b), out),
        len(_runs("".join(c if c not in out else " " for c in a), b)),
    )


def _runs(one: str, two: str) -> list[str]:
    """Stretches of letters that follow each other in both; a space is no letter."""
    found: list[str] = []
    for before, letter in zip(" " + one, one, strict=False):
        if letter == " ":
            continue
        if before != " " and before + letter in two:
            found[-1] += letter
        else:
            found.append(letter)
    return found


def _loop_letters(match: Match) -> Var | None:
    """Loop dimensions get letters; those of size 1 that broadcast are dropped first."""
    a, b, out = contraction.parse_spec(match.attrs["spec"])
    loops = match.out.ndim - len(out)
    if loops == 0:
        return None
    fresh = [c for c in string.ascii_letters if c not in a + b]
    names = fresh[:loops]
    x, x_letters = _lettered(match, match.x, a, names, match.out.shape)
    y, y_letters = _lettered(match, match.y, b, names, match.out.shape)
    kept = [n for n in names if n in x_letters + y_letters]
    spec = f"{x_letters},{y_letters}->{''.join(kept)}{out}"
    result = match.emit("dot", x, y, spec=spec, dtype=match.attrs["dtype"])
    return (
        result
        if result.type == match.out
        else match.emit("reshape", result, shape=match.out.shape, ndim=result.type.ndim)
    )


def _lettered(
    match: Match, var: Var, letters: str, names: list[str], out_shape: tuple[int, ...]
) -> tuple[Var, str]:
    loops = var.type.ndim - len(letters)
    mine = names[len(names) - loops :]
    sizes = out_shape[len(names) - loops : len(names)]
    dropped = [i for i in range(loops) if var.type.shape[i] == 1 and sizes[i] != 1]
    if dropped:
        shape = tuple(n for i, n in enumerate(var.type.shape) if i not in dropped)
        var = match.emit("reshape", var, shape=shape, ndim=var.type.ndim)
    return var, "".join(n for i, n in enumerate(mine) if i not in dropped) + letters


def _transposed_operand(match: Match) -> Var | None:
    a, b, out = contraction.parse_spec(match.attrs["spec"])
    sides = [a, b]
    inputs = list(match.inputs)
    is_whole = match.out.ndim == len(out)
    sizes = _sizes(a, b, match.x, match.y) if is_whole else {}
    for i, (var, letters) in enumerate(zip(match.inputs, (a, b), strict=True)):
        inner = match.defined_by(var, "transpose")
        if inner is None or var.type.ndim != len(letters):
            continue
        order = simplify.full_permutation(len(letters), inner.attrs["permutation"])
        source = [""] * len(letters)
        for position, p in enumerate(order):
            source[p] = letters[position]
        moved = [*sides[:i], "".join(source), *sides[i + 1 :]]
        if is_whole and product(moved[0], moved[1], out, sizes).is_worse(
            product(sides[0], sides[1], out, sizes)
        ):
            continue
        sides[i], inputs[i] = moved[i], inner.inputs[0]
    if inputs == list(match.inputs):
        return None
    return match.emit("dot", *inputs, spec=f"{sides[0]},{sides[1]}->{out}", dtype=match.attrs["dtype"])


def _unit_letters(match: Match) -> Var | None:
    """Letters of size 1 go away: they are reshapes."""
    a, b, out = contraction.parse_spec(match.attrs["spec"])
    if match.out.ndim != len(out):
        return None
    sizes = dict(zip(a, match.x.type.shape, strict=True)) | dict(zip(b, match.y.type.shape, strict=True))
    unit = {letter for letter, size in sizes.items() if size == 1}
    if not unit:
        return None
    inputs, sides = [], []
    for var, letters in ((match.x, a), (match.y, b)):
        kept = "".join(letter for letter in letters if letter not in unit)
        shape = tuple(sizes[letter] for letter in kept)
        inputs.append(var if kept == letters else match.emit("reshape", var, shape=shape, ndim=len(letters)))
        sides.append(kept)
    kept_out = "".join(letter for letter in out if letter not in unit)
    result = match.emit("dot", *inputs, spec=f"{sides[0]},{sides[1]}->{kept_out}", dtype=match.attrs["dtype"])
    return (
        result
        if result.type == match.out
        else match.emit("reshape", result, shape=match.out.shape, ndim=len(kept_out))
    )


def _transposed_result(match: Match) -> Var | None:
    inner = match.defined_by(match.x, "dot")
    if inner is None:
        return None
    a, b, out = contraction.parse_spec(inner.attrs["spec"])
    if match.out.ndim != len(out) or match.num_uses(match.x) != 1:
        return None
    order = simplify.full_permutation(len(out), match.attrs["permutation"])
    moved = "".join(out[p] for p in order)
    sizes = _sizes(a, b, *inner.inputs)
    if product(a, b, moved, sizes).is_worse(product(a, b, out, sizes)):
        return None
    return match.emit("dot", *inner.inputs, spec=f"{a},{b}->{moved}", dtype=inner.attrs["dtype"])


def _scattered(match: Match) -> Var | None:
    """A contraction that is no good matrix product as it lies in memory, but is one between transposes."""
    a, b, out = contraction.parse_spec(match.attrs["spec"])
    if match.out.ndim != len(out):
        return None
    sizes = _sizes(a, b, match.x, match.y)
    batch, rows = "".join(c for c in a if c in out and c in b), "".join(c for c in a if c not in b)
    columns, depth = "".join(c for c in b if c not in a), "".join(c for c in a if c not in out)
    in_order = batch + rows + columns
    now = product(a, b, out, sizes)
    # What moves least comes first: the result, one operand, both.
    candidates = (
        (a, b, in_order),
        (a, batch + depth + columns, in_order),
        (batch + rows + depth, b, in_order),
        (batch + rows + depth, batch + depth + columns, in_order),
    )
    chosen = next((c for c in candidates if now.is_worse(product(*c, sizes))), None)
    if chosen is None:
        return None
    x, y = _permuted(match, match.x, a, chosen[0]), _permuted(match, match.y, b, chosen[1])
    result = match.emit("dot", x, y, spec="{},{}->{}".format(*chosen), dtype=match.attrs["dtype"])
    return _permuted(match, result, in_order, out)


def _permuted(match: Match, var: Var, letters: str, wanted: str) -> Var:
    """A transpose that brings the letters of a variable in another order."""
    if letters == wanted:
        return var
    order = tuple(letters.index(c) - len(letters) for c in wanted)
    return match.emit("transpose", var, permutation=order)


def _narrow_weight(match: Match) -> Var | None:
    """Without a batch only: with one, a product may be part of an attention, which is found first."""
    a, b, out = contraction.parse_spec(match.attrs["spec"])
    return None if set(a) & set(b) & set(out) else _narrow_operand(match)


def _narrow_operand(match: Match) -> Var | None:
    """An operand that is a wider float of the same numbers is read as it was, and widened on the way."""
    inputs = []
    for var in match.inputs:
        inner = match.defined_by(var, "convert_element_type")
        is_exact = inner is not None and _holds(var.type.dtype, inner.inputs[0].type.dtype)
        inputs.append(inner.inputs[0] if inner is not None and is_exact else var)
    if inputs == list(match.inputs):
        return None
    return match.emit("dot", *inputs, spec=match.attrs["spec"], dtype=match.attrs["dtype"])


def _holds(wide: np.dtype, narrow: np.dtype) -> bool:
    """Whether every number of one float is one of the other."""
    if not (dtypes.is_float(wide) and dtypes.is_float(narrow)):
        return False
    return wide in (dtypes.float32, dtypes.float64) and narrow.itemsize < wide.itemsize


RULES: Final = (
    Rule("loop_letters", "dot", _loop_letters, "loop dimensions are batch or free letters"),
    Rule("unit_letters", "dot", _unit_letters, "dimensions of size 1 are reshapes"),
    Rule("scattered", "dot", _scattered, "what is no matrix product as it lies is transposed first"),
    Rule("transposed_operand", "dot", _transposed_operand, "a transpose of an operand permutes its letters"),
    Rule(
        "transposed_result", "transpose", _transposed_result, "a transpose of the result permutes its letters"
    ),
)

# For a backend whose products read operands of different dtypes.
_NARROW_WEIGHT: Final = Rule(
    "narrow_weight", "dot", _narrow_weight, "a product widens its operands as it reads them"
)  # fmt: skip
_NARROW: Final = Rule(
    "narrow_operand", "dot", _narrow_operand, "a product widens its operands as it reads them"
)  # fmt: skip


def canonical_contractions(program: Program, *, reads_narrow: bool = False) -> Program:
    """Bring every contraction into canonical form; with `reads_narrow` weights are not converted before."""
    rules = (*RULES, _NARROW_WEIGHT) if reads_narrow else RULES
    return rewrite.rewrite(program, rules, "contractions")


def narrow_operands(program: Program) -> Program:
    """Let every contraction read its operands as they were before they were widened."""
    return dead_code.eliminate_dead(rewrite.rewrite(program, (_NARROW,), "contractions"))
