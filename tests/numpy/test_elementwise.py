"""Floats taken apart, files, printing, and the page of the Array API standard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import infini.numpy as inp
from infini.core import errors
from tools import array_api


def test_the_page_of_the_standard_is_that_of_the_code() -> None:
    assert array_api.PAGE.read_text(encoding="utf-8") == array_api.page(), "run python -m tools.array_api"


def test_frexp_and_ldexp_are_exact_at_every_size() -> None:
    x = np.array([0.0, -0.0, 1.5, -3e38, 1e-38, 3e-45, np.inf, np.nan], np.float32)
    mantissa, exponent = inp.frexp(x)
    for ours, theirs in zip((mantissa, exponent), np.frexp(x), strict=True):
        np.testing.assert_array_equal(np.asarray(ours)[:-1], theirs[:-1])
    np.testing.assert_array_equal(np.asarray(inp.ldexp(mantissa, exponent)), x)
    shifts = np.array([3, 4, -140, -20, 250, 290, 5, 1], np.int32)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(np.asarray(inp.ldexp(x, shifts)), np.ldexp(x, shifts))


def test_files_keep_bfloat16(tmp_path: Path) -> None:
    x = inp.ones(3, "bfloat16")
    inp.save(tmp_path / "x.npy", x)
    found = inp.load(tmp_path / "x.npy")
    assert found.dtype == x.dtype and found.tolist() == [1, 1, 1]


def test_pickles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.UnsupportedError, match="pickle"):
        inp.load(tmp_path / "x.npy", allow_pickle=True)


def test_printing_takes_numpy_options() -> None:
    assert inp.array_repr(np.array([1.23456]), precision=2) == "Array([1.23], dtype=float32)"
