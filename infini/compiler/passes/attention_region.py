"""What the values around a product of queries and keys are, as far as attention needs to know.

From the product on, every value is followed through the program and described as `attention_terms` says. So
softmax and its gradient are found in whatever order of operations they are written, derived and simplified;
what is no such formula is left alone.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from infini.compiler import views
from infini.compiler.passes.attention_terms import (
    Condition,
    Dims,
    E,
    Known,
    L,
    Located,
    Term,
    Use,
    permutation,
    regrouped,
    untransposed,
)
from infini.core import dtypes
from infini.core.ir import Equation, Program, Var
from infini.lax import contraction


class Table:
    """Definitions, uses and constants of a program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.index: dict[Var, int] = {}
        self.uses: dict[Var, list[int]] = {}
        for i, equation in enumerate(program.equations):
            self.index.update((v, i) for v in equation.outputs)
            for v in dict.fromkeys(equation.inputs):
                self.uses.setdefault(v, []).append(i)
        self.constants = dict(program.consts)

    def definition(self, var: Var) -> Equation | None:
        """The equation that makes a variable; a mask that a recomputed block is given is known through the
        barrier before it.
        """
        i = self.index.get(var)
        found = None if i is None else self.program.equations[i]
        if found is None or found.op.name != "optimization_barrier" or var.type.dtype in dtypes.INEXACT:
            return found
        return self.definition(found.inputs[found.outputs.index(var)])

    def number(self, var: Var) -> float | None:
        """The one number that all elements of a variable are."""
        constant = self.constants.get(var)
        if constant is not None:
            return float(constant.array.reshape(-1)[0]) if constant.is_scalar and _is_real(var) else None
        found = self.definition(var)
        if found is None or found.op.name not in ("broadcast_in_dim", "reshape", "convert_element_type"):
            return None
        return self.number(found.inputs[0])

    def located(self, var: Var, dims: Dims, sizes: Mapping[str, int]) -> Located:
        """The array a view shows, with its letters."""
        found = self.definition(var)
        if found is not None and found.op.name in ("reshape", "transpose"):
            (source,) = found.inputs
            before = (
                regrouped(dims, sizes, source.type.shape)
                if found.op.name == "reshape"
                else untransposed(dims, found)
            )
            if before is not None:
                return self.located(source, before, sizes)
        return Located(var, dims)


def _is_real(var: Var) -> bool:
    return var.type.dtype not in dtypes.COMPLEX


class Region:
    """Everything that follows from one product of queries and keys.

    Args:
        table: the program.
        product: the contraction.
    """

    def __init__(self, table: Table, product: Equation) -> None:
        self.table, self.product = table, product
        self.sizes: dict[str, int] = {}
        self.known: dict[Var, Known] = {}
        self.contractions: list[Use] = []
        self.key = ""  # the letter that softmax sums over
        self.largest: list[Var] = []
        self.total: list[Var] = []
        self.change: tuple[Equation, Dims] | None = None  # the contraction that is w, and its letters

    def run(self) -> None:
        """Follow the product."""
        _, _, out = contraction.parse_spec(self.product.attrs["spec"])
        dims = tuple((f"x{i}",) if n != 1 else () for i, n in enumerate(self.product.output.type.shape))
        self.sizes = {f"x{i}": n for i, n in enumerate(self.product.output.type.shape)}
        if len(out) != len(dims):
            return
        self.known[self.product.output] = Known(dims, "scores")
        pending = list(self.table.uses.get(self.product.output, ()))
        heapq.heapify(pending)
        seen: set[int] = set()
        while pending:
            i = heapq.heappop(pending)
            if i in seen:
                continue
            seen.add(i)
            equation = self.table.program.equations[i]
            found = self._followed(equation)
            if found is not None:
                self.known[equation.output] = found
                for use in self.table.uses.get(equation.output, ()):
                    heapq.heappush(pending, use)

    # --- operations --------------------------------------------------------------------------------

    def _followed(self, equation: Equation) -> Known | None:
        name = equation.op.name
        if name == "dot":
            self._contracted(equation)
            return None
        rule = _RULES.get(name)
        return None if rule is None else rule(self, equation)

    def _contracted(self, equation: Equation) -> None:
        for i, var in enumerate(equation.inputs):
            known = self.known.get(var)
            if known is not None and known.kind == "sum" and self._has_keys(known.dims):
                self.contractions.append(Use(equation, i, known))

    def _has_keys(self, dims: Dims) -> bool:
        return any(self.key in dim for dim in dims)

    def reshape(self, equation: Equation) -> Known | None:
        """The same elements in other dimensions."""
        known = self.known[equation.inputs[0]]
        dims = regrouped(known.dims, self.sizes, equation.output.type.shape)
        return None if dims is None else replace(known, dims=dims)

    def transpose(self, equation: Equation) -> Known | None:
        """The same elements in another order."""
        known = self.known[equation.inputs[0]]
        return replace(known, dims=tuple(known.dims[p] for p in permutation(equation)))

    def convert(self, equation: Equation) -> Known | None:
        """The same numbers, rounded perhaps."""
        is_float = equation.output.type.dtype in dtypes.FLOATS
        return self.known[equation.inputs[0]] if is_float else None

    def broadcast(self, equation: Equation) -> Known | None:
        """Repeated along new dimensions, whose letters the context will tell."""
        known, shape = self.known[equation.inputs[0]], equation.output.type.shape
        dims: list[tuple[str, ...]] = []
        places = dict(zip(views.kept(equation), known.dims, strict=True))
        for i, size in enumerate(shape):
            if i in places and (places[i] or size == 1):
                dims.append(places[i])
            elif size == 1:
                dims.append(())
            else:
                name = f"*{len(self.sizes)}"
                self.sizes[name] = size
                dims.append((name,))
        return replace(known, dims=tuple(dims))

    def reduce_max(self, equation: Equation) -> Known | None:
        """The largest score of each row."""
        known = self.known[equation.inputs[0]]
        letter = self._reduced(equation, known)
        if known.kind != "scores" or letter is None or self.key not in ("", letter):
            return None
        self.key = letter
        self.largest.append(equation.output)
        return replace(known, kind="largest", dims=self._without(known, equation))

    def reduce_sum(self, equation: Equation) -> Known | None:
        """The sum of each row: of e it is l, of e w it is d."""
        known = self.known[equation.inputs[0]]
        if known.kind != "sum" or self._reduced(equation, known) != self.key:
            return None
        found: dict[Term, float] = {}
        for term, factor in known.sum.items():
            if (term.e, term.w) not in ((1, 0), (1, 1)) or term.conditions:
                return None
            summed = Term(l=term.l + (term.w == 0), d=term.d + (term.w == 1))
            found[summed] = found.get(summed, 0.0) + factor
        largest = max(map(abs, known.sum.values()), default=0.0)
        found = {term: factor for term, factor in found.items() if abs(factor) > 1e-6 * largest}
        if found == {L: 1.0}:
            self.total.append(equation.output)
        return Known(self._without(known, equation), "sum", known.scores, found)

    def _reduced(self, equation: Equation, known: Known) -> str | None:
        axes = equation.attrs["axes"]
        letters = known.dims[axes[0]] if len(axes) == 1 else ()
        return letters[0] if len(letters) == 1 else None

    def _without(self, known: Known, equation: Equation) -> Dims:
        (axis,) = equation.attrs["axes"]
        place = axis % len(known.dims)
        return (*known.dims[:place], *known.dims[place + 1 :])

    def exp(self, equation: Equation) -> Known | None:
        """The exponential of scores less the largest is e."""
        known = self.known[equation.inputs[0]]
        return Known(known.dims, "sum", known.scores, {E: 1.0}) if known.kind == "shifted" else None

    def neg(self, equation: Equation) -> Known | None:
        """The negative of a sum."""
        return self._scaled(self.known[equation.inputs[0]], -1.0)

    def mul(self, equation: Equation) -> Known | None:
        """A product with a number or of two sums."""
        x, y = equation.inputs
        for a, b in ((x, y), (y, x)):
            number = self.table.number(b)
            if a in self.known and number is not None:
                return self._scaled(self.known[a], number)
        return self._product(equation, 1)

    def div(self, equation: Equation) -> Known | None:
        """A quotient."""
        x, y = equation.inputs
        number = self.table.number(y)
        if x in self.known and number:
            return self._scaled(self.known[x], 1 / number)
        return self._product(equation, -1)

    def integer_pow(self, equation: Equation) -> Known | None:
        """A power of one term."""
        known, power = self.known[equation.inputs[0]], equation.attrs["y"]
        if known.kind != "sum" or len(known.sum) != 1:
            return None
        ((term, factor),) = known.sum.items()
        return replace(known, sum={Term().times(term, power): factor**power}) if factor else None

    def add(self, equation: Equation) -> Known | None:
        """A sum of sums, or scores and a bias."""
        for x, other in (equation.inputs, reversed(equation.inputs)):
            known = self.known.get(x)
            if known is not None and known.kind == "scores" and other not in self.known:
                return self._biased(known, other, equation)
        return self._added(equation, 1.0)

    def sub(self, equation: Equation) -> Known | None:
        """A difference of sums, or scores less the largest."""
        x, y = (self.known.get(v) for v in equation.inputs)
        if x is not None and x.kind == "scores":
            dims = None if y is None else self._joined(x.dims, y.dims)
            is_largest = y is not None and y.kind == "largest" and y.scores == x.scores
            return replace(x, kind="shifted", dims=dims) if is_largest and dims is not None else None
        return self._added(equation, -1.0)

    def select(self, equation: Equation) -> Known | None:
        """Something where a condition holds, and a number elsewhere."""
        if len(equation.inputs) != 3:
            return None
        condition, no, yes = equation.inputs
        is_inverted = no in self.known
        x, other = (no, yes) if is_inverted else (yes, no)
        fill, known = self.table.number(other), self.known.get(x)
        if fill is None or known is None or condition.type.dtype != dtypes.bool_:
            return None
        dims = self._aligned(condition, known.dims)
        if dims is None or equation.output.type.shape != x.type.shape:
            return None
        found = Condition(self._stripped(condition, dims), is_inverted)
        if known.kind == "scores":
            scores = known.scores
            if scores.conditions and scores.fill != fill:
                return None
            conditions = (*scores.conditions, *(c for c in (found,) if c not in scores.conditions))
            return replace(known, scores=replace(scores, conditions=conditions, fill=fill))
        if known.kind != "sum" or fill != 0:
            return None
        return replace(
            known, sum={replace(t, conditions=t.conditions | {found}): c for t, c in known.sum.items()}
        )

    # --- helpers -----------------------------------------------------------------------------------

    def _scaled(self, known: Known, factor: float) -> Known | None:
        if known.kind == "sum":
            return replace(known, sum={t: c * factor for t, c in known.sum.items()})
        scores = known.scores
        if known.kind != "scores" or scores.bias is not None or factor <= 0:
            return None
        return replace(known, scores=replace(scores, scale=scores.scale * factor, fill=scores.fill * factor))

    def _biased(self, known: Known, bias: Var, equation: Equation) -> Known | None:
        dims = self._aligned(bias, known.dims)
        if dims is None or known.scores.bias or known.scores.conditions:
            return None
        if equation.output.type.size != math.prod(self.sizes[c] for dim in known.dims for c in dim):
            return None
        located = self._stripped(bias, dims)
        return replace(known, scores=replace(known.scores, bias=located))

    def _stripped(self, var: Var, dims: Dims) -> Located:
        """An array without the broadcasts that repeat it."""
        located = self.table.located(var, dims, self.sizes)
        found = self.table.definition(located.var)
        if found is None or found.op.name != "broadcast_in_dim" or not found.inputs[0].type.shape:
            return located
        source = found.inputs[0]
        kept = []
        for size, place in zip(source.type.shape, views.kept(found), strict=True):
            kept.append(() if size == 1 else located.dims[place])
        return self._stripped(source, tuple(kept))

    def _aligned(self, var: Var, dims: Dims) -> Dims | None:
        """Letters of an operand that broadcasts with one of these letters."""
        shape = var.type.shape
        if len(shape) > len(dims):
            return None
        own = dims[len(dims) - len(shape) :]
        found = []
        for size, letters in zip(shape, own, strict=True):
            if size != 1 and size != math.prod(self.sizes[c] for c in letters):
                return None
            found.append(() if size == 1 else letters)
        return tuple(found)

    def _joined(self, a: Dims, b: Dims) -> Dims | None:
        """Letters of a result of two operands that broadcast."""
        short, long = sorted((a, b), key=len)
        found = list(long[: len(long) - len(short)])
        for x, y in zip(short, long[len(found) :], strict=True):
            if x == y or not y or (len(y) == 1 and y[0].startswith("*") and x):
                found.append(x)
            elif not x or (len(x) == 1 and x[0].startswith("*")):
                found.append(y)
            else:
                return None
        return tuple(found)

    def _pair(self, equation: Equation) -> tuple[Known, Known, Dims] | None:
        """Two operands as sums; one that is not known may be w."""
        operands: list[Known | None] = [self.known.get(v) for v in equation.inputs]
        for i, one in enumerate(operands):
            other = operands[1 - i]
            if one is None and other is not None and other.kind == "sum":
                operands[i] = self._as_change(equation.inputs[i], other.dims)
        a, b = operands
        if a is None or b is None or a.kind != "sum" or b.kind != "sum":
            return None
        dims = self._joined(a.dims, b.dims)
        return None if dims is None else (a, b, dims)

    def _product(self, equation: Equation, power: int) -> Known | None:
        pair = self._pair(equation)
        if pair is None:
            return self._nothing(equation, power)
        if power < 0 and len(pair[1].sum) != 1:
            return None
        a, b, dims = pair
        found: dict[Term, float] = {}
        for t, c in a.sum.items():
            for u, g in b.sum.items():
                if not g:
                    return None
                term = t.times(u, power)
                found[term] = found.get(term, 0.0) + c * g**power
        return replace(a, dims=dims, sum=found)

    def _nothing(self, equation: Equation, power: int) -> Known | None:
        """Zero times or over anything is zero: what softmax's largest score gives its derivative."""
        for x in equation.inputs if power > 0 else equation.inputs[:1]:
            known = self.known.get(x)
            if known is not None and known.kind == "sum" and not any(known.sum.values()):
                return known if x.type.shape == equation.output.type.shape else None
        return None

    def _added(self, equation: Equation, sign: float) -> Known | None:
        pair = self._pair(equation)
        if pair is None:
            return None
        a, b, dims = pair
        found = dict(a.sum)
        for t, c in b.sum.items():
            found[t] = found.get(t, 0.0) + sign * c
        return replace(a, dims=dims, sum=found)

    def _as_change(self, var: Var, context: Dims) -> Known | None:
        """An unknown matrix as w, when it is a contraction that gives one; the context tells its letters."""
        dims = self._matrix_dims(var, context)
        if dims is None:
            return None
        located = self.table.located(var, dims, self.sizes)
        equation, inner = self.table.definition(located.var), located.dims
        while equation is not None and equation.op.name == "convert_element_type":
            located = self.table.located(equation.inputs[0], inner, self.sizes)
            equation, inner = self.table.definition(located.var), located.dims
        if equation is None or equation.op.name != "dot":
            return None
        if self.change is None:
            self.change = equation, inner
        if self.change != (equation, inner):
            return None
        return Known(dims, "sum", sum={Term(w=1): 1.0})

    def _matrix_dims(self, var: Var, context: Dims) -> Dims | None:
        """Letters of a matrix that broadcasts with what has the letters of the context."""
        shape = var.type.shape
        if len(shape) != len(context):
            return None
        found: list[tuple[str, ...]] = []
        for size, letters in zip(shape, context, strict=True):
            is_open = not letters or letters[0].startswith("*")
            own = ((self.key,) if self.key and size == self.sizes[self.key] else None) if is_open else letters
            if size == 1:
                own = ()
            if own is None or math.prod(self.sizes[c] for c in own) != size:
                return None
            found.append(own)
        used = [c for dim in found for c in dim]
        every = {c for c in self.sizes if not c.startswith("*") and self.sizes[c] != 1}
        return tuple(found) if set(used) == every and len(used) == len(every) else None


_RULES: Final[dict[str, Callable[[Region, Equation], Known | None]]] = {
    "add": Region.add,
    "broadcast_in_dim": Region.broadcast,
    "convert_element_type": Region.convert,
    "div": Region.div,
    "exp": Region.exp,
    "integer_pow": Region.integer_pow,
    "mul": Region.mul,
    "neg": Region.neg,
    "reduce_max": Region.reduce_max,
    "reduce_sum": Region.reduce_sum,
    "reshape": Region.reshape,
    "select_n": Region.select,
    "sub": Region.sub,
    "transpose": Region.transpose,
}
