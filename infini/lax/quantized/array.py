"""`QuantizedArray`: an array whose rows are stored in few bits; and its product with activations.

It is a pytree of ordinary arrays with the scheme as part of the structure, so that `jit`, `scan` over layers,
`device_put`, placements and files take it as they take a dictionary of arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np

from infini.core import dtypes, errors, trace, tree
from infini.core.ir import ArrayType, Shape
from infini.core.value import Value
from infini.lax import elementwise as e, view
from infini.lax.quantized import arrangement, codes, operation, scheme as scheme_
from infini.lax.quantized.scheme import Scheme

ArrayLike = Any  # Any: arrays, NumPy arrays and Python numbers


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class QuantizedArray:
    """Floats (..., N, K) with rows of K numbers in few bits. Made by `quantize` or `from_ggml`.

    K is cut into G groups. Arrays of one row, and placements and other leaves, have the same class.

    Args:
        blocks: codes, uint8 (..., N, G, bytes of a group).
        scales: scales (..., N, G), float16, bfloat16 or float32.
        minima: what is added to each number of a group, like `scales`; None in schemes without.
        zero_points: codes that stand for zero, uint8 (..., N, G); None in schemes without.
        sub_scales: sub-scales of the parts of a group, uint8 (..., N, G, bytes); None in schemes without.
        scheme: what the bytes mean.
        dtype: dtype of the numbers when they are asked for without one.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import quantization
        >>> w = quantization.quantize(inp.ones((6, 64)), "Q4_0")
        >>> w
        QuantizedArray(Q4_0, f32[6,64], 216 bytes)
        >>> w[2:4].dequantize().shape
        (2, 64)
    """

    blocks: Any  # Any: a leaf is an array, and what `tree.map` makes of it
    scales: Any  # Any: as blocks
    minima: Any = None  # Any: as blocks
    zero_points: Any = None  # Any: as blocks
    sub_scales: Any = None  # Any: as blocks
    scheme: Scheme = field(kw_only=True)
    dtype: np.dtype = field(default=dtypes.float32, kw_only=True)

    @property
    def planes(self) -> tuple[Any, ...]:  # Any: leaves
        """The arrays that it is made of, without those that its scheme lacks."""
        return tuple(plane for _, plane in self.named_planes())

    @property
    def shape(self) -> Shape:
        """Shape of the numbers."""
        *rows, groups, nbytes = self.blocks.shape
        if self.scheme.rows > 1:
            *loop, panels = rows
            return (
                *loop,
                panels * self.scheme.rows,
                groups * nbytes // self.scheme.rows * 8 // self.scheme.bits,
            )
        return (*rows, groups * nbytes * 8 // self.scheme.bits)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of numbers."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that all planes take."""
        return sum(math.prod(p.shape) * p.dtype.itemsize for p in self.planes)

    def named_planes(self) -> Iterator[tuple[str, Any]]:  # Any: leaves
        """The arrays that it is made of, by the names of its fields."""
        for name in _PLANES:
            plane = getattr(self, name)
            if plane is not None:
                yield name, plane

    def dequantize(self, dtype: Any = None) -> Value:  # Any: what names a dtype
        """The numbers as an array of floats, computed in float32 and rounded once.

        Args:
            dtype: dtype of the result; `self.dtype` when absent.

        Raises:
            TypeMismatchError: the planes are not those of the scheme.
        """
        planes = self._checked("dequantize")
        target = self.dtype if dtype is None else dtypes.canonical(dtype)
        if target not in dtypes.FLOATS:
            raise errors.TypeMismatchError(
                "dequantize gives floats", got=target.name, fix="convert its result with .astype"
            )
        return codes.dequantize(planes, self.scheme, target)

    def __getitem__(self, index: Any) -> QuantizedArray:  # Any: as of an array
        """Whole rows: integers, slices and integer arrays for the dimensions before the last.

        Raises:
            TypeMismatchError: the index reaches the last dimension, where numbers lie in groups.
        """
        parts = index if isinstance(index, tuple) else (index,)
        if len(parts) >= self.ndim or any(p is None or p is Ellipsis for p in parts):
            raise errors.TypeMismatchError(
                "a quantized array is indexed by whole rows",
                got=f"{len(parts)} indices for {self.ndim} dimensions"
                if len(parts) >= self.ndim
                else "... or None",
                expected=f"at most {self.ndim - 1} integers, slices or integer arrays",
                fix="w.dequantize()[...] takes any index",
            )
        if self.scheme.rows > 1:
            return self._rows(parts)
        return tree.map(lambda plane: plane[parts], self)

    def _rows(self, parts: tuple[Any, ...]) -> QuantizedArray:  # Any: as of an array
        """Rows of an arranged array, as an array that is not."""
        scheme = replace(self.scheme, rows=1)
        is_number = len(parts) == 1 and self.ndim == 2 and not isinstance(parts[0], slice)
        if is_number:
            # Numbers that count from the end fall into the right panel and row by themselves.
            planes = arrangement.row_of([trace.as_value(p) for p in self.planes], self.scheme, parts[0])
            return self._with(planes, scheme)
        return self.plain()[parts]

    def _with(self, planes: Sequence[Any], scheme: Scheme) -> QuantizedArray:  # Any: leaves
        named = dict(zip((name for name, _ in self.named_planes()), planes, strict=True))
        return QuantizedArray(**named, scheme=scheme, dtype=self.dtype)

    def arranged(self) -> QuantizedArray:
        """The same numbers with 16 rows side by side, the order in which the kernels of CPUs multiply.

        Products of several rows of activations are faster so, since nothing has to be rearranged meanwhile.
        `jit` it with donated planes to do it in the memory of one matrix at a time.

        Returns:
            The array in another arrangement; itself where it has it, or where 16 does not divide its rows.
        """
        if self.scheme.rows > 1 or self.ndim < 2 or not arrangement.is_possible(self.scheme, self.shape[-2]):
            return self
        planes = arrangement.arranged(self._checked("arranged"), self.scheme)
        return self._with(planes, replace(self.scheme, rows=scheme_.ROWS))

    def plain(self) -> QuantizedArray:
        """The same numbers with every row for itself: what `arranged` undoes."""
        if self.scheme.rows == 1:
            return self
        planes = arrangement.plain(self._checked("plain"), self.scheme)
        return self._with(planes, replace(self.scheme, rows=1))

    def to_ggml(self) -> Value:
        """The bytes of a tensor in a GGUF file: uint8 (..., N, bytes of a row).

        Raises:
            TypeMismatchError: the scheme is none of ggml's.
        """
        _check_ggml(self.scheme)
        if self.scheme.rows > 1:
            return self.plain().to_ggml()
        names = [name for name, _ in self.named_planes()]
        planes = dict(zip(names, self._checked("to_ggml"), strict=True))
        parts = [
            planes[name] if name in _BYTES else e.bitcast_convert_type(planes[name], dtypes.uint8)
            for name in _in_files(self.scheme)
        ]
        whole = view.concatenate(parts, parts[0].ndim - 1)
        return view.reshape(whole, (*whole.shape[:-2], whole.shape[-2] * whole.shape[-1]))

    def __repr__(self) -> str:
        try:
            shape, nbytes = self.shape, self.nbytes
        except (AttributeError, TypeError, ValueError):  # leaves that are no arrays
            parts = ", ".join(f"{name}={plane!r}" for name, plane in self.named_planes())
            return f"QuantizedArray({self.scheme}, {parts})"
        return f"QuantizedArray({self.scheme}, {ArrayType(shape, self.dtype)}, {nbytes} bytes)"

    def __infini_array__(self) -> Value:
        """Called where an array is expected, which this is not."""
        raise errors.TypeMismatchError(
            "a quantized array is no operand: nothing turns it into floats silently",
            got=repr(self),
            expected="an array",
            fix="lax.quantized_matmul(x, w) multiplies by it; w.dequantize() gives its numbers",
        )

    def __array__(self, *args: Any, **options: Any) -> np.ndarray:  # Any: NumPy's
        """Called by NumPy, which has no such arrays."""
        raise errors.TypeMismatchError(
            "a quantized array is no NumPy array", got=repr(self), fix="use np.asarray(w.dequantize())"
        )

    def _checked(self, name: str) -> list[Value]:
        planes = [trace.as_value(p) for p in self.planes]
        try:
            operation.check_planes(
                self.scheme, [p.type for p in planes], ndim=2 if self.blocks.ndim < 3 else 3
            )
        except errors.TypeMismatchError as error:
            raise errors.TypeMismatchError(
                f"{name}: {error.what}", got=error.got, expected=error.expected, fix=error.fix
            ) from None
        return planes


_PLANES: Final = ("blocks", "scales", "minima", "zero_points", "sub_scales")
tree.register_dataclass(QuantizedArray, list(_PLANES), ["scheme", "dtype"])


def quantize(x: ArrayLike, scheme: Scheme | str) -> QuantizedArray:
    """Store floats in few bits, row by row.

    `jit` it with `static_argnames="scheme"` where many or large arrays are quantized.

    Args:
        x: floats (..., N, K); groups are made along the last dimension.
        scheme: a scheme of `infini.quantization`, or the name of one: "int8", "int4", "Q8_0", "Q4_0" ...

    Returns:
        The array; `dequantize()` gives floats of the dtype of `x`. NaN and infinities have no codes: they
        make the numbers of their group useless.

    Raises:
        TypeMismatchError: `x` is no array of floats with a dimension.
        ValueMismatchError: groups do not divide K, or there is no such scheme.

    Example:
        >>> import numpy as np
        >>> from infini import quantization
        >>> x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 64)
        >>> w = quantization.quantize(x, quantization.int8(group=32))
        >>> bool(abs(w.dequantize() - x).max() < 0.005)
        True
    """
    found, value = scheme_.scheme_of(scheme), trace.as_value(x)
    if value.ndim < 1 or value.dtype not in operation.FLOATS:
        raise errors.TypeMismatchError(
            "quantize takes floats (..., N, K)",
            got=str(value.type),
            expected="float16, bfloat16, float32 or float64, and a dimension",
        )
    known = found.for_row(value.shape[-1])
    planes = dict(zip(_names(known), codes.quantize(value, known), strict=True))
    return QuantizedArray(**planes, scheme=known, dtype=value.dtype)


_FIELDS: Final = {"minimum": "minima", "zero_point": "zero_points"}
_BYTES: Final = frozenset({"blocks", "sub_scales"})  # planes with bytes per group instead of a number


def _names(scheme: Scheme) -> list[str]:
    """Names of the planes of a scheme, in their order."""
    beside = [_FIELDS[scheme.beside]] if scheme.beside else []
    return ["blocks", "scales", *beside, *(["sub_scales"] if scheme.part else [])]


def _in_files(scheme: Scheme) -> list[str]:
    """Names of the planes in the order in which a group has them in a GGUF file."""
    match scheme.name:
        case "Q2_K":
            return ["sub_scales", "blocks", "scales", "minima"]
        case "Q3_K" | "Q6_K":
            return ["blocks", "sub_scales", "scales"]
    blocks, *others = _names(scheme)
    return [*others, blocks]


def from_ggml(data: ArrayLike, scheme: Scheme | str, dtype: Any = dtypes.float32) -> QuantizedArray:
    """An array from the bytes of a tensor in a GGUF file.

    Args:
        data: uint8 (..., N, bytes of a row), as `gguf.GGUFReader` gives them.
        scheme: one of ggml's, or its name.
        dtype: dtype of the numbers when they are asked for without one.

    Raises:
        TypeMismatchError: the data are no bytes, or the scheme is none of ggml's.
        ValueMismatchError: rows are not made of whole groups.
    """
    found, raw = scheme_.scheme_of(scheme), trace.as_value(data)
    _check_ggml(found)
    if raw.dtype != dtypes.uint8 or raw.ndim < 1:
        raise errors.TypeMismatchError("from_ggml takes bytes", got=str(raw.type), expected="u8[..., bytes]")
    sizes = {"blocks": found.nbytes_of_group, "sub_scales": found.sub_scales}
    names = _in_files(found)
    width = sum(sizes.get(name, 2) for name in names)
    if raw.shape[-1] % width:
        raise errors.ValueMismatchError(
            f"from_ggml: rows are not made of whole groups of {found}",
            got=f"{raw.type}, rows of {raw.shape[-1]} bytes",
            expected=f"a multiple of {width} bytes",
        )
    groups = view.reshape(raw, (*raw.shape[:-1], raw.shape[-1] // width, width))
    planes: dict[str, Value] = {}
    start = 0
    for name in names:
        stop = start + sizes.get(name, 2)
        part = view.slice_in_dim(groups, start, stop, axis=groups.ndim - 1)
        planes[name] = part if name in _BYTES else e.bitcast_convert_type(part, dtypes.float16)
        start = stop
    return QuantizedArray(**planes, scheme=found, dtype=dtypes.canonical(dtype))


def _check_ggml(scheme: Scheme) -> None:
    if not scheme.is_ggml:
        raise errors.TypeMismatchError(
            "only ggml's schemes have a form in GGUF files", got=str(scheme), expected=", ".join(scheme_.GGML)
        )


def quantized_matmul(
    x: ArrayLike,
    w: QuantizedArray,
    *,
    transpose: bool = True,
    preferred_element_type: Any = None,  # Any: what names a dtype
    activations: Literal["exact", "int8"] = "exact",
) -> Value:
    """Product of activations and a matrix stored in few bits: `x @ w.dequantize(x.dtype).T`.

    It has derivatives by `x`, of every order and in both modes, and none by `w`.

    Args:
        x: floats (..., K), or (..., N) without `transpose`: float16, bfloat16, float32 or float64.
        w: quantized (N, K), with groups along K; or (..., N, K), whose leading dimensions broadcast with
            those of `x` before its last two.
        transpose: whether the rows of `w` are multiplied by `x`, as in a linear layer; otherwise the result
            is `x @ w.dequantize(x.dtype)`.
        preferred_element_type: dtype of the result; that of `x` when absent. Products of 16-bit floats are
            added in float32.
        activations: "exact" takes `x` as it is. "int8" rounds it first: each 32 neighbours of a row become
            whole numbers from -127 to 127 times a scale of theirs, the largest magnitude by 127. Products
            are then of bytes, which is several times faster where memory does not set the time. It is what
            ggml does; a number is off by at most half a scale. Derivatives take the rounding as the identity.

    Returns:
        Floats (..., N), or (..., K) without `transpose`.

    Raises:
        TypeMismatchError: the contracted sizes differ, `x` is not of floats, or `w` is not quantized.
        ValueMismatchError: `activations` is something else.
        MissingRuleError: (under differentiation) by the scales of `w`.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import lax, quantization
        >>> w = quantization.quantize(inp.ones((6, 64)), "Q8_0")
        >>> lax.quantized_matmul(inp.ones((2, 3, 64)), w).shape
        (2, 3, 6)
    """
    if not isinstance(w, QuantizedArray):
        raise errors.TypeMismatchError(
            "quantized_matmul multiplies by a quantized array",
            got=f"w of type {type(w).__name__}",
            fix="make one with quantization.quantize(w, scheme), or use infini.numpy.matmul",
        )
    value = trace.as_value(x)
    if value.ndim == 0 or value.dtype not in operation.FLOATS:
        raise errors.TypeMismatchError(
            "quantized_matmul: x has to be an array of floats",
            got=str(value.type),
            expected=f"float16, bfloat16, float32 or float64 (..., {w.shape[-1 if transpose else -2]})",
            fix="convert it with .astype(...)",
        )
    dtype = value.dtype if preferred_element_type is None else dtypes.canonical(preferred_element_type)
    if dtype not in operation.FLOATS:
        raise errors.TypeMismatchError("quantized_matmul: results are floats", got=dtype.name)
    if activations not in operation.ACTIVATIONS:
        raise errors.ValueMismatchError(
            "quantized_matmul: there is no such form of activations",
            got=repr(activations),
            expected=" or ".join(map(repr, operation.ACTIVATIONS)),
        )
    rows = view.expand_dims(value, (0,)) if value.ndim == 1 else value
    found = trace.bind1(
        operation.quantized_matmul_p,
        rows,
        *w.planes,
        scheme=str(w.scheme),
        transpose=bool(transpose),
        dtype=dtype,
        activations=activations,
    )
    return view.squeeze(found, (found.ndim - 2,)) if value.ndim == 1 else found
