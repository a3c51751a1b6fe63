"""Which equations let a partial sum through: those that are linear in it. Everything else adds it up first.

A sum over devices that waits is a sum over fewer elements later: three cotangents that meet in an addition
cost one collective, and a bias or a norm after a product costs none in between. What would grow on its way
is added up before. In which operands an operation is linear, `Factors.linear` says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from infini.compiler.partition.placement import Axes
from infini.core.ir import Equation, Program, Var
from infini.lax.places import Linear

# What terms that are partial and terms that are whole may meet in; see `Local.rest`.
SUMS: Final = frozenset({"add", "sub"})
# In sums of few elements whole terms count on the first device only, at once: the terms of a norm over all
# gradients are summed over devices together.
SMALL: Final = 64


def passing(equation: Equation, linear: Linear, partials: Sequence[Axes], zeros: Collection[Var]) -> Axes:
    """Axes over which the results of an equation are partial when its operands are so; none when they must be
    added up.

    Args:
        equation: the equation; one with several results lets nothing through.
        linear: sets of operands in which it is linear together.
        partials: for each operand the axes over which it is partial.
        zeros: variables that are zero everywhere, which are terms of any sum.
    """
    given = frozenset(i for i, axes in enumerate(partials) if axes)
    if not given or len(equation.outputs) != 1 or len({partials[i] for i in given}) != 1:
        return ()
    fits = any(
        given <= operands and all(i in given or equation.inputs[i] in zeros for i in operands)
        for operands in linear
    )
    grows = equation.output.type.nbytes > sum(equation.inputs[i].type.nbytes for i in given)
    return partials[min(given)] if fits and not grows else ()


def only_users(program: Program, uses: Mapping[Var, int]) -> dict[Var, Equation]:
    """For each variable that one equation uses, once, and nothing else, that equation."""
    return {v: equation for equation in program.equations for v in equation.inputs if uses[v] == 1}


def shrinks(user: Equation, linear: Linear, var: Var) -> bool:
    """Whether terms are fewer elements behind an equation that uses one of them."""
    return frozenset({user.inputs.index(var)}) in linear and user.output.type.size < var.type.size
