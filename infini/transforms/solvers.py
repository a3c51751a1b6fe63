"""Solutions of equations, differentiated by the implicit function theorem: `custom_root` and
`custom_linear_solve`, as in `jax.lax`.

The solver itself is never differentiated. The derivative of a root solves a linear equation, and so does the
derivative of a linear solution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from infini.core import errors, trace, tree
from infini.core.ir import ArrayType
from infini.core.value import Value
from infini.lax.calls import MaybeValues, Values, call_p, merge, nonzero
from infini.lax.cond import unify_captures
from infini.lax.linear_solve import linear_solve_p
from infini.transforms import directional, flat, forward, pullback, transposition
from infini.transforms.custom_calls import CustomCall

Solve = Callable[..., Any]  # Any: (function, pytree) -> pytree, or a pair of it and aux


@dataclass(slots=True)
class _Unknown:
    """The unknown of an equation: its structure and types, and functions of it staged and checked."""

    what: str
    structure: tree.PyTreeDef
    types: list[ArrayType]
    weak: list[bool]
    aux_tree: tree.PyTreeDef = field(default_factory=lambda: tree.structure(()))

    @classmethod
    def of(cls, x: Any, what: str) -> tuple[_Unknown, list[Value]]:
        """The unknown that is like `x`, and the leaves of `x`."""
        leaves, structure = tree.flatten(x)
        values = flat.values(leaves, f"arrays given to {what}")
        return cls(what, structure, [v.type for v in values], [v.weak for v in values]), values

    def stage(
        self, function: Callable[..., Any], name: str, num_unknowns: int = 1, has_aux: bool = False
    ) -> trace.Staged:
        """A function of some unknowns that returns one, or with `has_aux` a pair of it and more.

        Raises:
            TypeMismatchError: it returns something of another structure.
            ValueMismatchError: it returns something of another shape.
        """
        size = len(self.types)

        def run(*leaves: Value) -> Sequence[Any]:
            parts = [leaves[i * size : (i + 1) * size] for i in range(num_unknowns)]
            result = function(*(tree.unflatten(self.structure, part) for part in parts))
            extra: list[Any] = []
            if has_aux:
                result, aux = flat.split_aux(result, name)
                extra, self.aux_tree = tree.flatten(aux)
            found, structure = tree.flatten(result)
            if structure != self.structure:
                is_longer = len(found) != size and self.what == "custom_linear_solve"
                kind = errors.ValueMismatchError if is_longer else errors.TypeMismatchError
                raise kind(
                    f"{self.what}: {name} must return the structure of its argument",
                    got=str(structure),
                    expected=str(self.structure),
                )
            values = flat.values(found, f"results of {name}")
            for value, type_ in zip(values, self.types, strict=True):
                if value.shape != type_.shape:
                    raise errors.ValueMismatchError(
                        f"{self.what}: {name} must return the shapes of its argument",
                        got=str(value.type),
                        expected=str(type_),
                    )
            return [*values, *flat.values(extra, f"auxiliary results of {name}")]

        return trace.stage(run, self.types * num_unknowns, weak=self.weak * num_unknowns, name=name)

    def result(self, found: Sequence[Value], weak: Sequence[bool], has_aux: bool) -> Any:  # Any: pytrees
        """The solution, and with `has_aux` what came with it."""
        marked = [r.with_weak(flag) for r, flag in zip(flat.finished(found), weak, strict=True)]
        size = len(self.types)
        solution = tree.unflatten(self.structure, marked[:size])
        return (solution, tree.unflatten(self.aux_tree, marked[size:])) if has_aux else solution


def custom_linear_solve(
    matvec: Callable[[Any], Any],
    b: Any,
    solve: Solve,
    transpose_solve: Solve | None = None,
    symmetric: bool = False,
    has_aux: bool = False,
) -> Any:  # Any: pytrees
    """Solve `matvec(x) = b` with a solver of one's own, as `jax.lax.custom_linear_solve`.

    Args:
        matvec: linear function of a tree like `b`; it may close over values that are differentiated.
        b: pytree of arrays.
        solve: `solve(matvec, b)` returns `x`, or `(x, aux)` with `has_aux`.
        transpose_solve: the same for the transposed function; reverse mode needs it.
        symmetric: `matvec` is its own transpose, so `solve` solves both.
        has_aux: whether the solvers return `(x, aux)`.

    Returns:
        `x`, or `(x, aux)`.

    Raises:
        TypeMismatchError: `matvec` or a solver returns another structure than that of `b`; or in reverse
            mode there is no `transpose_solve` and the function is not symmetric.
        ValueMismatchError: it returns another shape.

    Example:
        >>> import infini as inf, infini.numpy as inp
        >>> b = inp.asarray([2.0, 4.0])
        >>> inf.lax.custom_linear_solve(lambda x: 2 * x, b, lambda matvec, b: b / 2)
        Array([1., 2.], dtype=float32)
    """
    unknown, operands = _Unknown.of(b, "custom_linear_solve")
    applied = unknown.stage(matvec, "matvec")
    staged = [applied, unknown.stage(lambda x: solve(matvec, x), "solve", has_aux=has_aux)]
    if symmetric:
        transpose_solve = solve if transpose_solve is None else transpose_solve
        staged.append(applied)
    elif transpose_solve is not None:
        staged.append(_transposed(applied, len(operands)))
    if transpose_solve is not None:
        solver, turned = transpose_solve, staged[2]

        def vecmat(x: Any) -> Any:
            leaves = flat.values(tree.leaves(x), "arguments of the transposed function")
            found = trace.evaluate(turned.program, [*turned.captures, *leaves])
            return tree.unflatten(unknown.structure, found)

        back = matvec if symmetric else vecmat
        staged.append(unknown.stage(lambda x: solver(back, x), "transpose_solve", has_aux=has_aux))
    programs, captures = unify_captures(staged)
    found = trace.bind(
        linear_solve_p,
        *captures,
        *operands,
        matvec=programs[0],
        solve=programs[1],
        vecmat=programs[2] if len(programs) > 2 else None,
        transpose_solve=programs[3] if len(programs) > 2 else None,
        num_consts=len(captures),
    )
    return unknown.result(found, staged[1].weak, has_aux)


def _transposed(staged: trace.Staged, size: int) -> trace.Staged:
    """The transpose of a linear function; its captures are the same."""
    every = (True,) * size
    linear = (*(False,) * len(staged.captures), *every)
    program, _ = transposition.transpose_program(staged.program, linear, every, every)
    return trace.Staged(program, staged.captures, staged.weak)


def custom_root(
    f: Callable[[Any], Any],
    initial_guess: Any,
    solve: Solve,
    tangent_solve: Solve,
    has_aux: bool = False,
) -> Any:  # Any: pytrees
    """Find a root of `f` with a solver of one's own, as `jax.lax.custom_root`.

    Args:
        f: function of a tree like `initial_guess`, with results of the same structure and shapes; it may
            close over values that are differentiated.
        initial_guess: where the solver starts, a pytree of arrays; the root does not depend on it.
        solve: `solve(f, initial_guess)` returns `x` with `f(x) = 0`, or `(x, aux)` with `has_aux`.
        tangent_solve: `tangent_solve(g, y)` returns `x` with `g(x) = y` for the linear function `g`, the
            derivative of `f` at the root. For scalars `lambda g, y: y / g(1.0)`.
        has_aux: whether `solve` returns `(x, aux)`.

    Returns:
        `x`, or `(x, aux)`.

    Raises:
        TypeMismatchError: a function returns another structure.
        ValueMismatchError: a function returns another shape.

    Example:
        >>> import infini as inf
        >>> def square_root(a):
        ...     newton = lambda f, x: inf.lax.fori_loop(0, 20, lambda _, x: x - f(x) / (2 * x), x)
        ...     return inf.lax.custom_root(lambda x: x * x - a, 1.0, newton, lambda g, y: y / g(1.0))
        >>> inf.grad(square_root)(4.0)
        Array(0.25, dtype=float32, weak_type=True)
    """
    unknown, guess = _Unknown.of(initial_guess, "custom_root")
    size = len(guess)

    def solve_tangent(x: Any, y: Any) -> Any:
        return tangent_solve(directional.linearize(f, x)[1], y)

    staged = [
        unknown.stage(f, "f"),
        unknown.stage(lambda x: solve(f, x), "solve", has_aux=has_aux),
        unknown.stage(solve_tangent, "tangent_solve", 2),
    ]
    (function, solver, tangent_solver), captures = unify_captures(staged)
    count = len(captures)

    def rule(primals: Values, tangents: MaybeValues) -> tuple[Values, MaybeValues]:
        results = call(primals)
        consts, root, flags = primals[:count], results[:size], nonzero(tangents[:count])
        jvp, out_flags = forward.jvp_program(function, (*flags, *(False,) * size))
        given = [t for t in tangents[:count] if t is not None]
        if not any(out_flags):
            return results, (None,) * len(results)
        moved = trace.bind(call_p, *consts, *root, *given, body=jvp)[size:]
        rhs = [pullback.or_zeros(t, r.type) for t, r in zip(merge(out_flags, moved), root, strict=True)]
        found = trace.bind(call_p, *consts, *root, *rhs, body=tangent_solver)
        negated = [flat.negative(x) for x in found]
        return results, [*negated, *(None,) * (len(results) - size)]

    call = CustomCall("custom_root", lambda *args: trace.evaluate(solver, args), rule=rule)
    found = call([*captures, *guess])
    return unknown.result(found, staged[1].weak, has_aux)
