"""Numbers to blocks of Q4_K, Q5_K and Q6_K, whose scales are searched for.

A block of 256 numbers is 16 groups of 16 (Q6_K) or 8 groups of 32, each with a scale in 6 or 8 bits, of
which one float16 is the unit; Q4_K and Q5_K have a minimum per group, too. A group's scale is found in
three steps, each of which makes the sum of squared errors smaller:

1. codes for some trial scales, and for each the scale (and minimum) of least squares that go with these
   codes;
2. scales in units of the block's, where for every group the neighbours of the nearest one are tried, too,
   since the minimum has been rounded, and so has the unit;
3. the block's unit of least squares for all codes together, and codes for it.

In arrays the number within a group comes first, (R, groups): sums over a group are then sums of long rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from infini.io.gguf.blocks import pack, pack_k_scales

_NEIGHBOURS: Final = (-1, 1)
_TOP_SCALE: Final = 63  # of 6 bits
_SYMMETRIC_TRIALS: Final = np.linspace(-0.9, 0.9, 13, dtype=np.float32)
_MINIMUM_TRIALS: Final = np.linspace(-1.2, 1.2, 13, dtype=np.float32)
_REPEATS: Final = 2  # codes for the best scale so far, and the scale that goes with these


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, and 0 where b is 0."""
    return np.divide(a, b, out=np.zeros_like(a), where=b != 0)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("rg,rg->g", a, b)


def _half(x: np.ndarray) -> np.ndarray:
    """As a float16 has it."""
    return x.astype(np.float16).astype(np.float32)


def _columns(x: np.ndarray, run: int) -> np.ndarray:
    """Blocks (n, 256) as groups: (run, n * groups)."""
    return np.ascontiguousarray(x.reshape(-1, run).T)


def _symmetric_codes(x: np.ndarray, scale: np.ndarray, half_range: int) -> np.ndarray:
    codes = np.rint(x * _divide(np.ones_like(scale), scale))
    return np.clip(codes, -half_range, half_range - 1, out=codes)


def _symmetric_scale(x: np.ndarray, half_range: int) -> np.ndarray:
    """Scales of groups (R, g) of codes from -half_range to half_range - 1."""
    most = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    best_gain, best = np.zeros_like(most), np.zeros_like(most)
    for trial in _SYMMETRIC_TRIALS:
        codes = _symmetric_codes(x, most / (trial - np.float32(half_range)), half_range)
        product, square = _dot(x, codes), _dot(codes, codes)
        scale = _divide(product, square)
        gain = product * scale
        is_better = gain > best_gain
        np.copyto(best_gain, gain, where=is_better)
        np.copyto(best, scale, where=is_better)
    return best


def _q6_k(x: np.ndarray) -> np.ndarray:
    count = len(x)
    groups = _columns(x, 16)  # (16, count * 16)
    scale = _symmetric_scale(groups, 32).reshape(count, 16)
    most = np.take_along_axis(scale, np.abs(scale).argmax(axis=1)[:, None], axis=1)
    unit = _half(most / np.float32(-128))

    def fit(unit: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes for these steps, and their errors (count, 16)."""
        real = (unit * steps).reshape(-1)
        codes = _symmetric_codes(groups, real, 32)
        rest = groups - codes * real
        return codes, _dot(rest, rest).reshape(count, 16)

    nearest = np.clip(np.rint(_divide(scale, np.broadcast_to(unit, scale.shape))), -128, 127)
    steps, (codes, error) = nearest, fit(unit, nearest)
    for move in _NEIGHBOURS:
        trial = np.clip(nearest + np.float32(move), -128, 127)
        found, other = fit(unit, trial)
        is_better = other < error
        steps = np.where(is_better, trial, steps)
        error = np.minimum(error, other)
        np.copyto(codes, found, where=is_better.reshape(-1))
    # The unit of least squares for all codes of a block together.
    whole = codes.reshape(16, count, 16) * steps
    wanted = np.einsum("rcg,rcg->c", whole, groups.reshape(16, count, 16))
    refined = _half(_divide(wanted, np.einsum("rcg,rcg->c", whole, whole))[:, None])
    found, other = fit(refined, steps)
    is_better = other.sum(axis=1) < error.sum(axis=1)
    unit = np.where(is_better[:, None], refined, unit)
    np.copyto(codes, found, where=np.repeat(is_better, 16))
    stored = (codes.T.reshape(count, 256) + np.float32(32)).astype(np.uint8)
    return np.concatenate(
        [
            pack(stored & np.uint8(15), 4, 64),
            pack(stored >> np.uint8(4), 2, 32),
            steps.astype(np.int8).view(np.uint8),
            unit.astype("<f2").view(np.uint8),
        ],
        axis=1,
    )


def _minimum_codes(x: np.ndarray, scale: np.ndarray, minimum: np.ndarray, top: int) -> np.ndarray:
    codes = x + minimum
    codes *= _divide(np.ones_like(scale), scale)
    np.rint(codes, out=codes)
    return np.clip(codes, 0, top, out=codes)


def _scale_and_minimum(x: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima of groups (R, g) of codes from 0 to top: numbers are code * scale - minimum."""
    size = np.float32(len(x))
    low = np.minimum(x.min(axis=0), 0)
    span = x.max(axis=0) - low
    total = x.sum(axis=0)
    best_error = np.full_like(low, np.inf)
    best_scale, best_minimum = np.zeros_like(low), -low

    def try_codes_of(scale: np.ndarray, minimum: np.ndarray) -> None:
        codes = _minimum_codes(x, scale, minimum, top)
        ones, squares, product = codes.sum(axis=0), _dot(codes, codes), _dot(codes, x)
        determinant = size * squares - ones * ones
        scale = _divide(size * product - total * ones, determinant)
        minimum = _divide(ones * product - squares * total, determinant)
        is_positive = minimum < 0
        scale = np.where(is_positive, _divide(product, squares), scale)
        minimum = np.where(is_positive, 0, minimum)
        # Without the sum of squares of x, which is the same for all trials.
        error = scale * (scale * squares - 2 * (minimum * ones + product))
        error += minimum * (size * minimum + 2 * total)
        is_better = (error < best_error) & (scale > 0)
        np.copyto(best_error, error, where=is_better)
        np.copyto(best_scale, scale, where=is_better)
        np.copyto(best_minimum, minimum, where=is_better)

    for trial in _MINIMUM_TRIALS:
        try_codes_of(span / (np.float32(top) + trial), -low)
    for _ in range(_REPEATS):
        try_codes_of(best_scale, best_minimum)
    return best_scale, best_minimum


def _with_minima(x: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Heads of blocks, 16 bytes, and codes (n, 256)."""
    count = len(x)
    groups = _columns(x, 32)  # (32, count * 8)
    scale, minimum = (found.reshape(count, 8) for found in _scale_and_minimum(groups, top))
    unit = _half(scale.max(axis=1, keepdims=True) / np.float32(_TOP_SCALE))
    low_unit = _half(minimum.max(axis=1, keepdims=True) / np.float32(_TOP_SCALE))
    mean = groups.mean(axis=0).reshape(count, 8)

    def nearest(number: np.ndarray, unit: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(_divide(number, np.broadcast_to(unit, number.shape))), 0, _TOP_SCALE)

    def fit(
        unit: np.ndarray, low_unit: np.ndarray, steps: np.ndarray, lows: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Codes, and their errors (count, 8)."""
        real, low = (unit * steps).reshape(-1), (low_unit * lows).reshape(-1)
        codes = _minimum_codes(groups, real, low, top)
        rest = codes * real
        rest -= low
        rest -= groups
        return codes, _dot(rest, rest).reshape(count, 8)

    first = nearest(scale, unit)
    best = [first, nearest(minimum, low_unit)]
    codes, error = fit(unit, low_unit, *best)
    for move in (0, *_NEIGHBOURS):
        steps = np.clip(first + np.float32(move), 0, _TOP_SCALE)
        # The minimum that goes with the mean of the codes for this scale.
        lows = best[1] if move == 0 else nearest(minimum, low_unit)
        trial = _minimum_codes(groups, (unit * steps).reshape(-1), (low_unit * lows).reshape(-1), top)
        lows = nearest(trial.mean(axis=0).reshape(count, 8) * unit * steps - mean, low_unit)
        found, other = fit(unit, low_unit, steps, lows)
        is_better = other < error
        best = [np.where(is_better, new, old) for new, old in zip((steps, lows), best, strict=True)]
        error = np.minimum(error, other)
        np.copyto(codes, found, where=is_better.reshape(-1))
    steps, lows = best
    refined, low_refined = _least_squares(groups, codes, steps, lows, unit, low_unit)
    found, other = fit(refined, low_refined, steps, lows)
    is_better = other.sum(axis=1) < error.sum(axis=1)
    unit = np.where(is_better[:, None], refined, unit)
    low_unit = np.where(is_better[:, None], low_refined, low_unit)
    np.copyto(codes, found, where=np.repeat(is_better, 8))
    head = [unit.astype("<f2").view(np.uint8), low_unit.astype("<f2").view(np.uint8)]
    scales = pack_k_scales(steps.astype(np.uint8), lows.astype(np.uint8))
    return np.concatenate([*head, scales], axis=1), codes.T.reshape(count, 256).astype(np.uint8)


def _least_squares(
    groups: np.ndarray,
    codes: np.ndarray,
    steps: np.ndarray,
    lows: np.ndarray,
    unit: np.ndarray,
    low_unit: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The two units of blocks that fit all their codes best; what they are where these do not say."""
    count, width = steps.shape
    size = np.float32(len(groups))
    shape = (len(groups), count, width)
    ones = codes.sum(axis=0).reshape(count, width)
    squares = _dot(codes, codes).reshape(count, width)
    product = np.einsum("rcg,rcg->cg", codes.reshape(shape), groups.reshape(shape))
    total = groups.sum(axis=0).reshape(count, width)
    a = (squares * steps * steps).sum(axis=1, dtype=np.float64)
    b = (ones * steps * lows).sum(axis=1, dtype=np.float64)
    c = (size * lows * lows).sum(axis=1, dtype=np.float64)
    p = (product * steps).sum(axis=1, dtype=np.float64)
    q = (total * lows).sum(axis=1, dtype=np.float64)
    determinant = a * c - b * b
    is_singular = determinant <= 1e-9 * a * c
    safe = np.where(is_singular, 1.0, determinant)
    new = np.where(is_singular, unit[:, 0], (p * c - q * b) / safe)
    new_low = np.where(is_singular, low_unit[:, 0], (p * b - q * a) / safe)
    is_usable = (new > 0) & (new_low >= 0)
    new, new_low = np.where(is_usable, new, unit[:, 0]), np.where(is_usable, new_low, low_unit[:, 0])
    return _half(new.astype(np.float32))[:, None], _half(new_low.astype(np.float32))[:, None]


def _q4_k(x: np.ndarray) -> np.ndarray:
    head, codes = _with_minima(x, 15)
    return np.concatenate([head, pack(codes, 4, 32)], axis=1)


def _q5_k(x: np.ndarray) -> np.ndarray:
    head, codes = _with_minima(x, 31)
    return np.concatenate(
        [head, pack(codes >> np.uint8(4), 1, 32), pack(codes & np.uint8(15), 4, 32)], axis=1
    )


QUANTIZERS: Final[dict[str, Callable[[np.ndarray], np.ndarray]]] = {
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
