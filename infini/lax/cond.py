"""Branches: `cond` and `switch` over one primitive with several bodies of equal type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors, ir, primitive, trace, tree
from infini.core.ir import ArrayType, Program
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import elementwise as e, families
from infini.lax.calls import Context, Flags, MaybeValues, Values, check_operands, merge, nonzero
from infini.lax.families import bind_scalars, is_linear


def _type(index: ArrayType, *types: ArrayType, branches: tuple[Program, ...]) -> tuple[ArrayType, ...]:
    if index != ArrayType((), dtypes.int32):
        raise errors.TypeMismatchError("cond: the index is an int32 scalar", got=str(index))
    for branch in branches:
        check_operands("cond", branch, types)
        if branch.out_types != branches[0].out_types:
            raise errors.TypeMismatchError(
                "cond: branches give different types", got=f"{branches[0].out_types} and {branch.out_types}"
            )
    return branches[0].out_types


def _reference(evaluate: Any, index: np.ndarray, *arrays: np.ndarray, branches: tuple[Program, ...]) -> Any:
    return evaluate(branches[int(np.clip(int(index), 0, len(branches) - 1))], arrays)


def _united(
    run: Callable[[Program, Flags], tuple[Program, Flags]], branches: tuple[Program, ...], count: int
) -> Flags:
    """Which results any branch makes nonzero (or batched)."""
    none = (False,) * count
    flags = [run(branch, none)[1] for branch in branches]
    return tuple(any(column) for column in zip(*flags, strict=True)) if count else ()


def _jvp(ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs) -> tuple[Values, MaybeValues]:
    branches = attrs["branches"]
    flags, count = nonzero(tangents[1:]), len(branches[0].results)
    united = _united(lambda b, force: ctx.jvp_program(b, flags, force), branches, count)
    bodies = tuple(ctx.jvp_program(branch, flags, united)[0] for branch in branches)
    given = [t for t in tangents if t is not None]
    results = trace.bind(cond_p, *primals, *given, branches=bodies)
    return results[:count], merge(united, results[count:])


def _linearize(
    ctx: Context, primals: Values, tangents: MaybeValues, attrs: ir.Attrs
) -> tuple[Values, MaybeValues]:
    branches: tuple[Program, ...] = attrs["branches"]
    flags, count = nonzero(tangents[1:]), len(branches[0].results)

    def split(branch: Program, force: Flags) -> tuple[Program, Flags]:
        return branch, ctx.linearize_program(branch, flags, force).out_nonzero

    united = _united(split, branches, count)
    parts = [ctx.linearize_program(branch, flags, united) for branch in branches]
    extra_types = [[v.type for v in part.primal.results[count:]] for part in parts]
    # Every branch returns the residuals of all branches; those of the others are zeros.
    bodies = tuple(_with_all_residuals(part.primal, count, extra_types, i) for i, part in enumerate(parts))
    results = ctx.bind_primal(cond_p, *primals, branches=bodies)
    outs, extras = results[:count], iter(results[count:])
    groups = [[next(extras) for _ in types] for types in extra_types]
    residuals = [part.residual_values(primals[1:], group) for part, group in zip(parts, groups, strict=True)]
    every = [r for group in residuals for r in group]
    given = [t for t in tangents[1:] if t is not None]
    linear_bodies = tuple(
        _taking_all_residuals(part.linear, [len(group) for group in residuals], i, [r.type for r in every])
        for i, part in enumerate(parts)
    )
    out_tangents = ctx.bind_linear(cond_p, primals[0], *every, *given, branches=linear_bodies)
    return outs, merge(united, out_tangents)


def _with_all_residuals(
    body: Program, count: int, types: Sequence[Sequence[ArrayType]], mine: int
) -> Program:
    def run(*args: Value) -> Sequence[Value]:
        results = trace.evaluate(body, args)
        groups = [
            list(results[count:]) if i == mine else [families.zeros(t) for t in group]
            for i, group in enumerate(types)
        ]
        return [*results[:count], *(r for group in groups for r in group)]

    return trace.stage(run, body.in_types, name=body.name).program


def _taking_all_residuals(
    body: Program, counts: Sequence[int], mine: int, types: Sequence[ArrayType]
) -> Program:
    before, own = sum(counts[:mine]), counts[mine]
    others = [ir.Var(t) for t in types]
    params = (*others[:before], *body.params[:own], *others[before + own :], *body.params[own:])
    return body.replace(params=params)


def _transpose(ctx: Context, cts: MaybeValues, args: Sequence[Any], attrs: ir.Attrs) -> MaybeValues:
    index, *operands = args
    linear = tuple(is_linear(a) for a in operands)
    count = sum(linear)

    def run(branch: Program, force: Flags) -> tuple[Program, Flags]:
        found: tuple[Program, Flags] = ctx.transpose_program(branch, linear, nonzero(cts), force)
        return found

    united = _united(run, attrs["branches"], count)
    bodies = tuple(run(branch, united)[0] for branch in attrs["branches"])
    known = [a for a in operands if not is_linear(a)]
    given = [ct for ct in cts if ct is not None]
    found = trace.bind(cond_p, index, *known, *given, branches=bodies)
    return (None, *merge(linear, merge(united, found)))


def _batch(ctx: Context, args: Values, batched: Flags, attrs: ir.Attrs) -> tuple[Values, Flags]:
    index, *operands = args
    branches: tuple[Program, ...] = attrs["branches"]
    count = len(branches[0].results)
    if not batched[0]:
        united = _united(lambda b, force: ctx.batch_program(b, batched[1:], force), branches, count)
        bodies = tuple(ctx.batch_program(branch, batched[1:], united)[0] for branch in branches)
        return trace.bind(cond_p, index, *operands, branches=bodies), united
    # Every branch runs for every element; the index picks.
    every = (True,) * count
    bodies = tuple(ctx.batch_program(branch, batched[1:], every)[0] for branch in branches)
    for body in bodies:
        if body.effect.is_ordered:
            raise errors.TypeMismatchError(
                "vmap of cond with a batched condition cannot keep an ordered effect inside a branch",
                fix="move the effect out of the branch, or map with lax.map instead of vmap",
            )
    results = [trace.bind(primitive.by_name("call"), *operands, body=body) for body in bodies]
    picked = list(results[0])
    for number, found in enumerate(results[1:], 1):
        for i, (old, new) in enumerate(zip(picked, found, strict=True)):
            chosen = bind_scalars(e.ge_p, index, number)
            shape = chosen.shape + (1,) * (new.ndim - 1)
            chosen = trace.bind1(primitive.by_name("reshape"), chosen, shape=shape, ndim=1)
            picked[i] = trace.bind1(e.select_n_p, chosen, old, new)
    return picked, every


cond_p: Primitive = primitive.register(
    Primitive(
        "cond",
        None,
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: _reference,
            primitive.JVP: _jvp,
            primitive.LINEARIZE: _linearize,
            primitive.TRANSPOSE: _transpose,
            primitive.BATCH: _batch,
        },
        is_higher_order=True,
    )
)


def switch(index: Any, branches: Sequence[Callable[..., Any]], *operands: Any) -> Any:  # Any: pytrees
    """Call one of several functions, chosen at run time.

    Args:
        index: integer scalar, clamped to the range of branches.
        branches: functions of the same operands with results of the same types.
        *operands: pytrees of arrays.

    Returns:
        What the chosen branch returns.

    Raises:
        TypeMismatchError: branches return different structures or types.
    """
    if not branches:
        raise errors.ValueMismatchError("switch needs at least one branch")
    if trace.as_value(index).dtype not in dtypes.INTEGERS or trace.as_value(index).shape:
        raise errors.TypeMismatchError(
            "the index of switch must be an integer scalar", got=str(trace.as_value(index).type)
        )
    leaves, treedef = tree.flatten(operands)
    values = [trace.as_value(x) for x in leaves]
    out_trees: list[tree.PyTreeDef] = []
    weak = [v.weak for v in values]

    def flat(branch: Callable[..., Any]) -> Callable[..., Sequence[Any]]:
        def run(*args: Value) -> Sequence[Any]:
            results, out_tree = tree.flatten(branch(*tree.unflatten(treedef, args)))
            out_trees.append(out_tree)
            return results

        return run

    names = [getattr(b, "__name__", "branch") for b in branches]
    staged = [
        trace.stage(flat(b), [v.type for v in values], weak=weak, name=name)
        for b, name in zip(branches, names, strict=True)
    ]
    for other, name in zip(out_trees[1:], names[1:], strict=True):
        if other != out_trees[0]:
            raise errors.TypeMismatchError(
                "branches of cond must return the same structure",
                got=f"{names[0]}: {out_trees[0]}, {name}: {other}",
            )
    programs, captures = unify_captures(staged)
    programs = _same_results(programs, staged, names)
    chosen = e.convert_element_type(index, dtypes.int32)
    results = trace.bind(cond_p, chosen, *captures, *values, branches=tuple(programs))
    flags = [all(column) for column in zip(*(s.weak for s in staged), strict=True)]
    marked = [r.with_weak(flag) for r, flag in zip(results, flags, strict=True)]
    return tree.unflatten(out_trees[0], marked)


def _same_results(
    programs: list[Program], staged: Sequence[trace.Staged], names: Sequence[str]
) -> list[Program]:
    """Branches whose results differ in weak dtypes only are converted to the promoted dtype, as in JAX."""
    columns = list(zip(*(p.out_types for p in programs), strict=True))
    flags = list(zip(*(s.weak for s in staged), strict=True))
    targets = []
    for types, weak in zip(columns, flags, strict=True):
        dtype, _ = dtypes.promote(tuple((t.dtype, w) for t, w in zip(types, weak, strict=True)))
        fits = all(t.dtype == dtype or w for t, w in zip(types, weak, strict=True))
        if not fits or any(t.shape != types[0].shape for t in types):
            raise errors.TypeMismatchError(
                "branches of cond must return the same types",
                got="; ".join(f"{n}: {p.out_types}" for n, p in zip(names, programs, strict=True)),
                fix="convert the results of one branch with .astype(...)",
            )
        targets.append(dtype)

    def converted(program: Program) -> Program:
        if [t.dtype for t in program.out_types] == targets:
            return program

        def run(*args: Value) -> Sequence[Value]:
            return [
                e.convert_element_type(r, d)
                for r, d in zip(trace.evaluate(program, args), targets, strict=True)
            ]

        return trace.stage(run, program.in_types, name=program.name).program

    return [converted(program) for program in programs]


def unify_captures(staged: Sequence[trace.Staged]) -> tuple[list[Program], list[Value]]:
    """Give several traced functions the union of their captures as leading parameters."""
    union: dict[int, Value] = {id(c): c for s in staged for c in s.captures}
    programs = []
    for s in staged:
        own = {id(c): var for c, var in zip(s.captures, s.program.params, strict=False)}
        leading = tuple(own.get(key) or ir.Var(c.type) for key, c in union.items())
        programs.append(s.program.replace(params=leading + s.program.params[len(s.captures) :]))
    return programs, list(union.values())


def cond(
    pred: Any, true_fun: Callable[..., Any], false_fun: Callable[..., Any], *operands: Any
) -> Any:  # Any: pytrees
    """Call `true_fun(*operands)` if `pred` holds, else `false_fun(*operands)`.

    Args:
        pred: boolean or numeric scalar.
        true_fun: function of the operands.
        false_fun: function of the operands, with results of the same types.
        *operands: pytrees of arrays.

    Returns:
        What the chosen function returns.

    Raises:
        TypeMismatchError: `pred` is no scalar, or the functions return different structures or types.
    """
    value = trace.as_value(pred)
    if value.shape:
        raise errors.TypeMismatchError(
            "the condition of cond must be a scalar", got=str(value.type), fix="use select or vmap"
        )
    if value.dtype != dtypes.bool_:
        value = bind_scalars(e.ne_p, value, 0)
    return switch(e.convert_element_type(value, dtypes.int32), [false_fun, true_fun], *operands)
