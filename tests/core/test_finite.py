"""The knobs `nan` and `inf`: the first equation that made a bad value is named, with line and operands."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.core import errors
from infini.core.mesh import P
from infini.core.sharding import NamedSharding

LINES = Path(__file__).read_text().splitlines()
X = np.asarray([1.0, 2.0, -1.0, 3.0], np.float32)


@pytest.fixture(autouse=True)
def on_backend(backend_name):
    with inf.config(device=backend_name):
        yield


def straight(x):
    y = lax.mul(lax.sin(x), 2.0)
    z = lax.log(x)  # here
    return lax.reduce_sum(lax.add(y, z), (0,))


def scanned(x):
    def step(carry, v):
        carry = lax.sub(carry, v)
        return carry, lax.sqrt(carry)  # here

    return lax.scan(step, 2.5, inp.abs(x))


def scanned_backwards(x):
    def step(carry, v):
        return carry, lax.log(v)  # here

    return lax.scan(step, 0.0, x, reverse=True)


def repeated(x):
    def step(state):
        i, v = state
        return lax.add(i, 1.0), lax.div(lax.mul(v, 0.0), lax.sub(3.0, i))  # here

    return lax.while_loop(lambda state: lax.lt(state[0], 5.0), step, (0.0, x))


def chosen(x):
    return lax.switch(1, [lambda v: v, lambda v: lax.log(lax.neg(v))], x)  # here


def nested(x):
    inner = inf.jit(lambda v: inf.checkpoint(lambda u: lax.sqrt(u))(v))  # here
    return lax.add(inner(x), 1.0)


def differentiated(x):
    return inf.grad(lambda v: lax.reduce_sum(lax.sqrt(lax.mul(v, 0.0)), (0,)))(x)  # here


CASES = {
    straight: ("'log' made a NaN\n", "log(-1.0) = nan at (2,)"),
    scanned: ("'sqrt' made a NaN, in iteration 1 of scan step (test_finite.py:", "sqrt(-0.5) = nan"),
    scanned_backwards: ("'log' made a NaN, in iteration 2 of scan step (test_finite.py:", "log(-1.0) = nan"),
    repeated: ("'div' made a NaN, in iteration 3 of while step (test_finite.py:", "div(0.0, 0.0) = nan"),
    chosen: ("'log' made a NaN, in branch 1 of cond", "log(-1.0) = nan"),
    nested: ("'sqrt' made a NaN, in checkpoint <lambda> (test_finite.py:", "sqrt(-1.0) = nan at (2,)"),
    differentiated: ("'mul' made a NaN\n", "mul(inf, 0.0) = nan at (0,), one of 4 such elements"),
}


def line_of(function):
    """The line of a function that ends in `# here`."""
    start = function.__code__.co_firstlineno - 1
    return 1 + next(i for i in range(start, len(LINES)) if LINES[i].endswith("# here"))


@pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__)
def test_the_equation_its_operands_and_the_line_are_named(function):
    what, example = CASES[function]
    with inf.debug_nans(), pytest.raises(FloatingPointError) as raised:
        inf.jit(function)(X)
    text = str(raised.value)
    assert what in text and example in text
    assert text.endswith(f"at:       test_finite.py:{line_of(function)}")


def test_operations_outside_jit_are_watched_too():
    with inf.config(nan=True), pytest.raises(errors.NotFiniteError, match=r"log\(-1.0\) = nan at \(2,\)"):
        lax.log(inp.asarray(X))


def test_a_masked_nan_is_no_fault():
    with inf.debug_nans():
        found = inf.jit(lambda x: inp.where(x > 0, lax.log(x), 0.0))(X)
    np.testing.assert_allclose(found, [0, np.log(2), 0, np.log(3)], rtol=1e-6)


def test_without_the_knob_nothing_is_raised():
    assert np.isnan(inf.jit(straight)(X))
    with inf.debug_nans(False):
        assert np.isnan(inf.jit(straight)(X))


def test_infinities_have_a_knob_of_their_own():
    with (
        inf.debug_infs(),
        pytest.raises(
            FloatingPointError,
            match=r"'exp' made an infinity\n  got: +exp\(100.0\) = inf at \(0,\), one of 3",
        ),
    ):
        inf.jit(lambda x: lax.exp(lax.mul(x, 100.0)))(X)
    with inf.debug_nans():
        inf.jit(lambda x: lax.exp(lax.mul(x, 100.0)))(X)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "complex64"])
def test_every_inexact_dtype_is_watched(dtype, backend_name):
    x = inp.asarray(np.zeros(2)).astype(dtype)
    with inf.debug_nans(), pytest.raises(FloatingPointError, match="'div' made a NaN"):
        inf.jit(lambda v: lax.div(v, v))(x)


def test_a_nan_that_came_in_is_traced_to_its_argument():
    with (
        inf.debug_nans(),
        pytest.raises(
            FloatingPointError, match=r"argument 1 of <lambda>, of type f32\[4\], had a NaN already"
        ),
    ):
        inf.jit(lambda x, y: lax.add(x, y))(X, np.full(4, np.nan, np.float32))


def test_a_donated_argument_is_searched_with_its_old_contents():
    donating = inf.jit(lambda x: lax.log(x), donate_argnums=0)
    with inf.debug_nans(), pytest.raises(FloatingPointError, match=r"log\(-1.0\) = nan"):
        donating(inp.asarray(X))


def test_prints_are_not_repeated_by_the_search(capfd):
    def printed(x):
        inf.debug.print("x = {}", lax.reduce_max(x, (0,)))
        return lax.log(x)

    with inf.debug_nans(), pytest.raises(FloatingPointError):
        inf.jit(printed)(X)
    assert capfd.readouterr().out == "x = 3.0\n"


def test_programs_over_a_mesh_are_searched():
    with inf.config(cpu_devices=2):
        mesh = inf.make_mesh((2,), ("data",))
        x = inf.device_put(X, NamedSharding(mesh, P("data")))
        with inf.debug_nans(), pytest.raises(FloatingPointError, match=r"log\(-1.0\) = nan at \(2,\)"):
            inf.jit(straight)(x)
        local = inf.shard_map(
            lambda v: lax.psum(lax.log(v), "data"), mesh=mesh, in_specs=P("data"), out_specs=P()
        )
        with inf.debug_nans(), pytest.raises(FloatingPointError, match="'shard_map' made a NaN"):
            inf.jit(local)(X)


def test_the_environment_sets_the_knob():
    assert re.search(r"`nan` \| `INFINI_NAN` \| 0 or 1 \| off", inf.core.config.document())
