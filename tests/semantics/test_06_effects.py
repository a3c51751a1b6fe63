"""Design 4a.6: io is kept, ordered io keeps program order, exceptions of callbacks are raised at the call."""

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import lax


def test_a_print_whose_values_nothing_uses_is_kept(capfd):
    @infini.jit
    def f(x):
        infini.debug.print("x = {}", x + 1)
        return x * 2

    assert float(f(1.0)) == 2.0
    assert capfd.readouterr().out == "x = 2.0\n"


def test_ordered_prints_keep_program_order(capfd):
    @infini.jit
    def f(x):
        for i in range(5):
            infini.debug.print("{} {}", i, x, ordered=True)
        return x

    f(1.0)
    assert [line[0] for line in capfd.readouterr().out.splitlines()] == list("01234")


def test_a_print_inside_scan_runs_once_per_step(capfd):
    def body(c, x):
        infini.debug.print("step {}", x)
        return c + x, None

    infini.jit(lambda xs: lax.scan(body, 0.0, xs))(np.arange(3, dtype=np.float32))
    assert capfd.readouterr().out == "step 0.0\nstep 1.0\nstep 2.0\n"


def test_a_mapped_print_runs_once_per_element(capfd):
    infini.vmap(lambda x: (infini.debug.print("{}", x), x)[1])(np.arange(3, dtype=np.float32))
    assert capfd.readouterr().out == "0.0\n1.0\n2.0\n"


def test_the_exception_of_a_callback_is_raised_at_the_call():
    def complain(x):
        raise RuntimeError("no such luck")

    @infini.jit
    def f(x):
        infini.debug.callback(complain, x)
        return x

    with pytest.raises(RuntimeError, match="no such luck"):
        infini.block_until_ready(f(1.0))


def test_gradients_keep_prints_of_the_forward_pass(capfd):
    def f(x):
        infini.debug.print("once {}", x)
        return inp.sin(x)

    infini.jit(infini.grad(f))(0.0)
    assert capfd.readouterr().out == "once 0.0\n"
