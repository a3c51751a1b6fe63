"""Random programs of small whole numbers, in every dtype: the CPU backend gives the reference's numbers,
whatever is donated or fused.
"""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from infini.core import check, config, dtypes, text
from infini.core.ir import Program
from infini.testing import whole_numbers
from tests.property.running import run

some = whole_numbers.programs()
few = hypothesis.settings(max_examples=max(20, hypothesis.settings.default.max_examples // 5))


def assert_same(found: list[np.ndarray], wanted: list[np.ndarray], what: str) -> None:
    """Equal numbers; a sum that is zero may have either sign, as it may start from 0 or from a product."""
    for x, y in zip(found, wanted, strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        wide = np.complex128 if x.dtype in dtypes.COMPLEX else np.float64
        np.testing.assert_array_equal(x.astype(wide), y.astype(wide), err_msg=what)


@hypothesis.given(some, st.integers(0, 9))
def test_the_cpu_backend_gives_the_references_numbers(program: Program, seed: int) -> None:
    arrays = whole_numbers.arguments(program, seed)
    assert_same(run("cpu", program, arrays), run("reference", program, arrays), "cpu against reference")


@pytest.mark.filterwarnings("ignore:.donation-unused")
@few
@hypothesis.given(some, st.integers(0, 9), st.data())
def test_donation_changes_no_bit(program: Program, seed: int, data: st.DataObject) -> None:
    arrays = whole_numbers.arguments(program, seed)
    numbers = data.draw(st.sets(st.integers(0, len(arrays) - 1)))
    donated = run("cpu", program, arrays, donated=tuple(sorted(numbers)))
    plain = run("cpu", program, arrays)
    assert [x.tobytes() for x in donated] == [x.tobytes() for x in plain]


@few
@hypothesis.given(some, st.integers(0, 9))
def test_one_kernel_per_equation_gives_equal_numbers(program: Program, seed: int) -> None:
    arrays = whole_numbers.arguments(program, seed)
    fused = run("cpu", program, arrays)
    with config.config(no_fuse=True):
        assert_same(run("cpu", program, arrays), fused, "no_fuse")


@few
@hypothesis.given(some)
def test_a_printed_program_parses_back_and_is_checked(program: Program) -> None:
    assert text.parse(text.print_program(program)) == program
    check.check(program)
