"""Convolutions that a backend computes from the image itself, without the matrix of its patches.

Such a one becomes `windowed_dot`: a convolution without loop dimensions, whose kernel may be read reversed,
as the derivative by the image does. The operation lives between passes only and is not registered, so the
text of a program with it is for people: it cannot be parsed. Convolutions that the backend does not take are
left to their decomposition.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

import numpy as np

from infini.compiler.passes import rewrite
from infini.core import ir, primitive, trace
from infini.core.ir import ArrayType, Attrs, Equation, Program, Var
from infini.core.primitive import Primitive
from infini.core.value import Value
from infini.lax import view
from infini.lax.convolution import operation, plain, spec as spec_
from infini.lax.convolution.plain import Convolution
from infini.lax.convolution.spec import Spec
from infini.lax.windows.padding import Line

Takes: TypeAlias = Callable[[ArrayType, ArrayType, Attrs], bool]  # whether a backend lowers a `windowed_dot`

NARROW_BYTES: Final = 64  # of features side by side that are fewer than a vector
FEW_CHANNELS: Final = 4  # of an image
FEW_VECTORS: Final = 8  # of results
ENOUGH_PLACES: Final = 32  # of a row, from which on another dimension is no better


def _type_windowed_dot(
    x: ArrayType,
    w: ArrayType,
    *,
    flipped: tuple[bool, ...],
    **attrs: Any,
) -> tuple[ArrayType]:
    return (ArrayType(spec_.analyse(x, w, **attrs).shape, attrs["dtype"]),)


def _reference_windowed_dot(
    x: np.ndarray,
    w: np.ndarray,
    *,
    flipped: tuple[bool, ...],
    **attrs: Any,
) -> Any:  # Any: as the reference of conv
    letters = spec_.parse(attrs["spec"]).rhs
    axes = tuple(letters.index(str(i)) - len(letters) for i, turned in enumerate(flipped) if turned)
    return operation.conv_p.rule(primitive.REFERENCE)(x, np.flip(w, axes), **attrs)


def _cost(types: Any, attrs: Attrs) -> float:  # Any: as the cost of conv
    own = Attrs({name: value for name, value in attrs.items() if name != "flipped"})
    return float(operation.conv_p.rule(primitive.COST)(types, own))


windowed_dot_p: Final = Primitive(
    "windowed_dot",
    None,
    {
        primitive.TYPE: _type_windowed_dot,
        primitive.REFERENCE: _reference_windowed_dot,
        primitive.COST: _cost,
    },
)


def from_images(program: Program, takes: Takes) -> Program:
    """The program, and those inside it, with every convolution that `takes` accepts as a `windowed_dot`."""
    builder = ir.Builder()
    env: dict[Var, Var] = {param: param for param in program.params}
    maker: dict[Var, Equation] = {}
    for var, constant in program.consts:
        env[var] = builder.constant(constant.array)
    for equation in program.equations:
        inputs = tuple(env[v] for v in equation.inputs)
        attrs = rewrite.map_programs(equation.attrs, lambda inner: from_images(inner, takes))
        moved = dataclasses.replace(equation, inputs=inputs, attrs=attrs)
        body, operands = _body(moved, maker, takes) if equation.op is operation.conv_p else (None, ())
        if body is None:
            builder.append(moved)
            env.update((v, v) for v in equation.outputs)
        else:
            start = len(builder.equations)
            env[equation.output] = ir.inline(builder, body, operands)[0]
            for i in range(start, len(builder.equations)):
                builder.equations[i] = dataclasses.replace(
                    builder.equations[i], where=equation.where, via="convolutions/windowed_dot"
                )
        maker.update((v, moved) for v in moved.outputs)
    return builder.build(program.params, [env[v] for v in program.results], name=program.name)


def _body(
    equation: Equation, maker: dict[Var, Equation], takes: Takes
) -> tuple[Program | None, tuple[Var, ...]]:
    """The program that stands for a convolution, and its operands; None where the backend takes none."""
    x, w = equation.inputs
    attrs = dict(equation.attrs)
    letters = spec_.parse(attrs["spec"]).rhs
    turned = [False] * len(attrs["window_strides"])
    made = maker.get(w)
    if made is not None and made.op.name == "rev":
        positions = [axis % w.type.ndim - (w.type.ndim - len(letters)) for axis in made.attrs["axes"]]
        if all(p >= 0 and letters[p].isdigit() for p in positions):
            turned = [letters.index(str(i)) in positions for i in range(len(turned))]
            (w,) = made.inputs
    problem = spec_.analyse(x.type, w.type, **attrs)
    if 0 in (*problem.shape, *x.type.shape, *w.type.shape):
        return None, ()
    found: list[bool] = []

    def staged(x: Value, w: Value) -> tuple[Value]:
        conv = plain.without_loops(x, w, problem, attrs["dtype"])
        for form in _forms(_Form(conv, tuple(turned))):
            own = _attrs(form)
            if takes(form.conv.x.type, form.conv.w.type, own):
                found.append(True)
                result = trace.bind1(windowed_dot_p, form.conv.x, form.conv.w, **own)
                result = view.transpose(result, [form.conv.spec.out.index(c) for c in conv.spec.out])
                return (view.reshape(result, problem.shape),)
        return (x,)

    body = trace.stage(staged, (x.type, w.type), name="windowed_dot").program
    return (body, (x, w)) if found else (None, ())


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Form:
    """A way to compute a convolution.

    Args:
        conv: the convolution.
        turned: spatial dimensions in which the kernel is reversed.
    """

    conv: Convolution
    turned: tuple[bool, ...]


def _attrs(form: _Form) -> Attrs:
    conv, lines = form.conv, form.conv.lines
    return Attrs(
        {
            "spec": str(conv.spec),
            "window_strides": tuple(line.stride for line in lines),
            "padding": tuple((line.low, line.high) for line in lines),
            "lhs_dilation": tuple(line.base_dilation for line in lines),
            "rhs_dilation": tuple(line.window_dilation for line in lines),
            "flipped": form.turned,
            "dtype": conv.dtype,
        }
    )


def _forms(first: _Form) -> Iterator[_Form]:
    """The convolution with groups side by side where they are narrow, with places side by side where features
    are few, as it is, with its result in another
    order, and with all arrays in the order that a product reads; each of these at first in the way that suits
    few features of the image.
    """
    conv = first.conv
    free = conv.of_kernel
    features_last = "".join(c for c in conv.spec.out if c not in free) + free
    orders: tuple[Callable[[], Convolution], ...] = (
        lambda: conv,
        lambda: _ordered(conv, conv.spec.lhs, conv.spec.rhs, features_last),
        lambda: _letters_last(conv),
    )
    if _is_narrow(conv):
        # One result of a group needs no order of the kernel.
        ordered = conv if conv.size(free) == 1 else _letters_last(conv)
        yield dataclasses.replace(first, conv=ordered)
    if _has_few_features(conv):
        yield dataclasses.replace(first, conv=_places_last(conv))
    for order in orders:
        form = dataclasses.replace(first, conv=order())
        narrow = _padded_first(form)
        if narrow is not None:
            yield narrow
        yield form


def _is_narrow(conv: Convolution) -> bool:
    """Whether the image is perhaps read better where it lies than copied: features are side by side in it and
    not many, in every group or all together.
    """
    nbytes = conv.size(conv.of_kernel) * conv.accumulator.itemsize
    if conv.spec.lhs[-1].isdigit():
        return False
    if conv.size(conv.spec.groups) > 1:
        return nbytes <= NARROW_BYTES
    is_few = nbytes <= FEW_VECTORS * NARROW_BYTES or conv.size(conv.spec.contracted) <= FEW_CHANNELS
    return is_few and 2 * nbytes > NARROW_BYTES and conv.count >= conv.window


def _has_few_features(conv: Convolution) -> bool:
    """Whether the features of the result, of each group, fill at most half a vector, and places do better."""
    few = conv.size(conv.of_kernel)
    is_result_larger = conv.spec.rank > 0 and conv.count >= conv.window
    return is_result_larger and 2 * few * conv.accumulator.itemsize <= NARROW_BYTES


def _places_last(conv: Convolution) -> Convolution:
    """The same with a spatial dimension of image and result last, which has most places."""
    spec, lines = conv.spec, conv.lines
    last = max(spec.digits, key=lambda c: (min(lines[int(c)].count, ENOUGH_PLACES), spec.lhs.index(c)))
    digits = "".join(c for c in spec.lhs if c.isdigit() and c != last) + last
    lhs = conv.of_image + spec.groups + spec.contracted + digits
    out = conv.of_image + spec.groups + conv.of_kernel + digits
    return _ordered(conv, lhs, spec.rhs, out)


def _ordered(conv: Convolution, lhs: str, rhs: str, out: str) -> Convolution:
    """The same with the dimensions of all arrays in other orders."""
    return dataclasses.replace(
        conv,
        x=view.transpose(conv.x, [conv.spec.lhs.index(c) for c in lhs]),
        w=view.transpose(conv.w, [conv.spec.rhs.index(c) for c in rhs]),
        spec=Spec(lhs, rhs, out),
    )


def _letters_last(conv: Convolution) -> Convolution:
    """The same with the contracted letters of the image last, or its free ones where the windows are large
    and the results few, as in the derivative by the kernel.
    """
    spec, digits, free = conv.spec, conv.spec.digits, conv.of_image
    groups = spec.groups + conv.of_kernel
    if conv.count >= conv.window:
        kernel = digits + spec.contracted + groups
        return _ordered(conv, free + digits + spec.groups + spec.contracted, kernel, free + digits + groups)
    kernel = spec.contracted + digits + groups
    return _ordered(conv, spec.contracted + digits + spec.groups + free, kernel, digits + free + groups)


def _padded_first(form: _Form) -> _Form | None:
    """The same with the image padded before, where features of the image side by side are fewer than a
    vector: then they join with places of the window.
    """
    conv = form.conv
    last = next((c for c in reversed(conv.spec.lhs) if conv.sizes[c] > 1), "")
    is_narrow = last.isalpha() and conv.sizes[last] * conv.x.dtype.itemsize < NARROW_BYTES
    if not is_narrow or any(line.base_dilation > 1 for line in conv.lines):
        return None
    lines = [Line(n.reach, n.window, n.stride, window_dilation=n.window_dilation) for n in conv.lines]
    return dataclasses.replace(form, conv=dataclasses.replace(conv, x=conv.padded(), lines=tuple(lines)))
