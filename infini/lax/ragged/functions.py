"""`ragged_dot` and `ragged_dot_general`, under JAX's names."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from infini.core import dtypes, errors, trace
from infini.core.value import Value
from infini.lax import contraction, contraction_dtypes, elementwise as e, precision as precision_
from infini.lax.ragged.operation import ragged_dot_p
from infini.lax.ragged.spec import parse

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers


@dataclass(frozen=True, slots=True)
class RaggedDotDimensionNumbers:
    """Which dimension is what in `ragged_dot_general`.

    Args:
        dot_dimension_numbers: `((lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch))`.
        lhs_ragged_dimensions: the one dimension of `lhs` that is grouped.
        rhs_group_dimensions: the dimension of `rhs` that numbers groups, when rows are not contracted.
    """

    dot_dimension_numbers: Any  # Any: sequences of sequences
    lhs_ragged_dimensions: Sequence[int]
    rhs_group_dimensions: Sequence[int]

    def __post_init__(self) -> None:
        pairs = tuple(tuple(map(tuple, pair)) for pair in self.dot_dimension_numbers)
        object.__setattr__(self, "dot_dimension_numbers", pairs)
        object.__setattr__(self, "lhs_ragged_dimensions", tuple(self.lhs_ragged_dimensions))
        object.__setattr__(self, "rhs_group_dimensions", tuple(self.rhs_group_dimensions))


_ROWS: Final = RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), (0,), (0,))


def ragged_dot(
    lhs: ArrayLike,
    rhs: ArrayLike,
    group_sizes: ArrayLike,
    precision: precision_.PrecisionLike = None,
    preferred_element_type: Any = None,
    group_offset: None = None,
    out_sharding: Any = None,
) -> Value:
    """Product of each row with the matrix of its group, as `jax.lax.ragged_dot`.

    Args:
        lhs: rows (m, k), those of the first group first.
        rhs: matrices (g, k, n), one per group.
        group_sizes: integers (g,), rows in each group. Rows behind the last group give zeros.
        precision: see `Precision`.
        preferred_element_type: dtype of the result; that of the operands when absent.
        group_offset: accepted for JAX's sake; only None.
        out_sharding: placement of the result.

    Returns:
        Rows (m, n).

    Raises:
        TypeMismatchError: sizes or dtypes do not go together.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import lax
        >>> lax.ragged_dot(inp.ones((5, 3)), inp.ones((2, 3, 4)), inp.asarray([2, 3])).shape
        (5, 4)
    """
    return ragged_dot_general(
        lhs, rhs, group_sizes, _ROWS, precision, preferred_element_type, group_offset, out_sharding
    )


def ragged_dot_general(
    lhs: ArrayLike,
    rhs: ArrayLike,
    group_sizes: ArrayLike,
    ragged_dot_dimension_numbers: RaggedDotDimensionNumbers,
    precision: precision_.PrecisionLike = None,
    preferred_element_type: Any = None,
    group_offset: None = None,
    out_sharding: Any = None,
) -> Value:
    """Contraction one of whose dimensions is grouped, as `jax.lax.ragged_dot_general`.

    Args:
        lhs: left operand, with the grouped dimension.
        rhs: right operand.
        group_sizes: integers (..., g), elements of the grouped dimension in each group; dimensions in front
            are the batch dimensions and those of the same kind before the grouped one, or absent.
        ragged_dot_dimension_numbers: which dimension is what. When the grouped dimension is free, `rhs` has a
            group dimension; when it is contracted, the result has one, in front; when it is a batch dimension
            this is `dot_general`.
        precision: see `Precision`.
        preferred_element_type: dtype of the result; that of the operands when absent.
        group_offset: accepted for JAX's sake; only None.
        out_sharding: placement of the result.

    Raises:
        TypeMismatchError: dimension numbers, sizes or dtypes do not go together.
        MissingRuleError: `group_offset` is given.
    """
    name = "ragged_dot_general"
    x, y, sizes = (trace.as_value(v) for v in (lhs, rhs, group_sizes))
    numbers = ragged_dot_dimension_numbers
    if group_offset is not None:
        raise errors.MissingRuleError(
            f"{name}: group_offset is not supported, as in JAX", fix="slice rhs and group_sizes instead"
        )
    wanted = precision_.canonical(precision)
    contraction.check_out_sharding(name, out_sharding)
    ragged = _checked(name, x, y, sizes, numbers)
    spec, letter = _spec(name, x, y, sizes, numbers, ragged)
    if not letter:
        return contraction.dot_general(
            x, y, numbers.dot_dimension_numbers, precision, preferred_element_type, out_sharding=out_sharding
        )
    natural = contraction_dtypes.joint(name, x, y)
    result = contraction_dtypes.preferred(name, natural, preferred_element_type)
    operand, total = contraction_dtypes.working(natural, result)
    x, y = (contraction_dtypes.prepared(v, natural, operand) for v in (x, y))
    first, second, sum_dtype = precision_.types_of(wanted, x.dtype, y.dtype)
    x, y = e.convert_element_type(x, first), e.convert_element_type(y, second)
    prefix = len(parse(spec).sizes) - 1
    if sizes.ndim == 1 and prefix:
        spec = spec.replace(f",{parse(spec).sizes}->", f",{parse(spec).group}->")
    found = trace.bind1(ragged_dot_p, x, y, sizes, spec=spec, ragged=letter, dtype=sum_dtype or total)
    return contraction.placed(e.convert_element_type(found, result), out_sharding)


def _checked(name: str, x: Value, y: Value, sizes: Value, numbers: RaggedDotDimensionNumbers) -> int:
    """The grouped dimension, after checks that do not depend on its kind."""
    if len(numbers.lhs_ragged_dimensions) != 1 or not 0 <= numbers.lhs_ragged_dimensions[0] < x.ndim:
        raise errors.TypeMismatchError(
            f"{name}: lhs has exactly one ragged dimension",
            got=f"{numbers.lhs_ragged_dimensions} for {x.type}",
        )
    if sizes.ndim == 0 or sizes.dtype not in dtypes.INTEGERS:
        raise errors.TypeMismatchError(
            f"{name}: group_sizes are integers, one per group", got=str(sizes.type), expected="(..., g)"
        )
    groups = numbers.rhs_group_dimensions
    if any(not 0 <= d < y.ndim for d in groups):
        raise errors.TypeMismatchError(
            f"{name}: a group dimension of rhs does not exist", got=f"{groups} for {y.type}"
        )
    return int(numbers.lhs_ragged_dimensions[0])


def _spec(
    name: str, x: Value, y: Value, sizes: Value, numbers: RaggedDotDimensionNumbers, ragged: int
) -> tuple[str, str]:
    """The spec, and the letter of the grouped dimension; no letter when that is a batch dimension."""
    (x_contract, y_contract), (x_batch, y_batch) = numbers.dot_dimension_numbers
    groups = numbers.rhs_group_dimensions
    kind = "contracted" if ragged in x_contract else "batch" if ragged in x_batch else "free"
    if len(groups) != (kind == "free"):
        raise errors.TypeMismatchError(
            f"{name}: rhs has one group dimension if the ragged dimension of lhs is free, else none",
            got=f"rhs_group_dimensions={groups} and a {kind} ragged dimension",
        )
    if set(groups) & {*y_contract, *y_batch}:
        raise errors.TypeMismatchError(
            f"{name}: the group dimension of rhs is neither contracted nor a batch dimension",
            got=str(numbers),
        )
    without = y.type.update(shape=tuple(n for d, n in enumerate(y.shape) if d not in groups))
    rest = contraction.dot_spec(name, x.type, without, _shifted(numbers, groups), kept=1)
    left, _, out = rest.partition("->")
    a, _, b = left.partition(",")
    group = string.ascii_letters[0]
    letters = list(b)
    for d in groups:
        letters.insert(d, group)
    before = {
        "contracted": [*x_batch, *x_contract[: x_contract.index(ragged)]] if kind == "contracted" else [],
        "batch": [],
        "free": [*x_batch, *(d for d in range(ragged) if d not in x_contract and d not in x_batch)],
    }[kind]
    if kind != "batch":
        _check_sizes(name, x, y, sizes, before, groups)
    spec_sizes = "".join(a[d] for d in before) + group
    result = group + out if kind == "contracted" else out
    return f"{a},{''.join(letters)},{spec_sizes}->{result}", "" if kind == "batch" else a[ragged]


def _check_sizes(
    name: str, x: Value, y: Value, sizes: Value, before: Sequence[int], groups: Sequence[int]
) -> None:
    expected = (*(x.shape[d] for d in before), sizes.shape[-1])
    if sizes.ndim != 1 and sizes.shape != expected:
        raise errors.TypeMismatchError(
            f"{name}: group_sizes have another shape", got=str(sizes.type), expected=f"{expected} or (g,)"
        )
    if groups and y.shape[groups[0]] != sizes.shape[-1]:
        raise errors.TypeMismatchError(
            f"{name}: rhs has another number of groups than group_sizes", got=f"{y.type}, {sizes.type}"
        )


def _shifted(numbers: RaggedDotDimensionNumbers, groups: Sequence[int]) -> Any:  # Any: dimension numbers
    (x_contract, y_contract), (x_batch, y_batch) = numbers.dot_dimension_numbers
    moved = [tuple(d - sum(g < d for g in groups) for d in dims) for dims in (y_contract, y_batch)]
    return ((x_contract, moved[0]), (x_batch, moved[1]))
