"""Infinite elements and NaN reach the results that read them and no others: against the definition, written
out place by place.
"""

from __future__ import annotations

import itertools
from typing import Any, TypeAlias

import numpy as np
import pytest

import infini as inf
from infini import lax

Shape: TypeAlias = tuple[int, ...]
Pads: TypeAlias = tuple[tuple[int, int], ...]


class Definition:
    """A convolution of an image (batch, spatial ..., in) and a kernel (spatial ..., in, out), place by place.

    Each result comes twice: as the sum of products of elements, and with the products of zeros in padding and
    holes, which are NaN where they meet an infinite element. JAX multiplies these and PyTorch does not.
    """

    def __init__(
        self, size: Shape, window: Shape, strides: Shape, pads: Pads, dilation: Shape, holes: Shape
    ) -> None:
        along = list(zip(size, window, strides, pads, dilation, holes, strict=True))
        self.count = tuple(
            ((n - 1) * hole + low + high - (k - 1) * d) // s + 1 for n, k, s, (low, high), d, hole in along
        )
        self.size, self.window = size, window
        self.meets: list[tuple[Shape, Shape, Shape | None]] = []
        for place in itertools.product(*map(range, self.count)):
            for tap in itertools.product(*map(range, window)):
                at = [
                    p * s + t * d - low
                    for p, t, (_, _, s, (low, _), d, _) in zip(place, tap, along, strict=True)
                ]
                exists = all(
                    a % hole == 0 and 0 <= a // hole < n for a, (n, *_, hole) in zip(at, along, strict=True)
                )
                element = tuple(a // hole for a, hole in zip(at, holes, strict=True)) if exists else None
                self.meets.append((place, tap, element))

    def results(self, x: np.ndarray, w: np.ndarray, ct: np.ndarray, groups: int) -> list[tuple[Any, Any]]:
        """The result and the derivatives by image and kernel."""
        shapes = x.shape, w.shape
        x, ct = (a.reshape(*a.shape[:-1], groups, -1) for a in (x, ct))
        w = np.moveaxis(w.reshape(*w.shape[:-1], groups, -1), -2, -3)  # (spatial ..., group, in, out)
        y, dx, dw = np.zeros_like(ct), np.zeros_like(x), np.zeros_like(w)
        of_y, of_dx, of_dw = np.zeros_like(ct), np.zeros_like(x), np.zeros_like(w)
        met = set()
        for place, tap, element in self.meets:
            if element is None:
                of_y[:, *place] += np.einsum("gco->go", 0 * w[tap])
                of_dw[tap] += np.einsum("ngo->go", 0 * ct[:, *place])[:, None]
                continue
            met.add((element, tap))
            y[:, *place] += np.einsum("ngc,gco->ngo", x[:, *element], w[tap])
            dx[:, *element] += np.einsum("ngo,gco->ngc", ct[:, *place], w[tap])
            dw[tap] += np.einsum("ngc,ngo->gco", x[:, *element], ct[:, *place])
        for element in itertools.product(*map(range, self.size)):
            for tap in itertools.product(*map(range, self.window)):
                if (element, tap) not in met:
                    of_dx[:, *element] += np.einsum("gco->gc", 0 * w[tap])
        found = [(y, y + of_y), (dx, dx + of_dx), (dw, dw + of_dw)]
        found[2] = tuple(np.moveaxis(a, -3, -2) for a in found[2])
        return [
            tuple(a.reshape(shape) for a in pair)
            for pair, shape in zip(found, [(*y.shape[:-2], -1), *shapes], strict=True)
        ]


# size, window, strides, padding, dilation of the kernel, of the image, channels, features, groups
TABLE: tuple[tuple[Any, ...], ...] = (
    ((12, 40), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 16, 1, 1),
    ((6, 37), (3, 5), (1, 2), ((1, 0), (2, 2)), (1, 1), (1, 1), 5, 3, 1),
    ((7, 20), (2, 3), (2, 3), ((1, 0), (4, 1)), (1, 1), (1, 1), 3, 4, 1),
    ((6, 18), (3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2), (1, 1), 4, 2, 1),
    ((5, 19), (3, 4), (1, 1), ((1, 1), (2, 1)), (1, 1), (2, 2), 4, 3, 1),  # a transposed convolution
    ((5, 19), (3, 3), (2, 2), ((2, 2), (2, 2)), (1, 1), (3, 3), 4, 3, 1),  # strides meet holes
    ((8, 16), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 16, 12, 4),
    ((8, 9), (3, 3), (1, 2), ((1, 1), (0, 1)), (1, 1), (1, 1), 12, 24, 12),  # multiplier 2
    ((6, 9), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 3, 40, 1),
    ((40,), (5,), (1,), ((-1, 3),), (1,), (1,), 8, 3, 1),
    ((4, 5, 17), (2, 2, 3), (1, 1, 1), ((1, 0), (0, 1), (1, 1)), (1, 1, 1), (1, 1, 1), 3, 2, 1),
)


def arrays(row: Any, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    size, window, strides, pads, dilation, holes, channels, features, groups = row
    count = Definition(size, window, strides, pads, dilation, holes).count
    shapes = ((2, *size, channels), (*window, channels // groups, features), (2, *count, features))
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


def ours(row: Any, *, channels_first: bool) -> Any:
    _, _, strides, pads, dilation, holes, _, _, groups = row
    digits = "123"[: len(strides)]
    numbers = (f"N{digits}C", f"{digits}IO", f"N{digits}C")

    def conv(x: Any, w: Any) -> Any:
        return lax.conv_general_dilated(
            x, w, strides, pads, lhs_dilation=holes, rhs_dilation=dilation, feature_group_count=groups,
            dimension_numbers=((f"NC{digits}", f"OI{digits}", f"NC{digits}") if channels_first else numbers),
        )  # fmt: skip

    def moved(x: Any, w: Any) -> Any:
        rank = len(strides)
        x = lax.transpose(x, (0, rank + 1, *range(1, rank + 1)))
        y = conv(x, lax.transpose(w, (rank + 1, rank, *range(rank))))
        return lax.transpose(y, (0, *range(2, rank + 2), 1))

    def all_of_it(x: Any, w: Any, ct: Any) -> Any:
        y, pullback = inf.vjp(moved if channels_first else conv, x, w)
        return y, *pullback(ct)

    return inf.jit(all_of_it)


def check(found: Any, wanted: np.ndarray, with_zeros: np.ndarray) -> None:
    """Equal up to rounding, infinite or NaN at the same elements; NaN also where a zero of the padding is."""
    found = np.asarray(found)
    is_zero_times_infinite = np.isnan(found) & np.isnan(with_zeros)
    np.testing.assert_allclose(np.where(is_zero_times_infinite, wanted, found), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("operands", [(0, 2), (1,)], ids=["image and cotangent", "kernel"])
@pytest.mark.parametrize("channels_first", [False, True], ids=["last", "first"])
@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]} {row[1]} {row[6:]}")
def test_infinite_elements_reach_only_what_reads_them(
    row: Any, channels_first: bool, operands: tuple[int, ...], rng: np.random.Generator
) -> None:
    values = arrays(row, rng)
    for number in operands:
        a = values[number].reshape(-1)
        a[rng.choice(a.size, 3, replace=False)] = np.inf, -np.inf, np.nan
    found = ours(row, channels_first=channels_first)(*values)
    with np.errstate(invalid="ignore"):
        wanted = Definition(*row[:6]).results(*values, row[-1])
    for a, pair in zip(found, wanted, strict=True):
        check(a, *pair)
