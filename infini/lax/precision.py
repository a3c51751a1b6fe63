"""`precision=` of contractions and convolutions: JAX's enumerations, and what they mean here.

infini contracts float32 in float32 and smaller floats with float32 accumulation on every device, which is
`Precision.HIGHEST`; the other two only allow less. An algorithm is followed: operands are rounded to the
types it names, and what it accumulates in is the dtype of the sum.
"""

from __future__ import annotations

import enum
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from infini.core import dtypes, errors


class Precision(enum.Enum):
    """How precisely float32 operands are multiplied, as `jax.lax.Precision`; also by JAX's strings."""

    DEFAULT = 0
    HIGH = 1
    HIGHEST = 2

    @classmethod
    def _missing_(cls, value: object) -> Precision | None:
        return _NAMES.get(value) if isinstance(value, str) or value is None else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"

    def __str__(self) -> str:
        return self.name


_NAMES: Final[dict[str | None, Precision]] = {
    "highest": Precision.HIGHEST,
    "float32": Precision.HIGHEST,
    "high": Precision.HIGH,
    "bfloat16_3x": Precision.HIGH,
    "tensorfloat32": Precision.HIGH,
    "default": Precision.DEFAULT,
    "bfloat16": Precision.DEFAULT,
    "fastest": Precision.DEFAULT,
    None: Precision.DEFAULT,
}


class DotAlgorithm(NamedTuple):
    """How products are computed, as `jax.lax.DotAlgorithm`.

    Attributes:
        lhs_precision_type: dtype the left operand is rounded to.
        rhs_precision_type: dtype the right operand is rounded to.
        accumulation_type: dtype of the sum.
        lhs_component_count: parts that the left operand is split into to emulate a wider dtype.
        rhs_component_count: the same for the right operand.
        num_primitive_operations: products of parts.
        allow_imprecise_accumulation: whether some steps may accumulate in a narrower dtype.
    """

    lhs_precision_type: Any  # Any: dtypes and their names
    rhs_precision_type: Any  # Any: as above
    accumulation_type: Any  # Any: as above
    lhs_component_count: int = 1
    rhs_component_count: int = 1
    num_primitive_operations: int = 1
    allow_imprecise_accumulation: bool = False


class DotAlgorithmPreset(enum.Enum):
    """Named algorithms, as `jax.lax.DotAlgorithmPreset`: types of both operands, then that of the sum.

    `X3`, `X6` and `X9` emulate float32 by that many products of narrower numbers, and TF32 keeps 10 bits of
    the significand; infini computes these in float32, which is at least as precise.
    """

    DEFAULT = enum.auto()
    ANY_F8_ANY_F8_F32 = enum.auto()
    ANY_F8_ANY_F8_F32_FAST_ACCUM = enum.auto()
    ANY_F8_ANY_F8_ANY = enum.auto()
    ANY_F8_ANY_F8_ANY_FAST_ACCUM = enum.auto()
    F16_F16_F16 = enum.auto()
    F16_F16_F32 = enum.auto()
    BF16_BF16_BF16 = enum.auto()
    BF16_BF16_F32 = enum.auto()
    BF16_BF16_F32_X3 = enum.auto()
    BF16_BF16_F32_X6 = enum.auto()
    BF16_BF16_F32_X9 = enum.auto()
    TF32_TF32_F32 = enum.auto()
    TF32_TF32_F32_X3 = enum.auto()
    F32_F32_F32 = enum.auto()
    F64_F64_F64 = enum.auto()

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"

    def __str__(self) -> str:
        return self.name


PrecisionLike: TypeAlias = (
    str | Precision | tuple[str, str] | tuple[Precision, Precision] | DotAlgorithm | DotAlgorithmPreset | None
)
Canonical: TypeAlias = tuple[Precision, Precision] | DotAlgorithm | DotAlgorithmPreset | None

_FLOAT8: Final = frozenset({dtypes.float8_e4m3fn, dtypes.float8_e5m2})
_OPERAND: Final = {
    "F16": dtypes.float16, "BF16": dtypes.bfloat16, "TF32": dtypes.float32, "F32": dtypes.float32,
    "F64": dtypes.float64,
}  # fmt: skip


def canonical(precision: Any) -> Canonical:  # Any: what a user may pass
    """A precision in canonical form.

    Raises:
        ValueMismatchError: it is none.
    """
    if precision is None or isinstance(precision, (DotAlgorithm, DotAlgorithmPreset)):
        return precision
    if isinstance(precision, Precision):
        return precision, precision
    if isinstance(precision, str):
        if precision in _NAMES:
            return _NAMES[precision], _NAMES[precision]
        if precision in DotAlgorithmPreset.__members__:
            return DotAlgorithmPreset[precision]
    if isinstance(precision, (list, tuple)) and len(precision) == 2:
        left, right = (p if isinstance(p, Precision) else _NAMES.get(p) for p in precision)
        if left is not None and right is not None and None not in precision:
            return left, right
    raise errors.ValueMismatchError(
        "this is no precision",
        got=repr(precision),
        expected="None, a lax.Precision, one of "
        + ", ".join(repr(n) for n in _NAMES if n)
        + ", a pair of these, a lax.DotAlgorithmPreset or its name, or a lax.DotAlgorithm",
    )


def types_of(
    precision: Canonical, left: np.dtype, right: np.dtype
) -> tuple[np.dtype, np.dtype, np.dtype | None]:
    """The dtypes that an algorithm rounds operands to, and that of the sum, or None where it says nothing.

    Args:
        precision: precision in canonical form.
        left: dtype of the left operand.
        right: dtype of the right operand.

    Raises:
        ValueMismatchError: the algorithm does not take these operands.
    """
    if isinstance(precision, DotAlgorithm):
        types = [dtypes.canonical(t) for t in precision[:3]]
        is_emulated = precision.num_primitive_operations > 1
        return (left, right, types[2]) if is_emulated else (types[0], types[1], types[2])
    if not isinstance(precision, DotAlgorithmPreset) or precision is DotAlgorithmPreset.DEFAULT:
        return left, right, None
    first, second, total, *_ = precision.name.replace("ANY_F8", "ANY").split("_")
    if first == "ANY":
        if not {left, right} <= _FLOAT8:
            raise errors.ValueMismatchError(
                f"{precision} multiplies 8-bit floats",
                got=f"{dtypes.short(left)}, {dtypes.short(right)}",
                fix="convert the operands, or choose another algorithm",
            )
        return left, right, None if total == "ANY" else dtypes.float32
    if first == "BF16" and precision.name.endswith(("X3", "X6", "X9")):
        first = second = "F32"
    return _OPERAND[first], _OPERAND[second], _OPERAND[total]
