"""Design 4a.14: simulated devices run in lockstep, deterministically; threads change nothing."""

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini.sharding import NamedSharding, P, make_mesh


def summed(x):
    return inp.tanh(x).sum() + (x @ x.T).mean()


X = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_changes_no_bit(threads):
    with inf.config(num_threads=threads):
        found = inf.jit(summed)(X)
    assert np.asarray(found).tobytes() == np.asarray(inf.jit(summed)(X)).tobytes()


def test_runs_on_simulated_devices_repeat_bit_for_bit():
    with inf.config(cpu_devices=4):
        x = inf.device_put(X, NamedSharding(make_mesh((4,), ("a",)), P("a")))
        f = inf.jit(summed)
        assert len({np.asarray(f(x)).tobytes() for _ in range(5)}) == 1
        np.testing.assert_allclose(f(x), summed(X), rtol=1e-5)
