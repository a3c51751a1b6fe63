"""Whole random programs give the reference's results on the CPU backend."""

from __future__ import annotations

import hypothesis
from hypothesis import strategies as st

from infini.core.ir import Program
from infini.testing import programs
from tests.property.running import close, run


@hypothesis.given(programs.programs(families=programs.EXACT), st.integers(0, 9))
def test_the_cpu_backend_agrees_with_the_reference(program: Program, seed: int) -> None:
    arrays = programs.arguments(program, seed)
    for found, wanted in zip(run("cpu", program, arrays), run("reference", program, arrays), strict=True):
        close(found, wanted, "cpu against reference")
