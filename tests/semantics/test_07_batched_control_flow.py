"""Design 4a.7: a batched predicate makes cond a select and runs while masked; ordered effects inside are
refused.
"""

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini import lax

XS = np.array([-2.0, 0.5, 3.0], np.float32)


def names(program):
    return [e.op.name for e in program.equations]


def test_cond_with_a_batched_predicate_becomes_a_select():
    def f(x):
        return lax.cond(x > 0, lambda x: x * 2, lambda x: -x, x)

    program = infini.make_jaxpr(infini.vmap(f))(XS)
    assert "cond" not in names(program) and "select_n" in names(program)
    np.testing.assert_array_equal(infini.vmap(f)(XS), [2.0, 1.0, 6.0])


def test_cond_with_one_predicate_stays_a_branch():
    program = infini.make_jaxpr(lambda p: infini.vmap(lambda x: lax.cond(p, inp.sin, inp.cos, x))(XS))(True)
    assert "cond" in names(program)


def test_while_with_batched_predicate_runs_each_element_its_own_number_of_steps():
    def f(x):
        return lax.while_loop(lambda c: c[0] < 10.0, lambda c: (c[0] * 2, c[1] + 1), (x, 0))

    values, steps = infini.vmap(f)(np.array([1.0, 4.0, 20.0], np.float32))
    np.testing.assert_array_equal(values, [16.0, 16.0, 20.0])
    np.testing.assert_array_equal(steps, [4, 2, 0])


def test_an_ordered_effect_under_a_batched_predicate_is_an_error():
    def branch(x):
        infini.debug.print("{}", x, ordered=True)
        return x

    with pytest.raises(TypeError, match="ordered effect"):
        infini.vmap(lambda x: lax.cond(x > 0, branch, lambda x: x, x))(XS)
