"""Numbers for sizes: expressions become Python functions of integers once, so that a call with other shapes
does no symbolic work.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import sympy

from infini.core import errors

Size: TypeAlias = Any  # Any: an int or a SymPy expression; SymPy's operators are not typed

_COMPARISONS: Final = {
    sympy.Eq: "==",
    sympy.Ne: "!=",
    sympy.Lt: "<",
    sympy.Le: "<=",
    sympy.Gt: ">",
    sympy.Ge: ">=",
}
_CONNECTIVES: Final = {sympy.And: " and ", sympy.Or: " or "}


class Numbers:
    """The values of some expressions, from those of their symbols.

    Args:
        expressions: integer expressions, or comparisons of these.
    """

    __slots__ = ("_evaluate", "expressions", "symbols")

    def __init__(self, expressions: Sequence[Size]) -> None:
        self.expressions = tuple(expressions)
        found = {s for e in self.expressions for s in e.free_symbols}
        self.symbols = tuple(sorted(found, key=lambda s: s.sort_key()))
        names = {s: f"s{n}" for n, s in enumerate(self.symbols)}
        text = "".join(f"{_text(e, names)}, " for e in self.expressions)
        code = f"lambda {', '.join(names.values())}: ({text})"
        # The text has names, integers and operators that this file wrote, and nothing else.
        self._evaluate: Callable[..., tuple[int, ...]] = eval(code, {"min": min, "max": max})

    def __call__(self, values: Mapping[Size, int]) -> tuple[int, ...]:
        """The values, in order.

        Raises:
            TypeMismatchError: a symbol has no value.
            ValueMismatchError: something is divided by a size that is 0.
        """
        try:
            return self._evaluate(*[values[s] for s in self.symbols])
        except KeyError:
            raise self._unknown(values) from None
        except ZeroDivisionError:
            zero = ", ".join(str(s) for s in self.symbols if values[s] == 0)
            raise errors.ValueMismatchError(
                "an arrangement divides by a size that is 0", got=f"{zero} = 0", expected="at least 1"
            ) from None

    def are_known(self, values: Mapping[Size, int]) -> bool:
        """Whether every symbol has a value."""
        return all(s in values for s in self.symbols)

    def _unknown(self, values: Mapping[Size, int]) -> errors.TypeMismatchError:
        expression = next(e for e in self.expressions if not e.free_symbols <= values.keys())
        missing = sorted(str(s) for s in expression.free_symbols if s not in values)
        return errors.TypeMismatchError(
            f"the size {expression} is not known from the operands",
            got=f"no value for {', '.join(missing)}",
            fix="give a tensor of the result shape= in terms of the shapes of the operands, "
            f"or give the call {missing[0]}=",
        )


# At most 4096 expressions, the one not used for longest goes first; they are small and never grow stale.
@functools.lru_cache(4096)
def _numbers(expression: Size) -> Numbers:
    return Numbers([expression])


def number(expression: Size, values: Mapping[Size, int]) -> int:
    """The value of an expression.

    Raises:
        TypeMismatchError: a symbol in it has no value.
    """
    if expression.is_Integer:
        return int(expression)
    if expression in values:
        return values[expression]
    return _numbers(expression)(values)[0]


def _text(expression: Size, names: Mapping[Size, str]) -> str:
    """Python's text of an integer expression; quotients are exact, never floating point."""

    def joined(between: str) -> str:
        return f"({between.join(_text(x, names) for x in expression.args)})"

    if expression.is_Symbol:
        return names[expression]
    if isinstance(expression, (sympy.ceiling, sympy.floor)):
        top, bottom = _fraction(expression.args[0], names)
        is_up = isinstance(expression, sympy.ceiling)
        return f"(-(-{top} // {bottom or 1}))" if is_up else f"({top} // {bottom or 1})"
    if isinstance(expression, (sympy.Max, sympy.Min)):
        return f"{'max' if isinstance(expression, sympy.Max) else 'min'}{joined(', ')}"
    if isinstance(expression, sympy.Mod):
        return joined(" % ")
    if type(expression) in _COMPARISONS:
        return joined(f" {_COMPARISONS[type(expression)]} ")
    if type(expression) in _CONNECTIVES:
        return joined(_CONNECTIVES[type(expression)])
    if expression.is_Pow and expression.exp.is_Integer and expression.exp > 0:
        return joined(" ** ")
    if expression.is_Add or expression.is_Mul or expression.is_Integer:
        top, bottom = _fraction(expression, names)
        # A size whose divisor is known to divide.
        return f"({top} // {bottom})" if bottom else top
    raise errors.TypeMismatchError(
        "this is not a size",
        got=str(expression),
        expected="sums, products, quotients and bounds of symbols",
    )


def _fraction(expression: Size, names: Mapping[Size, str]) -> tuple[str, str]:
    """Texts of a numerator and of a denominator, empty for 1. SymPy's own way takes longer than everything
    else in the first call.
    """
    if expression.is_Rational:
        return f"({expression.p})", "" if expression.q == 1 else f"({expression.q})"
    if expression.is_Pow and expression.exp.is_Integer and expression.exp < 0:
        return "(1)", f"({_text(expression.base, names)} ** {-int(expression.exp)})"
    if not (expression.is_Add or expression.is_Mul):
        return _text(expression, names), ""
    parts = [_fraction(x, names) for x in expression.args]
    bottoms = [bottom for _, bottom in parts if bottom]
    if expression.is_Mul:
        return f"({' * '.join(top for top, _ in parts)})", _product(bottoms)
    unique = list(dict.fromkeys(bottoms))
    tops = [" * ".join([top, *(b for b in unique if b != bottom)]) for top, bottom in parts]
    return f"({' + '.join(tops)})", _product(unique)


def _product(texts: Sequence[str]) -> str:
    return f"({' * '.join(texts)})" if len(texts) > 1 else "".join(texts)
