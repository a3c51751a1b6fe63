"""Samples of discrete distributions, permutations and choices, by JAX's methods, so equal keys give equal
numbers."""

from __future__ import annotations

import functools
import math
from typing import Any

import ml_dtypes
import numpy as np

import infini.numpy as inp
from infini.core import dtypes, errors, trace
from infini.core.value import Value
from infini.lax import elementwise as e, view
from infini.lax.families import bind_scalars
from infini.numpy import _axes
from infini.numpy._promotion import ArrayLike, DTypeLike, as_value, convert, to_inexact
from infini.random import keys, streams
from infini.random.continuous import check_mode, gumbel
from infini.random.keys import KeyLike
from infini.random.streams import Placement
from infini.transforms import staging


def bernoulli(
    key: KeyLike,
    p: ArrayLike = 0.5,
    shape: Any = None,
    mode: str = "low",
    *,
    out_sharding: Placement = None,
) -> Value:  # Any: sizes
    """Booleans that are true with probability `p`.

    Args:
        key: a key.
        p: probabilities, floats.
        shape: shape of the result, that of `p` when absent.
        mode: `low` draws one number per sample; `high` draws two, for probabilities below 1e-7 in float32.
        out_sharding: placement of the result.

    Raises:
        TypeMismatchError: `p` is not a float.
    """
    probability = as_value("bernoulli", p)
    if probability.dtype not in dtypes.FLOATS:
        raise errors.TypeMismatchError(
            "random.bernoulli: the probability has to be a float", got=str(probability.type)
        )
    check_mode("bernoulli", mode, ("low", "high"))
    sizes = probability.shape if shape is None else _axes.shape("bernoulli", shape)
    chance = streams.bound("bernoulli", probability, sizes, probability.dtype)
    drawn = _bernoulli(keys.raw(key, "bernoulli"), chance, sizes, mode == "high")
    return streams.placed(drawn, out_sharding)


@functools.partial(staging.jit, static_argnums=(2, 3))
def _bernoulli(raw_key: Value, chance: Value, shape: tuple[int, ...], is_high: bool) -> Value:
    if not is_high:
        return trace.bind1(e.lt_p, streams.uniform_from(raw_key, shape, chance.dtype, 0.0, 1.0), chance)
    pair = streams.uniform_from(raw_key, (2, *shape), chance.dtype, 0.0, 1.0)
    first, second = (view.reshape(view.slice_in_dim(pair, i, i + 1), shape) for i in range(2))
    fine = bind_scalars(e.mul_p, second, 2.0 ** -int(ml_dtypes.finfo(chance.dtype).nmant))
    return trace.bind1(e.lt_p, fine, trace.bind1(e.sub_p, chance, first))


def rademacher(
    key: KeyLike, shape: Any = (), dtype: DTypeLike | None = None, *, out_sharding: Placement = None
) -> Value:  # Any: sizes
    """-1 or 1 with equal probability.

    Args:
        key: a key.
        shape: shape of the result.
        dtype: dtype of the result, int32 when absent.
        out_sharding: placement of the result.
    """
    chosen = bernoulli(key, 0.5, _axes.shape("rademacher", shape), out_sharding=out_sharding)
    target = dtypes.int32 if dtype is None else dtypes.canonical(dtype)
    return trace.bind1(e.select_n_p, chosen, convert(-1, target), convert(1, target))


def categorical(
    key: KeyLike,
    logits: ArrayLike,
    axis: int = -1,
    shape: Any = None,  # Any: sizes
    replace: bool = True,
    mode: str | None = None,
    *,
    out_sharding: Placement = None,
) -> Value:
    """Indices drawn with probabilities `softmax(logits, axis)`, int32, by the Gumbel-max trick.

    Args:
        key: a key.
        logits: log probabilities up to a constant.
        axis: axis of the categories.
        shape: shape of the result; it ends with the shape of `logits` without the axis, which is the default.
        replace: whether a category can be drawn twice; without it, the Gumbel-top-k trick.
        mode: as of `gumbel`.
        out_sharding: placement of the result.

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
        largest = inp.argmax(trace.bind1(e.add_p, noise, scores), axis=place - scores.ndim)
        return streams.placed(largest, out_sharding)
    count = math.prod(prefix)
    if count > scores.shape[place]:
        raise errors.ValueMismatchError(
            "random.categorical: more samples than categories",
            got=f"{count} of {scores.shape[place]}",
            fix="use replace=True",
        )
    noisy = trace.bind1(e.add_p, scores, gumbel(key, scores.shape, scores.dtype, mode))
    chosen = view.slice_in_dim(_largest_first(noisy, place), 0, count, axis=place)
    front = view.transpose(chosen, [place, *(d for d in range(chosen.ndim) if d != place)])
    return streams.placed(view.reshape(front, sizes), out_sharding)


def _largest_first(x: Value, axis: int) -> Value:
    """Positions from the largest element down; of equal ones the first comes first."""
    return inp.argsort(x, axis, descending=True)


def permutation(
    key: KeyLike,
    x: ArrayLike,
    axis: int = 0,
    independent: bool = False,
    *,
    out_sharding: Placement = None,
) -> Value:
    """The elements of an array along an axis (or of `arange(x)`) in random order.

    Args:
        key: a key.
        x: array, or an integer.
        axis: axis to permute.
        independent: draw another order for each line along the axis; otherwise whole slices move together.
        out_sharding: placement of the result.

    Raises:
        TypeMismatchError: `x` is a number and no integer.
        ConcretizationError: `x` is a number that is being traced.
    """
    raw_key = keys.raw(key, "permutation")
    array = as_value("permutation", x)
    place = _axes.one("permutation", axis, array.ndim or 1)
    if array.ndim == 0:
        numbers = view.iota(dtypes.int32, _whole_number("permutation", x))
        return streams.placed(_shuffle(raw_key, numbers, 0), out_sharding)
    if independent or array.ndim == 1:
        return streams.placed(_shuffle(raw_key, array, place), out_sharding)
    order = _shuffle(raw_key, view.iota(dtypes.int32, array.shape[place]), 0)
    return streams.placed(inp.take(array, order, place, mode="clip"), out_sharding)


def _whole_number(name: str, x: ArrayLike) -> int:
    number = as_value(name, x)
    if number.dtype not in dtypes.INTEGERS:
        raise errors.TypeMismatchError(
            f"random.{name} needs an integer or an array",
            got=str(number.type),
            expected="an integer, or an array",
        )
    return int(x)


@functools.partial(staging.jit, static_argnums=(2,))
def _shuffle(raw_key: Value, x: Value, axis: int) -> Value:
    """Sort by random 32-bit keys, often enough that equal keys in every round are improbable (below
    size**-3)."""
    rounds = math.ceil(3 * math.log(max(1, x.size)) / math.log(np.iinfo(np.uint32).max))
    for _ in range(rounds):
        both = keys.split_words(raw_key, (2,))
        raw_key, subkey = (view.reshape(view.slice_in_dim(both, i, i + 1), (2,)) for i in range(2))
        order = inp.argsort(streams.words(subkey, 32, x.shape), axis)
        x = inp.take_along_axis(x, order, axis, mode="clip")
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
    population = _whole_number("choice", a) if array.ndim == 0 else array.shape[place]
    draws = math.prod(sizes)
    if not draws:
        return inp.zeros((*array.shape[:place], *sizes, *array.shape[place + 1 :]), array.dtype)
    if population < 1 or (not replace and draws > population):
        raise errors.ValueMismatchError(
            "random.choice: there are not enough elements",
            got=f"{draws} draws of {population}",
            fix="use replace=True",
        )
    picked = _pick(key, sizes, draws, population, replace, p, mode)
    if array.ndim == 0:
        return view.reshape(picked, sizes)
    found = inp.take(array, view.reshape(picked, (draws,)), place, mode="clip")
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
        summed = inp.cumsum(weights)
        total = view.reshape(view.slice_in_dim(summed, population - 1, population), ())
        uniform = streams.uniform(key, sizes, weights.dtype)
        at = trace.bind1(e.mul_p, total, bind_scalars(e.sub_p, convert(1, weights.dtype), uniform))
        return inp.searchsorted(summed, at)
    noisy = trace.bind1(e.add_p, gumbel(key, (population,), weights.dtype, mode), e.log(weights))
    return view.slice_in_dim(_largest_first(noisy, 0), 0, draws)


def geometric(
    key: KeyLike,
    p: ArrayLike,
    shape: Any = None,
    dtype: DTypeLike | None = None,
    *,
    out_sharding: Placement = None,
) -> Value:  # Any: sizes
    """The number of trials up to the first success, at least 1.

    Args:
        key: a key.
        p: probability of a success, in (0, 1].
        shape: shape of the result, that of `p` when absent.
        dtype: an integer dtype, int32 when absent.
        out_sharding: placement of the result.

    Raises:
        ValueMismatchError: the dtype is no integer.
    """
    target = dtypes.int32 if dtype is None else dtypes.canonical(dtype)
    if target not in dtypes.INTEGERS:
        raise errors.ValueMismatchError("random.geometric makes integers", got=target.name)
    chance = convert(p, dtypes.float32) if type(p) in (int, float) else as_value("geometric", p)
    sizes, (chance,) = streams.parameters("geometric", shape, to_inexact(chance.dtype), chance)
    drawn = _geometric(keys.raw(key, "geometric"), chance, sizes, target)
    return streams.placed(drawn, out_sharding)


@functools.partial(staging.jit, static_argnums=(2, 3))
def _geometric(raw_key: Value, p: Value, shape: tuple[int, ...], dtype: np.dtype) -> Value:
    uniform = streams.uniform_from(raw_key, shape, p.dtype, 0.0, 1.0)
    # 0 stands for 1, whose logarithm is finite.
    uniform = inp.where(uniform == 0, 1, uniform)
    trials = inp.floor(inp.log(uniform) / inp.log1p(-p)) + 1
    return trials.astype(dtype)
