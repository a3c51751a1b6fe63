"""Contractions in canonical form: every dimension has a letter, and transposes and reshapes of operands are
in the spec.

A backend then sees one kind of `dot`: batch, free and contracted letters in any order, no loop dimensions.
"""

from __future__ import annotations

import string
from typing import Final

from infini.compiler.passes import rewrite, simplify
from infini.compiler.passes.rewrite import Match, Rule
from infini.core.ir import Program, Var
from infini.lax import contraction


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
    for i, (var, letters) in enumerate(zip(match.inputs, (a, b), strict=True)):
        inner = match.defined_by(var, "transpose")
        if inner is None or var.type.ndim != len(letters):
            continue
        order = simplify.full_permutation(len(letters), inner.attrs["permutation"])
        source = [""] * len(letters)
        for position, p in enumerate(order):
            source[p] = letters[position]
        sides[i], inputs[i] = "".join(source), inner.inputs[0]
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
    return match.emit("dot", *inner.inputs, spec=f"{a},{b}->{moved}", dtype=inner.attrs["dtype"])


RULES: Final = (
    Rule("loop_letters", "dot", _loop_letters, "loop dimensions are batch or free letters"),
    Rule("unit_letters", "dot", _unit_letters, "dimensions of size 1 are reshapes"),
    Rule("transposed_operand", "dot", _transposed_operand, "a transpose of an operand permutes its letters"),
    Rule(
        "transposed_result", "transpose", _transposed_result, "a transpose of the result permutes its letters"
    ),
)


def canonical_contractions(program: Program) -> Program:
    """Bring every contraction into canonical form."""
    return rewrite.rewrite(program, RULES, "contractions")
