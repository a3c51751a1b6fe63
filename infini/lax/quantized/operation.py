"""The operation `quantized_matmul`: activations by a matrix that is stored in few bits.

With `transpose` it is `x @ w.T` for `w` (N, K), the product of a linear layer; without it is `x @ w`. Each is
the transpose of the other in `x`, so one operation, linear in `x`, has derivatives of every order and both
modes. There are none by the matrix: its codes are whole numbers.

The definition is the matrix in the dtype of `x`, then a contraction; a backend may lower the operation by a
kernel that reads the bytes. With `activations="int8"` the definition rounds `x` to bytes with a scale per 32
neighbours first, and goes on in float32; that is linear no more, and its derivative is that of the exact
operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from infini.core import dtypes, errors, primitive, trace
from infini.core.ir import ArrayType, Attrs
from infini.core.primitive import Primitive, Signature
from infini.core.value import Value
from infini.lax import cases, contraction, elementwise, families, places
from infini.lax.cases import Case, Sample, Span
from infini.lax.families import is_linear
from infini.lax.quantized import arrangement, codes, reference, scheme as scheme_
from infini.lax.quantized.scheme import Scheme

FLOATS = frozenset({dtypes.float16, dtypes.bfloat16, dtypes.float32, dtypes.float64})
ACTIVATIONS = ("exact", "int8")


def _signature(*, scheme: str, transpose: bool, dtype: np.dtype, activations: str) -> Signature:
    found = scheme_.parse(scheme)
    # Arranged arrays have panels of rows, and a dimension for the rows of a panel.
    wide, parts = (("p", "g", "b"), ("p", "g", "s")) if found.rows > 1 else (("n", "g", "b"), ("n", "g", "s"))
    narrow: tuple[str, ...] = ("p", "g", "r") if found.rows > 1 else ("n", "g")
    planes = (wide, narrow, *([narrow] if found.beside else []), *([parts] if found.part else []))
    given, out = (("m", "k"), ("m", "n")) if transpose else (("m", "n"), ("m", "k"))
    return Signature((given, *planes), (out,))


def _type(
    x: ArrayType, *planes: ArrayType, scheme: str, transpose: bool, dtype: np.dtype, activations: str
) -> tuple[ArrayType]:
    assert activations in ACTIVATIONS
    found = scheme_.parse(scheme)
    families.accept("quantized_matmul", FLOATS, [x])
    check_planes(found, planes)
    planes = tuple(arrangement.plain_types(planes, found))
    n, groups, nbytes = planes[0].shape[-3:]
    k = groups * nbytes * 8 // found.bits
    wanted, other = (k, n) if transpose else (n, k)
    if x.ndim < 2 or x.shape[-1] != wanted:
        is_turned = x.ndim > 1 and x.shape[-1] == other
        raise errors.TypeMismatchError(
            "quantized_matmul: the contracted sizes differ",
            got=f"{x} and a matrix ({n}, {k}) of {found}, transpose={transpose}",
            expected=f"x (..., {wanted})",
            fix=f"transpose={not transpose} contracts the other dimension of the matrix"
            if is_turned
            else None,
        )
    ranks = [3, *[2] * (1 + bool(found.beside)), *([3] if found.part else [])]
    loop = families.loop_shape("quantized_matmul", [x, *planes], [2, *ranks])
    return (ArrayType((*loop, x.shape[-2], n if transpose else k), dtype),)


def check_planes(scheme: Scheme, planes: Sequence[ArrayType], *, ndim: int = 3) -> None:
    """Refuse planes that a scheme does not have.

    Args:
        scheme: the scheme.
        planes: types of the planes.
        ndim: how many dimensions the blocks have at least: 3 in a matrix, 2 in a row.

    Raises:
        TypeMismatchError: number, dtypes or shapes are others.
    """
    beside = [scheme.beside_dtype] if scheme.beside else []
    wanted = [dtypes.uint8, scheme.scale_dtype, *beside, *([dtypes.uint8] if scheme.part else [])]
    if [p.dtype for p in planes] != wanted:
        raise errors.TypeMismatchError(
            f"a matrix of {scheme} has other planes",
            got=", ".join(map(str, planes)),
            expected=", ".join(map(dtypes.short, wanted))
            + (f" with a {scheme.beside}" if scheme.beside else ""),
            fix="make it with quantization.quantize(x, scheme)",
        )
    blocks, *others = arrangement.plain_types(planes, scheme)
    rows = blocks.shape[-ndim:-1]
    wide = [others.pop()] if scheme.part else []
    has_shapes = blocks.ndim >= ndim and all(p.shape[1 - ndim :] == rows for p in others)
    has_shapes &= all(p.shape[-ndim:] == (*rows, scheme.sub_scales) for p in wide)
    if not has_shapes or (scheme.group is not None and blocks.shape[-1] != scheme.nbytes_of_group):
        raise errors.TypeMismatchError(
            f"the planes of a matrix of {scheme} do not go together",
            got=", ".join(map(str, planes)),
            expected=f"blocks (..., N, G, {scheme.nbytes_of_group}), the others (..., N, G)"
            if scheme.group
            else "blocks (..., N, G, B), the others (..., N, G)",
            fix="make it with quantization.quantize(x, scheme)",
        )


def _reference(
    x: np.ndarray, *planes: np.ndarray, scheme: str, transpose: bool, dtype: np.dtype, activations: str
) -> np.ndarray:
    if activations == "int8":
        x = reference.rounded(x).astype(np.float64 if x.dtype == np.float64 else np.float32)
    matrix = reference.dequantize(planes, scheme_.parse(scheme)).astype(x.dtype)
    wide = np.float64 if x.dtype == np.float64 else np.float32
    matrix = matrix.astype(wide)
    return np.matmul(x.astype(wide), np.swapaxes(matrix, -1, -2) if transpose else matrix).astype(dtype)


def _decompose(
    x: Value, *planes: Value, scheme: str, transpose: bool, dtype: np.dtype, activations: str
) -> tuple[Value]:
    if activations == "int8":
        wide = dtypes.float64 if x.dtype == dtypes.float64 else dtypes.float32
        x = elementwise.convert_element_type(codes.rounded(x), wide)
    matrix = codes.dequantize(planes, scheme_.parse(scheme), x.dtype)
    spec = "mk,nk->mn" if transpose else "mn,nk->mk"
    return (trace.bind1(contraction.dot_p, x, matrix, spec=spec, dtype=dtype),)


def _no_derivative() -> errors.MissingRuleError:
    return errors.MissingRuleError(
        "quantized_matmul has derivatives by its activations only",
        got="a derivative by the scales of the quantized matrix",
        expected="a matrix that is constant: its codes are whole numbers, and its scales belong to them",
        fix="differentiate by other arguments, or pass lax.stop_gradient(w); to train the scales, use "
        "x @ w.dequantize(x.dtype).T",
    )


def _jvp(
    primals: Sequence[Value],
    tangents: Sequence[Value | None],
    results: Sequence[Value],
    **attrs: Any,  # Any: attributes are of many types
) -> tuple[Value | None]:
    if any(t is not None for t in tangents[1:]):
        raise _no_derivative()
    if tangents[0] is None:
        return (None,)
    attrs["activations"] = "exact"  # rounding counts as the identity
    return (trace.bind1(quantized_matmul_p, tangents[0], *primals[1:], **attrs),)


def _transpose(
    ct: Value, x: Any, *planes: Any, scheme: str, transpose: bool, dtype: np.dtype, activations: str
) -> tuple[Value | None, ...]:
    if not is_linear(x) or any(map(is_linear, planes)):
        raise _no_derivative()
    found = trace.bind1(
        quantized_matmul_p, ct, *planes,
        scheme=scheme, transpose=not transpose, dtype=x.dtype, activations=activations,
    )  # fmt: skip
    return (families.sum_to(found, x.shape), *(None,) * len(planes))


def _place(op: Primitive, in_types: places.Types, out_types: places.Types, attrs: Attrs) -> places.Factors:
    """Rows of the matrix may be split anywhere, or between panels, the dimension with the groups between
    groups only: what is split is their number, and `x` or the result goes along. What is contracted stays
    whole where activations would be rounded with other neighbours than before.
    """
    signature = op.signature_for(attrs)
    assert signature is not None
    scheme = scheme_.parse(attrs["scheme"])
    rows = "p" if scheme.rows > 1 else "n"
    contracted, other = ("g", rows) if attrs["transpose"] else (rows, "g")
    blocks = in_types[1]
    piece = blocks.shape[-1] // scheme.rows * 8 // scheme.bits if attrs["transpose"] else scheme.rows
    is_free = attrs["activations"] == "exact" or piece % codes.ACTIVATION_GROUP == 0
    splittable = frozenset({"m", other, *([contracted] if is_free else [])})
    found = places.by_signature(signature, in_types, out_types, splittable, "sum")
    x, *planes = found.inputs
    (out,) = found.outputs
    inputs = ((*x[:-1], (contracted,) if is_free else places.WHOLE), *planes)
    sums: dict[str, places.Reducer] = {contracted: "sum"} if is_free else {}
    return places.Factors(inputs, ((*out[:-1], (other,)),), found.sizes, sums)


def _linear(in_types: places.Types, out_types: places.Types, attrs: Attrs) -> places.Linear:
    return places.alone(0) if attrs["activations"] == "exact" else ()


def _cost(types: Sequence[ArrayType], attrs: Attrs) -> float:
    """Two operations per product; those that make the numbers of the matrix are the backend's."""
    (out,) = _type(*types, **attrs)
    return 2.0 * out.size * types[0].shape[-1]


def _cases(dtype: np.dtype) -> list[Case]:
    def case(name: str, *, transpose: bool = True, groups: int = 1, activations: str = "exact") -> Case:
        scheme = scheme_.parse(name)
        # At most 64 bytes, as larger arrays are no constants; but a group may need more.
        rows = max(1, 64 // (groups * scheme.nbytes_of_group))
        planes = [
            Sample((rows, groups, scheme.nbytes_of_group), dtypes.uint8, Span(0, 255)),
            Sample((rows, groups), scheme.scale_dtype, Span(0.01, 0.05)),
        ]
        if scheme.beside:
            planes.append(Sample((rows, groups), scheme.beside_dtype, Span(0, 15)))
        if scheme.part:
            planes.append(Sample((rows, groups, scheme.sub_scales), dtypes.uint8, Span(0, 255)))
        k = groups * scheme.nbytes_of_group * 8 // scheme.bits
        x = Sample((3, k if transpose else rows))
        attrs = {"scheme": name, "transpose": transpose, "dtype": dtype, "activations": activations}
        # What is rounded has no derivative that differences would find.
        moving = (0,) if activations == "exact" else ()
        return Case((x, *planes), attrs, "contraction", moving=moving)

    return [
        case("Q5_1"),
        case("Q5_0", transpose=False),
        case("Q4_0", groups=2),
        case("Q4_1", groups=2, transpose=False),
        case("Q8_0"),
        case("int8:32:bf16", transpose=False),
        case("int4:32:f32:zero_point", groups=2),
        case("Q4_0", activations="int8"),
    ]


quantized_matmul_p: Primitive = primitive.register(
    Primitive(
        "quantized_matmul",
        _signature,
        {
            primitive.TYPE: _type,
            primitive.REFERENCE: _reference,
            primitive.JVP: _jvp,
            primitive.TRANSPOSE: _transpose,
            primitive.LINEAR: _linear,
            primitive.PLACE: _place,
            primitive.DECOMPOSE: _decompose,
            primitive.COST: _cost,
            primitive.CASES: cases.Cases(FLOATS, _cases),
        },
    )
)
