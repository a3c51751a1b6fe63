"""Resampling: along each axis a product with a matrix of weights, one column per pixel of the result.

Pixels are squares: the one with number i lies from i to i + 1, its centre at i + 0.5. A filter says what
weight a pixel has at some distance from the place that is sampled; when pixels get fewer, `antialias` widens
the filter so that all of them count.

Cubic filters: R. G. Keys, "Cubic convolution interpolation for digital image processing" (1981).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import infini.numpy as inp
from infini.core import dtypes, errors
from infini.core.value import Value
from infini.lax import view
from infini.lax.precision import Precision, PrecisionLike
from infini.numpy import _axes, manipulation, products
from infini.numpy._promotion import ArrayLike, as_value, convert, inexact_operands

_SMALLEST_SUM: Final = 1000.0 * 2.0**-23  # of weights that are made one; below it there is nothing to see


class ResizeMethod(enum.Enum):
    """How pixels are made, as `jax.image.ResizeMethod`.

    NEAREST takes the nearest pixel; LINEAR, CUBIC, LANCZOS3 and LANCZOS5 weight neighbours by these filters;
    CUBIC_PYTORCH is PyTorch's cubic filter, which repeats the edge, and CUBIC with `antialias`; AREA is the
    mean over the area of the new pixel.
    """

    NEAREST = 0
    LINEAR = 1
    LANCZOS3 = 2
    LANCZOS5 = 3
    CUBIC = 4
    CUBIC_PYTORCH = 5
    AREA = 6

    @staticmethod
    def from_string(s: str) -> ResizeMethod:
        """The method of a name, such as `"bilinear"`.

        Raises:
            ValueMismatchError: there is none.
        """
        for method, names in _NAMES.items():
            if s in names:
                return method
        raise errors.ValueMismatchError(
            "there is no such way to resize",
            got=repr(s),
            expected=", ".join(name for names in _NAMES.values() for name in names),
        )


_NAMES: Final = {
    ResizeMethod.NEAREST: ("nearest",),
    ResizeMethod.LINEAR: ("linear", "bilinear", "trilinear", "triangle"),
    ResizeMethod.LANCZOS3: ("lanczos3",),
    ResizeMethod.LANCZOS5: ("lanczos5",),
    ResizeMethod.CUBIC: ("cubic", "bicubic", "tricubic"),
    ResizeMethod.CUBIC_PYTORCH: ("cubic-pytorch", "bicubic-pytorch"),
    ResizeMethod.AREA: ("area",),
}


# --- functions -------------------------------------------------------------------------------


def resize(
    image: ArrayLike,
    shape: Sequence[int],
    method: str | ResizeMethod,
    antialias: bool = True,
    precision: PrecisionLike = Precision.HIGHEST,
) -> Value:
    """An image in another size, as `jax.image.resize`.

    Args:
        image: array of any number of dimensions.
        shape: shape of the result; dimensions of equal size, such as batch and channels, are left alone.
        method: a `ResizeMethod` or its name.
        antialias: widen the filter when pixels get fewer.
        precision: of the products.

    Returns:
        The image; integers become floats unless the method is NEAREST.

    Raises:
        ValueMismatchError: `shape` has another number of dimensions, or there is no such method.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import image
        >>> print(image.resize(inp.array([0.0, 4.0]), (4,), "linear"))
        [0. 1. 3. 4.]
    """
    kind, sizes = _method(method), _shape(image, shape)
    if kind is ResizeMethod.NEAREST:
        return _nearest(as_value("resize", image), sizes)
    (x,) = inexact_operands("resize", image)
    for axis, size in enumerate(sizes):
        if x.shape[axis] != size:
            scale = size / x.shape[axis] if size and x.shape[axis] else 1.0
            x = _resampled(x, axis, size, scale, 0.0, _filter_of(kind, antialias), antialias, precision)
    return x


def scale_and_translate(
    image: ArrayLike,
    shape: Sequence[int],
    spatial_dims: Sequence[int],
    scale: ArrayLike,
    translation: ArrayLike,
    method: str | ResizeMethod,
    antialias: bool = True,
    precision: PrecisionLike = Precision.HIGHEST,
) -> Value:
    """An image scaled and moved, as `jax.image.scale_and_translate`: what is at `y` comes to
    `y * scale + translation`; what comes from outside of the image is zero.

    Args:
        image: array of any number of dimensions.
        shape: shape of the result.
        spatial_dims: the axes that are resampled.
        scale: a number for each of these; may be traced and differentiated.
        translation: likewise, in pixels of the result.
        method: a `ResizeMethod` other than NEAREST, or its name.
        antialias: widen the filter when pixels get fewer.
        precision: of the products.

    Returns:
        The image, in floats.

    Raises:
        ValueMismatchError: `shape` has another number of dimensions, there is no such method, or it is
            NEAREST.

    Example:
        >>> import infini.numpy as inp
        >>> from infini import image
        >>> line, one = inp.array([1.0, 2.0, 3.0]), inp.ones(1)
        >>> print(image.scale_and_translate(line, (3,), (0,), one, one, "linear"))
        [0. 1. 2.]
    """
    kind, sizes = _method(method), _shape(image, shape)
    if kind is ResizeMethod.NEAREST:
        raise errors.ValueMismatchError(
            "scale_and_translate does not take the nearest pixel", fix='use "linear", or image.resize'
        )
    (x,) = inexact_operands("scale_and_translate", image)
    scales, moves = inexact_operands("scale_and_translate", scale, translation)
    for i, d in enumerate(spatial_dims):
        axis = _axes.one("scale_and_translate", d, x.ndim)
        filter_ = _filter_of(kind, antialias)
        x = _resampled(x, axis, sizes[axis], scales[i], moves[i], filter_, antialias, precision)
    return x


def _method(method: str | ResizeMethod) -> ResizeMethod:
    if isinstance(method, ResizeMethod):
        return method
    if not isinstance(method, str):
        raise errors.TypeMismatchError(
            "this is no way to resize", got=repr(method), expected="a ResizeMethod or its name"
        )
    return ResizeMethod.from_string(method)


def _shape(image: ArrayLike, shape: Sequence[int]) -> tuple[int, ...]:
    x = as_value("resize", image)
    sizes = _axes.shape("resize", shape)
    if len(sizes) != x.ndim:
        raise errors.ValueMismatchError(
            "the new shape needs one size for each dimension of the image",
            got=f"{x.type}, shape={sizes}",
            fix="name the sizes of batch and channels too; equal sizes are left alone",
        )
    return sizes


def _nearest(x: Value, shape: tuple[int, ...]) -> Value:
    for axis, size in enumerate(shape):
        if x.shape[axis] != size:
            centres = view.iota(dtypes.float32, size) + 0.5
            places = inp.floor(centres * float(x.shape[axis]) / float(size)).astype(dtypes.int32)
            x = inp.take(x, places, axis)
    return x


# --- weights ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Filter:
    """A filter.

    Args:
        weight: weight at a distance, in pixels; None for the mean over an area.
        radius: the distance from which on weights are zero.
        repeats_edge: whether what lies outside counts as the pixel at the edge, and not as nothing.
    """

    weight: Callable[[Value], Value] | None
    radius: int
    repeats_edge: bool = False


def _resampled(
    x: Value,
    axis: int,
    size: int,
    scale: Any,  # Any: a number, or an array of one
    move: Any,
    filter_: _Filter,
    antialias: bool,
    precision: PrecisionLike,
) -> Value:
    weights = convert(_weights(x.shape[axis], size, scale, move, filter_, antialias), x.dtype)
    found = products.tensordot(x, weights, ((axis,), (0,)), precision=precision)
    return manipulation.moveaxis(found, -1, axis)


def _weights(before: int, after: int, scale: Any, move: Any, filter_: _Filter, antialias: bool) -> Value:
    """Weights of the pixels of an axis (before, after)."""
    dtype = scale.dtype if isinstance(scale, Value) else dtypes.float32
    step = 1.0 / scale
    first = move * step
    if filter_.repeats_edge:
        first_pixel, num_pixels = -filter_.radius, before + 2 * filter_.radius
    else:
        first_pixel, num_pixels = 0, before
    pixels = (view.iota(dtype, num_pixels) + float(first_pixel))[:, None]
    centres = (view.iota(dtype, after) + 0.5) * step - first - 0.5
    if filter_.weight is None:
        left = view.iota(dtype, after) * step - first
        overlap = inp.minimum(left + step, pixels + 1.0) - inp.maximum(left, pixels)
        weights = inp.maximum(overlap, 0.0)
    else:
        width = inp.maximum(step, 1.0) if antialias else 1.0
        weights = filter_.weight(inp.abs(centres - pixels) / width)
    if filter_.repeats_edge and before:
        radius = filter_.radius
        inside = weights[radius : radius + before]
        inside = inside.at[0].add(weights[:radius].sum(0))
        weights = inside.at[-1].add(weights[radius + before :].sum(0))
    total = weights.sum(0)
    is_visible = inp.abs(total) > _SMALLEST_SUM
    weights = inp.where(is_visible, weights / inp.where(total != 0, total, 1.0), 0.0)
    if filter_.repeats_edge:
        return weights
    return inp.where((centres >= -0.5) & (centres <= before - 0.5), weights, 0.0)


def _filter_of(method: ResizeMethod, antialias: bool) -> _Filter:
    if method is ResizeMethod.CUBIC_PYTORCH and antialias:
        return _FILTERS[ResizeMethod.CUBIC]
    return _FILTERS[method]


def _triangle(x: Value) -> Value:
    return inp.maximum(1.0 - x, 0.0)


def _lanczos(radius: float) -> Callable[[Value], Value]:
    def weight(x: Value) -> Value:
        waves = radius * inp.sin(math.pi * x) * inp.sin(math.pi * x / radius)
        is_far = x > 1e-3
        inside = inp.where(is_far, waves / inp.where(is_far, math.pi**2 * x * x, 1.0), 1.0)
        return inp.where(x > radius, 0.0, inside)

    return weight


def _cubic(a: float) -> Callable[[Value], Value]:
    """Keys's filter: cubic on [0, 1] and [1, 2], smooth, with slope `a` at 1."""

    def weight(x: Value) -> Value:
        near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
        far = ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
        return inp.where(x >= 2.0, 0.0, inp.where(x >= 1.0, far, near))

    return weight


_FILTERS: Final = {
    ResizeMethod.LINEAR: _Filter(_triangle, 1),
    ResizeMethod.LANCZOS3: _Filter(_lanczos(3.0), 3),
    ResizeMethod.LANCZOS5: _Filter(_lanczos(5.0), 5),
    ResizeMethod.CUBIC: _Filter(_cubic(-0.5), 2),
    ResizeMethod.CUBIC_PYTORCH: _Filter(_cubic(-0.75), 2, repeats_edge=True),
    ResizeMethod.AREA: _Filter(None, 1),
}
