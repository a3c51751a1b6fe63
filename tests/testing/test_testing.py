"""The helpers for tests: derivatives that are wrong are found, traces are counted, random programs are
well formed."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import infini
import infini.numpy as inp
from infini.core import check, text
from infini.core.backend import CompileOptions, get
from infini.testing import assert_close, assert_max_traces, check_grads, programs


def test_right_derivatives_pass() -> None:
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    check_grads(lambda x, y: {"a": inp.tanh(x @ y), "b": (x * x).sum()}, (x, x.T), order=2)


def test_wrong_derivatives_are_found() -> None:
    @infini.custom_vjp
    def double(x):
        return x * 2

    double.defvjp(lambda x: (x * 2, None), lambda _, g: (g * 3,))
    with pytest.raises(AssertionError, match="vjp"):
        check_grads(double, (np.ones(3, np.float32),), order=1, modes=("rev",))


def test_traces_are_counted() -> None:
    f = infini.jit(lambda x: x + 1)
    with assert_max_traces(f, 2):
        f(inp.ones(2)), f(inp.ones(3)), f(inp.zeros(2))
    with pytest.raises(AssertionError, match="traced 1 times"), assert_max_traces(f, 0):
        f(inp.ones(4))


def test_tolerances_go_by_dtype() -> None:
    assert_close(np.float32(1 + 5e-7), np.float32(1))
    with pytest.raises(AssertionError):
        assert_close(np.float32(1 + 5e-6), np.float32(1))
    with pytest.raises(AssertionError):
        assert_close(np.int32(1), np.int32(2))
    with pytest.raises(AssertionError):
        assert_close(np.ones(2), np.ones((2, 1)))


@hypothesis.given(programs.programs())
def test_random_programs_are_well_formed_and_print_and_parse(program) -> None:
    check.check(program)
    assert text.parse(text.print_program(program)) == program


@hypothesis.given(programs.programs(), st.integers(0, 9))
def test_random_programs_run(program, seed: int) -> None:
    backend = get("reference")
    device = backend.devices()[0]
    buffers = [backend.put(x, device) for x in programs.arguments(program, seed)]
    results = backend.compile(program, CompileOptions())(buffers)
    assert [backend.get(b, t).shape for b, t in zip(results, program.out_types, strict=True)] == [
        t.shape for t in program.out_types
    ]
