"""Branches: `cond` and `switch` over one operation with several bodies of equal type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from infini.core import config, dtypes, errors, ir, primitive, trace, tree
from infini.core.ir import ArrayType, Program
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import elementwise as e, families, varying as varying_
from infini.lax.calls import Context, Flags, MaybeValues, Values, check_operands, merge, nonzero
from infini.lax.families import bind_scalars, is_linear
from infini.lax.loop_bodies import where_apart


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
    index, operands = args[0], args[1:]
    branches: tuple[Program, ...] = attrs["branches"]
    count = len(branches[0].results)
    if not batched[0]:
        united = _united(lambda b, force: ctx.batch_program(b, batched[1:], force), branches, count)
        bodies = tuple(ctx.batch_program(branch, batched[1:], united)[0] for branch in branches)
        return trace.bind(cond_p, index, *operands, branches=bodies), united
    # Every branch runs for every element; the index picks.
    every = (True,) * count
    mapped = [ctx.batch_program(branch, batched[1:], every)[0] for branch in branches]
    for body in mapped:
        if body.effect.is_ordered or _has_operation(body, "io_callback"):
            raise errors.TypeMismatchError(
                "vmap of cond with a batched condition cannot keep an ordered effect or an io_callback inside"
                " a branch",
                fix="move the effect out of the branch, or map with lax.map instead of vmap",
            )
    results = []
    for number, body in enumerate(mapped):
        is_chosen = _is_chosen(index, number, len(branches))
        guarded = [_guarded(is_chosen, x) if b else x for x, b in zip(operands, batched[1:], strict=True)]
        results.append(trace.bind(primitive.by_name("call"), *guarded, body=body))
    picked = list(results[0])
    for number, found in enumerate(results[1:], 1):
        chosen = bind_scalars(e.ge_p, index, number)
        picked = [_select(chosen, old, new) for old, new in zip(picked, found, strict=True)]
    return picked, every


def _has_operation(program: Program, name: str) -> bool:
    return any(
        equation.op.name == name or any(_has_operation(inner, name) for inner in equation.programs)
        for equation in program.equations
    )


def _is_chosen(index: Value, number: int, count: int) -> Value:
    """Where the clamped index picks a branch."""
    if number == 0:
        return bind_scalars(e.le_p, index, 0)
    return bind_scalars(e.ge_p if number == count - 1 else e.eq_p, index, number)


def _guarded(is_chosen: Value, x: Value) -> Value:
    """The same value, whose cotangent is 0 where the branch is not chosen: there 0 * inf would be NaN."""
    return _select(is_chosen, e.stop_gradient(x), x) if dtypes.is_inexact(x.dtype) else x


def _select(flags: Value, old: Value, new: Value) -> Value:
    shape = flags.shape + (1,) * (new.ndim - 1)
    wide = trace.bind1(primitive.by_name("reshape"), flags, shape=shape, ndim=1)
    return trace.bind1(e.select_n_p, wide, old, new)


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


# --- as users write them -------------------------------------------------------------------------

_ABSENT: Any = object()  # Any: a mark for an argument that is not given


def switch(
    index: Any, branches: Sequence[Callable[..., Any]], *operands: Any, operand: Any = _ABSENT
) -> Any:  # Any: pytrees
    """Call one of several functions, chosen at run time, as `jax.lax.switch`.

    Args:
        index: integer scalar, clamped to the range of branches.
        branches: functions of the same operands with results of the same types.
        *operands: pytrees of arrays.
        operand: the only operand, by name.

    Returns:
        What the chosen branch returns.

    Raises:
        TypeMismatchError: `index` is no integer scalar, or branches return different structures or types.
        ValueMismatchError: there are no branches.
    """
    branches = tuple(branches)
    _require_functions("switch", branches)
    operands = _operands(operands, operand, "switch")
    value = _scalar(index, "the index of switch")
    if value.dtype not in dtypes.INTEGERS:
        raise errors.TypeMismatchError("the index of switch must be an integer scalar", got=str(value.type))
    if not branches:
        raise errors.ValueMismatchError("switch needs at least one branch")
    if len(branches) == 1:
        return branches[0](*operands)
    return _branch(value, branches, operands, "switch")


def cond(
    pred: Any,
    true_fun: Callable[..., Any],
    false_fun: Callable[..., Any],
    *operands: Any,
    operand: Any = _ABSENT,
) -> Any:  # Any: pytrees
    """Call `true_fun(*operands)` if `pred` holds, else `false_fun(*operands)`, as `jax.lax.cond`.

    Args:
        pred: boolean or numeric scalar.
        true_fun: function of the operands.
        false_fun: function of the operands, with results of the same types.
        *operands: pytrees of arrays.
        operand: the only operand, by name.

    JAX's older form `cond(pred, true_operand, true_fun, false_operand, false_fun)` is understood too.

    Returns:
        What the chosen function returns.

    Raises:
        TypeMismatchError: `pred` is no scalar, or the functions return different structures or types.
    """
    if not callable(true_fun) and len(operands) == 2 and callable(false_fun) and callable(operands[1]):
        when_true, when_false = false_fun, operands[1]
        return cond(pred, lambda x, _: when_true(x), lambda _, y: when_false(y), true_fun, operands[0])
    _require_functions("cond", (true_fun, false_fun))
    operands = _operands(operands, operand, "cond")
    value = _scalar(pred, "the condition of cond")
    if value.dtype in dtypes.COMPLEX:
        raise errors.TypeMismatchError(
            "the condition of cond must be a boolean or a number", got=str(value.type)
        )
    if value.dtype != dtypes.bool_:
        value = bind_scalars(e.ne_p, value, 0)
    return _branch(value, (false_fun, true_fun), operands, "cond")


def _require_functions(what: str, functions: Sequence[Any]) -> None:  # Any: what the user gave
    for function in functions:
        if not callable(function):
            raise errors.TypeMismatchError(f"{what} needs functions as branches", got=repr(function))


def _operands(operands: tuple[Any, ...], operand: Any, what: str) -> tuple[Any, ...]:
    if operand is _ABSENT:
        return operands
    if operands:
        raise errors.TypeMismatchError(f"{what} takes operands by position or operand=, not both")
    return (operand,)


def _scalar(x: Any, what: str) -> Value:  # Any: what the user gave
    if x is None or isinstance(x, (str, tuple, list)):
        raise errors.TypeMismatchError(f"{what} must be a scalar", got=repr(x))
    value = trace.as_value(x)
    if value.shape:
        raise errors.TypeMismatchError(
            f"{what} must be a scalar",
            got=str(value.type),
            fix="use lax.select or infini.numpy.where, or vmap",
        )
    return value


def _branch(
    chosen: Value, branches: Sequence[Callable[..., Any]], operands: tuple[Any, ...], what: str
) -> Any:  # Any: pytrees
    if config.get("disable_jit") and (known := _known(chosen)) is not None:
        return branches[min(max(known, 0), len(branches) - 1)](*operands)
    leaves, treedef = tree.flatten(operands)
    values = [trace.as_value(x) for x in leaves]
    out_trees: list[tree.PyTreeDef] = []

    def flat(branch: Callable[..., Any]) -> Callable[..., Sequence[Any]]:
        def run(*args: Value) -> Sequence[Any]:
            results, out_tree = tree.flatten(branch(*tree.unflatten(treedef, args)))
            out_trees.append(out_tree)
            return results

        return run

    labels = ("false_fun", "true_fun") if what == "cond" else [f"branch {i}" for i in range(len(branches))]
    names = [getattr(b, "__name__", "branch") for b in branches]
    types, weak = [v.type for v in values], [v.weak for v in values]
    # A collective inside a branch that only some devices take would wait for ever, so marks of operands and
    # captured values, whose transposes are sums, stand before the branches.
    axes, manual = trace.varying_axes(chosen), varying_.inside_branch(chosen)
    values = varying_.marked(values, [axes] * len(values))
    varying = trace.varying_of(values)
    staged = [
        trace.stage(flat(branch), types, weak=weak, name=name, varying=varying, manual=manual)
        for branch, name in zip(branches, names, strict=True)
    ]
    if varying is not None and len({s.varying for s in staged}) > 1 and _same_results(out_trees, staged):
        # Every branch gives results that vary along the axes of all: devices may take different branches.
        common = [trace.EQUAL.union(*column) for column in zip(*(s.varying for s in staged), strict=True)]
        staged = [
            trace.stage(
                _marked(flat(branch), common), types, weak=weak, name=name, varying=varying, manual=manual
            )
            for branch, name in zip(branches, names, strict=True)
        ]
        del out_trees[len(branches) :]
    _check_results(what, labels, out_trees, [s.program.out_types for s in staged])
    programs, captures = unify_captures(staged)
    captures = varying_.marked(captures, [axes] * len(captures))
    index = e.convert_element_type(chosen, dtypes.int32)
    results = trace.bind(cond_p, index, *captures, *values, branches=tuple(programs))
    flags = [all(column) for column in zip(*(s.weak for s in staged), strict=True)]
    marked = [r.with_weak(flag) for r, flag in zip(results, flags, strict=True)]
    return tree.unflatten(out_trees[0], marked)


def _same_results(out_trees: Sequence[tree.PyTreeDef], staged: Sequence[trace.Staged]) -> bool:
    return len(set(out_trees)) == 1 and len({s.program.out_types for s in staged}) == 1


def _marked(
    branch: Callable[..., Sequence[Any]], axes: Sequence[trace.Varying]
) -> Callable[..., Sequence[Any]]:
    """A branch whose results are marked as varying along these axes."""
    return lambda *args: varying_.marked([trace.as_value(x) for x in branch(*args)], axes)


def _known(x: Value) -> int | None:
    if isinstance(x, trace.Tracer):
        known = x.concrete()
        return None if known is None else int(known)
    return int(trace.to_array(x))


def _check_results(
    what: str,
    names: Sequence[str],
    out_trees: Sequence[tree.PyTreeDef],
    types: Sequence[tuple[ArrayType, ...]],
) -> None:
    for number in range(1, len(names)):
        if out_trees[number] != out_trees[0]:
            trees = [tree.unflatten(out_trees[i], types[i]) for i in (0, number)]
            place, second, first = where_apart(*trees)
            raise errors.TypeMismatchError(
                f"branches of {what} must return the same structure",
                got=f"result{place} is {first} in {names[0]} and {second} in {names[number]}",
                fix="return the same containers with the same keys from every branch",
            )
        if types[number] != types[0]:
            paths = [path for path, _ in tree.flatten_with_path(tree.unflatten(out_trees[0], types[0]))[0]]
            different = [
                f"result{tree.keystr(path)} is {a} in {names[0]} and {b} in {names[number]}"
                for path, a, b in zip(paths, types[0], types[number], strict=True)
                if a != b
            ]
            raise errors.TypeMismatchError(
                f"branches of {what} must return the same types",
                got="; ".join(different),
                expected="equal shapes and dtypes",
                fix="convert the results of one branch, for example with .astype(...)",
            )


def unify_captures(staged: Sequence[trace.Staged]) -> tuple[list[Program], list[Value]]:
    """Give several traced functions the union of their captures as leading parameters."""
    union: dict[int, Value] = {id(c): c for s in staged for c in s.captures}
    programs = []
    for s in staged:
        own = {id(c): var for c, var in zip(s.captures, s.program.params, strict=False)}
        leading = tuple(own.get(key) or ir.Var(c.type) for key, c in union.items())
        programs.append(s.program.replace(params=leading + s.program.params[len(s.captures) :]))
    return programs, list(union.values())
