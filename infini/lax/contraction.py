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
import operator
import string
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.ir import ArrayType
from infini.core.primitive import Primitive, Signature
from infini.core.value import Value
from infini.lax import (
    cases,
    contraction_dtypes,
    elementwise as e,
    families,
    placement,
    places,
    precision as precision_,
)
from infini.lax.cases import Case, Sample
from infini.lax.families import is_linear

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers
DotDimensionNumbers: TypeAlias = tuple[
    tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], Sequence[int]]
]


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


def shared_loops(
    ct: Value, out: str, other: Value, other_letters: str, target: Any, target_letters: str
) -> tuple[str, str, str]:
    """Letters of a cotangent, the other operand and the operand whose cotangent is wanted, in a transpose.

    Loop dimensions that the target has not, as a weight under `vmap`, get letters in the other two, so they
    are contracted on the way instead of making a result per element that is summed afterwards.
    """
    loops = ct.ndim - len(out)
    own, others = target.ndim - len(target_letters), other.ndim - len(other_letters)
    sizes = ct.shape[:loops]
    is_plain = own == loops or others != loops or other.shape[:loops] != sizes
    if is_plain or target.shape[:own] != sizes[loops - own :]:
        return out, other_letters, target_letters
    used = out + other_letters + target_letters
    names = "".join([c for c in string.ascii_letters if c not in used][:loops])
    return names + out, names + other_letters, names[loops - own :] + target_letters


def _summed_out(
    ct: Value, out: str, other: Value, other_letters: str, target: Any, target_letters: str
) -> Value:
    out, other_letters, target_letters = shared_loops(ct, out, other, other_letters, target, target_letters)
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


def _cases(dtype: np.dtype) -> list[Case]:
    shapes = {"mk,kn->mn": ((3, 5), (5, 4)), "bmk,bkn->bmn": ((2, 3, 5), (2, 5, 4)), "k,k->": ((7,), (7,))}
    return [
        Case((Sample(x), Sample(y)), {"spec": spec, "dtype": dtype}, "contraction")
        for spec, (x, y) in shapes.items()
    ]


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
            primitive.LINEAR: places.alone(0, 1),
            primitive.PLACE: places.every_letter(),
            primitive.COST: lambda types, attrs: cost(types, spec=attrs["spec"]),
            primitive.CASES: cases.Cases(dtypes.NUMERIC, _cases),
        },
    )
)


# --- where results go -------------------------------------------------------------------------


def check_out_sharding(name: str, out_sharding: Any) -> None:
    """Refuse what is no placement.

    Raises:
        TypeMismatchError: it is neither None nor a placement.
    """
    if out_sharding is not None and not placement.is_sharding(out_sharding):
        raise errors.TypeMismatchError(
            f"{name}: out_sharding is a placement",
            got=repr(out_sharding),
            expected="None, a P or a NamedSharding",
        )


def placed(x: Value, out_sharding: Any) -> Value:
    """A result where `out_sharding` asks for it."""
    return x if out_sharding is None else placement.with_sharding_constraint(x, out_sharding)


# --- functions --------------------------------------------------------------------------------


def contract(
    spec: str,
    x: ArrayLike,
    y: ArrayLike,
    *,
    precision: precision_.PrecisionLike = None,
    preferred_element_type: Any = None,
) -> Value:
    """Contraction of two operands by letters, for example `contract("mk,kn->mn", x, y)`.

    Dimensions left of the letters are loop dimensions and broadcast. Products of 16- and 8-bit floats
    accumulate in float32.

    Args:
        spec: letters of both operands and of the result.
        x: left operand.
        y: right operand.
        precision: see `lax.Precision`.
        preferred_element_type: dtype of the result; when absent that of the operands, or of the wider one.

    Raises:
        TypeMismatchError: sizes do not go together, or dtypes have none in common.
    """
    left, right = trace.as_value(x), trace.as_value(y)
    wanted = precision_.canonical(precision)
    natural = contraction_dtypes.joint("dot_general", left, right)
    has_algorithm = isinstance(wanted, (precision_.DotAlgorithm, precision_.DotAlgorithmPreset))
    result = contraction_dtypes.preferred(
        "dot_general", natural, preferred_element_type, is_checked=not has_algorithm
    )
    operand, total = contraction_dtypes.working(natural, result)
    left, right = (contraction_dtypes.prepared(v, natural, operand) for v in (left, right))
    if has_algorithm:
        first, second, sum_dtype = precision_.types_of(wanted, left.dtype, right.dtype)
        left, right = e.convert_element_type(left, first), e.convert_element_type(right, second)
        total = sum_dtype or total
    found = trace.bind1(dot_p, left, right, spec=spec, dtype=total)
    return found if found.dtype == result else e.convert_element_type(found, result)


def dot_general(
    lhs: ArrayLike,
    rhs: ArrayLike,
    dimension_numbers: DotDimensionNumbers,
    precision: precision_.PrecisionLike = None,
    preferred_element_type: Any = None,
    *,
    out_sharding: Any = None,
) -> Value:
    """General contraction, as `jax.lax.dot_general`.

    Args:
        lhs: left operand.
        rhs: right operand. Dtypes may differ; the result has the wider one.
        dimension_numbers: `((lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch))`.
        precision: see `lax.Precision`; a `DotAlgorithm`, a preset or its name is followed.
        preferred_element_type: dtype of the result; that of the operands when absent.
        out_sharding: placement of the result.

    Returns:
        Batch dimensions, then the free dimensions of `lhs`, then those of `rhs`.

    Raises:
        TypeMismatchError: a dimension number is out of range or occurs twice, contracted or batch sizes
            differ, or dtypes have none in common.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import lax
        >>> lax.dot_general(inp.ones((8, 2, 3)), inp.ones((8, 3, 5)), (((2,), (1,)), ((0,), (0,)))).shape
        (8, 2, 5)
    """
    x, y = trace.as_value(lhs), trace.as_value(rhs)
    check_out_sharding("dot_general", out_sharding)
    spec = dot_spec("dot_general", x.type, y.type, dimension_numbers)
    found = contract(spec, x, y, precision=precision, preferred_element_type=preferred_element_type)
    return placed(found, out_sharding)


def dot(
    lhs: ArrayLike,
    rhs: ArrayLike,
    *,
    dimension_numbers: DotDimensionNumbers | None = None,
    precision: precision_.PrecisionLike = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> Value:
    """Vector, matrix-vector and matrix products, or any contraction, as `jax.lax.dot`.

    Args:
        lhs: left operand.
        rhs: right operand.
        dimension_numbers: as for `dot_general`; may be absent for vectors and matrices.
        precision: see `lax.Precision`.
        preferred_element_type: dtype of the result; that of the operands when absent.
        out_sharding: placement of the result.

    Raises:
        ValueMismatchError: `dimension_numbers` is absent and the operands are no vectors and matrices whose
            sizes agree.
        TypeMismatchError: as for `dot_general`.
    """
    x, y = trace.as_value(lhs), trace.as_value(rhs)
    if dimension_numbers is None:
        if not (1 <= x.ndim <= 2 and 1 <= y.ndim <= 2 and x.shape[-1] == y.shape[0]):
            raise errors.ValueMismatchError(
                "lax.dot multiplies vectors and matrices",
                got=f"{x.type}, {y.type}",
                expected="(m, k) or (k,), and (k, n) or (k,)",
                fix="give dimension_numbers=((lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch))",
            )
        dimension_numbers = (((x.ndim - 1,), (0,)), ((), ()))
    return dot_general(x, y, dimension_numbers, precision, preferred_element_type, out_sharding=out_sharding)


def batch_matmul(lhs: ArrayLike, rhs: ArrayLike, precision: precision_.PrecisionLike = None) -> Value:
    """Matrix products of the last two dimensions, the others being equal batch dimensions.

    Raises:
        ValueMismatchError: ranks differ, or are less than 2.
        TypeMismatchError: sizes do not go together.
    """
    x, y = trace.as_value(lhs), trace.as_value(rhs)
    if x.ndim != y.ndim or x.ndim < 2:
        raise errors.ValueMismatchError(
            "batch_matmul needs two arrays of equal rank, at least 2", got=f"{x.type}, {y.type}"
        )
    batch = tuple(range(x.ndim - 2))
    return dot_general(x, y, (((x.ndim - 1,), (y.ndim - 2,)), (batch, batch)), precision)


def dot_spec(
    name: str, x: ArrayType, y: ArrayType, dimension_numbers: DotDimensionNumbers, *, kept: int = 0
) -> str:
    """The spec that dimension numbers stand for.

    Args:
        name: function to name in errors.
        x: type of the left operand.
        y: type of the right operand.
        dimension_numbers: contracted and batch dimensions of both.
        kept: letters to leave unused.

    Raises:
        TypeMismatchError: the numbers do not fit the operands.
    """
    (x_contract, y_contract), (x_batch, y_batch) = (
        tuple(tuple(map(operator.index, side)) for side in pair) for pair in dimension_numbers
    )
    for which, value, contracting, batch in (
        ("lhs", x, x_contract, x_batch),
        ("rhs", y, y_contract, y_batch),
    ):
        _check_numbers(name, which, value, contracting, batch)
    for what, ours, theirs in (("batch", x_batch, y_batch), ("contracting", x_contract, y_contract)):
        sizes = tuple(x.shape[i] for i in ours), tuple(y.shape[j] for j in theirs)
        if sizes[0] != sizes[1]:
            raise errors.TypeMismatchError(
                f"{name}: {what} dimensions of lhs and rhs differ",
                got=f"{x}, {y}: lhs_{what} {ours} of sizes {sizes[0]}, "
                f"rhs_{what} {theirs} of sizes {sizes[1]}",
                expected="as many dimensions, of equal sizes",
            )
    x_letters, y_letters = [""] * x.ndim, [""] * y.ndim
    names = iter(string.ascii_letters[kept:])
    for i, j in [*zip(x_batch, y_batch, strict=True), *zip(x_contract, y_contract, strict=True)]:
        x_letters[i] = y_letters[j] = next(names)
    out = [x_letters[i] for i in x_batch]
    for group in (x_letters, y_letters):
        for i, letter in enumerate(group):
            if not letter:
                group[i] = next(names)
                out.append(group[i])
    return f"{''.join(x_letters)},{''.join(y_letters)}->{''.join(out)}"


def _check_numbers(
    name: str, which: str, x: ArrayType, contracting: tuple[int, ...], batch: tuple[int, ...]
) -> None:
    numbers = f"{which}_batch {batch} and {which}_contracting {contracting}"
    if any(not 0 <= d < x.ndim for d in contracting + batch):
        raise errors.TypeMismatchError(
            f"{name}: a dimension of {which} does not exist",
            got=f"{numbers} for {x}",
            expected=f"numbers from 0 to {x.ndim - 1}" if x.ndim else "none, for a scalar",
        )
    if len(set(contracting + batch)) != len(contracting + batch):
        raise errors.TypeMismatchError(
            f"{name}: a dimension of {which} occurs twice", got=f"{numbers} for {x}"
        )


def cost(types: Sequence[ArrayType], *, spec: str) -> float:
    """Floating-point operations of a contraction: two per product."""
    a, b, _ = parse_spec(spec)
    x, y = types
    sizes = dict(zip(a, x.shape[x.ndim - len(a) :], strict=True)) | dict(
        zip(b, y.shape[y.ndim - len(b) :], strict=True)
    )
    loops = families.loop_shape("dot", types, [len(a), len(b)])
    return 2.0 * families.prod(tuple(sizes.values())) * families.prod(loops)
