"""Samples of continuous and discrete distributions, by JAX's methods, so equal keys give equal numbers."""

from __future__ import annotations

import functools
import math
from typing import Any

import ml_dtypes
import numpy as np

from infini.core import dtypes, errors, trace
from infini.core.value import Value
from infini.lax import elementwise as e, view
from infini.lax.families import bind_scalars
from infini.numpy import _axes, elementwise, indexing, ordering, reductions
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value, convert
from infini.random import keys, streams
from infini.random.keys import KeyLike
from infini.transforms import staging


def normal(key: KeyLike, shape: Any = (), dtype: DTypeLike | None = None) -> Value:  # Any: sizes
    """Standard normal floats: `sqrt(2) * erf_inv(u)` of uniform `u` in (-1, 1).

    Args:
        key: a key.
        shape: shape of the result.
        dtype: a float dtype, float32 when absent.
    """
    target = streams.float_dtype("normal", dtype)
    return _normal(keys.raw(key, "normal"), _axes.shape("normal", shape), target)


@functools.partial(staging.jit, static_argnums=(1, 2))
def _normal(raw_key: Value, shape: tuple[int, ...], dtype: np.dtype) -> Value:
    above_minus_one = np.nextafter(np.array(-1.0, dtype), np.array(0.0, dtype))
    uniform = streams.uniform_from(raw_key, shape, dtype, above_minus_one, np.ones((), dtype))
    return _times_sqrt2(e.erf_inv(uniform))


def _times_sqrt2(x: Value) -> Value:
    return bind_scalars(e.mul_p, convert(math.sqrt(2.0), x.dtype), x)


def truncated_normal(
    key: KeyLike, lower: ArrayLike, upper: ArrayLike, shape: Any = None, dtype: DTypeLike | None = None
) -> Value:  # Any: sizes
    """Standard normal floats in (lower, upper).

    Args:
        key: a key.
        lower: lower end; broadcasts to `shape`.
        upper: upper end; broadcasts to `shape`.
        shape: shape of the result, that of the bounds when absent.
        dtype: a float dtype, float32 when absent.
    """
    target = streams.float_dtype("truncated_normal", dtype)
    ends = [
        convert(x if type(x) in (int, float) else as_value("truncated_normal", x), target)
        for x in (lower, upper)
    ]
    sizes = (
        np.broadcast_shapes(*(x.shape for x in ends))
        if shape is None
        else _axes.shape("truncated_normal", shape)
    )
    raw_key = keys.raw(key, "truncated_normal")
    for end in ends:
        streams.check_broadcasts("truncated_normal", end.shape, tuple(sizes))
    return _truncated(raw_key, tuple(sizes), target, *ends)


@functools.partial(staging.jit, static_argnums=(1, 2))
def _truncated(raw_key: Value, shape: tuple[int, ...], dtype: np.dtype, lower: Value, upper: Value) -> Value:
    low, high = (e.erf(trace.bind1(e.div_p, x, convert(math.sqrt(2.0), dtype))) for x in (lower, upper))
    sample = _times_sqrt2(e.erf_inv(streams.scaled(raw_key, shape, dtype, low, high)))
    # Rounding must not leave the open interval.
    return elementwise.clip(sample, next_after(lower, is_up=True), next_after(upper, is_up=False))


def next_after(x: Value, *, is_up: bool) -> Value:
    """The next float above or below each element, by its bits; NaN and the infinity of that side stay."""
    bind, signed = trace.bind1, np.dtype(f"int{x.dtype.itemsize * 8}")
    pattern = bind(e.bitcast_convert_type_p, x, new_dtype=signed)
    away = bind_scalars(e.gt_p if is_up else e.lt_p, x, 0)
    moved = bind(e.select_n_p, away, bind_scalars(e.sub_p, pattern, 1), bind_scalars(e.add_p, pattern, 1))
    tiny = (
        1
        if is_up
        else int(np.array(-float(ml_dtypes.finfo(x.dtype).smallest_subnormal), x.dtype).view(signed))
    )
    moved = bind(e.select_n_p, bind_scalars(e.eq_p, x, 0), moved, convert(tiny, signed))
    end = bind_scalars(e.eq_p, x, math.inf if is_up else -math.inf)
    stays = bind(e.or_p, end, bind(e.ne_p, x, x))
    return bind(e.select_n_p, stays, bind(e.bitcast_convert_type_p, moved, new_dtype=x.dtype), x)


def exponential(key: KeyLike, shape: Any = (), dtype: DTypeLike | None = None) -> Value:  # Any: sizes
    """Exponential floats of rate 1."""
    uniform = _unit("exponential", key, shape, dtype)
    return e.neg(e.log1p(e.neg(uniform)))


def laplace(key: KeyLike, shape: Any = (), dtype: DTypeLike | None = None) -> Value:  # Any: sizes
    """Laplace floats of location 0 and scale 1."""
    target = streams.float_dtype("laplace", dtype)
    epsilon = float(ml_dtypes.finfo(target).epsneg)
    uniform = streams.uniform(key, shape, target, -1.0 + epsilon, 1.0)
    return e.mul(e.sign(uniform), e.log1p(e.neg(e.abs(uniform))))


def logistic(key: KeyLike, shape: Any = (), dtype: DTypeLike | None = None) -> Value:  # Any: sizes
    """Logistic floats of location 0 and scale 1."""
    target = streams.float_dtype("logistic", dtype)
    uniform = streams.uniform(key, shape, target, float(ml_dtypes.finfo(target).tiny), 1.0)
    return e.sub(e.log(uniform), e.log1p(e.neg(uniform)))


def _unit(name: str, key: KeyLike, shape: Any, dtype: DTypeLike | None) -> Value:  # Any: sizes
    target = streams.float_dtype(name, dtype)
    return streams.uniform_from(keys.raw(key, name), _axes.shape(name, shape), target, 0.0, 1.0)


def gumbel(
    key: KeyLike, shape: Any = (), dtype: DTypeLike | None = None, mode: str | None = None
) -> Value:  # Any: sizes
    """Gumbel floats.

    Args:
        key: a key.
        shape: shape of the result.
        dtype: a float dtype, float32 when absent.
        mode: `low` (the default) draws one number per sample; `high` draws two, for events rarer than 1e-7
            in float32.

    Raises:
        ValueMismatchError: the mode is another one.
    """
    target, sizes = streams.float_dtype("gumbel", dtype), _axes.shape("gumbel", shape)
    _check_mode("gumbel", mode)
    return _gumbel(keys.raw(key, "gumbel"), sizes, target, mode == "high")


@functools.partial(staging.jit, static_argnums=(1, 2, 3))
def _gumbel(raw_key: Value, shape: tuple[int, ...], dtype: np.dtype, is_high: bool) -> Value:
    finfo = ml_dtypes.finfo(dtype)
    if not is_high:
        uniform = streams.uniform_from(raw_key, shape, dtype, float(finfo.tiny), 1.0)
        return e.neg(e.log(e.neg(e.log(uniform))))
    pair = streams.uniform_from(raw_key, (2, *shape), dtype, 0.0, 1.0)
    high, low = (view.reshape(view.slice_in_dim(pair, i, i + 1), shape) for i in range(2))
    fine = bind_scalars(e.add_p, high, bind_scalars(e.mul_p, low, 2.0 ** -int(finfo.nmant)))
    fine = bind_scalars(e.add_p, fine, float(finfo.tiny))
    chosen = trace.bind1(e.select_n_p, bind_scalars(e.ge_p, high, 0.5), fine, high)
    return e.neg(e.log(e.neg(e.log1p(e.neg(chosen)))))


def _check_mode(name: str, mode: str | None) -> None:
    if mode not in (None, "low", "high"):
        raise errors.ValueMismatchError(
            f"random.{name}: unknown mode", got=repr(mode), expected="'low' or 'high'"
        )


def bernoulli(key: KeyLike, p: ArrayLike = 0.5, shape: Any = None, mode: str = "low") -> Value:  # Any: sizes
    """Booleans that are true with probability `p`.

    Args:
        key: a key.
        p: probabilities, floats.
        shape: shape of the result, that of `p` when absent.
        mode: `low` draws one number per sample; `high` draws two, for probabilities below 1e-7 in float32.

    Raises:
        TypeMismatchError: `p` is not a float.
    """
    probability = as_value("bernoulli", p)
    if probability.dtype not in dtypes.FLOATS:
        raise errors.TypeMismatchError(
            "random.bernoulli: the probability has to be a float", got=str(probability.type)
        )
    _check_mode("bernoulli", mode)
    sizes = probability.shape if shape is None else _axes.shape("bernoulli", shape)
    chance = streams.bound("bernoulli", probability, sizes, probability.dtype)
    raw_key = keys.raw(key, "bernoulli")
    if mode != "high":
        return trace.bind1(e.lt_p, streams.uniform_from(raw_key, sizes, chance.dtype, 0.0, 1.0), chance)
    pair = streams.uniform_from(raw_key, (2, *sizes), chance.dtype, 0.0, 1.0)
    first, second = (view.reshape(view.slice_in_dim(pair, i, i + 1), sizes) for i in range(2))
    fine = bind_scalars(e.mul_p, second, 2.0 ** -int(ml_dtypes.finfo(chance.dtype).nmant))
    return trace.bind1(e.lt_p, fine, trace.bind1(e.sub_p, chance, first))


def rademacher(key: KeyLike, shape: Any = (), dtype: DTypeLike | None = None) -> Value:  # Any: sizes
    """-1 or 1 with equal probability, int32 when no dtype is given."""
    chosen = bernoulli(key, 0.5, _axes.shape("rademacher", shape))
    target = dtypes.int32 if dtype is None else dtypes.canonical(dtype)
    return trace.bind1(e.select_n_p, chosen, convert(-1, target), convert(1, target))


def categorical(
    key: KeyLike,
    logits: ArrayLike,
    axis: int = -1,
    shape: Any = None,  # Any: sizes
    replace: bool = True,
    mode: str | None = None,
) -> Value:
    """Indices drawn with probabilities `softmax(logits, axis)`, int32, by the Gumbel-max trick.

    Args:
        key: a key.
        logits: log probabilities up to a constant.
        axis: axis of the categories.
        shape: shape of the result; it ends with the shape of `logits` without the axis, which is the default.
        replace: whether a category can be drawn twice; without it, the Gumbel-top-k trick.
        mode: as of `gumbel`.

    Raises:
        ValueMismatchError: `shape` does not fit, or more samples than categories are asked for without
            replacement.
    """
    scores = as_value("categorical", logits)
    place = _axes.one("categorical", axis, scores.ndim)
    batch = tuple(n for d, n in enumerate(scores.shape) if d != place)
    sizes = batch if shape is None else _axes.shape("categorical", shape)
    streams.check_broadcasts("categorical", batch, sizes)
    prefix, rest = sizes[: len(sizes) - len(batch)], sizes[len(sizes) - len(batch) :]
    if replace:
        noise_shape = (*prefix, *rest[:place], scores.shape[place], *rest[place:])
        noise = gumbel(key, noise_shape, scores.dtype, mode)
        return reductions.argmax(trace.bind1(e.add_p, noise, scores), axis=place - scores.ndim)
    count = math.prod(prefix)
    if count > scores.shape[place]:
        raise errors.ValueMismatchError(
            "random.categorical: more samples than categories",
            got=f"{count} of {scores.shape[place]}",
            fix="use replace=True",
        )
    noisy = trace.bind1(e.add_p, scores, gumbel(key, scores.shape, scores.dtype, mode))
    order = ordering.argsort(noisy, place, descending=True)
    chosen = view.slice_in_dim(order, 0, count, axis=place)
    front = view.transpose(chosen, [place, *(d for d in range(chosen.ndim) if d != place)])
    return view.reshape(front, sizes)


def permutation(key: KeyLike, x: ArrayLike, axis: int = 0, independent: bool = False) -> Value:
    """The elements of an array along an axis (or of `arange(x)`) in random order.

    Args:
        key: a key.
        x: array, or an integer.
        axis: axis to permute.
        independent: draw another order for each line along the axis; otherwise whole slices move together.
    """
    raw_key = keys.raw(key, "permutation")
    array = as_value("permutation", x)
    if array.ndim == 0:
        return _shuffle(raw_key, view.iota(dtypes.int32, int(_whole_number(x))), 0)
    place = _axes.one("permutation", axis, array.ndim)
    if independent or array.ndim == 1:
        return _shuffle(raw_key, array, place)
    order = _shuffle(raw_key, view.iota(dtypes.int32, array.shape[place]), 0)
    return indexing.take(array, order, place, mode="clip")


def _whole_number(x: ArrayLike) -> int:
    return int(x)


@functools.partial(staging.jit, static_argnums=(2,))
def _shuffle(raw_key: Value, x: Value, axis: int) -> Value:
    """Sort by random 32-bit keys, often enough that equal keys in every round are improbable (below
    size**-3)."""
    rounds = math.ceil(3 * math.log(max(1, x.size)) / math.log(np.iinfo(np.uint32).max))
    for _ in range(rounds):
        both = keys.split_words(raw_key, (2,))
        raw_key, subkey = (view.reshape(view.slice_in_dim(both, i, i + 1), (2,)) for i in range(2))
        order = ordering.argsort(streams.words(subkey, 32, x.shape), axis)
        x = indexing.take_along_axis(x, order, axis, mode="clip")
    return x


def choice(
    key: KeyLike,
    a: ArrayLike,
    shape: Any = (),  # Any: sizes
    replace: bool = True,
    p: ArrayLike | None = None,
    axis: int = 0,
    mode: str | None = None,
) -> Value:
    """Elements of an array along an axis (or of `arange(a)`), drawn at random.

    Args:
        key: a key.
        a: array, or an integer.
        shape: shape of the draw, which stands in place of the axis.
        replace: whether an element can be drawn twice.
        p: probability of each element, equal ones when absent.
        axis: axis to draw along.
        mode: as of `gumbel`, for draws without replacement.

    Raises:
        ValueMismatchError: more elements than there are, without replacement; or `p` does not fit.
    """
    array, sizes = as_value("choice", a), _axes.shape("choice", shape)
    place = 0 if array.ndim == 0 else _axes.one("choice", axis, array.ndim)
    population = int(_whole_number(a)) if array.ndim == 0 else array.shape[place]
    draws = math.prod(sizes)
    if draws and (population < 1 or (not replace and draws > population)):
        raise errors.ValueMismatchError(
            "random.choice: there are not enough elements",
            got=f"{draws} draws of {population}",
            fix="use replace=True",
        )
    picked = _pick(key, sizes, draws, population, replace, p, mode)
    if array.ndim == 0:
        return view.reshape(picked, sizes)
    found = indexing.take(array, view.reshape(picked, (draws,)), place, mode="clip")
    return view.reshape(found, (*array.shape[:place], *sizes, *array.shape[place + 1 :]))


def _pick(
    key: KeyLike,
    sizes: tuple[int, ...],
    draws: int,
    population: int,
    replace: bool,
    p: ArrayLike | None,
    mode: str | None,
) -> Value:
    if p is None:
        if replace:
            return streams.randint(key, sizes, 0, population)
        return view.slice_in_dim(permutation(key, population), 0, draws)
    weights = as_value("choice", p)
    if weights.shape != (population,) or weights.dtype not in dtypes.FLOATS:
        raise errors.ValueMismatchError(
            "random.choice: p is one float per element",
            got=str(weights.type),
            expected=f"shape ({population},)",
        )
    if replace:
        summed = reductions.cumsum(weights)
        total = view.reshape(view.slice_in_dim(summed, population - 1, population), ())
        uniform = streams.uniform(key, sizes, weights.dtype)
        at = trace.bind1(e.mul_p, total, bind_scalars(e.sub_p, convert(1, weights.dtype), uniform))
        return ordering.searchsorted(summed, at)
    noisy = trace.bind1(e.add_p, gumbel(key, (population,), weights.dtype, mode), e.log(weights))
    return view.slice_in_dim(ordering.argsort(noisy, descending=True), 0, draws)
