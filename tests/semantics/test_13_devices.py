"""Design 4a.13: uncommitted values follow committed ones; two committed placements that differ are an
error.
"""

import pytest

import infini
import infini.numpy as inp
from infini.core import errors


def two_devices():
    return infini.devices("cpu")[:2]


def test_uncommitted_values_follow():
    with infini.config(cpu_devices=2):
        _, second = two_devices()
        x = infini.device_put(inp.ones(3), second)
        assert x.committed and (x + inp.ones(3)).device == second and (x + inp.ones(3)).committed


def test_values_made_here_are_uncommitted():
    x = inp.ones(3)
    assert not x.committed and not (x + 1).committed


def test_two_committed_placements_are_an_error():
    with infini.config(cpu_devices=2):
        first, second = two_devices()
        with pytest.raises(errors.DeviceError, match="different devices"):
            _ = infini.device_put(inp.ones(3), first) + infini.device_put(inp.ones(3), second)


def test_cpu_results_are_ready_when_the_call_returns():
    assert infini.jit(lambda x: x * 2)(inp.ones(3)).ready is None


def test_unknown_backends_are_named():
    with pytest.raises(errors.DeviceError, match="no backend called 'abacus'"):
        infini.devices("abacus")
