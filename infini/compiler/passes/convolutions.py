"""Convolutions that a backend computes from the image itself, without the matrix of its patches.

Such a one becomes `windowed_dot`: a convolution without loop dimensions, whose kernel may be read reversed,
as the derivative by the image does. The operation lives between passes only: it is not registered, and no
file has it. Convolutions that the backend does not take are left to their decomposition.
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


def _type_windowed_dot(
    x: ArrayType, w: ArrayType, *, reversed: tuple[bool, ...], **attrs: Any  # noqa: A002
) -> tuple[ArrayType]:
    return (ArrayType(spec_.analyse(x, w, **attrs).shape, attrs["dtype"]),)


def _reference_windowed_dot(
    x: np.ndarray, w: np.ndarray, *, reversed: tuple[bool, ...], **attrs: Any  # noqa: A002
) -> Any:  # Any: as the reference of conv
    letters = spec_.parse(attrs["spec"]).rhs
    axes = tuple(letters.index(str(i)) - len(letters) for i, turned in enumerate(reversed) if turned)
    return operation.conv_p.rule(primitive.REFERENCE)(x, np.flip(w, axes), **attrs)


def _cost(types: Any, attrs: Attrs) -> float:  # Any: as the cost of conv
    own = Attrs({name: value for name, value in attrs.items() if name != "reversed"})
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
        for form in _forms(conv):
            own = _attrs(form, tuple(turned))
            if takes(form.x.type, form.w.type, own):
                found.append(True)
                result = trace.bind1(windowed_dot_p, form.x, form.w, **own)
                result = view.transpose(result, [form.spec.out.index(c) for c in conv.spec.out])
                return (view.reshape(result, problem.shape),)
        return (x,)

    body = trace.stage(staged, (x.type, w.type), name="windowed_dot").program
    return (body, (x, w)) if found else (None, ())


def _attrs(conv: Convolution, turned: tuple[bool, ...]) -> Attrs:
    lines = conv.lines
    return Attrs(
        {
            "spec": str(conv.spec),
            "window_strides": tuple(line.stride for line in lines),
            "padding": tuple((line.low, line.high) for line in lines),
            "lhs_dilation": tuple(line.base_dilation for line in lines),
            "rhs_dilation": tuple(line.window_dilation for line in lines),
            "reversed": turned,
            "dtype": conv.dtype,
        }
    )


def _forms(conv: Convolution) -> Iterator[Convolution]:
    """The convolution as it is and with its result in another order, then with all arrays in the order that
    a product reads. The image is padded first where the features side by side are fewer than a vector, so
    that they join with places of the window.
    """
    free = conv.of_kernel
    features_last = "".join(c for c in conv.spec.out if c not in free) + free
    orders: tuple[Callable[[], Convolution], ...] = (
        lambda: conv,
        lambda: _ordered(conv, conv.spec.lhs, conv.spec.rhs, features_last),
        lambda: _letters_last(conv),
    )
    for order in orders:
        form = order()
        last = next((c for c in reversed(form.spec.lhs) if form.sizes[c] > 1), "")
        is_narrow = last.isalpha() and form.sizes[last] * form.x.dtype.itemsize < NARROW_BYTES
        if is_narrow and all(line.base_dilation == 1 for line in form.lines):
            yield _padded_first(form)
        yield form


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


def _padded_first(conv: Convolution) -> Convolution:
    lines = tuple(
        Line(line.reach, line.window, line.stride, window_dilation=line.window_dilation) for line in conv.lines
    )
    return dataclasses.replace(conv, x=conv.padded(), lines=lines)
