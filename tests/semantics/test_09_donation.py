"""Design 4a.9: donated buffers are reused or it is said; NumPy data are copied; host views are safe."""

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini.core import errors, events


def test_a_donated_argument_is_deleted_and_its_buffer_reused():
    x = inp.zeros((1000, 100))
    address = x.buffers[0].address
    y = infini.jit(lambda x: x + 1, donate_argnums=0)(x)
    assert y.buffers[0].address == address
    with pytest.raises(RuntimeError, match="donated"):
        _ = x + 1


def test_a_buffer_with_a_live_host_view_is_not_overwritten():
    x = inp.arange(1000, dtype="float32")
    view = np.asarray(x)
    with events.record() as found:
        infini.jit(lambda x: x + 1, donate_argnums=0)(x)
    np.testing.assert_array_equal(view, np.arange(1000))
    assert "donation-copied" in [event.code for event in found]


def test_donation_that_cannot_be_used_warns_and_names_the_parameter():
    x = inp.zeros((1000,))
    with pytest.warns(errors.InfiniWarning, match="donation-unused"):
        infini.jit(lambda x: x.sum(), donate_argnums=0)(x)


def test_required_donation_that_cannot_be_used_is_an_error():
    x = inp.zeros((1000,))
    with pytest.raises(errors.DonationError):
        infini.jit(lambda x: x.sum(), donate_argnums=0, donation="require")(x)


def test_donation_changes_no_result():
    def step(state, x):
        return {"m": state["m"] * 0.9 + x, "v": state["v"] * 0.99 + x * x}

    def run(**options):
        f, state = infini.jit(step, **options), {"m": inp.ones((64, 64)), "v": inp.ones((64, 64))}
        for i in range(5):
            state = f(state, inp.full((64, 64), float(i)))
        return state

    for a, b in zip(infini.tree.leaves(run()), infini.tree.leaves(run(donate_argnums=0)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_arrays_from_numpy_are_copies():
    host = np.zeros(100, np.float32)
    x = inp.asarray(host)
    host[:] = 1
    assert float(x.sum()) == 0.0


def test_host_views_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(inp.zeros(3))[0] = 1
