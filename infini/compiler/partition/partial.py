"""Which equations let a partial sum through: those that are linear in it. Everything else adds it up first.

A sum over devices that waits is a sum over fewer elements later: three cotangents that meet in an
addition cost one collective, and a bias or a norm after a product costs none in between. What would grow
on its way is added up before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from infini.compiler.partition.placement import Axes
from infini.core import dtypes
from infini.core.ir import Equation

# `one`: linear in each of these operands alone. `all`: linear in these together, so all have to be
# partial alike.
_LINEAR: Final[dict[str, tuple[Literal["one", "all"], slice]]] = {
    "neg": ("one", slice(0, 1)),
    "mul": ("one", slice(0, 2)),
    "div": ("one", slice(0, 1)),
    "dot": ("one", slice(0, 2)),
    "quantized_matmul": ("one", slice(0, 1)),
    "reduce_sum": ("one", slice(0, 1)),
    "cumsum": ("one", slice(0, 1)),
    "reshape": ("one", slice(0, 1)),
    "transpose": ("one", slice(0, 1)),
    "slice": ("one", slice(0, 1)),
    "dynamic_slice": ("one", slice(0, 1)),
    "rev": ("one", slice(0, 1)),
    "convert_element_type": ("one", slice(0, 1)),
    "add": ("all", slice(0, 2)),
    "sub": ("all", slice(0, 2)),
    "concatenate": ("all", slice(0, None)),
    "select_n": ("all", slice(1, 3)),
    "optimization_barrier": ("one", slice(0, 1)),
}
# An addition of few elements takes whole operands among partial ones: they count on the first device
# only. So the terms of a norm over all gradients are added up once.
_SMALL: Final = 64


def passing(equation: Equation, partials: Sequence[Axes]) -> Axes:
    """Axes over which the results of an equation are partial when its operands are so; none when they
    must be added up.
    """
    name = equation.op.name
    if name not in _LINEAR or not any(partials) or len(equation.outputs) != 1:
        return ()
    mode, where = _LINEAR[name]
    mine = partials[where]
    if any(partials[: where.start]) or any(partials[where.stop :] if where.stop else ()):
        return ()
    if name == "convert_element_type" and not _widens(equation):
        return ()
    given = [axes for axes in mine if axes]
    if mode == "all" and equation.output.type.size <= _SMALL and len(set(given)) == 1:
        return given[0]
    if (len(given) != 1) if mode == "one" else (len(given) != len(mine) or len(set(given)) != 1):
        return ()
    largest = max(v.type.nbytes for v, axes in zip(equation.inputs, partials, strict=True) if axes)
    return (
        given[0]
        if equation.output.type.nbytes <= largest * (len(mine) if name == "concatenate" else 1)
        else ()
    )


def counts_once(equation: Equation, passed: Axes, mine: Axes, number: int) -> bool:
    """Whether a whole operand stands among partial ones that are added, so that only one device may add
    it.
    """
    if not passed or mine:
        return False
    mode, where = _LINEAR[equation.op.name]
    return mode == "all" and number in range(len(equation.inputs))[where]


def _widens(equation: Equation) -> bool:
    before, after = equation.inputs[0].type.dtype, equation.output.type.dtype
    return dtypes.is_float(before) and dtypes.is_float(after) and after.itemsize >= before.itemsize
