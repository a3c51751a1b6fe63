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
ENOUGH_LESS: Final = 0.75  # of the work remains where places of the result become features


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
                result, letters = form.single_places(result)
                result = view.transpose(result, [letters.index(c) for c in conv.spec.out])
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
        block: letter that numbers neighbouring places of the result, if they are features.
        digit: the spatial dimension that numbers blocks of them.
        count: places of the result in that dimension.
    """

    conv: Convolution
    turned: tuple[bool, ...]
    block: str = ""
    digit: str = ""
    count: int = 0

    def single_places(self, result: Value) -> tuple[Value, str]:
        """The result with one place after another, and the letters of its dimensions."""
        letters = self.conv.spec.out
        if not self.block:
            return result, letters
        at = letters.index(self.digit)
        shape = (*result.shape[:at], result.shape[at] * result.shape[at + 1], *result.shape[at + 2 :])
        joined = view.reshape(result, shape)
        return view.slice_in_dim(joined, 0, self.count, axis=at), letters.replace(self.block, "")


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
    """The convolution as it is and with its result in another order, then with all arrays in the order that
    a product reads; each time at first in the way that suits few features.
    """
    conv = first.conv
    free = conv.of_kernel
    features_last = "".join(c for c in conv.spec.out if c not in free) + free
    orders: tuple[Callable[[], Convolution], ...] = (
        lambda: conv,
        lambda: _ordered(conv, conv.spec.lhs, conv.spec.rhs, features_last),
        lambda: _letters_last(conv),
    )
    for order in orders:
        form = dataclasses.replace(first, conv=order())
        blocks = _in_blocks(form)
        if blocks is not None:
            yield blocks
        narrow = _padded_first(form)
        if narrow is not None:
            yield narrow
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


def _in_blocks(form: _Form) -> _Form | None:
    """The same with neighbouring places of the result as features, where its features fill less than half a
    vector: the kernel then has a copy of itself for each of them, shifted, with zeros around.

    Place B q + b and tap k meet element i where hole * i = stride * (B q + b) + k - low. One of hole and
    stride is 1, so i = (stride * B / hole) * q + t - low // hole for k = hole * t - stride * b + low % hole.
    """
    conv, spec = form.conv, form.conv.spec
    features = conv.of_kernel
    most = NARROW_BYTES // conv.accumulator.itemsize // max(conv.size(features), 1)
    before = spec.out[: len(spec.out) - len(features)]
    if not features or most < 2 or not spec.out.endswith(features) or not before[-1:].isdigit():
        return None
    digit = before[-1]
    line = conv.lines[int(digit)]
    hole, stride = line.base_dilation, line.stride
    block = most // hole * hole
    if line.window_dilation > 1 or min(hole, stride) > 1 or block < 2 or line.count < 2 * block:
        return None
    taps = (stride * (block - 1) + line.window - 1 - line.low % hole) // hole + 1
    if taps * hole > ENOUGH_LESS * block * line.window:
        return None
    name = plain.fresh(spec, 1)
    turned = [i for i, c in enumerate(spec.rhs) if c.isdigit() and form.turned[int(c)]]
    w = view.rev(conv.w, turned) if turned else conv.w
    axis = spec.rhs.index(digit)
    copies = []
    for place in range(block):
        first = line.low % hole - stride * place
        last = first + (taps - 1) * hole
        ends = (max(-first, 0), max(last + 1 - line.window, 0))
        padded = plain.padded(w, [(*ends, 0) if d == axis else (0, 0, 0) for d in range(w.ndim)])
        start = first + ends[0]
        copy = view.slice_in_dim(padded, start, start + (taps - 1) * hole + 1, hole, axis)
        copies.append(view.expand_dims(copy, (0,)))
    rhs = "".join(c for c in spec.rhs if c not in features)
    w = view.concatenate(copies, 0)
    order = rhs + name + features
    w = view.transpose(w, [(name + spec.rhs).index(c) for c in order])
    count, step = -(-line.count // block), stride * block // hole
    low = line.low // hole
    high = (count - 1) * step + taps - line.size - low
    lines = list(conv.lines)
    lines[int(digit)] = Line(line.size, taps, step, low, high)
    spec = Spec(spec.lhs, order, before + name + features)
    wide = Convolution(conv.x, w, spec, tuple(lines), conv.dtype)
    return _Form(wide, (False,) * len(form.turned), name, digit, line.count)
