"""What holds for every program: it prints and parses back, the checker takes it, no pass changes a result."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from infini.compiler import pipeline
from infini.core import check, config, text
from infini.core.ir import Program
from infini.testing import programs
from tests.property.running import close, run


@hypothesis.given(programs.programs())
def test_a_printed_program_parses_back(program: Program) -> None:
    assert text.parse(text.print_program(program)) == program


@hypothesis.given(programs.programs())
def test_the_checker_accepts_what_the_builder_emits(program: Program) -> None:
    check.check(program)


@hypothesis.given(programs.programs())
def test_equal_programs_have_equal_fingerprints(program: Program) -> None:
    assert text.parse(text.print_program(program)).fingerprint == program.fingerprint


@hypothesis.given(programs.programs(), st.integers(0, 9))
def test_each_pass_keeps_results_and_gives_a_checked_program(program: Program, seed: int) -> None:
    arrays = programs.arguments(program, seed)
    expected = run("reference", program, arrays)
    for name, changed in pipeline.trace_passes(program):
        check.check(changed)
        for x, y in zip(run("reference", changed, arrays), expected, strict=True):
            close(x, y, name)


@hypothesis.given(programs.programs(families=programs.EXACT), st.integers(0, 9))
def test_one_kernel_per_equation_gives_equal_results(program: Program, seed: int) -> None:
    arrays = programs.arguments(program, seed)
    fused = run("cpu", program, arrays)
    with config.config(no_fuse=True):
        single = run("cpu", program, arrays)
    for x, y in zip(fused, single, strict=True):
        close(x, y, "no_fuse")


@pytest.mark.filterwarnings("ignore:.donation-unused")
@hypothesis.given(programs.programs(families=programs.EXACT), st.integers(0, 9), st.data())
def test_donation_changes_nothing(program: Program, seed: int, data: st.DataObject) -> None:
    arrays = programs.arguments(program, seed)
    numbers = data.draw(st.sets(st.integers(0, len(arrays) - 1)))
    donated = run("cpu", program, arrays, donated=tuple(sorted(numbers)))
    for x, y in zip(donated, run("cpu", program, arrays), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.filterwarnings("ignore:.donation-unused")
@hypothesis.given(programs.programs(families=programs.EXACT), st.integers(0, 9), st.booleans())
def test_a_memory_budget_changes_nothing(program: Program, seed: int, is_donated: bool) -> None:
    arrays = programs.arguments(program, seed)
    donated = tuple(range(len(arrays))) if is_donated else ()
    with config.config(memory_budget=1):
        found = run("cpu", program, arrays, donated=donated)
    for x, y in zip(found, run("cpu", program, arrays), strict=True):
        np.testing.assert_array_equal(x, y)
