"""Products that leave a scan: one large product over all steps instead of a small one in each.

Three places, all for products that no carry takes part in:

- *before* the loop: a slice of the xs times a constant of the loop (the input projection of a recurrent
  cell); the loop takes slices of the result;
- *after* it: what the body makes, times a constant of the loop, when it is only stacked;
- *summed*: a carry that only grows by a product or a sum per step (the gradient of a weight) is the
  contraction over all steps of the stacked operands.

What is stacked for that must be there already, or be small beside what the loop reads and writes anyway. A
sum over steps is rounded less often than one in each step; integers are exact either way.
"""

from __future__ import annotations

import dataclasses
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from infini.compiler.passes import rewrite
from infini.compiler.passes.loop_parts import Carried, Filled, Given, Scan
from infini.core import ir, primitive
from infini.core.ir import Equation, Program, Var
from infini.lax import contraction, scanning

VIA: Final = "loop_products"
ENOUGH: Final = 128  # rows, or terms of a sum, from which on a product is as fast alone
MAX_GROWTH: Final = 4  # bytes that are stacked per byte of what is stacked anyway: loops save memory, too
MAX_STACKED_BYTES: Final = 1 << 27
_VIEWS: Final = frozenset({"transpose", "reshape"})


def leave_scans(program: Program) -> Program:
    """The program, and those inside it, with the products of its scans over all steps at once."""
    if not any(equation.programs for equation in program.equations):
        return program
    builder, env = ir.Builder(), {}
    for var, constant in program.consts:
        env[var] = builder.constant(constant.array)
    for equation in program.equations:
        inputs = tuple(env.get(v, v) for v in equation.inputs)
        attrs = rewrite.map_programs(equation.attrs, leave_scans)
        if inputs != equation.inputs or attrs is not equation.attrs:
            equation = dataclasses.replace(equation, inputs=inputs, attrs=attrs)
        if equation.op.name == "scan" and equation.attrs["length"] > 1:
            env.update(_Products(builder, Scan.of(equation)).run())
        else:
            builder.append(equation)
    results = [env.get(v, v) for v in program.results]
    return builder.build(program.params, results, name=program.name)


@dataclass(frozen=True, slots=True)
class _Growth:
    """How a carry grows: by a product or a sum, under views."""

    adds: Equation
    views: tuple[Equation, ...]  # from the carry's type inwards
    term: Equation


class _Products:
    """One scan, appended to a builder with the products that leave it."""

    def __init__(self, builder: ir.Builder, scan: Scan) -> None:
        self.builder, self.scan = builder, scan
        self.maker = {v: e for e in scan.equations for v in e.outputs}
        self.consts = {given.inner: given.outer for given in scan.consts}
        self.arrays = {y.inner: y.outer for y in scan.ys} | {x.inner: x.outer for x in scan.xs}
        self.env: dict[Var, Var] = {}
        self._count()

    def run(self) -> dict[Var, Var]:
        """Append the loop; what stands for its outputs from now on."""
        ys = list(self.scan.ys)
        summed = []
        # What one sum stacks, another one may read.
        while found := next(((c, g) for c in self.scan.carry if (g := self._growth(c)) is not None), None):
            self._drop_carry(*found)
            summed.append(found)
        needed = {v for _, growth in summed for v in growth.term.inputs}
        sunk = [(y, e) for y in ys if y.inner not in needed and (e := self._sinks(y)) is not None]
        for y, equation in sunk:
            self.scan.ys.remove(y)
            del self.arrays[y.inner]
            self._drop(equation)
            for v in equation.inputs:
                self._stack(v)
        for equation in list(self.scan.equations):
            self._before(equation)
        self.builder.append(self.scan.build(self.scan.equation.via))
        self.env.update((c.end, self._total(c, growth)) for c, growth in summed)
        self.env.update((y.outer, self._at_once(equation)) for y, equation in sunk)
        return self.env

    def _count(self) -> None:
        ends = [*(c.after for c in self.scan.carry), *(y.inner for y in self.scan.ys)]
        self.uses = Counter([*(v for e in self.scan.equations for v in e.inputs), *ends])

    def _drop(self, equation: Equation) -> None:
        self.scan.equations = [e for e in self.scan.equations if e is not equation]
        self._count()

    # --- arrays of all steps -----------------------------------------------------------------------

    def _stack(self, var: Var) -> None:
        if var not in self.consts and var not in self.arrays:
            self.arrays[var] = Var(scanning.stacked(var.type, self.scan.length))
            self.scan.ys.append(Filled(var, self.arrays[var]))
            self._count()

    def _extra_bytes(self, equation: Equation) -> int:
        """Bytes that have to be stacked for the operands of an equation."""
        return self.scan.length * sum(
            v.type.nbytes for v in set(equation.inputs) if v not in self.consts and v not in self.arrays
        )

    # --- sums -----------------------------------------------------------------------------------

    def _growth(self, carried: Carried) -> _Growth | None:
        adds = self.maker.get(carried.after)
        if adds is None or adds.op.name != "add" or adds.inputs.count(carried.inner) != 1:
            return None
        if self.uses[carried.inner] != 1 or self.uses[carried.after] != 1:
            return None
        (var,) = (v for v in adds.inputs if v is not carried.inner)
        views: list[Equation] = []
        term = self.maker.get(var)
        while term is not None and term.op.name in _VIEWS and self.uses[var] == 1:
            views.append(term)
            (var,) = term.inputs
            term = self.maker.get(var)
        if term is None or self.uses[var] != 1 or not self._is_better_at_once(term, carried):
            return None
        return _Growth(adds, tuple(views), term)

    def _is_better_at_once(self, term: Equation, carried: Carried) -> bool:
        extra = self._extra_bytes(term)
        if term.op.name == "reduce_sum":
            return extra == 0 and term.inputs[0] not in self.consts
        if term.op.name != "dot" or any(v in self.consts for v in term.inputs):
            return False
        a, b, out = contraction.parse_spec(term.attrs["spec"])
        x, y = (v.type for v in term.inputs)
        if (x.ndim, y.ndim) != (len(a), len(b)):
            return False
        terms = _size(x, a, set(b) - set(out))
        # The stacked operands take the place of as many sums in the memory of the carry.
        return extra == 0 or (
            terms < ENOUGH and extra <= min(MAX_STACKED_BYTES, 64 * carried.inner.type.nbytes)
        )

    def _drop_carry(self, carried: Carried, growth: _Growth) -> None:
        self.scan.carry = [c for c in self.scan.carry if c is not carried]
        for equation in (growth.adds, *growth.views, growth.term):
            self._drop(equation)
        for v in growth.term.inputs:
            self._stack(v)

    def _total(self, carried: Carried, growth: _Growth) -> Var:
        """The start of a carry with the terms of all steps."""
        term = growth.term
        arrays = [self.arrays[v] for v in term.inputs]
        if term.op.name == "reduce_sum":
            (x,) = arrays
            total = self._emit(
                term, "reduce_sum", [x], axes=tuple(sorted({-x.type.ndim, *term.attrs["axes"]}))
            )
        else:
            a, b, out = contraction.parse_spec(term.attrs["spec"])
            step = next(c for c in string.ascii_letters if c not in a + b)
            total = self._emit(
                term, "dot", arrays, spec=f"{step}{a},{step}{b}->{out}", dtype=term.attrs["dtype"]
            )
        for view in reversed(growth.views):
            (total,) = self.builder.emit(view.op, [total], view.attrs, where=view.where, via=VIA)
        return self._emit(growth.adds, "add", [carried.start, total])

    # --- after and before ---------------------------------------------------------------------------

    def _operand(self, equation: Equation) -> int | None:
        """Which operand of a product with a constant of the loop changes from step to step."""
        if equation.op.name != "dot":
            return None
        a, b, out = contraction.parse_spec(equation.attrs["spec"])
        x, y = equation.inputs
        if (x.type.ndim, y.type.ndim) != (len(a), len(b)) or equation.output.type.ndim != len(out):
            return None
        varying = [i for i, v in enumerate(equation.inputs) if v not in self.consts]
        if len(varying) != 1:
            return None
        # Enough rows of their own fill the registers without those of other steps.
        (i,) = varying
        mine, other = ((a, b), (b, a))[i]
        rows = _size(equation.inputs[i].type, mine, set(mine) - set(other))
        return i if rows < ENOUGH else None

    def _sinks(self, y: Filled) -> Equation | None:
        """The product that an array is filled with, when all steps at once are better."""
        equation = self.maker.get(y.inner)
        if equation is None or self.uses[y.inner] != 1 or self._operand(equation) is None:
            return None
        extra = self._extra_bytes(equation)
        return equation if extra <= min(MAX_GROWTH * y.outer.type.nbytes, MAX_STACKED_BYTES) else None

    def _at_once(self, equation: Equation) -> Var:
        """A product in all steps."""
        i = self._operand(equation)
        assert i is not None
        arrays = [self.consts[v] if v in self.consts else self.arrays[v] for v in equation.inputs]
        letters = list(contraction.parse_spec(equation.attrs["spec"]))
        step = next(c for c in string.ascii_letters if c not in letters[0] + letters[1])
        letters[i] = step + letters[i]
        spec = f"{letters[0]},{letters[1]}->{step}{letters[2]}"
        return self._emit(equation, "dot", arrays, spec=spec, dtype=equation.attrs["dtype"])

    def _before(self, equation: Equation) -> None:
        i = self._operand(equation)
        if i is None:
            return
        x = next((g for g in self.scan.xs if g.inner is equation.inputs[i]), None)
        nbytes = self.scan.length * equation.output.type.nbytes
        if x is None or nbytes > min(MAX_GROWTH * x.outer.type.nbytes, MAX_STACKED_BYTES):
            return
        result = self._at_once(equation)
        self._drop(equation)
        self.scan.xs.append(Given(result, equation.output))
        self.arrays[equation.output] = result
        for y in [y for y in self.scan.ys if y.inner is equation.output]:
            self.scan.ys.remove(y)
            self.env[y.outer] = result
        if not self.uses[x.inner]:
            self.scan.xs.remove(x)

    def _emit(self, before: Equation, op: str, inputs: Sequence[Var], **attrs: object) -> Var:
        (output,) = self.builder.emit(
            primitive.by_name(op), inputs, ir.Attrs(attrs), where=before.where, via=VIA
        )
        return output


def _size(type_: ir.ArrayType, letters: str, chosen: set[str]) -> int:
    size = 1
    for letter, extent in zip(letters, type_.shape, strict=True):
        size *= extent if letter in chosen else 1
    return size
