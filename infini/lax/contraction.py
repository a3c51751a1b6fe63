"""The contraction of two operands. Its attribute is its signature: `spec="mk,kn->mn"` names the core
dimensions by letter.

A letter of both operands and the result is a batch dimension in any position, one of both operands alone
is contracted,
one of a single operand and the result is free. Loop dimensions stand left of all of them and broadcast.
JVP and TRANSPOSE are
the same operation with other specs, so no transposes are ever made; a backend takes strides instead.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive, Signature
from infini.core.value import Value
from infini.lax import families, places
from infini.lax.families import is_linear

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers


@functools.cache
def parse_spec(spec: str) -> tuple[str, str, str]:
    """Letters of the left operand, the right operand and the result.

    Raises:
        ValueMismatchError: the text is no spec of two operands.
    """
    left, _, out = spec.partition("->")
    a, comma, b = left.partition(",")
    if not comma or any(len(set(part)) != len(part) for part in (a, b, out)) or not set(out) <= set(a + b):
        raise errors.ValueMismatchError(
            f"{spec!r} is not a contraction of two operands", expected="such as mk,kn->mn"
        )
    return a, b, out


def _signature(*, spec: str, dtype: np.dtype) -> Signature:
    a, b, out = parse_spec(spec)
    return Signature((tuple(a), tuple(b)), (tuple(out),))


def _reference(x: np.ndarray, y: np.ndarray, *, spec: str, dtype: np.dtype) -> np.ndarray:
    a, b, out = parse_spec(spec)
    wide = np.float32 if dtype in dtypes.FLOATS and dtype.itemsize <= 2 else dtype
    compute = np.result_type(wide, np.float32) if dtype in dtypes.FLOATS else dtype
    result = np.einsum(f"...{a},...{b}->...{out}", x.astype(compute), y.astype(compute), optimize=True)
    return np.asarray(result).astype(dtype)


def _transpose(ct: Value, x: Any, y: Any, *, spec: str, dtype: np.dtype) -> tuple[Value | None, Value | None]:
    a, b, out = parse_spec(spec)
    if is_linear(x):
        return _summed_out(ct, out, y, b, x, a), None
    return None, _summed_out(ct, out, x, a, y, b)


def _summed_out(
    ct: Value, out: str, other: Value, other_letters: str, target: Any, target_letters: str
) -> Value:
    # A letter that only the target has was summed away: its cotangent is constant along it.
    known = [letter for letter in target_letters if letter in out + other_letters]
    found = trace.bind1(dot_p, ct, other, spec=f"{out},{other_letters}->{''.join(known)}", dtype=target.dtype)
    if len(known) < len(target_letters):
        loops = found.ndim - len(known)
        shape = found.shape[:loops] + target.shape[target.ndim - len(target_letters) :]
        dims = tuple(range(-len(shape), -len(target_letters)))
        dims += tuple(i - len(target_letters) for i, letter in enumerate(target_letters) if letter in known)
        found = trace.bind1(primitive.by_name("broadcast_in_dim"), found, shape=shape, dims=dims)
    return found


dot_p: Primitive = primitive.register(
    Primitive(
        "dot",
        _signature,
        {
            primitive.TYPE: families.type_from_signature(
                "dot", _signature, dtypes.ALL, lambda *types, spec, dtype: dtype
            ),
            primitive.REFERENCE: _reference,
            primitive.JVP: families.jvp_by_operand(
                lambda g, out, x, y, *, spec, dtype: trace.bind1(dot_p, g, y, spec=spec, dtype=dtype),
                lambda g, out, x, y, *, spec, dtype: trace.bind1(dot_p, x, g, spec=spec, dtype=dtype),
            ),
            primitive.TRANSPOSE: _transpose,
            primitive.PLACE: places.every_letter(),
            primitive.CASES: (frozenset(dtypes.NUMERIC), (families.ANYTHING, families.ANYTHING)),
        },
    )
)


def contract(spec: str, x: ArrayLike, y: ArrayLike, *, preferred_element_type: Any = None) -> Value:
    """Contraction of two operands by letters, for example `contract("mk,kn->mn", x, y)`.

    Dimensions left of the letters are loop dimensions and broadcast. Products of 16-bit floats accumulate
    in float32.

    Args:
        spec: letters of both operands and of the result.
        x: left operand.
        y: right operand, of the dtype of `x`.
        preferred_element_type: dtype of the result; that of the operands when absent.
    """
    left, right = trace.as_value(x), trace.as_value(y)
    if left.dtype != right.dtype:
        raise errors.TypeMismatchError(
            "dot_general needs operands of one dtype",
            got=f"{left.type}, {right.type}",
            fix="convert one with .astype(...), or use infini.numpy, which promotes",
        )
    dtype = left.dtype if preferred_element_type is None else dtypes.canonical(preferred_element_type)
    return trace.bind1(dot_p, left, right, spec=spec, dtype=dtype)


DotDimensionNumbers = tuple[tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], Sequence[int]]]


def dot_general(
    lhs: ArrayLike,
    rhs: ArrayLike,
    dimension_numbers: DotDimensionNumbers,
    precision: None = None,
    preferred_element_type: Any = None,
) -> Value:
    """General contraction, as `jax.lax.dot_general`.

    Args:
        lhs: left operand.
        rhs: right operand, of the same dtype.
        dimension_numbers: `((lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch))`.
        precision: accepted for JAX's sake; infini always accumulates 16-bit floats in float32.
        preferred_element_type: dtype of the result; that of the operands when absent.

    Returns:
        Batch dimensions, then the free dimensions of `lhs`, then those of `rhs`.

    Raises:
        TypeMismatchError: contracted or batch sizes differ, or the dtypes do.
        ValueMismatchError: a dimension number is out of range or occurs twice.
    """
    x, y = trace.as_value(lhs), trace.as_value(rhs)
    (x_contract, y_contract), (x_batch, y_batch) = dimension_numbers
    if len(x_contract) != len(y_contract) or len(x_batch) != len(y_batch):
        raise errors.ValueMismatchError(
            "dot_general: operands name different numbers of dimensions", got=str(dimension_numbers)
        )
    x_letters, y_letters = [""] * x.ndim, [""] * y.ndim
    names = iter(string.ascii_letters)
    shared = []
    for i, j in [*zip(x_batch, y_batch, strict=True), *zip(x_contract, y_contract, strict=True)]:
        i, j = families.normalize_axis(i, x.ndim), families.normalize_axis(j, y.ndim)
        if x_letters[i] or y_letters[j]:
            raise errors.ValueMismatchError(
                "dot_general: a dimension occurs twice", got=str(dimension_numbers)
            )
        x_letters[i] = y_letters[j] = next(names)
        shared.append(x_letters[i])
    free = []
    for group in (x_letters, y_letters):
        for i, letter in enumerate(group):
            if not letter:
                group[i] = next(names)
                free.append(group[i])
    out = shared[: len(x_batch)] + free
    spec = f"{''.join(x_letters)},{''.join(y_letters)}->{''.join(out)}"
    return contract(spec, x, y, preferred_element_type=preferred_element_type)


def dot(lhs: ArrayLike, rhs: ArrayLike, precision: None = None, preferred_element_type: Any = None) -> Value:
    """Vector, matrix-vector and matrix products, as `jax.lax.dot`.

    Raises:
        TypeMismatchError: an operand has other than one or two dimensions, or the sizes differ.
    """
    x, y = trace.as_value(lhs), trace.as_value(rhs)
    if not (1 <= x.ndim <= 2 and 1 <= y.ndim <= 2):
        raise errors.TypeMismatchError("lax.dot takes vectors and matrices", got=f"{x.type}, {y.type}")
    return dot_general(x, y, (((x.ndim - 1,), (0,)), ((), ())), precision, preferred_element_type)


def cost(types: Sequence[ArrayType], *, spec: str) -> float:
    """Floating-point operations of a contraction: two per product."""
    a, b, _ = parse_spec(spec)
    x, y = types
    sizes = dict(zip(a, x.shape[x.ndim - len(a) :], strict=True)) | dict(
        zip(b, y.shape[y.ndim - len(b) :], strict=True)
    )
    loops = families.loop_shape("dot", types, [len(a), len(b)])
    return 2.0 * families.prod(tuple(sizes.values())) * families.prod(loops)
