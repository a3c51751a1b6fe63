"""The programs that compute attention found in a program: the primitives between reshapes and transposes.

Equal layers share them, so everything they depend on is a field of `Layout`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from infini.compiler.passes.attention_terms import Dims
from infini.core import dtypes, trace
from infini.core.ir import ArrayType, Program
from infini.core.value import Value
from infini.lax import elementwise as e, view
from infini.lax.composites import attention

Letters = tuple[str, ...]
_NAMES = "abcefghijklmnopqruwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Target:
    """A cotangent that is asked for: of queries, keys or values (0, 1, 2), in what order of letters, and its
    type.
    """

    operand: int
    letters: Letters
    type: ArrayType


@dataclass(frozen=True, slots=True)
class Layout:
    """Attention of arrays that letters describe.

    Args:
        operands: letters and types of queries, keys, values, the bias if there is one, and conditions.
        is_inverted: for each condition whether scores count where it is false.
        has_bias: whether operand 3 is a bias.
        sizes: of the letters.
        rows: letters of the scores but that of the keys.
        query: the letter that counts queries.
        key: the letter that counts keys.
        out: letters of the result.
        scale: factor of the products.
        band: which keys a query may look at.
        fill: score of the others.
        keeps_sums: whether the largest score and the sum of every row are results, too.
    """

    operands: tuple[tuple[Dims, ArrayType], ...]
    is_inverted: tuple[bool, ...]
    has_bias: bool
    sizes: tuple[tuple[str, int], ...]
    rows: Letters
    query: str
    key: str
    out: Letters
    scale: float
    band: attention.Band
    fill: float
    keeps_sums: bool


@functools.lru_cache(maxsize=256)
def forward(layout: Layout) -> Program:
    """From the operands to the result, and the sums if they are kept."""
    types = [type_ for _, type_ in layout.operands]

    def run(*values: Value) -> Sequence[Value]:
        operands, attrs = _prepared(layout, values)
        op = attention.attention_sums_p if layout.keeps_sums else attention.attention_p
        return trace.bind(op, *operands, **attrs)

    return trace.stage(run, types, name="attention").program


@functools.lru_cache(maxsize=256)
def backward(layout: Layout, cotangent: tuple[Dims, ArrayType], targets: tuple[Target, ...]) -> Program:
    """From the operands, the cotangent and what `forward` gives to the cotangents that are asked for."""
    program = forward(layout)
    types = [*(type_ for _, type_ in layout.operands), cotangent[1], *program.out_types]

    def run(*values: Value) -> Sequence[Value]:
        *given, ct, out, largest, total = values
        operands, attrs = _prepared(layout, given)
        plain, own = _plain(layout, ct, cotangent[0])
        plain = e.convert_element_type(_permuted(plain, own, layout.out), out.dtype)
        found = attention.gradient([*operands, out, largest, total], plain, **attrs)
        results = []
        for target in targets:
            x = _permuted(found[target.operand], _letters(layout.operands[target.operand][0]), target.letters)
            results.append(_reshaped(x, target.type.shape))
        return results

    return trace.stage(run, types, name="attention_gradient").program


def _prepared(layout: Layout, values: Sequence[Value]) -> tuple[list[Value], dict[str, object]]:
    """Operands and attributes of the primitives."""
    described = [dims for dims, _ in layout.operands]
    found = [_plain(layout, x, dims) for x, dims in zip(values[:3], described[:3], strict=True)]
    rest = [
        _ordered(layout, *_plain(layout, x, dims)) for x, dims in zip(values[3:], described[3:], strict=True)
    ]
    if layout.has_bias:
        x, own = rest.pop(0)
        dtype = found[0][0].dtype
        found.append((e.convert_element_type(x, dtypes.float32 if dtype.itemsize <= 2 else dtype), own))
    if rest:
        found.append(_all_of(layout, rest))
    fixed = {layout.query: "t", layout.key: "s", "d": "d", "v": "v"}
    names = iter(_NAMES)
    chars = fixed | {c: next(names) for c in layout.rows if c not in fixed}
    inputs, results = (
        ",".join("".join(chars[c] for c in own) for own in group)
        for group in ([own for _, own in found], [layout.out, layout.rows])
    )
    attrs: dict[str, object] = {
        "spec": f"{inputs}->{results}", "scale": layout.scale, "band": layout.band, "fill": layout.fill,
        "has_bias": layout.has_bias, "has_mask": bool(rest),
    }  # fmt: skip
    return [x for x, _ in found], attrs


def _all_of(layout: Layout, conditions: Sequence[tuple[Value, Letters]]) -> tuple[Value, Letters]:
    """The mask that conditions make together."""
    masks = [
        (trace.bind1(e.not_p, x) if is_inverted else x, own)
        for (x, own), is_inverted in zip(conditions, layout.is_inverted, strict=True)
    ]
    if len(masks) == 1:
        return masks[0]
    sizes = dict(layout.sizes)
    every = tuple(c for c in (*layout.rows, layout.key) if any(c in own for _, own in masks))
    spread = [_reshaped(x, tuple(sizes[c] if c in own else 1 for c in every)) for x, own in masks]
    return functools.reduce(lambda a, b: trace.bind1(e.and_p, a, b), spread), every


def _letters(dims: Dims) -> Letters:
    return tuple(c for dim in dims for c in dim)


def _plain(layout: Layout, x: Value, dims: Dims) -> tuple[Value, Letters]:
    """An array with one dimension per letter."""
    sizes, letters = dict(layout.sizes), _letters(dims)
    return _reshaped(x, tuple(sizes[c] for c in letters)), letters


def _ordered(layout: Layout, x: Value, own: Letters) -> tuple[Value, Letters]:
    """An array with its letters in the order of the scores."""
    wanted = tuple(c for c in (*layout.rows, layout.key) if c in own)
    return _permuted(x, own, wanted), wanted


def _reshaped(x: Value, shape: tuple[int, ...]) -> Value:
    return x if x.shape == shape else trace.bind1(view.reshape_p, x, shape=shape, ndim=x.ndim)


def _permuted(x: Value, own: Letters, wanted: Letters) -> Value:
    if own == wanted:
        return x
    order = tuple(own.index(c) - len(own) for c in wanted)
    return trace.bind1(view.transpose_p, x, permutation=order)


NO_FILL = -math.inf  # where no score is replaced
