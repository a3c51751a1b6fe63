"""Families of operations: helpers that fill most rules of an operation from its signature.

Loop dimensions (left of the core dimensions of the signature) broadcast. Letters give types here, `vmap` in
`transforms.batching`, placement in `compiler.partition`; `compiler.cost` adds up the COST rules. Rules
receive values and run under whatever interpreter is current, so they are written with the operations
themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infini.core import dtypes, errors, ir, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive, RuleKey, Signature
from infini.core.value import Literal, Value
from infini.lax import cases as cases_
from infini.lax.cases import ANYTHING, Span

DTypeRule = Callable[..., np.dtype]


@dataclass(frozen=True, slots=True)
class LinearInput:
    """Stands for an operand that a TRANSPOSE rule has to give a cotangent for."""

    type: ArrayType

    @property
    def shape(self) -> ir.Shape:
        """Shape of the operand."""
        return self.type.shape

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the operand."""
        return self.type.dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions of the operand."""
        return self.type.ndim

    def __infini_array__(self) -> Value:
        """Called where a rule needs the value of the operand, which a linear function does not."""
        raise errors.MissingRuleError(
            "a function that is not linear cannot be transposed",
            got=f"an operation that multiplies values of type {self.type} which both depend on the arguments",
            expected="a function that is linear in its arguments",
            fix="use vjp, which transposes the derivative of a function",
        )


def is_linear(x: object) -> bool:
    """Whether a TRANSPOSE rule has to give a cotangent for this operand."""
    return isinstance(x, LinearInput)


def like(x: object, y: Value) -> Value:
    """A Python number in the dtype of `y`; anything else as it is."""
    if type(x) in (bool, int, float, complex):
        return Literal(np.asarray(x).astype(y.dtype), weak=y.weak)
    return trace.as_value(x)


def bind_scalars(op: Primitive, *args: object, **attrs: object) -> Value:
    """Bind an operation with one result; Python numbers take the dtype of the first operand that has one."""
    anchor = next((a for a in args if isinstance(a, Value)), None)
    return trace.bind1(op, *(args if anchor is None else [like(a, anchor) for a in args]), **attrs)


def zeros(type_: ArrayType) -> Value:
    """An array of zeros: a broadcast constant."""
    return full(type_, 0)


def filled(values: Sequence[Value | None], types: Sequence[ArrayType]) -> list[Value]:
    """Tangents or cotangents with zeros for those that are None."""
    return [zeros(t) if x is None else x for x, t in zip(values, types, strict=True)]


def full(type_: ArrayType, fill: complex) -> Value:
    """An array with one value everywhere."""
    scalar = Literal(np.asarray(fill).astype(type_.dtype), weak=False)
    return broadcast_to(scalar, type_.shape)


def broadcast_to(x: Value, shape: ir.Shape) -> Value:
    """Broadcast by NumPy's rule: missing leading dimensions and dimensions of size 1 repeat."""
    if x.shape == shape:
        return x
    kept = tuple(
        axis - x.ndim for axis in range(x.ndim) if not (x.shape[axis] == 1 and shape[axis - x.ndim] != 1)
    )
    if len(kept) < x.ndim:
        x = trace.bind1(
            primitive.by_name("reshape"), x, shape=tuple(x.shape[axis] for axis in kept), ndim=x.ndim
        )
    return trace.bind1(primitive.by_name("broadcast_in_dim"), x, shape=shape, dims=kept)


def sum_to(x: Value, shape: ir.Shape) -> Value:
    """Transpose of broadcasting: sum over dimensions that were missing or had size 1."""
    if x.shape == shape:
        return x
    missing = x.ndim - len(shape)
    axes = [axis - x.ndim for axis in range(missing)]
    axes += [i - len(shape) for i, n in enumerate(shape) if n == 1 and x.shape[missing + i] != 1]
    summed = trace.bind1(primitive.by_name("reduce_sum"), x, axes=tuple(axes))
    if summed.shape == shape:
        return summed
    return trace.bind1(primitive.by_name("reshape"), summed, shape=shape, ndim=summed.ndim)


def whole_batches(size: int, args: Sequence[Value], batched: Sequence[bool]) -> list[Value]:
    """Operands with their batch in front, repeated where they do not depend on it; for BATCH rules that
    need all of them.
    """
    return [x if flag else broadcast_to(x, (size, *x.shape)) for x, flag in zip(args, batched, strict=True)]


# --- types from signatures ---------------------------------------------------------------


def loop_shape(name: str, types: Sequence[ArrayType], ranks: Sequence[int]) -> ir.Shape:
    """Broadcast shape of the loop dimensions.

    Raises:
        TypeMismatchError: they do not broadcast.
    """
    loops = [t.shape[: len(t.shape) - rank] for t, rank in zip(types, ranks, strict=True)]
    if all(loop == loops[0] for loop in loops):
        return loops[0] if loops else ()
    try:
        return tuple(int(n) for n in np.broadcast_shapes(*loops))
    except ValueError:
        raise errors.TypeMismatchError(
            f"{name}: shapes do not go together",
            got=", ".join(map(str, types)),
            expected="equal shapes, or shapes that broadcast",
        ) from None


def core_sizes(name: str, signature: Signature, types: Sequence[ArrayType]) -> dict[str, int]:
    """Size of each letter of a signature.

    Raises:
        TypeMismatchError: an operand has too few dimensions, or a letter has two sizes.
    """
    if len(types) != len(signature.inputs):
        raise errors.TypeMismatchError(f"{name} takes {len(signature.inputs)} operands", got=f"{len(types)}")
    sizes: dict[str, int] = {}
    for type_, letters in zip(types, signature.inputs, strict=True):
        if type_.ndim < len(letters):
            raise errors.TypeMismatchError(
                f"{name}: an operand has too few dimensions",
                got=str(type_),
                expected=f"at least {len(letters)}: {letters}",
            )
        for letter, size in zip(letters, type_.shape[type_.ndim - len(letters) :], strict=True):
            if sizes.setdefault(letter, size) != size:
                raise errors.TypeMismatchError(
                    f"{name}: dimension {letter!r} has sizes {sizes[letter]} and {size}",
                    got=", ".join(map(str, types)),
                    expected=str(signature),
                )
    return sizes


def same_dtype(name: str) -> DTypeRule:
    """Result dtype of operations whose operands must agree."""

    def rule(*types: ArrayType, **_: object) -> np.dtype:
        if any(t.dtype != types[0].dtype for t in types):
            raise errors.TypeMismatchError(
                f"{name} needs operands of one dtype",
                got=", ".join(map(str, types)),
                expected="equal dtypes",
                fix="convert one with lax.convert_element_type, or use infini.numpy, which promotes",
            )
        return types[0].dtype

    return rule


def accept(name: str, allowed: Collection[np.dtype], types: Sequence[ArrayType]) -> None:
    """Refuse operands whose dtype is not allowed.

    Raises:
        TypeMismatchError: one is not.
    """
    for type_ in types:
        if type_.dtype not in allowed:
            names = ", ".join(sorted(dtypes.short(d) for d in allowed))
            raise errors.TypeMismatchError(f"{name} does not take this dtype", got=str(type_), expected=names)


def type_from_signature(
    name: str,
    signature: Signature | Callable[..., Signature],
    allowed: Collection[np.dtype],
    dtype: DTypeRule,
) -> Callable[..., tuple[ArrayType, ...]]:
    """TYPE rule of an operation whose result shapes follow from its signature."""

    def rule(*types: ArrayType, **attrs: object) -> tuple[ArrayType, ...]:
        found = signature if isinstance(signature, Signature) else signature(**attrs)
        accept(name, allowed, types)
        sizes = core_sizes(name, found, types)
        prefix = loop_shape(name, types, [len(letters) for letters in found.inputs])
        result = dtype(*types, **attrs)
        return tuple(
            ArrayType((*prefix, *(sizes[letter] for letter in letters)), result) for letters in found.outputs
        )

    return rule


# --- rules --------------------------------------------------------------------------------


def jvp_by_operand(*maps: Callable[..., Value] | None) -> Callable[..., tuple[Value | None, ...]]:
    """JVP rule of an operation with one result from one linear map per operand: `map(g, result,
    *operands, **attrs)`.
    """

    def rule(
        primals: Sequence[Value], tangents: Sequence[Value | None], results: Sequence[Value], **attrs: object
    ) -> tuple[Value | None, ...]:
        total: Value | None = None
        for linear_map, tangent in zip(maps, tangents, strict=True):
            if tangent is None or linear_map is None:
                continue
            term = linear_map(tangent, results[0], *primals, **attrs)
            total = term if total is None else trace.bind1(primitive.by_name("add"), total, term)
        return (None if total is None else broadcast_to(total, results[0].shape),)

    return rule


def linear_jvp(op_name: str, num_linear: int = 1) -> Callable[..., tuple[Value | None, ...]]:
    """JVP rule of an operation that is linear in its first `num_linear` operands taken together; others
    are indices.
    """

    def rule(
        primals: Sequence[Value], tangents: Sequence[Value | None], results: Sequence[Value], **attrs: object
    ) -> tuple[Value | None, ...]:
        if all(t is None for t in tangents[:num_linear]):
            return (None,) * len(results)
        moved = [
            (zeros(p.type) if t is None else t) if i < num_linear else p
            for i, (p, t) in enumerate(zip(primals, tangents, strict=True))
        ]
        return trace.bind(primitive.by_name(op_name), *moved, **attrs)

    return rule


def no_jvp(
    primals: Sequence[Value], tangents: Sequence[Value | None], results: Sequence[Value], **attrs: object
) -> tuple[None, ...]:
    """JVP rule of operations that are constant almost everywhere: comparisons, rounding, integers."""
    return (None,) * len(results)


def in_float32(reference: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A NumPy function computed in float32 for the 16- and 8-bit floats, rounded once."""

    def rule(*args: np.ndarray, **attrs: object) -> np.ndarray:
        small = next((a.dtype for a in args if a.dtype in dtypes.FLOATS and a.dtype.itemsize <= 2), None)
        with np.errstate(all="ignore"):
            if small is None:
                return reference(*args, **attrs)
            wide = [a.astype(np.float32) if a.dtype in dtypes.FLOATS else a for a in args]
            result = reference(*wide, **attrs)
            return result.astype(small) if result.dtype == np.float32 else result

    return rule


@dataclass(frozen=True, slots=True)
class PerElement:
    """COST rule of an operation that does the same for every element of its largest operand.

    Args:
        weight: time of one element on a vector unit, an addition being 1; what a fuser weighs.
        is_transcendental: whether it counts as one of these instead of as one floating-point operation.
    """

    weight: float = 1.0
    is_transcendental: bool = False

    def __call__(self, types: Sequence[ArrayType], attrs: ir.Attrs) -> float:
        """Operations, one per element."""
        shapes = [t.shape for t in types]
        return float(prod(np.broadcast_shapes(*shapes))) if self.weight else 0.0


def elementwise(
    name: str,
    allowed: Collection[np.dtype],
    reference: Callable[..., np.ndarray],
    *,
    num_operands: int = 1,
    jvp: tuple[Callable[..., Value] | None, ...] | None = None,
    transpose: Callable[..., tuple[Value | None, ...]] | None = None,
    dtype: DTypeRule | np.dtype | None = None,
    type: Callable[..., tuple[ArrayType, ...]] | None = None,
    decompose: Callable[..., Sequence[Value]] | None = None,
    cost: PerElement | None = None,
    cases: Sequence[Span] | cases_.Cases | None = None,
    extra: Mapping[RuleKey, Any] | None = None,  # Any: each key has its own kind of rule
) -> Primitive:
    """Declare an operation that acts on each element; operands broadcast.

    Args:
        name: name of the operation, and of the scalar function that backends emit for it.
        allowed: dtypes of its operands.
        reference: NumPy function; it is given float32 in place of smaller floats.
        num_operands: number of operands.
        jvp: one linear map per operand; absent means constant almost everywhere.
        transpose: cotangents of the operands, for linear operations.
        dtype: dtype of the result; that of the operands when absent.
        type: whole type rule, for operations whose operands differ in dtype.
        decompose: definition by other operations, for backends without the scalar function.
        cost: work of one element; that of an addition when absent.
        cases: inputs for the oracle tests: one span per operand, or whole cases.
        extra: further rules.
    """
    signature = Signature(((),) * num_operands, ((),))
    if isinstance(dtype, np.dtype):
        fixed, agree = dtype, same_dtype(name)

        def dtype_rule(*types: ArrayType, **attrs: object) -> np.dtype:
            agree(*types, **attrs)
            return fixed
    else:
        dtype_rule = dtype or same_dtype(name)
    rules: dict[RuleKey, Any] = {
        primitive.TYPE: type or type_from_signature(name, signature, allowed, dtype_rule),
        primitive.REFERENCE: in_float32(reference),
        primitive.SCALAR: name,
        primitive.COST: cost or PerElement(),
        primitive.JVP: no_jvp if jvp is None else jvp_by_operand(*jvp),
        primitive.CASES: cases
        if isinstance(cases, cases_.Cases)
        else cases_.elementwise(allowed, cases or (ANYTHING,) * num_operands),
        **(extra or {}),
    }
    if transpose is not None:
        rules[primitive.TRANSPOSE] = transpose
    if decompose is not None:
        rules[primitive.DECOMPOSE] = decompose
    return primitive.register(Primitive(name, signature, rules))


def check_equal_shapes(name: str, *args: object) -> None:
    """What makes `lax` stricter than the operations: operands have equal shapes, or are scalars.

    Raises:
        TypeMismatchError: they are not.
    """
    shapes = {a.shape for a in args if isinstance(a, (Value, np.ndarray)) and a.shape}
    if len(shapes) > 1:
        raise errors.TypeMismatchError(
            f"lax.{name} needs operands of equal shape",
            got=", ".join(
                str(a.type if isinstance(a, Value) else a.shape) for a in args if hasattr(a, "shape")
            ),
            expected="equal shapes, or scalars",
            fix=f"use infini.numpy, which broadcasts, or lax.broadcast_in_dim before lax.{name}",
        )


def normalize_axis(axis: int, ndim: int) -> int:
    """An axis as a number from 0.

    Raises:
        ValueMismatchError: there is no such axis.
    """
    if not -ndim <= axis < ndim:
        raise errors.ValueMismatchError(f"axis {axis} does not exist in an array of {ndim} dimensions")
    return axis % ndim


def letters(count: int, prefix: str = "d") -> tuple[str, ...]:
    """Letters for `count` core dimensions, numbered from the right, so they do not depend on the rank."""
    return tuple(f"{prefix}{i}" for i in range(count, 0, -1))


def prod(sizes: Sequence[int]) -> int:
    """Product of sizes."""
    return math.prod(sizes)


def default_fill(dtype: np.dtype) -> Any:  # Any: a number of that dtype
    """What a gather in fill mode reads outside the array: NaN, or the smallest signed, or the largest
    unsigned integer.
    """
    if dtypes.is_inexact(dtype):
        return np.nan
    if dtype == dtypes.bool_:
        return True
    bounds = np.iinfo(dtype)
    return bounds.min if dtype in dtypes.SIGNED else bounds.max
