"""Design 4a.3: programs with host functions print and parse unbound; captured arrays are hidden
parameters by identity.
"""

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini.core import errors, host, ir, text

CAPTURED = np.arange(100, dtype=np.float32)


def test_a_program_with_a_callback_prints_and_parses():
    def f(x):
        infini.debug.print("{}", x)
        return x

    program = infini.make_jaxpr(f)(1.0)
    assert text.parse(repr(program)) == program
    assert "HostFunction" in repr(program)


def test_an_unbound_host_function_is_a_named_error():
    with pytest.raises(errors.ValueMismatchError, match="not bound in this process"):
        host.lookup(ir.HostFunction("elsewhere", 10**9))


def test_a_large_captured_array_is_one_hidden_parameter():
    captured = inp.asarray(CAPTURED)
    program = infini.make_jaxpr(lambda x: (captured * x + captured).sum())(2.0)
    assert program.in_types == (
        ir.ArrayType((100,), np.dtype(np.float32)),
        ir.ArrayType((), np.dtype(np.float32)),
    )


def test_a_small_captured_array_is_a_constant():
    captured = inp.asarray(CAPTURED[:64])
    program = infini.make_jaxpr(lambda x: captured * x)(2.0)
    assert len(program.params) == 1 and len(program.consts) == 1


def test_a_jitted_function_sees_what_it_captured():
    captured = inp.asarray(CAPTURED)
    f = infini.jit(lambda x: (captured * x).sum())
    assert float(f(2.0)) == 2 * CAPTURED.sum() and float(f(3.0)) == 3 * CAPTURED.sum()


def test_equality_ignores_the_line():
    first = infini.make_jaxpr(lambda x: inp.sin(x))(1.0)
    second = infini.make_jaxpr(lambda x: inp.sin(x))(1.0)
    assert first.equations[0].where != second.equations[0].where and first == second
