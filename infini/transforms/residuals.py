"""What reverse mode keeps of a forward pass: the residuals of a function with where they come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from infini.core import dtypes, source, trace, tree
from infini.core.ir import ArrayType, Equation, Program, Var
from infini.transforms import flat, linear


@dataclass(frozen=True, slots=True)
class Residual:
    """A value that the backward pass needs.

    Args:
        type: its type.
        origin: where it comes from, in words.
        where: the user's line that made it; None for arguments.
    """

    type: ArrayType
    origin: str
    where: source.Where | None = None

    def __str__(self) -> str:
        return f"{self.type} {self.origin}" + (f" at {self.where}" if self.where else "")


def saved_residuals(f: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Residual]:  # Any: pytrees
    """The values that reverse mode of `f` keeps between the forward and the backward pass.

    Args:
        f: function of arrays and pytrees.
        *args: its arguments; only their types matter.
        **kwargs: its arguments by name.
    """
    pairs, in_tree = tree.flatten_with_path((args, kwargs))
    values = flat.values([leaf for _, leaf in pairs], "arguments")
    staged = trace.stage(flat.FlatFunction(f, in_tree), [v.type for v in values])
    count = len(staged.captures)
    program = staged.program
    parts = linear.linearize_program(program, tuple(dtypes.is_inexact(t.dtype) for t in program.in_types))
    computed = iter(parts.primal.results[len(program.results) :])
    names = [f"from the argument {tree.keystr(path[1:])}" for path, _ in pairs]
    found = []
    for known, param in zip(parts.known, parts.linear.params, strict=False):
        if known is None:
            found.append(_described(parts.primal, next(computed)))
        elif known < count:
            found.append(Residual(param.type, "from a value that the function closes over"))
        else:
            found.append(Residual(param.type, names[known - count]))
    return found


def _described(program: Program, var: Var) -> Residual:
    for equation in program.equations:
        if var not in equation.outputs:
            continue
        if equation.op.name in ("call", "checkpoint"):
            body: Program = equation.attrs["body"]
            inner = body.results[equation.outputs.index(var)]
            if inner not in body.params:
                return _described(body, inner)
        return Residual(var.type, _origin(equation), equation.where)
    return Residual(var.type, "a constant")


def _origin(equation: Equation) -> str:
    if equation.op.name == "name":
        return f"named {equation.attrs['name']!r}"
    return f"output of {equation.op.name}"


def print_saved_residuals(f: Callable[..., Any], *args: Any, **kwargs: Any) -> None:  # Any: pytrees
    """Print what reverse mode of `f` keeps, as `jax.ad_checkpoint.print_saved_residuals`.

    Args:
        f: function of arrays and pytrees; wrap it in `checkpoint` to see what a policy saves.
        *args: its arguments; only their types matter.
        **kwargs: its arguments by name.

    Example:
        >>> import infini as inf, infini.numpy as inp
        >>> from infini.ad_checkpoint import print_saved_residuals
        >>> print_saved_residuals(inf.checkpoint(lambda x: inp.sin(inp.sin(x))), 1.0)
        f32[] from the argument [0]
    """
    for residual in saved_residuals(f, *args, **kwargs):
        print(residual)  # noqa: T201  # printing is the point
