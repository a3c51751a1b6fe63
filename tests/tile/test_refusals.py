"""What kernels refuse: mistakes that would give another number, hang, or end in an error of Python's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import infini as inf
from infini import tile
from infini.core import errors
from infini.tile import Tensor, arrangements, block_size
from tests.tile import example_kernels

X = Tensor(1, name="x")
LIKE = Tensor(shape=X.shape)


def copy(x: Any, *_: Any) -> Any:
    return x


def blocks(*tensors: Tensor) -> list[Tensor]:
    return [t if t.is_scalar else t.tile((4,)) for t in tensors]


def of_type(dtype: str) -> Any:
    return tile.kernel(blocks, tensors=(X, Tensor(0, dtype=dtype), LIKE))(copy)


def with_other(other: complex) -> Any:
    padded = Tensor(1, other=other)
    return tile.kernel(lambda *ts: [t.tile((4,)) for t in ts], tensors=(padded, Tensor(shape=padded.shape)))(
        copy
    )


def fixed(value: int | None) -> Any:
    count = Tensor(0, constexpr=True, value=value, name="n")
    return tile.kernel(blocks, tensors=(X, count, LIKE))(lambda x, n: x * n)


def two_of_a_name() -> object:
    x = Tensor(2)
    pair = block_size(), block_size()
    return tile.kernel(lambda *ts: [t.tile(pair) for t in ts], tensors=(x, Tensor(shape=x.shape)))(copy)


def with_results(count: int) -> object:
    return tile.kernel(blocks, tensors=(X, LIKE), num_results=count)(copy)


ONES = np.ones(6, np.float32)
MISTAKES: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "a fraction for an integer": (lambda: of_type("int32")(ONES, 2.7), errors.OutOfRangeError, "2.7"),
    "a large integer": (lambda: of_type("int8")(ONES, 300), errors.OutOfRangeError, "300"),
    "minus infinity outside integers": (
        lambda: with_other(-math.inf)(np.ones(6, np.int8)), errors.OutOfRangeError, "other=",
    ),
    "a fraction outside integers": (
        lambda: with_other(1.5)(np.ones(6, np.int32)), errors.OutOfRangeError, "1.5",
    ),
    "products of other inner sizes": (
        lambda: example_kernels.module("mm").mm(np.ones((37, 50), np.float32), np.ones((49, 21), np.float32)),
        errors.TypeMismatchError, "50",
    ),
    "another value than the fixed one": (lambda: fixed(3)(ONES, n=2), errors.TypeMismatchError, "fixed"),
    "a value given twice": (lambda: fixed(None)(ONES, 3, n=4), errors.TypeMismatchError, "takes 1 operand"),
    "an arrangement of one tensor": (
        lambda: tile.kernel(lambda x, y: x, tensors=(X, LIKE))(copy), errors.TypeMismatchError, "no sequence",
    ),
    "an arrangement of nothing": (
        lambda: tile.kernel(lambda x, y: (None, None), tensors=(X, LIKE))(copy),
        errors.TypeMismatchError, "no tensor",
    ),
    "no result": (lambda: with_results(0), errors.ValueMismatchError, "results"),
    "more results than tensors": (lambda: with_results(5), errors.ValueMismatchError, "results"),
    "two block sizes of a name": (two_of_a_name, errors.ValueMismatchError, "one name"),
    "a tile of a number": (lambda: X.tile(16), errors.TypeMismatchError, "sequence"),  # type: ignore[arg-type]
    "a width of one number": (lambda: X.pad((1,)), errors.TypeMismatchError, "sequence"),  # type: ignore[arg-type]
    "a fraction of dimensions": (lambda: Tensor(1.5), errors.TypeMismatchError, "1.5"),  # type: ignore[arg-type]
    "fewer than no dimensions": (lambda: Tensor(-1), errors.TypeMismatchError, "-1"),
    "a negative size": (lambda: Tensor(shape=(-3,)), errors.ValueMismatchError, "too small"),
    "expanded to less than nothing": (
        lambda: Tensor(shape=(1,)).expand((-3,)), errors.ValueMismatchError, "too small",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_refused(name: str) -> None:
    call, kind, text = MISTAKES[name]
    with pytest.raises(kind, match=text):
        call()


def test_a_knob_that_changes_dtypes_makes_another_kernel() -> None:
    double = tile.kernel(blocks, tensors=(X, LIKE))(lambda x: x * np.float64(2))
    with inf.config(host64="keep"):
        wide = double(np.ones(6))
    assert (wide.dtype, double(np.ones(6)).dtype) == (np.float64, np.float32)


def test_sums_of_products_are_as_wide_as_what_is_multiplied() -> None:
    mm = example_kernels.module("mm").mm
    with inf.config(host64="keep"):
        a, b = np.full((3, 40), 1 / 3), np.full((40, 5), 1 / 7)
        np.testing.assert_allclose(mm(a, b), a @ b, rtol=1e-14)
    ones = np.full((2, 3), 210147001, np.int32)
    np.testing.assert_array_equal(mm(ones, np.ones((3, 2), np.int32)), ones @ np.ones((3, 2), np.int32))
    assert arrangements.accumulator(np.dtype(np.float16)) == np.float32
