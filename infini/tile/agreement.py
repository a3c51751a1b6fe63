"""What is checked when a kernel is defined: tensors have names, and their grids can agree.

Sizes that no values could make equal are an error here, with both expressions; those that some values make
equal are checked by `lowering` at the call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from infini.core import errors
from infini.tile import reasoning
from infini.tile.arrangement import Tensor


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:  # Any: of the user's
    """The parameters of a function; none where Python cannot say."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []


def named(
    tensors: Sequence[Tensor], num_results: int, application: Callable[..., Any]
) -> tuple[Tensor, ...]:  # Any: as of parameters
    """The tensors under the names of the application's parameters, results as `result`, where they have none
    of their own.
    """
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in parameters(application) if p.kind in positional]
    num_operands = len(tensors) - num_results
    names = [names[n] if n < len(names) else f"operand {n}" for n in range(num_operands)] + [
        f"result {n}" if num_results > 1 else "result" for n in range(num_results)
    ]
    return tuple(t.named(name) for t, name in zip(tensors, names, strict=True))


def arrange(
    name: str, arrangement: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The arranged tensors, whose grids can agree.

    Raises:
        TypeMismatchError: the arrangement gives another number of tensors, or two grids cannot agree.
    """
    arranged = tuple(arrangement(*tensors))
    if wrong := [item for item in arranged if not isinstance(item, Tensor)]:
        raise errors.TypeMismatchError(
            f"the arrangement of {name} returns what is no tensor", got=repr(wrong[0]), expected="Tensor"
        )
    if len(arranged) != len(tensors):
        raise errors.TypeMismatchError(
            f"the arrangement of {name} gives another number of tensors",
            got=str(len(arranged)),
            expected=str(len(tensors)),
        )
    on_grid = [(t.label(number), t) for number, t in enumerate(arranged) if not t.is_scalar]
    for label, tensor in on_grid[1:]:
        _check_pair(name, on_grid[0], (label, tensor))
    return arranged


def _check_pair(name: str, first: tuple[str, Tensor], second: tuple[str, Tensor]) -> None:
    shapes = first[1].shape, second[1].shape
    wrong = [d for d, (m, n) in enumerate(zip(*shapes, strict=False)) if not reasoning.may_be_equal(m, n)]
    if len(shapes[0]) == len(shapes[1]) and not wrong:
        return
    where = f"differ in dimension {wrong[0]}" if wrong else "have other numbers of dimensions"
    raise errors.TypeMismatchError(
        f"{name}: the outermost levels of {first[0]} and {second[0]} {where}; "
        "they are the grid of programs and must agree",
        got=f"{first[0]} has {shapes[0]}, {second[0]} has {shapes[1]}",
        fix="tile, expand or permute one of them so that both count the same programs",
    )
