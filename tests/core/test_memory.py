"""Host buffers: alignment, reuse, and views that outlive them."""

import gc

import numpy as np
import pytest

from infini.core import memory


@pytest.mark.parametrize("nbytes", [0, 1, 64, 65, 5000, 3 << 20])
def test_buffers_are_aligned(nbytes):
    assert memory.HostBuffer(nbytes).address % memory.ALIGNMENT == 0


def test_size_classes_waste_at_most_an_eighth_above_a_page():
    for nbytes in (4097, 10_000, 1_000_000, 123_456_789):
        assert nbytes <= memory.size_class(nbytes) <= nbytes * 1.125 + 4096


def test_a_dead_buffer_is_used_again():
    first = memory.HostBuffer(12_345)
    address = first.address
    del first
    assert memory.HostBuffer(12_300).address == address


def test_a_view_keeps_its_memory():
    buffer = memory.HostBuffer.copy_of(np.arange(1000, dtype=np.float32))
    view = buffer.view((1000,), np.dtype(np.float32))
    assert buffer.has_views
    del buffer
    gc.collect()
    others = [memory.HostBuffer.copy_of(np.zeros(1000, np.float32)) for _ in range(4)]
    assert len(others) == 4
    np.testing.assert_array_equal(view, np.arange(1000))


def test_views_that_died_do_not_count():
    buffer = memory.HostBuffer.copy_of(np.arange(10, dtype=np.float32))
    assert not buffer.has_views


def test_adopted_memory_is_shared():
    host = np.arange(4, dtype=np.float32)
    assert memory.HostBuffer.adopt(host).view((4,), host.dtype)[2] == 2
    assert memory.HostBuffer.adopt(host).address == host.ctypes.data
